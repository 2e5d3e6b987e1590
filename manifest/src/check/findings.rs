//! What a check found: a list for people and machines, with how bad each thing is and of which kind.

use crate::error::FormatError;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// Most findings that are listed; more are only counted.
pub const MAX_LISTED: usize = 10_000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Something is wrong, but nothing is lost by it: a second copy served, for one.
    Warning,
    /// The array is not what its seal says, or is not trusted.
    Error,
}

/// Of which kind it is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Bytes differ from what they must be.
    Damaged,
    /// Signature, key, identity, site or format.
    Untrusted,
    /// A file that the seal lists is not there.
    Missing,
    /// A file that the seal does not list.
    Extra,
    /// What was not looked at, and why.
    NotChecked,
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Of which kind.
    pub class: Class,
    /// The file (relative to `motiongear/`) or thing that it is about.
    pub object: String,
    /// Expected and found.
    pub what: String,
    /// `MACHINE/DISK`, where it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// The block's index on that disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u64>,
    /// Byte offset within the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl Finding {
    /// About a file or thing as a whole.
    pub fn new(severity: Severity, class: Class, object: impl Into<String>, what: impl Into<String>) -> Self {
        Finding { severity, class, object: object.into(), what: what.into(), disk: None, block: None, offset: None }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "ERROR",
        };
        let class = match self.class {
            Class::Damaged => "damaged",
            Class::Untrusted => "untrusted",
            Class::Missing => "missing",
            Class::Extra => "extra",
            Class::NotChecked => "not checked",
        };
        write!(f, "{severity} ({class}) {}", self.object)?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        if let Some(disk) = &self.disk {
            write!(f, ", disk {disk}")?;
        }
        if let Some(block) = self.block {
            write!(f, ", block {block}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// All of them, bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The first [`MAX_LISTED`], in the order they were found.
    pub list: Vec<Finding>,
    /// Errors of class damaged.
    pub damaged: u64,
    /// Errors of class untrusted.
    pub untrusted: u64,
    /// Errors of class missing.
    pub missing: u64,
    /// Errors of class extra.
    pub extra: u64,
    /// Warnings of any class.
    pub warnings: u64,
}

impl Findings {
    /// Adds one.
    pub fn push(&mut self, finding: Finding) {
        match (finding.severity, finding.class) {
            (Severity::Error, Class::Damaged) => self.damaged += 1,
            (Severity::Error, Class::Untrusted) => self.untrusted += 1,
            (Severity::Error, Class::Missing) => self.missing += 1,
            (Severity::Error, Class::Extra) => self.extra += 1,
            (Severity::Warning, _) => self.warnings += 1,
            _ => {}
        }
        if self.list.len() < MAX_LISTED {
            self.list.push(finding);
        }
    }
    /// Adds an error.
    pub fn error(&mut self, class: Class, object: impl Into<String>, what: impl Into<String>) {
        self.push(Finding::new(Severity::Error, class, object, what));
    }
    /// Adds a warning.
    pub fn warn(&mut self, class: Class, object: impl Into<String>, what: impl Into<String>) {
        self.push(Finding::new(Severity::Warning, class, object, what));
    }
    /// Adds a note.
    pub fn note(&mut self, object: impl Into<String>, what: impl Into<String>) {
        self.push(Finding::new(Severity::Note, Class::NotChecked, object, what));
    }
    /// Adds an error of the crate, about `object`.
    pub fn fault(&mut self, object: impl Into<String>, error: &FormatError) {
        self.error(class_of(error), object, error.to_string());
    }
    /// Adds all of another list.
    pub fn append(&mut self, other: Findings) {
        let unlisted = (other.damaged, other.untrusted, other.missing, other.extra, other.warnings);
        let room = MAX_LISTED.saturating_sub(self.list.len());
        self.list.extend(other.list.into_iter().take(room));
        self.damaged += unlisted.0;
        self.untrusted += unlisted.1;
        self.missing += unlisted.2;
        self.extra += unlisted.3;
        self.warnings += unlisted.4;
    }
    /// The blocks that are named, each with its object and its disk: what was found there need not be told twice. In the same
    /// object only: a header in the wrong place names a block that may be damaged elsewhere.
    pub fn named_blocks(&self) -> BTreeSet<(String, String, u64)> {
        let name = |finding: &Finding| Some((finding.object.clone(), finding.disk.clone()?, finding.block?));
        self.list.iter().filter_map(name).collect()
    }
    /// How many errors there are.
    pub fn errors(&self) -> u64 {
        self.damaged + self.untrusted + self.missing + self.extra
    }
    /// design.md, section 7: 4 untrusted, 3 damaged, missing or extra, 0 otherwise.
    pub fn exit_code(&self) -> u8 {
        match (self.untrusted, self.errors()) {
            (1.., _) => 4,
            (0, 1..) => 3,
            (0, 0) => 0,
        }
    }
    /// The first error, for whoever stops there.
    pub fn first_error(&self) -> Option<&Finding> {
        self.list.iter().find(|finding| finding.severity == Severity::Error)
    }
}

/// How an error of the crate counts.
pub fn class_of(error: &FormatError) -> Class {
    match error {
        FormatError::Untrusted { .. } | FormatError::Unsupported { .. } => Class::Untrusted,
        FormatError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Class::Missing,
        FormatError::Damaged { .. } | FormatError::Io { .. } | FormatError::Sql { .. } => Class::Damaged,
    }
}
