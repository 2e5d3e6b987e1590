//! What an NBD server says, from its greeting on: all of it is said at once, whatever is asked.

use super::Verdict;
use motiongear::io::{BlockIo, Pool};
use motiongear::nbd::wire::Command;
use motiongear::nbd::{ALLOCATION, NbdQueue, Style, Uri, connect};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

const BYTES: u64 = 1 << 20;
const ASKED: u64 = 8192;
/// The cookies of what [`run`] asks, in order.
const STATUS: u64 = 2;
const READ: u64 = 2;

struct Listener {
    socket: UnixListener,
    uri: Uri,
    _dir: tempfile::TempDir,
}

pub fn run(data: &[u8]) -> Verdict {
    static LISTENER: OnceLock<Mutex<Listener>> = OnceLock::new();
    let listener = LISTENER.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = UnixListener::bind(&path).unwrap();
        let uri = Uri::parse(&format!("nbd+unix:///disk?socket={}", path.display())).unwrap();
        Mutex::new(Listener { socket, uri, _dir: dir })
    });
    let listener = listener.lock().unwrap_or_else(PoisonError::into_inner);
    // The first byte chooses what the client does.
    let (choice, said) = data.split_first().map_or((0, data), |(choice, said)| (*choice, said));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.socket.accept().unwrap();
            // A client that is offended leaves in the middle.
            let _ = stream.write_all(said).and_then(|()| stream.shutdown(Shutdown::Write));
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let style = [Style::Simple, Style::Structured, Style::Extended][usize::from(choice) % 3];
        let contexts = if choice & 4 == 0 { vec![] } else { vec![ALLOCATION.to_owned()] };
        let Ok(mut session) = connect(&listener.uri, &contexts, style) else { return Verdict::Refused };
        let export = session.export().clone();
        assert!(export.bytes <= i64::MAX as u64 && export.sizes.minimum.is_power_of_two());
        if !export.contexts.is_empty() && choice & 8 != 0 {
            let answer = session.call(Command::BlockStatus, 0, 0, ASKED, Duration::from_secs(5));
            if let Ok(answer) = &answer {
                let told: u64 = answer.status[0].iter().map(|extent| extent.bytes).sum();
                assert!((1..=ASKED).contains(&told), "{told} bytes of extents");
            }
            return Verdict::from(&answer);
        }
        let pool = Pool::new(ASKED as usize, 1).unwrap();
        let mut queue = NbdQueue::new(vec![session], 1);
        queue.read(0, 0, pool.take(), ASKED as usize);
        let done = queue.wait().unwrap();
        assert!(done.buffer.is_some_and(|buffer| buffer.len() == ASKED as usize || done.result.is_err()));
        Verdict::from(&done.result)
    })
}

/// A whole session in each style, one that asks for status, and one with an error in the middle.
pub fn seeds() -> Vec<Vec<u8>> {
    let content = vec![0x5a; ASKED as usize];
    let simple = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &READ.to_be_bytes(), &content].concat();
    let chunk = |style: u8, last: u16, kind: u16, cookie: u64, payload: &[u8]| {
        let (head, len) = ([last.to_be_bytes(), kind.to_be_bytes()].concat(), payload.len() as u64);
        match style {
            2 => {
                let numbers = [cookie.to_be_bytes(), 0_u64.to_be_bytes(), len.to_be_bytes()].concat();
                [&0x6e8a_278c_u32.to_be_bytes()[..], &head, &numbers, payload].concat()
            }
            _ => {
                let numbers = [&cookie.to_be_bytes()[..], &(len as u32).to_be_bytes()].concat();
                [&0x668e_33ef_u32.to_be_bytes()[..], &head, &numbers, payload].concat()
            }
        }
    };
    let half = ASKED as usize / 2;
    let data = |style: u8| {
        let first = [&0_u64.to_be_bytes()[..], &content[..half]].concat();
        let hole = [&(half as u64).to_be_bytes()[..], &(half as u32).to_be_bytes()].concat();
        [chunk(style, 0, 1, READ, &first), chunk(style, 1, 2, READ, &hole)].concat()
    };
    let status = |style: u8| {
        let (extents, kind) = match style {
            2 => (
                [[0, 0, 0, 7, 0, 0, 0, 1].to_vec(), ASKED.to_be_bytes().to_vec(), 3_u64.to_be_bytes().to_vec()]
                    .concat(),
                6,
            ),
            _ => (
                [[0, 0, 0, 7].to_vec(), (ASKED as u32).to_be_bytes().to_vec(), 3_u32.to_be_bytes().to_vec()].concat(),
                5,
            ),
        };
        chunk(style, 1, kind, STATUS, &extents)
    };
    let error = [&5_u32.to_be_bytes()[..], &3_u16.to_be_bytes(), b"bad"].concat();
    vec![
        [&[0][..], &handshake(0, false), &simple].concat(),
        [&[1][..], &handshake(1, false), &data(1)].concat(),
        [&[2][..], &handshake(2, false), &data(2)].concat(),
        [&[1 | 4 | 8][..], &handshake(1, true), &status(1)].concat(),
        [&[2 | 4 | 8][..], &handshake(2, true), &status(2)].concat(),
        [&[1][..], &handshake(1, false), &chunk(1, 1, 0x8001, READ, &error)].concat(),
        [&[0][..], &b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53"[..]].concat(),
    ]
}

/// A server's side of it.
fn handshake(style: u8, contexts: bool) -> Vec<u8> {
    let reply = |option: u32, kind: u32, payload: &[u8]| {
        let numbers = [option, kind, payload.len() as u32].map(u32::to_be_bytes).concat();
        [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &numbers, payload].concat()
    };
    let mut said = [&b"NBDMAGICIHAVEOPT"[..], &3_u16.to_be_bytes()].concat();
    match style {
        1 => said.extend(reply(8, 1, &[])),
        2 => said.extend(reply(11, 1, &[])),
        _ => {}
    }
    if contexts {
        said.extend(reply(10, 4, &[&7_u32.to_be_bytes()[..], ALLOCATION.as_bytes()].concat()));
        said.extend(reply(10, 1, &[]));
    }
    said.extend(reply(7, 3, &[&[0, 0][..], &BYTES.to_be_bytes(), &0x016d_u16.to_be_bytes()].concat()));
    let sizes = [512_u32, 4096, 1 << 20].map(u32::to_be_bytes).concat();
    said.extend(reply(7, 3, &[&[0, 3][..], &sizes].concat()));
    said.extend(reply(7, 1, &[]));
    said
}
