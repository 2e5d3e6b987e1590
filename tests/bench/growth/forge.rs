//! Three hundred disks that nobody has: their rows, and packs of the right length that are holes.

use super::common::{Dice, sparse};
use super::measure::Figures;
use super::site::Site;
use motiongear::array::Array;
use motiongear::array::packs::close_open_packs;
use motiongear::copy::zeros::ZeroLeaves;
use motiongear::source::{Source, SysRoot};
use motiongear_manifest::catalogue::{
    Batch, BlockRow, BlockState, Catalogue, Generation, NewGeneration, PackProgress, PackState, Place, UnreadableRange,
};
use motiongear_manifest::documents::seal::{Basis, Consistency};
use motiongear_manifest::geometry::{Geometry, PAGE_BYTES};
use motiongear_manifest::pack::{LEAF_BYTES, MAX_PACK_BYTES};
use motiongear_manifest::record::{Codec, TAG_BYTES, record_bytes};
use motiongear_manifest::tree::{Digest, Leaf, Merger};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Disks and machines, as many as a branch of 50 TB may have.
const DISKS: u64 = 300;
const MACHINES: u64 = 40;
/// Sizes as they are found, in GiB; their shares are kept at every scale.
const SIZES: [u64; 15] = [40, 60, 80, 100, 100, 120, 150, 200, 200, 250, 300, 300, 500, 500, 1000];
/// As `seed` does: disks read at once; a batch is cut at so many bytes of data, or so many rows.
const AT_ONCE: usize = 4;
const BATCH_BYTES: u64 = 16 << 20;
const BATCH_ROWS: usize = 16_384;
/// Rows after which the rate is said.
const LAP_ROWS: u64 = 5_000_000;
const BLOCK_BYTES: u32 = 1 << 20;
/// Of a million blocks, how many lie in free space, and how many have a bad sector.
const ZERO_PER_MILLION: u64 = 300_000;
const UNREADABLE_PER_MILLION: u64 = 5;
/// Blocks of free space that lie together, about.
const ZERO_RUN: u64 = 200;
/// Zero blocks below this one have the right leaf, so that an import's first blocks are good; computing all would take an hour.
const TRUE_ZEROS: u64 = 2048;

/// A disk while its rows are made.
struct Forged {
    generation: Generation,
    geometry: Geometry,
    next: u64,
    zeros_left: u64,
}

/// The pack that grows, and those before it.
struct Packs {
    array: Array,
    number: u32,
    bytes: u64,
    records: u64,
    /// Of the size that a real one has by then.
    tree: Merger,
}

/// Writes rows through [`Catalogue::commit`] and says how fast: at most `piece` of them, and the rest when it is called again,
/// as a seed goes on that was interrupted. Whether all are written.
pub fn disks(site: &Site, blocks: u64, piece: u64, batch_blocks: Option<u64>, figures: &mut Figures) -> bool {
    let mut catalogue = Catalogue::open_live(&site.manifest()).unwrap();
    let array = Array::new(Path::new(site.array()));
    if catalogue.disks().unwrap().len() == 1 {
        close_open_packs(&array, &mut catalogue).unwrap();
        begin(site, &catalogue, blocks);
    }
    let zeros = ZeroLeaves::open(&site.state, BLOCK_BYTES).unwrap();
    let mut waiting = unfinished(&catalogue);
    let mut packs = Packs::open(array, &catalogue);
    let mut dice = Dice::new(u64::from(packs.number) << 32 | packs.records);
    let mut open: VecDeque<Forged> = waiting.drain(..AT_ONCE.min(waiting.len())).collect();
    let cut = batch_blocks.map_or(BATCH_BYTES, |blocks| blocks * u64::from(BLOCK_BYTES));
    let (mut batch, mut batch_bytes) = (new_batch(), 0);
    let (mut rows, mut batches) = (0u64, 0u64);
    let (mut committing, mut merging) = (Duration::ZERO, Duration::ZERO);
    let (mut lap, mut lap_rows, mut lap_commit) = (Instant::now(), 0, Duration::ZERO);
    while rows < piece
        && let Some(mut disk) = open.pop_front()
    {
        let row = disk.row(&mut dice, &zeros, &mut packs, &mut catalogue, &mut batch);
        if row.place.is_some() {
            batch_bytes += u64::from(BLOCK_BYTES);
        }
        batch.rows.push((disk.generation.id, row));
        let finished = disk.next == disk.geometry.blocks();
        rows += 1;
        if batch_bytes >= cut || batch.rows.len() >= BATCH_ROWS || finished || rows == piece {
            batch.packs.push(packs.progress());
            let since = Instant::now();
            catalogue.commit(&batch).unwrap();
            committing += since.elapsed();
            batches += 1;
            (batch, batch_bytes) = (new_batch(), 0);
        }
        if finished {
            // As seed does when a disk is complete.
            let since = Instant::now();
            let (_, merged) = catalogue.summarise(&disk.generation, &disk.geometry, true).unwrap();
            let digest = merged.expect("disks of several blocks");
            catalogue.finish_generation(disk.generation.id, jiff::Timestamp::now(), &digest).unwrap();
            merging += since.elapsed();
            open.extend(waiting.pop_front());
        } else {
            open.push_back(disk);
        }
        if rows.is_multiple_of(LAP_ROWS) || rows == piece || open.is_empty() {
            let rate = (rows - lap_rows) as f64 / (committing - lap_commit).as_secs_f64();
            println!("  {rows} rows: {rate:.0} rows/s; with all that makes them {}", seconds(lap.elapsed()));
            (lap, lap_rows, lap_commit) = (Instant::now(), rows, committing);
        }
    }
    let rate = rows as f64 / committing.as_secs_f64();
    figures.say("inserts", format!("{rate:.0} rows/s; {batches} batches of {:.1} rows", rows as f64 / batches as f64));
    figures.say("merging the digests of disks", seconds(merging));
    let complete = open.is_empty();
    if complete {
        catalogue.commit(&Batch { packs: vec![packs.closed()], ..new_batch() }).unwrap();
    }
    complete
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn new_batch() -> Batch {
    Batch { block_bytes: BLOCK_BYTES, ..Batch::default() }
}

/// Machines, disks and generations, as a seed enters them; each with a source that is a file of holes.
fn begin(site: &Site, catalogue: &Catalogue, blocks: u64) {
    let at = jiff::Timestamp::now();
    let sources = site.join("sources");
    std::fs::create_dir_all(&sources).unwrap();
    let machine = |n: u64| catalogue.add_machine(Uuid::new_v4(), &format!("core{n:02}"), "{}").unwrap();
    let machines: Vec<u32> = (0..MACHINES).map(machine).collect();
    let disks = DISKS.min(blocks / 100);
    let weights: u64 = (0..disks).map(|n| SIZES[n as usize % SIZES.len()]).sum();
    let mut left = blocks;
    for n in 0..disks {
        let share = blocks * SIZES[n as usize % SIZES.len()] / weights;
        let count = if n + 1 == disks { left } else { share.max(2) };
        left -= count;
        // Most disks are no multiple of 1 MiB.
        let bytes = count * u64::from(BLOCK_BYTES) - (n % 7) * 4096;
        let name = format!("disk{n:03}");
        let path = sources.join(format!("{name}.img"));
        sparse(&path, bytes);
        let source = Source::open_path(&path, &SysRoot::default()).unwrap();
        let identity = serde_json::to_string(&source.identity).unwrap();
        let facts = serde_json::to_string(&source.facts).unwrap();
        let machine = machines[(n % MACHINES) as usize];
        let disk = catalogue.add_disk(Uuid::new_v4(), machine, &name, &identity, &facts).unwrap();
        let new = NewGeneration {
            disk,
            number: 0,
            bytes,
            consistency: Consistency::Fuzzy,
            basis: Basis::None,
            point_in_time: None,
            source: path.display().to_string(),
        };
        catalogue.begin_generation(&new, at).unwrap();
    }
    catalogue.add_pack(1).unwrap();
}

/// The disks that lack rows, those first that have some.
fn unfinished(catalogue: &Catalogue) -> VecDeque<Forged> {
    let forged = |generation: Generation| {
        let geometry = Geometry::new(generation.bytes, BLOCK_BYTES).unwrap();
        // By halves: rows are written in order.
        let has = |block: u64| !catalogue.rows(&generation, &geometry, true, block, 1).unwrap().is_empty();
        let (mut next, mut end) = (0, geometry.blocks());
        while next < end {
            let middle = (next + end) / 2;
            if has(middle) { next = middle + 1 } else { end = middle }
        }
        Forged { generation, geometry, next, zeros_left: 0 }
    };
    let generations = catalogue.generations().unwrap().into_iter().filter(|g| g.finished_at.is_none());
    generations.map(forged).collect()
}

impl Forged {
    fn row(
        &mut self,
        dice: &mut Dice,
        zeros: &Arc<ZeroLeaves>,
        packs: &mut Packs,
        catalogue: &mut Catalogue,
        batch: &mut Batch,
    ) -> BlockRow {
        let block = self.next;
        self.next += 1;
        let bytes = self.geometry.len(block);
        if self.zeros_left == 0 && dice.below(1_000_000) < ZERO_PER_MILLION / ZERO_RUN {
            self.zeros_left = dice.below(2 * ZERO_RUN * 1_000_000 / (1_000_000 - ZERO_PER_MILLION));
        }
        if self.zeros_left > 0 {
            self.zeros_left -= 1;
            let leaf = if block < TRUE_ZEROS { zeros.leaf(block, bytes).unwrap() } else { some_leaf(dice) };
            BlockRow { block, leaf, state: BlockState::Zero, place: None }
        } else {
            let unreadable = dice.below(1_000_000) < UNREADABLE_PER_MILLION;
            if unreadable {
                let offset = self.geometry.offset(block) + 4096 * dice.below(u64::from(bytes) / 4096);
                batch.unreadable.push((self.generation.id, UnreadableRange { offset, bytes: 4096 }));
            }
            let state = if unreadable { BlockState::Unreadable } else { BlockState::Stored };
            let place = Some(packs.place(dice, bytes, catalogue, batch));
            BlockRow { block, leaf: some_leaf(dice), state, place }
        }
    }
}

fn some_leaf(dice: &mut Dice) -> Leaf {
    let mut bytes = [0; 32];
    bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&dice.below(u64::MAX).to_le_bytes()));
    Leaf::from_bytes(bytes)
}

impl Packs {
    fn open(array: Array, catalogue: &Catalogue) -> Packs {
        let last = catalogue.packs().unwrap().pop().unwrap();
        let tree = last.tree.map_or_else(Merger::new, |tree| Merger::load(&tree).unwrap());
        Packs { array, number: last.number, bytes: last.bytes.max(PAGE_BYTES.into()), records: last.records, tree }
    }

    /// Room for a record: one block in five does not compress, the others to between a quarter and all of their length.
    fn place(&mut self, dice: &mut Dice, bytes: u32, catalogue: &mut Catalogue, batch: &mut Batch) -> Place {
        let (codec, packed) = match dice.below(5) {
            0 => (Codec::None, bytes),
            _ => (Codec::Zstd, bytes / 4 + dice.below(u64::from(bytes) * 3 / 4 - 1) as u32),
        };
        let stored_bytes = packed + TAG_BYTES;
        let length = record_bytes(stored_bytes);
        if self.bytes + length > MAX_PACK_BYTES {
            let closed = self.closed();
            batch.packs.push(closed);
            self.number = catalogue.add_pack(1).unwrap();
            (self.bytes, self.records, self.tree) = (PAGE_BYTES.into(), 0, Merger::new());
        }
        let place = Place { pack: self.number, offset: self.bytes, stored_bytes, codec };
        self.bytes += length;
        self.records += 1;
        while self.tree.leaves() < self.bytes / LEAF_BYTES {
            self.tree.push(some_leaf(dice));
        }
        place
    }

    fn progress(&self) -> PackProgress {
        let digest = PackState::Open(self.tree.save());
        PackProgress { pack: self.number, bytes: self.bytes, records: self.records, digest }
    }

    /// The file is made only now: a hole of the right length, with a digest that is not its own.
    fn closed(&self) -> PackProgress {
        sparse(&self.array.pack(self.number), self.bytes);
        let digest = PackState::Closed(Digest::of(&self.number.to_le_bytes()));
        PackProgress { digest, ..self.progress() }
    }
}
