//! Goal: what arrives is what left: the volume is the disk, byte by byte, and what stands on it works.
//!
//! Method: real disks made by their own tools, as files and as loop devices, go through `seed`, `seal`, `verify` and `import`
//! by the real binary; `cmp`, `b3sum`, `e2fsck`, `xfs_repair`, `ntfsfix`, `mount` and `cryptsetup` judge the volumes. WWN, by-id
//! and multipath cannot be had from loop devices; they are tried over constructed trees in `source`.

use crate::common::{Branch, Loop, Mount, b3sum, cmp, disk, disks, loop_device, noise, sparse, tool, write_at};
use crate::seed::ENGINES;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// `import` of the branch's array by a data centre with a state directory of its own.
fn import(branch: &Branch, to: &[&str], extra: &[&str]) -> serde_json::Value {
    let state = branch.place.join("centre-state");
    let mut command = crate::common::run::Motiongear::new(&state).args(["--json", "import"]).arg(&branch.array);
    for target in to {
        command = command.args(["--to", target]);
    }
    let trust =
        [OsStr::new("--trust"), branch.trust.as_os_str(), OsStr::new("--identity"), branch.identity.as_os_str()];
    command.args(trust).args(extra).run().ok()
}

fn volume(dir: &Path, branch: &Branch, name: &str) -> PathBuf {
    dir.join(&branch.site).join("db01").join(format!("{name}.raw"))
}

fn same_tree(a: &Path, b: &Path) {
    tool("diff", ["-r", "--no-dereference", a.to_str().unwrap(), b.to_str().unwrap()]);
}

#[test]
fn volumes_are_the_disks_and_what_stands_on_them_works() {
    for engine in ENGINES {
        let branch = Branch::ready();
        let place = &branch.place;
        let names = ["gpt", "xfs", "ntfs", "luks", "zero", "random"];
        let at = |name: &str| place.join(name);
        disks::sample_disk(&at("gpt"));
        disks::xfs_disk(place, &at("xfs"));
        disks::ntfs_disk(place, &at("ntfs"));
        disks::luks_disk(&at("luks"));
        sparse(&at("zero"), 40 * MIB);
        write_at(&at("zero"), 7 * MIB, &vec![0; 3 * MIB as usize]);
        noise(&at("random"), 20 * MIB + 512, 41);
        let devices = ["xfs", "luks"].map(|name| (name, loop_device(&at(name))));
        let paths: Vec<_> = names
            .iter()
            .map(|name| {
                let device = devices.iter().find(|(n, _)| n == name).map(|(_, device)| device.path().to_owned());
                (*name, device.unwrap_or_else(|| at(name)))
            })
            .collect();
        let sources: Vec<(&str, &Path)> = paths.iter().map(|(name, path)| (*name, path.as_path())).collect();
        branch.seed(&sources, &["--engine", engine]).ok();
        branch.seal();
        // The medium with the stock tools, then with our own verb, without and with keys.
        branch.check_with_stock_tools();
        branch.on_array("verify", [""; 0]).ok();
        let trust =
            [OsStr::new("--trust"), branch.trust.as_os_str(), OsStr::new("--identity"), branch.identity.as_os_str()];
        branch.on_array("verify", trust).ok();

        let dir = place.dir("volumes");
        import(&branch, &[&format!("dir:{}", dir.display())], &["--engine", engine]);
        let seal = branch.seal_json();
        for (name, path) in &sources {
            let volume = volume(&dir, &branch, name);
            assert!(cmp(path, &volume), "{name}: the volume is not the disk ({engine})");
            assert_eq!(b3sum(&volume), disk(&seal["disks"], name)["digest"], "{name}");
        }
        let allocated = disks::allocated(&volume(&dir, &branch, "zero"));
        assert!(allocated <= 65536, "zeros take up {allocated} bytes");
        // ext4 behind its partition table, without and with the loop device's own offset.
        let gpt = volume(&dir, &branch, "gpt");
        tool("sgdisk", ["--verify".as_ref(), gpt.as_os_str()]);
        let (offset, size) = ((5 * MIB).to_string(), (83 * MIB).to_string());
        let partition = Loop::attach(&gpt, &["--offset", &offset, "--sizelimit", &size]);
        tool("e2fsck", ["-fn".as_ref(), partition.path().as_os_str()]);
        let mount = Mount::new(partition.path(), &place.join("m-ext4"), &["-o", "ro"]);
        assert_eq!(std::fs::read_to_string(mount.path().join("etc/hostname")).unwrap(), "db01\n");
        drop((mount, partition));
        // XFS: the tree that was there, and nothing to repair.
        let (was, is) = (Loop::attach(&at("xfs"), &["--read-only"]), loop_device(&volume(&dir, &branch, "xfs")));
        tool("xfs_repair", ["-n".as_ref(), is.path().as_os_str()]);
        let first = Mount::new(was.path(), &place.join("m-xfs-was"), &["-o", "ro,norecovery"]);
        let second = Mount::new(is.path(), &place.join("m-xfs-is"), &["-o", "ro,nouuid,norecovery"]);
        same_tree(first.path(), second.path());
        assert!(second.path().join("a/b/5.bin").metadata().unwrap().len() == 3_000_000);
        drop((first, second, was, is));
        let ntfs = volume(&dir, &branch, "ntfs");
        tool("ntfsfix", ["--no-action".as_ref(), ntfs.as_os_str()]);
        let mounted = place.dir("m-ntfs");
        tool("ntfs-3g", ["-o".as_ref(), "ro".as_ref(), ntfs.as_os_str(), mounted.as_os_str()]);
        let notes = std::fs::read_to_string(mounted.join("Users/zhang/notes.txt")).unwrap();
        tool("umount", [&mounted]);
        assert!(notes.starts_with("同样的一行\n") && notes.lines().count() == 9000);
        assert!(disks::luks_opens(&volume(&dir, &branch, "luks")), "the LUKS container does not open");
    }
}

#[test]
fn volumes_on_devices_are_the_disks_too() {
    let branch = Branch::ready();
    let image = branch.place.join("sda.img");
    disks::sample_disk(&image);
    let odd = branch.place.join("sdb.img");
    noise(&odd, 9 * MIB + 512, 3);
    branch.seed(&[("sda", &image), ("sdb", &odd)], &[]).ok();
    branch.seal();
    // One of the same size, one that a cloud rounded up; with old zeros on them.
    let (a, b) = (branch.place.join("vol-a"), branch.place.join("vol-b"));
    sparse(&a, image.metadata().unwrap().len());
    sparse(&b, 16 * MIB);
    let (dev_a, dev_b) = (loop_device(&a), loop_device(&b));
    let targets =
        [format!("dev:db01/sda={}", dev_a.path().display()), format!("dev:db01/sdb={}", dev_b.path().display())];
    import(&branch, &[&targets[0], &targets[1]], &[]);
    drop((dev_a, dev_b));
    assert!(cmp(&image, &a));
    let bytes = std::fs::read(&b).unwrap();
    let length = odd.metadata().unwrap().len() as usize;
    assert!(bytes[..length] == std::fs::read(&odd).unwrap()[..]);
    assert!(bytes[length..].iter().all(|byte| *byte == 0), "the tail is zero");
}

#[test]
fn a_disk_that_is_shipped_again_is_the_same_disk_at_the_data_centre() {
    let mut branch = Branch::ready();
    let (sda, sdb) = (branch.place.join("sda"), branch.place.join("sdb"));
    noise(&sda, 5 * MIB, 1);
    noise(&sdb, 2 * MIB, 2);
    let dir = branch.place.dir("volumes");
    let to = format!("dir:{}", dir.display());
    let mut shipped = Vec::new();
    let mut ship = |branch: &mut Branch, disks: &[(&str, &Path)]| {
        branch.array = branch.place.dir(&format!("array-{}", shipped.len()));
        branch.init(&[]);
        branch.seed(disks, &[]).ok();
        branch.seal();
        shipped.push((branch.shipment_json(), branch.seal_json()["disks"].clone()));
    };
    ship(&mut branch, &[("sda", &sda), ("sdb", &sdb)]);
    import(&branch, &[&to], &[]);
    // The truck drives twice: the same disk, which worked on, into the same volume.
    write_at(&sda, 3 * MIB + 5, b"worked on");
    ship(&mut branch, &[("sda", &sda)]);
    // Which of the two is the newer one is for people to say.
    let centre = branch.place.join("centre-state");
    let unasked = crate::common::run::Motiongear::new(&centre).arg("import").arg(&branch.array).args(["--to", &to]);
    let unasked = unasked.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity);
    unasked.run().refused(1, &["expected an empty one", "this one was sealed at", "newer copy: --overwrite"]);
    import(&branch, &[&to], &["--overwrite"]);
    assert!(cmp(&sda, &volume(&dir, &branch, "sda")), "the volume is not the disk of the second shipment");
    // Another disk in the place of the second one is another disk.
    let exchanged = branch.place.join("exchanged");
    noise(&exchanged, 2 * MIB, 3);
    std::fs::rename(&exchanged, &sdb).unwrap();
    ship(&mut branch, &[("sda", &sda), ("sdb", &sdb)]);

    let [first, second, third] = shipped.as_slice() else { panic!("{} shipments", shipped.len()) };
    for (document, disks) in [second, third] {
        assert_eq!(document["site"]["uuid"], first.0["site"]["uuid"]);
        assert_ne!(document["shipment"], first.0["shipment"]);
        assert_eq!(disk(disks, "sda")["uuid"], disk(&first.1, "sda")["uuid"]);
    }
    assert_ne!(disk(&third.1, "sdb")["uuid"], disk(&first.1, "sdb")["uuid"]);
}
