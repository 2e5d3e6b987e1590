//! What must be found, and what is: the real binary without keys, with a trust file, with everything; the stand-alone checker
//! each time as well, which must say the same; and an import, whose volumes are compared with the source block by block.

use super::acts::{Act, Effect, Spot};
use super::subject::{BLOCK, Block, Subject, pack_file};
use super::{Cell, Cell::*};
use crate::common::{Motiongear, Place, Ran, try_tool};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Severity, class, object, block.
pub type Key = (&'static str, &'static str, String, Option<Block>);

/// What must be found: each finding, with words that it must hold.
pub type Findings = BTreeMap<Key, &'static str>;

/// What is expected of one damaged array.
#[derive(Debug)]
pub struct Expected {
    /// Of every `verify`.
    pub exit: i32,
    pub bare: Findings,
    /// With everything that is needed to read the contents.
    pub keyed: Findings,
    pub import: Import,
    /// Parts of what import must say: in its notes, or in its refusal.
    pub says: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Import {
    /// Exit 0, all disks equal.
    Whole,
    /// Exit 3, the lost blocks and nothing else listed and absent.
    Without,
    /// Exit 1 and nothing written; with `--accept-missing-packs` as above.
    Asks,
    /// Exit 4, nothing written.
    Refused,
}

/// The cell's outcome, spelt out for what was done.
pub fn expected(subject: &Subject, spot: Spot, act: Act, cell: Cell, effect: &Effect) -> Expected {
    let mut bare = Findings::new();
    let mut says = Vec::new();
    let deleted = act == Act::Delete;
    // What a fault of a file is laid to. Seal and signature count as a pair: which of the two was changed cannot be told.
    let objects: BTreeSet<String> = effect
        .touched
        .iter()
        .filter(|file| {
            !(deleted && file.ends_with("seal.json.sig") && effect.touched.contains(file.trim_end_matches(".sig")))
        })
        .map(|file| if file.ends_with("seal.json") && !deleted { format!("{file}.sig") } else { file.clone() })
        .collect();
    let seal_fault = objects.iter().any(|object| object.contains("seal.json"));
    let why = |object: &str| match object {
        _ if deleted => "missing",
        _ if object.ends_with(".sig") => "ignature",
        _ => "BLAKE3",
    };
    // A pair that does not fit is a lack of trust, also where the other one serves.
    let class = |object: &str| if object.contains("seal.json") { "untrusted" } else { "damaged" };
    let is_pack = |file: &String| file.starts_with("packs/");
    let (exit, import) = match cell {
        Served => {
            for object in &objects {
                bare.insert(("warning", class(object), object.clone(), None), "the second copy");
                says.push(format!("{object}: "));
            }
            (0, Import::Whole)
        }
        Rotten => {
            for object in &objects {
                bare.insert(("warning", class(object), object.clone(), None), why(object));
                // Import needs no second copy of a manifest whose first is good, and reads none.
                if !object.ends_with(subject.manifest) {
                    says.push(format!("{object}: "));
                }
            }
            (0, Import::Whole)
        }
        Older => {
            bare.insert(("warning", "damaged", "seal.json".into(), None), "older than its second copy");
            says.push("seal.json: older than its second copy".into());
            (0, Import::Whole)
        }
        Superseded => {
            bare.insert(("warning", "damaged", "copy/seal.json".into(), None), "superseded by seal.json");
            says.push("copy/seal.json: an older seal".into());
            (0, Import::Whole)
        }
        Refused => {
            // Without a seal nothing else is looked at.
            for object in objects.iter().filter(|object| !seal_fault || object.contains("seal.json")) {
                bare.insert(("error", "untrusted", object.clone(), None), why(object));
            }
            says.push(if seal_fault { "seal.json".into() } else { objects.iter().next_back().unwrap().clone() });
            (4, Import::Refused)
        }
        RolledBack => {
            for event in ["1", "2"] {
                bare.insert(("error", "untrusted", event_file(event), None), "expected seal");
            }
            bare.insert(("error", "extra", pack_file(2), None), "not in the seal");
            for stray in ["keys/0003.age", "copy/keys/0003.age"].into_iter().filter(|_| subject.encrypted) {
                bare.insert(("warning", "extra", stray.into(), None), "never read");
            }
            // The event stands before the manifest.
            says.push(event_file("1"));
            if !effect.touched.contains(subject.manifest) {
                for object in [subject.manifest.to_owned(), format!("copy/{}", subject.manifest)] {
                    bare.insert(("error", "untrusted", object, None), "BLAKE3");
                }
            }
            (4, Import::Refused)
        }
        Chain(events) => {
            for event in events.split(' ') {
                bare.insert(("error", "untrusted", event_file(event), None), "");
                says.push(format!("{}: ", event_file(event)));
            }
            (4, Import::Whole)
        }
        Leftover(event) => {
            bare.insert(("error", "extra", event_file(event), None), "not signed");
            says.push(format!("{}: ", event_file(event)));
            (3, Import::Whole)
        }
        Lost | Short | Framed => {
            for object in &objects {
                let class = if deleted && is_pack(object) { "missing" } else { "damaged" };
                let words = if deleted && is_pack(object) { "the seal lists it" } else { why(object) };
                bare.insert(("error", class, object.clone(), None), words);
            }
            for (pack, block) in &effect.named {
                bare.insert(("error", "damaged", pack.clone(), Some(block.clone())), "Record");
            }
            let import = match cell {
                Framed => Import::Whole,
                Lost => Import::Without,
                _ => Import::Asks,
            };
            (3, import)
        }
        Extra => {
            for object in &objects {
                bare.insert(("error", "extra", object.clone(), None), "");
            }
            (3, Import::Whole)
        }
        Stray => {
            for object in &effect.touched {
                bare.insert(("warning", "extra", object.clone(), None), "belongs to nothing");
            }
            (0, Import::Whole)
        }
        Nobody(_) => (0, Import::Whole),
        No(_) => unreachable!("{spot}, {act:?}"),
    };
    let mut keyed = bare.clone();
    for (pack, block) in &effect.lost {
        keyed.insert(("error", "damaged", pack.clone(), Some(block.clone())), "");
    }
    let both_manifests = [subject.manifest.to_owned(), format!("copy/{}", subject.manifest)];
    if both_manifests.iter().all(|file| bare.contains_key(&("error", "untrusted", file.clone(), None))) {
        keyed.insert(("error", "untrusted", "manifest".into(), None), "neither copy");
    }
    Expected { exit, bare, keyed, import, says }
}

/// `1`, `1.sig` … as in the table.
pub fn event_file(short: &str) -> String {
    let (number, sig) = short.split_at(1);
    let event = if number == "1" { "dispatched" } else { "received" };
    format!("custody/000{number}-{event}.json{sig}")
}

/// One damaged array, and where its judges may write.
pub struct Court<'a> {
    pub subject: &'a Subject,
    /// The array.
    pub array: PathBuf,
    /// Kept from one array to the next.
    pub state: PathBuf,
    pub engine: &'static str,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Bare,
    Trust,
    Keys,
}

impl Court<'_> {
    /// Everything that is not as it must be.
    pub fn complaints(&self, expected: &Expected, effect: &Effect, modes: &[Mode]) -> Vec<String> {
        let look = |mode: Mode, report: &Value| {
            let findings = match mode {
                Mode::Keys => &expected.keyed,
                Mode::Trust if !self.subject.encrypted => &expected.keyed,
                _ => &expected.bare,
            };
            differences(findings, &found(report))
        };
        self.complaints_of(expected, effect, modes, &look)
    }

    /// The same, where `look` says what is wrong with the findings of a report.
    pub fn complaints_of(
        &self,
        expected: &Expected,
        effect: &Effect,
        modes: &[Mode],
        look: &dyn Fn(Mode, &Value) -> Vec<String>,
    ) -> Vec<String> {
        let mut complaints = Vec::new();
        for mode in modes {
            let said = self.verify(*mode, &mut complaints);
            if said.0 != expected.exit {
                complaints.push(format!("{mode:?}: expected exit {}, found {}: {}", expected.exit, said.0, said.1));
            }
            complaints.extend(look(*mode, &said.1).into_iter().map(|text| format!("{mode:?}: {text}")));
        }
        self.import(expected, effect, &mut complaints);
        complaints
    }

    /// The engine's exit code and report; that the stand-alone checker judges alike.
    fn verify(&self, mode: Mode, complaints: &mut Vec<String>) -> (i32, Value) {
        let mut arguments: Vec<&Path> = vec![&self.array];
        if mode != Mode::Bare {
            arguments.extend([Path::new("--trust"), &self.subject.branch.trust]);
        }
        if mode == Mode::Keys {
            arguments.extend([Path::new("--identity"), &self.subject.branch.identity]);
        }
        let command = Motiongear::new(&self.state).args(["--json", "--engine", self.engine, "verify"]);
        let engine = command.args(&arguments).run();
        let checker = Path::new(env!("CARGO_BIN_EXE_motiongear")).with_file_name("motiongear-verify");
        let work = Place::new();
        let alone =
            Command::new(checker).args(&arguments).arg("--json").arg("--work").arg(work.path()).output().unwrap();
        let alone = (alone.status.code().unwrap_or(-1), parsed(&String::from_utf8_lossy(&alone.stdout)));
        let engine = (engine.code, parsed(&engine.stdout));
        let (ours, theirs) = (judgement(&engine), judgement(&alone));
        if ours != theirs {
            complaints.push(format!("{mode:?}: motiongear says {ours}, motiongear-verify {theirs}"));
        }
        engine
    }

    fn run_import(&self, out: &Path, extra: &[&str]) -> Ran {
        let place = Place::new();
        self.subject.fresh_state(&place.join("state"));
        let command = Motiongear::new(&place.join("state")).args(["--json", "--engine", self.engine, "import"]);
        let command = command.arg(&self.array).arg("--to").arg(format!("dir:{}", out.display()));
        let command = command.arg("--trust").arg(&self.subject.branch.trust);
        let command = match self.subject.encrypted {
            true => command.arg("--identity").arg(&self.subject.branch.identity),
            false => command,
        };
        command.args(extra).run()
    }

    fn import(&self, expected: &Expected, effect: &Effect, complaints: &mut Vec<String>) {
        let place = Place::new();
        let out = place.join("out");
        let mut ran = self.run_import(&out, &[]);
        let mut complain = |text: String| complaints.push(format!("import: {text}"));
        if expected.import == Import::Asks {
            if ran.code != 1 || !ran.stderr.contains("expected a file of") || out.exists() {
                complain(format!("expected to be asked before anything is written, found {ran:?}"));
            }
            ran = self.run_import(&out, &["--accept-missing-packs"]);
        }
        let (code, lost) = match expected.import {
            Import::Whole => (0, BTreeSet::new()),
            Import::Refused => (4, BTreeSet::new()),
            Import::Without | Import::Asks => (3, effect.lost.clone()),
        };
        if ran.code != code {
            return complain(format!("expected exit {code}, found {ran:?}"));
        }
        if expected.import == Import::Refused {
            if out.exists() {
                complain("something was written".into());
            }
            for part in expected.says.iter().filter(|part| !ran.stderr.contains(*part)) {
                complain(format!("expected '{part}', found {}", ran.stderr));
            }
            return;
        }
        let report = parsed(&ran.stdout);
        let notes: Vec<&str> = report["notes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        for part in expected.says.iter().filter(|part| !notes.iter().any(|note| note.contains(*part))) {
            complain(format!("expected '{part}' in the notes, found {notes:?}"));
        }
        let listed = damaged_blocks(&report);
        if listed != lost {
            complain(format!("expected to lose {lost:?}, found {listed:?}"));
        }
        volumes(self.subject, &out, &lost).into_iter().for_each(complain);
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

/// What two checkers must agree in: everything but the wording.
fn judgement((code, report): &(i32, Value)) -> Value {
    let mut findings: Vec<String> = report["findings"]["list"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|f| json!([f["severity"], f["class"], f["object"], f["disk"], f["block"]]).to_string())
        .collect();
    findings.sort();
    findings.dedup();
    let custody: Vec<Value> =
        report["custody"].as_array().into_iter().flatten().map(|e| json!([e["file"], e["signed_by"]])).collect();
    json!({
        "exit": code, "seal": report["seal"], "manifest": report["manifest_compared"], "packs": report["packs"],
        "custody": custody, "proven": report["proven"], "findings": findings,
    })
}

/// The findings of a report but for its notes, each with its words.
pub fn found(report: &Value) -> Vec<(Key, String)> {
    let words = |value: &Value| -> &'static str {
        ["warning", "error", "damaged", "untrusted", "missing", "extra"]
            .into_iter()
            .find(|w| value == *w)
            .unwrap_or("?")
    };
    let list = report["findings"]["list"].as_array().into_iter().flatten().filter(|f| f["severity"] != "note");
    list.map(|f| {
        let block = f["block"].as_u64().map(|block| (f["disk"].as_str().unwrap_or("?").to_owned(), block));
        let key = (words(&f["severity"]), words(&f["class"]), f["object"].as_str().unwrap_or("?").to_owned(), block);
        (key, f["what"].as_str().unwrap_or_default().to_owned())
    })
    .collect()
}

fn differences(expected: &Findings, found: &[(Key, String)]) -> Vec<String> {
    let mut differences = Vec::new();
    for (key, words) in expected {
        let texts: Vec<&String> = found.iter().filter(|(other, _)| other == key).map(|(_, text)| text).collect();
        if texts.is_empty() {
            differences.push(format!("expected {key:?}, found none"));
        } else if !texts.iter().any(|text| text.contains(words)) {
            differences.push(format!("{key:?}: expected '{words}', found {texts:?}"));
        }
    }
    let surplus = found.iter().filter(|(key, _)| !expected.contains_key(key));
    differences.extend(surplus.map(|(key, text)| format!("unexpected {key:?}: {text}")));
    differences
}

/// Blocks that import lists as damaged, each with the pack that its row names.
pub fn damaged_blocks(report: &Value) -> BTreeSet<(String, Block)> {
    let mut blocks = BTreeSet::new();
    for disk in report["disks"].as_array().into_iter().flatten() {
        let name = format!("{}/{}", disk["machine"].as_str().unwrap(), disk["disk"].as_str().unwrap());
        for damage in disk["damaged_blocks"].as_array().into_iter().flatten() {
            let file = damage["file"].as_str().unwrap_or("none").to_owned();
            blocks.insert((file, (name.clone(), damage["block"].as_u64().unwrap())));
        }
    }
    blocks
}

/// Every block of every volume: equal to the source; or lost, or head or tail of a disk that lost some, and then zeros.
pub fn volumes(subject: &Subject, out: &Path, lost: &BTreeSet<(String, Block)>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, source) in &subject.disks {
        let volume = std::fs::read(out.join(&subject.branch.site).join(format!("{name}.raw"))).unwrap_or_default();
        let source = std::fs::read(source).unwrap();
        if volume.len() != source.len() {
            complaints.push(format!("{name}: expected {} bytes, found {}", source.len(), volume.len()));
            continue;
        }
        let lost: BTreeSet<u64> =
            lost.iter().filter(|(_, (disk, _))| disk == name).map(|(_, (_, block))| *block).collect();
        let last = (source.len() as u64 - 1) / BLOCK;
        for (block, (found, wanted)) in volume.chunks(BLOCK as usize).zip(source.chunks(BLOCK as usize)).enumerate() {
            let block = block as u64;
            let withheld = lost.contains(&block) || !lost.is_empty() && (block == 0 || block == last);
            if withheld && found.iter().any(|byte| *byte != 0) {
                complaints.push(format!("{name}: block {block} is damaged or withheld, and reached the volume"));
            }
            if !withheld && found != wanted {
                complaints.push(format!("{name}: block {block} differs from the source"));
            }
        }
    }
    complaints
}

/// Whether the report on the array is what its signer signed, by stock `age` and `ssh-keygen`.
pub fn report_is_sound(subject: &Subject, root: &Path) -> bool {
    let place = Place::new();
    let [json, _, signature] = &subject.report;
    let plain = place.join("report.json");
    let opened = match subject.encrypted {
        true => {
            let words =
                ["-d".as_ref(), "-i".as_ref(), subject.branch.identity.as_os_str(), "-o".as_ref(), plain.as_os_str()];
            let file = root.join(json);
            try_tool("age", words.into_iter().chain([file.as_os_str()])).code == 0
        }
        false => std::fs::copy(root.join(json), &plain).is_ok(),
    };
    let command = "ssh-keygen -Y verify -f \"$1\" -I \"$2\" -n motiongear-report -s \"$3\" < \"$4\"";
    let signer = format!("zhang@{}", subject.branch.site);
    let signature = root.join(signature);
    let words = ["-c".as_ref(), command.as_ref(), "sh".as_ref(), subject.branch.trust.as_os_str(), signer.as_ref()];
    opened && try_tool("sh", words.into_iter().chain([signature.as_os_str(), plain.as_os_str()])).code == 0
}
