//! Goal: what is wrong with an array is listed, each thing once, with its place; what was not checked is said. Method: arrays
//! made by hand, damaged in one way each, looked at by the real binary with and without keys, with both engines.

use crate::common::{Motiongear, Place, Ran, loop_device, secret, sparse, sql};
use crate::import::{BLOCK, command};
use crate::shipment::{Disk, Made, Recipe, data, make};
use motiongear_manifest::record::{Cipher, Header};
use motiongear_manifest::tree::Digest;
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn disks() -> Vec<Disk> {
    vec![
        Disk::new("db01", "sda", data(60 * BLOCK + 9, BLOCK, |block| block % 7 == 5)),
        Disk::new("db01", "sdb", data(100, BLOCK, |_| false)),
        Disk::new("db02", "sda", vec![0; 70_000]),
        Disk::new("db02", "none", vec![]),
    ]
}

fn made(place: &Place) -> Made {
    make(place.path(), &disks(), &Recipe { records_per_pack: 20, ..Recipe::default() })
}

/// Without any key.
fn bare(place: &Place, made: &Made) -> Ran {
    Motiongear::new(&place.join("state")).args(["--json", "verify"]).arg(&made.array).run()
}

fn errors(report: &Value) -> Vec<&Value> {
    let list = report["findings"]["list"].as_array().unwrap();
    list.iter().filter(|finding| finding["severity"] == "error").collect()
}

#[test]
fn a_good_array_is_good_without_and_with_keys() {
    let place = Place::new();
    let made = made(&place);
    let report = bare(&place, &made).ok();
    assert_eq!(report["seal"]["signer_checked"], false);
    assert_eq!((&report["packs"]["good"], &report["packs"]["sealed"]), (&3.into(), &3.into()));
    assert_eq!((&report["manifest_compared"], &report["proven"]), (&false.into(), &Value::Array(vec![])));
    let text = Motiongear::new(&place.join("state")).arg("verify").arg(&made.array).run();
    assert!(text.stdout.contains("Signer not checked"), "{}", text.stdout);
    for engine in ["uring", "threads"] {
        let report = command(&place, &made, "verify", engine).run().ok();
        assert_eq!((&report["seal"]["signer_checked"], &report["manifest_compared"]), (&true.into(), &true.into()));
        assert_eq!(report["proven"][0]["stored"], 53);
        assert_eq!((&report["proven"][1]["stored"], &report["proven"][2]["zero"]), (&1.into(), &2.into()));
        assert_eq!(report["proven"].as_array().unwrap().len(), 4);
    }
    let ledger = place.join("state/ledger.db");
    assert_eq!(sql(&ledger, "SELECT group_concat(good || with_identity) FROM verification"), "10,10,11,11");
    assert!(!place.join("state/imports").join(made.seal.shipment.to_string()).join("verify").exists());
}

#[test]
fn every_damaged_record_is_named_once_with_its_place() {
    let place = Place::new();
    let made = made(&place);
    let (first, second) = (made.damage(1, 3), made.damage(1, 41));
    let check = |report: &Value| {
        let found = errors(report);
        let records: Vec<&&Value> = found.iter().filter(|finding| finding["block"].is_number()).collect();
        assert_eq!(records.len(), 2, "{found:#?}");
        for (record, place, block) in [(records[0], first, 3), (records[1], second, 41)] {
            assert_eq!((&record["disk"], &record["block"]), (&"db01/sda".into(), &block.into()));
            assert_eq!(
                (&record["object"], &record["offset"]),
                (&format!("packs/{:08}.pack", place.pack).into(), &place.offset.into())
            );
        }
        // And each pack's digest.
        assert_eq!(found.len(), 4, "{found:#?}");
    };
    check(&bare(&place, &made).code(3));
    let report = command(&place, &made, "verify", "auto").run().code(3);
    check(&report);
    assert_eq!((&report["proven"][0]["damaged"], &report["proven"][0]["stored"]), (&2.into(), &51.into()));
    assert_eq!(sql(&place.join("state/ledger.db"), "SELECT sum(good) FROM verification"), "0");
}

#[test]
fn missing_short_and_foreign_packs_are_named() {
    let place = Place::new();
    let made = made(&place);
    std::fs::remove_file(made.pack(1)).unwrap();
    let whole = std::fs::read(made.pack(2)).unwrap();
    std::fs::write(made.pack(2), &whole[..whole.len() - 100]).unwrap();
    std::fs::write(made.array.join("motiongear/packs/00000009.pack"), b"foreign").unwrap();
    let report = bare(&place, &made).code(3);
    let found = errors(&report);
    let about = |object: &str, class: &str| found.iter().any(|f| f["object"] == object && f["class"] == class);
    assert!(about("packs/00000001.pack", "missing"), "{found:#?}");
    assert!(about("packs/00000002.pack", "damaged"), "{found:#?}");
    assert!(about("packs/00000009.pack", "extra"), "{found:#?}");
    // A link is no pack, wherever it leads, and nothing that rots makes one.
    std::fs::remove_file(made.pack(2)).unwrap();
    std::fs::write(place.join("elsewhere"), &whole).unwrap();
    std::os::unix::fs::symlink(place.join("elsewhere"), made.pack(2)).unwrap();
    let report = bare(&place, &made).code(4);
    assert!(
        errors(&report).iter().any(|f| f["object"] == "packs/00000002.pack" && f["class"] == "untrusted"),
        "{report}"
    );
}

#[test]
fn a_flipped_bit_under_a_mended_checksum_is_found_with_keys() {
    use std::os::unix::fs::FileExt;
    let place = Place::new();
    let made = make(place.path(), &disks(), &Recipe { encrypted: false, codec: None, ..Recipe::default() });
    let at = made.places[&(1, 2)];
    let file = std::fs::File::options().read(true).write(true).open(made.pack(at.pack)).unwrap();
    let mut record = vec![0; 128 + at.stored_bytes as usize];
    file.read_exact_at(&mut record, at.offset).unwrap();
    record[128 + 777] ^= 1;
    let crc = crc32fast::hash(&record[128..]);
    record[80..84].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32fast::hash(&record[..124]);
    record[124..128].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&record, at.offset).unwrap();
    let report = command(&place, &made, "verify", "auto").run().code(3);
    let found = errors(&report);
    assert!(found.iter().any(|f| f["what"].as_str().unwrap().contains("BLAKE3")), "{found:#?}");
    assert!(found.iter().any(|f| f["block"] == 2 && f["what"].as_str().unwrap().contains("leaf")), "{found:#?}");
}

/// With everything, by the engine and by the stand-alone checker, which must list the same faults and end alike.
fn judged(place: &Place, made: &Made, code: i32) -> Vec<(String, String, Option<u64>)> {
    let faults = |report: &Value| -> Vec<(String, String, Option<u64>)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let found = errors(report).into_iter().map(|f| (text(&f["class"]), text(&f["object"]), f["block"].as_u64()));
        found.collect()
    };
    let checker = Path::new(env!("CARGO_BIN_EXE_motiongear")).with_file_name("motiongear-verify");
    let mut alone = Command::new(checker);
    alone.arg(&made.array).arg("--trust").arg(&made.trust).arg("--identity").arg(&made.identity).arg("--json");
    let alone = alone.output().unwrap();
    let ours = faults(&command(place, made, "verify", "auto").run().code(code));
    assert_eq!(alone.status.code(), Some(code), "{}", String::from_utf8_lossy(&alone.stdout));
    assert_eq!(ours, faults(&serde_json::from_slice(&alone.stdout).unwrap()));
    ours
}

#[test]
fn a_plaintext_record_in_an_encrypted_shipment_is_not_trusted_and_never_used() {
    use std::os::unix::fs::FileExt;
    let place = Place::new();
    let made = made(&place);
    let at = made.places[&(1, 2)];
    let file = std::fs::File::options().read(true).write(true).open(made.pack(at.pack)).unwrap();
    let mut record = vec![0; 128 + at.stored_bytes as usize];
    file.read_exact_at(&mut record, at.offset).unwrap();
    // The same place, lengths and codec, and every checksum right.
    let payload = data(at.stored_bytes as usize, BLOCK, |_| false);
    let header = Header::decode(&record).unwrap();
    let payload_crc = crc32fast::hash(&payload);
    let forged = Header { cipher: Cipher::None, packed_bytes: at.stored_bytes, nonce: 0, payload_crc, ..header };
    file.write_all_at(&[&forged.encode()[..], &payload].concat(), at.offset).unwrap();
    let pack = format!("packs/{:08}.pack", at.pack);
    let found = judged(&place, &made, 4);
    assert_eq!(found, [("untrusted".into(), pack.clone(), Some(2)), ("damaged".into(), pack, None)]);
    let outcome = crate::import::import(&place, &made, &[]).code(3);
    let listed = &outcome["disks"][0]["damaged_blocks"];
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["block"]), (1, &2.into()), "{listed}");
    let volume = std::fs::read(crate::import::raw(&place, &disks()[0])).unwrap();
    assert!(volume[2 * BLOCK..3 * BLOCK].iter().all(|byte| *byte == 0), "it reached the volume");
}

#[test]
fn another_digest_of_a_disk_of_one_block_is_not_trusted() {
    let place = Place::new();
    let disks = [Disk { digest: Some(Digest::of(b"something else")), ..disks().remove(1) }];
    let made = make(place.path(), &disks, &Recipe::default());
    assert_eq!(judged(&place, &made, 4), [("untrusted".to_owned(), "disk db01/sdb".to_owned(), None)]);
}

#[test]
fn nobody_unknown_is_trusted() {
    let (place, other) = (Place::new(), Place::new());
    let (made, stranger) = (made(&place), self::made(&other));
    let run = |trust: &std::path::Path| {
        Motiongear::new(&place.join("state"))
            .args(["--json", "verify"])
            .arg(&made.array)
            .args(["--trust".as_ref(), trust.as_os_str()])
            .run()
    };
    assert_eq!(run(&stranger.trust).code(4)["seal"], Value::Null);
    let report = run(&made.trust).ok();
    assert_eq!((&report["seal"]["signer_checked"], &report["manifest_compared"]), (&true.into(), &false.into()));
    std::fs::remove_file(made.array.join("motiongear/seal.json.sig")).unwrap();
    std::fs::remove_file(made.array.join("motiongear/copy/seal.json.sig")).unwrap();
    assert_eq!(bare(&place, &made).code, 4);
}

#[test]
fn volumes_are_read_again_long_after_the_array_and_every_change_is_found() {
    let place = Place::new();
    let disks = [
        Disk::new("db01", "sda", data(300 * BLOCK + 512, BLOCK, |block| block % 3 == 1)),
        Disk::new("db01", "small", data(1000, BLOCK, |_| false)),
        Disk::new("db01", "loop", data(100 * BLOCK, BLOCK, |block| block > 50)),
        Disk::new("db01", "none", vec![]),
    ];
    let made = make(place.path(), &disks, &Recipe::default());
    let backing = place.join("volume");
    sparse(&backing, 130 * BLOCK as u64);
    let device = loop_device(&backing);
    crate::import::import(&place, &made, &["--disk", "db01/sda"]).ok();
    crate::import::import(&place, &made, &["--disk", "db01/small"]).ok();
    crate::import::import(&place, &made, &["--disk", "db01/none"]).ok();
    let to = format!("dev:db01/loop={}", device.path().display());
    command(&place, &made, "import", "auto").args(["--to", &to]).run().ok();
    std::fs::remove_dir_all(&made.array).unwrap();
    let verify = |extra: &[&str]| {
        Motiongear::new(&place.join("state")).args(["--json", "verify", "--volumes"]).args(extra).run()
    };
    let good = verify(&[]).ok();
    let volumes = good["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 4);
    for volume in volumes {
        let disk = disks.iter().find(|disk| volume["name"] == format!("db01/{}", disk.name)).unwrap();
        assert_eq!(volume["found"], blake3::hash(&disk.data).to_string(), "{volume}");
    }
    assert_eq!(verify(&["--disk", "small"]).ok()["volumes"].as_array().unwrap().len(), 1);
    verify(&["--disk", "sdz"]).refused(2, &["expected a volume whose import is complete"]);
    // A byte of data, one where zeros are, one of the only block of a small disk, and one behind the disk, which is nobody's.
    let raw = |disk: &Disk| crate::import::raw(&place, disk);
    let flip = |file: &Path, at: u64| {
        let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        file.sync_all().unwrap();
    };
    flip(device.path(), 120 * BLOCK as u64);
    verify(&[]).ok();
    flip(&raw(&disks[0]), 5 * BLOCK as u64 + 77);
    flip(&raw(&disks[0]), 100 * BLOCK as u64);
    flip(&raw(&disks[1]), 999);
    flip(device.path(), 99 * BLOCK as u64);
    let bad = verify(&[]).code(3);
    let of =
        |name: &str| bad["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).unwrap().clone();
    assert_eq!(of("db01/sda")["differing_blocks"], serde_json::json!([5, 100]));
    assert_ne!(of("db01/small")["found"], of("db01/small")["expected"]);
    assert_eq!(of("db01/loop")["differing_blocks"], serde_json::json!([99]));
    assert_eq!(of("db01/none")["found"], of("db01/none")["expected"]);
    std::fs::remove_file(raw(&disks[0])).unwrap();
    let gone = verify(&["--disk", "sda"]).code(3);
    assert!(gone["volumes"][0]["why"].as_str().unwrap().contains("sda.raw"), "{gone}");
}

/// What can be told in a moment is not told after 50 TB: an identity that is no recipient's, an array that this user may not read
/// or that is not sealed, a folder that is a link.
#[test]
fn what_stops_a_check_is_said_before_the_packs_are_read() {
    let place = Place::new();
    let made = make(place.path(), &disks(), &Recipe { encrypted: true, ..Recipe::default() });
    let report = command(&place, &made, "verify", "auto").run().ok();
    assert_eq!(
        (&report["seal"]["plaintext"], report["seal"]["recipients"].as_array().unwrap().len()),
        (&false.into(), 1)
    );
    let wrong = place.join("wrong.age");
    let another = motiongear_manifest::envelope::Identity::generate();
    secret(&wrong, another.to_file("2026-11-20T00:00:00Z").as_bytes());
    let both = |code: i32, identity: &Path| {
        let words = [made.trust.as_os_str(), "--identity".as_ref(), identity.as_os_str()];
        let ours = Motiongear::new(&place.join("state"))
            .args(["--json", "verify"])
            .arg(&made.array)
            .arg("--trust")
            .args(words)
            .run();
        let checker = Path::new(env!("CARGO_BIN_EXE_motiongear")).with_file_name("motiongear-verify");
        let alone = Command::new(checker).arg(&made.array).arg("--trust").args(words).arg("--json").output().unwrap();
        assert_eq!((ours.code, alone.status.code()), (code, Some(code)), "{}", ours.stderr);
        let alone: Value = serde_json::from_slice(&alone.stdout).unwrap();
        assert!(alone["packs"].is_null(), "{alone:#}");
    };
    both(4, &wrong);
    let packs = made.array.join("motiongear/packs");
    std::fs::rename(&packs, place.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(place.join("elsewhere"), &packs).unwrap();
    both(4, &made.identity);
    std::fs::remove_file(&packs).unwrap();
    std::fs::rename(place.join("elsewhere"), &packs).unwrap();
    for file in ["seal.json", "seal.json.sig", "copy/seal.json", "copy/seal.json.sig"] {
        std::fs::remove_file(made.array.join("motiongear").join(file)).unwrap();
    }
    both(1, &made.identity);
}
