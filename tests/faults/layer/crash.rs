//! What may be left when the power goes: all that is durable, and any part of the journal that a real file system may have
//! written by then.
//!
//! * Names: each change alone, but none without what it needs (`journal::needs`).
//! * Size and holes of a file: in their order, up to some point.
//! * Data: each page alone, as it was at some moment since it was durable; it may be torn at sectors between two such moments.
//!   Data beyond the size that is left are gone; where the size is left without data, zeros are read.

use super::journal::{World, needs};
use super::tree::{Ino, Op, PAGE, SECTOR, Tree};
use crate::common::Dice;
use std::collections::BTreeMap;

/// How the survivors are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Only what is durable.
    Nothing,
    /// The medium was quick: all is there.
    Everything,
    /// As a file system does that writes in order: up to some operation, the last one torn.
    Prefix,
    /// Names, sizes and holes, but no data: what a journal of metadata gives.
    NamesOnly,
    /// Data and sizes, but no names: renames and new files are lost.
    DataOnly,
    /// Dice decide file by file, name by name, page by page, sector by sector.
    Random,
}

impl Fate {
    /// How many make a round of all; the random one is in it twice.
    pub const KINDS: usize = 7;
    /// The `n`-th of a series that goes round.
    pub fn nth(n: usize) -> Fate {
        let all = [
            Fate::Nothing,
            Fate::Random,
            Fate::Everything,
            Fate::NamesOnly,
            Fate::Prefix,
            Fate::DataOnly,
            Fate::Random,
        ];
        all[n % Fate::KINDS]
    }
}

/// What becomes of one operation.
#[derive(Clone, Copy)]
enum Lot {
    Lost,
    Kept,
    /// Only these sectors of the page, one bit each.
    Torn(u64),
}

/// What the medium holds when the power is back.
pub fn survive(world: &World, fate: Fate, dice: &mut Dice) -> Tree {
    let all = |keep: &dyn Fn(&Op) -> bool| {
        world.journal.iter().map(|op| if keep(op) { Lot::Kept } else { Lot::Lost }).collect::<Vec<_>>()
    };
    let lots = match fate {
        Fate::Nothing => all(&|_| false),
        Fate::Everything => all(&|_| true),
        Fate::NamesOnly => all(&|op| !matches!(op, Op::Write { .. })),
        Fate::DataOnly => all(&|op| op.content_of().is_some()),
        Fate::Prefix => {
            let end = dice.below(world.journal.len() as u64 + 1) as usize;
            let mut lots = all(&|_| true);
            lots[end..].fill(Lot::Lost);
            if matches!(world.journal.get(end), Some(Op::Write { .. })) {
                lots[end] = Lot::Torn(dice.below(256));
            }
            lots
        }
        Fate::Random => random(&world.journal, dice),
    };
    let mut tree = world.durable.clone();
    for (op, lot) in world.journal.iter().zip(lots) {
        match (lot, op) {
            (Lot::Lost, _) => {}
            (Lot::Torn(sectors), Op::Write { ino, page, within, bytes }) => {
                for piece in torn(*within, bytes, sectors) {
                    tree.apply(&Op::Write { ino: *ino, page: *page, within: piece.0, bytes: piece.1.to_vec() });
                }
            }
            (Lot::Kept | Lot::Torn(_), op) => tree.apply(op),
        }
    }
    for node in tree.nodes.values_mut() {
        if let super::tree::Kind::File(content) = &mut node.kind {
            content.trim();
        }
    }
    tree.collect();
    tree
}

/// The parts of a write that fall on the sectors that were written.
fn torn(within: usize, bytes: &[u8], sectors: u64) -> impl Iterator<Item = (usize, &[u8])> {
    (0..PAGE / SECTOR).filter(move |sector| sectors >> sector & 1 == 1).filter_map(move |sector| {
        let start = (sector * SECTOR).max(within);
        let end = ((sector + 1) * SECTOR).min(within + bytes.len());
        (start < end).then(|| (start, &bytes[start - within..end - within]))
    })
}

/// How one file fares.
struct FileLot {
    /// Of ten pages, how many are decided to the last operation at once; 0 and 10 decide for the whole file.
    quick: u64,
    /// Changes of size and holes that are kept.
    meta: u64,
}

fn random(journal: &[Op], dice: &mut Dice) -> Vec<Lot> {
    let mut files: BTreeMap<Ino, FileLot> = BTreeMap::new();
    let mut pages: BTreeMap<(Ino, u64), u64> = BTreeMap::new();
    for op in journal {
        match op {
            Op::Write { ino, page, .. } => *pages.entry((*ino, *page)).or_default() += 1,
            Op::Resize { ino, .. } | Op::Punch { ino, .. } => {
                files.entry(*ino).or_insert(FileLot { quick: 0, meta: 0 }).meta += 1;
            }
            _ => {}
        }
    }
    for ino in pages.keys().map(|(ino, _)| *ino) {
        files.entry(ino).or_insert(FileLot { quick: 0, meta: 0 });
    }
    for lot in files.values_mut() {
        lot.quick = [0, 1, 5, 9, 10][dice.below(5) as usize];
        lot.meta = match lot.quick {
            0 => 0,
            10 => lot.meta,
            _ if dice.below(2) == 0 => lot.meta,
            _ => dice.below(lot.meta + 1),
        };
    }
    // Of each page: so many of its writes were carried out, and of the next one these sectors.
    let mut pages: BTreeMap<(Ino, u64), (u64, u64)> = pages
        .into_iter()
        .map(|(key, writes)| {
            let lot = match files[&key.0].quick {
                0 => (0, 0),
                10 => (writes, 0),
                quick if dice.below(10) < quick => (writes, 0),
                _ => {
                    let whole = dice.below(writes + 1);
                    (whole, if dice.below(3) == 0 { dice.below(256) } else { 0 })
                }
            };
            (key, lot)
        })
        .collect();
    let names_kept = [0, 2, 5, 8, 10][dice.below(5) as usize];
    let mut lots: Vec<Lot> = Vec::with_capacity(journal.len());
    for (at, op) in journal.iter().enumerate() {
        lots.push(match op {
            Op::Write { ino, page, .. } => match pages.get_mut(&(*ino, *page)) {
                Some((whole, _)) if *whole > 0 => {
                    *whole -= 1;
                    Lot::Kept
                }
                Some((_, sectors)) if *sectors > 0 => Lot::Torn(std::mem::take(sectors)),
                _ => Lot::Lost,
            },
            Op::Resize { ino, .. } | Op::Punch { ino, .. } => match files.get_mut(ino) {
                Some(lot) if lot.meta > 0 => {
                    lot.meta -= 1;
                    Lot::Kept
                }
                _ => Lot::Lost,
            },
            // The journal's own lots tell what is kept already.
            _ => {
                let lacks = (0..at).any(|e| matches!(lots[e], Lot::Lost) && needs(op, &journal[e]));
                if !lacks && dice.below(10) < names_kept { Lot::Kept } else { Lot::Lost }
            }
        });
    }
    lots
}

#[cfg(test)]
mod tests {
    //! Goal: the layer finds programs that do not sync, and none that do. Method: small programs on a world without a mount,
    //! cut at every step under many fates; random histories against what a world may hold.

    use super::super::tree::{Kind, ROOT};
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }
    fn file(world: &mut World, text: &str) -> Ino {
        world.create(ROOT, name(text), Kind::File(Default::default()), libc::S_IFREG | 0o644, (0, 0))
    }
    const OLD: &[u8] = &[b'o'; 9000];
    const NEW: &[u8] = &[b'n'; 9000];

    /// A program that replaces `doc` by a temporary file and a rename, doing what `syncs` says; what the medium may hold after
    /// each of its steps.
    fn replaced(data: bool, directory: bool) -> Vec<(bool, Option<Vec<u8>>)> {
        let mut world = World::new();
        let old = file(&mut world, "doc");
        world.write(old, 0, OLD);
        world.settle();
        let mut moments = vec![(false, world.clone())];
        let new = file(&mut world, ".tmp");
        world.write(new, 0, NEW);
        moments.push((false, world.clone()));
        if data {
            world.sync_file(new);
            moments.push((false, world.clone()));
        }
        world.rename((ROOT, name(".tmp").into()), (ROOT, name("doc").into()), new);
        moments.push((false, world.clone()));
        if directory {
            world.sync_dir(ROOT);
        }
        moments.push((true, world));
        let mut dice = Dice::new(7);
        let mut found = Vec::new();
        for (done, world) in moments {
            for n in 0..400 {
                found.push((done, survive(&world, Fate::nth(n), &mut dice).file("doc").map(|content| content.all())));
            }
        }
        found
    }

    #[test]
    fn a_program_that_syncs_file_and_directory_survives_every_cut() {
        for (done, doc) in replaced(true, true) {
            let doc = doc.expect("the name is never gone");
            assert!(doc == NEW || doc == OLD && !done);
        }
    }

    #[test]
    fn a_program_that_does_not_is_caught() {
        let halves = replaced(false, true);
        assert!(halves.iter().any(|(_, doc)| doc.as_ref().is_some_and(|doc| doc.is_empty())), "a name without data");
        let odd = |doc: &Vec<u8>| doc.len() == NEW.len() && doc != NEW && doc != OLD;
        assert!(halves.iter().any(|(_, doc)| doc.as_ref().is_some_and(odd)), "pages that were not written");
        let undone = replaced(true, false);
        assert!(undone.iter().any(|(done, doc)| *done && doc.as_deref() == Some(OLD)), "a rename that is lost");
    }

    #[test]
    fn a_page_is_torn_at_sectors_and_nowhere_else() {
        let mut world = World::new();
        let ino = file(&mut world, "page");
        world.write(ino, 0, &[1; PAGE]);
        world.settle();
        let ino = world.now.at("page").unwrap();
        world.write(ino, 0, &[2; PAGE]);
        let (mut dice, mut mixed) = (Dice::new(3), 0);
        for _ in 0..500 {
            let page = survive(&world, Fate::Random, &mut dice).file("page").unwrap().all();
            assert!(page.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            mixed += usize::from(page.contains(&1) && page.contains(&2));
        }
        assert!(mixed > 20, "{mixed}");
    }

    #[test]
    fn a_file_in_a_directory_that_was_not_synced_is_lost_with_it() {
        let mut world = World::new();
        let dir = world.create(ROOT, name("dir"), Kind::Dir(Default::default()), libc::S_IFDIR | 0o755, (0, 0));
        let ino = world.create(dir, name("file"), Kind::File(Default::default()), libc::S_IFREG | 0o644, (0, 0));
        world.write(ino, 0, NEW);
        world.sync_file(ino);
        world.sync_dir(dir);
        assert!(survive(&world, Fate::Nothing, &mut Dice::new(1)).file("dir/file").is_none());
        world.sync_dir(ROOT);
        assert_eq!(survive(&world, Fate::Nothing, &mut Dice::new(1)).file("dir/file").unwrap().all(), NEW);
    }

    #[test]
    fn a_file_linked_to_another_name_is_never_without_one() {
        let mut world = World::new();
        let ino = file(&mut world, "a");
        world.settle();
        let ino = world.now.at("a").unwrap_or(ino);
        world.link(ROOT, name("b"), ino);
        world.remove(ROOT, name("a"), ino);
        for n in 0..200 {
            let left = survive(&world, Fate::nth(n), &mut Dice::new(n as u64));
            assert!(left.at("a").is_some() || left.at("b").is_some());
        }
    }

    #[test]
    fn what_was_cut_off_does_not_come_back_when_the_file_grows() {
        let mut world = World::new();
        let ino = file(&mut world, "f");
        world.write(ino, 0, &[9; 3 * PAGE]);
        world.sync_file(ino);
        world.resize(ino, 100);
        world.resize(ino, 2 * PAGE as u64);
        world.punch(ino, 10, 20);
        assert!(world.now.content(ino).unwrap().all()[100..].iter().all(|byte| *byte == 0));
        assert_eq!(world.now.content(ino).unwrap().all()[..40], [vec![9; 10], vec![0; 20], vec![9; 10]].concat());
        assert_eq!(world.now.content(ino).unwrap().seek(0, false), Some(PAGE as u64));
    }

    /// One step of a random program on three files.
    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, u64, usize, u8),
        Resize(usize, u64),
        Punch(usize, u64, u64),
        Sync(usize),
    }
    fn step() -> impl Strategy<Value = Step> {
        let file = 0..3usize;
        prop_oneof![
            4 => (file.clone(), 0..20_000u64, 1..9000usize, 1..=255u8).prop_map(|(f, o, l, b)| Step::Write(f, o, l, b)),
            1 => (file.clone(), 0..20_000u64).prop_map(|(f, b)| Step::Resize(f, b)),
            1 => (file.clone(), 0..20_000u64, 1..9000u64).prop_map(|(f, o, l)| Step::Punch(f, o, l)),
            2 => file.prop_map(Step::Sync),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_file_holds_what_it_held_at_its_sync_or_what_came_later(steps in prop::collection::vec(step(), 1..40), seed: u64) {
            let mut world = World::new();
            let files: Vec<Ino> = ["a", "b", "c"].map(|text| file(&mut world, text)).into();
            world.sync_dir(ROOT);
            // The naive model: whole contents, as they were at each moment since the last sync.
            let mut model: Vec<Vec<Vec<u8>>> = vec![vec![Vec::new()]; 3];
            for step in &steps {
                let which = match step {
                    Step::Write(f, ..) | Step::Resize(f, _) | Step::Punch(f, ..) | Step::Sync(f) => *f,
                };
                let mut whole = model[which].last().unwrap().clone();
                match step {
                    Step::Write(_, offset, len, byte) => {
                        world.write(files[which], *offset, &vec![*byte; *len]);
                        let end = *offset as usize + len;
                        whole.resize(whole.len().max(end), 0);
                        whole[*offset as usize..end].fill(*byte);
                    }
                    Step::Resize(_, bytes) => {
                        world.resize(files[which], *bytes);
                        whole.resize(*bytes as usize, 0);
                    }
                    Step::Punch(_, offset, len) => {
                        world.punch(files[which], *offset, *len);
                        let end = whole.len().min((offset + len) as usize);
                        let start = end.min(*offset as usize);
                        whole[start..end].fill(0);
                    }
                    Step::Sync(_) => {
                        world.sync_file(files[which]);
                        model[which] = vec![whole.clone()];
                    }
                }
                model[which].push(whole);
            }
            let mut dice = Dice::new(seed);
            for (f, text) in ["a", "b", "c"].iter().enumerate() {
                let now = model[f].last().unwrap();
                prop_assert_eq!(&world.now.content(files[f]).unwrap().all(), now);
                prop_assert_eq!(&survive(&world, Fate::Everything, &mut dice).file(text).unwrap().all(), now);
                prop_assert_eq!(&survive(&world, Fate::Nothing, &mut dice).file(text).unwrap().all(), &model[f][0]);
            }
            for n in 0..12 {
                let left = survive(&world, Fate::nth(n), &mut dice);
                for (f, text) in ["a", "b", "c"].iter().enumerate() {
                    let found = left.file(text).unwrap().all();
                    // A resize and the write behind it are two operations: the size may be there alone.
                    let size = model[f].iter().any(|whole| whole.len() == found.len());
                    prop_assert!(size, "{} bytes were never the size", found.len());
                    for (at, byte) in found.iter().enumerate() {
                        let known = *byte == 0 || model[f].iter().any(|whole| whole.get(at) == Some(byte));
                        prop_assert!(known, "byte {} was never {}", at, byte);
                    }
                }
            }
        }
    }
}
