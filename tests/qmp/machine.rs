//! A machine under QEMU (TCG) with two disks, and its guest.
//!
//! The guest's disks can be made anew from the highest page number on them: that is the independent copy of a point in time.

use crate::common::{Branch, Place, b3sum, noise_at, sparse, tool};
use motiongear::qmp::Qmp;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const MIB: u64 = 1 << 20;
pub const LIMIT: Duration = Duration::from_secs(300);
/// Size of both disks.
pub const BYTES: u64 = 64 * MIB;
const PAGE: u64 = 4096;

/// What is started; lives in a place of its own.
pub struct Machine {
    qemu: Option<Child>,
    pub dir: PathBuf,
    /// Where the guest writes, in pages from the first mebibyte on.
    pages: u64,
}

impl Machine {
    /// A running machine: a qcow2 disk in a thread of its own, and a raw one; both with a GPT and noise in eight mebibytes.
    pub fn start(place: &Place) -> Machine {
        Machine::writing(place, 4096)
    }

    /// As [`Machine::start`]; the guest keeps to so many pages.
    pub fn writing(place: &Place, pages: u64) -> Machine {
        let mut machine = Machine { qemu: None, dir: place.dir("machine"), pages };
        let initial = machine.dir.join("initial.raw");
        sparse(&initial, BYTES);
        tool("sgdisk", ["-n1:2048:0", initial.to_str().unwrap()]);
        noise_at(&File::options().write(true).open(&initial).unwrap(), 24 * MIB, 8 * MIB, 7);
        let (qcow2, raw) = (machine.dir.join("a.qcow2"), machine.dir.join("b.raw"));
        tool("qemu-img", ["convert", "-q", "-O", "qcow2", initial.to_str().unwrap(), qcow2.to_str().unwrap()]);
        tool("cp", ["--sparse=always", initial.to_str().unwrap(), raw.to_str().unwrap()]);
        machine.initrd();
        machine.switch_on();
        machine
    }

    /// The guest's only file system.
    fn initrd(&self) {
        let init = self.dir.join("init");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qmp/guest.c");
        tool("gcc", ["-O2", "-static", "-o", init.to_str().unwrap(), source.to_str().unwrap()]);
        let mut archive = Vec::new();
        member(&mut archive, "dev", 0o40755, &[]);
        member(&mut archive, "init", 0o100755, &std::fs::read(init).unwrap());
        for file in std::fs::read_dir(kernel()).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if name.ends_with(".ko") {
                member(&mut archive, name, 0o100644, &std::fs::read(&file).unwrap());
            }
        }
        member(&mut archive, "TRAILER!!!", 0, &[]);
        std::fs::write(self.dir.join("initrd"), archive).unwrap();
    }

    /// Starts QEMU, and returns when the guest writes.
    pub fn switch_on(&mut self) {
        for old in ["qmp", "serial"] {
            let _ = std::fs::remove_file(self.dir.join(old));
        }
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "pc,accel=tcg", "-m", "128", "-nodefaults", "-no-reboot", "-display", "none"]);
        command.arg("-kernel").arg(kernel().join("vmlinuz")).args(["-initrd", "initrd", "-serial", "file:serial"]);
        command.args(["-append", &format!("console=ttyS0 quiet pages={}", self.pages)]);
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

    /// How far the guest says it is.
    pub fn written(&self) -> u64 {
        let said = std::fs::read_to_string(self.dir.join("serial")).unwrap_or_default();
        let (whole, _) = said.rsplit_once('\n').unwrap_or_default();
        whole.lines().rev().find_map(|line| line.trim().strip_prefix("wrote ")?.parse().ok()).unwrap_or(0)
    }

    #[track_caller]
    pub fn waits_for(&self, what: &str, done: impl Fn(&Machine) -> bool) {
        let since = Instant::now();
        while !done(self) {
            let said = || std::fs::read_to_string(self.dir.join("serial")).unwrap_or_default();
            assert!(since.elapsed() < LIMIT, "waited in vain for {what}; the guest said: {}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The guest runs, and none of its writes failed.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.written();
        self.waits_for("the guest to go on", |machine| machine.written() > before + 32);
        let said = std::fs::read_to_string(self.dir.join("serial")).unwrap();
        assert!(!said.contains("error"), "{said}");
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

    /// The highest number of a page in an image of one of the disks.
    pub fn last_page(&self, image: &Path) -> u64 {
        let file = File::open(image).unwrap();
        let number = |page| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, MIB + page * PAGE).unwrap();
            u64::from_le_bytes(bytes)
        };
        (0..self.pages).map(number).max().unwrap()
    }

    /// Either disk as it was when the guest had written page `last` to it, and no more.
    pub fn as_of(&self, last: u64, image: &Path) {
        tool("cp", ["--sparse=always", self.dir.join("initial.raw").to_str().unwrap(), image.to_str().unwrap()]);
        let file = File::options().write(true).open(image).unwrap();
        for n in 1..=last {
            let mut page: Vec<u8> = n.to_le_bytes().to_vec();
            page.extend((1..PAGE / 8).flat_map(|i| mix(n * (PAGE / 8) + i).to_le_bytes()));
            file.write_all_at(&page, MIB + mix(n) % self.pages * PAGE).unwrap();
        }
    }

    /// That two images are the disks at one instant: every byte of them, and both at once. How far the guest was.
    #[track_caller]
    pub fn is_one_instant(&self, images: &[PathBuf; 2]) -> u64 {
        let last = images.each_ref().map(|image| self.last_page(image));
        assert!(last[0] == last[1] || last[0] == last[1] + 1, "not of one instant: {last:?}");
        for (image, last) in images.iter().zip(last) {
            let copy = self.dir.join("as-of.raw");
            self.as_of(last, &copy);
            assert_eq!(b3sum(image), b3sum(&copy), "{} as of page {last}", image.display());
        }
        last[0]
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

/// Debian's kernel and its virtio modules, which `tests/run` unpacks.
fn kernel() -> PathBuf {
    let kernel = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("guest");
    assert!(kernel.join("vmlinuz").exists(), "{} is missing; tests/run brings it", kernel.display());
    kernel
}

/// One file of a cpio archive, as the kernel's `initramfs/buffer-format.rst` has it.
fn member(archive: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    let number = archive.len() as u32;
    let fields = [number, mode, 0, 0, 1, 0, bytes.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend(b"070701");
    fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// As in `guest.c`.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
