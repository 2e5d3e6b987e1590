//! Goal: a disk is known by what it is, wherever it appears; what must not be copied is refused; hooks freeze only for the
//! snapshot, and a source is thawed whatever becomes of MotionGear.
//!
//! Method: WWN, by-id, multipath, NVMe, SCSI and reboot cases run over `fixtures/sysfs/*.tree`, **constructed** trees of
//! /sys, /proc, /run/udev/data and /dev (see the generator beside them), since loop devices have no WWN and no build
//! machine has a SAN. Partition tables and superblocks are made by the stock tools in image files and on loop devices.
//! Hooks are shell commands that leave marks; the process that dies while frozen is this test program run again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use motiongear::inspect::{Options, Reason, Verdict, inspect_with};
use motiongear::plan::{HookSpec, HooksSpec, Plan};
use motiongear::source::hooks::{HookContext, Hooks};
use motiongear::source::{Identity, Origin, Source, SourceKind, SysRoot, refuse_as_source};
use tempfile::TempDir;

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sysfs").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Unpacks a tree: `PATH = TEXT`, `PATH + APPENDED LINE`, `PATH := HEX`, `PATH -> LINK`.
fn unpack(tree: &str) -> (TempDir, SysRoot) {
    let root = tempfile::tempdir().unwrap();
    let place = |path: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    for line in tree.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some((path, target)) = line.split_once(" -> ") {
            let target = match target.strip_prefix('/') {
                Some(absolute) => root.path().join(absolute),
                None => PathBuf::from(target),
            };
            std::os::unix::fs::symlink(target, place(path)).unwrap();
        } else if let Some((path, hex)) = line.split_once(" := ") {
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            std::fs::write(place(path), bytes).unwrap();
        } else if let Some((path, text)) = line.split_once(" + ") {
            let path = place(path);
            let mut old = std::fs::read_to_string(&path).unwrap_or_default();
            old += &format!("{text}\n");
            std::fs::write(path, old).unwrap();
        } else {
            let (path, text) = line.split_once(" =").unwrap();
            std::fs::write(place(path), text.trim_start()).unwrap();
            if path.starts_with("dev/") {
                std::fs::File::options().write(true).open(place(path)).unwrap().set_len(1 << 20).unwrap();
            }
        }
    }
    let sys = SysRoot::new(root.path());
    (root, sys)
}

fn open(sys: &SysRoot, path: &str) -> Source {
    Source::open_path(&sys.path(path), sys).unwrap()
}

#[test]
fn the_trees_are_what_their_generator_makes() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sysfs");
    let scratch = tempfile::tempdir().unwrap();
    std::fs::copy(here.join("make"), scratch.path().join("make")).unwrap();
    assert!(Command::new("bash").arg(scratch.path().join("make")).status().unwrap().success());
    for name in ["san.tree", "san-rebooted.tree"] {
        assert_eq!(std::fs::read_to_string(scratch.path().join(name)).unwrap(), fixture(name), "{name}");
    }
}

#[test]
fn hardware_ids_are_found_where_each_bus_keeps_them() {
    let (_root, sys) = unpack(&fixture("san.tree"));
    let sata = open(&sys, "dev/disk/by-id/wwn-0x5000c500a1b2c3d4");
    assert_eq!(sata.identity.wwn.as_deref(), Some("naa.5000c500a1b2c3d4"));
    assert_eq!(sata.identity.serial.as_deref(), Some("ZC1A2B3C"));
    assert_eq!(sata.bytes, 7_814_037_168 * 512);
    assert_eq!(sata.facts.model.as_deref(), Some("ST4000NM0035-1V4"));
    assert_eq!(sata.facts.transport.as_deref(), Some("sata"));
    assert_eq!(sata.facts.physical_sector_bytes, Some(4096));
    let nvme = open(&sys, "dev/nvme0n1");
    assert_eq!(nvme.identity.wwn.as_deref(), Some("eui.0025385b71b01234"));
    assert_eq!(nvme.identity.serial.as_deref(), Some("S4EWNX0R123456"));
    assert_eq!(nvme.facts.logical_sector_bytes, Some(4096));
    let scsi = open(&sys, "dev/disk/by-id/scsi-3600605b00a12b3c4d5e6f700");
    assert_eq!(
        scsi.identity.wwn.as_deref(),
        Some("naa.600605b00a12b3c4d5e6f70000000001"),
        "from udev: no wwid in sysfs"
    );
    assert_eq!(scsi.identity.serial.as_deref(), Some("00a12b3c4d5e6f7"), "from VPD page 0x80");
    let multipath = open(&sys, "dev/mapper/mpatha");
    assert_eq!(multipath.identity.mapper.as_deref(), Some("mpath-3600508b400105e210000900000490000"));
    let partition = open(&sys, "dev/sda2");
    assert_eq!(partition.identity.wwn, sata.identity.wwn);
    assert_eq!(partition.identity.table.as_deref(), Some("gpt:2f0c5a1e-90d4-4f6f-8b2e-1d3c5b7a9e10"));
    assert_eq!(partition.identity.partition.as_ref().map(|p| p.number), Some(2));
}

#[test]
fn a_reboot_that_deals_out_other_letters_changes_no_identity() {
    let (_before, sys) = unpack(&fixture("san.tree"));
    let (_after, again) = unpack(&fixture("san-rebooted.tree"));
    for (path, moved) in [
        ("dev/sda", "dev/sde"),
        ("dev/sda2", "dev/sde2"),
        ("dev/sdd", "dev/sdc"),
        ("dev/sde", "dev/sdd"),
        ("dev/nvme0n1", "dev/nvme0n1"),
        ("dev/mapper/mpatha", "dev/mapper/mpatha"),
    ] {
        let recorded = open(&sys, path).identity;
        let stored: Identity = serde_json::from_str(&serde_json::to_string(&recorded).unwrap()).unwrap();
        assert_eq!(stored.same_disk(&open(&again, moved).identity), Ok(()), "{path} is {moved} now");
        if path != moved {
            let Ok(other) = Source::open_path(&again.path(path), &again) else { continue };
            let error = other.expect_identity(&stored).unwrap_err();
            assert!(error.message.contains("expected") && error.message.contains("found"), "{error}");
        }
    }
}

#[test]
fn a_disk_that_was_swapped_or_pulled_is_noticed_at_recheck() {
    let (root, sys) = unpack(&fixture("san.tree"));
    let source = open(&sys, "dev/sda");
    source.recheck().unwrap();
    let wwid = root.path().join("sys/class/block/sda/device/wwid");
    std::fs::write(&wwid, "naa.5000c500ffffffff").unwrap();
    let error = source.recheck().unwrap_err();
    assert!(error.message.contains("expected WWN naa.5000c500a1b2c3d4, found naa.5000c500ffffffff"), "{error}");
    std::fs::remove_file(root.path().join("dev/sda")).unwrap();
    assert!(source.recheck().is_err());
}

#[test]
fn what_must_not_be_copied_is_refused_with_the_way_out() {
    let (root, sys) = unpack(&fixture("san.tree"));
    let array = Path::new("/mnt/array");
    let refused = |paths: &[&str]| {
        let sources: Vec<Source> = paths.iter().map(|path| open(&sys, path)).collect();
        refuse_as_source(&sources, array).map_err(|error| error.to_string())
    };
    refused(&["dev/sda", "dev/mapper/mpatha", "dev/nvme0n1", "dev/sde"]).unwrap();
    assert!(refused(&["dev/sdb"]).unwrap_err().contains("/dev/mapper/mpatha"));
    assert!(refused(&["dev/sdc"]).unwrap_err().contains("path leg"));
    assert!(refused(&["dev/sdd"]).unwrap_err().contains("transport array itself"));
    assert!(refused(&["dev/sdd1"]).unwrap_err().contains("transport array itself"));
    assert!(refused(&["dev/loop0"]).unwrap_err().contains("file lies on the transport array"));
    assert!(refused(&["dev/sda", "dev/disk/by-id/wwn-0x5000c500a1b2c3d4"]).unwrap_err().contains("the same WWN"));
    assert!(refused(&["dev/sda", "dev/sda2"]).unwrap_err().contains("the same WWN"), "the disk and a partition of it");
    refused(&["dev/sda1", "dev/sda2"]).unwrap();
    // An array on LVM of sda: sda, sda2 and the volume are all the array; sda1 is not.
    let mounts = root.path().join("proc/self/mountinfo");
    std::fs::write(&mounts, "60 22 253:1 / /mnt/array rw - xfs /dev/mapper/system-root rw\n").unwrap();
    for own in ["dev/sda", "dev/sda2", "dev/mapper/system-root"] {
        assert!(refused(&[own]).unwrap_err().contains("transport array itself"), "{own}");
    }
    refused(&["dev/sda1"]).unwrap();
}

#[test]
fn files_on_the_array_and_one_file_twice_are_refused() {
    let array = tempfile::tempdir().unwrap();
    let sys = SysRoot::default();
    let inside = array.path().join("image");
    std::fs::write(&inside, vec![1u8; 8192]).unwrap();
    let source = Source::open_path(&inside, &sys).unwrap();
    let error = refuse_as_source(&[source], array.path()).unwrap_err();
    assert!(error.message.contains("on the transport array"), "{error}");
    let elsewhere = tempfile::tempdir().unwrap();
    let image = elsewhere.path().join("image");
    std::fs::write(&image, vec![1u8; 8192]).unwrap();
    std::fs::hard_link(&image, elsewhere.path().join("alias")).unwrap();
    let twice = [&image, &elsewhere.path().join("alias")].map(|path| Source::open_path(path, &sys).unwrap());
    assert!(refuse_as_source(&twice, array.path()).unwrap_err().message.contains("the same file"));
}

#[test]
fn only_files_and_block_devices_are_disks() {
    let dir = tempfile::tempdir().unwrap();
    let sys = SysRoot::default();
    let refused = |path: &Path| Source::open_path(path, &sys).unwrap_err().message;
    assert!(refused(dir.path()).contains("a directory"));
    assert!(refused(Path::new("/dev/null")).contains("a character device"));
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refused(&pipe).contains("a named pipe"), "and opening it did not hang");
    assert!(refused(&dir.path().join("missing")).contains("missing"));
    for length in [0usize, 1, 511, 512, 4097] {
        let image = dir.path().join(format!("{length}"));
        std::fs::write(&image, vec![0u8; length]).unwrap();
        let source = Source::open_path(&image, &sys).unwrap();
        assert_eq!(source.bytes, length as u64);
        source.recheck().unwrap();
        std::fs::write(&image, vec![0u8; length + 1]).unwrap();
        let error = source.recheck().unwrap_err().message;
        assert!(error.contains(&format!("expected {length} bytes, found {}", length + 1)), "{error}");
    }
    let image = dir.path().join("again");
    std::fs::write(&image, b"one").unwrap();
    let source = Source::open_path(&image, &sys).unwrap();
    std::fs::rename(&image, dir.path().join("old")).unwrap();
    std::fs::write(&image, b"two").unwrap();
    assert!(source.recheck().unwrap_err().message.contains("not the same disk"));
}

#[test]
fn superblocks_that_the_stock_tools_make_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let sys = SysRoot::default();
    let tools: [(&str, &[&str], &str); 9] = [
        ("mkfs.ext4", &["-q", "-F", "-L", "root"], "ext4 root"),
        ("mkfs.ext3", &["-q", "-F", "-L", "old"], "ext3 old"),
        ("mkfs.xfs", &["-q", "-f", "-L", "MOTIONGEAR01"], "xfs MOTIONGEAR01"),
        ("mkfs.btrfs", &["-q", "-f", "-L", "pool"], "btrfs pool"),
        ("mkfs.vfat", &["-F", "32", "-n", "EFI"], "fat32 EFI"),
        ("mkfs.ntfs", &["-q", "-F", "-f"], "ntfs -"),
        ("mkswap", &["-L", "swap"], "swap swap"),
        (
            "cryptsetup",
            &[
                "luksFormat",
                "-q",
                "--type",
                "luks2",
                "--pbkdf",
                "pbkdf2",
                "--pbkdf-force-iterations",
                "1000",
                "--label",
                "vault",
            ],
            "luks2 vault",
        ),
        ("cryptsetup", &["luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000"], "luks1 -"),
    ];
    for (at, (tool, arguments, expected)) in tools.iter().enumerate() {
        let image = dir.path().join(format!("{at}.img"));
        std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        let mut command = Command::new(tool);
        command.args(*arguments).arg(&image).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            eprintln!("{tool} is not installed; its superblock was not tried");
            continue;
        };
        use std::io::Write;
        let _ = child.stdin.take().unwrap().write_all(b"secret");
        assert!(child.wait().unwrap().success(), "{tool}");
        let source = Source::open_path(&image, &sys).unwrap();
        let found: Vec<String> = source
            .facts
            .signatures()
            .map(|found| format!("{} {}", found.kind, found.label.as_deref().unwrap_or("-")))
            .collect();
        assert_eq!(found, [*expected], "{tool}");
    }
}

#[test]
fn a_disk_with_partitions_is_described_on_a_loop_device_as_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let script = "label: gpt\nlabel-id: 2F0C5A1E-90D4-4F6F-8B2E-1D3C5B7A9E10\n,32M,L,\n,16M,S,\n";
    let mut sfdisk = Command::new("sfdisk").arg("-q").arg(&image).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut sfdisk.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let source = Source::open_path(&image, &SysRoot::default()).unwrap();
    let table = source.facts.table.clone().unwrap();
    assert_eq!(table.id().as_deref(), Some("gpt:2f0c5a1e-90d4-4f6f-8b2e-1d3c5b7a9e10"));
    let types: Vec<_> = table.partitions.iter().map(|p| (p.number, p.bytes >> 20, p.type_name.as_deref())).collect();
    assert_eq!(types, [(1, 32, Some("Linux data")), (2, 16, Some("Linux swap"))]);
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"SWAPSPACE2", table.partitions[1].start + 4086).unwrap();
    let source = Source::open_path(&image, &SysRoot::default()).unwrap();
    assert_eq!(source.facts.volumes.iter().map(|v| v.partition).collect::<Vec<_>>(), [2]);
    let Ok(attached) = Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(&image).output() else {
        return;
    };
    if !attached.status.success() {
        eprintln!("no loop device to be had; the file alone was tried");
        return;
    }
    let node = PathBuf::from(String::from_utf8(attached.stdout).unwrap().trim());
    let device = Source::open_path(&node, &SysRoot::default());
    let detached = Command::new("losetup").arg("--detach").arg(&node).status().unwrap();
    let device = device.unwrap();
    assert_eq!(device.identity.file, source.identity.file, "a loop device is known by the file behind it");
    assert_eq!((device.bytes, &device.facts.table), (source.bytes, &source.facts.table));
    assert!(device.identity.kind == SourceKind::BlockDevice && detached.success());
    assert!(device.identity.overlaps(&source.identity).is_some());
}

// ---- inspect ----

#[test]
fn inspect_judges_every_disk_of_the_host_and_its_plan_parses() {
    let (_root, sys) = unpack(&fixture("san.tree"));
    let options = Options { array: Some("/mnt/array".into()), ..Options::default() };
    let found = inspect_with(&sys, &options);
    let verdicts: BTreeMap<&str, Verdict> = found.disks.iter().map(|disk| (disk.name.as_str(), disk.verdict)).collect();
    let expected = [
        ("mpatha", Verdict::Go),
        ("nvme0n1", Verdict::Caution),
        ("sda", Verdict::Caution),
        ("sdb", Verdict::NoGo),
        ("sdc", Verdict::NoGo),
        ("sdd", Verdict::NoGo),
        ("sde", Verdict::Go),
    ];
    assert_eq!(verdicts, BTreeMap::from(expected));
    let reasons = |name: &str| &found.disks.iter().find(|disk| disk.name == name).unwrap().reasons;
    let at = vec![PathBuf::from("/"), PathBuf::from("/boot/efi")];
    assert!(reasons("sda").contains(&Reason::MountedReadWrite { at }), "through LVM: {:?}", reasons("sda"));
    assert!(reasons("sda").contains(&Reason::Swap));
    assert_eq!(reasons("nvme0n1"), &[Reason::FourKn]);
    assert!(reasons("sdb").contains(&Reason::MultipathLeg { of: "/dev/mapper/mpatha".into() }));
    assert!(reasons("sdd").contains(&Reason::Array { at: "/mnt/array".into() }));
    let passed: Vec<String> =
        found.passed_over.iter().map(|(why, names)| format!("{why}: {}", names.join(" "))).collect();
    let expected = [
        "loop device: loop0",
        "memory: zram0",
        "on another disk: dm-1 dm-2",
        "optical: sr0",
        "partition: sda1 sda2 sdd1",
        "removable: sdf",
    ];
    assert_eq!(passed, expected);
    println!("{}\n{}", found.render(motiongear::lang::Lang::En), found.plan_out(motiongear::lang::Lang::Zh));
    let host = &found.host;
    assert_eq!(host.os.as_deref(), Some("SUSE Linux Enterprise Server 11 (x86_64)"));
    assert_eq!((host.cpus, host.memory_bytes), (2, 65_842_344 * 1024));
    assert_eq!(host.firmware.as_deref(), Some("uefi"));
    assert_eq!(host.nics[0].addresses, ["fe80::21b:21ff:feaa:bbcc/64"]);
    assert!((found.estimate.hours - found.estimate.bytes as f64 / (150.0 * 1048576.0) / 3600.0).abs() < 0.01);
    for lang in [motiongear::lang::Lang::En, motiongear::lang::Lang::Zh] {
        let plan = Plan::parse(&found.plan_out(lang)).unwrap();
        let sources: Vec<_> = plan.disks().map(|(_, disk)| disk.source.to_string()).collect();
        assert_eq!(plan.machines[0].name, "db01");
        assert!(sources.contains(&"/dev/disk/by-id/wwn-0x5000c500a1b2c3d4".to_owned()), "{sources:?}");
        assert!(!sources.iter().any(|source| source.contains("sdb")));
        assert!(found.render(lang).contains("/dev/mapper/mpatha"));
    }
    let json = serde_json::to_string(&found).unwrap();
    let back: motiongear::inspect::Inspection = serde_json::from_str(&json).unwrap();
    assert_eq!(back.host, found.host);
    assert!(back.disks.iter().zip(&found.disks).all(|(a, b)| a.identity == b.identity && a.reasons == b.reasons));
}

#[test]
fn two_paths_that_no_multipath_device_joins_are_pointed_out() {
    let tree: Vec<String> =
        fixture("san.tree").lines().filter(|line| !line.contains("holders/dm-0")).map(str::to_owned).collect();
    let (_root, sys) = unpack(&tree.join("\n"));
    let found = inspect_with(&sys, &Options::default());
    let leg = found.disks.iter().find(|disk| disk.name == "sdb").unwrap();
    assert_eq!((leg.verdict, &leg.reasons[..]), (Verdict::Caution, &[Reason::SharedWwn { with: "sdc".into() }][..]));
}

#[test]
fn inspect_of_this_very_machine_ends() {
    let found = motiongear::inspect::inspect(&SysRoot::default());
    println!("{}", found.render(motiongear::lang::Lang::Zh));
    assert!(found.host.cpus > 0 && found.host.memory_bytes > 0 && found.host.kernel.is_some());
    Plan::parse(&found.plan_out(motiongear::lang::Lang::En)).map(drop).unwrap_or_else(|error| {
        assert!(error.message.contains("at least one disk"), "{error}");
    });
}

// ---- hooks and watchdog ----

/// The real binary's hidden verb.
fn watchdog() -> Vec<OsString> {
    vec![env!("CARGO_BIN_EXE_motiongear").into(), "thaw-watchdog".into()]
}

/// This test program again as a MotionGear that dies while the source is frozen.
#[test]
#[ignore = "run by other tests as a process"]
fn frozen_entry() {
    let Ok(dir) = std::env::var("FROZEN_DIR") else { return };
    let hang = std::env::var("FROZEN_HOOK").unwrap();
    let mut spec = marking(Path::new(&dir));
    let slow = HookSpec { command: shell(&format!("echo {hang} >> {dir}/marks; exec sleep 300")), timeout: secs(600) };
    if hang == "freeze" {
        spec.freeze = Some(slow);
    } else {
        spec.snapshot = Some(slow);
    }
    let context = HookContext { log: Some(Path::new(&dir).join("log")), ..context() };
    let _ = hooks(spec).take_snapshot(&context);
}

fn entry(name: &str) -> Vec<OsString> {
    let program = std::env::current_exe().unwrap().into_os_string();
    [program, "--exact".into(), format!("source::{name}").into(), "--ignored".into(), "--nocapture".into()].into()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).into()
}

/// Hooks that write their names into `dir/marks`.
fn marking(dir: &Path) -> HooksSpec {
    let hook = |name: &str| {
        Some(HookSpec {
            command: shell(&format!("test -d {0} || exit 0; echo {name} >> {0}/marks", dir.display())),
            timeout: secs(20),
        })
    };
    HooksSpec { freeze: hook("freeze"), snapshot: hook("snapshot"), thaw: hook("thaw"), discard: hook("discard") }
}

fn hooks(spec: HooksSpec) -> Hooks {
    Hooks::new(spec).with_watchdog(watchdog())
}

fn context() -> HookContext {
    HookContext { machine: "db01".into(), shipment: "s-1".into(), disks: vec!["sda".into()], ..HookContext::default() }
}

fn marks(dir: &Path) -> Vec<String> {
    std::fs::read_to_string(dir.join("marks")).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn the_freeze_spans_only_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = marking(dir.path());
    let script = format!(
        "echo snapshot $MOTIONGEAR_HOOK $MOTIONGEAR_MACHINE $MOTIONGEAR_SHIPMENT $MOTIONGEAR_GENERATION >> {}/marks; \
         echo some noise; echo sda=/dev/vg/snap",
        dir.path().display()
    );
    spec.snapshot = Some(HookSpec { command: shell(&script), timeout: secs(20) });
    let hooks = hooks(spec);
    let taken = hooks.take_snapshot(&context()).unwrap();
    assert_eq!(marks(dir.path()), ["freeze", "snapshot snapshot db01 s-1 0", "thaw"]);
    assert_eq!(taken.overrides["sda"], Origin::Path("/dev/vg/snap".into()));
    assert_eq!(taken.events.iter().map(|e| e.hook.as_str()).collect::<Vec<_>>(), ["freeze", "snapshot", "thaw"]);
    assert!(taken.events.iter().all(|event| event.ok));
    assert!(taken.point_in_time.parse::<jiff::Timestamp>().is_ok());
    assert!(hooks.discard(&context()).unwrap().unwrap().ok);
    assert_eq!(marks(dir.path()).last().unwrap(), "discard");
}

#[test]
fn a_failed_freeze_or_snapshot_is_thawed_and_told() {
    for (failing, seen) in [("freeze", vec!["thaw"]), ("snapshot", vec!["freeze", "thaw"])] {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = marking(dir.path());
        let bad = Some(HookSpec { command: shell("echo no room left >&2; exit 7"), timeout: secs(20) });
        if failing == "freeze" {
            spec.freeze = bad
        } else {
            spec.snapshot = bad
        }
        let mut events = Vec::new();
        let error = hooks(spec).take_snapshot_into(&context(), &mut events).unwrap_err().to_string();
        assert!(error.contains(failing) && error.contains("exit 7") && error.contains("no room left"), "{error}");
        assert_eq!(marks(dir.path()), seen);
        assert_eq!(events.last().unwrap().hook, "thaw");
    }
}

#[test]
fn a_snapshot_that_overstays_its_limit_is_ended_and_thawed() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = marking(dir.path());
    spec.snapshot = Some(HookSpec { command: shell("sleep 300 & sleep 300"), timeout: secs(1) });
    let began = Instant::now();
    let error = hooks(spec).take_snapshot(&context()).unwrap_err().to_string();
    assert!(error.contains("stopped after 1 s"), "{error}");
    assert_eq!(marks(dir.path()), ["freeze", "thaw"]);
    assert!(began.elapsed() < secs(15));
}

#[test]
fn a_thaw_that_fails_is_repeated_by_the_watchdog() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = marking(dir.path());
    // Fails the first time only.
    let script = format!(
        "test -d {0} || exit 0; echo thaw >> {0}/marks; test $(grep -c thaw {0}/marks) -ge 2",
        dir.path().display()
    );
    spec.thaw = Some(HookSpec { command: shell(&script), timeout: secs(20) });
    let error = hooks(spec).take_snapshot(&context()).unwrap_err().to_string();
    assert!(error.contains("Hook thaw"), "{error}");
    wait_for(|| marks(dir.path()).iter().filter(|mark| *mark == "thaw").count() >= 2, "the second thaw");
    assert!(marks(dir.path()).contains(&"discard".to_owned()), "the snapshot that nobody may use was removed");
}

#[test]
fn without_a_watchdog_nothing_is_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = Hooks::new(marking(dir.path())).with_watchdog(vec!["/bin/true".into()]);
    assert!(hooks.take_snapshot(&context()).unwrap_err().message.contains("watchdog"));
    assert!(marks(dir.path()).is_empty());
}

#[test]
fn killed_while_frozen_the_source_is_thawed() {
    for hook in ["freeze", "snapshot"] {
        let dir = tempfile::tempdir().unwrap();
        let command = entry("frozen_entry");
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .env("FROZEN_DIR", dir.path())
            .env("FROZEN_HOOK", hook)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(|| marks(dir.path()).iter().any(|mark| mark == hook), "the hook in which to die");
        assert!(!marks(dir.path()).contains(&"thaw".to_owned()));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        wait_for(|| marks(dir.path()).iter().any(|mark| mark == "thaw"), "the watchdog's thaw");
        wait_for(|| std::fs::read_to_string(dir.path().join("log")).is_ok_and(|log| log.contains("exit 0")), "its log");
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert!(log.contains("machine db01: MotionGear is gone; thaw attempt 1: exit 0"), "{log}");
    }
}

#[test]
fn stopped_for_too_long_the_watchdog_thaws_and_the_snapshot_is_not_believed() {
    use motiongear::source::watchdog::{Orders, Watchdog};
    let dir = tempfile::tempdir().unwrap();
    let thaw = marking(dir.path()).thaw.unwrap();
    let orders = Orders { thaw, limit: secs(1), environment: BTreeMap::new(), log: None, turn: None };
    let watchdog = Watchdog::start(&watchdog(), &orders).unwrap();
    wait_for(|| marks(dir.path()).contains(&"thaw".to_owned()), "the watchdog's thaw");
    let error = watchdog.release().unwrap_err();
    assert!(error.message.contains("had to thaw"), "{error}");
}

#[test]
fn the_watchdog_outlives_the_signals_of_a_closed_terminal() {
    use motiongear::source::watchdog::{Orders, Watchdog};
    let dir = tempfile::tempdir().unwrap();
    // The thaw hook itself must not inherit the deafness: it ends itself by SIGTERM once, then writes its mark.
    let script = format!(
        "test -d {0} || exit 0; test -e {0}/tried || {{ touch {0}/tried; kill -TERM $$; sleep 5; exit 0; }}; echo thaw >> {0}/marks",
        dir.path().display()
    );
    let thaw = HookSpec { command: shell(&script), timeout: secs(20) };
    let orders = Orders { thaw, limit: secs(600), environment: BTreeMap::new(), log: None, turn: None };
    let watchdog = Watchdog::start(&watchdog(), &orders).unwrap();
    for signal in ["HUP", "INT", "TERM"] {
        assert!(Command::new("kill").args(["-s", signal, &watchdog.id().to_string()]).status().unwrap().success());
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(marks(dir.path()).is_empty());
    drop(watchdog);
    wait_for(|| marks(dir.path()).contains(&"thaw".to_owned()), "the thaw after all");
}

fn wait_for(mut what: impl FnMut() -> bool, name: &str) {
    let until = Instant::now() + secs(40);
    while !what() {
        assert!(Instant::now() < until, "waited in vain for {name}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
