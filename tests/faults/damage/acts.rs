//! Doing damage: seven acts on any place of the array. Each says which files it touched, which blocks it cost, and which of
//! these a walk without keys can name, reckoned from where records lie and from nothing else.

use super::subject::{Block, HEADER, Record, Subject, pack_file};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Flip,
    Zero,
    Cut,
    Delete,
    Swap,
    Double,
    Stale,
}
use Act::*;

pub const ACTS: [Act; 7] = [Flip, Zero, Cut, Delete, Swap, Double, Stale];

/// Which of two copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    First,
    Second,
    Both,
}

/// What of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    File,
    Head,
    Record,
    Header,
    Payload,
    Padding,
}

/// Where it is done. A `+` joins files that are damaged together; `MANIFEST` and `REPORT` stand for their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    File(&'static str, Of),
    Pack(Part),
}

/// Of a file without, or with a second copy.
pub const fn first(file: &'static str) -> Spot {
    Spot::File(file, Of::First)
}
pub const fn second(file: &'static str) -> Spot {
    Spot::File(file, Of::Second)
}
pub const fn both(file: &'static str) -> Spot {
    Spot::File(file, Of::Both)
}

impl std::fmt::Display for Spot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Spot::File(file, Of::First) => f.write_str(file),
            Spot::File(file, Of::Second) => write!(f, "copy/{file}"),
            Spot::File(file, Of::Both) => write!(f, "{file}, both copies"),
            Spot::Pack(part) => write!(f, "pack: {part:?}"),
        }
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct Effect {
    /// Files that are not what they were, or are new.
    pub touched: BTreeSet<String>,
    /// Blocks whose record or key is lost, with the pack that their row names.
    pub lost: BTreeSet<(String, Block)>,
    /// Blocks that a walk without keys names: pack, and what the record's header says.
    pub named: BTreeSet<(String, Block)>,
}

/// The array as it lies in `root` (`ARRAY/motiongear`), to be damaged.
pub struct Victim<'a> {
    pub subject: &'a Subject,
    pub root: PathBuf,
}

impl Victim<'_> {
    fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }
    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
    }
    fn write(&self, file: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(file).parent().unwrap()).unwrap();
        fs::write(self.path(file), bytes).unwrap();
    }

    pub fn damage(&self, spot: Spot, act: Act) -> Effect {
        match spot {
            Spot::File(files, of) => self.damage_files(files, of, act),
            Spot::Pack(part) => self.damage_pack(part, act),
        }
    }

    fn damage_files(&self, files: &str, of: Of, act: Act) -> Effect {
        let mut effect = Effect::default();
        for file in files.split('+') {
            let file = match file {
                "MANIFEST" => self.subject.manifest,
                "REPORT" => &self.subject.report[0],
                "REPORT.sig" => &self.subject.report[2],
                file => file,
            };
            for prefix in of.prefixes() {
                self.damage_file(prefix, file, act, &mut effect);
            }
        }
        if of == Of::Both && act != Double {
            for process in 1..=3 {
                if effect.touched.contains(&format!("keys/{process:04}.age")) {
                    let lost = self.subject.records.iter().filter(|record| record.process == process);
                    effect.lost.extend(lost.map(|record| (pack_file(record.pack), record.block.clone())));
                }
            }
        }
        effect
    }

    fn damage_file(&self, prefix: &str, name: &str, act: Act, effect: &mut Effect) {
        let file = format!("{prefix}{name}");
        let mut bytes = self.read(&file);
        let paged = name == self.subject.manifest;
        // The middle, or the page there; of a custody event a place where any byte makes sense.
        let person = bytes.windows(7).position(|text| text == b"Sun Tao").filter(|_| act == Flip);
        let middle = if paged { bytes.len() / 2 / 4096 * 4096 } else { person.unwrap_or(bytes.len() / 2) };
        effect.touched.insert(file.clone());
        match act {
            Flip => bytes[middle] ^= 8,
            Zero if paged => bytes[middle..][..4096].fill(0),
            Zero => bytes.iter_mut().take(4096).for_each(|byte| *byte = 0),
            Cut => bytes.truncate(middle),
            Delete => return fs::remove_file(self.path(&file)).unwrap(),
            Swap if paged => {
                let page = bytes[middle..][..4096].to_vec();
                bytes.copy_within(middle - 4096..middle, middle);
                bytes[middle - 4096..middle].copy_from_slice(&page);
            }
            Double if paged => bytes.copy_within(middle - 4096..middle, middle),
            Swap => {
                let mate = format!("{prefix}{}", self.mate(name));
                let other = self.read(&mate);
                self.write(&mate, &bytes);
                bytes = other;
                effect.touched.insert(mate);
            }
            Double => {
                effect.touched.remove(&file);
                let twin = format!("{prefix}{}", twin(name));
                self.write(&twin, &bytes);
                effect.touched.insert(twin);
                return;
            }
            Stale => bytes = fs::read(self.stale(name)).unwrap(),
        }
        assert!(bytes != self.read(&file) || act == Swap, "{act:?} did nothing to {file}");
        self.write(&file, &bytes);
    }

    /// Another of its kind.
    fn mate(&self, name: &str) -> String {
        match name {
            "shipment.json" => "seal.json".into(),
            "shipment.json.sig" => "seal.json.sig".into(),
            "seal.json" => "shipment.json".into(),
            "seal.json.sig" => "shipment.json.sig".into(),
            "keys/0001.age" => "keys/0002.age".into(),
            "custody/0001-dispatched.json" => "custody/0002-received.json".into(),
            "custody/0001-dispatched.json.sig" => "custody/0002-received.json.sig".into(),
            "custody/0002-received.json" => "custody/0001-dispatched.json".into(),
            "custody/0002-received.json.sig" => "custody/0001-dispatched.json.sig".into(),
            name if name == self.subject.report[0] => self.subject.report[1].clone(),
            name if name == self.subject.report[2] => self.subject.report[1].clone(),
            other => panic!("{other} has no mate"),
        }
    }

    /// An older copy: this array's where there was one, else that of the shipment before.
    fn stale(&self, name: &str) -> PathBuf {
        if ["seal.json", "seal.json.sig", self.subject.manifest].contains(&name) {
            return self.subject.state("first").join(name);
        }
        let old = self.subject.state("earlier");
        if !name.starts_with("report/") {
            return old.join(name);
        }
        let end: String = name.rsplit("Z.").next().unwrap().to_owned();
        let names = fs::read_dir(old.join("report")).unwrap().map(|entry| entry.unwrap().path());
        names.into_iter().find(|path| path.to_str().unwrap().ends_with(&format!("Z.{end}"))).unwrap()
    }

    fn damage_pack(&self, part: Part, act: Act) -> Effect {
        let records = &self.subject.records;
        // In the middle of the first pack: two inner blocks of noise, whose records are equally long.
        let noisy: Vec<&Record> =
            records.iter().filter(|r| r.pack == 1 && r.stored > 60_000 && r.block.1 % 6 == 1).collect();
        let (one, other) = (noisy[1], noisy[2]);
        assert_eq!((one.stored, &one.block.0), (other.stored, &other.block.0));
        let file = pack_file(1);
        let mut effect = Effect { touched: [file.clone()].into(), ..Effect::default() };
        let place = |record: &Record| (pack_file(record.pack), record.block.clone());
        if part == Part::File {
            self.damage_whole_pack(act, &mut effect);
            return effect;
        }
        let mut bytes = self.read(&file);
        let earlier = || {
            let old = self.subject.earlier_records.iter().find(|record| record.block == one.block).unwrap();
            assert_eq!(old.stored, one.stored);
            let bytes = fs::read(self.subject.state("earlier").join(pack_file(old.pack))).unwrap();
            bytes[old.offset as usize..old.end() as usize].to_vec()
        };
        // Within a record, by part.
        let range = |record: &Record| match part {
            Part::Header => record.offset as usize..(record.offset + HEADER) as usize,
            Part::Payload => (record.offset + HEADER) as usize..record.payload_end() as usize,
            Part::Padding => record.payload_end() as usize..record.end() as usize,
            Part::Record => record.offset as usize..record.end() as usize,
            Part::File | Part::Head => 0..4096,
        };
        let (here, there) = (range(one), range(other));
        let middle = (here.start + here.end) / 2;
        match (part, act) {
            (Part::Head, Flip) => bytes[20] ^= 8,
            (Part::Head, Zero) => bytes[..4096].fill(0),
            (Part::Head, Swap | Double) => {
                let mut second = self.read(&pack_file(2));
                let kept = second[..4096].to_vec();
                second[..4096].copy_from_slice(&bytes[..4096]);
                self.write(&pack_file(2), &second);
                effect.touched.insert(pack_file(2));
                if act == Swap {
                    bytes[..4096].copy_from_slice(&kept);
                } else {
                    effect.touched.remove(&file);
                }
            }
            (Part::Head, Stale) => {
                let old = fs::read(self.subject.state("earlier").join(&file)).unwrap();
                bytes[..4096].copy_from_slice(&old[..4096]);
            }
            (Part::Head | Part::Header | Part::Payload | Part::Padding, Cut) => {
                let cut = match part {
                    Part::Head => 100,
                    // Behind the header; in the padding of the last record.
                    Part::Header => here.end as u64,
                    Part::Padding => self.subject.pack_bytes(1) - 100,
                    _ => middle as u64,
                };
                bytes.truncate(cut as usize);
                self.cut_off(1, cut, &mut effect);
            }
            (_, Flip) => {
                bytes[middle] ^= 8;
                effect.lost.insert(place(one));
                if part != Part::Header {
                    effect.named.insert(place(one));
                }
            }
            (Part::Header, Zero) => {
                bytes[here.start..][..4096].fill(0);
                effect.lost.insert(place(one));
            }
            (_, Zero) => {
                bytes[middle / 4096 * 4096..][..4096].fill(0);
                effect.lost.insert(place(one));
                effect.named.insert(place(one));
            }
            (_, Swap) => {
                let (a, b) = (bytes[here.clone()].to_vec(), bytes[there.clone()].to_vec());
                bytes[here].copy_from_slice(&b);
                bytes[there].copy_from_slice(&a);
                effect.lost.extend([place(one), place(other)]);
                // Whole records in each other's place are sound by themselves.
                if part != Part::Record {
                    effect.named.extend([place(one), place(other)]);
                }
            }
            (_, Double) => {
                bytes.copy_within(here, there.start);
                effect.lost.insert(place(other));
                match part {
                    Part::Record => {}
                    // The doubled header says that it is the first one.
                    Part::Header => drop(effect.named.insert(place(one))),
                    _ => drop(effect.named.insert(place(other))),
                }
            }
            (Part::Padding, Stale) => {
                // What an older file had there.
                bytes[here.clone()].copy_from_slice(&earlier()[1000..][..here.len()]);
                effect.lost.insert(place(one));
                effect.named.insert(place(one));
            }
            (_, Stale) => {
                let from = here.start - one.offset as usize;
                bytes[here.clone()].copy_from_slice(&earlier()[from..][..here.len()]);
                effect.lost.insert(place(one));
                effect.named.insert(place(one));
            }
            other => panic!("{other:?} makes no sense"),
        }
        assert!(bytes != self.read(&file) || (part, act) == (Part::Head, Double), "{act:?} did nothing to {part:?}");
        self.write(&file, &bytes);
        effect
    }

    fn damage_whole_pack(&self, act: Act, effect: &mut Effect) {
        let file = pack_file(1);
        match act {
            Cut => {
                // Between two records, so that only the length and the digest tell.
                let ends: Vec<u64> = self.subject.records.iter().filter(|r| r.pack == 1).map(Record::end).collect();
                let cut = ends[ends.len() / 2];
                fs::File::options().write(true).open(self.path(&file)).unwrap().set_len(cut).unwrap();
                self.cut_off(1, cut, effect);
            }
            Stale => {
                let old = fs::read(self.subject.state("half").join(&file)).unwrap();
                self.write(&file, &old);
                self.cut_off(1, old.len() as u64, effect);
            }
            Delete => {
                fs::remove_file(self.path(&file)).unwrap();
                self.cut_off(1, 0, effect);
                effect.named.clear();
            }
            Swap => {
                let (one, two) = (self.read(&file), self.read(&pack_file(2)));
                self.write(&file, &two);
                self.write(&pack_file(2), &one);
                effect.touched.insert(pack_file(2));
                self.cut_off(1, 0, effect);
                self.cut_off(2, 0, effect);
                effect.named.clear();
                // No more is read than was sealed: the longer content ends within a record, which its header names.
                for (here, content) in [(1, 2), (2, 1)] {
                    let end = self.subject.pack_bytes(here);
                    let mut inside = self.subject.records.iter().filter(|record| record.pack == content);
                    if let Some(record) = inside.find(|record| record.offset < end && end < record.end()) {
                        let shown = end - record.offset > HEADER;
                        assert!(shown);
                        effect.named.insert((pack_file(here), record.block.clone()));
                    }
                }
            }
            Double => {
                fs::copy(self.path(&file), self.path(&pack_file(3))).unwrap();
                effect.touched = [pack_file(3)].into();
            }
            Flip | Zero => panic!("{act:?}: by part"),
        }
    }

    /// All records of a pack that end behind `cut` are lost; the one that begins before it can be named, if a page of it is there.
    fn cut_off(&self, pack: u32, cut: u64, effect: &mut Effect) {
        for record in self.subject.records.iter().filter(|record| record.pack == pack && record.end() > cut) {
            let place = (pack_file(pack), record.block.clone());
            if record.offset + 4096 <= cut {
                effect.named.insert(place.clone());
            }
            effect.lost.insert(place);
        }
    }
}

impl Of {
    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Of::First => &[""],
            Of::Second => &["copy/"],
            Of::Both => &["", "copy/"],
        }
    }
}

/// The name of a doubled file: the next in its row, else one that nobody expects.
fn twin(name: &str) -> String {
    match name {
        "keys/0001.age" => "keys/0004.age".into(),
        "custody/0001-dispatched.json" | "custody/0002-received.json" => "custody/0003-received.json".into(),
        "custody/0001-dispatched.json.sig" | "custody/0002-received.json.sig" => {
            "custody/0003-received.json.sig".into()
        }
        other => format!("{other}.1"),
    }
}
