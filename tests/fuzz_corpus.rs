//! Goal: what the fuzzers have found once is never lost again, and every kind of thing they read is read here too, on stable Rust.
//!
//! Method: the targets' own functions (`tests/fuzz/targets`, the same files) over their seeds and over every file of
//! `tests/fuzz/corpus`. A target panics where a reader breaks a promise, and this test fails on panics, on seconds, on a target
//! that accepts nothing or refuses nothing, and on a folder that is no target's.

#[allow(dead_code, reason = "the fuzzers' own programs use the rest")]
#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use targets::{TARGETS, Target, Verdict};

/// libFuzzer's own limit is 10 s an input; none needs a hundredth of that.
const PATIENCE: Duration = Duration::from_secs(10);

fn replay(target: &Target) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target.name);
    let mut inputs: Vec<(String, Vec<u8>)> =
        (target.seeds)().into_iter().enumerate().map(|(number, seed)| (format!("seed {number}"), seed)).collect();
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        inputs.push((path.display().to_string(), std::fs::read(&path).unwrap()));
    }
    let mut verdicts = BTreeSet::new();
    for (name, input) in &inputs {
        eprintln!("{}: {name}", target.name);
        let started = Instant::now();
        verdicts.insert((target.run)(input));
        assert!(started.elapsed() < PATIENCE, "{name} took {:?}", started.elapsed());
    }
    let mut expected = BTreeSet::from([Verdict::Refused, Verdict::Accepted]);
    // A line of a trust file that makes no sense concerns only whom it names.
    if target.name == "allowed" {
        expected.remove(&Verdict::Refused);
    }
    assert_eq!(verdicts, expected, "{}", target.name);
}

#[test]
fn every_folder_of_the_corpus_is_a_targets() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let folders: BTreeSet<String> =
        std::fs::read_dir(corpus).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(folders, TARGETS.iter().map(|target| target.name.to_owned()).collect());
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(TARGETS.iter().find(|target| target.name == stringify!($name)).unwrap());
        })*
        #[test]
        fn every_target_is_replayed() {
            let replayed = BTreeSet::from([$(stringify!($name)),*]);
            assert_eq!(replayed, TARGETS.iter().map(|target| target.name).collect());
        }
    };
}

replays! { record manifest seal partition plan nbd serve envelope shipment custody pack signature superblock allowed holder job }
