//! From the plan's disks to opened sources, bound to the manifest's disks by identity.

use super::earlier::Earlier;
use super::recognise;
use crate::copy::crew::start;
use crate::error::{Error, Kind, Result};
use crate::inspect::{HostInventory, KnownBy};
use crate::plan::{DiskPlan, MachinePlan, Plan};
use crate::source::{Source, SysRoot};
use motiongear_manifest::catalogue::{Catalogue, Disk};
use motiongear_manifest::geometry::Geometry;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use uuid::Uuid;

/// Sources that are opened at once.
const OPENERS: usize = 16;

/// A disk of the plan with its source.
pub struct Bound<'a> {
    /// The plan's machine.
    pub machine: &'a MachinePlan,
    /// The plan's disk.
    pub plan: &'a DiskPlan,
    /// Opened for identity, facts and size; `None` for a disk that is excluded, complete, or cannot be copied.
    pub source: Option<Source>,
    /// Size of a disk that an earlier run has copied to its end: its source is not asked for.
    pub complete: Option<u64>,
    /// Why it cannot be copied now; other disks can.
    pub fault: Option<Error>,
}

impl Bound<'_> {
    /// MACHINE/DISK.
    pub fn name(&self) -> String {
        format!("{}/{}", self.machine.name, self.plan.name)
    }

    /// Size as far as it is known, bytes.
    pub fn bytes(&self) -> u64 {
        self.source.as_ref().map(|source| source.bytes).or(self.complete).unwrap_or(0)
    }

    /// Whether a snapshot is taken of the machine: its disks are of one instant, and complete only together.
    pub fn is_hooked(&self) -> bool {
        is_hooked(self.machine)
    }

    fn open(&mut self, sys: &SysRoot) -> Result<()> {
        match Source::open(&self.plan.source, sys) {
            Ok(source) => (self.source, self.complete) = (Some(source), None),
            Err(_) if self.complete.is_some() => {}
            // What the plan says makes no sense, whatever the source does.
            Err(error) if error.kind == Kind::Usage => return Err(error),
            Err(error) => self.fault = Some(error),
        }
        Ok(())
    }
}

fn is_hooked(machine: &MachinePlan) -> bool {
    !machine.hooks.is_empty() || machine.has_platform()
}

/// Opens the source of every disk of the plan, several at once: a server that is off takes its time to be so. A server is not asked
/// for what is complete, and what is here is only looked at.
///
/// # Errors
/// A source that is no disk.
pub fn open_all<'a>(plan: &'a Plan, sys: &SysRoot, complete: &BTreeMap<String, u64>) -> Result<Vec<Bound<'a>>> {
    let bound = plan.disks().map(|(machine, disk)| {
        let complete = complete.get(&format!("{}/{}", machine.name, disk.name)).copied();
        Bound { machine, plan: disk, source: None, complete, fault: None }
    });
    let mut bound: Vec<Bound> = bound.collect();
    open_those(&mut bound, sys)?;
    Ok(bound)
}

/// Opens those sources that are wanted and not open; whether there were any.
///
/// # Errors
/// As [`open_all`].
pub fn open_those(bound: &mut [Bound], sys: &SysRoot) -> Result<bool> {
    let asked = |b: &Bound| b.complete.is_none() || !b.plan.source.is_elsewhere();
    let wanted = |b: &&mut Bound| b.plan.exclude.is_none() && b.source.is_none() && b.fault.is_none() && asked(b);
    let wanted: Vec<&mut Bound> = bound.iter_mut().filter(wanted).collect();
    if wanted.is_empty() {
        return Ok(false);
    }
    let (far, here): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|b| b.plan.source.is_elsewhere());
    here.into_iter().try_for_each(|b| b.open(sys))?;
    let queue = Mutex::new(far.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> Result<()> { std::iter::from_fn(next).try_for_each(|b| b.open(sys)) };
    std::thread::scope(|scope| {
        // Without threads, one after the other.
        let threads: Vec<_> = (1..OPENERS).map_while(|_| start(scope, work).ok()).collect();
        let own = work();
        let joined = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::failed("A thread that opened a source stopped unexpectedly")))
        });
        joined.fold(own, Result::and)
    })?;
    Ok(true)
}

/// Sizes of the disks, by MACHINE/DISK, that an earlier run has copied from the same source to their end. Disks of a machine of which a
/// snapshot is taken are complete when all of them are.
///
/// # Errors
/// The manifest cannot be read.
pub fn complete(catalogue: &Catalogue, plan: &Plan) -> Result<BTreeMap<String, u64>> {
    let (machines, disks, generations) = (catalogue.machines()?, catalogue.disks()?, catalogue.generations()?);
    let finished = |machine: &str, plan: &DiskPlan| {
        let number = machines.iter().find(|known| known.name == machine)?.number;
        let disk = disks.iter().find(|disk| disk.machine == number && disk.name == plan.name)?;
        let of_disk = generations.iter().filter(|g| g.disk == disk.number && g.source == plan.source.to_string());
        of_disk.into_iter().find(|g| g.finished_at.is_some()).map(|g| g.bytes)
    };
    let mut complete = BTreeMap::new();
    for (machine, disk) in plan.disks().filter(|(_, disk)| disk.exclude.is_none()) {
        let whole = || {
            let wanted = machine.disks.iter().filter(|disk| disk.exclude.is_none());
            wanted.into_iter().all(|disk| finished(&machine.name, disk).is_some())
        };
        let hooked = is_hooked(machine);
        if let Some(bytes) = finished(&machine.name, disk)
            && (!hooked || whole())
        {
            complete.insert(format!("{}/{}", machine.name, disk.name), bytes);
        }
    }
    Ok(complete)
}

/// Finds, before anything is changed, sources that are not the disks that the manifest knows by these names, or that it knows by
/// others.
///
/// # Errors
/// The manifest cannot be read.
pub fn expect_known(catalogue: &Catalogue, bound: &mut [Bound]) -> Result<()> {
    let (machines, disks, generations) = (catalogue.machines()?, catalogue.disks()?, catalogue.generations()?);
    // One that was begun and given up may be seeded under another name.
    let finished = |disk: &Disk| generations.iter().any(|g| g.disk == disk.number && g.finished_at.is_some());
    let name_of = |disk: &Disk| {
        let machine = machines.iter().find(|machine| machine.number == disk.machine);
        format!("{}/{}", machine.map_or("", |machine| machine.name.as_str()), disk.name)
    };
    for bound in bound {
        let (name, Some(source)) = (bound.name(), &bound.source) else { continue };
        let others = disks.iter().filter(|disk| disk.excluded.is_none());
        let judged = others.into_iter().try_for_each(|known| {
            let known_as = name_of(known);
            match known_as == name {
                true => expect_same(catalogue, known, bound),
                false if !finished(known) => Ok(()),
                false => expect_other(known, &known_as, &name, source),
            }
        });
        if let Err(error) = judged {
            (bound.source, bound.fault) = (None, Some(error));
        }
    }
    Ok(())
}

/// One disk under two names would be shipped twice, and one machine would get the disk of another.
fn expect_other(known: &Disk, known_as: &str, name: &str, source: &Source) -> Result<()> {
    // Of a disk whose source could never be opened nothing is recorded.
    let Ok(recorded) = recognise::identity(known, known_as) else { return Ok(()) };
    match recorded.is_surely(&source.identity) {
        None => Ok(()),
        Some(what) => Err(Error::failed(format!(
            "Disk {name}: its source {} is the disk that {known_as} is: {what}",
            source.origin
        ))
        .next(format!("give the source of {name}; the same URI may have been pasted twice"))),
    }
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
        Some(machine) => {
            let nobody =
                |text: &str| serde_json::from_str::<HostInventory>(text).is_ok_and(|i| i.known_by == KnownBy::Nobody);
            // Its server may not have been there when it was entered.
            if inventory.known_by != KnownBy::Nobody && nobody(&machine.inventory) {
                catalogue.set_inventory(machine.number, &json("Inventory", inventory)?)?;
            }
            machine.number
        }
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
            let before = earlier.disk(&bound.machine.name, &bound.plan.name, source);
            if let Some(uuid) = bound.plan.uuid.or(before).filter(|uuid| *uuid != known.uuid) {
                catalogue.set_disk_uuid(known.number, uuid)?;
                return enter(catalogue, bound, earlier, inventory, block_bytes);
            }
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
