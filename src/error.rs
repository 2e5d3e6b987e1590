//! The one error type of the engine. Every message says what was expected, what was found, where, and what to do next;
//! the kind maps to the exit code of `design.md` §7.

use std::fmt;

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of ending this is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something went wrong; exit 1.
    Failed,
    /// The command line or plan asks for something that makes no sense; exit 2.
    Usage,
    /// Finished, but blocks are unreadable, damaged or missing; exit 3.
    Incomplete,
    /// Refused for lack of trust: signature, key, identity, site, format; exit 4.
    Untrusted,
    /// Stopped before the end; the same command resumes; exit 5.
    Interrupted,
}

impl Kind {
    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Incomplete => 3,
            Kind::Untrusted => 4,
            Kind::Interrupted => 5,
        }
    }
}

/// An error with its place and the way out.
#[derive(Debug)]
pub struct Error {
    /// Decides the exit code.
    pub kind: Kind,
    /// What was expected and what was found; starts with a capital and names the object.
    pub message: String,
    /// What the person at the keyboard should do next, where there is something.
    pub next: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; prefer the named constructors.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), next: None, source: None }
    }
    /// Something went wrong (exit 1).
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }
    /// Wrong usage (exit 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }
    /// Refused for lack of trust (exit 4).
    pub fn untrusted(message: impl Into<String>) -> Self {
        Self::new(Kind::Untrusted, message)
    }
    /// Interrupted, resumable (exit 5).
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, message)
    }
    /// A failed system call or I/O operation on a named object.
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        Self::failed(message).because(source)
    }
    /// The same words, without the system's or the protocol's error behind them that would tell whoever waits to try again.
    pub fn without_cause(self) -> Self {
        let Error { kind, next, .. } = &self;
        let (kind, next) = (*kind, next.clone());
        let said = Error { next: None, ..self }.to_string();
        Error { kind, message: said, next, source: None }
    }
    /// Says what to do next.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
    /// The system's or the protocol's error behind it, where there is one.
    pub fn io_cause(&self) -> Option<&std::io::Error> {
        let mut cause = self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static));
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            cause = match error.downcast_ref::<Error>() {
                Some(error) => error.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static)),
                None => error.source(),
            };
        }
        None
    }
    /// Attaches the underlying error; it is printed after the message. Where nobody says what to do next and the cause does
    /// (a full file system, a read-only one, a medium that fails), that is said.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let mut source = source.into();
        // Said once, at the end, and not in the middle by the cause.
        let said = source.downcast_mut::<Error>().and_then(|cause| cause.next.take());
        self.next = self.next.or(said);
        self.next = self.next.or_else(|| way_out(&*source).map(str::to_owned));
        self.source = Some(source);
        self
    }
}

/// What to do about a cause that is the same wherever it strikes.
fn way_out(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    const FULL: &str = "its file system is full: make room there, then run the same command again";
    const READ_ONLY: &str =
        "its file system is read-only: find out why, mount it writable, then run the same command again";
    const FAILING: &str = "check the medium and its cable, mount it again, then run the same command again";
    use rusqlite::ErrorCode as Sql;
    let errno = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    let sql = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
    match (errno, sql) {
        (Some(libc::ENOSPC | libc::EDQUOT), _) | (_, Some(Sql::DiskFull)) => Some(FULL),
        (Some(libc::EROFS), _) | (_, Some(Sql::ReadOnly)) => Some(READ_ONLY),
        (Some(libc::EIO | libc::ENXIO | libc::ENODEV), _) => Some(FAILING),
        // SQLite keeps the errno to itself: without room for its WAL index it says no more than this either.
        (_, Some(Sql::SystemIoFailure)) => {
            Some("see whether its file system has room and its medium works, then run the same command again")
        }
        // SQLite says no more than this where there is no room for its journal.
        (_, Some(Sql::CannotOpen)) => Some("check that its file system is writable and has room, then run it again"),
        _ => error.source().and_then(way_out),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause: Option<&(dyn std::error::Error + 'static)> =
            self.source.as_ref().map(|s| &**s as &(dyn std::error::Error + 'static));
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        if let Some(next) = &self.next {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Adds the object's name to a bare `io::Error`.
pub trait IoContext<T> {
    /// `what` starts with a capital and names the object: "Pack 3 on /mnt/array".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::io(what(), source))
    }
}

impl<T> IoContext<T> for std::result::Result<T, rustix::io::Errno> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::io(what(), errno.into()))
    }
}

impl From<motiongear_manifest::FormatError> for Error {
    fn from(error: motiongear_manifest::FormatError) -> Self {
        let kind = match error {
            motiongear_manifest::FormatError::Untrusted { .. }
            | motiongear_manifest::FormatError::Unsupported { .. } => Kind::Untrusted,
            _ => Kind::Failed,
        };
        let next = way_out(&error).map(str::to_owned);
        Error { next, ..Error::new(kind, error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_next_is_said_once_whoever_knows_it() {
        let full = || Error::io("Directory /state/jobs", std::io::Error::from_raw_os_error(libc::ENOSPC));
        let wrapped = Error::failed("State directory /state").because(full());
        assert_eq!(wrapped.next, full().next);
        let said = wrapped.to_string();
        assert!(said.starts_with("State directory /state: Directory /state/jobs: No space left on device"), "{said}");
        assert_eq!(said.matches("next: ").count(), 1, "{said}");
        // Whoever wraps knows better.
        let told = Error::failed("State directory /state").next("name another").because(full()).to_string();
        assert!(told.ends_with("\n  next: name another") && told.matches("next: ").count() == 1, "{told}");
    }
}
