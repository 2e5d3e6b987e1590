//! File systems that are full, at every step of every verb.
//!
//! A filler file leaves a number of bytes; the verb runs and must fail clearly or succeed; then it gets more. The ladder climbs on
//! one shipment, so that every failure is also resumed from a state that a failure left; in full each rung is also tried alone:
//! full once, then room at once.

use super::{ENGINES, LONG, MIB, arrives, import, raw, said_clearly, seeds};
use crate::common::{Branch, Dice, LoopArray, Ran, b3sum, full, noise, seed_of_this_run, sql};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file system with a filler.
struct Filled {
    dir: PathBuf,
    /// What the errors must name: the mount point.
    _array: LoopArray,
}

impl Filled {
    fn new(branch: &Branch, kind: &str, dir: &Path) -> Filled {
        let image = branch.place.join(format!("{}.img", dir.file_name().unwrap().to_str().unwrap()));
        let array = match kind {
            "xfs" => LoopArray::xfs(&image, 300 * MIB, dir),
            "ext4 of 1 KiB blocks" => LoopArray::ext4_of_blocks(1024, &image, 80 * MIB, dir),
            _ => LoopArray::ext4(&image, 80 * MIB, dir),
        };
        Filled { dir: dir.to_owned(), _array: array }
    }
    fn free(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.dir).unwrap();
        free.f_bavail * free.f_frsize
    }
    /// Leaves about `free` bytes: the file system's own need may take a few blocks of them.
    fn leave(&self, free: u64) {
        self.empty();
        let block = rustix::fs::statvfs(&self.dir).unwrap().f_frsize;
        let filler = std::fs::File::create(self.dir.join("filler")).unwrap();
        let since = Instant::now();
        loop {
            let more = self.free().saturating_sub(free);
            if more < block || since.elapsed() > Duration::from_secs(5) {
                break;
            }
            let held = filler.metadata().unwrap().len();
            // What the last extents of a file system cost nobody can say: ask for less until it is granted.
            let mut ask = more;
            while ask >= block
                && rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), held, ask).is_err()
            {
                ask /= 2;
            }
            // What was freed before may be granted only after a while, and would be room later that was not to be left.
            if ask < block {
                if more < 16 * block {
                    break;
                }
                rustix::fs::syncfs(&filler).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        filler.sync_all().unwrap();
    }
    fn empty(&self) {
        let _ = std::fs::remove_file(self.dir.join("filler"));
        // XFS frees in the background.
        rustix::fs::syncfs(std::fs::File::open(&self.dir).unwrap()).unwrap();
    }
    /// Runs `verb` with more and more room until it is done, at last with all; how often it was refused.
    fn climb(&self, rungs: &[u64], mut verb: impl FnMut() -> Ran) -> usize {
        for (refused, rung) in rungs.iter().enumerate() {
            self.leave(*rung);
            let ran = verb();
            if ran.code == 0 {
                self.empty();
                return refused;
            }
            let said = said_clearly(&ran, &self.dir);
            let why = ["No space left", "is full", "bytes free", "unable to open database file", "disk I/O error"];
            assert!(why.iter().any(|why| said.contains(why)), "with {rung} bytes left: {said}");
            assert!(said.contains("room") || said.contains("larger"), "the way out, with {rung} bytes left: {said}");
        }
        self.empty();
        verb().ok();
        rungs.len()
    }
}

/// Rungs within `range`, each by up to `most` units above the one before: every unit in full, else other ones in each run.
fn rungs(dice: &mut Dice, unit: u64, most: u64, range: Range<u64>) -> Vec<u64> {
    let next = |at: &u64| Some(at + unit * if full() { 1 } else { 1 + dice.below(most) });
    std::iter::successors(Some(range.start), next).take_while(|rung| *rung < range.end).collect()
}

/// Where things begin to fit on an array: every page at first, then coarser.
fn rungs_of_array(dice: &mut Dice) -> Vec<u64> {
    let pages = (0..if full() { 40 } else { 12 }).map(|page| page * 4096);
    pages.chain(rungs(dice, MIB / 8, 40, 160 * 1024..14 * MIB)).collect()
}

fn custody(branch: &Branch, way: &str) -> Ran {
    let command = branch.motiongear().args(["--json", "custody", way]).arg(&branch.array).arg("--key");
    command.arg(&branch.key).arg("--trust").arg(&branch.trust).run()
}

fn report(branch: &Branch) -> Ran {
    let command = branch.motiongear().args(["--json", "report", "handover"]).arg(&branch.array).arg("--key");
    command.arg(&branch.key).arg("--trust").arg(&branch.trust).arg("--out").arg(branch.place.join("out")).run()
}

fn seal(branch: &Branch) -> Ran {
    let (key, trust) = (branch.key.to_str().unwrap(), branch.trust.to_str().unwrap());
    branch.on_array("seal", ["--key", key, "--trust", trust])
}

/// One shipment through all verbs, `filled` being full at every rung of each.
fn ladder(branch: &Branch, filled: &Filled, engine: &str, rungs: &[u64]) -> [usize; 6] {
    let image = branch.place.join("disk");
    noise(&image, 12 * MIB, 30);
    let mut counted = [0; 6];
    let [init, seeding, sealing, reporting, dispatch, import_] = &mut counted;
    *init = filled.climb(rungs, || {
        branch.on_array("init", ["--site", "river-bank", "--recipient", &branch.recipient, "--allow-system-disk"])
    });
    *seeding = filled.climb(rungs, || branch.seed(&[("sda", &image)], &["--engine", engine]));
    seeds(branch, &[("sda", &image)], engine, &image);
    *sealing = filled.climb(rungs, || seal(branch));
    branch.check_with_stock_tools();
    branch.on_array("verify", [""; 0]).ok();
    *reporting = filled.climb(rungs, || report(branch));
    *dispatch = filled.climb(rungs, || custody(branch, "dispatch"));
    let volumes = branch.place.dir("volumes");
    *import_ = filled.climb(rungs, || import(branch, &volumes, &["--engine", engine]).run());
    let result = import(branch, &volumes, &[]).run().ok();
    assert_eq!(result["disks"][0]["digest"], b3sum(&image));
    assert_eq!(b3sum(&raw(&volumes, "sda")), b3sum(&image));
    branch.check_with_stock_tools();
    branch.check_stand_alone();
    counted
}

#[test]
fn an_array_that_is_full_at_any_step_is_finished_once_there_is_room() {
    let kinds: &[_] = if full() { &["ext4", "xfs"] } else { &["ext4"] };
    let mut dice = Dice::new(seed_of_this_run());
    for (kind, engine) in kinds.iter().flat_map(|kind| ENGINES.map(|engine| (*kind, engine))) {
        let branch = Branch::new();
        let filled = Filled::new(&branch, kind, &branch.array);
        let refused = ladder(&branch, &filled, engine, &rungs_of_array(&mut dice));
        println!(
            "array full, {kind}, {engine}: refused {refused:?} times (init, seed, seal, report, dispatch, import)"
        );
        let [init, seeding, sealing, reporting, dispatch, _] = refused;
        assert!(
            init > 0 && seeding > 8 && sealing > 2 && reporting > 1 && dispatch > 0,
            "{refused:?}: it never was full"
        );
    }
}

/// In full: full once at each rung, then room at once; a new shipment each time.
#[test]
fn each_moment_of_a_full_array_alone() {
    let mut dice = Dice::new(seed_of_this_run());
    let rungs = if full() { rungs_of_array(&mut dice) } else { vec![4096, 3 * MIB + dice.below(1024) * 4096] };
    for (at, rung) in rungs.into_iter().enumerate() {
        let branch = Branch::new();
        let filled = Filled::new(&branch, "ext4", &branch.array);
        branch.init(&[]);
        let image = branch.place.join("disk");
        noise(&image, 12 * MIB, 31);
        filled.leave(rung);
        let engine = ENGINES[at % 2];
        let ran = branch.seed(&[("sda", &image)], &["--engine", engine]);
        if ran.code != 0 {
            said_clearly(&ran, &filled.dir);
        }
        let kept: u64 = sql(&branch.live_manifest(), "SELECT count(*) FROM block").parse().unwrap();
        filled.empty();
        let result = seeds(&branch, &[("sda", &image)], engine, &image);
        let skipped = result["disks"][0]["skipped_bytes"].as_u64().unwrap();
        assert_eq!(skipped, kept * MIB, "what was committed is not copied again");
        arrives(&branch, &image);
    }
}

#[test]
fn a_state_directory_that_is_full_at_any_step_loses_nothing() {
    let mut dice = Dice::new(seed_of_this_run());
    for engine in ENGINES.into_iter().take(if full() { 2 } else { 1 }) {
        let mut branch = Branch::new();
        let dir = branch.place.join("state-disk");
        let filled = Filled::new(&branch, "ext4", &dir);
        branch.state = dir.join("state");
        let end = if full() { 480 } else { 400 } * 1024;
        let pages = [rungs(&mut dice, 4096, 13, 0..end), vec![MIB, 3 * MIB]].concat();
        let refused = ladder(&branch, &filled, engine, &pages);
        println!("state full, {engine}: refused {refused:?} times (init, seed, seal, report, dispatch, import)");
        assert!(refused[0] > 0 && refused[1] > 1, "{refused:?}: it never was full");
    }
}

/// SQLite maps the index of its write-ahead log into memory by pages, and a page of which the file system has one block and not
/// the others is a signal when it is written to. Every step of less than such a page.
#[test]
fn a_state_directory_of_small_blocks_that_is_full_is_an_error_and_no_signal() {
    let mut branch = Branch::new();
    let dir = branch.place.join("state-disk");
    let filled = Filled::new(&branch, "ext4 of 1 KiB blocks", &dir);
    branch.state = dir.join("state");
    let mut dice = Dice::new(seed_of_this_run());
    let rungs = [rungs(&mut dice, 1024, 5, 0..512 * 1024), vec![MIB, 3 * MIB]].concat();
    let refused = ladder(&branch, &filled, "uring", &rungs);
    println!("state of small blocks full: refused {refused:?} times (init, seed, seal, report, dispatch, import)");
    assert!(refused[0] > 2 && refused[1] > 2, "{refused:?}: it never was full");
}

#[test]
fn volumes_whose_file_system_is_full_are_finished_once_there_is_room() {
    for engine in ENGINES {
        let branch = Branch::ready();
        let image = branch.place.join("disk");
        noise(&image, 40 * MIB, 32);
        seeds(&branch, &[("sda", &image)], engine, &image);
        branch.seal();
        let volumes = branch.place.join("volumes-disk");
        let filled = Filled::new(&branch, "ext4", &volumes);
        // Too little from the start is said before anything is written.
        filled.leave(20 * MIB);
        let said = said_clearly(&import(&branch, &volumes, &["--engine", engine]).run(), &volumes);
        assert!(said.contains("expected 40 MiB free"), "{said}");
        assert!(!raw(&volumes, "sda").exists());
        // Somebody else fills it while it is written to, to the last byte, again and again.
        for left in if full() { &[0, 4096, 65_536, MIB, 5 * MIB, 9 * MIB][..] } else { &[0, 3 * MIB][..] } {
            filled.empty();
            let volume = raw(&volumes, "sda");
            let written = || volume.metadata().map_or(0, |meta| meta.blocks() * 512);
            let before = written();
            let mut running = import(&branch, &volumes, &["--engine", engine, "--read-limit", "8MiB"]).start();
            assert!(running.until(LONG, |_| written() >= before + 2 * MIB), "it ended early: {}", running.said());
            filled.leave(*left);
            branch.run(["limit", "--read", "off"]);
            let said = said_clearly(&running.wait(), &volumes);
            assert!(said.contains("No space left") && said.contains("make room"), "{left} bytes left: {said}");
            // Not proven, so not usable: its head is zeros.
            let start = std::fs::read(&volume).unwrap()[..4096].to_vec();
            assert!(start.iter().all(|byte| *byte == 0), "an unfinished volume shows its head");
        }
        filled.empty();
        let result = import(&branch, &volumes, &["--engine", engine]).run().ok();
        assert_eq!(result["disks"][0]["digest"], b3sum(&image));
        assert_eq!(b3sum(&raw(&volumes, "sda")), b3sum(&image));
    }
}
