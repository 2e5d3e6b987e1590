//! The manifest, sealed and live: a database file that was edited byte by byte and page by page, or by SQL, as a signer who is
//! hostile would.

use super::{Input, Verdict, is_name, is_text, is_time};
use jiff::Timestamp;
use motiongear_manifest::FormatError;
use motiongear_manifest::catalogue::{
    Batch, BlockRow, BlockState, Catalogue, NewGeneration, PackProgress, PackState, Place, UnreadableRange,
};
use motiongear_manifest::documents::seal::{Basis, Consistency};
use motiongear_manifest::documents::shipment::{Medium, Shipment, Site, Suite};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::pack::MAX_PACK_BYTES;
use motiongear_manifest::record::{Codec, record_bytes};
use motiongear_manifest::tree::{Digest, leaf};
use rusqlite::{Connection, types::Value};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;
use uuid::Uuid;

// The first byte of an input.
/// Pages of 4096 bytes instead of 512: fewer and larger ones.
const LARGE_PAGES: u8 = 1;
/// The rest is SQL's edits, not those of bytes.
const BY_SQL: u8 = 2;
/// Opened as the live manifest is for reading, not as a sealed one.
const LIVE: u8 = 4;
/// Read as that of an encrypted shipment.
const ENCRYPTED: u8 = 8;

const BLOCK: u32 = 65_536;
const BLOCKS: u64 = 150;
const FILE: &str = "manifest.db";

static BASES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| [512, 4096].map(base));

/// Every table with its columns and the column that a row is found by.
const TABLES: [(&str, &str, &[&str]); 11] = [
    ("shipment", "id", &["uuid", "format", "block_bytes", "cipher", "label", "asset_tag", "created_at"]),
    ("site", "id", &["uuid", "name"]),
    ("medium", "number", &["number", "uuid", "serial"]),
    ("machine", "number", &["number", "uuid", "name", "inventory"]),
    ("disk", "number", &["number", "uuid", "machine", "name", "excluded", "identity", "facts"]),
    ("process", "number", &["number", "envelope", "host", "tool", "started_at", "ended_at", "ending"]),
    (
        "generation",
        "id",
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
    ("pack", "number", &["number", "medium", "file", "bytes", "records", "blake3", "tree"]),
    ("block", "block", &["generation", "block", "leaf", "state", "pack", "offset", "stored", "codec"]),
    ("unreadable", "offset", &["generation", "offset", "bytes"]),
    ("event", "id", &["at", "kind", "machine", "disk", "detail"]),
];

/// What a stranger might add to a schema.
const SCHEMA_EDITS: [&str; 9] = [
    "PRAGMA user_version = 2",
    "PRAGMA application_id = 7",
    "CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM block; END",
    "CREATE VIEW v AS SELECT 1",
    "CREATE INDEX i ON block (leaf)",
    "ALTER TABLE event ADD COLUMN extra TEXT",
    "DROP TABLE unreadable",
    "DELETE FROM shipment",
    "INSERT INTO site VALUES (2, '00000000-0000-0000-0000-000000000009', 'other')",
];

fn base(page_bytes: u32) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let shipment = Shipment {
        format: 1,
        shipment: Uuid::from_u128(1),
        site: Site { uuid: Uuid::from_u128(2), name: "河口".into() },
        label: "first".into(),
        asset_tag: "TAG-7".into(),
        block_bytes: BLOCK,
        suite: Suite::Plaintext,
        recipients: vec![],
        hash: "blake3".into(),
        checksum: "crc32".into(),
        media: vec![Medium { number: 1, uuid: Uuid::from_u128(3), serial: "S1".into() }],
        created_at: Timestamp::UNIX_EPOCH,
        tool: "fuzz".into(),
        signer: None,
    };
    let mut catalogue = Catalogue::create(&path, &shipment).unwrap();
    let at = Timestamp::UNIX_EPOCH;
    let machine = catalogue.add_machine(Uuid::from_u128(4), "db01", r#"{"kernel":"6.1"}"#).unwrap();
    // Facts longer than a page, so that there are overflow pages.
    let facts = format!("{{\"partitions\":[{}0]}}", "1,".repeat(700));
    let disk = catalogue.add_disk(Uuid::from_u128(5), machine, "sda", "{}", &facts).unwrap();
    let excluded = catalogue.add_disk(Uuid::from_u128(6), machine, "sdb", "{}", "{}").unwrap();
    catalogue.set_excluded(excluded, Some("scratch only")).unwrap();
    let process = catalogue.add_process("db01", "fuzz", at).unwrap();
    catalogue.end_process(process, at, "done").unwrap();
    let bytes = (BLOCKS - 1) * u64::from(BLOCK) + 5000;
    let new = NewGeneration {
        disk,
        number: 0,
        bytes,
        consistency: Consistency::Consistent,
        basis: Basis::Hook,
        point_in_time: Some("snap-1".into()),
        source: "/dev/sda".into(),
    };
    let generation = catalogue.begin_generation(&new, at).unwrap();
    let pack = catalogue.add_pack(1).unwrap();
    let geometry = Geometry::new(bytes, BLOCK).unwrap();
    let mut offset = 4096;
    let rows = (0..BLOCKS).map(|block| {
        let state =
            [BlockState::Stored, BlockState::Stored, BlockState::Zero, BlockState::Unreadable][block as usize % 4];
        let place = (state != BlockState::Zero).then(|| {
            let (stored_bytes, codec) = match block % 3 {
                0 => (geometry.len(block), Codec::None),
                _ => (1000 + block as u32, Codec::Zstd),
            };
            let place = Place { pack, offset, stored_bytes, codec };
            offset += record_bytes(stored_bytes);
            place
        });
        let leaf = leaf(block * u64::from(BLOCK), &[block as u8; 9]);
        (generation.id, BlockRow { block, leaf, state, place })
    });
    let batch = Batch {
        rows: rows.collect(),
        unreadable: (3..BLOCKS)
            .step_by(4)
            .map(|block| (generation.id, UnreadableRange { offset: block * u64::from(BLOCK), bytes: 512 }))
            .collect(),
        packs: vec![PackProgress { pack, bytes: 1 << 30, records: 112, digest: PackState::Closed(Digest::of(b"")) }],
        block_bytes: BLOCK,
    };
    catalogue.commit(&batch).unwrap();
    catalogue.finish_generation(generation.id, at, &Digest::of(b"disk")).unwrap();
    catalogue.add_event(at, "hook", Some(machine), Some(disk), "frozen for 2 s").unwrap();
    catalogue.finalise().unwrap();
    let db = Connection::open(&path).unwrap();
    db.execute_batch(&format!("PRAGMA page_size = {page_bytes}; VACUUM;")).unwrap();
    drop(db);
    std::fs::read(&path).unwrap()
}

thread_local! {
    static PLACE: TempDir = tempfile::Builder::new().prefix("manifest-").tempdir().unwrap();
}

pub fn run(data: &[u8]) -> Verdict {
    let mut input = Input::new(data);
    let flags = input.u8();
    let base = &BASES[usize::from(flags & LARGE_PAGES)];
    let bytes = if flags & BY_SQL != 0 {
        edit_by_sql(base, &mut input)
    } else {
        let mut bytes = base.clone();
        input.edit(&mut bytes, if flags & LARGE_PAGES == 0 { 512 } else { 4096 });
        bytes
    };
    PLACE.with(|place| {
        let path = place.path().join(FILE);
        std::fs::write(&path, bytes).unwrap();
        let opened = if flags & LIVE == 0 { Catalogue::open_sealed(&path) } else { Catalogue::open_reader(&path) };
        let read = opened.and_then(|catalogue| read_all(&catalogue, flags & ENCRYPTED != 0));
        if read.is_ok() {
            check_texts(&path);
        }
        // A live manifest that was opened may have files beside it.
        for beside in std::fs::read_dir(place.path()).unwrap() {
            std::fs::remove_file(beside.unwrap().path()).unwrap();
        }
        Verdict::from(&read)
    })
}

fn edit_by_sql(base: &[u8], input: &mut Input) -> Vec<u8> {
    let mut db = Connection::open_in_memory().unwrap();
    db.deserialize_read_exact("main", base, base.len(), false).unwrap();
    db.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON").unwrap();
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        let (kind, table) = (input.u8(), usize::from(input.u8()) % TABLES.len());
        let (table, key, columns) = TABLES[table];
        let (column, row) = (columns[usize::from(input.u8()) % columns.len()], i64::from(input.u8()));
        let value = match kind % 8 {
            0 => Value::Null,
            1 | 2 => Value::Integer(input.u64() as i64),
            3 | 4 => {
                let length = usize::from(input.u8());
                Value::Text(String::from_utf8_lossy(input.take(length)).into_owned())
            }
            5 => {
                let length = usize::from(input.u8());
                Value::Blob(input.take(length).to_vec())
            }
            6 => {
                let _ = db.execute(&format!("DELETE FROM {table} WHERE {key} = ?"), [row]);
                continue;
            }
            _ => {
                let _ = db.execute_batch(SCHEMA_EDITS[row as usize % SCHEMA_EDITS.len()]);
                continue;
            }
        };
        // What even SQLite refuses of it is not done.
        let _ = db.execute(&format!("UPDATE OR REPLACE {table} SET {column} = ? WHERE {key} = ?"), (value, row));
    }
    db.serialize("main").unwrap().to_vec()
}

/// Reads every row of every table, as import, verify, scan and report do between them. Goes on behind a table that is refused.
fn read_all(catalogue: &Catalogue, encrypted: bool) -> Result<(), FormatError> {
    let mut result = Ok(());
    let mut note = |read: Result<(), FormatError>| result = std::mem::replace(&mut result, Ok(())).and(read);
    note(catalogue.media().map(|media| assert!(media.iter().all(|m| is_text(&m.serial)))));
    note(catalogue.machines().map(|machines| assert!(machines.iter().all(|m| is_name(&m.name)))));
    note(catalogue.disks().map(|disks| {
        assert!(disks.iter().all(|d| is_name(&d.name) && d.excluded.as_deref().is_none_or(is_text)));
    }));
    note(catalogue.processes().map(|processes| {
        assert!(processes.iter().all(|p| is_text(&p.host) && p.ending.as_deref().is_none_or(is_text)));
    }));
    note(catalogue.packs().map(drop));
    note(catalogue.events().map(drop));
    let (shipment, generations) = (catalogue.shipment(), catalogue.generations());
    if let (Ok(shipment), Ok(generations)) = (&shipment, &generations) {
        assert!(is_name(&shipment.site_name) && is_text(&shipment.label) && is_text(&shipment.asset_tag));
        for generation in generations.iter().take(4) {
            note(catalogue.unreadable(generation).map(|ranges| {
                assert!(ranges.iter().all(|range| range.bytes > 0 && range.offset + range.bytes <= generation.bytes));
            }));
            let read = Geometry::new(generation.bytes, shipment.block_bytes)
                .and_then(|geometry| rows(catalogue, generation, &geometry, encrypted));
            note(read);
        }
    }
    result.and(shipment.map(drop)).and(generations.map(drop))
}

fn rows(
    catalogue: &Catalogue,
    generation: &motiongear_manifest::catalogue::Generation,
    geometry: &Geometry,
    encrypted: bool,
) -> Result<(), FormatError> {
    let mut next = 0;
    let walked = catalogue.for_each_row(generation, geometry, encrypted, |row| {
        assert!(row.block >= next && row.block < geometry.blocks(), "block {} after {next}", row.block);
        next = row.block + 1;
        let plain = geometry.len(row.block);
        match row.place {
            Some(place) => {
                assert!(row.state != BlockState::Zero && place.offset >= 4096 && place.offset.is_multiple_of(4096));
                assert!(place.offset + record_bytes(place.stored_bytes) <= MAX_PACK_BYTES);
                assert!(place.stored_bytes <= plain + if encrypted { 16 } else { 0 });
            }
            None => assert!(row.state != BlockState::Stored),
        }
        Ok(())
    });
    // As blocks are asked for one by one, and from the middle.
    for from in [0, 1, 77, geometry.blocks().saturating_sub(1)] {
        if let Ok(rows) = catalogue.rows(generation, geometry, encrypted, from, 3) {
            assert!(rows.len() <= 3 && rows.iter().all(|row| row.block >= from), "rows from {from}: {rows:?}");
        }
    }
    let summary = catalogue.summarise(generation, geometry, encrypted);
    if let Ok((counts, digest)) = &summary {
        assert_eq!(counts.stored + counts.zero + counts.unreadable, geometry.blocks());
        assert_eq!(digest.is_some(), geometry.blocks() > 1);
    }
    walked.and(summary.map(drop))
}

/// Of a manifest that was accepted: UUIDs and times in the one spelling that FORMAT.md allows, and its rules for fields.
fn check_texts(path: &Path) {
    let db = Connection::open(PathBuf::from(path)).unwrap();
    let texts = |sql: &str| -> Vec<String> {
        let mut statement = db.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.filter_map(|text: rusqlite::Result<Option<String>>| text.unwrap()).collect()
    };
    for table in ["shipment", "site", "medium", "machine", "disk"] {
        for uuid in texts(&format!("SELECT uuid FROM {table} NOT INDEXED")) {
            assert_eq!(Uuid::parse_str(&uuid).unwrap().to_string(), uuid, "{table}");
        }
    }
    for column in ["created_at FROM shipment", "started_at FROM process", "ended_at FROM process", "at FROM event"]
        .into_iter()
        .chain(["started_at FROM generation", "finished_at FROM generation"])
    {
        // By the rows themselves, as the readers do; an index may be broken beside them.
        texts(&format!("SELECT {column} NOT INDEXED"))
            .iter()
            .for_each(|time| assert!(is_time(time), "{column}: {time}"));
    }
    assert_eq!(texts("SELECT CAST(format AS TEXT) FROM shipment, site"), ["1"]);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..16).map(|flags| vec![flags]).collect();
    // By bytes: the file's header, then two places of every page of 512 bytes.
    for at in [16u8, 18, 19, 20, 28, 32, 36, 44, 47, 56, 60, 68, 100, 101, 103, 105, 107, 108] {
        seeds.push(vec![0, 0, at, 0, 0, 0, 0xff]);
    }
    for page in 0..(BASES[0].len() / 512) as u16 {
        let at = (page * 512).to_le_bytes();
        seeds.push(vec![0, 4, at[0], at[1], 0, 0, (page % 7) as u8, 0]);
        seeds.push(vec![LIVE, 0, at[0], at[1], 0, 3, 0x0d, 0, 0, 0xff]);
    }
    // Cells of an index page in another order, leaf (0x0a) and interior (0x02): rows that do not come as they are asked for.
    for (number, page) in BASES[0].chunks(512).enumerate() {
        let pointers = match page[0] {
            0x0a => 8,
            0x02 => 12,
            _ => continue,
        };
        let (at, swapped) = ((number * 512 + pointers) as u16, [pointers + 2, pointers + 3, pointers, pointers + 1]);
        let (at, swapped) = (at.to_le_bytes(), swapped.map(|at| page[at]));
        seeds.push([&[0, 0, at[0], at[1], 0, 3], &swapped[..]].concat());
    }
    // By SQL: every column of every table as NULL, a large number, and text; every change of the schema.
    for (table, (_, _, columns)) in TABLES.iter().enumerate() {
        for column in 0..columns.len() {
            let head = |kind: u8| vec![BY_SQL, kind, table as u8, column as u8, 1];
            seeds.push(head(0));
            seeds.push([head(1), i64::MAX.to_le_bytes().to_vec()].concat());
            seeds.push([head(1), (-1i64).to_le_bytes().to_vec()].concat());
            seeds.push([head(3), b"\x05..\x00/x".to_vec()].concat());
        }
    }
    seeds.extend((0..SCHEMA_EDITS.len() as u8).map(|edit| vec![BY_SQL, 7, 0, 0, edit]));
    // Another spelling of a UUID and of a time.
    let text = |table: u8, column: u8, text: &str| {
        [&[BY_SQL, 3, table, column, 1, text.len() as u8], text.as_bytes()].concat()
    };
    seeds.push(text(3, 1, "00000000-0000-0000-0000-00000000000A"));
    seeds.push(text(5, 4, "1970-01-01 00:00:00+00"));
    seeds.push([vec![BY_SQL, 1, 0, 1, 1], 2u64.to_le_bytes().to_vec()].concat());
    seeds
}
