//! Goal: whatever is damaged on an array is found and named, reaches no volume, and costs nothing but itself. Method: a table of
//! acts and places with the outcome that FORMAT.md and MANUAL.md promise; every cell is done to a copy of a real array (`subject`,
//! `acts`), which the real binary and the stand-alone checker then judge (`judge`). And random single bits, everywhere (`flips`).

mod acts;
mod flips;
mod judge;
mod subject;

use acts::{ACTS, Act, Of, Part, Spot, Victim, both, first, second};
use judge::{Court, Mode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use subject::Subject;

/// What an act on a place comes to: of every `verify` (exit; what is found), and of `import`. Nothing else may be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// 0, a warning that names the file and says that the second copy serves. Import: whole, with the same note.
    Served,
    /// 0, a warning that names the second copy. Import: whole, with the same note if it reads that copy.
    Rotten,
    /// 0, a warning: the first seal is older than its second copy, which is used. Import: whole, with the same note.
    Older,
    /// 0, a warning: the second copy of the seal is an older one. Import: whole, with the same note.
    Superseded,
    /// 4, both files named. Import: refused, nothing written.
    Refused,
    /// 4: this is the array as it was sealed before, and custody names another seal. Import: refused, nothing written.
    RolledBack,
    /// 4, these events or their signatures named (`1.sig`: that of event 1). Import: whole, with the same notes.
    Chain(&'static str),
    /// 3, this event named: as a crash leaves one, without its signature at the end of the chain. Import: whole, with the same note.
    Leftover(&'static str),
    /// 3; the file, and each lost block by its disk: without keys where a record's header still says so, with keys always. Import:
    /// 3, those blocks listed and absent, all others there.
    Lost,
    /// As `Lost`, but a pack is missing or has another length, and import first asks for `--accept-missing-packs`.
    Short,
    /// 3, the pack named; no block is touched. Import: whole.
    Framed,
    /// 3, the file named: it is not in the seal. Import: whole.
    Extra,
    /// 0, a warning: the file belongs to nothing. Import: whole.
    Stray,
    /// 0, nothing. Import: whole. Why nothing on the array can show it.
    Nobody(&'static str),
    /// It makes no sense.
    No(&'static str),
}
use Cell::*;

const OPTIONAL: Cell = Nobody("FORMAT.md, section 2: this copy is optional");
const EARLIER_END: Cell = Nobody("a chain that ends earlier is a chain; the ledgers and the paper know of the arrival");
const PAPER: Cell =
    Nobody("FORMAT.md, section 2: no checker reads report/; the report's own signature shows it, as below");
const BY_PART: Cell = No("see its head, its records and their padding");
const ZEROS: Cell = No("padding is zeros everywhere");
const BYTES: Cell = No("bytes of a file are not deleted: they are overwritten or cut off");
const SAME: Cell = No("as for document and signature by themselves");

/// The table. What is swapped, doubled or old in each place is in `acts`.
#[rustfmt::skip]
const TABLE: &[(Spot, [Cell; 7])] = &[
    //                              flip a bit  zero a page  cut         delete      swap two    double      stale
    (first("shipment.json"),       [Served,     Served,      Served,     Served,     Served,     Stray,      Served]),
    (second("shipment.json"),      [Rotten,     Rotten,      Rotten,     Rotten,     Rotten,     Stray,      Rotten]),
    (both("shipment.json"),        [Refused,    Refused,     Refused,    Refused,    Refused,    Stray,      Refused]),
    (first("shipment.json.sig"),   [Served,     Served,      Served,     Served,     Served,     Stray,      Served]),
    (second("shipment.json.sig"),  [Rotten,     Rotten,      Rotten,     OPTIONAL,   Rotten,     Stray,      Rotten]),
    (both("shipment.json.sig"),    [Refused,    Refused,     Refused,    Refused,    Refused,    Stray,      Refused]),
    (first("keys/0001.age"),       [Served,     Served,      Served,     Served,     Served,     Stray,      Served]),
    (second("keys/0001.age"),      [Rotten,     Rotten,      Rotten,     Rotten,     Rotten,     Stray,      Rotten]),
    (both("keys/0001.age"),        [Lost,       Lost,        Lost,       Lost,       Lost,       Stray,      Lost]),
    (first("MANIFEST"),            [Served,     Served,      Served,     Served,     Served,     Served,     Served]),
    (second("MANIFEST"),           [Rotten,     Rotten,      Rotten,     Rotten,     Rotten,     Rotten,     Rotten]),
    (both("MANIFEST"),             [Refused,    Refused,     Refused,    Refused,    Refused,    Refused,    Refused]),
    (first("seal.json"),           [Served,     Served,      Served,     Served,     Served,     Stray,      Served]),
    (second("seal.json"),          [Rotten,     Rotten,      Rotten,     Rotten,     Rotten,     Stray,      Rotten]),
    (both("seal.json"),            [Refused,    Refused,     Refused,    Refused,    Refused,    Stray,      Refused]),
    (first("seal.json.sig"),       [Served,     Served,      Served,     Served,     Served,     Stray,      Served]),
    (second("seal.json.sig"),      [Rotten,     Rotten,      Rotten,     Rotten,     Rotten,     Stray,      Rotten]),
    (both("seal.json.sig"),        [Refused,    Refused,     Refused,    Refused,    Refused,    Stray,      Refused]),
    (first("seal.json+seal.json.sig"),
                                   [Served,     Served,      Served,     Served,     Served,     Stray,      Older]),
    (second("seal.json+seal.json.sig"),
                                   [Rotten,     Rotten,      Rotten,     Rotten,     Rotten,     Stray,      Superseded]),
    (both("seal.json+seal.json.sig"),
                                   [Refused,    Refused,     Refused,    Refused,    Refused,    Stray,      RolledBack]),
    (both("seal.json+seal.json.sig+MANIFEST"),
                                   [SAME,       SAME,        SAME,       SAME,       SAME,       SAME,       RolledBack]),
    (Spot::Pack(Part::File),       [BY_PART,    BY_PART,     Short,      Short,      Short,      Extra,      Short]),
    (Spot::Pack(Part::Head),       [Framed,     Framed,      Short,      BYTES,      Framed,     Framed,     Framed]),
    (Spot::Pack(Part::Record),     [BY_PART,    BY_PART,     BY_PART,    BYTES,      Lost,       Lost,       Lost]),
    (Spot::Pack(Part::Header),     [Lost,       Lost,        Short,      BYTES,      Lost,       Lost,       Lost]),
    (Spot::Pack(Part::Payload),    [Lost,       Lost,        Short,      BYTES,      Lost,       Lost,       Lost]),
    (Spot::Pack(Part::Padding),    [Lost,       ZEROS,       Short,      BYTES,      ZEROS,      ZEROS,      Lost]),
    (first("custody/0001-dispatched.json"),
        [Chain("1.sig 2"), Chain("1 2"), Chain("1 2"), Chain("1 2"), Chain("1 1.sig 2 2.sig"), Leftover("3"), Chain("1 1.sig 2")]),
    (first("custody/0001-dispatched.json.sig"),
        [Chain("1.sig 2"), Chain("1.sig 2"), Chain("1.sig 2"), Chain("1 2"), Chain("1.sig 2 2.sig"), Chain("3"), Chain("1.sig 2")]),
    (first("custody/0001-dispatched.json+custody/0001-dispatched.json.sig"),
        [SAME, SAME, SAME, Chain("2 2.sig"), Chain("1 2"), Chain("3"), Chain("1 2")]),
    (first("custody/0002-received.json"),
        [Chain("2.sig"), Chain("2"), Chain("2"), Chain("2"), Chain("1 1.sig 2 2.sig"), Leftover("3"), Chain("2 2.sig")]),
    (first("custody/0002-received.json.sig"),
        [Chain("2.sig"), Chain("2.sig"), Chain("2.sig"), Leftover("2"), Chain("1.sig 2 2.sig"), Chain("3"), Chain("2.sig")]),
    (first("custody/0002-received.json+custody/0002-received.json.sig"),
        [SAME, SAME, SAME, EARLIER_END, Chain("1 2"), Chain("3 3.sig"), Chain("2")]),
    (first("REPORT"),              [PAPER,      PAPER,       PAPER,      PAPER,      PAPER,      PAPER,      PAPER]),
    (first("REPORT.sig"),          [PAPER,      PAPER,       PAPER,      PAPER,      PAPER,      PAPER,      PAPER]),
];

/// Does every cell that `wanted` names, two at a time; returns how many.
fn run_table(
    subject: &Subject,
    wanted: impl Fn(Spot, acts::Act) -> bool,
    modes: impl Fn(Spot) -> &'static [Mode] + Sync,
) -> usize {
    let since = Instant::now();
    let cells: Vec<_> = TABLE
        .iter()
        .flat_map(|(spot, row)| ACTS.into_iter().zip(row).map(|(act, cell)| (*spot, act, *cell)))
        .filter(|(spot, act, cell)| !matches!(cell, No(_)) && wanted(*spot, *act))
        .collect();
    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let place = crate::common::Place::new();
                subject.fresh_state(&place.join("state"));
                while let Some((spot, act, cell)) = cells.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    let array = place.join("array");
                    subject.copy(&array);
                    let victim = Victim { subject, root: array.join("motiongear") };
                    let effect = victim.damage(spot, act);
                    let expected = judge::expected(subject, spot, act, cell, &effect);
                    let engine = if (act as usize).is_multiple_of(2) { "uring" } else { "threads" };
                    let court = Court { subject, array: array.clone(), state: place.join("state"), engine };
                    let mut found = court.complaints(&expected, &effect, modes(spot));
                    let on_paper = matches!(spot, Spot::File("REPORT" | "REPORT.sig", _)) && act != Act::Double;
                    if judge::report_is_sound(subject, &victim.root) == on_paper {
                        found.push(format!("report: stock tools find it sound: {}", !on_paper));
                    }
                    if !found.is_empty() {
                        let text = format!("{spot}, {act:?} -> {cell:?}:\n    {}", found.join("\n    "));
                        complaints.lock().unwrap().push(text);
                    }
                    std::fs::remove_dir_all(&array).unwrap();
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{} of {} cells:\n{}", complaints.len(), cells.len(), complaints.join("\n"));
    eprintln!("damage: {} cells in {} s", cells.len(), since.elapsed().as_secs());
    cells.len()
}

#[test]
fn every_act_on_every_place_has_its_outcome() {
    let subject = Subject::make(true);
    // What is found without keys is found with them, too; a bounded run looks without them where blocks or trust are at stake.
    let modes = |spot| -> &'static [Mode] {
        match spot {
            _ if crate::common::full() => &[Mode::Bare, Mode::Trust, Mode::Keys],
            Spot::Pack(_) | Spot::File(_, Of::Both) => &[Mode::Bare, Mode::Keys],
            Spot::File(..) => &[Mode::Keys],
        }
    };
    assert!(run_table(&subject, |_, _| true, modes) > 150);
}

#[test]
fn a_plaintext_array_is_judged_alike() {
    let subject = Subject::make(false);
    let full = crate::common::full();
    // No envelopes, and the same payload in every shipment; in a bounded run only what encryption makes a difference to.
    let wanted = |spot: Spot, act: Act| match spot {
        Spot::Pack(part) => (part, act) != (Part::Payload, Act::Stale),
        Spot::File(file, _) => !file.starts_with("keys/") && (full || file == "MANIFEST" || file == "REPORT"),
    };
    assert!(run_table(&subject, wanted, |_| &[Mode::Bare, Mode::Trust]) > 50);
}
