//! The one writer of packs: appends records, keeps the digest of what it wrote, and hands over batches to be committed.
//!
//! Crash ordering, and what each wrong order would break:
//! 1. the pack's file and its name in the directory are made durable before a row names the pack (else: a row without a file);
//! 2. records are written behind the committed length only (else: a torn record under a row);
//! 3. `fdatasync`, then the rows, in `commit` (else: a row without data);
//! 4. after a crash the file is cut to its committed length before anything is appended (else: a digest over foreign bytes).

use super::Array;
use crate::copy::patience::{Medium, Patient};
use crate::error::{Error, IoContext, Result};
use crate::io::{Access, Buffer, DirectFile, Engine, Pool, open_queue};
use motiongear_manifest::catalogue::{
    BlockRow, BlockState, Catalogue, Pack, PackProgress, PackState, Place, UnreadableRange,
};
use motiongear_manifest::geometry::PAGE_BYTES;
use motiongear_manifest::pack::{LEAF_BYTES, MAX_PACK_BYTES, PackDigest, PackHeader};
use motiongear_manifest::record::Encoded;
use motiongear_manifest::tree::Digest;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Writes in flight: one on the medium, one that follows. More took from the reads (seed of a 6 GiB disk: 5 % slower with eight).
const DEPTH: usize = 2;
/// Records shorter than this are written together: the kernel takes the inode's lock for every write that lengthens a file, on a
/// thread of its own, and the record of a database page or of text is seldom longer than 100 KiB.
const SHORT_BYTES: usize = 256 << 10;
/// How much is written together.
const GATHER_BYTES: usize = 1 << 20;

/// A block on its way into the manifest, or the blocks of a hole.
pub struct Output {
    /// The disk's place in the job's list, for counters.
    pub disk: usize,
    /// Id of the generation.
    pub generation: i64,
    /// The rows, without places: one with a record, or any number of zero blocks.
    pub rows: Vec<BlockRow>,
    /// The one block's record, unless it is all zeros.
    pub record: Option<(Buffer, Encoded)>,
    /// What the source could not give.
    pub unreadable: Vec<UnreadableRange>,
    /// Length of all blocks.
    pub bytes: u64,
    /// Credit that the commit gives back, bytes.
    pub credit: u64,
}

/// Rows that belong together, and the files that must be flushed before they are committed.
#[derive(Default)]
pub struct PendingBatch {
    /// What the transaction holds.
    pub rows: motiongear_manifest::catalogue::Batch,
    /// To be flushed first.
    pub files: Vec<Arc<DirectFile>>,
    /// Credit to give back afterwards, bytes.
    pub credit: u64,
    /// What the rows say of each disk, for counters.
    pub done: Vec<Done>,
}

/// Bytes of one disk in one batch.
#[derive(Default)]
pub struct Done {
    /// Index of the disk in this run.
    pub disk: usize,
    /// Of the disk.
    pub bytes: u64,
    /// Of the disk, all zeros.
    pub zero: u64,
    /// Of the records, on the array.
    pub stored: u64,
}

impl PendingBatch {
    fn done_of(&mut self, disk: usize) -> &mut Done {
        let at = self.done.iter().position(|done| done.disk == disk).unwrap_or_else(|| {
            self.done.push(Done { disk, ..Done::default() });
            self.done.len() - 1
        });
        &mut self.done[at]
    }
}

/// The pack that grows.
struct Open {
    number: u32,
    path: PathBuf,
    file: Arc<DirectFile>,
    /// The longest that it may become, bytes.
    longest: u64,
    queue: Patient,
    /// Short records that are not handed to the queue yet: the end of the pack.
    gathered: Option<Buffer>,
    /// With them.
    bytes: u64,
    records: u64,
    digest: PackDigest,
}

impl Open {
    fn append(&mut self, record: Buffer, pool: &Pool) -> Result<()> {
        self.digest.update(&record);
        self.records += 1;
        let short = record.len() < SHORT_BYTES;
        let fits = |gathered: &Buffer| gathered.len() + record.len() <= gathered.capacity();
        if !short || !self.gathered.as_ref().is_none_or(fits) {
            self.hand_over()?;
        }
        self.bytes += record.len() as u64;
        if !short {
            return self.write(record);
        }
        let gathered = self.gathered.get_or_insert_with(|| pool.take());
        let end = gathered.len();
        gathered.set_len(end + record.len());
        gathered[end..].copy_from_slice(&record);
        Ok(())
    }

    /// Hands what is gathered to the queue.
    fn hand_over(&mut self) -> Result<()> {
        self.gathered.take().map_or(Ok(()), |gathered| self.write(gathered))
    }

    /// Writes the last bytes of the pack.
    fn write(&mut self, last: Buffer) -> Result<()> {
        while self.queue.in_flight() >= self.queue.depth() {
            wait_one(&mut self.queue, &self.path)?;
        }
        let offset = self.bytes - last.len() as u64;
        self.queue.write(offset, offset, last);
        Ok(())
    }

    /// All that was appended is written, though not flushed.
    fn settle(&mut self) -> Result<()> {
        self.hand_over()?;
        wait_all(&mut self.queue, &self.path)
    }
}

/// Appends records to packs.
pub struct PackWriter<'a> {
    array: &'a Array,
    /// Whether it answers.
    patience: Medium,
    shipment: Uuid,
    medium: u32,
    engine: Engine,
    block_bytes: u32,
    catalogue: &'a Mutex<Catalogue>,
    /// To gather short records in; enough for every write in flight.
    gathering: Pool,
    open: Option<Open>,
    pending: PendingBatch,
}

impl<'a> PackWriter<'a> {
    /// Goes on with the open pack, if there is one.
    ///
    /// # Errors
    /// The open pack is missing or cannot be read.
    pub fn new(
        array: &'a Array,
        patience: Medium,
        shipment: Uuid,
        block_bytes: u32,
        engine: Engine,
        catalogue: &'a Mutex<Catalogue>,
    ) -> Result<Self> {
        let mut writer = PackWriter {
            array,
            patience,
            shipment,
            medium: 1,
            engine,
            block_bytes,
            catalogue,
            gathering: Pool::new(GATHER_BYTES, DEPTH + 1)?,
            open: None,
            pending: PendingBatch::default(),
        };
        let mut packs = writer.lock().packs()?;
        let last = packs.pop();
        close_packs(array, &mut writer.lock(), packs)?;
        if let Some(pack) = last.filter(|pack| pack.blake3.is_none()) {
            writer.open = Some(writer.resume(&pack)?);
        }
        Ok(writer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'a, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the pack to its committed length and takes up its digest.
    fn resume(&self, pack: &Pack) -> Result<Open> {
        let Some(tree) = pack.tree.as_ref().filter(|_| pack.bytes > 0) else {
            return self.start(pack.number);
        };
        let (array, number, bytes, tree) = (self.array.clone(), pack.number, pack.bytes, tree.clone());
        let (digest, file) = self.patience.call(move || {
            let digest = committed_digest(&array, number, bytes, &tree)?;
            Ok((digest, array.open_pack(number, Access::Write)?))
        })?;
        self.append_to(pack.number, file, bytes, pack.records, digest)
    }

    /// Makes the file of pack `number` with its header page, durably. A leftover that no commit covers is replaced.
    fn start(&self, number: u32) -> Result<Open> {
        let array = self.array.clone();
        let file = self.patience.call(move || {
            let (tree, pack) = (array.tree()?, Array::pack_file(number));
            tree.remove(&pack)?;
            let file = tree.create_direct(&pack)?;
            tree.sync("packs")?;
            Ok(file)
        })?;
        let header = PackHeader { shipment: self.shipment, pack: number, medium: self.medium }.encode();
        let mut digest = PackDigest::new();
        digest.update(&header);
        let mut open = self.append_to(number, file, header.len() as u64, 0, digest)?;
        let mut page = Pool::new(PAGE_BYTES as usize, 1)?.take();
        page.set_len(header.len());
        page.copy_from_slice(&header);
        open.write(page)?;
        open.settle()?;
        Ok(open)
    }

    fn append_to(&self, number: u32, file: DirectFile, bytes: u64, records: u64, digest: PackDigest) -> Result<Open> {
        let (file, path) = (Arc::new(file), self.array.pack(number));
        let longest = file.longest(MAX_PACK_BYTES);
        let queue = Patient::new(open_queue(self.engine, file.clone(), DEPTH)?, Some(self.patience.clone()));
        Ok(Open { number, path, file, longest, queue, gathered: None, bytes, records, digest })
    }

    /// Adds what came to the pending batch, a record to the pack.
    ///
    /// # Errors
    /// The array is full, gone or read-only.
    pub fn append(&mut self, output: Output) -> Result<()> {
        let Output { disk, generation, mut rows, record, unreadable, bytes, credit } = output;
        let mut stored = 0;
        if let Some((mut buffer, encoded)) = record {
            buffer.set_len(encoded.record_bytes);
            stored = encoded.record_bytes as u64;
            let mut open = self.pack_with_room(stored)?;
            let offset = open.bytes;
            let Encoded { stored_bytes, codec, .. } = encoded;
            let place = Place { pack: open.number, offset, stored_bytes, codec };
            rows.iter_mut().for_each(|row| row.place = Some(place));
            open.append(buffer, &self.gathering)?;
            self.open = Some(open);
        }
        let done = self.pending.done_of(disk);
        done.bytes += bytes;
        done.zero += if rows.iter().all(|row| row.state == BlockState::Zero) { bytes } else { 0 };
        done.stored += stored;
        self.pending.rows.rows.extend(rows.into_iter().map(|row| (generation, row)));
        self.pending.rows.unreadable.extend(unreadable.into_iter().map(|range| (generation, range)));
        self.pending.credit += credit;
        Ok(())
    }

    fn pack_with_room(&mut self, bytes: u64) -> Result<Open> {
        match self.open.take() {
            Some(open) if open.bytes + bytes <= open.longest => Ok(open),
            Some(open) => {
                self.close(open)?;
                self.next_pack()
            }
            None => self.next_pack(),
        }
    }

    fn next_pack(&mut self) -> Result<Open> {
        let number = self.lock().add_pack(self.medium)?;
        self.start(number)
    }

    fn close(&mut self, mut open: Open) -> Result<()> {
        open.settle()?;
        let digest = finish_digest(open.digest, self.array, open.number)?;
        self.pending.files.push(open.file.clone());
        let progress = PackProgress {
            pack: open.number,
            bytes: open.bytes,
            records: open.records,
            digest: PackState::Closed(digest),
        };
        self.pending.rows.packs.push(progress);
        Ok(())
    }

    /// Blocks in the pending batch, and the credit that they hold.
    pub fn pending(&self) -> (usize, u64) {
        (self.pending.rows.rows.len(), self.pending.credit)
    }

    /// Waits for one write, so that its buffer goes home; false if none is in flight.
    ///
    /// # Errors
    /// The write failed.
    pub fn progress(&mut self) -> Result<bool> {
        match &mut self.open {
            Some(open) if open.queue.in_flight() > 0 => wait_one(&mut open.queue, &open.path).map(|()| true),
            _ => Ok(false),
        }
    }

    /// The pending batch, all its writes done (not yet flushed).
    ///
    /// # Errors
    /// A write failed.
    pub fn take_batch(&mut self) -> Result<PendingBatch> {
        if let Some(open) = &mut self.open {
            open.settle()?;
            let known =
                self.pending.rows.rows.iter().any(|(_, row)| row.place.is_some_and(|place| place.pack == open.number));
            if known {
                self.pending.files.push(open.file.clone());
                let state = PackState::Open(open.digest.save());
                self.pending.rows.packs.push(PackProgress {
                    pack: open.number,
                    bytes: open.bytes,
                    records: open.records,
                    digest: state,
                });
            }
        }
        let mut batch = std::mem::take(&mut self.pending);
        batch.rows.block_bytes = self.block_bytes;
        Ok(batch)
    }
}

/// Closes every pack that is still open, without a writer: what sealing does.
///
/// # Errors
/// A pack cannot be read, or the manifest cannot be written.
pub fn close_open_packs(array: &Array, catalogue: &mut Catalogue) -> Result<()> {
    let packs = catalogue.packs()?;
    close_packs(array, catalogue, packs)
}

/// Closes those of `packs` that are open. More than one is where a run ended between the row of a new pack, which is committed at
/// once, and the batch that would have closed the pack before it.
fn close_packs(array: &Array, catalogue: &mut Catalogue, packs: Vec<Pack>) -> Result<()> {
    for pack in packs.into_iter().filter(|pack| pack.blake3.is_none()) {
        let Some(tree) = pack.tree.filter(|_| pack.records > 0) else {
            // The file first: a file without a row would be in no seal, and nobody would look for it again.
            array.tree()?.remove(Array::pack_file(pack.number))?;
            catalogue.remove_empty_pack(pack.number)?;
            continue;
        };
        let digest = finish_digest(committed_digest(array, pack.number, pack.bytes, &tree)?, array, pack.number)?;
        let digest = PackState::Closed(digest);
        let closed = PackProgress { pack: pack.number, bytes: pack.bytes, records: pack.records, digest };
        catalogue.commit(&motiongear_manifest::catalogue::Batch { packs: vec![closed], ..Default::default() })?;
    }
    Ok(())
}

/// Cuts a pack to its committed length, durably, and takes up the digest of what is left.
fn committed_digest(array: &Array, number: u32, bytes: u64, tree: &[u8]) -> Result<PackDigest> {
    let what = || format!("Pack {}", array.pack(number).display());
    let file = cut(array, number, bytes)?;
    let covered = PackDigest::covered(tree)?;
    let tail = bytes.checked_sub(covered).and_then(|n| usize::try_from(n).ok()).filter(|n| *n < LEAF_BYTES as usize);
    let tail = tail.ok_or_else(|| {
        Error::failed(format!("{}: expected a digest over {bytes} bytes, found one over {covered}", what()))
            .next("the ledger is damaged: prepare another array with init and seed again")
    })?;
    let mut tail = vec![0; tail];
    file.read_exact_at(&mut tail, covered).context(what)?;
    Ok(PackDigest::load(tree, tail)?)
}

fn finish_digest(digest: PackDigest, array: &Array, number: u32) -> Result<Digest> {
    match digest.finish() {
        Some(digest) => Ok(digest),
        // Exactly 1 MiB: the one length whose leaf does not give the digest.
        None => Ok(Digest::of(&array.tree()?.read(Array::pack_file(number), LEAF_BYTES)?)),
    }
}

/// Opens a pack and cuts it to its committed length. A shorter file lost what was on stable storage.
fn cut(array: &Array, number: u32, bytes: u64) -> Result<File> {
    let what = || format!("Pack {}", array.pack(number).display());
    let file = array.tree()?.open_to_write(Array::pack_file(number))?;
    let found = file.metadata().context(what)?.len();
    if found < bytes {
        return Err(Error::failed(format!(
            "{}: expected at least {bytes} bytes, found {found}: the array lost data that it had confirmed",
            what()
        ))
        .next("run the seed again: it copies again what was lost"));
    }
    // Also where nothing is to be cut: it waits for direct writes that a process left behind in the kernel, killed or given up
    // with a medium that did not answer. They would else come after what is appended now, in the same place.
    file.set_len(bytes).context(what)?;
    file.sync_all().context(what)?;
    Ok(file)
}

fn wait_one(queue: &mut Patient, path: &Path) -> Result<()> {
    let Some(done) = queue.wait()? else { return Ok(()) };
    done.result.map_err(|error| {
        let next = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                "the array is full: use a larger one, or leave disks out; what was copied so far is kept"
            }
            Some(libc::EFBIG) => {
                "its file system takes no longer file: raise the limit (ulimit -f), or use another file system (exFAT, NTFS, ext4)"
            }
            Some(libc::EROFS) => {
                "the array is read-only: find out why, mount it writable, and run the same command again"
            }
            _ => "check the array and its cable, mount it again, and run the same command again: it resumes",
        };
        Error::io(format!("Pack {}: cannot be written at byte {}", path.display(), done.token), error).next(next)
    })
}

fn wait_all(queue: &mut Patient, path: &Path) -> Result<()> {
    while queue.in_flight() > 0 {
        wait_one(queue, path)?;
    }
    Ok(())
}
