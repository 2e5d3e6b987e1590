//! Goal: a scan of a served disk moves leaves and finds what a scan that reads finds; a server that lies about them is found out, and
//! one that cannot tell costs reading only. Method: a proxy counts what goes over the socket; the liars are servers of our own
//! making, with the library's.

use super::sources::{far_pin, serve, uri};
use super::{MIB, Serving};
use crate::common::{Branch, Motiongear, noise, write_at};
use motiongear::nbd::pin::Own;
use motiongear::nbd::serve::{Absent, Export, Host, Keeper, Listener, Place, Unread};
use motiongear::nbd::tls;
use motiongear::nbd::wire::Extent;
use motiongear::source::served::{self, facts_of, leaves_of};
use motiongear::source::{Origin, Source, SysRoot};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const BLOCKS: u64 = 96;

/// Counts what goes through it, both ways; a line that can be cut.
pub struct Proxy {
    pub port: u16,
    moved: Arc<AtomicU64>,
    lines: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().port();
        let proxy = Proxy { port: at, moved: Arc::default(), lines: Arc::default() };
        let (moved, lines) = (proxy.moved.clone(), proxy.lines.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                lines.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
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

    /// Lines that were opened so far.
    fn opened(&self) -> usize {
        self.lines.lock().unwrap().len() / 2
    }

    /// Cuts all lines; others may be opened.
    pub fn cut(&self) {
        self.lines.lock().unwrap().iter().for_each(|line| drop(line.shutdown(Shutdown::Both)));
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

#[test]
fn a_scan_whose_line_is_cut_asks_for_the_other_leaves_when_it_is_back() {
    let branch = Branch::ready();
    let raw = image(&branch);
    let of = format!("sda={}", raw.display());
    // It tells no leaf of a block before it has read it: four seconds for all of them.
    let serving = Serving::start(serve(&branch, "127.0.0.1:0").args(["--disk", &of]));
    let proxy = Proxy::to(serving.port());
    let uri = uri(&branch, proxy.port, "sda");
    branch.seed(&[("sda", Path::new(&uri))], &["--point-in-time"]).ok();
    Motiongear::new(&branch.place.join("far")).args(["limit", "--read", "16MiB"]).run().ok();
    let before = proxy.opened();
    let mut scanning = branch.motiongear().args(["--json", "scan", "--audit", "0"]).start();
    // One for the disk, one for what it is, and those for leaves.
    assert!(scanning.until(super::LIMIT, |_| proxy.opened() >= before + 4), "{}", scanning.said());
    std::thread::sleep(Duration::from_millis(700));
    assert!(scanning.is_running(), "{}", scanning.said());
    let before = proxy.opened();
    proxy.cut();
    let ended = scanning.wait();
    let scanned = ended.ok()["disks"][0].clone();
    assert_eq!(tally(&scanned), [BLOCKS, 0, 0, 0, 0], "{scanned}");
    assert_eq!(
        (&scanned["read_bytes"], &scanned["leaves"]["trusted_blocks"]),
        (&0.into(), &BLOCKS.into()),
        "{scanned}"
    );
    assert!(proxy.opened() > before + 1, "sessions were begun anew");
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
    /// A block is another one at each read, and its leaf is that of the moment.
    Restless,
    /// It is away when it is asked once more, and comes back.
    Away,
    /// It does not tell any more what it has told before.
    Silent,
}

/// One of the blocks that change after the seed.
const HOT: u64 = 30;

struct Liar {
    way: Way,
    disk: Arc<FileExport>,
    leaves: Arc<Told>,
    facts: Arc<Memory>,
    stopped: AtomicBool,
}

impl Keeper for Liar {
    fn names(&self) -> Vec<String> {
        vec!["sda".into()]
    }
    fn open(&self, name: &str) -> Result<Arc<dyn Export>, Absent> {
        let none = || Err(Absent::Unknown("there is no such export".into()));
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

struct FileExport {
    file: File,
    /// How often the hot block was written to; none where it stays.
    restless: Option<AtomicU64>,
}

impl FileExport {
    /// The hot block is another one now, where it is restless.
    fn stir(&self) {
        if let Some(restless) = &self.restless {
            let stamp = restless.fetch_add(1, Ordering::SeqCst);
            self.file.write_all_at(&stamp.to_le_bytes(), HOT * MIB + 99).unwrap();
        }
    }
}

impl Export for FileExport {
    fn bytes(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        if (offset..offset + into.len() as u64).contains(&(HOT * MIB)) {
            self.stir();
        }
        self.file.read_exact_at(into, offset).map_err(|_| Unread::at(offset))
    }
    fn extents(&self, _: u64, bytes: u64, _: usize) -> Result<Vec<Extent>, Unread> {
        Ok(vec![Extent { bytes, status: 0 }])
    }
}

/// Leaves of the disk, which the server tells in its own way.
struct Told {
    way: Way,
    memory: Memory,
    /// Of the hot block, as it was.
    before: [u8; 32],
    /// How often that was asked for.
    asked: AtomicU64,
    disk: Arc<FileExport>,
}

impl Export for Told {
    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        self.memory.read(offset, into)?;
        let (hot, end) = (HOT * 32, offset + into.len() as u64);
        if !matches!(self.way, Way::Restless | Way::Away | Way::Silent) || !(offset..end).contains(&hot) {
            return Ok(());
        }
        let into = &mut into[(hot - offset) as usize..][..32];
        match (self.asked.fetch_add(1, Ordering::SeqCst), self.way) {
            (0, _) => into.copy_from_slice(&self.before),
            (_, Way::Restless) => {
                self.disk.stir();
                let mut block = vec![0; MIB as usize];
                self.disk.file.read_exact_at(&mut block, HOT * MIB).unwrap();
                into.copy_from_slice(motiongear_manifest::tree::leaf(HOT * MIB, &block).as_bytes());
            }
            // About to end, as NBD has it: whoever asked comes again.
            (1, Way::Away) => return Err(Unread { offset, error: libc::ESHUTDOWN.unsigned_abs() }),
            (_, Way::Silent) => return Err(Unread::at(offset)),
            _ => {}
        }
        Ok(())
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
    let told = served::Told { identity, facts: source.facts.clone(), host: serde_json::json!({}), stillness: None };
    let facts = serde_json::to_vec(&told).unwrap();
    let before = leaves(&raw);
    for at in [3, HOT, 31, 60, 80] {
        write_at(&raw, at * MIB, b"a booking");
    }
    for way in [Way::Stale, Way::Failing, Way::Short, Way::None, Way::Away, Way::Silent, Way::Restless] {
        let bytes = match way {
            Way::Stale => before.clone(),
            Way::Short => leaves(&raw)[..1024].to_vec(),
            _ => leaves(&raw),
        };
        let restless = (way == Way::Restless).then(AtomicU64::default);
        let disk = Arc::new(FileExport { file: File::options().read(true).write(true).open(&raw).unwrap(), restless });
        let told = Told {
            way,
            memory: Memory { bytes, failing: way == Way::Failing },
            before: before[HOT as usize * 32..][..32].try_into().unwrap(),
            asked: AtomicU64::default(),
            disk: disk.clone(),
        };
        let liar = Arc::new(Liar {
            way,
            disk,
            leaves: Arc::new(told),
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
            // Where one block is what matters, all are audited.
            let audit = if matches!(way, Way::Restless | Way::Away | Way::Silent) { "100" } else { "50" };
            let scanned = branch.run(["scan", "--audit", audit]);
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
                Way::Restless | Way::Away => {
                    assert!(scanned["leaves"]["reread"].is_null(), "{way:?}: {scanned}");
                    assert!(liar.leaves.asked.load(Ordering::SeqCst) > 2, "{way:?}");
                }
                Way::Silent => assert_eq!(scanned["leaves"]["reread"], "unasked", "{scanned}"),
            }
        });
    }
}
