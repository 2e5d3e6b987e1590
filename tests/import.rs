//! Goal: what is imported is what was sealed, or it is said, and nothing else is ever touched. Method: arrays made by hand
//! (`shipment`), imported by the real binary with both engines into raw files and loop devices; killed, damaged, refused.

use crate::common::{
    Loop, LoopArray, Motiongear, Mount, Place, Ran, loop_device, sparse, sql, sql_after_crash, tool, try_tool,
};
use crate::shipment::{Disk, Made, Recipe, data, make};
use motiongear_manifest::code::spoken_code;
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const BLOCK: usize = 65536;

/// `motiongear --json --engine ENGINE VERB ARRAY …keys…`.
pub fn command(place: &Place, made: &Made, verb: &str, engine: &str) -> Motiongear {
    command_with(&place.join("state"), made, verb, engine)
}

/// As [`command`], with another ledger.
pub fn command_with(state: &Path, made: &Made, verb: &str, engine: &str) -> Motiongear {
    Motiongear::new(state)
        .args(["--json", "--engine", engine, verb])
        .arg(&made.array)
        .arg("--trust")
        .arg(&made.trust)
        .arg("--identity")
        .arg(&made.identity)
}

fn to_dir(place: &Place) -> String {
    format!("dir:{}", place.join("out").display())
}

pub fn import(place: &Place, made: &Made, extra: &[&str]) -> Ran {
    command(place, made, "import", "auto").arg("--to").arg(to_dir(place)).args(extra).run()
}

fn import_to(place: &Place, made: &Made, targets: &[String], extra: &[&str]) -> Ran {
    let to = targets.iter().flat_map(|target| ["--to".to_owned(), target.clone()]);
    command(place, made, "import", "auto").args(to).args(extra).run()
}

pub fn raw(place: &Place, disk: &Disk) -> PathBuf {
    place.join("out/farbank").join(disk.machine).join(format!("{}.raw", disk.name))
}

#[track_caller]
fn check_equal(place: &Place, disk: &Disk, outcome: &Value) {
    assert!(std::fs::read(raw(place, disk)).unwrap() == disk.data, "{}/{} differs", disk.machine, disk.name);
    assert_eq!(outcome["digest"], outcome["sealed_digest"]);
    assert_eq!(outcome["proven"], true, "{outcome}");
    assert_eq!((&outcome["trusted"], &outcome["damaged"]), (&Value::from(0), &Value::from(0)));
    let blocks = disk.data.len().div_ceil(outcome["block_bytes"].as_u64().unwrap() as usize);
    assert_eq!(outcome["re_read"], blocks);
}

fn odd_disks() -> Vec<Disk> {
    let sizes = [0, 1, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 512, 40 * BLOCK + 7];
    let names = ["d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9"];
    let mut disks: Vec<Disk> = sizes
        .iter()
        .zip(names)
        .map(|(size, name)| Disk::new("db01", name, data(*size, BLOCK, |block| block % 5 == 3)))
        .collect();
    disks.push(Disk::new("db02", "zero", vec![0; 9 * BLOCK + 100]));
    disks.push(Disk::new("db02", "sda", data(700 * BLOCK, BLOCK, |block| (100..400).contains(&block))));
    disks
}

fn one_disk(blocks: usize) -> Disk {
    Disk::new("db01", "sda", data(blocks * BLOCK + 512, BLOCK, |block| block % 7 == 5))
}

#[test]
fn disks_of_all_sizes_come_out_byte_for_byte_with_both_engines() {
    for (engine, encrypted) in [("uring", true), ("threads", false)] {
        let place = Place::new();
        let disks = odd_disks();
        let made = make(place.path(), &disks, &Recipe { encrypted, records_per_pack: 50, ..Recipe::default() });
        let run = || command(&place, &made, "import", engine).arg("--to").arg(to_dir(&place)).run();
        let imported = run().ok();
        for (disk, outcome) in disks.iter().zip(imported["disks"].as_array().unwrap()) {
            assert_eq!(outcome["state"], "imported");
            check_equal(&place, disk, outcome);
        }
        assert!(imported["disks"][11]["holes"].as_u64().unwrap() >= 290, "{}", imported["disks"][11]);
        let again = run().ok();
        for disk in again["disks"].as_array().unwrap() {
            assert_eq!((&disk["state"], &disk["written_bytes"]), (&Value::from("already-imported"), &Value::from(0)));
        }
    }
}

#[test]
fn large_blocks_and_many_disks_stay_within_memory() {
    let place = Place::new();
    let big = 16 << 20;
    let disks: Vec<Disk> =
        ["a", "b", "c"].map(|name| Disk::new("db01", name, data(5 * big + 5, big, |b| b == 2))).into();
    let made = make(place.path(), &disks, &Recipe { block_bytes: big as u32, codec: None, ..Recipe::default() });
    let mut running = command(&place, &made, "import", "uring").arg("--to").arg(to_dir(&place)).start();
    let status = format!("/proc/{}/status", running.pid());
    let mut peak = 0u64;
    running.until(Duration::from_secs(120), |_| {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let high = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        peak = peak.max(high.trim().trim_end_matches(" kB").parse().unwrap_or(0));
        false
    });
    let imported = running.wait().ok();
    for (disk, outcome) in disks.iter().zip(imported["disks"].as_array().unwrap()) {
        check_equal(&place, disk, outcome);
    }
    assert!(peak > 0 && peak < 200 << 10, "{peak} KiB resident at most");
}

#[test]
fn a_damaged_block_is_never_written_and_is_repaired_when_it_can_be_read() {
    let place = Place::new();
    let disks = [one_disk(60), Disk::new("db01", "sdb", data(9 * BLOCK, BLOCK, |_| false))];
    let made = make(place.path(), &disks, &Recipe::default());
    let hurt = made.damage(1, 20);
    made.damage(1, 60);
    let outcome = import(&place, &made, &[]).code(3);
    let (first, second) = (&outcome["disks"][0], &outcome["disks"][1]);
    assert_eq!((&first["state"], &first["damaged"], &first["digest"]), (&"damaged".into(), &2.into(), &Value::Null));
    let listed = &first["damaged_blocks"][0];
    assert_eq!((&listed["block"], &listed["offset"]), (&20.into(), &(20 * BLOCK).into()));
    assert_eq!((&listed["file"], &listed["file_offset"]), (&"packs/00000001.pack".into(), &hurt.offset.into()));
    assert!(listed["why"].as_str().unwrap().contains("CRC-32"), "{listed}");
    check_equal(&place, &disks[1], second);
    // Head, tail and the damaged block are zeros; all else is there.
    let found = std::fs::read(raw(&place, &disks[0])).unwrap();
    for (block, (found, wanted)) in found.chunks(BLOCK).zip(disks[0].data.chunks(BLOCK)).enumerate() {
        match block {
            0 | 20 | 60 => assert!(found.iter().all(|byte| *byte == 0), "block {block}"),
            _ => assert!(found == wanted, "block {block}"),
        }
    }
    // Still damaged: the same again, nothing else is copied.
    let again = import(&place, &made, &[]).code(3);
    assert_eq!((&again["disks"][0]["damaged"], &again["disks"][0]["written_bytes"]), (&2.into(), &0.into()));
    assert_eq!(again["disks"][1]["state"], "already-imported");
    // One comes back: only that one is redone.
    made.damage(1, 20);
    let better = import(&place, &made, &[]).code(3);
    assert_eq!((&better["disks"][0]["damaged"], &better["disks"][0]["written_bytes"]), (&1.into(), &BLOCK.into()));
    made.damage(1, 60);
    let whole = import(&place, &made, &[]).ok();
    assert_eq!(whole["disks"][0]["state"], "imported");
    check_equal(&place, &disks[0], &whole["disks"][0]);
}

#[test]
fn missing_and_short_packs_stop_everything_before_a_byte_is_written() {
    let place = Place::new();
    let disk = one_disk(60);
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe { records_per_pack: 10, ..Recipe::default() });
    let pack = made.pack(3);
    let kept = std::fs::read(&pack).unwrap();
    std::fs::write(&pack, &kept[..kept.len() - 4096]).unwrap();
    import(&place, &made, &[]).refused(1, &["00000003.pack", "expected a file of", "next:"]);
    std::fs::remove_file(&pack).unwrap();
    import(&place, &made, &[]).refused(1, &["00000003.pack"]);
    assert!(!place.join("out").exists());
    let outcome = import(&place, &made, &["--accept-missing-packs"]).code(3);
    assert_eq!((&outcome["disks"][0]["damaged"], &outcome["disks"][0]["state"]), (&10.into(), &"damaged".into()));
    std::fs::write(&pack, &kept).unwrap();
    check_equal(&place, &disk, &import(&place, &made, &[]).ok()["disks"][0]);
}

#[test]
fn killed_at_random_moments_it_resumes_and_copies_at_most_64_mib_again() {
    let place = Place::new();
    let block = 1 << 20;
    let blocks = 420usize;
    let disks = [
        Disk::new("db01", "sda", data(blocks * block + 4096, block, |b| (50..80).contains(&b))),
        Disk::new("db01", "sdb", data(100 * block, block, |b| b % 9 == 1)),
    ];
    let made =
        make(place.path(), &disks, &Recipe { block_bytes: block as u32, records_per_pack: 200, ..Recipe::default() });
    let ledger = place.join("state/ledger.db");
    // The cache of zero leaves stays: a second of hashing, once a host, would eat the time in which there is something to kill.
    let begin_anew = || {
        for part in ["out", "state/volumes", "state/imports", "state/jobs"] {
            let _ = std::fs::remove_dir_all(place.join(part));
        }
        for part in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(place.join(format!("state/ledger.db{part}")));
        }
    };
    let since = std::time::Instant::now();
    import(&place, &made, &[]).ok();
    begin_anew();
    let since_warm = std::time::Instant::now();
    import(&place, &made, &[]).ok();
    let longest = (since_warm.elapsed() * 11 / 10).min(since.elapsed()).as_micros() as u64;
    begin_anew();
    let mut random = 0x9e37_79b9_u64;
    let mut killed = 0;
    let mut resumed = 0;
    // Until 30 kills have hit a running import; each time it had finished before, everything is begun anew.
    while killed < 30 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let engine = if killed % 2 == 0 { "uring" } else { "threads" };
        let running = command(&place, &made, "import", engine).arg("--to").arg(to_dir(&place)).start();
        std::thread::sleep(Duration::from_micros((random >> 20) % longest));
        let ran = running.kill();
        if ran.code == 0 {
            for (disk, outcome) in disks.iter().zip(ran.ok()["disks"].as_array().unwrap()) {
                check_equal(&place, disk, outcome);
            }
            begin_anew();
            continue;
        }
        assert_eq!(ran.code, -9, "{ran:?}");
        killed += 1;
        // Killed before the ledger was there, or before it had tables.
        if !ledger.exists()
            || sql_after_crash(&ledger, "SELECT count(*) FROM sqlite_schema WHERE name = 'import'") == "0"
        {
            continue;
        }
        let mut ahead = 0;
        for disk in &disks {
            let query = format!("SELECT mark FROM import WHERE disk = '{}' AND phase = 'writing'", disk.uuid);
            let Ok(mark) = sql_after_crash(&ledger, &query).parse::<u64>() else { continue };
            resumed += u64::from(mark > 0);
            // All below the mark is there, all above it is what would be copied again.
            let found = std::fs::read(raw(&place, disk)).unwrap();
            let last = disk.data.len().div_ceil(block) - 1;
            let both = found.chunks(block).zip(disk.data.chunks(block)).enumerate();
            for (number, (found, wanted)) in both.filter(|(number, _)| (1..last).contains(number)) {
                if (number as u64) < mark {
                    assert!(found == wanted, "block {number} of {} below mark {mark}", disk.name);
                } else if found.iter().any(|byte| *byte != 0) {
                    ahead += found.len();
                }
            }
            assert!(found[..block].iter().all(|byte| *byte == 0), "the head of {} is withheld", disk.name);
        }
        assert!(ahead <= 64 << 20, "{ahead} bytes would be copied again");
    }
    assert!(resumed >= 3, "only {resumed} kills hit the middle of the copy");
    let imported = import(&place, &made, &[]).ok();
    for (disk, outcome) in disks.iter().zip(imported["disks"].as_array().unwrap()) {
        assert!(std::fs::read(raw(&place, disk)).unwrap() == disk.data);
        assert_eq!(outcome["digest"], outcome["sealed_digest"]);
        assert_eq!(outcome["proven"], true);
    }
}

#[test]
fn an_interruption_is_no_failure() {
    let place = Place::new();
    let disk = one_disk(600);
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let slow = ["--read-limit", "4MiB"];
    let mut running = command(&place, &made, "import", "auto").arg("--to").arg(to_dir(&place)).args(slow).start();
    let file = raw(&place, &disk);
    running.until(Duration::from_secs(20), |_| file.exists());
    std::thread::sleep(Duration::from_millis(700));
    running.signal(libc::SIGTERM);
    let ran = running.wait();
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(std::fs::read(&file).unwrap()[..BLOCK].iter().all(|byte| *byte == 0), "the head is withheld");
    check_equal(&place, &disk, &import(&place, &made, &[]).ok()["disks"][0]);
}

#[test]
fn unreadable_sectors_hold_the_head_back_until_they_are_accepted() {
    let place = Place::new();
    let mut disk = one_disk(40);
    disk.data[12 * BLOCK..13 * BLOCK].fill(0);
    disk.data[30 * BLOCK..30 * BLOCK + 4096].fill(0);
    disk.unreadable = vec![12, 30];
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let held = import(&place, &made, &[]).code(3);
    assert_eq!((&held["disks"][0]["state"], &held["disks"][0]["digest"]), (&"unreadable".into(), &Value::Null));
    assert_eq!(held["disks"][0]["unreadable_ranges"][1]["offset"], 30 * BLOCK);
    assert!(std::fs::read(raw(&place, &disk)).unwrap()[..BLOCK].iter().all(|byte| *byte == 0));
    let released = import(&place, &made, &["--accept-unreadable"]).code(3);
    assert_eq!(released["disks"][0]["accepted_unreadable"], true);
    check_equal(&place, &disk, &released["disks"][0]);
}

#[test]
fn what_was_trusted_is_said() {
    let place = Place::new();
    let disk = Disk::new("db01", "sda", data(900 * BLOCK, BLOCK, |_| false));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let none = import(&place, &made, &["--readback", "none"]).ok();
    let outcome = &none["disks"][0];
    assert_eq!((&outcome["re_read"], &outcome["trusted"], &outcome["proven"]), (&2.into(), &898.into(), &false.into()));
    assert_eq!(outcome["digest"], outcome["sealed_digest"]);
    let place = Place::new();
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let sample = import(&place, &made, &["--readback", "sample"]).ok();
    let (read, trusted) =
        (sample["disks"][0]["re_read"].as_u64().unwrap(), sample["disks"][0]["trusted"].as_u64().unwrap());
    assert_eq!(read + trusted, 900);
    assert!((30..90).contains(&read), "{read}");
}

/// A volume that does not keep what was written to it: the ledger is set back to before the read-back, and the file changed.
#[test]
fn read_back_finds_what_the_volume_lost() {
    let place = Place::new();
    let disk = one_disk(50);
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    import(&place, &made, &[]).ok();
    let ledger = place.join("state/ledger.db");
    tool("sqlite3", [ledger.to_str().unwrap(), "UPDATE import SET phase = 'written', digest = NULL"]);
    let file = std::fs::File::options().write(true).open(raw(&place, &disk)).unwrap();
    file.write_all_at(&[0x55; 10], 17 * BLOCK as u64 + 100).unwrap();
    // Where the look at the volume happens to see it, nothing is gone on with; else the read-back finds it.
    let lost = import(&place, &made, &[]);
    if lost.code == 1 {
        check_equal(&place, &disk, &import(&place, &made, &["--overwrite"]).ok()["disks"][0]);
        return;
    }
    let lost = lost.code(3);
    let outcome = &lost["disks"][0];
    assert_eq!((&outcome["state"], &outcome["damaged_blocks"][0]["block"]), (&"damaged".into(), &17.into()));
    assert!(outcome["damaged_blocks"][0]["why"].as_str().unwrap().starts_with("read-back"), "{outcome}");
    check_equal(&place, &disk, &import(&place, &made, &[]).ok()["disks"][0]);
}

#[test]
fn nothing_is_written_by_a_dry_run_and_selections_are_kept() {
    let place = Place::new();
    let disks = [one_disk(5), Disk::new("db02", "sda", data(3 * BLOCK, BLOCK, |_| false))];
    let made = make(place.path(), &disks, &Recipe::default());
    let plan = import(&place, &made, &["--dry-run"]).ok();
    assert_eq!((&plan["disks"][0]["what"], plan["disks"].as_array().unwrap().len()), (&"create".into(), 2));
    assert!(!place.join("out").exists());
    import(&place, &made, &["--disk", "sdz"]).refused(2, &["expected a disk of the shipment"]);
    let one = import(&place, &made, &["--disk", "db02/sda"]).ok();
    assert_eq!(one["disks"].as_array().unwrap().len(), 1);
    assert!(raw(&place, &disks[1]).exists() && !raw(&place, &disks[0]).exists());
    let other = import(&place, &made, &["--machine", "db01"]).ok();
    check_equal(&place, &disks[0], &other["disks"][0]);
}

#[test]
fn seals_that_were_superseded_are_refused() {
    let disk = one_disk(8);
    let (old, new, stranger) = (Place::new(), Place::new(), Place::new());
    let first = Recipe::default();
    let made_old = make(old.path(), std::slice::from_ref(&disk), &first);
    let later = "2026-11-02T08:00:00Z".parse().unwrap();
    let second = Recipe { supersedes: Some(made_old.seal_digest), sealed_at: later, ..first.clone() };
    let mut changed = disk.clone();
    changed.data[3 * BLOCK] ^= 1;
    let made_new = make(new.path(), std::slice::from_ref(&changed), &second);
    let made_stranger = make(stranger.path(), std::slice::from_ref(&disk), &first);
    // The second seal takes the place of the first, in the same volume.
    import(&old, &made_old, &[]).ok();
    let superseding = import(&old, &made_new, &[]).ok();
    check_equal(&old, &changed, &superseding["disks"][0]);
    assert!(superseding["notes"].to_string().contains("supersedes"), "{}", superseding["notes"]);
    import(&old, &made_old, &[])
        .refused(4, &[&spoken_code(&made_new.seal_digest), "superseded", "nothing was written"]);
    import(&old, &made_stranger, &[]).refused(4, &["does not supersede"]);
    import(&old, &made_new, &["--expect-seal", &spoken_code(&made_old.seal_digest)]).refused(4, &["expected"]);
}

#[test]
fn a_volume_belongs_to_one_disk_for_ever() {
    let place = Place::new();
    let disk = one_disk(8);
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    import(&place, &made, &[]).ok();
    // Another disk of that name, of the same site and of another.
    for (site_uuid, words) in [(made.seal.site.uuid, "found that of"), (uuid::Uuid::new_v4(), "found that of")] {
        let other = Place::new();
        let twin = one_disk(8);
        let made_twin = make(other.path(), std::slice::from_ref(&twin), &Recipe { site_uuid, ..Recipe::default() });
        import(&place, &made_twin, &["--overwrite"]).refused(1, &[words, "for ever"]);
        // Without the ledger the sidecar says so.
        let state = other.join("state");
        let ran = Motiongear::new(&state)
            .args(["import", "--overwrite"])
            .arg(&made_twin.array)
            .args(["--to", &to_dir(&place)])
            .args(["--trust".as_ref(), made_twin.trust.as_os_str()])
            .args(["--identity".as_ref(), made_twin.identity.as_os_str()])
            .run();
        ran.refused(1, &["for disk", "for ever"]);
    }
    // The disk's volume is where it is.
    let elsewhere = format!("dir:{}", place.join("elsewhere").display());
    import_to(&place, &made, &[elsewhere], &[]).refused(1, &["expected its volume", "out/farbank/db01/sda.raw"]);
    // A ledger that does not know the volume does not write to it unasked.
    std::fs::remove_dir_all(place.join("state")).unwrap();
    import(&place, &made, &[]).refused(1, &["data that this ledger did not write", "--overwrite"]);
    check_equal(&place, &disk, &import(&place, &made, &["--overwrite"]).ok()["disks"][0]);
    std::fs::remove_file(raw(&place, &disk)).unwrap();
    import(&place, &made, &[]).refused(1, &["expected the raw file", "found none"]);
    check_equal(&place, &disk, &import(&place, &made, &["--overwrite"]).ok()["disks"][0]);
}

/// The ledger has the volume, and the file is not made yet: what has its name by then is somebody else's.
#[test]
fn a_file_that_took_the_name_of_one_that_was_not_made_yet_is_not_counted_on() {
    let place = Place::new();
    let disk = one_disk(8);
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let target = LoopArray::ext4(&place.join("target.raw"), 64 << 20, &place.dir("out"));
    let raw = raw(&place, &disk);
    let folder = raw.parent().unwrap();
    std::fs::create_dir_all(folder).unwrap();
    // No file can be made there: the import ends between the two.
    tool("chattr", ["+i".as_ref(), folder.as_os_str()]);
    import(&place, &made, &[]).refused(1, &["sda.raw"]);
    tool("chattr", ["-i".as_ref(), folder.as_os_str()]);
    assert!(!raw.exists());
    let ledger = place.join("state/ledger.db");
    assert_eq!(sql_after_crash(&ledger, "SELECT phase FROM import"), "planned");
    let mut foreign = vec![0; disk.data.len() + BLOCK];
    // Also where the disk has zeros, which an import into a file of its own does not write.
    foreign[3 * BLOCK + 7] = 1;
    foreign[5 * BLOCK + 7] = 1;
    std::fs::write(&raw, &foreign).unwrap();
    import(&place, &made, &["--readback", "none"]).refused(1, &["did not write", "--overwrite"]);
    assert!(std::fs::read(&raw).unwrap() == foreign, "it was written to");
    import(&place, &made, &["--readback", "none", "--overwrite"]).ok();
    let found = std::fs::read(&raw).unwrap();
    assert!(found[..disk.data.len()] == disk.data && found[disk.data.len()..].iter().all(|byte| *byte == 0));
    drop(target);
}

#[test]
fn one_import_of_a_disk_at_a_time() {
    let place = Place::new();
    let disk = one_disk(4);
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    std::fs::create_dir_all(place.join("state/volumes")).unwrap();
    let lock = std::fs::File::create(place.join(format!("state/volumes/{}.lock", disk.uuid))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    import(&place, &made, &[]).refused(1, &["expected no other import"]);
    // Not only dropped: a process that another test forks at this moment holds the lock too, until it executes its program.
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
    import(&place, &made, &[]).ok();
}

fn device_over(place: &Place, name: &str, bytes: u64, options: &[&str]) -> Loop {
    let file = place.join(name);
    sparse(&file, bytes);
    Loop::attach(&file, options)
}

#[test]
fn devices_of_both_sector_sizes_receive_the_disk_and_zeros_behind_it() {
    for (sector, disk_bytes) in [("512", 30 * BLOCK + 512), ("4096", 30 * BLOCK + 4096), ("4096", 30 * BLOCK + 512)] {
        let place = Place::new();
        let disk = Disk::new("db01", "sda", data(disk_bytes, BLOCK, |b| b % 4 == 1));
        let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
        let device = device_over(&place, "volume.img", 40 * BLOCK as u64, &["--sector-size", sector]);
        let target = vec![format!("dev:db01/sda={}", device.path().display())];
        // Foreign data everywhere: refused, then overwritten.
        std::fs::File::options()
            .write(true)
            .open(device.path())
            .unwrap()
            .write_all_at(&vec![0xee; 40 * BLOCK], 0)
            .unwrap();
        import_to(&place, &made, &target, &[]).refused(1, &["expected an empty one", "--overwrite"]);
        let imported = import_to(&place, &made, &target, &["--overwrite"]).ok();
        let outcome = &imported["disks"][0];
        assert_eq!((&outcome["digest"], &outcome["proven"]), (&outcome["sealed_digest"], &true.into()), "{outcome}");
        tool("blockdev", ["--flushbufs".as_ref(), device.path().as_os_str()]);
        let found = std::fs::read(device.path()).unwrap();
        assert!(found[..disk.data.len()] == disk.data[..], "sectors of {sector}");
        assert!(found[disk.data.len()..].iter().all(|byte| *byte == 0), "tail, sectors of {sector}");
        let digest = tool("sh", ["-c", &format!("head -c {} {} | b3sum", disk.data.len(), device.path().display())]);
        assert_eq!(digest.split(' ').next(), outcome["digest"].as_str());
        assert_eq!(import_to(&place, &made, &target, &[]).ok()["disks"][0]["state"], "already-imported");
    }
}

#[test]
fn devices_that_are_not_free_are_refused() {
    let place = Place::new();
    let mut disk = Disk::new("db01", "sda", data(300 * BLOCK, BLOCK, |_| false));
    disk.facts = r#"{"logical_sector_bytes":512}"#.into();
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let target = |path: &Path| vec![format!("dev:db01/sda={}", path.display())];
    // Too small.
    let small = device_over(&place, "small.img", 299 * BLOCK as u64, &[]);
    import_to(&place, &made, &target(small.path()), &[]).refused(1, &["expected at least", "19660800"]);
    // Read-only.
    sparse(&place.join("ro.img"), 301 * BLOCK as u64);
    let read_only = Loop::attach(&place.join("ro.img"), &["--read-only"]);
    import_to(&place, &made, &target(read_only.path()), &[]).refused(1, &["Volume"]);
    // Other sectors.
    let large = device_over(&place, "4k.img", 304 * BLOCK as u64, &["--sector-size", "4096"]);
    import_to(&place, &made, &target(large.path()), &[]).refused(1, &["sectors of 512", "found 4096"]);
    // Mounted; then its file, attached.
    let image = place.join("mounted.img");
    sparse(&image, 320 << 20);
    tool("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), image.as_os_str()]);
    let device = loop_device(&image);
    let mount = Mount::new(device.path(), &place.join("mnt"), &[]);
    import_to(&place, &made, &target(device.path()), &["--overwrite"]).refused(1, &["mounted", "unmount it"]);
    import_to(&place, &made, &target(&image), &["--overwrite"]).refused(1, &["attached as /dev/loop"]);
    drop(mount);
    import_to(&place, &made, &target(device.path()), &[]).refused(1, &["ext4", "--overwrite"]);
    // Swapped on.
    let swap = device_over(&place, "swap.img", 304 * BLOCK as u64, &[]);
    tool("mkswap", [swap.path()]);
    tool("swapon", [swap.path()]);
    let refused = import_to(&place, &made, &target(swap.path()), &["--overwrite"]);
    tool("swapoff", [swap.path()]);
    refused.refused(1, &["used as swap"]);
    // Claimed by device mapper, where the kernel has it.
    let (node, name) = (device.path().display().to_string(), format!("mgtest{}", std::process::id()));
    if try_tool("dmsetup", ["create", &name, "--table", &format!("0 2048 linear {node} 0")]).code == 0 {
        let refused = import_to(&place, &made, &target(device.path()), &["--overwrite"]);
        tool("dmsetup", ["remove", "--retry", &name]);
        refused.refused(1, &["part of /dev/mapper/mgtest"]);
    }
    // A disk that the shipment does not hold, and a target that is not there.
    import_to(&place, &made, &["dev:db01/sdb=/dev/null".into()], &[]).refused(2, &["no such disk"]);
    import_to(&place, &made, &target(Path::new("/dev/nosuch")), &[]).refused(1, &["found none"]);
    // The transport array itself.
    let onto = format!("dir:{}", made.array.join("motiongear/packs").display());
    import_to(&place, &made, &[onto], &[]).code(1);
    assert!(import_to(&place, &made, &target(device.path()), &["--overwrite"]).ok()["disks"][0]["proven"] == true);
}

#[test]
fn a_full_target_is_refused_beforehand_and_survived_in_mid_write() {
    let place = Place::new();
    let disk = Disk::new("db01", "sda", data(400 * BLOCK, BLOCK, |_| false));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let small = Mount::new(Path::new("tmpfs"), &place.join("small"), &["-t", "tmpfs", "-o", "size=12m"]);
    let into = vec![format!("dir:{}", small.path().join("out").display())];
    import_to(&place, &made, &into, &[]).refused(1, &["free, found", "make room"]);
    assert_eq!(std::fs::read_dir(small.path()).unwrap().count(), 0);
    // A sparse file that somebody made there: its room is a promise.
    let file = small.path().join("volume.raw");
    sparse(&file, 401 * BLOCK as u64);
    let target = vec![format!("dev:db01/sda={}", file.display())];
    import_to(&place, &made, &target, &[]).refused(1, &["could not be written", "No space left", "make room"]);
    assert!(std::fs::read(&file).unwrap()[..BLOCK].iter().all(|byte| *byte == 0), "the head is withheld");
    tool("mount", ["-o", "remount,size=64m", small.path().to_str().unwrap()]);
    let imported = import_to(&place, &made, &target, &[]).ok();
    assert_eq!(imported["disks"][0]["digest"], imported["disks"][0]["sealed_digest"]);
    assert!(imported["disks"][0]["resumed_from_block"].as_u64().unwrap() > 0, "{imported}");
    assert!(std::fs::read(&file).unwrap()[..disk.data.len()] == disk.data[..]);
}

/// ext4 that journals data takes no O_DIRECT.
#[test]
fn a_cache_in_between_is_said_and_nothing_is_called_proven() {
    let place = Place::new();
    let disk = one_disk(20);
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let image = place.join("fs.img");
    sparse(&image, 64 << 20);
    tool("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), image.as_os_str()]);
    let device = loop_device(&image);
    let mount = Mount::new(device.path(), &place.join("mnt"), &["-o", "data=journal"]);
    let into = vec![format!("dir:{}", mount.path().join("out").display())];
    let imported = import_to(&place, &made, &into, &[]).ok();
    let outcome = &imported["disks"][0];
    assert_eq!(outcome["digest"], outcome["sealed_digest"]);
    assert_eq!((&outcome["through_cache"], &outcome["proven"]), (&true.into(), &false.into()), "{outcome}");
}

#[test]
fn strangers_are_not_trusted() {
    let place = Place::new();
    let other = Place::new();
    let disk = one_disk(3);
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let stranger = make(other.path(), std::slice::from_ref(&disk), &Recipe::default());
    let run = |trust: &Path, identity: &Path| {
        Motiongear::new(&place.join("state"))
            .args(["import".as_ref(), made.array.as_os_str()])
            .args(["--to", &to_dir(&place)])
            .args(["--trust".as_ref(), trust.as_os_str(), "--identity".as_ref(), identity.as_os_str()])
            .run()
    };
    run(&stranger.trust, &made.identity).refused(4, &["nothing was written"]);
    run(&made.trust, &stranger.identity).code(4);
    assert!(!place.join("out").exists());
}

#[test]
fn an_import_that_is_given_up_takes_along_what_was_made_for_it_and_no_more() {
    let place = Place::new();
    let disks = [
        Disk::new("db01", "sda", data(700 * BLOCK, BLOCK, |_| false)),
        Disk::new("db01", "sdb", data(8 * BLOCK, BLOCK, |_| false)),
    ];
    let made = make(place.path(), &disks, &Recipe::default());
    // One complete, one abandoned: only that one goes.
    import(&place, &made, &["--disk", "sdb"]).ok();
    let mut running =
        command(&place, &made, "import", "auto").arg("--to").arg(to_dir(&place)).args(["--read-limit", "4MiB"]).start();
    let raw_file = raw(&place, &disks[0]);
    assert!(running.until(Duration::from_secs(60), |_| raw_file.exists()), "{}", running.said());
    running.kill();
    let done = import(&place, &made, &["--abort"]).ok();
    assert_eq!(
        (&done["disks"][0]["fate"], &done["disks"][1]["fate"]),
        (&"removed".into(), &"complete".into()),
        "{done}"
    );
    assert!(!raw_file.exists() && !raw_file.with_extension("raw.motiongear.json").exists());
    assert_eq!(std::fs::read(raw(&place, &disks[1])).unwrap(), disks[1].data);
    // What somebody else made stays, and can be imported into again once it is said that it may be written over.
    let backing = place.join("volume");
    sparse(&backing, 700 * BLOCK as u64);
    let device = loop_device(&backing);
    let to = [format!("dev:db01/sda={}", device.path().display())];
    let mut running = command(&place, &made, "import", "auto").args(["--to", &to[0], "--read-limit", "4MiB"]).start();
    assert!(running.until(Duration::from_secs(60), |_| mark_of(&place) > 0), "{}", running.said());
    running.kill();
    let done = import_to(&place, &made, &to, &["--abort"]).ok();
    assert_eq!(done["disks"][0]["fate"], "left", "{done}");
    import_to(&place, &made, &to, &[]).refused(1, &["expected an empty one"]);
    let done = import_to(&place, &made, &to, &["--overwrite"]).ok();
    assert_eq!(done["disks"][0]["state"], "imported");
    import_to(&place, &made, &to, &["--abort", "--overwrite"]).refused(2, &["--abort"]);
}

/// Blocks that the ledger calls written of the import that is being written.
fn mark_of(place: &Place) -> u64 {
    let file = place.join("state/ledger.db");
    let sql = "SELECT mark FROM import WHERE phase = 'writing'";
    let said = try_tool("sqlite3", ["-readonly".as_ref(), file.as_os_str(), sql.as_ref()]).stdout;
    said.trim().parse().unwrap_or(0)
}

/// A ledger of the version before is brought up to date in place, with what it knows.
#[test]
fn a_ledger_of_an_older_version_goes_on() {
    let place = Place::new();
    let disk = Disk::new("db01", "sda", data(3 << 20, BLOCK, |_| false));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let to = format!("dir:{}", place.join("volumes").display());
    let import = || command(&place, &made, "import", "auto").args(["--to", &to]).run().ok();
    import();
    let ledger = place.join("state/ledger.db");
    let version = sql(&ledger, "PRAGMA user_version");
    assert_eq!(version, "4", "write here what the new version adds, and take it away below");
    tool(
        "sqlite3",
        [
            ledger.as_os_str(),
            "ALTER TABLE import DROP COLUMN recovery_point; DROP TABLE server; ALTER TABLE known_seal DROP COLUMN compared; \
             DROP TABLE known_site; DROP TABLE prepared; DROP TABLE volume_difference; DROP TABLE volume_check; DROP TABLE known_shipment; \
             DROP TABLE attachment; ALTER TABLE volume DROP COLUMN project; PRAGMA user_version = 1"
                .as_ref(),
        ],
    );
    let again = import();
    assert_eq!(
        (&again["disks"][0]["state"], &again["disks"][0]["recovery_point"]),
        (&"already-imported".into(), &Value::Null)
    );
    assert_eq!(sql(&ledger, "PRAGMA user_version"), version);
    assert_eq!(sql(&ledger, "SELECT count(*), count(recovery_point) FROM import"), "1|0");
    assert_eq!(sql(&ledger, "SELECT count(*) FROM server"), "0");
}

#[test]
fn a_site_and_a_shipment_stay_what_the_ledger_saw_first() {
    let place = Place::new();
    let disk = one_disk(4);
    let first = Recipe { encrypted: false, ..Recipe::default() };
    let ours = make(&place.join("a"), std::slice::from_ref(&disk), &first);
    let to = |disk: &str| ["--to".to_owned(), format!("dev:{disk}={}", place.join("volume").display())];
    sparse(&place.join("volume"), (5 * BLOCK) as u64);
    let import =
        |made: &Made, extra: &[&str]| command(&place, made, "import", "auto").args(to("db01/sda")).args(extra).run();
    import(&ours, &[]).ok();
    let volume = || std::fs::read(place.join("volume")).unwrap();
    let before = volume();
    let other = Disk { data: data(4 * BLOCK + 512, BLOCK, |_| false), ..disk.clone() };
    let later: jiff::Timestamp = "2026-11-05T08:00:00Z".parse().unwrap();
    let foreign = [
        // The same shipment and site under another name; the same shipment of another site; another shipment with a disk of this one.
        Recipe { site: "siteb", sealed_at: later, supersedes: Some(ours.seal_digest), ..first.clone() },
        Recipe {
            site_uuid: uuid::Uuid::new_v4(),
            sealed_at: later,
            supersedes: Some(ours.seal_digest),
            ..first.clone()
        },
        Recipe { site_uuid: uuid::Uuid::new_v4(), shipment: uuid::Uuid::new_v4(), sealed_at: later, ..first.clone() },
    ];
    for (number, recipe) in foreign.iter().enumerate() {
        let made = make(&place.join(format!("b{number}")), std::slice::from_ref(&other), recipe);
        import(&made, &["--overwrite"]).code(4);
        assert!(volume() == before, "{number}");
    }
    // What only reads remembers as well.
    let fresh = place.join("fresh");
    let restore =
        |made: &Made, to: &str| command_with(&fresh, made, "restore", "auto").arg("db01/sda").arg(place.join(to)).run();
    restore(&ours, "one").ok();
    let renamed = make(
        &place.join("c"),
        std::slice::from_ref(&other),
        &Recipe { shipment: uuid::Uuid::new_v4(), ..foreign[0].clone() },
    );
    restore(&renamed, "two").code(4);

    // A seal that claims to be the successor of one that was never seen here.
    let unknown = Some(motiongear_manifest::tree::Digest::of(b"unknown"));
    let gap = make(
        &place.join("d"),
        std::slice::from_ref(&other),
        &Recipe { supersedes: unknown, sealed_at: later, ..first },
    );
    import(&gap, &[]).code(4);
    assert!(volume() == before);
    import(&gap, &["--overwrite"]).ok();
    assert_eq!(volume()[..other.data.len()], other.data[..]);
}
