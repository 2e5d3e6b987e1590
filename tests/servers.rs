//! Goal: many sources in one run. One that fails, lies or falls silent holds nobody else; what is complete is complete at once and is
//! not asked for again; and another disk is never taken for the one that was copied, whatever name leads to it. Method: the
//! binary on files and on exports of nbdkit and qemu-nbd, which are exchanged, stopped and killed.

use crate::common::{Branch, b3sum, noise, sql};
use crate::nbd::servers::{LIMIT, Server};
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Names of the disks that the live manifest calls complete.
fn complete(branch: &Branch) -> Vec<String> {
    let query = "SELECT name FROM disk JOIN generation ON generation.disk = disk.number \
                 WHERE finished_at IS NOT NULL ORDER BY name";
    sql(&branch.live_manifest(), query).lines().map(str::to_owned).collect()
}

fn rows(branch: &Branch) -> u64 {
    let made = std::fs::read_dir(branch.state.join("shipments")).is_ok_and(|mut found| found.next().is_some());
    let count = || {
        crate::common::try_tool("sqlite3", [branch.live_manifest().as_os_str(), "SELECT count(*) FROM block".as_ref()])
    };
    if made { count().stdout.trim().parse().unwrap_or(0) } else { 0 }
}

#[track_caller]
fn wait_for(what: impl Fn() -> bool) {
    let since = Instant::now();
    while !what() {
        assert!(since.elapsed() < 2 * LIMIT, "it did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|disk| disk["disk"].as_str().unwrap()).collect()
}

#[test]
fn a_disk_that_changes_its_size_ends_alone_and_the_others_are_finished() {
    let branch = Branch::ready();
    let disks = ["a", "b", "c"].map(|name| branch.place.join(name));
    for (at, disk) in disks.iter().enumerate() {
        noise(disk, 24 * MIB, at as u64 + 1);
    }
    let named = [("a", disks[0].as_path()), ("b", disks[1].as_path()), ("c", disks[2].as_path())];
    let running = branch.seed_command(&named, &["--read-limit", "12MiB"]).start();
    wait_for(|| rows(&branch) > 0);
    File::options().write(true).open(&disks[0]).unwrap().set_len(MIB).unwrap();
    let seeded = running.wait().code(3);
    assert_eq!(names(&seeded["failed"]), ["db01/a"]);
    assert_eq!(names(&seeded["disks"]), ["db01/b", "db01/c"]);
    assert_eq!(seeded["disks"][1]["digest"], b3sum(&disks[2]));
    // The same command again finds the two as they are, and only the one that is open.
    let again = branch.seed(&named, &[]).code(3);
    assert_eq!((names(&again["failed"]), &again["disks"][0]["read_bytes"]), (vec!["db01/a"], &0.into()));
    let key = branch.key.to_str().unwrap();
    branch.on_array("seal", ["--key", key, "--without", "db01/a", "--reason", "it shrank"]).ok();
}

#[test]
fn a_silent_source_gives_its_place_to_another_which_is_complete_at_once() {
    let branch = Branch::ready();
    let (far, near) = (branch.place.join("far.raw"), branch.place.join("near.raw"));
    noise(&far, 24 * MIB, 1);
    noise(&near, 4 * MIB, 2);
    let server = Server::qemu(&far, "raw", &["-r"]);
    let named = [("far", server.text()), ("near", near.display().to_string())];
    let named: Vec<(&str, &Path)> = named.iter().map(|(name, source)| (*name, Path::new(source))).collect();
    let running = branch.seed_command(&named, &["--jobs", "1", "--read-limit", "4MiB"]).start();
    wait_for(|| rows(&branch) > 0);
    server.signal(libc::SIGSTOP);
    wait_for(|| complete(&branch) == ["near"]);
    server.signal(libc::SIGCONT);
    branch.run(["limit", "--read", "off"]);
    let seeded = running.wait().ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&far));
    // A server is not asked for what is complete: it may be switched off.
    drop(server);
    let again = branch.seed(&named, &[]).ok();
    assert_eq!(names(&again["disks"]), ["db01/far", "db01/near"]);
    assert_eq!(again["disks"][0]["read_bytes"], 0);
}

#[test]
fn another_disk_of_the_same_size_behind_the_same_name_is_refused_after_a_reconnect_and_before_a_resume() {
    let branch = Branch::ready();
    let (one, other) = (branch.place.join("one.raw"), branch.place.join("other.raw"));
    noise(&one, 32 * MIB, 1);
    noise(&other, 32 * MIB, 2);
    let socket = branch.place.join("socket");
    let mut server = Server::qemu_at(&socket, &one, "raw", &["-r"]);
    let uri = server.text();
    let named = [("sda", Path::new(&uri))];
    for consistent in [&[][..], &["--point-in-time"]] {
        let slow = [consistent, &["--read-limit", "2MiB"]].concat();
        let before = rows(&branch);
        let running = branch.seed_command(&named, &slow).start();
        wait_for(|| rows(&branch) > before + 2);
        server.kill();
        let _other = Server::qemu_at(&socket, &other, "raw", &["-r"]);
        // Of a single disk the failure is the run's.
        running.wait().refused(1, &[]);
        // The same before a resume.
        branch.seed(&named, consistent).refused(1, &[]);
        drop(_other);
        server = Server::qemu_at(&socket, &one, "raw", &["-r"]);
    }
    let seeded = branch.seed(&named, &["--point-in-time"]).ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&one));
}

#[test]
fn one_export_under_two_names_is_refused_in_a_second_command_too() {
    let branch = Branch::ready();
    let raw = branch.place.join("disk.raw");
    noise(&raw, 2 * MIB, 1);
    let server = Server::qemu(&raw, "raw", &["-r"]);
    let uri = server.text();
    branch.seed(&[("sda", Path::new(&uri))], &[]).ok();
    branch.seed(&[("sdb", Path::new(&uri))], &[]).refused(1, &[]);
}

#[test]
fn more_disks_than_the_soft_limit_of_open_files_are_seeded() {
    let branch = Branch::ready();
    let mut command = String::from("ulimit -Sn 64; exec \"$@\"");
    command.push('\n');
    let mut arguments = vec!["-c".to_owned(), command, "sh".into(), env!("CARGO_BIN_EXE_motiongear").into()];
    arguments
        .extend(["--state", branch.state.to_str().unwrap(), "seed", branch.array.to_str().unwrap()].map(String::from));
    arguments.extend(["--machine", "db01"].map(String::from));
    for disk in 0..100 {
        let path = branch.place.file(&format!("d{disk}"), disk.to_string().repeat(4096));
        arguments.extend(["--disk".to_owned(), format!("d{disk}={}", path.display())]);
    }
    let ran = crate::common::try_tool("sh", arguments.iter().map(String::as_str));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(complete(&branch).len(), 100);
}
