//! Volumes that fail to write, fail to flush, or read back other bytes than were written: what is not proven has no head.

use super::{ENGINES, MIB, b3sum, import_to, said_clearly, seeds};
use crate::common::{Branch, Fault, Loop, Motiongear, SourceFs, loop_device, noise, sparse};
use std::ops::Range;
use std::path::PathBuf;

const BYTES: u64 = 20 * MIB + 4096;

/// A sealed shipment of one disk, and a block device for it whose medium can be made to fail.
pub(super) struct Case {
    // In this order: the device before what it lies on.
    pub device: Loop,
    pub fs: SourceFs,
    pub image: PathBuf,
    pub origin: PathBuf,
    pub branch: Branch,
}

impl Case {
    pub fn new(engine: &str) -> Case {
        let branch = Branch::ready();
        let origin = branch.place.join("disk");
        noise(&origin, BYTES, 70);
        seeds(&branch, &[("sda", &origin)], engine, &origin);
        branch.seal();
        let image = branch.place.join("volume.img");
        sparse(&image, BYTES);
        let fs = SourceFs::serve(&branch.place.join("volume.fuse"), &image);
        let device = loop_device(&fs.path());
        Case { device, fs, image, origin, branch }
    }
    pub fn command(&self, engine: &str) -> Motiongear {
        let to = format!("dev:db01/sda={}", self.device.path().display());
        import_to(&self.branch, &to, &["--engine", engine])
    }
    fn import(&self, engine: &str) -> crate::common::Ran {
        self.command(engine).run()
    }
    /// The head on the medium itself: all zeros while it is withheld.
    pub fn head_is_withheld(&self) -> bool {
        use std::os::unix::fs::FileExt;
        let mut head = [0; 4096];
        std::fs::File::open(&self.image).unwrap().read_exact_at(&mut head, 0).unwrap();
        head.iter().all(|byte| *byte == 0)
    }
    /// Mended: the same command finishes, and the medium holds the disk.
    pub fn finishes(&self, engine: &str) {
        self.fs.heal();
        let result = self.import(engine).ok();
        assert_eq!(result["disks"][0]["digest"], b3sum(&self.origin));
        assert_eq!(result["disks"][0]["proven"], true);
        assert_eq!(b3sum(&self.image), b3sum(&self.origin));
    }
}

#[test]
fn a_volume_that_cannot_be_written_or_flushed_is_named_and_finished_later() {
    let everywhere = 0..u64::MAX;
    let cases: [(Fault, Range<u64>); 4] = [
        (Fault::WriteError, 7 * MIB + 8192..7 * MIB + 12_288),
        (Fault::WriteError, everywhere.clone()),
        // The head, which is withheld at first and released last.
        (Fault::WriteError, 0..4096),
        (Fault::FlushError, everywhere),
    ];
    for engine in ENGINES {
        for (fault, range) in cases.clone() {
            let case = Case::new(engine);
            case.fs.fault(range.clone(), fault);
            let ran = case.import(engine);
            assert!(case.fs.hit() > 0, "{fault:?} {range:?} never happened");
            let said = said_clearly(&ran, case.device.path());
            assert!(said.contains("Input/output error"), "{said}");
            assert!(case.head_is_withheld(), "{fault:?} {range:?} {engine}: the head is there");
            case.finishes(engine);
        }
    }
}

#[test]
fn a_volume_that_reads_back_other_bytes_is_caught_and_its_head_withheld() {
    for engine in ENGINES {
        let case = Case::new(engine);
        case.fs.fault_once_written(3 * MIB + 4096..3 * MIB + 4097, Fault::Lie);
        case.fs.fault_once_written(11 * MIB..12 * MIB, Fault::Lie);
        let result = case.import(engine).code(3);
        let disk = &result["disks"][0];
        assert_eq!(disk["damaged"], 2, "{disk}");
        let listed: Vec<u64> = blocks(disk);
        assert_eq!(listed, [3, 11], "{disk}");
        assert_eq!(disk["proven"], false);
        assert!(case.head_is_withheld(), "{engine}: the head is there");
        // Still lying: still caught.
        case.import(engine).code(3);
        assert!(case.head_is_withheld());
        case.finishes(engine);
    }
}

fn blocks(disk: &serde_json::Value) -> Vec<u64> {
    let list = disk["damaged_blocks"].as_array().unwrap_or_else(|| panic!("no list of damaged blocks: {disk}"));
    list.iter().map(|damage| damage["block"].as_u64().unwrap()).collect()
}

#[test]
fn a_head_that_reads_back_other_bytes_is_withheld_again() {
    for engine in ENGINES {
        for range in [0..4096, 8192..8193, BYTES - 4096..BYTES] {
            let case = Case::new(engine);
            case.fs.fault_once_written(range.clone(), Fault::Lie);
            let ran = case.import(engine);
            assert!(ran.code == 1 || ran.code == 3, "{ran:?}");
            if ran.code == 1 {
                said_clearly(&ran, case.device.path());
            }
            assert!(case.head_is_withheld(), "{engine} {range:?}: the head is there");
            case.finishes(engine);
        }
    }
}

#[test]
fn bytes_of_a_volume_that_cannot_be_read_back_are_damage() {
    for engine in ENGINES {
        let case = Case::new(engine);
        case.fs.fault_once_written(9 * MIB..9 * MIB + 4096, Fault::ReadError);
        let disk = case.import(engine).code(3)["disks"][0].clone();
        assert_eq!(blocks(&disk), [9], "{disk}");
        assert!(case.head_is_withheld());
        case.finishes(engine);
    }
}
