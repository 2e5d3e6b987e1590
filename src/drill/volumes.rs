//! Machines that were imported: their recovery points, and the way from one to the bytes that a drill boots.

use super::plan::{Known, Machine, Options, inventory};
use super::record::{Base, Drill, DrillDisk};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::ledger::centre::{ImportRow, Phase, VolumeRow};
use crate::trust::open_manifest;
use crate::volume::Place;
use crate::volume::completed::expect_known;
use crate::volume::layer::Layer;
use crate::volume::look::look;
use crate::volume::places::Places;
use crate::volume::store::Landed;
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::code::{name_code, spoken_code};
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::seal::{Seal, SealedDisk};
use motiongear_manifest::tree::Digest;
use std::collections::BTreeSet;
use std::fs::File;
use uuid::Uuid;

/// The machine as it was imported last.
///
/// # Errors
/// It is not, or not fully, or not all of it under one seal; a volume is not what it was.
pub fn find(context: &Context, options: &Options) -> Result<Machine> {
    let mut notes = Vec::new();
    let (sealed, imported) = disks(context, options, &mut notes)?;
    let mut places = Places::new(context);
    let (mut at, mut locks, mut known, mut whole, mut holes) = (vec![], vec![], vec![], vec![], vec![]);
    for (row, import) in &imported {
        let place = places.of_row(&context.ledger, row, import)?;
        if !place.has_recovery_points() {
            locks.push(context.ledger.share_volume(row.disk, &name(row))?);
            whole.push(row.disk_name.as_str());
        }
        if import.accepted_unreadable {
            holes.push(row.disk_name.as_str());
        }
        row.is_bound_to(&place.identity(&context.sys)?)?;
        expect_known(&context.ledger, &place, row.disk, place.completed()?)?;
        // Of a snapshot the cloud answers; a volume itself may have been written to since.
        if !place.has_recovery_points()
            && let Some(fault) = look(context, &mut places, row, import)?.fault()
        {
            notes.push(format!("{}: {fault}", row.disk_name));
        }
        known.push(sealed.look_up(row, import, place.has_recovery_points())?);
        at.push(place);
    }
    if !holes.is_empty() {
        notes
            .push(format!("{}: what could not be read at the source is zeros here, as was accepted", holes.join(", ")));
    }
    if !whole.is_empty() {
        notes.push(format!(
            "{}: the volume itself is the recovery point, opened read-only; nothing can be imported into it until the drill is off",
            whole.join(", ")
        ));
    }
    let Some((first, _)) = imported.first() else { return Err(no_disk(options)) };
    Ok(Machine {
        site: first.site,
        site_name: first.site_name.clone(),
        inventory: inventory(&sealed.catalogue, &options.machine)?,
        disks: known,
        places: at,
        locks,
        notes,
        left_out: sealed.seal.excluded.iter().any(|disk| disk.machine == options.machine),
    })
}

/// Opens the recovery point of a disk for its drill; a lock on the volume where imports would change it comes along.
///
/// # Errors
/// It is not what the drill was made of any more; there is no way to its bytes.
pub fn layer(
    context: &Context,
    places: &mut Places<'_>,
    drill: &Drill,
    disk: &DrillDisk,
    point: &str,
) -> Result<(Layer, Option<File>)> {
    let ledger = &context.ledger;
    let name = format!("{}/{}", drill.machine, disk.name);
    let gone = || {
        Error::failed(format!("Disk {name}: expected the import that the drill was made of, found another"))
            .next("end this drill and start another")
    };
    let snapshot = matches!(disk.base, Base::Snapshot { .. });
    let lock = if snapshot { None } else { Some(ledger.share_volume(disk.uuid, &name)?) };
    let row = ledger.volume(disk.uuid)?.ok_or_else(gone)?;
    let import = ledger.import(disk.uuid, disk.shipment, disk.seal)?.ok_or_else(gone)?;
    let last = ledger.last_import(disk.uuid)?;
    // Of a snapshot later imports change nothing.
    if import.phase != Phase::Done || !snapshot && last.is_none_or(|last| last.id != import.id) {
        return Err(gone());
    }
    Ok((places.of_row(ledger, &row, &import)?.layer(point, drill.drill)?, lock))
}

/// Where the volume of a disk is whose recovery point a drill was made of.
///
/// # Errors
/// It was given up since; its cloud does not let us in.
pub fn place(context: &Context, places: &mut Places<'_>, drill: &Drill, disk: &DrillDisk) -> Result<Place> {
    let ledger = &context.ledger;
    let found = (ledger.volume(disk.uuid)?, ledger.import(disk.uuid, disk.shipment, disk.seal)?);
    // A volume that was given up since took its clones' way with it; the mark on them is looked for where it was.
    let (Some(row), Some(import)) = found else {
        return Err(Error::failed(format!(
            "Disk {}/{}: expected its volume in the ledger, found none",
            drill.machine, disk.name
        ))
        .next(format!("look in the cloud for volumes marked motiongear_drill = {}", drill.drill)));
    };
    places.of_row(ledger, &row, &import)
}

/// The machine's volumes, in the order of their names.
fn rows(context: &Context, options: &Options) -> Result<Vec<VolumeRow>> {
    let of_site = |row: &VolumeRow| options.site.as_deref().is_none_or(|site| site == row.site_name);
    let rows: Vec<VolumeRow> =
        context.ledger.volumes()?.into_iter().filter(|row| row.machine == options.machine && of_site(row)).collect();
    let sites: BTreeSet<Uuid> = rows.iter().map(|row| row.site).collect();
    let names: BTreeSet<&str> = rows.iter().map(|row| row.site_name.as_str()).collect();
    match sites.len() {
        1 => Ok(rows),
        0 => {
            Err(Error::failed(format!("Machine {}: expected one that was imported here, found none", options.machine))
                .next("'motiongear ledger show' lists volumes; --state DIR names another ledger"))
        }
        _ => Err(Error::usage(format!(
            "Machine {}: expected one, found one in each of the sites {}",
            options.machine,
            names.into_iter().collect::<Vec<_>>().join(", ")
        ))
        .next(format!("write SITE/{}", options.machine))),
    }
}

fn name(row: &VolumeRow) -> String {
    format!("{}/{}", row.machine, row.disk_name)
}

/// The import of a disk, which must be complete: nothing unverified ever boots.
fn import_of(context: &Context, row: &VolumeRow) -> Result<ImportRow> {
    let refuse = |found: String| {
        Error::failed(format!("Disk {}: expected a complete import of it, found {found}", name(row)))
            .next("run its 'motiongear import' to the end first: nothing boots that is not proven")
    };
    let import = context.ledger.last_import(row.disk)?.ok_or_else(|| refuse("none".into()))?;
    match import.phase {
        Phase::Done => Ok(import),
        phase => Err(refuse(format!("one that is {}", serde_json::json!(phase).as_str().unwrap_or_default()))),
    }
}

/// The seal of a machine's last import, and the manifest that it pins.
struct Sealed {
    digest: Digest,
    seal: Seal,
    catalogue: Catalogue,
}

impl Sealed {
    fn open(context: &Context, import: &ImportRow) -> Result<Sealed> {
        let seals = context.ledger.accepted_seals(import.shipment)?;
        let known = seals.into_iter().find(|known| known.digest == import.seal).ok_or_else(|| {
            Error::failed(format!("Shipment {}: expected its seal in the ledger, found none", import.shipment))
                .next("restore the state directory from a backup")
        })?;
        let seal = Seal::parse(&known.document)?;
        let path = context.ledger.import_dir(import.shipment).join("manifest.db");
        let catalogue = open_manifest(&path, &seal, false)?;
        Ok(Sealed { digest: import.seal, seal, catalogue })
    }

    fn disk(&self, uuid: Uuid) -> Option<&SealedDisk> {
        self.seal.disks.iter().find(|sealed| sealed.uuid == uuid)
    }

    /// What is known of a disk.
    fn look_up(&self, row: &VolumeRow, import: &ImportRow, snapshot: bool) -> Result<Known> {
        let refuse =
            |found: String| Error::failed(format!("Disk {}: expected what was sealed, found {found}", name(row)));
        let sealed = self.disk(row.disk).ok_or_else(|| refuse("a seal without it".into()))?;
        if let Some(digest) = import.digest.filter(|digest| *digest != sealed.digest) {
            return Err(refuse(format!("a volume of digest {digest}")));
        }
        let volume = row.named();
        let point = Landed::new(import.shipment, name_code(&import.seal), sealed, "").recovery_point();
        let base = if snapshot { Base::Snapshot { volume, point } } else { Base::Volume { volume, point } };
        Known::new(sealed, &self.catalogue, (import.shipment, import.seal), row.bytes, base)
    }
}

/// All disks of the machine as the last seal has it, and no others, with their imports.
fn disks(
    context: &Context,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<(Sealed, Vec<(VolumeRow, ImportRow)>)> {
    let mut imported = Vec::new();
    for row in rows(context, options)? {
        let import = import_of(context, &row)?;
        imported.push((row, import));
    }
    let last = imported.iter().max_by_key(|(_, import)| import.id).map(|(_, import)| import.clone());
    let last = last.ok_or_else(|| no_disk(options))?;
    let sealed = Sealed::open(context, &last)?;
    let mut known = Vec::new();
    for (row, import) in imported {
        if import.seal == sealed.digest {
            known.push((row, import));
        } else if sealed.disk(row.disk).is_some() {
            return Err(Error::failed(format!(
                "Machine {}: expected all disks under seal {}, found {} under {}",
                row.machine,
                spoken_code(&sealed.digest),
                row.disk_name,
                spoken_code(&import.seal)
            ))
            .next("import the same shipment for all of them"));
        } else {
            notes.push(format!("{}: no disk of the machine any more in its last shipment; left out", row.disk_name));
        }
    }
    let of_machine = sealed.seal.disks.iter().filter(|disk| disk.machine == options.machine);
    let missing: Vec<&str> = of_machine
        .filter(|disk| !known.iter().any(|(row, _)| row.disk == disk.uuid))
        .map(|disk| disk.disk.as_str())
        .collect();
    match missing.is_empty() {
        true => Ok((sealed, known)),
        false => Err(Error::failed(format!(
            "Machine {}: expected all disks of its shipment imported, found no import of {}",
            options.machine,
            missing.join(", ")
        ))
        .next("import them, too")),
    }
}

fn no_disk(options: &Options) -> Error {
    Error::failed(format!("Machine {}: expected a disk, found none", options.machine))
}
