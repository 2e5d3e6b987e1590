//! `seal.json`: the small signed statement that pins everything on the array.

use super::shipment::Site;
use super::{Document, MAX_SEAL_BYTES, check_unique};
use crate::error::{FormatError, Result};
use crate::geometry::Geometry;
use crate::names::{check_name, check_text};
use crate::pack::{MAX_PACK_BYTES, pack_file_name};
use crate::tree::Digest;
use jiff::Timestamp;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Most packs that a seal may list (at 8 GiB each: 512 TiB; a seal of so many still fits its bound).
pub const MAX_PACKS: usize = 65_536;
/// Most disks that a seal may list.
pub const MAX_DISKS: usize = 10_000;

/// Most key envelopes that a seal may pin: one for each process that wrote, and each is read before trust is settled.
pub const MAX_ENVELOPES: usize = 10_000;
/// Longest manifest, bytes: room for 500 TiB in blocks of 64 KiB.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 40;

/// How far a generation can be trusted to be one moment of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Every leaf belongs to one point in time.
    Consistent,
    /// The disk was written to while it was read.
    Fuzzy,
}

/// Why a generation counts as consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// It is fuzzy: nothing holds the disk still.
    None,
    /// A snapshot hook ran.
    Hook,
    /// The source itself is a snapshot.
    Source,
    /// The engineer asserted it; MotionGear did not see it.
    Asserted,
}

/// A file by digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestPin {
    /// Relative to `motiongear/`: `manifest.db` or `manifest.db.age`.
    pub file: String,
    /// Of the file on the array.
    pub bytes: u64,
    /// Of the file on the array.
    pub blake3: Digest,
    /// Of the file on the array.
    pub sha256: Digest,
    /// The plain database, equal to the above when nothing is encrypted.
    pub plain: PlainPin,
}

/// The plain database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainPin {
    /// Length, bytes.
    pub bytes: u64,
    /// BLAKE3.
    pub blake3: Digest,
    /// SHA-256.
    pub sha256: Digest,
}

/// One pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedPack {
    /// Relative to `motiongear/`: `packs/00000001.pack`.
    pub file: String,
    /// The medium's number.
    pub medium: u32,
    /// Length, bytes.
    pub bytes: u64,
    /// Records in it.
    pub records: u64,
    /// What `b3sum` prints on it.
    pub blake3: Digest,
}

/// How many blocks a disk has of each kind; they add up to all its blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockCounts {
    /// With a record.
    pub stored: u64,
    /// All zeros, without a record.
    pub zero: u64,
    /// With at least one byte that the source could not give.
    pub unreadable: u64,
}

/// One disk as sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedDisk {
    /// The number that record headers carry.
    pub id: u32,
    /// The machine's name.
    pub machine: String,
    /// The disk's name.
    pub disk: String,
    /// The disk's identity.
    pub uuid: Uuid,
    /// 0 for the seed.
    pub generation: u32,
    /// Size, bytes.
    pub bytes: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// What `b3sum` prints on the whole disk.
    pub digest: Digest,
    /// One point in time or not.
    pub consistency: Consistency,
    /// Why.
    pub basis: Basis,
    /// Counts by kind.
    pub blocks: BlockCounts,
}

/// A planned disk that is not in the shipment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExcludedDisk {
    /// The machine's name.
    pub machine: String,
    /// The disk's name.
    pub disk: String,
    /// Why, in the engineer's words.
    pub reason: String,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Format version.
    pub format: u32,
    /// The shipment.
    pub shipment: Uuid,
    /// Whose disks.
    pub site: Site,
    /// NAME@SITE.
    pub signer: String,
    /// By the sealing host's clock.
    pub sealed_at: Timestamp,
    /// Digest of the seal that this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<Digest>,
    /// Other files by BLAKE3: `shipment.json` and the key envelopes.
    #[serde(deserialize_with = "each_once")]
    pub pins: BTreeMap<String, Digest>,
    /// The manifest.
    pub manifest: ManifestPin,
    /// Every pack.
    pub packs: Vec<SealedPack>,
    /// Every disk.
    pub disks: Vec<SealedDisk>,
    /// Planned but not copied.
    pub excluded: Vec<ExcludedDisk>,
    /// Program and version.
    pub tool: String,
}

impl Document for Seal {
    const OBJECT: &'static str = "seal.json";
    const MAX_BYTES: u64 = MAX_SEAL_BYTES;
    fn format(&self) -> u32 {
        self.format
    }
    fn validate(&self) -> Result<()> {
        check_name("Site name", &self.site.name)?;
        check_text("Signer", &self.signer, 300)?;
        check_text("Tool", &self.tool, 100)?;
        let encrypted = match self.manifest.file.as_str() {
            "manifest.db" => false,
            "manifest.db.age" => true,
            other => {
                return Err(FormatError::damaged("Manifest in seal.json", "manifest.db or manifest.db.age", other));
            }
        };
        let pin = &self.manifest;
        if !encrypted && (pin.bytes, pin.blake3, pin.sha256) != (pin.plain.bytes, pin.plain.blake3, pin.plain.sha256) {
            return Err(FormatError::damaged("Manifest in seal.json", "one digest, for nothing is encrypted", "two"));
        }
        if pin.bytes.max(pin.plain.bytes) > MAX_MANIFEST_BYTES {
            let found = format!("{} bytes, {} decrypted", pin.bytes, pin.plain.bytes);
            return Err(FormatError::damaged("Manifest in seal.json", "at most 1 TiB", found));
        }
        if self.pins.len() > MAX_ENVELOPES + 1 {
            let found = self.pins.len().to_string();
            return Err(FormatError::damaged("Pins in seal.json", format!("at most {}", MAX_ENVELOPES + 1), found));
        }
        if !self.pins.contains_key("shipment.json") {
            return Err(FormatError::damaged("Pins in seal.json", "shipment.json", "none"));
        }
        if let Some(file) = self.pins.keys().find(|file| *file != "shipment.json" && envelope_number(file).is_none()) {
            return Err(FormatError::damaged(
                "Pins in seal.json",
                "shipment.json and keys/NNNN.age",
                file.escape_default().to_string(),
            ));
        }
        self.validate_packs()?;
        self.validate_disks()?;
        for excluded in &self.excluded {
            check_name("Machine name", &excluded.machine)?;
            check_name("Disk name", &excluded.disk)?;
            check_text("Reason", &excluded.reason, 500)?;
        }
        Ok(())
    }
}

impl Seal {
    fn validate_packs(&self) -> Result<()> {
        if self.packs.len() > MAX_PACKS {
            return Err(FormatError::damaged(
                "Packs in seal.json",
                format!("at most {MAX_PACKS}"),
                self.packs.len().to_string(),
            ));
        }
        for pack in &self.packs {
            if pack_number(&pack.file).is_none() {
                return Err(FormatError::damaged(
                    "Pack in seal.json",
                    "packs/NNNNNNNN.pack",
                    pack.file.escape_default().to_string(),
                ));
            }
            if pack.bytes > MAX_PACK_BYTES
                || pack.bytes < 4096
                || pack.bytes % 4096 != 0
                || pack.records > pack.bytes / 4096
            {
                return Err(FormatError::damaged(
                    format!("Pack {} in seal.json", pack.file),
                    "a length of whole pages up to 8 GiB that holds its records",
                    format!("{} bytes, {} records", pack.bytes, pack.records),
                ));
            }
        }
        check_unique("Packs in seal.json", self.packs.iter().map(|p| &p.file))
    }

    fn validate_disks(&self) -> Result<()> {
        if self.disks.len() > MAX_DISKS || self.excluded.len() > MAX_DISKS {
            return Err(FormatError::damaged(
                "Disks in seal.json",
                format!("at most {MAX_DISKS}"),
                self.disks.len().to_string(),
            ));
        }
        for disk in &self.disks {
            check_name("Machine name", &disk.machine)?;
            check_name("Disk name", &disk.disk)?;
            let blocks = Geometry::new(disk.bytes, disk.block_bytes)?.blocks();
            let BlockCounts { stored, zero, unreadable } = disk.blocks;
            if stored.checked_add(zero).and_then(|n| n.checked_add(unreadable)) != Some(blocks) {
                return Err(FormatError::damaged(
                    format!("Disk {}/{} in seal.json", disk.machine, disk.disk),
                    format!("{blocks} blocks"),
                    format!("{stored} stored, {zero} zero, {unreadable} unreadable"),
                ));
            }
            if (disk.consistency == Consistency::Fuzzy) != (disk.basis == Basis::None) {
                return Err(FormatError::damaged(
                    format!("Disk {}/{} in seal.json", disk.machine, disk.disk),
                    "a basis exactly when consistent",
                    format!("{:?} on {:?}", disk.consistency, disk.basis),
                ));
            }
        }
        check_unique("Disk numbers in seal.json", self.disks.iter().map(|d| d.id))?;
        check_unique("Disk UUIDs in seal.json", self.disks.iter().map(|d| d.uuid))?;
        check_unique("Disk names in seal.json", self.disks.iter().map(|d| format!("{}/{}", d.machine, d.disk)))
    }
}

/// A map whose keys are not repeated; by itself serde lets the last one win, and other readers the first.
fn each_once<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Digest>, D::Error> {
    struct Pins;
    impl<'de> Visitor<'de> for Pins {
        type Value = BTreeMap<String, Digest>;
        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("files with their digests, each once")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut pins = BTreeMap::new();
            while let Some((file, digest)) = access.next_entry::<String, Digest>()? {
                if pins.insert(file, digest).is_some() {
                    return Err(A::Error::custom("duplicate field in pins"));
                }
            }
            Ok(pins)
        }
    }
    deserializer.deserialize_map(Pins)
}

/// The number in `packs/NNNNNNNN.pack`; `None` for any other name.
pub fn pack_number(file: &str) -> Option<u32> {
    let number: u32 = file.strip_prefix("packs/")?.strip_suffix(".pack")?.parse().ok()?;
    (file == format!("packs/{}", pack_file_name(number))).then_some(number)
}

/// The name of writing process `process`'s envelope, relative to `motiongear/`.
pub fn envelope_file(process: u32) -> String {
    format!("keys/{process:04}.age")
}

/// The number in `keys/NNNN.age`; `None` for any other name.
pub fn envelope_number(file: &str) -> Option<u32> {
    let number: u32 = file.strip_prefix("keys/")?.strip_suffix(".age")?.parse().ok()?;
    (file == envelope_file(number)).then_some(number)
}
