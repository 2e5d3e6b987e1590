//! The guest of a machine under QEMU (TCG), whoever starts it: a kernel and one process that writes to two disks all the time.
//!
//! The guest's disks can be made anew from the highest page number on them: that is the independent copy of a point in time.

use super::machine::{BYTES, LIMIT, MIB};
use crate::common::{b3sum, noise_at, sparse, tool};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const PAGE: u64 = 4096;

/// What it is made of, in a directory: `initial.raw` is what both disks hold at first, `initrd` its only file system, and `serial` what it says.
pub struct Guest {
    pub dir: PathBuf,
    /// Where it writes, in pages from the first mebibyte on.
    pages: u64,
}

impl Guest {
    /// A guest that keeps to so many pages; the disks have a GPT and noise in eight mebibytes.
    pub fn new(dir: PathBuf, pages: u64) -> Guest {
        let guest = Guest { dir, pages };
        let initial = guest.dir.join("initial.raw");
        sparse(&initial, BYTES);
        tool("sgdisk", ["-n1:2048:0", initial.to_str().unwrap()]);
        noise_at(&File::options().write(true).open(&initial).unwrap(), 24 * MIB, 8 * MIB, 7);
        guest.initrd();
        guest
    }

    /// Its kernel's command line.
    pub fn command_line(&self) -> String {
        format!("console=ttyS0 quiet pages={}", self.pages)
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

    /// How far the guest says it is.
    pub fn written(&self) -> u64 {
        let said = std::fs::read_to_string(self.dir.join("serial")).unwrap_or_default();
        let (whole, _) = said.rsplit_once('\n').unwrap_or_default();
        whole.lines().rev().find_map(|line| line.trim().strip_prefix("wrote ")?.parse().ok()).unwrap_or(0)
    }

    #[track_caller]
    pub fn waits_for(&self, what: &str, done: impl Fn() -> bool) {
        let since = Instant::now();
        while !done() {
            let said = || std::fs::read_to_string(self.dir.join("serial")).unwrap_or_default();
            assert!(since.elapsed() < LIMIT, "waited in vain for {what}; the guest said: {}", said());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// It writes, and none of its writes failed.
    #[track_caller]
    pub fn writes_on(&self) {
        let before = self.written();
        self.waits_for("the guest to go on", || self.written() > before + 32);
        let said = std::fs::read_to_string(self.dir.join("serial")).unwrap();
        assert!(!said.contains("error"), "{said}");
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

/// Debian's kernel and its virtio modules, which `tests/run` unpacks.
pub fn kernel() -> PathBuf {
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
