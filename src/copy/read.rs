//! Reading disks: every wanted block once, several in flight. Blocks are read in order; holes are not read, and come when a worker
//! has time for them. What the disk cannot give counts as zeros and is named.

use super::ahead::{Ahead, Hole};
use super::bitmap::Bitmap;
use super::credits::Credits;
use super::known::{Known, KnownRows};
use super::patience::{Medium, Patient};
use super::samples::{Picked, Seen};
use super::throttle::Throttle;
use crate::error::{Error, IoContext, Result};
use crate::io::{Buffer, Completion, Engine, Pool, Readable};
use crate::monitor::DiskProgress;
use crossbeam_channel::Sender;
use motiongear_manifest::catalogue::{BlockRow, UnreadableRange};
use motiongear_manifest::geometry::{Geometry, PAGE_BYTES};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Reads in flight per disk: a mebibyte each, enough for any disk; what is more only waits in the way of the business, and a virtual
/// disk gave 1.6 GB/s with sixteen where it gives 2.3 with four.
pub const READ_DEPTH: usize = 4;
/// First step when a block cannot be read whole; then page by page, or as the disk wants it.
const SALVAGE_BYTES: u64 = 64 << 10;
/// From one attempt to reach a lost disk to the next.
const AGAIN: Duration = Duration::from_secs(1);
/// A disk that is lost so often without one read in between is not lost: what is read makes its server fall.
const MOST_LOSSES: u32 = 5;

/// One disk to read.
pub struct DiskRead {
    /// Its place in the run's list of disks; goes along with every piece.
    pub index: usize,
    /// Its place among the job's counters and guarded disks.
    pub slot: usize,
    /// MACHINE/DISK, for messages.
    pub name: String,
    /// Opened read-only.
    pub disk: Arc<dyn Readable>,
    /// Its source.
    pub medium: Medium,
    /// Size and blocks.
    pub geometry: Geometry,
    /// Blocks not to read.
    pub skip: Option<Bitmap>,
    /// What to hand along with every block, for comparison.
    pub known: Option<Known>,
    /// Opens it anew, if it is still the same disk; when something looks odd, and at the end.
    pub reopen: Reopen,
    /// Of a disk that another machine may answer for: compares what is read by a queue with what was copied and read, before the
    /// first read and after every reconnect.
    pub verify: Option<Verify>,
}

/// Opens a disk anew, or says what it is now.
pub type Reopen = Arc<dyn Fn() -> Result<Arc<dyn Readable>> + Send + Sync>;

/// Reads some of the blocks that were copied, and those that were read in this run, by a queue on a disk, and refuses another disk.
pub type Verify = Arc<dyn Fn(&mut Patient, &Arc<dyn Readable>, &Picked) -> Result<()> + Send + Sync>;

/// Something read.
pub enum Piece {
    /// One block.
    Data {
        /// The disk's place in the job's lists.
        disk: usize,
        /// Index of the block.
        block: u64,
        /// Its bytes.
        buffer: Buffer,
        /// What could not be read of it; zero in `buffer`.
        unreadable: Vec<UnreadableRange>,
        /// Its known row.
        known: Option<BlockRow>,
    },
    /// Blocks that lie in a hole: zeros, without having been read.
    Zeros {
        /// The disk's place in the job's lists.
        disk: usize,
        /// First block.
        first: u64,
        /// Their known rows, one entry a block.
        known: Vec<Option<BlockRow>>,
    },
}

/// What all readers of a job share.
pub struct Reading<'a> {
    /// How bytes move.
    pub engine: Engine,
    /// Block buffers.
    pub pool: Pool,
    /// Reads in flight per disk.
    pub depth: usize,
    /// Bytes under way.
    pub credits: &'a Credits,
    /// Gentleness and stop.
    pub throttle: &'a Throttle,
    /// Counters by disk.
    pub progress: &'a [DiskProgress],
}

/// The receiving side is gone; it has said why.
struct Closed;

enum End {
    Closed,
    Failed(Error),
}
impl From<Error> for End {
    fn from(error: Error) -> Self {
        End::Failed(error)
    }
}
impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        End::Closed
    }
}

impl Reading<'_> {
    /// Reads `disk` from front to back into `out`; holes go there when the receivers have nothing to do, or at the end. Returns
    /// quietly when the receivers are gone.
    ///
    /// # Errors
    /// The disk vanished, changed its size or identity, or more than 1 % of it is unreadable; interrupted.
    pub fn read(&self, disk: &DiskRead, out: &Sender<Piece>) -> Result<()> {
        // Nothing to read; of a machine that runs there is then no snapshot either.
        if disk.skip.as_ref().is_some_and(|skip| skip.next_missing(0).is_none()) {
            return (disk.reopen)().map(drop);
        }
        let (source, queue) = match disk.disk.is_far() {
            // Since it was opened, another may have come to its place; a file or device stays what was opened.
            true => self.open_again(disk, &Picked::new())?,
            false => {
                let queue = disk.disk.clone().queue(self.engine, self.depth)?;
                (disk.disk.clone(), Patient::new(queue, Some(disk.medium.clone())))
            }
        };
        let mut reader = Reader {
            shared: self,
            disk,
            out,
            queue,
            ahead: Ahead::new(
                &disk.medium,
                disk.geometry,
                disk.skip.as_ref(),
                disk.known.as_ref().map(KnownRows::open).transpose()?,
            ),
            source,
            waiting: HashMap::new(),
            lost: Vec::new(),
            losses: 0,
            single: None,
            seen: Seen::default(),
            unreadable_bytes: 0,
        };
        match reader.run() {
            Ok(()) | Err(End::Closed) => Ok(()),
            Err(End::Failed(error)) => {
                // Other disks go on: what was under way goes home, and what it held with it.
                let Reader { queue, waiting, lost, .. } = reader;
                drop((queue, lost));
                let held = waiting.keys().map(|block| u64::from(disk.geometry.len(*block))).sum();
                self.credits.release(held);
                Err(error)
            }
        }
    }

    /// Opens a disk anew, as soon as that goes, with a queue on it.
    fn open_again(&self, disk: &DiskRead, seen: &Picked) -> Result<(Arc<dyn Readable>, Patient)> {
        for _ in 0..MOST_LOSSES {
            let (reopen, lost) = (disk.reopen.clone(), disk.disk.clone());
            let (engine, depth) = (self.engine, self.depth);
            let open = move || {
                let source = reopen()?;
                let queue = source.clone().queue(engine, depth)?;
                // Once more, now that the queue is bound to what it will read: had another come between, it is found here.
                reopen()?;
                Ok((source, queue))
            };
            let (source, queue) = disk.medium.call(move || {
                loop {
                    match open() {
                        Err(error) if is_lost(&lost, &error) => std::thread::sleep(AGAIN),
                        opened => return opened,
                    }
                }
            })?;
            let mut queue = Patient::new(queue, Some(disk.medium.clone()));
            // By this very queue: a name may lead to another machine with every connection.
            match disk.verify.as_ref().map_or(Ok(()), |verify| verify(&mut queue, &source, seen)) {
                Err(error) if is_lost(&source, &error) => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok((source, queue)),
            }
        }
        Err(lost_too_often(&disk.name, MOST_LOSSES))
    }
}

fn lost_too_often(name: &str, losses: u32) -> Error {
    Error::failed(format!("Disk {name}: its source was lost {losses} times in a row"))
        .next("see what its server says; fix it, then run the same command again: it resumes")
}

/// Whether `error` says that the way to `disk` is lost.
fn is_lost(disk: &Arc<dyn Readable>, error: &Error) -> bool {
    error.io_cause().is_some_and(|cause| disk.is_lost(cause))
}

/// What became of a block that was read piece by piece.
enum Salvage {
    /// All of it that can be had, and what cannot.
    Done(Buffer, Vec<UnreadableRange>),
    /// The way to the disk was lost meanwhile.
    Lost(Buffer),
}

struct Reader<'a> {
    shared: &'a Reading<'a>,
    disk: &'a DiskRead,
    out: &'a Sender<Piece>,
    queue: Patient,
    ahead: Ahead<'a>,
    /// Known rows of the blocks in flight.
    waiting: HashMap<u64, Option<BlockRow>>,
    /// What is read now; another than the one that was opened first, where that was lost.
    source: Arc<dyn Readable>,
    /// Blocks that were under way when it was lost.
    lost: Vec<(u64, Buffer)>,
    /// How often it was lost since the last read.
    losses: u32,
    /// By which the last bad block was read, of a disk that is compared: many may follow, and each comparison has its price.
    single: Option<(Patient, Arc<dyn Readable>)>,
    /// What was read of a disk that is compared.
    seen: Seen,
    unreadable_bytes: u64,
}

impl Reader<'_> {
    fn run(&mut self) -> Result<(), End> {
        loop {
            match self.ahead.look(&self.source) {
                Err(error) if is_lost(&self.source, &error) => {
                    self.recover()?;
                    continue;
                }
                looked => looked?,
            }
            if let Some((block, known)) = self.ahead.block() {
                self.request(block, known)?;
            } else if let Some(hole) = self.ahead.take_hole() {
                self.hole(hole)?;
            } else if self.ahead.ended() {
                break;
            }
        }
        while self.harvest_one()? {}
        let found = self.bytes()?;
        if found != self.disk.geometry.bytes() {
            return Err(self.resized(found).into());
        }
        (self.disk.reopen)()?;
        Ok(())
    }

    fn hole(&mut self, (first, known): Hole) -> Result<(), End> {
        self.shared.throttle.check()?;
        Ok(self.out.send(Piece::Zeros { disk: self.disk.index, first, known }).map_err(|_| Closed)?)
    }

    fn request(&mut self, block: u64, known: Option<BlockRow>) -> Result<(), End> {
        let (start, len) = (self.disk.geometry.offset(block), u64::from(self.disk.geometry.len(block)));
        self.shared.throttle.admit(len)?;
        while self.queue.in_flight() >= self.queue.depth() {
            self.harvest_one()?;
        }
        // Never wait for a buffer or for credit while finished reads of ours hold some: two readers could starve each other.
        while !self.shared.credits.try_acquire(len) {
            if self.harvest_one()? {
                continue;
            }
            if !self.shared.credits.acquire(len) {
                return Err(End::Closed);
            }
            break;
        }
        // From here on it holds credit.
        self.waiting.insert(block, known);
        let buffer = loop {
            match self.shared.pool.try_take() {
                Some(buffer) => break buffer,
                None if self.harvest_one()? => {}
                None => break self.shared.pool.take_while_open().ok_or(Closed)?,
            }
        };
        self.queue.read(block, start, buffer, len as usize);
        Ok(())
    }

    /// Takes one completion; false if there was none. Workers that may have to wait for it get a hole first.
    fn harvest_one(&mut self) -> Result<bool, End> {
        if self.out.is_empty()
            && let Some(hole) = self.ahead.take_hole()
        {
            self.hole(hole)?;
        }
        match self.queue.wait()? {
            Some(completion) => self.harvest(completion)?,
            None => return Ok(false),
        }
        if !self.lost.is_empty() {
            self.recover()?;
        }
        Ok(true)
    }

    /// The way to the disk is lost: opens it anew, as soon as that goes, and asks again for what was under way.
    fn recover(&mut self) -> Result<(), End> {
        while let Some(completion) = self.queue.wait()? {
            self.harvest(completion)?;
        }
        self.losses += 1;
        if self.losses > MOST_LOSSES {
            let block = self.lost.first().map_or(String::new(), |(block, _)| format!(", block {block}"));
            return Err(lost_too_often(&format!("{}{block}", self.disk.name), self.losses).into());
        }
        tracing::debug!(disk = self.disk.name, blocks = self.lost.len(), "lost; opening it anew");
        let (source, queue) = self.shared.open_again(self.disk, self.seen.picked())?;
        (self.source, self.queue) = (source, queue);
        for (block, buffer) in std::mem::take(&mut self.lost) {
            let geometry = self.disk.geometry;
            self.queue.read(block, geometry.offset(block), buffer, geometry.len(block) as usize);
        }
        Ok(())
    }

    fn harvest(&mut self, completion: Completion) -> Result<(), End> {
        let Completion { token: block, buffer, result, elapsed } = completion;
        let (buffer, result) = match (buffer, result) {
            (Some(buffer), Err(error)) if self.source.is_lost(&error) => {
                self.lost.push((block, buffer));
                return Ok(());
            }
            finished => finished,
        };
        if !self.source.is_of_another_host() {
            self.shared.throttle.observe_read(self.disk.slot, elapsed);
        }
        let (buffer, unreadable) = match (buffer, result) {
            (Some(buffer), Ok(())) => (buffer, Vec::new()),
            (None, Ok(())) => {
                return Err(Error::failed(format!("Disk {}: a read returned no data", self.disk.name)).into());
            }
            (buffer, Err(error)) => {
                let buffer = buffer.unwrap_or_else(|| self.shared.pool.take());
                match self.salvage(block, buffer, error)? {
                    Salvage::Done(buffer, ranges) => (buffer, ranges),
                    Salvage::Lost(buffer) => {
                        self.lost.push((block, buffer));
                        return Ok(());
                    }
                }
            }
        };
        self.losses = 0;
        if self.disk.verify.is_some() && unreadable.is_empty() {
            self.seen.note(block, self.disk.geometry.offset(block), &buffer);
        }
        let known = self.waiting.remove(&block).flatten();
        let len = self.disk.geometry.len(block);
        self.shared.progress[self.disk.slot].read.fetch_add(u64::from(len), Ordering::Relaxed);
        let piece = Piece::Data { disk: self.disk.index, block, buffer, unreadable, known };
        Ok(self.out.send(piece).map_err(|_| Closed)?)
    }

    /// The size of the disk now.
    fn bytes(&self) -> Result<u64> {
        let gone = |error| {
            Error::failed(format!("Disk {}: its source is gone", self.disk.name))
                .because(error)
                .next("check that the disk is still attached, then run the same command again: it resumes")
        };
        self.source.bytes().map_err(gone)
    }

    fn resized(&self, found: u64) -> Error {
        Error::failed(format!(
            "Disk {}: expected {} bytes, found {found}: it changed its size",
            self.disk.name,
            self.disk.geometry.bytes()
        ))
        .next("a disk must keep its size while it is copied; seed it again as a new disk name, or restore its size")
    }

    /// A queue to read a bad block by, of a disk that still is the same one.
    fn open_single(&mut self) -> Result<(Patient, Arc<dyn Readable>)> {
        let (reopen, kept) = (self.disk.reopen.clone(), self.single.take());
        let fresh = kept.is_none();
        let (queue, source) = self.disk.medium.call(move || {
            let source = reopen()?;
            Ok((fresh.then(|| source.clone().queue(Engine::Threads, 1)).transpose()?, source))
        })?;
        match (queue, kept) {
            (Some(queue), _) => {
                let mut single = Patient::new(queue, Some(self.disk.medium.clone()));
                self.disk.verify.as_ref().map_or(Ok(()), |verify| verify(&mut single, &source, self.seen.picked()))?;
                Ok((single, source))
            }
            (None, Some(kept)) => Ok(kept),
            (None, None) => Err(Error::failed(format!("Disk {}: its source could not be opened", self.disk.name))),
        }
    }

    /// Reads a block that failed as a whole piece by piece; what cannot be read becomes zeros and a range.
    fn salvage(&mut self, block: u64, mut buffer: Buffer, first: std::io::Error) -> Result<Salvage> {
        let place = || format!("Disk {}, block {block} at byte {}", self.disk.name, self.disk.geometry.offset(block));
        if first.kind() == std::io::ErrorKind::UnexpectedEof {
            let found = self.bytes()?;
            if found != self.disk.geometry.bytes() {
                return Err(self.resized(found));
            }
            return Err(Error::io(format!("{}: the source gave less than was asked for", place()), first)
                .next("the disk or what serves it is faulty: mend it, then run the same command again: it resumes"));
        }
        if !is_media_error(&first) {
            return Err(Error::io(format!("{}: cannot be read", place()), first)
                .next("check that the disk is still attached, then run the same command again"));
        }
        // A vanished disk and a bad sector look alike; the disk's identity tells them apart.
        let (mut single, source) = match self.open_single() {
            Ok(opened) => opened,
            Err(error) if is_lost(&self.source, &error) => return Ok(Salvage::Lost(buffer)),
            Err(error) => return Err(error),
        };
        let (start, len) = (self.disk.geometry.offset(block), u64::from(self.disk.geometry.len(block)));
        buffer.set_len(len as usize);
        buffer.fill(0);
        let unit = u64::from(PAGE_BYTES).max(source.unit());
        let pages = Pool::new(SALVAGE_BYTES as usize, 1)?;
        let mut lost: Vec<UnreadableRange> = Vec::new();
        let mut read = |at: u64, n: u64, buffer: &mut Buffer| -> Result<std::io::Result<()>> {
            single.read(0, start + at, pages.take(), n as usize);
            let Some(done) = single.wait()? else { return Ok(Err(std::io::Error::other("no completion"))) };
            if let (Ok(()), Some(piece)) = (&done.result, done.buffer) {
                buffer[at as usize..(at + n) as usize].copy_from_slice(&piece[..n as usize]);
            }
            Ok(done.result)
        };
        for at in (0..len).step_by(SALVAGE_BYTES as usize) {
            let n = SALVAGE_BYTES.min(len - at);
            match read(at, n, &mut buffer)? {
                Ok(()) => continue,
                Err(error) if source.is_lost(&error) => return Ok(Salvage::Lost(buffer)),
                Err(_) => {}
            }
            for page in (at..at + n).step_by(unit as usize) {
                self.shared.throttle.check()?;
                let n = unit.min(len - page);
                match read(page, n, &mut buffer)? {
                    Ok(()) => {}
                    Err(error) if is_media_error(&error) => match lost.last_mut() {
                        Some(last) if last.offset + last.bytes == start + page => last.bytes += n,
                        _ => lost.push(UnreadableRange { offset: start + page, bytes: n }),
                    },
                    Err(error) if source.is_lost(&error) => return Ok(Salvage::Lost(buffer)),
                    Err(error) => return Err(error).context(place),
                }
            }
        }
        self.single = self.disk.verify.is_some().then_some((single, source));
        let bytes: u64 = lost.iter().map(|range| range.bytes).sum();
        self.unreadable_bytes += bytes;
        self.shared.progress[self.disk.slot].unreadable.fetch_add(bytes, Ordering::Relaxed);
        if self.unreadable_bytes > self.disk.geometry.bytes() / 100 {
            return Err(Error::failed(format!(
                "Disk {}: expected a few bad sectors at most, found {} unreadable bytes, more than 1 % of it",
                self.disk.name, self.unreadable_bytes
            ))
            .next("the snapshot or the disk is dead: take a new snapshot, or leave the disk out at sealing with --without"));
        }
        Ok(Salvage::Done(buffer, lost))
    }
}

/// Errors by which a medium says "these sectors are lost", as against "I am gone".
fn is_media_error(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EREMOTEIO | libc::EILSEQ | libc::ENODATA | libc::EBADMSG | libc::ETIMEDOUT)
    )
}
