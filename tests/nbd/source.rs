//! Goal: a disk behind an NBD server is seeded, scanned and imported like one of this host, and what goes wrong at the server is
//! said and mended like anything else. Method: the binary on exports of qemu-nbd and nbdkit; nbdkit's filters are the faults.

use super::servers::{LIMIT, Server, certificates};
use crate::common::{Background, Branch, b3sum, noise, noise_at, sparse, sql, tool, try_tool, write_at};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// 64 MiB: a GPT, noise in every fourth mebibyte, holes elsewhere.
fn image(branch: &Branch) -> PathBuf {
    let path = branch.place.join("disk.raw");
    sparse(&path, 64 * MIB);
    tool("sgdisk", ["-n1:2048:0", path.to_str().unwrap()]);
    let file = File::options().write(true).open(&path).unwrap();
    (4..60).step_by(4).for_each(|at| noise_at(&file, at * MIB, MIB, at));
    file.sync_all().unwrap();
    path
}

fn seed(branch: &Branch, uri: &str, extra: &[&str]) -> Value {
    let seeded = branch.seed(&[("sda", Path::new(uri))], extra).ok();
    seeded["disks"][0].clone()
}

fn scan(branch: &Branch) -> Value {
    let scanned = branch.run(["scan"]).ok();
    scanned["disks"][0].clone()
}

fn start(branch: &Branch, uri: &str, extra: &[&str]) -> Background {
    let mut running = branch.seed_command(&[("sda", Path::new(uri))], extra).start();
    assert!(running.until(LIMIT, |_| committed(branch) > 0), "{}", running.said());
    running
}

/// Blocks in the live manifest; none while it is made.
fn committed(branch: &Branch) -> u64 {
    let made = std::fs::read_dir(branch.state.join("shipments")).is_ok_and(|mut found| found.next().is_some());
    let count = |manifest: PathBuf| try_tool("sqlite3", [manifest.as_os_str(), "SELECT count(*) FROM block".as_ref()]);
    if made { count(branch.live_manifest()).stdout.trim().parse().unwrap_or(0) } else { 0 }
}

#[test]
fn an_export_is_seeded_without_its_holes_scanned_and_imported() {
    for format in ["raw", "qcow2"] {
        let branch = Branch::ready();
        let raw = image(&branch);
        let served = match format {
            "raw" => raw.clone(),
            _ => {
                let qcow2 = raw.with_extension("qcow2");
                tool("qemu-img", ["convert", "-O", "qcow2", raw.to_str().unwrap(), qcow2.to_str().unwrap()]);
                qcow2
            }
        };
        let socket = branch.place.join("socket");
        let server = Server::qemu_at(&socket, &served, format, &["-r"]);
        let seeded = seed(&branch, &server.text(), &["--point-in-time"]);
        assert_eq!(seeded["digest"], b3sum(&raw), "{format}");
        // The GPT's two copies and 14 blocks of noise.
        assert_eq!(seeded["read_bytes"], 16 * MIB, "{format}");
        let again = seed(&branch, &server.text(), &["--point-in-time"]);
        assert_eq!((&again["digest"], &again["read_bytes"]), (&seeded["digest"], &Value::from(0)));
        branch.seal();
        let manifest = branch.live_manifest();
        let facts: Value = serde_json::from_str(&sql(&manifest, "SELECT facts FROM disk")).unwrap();
        assert_eq!((&facts["transport"], &facts["table"]["partitions"][0]["number"]), (&"nbd".into(), &1.into()));
        assert_eq!(sql(&manifest, "SELECT source FROM generation"), server.text());
        let to = format!("dir:{}", branch.place.join("out").display());
        let (trust, identity) = (branch.trust.to_str().unwrap(), branch.identity.to_str().unwrap());
        let centre = crate::common::Motiongear::new(&branch.place.join("centre"));
        centre
            .args(["--json", "import"])
            .arg(&branch.array)
            .args(["--to", &to, "--trust", trust, "--identity", identity])
            .run()
            .ok();
        let volume = branch.place.join("out").join(&branch.site).join("db01/sda.raw");
        assert_eq!(b3sum(&volume), b3sum(&raw), "{format}");
        let unchanged = scan(&branch);
        assert_eq!(unchanged["blocks"]["unchanged"], 64, "{unchanged}");
        drop(server);
        if format == "raw" {
            write_at(&raw, 9 * MIB + 77, b"a booking");
            write_at(&raw, 12 * MIB, &vec![0; MIB as usize]);
            let _server = Server::qemu_at(&socket, &served, format, &["-r"]);
            let changed = scan(&branch);
            let blocks = ["unchanged", "changed", "zeroed"].map(|kind| changed["blocks"][kind].as_u64().unwrap());
            assert_eq!(blocks, [62, 1, 1], "{changed}");
        }
    }
}

/// MANUAL: "so is one that ends or cannot be reached any more".
#[test]
fn a_server_that_is_killed_is_waited_for_and_the_seed_goes_on_with_the_next_one() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let mut server = Server::qemu(&raw, "raw", &["-r"]);
    let uri = server.text();
    let mut running = start(&branch, &uri, &["--point-in-time", "--read-limit", "1MiB"]);
    for round in 1..=2 {
        let said = |running: &Background, note: &str| running.said().matches(note).count() == round;
        server.kill();
        let note = "db01/sda: its source has not answered for ";
        assert!(running.until(LIMIT, |running| said(running, note)), "{}", running.said());
        server = Server::qemu(&raw, "raw", &["-r"]);
        assert!(running.until(LIMIT, |running| said(running, "answers again")), "{}", running.said());
    }
    branch.run(["limit", "--read", "off"]);
    let seeded = running.wait().ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&raw));
    assert_eq!(seeded["disks"][0]["read_bytes"], 16 * MIB);
    // A server that was never there is no such thing.
    server.kill();
    branch
        .seed(&[("sdb", Path::new(&uri))], &["--point-in-time"])
        .refused(1, &[&uri, "nobody answers", "next: check that the server runs"]);
}

#[test]
fn another_disk_at_the_place_of_a_server_that_was_killed_ends_the_seed() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let mut server = Server::qemu(&raw, "raw", &["-r"]);
    let mut running = start(&branch, &server.text(), &["--point-in-time", "--read-limit", "2MiB"]);
    let before = committed(&branch);
    server.kill();
    let other = branch.place.join("other.raw");
    std::fs::copy(&raw, &other).unwrap();
    tool("sgdisk", ["-G", other.to_str().unwrap()]);
    let impostor = Server::qemu_at(&server.socket, &other, "raw", &["-r"]);
    assert!(!running.until(LIMIT, |_| false));
    running.wait().refused(1, &["is not the same disk any more", "expected partition table gpt:"]);
    drop(impostor);
    // None of the other's blocks was taken.
    let server = Server::qemu(&raw, "raw", &["-r"]);
    let seeded = seed(&branch, &server.text(), &["--point-in-time"]);
    assert_eq!(seeded["digest"], b3sum(&raw));
    assert!(before > 0 && seeded["skipped_bytes"].as_u64().unwrap() >= before * MIB, "{before}: {seeded}");
}

/// A disk waits for its turn, and somebody uses its socket for another one meanwhile.
#[test]
fn another_disk_that_came_before_the_first_read_is_not_taken() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let first = branch.place.join("first.raw");
    noise(&first, 12 * MIB, 1);
    let mut server = Server::qemu(&raw, "raw", &["-r"]);
    let uri = server.text();
    let disks = [("sda", first.as_path()), ("sdb", Path::new(&uri))];
    let command = branch.seed_command(&disks, &["--point-in-time", "--jobs", "1", "--read-limit", "2MiB"]);
    let mut running = command.start();
    assert!(running.until(LIMIT, |_| committed(&branch) > 0), "{}", running.said());
    server.kill();
    let other = branch.place.join("other.raw");
    std::fs::copy(&raw, &other).unwrap();
    tool("sgdisk", ["-G", other.to_str().unwrap()]);
    let impostor = Server::qemu_at(&server.socket, &other, "raw", &["-r"]);
    let seeded = running.wait().code(3);
    assert_eq!((&seeded["failed"][0]["disk"], &seeded["disks"][0]["disk"]), (&"db01/sdb".into(), &"db01/sda".into()));
    drop(impostor);
    let blocks = "SELECT count(*) FROM block WHERE generation IN (SELECT id FROM generation WHERE disk = 2)";
    assert_eq!(sql(&branch.live_manifest(), blocks), "0");
}

#[test]
fn a_server_that_falls_over_one_place_is_not_asked_for_ever() {
    let branch = Branch::ready();
    let raw = image(&branch);
    // What it cannot read ends the session, as a plugin does that crashes.
    let pread = format!(
        "pread=if [ $4 -eq {} ]; then kill -9 $PPID; fi; dd if={} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none",
        32 * MIB,
        raw.display()
    );
    let size = format!("get_size=stat -c %s {}", raw.display());
    let socket = branch.place.join("socket");
    let again = format!("while rm -f {0}; do nbdkit -f -r -U {0} eval '{size}' '{pread}'; done", socket.display());
    let server = Server::command("sh", &["-c", &again], &socket);
    let ran = branch.seed(&[("sda", Path::new(&server.text()))], &["--point-in-time"]);
    ran.refused(1, &["Disk db01/sda", "its source was lost 6 times in a row", "next: see what its server says"]);
}

/// MANUAL: "One that stalls is waited for and shown".
#[test]
fn a_server_that_stalls_is_shown_and_waited_for_and_ctrl_c_does_not_wait() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let server = Server::qemu(&raw, "raw", &["-r"]);
    let mut running = start(&branch, &server.text(), &["--point-in-time", "--read-limit", "2MiB"]);
    server.signal(libc::SIGSTOP);
    let note = "db01/sda: its source has not answered for ";
    assert!(running.until(LIMIT, |running| running.said().contains(note)), "{}", running.said());
    let status = branch.run(["status"]).ok();
    assert_eq!(status["jobs"][0]["progress"]["waiting"][0]["name"], "db01/sda", "{status}");
    server.signal(libc::SIGCONT);
    assert!(running.until(LIMIT, |running| running.said().contains("answers again")), "{}", running.said());
    branch.run(["limit", "--read", "2MiB"]).ok();
    server.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(1));
    running.signal(libc::SIGINT);
    let since = Instant::now();
    let ran = running.wait();
    ran.refused(5, &["Job stopped by SIGINT"]);
    assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
    server.signal(libc::SIGCONT);
    assert_eq!(seed(&branch, &server.text(), &["--point-in-time"])["digest"], b3sum(&raw));
}

#[test]
fn slow_coarse_and_silent_servers_are_read_exactly() {
    for (filters, read) in [
        (&["--filter=delay", "rdelay=3ms"][..], 16),
        (&["--filter=rate", "rate=400M"], 16),
        (&["--filter=noextents"], 64),
        (
            &[
                "--filter=blocksize-policy",
                "blocksize-minimum=64K",
                "blocksize-preferred=64K",
                "blocksize-error-policy=error",
            ],
            16,
        ),
        (&["--filter=blocksize-policy", "blocksize-maximum=128K", "blocksize-error-policy=error"], 16),
        (&["--filter=multi-conn", "multi-conn-mode=disable"], 16),
        (&["--filter=nozero", "--filter=fua", "--no-sr"], 64),
    ] {
        let branch = Branch::ready();
        let raw = image(&branch);
        let server = Server::nbdkit(&raw, filters);
        let seeded = seed(&branch, &server.text(), &["--point-in-time"]);
        assert_eq!(seeded["digest"], b3sum(&raw), "{filters:?}");
        assert_eq!(seeded["read_bytes"], read * MIB, "{filters:?}");
    }
}

#[test]
fn sectors_that_a_server_cannot_read_are_named_and_the_rest_is_right() {
    let branch = Branch::ready();
    let bad = crate::common::disks::bad_disk(&branch.place, "bad", 8 * MIB, 7, &[5, 6, 1500]);
    let server = Server::qemu_at(&branch.place.join("socket"), &bad.path, "raw", &["-r"]);
    let seeded = branch.seed(&[("sda", Path::new(&server.text()))], &["--point-in-time"]).code(3);
    assert_eq!(seeded["disks"][0]["unreadable_bytes"], 3 * 4096, "{seeded}");
    let rows = sql(&branch.live_manifest(), "SELECT offset || '+' || bytes FROM unreadable ORDER BY offset");
    assert_eq!(rows, "20480+8192\n6144000+4096");
}

#[test]
fn another_export_in_the_place_of_the_one_that_was_seeded_is_refused() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let mut server = Server::qemu(&raw, "raw", &["-r"]);
    let uri = server.text();
    // A server is asked only for what is not complete.
    let begun = branch.seed_command(&[("sda", Path::new(&uri))], &["--point-in-time", "--read-limit", "1MiB"]);
    let mut begun = begun.start();
    assert!(begun.until(LIMIT, |_| committed(&branch) > 0), "{}", begun.said());
    begun.signal(libc::SIGINT);
    begun.wait().code(5);
    server.kill();
    // As large, with another GPT.
    tool("sgdisk", ["-G", raw.to_str().unwrap()]);
    let mut server = Server::qemu(&raw, "raw", &["-r"]);
    let again = |parts: &[&str]| {
        branch.seed(&[("sda", Path::new(&uri))], &["--point-in-time"]).refused(1, parts);
    };
    again(&[&uri, "is not the same disk any more", "expected partition table gpt:"]);
    server.kill();
    sparse(&raw, 65 * MIB);
    let _server = Server::qemu(&raw, "raw", &["-r"]);
    again(&[&uri, "expected 67108864 bytes, found 68157440"]);
    // One export twice is one disk twice.
    let fresh = Branch::ready();
    let twice = [("sda", Path::new(&uri)), ("sdb", Path::new(&uri))];
    fresh.seed(&twice, &[]).refused(2, &["expected two different disks, found the same NBD export"]);
    fresh.seed(&[("sda", Path::new("nbd+unix:///x?socket=here"))], &[]).refused(2, &["expected absolute paths"]);
    fresh.seed(&[("sda", Path::new("nbd://h:0/x"))], &[]).refused(2, &["expected a port from 1 to 65535"]);
}

#[test]
fn an_export_behind_tls_is_seeded_by_whom_the_server_believes() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let pki = branch.place.join("pki");
    certificates(&pki, "branch.example");
    let object = format!("tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on", pki.display());
    let server = Server::qemu(&raw, "raw", &["-r", "--object", &object, "--tls-creds", "tls"]);
    let plain = branch.seed(&[("sda", Path::new(&server.text()))], &[]);
    plain.refused(1, &["it wants TLS: use nbds://"]);
    let rest = format!("&tls-certificates={}&tls-hostname=branch.example", pki.display());
    let uri = format!("{}{rest}", server.text().replace("nbd+unix", "nbds+unix"));
    assert_eq!(seed(&branch, &uri, &["--point-in-time"])["digest"], b3sum(&raw));
}

/// A snapshot hook may print URIs: a KVM host exports its snapshot where it is.
#[test]
fn a_snapshot_hook_may_name_an_export() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let frozen = branch.place.join("frozen.raw");
    std::fs::copy(&raw, &frozen).unwrap();
    let server = Server::qemu(&frozen, "raw", &["-r"]);
    let plan = format!(
        "[[machine]]\nname = \"db01\"\n[machine.hooks]\nsnapshot = [\"echo\", \"sda={}\"]\n[[machine.disk]]\nname = \"sda\"\nsource = \"{}\"\n",
        server.text(),
        raw.display()
    );
    let plan = branch.place.file("plan.toml", plan);
    let digest = b3sum(&raw);
    write_at(&raw, 20 * MIB, b"later");
    let seeded = branch.on_array("seed", ["--plan", plan.to_str().unwrap()]).ok();
    assert_eq!(seeded["disks"][0]["digest"], digest);
    assert_eq!(seeded["disks"][0]["basis"], "hook");
    // What a scan reads is the live disk.
    assert_eq!(sql(&branch.live_manifest(), "SELECT source FROM generation"), raw.display().to_string());
}
