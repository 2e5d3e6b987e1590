//! Goal: a seal says what is on the array, by somebody who may say so, or there is no seal.
//!
//! Method: the real binary over small disks; seals are judged by `ssh-keygen -Y verify`, `b3sum` and the stand-alone checker.

use crate::common::{Branch, b3sum, disk, json_file, noise, sql, ssh_key, tool, trust_line, verify_signature};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// A seeded array with one disk, and the disk.
fn seeded() -> (Branch, PathBuf) {
    let branch = Branch::ready();
    let image = branch.place.join("sda.img");
    noise(&image, 3 * MIB + 9, 1);
    branch.seed(&[("sda", &image)], &[]).ok();
    (branch, image)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every file on the array and in the state directory, with its digest: what must not change when nothing was to be done.
fn everything(branch: &Branch) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, (u64, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            // SQLite's shared memory is made by readers, too, and holds nothing.
            if path.is_dir() {
                walk(&path, found);
            } else if !path.to_string_lossy().ends_with("-shm") {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path, (bytes.len() as u64, blake3::hash(&bytes).as_bytes().to_vec()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&branch.array, &mut found);
    found
}

#[test]
fn a_seal_pins_everything_and_stock_tools_agree() {
    for kind in ["ed25519", "ecdsa"] {
        let (mut branch, image) = seeded();
        branch.key = ssh_key(&branch.place.join("own"), "li@river-bank", kind, "");
        branch.trust = branch.place.file("own-trust", trust_line(&branch.key, "*@river-bank", ""));
        let result = branch.seal();
        branch.check_with_stock_tools();
        branch.check_stand_alone();
        let seal = branch.seal_json();
        assert_eq!(seal["signer"], "li@river-bank");
        assert_eq!(seal["site"], branch.shipment_json()["site"]);
        assert_eq!(seal["disks"][0]["digest"], b3sum(&image));
        assert_eq!(result["digest"], b3sum(&branch.on("seal.json")), "the seal digest is the b3sum of seal.json");
        assert_eq!(result["code"].as_str().unwrap().len(), 14);
        assert_eq!(result["signer_checked"], true);
        for file in ["seal.json", "seal.json.sig", "shipment.json", "manifest.db.age", "keys/0001.age"] {
            assert_eq!(b3sum(&branch.on(file)), b3sum(&branch.on("copy").join(file)), "second copy of {file}");
        }
        assert!(!branch.on("holder.json").exists(), "a sealed shipment has no holder");
        // Another namespace does not do.
        let out = std::process::Command::new("ssh-keygen")
            .args(["-Y", "verify", "-I", "li@river-bank", "-n", "motiongear-custody", "-f", text(&branch.trust)])
            .args(["-s", text(&branch.on("seal.json.sig"))])
            .stdin(std::fs::File::open(branch.on("seal.json")).unwrap())
            .output()
            .unwrap();
        assert!(!out.status.success(), "a seal's signature is no signature of custody");
    }
}

#[test]
fn disks_that_were_planned_and_not_copied_stop_the_seal_unless_left_out_with_a_reason() {
    let branch = Branch::ready();
    let (good, dead) = (branch.place.join("good"), branch.place.join("dead"));
    noise(&good, 2 * MIB, 1);
    noise(&dead, 32 * MIB, 2);
    let device = crate::common::loop_device(&dead);
    std::fs::File::options().write(true).open(&dead).unwrap().set_len(16 * MIB).unwrap();
    branch.seed(&[("sda", &good), ("sdb", device.path())], &[]).code(3);
    branch.seed(&[("sda", &good)], &[]).ok();
    let key = text(&branch.key);
    branch.on_array("seal", ["--key", key]).refused(1, &["unfinished", "db01/sdb", "--without"]);
    assert!(!branch.on("seal.json").exists());
    branch.on_array("seal", ["--key", key, "--without", "db01/sdb"]).refused(2, &["--reason"]);
    branch.on_array("seal", ["--key", key, "--without", "db01/sdb", "--reason", "  "]).refused(2, &["reason"]);
    branch
        .on_array("seal", ["--key", key, "--without", "db01/sdx", "--reason", "r"])
        .refused(2, &["sdx", "no such disk"]);
    branch
        .on_array("seal", ["--key", key, "--without", "db01/sdx", "--without", "db01/sdb", "--reason", "r"])
        .refused(2, &["sdx"]);
    let dry =
        branch.on_array("seal", ["--key", key, "--without", "db01/sdb", "--reason", "its head crashed", "--dry-run"]);
    assert!(dry.ok()["digest"].is_null());
    branch.on_array("seal", ["--key", key]).refused(1, &["unfinished"]);
    branch.on_array("seal", ["--key", key, "--without", "db01/sdb", "--reason", "its head crashed"]).ok();
    let seal = branch.seal_json();
    assert_eq!(seal["disks"].as_array().unwrap().len(), 1);
    assert_eq!(seal["excluded"][0]["disk"], "sdb");
    assert_eq!(seal["excluded"][0]["reason"], "its head crashed");
    branch.check_with_stock_tools();
    branch.check_stand_alone();
}

#[test]
fn who_may_not_seal_does_not() {
    let (branch, _) = seeded();
    let key = text(&branch.key);
    let refused = |arguments: &[&str], code: i32, parts: &[&str]| {
        branch.on_array("seal", arguments).refused(code, parts);
        assert!(!branch.on("seal.json").exists(), "{parts:?} left a seal");
        assert!(!branch.on("copy/seal.json").exists(), "{parts:?} left a copy of a seal");
    };
    // Somebody of another site, by name and by key comment.
    refused(&["--key", key, "--signer", "zhang@other-bank"], 4, &["river-bank", "other-bank"]);
    let other = ssh_key(&branch.place.join("other"), "wu@other-bank", "ed25519", "");
    refused(&["--key", text(&other)], 4, &["river-bank", "other-bank"]);
    refused(&["--key", key, "--signer", "zhang"], 4, &["zhang"]);
    refused(&["--key", text(&branch.place.join("no-key"))], 1, &["no-key"]);
    refused(&["--key", text(&branch.trust)], 1, &["Key"]);
    // A trust file that does not know the key, knows it under another name, for another namespace, or for another time.
    let trust = |name: &str, line: String| branch.place.file(name, line);
    let line = |principal: &str, options: &str| trust_line(&branch.key, principal, options);
    let stranger = ssh_key(&branch.place.join("stranger"), "zhang@river-bank", "ed25519", "");
    for (name, text_of, part) in [
        ("stranger", trust_line(&stranger, "zhang@river-bank", ""), "zhang@river-bank"),
        ("renamed", line("li@river-bank", ""), "zhang@river-bank"),
        ("namespace", line("zhang@river-bank", "namespaces=\"motiongear-custody\""), "motiongear-seal"),
        ("expired", line("zhang@river-bank", "valid-before=\"20200101\""), "zhang@river-bank"),
        ("early", line("zhang@river-bank", "valid-after=\"20990101\""), "zhang@river-bank"),
        ("negated", line("!zhang@river-bank,*@river-bank", ""), "zhang@river-bank"),
        ("empty", String::new(), "zhang@river-bank"),
    ] {
        let file = trust(name, text_of);
        refused(&["--key", key, "--trust", text(&file)], 4, &[part]);
    }
    let nonsense = trust("nonsense", "this is no line of an allowed signers file\n".into());
    refused(&["--key", key, "--trust", text(&nonsense)], 4, &["line 1 cannot be read"]);
    for (name, options) in
        [("ok", "namespaces=\"motiongear-*\""), ("valid", "valid-after=\"20200101\",valid-before=\"20990101\"")]
    {
        let file = trust(name, line("*@river-bank", options));
        assert!(branch.on_array("seal", ["--key", key, "--trust", text(&file), "--dry-run"]).ok()["digest"].is_null());
    }
    assert!(!branch.on("seal.json").exists());
    branch.seal();
    branch.check_with_stock_tools();
}

#[test]
fn a_key_with_a_passphrase_asks_for_it() {
    let (mut branch, _) = seeded();
    branch.key = ssh_key(&branch.place.join("locked"), "chen@river-bank", "ed25519", "长 passphrase");
    branch.trust = branch.place.file("trust", trust_line(&branch.key, "chen@river-bank", ""));
    let seal = |input: &str| {
        let command = branch.motiongear().args(["--json", "seal"]).arg(&branch.array).arg("--key").arg(&branch.key);
        command.arg("--trust").arg(&branch.trust).run_with_input(input)
    };
    let said = seal("wrong\n").refused(1, &["Key", "locked"]);
    assert!(!said.contains("wrong\n  "), "a passphrase is not repeated: {said}");
    // Nobody to ask.
    seal("").refused(2, &["Key"]);
    assert!(!branch.on("seal.json").exists());
    // Blank lines behind a key say nothing, as to ssh-keygen.
    let key = std::fs::read_to_string(&branch.key).unwrap();
    std::fs::write(&branch.key, key + "\n \n").unwrap();
    let ran = seal("长 passphrase\n");
    ran.ok();
    assert!(!ran.stdout.contains("passphrase") && !ran.stderr.contains("长 passphrase"));
    branch.check_with_stock_tools();
}

#[test]
fn a_reopened_shipment_is_sealed_anew_and_names_the_seal_before() {
    let (branch, image) = seeded();
    let first = branch.seal();
    let key = text(&branch.key);
    // The same command once more is told the same, and changes nothing; another signer is refused.
    let sealed = everything(&branch);
    let again = branch.on_array("seal", ["--key", key]).ok();
    assert_eq!((&again["digest"], again["sealed_already"].is_string()), (&first["digest"], true));
    let other = ssh_key(&branch.place.join("another"), "li@river-bank", "ed25519", "");
    branch.on_array("seal", ["--key", text(&other)]).code(1);
    assert!(sealed == everything(&branch), "a seal that was there already was changed");
    let more = branch.place.join("sdb.img");
    noise(&more, 2 * MIB, 9);
    branch.seed(&[("sdb", &more)], &[]).refused(1, &["sealed", "--reopen"]);
    let before = everything(&branch);
    branch.seed(&[("sdb", &more)], &["--reopen", "--dry-run"]).ok();
    assert!(before == everything(&branch), "a dry run changed the array");
    branch.seed(&[("sdb", &more)], &["--reopen"]).ok();
    let second = branch.seal();
    let seal = branch.seal_json();
    assert_eq!(seal["supersedes"], first["digest"]);
    assert_eq!(second["supersedes"], first["digest"]);
    assert_ne!(second["digest"], first["digest"]);
    assert_eq!(disk(&seal["disks"], "sda")["digest"], b3sum(&image));
    assert_eq!(disk(&seal["disks"], "sdb")["digest"], b3sum(&more));
    branch.check_with_stock_tools();
    branch.check_stand_alone();
    // And once more, with nothing new: a third seal that names the second.
    branch.seed(&[("sda", &image)], &["--reopen"]).ok();
    let third = branch.seal();
    assert_eq!(third["supersedes"], second["digest"]);
    branch.check_with_stock_tools();
    branch.check_stand_alone();
}

#[test]
fn dry_runs_write_nothing() {
    let (branch, image) = seeded();
    let before = everything(&branch);
    let plan = branch.seed(&[("sda", &image)], &["--dry-run"]).ok();
    assert_eq!(plan["plan"]["disks"][0]["done_bytes"], 3 * MIB + 9);
    let rows = sql(&branch.live_manifest(), "SELECT count(*) FROM process");
    branch.on_array("seal", ["--key", text(&branch.key), "--dry-run"]).ok();
    assert!(before == everything(&branch), "a dry run changed the array");
    assert_eq!(sql(&branch.live_manifest(), "SELECT count(*) FROM process"), rows);
}

fn flip_last_bit(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn one_bad_copy_of_two_is_made_whole_and_an_envelope_without_a_good_one_is_no_seal() {
    // Missing or flipped, first or second: the manifest knows which of the two is as it was written.
    for file in ["keys/0001.age", "shipment.json"] {
        for bad in [file.to_owned(), format!("copy/{file}")] {
            for act in [flip_last_bit, |file: &Path| std::fs::remove_file(file).unwrap()] {
                let (branch, image) = seeded();
                let good = std::fs::read(branch.on(&bad)).unwrap();
                act(&branch.on(&bad));
                branch.seed(&[("sda", &image)], &[]).ok();
                act(&branch.on(&bad));
                branch.seal();
                assert_eq!(std::fs::read(branch.on(&bad)).unwrap(), good, "{bad} was made from its second copy");
                branch.check_with_stock_tools();
                branch.check_stand_alone();
            }
        }
    }
    // Without its envelope what a process wrote can never be read: that must not be found out after the road.
    for act in [flip_last_bit, |file: &Path| std::fs::remove_file(file).unwrap()] {
        let (branch, image) = seeded();
        for file in ["keys/0001.age", "copy/keys/0001.age"] {
            act(&branch.on(file));
        }
        branch.on_array("seal", ["--key", text(&branch.key)]).refused(1, &["keys/0001.age", "found neither"]);
        assert!(!branch.on("seal.json").exists());
        branch.seed(&[("sda", &image)], &[]).refused(1, &["keys/0001.age", "found neither"]);
    }
}

#[test]
fn an_envelope_of_a_process_that_wrote_nothing_is_cleared_away() {
    let (branch, _) = seeded();
    // What a crash leaves between the envelope and its digest in the manifest.
    let row = "INSERT INTO process VALUES (99, NULL, 'db01', 'test', '2026-11-20T08:00:00Z', NULL, NULL)";
    tool("sqlite3", [branch.live_manifest().as_os_str(), row.as_ref()]);
    for file in ["keys/0099.age", "copy/keys/0099.age"] {
        std::fs::copy(branch.on("keys/0001.age"), branch.on(file)).unwrap();
    }
    branch.seal();
    assert!(!branch.on("keys/0099.age").exists() && !branch.on("copy/keys/0099.age").exists());
    branch.check_stand_alone();
}

#[test]
fn a_run_that_ended_between_two_packs_leaves_nothing_that_cannot_be_sealed() {
    // The row of a new pack is committed at once, the end of the pack before it with the next batch: what a crash or a full array
    // leaves in between. A pack takes 8 GiB, so the rows are set as they were found after a SIGKILL at that moment.
    let two_open = |branch: &Branch| {
        let row = "INSERT INTO pack VALUES (2, 1, 'packs/00000002.pack', 0, 0, NULL, NULL)";
        tool("sqlite3", [branch.live_manifest().as_os_str(), row.as_ref()]);
        let mut pack = std::fs::File::options().append(true).open(&branch.packs()[0]).unwrap();
        std::io::Write::write_all(&mut pack, &[7; 12_345]).unwrap();
        std::fs::write(branch.on("packs/00000002.pack"), [7; 4096]).unwrap();
    };
    let (branch, _) = seeded();
    two_open(&branch);
    branch.seal();
    assert_eq!(branch.packs().len(), 1, "a pack without a record is gone");
    branch.check_with_stock_tools();
    branch.check_stand_alone();
    let (branch, image) = seeded();
    two_open(&branch);
    let more = branch.place.join("sdb.img");
    noise(&more, 2 * MIB, 2);
    branch.seed(&[("sda", &image), ("sdb", &more)], &[]).ok();
    branch.seal();
    assert_eq!(branch.packs().len(), 2);
    branch.check_with_stock_tools();
    branch.check_stand_alone();
}

#[test]
fn a_pack_that_is_not_what_was_written_is_not_sealed() {
    let (branch, _) = seeded();
    let pack = branch.packs()[0].clone();
    std::fs::File::options().write(true).open(&pack).unwrap().set_len(MIB).unwrap();
    branch.on_array("seal", ["--key", text(&branch.key)]).refused(1, &["00000001.pack"]);
    let (branch, _) = seeded();
    std::fs::remove_file(&branch.packs()[0]).unwrap();
    branch.on_array("seal", ["--key", text(&branch.key)]).refused(1, &["00000001.pack"]);
    assert!(!branch.on("seal.json").exists());
}

#[test]
fn a_shipment_is_sealed_by_the_host_that_seeded_it() {
    let (mut branch, _) = seeded();
    let own = std::mem::replace(&mut branch.state, branch.place.join("elsewhere"));
    branch.on_array("seal", ["--key", text(&branch.key)]).refused(1, &["ledger"]);
    branch.state = own;
    branch.seal();
    // A seal's own copy stays at the branch.
    let uuid = branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
    let kept = branch.state.join("shipments").join(uuid).join("seal.json");
    assert_eq!(json_file(&kept), branch.seal_json());
    verify_signature(&branch.trust, "zhang@river-bank", "motiongear-seal", &kept);
}
