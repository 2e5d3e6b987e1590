//! Goal: a file or device of a machine behind ssh is a source as any other, whatever shell, `dd` and login scripts are there; a
//! sector that cannot be read there is the same range here. Method: the binary over a real sshd; digests by stock `b3sum`.

use super::far::Far;
use crate::common::{Branch, Fault, SourceFs, b3sum, loop_device, noise, noise_at, sparse, sql, tool, write_at};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const FROZEN: &[&str] = &["--point-in-time"];

/// 24 MiB and a bit: a GPT, noise in every second mebibyte, holes elsewhere.
fn image(branch: &Branch, more: u64) -> PathBuf {
    let path = branch.place.join("disk.raw");
    sparse(&path, 24 * MIB);
    tool("sgdisk", ["-n1:2048:0", path.to_str().unwrap()]);
    let file = File::options().write(true).open(&path).unwrap();
    (2..22).step_by(2).for_each(|at| noise_at(&file, at * MIB, MIB, at));
    noise_at(&file, 24 * MIB, more, 99);
    file.sync_all().unwrap();
    path
}

#[test]
fn a_disk_of_another_machine_is_seeded_and_a_scan_finds_exactly_what_changed() {
    for attached in [false, true] {
        let branch = Branch::ready();
        let far = Far::plain(&branch);
        // A file need not end with a sector.
        let raw = image(&branch, if attached { 1024 } else { 777 });
        let device = attached.then(|| loop_device(&raw));
        let disk = device.as_ref().map_or(raw.as_path(), |device| device.path()).to_owned();
        let seeded = far.seed(&branch, &disk, FROZEN).ok();
        let seen = &seeded["disks"][0];
        assert_eq!((&seen["digest"], &seen["bytes"]), (&b3sum(&raw).into(), &raw.metadata().unwrap().len().into()));
        assert!(seeded["engine"].as_str().is_none_or(|engine| engine.ends_with("+ssh")), "{seeded}");
        let again = far.seed(&branch, &disk, FROZEN).ok();
        assert_eq!(again["disks"][0]["read_bytes"], 0, "{again}");
        branch.seal();
        let manifest = branch.live_manifest();
        let facts: Value = serde_json::from_str(&sql(&manifest, "SELECT facts FROM disk")).unwrap();
        assert_eq!((&facts["transport"], &facts["table"]["partitions"][0]["number"]), (&"ssh".into(), &1.into()));
        assert_eq!(sql(&manifest, "SELECT source FROM generation"), far.text(&disk).display().to_string());
        let blocks = |scanned: Value| {
            ["unchanged", "changed", "zeroed"].map(|kind| scanned["disks"][0]["blocks"][kind].as_u64().unwrap())
        };
        assert_eq!(blocks(far.scan(&branch).ok()), [25, 0, 0]);
        write_at(&disk, 9 * MIB + 77, b"a booking");
        write_at(&disk, 12 * MIB, &vec![0; MIB as usize]);
        tool("sync", ["-f", raw.to_str().unwrap()]);
        assert_eq!(blocks(far.scan(&branch).ok()), [23, 1, 1]);
        assert!(far.is_left_alone(), "{:?}", far.running());
    }
}

/// MANUAL: "Any POSIX shell and any `dd` will do".
#[test]
fn whatever_shell_and_dd_are_there_the_bytes_are_the_same() {
    // As it was before GNU's: nothing but what POSIX names.
    let old_dd = "for word; do case $word in if=*|of=*|bs=*|skip=*|count=*) ;; *) echo \"dd: bad arg: $word\" >&2; exit 2 ;; esac; done; exec /usr/bin/dd \"$@\"";
    // A system that says nothing of sizes, so that they are searched for.
    let mute = [("dd", old_dd), ("ls", "exit 1"), ("blockdev", "exit 1"), ("renice", "exit 1"), ("ionice", "exit 1")];
    let cases: [(&str, &dyn Fn(&Branch) -> String); 8] = [
        ("dash", &|branch| Far::programs(branch, "bin", &[("sh", "/bin/dash")])),
        ("bash", &|branch| Far::programs(branch, "bin", &[("sh", "/bin/bash")])),
        ("busybox", &|branch| {
            Far::programs(branch, "bin", &["sh", "dd", "ls", "test"].map(|name| (name, "/bin/busybox")))
        }),
        ("mksh", &|branch| Far::programs(branch, "bin", &[("sh", "/bin/mksh")])),
        ("ksh93", &|branch| Far::programs(branch, "bin", &[("sh", "/usr/bin/ksh93")])),
        ("old", &|branch| Far::scripts(branch, "bin", &mute)),
        ("noisy", &|branch| {
            let noise = branch
                .place
                .file("noise", "echo 'Welcome to db07.'; echo '*** authorised use only ***' >&2; printf 'no newline'");
            format!("SetEnv BASH_ENV={}\n", noise.display())
        }),
        ("a banner", &|branch| format!("Banner {}\n", branch.place.file("banner", "Welcome.\n").display())),
    ];
    for (name, options) in cases {
        let branch = Branch::ready();
        let far = Far::with(&branch, &options(&branch));
        let mut disks = Vec::new();
        // A quote, a blank, a dollar and a backslash in the path.
        let dir = branch.place.dir(r"it's $HOME\c");
        let sizes = match name {
            "old" => vec![0, 1, 511, 512, 4095, 4096, 4097, MIB, MIB + 1, 3 * MIB + 4096 + 5],
            _ => vec![0, 4096, 3 * MIB + 4096 + 5],
        };
        for bytes in sizes {
            let path = dir.join(format!("d{bytes}"));
            noise(&path, bytes, bytes);
            disks.push((format!("d{bytes}"), far.text(&path), b3sum(&path)));
        }
        let named: Vec<(&str, &Path)> = disks.iter().map(|(name, text, _)| (name.as_str(), text.as_path())).collect();
        let seeded = far.seed_command(&branch, &named, FROZEN).run().ok();
        for (at, (disk, _, digest)) in disks.iter().enumerate() {
            assert_eq!(seeded["disks"][at]["digest"], digest.as_str(), "{name}: {disk}");
        }
        assert!(far.is_left_alone(), "{name}: {:?}", far.running());
    }
}

/// What a far kernel kept of a device is not what lies on it now: past the page cache, or the cache is emptied first.
#[test]
fn what_the_far_kernel_kept_of_a_device_is_not_taken_for_what_lies_on_it() {
    let plain_dd = "for word; do case $word in iflag=*) exit 1 ;; esac; done; exec /usr/bin/dd \"$@\"";
    for old in [false, true] {
        let branch = Branch::ready();
        let options = if old { Far::scripts(&branch, "bin", &[("dd", plain_dd)]) } else { String::new() };
        let far = Far::with(&branch, &options);
        let raw = image(&branch, 0);
        let device = loop_device(&raw);
        // As a mounted file system does: it holds the device open, and what was read of it stays.
        let _held = File::open(device.path()).unwrap();
        let seeded = far.seed(&branch, device.path(), FROZEN).ok();
        assert_eq!(seeded["disks"][0]["digest"], b3sum(&raw));
        branch.seal();
        tool("dd", [&format!("if={}", device.path().display()), "of=/dev/null", "bs=1M", "status=none"]);
        // Behind its back, as a file system writes behind that of its device.
        write_at(&raw, 9 * MIB, b"a booking");
        tool("sync", ["-f", raw.to_str().unwrap()]);
        assert_eq!(far.scan(&branch).ok()["disks"][0]["blocks"]["changed"], 1, "old: {old}");
        let notes = sql(&branch.live_manifest(), "SELECT facts FROM disk").contains("page cache");
        assert_eq!(notes, old);
    }
}

/// MANUAL: "a sector that cannot be read there".
#[test]
fn sectors_that_cannot_be_read_there_are_named_and_the_rest_is_right() {
    for shell in ["dash", "busybox"] {
        let branch = Branch::ready();
        let links = ["sh", "dd"].map(|name| (name, "/bin/busybox"));
        let options = if shell == "dash" { String::new() } else { Far::programs(&branch, "bin", &links) };
        let far = Far::with(&branch, &options);
        let raw = branch.place.join("good.raw");
        noise(&raw, 8 * MIB + 4096, 3);
        let served = SourceFs::serve(&branch.place.join("mnt"), &raw);
        // Two pages of one block, one of another, and the very last.
        let bad = [5 * 4096..7 * 4096, 1500 * 4096..1501 * 4096, 8 * MIB..8 * MIB + 4096];
        bad.iter().for_each(|range| served.fault(range.clone(), Fault::ReadError));
        let seeded = far.seed(&branch, &served.path(), FROZEN).code(3);
        assert_eq!(seeded["disks"][0]["unreadable_bytes"], 4 * 4096, "{shell}: {seeded}");
        let rows = sql(&branch.live_manifest(), "SELECT offset || '+' || bytes FROM unreadable ORDER BY offset");
        assert_eq!(rows, "20480+8192\n6144000+4096\n8388608+4096", "{shell}");
        // Everything else is what lies there.
        let expected = branch.place.join("expected.raw");
        std::fs::copy(&raw, &expected).unwrap();
        bad.iter().for_each(|range| write_at(&expected, range.start, &vec![0; (range.end - range.start) as usize]));
        assert_eq!(seeded["disks"][0]["digest"], b3sum(&expected), "{shell}");
    }
}

/// A read that gives less than it was asked for is no end and no fault.
#[test]
fn short_reads_there_are_gone_on_behind() {
    let branch = Branch::ready();
    let far = Far::plain(&branch);
    let raw = branch.place.join("good.raw");
    noise(&raw, 4 * MIB, 4);
    let served = SourceFs::serve(&branch.place.join("mnt"), &raw);
    served.fault(MIB..3 * MIB, Fault::Short(50_000));
    assert_eq!(far.seed(&branch, &served.path(), FROZEN).ok()["disks"][0]["digest"], b3sum(&raw));
    assert!(served.hit() > 0);
}

#[test]
fn another_disk_or_machine_in_the_place_of_the_one_that_was_seeded_is_refused() {
    let branch = Branch::ready();
    let far = Far::plain(&branch);
    let raw = image(&branch, 0);
    far.seed(&branch, &raw, FROZEN).ok();
    // A clone has the same table, and is another machine's.
    let elsewhere = PathBuf::from(format!("ssh:farther:{}", raw.display()));
    let ran = far.seed_command(&branch, &[("sda", &elsewhere)], FROZEN).run();
    ran.refused(1, &["is not the same disk any more", "expected a disk of machine far, found one of farther"]);
    // Of a disk that is complete nobody is asked any more; of one that is not, everything must be as it was.
    let cut = Branch::ready();
    let slow = [FROZEN, &["--read-limit", "4MiB"]].concat();
    let mut running = far.seed_command(&cut, &[("sda", &far.text(&raw))], &slow).start();
    assert!(running.until(std::time::Duration::from_secs(30), |_| !cut.packs().is_empty()), "{}", running.said());
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 5);
    tool("sgdisk", ["-G", raw.to_str().unwrap()]);
    far.seed(&branch, &raw, FROZEN).ok();
    far.seed(&cut, &raw, FROZEN).refused(1, &["ssh:far:"]);
    sparse(&raw, 25 * MIB);
    far.seed(&cut, &raw, FROZEN).refused(1, &["ssh:far:"]);
    let fresh = Branch::ready();
    let text = far.text(&raw);
    let twice = far.seed_command(&fresh, &[("sda", &text), ("sdb", &text)], &[]).run();
    twice.refused(2, &["expected two different disks"]);
}

/// MANUAL: the snapshot hook that works on the far machine; a file's copy stands for `lvcreate` here.
#[test]
fn a_snapshot_hook_makes_the_snapshot_there() {
    let branch = Branch::ready();
    let far = Far::plain(&branch);
    let (raw, frozen) = (image(&branch, 0), branch.place.join("frozen.raw"));
    let (ssh, from, to) = (far.way(), raw.display(), frozen.display());
    let hook = |name: &str, text: String| branch.place.file(name, format!("#!/bin/sh\nset -e\n{text}\n"));
    let snapshot = hook("snapshot", format!("{ssh} far cp {from} {to}\necho sda=ssh:far:{to}"));
    let discard = hook("discard", format!("{ssh} far rm -f {to}"));
    let plan = format!(
        "[[machine]]\nname = \"db07\"\n[machine.hooks]\nsnapshot = [\"sh\", \"{}\"]\ndiscard = [\"sh\", \"{}\"]\n[[machine.disk]]\nname = \"sda\"\nsource = \"{}\"\n",
        snapshot.display(),
        discard.display(),
        far.text(&raw).display()
    );
    let plan = branch.place.file("plan.toml", plan);
    let command = branch.motiongear().args(["--json", "seed"]).arg(&branch.array);
    let seeded = command.args(["--plan", plan.to_str().unwrap()]).env("MOTIONGEAR_SSH", &far.way()).run().ok();
    assert_eq!((&seeded["disks"][0]["digest"], &seeded["disks"][0]["basis"]), (&b3sum(&raw).into(), &"hook".into()));
    assert!(!frozen.exists());
    assert_eq!(sql(&branch.live_manifest(), "SELECT source FROM generation"), far.text(&raw).display().to_string());
}
