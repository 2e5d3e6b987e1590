//! Goal: what is printed and signed is what was proven, for auditors with stock tools only. Method: a branch day and a
//! data-centre day; then the files are read as an auditor would, and the commands in the report are run as they stand.

use super::common::{Branch, disk, json_file, sql, ssh_key, tool, trust_line, try_tool, verify_signature};
use super::custody::{centre, deliver, delivered, sealed, sealed_with};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn handover(branch: &Branch, extra: &[&str]) -> super::common::Ran {
    let command =
        branch.motiongear().args(["--json", "report", "handover"]).arg(&branch.array).arg("--key").arg(&branch.key);
    command.arg("--trust").arg(&branch.trust).arg("--out").arg(branch.place.join("out")).args(extra).run()
}

fn files(done: &Value) -> (String, Value) {
    let html = std::fs::read_to_string(done["html"].as_str().unwrap()).unwrap();
    (html, json_file(Path::new(done["json"].as_str().unwrap())))
}

/// The commands that the page shows, as a person copies them.
fn printed_commands(html: &str) -> Vec<String> {
    let shown = html.split("<pre>").skip(1).filter_map(|rest| rest.split("</pre>").next());
    let plain = |text: &str| {
        let pairs = [("&#x27;", "'"), ("&#x2f;", "/"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")];
        pairs.iter().fold(text.to_owned(), |text, (code, char)| text.replace(code, char))
    };
    shown.map(plain).collect()
}

/// Runs the commands of the printed page in `ARRAY/motiongear`, as an auditor would: none fails, and none leaves a file behind.
fn repeat_commands(branch: &Branch, html: &str, facts: &Value) -> usize {
    let commands = facts["commands"].as_array().unwrap();
    let printed = printed_commands(html);
    assert_eq!(printed.len(), commands.len());
    let temporary = branch.place.dir("auditor");
    let mut run = 0;
    for (text, command) in printed.iter().zip(commands) {
        assert_eq!(command["command"], text.as_str());
        if text.contains("VOLUME") {
            continue;
        }
        let text = text
            .replace("ALLOWED_SIGNERS", branch.trust.to_str().unwrap())
            .replace("IDENTITY", branch.identity.to_str().unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-c", &text]).current_dir(branch.on("")).env("TMPDIR", &temporary);
        let out = shell.output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{text}: {said}{}", String::from_utf8_lossy(&out.stderr));
        if let Some(expected) = command["expected"].as_str() {
            assert!(said.contains(expected), "{text}: {said}");
        }
        run += 1;
    }
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    run
}

#[test]
fn the_handover_report_states_what_was_sealed_and_checked() {
    let (branch, _) = sealed();
    // Not checked yet: said first.
    let done = handover(&branch, &[]).code(3);
    assert_eq!(done["verdict"], "bad");
    let (html, facts) = files(&done);
    assert!(html.contains("Not ready to hand over"));
    assert_eq!(facts["remarks"][0]["code"], "not-verified");
    assert_eq!(facts["disks"][0]["at_medium"]["read"], 0);
    branch.on_array("verify", [""; 0]).ok();
    let done = handover(&branch, &["--engineer", "Li <Wei>", "--purpose", "move & prove", "--box-seal", "A1"]).ok();
    let (html, facts) = files(&done);
    let seal = branch.seal_json();
    assert_eq!(facts["seal"]["digest"], super::common::b3sum(&branch.on("seal.json")));
    assert_eq!(facts["disks"][0]["digest"], seal["disks"][0]["digest"]);
    assert_eq!(facts["disks"][0]["at_medium"]["trusted"], 0);
    assert_eq!(facts["disks"][0]["imported"], Value::Null);
    assert_eq!(facts["recipients"][0]["recipient"], branch.recipient.as_str());
    assert_eq!(facts["shipment"]["asset_tag"], "TAG-7");
    assert!(html.contains("Li &lt;Wei&gt;") && html.contains("move &amp; prove") && !html.contains("Li <Wei>"));
    let classes = &facts["disks"][0]["classes"];
    let sum: u64 = ["stored", "compressed_away", "zero"].iter().map(|c| classes[c].as_u64().unwrap()).sum();
    assert_eq!(Some(sum), facts["disks"][0]["bytes"].as_u64());
    assert_eq!(facts["disks"][0]["map"]["cells"], "sss..s");
    let signed = |done: &Value| {
        for file in [done["html"].as_str().unwrap(), done["json"].as_str().unwrap()] {
            verify_signature(&branch.trust, "zhang@river-bank", "motiongear-report", Path::new(file));
        }
    };
    signed(&done);
    assert_eq!(repeat_commands(&branch, &html, &facts), 9);
    // Made at once again, it is another one, and the first stays as it was signed; also where only the array has the first.
    let before = std::fs::read(done["json"].as_str().unwrap()).unwrap();
    let elsewhere = branch.place.join("elsewhere");
    let command = branch.motiongear().args(["--json", "report", "handover"]).arg(&branch.array).arg("--key");
    let elsewhere = command.arg(&branch.key).arg("--trust").arg(&branch.trust).arg("--out").arg(elsewhere).run();
    let others = [elsewhere.ok(), handover(&branch, &[]).ok()];
    let mut names: Vec<&str> = others.iter().chain([&done]).map(|done| done["number"].as_str().unwrap()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 3, "{names:?}");
    others.iter().for_each(signed);
    signed(&done);
    assert_eq!(std::fs::read(done["json"].as_str().unwrap()).unwrap(), before);
}

#[test]
fn on_an_encrypted_array_the_report_is_encrypted_too() {
    let (branch, _) = sealed();
    let done = handover(&branch, &[]).code(3);
    let names: Vec<&str> = done["on_array"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|n| n.ends_with(".age")).count(), 2);
    assert!(!names.iter().any(|n| n.ends_with(".html") || n.ends_with(".json")));
    let html = names.iter().find(|n| n.ends_with(".html.age")).unwrap();
    let plain = tool("age", ["-d", "-i", branch.identity.to_str().unwrap(), branch.on(html).to_str().unwrap()]);
    assert_eq!(plain, std::fs::read_to_string(done["html"].as_str().unwrap()).unwrap());
    branch.check_stand_alone();
}

#[test]
fn the_import_report_claims_source_equals_target_only_when_nothing_was_trusted() {
    for (readback, proven) in [("full", true), ("none", false)] {
        let (branch, operator) = delivered();
        let volumes = branch.place.join("volumes");
        let import =
            centre(&branch).arg("import").arg(&branch.array).arg("--to").arg(format!("dir:{}", volumes.display()));
        import
            .arg("--trust")
            .arg(&branch.trust)
            .arg("--identity")
            .arg(&branch.identity)
            .args(["--readback", readback])
            .run()
            .ok();
        let report = || centre(&branch).args(["report", "import"]).arg(&branch.array).arg("--trust").arg(&branch.trust);
        let done = report().arg("--key").arg(&operator).arg("--out").arg(branch.place.join("out")).run().ok();
        assert_eq!(done["proven"], proven, "{readback}");
        let (html, facts) = files(&done);
        assert_eq!(html.contains("Source = target, proven for every disk"), proven);
        assert_eq!(facts["disks"][0]["imported"]["readback"], readback);
        let events: Vec<&str> =
            facts["custody"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["dispatched", "received"]);
        let centre_events = facts["centre"].as_array().unwrap();
        assert_eq!((centre_events.len(), &centre_events[0]["event"]), (1, &"imported".into()));
        assert_eq!(
            (&centre_events[0]["known_custody"], &centre_events[0]["signer"]),
            (&2.into(), &"wang@centre".into())
        );
        for words in
            ["On the array: dispatched and received", "in a chain of its own: imported and erased", "up to event 2"]
        {
            assert!(html.contains(words), "{words}");
        }
        verify_signature(&branch.trust, "wang@centre", "motiongear-report", Path::new(done["html"].as_str().unwrap()));
        // The three events of both chains among them.
        assert_eq!(repeat_commands(&branch, &html, &facts), 13);
        // In the other language, and without the array: the ledger kept what it verified.
        let shipment = facts["shipment"]["uuid"].as_str().unwrap();
        let again = centre(&branch).args(["--lang", "zh", "report", "import", "--shipment", shipment]).run().ok();
        let (html, again) = files(&again);
        assert!(html.contains("导入报告") && html.contains("数据中心的独立记录链") && html.contains("至第 2 号"));
        assert_eq!((&again["custody"], &again["centre"][0]["file"]), (&unchecked(&facts), &facts["centre"][0]["file"]));
        assert_eq!(again["disks"], facts["disks"]);
    }
}

/// The array's chain as a report without a trust file states it.
fn unchecked(facts: &Value) -> Value {
    let mut custody = facts["custody"].clone();
    custody.as_array_mut().unwrap().iter_mut().for_each(|event| event["signer_checked"] = false.into());
    custody
}

/// Waits until the data centre's ledger knows of `count` runs of import.
#[track_caller]
fn wait_for_runs(branch: &Branch, count: u64) {
    let ledger = branch.place.join("centre/ledger.db");
    for _ in 0..600 {
        let query = "SELECT count(*) FROM import_run";
        if try_tool("sqlite3", ["-readonly".as_ref(), ledger.as_os_str(), query.as_ref()]).stdout.trim()
            == count.to_string()
        {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the ledger never had {count} runs");
}

#[test]
fn the_import_report_lists_the_interruptions_of_the_import() {
    let (branch, operator) = delivered();
    let volumes = branch.place.join("volumes");
    let import = || {
        let command = centre(&branch).arg("import").arg(&branch.array);
        let command = command.arg("--to").arg(format!("dir:{}", volumes.display()));
        command.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity)
    };
    // So slow that it is under way when it is killed, and when it is stopped.
    let killed = import().args(["--read-limit", "16KiB"]).start();
    wait_for_runs(&branch, 1);
    assert_eq!(killed.kill().code, -9);
    let stopped = import().args(["--read-limit", "16KiB"]).start();
    wait_for_runs(&branch, 2);
    stopped.signal(libc::SIGINT);
    stopped.wait().code(5);
    import().run().ok();
    let report = centre(&branch).args(["report", "import"]).arg(&branch.array).arg("--trust").arg(&branch.trust);
    let done = report.arg("--key").arg(&operator).arg("--out").arg(branch.place.join("out")).run().ok();
    let (html, facts) = files(&done);
    let runs = facts["import_runs"].as_array().unwrap();
    let interrupted: Vec<bool> = runs.iter().map(|run| run["interrupted"].as_bool().unwrap()).collect();
    assert_eq!(interrupted, [true, true, false]);
    assert_eq!(runs[0]["ended_at"], Value::Null, "a killed run ends without saying so");
    assert!(runs[1]["ending"].as_str().unwrap().contains("stopped by SIGINT"), "{}", runs[1]);
    let said = facts["remarks"].as_array().unwrap().iter().find(|remark| remark["code"] == "import-interrupted");
    assert_eq!(said.unwrap()["times"], 2);
    assert!(html.contains("Importing was interrupted 2 time(s)") && html.contains("ended without saying so"));
    assert_eq!(done["proven"], true, "interrupted or not, all of it was proven");
}

#[test]
fn a_plaintext_array_gets_a_plain_report_that_says_so() {
    let branch = Branch::new();
    branch.init(&["--plaintext"]);
    let (branch, operator) = sealed_with(branch);
    let (branch, _) = deliver(branch, operator);
    let done = handover(&branch, &[]).ok();
    let (html, facts) = files(&done);
    let codes: Vec<&str> =
        facts["remarks"].as_array().unwrap().iter().map(|remark| remark["code"].as_str().unwrap()).collect();
    assert!(codes.contains(&"plaintext") && codes.contains(&"shipment-not-signed"), "{codes:?}");
    assert!(html.contains("THE ARRAY IS NOT ENCRYPTED"));
    assert_eq!(facts["custody"].as_array().unwrap().len(), 2);
    assert!(done["on_array"].as_array().unwrap().iter().any(|n| n.as_str().unwrap().ends_with(".html")));
    let manifest = branch.on("manifest.db");
    assert_eq!(sql(&manifest, "SELECT count(*) FROM block"), "6");
    assert_eq!(disk(&branch.seal_json()["disks"], "sda")["digest"], facts["disks"][0]["digest"]);
}

#[test]
fn a_report_of_something_else_is_refused() {
    let (branch, _) = sealed();
    // Another host knows nothing of this seal; an import that never happened cannot be reported.
    let other = |kind: &str| centre(&branch).args(["report", kind]).arg(&branch.array).run();
    other("handover").refused(1, &["made no seal"]);
    other("import").refused(1, &["no import"]);
    // Reopened and changed since: the manifest is no longer the seal's.
    let disk = branch.place.join("disk.img");
    let more = branch.place.file("more.img", vec![1u8; 1 << 20]);
    branch.seed(&[("sda", &disk), ("sdb", &more)], &["--point-in-time", "--reopen"]).ok();
    branch.seal();
    let facts = files(&handover(&branch, &[]).code(3)).1;
    assert_eq!(facts["disks"].as_array().unwrap().len(), 2);
    assert_ne!(facts["seal"]["supersedes"], Value::Null);
}

#[test]
fn a_disk_that_nothing_held_still_is_called_fuzzy_in_manifest_seal_and_report() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    super::common::noise(&image, 3 << 20, 1);
    branch.seed(&[("sda", &image)], &[]).ok();
    branch.seal();
    branch.on_array("verify", [""; 0]).ok();
    let (html, facts) = files(&handover(&branch, &[]).ok());
    assert_eq!(disk(&branch.seal_json()["disks"], "sda")["consistency"], "fuzzy");
    assert_eq!(sql(&branch.live_manifest(), "SELECT consistency FROM generation"), "fuzzy");
    assert_eq!(facts["disks"][0]["consistency"], "fuzzy");
    assert!(html.contains("not of one point in time (fuzzy)"));
}

/// Names come from keys and documents; the auditor pastes what is printed.
#[test]
fn a_name_that_is_a_command_is_a_word_in_the_commands_of_the_report() {
    let (branch, _) = sealed();
    branch.on_array("verify", [""; 0]).ok();
    let command = branch.motiongear().args(["--json", "report", "handover"]).arg(&branch.array);
    let command = command.args(["--signer", "li';touch PWNED;'@dc"]).arg("--key").arg(&branch.key);
    let (html, _) = files(&command.run().ok());
    let pasted = branch.place.dir("pasted");
    for text in printed_commands(&html) {
        let out = Command::new("sh").args(["-c", &text]).current_dir(&pasted).output().unwrap();
        assert!(!pasted.join("PWNED").exists(), "{text}: {out:?}");
    }
}

/// Every verb that signs looks first whether its key may: not when the array is erased, and not only without --dry-run.
#[test]
fn a_key_that_the_trust_file_does_not_allow_signs_nothing_and_stops_nothing_half_way() {
    let (branch, operator) = delivered();
    let to = format!("dir:{}", branch.place.join("volumes").display());
    let import = centre(&branch).arg("import").arg(&branch.array).args(["--to", &to]).arg("--trust").arg(&branch.trust);
    import.arg("--identity").arg(&branch.identity).run().ok();
    let stranger = ssh_key(&branch.place.join("stranger"), "eve@centre", "ed25519", "");
    let lacking = |without: &str| {
        let all = ["motiongear-erase", "motiongear-custody", "motiongear-report"];
        let rest: Vec<&str> = all.into_iter().filter(|namespace| *namespace != without).collect();
        let path = branch.place.join(without);
        let branch_line = trust_line(&branch.key, "zhang@river-bank", "");
        let line = trust_line(&operator, "wang@centre", &format!("namespaces=\"{}\"", rest.join(",")));
        std::fs::write(&path, branch_line + &line).unwrap();
        path
    };
    // Without the right to receive, nothing else would be valid: the chain is there already.
    let cases = [
        (&stranger, branch.trust.clone(), ["erase", "report"].as_slice()),
        (&operator, lacking("motiongear-erase"), &["erase"]),
        (&operator, lacking("motiongear-report"), &["report"]),
    ];
    let count = || walk(&branch.array).len() + walk(&branch.place.join("centre/custody")).len();
    let before = count();
    for (key, trust, verbs) in cases {
        for (verb, extra) in verbs.iter().flat_map(|verb| [(verb, &[][..]), (verb, &["--dry-run"])]) {
            let command = match *verb {
                "erase" => {
                    centre(&branch).arg("erase").arg(&branch.array).args(["--asset", "TAG-7", "--allow-system-disk"])
                }
                _ => centre(&branch).args(["report", "import"]).arg(&branch.array),
            };
            command.arg("--key").arg(key).arg("--trust").arg(&trust).args(extra).run().refused(4, &["Signer"]);
            assert_eq!(count(), before, "{verb}");
        }
    }
}

/// Every file below a directory.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}
