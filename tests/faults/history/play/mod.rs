//! Plays a history with the real binary, and holds every outcome against the model.
//!
//! `running` how the binary is run; `ledger` what is on record; then what is done, at the branch (`seeding`, `shipping`, `scanning`)
//! and at the data centre (`centre`).

mod centre;
mod ledger;
mod running;
mod scanning;
mod seeding;
mod shipping;

use crate::common::run::Motiongear;
use crate::common::{Branch, json_file};
use crate::faults::history::model::{Copying, Finished, Source};
use crate::faults::history::step::{Disk, History, Readback, Run, Step, Write};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What takes longer hangs, on however slow a machine.
const HANGS: Duration = Duration::from_secs(300);

/// How far the shipment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prepared,
    Seeding,
    Sealed,
    Dispatched,
}

/// A disk as the last seal names it.
#[derive(Debug, Clone)]
struct Shipped {
    copying: Copying,
    finished: Finished,
    /// Its bytes, as soon as they are known.
    content: Option<Vec<u8>>,
}

/// What lies where a disk's volume belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Volume {
    Absent,
    /// Data of somebody else.
    Foreign,
    /// An import was interrupted; whether `--overwrite` was given, and must be given again.
    Partial {
        overwrite: bool,
    },
    /// The disk of this seal, by count.
    Done(usize),
}

/// How a run of the binary ended.
enum Ended {
    Done(Value),
    Refused,
    Interrupted,
}

/// A disk in the live manifest.
#[derive(Debug, Default)]
struct Entered {
    excluded: bool,
    finished: bool,
    consistency: String,
    digest: String,
    blocks: BTreeSet<usize>,
}

pub struct World {
    branch: Branch,
    disks: Vec<Disk>,
    sources: Vec<Source>,
    copying: Vec<Copying>,
    /// State directories of the two hosts that the shipment may move between, and which one has it.
    hosts: [PathBuf; 2],
    host: usize,
    moves: usize,
    centre: PathBuf,
    phase: Phase,
    verified: bool,
    seals: usize,
    last_seal: Option<String>,
    shipped: BTreeMap<usize, Shipped>,
    volumes: Vec<Volume>,
    restored: BTreeSet<usize>,
    /// Interruptions that came before the end.
    pub interrupted: u64,
}

/// Plays `history`; returns how many runs were interrupted.
pub fn play(history: &History) -> u64 {
    let mut world = World::new(history);
    for (number, step) in history.steps.iter().enumerate() {
        world.step(step);
        world.ledger_tells_the_truth(&format!("step {number}, {step:?}"));
    }
    world.end();
    world.interrupted
}

impl World {
    fn new(history: &History) -> World {
        let mut branch = Branch::new();
        let block = history.block_kib as usize * 1024;
        let size = format!("{}KiB", history.block_kib);
        let hosts = ["host-a", "host-b"].map(|name| branch.place.join(name));
        branch.state = hosts[0].clone();
        let mut arguments = vec!["--block-size", &size];
        arguments.extend(history.plaintext.then_some("--plaintext"));
        branch.init(&arguments);
        let dir = branch.place.dir("sources");
        branch.place.dir("restored");
        // A ledger that is made is no change that a refusal could make.
        for state in [&hosts[0], &hosts[1], &branch.place.join("centre")] {
            Motiongear::new(state).args(["ledger", "show"]).run().ok();
        }
        let make = |(number, disk): (usize, &Disk)| Source::make(&dir, &format!("d{number}"), disk, block);
        let sources: Vec<Source> = history.disks.iter().enumerate().map(make).collect();
        World {
            copying: sources.iter().map(|source| Copying::new(source.blocks())).collect(),
            volumes: vec![Volume::Absent; sources.len()],
            disks: history.disks.clone(),
            centre: branch.place.join("centre"),
            branch,
            sources,
            hosts,
            host: 0,
            moves: 0,
            phase: Phase::Prepared,
            verified: false,
            seals: 0,
            last_seal: None,
            shipped: BTreeMap::new(),
            restored: BTreeSet::new(),
            interrupted: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        let disk = |number: u8| usize::from(number) % self.disks.len();
        match step {
            Step::Write { disk: number, writes } => {
                let number = disk(*number);
                writes.iter().for_each(|write| self.sources[number].write(write));
            }
            Step::Seed { disks, asserted, reopen, paused, during, run } => {
                let mut chosen: Vec<usize> = (0..self.disks.len()).filter(|n| disks >> (n % 8) & 1 == 1).collect();
                if chosen.is_empty() {
                    chosen = (0..self.disks.len()).collect();
                }
                let during: Vec<(usize, Write)> = during.iter().map(|(n, write)| (disk(*n), write.clone())).collect();
                self.seed(&chosen, *asserted, *reopen, *paused, &during, run);
            }
            Step::Move { cut } => self.move_ledger(*cut),
            Step::Seal { without, cut } => self.seal(*without, *cut),
            Step::Verify { identity } => self.verify(*identity),
            Step::Dispatch => self.dispatch(),
            Step::Stranger => self.stranger(),
            Step::Impostor { disk: number, larger, reopen } => self.impostor(disk(*number), *larger, *reopen),
            Step::Foreign { disk: number, kib } => self.foreign(disk(*number), *kib),
            Step::Import { machine, disk, readback, overwrite, run } => {
                self.import(*machine, *disk, *readback, *overwrite, run)
            }
            Step::Restore { disk: number, overwrite, run } => self.restore(disk(*number), *overwrite, run),
            Step::Scan { machine, disk, run } => self.scan(*machine, *disk, run),
        }
    }

    /// Whatever was cut short is finished, sealed, imported and compared.
    fn end(&mut self) {
        let all: Vec<usize> = (0..self.disks.len()).collect();
        let calm = Run { threads: false, slow: 0, cut: None };
        if self.phase != Phase::Dispatched && self.copying.iter().any(|copying| copying.finished.is_none()) {
            self.seed(&all, 0, true, false, &[], &calm);
            assert!(self.copying.iter().all(|copying| copying.finished.is_some()), "an undisturbed seed finishes");
        }
        if self.phase == Phase::Seeding {
            self.seal(false, None);
        }
        assert!(self.seals > 0 && self.phase != Phase::Seeding);
        self.verify(true);
        self.branch.check_stand_alone();
        self.import(None, None, Readback::Full, true, &calm);
        self.import(None, None, Readback::Full, false, &calm);
        for number in self.shipped.keys().copied().collect::<Vec<_>>() {
            self.restore(number, true, &calm);
        }
        self.scan(None, None, &calm);
        self.ledger_tells_the_truth("the end");
    }
}

/// Plays a kept history.
pub fn play_file(path: &Path) {
    play(&serde_json::from_value(json_file(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
}
