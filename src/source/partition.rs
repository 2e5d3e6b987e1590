//! Partition tables, GPT and MBR. Whatever stands on the disk is hostile until verified: counts, sizes and offsets are
//! bounded before anything is read or allocated, and nothing here can fail a seed – a table is a fact, not a need.

use std::io::{self, Read, Seek, SeekFrom, Write};

use gpt::disk::LogicalBlockSize;
use serde::{Deserialize, Serialize};

use super::device::clean;
use crate::io::ReadAt;

/// Partitions listed of one table.
pub const PARTITION_LIMIT: usize = 1024;
/// Logical partitions followed in an MBR's chain, which may be a loop.
const CHAIN_LIMIT: usize = 128;

/// What a partition table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// GUID partition table.
    Gpt,
    /// The PC's master boot record.
    Mbr,
}

/// A partition table as found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// GPT or MBR.
    pub scheme: Scheme,
    /// Disk GUID, or the MBR's 32-bit id in hex; lower case. Empty where an MBR has id 0.
    pub disk_id: String,
    /// Unit of the table's own numbers, bytes.
    pub sector_bytes: u32,
    /// By number.
    pub partitions: Vec<Partition>,
    /// What an MBR has to boot by; none of a GPT, and of tables that were read before this was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_record: Option<BootRecord>,
    /// What is wrong with it, for people: "the primary header is damaged, the backup was used".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What a BIOS finds in an MBR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// Its 440 bytes for code are not all zero. Systems also write code to data disks when they partition them.
    pub code: bool,
    /// A partition is marked active.
    pub active: bool,
}

/// How likely a disk is to be the one that a machine boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loader {
    /// Nothing that firmware would start.
    None,
    /// Half of what a loader needs: an MBR with code and no active partition, or the other way round; or nothing is known but a table.
    Perhaps,
    /// A place made for loaders: an EFI system partition, a BIOS boot partition, code and an active partition.
    Made,
}

impl Table {
    /// `gpt:GUID` or `mbr:ID`; none where the table has no id.
    pub fn id(&self) -> Option<String> {
        let scheme = match self.scheme {
            Scheme::Gpt => "gpt",
            Scheme::Mbr => "mbr",
        };
        (!self.disk_id.is_empty()).then(|| format!("{scheme}:{}", self.disk_id))
    }
}

/// Types of partitions that firmware looks for: EFI's system partition in either table, GRUB's place in a GPT.
const EFI_SYSTEM: [&str; 2] = ["c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef"];
const BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";

impl Table {
    /// Whether (UEFI, BIOS) may find a boot loader by it.
    pub fn boots(&self) -> (bool, bool) {
        let (uefi, bios) = self.loaders();
        (uefi > Loader::None, bios > Loader::None)
    }

    /// What (UEFI, BIOS) finds of a boot loader.
    pub fn loaders(&self) -> (Loader, Loader) {
        let has = |types: &[&str]| {
            self.partitions.iter().any(|partition| types.contains(&partition.type_id.to_ascii_lowercase().as_str()))
        };
        let uefi = has(&EFI_SYSTEM);
        let bios = match self.scheme {
            Scheme::Gpt if has(&[BIOS_BOOT]) => Loader::Made,
            Scheme::Gpt => Loader::None,
            Scheme::Mbr if uefi || self.partitions.is_empty() => Loader::None,
            Scheme::Mbr => match self.boot_record {
                Some(BootRecord { code: true, active: true }) => Loader::Made,
                Some(BootRecord { code: false, active: false }) => Loader::None,
                Some(_) | None => Loader::Perhaps,
            },
        };
        (if uefi { Loader::Made } else { Loader::None }, bios)
    }
}

/// One partition as the table says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// The kernel's number for it.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Type GUID, or the MBR's type as `0x83`.
    pub type_id: String,
    /// The type in words, where it is a common one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_name: Option<String>,
    /// GPT's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// PARTUUID; of an MBR `ID-NN` as the kernel forms it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// Reads the table of a disk of `bytes` with logical sectors of `sector_bytes`; `None` for a file, which does not know
/// its sector size: both usual ones are tried. `Ok(None)`: there is no table.
///
/// # Errors
/// Only a failed read of the first sector.
pub fn read_table(disk: &dyn ReadAt, bytes: u64, sector_bytes: Option<u32>) -> io::Result<Option<Table>> {
    if bytes < 512 {
        return Ok(None);
    }
    let mut first = [0u8; 512];
    disk.read_exact_at(&mut first, 0)?;
    let sizes: &[u32] = match sector_bytes {
        Some(4096) => &[4096],
        Some(_) => &[512],
        None => &[512, 4096],
    };
    for size in sizes {
        if let Some(table) = read_gpt(disk, bytes, *size) {
            return Ok(Some(table));
        }
    }
    let mut table = read_mbr(disk, &first, bytes, sizes[0]);
    if let Some(table) = &mut table
        && table.partitions.iter().any(|partition| partition.type_id == "0xee")
    {
        table.notes.push("A protective MBR without a readable GPT behind it".into());
    }
    Ok(table)
}

/// The `gpt` crate wants a device with a cursor that can be written. This one cannot; and it answers the header
/// sectors from the copies that were checked, so that a device which answers differently the second time gains nothing.
struct Cursor<'a> {
    disk: &'a dyn ReadAt,
    bytes: u64,
    at: u64,
    sectors: Vec<(u64, Vec<u8>)>,
}

impl std::fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cursor at {} of {}", self.at, self.bytes)
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for (start, sector) in &self.sectors {
            if let Some(within) = self.at.checked_sub(*start).and_then(|w| usize::try_from(w).ok())
                && let Some(rest) = sector.get(within..).filter(|rest| !rest.is_empty())
            {
                let take = rest.len().min(buffer.len());
                buffer[..take].copy_from_slice(&rest[..take]);
                self.at += take as u64;
                return Ok(take);
            }
        }
        let take = usize::try_from(self.bytes.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.disk.read_at(&mut buffer[..take], self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Write for Cursor<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One header sector if it is a GPT header with sane counts, zeros otherwise; and what is wrong with it.
///
/// The crate asserts `part_size == 128` and allocates what `num_parts` says, so both are checked here first.
fn header_sector(disk: &dyn ReadAt, offset: u64, size: u32, which: &str, notes: &mut Vec<String>) -> Vec<u8> {
    let mut sector = vec![0u8; size as usize];
    let blank = vec![0u8; size as usize];
    if let Err(error) = disk.read_exact_at(&mut sector, offset) {
        notes.push(format!("The {which} GPT header is unreadable: {error}"));
        return blank;
    }
    if &sector[..8] != b"EFI PART" {
        return blank;
    }
    let number = |at: usize| u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]]);
    let (count, entry) = (number(80), number(84));
    if entry != 128 || count as usize > PARTITION_LIMIT {
        notes.push(format!(
            "The {which} GPT header says {count} entries of {entry} bytes; at most {PARTITION_LIMIT} of 128 are read"
        ));
        return blank;
    }
    sector
}

fn read_gpt(disk: &dyn ReadAt, bytes: u64, size: u32) -> Option<Table> {
    let sector = u64::from(size);
    // Protective MBR, header and one sector of entries at each end is the least that makes sense.
    if bytes < sector.checked_mul(6)? {
        return None;
    }
    let block = LogicalBlockSize::try_from(sector).ok()?;
    let last = bytes - bytes % sector - sector;
    let mut notes = Vec::new();
    let primary = header_sector(disk, sector, size, "primary", &mut notes);
    let backup = header_sector(disk, last, size, "backup", &mut notes);
    let blank = vec![0u8; size as usize];
    if primary == blank && backup == blank {
        return None;
    }
    let open = |first: &Vec<u8>| {
        let sectors = vec![(sector, first.clone()), (last, backup.clone())];
        let cursor = Cursor { disk, bytes: last + sector, at: 0, sectors };
        gpt::GptConfig::new().writable(false).logical_block_size(block).open_from_device(cursor).ok()
    };
    // With a sound primary header the crate takes the primary entries or nothing; hide the header to reach the backup's.
    let found = open(&primary).or_else(|| {
        notes.push("The primary GPT is damaged; its backup was read".into());
        open(&blank)
    })?;
    match (found.primary_header(), found.backup_header()) {
        (Ok(_), Ok(backup)) if found.primary_header().is_ok_and(|primary| primary.disk_guid != backup.disk_guid) => {
            notes.push("Primary and backup GPT name different disk GUIDs".into());
        }
        (Ok(_), Err(_)) => notes.push("The backup GPT header is missing or damaged".into()),
        (Err(_), Ok(_)) if notes.is_empty() => {
            notes.push("The primary GPT header is damaged; its backup was read".into());
        }
        _ => {}
    }
    let mut partitions = Vec::new();
    for (number, partition) in found.partitions() {
        if !partition.is_used() {
            continue;
        }
        let start = partition.first_lba.checked_mul(sector);
        let end = partition.last_lba.checked_add(1).and_then(|lba| lba.checked_mul(sector));
        let (Some(start), Some(end)) = (start, end) else {
            notes.push(format!("Partition {number} lies beyond any disk"));
            continue;
        };
        if end <= start || end > bytes {
            notes.push(format!("Partition {number} covers bytes {start} to {end} of a disk of {bytes}"));
        }
        let type_id = partition.part_type_guid.guid.to_string();
        partitions.push(Partition {
            number: *number,
            start,
            bytes: end.saturating_sub(start),
            type_name: gpt_type(&type_id).map(str::to_owned),
            type_id,
            name: clean(&partition.name),
            uuid: Some(partition.part_guid.to_string()),
        });
    }
    Some(Table {
        scheme: Scheme::Gpt,
        disk_id: found.guid().to_string(),
        sector_bytes: size,
        partitions,
        boot_record: None,
        notes,
    })
}

/// The partition types that a bank's servers have; everything else is shown by its GUID.
fn gpt_type(guid: &str) -> Option<&'static str> {
    Some(match guid {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "EFI system",
        "21686148-6449-6e6f-744e-656564454649" => "BIOS boot",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "Linux data",
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => "Linux swap",
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => "Linux LVM",
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => "Linux RAID",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "Linux root",
        "ca7d7ccb-63ed-4c53-861c-1742536059cc" => "LUKS",
        "9e1a2d38-c612-4316-aa26-8b49521e5a8b" => "PowerPC PReP boot",
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7" => "Windows data",
        "e3c9e316-0b5c-4db8-817d-f92df00215ae" => "Microsoft reserved",
        "de94bba4-06d1-4d40-a16a-bfd50179d6ac" => "Windows recovery",
        "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3" => "Windows LDM metadata",
        "af9b60a0-1431-4f62-bc68-3311714a69ad" => "Windows LDM data",
        "aa31e02a-400f-11db-9590-000c2911d1b8" => "VMware VMFS",
        _ => return None,
    })
}

fn mbr_type(id: u8) -> Option<&'static str> {
    Some(match id {
        0x01 | 0x04 | 0x06 | 0x0e => "FAT16",
        0x0b | 0x0c => "FAT32",
        0x05 | 0x0f | 0x85 => "extended",
        0x07 => "NTFS or exFAT",
        0x27 => "Windows recovery",
        0x42 => "Windows LDM",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        0xee => "GPT protective",
        0xef => "EFI system",
        0xfb => "VMware VMFS",
        0xfd => "Linux RAID",
        _ => return None,
    })
}

struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

fn entries(sector: &[u8; 512]) -> Option<Vec<Entry>> {
    if sector[510..] != [0x55, 0xaa] {
        return None;
    }
    let entries = sector[446..510].chunks_exact(16);
    // The status byte is 0 or 0x80; a boot sector of FAT or NTFS has code there and is no partition table.
    if entries.clone().any(|entry| entry[0] & 0x7f != 0) {
        return None;
    }
    let number = |b: &[u8]| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Some(entries.map(|e| Entry { kind: e[4], start: number(&e[8..12]), sectors: number(&e[12..16]) }).collect())
}

fn read_mbr(disk: &dyn ReadAt, first: &[u8; 512], bytes: u64, size: u32) -> Option<Table> {
    let sector = u64::from(size);
    let primary = entries(first)?;
    if primary.iter().all(|entry| entry.kind == 0) {
        return None;
    }
    // A partition that starts beyond the disk's end in every entry is text or code, not a table.
    if primary.iter().filter(|e| e.kind != 0).all(|e| e.start.saturating_mul(sector) >= bytes) {
        return None;
    }
    let id = u32::from_le_bytes([first[440], first[441], first[442], first[443]]);
    let mut table = Table {
        scheme: Scheme::Mbr,
        disk_id: if id == 0 { String::new() } else { format!("{id:08x}") },
        sector_bytes: size,
        partitions: Vec::new(),
        boot_record: Some(BootRecord {
            code: first[..440].iter().any(|byte| *byte != 0),
            active: (446..510).step_by(16).any(|entry| first[entry] == 0x80),
        }),
        notes: Vec::new(),
    };
    let extended = |kind: u8| matches!(kind, 0x05 | 0x0f | 0x85);
    for (number, entry) in (1u32..).zip(&primary) {
        if entry.kind != 0 {
            table.add(
                number,
                entry.kind,
                entry.start.checked_mul(sector),
                entry.sectors.checked_mul(sector),
                bytes,
                id,
            );
        }
    }
    let Some(container) = primary.iter().find(|entry| extended(entry.kind)) else { return Some(table) };
    let mut link = container.start;
    let mut seen = std::collections::BTreeSet::new();
    for number in (5u32..).take(CHAIN_LIMIT) {
        let Some(at) = link.checked_mul(sector).filter(|at| *at < bytes && seen.insert(*at)) else {
            table.notes.push("The chain of logical partitions is broken".into());
            break;
        };
        let mut record = [0u8; 512];
        let readable = disk.read_exact_at(&mut record, at).is_ok();
        let Some(logical) = readable.then(|| entries(&record)).flatten() else {
            table.notes.push(format!("The logical partition record at byte {at} is unreadable or no record"));
            break;
        };
        let (own, next) = (&logical[0], &logical[1]);
        if own.kind != 0 {
            let start = link.checked_add(own.start).and_then(|s| s.checked_mul(sector));
            table.add(number, own.kind, start, own.sectors.checked_mul(sector), bytes, id);
        }
        if next.kind == 0 || next.sectors == 0 {
            break;
        }
        link = container.start.saturating_add(next.start);
    }
    Some(table)
}

impl Table {
    fn add(&mut self, number: u32, kind: u8, start: Option<u64>, length: Option<u64>, disk: u64, id: u32) {
        let (Some(start), Some(bytes)) = (start, length) else {
            self.notes.push(format!("Partition {number} lies beyond any disk"));
            return;
        };
        let end = start.saturating_add(bytes);
        // A protective entry may say "all there can be".
        if (bytes == 0 || end > disk) && kind != 0xee {
            self.notes.push(format!("Partition {number} covers bytes {start} to {end} of a disk of {disk}"));
        }
        self.partitions.push(Partition {
            number,
            start,
            bytes,
            type_id: format!("0x{kind:02x}"),
            type_name: mbr_type(kind).map(str::to_owned),
            name: None,
            uuid: (id != 0).then(|| format!("{id:08x}-{number:02x}")),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn gpt_disk(size: LogicalBlockSize) -> Vec<u8> {
        let bytes = vec![0u8; 8 * MIB];
        let cursor = Box::new(io::Cursor::new(bytes));
        let mut disk =
            gpt::GptConfig::new().writable(true).logical_block_size(size).create_from_device(cursor, None).unwrap();
        disk.add_partition("root", 4 << 20, gpt::partition_types::LINUX_FS, 0, None).unwrap();
        disk.write().unwrap().into_inner()
    }

    fn read(disk: &[u8], size: Option<u32>) -> Option<Table> {
        read_table(&DiskOf(disk), disk.len() as u64, size).unwrap()
    }

    struct DiskOf<'a>(&'a [u8]);
    impl ReadAt for DiskOf<'_> {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buffer, offset)
        }
    }

    #[test]
    fn a_gpt_is_read_with_one_bad_header_or_bad_primary_entries() {
        for (block, size) in [(LogicalBlockSize::Lb512, 512usize), (LogicalBlockSize::Lb4096, 4096)] {
            let whole = gpt_disk(block);
            let table = read(&whole, None).unwrap();
            assert_eq!((table.scheme, table.sector_bytes as usize), (Scheme::Gpt, size));
            assert_eq!(table.partitions.len(), 1);
            assert_eq!(table.partitions[0].name.as_deref(), Some("root"));
            assert_eq!(table.partitions[0].type_name.as_deref(), Some("Linux data"));
            assert!(table.notes.is_empty(), "{:?}", table.notes);
            for damage in [size, 2 * size, whole.len() - size] {
                let mut damaged = whole.clone();
                damaged[damage] ^= 1;
                let found = read(&damaged, None).unwrap();
                assert_eq!((&found.disk_id, &found.partitions), (&table.disk_id, &table.partitions));
                assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
            }
        }
    }

    #[test]
    fn a_hostile_gpt_header_neither_panics_nor_allocates() {
        let whole = gpt_disk(LogicalBlockSize::Lb512);
        for (offset, value) in [(80, u32::MAX), (84, 0), (84, 1), (80, 5000), (84, 4096)] {
            let mut hostile = whole.clone();
            for header in [512, hostile.len() - 512] {
                hostile[header + offset..header + offset + 4].copy_from_slice(&value.to_le_bytes());
                let crc = {
                    let mut bytes = hostile[header..header + 92].to_vec();
                    bytes[16..20].fill(0);
                    crc32fast::hash(&bytes)
                };
                hostile[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
            }
            let table = read(&hostile, Some(512));
            assert!(table.is_none_or(|table| table.scheme == Scheme::Mbr));
        }
    }

    fn mbr_entry(disk: &mut [u8], at: usize, slot: usize, kind: u8, start: u32, sectors: u32) {
        let entry = at + 446 + 16 * slot;
        disk[entry + 4] = kind;
        disk[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        disk[entry + 12..entry + 16].copy_from_slice(&sectors.to_le_bytes());
        disk[at + 510] = 0x55;
        disk[at + 511] = 0xaa;
    }

    #[test]
    fn an_mbr_with_logical_partitions_is_read_and_a_looping_chain_ends() {
        let mut disk = vec![0u8; MIB];
        disk[440..444].copy_from_slice(&0xdead_beefu32.to_le_bytes());
        mbr_entry(&mut disk, 0, 0, 0x83, 8, 100);
        mbr_entry(&mut disk, 0, 1, 0x05, 200, 1000);
        mbr_entry(&mut disk, 200 * 512, 0, 0x8e, 8, 50);
        mbr_entry(&mut disk, 200 * 512, 1, 0x05, 300, 100);
        mbr_entry(&mut disk, 500 * 512, 0, 0x82, 8, 60);
        let table = read(&disk, Some(512)).unwrap();
        assert_eq!(table.id().as_deref(), Some("mbr:deadbeef"));
        let numbers: Vec<_> = table.partitions.iter().map(|p| (p.number, p.start / 512)).collect();
        assert_eq!(numbers, [(1, 8), (2, 200), (5, 208), (6, 508)]);
        assert_eq!(table.partitions[0].uuid.as_deref(), Some("deadbeef-01"));
        mbr_entry(&mut disk, 500 * 512, 1, 0x05, 300, 100);
        assert!(read(&disk, Some(512)).unwrap().notes[0].contains("broken"));
    }

    proptest::proptest! {
        #[test]
        fn noise_is_never_more_than_a_note(flips in proptest::collection::vec((0usize..4096, proptest::num::u8::ANY), 1..40)) {
            let mut disk = gpt_disk(LogicalBlockSize::Lb512);
            let end = disk.len() - 4096;
            for (at, byte) in flips {
                disk[at] = byte;
                disk[end + at] = byte;
            }
            let _ = read(&disk, None);
        }
    }
}
