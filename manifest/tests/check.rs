//! Goal: the checker finds everything that can be wrong with an array, names it exactly, and stops at nothing. Method: whole small
//! arrays made by the crate's writers, then damaged or forged as accident or malice would, one thing at a time; each case states
//! the exit code and the words of the finding that it must produce.

mod common;

use common::*;
use jiff::Timestamp;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::check::{Class, Options, Report, Severity, Terms, check};
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::custody::Event;
use motiongear_manifest::documents::seal::{MAX_PACKS, Seal, SealedPack};
use motiongear_manifest::documents::shipment::{Medium, Shipment};
use motiongear_manifest::envelope::Identity;
use motiongear_manifest::record::{Encoder, HEADER_BYTES, Header, RecordId, RecordKey, Writer, max_record_bytes};
use motiongear_manifest::sign::{Namespace, Signer};
use std::fs;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;
use uuid::Uuid;

struct Bench {
    _dir: tempfile::TempDir,
    made: Made,
    keys: Keys,
}

impl Bench {
    fn with(spec: Spec) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let array = dir.path().join("array");
        fs::create_dir(&array).unwrap();
        let keys = Keys::new();
        let made = make(&array, &spec, &keys);
        Bench { _dir: dir, made, keys }
    }
    fn plain() -> Self {
        Self::with(Spec::new(false))
    }
    fn encrypted() -> Self {
        Self::with(Spec::new(true))
    }
    fn check(&self) -> Report {
        self.check_with(Some(&self.keys.trust()), std::slice::from_ref(&self.keys.identity), None)
    }
    fn check_with(&self, trust: Option<&AllowedSigners>, identities: &[Identity], expect: Option<&str>) -> Report {
        let work = tempfile::tempdir().unwrap();
        let terms = Terms { trust, at: Timestamp::now(), expect_seal: expect };
        let watch = |_| ControlFlow::Continue(());
        let report = check(&self.made.array, &Options { terms, identities, work: work.path(), watch: &watch });
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0, "the work directory is left empty");
        report
    }
}

/// The exit code, and that some error or warning holds the words.
#[track_caller]
fn expect(report: &Report, code: u8, words: &[&str]) {
    let list: Vec<String> = report.findings.list.iter().map(ToString::to_string).collect();
    assert_eq!(report.exit_code(), code, "{list:#?}");
    for words in words {
        assert!(list.iter().any(|line| line.contains(words)), "'{words}' in {list:#?}");
    }
}

#[test]
fn a_good_array_is_good_with_and_without_keys() {
    for bench in [Bench::plain(), Bench::encrypted()] {
        let previous = add_event(&bench.made, &bench.keys, 1, Event::Dispatched, None);
        add_event(&bench.made, &bench.keys, 2, Event::Received, Some(previous));
        let report = bench.check();
        expect(&report, 0, &["disk db01/sda: 1 blocks were not wholly readable at the source"]);
        assert_eq!((report.findings.errors(), report.findings.warnings), (0, 0), "{:#?}", report.findings.list);
        assert!(report.manifest_compared);
        assert_eq!(report.custody.len(), 2);
        let proven: Vec<_> = report.proven.iter().map(|p| (p.disk.as_str(), p.stored, p.zero, p.damaged)).collect();
        assert_eq!(
            proven,
            [
                ("db01/sda", 3, 2, 0),
                ("db01/one-byte", 1, 0, 0),
                ("web01/one-block", 1, 0, 0),
                ("web01/empty", 0, 0, 0),
                ("web01/zeros", 0, 2, 0)
            ]
        );
        assert_eq!(report.packs.unwrap().good, 2);

        let medium = bench.check_with(None, &[], None);
        expect(&medium, 0, &["signer not checked", "not opened, as no trust file was given"]);
        assert!(!medium.seal.unwrap().signer_checked);
        assert!(medium.proven.is_empty());
    }
    let bench = Bench::encrypted();
    let report = bench.check_with(Some(&bench.keys.trust()), &[], None);
    expect(&report, 0, &["no identity was given; contents are not checked"]);
}

#[test]
fn the_seal_must_be_signed_by_an_allowed_signer_of_the_site() {
    let both = |bench: &Bench, signature: &[u8]| {
        bench.made.write("seal.json.sig", signature);
        bench.made.write("copy/seal.json.sig", signature);
    };
    // Not sealed, not signed.
    let bench = Bench::plain();
    for file in ["seal.json.sig", "copy/seal.json.sig"] {
        bench.made.remove(file);
    }
    expect(&bench.check(), 4, &["(untrusted) seal.json.sig: missing: the seal is not signed"]);
    expect(&bench.check_with(None, &[], None), 4, &["the seal is not signed"]);
    for file in ["seal.json", "copy/seal.json"] {
        bench.made.remove(file);
    }
    // No seal at all is no lack of trust: there is nothing to check.
    expect(&bench.check(), 1, &["(untrusted) seal.json: missing: this array was not sealed"]);
    // Signed by somebody else, over another namespace, over other bytes, or no signature at all.
    let bench = Bench::plain();
    let seal = bench.made.read("seal.json");
    let stranger = Signer::generate_ed25519("").unwrap();
    both(&bench, stranger.sign(&seal, Namespace::Seal).unwrap().as_bytes());
    expect(&bench.check(), 4, &["is not in the file of allowed signers"]);
    both(&bench, bench.keys.signer.sign(&seal, Namespace::Custody).unwrap().as_bytes());
    expect(&bench.check(), 4, &["expected namespace motiongear-seal, found 'motiongear-custody'"]);
    both(&bench, bench.keys.signer.sign(b"other", Namespace::Seal).unwrap().as_bytes());
    expect(&bench.check(), 4, &["does not match the document"]);
    both(&bench, b"nonsense");
    expect(&bench.check(), 4, &["expected an armored SSH signature"]);
    // Expired, of other principals, for other namespaces.
    let bench = Bench::plain();
    let key = bench.keys.signer.public_key().to_openssh().unwrap();
    for (line, words) in [
        (format!("{SIGNER} valid-before=\"20260101\" {key}"), "was valid before 2026-01-01"),
        (format!("{SIGNER} valid-after=\"20990101Z\" {key}"), "valid only after 2099-01-01"),
        (format!("{SIGNER} namespaces=\"motiongear-custody\" {key}"), "not for motiongear-seal"),
        (format!("zhang@nongxin {key}"), "is allowed for 'zhang@nongxin' (line 1), not for 'wang@nongxin'"),
    ] {
        let trust = AllowedSigners::parse(&line).unwrap();
        expect(&bench.check_with(Some(&trust), &[], None), 4, &[words]);
    }
    // An allowed signer of another site.
    let bench = Bench::with(Spec { signer: "wang@otherbank", ..Spec::new(false) });
    let trust = AllowedSigners::parse(&trust_line("*", &bench.keys.signer)).unwrap();
    expect(
        &bench.check_with(Some(&trust), &[], None),
        4,
        &["expected a signer of site 'nongxin', found 'wang@otherbank'"],
    );
    let bench = Bench::with(Spec { signer: "wang", ..Spec::new(false) });
    expect(&bench.check_with(Some(&trust), &[], None), 4, &["expected NAME@SITE"]);
}

#[test]
fn the_expected_seal_is_compared() {
    let bench = Bench::plain();
    let seal = bench.check().seal.unwrap();
    let trust = bench.keys.trust();
    for said in [seal.code.to_lowercase(), seal.digest.to_string()] {
        expect(&bench.check_with(Some(&trust), &[], Some(&said)), 0, &[]);
    }
    expect(&bench.check_with(Some(&trust), &[], Some("00000000")), 4, &["expected the seal '00000000', found "]);
}

#[test]
fn of_two_seals_the_one_that_supersedes_counts() {
    let bench = Bench::plain();
    let Bench { made, keys, .. } = &bench;
    let older = made.seal.clone();
    let newer = motiongear_manifest::documents::seal::Seal {
        supersedes: Some(made.seal_digest),
        sealed_at: time("2026-11-20T06:00:00Z"),
        ..older.clone()
    };
    // The crash between the two copies, either way round.
    let digest = made.write_seal("copy/", &newer, &keys.signer);
    let report = bench.check();
    expect(&report, 0, &["warning (damaged) seal.json: older than its second copy, which supersedes it and is used"]);
    assert_eq!(report.seal.unwrap().digest, digest);
    made.write_seal("", &newer, &keys.signer);
    made.write_seal("copy/", &older, &keys.signer);
    let report = bench.check();
    expect(&report, 0, &["warning (damaged) copy/seal.json: an older seal, superseded by seal.json, which is used"]);
    assert_eq!(report.seal.unwrap().digest, digest);
    // An older valid seal in both places is found only by whoever knows better.
    made.write_seal("", &older, &keys.signer);
    expect(&bench.check(), 0, &[]);
    let said = digest.to_string();
    expect(&bench.check_with(Some(&keys.trust()), &[], Some(&said)), 4, &["expected the seal"]);
    // Two that know nothing of each other.
    let odd = motiongear_manifest::documents::seal::Seal { sealed_at: time("2026-11-20T07:00:00Z"), ..older.clone() };
    made.write_seal("copy/", &odd, &keys.signer);
    expect(&bench.check(), 4, &["neither of which supersedes the other"]);
    let foreign = motiongear_manifest::documents::seal::Seal { shipment: Uuid::from_u128(9), ..older.clone() };
    made.write_seal("copy/", &foreign, &keys.signer);
    expect(&bench.check(), 4, &["two valid seals of different shipments"]);
    // A stranger's superseding seal in the second copy is not valid, hence does not count.
    let stranger = Signer::generate_ed25519("").unwrap();
    made.write_seal("copy/", &newer, &stranger);
    expect(&bench.check(), 0, &["warning (untrusted) copy/seal.json.sig"]);
    // New document, old signature: no pair. The old one still is.
    made.write_seal("copy/", &older, &keys.signer);
    made.write("seal.json", &newer.to_bytes().unwrap());
    expect(&bench.check(), 0, &["warning (untrusted) seal.json.sig", "the second copy is used"]);
}

#[test]
fn second_copies_serve_and_are_said() {
    for (file, at) in [
        ("seal.json", 40),
        ("seal.json.sig", 60),
        ("shipment.json", 40),
        ("shipment.json.sig", 60),
        ("keys/0001.age", 60),
        ("manifest.db.age", 30),
        ("manifest.db.age", 9000),
    ] {
        let bench = Bench::encrypted();
        bench.made.flip(file, at);
        let report = bench.check();
        expect(&report, 0, &["warning", "the second copy"]);
        assert_eq!(report.proven.len(), 5, "{file}");
        bench.made.remove(file);
        expect(&bench.check(), 0, &["warning", "missing", "the second copy"]);
        // A rotten second copy is said while the first is good.
        let bench = Bench::encrypted();
        bench.made.flip(&format!("copy/{file}"), at);
        if file != "shipment.json.sig" {
            expect(&bench.check(), 0, &["warning", "copy/"]);
        }
    }
    // Both gone.
    for (file, code, words) in [
        ("shipment.json", 4, "(untrusted) shipment.json: expected BLAKE3"),
        ("keys/0002.age", 3, "(damaged) keys/0002.age: expected BLAKE3"),
        ("manifest.db.age", 4, "neither copy is what the seal says"),
    ] {
        let bench = Bench::encrypted();
        bench.made.flip(file, 70);
        bench.made.flip(&format!("copy/{file}"), 80);
        expect(&bench.check(), code, &[words]);
    }
    // An envelope that is lost costs the blocks of its process, and no others.
    let bench = Bench::encrypted();
    bench.made.remove("keys/0002.age");
    bench.made.remove("copy/keys/0002.age");
    let report = bench.check();
    expect(
        &report,
        3,
        &[
            "(damaged) keys/0002.age: missing",
            "disk web01/one-block, block 0: Record of disk 3, block 0: expected a good key envelope",
        ],
    );
    assert_eq!(
        report.proven.iter().map(|p| (p.damaged, p.stored + p.zero)).collect::<Vec<_>>(),
        [(0, 5), (0, 1), (1, 0), (0, 0), (0, 2)]
    );
    let bench = Bench::plain();
    bench.made.flip("manifest.db", 70);
    bench.made.flip("copy/manifest.db", 80);
    expect(&bench.check_with(None, &[], None), 4, &["(untrusted) manifest.db: expected"]);
}

#[test]
fn altered_recipients_and_foreign_documents_are_refused() {
    let bench = Bench::encrypted();
    let mut shipment = Shipment::parse(&bench.made.read("shipment.json")).unwrap();
    shipment.recipients = vec![Identity::generate().recipient().to_string()];
    for file in ["shipment.json", "copy/shipment.json"] {
        bench.made.write(file, &shipment.to_bytes().unwrap());
    }
    expect(&bench.check(), 4, &["(untrusted) shipment.json: expected BLAKE3"]);
    // Altered before seeding: the seal pins it, but whoever prepared the array did not sign it.
    let bench = Bench::encrypted();
    let document = shipment.to_bytes().unwrap();
    let mut seal = bench.made.seal.clone();
    seal.pins.insert("shipment.json".into(), motiongear_manifest::tree::Digest::of(&document));
    for prefix in ["", "copy/"] {
        bench.made.write(&format!("{prefix}shipment.json"), &document);
        bench.made.write_seal(prefix, &seal, &bench.keys.signer);
    }
    expect(&bench.check(), 4, &["(untrusted) shipment.json.sig: Signature by SHA256:", "does not match the document"]);
    for file in ["shipment.json.sig", "copy/shipment.json.sig"] {
        bench.made.remove(file);
    }
    expect(&bench.check(), 4, &["(untrusted) shipment.json.sig: missing"]);
    // Whoever prepared the array must be allowed, too.
    let bench = Bench::plain();
    let trust = AllowedSigners::parse(&trust_line(SIGNER, &bench.keys.signer)).unwrap();
    expect(&bench.check_with(Some(&trust), &[], None), 4, &["not for 'li@province'"]);
}

#[test]
fn a_manifest_that_a_hostile_signer_sealed_is_refused() {
    for (sql, words) in [
        ("CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM block; END", "exactly the schema of FORMAT.md"),
        ("CREATE VIEW v AS SELECT 1", "exactly the schema of FORMAT.md"),
        ("ALTER TABLE event ADD COLUMN extra TEXT", "exactly the schema of FORMAT.md"),
        ("PRAGMA user_version = 2", "schema 2 is not supported"),
        ("PRAGMA application_id = 1", "application_id"),
        ("UPDATE block SET offset = -4096 WHERE offset IS NOT NULL", "no negative number"),
        ("UPDATE block SET offset = 9223372036854771712 WHERE offset IS NOT NULL", "page-aligned"),
        ("UPDATE block SET stored = 4294967296 WHERE stored IS NOT NULL", "0 to 4294967295"),
        ("UPDATE generation SET bytes = -1 WHERE disk = 1", "no negative number"),
        ("UPDATE generation SET bytes = 9223372036854775807 WHERE disk = 1", "expected 267144 bytes"),
        ("UPDATE machine SET name = '../etc' WHERE number = 1", "leading '-' or '.'"),
        ("UPDATE machine SET name = 'a/b' WHERE number = 1", "one of / \\ : @ ="),
        ("UPDATE disk SET name = 'a' || char(0) WHERE number = 1", "a control character"),
        ("UPDATE disk SET name = 'a' || char(10) || 'b' WHERE number = 1", "a control character"),
        (
            "WITH RECURSIVE n (i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 170) INSERT INTO machine \
             SELECT i, printf('00000000-0000-0000-0000-%012d', i), 'm' || i, '\"' || hex(zeroblob(500000)) || '\"' FROM n",
            "with 67108864 bytes of text",
        ),
        ("UPDATE disk SET name = 'other' WHERE number = 1", "Disk number 1: expected db01/sda"),
        ("UPDATE pack SET file = '../x.pack' WHERE number = 1", "packs/NNNNNNNN.pack"),
        ("UPDATE pack SET bytes = bytes + 4096 WHERE number = 1", "Pack 1: expected medium 1"),
        ("DELETE FROM pack WHERE number = 2; ", "Pack 2: expected medium 1"),
        ("UPDATE block SET leaf = zeroblob(32) WHERE generation = 1 AND block = 0", "Disk db01/sda, leaves: expected"),
        (
            "INSERT INTO process VALUES (7, 'keys/0007.age', 'h', 't', '2026-11-20T08:00:00Z', NULL, NULL)",
            "64 lower-case hex digits",
        ),
        ("UPDATE process SET envelope = lower(hex(zeroblob(32)))", "Envelope of process 1: expected none as sealed"),
        ("DELETE FROM block WHERE generation = 1 AND block = 2", "a row for block 2"),
        ("UPDATE shipment SET uuid = '00000000-0000-0000-0000-000000000001'", "Shipment: expected"),
        ("UPDATE site SET name = 'otherbank'", "Site: expected nongxin"),
        ("DELETE FROM site", "one row in shipment and site"),
        ("UPDATE shipment SET asset_tag = 'another'", "Preparation: expected label"),
        ("UPDATE medium SET serial = 'another'", "Media: expected 1: "),
        ("UPDATE medium SET uuid = '00000000-0000-0000-0000-000000000001'", "Media: expected 1: "),
        ("INSERT INTO medium VALUES (2, '00000000-0000-0000-0000-000000000002', '')", "Media: expected 1: "),
        ("UPDATE unreadable SET bytes = 400000", "a range within the disk"),
        ("UPDATE unreadable SET offset = offset - 65536", "block 2: expected state 2"),
        ("UPDATE unreadable SET offset = offset - 1024", "block 2: expected state 2"),
        ("DELETE FROM unreadable", "block 3: expected an unreadable range"),
        ("INSERT INTO unreadable SELECT generation, offset + 512, 1024 FROM unreadable", "one that begins at"),
        ("UPDATE shipment SET format = 2", "format 2 is not supported"),
        ("UPDATE shipment SET cipher = 'rot13'", "rot13 is not supported"),
        ("INSERT INTO event VALUES (99, 'yesterday', 'hook', NULL, NULL, '')", "RFC 3339"),
        ("INSERT INTO event VALUES (99, '2026-11-20T08:00:00Z', 'hook', NULL, NULL, char(27))", "a control character"),
        (
            "INSERT INTO event VALUES (99, '2026-11-20T08:00:00Z', 'hook', NULL, NULL, hex(zeroblob(9000)))",
            "at most 16000 bytes",
        ),
        ("UPDATE generation SET finished_at = NULL WHERE id = 1", "the time at which it was finished"),
        ("UPDATE pack SET tree = x'00' WHERE number = 1", "a digest and no tree"),
        (
            "PRAGMA foreign_keys = OFF; INSERT INTO block VALUES (99, 0, zeroblob(32), 0, NULL, NULL, NULL, NULL)",
            "table block: expected rows of",
        ),
        ("PRAGMA foreign_keys = OFF; INSERT INTO unreadable VALUES (99, 0, 1)", "table unreadable: expected rows of"),
        ("PRAGMA foreign_keys = OFF; UPDATE disk SET machine = 99 WHERE number = 1", "a machine that has a row"),
        ("UPDATE block SET offset = 1073741824 WHERE generation = 1 AND block = 0", "expected a record within"),
        (
            "UPDATE block SET offset = (SELECT offset FROM block WHERE generation = 1 AND block = 0) \
             WHERE generation = 1 AND block = 2",
            "a place of its own",
        ),
        (
            "INSERT INTO generation SELECT 99, disk, 7, bytes, consistency, basis, point_in_time, source, started_at, finished_at, digest FROM generation WHERE id = 1",
            "no more generations",
        ),
    ] {
        let bench = Bench::with(Spec { sql, ..Spec::new(false) });
        expect(&bench.check(), 4, &[words]);
        // The medium itself is intact, and that is what a check without trust says.
        expect(&bench.check_with(None, &[], None), 0, &[]);
    }
    // Not even a database.
    let bench = Bench::plain();
    let mut seal = bench.made.seal.clone();
    let nonsense = noise(8192, 3);
    let sums = motiongear_manifest::sums::Sums::of(&nonsense);
    (seal.manifest.bytes, seal.manifest.blake3, seal.manifest.sha256) = (sums.bytes, sums.blake3, sums.sha256);
    let plain = &mut seal.manifest.plain;
    (plain.bytes, plain.blake3, plain.sha256) = (sums.bytes, sums.blake3, sums.sha256);
    for prefix in ["", "copy/"] {
        bench.made.write(&format!("{prefix}manifest.db"), &nonsense);
        bench.made.write_seal(prefix, &seal, &bench.keys.signer);
    }
    expect(&bench.check(), 4, &["not a database"]);
}

#[test]
fn a_seal_that_breaks_the_format_is_refused() {
    // Written as text, as the crate's own writer refuses to.
    let bench = Bench::plain();
    let good = String::from_utf8(bench.made.read("seal.json")).unwrap();
    for (from, to, words) in [
        ("\"format\": 1", "\"format\": 2", "format 2 is not supported; this reader knows format 1"),
        ("\"format\": 1,", "\"format\": 1, \"more\": 1,", "unknown field `more`"),
        ("\"format\": 1,", "\"format\": 1, \"format\": 1,", "duplicate field"),
        (
            "\"pins\": {",
            "\"pins\": {\"shipment.json\": \"0000000000000000000000000000000000000000000000000000000000000000\",",
            "duplicate field in pins",
        ),
        ("\"machine\": \"db01\"", "\"machine\": \"../etc\"", "leading '-' or '.'"),
        ("\"disk\": \"sda\"", "\"disk\": \"a/b\"", "one of / \\ : @ ="),
        ("\"disk\": \"sda\"", "\"disk\": \"a\\u0000\"", "a control character"),
        ("\"disk\": \"sda\"", "\"disk\": \"one-byte\"", "db01/one-byte twice"),
        ("packs/00000001.pack", "packs/../seal.json", "packs/NNNNNNNN.pack"),
        ("packs/00000001.pack", "packs/00000002.pack", "twice"),
        ("\"bytes\": 267144", "\"bytes\": -1", "invalid value"),
        ("\"bytes\": 267144", "\"bytes\": 18446744073709551615", "at most 9223372036854775807 bytes"),
        ("\"bytes\": 267144", "\"bytes\": 1e3", "invalid type"),
        ("\"block_bytes\": 65536", "\"block_bytes\": 65537", "a power of two"),
        ("\"stored\": 3", "\"stored\": 18446744073709551615", "5 blocks"),
        ("\"manifest.db\"", "\"../manifest.db\"", "manifest.db or manifest.db.age"),
        ("\"shipment.json\"", "\"../../etc/passwd\"", "shipment.json"),
        ("}\n", "} x\n", "trailing characters"),
    ] {
        let bytes = match from {
            "}\n" => format!("{good}x").into_bytes(),
            _ => good.replacen(from, to, 1).into_bytes(),
        };
        assert_ne!(bytes, good.as_bytes(), "{from}");
        let signature = bench.keys.signer.sign(&bytes, Namespace::Seal).unwrap();
        for prefix in ["", "copy/"] {
            bench.made.write(&format!("{prefix}seal.json"), &bytes);
            bench.made.write(&format!("{prefix}seal.json.sig"), signature.as_bytes());
        }
        let report = bench.check();
        expect(&report, 4, &[words]);
        assert_eq!(report.findings.list[0].class, Class::Untrusted);
    }
}

/// FORMAT.md: format 1 has one medium, and packs name it.
#[test]
fn a_shipment_has_one_medium_and_its_packs_lie_there() {
    let bench = Bench::plain();
    let mut seal = bench.made.seal.clone();
    seal.packs[0].medium = 2;
    for prefix in ["", "copy/"] {
        bench.made.write_seal(prefix, &seal, &bench.keys.signer);
    }
    expect(
        &bench.check(),
        4,
        &["(untrusted) shipment.json: expected a medium that it lists, found 2 of packs/00000001.pack"],
    );
    let bench = Bench::plain();
    let mut shipment = Shipment::parse(&bench.made.read("shipment.json")).unwrap();
    let second = Medium { number: 2, ..shipment.media[0].clone() };
    shipment.media.push(second);
    assert!(shipment.to_bytes().is_err(), "it was written");
    let document = serde_json::to_vec(&shipment).unwrap();
    let signature = bench.keys.signer.sign(&document, Namespace::Shipment).unwrap();
    let mut seal = bench.made.seal.clone();
    seal.pins.insert("shipment.json".into(), motiongear_manifest::tree::Digest::of(&document));
    for prefix in ["", "copy/"] {
        bench.made.write(&format!("{prefix}shipment.json"), &document);
        bench.made.write(&format!("{prefix}shipment.json.sig"), signature.as_bytes());
        bench.made.write_seal(prefix, &seal, &bench.keys.signer);
    }
    expect(&bench.check(), 4, &["(untrusted) shipment.json: Media in shipment.json: expected exactly one, found 2"]);
}

/// The most packs that a seal may list fit the most bytes that a seal may have.
#[test]
fn a_seal_lists_as_many_packs_as_it_may_and_no_more() {
    let mut seal = Bench::plain().made.seal.clone();
    let pack = SealedPack { bytes: 8 << 30, records: 2 << 20, ..seal.packs[0].clone() };
    let number = |n: usize| SealedPack { file: format!("packs/{n:08}.pack"), ..pack.clone() };
    seal.packs = (1..=MAX_PACKS).map(number).collect();
    let bytes = seal.to_bytes().unwrap();
    assert_eq!(Seal::parse(&bytes).unwrap().packs.len(), MAX_PACKS);
    seal.packs.push(number(MAX_PACKS + 1));
    assert!(seal.to_bytes().unwrap_err().to_string().contains("expected at most 65536, found 65537"));
}

#[test]
fn every_pack_fault_names_disk_and_block() {
    const PACK: &str = "packs/00000001.pack";
    let header_at = |made: &Made, block: u64| {
        let bytes = made.read(PACK);
        let found = (1..bytes.len() / 4096).map(|page| page * 4096).find(|at| {
            Header::decode(&bytes[*at..]).is_ok_and(|header| header.id.disk == 1 && header.id.block == block)
        });
        found.unwrap()
    };
    for encrypted in [false, true] {
        let bench = Bench::with(Spec::new(encrypted));
        let at = header_at(&bench.made, 2);
        bench.made.flip(PACK, at + HEADER_BYTES + 9);
        let report = bench.check_with(None, &[], None);
        expect(&report, 3, &["expected BLAKE3"]);
        let finding = report.findings.list.iter().find(|f| f.block.is_some()).unwrap();
        assert_eq!(
            (finding.disk.as_deref(), finding.block, finding.offset),
            (Some("db01/sda"), Some(2), Some(at as u64))
        );
        assert!(finding.what.starts_with("Record payload: expected CRC-32"), "{finding}");
        assert_eq!(finding.severity, Severity::Error);
        // With everything, the one bad block is named and all others are proven.
        let report = bench.check();
        expect(&report, 3, &[&format!("(damaged) {PACK} at byte {at}, disk db01/sda, block 2: ")]);
        assert_eq!(report.proven.iter().map(|p| p.damaged).sum::<u64>(), 1);
        assert_eq!(report.proven.iter().map(|p| p.stored + p.zero).sum::<u64>(), 8);
    }
    // The header of a record; then the walk goes on behind it.
    let bench = Bench::plain();
    let (first, last) = (header_at(&bench.made, 0), header_at(&bench.made, 4));
    bench.made.flip(PACK, first + 20);
    bench.made.flip(PACK, last + HEADER_BYTES);
    expect(&bench.check_with(None, &[], None), 3, &["Record header: expected CRC-32", "block 4: Record payload"]);
    // Padding, the pack's own header, and its reserved bytes.
    let bench = Bench::plain();
    let at = header_at(&bench.made, 0);
    bench.made.flip(PACK, at + 4095);
    expect(&bench.check_with(None, &[], None), 3, &["block 0: Record padding: expected zeros"]);
    for at in [3, 20, 35, 100, 4000] {
        let bench = Bench::plain();
        bench.made.flip(PACK, at);
        expect(&bench.check_with(None, &[], None), 3, &["Pack header"]);
    }
}

#[test]
fn truncated_missing_extra_and_foreign_packs_are_told_apart() {
    const PACK: &str = "packs/00000002.pack";
    let bench = Bench::plain();
    bench.made.remove(PACK);
    let report = bench.check();
    expect(&report, 3, &["(missing) packs/00000002.pack: the seal lists it", "disk web01/one-block, block 0"]);
    assert_eq!(report.findings.missing, 1);

    for cut in [1, 4096, 5000] {
        let bench = Bench::plain();
        let bytes = bench.made.read(PACK);
        bench.made.write(PACK, &bytes[..bytes.len() - cut]);
        expect(&bench.check(), 3, &["(damaged) packs/00000002.pack: expected", "disk web01/one-block, block 0"]);
    }
    let bench = Bench::plain();
    let bytes = bench.made.read(PACK);
    bench.made.write(PACK, &[&bytes[..], &[0; 4096]].concat());
    expect(&bench.check(), 3, &["(damaged) packs/00000002.pack: expected"]);

    let bench = Bench::plain();
    bench.made.write("packs/00000003.pack", &bytes);
    bench.made.write("packs/notes.txt", b"x");
    let report = bench.check();
    expect(&report, 3, &["(extra) packs/00000003.pack: not in the seal", "(extra) packs/notes.txt"]);
    assert_eq!((report.findings.extra, report.findings.errors()), (2, 2));

    // A pack of another shipment under a sealed name.
    let bench = Bench::plain();
    let other = Bench::with(Spec { shipment: Uuid::from_u128(5), ..Spec::new(false) });
    bench.made.write(PACK, &other.made.read(PACK));
    expect(&bench.check(), 3, &["Pack header: expected shipment 11112222", "Record of another shipment"]);

    // Not a file at all.
    let bench = Bench::plain();
    bench.made.remove(PACK);
    std::os::unix::fs::symlink("/dev/zero", bench.made.root.join(PACK)).unwrap();
    expect(&bench.check(), 3, &["(damaged) packs/00000002.pack: not a regular file"]);
}

/// A folder that is a link leads off the array; the same verdict whichever it is, before anything behind it is read.
#[test]
fn a_link_in_the_place_of_a_folder_refuses_the_array() {
    for folder in ["packs", "keys", "custody", "report", "copy", "copy/keys", ""] {
        let bench = Bench::encrypted();
        let root = bench.made.root.clone();
        let (place, away) =
            (if folder.is_empty() { root } else { root.join(folder) }, bench.made.array.join("elsewhere"));
        fs::rename(&place, &away).unwrap();
        std::os::unix::fs::symlink(&away, &place).unwrap();
        let report = bench.check();
        expect(&report, 4, &["expected a folder, found a link or a file"]);
        assert!(report.seal.is_none() && report.packs.is_none(), "{folder}");
    }
    let bench = Bench::plain();
    fs::remove_dir_all(bench.made.root.join("custody")).unwrap();
    bench.made.write("custody", b"x");
    expect(&bench.check(), 4, &["custody: expected a folder"]);
}

/// A record that no row names counts too: without keys its header is compared with the suite and the pinned envelopes.
#[test]
fn records_of_another_cipher_or_writer_are_seen_without_keys_and_without_rows() {
    const PACK: &str = "packs/00000001.pack";
    let forge = |bench: &Bench, encrypted: bool, process: u32| {
        let mut bytes = bench.made.read(PACK);
        let key = encrypted.then(|| RecordKey::new(&[7; 32]).unwrap());
        let writer = Writer::new(bench.made.seal.shipment, process, key);
        let mut encoder = Encoder::new(Arc::new(writer), None).unwrap();
        let plain = noise(5000, 9);
        let mut out = vec![0; max_record_bytes(5000)];
        let id = RecordId { disk: 4711, generation: 0, block: 0 };
        let encoded = encoder.encode(id, &plain, &mut out).unwrap();
        bytes.extend_from_slice(&out[..encoded.record_bytes]);
        bench.made.write(PACK, &bytes);
        let mut seal = bench.made.seal.clone();
        let pack = seal.packs.iter_mut().find(|pack| pack.file == PACK).unwrap();
        (pack.bytes, pack.records) = (bytes.len() as u64, pack.records + 1);
        pack.blake3 = motiongear_manifest::tree::Digest::of(&bytes);
        for prefix in ["", "copy/"] {
            bench.made.write_seal(prefix, &seal, &bench.keys.signer);
        }
    };
    for (sealed, forged, process, code, words) in [
        (true, false, 1, 4, "it is in clear, and the shipment is encrypted"),
        (false, true, 1, 4, "it is encrypted, and the shipment is not"),
        (true, true, 99, 3, "the seal pins no envelope of it"),
    ] {
        let bench = Bench::with(Spec::new(sealed));
        forge(&bench, forged, process);
        expect(&bench.check_with(None, &[], None), code, &[words]);
    }
    let bench = Bench::encrypted();
    forge(&bench, true, 1);
    expect(&bench.check_with(None, &[], None), 0, &[]);
}

/// Until trust is settled, what a seal may make a reader hold and do is bounded.
#[test]
fn a_seal_pins_a_bounded_number_of_envelopes_and_one_block_size() {
    let bench = Bench::encrypted();
    let mut seal = bench.made.seal.clone();
    let digest = motiongear_manifest::tree::Digest::of(b"x");
    seal.pins.extend((3..20_000).map(|process| (format!("keys/{process:04}.age"), digest)));
    assert!(seal.to_bytes().is_err());
    let bench = Bench::with(Spec {
        edit_seal: Some(|seal| {
            let empty = seal.disks.iter_mut().find(|disk| disk.bytes == 0).unwrap();
            empty.block_bytes *= 2;
        }),
        ..Spec::new(false)
    });
    expect(&bench.check_with(None, &[], None), 4, &["expected the block size of disk web01/empty"]);
}

#[test]
fn swapped_and_forged_records_are_found_by_whoever_has_the_keys() {
    // What an attacker can do who may seal: everything re-hashed, but no key to the records.
    const PACK: &str = "packs/00000001.pack";
    let reseal = |bench: &Bench, pack: &[u8]| {
        bench.made.write(PACK, pack);
        let mut seal = bench.made.seal.clone();
        seal.packs[0].blake3 = motiongear_manifest::tree::Digest::of(pack);
        for prefix in ["", "copy/"] {
            bench.made.write_seal(prefix, &seal, &bench.keys.signer);
        }
    };
    let forge = |bench: &Bench, change: fn(&mut Header)| {
        let mut bytes = bench.made.read(PACK);
        let mut header = Header::decode(&bytes[4096..]).unwrap();
        change(&mut header);
        bytes[4096..4096 + HEADER_BYTES].copy_from_slice(&header.encode());
        reseal(bench, &bytes);
    };
    for change in [
        |h: &mut Header| h.id.block = 2,
        |h: &mut Header| h.id.disk = 2,
        |h: &mut Header| h.id.generation = 1,
        |h: &mut Header| h.shipment = Uuid::from_u128(3),
        |h: &mut Header| h.process = 2,
        |h: &mut Header| h.process = 77,
        |h: &mut Header| h.nonce += 1,
    ] {
        let bench = Bench::encrypted();
        forge(&bench, change);
        let report = bench.check();
        assert!(report.exit_code() >= 3, "{:#?}", report.findings.list);
        let proof = &report.proven[0];
        assert_eq!((proof.damaged, proof.stored, proof.zero), (1, 2, 2), "{:#?}", report.findings.list);
    }
    // A plaintext record in an encrypted shipment: same lengths, codec and place, but no cipher.
    let bench = Bench::encrypted();
    let mut bytes = bench.made.read(PACK);
    let header = Header::decode(&bytes[4096..]).unwrap();
    let payload = vec![7; header.stored_bytes as usize];
    let forged = Header {
        cipher: motiongear_manifest::record::Cipher::None,
        packed_bytes: header.stored_bytes,
        nonce: 0,
        payload_crc: crc32fast::hash(&payload),
        ..header
    };
    bytes[4096..4096 + HEADER_BYTES].copy_from_slice(&forged.encode());
    bytes[4096 + HEADER_BYTES..][..payload.len()].copy_from_slice(&payload);
    reseal(&bench, &bytes);
    expect(&bench.check(), 4, &["it is in clear, and the shipment is encrypted"]);

    // A decompression bomb within a plaintext shipment: the output is bounded by the block.
    let bench = Bench::plain();
    let mut bytes = bench.made.read(PACK);
    let header = Header::decode(&bytes[4096..]).unwrap();
    // One whole frame (RFC 8878, section 3.1.1) as long as the record: blocks of 128 KiB of zeros in four bytes each, then a raw one.
    let stored = header.stored_bytes as usize;
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x58];
    while bomb.len() + 4 + 3 <= stored {
        bomb.extend([0x02, 0x00, 0x10, 0]);
    }
    let raw = stored - bomb.len() - 3;
    bomb.extend([(raw << 3) as u8 | 1, 0, 0]);
    bomb.resize(stored, 0);
    let forged = Header { payload_crc: crc32fast::hash(&bomb), ..header };
    bytes[4096..4096 + HEADER_BYTES].copy_from_slice(&forged.encode());
    bytes[4096 + HEADER_BYTES..][..bomb.len()].copy_from_slice(&bomb);
    reseal(&bench, &bytes);
    // 4, as the manifest that this seal still pins knows another digest of the pack.
    expect(
        &bench.check(),
        4,
        &["(damaged) packs/00000001.pack at byte 4096", "expected 65536 bytes after decompression"],
    );

    // Two whole records exchanged.
    let bench = Bench::plain();
    let bytes = bench.made.read(PACK);
    let (first, second) = (Header::decode(&bytes[4096..]).unwrap(), Header::decode(&bytes[8192..]).unwrap());
    assert_eq!((first.record_bytes(), second.record_bytes()), (4096, 4096));
    reseal(&bench, &[&bytes[..4096], &bytes[8192..12288], &bytes[4096..8192], &bytes[12288..]].concat());
    let report = bench.check();
    expect(&report, 4, &["Pack 1: expected medium 1", "block 0: ", "block 2: "]);
    assert_eq!(report.proven[0].damaged, 2);
}

#[test]
fn a_wrong_identity_is_no_damage() {
    let bench = Bench::encrypted();
    let report = bench.check_with(Some(&bench.keys.trust()), &[Identity::generate()], None);
    expect(&report, 4, &["none of the 1 identities given is one of its recipients"]);
    assert_eq!((report.findings.damaged, report.findings.warnings), (0, 0), "{:#?}", report.findings.list);
    assert!(report.packs.is_none(), "known before 50 TB are read");
    // An envelope of another process under this one's name, sealed by a hostile signer.
    let bench = Bench::encrypted();
    let mut seal = bench.made.seal.clone();
    let other = bench.made.read("keys/0001.age");
    seal.pins.insert("keys/0002.age".into(), motiongear_manifest::tree::Digest::of(&other));
    for prefix in ["", "copy/"] {
        bench.made.write(&format!("{prefix}keys/0002.age"), &other);
        bench.made.write_seal(prefix, &seal, &bench.keys.signer);
    }
    expect(&bench.check(), 4, &["expected process 2, found 1"]);
}

#[test]
fn the_custody_chain_is_followed() {
    let chain = || {
        let bench = Bench::plain();
        let first = add_event(&bench.made, &bench.keys, 1, Event::Dispatched, None);
        add_event(&bench.made, &bench.keys, 2, Event::Received, Some(first));
        bench
    };
    const FIRST: &str = "custody/0001-dispatched.json";
    let bench = chain();
    bench.made.flip(&format!("{FIRST}.sig"), 80);
    expect(
        &bench.check(),
        4,
        &["custody/0001-dispatched.json.sig", "0002-received.json: expected the digests of its predecessor"],
    );
    let bench = chain();
    bench.made.remove(&format!("{FIRST}.sig"));
    expect(&bench.check(), 4, &["custody/0001-dispatched.json: it is not signed"]);
    let bench = chain();
    let text = String::from_utf8(bench.made.read(FIRST)).unwrap().replace("000123", "000124");
    bench.made.write(FIRST, text.as_bytes());
    expect(&bench.check(), 4, &["does not match the document", "expected the digests of its predecessor"]);
    // The first one taken away: a gap is a broken link.
    let bench = chain();
    bench.made.remove(FIRST);
    bench.made.remove(&format!("{FIRST}.sig"));
    expect(&bench.check(), 4, &["(untrusted) custody/0002-received.json: an event before it is missing"]);
    // The leftovers of a crash at the end of the chain: extra, and no part of it.
    let bench = chain();
    bench.made.remove("custody/0002-received.json.sig");
    let report = bench.check();
    expect(&report, 3, &["(extra) custody/0002-received.json: not signed"]);
    assert_eq!(report.custody.len(), 1);
    let bench = chain();
    bench.made.write("custody/.12-0.tmp", b"half a file");
    expect(&bench.check(), 3, &["(extra) custody/.12-0.tmp: no part of the chain"]);
    // A crash leaves no gap, and no signature without its event.
    let bench = chain();
    bench.made.write("custody/0004-dispatched.json", b"{}");
    expect(&bench.check(), 4, &["(untrusted) custody/0004-dispatched.json: an event before it is missing"]);
    let bench = chain();
    bench.made.remove("custody/0002-received.json");
    expect(&bench.check(), 4, &["(untrusted) custody/0002-received.json: missing"]);
    // Out of turn, by hand: a document that no writer of ours makes, signed with a key that is allowed.
    let bench = chain();
    for file in ["0001-dispatched", "0002-received"].map(|name| format!("custody/{name}.json")) {
        bench.made.remove(&file);
        bench.made.remove(&format!("{file}.sig"));
    }
    let signed = |name: &str, text: &str| {
        let signature = bench.keys.signer.sign(text.as_bytes(), Namespace::Custody).unwrap();
        bench.made.write(&format!("custody/{name}"), text.as_bytes());
        bench.made.write(&format!("custody/{name}.sig"), signature.as_bytes());
    };
    let dispatched = String::from_utf8(chain().made.read(FIRST)).unwrap();
    signed("0001-received.json", &dispatched.replace("\"dispatched\"", "\"received\""));
    expect(&bench.check(), 4, &["custody/0001-received.json: Custody event: expected 'dispatched' as number 1"]);
    // Beside the right one: two documents of one number, signed or not.
    signed("0001-dispatched.json", &dispatched);
    expect(&bench.check(), 4, &["(untrusted) custody/0001-received.json: a second event number 1"]);
    bench.made.remove("custody/0001-received.json.sig");
    expect(&bench.check(), 4, &["(untrusted) custody/0001-received.json: a second event number 1"]);
    // A number that no event has.
    let bench = chain();
    bench.made.write("custody/1000-received.json", b"{}");
    expect(&bench.check(), 3, &["(extra) custody/1000-received.json: no part of the chain"]);
    // Names without end.
    for number in 0..10_000 {
        bench.made.write(&format!("custody/{number}"), b"");
    }
    expect(&bench.check(), 4, &["(untrusted) custody: more than 10000 entries"]);
    // Of another shipment, or of a seal that was superseded.
    let bench = Bench::plain();
    let other = Bench::with(Spec { shipment: Uuid::from_u128(5), ..Spec::new(false) });
    add_event(&other.made, &bench.keys, 1, Event::Dispatched, None);
    for file in [FIRST.to_owned(), format!("{FIRST}.sig")] {
        bench.made.write(&file, &other.made.read(&file));
    }
    expect(&bench.check(), 4, &["custody/0001-dispatched.json: expected shipment 11112222"]);
}

#[test]
fn a_check_can_be_stopped() {
    let bench = Bench::plain();
    let work = tempfile::tempdir().unwrap();
    let trust = bench.keys.trust();
    let terms = Terms { trust: Some(&trust), at: Timestamp::now(), expect_seal: None };
    let watch = |_| ControlFlow::Break(());
    let report = check(&bench.made.array, &Options { terms, identities: &[], work: work.path(), watch: &watch });
    assert!(report.interrupted);
    assert_eq!(report.exit_code(), 5);
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
}

#[test]
fn the_program_says_the_same() {
    let bench = Bench::encrypted();
    let dir = tempfile::tempdir().unwrap();
    let (trust, identity) = (dir.path().join("trust"), dir.path().join("id"));
    fs::write(&trust, bench.keys.trust_text()).unwrap();
    fs::write(&identity, bench.keys.identity.to_file("now").as_bytes()).unwrap();
    let run = |more: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_motiongear-verify")).arg(&bench.made.array).args(more).output().unwrap();
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.code().unwrap(), out, err)
    };
    let (trust, identity) = (trust.to_str().unwrap(), identity.to_str().unwrap());
    let (code, out, _) = run(&[]);
    assert!(code == 0 && out.ends_with("RESULT: the medium is good; signer not checked\n"), "{out}");
    let (code, out, _) = run(&["--trust", trust, "--identity", identity]);
    assert!(code == 0 && out.ends_with("RESULT: good\n") && out.contains("Contents of db01/sda: 3 stored"), "{out}");
    let (code, out, _) = run(&["--json", "--trust", trust, "--identity", identity]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, json["findings"]["damaged"].as_u64(), json["seal"]["signer_checked"].as_bool()),
        (0, Some(0), Some(true))
    );
    let (code, _, err) = run(&["--identity", identity]);
    assert!(code == 2 && err.contains("--identity needs --trust"), "{err}");
    for wrong in
        [&["--nonsense"][..], &["--trust"], &["second-array"], &["--verify-time", "yesterday"], &["--json", "--json"]]
    {
        assert_eq!(run(wrong).0, 2, "{wrong:?}");
    }
    assert_eq!(run(&["--trust", "/nonexistent"]).0, 1);
    assert_eq!(
        Command::new(env!("CARGO_BIN_EXE_motiongear-verify")).arg("/nonexistent").output().unwrap().status.code(),
        Some(1)
    );
    assert_eq!(run(&["--trust", identity]).0, 4);
    assert_eq!(run(&["--expect-seal", "00000000"]).0, 4);
    assert_eq!(run(&["--trust", trust, "--verify-time", "2026-11-20T00:00:00Z"]).0, 0);
    bench.made.flip("packs/00000001.pack", 5000);
    let (code, out, _) = run(&[]);
    assert!(code == 3 && out.contains("disk db01/sda, block 0: Record payload"), "{out}");
    let help = Command::new(env!("CARGO_BIN_EXE_motiongear-verify")).arg("--help").output().unwrap();
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().starts_with("motiongear-verify ARRAY"));
}

#[test]
fn strays_are_said() {
    let bench = Bench::encrypted();
    for file in ["manifest.db", "keys/0009.age", "autorun.inf"] {
        bench.made.write(file, b"x");
    }
    let words = ["warning (extra) manifest.db: ", "warning (extra) keys/0009.age: ", "warning (extra) autorun.inf: "];
    expect(&bench.check(), 0, &words);
    // In these two folders nothing may lie. What a desktop leaves is no riddle.
    bench.made.write("packs/.DS_Store", b"x");
    bench.made.write("custody/._x", b"x");
    expect(&bench.check(), 3, &["packs/.DS_Store: not in the seal; a desktop", "custody/._x: no part of the chain"]);
}

/// No bit of an array can flip unnoticed, and none makes the checker stop or panic.
#[test]
fn every_flipped_bit_anywhere_is_noticed() {
    let bench = Bench::encrypted();
    add_event(&bench.made, &bench.keys, 1, Event::Dispatched, None);
    let mut files = Vec::new();
    let mut folders = vec![bench.made.root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match entry.is_dir() {
                true => folders.push(entry),
                false => files.push(entry.strip_prefix(&bench.made.root).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    // The one file that may be missing: the second copy of a signature that is good.
    files.retain(|file| file != "copy/shipment.json.sig");
    files.sort();
    assert!(files.len() > 13, "{files:?}");
    for (number, file) in files.iter().cycle().take(files.len() * 6).enumerate() {
        let good = bench.made.read(file);
        let mut bad = good.clone();
        // Places from a fixed sequence that differs for every file.
        let at = noise(8, number as u32 + 1).iter().fold(0usize, |n, byte| n * 256 + usize::from(*byte)) % good.len();
        bad[at] ^= 1 << (number % 8);
        bench.made.write(file, &bad);
        let findings = bench.check().findings;
        assert!(findings.errors() + findings.warnings > 0, "bit {} of byte {at} of {file}", number % 8);
        bench.made.write(file, &good);
    }
    expect(&bench.check(), 0, &[]);
}
