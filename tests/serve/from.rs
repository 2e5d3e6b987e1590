//! Goal: what a client reads of a shipment's disk is that disk, or an error. Method: arrays made by hand, served by the real
//! binary, read by nbdcopy and QEMU's tools; then damaged, distrusted, and besieged.

use super::{LIMIT, Serving};
use crate::common::{Motiongear, Place, b3sum, tool, try_tool};
use crate::import::BLOCK;
use crate::shipment::{Disk, Made, Recipe, data, make};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn command(place: &Place, made: &Made, engine: &str, socket: &Path) -> Motiongear {
    Motiongear::new(&place.join("state"))
        .args(["--json", "--engine", engine, "serve", "--from"])
        .arg(&made.array)
        .arg("--trust")
        .arg(&made.trust)
        .arg("--identity")
        .arg(&made.identity)
        .arg("--socket")
        .arg(socket)
}

fn uri(name: &str, socket: &Path) -> String {
    format!("nbd+unix:///{name}?socket={}", socket.display())
}

fn shipped(place: &Place, encrypted: bool) -> (Vec<Disk>, Made) {
    let zero = |block: usize| block % 5 == 2 || (20..30).contains(&block);
    let disks = vec![
        Disk::new("db01", "sda", data(50 * BLOCK + 512, BLOCK, zero)),
        Disk::new("db01", "sdb", data(3 * BLOCK + 7, BLOCK, |_| false)),
        Disk::new("web", "sda", data(9 * BLOCK, BLOCK, |_| true)),
    ];
    let recipe = Recipe { records_per_pack: 9, encrypted, ..Recipe::default() };
    let made = make(place.path(), &disks, &recipe);
    (disks, made)
}

#[test]
fn nbdcopy_and_qemu_img_read_the_disks_of_a_shipment() {
    for (encrypted, engine) in [(true, "auto"), (true, "threads"), (false, "auto"), (false, "threads")] {
        let place = Place::new();
        let (disks, made) = shipped(&place, encrypted);
        let socket = place.join("socket");
        let serving = Serving::start(command(&place, &made, engine, &socket));
        for (disk, sealed) in disks.iter().zip(&made.seal.disks) {
            let name = format!("{}/{}", disk.machine, disk.name);
            let (copied, converted) = (place.join("copied"), place.join("converted"));
            let _ = std::fs::remove_file(&copied);
            tool("nbdcopy", [uri(&name, &socket), copied.display().to_string()]);
            assert_eq!(b3sum(&copied), sealed.digest.to_string(), "{name} by nbdcopy, {engine}");
            if disk.data.len() % 512 == 0 {
                tool("qemu-img", ["convert", "-O", "raw", &uri(&name, &socket), converted.to_str().unwrap()]);
                assert_eq!(b3sum(&converted), sealed.digest.to_string(), "{name} by qemu-img, {engine}");
            }
        }
        // Zero blocks are known without reading.
        let map = tool("nbdinfo", ["--map", "--json", &uri("db01/sda", &socket)]);
        let map: Value = serde_json::from_str(&map).unwrap();
        let holes = map.as_array().unwrap().iter().filter(|extent| extent["type"] == 3);
        let bytes: u64 = holes.map(|extent| extent["length"].as_u64().unwrap()).sum();
        let zeros = (0..50).filter(|block| block % 5 == 2 || (20..30).contains(block)).count();
        assert_eq!(bytes, (zeros * BLOCK) as u64, "{map}");
        let listed = tool("nbdinfo", ["--list", &uri("", &socket)]);
        assert!(
            ["db01/sda", "db01/sdb", "web/sda"].iter().all(|name| listed.contains(&format!("\"{name}\""))),
            "{listed}"
        );
        let ended = serving.end();
        let served = ended.ok();
        assert!(!socket.exists());
        let exports = served["exports"].as_array().unwrap();
        // Of the disk of zeros nothing was read; of the others about their records, once for each client.
        assert!(exports[2]["read_bytes"] == 0 && exports[0]["read_bytes"].as_u64().unwrap() > 0, "{served}");
        assert_eq!(served["code"].as_str().unwrap().len(), 14);
    }
}

#[test]
fn a_machine_may_write_to_an_overlay_over_a_disk_of_a_shipment() {
    let place = Place::new();
    let (disks, made) = shipped(&place, true);
    let socket = place.join("socket");
    let serving = Serving::start(command(&place, &made, "auto", &socket).args(["--disk", "db01/sda"]));
    let (base, overlay) = (uri("db01/sda", &socket), place.join("overlay.qcow2"));
    let overlay = overlay.to_str().unwrap();
    tool("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, overlay]);
    let io = |commands: &[&str]| {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        tool("qemu-io", ["-f", "qcow2", overlay].into_iter().chain(commands))
    };
    let said = io(&["write -P 0x5a 65000 3000", "read -P 0x5a 65000 3000", "flush"]);
    assert!(!said.contains("Pattern verification failed"), "{said}");
    let flat = place.join("flat.raw");
    tool("qemu-img", ["convert", "-O", "raw", overlay, flat.to_str().unwrap()]);
    let mut expected = disks[0].data.clone();
    expected[65000..68000].fill(0x5a);
    assert!(std::fs::read(&flat).unwrap() == expected);
    // Nothing reaches the array, and only the disk that was asked for is there.
    let copied = place.join("copied");
    tool("nbdcopy", [base.as_str(), copied.to_str().unwrap()]);
    assert!(std::fs::read(&copied).unwrap() == disks[0].data);
    assert!(try_tool("qemu-io", ["-f", "raw", "-c", "write 0 512", &base]).code != 0);
    assert!(try_tool("nbdinfo", [uri("web/sda", &socket)]).code != 0);
    serving.end().ok();
}

#[test]
fn a_flipped_bit_is_an_error_there_and_nowhere_else() {
    let place = Place::new();
    let (disks, made) = shipped(&place, true);
    made.damage(1, 6);
    for engine in ["auto", "threads"] {
        let socket = place.join("socket");
        let mut serving = Serving::start(command(&place, &made, engine, &socket));
        let disk = uri("db01/sda", &socket);
        let read = |from: usize, bytes: usize| {
            let command = format!("read -v {from} {bytes}");
            try_tool("qemu-io", ["-r", "-f", "raw", "-c", &command, &disk])
        };
        for _ in 0..2 {
            let failed = read(6 * BLOCK + 512, 512);
            assert!(failed.stdout.contains("read failed: Input/output error"), "{failed:?}");
        }
        for (from, bytes) in [(5 * BLOCK, BLOCK), (7 * BLOCK, BLOCK), (0, 6 * BLOCK), (7 * BLOCK, 43 * BLOCK + 512)] {
            let good = read(from, bytes);
            let first =
                disks[0].data[from..from + 16].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
            assert!(good.stdout.contains(&first), "{from}: {}", &good.stdout[..200.min(good.stdout.len())]);
        }
        let copied = place.join("copied");
        assert!(try_tool("nbdcopy", [disk.as_str(), copied.to_str().unwrap()]).code != 0);
        serving.until_said("db01/sda: block 6 at byte 393216: ");
        // Once it can be proven again, it is given again.
        made.damage(1, 6);
        assert!(!read(6 * BLOCK, BLOCK).stdout.contains("failed"));
        made.damage(1, 6);
        let ended = serving.end();
        assert_eq!(ended.stderr.matches("block 6 at byte").count(), 1, "{}", ended.stderr);
        let served = ended.code(3);
        let damaged = served["damaged_blocks"].as_array().unwrap();
        assert_eq!((damaged.len(), &damaged[0]["disk"], &damaged[0]["block"]), (1, &"db01/sda".into(), &6.into()));
    }
}

#[test]
fn what_is_not_trusted_is_not_served_and_a_place_is_taken_once() {
    let place = Place::new();
    let (_, made) = shipped(&place, true);
    let socket = place.join("socket");
    let other = crate::common::ssh_key(&place.join("other"), "li@farbank", "ed25519", "");
    let trust = place.file("other_signers", crate::common::trust_line(&other, "li@farbank", ""));
    let ours = || Motiongear::new(&place.join("state")).args(["--json", "serve", "--from"]).arg(&made.array);
    ours().arg("--trust").arg(&trust).arg("--socket").arg(&socket).run().refused(4, &[]);
    ours().arg("--trust").arg(&made.trust).arg("--socket").arg(&socket).run().refused(4, &["no identity was given"]);
    ours().arg("--socket").arg(&socket).run().refused(2, &["--trust"]);
    command(&place, &made, "auto", &socket).args(["--expect-seal", "01234567"]).run().refused(4, &[]);
    command(&place, &made, "auto", &socket)
        .args(["--machine", "none"])
        .run()
        .refused(2, &["db01/sda, db01/sdb, web/sda"]);
    let planned = command(&place, &made, "auto", &socket).args(["--dry-run"]).run().ok();
    assert!(planned["exports"].as_array().unwrap().len() == 3 && !socket.exists());
    let serving = Serving::start(command(&place, &made, "auto", &socket));
    command(&place, &made, "auto", &socket).run().refused(1, &["found one that somebody listens at"]);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // What a killed one left is no obstacle; somebody's file is.
    serving.kill();
    assert!(socket.exists());
    Serving::start(command(&place, &made, "auto", &socket)).end().ok();
    std::fs::write(&socket, b"mine").unwrap();
    command(&place, &made, "auto", &socket).run().refused(1, &["found something else"]);
}

/// Everything that a client may do to be a nuisance, while another one copies.
#[test]
fn clients_that_mean_harm_do_none() {
    let place = Place::new();
    let zero = |block: usize| block % 7 == 3;
    let disk = Disk::new("db01", "sda", data(1600 * BLOCK, BLOCK, zero));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let socket = place.join("socket");
    let serving = Serving::start(command(&place, &made, "auto", &socket));
    let connect = || {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    };
    let option = |number: u32, data: &[u8]| {
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let go = option(7, b"\0\0\0\x08db01/sda\0\0");
    let request = |command: u16, offset: u64, len: u32| {
        let head = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0], &command.to_be_bytes(), &[7; 8]].concat();
        [&head[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    let hello = 3_u32.to_be_bytes();
    let mut held = Vec::new();
    for number in 0..30_u64 {
        let mut stream = connect();
        let said = match number % 6 {
            // Silent from the start, or in the middle of an option.
            0 => Vec::new(),
            1 => [&hello[..], b"IHAVEOP"].concat(),
            // Asks for all of it, again and again, and takes nothing.
            2 | 3 => [&hello[..], &go, &request(0, 0, 32 << 20).repeat(500)].concat(),
            // Breaks the protocol.
            4 => [&hello[..], &go, &[0xee; 4096]].concat(),
            _ => vec![0xff; 100_000],
        };
        // It may have been hung up on already.
        let _ = stream.write_all(&said);
        held.push(stream);
    }
    // More than there is room for: whoever is too much is hung up on.
    held.extend((0..60).map(|_| connect()));
    held.truncate(40);
    let copied = place.join("copied");
    let since = std::time::Instant::now();
    while try_tool("nbdcopy", [uri("db01/sda", &socket).as_str(), copied.to_str().unwrap()]).code != 0 {
        // Places get free when the kernel has told that clients are gone.
        assert!(since.elapsed() < LIMIT, "nobody is let in any more");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(std::fs::read(&copied).unwrap() == disk.data);
    for stream in held.iter_mut().skip(4).step_by(6).take(4) {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
    }
    drop(held);
    let (ended, peak) = serving.end_with_peak();
    ended.ok();
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    assert!(peak < 256 << 20, "{peak} bytes");
}

/// A server that is stopped while it reads for somebody ends at once, and so does its client.
#[test]
fn ctrl_c_ends_it_while_clients_read() {
    let place = Place::new();
    let disk = Disk::new("db01", "sda", data(400 * BLOCK, BLOCK, |_| false));
    let made = make(place.path(), std::slice::from_ref(&disk), &Recipe::default());
    let socket: PathBuf = place.join("socket");
    let serving = Serving::start(command(&place, &made, "auto", &socket).args(["--read-limit", "1MiB"]));
    let copied = place.join("copied");
    let mut client = std::process::Command::new("nbdcopy").arg(uri("db01/sda", &socket)).arg(&copied).spawn().unwrap();
    let began = || {
        let status = Motiongear::new(&place.join("state")).args(["--json", "status"]).run().ok();
        status["jobs"][0]["progress"]["disks"][0]["read"].as_u64().is_some_and(|read| read > 0)
    };
    let since = std::time::Instant::now();
    while !began() {
        assert!(since.elapsed() < Duration::from_secs(60), "nothing is read");
        std::thread::sleep(Duration::from_millis(50));
    }
    let since = std::time::Instant::now();
    let served = serving.end().ok();
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(!client.wait().unwrap().success());
    let read = served["exports"][0]["read_bytes"].as_u64().unwrap();
    assert!(read > 0 && read < 20 << 20, "{read}");
}
