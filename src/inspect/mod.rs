//! `motiongear inspect`: this host, its disks, whether each can be copied, how long that takes, and a plan to edit.

pub mod host;
pub mod judge;
mod plan_out;
mod render;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use host::{HostInventory, KnownBy, Nic};
pub use judge::{Reason, Verdict};

use crate::context::Outcome;
use crate::error::Error;
use crate::lang::Lang;
use crate::source::device::Device;
use crate::source::{Facts, Identity, Origin, Source, SysRoot};
use crate::units::MIB;

/// Assumed where no rate was given: what one SATA disk gives a careful reader, bytes per second.
pub const USUAL_RATE: u64 = 150 * MIB;
/// Share of a disk that is typically stored, after zero blocks and zstd; the used share is not known beforehand.
const TYPICAL_PERCENT: u64 = 45;
/// Measured size of one block's row in the live catalogue, in tenths of a byte (design §3: 64.5 bytes).
const ROW_TENTHS: u64 = 645;

/// What to look at and what to assume.
#[derive(Debug, Clone)]
pub struct Options {
    /// Also list removable, optical, loop, RAM and zram disks and partitions.
    pub all: bool,
    /// Disks or image files to look at, instead of all of the host's.
    pub sources: Vec<PathBuf>,
    /// Reading rate for the estimate, bytes per second.
    pub rate: u64,
    /// Block size of the shipment, bytes.
    pub block_bytes: u64,
    /// The transport array, where it is attached already.
    pub array: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options { all: false, sources: Vec::new(), rate: USUAL_RATE, block_bytes: MIB, array: None }
    }
}

/// A host and its disks at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// RFC 3339.
    pub taken_at: String,
    /// The host.
    pub host: HostInventory,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// Devices that were passed over, by the word for why: `optical` → `sr0`.
    pub passed_over: BTreeMap<String, Vec<String>>,
    /// All disks that can be copied, together.
    pub estimate: Estimate,
}

/// One disk and the judgement on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Short name for a plan: the kernel's, or the file's stem.
    pub name: String,
    /// The path to put into a plan: the steadiest link under `/dev/disk/by-id`, else the node.
    pub source: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// None where it could not be opened.
    pub identity: Option<Identity>,
    /// What was found out.
    pub facts: Facts,
    /// The heaviest reason decides.
    pub verdict: Verdict,
    /// Why.
    pub reasons: Vec<Reason>,
    /// This disk alone.
    pub estimate: Estimate,
}

/// What copying would take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// To be read, bytes.
    pub bytes: u64,
    /// Hours of reading at the rate assumed.
    pub hours: f64,
    /// Room on the array if nothing is zero and nothing compresses, with padding, bytes.
    pub array_bytes_at_most: u64,
    /// Room on the array for a usual mixture (45 %), bytes.
    pub array_bytes_typical: u64,
    /// Room in the state directory for the live catalogue, bytes.
    pub state_bytes: u64,
}

impl Estimate {
    /// For a disk of `bytes`, read at `rate`, in blocks of `block_bytes`.
    pub fn of(bytes: u64, rate: u64, block_bytes: u64) -> Estimate {
        let blocks = bytes.div_ceil(block_bytes.max(1));
        // A stored block may cost a header and padding to 4 KiB on top.
        let overhead = blocks.saturating_mul(4096);
        let state = u128::from(blocks) * u128::from(ROW_TENTHS) / 10;
        Estimate {
            bytes,
            hours: bytes as f64 / rate.max(1) as f64 / 3600.0,
            array_bytes_at_most: bytes.saturating_add(overhead),
            array_bytes_typical: u64::try_from(u128::from(bytes) * u128::from(TYPICAL_PERCENT) / 100)
                .unwrap_or(u64::MAX),
            state_bytes: u64::try_from(state).unwrap_or(u64::MAX),
        }
    }

    fn add(self, other: Estimate) -> Estimate {
        Estimate {
            bytes: self.bytes.saturating_add(other.bytes),
            hours: self.hours + other.hours,
            array_bytes_at_most: self.array_bytes_at_most.saturating_add(other.array_bytes_at_most),
            array_bytes_typical: self.array_bytes_typical.saturating_add(other.array_bytes_typical),
            state_bytes: self.state_bytes.saturating_add(other.state_bytes),
        }
    }
}

/// Looks at this host with the usual assumptions.
pub fn inspect(sys: &SysRoot) -> Inspection {
    inspect_with(sys, &Options::default())
}

/// Looks at this host. Never fails: a disk that cannot be opened is a report too.
pub fn inspect_with(sys: &SysRoot, options: &Options) -> Inspection {
    let mut passed_over: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut disks: Vec<DiskReport> = if options.sources.is_empty() {
        let candidates = Device::list(sys).into_iter().filter(|device| match passed(device, options.all) {
            Some(why) => {
                passed_over.entry(why.to_owned()).or_default().push(device.name.clone());
                false
            }
            None => true,
        });
        let found: Vec<Device> = candidates.collect();
        found.iter().map(|device| report(device_path(device), &device.known_as(), Some(device), sys, options)).collect()
    } else {
        let name =
            |path: &PathBuf| path.file_stem().map_or_else(|| "disk".into(), |stem| stem.to_string_lossy().into_owned());
        // A plan is used from wherever the engineer stands then.
        let full = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        options.sources.iter().map(|path| report(full(path), &name(path), None, sys, options)).collect()
    };
    shared_wwns(&mut disks);
    let beside: Vec<_> = disks.iter().map(|disk| (disk.name.as_str(), disk.identity.as_ref(), &disk.facts)).collect();
    let shared = judge::shared(&beside);
    for (disk, reasons) in disks.iter_mut().zip(shared) {
        // One disk by two paths shares all there is: that was said already.
        if !disk.reasons.iter().any(|reason| matches!(reason, Reason::SharedWwn { .. })) {
            disk.reasons.extend(reasons);
        }
    }
    for disk in &mut disks {
        disk.verdict = disk.reasons.iter().map(Reason::verdict).max().unwrap_or(Verdict::Go);
    }
    let copied = disks.iter().filter(|disk| disk.verdict != Verdict::NoGo);
    let estimate = copied.fold(Estimate::default(), |sum, disk| sum.add(disk.estimate));
    Inspection {
        taken_at: jiff::Timestamp::now().to_string(),
        host: HostInventory::gather(sys),
        disks,
        passed_over,
        estimate,
    }
}

/// Why a device is not listed, none where it is.
fn passed(device: &Device, all: bool) -> Option<&'static str> {
    if device.partition_number().is_some() {
        return Some("partition").filter(|_| !all);
    }
    let transport = device.transport().unwrap_or_default();
    let why = match transport.as_str() {
        "loop" if device.bytes() == 0 => return Some("unused loop device"),
        "ram" | "zram" => "memory",
        "loop" => "loop device",
        "optical" => "optical",
        "floppy" => "floppy",
        _ if device.number_of("removable") == Some(1) => "removable",
        // kpartx's partitions of a multipath device are no disks either.
        "dm" if device.mapper_uuid().is_some_and(|uuid| uuid.starts_with("part")) => "partition",
        // LVM volumes, crypt mappings: the disks below them are listed.
        "dm" if device.mapper_uuid().is_none_or(|uuid| !uuid.starts_with("mpath-")) => "on another disk",
        _ => return None,
    };
    (!all).then_some(why)
}

/// The steadiest name: by WWN, else another id, else the node. The node of a recorded tree lies below its root.
fn device_path(device: &Device) -> PathBuf {
    let links = device.links();
    let best = ["disk/by-id/dm-uuid-", "disk/by-id/wwn-", "disk/by-id/nvme-eui", "disk/by-id/", "disk/by-path/"]
        .iter()
        .find_map(|prefix| links.iter().find(|link| link.starts_with(prefix)));
    PathBuf::from(best.map_or_else(|| device.node(), |link| format!("/dev/{link}")))
}

fn report(path: PathBuf, name: &str, device: Option<&Device>, sys: &SysRoot, options: &Options) -> DiskReport {
    let listed = device.is_some();
    let open_at = if listed { sys.path(&path.to_string_lossy()) } else { path.clone() };
    // A link of udev's database may be stale or not there in a rescue system; the node is.
    let elsewhere = Origin::parse(&path.to_string_lossy()).is_ok_and(|origin| origin.path().is_none());
    let looked = match elsewhere {
        true => Err(Error::usage(format!(
            "Source {}: inspect looks at disks and files of this host only; seed --dry-run tells of others",
            path.display()
        ))),
        false => Source::open_path(&open_at, sys),
    };
    let opened = looked.or_else(|error| match device {
        Some(device) => Source::open_path(&sys.path(&device.node()), sys)
            .or_else(|_| Source::open_path(&sys.path(&format!("dev/{}", device.name)), sys)),
        None => Err(error),
    });
    match opened {
        Ok(source) => DiskReport {
            name: source.device.as_ref().map_or_else(|| name.to_owned(), Device::known_as),
            source: path,
            bytes: source.bytes,
            reasons: judge::judge(&source, sys, options.array.as_deref()),
            estimate: Estimate::of(source.bytes, options.rate, options.block_bytes),
            identity: Some(source.identity),
            facts: source.facts,
            verdict: Verdict::Go,
        },
        Err(error) => {
            let mut reasons = judge::by_system(device, sys, options.array.as_deref());
            reasons.push(match device.map(Device::bytes) {
                Some(0) => Reason::Empty, // a card reader without a card
                // The first line names object and cause; what to do next is not ours to say in a list.
                _ => Reason::Unreadable { error: error.to_string().lines().next().unwrap_or_default().to_owned() },
            });
            let bytes = device.map_or(0, Device::bytes);
            DiskReport {
                name: name.to_owned(),
                source: path,
                bytes,
                identity: device.map(|device| Identity::of_device(sys, device, bytes, None)),
                facts: device.map(|device| Facts::without_opening(device, sys)).unwrap_or_default(),
                verdict: Verdict::NoGo,
                reasons,
                estimate: Estimate::default(),
            }
        }
    }
}

/// Two disks of one WWN that no multipath device joins: one of them is enough, and the host should be told.
fn shared_wwns(disks: &mut [DiskReport]) {
    let wwns: Vec<Option<String>> = disks
        .iter()
        .map(|disk| disk.identity.as_ref().filter(|id| id.partition.is_none()).and_then(|id| id.wwn.clone()))
        .collect();
    let names: Vec<String> = disks.iter().map(|disk| disk.name.clone()).collect();
    for (at, disk) in disks.iter_mut().enumerate() {
        let leg = disk.reasons.iter().any(|reason| matches!(reason, Reason::MultipathLeg { .. }));
        let twin = (0..names.len()).find(|other| *other != at && wwns[at].is_some() && wwns[*other] == wwns[at]);
        if let (Some(other), false) = (twin, leg) {
            disk.reasons.push(Reason::SharedWwn { with: names[other].clone() });
        }
    }
}

impl Inspection {
    /// A plan of every disk that can be copied, the others as comments with the reason; to be edited by a person.
    pub fn plan_out(&self, lang: Lang) -> String {
        plan_out::plan(self, lang)
    }

    /// The lines that `inspect` prints.
    pub fn render(&self, lang: Lang) -> String {
        render::render(self, lang)
    }
}

impl Outcome for Inspection {
    fn summary(&self, lang: Lang) -> String {
        self.render(lang)
    }
}
