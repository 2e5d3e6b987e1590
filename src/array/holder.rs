//! One host's ledger holds an unsealed shipment, and one process writes to it at a time.

use super::Array;
use crate::context::now;
use crate::error::{Error, IoContext, Result};
use crate::io::{create_dirs_durably, read_bounded, sync_dir, write_file_durably};
use crate::ledger::Ledger;
use motiongear_manifest::documents::holder::Holder;
use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::Path;
use uuid::Uuid;

/// Held while a process writes to an array; the kernel lets go of it when the process ends.
pub struct Lock(#[allow(dead_code, reason = "held, not used")] Vec<File>);

/// Locks a directory or file against other writers.
fn lock(path: &Path, what: &str) -> Result<File> {
    let file = File::open(path).context(|| format!("{what} {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::failed(format!("{what} {}: another motiongear process is working on it", path.display()))
                .next("'motiongear status' shows running jobs; wait for it, or stop it with Ctrl-C there: it resumes"))
        }
        // Some network file systems cannot lock; the ledger's own lock still holds on this host.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOLCK) => Ok(file),
        Err(errno) => Err(Error::io(format!("{what} {}: cannot be locked", path.display()), errno.into())),
    }
}

impl Lock {
    /// Locks the array, and this shipment in the ledger.
    ///
    /// # Errors
    /// Another process has one of them.
    pub fn take(array: &Array, ledger: &Ledger, shipment: Uuid) -> Result<Lock> {
        let dir = ledger.shipment_dir(shipment);
        create_dirs_durably(&dir, 0o777)?;
        Ok(Lock(vec![lock(&dir, "Ledger of shipment")?, lock(array.root(), "Array")?]))
    }
}

/// Reads `holder.json`; `None` where there is none.
///
/// # Errors
/// It is there and cannot be understood.
pub fn read(array: &Array) -> Result<Option<Holder>> {
    if !array.holder().exists() {
        return Ok(None);
    }
    Ok(Some(Holder::parse(&read_bounded(&array.holder(), MAX_DOCUMENT_BYTES)?)?))
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
        return sync_dir(array.root());
    }
    let host = host.to_owned();
    let holder = Holder { format: motiongear_manifest::FORMAT, shipment, ledger: ledger.uuid(), host, since: now()? };
    write_file_durably(array.root(), "holder.json", &holder.to_bytes()?)
}
