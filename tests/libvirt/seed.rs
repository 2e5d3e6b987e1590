//! Goal: both disks of a machine that runs and writes are copied as they were at one instant, whatever ends or fails nothing of ours stays
//! with the machine, and what is somebody else's is left alone. Method: as for machines under QEMU alone; libvirt and QEMU are asked what
//! is left.

use super::host::Host;
use crate::common::{Background, Branch, disk, sql, tool};
use crate::qmp::machine::{LIMIT, MIB};
use crate::qmp::seed::{both_are_consistent, imported, started};
use serde_json::json;
use std::path::Path;

fn under_way(host: &Host, branch: &Branch, extra: &[&str]) -> Background {
    let running = started(host.seed(branch, &[&["--read-limit", "1MiB"], extra].concat()), branch);
    assert!(host.has_job());
    running
}

/// MANUAL: "one backup job of libvirt begins the snapshots of all of them"; "another job is refused and left alone".
#[test]
fn both_disks_under_libvirt_are_of_one_instant_and_a_job_of_others_is_left_alone() {
    let branch = Branch::ready();
    let host = Host::writing(4096);
    // Somebody else's backup comes first.
    let theirs = host.dir.join("theirs").display().to_string();
    let backup = format!("<domainbackup mode='pull'><server transport='unix' socket='{theirs}'/></domainbackup>");
    let backup = branch.place.file("backup.xml", backup);
    std::fs::set_permissions(&host.dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    host.virsh(&["backup-begin", "db01", backup.to_str().unwrap()]);
    host.seed(&branch, &[]).run().refused(1, &["expected it without a job, found a backup of another program"]);
    let released =
        host.asks(branch.motiongear()).args(["--json", "release", "libvirt:db01", "--bitmaps"]).run().code(1);
    assert_eq!(released["removed"], json!([]));
    tool("nbdinfo", ["--size", &format!("nbd+unix:///vda?socket={theirs}")]);
    host.virsh(&["domjobabort", "db01"]);
    host.waits_for("their job to end", || !host.has_job());
    // By a plan, with hooks around the instant.
    let frozen = branch.place.join("frozen").display().to_string();
    let hook = |word: &str| format!("{word} = [\"sh\", \"-c\", \"echo {word} >> {frozen}\"]\n");
    let source =
        |disk: &str, target: &str| format!("[[machine.disk]]\nname = \"{disk}\"\nsource = \"libvirt:db01#{target}\"\n");
    let (freeze, thaw, sda, sdb) = (hook("freeze"), hook("thaw"), source("sda", "vda"), source("sdb", "vdb"));
    let plan = format!("[[machine]]\nname = \"db01\"\n[machine.hooks]\n{freeze}{thaw}{sda}{sdb}");
    let plan = branch.place.file("plan.toml", plan);
    let scratch = ["--scratch", host.scratch.path().to_str().unwrap(), "--read-limit", "1MiB"];
    let seed = branch.motiongear().args(["--json", "seed"]).arg(&branch.array).arg("--plan").arg(&plan).args(scratch);
    let before = host.written();
    let mut running = started(host.asks(seed), &branch);
    let began = host.written();
    // What is not wished for has no part in it.
    let job = host.virsh(&["backup-dumpxml", "db01"]);
    assert!(job.contains("<disk name='vdc' backup='no'/>") && job.contains("'motiongear-0-disk'"), "{job}");
    assert_eq!(host.scratch_files(), 2);
    host.waits_for("much to be overwritten", || host.written() > began + 500);
    branch.run(["limit", "--read", "off"]).ok();
    assert!(!running.until(LIMIT, |_| false));
    let seeded = running.wait().ok();
    both_are_consistent(&seeded);
    assert_eq!(std::fs::read_to_string(frozen).unwrap(), "freeze\nthaw\n");
    let events = "SELECT group_concat(substr(detail, 1, instr(detail, ' ') - 1), ' ') FROM event WHERE kind = 'hook'";
    assert_eq!(sql(&branch.live_manifest(), events), "freeze snapshot thaw");
    host.goes_on();
    host.has_nothing_of_ours();
    assert_eq!(host.checkpoints().len(), 1);
    let last = host.is_one_instant(&imported(&branch));
    assert!(last >= before && last <= began + 16, "{before} {last} {began}");
    // The same command again is done at once.
    let again = host.seed(&branch, &["--reopen"]).run().ok();
    assert_eq!(disk(&again["disks"], "sda")["read_bytes"], 0);
}

/// MANUAL: "killed, its watchdog ends the job".
#[test]
fn killed_amid_a_seed_under_libvirt_nothing_is_left_and_the_same_command_goes_on() {
    let branch = Branch::ready();
    let host = Host::writing(4096);
    let running = under_way(&host, &branch, &[]);
    running.kill();
    host.waits_for("the watchdog", || !host.has_job() && host.scratch_files() == 0);
    host.goes_on();
    let log = || std::fs::read_to_string(branch.state.join("thaw-watchdog.log")).unwrap_or_default();
    host.waits_for("its word", || log().contains("machine db01: MotionGear is gone; thaw attempt 1: exit 0"));
    // Killed with its watchdog: by hand, and then by the next run.
    let killed = || {
        let running = under_way(&host, &branch, &[]);
        let children = format!("/proc/{0}/task/{0}/children", running.pid());
        let watchdog: i32 = std::fs::read_to_string(children).unwrap().trim().parse().expect("one child");
        // SAFETY: a plain system call; the child of a child that is alive.
        unsafe { libc::kill(watchdog, libc::SIGKILL) };
        running.kill();
        assert!(host.has_job() && host.scratch_files() == 2);
    };
    killed();
    let release = |extra: &[&str]| {
        host.asks(branch.motiongear()).args(["--json", "release", "libvirt:db01"]).args(extra).run().ok()
    };
    assert_eq!(release(&[])["removed"], json!(["motiongear-0-disk", "motiongear-1-disk"]));
    host.has_nothing_of_ours();
    killed();
    both_are_consistent(&host.seed(&branch, &[]).run().ok());
    host.has_nothing_of_ours();
    let checkpoints = host.checkpoints();
    assert_eq!(checkpoints.len(), 1, "those of the runs that came to nothing are gone: {checkpoints:?}");
    host.is_one_instant(&imported(&branch));
    assert_eq!(release(&["--bitmaps"])["removed"], json!(checkpoints));
    assert!(host.checkpoints().is_empty());
    host.goes_on();
}

/// MANUAL: "when only the reserve is left, the job is ended"; and what is refused.
#[test]
fn what_libvirt_cannot_give_is_refused_and_a_lost_snapshot_does_the_machine_no_harm() {
    let branch = Branch::ready();
    let host = Host::writing(4096);
    let seed =
        |source: &str, extra: &[&str]| host.asks(branch.seed_command(&[("sda", Path::new(source))], extra)).run();
    let scratch = ["--scratch", host.scratch.path().to_str().unwrap()];
    seed("libvirt:db01#vdz", &scratch).refused(2, &["(vda: qcow2, vdb: qcow2, vdc: raw), found vdz"]);
    seed("libvirt:db09#vda", &scratch).refused(1, &["failed to get domain", "virsh list --all"]);
    seed("libvirt:1#vda", &scratch).refused(2, &["expected the name or UUID of a machine, found the number of db01"]);
    // The state directory is ours alone.
    seed("libvirt:db01#vda", &[]).refused(1, &["can enter, which runs as user 65534", "--scratch"]);
    let elsewhere = branch.seed_command(&[("sda", Path::new("libvirt:db01#vda"))], &scratch);
    let elsewhere = elsewhere.env("LIBVIRT_DEFAULT_URI", "test:///default").run();
    elsewhere.refused(1, &["expected a connection to QEMU on this host, found test:///default"]);
    // Others take the room, all but 8 MiB, of which the guest has use for in a while only: what is kept is the reserve.
    let mut running = under_way(&host, &branch, &[]);
    let room = rustix::fs::statvfs(host.scratch.path()).unwrap();
    let others = host.scratch.path().join("others");
    let taken = std::fs::File::create(&others).unwrap();
    let bytes = room.f_bavail * room.f_frsize - 8 * MIB;
    rustix::fs::fallocate(&taken, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
    assert!(!running.until(LIMIT, |_| false));
    running
        .wait()
        .refused(1, &["Machine db01: its snapshot is lost", "was about to fill", "the machine itself went on"]);
    // Its files are gone; all of that is taken, too.
    let room = rustix::fs::statvfs(host.scratch.path()).unwrap();
    let more = room.f_bavail * room.f_frsize - MIB;
    rustix::fs::fallocate(&taken, rustix::fs::FallocateFlags::empty(), bytes, more).unwrap();
    host.seed(&branch, &[]).run().refused(1, &["Scratch directory", "expected at least", "--scratch DIR"]);
    drop(taken);
    std::fs::remove_file(others).unwrap();
    host.has_nothing_of_ours();
    host.goes_on();
    let running = under_way(&host, &branch, &[]);
    running.signal(libc::SIGINT);
    running.wait().refused(5, &["Job stopped by SIGINT"]);
    host.has_nothing_of_ours();
    // Somebody ends the job: nothing that was read counts.
    let running = under_way(&host, &branch, &[]);
    host.virsh(&["domjobabort", "db01"]);
    branch.run(["limit", "--read", "off"]);
    running.wait().refused(1, &["Machine db01: its snapshot is lost", "next: run the same command again"]);
    let finished = sql(&branch.live_manifest(), "SELECT count(*) FROM generation WHERE finished_at IS NOT NULL");
    assert_eq!(finished, "0");
    host.goes_on();
    let running = under_way(&host, &branch, &[]);
    host.virsh(&["destroy", "db01"]);
    running.wait().refused(1, &["Machine db01: its snapshot is lost", "the machine has ended"]);
    host.seed(&branch, &[]).run().refused(1, &["Machine db01: expected it to run, found it shut off"]);
    assert_eq!(host.scratch_files(), 0);
}
