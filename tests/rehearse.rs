//! Goal: a rehearsal keeps to its folder, and what it prints can be typed. Method: the real binary; its steps typed by a shell.

use crate::common::{Motiongear, Place};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn rehearse(place: &Place, work: &str) -> Value {
    Motiongear::new(&place.join("elsewhere")).args(["--json", "rehearse", "--work"]).arg(place.join(work)).run().ok()
}

/// Types `line` into a shell in `work`; what it printed.
fn typed(work: &Path, line: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_motiongear")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let out =
        Command::new("sh").args(["-c", line]).current_dir(work).env("PATH", path).env("LC_ALL", "C").output().unwrap();
    assert!(out.status.success(), "{line}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// The state directory that other verbs would use here is neither made nor written to.
#[test]
fn a_rehearsal_writes_nothing_outside_of_its_work_directory() {
    let place = Place::new();
    let before: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let rehearsed = rehearse(&place, "r");
    assert_eq!(rehearsed["incomplete"], false, "{rehearsed}");
    let after = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let new: Vec<_> = after.filter(|name| !before.contains(name)).collect();
    assert_eq!(new, ["r"]);
    // A second one into the same place, and one that is no more than a dry run, are refused.
    let again = |extra: &[&str]| {
        let command = Motiongear::new(&place.join("elsewhere")).args(["rehearse", "--work"]).arg(place.join("r"));
        assert_eq!(command.args(extra).run().code, 2);
    };
    again(&[]);
    again(&["--dry-run"]);
    assert!(!place.join("elsewhere").exists());
}

/// Each step in another folder with the same keys. What a run itself tells, the spoken code of the seal, is taken from that run.
#[test]
fn each_step_of_a_rehearsal_works_as_it_is_printed() {
    let place = Place::new();
    let rehearsed = rehearse(&place, "r");
    let (first, work) = (place.join("r"), place.dir("by-hand"));
    for file in ["sample.raw", "sign.key", "sign.key.pub", "operator.key", "operator.key.pub", "age.key", "trust"] {
        std::fs::copy(first.join(file), work.join(file)).unwrap();
    }
    std::fs::create_dir(work.join("array")).unwrap();
    let mut code = None;
    let steps: Vec<&str> =
        rehearsed["steps"].as_array().unwrap().iter().map(|step| step["command"].as_str().unwrap()).collect();
    assert!(steps.len() > 12, "{steps:?}");
    for step in steps.iter().filter(|step| !step.contains(" keygen ")) {
        let mut line = step.replacen("motiongear ", "motiongear --json ", 1);
        if let Some((before, _)) = line.split_once("--expect-seal ") {
            line = format!("{before}--expect-seal {}", code.as_deref().unwrap());
        }
        let said: Value = serde_json::from_str(&typed(&work, &line)).unwrap();
        if step.contains(" seal array ") {
            code = Some(said["code"].as_str().unwrap().to_owned());
        }
    }
}
