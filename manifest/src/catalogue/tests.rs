//! Goal: what is written comes back, survives finalising, and a file that was tampered with is refused. Method: real SQLite
//! files in a temporary directory; tampering by a second connection, as an attacker with the array would.

use super::*;
use crate::documents::seal::{Basis, Consistency};
use crate::documents::shipment::{Medium, Shipment, Site, Suite};
use crate::geometry::Geometry;
use crate::record::Codec;
use crate::tree::{Digest, leaf};
use jiff::Timestamp;
use uuid::Uuid;

const BLOCK: u32 = 65536;

fn shipment() -> Shipment {
    Shipment {
        format: 1,
        shipment: Uuid::from_u128(1),
        site: Site { uuid: Uuid::from_u128(2), name: "农信社".into() },
        label: String::new(),
        asset_tag: "A-17".into(),
        block_bytes: BLOCK,
        suite: Suite::Plaintext,
        recipients: vec![],
        hash: "blake3".into(),
        checksum: "crc32".into(),
        media: vec![Medium { number: 1, uuid: Uuid::from_u128(3), serial: String::new() }],
        created_at: Timestamp::UNIX_EPOCH,
        tool: "test".into(),
        signer: None,
    }
}

fn filled(path: &std::path::Path) -> (Generation, Geometry, Digest) {
    let geometry = Geometry::new(3 * u64::from(BLOCK) - 7, BLOCK).unwrap();
    let data: Vec<u8> = (0..geometry.bytes()).map(|i| (i / 9) as u8).collect();
    let mut catalogue = Catalogue::create(path, &shipment()).unwrap();
    let machine = catalogue.add_machine(Uuid::from_u128(4), "db01", "{}").unwrap();
    let disk = catalogue.add_disk(Uuid::from_u128(5), machine, "sda", "{}", "{}").unwrap();
    let new = NewGeneration {
        disk,
        number: 0,
        bytes: geometry.bytes(),
        consistency: Consistency::Fuzzy,
        basis: Basis::None,
        point_in_time: None,
        source: "/dev/x".into(),
    };
    let generation = catalogue.begin_generation(&new, Timestamp::UNIX_EPOCH).unwrap();
    let pack = catalogue.add_pack(1).unwrap();
    let rows = (0..geometry.blocks()).map(|block| {
        let offset = geometry.offset(block);
        let bytes = &data[offset as usize..][..geometry.len(block) as usize];
        let place = Place { pack, offset: 4096 + block * 69632, stored_bytes: geometry.len(block), codec: Codec::None };
        (generation.id, BlockRow { block, leaf: leaf(offset, bytes), state: BlockState::Stored, place: Some(place) })
    });
    let packs =
        vec![PackProgress { pack, bytes: 4096 + 3 * 69632, records: 3, digest: PackState::Closed(Digest::of(b"")) }];
    let batch = Batch { rows: rows.collect(), packs, block_bytes: BLOCK, ..Batch::default() };
    catalogue.commit(&batch).unwrap();
    catalogue.finalise().unwrap();
    (generation, geometry, Digest::of(&data))
}

#[test]
fn a_shipment_has_no_more_packs_than_a_seal_may_list() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::create(&dir.path().join("manifest.db"), &shipment()).unwrap();
    let one_less = "INSERT INTO pack VALUES (65535, 1, 'packs/00065535.pack', 0, 0, NULL, NULL)";
    catalogue.db.execute(one_less, []).unwrap();
    assert_eq!(catalogue.add_pack(1).unwrap(), 65_536);
    let said = catalogue.add_pack(1).unwrap_err().to_string();
    assert!(said.contains("expected at most 65536, found 65537"), "{said}");
}

#[test]
fn what_was_written_comes_back_from_the_sealed_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd name?#%.db");
    let (generation, geometry, digest) = filled(&path);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no -wal or -shm beside a finalised manifest");
    let sealed = Catalogue::open_sealed(&path).unwrap();
    assert_eq!(sealed.shipment().unwrap().site_name, "农信社");
    assert_eq!(sealed.generations().unwrap(), vec![generation.clone()]);
    let (counts, merged) = sealed.summarise(&generation, &geometry, false).unwrap();
    assert_eq!((counts.stored, counts.zero, counts.unreadable), (3, 0, 0));
    assert_eq!(merged, Some(digest));
    assert_eq!(sealed.packs().unwrap().len(), 1);
    drop(sealed);
    Catalogue::open_live(&path).unwrap().add_event(Timestamp::UNIX_EPOCH, "note", None, None, "reopened").unwrap();
}

#[test]
fn a_manifest_with_anything_more_or_less_is_refused() {
    for (sql, words) in [
        ("CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM block; END", "schema"),
        ("CREATE VIEW v AS SELECT 1", "schema"),
        ("ALTER TABLE event ADD COLUMN extra TEXT", "schema"),
        ("DROP TABLE unreadable", "schema"),
        ("PRAGMA user_version = 2", "schema 2"),
        ("PRAGMA application_id = 7", "application_id"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        filled(&path);
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let error = Catalogue::open_sealed(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains(words), "{sql}: {error}");
    }
}

#[test]
fn rows_with_impossible_numbers_are_refused_when_used() {
    for (sql, words) in [
        ("UPDATE block SET offset = -4096 WHERE block = 1", "negative"),
        ("UPDATE block SET offset = 9223372036854771712 WHERE block = 1", "page-aligned"),
        ("UPDATE block SET offset = 4097 WHERE block = 1", "page-aligned"),
        ("UPDATE block SET stored = 4294967296 WHERE block = 1", "4294967295"),
        ("UPDATE block SET stored = 1 WHERE block = 1", "stored length"),
        ("UPDATE block SET codec = 9 WHERE block = 1", "Codec"),
        ("UPDATE block SET pack = NULL WHERE block = 1", "all NULL"),
        ("UPDATE block SET leaf = x'00' WHERE block = 1", "32 bytes"),
        ("UPDATE block SET state = 0 WHERE block = 1", "state 0"),
        ("UPDATE block SET block = 77 WHERE block = 2", "index below"),
        ("DELETE FROM block WHERE block = 1", "row for block 1"),
        ("DELETE FROM block WHERE block = 2", "3 blocks"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        let (generation, geometry, _) = filled(&path);
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let sealed = Catalogue::open_sealed(&path).unwrap();
        let error = sealed.summarise(&generation, &geometry, false).unwrap_err().to_string();
        assert!(error.contains(words), "{sql}: {error}");
    }
}

#[test]
fn names_in_rows_are_checked_when_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    filled(&path);
    let attacker = rusqlite::Connection::open(&path).unwrap();
    attacker.execute_batch("UPDATE machine SET name = '../etc'; UPDATE disk SET name = 'a' || char(0); UPDATE pack SET file = '../x.pack'").unwrap();
    let sealed = Catalogue::open_sealed(&path).unwrap();
    assert!(sealed.machines().is_err());
    assert!(sealed.disks().is_err());
    assert!(sealed.packs().is_err());
}

/// `count` machines that each say `bytes` of themselves, besides the one that is there.
fn talkative(path: &std::path::Path, count: usize, bytes: usize) {
    let sql = format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
         INSERT INTO machine SELECT i + 9, printf('00000000-0000-0000-0000-%012d', i + 9), 'm' || i, \
         '\"' || hex(zeroblob({})) || '\"' FROM n",
        (bytes - 2) / 2
    );
    rusqlite::Connection::open(path).unwrap().execute_batch(&sql).unwrap();
}

#[test]
fn text_without_end_is_refused_and_that_of_many_machines_is_not() {
    for (count, bytes, fits) in [(300, 200 << 10, true), (70, 1 << 20, false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        filled(&path);
        talkative(&path, count, bytes);
        match Catalogue::open_sealed(&path).unwrap().machines() {
            Ok(machines) => assert!(fits && machines.len() == count + 1, "{count} machines of {bytes} bytes"),
            Err(error) => assert!(!fits && error.to_string().contains("bytes of text"), "{error}"),
        }
    }
}

/// A database with our schema, behind which levels of pages name the level below sixty times each: 20 KB that hold 60^12 rows.
fn endless_schema(path: &std::path::Path) {
    const PAGE: usize = 512;
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(&format!("PRAGMA page_size = {PAGE}; {SCHEMA}")).unwrap();
    db.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}"))
        .unwrap();
    // A row that SQLite takes as often as it comes: that of an index which a UNIQUE made.
    let name = "sqlite_autoindex_medium_1";
    let row = "SELECT rowid, rootpage FROM sqlite_schema WHERE name = ?";
    let (rowid, root): (u8, u8) = db.query_row(row, [name], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    drop(db);
    let mut file = std::fs::read(path).unwrap();
    assert_eq!(file[100], 5, "the schema has more than one page");
    // File format, section 1.6: kind, cells, where they begin, and their places; here all cells are of one kind and length.
    let page = |kind: u8, right: Option<u32>, cells: &[Vec<u8>]| {
        let mut page = vec![0; PAGE];
        let mut places: Vec<u8> = right.map(|right| right.to_be_bytes().to_vec()).unwrap_or_default();
        let mut at = PAGE;
        for cell in cells {
            at -= cell.len();
            page[at..at + cell.len()].copy_from_slice(cell);
            places.extend((at as u16).to_be_bytes());
        }
        page[0] = kind;
        page[3..5].copy_from_slice(&(cells.len() as u16).to_be_bytes());
        page[5..7].copy_from_slice(&(at as u16).to_be_bytes());
        page[8..8 + places.len()].copy_from_slice(&places);
        page
    };
    let text = |text: &str| 13 + 2 * text.len() as u8;
    let record =
        [&[6, text("index"), text(name), text("medium"), 1, 0][..], b"index", name.as_bytes(), b"medium", &[root]];
    let record = record.concat();
    let mut add = |page: Vec<u8>| {
        file.extend(page);
        (file.len() / PAGE) as u32
    };
    let below = |page: u32| [&page.to_be_bytes()[..], &[rowid]].concat();
    let mut down = add(page(13, None, &[[&[record.len() as u8, rowid][..], &record].concat()]));
    for _ in 0..12 {
        down = add(page(5, Some(down), &vec![below(down); 60]));
    }
    let right = u32::from_be_bytes(file[108..112].try_into().unwrap());
    file.extend(page(5, Some(down), &[below(right)]));
    let pages = (file.len() / PAGE) as u32;
    file[108..112].copy_from_slice(&pages.to_be_bytes());
    file[28..32].copy_from_slice(&pages.to_be_bytes());
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_schema_without_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    endless_schema(&path);
    let started = std::time::Instant::now();
    let error = Catalogue::open_sealed(&path).map(drop).unwrap_err().to_string();
    assert!(error.contains("interrupted"), "{error}");
    assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn more_unreadable_ranges_than_a_reader_takes_are_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("live.db");
    let (generation, _, _) = filled(&path);
    let mut catalogue = Catalogue::open_live(&path).unwrap();
    let mut commit = |range: std::ops::Range<usize>| {
        let of = |at| (generation.id, UnreadableRange { offset: at as u64 * 2, bytes: 1 });
        catalogue.commit(&Batch { unreadable: range.map(of).collect(), block_bytes: BLOCK, ..Batch::default() })
    };
    commit(0..read::MAX_SMALL_ROWS).unwrap();
    let error = commit(read::MAX_SMALL_ROWS..read::MAX_SMALL_ROWS + 1).unwrap_err();
    assert!(error.to_string().contains("at most 200000 unreadable ranges"), "{error}");
    commit(0..1).unwrap();
}

#[test]
fn a_block_that_is_read_again_keeps_only_its_new_unreadable_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("live.db");
    let (generation, _, _) = filled(&path);
    let mut catalogue = Catalogue::open_live(&path).unwrap();
    let row = BlockRow { block: 1, leaf: leaf(0, &[0; 9]), state: BlockState::Unreadable, place: None };
    let range = |offset, bytes| UnreadableRange { offset: u64::from(BLOCK) + offset, bytes };
    for ranges in [vec![range(0, 8192), range(20_480, 4096)], vec![range(4096, 4096)], vec![]] {
        let unreadable = ranges.iter().map(|range| (generation.id, *range)).collect();
        let batch = Batch { rows: vec![(generation.id, row)], unreadable, block_bytes: BLOCK, ..Batch::default() };
        catalogue.commit(&batch).unwrap();
        assert_eq!(catalogue.unreadable(&generation).unwrap(), ranges);
    }
}

/// What a power cut leaves of a manifest that was being finalised or sealed.
#[test]
fn a_reader_rolls_back_what_a_power_cut_left_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cut) = (dir.path().join("live.db"), dir.path().join("cut.db"));
    filled(&path);
    Catalogue::open_live(&path).unwrap().finalise().unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "cache_size", 4).unwrap();
    // More than the cache holds: the journal is flushed, and half of the change is in the file.
    db.execute_batch(
        "BEGIN IMMEDIATE; UPDATE machine SET name = 'half done'; CREATE TABLE litter (a);
         WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 2000)
         INSERT INTO litter SELECT randomblob(1000) FROM c;",
    )
    .unwrap();
    std::fs::copy(&path, &cut).unwrap();
    std::fs::copy(dir.path().join("live.db-journal"), dir.path().join("cut.db-journal")).unwrap();
    drop(db);
    let machine = |path: &std::path::Path| Catalogue::open_reader(path).unwrap().machines().unwrap()[0].name.clone();
    assert_eq!((machine(&cut).as_str(), machine(&path).as_str()), ("db01", "db01"));
    assert!(!dir.path().join("cut.db-journal").exists());
}
