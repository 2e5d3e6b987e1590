//! Goal: a scan of a running machine reads what its checkpoint calls changed, and finds all that changed even where the checkpoint is
//! missing, broken or lying. Method: the machine is held for a moment, so that its disks can be compared with what was seeded byte by
//! byte; the bitmaps are worked on through libvirt's and QEMU's own commands.

use super::host::Host;
use crate::common::Branch;
use crate::qmp::machine::{BYTES, MIB};
use crate::qmp::scan::{is_exact, reread, restored, trusted};
use serde_json::{Value, json};
use std::path::PathBuf;

struct Seeded {
    branch: Branch,
    host: Host,
    images: [PathBuf; 2],
}

impl Seeded {
    fn scan(&self, extra: &[&str]) -> Vec<Value> {
        let scratch = ["--scratch", self.host.scratch.path().to_str().unwrap()];
        let command = self.branch.motiongear().args(["--json", "scan"]).args(scratch).args(extra);
        let scanned = self.host.asks(command).run().ok();
        scanned["disks"].as_array().unwrap().clone()
    }

    /// Scans while the machine stands still; both disks' results must be what differs from what was seeded.
    #[track_caller]
    fn exact(&self, extra: &[&str]) -> Vec<Value> {
        self.host.virsh(&["suspend", "db01"]);
        let found = self.scan(extra);
        for (name, (file, image)) in
            ["db01/sda", "db01/sdb"].iter().zip(["a.qcow2", "b.qcow2"].iter().zip(&self.images))
        {
            if let Some(disk) = found.iter().find(|disk| disk["disk"] == *name) {
                is_exact(&self.branch, &self.host.dir.join(file), image, disk);
            }
        }
        self.host.virsh(&["resume", "db01"]);
        self.host.has_nothing_of_ours();
        found
    }

    /// Writes to both disks as the guest would.
    fn write(&self, at_mib: u64) {
        for disk in 0..2 {
            let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
            let said = self.host.hmp(&format!("qemu-io -d {device} \"write -q -P 0x77 {at_mib}M 8k\""));
            assert_eq!(said.trim(), "", "{said}");
        }
    }
}

/// MANUAL: "reads only what the checkpoint calls changed"; "A raw disk has none".
#[test]
fn a_scan_under_libvirt_reads_what_the_checkpoint_calls_changed_and_believes_no_other() {
    let branch = Branch::ready();
    // 512 pages: blocks 1 and 2.
    let host = Host::writing(512);
    host.seed(&branch, &["--disk", "sdc=libvirt:db01#vdc"]).run().ok();
    let images = restored(&branch);
    let seeded = Seeded { branch, host, images };
    seeded.host.goes_on();
    let found = seeded.exact(&[]);
    for disk in &found[..2] {
        trusted(disk, 61, 1);
        assert!(disk["read_bytes"].as_u64().unwrap() <= 3 * MIB && disk["blocks"]["changed"] == 2, "{disk}");
    }
    reread(&found[2], "missing");
    assert_eq!((&found[2]["disk"], &found[2]["read_bytes"]), (&"db01/sdc".into(), &(4 * MIB).into()));
    // One disk alone: what is known of the other goes on from the checkpoint before, which therefore stays.
    seeded.write(26);
    let alone = seeded.exact(&["--disk", "sda", "--audit", "0"]);
    trusted(&alone[0], 61, 0);
    assert_eq!((alone.len(), seeded.host.checkpoints().len()), (1, 2));
    seeded.write(30);
    for disk in &seeded.exact(&["--audit", "0"])[..2] {
        trusted(disk, 60, 0);
        assert_eq!(disk["blocks"]["changed"], 4, "{disk}");
    }
    let checkpoints = seeded.host.checkpoints();
    assert_eq!(checkpoints.len(), 1, "{checkpoints:?}");
    // Removed.
    seeded.write(40);
    seeded.host.virsh(&["checkpoint-delete", "db01", &checkpoints[0]]);
    for disk in &seeded.exact(&[])[..2] {
        reread(disk, "missing");
    }
    for disk in &seeded.exact(&["--audit", "0"])[..2] {
        trusted(disk, 59, 0);
    }
    // Lying: somebody cleared the bitmaps.
    (53..56).for_each(|block| seeded.write(block));
    let name = seeded.host.checkpoints().pop().unwrap();
    let nodes = seeded.host.qmp("query-named-block-nodes", json!({ "flat": true }));
    let has = |node: &&Value| node["dirty-bitmaps"].as_array().is_some_and(|all| all.iter().any(|b| b["name"] == name));
    let nodes: Vec<&Value> = nodes.as_array().unwrap().iter().filter(has).collect();
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        seeded.host.qmp("block-dirty-bitmap-clear", json!({ "node": node["node-name"], "name": name }));
    }
    for disk in &seeded.exact(&["--audit", "80"])[..2] {
        reread(disk, "lied");
        assert_eq!(disk["blocks"]["changed"], 8, "{disk}");
        assert!(disk["read_bytes"].as_u64().unwrap() <= BYTES, "none was read twice: {disk}");
    }
    seeded.host.goes_on();
}

/// MANUAL: "outlives the machine's QEMU where that ends in good order".
#[test]
fn a_checkpoint_outlives_its_machine_and_is_not_believed_after_a_crash() {
    let branch = Branch::ready();
    let host = Host::writing(512);
    host.seed(&branch, &[]).run().ok();
    let images = restored(&branch);
    let seeded = Seeded { branch, host, images };
    // QEMU writes its bitmaps down when it ends in good order.
    seeded.host.virsh(&["destroy", "--graceful", "db01"]);
    seeded.host.switch_on();
    seeded.host.goes_on();
    for disk in seeded.exact(&["--audit", "0"]) {
        trusted(&disk, 62, 0);
    }
    seeded.host.crash();
    seeded.host.switch_on();
    for disk in seeded.exact(&["--audit", "0"]) {
        reread(&disk, "inconsistent");
    }
    for disk in seeded.exact(&["--audit", "0"]) {
        trusted(&disk, 62, 0);
    }
    assert_eq!(seeded.host.checkpoints().len(), 1);
}
