//! A machine under QEMU (TCG) with two disks, which its guest (`guest`) writes to.

use super::guest::{Guest, kernel};
use crate::common::{Branch, Place, tool};
use motiongear::qmp::Qmp;
use serde_json::{Value, json};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub const MIB: u64 = 1 << 20;
pub const LIMIT: Duration = Duration::from_secs(300);
/// Size of both disks.
pub const BYTES: u64 = 64 * MIB;

/// What is started; lives in a place of its own.
pub struct Machine {
    qemu: Option<Child>,
    guest: Guest,
}

impl Deref for Machine {
    type Target = Guest;
    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Machine {
    /// A running machine: a qcow2 disk in a thread of its own, and a raw one; both with a GPT and noise in eight mebibytes.
    pub fn start(place: &Place) -> Machine {
        Machine::writing(place, 4096)
    }

    /// As [`Machine::start`]; the guest keeps to so many pages.
    pub fn writing(place: &Place, pages: u64) -> Machine {
        let mut machine = Machine { qemu: None, guest: Guest::new(place.dir("machine"), pages) };
        let initial = machine.dir.join("initial.raw");
        let (qcow2, raw) = (machine.dir.join("a.qcow2"), machine.dir.join("b.raw"));
        tool("qemu-img", ["convert", "-q", "-O", "qcow2", initial.to_str().unwrap(), qcow2.to_str().unwrap()]);
        tool("cp", ["--sparse=always", initial.to_str().unwrap(), raw.to_str().unwrap()]);
        machine.switch_on();
        machine
    }

    /// Starts QEMU, and returns when the guest writes.
    pub fn switch_on(&mut self) {
        for old in ["qmp", "serial"] {
            let _ = std::fs::remove_file(self.dir.join(old));
        }
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "pc,accel=tcg", "-m", "128", "-nodefaults", "-no-reboot", "-display", "none"]);
        command.arg("-kernel").arg(kernel().join("vmlinuz")).args(["-initrd", "initrd", "-serial", "file:serial"]);
        command.args(["-append", &self.command_line()]);
        command.args(["-object", "iothread,id=thread", "-blockdev"]);
        command.arg("driver=qcow2,node-name=first,file.driver=file,file.filename=a.qcow2");
        command.args(["-device", "virtio-blk-pci,drive=first,id=virtio0,iothread=thread"]);
        command.args(["-drive", "file=b.raw,format=raw,if=none,id=second", "-device", "virtio-blk-pci,drive=second"]);
        command.args(["-qmp", "unix:qmp,server=on,wait=off"]);
        command.current_dir(&self.dir).stdin(Stdio::null());
        self.qemu = Some(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}; tests/run installs it")));
        self.waits_for("the guest to write", |machine| machine.written() > 0);
    }

    /// Ends QEMU as its user would.
    pub fn switch_off(&mut self) {
        let _ = self.qmp().call("quit", json!({}));
        self.qemu.take().unwrap().wait().unwrap();
    }

    /// SIGKILL to QEMU.
    pub fn kill(&mut self) {
        let mut qemu = self.qemu.take().unwrap();
        qemu.kill().unwrap();
        qemu.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.qemu.as_ref().unwrap().id()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("qmp")
    }

    pub fn qmp(&self) -> Qmp {
        Qmp::connect(&self.socket()).unwrap()
    }

    /// The sources of its disks.
    pub fn sources(&self) -> [PathBuf; 2] {
        ["virtio0", "second"].map(|disk| format!("qmp:{}#{disk}", self.socket().display()).into())
    }

    /// A seed of both disks.
    pub fn seed(&self, branch: &Branch, extra: &[&str]) -> crate::common::Motiongear {
        let [first, second] = self.sources();
        branch.seed_command(&[("sda", &first), ("sdb", &second)], extra)
    }

    #[track_caller]
    pub fn waits_for(&self, what: &str, done: impl Fn(&Machine) -> bool) {
        self.guest.waits_for(what, || done(self));
    }

    /// The guest runs, and none of its writes failed.
    #[track_caller]
    pub fn goes_on(&self) {
        self.writes_on();
        let status = self.qmp().call("query-status", json!({})).unwrap();
        assert_eq!(status["status"], "running", "{status}");
    }

    /// What QEMU has of ours, bitmaps apart: exports, jobs, nodes, descriptors; and files without a name that it has open.
    pub fn ours(&self) -> Vec<String> {
        let mut qmp = self.qmp();
        let mut ours = Vec::new();
        for query in ["query-block-exports", "query-jobs", "query-named-block-nodes", "query-fdsets", "query-block"] {
            let text = qmp.call(query, json!({})).unwrap().to_string();
            // Names of bitmaps are none of these.
            let left = text.split('"').filter(|word| word.starts_with("motiongear-") && word.split('-').count() != 4);
            ours.extend(left.map(|word| format!("{query}: {word}")));
        }
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().flatten() {
            let path = std::fs::read_link(entry.path()).unwrap_or_default().display().to_string();
            if path.contains("/motiongear-") && path.ends_with("(deleted)") {
                ours.push(path);
            }
        }
        ours
    }

    #[track_caller]
    pub fn has_nothing_of_ours(&self) {
        assert_eq!(self.ours(), Vec::<String>::new());
        assert!(self.qmp().call("nbd-server-stop", json!({})).is_err(), "the NBD server was there");
    }

    /// The bitmaps of a disk, as QEMU lists them.
    pub fn bitmaps(&self, source: &Path) -> Vec<Value> {
        let disk = source.to_str().unwrap().rsplit('#').next().unwrap();
        let blocks = self.qmp().call("query-block", json!({})).unwrap();
        let is_it = |block: &&Value| block["device"] == disk || block["qdev"].as_str().unwrap().contains(disk);
        let block = blocks.as_array().unwrap().iter().find(is_it).unwrap();
        let node = block["inserted"]["node-name"].clone();
        let with_node = |bitmap: &Value| json!({ "node": node, "name": bitmap["name"], "all": bitmap });
        block["inserted"]["dirty-bitmaps"].as_array().into_iter().flatten().map(with_node).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(qemu) = &mut self.qemu {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}
