//! Goal: both disks of a machine that runs and writes are copied as they were at one instant, and neither the machine nor its QEMU is
//! ever worse off, whatever ends or fails. Method: the guest's disks are made anew from how far it was (`machine`), and compared with
//! what was imported; QEMU itself is asked what is left in it.

use super::machine::{BYTES, LIMIT, MIB, Machine};
use crate::common::{Background, Branch, Motiongear, Mount, b3sum, disk, sql, tool, try_tool};
use motiongear::qmp::Qmp;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Seals and imports; the image files of both disks.
pub fn imported(branch: &Branch) -> [PathBuf; 2] {
    branch.seal();
    let volumes = branch.place.join("volumes");
    let centre = Motiongear::new(&branch.place.join("centre"));
    let (to, trust) = (format!("dir:{}", volumes.display()), branch.trust.to_str().unwrap());
    let command = centre.args(["--json", "import"]).arg(&branch.array).args(["--to", &to, "--trust", trust]);
    let done = command.arg("--identity").arg(&branch.identity).run().ok();
    assert!(done["disks"].as_array().unwrap().iter().all(|disk| disk["proven"] == true), "{done}");
    ["sda", "sdb"].map(|disk| volumes.join(&branch.site).join(format!("db01/{disk}.raw")))
}

/// Blocks in the live manifest; none while it is made.
fn committed(branch: &Branch) -> u64 {
    let made = std::fs::read_dir(branch.state.join("shipments")).is_ok_and(|mut found| found.next().is_some());
    let count = |manifest: PathBuf| try_tool("sqlite3", [manifest.as_os_str(), "SELECT count(*) FROM block".as_ref()]);
    if made { count(branch.live_manifest()).stdout.trim().parse().unwrap_or(0) } else { 0 }
}

/// Whether it has read anything, as it says once a second.
fn reads(running: &Background) -> bool {
    running.said().split("\"read\":").skip(1).any(|rest| !rest.starts_with('0'))
}

/// A slow seed that reads from its snapshot, with some blocks committed by this or an earlier run. The guest has overwritten much of what is not read yet.
fn under_way(machine: &Machine, branch: &Branch, extra: &[&str]) -> Background {
    started(machine.seed(branch, &[&["--read-limit", "1MiB"], extra].concat()), branch)
}

/// A slow seed, started, that reads.
pub fn started(seed: Motiongear, branch: &Branch) -> Background {
    let mut running = seed.start();
    assert!(running.until(LIMIT, |running| reads(running) && committed(branch) > 0), "{}", running.said());
    running
}

pub fn both_are_consistent(seeded: &Value) {
    for name in ["sda", "sdb"] {
        let disk = disk(&seeded["disks"], name);
        assert_eq!((&disk["consistency"], &disk["basis"]), (&"consistent".into(), &"source".into()), "{disk}");
    }
}

/// MANUAL: "All disks of the machine are of one instant".
#[test]
fn both_disks_of_a_running_machine_are_of_one_instant() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    let before = machine.written();
    let mut running = under_way(&machine, &branch, &[]);
    let began = machine.written();
    assert!(!machine.ours().is_empty());
    // Somebody else's copy of the same instant, while the guest goes on.
    let socket = own_socket(u32::try_from(running.pid()).unwrap());
    let copies = [0, 1].map(|i| {
        let (uri, copy) =
            (format!("nbd+unix:///motiongear-{i}-disk?socket={socket}"), branch.place.join(format!("{i}")));
        tool("nbdcopy", [uri.as_str(), copy.to_str().unwrap()]);
        copy
    });
    machine.waits_for("much to be overwritten", |machine| machine.written() > began + 1000);
    branch.run(["limit", "--read", "off"]).ok();
    assert!(!running.until(LIMIT, |_| false));
    let seeded = running.wait().ok();
    both_are_consistent(&seeded);
    machine.goes_on();
    machine.has_nothing_of_ours();
    // Nothing of the socket is left either.
    assert!(!Path::new(&socket).exists());
    let images = imported(&branch);
    let last = machine.is_one_instant(&images);
    assert!(last >= before && last <= began + 16, "{before} {last} {began}");
    for (copy, (image, name)) in copies.iter().zip(images.iter().zip(["sda", "sdb"])) {
        let digest = &disk(&seeded["disks"], name)["digest"];
        assert_eq!((&b3sum(copy), &b3sum(image)), (&digest.as_str().unwrap().into(), &b3sum(copy)));
    }
    // What stands on the disks was seen in the snapshot.
    let facts: Value = serde_json::from_str(&sql(&branch.live_manifest(), "SELECT facts FROM disk LIMIT 1")).unwrap();
    assert_eq!((&facts["transport"], &facts["table"]["partitions"][0]["number"]), (&"qemu".into(), &1.into()));
    // The same command again is done at once, and leaves the machine alone.
    let again = machine.seed(&branch, &["--reopen"]).run().ok();
    assert_eq!(disk(&again["disks"], "sda")["read_bytes"], 0);
    assert_eq!(disk(&again["disks"], "sda")["digest"], disk(&seeded["disks"], "sda")["digest"]);
    machine.has_nothing_of_ours();
}

/// The socket of the NBD server that the running seed `pid` has; others have some for other tests.
fn own_socket(pid: u32) -> String {
    let of_seed = format!("server-{pid}-");
    let ours = |path: &PathBuf| {
        let uri = format!("nbd+unix:///motiongear-1-disk?socket={}", path.display());
        path.exists() && try_tool("nbdinfo", ["--size", &uri]).stdout.trim() == BYTES.to_string()
    };
    let found = std::fs::read_dir("/run/motiongear").unwrap().map(|entry| entry.unwrap().path());
    let found = found.filter(|dir| dir.file_name().unwrap().to_str().unwrap().starts_with(&of_seed));
    let found = found.map(|dir| dir.join("socket"));
    found.into_iter().find(ours).expect("no socket").to_str().unwrap().to_owned()
}

/// MANUAL: "killed, its watchdog takes everything out of QEMU again".
#[test]
fn killed_in_mid_seed_nothing_is_left_in_the_machine_and_the_same_command_goes_on() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    for _ in 0..2 {
        let running = under_way(&machine, &branch, &[]);
        assert!(!machine.ours().is_empty());
        running.kill();
        machine.waits_for("the watchdog", |machine| machine.ours().is_empty());
        machine.goes_on();
    }
    let log = std::fs::read_to_string(branch.state.join("thaw-watchdog.log")).unwrap();
    assert_eq!(log.matches("machine db01: MotionGear is gone; thaw attempt 1: exit 0").count(), 2, "{log}");
    // Interrupted in good order, it does that itself.
    let running = under_way(&machine, &branch, &[]);
    running.signal(libc::SIGINT);
    running.wait().refused(5, &["Job stopped by SIGINT"]);
    machine.has_nothing_of_ours();
    let seeded = machine.seed(&branch, &[]).run().ok();
    both_are_consistent(&seeded);
    machine.has_nothing_of_ours();
    let bitmaps = machine.sources().map(|source| machine.bitmaps(&source).len());
    assert_eq!(bitmaps, [1, 1], "those of the runs that came to nothing are gone");
    machine.is_one_instant(&imported(&branch));
    machine.goes_on();
}

/// What the watchdog would have done, where it was killed as well.
#[test]
fn what_a_killed_run_and_its_killed_watchdog_left_goes_with_the_next_one_or_by_hand() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    let killed = || {
        let running = under_way(&machine, &branch, &[]);
        let children = format!("/proc/{0}/task/{0}/children", running.pid());
        let watchdog: i32 = std::fs::read_to_string(children).unwrap().trim().parse().expect("one child");
        // SAFETY: a plain system call; the child of a child that is alive.
        unsafe { libc::kill(watchdog, libc::SIGKILL) };
        running.kill();
        assert!(!machine.ours().is_empty());
        machine.goes_on();
    };
    killed();
    let socket = machine.socket();
    let released = branch.run(["release".as_ref(), socket.as_os_str()]).ok();
    assert!(released["removed"].as_array().unwrap().contains(&"motiongear-0-view".into()), "{released}");
    machine.has_nothing_of_ours();
    machine.goes_on();
    let nothing = branch.run(["release".as_ref(), socket.as_os_str()]).code(1);
    assert_eq!(nothing["removed"], json!([]));
    killed();
    both_are_consistent(&machine.seed(&branch, &[]).run().ok());
    machine.has_nothing_of_ours();
    machine.is_one_instant(&imported(&branch));
    let with = [socket.as_os_str(), "--bitmaps".as_ref()];
    branch.run(["release".as_ref(), with[0], with[1]]).ok();
    assert_eq!(machine.sources().map(|source| machine.bitmaps(&source).len()), [0, 0]);
}

/// MANUAL: "rather than a write of the machine fails, the snapshot is given up".
#[test]
fn where_what_is_overwritten_finds_no_room_the_snapshot_is_lost_and_the_machine_goes_on() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    let small = Mount::new(Path::new("tmpfs"), &branch.place.join("small"), &["-t", "tmpfs", "-o", "size=4m"]);
    let scratch = small.path().to_str().unwrap();
    let lost = machine.seed(&branch, &["--scratch", scratch, "--read-limit", "1MiB"]).run();
    lost.refused(
        1,
        &[
            "Machine db01: its snapshot is lost",
            "which is full, slow or broken",
            "the machine itself went on",
            "next: run the same command again",
        ],
    );
    machine.goes_on();
    machine.has_nothing_of_ours();
    assert!(std::fs::read_dir(small.path()).unwrap().next().is_none());
    // All of it is there for the next.
    let free = rustix::fs::statvfs(small.path()).unwrap();
    assert_eq!(free.f_bfree, free.f_blocks);
    std::fs::write(small.path().join("full"), vec![1; 3 << 20]).unwrap();
    let ran = machine.seed(&branch, &["--scratch", scratch]).run();
    ran.refused(1, &[scratch, "expected at least 1.5 MiB free", "--scratch DIR"]);
    machine.has_nothing_of_ours();
    both_are_consistent(&machine.seed(&branch, &[]).run().ok());
    machine.is_one_instant(&imported(&branch));
    machine.goes_on();
}

/// MANUAL: "when only the reserve is left, the snapshot is given up and its files are gone".
#[test]
fn where_others_take_the_room_the_snapshot_is_given_up_at_once() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    let shared = Mount::new(Path::new("tmpfs"), &branch.place.join("shared"), &["-t", "tmpfs", "-o", "size=400m"]);
    let mut running = under_way(&machine, &branch, &["--scratch", shared.path().to_str().unwrap()]);
    assert!(!machine.ours().is_empty());
    // All but 8 MiB, of which the guest has use for in a while only: what is kept is the reserve.
    let free = |mount: &Mount| {
        let room = rustix::fs::statvfs(mount.path()).unwrap();
        room.f_bavail * room.f_frsize
    };
    let taken = std::fs::File::create(shared.path().join("others")).unwrap();
    rustix::fs::fallocate(&taken, rustix::fs::FallocateFlags::empty(), 0, free(&shared) - 8 * MIB).unwrap();
    assert!(!running.until(LIMIT, |_| false));
    running.wait().refused(1, &["Machine db01: its snapshot is lost", "which is full, slow or broken"]);
    machine.has_nothing_of_ours();
    assert!(free(&shared) >= 8 * MIB);
    machine.goes_on();
    drop(taken);
    std::fs::remove_file(shared.path().join("others")).unwrap();
    both_are_consistent(&machine.seed(&branch, &["--scratch", shared.path().to_str().unwrap()]).run().ok());
}

#[test]
fn a_machine_that_ends_ends_the_seed_and_a_new_point_in_time_is_taken_when_it_is_back() {
    let branch = Branch::ready();
    let mut machine = Machine::start(&branch.place);
    let running = under_way(&machine, &branch, &[]);
    machine.kill();
    running.wait().refused(1, &["Machine db01: its snapshot is lost", "QEMU at ", "has ended"]);
    let ran = machine.seed(&branch, &[]).run();
    ran.refused(1, &["QEMU monitor", "nobody answers", "next: "]);
    machine.switch_on();
    both_are_consistent(&machine.seed(&branch, &[]).run().ok());
    machine.is_one_instant(&imported(&branch));
    machine.goes_on();
    machine.has_nothing_of_ours();
}

/// MANUAL: "nothing that was read counts".
#[test]
fn what_was_read_counts_only_while_the_snapshot_was_whole() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    let running = under_way(&machine, &branch, &[]);
    machine.qmp().call("block-export-del", json!({ "id": "motiongear-1-disk", "mode": "hard" })).unwrap();
    branch.run(["limit", "--read", "off"]);
    running.wait().refused(1, &["does not export it any more", "next: run the same command again"]);
    let finished = sql(&branch.live_manifest(), "SELECT count(*) FROM generation WHERE finished_at IS NOT NULL");
    assert_eq!(finished, "0");
    machine.has_nothing_of_ours();
    both_are_consistent(&machine.seed(&branch, &[]).run().ok());
    machine.is_one_instant(&imported(&branch));
    machine.goes_on();
}

/// Freeze and thaw are for a guest agent; the snapshot between them is the machine's own.
#[test]
fn hooks_freeze_and_thaw_around_the_machines_own_snapshot() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    let [first, second] = machine.sources().map(|source| source.display().to_string());
    let plan = |hooks: &str, second: &str| {
        let text = format!(
            "[[machine]]\nname = \"db01\"\n[machine.hooks]\n{hooks}\n[[machine.disk]]\nname = \"sda\"\nsource = \"{first}\"\n[[machine.disk]]\nname = \"sdb\"\nsource = \"{second}\"\n"
        );
        branch.place.file("plan.toml", text)
    };
    let frozen = branch.place.join("frozen");
    let path = frozen.display();
    let hook = |word: &str| format!("{word} = [\"sh\", \"-c\", \"echo {word} >> {path}\"]");
    let seeded = branch
        .on_array(
            "seed",
            ["--plan".as_ref(), plan(&format!("{}\n{}", hook("freeze"), hook("thaw")), &second).as_os_str()],
        )
        .ok();
    both_are_consistent(&seeded);
    assert_eq!(std::fs::read_to_string(&frozen).unwrap(), "freeze\nthaw\n");
    let events = "SELECT group_concat(substr(detail, 1, instr(detail, ' ') - 1), ' ') FROM event WHERE kind = 'hook'";
    assert_eq!(sql(&branch.live_manifest(), events), "freeze snapshot thaw");
    for (hooks, second, part) in [
        (hook("snapshot"), second.as_str(), "which takes the snapshot itself"),
        (hook("discard"), &second, "which takes the snapshot itself"),
        (String::new(), "/dev/null", "expected all disks of the machine at the monitor"),
        (String::new(), "qmp:/run/other#x", "expected all disks of the machine at the monitor"),
        (hook("freeze"), &second, "expected a thaw hook"),
    ] {
        branch.on_array("seed", ["--plan".as_ref(), plan(&hooks, second).as_os_str()]).refused(2, &[part]);
    }
    machine.has_nothing_of_ours();
}

/// QEMU has one NBD server; who has it keeps it.
#[test]
fn an_nbd_server_of_somebody_else_is_left_alone() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    let theirs = machine.dir.join("theirs").display().to_string();
    let start = |qmp: &mut Qmp| {
        qmp.call("nbd-server-start", json!({ "addr": { "type": "unix", "data": { "path": theirs } } })).unwrap();
        qmp.call("block-export-add", json!({ "type": "nbd", "id": "theirs", "node-name": "first", "name": "x" }))
            .unwrap();
    };
    start(&mut machine.qmp());
    let ran = machine.seed(&branch, &[]).run();
    ran.refused(1, &["nbd-server-start", "already running", "one NBD server only"]);
    let size = tool("nbdinfo", ["--size", &format!("nbd+unix:///x?socket={theirs}")]);
    assert_eq!(size.trim(), BYTES.to_string());
    assert_eq!(machine.ours(), Vec::<String>::new());
    machine.qmp().call("nbd-server-stop", json!({})).unwrap();
    both_are_consistent(&machine.seed(&branch, &[]).run().ok());
}
