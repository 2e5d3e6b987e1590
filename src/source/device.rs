//! Block devices as the kernel shows them: sysfs, udev's database, mounts and swap, all below one [`SysRoot`].
//!
//! Text from sysfs is vendor text (a disk chooses its model and serial), so it is bounded and cleaned before use.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// An attribute longer than this is none of ours.
const ATTRIBUTE_LIMIT: u64 = 4096;
/// Bound for whole tables of the kernel: mountinfo, swaps, a udev record.
const TABLE_LIMIT: u64 = 4 << 20;
/// Deepest stack of devices followed (partition, RAID, crypt, LVM, multipath … ), so that a hostile tree ends.
const DEPTH_LIMIT: usize = 32;

/// Where the system's facts are read from: `/` in production, a recorded tree in tests. `/sys`, `/proc`,
/// `/run/udev/data`, `/dev` and `/etc` lie below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysRoot(PathBuf);

impl Default for SysRoot {
    fn default() -> Self {
        SysRoot(PathBuf::from("/"))
    }
}

impl SysRoot {
    /// A recorded tree below `root`; [`SysRoot::default`] is the running system.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        SysRoot(root.into())
    }

    /// `relative` (without a leading slash) below this root.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative.trim_start_matches('/'))
    }

    /// Whether this is the running system and not a recorded tree.
    pub fn is_live(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// A whole small text below the root; `None` where it is missing, unreadable or beyond 4 MiB.
    pub fn text(&self, relative: &str) -> Option<String> {
        read_bounded(&self.path(relative), TABLE_LIMIT).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A path that the system names absolutely, moved below this root.
    fn rooted(&self, absolute: &Path) -> PathBuf {
        self.0.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }
}

fn read_bounded(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(limit + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= limit).then_some(bytes)
}

/// Vendor text made fit to print, compare and store: no control characters, single spaces, at most 256 bytes.
pub(crate) fn clean(text: &str) -> Option<String> {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let mut line = words.join(" ");
    while line.len() > 256 {
        line.pop();
    }
    (!line.is_empty()).then_some(line)
}

/// The kernel's number of a block device; not stable over reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// The device's number within the driver.
    pub minor: u32,
}

impl DeviceNumber {
    /// Splits a `st_rdev` or `st_dev`.
    pub fn from_raw(raw: u64) -> Self {
        DeviceNumber { major: rustix::fs::major(raw), minor: rustix::fs::minor(raw) }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl From<DeviceNumber> for String {
    fn from(number: DeviceNumber) -> String {
        number.to_string()
    }
}

impl TryFrom<String> for DeviceNumber {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        parse_number(&text).ok_or_else(|| format!("Device number '{text}': expected MAJOR:MINOR"))
    }
}

fn parse_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// One block device's directory in sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name: `sda`, `nvme0n1p2`, `dm-3`.
    pub name: String,
    /// The kernel's number.
    pub number: DeviceNumber,
    dir: PathBuf,
    sys: SysRoot,
}

impl Device {
    fn at(sys: &SysRoot, link: &Path) -> Option<Device> {
        let dir = link.canonicalize().ok()?;
        let name = dir.file_name()?.to_str()?.to_owned();
        let number = parse_number(&attribute(&dir, "dev")?)?;
        Some(Device { name, number, dir, sys: sys.clone() })
    }

    /// The device with this number, where sysfs knows it.
    pub fn by_number(sys: &SysRoot, number: DeviceNumber) -> Option<Device> {
        Self::at(sys, &sys.path(&format!("sys/dev/block/{number}")))
            // Older kernels and containers may lack sys/dev; the classes are there always.
            .or_else(|| Self::list(sys).into_iter().find(|device| device.number == number))
    }

    /// The device with this kernel name.
    pub fn by_name(sys: &SysRoot, name: &str) -> Option<Device> {
        if name.is_empty() || name.contains('/') || name == ".." || name == "." {
            return None;
        }
        // sysfs writes the slash of "cciss/c0d0" as an exclamation mark; the caller may have either.
        Self::at(sys, &sys.path(&format!("sys/class/block/{name}")))
    }

    /// The device behind a path as the system writes it (`/dev/sda2`, `/dev/mapper/vg-root`, `/dev/disk/by-id/…`).
    pub fn by_path(sys: &SysRoot, path: &Path) -> Option<Device> {
        let full = sys.rooted(path);
        if sys.is_live() {
            use std::os::unix::fs::{FileTypeExt, MetadataExt};
            let meta = std::fs::metadata(&full).ok()?;
            return meta
                .file_type()
                .is_block_device()
                .then(|| DeviceNumber::from_raw(meta.rdev()))
                .and_then(|n| Self::by_number(sys, n));
        }
        let name = full.canonicalize().ok()?.file_name()?.to_str()?.to_owned();
        Self::by_name(sys, &name)
    }

    /// Every block device, partitions included, by name.
    pub fn list(sys: &SysRoot) -> Vec<Device> {
        let mut found: Vec<Device> =
            children(&sys.path("sys/class/block")).into_iter().filter_map(|name| Self::by_name(sys, &name)).collect();
        found.sort_by_key(|device| natural(&device.name));
        found
    }

    /// One attribute, cleaned; `name` may reach below (`queue/rotational`, `device/wwid`).
    pub fn attribute(&self, name: &str) -> Option<String> {
        attribute(&self.dir, name)
    }

    /// One attribute as it is (SCSI pages are binary); at most 4 KiB.
    pub fn bytes_of(&self, name: &str) -> Option<Vec<u8>> {
        read_bounded(&self.dir.join(name), ATTRIBUTE_LIMIT)
    }

    /// One numeric attribute.
    pub fn number_of(&self, name: &str) -> Option<u64> {
        self.attribute(name)?.parse().ok()
    }

    /// Size in bytes; sysfs counts in 512-byte units whatever the sector size.
    pub fn bytes(&self) -> u64 {
        self.number_of("size").and_then(|sectors| sectors.checked_mul(512)).unwrap_or(0)
    }

    /// The partition's number, where this is a partition.
    pub fn partition_number(&self) -> Option<u32> {
        self.attribute("partition")?.parse().ok()
    }

    /// The whole disk that this partition lies on; `None` for whole disks.
    pub fn parent(&self) -> Option<Device> {
        self.partition_number()?;
        Self::at(&self.sys, self.dir.parent()?)
    }

    /// The whole disk: the parent of a partition, or the device itself.
    pub fn whole(&self) -> Device {
        self.parent().unwrap_or_else(|| self.clone())
    }

    /// The kernel's partitions on this disk.
    pub fn partitions(&self) -> Vec<Device> {
        let mut found: Vec<Device> = children(&self.dir)
            .into_iter()
            .filter(|name| self.dir.join(name).join("partition").exists())
            .filter_map(|name| Self::at(&self.sys, &self.dir.join(name)))
            .collect();
        found.sort_by_key(|device| device.partition_number());
        found
    }

    /// Devices that this one is made of (members of RAID, LVM, crypt, multipath).
    pub fn slaves(&self) -> Vec<Device> {
        self.linked("slaves")
    }

    /// Devices made of this one.
    pub fn holders(&self) -> Vec<Device> {
        self.linked("holders")
    }

    fn linked(&self, folder: &str) -> Vec<Device> {
        children(&self.dir.join(folder))
            .into_iter()
            .filter_map(|name| Self::at(&self.sys, &self.dir.join(folder).join(name)))
            .collect()
    }

    /// This device and all that lies on it: partitions, and holders of either, to any depth.
    pub fn and_above(&self) -> Vec<Device> {
        closure(self, |device| [device.partitions(), device.holders()].concat())
    }

    /// This device and all that it lies on: its whole disk, its slaves, and the devices that carry a loop device's file.
    pub fn and_below(&self) -> Vec<Device> {
        closure(self, |device| {
            let mut below = device.slaves();
            below.extend(device.parent());
            if let Some(backing) = device.backing_file() {
                below.extend(carriers(&device.sys, &backing));
            }
            below
        })
    }

    /// The file behind a loop device, as the kernel names it.
    pub fn backing_file(&self) -> Option<PathBuf> {
        let mut bytes = read_bounded(&self.whole().dir.join("loop/backing_file"), ATTRIBUTE_LIMIT)?;
        while bytes.last().is_some_and(|b| *b == b'\n' || *b == 0) {
            bytes.pop();
        }
        (!bytes.is_empty()).then(|| PathBuf::from(OsString::from_vec(bytes)))
    }

    /// The sectors that the kernel counted as written to and discarded on this device (a partition: on it alone) since it booted. `None`
    /// where nobody counts. Requests are no measure: a flush that writes nothing is one.
    pub fn written(&self) -> Option<Vec<u64>> {
        if self.whole().number_of("queue/iostats") == Some(0) {
            return None;
        }
        let stat = self.attribute("stat")?;
        let fields: Vec<u64> = stat.split(' ').map_while(|field| field.parse().ok()).collect();
        let written = *fields.get(6)?;
        // Discards are counted since Linux 4.18.
        Some([Some(written), fields.get(13).copied()].into_iter().flatten().collect())
    }

    /// The loop device that shows the file at this resolved path.
    pub fn showing(sys: &SysRoot, file: &Path) -> Option<Device> {
        let whole = Self::list(sys).into_iter().filter(|device| device.partition_number().is_none());
        whole.into_iter().find(|device| device.backing_file().as_deref() == Some(file))
    }

    /// `dm/uuid`, e.g. `mpath-3600508…`, `LVM-…`, `CRYPT-LUKS2-…`.
    pub fn mapper_uuid(&self) -> Option<String> {
        self.attribute("dm/uuid")
    }

    /// The multipath device that this disk (or the disk of this partition) is a path leg of.
    pub fn multipath_holder(&self) -> Option<Device> {
        [self.clone(), self.whole()]
            .iter()
            .flat_map(Device::holders)
            .find(|holder| holder.mapper_uuid().is_some_and(|uuid| uuid.starts_with("mpath-")))
    }

    /// udev's properties of this device (`E:` lines), empty where udev does not run.
    pub fn udev(&self) -> BTreeMap<String, String> {
        self.udev_lines('E').filter_map(|line| line.split_once('=').map(|(k, v)| (k.into(), v.into()))).collect()
    }

    /// udev's links to this device, below `/dev` (`disk/by-id/…`), sorted.
    pub fn links(&self) -> Vec<String> {
        let mut links: Vec<String> = self.udev_lines('S').collect();
        links.sort();
        links
    }

    fn udev_lines(&self, letter: char) -> impl Iterator<Item = String> + use<> {
        let text = self.sys.text(&format!("run/udev/data/b{}", self.number)).unwrap_or_default();
        let prefix = format!("{letter}:");
        text.lines()
            .take(4096)
            .filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Short name for people: that of a device-mapper device, else the kernel's; fit for a disk's name in a plan.
    pub fn known_as(&self) -> String {
        self.attribute("dm/name").unwrap_or_else(|| self.name.replace('!', "-"))
    }

    /// `/dev/NAME`, or `/dev/mapper/NAME` for device-mapper devices: how people know it.
    pub fn node(&self) -> String {
        match self.attribute("dm/name") {
            Some(name) => format!("/dev/mapper/{name}"),
            None => format!("/dev/{}", self.name.replace('!', "/")),
        }
    }

    /// `sata`, `nvme`, `scsi`, `usb`, `virtio`, `dm`, `md`, `loop` …, from the device's place in sysfs; `None` if unknown.
    pub fn transport(&self) -> Option<String> {
        let path = self.dir.to_string_lossy();
        let name = self.whole().name;
        let by_name = [
            ("dm-", "dm"),
            ("md", "md"),
            ("loop", "loop"),
            ("zram", "zram"),
            ("ram", "ram"),
            ("sr", "optical"),
            ("fd", "floppy"),
            ("nvme", "nvme"),
            ("vd", "virtio"),
            ("xvd", "xen"),
            ("nbd", "nbd"),
            ("rbd", "rbd"),
            ("drbd", "drbd"),
            ("mmcblk", "mmc"),
            ("cciss", "scsi"),
            ("pmem", "pmem"),
            ("dasd", "dasd"),
            ("bcache", "bcache"),
            ("zd", "zvol"),
        ];
        let by_path = [
            ("/usb", "usb"),
            ("/ata", "sata"),
            ("/rport-", "fibre channel"),
            ("/session", "iscsi"),
            ("/end_device-", "sas"),
            ("/virtio", "virtio"),
            ("/vmbus", "hyper-v"),
            ("/nvme", "nvme"),
            ("/target", "scsi"),
        ];
        let found = by_name
            .iter()
            .find(|(prefix, _)| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(name_tail)))
            .or_else(|| by_path.iter().find(|(part, _)| path.contains(part)));
        found.map(|(_, transport)| (*transport).to_owned())
    }
}

/// What follows a driver's prefix in a device's name: a number, a letter, or cciss's exclamation mark.
fn name_tail(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '!'
}

fn attribute(dir: &Path, name: &str) -> Option<String> {
    clean(&String::from_utf8_lossy(&read_bounded(&dir.join(name), ATTRIBUTE_LIMIT)?))
}

fn children(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.take(65536).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// `sda2` before `sda10`.
fn natural(name: &str) -> (String, u64, String) {
    let digits: String =
        name.chars().rev().take_while(char::is_ascii_digit).collect::<Vec<_>>().into_iter().rev().collect();
    let stem = name[..name.len() - digits.len()].to_owned();
    (stem, digits.parse().unwrap_or(0), name.to_owned())
}

fn closure(start: &Device, next: impl Fn(&Device) -> Vec<Device>) -> Vec<Device> {
    let mut seen: BTreeSet<DeviceNumber> = BTreeSet::from([start.number]);
    let mut all = vec![start.clone()];
    let mut layer = vec![start.clone()];
    for _ in 0..DEPTH_LIMIT {
        layer = layer.iter().flat_map(&next).filter(|device| seen.insert(device.number)).collect();
        if layer.is_empty() {
            break;
        }
        all.extend(layer.iter().cloned());
    }
    all
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The number of the mounted device; anonymous (major 0) for Btrfs and network file systems.
    pub number: DeviceNumber,
    /// What was mounted, e.g. `/dev/sda2`.
    pub source: String,
    /// Where.
    pub at: PathBuf,
    /// `ext4`, `xfs` …
    pub file_system: String,
    /// The mount or the file system below it is read-only.
    pub read_only: bool,
}

impl Mount {
    /// The block devices that carry this mount: one, or all members of a Btrfs; none for virtual file systems.
    pub fn devices(&self, sys: &SysRoot) -> Vec<Device> {
        let one = Device::by_number(sys, self.number).or_else(|| {
            self.source.starts_with("/dev/").then(|| Device::by_path(sys, Path::new(&self.source))).flatten()
        });
        let Some(one) = one else { return Vec::new() };
        if self.file_system != "btrfs" {
            return vec![one];
        }
        // A Btrfs over several devices names only one of them in mountinfo.
        let pools = sys.path("sys/fs/btrfs");
        for pool in children(&pools) {
            let members: Vec<Device> = children(&pools.join(&pool).join("devices"))
                .iter()
                .filter_map(|name| Device::by_name(sys, name))
                .collect();
            if members.contains(&one) {
                return members;
            }
        }
        vec![one]
    }
}

/// What is mounted, in the kernel's order.
pub fn mounts(sys: &SysRoot) -> Vec<Mount> {
    sys.text("proc/self/mountinfo").unwrap_or_default().lines().take(65536).filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let head: Vec<&str> = head.split(' ').collect();
    let tail: Vec<&str> = tail.split(' ').collect();
    let read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        number: parse_number(head.get(2)?)?,
        source: unescape(tail.get(1)?).to_string_lossy().into_owned(),
        at: PathBuf::from(unescape(head.get(4)?)),
        file_system: (*tail.first()?).to_owned(),
        read_only: read_only(head.get(5)?) || tail.get(2).is_some_and(|options| read_only(options)),
    })
}

/// The kernel writes space, tab, newline and backslash as `\040` and so on.
fn unescape(text: &str) -> OsString {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(out)
}

/// Where any of these devices is mounted.
pub fn mounts_of(sys: &SysRoot, devices: &[Device]) -> Vec<Mount> {
    let carries = |mount: &Mount| {
        mount.devices(sys).iter().any(|found| devices.iter().any(|device| device.number == found.number))
    };
    mounts(sys).into_iter().filter(carries).collect()
}

/// Devices and files used as swap, as `/proc/swaps` names them.
pub fn swaps(sys: &SysRoot) -> Vec<PathBuf> {
    let text = sys.text("proc/swaps").unwrap_or_default();
    text.lines().skip(1).filter_map(|line| Some(PathBuf::from(unescape(line.split_whitespace().next()?)))).collect()
}

/// The block devices that carry the file system of `path` (which need not exist below a recorded root).
pub fn carriers(sys: &SysRoot, path: &Path) -> Vec<Device> {
    let real = if sys.is_live() { path.canonicalize().unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() };
    // The longest mount point wins; of equal ones the last, which covers the earlier.
    let mut best: Option<Mount> = None;
    for mount in mounts(sys) {
        let longer = best.as_ref().is_none_or(|b| mount.at.as_os_str().len() >= b.at.as_os_str().len());
        if longer && real.starts_with(&mount.at) {
            best = Some(mount);
        }
    }
    let mut devices = best.map(|mount| mount.devices(sys)).unwrap_or_default();
    if sys.is_live() {
        // A container's mount table may hide the device; the inode tells.
        use std::os::unix::fs::MetadataExt;
        if let Ok(meta) = std::fs::metadata(&real) {
            let by_inode = Device::by_number(sys, DeviceNumber::from_raw(meta.dev()));
            devices.extend(by_inode.filter(|device| !devices.contains(device)));
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let line =
            r"36 35 8:2 / /mnt/with\040space\134x rw,noatime shared:1 master:2 - ext4 /dev/sda2 rw,errors=continue";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.number, DeviceNumber { major: 8, minor: 2 });
        assert_eq!(mount.at, Path::new(r"/mnt/with space\x"));
        assert!(!mount.read_only);
        assert!(parse_mount("36 35 8:2 / /x ro - xfs /dev/sdb rw").unwrap().read_only);
        assert!(parse_mount("36 35 8:2 / /x rw - xfs /dev/sdb ro").unwrap().read_only);
        for hostile in ["", " - ", "1 2 3 - 4", "1 2 a:b / /x rw - t s o", r"1 2 8:1 / \9 rw - t s o"] {
            let _ = parse_mount(hostile);
        }
    }

    #[test]
    fn vendor_text_is_cleaned_and_bounded() {
        assert_eq!(clean("  ST4000\u{1b}[31m  NM \n"), Some("ST4000 [31m NM".into()));
        assert_eq!(clean(" \0\n"), None);
        assert_eq!(clean(&"中".repeat(1000)).unwrap().len(), 255);
    }

    #[test]
    fn names_sort_as_people_count() {
        let mut names = ["sda10", "sda2", "nvme0n1", "sda"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["nvme0n1", "sda", "sda2", "sda10"]);
    }
}
