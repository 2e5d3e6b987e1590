//! Goal: nobody dispatches what was not checked, nobody takes over what was tampered with, and every event is a stock SSH
//! signature. Method: a real branch and a real data centre, each with a state directory of its own, and one array between them.

use super::common::{Branch, json_file, ssh_key, trust_line, verify_signature};
use std::path::PathBuf;

/// A sealed array, and the key of somebody at the data centre, who is trusted too.
pub fn sealed() -> (Branch, PathBuf) {
    sealed_with(Branch::ready())
}

/// As [`sealed`], of an array that was prepared already.
pub fn sealed_with(branch: Branch) -> (Branch, PathBuf) {
    let disk = branch.place.file("disk.img", [vec![7u8; 3 << 20], vec![0; 2 << 20], b"tail".to_vec()].concat());
    branch.seed(&[("sda", &disk)], &["--point-in-time"]).ok();
    branch.seal();
    let operator = ssh_key(&branch.place.join("operator"), "wang@centre", "ecdsa", "");
    let mut trust = std::fs::read_to_string(&branch.trust).unwrap();
    trust.push_str(&trust_line(&operator, "wang@centre", "namespaces=\"motiongear-*\""));
    std::fs::write(&branch.trust, trust).unwrap();
    (branch, operator)
}

/// The data centre's own state directory.
pub fn centre(branch: &Branch) -> super::common::run::Motiongear {
    super::common::run::Motiongear::new(&branch.place.join("centre")).arg("--json")
}

/// `custody WAY ARRAY --key KEY --trust TRUST EXTRA` at the branch.
fn dispatch(branch: &Branch, extra: &[&str]) -> super::common::Ran {
    let command =
        branch.motiongear().args(["--json", "custody", "dispatch"]).arg(&branch.array).arg("--key").arg(&branch.key);
    command.arg("--trust").arg(&branch.trust).args(extra).run()
}

fn receive(branch: &Branch, key: &PathBuf, extra: &[&str]) -> super::common::Ran {
    let command = centre(branch).args(["custody", "receive"]).arg(&branch.array).arg("--key").arg(key);
    command.arg("--trust").arg(&branch.trust).args(extra).run()
}

/// Verified, dispatched and received.
pub fn delivered() -> (Branch, PathBuf) {
    let (branch, operator) = sealed();
    deliver(branch, operator)
}

/// As [`delivered`], of a sealed array.
pub fn deliver(branch: Branch, operator: PathBuf) -> (Branch, PathBuf) {
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &["--person", "张师傅", "--box-seal", "A1", "--box-seal", "A2", "--place", "yard"]).ok();
    receive(&branch, &operator, &["--box-seal", "A1", "--box-seal", "A2"]).ok();
    (branch, operator)
}

#[test]
fn a_dispatch_needs_a_good_check_since_sealing_and_happens_once() {
    let (branch, operator) = sealed();
    dispatch(&branch, &[]).refused(1, &["check of the medium since sealing", "motiongear verify"]);
    branch.on_array("verify", [""; 0]).ok();
    // Somebody of another site; then only a plan.
    let foreign =
        branch.motiongear().args(["custody", "dispatch"]).arg(&branch.array).arg("--key").arg(&operator).run();
    foreign.refused(4, &["expected one of the shipment's site"]);
    dispatch(&branch, &["--dry-run"]).ok();
    assert!(!branch.on("custody/0001-dispatched.json").exists());
    let done = dispatch(&branch, &["--box-seal", "A1", "--person", "张师傅"]).ok();
    assert_eq!(done["event"], "dispatched");
    let file = branch.on("custody/0001-dispatched.json");
    verify_signature(&branch.trust, "zhang@river-bank", "motiongear-custody", &file);
    let event = json_file(&file);
    assert_eq!((event["person"].as_str(), event["box_seals"][0].as_str()), (Some("张师傅"), Some("A1")));
    dispatch(&branch, &[]).refused(1, &["recorded already"]);
    // Its seal is final now.
    let disk = branch.place.join("disk.img");
    branch.seed(&[("sda", &disk)], &["--point-in-time", "--reopen"]).refused(1, &["dispatched"]);
}

#[test]
fn a_failed_check_blocks_the_dispatch_and_a_good_one_frees_it() {
    let (branch, _) = sealed();
    let pack = branch.packs().remove(0);
    let good = std::fs::read(&pack).unwrap();
    let mut bad = good.clone();
    bad[9000] ^= 1;
    std::fs::write(&pack, &bad).unwrap();
    branch.on_array("verify", [""; 0]).code(3);
    dispatch(&branch, &[]).refused(1, &["check of the medium"]);
    std::fs::write(&pack, &good).unwrap();
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &[]).ok();
}

#[test]
fn the_receiver_is_told_of_every_box_seal_and_signs_in_the_chain() {
    let (branch, operator) = sealed();
    receive(&branch, &operator, &[]).refused(4, &["expected a dispatch"]);
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &["--box-seal", "A1", "--box-seal", "A2"]).ok();
    let done = receive(&branch, &operator, &["--box-seal", "A1", "--box-seal", "A9"]).ok();
    assert_eq!(done["box_seals"]["missing"][0], "A2");
    assert_eq!(done["box_seals"]["unexpected"][0], "A9");
    let (first, second) = (branch.on("custody/0001-dispatched.json"), branch.on("custody/0002-received.json"));
    verify_signature(&branch.trust, "wang@centre", "motiongear-custody", &second);
    let previous = json_file(&second)["previous"].clone();
    assert_eq!(previous["event"], super::common::b3sum(&first));
    assert_eq!(previous["signature"], super::common::b3sum(&first.with_extension("json.sig")));
    receive(&branch, &operator, &[]).refused(1, &["recorded already"]);
    // The stand-alone checker agrees.
    branch.check_stand_alone();
}

#[test]
fn a_chain_that_was_touched_is_refused() {
    let (branch, operator) = sealed();
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &["--box-seal", "A1"]).ok();
    let file = branch.on("custody/0001-dispatched.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("A1", "B7")).unwrap();
    receive(&branch, &operator, &["--box-seal", "B7"]).refused(4, &["Custody event 1"]);
    std::fs::write(&file, text).unwrap();
    // Signed properly, but by nobody we know.
    let stranger = ssh_key(&branch.place.join("stranger"), "mallory@centre", "ed25519", "");
    receive(&branch, &stranger, &[]).refused(4, &["mallory@centre"]);
    receive(&branch, &operator, &["--box-seal", "A1"]).ok();
}

#[test]
fn an_older_valid_seal_in_place_of_the_dispatched_one_is_not_imported() {
    let (branch, _) = sealed();
    // What the array looked like under its first seal, kept by somebody.
    let old = branch.place.join("old-array");
    super::common::tool("cp", ["-a".as_ref(), branch.array.as_os_str(), old.as_os_str()]);
    let disk = branch.place.join("disk.img");
    branch.seed(&[("sda", &disk)], &["--point-in-time", "--reopen"]).ok();
    branch.seal();
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &[]).ok();
    let import = |array: &std::path::Path, state: &str| {
        let command =
            super::common::run::Motiongear::new(&branch.place.join(state)).args(["--json", "import"]).arg(array);
        let command = command.args(["--to", &format!("dir:{}", branch.place.join("volumes").display())]);
        command.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity).run()
    };
    let events = branch.on("custody/.");
    super::common::tool("cp", ["-a".as_ref(), events.as_os_str(), old.join("motiongear/custody").as_os_str()]);
    import(&old, "centre-old").refused(4, &["custody/0001-dispatched.json names", "ask the branch"]);
    assert!(!branch.place.join("volumes").exists(), "nothing was written");
    import(&branch.array, "centre-new").ok();
}
