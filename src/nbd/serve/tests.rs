//! Goal: whatever a client says, the server answers with what is there, with an error, or hangs up. Method: our own client
//! and raw bytes on socket pairs; what both sides encode and decode is compared.

use super::admission::{Admission, Seat};
use super::handshake::ALLOCATION_ID;
use super::wire::{Asked, REQUEST_BYTES, Said, chunk, decode_contexts, decode_go, decode_request, simple};
use super::{Absent, Export, Host, Keeper, PATIENCE, REPLY_BYTES, SESSION_REPLY_BYTES, Unread};
use crate::io::{BlockIo, Pool};
use crate::nbd::socket::Socket;
use crate::nbd::wire::{
    Chunk, Command, DF, Extent, Reply, ReplyKind, Request, Style, decode_error, decode_reply, decode_status,
};
use crate::nbd::{ALLOCATION, NbdQueue, Uri, connect};
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BYTES: u64 = 8 << 20;
/// A read that touches it fails.
const BAD: u64 = 5 << 20;

/// Noise, zeros in every fourth 128 KiB, one bad place.
struct Disk;

fn byte(at: u64) -> u8 {
    if at / (128 << 10) % 4 == 3 { 0 } else { (at / 512 % 251) as u8 + 1 }
}

impl Export for Disk {
    fn bytes(&self) -> u64 {
        BYTES
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        if (offset..offset + into.len() as u64).contains(&BAD) {
            return Err(Unread::at(BAD));
        }
        into.iter_mut().zip(offset..).for_each(|(into, at)| *into = byte(at));
        Ok(())
    }
    fn extents(&self, offset: u64, bytes: u64, most: usize) -> Result<Vec<Extent>, Unread> {
        let mut extents: Vec<Extent> = Vec::new();
        let (mut at, piece) = (offset, 128 << 10);
        while at < offset + bytes {
            let to = ((at / piece + 1) * piece).min(offset + bytes);
            let status = if byte(at) == 0 { Extent::HOLE | Extent::ZERO } else { 0 };
            match extents.last_mut() {
                Some(last) if last.status == status => last.bytes += to - at,
                _ => extents.push(Extent { bytes: to - at, status }),
            }
            at = to;
        }
        extents.truncate(most);
        Ok(extents)
    }
}

#[derive(Default)]
struct Shelf(AtomicBool);

impl Keeper for Shelf {
    fn names(&self) -> Vec<String> {
        vec!["disk".into()]
    }
    fn open(&self, name: &str) -> Result<Arc<dyn Export>, Absent> {
        if name == "disk" { Ok(Arc::new(Disk)) } else { Err(Absent::Unknown("there is no such export".into())) }
    }
    fn stopped(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
    fn note(&self, _: String) {}
}

fn host() -> Arc<Host> {
    Arc::new(Host::new(Arc::new(Shelf::default()), None))
}

fn seat() -> Seat {
    Arc::new(Admission::default()).stranger(None, Box::new(|| ())).0
}

/// A connection to a session of `host`, which says on its end how it ended.
fn session_of(host: &Arc<Host>) -> (UnixStream, std::thread::JoinHandle<std::io::Result<()>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let host = host.clone();
    let talk = std::thread::spawn(move || host.talk(Socket::unix(theirs).unwrap(), "a test", &mut seat()));
    (ours, talk)
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn go() -> Vec<u8> {
    option(7, b"\0\0\0\x04disk\0\0")
}

fn contexts() -> Vec<u8> {
    option(10, b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation")
}

/// Reads the answers to an option.
fn answers(stream: &mut UnixStream) -> Vec<(u32, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; number(16) as usize];
        stream.read_exact(&mut payload).unwrap();
        all.push((number(12), payload));
        if number(12) == 1 || number(12) & 1 << 31 != 0 {
            return all;
        }
    }
}

/// Up to the first request, in structured style with block status.
fn shake(stream: &mut UnixStream) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    for said in [option(8, &[]), contexts(), go()] {
        stream.write_all(&said).unwrap();
        assert_eq!(answers(stream).last().unwrap().0, 1);
    }
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let head = [&0x2560_9513_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

/// Reads one chunk.
fn said(stream: &mut UnixStream) -> (Reply, Vec<u8>) {
    let mut header = [0; 20];
    stream.read_exact(&mut header).unwrap();
    let reply = decode_reply(&header).unwrap();
    let ReplyKind::Chunk { len, .. } = reply.kind else { panic!("{reply:?}") };
    let mut payload = vec![0; len as usize];
    stream.read_exact(&mut payload).unwrap();
    (reply, payload)
}

/// The error that a request is answered with.
fn refusal(stream: &mut UnixStream, asked: &[u8]) -> i32 {
    stream.write_all(asked).unwrap();
    let (reply, payload) = said(stream);
    assert!(matches!(reply.kind, ReplyKind::Chunk { last: true, chunk: Chunk::Error, .. }), "{reply:?}");
    decode_error(&payload).unwrap().0 as i32
}

/// Our own client on a server of ours.
fn listening() -> (tempfile::TempDir, Uri) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let host = host();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let host = host.clone();
            std::thread::spawn(move || host.talk(Socket::unix(stream).unwrap(), "a test", &mut seat()));
        }
    });
    (dir, Uri::parse(&format!("nbd+unix:///disk?socket={}", path.display())).unwrap())
}

#[test]
fn our_own_client_reads_what_is_there_in_every_style() {
    let (_dir, uri) = listening();
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut session = connect(&uri, &[ALLOCATION.to_owned()], style).unwrap();
        let export = session.export().clone();
        assert!(export.bytes == BYTES && export.flags.read_only() && export.flags.multi_conn() && export.flags.flush());
        assert_eq!(export.contexts.len(), usize::from(style != Style::Simple));
        session.call(Command::Flush, 0, 0, 0, Duration::from_secs(9)).unwrap();
        if style != Style::Simple {
            let status = session.call(Command::BlockStatus, 0, 1000, 1 << 20, Duration::from_secs(9)).unwrap().status;
            assert_eq!(status[0].iter().map(|extent| extent.bytes).sum::<u64>(), 1 << 20);
            assert_eq!(status[0][1], Extent { bytes: 128 << 10, status: 3 });
        }
        let pool = Pool::new(1 << 20, 16).unwrap();
        let mut queue = NbdQueue::new(vec![session], 16);
        for (token, (offset, len)) in
            [(0, 1), (1, 4095), (77, 1 << 20), (BYTES - 9, 9), (BAD - 100, 100), (BAD - 1, 2)].into_iter().enumerate()
        {
            queue.read(token as u64, offset, pool.take(), len);
        }
        while let Some(done) = queue.wait() {
            let (offset, len) =
                [(0, 1), (1, 4095), (77, 1 << 20), (BYTES - 9, 9), (BAD - 100, 100), (BAD - 1, 2)][done.token as usize];
            if done.token == 5 {
                assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EIO));
            } else {
                let expected: Vec<u8> = (offset..offset + len).map(byte).collect();
                assert!(done.result.is_ok() && done.buffer.unwrap()[..] == expected[..], "{style:?} {offset}");
            }
        }
    }
}

#[test]
fn zeros_are_not_sent_unless_one_chunk_is_asked_for() {
    let (mut stream, _talk) = session_of(&host());
    shake(&mut stream);
    stream.write_all(&request(0, 0, 7, 0, 1 << 20)).unwrap();
    let mut chunks = Vec::new();
    loop {
        let (reply, payload) = said(&mut stream);
        let ReplyKind::Chunk { last, chunk, .. } = reply.kind else { panic!() };
        chunks.push((chunk, payload.len()));
        if last {
            break;
        }
    }
    let data = (Chunk::Data, 8 + (384 << 10));
    assert_eq!(chunks, [data, (Chunk::Hole, 12), data, (Chunk::Hole, 12)]);
    stream.write_all(&request(0, DF, 8, 0, 1 << 20)).unwrap();
    let (reply, payload) = said(&mut stream);
    assert!(matches!(reply.kind, ReplyKind::Chunk { last: true, chunk: Chunk::Data, .. }));
    assert!(payload[8..].iter().zip(0..).all(|(found, at)| *found == byte(at)));
}

#[test]
fn what_must_not_be_or_cannot_be_is_refused_and_the_session_goes_on() {
    let host = host();
    let (mut stream, talk) = session_of(&host);
    shake(&mut stream);
    // A write comes with its bytes, which are read past.
    assert_eq!(refusal(&mut stream, &[request(1, 0, 1, 0, 4096), vec![7; 4096]].concat()), libc::EPERM);
    for (command, expected) in
        [(4, libc::EPERM), (6, libc::EPERM), (5, libc::EINVAL), (8, libc::EINVAL), (999, libc::EINVAL)]
    {
        assert_eq!(refusal(&mut stream, &request(command, 0, 2, 0, 4096)), expected, "command {command}");
    }
    for (offset, len) in [(BYTES, 1), (BYTES - 1, 2), (u64::MAX, 1), (u64::MAX - 10, u32::MAX), (0, 0), (0, u32::MAX)] {
        assert_eq!(refusal(&mut stream, &request(0, 0, 3, offset, len)), libc::EINVAL, "{len} at {offset}");
    }
    assert_eq!(refusal(&mut stream, &request(0, 1 << 9, 4, 0, 512)), libc::EINVAL);
    stream.write_all(&request(7, 1 << 3, 5, 0, 8 << 20)).unwrap();
    let (id, extents) = decode_status(false, &said(&mut stream).1).unwrap();
    assert_eq!((id, extents), (ALLOCATION_ID, vec![Extent { bytes: 384 << 10, status: 0 }]));
    stream.write_all(&request(2, 0, 6, 0, 0)).unwrap();
    talk.join().unwrap().unwrap();
    all_is_given_back(&host);
}

#[test]
fn options_of_all_sorts_are_answered_or_end_the_session() {
    let (mut stream, _talk) = session_of(&host());
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    let error = |code: u32| code | 1 << 31;
    let no_disk = [&2_u32.to_be_bytes()[..], b"no", &[0, 0]].concat();
    for (said, expected) in [
        (option(3, &[]), vec![2, 1]),
        (option(3, b"x"), vec![error(3)]),
        (option(5, &[]), vec![error(2)]),
        (option(11, &[]), vec![error(1)]),
        (option(77, b"whatever"), vec![error(1)]),
        (option(6, &go()[16..]), vec![3, 3, 1]),
        (option(7, &no_disk), vec![error(6)]),
        (option(7, b"\0\0\xff\xffdisk"), vec![error(3)]),
        (option(7, b"\0\0\0\x04disk\0\x09"), vec![error(3)]),
        // Before structured replies.
        (contexts(), vec![error(3)]),
        (option(8, &[]), vec![1]),
        (option(10, b"\0\0\0\x04disk\xff\xff\xff\xff"), vec![error(3)]),
        (option(10, b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x03x:y"), vec![1]),
        (option(9, b"\0\0\0\x04disk\0\0\0\0"), vec![4, 1]),
        (option(9, b"\0\0\0\0\0\0\0\x01\0\0\0\x05base:"), vec![4, 1]),
    ] {
        stream.write_all(&said).unwrap();
        let kinds: Vec<u32> = answers(&mut stream).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, expected, "{said:?}");
    }
    // The oldest way in, with its padding only for whom it wants.
    for (flags, zeroes) in [(3_u32, 0), (1, 124)] {
        let (mut stream, _talk) = session_of(&host());
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&[&flags.to_be_bytes()[..], &option(1, b"disk")].concat()).unwrap();
        let mut answer = vec![0; 10 + zeroes];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..8], BYTES.to_be_bytes());
        stream.write_all(&request(0, 0, 9, 0, 2)).unwrap();
        let mut reply = [0; 18];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..], [&[0; 4][..], &9_u64.to_be_bytes(), &[byte(0), byte(1)]].concat());
    }
    // What no client says.
    let long = [&b"IHAVEOPT"[..], &7_u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    for odd in [vec![0xff; 16], b"GET / HTTP/1.1\r\n\r\n\r\n".to_vec(), [&[0, 0, 0, 3][..], &long].concat()] {
        let (mut stream, talk) = session_of(&host());
        stream.write_all(&odd).unwrap();
        let error = talk.join().unwrap().unwrap_err();
        assert!(error.to_string().starts_with("NBD client: expected"), "{error}");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    let (mut stream, talk) = session_of(&host());
    stream.write_all(&[&[0, 0, 0, 3][..], &option(77, &[]).repeat(300)].concat()).unwrap();
    assert!(talk.join().unwrap().unwrap_err().to_string().contains("within 256 options"));
}

/// Who asks for much and takes nothing gets a bounded part of it ready, and no more is read for it.
/// A session gives its part back when its last reply is out, on a thread of its own.
fn all_is_given_back(host: &Host) {
    let since = Instant::now();
    while host.lent.load(Ordering::SeqCst) != 0 {
        let lent = host.lent.load(Ordering::SeqCst);
        assert!(since.elapsed() < Duration::from_secs(20), "{lent} bytes are not given back");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_client_that_takes_no_replies_holds_no_more_than_its_share() {
    let host = host();
    let mut clients: Vec<_> = (0..4).map(|_| session_of(&host)).collect();
    for (stream, _) in &mut clients {
        shake(stream);
        let asked: Vec<u8> = (0..200).flat_map(|n| request(0, 0, n, 0, 4 << 20)).collect();
        stream.write_all(&asked).unwrap();
    }
    let since = Instant::now();
    let mut peak = 0;
    while since.elapsed() < Duration::from_millis(500) {
        peak = peak.max(host.lent.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!((SESSION_REPLY_BYTES..=REPLY_BYTES).contains(&peak), "{peak}");
    assert!(PATIENCE > since.elapsed());
    // Whoever takes what it asks for is served all the same.
    let (mut good, _talk) = session_of(&host);
    shake(&mut good);
    for offset in [0, 1 << 20, 2 << 20] {
        good.write_all(&request(0, DF, 9, offset, 256 << 10)).unwrap();
        let (_, payload) = said(&mut good);
        assert!(payload[8..].iter().zip(offset..).all(|(found, at)| *found == byte(at)));
    }
    // They leave without a word, and all is given back.
    let talks: Vec<_> = clients.into_iter().map(|(stream, talk)| (drop(stream), talk).1).collect();
    for talk in talks {
        let error = talk.join().unwrap().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    }
    all_is_given_back(&host);
}

#[test]
fn sessions_end_with_their_server() {
    let shelf = Arc::new(Shelf::default());
    let host = Arc::new(Host::new(shelf.clone(), None));
    let (mut stream, talk) = session_of(&host);
    shake(&mut stream);
    shelf.0.store(true, Ordering::SeqCst);
    talk.join().unwrap().unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

proptest! {
    #[test]
    fn what_a_client_asks_is_what_a_server_reads(
        kind in 0..7_usize, flags: u16, cookie: u64, offset: u64, len: u32,
    ) {
        use Command as C;
        let command = [C::Read, C::Write, C::Disconnect, C::Flush, C::Trim, C::WriteZeroes, C::BlockStatus][kind];
        let request = Request { command, flags, cookie, offset, len: u64::from(len) };
        let bytes: [u8; REQUEST_BYTES] = request.encode(Style::Structured).unwrap().try_into().unwrap();
        let asked = decode_request(&bytes).unwrap();
        prop_assert_eq!(asked, Asked { command: command as u16, flags, cookie, offset, len });
    }

    #[test]
    fn what_a_server_says_is_what_a_client_reads(
        cookie: u64, last: bool, offset: u64, code in 1..200_u32, len in 1..1_000_000_usize,
        extents in proptest::collection::vec((1..u64::from(u32::MAX), 0..4_u64), 1..50),
    ) {
        let extents: Vec<Extent> = extents.into_iter().map(|(bytes, status)| Extent { bytes, status }).collect();
        for said in [
            Said::Data(offset, len), Said::Hole(offset, len), Said::Status(7, &extents), Said::Error(code), Said::ErrorAt(code, offset),
        ] {
            let bytes = chunk(cookie, last, &said);
            let reply = decode_reply(&bytes[..20]).unwrap();
            prop_assert_eq!(reply.cookie, cookie);
            let ReplyKind::Chunk { last: found, chunk, len: payload, .. } = reply.kind else { panic!("{reply:?}") };
            prop_assert_eq!(found, last);
            let told = bytes[20..].len() as u64;
            match said {
                Said::Data(..) => prop_assert!(chunk == Chunk::Data && payload == told + len as u64),
                Said::Hole(..) => prop_assert!(chunk == Chunk::Hole && payload == told),
                Said::Status(..) => prop_assert_eq!(decode_status(false, &bytes[20..]).unwrap(), (7, extents.clone())),
                _ => prop_assert!(payload == told && decode_error(&bytes[20..]).unwrap().0 == code),
            }
        }
        let reply = decode_reply(&simple(cookie, code)).unwrap();
        prop_assert_eq!(reply, Reply { cookie, kind: ReplyKind::Simple { error: code } });
    }

    #[test]
    fn data_of_options_ends_in_a_name_or_an_error(data in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = (decode_go(&data), decode_contexts(&data));
    }

    /// Anything at all, from the first byte on or after the handshake: it ends, and nothing stays lent.
    #[test]
    fn odd_bytes_end_a_session_and_nothing_more(shaken: bool, said in proptest::collection::vec(any::<u8>(), 0..200)) {
        let host = host();
        let (mut stream, talk) = session_of(&host);
        if shaken {
            shake(&mut stream);
        }
        let _ = stream.write_all(&said);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = talk.join().unwrap();
        prop_assert_eq!(host.lent.load(Ordering::SeqCst), 0);
    }
}
