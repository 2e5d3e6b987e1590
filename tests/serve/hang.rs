//! Goal: a disk that hangs takes nothing from the others of its server: whoever comes to it is refused in time and told why, and the
//! places of those who left it are free. Method: a file of a FUSE file system that answers nothing until it is healed, beside a
//! healthy one; more clients than the server has places.

use super::leaves::Proxy;
use super::sources::{image, serve as serve_far, uri as far_uri};
use super::{LIMIT, MIB, Serving};
use crate::common::source_fs::{Fault, SourceFs};
use crate::common::{Branch, Motiongear, Place, b3sum, noise, tool, try_tool};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// More than the server has places.
const MANY: usize = 80;
const ALL_PLACES: usize = 64;
const EVERYWHERE: std::ops::Range<u64> = 0..u64::MAX;
const GO: u32 = 7;
const ACK: u32 = 1;
const NOT_NOW: u32 = 1 << 31 | 7;

/// A client that asks for the export `hung` by `NBD_OPT_GO`: the connection, how the server answered, and its words.
fn come(socket: &Path) -> (UnixStream, u32, String) {
    let since = Instant::now();
    loop {
        // Whoever finds no place to shake hands is hung up on, and may come again.
        match shake(socket) {
            Ok(answered) => return answered,
            Err(error) => assert!(since.elapsed() < LIMIT, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn shake(socket: &Path) -> std::io::Result<(UnixStream, u32, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.read_exact(&mut [0; 18])?;
    stream.write_all(&3_u32.to_be_bytes())?;
    let asked = b"\0\0\0\x04hung\0\0";
    stream.write_all(&[b"IHAVEOPT", &GO.to_be_bytes()[..], &(asked.len() as u32).to_be_bytes(), asked].concat())?;
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; number(16) as usize];
        stream.read_exact(&mut payload)?;
        if number(12) == ACK || number(12) & 1 << 31 != 0 {
            return Ok((stream, number(12), String::from_utf8(payload).unwrap()));
        }
    }
}

fn uri(name: &str, socket: &Path) -> String {
    format!("nbd+unix:///{name}?socket={}", socket.display())
}

/// That all of the export is read with nbdcopy, within `limit`: it takes four places at once.
#[track_caller]
fn is_read(place: &Place, socket: &Path, name: &str, raw: &Path, limit: Duration) {
    let (since, copied) = (Instant::now(), place.join("copied"));
    loop {
        let _ = std::fs::remove_file(&copied);
        let ran = try_tool("timeout", ["20", "nbdcopy", &uri(name, socket), copied.to_str().unwrap()]);
        if ran.code == 0 {
            assert_eq!(b3sum(&copied), b3sum(raw));
            return;
        }
        assert!(since.elapsed() < limit, "{name} after {:?}: {ran:?}", since.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn disks(place: &Place) -> (PathBuf, SourceFs, PathBuf) {
    let (raw, well) = (place.join("hung.raw"), place.join("well.raw"));
    noise(&raw, 4 * MIB, 1);
    noise(&well, 4 * MIB, 2);
    let frail = SourceFs::serve(&place.join("frail"), &raw);
    (raw, frail, well)
}

fn serve(place: &Place, socket: &Path, frail: &SourceFs, well: &Path) -> Serving {
    let (hung, well) = (format!("hung={}", frail.path().display()), format!("well={}", well.display()));
    let command = Motiongear::new(&place.join("state")).args(["--json", "serve", "--disk", &hung, "--disk", &well]);
    Serving::start(command.arg("--socket").arg(socket))
}

#[test]
fn a_disk_that_hangs_refuses_those_who_come_to_it_and_the_others_are_read() {
    let place = Place::new();
    let (raw, frail, well) = disks(&place);
    let socket = place.join("socket");
    let mut serving = serve(&place, &socket, &frail, &well);
    is_read(&place, &socket, "hung", &raw, Duration::ZERO);
    frail.fault(EVERYWHERE, Fault::Stall);
    std::thread::scope(|scope| {
        let come = || {
            let since = Instant::now();
            let (_, answer, why) = come(&socket);
            assert_eq!(answer, NOT_NOW, "{why}");
            assert!(why.contains("its disk has not answered for") && why.contains("come again"), "{why}");
            assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
        };
        (0..MANY).for_each(|_| drop(scope.spawn(come)));
        // While they wait and are refused.
        is_read(&place, &socket, "well", &well, Duration::from_secs(6));
    });
    serving.until_said("Disk hung has not answered for 8 s: clients that come to it are refused until it does");
    // By now at once, and all of them hang at one request, whoever comes.
    let since = Instant::now();
    (0..MANY).for_each(|_| assert_eq!(come(&socket).1, NOT_NOW));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(frail.stalled(), 1);
    let refused = try_tool("qemu-img", ["info", "-f", "raw", &uri("hung", &socket)]);
    assert!(refused.code != 0 && refused.stderr.contains("its disk has not answered for"), "{refused:?}");
    assert!(try_tool("nbdinfo", [uri("hung", &socket)]).code != 0);
    is_read(&place, &socket, "well", &well, Duration::ZERO);
    frail.heal();
    serving.until_said("Disk hung answers again, after ");
    is_read(&place, &socket, "hung", &raw, Duration::ZERO);
    let ended = serving.end();
    ended.ok();
    assert_eq!(ended.stderr.matches("Disk hung has not answered").count(), 1, "{}", ended.stderr);
}

#[test]
fn who_leaves_a_disk_that_hangs_leaves_its_place_too() {
    let place = Place::new();
    let (raw, frail, well) = disks(&place);
    let socket = place.join("socket");
    let serving = serve(&place, &socket, &frail, &well);
    let mut guests: Vec<UnixStream> = (0..ALL_PLACES)
        .map(|_| {
            let (stream, answer, why) = come(&socket);
            assert_eq!(answer, ACK, "{why}");
            stream
        })
        .collect();
    frail.fault(EVERYWHERE, Fault::Stall);
    for guest in &mut guests {
        // All of the disk, as one read.
        let read = [&0x2560_9513_u32.to_be_bytes()[..], &[0; 4], &[7; 8], &[0; 8], &((4 * MIB) as u32).to_be_bytes()];
        guest.write_all(&read.concat()).unwrap();
    }
    let since = Instant::now();
    while frail.stalled() == 0 {
        assert!(since.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(10));
    }
    // All places are taken.
    assert!(try_tool("nbdinfo", [uri("well", &socket)]).code != 0);
    drop(guests);
    is_read(&place, &socket, "well", &well, Duration::from_secs(5));
    // Whoever comes to it now would linger as well.
    let (_, answer, why) = come(&socket);
    assert!(
        answer == NOT_NOW && why.contains("its disk does not answer those who have asked before"),
        "{answer} {why}"
    );
    frail.heal();
    is_read(&place, &socket, "hung", &raw, Duration::from_secs(10));
    tool("nbdinfo", [uri("well", &socket)]);
    serving.end().ok();
}

/// A refusal because the disk hangs is no end for a job of ours: it comes again until the disk answers.
#[test]
fn a_seed_whose_line_is_cut_while_the_disk_hangs_waits_and_goes_on() {
    let branch = Branch::ready();
    let raw = image(&branch, "disk.raw");
    let frail = SourceFs::serve(&branch.place.join("frail"), &raw);
    let of = format!("sda={}", frail.path().display());
    let mut serving = Serving::start(serve_far(&branch, "127.0.0.1:0").args(["--disk", &of]));
    let proxy = Proxy::to(serving.port());
    // Noise, behind the partition table.
    frail.fault(20 * MIB..21 * MIB, Fault::Stall);
    let uri = far_uri(&branch, proxy.port, "sda");
    let mut seeding = branch.seed_command(&[("sda", Path::new(&uri))], &["--point-in-time"]).start();
    assert!(seeding.until(LIMIT, |_| frail.stalled() > 0), "{}", seeding.said());
    frail.fault(EVERYWHERE, Fault::Stall);
    proxy.cut();
    serving.until_said("Disk sda has not answered for ");
    let waits = |running: &crate::common::Background| running.said().contains("its source has not answered for ");
    assert!(seeding.until(LIMIT, waits), "{}", seeding.said());
    frail.heal();
    assert_eq!(seeding.wait().ok()["disks"][0]["digest"], b3sum(&raw));
    serving.end().ok();
}
