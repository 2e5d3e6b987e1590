//! reader(s) → workers × cores → one pack writer → flush → rows, with the bytes under way bounded by credits.

use super::disk::SeedDisk;
use super::worker::Worker;
use crate::array::Array;
use crate::array::packs::{Output, PackWriter, PendingBatch};
use crate::copy::credits::Credits;
use crate::copy::crew::Crew;
use crate::copy::read::{DiskRead, Piece, Reading};
use crate::copy::throttle::Throttle;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Result};
use crate::io::{Engine, Pool};
use crate::monitor::Progress;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::record::{Encoder, Writer, max_record_bytes};
use motiongear_manifest::tree::Digest;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes read and not yet committed: the pipeline's memory, and the most that is copied again after a crash.
pub const UNDER_WAY_BYTES: u64 = 64 << 20;
/// A batch is committed once it holds this much, …
const BATCH_BYTES: u64 = 16 << 20;
/// … or this many rows (zero blocks hold no bytes), …
const BATCH_ROWS: usize = 16384;
/// … or is this old.
const BATCH_AGE: Duration = Duration::from_secs(1);
/// Reads in flight per disk.
const READ_DEPTH: u64 = 8;

/// Everything that the threads share.
pub struct Pipeline<'a> {
    /// The array.
    pub array: &'a Array,
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
}

impl Pipeline<'_> {
    /// Runs to the end, or to the first error; what was read until then is committed either way where the array allows it.
    /// Returns the digests of disks that are a single block.
    ///
    /// # Errors
    /// The first error of any thread.
    pub fn run(self) -> Result<BTreeMap<usize, Digest>> {
        let block = u64::from(self.block_bytes);
        let under_way = UNDER_WAY_BYTES.max(4 * block);
        let credits = Credits::new(under_way);
        let buffers = (under_way / block / 2).max(4);
        let jobs = self.jobs.clamp(1, self.disks.len().max(1)).min(buffers as usize);
        let depth = (buffers / jobs as u64).clamp(1, READ_DEPTH) as usize;
        let blocks = Pool::new(self.block_bytes as usize, buffers as usize)?;
        let records = Pool::new(max_record_bytes(self.block_bytes), (buffers as usize).clamp(3, 24))?;
        let singles = Mutex::new(BTreeMap::new());
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        // Few pieces in the channels: what waits there is memory and credit.
        let (piece_in, piece_out) = bounded::<Piece>(2 * workers);
        let (output_in, output_out) = bounded::<Output>(4 * workers);
        let (batch_in, batch_out) = bounded::<PendingBatch>(1);
        let writer = PackWriter::new(self.array, self.shipment, self.block_bytes, self.engine, self.catalogue)?;
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
        let next = AtomicUsize::new(0);
        let crew = Crew::new(&self.throttle);
        std::thread::scope(|scope| {
            let (crew, credits, next, singles, this, reading) = (&crew, &credits, &next, &singles, &self, &reading);
            scope.spawn(move || {
                let _closed = CloseOnDrop(credits);
                crew.run(|| committer(&batch_out, this, credits));
            });
            scope.spawn(move || {
                let _closed = CloseOnDrop(credits);
                crew.run(|| write(writer, &output_out, &batch_in));
            });
            for encoder in encoders {
                let (pieces, outputs, records) = (piece_out.clone(), output_in.clone(), records.clone());
                scope.spawn(move || {
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
                });
            }
            for _ in 0..jobs {
                let pieces = piece_in.clone();
                scope.spawn(move || crew.run(|| read_disks(this, reading, next, &pieces)));
            }
            // The threads hold the ends that they use; a channel must close when the last of them is done.
            drop((piece_in, piece_out, output_in));
        });
        crew.finish()?;
        Ok(singles.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Frees readers that wait for credit when the threads that give it back are gone, however they went.
struct CloseOnDrop<'a>(&'a Credits);
impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn read_disks(job: &Pipeline, reading: &Reading, next: &AtomicUsize, out: &Sender<Piece>) -> Result<()> {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(disk) = job.disks.get(index) else { return Ok(()) };
        let recheck = disk.recheck.clone();
        let read = DiskRead {
            index,
            slot: job.slots[index],
            name: disk.name.clone(),
            file: disk.file.clone(),
            geometry: disk.geometry,
            skip: disk.skip.clone(),
            known: disk.known.clone(),
            recheck: Box::new(move || recheck()),
        };
        reading.read(&read, out)?;
    }
}

/// Takes outputs as they come, keeps writes going, and cuts batches.
fn write(mut writer: PackWriter, outputs: &Receiver<Output>, batches: &Sender<PendingBatch>) -> Result<()> {
    let mut since = Instant::now();
    let gone = || Error::failed("Manifest: its writer stopped");
    loop {
        // With nothing to take, finish a write, so that its buffer goes home; with nothing to finish, wait.
        let output = match outputs.try_recv() {
            Ok(output) => Some(output),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) if writer.progress()? => None,
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
        if bytes >= BATCH_BYTES || rows >= BATCH_ROWS || (rows > 0 && since.elapsed() >= BATCH_AGE) {
            batches.send(writer.take_batch()?).map_err(|_| gone())?;
        }
    }
    if writer.pending().0 > 0 {
        batches.send(writer.take_batch()?).map_err(|_| gone())?;
    }
    Ok(())
}

fn committer(batches: &Receiver<PendingBatch>, job: &Pipeline, credits: &Credits) -> Result<()> {
    for batch in batches {
        commit(&batch, job.catalogue, credits)?;
        for (disk, bytes) in &batch.done {
            job.progress.disks[job.slots[*disk]].done.fetch_add(*bytes, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Flushes the batch's files, then commits its rows, then gives back its credit.
///
/// # Errors
/// A flush failed: nothing that it covered may be trusted, and the process ends. Or the manifest cannot be written.
fn commit(batch: &PendingBatch, catalogue: &Mutex<Catalogue>, credits: &Credits) -> Result<()> {
    for file in &batch.files {
        file.sync_data()?;
    }
    catalogue.lock().unwrap_or_else(PoisonError::into_inner).commit(&batch.rows)?;
    credits.release(batch.credit);
    Ok(())
}
