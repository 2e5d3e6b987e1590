//! Sources that give errors, short counts, nothing for a while, another size, or are gone: as a file, and as a block device.

use super::{ENGINES, LONG, MIB, arrives, said_clearly, seeds};
use crate::common::{
    Background, Branch, Fault, Loop, Motiongear, Ran, SourceFs, b3sum, disk, full, loop_device, noise, sql, write_at,
};
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long after Ctrl-C everything that was read must be committed and said, with a source that does not answer.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// What stalls: not the ends, which are read for the partition table before the copy begins.
const STALLED: Range<u64> = 20 * MIB..25 * MIB;

/// A disk of noise behind FUSE, as a file or as a block device.
struct Odd {
    image: PathBuf,
    fs: SourceFs,
    device: Option<Loop>,
}

impl Odd {
    fn new(branch: &Branch, name: &str, bytes: u64, as_device: bool) -> Odd {
        let image = branch.place.join(format!("{name}.img"));
        noise(&image, bytes, 50 + bytes % 7);
        let fs = SourceFs::serve(&branch.place.join(format!("{name}.fuse")), &image);
        let device = as_device.then(|| loop_device(&fs.path()));
        Odd { image, fs, device }
    }
    fn path(&self) -> PathBuf {
        self.device.as_ref().map_or_else(|| self.fs.path(), |device| device.path().to_owned())
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        // Whoever sleeps in it holds the device.
        self.fs.heal();
    }
}

/// How long the disk's source has not answered, as `status` says.
fn silent_seconds(branch: &Branch, name: &str) -> u64 {
    let status = branch.run(["status"]).ok();
    let waiting = status["jobs"][0]["progress"]["waiting"].as_array().cloned().unwrap_or_default();
    let found = waiting.iter().find(|medium| {
        medium["kind"] == "source" && medium["name"].as_str().is_some_and(|medium| medium.ends_with(name))
    });
    found.map_or(0, |medium| medium["seconds"].as_u64().unwrap())
}

/// The disk's own entry in what `status` says of the running job.
fn status_of(branch: &Branch, name: &str) -> Option<Value> {
    let status = branch.run(["status"]).ok();
    let disks = status["jobs"][0]["progress"]["disks"].as_array()?;
    disks.iter().find(|disk| disk["name"].as_str().is_some_and(|n| n.ends_with(name))).cloned()
}

fn begin(branch: &Branch, disks: &[(&str, &Path)], engine: &str) -> Background {
    branch.seed_command(disks, &["--engine", engine]).start()
}

#[test]
fn ranges_that_answer_eio_are_named_and_read_again_when_they_can_be() {
    for (engine, as_device) in ENGINES.iter().flat_map(|engine| [(engine, false), (engine, true)]) {
        let branch = Branch::ready();
        let odd = Odd::new(&branch, "sda", 24 * MIB + 4096, as_device);
        // Two pages, a run over a block's border, the last page.
        let lost = [40_960..49_152, 5 * MIB - 4096..5 * MIB + 8192, 24 * MIB..24 * MIB + 4096];
        for range in lost.clone() {
            odd.fs.fault(range, Fault::ReadError);
        }
        let result = branch.seed(&[("sda", &odd.path())], &["--engine", engine]).code(3);
        assert!(odd.fs.hit() > 0);
        let seeded = &result["disks"][0];
        assert_eq!(seeded["unreadable_bytes"], 8192 + 12_288 + 4096, "{engine}: {seeded}");
        let rows = sql(&branch.live_manifest(), "SELECT offset || '+' || bytes FROM unreadable ORDER BY offset");
        let ranges: Vec<String> = rows.lines().map(str::to_owned).collect();
        // A range over a border is two rows, one a block.
        let wanted = [(40_960, 8192), (5 * MIB - 4096, 4096), (5 * MIB, 8192), (24 * MIB, 4096)];
        assert_eq!(ranges, wanted.map(|(offset, bytes)| format!("{offset}+{bytes}")), "{engine}");
        let counted = branch.place.join("counted");
        std::fs::copy(&odd.image, &counted).unwrap();
        for range in lost {
            write_at(&counted, range.start, &vec![0; (range.end - range.start) as usize]);
        }
        assert_eq!(seeded["digest"], b3sum(&counted));
        branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]).code(3);
        branch.check_with_stock_tools();
        branch.check_stand_alone();
    }
}

#[test]
fn short_reads_are_continued() {
    for engine in ENGINES {
        for most in [4096, 65536, 1_000_000] {
            let branch = Branch::ready();
            let odd = Odd::new(&branch, "sda", 9 * MIB + 512, false);
            odd.fs.fault(0..u64::MAX, Fault::Short(most));
            seeds(&branch, &[("sda", &odd.path())], engine, &odd.image);
            assert!(odd.fs.hit() > 10);
            arrives(&branch, &odd.image);
        }
    }
}

#[test]
fn a_read_that_gives_nothing_in_the_middle_is_no_end_of_the_disk() {
    for engine in ENGINES {
        let branch = Branch::ready();
        let odd = Odd::new(&branch, "sda", 12 * MIB, false);
        odd.fs.fault(5 * MIB..6 * MIB, Fault::Short(0));
        let said = said_clearly(&branch.seed(&[("sda", &odd.path())], &["--engine", engine]), Path::new("db01/sda"));
        assert!(!said.contains("changed its size"), "the size is what it was: {said}");
        assert!(said.contains("5242880"), "where: {said}");
        odd.fs.heal();
        seeds(&branch, &[("sda", &odd.path())], engine, &odd.image);
        arrives(&branch, &odd.image);
    }
}

#[test]
fn a_source_that_changes_its_size_or_is_gone_in_mid_read_is_named() {
    for engine in ENGINES {
        for what in ["shrinks", "grows", "vanishes"] {
            let branch = Branch::ready();
            let odd = Odd::new(&branch, "sda", 30 * MIB, false);
            odd.fs.fault(STALLED, Fault::Stall);
            let mut running = begin(&branch, &[("sda", &odd.path())], engine);
            assert!(running.until(LONG, |_| odd.fs.stalled() > 0), "{}", running.said());
            match what {
                "shrinks" => odd.fs.resize(21 * MIB),
                "grows" => odd.fs.resize(31 * MIB),
                _ => odd.fs.vanish(true),
            }
            odd.fs.heal();
            let said = said_clearly(&running.wait(), Path::new("sda"));
            assert!(what == "vanishes" || said.contains("size"), "{what}: {said}");
            branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]).refused(1, &["unfinished"]);
            odd.fs.resize(30 * MIB);
            odd.fs.vanish(false);
            seeds(&branch, &[("sda", &odd.path())], engine, &odd.image);
            arrives(&branch, &odd.image);
        }
    }
}

/// MANUAL: "A source that does not answer … `status` names it".
#[test]
fn a_source_that_stalls_is_shown_and_finishes_when_it_wakes_and_disturbs_no_other_disk() {
    let minute = Duration::from_secs(if full() { 65 } else { 14 });
    std::thread::scope(|scope| {
        for (engine, as_device) in [("uring", false), ("threads", true)] {
            scope.spawn(move || stall_and_wake(engine, as_device, minute));
        }
    });
    if full() {
        stall_and_wake("threads", false, minute);
        stall_and_wake("uring", true, minute);
    }
}

fn stall_and_wake(engine: &str, as_device: bool, minute: Duration) {
    let branch = Branch::ready();
    let odd = Odd::new(&branch, "sda", 40 * MIB, as_device);
    let others: Vec<PathBuf> = (0..4).map(|n| branch.place.join(format!("other-{n}"))).collect();
    for (n, other) in others.iter().enumerate() {
        noise(other, 60 * MIB, 60 + n as u64);
    }
    let names = ["sdb", "sdc", "sdd", "sde"];
    let path = odd.path();
    let mut disks: Vec<(&str, &Path)> = vec![("sda", &path)];
    disks.extend(names.into_iter().zip(others.iter().map(PathBuf::as_path)));
    odd.fs.fault(STALLED, Fault::Stall);
    let since = Instant::now();
    let mut running = begin(&branch, &disks, engine);
    assert!(running.until(LONG, |_| odd.fs.stalled() > 0), "{}", running.said());
    // All the others are read to their end meanwhile.
    let finished = |_: &Background| {
        names.iter().all(|name| status_of(&branch, name).is_some_and(|disk| disk["done"] == disk["bytes"]))
    };
    assert!(running.until(LONG, finished), "{}", running.said());
    println!("{engine}: the other disks took {:?}", since.elapsed());
    // It is shown which one waits, and for how long.
    assert!(running.until(LONG, |_| silent_seconds(&branch, "sda") >= 5));
    let text = branch.motiongear().args(["status"]).run();
    assert!(text.stdout.contains("db01/sda") && text.stdout.contains("has not answered for"), "{}", text.stdout);
    assert!(names.iter().all(|name| silent_seconds(&branch, name) == 0));
    let said = |running: &Background| running.said().contains("has not answered for");
    assert!(running.until(LONG, said), "not said while it waits: {}", running.said());
    std::thread::sleep(minute.saturating_sub(since.elapsed()));
    assert!(running.is_running(), "it gave up: {}", running.said());
    odd.fs.heal();
    let result = running.wait().ok();
    assert_eq!(disk(&result["disks"], "sda")["digest"], b3sum(&odd.image));
    for (name, other) in names.iter().zip(&others) {
        assert_eq!(disk(&result["disks"], name)["digest"], b3sum(other));
    }
    branch.seal();
    branch.check_with_stock_tools();
}

/// MANUAL: "Files on FUSE, NFS, SMB, Ceph and 9P are read and written by threads, whatever is said here".
#[test]
fn what_is_far_is_said_to_be_read_by_threads() {
    let branch = Branch::ready();
    let near = branch.place.join("near");
    noise(&near, 4 * MIB, 58);
    let (file, device) = (Odd::new(&branch, "file", 4 * MIB, false), Odd::new(&branch, "device", 4 * MIB, true));
    let plan = |disks: &[(&str, &Path)], engine: &str| {
        branch.seed(disks, &["--engine", engine, "--dry-run"]).ok()["plan"]["engine"].clone()
    };
    let (file, device) = (file.path(), device.path());
    assert_eq!(plan(&[("sda", &near), ("sdb", &device)], "uring"), "io_uring");
    assert_eq!(plan(&[("sda", &near), ("sdb", &file)], "uring"), "io_uring+threads");
    assert_eq!(plan(&[("sda", &near), ("sdb", &file)], "threads"), "threads");
    let near: [(&str, &Path); 1] = [("sda", &near)];
    branch.seed(&near, &[]).ok();
    branch.seal();
    let import = |volumes: &Path| super::import(&branch, volumes, &["--engine", "uring"]).run().ok()["engine"].clone();
    assert_eq!(import(&branch.place.dir("volumes")), "io_uring");
    let to = format!("dev:db01/sda={}", file.display());
    // Of another host, as a volume belongs to its disk for ever.
    let far = Motiongear::new(&branch.place.join("another")).args(["--json", "--engine", "uring", "import"]);
    let far = far.arg(&branch.array).args(["--to", &to, "--overwrite"]).arg("--trust").arg(&branch.trust);
    assert_eq!(far.arg("--identity").arg(&branch.identity).run().ok()["engine"], "io_uring+threads");
}

/// MANUAL: "Ctrl-C … also while a source does not answer".
#[test]
fn ctrl_c_does_not_wait_for_a_source_that_stalls() {
    std::thread::scope(|scope| {
        for (engine, as_device) in ENGINES.into_iter().flat_map(|engine| [(engine, false), (engine, true)]) {
            scope.spawn(move || stop_stalled(engine, as_device));
        }
    });
}

fn stop_stalled(engine: &str, as_device: bool) {
    let branch = Branch::ready();
    let odd = Odd::new(&branch, "sda", 40 * MIB, as_device);
    odd.fs.fault(STALLED, Fault::Stall);
    let path = odd.path();
    let mut running = begin(&branch, &[("sda", &path)], engine);
    assert!(running.until(LONG, |_| odd.fs.stalled() > 0), "{}", running.said());
    std::thread::sleep(Duration::from_millis(1500));
    let since = Instant::now();
    running.signal(libc::SIGINT);
    assert!(running.until(STOPS_WITHIN, |running| running.said().contains("error: Job stopped by SIGINT")));
    println!("{engine}, device {as_device}: said after {:?}", since.elapsed());
    // What was read is on the array, committed, and the array is free for the next command.
    let kept: u64 = sql(&branch.live_manifest(), "SELECT count(*) FROM block").parse().unwrap();
    assert!(kept >= 12, "{kept} blocks were committed");
    assert_eq!(branch.run(["status"]).ok()["jobs"], serde_json::json!([]));
    // With io_uring on a block device the process is gone as well. Where a thread waits in the kernel it cannot be: it goes when
    // the disk answers.
    let ran: Ran = if engine == "uring" && as_device {
        assert!(running.until(STOPS_WITHIN, |_| false) || !running.is_running());
        println!("{engine}, device {as_device}: gone after {:?}", since.elapsed());
        let ran = running.wait();
        odd.fs.heal();
        ran
    } else {
        odd.fs.heal();
        running.wait()
    };
    ran.refused(5, &["SIGINT", "did not answer", "The same command resumes"]);
    let result = seeds(&branch, &[("sda", &path)], engine, &odd.image);
    assert!(result["disks"][0]["skipped_bytes"].as_u64().unwrap() >= kept * MIB, "{result}");
    arrives(&branch, &odd.image);
}
