//! One host's ledger holds an unsealed shipment, and one process writes to it at a time.

use super::Array;
use crate::context::now;
use crate::error::{Error, Result};
use crate::io::tree::if_there;
use crate::io::{Tree, create_dirs_durably};
use crate::ledger::Ledger;
use motiongear_manifest::check::FOLDER;
use motiongear_manifest::documents::holder::Holder;
use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES};
use rustix::fs::{FlockOperation, flock};
use std::os::fd::OwnedFd;
use uuid::Uuid;

/// Its file.
pub const FILE: &str = "holder.json";

/// Held while a process works on an array; the kernel lets go of it when the process ends. Nothing is written for it, so that an
/// array that is mounted read-only can be read under it.
pub struct Lock(#[allow(dead_code, reason = "held, not used")] Vec<OwnedFd>);

/// Locks an open directory against others.
fn lock(directory: OwnedFd, how: FlockOperation, what: impl FnOnce() -> String) -> Result<OwnedFd> {
    match flock(&directory, how) {
        Ok(()) => Ok(directory),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::failed(format!("{}: another motiongear process is working on it", what()))
                .next("'motiongear status' shows running jobs; wait for it, or stop it with Ctrl-C there: it resumes"))
        }
        // Some network file systems cannot lock; the ledger's own lock still holds on this host.
        Err(
            rustix::io::Errno::OPNOTSUPP
            | rustix::io::Errno::NOLCK
            | rustix::io::Errno::NOSYS
            | rustix::io::Errno::BADF,
        ) => Ok(directory),
        Err(errno) => Err(Error::io(format!("{}: cannot be locked", what()), errno.into())),
    }
}

/// None is needed where there is no array: the verb says so in its own words.
fn lock_array(array: &Array, how: FlockOperation) -> Result<Option<OwnedFd>> {
    // A description of its own: a lock belongs to it, and goes with it.
    let Some(root) = if_there(Tree::open(array.mount()).and_then(|mount| mount.folder(FOLDER)))? else {
        return Ok(None);
    };
    lock(root.into_fd()?, how, || format!("Array {}", array.root().display())).map(Some)
}

impl Lock {
    /// Locks the array, and this shipment in the ledger: for whoever adds to the shipment.
    ///
    /// # Errors
    /// Another process has one of them.
    pub fn take(array: &Array, ledger: &Ledger, shipment: Uuid) -> Result<Lock> {
        let dir = ledger.shipment_dir(shipment);
        create_dirs_durably(&dir, 0o777)?;
        let what = || format!("Ledger of shipment {}", dir.display());
        let ledger = lock(Tree::open(&dir)?.into_fd()?, FlockOperation::NonBlockingLockExclusive, what)?;
        let array = lock_array(array, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Lock([ledger].into_iter().chain(array).collect()))
    }

    /// Locks the array alone: for whoever writes to it, and adds nothing to the shipment.
    ///
    /// # Errors
    /// Another process works on it.
    pub fn alone(array: &Array) -> Result<Lock> {
        Ok(Lock(lock_array(array, FlockOperation::NonBlockingLockExclusive)?.into_iter().collect()))
    }

    /// Locks the array against whoever writes to it: for readers, any number of them at once.
    ///
    /// # Errors
    /// Another process writes to it.
    pub fn shared(array: &Array) -> Result<Lock> {
        Ok(Lock(lock_array(array, FlockOperation::NonBlockingLockShared)?.into_iter().collect()))
    }
}

/// Reads `holder.json`; `None` where there is none.
///
/// # Errors
/// It is there and cannot be understood.
pub fn read(array: &Array) -> Result<Option<Holder>> {
    let bytes = if_there(array.tree()?.read(FILE, MAX_DOCUMENT_BYTES))?;
    Ok(bytes.map(|bytes| Holder::parse(&bytes)).transpose()?)
}

/// Refuses an array whose unsealed shipment another ledger holds.
///
/// # Errors
/// Names the holder and the way out.
pub fn check(array: &Array, ledger: &Ledger, shipment: Uuid) -> Result<()> {
    match read(array)? {
        Some(holder) if holder.ledger != ledger.uuid() => Err(Error::failed(format!(
            "Array {}: expected its shipment to be held by this ledger, found it held by the ledger of host {} since {}",
            array.root().display(),
            holder.host,
            holder.since
        ))
        .next("go on at that host, or move its ledger here: motiongear ledger move")),
        Some(holder) if holder.shipment != shipment => Err(Error::failed(format!(
            "Array {}: expected holder.json to name shipment {shipment}, found {}",
            array.root().display(),
            holder.shipment
        ))
        .next("this array mixes two shipments: do not use it; prepare another one with init")),
        _ => Ok(()),
    }
}

/// Writes that this ledger holds the shipment.
///
/// # Errors
/// The array cannot be written.
pub fn claim(array: &Array, ledger: &Ledger, shipment: Uuid, host: &str) -> Result<()> {
    if read(array)?.is_some() {
        check(array, ledger, shipment)?;
        // The process that wrote it may have been killed before its name was durable.
        return array.tree()?.sync("");
    }
    let host = host.to_owned();
    let holder = Holder { format: motiongear_manifest::FORMAT, shipment, ledger: ledger.uuid(), host, since: now()? };
    array.tree()?.write(FILE, &holder.to_bytes()?)
}
