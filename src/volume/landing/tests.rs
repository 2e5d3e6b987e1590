//! Goal: a mark is committed only over blocks that were written before the flush that covers it; little is under way without
//! a commit; what a failing volume took is never said to be there. Method: a volume in memory that records calls.

use super::*;
use crate::io::{DirectFile, Pool, open_queue};
use crate::monitor::DiskProgress;
use crate::source::{Identity, SysRoot};
use motiongear_manifest::catalogue::{BlockState, Place};
use motiongear_manifest::record::Codec;
use motiongear_manifest::tree::leaf;
use proptest::prelude::*;

const BLOCK: u32 = 1 << 20;

struct Recorded {
    file: Arc<DirectFile>,
    log: Mutex<Vec<String>>,
    fail_flush: bool,
}

impl Volume for Recorded {
    fn name(&self) -> String {
        "recorded".into()
    }
    fn bytes(&self) -> u64 {
        0
    }
    fn identity(&self, _: &SysRoot) -> Result<Identity> {
        Err(Error::failed("It has none"))
    }
    fn writer(&self, engine: Engine, depth: usize) -> Result<Patient> {
        Ok(Patient::new(open_queue(engine, self.file.clone(), depth)?, None))
    }
    fn reader(&self, engine: Engine, depth: usize) -> Result<Patient> {
        self.writer(engine, depth)
    }
    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.log.lock().unwrap().push(format!("zero {} {}", offset / u64::from(BLOCK), bytes / u64::from(BLOCK)));
        Ok(())
    }
    fn next_data(&self, _: u64) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }
    fn flush(&self) -> Result<()> {
        self.log.lock().unwrap().push("flush".into());
        if self.fail_flush { Err(Error::failed("Flush")) } else { self.file.sync_data() }
    }
    fn through_cache(&self) -> bool {
        false
    }
}

struct Marks<'a> {
    volume: &'a Recorded,
    commits: Mutex<Vec<Commit>>,
}

impl Checkpoint for Marks<'_> {
    fn commit(&self, commits: &[Commit]) -> Result<()> {
        self.volume.log.lock().unwrap().push(format!("commit {}", commits[0].mark));
        self.commits.lock().unwrap().extend_from_slice(commits);
        Ok(())
    }
}

fn row(block: u64, state: BlockState) -> BlockRow {
    BlockRow { block, leaf: leaf(0, &[1]), state, place: None }
}

fn run(
    blocks: u64,
    fail_flush: bool,
    feed: impl FnOnce(&Landing<'_>, &Pool) -> Result<()>,
) -> (Result<u64>, Vec<String>, Vec<Commit>) {
    let dir = tempfile::tempdir().unwrap();
    let file = Arc::new(DirectFile::create_new(&dir.path().join("volume")).unwrap());
    let volume = Arc::new(Recorded { file, log: Mutex::default(), fail_flush });
    let geometry = Geometry::new(blocks * u64::from(BLOCK), BLOCK).unwrap();
    let written: Arc<AtomicU64> = Arc::default();
    let lane = Lane {
        slot: 0,
        name: "db01/sda".into(),
        volume: volume.clone(),
        geometry,
        from: 0,
        known_zero: false,
        single: false,
        written: written.clone(),
    };
    let progress = Progress::new("import", vec![DiskProgress::new("db01/sda", geometry.bytes())]);
    let marks = Marks { volume: &volume, commits: Mutex::default() };
    let pool = Pool::new(BLOCK as usize, 4).unwrap();
    let done = land(&[lane], Engine::Auto, &marks, &progress, |landing| feed(landing, &pool));
    let log = volume.log.lock().unwrap().clone();
    let done = done.map(|()| written.load(Ordering::Relaxed));
    (done, log, marks.commits.into_inner().unwrap())
}

fn give(landing: &Landing<'_>, pool: &Pool, block: u64) -> Result<()> {
    assert!(landing.admit(&[(0, block, BLOCK)], true)?);
    let mut buffer = pool.take();
    buffer.set_len(BLOCK as usize);
    landing.block(0, &row(block, BlockState::Stored), buffer)
}

#[test]
fn a_gap_holds_the_mark_and_every_commit_follows_a_flush() {
    let (done, log, commits) = run(200, false, |landing, pool| {
        for batch in (0..200).collect::<Vec<u64>>().chunks(20) {
            let rows: Vec<BlockRow> = batch.iter().map(|block| row(*block, BlockState::Stored)).collect();
            landing.intake(0, &rows)?;
            // Backwards: the first of each batch comes last.
            batch.iter().rev().try_for_each(|block| give(landing, pool, *block))?;
        }
        Ok(())
    });
    // Head and tail are proven, not written.
    assert_eq!(done.unwrap(), 198 * u64::from(BLOCK));
    assert_eq!(commits.last().unwrap().mark, 200);
    assert!(commits.len() >= 3, "{log:?}");
    for commit in &commits[..commits.len() - 1] {
        assert!(commit.mark % 20 == 0 || commit.mark == 200, "the gap of a batch is its first block: {log:?}");
    }
    for (at, entry) in log.iter().enumerate() {
        assert!(!entry.starts_with("commit") || log[at - 1] == "flush", "{log:?}");
    }
}

#[test]
fn what_was_stored_is_counted_with_the_block_that_landed() {
    let (done, ..) = run(100, false, |landing, pool| {
        let place = Place { pack: 1, offset: 4096, stored_bytes: 1000, codec: Codec::Zstd };
        let rows: Vec<BlockRow> =
            (0..100).map(|block| BlockRow { place: Some(place), ..row(block, BlockState::Stored) }).collect();
        landing.intake(0, &rows)?;
        for row in &rows {
            assert!(landing.admit(&[(0, row.block, BLOCK)], true)?);
            let mut buffer = pool.take();
            buffer.set_len(BLOCK as usize);
            landing.block(0, row, buffer)?;
            let now = landing.shared.progress.snapshot().total;
            assert!(now.stored <= now.done / u64::from(BLOCK) * 1000, "{} of {}", now.stored, now.done);
        }
        while landing.shared.progress.snapshot().total.stored < 100 * 1000 {
            landing.check()?;
            std::thread::yield_now();
        }
        Ok(())
    });
    done.unwrap();
}

#[test]
fn no_more_than_the_bound_is_admitted_without_a_commit() {
    let (done, _, _) = run(100, false, |landing, _| {
        let rows: Vec<BlockRow> = (0..100).map(|block| row(block, BlockState::Stored)).collect();
        landing.intake(0, &rows)?;
        let mut admitted = 0;
        while landing.admit(&[(0, admitted, BLOCK)], false)? {
            admitted += 1;
        }
        assert_eq!(admitted * u64::from(BLOCK), REDO_BYTES);
        Ok(())
    });
    done.unwrap();
}

#[test]
fn zeros_are_written_in_runs_and_damage_is_committed() {
    let (done, log, commits) = run(10, false, |landing, pool| {
        let rows: Vec<BlockRow> = (0..10).map(|block| row(block, BlockState::Zero)).collect();
        landing.intake(0, &rows)?;
        landing.zeros(0, &rows[0..4])?;
        landing.zeros(0, &rows[5..10])?;
        give(landing, pool, 4)?;
        Ok(())
    });
    assert_eq!(done.unwrap(), u64::from(BLOCK));
    // Block 0 and block 9 are withheld.
    assert!(log.contains(&"zero 1 3".into()) && log.contains(&"zero 5 4".into()), "{log:?}");
    assert_eq!(commits.last().unwrap().mark, 10);
    let (done, _, commits) = run(10, false, |landing, _| {
        landing.intake(0, &[row(0, BlockState::Stored), row(1, BlockState::Stored)])?;
        let damage = Damage {
            block: 0,
            offset: 0,
            bytes: BLOCK,
            file: None,
            file_offset: None,
            why: "a reason".into(),
            untrusted: false,
        };
        landing.damaged(0, damage)?;
        Err(Error::interrupted("Stopped"))
    });
    // What is known is kept, though it was interrupted; block 1 was never delivered.
    assert_eq!(done.unwrap_err().kind, crate::error::Kind::Interrupted);
    assert_eq!((commits[0].mark, commits[0].damaged.len()), (1, 1));
}

#[test]
fn a_flush_that_fails_ends_it_and_nothing_is_committed() {
    let (done, _, commits) = run(100, true, |landing, pool| {
        let rows: Vec<BlockRow> = (0..100).map(|block| row(block, BlockState::Stored)).collect();
        landing.intake(0, &rows)?;
        (0..100).try_for_each(|block| give(landing, pool, block))
    });
    assert_eq!(done.unwrap_err().to_string(), "Flush");
    assert!(commits.is_empty(), "{commits:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// In whatever order blocks come and wherever it stops, the mark is the first one that did not come, and no damage below it
    /// is forgotten.
    #[test]
    fn the_mark_is_the_first_block_that_did_not_come(
        kinds in prop::collection::vec(0u8..5, 2..40), keys in prop::collection::vec(any::<u32>(), 40), stop: prop::sample::Index,
    ) {
        let blocks = kinds.len() as u64;
        let state = |block: u64| if kinds[block as usize] == 0 { BlockState::Zero } else { BlockState::Stored };
        let mut order: Vec<u64> = (0..blocks).collect();
        order.sort_by_key(|block| keys[*block as usize]);
        order.truncate(stop.index(kinds.len() + 1));
        let damage = |block| Damage { block, offset: 0, bytes: BLOCK, file: None, file_offset: None, why: "a reason".into(), untrusted: false };
        let (done, _, commits) = run(blocks, false, |landing, pool| {
            landing.intake(0, &(0..blocks).map(|block| row(block, state(block))).collect::<Vec<_>>())?;
            for block in &order {
                match kinds[*block as usize] {
                    0 => landing.zeros(0, &[row(*block, BlockState::Zero)])?,
                    1 => landing.damaged(0, damage(*block))?,
                    _ => give(landing, pool, *block)?,
                }
            }
            if order.len() == kinds.len() { Ok(()) } else { Err(Error::interrupted("Stopped")) }
        });
        prop_assert_eq!(done.is_ok(), order.len() == kinds.len());
        let first_missing = (0..blocks).find(|block| !order.contains(block)).unwrap_or(blocks);
        prop_assert_eq!(commits.last().map_or(0, |commit| commit.mark), first_missing);
        prop_assert!(commits.is_sorted_by_key(|commit| commit.mark));
        let listed: Vec<u64> = commits.iter().flat_map(|commit| &commit.damaged).map(|damage| damage.block).collect();
        for block in (0..first_missing).filter(|block| kinds[*block as usize] == 1) {
            prop_assert!(listed.contains(&block), "{} is not in {:?}", block, listed);
        }
    }
}
