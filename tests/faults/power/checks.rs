//! What must hold in whatever the power left, read from the tree itself: nothing here runs the program under test.

use super::stage::{Stage, volume_of};
use crate::common::Place;
use crate::faults::layer::{PAGE, Tree, Written};
use motiongear_manifest::envelope::{EnvelopeMeta, Identity, unwrap_key};
use motiongear_manifest::record::{
    Codec, Decoder, Expected, HEADER_BYTES, Header, Keyring, MAGIC, RecordId, RecordKey,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk that is copied.
pub struct Source {
    pub name: &'static str,
    pub path: PathBuf,
    pub data: Vec<u8>,
    /// By stock `b3sum`.
    pub digest: String,
}

/// Bytes of a block of every shipment here.
pub const BLOCK: usize = 65536;
const ARRAY: &str = "array/motiongear";

/// No document is there by halves: JSON parses, signatures are whole, envelopes open.
pub fn at_rest(stage: &Stage, left: &Tree) {
    at_rest_below("/", left);
    let _ = keys(stage, left, "keys");
    let _ = keys(stage, left, "copy/keys");
}

/// No JSON document and no signature below `dir` is there by halves.
pub fn at_rest_below(dir: &str, left: &Tree) {
    for (path, content) in left.files(dir) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = || String::from_utf8(content.all()).unwrap_or_default();
        // Temporary files have no meaning; nor has what `jobs` says of a process that is gone with the power.
        if name.starts_with('.') || path.parent().is_some_and(|dir| dir.ends_with("jobs")) {
            continue;
        }
        if name.ends_with(".json") {
            let parsed = serde_json::from_str::<serde_json::Value>(&text());
            assert!(parsed.is_ok(), "{} is half written: {:?}", path.display(), text());
        }
        if name.ends_with(".sig") {
            let text = text();
            let (begin, end) = ("-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----");
            assert!(text.starts_with(begin) && text.trim_end().ends_with(end), "{} is half written", path.display());
        }
    }
}

fn shipment(left: &Tree) -> Option<uuid::Uuid> {
    let document = left.file(Path::new(ARRAY).join("shipment.json"))?.all();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    Some(document["shipment"].as_str().unwrap().parse().unwrap())
}

fn identities(stage: &Stage) -> Vec<Identity> {
    Identity::parse_file(&std::fs::read(&stage.branch.identity).unwrap()).unwrap()
}

/// The keys in the envelopes of a directory of the array.
fn keys(stage: &Stage, left: &Tree, dir: &str) -> Keyring {
    let (mut ring, Some(shipment)) = (Keyring::default(), shipment(left)) else { return Keyring::default() };
    let identities = identities(stage);
    for (path, content) in left.files(Path::new(ARRAY).join(dir)) {
        let Some(process) = path.to_str().and_then(|name| name.strip_suffix(".age")?.parse().ok()) else { continue };
        let key = unwrap_key(&content.all(), &identities, &EnvelopeMeta::new(shipment, process));
        let key = key.unwrap_or_else(|error| panic!("{dir}/{}: {error}", path.display()));
        ring.insert(process, RecordKey::new(key.as_bytes()).unwrap());
    }
    ring
}

/// A database as SQLite recovers it, in a copy.
fn database(left: &Tree, path: &Path) -> Option<(Place, rusqlite::Connection)> {
    let place = Place::new();
    left.file(path)?;
    for part in ["", "-wal", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(part);
        if let Some(content) = left.file(Path::new(&name)) {
            place.file(&format!("db{part}"), content.all());
        }
    }
    let connection = rusqlite::Connection::open(place.join("db")).unwrap();
    Some((place, connection))
}

/// No row without its data: every block that the live manifest calls committed is read from its pack, decrypted with an envelope
/// that is there, and compared with the source. Gives the committed bytes of each disk.
pub fn committed_rows(stage: &Stage, left: &Tree) -> BTreeMap<String, u64> {
    let mut committed = BTreeMap::new();
    let Some(shipment) = shipment(left) else { return committed };
    let live = Path::new("state/shipments").join(shipment.to_string()).join("manifest.db");
    let Some((_place, db)) = database(left, &live) else { return committed };
    let known: i64 =
        db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'block'", [], |row| row.get(0)).unwrap();
    if known == 0 {
        return committed;
    }
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok", "the live manifest");
    let mut decoder = Decoder::new(Arc::new(keys(stage, left, "keys"))).unwrap();
    let rows = "SELECT d.number, d.name, g.number, b.block, b.pack, b.offset, b.stored, b.codec, p.file, p.bytes
        FROM block b JOIN generation g ON g.id = b.generation JOIN disk d ON d.number = g.disk LEFT JOIN pack p ON p.number = b.pack";
    let mut rows = db.prepare(rows).unwrap();
    let mut rows = rows.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let number = |column| row.get::<_, i64>(column).unwrap() as u64;
        let (disk, name, generation, block) =
            (number(0) as u32, row.get::<_, String>(1).unwrap(), number(2) as u32, number(3));
        let source = stage.sources.iter().find(|source| source.name == name).unwrap();
        let start = block as usize * BLOCK;
        let expected = &source.data[start..source.data.len().min(start + BLOCK)];
        *committed.entry(name.clone()).or_default() += expected.len() as u64;
        let Some(_) = row.get::<_, Option<i64>>(4).unwrap() else {
            assert!(expected.iter().all(|byte| *byte == 0), "{name}, block {block}: no record, and not zero");
            continue;
        };
        let (offset, stored, codec, bytes) = (number(5), number(6) as u32, number(7), number(9));
        let file: String = row.get(8).unwrap();
        let pack = left.file(Path::new(ARRAY).join(&file));
        let pack = pack.unwrap_or_else(|| panic!("{name}, block {block}: its row names {file}, which is not there"));
        let total = motiongear_manifest::record::record_bytes(stored);
        assert!(offset + total <= bytes, "{name}, block {block}: its record ends beyond what is committed of {file}");
        let mut record = pack.read(offset, total as usize);
        let expect = Expected {
            shipment,
            id: RecordId { disk, generation, block },
            plain_bytes: expected.len() as u32,
            stored_bytes: stored,
            codec: Codec::from_number(codec).unwrap(),
        };
        let mut plain = vec![0; expected.len()];
        decoder
            .decode(&expect, &mut record, &mut plain)
            .unwrap_or_else(|error| panic!("{name}, block {block}: a row without its data: {error}"));
        assert!(plain == expected, "{name}, block {block}: its record holds other data");
    }
    let sealed = left.file(Path::new(ARRAY).join("seal.json")).is_some();
    let held = left.file(Path::new(ARRAY).join("holder.json")).is_some();
    assert!(held || sealed || committed.is_empty(), "blocks are committed, and the array does not say who holds it");
    committed
}

/// No nonce is used twice under one key with different bytes, in all that was ever written, lost or not. One run is one process,
/// with one key of its own.
pub fn check_nonces(stage: &Stage, logs: &[Vec<Written>]) {
    let identities = identities(stage);
    let mut seen: Vec<[u8; 32]> = Vec::new();
    for log in logs {
        let mut nonces: BTreeMap<u64, [u8; HEADER_BYTES]> = BTreeMap::new();
        let (mut own, mut processes) = (None, std::collections::BTreeSet::new());
        for written in log {
            for page in written.0.chunks(PAGE).filter(|page| page.starts_with(&MAGIC) && page.len() >= HEADER_BYTES) {
                let Ok(header) = Header::decode(page) else { continue };
                let bytes: [u8; HEADER_BYTES] = page[..HEADER_BYTES].try_into().unwrap();
                processes.insert(header.process);
                if let Some(before) = nonces.insert(header.nonce, bytes) {
                    assert!(before == bytes, "nonce {} of process {} was used twice", header.nonce, header.process);
                }
                assert!(header.nonce > 0, "a record that is not encrypted");
                if own.is_none() {
                    own = envelope(log, &identities, header.shipment, header.process);
                    assert!(own.is_some(), "process {} wrote a record and no envelope", header.process);
                }
            }
        }
        assert!(processes.len() <= 1, "one run wrote as {processes:?}");
        if let Some(key) = own {
            assert!(!seen.contains(&key), "two processes share a key");
            seen.push(key);
        }
    }
}

/// The content key that a run wrapped.
fn envelope(log: &[Written], identities: &[Identity], shipment: uuid::Uuid, process: u32) -> Option<[u8; 32]> {
    let meta = EnvelopeMeta::new(shipment, process);
    let keys = log.iter().filter(|written| written.0.starts_with(b"age-encryption.org/v1"));
    keys.filter_map(|written| unwrap_key(&written.0, identities, &meta).ok()).map(|key| *key.as_bytes()).next()
}

/// No volume can boot before it is proven: while anything but its first 4 KiB differs from the source these are zero, and while
/// anything but its first and last block differs, so are those. Where `old` lay in the first volume, it may be there whole between
/// head and tail: nothing of the new disk is on the volume then.
pub fn check_volumes(stage: &Stage, left: &Tree, old: Option<&[u8]>) {
    for Source { name, data, .. } in &stage.sources {
        let Some(content) = left.file(volume_of(&stage.branch.site, name)) else { continue };
        let volume = content.all();
        let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        let tail = (data.len() - 1) / BLOCK * BLOCK;
        let (head, last) = (&volume[..volume.len().min(PAGE)], volume.get(tail..).unwrap_or_default());
        if old.is_some_and(|old| old.len() == volume.len() && old[BLOCK..tail] == volume[BLOCK..tail]) {
            continue;
        }
        if !zero(head) {
            let rest = volume.len() == data.len() && volume[PAGE..] == data[PAGE..];
            assert!(rest, "{name}: its head is there, the rest is not");
        }
        if !zero(last) {
            assert!(volume[BLOCK..tail] == data[BLOCK..tail], "{name}: its last block is there, the rest is not");
        }
    }
}

/// What the data centre's ledger calls written is on the volume, and what it calls done is the disk. Gives each disk's mark.
pub fn imported_rows(stage: &Stage, left: &Tree) -> BTreeMap<String, u64> {
    let mut marks = BTreeMap::new();
    let Some((_place, db)) = database(left, Path::new("centre/ledger.db")) else { return marks };
    let mut rows =
        db.prepare("SELECT v.disk_name, i.phase, i.mark FROM import i JOIN volume v ON v.disk = i.disk").unwrap();
    let mut rows = rows.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let (name, phase): (String, String) = (row.get(0).unwrap(), row.get(1).unwrap());
        let mark = row.get::<_, i64>(2).unwrap() as u64;
        let source = stage.sources.iter().find(|source| source.name == name).unwrap();
        let volume = left.file(volume_of(&stage.branch.site, &name)).map(|content| content.all()).unwrap_or_default();
        let tail = (source.data.len() - 1) / BLOCK * BLOCK;
        let end = tail.min(mark as usize * BLOCK);
        if end > BLOCK {
            let same = volume.get(BLOCK..end) == source.data.get(BLOCK..end);
            assert!(same, "{name}: {mark} blocks are committed ({phase}), and not on the volume");
        }
        assert!(phase != "done" || volume == source.data, "{name} is called done, and its volume is not the disk");
        marks.insert(name, mark);
    }
    marks
}

/// Every scan on record has its bitmap. Gives how many are.
pub fn scanned_rows(_: &Stage, left: &Tree) -> usize {
    let Some((_place, db)) = database(left, Path::new("state/ledger.db")) else { return 0 };
    let mut rows = db.prepare("SELECT disk FROM scan").unwrap();
    let disks: Vec<String> = rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for disk in &disks {
        let bitmap = left.file(Path::new("state/scans").join(format!("{disk}.changed")));
        assert!(bitmap.is_some_and(|bitmap| bitmap.bytes > 0), "disk {disk}: a scan on record without its bitmap");
    }
    disks.len()
}

/// Whether the data centre has a journal of an erasure; temporary files of a process that was killed are none.
fn erasing(left: &Tree) -> bool {
    left.files("centre/erasures").keys().any(|path| path.ends_with("journal.json"))
}

/// Keys go before packs, nothing goes before the journal is in the data centre's state, and `erased.json` names a certificate
/// that is there.
pub fn check_erasure(before: &Tree, left: &Tree) {
    let gone = |path: &Path, whole: &[u8]| left.file(path).is_none_or(|content| content.all() != whole);
    let array = before.files(ARRAY);
    let lost: Vec<&PathBuf> = array
        .iter()
        .filter(|(path, was)| gone(&Path::new(ARRAY).join(path), &was.all()))
        .map(|(path, _)| path)
        .collect();
    let journal = erasing(left);
    let certificates = left.files("centre/certificates");
    let signed = certificates.keys().any(|path| {
        let name = path.to_str().unwrap();
        name.ends_with(".json") && certificates.contains_key(Path::new(&format!("{name}.sig")))
    });
    assert!(lost.is_empty() || journal || signed, "{lost:?} are gone, and nothing says what they were");
    if lost.iter().any(|path| path.starts_with("packs")) {
        let left_over = left.files(ARRAY);
        let key = left_over.iter().find(|(path, content)| {
            path.extension().is_some_and(|e| e == "age")
                && path.parent().is_some_and(|dir| dir.ends_with("keys"))
                && content.all().iter().any(|byte| *byte != 0)
        });
        assert!(key.is_none(), "packs are being erased, and {:?} is still there", key.map(|(path, _)| path));
    }
    if let Some(note) = left.file(Path::new(ARRAY).join("erased.json")) {
        let note: serde_json::Value = serde_json::from_slice(&note.all()).unwrap();
        let named =
            certificates.values().any(|content| note["certificate"] == blake3::hash(&content.all()).to_string());
        assert!(named && signed, "the array calls itself erased, and its certificate is not there");
        assert!(
            !left.files(ARRAY).keys().any(|path| path.starts_with("packs")),
            "it calls itself erased, and packs are there"
        );
    }
}
