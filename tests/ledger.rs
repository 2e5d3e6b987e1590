//! Goal: an unsealed shipment is held by exactly one ledger, and keys that MotionGear makes are the stock tools' own.

use super::common::run::Motiongear;
use super::common::{Branch, LoopArray, tool, verify_signature};
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_shipment_moves_to_another_host_and_is_never_held_twice() {
    let branch = Branch::ready();
    let disk = branch.place.file("disk.img", vec![5u8; 3 << 20]);
    branch.seed(&[("sda", &disk)], &["--point-in-time"]).ok();
    let shipment = branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
    let other_state = branch.place.join("other");
    let other = || Motiongear::new(&other_state).arg("--json");
    let seed = |command: Motiongear| {
        let command = command.arg("seed").arg(&branch.array).args(["--machine", "db01", "--point-in-time"]);
        command.arg("--disk").arg(format!("sda={}", disk.display())).run()
    };
    seed(other()).refused(1, &["held by the ledger"]);
    let package = branch.place.join("package");
    let export = || branch.run(["ledger", "move", "--shipment", &shipment, "--export", package.to_str().unwrap()]);
    let code = export().ok()["package_code"].as_str().unwrap().to_owned();
    assert_eq!(export().ok()["package_code"], code.as_str());
    assert_eq!(package.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    seed(branch.motiongear()).refused(1, &["moved"]);
    let take_as = |command: Motiongear, code: &[&str]| {
        let command = command.args(["ledger", "move", "--import"]).arg(&package).arg("--array").arg(&branch.array);
        command.args(code).run()
    };
    let take = |command: Motiongear| take_as(command, &["--package-code", &code]);
    // A package proves nothing by itself.
    take_as(other(), &[]).code(2);
    take_as(other(), &["--package-code", "0000-0000-0000"]).code(4);
    take(other()).ok();
    take(other()).refused(1, &["holds it already"]);
    take(branch.motiongear()).refused(1, &["package is older"]);
    let shown = other().args(["ledger", "show"]).run().ok();
    assert_eq!(shown["shipments"][0]["uuid"], shipment.as_str());
    seed(other()).ok();
    other().arg("seal").arg(&branch.array).arg("--key").arg(&branch.key).run().ok();
    branch.check_with_stock_tools();
    take(branch.motiongear()).refused(1, &["sealed"]);
}

/// Found by a random history: killed between the ledger's row and holder.json, here refused by the medium at that moment.
#[test]
fn a_shipment_whose_seed_never_reached_the_array_can_be_moved_all_the_same() {
    let branch = Branch::new();
    let array = LoopArray::ext4(&branch.place.join("array.raw"), 64 << 20, &branch.array);
    branch.init(&[]);
    let disk = branch.place.file("disk.img", vec![5u8; 3 << 20]);
    let shipment = branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
    array.remount("ro");
    branch.seed(&[("sda", &disk)], &[]).refused(1, &["ead-only"]);
    array.remount("rw");
    assert!(!branch.on("holder.json").exists());
    let shown = branch.run(["ledger", "show"]).ok();
    assert_eq!(shown["shipments"][0]["state"], "seeding");
    let package = branch.place.join("package");
    let moved = branch.run(["ledger", "move", "--shipment", &shipment, "--export", package.to_str().unwrap()]).ok();
    let code = moved["package_code"].as_str().unwrap();
    let other_state = branch.place.join("other");
    let other = || Motiongear::new(&other_state).arg("--json");
    let take = other().args(["ledger", "move", "--package-code", code, "--import"]).arg(&package);
    take.arg("--array").arg(&branch.array).run().ok();
    branch.seed(&[("sda", &disk)], &[]).refused(1, &["held by the ledger"]);
    let seed = other().arg("seed").arg(&branch.array).args(["--machine", "db01", "--disk"]);
    seed.arg(format!("sda={}", disk.display())).run().ok();
    other().arg("seal").arg(&branch.array).arg("--key").arg(&branch.key).run().ok();
    branch.check_with_stock_tools();
}

#[test]
fn keys_are_what_the_stock_tools_make() {
    let branch = Branch::new();
    let (key, identity) = (branch.place.join("made"), branch.place.join("made.age"));
    let make = |extra: &[&str]| branch.motiongear().args(["--json", "keygen"]).args(extra).run();
    let made = make(&["sign", "--out", key.to_str().unwrap(), "--name", "li@river-bank"]).ok();
    assert!(tool("ssh-keygen", ["-l", "-f", key.to_str().unwrap()]).contains(made["fingerprint"].as_str().unwrap()));
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    make(&["sign", "--out", key.to_str().unwrap(), "--name", "li@river-bank"]).refused(2, &["never overwritten"]);
    make(&["sign", "--out", "x", "--name", "no site"]).refused(2, &[]);
    let made = make(&["age", "--out", identity.to_str().unwrap()]).ok();
    assert_eq!(tool("age-keygen", ["-y", identity.to_str().unwrap()]).trim(), made["public"].as_str().unwrap());
    assert_eq!(identity.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let protected = branch.place.join("protected");
    let command =
        branch.motiongear().args(["--json", "keygen", "sign", "--passphrase", "--name", "li@river-bank", "--out"]);
    command.arg(&protected).run_with_input("secret\nsecret\n").ok();
    assert!(tool("ssh-keygen", ["-y", "-P", "secret", "-f", protected.to_str().unwrap()]).starts_with("ssh-ed25519"));
    // It seals.
    branch.init(&[]);
    let disk = branch.place.file("disk.img", vec![5u8; 1 << 20]);
    branch.seed(&[("sda", &disk)], &[]).ok();
    branch.on_array("seal", ["--key", key.to_str().unwrap()]).ok();
    let trust = branch.place.file("trust", super::common::trust_line(&key, "li@river-bank", ""));
    verify_signature(&trust, "li@river-bank", "motiongear-seal", &branch.on("seal.json"));
}
