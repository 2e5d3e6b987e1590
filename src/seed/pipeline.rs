//! reader(s) → workers × cores → one pack writer → flush → rows, with the bytes under way bounded by credits.
//!
//! Flush and rows are stages of their own: while one batch is flushed, the rows of the one before are committed and the next is
//! written. A batch is cut when its flush can begin at once, so batches grow as flushes get slower, within the credit.
//!
//! A disk that cannot be read ends alone: its error is kept, and the others go on. A disk is finished as soon as its last block is
//! durable. One whose source is silent gives its place to another, and goes on beside it when the source speaks again.

use super::disk::SeedDisk;
use super::worker::Worker;
use crate::array::Array;
use crate::array::packs::{Output, PackWriter, PendingBatch};
use crate::copy::credits::Credits;
use crate::copy::crew::{Crew, start};
use crate::copy::patience::Medium;
use crate::copy::read::{DiskRead, Piece, READ_DEPTH, Reading};
use crate::copy::throttle::Throttle;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Kind, Result};
use crate::io::{Engine, Pool};
use crate::monitor::Progress;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select, unbounded};
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::record::{Encoder, Writer, max_record_bytes};
use motiongear_manifest::tree::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes read and not yet committed: the pipeline's memory, and the most that is copied again after a crash.
pub const UNDER_WAY_BYTES: u64 = 64 << 20;
/// A batch is cut once it holds this much (each costs two flushes, for which a disk drops everything else), …
const BATCH_BYTES: u64 = 32 << 20;
/// … or this many rows (zero blocks hold no bytes), …
const BATCH_ROWS: usize = 16384;
/// … or is this old.
const BATCH_AGE: Duration = Duration::from_secs(1);
/// Rows of a batch that waits for the flush before it: more are not taken.
const WAITING_ROWS: usize = 4 * BATCH_ROWS;
/// How often is looked whether a source has fallen silent, and whether a disk has become durable.
const LOOK: Duration = Duration::from_millis(250);
/// Silent sources whose places are given to others: each keeps the buffers of what was asked of it.
const MOST_SILENT: usize = 16;

/// Everything that the threads share.
pub struct Pipeline<'a> {
    /// The array.
    pub array: &'a Array,
    /// Whether it answers.
    pub medium: Medium,
    /// The live manifest.
    pub catalogue: &'a Mutex<Catalogue>,
    /// The disks of this run.
    pub disks: &'a [SeedDisk],
    /// Where each disk stands among the job's counters.
    pub slots: &'a [usize],
    /// This process's number and key.
    pub writer: Arc<Writer>,
    /// zstd level; `None` stores blocks as they are.
    pub level: Option<i32>,
    /// How bytes move.
    pub engine: Engine,
    /// Disks read at once.
    pub jobs: usize,
    /// Limits and stop.
    pub throttle: Arc<Throttle>,
    /// Counters.
    pub progress: Arc<Progress>,
    /// Leaves of zero blocks.
    pub zeros: Arc<ZeroLeaves>,
    /// The shipment's block size, bytes.
    pub block_bytes: u32,
    /// The shipment.
    pub shipment: uuid::Uuid,
    /// Finishes a disk, all of whose blocks are durable; with its digest where it is a single block.
    pub finish: &'a (dyn Fn(&ReadToEnd, Option<Digest>) -> Result<()> + Sync),
    /// Whether to finish a disk at once, and not when all are read and their common snapshot was whole until then.
    pub finish_at_once: bool,
}

/// A disk that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadToEnd {
    /// Its index.
    pub index: usize,
    /// Why it did not stand still, although that was asserted.
    pub moved: Option<String>,
}

/// What became of the disks.
#[derive(Default)]
pub struct Copied {
    /// Those that could not be read to their end, by index, with the reason.
    pub faults: BTreeMap<usize, Error>,
    /// Digests of disks that are a single block, by index.
    pub singles: BTreeMap<usize, Digest>,
}

impl Pipeline<'_> {
    /// Runs to the end, or to the first error that is not one disk's own; what was read until then is committed either way where
    /// the array allows it.
    ///
    /// # Errors
    /// The first error of any thread that is none of a source.
    pub fn run(self) -> Result<Copied> {
        let block = u64::from(self.block_bytes);
        let under_way = UNDER_WAY_BYTES.max(4 * block);
        let credits = Credits::new(under_way);
        let buffers = (under_way / block / 2).max(4);
        let jobs = self.jobs.clamp(1, self.disks.len().max(1)).min(buffers as usize);
        let depth = (buffers as usize / jobs).clamp(1, READ_DEPTH);
        // Address space for what silent sources keep; it becomes memory where there are any.
        let kept = MOST_SILENT.min(self.disks.len().saturating_sub(jobs)) * depth;
        let blocks = Pool::new(self.block_bytes as usize, buffers as usize + kept)?;
        let records = Pool::new(max_record_bytes(self.block_bytes), (buffers as usize).clamp(3, 24))?;
        let copied = Mutex::new(Copied::default());
        let singles = Mutex::new(BTreeMap::new());
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        // Few pieces in the channels: what waits there is memory and credit.
        let (piece_in, piece_out) = bounded::<Piece>(2 * workers);
        let (output_in, output_out) = bounded::<Output>(4 * workers);
        // A batch is handed over when the next stage asks for it; none waits in a channel.
        let (batch_in, batch_out) = bounded::<PendingBatch>(1);
        let (asked_in, asked_out) = bounded::<()>(1);
        let (flushed_in, flushed_out) = bounded::<PendingBatch>(0);
        // Disks that were read to their end; the committer holds an end, too, so that this closes after the last commit.
        let (read_in, read_out) = unbounded::<ReadToEnd>();
        let (medium, bytes) = (self.medium.clone(), self.block_bytes);
        let writer = PackWriter::new(self.array, medium, self.shipment, bytes, self.engine, self.catalogue)?;
        let encoders =
            (0..workers).map(|_| Encoder::new(self.writer.clone(), self.level)).collect::<Result<Vec<_>, _>>()?;
        let reading = Reading {
            engine: self.engine,
            pool: blocks,
            depth,
            credits: &credits,
            throttle: &self.throttle,
            progress: &self.progress.disks,
        };
        let (crew, places) = (Crew::new(&self.throttle), Places::default());
        std::thread::scope(|scope| {
            let (crew, credits, singles, copied, this, reading) = (&crew, &credits, &singles, &copied, &self, &reading);
            // Where a thread cannot be started, its ends of the channels close, and the others end as after any failure.
            let begin = |started: Result<_>| crew.run(|| started.map(drop).inspect_err(|_| credits.close()));
            let last = read_in.clone();
            begin(start(scope, move || {
                let _closed = (CloseOnDrop(credits), last);
                crew.run(|| committer(&flushed_out, this, credits));
            }));
            begin(start(scope, move || {
                let _closed = CloseOnDrop(credits);
                crew.run(|| flusher(&this.medium, &asked_in, &batch_out, &flushed_in));
            }));
            begin(start(scope, move || {
                let _closed = CloseOnDrop(credits);
                crew.run(|| write(writer, &output_out, &asked_out, &batch_in));
            }));
            begin(start(scope, move || crew.run(|| finisher(&read_out, this, singles))));
            for encoder in encoders {
                let (pieces, outputs, records) = (piece_out.clone(), output_in.clone(), records.clone());
                begin(start(scope, move || {
                    let worker = Worker {
                        encoder,
                        zeros: this.zeros.clone(),
                        records,
                        throttle: &this.throttle,
                        credits,
                        disks: this.disks,
                        progress: &this.progress.disks,
                        slots: this.slots,
                        singles,
                    };
                    crew.run(|| worker.run(&pieces, &outputs));
                }));
            }
            // The threads hold the ends that they use; a channel must close when the last of them is done.
            drop((piece_out, output_in));
            let places = &places;
            let (left_in, left) = unbounded::<()>();
            let mut grown = 0;
            for index in 0..this.disks.len() {
                if let Err(stopped) = places.wait(this, jobs, &left) {
                    crew.run(|| Err(stopped));
                    break;
                }
                let silent = places.silent(this);
                if silent > grown {
                    credits.grow((silent - grown) as u64 * depth as u64 * block);
                    grown = silent;
                }
                places.take(index);
                let (pieces, read, left) = (piece_in.clone(), read_in.clone(), left_in.clone());
                let work = move || {
                    crew.run(|| read_disk(this, index, reading, &pieces, &read, copied));
                    places.leave(index);
                    // Whoever gives places may have given all.
                    let _ = left.send(());
                };
                begin(start(scope, work));
            }
            drop((piece_in, read_in));
        });
        crew.finish()?;
        let mut copied = copied.into_inner().unwrap_or_else(PoisonError::into_inner);
        copied.singles = singles.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(copied)
    }

    /// Whether every block of the disk of this index is durable.
    fn is_durable(&self, index: usize) -> bool {
        let counters = &self.progress.disks[self.slots[index]];
        let done = counters.done.load(Ordering::Acquire).saturating_add(counters.skipped.load(Ordering::Acquire));
        done >= self.disks[index].geometry.bytes()
    }
}

/// Disks that are being read.
#[derive(Default)]
struct Places(Mutex<BTreeSet<usize>>);

impl Places {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn take(&self, index: usize) {
        self.lock().insert(index);
    }
    fn leave(&self, index: usize) {
        self.lock().remove(&index);
    }
    /// Of the disks that are being read, those whose source is silent and whose place may be given to another.
    fn silent(&self, job: &Pipeline) -> usize {
        self.lock().iter().filter(|index| job.disks[**index].medium.is_silent()).count().min(MOST_SILENT)
    }
    /// Waits for one of `jobs` places.
    fn wait(&self, job: &Pipeline, jobs: usize, left: &Receiver<()>) -> Result<()> {
        loop {
            let silent = self.silent(job);
            if self.lock().len() < jobs + silent {
                break;
            }
            job.throttle.check()?;
            // One has left, or it is time to look whether one has fallen silent.
            let _ = left.recv_timeout(LOOK);
        }
        job.throttle.check()
    }
}

/// Frees readers that wait for credit when the threads that give it back are gone, however they went.
struct CloseOnDrop<'a>(&'a Credits);
impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Reads one disk. What goes wrong with it is its own; only a stop is everybody's.
fn read_disk(
    job: &Pipeline,
    index: usize,
    reading: &Reading,
    out: &Sender<Piece>,
    read: &Sender<ReadToEnd>,
    copied: &Mutex<Copied>,
) -> Result<()> {
    let disk = &job.disks[index];
    let whole = DiskRead {
        index,
        slot: job.slots[index],
        name: disk.name.clone(),
        disk: disk.source.clone(),
        medium: disk.medium.clone(),
        geometry: disk.geometry,
        skip: disk.skip.clone(),
        known: disk.known.clone(),
        reopen: disk.reopen.clone(),
        verify: disk.verify.clone(),
    };
    match reading.read(&whole, out).and_then(|()| disk.moved()) {
        Ok(moved) => {
            // Gone only where the finisher failed, which has said so.
            let _ = read.send(ReadToEnd { index, moved });
            Ok(())
        }
        Err(error) if error.kind == Kind::Interrupted => Err(error),
        Err(error) => {
            if job.progress.disks.len() > 1 {
                job.throttle.note(format!("{error}\n  The other disks go on."));
            }
            copied.lock().unwrap_or_else(PoisonError::into_inner).faults.insert(index, error);
            Ok(())
        }
    }
}

/// Finishes disks that were read to their end, each as soon as its last block is durable.
fn finisher(read: &Receiver<ReadToEnd>, job: &Pipeline, singles: &Mutex<BTreeMap<usize, Digest>>) -> Result<()> {
    let mut waiting = BTreeSet::new();
    loop {
        let open = match read.recv_timeout(LOOK) {
            Ok(disk) => {
                waiting.insert(disk);
                waiting.extend(read.try_iter());
                true
            }
            Err(RecvTimeoutError::Timeout) => true,
            // The last commit is done.
            Err(RecvTimeoutError::Disconnected) => false,
        };
        if job.finish_at_once {
            let (durable, open): (BTreeSet<_>, _) = waiting.into_iter().partition(|disk| job.is_durable(disk.index));
            for disk in &durable {
                let single = singles.lock().unwrap_or_else(PoisonError::into_inner).get(&disk.index).copied();
                (job.finish)(disk, single)?;
            }
            waiting = open;
        }
        if !open {
            return Ok(());
        }
    }
}

/// The next stage is gone. Why is its own to say: this must outrank neither its failure nor a stop that it obeyed.
fn stopped() -> Error {
    Error::interrupted("Manifest: its writer stopped")
}

/// Takes outputs as they come, keeps writes going, and cuts a batch when it is due and asked for.
fn write(
    mut writer: PackWriter,
    outputs: &Receiver<Output>,
    asked: &Receiver<()>,
    batches: &Sender<PendingBatch>,
) -> Result<()> {
    let mut since = Instant::now();
    let (mut wanted, mut due) = (false, false);
    loop {
        // With nothing to take, finish a write, so that its buffer goes home; with nothing to finish, wait.
        let output = match outputs.try_recv() {
            Ok(output) => Some(output),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) if writer.progress()? => None,
            // An ask matters only to a batch that is due; to wait for both costs more than to wait for outputs.
            Err(TryRecvError::Empty) if due && !wanted => select! {
                recv(outputs) -> output => match output {
                    Ok(output) => Some(output),
                    Err(_) => break,
                },
                recv(asked) -> ask => {
                    ask.map_err(|_| stopped())?;
                    wanted = true;
                    None
                }
                default(BATCH_AGE / 4) => None,
            },
            Err(TryRecvError::Empty) => match outputs.recv_timeout(BATCH_AGE / 4) {
                Ok(output) => Some(output),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            },
        };
        let (before, _) = writer.pending();
        if before == 0 {
            since = Instant::now();
        }
        if let Some(output) = output {
            writer.append(output)?;
        }
        let (rows, bytes) = writer.pending();
        due = bytes >= BATCH_BYTES || rows >= BATCH_ROWS || (rows > 0 && since.elapsed() >= BATCH_AGE);
        if due && !wanted {
            wanted = match rows >= WAITING_ROWS {
                true => asked.recv().map_err(|_| stopped()).map(|()| true)?,
                false => asked.try_recv().is_ok(),
            };
        }
        if due && wanted {
            batches.send(writer.take_batch()?).map_err(|_| stopped())?;
            (wanted, due) = (false, false);
        }
    }
    if writer.pending().0 > 0 {
        batches.send(writer.take_batch()?).map_err(|_| stopped())?;
    }
    Ok(())
}

/// Flushes the files of each batch: its rows must not be committed before.
///
/// # Errors
/// A flush failed: nothing that it covered may be trusted, and the process ends.
fn flusher(
    medium: &Medium,
    ask: &Sender<()>,
    batches: &Receiver<PendingBatch>,
    flushed: &Sender<PendingBatch>,
) -> Result<()> {
    loop {
        // The writer is gone when it has nothing more to hand over; what it handed over last is still taken.
        let _ = ask.try_send(());
        let Ok(batch) = batches.recv() else { return Ok(()) };
        for file in &batch.files {
            medium.sync_data(file)?;
        }
        flushed.send(batch).map_err(|_| stopped())?;
    }
}

/// Commits the rows of flushed batches, then gives back their credit.
///
/// # Errors
/// The manifest cannot be written.
fn committer(batches: &Receiver<PendingBatch>, job: &Pipeline, credits: &Credits) -> Result<()> {
    for batch in batches {
        job.catalogue.lock().unwrap_or_else(PoisonError::into_inner).commit(&batch.rows)?;
        credits.release(batch.credit);
        for done in &batch.done {
            let counters = &job.progress.disks[job.slots[done.disk]];
            counters.done.fetch_add(done.bytes, Ordering::Relaxed);
            counters.zero.fetch_add(done.zero, Ordering::Release);
            counters.stored.fetch_add(done.stored, Ordering::Release);
        }
    }
    Ok(())
}
