//! Goal: two disks of one size and one partition table, as clones of one template have them, never become one disk.
//!
//! Method: the real binary; exports of a real `qemu-nbd` that come up in another order, and files of a file system that keeps no birth
//! times (FUSE) and is mounted again.

use crate::common::{Background, Branch, SourceFs, b3sum, disk, noise_at, sql, tool, try_tool, write_at};
use crate::nbd::servers::Server;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

fn open(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// Two raw disks of one template: one size, one GPT, and other data.
fn clones(branch: &Branch) -> [PathBuf; 2] {
    let [a, b] = ["a.raw", "b.raw"].map(|name| branch.place.join(name));
    File::create(&a).unwrap().set_len(40 * MIB).unwrap();
    tool("sgdisk", ["-n1:2048:0", a.to_str().unwrap()]);
    std::fs::copy(&a, &b).unwrap();
    noise_at(&open(&a), 2 * MIB, 36 * MIB, 1);
    noise_at(&open(&b), 2 * MIB, 36 * MIB, 2);
    [a, b]
}

/// A slow seed that is killed when some of it is committed.
fn killed_half_way(branch: &Branch, disks: &[(&str, &Path)], extra: &[&str]) {
    let mut running: Background = branch.seed_command(disks, &[&["--read-limit", "15MiB"], extra].concat()).start();
    let manifest = branch.live_manifest();
    let rows = || match manifest.exists() {
        true => {
            let count = ["-readonly".as_ref(), manifest.as_os_str(), "SELECT count(*) FROM block".as_ref()];
            try_tool("sqlite3", count).stdout.trim().parse().unwrap_or(0)
        }
        false => 0_u64,
    };
    assert!(running.until(LONG, |_| rows() >= 12), "{}", running.said());
    running.kill();
}

#[test]
fn exports_that_come_up_in_another_order_are_refused_and_nothing_is_spliced() {
    for extra in [&["--point-in-time"][..], &[]] {
        let branch = Branch::ready();
        let [a, b] = clones(&branch);
        let socket = branch.place.join("socket");
        let name = if extra.is_empty() { "fuzzy" } else { "asserted" };
        let mut server = Server::qemu_at(&socket, &a, "raw", &["-r"]);
        let uri = server.text();
        let disks = [(name, Path::new(&uri))];
        killed_half_way(&branch, &disks, extra);
        server.kill();
        let mut other = Server::qemu_at(&socket, &b, "raw", &["-r"]);
        let rows = "SELECT count(*), max(rowid) FROM generation";
        let before = sql(&branch.live_manifest(), rows);
        branch.seed(&disks, extra).code(1);
        branch.seed(&disks, &[extra, &["--dry-run"]].concat()).code(1);
        assert_eq!(sql(&branch.live_manifest(), rows), before);
        other.kill();
        let _server = Server::qemu_at(&socket, &a, "raw", &["-r"]);
        let result = branch.seed(&disks, extra).ok();
        assert_eq!(disk(&result["disks"], name)["digest"], b3sum(&a));
        assert!(disk(&result["disks"], name)["skipped_bytes"].as_u64().unwrap() >= 10 * MIB, "{result}");
    }
}

#[test]
fn inspect_and_seed_warn_of_two_disks_with_one_table() {
    let branch = Branch::ready();
    let [a, b] = clones(&branch);
    let inspected = branch.run([Path::new("inspect"), &a, &b]).ok();
    let shared = |reasons: &serde_json::Value| {
        reasons.as_array().is_some_and(|all| all.iter().any(|reason| reason["reason"] == "shared-table"))
    };
    assert!(inspected["disks"].as_array().unwrap().iter().all(|disk| shared(&disk["reasons"])), "{inspected}");
    let planned = branch.seed(&[("a", &a), ("b", &b)], &["--dry-run"]).ok();
    let disks = planned["plan"]["disks"].as_array().unwrap();
    assert!(disks.iter().all(|disk| shared(&disk["cautions"])), "{planned}");
}

#[test]
fn a_file_without_birth_time_goes_on_after_its_file_system_was_mounted_again() {
    let branch = Branch::ready();
    let [image, other] = ["image", "other"].map(|name| branch.place.join(name));
    for (path, seed) in [(&image, 3), (&other, 4)] {
        File::create(path).unwrap();
        noise_at(&open(path), 0, 40 * MIB, seed);
    }
    let far = branch.place.join("far");
    let path = far.join("disk");
    let disks = [("sda", path.as_path())];
    let mounted = SourceFs::serve(&far, &image);
    let device = std::fs::metadata(&path).unwrap().dev();
    killed_half_way(&branch, &disks, &[]);
    drop(mounted);
    // Another device number this time, as after a reboot.
    let _beside = SourceFs::serve(&branch.place.join("beside"), &image);
    let mounted = SourceFs::serve(&far, &other);
    assert_ne!(std::fs::metadata(&path).unwrap().dev(), device);
    branch.seed(&disks, &[]).code(1);
    drop(mounted);
    let _mounted = SourceFs::serve(&far, &image);
    let result = branch.seed(&disks, &[]).ok();
    assert_eq!(result["disks"][0]["digest"], b3sum(&image));
    assert!(result["disks"][0]["skipped_bytes"].as_u64().unwrap() >= 10 * MIB, "{result}");
}

#[test]
fn a_scan_that_finds_another_disk_names_the_one_that_it_is() {
    let branch = Branch::ready();
    let [a, b] = clones(&branch);
    branch.seed(&[("a", &a), ("b", &b)], &[]).ok();
    branch.seal();
    let source = format!("db01/a={}", b.display());
    let scanned = branch.run(["scan", "--disk", "a", "--source", &source]).code(3);
    assert_eq!(scanned["disks"][0]["another_disk"]["fits"], "db01/b", "{scanned}");
    // A disk that changed much is still its own.
    write_at(&a, 3 * MIB, &vec![7; 30 * MIB as usize]);
    let scanned = branch.run(["scan", "--disk", "a"]).ok();
    assert!(scanned["disks"][0]["another_disk"]["fits"].is_null() && scanned["disks"][0]["another_disk"].is_object());
}
