//! What can be wrong with something that came from an array.

use std::path::PathBuf;

/// Shorthand used throughout the crate.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// Why an artefact was refused.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Bytes are not what the format, a checksum or a digest says they are.
    #[error("{object}: expected {expected}, found {found}")]
    Damaged {
        /// Which artefact, and where in it.
        object: String,
        /// What the format or the signed statement says.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Well-formed, but nobody who may say so said it: signature, key, identity, shipment.
    #[error("{object}: {reason}")]
    Untrusted {
        /// Which artefact.
        object: String,
        /// Why it is not trusted.
        reason: String,
    },
    /// A format version, suite or codec that this reader does not know.
    #[error("{object}: {found} is not supported; this reader knows {known}")]
    Unsupported {
        /// Which artefact.
        object: String,
        /// What it asks for.
        found: String,
        /// What would have been understood.
        known: String,
    },
    /// The operating system said no.
    #[error("File {path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// SQLite said no.
    #[error("{object}: {source}")]
    Sql {
        /// Which database.
        object: String,
        /// SQLite's own words.
        source: rusqlite::Error,
    },
}

impl FormatError {
    /// Bytes differ from what they must be.
    pub fn damaged(object: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), expected: expected.into(), found: found.into() }
    }
    /// Not trusted, with the reason.
    pub fn untrusted(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Untrusted { object: object.into(), reason: reason.into() }
    }
    /// Unknown version, suite or codec.
    pub fn unsupported(object: impl Into<String>, found: impl Into<String>, known: impl Into<String>) -> Self {
        Self::Unsupported { object: object.into(), found: found.into(), known: known.into() }
    }
    /// A system error on `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}
