//! Goal: a seed is interrupted by people, by other processes, by its source and by its array, and nothing is lost or half done.
//!
//! Method: the real binary, slowed by `--read-limit` so that things can happen while it runs; arrays on loop devices of their
//! own that fill up, turn read-only or are pulled; sources behind real I/O errors (a Btrfs file whose checksums no longer match,
//! a loop device whose file was cut short).

use crate::common::{Branch, b3sum, noise};

#[test]
fn ctrl_c_stops_and_the_same_command_resumes() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 120 << 20, 1);
    let mut running = branch.seed_command(&[("sda", &image)], &["--read-limit", "40MiB"]).start();
    running.until(std::time::Duration::from_secs(30), |_| {
        branch.packs().iter().any(|p| p.metadata().unwrap().len() > 30 << 20)
    });
    running.signal(libc::SIGINT);
    let ran = running.wait();
    ran.refused(5, &["SIGINT", "The same command resumes"]);
    let result = branch.seed(&[("sda", &image)], &[]).ok();
    assert!(result["disks"][0]["skipped_bytes"].as_u64().unwrap() >= 20 << 20, "{result}");
    assert_eq!(result["disks"][0]["digest"], b3sum(&image));
}
