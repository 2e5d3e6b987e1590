//! Before a seed goes on with a disk: that what was copied of it is on it still. Two machines that were cloned from one template have
//! disks of one size and one partition table; under exchanged names one disk would be made of two.

use super::disks::Bound;
use crate::copy::known::Known;
use crate::copy::samples::{self, Samples};
use crate::error::{Error, Result};
use crate::io::Engine;
use crate::source::{Identity, Origin};
use motiongear_manifest::catalogue::{Catalogue, Disk, Generation};
use motiongear_manifest::documents::seal::Consistency;
use motiongear_manifest::geometry::Geometry;
use std::collections::BTreeSet;

/// Disks, by name, of which all is read again and compared.
pub type Reread = BTreeSet<String>;

/// What samples say of a disk that is gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// It is the one that was copied.
    Same,
    /// It may be, but was written to, and must not have been.
    Written,
    /// It is another one.
    Another,
}

/// Judges what was found on a disk that is copied as `consistency` says.
pub fn judge(consistency: Consistency, found: Samples) -> Likeness {
    match consistency {
        _ if found.differing == 0 => Likeness::Same,
        _ if !found.fit() => Likeness::Another,
        Consistency::Fuzzy => Likeness::Same,
        Consistency::Consistent => Likeness::Written,
    }
}

/// Compares samples of every disk of the plan that an earlier run began and did not complete, where no id of hardware decides. What is
/// another disk by now ends alone: nothing was changed.
///
/// # Errors
/// The manifest cannot be read.
pub fn expect_contents(catalogue: &Catalogue, bound: &mut [Bound], engine: Engine) -> Result<Reread> {
    let (machines, disks, generations) = (catalogue.machines()?, catalogue.disks()?, catalogue.generations()?);
    let shipment = catalogue.shipment()?;
    let mut reread = Reread::new();
    for bound in bound {
        let machine = machines.iter().find(|m| m.name == bound.machine.name).map(|m| m.number);
        let Some(disk) = disks.iter().find(|d| Some(d.machine) == machine && d.name == bound.plan.name) else {
            continue;
        };
        let open = |g: &&Generation| g.disk == disk.number && g.number == 0 && g.finished_at.is_none();
        let (Some(generation), Some(source)) = (generations.iter().find(open), &bound.source) else { continue };
        // What a snapshot is read from is compared when there is one.
        if bound.machine.makes_snapshots() || source.bytes != generation.bytes {
            continue;
        }
        let known = Known {
            manifest: catalogue.path().to_owned(),
            generation: generation.clone(),
            geometry: Geometry::new(generation.bytes, shipment.block_bytes)?,
            encrypted: shipment.encrypted,
        };
        let recorded = identity(disk, &bound.name())?;
        if recorded.is_told_by_hardware(&source.identity) {
            continue;
        }
        let found = samples::compare(&source.disk, &known, engine, None);
        let refused = match found.map(|found| (judge(generation.consistency, found), found)) {
            Ok((Likeness::Same, _)) => continue,
            // A file that was written over is the same file; anything else is another disk.
            Ok((likeness, _)) if likeness == Likeness::Written || recorded.is_one_file(&source.identity) => {
                reread.insert(bound.name());
                continue;
            }
            Ok((_, found)) => another(&bound.name(), &source.origin, found),
            Err(error) => error,
        };
        (bound.source, bound.fault) = (None, Some(refused));
    }
    Ok(reread)
}

/// What a disk was recorded as.
///
/// # Errors
/// The manifest holds something else.
pub fn identity(disk: &Disk, name: &str) -> Result<Identity> {
    serde_json::from_str(&disk.identity)
        .map_err(|e| Error::failed(format!("Identity of disk {name} in the manifest")).because(e))
}

/// Refuses a disk that holds something else than was copied.
pub fn another(name: &str, origin: &Origin, found: Samples) -> Error {
    let Samples { compared, differing } = found;
    Error::failed(format!(
        "Disk {name}: {origin} is another disk: {differing} of {compared} blocks that were copied from it are different there"
    ))
    .next("name the disk that was meant; or seed this one under another disk name, and leave the first out with seal --without")
}

/// Refuses a disk that was written to, although what was copied of it must be of one instant.
pub fn written(name: &str, origin: &Origin, found: Samples) -> Error {
    let Samples { compared, differing } = found;
    Error::failed(format!(
        "Disk {name}: {origin} was written to: {differing} of {compared} blocks that were copied from it are different there"
    ))
    .next("run the same command again: it reads every block again and compares it; or leave out --point-in-time")
}
