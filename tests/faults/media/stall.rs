//! Arrays and volumes that stop answering for a while, as a USB bridge that resets or a RAID that rebuilds does: it is shown which
//! one and for how long, the job goes on when they wake, and Ctrl-C ends it without a word that is not true.
//!
//! Under them lies a file on FUSE whose writes, flushes or reads sleep until they are woken; a loop device over it is the volume,
//! and an ext4 on such a device the array: real block devices, so io_uring reads and writes them directly.

use super::volume::Case;
use super::{ENGINES, Frail, LONG, MIB, arrives, seeds};
use crate::common::{Background, Branch, Fault, Motiongear, b3sum, noise, sql};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long after Ctrl-C everything that was flushed must be committed and said, with a medium that does not answer.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
const EVERYWHERE: std::ops::Range<u64> = 0..u64::MAX;
/// Reading so slowly gives a medium the time to stall in the middle, also on a slow machine.
const SLOWLY: &str = "4MiB";

/// A branch whose array lies on a medium that can be made to stall, and a disk of noise.
struct Stalling {
    // Before what it lies on.
    frail: Frail,
    image: PathBuf,
    /// The live manifest: found now, as its name stands on the array.
    manifest: PathBuf,
    branch: Branch,
}

impl Stalling {
    fn new() -> Stalling {
        let branch = Branch::new();
        let frail = Frail::under(&branch, 400 * MIB);
        branch.init(&[]);
        let image = branch.place.join("disk");
        noise(&image, 60 * MIB, 80);
        let manifest = branch.live_manifest();
        Stalling { frail, image, manifest, branch }
    }
    fn packed(&self) -> u64 {
        let Ok(packs) = std::fs::read_dir(self.branch.on("packs")) else { return 0 };
        packs.flatten().filter_map(|pack| pack.metadata().ok()).map(|meta| meta.len()).sum()
    }
    /// A seed of which a part is committed, whose array stalls from now on.
    fn stalled_seed(&self, engine: &str, fault: Fault) -> Background {
        let extra = ["--engine", engine, "--read-limit", SLOWLY];
        let mut running = self.branch.seed_command(&[("sda", &self.image)], &extra).start();
        assert!(running.until(LONG, |_| self.packed() >= 4 * MIB && self.committed() > 0), "{}", running.said());
        self.frail.fs.fault(EVERYWHERE, fault);
        assert!(running.until(LONG, |_| self.frail.fs.stalled() > 0), "{}", running.said());
        running
    }
    fn committed(&self) -> u64 {
        sql(&self.manifest, "SELECT count(*) FROM block").parse().unwrap()
    }
}

/// What `status` says does not answer.
fn waiting(branch: &Branch) -> Vec<Value> {
    let status = branch.run(["status"]).ok();
    status["jobs"][0]["progress"]["waiting"].as_array().cloned().unwrap_or_default()
}

/// `status` lists it with the time that it has not answered.
fn is_listed(branch: &Branch, running: &mut Background, kind: &str, name: &str, seconds: u64) {
    let listed = |medium: &Value| {
        medium["kind"] == kind && medium["name"] == name && medium["seconds"].as_u64().unwrap() >= seconds
    };
    assert!(running.until(LONG, |_| waiting(branch).iter().any(listed)), "{}", running.said());
}

/// MANUAL: "After 5 s `status` and the progress lines name it, after 10 s a note says so".
fn is_shown(branch: &Branch, running: &mut Background, kind: &str, name: &str) {
    is_listed(branch, running, kind, name, 5);
    let shown = |lang: &str| branch.motiongear().args(["--lang", lang, "status"]).run().stdout;
    let (en, zh) = (shown("en"), shown("zh"));
    assert!(en.contains(&format!("{kind} {name} has not answered for ")), "{en}");
    let kind_zh = if kind == "array" { "移动存储" } else { "卷" };
    assert!(zh.contains(&format!("{kind_zh} {name} 已 ")) && zh.contains("秒没有应答"), "{zh}");
    let note = format!("{name} has not answered for ");
    assert!(running.until(LONG, |running| running.said().contains(&note)), "it ended: {}", running.said());
    assert!(running.is_running(), "it gave up: {}", running.said());
}

/// Ctrl-C while something stalls: said in time what hangs, and nothing runs any more for `status`.
fn stops(branch: &Branch, running: &mut Background, what: &str) {
    std::thread::sleep(Duration::from_millis(500));
    let since = Instant::now();
    running.signal(libc::SIGINT);
    assert!(running.until(STOPS_WITHIN, |running| running.said().contains("error: Job stopped by SIGINT")));
    println!("{what}: said after {:?}", since.elapsed());
    assert!(running.said().contains("did not answer"), "{}", running.said());
    assert_eq!(branch.run(["status"]).ok()["jobs"], serde_json::json!([]));
}

#[test]
fn an_array_that_stalls_is_shown_and_the_seed_finishes_when_it_wakes() {
    std::thread::scope(|scope| {
        for (engine, fault) in [("uring", Fault::WriteStall), ("threads", Fault::FlushStall)] {
            scope.spawn(move || {
                let array = Stalling::new();
                let branch = &array.branch;
                let mut running = array.stalled_seed(engine, fault);
                is_shown(branch, &mut running, "array", branch.array.to_str().unwrap());
                array.frail.fs.heal();
                assert!(running.until(LONG, |running| running.said().contains("answers again")), "{}", running.said());
                branch.run(["limit", "--read", "off"]);
                let result = running.wait().ok();
                assert_eq!(result["disks"][0]["digest"], b3sum(&array.image));
                arrives(branch, &array.image);
            });
        }
    });
}

/// MANUAL: "Ctrl-C … what was flushed is committed … the array stays locked until the process is gone".
#[test]
fn ctrl_c_does_not_wait_for_an_array_that_stalls_and_records_nothing_that_is_not_flushed() {
    std::thread::scope(|scope| {
        for (engine, fault) in ENGINES.into_iter().flat_map(|e| [(e, Fault::WriteStall), (e, Fault::FlushStall)]) {
            scope.spawn(move || stop_stalled_seed(engine, fault));
        }
    });
}

fn stop_stalled_seed(engine: &str, fault: Fault) {
    let array = Stalling::new();
    let branch = &array.branch;
    let disks = [("sda", array.image.as_path())];
    let mut running = array.stalled_seed(engine, fault);
    // What was on its way into the ledger when the array stalled was flushed before.
    std::thread::sleep(Duration::from_millis(500));
    let before = array.committed();
    stops(branch, &mut running, &format!("{engine}, {fault:?}"));
    // Nothing was flushed since, so nothing may be recorded since.
    assert_eq!(array.committed(), before, "{engine} {fault:?}: blocks were recorded that were not flushed");
    assert_eq!(sql(&array.manifest, "SELECT count(*) FROM event WHERE kind = 'interrupted'"), "1");
    // A process that waits in the kernel keeps its lock: an old write must not come after a new one.
    let ledger = std::fs::File::open(array.manifest.parent().unwrap()).unwrap();
    let free = rustix::fs::flock(&ledger, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok();
    assert!(
        !free || !running.is_running(),
        "{engine} {fault:?}: the shipment is free while writes to it are under way"
    );
    drop(ledger);
    array.frail.fs.heal();
    running.wait().refused(5, &["SIGINT", "did not answer", "The same command resumes"]);
    let result = seeds(branch, &disks, engine, &array.image);
    let skipped = result["disks"][0]["skipped_bytes"].as_u64().unwrap();
    assert_eq!(skipped, before * MIB, "what was committed is not copied again, and all else is");
    arrives(branch, &array.image);
}

#[test]
fn an_array_that_stalls_while_it_is_read_is_shown_and_does_not_hold_up_ctrl_c() {
    std::thread::scope(|scope| {
        for (engine, verb) in [("uring", "verify"), ("threads", "verify"), ("uring", "import"), ("threads", "import")] {
            scope.spawn(move || stall_while_read(engine, verb));
        }
    });
}

fn stall_while_read(engine: &str, verb: &str) {
    let array = Stalling::new();
    let branch = &array.branch;
    seeds(branch, &[("sda", &array.image)], engine, &array.image);
    branch.seal();
    let volumes = branch.place.dir("stalled-volumes");
    let command = |extra: &[&str]| -> Motiongear {
        let to = format!("dir:{}", volumes.display());
        let mut command = branch.motiongear().args(["--json", "--engine", engine, verb]).arg(&branch.array);
        command = command.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity).args(extra);
        if verb == "import" { command.args(["--to", &to]) } else { command }
    };
    let mut running = command(&["--read-limit", SLOWLY]).start();
    let moves = |_: &Background| {
        let status = branch.run(["status"]).ok();
        status["jobs"][0]["progress"]["total"]["read"].as_u64().is_some_and(|read| read >= 2 * MIB)
    };
    assert!(running.until(LONG, moves), "{}", running.said());
    array.frail.fs.fault(EVERYWHERE, Fault::Stall);
    assert!(running.until(LONG, |_| array.frail.fs.stalled() > 0), "{}", running.said());
    is_listed(branch, &mut running, "array", branch.array.to_str().unwrap(), 1);
    stops(branch, &mut running, &format!("{verb}, {engine}"));
    array.frail.fs.heal();
    running.wait().refused(5, &["SIGINT", "did not answer"]);
    let result = command(&[]).run().ok();
    if verb == "import" {
        assert_eq!(result["disks"][0]["digest"], b3sum(&array.image));
        assert_eq!(result["disks"][0]["damaged"], 0, "silence is no damage: {result}");
    }
}

/// What stalls of a volume: writes and reads of its middle, and every flush.
const VOLUME_STALLS: [(Fault, std::ops::Range<u64>); 3] =
    [(Fault::WriteStall, 7 * MIB..8 * MIB), (Fault::FlushStall, EVERYWHERE), (Fault::Stall, 7 * MIB..8 * MIB)];

/// From the start; reads only once the range was written, as the checks before an import read as well.
fn stall(case: &Case, fault: Fault, range: std::ops::Range<u64>) {
    match fault {
        Fault::Stall => case.fs.fault_once_written(range, fault),
        _ => case.fs.fault(range, fault),
    }
}

#[test]
fn a_volume_that_stalls_is_shown_and_the_import_finishes_when_it_wakes() {
    std::thread::scope(|scope| {
        for (at, (fault, range)) in VOLUME_STALLS.into_iter().enumerate() {
            scope.spawn(move || {
                let engine = ENGINES[at % 2];
                let case = Case::new(engine);
                stall(&case, fault, range);
                let mut running = case.command(engine).start();
                assert!(running.until(LONG, |_| case.fs.stalled() > 0), "{}", running.said());
                is_shown(&case.branch, &mut running, "volume", case.device.path().to_str().unwrap());
                assert!(case.head_is_withheld());
                case.fs.heal();
                let result = running.wait().ok();
                assert_eq!(result["disks"][0]["digest"], b3sum(&case.origin));
                assert_eq!(result["disks"][0]["proven"], true);
                assert_eq!(b3sum(&case.image), b3sum(&case.origin));
            });
        }
    });
}

#[test]
fn ctrl_c_does_not_wait_for_a_volume_that_stalls_and_the_same_command_finishes() {
    std::thread::scope(|scope| {
        for (engine, (fault, range)) in
            ENGINES.into_iter().flat_map(|engine| VOLUME_STALLS.map(|stall| (engine, stall)))
        {
            scope.spawn(move || {
                let case = Case::new(engine);
                stall(&case, fault, range);
                let mut running = case.command(engine).start();
                assert!(running.until(LONG, |_| case.fs.stalled() > 0), "{}", running.said());
                stops(&case.branch, &mut running, &format!("volume, {engine}, {fault:?}"));
                assert!(case.head_is_withheld(), "{engine} {fault:?}: the head is there");
                case.fs.heal();
                running.wait().refused(5, &["SIGINT", "did not answer", "The same command resumes"]);
                case.finishes(engine);
            });
        }
    });
}
