//! Partition tables of a hostile disk: edits of small disks, after which the CRC-32s of a GPT may be put right. What a table
//! lists is then probed as seeding does it.

use super::{Input, Verdict, is_text};
use gpt::disk::LogicalBlockSize;
use motiongear::io::ReadAt;
use motiongear::source::partition::{PARTITION_LIMIT, Table, read_table};
use motiongear::source::signature::probe;
use std::io;
use std::sync::LazyLock;

const MEND: u8 = 4;
/// The disk says that it is larger than what can be read.
const LARGER: u8 = 8;
/// Reads come in small pieces, and fail behind a place.
const FAILING: u8 = 16;
const DISK_BYTES: usize = 128 << 10;

static BASES: LazyLock<[Vec<u8>; 4]> = LazyLock::new(|| {
    [gpt_disk(LogicalBlockSize::Lb512), gpt_disk(LogicalBlockSize::Lb4096), mbr_disk(), vec![0; DISK_BYTES]]
});

fn gpt_disk(size: LogicalBlockSize) -> Vec<u8> {
    let cursor = Box::new(io::Cursor::new(vec![0; DISK_BYTES]));
    let mut disk =
        gpt::GptConfig::new().writable(true).logical_block_size(size).create_from_device(cursor, None).unwrap();
    disk.add_partition("root", 8 << 10, gpt::partition_types::LINUX_FS, 0, None).unwrap();
    disk.add_partition("swap", 8 << 10, gpt::partition_types::LINUX_SWAP, 0, None).unwrap();
    disk.write().unwrap().into_inner()
}

/// Two primary partitions and a chain of three logical ones.
fn mbr_disk() -> Vec<u8> {
    let mut disk = vec![0; DISK_BYTES];
    disk[440..444].copy_from_slice(&0xdead_beef_u32.to_le_bytes());
    let mut entry = |record: usize, slot: usize, kind: u8, start: u32, sectors: u32| {
        let at = record * 512 + 446 + 16 * slot;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        disk[record * 512 + 510..record * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    };
    entry(0, 0, 0x83, 8, 20);
    entry(0, 1, 0x05, 60, 150);
    for (record, next) in [(60, Some(50)), (110, Some(100)), (160, None)] {
        entry(record, 0, 0x8e, 2, 30);
        if let Some(next) = next {
            entry(record, 1, 0x05, next, 50);
        }
    }
    disk
}

struct Disk {
    bytes: Vec<u8>,
    /// At most so much a read, and none behind the second.
    failing: Option<(usize, u64)>,
}

impl ReadAt for Disk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some((most, end)) = self.failing else { return self.bytes.as_slice().read_at(buffer, offset) };
        if offset >= end {
            return Err(io::Error::other("a bad sector"));
        }
        let most = most.min(buffer.len());
        self.bytes.as_slice().read_at(&mut buffer[..most], offset)
    }
}

pub fn run(data: &[u8]) -> Verdict {
    let mut input = Input::new(data);
    let (flags, more) = (input.u8(), input.u64());
    let mut bytes = BASES[usize::from(flags & 3)].clone();
    input.edit(&mut bytes, 512);
    if flags & MEND != 0 {
        [512, 4096].into_iter().for_each(|size| mend(&mut bytes, size));
    }
    let claimed = if flags & LARGER != 0 { (bytes.len() as u64).saturating_add(more >> 8) } else { bytes.len() as u64 };
    let failing = (flags & FAILING != 0).then_some(((more & 0xff) as usize + 1, more >> 8 & 0xff_ffff));
    let disk = Disk { bytes, failing };
    let sector = [None, Some(512), Some(4096)][usize::from(flags >> 5) % 3];
    let table = read_table(&disk, claimed, sector);
    let found = match table {
        Ok(Some(table)) => {
            check(&table);
            for partition in table.partitions.iter().take(16) {
                let _ = probe(&disk, partition.start, partition.bytes);
            }
            true
        }
        Ok(None) | Err(_) => false,
    };
    if found { Verdict::Accepted } else { Verdict::Refused }
}

fn check(table: &Table) {
    assert!(table.partitions.len() <= PARTITION_LIMIT && table.notes.len() <= 2 * PARTITION_LIMIT);
    // It goes into the manifest as JSON, and to people.
    let json = serde_json::to_string(table).unwrap();
    assert!(json.len() < 1 << 20, "a table of {} bytes", json.len());
    assert_eq!(&serde_json::from_str::<Table>(&json).unwrap(), table);
    for partition in &table.partitions {
        assert!(partition.name.as_deref().is_none_or(|name| !name.chars().any(char::is_control)));
        assert!(partition.uuid.as_deref().is_none_or(is_text) && is_text(&partition.type_id));
    }
    assert!(table.notes.iter().all(|note| is_text(note)));
}

/// Puts the checksums of both headers right, of the entries first.
fn mend(disk: &mut [u8], size: usize) {
    let number = |disk: &[u8], at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap()) as usize;
    for header in [size, (disk.len() / size).saturating_sub(1) * size] {
        if disk.get(header..).is_none_or(|rest| rest.len() < 512 || &rest[..8] != b"EFI PART") {
            continue;
        }
        let entries = number(disk, header + 72).saturating_mul(size).min(disk.len());
        let length = number(disk, header + 80).saturating_mul(number(disk, header + 84));
        let crc = crc32fast::hash(&disk[entries..entries.saturating_add(length).min(disk.len())]);
        disk[header + 88..header + 92].copy_from_slice(&crc.to_le_bytes());
        disk[header + 16..header + 20].fill(0);
        let length = number(disk, header + 12).clamp(92, 512);
        let crc = crc32fast::hash(&disk[header..header + length]);
        disk[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let input = |flags: u8, more: u64, edits: &[u8]| [&[flags], &more.to_le_bytes()[..], edits].concat();
    let mut seeds: Vec<Vec<u8>> = (0..4).flat_map(|base| [input(base, 0, &[]), input(base | MEND, 0, &[])]).collect();
    seeds.extend((0..4).map(|base| input(base | LARGER | MEND, u64::MAX, &[])));
    seeds.extend((0..4).map(|base| input(base | FAILING, 0x0080_0007, &[])));
    // Each field of the GPT header, then of its first entry.
    for at in (12..92).step_by(4).chain([512, 544, 548, 552, 560, 568]) {
        let at = (512 + at as u16).to_le_bytes();
        seeds.push(input(MEND, 0, &[0, at[0], at[1], 0, 3, 0xff, 0xff, 0xff, 0x7f]));
    }
    // The chain of logical partitions: its first link, a loop.
    seeds.push(input(2, 0, &[0, 0xd6, 1, 0, 3, 0xff, 0xff, 0xff, 0xff]));
    seeds.push(input(2, 0, &[0, 0xd6, 0x79, 0, 0, 0]));
    seeds
}
