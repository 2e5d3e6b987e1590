//! What makes a disk the same disk tomorrow: ids of hardware and of what lies on it, never its path.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::device::{Device, DeviceNumber, SysRoot, clean};
use super::partition::Table;

/// Identity of a source as recorded in ledger and manifest. Fields that a system does not offer stay empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// File, block device, export …
    pub kind: SourceKind,
    /// Size in bytes.
    pub bytes: u64,
    /// A file's inode; for a loop device the file behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileIdentity>,
    /// First byte of the file that a loop device shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_offset: Option<u64>,
    /// The kernel's number; changes over reboots, so it decides only where nothing better is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<DeviceNumber>,
    /// World Wide Name of the whole disk, `naa.…`, `eui.…`, `uuid.…` or `t10.…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Serial number of the whole disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// UUID that device-mapper holds: LVM volume, crypt, multipath.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapper: Option<String>,
    /// UUID of a md RAID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raid: Option<String>,
    /// Which partition, where the source is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<PartitionIdentity>,
    /// GUID of the GPT or id of the MBR: `gpt:…`, `mbr:…`; of the whole disk for a partition where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// URI of an NBD export, an image with its format, a place behind ssh, or the name of a disk of a running machine: as weak as a path, it
    /// decides only where the disk has no table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
    /// The machine that a disk behind ssh, or one that another host serves, belongs to. Machines that were cloned have one partition table: never another one's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// What a source is to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A regular file that holds a raw image.
    File,
    /// A block device.
    BlockDevice,
    /// An export of an NBD server.
    Nbd,
    /// A disk in a file of another format than raw.
    Image,
    /// An image of a Ceph pool.
    Rbd,
    /// A volume of OpenStack Block Storage.
    Cinder,
    /// A file or device of another machine, behind ssh.
    Ssh,
    /// A disk of a machine that runs under QEMU.
    Machine,
    /// A disk of a machine under VMware.
    Vddk,
}

/// A regular file, whatever its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// `st_dev`; may change over reboots, see [`FileIdentity::same`].
    pub device: DeviceNumber,
    /// `st_ino`.
    pub inode: u64,
    /// Birth time in nanoseconds since 1970, where the file system keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born_nanoseconds: Option<u64>,
}

/// A partition within its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionIdentity {
    /// Its number.
    pub number: u32,
    /// Its first byte on the disk.
    pub start: u64,
    /// PARTUUID, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

impl FileIdentity {
    /// From `stat`.
    pub fn of(meta: &std::fs::Metadata) -> FileIdentity {
        let born = meta.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        FileIdentity {
            device: DeviceNumber::from_raw(meta.dev()),
            inode: meta.ino(),
            born_nanoseconds: born.and_then(|since| u64::try_from(since.as_nanos()).ok()),
        }
    }

    /// Whether two records mean one file. Device numbers of LVM, Btrfs and USB disks change over reboots, so with a
    /// birth time inode and birth decide; without one the device must agree too, since an inode number alone is common.
    pub fn same(&self, other: &FileIdentity) -> bool {
        let device_or_birth = match (self.born_nanoseconds, other.born_nanoseconds) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => self.device == other.device,
        };
        self.inode == other.inode && device_or_birth
    }

    /// Whether two records of one path mean one file, where no birth time is kept (NFS, FUSE) and the file system was mounted anew
    /// under another device number: the path says which file system, the inode which file.
    pub fn same_at_path(&self, other: &FileIdentity) -> bool {
        let unborn = self.born_nanoseconds.is_none() && other.born_nanoseconds.is_none();
        self.same(other) || unborn && self.inode == other.inode
    }
}

impl std::fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inode {} on {}", self.inode, self.device)?;
        match self.born_nanoseconds {
            Some(born) => write!(f, " born {}.{:09}", born / 1_000_000_000, born % 1_000_000_000),
            None => Ok(()),
        }
    }
}

impl Identity {
    /// Of a regular file with this `stat`.
    pub fn of_file(meta: &std::fs::Metadata) -> Identity {
        let mut identity = Identity::blank(SourceKind::File, meta.len());
        identity.file = Some(FileIdentity::of(meta));
        identity
    }

    /// Of an export by its [`crate::nbd::Uri::canonical`] name, of an image, whose file changes with every snapshot, or of a place
    /// behind ssh, with the partition table that was read from it. There are no better ids.
    pub fn of_export(kind: SourceKind, name: String, bytes: u64, table: Option<&Table>) -> Identity {
        let mut identity = Identity::blank(kind, bytes);
        identity.export = Some(name);
        identity.table = table.and_then(Table::id);
        identity
    }

    /// Of a block device, from sysfs and udev's database, with the partition table that was read from it.
    pub fn of_device(sys: &SysRoot, device: &Device, bytes: u64, table: Option<&Table>) -> Identity {
        let whole = device.whole();
        let udev = whole.udev();
        let mut identity = Identity::blank(SourceKind::BlockDevice, bytes);
        identity.number = Some(device.number);
        identity.wwn = wwn(&whole, &udev);
        identity.serial = serial(&whole, &udev);
        // A partition made by kpartx is a device-mapper device with a UUID of its own ("part1-mpath-…").
        identity.mapper = whole.mapper_uuid();
        identity.raid = whole.attribute("md/uuid").or_else(|| udev.get("MD_UUID").and_then(|u| clean(u)));
        identity.table = table.and_then(Table::id);
        if let Some(file) = whole.backing_file() {
            let path = if sys.is_live() { file } else { sys.path(&file.to_string_lossy()) };
            identity.file = std::fs::metadata(path).ok().map(|meta| FileIdentity::of(&meta));
            identity.file_offset = Some(whole.number_of("loop/offset").unwrap_or(0));
        }
        if let Some(number) = device.partition_number() {
            let properties = device.udev();
            identity.partition = Some(PartitionIdentity {
                number,
                start: device.number_of("start").and_then(|sectors| sectors.checked_mul(512)).unwrap_or(0),
                uuid: properties.get("ID_PART_ENTRY_UUID").and_then(|u| clean(u)).map(|u| u.to_ascii_lowercase()),
            });
            // What lies inside a partition is no table of the disk; udev knows the disk's own.
            let of_disk = properties.get("ID_PART_ENTRY_SCHEME").map(|s| if s == "dos" { "mbr" } else { s.as_str() });
            let id = whole.udev().get("ID_PART_TABLE_UUID").and_then(|u| clean(u));
            identity.table = of_disk.zip(id).map(|(scheme, id)| format!("{scheme}:{}", id.to_ascii_lowercase()));
        }
        identity
    }

    pub(super) fn blank(kind: SourceKind, bytes: u64) -> Identity {
        Identity {
            kind,
            bytes,
            file: None,
            file_offset: None,
            number: None,
            wwn: None,
            serial: None,
            mapper: None,
            raid: None,
            partition: None,
            table: None,
            export: None,
            machine: None,
        }
    }

    /// Whether `found` is the disk that this record means.
    ///
    /// Every id that both have must agree, and one strong id (WWN, serial, device-mapper or RAID UUID, file) that was
    /// recorded must be found again. Only for a disk that never had a strong id the partition table's id decides, and
    /// failing that the kernel's number.
    ///
    /// # Errors
    /// "expected … found …", fit to stand in an error message.
    pub fn same_disk(&self, found: &Identity) -> Result<(), String> {
        if self.kind != found.kind {
            return Err(format!("expected a {}, found a {}", self.kind.name(), found.kind.name()));
        }
        if self.bytes != found.bytes {
            return Err(format!("expected {} bytes, found {}", self.bytes, found.bytes));
        }
        if let (Some(mine), Some(theirs)) = (&self.machine, &found.machine)
            && mine != theirs
        {
            return Err(format!("expected a disk of machine {mine}, found one of {theirs}"));
        }
        let mut agreed = false;
        let mut recorded = Vec::new();
        for (what, mine, theirs) in [
            ("WWN", &self.wwn, &found.wwn),
            ("serial number", &self.serial, &found.serial),
            ("device-mapper UUID", &self.mapper, &found.mapper),
            ("RAID UUID", &self.raid, &found.raid),
        ] {
            match (mine, theirs) {
                (Some(mine), Some(theirs)) if mine == theirs => agreed = true,
                (Some(mine), Some(theirs)) => return Err(format!("expected {what} {mine}, found {theirs}")),
                (Some(mine), None) => recorded.push(format!("{what} {mine}")),
                (None, _) => {}
            }
        }
        match (&self.file, &found.file) {
            (Some(mine), Some(theirs)) if !mine.same(theirs) || self.file_offset != found.file_offset => {
                let place = |id: &Identity| id.file_offset.map(|o| format!(" from byte {o}")).unwrap_or_default();
                return Err(format!("expected file {mine}{}, found file {theirs}{}", place(self), place(found)));
            }
            (Some(_), Some(_)) => agreed = true,
            (Some(mine), None) => recorded.push(format!("file {mine}")),
            (None, _) => {}
        }
        if !agreed && let Some(missing) = recorded.first() {
            return Err(format!("expected {missing}, found {}", found.summary()));
        }
        match (&self.partition, &found.partition) {
            (None, None) => {}
            (Some(mine), Some(theirs)) => mine.same(theirs)?,
            (Some(mine), None) => return Err(format!("expected partition {}, found a whole disk", mine.number)),
            (None, Some(theirs)) => return Err(format!("expected a whole disk, found partition {}", theirs.number)),
        }
        match (&self.table, &found.table) {
            (Some(mine), Some(theirs)) if mine == theirs => agreed = true,
            (Some(mine), Some(theirs)) => return Err(format!("expected partition table {mine}, found {theirs}")),
            (Some(mine), None) => return Err(format!("expected partition table {mine}, found none")),
            // An empty disk that was partitioned since is still the same hardware.
            (None, _) => {}
        }
        if !agreed && self.number != found.number {
            let number = |id: &Identity| id.number.map_or("no device number".into(), |n| format!("device {n}"));
            return Err(format!("expected {} (it has no better id), found {}", number(self), number(found)));
        }
        if !agreed && self.export != found.export {
            let export = |id: &Identity| id.export.clone().unwrap_or_else(|| "no export".into());
            return Err(format!("expected {} (it has no better id), found {}", export(self), export(found)));
        }
        Ok(())
    }

    /// As [`Identity::same_disk`], for a volume that was imported into: one that its cloud made has an id for ever, and may have been
    /// extended since.
    ///
    /// # Errors
    /// What differs, in words.
    pub fn same_volume(&self, found: &Identity) -> Result<(), String> {
        let by_id = matches!(self.kind, SourceKind::Cinder | SourceKind::Rbd) && self.export.is_some();
        let larger = Identity { bytes: self.bytes.max(found.bytes), ..self.clone() };
        if by_id { larger.same_disk(found) } else { self.same_disk(found) }
    }

    /// Whether an id that hardware, device-mapper or RAID gave says that `found` is this disk. All else (size, partition table, a file's
    /// name, a URI) is the same for clones of one template, and what stands on the disk has to tell.
    pub fn is_told_by_hardware(&self, found: &Identity) -> bool {
        // QEMU numbers the disks of every machine so.
        let counted =
            |serial: &str| serial.strip_prefix("QM").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
        let serial = self.serial.as_ref().filter(|serial| !counted(serial));
        [
            (self.wwn.as_ref(), &found.wwn),
            (serial, &found.serial),
            (self.mapper.as_ref(), &found.mapper),
            (self.raid.as_ref(), &found.raid),
        ]
        .into_iter()
        .any(|(mine, theirs)| mine.is_some() && mine == theirs.as_ref())
    }

    /// Whether both are one file, or loop devices on it, by inode and birth: it may have been written over, but it is no other file.
    pub fn is_one_file(&self, found: &Identity) -> bool {
        let born = |id: &Identity| id.file.as_ref().is_some_and(|file| file.born_nanoseconds.is_some());
        born(self) && born(found) && self.same_disk(found).is_ok()
    }

    /// Whether `found`, under the same path, may be the same file of a file system that keeps no birth times (NFS, FUSE) and has another
    /// device number since it was mounted again.
    pub fn may_be_remounted(&self, found: &Identity) -> bool {
        let (SourceKind::File, Some(mine), Some(theirs)) = (self.kind, &self.file, &found.file) else { return false };
        !mine.same(theirs) && mine.same_at_path(theirs) && {
            let moved = Identity { file: found.file.clone(), ..self.clone() };
            moved.same_disk(found).is_ok()
        }
    }

    /// Whether two sources would copy the same bytes twice: one disk, or a disk and a partition of it.
    pub fn overlaps(&self, other: &Identity) -> Option<String> {
        let apart = match (&self.partition, &other.partition) {
            (Some(mine), Some(theirs)) => mine.number != theirs.number,
            _ => false,
        };
        if apart {
            return None;
        }
        // Numbers of files and devices mean something on one machine only.
        let one_machine = self.machine == other.machine;
        if let (Some(mine), Some(theirs)) = (&self.file, &other.file)
            && one_machine
            && mine.device == theirs.device
            && mine.inode == theirs.inode
        {
            return Some(format!("the same file ({mine})"));
        }
        for (what, mine, theirs) in [
            ("WWN", &self.wwn, &other.wwn),
            ("device-mapper UUID", &self.mapper, &other.mapper),
            ("RAID UUID", &self.raid, &other.raid),
        ] {
            if let (Some(mine), Some(theirs)) = (mine, theirs)
                && mine == theirs
            {
                return Some(format!("the same {what} {mine}"));
            }
        }
        match (self.number, other.number) {
            (Some(mine), Some(theirs)) if mine == theirs && one_machine => Some(format!("the same device {mine}")),
            _ if self.export.is_some() && self.export == other.export => Some(format!("the same {}", self.kind.name())),
            _ => None,
        }
    }

    /// One line for people: the strongest ids first.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.wwn.as_ref().map(|wwn| format!("WWN {wwn}")));
        parts.extend(self.serial.as_ref().map(|serial| format!("serial {serial}")));
        parts.extend(self.mapper.as_ref().map(|uuid| format!("dm {uuid}")));
        parts.extend(self.raid.as_ref().map(|uuid| format!("md {uuid}")));
        parts.extend(self.file.as_ref().map(|file| format!("file {file}")));
        parts.extend(self.partition.as_ref().map(|part| format!("partition {}", part.number)));
        parts.extend(self.table.clone());
        parts.extend(self.export.clone());
        if parts.is_empty() {
            parts.extend(self.number.map(|number| format!("device {number} (no better id)")));
        }
        if parts.is_empty() { "no id at all".into() } else { parts.join(" · ") }
    }
}

impl SourceKind {
    fn name(self) -> &'static str {
        match self {
            SourceKind::File => "file",
            SourceKind::BlockDevice => "block device",
            SourceKind::Nbd => "NBD export",
            SourceKind::Image => "disk image",
            SourceKind::Rbd => "Ceph image",
            SourceKind::Cinder => "cloud volume",
            SourceKind::Ssh => "disk behind ssh",
            SourceKind::Machine => "disk of a running machine",
            SourceKind::Vddk => "disk under VMware",
        }
    }
}

impl PartitionIdentity {
    fn same(&self, found: &PartitionIdentity) -> Result<(), String> {
        match (&self.uuid, &found.uuid) {
            (Some(mine), Some(theirs)) if mine == theirs => Ok(()),
            (Some(mine), Some(theirs)) => Err(format!("expected partition {mine}, found {theirs}")),
            _ if self.number == found.number && self.start == found.start => Ok(()),
            _ => Err(format!(
                "expected partition {} at byte {}, found partition {} at byte {}",
                self.number, self.start, found.number, found.start
            )),
        }
    }
}

/// The WWN as sysfs has it (`wwid` of NVMe, `device/wwid` of SCSI), else as udev worked it out; one spelling for both.
fn wwn(whole: &Device, udev: &BTreeMap<String, String>) -> Option<String> {
    let property = |name: &str| udev.get(name).cloned();
    // A multipath device has no sysfs wwid, its UUID carries that of its legs; udev exports it as DM_SERIAL/DM_WWN.
    let text = whole
        .attribute("wwid")
        .or_else(|| whole.attribute("device/wwid"))
        .or_else(|| property("ID_WWN_WITH_EXTENSION"))
        .or_else(|| property("ID_WWN"))
        .or_else(|| property("DM_WWN"))?;
    normal_wwn(&text)
}

fn normal_wwn(text: &str) -> Option<String> {
    let text = clean(text)?;
    let lower = text.to_ascii_lowercase();
    // udev writes 0x5000…, the kernel naa.5000…; one spelling, so that a disk is itself with and without udev.
    let hex = lower.strip_prefix("0x").map(|hex| format!("naa.{hex}"));
    let named =
        hex.or_else(|| ["naa.", "eui.", "uuid.", "nvme."].iter().any(|p| lower.starts_with(p)).then_some(lower));
    match named {
        // Firmware that answers zeros has no WWN.
        Some(named) => named.split_once('.')?.1.chars().any(|c| c != '0' && c != '-').then_some(named),
        // t10 ids carry the vendor's text, in which case matters.
        None => Some(text),
    }
}

fn serial(whole: &Device, udev: &BTreeMap<String, String>) -> Option<String> {
    let property = |name: &str| udev.get(name).and_then(|value| clean(value));
    whole
        .attribute("serial") // virtio
        .or_else(|| whole.attribute("device/serial")) // NVMe
        .or_else(|| whole.bytes_of("device/vpd_pg80").and_then(|page| vpd_serial(&page)))
        .or_else(|| property("ID_SCSI_SERIAL"))
        .or_else(|| property("ID_SERIAL_SHORT"))
        .filter(|serial| serial.chars().any(|c| c != '0' && c != ' '))
}

/// SCSI page 0x80: device type, page code, two bytes of length, then the serial as text.
fn vpd_serial(page: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let text = page.get(4..)?;
    clean(&String::from_utf8_lossy(&text[..length.min(text.len())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(number: u32) -> Identity {
        let mut id = Identity::blank(SourceKind::BlockDevice, 1 << 30);
        id.number = Some(DeviceNumber { major: 8, minor: number });
        id
    }

    fn with(number: u32, change: impl FnOnce(&mut Identity)) -> Identity {
        let mut id = disk(number);
        change(&mut id);
        id
    }

    #[test]
    fn strong_ids_decide_and_numbers_only_where_nothing_else_is_known() {
        let wwn = |w: &str| with(0, |id| id.wwn = Some(w.into()));
        let moved = with(16, |id| id.wwn = Some("naa.5".into()));
        assert_eq!(wwn("naa.5").same_disk(&moved), Ok(()));
        assert_eq!(wwn("naa.5").same_disk(&wwn("naa.6")).unwrap_err(), "expected WWN naa.5, found naa.6");
        assert!(wwn("naa.5").same_disk(&disk(0)).unwrap_err().starts_with("expected WWN naa.5, found"));
        assert_eq!(disk(0).same_disk(&disk(0)), Ok(()));
        assert!(disk(0).same_disk(&disk(16)).unwrap_err().contains("expected device 8:0"));
        let table = |n, t: &str| with(n, |id| id.table = Some(t.into()));
        assert_eq!(table(0, "gpt:a").same_disk(&table(16, "gpt:a")), Ok(()));
        assert!(table(0, "gpt:a").same_disk(&table(0, "gpt:b")).is_err());
        assert!(table(0, "gpt:a").same_disk(&disk(0)).is_err());
        assert_eq!(disk(0).same_disk(&table(0, "gpt:a")), Ok(()));
        let grown = with(0, |id| id.bytes += 512);
        assert!(disk(0).same_disk(&grown).unwrap_err().contains("bytes"));
    }

    #[test]
    fn numbers_of_two_machines_are_two_things() {
        let of = |machine: &str| {
            with(5, |id| {
                let device = DeviceNumber { major: 8, minor: 1 };
                id.file = Some(FileIdentity { device, inode: 7, born_nanoseconds: None });
                id.machine = Some(machine.into());
            })
        };
        assert!(of("a").overlaps(&of("a")).is_some() && of("a").overlaps(&of("b")).is_none());
        let lun = |machine: &str| with(5, |id| (id.machine, id.wwn) = (Some(machine.into()), Some("naa.5".into())));
        assert!(lun("a").overlaps(&lun("b")).unwrap().contains("the same WWN"), "one LUN that two machines see");
    }

    #[test]
    fn one_agreeing_strong_id_bears_with_another_that_went_missing() {
        let both = with(0, |id| (id.wwn, id.serial) = (Some("naa.5".into()), Some("S1".into())));
        let less = with(3, |id| id.serial = Some("S1".into()));
        assert_eq!(both.same_disk(&less), Ok(()));
        let other = with(3, |id| (id.wwn, id.serial) = (Some("naa.6".into()), Some("S1".into())));
        assert!(both.same_disk(&other).is_err());
    }

    #[test]
    fn a_file_made_anew_under_the_same_inode_is_another() {
        let file =
            |born, minor| FileIdentity { device: DeviceNumber { major: 0, minor }, inode: 7, born_nanoseconds: born };
        assert!(file(Some(1), 40).same(&file(Some(1), 41)), "device numbers move over reboots");
        assert!(!file(Some(1), 40).same(&file(Some(2), 40)));
        assert!(!file(None, 40).same(&file(Some(2), 41)));
        assert!(file(None, 40).same(&file(Some(2), 40)));
        assert!(!file(None, 40).same(&file(None, 41)) && file(None, 40).same_at_path(&file(None, 41)));
        assert!(!file(Some(1), 40).same_at_path(&file(Some(2), 40)));
    }

    #[test]
    fn wwns_have_one_spelling() {
        assert_eq!(normal_wwn("0x5000C500A1B2C3D4").as_deref(), Some("naa.5000c500a1b2c3d4"));
        assert_eq!(normal_wwn("naa.5000c500a1b2c3d4").as_deref(), Some("naa.5000c500a1b2c3d4"));
        assert_eq!(normal_wwn("naa.a000000000000000").as_deref(), Some("naa.a000000000000000"));
        assert_eq!(normal_wwn("eui.0000000000000000"), None);
        assert_eq!(normal_wwn("t10.ATA     QEMU  Disk").as_deref(), Some("t10.ATA QEMU Disk"));
        assert_eq!(vpd_serial(b"\0\x80\0\x04  Z1rest").as_deref(), Some("Z1"));
        assert_eq!(vpd_serial(b"\0\x80\xff\xffZ1").as_deref(), Some("Z1"));
        assert_eq!(vpd_serial(b"\0"), None);
    }

    #[test]
    fn it_survives_json() {
        let id = with(5, |id| (id.wwn, id.table) = (Some("naa.5".into()), Some("mbr:0001".into())));
        assert_eq!(serde_json::from_str::<Identity>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
    }
}
