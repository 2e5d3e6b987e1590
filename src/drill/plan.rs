//! From what was asked to what will boot: which disks, which firmware, on which bus. Everything that can be refused is refused here,
//! before anything is made.

use super::record::{Accel, Adapt, Base, Bus, Compute, Drill, DrillDisk, Firmware, SealedArray};
use super::{adapt, array, network, nova, volumes};
use crate::context::{Context, now, tool};
use crate::error::{Error, Result};
use crate::source::Facts;
use crate::source::partition::{Loader, Table};
use crate::trust::Expected;
use crate::units::size;
use crate::volume::Place;
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::documents::seal::{Consistency, SealedDisk};
use motiongear_manifest::names::check_text;
use motiongear_manifest::tree::Digest;
use serde_json::Value;
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
    /// The sealed array that its disks are on; imported volumes if absent.
    pub from: Option<From>,
    /// Text on the serial console that tells that it is up; a login prompt if absent.
    pub marker: Option<String>,
    /// How long that may take, seconds.
    pub within_seconds: u64,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// Its processors.
    pub cpus: u32,
    /// Name of the disk that firmware tries first; the most likely one if absent.
    pub boot_disk: Option<String>,
    /// How long it may take to adapt the clone before it boots, seconds; it boots as it is if absent.
    pub adapt: Option<u64>,
    /// By its disks if absent.
    pub firmware: Option<Firmware>,
    /// As the machine had it if absent; what it is adapted to, where it is.
    pub bus: Option<Bus>,
    /// The best that works if absent.
    pub accel: Option<Accel>,
    /// The name of a bridge; no network if absent.
    pub network: Option<String>,
    /// The cloud's compute service runs it; QEMU on this host if absent.
    pub through: Option<Through>,
}

/// What the compute service of the cloud in which the volumes are is asked for.
#[derive(Debug, Clone)]
pub struct Through {
    /// Name or id of the flavour, which says memory and processors; that of the plan of its import if absent.
    pub flavour: Option<String>,
}

/// A sealed array to boot from.
#[derive(Debug, Clone)]
pub struct From {
    /// Which, and by what it is opened.
    pub sealed: SealedArray,
    /// By what the seal is known to be the one that left the branch.
    pub expected: Expected,
}

/// What will boot.
pub struct Plan {
    /// As it is written down.
    pub drill: Drill,
    /// Where clones are made, one for each disk; none where nothing is made.
    pub places: Vec<Place>,
    /// Kept from imports until the keeper has them.
    pub locks: Vec<File>,
}

/// A machine that was found.
pub struct Machine {
    /// The site's UUID.
    pub site: Uuid,
    /// For people.
    pub site_name: String,
    /// As the branch wrote it.
    pub inventory: Value,
    /// All of its disks.
    pub disks: Vec<Known>,
    /// Where clones are made of them; none where nothing is.
    pub places: Vec<Place>,
    /// Kept from imports until the keeper has them.
    pub locks: Vec<File>,
    /// What people should know.
    pub notes: Vec<String>,
    /// Whether disks of it were left out at the branch.
    pub left_out: bool,
}

/// A disk, and what is known of it.
pub struct Known {
    /// As it is written down.
    pub disk: DrillDisk,
    consistency: Consistency,
    /// For UEFI and for BIOS.
    loaders: (Loader, Loader),
    transport: Option<String>,
    /// Nothing but zeros.
    blank: bool,
    /// It was read as a block device of the host that seeded it.
    was_device: bool,
}

impl Known {
    /// A sealed disk, with what the manifest has of it.
    ///
    /// # Errors
    /// The manifest cannot be read.
    pub fn new(
        sealed: &SealedDisk,
        catalogue: &Catalogue,
        (shipment, seal): (Uuid, Digest),
        bytes: u64,
        base: Base,
    ) -> Result<Known> {
        let facts = catalogue.disks()?.into_iter().find(|disk| disk.uuid == sealed.uuid).map(|disk| disk.facts);
        // What cannot be read is not known.
        let facts: Facts = facts.and_then(|facts| serde_json::from_str(&facts).ok()).unwrap_or_default();
        let loaders = facts.table.as_ref().map_or((Loader::None, Loader::None), Table::loaders);
        let disk = DrillDisk {
            name: sealed.disk.clone(),
            uuid: sealed.uuid,
            base,
            bytes,
            shipment,
            seal,
            generation: sealed.generation,
            digest: sealed.digest,
            boots: loaders.0.max(loaders.1) > Loader::None,
        };
        Ok(Known {
            disk,
            consistency: sealed.consistency,
            loaders,
            transport: facts.transport,
            blank: sealed.blocks.stored == 0 && sealed.blocks.unreadable == 0,
            was_device: facts.kernel_name.is_some(),
        })
    }
}

/// Looks at everything.
///
/// # Errors
/// The machine is not (fully) imported and proven, or its array is not trusted; its disks cannot boot that way; this host lacks something.
pub fn plan(context: &Context, options: &Options) -> Result<Plan> {
    check(options)?;
    let Machine { site, site_name, inventory, disks: known, places, locks, mut notes, left_out } = match &options.from {
        Some(from) => array::find(context, options, from)?,
        None => volumes::find(context, options)?,
    };
    let firmware = firmware(options, &known, left_out, inventory["firmware"].as_str(), &mut notes)?;
    let boot_disk = boot_disk(options, &known, firmware, &mut notes)?;
    let flavour = match &options.through {
        Some(through) => Some(nova::find(context, through, (site, &options.machine), &places)?),
        None => None,
    };
    let bus = match &flavour {
        None => bus(options, &known, &mut notes)?,
        Some(_) => bus_of_volume(&known, &mut notes),
    };
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
    let (accel, cpus, memory_bytes) = match &flavour {
        None => (accel(context, options, &mut notes)?, options.cpus, options.memory_bytes),
        Some(flavour) => (Accel::Nova, flavour.cpus, flavour.memory_bytes),
    };
    let adapt = match options.adapt {
        Some(within_seconds) => Some(Adapt { by: adapt::find()?, within_seconds }),
        None => None,
    };
    let drill = Uuid::new_v4();
    let own = is_own_inventory(&inventory, &options.machine, &known);
    let nics = if own { inventory["nics"].as_array().map_or(&[][..], Vec::as_slice) } else { &[] };
    let network = options.network.as_deref().map(|name| network::plan(context, name, drill, nics, &mut notes));
    let fuzzy = known.iter().filter(|disk| disk.consistency == Consistency::Fuzzy).count();
    if fuzzy > 0 {
        notes.push(format!(
            "{fuzzy} disk(s) are fuzzy: what was written while they were copied may be torn, and file systems may need repair"
        ));
    }
    let drill = Drill {
        format: 1,
        drill,
        site,
        site_name,
        machine: options.machine.clone(),
        disks: known.into_iter().map(|known| known.disk).collect(),
        boot_disk: Some(boot_disk),
        marker: options.marker.clone(),
        within_seconds: options.within_seconds,
        memory_bytes,
        cpus,
        firmware,
        bus,
        accel,
        compute: flavour.map(|flavour| Compute { flavour: flavour.id, flavour_name: flavour.name }),
        network: network.transpose()?,
        adapt,
        notes,
        made_at: now()?,
        tool: tool(),
    };
    Ok(Plan { drill, places, locks })
}

fn check(options: &Options) -> Result<()> {
    if let Some(marker) = &options.marker {
        check_text("Marker", marker, MAX_MARKER_BYTES).map_err(|e| Error::usage(e.to_string()))?;
        if marker.is_empty() {
            return Err(Error::usage("Marker: expected a text, found none"));
        }
    }
    if options.through.is_some() && (options.from.is_some() || options.network.is_some()) {
        return Err(Error::usage(
            "Drill: expected imported volumes and no network with --through nova, found otherwise",
        )
        .next("leave --from and --network out, or --through"));
    }
    if options.through.is_some() && options.adapt.is_some() {
        return Err(Error::usage("Drill: expected --adapt with QEMU on this host only, found it with --through nova")
            .next("the clone of a cloud is never written to here: leave one of the two out"));
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

/// The machine's inventory, as the branch wrote it.
///
/// # Errors
/// The manifest cannot be read.
pub fn inventory(catalogue: &Catalogue, machine: &str) -> Result<Value> {
    let machine = catalogue.machines()?.into_iter().find(|known| known.name == machine);
    Ok(machine.and_then(|machine| serde_json::from_str(&machine.inventory).ok()).unwrap_or_default())
}

/// What the disks can boot by, or what is wished where they can.
fn firmware(
    options: &Options,
    known: &[Known],
    left_out: bool,
    had: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Firmware> {
    let uefi = known.iter().any(|disk| disk.loaders.0 > Loader::None);
    let bios = known.iter().any(|disk| disk.loaders.1 > Loader::None);
    let refuse = |expected: &str, found: &str| {
        Err(Error::failed(format!("Machine {}: expected {expected}, found {found}", options.machine)))
    };
    let chosen = match (options.firmware, uefi, bios) {
        (_, false, false) => {
            let blank: Vec<&str> = known.iter().filter(|disk| disk.blank).map(|disk| disk.disk.name.as_str()).collect();
            let blank = match blank.is_empty() {
                true => String::new(),
                false => format!("; {} is blank: all zeros", blank.join(", ")),
            };
            let error = Error::failed(format!(
                "Machine {}: none of its disks has anything to boot from{blank}",
                options.machine
            ));
            return Err(match left_out {
                true => error.next("Disks were left out at the branch. Bring the boot disk in another shipment"),
                false => error.next("Check at the branch whether this machine boots from a disk that was not seeded"),
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
        // The volume says nothing of it then, and this is what compute services do.
        (None, true, true) if options.through.is_some() => Firmware::Bios,
        (None, true, true) => {
            let chosen = if had == Some("uefi") { Firmware::Uefi } else { Firmware::Bios };
            notes.push(format!(
                "its disks can boot by BIOS and by UEFI: {} was chosen; --firmware chooses",
                chosen.word()
            ));
            chosen
        }
    };
    if chosen == Firmware::Uefi && options.through.is_none() {
        ovmf()?;
    }
    Ok(chosen)
}

/// Which disk firmware tries first: the one that was asked for, else the first of those that most likely have a loader for it.
fn boot_disk(options: &Options, known: &[Known], firmware: Firmware, notes: &mut Vec<String>) -> Result<String> {
    let loader = |disk: &Known| if firmware == Firmware::Uefi { disk.loaders.0 } else { disk.loaders.1 };
    let names = || known.iter().map(|disk| disk.disk.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(wished) = &options.boot_disk {
        return match known.iter().find(|disk| disk.disk.name == *wished) {
            Some(disk) => Ok(disk.disk.name.clone()),
            None => Err(Error::usage(format!("Machine {}: it has no disk {wished:.50}", options.machine))
                .next(format!("Pass --boot-disk with one of: {}", names()))),
        };
    }
    let best = known.iter().map(loader).max().unwrap_or(Loader::None);
    let mut likely = known.iter().filter(|disk| loader(disk) == best).map(|disk| disk.disk.name.clone());
    let first = likely.next().ok_or_else(|| Error::failed(format!("Machine {}: it has no disks", options.machine)))?;
    let others: Vec<String> = likely.collect();
    if !others.is_empty() {
        notes.push(format!(
            "boots from {first}; {} may have a boot loader, too; --boot-disk chooses",
            others.join(", ")
        ));
    }
    Ok(first)
}

/// Whether an inventory is the machine's own. A host that seeds image files books its own facts for machines that it is not.
fn is_own_inventory(inventory: &Value, machine: &str, known: &[Known]) -> bool {
    match inventory["known_by"].as_str() {
        // By looking, which is not written down.
        None => inventory["hostname"] == machine || known.iter().any(|disk| disk.was_device),
        Some("nobody") => false,
        Some(_) => true,
    }
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
    if options.adapt.is_some() {
        return Ok(Bus::Virtio);
    }
    Ok(match known.iter().find(|disk| disk.disk.boots).and_then(|disk| disk.transport.as_deref()) {
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

/// As the import wrote it on the volume that boots; of what it does not know compute services think that it is virtio.
fn bus_of_volume(known: &[Known], notes: &mut Vec<String>) -> Bus {
    match known.iter().find(|disk| disk.disk.boots).and_then(|disk| disk.transport.as_deref()) {
        Some("sata") => Bus::Sata,
        Some("virtio") => Bus::Virtio,
        found => {
            let had = found.unwrap_or("nobody knows which");
            notes.push(format!(
                "its disks hung on another bus ({had}); the cloud takes virtio unless hw_disk_bus on the volume says otherwise"
            ));
            Bus::Virtio
        }
    }
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
