//! Goal: a restored file is the whole disk or has another name. Method: arrays made by hand, restored by the real binary to
//! files and loop devices.

use crate::common::{Loop, Place, Ran, sparse};
use crate::import::{BLOCK, command};
use crate::shipment::{Disk, Made, Recipe, data, make};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn restore(place: &Place, made: &Made, disk: &str, to: &Path, extra: &[&str]) -> Ran {
    // The disk and the file follow the array, wherever options stand.
    command(place, made, "restore", "auto").arg(disk).arg(to).args(extra).run()
}

#[test]
fn files_of_all_sizes_come_back() {
    let place = Place::new();
    let sizes = [("a", 0), ("b", 1), ("c", BLOCK), ("d", 50 * BLOCK + 513)];
    let disks: Vec<Disk> =
        sizes.iter().map(|(name, size)| Disk::new("db01", name, data(*size, BLOCK, |block| block % 3 == 1))).collect();
    let made = make(place.path(), &disks, &Recipe { records_per_pack: 9, ..Recipe::default() });
    for disk in &disks {
        let (name, file) = (format!("db01/{}", disk.name), place.join(disk.name));
        let plan = restore(&place, &made, &name, &file, &["--dry-run"]).ok();
        assert!(plan["dry_run"] == true && !file.exists());
        // What an interrupted restore left behind is replaced; what others could have open is not gone on in.
        let partial = place.join(format!("{}.motiongear-partial", disk.name));
        std::fs::write(&partial, b"half").unwrap();
        std::fs::set_permissions(&partial, Permissions::from_mode(0o666)).unwrap();
        restore(&place, &made, &name, &file, &[]).code(1);
        assert_eq!(std::fs::read(&partial).unwrap(), b"half");
        std::fs::set_permissions(&partial, Permissions::from_mode(0o600)).unwrap();
        let done = restore(&place, &made, &name, &file, &[]).ok();
        assert!(std::fs::read(&file).unwrap() == disk.data, "{name}");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!((&done["complete"], &done["trusted"]), (&true.into(), &0.into()));
        assert_eq!(done["re_read"], disk.data.len().div_ceil(BLOCK));
        assert!(!place.join(format!("{}.motiongear-partial", disk.name)).exists());
        restore(&place, &made, &name, &file, &[]).refused(1, &["found one already", "--overwrite"]);
        restore(&place, &made, &name, &file, &["--overwrite"]).ok();
    }
    restore(&place, &made, "db01/z", &place.join("z"), &[]).refused(2, &["db01/a, db01/b, db01/c, db01/d"]);
    restore(&place, &made, "db01", &place.join("z"), &[]).refused(2, &["MACHINE/DISK"]);
}

#[test]
fn with_damage_the_file_keeps_its_temporary_name() {
    let place = Place::new();
    let disk = Disk::new("db01", "sda", data(20 * BLOCK, BLOCK, |_| false));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    made.damage(1, 7);
    let file = place.join("sda.raw");
    let held = restore(&place, &made, "db01/sda", &file, &[]).code(3);
    let partial = place.join("sda.raw.motiongear-partial");
    assert_eq!((&held["complete"], &held["damaged"]), (&false.into(), &1.into()));
    assert_eq!((&held["damaged_blocks"][0]["block"], &held["target"]), (&7.into(), &partial.to_str().unwrap().into()));
    assert!(!file.exists());
    let found = std::fs::read(&partial).unwrap();
    assert!(found[..BLOCK].iter().all(|byte| *byte == 0) && found[BLOCK..7 * BLOCK] == disk.data[BLOCK..7 * BLOCK]);
    made.damage(1, 7);
    restore(&place, &made, "db01/sda", &file, &[]).ok();
    assert!(std::fs::read(&file).unwrap() == disk.data);
}

/// Nobody seals a symbolic link, and what it leads to may be anything.
#[test]
fn a_pack_that_is_a_symbolic_link_is_not_read() {
    let place = Place::new();
    let disk = Disk::new("db01", "sda", data(20 * BLOCK, BLOCK, |_| false));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    std::fs::rename(made.pack(1), place.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(place.join("elsewhere"), made.pack(1)).unwrap();
    let held = restore(&place, &made, "db01/sda", &place.join("sda.raw"), &[]).code(3);
    assert_eq!((&held["complete"], &held["damaged"]), (&false.into(), &20.into()));
    std::fs::remove_file(made.pack(1)).unwrap();
    std::fs::rename(place.join("elsewhere"), made.pack(1)).unwrap();
    restore(&place, &made, "db01/sda", &place.join("sda.raw"), &[]).ok();
}

#[test]
fn a_device_with_other_sectors_is_refused_unless_that_is_accepted() {
    let place = Place::new();
    let mut disk = Disk::new("db01", "sda", data(20 * BLOCK, BLOCK, |_| false));
    disk.facts = r#"{"logical_sector_bytes":512}"#.into();
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    sparse(&place.join("4k"), 30 * BLOCK as u64);
    let large = Loop::attach(&place.join("4k"), &["--sector-size", "4096"]);
    restore(&place, &made, "db01/sda", large.path(), &[])
        .refused(1, &["sectors of 512", "found 4096", "--accept-sector-size"]);
    assert_eq!(restore(&place, &made, "db01/sda", large.path(), &["--accept-sector-size"]).ok()["complete"], true);
    assert!(std::fs::read(large.path()).unwrap()[..disk.data.len()] == disk.data[..]);
}

#[test]
fn devices_are_written_only_when_they_are_free_and_empty() {
    let place = Place::new();
    let disk = Disk::new("db01", "sda", data(20 * BLOCK + 512, BLOCK, |_| false));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    sparse(&place.join("small"), 20 * BLOCK as u64);
    let small = Loop::attach(&place.join("small"), &[]);
    restore(&place, &made, "db01/sda", small.path(), &[]).refused(1, &["expected at least"]);
    sparse(&place.join("large"), 30 * BLOCK as u64);
    let large = Loop::attach(&place.join("large"), &[]);
    assert_eq!(restore(&place, &made, "db01/sda", large.path(), &[]).ok()["complete"], true);
    assert!(std::fs::read(large.path()).unwrap()[..disk.data.len()] == disk.data[..]);
    restore(&place, &made, "db01/sda", large.path(), &[]).refused(1, &["found data", "--overwrite"]);
    restore(&place, &made, "db01/sda", large.path(), &["--overwrite"]).ok();
    restore(&place, &made, "db01/sda", &place.join("large"), &["--overwrite"]).refused(1, &["attached as"]);
    // The volume of an import is never a target.
    let into = format!("dir:{}", place.join("out").display());
    command(&place, &made, "import", "auto").args(["--to", &into]).run().ok();
    let volume = place.join("out/farbank/db01/sda.raw");
    restore(&place, &made, "db01/sda", &volume, &["--overwrite"]).refused(1, &["no volume of an import"]);
}
