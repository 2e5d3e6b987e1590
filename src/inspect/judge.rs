//! Go, caution or no-go for one disk, with the reasons in both languages.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::lang::Lang;
use crate::say;
use crate::source::device::{Device, carriers};
use crate::source::{Facts, Identity, Origin, Signature, Source, SysRoot, Table};

/// No disk of a server is smaller.
const SMALLEST_BYTES: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// Whether a disk can be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing stands against it.
    Go,
    /// It can be copied, but read the reasons.
    Caution,
    /// It cannot, or must not.
    NoGo,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// Mounted and written to while it is read.
    MountedReadWrite {
        /// Where.
        at: Vec<PathBuf>,
    },
    /// Mounted, but not written to.
    MountedReadOnly {
        /// Where.
        at: Vec<PathBuf>,
    },
    /// Swap space in use.
    Swap,
    /// A path of a multipath device.
    MultipathLeg {
        /// The device to take instead.
        of: String,
    },
    /// It carries the transport array.
    Array {
        /// The array.
        at: PathBuf,
    },
    /// Looks like a transport array that is not mounted (label).
    ArrayLabel {
        /// Its file-system label.
        label: String,
    },
    /// No capacity: an empty card reader, a missing medium.
    Empty,
    /// A member of a RAID, LVM or pool: copying the whole disk copies the member.
    Member {
        /// `lvm2-pv`, `md-raid`, `zfs-member` …
        kind: String,
        /// What is stacked on it now.
        holders: Vec<String>,
    },
    /// Content that will neither compress nor show free space.
    Encrypted {
        /// `luks2`, `bitlocker` …
        kind: String,
    },
    /// The file wraps a disk; its bytes are not the disk's.
    WrappedImage {
        /// `qcow2-image` …
        kind: String,
    },
    /// Nothing that would recognise it after a reboot.
    NoIdentity,
    /// Another disk of this host shows the same WWN.
    SharedWwn {
        /// That disk.
        with: String,
    },
    /// Another disk of this host has the same partition table: they were made from one template, or are one disk.
    SharedTable {
        /// That disk.
        with: String,
    },
    /// Another disk holds the LVM physical volume of the same UUID.
    SharedLvm {
        /// That disk.
        with: String,
        /// The UUID.
        uuid: String,
    },
    /// A partition or file system says that it reaches beyond the end of the disk.
    BeyondEnd {
        /// `partition 2`, `ext4` …
        what: String,
        /// Where it would end, bytes.
        end_bytes: u64,
    },
    /// A system sleeps on it, to go on where it stopped.
    Suspended,
    /// A file that is too small for a disk, or no whole number of sectors.
    OddSize {
        /// Its size, bytes.
        bytes: u64,
    },
    /// Its sectors have 4096 bytes: where it is written it must find such again.
    FourKn,
    /// It could not be opened.
    Unreadable {
        /// The system's words.
        error: String,
    },
    /// Something about its tables or superblocks.
    Note {
        /// What.
        text: String,
    },
}

impl Reason {
    /// How heavily it weighs.
    pub fn verdict(&self) -> Verdict {
        match self {
            Reason::MountedReadOnly { .. } => Verdict::Go,
            Reason::MultipathLeg { .. }
            | Reason::Array { .. }
            | Reason::ArrayLabel { .. }
            | Reason::Empty
            | Reason::WrappedImage { .. }
            | Reason::Unreadable { .. } => Verdict::NoGo,
            _ => Verdict::Caution,
        }
    }

    /// One sentence.
    pub fn text(&self, lang: Lang) -> String {
        let list = |paths: &[PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        match self {
            Reason::MountedReadWrite { at } => {
                let at = list(at);
                say!(
                    lang,
                    "mounted read-write at {at}: fuzzy unless a snapshot hook makes it consistent",
                    "以读写方式挂载于 {at}：没有快照钩子时只能得到模糊（fuzzy）副本"
                )
            }
            Reason::MountedReadOnly { at } => {
                let at = list(at);
                say!(lang, "mounted read-only at {at}", "以只读方式挂载于 {at}")
            }
            Reason::Swap => say!(
                lang,
                "holds swap in use: it changes all the time, fuzzy without a snapshot",
                "含正在使用的交换区：内容不断变化，没有快照时为模糊副本"
            ),
            Reason::MultipathLeg { of } => {
                say!(
                    lang,
                    "a path leg of multipath device {of}: take that instead",
                    "是多路径设备 {of} 的一条路径：请改用该设备"
                )
            }
            Reason::Array { at } => {
                let at = at.display();
                say!(lang, "carries the transport array {at}", "承载移动存储 {at} 本身")
            }
            Reason::ArrayLabel { label } => {
                say!(lang, "its label {label} says that it is a transport array", "卷标 {label} 表明它是移动存储")
            }
            Reason::Empty => say!(lang, "has no capacity (no medium?)", "容量为零（没有介质？）"),
            Reason::Member { kind, holders } => {
                let on = if holders.is_empty() { "–".to_owned() } else { holders.join(", ") };
                say!(
                    lang,
                    "holds {kind} ({on} on it): copy all members of the group together, or copy what lies on it",
                    "含 {kind}（其上为 {on}）：须连同该组全部成员一起复制，或改为复制其上的卷"
                )
            }
            Reason::Encrypted { kind } => say!(
                lang,
                "holds {kind}: it will not compress, and its free space is copied too",
                "含 {kind}：无法压缩，空闲空间也会被复制"
            ),
            Reason::WrappedImage { kind } => say!(
                lang,
                "is a {kind}, not a raw disk: attach it (qemu-nbd) and copy the device",
                "是 {kind} 格式，不是裸盘：请先挂接（qemu-nbd）再复制设备"
            ),
            Reason::NoIdentity => say!(
                lang,
                "has no WWN, serial or table id: after a reboot it is known by its device number only",
                "没有 WWN、序列号或分区表标识：重启后只能凭设备号识别"
            ),
            Reason::SharedWwn { with } => say!(
                lang,
                "shows the same WWN as {with}: two paths to one disk? take one of them only",
                "与 {with} 的 WWN 相同：可能是同一磁盘的两条路径，只能取其一"
            ),
            Reason::SharedTable { with } => say!(
                lang,
                "has the same partition-table id as {with}: clones of one template; name each by a path under /dev/disk/by-id",
                "与 {with} 的分区表标识相同：同一模板的克隆；请用 /dev/disk/by-id 下的路径指定"
            ),
            Reason::SharedLvm { with, uuid } => say!(
                lang,
                "holds the LVM physical volume {uuid}, and so does {with}: never attach copies of both to one machine",
                "与 {with} 含相同的 LVM 物理卷 {uuid}：切勿将两者的副本挂到同一主机"
            ),
            Reason::BeyondEnd { what, end_bytes } => say!(
                lang,
                "{what} ends at byte {end_bytes}, beyond the end of the disk: is the file cut off?",
                "{what} 止于字节 {end_bytes}，超出磁盘末尾：文件是否被截断？"
            ),
            Reason::Suspended => say!(
                lang,
                "holds a suspended system: start it and shut it down before it is copied, or its copy goes on with old memory",
                "含休眠中的系统：请先唤醒并正常关机再复制，否则副本会带着旧内存继续运行"
            ),
            Reason::OddSize { bytes } => say!(
                lang,
                "has {bytes} bytes: too small for a disk, or no whole number of sectors; is it the right file?",
                "大小为 {bytes} 字节：对磁盘而言过小或不是整数扇区；文件是否正确？"
            ),
            Reason::FourKn => say!(
                lang,
                "has sectors of 4096 bytes: a volume with 512 would show no partitions",
                "扇区为 4096 字节：扇区为 512 字节的云卷上将看不到分区"
            ),
            Reason::Unreadable { error } => say!(lang, "cannot be opened: {error}", "无法打开：{error}"),
            Reason::Note { text } => text.clone(),
        }
    }
}

/// What the system alone tells, opened or not.
pub(super) fn by_system(device: Option<&Device>, sys: &SysRoot, array: Option<&Path>) -> Vec<Reason> {
    let Some(device) = device else { return Vec::new() };
    let mut reasons: Vec<Reason> =
        device.multipath_holder().map(|holder| Reason::MultipathLeg { of: holder.node() }).into_iter().collect();
    if let Some(at) = array {
        let carries = |carrier: &Device| carrier.and_below().iter().any(|below| below.number == device.number);
        if carriers(sys, at).iter().any(carries) {
            reasons.push(Reason::Array { at: at.to_owned() });
        }
    }
    reasons
}

/// Everything that stands against, or is worth knowing of, an opened disk.
pub fn judge(source: &Source, sys: &SysRoot, array: Option<&Path>) -> Vec<Reason> {
    let facts = &source.facts;
    let mut reasons = by_system(source.device.as_ref(), sys, array);
    let label =
        facts.signatures().filter_map(|found| found.label.as_ref()).find(|label| label.starts_with("MOTIONGEAR"));
    reasons.extend(label.map(|label| Reason::ArrayLabel { label: label.clone() }));
    if source.bytes == 0 {
        reasons.push(Reason::Empty);
        return reasons;
    }
    let places = |read_only: bool| -> Vec<PathBuf> {
        let mut at: Vec<PathBuf> =
            facts.mounts.iter().filter(|mount| mount.read_only == read_only).map(|mount| mount.at.clone()).collect();
        at.sort();
        at.dedup();
        at
    };
    for (at, writes) in [(places(false), true), (places(true), false)] {
        if !at.is_empty() {
            reasons.push(if writes { Reason::MountedReadWrite { at } } else { Reason::MountedReadOnly { at } });
        }
    }
    if !facts.swaps.is_empty() {
        reasons.push(Reason::Swap);
    }
    if let Some(wrapped) = facts.contents.iter().find(|found| found.is_wrapped_image()) {
        reasons.push(Reason::WrappedImage { kind: wrapped.kind.clone() });
    }
    reasons.extend(beyond_end(source));
    if facts.signatures().any(Signature::is_suspended) {
        reasons.push(Reason::Suspended);
    }
    let is_file = matches!(source.origin, Origin::Path(_)) && source.device.is_none();
    if is_file && (source.bytes < SMALLEST_BYTES || !source.bytes.is_multiple_of(SECTOR_BYTES)) {
        reasons.push(Reason::OddSize { bytes: source.bytes });
    }
    if facts.logical_sector_bytes == Some(4096) {
        reasons.push(Reason::FourKn);
    }
    let mut kinds: Vec<&str> = facts.signatures().map(|found| found.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let kind = kind.to_owned();
        match kind.as_str() {
            "lvm2-pv" | "md-raid" | "zfs-member" | "bcache" => {
                reasons.push(Reason::Member { kind, holders: facts.holders.clone() });
            }
            "luks1" | "luks2" | "bitlocker" => reasons.push(Reason::Encrypted { kind }),
            _ => {}
        }
    }
    let id = &source.identity;
    let known =
        id.wwn.is_some() || id.serial.is_some() || id.mapper.is_some() || id.raid.is_some() || id.file.is_some();
    if !known && id.table.is_none() && id.export.is_none() {
        reasons.push(Reason::NoIdentity);
    }
    let notes = facts.notes.iter().chain(facts.table.iter().flat_map(|table| &table.notes));
    reasons.extend(notes.map(|text| Reason::Note { text: text.clone() }));
    reasons
}

/// Partitions and file systems that end beyond the disk, or beyond their partition.
fn beyond_end(source: &Source) -> Vec<Reason> {
    let facts = &source.facts;
    let partitions = || facts.table.iter().flat_map(|table| &table.partitions);
    let mut found = Vec::new();
    let mut add = |what: String, end: Option<u64>, room: u64| {
        if let Some(end_bytes) = end.filter(|end| *end > room) {
            found.push(Reason::BeyondEnd { what, end_bytes });
        }
    };
    for part in partitions() {
        add(format!("partition {}", part.number), part.start.checked_add(part.bytes), source.bytes);
    }
    for held in &facts.contents {
        add(held.kind.clone(), held.bytes, source.bytes);
    }
    for volume in &facts.volumes {
        let Some(part) = partitions().find(|part| part.number == volume.partition) else { continue };
        for held in &volume.contents {
            let end = held.bytes.and_then(|bytes| part.start.checked_add(bytes));
            let room = part.start.saturating_add(part.bytes).min(source.bytes);
            add(format!("{} in partition {}", held.kind, part.number), end, room);
        }
    }
    found
}

/// What is worth knowing of disks beside each other: for each, what it shares with another. Each has its name, what it is and what is on it.
pub fn shared(disks: &[(&str, Option<&Identity>, &Facts)]) -> Vec<Vec<Reason>> {
    let whole = |at: usize| disks[at].1.is_none_or(|id| id.partition.is_none());
    let table = |at: usize| disks[at].2.table.as_ref().filter(|_| whole(at)).and_then(Table::id);
    let pvs = |at: usize| {
        let held = disks[at].2.signatures().filter(move |held| whole(at) && held.kind == "lvm2-pv");
        held.filter_map(|held| held.uuid.as_ref())
    };
    // What is stacked on a disk (multipath, RAID) shows what the disk holds.
    let carries = |below: usize, above: usize| {
        let name = disks[above].2.kernel_name.as_ref();
        name.is_some_and(|name| disks[below].2.holders.contains(name))
    };
    let others =
        |at: usize| (0..disks.len()).filter(move |other| *other != at && !carries(at, *other) && !carries(*other, at));
    (0..disks.len())
        .map(|at| {
            let mut reasons = Vec::new();
            if let Some(other) = others(at).find(|other| table(at).is_some() && table(at) == table(*other)) {
                reasons.push(Reason::SharedTable { with: disks[other].0.to_owned() });
            }
            for uuid in pvs(at) {
                if let Some(other) = others(at).find(|other| pvs(*other).any(|theirs| theirs == uuid)) {
                    reasons.push(Reason::SharedLvm { with: disks[other].0.to_owned(), uuid: uuid.clone() });
                }
            }
            reasons
        })
        .collect()
}
