//! Read-back: after the flush, by a new handle, from the medium. Leaves of what is there are compared with the manifest's.

use super::Volume;
use super::leaves::Leaves;
use crate::copy::fetch::{Cursor, Damage, Wanted};
use crate::copy::patience::Patient;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Result};
use crate::io::{Completion, Engine, Pool};
use crate::monitor::Progress;
use motiongear_manifest::catalogue::{BlockRow, Catalogue};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::{Leaf, leaf};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

/// How much is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every block.
    #[default]
    Full,
    /// About one block in sixteen, scattered; every block of a disk of up to 64.
    Sample,
    /// Only what is withheld and released at the end.
    None,
}

impl Mode {
    /// As typed.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Full => "full",
            Mode::Sample => "sample",
            Mode::None => "none",
        }
    }
    /// Reads the word.
    ///
    /// # Errors
    /// A usage error that shows the words.
    pub fn parse(word: &str) -> Result<Mode> {
        match word {
            "full" => Ok(Mode::Full),
            "sample" => Ok(Mode::Sample),
            "none" => Ok(Mode::None),
            other => Err(Error::usage(format!("Read-back '{other}': expected full, sample or none"))),
        }
    }

    /// Whether `block` of a disk of `blocks` is read. The scatter (Fibonacci hashing) hits every region alike and is the
    /// same in every run, so that a resumed sample stays one.
    fn reads(self, block: u64, blocks: u64) -> bool {
        match self {
            Mode::Full => true,
            Mode::None => false,
            Mode::Sample => blocks <= 64 || block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 == 0,
        }
    }
}

/// What read-back found so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Blocks compared with what the medium holds, holes included.
    pub re_read: u64,
    /// Of these, blocks that the file system calls holes: they read as zeros without a read.
    pub holes: u64,
    /// Blocks believed because their write and its flush succeeded.
    pub trusted: u64,
}

/// One read-back of one disk.
pub struct ReadBack<'a> {
    /// What is read.
    pub volume: &'a dyn Volume,
    /// Which rows it must equal.
    pub wanted: &'a Wanted,
    /// The manifest.
    pub catalogue: &'a Catalogue,
    /// Whether records are encrypted.
    pub encrypted: bool,
    /// How much.
    pub mode: Mode,
    /// Blocks known not to be there (damaged): their leaves are taken, not compared.
    pub absent: &'a BTreeSet<u64>,
    /// How bytes move.
    pub engine: Engine,
    /// Pauses and stops it.
    pub throttle: &'a Throttle,
    /// Leaves of zero blocks.
    pub zeros: &'a ZeroLeaves,
    /// Where `done` is counted.
    pub progress: &'a Progress,
}

/// Rows between two commits.
const COMMIT_ROWS: usize = 4096;

/// How a block's leaf comes to be known.
enum Finding {
    /// Withheld: zeros were written and flushed.
    Withheld(Leaf),
    /// Believed.
    Trusted(Leaf),
    /// A hole.
    Hole(Leaf),
    /// Read.
    Read(Leaf),
}

struct Span {
    first: u64,
    blocks: u64,
}

/// The reading half: spans of blocks by one queue, a few under way.
struct Spans<'a> {
    volume: &'a dyn Volume,
    queue: Patient,
    pool: Pool,
    spans: VecDeque<Span>,
}

/// Bytes of one read.
const SPAN_BYTES: u64 = 2 << 20;

impl ReadBack<'_> {
    /// Reads back and reports every [`COMMIT_ROWS`] rows: (blocks from the front that are done, counts, mismatches since the
    /// last report). Leaves are durable when it reports. Counts go on from `counts`.
    ///
    /// # Errors
    /// The volume cannot be read (a block that cannot be read is a mismatch, not an error), an interruption, or what
    /// `report` returns.
    pub fn run(
        &self,
        mut counts: Counts,
        leaves: Option<&mut Leaves>,
        report: &mut dyn FnMut(u64, &Counts, Vec<Damage>) -> Result<()>,
    ) -> Result<Counts> {
        let geometry = &self.wanted.geometry;
        let mut cursor = Cursor::new(self.catalogue, self.wanted, self.encrypted);
        let mut spans = Spans::new(self.volume, self.engine, geometry)?;
        let mut holes = Holes { volume: self.volume, data: None };
        let mut leaves = leaves;
        let mut rows: VecDeque<BlockRow> = VecDeque::new();
        loop {
            self.throttle.check()?;
            rows.clear();
            while rows.len() < COMMIT_ROWS
                && let Some(row) = cursor.take()?
            {
                rows.push_back(row);
            }
            let Some(last) = rows.back().map(|row| row.block) else { return Ok(counts) };
            let found = self.findings(&rows, &mut spans, &mut holes)?;
            let mut mismatches = Vec::new();
            for row in &rows {
                let length = geometry.len(row.block);
                self.progress.disks[self.wanted.slot].done.fetch_add(u64::from(length), Ordering::Relaxed);
                let mut mismatch = |why: String| {
                    let offset = geometry.offset(row.block);
                    mismatches.push(Damage {
                        block: row.block,
                        offset,
                        bytes: length,
                        file: None,
                        file_offset: None,
                        why,
                        untrusted: false,
                    });
                };
                let there = match found.get(&row.block) {
                    Some(Ok(Finding::Withheld(leaf))) => *leaf,
                    Some(Ok(Finding::Trusted(leaf))) => {
                        counts.trusted += 1;
                        *leaf
                    }
                    Some(Ok(Finding::Hole(leaf) | Finding::Read(leaf))) if self.absent.contains(&row.block) => *leaf,
                    Some(Ok(finding @ (Finding::Hole(leaf) | Finding::Read(leaf)))) => {
                        if *leaf == row.leaf {
                            counts.re_read += 1;
                            counts.holes += u64::from(matches!(finding, Finding::Hole(_)));
                        } else {
                            mismatch(format!("read-back: expected leaf {}, found {leaf}", row.leaf));
                        }
                        *leaf
                    }
                    Some(Err(why)) if self.absent.contains(&row.block) => {
                        // Nothing is known of it; all zeros is no leaf of anything.
                        tracing::debug!(block = row.block, why, "a damaged block cannot be read back either");
                        Leaf::from_bytes([0; 32])
                    }
                    Some(Err(why)) => {
                        mismatch(format!("read-back: {why}"));
                        Leaf::from_bytes([0; 32])
                    }
                    None => {
                        return Err(Error::failed(format!(
                            "Read-back of {}: block {} was lost",
                            self.wanted.name, row.block
                        )));
                    }
                };
                if let Some(leaves) = &mut leaves {
                    leaves.put(row.block, there)?;
                }
            }
            if let Some(leaves) = &mut leaves {
                leaves.sync()?;
            }
            report(last + 1, &counts, mismatches)?;
        }
    }

    fn withheld(&self, block: u64) -> bool {
        block == 0 || block + 1 == self.wanted.geometry.blocks()
    }

    fn findings(
        &self,
        rows: &VecDeque<BlockRow>,
        spans: &mut Spans<'_>,
        holes: &mut Holes<'_>,
    ) -> Result<BTreeMap<u64, Result<Finding, String>>> {
        let geometry = &self.wanted.geometry;
        let mut found = BTreeMap::new();
        let mut pending: Option<Span> = None;
        let most = (SPAN_BYTES / u64::from(geometry.block_bytes())).max(1);
        for row in rows {
            let (offset, length) = (geometry.offset(row.block), geometry.len(row.block));
            let zero = || self.zeros.leaf(row.block, length);
            let finding = if self.withheld(row.block) {
                Finding::Withheld(zero()?)
            } else if !self.absent.contains(&row.block) && !self.mode.reads(row.block, geometry.blocks()) {
                Finding::Trusted(row.leaf)
            } else if holes.cover(offset, u64::from(length))? {
                Finding::Hole(zero()?)
            } else {
                match &mut pending {
                    Some(span) if span.first + span.blocks == row.block && span.blocks < most => span.blocks += 1,
                    _ => {
                        if let Some(span) = pending.replace(Span { first: row.block, blocks: 1 }) {
                            self.throttle.admit(spans.bytes(geometry, &span))?;
                            spans.start(geometry, span, &mut found)?;
                        }
                    }
                }
                continue;
            };
            found.insert(row.block, Ok(finding));
        }
        if let Some(span) = pending {
            self.throttle.admit(spans.bytes(geometry, &span))?;
            spans.start(geometry, span, &mut found)?;
        }
        while !spans.spans.is_empty() {
            spans.finish(geometry, &mut found)?;
        }
        Ok(found)
    }
}

impl<'a> Spans<'a> {
    fn new(volume: &'a dyn Volume, engine: Engine, geometry: &Geometry) -> Result<Self> {
        let bytes = u64::from(geometry.block_bytes()).max(SPAN_BYTES);
        // Two disks are read back at once: 2 × 2 × 16 MiB at the largest block size.
        let count = if bytes > 4 << 20 { 2 } else { 4 };
        let pool = Pool::new(usize::try_from(bytes).unwrap_or(usize::MAX), count)?;
        Ok(Spans { volume, queue: volume.reader(engine, count)?, pool, spans: VecDeque::new() })
    }

    fn bytes(&self, geometry: &Geometry, span: &Span) -> u64 {
        let end = geometry.offset(span.first + span.blocks - 1) + u64::from(geometry.len(span.first + span.blocks - 1));
        end - geometry.offset(span.first)
    }

    fn start(
        &mut self,
        geometry: &Geometry,
        span: Span,
        found: &mut BTreeMap<u64, Result<Finding, String>>,
    ) -> Result<()> {
        let buffer = loop {
            match self.pool.try_take() {
                Some(buffer) => break buffer,
                None => self.finish(geometry, found)?,
            }
        };
        let length = usize::try_from(self.bytes(geometry, &span)).unwrap_or(usize::MAX);
        self.queue.read(span.first, geometry.offset(span.first), buffer, length);
        self.spans.push_back(span);
        Ok(())
    }

    fn finish(&mut self, geometry: &Geometry, found: &mut BTreeMap<u64, Result<Finding, String>>) -> Result<()> {
        let lost = || Error::failed("Read-back: a read was lost");
        let Completion { token, buffer, result, .. } = self.queue.wait()?.ok_or_else(lost)?;
        let at = self.spans.iter().position(|span| span.first == token).ok_or_else(lost)?;
        let span = self.spans.remove(at).ok_or_else(lost)?;
        let bytes = match (result, buffer) {
            (Ok(()), Some(bytes)) => bytes,
            (Ok(()), None) => return Err(lost()),
            (Err(error), None) => return Err(Error::io("Read-back", error)),
            (Err(error), _) if self.volume.is_lost() => return Err(self.lost(error)),
            (Err(error), Some(buffer)) => return self.one_by_one(geometry, span, buffer, &error, found),
        };
        for (at, block) in bytes.chunks(geometry.block_bytes() as usize).enumerate() {
            let number = span.first + at as u64;
            found.insert(number, Ok(Finding::Read(leaf(geometry.offset(number), block))));
        }
        Ok(())
    }

    /// Not one block is damaged: nothing can be read at all.
    fn lost(&self, error: std::io::Error) -> Error {
        Error::io(format!("Volume {}: reading it back", self.volume.name()), error)
            .next("check the volume's server, then run the same command again: it resumes")
    }

    /// One bad sector must cost one block: reads the blocks of a failed span one by one. Other reads are still under way, and
    /// may come back first.
    fn one_by_one(
        &mut self,
        geometry: &Geometry,
        span: Span,
        mut buffer: crate::io::Buffer,
        error: &std::io::Error,
        found: &mut BTreeMap<u64, Result<Finding, String>>,
    ) -> Result<()> {
        if span.blocks == 1 {
            found.insert(span.first, Err(error.to_string()));
            return Ok(());
        }
        while !self.spans.is_empty() {
            self.finish(geometry, found)?;
        }
        for block in span.first..span.first + span.blocks {
            let length = geometry.len(block) as usize;
            self.queue.read(block, geometry.offset(block), buffer, length);
            let Some(Completion { buffer: Some(back), result, .. }) = self.queue.wait()? else {
                return Err(Error::failed("Read-back: a read was lost"));
            };
            let finding = match result {
                Ok(()) => Ok(Finding::Read(leaf(geometry.offset(block), &back))),
                Err(error) if self.volume.is_lost() => return Err(self.lost(error)),
                Err(error) => Err(error.to_string()),
            };
            found.insert(block, finding);
            buffer = back;
        }
        Ok(())
    }
}

/// Asks for holes, remembering the last answer.
struct Holes<'a> {
    volume: &'a dyn Volume,
    /// From where the last answer holds, and the next data from there on.
    data: Option<(u64, Option<(u64, u64)>)>,
}

impl Holes<'_> {
    /// Whether the file system says that a range is a hole.
    fn cover(&mut self, offset: u64, bytes: u64) -> Result<bool> {
        let stale = match self.data {
            None => true,
            Some((from, _)) if offset < from => true,
            Some((_, Some((_, end)))) => end <= offset,
            Some((_, None)) => false,
        };
        if stale {
            self.data = Some((offset, self.volume.next_data(offset)?));
        }
        Ok(match self.data {
            Some((_, Some((start, _)))) => start >= offset + bytes,
            Some((_, None)) => true,
            None => false,
        })
    }
}
