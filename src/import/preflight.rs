//! Plan and preflight: everything that can be known before a byte is written.

use super::Options;
use crate::array::Array;
use crate::context::{Context, now};
use crate::error::{Error, IoContext, Result};
use crate::io::tree::if_there;
use crate::ledger::centre::{FINISHED, ImportRow, Phase, VolumeRow};
use crate::openstack::server::ServerPlan;
use crate::source::{Identity, SourceKind};
use crate::trust::Accepted;
use crate::units::size;
use crate::volume::completed::expect_known;
use crate::volume::demand::{self, ToMake};
use crate::volume::local::Sidecar;
use crate::volume::places::Places;
use crate::volume::readback::Counts;
use crate::volume::store::Landed;
use crate::volume::target::{Target, Wish};
use crate::volume::{Place, Store, Volume, refuse, store};
use motiongear_manifest::catalogue::{Disk, Generation};
use motiongear_manifest::code::name_code;
use motiongear_manifest::documents::seal::SealedDisk;
use motiongear_manifest::geometry::Geometry;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What would be done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// Each selected disk.
    pub disks: Vec<DiskPlan>,
    /// What the machines are to be in the cloud, as the plan says.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<String, ServerPlan>,
    /// What people should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What would be done with one disk.
#[derive(Debug, Clone, Serialize)]
pub struct DiskPlan {
    /// MACHINE/DISK.
    pub name: String,
    /// File or device.
    pub volume: String,
    /// Size of the disk, bytes.
    pub bytes: u64,
    /// Bytes that are stored as data at most.
    pub data_bytes: u64,
    /// `create`, `overwrite`, `resume at block N`, `redo damaged`, `look: imported already` …
    pub what: String,
}

/// A disk that may be imported, with its volume checked and not yet touched.
pub struct Prepared {
    pub name: String,
    pub sealed: SealedDisk,
    pub generation: Generation,
    pub geometry: Geometry,
    pub place: Place,
    pub volume_row: VolumeRow,
    /// What the ledger knows of this very import.
    pub import: Option<ImportRow>,
    /// The raw file is to be made.
    pub create: bool,
    pub template: ImportRow,
    pub sidecar: Sidecar,
    /// What the volume holds once all is proven.
    pub landed: Landed,
    /// Held until the end: two imports of one disk exclude each other.
    pub lock: Arc<File>,
}

/// Checks everything; returns the plan, and what is needed to carry it out.
pub(super) fn check(
    context: &Context,
    options: &Options,
    array: &Array,
    accepted: &Accepted,
) -> Result<(Plan, Vec<Prepared>)> {
    let generations = accepted.catalogue.generations()?;
    let disks = accepted.catalogue.disks()?;
    let (mut plan, mut prepared, mut paths) = (Plan::default(), Vec::new(), BTreeMap::new());
    let mut places = Places::new(context);
    plan.notes = expect_named(options, accepted)?;
    for sealed in &accepted.seal.disks {
        let name = format!("{}/{}", sealed.machine, sealed.disk);
        let wish = options.target.wish(&sealed.machine, &sealed.disk);
        // Devices and exports are named one by one: naming some selects them.
        let Some(wish) = wish.filter(|_| options.selects(&sealed.machine, &sealed.disk)) else { continue };
        let lack = |what: &str| Error::untrusted(format!("Manifest: expected {what} of disk {name}, found none"));
        let generation = generations.iter().find(|g| g.disk == sealed.id && g.number == sealed.generation);
        let generation = generation.ok_or_else(|| lack("the sealed generation"))?.clone();
        let disk = disks.iter().find(|d| d.uuid == sealed.uuid).ok_or_else(|| lack("a row"))?.clone();
        let geometry = Geometry::new(sealed.bytes, sealed.block_bytes)?;
        let disk =
            one(context, options, array, accepted, sealed.clone(), disk, generation, geometry, (wish, &mut places))?;
        if let Some(other) = paths.insert(disk.volume_row.location.clone(), disk.name.clone()) {
            return Err(Error::usage(format!(
                "Volume {}: expected one disk for it, found {other} and {}",
                disk.volume_row.location, disk.name
            )));
        }
        plan.disks.push(DiskPlan {
            name: disk.name.clone(),
            volume: disk.volume_row.location.clone(),
            bytes: sealed.bytes,
            data_bytes: data_bytes(&disk),
            what: what(&disk),
        });
        prepared.push(disk);
    }
    if prepared.is_empty() {
        return Err(options.nothing_selected());
    }
    let servers = options.servers.iter().flatten().filter(|(machine, server)| plan.has(machine) && !server.is_empty());
    plan.servers = servers.map(|(machine, server)| (machine.clone(), server.clone())).collect();
    let work = prepared.iter().any(|disk| disk.import.as_ref().is_none_or(|import| import.phase != Phase::Done));
    if work {
        packs(options, array, accepted)?;
        space(&prepared)?;
        plan.notes.extend(room_in_clouds(&places, &prepared)?);
        plan.notes.extend(servers_in_clouds(&plan, &prepared)?);
    }
    Ok((plan, prepared))
}

/// That what was named is there; and of a plan, that it says of every disk where it goes. Returns what people should know.
fn expect_named(options: &Options, accepted: &Accepted) -> Result<Vec<String>> {
    let Target::Each(wishes) = &options.target else { return Ok(Vec::new()) };
    let disks = &accepted.seal.disks;
    let mut notes = Vec::new();
    for ((machine, disk), wish) in wishes {
        let named =
            |sealed: &SealedDisk| sealed.machine == *machine && disk.as_ref().is_none_or(|disk| sealed.disk == *disk);
        if disks.iter().any(named) {
            continue;
        }
        // One plan may be for all shipments of a branch, but a disk that a machine does not have is a slip.
        if options.servers.is_some() && !disks.iter().any(|sealed| sealed.machine == *machine) {
            notes.push(format!("the plan names machine {machine}, of which this shipment has no disk"));
            continue;
        }
        let disk = disk.as_ref().map(|disk| format!("/{disk}")).unwrap_or_default();
        return Err(Error::usage(format!(
            "Target {}:{machine}{disk}: expected a disk of shipment {}, found no such disk in it",
            wish.kind(),
            accepted.seal.shipment
        )));
    }
    notes.dedup();
    let forgotten = disks.iter().filter(|sealed| options.selects(&sealed.machine, &sealed.disk));
    let forgotten: Vec<String> = forgotten
        .filter(|sealed| options.target.wish(&sealed.machine, &sealed.disk).is_none())
        .map(|sealed| format!("{}/{}", sealed.machine, sealed.disk))
        .collect();
    match options.servers.is_some() && !forgotten.is_empty() {
        true => Err(Error::usage(format!(
            "Plan: expected to read where every disk of shipment {} goes, found nothing of {}",
            accepted.seal.shipment,
            forgotten.join(", ")
        ))
        .next("name them in the plan, or choose what to import with --machine or --disk")),
        false => Ok(notes),
    }
}

fn what(disk: &Prepared) -> String {
    match &disk.import {
        None if disk.create => "create".into(),
        None => "overwrite".into(),
        Some(import) => match import.phase {
            Phase::Done => "look: imported already".into(),
            Phase::Damaged => "read damaged blocks again".into(),
            Phase::Unreadable => "nothing, unless --accept-unreadable".into(),
            Phase::Planned | Phase::Writing => format!("resume at block {}", import.mark),
            Phase::Written | Phase::Reading => format!("resume reading back at block {}", import.readback_mark),
            Phase::Proven | Phase::Releasing => "release head and tail".into(),
            Phase::Released => "take its recovery point".into(),
        },
    }
}

#[allow(clippy::too_many_arguments)]
fn one(
    context: &Context,
    options: &Options,
    array: &Array,
    accepted: &Accepted,
    sealed: SealedDisk,
    disk: Disk,
    generation: Generation,
    geometry: Geometry,
    (wish, places): (&Wish, &mut Places<'_>),
) -> Result<Prepared> {
    let name = format!("{}/{}", sealed.machine, sealed.disk);
    let ledger = &context.ledger;
    let lock = ledger.lock_volume(sealed.uuid, &name)?;
    let site = &accepted.seal.site;
    let place = places.of(wish, super::owner(context, accepted, &sealed))?;
    let location = place.to_string();
    if let Some(path) = place.path() {
        context.refuse_on(array.mount(), "Volume", path)?;
    }
    let found = find(context, places, &place)?;
    let identity = found.as_ref().map(|found| found.identity(context)).transpose()?;
    owner(context, &sealed, &place, identity.as_ref())?;
    if let Some(Found::Stored(there)) = &found {
        store::of_site(&location, there, &super::owner(context, accepted, &sealed))?;
    }
    let known = ledger.volume(sealed.uuid)?;
    if let Some(row) = known.as_ref().filter(|row| row.site != site.uuid) {
        return Err(Error::untrusted(format!(
            "Disk {name}: expected site {} {}, whose disk it is by this ledger, found site {} {}",
            row.site_name, row.site, site.name, site.uuid
        ))
        .next("another site claims this disk: keep the array, and ask both branches"));
    }
    let mut known = known_here(known, &location, identity.as_ref(), &name, options.overwrite)?;
    if let (Some(row), Some(Found::Stored(there))) = (&known, &found)
        && known_identity(row).is_none()
        && !there.may_be_of(&super::owner(context, accepted, &sealed))
    {
        // Planned here, and made by another ledger since.
        known = None;
    }
    let own_file = place.own_file();
    // What MotionGear makes may be missing.
    let own = own_file.is_some() || place.store().is_some();
    if let Some(path) = own_file {
        sidecar_fits(path, &sealed, site.uuid)?;
    } else if found.is_none() && !own {
        return Err(Error::failed(format!("Volume {location}: expected a device or file, found none")));
    }
    if known.is_some() && found.is_some() && !options.overwrite {
        let completed = match &found {
            Some(Found::Stored(found)) => found.completed.clone(),
            _ => place.completed()?,
        };
        expect_known(ledger, &place, sealed.uuid, completed)?;
    }
    let import = match &known {
        Some(_) => ledger.import(sealed.uuid, accepted.seal.shipment, accepted.seal_digest)?,
        None => None,
    };
    let import = if options.overwrite { not_again(context, import)? } else { import };
    // A complete disk had its say.
    if !options.accept_sector_size && import.as_ref().is_none_or(|import| import.phase < Phase::Released) {
        let device = place.path().filter(|_| found.is_some()).map(std::fs::metadata).transpose();
        let device = device.context(|| format!("Volume {location}"))?.is_some_and(|meta| meta.rdev() != 0);
        match place.path().filter(|_| device) {
            Some(path) => refuse::other_sectors(path, &disk.facts, &name, &context.sys)?,
            None => refuse::large_sectors(&location, &disk.facts, &name)?,
        }
    }
    let mut import = import;
    let mut create = false;
    let mut bytes = sealed.bytes;
    if let Some(found) = &found {
        bytes = found.bytes();
        // A raw file whose making was cut short is grown when it is opened in earnest.
        let half_made = own_file.is_some() && import.as_ref().is_some_and(|import| import.phase == Phase::Planned);
        let grows = own_file.is_some() && (half_made || import.is_none());
        if bytes < sealed.bytes && !grows {
            return Err(Error::failed(format!(
                "Volume {location}: expected at least {} bytes for {name}, found {bytes}",
                sealed.bytes
            ))
            .next("name a larger volume"));
        }
        // Of a raw file that this import began to make nothing but zeros was written yet, and it counts on them.
        let begun = import.as_ref().filter(|_| half_made).map(|import| import.id);
        let made_here = begun.is_some() && known.as_ref().and_then(|known| known.fresh_for) == begun;
        let first_byte = match found {
            Found::Opened(volume) if made_here => refuse::first_byte(&**volume, context.engine)?,
            _ => None,
        };
        // Nothing was written there but zeros, so nothing tells it from another volume but that it holds no data.
        let unwritten = import.as_ref().is_some_and(|import| import.phase == Phase::Planned) && !made_here;
        if let (true, false, Found::Opened(volume)) = (unwritten, options.overwrite, found)
            && ledger.imports_of(sealed.uuid)? == 1
            && let Some(what) = refuse::find_data(&**volume, context.engine)?
        {
            return Err(foreign(&location, &what));
        }
        if let Some(byte) = first_byte {
            if !options.overwrite {
                return Err(foreign(&location, &format!("other bytes than zero from byte {byte}")));
            }
            import = None;
        } else if import.is_none() {
            held_data(context, options, found, (&location, known.is_some()), &sealed, accepted)?;
        }
    } else {
        let lost = import.as_ref().is_some_and(|import| import.phase != Phase::Planned);
        if lost && !options.overwrite {
            let what = if own_file.is_some() { "raw file" } else { "volume" };
            return Err(Error::failed(format!("Volume {location}: expected the {what} of {name}, found none"))
                .next("bring it back, or import everything again with --overwrite"));
        }
        if lost {
            import = None;
        }
        create = true;
    }
    let at = now()?;
    let volume_row = VolumeRow {
        disk: sealed.uuid,
        site: site.uuid,
        site_name: site.name.clone(),
        machine: sealed.machine.clone(),
        disk_name: sealed.disk.clone(),
        kind: place.kind().into(),
        location,
        identity: json(&identity)?,
        bytes: bytes.max(sealed.bytes),
        project: place.store().and_then(|store| store.project()),
        fresh_for: known.as_ref().and_then(|known| known.fresh_for),
        assigned_at: known.map_or(at, |known| known.assigned_at),
    };
    let template = ImportRow {
        id: 0,
        disk: sealed.uuid,
        shipment: accepted.seal.shipment,
        seal: accepted.seal_digest,
        generation: sealed.generation,
        bytes: sealed.bytes,
        block_bytes: sealed.block_bytes,
        phase: Phase::Planned,
        mark: 0,
        readback: options.readback,
        readback_mark: 0,
        counts: Counts::default(),
        through_cache: false,
        digest: None,
        accepted_unreadable: false,
        began_at: at,
        written_at: None,
        finished_at: None,
        recovery_point: None,
    };
    let sidecar = Sidecar {
        format: 1,
        site: site.uuid,
        site_name: site.name.clone(),
        machine: sealed.machine.clone(),
        disk: sealed.uuid,
        disk_name: sealed.disk.clone(),
        bytes: sealed.bytes,
        created_at: at,
        tool: crate::context::tool(),
        completed: None,
    };
    let code = name_code(&accepted.seal_digest);
    let mut landed = Landed::new(accepted.seal.shipment, code, &sealed, &disk.facts);
    landed.server = options.servers.as_ref().and_then(|servers| servers.get(&sealed.machine)).cloned();
    Ok(Prepared {
        name,
        sealed,
        generation,
        geometry,
        place,
        volume_row,
        import,
        create,
        template,
        sidecar,
        landed,
        lock: Arc::new(lock),
    })
}

/// A complete import that is not to be done once more although that is wished: a later one took its place, or the very run that wished
/// it completed this disk and was interrupted at another one.
fn not_again(context: &Context, import: Option<ImportRow>) -> Result<Option<ImportRow>> {
    let ledger = &context.ledger;
    let Some(import) = import else { return Ok(None) };
    if import.phase != Phase::Done || ledger.last_import(import.disk)?.is_some_and(|last| last.id != import.id) {
        return Ok(Some(import));
    }
    let runs = ledger.runs(import.shipment, import.seal, u32::MAX)?;
    let interrupted = runs.last().filter(|run| run.ending.as_deref() != Some(FINISHED));
    let by_it = interrupted.is_some_and(|run| import.finished_at.is_some_and(|at| at >= run.began_at));
    Ok(Some(import).filter(|_| by_it))
}

/// What is at a place.
enum Found {
    Opened(Arc<dyn Volume>),
    /// Volumes of clouds are opened when they are needed: that is seen there.
    Stored(Box<store::Found>),
}

impl Found {
    fn identity(&self, context: &Context) -> Result<Identity> {
        match self {
            Found::Opened(volume) => volume.identity(&context.sys),
            Found::Stored(found) => Ok(found.identity.clone()),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Found::Opened(volume) => volume.bytes(),
            Found::Stored(found) => found.bytes,
        }
    }
}

/// Looks what is there, and that nothing uses it.
fn find(context: &Context, places: &Places<'_>, place: &Place) -> Result<Option<Found>> {
    if let Some(store) = place.store().cloned() {
        let found = places.patiently(&place.to_string(), move || store.find())?;
        return Ok(found.map(|found| Found::Stored(Box::new(found))));
    }
    if !place.exists()? {
        return Ok(None);
    }
    if let Some(path) = place.path() {
        refuse::in_use(path, &context.sys)?;
    }
    place.open(None).map(|volume| Some(Found::Opened(volume)))
}

pub(super) fn json(identity: &Option<Identity>) -> Result<String> {
    serde_json::to_string(identity).map_err(|e| Error::failed("Identity of a volume").because(e))
}

fn known_identity(row: &VolumeRow) -> Option<Identity> {
    serde_json::from_str::<Option<Identity>>(&row.identity).ok().flatten()
}

/// Whether a ledger row means this very volume.
fn is_same(row: &VolumeRow, location: &str, identity: Option<&Identity>) -> bool {
    match (known_identity(row), identity) {
        (Some(known), Some(found)) if known.same_volume(found).is_ok() => true,
        (
            Some(Identity { kind: SourceKind::File, file: Some(known), .. }),
            Some(Identity { file: Some(found), .. }),
        ) => row.location == location && known.same_at_path(found),
        (Some(_), Some(_)) => false,
        // A raw file that is not there yet, or is gone: only its name is left.
        _ => row.location == location,
    }
}

/// One volume belongs to one disk for ever.
fn owner(context: &Context, sealed: &SealedDisk, place: &Place, identity: Option<&Identity>) -> Result<()> {
    let location = place.to_string();
    for row in context.ledger.volumes()? {
        let taken = is_same(&row, &location, identity) || (place.own_file().is_some() && row.location == location);
        if row.disk != sealed.uuid && taken {
            return Err(Error::failed(format!(
                "Volume {location}: expected one for {}/{} ({}), found that of {}/{} ({}) of site {}",
                sealed.machine, sealed.disk, sealed.uuid, row.machine, row.disk_name, row.disk, row.site_name
            ))
            .next("a volume belongs to one disk for ever; name another"));
        }
    }
    Ok(())
}

/// The disk's volume, if it is this one; a disk whose volume is elsewhere is refused.
fn known_here(
    known: Option<VolumeRow>,
    location: &str,
    identity: Option<&Identity>,
    name: &str,
    overwrite: bool,
) -> Result<Option<VolumeRow>> {
    let Some(row) = known else { return Ok(None) };
    if is_same(&row, location, identity) {
        return Ok(Some(row));
    }
    let gone = |of_exports| row.location == location || Place::is_gone(&row.kind, &row.location, of_exports);
    if overwrite && gone(true) {
        return Ok(None);
    }
    let next = if gone(false) {
        "bring it back; or give the disk a new volume with --overwrite"
    } else if gone(true) {
        "its server does not serve it now: start it and import there; only if it is lost for good, --overwrite gives the disk a new volume"
    } else {
        "import there; for another copy use restore"
    };
    Err(Error::failed(format!(
        "Disk {name}: expected its volume {} ({}), found {location}",
        row.location,
        identity_text(&row)
    ))
    .next(next))
}

fn identity_text(row: &VolumeRow) -> String {
    known_identity(row).map_or_else(|| "not made yet".into(), |identity| identity.summary())
}

fn sidecar_fits(path: &Path, sealed: &SealedDisk, site: uuid::Uuid) -> Result<()> {
    let Some(sidecar) = Sidecar::read(path)? else { return Ok(()) };
    if sidecar.disk == sealed.uuid && sidecar.site == site {
        return Ok(());
    }
    Err(Error::failed(format!(
        "Volume {}: expected one for disk {} of site {site}, found that of disk {} of site {} ({})",
        path.display(),
        sealed.uuid,
        sidecar.disk,
        sidecar.site_name,
        sidecar.site
    ))
    .next("a volume belongs to one disk for ever; name another directory"))
}

/// Refuses a volume with data that this import did not write.
fn held_data(
    context: &Context,
    options: &Options,
    found: &Found,
    (location, ours): (&str, bool),
    sealed: &SealedDisk,
    accepted: &Accepted,
) -> Result<()> {
    if options.overwrite {
        return Ok(());
    }
    let last = if ours { context.ledger.last_import(sealed.uuid)? } else { None };
    if let Some(last) = last {
        // A later seal of the same shipment takes the place of the earlier one.
        if last.shipment == accepted.seal.shipment {
            return Ok(());
        }
        return Err(Error::failed(format!(
            "Volume {}: expected an empty one, found generation {} of shipment {}, whose import began at {}; this one was sealed at {}",
            location,
            last.generation,
            last.shipment,
            last.began_at,
            accepted.seal.sealed_at
        ))
        // A truck may be overtaken by the next one.
        .next("make sure that this is the newer copy: --overwrite replaces what is there"));
    }
    let what = match found {
        Found::Opened(volume) => refuse::find_data(&**volume, context.engine)?,
        // Only an import makes one of this mark or name.
        Found::Stored(found) => return Err(store::of_another(location, found)),
    };
    what.map_or(Ok(()), |what| Err(foreign(location, &what)))
}

fn foreign(location: &str, what: &str) -> Error {
    Error::failed(format!(
        "Volume {location}: expected an empty one, found data that this ledger did not write: {what}"
    ))
    .next("name another volume; --overwrite destroys what is on this one")
}

fn packs(options: &Options, array: &Array, accepted: &Accepted) -> Result<()> {
    if options.accept_missing_packs {
        return Ok(());
    }
    for pack in &accepted.seal.packs {
        let path = array.file(&pack.file);
        let found = match if_there(array.tree()?.open_file(&pack.file))?.map(|file| file.metadata()) {
            Some(Ok(meta)) if meta.len() == pack.bytes => continue,
            Some(Ok(meta)) => format!("{} bytes", meta.len()),
            Some(Err(error)) => error.to_string(),
            None => "none".into(),
        };
        return Err(Error::failed(format!(
            "Pack {}: expected a file of {} bytes, found {found}",
            path.display(),
            pack.bytes
        ))
        .next(
            "nothing was written; 'motiongear verify ARRAY' lists what is lost. --accept-missing-packs imports the rest, with the lost blocks listed as damaged",
        ));
    }
    Ok(())
}

/// Types, quotas and room for what is to be made; returns what people should know.
fn room_in_clouds(places: &Places<'_>, disks: &[Prepared]) -> Result<Vec<String>> {
    let mut rooms: BTreeMap<(&str, String), (&Arc<dyn Store>, Vec<ToMake>)> = BTreeMap::new();
    for disk in disks.iter().filter(|disk| disk.create) {
        if let Some(store) = disk.place.store() {
            let room = rooms.entry((store.kind(), store.room())).or_insert_with(|| (store, Vec::new()));
            room.1.push(ToMake { bytes: disk.sealed.bytes, data: data_bytes(disk) });
        }
    }
    let demand = |(store, volumes): (&Arc<dyn Store>, Vec<ToMake>)| {
        let (name, store) = (store.location(), store.clone());
        places.patiently(&name, move || store.demand(&volumes))
    };
    let demands = rooms.into_values().map(demand).collect::<Result<Vec<_>>>()?;
    let (needs, notes): (Vec<_>, Vec<_>) = demands.into_iter().map(|demand| (demand.needs, demand.notes)).unzip();
    demand::expect_met(needs.into_iter().flatten())?;
    Ok(notes.into_iter().flatten().collect())
}

/// What the machines are to be whose import begins, where their disks go; returns what people should know.
fn servers_in_clouds(plan: &Plan, disks: &[Prepared]) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (machine, server) in &plan.servers {
        // All disks of a machine that a cloud attaches to it are in that cloud.
        let begins = |disk: &&Prepared| disk.sealed.machine == *machine && disk.import.is_none();
        let store = disks.iter().filter(begins).find_map(|disk| disk.place.store());
        if let Some(store) = store {
            notes.extend(store.expect_server(machine, server)?);
        }
    }
    Ok(notes)
}

fn data_bytes(disk: &Prepared) -> u64 {
    let blocks = disk.sealed.blocks.stored + disk.sealed.blocks.unreadable;
    (blocks * u64::from(disk.sealed.block_bytes)).min(disk.sealed.bytes)
}

/// Raw files need room for what is stored in them; what they hold already counts.
fn space(disks: &[Prepared]) -> Result<()> {
    let mut needs: BTreeMap<u64, (u64, PathBuf)> = BTreeMap::new();
    for disk in disks {
        let Some(path) = disk.place.own_file() else { continue };
        let held = std::fs::metadata(path).map_or(0, |meta| meta.blocks().saturating_mul(512));
        let existing = path.ancestors().find(|part| part.exists()).unwrap_or(Path::new("/")).to_owned();
        let meta = std::fs::metadata(&existing).context(|| format!("Target {}", existing.display()))?;
        let need = needs.entry(meta.dev()).or_insert((0, existing));
        need.0 = need.0.saturating_add(data_bytes(disk).saturating_sub(held));
    }
    for (need, path) in needs.into_values() {
        let stat = rustix::fs::statvfs(&path).context(|| format!("Target {}", path.display()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < need {
            return Err(Error::failed(format!(
                "Target {}: expected {} free, found {} ({need} and {free} bytes)",
                path.display(),
                size(need),
                size(free)
            ))
            .next("make room, or import fewer disks at a time with --machine or --disk"));
        }
    }
    Ok(())
}
