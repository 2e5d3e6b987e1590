//! Goal: whenever the power goes, the same command run again finishes the work, and nothing that was confirmed is lost.
//!
//! Method: array, state and volumes lie on the tests' own file system (`layer`). Each verb runs once to count its syncs. Then
//! it is cut at every one of them, and after its end; from what a real file system might have left (several fates each, some
//! cut a second time, some with the process killed before the power went) the very same command is run without a cut. What the
//! cut left and what the command made of it are held against the promises of the design; what they are stands at each test.
//! The bounded selection takes the first and the last sync and a few between.

mod checks;
mod stage;

use crate::common::{Motiongear, Ran, json_file, sql, verify_signature};
use crate::faults::layer::{Fate, Tree, World};
use checks::{
    BLOCK, Source, at_rest, at_rest_below, check_erasure, check_nonces, check_volumes, committed_rows, imported_rows,
    scanned_rows,
};
use serde_json::Value;
use stage::{Replay, Stage, Verb, volume_of};
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;

/// Noise, zeros, text and noise again: blocks that are stored as they are, not at all, and small; no page of the first and the
/// last block is zero. And a small disk that is not a multiple of blocks either.
fn disks(noise: usize) -> Vec<(&'static str, Vec<u8>)> {
    let part = |bytes: usize, seed: u64| {
        let mut data = vec![0; bytes];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
        data
    };
    let text = "the same line again and again\n".repeat(40_000);
    let large = [part(noise, 1), vec![0; 2 * MIB], text.into_bytes(), part(300_001, 2)].concat();
    vec![("sda", large), ("sdb", part(MIB + 512, 3))]
}

/// Both engines: they flush and write in ways of their own.
macro_rules! both_engines {
    ($($uring:ident $threads:ident: $verb:ident;)*) => { $(
        #[test]
        fn $uring() {
            $verb("uring");
        }
        #[test]
        fn $threads() {
            $verb("threads");
        }
    )* };
}

both_engines! {
    a_seed_that_loses_power_is_finished_by_the_same_command_uring
    a_seed_that_loses_power_is_finished_by_the_same_command_threads: seed;
    an_import_that_loses_power_is_finished_by_the_same_command_uring
    an_import_that_loses_power_is_finished_by_the_same_command_threads: import;
    an_erasure_that_loses_power_is_finished_by_the_same_command_uring
    an_erasure_that_loses_power_is_finished_by_the_same_command_threads: erase;
    a_scan_that_loses_power_is_finished_by_the_same_command_uring
    a_scan_that_loses_power_is_finished_by_the_same_command_threads: scan;
}

/// No row without its data at any instant; what is committed is not copied again; no nonce is used twice; the digest is that of
/// `b3sum`; the array can be sealed, and verifies with stock tools.
fn seed(engine: &'static str) {
    // More than one batch, so that a cut in the second finds the first committed.
    seed_of(Stage::new(engine, disks(20 * MIB)), Stage::suffer);
}

/// Found by the full run: a process that was killed before its first rows in the ledger were flushed, and one after it that read
/// them and said on the array, durably, whose it is. The power took the rows away, and nobody could go on with the array.
#[test]
fn what_a_killed_seed_wrote_is_durable_before_the_next_one_acts_upon_it() {
    // The ledger gets to know the shipment a few syncs before that.
    let holder = Path::new("array/motiongear/holder.json");
    seed_of(Stage::new("auto", disks(MIB)), |stage, verb| stage.hurry(verb, holder));
}

fn seed_of(stage: Stage, how: impl FnOnce(&Stage, &Verb)) {
    let verb = Verb {
        name: "seed",
        before: stage.prepared(),
        command: &|stage| stage.seed_command(),
        at_cut: &|stage, left| {
            at_rest(stage, left);
            committed_rows(stage, left);
        },
        accepts: &|replay| replay.ran.code == 0,
        recovered: &|stage, replay| {
            let result = replay.ran.ok();
            let committed = committed_rows(stage, replay.left);
            for Source { name, data, digest, .. } in &stage.sources {
                let disk = crate::common::disk(&result["disks"], name);
                assert_eq!(disk["digest"], **digest, "digest of {name}");
                let kept = committed.get(*name).copied().unwrap_or(0);
                assert_eq!(disk["skipped_bytes"], kept, "{name}: committed bytes that are not copied again");
                assert_eq!(disk["read_bytes"], data.len() as u64 - kept, "{name}: bytes that are");
                assert!(replay.finished.is_none() || kept == data.len() as u64, "{name}: it was said to be copied");
            }
            check_nonces(stage, &replay.logs);
            stage.branch.seal();
            stage.branch.check_with_stock_tools();
            stage.branch.check_stand_alone();
        },
    };
    how(&stage, &verb);
}

/// A sealed array is whole and the ledger knows its seal; the code that was read out over the telephone stays the code.
#[test]
fn a_seal_that_loses_power_is_finished_by_the_same_command() {
    let stage = Stage::new("auto", disks(2 * MIB));
    stage.suffer(&Verb {
        name: "seal",
        before: stage.after(&stage.prepared(), || drop(stage.seed_command().run().ok())),
        command: &Stage::seal_command,
        at_cut: &|stage, left| {
            at_rest(stage, left);
            committed_rows(stage, left);
        },
        accepts: &|replay| replay.ran.code == 0 || replay.ran.stderr.contains("it is sealed already"),
        recovered: &|stage, replay| {
            let branch = &stage.branch;
            if let Some(first) = &replay.finished {
                assert_eq!(first["digest"], crate::common::b3sum(&branch.on("seal.json")), "the seal that was told");
            }
            assert!(!branch.on("holder.json").exists(), "no ledger holds a sealed shipment");
            for Source { name, digest, .. } in &stage.sources {
                assert_eq!(crate::common::disk(&branch.seal_json()["disks"], name)["digest"], **digest);
            }
            branch.check_with_stock_tools();
            branch.check_stand_alone();
            // A dispatch compares the seal with the ledger's.
            stage.verify();
            stage.custody("dispatch").run().ok();
        },
    });
}

fn import(engine: &'static str) {
    let stage = Stage::new(engine, disks(28 * MIB));
    let before = stage.delivered();
    import_into(&stage, "import", before, None, Stage::suffer);
}

/// Found by the full run: a process that was killed before the name of a raw file was durable, and one after it that found the
/// file there, asked no more, and finished. The power took the volume away that the ledger called done.
#[test]
fn a_volume_that_a_killed_import_made_is_there_when_the_next_one_is_done_and_the_power_goes() {
    let stage = Stage::new("auto", disks(MIB));
    let before = stage.delivered();
    import_into(&stage, "import", before, None, |stage, verb| stage.outlive(verb, &[Fate::DataOnly]));
}

/// As the others, where another disk lies in the volume that would boot.
#[test]
fn an_import_over_another_disk_that_loses_power_is_finished_by_the_same_command() {
    let stage = Stage::new("auto", disks(3 * MIB));
    let old: Vec<u8> = stage.sources[0].data.iter().map(|byte| byte.wrapping_add(101)).collect();
    let before = stage.after(&stage.delivered(), || {
        let volume = stage.mount.join(volume_of(&stage.branch.site, "sda"));
        std::fs::create_dir_all(volume.parent().unwrap()).unwrap();
        std::fs::write(volume, &old).unwrap();
    });
    import_into(&stage, "import over", before, Some(&old), Stage::suffer);
}

/// A volume cannot boot before it is proven, at every instant; what the ledger calls written is on the volume; a finished import
/// is the disk, proven enough to erase the array.
fn import_into(stage: &Stage, name: &'static str, before: World, old: Option<&[u8]>, how: impl FnOnce(&Stage, &Verb)) {
    let verb = Verb {
        name,
        before,
        command: &|stage| stage.import_command().args(old.map(|_| "--overwrite")),
        at_cut: &|stage, left| {
            at_rest(stage, left);
            check_volumes(stage, left, old);
            imported_rows(stage, left);
        },
        accepts: &|replay| replay.ran.code == 0,
        recovered: &|stage, replay| {
            let result = replay.ran.ok();
            let marks = imported_rows(stage, replay.left);
            for Source { name, data, digest, .. } in &stage.sources {
                let disk = crate::common::disk(&result["disks"], name);
                assert_eq!((&disk["digest"], &disk["damaged"]), (&Value::from(&**digest), &Value::from(0)), "{disk}");
                let mark = marks.get(*name).copied().unwrap_or(0);
                assert_eq!(disk["resumed_from_block"], mark, "{name}: committed blocks that are not written again");
                let again = data.len() as u64 - (mark * BLOCK as u64).min(data.len() as u64);
                // The ends are written once more when they are released.
                assert!(disk["written_bytes"].as_u64().unwrap() <= again + 2 * BLOCK as u64, "{disk}");
                let volume = stage.mount.join(volume_of(&stage.branch.site, name));
                assert!(std::fs::read(&volume).unwrap() == *data, "{} is not the disk", volume.display());
                assert!(replay.finished.is_none() || disk["state"] == "already-imported", "{name}: it was imported");
            }
            stage.erase_command().arg("--dry-run").run().ok();
        },
    };
    how(stage, &verb);
}

/// What differs is found, and a scan that is on record has its bitmap.
fn scan(engine: &'static str) {
    let stage = Stage::new(engine, disks(2 * MIB));
    let before = stage.after(&stage.prepared(), || {
        stage.seed_command().run().ok();
        stage.seal_command().run().ok();
    });
    let source = &stage.sources[0].path;
    crate::common::write_at(source, 3 * BLOCK as u64 + 5, b"changed");
    crate::common::write_at(source, 40 * BLOCK as u64, b"no longer zero");
    crate::common::write_at(source, 7 * BLOCK as u64, &[0; BLOCK]);
    stage.suffer(&Verb {
        name: "scan",
        before,
        command: &|stage| stage.at_branch().arg("scan"),
        at_cut: &|stage, left| {
            at_rest(stage, left);
            scanned_rows(stage, left);
        },
        accepts: &|replay| replay.ran.code == 0,
        recovered: &|stage, replay| {
            let result = replay.ran.ok();
            let tally = &crate::common::disk(&result["disks"], "sda")["blocks"];
            assert_eq!((&tally["changed"], &tally["zeroed"]), (&Value::from(2), &Value::from(1)), "{tally}");
            let tally = &crate::common::disk(&result["disks"], "sdb")["blocks"];
            assert_eq!((&tally["unchanged"], &tally["changed"]), (&Value::from(17), &Value::from(0)), "{tally}");
            let kept = scanned_rows(stage, replay.left);
            assert!(replay.finished.is_none() || kept >= 2, "a scan that was told is on record");
            let rows = sql(&stage.branch.state.join("ledger.db"), "SELECT count(*) FROM scan");
            assert_eq!(rows.parse::<usize>().unwrap(), kept + 2);
        },
    });
}

/// Whether a custody event is recorded, now or before.
fn stands(ran: &Ran) -> bool {
    ran.code == 0
}

/// What every custody test asks of an instant: whatever became of the event, nothing but its leftover is found fault with, and
/// that stands in nobody's way: whoever checks the array before going on can go on all the same.
fn sealed_still(stage: &Stage, left: &Tree, command: &dyn Fn() -> Motiongear) {
    at_rest(stage, left);
    stage.on(World::of(left.clone()), || {
        let check = stage.at_branch().arg("verify").arg(&stage.branch.array).run();
        let findings: Value = serde_json::from_str(&check.stdout).unwrap_or_else(|_| panic!("{}", check.stderr));
        for finding in findings["findings"]["list"].as_array().unwrap() {
            let object = finding["object"].as_str().unwrap();
            assert!(finding["severity"] != "error" || object.starts_with("custody/"), "{finding}");
        }
        let mut ran = command().run();
        if !stands(&ran) {
            stage.verify();
            ran = command().run();
        }
        assert!(stands(&ran), "after a check: exit {}: {}", ran.code, ran.stderr);
        stage.branch.check_stand_alone();
    });
}

fn check_event(stage: &Stage, state: &Path, file: &str, signer: &str, replay: &Replay) {
    stage.branch.check_stand_alone();
    let event = stage.branch.on("custody").join(file);
    verify_signature(&stage.branch.trust, signer, "motiongear-custody", &event);
    if let Some(first) = &replay.finished {
        assert_eq!(json_file(&event)["at"], first["at"], "the event that was told");
    }
    let shipment = stage.branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
    let kept = state.join("custody").join(shipment).join("array").join(file);
    assert_eq!(std::fs::read(&kept).ok(), std::fs::read(&event).ok(), "this host's own copy, {}", kept.display());
    let number = &file[..4];
    let names = std::fs::read_dir(stage.branch.on("custody")).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<_> = names.filter(|name| name.to_str().unwrap().starts_with(number)).collect();
    names.sort();
    assert_eq!(names, [file.to_owned(), format!("{file}.sig")].map(std::ffi::OsString::from));
}

/// The chain is the old one or the new one, and a shipment that was dispatched is never reopened.
#[test]
fn a_dispatch_that_loses_power_is_finished_by_the_same_command() {
    let stage = Stage::new("auto", disks(MIB));
    stage.suffer(&Verb {
        name: "custody dispatch",
        before: stage.after(&stage.sealed(), || stage.verify()),
        command: &|stage| stage.custody("dispatch"),
        at_cut: &|stage, left| sealed_still(stage, left, &|| stage.custody("dispatch")),
        accepts: &|replay| stands(&replay.ran),
        recovered: &|stage, replay| {
            check_event(stage, &stage.branch.state, "0001-dispatched.json", "zhang@river-bank", replay);
            stage.seed_command().arg("--reopen").run().refused(1, &["it was dispatched"]);
        },
    });
}

/// The chain is the old one or the new one.
#[test]
fn a_receipt_that_loses_power_is_finished_by_the_same_command() {
    let stage = Stage::new("auto", disks(MIB));
    stage.suffer(&Verb {
        name: "custody receive",
        before: stage.after(&stage.sealed(), || {
            stage.verify();
            stage.custody("dispatch").run().ok();
        }),
        command: &|stage| stage.custody("receive"),
        at_cut: &|stage, left| sealed_still(stage, left, &|| stage.custody("receive")),
        accepts: &|replay| stands(&replay.ran),
        recovered: &|stage, replay| {
            check_event(stage, &stage.mount.join("centre"), "0002-received.json", "wang@centre", replay);
        },
    });
}

/// Keys go before packs, nothing goes before it is on record what it was, and an array that calls itself erased has its
/// certificate.
fn erase(engine: &'static str) {
    let stage = Stage::new(engine, disks(5 * MIB));
    let before = stage.after(&stage.delivered(), || drop(stage.import_command().run().ok()));
    stage.suffer(&Verb {
        name: "erase",
        before: before.clone(),
        command: &Stage::erase_command,
        at_cut: &|_, left| {
            at_rest_below("centre", left);
            check_erasure(&before.now, left);
        },
        accepts: &|replay| replay.ran.code == 0,
        recovered: &|stage, replay| {
            let array: Vec<PathBuf> = files_below(&stage.branch.array);
            assert_eq!(array, [stage.branch.on("erased.json")]);
            let mut certificates = files_below(&stage.mount.join("centre/certificates"));
            certificates.retain(|path| !path.file_name().unwrap().as_encoded_bytes().starts_with(b"."));
            // The document and what people read, each with its signature.
            let [page, _, certificate, _] = &certificates[..] else { panic!("{certificates:?}") };
            for signed in [certificate, page] {
                verify_signature(&stage.branch.trust, "wang@centre", "motiongear-erase", signed);
            }
            assert_eq!(json_file(&stage.branch.on("erased.json"))["certificate"], crate::common::b3sum(certificate));
            let facts = json_file(certificate);
            assert_eq!((&facts["proven"], facts["disks"].as_array().unwrap().len()), (&Value::from(true), 2));
            let said = replay.finished.as_ref().map_or(&Value::Null, |first| &first["certificate"]);
            assert!(said.is_null() || Path::new(said.as_str().unwrap()) == certificate, "{said}");
            let chain = files_below(&stage.mount.join("centre/custody"));
            assert_eq!(chain.iter().filter(|path| path.to_str().unwrap().ends_with("-erased.json")).count(), 1);
            let litter = files_below(&stage.mount.join("centre/erasures"));
            assert!(litter.is_empty(), "left by runs that lost power: {litter:?}");
            // Free for the next site.
            stage.init().ok();
        },
    });
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The commands, and the worlds that several tests begin with.
impl Stage {
    fn seal_command(&self) -> Motiongear {
        let seal = self.at_branch().arg("seal").arg(&self.branch.array);
        seal.arg("--key").arg(&self.branch.key).arg("--trust").arg(&self.branch.trust)
    }
    fn verify(&self) {
        self.at_branch().arg("verify").arg(&self.branch.array).run().ok();
    }
    fn custody(&self, way: &str) -> Motiongear {
        let (host, key) = match way {
            "dispatch" => (self.at_branch(), &self.branch.key),
            _ => (self.at_centre(), &self.operator),
        };
        let custody = host.args(["custody", way]).arg(&self.branch.array).args(["--box-seal", "A1", "--place", "yard"]);
        custody.arg("--key").arg(key).arg("--trust").arg(&self.branch.trust)
    }
    fn import_command(&self) -> Motiongear {
        let to = format!("dir:{}", self.mount.join("volumes").display());
        let import = self.at_centre().arg("import").arg(&self.branch.array).args(["--to", &to]);
        import.arg("--trust").arg(&self.branch.trust).arg("--identity").arg(&self.branch.identity)
    }
    fn erase_command(&self) -> Motiongear {
        let erase = self.at_centre().arg("erase").arg(&self.branch.array).args(["--asset", "TAG-7"]);
        erase.arg("--key").arg(&self.operator).arg("--trust").arg(&self.branch.trust)
    }
    fn sealed(&self) -> World {
        self.after(&self.prepared(), || {
            self.seed_command().run().ok();
            self.seal_command().run().ok();
        })
    }
    fn delivered(&self) -> World {
        self.after(&self.sealed(), || {
            self.verify();
            self.custody("dispatch").run().ok();
            self.custody("receive").run().ok();
            std::fs::create_dir(self.mount.join("volumes")).unwrap();
        })
    }
}
