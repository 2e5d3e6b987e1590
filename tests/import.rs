//! Goal: what is imported is what was sealed, or it is said, and nothing else is ever touched. Method: arrays made by hand
//! (`shipment`), imported through the library in this process, with both engines; for SIGKILL in a process of its own.

use crate::shipment::{Disk, Made, Recipe, data, make};
use motiongear::context::{Context, Outcome};
use motiongear::copy::throttle::Limits;
use motiongear::error::{Error, Kind};
use motiongear::import::{self, DiskOutcome, Imported, Options, Report, State};
use motiongear::io::Engine;
use motiongear::lang::Lang;
use motiongear::ledger::Ledger;
use motiongear::monitor::Recorder;
use motiongear::source::SysRoot;
use motiongear::volume::Target;
use motiongear::volume::readback::Mode;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const BLOCK: usize = 65536;

pub fn context(state: &Path, engine: Engine) -> Context {
    Context {
        ledger: Arc::new(Ledger::open(state).unwrap()),
        engine,
        lang: Lang::En,
        monitor: Arc::new(Recorder::default()),
        sys: SysRoot::default(),
        ask: Arc::new(|_| Err(std::io::ErrorKind::Unsupported.into())),
        dry_run: false,
    }
}

pub fn options(made: &Made, target: Target) -> Options {
    Options {
        array: made.array.clone(),
        target,
        trust: made.trust.clone(),
        identity: Some(made.identity.clone()),
        expect_seal: None,
        verify_time: None,
        machine: None,
        disk: None,
        readback: Mode::Full,
        accept_unreadable: false,
        overwrite: false,
        accept_missing_packs: false,
        accept_sector_size: false,
        limits: Limits::default(),
    }
}

fn done(report: Report) -> Imported {
    match report {
        Report::Done(done) => done,
        Report::Plan(plan) => panic!("{plan:?}"),
    }
}

fn import(dir: &Path, engine: Engine, options: &Options) -> Result<Imported, Error> {
    import::run(&context(&dir.join("state"), engine), options.clone()).map(done)
}

fn raw(dir: &Path, disk: &Disk) -> PathBuf {
    dir.join("out/farbank").join(disk.machine).join(format!("{}.raw", disk.name))
}

fn to_dir(dir: &Path) -> Target {
    Target::Dir(dir.join("out"))
}

fn check_equal(dir: &Path, disk: &Disk, outcome: &DiskOutcome) {
    let found = std::fs::read(raw(dir, disk)).unwrap();
    assert!(found == disk.data, "{}/{} differs", disk.machine, disk.name);
    assert_eq!(outcome.digest, Some(outcome.sealed_digest));
    assert!(outcome.proven, "{outcome:?}");
    assert_eq!((outcome.counts.trusted, outcome.damaged), (0, 0));
    let blocks = disk.data.len().div_ceil(outcome.block_bytes as usize) as u64;
    assert_eq!(outcome.counts.re_read, blocks);
}

fn odd_disks() -> Vec<Disk> {
    let sizes = [0, 1, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 512, 40 * BLOCK + 7];
    let names = ["d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9"];
    let mut disks: Vec<Disk> = sizes
        .iter()
        .zip(names)
        .map(|(size, name)| Disk::new("db01", name, data(*size, BLOCK, |block| block % 5 == 3)))
        .collect();
    disks.push(Disk::new("db02", "zero", vec![0; 9 * BLOCK + 100]));
    disks.push(Disk::new("db02", "sda", data(700 * BLOCK, BLOCK, |block| (100..400).contains(&block))));
    disks
}

#[test]
fn disks_of_all_sizes_come_out_byte_for_byte() {
    for (engine, encrypted) in [(Engine::Auto, true), (Engine::Threads, false)] {
        let dir = tempfile::tempdir().unwrap();
        let disks = odd_disks();
        let made = make(dir.path(), &disks, &Recipe { encrypted, records_per_pack: 50, ..Recipe::default() });
        let wanted = options(&made, to_dir(dir.path()));
        let imported = import(dir.path(), engine, &wanted).unwrap();
        assert!(!imported.incomplete());
        assert_eq!(imported.disks.len(), disks.len());
        for (disk, outcome) in disks.iter().zip(&imported.disks) {
            assert_eq!(outcome.state, State::Imported);
            check_equal(dir.path(), disk, outcome);
        }
        let holes = &imported.disks[11];
        assert!(holes.counts.holes >= 290, "{:?}", holes.counts);
        let again = import(dir.path(), engine, &wanted).unwrap();
        assert!(again.disks.iter().all(|disk| disk.state == State::AlreadyImported && disk.written_bytes == 0));
        assert!(!again.incomplete());
        assert!(again.summary(Lang::Zh).contains("此前已导入"));
    }
}
