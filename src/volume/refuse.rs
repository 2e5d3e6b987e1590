//! What must not be written to: volumes in use, on the transport array itself, or with data of somebody else.

use super::Volume;
use crate::copy::patience::Patient;
use crate::copy::zeros::is_zero;
use crate::error::{Error, IoContext, Result};
use crate::io::{Buffer, Completion, Engine, Pool, ReadAt};
use crate::source::device::{mounts, swaps};
use crate::source::{Device, DeviceNumber, SysRoot};
use rustix::fs::FileType;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Head and tail that must be zero in a volume without data: partition tables, superblocks and their backups lie there.
const EDGE_BYTES: u64 = 1 << 20;
/// Places in between that are looked at.
const SAMPLES: u64 = 64;
/// Bytes of each.
const SAMPLE_BYTES: u64 = 64 << 10;

/// Sectors of a volume that is no device: what a machine gets unless somebody says otherwise.
const USUAL_SECTOR_BYTES: u64 = 512;

/// Bytes of a sector of the disk, by the `facts` that the manifest has of it.
pub fn sector_bytes(facts: &str) -> Option<u64> {
    let facts: serde_json::Value = serde_json::from_str(facts).unwrap_or_default();
    facts.get("logical_sector_bytes").and_then(serde_json::Value::as_u64)
}

/// Refuses a device with sectors of another size than the source had, by the `facts` of the disk: its partition table counts in
/// them, so a disk that was used with sectors of 512 bytes makes no sense on a device with such of 4096.
///
/// # Errors
/// Says both sizes.
pub fn other_sectors(path: &Path, facts: &str, disk: &str, sys: &SysRoot) -> Result<()> {
    let meta = std::fs::metadata(path).context(|| format!("Volume {}", path.display()))?;
    let device = Device::by_number(sys, DeviceNumber::from_raw(meta.rdev())).filter(|_| meta.rdev() != 0);
    let found = device.and_then(|device| device.whole().number_of("queue/logical_block_size"));
    found.map_or(Ok(()), |found| fit_sectors(&path.display().to_string(), facts, disk, found))
}

/// As [`other_sectors`], of a volume that is no device: a machine sees it with sectors of 512 bytes.
///
/// # Errors
/// Says both sizes.
pub fn large_sectors(location: &str, facts: &str, disk: &str) -> Result<()> {
    fit_sectors(location, facts, disk, USUAL_SECTOR_BYTES)
}

fn fit_sectors(location: &str, facts: &str, disk: &str, found: u64) -> Result<()> {
    match sector_bytes(facts).filter(|source| *source != found) {
        None => Ok(()),
        Some(source) => Err(Error::failed(format!(
            "Volume {location}: expected sectors of {source} bytes as {disk} had, found {found}"
        ))
        .next(
            "name a volume with such sectors; or pass --accept-sector-size, and attach the volume with such sectors",
        )),
    }
}

/// Refuses a file or device that anything on this host uses.
///
/// # Errors
/// Says what uses it.
pub fn in_use(path: &Path, sys: &SysRoot) -> Result<()> {
    let refuse = |by: String, next: &str| {
        Err(Error::failed(format!("Volume {}: expected one that nothing uses, found it {by}", path.display()))
            .next(next))
    };
    let meta = std::fs::metadata(path).context(|| format!("Volume {}", path.display()))?;
    let real = path.canonicalize().context(|| format!("Volume {}", path.display()))?;
    let swaps = swaps(sys);
    if FileType::from_raw_mode(meta.mode()) != FileType::BlockDevice {
        if swaps.contains(&real) {
            return refuse("used as swap".into(), "swapoff it, or name another volume");
        }
        let attached = Device::list(sys).into_iter().find(|device| device.backing_file().as_ref() == Some(&real));
        return match attached {
            Some(device) => refuse(format!("attached as {}", device.node()), "detach it first: losetup -d"),
            None => Ok(()),
        };
    }
    let number = DeviceNumber::from_raw(meta.rdev());
    let Some(device) = Device::by_number(sys, number) else { return Ok(()) };
    let above = device.and_above();
    // A partition is in use when its whole disk is mounted as one file system.
    let involved: Vec<Device> = above.iter().cloned().chain([device.whole()]).collect();
    for mount in mounts(sys) {
        if let Some(used) = mount.devices(sys).into_iter().find(|device| involved.contains(device)) {
            return refuse(
                format!("mounted ({} on {})", used.node(), mount.at.display()),
                "unmount it, or name another volume",
            );
        }
    }
    for swap in swaps {
        if let Some(used) = Device::by_path(sys, &swap).filter(|device| involved.contains(device)) {
            return refuse(format!("used as swap ({})", used.node()), "swapoff it, or name another volume");
        }
    }
    if let Some(holder) = above.iter().flat_map(Device::holders).next() {
        return refuse(
            format!("part of {}", holder.node()),
            "take it out of RAID, LVM or multipath, or name another volume",
        );
    }
    Ok(())
}

/// Looks for data: all of head and tail and a scatter of places in between, holes left out. Says where it found some.
///
/// # Errors
/// The volume cannot be read.
pub fn find_data(volume: &dyn Volume, engine: Engine) -> Result<Option<String>> {
    let bytes = volume.bytes();
    let mut ranges = vec![(0, bytes.min(EDGE_BYTES)), (bytes.saturating_sub(EDGE_BYTES), bytes)];
    let step = (bytes / (SAMPLES + 1)).next_multiple_of(4096).max(4096);
    for sample in 1..=SAMPLES {
        let Some(start) = sample.checked_mul(step).filter(|start| *start < bytes) else { break };
        ranges.push((start, bytes.min(start + SAMPLE_BYTES)));
    }
    let mut search = Search::new(volume, engine)?;
    for (start, end) in ranges {
        let start = start - start % 4096;
        if end <= start || volume.next_data(start)?.is_none_or(|(data, _)| data >= end) {
            continue;
        }
        if let Some(at) = search.look(start, end)? {
            return Ok(Some(match signature_of(search, bytes) {
                Some(kind) => format!("{kind}, and other bytes than zero from byte {at}"),
                None => format!("other bytes than zero from byte {at}"),
            }));
        }
    }
    Ok(None)
}

/// The first byte of the whole volume that is not zero, holes left out.
///
/// # Errors
/// The volume cannot be read.
pub fn first_byte(volume: &dyn Volume, engine: Engine) -> Result<Option<u64>> {
    let mut search = Search::new(volume, engine)?;
    let mut from = 0;
    while let Some((data, end)) = volume.next_data(from)? {
        let mut start = data - data % 4096;
        from = end.min(volume.bytes());
        while start < from {
            let until = from.min(start + EDGE_BYTES);
            if let Some(at) = search.look(start, until)? {
                return Ok(Some(at));
            }
            start = until;
        }
    }
    Ok(None)
}

/// Reads pieces of a volume.
struct Search<'a> {
    volume: &'a dyn Volume,
    queue: Patient,
    pool: Pool,
}

impl<'a> Search<'a> {
    fn new(volume: &'a dyn Volume, engine: Engine) -> Result<Self> {
        let pool = Pool::new(EDGE_BYTES as usize + 4096, 1)?;
        Ok(Search { volume, queue: volume.reader(engine, 1)?, pool })
    }

    /// Reads from `start`, a whole page, to `end`, at most [`EDGE_BYTES`] and a page on.
    fn read(&mut self, start: u64, end: u64) -> Result<Buffer> {
        self.queue.read(0, start, self.pool.take(), usize::try_from(end - start).unwrap_or(usize::MAX));
        match self.queue.wait()? {
            Some(Completion { result: Ok(()), buffer: Some(buffer), .. }) => Ok(buffer),
            Some(Completion { result: Err(error), .. }) => {
                Err(Error::io(format!("Volume {}: reading byte {start}", self.volume.name()), error))
            }
            _ => Err(Error::failed(format!("Volume {}: a read was lost", self.volume.name()))),
        }
    }

    /// As [`Self::read`]: the first byte that is not zero.
    fn look(&mut self, start: u64, end: u64) -> Result<Option<u64>> {
        let found = self.read(start, end)?;
        let zero = is_zero(&found);
        Ok((!zero).then(|| start + found.iter().position(|byte| *byte != 0).unwrap_or(0) as u64))
    }
}

impl ReadAt for Mutex<Search<'_>> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let mut search = self.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = search.volume.bytes();
        let wanted = (buffer.len() as u64).min(EDGE_BYTES).min(bytes.saturating_sub(offset));
        if wanted == 0 {
            return Ok(0);
        }
        let start = offset - offset % 4096;
        let found = search.read(start, offset + wanted).map_err(std::io::Error::other)?;
        let part = &found[(offset - start) as usize..];
        buffer[..part.len()].copy_from_slice(part);
        Ok(part.len())
    }
}

/// The name of what lies on the volume, if it is known.
fn signature_of(search: Search<'_>, bytes: u64) -> Option<String> {
    let found = crate::source::signature::probe(&Mutex::new(search), 0, bytes).ok()?;
    found.first().map(|signature| signature.kind.clone())
}
