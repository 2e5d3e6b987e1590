//! The naive model: copies of what each source was at every moment that counts, and bytes compared with bytes.

use super::step::{Disk, Write};
use crate::common::disks::{noise_at, sparse};
use crate::common::{Dice, tool};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Smallest piece that a read of a disk that is being written to sees whole.
const PAGE: usize = 4096;

/// A source, and a copy of every state that it ever had.
pub struct Source {
    /// What is read by the seed.
    pub path: PathBuf,
    /// Its size.
    pub bytes: usize,
    /// The shipment's block size.
    pub block: usize,
    /// Numbered copies.
    copies: PathBuf,
    states: usize,
}

impl Source {
    /// Makes the source: runs of holes, zeros, text and noise.
    pub fn make(dir: &Path, name: &str, disk: &Disk, block: usize) -> Source {
        let path = dir.join(format!("{name}.img"));
        let copies = dir.join(format!("{name}.states"));
        std::fs::create_dir_all(&copies).unwrap();
        let bytes = disk.bytes as usize;
        sparse(&path, bytes as u64);
        let file = File::options().write(true).open(&path).unwrap();
        let mut dice = Dice::new(disk.seed.into());
        let mut at = 0;
        while at < bytes {
            let run = (1 + dice.below(3 * block as u64) as usize).min(bytes - at);
            match dice.below(5) {
                0 => {}
                1 => file.write_all_at(&vec![0; run], at as u64).unwrap(),
                2 => file
                    .write_all_at(&b"the same line again and again\n".repeat(run / 30 + 1)[..run], at as u64)
                    .unwrap(),
                _ => noise_at(&file, at as u64, run as u64, dice.below(u64::MAX)),
            }
            at += run;
        }
        let mut source = Source { path, bytes, block, copies, states: 0 };
        source.keep();
        source
    }

    /// Copies what it is now; its number.
    fn keep(&mut self) {
        tool("cp", ["--sparse=auto".as_ref(), self.path.as_os_str(), self.copy(self.states).as_os_str()]);
        self.states += 1;
    }
    fn copy(&self, state: usize) -> PathBuf {
        self.copies.join(state.to_string())
    }
    /// The number of the state that it is in.
    pub fn now(&self) -> usize {
        self.states - 1
    }
    /// A piece of what it was in `state`.
    fn piece(&self, state: usize, range: &Range<usize>) -> Vec<u8> {
        let mut piece = vec![0; range.len()];
        File::open(self.copy(state)).unwrap().read_exact_at(&mut piece, range.start as u64).unwrap();
        piece
    }
    /// Blocks of it.
    pub fn blocks(&self) -> usize {
        self.bytes.div_ceil(self.block)
    }
    /// Where block `block` lies.
    pub fn range(&self, block: usize) -> Range<usize> {
        block * self.block..((block + 1) * self.block).min(self.bytes)
    }

    /// Writes, and copies what it is then.
    pub fn write(&mut self, write: &Write) {
        if self.bytes == 0 {
            return;
        }
        let page_of = |at: u16| usize::from(at) * self.bytes.div_ceil(PAGE) / 65536 * PAGE;
        let span = |start: usize, len: usize| (start, len.min(self.bytes - start));
        let file = File::options().read(true).write(true).open(&self.path).unwrap();
        match *write {
            Write::Page { at, seed } => {
                let (start, len) = span(page_of(at), PAGE);
                noise_at(&file, start as u64, len as u64, seed.into());
            }
            Write::Block { at, seed } => {
                let (start, len) = span(page_of(at) / self.block * self.block, self.block);
                noise_at(&file, start as u64, len as u64, seed.into());
            }
            Write::Zeros { at, pages } => {
                let (start, len) = span(page_of(at), usize::from(pages) * PAGE);
                file.write_all_at(&vec![0; len], start as u64).unwrap();
            }
            Write::Same { at, pages } => {
                let (start, len) = span(page_of(at), usize::from(pages) * PAGE);
                let mut same = vec![0; len];
                file.read_exact_at(&mut same, start as u64).unwrap();
                file.write_all_at(&same, start as u64).unwrap();
            }
            Write::Hole { at, pages } => {
                let (start, len) = span(page_of(at), usize::from(pages) * PAGE);
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, flags, start as u64, len as u64).unwrap();
            }
        }
        self.keep();
    }
}

/// When a block that is on the array may have been read: the states of its source from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    pub from: usize,
    pub until: usize,
    /// It was read while nobody said that the source stands still.
    pub unasserted: bool,
}

/// What is known of a disk on the array: for each committed block when it was read.
#[derive(Debug, Clone, Default)]
pub struct Copying {
    pub reads: Vec<Option<Read>>,
    /// Its digest, once all of it is there.
    pub finished: Option<Finished>,
}

/// A disk that is complete on the array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub digest: String,
    pub asserted: bool,
}

impl Copying {
    pub fn new(blocks: usize) -> Copying {
        Copying { reads: vec![None; blocks], finished: None }
    }

    /// The bytes that must be there, if there is only one possibility.
    pub fn only(&self, source: &Source) -> Option<Vec<u8>> {
        let mut content = vec![0; source.bytes];
        for (block, read) in self.reads.iter().enumerate() {
            let (read, range) = ((*read)?, source.range(block));
            let first = source.piece(read.from, &range);
            if (read.from + 1..=read.until).any(|state| source.piece(state, &range) != first) {
                return None;
            }
            content[range].copy_from_slice(&first);
        }
        Some(content)
    }

    /// Whether every page of `found` is that page of the source in one of the states in which its block was read.
    pub fn check(&self, source: &Source, found: &[u8], what: &str) {
        assert_eq!(found.len(), source.bytes, "{what}: size");
        for (block, read) in self.reads.iter().enumerate() {
            let read = read.unwrap_or_else(|| panic!("{what}: block {block} is in no ledger"));
            let (range, Read { from, until, .. }) = (source.range(block), read);
            let states: Vec<Vec<u8>> = (from..=until).map(|state| source.piece(state, &range)).collect();
            for (page, bytes) in found[range].chunks(PAGE).enumerate() {
                let same = |state: &Vec<u8>| state.chunks(PAGE).nth(page) == Some(bytes);
                assert!(
                    states.iter().any(same),
                    "{what}: page {page} of block {block} is none of what the source was while it was read (states {from} to {until})",
                );
            }
        }
    }
}

/// What a scan must find: blocks unchanged, changed and zeroed.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Comparison {
    pub unchanged: u64,
    pub changed: u64,
    pub zeroed: u64,
    /// Blocks with other content.
    pub wanted: Vec<usize>,
}

/// Compares what was shipped with what is.
pub fn compare(source: &Source, shipped: &[u8]) -> Comparison {
    let now = std::fs::read(&source.path).unwrap();
    let mut found = Comparison::default();
    for block in 0..source.blocks() {
        let range = source.range(block);
        if now[range.clone()] == shipped[range.clone()] {
            found.unchanged += 1;
            continue;
        }
        found.wanted.push(block);
        if now[range].iter().all(|byte| *byte == 0) { found.zeroed += 1 } else { found.changed += 1 }
    }
    found
}
