//! From what was asked to what will boot: which recovery point, which firmware, on which bus. Everything that can be refused is refused here,
//! before anything is made.

use super::network;
use super::record::{Accel, Bus, Drill, DrillDisk, Firmware};
use crate::context::{Context, now, tool};
use crate::error::{Error, Result};
use crate::ledger::centre::{ImportRow, Phase, VolumeRow};
use crate::source::Facts;
use crate::source::partition::Table;
use crate::trust::open_manifest;
use crate::units::size;
use crate::volume::Place;
use crate::volume::places::Places;
use crate::volume::store::Landed;
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::seal::{Consistency, Seal};
use motiongear_manifest::names::check_text;
use motiongear_manifest::tree::Digest;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The least memory that any system boots in, and the least that is left to this host.
const LEAST_MEMORY_BYTES: u64 = 64 << 20;
const LEFT_TO_HOST_BYTES: u64 = 256 << 20;
/// Most processors: QEMU's own limit for these machines.
const MAX_CPUS: u32 = 255;
/// Most disks: one PCI bus has no more slots to spare.
const MAX_DISKS: usize = 24;
/// Two channels with two disks each.
const MAX_IDE_DISKS: usize = 4;
/// Longest text that is looked for, bytes.
const MAX_MARKER_BYTES: usize = 200;
/// Where distributions keep OVMF: the code, and the variables of a new machine.
const OVMF: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
];

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only of this site.
    pub site: Option<String>,
    /// Which machine.
    pub machine: String,
    /// Text on the serial console that tells that it is up; a login prompt if absent.
    pub marker: Option<String>,
    /// How long that may take, seconds.
    pub within_seconds: u64,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// Its processors.
    pub cpus: u32,
    /// By its disks if absent.
    pub firmware: Option<Firmware>,
    /// As the machine had it if absent.
    pub bus: Option<Bus>,
    /// The best that works if absent.
    pub accel: Option<Accel>,
    /// The name of a bridge; no network if absent.
    pub network: Option<String>,
}

/// What will boot.
pub struct Plan {
    /// As it is written down.
    pub drill: Drill,
    /// Of each disk.
    pub places: Vec<Place>,
    /// Kept from imports until the keeper has them.
    pub locks: Vec<File>,
}

/// A disk, and what is known of it.
struct Known {
    row: VolumeRow,
    import: ImportRow,
    landed: Landed,
    consistency: Consistency,
    boots: (bool, bool),
    transport: Option<String>,
}

/// Looks at everything.
///
/// # Errors
/// The machine is not (fully) imported and proven; its disks cannot boot that way; this host lacks something.
pub fn plan(context: &Context, options: &Options) -> Result<Plan> {
    check(options)?;
    let mut plan_notes = Vec::new();
    let (sealed, known) = disks(context, options, &mut plan_notes)?;
    let mut places = Places::new(&context.clouds);
    let (mut at, mut locks) = (Vec::new(), Vec::new());
    for disk in &known {
        let place = places.of_row(&context.ledger, &disk.row, &disk.import)?;
        if !place.has_recovery_points() {
            locks.push(context.ledger.share_volume(disk.row.disk, &name(&disk.row))?);
        }
        disk.row.is_bound_to(&place.identity(&context.sys)?)?;
        at.push(place);
    }
    let inventory = inventory(&sealed, &options.machine)?;
    let firmware = firmware(options, &known, inventory["firmware"].as_str(), &mut plan_notes)?;
    let bus = bus(options, &known, &mut plan_notes)?;
    let limit = if bus == Bus::Ide { MAX_IDE_DISKS } else { MAX_DISKS };
    if known.len() > limit {
        return Err(Error::usage(format!(
            "Machine {}: expected {limit} disks at most on {}, found {}",
            options.machine,
            bus.word(),
            known.len()
        ))
        .next("give another --disk-bus"));
    }
    let accel = accel(context, options, &mut plan_notes)?;
    let drill = Uuid::new_v4();
    let network = options.network.as_deref().map(|bridge| network::plan(context, bridge, drill, &inventory));
    let fuzzy = known.iter().filter(|disk| disk.consistency == Consistency::Fuzzy).count();
    if fuzzy > 0 {
        plan_notes.push(format!(
            "{fuzzy} disk(s) are fuzzy: what was written while they were copied may be torn, and file systems may need repair"
        ));
    }
    let holes: Vec<&str> =
        known.iter().filter(|disk| disk.import.accepted_unreadable).map(|disk| disk.row.disk_name.as_str()).collect();
    if !holes.is_empty() {
        plan_notes
            .push(format!("{}: what could not be read at the source is zeros here, as was accepted", holes.join(", ")));
    }
    let whole: Vec<&str> = known
        .iter()
        .zip(&at)
        .filter(|(_, place)| !place.has_recovery_points())
        .map(|(disk, _)| disk.row.disk_name.as_str())
        .collect();
    if !whole.is_empty() {
        plan_notes.push(format!(
            "{}: the volume itself is the recovery point, opened read-only; nothing can be imported into it until the drill is off",
            whole.join(", ")
        ));
    }
    let first = &known[0].row;
    let drill = Drill {
        format: 1,
        drill,
        site: first.site,
        site_name: first.site_name.clone(),
        machine: first.machine.clone(),
        disks: known
            .iter()
            .zip(&at)
            .map(|(disk, place)| DrillDisk {
                name: disk.row.disk_name.clone(),
                uuid: disk.row.disk,
                volume: disk.row.named(),
                volume_bytes: disk.row.bytes,
                shipment: disk.import.shipment,
                seal: disk.import.seal,
                generation: disk.import.generation,
                digest: disk.landed.digest,
                point: disk.landed.recovery_point(),
                snapshot: place.has_recovery_points(),
                boots: disk.landed.bootable,
            })
            .collect(),
        marker: options.marker.clone(),
        within_seconds: options.within_seconds,
        memory_bytes: options.memory_bytes,
        cpus: options.cpus,
        firmware,
        bus,
        accel,
        network: network.transpose()?,
        notes: plan_notes,
        made_at: now()?,
        tool: tool(),
    };
    Ok(Plan { drill, places: at, locks })
}

fn check(options: &Options) -> Result<()> {
    if let Some(marker) = &options.marker {
        check_text("Marker", marker, MAX_MARKER_BYTES).map_err(|e| Error::usage(e.to_string()))?;
        if marker.is_empty() {
            return Err(Error::usage("Marker: expected a text, found none"));
        }
    }
    if options.memory_bytes < LEAST_MEMORY_BYTES || !(1..=MAX_CPUS).contains(&options.cpus) {
        return Err(Error::usage(format!(
            "Machine: expected {} of memory at least and 1 to {MAX_CPUS} processors, found {} and {}",
            size(LEAST_MEMORY_BYTES),
            size(options.memory_bytes),
            options.cpus
        )));
    }
    Ok(())
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

    /// What is known of a disk.
    fn look_up(&self, row: VolumeRow, import: ImportRow) -> Result<Known> {
        let refuse =
            |found: String| Error::failed(format!("Disk {}: expected what was sealed, found {found}", name(&row)));
        let sealed = self.seal.disks.iter().find(|sealed| sealed.uuid == row.disk);
        let sealed = sealed.ok_or_else(|| refuse("a seal without it".into()))?;
        if let Some(digest) = import.digest.filter(|digest| *digest != sealed.digest) {
            return Err(refuse(format!("a volume of digest {digest}")));
        }
        let facts = self.catalogue.disks()?.into_iter().find(|disk| disk.uuid == row.disk).map(|disk| disk.facts);
        let facts = facts.unwrap_or_default();
        let landed = Landed::new(import.shipment, spoken_code(&import.seal), sealed, &facts);
        let facts: Facts = serde_json::from_str(&facts).unwrap_or_default();
        Ok(Known {
            consistency: sealed.consistency,
            boots: facts.table.as_ref().map_or((false, false), Table::boots),
            transport: facts.transport,
            row,
            import,
            landed,
        })
    }
}

/// All disks of the machine as the last seal has it, and no others.
fn disks(context: &Context, options: &Options, notes: &mut Vec<String>) -> Result<(Sealed, Vec<Known>)> {
    let mut imported = Vec::new();
    for row in rows(context, options)? {
        let import = import_of(context, &row)?;
        imported.push((row, import));
    }
    let last = imported.iter().max_by_key(|(_, import)| import.id).map(|(_, import)| import.clone());
    let last =
        last.ok_or_else(|| Error::failed(format!("Machine {}: expected a disk, found none", options.machine)))?;
    let sealed = Sealed::open(context, &last)?;
    let mut known = Vec::new();
    for (row, import) in imported {
        if import.seal == sealed.digest {
            known.push(sealed.look_up(row, import)?);
        } else if sealed.seal.disks.iter().any(|disk| disk.uuid == row.disk) {
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
        .filter(|disk| !known.iter().any(|known| known.row.disk == disk.uuid))
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

/// The machine's inventory, as the branch wrote it.
fn inventory(sealed: &Sealed, machine: &str) -> Result<serde_json::Value> {
    let machine = sealed.catalogue.machines()?.into_iter().find(|known| known.name == machine);
    Ok(machine.and_then(|machine| serde_json::from_str(&machine.inventory).ok()).unwrap_or_default())
}

/// What the disks can boot by, or what is wished where they can.
fn firmware(options: &Options, known: &[Known], had: Option<&str>, notes: &mut Vec<String>) -> Result<Firmware> {
    let uefi = known.iter().any(|disk| disk.boots.0);
    let bios = known.iter().any(|disk| disk.boots.1);
    let refuse = |expected: &str, found: &str| {
        Err(Error::failed(format!("Machine {}: expected {expected}, found {found}", options.machine)))
    };
    let chosen = match (options.firmware, uefi, bios) {
        (_, false, false) => {
            return refuse("a disk with a partition to boot from", "none").map_err(|error: Error| {
                error.next("its boot disk was left out at the branch: a machine cannot be drilled without")
            });
        }
        (Some(Firmware::Uefi), false, _) => {
            return refuse("an EFI system partition on one of its disks", "none")
                .map_err(|e| e.next("give --firmware bios"));
        }
        (Some(Firmware::Bios), _, false) => {
            return refuse(
                "an MBR or a BIOS boot partition on one of its disks",
                "none of the two: they boot by UEFI only",
            )
            .map_err(|e| e.next("give --firmware uefi"));
        }
        (Some(wished), ..) => wished,
        (None, true, false) => Firmware::Uefi,
        (None, false, true) => Firmware::Bios,
        (None, true, true) => {
            let chosen = if had == Some("uefi") { Firmware::Uefi } else { Firmware::Bios };
            notes.push(format!(
                "its disks can boot by BIOS and by UEFI: {} was chosen; --firmware chooses",
                chosen.word()
            ));
            chosen
        }
    };
    if chosen == Firmware::Uefi {
        ovmf()?;
    }
    Ok(chosen)
}

/// OVMF's code, and the variables of a new machine.
///
/// # Errors
/// It is not installed.
pub fn ovmf() -> Result<(PathBuf, PathBuf)> {
    let found = OVMF.iter().find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists());
    found.map(|(code, variables)| (code.into(), variables.into())).ok_or_else(|| {
        Error::failed("Firmware uefi: expected OVMF on this host, found none")
            .next("install it (Debian: ovmf; Red Hat: edk2-ovmf; SUSE: qemu-ovmf-x86_64)")
    })
}

fn bus(options: &Options, known: &[Known], notes: &mut Vec<String>) -> Result<Bus> {
    if let Some(bus) = options.bus {
        return Ok(bus);
    }
    Ok(match known.iter().find(|disk| disk.landed.bootable).and_then(|disk| disk.transport.as_deref()) {
        Some("virtio") => Bus::Virtio,
        Some("sata") => Bus::Sata,
        Some("nvme") => Bus::Nvme,
        found => {
            let had = found.unwrap_or("nobody knows which");
            notes.push(format!(
                "its disks hung on another bus ({had}); sata was chosen, for which most systems have a driver; --disk-bus chooses"
            ));
            Bus::Sata
        }
    })
}

/// KVM where it can do all that a machine needs.
fn accel(context: &Context, options: &Options, notes: &mut Vec<String>) -> Result<Accel> {
    let opens = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    // A kernel may offer /dev/kvm without what runs a boot loader's code: only the processor tells.
    let info = context.sys.text("proc/cpuinfo").unwrap_or_default();
    let hardware = info
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| ["vmx", "svm"].contains(&flag)));
    let accel = match (options.accel, opens) {
        (Some(Accel::Kvm), false) => {
            return Err(Error::failed("Machine: expected /dev/kvm to open, found that it does not")
                .next("leave --accel out, or see whether virtualisation is on in this host's firmware"));
        }
        (Some(wished), _) => wished,
        (None, true) if hardware => Accel::Kvm,
        (None, _) => Accel::Tcg,
    };
    if accel == Accel::Tcg {
        notes.push("no KVM on this host: the machine runs some twenty times slower than it will".into());
    }
    let available = context.sys.text("proc/meminfo").unwrap_or_default();
    let kib = available.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = kib.and_then(|line| line.split_whitespace().next()?.parse().ok());
    if let Some(bytes) = kib.and_then(|kib| kib.checked_mul(1024))
        && bytes < options.memory_bytes.saturating_add(LEFT_TO_HOST_BYTES)
    {
        return Err(Error::failed(format!(
            "Machine: expected {} of memory free on this host, and {} to spare, found {}",
            size(options.memory_bytes),
            size(LEFT_TO_HOST_BYTES),
            size(bytes)
        ))
        .next("give it less with --memory, or end another drill"));
    }
    Ok(accel)
}
