//! The mark on a volume that says by which seal and generation it was completed last: beside a raw file, in the metadata of a volume of
//! Cinder, in those of an image of Ceph. A ledger that was set back (a restored backup, a snapshot of its machine) knows less than the
//! volume; it must neither judge nor change it.

use super::Place;
use super::local::Sidecar;
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use motiongear_manifest::code::name_code;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// By what a volume was completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// The shipment.
    pub shipment: Uuid,
    /// Code of the seal, as it stands in names.
    pub seal: String,
    /// Generation of the disk.
    pub generation: u32,
}

impl Completed {
    /// From the marks of a volume of a cloud; `None` where it was not completed yet.
    pub fn of_marks(mark: impl Fn(&str) -> Option<String>) -> Option<Completed> {
        let (shipment, seal, generation) = (mark("shipment")?, mark("seal")?, mark("generation")?);
        Some(Completed { shipment: shipment.parse().ok()?, seal, generation: generation.parse().ok()? })
    }
}

impl Place {
    /// By what its volume was completed, as far as that is written on it: a device or an export has no such mark.
    ///
    /// # Errors
    /// The mark cannot be read; the cloud does not answer.
    pub fn completed(&self) -> Result<Option<Completed>> {
        match self {
            Place::File(path) => Ok(Sidecar::read(path)?.and_then(|sidecar| sidecar.completed)),
            Place::Stored(store) => Ok(store.find()?.and_then(|found| found.completed)),
            Place::Device(_) | Place::Export(_) => Ok(None),
        }
    }
}

/// Refuses a volume that was completed, as its mark says, by a seal of which this ledger knows no import.
///
/// # Errors
/// Untrusted: the ledger is older than the volume; it cannot be read.
pub fn expect_known(ledger: &Ledger, place: &Place, disk: Uuid, completed: Option<Completed>) -> Result<()> {
    let Some(Completed { shipment, seal, generation }) = completed else { return Ok(()) };
    let imports = ledger.imports_into(disk)?;
    if imports.iter().any(|import| import.shipment == shipment && name_code(&import.seal) == seal) {
        return Ok(());
    }
    Err(Error::untrusted(format!(
        "Volume {place}: completed by seal {seal:.40} (generation {generation}) of shipment {shipment}, which this ledger does not know"
    ))
    .next("restore the newest backup of the state directory: this ledger is older than the volume; --overwrite gives up what it holds"))
}
