//! Goal: FORMAT.md tells the truth. Method: its SQL is compared with the schema, its tables with what the code writes and refuses.

mod common;

use motiongear_manifest::catalogue::{APPLICATION_ID, MAX_SMALL_BYTES, MAX_SMALL_ROWS, SCHEMA, SCHEMA_VERSION};
use motiongear_manifest::documents::seal::MAX_PACKS;
use motiongear_manifest::documents::seal::{MAX_DISKS, Seal};
use motiongear_manifest::documents::shipment::MAX_RECIPIENTS;
use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES, MAX_SEAL_BYTES};
use motiongear_manifest::geometry::{MAX_BLOCK_BYTES, MIN_BLOCK_BYTES};
use motiongear_manifest::pack::{MAX_PACK_BYTES, PackHeader};
use motiongear_manifest::record::{AAD_BYTES, Cipher, Codec, HEADER_BYTES, Header, RecordId};
use motiongear_manifest::sign::Namespace;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use uuid::Uuid;

const FORMAT_MD: &str = include_str!("../FORMAT.md");

/// The rows of the table that follows `title`, cells trimmed.
fn table(title: &str) -> Vec<Vec<&'static str>> {
    let at = FORMAT_MD.find(&format!("\n{title}\n")).unwrap_or_else(|| panic!("{title} in FORMAT.md"));
    let rows = FORMAT_MD[at + title.len() + 2..]
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    rows.skip(2).map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Field name to range; checks that the rows cover everything without gap.
fn layout(title: &str, total: usize) -> BTreeMap<&'static str, std::ops::Range<usize>> {
    let (mut end, mut fields) = (0, BTreeMap::new());
    for row in table(title) {
        let (offset, bytes): (usize, usize) = (row[0].parse().unwrap(), row[1].parse().unwrap());
        assert_eq!(offset, end, "{row:?}");
        end = offset + bytes;
        if row[2] != "reserved" {
            assert!(fields.insert(row[2], offset..end).is_none());
        }
    }
    assert_eq!(end, total);
    fields
}

#[test]
fn the_sql_is_the_schema() {
    let sql = FORMAT_MD.split("```sql\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(sql, SCHEMA);
    assert!(FORMAT_MD.contains(&format!("`application_id` {APPLICATION_ID:#x}")));
    assert!(FORMAT_MD.contains(&format!("`user_version` {SCHEMA_VERSION}")));
}

#[test]
fn the_record_header_lies_as_written() {
    let fields = layout("Record header:", HEADER_BYTES);
    let header = Header {
        shipment: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        process: 0x1112_1314,
        id: RecordId { disk: 0x2122_2324, generation: 0x3132_3334, block: 0x4142_4344_4546_4748 },
        codec: Codec::Zstd,
        cipher: Cipher::Aes256Gcm,
        plain_bytes: 0x0051_5253,
        packed_bytes: 0x0041_4243,
        stored_bytes: 0x0041_4253,
        nonce: 0x6162_6364_6566_6768,
        payload_crc: 0x7172_7374,
    };
    let bytes = header.encode();
    assert_eq!(Header::decode(&bytes).unwrap(), header);
    let expected: [(&str, Vec<u8>); 16] = [
        ("magic", b"MGRECORD".to_vec()),
        ("format", vec![1, 0]),
        ("kind", vec![1]),
        ("codec", vec![1]),
        ("cipher", vec![1]),
        ("shipment", (1..=16).collect()),
        ("process", header.process.to_le_bytes().into()),
        ("disk", header.id.disk.to_le_bytes().into()),
        ("generation", header.id.generation.to_le_bytes().into()),
        ("block", header.id.block.to_le_bytes().into()),
        ("plain_bytes", header.plain_bytes.to_le_bytes().into()),
        ("packed_bytes", header.packed_bytes.to_le_bytes().into()),
        ("stored_bytes", header.stored_bytes.to_le_bytes().into()),
        ("nonce", header.nonce.to_le_bytes().into()),
        ("payload_crc", header.payload_crc.to_le_bytes().into()),
        ("crc", crc32fast::hash(&bytes[..124]).to_le_bytes().into()),
    ];
    assert_eq!(fields.len(), expected.len());
    let mut named = BTreeSet::new();
    for (field, value) in expected {
        assert_eq!(bytes[fields[field].clone()], value, "{field}");
        named.extend(fields[field].clone());
    }
    // Everything else is reserved: zero, and refused when it is not, whatever the CRC says.
    for at in (0..124).filter(|at| !named.contains(at)) {
        assert_eq!(bytes[at], 0);
        let mut odd = bytes;
        odd[at] = 1;
        let crc = crc32fast::hash(&odd[..124]);
        odd[124..].copy_from_slice(&crc.to_le_bytes());
        assert!(Header::decode(&odd).is_err(), "{at}");
    }
    assert!(FORMAT_MD.contains(&format!("the associated data are\n  bytes 0 to {} of the header", AAD_BYTES - 1)));
}

#[test]
fn the_pack_header_lies_as_written() {
    let fields = layout("Pack header:", 4096);
    let header = PackHeader {
        shipment: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        pack: 0x2122_2324,
        medium: 7,
    };
    let page = header.encode();
    let expected: [(&str, Vec<u8>); 6] = [
        ("magic", b"MGPACK\0\0".to_vec()),
        ("format", vec![1, 0]),
        ("shipment", (1..=16).collect()),
        ("pack", header.pack.to_le_bytes().into()),
        ("medium", header.medium.to_le_bytes().into()),
        ("crc", crc32fast::hash(&page[..60]).to_le_bytes().into()),
    ];
    assert_eq!(fields.len(), expected.len());
    for (field, value) in expected {
        assert_eq!(page[fields[field].clone()], value, "{field}");
    }
}

#[test]
fn the_fields_of_documents_are_those_that_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let keys = common::Keys::new();
    let digest = motiongear_manifest::tree::Digest::of(b"x");
    let made = common::make(dir.path(), &common::Spec { supersedes: Some(digest), ..common::Spec::new(true) }, &keys);
    let last = common::add_event(&made, &keys, 1, motiongear_manifest::documents::custody::Event::Dispatched, None);
    common::add_event(&made, &keys, 2, motiongear_manifest::documents::custody::Event::Received, Some(last));
    for (title, file) in [
        ("## 3. `shipment.json` and `holder.json`", "shipment.json"),
        ("## 4. The seal", "seal.json"),
        ("## 8. Custody", "custody/0002-received.json"),
    ] {
        let document: serde_json::Value = serde_json::from_slice(&made.read(file)).unwrap();
        let written: BTreeSet<String> = document.as_object().unwrap().keys().cloned().collect();
        let told: BTreeSet<String> = table(title).iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
        assert_eq!(written, told, "{file}");
    }
    let seal: serde_json::Value = serde_json::from_slice(&made.read("seal.json")).unwrap();
    for field in seal["disks"][0].as_object().unwrap().keys() {
        assert!(FORMAT_MD.contains(&format!("`{field}`")), "{field}");
    }
    assert_eq!(Seal::MAX_BYTES, MAX_SEAL_BYTES);
}

#[test]
fn the_limits_are_those_of_the_code() {
    for (text, limit) in [
        ("At most 1 MiB, `seal.json` 16 MiB", MAX_DOCUMENT_BYTES == 1 << 20 && MAX_SEAL_BYTES == 16 << 20),
        ("a power of two, 65536 to 16777216", (MIN_BLOCK_BYTES, MAX_BLOCK_BYTES) == (65_536, 16_777_216)),
        ("a multiple of 4096 from 4096 to 8589934592", MAX_PACK_BYTES == 8_589_934_592),
        ("at most 65536, each file once", MAX_PACKS == 65_536),
        ("200000 rows or 67108864 bytes", (MAX_SMALL_ROWS, MAX_SMALL_BYTES) == (200_000, 67_108_864)),
        ("at most 10000", MAX_DISKS == 10_000),
        ("1 to 32, each once", MAX_RECIPIENTS == 32),
    ] {
        assert!(FORMAT_MD.contains(text) && limit, "{text}");
    }
    let told: Vec<&str> = table("### Signatures").iter().map(|row| row[1].trim_matches('`')).collect();
    assert_eq!(told, Namespace::ALL.map(Namespace::as_str));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// A document with any piece replaced by any other text is read or refused; a value that is read is written again and read the same.
    #[test]
    fn no_document_panics(at: prop::sample::Index, cut in 0usize..30, text in "[-+0-9a-zA-Z\"{}\\[\\],:. \\\\]{0,30}") {
        static SEAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let dir = tempfile::tempdir().unwrap();
            common::make(dir.path(), &common::Spec::new(true), &common::Keys::new()).read("seal.json")
        });
        let at = at.index(SEAL.len());
        let end = (at + cut).min(SEAL.len());
        let changed = [&SEAL[..at], text.as_bytes(), &SEAL[end..]].concat();
        if let Ok(seal) = Seal::parse(&changed) {
            prop_assert_eq!(Seal::parse(&seal.to_bytes().unwrap()).unwrap(), seal);
        }
    }
}
