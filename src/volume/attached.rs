//! A cloud volume on a host that is itself a server of that cloud: Compute attaches it, and this host's kernel gets a disk. Which one, the disk's
//! serial number says: it is the volume's id, of which a virtio disk has the first 20 characters.
//! Source: virtio specification 1.2, 5.2.4 (block device id); Nova's libvirt driver, which writes the id as the disk's serial.

use super::Volume;
use super::local::LocalVolume;
use crate::copy::patience::{Medium, Patient};
use crate::error::{Error, Result};
use crate::io::{Access, DirectFile, Engine};
use crate::openstack::Session;
use crate::source::{Device, Identity, SysRoot};
use std::any::Any;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a virtio disk has room for of a serial number, bytes.
const VIRTIO_SERIAL: usize = 20;
/// How long a kernel may take to find the disk once the cloud says that it is there.
const APPEARS_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);
/// Where a server of a cloud finds its own id: in its firmware, or where cloud-init wrote it.
const OWN_ID: [&str; 2] = ["sys/class/dmi/id/product_uuid", "var/lib/cloud/data/instance-id"];

/// Which server of the cloud this host is.
///
/// # Errors
/// It is none that this cloud knows; the cloud does not answer.
pub fn own_server(session: &Session, sys: &SysRoot) -> Result<String> {
    let ids = OWN_ID.iter().filter_map(|path| sys.text(path));
    let ids: Vec<String> = ids.map(|id| id.trim().to_lowercase()).filter(|id| is_uuid(id)).collect();
    for id in &ids {
        if session.server(id)?.is_some() {
            return Ok(id.clone());
        }
    }
    let found = if ids.is_empty() { "no id of one here".to_owned() } else { ids.join(", ") };
    Err(Error::failed(format!("Cloud {}: expected that this host is one of its servers, found {found}", session.cloud()))
        .next("name the server that this host is: attach=UUID; or leave attach= out where this host reaches the storage itself"))
}

/// Whether `id` may stand in a path as the id of a server.
pub fn is_uuid(id: &str) -> bool {
    id.len() == 36 && uuid::Uuid::parse_str(id).is_ok()
}

/// The disk that is the volume `id`, of `bytes`, if it is there by now.
///
/// # Errors
/// There are two, or it has another size: then it is another's.
pub fn find_device(sys: &SysRoot, id: &str, bytes: u64) -> Result<Option<PathBuf>> {
    let short = id.get(..VIRTIO_SERIAL).unwrap_or(id);
    let links = [
        format!("virtio-{short}"),
        format!("scsi-0QEMU_QEMU_HARDDISK_{id}"),
        format!("scsi-SQEMU_QEMU_HARDDISK_{id}"),
        format!("nvme-QEMU_NVMe_Ctrl_{short}"),
    ];
    let by_link = links.iter().filter_map(|link| sys.path(&format!("dev/disk/by-id/{link}")).canonicalize().ok());
    // Where udev makes no links, or has not yet.
    let by_serial =
        Device::list(sys).into_iter().filter(|device| device.partition_number().is_none()).filter(|device| {
            Identity::of_device(sys, device, device.bytes(), None)
                .serial
                .is_some_and(|serial| serial == id || serial == short)
        });
    let mut found: Vec<PathBuf> =
        by_link.chain(by_serial.map(|device| sys.path(&format!("dev/{}", device.name)))).collect();
    found.sort();
    found.dedup();
    let device = match found.as_slice() {
        [] => return Ok(None),
        [device] => device.clone(),
        several => {
            let several: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            return Err(Error::failed(format!(
                "Volume {id}: expected one disk of this host, found {}",
                several.join(", ")
            ))
            .next("detach those that are not it in the cloud"));
        }
    };
    let size = DirectFile::open(&device, Access::Read)?.bytes()?;
    match size == bytes {
        true => Ok(Some(device)),
        false => Err(Error::failed(format!(
            "Volume {id}: expected {bytes} bytes on {}, found {size}",
            device.display()
        ))
        .next("the kernel has another disk there, or knows an older size: detach it in the cloud, then run the same command again")),
    }
}

/// Waits for it.
///
/// # Errors
/// As [`find_device`]; it does not appear.
pub fn wait_for_device(sys: &SysRoot, id: &str, bytes: u64, server: &str) -> Result<PathBuf> {
    let since = Instant::now();
    loop {
        if let Some(device) = find_device(sys, id, bytes)? {
            return Ok(device);
        }
        if since.elapsed() > APPEARS_WITHIN {
            let (short, seconds) = (id.get(..VIRTIO_SERIAL).unwrap_or(id), APPEARS_WITHIN.as_secs());
            return Err(Error::failed(format!(
                "Volume {id}: expected its disk on this host (/dev/disk/by-id/virtio-{short}) within {seconds} s, found none"
            ))
            .next(format!("is this host the server {server}? attach=UUID names the right one; otherwise see dmesg")));
        }
        std::thread::sleep(LOOK);
    }
}

/// An opened volume. Dropped in this order: the disk, and what made it one of this host.
pub struct Attached {
    disk: LocalVolume,
    name: String,
    identity: Identity,
    _way: Box<dyn Any + Send + Sync>,
}

impl Attached {
    /// Opens the disk `device` for writing, claimed, and calls it `name`; `way` is dropped when nothing uses it any more.
    ///
    /// # Errors
    /// Something on this host uses it.
    pub fn open(
        device: &Path,
        name: String,
        identity: Identity,
        way: Box<dyn Any + Send + Sync>,
        medium: Option<Medium>,
    ) -> Result<Attached> {
        let disk = LocalVolume::open(device)?;
        let disk = match medium {
            Some(medium) => disk.watched(medium),
            None => disk,
        };
        Ok(Attached { disk, name, identity, _way: way })
    }
}

impl Volume for Attached {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }
    fn identity(&self, _: &SysRoot) -> Result<Identity> {
        Ok(self.identity.clone())
    }
    fn depth(&self) -> usize {
        self.disk.depth()
    }
    fn writer(&self, engine: Engine, depth: usize) -> Result<Patient> {
        self.disk.writer(engine, depth)
    }
    fn reader(&self, engine: Engine, depth: usize) -> Result<Patient> {
        self.disk.reader(engine, depth)
    }
    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.disk.write_zeroes(offset, bytes)
    }
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.disk.next_data(offset)
    }
    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }
    fn through_cache(&self) -> bool {
        self.disk.through_cache()
    }
    fn is_lost(&self) -> bool {
        self.disk.is_lost()
    }
}
