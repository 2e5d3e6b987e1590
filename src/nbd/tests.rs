//! Goal: whatever a server says, the client answers with data that was asked for or with an error. Method: a server of our
//! own on a unix socket that keeps the protocol up to one lie.

use super::wire::{Command, Extent, Style};
use super::{ALLOCATION, Connection, NbdQueue, Uri, connect};
use crate::io::{BlockIo, Pool};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;
use tempfile::TempDir;

const BYTES: u64 = 8 << 20;
const CONTEXT: u32 = 7;

/// A request as the server sees it.
#[derive(Debug, Clone, Copy)]
struct Asked {
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u64,
}

/// The server's side of one session.
struct Server {
    stream: UnixStream,
    style: Style,
}

impl Server {
    fn number<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn say(&mut self, parts: &[&[u8]]) {
        // The client may have left already, offended.
        let _ = self.stream.write_all(&parts.concat());
    }

    fn option_reply(&mut self, option: u32, kind: u32, payload: &[u8]) {
        let len = payload.len() as u32;
        self.say(&[
            &0x0003_e889_0455_65a9_u64.to_be_bytes(),
            &option.to_be_bytes(),
            &kind.to_be_bytes(),
            &len.to_be_bytes(),
            payload,
        ]);
    }

    fn handshake(&mut self) {
        self.say(&[b"NBDMAGICIHAVEOPT", &3_u16.to_be_bytes()]);
        let _flags: [u8; 4] = self.number();
        loop {
            let _magic: [u8; 8] = self.number();
            let option = u32::from_be_bytes(self.number());
            let len = u32::from_be_bytes(self.number()) as usize;
            let mut data = vec![0; len];
            self.stream.read_exact(&mut data).unwrap();
            let known = match option {
                8 => self.style != Style::Simple,
                11 => self.style == Style::Extended,
                10 | 7 => true,
                _ => false,
            };
            match (known, option) {
                (false, _) => self.option_reply(option, 1 << 31 | 1, b"unknown here"),
                (true, 10) => {
                    let context = [&CONTEXT.to_be_bytes()[..], ALLOCATION.as_bytes()].concat();
                    self.option_reply(option, 4, &context);
                    self.option_reply(option, 1, &[]);
                }
                (true, 7) => {
                    let flags = 0b1_0110_1101_u16;
                    let export = [&[0, 0][..], &BYTES.to_be_bytes(), &flags.to_be_bytes()].concat();
                    self.option_reply(option, 3, &export);
                    let sizes = [[0, 3].to_vec(), 512_u32.to_be_bytes().to_vec(), 4096_u32.to_be_bytes().to_vec()];
                    let sizes = [sizes.concat(), (1_u32 << 20).to_be_bytes().to_vec()].concat();
                    self.option_reply(option, 3, &sizes);
                    self.option_reply(option, 1, &[]);
                    return;
                }
                _ => self.option_reply(option, 1, &[]),
            }
        }
    }

    /// The next request; `None` when the client has gone.
    fn asked(&mut self) -> Option<Asked> {
        let mut header = vec![0; if self.style == Style::Extended { 32 } else { 28 }];
        self.stream.read_exact(&mut header).ok()?;
        let at =
            |range: std::ops::Range<usize>| header[range].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let len = at(24..header.len());
        let asked = Asked { kind: at(6..8) as u16, cookie: at(8..16), offset: at(16..24), len };
        if asked.kind == Command::Write as u16 {
            self.stream.read_exact(&mut vec![0; len as usize]).ok()?;
        }
        (asked.kind != Command::Disconnect as u16).then_some(asked)
    }

    fn chunk(&mut self, asked: Asked, last: bool, kind: u16, payload: &[u8]) {
        let len = payload.len() as u64;
        self.chunk_header(asked, last, kind, len);
        self.say(&[payload]);
    }

    fn chunk_header(&mut self, asked: Asked, last: bool, kind: u16, len: u64) {
        let head = [&u16::from(last).to_be_bytes()[..], &kind.to_be_bytes(), &asked.cookie.to_be_bytes()].concat();
        match self.style {
            Style::Extended => {
                self.say(&[&0x6e8a_278c_u32.to_be_bytes(), &head, &asked.offset.to_be_bytes(), &len.to_be_bytes()])
            }
            _ => self.say(&[&0x668e_33ef_u32.to_be_bytes(), &head, &(len as u32).to_be_bytes()]),
        }
    }

    fn simple(&mut self, cookie: u64, error: u32, data: &[u8]) {
        self.say(&[&0x6744_6698_u32.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes(), data]);
    }
}

/// A server that shakes hands and then does what `talk` says; one session.
fn serve(style: Style, talk: impl FnOnce(Server) + Send + 'static) -> (TempDir, Uri) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        talk(Server { stream, style });
    });
    (dir, Uri::parse(&format!("nbd+unix:///?socket={}", path.display())).unwrap())
}

fn session(style: Style, talk: impl FnOnce(Server) + Send + 'static) -> (TempDir, Connection) {
    let (dir, uri) = serve(style, |mut server| {
        server.handshake();
        talk(server);
    });
    let session = connect(&uri, &[ALLOCATION.to_owned()], Style::Extended).unwrap();
    (dir, session)
}

/// What byte `at` of the server's disk is.
fn byte(at: u64) -> u8 {
    (at / 512 % 251) as u8 + 1
}

fn data(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(byte).collect()
}

/// Answers a read as the style has it, in `pieces` chunks, the last first and the first a hole.
fn answer(server: &mut Server, asked: Asked, pieces: u64) {
    if server.style == Style::Simple {
        return server.simple(asked.cookie, 0, &data(asked.offset, asked.len));
    }
    let step = asked.len / pieces;
    for piece in (0..pieces).rev() {
        let at = asked.offset + piece * step;
        let len = if piece + 1 == pieces { asked.len - piece * step } else { step };
        match piece {
            0 if pieces > 1 => {
                let payload = [&at.to_be_bytes()[..], &(len as u32).to_be_bytes()].concat();
                server.chunk(asked, true, 2, &payload);
            }
            _ => server.chunk(asked, pieces == 1, 1, &[&at.to_be_bytes()[..], &data(at, len)].concat()),
        }
    }
}

fn read_one(session: Connection, offset: u64, len: usize) -> (std::io::Result<Vec<u8>>, NbdQueue) {
    let pool = Pool::new(4 << 20, 1).unwrap();
    let mut queue = NbdQueue::new(vec![session], 1);
    queue.read(1, offset, pool.take(), len);
    let done = queue.wait().unwrap();
    assert_eq!(done.token, 1);
    (done.result.map(|()| done.buffer.unwrap().to_vec()), queue)
}

#[test]
fn replies_in_any_order_and_any_pieces_are_put_together() {
    for (style, pieces) in
        [(Style::Simple, 1), (Style::Structured, 1), (Style::Structured, 5), (Style::Extended, 1), (Style::Extended, 9)]
    {
        let (_dir, session) = session(style, move |mut server| {
            // Several in hand, answered backwards.
            let mut held = Vec::new();
            while let Some(asked) = server.asked() {
                held.push(asked);
                if held.len() == 6 {
                    while let Some(asked) = held.pop() {
                        answer(&mut server, asked, pieces);
                    }
                }
            }
        });
        assert_eq!((session.export().bytes, session.export().style), (BYTES, style));
        let pool = Pool::new(3 << 20, 2).unwrap();
        let mut queue = NbdQueue::new(vec![session], 8);
        // Three mebibytes are three requests for a server that takes one at a time.
        queue.read(10, 0, pool.take(), 3 << 20);
        queue.read(11, 4 << 20, pool.take(), 3 << 20);
        for _ in 0..2 {
            let done = queue.wait().unwrap();
            done.result.unwrap();
            let offset = if done.token == 10 { 0 } else { 4 << 20 };
            let mut expected = data(offset, 3 << 20);
            if pieces > 1 {
                for part in 0..3 {
                    let first = ((1 << 20) / pieces) as usize;
                    expected[part << 20..][..first].fill(0);
                }
            }
            assert!(done.buffer.unwrap()[..] == expected[..], "{style:?} in {pieces} pieces");
        }
        assert_eq!((queue.in_flight(), queue.wait().is_none()), (0, true));
    }
}

#[test]
fn an_error_of_one_request_leaves_the_others_alone() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let (_dir, session) = session(style, move |mut server| {
            while let Some(asked) = server.asked() {
                let bad = asked.offset == 4096;
                match (bad, style) {
                    (false, _) => answer(&mut server, asked, 1),
                    (true, Style::Simple) => server.simple(asked.cookie, 5, &[]),
                    (true, _) => {
                        let error = [&5_u32.to_be_bytes()[..], &3_u16.to_be_bytes(), b"bad"].concat();
                        server.chunk(asked, true, 1 << 15 | 1, &error);
                    }
                }
            }
        });
        let pool = Pool::new(8192, 3).unwrap();
        let mut queue = NbdQueue::new(vec![session], 4);
        for token in 0..3 {
            queue.read(token, token * 4096, pool.take(), 4096);
        }
        for _ in 0..3 {
            let done = queue.wait().unwrap();
            match done.token {
                1 => assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EIO)),
                token => assert!(done.result.is_ok() && done.buffer.unwrap()[..] == data(token * 4096, 4096)[..]),
            }
        }
        queue.read(9, BYTES - 4096, pool.take(), 8192);
        assert_eq!(queue.wait().unwrap().result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        queue.read(9, 100, pool.take(), 512);
        assert_eq!(queue.wait().unwrap().result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

type Lie = fn(&mut Server, Asked);

/// Every lie ends the session with an error that says what was expected and what came.
#[test]
fn a_lie_ends_the_session_and_says_what_it_was() {
    let lies: [(&str, Style, Lie); 19] = [
        ("magic number", Style::Simple, |s, _| s.say(&[&[7; 32]])),
        ("magic number", Style::Simple, |s, a| s.chunk(a, true, 0, &[])),
        ("magic number", Style::Extended, |s, a| s.simple(a.cookie, 0, &[0; 64])),
        ("cookie", Style::Simple, |s, a| s.simple(a.cookie + 1, 0, &[0; 64])),
        ("structured reply", Style::Structured, |s, a| s.simple(a.cookie, 0, &[0; 64])),
        ("offset of the request", Style::Extended, |s, a| s.chunk(Asked { offset: 0, ..a }, true, 0, &[])),
        ("all that Read asked for", Style::Structured, |s, a| s.chunk(a, true, 0, &[])),
        ("an empty chunk as the last one", Style::Structured, |s, a| s.chunk(a, false, 0, &[])),
        ("type 0 with 0 to 0", Style::Structured, |s, a| s.chunk(a, true, 0, &[1])),
        ("type 1 with 9", Style::Extended, |s, a| s.chunk_header(a, true, 1, u64::MAX)),
        ("Data of 8200 bytes", Style::Extended, |s, a| s.chunk_header(a, true, 1, 8200)),
        ("once, in few pieces", Style::Structured, |s, a| {
            s.chunk(a, true, 1, &[&(a.offset - 512).to_be_bytes()[..], &[1; 512]].concat());
        }),
        ("once, in few pieces", Style::Structured, |s, a| {
            s.chunk(a, false, 1, &[&a.offset.to_be_bytes()[..], &[1; 512]].concat());
            s.chunk(a, true, 1, &[&a.offset.to_be_bytes()[..], &[1; 512]].concat());
        }),
        ("once, in few pieces", Style::Structured, |s, a| {
            (0..4096_u64).for_each(|n| s.chunk(a, false, 1, &[&(a.offset + n).to_be_bytes()[..], &[1]].concat()));
        }),
        ("once, in few pieces", Style::Extended, |s, a| {
            s.chunk(a, true, 2, &[&a.offset.to_be_bytes()[..], &[0, 0, 16, 1]].concat());
        }),
        ("once, in few pieces", Style::Extended, |s, a| {
            s.chunk(a, true, 2, &[&u64::MAX.to_be_bytes()[..], &[0, 0, 0, 9]].concat());
        }),
        ("a hole of some bytes", Style::Extended, |s, a| {
            s.chunk(a, true, 2, &[&a.offset.to_be_bytes()[..], &[0; 4]].concat());
        }),
        ("a reply to Read", Style::Structured, |s, a| s.chunk(a, true, 5, &[0; 12])),
        ("error in an error chunk", Style::Structured, |s, a| s.chunk(a, true, 1 << 15 | 1, &[0; 6])),
    ];
    for (number, (said, style, lie)) in lies.into_iter().enumerate() {
        let (_dir, session) = session(style, move |mut server| {
            let asked = server.asked().unwrap();
            lie(&mut server, asked);
            // Stays, so that nothing but the lie ends the session.
            while server.asked().is_some() {}
        });
        let (result, mut queue) = read_one(session, 8192, 4096);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{number}: {error}");
        assert!(error.to_string().contains(said), "{number}: expected {said:?} in: {error}");
        // What comes after it is told the same, and nothing hangs.
        let pool = Pool::new(4096, 1).unwrap();
        queue.read(2, 0, pool.take(), 4096);
        assert!(queue.wait().unwrap().result.unwrap_err().to_string().contains(said));
    }
}

#[test]
fn a_reply_before_the_whole_request_is_sent_is_a_lie() {
    let (_dir, session) = session(Style::Structured, |mut server| {
        // The cookie of the second part is known before it is sent: they count up.
        let asked = server.asked().unwrap();
        server.simple(asked.cookie + 1, 0, &[]);
        std::thread::sleep(Duration::from_secs(5));
    });
    let pool = Pool::new(4 << 20, 1).unwrap();
    let mut buffer = pool.take();
    buffer.set_len(4 << 20);
    let mut queue = NbdQueue::new(vec![session], 1);
    queue.write(1, 0, buffer);
    let error = queue.wait().unwrap().result.unwrap_err().to_string();
    assert!(error.contains("a reply to a request in flight"), "{error}");
}

#[test]
fn a_server_that_goes_away_fails_all_in_flight() {
    for style in [Style::Simple, Style::Extended] {
        let (_dir, session) = session(style, |mut server| {
            let asked = server.asked().unwrap();
            // In the middle of its answer.
            match server.style {
                Style::Simple => server.simple(asked.cookie, 0, &[1; 512]),
                _ => {
                    server.chunk_header(asked, true, 1, 8 + asked.len);
                    server.say(&[&asked.offset.to_be_bytes(), &[1; 512]]);
                }
            }
        });
        let pool = Pool::new(4096, 3).unwrap();
        let mut queue = NbdQueue::new(vec![session], 3);
        (0..3).for_each(|token| queue.read(token, token * 4096, pool.take(), 4096));
        for _ in 0..3 {
            let done = queue.wait().unwrap();
            assert_eq!(done.result.unwrap_err().to_string(), "the NBD server ended the session");
            assert!(done.buffer.is_some());
        }
    }
}

#[test]
fn a_silent_server_is_waited_for_as_long_as_the_caller_says() {
    let (_dir, session) = session(Style::Extended, |mut server| while server.asked().is_some() {});
    let pool = Pool::new(4096, 1).unwrap();
    let mut queue = NbdQueue::new(vec![session], 1);
    queue.read(1, 0, pool.take(), 4096);
    assert!(matches!(queue.wait_for(Duration::from_millis(50)), crate::io::Waited::Late));
    Box::new(queue).abandon();
    assert!(pool.try_take().is_some(), "its buffer came home");
}

/// Extents as a status chunk has them.
fn status(style: Style, context: u32, extents: &[(u64, u64)]) -> (u16, Vec<u8>) {
    let mut payload = context.to_be_bytes().to_vec();
    if style == Style::Extended {
        payload.extend((extents.len() as u32).to_be_bytes());
    }
    for (bytes, flags) in extents {
        match style {
            Style::Extended => payload.extend([bytes.to_be_bytes(), flags.to_be_bytes()].concat()),
            _ => payload.extend([(*bytes as u32).to_be_bytes(), (*flags as u32).to_be_bytes()].concat()),
        }
    }
    (if style == Style::Extended { 6 } else { 5 }, payload)
}

#[test]
fn block_status_is_cut_to_what_was_asked_and_lies_in_it_are_found() {
    let hole = 3;
    let told: [(&[(u64, u64)], std::result::Result<&[(u64, u64)], &str>); 5] = [
        (&[(4096, 0), (8192, hole)], Ok(&[(4096, 0), (4096, hole)])),
        (&[(4096, hole)], Ok(&[(4096, hole)])),
        (&[(8192, 0), (512, hole)], Err("extents of less than 8192 bytes")),
        (&[(0, 0)], Err("an empty one")),
        (&[], Err("")),
    ];
    for style in [Style::Structured, Style::Extended] {
        for (extents, expected) in told {
            let (kind, payload) = status(style, CONTEXT, extents);
            let (_dir, mut session) = session(style, move |mut server| {
                let asked = server.asked().unwrap();
                server.chunk(asked, true, kind, &payload);
                while server.asked().is_some() {}
            });
            let answer = session.call(Command::BlockStatus, 0, 4096, 8192, Duration::from_secs(9));
            match (answer, expected) {
                (Ok(done), Ok(expected)) => {
                    let expected: Vec<_> =
                        expected.iter().map(|(bytes, status)| Extent { bytes: *bytes, status: *status }).collect();
                    assert_eq!(done.status, [expected], "{style:?}");
                }
                (Err(error), Err(said)) => assert!(error.to_string().contains(said), "{error}"),
                (answer, _) => panic!("{style:?} {extents:?}: {answer:?}"),
            }
        }
        {
            let (kind, payload) = status(style, CONTEXT + 1, &[(8192, 0)]);
            let (_dir, mut session) = session(style, move |mut server| {
                let asked = server.asked().unwrap();
                server.chunk(asked, true, kind, &payload);
                while server.asked().is_some() {}
            });
            let error = session.call(Command::BlockStatus, 0, 0, 8192, Duration::from_secs(9)).unwrap_err();
            assert!(error.to_string().contains("each context once"), "{error}");
        }
    }
}

#[test]
fn lies_of_the_handshake_are_refused() {
    let lies: [(&str, fn(&mut Server)); 9] = [
        ("NBDMAGIC", |s| s.say(&[b"SSH-2.0-OpenSSH_9.2p1"])),
        ("newstyle", |s| s.say(&[b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53", &[0; 200]])),
        ("fixed newstyle", |s| s.say(&[b"NBDMAGICIHAVEOPT", &[0, 0]])),
        ("hung up before it said anything", |_| {}),
        ("a reply to ExtendedHeaders", |s| {
            s.say(&[b"NBDMAGICIHAVEOPT", &[0, 3]]);
            s.say(&[&[1; 20]]);
        }),
        ("a reply of at most", |s| {
            s.say(&[b"NBDMAGICIHAVEOPT", &[0, 3], &0x0003_e889_0455_65a9_u64.to_be_bytes()]);
            s.say(&[&11_u32.to_be_bytes(), &3_u32.to_be_bytes(), &u32::MAX.to_be_bytes()]);
        }),
        ("the size of the export", |s| {
            s.say(&[b"NBDMAGICIHAVEOPT", &[0, 3]]);
            s.option_reply(11, 1, &[]);
            s.option_reply(10, 1, &[]);
            s.option_reply(7, 1, &[]);
        }),
        ("block sizes as the protocol has them", |s| {
            s.say(&[b"NBDMAGICIHAVEOPT", &[0, 3]]);
            s.option_reply(11, 1, &[]);
            s.option_reply(10, 1, &[]);
            s.option_reply(7, 3, &[0, 3, 0, 0, 0, 3, 0, 0, 16, 0, 0, 16, 0, 0]);
            s.option_reply(7, 1, &[]);
        }),
        ("no export of this name", |s| {
            s.say(&[b"NBDMAGICIHAVEOPT", &[0, 3]]);
            s.option_reply(11, 1, &[]);
            s.option_reply(10, 1, &[]);
            s.option_reply(7, 1 << 31 | 6, b"export '\x1b[2Jx' not present");
        }),
    ];
    for (said, lie) in lies {
        let (_dir, uri) = serve(Style::Extended, move |mut server| {
            lie(&mut server);
            let _ = server.stream.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut server.stream, &mut std::io::sink());
        });
        let error = connect(&uri, &[ALLOCATION.to_owned()], Style::Extended).err().unwrap().to_string();
        assert!(error.contains(said), "expected {said:?} in: {error}");
        assert!(!error.contains('\x1b') && error.contains("next:") || error.contains("NBD export"), "{error}");
    }
}
