//! Goal: a seed is interrupted by people, by other processes, by its source and by its array, and nothing is lost or half done.
//!
//! Method: the real binary, slowed by `--read-limit` so that things can happen while it runs; arrays on loop devices of their
//! own that fill up, turn read-only or are pulled; sources behind real I/O errors (a Btrfs file whose checksums no longer match,
//! a loop device whose file was cut short). SIGKILL is in `crash`.

use crate::common::disks::{bad_disk, noise_at};
use crate::common::{
    Background, Branch, LoopArray, Mount, b3sum, disk, json_file, loop_device, noise, sql, tool, try_tool, write_at,
};
use crate::seed::ENGINES;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

/// Bytes of packs on the array.
fn packed(branch: &Branch) -> u64 {
    let Ok(packs) = std::fs::read_dir(branch.on("packs")) else { return 0 };
    packs.flatten().filter_map(|pack| pack.metadata().ok()).map(|meta| meta.len()).sum()
}

/// Starts a slow seed and waits until `mib` MiB lie on the array.
fn begun(branch: &Branch, disks: &[(&str, &Path)], extra: &[&str], mib: u64) -> Background {
    let mut running = branch.seed_command(disks, &[&["--read-limit", "30MiB"], extra].concat()).start();
    assert!(running.until(LONG, |_| packed(branch) >= mib * MIB), "it ended early: {}", running.said());
    running
}

/// The same command ends the work, and the digest is that of the disk.
fn finishes(branch: &Branch, disks: &[(&str, &Path)]) -> Value {
    let result = branch.seed(disks, &[]).ok();
    for (name, path) in disks {
        assert_eq!(disk(&result["disks"], name)["digest"], b3sum(path), "{name}");
    }
    result
}

fn sealed_and_sound(branch: &Branch) {
    branch.seal();
    branch.check_with_stock_tools();
    branch.check_stand_alone();
}

#[test]
fn ctrl_c_stops_and_the_same_command_resumes() {
    for (signal, name) in [(libc::SIGINT, "SIGINT"), (libc::SIGTERM, "SIGTERM")] {
        let branch = Branch::ready();
        let image = branch.place.join("disk");
        noise(&image, 90 * MIB, 1);
        let running = begun(&branch, &[("sda", &image)], &[], 25);
        let since = Instant::now();
        running.signal(signal);
        // A second one does nothing worse.
        running.signal(signal);
        let ran = running.wait();
        ran.refused(5, &[name, "The same command resumes"]);
        assert!(since.elapsed() < Duration::from_secs(20), "stopping took {:?}", since.elapsed());
        let result = finishes(&branch, &[("sda", &image)]);
        // A stop by request commits all that was read.
        assert!(result["disks"][0]["skipped_bytes"].as_u64().unwrap() >= 20 * MIB, "{result}");
        let manifest = branch.live_manifest();
        assert_eq!(sql(&manifest, "SELECT count(*) FROM event WHERE kind = 'interrupted'"), "1");
        sealed_and_sound(&branch);
    }
}

#[test]
fn a_running_job_is_paused_resumed_and_limited_from_another_terminal_and_survives_a_hang_up() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 150 * MIB, 2);
    let mut running = begun(&branch, &[("sda", &image)], &[], 8);
    let pid = running.pid().to_string();
    let status = branch.run(["status"]).ok();
    assert_eq!(status["jobs"][0]["verb"], "seed");
    assert_eq!(status["jobs"][0]["pid"].to_string(), pid);
    // What is shown belongs together: noise takes a little more on the array than on the disk, never half as much again.
    let counted = |status: &serde_json::Value| {
        let total = &status["jobs"][0]["progress"]["total"];
        let [done, stored] = ["done", "stored"].map(|counter| total[counter].as_u64().unwrap());
        assert!(stored * 100 <= done * 101, "{total}");
        stored
    };
    counted(&status);
    assert_eq!(status["jobs"][0]["throttle"]["read_bytes_per_second"], 30 * MIB);
    branch.run(["pause", "--job", &pid]).ok();
    // What is under way is still written; then nothing moves.
    std::thread::sleep(Duration::from_millis(1500));
    let still = packed(&branch);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(packed(&branch), still, "a paused job writes");
    assert!(counted(&branch.run(["status"]).ok()) > 0);
    running.signal(libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.is_running(), "SIGHUP ended it: {}", running.said());
    branch.run(["limit", "--read", "0"]).refused(2, &["0"]);
    branch.run(["limit", "--cpu", "200"]).refused(2, &["200"]);
    branch.run(["limit", "--read", "10MiB", "--cpu", "50"]).ok();
    branch.run(["resume"]).ok();
    let limited = branch.run(["status"]).ok();
    assert_eq!(limited["jobs"][0]["throttle"]["read_bytes_per_second"], 10 * MIB);
    // The limit holds: over two seconds no more than was asked for, with room for what was under way.
    let (before, since) = (packed(&branch), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let moved = (packed(&branch) - before) as f64 / since.elapsed().as_secs_f64();
    assert!(moved > 0.0 && moved < 22e6, "{moved} bytes a second under a limit of 10 MiB");
    branch.run(["limit", "--read", "off", "--cpu", "off"]).ok();
    let result = running.wait().ok();
    assert_eq!(result["disks"][0]["digest"], b3sum(&image));
    assert_eq!(branch.run(["status"]).ok()["jobs"].as_array().unwrap().len(), 0, "the job is gone from the list");
    branch.run(["pause"]).refused(1, &[]);
}

#[test]
fn sectors_that_cannot_be_read_are_named_and_the_rest_goes_on() {
    let bytes = 40 * MIB + 512;
    let place = crate::common::Place::new();
    // One page, a run over a block's border, the last whole page.
    let pages: Vec<u64> = [vec![300], (2559..2563).collect(), vec![bytes / 4096 - 1]].concat();
    let bad = bad_disk(&place, "bad", bytes, 77, &pages);
    assert!(std::fs::read(&bad.path).is_err(), "the bad disk can be read");
    // What counts: the disk with zeros where it cannot be read.
    let counted = place.join("counted");
    noise(&counted, bytes, 77);
    for page in &pages {
        write_at(&counted, page * 4096, &[0; 4096]);
    }
    let device = loop_device(&bad.path);
    for engine in ENGINES {
        let branch = Branch::ready();
        let sources: [(&str, &Path); 2] = [("file", &bad.path), ("device", device.path())];
        // One disk a command: both are the same file behind.
        for source in sources {
            let branch = Branch::ready();
            let ran = branch.seed(&[source], &["--engine", engine]);
            let result = ran.code(3);
            let seeded = &result["disks"][0];
            assert_eq!(seeded["unreadable_bytes"].as_u64().unwrap(), pages.len() as u64 * 4096, "{seeded}");
            assert_eq!(seeded["blocks"]["unreadable"], 4);
            assert_eq!(seeded["digest"], b3sum(&counted), "{} with {engine}", source.0);
            let rows = sql(&branch.live_manifest(), "SELECT offset || '+' || bytes FROM unreadable ORDER BY offset");
            let ranges: Vec<u64> = rows
                .lines()
                .flat_map(|row| {
                    let (offset, bytes) = row.split_once('+').unwrap();
                    let (offset, bytes): (u64, u64) = (offset.parse().unwrap(), bytes.parse().unwrap());
                    (offset / 4096)..((offset + bytes) / 4096)
                })
                .collect();
            assert_eq!(ranges, pages, "{rows}");
            // Sealing says it, too: finished, with blocks unreadable.
            let sealed = branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]).code(3);
            assert_eq!(sealed["disks"][0]["blocks"]["unreadable"], 4);
            branch.check_with_stock_tools();
        }
        drop(branch);
    }
}

#[test]
fn a_disk_with_more_than_one_percent_unreadable_stops() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 64 * MIB, 3);
    let device = loop_device(&image);
    std::fs::File::options().write(true).open(&image).unwrap().set_len(32 * MIB).unwrap();
    for engine in ENGINES {
        let said = branch.seed(&[("sda", device.path())], &["--engine", engine]).refused(1, &["db01/sda", "1 %"]);
        assert!(said.contains("--without"), "the way out: {said}");
    }
    branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]).refused(1, &["unfinished", "db01/sda"]);
}

#[test]
fn a_source_that_shrinks_grows_or_vanishes_is_noticed() {
    for (what, parts) in [("shrinks", "size"), ("grows", "size"), ("vanishes", "sda"), ("is swapped", "same disk")] {
        let branch = Branch::ready();
        let image = branch.place.join("sda.img");
        noise(&image, 60 * MIB, 4);
        let digest = b3sum(&image);
        let running = begun(&branch, &[("sda", &image)], &[], 8);
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        let aside = branch.place.join("aside");
        match what {
            "shrinks" => file.set_len(30 * MIB).unwrap(),
            "grows" => file.set_len(61 * MIB).unwrap(),
            "vanishes" => std::fs::rename(&image, &aside).unwrap(),
            _ => {
                std::fs::rename(&image, &aside).unwrap();
                noise(&image, 60 * MIB, 5);
            }
        }
        branch.run(["limit", "--read", "off"]); // it may have noticed already
        let said = running.wait().refused(1, &[parts]);
        assert!(said.contains("next:"), "{what}: {said}");
        // Not finished, so it cannot be sealed; once it is itself again, the same command finishes.
        branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]).refused(1, &["unfinished"]);
        match what {
            "shrinks" => {
                file.set_len(60 * MIB).unwrap();
                noise_at(&file, 0, 60 * MIB, 4);
            }
            "grows" => file.set_len(60 * MIB).unwrap(),
            _ => std::fs::rename(&aside, &image).unwrap(),
        }
        assert_eq!(finishes(&branch, &[("sda", &image)])["disks"][0]["digest"], digest, "{what}");
        sealed_and_sound(&branch);
    }
}

#[test]
fn another_disk_behind_the_same_path_is_refused_when_resuming() {
    let branch = Branch::ready();
    let (one, two, path) = (branch.place.join("one"), branch.place.join("two"), branch.place.join("disk"));
    noise(&one, 40 * MIB, 6);
    noise(&two, 40 * MIB, 7);
    std::os::unix::fs::symlink(&one, &path).unwrap();
    begun(&branch, &[("sda", &path)], &[], 8).kill();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&two, &path).unwrap();
    branch.seed(&[("sda", &path)], &[]).refused(1, &["not the same disk", "expected", "found"]);
    // As a device, too: a loop device is known by the file behind it.
    let other = loop_device(&two);
    branch.seed(&[("sda", other.path())], &[]).refused(1, &["expected", "found"]);
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&one, &path).unwrap();
    finishes(&branch, &[("sda", &path)]);
    // A complete disk is looked at just as closely.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&two, &path).unwrap();
    branch.seed(&[("sda", &path)], &[]).refused(1, &["expected", "found"]);
    sealed_and_sound(&branch);
}

#[test]
fn an_array_that_fills_up_keeps_what_it_has_and_goes_on_when_there_is_room() {
    for engine in ENGINES {
        let branch = Branch::new();
        let _array = LoopArray::ext4(&branch.place.join("array.img"), 160 * MIB, &branch.array);
        let ballast = branch.array.join("ballast");
        noise(&ballast, 90 * MIB, 20);
        branch.init(&[]);
        let image = branch.place.join("disk");
        noise(&image, 80 * MIB, 8);
        let said = branch
            .seed(&[("sda", &image)], &["--engine", engine])
            .refused(1, &["full", "what was copied so far is kept"]);
        assert!(said.contains(&branch.array.display().to_string()), "{said}");
        std::fs::remove_file(&ballast).unwrap();
        let result = finishes(&branch, &[("sda", &image)]);
        assert!(result["disks"][0]["skipped_bytes"].as_u64().unwrap() >= 8 * MIB, "{result}");
        sealed_and_sound(&branch);
    }
}

#[test]
fn an_array_that_turns_read_only_in_mid_write_is_said_to_be() {
    let branch = Branch::new();
    let mut array = LoopArray::ext4(&branch.place.join("array.img"), 200 * MIB, &branch.array);
    branch.init(&[]);
    let image = branch.place.join("disk");
    noise(&image, 100 * MIB, 9);
    let running = begun(&branch, &[("sda", &image)], &[], 12);
    // What ext4 does with errors=remount-ro when its journal fails.
    array.remount("abort");
    branch.run(["limit", "--read", "off"]); // it may have noticed already
    let said = running.wait().refused(1, &["next:"]);
    // Whether a write or a flush finds out first.
    assert!(said.contains("read-only") || said.contains("and its cable, mount it again"), "{said}");
    // Still read-only: refused at once, before anything else.
    branch.seed(&[("sda", &image)], &[]).refused(1, &["array"]);
    array.unmount();
    // Exit 1 is "errors corrected".
    assert!(try_tool("e2fsck", ["-fy".as_ref(), array.image().as_os_str()]).code <= 1);
    array.plug();
    finishes(&branch, &[("sda", &image)]);
    sealed_and_sound(&branch);
}

#[test]
fn an_array_that_is_pulled_in_mid_write_is_continued_when_it_is_back() {
    for engine in ENGINES {
        let branch = Branch::new();
        let mut array = LoopArray::xfs(&branch.place.join("array.img"), 400 * MIB, &branch.array);
        branch.init(&[]);
        let image = branch.place.join("disk");
        noise(&image, 150 * MIB, 10);
        let running = begun(&branch, &[("sda", &image)], &["--engine", engine], 40);
        let committed: u64 =
            sql(&branch.live_manifest_of(&array_uuid(&branch)), "SELECT count(*) FROM block").parse().unwrap();
        array.unplug();
        branch.run(["limit", "--read", "off"]); // it may have noticed already
        running.wait().refused(1, &["run the same command again"]);
        // Not there: no second array begins on the empty mount point.
        branch.seed(&[("sda", &image)], &[]).refused(1, &["mount the transport array"]);
        assert!(branch.array.read_dir().unwrap().next().is_none());
        array.plug();
        let result = finishes(&branch, &[("sda", &image)]);
        let skipped = result["disks"][0]["skipped_bytes"].as_u64().unwrap();
        assert!(skipped >= committed * MIB, "committed {committed} blocks, skipped {skipped} bytes");
        sealed_and_sound(&branch);
    }
}

fn array_uuid(branch: &Branch) -> String {
    branch.shipment_json()["shipment"].as_str().unwrap().to_owned()
}

#[test]
fn what_an_array_lost_of_what_it_had_confirmed_is_copied_again() {
    for damage in ["cut", "flip", "gone"] {
        let branch = Branch::ready();
        let image = branch.place.join("disk");
        noise(&image, 60 * MIB, 11);
        let mut running = begun(&branch, &[("sda", &image)], &[], 30);
        let confirmed =
            |_: &Background| sql(&branch.live_manifest(), "SELECT count(*) FROM block").parse::<u32>().unwrap() > 12;
        assert!(running.until(LONG, confirmed), "it ended early: {}", running.said());
        running.kill();
        let pack = branch.packs()[0].clone();
        match damage {
            "cut" => std::fs::File::options().write(true).open(&pack).unwrap().set_len(3 * MIB).unwrap(),
            "flip" => write_at(&pack, 9 * MIB + 5000, b"rot"),
            _ => std::fs::remove_file(&pack).unwrap(),
        }
        // In the language of the summary; what the manifest keeps is English.
        let (lang, words) = match damage {
            "cut" => ("en", "lost data that it had confirmed"),
            "flip" => ("zh", "处的记录："),
            _ => ("zh", "文件已不存在：移动存储丢失了已确认写入的数据"),
        };
        let done = branch.seed(&[("sda", &image)], &["--lang", lang]).ok();
        assert!(done["notes"].to_string().contains(words), "{done}");
        assert_eq!(done["disks"][0]["digest"], b3sum(&image));
        let event = sql(&branch.live_manifest(), "SELECT detail FROM event WHERE kind = 'given-up'");
        assert!(event.contains("00000001.pack") && event.contains("copied again"), "{event}");
        sealed_and_sound(&branch);
    }
}

#[test]
fn packs_that_a_check_finds_damaged_are_copied_again_before_dispatch() {
    let branch = Branch::ready();
    let (a, b) = (branch.place.join("a"), branch.place.join("b"));
    noise(&a, 20 * MIB, 31);
    noise(&b, 9 * MIB + 512, 32);
    // Sealed twice, so that the disks lie in packs of their own.
    branch.seed(&[("sda", &a)], &[]).ok();
    branch.seal();
    branch.seed(&[("sdb", &b)], &["--reopen"]).ok();
    branch.seal();
    assert_eq!(branch.packs().len(), 2);
    write_at(&branch.packs()[0], 7 * MIB + 5000, b"rot");
    let found = branch.on_array("verify", [""; 0]).code(3);
    assert!(found["findings"].to_string().contains("seed ARRAY --reopen"), "{found}");
    let both: [(&str, &Path); 2] = [("sda", &a), ("sdb", &b)];
    // Sealed is sealed, unless somebody says so.
    branch.seed(&both, &[]).refused(1, &["--reopen"]);
    let planned = branch.seed(&both, &["--reopen", "--dry-run"]).ok();
    assert!(planned["notes"].to_string().contains("00000001.pack") && branch.packs().len() == 2, "{planned}");
    let planned = branch.seed(&both, &["--reopen", "--dry-run", "--lang", "zh"]).ok();
    assert!(planned["notes"].to_string().contains("校验发现其已损坏：将放弃该数据包"), "{planned}");
    let done = branch.seed(&both, &["--reopen"]).ok();
    assert_eq!(done["disks"][0]["read_bytes"], 20 * MIB, "sda is copied again");
    assert_eq!(done["disks"][1]["read_bytes"], 0, "sdb is sound");
    assert!(done["notes"].to_string().contains("found it damaged"), "{done}");
    sealed_and_sound(&branch);
    // A check that is good again is believed: nothing is given up any more.
    branch.on_array("verify", [""; 0]).ok();
    let done = branch.seed(&both, &["--reopen"]).ok();
    assert_eq!(done["disks"][0]["read_bytes"], 0);
    sealed_and_sound(&branch);
}

#[test]
fn an_array_that_loses_pack_after_pack_is_not_gone_on_with() {
    let branch = Branch::ready();
    let images: Vec<_> = (0..4).map(|n| branch.place.join(format!("disk{n}"))).collect();
    for (n, image) in images.iter().enumerate() {
        noise(image, 2 * MIB, n as u64);
        branch.seed(&[(&format!("sd{n}"), image)], &["--reopen"]).ok();
        branch.seal();
    }
    let packs = branch.packs();
    packs.iter().take(3).for_each(|pack| std::fs::remove_file(pack).unwrap());
    let before = sql(&branch.live_manifest(), "SELECT count(*) FROM block");
    let said =
        branch.seed(&[("sd0", &images[0])], &["--reopen"]).refused(1, &["3 of 4 packs", "do not trust this array"]);
    assert!(said.contains("00000003.pack"), "{said}");
    assert_eq!(sql(&branch.live_manifest(), "SELECT count(*) FROM block"), before, "nothing was forgotten");
}

#[test]
fn two_seeds_at_once_on_one_array() {
    let branch = Branch::ready();
    let (a, b) = (branch.place.join("a"), branch.place.join("b"));
    noise(&a, 60 * MIB, 12);
    noise(&b, 4 * MIB, 13);
    let running = begun(&branch, &[("sda", &a)], &[], 8);
    branch.seed(&[("sdb", &b)], &[]).refused(1, &["another motiongear process is working on it", "motiongear status"]);
    branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]).refused(1, &[]);
    branch.run(["limit", "--read", "off"]).ok();
    running.wait().ok();
    finishes(&branch, &[("sda", &a), ("sdb", &b)]);
    sealed_and_sound(&branch);
}

#[test]
fn an_array_that_another_host_began_is_refused_with_its_name() {
    let mut branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 30 * MIB, 14);
    begun(&branch, &[("sda", &image)], &[], 8).kill();
    let holder = json_file(&branch.on("holder.json"));
    let own = std::mem::replace(&mut branch.state, branch.place.join("other-state"));
    let said = branch.seed(&[("sda", &image)], &[]).refused(1, &["held by the ledger of host", "ledger move"]);
    assert!(said.contains(holder["host"].as_str().unwrap()), "{said}");
    branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]).refused(1, &["ledger"]);
    branch.state = own;
    finishes(&branch, &[("sda", &image)]);
    sealed_and_sound(&branch);
    // Sealed: no host adds to it by mistake, least of all one that knows nothing of it.
    branch.seed(&[("sda", &image)], &[]).refused(1, &["sealed", "--reopen"]);
    branch.state = branch.place.join("third-state");
    branch.seed(&[("sda", &image)], &[]).refused(1, &["sealed"]);
}

#[test]
fn recipients_that_were_exchanged_are_noticed() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 30 * MIB, 15);
    begun(&branch, &[("sda", &image)], &[], 8).kill();
    let thief = crate::common::age_key(&branch.place.join("thief.txt"));
    let honest = std::fs::read_to_string(branch.on("shipment.json")).unwrap();
    let altered = honest.replace(&branch.recipient, &thief);
    assert_ne!(honest, altered);
    let envelopes = branch.on("keys").read_dir().unwrap().count();
    let write = |text: &str, copies: &[&str]| copies.iter().for_each(|f| std::fs::write(branch.on(f), text).unwrap());
    let both = ["shipment.json", "copy/shipment.json"];
    write(&altered, &both);
    branch.seed(&[("sda", &image)], &[]).code(4);
    branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]).code(4);
    assert_eq!(branch.on("keys").read_dir().unwrap().count(), envelopes, "no envelope for the thief");
    // Of one altered copy the ledger knows which of the two it is: the good one goes on, for its recipients only.
    write(&honest, &both);
    write(&altered, &both[..1]);
    finishes(&branch, &[("sda", &image)]);
    sealed_and_sound(&branch);
    assert!(both.iter().all(|copy| std::fs::read_to_string(branch.on(copy)).unwrap() == honest));
}

#[test]
fn a_state_directory_that_is_read_only_of_a_newer_version_or_no_directory() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 3 * MIB, 16);
    let sources: [(&str, &Path); 1] = [("sda", &image)];
    // Newer.
    let ledger = branch.state.join("ledger.db");
    let version = sql(&ledger, "PRAGMA user_version");
    tool("sqlite3", [ledger.as_os_str(), "PRAGMA user_version = 99".as_ref()]);
    branch.seed(&sources, &[]).refused(1, &["99", "newer"]);
    tool("sqlite3", [ledger.as_os_str(), format!("PRAGMA user_version = {version}").as_ref()]);
    // Damaged.
    let whole = std::fs::read(&ledger).unwrap();
    std::fs::write(&ledger, b"this is no database, and it is longer than a header, so that SQLite can tell at once")
        .unwrap();
    branch.seed(&sources, &[]).refused(1, &["Ledger"]);
    std::fs::write(&ledger, whole).unwrap();
    branch.seed(&sources, &[]).ok();
    // Read-only, and not a directory.
    let mut branch = Branch::ready();
    let dir = branch.place.dir("ro");
    tool("mount", ["-t", "tmpfs", "-o", "ro", "tmpfs", dir.to_str().unwrap()]);
    branch.state = dir.join("state");
    let read_only = branch.seed(&sources, &[]);
    tool("umount", [&dir]);
    read_only.refused(1, &["State directory", "--state"]);
    branch.state = branch.place.file("a-file", b"");
    branch.seed(&sources, &[]).refused(1, &["State directory"]);
    assert!(branch.packs().is_empty(), "nothing was written to the array");
}

#[test]
fn a_state_directory_that_fills_up_loses_nothing() {
    let mut branch = Branch::new();
    let image = branch.place.join("disk");
    noise(&image, 160 * MIB, 17);
    let dir = branch.place.dir("small");
    tool("mount", ["-t", "tmpfs", "-o", "size=448k", "tmpfs", dir.to_str().unwrap()]);
    let _small = Unmount(&dir);
    branch.state = dir.join("state");
    branch.init(&["--block-size", "64KiB"]);
    let ran = branch.seed(&[("sda", &image)], &[]);
    let said = ran.refused(1, &[]);
    assert!(said.contains("full") || said.contains("No space"), "{said}");
    tool("mount", ["-o", "remount,size=64m", dir.to_str().unwrap()]);
    finishes(&branch, &[("sda", &image)]);
    sealed_and_sound(&branch);
}

struct Unmount<'a>(&'a Path);
impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = try_tool("umount", ["-l".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn a_host_without_io_uring_is_told_so_and_works_with_threads() {
    // What container runtimes and hardened kernels do: the sysctl is the one of them that a test can set and take back.
    let knob = Path::new("/proc/sys/kernel/io_uring_disabled");
    let Ok(before) = std::fs::read_to_string(knob) else {
        println!("this kernel has no io_uring_disabled; the engine's own tests forbid io_uring by seccomp");
        return;
    };
    // Not set here: other tests run beside this one. What it is now must be what the plan says.
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, MIB, 18);
    let plan = branch.seed(&[("sda", &image)], &["--dry-run"]).ok();
    assert_eq!(plan["plan"]["engine"], if before.trim() == "2" { "threads" } else { "io_uring" });
    let _ = Mount::path;
}
