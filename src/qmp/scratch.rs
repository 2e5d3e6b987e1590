//! Where what the guest overwrites goes while its disks are read: files without a name in a directory of this host, which end with
//! the last who has them open, whatever ends whom.

use super::release::release;
use super::{OURS, Qmp};
use crate::error::{Error, IoContext, Result};
use crate::units;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use uuid::Uuid;

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

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Added {
    fdset_id: u64,
}

/// Gives QEMU a new file of `bytes` without a name, as the node `node`. Its user need not be able to open anything of ours.
///
/// # Errors
/// The directory cannot be written to, or QEMU refuses.
pub fn add_file(qmp: &mut Qmp, dir: &Path, bytes: u64, node: &str) -> Result<()> {
    let what = || format!("Scratch directory {}", dir.display());
    let path = dir.join(format!("{OURS}{}", Uuid::new_v4()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).context(what)?;
    std::fs::remove_file(&path).context(what)?;
    file.set_len(bytes).context(what)?;
    let added = qmp.hand(file.as_fd(), "add-fd", json!({ "opaque": node }))?;
    let Added { fdset_id } = serde_json::from_value(added).map_err(|error| qmp.wrong("the number of a set", error))?;
    let filename = format!("/dev/fdset/{fdset_id}");
    qmp.call("blockdev-add", json!({ "driver": "file", "node-name": node, "filename": filename }))?;
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
    /// Watches `dir` for the snapshot in the QEMU behind `socket`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(dir: &Path, socket: &Path) -> Result<RoomWatch> {
        let (stop, stopped) = bounded::<()>(0);
        let given_up = Arc::<AtomicBool>::default();
        let (dir, socket, told) = (dir.to_owned(), socket.to_owned(), given_up.clone());
        let watch = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK) {
                // A directory that cannot be asked has no room to speak of.
                if Room::of(&dir).is_ok_and(|room| room.free >= room.reserve) && !told.load(Ordering::Acquire) {
                    continue;
                }
                // First, so that whoever meets the missing export knows why.
                told.store(true, Ordering::Release);
                // The monitor may be somebody else's just now: asked again at the next look.
                if Qmp::connect(&socket).and_then(|mut qmp| release(&mut qmp)).is_ok() {
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
