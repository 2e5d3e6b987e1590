//! What an erased array keeps: `erased.json` (FORMAT.md, section 8), by which it is known that nothing is lost there.

use super::Array;
use crate::error::{Error, Result};
use jiff::Timestamp;
use motiongear_manifest::documents::MAX_DOCUMENT_BYTES;
use motiongear_manifest::tree::Digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Its file.
pub const FILE: &str = "erased.json";

/// The note. Nothing is trusted by it: whoever can write to the array can write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedNote {
    /// Format version.
    pub format: u32,
    /// What was on it.
    pub shipment: Uuid,
    /// On the sticker.
    pub asset_tag: String,
    /// When.
    pub erased_at: Timestamp,
    /// BLAKE3 of the certificate.
    pub certificate: Digest,
    /// Program and version.
    pub tool: String,
}

impl Array {
    /// The note, on an array that holds no shipment any more; `None` also where it cannot be understood.
    pub fn erased(&self) -> Option<ErasedNote> {
        if self.has("shipment.json").unwrap_or(true) {
            return None;
        }
        let bytes = self.tree().ok()?.read(FILE, MAX_DOCUMENT_BYTES).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Why there is no sealed shipment to open, if the note says so.
    pub fn was_erased(&self) -> Option<Error> {
        let ErasedNote { shipment, erased_at, .. } = self.erased()?;
        let root = self.root().display();
        let refused = Error::untrusted(format!(
            "Array {root}: expected a sealed shipment, found a note that its content was erased at {erased_at}"
        ));
        Some(refused.next(format!(
            "what is known of it stands in the certificate of erasure and at the data centre: motiongear report import --shipment {shipment}"
        )))
    }

    /// Why nothing can be copied to an array that `note` lies on.
    pub(super) fn not_prepared(&self, note: &ErasedNote) -> Error {
        let (root, erased_at) = (self.root().display(), note.erased_at);
        Error::failed(format!(
            "Array {root}: expected a shipment, found a note that its content was erased at {erased_at}"
        ))
        .next("prepare it for a new one: motiongear init ARRAY --site NAME --recipient AGE")
    }

    /// Leaves the note, durably.
    ///
    /// # Errors
    /// The array cannot be written.
    pub fn set_erased(&self, note: &ErasedNote) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(note).map_err(|e| Error::failed(FILE).because(e))?;
        self.tree()?.write(FILE, &bytes)
    }
}
