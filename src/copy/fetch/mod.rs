//! Reading records back: from the rows of the manifest through the packs to proven blocks, which go to a [`Sink`].
//!
//! ```text
//! rows of each disk ─► merged by place, in batches ─► large reads of the packs ─► workers: crc · decrypt · unzip · leaf ─► sink
//! ```
//! `verify`, `import` and `restore` are this with different sinks. What cannot be proven is handed to the sink as damaged,
//! with its place, and is never fatal; only a sink that fails, or a manifest that contradicts its seal, ends a fetch.
//!
//! Two pools of buffers, one of stored bytes and one of plain blocks, are the back-pressure and all the memory there is:
//! below 100 MiB whatever the disks and the block size.
//!
//! Who wants blocks in no order, one now and then, has [`One`].

mod cursor;
mod decode;
mod one;
mod reader;

pub use cursor::Cursor;
pub use one::{One, Records};

use crate::array::Array;
use crate::copy::crew::start;
use crate::copy::patience::Medium;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Result};
use crate::io::{Buffer, Engine, Pool};
use crate::monitor::Progress;
use motiongear_manifest::catalogue::{BlockRow, Catalogue, Generation};
use motiongear_manifest::documents::seal::{Seal, pack_number};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::record::{Keyring, max_record_bytes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Records that lie side by side are read together up to this many bytes; a single longer record by itself.
const RUN_BYTES: usize = 4 << 20;
/// Memory for stored bytes, and the same again for plain blocks, unless three buffers need more.
const POOL_BYTES: usize = 32 << 20;

/// Blocks of one disk that are wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The caller's number for the disk: given to the sink, and its index in [`Progress::disks`].
    pub slot: usize,
    /// MACHINE/DISK, for messages.
    pub name: String,
    /// Which generation of it.
    pub generation: Generation,
    /// How it is cut into blocks.
    pub geometry: Geometry,
    /// Which blocks.
    pub pick: Pick,
}

/// Which blocks of a disk.
#[derive(Debug, Clone)]
pub enum Pick {
    /// This one and all behind it.
    From(u64),
    /// These, ascending.
    Blocks(Vec<u64>),
}

/// A block that could not be proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Index on the disk.
    pub block: u64,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes of the block.
    pub bytes: u32,
    /// The pack's file, relative to `motiongear/`; none where no record is concerned.
    pub file: Option<String>,
    /// Where the record starts in that file, bytes.
    pub file_offset: Option<u64>,
    /// What is wrong.
    pub why: String,
    /// Not trusted, where all else is damage: somebody made the record so. For who checks; who copies never uses it either way.
    #[serde(skip)]
    pub untrusted: bool,
}

/// What becomes of the blocks, and who counts them: `done`, and of it `zero` and `stored`. Called from several threads; an error
/// ends the fetch.
pub trait Sink: Sync {
    /// These rows of a disk come next, ascending; called before any of them is delivered, in order.
    ///
    /// # Errors
    /// Ends the fetch.
    fn intake(&self, _slot: usize, _rows: &[BlockRow]) -> Result<()> {
        Ok(())
    }
    /// Asked before records are read: whether the sink has room for blocks of these lengths (slot, block, bytes). With
    /// `wait` it waits for room instead of saying `false`.
    ///
    /// # Errors
    /// Ends the fetch.
    fn admit(&self, _blocks: &[(usize, u64, u32)], _wait: bool) -> Result<bool> {
        Ok(true)
    }
    /// These blocks of a disk are all zeros, and their leaves say so too.
    ///
    /// # Errors
    /// Ends the fetch.
    fn zeros(&self, slot: usize, rows: &[BlockRow]) -> Result<()>;
    /// A proven block.
    ///
    /// # Errors
    /// Ends the fetch.
    fn block(&self, slot: usize, row: &BlockRow, data: Buffer) -> Result<()>;
    /// A block that could not be proven.
    ///
    /// # Errors
    /// Ends the fetch.
    fn damaged(&self, slot: usize, damage: Damage) -> Result<()>;
}

/// Where to read, and with what.
pub struct Fetch<'a> {
    /// The array.
    pub array: &'a Array,
    /// Whether it answers.
    pub medium: Medium,
    /// Whose records.
    pub shipment: Uuid,
    /// Bytes of a block; one size for all disks of a shipment.
    pub block_bytes: u32,
    /// Whether records must be encrypted.
    pub encrypted: bool,
    /// Content keys; empty for a plaintext shipment.
    pub keys: Arc<Keyring>,
    /// Sealed length of each pack, bytes.
    pub packs: BTreeMap<u32, u64>,
    /// How bytes move.
    pub engine: Engine,
    /// Pauses, slows and stops it.
    pub throttle: &'a Throttle,
    /// Where `read` is counted.
    pub progress: &'a Progress,
    /// Leaves of zero blocks of `block_bytes`.
    pub zeros: &'a ZeroLeaves,
}

/// Sealed length of each pack by number.
pub fn sealed_packs(seal: &Seal) -> BTreeMap<u32, u64> {
    seal.packs.iter().filter_map(|pack| Some((pack_number(&pack.file)?, pack.bytes))).collect()
}

/// The first error of any thread; the others see it and stop.
#[derive(Default)]
pub(crate) struct Failure(Mutex<Option<Error>>);

impl Failure {
    /// Keeps the first error.
    pub fn set(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
    /// The error, if there was one.
    pub fn take(&self) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// Runs one fetch of `wanted` to its end; `catalogue` is the verified manifest.
///
/// # Errors
/// What the sink returned, an interruption, or a manifest that does not fit its disks. Damaged blocks are no error.
pub fn fetch(job: &Fetch<'_>, catalogue: &Catalogue, wanted: &[Wanted], sink: &dyn Sink) -> Result<()> {
    for disk in wanted {
        if disk.geometry.block_bytes() != job.block_bytes {
            return Err(Error::failed(format!(
                "Disk {}: expected blocks of {} bytes as in the shipment, found {}",
                disk.name,
                job.block_bytes,
                disk.geometry.block_bytes()
            )));
        }
    }
    let run_bytes = max_record_bytes(job.block_bytes).max(RUN_BYTES);
    let block_bytes = job.block_bytes as usize;
    let stored = Pool::new(run_bytes, (POOL_BYTES / run_bytes).clamp(3, 8))?;
    let plain = Pool::new(block_bytes, (POOL_BYTES / block_bytes).clamp(3, 256))?;
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16);
    let (tasks, taken) = crossbeam_channel::bounded(workers);
    let failure = Failure::default();
    let read = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..workers {
            let (taken, plain, failure) = (taken.clone(), plain.clone(), &failure);
            match start(scope, move || decode::work(job, wanted, sink, &taken, &plain, failure)) {
                Ok(thread) => threads.push(thread),
                // Fewer than wished is slower, not wrong.
                Err(_) if !threads.is_empty() => break,
                Err(error) => {
                    failure.set(error);
                    break;
                }
            }
        }
        drop(taken);
        let read = reader::Reader::new(job, wanted, sink, stored, tasks, &failure, run_bytes).run(catalogue);
        for thread in threads {
            if thread.join().is_err() {
                failure.set(Error::failed("Reading of records: a worker thread stopped unexpectedly"));
            }
        }
        read
    });
    // The sink's error says why; the reader only noticed that there was one.
    failure.take()?;
    read
}
