//! Goal: any NBD server of the field is read and written exactly. Method: qemu-nbd over a real file, in every style and over
//! several sessions, plain and with TLS.

use super::servers::{LIMIT, Server, certificates};
use crate::common::tool;
use motiongear::io::{BlockIo, Pool, Waited};
use motiongear::nbd::wire::{Command as Ask, Extent};
use motiongear::nbd::{Connection, NbdQueue, Sessions, Style, Uri, connect};
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len).map(|_| step() as u8).collect()
}

/// 64 MiB: noise in every fourth mebibyte, holes elsewhere.
fn image(dir: &Path) -> (PathBuf, Vec<u8>) {
    let mut bytes = vec![0; 64 * MIB as usize];
    let path = dir.join("disk.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for at in (0..64).step_by(4) {
        let piece = noise(MIB as usize, at);
        std::os::unix::fs::FileExt::write_all_at(&file, &piece, at * MIB).unwrap();
        bytes[(at * MIB) as usize..][..MIB as usize].copy_from_slice(&piece);
    }
    file.sync_all().unwrap();
    (path, bytes)
}

fn read_all(sessions: Vec<Connection>, len: u64) -> Vec<u8> {
    let bytes = sessions[0].export().bytes;
    let pool = Pool::new(len as usize, 12).unwrap();
    let mut queue = NbdQueue::new(sessions, 12);
    let mut all = vec![0; bytes as usize];
    let mut next = 0;
    loop {
        while next < bytes && queue.in_flight() < queue.depth() {
            let part = len.min(bytes - next);
            queue.read(next, next, pool.take(), part as usize);
            next += part;
        }
        let Some(done) = queue.wait() else { return all };
        done.result.unwrap();
        let buffer = done.buffer.unwrap();
        all[done.token as usize..][..buffer.len()].copy_from_slice(&buffer);
    }
}

#[test]
fn qemu_is_read_in_every_style_over_several_sessions_and_knows_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = image(dir.path());
    let qemu = Server::qemu(&path, "raw", &["-r"]);
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let session = qemu.session(style);
        assert_eq!((session.export().style, session.export().bytes), (style, 64 * MIB));
        assert!(session.export().flags.read_only() && session.export().flags.multi_conn());
        let sessions = vec![session, qemu.session(style), qemu.session(style)];
        // Also in pieces that are longer than what it answers at once.
        for len in [MIB, 40 * MIB, 12288] {
            let again = (0..2).map(|_| qemu.session(style)).collect();
            assert!(read_all(again, len) == bytes, "{style:?} in pieces of {len}");
        }
        assert!(read_all(sessions, MIB) == bytes);
        let mut session = qemu.session(style);
        let asked = session.call(Ask::BlockStatus, 0, 0, 64 * MIB, LIMIT);
        if style == Style::Simple {
            assert!(asked.unwrap_err().to_string().contains("nothing of holes"));
            continue;
        }
        let told = &asked.unwrap().status[0];
        let expected: Vec<_> =
            (0..16).flat_map(|_| [Extent { bytes: MIB, status: 0 }, Extent { bytes: 3 * MIB, status: 3 }]).collect();
        assert_eq!(told, &expected, "{style:?}");
        // It writes nothing that it must not.
        let pool = Pool::new(4096, 1).unwrap();
        let mut queue = NbdQueue::new(vec![session], 1);
        let mut buffer = pool.take();
        buffer.set_len(4096);
        queue.write(0, 0, buffer);
        queue.wait().unwrap().result.unwrap_err();
    }
}

#[test]
fn what_is_written_zeroed_and_flushed_is_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut bytes) = image(dir.path());
    let qcow2 = dir.path().join("disk.qcow2");
    tool("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", path.to_str().unwrap(), qcow2.to_str().unwrap()]);
    for (file, format) in [(&path, "raw"), (&qcow2, "qcow2")] {
        let qemu = Server::qemu(file, format, &["--discard=unmap"]);
        for style in [Style::Simple, Style::Structured, Style::Extended] {
            let pool = Pool::new(40 * MIB as usize, 4).unwrap();
            let mut queue = NbdQueue::new(vec![qemu.session(style), qemu.session(style)], 4);
            for (token, offset, len) in [(0, 0, 40 * MIB), (1, 41 * MIB, 5 * MIB), (2, 50 * MIB - 512, 512)] {
                let data = noise(len as usize, 99 + offset + style as u64);
                let mut buffer = pool.take();
                buffer.set_len(data.len());
                buffer.copy_from_slice(&data);
                bytes[offset as usize..][..data.len()].copy_from_slice(&data);
                queue.write(token, offset, buffer);
            }
            while let Some(done) = queue.wait() {
                done.result.unwrap();
            }
            let mut session = qemu.session(style);
            session.call(Ask::WriteZeroes, 0, MIB, 7 * MIB, LIMIT).unwrap();
            bytes[MIB as usize..8 * MIB as usize].fill(0);
            session.call(Ask::Flush, 0, 0, 0, LIMIT).unwrap();
            assert!(read_all(vec![session], MIB) == bytes, "{format} {style:?}");
        }
        drop(qemu);
        let plain = dir.path().join("plain");
        let (from, to) = (file.to_str().unwrap(), plain.to_str().unwrap());
        tool("qemu-img", ["convert", "-f", format, "-O", "raw", from, to]);
        assert!(std::fs::read(&plain).unwrap() == bytes, "{format}");
    }
}

#[test]
fn a_server_that_is_killed_or_has_no_such_export_is_told_with_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = image(dir.path());
    let mut qemu = Server::qemu(&path, "raw", &["-r"]);
    let other = format!("nbd+unix:///other?socket={}", qemu.socket.display());
    let error = connect(&Uri::parse(&other).unwrap(), &[], Style::Extended).err().unwrap().to_string();
    assert!(error.contains(&other) && error.contains("no export of this name"), "{error}");
    let mut session = qemu.session(Style::Extended);
    qemu.kill();
    let error = session.call(Ask::BlockStatus, 0, 0, MIB, LIMIT).unwrap_err().to_string();
    assert_eq!(error, "the NBD server ended the session");
    let error = connect(&qemu.uri(), &[], Style::Extended).err().unwrap().to_string();
    assert!(error.contains("nobody answers") && error.contains("next:"), "{error}");
}

#[test]
fn tls_is_agreed_with_whom_both_sides_believe_and_with_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = image(dir.path());
    let (pki, foreign) = (dir.path().join("pki"), dir.path().join("foreign"));
    certificates(&pki, "branch.example");
    certificates(&foreign, "branch.example");
    let object = format!("tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on", pki.display());
    let qemu = Server::qemu(&path, "raw", &["-r", "--object", &object, "--tls-creds", "tls"]);
    let uri = |scheme: &str, rest: &str| {
        Uri::parse(&format!("{scheme}:///disk?socket={}{rest}", qemu.socket.display())).unwrap()
    };
    let with = |dir: &Path, host: &str| format!("&tls-certificates={}&tls-hostname={host}", dir.display());
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let sessions =
            (0..2).map(|_| connect(&uri("nbds+unix", &with(&pki, "branch.example")), &[], style).unwrap()).collect();
        assert!(read_all(sessions, MIB) == bytes, "{style:?}");
    }
    for (uri, said) in [
        (uri("nbd+unix", ""), "it wants TLS: use nbds://"),
        (uri("nbds+unix", &with(&pki, "other.example")), "TLS could not be agreed"),
        (uri("nbds+unix", &with(&foreign, "branch.example")), "TLS could not be agreed"),
        (uri("nbds+unix", &with(&dir.path().join("none"), "branch.example")), "ca-cert.pem"),
    ] {
        let error = connect(&uri, &[], Style::Extended).err().unwrap().to_string();
        assert!(error.contains(said), "expected {said:?} in: {error}");
    }
    let plain = dir.path().join("plain.raw");
    std::fs::copy(&path, &plain).unwrap();
    let open = Server::qemu(&plain, "raw", &["-r"]);
    let rest = with(&pki, "branch.example");
    let uri = Uri::parse(&format!("nbds+unix:///disk?socket={}{rest}", open.socket.display())).unwrap();
    let error = connect(&uri, &[], Style::Extended).err().unwrap().to_string();
    assert!(error.contains("it has no TLS"), "{error}");
}

/// The last of a write may wait within TLS for a socket that is full, with nothing else to do.
#[test]
fn what_tls_still_holds_is_sent_without_another_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    let pki = dir.path().join("pki");
    certificates(&pki, "branch.example");
    let object = format!("tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on", pki.display());
    let qemu = Server::qemu(&path, "raw", &["--object", &object, "--tls-creds", "tls"]);
    let rest = format!("&tls-certificates={}&tls-hostname=branch.example", pki.display());
    let uri = Uri::parse(&format!("nbds+unix:///disk?socket={}{rest}", qemu.socket.display())).unwrap();
    let sessions = Sessions::open(&uri).unwrap();
    let mut queue = sessions.queue(1);
    let pool = Pool::new(4 * MIB as usize, 1).unwrap();
    for at in 0..16 {
        let mut buffer = pool.take();
        buffer.set_len(4 * MIB as usize);
        buffer.fill(at as u8 + 1);
        queue.write(at, at * 4 * MIB, buffer);
        let Waited::Done(done) = queue.wait_for(LIMIT) else { panic!("write {at} is not answered") };
        done.result.unwrap();
    }
    sessions.call(Ask::Flush, 0, 0, LIMIT).unwrap();
    drop(qemu);
    let found = std::fs::read(&path).unwrap();
    assert!(found.chunks(4 * MIB as usize).zip(1..).all(|(chunk, value)| chunk.iter().all(|byte| *byte == value)));
}
