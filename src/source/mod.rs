//! What a disk is: a raw file, a block device, an export, an image or a disk behind ssh, bound by identity and not by path, opened read-only, never written.
//!
//! [`Source::open`] refuses what is no disk; [`refuse_as_source`] refuses what must not be copied; [`hooks`] make a
//! snapshot to read from. What stands on a disk (tables, superblocks) is untrusted: it is bounded and only ever a fact.

pub mod device;
pub mod hooks;
pub mod identity;
pub mod image;
pub mod origin;
pub mod partition;
pub mod refuse;
pub mod room;
pub mod running;
pub mod served;
pub mod signature;
pub mod stillness;
pub mod tracking;
pub mod vddk;
pub mod watchdog;

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use device::{Device, DeviceNumber, Mount, SysRoot};
pub use identity::{FileIdentity, Identity, SourceKind};
pub use image::Image;
pub use origin::Origin;
pub use partition::{Partition, Table};
pub use refuse::{refuse_as_source, refuse_together};
use running::Live;
use served::Told;
pub use signature::Signature;
pub use stillness::{Stillness, Watch};

use crate::error::{Error, IoContext, Result};
use crate::io::{Access, DirectFile, Probe, ReadAt, Readable};
use crate::nbd::{NbdDisk, Uri, VOLUME};
use crate::qmp::{Drive, Machine, Qmp};
use crate::ssh::SshDisk;

/// Partitions whose superblocks are read; each costs up to 264 KiB of reading.
const PROBE_LIMIT: usize = 256;

/// A disk to copy, opened.
#[derive(Debug)]
pub struct Source {
    /// Opened read-only, O_DIRECT where the file system takes it.
    pub disk: Arc<dyn Readable>,
    /// Size in bytes.
    pub bytes: u64,
    /// What makes it this disk.
    pub identity: Identity,
    /// What was found out about it.
    pub facts: Facts,
    /// As given.
    pub origin: Origin,
    /// Its place in sysfs; none for files and exports.
    pub device: Option<Device>,
    /// The machine that serves it by `motiongear serve`, as that tells; none for all others.
    pub host: Option<serde_json::Value>,
    sys: SysRoot,
}

/// What tells a disk that is none of this host from others.
struct Far<'a> {
    kind: SourceKind,
    name: String,
    transport: &'a str,
}

impl<'a> Far<'a> {
    fn new(kind: SourceKind, name: String, transport: &'a str) -> Far<'a> {
        Far { kind, name, transport }
    }
}

/// What is known of a disk; goes into the manifest as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What the path resolved to when it was opened; an export's URI, an image with its format, a
    /// place behind ssh.
    pub resolved: PathBuf,
    /// The kernel's name, `sda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_name: Option<String>,
    /// Smallest unit that the disk addresses, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_sector_bytes: Option<u32>,
    /// Unit that the disk writes, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_sector_bytes: Option<u32>,
    /// Spinning (true) or solid state; virtual disks often claim to spin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    /// Vendor's name of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `sata`, `nvme`, `sas`, `fibre channel`, `usb`, `virtio`, `dm`, `nbd`, `qcow2`, `ssh` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// Can be taken out.
    #[serde(default)]
    pub removable: bool,
    /// Links below `/dev` that mean this disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// The partition table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Table>,
    /// What lies on the disk as a whole (a file system without partitions, a PV …).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contents: Vec<Signature>,
    /// What lies in its partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Where it, or anything on it, is mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Swap areas in use on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub swaps: Vec<PathBuf>,
    /// Devices stacked on it (`dm-0`, `md1` …) .
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<String>,
    /// What could not be read or made no sense.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What lies in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The partition's number.
    pub partition: u32,
    /// Superblocks found in it.
    pub contents: Vec<Signature>,
}

impl Source {
    /// Opens it read-only and finds out what it is. A disk of 0 bytes is a disk.
    ///
    /// # Errors
    /// As [`Source::open_path`]; an export or machine that cannot be reached; an image that cannot be read.
    pub fn open(origin: &Origin, sys: &SysRoot) -> Result<Source> {
        match origin {
            Origin::Path(path) => Self::open_path(path, sys)?.raw(),
            Origin::Nbd(uri) => {
                let several = "the server must take several clients at once: qemu-nbd --shared 8; then run the same command again";
                let disk = NbdDisk::open(uri)?;
                if uri.tls.as_ref().is_some_and(|tls| tls.pin.is_some()) {
                    return Self::of_served(origin, disk, uri, sys);
                }
                Self::of_export(origin, disk, Far::new(SourceKind::Nbd, uri.canonical(), "nbd"), sys)
                    .map_err(|error| error.next(several))
            }
            Origin::Image(image) => {
                let disk = NbdDisk::served_by(image.serve()?, image::EXPORT)?;
                Self::of_export(origin, disk, Far::new(SourceKind::Image, image.to_string(), image.format()), sys)
            }
            Origin::Ssh(place) => {
                let (disk, probe) = SshDisk::open(place)?;
                let (cached, host, inode) = (disk.is_cached(), disk.host(), disk.inode());
                let far = Far::new(SourceKind::Ssh, place.to_string(), "ssh");
                let mut source = Self::far(origin, Arc::new(disk), &probe, far, sys)?;
                source.identity.machine = Some(place.machine().to_owned());
                source.identity.host = host;
                // Its file system has no number that this host would know.
                source.identity.file = inode.map(|inode| FileIdentity {
                    device: DeviceNumber::from_raw(0),
                    inode,
                    born_nanoseconds: None,
                });
                if cached {
                    source.facts.notes.push("Read through the page cache of its machine".into());
                }
                Ok(source)
            }
            Origin::Machine(drive) => {
                let machine = Machine::look(&mut Qmp::connect(&drive.socket)?)?;
                let found = machine.find(drive)?;
                let known_as = Drive { socket: drive.canonical_socket(), disk: found.name().to_owned() };
                Ok(Self::of_machine(origin, &known_as.to_string(), found.bytes, sys))
            }
            Origin::Domain(disk) => {
                let (known_as, bytes) = disk.look()?;
                Ok(Self::of_machine(origin, &known_as, bytes, sys))
            }
            Origin::Vddk(vm) => {
                let disk = NbdDisk::served_by(vm.serve()?, "").map_err(|error| vm.explain(error))?;
                let far = Far::new(SourceKind::Vddk, vm.known_as(), "vmware");
                let mut source = Self::of_export(origin, disk, far, sys)?;
                source.identity.machine = Some(format!("{}/{}", vm.server, vm.vm));
                Ok(source)
            }
            Origin::Rbd(image) => {
                let (_, id) = image.look()?;
                let disk = NbdDisk::served_by(image.serve()?, VOLUME)?;
                let far = Far::new(SourceKind::Rbd, image.spec(), "rbd");
                let mut source = Self::of_export(origin, disk, far, sys)?;
                source.identity.serial = Some(id);
                Ok(source)
            }
        }
    }

    /// A disk that a machine writes to: what stands on it is known once there is a snapshot.
    fn of_machine(origin: &Origin, known_as: &str, bytes: u64, sys: &SysRoot) -> Source {
        let facts = Facts { resolved: origin.to_string().into(), transport: Some("qemu".into()), ..Facts::default() };
        let identity = Identity::of_export(SourceKind::Machine, known_as.to_owned(), bytes, None);
        let disk = Arc::new(Live { origin: origin.clone(), bytes });
        Source { disk, bytes, identity, facts, origin: origin.clone(), device: None, host: None, sys: sys.clone() }
    }

    /// A disk that another machine serves: it is what that machine says it is, wherever it is reached.
    fn of_served(origin: &Origin, disk: NbdDisk, uri: &Uri, sys: &SysRoot) -> Result<Source> {
        let bytes = disk.bytes()?;
        let Told { identity, facts, host, .. } = served::ask(uri, bytes)?;
        disk.rest();
        let facts = Facts { resolved: origin.to_string().into(), ..facts };
        let (disk, origin, host) = (Arc::new(disk), origin.clone(), Some(host));
        Ok(Source { disk, bytes, identity, facts, origin, device: None, host, sys: sys.clone() })
    }

    fn of_export(origin: &Origin, disk: NbdDisk, far: Far<'_>, sys: &SysRoot) -> Result<Source> {
        // While the first session lasts: who takes one client only is found now, and not in the middle of the copy.
        let probe = disk.probe()?;
        let disk = Arc::new(disk);
        let source = Self::far(origin, disk.clone(), &probe, far, sys);
        disk.rest();
        source
    }

    /// Of a disk that is none of this host; `probe` reads what stands on it.
    fn far(origin: &Origin, disk: Arc<dyn Readable>, probe: &Probe, far: Far<'_>, sys: &SysRoot) -> Result<Source> {
        let bytes = disk.bytes()?;
        let resolved = origin.to_string().into();
        let mut facts = Facts { resolved, transport: Some(far.transport.into()), ..Facts::default() };
        facts.read(probe, bytes, true);
        if let Some(error) = probe.failed().filter(|error| disk.is_lost(error)) {
            // Without its table it would seem to be another disk.
            return Err(Error::io(format!("Source {origin}: looking at what stands on it"), error)
                .next("run the same command again"));
        }
        let mut identity = Identity::of_export(far.kind, far.name, bytes, facts.table.as_ref());
        identity.contents = facts.content_ids();
        Ok(Source { disk, bytes, identity, facts, origin: origin.clone(), device: None, host: None, sys: sys.clone() })
    }

    /// Refuses what is no raw disk but holds one: its bytes are not the disk's.
    fn raw(self) -> Result<Source> {
        let Some(wrapped) = self.facts.contents.iter().find(|found| found.is_wrapped_image()) else { return Ok(self) };
        let kind = wrapped.kind.replace('-', " ");
        Err(Error::usage(format!("Source {}: expected a raw disk, found what looks like a {kind}", self.origin))
            .next(Image::hint(&wrapped.kind, &self.facts.resolved)))
    }

    /// Opens a raw file or block device.
    ///
    /// # Errors
    /// The path is missing or unreadable, or names something that is no disk: a directory, pipe, character device, socket.
    pub fn open_path(path: &Path, sys: &SysRoot) -> Result<Source> {
        let resolved = path
            .canonicalize()
            .context(|| format!("Source {}", path.display()))
            .map_err(|error| error.next("'motiongear inspect' lists the disks of this host"))?;
        let meta = std::fs::metadata(&resolved).context(|| format!("Source {}", path.display()))?;
        let device = disk_kind(path, &resolved, &meta, sys)?;
        // The facts are read through the page cache. O_NONBLOCK: whatever was swapped in since, opening must not hang.
        let probe = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&resolved)
            .context(|| format!("Source {}: opening read-only", path.display()))?;
        let opened = probe.metadata().context(|| format!("Source {}", path.display()))?;
        let file = DirectFile::open(&resolved, Access::Read)?;
        let direct = rustix::fs::fstat(file.as_fd()).context(|| format!("Source {}", path.display()))?;
        let looked_at = (meta.dev(), meta.ino(), meta.rdev());
        if [(opened.dev(), opened.ino(), opened.rdev()), (direct.st_dev, direct.st_ino, direct.st_rdev)]
            != [looked_at; 2]
        {
            return Err(Error::failed(format!(
                "Source {}: expected the device that was looked at, found another in its place",
                path.display()
            ))
            .next("Run the command again"));
        }
        let bytes = match &device {
            Some(device) if !sys.is_live() => device.bytes(),
            _ => file.bytes()?,
        };
        let facts = Facts::gather(&probe, bytes, &resolved, device.as_ref(), sys);
        let mut identity = match &device {
            Some(device) => Identity::of_device(sys, device, bytes, facts.table.as_ref()),
            None if meta.file_type().is_block_device() => Identity::of_bare_device(&meta, bytes, facts.table.as_ref()),
            None => Identity::of_file(&opened),
        };
        if identity.kind == SourceKind::BlockDevice {
            identity.contents = facts.content_ids();
        }
        let origin = Origin::Path(path.to_owned());
        Ok(Source { disk: Arc::new(file), bytes, identity, facts, origin, device, host: None, sys: sys.clone() })
    }

    /// Opens the disk that `recorded` means, once more.
    ///
    /// # Errors
    /// As [`Source::open`]; it is another by now.
    pub fn open_same(origin: &Origin, sys: &SysRoot, recorded: &Identity) -> Result<Arc<dyn Readable>> {
        let source = Self::open(origin, sys)?;
        source.expect_identity(recorded)?;
        Ok(source.disk)
    }

    /// Opens it anew, reads the identity again and compares: the disk may have been swapped, resized or
    /// repartitioned since.
    ///
    /// # Errors
    /// It is gone, or another disk; says what was expected and found.
    pub fn recheck(&self) -> Result<()> {
        let now = Source::open(&self.origin, &self.sys)?;
        self.expect(&self.identity, &now.identity)
    }

    /// Whether this opened source is the disk that `recorded` (from ledger or plan) means.
    ///
    /// # Errors
    /// It is another; says what was expected and found.
    pub fn expect_identity(&self, recorded: &Identity) -> Result<()> {
        self.expect(recorded, &self.identity)
    }

    fn expect(&self, recorded: &Identity, found: &Identity) -> Result<()> {
        recorded.same_disk(found).map_err(|difference| {
            let next = match self.origin {
                Origin::Path(_) => {
                    "Give the path under /dev/disk/by-id of the disk that was meant; 'motiongear inspect' shows identities"
                }
                Origin::Nbd(_) | Origin::Image(_) => "Name the export or image of the disk that was meant",
                Origin::Ssh(_) => "Name the machine and path of the disk that was meant",
                Origin::Machine(_) | Origin::Domain(_) => "Name the machine's monitor and the disk that was meant",
                Origin::Rbd(_) => "Name the image or snapshot that was meant: rbd info tells their ids",
                Origin::Vddk(_) => "Name the server, machine and file of the disk that was meant",
            };
            Error::failed(format!("Source {} is not the same disk any more: {difference}", self.origin)).next(next)
        })
    }

    /// Of which point in time it is, where it is of one by itself: a text that no other has.
    pub fn point_in_time(&self) -> Option<String> {
        match &self.origin {
            // Its identity has the snapshot's own id.
            Origin::Rbd(image) if image.snapshot.is_some() => self.identity.serial.clone(),
            Origin::Vddk(disk) => {
                disk.snapshot.as_ref().map(|snapshot| format!("{}/{}@{snapshot}", disk.server, disk.vm))
            }
            _ => None,
        }
    }

    /// What to look at to see whether it is written to.
    pub fn watch(&self) -> Watch {
        let beside = (self.origin.clone(), self.facts.resolved.clone(), self.bytes);
        Watch::new(beside, self.device.clone(), self.host.is_some(), self.sys.clone())
    }

    /// Where this source's facts come from.
    pub fn sys(&self) -> &SysRoot {
        &self.sys
    }
}

/// The device behind the path, none for a regular file; an error for what is no disk.
fn disk_kind(path: &Path, resolved: &Path, meta: &Metadata, sys: &SysRoot) -> Result<Option<Device>> {
    let kind = meta.file_type();
    if kind.is_block_device() {
        // Without sysfs (a container) only the number is left; `Identity::of_bare_device` takes it.
        return Ok(Device::by_number(sys, DeviceNumber::from_raw(meta.rdev())));
    }
    if kind.is_file() {
        // A recorded tree has no device nodes: a regular file under its /dev stands for the device of that name.
        let name = resolved.file_name().and_then(|name| name.to_str());
        let in_tree = !sys.is_live() && sys.path("dev").canonicalize().is_ok_and(|dev| resolved.starts_with(dev));
        return Ok(name.filter(|_| in_tree).and_then(|name| Device::by_name(sys, name)));
    }
    let found = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a character device",
    };
    Err(Error::usage(format!("Source {}: expected a block device or a raw image file, found {found}", path.display()))
        .next("'motiongear inspect' lists the disks of this host"))
}

impl Identity {
    /// Of a block device that sysfs does not know: its number, size and table are all there is.
    fn of_bare_device(meta: &Metadata, bytes: u64, table: Option<&Table>) -> Identity {
        let mut identity = Identity::blank(SourceKind::BlockDevice, bytes);
        identity.number = Some(DeviceNumber::from_raw(meta.rdev()));
        identity.table = table.and_then(Table::id);
        identity
    }
}

impl Facts {
    /// Everything that can be found out without writing. Unreadable things become notes: facts never fail a copy.
    fn gather(file: &File, bytes: u64, resolved: &Path, device: Option<&Device>, sys: &SysRoot) -> Facts {
        let mut facts = Facts { resolved: resolved.to_owned(), ..Facts::default() };
        if let Some(device) = device {
            facts.of_device(device, sys);
        }
        if device.is_none() && sys.is_live() {
            // An image file may be attached and mounted; as much a live disk as any.
            if let Some(device) = Device::showing(sys, resolved) {
                facts.in_use(&device, sys);
                facts.holders.insert(0, device.name.clone());
            }
        }
        // Inside a partition a "table" is a boot sector's leftovers.
        let whole = device.is_none_or(|device| device.partition_number().is_none());
        facts.read(file, bytes, whole);
        facts
    }

    /// What stands on the disk; its table where it is a `whole` one.
    fn read(&mut self, disk: &dyn ReadAt, bytes: u64, whole: bool) {
        if whole {
            match partition::read_table(disk, bytes, self.logical_sector_bytes) {
                Ok(table) => {
                    // An image tells its sectors by nothing but where its table lies.
                    let by_table = table.as_ref().map(|table| table.sector_bytes).filter(|bytes| *bytes != 512);
                    self.logical_sector_bytes = self.logical_sector_bytes.or(by_table);
                    self.table = table;
                }
                Err(error) => self.notes.push(format!("The first sector is unreadable: {error}")),
            }
        }
        match signature::probe(disk, 0, bytes) {
            Ok(found) => self.contents = found,
            Err(error) => self.notes.push(format!("The head of the disk is unreadable: {error}")),
        }
        let partitions = self.table.as_ref().map(|table| table.partitions.clone()).unwrap_or_default();
        if partitions.len() > PROBE_LIMIT {
            self.notes
                .push(format!("Only the first {PROBE_LIMIT} of {} partitions were looked into", partitions.len()));
        }
        for part in partitions.iter().take(PROBE_LIMIT) {
            let Some(room) = bytes.checked_sub(part.start).filter(|room| *room > 0) else { continue };
            match signature::probe(disk, part.start, part.bytes.min(room)) {
                Ok(found) if found.is_empty() => {}
                Ok(contents) => self.volumes.push(Volume { partition: part.number, contents }),
                Err(error) => self.notes.push(format!("Partition {} is unreadable at its head: {error}", part.number)),
            }
        }
    }

    /// What the system says of a device that could not be opened: all but what stands on it.
    pub fn without_opening(device: &Device, sys: &SysRoot) -> Facts {
        let mut facts = Facts::default();
        facts.of_device(device, sys);
        facts
    }

    fn of_device(&mut self, device: &Device, sys: &SysRoot) {
        let whole = device.whole();
        let sector = |name: &str| whole.number_of(name).and_then(|bytes| u32::try_from(bytes).ok());
        self.kernel_name = Some(device.name.clone());
        self.logical_sector_bytes = sector("queue/logical_block_size");
        self.physical_sector_bytes = sector("queue/physical_block_size");
        self.rotational = whole.number_of("queue/rotational").map(|value| value != 0);
        let vendor = whole.attribute("device/vendor").filter(|vendor| vendor != "ATA" && !vendor.starts_with("0x"));
        let model = whole.attribute("device/model");
        self.model = match (vendor, model) {
            (Some(vendor), Some(model)) => Some(format!("{vendor} {model}")),
            (_, model) => model,
        };
        self.transport = device.transport();
        self.removable = whole.number_of("removable") == Some(1);
        self.links = device.links();
        self.in_use(device, sys);
    }

    /// Who uses the device or anything on it.
    fn in_use(&mut self, device: &Device, sys: &SysRoot) {
        let whole = device.whole();
        let stack = device.and_above();
        self.holders = stack.iter().filter(|d| d.whole().number != whole.number).map(|d| d.name.clone()).collect();
        let on_stack = |found: &Device| stack.iter().any(|device| device.number == found.number);
        self.mounts = device::mounts_of(sys, &stack);
        self.swaps = device::swaps(sys)
            .into_iter()
            .filter(|path| Device::by_path(sys, path).is_some_and(|device| on_stack(&device)))
            .collect();
    }

    /// What tells this disk from others by what lies on it, sorted.
    pub fn content_ids(&self) -> Vec<String> {
        let ids = self.signatures().filter_map(|found| Some(format!("{}:{}", found.kind, found.uuid.as_ref()?)));
        let mut ids: Vec<String> = ids.collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// Every signature on the disk and in its partitions.
    pub fn signatures(&self) -> impl Iterator<Item = &Signature> {
        self.contents.iter().chain(self.volumes.iter().flat_map(|volume| &volume.contents))
    }
}
