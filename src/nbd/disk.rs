//! An export as a disk to read.

use super::holes::Holes;
use super::queue::NbdQueue;
use super::wire::Command;
use super::{ALLOCATION, Connection, Export, SESSIONS, Server, Style, Uri, connect, with_more};
use crate::error::{Error, IoContext, Result};
use crate::io::{BlockIo, Engine, Probe, Readable};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a server may think about one question on holes.
const LIMIT: Duration = Duration::from_secs(120);

/// An export that was found, and its size.
pub struct NbdDisk {
    uri: Uri,
    export: Export,
    holes: Mutex<Asker>,
    /// Its server, where it is one of our own.
    _server: Option<Server>,
}

/// Who asks for holes.
struct Asker {
    /// `None` until it is wanted: servers count their clients.
    session: Option<Connection>,
    holes: Holes,
}

impl NbdDisk {
    /// Looks for the export.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn open(uri: &Uri) -> Result<NbdDisk> {
        let session = connect(uri, &[ALLOCATION.to_owned()], Style::Extended)?;
        let export = session.export().clone();
        let holes = Mutex::new(Asker { session: Some(session), holes: Holes::default() });
        Ok(NbdDisk { uri: uri.clone(), export, holes, _server: None })
    }

    /// Looks for the export of a server of our own, which lives as long as the disk.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn served_by(server: Server, export: &str) -> Result<NbdDisk> {
        let disk = NbdDisk::open(&server.uri(export)).map_err(|error| server.quoted(error))?;
        Ok(NbdDisk { _server: Some(server), ..disk })
    }

    /// Ends the session that it was found by; another begins when holes are asked for.
    pub fn rest(&self) {
        self.holes().session = None;
    }

    /// What the server offers.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// A reader of a few bytes here and there.
    ///
    /// # Errors
    /// As [`connect`].
    pub fn probe(&self) -> Result<Probe> {
        Probe::new(Box::new(NbdQueue::new(vec![self.session()?], 1)), self.export.bytes)
    }

    /// A session that reads what the first one found. In simple style: where a disk cannot give all of a read, QEMU's server ends
    /// a session of structured replies, which may be half said by then, and answers a simple one with the error (seen with 10.0).
    fn session(&self) -> Result<Connection> {
        self.same_size(connect(&self.uri, &[], Style::Simple)?)
    }

    fn same_size(&self, session: Connection) -> Result<Connection> {
        let (expected, found) = (self.export.bytes, session.export().bytes);
        if found != expected {
            return Err(Error::failed(format!("NBD export {}: expected {expected} bytes, found {found}", self.uri))
                .next("a disk must keep its size while it is copied; export a snapshot of it"));
        }
        Ok(session)
    }

    fn holes(&self) -> MutexGuard<'_, Asker> {
        self.holes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readable for NbdDisk {
    fn bytes(&self) -> Result<u64> {
        Ok(self.export.bytes)
    }

    fn queue(self: Arc<Self>, _: Engine, depth: usize) -> Result<Box<dyn BlockIo>> {
        let sessions = with_more(&self.uri, self.session()?, &[], Style::Simple, SESSIONS.min(depth));
        Ok(Box::new(NbdQueue::new(sessions, depth)))
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let mut asker = self.holes();
        let Asker { session, holes } = &mut *asker;
        let session = match session {
            Some(session) => session,
            None => session.insert(self.same_size(connect(&self.uri, &[ALLOCATION.to_owned()], Style::Extended)?)?),
        };
        let export = session.export().clone();
        let ask = |at, len| {
            let answer = session.call(Command::BlockStatus, 0, at, len, LIMIT)?;
            Ok(answer.status.into_iter().next().unwrap_or_default())
        };
        holes
            .next_data(&export, offset, ask)
            .context(|| format!("NBD export {}: its holes from byte {offset} on", self.uri))
    }

    fn unit(&self) -> u64 {
        u64::from(self.export.sizes.minimum)
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn is_far(&self) -> bool {
        true
    }

    fn is_of_another_host(&self) -> bool {
        true
    }

    fn is_lost(&self, error: &io::Error) -> bool {
        super::is_lost(error)
    }
}

impl fmt::Debug for NbdDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NbdDisk({})", self.uri)
    }
}
