//! Goal: two readers that were written apart give one verdict on whatever lies on an array, and neither falls over it. Method:
//! the golden fixtures, and arrays of the same disks that a hostile signer signed again, are changed in hundreds of ways by a
//! fixed series of random numbers; `motiongear-verify` and `reader.py` must end with the same code, one that FORMAT.md has.

mod common;

use common::{Keys, Spec, add_event, make};
use motiongear_manifest::documents::custody::Event;
use motiongear_manifest::envelope::{Identity, decrypt_stream, encrypt_stream};
use motiongear_manifest::sign::Namespace;
use motiongear_manifest::sums::Sums;
use motiongear_manifest::tree::Digest;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FIRST_SEED: u64 = 0x6d67_2026;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(number: u64) -> Self {
        Random((number + FIRST_SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, most: usize) -> usize {
        (self.next() >> 16) as usize % most.max(1)
    }
    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/format").join(name)
}

fn tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => tree(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// Every regular file below `root`, sorted, relative to it.
fn files(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let (kind, path) = entry.map(|entry| (entry.file_type().unwrap(), entry.path())).unwrap();
            if kind.is_dir() {
                walk(root, &path, found);
            } else if kind.is_file() {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

/// Of a file its second copy, and the reverse, where there is one.
fn twin(root: &Path, file: &str) -> Option<PathBuf> {
    let twin = root.join(file.strip_prefix("copy/").map_or(format!("copy/{file}"), str::to_owned));
    twin.is_file().then_some(twin)
}

/// What rot, a courier or another file system does: nothing is signed again. `other` is another array.
fn rot(root: &Path, other: &Path, random: &mut Random) {
    let all = files(root);
    if all.is_empty() {
        return;
    }
    let file = random.pick(&all).clone();
    let mut targets = vec![root.join(&file)];
    if random.chance(2) {
        targets.extend(twin(root, &file));
    }
    let mut bytes = fs::read(&targets[0]).unwrap();
    let write = |bytes: &[u8]| targets.iter().for_each(|target| fs::write(target, bytes).unwrap());
    match random.below(12) {
        0..3 => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
            write(&bytes);
        }
        3 => write(&bytes[..random.below(bytes.len())]),
        4 => {
            let tails: [&[u8]; 5] = [b"\n", b" ", b"\0", b"{}", &[0; 4096]];
            let tail = random.pick(&tails);
            bytes.extend_from_slice(tail);
            write(&bytes);
        }
        5 => targets.iter().for_each(|target| fs::remove_file(target).unwrap()),
        6 => {
            let second = root.join(random.pick(&all));
            let swapped = fs::read(&second).unwrap();
            fs::write(&second, &bytes).unwrap();
            write(&swapped);
        }
        7 => {
            // Of the other shipment, which has the same UUID.
            if let Ok(foreign) = fs::read(other.join(&file)) {
                write(&foreign);
            }
        }
        8 => {
            let at = random.below(bytes.len()) & !511;
            let end = bytes.len().min(at + 4096);
            bytes[at..end].fill(0);
            write(&bytes);
        }
        9 => {
            // The same bytes, behind a link, in a folder, or nothing but a pipe.
            for target in &targets {
                let moved = root.parent().unwrap().join(format!("moved-{}", random.next()));
                fs::rename(target, &moved).unwrap();
                match random.below(3) {
                    0 => symlink(&moved, target).unwrap(),
                    1 => fs::create_dir(target).unwrap(),
                    _ => drop(Command::new("mkfifo").arg(target).status().unwrap()),
                }
            }
        }
        10 => {
            let folders = ["packs", "keys", "custody", "report", "copy", "copy/keys"];
            let folder = if random.chance(7) { root.to_owned() } else { root.join(random.pick(&folders)) };
            if !folder.exists() {
                return drop(fs::write(&folder, b"a file"));
            }
            let moved = root.parent().unwrap().join(format!("moved-{}", random.next()));
            fs::rename(&folder, &moved).unwrap();
            match random.below(3) {
                0 => symlink(&moved, &folder).unwrap(),
                1 => fs::write(&folder, b"a file").unwrap(),
                _ => {}
            }
        }
        _ => {
            let strays = [
                "packs/.DS_Store",
                "packs/00000003.pack",
                "packs/folder/",
                "packs/00000001.pack.sig",
                "custody/.DS_Store",
                "custody/0002-received.json",
                "custody/0002-received.json.sig",
                "custody/0002-dispatched.json",
                "custody/0001-received.json",
                "custody/0003-dispatched.json.sig",
                "custody/1000-received.json",
                "custody/00002-received.json",
                "keys/0009.age",
                "holder.json",
                "Thumbs.db",
                "copy/other",
                "manifest.db-wal",
                "report/x",
            ];
            let stray = root.join(random.pick(&strays));
            match stray.to_str().unwrap().ends_with('/') {
                true => drop(fs::create_dir(stray)),
                false => {
                    let _ = fs::create_dir(stray.parent().unwrap());
                    let _ = fs::write(stray, b"{}");
                }
            }
        }
    }
}

/// What a signer can make, whom the trust file allows: every pin and signature is right.
struct Signer<'a> {
    keys: &'a Keys,
    root: PathBuf,
    encrypted: bool,
}

impl Signer<'_> {
    fn put(&self, file: &str, bytes: &[u8]) {
        fs::write(self.root.join(file), bytes).unwrap();
        fs::write(self.root.join("copy").join(file), bytes).unwrap();
    }
    fn manifest_file(&self) -> &'static str {
        if self.encrypted { "manifest.db.age" } else { "manifest.db" }
    }
    fn manifest(&self) -> Vec<u8> {
        let stored = fs::read(self.root.join(self.manifest_file())).unwrap();
        if !self.encrypted {
            return stored;
        }
        let mut plain = Vec::new();
        decrypt_stream(&stored[..], &mut plain, std::slice::from_ref(&self.keys.identity)).unwrap();
        plain
    }
    /// Changes the manifest by SQL, as far as SQLite lets.
    fn manifest_with(&self, sql: &str) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), self.manifest()).unwrap();
        let db = rusqlite::Connection::open(file.path()).unwrap();
        db.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
        let _ = db.execute_batch(sql);
        drop(db);
        fs::read(file.path()).unwrap()
    }
    /// Packs as they lie there, the first with so many records more; and other changes to the manifest.
    fn packs(&self, seal: &mut Value, more_records: u64, sql: &str) {
        let mut sql = sql.to_owned();
        for pack in seal["packs"].as_array_mut().unwrap() {
            let bytes = fs::read(self.root.join(pack["file"].as_str().unwrap())).unwrap();
            pack["bytes"] = bytes.len().into();
            pack["blake3"] = Digest::of(&bytes).to_string().into();
            if pack["file"] == "packs/00000001.pack" {
                pack["records"] = (pack["records"].as_u64().unwrap() + more_records).into();
            }
            let (bytes, records) = (&pack["bytes"], &pack["records"]);
            let (digest, file) = (pack["blake3"].as_str().unwrap(), &pack["file"]);
            sql += &format!(
                "UPDATE pack SET bytes = {bytes}, records = {records}, blake3 = x'{digest}' WHERE file = '{}';",
                file.as_str().unwrap()
            );
        }
        self.put_manifest(seal, &self.manifest_with(&sql));
    }
    fn put_manifest(&self, seal: &mut Value, plain: &[u8]) {
        let mut stored = plain.to_vec();
        if self.encrypted {
            stored.clear();
            encrypt_stream(plain, &mut stored, &[self.keys.identity.recipient()]).unwrap();
        }
        self.put(self.manifest_file(), &stored);
        let sums = |bytes: &[u8]| {
            let sums = Sums::of(bytes);
            json!({"bytes": sums.bytes, "blake3": sums.blake3.to_string(), "sha256": sums.sha256.to_string()})
        };
        let mut pin = sums(&stored);
        pin["file"] = self.manifest_file().into();
        pin["plain"] = sums(plain);
        seal["manifest"] = pin;
    }
    fn seal(&self) -> Value {
        serde_json::from_slice(&fs::read(self.root.join("seal.json")).unwrap()).unwrap()
    }
    /// Seals and dispatches again.
    fn sign(&self, seal: &str) {
        let signature = self.keys.signer.sign(seal.as_bytes(), Namespace::Seal).unwrap();
        self.put("seal.json", seal.as_bytes());
        self.put("seal.json.sig", signature.as_bytes());
        let mut previous = Value::Null;
        for name in ["0001-dispatched.json", "0002-received.json"] {
            let file = self.root.join("custody").join(name);
            let mut event: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            event["seal"] = Digest::of(seal.as_bytes()).to_string().into();
            event["previous"] = previous;
            previous = self.sign_event(name, &pretty(&event));
        }
    }
    fn sign_event(&self, name: &str, text: &str) -> Value {
        let key = if name.contains("received") { &self.keys.receiver } else { &self.keys.signer };
        let signature = key.sign(text.as_bytes(), Namespace::Custody).unwrap();
        fs::write(self.root.join("custody").join(name), text).unwrap();
        fs::write(self.root.join("custody").join(format!("{name}.sig")), &signature).unwrap();
        json!({"event": Digest::of(text.as_bytes()).to_string(), "signature": Digest::of(signature.as_bytes()).to_string()})
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

/// Paths of all values of a document, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            places(value, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), found);
        }),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| places(value, &format!("{at}/{i}"), found));
        }
        _ => {}
    }
}

/// Values that a reader must think about.
fn odd_value(random: &mut Random) -> Value {
    let long = "x".repeat(*random.pick(&[100, 101, 200, 300, 301, 500, 501, 2000, 2001]));
    let list = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(2),
        json!(4096),
        json!(65536),
        json!(1_u64 << 32),
        json!((1_u64 << 32) - 1),
        json!(1_u64 << 40),
        json!((1_u64 << 40) + 1),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1.0),
        json!(1e30),
        json!(""),
        json!(long),
        json!("字".repeat(34)),
        json!("a\u{202e}b"),
        json!("a\u{0}b"),
        json!("a\u{85}b"),
        json!(" name"),
        json!("name\u{3000}"),
        json!(".."),
        json!("-x"),
        json!("a/b"),
        json!("wang@nongxin"),
        json!("li@province"),
        json!("wang@other"),
        json!("wang@nongxin@nongxin"),
        json!("nongxin"),
        json!("plaintext"),
        json!("fuzzy"),
        json!("none"),
        json!("manifest.db"),
        json!("manifest.db.age"),
        json!("packs/00000002.pack"),
        json!("packs/000000001.pack"),
        json!("packs/4294967296.pack"),
        json!("packs/+0000001.pack"),
        json!("2026-11-20T04:00:00.5Z"),
        json!("2026-11-20T04:00:00.500Z"),
        json!("2026-11-20T04:00:60Z"),
        json!("2026-11-20T04:00:00+00:00"),
        json!("2026-02-30T04:00:00Z"),
        json!("0000-02-29T00:00:00Z"),
        json!("9999-12-31T23:59:59Z"),
        json!("9999-12-30T22:00:00Z"),
        json!("11112222-3333-4444-5555-66667777888A"),
        json!("11112222-3333-4444-5555-666677778888"),
        json!("0".repeat(64)),
        json!("A".repeat(64)),
        json!([]),
        json!({}),
        json!([[], {}]),
        json!({"uuid": "00000000-0000-0000-0000-0000000000b0", "name": "nongxin"}),
    ];
    random.pick(&list).clone()
}

fn odd_document(mut document: Value, random: &mut Random) -> String {
    let mut all = Vec::new();
    places(&document, "", &mut all);
    let place = random.pick(&all).clone();
    let second = random.pick(&all).clone();
    match random.below(7) {
        0..4 => *document.pointer_mut(&place).unwrap() = odd_value(random),
        4 => {
            let value = document.pointer(&second).unwrap().clone();
            *document.pointer_mut(&place).unwrap() = value;
        }
        5 => match document.pointer_mut(&place).unwrap() {
            Value::Object(fields) => {
                let names: Vec<String> = fields.keys().cloned().collect();
                if random.chance(2) && !names.is_empty() {
                    fields.remove(random.pick(&names));
                } else {
                    let names = ["extra", "supersedes", "signer", "keys/0001.age", "keys/10000.age", "keys/00001.age"];
                    fields.insert((*random.pick(&names)).to_owned(), odd_value(random));
                }
            }
            Value::Array(list) if random.chance(2) && !list.is_empty() => drop(list.pop()),
            Value::Array(list) => list.extend(list.first().cloned()),
            other => *other = odd_value(random),
        },
        _ => {}
    }
    let text = pretty(&document);
    let replaced = |from: &str, to: &str| text.replacen(from, to, 1);
    match random.below(24) {
        0 => text + "{}",
        1 => text + " \r\n\t",
        2 => format!("\u{feff}{text}"),
        3 => replaced("\"format\": 1", "\"format\": 1.0"),
        4 => replaced("\"format\": 1", "\"format\": 1e0"),
        5 => replaced("\"format\": 1", "\"format\": 2"),
        6 => replaced("\"format\": 1", "\"format\": 1, \"format\": 1"),
        7 => replaced("\"tool\"", "\"t\\u006fol\""),
        8 => replaced("make_golden", "make\\ud800golden"),
        9 => replaced("make_golden", "make\\ud83d\\ude00golden"),
        10 => replaced(": 1,", ": -0,"),
        11 => replaced(": 0", ": -0"),
        12 => replaced("\n", "\n\n  "),
        13 => replaced("}", ",}"),
        _ => text,
    }
}

fn odd_sql(random: &mut Random) -> String {
    let columns: &[(&str, &[&str])] = &[
        ("shipment", &["id", "uuid", "format", "block_bytes", "cipher", "label", "asset_tag", "created_at"]),
        ("site", &["id", "uuid", "name"]),
        ("medium", &["number", "uuid", "serial"]),
        ("machine", &["number", "uuid", "name", "inventory"]),
        ("disk", &["number", "uuid", "machine", "name", "excluded", "identity", "facts"]),
        ("process", &["number", "envelope", "host", "tool", "started_at", "ended_at", "ending"]),
        (
            "generation",
            &[
                "id",
                "disk",
                "number",
                "bytes",
                "consistency",
                "basis",
                "point_in_time",
                "source",
                "started_at",
                "finished_at",
                "digest",
            ],
        ),
        ("pack", &["number", "medium", "file", "bytes", "records", "blake3", "tree"]),
        ("block", &["generation", "block", "leaf", "state", "pack", "offset", "stored", "codec"]),
        ("block", &["state", "pack", "offset", "stored", "codec"]),
        ("unreadable", &["generation", "offset", "bytes"]),
        ("event", &["id", "at", "kind", "machine", "disk", "detail"]),
    ];
    let (table, columns) = random.pick(columns);
    let column = random.pick(columns);
    let long = format!(
        "printf('%.*c', {}, 'x')",
        random.pick(&[100, 101, 301, 501, 2001, 4097, 16001, 1 << 20, (1 << 20) + 1])
    );
    let deep = format!("printf('%.*c', {0}, '[') || printf('%.*c', {0}, ']')", random.pick(&[100, 200, 5000, 500_000]));
    let values = [
        "NULL",
        "-1",
        "0",
        "1",
        "2",
        "3",
        "4",
        "100",
        "4096",
        "8192",
        "65536",
        "4294967296",
        "9223372036854775807",
        "x''",
        "zeroblob(32)",
        "zeroblob(31)",
        "''",
        "'x'",
        "'none'",
        "'null'",
        "'[1e999]'",
        "'{\"a\":1,\"a\":2}'",
        "'[1,]'",
        "'[]]'",
        "'\"\\ud800\"'",
        "'{\"a\" 1}'",
        "' 1 '",
        "'01'",
        "'a' || char(8238)",
        "'a' || char(10)",
        "'a' || char(0)",
        "CAST(x'ff' AS TEXT)",
        "'2026-11-20T04:00:00Z'",
        "'2026-11-20'",
        "'fuzzy'",
        "'consistent'",
        "'asserted'",
        "'aes-256-gcm'",
        "'11112222-3333-4444-5555-666677778888'",
        "'AAAAAAAA-3333-4444-5555-666677778888'",
        "'packs/00000002.pack'",
        "'packs/00000001.pack '",
        "lower(hex(zeroblob(32)))",
        &long,
        &deep,
    ];
    let value = random.pick(&values);
    // Which row, no matter of what key.
    let row = format!("WHERE ({column}) IS (SELECT {column} FROM {table} LIMIT 1 OFFSET {})", random.below(3));
    match random.below(14) {
        0..9 => format!("UPDATE OR REPLACE {table} SET {column} = {value} {row}"),
        9 => format!("DELETE FROM {table} {row}"),
        10 => format!("UPDATE OR REPLACE {table} SET {column} = {column} + {} {row}", random.pick(&["1", "-1", "4096", "0.5"])),
        11 => (*random.pick(&[
            "INSERT INTO event VALUES (7, '2026-11-20T04:00:00Z', 'a kind of the future', 77, 78, 'words')",
            "INSERT INTO event VALUES (-7, '2026-11-20T04:00:00Z', 'kind', NULL, NULL, '')",
            "INSERT INTO event VALUES (7, '2026-11-20T04:00:00Z', 'kind', -1, NULL, '')",
            "INSERT INTO event VALUES (7, 'yesterday', 'kind', NULL, NULL, '')",
            "INSERT INTO process VALUES (9, NULL, 'host', 'tool', '2026-11-20T04:00:00Z', NULL, NULL)",
            "INSERT INTO process VALUES (0, NULL, 'host', 'tool', '2026-11-20T04:00:00Z', NULL, NULL)",
            "INSERT INTO process SELECT 9, lower(hex(zeroblob(32))), host, tool, started_at, NULL, NULL FROM process LIMIT 1",
            "INSERT INTO machine VALUES (9, '11112222-3333-4444-5555-666677778888', 'spare', '{}')",
            "INSERT INTO disk VALUES (9, '11112222-3333-4444-5555-666677778888', 1, 'spare', NULL, 'null', 'null')",
            "INSERT INTO disk VALUES (9, '11112222-3333-4444-5555-666677778888', 1, 'spare', 'broken', 'null', 'null')",
            "INSERT INTO disk VALUES (9, '11112222-3333-4444-5555-666677778888', 99, 'spare', NULL, 'null', 'null')",
            "INSERT INTO generation SELECT 99, disk, 1, bytes, consistency, basis, NULL, source, started_at, finished_at, digest FROM generation LIMIT 1",
            "INSERT INTO medium VALUES (2, '11112222-3333-4444-5555-666677778888', '')",
            "INSERT INTO unreadable VALUES (1, 0, 1)",
            "INSERT INTO unreadable VALUES (1, 197120, 1)",
            "INSERT INTO unreadable VALUES (77, 0, 1)",
            "UPDATE unreadable SET offset = 0, bytes = 10; UPDATE block SET state = 1 WHERE state = 2; UPDATE block SET state = 2 WHERE generation = 1 AND block = 0",
            "INSERT INTO block SELECT 77, block, leaf, state, pack, offset, stored, codec FROM block LIMIT 1",
            "UPDATE generation SET id = -1 WHERE id = 1; UPDATE block SET generation = -1 WHERE generation = 1; UPDATE unreadable SET generation = -1",
            "UPDATE block SET offset = (SELECT min(offset) FROM block) WHERE generation = 3",
            "INSERT INTO pack SELECT 3, medium, 'packs/00000003.pack', bytes, records, blake3, NULL FROM pack LIMIT 1",
        ]))
        .to_owned(),
        12 => (*random.pick(&[
            "CREATE TABLE extra (x)",
            "CREATE INDEX extra ON disk (name)",
            "CREATE VIEW extra AS SELECT 1",
            "CREATE TRIGGER extra AFTER INSERT ON disk BEGIN SELECT 1; END",
            "ALTER TABLE event ADD COLUMN extra TEXT",
            "PRAGMA user_version = 2",
            "PRAGMA application_id = 7",
            "PRAGMA page_size = 1024; VACUUM",
            "PRAGMA auto_vacuum = FULL; VACUUM",
            "PRAGMA encoding = 'UTF-16'; VACUUM",
            "PRAGMA journal_mode = WAL",
            "CREATE TABLE extra (x); DROP TABLE extra",
            "ANALYZE",
        ]))
        .to_owned(),
        _ => format!("UPDATE OR REPLACE {table} SET {column} = (SELECT {column} FROM {table} LIMIT 1 OFFSET 1) {row}"),
    }
}

/// Offsets of the records of a pack.
fn records(pack: &[u8]) -> Vec<usize> {
    (4096..pack.len()).step_by(4096).filter(|at| pack[*at..].starts_with(b"MGRECORD")).collect()
}

fn mend_checksum(header: &mut [u8]) {
    let crc = crc32fast::hash(&header[..124]);
    header[124..128].copy_from_slice(&crc.to_le_bytes());
}

/// Compresses the block of a record of one page in another way; says what the manifest must then say of it.
fn odd_frame(record: &mut [u8], at: usize, random: &mut Random) -> String {
    let stored = u32::from_le_bytes(record[64..68].try_into().unwrap()) as usize;
    let plain = zstd::decode_all(&record[128..128 + stored]).unwrap();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(*random.pick(&[17, 20, 24, 25, 27])).unwrap();
    encoder.include_checksum(random.chance(2)).unwrap();
    if random.chance(2) {
        encoder.set_pledged_src_size(Some(plain.len() as u64)).unwrap();
    }
    encoder.write_all(&plain).unwrap();
    let mut frame = encoder.finish().unwrap();
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    match random.below(8) {
        0 => frame.extend(skipped),
        1 => frame = [&skipped[..], &frame].concat(),
        2 => frame.extend(zstd::encode_all(&b""[..], 1).unwrap()),
        3 => drop(frame.pop()),
        4 => frame.push(0),
        _ => {}
    }
    if frame.len() > record.len() - 128 {
        return String::new();
    }
    let stored = u32::try_from(frame.len()).unwrap();
    record[128..].fill(0);
    record[128..128 + frame.len()].copy_from_slice(&frame);
    for (field, value) in [(60, stored), (64, stored), (80, crc32fast::hash(&frame))] {
        record[field..field + 4].copy_from_slice(&value.to_le_bytes());
    }
    mend_checksum(&mut record[..128]);
    format!("UPDATE block SET stored = {stored} WHERE pack = 1 AND offset = {at};")
}

fn sign_oddly(signer: &Signer, random: &mut Random) {
    let mut seal = signer.seal();
    match random.below(20) {
        0..7 => {
            let plain = signer.manifest_with(&odd_sql(random));
            signer.put_manifest(&mut seal, &plain);
            signer.sign(&pretty(&seal));
        }
        7..9 => {
            let mut plain = signer.manifest();
            for _ in 0..=random.below(3) {
                let at = if random.chance(3) { random.below(100) } else { random.below(plain.len()) };
                plain[at] ^= 1 << random.below(8);
            }
            signer.put_manifest(&mut seal, &plain);
            signer.sign(&pretty(&seal));
        }
        9..12 => signer.sign(&odd_document(seal, random)),
        12..14 => {
            let bytes = fs::read(signer.root.join("shipment.json")).unwrap();
            let text = odd_document(serde_json::from_slice(&bytes).unwrap(), random);
            let signature = signer.keys.signer.sign(text.as_bytes(), Namespace::Shipment).unwrap();
            signer.put("shipment.json", text.as_bytes());
            signer.put("shipment.json.sig", signature.as_bytes());
            seal["pins"]["shipment.json"] = Digest::of(text.as_bytes()).to_string().into();
            signer.sign(&pretty(&seal));
        }
        14..16 => {
            let name = *random.pick(&["0001-dispatched.json", "0002-received.json"]);
            let bytes = fs::read(signer.root.join("custody").join(name)).unwrap();
            let pins = signer.sign_event(name, &odd_document(serde_json::from_slice(&bytes).unwrap(), random));
            if name.starts_with("0001") {
                let bytes = fs::read(signer.root.join("custody/0002-received.json")).unwrap();
                let mut event: Value = serde_json::from_slice(&bytes).unwrap();
                event["previous"] = pins;
                signer.sign_event("0002-received.json", &pretty(&event));
            }
        }
        16..19 => {
            let file = signer.root.join("packs/00000001.pack");
            let mut pack = fs::read(&file).unwrap();
            let places = records(&pack);
            let at = *random.pick(&places);
            let (mut more, mut sql) = (0, String::new());
            match random.below(6) {
                5 if !signer.encrypted && pack[at + 11] == 1 => sql = odd_frame(&mut pack[at..at + 4096], at, random),
                0 => {
                    let field = *random.pick(&[10, 11, 12, 13, 16, 32, 36, 40, 44, 48, 56, 60, 64, 68, 72, 84]);
                    pack[at + field] = *random.pick(&[0, 1, 2, 3, 255]);
                    mend_checksum(&mut pack[at..at + 128]);
                }
                1 => {
                    let stored = u32::from_le_bytes(pack[at + 64..at + 68].try_into().unwrap()) as usize;
                    let flip = at + 128 + random.below(stored.min(24));
                    pack[flip] ^= 1 << random.below(8);
                    let crc = crc32fast::hash(&pack[at + 128..at + 128 + stored]);
                    pack[at + 80..at + 84].copy_from_slice(&crc.to_le_bytes());
                    mend_checksum(&mut pack[at..at + 128]);
                }
                2 => {
                    // A record that no row names, perhaps of another cipher.
                    let mut record = [0; 4096];
                    let (plain, cipher) = (7_u32, u8::from(random.chance(2)));
                    record[..128].copy_from_slice(&pack[at..at + 128]);
                    (record[11], record[12]) = (0, cipher);
                    record[32] = *random.pick(&[1, 2, 9]);
                    let stored = plain + 16 * u32::from(cipher);
                    for (at, value) in [(56, plain), (60, plain), (64, stored)] {
                        record[at..at + 4].copy_from_slice(&value.to_le_bytes());
                    }
                    record[72..80].fill(cipher);
                    let crc = crc32fast::hash(&record[128..128 + stored as usize]);
                    record[80..84].copy_from_slice(&crc.to_le_bytes());
                    mend_checksum(&mut record[..128]);
                    pack.extend_from_slice(&record);
                    more = 1;
                }
                3 => {
                    let at = random.below(4096);
                    pack[at] ^= 1;
                    let crc = crc32fast::hash(&pack[..60]);
                    pack[60..64].copy_from_slice(&crc.to_le_bytes());
                }
                _ => {
                    let at = random.below(pack.len());
                    pack[at] ^= 1 << random.below(8);
                }
            }
            fs::write(&file, &pack).unwrap();
            signer.packs(&mut seal, more, &sql);
            signer.sign(&pretty(&seal));
        }
        _ if signer.encrypted => {
            // The right bytes to the letter, or not.
            let key = "ab".repeat(32);
            let shipment = seal["shipment"].as_str().unwrap().to_owned();
            let good = format!(
                "{{\"format\":1,\"shipment\":\"{shipment}\",\"process\":1,\"suite\":\"aes-256-gcm\",\"key\":\"{key}\"}}\n"
            );
            let text = match random.below(5) {
                0 => good,
                1 => good.trim_end().to_owned(),
                2 => good.replace(":1,\"suite\"", ":2,\"suite\""),
                3 => good.replace("ab", "AB"),
                _ => good.replace(",\"process\"", ", \"process\""),
            };
            let identity = if random.chance(4) { Identity::generate() } else { signer.keys.identity.clone() };
            let mut envelope = Vec::new();
            encrypt_stream(text.as_bytes(), &mut envelope, &[identity.recipient()]).unwrap();
            signer.put("keys/0001.age", &envelope);
            let digest = Digest::of(&envelope).to_string();
            seal["pins"]["keys/0001.age"] = digest.clone().into();
            let sql = format!("UPDATE process SET envelope = '{digest}' WHERE number = 1");
            signer.put_manifest(&mut seal, &signer.manifest_with(&sql));
            signer.sign(&pretty(&seal));
        }
        _ => {}
    }
}

/// Both verdicts on each of `arrays`.
fn verdicts(arrays: &[PathBuf], keys: &[String]) -> Vec<(i32, i32)> {
    let mut python = Command::new("python3");
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader.py")).args(arrays).args(keys);
    let python = python.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let reader = std::thread::spawn(move || python.wait_with_output().unwrap());
    let ours: Vec<i32> = arrays
        .iter()
        .map(|array| {
            let mut verify = Command::new(env!("CARGO_BIN_EXE_motiongear-verify"));
            let ran = verify.arg(array).args(keys).output().unwrap();
            ran.status.code().unwrap_or_else(|| panic!("{}: {:?}", array.display(), ran))
        })
        .collect();
    let ran = reader.join().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(!err.contains("Traceback"), "{err}");
    let theirs: Vec<i32> = out.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(theirs.len(), arrays.len(), "{err}");
    ours.into_iter().zip(theirs).collect()
}

/// Makes an array of each number by `mutate`, and compares what the two readers say of it. `HOSTILE_TIMES` makes the series longer.
fn agree(numbers: Range<u64>, keys: &[String], mutate: impl Fn(u64, &Path, &mut Random)) {
    let times: u64 = std::env::var("HOSTILE_TIMES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let count = times * (numbers.end - numbers.start);
    let dir = tempfile::tempdir().unwrap();
    let mut codes: BTreeMap<i32, u64> = BTreeMap::new();
    let mut differ = Vec::new();
    let numbers: Vec<u64> = (numbers.start..).take(count as usize).collect();
    for numbers in numbers.chunks(100) {
        let arrays: Vec<PathBuf> = numbers.iter().map(|number| dir.path().join(number.to_string())).collect();
        for (number, array) in numbers.iter().zip(&arrays) {
            mutate(*number, array, &mut Random::new(*number));
        }
        for (array, (ours, theirs)) in arrays.iter().zip(verdicts(&arrays, keys)) {
            *codes.entry(ours).or_default() += 1;
            if ours != theirs || ![0, 1, 3, 4].contains(&ours) {
                differ.push(format!("{}: motiongear-verify {ours}, reader.py {theirs}", array.display()));
            } else {
                fs::remove_dir_all(array).unwrap();
            }
        }
    }
    eprintln!("codes: {codes:?}");
    if !differ.is_empty() {
        panic!("kept in {}: {differ:#?}", dir.keep().display());
    }
    let often = |code: i32| codes.get(&code).is_some_and(|times| times * 50 > count);
    assert!(often(0) && often(3) && often(4), "of every verdict some: {codes:?}");
}

fn keys_of(trust: &Path, identity: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    vec!["--trust".to_owned(), text(trust), "--identity".to_owned(), text(identity)]
}

fn golden(dir: &Path) -> [PathBuf; 2] {
    ["plain", "encrypted"].map(|name| {
        let to = dir.join(name);
        fs::create_dir(&to).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--use-compress-program", "zstd --long=27", "-xf"]).arg(fixture(&format!("{name}.tar.zst")));
        assert!(tar.arg("-C").arg(&to).status().unwrap().success());
        to.join("array")
    })
}

#[test]
fn two_readers_agree_on_arrays_that_rotted_or_were_changed_on_the_road() {
    let dir = tempfile::tempdir().unwrap();
    let golden = golden(dir.path());
    let change = |number: u64, array: &Path, random: &mut Random| {
        let this = number as usize % 2;
        tree(&golden[this], array);
        for _ in 0..=random.below(2) {
            let root = array.join("motiongear");
            if root.is_dir() && !root.is_symlink() {
                rot(&root, &golden[1 - this].join("motiongear"), random);
            }
        }
    };
    agree(0..120, &keys_of(&fixture("allowed_signers"), &fixture("age-identity.txt")), change);
    // And with no word on who may sign.
    agree(1_000_000..1_000_040, &[], change);
}

#[test]
fn two_readers_agree_on_arrays_that_an_allowed_signer_made_so() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new();
    let made = [false, true].map(|encrypted| {
        let array = dir.path().join(encrypted.to_string());
        fs::create_dir(&array).unwrap();
        let made = make(&array, &Spec::new(encrypted), &keys);
        let previous = add_event(&made, &keys, 1, Event::Dispatched, None);
        add_event(&made, &keys, 2, Event::Received, Some(previous));
        array
    });
    let (trust, identity) = (dir.path().join("trust"), dir.path().join("identity"));
    fs::write(&trust, keys.trust_text()).unwrap();
    fs::write(&identity, keys.identity.to_file("throw-away").as_bytes()).unwrap();
    agree(2_000_000..2_000_200, &keys_of(&trust, &identity), |number, array, random| {
        let encrypted = number % 3 == 0;
        tree(&made[usize::from(encrypted)], array);
        sign_oddly(&Signer { keys: &keys, root: array.join("motiongear"), encrypted }, random);
    });
}
