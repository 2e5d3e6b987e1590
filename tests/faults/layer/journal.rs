//! What a program sees, what is on stable storage, and every operation between the two.

use super::tree::{Ino, Kind, Node, Op, PAGE, ROOT, Tree};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

/// One write as it came, kept whatever becomes of it.
#[derive(Clone, Debug)]
pub struct Written(pub Vec<u8>);

/// A file system between two syncs.
#[derive(Clone)]
pub struct World {
    /// As every program sees it.
    pub now: Tree,
    /// What no power cut takes away. Nodes that have no name yet are in it, so that their data can be made durable.
    pub durable: Tree,
    /// Leads from `durable` to `now`, oldest first.
    pub journal: Vec<Op>,
    /// Everything that was ever written, also what a power cut took away since.
    pub written: Vec<Written>,
    next: Ino,
}

impl World {
    /// An empty one.
    pub fn new() -> World {
        let mut world = World {
            now: Tree::default(),
            durable: Tree::default(),
            journal: Vec::new(),
            written: Vec::new(),
            next: ROOT,
        };
        world.node(Kind::Dir(BTreeMap::new()), libc::S_IFDIR | 0o755, (0, 0));
        world
    }

    /// One with nothing but the root of an empty array, which is a file system of its own.
    pub fn with_array() -> World {
        let mut world = World::new();
        world.create(ROOT, OsStr::new(super::APART), Kind::Dir(BTreeMap::new()), libc::S_IFDIR | 0o755, (0, 0));
        world.settle();
        world
    }

    /// What the power cut left, and nothing else.
    pub fn of(tree: Tree) -> World {
        let next = tree.nodes.keys().next_back().map_or(ROOT, |last| last + 1);
        World { durable: tree.clone(), now: tree, journal: Vec::new(), written: Vec::new(), next }
    }

    fn node(&mut self, kind: Kind, mode: u32, owner: (u32, u32)) -> Ino {
        let ino = self.next;
        self.next += 1;
        let node = Node { kind, mode, owner, modified: SystemTime::now() };
        self.durable.nodes.insert(ino, node.clone());
        self.now.nodes.insert(ino, node);
        ino
    }

    fn push(&mut self, op: Op) {
        self.now.apply(&op);
        self.journal.push(op);
    }

    /// Makes a node and its name.
    pub fn create(&mut self, dir: Ino, name: &OsStr, kind: Kind, mode: u32, owner: (u32, u32)) -> Ino {
        let ino = self.node(kind, mode, owner);
        self.link(dir, name, ino);
        ino
    }
    /// Another name for `ino`.
    pub fn link(&mut self, dir: Ino, name: &OsStr, ino: Ino) {
        self.push(Op::Enter { dir, name: name.to_owned(), ino });
    }
    /// Takes a name away; whoever has the file open keeps it.
    pub fn remove(&mut self, dir: Ino, name: &OsStr, ino: Ino) {
        self.push(Op::Leave { dir, name: name.to_owned(), ino });
    }
    /// Renames, in place of what has the new name.
    pub fn rename(&mut self, from: (Ino, OsString), to: (Ino, OsString), ino: Ino) {
        let replaced = self.now.entry(to.0, &to.1);
        self.push(Op::Rename { from, to, ino, replaced });
    }

    /// Writes, growing the file where needed.
    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) {
        self.written.push(Written(bytes.to_vec()));
        let end = offset + bytes.len() as u64;
        if self.now.content(ino).is_some_and(|content| content.bytes < end) {
            self.push(Op::Resize { ino, bytes: end });
        }
        let mut at = 0;
        while at < bytes.len() {
            let place = offset + at as u64;
            let within = (place % PAGE as u64) as usize;
            let step = (PAGE - within).min(bytes.len() - at);
            self.push(Op::Write { ino, page: place / PAGE as u64, within, bytes: bytes[at..at + step].to_vec() });
            at += step;
        }
    }
    /// Cuts or extends.
    pub fn resize(&mut self, ino: Ino, bytes: u64) {
        self.push(Op::Resize { ino, bytes });
    }
    /// Makes a range read as zeros, whole pages of it as holes; does not grow the file.
    pub fn punch(&mut self, ino: Ino, offset: u64, len: u64) {
        let Some(bytes) = self.now.content(ino).map(|content| content.bytes) else { return };
        let end = (offset + len).min(bytes.next_multiple_of(PAGE as u64));
        let (first, last) = (offset.div_ceil(PAGE as u64), end / PAGE as u64);
        let ragged = |world: &mut World, from: u64, to: u64| {
            if from < to {
                let within = (from % PAGE as u64) as usize;
                let bytes = vec![0; (to - from) as usize];
                world.push(Op::Write { ino, page: from / PAGE as u64, within, bytes });
            }
        };
        if first >= last {
            let middle = (first * PAGE as u64).min(end);
            ragged(self, offset, middle);
            return ragged(self, middle.max(offset), end);
        }
        ragged(self, offset, first * PAGE as u64);
        self.push(Op::Punch { ino, pages: first..last });
        ragged(self, last * PAGE as u64, end);
    }

    /// fsync or fdatasync of a file.
    pub fn sync_file(&mut self, ino: Ino) {
        self.make_durable(|op| op.content_of() == Some(ino));
        if let Some(content) = self.durable.content_mut(ino) {
            content.trim();
        }
    }

    /// fsync of a directory.
    pub fn sync_dir(&mut self, dir: Ino) {
        let mut wanted: Vec<bool> = self.journal.iter().map(|op| op.dirs().contains(&dir)).collect();
        // Newest first: what one needs may need something older in turn.
        for at in (0..self.journal.len()).rev() {
            if wanted[at] {
                for (wanted, earlier) in wanted.iter_mut().zip(&self.journal[..at]) {
                    *wanted |= needs(&self.journal[at], earlier);
                }
            }
        }
        let mut at = 0;
        self.make_durable(|_| {
            at += 1;
            wanted[at - 1]
        });
    }

    fn make_durable(&mut self, mut which: impl FnMut(&Op) -> bool) {
        let (durable, mut kept) = (&mut self.durable, Vec::new());
        for op in self.journal.drain(..) {
            if which(&op) { durable.apply(&op) } else { kept.push(op) }
        }
        self.journal = kept;
    }

    /// All that was ever done is durable: the start of a test.
    pub fn settle(&mut self) {
        self.now.collect();
        *self = World::of(self.now.clone());
    }
}

impl Op {
    /// The file whose content it changes.
    pub fn content_of(&self) -> Option<Ino> {
        match self {
            Op::Write { ino, .. } | Op::Resize { ino, .. } | Op::Punch { ino, .. } => Some(*ino),
            _ => None,
        }
    }
    fn names(&self) -> Vec<(Ino, &OsStr)> {
        match self {
            Op::Enter { dir, name, .. } | Op::Leave { dir, name, .. } => vec![(*dir, name)],
            Op::Rename { from, to, .. } => vec![(from.0, &from.1), (to.0, &to.1)],
            _ => Vec::new(),
        }
    }
    /// The directories whose names it changes.
    pub fn dirs(&self) -> Vec<Ino> {
        self.names().into_iter().map(|(dir, _)| dir).collect()
    }
    fn nodes(&self) -> Vec<Ino> {
        match self {
            Op::Enter { ino, .. } | Op::Leave { ino, .. } => vec![*ino],
            Op::Rename { ino, replaced, .. } => std::iter::once(*ino).chain(*replaced).collect(),
            _ => Vec::new(),
        }
    }
}

/// Whether no file system keeps `later`, a change of names, without `earlier`: they are about the same name or the same node
/// (the last name of a file does not go before its new one is there), or `later` removes the directory of `earlier`.
pub fn needs(later: &Op, earlier: &Op) -> bool {
    let (names, nodes) = (later.names(), later.nodes());
    !names.is_empty()
        && (earlier.names().iter().any(|name| names.contains(name))
            || earlier.nodes().iter().any(|node| nodes.contains(node))
            || matches!(later, Op::Leave { ino, .. } if earlier.dirs().contains(ino)))
}
