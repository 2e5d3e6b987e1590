//! `shipment.json`: what this array was prepared for.

use super::{Document, check_unique};
use crate::error::{FormatError, Result};
use crate::geometry::check_block_bytes;
use crate::names::{check_name, check_text};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most recipients of a shipment.
pub const MAX_RECIPIENTS: usize = 32;

/// A site by UUID, with its name for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Identity.
    pub uuid: Uuid,
    /// For people.
    pub name: String,
}

/// Whether records and manifest are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// Nothing is encrypted.
    Plaintext,
    /// Records under AES-256-GCM, content keys and manifest under age X25519.
    #[serde(rename = "aes-256-gcm+age-x25519")]
    Aes256GcmAge,
}

/// One portable medium of the shipment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Medium {
    /// From 1.
    pub number: u32,
    /// Identity, made when the medium was prepared.
    pub uuid: Uuid,
    /// The device's serial numbers as the host saw them; may be empty.
    pub serial: String,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shipment {
    /// Format version.
    pub format: u32,
    /// Identity of the shipment, for ever.
    pub shipment: Uuid,
    /// Whose disks these are.
    pub site: Site,
    /// What people call it; may be empty.
    pub label: String,
    /// The number on the array's sticker; may be empty.
    pub asset_tag: String,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Encryption of the whole shipment.
    pub suite: Suite,
    /// age X25519 recipients; empty exactly for a plaintext shipment.
    pub recipients: Vec<String>,
    /// Hash of leaves and digests: `blake3`.
    pub hash: String,
    /// Checksum of headers and payloads: `crc32`.
    pub checksum: String,
    /// Exactly one in this version; a list, so that a later one can spread packs over several.
    pub media: Vec<Medium>,
    /// When `init` ran.
    pub created_at: Timestamp,
    /// Program and version.
    pub tool: String,
    /// NAME@SITE of whoever prepared the array with a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
}

impl Document for Shipment {
    const OBJECT: &'static str = "shipment.json";
    fn format(&self) -> u32 {
        self.format
    }
    fn validate(&self) -> Result<()> {
        check_name("Site name", &self.site.name)?;
        check_text("Label", &self.label, 200)?;
        check_text("Asset tag", &self.asset_tag, 100)?;
        check_text("Tool", &self.tool, 100)?;
        check_block_bytes(self.block_bytes)?;
        if self.hash != "blake3" || self.checksum != "crc32" {
            return Err(FormatError::unsupported(
                Self::OBJECT,
                format!("{} and {}", self.hash, self.checksum),
                "blake3 and crc32",
            ));
        }
        if (self.suite == Suite::Plaintext) != self.recipients.is_empty() || self.recipients.len() > MAX_RECIPIENTS {
            return Err(FormatError::damaged(
                "Recipients in shipment.json",
                format!("none when plaintext, else 1 to {MAX_RECIPIENTS}"),
                self.recipients.len().to_string(),
            ));
        }
        self.recipients.iter().try_for_each(|r| check_text("Recipient", r, 200))?;
        check_unique("Recipients in shipment.json", self.recipients.iter())?;
        if self.media.len() != 1 {
            return Err(FormatError::damaged("Media in shipment.json", "exactly one", self.media.len().to_string()));
        }
        self.media.iter().try_for_each(|m| check_text("Medium serial", &m.serial, 500))?;
        self.signer.iter().try_for_each(|s| check_text("Signer", s, 300))
    }
}
