//! Goal: a disk that was asserted to stand still, and did not, is never sealed as consistent.
//!
//! Method: the real binary; files and loop devices that are written to between two runs, during one, and through a mounted file system;
//! the same at a machine that serves the disk.

use crate::common::{Background, Branch, Mount, b3sum, loop_device, noise, tool, try_tool, write_at};
use crate::serve::{Serving, pin};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

fn begun(branch: &Branch, source: &Path, rows: u64) -> Background {
    let extra = ["--point-in-time", "--read-limit", "15MiB"];
    let mut running = branch.seed_command(&[("sda", source)], &extra).start();
    let manifest = branch.live_manifest();
    let count = || {
        let count = ["-readonly".as_ref(), manifest.as_os_str(), "SELECT count(*) FROM block".as_ref()];
        try_tool("sqlite3", count).stdout.trim().parse().unwrap_or(0)
    };
    assert!(running.until(LONG, |_| manifest.exists() && count() >= rows), "{}", running.said());
    running
}

fn again(branch: &Branch, source: &Path) -> Value {
    branch.seed(&[("sda", source)], &["--point-in-time"]).ok()["disks"][0].clone()
}

#[test]
fn what_was_written_between_two_runs_is_read_again_and_compared() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 40 * MIB, 1);
    begun(&branch, &image, 12).kill();
    write_at(&image, MIB, b"CHANGED");
    write_at(&image, 38 * MIB, b"CHANGED");
    let seeded = again(&branch, &image);
    assert_eq!((&seeded["digest"], &seeded["consistency"]), (&b3sum(&image).into(), &"consistent".into()));
    // Written over as a whole it is the same file all the same.
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 40 * MIB, 1);
    begun(&branch, &image, 12).kill();
    write_at(&image, 0, &vec![9; 40 * MIB as usize]);
    assert_eq!(again(&branch, &image)["digest"], b3sum(&image));
    // And what stood still goes on.
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 40 * MIB, 1);
    begun(&branch, &image, 12).kill();
    let seeded = again(&branch, &image);
    assert_eq!((&seeded["consistency"], &seeded["basis"]), (&"consistent".into(), &"asserted".into()));
    assert!(seeded["skipped_bytes"].as_u64().unwrap() >= 10 * MIB, "{seeded}");
}

#[test]
fn what_is_written_during_the_run_is_fuzzy_with_the_reason() {
    for device in [false, true] {
        let branch = Branch::ready();
        let image = branch.place.join("disk");
        noise(&image, 30 * MIB, 2);
        let attached = device.then(|| loop_device(&image));
        let source = attached.as_ref().map_or(image.as_path(), |device| device.path());
        let running = begun(&branch, source, 4);
        write_at(source, 28 * MIB, b"CHANGED");
        let seeded = running.wait().ok()["disks"][0].clone();
        assert_eq!(seeded["consistency"], "fuzzy", "{seeded}");
        assert!(seeded["fuzzy_because"].is_string(), "{seeded}");
        branch.seal();
        let sealed = &branch.seal_json()["disks"][0];
        assert_eq!((&sealed["consistency"], &sealed["basis"]), (&"fuzzy".into(), &"none".into()));
        branch.check_stand_alone();
    }
}

#[test]
fn a_mounted_disk_is_consistent_only_while_nothing_is_written_to_it() {
    for writes in [true, false] {
        let branch = Branch::ready();
        let image = branch.place.join("disk");
        crate::common::disks::formatted(
            &image,
            64 * MIB,
            "mkfs.ext4",
            &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
        );
        let device = loop_device(&image);
        let mounted = Mount::new(device.path(), &branch.place.dir("mounted"), &[]);
        std::fs::write(mounted.path().join("a"), vec![7; 20 * MIB as usize]).unwrap();
        tool("sync", ["-f".as_ref(), mounted.path().as_os_str()]);
        let running = begun(&branch, device.path(), 4);
        if writes {
            std::fs::write(mounted.path().join("b"), vec![8; MIB as usize]).unwrap();
            tool("sync", ["-f".as_ref(), mounted.path().as_os_str()]);
        }
        let seeded = running.wait().ok()["disks"][0].clone();
        assert_eq!(seeded["consistency"], if writes { "fuzzy" } else { "consistent" }, "{seeded}");
        drop(mounted);
    }
}

#[test]
fn the_machine_that_serves_a_disk_tells_whether_it_stood_still() {
    let branch = Branch::ready();
    let far = branch.place.join("far");
    let image = branch.place.join("disk");
    noise(&image, 40 * MIB, 3);
    let shown = format!("sda={}", image.display());
    let client = pin(&branch.state);
    let serve = |port: u16| {
        let at = format!("127.0.0.1:{port}");
        Serving::start(
            crate::common::Motiongear::new(&far)
                .args(["serve", "--disk", &shown, "--listen", &at, "--client", &client]),
        )
    };
    let serving = serve(0);
    let port = serving.port();
    let uri = format!("nbds://127.0.0.1:{port}/sda?tls-pin={}", pin(&far));
    begun(&branch, Path::new(&uri), 12).kill();
    write_at(&image, MIB, b"CHANGED");
    let seeded = again(&branch, Path::new(&uri));
    assert_eq!((&seeded["digest"], &seeded["consistency"]), (&b3sum(&image).into(), &"consistent".into()));
    serving.kill();
}
