//! A server of a shipment's disks in this process, for programs that it starts: on a socket in a directory that only we can enter.

use super::{Sealed, SealedExport};
use crate::copy::throttle::{Stop, Throttle};
use crate::error::{IoContext, Result};
use crate::nbd::serve::{Absent, Export, Host, Keeper, Listener, Place};
use crate::nbd::{Uri, private_directory};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The running server. Dropping it ends it; who still reads from it gets an error.
pub struct SealedServer {
    sealed: Sealed,
    dir: PathBuf,
    throttle: Arc<Throttle>,
    thread: Option<JoinHandle<()>>,
}

impl SealedServer {
    /// Serves `sealed`, which was opened with `throttle`.
    ///
    /// # Errors
    /// There is no place for the socket, or no thread to be had.
    pub fn start(sealed: Sealed, throttle: Arc<Throttle>) -> Result<SealedServer> {
        let dir = private_directory()?;
        // From here on the directory goes with it.
        let mut server = SealedServer { sealed, dir, throttle, thread: None };
        let listener = Listener::open(&Place::Unix(server.dir.join("socket")))?;
        let shelf = Shelf { exports: server.sealed.exports.clone(), throttle: server.throttle.clone() };
        let host = Arc::new(Host::new(Arc::new(shelf), None));
        let thread = std::thread::Builder::new().name("nbd-server".into());
        server.thread = Some(thread.spawn(move || listener.serve(&host)).context(|| "Server of the array".into())?);
        Ok(server)
    }

    /// Where it serves the disk MACHINE/DISK.
    pub fn uri(&self, name: &str) -> Uri {
        Uri::of_socket(&self.dir.join("socket"), name)
    }

    /// What it serves.
    pub fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    /// What is to be said since this was asked last: blocks that cannot be proven, an array that does not answer.
    pub fn take_notes(&self) -> Vec<String> {
        self.throttle.take_notes()
    }
}

impl Drop for SealedServer {
    fn drop(&mut self) {
        self.throttle.stop(Stop::Asked);
        if let Some(thread) = self.thread.take() {
            // It ends within seconds, whatever the array does.
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The exports by name.
struct Shelf {
    exports: BTreeMap<String, Arc<SealedExport>>,
    throttle: Arc<Throttle>,
}

impl Keeper for Shelf {
    fn names(&self) -> Vec<String> {
        self.exports.keys().cloned().collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, Absent> {
        let none = || Absent::Unknown("there is no such export".into());
        let export = self.exports.get(name).ok_or_else(none)?;
        Ok(export.clone())
    }

    fn stopped(&self) -> bool {
        self.throttle.stopped()
    }

    fn note(&self, text: String) {
        self.throttle.note(text);
    }
}
