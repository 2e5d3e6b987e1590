//! What a client of our NBD server says, from its flags on: all of it is said at once, whatever is answered.

use super::Verdict;
use motiongear::nbd::serve::{Absent, Admission, Export, Host, Keeper, Unread};
use motiongear::nbd::socket::Socket;
use motiongear::nbd::wire::Extent;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

const BYTES: u64 = 1 << 20;

struct Disk;

impl Export for Disk {
    fn bytes(&self) -> u64 {
        BYTES
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        assert!(!into.is_empty() && offset + into.len() as u64 <= BYTES);
        if offset % 4096 == 77 {
            return Err(Unread::at(offset));
        }
        into.fill((offset >> 17) as u8 & 1);
        Ok(())
    }
    fn extents(&self, offset: u64, bytes: u64, most: usize) -> Result<Vec<Extent>, Unread> {
        assert!(bytes > 0 && most > 0 && offset + bytes <= BYTES);
        Ok(vec![Extent { bytes, status: 3 }])
    }
}

struct Shelf;

impl Keeper for Shelf {
    fn names(&self) -> Vec<String> {
        vec!["disk".into()]
    }
    fn open(&self, name: &str) -> Result<Arc<dyn Export>, Absent> {
        if name == "disk" { Ok(Arc::new(Disk)) } else { Err(Absent::Unknown("there is no such export".into())) }
    }
    fn stopped(&self) -> bool {
        false
    }
    fn note(&self, _: String) {}
}

pub fn run(data: &[u8]) -> Verdict {
    static HOST: OnceLock<Arc<Host>> = OnceLock::new();
    let host = HOST.get_or_init(|| Arc::new(Host::new(Arc::new(Shelf), None)));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let talk = scope.spawn(|| {
            let (mut seat, _) = Arc::new(Admission::default()).stranger(None, Box::new(|| ()));
            host.talk(Socket::unix(theirs).unwrap(), "a fuzzer", &mut seat)
        });
        let mut answers = ours.try_clone().unwrap();
        scope.spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
        // A server that is offended leaves in the middle.
        let _ = ours.write_all(data).and_then(|()| ours.shutdown(Shutdown::Write));
        Verdict::from(&talk.join().unwrap())
    })
}

/// Whole sessions: simple, structured with block status, the oldest way in, one that only looks, and one that breaks off.
pub fn seeds() -> Vec<Vec<u8>> {
    let option = |number: u32, data: &[u8]| {
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let request = |command: u16, flags: u16, offset: u64, len: u32| {
        let head = [&0x2560_9513_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
        [&head[..], &[0, 0, 0, 0, 0, 0, 0, 9], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    let go = option(7, b"\0\0\0\x04disk\0\x01\0\x03");
    let contexts = option(10, b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation");
    let end = request(2, 0, 0, 0);
    let reads = [request(0, 0, 0, 4096), request(0, 1 << 2, 131_072, 300_000), request(0, 0, 77, 1)].concat();
    let others = [request(3, 0, 0, 0), request(1, 0, 0, 5), b"bytes".to_vec(), request(7, 1 << 3, 5, 1000)].concat();
    let hello = 3_u32.to_be_bytes();
    vec![
        [&hello[..], &go, &reads, &others, &end].concat(),
        [&hello[..], &option(8, &[]), &contexts, &go, &reads, &others, &end].concat(),
        [&hello[..], &option(1, b"disk"), &reads, &end].concat(),
        [
            &hello[..],
            &option(3, &[]),
            &option(6, b"\0\0\0\x04disk\0\0"),
            &option(9, b"\0\0\0\0\0\0\0\0"),
            &option(2, &[]),
        ]
        .concat(),
        [&hello[..], &go, &reads, &[0xff; 28]].concat(),
    ]
}
