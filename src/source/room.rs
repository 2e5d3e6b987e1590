//! Room for what a running machine overwrites while its disks are read, in a directory of this host that others use as well.

use crate::error::{Error, IoContext, Result};
use crate::units;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Of the disks' size, the share that must be free at the start: with less, a snapshot is lost before it can be read.
const LEAST_SHARE: u64 = 100;
/// What stays free for others, of the file system's size: the images of the machine itself may have to grow there.
const RESERVE_SHARE: u64 = 20;
/// And at most, bytes: what a fast disk takes in several looks.
const RESERVE_MAX: u64 = 2 << 30;
/// How often is looked whether the reserve is there.
const LOOK: Duration = Duration::from_millis(250);

/// A file system's room, bytes.
struct Room {
    free: u64,
    reserve: u64,
}

impl Room {
    fn of(dir: &Path) -> Result<Room> {
        let space = rustix::fs::statvfs(dir).context(|| format!("Scratch directory {}", dir.display()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        let reserve = (bytes(space.f_blocks) / RESERVE_SHARE).min(RESERVE_MAX);
        Ok(Room { free: bytes(space.f_bavail), reserve })
    }
}

/// Refuses a directory with hardly any room for what the guest overwrites of disks of `bytes`.
///
/// # Errors
/// Less than 1 % of the disks is free beside the reserve; the directory is not there.
pub fn expect_room(dir: &Path, bytes: u64) -> Result<()> {
    let Room { free, reserve } = Room::of(dir)?;
    let least = (bytes / LEAST_SHARE).saturating_add(reserve);
    if free < least {
        let (least, free) = (units::size(least), units::size(free));
        return Err(Error::failed(format!(
            "Scratch directory {}: expected at least {least} free for what the machine overwrites while it is read, found {free}",
            dir.display()
        ))
        .next("name a directory with more room: --scratch DIR"));
    }
    Ok(())
}

/// Gives a snapshot up before its files have taken the last of their file system: the machine's own images may lie there, too, and a
/// machine whose image cannot grow is paused. Looks until it is dropped.
pub struct RoomWatch {
    given_up: Arc<AtomicBool>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RoomWatch {
    /// Watches `dir`; `give_up` takes the snapshot out, and is tried at every look until it has.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(dir: &Path, give_up: impl Fn() -> Result<()> + Send + 'static) -> Result<RoomWatch> {
        let (stop, stopped) = bounded::<()>(0);
        let given_up = Arc::<AtomicBool>::default();
        let (dir, told) = (dir.to_owned(), given_up.clone());
        let watch = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK) {
                // A directory that cannot be asked has no room to speak of.
                if Room::of(&dir).is_ok_and(|room| room.free >= room.reserve) && !told.load(Ordering::Acquire) {
                    continue;
                }
                // First, so that whoever meets the missing export knows why.
                told.store(true, Ordering::Release);
                // What runs the machine may be busy just now: asked again at the next look.
                if give_up().is_ok() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("motiongear-room".into()).spawn(watch);
        let thread = thread.context(|| "The watch over the scratch directory".to_owned())?;
        Ok(RoomWatch { given_up, stop: Some(stop), thread: Some(thread) })
    }

    /// Whether the snapshot was given up.
    pub fn gave_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }
}

impl Drop for RoomWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that matters now.
            let _ = thread.join();
        }
    }
}
