//! Watches the room for what a guest overwrites, and gives the snapshot up while there is some left: where only jobs hold it, a write
//! of the guest would fail without.

use super::release::release;
use super::{Qmp, scratch};
use crate::error::{IoContext, Result};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often is looked. At 2 GB/s, as much as a guest writes to the fastest disks, 40 MB go in between.
const LOOK: Duration = Duration::from_millis(20);
/// Left when the snapshot is given up; half of what there is, where that is less.
const RESERVE_BYTES: u64 = 1 << 30;

/// A thread that watches, until it is dropped.
pub struct Room {
    gave_up: Arc<AtomicBool>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Room {
    /// Watches the file system of `dir`, for a snapshot in the QEMU behind `socket`.
    ///
    /// # Errors
    /// The directory is not there; no thread to be had.
    pub fn watch(dir: &Path, socket: &Path) -> Result<Room> {
        let what = || format!("Scratch directory {}", dir.display());
        let reserve = (scratch::free(dir).context(what)? / 2).min(RESERVE_BYTES);
        let (stop, stopped) = bounded::<()>(0);
        let gave_up = Arc::new(AtomicBool::new(false));
        let (dir, socket, told) = (dir.to_owned(), socket.to_owned(), gave_up.clone());
        let look = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK) {
                if scratch::free(&dir).is_ok_and(|free| free >= reserve) {
                    continue;
                }
                told.store(true, Ordering::Release);
                // Again until it succeeds or the snapshot is ended otherwise.
                if Qmp::connect(&socket).and_then(|mut qmp| release(&mut qmp)).is_ok() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("motiongear-room".into()).spawn(look).context(what)?;
        Ok(Room { gave_up, stop: Some(stop), thread: Some(thread) })
    }

    /// Whether the snapshot was given up.
    pub fn gave_up(&self) -> bool {
        self.gave_up.load(Ordering::Acquire)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that matters now.
            let _ = thread.join();
        }
    }
}
