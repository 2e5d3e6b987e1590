//! Goal: a scan of a served disk moves leaves and finds what a scan that reads finds; a server that lies about them is found out, and
//! one that cannot tell costs reading only. Method: a proxy counts what goes over the socket; the liars are servers of our own
//! making, with the library's.

use super::sources::{far_pin, serve, uri};
use super::{MIB, Serving};
use crate::common::{Branch, noise, write_at};
use motiongear::nbd::pin::Own;
use motiongear::nbd::serve::{Export, Host, Keeper, Listener, Place, Unread};
use motiongear::nbd::tls;
use motiongear::nbd::wire::Extent;
use motiongear::source::served::{Told, facts_of, leaves_of};
use motiongear::source::{Origin, Source, SysRoot};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const BLOCKS: u64 = 96;

/// Counts what goes through it, both ways.
struct Proxy {
    port: u16,
    moved: Arc<AtomicU64>,
}

impl Proxy {
    fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy { port: listener.local_addr().unwrap().port(), moved: Arc::default() };
        let moved = proxy.moved.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    let moved = moved.clone();
                    std::thread::spawn(move || {
                        let mut bytes = vec![0; 64 << 10];
                        while let Ok(n @ 1..) = from.read(&mut bytes) {
                            moved.fetch_add(n as u64, Ordering::Relaxed);
                            if to.write_all(&bytes[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        proxy
    }

    fn moved(&self) -> u64 {
        self.moved.swap(0, Ordering::Relaxed)
    }
}

fn scan(branch: &Branch, extra: &[&str]) -> Value {
    branch.run(["scan"].iter().chain(extra)).ok()["disks"][0].clone()
}

fn tally(scanned: &Value) -> [u64; 5] {
    ["unchanged", "changed", "zeroed", "newly_unreadable", "unreadable"]
        .map(|kind| scanned["blocks"][kind].as_u64().unwrap())
}

/// Noise but for the last blocks, which are a hole, and half a block at the end.
fn image(branch: &Branch) -> PathBuf {
    let raw = branch.place.join("disk.raw");
    noise(&raw, (BLOCKS - 6) * MIB, 1);
    File::options().write(true).open(&raw).unwrap().set_len(BLOCKS * MIB - MIB / 2).unwrap();
    raw
}

#[test]
fn a_scan_moves_leaves_and_finds_what_a_scan_that_reads_finds() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let serving = Serving::start(serve(&branch, "127.0.0.1:0").args(["--disk", &format!("sda={}", raw.display())]));
    let proxy = Proxy::to(serving.port());
    let uri = uri(&branch, proxy.port, "sda");
    branch.seed(&[("sda", Path::new(&uri))], &["--point-in-time"]).ok();
    assert!(proxy.moved() > (BLOCKS - 6) * MIB);
    let unchanged = scan(&branch, &["--audit", "0"]);
    assert_eq!(tally(&unchanged), [BLOCKS, 0, 0, 0, 0], "{unchanged}");
    let leaves = &unchanged["leaves"];
    assert_eq!((&leaves["trusted_blocks"], &leaves["audited_blocks"]), (&BLOCKS.into(), &0.into()), "{unchanged}");
    assert_eq!(unchanged["read_bytes"], 0);
    // 90 leaves of 32 bytes, and what sessions with TLS cost.
    let moved = proxy.moved();
    assert!(moved < 64 << 10, "{moved} bytes were moved");
    // A booking, a block that is zeroed, one in the hole, one at the very end.
    write_at(&raw, 7 * MIB + 5, b"a booking");
    write_at(&raw, 20 * MIB, &vec![0; MIB as usize]);
    write_at(&raw, (BLOCKS - 4) * MIB, b"another");
    write_at(&raw, BLOCKS * MIB - MIB / 2 - 3, b"end");
    let far = scan(&branch, &["--audit", "0"]);
    assert_eq!(far["read_bytes"], 3 * MIB + MIB / 2, "{far}");
    let moved = proxy.moved();
    assert!(moved < 4 * MIB, "{moved} bytes were moved");
    let near = scan(&branch, &["--source", &format!("db01/sda={}", raw.display())]);
    assert_eq!((tally(&far), tally(&near)), ([BLOCKS - 4, 3, 1, 0, 0], tally(&near)));
    assert_eq!(tally(&far), tally(&near));
    assert!(near["leaves"].is_null());
    // Audits go round: what is read is another part each time.
    for round in 0..2 {
        let audited = scan(&branch, &["--audit", "5"]);
        assert_eq!(
            (tally(&audited), &audited["leaves"]["audited_blocks"]),
            (tally(&near), &5.into()),
            "{round}: {audited}"
        );
        assert!(audited["leaves"]["reread"].is_null(), "{audited}");
    }
    serving.end().ok();
}

/// How a server treats us.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// It tells leaves of what the disk was once.
    Stale,
    /// It cannot tell some of them.
    Failing,
    /// It has fewer than there are blocks.
    Short,
    /// It knows nothing of leaves.
    None,
}

struct Liar {
    way: Way,
    disk: Arc<FileExport>,
    /// Of the disk as it was.
    leaves: Arc<Memory>,
    facts: Arc<Memory>,
    stopped: AtomicBool,
}

impl Keeper for Liar {
    fn names(&self) -> Vec<String> {
        vec!["sda".into()]
    }
    fn open(&self, name: &str) -> Result<Arc<dyn Export>, String> {
        let none = || Err("there is no such export".to_owned());
        match name {
            "sda" => Ok(self.disk.clone()),
            _ if name == facts_of("sda") => Ok(self.facts.clone()),
            _ if name == leaves_of("sda", 1 << 20) && self.way != Way::None => Ok(self.leaves.clone()),
            _ => none(),
        }
    }
    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
    fn note(&self, _: String) {}
}

struct FileExport(File);

impl Export for FileExport {
    fn bytes(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        self.0.read_exact_at(into, offset).map_err(|_| Unread::at(offset))
    }
    fn extents(&self, _: u64, bytes: u64, _: usize) -> Result<Vec<Extent>, Unread> {
        Ok(vec![Extent { bytes, status: 0 }])
    }
}

struct Memory {
    bytes: Vec<u8>,
    failing: bool,
}

impl Export for Memory {
    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        if self.failing && offset >= 1024 {
            return Err(Unread::at(offset));
        }
        into.copy_from_slice(&self.bytes[offset as usize..][..into.len()]);
        Ok(())
    }
    fn extents(&self, _: u64, bytes: u64, _: usize) -> Result<Vec<Extent>, Unread> {
        Ok(vec![Extent { bytes, status: 0 }])
    }
}

fn leaves(raw: &Path) -> Vec<u8> {
    let bytes = std::fs::read(raw).unwrap();
    let blocks = bytes.chunks(1 << 20).enumerate();
    blocks.flat_map(|(at, block)| *motiongear_manifest::tree::leaf(at as u64 * MIB, block).as_bytes()).collect()
}

#[test]
fn leaves_that_are_wrong_or_missing_cost_reading_and_nothing_else() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let serving = Serving::start(serve(&branch, "127.0.0.1:0").args(["--disk", &format!("sda={}", raw.display())]));
    let uri = uri(&branch, serving.port(), "sda");
    branch.seed(&[("sda", Path::new(&uri))], &["--point-in-time"]).ok();
    let port = serving.port();
    serving.end().ok();
    let source = Source::open(&Origin::Path(raw.clone()), &SysRoot::new("/")).unwrap();
    let manifest = branch.live_manifest();
    let identity = serde_json::from_str(&crate::common::sql(&manifest, "SELECT identity FROM disk")).unwrap();
    let told = Told { identity, facts: source.facts.clone(), host: serde_json::json!({}) };
    let facts = serde_json::to_vec(&told).unwrap();
    let before = leaves(&raw);
    for at in [3, 30, 31, 60, 80] {
        write_at(&raw, at * MIB, b"a booking");
    }
    for way in [Way::Stale, Way::Failing, Way::Short, Way::None] {
        let leaves = match way {
            Way::Stale => before.clone(),
            Way::Short => leaves(&raw)[..1024].to_vec(),
            _ => leaves(&raw),
        };
        let liar = Arc::new(Liar {
            way,
            disk: Arc::new(FileExport(File::open(&raw).unwrap())),
            leaves: Arc::new(Memory { bytes: leaves, failing: way == Way::Failing }),
            facts: Arc::new(Memory { bytes: facts.clone(), failing: false }),
            stopped: AtomicBool::new(false),
        });
        let own = Own::in_state(&branch.place.join("far")).unwrap();
        assert_eq!(own.pin().to_string(), far_pin(&branch));
        let client = Own::in_state(&branch.state).unwrap().pin();
        let host = Host::new(liar.clone(), Some(tls::Host::new(&own, vec![client], |_| ()).unwrap()));
        let listener = Listener::open(&Place::Tcp(([127, 0, 0, 1], port).into())).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| listener.serve(&Arc::new(host)));
            let scanned = branch.run(["scan", "--audit", "50"]);
            liar.stopped.store(true, Ordering::SeqCst);
            let scanned = scanned.ok()["disks"][0].clone();
            assert_eq!(tally(&scanned), [BLOCKS - 5, 5, 0, 0, 0], "{way:?}: {scanned}");
            match way {
                Way::Stale => {
                    assert_eq!(
                        (&scanned["leaves"]["reread"], &scanned["leaves"]["trusted_blocks"]),
                        (&"lied".into(), &0.into())
                    );
                    assert_eq!(scanned["read_bytes"], BLOCKS * MIB - MIB / 2, "{scanned}");
                }
                Way::Failing => assert!(scanned["leaves"]["trusted_blocks"].as_u64().unwrap() < 32, "{scanned}"),
                Way::Short | Way::None => assert!(scanned["leaves"].is_null(), "{scanned}"),
            }
        });
    }
}
