//! Disks of this host as exports, read as `seed` would read them.

use super::recheck::{Looked, Recheck};
use crate::context::Context;
use crate::copy::handles::Handles;
use crate::copy::patience::{Medium, Patient};
use crate::copy::throttle::Throttle;
use crate::error::{Error, Kind, Result};
use crate::inspect::HostInventory;
use crate::io::{Completion, Engine, Pool, Readable};
use crate::monitor::Progress;
use crate::nbd::serve::{Absent, Export, Unread};
use crate::nbd::wire::Extent;
use crate::source::served::Told;
use crate::source::{Identity, Origin, Source, SysRoot};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Read to see whether a disk answers, at least.
const LOOK_BYTES: u64 = 4096;
/// Read at once.
const PIECE_BYTES: usize = 1 << 20;
/// Reads under way on one disk, whoever wants them: as many as a seed has.
const READERS: usize = crate::copy::read::READ_DEPTH;
/// Faults of a disk that are said.
const MAX_SAID: usize = 100;

/// One disk.
pub struct SourceExport {
    name: String,
    slot: usize,
    origin: Origin,
    sys: SysRoot,
    identity: Identity,
    bytes: u64,
    /// What it is read from now: opened anew where the way to it was lost.
    disk: Mutex<Arc<dyn Readable>>,
    readers: Handles<Reader>,
    engine: Engine,
    medium: Medium,
    throttle: Arc<Throttle>,
    progress: Arc<Progress>,
    said: AtomicUsize,
    recheck: Arc<Recheck>,
}

struct Reader {
    queue: Patient,
    pool: Pool,
}

/// Reads a little past every cache: what its identity is told by may lie in this host's memory long after the disk fell silent. That it
/// answers is enough, whatever it says.
fn answers(disk: Arc<dyn Readable>) -> Result<()> {
    let len = disk.unit().clamp(LOOK_BYTES, PIECE_BYTES as u64);
    if disk.bytes()? < len {
        return Ok(());
    }
    let pool = Pool::new(len as usize, 1)?;
    let mut queue = disk.queue(Engine::Auto, 1)?;
    queue.read(0, 0, pool.take(), len as usize);
    let _ = queue.wait();
    Ok(())
}

/// What is told of the disk `source`.
pub fn told(context: &Context, source: &Source, inventory: &HostInventory) -> Result<Told> {
    let failed = |error| Error::failed("Inventory of this host").because(error);
    let mut identity = source.identity.clone();
    // A disk that is of another machine already keeps it.
    if identity.machine.is_none() {
        // A machine that was cloned from a template may have the template's id, but not its firmware's UUID.
        let ids: Vec<&str> =
            [&inventory.product_uuid, &inventory.machine_id].into_iter().flatten().map(String::as_str).collect();
        let known = (!ids.is_empty()).then(|| ids.join("/"));
        let named = known.or_else(|| inventory.hostname.clone());
        identity.machine = Some(named.ok_or_else(|| {
            Error::failed(format!(
                "State directory {}: this host has neither an id nor a name",
                context.ledger.state().display()
            ))
            .next("give it a host name: hostname NAME")
        })?);
    }
    let host = match &source.host {
        // Of one that is served on.
        Some(theirs) => theirs.clone(),
        None => serde_json::to_value(inventory).map_err(failed)?,
    };
    Ok(Told { identity, facts: source.facts.clone(), host, stillness: None })
}

impl SourceExport {
    /// Offers `source`; `slot` is its place among the counters.
    pub fn new(
        name: &str,
        slot: usize,
        source: Source,
        engine: Engine,
        medium: Medium,
        throttle: Arc<Throttle>,
        progress: Arc<Progress>,
    ) -> SourceExport {
        SourceExport {
            recheck: Recheck::new(name, throttle.clone()),
            name: name.to_owned(),
            slot,
            origin: source.origin.clone(),
            sys: source.sys().clone(),
            identity: source.identity.clone(),
            bytes: source.bytes,
            disk: Mutex::new(source.disk),
            readers: Handles::new(READERS),
            engine,
            medium,
            throttle,
            progress,
            said: AtomicUsize::new(0),
        }
    }

    /// That it is still the same disk, for somebody who is about to read it.
    ///
    /// # Errors
    /// It is gone, another one, or does not answer. People have been told.
    pub fn recheck(&self) -> Result<(), Absent> {
        let (origin, sys, identity) = (self.origin.clone(), self.sys.clone(), self.identity.clone());
        let look = move || answers(Source::open_same(&origin, &sys, &identity)?);
        match self.recheck.look(look) {
            Looked::At(Ok(())) => Ok(()),
            Looked::At(Err(error)) => {
                self.throttle.note(error.to_string());
                Err(Absent::Unknown(error.message))
            }
            Looked::Mute(why) => Err(Absent::Mute(why)),
        }
    }

    fn disk(&self) -> Arc<dyn Readable> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn reader(&self) -> Result<Reader> {
        let queue = self.disk().queue(self.engine, 1)?;
        Ok(Reader { queue: Patient::new(queue, Some(self.medium.clone())), pool: Pool::new(PIECE_BYTES, 1)? })
    }

    /// Reads `len` bytes at `at` and hands them to `take`; the system's error where the disk has one.
    fn piece(&self, at: u64, len: usize, mut take: impl FnMut(&[u8])) -> Result<std::io::Result<()>> {
        self.throttle.admit(len as u64)?;
        let read = |reader: &mut Reader| {
            let Some(buffer) = reader.pool.try_take() else {
                return (Err(Error::failed(format!("Disk {}: a read never came back", self.name))), false);
            };
            reader.queue.read(0, at, buffer, len);
            match reader.queue.wait() {
                Ok(Some(Completion { buffer: Some(buffer), result: Ok(()), elapsed, .. })) => {
                    self.throttle.observe_read(self.slot, elapsed);
                    take(&buffer[..len]);
                    (Ok(Ok(())), true)
                }
                // What is read next is read by one that is opened anew.
                Ok(Some(Completion { result: Err(error), .. })) => (Ok(Err(error)), false),
                Ok(_) => (Err(Error::failed(format!("Disk {}: a read was lost", self.name))), false),
                Err(error) => (Err(error), false),
            }
        };
        let result = self.readers.with(|| self.reader(), || self.throttle.check(), read)??;
        self.progress.disks[self.slot].read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(result)
    }

    /// The way to the disk was lost: opens it anew, if it is the same one.
    fn again(&self) -> Result<()> {
        let (origin, sys, identity) = (self.origin.clone(), self.sys.clone(), self.identity.clone());
        let disk = self.medium.call(move || Source::open_same(&origin, &sys, &identity))?;
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = disk;
        // Those that wait for work would find the old way lost once more.
        self.readers.forget();
        Ok(())
    }

    fn read_piece(&self, at: u64, len: usize, mut take: impl FnMut(&[u8])) -> Result<()> {
        let failed = |error| Error::io(format!("Disk {} at byte {at}: cannot be read", self.name), error);
        match self.piece(at, len, &mut take) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if self.disk().is_lost(&error) => {
                self.again()?;
                self.piece(at, len, &mut take)?.map_err(failed)
            }
            Ok(Err(error)) => Err(failed(error)),
            Err(error) if error.io_cause().is_some_and(|cause| self.disk().is_lost(cause)) => {
                self.again()?;
                self.piece(at, len, &mut take)?.map_err(failed)
            }
            Err(error) => Err(error),
        }
    }

    fn say(&self, error: &Error) {
        if error.kind != Kind::Interrupted && self.said.fetch_add(1, Ordering::Relaxed) < MAX_SAID {
            self.throttle.note(error.to_string());
        }
    }
}

impl Export for SourceExport {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        // As the disk wants it; what is read too much is dropped.
        let unit = self.disk().unit().clamp(1, PIECE_BYTES as u64);
        let end = offset + into.len() as u64;
        let mut at = offset - offset % unit;
        while at < end {
            let to = (at + PIECE_BYTES as u64).min(end.next_multiple_of(unit)).min(self.bytes);
            let take = |bytes: &[u8]| {
                let (from, until) = (at.max(offset), to.min(end));
                let wanted = &bytes[(from - at) as usize..(until - at) as usize];
                into[(from - offset) as usize..(until - offset) as usize].copy_from_slice(wanted);
            };
            if let Err(error) = self.read_piece(at, (to - at) as usize, take) {
                self.say(&error);
                return Err(Unread::at(at.max(offset)));
            }
            at = to;
        }
        let counters = &self.progress.disks[self.slot];
        counters.done.fetch_add(into.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn extents(&self, offset: u64, bytes: u64, most: usize) -> Result<Vec<Extent>, Unread> {
        let (disk, end) = (self.disk(), offset + bytes);
        if disk.is_far() {
            // What it knew of its holes a while ago need not be so any more.
            return Ok(vec![Extent { bytes, status: 0 }]);
        }
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < most {
            let (from, to) = match disk.next_data(at) {
                Ok(Some((from, to))) => (from.clamp(at, end), to.min(end)),
                Ok(None) => (end, end),
                // What it does not know has to be read.
                Err(_) => (at, end),
            };
            if from > at {
                extents.push(Extent { bytes: from - at, status: Extent::HOLE | Extent::ZERO });
            }
            if to > from && extents.len() < most {
                extents.push(Extent { bytes: to - from, status: 0 });
            }
            // A disk that tells of nothing must not keep us for ever.
            at = to.max(from).max(at + 1);
        }
        Ok(extents)
    }
}
