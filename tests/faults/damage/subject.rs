//! The array that is damaged: two machines, three disks, two packs, three key envelopes; sealed twice, checked, reported,
//! dispatched and received. And what it is damaged with: earlier states of itself, and a shipment that lay there before.

use crate::common::disks::noise_at;
use crate::common::{Branch, Motiongear, sql, ssh_key, tool, trust_line};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a block.
pub const BLOCK: u64 = 64 << 10;
/// Bytes of a record's header.
pub const HEADER: u64 = 128;
/// The disks: machine, disk, bytes. One ends in a short block, one in the middle of a page, one with a whole block.
const DISKS: [(&str, &str, u64); 3] =
    [("db01", "sda", 24 * BLOCK + 4096), ("db01", "sdb", 9 * BLOCK + 700), ("db02", "sda", 14 * BLOCK)];

/// A block of a disk: `MACHINE/DISK`, index.
pub type Block = (String, u64);

/// A record that a row of the manifest names.
#[derive(Debug, Clone)]
pub struct Record {
    pub block: Block,
    pub pack: u32,
    pub offset: u64,
    /// Bytes of the payload.
    pub stored: u64,
    /// The writing process.
    pub process: u32,
}

impl Record {
    /// Behind the payload.
    pub fn payload_end(&self) -> u64 {
        self.offset + HEADER + self.stored
    }
    /// Behind the padding.
    pub fn end(&self) -> u64 {
        self.payload_end().next_multiple_of(4096)
    }
}

/// A name below `motiongear/`.
pub fn pack_file(pack: u32) -> String {
    format!("packs/{pack:08}.pack")
}

pub struct Subject {
    pub branch: Branch,
    pub encrypted: bool,
    /// `MACHINE/DISK`, its source.
    pub disks: Vec<(String, PathBuf)>,
    pub records: Vec<Record>,
    /// Of the shipment that lay on the array before; the same disks.
    pub earlier_records: Vec<Record>,
    /// Name of the manifest's file.
    pub manifest: &'static str,
    /// Names of the report's files on the array, JSON and HTML, and of the signature of the first.
    pub report: [String; 3],
}

impl Subject {
    pub fn make(encrypted: bool) -> Subject {
        let mut branch = Branch::new();
        let operator = ssh_key(&branch.place.join("operator"), "wang@centre", "ecdsa", "");
        let trust = std::fs::read_to_string(&branch.trust).unwrap() + &trust_line(&operator, "wang@centre", "");
        std::fs::write(&branch.trust, trust).unwrap();
        let disks: Vec<(String, PathBuf)> = DISKS
            .iter()
            .map(|(machine, disk, bytes)| {
                let path = branch.place.join(format!("{machine}-{disk}"));
                content(&path, *bytes);
                (format!("{machine}/{disk}"), path)
            })
            .collect();
        let last = branch.array.clone();
        branch.array = branch.place.join("earlier");
        ship(&branch, &disks, &operator, encrypted, |_| {});
        let earlier_records = records(&branch);
        branch.array = last;
        let kept = branch.place.path().to_owned();
        let array = branch.array.clone();
        ship(&branch, &disks, &operator, encrypted, |state| copy_tree(&array, &kept.join(state)));
        let records = records(&branch);
        let packs: BTreeSet<u32> = records.iter().map(|record| record.pack).collect();
        let processes: BTreeSet<u32> = records.iter().map(|record| record.process).collect();
        assert_eq!((packs.len(), processes.len()), (2, 3), "a shipment of two packs by three processes");
        let manifest = if encrypted { "manifest.db.age" } else { "manifest.db" };
        let mut names: Vec<String> = std::fs::read_dir(branch.on("report"))
            .unwrap()
            .map(|entry| format!("report/{}", entry.unwrap().file_name().to_str().unwrap()))
            .collect();
        names.sort();
        let end = |end: &str| {
            let age = if encrypted && !end.ends_with("sig") { ".age" } else { "" };
            names.iter().find(|name| name.ends_with(&format!("{end}{age}"))).unwrap().clone()
        };
        let report = [end(".json"), end(".html"), end(".json.sig")];
        Subject { branch, encrypted, disks, records, earlier_records, manifest, report }
    }

    /// The array as it was in another state: `half` (one disk seeded), `first` (sealed for the first time), `earlier` (the
    /// shipment before).
    pub fn state(&self, state: &str) -> PathBuf {
        self.branch.place.join(state).join("motiongear")
    }

    /// A copy of the array to damage.
    pub fn copy(&self, to: &Path) {
        copy_tree(&self.branch.array, to);
    }

    /// A state directory as of a host that has worked before: zero blocks are hashed already, and it knows nothing.
    pub fn fresh_state(&self, state: &Path) {
        std::fs::create_dir_all(state).unwrap();
        copy_tree(&self.branch.state.join("zero"), &state.join("zero"));
    }

    /// Sealed length of a pack, bytes.
    pub fn pack_bytes(&self, pack: u32) -> u64 {
        self.records.iter().filter(|record| record.pack == pack).map(Record::end).max().unwrap()
    }
}

pub fn copy_tree(from: &Path, to: &Path) {
    tool("cp", ["-a".as_ref(), "--reflink=auto".as_ref(), from.as_os_str(), to.as_os_str()]);
}

/// Blocks that are zeros, text and noise in turn; the first and the last of every disk are noise.
fn content(path: &Path, bytes: u64) {
    let file = File::create(path).unwrap();
    file.set_len(bytes).unwrap();
    let last = (bytes - 1) / BLOCK;
    for block in 0..=last {
        let (at, length) = (block * BLOCK, BLOCK.min(bytes - block * BLOCK));
        match block % 6 {
            3 if block != last => {}
            2 if block != last => {
                let line = format!("block {block} of {}, again and again\n", path.display());
                let text = line.repeat((length as usize).div_ceil(line.len()));
                file.write_all_at(&text.as_bytes()[..length as usize], at).unwrap();
            }
            _ => noise_at(&file, at, length, bytes + block),
        }
    }
}

/// A branch day and the arrival, on `branch.array`; `keep` is called with the name of a state when it is reached.
fn ship(branch: &Branch, disks: &[(String, PathBuf)], operator: &Path, encrypted: bool, keep: impl Fn(&str)) {
    std::fs::create_dir_all(&branch.array).unwrap();
    let key = branch.key.to_str().unwrap();
    let mut init = vec!["--block-size", "64KiB", "--key", key];
    if !encrypted {
        init.push("--plaintext");
    }
    branch.init(&init);
    let seed = |(name, source): &(String, PathBuf), extra: &[&str]| {
        let (machine, disk) = name.split_once('/').unwrap();
        let command = branch.motiongear().args(["--json", "seed"]).arg(&branch.array).args(["--machine", machine]);
        command
            .args(["--disk", &format!("{disk}={}", source.display()), "--point-in-time"])
            .args(extra)
            .args(branch.plaintext_for("seed"))
            .run()
            .ok();
    };
    seed(&disks[0], &[]);
    keep("half");
    seed(&disks[1], &[]);
    branch.seal();
    keep("first");
    // A seal closes the pack; what follows goes into another one.
    seed(&disks[2], &["--reopen"]);
    branch.seal();
    let trust = branch.trust.to_str().unwrap();
    branch.on_array("verify", ["--trust", trust]).ok();
    let out = branch.place.join("papers");
    let report = branch.motiongear().args(["--json", "report", "handover"]).arg(&branch.array).args(["--key", key]);
    report.args(["--trust", trust]).arg("--out").arg(out).run().ok();
    let custody = |way: &str, state: &Path, key: &Path| {
        let command = Motiongear::new(state).args(["--json", "custody", way]).arg(&branch.array).arg("--key").arg(key);
        command.args(["--trust", trust, "--person", "Sun Tao, courier", "--box-seal", "A1"]).run().ok();
    };
    custody("dispatch", &branch.state, &branch.key);
    custody("receive", &branch.place.join("dock"), operator);
}

/// What the manifest names, as stock sqlite3 reads it; the writing process from the record's own header.
fn records(branch: &Branch) -> Vec<Record> {
    let rows = sql(
        &branch.live_manifest(),
        "SELECT m.name || '/' || d.name, b.block, b.pack, b.offset, b.stored FROM block b
         JOIN generation g ON g.id = b.generation JOIN disk d ON d.number = g.disk JOIN machine m ON m.number = d.machine
         WHERE b.pack IS NOT NULL ORDER BY b.pack, b.offset",
    );
    let record = |row: &str| {
        let fields: Vec<&str> = row.split('|').collect();
        let [name, block, pack, offset, stored] = fields[..] else { panic!("{row}") };
        let (pack, offset) = (pack.parse().unwrap(), offset.parse().unwrap());
        let mut process = [0; 4];
        File::open(branch.on(&pack_file(pack))).unwrap().read_exact_at(&mut process, offset + 32).unwrap();
        Record {
            block: (name.to_owned(), block.parse().unwrap()),
            pack,
            offset,
            stored: stored.parse().unwrap(),
            process: u32::from_le_bytes(process),
        }
    };
    rows.lines().map(record).collect()
}
