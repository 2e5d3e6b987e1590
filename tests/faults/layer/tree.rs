//! Files and directories in memory, and the operations that change them. Cloning a tree costs one pointer a page.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::SystemTime;

/// Bytes that are written to the medium together, unless the page is torn.
pub const PAGE: usize = 4096;
/// Bytes that are never torn.
pub const SECTOR: usize = 512;

/// Number of a file or directory.
pub type Ino = u64;
/// The directory that is mounted.
pub const ROOT: Ino = 1;

/// One page; never changed in place, so that many trees share it.
pub type Page = Arc<[u8; PAGE]>;

/// What a file holds. A page that is absent reads as zeros and is a hole.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Content {
    pub bytes: u64,
    pub pages: BTreeMap<u64, Page>,
}

impl Content {
    /// Up to `len` bytes from `offset`; short at the end of the file.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.bytes.min(offset.saturating_add(len as u64));
        let mut bytes = Vec::with_capacity(len);
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let step = (PAGE - within).min((end - at) as usize);
            match self.pages.get(&page) {
                Some(page) => bytes.extend_from_slice(&page[within..within + step]),
                None => bytes.resize(bytes.len() + step, 0),
            }
            at += step as u64;
        }
        bytes
    }

    /// All of it.
    pub fn all(&self) -> Vec<u8> {
        self.read(0, self.bytes as usize)
    }

    fn put(&mut self, page: u64, within: usize, bytes: &[u8]) {
        let mut copy = self.pages.get(&page).map_or([0; PAGE], |page| **page);
        copy[within..within + bytes.len()].copy_from_slice(bytes);
        self.pages.insert(page, Arc::new(copy));
    }

    /// What lies beyond the end is gone: it must not come back when the file grows.
    pub fn trim(&mut self) {
        self.pages.split_off(&self.bytes.div_ceil(PAGE as u64));
        let tail = (self.bytes % PAGE as u64) as usize;
        let last = self.bytes / PAGE as u64;
        if tail > 0 && self.pages.get(&last).is_some_and(|page| page[tail..].iter().any(|byte| *byte != 0)) {
            self.put(last, tail, &vec![0; PAGE - tail]);
        }
    }

    /// SEEK_DATA and SEEK_HOLE; `None` where there is none up to the end.
    pub fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        if offset >= self.bytes {
            return None;
        }
        let mut page = offset / PAGE as u64;
        if data {
            let found = *self.pages.range(page..).next()?.0 * PAGE as u64;
            return (found < self.bytes).then_some(found.max(offset));
        }
        while self.pages.contains_key(&page) {
            page += 1;
        }
        // The end of the file counts as a hole.
        Some((page * PAGE as u64).clamp(offset, self.bytes))
    }
}

/// What a node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    File(Content),
    Dir(BTreeMap<OsString, Ino>),
    Link(OsString),
    /// A socket or FIFO, by the bits of its mode.
    Special,
}

/// A file or directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub kind: Kind,
    /// With the type bits.
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: SystemTime,
}

/// One change. What is written is cut at pages, so that each page decides alone what becomes of it.
#[derive(Clone, Debug)]
pub enum Op {
    /// `dir/name` comes to be `ino`: created, linked, or made.
    Enter {
        dir: Ino,
        name: OsString,
        ino: Ino,
    },
    /// `dir/name`, which was `ino`, goes.
    Leave {
        dir: Ino,
        name: OsString,
        ino: Ino,
    },
    /// `from` becomes `to`, in place of `replaced`.
    Rename {
        from: (Ino, OsString),
        to: (Ino, OsString),
        ino: Ino,
        replaced: Option<Ino>,
    },
    Write {
        ino: Ino,
        page: u64,
        within: usize,
        bytes: Vec<u8>,
    },
    /// The file ends at `bytes` from now on.
    Resize {
        ino: Ino,
        bytes: u64,
    },
    /// Whole pages become holes.
    Punch {
        ino: Ino,
        pages: std::ops::Range<u64>,
    },
}

/// A file system's contents.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Tree {
    /// By number; those without a name are there as long as somebody may still hold or restore them.
    pub nodes: BTreeMap<Ino, Node>,
}

impl Tree {
    /// The directory `ino`'s names.
    pub fn dir(&self, ino: Ino) -> Option<&BTreeMap<OsString, Ino>> {
        match &self.nodes.get(&ino)?.kind {
            Kind::Dir(names) => Some(names),
            _ => None,
        }
    }
    fn dir_mut(&mut self, ino: Ino) -> Option<&mut BTreeMap<OsString, Ino>> {
        match &mut self.nodes.get_mut(&ino)?.kind {
            Kind::Dir(names) => Some(names),
            _ => None,
        }
    }
    /// The file `ino`'s content.
    pub fn content(&self, ino: Ino) -> Option<&Content> {
        match &self.nodes.get(&ino)?.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }
    pub fn content_mut(&mut self, ino: Ino) -> Option<&mut Content> {
        match &mut self.nodes.get_mut(&ino)?.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }
    /// `dir/name`.
    pub fn entry(&self, dir: Ino, name: &OsStr) -> Option<Ino> {
        self.dir(dir)?.get(name).copied()
    }

    /// By path from the root.
    pub fn at(&self, path: impl AsRef<Path>) -> Option<Ino> {
        path.as_ref().components().filter(|c| !matches!(c, Component::RootDir | Component::CurDir)).try_fold(
            ROOT,
            |dir, component| match component {
                Component::Normal(name) => self.entry(dir, name),
                _ => None,
            },
        )
    }

    /// The file at `path`.
    pub fn file(&self, path: impl AsRef<Path>) -> Option<&Content> {
        self.content(self.at(path)?)
    }

    /// Every file below `path`, by its path relative to that.
    pub fn files(&self, path: impl AsRef<Path>) -> BTreeMap<std::path::PathBuf, &Content> {
        let mut found = BTreeMap::new();
        let mut todo: Vec<_> = self.at(path).into_iter().map(|ino| (std::path::PathBuf::new(), ino)).collect();
        while let Some((path, ino)) = todo.pop() {
            match self.nodes.get(&ino).map(|node| &node.kind) {
                Some(Kind::Dir(names)) => todo.extend(names.iter().map(|(name, ino)| (path.join(name), *ino))),
                Some(Kind::File(content)) => drop(found.insert(path, content)),
                _ => {}
            }
        }
        found
    }

    /// How many names lead to `ino`.
    pub fn names_of(&self, ino: Ino) -> u32 {
        let names = self.nodes.values().filter_map(|node| match &node.kind {
            Kind::Dir(names) => Some(names.values().filter(|other| **other == ino).count() as u32),
            _ => None,
        });
        names.sum()
    }

    /// Forgets what no name leads to.
    pub fn collect(&mut self) {
        let (mut reached, mut todo) = (std::collections::BTreeSet::new(), vec![ROOT]);
        while let Some(ino) = todo.pop() {
            if reached.insert(ino) {
                todo.extend(self.dir(ino).into_iter().flat_map(|names| names.values().copied()));
            }
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
    }

    /// Carries `op` out. A file is not trimmed: [`Op::Write`] may go beyond an end that only comes later.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Enter { dir, name, ino } => {
                if let Some(names) = self.dir_mut(*dir) {
                    names.insert(name.clone(), *ino);
                }
            }
            Op::Leave { dir, name, .. } => {
                if let Some(names) = self.dir_mut(*dir) {
                    names.remove(name);
                }
            }
            Op::Rename { from, to, ino, .. } => {
                if let Some(names) = self.dir_mut(from.0) {
                    names.remove(&from.1);
                }
                if let Some(names) = self.dir_mut(to.0) {
                    names.insert(to.1.clone(), *ino);
                }
            }
            Op::Write { ino, page, within, bytes } => {
                if let Some(content) = self.content_mut(*ino) {
                    content.put(*page, *within, bytes);
                }
            }
            Op::Resize { ino, bytes } => {
                if let Some(content) = self.content_mut(*ino) {
                    let shrinks = *bytes < content.bytes;
                    content.bytes = *bytes;
                    if shrinks {
                        content.trim();
                    }
                }
            }
            Op::Punch { ino, pages } => {
                if let Some(content) = self.content_mut(*ino) {
                    content.pages.retain(|page, _| !pages.contains(page));
                }
            }
        }
    }
}
