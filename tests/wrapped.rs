//! Goal: what holds a disk and is none is refused with what to write instead; what is odd is pointed out.
//!
//! Method: the real binary over files that the formats' own tools make, and file systems and tables that were cut off.

use crate::common::{Branch, Place, disks, loop_device, noise, sparse, tool, write_at};
use serde_json::Value;
use std::path::Path;

const MIB: u64 = 1 << 20;

#[test]
fn wrapped_packed_and_backed_up_disks_are_refused() {
    let branch = Branch::ready();
    let place = &branch.place;
    let raw = place.join("disk.raw");
    sparse(&raw, 8 * MIB);
    write_at(&raw, MIB, &[7; 5000]);
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let from = raw.to_str().unwrap();
    let convert = |format: &str, options: &str, name: &str| {
        tool("qemu-img", ["convert", "-O", format, "-o", options, from, &at(name)]);
    };
    convert("vmdk", "subformat=monolithicFlat", "flat.vmdk");
    convert("vpc", "subformat=fixed,force_size=on", "fixed.vhd");
    convert("qed", "cluster_size=65536", "disk.qed");
    convert("parallels", "cluster_size=1048576", "disk.hds");
    tool("gzip", ["-k", from]);
    tool("xz", ["-kT1", from]);
    tool("bzip2", ["-k", from]);
    tool("tar", ["cf", &at("disk.ova"), "-C", place.path().to_str().unwrap(), "flat.vmdk"]);
    let head = |name: &str, magic: &[u8]| place.file(name, [magic, &vec![3; MIB as usize]].concat());
    head("disk.vma", b"VMA\0");
    head("disk.pcl", b"partclone-image0002");
    head("disk.e01", b"EVF\x09\x0d\x0a\xff\0");
    head("disk.rbd", b"rbd image v2\n");
    head("disk.zst", b"\x28\xb5\x2f\xfd");
    head("disk.7z", b"7z\xbc\xaf\x27\x1c");
    head("disk.zip", b"PK\x03\x04");
    head("disk.cow", b"COWD");
    for name in [
        "flat.vmdk",
        "fixed.vhd",
        "disk.qed",
        "disk.hds",
        "disk.raw.gz",
        "disk.raw.xz",
        "disk.raw.bz2",
        "disk.ova",
        "disk.vma",
        "disk.pcl",
        "disk.e01",
        "disk.rbd",
        "disk.zst",
        "disk.7z",
        "disk.zip",
        "disk.cow",
    ] {
        branch.seed(&[("sda", &place.join(name))], &[]).code(2);
        let inspected = branch.run([Path::new("inspect"), &place.join(name)]).ok();
        assert_eq!(inspected["disks"][0]["verdict"], "no-go", "{name}: {inspected}");
    }
    // What is behind the descriptor is a raw disk; and who insists has the file as it is.
    branch.seed(&[("flat", &place.join("flat-flat.vmdk"))], &[]).ok();
    let insisted = format!("raw:{}", at("disk.raw.gz"));
    branch.seed(&[("packed", Path::new(&insisted))], &[]).ok();
}

fn reasons(branch: &Branch, path: &Path) -> Vec<String> {
    let inspected: Value = branch.run([Path::new("inspect"), path]).ok();
    let all = inspected["disks"][0]["reasons"].as_array().unwrap();
    all.iter().map(|reason| reason["reason"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_is_cut_off_asleep_odd_or_of_other_sectors_is_pointed_out() {
    let branch = Branch::ready();
    let place: &Place = &branch.place;
    let has = |path: &Path, what: &str| {
        let found = reasons(&branch, path);
        assert!(found.iter().any(|reason| reason == what), "{}: {found:?}", path.display());
    };
    for (mkfs, bytes) in [("mkfs.ext4", 64 * MIB), ("mkfs.xfs", 320 * MIB), ("mkfs.vfat", 64 * MIB)] {
        let path = place.join(mkfs);
        disks::formatted(&path, bytes, mkfs, if mkfs == "mkfs.vfat" { &[] } else { &["-q"] });
        assert!(!reasons(&branch, &path).iter().any(|reason| reason == "beyond-end"), "{mkfs}");
        std::fs::File::options().write(true).open(&path).unwrap().set_len(bytes - 2 * MIB).unwrap();
        has(&path, "beyond-end");
    }
    let asleep = place.join("asleep");
    sparse(&asleep, 8 * MIB);
    write_at(&asleep, 4086, b"S1SUSPEND\0");
    has(&asleep, "suspended");
    let odd = place.join("odd");
    noise(&odd, 3 * MIB + 100, 1);
    has(&odd, "odd-size");
    let sectors = place.join("4kn");
    sparse(&sectors, 48 * MIB);
    let device = crate::common::Loop::attach(&sectors, &["-b", "4096"]);
    tool("sgdisk", ["-n1:256:0", device.path().to_str().unwrap()]);
    drop(device);
    has(&sectors, "four-kn");
    let planned = branch.seed(&[("sda", &sectors)], &["--dry-run"]).ok();
    assert_eq!(planned["plan"]["disks"][0]["cautions"][0]["reason"], "four-kn", "{planned}");
    let _ = loop_device;
}
