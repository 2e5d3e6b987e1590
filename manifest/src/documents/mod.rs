//! The small JSON documents on an array: strict, bounded, validated before anyone acts on them.

pub mod custody;
pub mod holder;
pub mod seal;
pub mod shipment;

use crate::error::{FormatError, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest `seal.json`, bytes; it lists every pack.
pub const MAX_SEAL_BYTES: u64 = 16 << 20;
/// Largest of the other documents, bytes.
pub const MAX_DOCUMENT_BYTES: u64 = 1 << 20;

/// A document with a format version and rules of its own.
pub trait Document: DeserializeOwned + Serialize {
    /// How messages name it.
    const OBJECT: &'static str;
    /// Largest accepted length, bytes.
    const MAX_BYTES: u64 = MAX_DOCUMENT_BYTES;
    /// The format version that it states.
    fn format(&self) -> u32;
    /// Rules that types alone do not express: names, ranges, uniqueness.
    ///
    /// # Errors
    /// The first rule that is broken.
    fn validate(&self) -> Result<()>;

    /// Reads a document: unknown or repeated fields, other types and other format versions are refused.
    ///
    /// # Errors
    /// Says what is wrong and, for JSON, in which line and column.
    fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > Self::MAX_BYTES {
            return Err(FormatError::damaged(
                Self::OBJECT,
                format!("at most {} bytes", Self::MAX_BYTES),
                format!("{} bytes", bytes.len()),
            ));
        }
        // The version first: a later format may have other fields, and "unknown field" would be the wrong message.
        #[derive(serde::Deserialize)]
        struct Version {
            format: u32,
        }
        if let Ok(Version { format }) = serde_json::from_slice::<Version>(bytes)
            && format != crate::FORMAT
        {
            return Err(FormatError::unsupported(
                Self::OBJECT,
                format!("format {format}"),
                format!("format {}", crate::FORMAT),
            ));
        }
        let document: Self = serde_json::from_slice(bytes)
            .map_err(|e| FormatError::damaged(Self::OBJECT, "the JSON of FORMAT.md", e.to_string()))?;
        document.validate()?;
        Ok(document)
    }

    /// The bytes that are written, hashed and signed: indented JSON and a final newline.
    ///
    /// # Errors
    /// The document breaks its own rules.
    fn to_bytes(&self) -> Result<Vec<u8>> {
        self.validate()?;
        let mut bytes =
            serde_json::to_vec_pretty(self).map_err(|e| FormatError::damaged(Self::OBJECT, "JSON", e.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Refuses two equal entries of a list.
pub(crate) fn check_unique<T: Ord + std::fmt::Display>(object: &str, items: impl IntoIterator<Item = T>) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for item in items {
        if seen.contains(&item) {
            return Err(FormatError::damaged(object, "each only once", format!("{item} twice")));
        }
        seen.insert(item);
    }
    Ok(())
}
