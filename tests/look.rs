//! Goal: nothing is built on what an earlier process wrote before a look at it. Method: imports that were interrupted, or completed,
//! whose volumes are wiped, swapped, set back or changed in between; the next run refuses them, names them, or mends them.

use crate::common::{Loop, Place, Ran, loop_device, sparse, sql, tool, write_at};
use crate::import::{BLOCK, command, import, raw};
use crate::shipment::{Disk, Made, Recipe, data, make};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// Of each twin: together more than twice what is written between two commits.
const BLOCKS: usize = 450;

/// Two disks of one size, as clones of one template are.
fn twins(blocks: usize) -> [Disk; 2] {
    ["sda", "sdb"].map(|name| {
        let mut bytes = data(blocks * BLOCK, BLOCK, |block| block % 7 == 5);
        if name == "sdb" {
            bytes.chunks_mut(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)).for_each(|block| block[9] ^= 1);
        }
        Disk::new("db01", name, bytes)
    })
}

fn run(place: &Place, made: &Made, to: &[String], extra: &[&str]) -> Ran {
    let to = to.iter().flat_map(|target| ["--to".to_owned(), target.clone()]);
    command(place, made, "import", "auto").args(to).args(extra).run()
}

/// Begins an import and ends it when blocks of both disks are committed.
fn interrupted(place: &Place, made: &Made, to: &[String]) {
    let to = to.iter().flat_map(|target| ["--to".to_owned(), target.clone()]);
    let slow = ["--read-limit", "12MiB"];
    let mut running = command(place, made, "import", "auto").args(to).args(slow).start();
    let ledger = place.join("state/ledger.db");
    let begun = |_: &_| ledger.exists() && marks(place).iter().filter(|mark| **mark > 4).count() == 2;
    assert!(running.until(LIMIT, begun), "{}", running.said());
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 5);
    let open = sql(&ledger, "SELECT count(*) FROM import WHERE phase = 'writing'");
    assert_eq!(open, "2", "it ended before it was interrupted");
}

/// How far each import has come that is being written.
fn marks(place: &Place) -> Vec<u64> {
    let sql = "SELECT mark FROM import WHERE phase = 'writing'";
    let ledger = place.join("state/ledger.db");
    let said = crate::common::try_tool("sqlite3", ["-readonly".as_ref(), ledger.as_os_str(), sql.as_ref()]).stdout;
    said.lines().map(|mark| mark.parse().unwrap()).collect()
}

fn verify(place: &Place, extra: &[&str]) -> Ran {
    crate::common::Motiongear::new(&place.join("state")).args(["--json", "verify", "--volumes"]).args(extra).run()
}

/// Where two volumes are, and what an import calls them.
struct Volumes {
    files: [PathBuf; 2],
    to: Vec<String>,
    _loops: Vec<Loop>,
}

fn volumes(place: &Place, disks: &[Disk; 2], kind: &str) -> Volumes {
    if kind == "dir" {
        let to = vec![format!("dir:{}", place.join("out").display())];
        return Volumes { files: [raw(place, &disks[0]), raw(place, &disks[1])], to, _loops: Vec::new() };
    }
    let files = ["one", "two"].map(|name| place.join(name));
    files.iter().for_each(|file| sparse(file, disks[0].data.len() as u64));
    let loops: Vec<Loop> =
        if kind == "dev" { files.iter().map(|file| loop_device(file)).collect() } else { Vec::new() };
    let at = |at: usize| loops.get(at).map_or(files[at].clone(), |device| device.path().to_owned());
    let to = (0..2).map(|n| format!("dev:db01/{}={}", disks[n].name, at(n).display())).collect();
    Volumes { files: files.clone(), to, _loops: loops }
}

fn copy_into(from: &Path, to: &Path) {
    let arguments = [format!("if={}", from.display()), format!("of={}", to.display())];
    tool("dd", arguments.iter().map(String::as_str).chain(["conv=notrunc,fsync", "bs=1M", "status=none"]));
}

/// Another volume under the old name and ids, a wiped one, an older one: refused before anything is written, for every kind.
#[test]
fn an_import_does_not_go_on_with_a_volume_that_is_another_one_by_now() {
    type Fault = fn(&Place, &Volumes);
    let faults: [(&str, Fault); 3] = [
        ("swapped", |place, volumes| {
            let (aside, [one, two]) = (place.join("aside"), &volumes.files);
            std::fs::copy(one, &aside).unwrap();
            copy_into(two, one);
            copy_into(&aside, two);
        }),
        ("wiped", |_, volumes| {
            let bytes = std::fs::metadata(&volumes.files[1]).unwrap().len().to_string();
            tool("fallocate", ["-z", "-n", "-o", "0", "-l", &bytes, volumes.files[1].to_str().unwrap()]);
        }),
        // As a snapshot of storage from before the import: whatever lay there is there again.
        ("set back", |_, volumes| write_at(&volumes.files[0], 0, &vec![7; 30 * BLOCK])),
    ];
    for kind in ["dir", "dev", "file"] {
        let place = Place::new();
        let disks = twins(BLOCKS);
        let made = make(place.path(), &disks, &Recipe::default());
        let volumes = volumes(&place, &disks, kind);
        interrupted(&place, &made, &volumes.to);
        let before: Vec<Vec<u8>> = volumes.files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        for (name, fault) in faults {
            println!("{kind}, {name}");
            fault(&place, &volumes);
            let hurt: Vec<Vec<u8>> = volumes.files.iter().map(|file| std::fs::read(file).unwrap()).collect();
            assert_eq!(run(&place, &made, &volumes.to, &[]).code, 1);
            for (file, hurt) in volumes.files.iter().zip(&hurt) {
                assert!(std::fs::read(file).unwrap() == *hurt, "{file:?} was written to");
            }
            volumes.files.iter().zip(&before).for_each(|(file, before)| write_at(file, 0, before));
        }
        // The right ones are back.
        let imported = run(&place, &made, &volumes.to, &[]).ok();
        for (disk, outcome) in disks.iter().zip(imported["disks"].as_array().unwrap()) {
            assert!(outcome["resumed_from_block"].as_u64().unwrap() > 4, "{outcome}");
            assert_eq!(outcome["digest"], blake3::hash(&disk.data).to_string());
        }
    }
}

#[test]
fn a_volume_that_is_another_one_is_imported_from_the_beginning_where_that_is_said() {
    let place = Place::new();
    let disks = twins(BLOCKS);
    let made = make(place.path(), &disks, &Recipe::default());
    let volumes = volumes(&place, &disks, "dir");
    interrupted(&place, &made, &volumes.to);
    write_at(&volumes.files[0], BLOCK as u64, &vec![7; 30 * BLOCK]);
    let imported = run(&place, &made, &volumes.to, &["--overwrite"]).ok();
    assert_eq!(imported["disks"][0]["resumed_from_block"], 0);
    for (disk, file) in disks.iter().zip(&volumes.files) {
        assert!(std::fs::read(file).unwrap() == disk.data);
    }
}

fn one(place: &Place) -> (Disk, Made) {
    let disk = Disk::new("db01", "sda", data(90 * BLOCK + 512, BLOCK, |block| block % 7 == 5));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    (disk, made)
}

#[test]
fn a_complete_import_repeated_is_a_record_and_a_look() {
    let place = Place::new();
    let (disk, made) = one(&place);
    let first = import(&place, &made, &[]).ok();
    let again = import(&place, &made, &[]).ok();
    let (first, again) = (&first["disks"][0], &again["disks"][0]);
    assert_eq!((&again["state"], &again["finished_at"]), (&"already-imported".into(), &first["finished_at"]));
    assert_eq!((&again["look"]["verdict"], &first["look"]), (&"as-proven".into(), &Value::Null), "{again}");
    assert!(again["look"]["compared_blocks"].as_u64().unwrap() >= 20, "{again}");
    // Head, tail, first and last data: always looked at.
    for at in [0, disk.data.len() - 1, BLOCK, 88 * BLOCK] {
        let file = raw(&place, &disk);
        write_at(&file, at as u64, &[disk.data[at] ^ 1]);
        assert_eq!(import(&place, &made, &[]).code, 1, "byte {at}");
        write_at(&file, at as u64, &disk.data[at..=at]);
    }
    import(&place, &made, &[]).ok();
    std::fs::remove_file(raw(&place, &disk)).unwrap();
    assert_eq!(import(&place, &made, &[]).code, 1);
}

#[test]
fn what_a_check_found_differing_is_mended_by_the_next_import() {
    let place = Place::new();
    let (disk, made) = one(&place);
    import(&place, &made, &[]).ok();
    let file = raw(&place, &disk);
    // Data, what was zero, and head and tail, which are written last.
    for hurt in [vec![20, 40], vec![0, 90], vec![0, 1, 2, 89, 90]] {
        for block in &hurt {
            write_at(&file, block * BLOCK as u64 + 77, b"rot");
        }
        verify(&place, &[]).code(3);
        let mended = import(&place, &made, &[]).ok();
        let outcome = &mended["disks"][0];
        assert_eq!((&outcome["state"], &outcome["proven"]), (&"imported".into(), &true.into()), "{outcome}");
        assert_eq!((&outcome["re_read"], &outcome["trusted"]), (&91.into(), &0.into()));
        assert!(std::fs::read(&file).unwrap() == disk.data, "{hurt:?}");
        verify(&place, &[]).ok();
        assert_eq!(import(&place, &made, &[]).ok()["disks"][0]["state"], "already-imported");
    }
    // A volume that changes on is not mended block by block.
    write_at(&file, 20 * BLOCK as u64, b"rot");
    verify(&place, &[]).code(3);
    write_at(&file, BLOCK as u64, b"more");
    assert_eq!(import(&place, &made, &[]).code, 1);
    verify(&place, &[]).code(3);
    import(&place, &made, &[]).ok();
    assert!(std::fs::read(&file).unwrap() == disk.data);
}

#[test]
fn a_difference_that_is_accepted_is_no_fault_and_another_one_is() {
    let place = Place::new();
    let (disk, made) = one(&place);
    import(&place, &made, &[]).ok();
    let accept = ["--accept-difference", "db01/sda", "--reason", "booted on Monday"];
    assert_eq!(verify(&place, &accept).code, 1, "no check found anything");
    assert_eq!(verify(&place, &accept[..2]).code, 2, "a reason is needed");
    let file = raw(&place, &disk);
    write_at(&file, 30 * BLOCK as u64, b"written by the machine");
    verify(&place, &[]).code(3);
    let accepted = verify(&place, &accept).ok();
    assert_eq!(accepted["volumes"][0]["reason"], "booted on Monday");
    assert_eq!(verify(&place, &[]).ok()["volumes"][0]["differing_blocks"], serde_json::json!([30]));
    let again = import(&place, &made, &[]).ok();
    assert_eq!(again["disks"][0]["look"]["verdict"], "accepted", "{again}");
    assert!(std::fs::read(&file).unwrap() != disk.data, "nothing is written to what a machine uses");
    write_at(&file, 31 * BLOCK as u64, b"rot");
    verify(&place, &[]).code(3);
}

/// A restored backup of the state directory, or a snapshot of its machine.
#[test]
fn a_ledger_that_is_older_than_its_volume_neither_judges_nor_changes_it() {
    let (place, other) = (Place::new(), Place::new());
    let first = Recipe::default();
    let disk = Disk::new("db01", "sda", data(90 * BLOCK + 512, BLOCK, |block| block % 7 == 5));
    let made = make(place.path(), std::slice::from_ref(&disk), &first);
    import(&place, &made, &[]).ok();
    let (state, backup) = (place.join("state"), place.join("backup"));
    tool("cp", ["-a".as_ref(), state.as_os_str(), backup.as_os_str()]);
    let mut changed = disk.clone();
    changed.data[3 * BLOCK] ^= 1;
    let later = first.sealed_at + jiff::SignedDuration::from_hours(1);
    let second = Recipe { supersedes: Some(made.seal_digest), sealed_at: later, ..first };
    let newer = make(other.path(), std::slice::from_ref(&changed), &second);
    import(&place, &newer, &[]).ok();
    verify(&place, &[]).ok();
    std::fs::rename(&state, place.join("newest")).unwrap();
    tool("cp", ["-a".as_ref(), backup.as_os_str(), state.as_os_str()]);
    verify(&place, &[]).code(4);
    assert_eq!(sql(&state.join("ledger.db"), "SELECT count(*) FROM volume_check"), "0", "it has nothing to say");
    for made in [&made, &newer] {
        assert_eq!(import(&place, made, &[]).code, 4);
    }
    assert!(std::fs::read(raw(&place, &disk)).unwrap() == changed.data);
    // The ledger that knows it, and one that gives up what is there.
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(place.join("newest"), &state).unwrap();
    verify(&place, &[]).ok();
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&backup, &state).unwrap();
    import(&place, &made, &["--overwrite"]).ok();
    verify(&place, &[]).ok();
    assert!(std::fs::read(raw(&place, &disk)).unwrap() == disk.data);
}

#[test]
fn a_complete_disk_is_done_again_where_that_is_asked_for() {
    let place = Place::new();
    let (disk, made) = one(&place);
    import(&place, &made, &[]).ok();
    // Where no look finds it: of 91 blocks about half are compared.
    let hurt: Vec<usize> = (2..88).filter(|block| block % 7 != 5).step_by(9).collect();
    hurt.iter().for_each(|block| write_at(&raw(&place, &disk), (block * BLOCK) as u64 + 77, b"rot"));
    let again = import(&place, &made, &["--overwrite"]).ok();
    let outcome = &again["disks"][0];
    assert_eq!((&outcome["state"], &outcome["re_read"]), (&"imported".into(), &91.into()), "{outcome}");
    assert!(std::fs::read(raw(&place, &disk)).unwrap() == disk.data);
    assert_eq!(import(&place, &made, &[]).ok()["disks"][0]["state"], "already-imported");
}

#[test]
fn what_was_trusted_is_re_read_by_a_whole_check() {
    let place = Place::new();
    let (_, made) = one(&place);
    let trusted = import(&place, &made, &["--readback", "none"]).ok();
    assert_eq!((&trusted["disks"][0]["trusted"], &trusted["disks"][0]["proven"]), (&89.into(), &false.into()));
    verify(&place, &[]).ok();
    let again = import(&place, &made, &["--readback", "none"]).ok();
    assert_eq!((&again["disks"][0]["trusted"], &again["disks"][0]["re_read"]), (&0.into(), &91.into()));
    assert_eq!(again["disks"][0]["proven"], true);
}
