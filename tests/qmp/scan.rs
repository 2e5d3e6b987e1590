//! Goal: a scan of a running machine reads what its dirty bitmap calls changed, and finds all that changed even where the bitmap is
//! missing, stopped half way, broken or lying. Method: the machine is held for a moment, so that its disks can be compared with what was
//! seeded byte by byte; the bitmap is worked on through QEMU's own commands.

use super::machine::{BYTES, LIMIT, MIB, Machine};
use crate::common::{Branch, tool};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A seeded machine whose guest keeps to `pages`, and what its disks were then.
fn seeded(branch: &Branch, pages: u64) -> (Machine, [PathBuf; 2]) {
    let machine = Machine::writing(&branch.place, pages);
    machine.seed(branch, &[]).run().ok();
    (machine, restored(branch))
}

/// What both disks were when they were seeded.
pub fn restored(branch: &Branch) -> [PathBuf; 2] {
    ["sda", "sdb"].map(|disk| {
        let image = branch.place.join(format!("{disk}.seeded"));
        let (trust, identity) = (branch.trust.to_str().unwrap(), branch.identity.to_str().unwrap());
        let arguments = [&format!("db01/{disk}"), image.to_str().unwrap(), "--trust", trust, "--identity", identity];
        if !branch.on("seal.json").exists() {
            branch.seal();
        }
        branch.on_array("restore", arguments).ok();
        image
    })
}

/// Scans; both disks' results.
fn scan(branch: &Branch, extra: &[&str]) -> [Value; 2] {
    let scanned = branch.run([&["scan"], extra].concat()).ok();
    ["db01/sda", "db01/sdb"]
        .map(|name| scanned["disks"].as_array().unwrap().iter().find(|disk| disk["disk"] == name).expect(name).clone())
}

/// Scans while the machine stands still; each disk's result must be what differs between its file and what was seeded.
#[track_caller]
fn exact(branch: &Branch, machine: &Machine, images: &[PathBuf; 2], extra: &[&str]) -> [Value; 2] {
    machine.qmp().call("stop", json!({})).unwrap();
    let found = scan(branch, extra);
    for (file, (image, disk)) in ["a.qcow2", "b.raw"].iter().zip(images.iter().zip(&found)) {
        is_exact(branch, &machine.dir.join(file), image, disk);
    }
    machine.qmp().call("cont", json!({})).unwrap();
    machine.has_nothing_of_ours();
    found
}

/// That a scan found what differs between a disk's file, which nobody writes to now, and what was seeded, block by block.
#[track_caller]
pub fn is_exact(branch: &Branch, file: &Path, image: &Path, disk: &Value) {
    let now = branch.place.join("now.raw");
    tool("qemu-img", ["convert", "-U", "-O", "raw", file.to_str().unwrap(), now.to_str().unwrap()]);
    let blocks =
        |path: &Path| std::fs::read(path).unwrap().chunks(MIB as usize).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (now, before) = (blocks(&now), blocks(image));
    let differ: Vec<bool> = now.iter().zip(&before).map(|(now, before)| now != before).collect();
    let told = std::fs::read(branch.state.join("scans").join(format!("{}.changed", disk["uuid"].as_str().unwrap())));
    let told = told.unwrap();
    let told: Vec<bool> = (0..differ.len()).map(|block| told[block / 8] >> (block % 8) & 1 == 1).collect();
    assert_eq!(told, differ, "{disk}");
    let changed = differ.iter().filter(|differs| **differs).count();
    assert_eq!((&disk["blocks"]["changed"], &disk["blocks"]["unchanged"]), (&changed.into(), &(64 - changed).into()));
}

#[track_caller]
pub fn trusted(disk: &Value, trusted: u64, audited: u64) {
    let bitmap = json!({ "trusted_blocks": trusted, "audited_blocks": audited, "reread": null });
    assert_eq!(disk["bitmap"], bitmap, "{disk}");
    // A hole in the disk is not read to find that it is one.
    assert!(disk["read_bytes"].as_u64().unwrap() <= (64 - trusted) * MIB, "{disk}");
}

#[track_caller]
pub fn reread(disk: &Value, why: &str) {
    assert_eq!((&disk["bitmap"]["trusted_blocks"], &disk["bitmap"]["reread"]), (&0.into(), &why.into()), "{disk}");
}

/// Writes to a disk as its guest would.
fn write(machine: &Machine, at_mib: u64) {
    for disk in ["-d /machine/peripheral/virtio0/virtio-backend", "second"] {
        let line = format!("qemu-io {disk} \"write -q -P 0x77 {at_mib}M 8k\"");
        let said = machine.qmp().call("human-monitor-command", json!({ "command-line": line })).unwrap();
        assert_eq!(said, "", "{said}");
    }
}

/// MANUAL: "reads only what the bitmap calls changed".
#[test]
fn a_scan_reads_what_the_bitmap_calls_changed_and_finds_all_of_it() {
    let branch = Branch::ready();
    // 512 pages: blocks 1 and 2.
    let (machine, images) = seeded(&branch, 512);
    machine.goes_on();
    for disk in exact(&branch, &machine, &images, &[]) {
        trusted(&disk, 61, 1);
        assert!(disk["read_bytes"].as_u64().unwrap() <= 3 * MIB && disk["blocks"]["changed"] == 2, "{disk}");
    }
    // Written since the last scan, not since the seed; what had changed by then is looked at again.
    write(&machine, 26);
    for disk in exact(&branch, &machine, &images, &["--audit", "10"]) {
        trusted(&disk, 54, 7);
        assert_eq!(disk["blocks"]["changed"], 3, "{disk}");
    }
    // The guest need not stand still, and notices nothing.
    for disk in scan(&branch, &["--audit", "0"]) {
        trusted(&disk, 61, 0);
        assert_eq!(disk["blocks"]["changed"], 3, "{disk}");
    }
    machine.goes_on();
    let said = branch.motiongear().arg("scan").run();
    assert!(said.stdout.contains("are trusted"), "{}", said.stdout);
    // One bitmap each; the one of the qcow2 disk outlives its QEMU.
    for (source, persistent) in machine.sources().iter().zip([true, false]) {
        let bitmaps = machine.bitmaps(source);
        assert_eq!((bitmaps.len(), &bitmaps[0]["all"]["persistent"]), (1, &persistent.into()), "{bitmaps:?}");
    }
}

/// MANUAL: "An interrupted scan loses nothing".
#[test]
fn a_scan_that_is_killed_loses_no_change() {
    let branch = Branch::ready();
    let (machine, images) = seeded(&branch, 4096);
    write(&machine, 40);
    for block in [41, 42] {
        let mut running = branch.motiongear().args(["--json", "scan", "--read-limit", "1MiB"]).start();
        assert!(running.until(LIMIT, |_| machine_is_read(&machine)), "{}", running.said());
        write(&machine, block);
        running.kill();
        machine.waits_for("the watchdog", |machine| machine.ours().is_empty());
        assert!(machine.bitmaps(&machine.sources()[0]).len() > 1);
    }
    write(&machine, 43);
    for disk in exact(&branch, &machine, &images, &["--audit", "0"]) {
        trusted(&disk, 64 - 16 - 4, 0);
    }
    let left = machine.sources().map(|source| machine.bitmaps(&source).len());
    assert_eq!(left, [1, 1]);
}

fn machine_is_read(machine: &Machine) -> bool {
    let exports = machine.qmp().call("query-block-exports", json!({})).unwrap();
    exports.as_array().is_some_and(|exports| exports.len() == 2)
}

/// MANUAL: "missing, inconsistent or caught lying".
#[test]
fn where_the_bitmap_is_missing_stopped_or_lies_every_block_is_read_and_the_result_is_right() {
    let branch = Branch::ready();
    let (machine, images) = seeded(&branch, 512);
    let each = |command: &str| {
        for source in machine.sources() {
            let bitmap = machine.bitmaps(&source).pop().unwrap();
            machine.qmp().call(command, json!({ "node": bitmap["node"], "name": bitmap["name"] })).unwrap();
        }
    };
    machine.goes_on();
    write(&machine, 50);
    each("block-dirty-bitmap-remove");
    for disk in exact(&branch, &machine, &images, &[]) {
        reread(&disk, "missing");
    }
    // It is believed again from there on.
    for disk in exact(&branch, &machine, &images, &["--audit", "0"]) {
        trusted(&disk, 61, 0);
    }
    write(&machine, 51);
    each("block-dirty-bitmap-disable");
    write(&machine, 52);
    for disk in exact(&branch, &machine, &images, &[]) {
        reread(&disk, "stopped");
    }
    for block in 53..56 {
        write(&machine, block);
    }
    each("block-dirty-bitmap-clear");
    let lied = exact(&branch, &machine, &images, &["--audit", "80"]);
    for disk in lied {
        reread(&disk, "lied");
        // Blocks 1, 2, and 50 to 55; of these the audit has come to 53 and not to the end.
        assert_eq!(disk["blocks"]["changed"], 8, "{disk}");
        assert!(disk["read_bytes"].as_u64().unwrap() <= BYTES, "none was read twice: {disk}");
    }
    for disk in exact(&branch, &machine, &images, &["--audit", "0"]) {
        trusted(&disk, 56, 0);
    }
}

#[test]
fn a_bitmap_outlives_its_qemu_in_qcow2_and_is_not_believed_after_a_crash() {
    let branch = Branch::ready();
    let (mut machine, images) = seeded(&branch, 512);
    machine.switch_off();
    machine.switch_on();
    machine.goes_on();
    let [qcow2, raw] = exact(&branch, &machine, &images, &["--audit", "0"]);
    trusted(&qcow2, 62, 0);
    reread(&raw, "missing");
    // QEMU writes a bitmap down when it ends, and marks it as in use while it runs.
    machine.switch_off();
    machine.switch_on();
    machine.kill();
    machine.switch_on();
    let [qcow2, raw] = exact(&branch, &machine, &images, &["--audit", "0"]);
    reread(&qcow2, "inconsistent");
    reread(&raw, "missing");
    let [qcow2, raw] = exact(&branch, &machine, &images, &["--audit", "0"]);
    trusted(&qcow2, 62, 0);
    trusted(&raw, 62, 0);
}
