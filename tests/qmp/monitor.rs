//! Goal: whatever listens where a monitor should be, the error says what was expected and what came, in time and without harm.
//! Method: the binary on a real QEMU whose monitor is taken, and on sockets that say something else.

use super::machine::Machine;
use crate::common::Branch;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seeds from a monitor at `socket`, which must fail so.
#[track_caller]
fn refused(branch: &Branch, socket: &Path, code: i32, parts: &[&str]) {
    let source = PathBuf::from(format!("qmp:{}#virtio0", socket.display()));
    branch.seed(&[("sda", &source)], &[]).refused(code, parts);
}

/// A socket at which each caller is met by `talk`.
fn listening(branch: &Branch, name: &str, talk: impl Fn(UnixStream) + Send + 'static) -> PathBuf {
    let socket = branch.place.join(name);
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(&talk));
    socket
}

#[test]
fn what_is_no_monitor_is_told_from_one() {
    let branch = Branch::ready();
    refused(&branch, &branch.place.join("nothing"), 1, &["QEMU monitor ", "nobody answers", "next: give the path"]);
    let garbage = listening(&branch, "garbage", |mut caller| drop(caller.write_all(b"SSH-2.0-OpenSSH\r\n")));
    refused(&branch, &garbage, 1, &["the conversation broke", "no JSON"]);
    let other = listening(&branch, "other", |mut caller| drop(caller.write_all(b"{\"hello\": 1}\n")));
    refused(&branch, &other, 1, &["expected QEMU's greeting, found {\"hello\":1}"]);
    let hangs_up = listening(&branch, "hangs-up", drop);
    refused(&branch, &hangs_up, 1, &["QEMU ended the conversation"]);
    let endless = listening(&branch, "endless", |mut caller| while caller.write_all(&[b'x'; 1 << 16]).is_ok() {});
    let since = Instant::now();
    refused(&branch, &endless, 1, &["a line of more than 16777216 bytes"]);
    let deep = listening(&branch, "deep", |mut caller| {
        let _ = caller.write_all("[".repeat(1 << 20).as_bytes()).and_then(|()| caller.write_all(b"\n"));
    });
    refused(&branch, &deep, 1, &["recursion limit"]);
    assert!(since.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_monitor_that_somebody_else_holds_is_told_so() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    let held = machine.qmp();
    let since = Instant::now();
    let parts = ["expected a greeting, found silence", "another program holds this monitor"];
    refused(&branch, &machine.socket(), 1, &parts);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    // Callers that are not let in must not be in each other's way either: the kernel lets only so many wait.
    let waiting: Vec<_> = (0..20).map_while(|_| UnixStream::connect_timeout_like(&machine.socket())).collect();
    refused(&branch, &machine.socket(), 1, &["QEMU monitor "]);
    drop((held, waiting));
    machine.goes_on();
}

trait ConnectInTime: Sized {
    fn connect_timeout_like(socket: &Path) -> Option<Self>;
}

impl ConnectInTime for UnixStream {
    /// `None` where one would have to wait.
    fn connect_timeout_like(socket: &Path) -> Option<UnixStream> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        connect(&fd, &SocketAddrUnix::new(socket).unwrap()).ok().map(|()| fd.into())
    }
}

#[test]
fn an_unknown_disk_is_answered_with_those_that_there_are() {
    let branch = Branch::ready();
    let machine = Machine::start(&branch.place);
    for text in ["", "#", "#vda"] {
        let source = PathBuf::from(format!("qmp:{}{text}", machine.socket().display()));
        let said =
            branch.seed(&[("sda", &source)], &[]).refused(2, &["expected a disk of this machine", "next: write qmp:"]);
        assert!(said.contains("virtio0: qcow2 64 MiB") && said.contains("second: raw 64 MiB"), "{said}");
    }
    // By its node or device it is the same disk, and not another one.
    let [first, _] = machine.sources();
    let node = PathBuf::from(format!("qmp:{}#first", machine.socket().display()));
    let twice = branch.seed(&[("sda", &first), ("sdb", &node)], &[]);
    twice.refused(2, &["expected two different disks, found the same disk of a running machine"]);
    machine.has_nothing_of_ours();
}

/// Tried with QEMU 7.2: it would end, or hang, and its guest with it.
#[test]
fn a_qemu_that_is_too_old_is_left_alone() {
    let branch = Branch::ready();
    let old = listening(&branch, "old", |mut caller| {
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 9}}, "capabilities": []}}"#;
        let image = r#"{"virtual-size": 1048576}"#;
        let disk =
            format!(r#"[{{"qdev": "virtio0", "inserted": {{"node-name": "n", "drv": "raw", "image": {image}}}}}]"#);
        let _ = writeln!(caller, "{greeting}");
        let lines = BufReader::new(caller.try_clone().unwrap()).lines().map_while(Result::ok);
        for line in lines {
            let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
            let answer = match asked["execute"].as_str().unwrap() {
                "qmp_capabilities" => "{}",
                "query-block" => &disk,
                // No answer ends the conversation.
                _ => return,
            };
            let _ = writeln!(caller, "{{\"event\": \"RESUME\"}}\n{{\"return\": {answer}, \"id\": {}}}", asked["id"]);
        }
    });
    refused(
        &branch,
        &old,
        1,
        &["expected QEMU 9.1 or newer, found 9.0", "next: make a snapshot of the images by a hook"],
    );
}
