//! Goal: nobody dispatches what was not checked, nobody takes over what was tampered with, and every event is a stock SSH
//! signature. Method: a real branch and a real data centre, each with a state directory of its own, and one array between them.

use super::common::run::Motiongear;
use super::common::{Branch, json_file, ssh_key, tool, trust_line, try_tool, verify_signature};
use std::path::{Path, PathBuf};

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
pub fn centre(branch: &Branch) -> Motiongear {
    Motiongear::new(&branch.place.join("centre")).arg("--json")
}

/// `custody WAY ARRAY --key KEY --trust TRUST EXTRA` at the branch.
pub fn dispatch(branch: &Branch, extra: &[&str]) -> super::common::Ran {
    let command =
        branch.motiongear().args(["--json", "custody", "dispatch"]).arg(&branch.array).arg("--key").arg(&branch.key);
    command.arg("--trust").arg(&branch.trust).args(extra).run()
}

pub fn receive(branch: &Branch, key: &PathBuf, extra: &[&str]) -> super::common::Ran {
    receive_at(centre(branch), branch, key, extra)
}

/// The same, by the host that `command` runs at.
pub fn receive_at(command: Motiongear, branch: &Branch, key: &PathBuf, extra: &[&str]) -> super::common::Ran {
    let command = command.args(["custody", "receive"]).arg(&branch.array).arg("--key").arg(key);
    command.arg("--trust").arg(&branch.trust).args(extra).run()
}

/// Writes `document` as an event onto the array, signed with stock tools.
fn by_hand(branch: &Branch, key: &Path, name: &str, document: &serde_json::Value) {
    let file = branch.on("custody").join(name);
    std::fs::write(&file, serde_json::to_string_pretty(document).unwrap() + "\n").unwrap();
    let _ = std::fs::remove_file(file.with_extension("json.sig"));
    let (key, file) = (key.to_str().unwrap(), file.to_str().unwrap());
    tool("ssh-keygen", ["-q", "-Y", "sign", "-f", key, "-n", "motiongear-custody", file]);
}

/// Both checkers, and every verb that acts on custody, do not trust the chain, for `why`.
fn distrusted(branch: &Branch, key: &PathBuf, why: &str) {
    let trust = branch.trust.to_str().unwrap();
    let said = |ran: &super::common::Ran| format!("{}{}", ran.stdout, ran.stderr);
    let found = said(&branch.on_array("verify", ["--trust", trust]));
    assert!(found.contains(why), "verify: {found}");
    branch.on_array("verify", ["--trust", trust]).code(4);
    let checker = Path::new(env!("CARGO_BIN_EXE_motiongear")).with_file_name("motiongear-verify");
    let checked = try_tool(checker.to_str().unwrap(), [branch.array.to_str().unwrap(), "--trust", trust]);
    assert!(checked.code == 4 && said(&checked).contains(why), "motiongear-verify: {}", said(&checked));
    dispatch(branch, &[]).refused(4, &[why]);
    receive(branch, key, &[]).refused(4, &[why]);
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
    // The same again is well, and changes nothing; another event in its place is refused.
    let again = dispatch(&branch, &["--box-seal", "A1", "--person", "张师傅"]).ok();
    assert_eq!((&again["recorded_already"], &again["at"], &again["file"]), (&true.into(), &done["at"], &done["file"]));
    assert_eq!(json_file(&file), event);
    dispatch(&branch, &["--box-seal", "A2"]).refused(1, &["recorded already", "with another person, box seals"]);
    dispatch(&branch, &["--box-seal", "A1", "--person", "张师傅", "--signer", "zhao@river-bank"])
        .refused(4, &["zhao@river-bank"]);
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
    // Nothing is signed before somebody says why; a reason without a difference is a mistake, too.
    let differ = ["--box-seal", "A1", "--box-seal", "A9"];
    let reason = [&differ[..], &["--box-seals-differ", "A2 fell off"]].concat();
    let before = std::fs::read_dir(branch.on("custody")).unwrap().count();
    receive(&branch, &operator, &differ).refused(4, &["A9"]);
    receive(&branch, &operator, &[&differ[..], &["--dry-run"]].concat()).refused(4, &["A9"]);
    let same = ["--box-seal", "A2", "--box-seal", "A1", "--box-seals-differ", "none"];
    receive(&branch, &operator, &same).refused(2, &[]);
    assert_eq!(std::fs::read_dir(branch.on("custody")).unwrap().count(), before);
    let done = receive(&branch, &operator, &reason).ok();
    assert_eq!(done["chain"][1]["note"], "box seals differ: A2 fell off");
    assert_eq!(done["box_seals"]["missing"][0], "A2");
    assert_eq!(done["box_seals"]["unexpected"][0], "A9");
    let (first, second) = (branch.on("custody/0001-dispatched.json"), branch.on("custody/0002-received.json"));
    verify_signature(&branch.trust, "wang@centre", "motiongear-custody", &second);
    let previous = json_file(&second)["previous"].clone();
    assert_eq!(previous["event"], super::common::b3sum(&first));
    assert_eq!(previous["signature"], super::common::b3sum(&first.with_extension("json.sig")));
    let again = receive(&branch, &operator, &reason).ok();
    assert_eq!((&again["recorded_already"], &again["at"]), (&true.into(), &done["at"]));
    assert_eq!(again["box_seals"], done["box_seals"]);
    receive(&branch, &operator, &[]).refused(1, &["recorded already"]);
    // The stand-alone checker agrees.
    branch.check_stand_alone();
}

/// A courier with the branch's key, or a colleague of the branch, cannot sign that the data centre has the array.
#[test]
fn a_receipt_by_the_key_or_the_site_that_dispatched_is_refused() {
    let (branch, operator) = sealed();
    let colleague = ssh_key(&branch.place.join("colleague"), "zhao@river-bank", "ed25519", "");
    let mut trust = std::fs::read_to_string(&branch.trust).unwrap();
    trust.push_str(&trust_line(&colleague, "zhao@river-bank", ""));
    trust.push_str(&trust_line(&branch.key, "zhang@centre", ""));
    std::fs::write(&branch.trust, trust).unwrap();
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &["--box-seal", "A1"]).ok();
    for extra in [&[][..], &["--dry-run"]] {
        let with = |more: &[&'static str]| [&["--box-seal", "A1"], more, extra].concat();
        receive(&branch, &branch.key.clone(), &with(&[])).refused(4, &["Receipt"]);
        receive(&branch, &branch.key.clone(), &with(&["--signer", "zhang@centre"])).refused(4, &["Receipt"]);
        receive(&branch, &colleague, &with(&[])).refused(4, &["Receipt"]);
    }
    assert!(!branch.on("custody/0002-received.json").exists());
    // Signed by hand, it is a broken chain for everybody who reads it.
    receive(&branch, &operator, &["--box-seal", "A1"]).ok();
    let mut event = json_file(&branch.on("custody/0002-received.json"));
    event["signer"] = "zhao@river-bank".into();
    by_hand(&branch, &colleague, "0002-received.json", &event);
    distrusted(&branch, &operator, "is of the site of");
    event["signer"] = "zhang@centre".into();
    by_hand(&branch, &branch.key, "0002-received.json", &event);
    distrusted(&branch, &operator, "with the key of");
}

#[test]
fn a_chain_that_was_touched_is_refused() {
    let (branch, operator) = sealed();
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &["--box-seal", "A1"]).ok();
    let file = branch.on("custody/0001-dispatched.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("A1", "B7")).unwrap();
    receive(&branch, &operator, &["--box-seal", "B7"])
        .refused(4, &["custody/0001-dispatched.json.sig", "does not match"]);
    std::fs::write(&file, text).unwrap();
    // Signed properly, but by nobody we know.
    let stranger = ssh_key(&branch.place.join("stranger"), "mallory@centre", "ed25519", "");
    receive(&branch, &stranger, &[]).refused(4, &["mallory@centre"]);
    receive(&branch, &operator, &["--box-seal", "A1"]).ok();
}

#[test]
fn an_event_that_a_valid_key_signed_out_of_place_is_not_trusted() {
    let (branch, operator) = delivered();
    let [first, second] = ["0001-dispatched.json", "0002-received.json"].map(|name| branch.on("custody").join(name));
    let with_signature = |file: &Path| [file.to_owned(), file.with_extension("json.sig")];
    let all: Vec<PathBuf> = [&first, &second].into_iter().flat_map(|file| with_signature(file)).collect();
    let good: Vec<Vec<u8>> = all.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let (dispatched, received) = (json_file(&first), json_file(&second));
    let restore = || {
        for entry in std::fs::read_dir(branch.on("custody")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        all.iter().zip(&good).for_each(|(file, bytes)| std::fs::write(file, bytes).unwrap());
        branch.check_stand_alone();
    };
    let remove = |files: &[PathBuf]| files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    // It arrived, and never left.
    remove(&all);
    let mut event = received.clone();
    (event["number"], event["previous"]) = (1.into(), serde_json::Value::Null);
    by_hand(&branch, &operator, "0001-received.json", &event);
    distrusted(&branch, &operator, "expected 'dispatched' as number 1");
    // It left twice.
    restore();
    remove(&with_signature(&second));
    let mut event = dispatched.clone();
    (event["number"], event["previous"]) = (2.into(), received["previous"].clone());
    by_hand(&branch, &branch.key, "0002-dispatched.json", &event);
    distrusted(&branch, &operator, "expected 'received' as number 2");
    // Two documents of one number, of which one is signed.
    restore();
    std::fs::copy(&first, branch.on("custody/0002-dispatched.json")).unwrap();
    distrusted(&branch, &operator, "a second event number 2");
    // Sent off by somebody who is allowed, and of another site.
    restore();
    remove(&all);
    let mut event = dispatched.clone();
    event["signer"] = "wang@centre".into();
    by_hand(&branch, &operator, "0001-dispatched.json", &event);
    distrusted(&branch, &operator, "expected a signer of site 'river-bank', found 'wang@centre'");
    // What the data centre does is no event of this chain.
    restore();
    let mut event = received.clone();
    (event["number"], event["event"]) = (3.into(), "imported".into());
    by_hand(&branch, &operator, "0003-imported.json", &event);
    let check = branch.on_array("verify", ["--trust", branch.trust.to_str().unwrap()]).code(3);
    assert!(check.to_string().contains("no part of the chain of events"), "{check}");
    restore();
}

/// The same chain at the branch, on the array, and at two hosts of a data centre; the array loses an event that a host kept.
#[test]
fn what_the_array_lost_of_its_chain_is_put_back_before_anything_follows() {
    let (branch, operator) = delivered();
    let lost = ["json", "json.sig"].map(|ending| branch.on("custody/0002-received").with_extension(ending));
    let was = lost.each_ref().map(|file| std::fs::read(file).unwrap());
    lost.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let done = receive(&branch, &operator, &["--box-seal", "A1", "--box-seal", "A2"]).ok();
    assert_eq!(done["recorded_already"], true);
    assert!(done["notes"].to_string().contains("the array lacks 0002-received.json"), "{}", done["notes"]);
    assert_eq!(lost.each_ref().map(|file| std::fs::read(file).unwrap()), was);
    branch.check_stand_alone();
}

#[test]
fn imported_before_it_was_received_and_received_at_another_host() {
    let (branch, operator) = sealed();
    let trust = branch.trust.to_str().unwrap().to_owned();
    let dock = || Motiongear::new(&branch.place.join("dock")).arg("--json");
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &["--box-seal", "A1"]).ok();
    let to = format!("dir:{}", branch.place.join("volumes").display());
    let import = centre(&branch).arg("import").arg(&branch.array).args(["--to", &to, "--trust", &trust]);
    import.arg("--identity").arg(&branch.identity).run().ok();
    let report = |extra: &[&str]| {
        let command = centre(&branch).args(["report", "import"]).arg(&branch.array).args(["--trust", &trust]);
        json_file(Path::new(command.args(extra).run().ok()["json"].as_str().unwrap()))
    };
    let events = |facts: &serde_json::Value, chain: &str| -> Vec<String> {
        let list = facts[chain].as_array().unwrap().iter();
        list.map(|e| format!("{} {}", e["number"], e["event"].as_str().unwrap())).collect()
    };
    let key = operator.to_str().unwrap();
    let facts = report(&["--key", key]);
    assert_eq!(events(&facts, "custody"), ["1 dispatched"]);
    assert_eq!(events(&facts, "centre"), ["1 imported"]);
    // Received elsewhere; the host that imported reads it from the array, and signs for the import only once.
    receive_at(dock(), &branch, &operator, &["--box-seal", "A1"]).ok();
    let facts = report(&["--key", key]);
    assert_eq!(events(&facts, "custody"), ["1 dispatched", "2 received"]);
    assert_eq!(events(&facts, "centre"), ["1 imported"]);
    assert_eq!(facts["centre"][0]["known_custody"], 1);
    assert_eq!(facts["custody_notes"].as_array().unwrap().len(), 0, "{}", facts["custody_notes"]);
    branch.check_stand_alone();
    let again = branch.place.join("again");
    tool("cp", ["-a".as_ref(), branch.array.as_os_str(), again.as_os_str()]);
    let erase = centre(&branch)
        .arg("erase")
        .arg(&branch.array)
        .args(["--asset", "TAG-7", "--allow-system-disk"])
        .args(["--trust", &trust]);
    erase.args(["--key", key]).run().ok();
    // Both chains are kept, and what was known last stands in the second.
    let kept = branch.place.join("centre/custody").join(facts["shipment"]["uuid"].as_str().unwrap());
    let erased = json_file(&kept.join("centre/0002-erased.json"));
    verify_signature(&branch.trust, "wang@centre", "motiongear-custody", &kept.join("centre/0002-erased.json"));
    let digests = |file: &str| {
        let file = kept.join(file);
        let signature = super::common::b3sum(&file.with_extension("json.sig"));
        serde_json::json!({ "event": super::common::b3sum(&file), "signature": signature })
    };
    assert_eq!(erased["custody"], digests("array/0002-received.json"));
    assert_eq!(erased["previous"], digests("centre/0001-imported.json"));
    // Who erased it hands nothing over any more, should it turn up again.
    std::fs::remove_dir_all(&branch.array).unwrap();
    std::fs::rename(&again, &branch.array).unwrap();
    receive(&branch, &operator, &["--box-seal", "A1"]).refused(1, &["its array was erased"]);
    let command = centre(&branch).args(["custody", "dispatch"]).arg(&branch.array).arg("--key").arg(&branch.key);
    command.run().refused(1, &["its array was erased"]);
    let facts = report(&["--key", key]);
    assert_eq!(events(&facts, "centre"), ["1 imported", "2 erased"]);
    assert_eq!(facts["centre"][1]["known_custody"], 2);
}

/// A file of allowed signers that lacks somebody is not the same as a chain that was altered, and the advice must not be.
#[test]
fn who_signed_and_is_not_allowed_is_told_from_what_was_altered() {
    let (branch, operator) = delivered();
    let full = std::fs::read_to_string(&branch.trust).unwrap();
    let without_operator: String =
        full.lines().filter(|line| !line.contains("wang@centre")).map(|l| format!("{l}\n")).collect();
    let short = branch.place.file("allowed-short", without_operator);
    // Whoever asks is allowed by both files.
    let colleague = ssh_key(&branch.place.join("colleague"), "li@centre", "ed25519", "");
    for file in [&short, &branch.trust] {
        let allowed = std::fs::read_to_string(file).unwrap() + &trust_line(&colleague, "li@centre", "");
        std::fs::write(file, allowed).unwrap();
    }
    let receive_again = |trust: &Path, key: &Path| {
        let command = centre(&branch).args(["custody", "receive"]).arg(&branch.array).arg("--key").arg(key);
        command.arg("--trust").arg(trust).args(["--box-seal", "A1", "--box-seal", "A2"]).run()
    };
    let said = receive_again(&short, &colleague).refused(4, &["0002-received.json", "as it was signed", "both sites"]);
    assert!(!said.contains("tampered"), "{said}");
    // Altered as well: then nothing is whole, whoever is allowed.
    let event = branch.on("custody/0002-received.json");
    let good = std::fs::read_to_string(&event).unwrap();
    std::fs::write(&event, good.replace("A1", "A7")).unwrap();
    for trust in [&short, &branch.trust] {
        let said = receive_again(trust, &colleague).refused(4, &["tampered"]);
        assert!(!said.contains("as it was signed"), "{said}");
    }
    std::fs::write(&event, good).unwrap();
    assert_eq!(receive_again(&branch.trust, &operator).ok()["recorded_already"], true);
}

#[test]
fn an_older_valid_seal_in_place_of_the_dispatched_one_is_not_imported() {
    let (branch, _) = sealed();
    // What the array looked like under its first seal, kept by somebody.
    let old = branch.place.join("old-array");
    tool("cp", ["-a".as_ref(), branch.array.as_os_str(), old.as_os_str()]);
    let disk = branch.place.join("disk.img");
    branch.seed(&[("sda", &disk)], &["--point-in-time", "--reopen"]).ok();
    branch.seal();
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &[]).ok();
    let import = |array: &std::path::Path, state: &str| {
        let command = Motiongear::new(&branch.place.join(state)).args(["--json", "import"]).arg(array);
        let command = command.args(["--to", &format!("dir:{}", branch.place.join("volumes").display())]);
        command.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity).run()
    };
    let events = branch.on("custody/.");
    tool("cp", ["-a".as_ref(), events.as_os_str(), old.join("motiongear/custody").as_os_str()]);
    import(&old, "centre-old").refused(4, &["custody/0001-dispatched.json names", "ask the branch"]);
    assert!(!branch.place.join("volumes").exists(), "nothing was written");
    import(&branch.array, "centre-new").ok();
}

/// `VERB` on the branch's array by a data centre, with nothing added that tells which seal it must have.
fn unasked(branch: &Branch, state: &str, verb: &[&str], extra: &[&str]) -> super::common::Ran {
    let command = Motiongear::new(&branch.place.join(state)).exactly().arg("--json").args(verb).arg(&branch.array);
    command.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity).args(extra).run()
}

#[test]
fn a_seal_that_nothing_names_is_opened_only_by_who_says_so_and_the_report_does() {
    let (branch, operator) = sealed();
    let (to, file) = (format!("dir:{}", branch.place.join("volumes").display()), branch.place.join("copy.raw"));
    let (file, socket) = (file.to_str().unwrap(), branch.place.join("sock"));
    let refused = |verb: &[&str], extra: &[&str]| unasked(&branch, "centre", verb, extra).code(4);
    refused(&["import"], &["--to", &to]);
    refused(&["serve", "--from"], &["--socket", socket.to_str().unwrap()]);
    refused(&["drill", "start", "db01", "--from"], &[]);
    let restore = |extra: &[&str]| {
        let command = Motiongear::new(&branch.place.join("centre")).exactly().arg("restore").arg(&branch.array);
        let command = command.args(["db01/sda", file]).arg("--trust").arg(&branch.trust).args(extra);
        command.arg("--identity").arg(&branch.identity).run()
    };
    restore(&[]).code(4);
    assert!(!branch.place.join("volumes").exists() && !Path::new(file).exists() && !socket.exists());
    // A dispatch says what left, and nobody that it arrived; nor does a receipt by who sent it.
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &[]).ok();
    refused(&["import"], &["--to", &to]);

    restore(&["--uncompared"]).ok();
    let remark = || {
        let command = centre(&branch).args(["report", "import"]).arg(&branch.array).arg("--trust").arg(&branch.trust);
        let done = command.arg("--key").arg(&operator).arg("--out").arg(branch.place.join("out")).run().ok();
        let facts = json_file(Path::new(done["json"].as_str().unwrap()));
        (facts["seal"]["compared"].clone(), facts["remarks"].to_string().contains("uncompared"))
    };
    let done = unasked(&branch, "centre", &["import"], &["--to", &to, "--uncompared"]).ok();
    assert_eq!(done["compared"], "uncompared");
    assert_eq!(remark(), ("uncompared".into(), true));
    // The same seal, compared later.
    let code = done["code"].as_str().unwrap();
    unasked(&branch, "centre", &["import"], &["--to", &to, "--expect-seal", code]).ok();
    assert_eq!(remark(), ("code".into(), false));
    unasked(&branch, "centre", &["import"], &["--to", &to, "--uncompared"]).ok();
    assert_eq!(remark(), ("code".into(), false));
}

#[test]
fn an_arrival_that_another_than_the_sender_signed_names_the_seal() {
    let (branch, operator) = sealed();
    let to = format!("dir:{}", branch.place.join("volumes").display());
    branch.on_array("verify", [""; 0]).ok();
    dispatch(&branch, &[]).ok();
    let arrived = tempfile::tempdir().unwrap();
    let custody = branch.on("custody/.");
    let copy = |from: &Path, to: &Path| drop(tool("cp", ["-a".as_ref(), from.as_os_str(), to.as_os_str()]));
    copy(&custody, arrived.path());
    receive(&branch, &operator, &[]).ok();
    assert_eq!(unasked(&branch, "second", &["import"], &["--to", &to]).ok()["compared"], "received");
    // A signer that this run's trust file does not have makes the chain no word of anybody.
    let short = branch.place.join("short");
    let trust = std::fs::read_to_string(&branch.trust).unwrap();
    std::fs::write(&short, trust.lines().filter(|line| !line.contains("wang@")).collect::<Vec<_>>().join("\n"))
        .unwrap();
    let command = Motiongear::new(&branch.place.join("third")).exactly().arg("import").arg(&branch.array);
    let command = command.args(["--to", &to]).arg("--trust").arg(&short).arg("--identity").arg(&branch.identity);
    command.run().code(4);
    // The sender's own key, under a name of the sender's site.
    tool("rm", ["-r".as_ref(), branch.on("custody").as_os_str()]);
    copy(&arrived.path().join("."), &branch.on("custody"));
    let mut event = json_file(&branch.on("custody/0001-dispatched.json"));
    let b3 = |file: &str| tool("b3sum", ["--no-names".as_ref(), branch.on(file).as_os_str()]).trim().to_owned();
    let (first, signature) = (b3("custody/0001-dispatched.json"), b3("custody/0001-dispatched.json.sig"));
    event["number"] = 2.into();
    event["event"] = "received".into();
    event["previous"] = serde_json::json!({ "event": first, "signature": signature });
    by_hand(&branch, &branch.key, "0002-received.json", &event);
    unasked(&branch, "fourth", &["import"], &["--to", &to]).code(4);
}
