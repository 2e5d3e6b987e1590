//! Volumes behind an NBD server.

use super::Volume;
use crate::copy::patience::{Medium, Patient};
use crate::error::{Error, IoContext, Result};
use crate::io::{Engine, Pool, Waited};
use crate::nbd::wire::Command;
use crate::nbd::{Holes, Sessions, Uri, is_lost};
use crate::source::{Identity, SourceKind, SysRoot};
use motiongear_manifest::geometry::PAGE_BYTES;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Behind a socket, and often a network behind it, every request takes its time, and others may be worked on meanwhile.
const FAR_DEPTH: usize = 16;
/// Zeroes are asked for in steps: one that a server writes out must not take minutes.
const ZERO_STEP_BYTES: u64 = 64 << 20;
/// Zeroes are written in steps where the server knows no zeroing.
const WRITTEN_ZEROES_BYTES: u64 = 1 << 20;
/// How long a server may think where nobody can stop the waiting.
const LIMIT: Duration = Duration::from_secs(120);
/// Where somebody can: as long as it takes.
const PATIENT: Duration = Duration::from_secs(30 * 24 * 3600);

/// An opened export.
pub struct NbdVolume {
    uri: Uri,
    /// How messages call it.
    name: String,
    sessions: Arc<Sessions>,
    /// What is known of its holes, and since which change.
    holes: Arc<Mutex<(u64, Holes)>>,
    /// Whether it answers, where a job wants to know.
    medium: Option<Medium>,
}

impl NbdVolume {
    /// Connects to an export for writing.
    ///
    /// # Errors
    /// Nobody answers; an export that is read-only, cannot be flushed, or takes no pages of 4 KiB.
    pub fn open(uri: &Uri) -> Result<NbdVolume> {
        let sessions = Sessions::open(uri)?;
        let export = sessions.export();
        let refuse = |expected: &str, found: String, next: &str| {
            Err(Error::failed(format!("Volume {uri}: expected {expected}, found {found}")).next(next))
        };
        if export.flags.read_only() {
            return refuse("an export to write to", "a read-only one".into(), "let the server export it writable");
        }
        if !export.flags.flush() {
            let next = "nothing that is written there could be called durable: use another server, or let it flush";
            return refuse("a server that can flush", "one that cannot".into(), next);
        }
        if export.sizes.minimum > PAGE_BYTES {
            let found = format!("blocks of {} bytes", export.sizes.minimum);
            return refuse(&format!("blocks of {PAGE_BYTES} bytes at most"), found, "export it with smaller blocks");
        }
        Ok(NbdVolume { uri: uri.clone(), name: uri.to_string(), sessions, holes: Arc::default(), medium: None })
    }

    /// Called `name` from now on: the export is only the way to it.
    pub fn called(mut self, name: String) -> NbdVolume {
        self.name = name;
        self
    }

    /// Its silence is shown, and ends with the job.
    pub fn watched(mut self, medium: Medium) -> NbdVolume {
        self.medium = Some(medium);
        self
    }

    /// Asks the server for something that may take as long as it likes.
    fn ask<T: Send + 'static>(
        &self,
        what: &str,
        ask: impl FnOnce(&Arc<Sessions>, Duration) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sessions, what) = (self.sessions.clone(), format!("Volume {}: {what}", self.name));
        match &self.medium {
            Some(medium) => medium.call(move || ask(&sessions, PATIENT).context(|| what.clone())),
            None => ask(&sessions, LIMIT).context(|| what.clone()),
        }
    }

    fn queue(&self, depth: usize) -> Patient {
        Patient::new(self.sessions.queue(depth), self.medium.clone())
    }
}

impl Volume for NbdVolume {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bytes(&self) -> u64 {
        self.sessions.export().bytes
    }

    fn identity(&self, _: &SysRoot) -> Result<Identity> {
        Ok(Identity::of_export(SourceKind::Nbd, self.uri.canonical(), self.bytes(), None))
    }

    fn depth(&self) -> usize {
        FAR_DEPTH
    }

    fn writer(&self, _: Engine, depth: usize) -> Result<Patient> {
        Ok(self.queue(depth))
    }

    fn reader(&self, _: Engine, depth: usize) -> Result<Patient> {
        // A session of its own would be answered from the same place; and many servers let one client in at a time.
        Ok(self.queue(depth))
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        let export = self.sessions.export();
        let unit = u64::from(export.sizes.minimum.max(1));
        // The rest of a block that is begun before `offset` was written with it.
        let (start, end) = (offset.next_multiple_of(unit), (offset + bytes).next_multiple_of(unit).min(export.bytes));
        let knows = export.flags.write_zeroes();
        let zero = move |sessions: &Arc<Sessions>, limit: Duration| {
            let longest = sessions.export().sizes.longest();
            let mut knows = knows;
            let mut at = start;
            while at < end {
                let step = if knows { ZERO_STEP_BYTES.min(longest) } else { WRITTEN_ZEROES_BYTES };
                let bytes = step.min(end - at);
                if knows {
                    match sessions.call(Command::WriteZeroes, at, bytes, limit) {
                        Ok(_) => at += bytes,
                        Err(error) if is_lost(&error) => return Err(error),
                        // It says that it can, and cannot here: whether zeros can be written shows when they are.
                        Err(_) => knows = false,
                    }
                } else {
                    write_zeroes_out(sessions, at, bytes, limit)?;
                    at += bytes;
                }
            }
            Ok(())
        };
        self.ask(&format!("{bytes} bytes of zeros at byte {offset}"), zero)
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let holes = self.holes.clone();
        self.ask(&format!("its holes from byte {offset} on"), move |sessions, limit| {
            let mut holes = holes.lock().unwrap_or_else(PoisonError::into_inner);
            let ((since, holes), changes) = (&mut *holes, sessions.changes());
            if *since != changes {
                holes.forget();
                *since = changes;
            }
            holes.next_data(sessions.export(), offset, |at, bytes| {
                let answer = sessions.call(Command::BlockStatus, at, bytes, limit)?;
                Ok(answer.status.into_iter().next().unwrap_or_default())
            })
        })
    }

    fn flush(&self) -> Result<()> {
        self.ask("flush", |sessions, limit| sessions.call(Command::Flush, 0, 0, limit).map(drop))
    }

    fn through_cache(&self) -> bool {
        // Nothing in the protocol tells where a server's answers come from.
        true
    }

    fn is_lost(&self) -> bool {
        self.sessions.are_over()
    }
}

/// For a server that knows no `NBD_CMD_WRITE_ZEROES`.
fn write_zeroes_out(sessions: &Arc<Sessions>, offset: u64, bytes: u64, limit: Duration) -> io::Result<()> {
    let pool = Pool::new(WRITTEN_ZEROES_BYTES as usize, 1).map_err(io::Error::other)?;
    let mut buffer = pool.take();
    buffer.set_len(bytes as usize);
    buffer.fill(0);
    let mut queue = sessions.queue(1);
    queue.write(0, offset, buffer);
    match queue.wait_for(limit) {
        Waited::Done(completion) => completion.result,
        Waited::Late | Waited::Idle => Err(io::Error::new(io::ErrorKind::TimedOut, "the NBD server does not answer")),
    }
}
