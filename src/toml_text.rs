//! Files that people write in TOML: read with a bound, strictly, and every complaint names its line.

use crate::error::{Error, IoContext, Result};
use crate::units;
use serde::de::DeserializeOwned;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;

/// Longest file read.
pub const LIMIT_BYTES: u64 = units::MIB;

/// Reads the text of a plan of at most 1 MiB.
///
/// # Errors
/// Unreadable, or not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    use std::io::Read;
    let file = std::fs::File::open(path).context(|| format!("Plan {}", path.display()))?;
    let mut text = Vec::new();
    file.take(LIMIT_BYTES + 1).read_to_end(&mut text).context(|| format!("Plan {}", path.display()))?;
    String::from_utf8(text).map_err(|error| {
        Error::usage(format!(
            "Plan {}: expected UTF-8 text, found another encoding at byte {}",
            path.display(),
            error.utf8_error().valid_up_to()
        ))
    })
}

/// Puts the file's name in front of what is wrong with it.
pub fn named(path: &Path) -> impl FnOnce(Error) -> Error + '_ {
    |mut error| {
        error.message = format!("Plan {}: {}", path.display(), error.message);
        error
    }
}

/// What the text says, and where its lines are; `next` tells where to learn what may stand in it.
///
/// # Errors
/// Too long, not TOML, or with keys that nobody knows.
pub fn parse<T: DeserializeOwned>(text: &str, next: &str) -> Result<(T, Lines)> {
    if text.len() as u64 > LIMIT_BYTES {
        return Err(Error::usage(format!("Expected a plan of at most 1 MiB, found {} bytes", text.len())));
    }
    let lines = Lines::of(text);
    let raw = toml::from_str(text).map_err(|error| {
        let place = error.span().map_or_else(String::new, |span| format!("Line {}: ", lines.line(&span)));
        Error::usage(format!("{place}{}", error.message().replace('\n', " "))).next(next)
    })?;
    Ok((raw, lines))
}

/// Where the lines of a text end: counted once, as a plan of 1 MiB can name 28,000 disks, each with its line.
pub struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        Lines(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line that a span begins in, from 1.
    fn line(&self, span: &Range<usize>) -> usize {
        self.0.partition_point(|end| *end < span.start) + 1
    }

    /// In front of what is wrong with `value`.
    pub fn at<T>(&self, value: &Spanned<T>) -> String {
        format!("Line {}: ", self.line(&value.span()))
    }

    /// What is wrong with `value`, which stands for `field`.
    pub fn wrong<T>(&self, value: &Spanned<T>, field: &str, expected: &str, found: impl std::fmt::Display) -> Error {
        Error::usage(format!("{}{field}: expected {expected}, found {found}", self.at(value)))
    }
}
