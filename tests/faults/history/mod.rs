//! Goal: whatever people do in whatever order, and wherever it is cut short, what arrives is what was read, and nobody is told
//! anything else.
//!
//! Method: random histories ([`step`]) of seed, source writes, interruptions, ledger moves, seals, dispatch, imports, restores
//! and scans are played with the real binary ([`play`]) against a model ([`model`]) that knows nothing but `cp`: it keeps a copy
//! of every state that a source ever had, and compares bytes. A history is data: one that fails is shrunk and printed as JSON;
//! put into `kept/` it is played for ever. `MOTIONGEAR_HISTORY=FILE` plays one file; `MOTIONGEAR_SEED` repeats the random choices
//! of a run (not the moments at which signals arrive).

mod model;
mod play;
mod step;

use crate::common::{full, seed_of_this_run};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use step::History;

/// Histories played at the same time; most of their time they wait.
const AT_ONCE: u64 = 4;
/// In all, unless `MOTIONGEAR_HISTORIES` says how many.
const BOUNDED: u64 = 24;
const FULL: u64 = 800;

fn histories() -> u64 {
    let told = std::env::var("MOTIONGEAR_HISTORIES").ok().map(|n| n.parse().expect("MOTIONGEAR_HISTORIES is a number"));
    told.unwrap_or(if full() { FULL } else { BOUNDED })
}

/// For `kept/` and for `MOTIONGEAR_HISTORY`: a step a line.
fn json(history: &History) -> String {
    let line = |step| format!("    {}", serde_json::to_string(step).unwrap());
    let steps: Vec<String> = history.steps.iter().map(line).collect();
    let disks = serde_json::to_string(&history.disks).unwrap();
    let History { block_kib, plaintext, .. } = history;
    format!(
        "{{\n  \"block_kib\": {block_kib}, \"plaintext\": {plaintext},\n  \"disks\": {disks},\n  \"steps\": [\n{}\n  ]\n}}",
        steps.join(",\n")
    )
}

/// Plays one; a failed assertion is what proptest takes for a failure, and shrinks.
fn try_play(history: &History) -> Result<u64, TestCaseError> {
    std::panic::catch_unwind(|| play::play(history)).map_err(|panic| {
        let text =
            panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        TestCaseError::fail(text.unwrap_or_default())
    })
}

#[test]
fn random_histories_agree_with_a_naive_copy() {
    let (seed, wanted, since) = (seed_of_this_run(), histories(), Instant::now());
    let (played, steps, interrupted) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..AT_ONCE {
            let (played, steps, interrupted, failed) = (&played, &steps, &interrupted, &failed);
            scope.spawn(move || {
                let config = Config {
                    cases: (wanted / AT_ONCE) as u32,
                    failure_persistence: None,
                    max_shrink_time: 180_000,
                    ..Config::default()
                };
                let from = *blake3::hash(&[seed.to_le_bytes(), worker.to_le_bytes()].concat()).as_bytes();
                let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &from));
                let ran = runner.run(&step::any_history(6..20), |history| {
                    interrupted.fetch_add(try_play(&history)?, Ordering::Relaxed);
                    played.fetch_add(1, Ordering::Relaxed);
                    steps.fetch_add(history.steps.len() as u64, Ordering::Relaxed);
                    Ok(())
                });
                match ran {
                    Ok(()) => {}
                    Err(TestError::Fail(why, history)) => {
                        failed.lock().unwrap().push(format!("{why}\n{}", json(&history)))
                    }
                    Err(other) => failed.lock().unwrap().push(other.to_string()),
                }
            });
        }
    });
    let [played, steps, interrupted] = [played, steps, interrupted].map(AtomicU64::into_inner);
    println!("{played} histories, {steps} steps, {interrupted} runs interrupted, {} s", since.elapsed().as_secs());
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "seed {seed}; put it into tests/faults/history/kept/ when it is mended:\n{}",
        failed.join("\n\n")
    );
    // About 1.3 a history on a fast machine, by many dice.
    assert!(interrupted >= played / 4, "the interruptions came too late to interrupt anything");
}

#[test]
fn histories_that_failed_once_are_played_again() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/history/kept");
    let mut files: Vec<_> = std::fs::read_dir(kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    // One file by name, or all that are kept.
    if let Ok(only) = std::env::var("MOTIONGEAR_HISTORY") {
        files = vec![only.into()];
    }
    assert!(!files.is_empty());
    for file in files {
        println!("{}", file.display());
        play::play_file(&file);
    }
}
