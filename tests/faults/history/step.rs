//! What happens to a branch, its disks and a data centre: data that can be printed, shrunk, kept and played again.

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// One history: the disks as they are in the beginning, and what is done then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct History {
    /// KiB of a block.
    pub block_kib: u32,
    /// Whether the shipment is in plain text.
    pub plaintext: bool,
    /// In order of their numbers.
    pub disks: Vec<Disk>,
    /// In order of time.
    pub steps: Vec<Step>,
}

/// A disk of machine `m0` or `m1`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Disk {
    /// Number of the machine.
    pub machine: u8,
    /// Its size.
    pub bytes: u32,
    /// Determines its contents.
    pub seed: u16,
}

/// One thing that is done. Disks are named by number, those that do not exist by the remainder; `disks` is a set of bits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Step {
    /// The source is written to while nobody reads it.
    Write { disk: u8, writes: Vec<Write> },
    /// `seed` of these disks; `asserted` are said not to change. `during`: what is written to disks while it runs.
    Seed { disks: u8, asserted: u8, reopen: bool, paused: bool, during: Vec<(u8, Write)>, run: Run },
    /// `ledger move` to the other host; `cut` kills both halves at that many ms first.
    Move { cut: Option<u16> },
    /// `seal`; `without` leaves unfinished disks out. `cut` kills it at that many ms, and it is run again.
    Seal { without: bool, cut: Option<u16> },
    /// `verify` at the branch.
    Verify { identity: bool },
    /// `custody dispatch`.
    Dispatch,
    /// Another disk answers where a disk was that the shipment knows, and is to be seeded.
    Impostor { disk: u8, larger: bool, reopen: bool },
    /// Somebody with another ledger tries to seed and to seal.
    Stranger,
    /// Somebody else's data lies where the disk's volume will be.
    Foreign { disk: u8, kib: u16 },
    /// `import` into image files.
    Import { machine: Option<u8>, disk: Option<u8>, readback: Readback, overwrite: bool, run: Run },
    /// `restore` to a file of its own.
    Restore { disk: u8, overwrite: bool, run: Run },
    /// `scan`.
    Scan { machine: Option<u8>, disk: Option<u8>, run: Run },
}

/// How a verb runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The engine is threads, not io_uring.
    pub threads: bool,
    /// `--read-limit` makes it take about so long, ms; 0 is no limit.
    pub slow: u16,
    /// What interrupts it.
    pub cut: Option<Cut>,
}

/// An interruption.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cut {
    /// So many ms after the start.
    pub after: u16,
    /// By what.
    pub signal: Signal,
}

/// A signal that ends a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// SIGINT.
    Int,
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
}

/// `--readback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Readback {
    Full,
    Sample,
    None,
}

/// One write to a source. `at` is a place, in parts of 65536 of the disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Write {
    /// One page of noise.
    Page { at: u16, seed: u16 },
    /// Zeros from the page on.
    Zeros { at: u16, pages: u16 },
    /// A hole from the page on.
    Hole { at: u16, pages: u16 },
    /// The whole block around it, noise.
    Block { at: u16, seed: u16 },
    /// What is there, once more.
    Same { at: u16, pages: u16 },
}

impl Readback {
    /// As typed.
    pub fn word(self) -> &'static str {
        match self {
            Readback::Full => "full",
            Readback::Sample => "sample",
            Readback::None => "none",
        }
    }
}

/// Any history of `steps` steps.
pub fn any_history(steps: std::ops::Range<usize>) -> impl Strategy<Value = History> {
    let block_kib = prop_oneof![3 => Just(64u32), 2 => Just(1024)];
    (block_kib, any::<bool>()).prop_flat_map(move |(block_kib, plaintext)| {
        let disks = prop::collection::vec(any_disk(block_kib * 1024), 1..5);
        let steps = prop::collection::vec(any_step(), steps.clone());
        (disks, steps).prop_map(move |(disks, steps)| History { block_kib, plaintext, disks, steps })
    })
}

/// Sizes at the edges: nothing, one byte, around one block, odd ones, many blocks.
fn any_disk(block: u32) -> impl Strategy<Value = Disk> {
    let bytes = prop_oneof![
        1 => Just(0u32),
        1 => 1u32..5000,
        2 => block - 600..block + 600,
        2 => Just(block * 2),
        4 => block..(8 << 20),
        4 => (1u32..(4 << 20) / 512).prop_map(|sectors| sectors * 512),
    ];
    (0u8..2, bytes, any::<u16>()).prop_map(|(machine, bytes, seed)| Disk { machine, bytes, seed })
}

fn any_step() -> impl Strategy<Value = Step> {
    let writes = prop::collection::vec(any_write(), 1..5);
    let during = prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec((any::<u8>(), any_write()), 1..5)];
    let asserted = prop_oneof![2 => Just(0u8), 1 => Just(0xff), 1 => any::<u8>()];
    let selected = || prop_oneof![3 => Just(None), 1 => (0u8..5).prop_map(Some)];
    let machine = || prop_oneof![3 => Just(None), 1 => (0u8..3).prop_map(Some)];
    let short = || prop::option::weighted(0.3, 0u16..60);
    let readback = prop_oneof![2 => Just(Readback::Full), 1 => Just(Readback::Sample), 1 => Just(Readback::None)];
    prop_oneof![
        8 => (any::<u8>(), asserted, any::<bool>(), prop::bool::weighted(0.2), during, any_run())
            .prop_map(|(disks, asserted, reopen, paused, during, run)| Step::Seed { disks, asserted, reopen, paused, during, run }),
        5 => (any::<u8>(), writes).prop_map(|(disk, writes)| Step::Write { disk, writes }),
        4 => (machine(), selected(), any_run()).prop_map(|(machine, disk, run)| Step::Scan { machine, disk, run }),
        4 => (any::<bool>(), short()).prop_map(|(without, cut)| Step::Seal { without, cut }),
        5 => (machine(), selected(), readback, any::<bool>(), any_run())
            .prop_map(|(machine, disk, readback, overwrite, run)| Step::Import { machine, disk, readback, overwrite, run }),
        2 => (any::<u8>(), any::<bool>(), any_run()).prop_map(|(disk, overwrite, run)| Step::Restore { disk, overwrite, run }),
        2 => any::<bool>().prop_map(|identity| Step::Verify { identity }),
        1 => Just(Step::Dispatch),
        1 => short().prop_map(|cut| Step::Move { cut }),
        1 => Just(Step::Stranger),
        1 => (any::<u8>(), any::<bool>(), any::<bool>())
            .prop_map(|(disk, larger, reopen)| Step::Impostor { disk, larger, reopen }),
        1 => (any::<u8>(), 4u16..9000).prop_map(|(disk, kib)| Step::Foreign { disk, kib }),
    ]
}

fn any_run() -> impl Strategy<Value = Run> {
    // Starting takes some 20 ms; rows are committed at the end of a second.
    let after = prop_oneof![1 => 0u16..60, 5 => 60u16..500, 1 => 500u16..1500];
    let signal = prop_oneof![1 => Just(Signal::Int), 1 => Just(Signal::Term), 2 => Just(Signal::Kill)];
    let cut = prop::option::weighted(0.6, (after, signal).prop_map(|(after, signal)| Cut { after, signal }));
    (any::<bool>(), prop_oneof![Just(0u16), 100u16..600], 0u16..3, cut).prop_map(|(threads, slow, more, cut)| {
        // What is to be cut short takes longer than that.
        let slow = cut.as_ref().map_or(slow, |cut| cut.after * (more + 1) + slow);
        Run { threads, slow, cut }
    })
}

fn any_write() -> impl Strategy<Value = Write> {
    let (at, seed) = (any::<u16>, any::<u16>);
    prop_oneof![
        4 => (at(), seed()).prop_map(|(at, seed)| Write::Page { at, seed }),
        2 => (at(), 1u16..600).prop_map(|(at, pages)| Write::Zeros { at, pages }),
        1 => (at(), 1u16..600).prop_map(|(at, pages)| Write::Hole { at, pages }),
        2 => (at(), seed()).prop_map(|(at, seed)| Write::Block { at, seed }),
        1 => (at(), 1u16..600).prop_map(|(at, pages)| Write::Same { at, pages }),
    ]
}
