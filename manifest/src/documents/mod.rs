//! The small JSON documents on an array: strict, bounded, validated before anyone acts on them.

pub mod custody;
pub mod holder;
pub mod seal;
pub mod shipment;

use crate::error::{FormatError, Result};
use crate::spelling;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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

    /// Reads a document: unknown, missing or repeated fields, other types and spellings, and other format versions are refused.
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
        let value = |e: serde_json::Error| FormatError::damaged(Self::OBJECT, "JSON", e.to_string());
        let (found, meant) =
            (serde_json::from_slice(bytes).map_err(value)?, serde_json::to_value(&document).map_err(value)?);
        check_same(Self::OBJECT, "", &found, &meant)?;
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
        if bytes.len() as u64 > Self::MAX_BYTES {
            // Nobody could read it again.
            let (most, found) = (format!("at most {} bytes", Self::MAX_BYTES), format!("{} bytes", bytes.len()));
            return Err(FormatError::damaged(Self::OBJECT, most, found));
        }
        Ok(bytes)
    }
}

/// Refuses a document that says in another way what it means. serde takes a list of values for an object, nothing for null, null
/// for nothing, and any spelling of a UUID or a time; another reader that goes by FORMAT.md does not, and one array must not be
/// good to one and bad to the other. Only a time may differ, in the zeros that end its fraction.
fn check_same(object: &str, field: &str, found: &Value, meant: &Value) -> Result<()> {
    let differ = |expected: &str, found: &str| Err(FormatError::damaged(format!("{object}{field}"), expected, found));
    match (found, meant) {
        (Value::Object(found), Value::Object(meant)) => {
            if let Some(name) = meant.keys().find(|name| !found.contains_key(*name)) {
                return differ(&format!("a field {name}"), "none");
            }
            found.iter().try_for_each(|(name, value)| match meant.get(name) {
                Some(meant) => check_same(object, &format!(", {name}"), value, meant),
                None => differ(&format!("a value of {name}, or no such field"), "null"),
            })
        }
        (Value::Array(found), Value::Array(meant)) if found.len() == meant.len() => {
            found.iter().zip(meant).try_for_each(|(found, meant)| check_same(object, field, found, meant))
        }
        (Value::String(found), Value::String(meant)) if found != meant => match spelling::time(found) {
            Some(time) if spelling::time(meant) == Some(time) => Ok(()),
            _ => differ(meant, &spelling::shown(found)),
        },
        (found, meant) if found == meant => Ok(()),
        _ => differ("a value of its type", "another"),
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
