//! Machines that run while their disks are read, whatever runs them: whom to ask for a snapshot, one MotionGear at a time for each, and
//! a watchdog that takes a snapshot out again should we be killed.

use super::Origin;
use super::tracking::{Platform, Tracking};
use super::watchdog::{Orders, Watchdog};
use crate::error::{Error, IoContext, Result};
use crate::io::{BlockIo, Engine, Readable};
use crate::plan::HookSpec;
use crate::{libvirt, nbd, qmp};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For another MotionGear, or the watchdog of one that was killed, to leave the machine.
const LEFT_WITHIN: Duration = Duration::from_secs(20);
/// For one attempt of the watchdog.
const RELEASE_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(10);

/// Whom to ask for a snapshot of a running machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Monitor {
    /// The QEMU behind this socket.
    Qemu(PathBuf),
    /// libvirt, which knows the machine by this name or UUID.
    Libvirt(String),
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Monitor::Qemu(socket) => write!(f, "the monitor {}", socket.display()),
            Monitor::Libvirt(domain) => write!(f, "libvirt:{domain}"),
        }
    }
}

/// What a snapshot of a running machine needs besides its disks.
pub struct Around {
    /// The machine's name, for messages.
    pub machine: String,
    /// Where to put what the guest overwrites meanwhile.
    pub scratch: PathBuf,
    /// The watchdog appends a line here when it had to act.
    pub log: Option<PathBuf>,
}

impl Monitor {
    /// A snapshot to take of these disks: what we call each, its source, and what is wanted of its record of changes.
    pub fn snapshot<'a>(
        &self,
        around: Around,
        disks: impl Iterator<Item = (String, &'a Origin, Tracking)>,
    ) -> Box<dyn Platform> {
        match self {
            Monitor::Qemu(socket) => {
                let disks = disks.filter_map(|(name, origin, tracking)| match origin {
                    Origin::Machine(drive) => Some(qmp::Wish { name, drive: drive.clone(), tracking: Some(tracking) }),
                    _ => None,
                });
                let Around { machine, scratch, log } = around;
                Box::new(qmp::Taking { machine, socket: socket.clone(), disks: disks.collect(), scratch, log })
            }
            Monitor::Libvirt(domain) => {
                let disks = disks.filter_map(|(name, origin, tracking)| match origin {
                    Origin::Domain(drive) => Some(libvirt::Wish { name, target: drive.target.clone(), tracking }),
                    _ => None,
                });
                Box::new(libvirt::Taking { domain: domain.clone(), disks: disks.collect(), around })
            }
        }
    }
}

/// What is said of a snapshot of `machine` that is there no more.
pub fn lost(machine: &str, why: &str) -> Error {
    Error::failed(format!("Machine {machine}: its snapshot is lost: {why}"))
        .next("run the same command again: a new one is taken, and what was copied is compared with it")
}

/// A disk that a machine writes to: its size is known, and what it holds is read from a snapshot only.
#[derive(Debug)]
pub struct Live {
    /// As given.
    pub origin: Origin,
    /// Its size.
    pub bytes: u64,
}

impl Live {
    fn never(&self) -> Error {
        Error::failed(format!("Source {}: it is read from a snapshot, and there is none", self.origin))
    }
}

impl Readable for Live {
    fn bytes(&self) -> Result<u64> {
        Ok(self.bytes)
    }
    fn queue(self: Arc<Self>, _: Engine, _: usize) -> Result<Box<dyn BlockIo>> {
        Err(self.never())
    }
    fn next_data(&self, _: u64) -> Result<Option<(u64, u64)>> {
        Err(self.never())
    }
    fn unit(&self) -> u64 {
        1
    }
    fn is_far(&self) -> bool {
        true
    }
    fn is_direct(&self) -> bool {
        true
    }
}

/// What takes the snapshot out if we do not, and keeps others of us away.
pub struct Guard {
    watchdog: Watchdog,
    _alone: File,
}

impl Guard {
    /// Starts a watchdog that runs `motiongear release SOURCE` should this process end without a word.
    ///
    /// # Errors
    /// It cannot be started or does not answer.
    pub fn start(alone: File, source: &str, machine: &str, log: Option<PathBuf>) -> Result<Guard> {
        let command = ["/proc/self/exe".into(), "release".into(), "--or-nothing".into(), source.to_owned()].into();
        let orders = Orders {
            thaw: HookSpec { command, timeout: RELEASE_WITHIN },
            // A seed takes as long as it takes.
            limit: Duration::MAX,
            environment: BTreeMap::from([("MOTIONGEAR_MACHINE".to_owned(), machine.to_owned())]),
            log,
            // The machine is ours alone already.
            turn: None,
        };
        let watchdog = Watchdog::start(&["/proc/self/exe".into(), "thaw-watchdog".into()], &orders)?;
        Ok(Guard { watchdog, _alone: alone })
    }

    /// Nothing of ours comes to the machine any more: once taken out, it is out.
    pub fn taken(&mut self) {
        self.watchdog.ended("snapshot", true);
    }

    /// All was taken out. Dropped without a word, the watchdog begins.
    pub fn done(self) {
        // It may be gone, killed by somebody: there is nothing left for it to do.
        drop(self.watchdog.release());
    }
}

/// Keeps others of us away from a machine while the file is open: `name` is the machine's, and `what` it is called in messages.
///
/// # Errors
/// Another of us stays with it.
pub fn alone(name: &str, what: &dyn Fn() -> String) -> Result<File> {
    let held = turn(name, LEFT_WITHIN).context(what)?;
    held.ok_or_else(|| {
        Error::failed(format!("{}: another MotionGear reads this machine", what()))
            .next("wait for it; 'motiongear status' shows what runs here")
    })
}

/// Waits up to `limit` until nobody else on this host holds `name`, and holds it while the file is open.
///
/// # Errors
/// Nothing can be locked where all of us would look.
pub fn turn(name: &str, limit: Duration) -> std::io::Result<Option<File>> {
    let open = |dir: &Path| {
        let mut options = File::options();
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(dir.join(format!("{name}.lock")))
    };
    // Not everybody may write there.
    let _ = DirBuilder::new().mode(0o700).recursive(true).create(nbd::RUN);
    let file = open(Path::new(nbd::RUN)).or_else(|_| open(&std::env::temp_dir()))?;
    let until = Instant::now() + limit;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOOK),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}
