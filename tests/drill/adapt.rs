//! Adapted before it boots, by the real virt-v2v-in-place: a machine whose initramfs finds its root on SATA alone, on the virtio of a cloud. What is
//! looked at afterwards: the volume, processes, files, and that everybody is told that what booted is not what was sealed.

use super::{Centre, LOGIN, gone, id_of};
use crate::cloud::shared;
use crate::common::{Place, b3sum, full, json_file, sparse, tool};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// For a conversion under TCG while other tests run.
const ADAPTS: &str = "9m";
/// What an initramfs of Debian says when it found no root.
const LOST: &str = "Dropping to a shell";

/// The machine that knows no virtio.
fn sata() -> PathBuf {
    let disk = super::machine().with_file_name("sata.raw");
    assert!(disk.exists(), "{} is missing; tests/run brings it", disk.display());
    disk
}

/// A disk with a place for a boot loader, and no system.
fn empty(place: &Place) -> PathBuf {
    let disk = place.join("disk.raw");
    sparse(&disk, 8 << 20);
    tool("sgdisk", ["--new=1:1M:+1M", "--typecode=1:ef02", "--new=2:2M:0", disk.to_str().unwrap()]);
    disk
}

fn imported(disk: &Path) -> Centre {
    let centre = Centre::of(&[("sda", disk)]);
    centre.import(&centre.to_dir(), &[]).run().ok();
    centre
}

fn newest(centre: &Centre) -> Value {
    let all = centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().clone();
    all.last().cloned().unwrap_or_default()
}

/// All processes that descend from `parent`, with their programs' names.
fn descendants(parent: i32) -> Vec<(i32, String)> {
    let all: Vec<(i32, i32, String)> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, rest) = stat.rsplit_once(") ")?;
            let (pid, name) = head.split_once(" (")?;
            Some((pid.parse().ok()?, rest.split(' ').nth(1)?.parse().ok()?, name.to_owned()))
        })
        .collect();
    let (mut found, mut parents) = (Vec::new(), vec![parent]);
    while let Some(parent) = parents.pop() {
        for (pid, _, name) in all.iter().filter(|(_, of, _)| *of == parent) {
            parents.push(*pid);
            found.push((*pid, name.clone()));
        }
    }
    found
}

/// Whether a process is there, and no zombie.
fn lives(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A drill whose converter has its own small machine running: its UUID, its keeper, and all that the keeper started.
fn converting(centre: &Centre) -> (crate::common::run::Background, String, i32, Vec<(i32, String)>) {
    let running =
        centre.drill(&["start", "db01", "--memory", "512MiB", "--accel", "tcg", "--adapt", "--adapt-within", ADAPTS]);
    let running = running.start();
    let (mut keeper, mut below) = (0, Vec::new());
    gone(|| {
        let drill = newest(centre);
        if drill["status"] != "preparing" {
            return false;
        }
        keeper = drill["course"]["keeper"].as_i64().unwrap_or_default() as i32;
        below = if keeper == 0 { Vec::new() } else { descendants(keeper) };
        below.iter().any(|(_, name)| name.starts_with("qemu-system"))
    });
    (running, id_of(&newest(centre)), keeper, below)
}

#[test]
fn a_machine_that_lacks_drivers_boots_once_it_is_adapted() {
    let centre = imported(&sata());
    let before = b3sum(&centre.volume("sda"));
    assert_eq!(before, b3sum(&sata()));
    // As it is, it does not find its root on virtio. Beside it the other one is adapted meanwhile.
    let as_it_is = centre.start(&["--marker", LOST, "--within", LOGIN]).start();
    let adapted = [
        "start",
        "db01",
        "--memory",
        "512MiB",
        "--accel",
        "tcg",
        "--within",
        LOGIN,
        "--adapt",
        "--adapt-within",
        ADAPTS,
    ];
    let started = centre.drill(&adapted).run().ok();
    let lost = as_it_is.wait().ok();
    assert_eq!(
        (&lost["course"]["seen"]["sign"], &lost["drill"]["bus"]),
        (&"marker".into(), &"virtio".into()),
        "{lost}"
    );
    assert!(lost["drill"].get("adapt").is_none() && lost["course"].get("adaptation").is_none(), "{lost}");
    centre.end(&id_of(&lost));
    // Adapted, it asks for a login there.
    let id = id_of(&started);
    let (drill, course) = (&started["drill"], &started["course"]);
    assert_eq!((&course["seen"]["sign"], &drill["bus"]), (&"login".into(), &"virtio".into()), "{started}");
    let by = drill["adapt"]["by"].as_str().unwrap();
    let version =
        String::from_utf8(Command::new("virt-v2v-in-place").arg("--version").output().unwrap().stdout).unwrap();
    assert_eq!(by, version.trim());
    let adaptation = &course["adaptation"];
    assert_eq!((&adaptation["state"], adaptation["by"].as_str()), (&"done".into(), Some(by)), "{adaptation}");
    assert!(adaptation["seconds"].as_u64().unwrap() > 5, "{adaptation}");
    assert!(adaptation["remarks"].to_string().contains("virtio drivers installed"), "{adaptation}");
    // What it said is evidence, pinned by whoever confirms. Of its box nothing is left while the machine runs.
    let evidence = centre.evidence(&id);
    let log = std::fs::read_to_string(evidence.join("adapt.log")).unwrap();
    assert!(log.contains("Converting") && log.contains("Finishing off"), "{log}");
    assert!(!evidence.join("adapting").exists());
    let trust = centre.branch.trust.to_str().unwrap();
    centre.confirm(&id, "--passed", &["--trust", trust]).ok();
    let pinned = json_file(&evidence.join("confirm.json"));
    let pinned = pinned["evidence"].as_array().unwrap();
    let log = pinned.iter().find(|pinned| pinned["file"] == "adapt.log").unwrap();
    assert_eq!(log["blake3"], b3sum(&evidence.join("adapt.log")));
    // Nobody can take it for what was sealed: neither on the screen nor in the report.
    let words = [
        ("en", format!("ADAPTED by {by} in "), "what boots is not what was sealed"),
        ("zh", format!("启动前已由 {by} 适配"), "启动的并非封签时的原样"),
    ];
    for (lang, told, sealed) in words {
        let shown = centre.branch.motiongear().args(["--lang", lang, "drill", "show", &id]).run();
        assert!(shown.stdout.contains(&told) && shown.stdout.contains(sealed), "{}", shown.stdout);
        let command = centre.branch.motiongear().args(["--json", "--lang", lang, "report", "import"]);
        let report = command.arg(&centre.branch.array).args(["--trust", trust]).run().ok();
        let page = std::fs::read_to_string(report["html"].as_str().unwrap()).unwrap();
        assert!(page.contains("This guest has virtio drivers installed"), "the report lacks what was remarked");
        assert!(page.contains(&told) && page.contains(sealed), "the report does not say that it was adapted");
    }
    centre.end(&id);
    // Who alters what is known of it afterwards is seen.
    let path = evidence.join("course.json");
    let altered = std::fs::read_to_string(&path).unwrap().replace(by, "nobody 1.0");
    std::fs::write(&path, altered).unwrap();
    assert_eq!(centre.show(&id)["altered"][0], "course.json");
    assert_eq!(centre.show(&id)["course"]["adaptation"]["by"], by);
    assert_eq!(b3sum(&centre.volume("sda")), before);
    centre.volumes_are_as_they_were();
}

#[test]
fn wherever_its_disks_are_a_machine_of_several_is_adapted_on_its_clones_alone() {
    if !full() {
        println!("left out: it converts four times, under TCG; MOTIONGEAR_FAULTS=full runs it");
        return;
    }
    let _cloud = shared();
    let place = Place::new();
    let data = place.join("data.raw");
    sparse(&data, 64 << 20);
    tool("mkfs.ext4", ["-q", data.to_str().unwrap()]);
    let adapted = ["--memory", "512MiB", "--accel", "tcg", "--within", LOGIN, "--adapt", "--adapt-within", ADAPTS];
    let boots = |centre: &Centre, extra: &[&str]| {
        let started = centre.drill(&[&["start", "db01"], &adapted[..], extra].concat()).run().ok();
        let (drill, course) = (&started["drill"], &started["course"]);
        assert_eq!(
            (&course["seen"]["sign"], &course["adaptation"]["state"]),
            (&"login".into(), &"done".into()),
            "{course}"
        );
        assert_eq!((&drill["bus"], drill["disks"].as_array().unwrap().len()), (&"virtio".into(), 2), "{drill}");
        centre.end(&id_of(&started));
        started
    };
    for to in ["rbd:volumes?id=cinder", "cinder:?type=ceph"] {
        let centre = Centre::of(&[("sda", &sata()), ("sdb", &data)]);
        if to.starts_with("rbd") {
            // Before it is imported, too, and under the other firmware.
            let array = centre.branch.array.to_str().unwrap();
            let trust = centre.branch.trust.to_str().unwrap();
            boots(&centre, &["--from", array, "--trust", trust]);
        }
        centre.import(to, &[]).run().ok();
        boots(&centre, &[]);
        if to.starts_with("rbd") {
            assert_eq!(boots(&centre, &["--firmware", "uefi"])["drill"]["firmware"], "uefi");
        }
        centre.volumes_are_as_they_were();
    }
}

#[test]
fn what_cannot_be_adapted_is_said_and_boots_nothing() {
    let place = Place::new();
    let centre = imported(&empty(&place));
    let before = b3sum(&centre.volume("sda"));
    let start = ["start", "db01", "--memory", "128MiB", "--accel", "tcg", "--adapt"];
    // What is missing on this host is said before anything is made.
    centre
        .drill(&start)
        .env("PATH", place.path().to_str().unwrap())
        .run()
        .refused(1, &["virt-v2v-in-place: cannot be started", "install it (Debian: virt-v2v"]);
    let script = "mount -t tmpfs none /boot && exec \"$@\"";
    let without_kernel = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_motiongear"), "--state"])
        .arg(&centre.branch.state)
        .arg("drill")
        .args(start)
        .output()
        .unwrap();
    let said = String::from_utf8(without_kernel.stderr).unwrap();
    assert_eq!(without_kernel.status.code(), Some(1), "{said}");
    assert!(said.contains("expected one in /boot") && said.contains("linux-image-cloud-amd64"), "{said}");
    centre.drill(&[&start[..], &["--adapt-within", "0s"]].concat()).run().refused(2, &["as in 90s, 10m or 2h"]);
    assert_eq!(newest(&centre), Value::Null);
    // A disk without a system.
    let ran = centre.drill(&[&start[..], &["--adapt-within", ADAPTS]].concat()).run();
    let started = ran.code(3);
    let (id, course) = (id_of(&started), &started["course"]);
    assert_eq!((&course["state"], &course["adaptation"]["state"]), (&"failed".into(), &"failed".into()), "{course}");
    assert!(course["booted_at"].is_null() && course["seen"].is_null(), "{course}");
    let shown = centre.branch.motiongear().args(["drill", "show", &id]).run().stdout;
    let words =
        ["NOT ADAPTED, and never booted: virt-v2v-in-place could not adapt it (exit 1): ", "drill without --adapt"];
    words.iter().for_each(|word| assert!(shown.contains(word), "{shown}"));
    assert!(centre.evidence(&id).join("adapt.log").metadata().unwrap().len() > 100);
    centre.confirm(&id, "--passed", &[]).code(1);
    centre.end(&id);
    // It takes longer than it may.
    let ran = centre.drill(&[&start[..], &["--adapt-within", "4s"]].concat()).run();
    let started = ran.code(3);
    let words = started["course"]["words"].as_str().unwrap();
    assert!(words.contains("expected an end within 4 s") && words.contains("--adapt-within"), "{words}");
    centre.end(&id_of(&started));
    assert_eq!(b3sum(&centre.volume("sda")), before);
}

#[test]
fn whoever_is_killed_takes_the_converter_along() {
    let place = Place::new();
    let centre = imported(&empty(&place));
    let before = b3sum(&centre.volume("sda"));
    let all_gone = |below: &[(i32, String)]| gone(|| below.iter().all(|(process, _)| !lives(*process)));
    // The keeper. All that it started ends with it, the small machine of the converter, too.
    let (running, id, keeper, below) = converting(&centre);
    let names: Vec<&str> = below.iter().map(|(_, name)| name.as_str()).collect();
    assert!(names.iter().any(|name| name.starts_with("virt-v2v")) && names.contains(&"qemu-nbd"), "{names:?}");
    let converter = below.iter().find(|(_, name)| name.starts_with("virt-v2v")).unwrap().0;
    // It knows no secret of ours, and is on no network: of interfaces it sees its own loopback alone.
    let environment = std::fs::read(format!("/proc/{converter}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("OS_PASSWORD"));
    let interfaces = std::fs::read_to_string(format!("/proc/{converter}/net/dev")).unwrap();
    let interfaces: Vec<&str> = interfaces.lines().skip(2).filter_map(|line| line.trim().split(':').next()).collect();
    assert_eq!(interfaces, ["lo"]);
    tool("kill", ["-9", &keeper.to_string()]);
    all_gone(&below);
    running.wait().refused(1, &["expected its keeper to stay, found it gone"]);
    assert_eq!(centre.show(&id)["status"], "lost");
    centre.end(&id);
    // Whoever holds the converter: the keeper says so.
    let (running, id, keeper, below) = converting(&centre);
    let holder =
        below.iter().find(|(process, _)| descendants(*process).iter().any(|(_, name)| name.starts_with("virt-v2v")));
    tool("kill", ["-9", &holder.unwrap().0.to_string()]);
    let converters: Vec<_> = below.iter().filter(|(_, name)| name != "qemu-nbd").cloned().collect();
    all_gone(&converters);
    assert_eq!(running.wait().code(3)["course"]["adaptation"]["state"], "failed");
    gone(|| !lives(keeper));
    centre.end(&id);
    // `end`, in the middle of it.
    let (running, id, _, below) = converting(&centre);
    centre.end(&id);
    all_gone(&below);
    assert_eq!(running.wait().code(3)["course"]["state"], "failed");
    assert_eq!(b3sum(&centre.volume("sda")), before);
}
