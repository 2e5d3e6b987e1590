//! From the plan's disks to opened sources, bound to the manifest's disks by identity.

use super::earlier::Earlier;
use super::recognise;
use crate::error::{Error, Result};
use crate::inspect::{HostInventory, KnownBy};
use crate::plan::{DiskPlan, MachinePlan, Plan};
use crate::source::{Source, SysRoot};
use motiongear_manifest::catalogue::{Catalogue, Disk};
use motiongear_manifest::geometry::Geometry;
use serde::Serialize;
use uuid::Uuid;

/// A disk of the plan with its source.
pub struct Bound<'a> {
    /// The plan's machine.
    pub machine: &'a MachinePlan,
    /// The plan's disk.
    pub plan: &'a DiskPlan,
    /// Opened for identity, facts and size; `None` for a disk that is planned but excluded.
    pub source: Option<Source>,
}

impl Bound<'_> {
    /// MACHINE/DISK.
    pub fn name(&self) -> String {
        format!("{}/{}", self.machine.name, self.plan.name)
    }
}

/// Opens every source of the plan.
///
/// # Errors
/// A source that is missing, or is no disk.
pub fn open_all<'a>(plan: &'a Plan, sys: &SysRoot) -> Result<Vec<Bound<'a>>> {
    plan.disks()
        .map(|(machine, disk)| {
            let source = disk.exclude.is_none().then(|| Source::open(&disk.source, sys)).transpose()?;
            Ok(Bound { machine, plan: disk, source })
        })
        .collect()
}

/// Refuses, before anything is changed, sources that are not the disks that the manifest knows by these names.
///
/// # Errors
/// Names the first one.
pub fn expect_known(catalogue: &Catalogue, bound: &[Bound]) -> Result<()> {
    let (machines, disks) = (catalogue.machines()?, catalogue.disks()?);
    for bound in bound {
        let machine = machines.iter().find(|machine| machine.name == bound.machine.name).map(|machine| machine.number);
        let known = disks.iter().find(|disk| Some(disk.machine) == machine && disk.name == bound.plan.name);
        known.map_or(Ok(()), |known| expect_same(catalogue, known, bound))?;
    }
    Ok(())
}

/// A disk that was read once is bound by what it was then.
fn expect_same(catalogue: &Catalogue, known: &Disk, bound: &Bound) -> Result<()> {
    let Some(source) = bound.source.as_ref().filter(|_| known.identity != "null") else { return Ok(()) };
    let recorded = recognise::identity(known, &bound.name())?;
    // The file system of a file may have been mounted again; whether the file is the same its blocks tell.
    if recorded.may_be_remounted(&source.identity) {
        let path = bound.plan.source.to_string();
        let generations = catalogue.generations()?;
        if generations.iter().any(|g| g.disk == known.number && g.source == path) {
            return Ok(());
        }
    }
    source.expect_identity(&recorded)
}

/// What is known of a machine: what the plan tells, else what the `served` host of one of its disks tells of itself, else `here`, what
/// this host is, unless the machine cannot be this host: then nobody knows.
///
/// # Errors
/// What was told makes no sense.
pub fn inventory_of(
    machine: &MachinePlan,
    served: Option<&serde_json::Value>,
    here: &HostInventory,
) -> Result<HostInventory> {
    if let Some(facts) = &machine.facts {
        return Ok(facts.clone());
    }
    if let Some(theirs) = served {
        return serde_json::from_value(theirs.clone())
            .map_err(|e| Error::failed(format!("Inventory of machine {}", machine.name)).because(e));
    }
    let named_so = here.hostname.as_deref() == Some(machine.name.as_str());
    match named_so || machine.disks.iter().any(|disk| !disk.source.is_elsewhere()) {
        true => Ok(here.clone()),
        false => Ok(HostInventory { known_by: KnownBy::Nobody, ..HostInventory::default() }),
    }
}

/// The manifest's disk for `bound`, added if it is new (its machine with `inventory`), under the UUID that the plan or an earlier shipment
/// gave it. A known disk must still be the same one, of the same size.
///
/// # Errors
/// Another disk stands behind a known name, or the manifest cannot be written.
pub fn enter(
    catalogue: &Catalogue,
    bound: &Bound,
    earlier: &Earlier,
    inventory: &HostInventory,
    block_bytes: u32,
) -> Result<Disk> {
    let machine = match catalogue.machines()?.into_iter().find(|m| m.name == bound.machine.name) {
        Some(machine) => machine.number,
        None => {
            let uuid = bound.machine.uuid.or_else(|| earlier.machine(&bound.machine.name)).unwrap_or_else(Uuid::new_v4);
            catalogue.add_machine(uuid, &bound.machine.name, &json("Inventory", inventory)?)?
        }
    };
    let find = |catalogue: &Catalogue| -> Result<Option<Disk>> {
        Ok(catalogue.disks()?.into_iter().find(|d| d.machine == machine && d.name == bound.plan.name))
    };
    let (identity, facts) = match &bound.source {
        Some(source) => (json("Identity", &source.identity)?, json("Facts", &source.facts)?),
        None => ("null".to_owned(), "null".to_owned()),
    };
    let Some(known) = find(catalogue)? else {
        let before = bound.source.as_ref().and_then(|s| earlier.disk(&bound.machine.name, &bound.plan.name, s));
        let uuid = bound.plan.uuid.or(before).unwrap_or_else(Uuid::new_v4);
        let number = catalogue.add_disk(uuid, machine, &bound.plan.name, &identity, &facts)?;
        catalogue.set_excluded(number, bound.plan.exclude.as_deref())?;
        return find(catalogue)?.ok_or_else(|| Error::failed(format!("Manifest: expected disk {number}, found none")));
    };
    if let Some(source) = &bound.source {
        if known.identity == "null" {
            catalogue.set_disk_facts(known.number, &identity, &facts)?;
        }
        expect_same(catalogue, &known, bound)?;
        Geometry::new(source.bytes, block_bytes)?;
    }
    if known.excluded.as_deref() != bound.plan.exclude.as_deref() {
        catalogue.set_excluded(known.number, bound.plan.exclude.as_deref())?;
    }
    Ok(Disk { excluded: bound.plan.exclude.clone(), ..known })
}

fn json(object: &str, value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::failed(object.to_owned()).because(e))
}
