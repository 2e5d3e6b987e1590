//! Goal: there is no bit on a sealed array whose change nobody sees. Method: single bits, drawn over all kinds of places and flipped
//! one at a time; each array is judged as in the table, so every flip is found and named, or the place is named here with its reason.

use super::acts::{Act, Effect, Of, Spot, first};
use super::judge::{Court, Expected, Findings, Import, Mode, expected};
use super::subject::{Block, HEADER, Subject, pack_file};
use super::{Cell, Cell::*};
use crate::common::{Dice, Place, full, seed_of_this_run};
use std::collections::BTreeMap;
use std::fs::File;
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A stretch of bytes that all mean the same.
struct Stretch {
    file: String,
    bytes: Range<u64>,
    /// The record that it belongs to.
    block: Option<Block>,
}

/// What a flip in a kind of place comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// As in the table.
    Is(Cell),
    /// The record; the words that a walk without keys has for it. The header itself cannot name its block.
    Record(&'static str),
    /// An event or its signature, and perhaps the one that names it.
    Event,
}
use Outcome::*;

struct Kind {
    name: &'static str,
    weight: u64,
    outcome: Outcome,
    stretches: Vec<Stretch>,
}

/// Every byte of every file, by kind.
fn kinds(subject: &Subject) -> Vec<Kind> {
    let root = subject.branch.on("");
    let whole = |file: &str| {
        let end = root.join(file).metadata().unwrap_or_else(|e| panic!("{file}: {e}")).len();
        Stretch { file: file.to_owned(), bytes: 0..end, block: None }
    };
    let files = |name, outcome, files: &[&str]| {
        let stretches = files.iter().map(|file| whole(file)).collect();
        Kind { name, weight: 3, outcome, stretches }
    };
    let copy_of_manifest = format!("copy/{}", subject.manifest);
    let [json, html, signature] = &subject.report;
    let html_signature = format!("{}.sig", html.trim_end_matches(".age"));
    let mut kinds = vec![
        files("shipment.json", Is(Served), &["shipment.json"]),
        files("shipment.json.sig", Is(Served), &["shipment.json.sig"]),
        files("key envelope", Is(Served), &["keys/0001.age", "keys/0002.age", "keys/0003.age"]),
        files("manifest", Is(Served), &[subject.manifest]),
        files("seal.json", Is(Served), &["seal.json"]),
        files("seal.json.sig", Is(Served), &["seal.json.sig"]),
        files("copy of shipment.json", Is(Rotten), &["copy/shipment.json"]),
        files("copy of shipment.json.sig", Is(Rotten), &["copy/shipment.json.sig"]),
        files("copy of key envelope", Is(Rotten), &["copy/keys/0001.age", "copy/keys/0002.age", "copy/keys/0003.age"]),
        files("copy of manifest", Is(Rotten), &[&copy_of_manifest]),
        files("copy of seal.json", Is(Rotten), &["copy/seal.json"]),
        files("copy of seal.json.sig", Is(Rotten), &["copy/seal.json.sig"]),
        files("custody event", Event, &["custody/0001-dispatched.json", "custody/0002-received.json"]),
        files("custody signature", Event, &["custody/0001-dispatched.json.sig", "custody/0002-received.json.sig"]),
        files("report (not checked)", Is(super::PAPER), &[json, html, signature, &html_signature]),
    ];
    let mut part = |name, weight, outcome, stretch: &dyn Fn(u64, u64, u64) -> Vec<Range<u64>>| {
        let mut stretches = Vec::new();
        for record in &subject.records {
            let ranges = stretch(record.offset, record.payload_end(), record.end());
            let of = |bytes| Stretch { file: pack_file(record.pack), bytes, block: Some(record.block.clone()) };
            stretches.extend(ranges.into_iter().filter(|range| !range.is_empty()).map(of));
        }
        kinds.push(Kind { name, weight, outcome, stretches });
    };
    part("record header, fields", 12, Record("Record header"), &|at, _, _| vec![at..at + 84, at + 124..at + HEADER]);
    part("record header, reserved", 5, Record("Record header"), &|at, _, _| once(at + 84..at + 124).collect());
    part("record payload", 18, Record("Record payload: expected CRC-32"), &|at, end, _| {
        once(at + HEADER..end).collect()
    });
    part("record padding", 10, Record("Record padding: expected zeros"), &|_, end, next| once(end..next).collect());
    let heads = |bytes: Range<u64>| {
        let head = |pack| Stretch { file: pack_file(pack), bytes: bytes.clone(), block: None };
        [1, 2].map(head).into()
    };
    kinds.push(Kind { name: "pack header", weight: 5, outcome: Is(Framed), stretches: heads(0..64) });
    kinds.push(Kind { name: "pack header, reserved", weight: 5, outcome: Is(Framed), stretches: heads(64..4096) });
    every_byte_is_of_one_kind(&root, &kinds);
    kinds
}

/// No byte is left out, or the flips prove less than they seem to.
fn every_byte_is_of_one_kind(root: &Path, kinds: &[Kind]) {
    let mut covered: BTreeMap<&str, u64> = BTreeMap::new();
    for stretch in kinds.iter().flat_map(|kind| &kind.stretches) {
        *covered.entry(&stretch.file).or_default() += stretch.bytes.end - stretch.bytes.start;
    }
    let listed = crate::common::tool("find", [root.to_str().unwrap(), "-type", "f", "-printf", "%P %s\\n"]);
    for line in listed.lines() {
        let (file, bytes) = line.rsplit_once(' ').unwrap();
        assert_eq!(covered.remove(file), Some(bytes.parse().unwrap()), "bytes of {file}");
    }
    assert!(covered.is_empty(), "{covered:?}");
}

struct Flip<'a> {
    kind: &'a Kind,
    stretch: &'a Stretch,
    at: u64,
    bit: u64,
}

fn draw<'a>(kinds: &'a [Kind], dice: &mut Dice) -> Flip<'a> {
    let mut left = dice.below(kinds.iter().map(|kind| kind.weight).sum());
    let drawn = kinds.iter().find(|kind| {
        let hit = left < kind.weight;
        left = left.saturating_sub(kind.weight);
        hit
    });
    of_kind(drawn.unwrap(), dice)
}

fn of_kind<'a>(kind: &'a Kind, dice: &mut Dice) -> Flip<'a> {
    let stretch = &kind.stretches[dice.below(kind.stretches.len() as u64) as usize];
    let at = stretch.bytes.start + dice.below(stretch.bytes.end - stretch.bytes.start);
    Flip { kind, stretch, at, bit: dice.below(8) }
}

impl Flip<'_> {
    /// Flips it, or flips it back.
    fn flip(&self, root: &Path) {
        let file = File::options().read(true).write(true).open(root.join(&self.stretch.file)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << self.bit], self.at).unwrap();
    }

    fn effect(&self) -> Effect {
        let mut effect = Effect { touched: [self.stretch.file.clone()].into(), ..Effect::default() };
        if let (Record(words), Some(block)) = (self.kind.outcome, &self.stretch.block) {
            effect.lost.insert((self.stretch.file.clone(), block.clone()));
            if words != "Record header" {
                effect.named = effect.lost.clone();
            }
        }
        effect
    }

    fn expected(&self, subject: &Subject, effect: &Effect) -> Expected {
        let file = &self.stretch.file;
        match self.kind.outcome {
            Is(cell) => expected(subject, first("any"), Act::Flip, cell, effect),
            Record(words) => {
                let mut expected = expected(subject, Spot::File("any", Of::First), Act::Flip, Lost, effect);
                // The walk's own words: with its block, or, for a header, about the pack.
                for findings in [&mut expected.bare, &mut expected.keyed] {
                    let key = ("error", "damaged", file.clone(), effect.named.first().map(|(_, block)| block.clone()));
                    findings.insert(key, words);
                }
                expected
            }
            // Which of these are found depends on what the bit meant; `events` looks closer.
            Event => {
                let none = Findings::new();
                Expected { exit: 4, bare: none.clone(), keyed: none, import: Import::Whole, says: vec![] }
            }
        }
    }

    /// A flip in the chain names the event or its signature; of the first also the next event, which names both digests.
    fn events(&self, report: &serde_json::Value) -> Vec<String> {
        let own = self.stretch.file.trim_end_matches(".sig");
        let found = super::judge::found(report);
        let mut complaints = Vec::new();
        if !found.iter().any(|(key, _)| key.2.trim_end_matches(".sig") == own) {
            complaints.push(format!("{own} is not named: {found:?}"));
        }
        let follows = "custody/0002-received.json";
        if own != follows && !found.iter().any(|(key, text)| key.2 == follows && text.contains("predecessor")) {
            complaints.push(format!("{follows} does not miss its predecessor: {found:?}"));
        }
        let odd = found.iter().filter(|((severity, class, object, _), _)| {
            (*severity, *class) != ("error", "untrusted") || object.trim_end_matches(".sig") != own && object != follows
        });
        complaints.extend(odd.map(|(key, text)| format!("unexpected {key:?}: {text}")));
        complaints
    }
}

#[test]
fn every_flipped_bit_is_found_and_reaches_no_volume() {
    let since = Instant::now();
    let (count, seed) = if full() { (1200, seed_of_this_run()) } else { (60, 3) };
    let subject = Subject::make(true);
    let kinds = kinds(&subject);
    let mut dice = Dice::new(seed);
    // Every kind is met.
    let mut flips: Vec<Flip> = kinds.iter().map(|kind| of_kind(kind, &mut dice)).collect();
    while flips.len() < count {
        flips.push(draw(&kinds, &mut dice));
    }
    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let place = Place::new();
                subject.fresh_state(&place.join("state"));
                let array = place.join("array");
                subject.copy(&array);
                let root = array.join("motiongear");
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(flip) = flips.get(number) else { break };
                    let effect = flip.effect();
                    flip.flip(&root);
                    let engine = ["uring", "threads"][number % 2];
                    let court = Court { subject: &subject, array: array.clone(), state: place.join("state"), engine };
                    let modes = [Mode::Bare, Mode::Keys];
                    let found = match flip.kind.outcome {
                        Event => {
                            court.complaints_of(&flip.expected(&subject, &effect), &effect, &modes, &|_, report| {
                                flip.events(report)
                            })
                        }
                        _ => court.complaints(&flip.expected(&subject, &effect), &effect, &modes),
                    };
                    flip.flip(&root);
                    if !found.is_empty() {
                        let Flip { kind, stretch, at, bit } = flip;
                        let place = format!("{} (byte {at} of {}, bit {bit})", kind.name, stretch.file);
                        complaints.lock().unwrap().push(format!("{place}:\n    {}", found.join("\n    ")));
                    }
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "seed {seed}, {} of {count}:\n{}", complaints.len(), complaints.join("\n"));
    table(&kinds, &flips);
    eprintln!("damage: {count} flips in {} s (seed {seed})", since.elapsed().as_secs());
}

/// What was flipped and what came of it.
fn table(kinds: &[Kind], flips: &[Flip]) {
    eprintln!("{:28} {:>9} {:>6}  {:>6} import", "kind of place", "bytes", "flips", "verify");
    for kind in kinds {
        let bytes: u64 = kind.stretches.iter().map(|s| s.bytes.end - s.bytes.start).sum();
        let flips = flips.iter().filter(|flip| std::ptr::eq(flip.kind, kind)).count();
        let (exit, import) = match kind.outcome {
            Is(Served) => (0, "whole; the second copy serves, which is said"),
            Is(Rotten) => (0, "whole; the second copy is named"),
            Is(Framed) => (3, "whole; no block lies there"),
            Is(_) => (0, "whole; the report's own signature shows it"),
            Record(_) => (3, "3; this block is listed and absent, all others are there"),
            Event => (4, "whole; the event is named"),
        };
        eprintln!("{:28} {bytes:>9} {flips:>6}  {exit:>6} {import}", kind.name);
    }
}
