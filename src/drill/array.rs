//! Machines that are still on a sealed array: no volume, no import. Seal, pins, custody and manifest are checked as `import` checks them; the disks
//! are then served by the keeper itself, every block proven before the machine sees it, and nothing is ever written to the array.

use super::plan::{From, Known, Machine, Options, inventory};
use super::record::{Base, Course, Drill, DrillDisk, MAX_TROUBLES, SealedArray};
use crate::array::Array;
use crate::context::Context;
use crate::copy::throttle::{Limits, Throttle};
use crate::error::{Error, IoContext, Result};
use crate::sealed::{Sealed, SealedServer};
use crate::trust::{self, Expected};
use crate::volume::layer::Layer;
use motiongear_manifest::documents::seal::{Seal, SealedDisk};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The machine as it was sealed, without the disks that were left out at the branch.
///
/// # Errors
/// The array is not trusted (exit 4); it does not hold that machine.
pub fn find(context: &Context, options: &Options, from: &From) -> Result<Machine> {
    // The keeper may have another working directory.
    let sealed = SealedArray {
        array: absolute(&from.sealed.array)?,
        trust: absolute(&from.sealed.trust)?,
        identity: from.sealed.identity.as_deref().map(absolute).transpose()?,
    };
    let accepted = trust::accept(
        context,
        &Array::new(&sealed.array),
        &sealed.trust,
        sealed.identity.as_deref(),
        &from.expected,
        None,
    )?;
    let (seal, catalogue) = (&accepted.seal, &accepted.catalogue);
    let of_site = options.site.as_deref().is_none_or(|site| site == seal.site.name);
    let disks: Vec<&SealedDisk> = if of_site { disks(seal, &options.machine).collect() } else { Vec::new() };
    if disks.is_empty() {
        let machines: BTreeSet<String> =
            seal.disks.iter().map(|disk| format!("{}/{}", seal.site.name, disk.machine)).collect();
        let found: Vec<String> = machines.into_iter().take(50).collect();
        let wanted = options.site.iter().chain([&options.machine]).cloned().collect::<Vec<_>>().join("/");
        return Err(Error::failed(format!(
            "Machine {wanted}: expected it in shipment {}, found {}",
            seal.shipment,
            found.join(", ")
        ))
        .next("name one of these"));
    }
    let mut notes = accepted.notes.clone();
    let left_out = seal.excluded.iter().filter(|disk| disk.machine == options.machine);
    notes.extend(left_out.map(|disk| format!("{}: left out at the branch: {}", disk.disk, disk.reason)));
    let holes = disks.iter().filter(|disk| disk.blocks.unreadable > 0);
    notes.extend(holes.map(|sealed| {
        let (name, blocks) = (&sealed.disk, sealed.blocks.unreadable);
        format!("{name}: in {blocks} blocks there are ranges that could not be read at the source: they read as zeros")
    }));
    let known = |disk: &&SealedDisk| {
        let base = Base::Array(sealed.clone());
        Known::new(disk, catalogue, (seal.shipment, accepted.seal_digest), disk.bytes, base)
    };
    Ok(Machine {
        site: seal.site.uuid,
        site_name: seal.site.name.clone(),
        inventory: inventory(catalogue, &options.machine)?,
        disks: disks.iter().map(known).collect::<Result<_>>()?,
        places: Vec::new(),
        locks: Vec::new(),
        notes,
        left_out: seal.excluded.iter().any(|disk| disk.machine == options.machine),
    })
}

/// In the order of their names, as those of volumes.
fn disks<'a>(seal: &'a Seal, machine: &'a str) -> impl Iterator<Item = &'a SealedDisk> {
    let mut disks: Vec<&SealedDisk> = seal.disks.iter().filter(|disk| disk.machine == machine).collect();
    disks.sort_by(|a, b| a.disk.cmp(&b.disk));
    disks.into_iter()
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(|| format!("Path {}", path.display()))
}

/// Serves the disks of a drill, after all of `start`'s checks again: in between another array may have been mounted there.
///
/// # Errors
/// It is not the array that the drill was made of, or not trusted any more.
pub fn serve(context: &Context, drill: &Drill, disk: &DrillDisk, at: &SealedArray) -> Result<SealedServer> {
    let seal = Expected::seal(disk.seal.to_string());
    let array = Array::new(&at.array);
    let accepted = trust::accept(context, &array, &at.trust, at.identity.as_deref(), &seal, None)?;
    let wanted: Vec<SealedDisk> = disks(&accepted.seal, &drill.machine).cloned().collect();
    let throttle = Throttle::new(Limits::default());
    let sealed = Sealed::open(context, "drill", &at.array, accepted, &wanted, &throttle)?;
    SealedServer::start(sealed, throttle)
}

/// A disk of it, as QEMU is told to find it.
///
/// # Errors
/// None in practice: the socket is this host's own.
pub fn layer(server: &SealedServer, drill: &Drill, disk: &DrillDisk) -> Result<Layer> {
    let name = format!("{}/{}", drill.machine, disk.name);
    let options = server.uri(&name).block_options();
    let options = options.ok_or_else(|| Error::failed(format!("Disk {name}: expected a way to it, found none")))?;
    Ok(Layer::below(options))
}

/// Writes down what was in the way since this was done last. Says whether there was anything.
pub fn note(server: &SealedServer, course: &mut Course) -> bool {
    let before = (course.unproven_blocks, course.troubles.len());
    course.unproven_blocks = server.sealed().damaged().len() as u64;
    let room = MAX_TROUBLES.saturating_sub(course.troubles.len());
    course.troubles.extend(server.take_notes().into_iter().take(room));
    before != (course.unproven_blocks, course.troubles.len())
}
