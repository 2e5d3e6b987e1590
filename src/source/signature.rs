//! What lies on a disk or partition, by the magic numbers of its superblock. Two bounded reads a volume (72 KiB at the
//! head, 192 KiB at the tail, where old md RAID keeps its superblock); nothing is followed, so nothing can be led astray.

use std::io;

use serde::{Deserialize, Serialize};

use super::device::clean;
use crate::io::ReadAt;

/// Covers the furthest magic at the head: that of Btrfs at 64 KiB.
const HEAD_BYTES: usize = 72 << 10;
/// Covers md RAID 0.90 (up to 128 KiB before the end) and 1.0, and what images end with.
const TAIL_BYTES: u64 = 192 << 10;

/// One recognised superblock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// `ext4`, `xfs`, `ntfs`, `luks2`, `lvm2-pv`, `md-raid` …
    pub kind: String,
    /// As the volume itself says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// In the form in which its own tools print it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// How large it says it is, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl Signature {
    /// Content that looks random whatever it holds: it will not compress, and its free space is copied too.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.kind.as_str(), "luks1" | "luks2" | "bitlocker")
    }

    /// Something that wraps a disk, an image format, an archive, a compressed or backed up one: its bytes are not the disk's bytes.
    pub fn is_wrapped_image(&self) -> bool {
        self.kind.ends_with("-image")
    }

    /// A system that sleeps in its swap space: started from a copy, it goes on with memory of a disk that has moved on.
    pub fn is_suspended(&self) -> bool {
        self.kind == "swap-suspend"
    }
}

/// Looks at the volume of `bytes` that begins at `start` of `disk`. Several signatures are no error: a reused disk often
/// has an old one beside the new.
///
/// # Errors
/// A failed read of the head; an unreadable tail is passed over.
pub fn probe(disk: &dyn ReadAt, start: u64, bytes: u64) -> io::Result<Vec<Signature>> {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX).min(HEAD_BYTES);
    let mut head = vec![0u8; length];
    let got = disk.read_full_at(&mut head, start)?;
    head.truncate(got);
    let mut found = Vec::new();
    for recognise in HEADS {
        found.extend(recognise(&Bytes(&head)));
    }
    let tail_at = bytes.saturating_sub(TAIL_BYTES) & !4095;
    if bytes > 64 << 10
        && let Some(at) = start.checked_add(tail_at)
    {
        let mut tail = vec![0u8; usize::try_from(bytes - tail_at).unwrap_or(0)];
        if let Ok(got) = disk.read_full_at(&mut tail, at) {
            tail.truncate(got);
            found.extend(raid_at_end(&Bytes(&tail), tail_at, bytes));
            if !found.iter().any(Signature::is_wrapped_image) {
                found.extend(wrapped_image_by_its_end(&tail));
            }
        }
    }
    Ok(found)
}

/// Bounds-checked fields: whatever lies beyond the volume is simply not there.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn is(&self, at: usize, magic: &[u8]) -> bool {
        self.slice(at, magic.len()) == Some(magic)
    }
    fn slice(&self, at: usize, length: usize) -> Option<&[u8]> {
        self.0.get(at..at.checked_add(length)?)
    }
    fn le32(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.slice(at, 4)?.try_into().ok()?))
    }
    fn le16(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.slice(at, 2)?.try_into().ok()?))
    }
    fn le64(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.slice(at, 8)?.try_into().ok()?))
    }
    fn be32(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.slice(at, 4)?.try_into().ok()?))
    }
    fn be64(&self, at: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.slice(at, 8)?.try_into().ok()?))
    }
    fn be16(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.slice(at, 2)?.try_into().ok()?))
    }
    fn text(&self, at: usize, length: usize) -> Option<String> {
        let bytes = self.slice(at, length)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        clean(&String::from_utf8_lossy(&bytes[..end]))
    }
    /// A UUID in its stored (big-endian) order; none where it is zero.
    fn uuid(&self, at: usize) -> Option<String> {
        let id = uuid::Uuid::from_slice(self.slice(at, 16)?).ok()?;
        (!id.is_nil()).then(|| id.to_string())
    }
    /// A serial number of FAT or NTFS: little-endian bytes in hex.
    fn serial(&self, at: usize, length: usize) -> Option<String> {
        Some(self.slice(at, length)?.iter().rev().map(|b| format!("{b:02X}")).collect())
    }
}

fn signature(kind: &str, label: Option<String>, uuid: Option<String>) -> Option<Signature> {
    Some(Signature { kind: kind.into(), label, uuid, bytes: None })
}

/// With the size that its superblock says; a product that no disk can have says nothing.
fn sized(found: Option<Signature>, units: Option<u64>, unit: Option<u64>) -> Option<Signature> {
    let bytes = units.zip(unit).and_then(|(units, unit)| units.checked_mul(unit)).filter(|bytes| *bytes > 0);
    found.map(|found| Signature { bytes, ..found })
}

type Recognise = fn(&Bytes) -> Option<Signature>;

const HEADS: [Recognise; 12] =
    [ext, xfs, btrfs, boot_sector, luks, lvm, raid_at_head, swap, iso, wrapped_image, zfs, bcache];

fn ext(b: &Bytes) -> Option<Signature> {
    b.is(0x438, &[0x53, 0xef]).then_some(())?;
    let (compatible, incompatible) = (b.le32(0x45c)?, b.le32(0x460)?);
    let kind = match () {
        () if incompatible & 0x8 != 0 => "ext-journal",
        () if incompatible & (0x40 | 0x80 | 0x200) != 0 => "ext4", // extents, 64bit, flex_bg
        () if compatible & 0x4 != 0 => "ext3",                     // has_journal
        () => "ext2",
    };
    let high = if incompatible & 0x80 != 0 { u64::from(b.le32(0x550)?) << 32 } else { 0 };
    let blocks = b.le32(0x404).map(|low| high | u64::from(low)).filter(|_| kind != "ext-journal");
    let unit = b.le32(0x418).filter(|shift| *shift <= 6).map(|shift| 1024 << shift);
    sized(signature(kind, b.text(0x478, 16), b.uuid(0x468)), blocks, unit)
}

fn xfs(b: &Bytes) -> Option<Signature> {
    b.is(0, b"XFSB").then_some(())?;
    sized(signature("xfs", b.text(108, 12), b.uuid(32)), b.be64(8), b.be32(4).map(u64::from))
}

fn btrfs(b: &Bytes) -> Option<Signature> {
    b.is(0x10040, b"_BHRfS_M").then_some(())?;
    // Of several devices it is the size of all of them that stands at 0x10070; this one's own stands in its dev_item.
    sized(signature("btrfs", b.text(0x1012b, 256), b.uuid(0x10020)), b.le64(0x100d1), Some(1))
}

fn boot_sector(b: &Bytes) -> Option<Signature> {
    if b.is(3, b"-FVE-FS-") || (b.is(3, b"MSWIN4.1") && b.slice(424, 16) == Some(&BITLOCKER_TO_GO)) {
        return signature("bitlocker", None, None);
    }
    if b.is(3, b"NTFS    ") {
        return sized(signature("ntfs", None, b.serial(0x48, 8)), b.le64(0x28), b.le16(0x0b).map(u64::from));
    }
    if b.is(3, b"ReFS\0\0\0\0") {
        return signature("refs", None, None);
    }
    if b.is(3, b"EXFAT   ") {
        let unit = b.slice(108, 1).filter(|shift| shift[0] <= 12).map(|shift| 1 << shift[0]);
        return sized(signature("exfat", None, b.serial(0x64, 4)), b.le64(72), unit);
    }
    b.is(510, &[0x55, 0xaa]).then_some(())?;
    let label = |at| b.text(at, 11).filter(|label| label != "NO NAME");
    let sectors = b.le16(19).filter(|sectors| *sectors > 0).map(u64::from).or_else(|| b.le32(32).map(u64::from));
    let unit = b.le16(11).map(u64::from);
    if b.is(82, b"FAT32   ") {
        return sized(signature("fat32", label(71), b.serial(67, 4)), sectors, unit);
    }
    if b.is(54, b"FAT12   ") || b.is(54, b"FAT16   ") || b.is(54, b"FAT     ") {
        return sized(signature("fat16", label(43), b.serial(39, 4)), sectors, unit);
    }
    None
}

/// BitLocker To Go hides behind a FAT32 boot sector with this GUID in it.
const BITLOCKER_TO_GO: [u8; 16] =
    [0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01];

fn luks(b: &Bytes) -> Option<Signature> {
    b.is(0, b"LUKS\xba\xbe").then_some(())?;
    match b.be16(6)? {
        1 => signature("luks1", None, b.text(168, 40)),
        2 => signature("luks2", b.text(24, 48), b.text(168, 40)),
        _ => None,
    }
}

fn lvm(b: &Bytes) -> Option<Signature> {
    // The label stands in one of the first four sectors.
    let at = (0..4).map(|sector| sector * 512).find(|at| b.is(*at, b"LABELONE") && b.is(at + 24, b"LVM2 001"))?;
    let header = usize::try_from(b.le32(at + 20)?).ok()?;
    let size = at.checked_add(header).and_then(|at| b.le64(at.checked_add(32)?));
    let raw = at.checked_add(header).and_then(|at| b.text(at, 32)).filter(|id| id.len() == 32 && id.is_ascii());
    // lvm prints its ids in groups of 6-4-4-4-4-4-6.
    let uuid = raw.map(|id| {
        let mut rest = id.as_str();
        let groups = [6, 4, 4, 4, 4, 4, 6].map(|length| {
            let (group, tail) = rest.split_at(length);
            rest = tail;
            group
        });
        groups.join("-")
    });
    sized(signature("lvm2-pv", None, uuid), size, Some(1))
}

const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();

fn raid_at_head(b: &Bytes) -> Option<Signature> {
    let at = [0, 4096].into_iter().find(|at| b.is(*at, &MD_MAGIC) && b.le32(at + 4) == Some(1))?; // 1.1, 1.2
    signature("md-raid", b.text(at + 32, 32), b.uuid(at + 16))
}

fn raid_at_end(tail: &Bytes, tail_at: u64, bytes: u64) -> Option<Signature> {
    let within = |at: u64| at.checked_sub(tail_at).and_then(|at| usize::try_from(at).ok());
    // 1.0: at least 8 KiB before the end, on a 4 KiB boundary.
    let at = within(((bytes / 512).checked_sub(16)? & !7) * 512)?;
    if tail.is(at, &MD_MAGIC) && tail.le32(at + 4) == Some(1) {
        return signature("md-raid", tail.text(at + 32, 32), tail.uuid(at + 16));
    }
    // 0.90: the last whole 64 KiB; its UUID lies in two places.
    let at = within((bytes & !0xffff).checked_sub(0x10000)?)?;
    (tail.is(at, &MD_MAGIC) && tail.le32(at + 4) == Some(0)).then_some(())?;
    let id = [tail.slice(at + 20, 4)?, tail.slice(at + 52, 12)?].concat();
    signature("md-raid", None, uuid::Uuid::from_slice(&id).ok().map(|id| id.to_string()))
}

fn swap(b: &Bytes) -> Option<Signature> {
    let page = [4096, 8192, 16384, 65536].into_iter().find(|page| b.is(page - 10, b"SWAPSPACE2"));
    match page {
        Some(_) => signature("swap", b.text(1052, 16), b.uuid(1036)),
        None => {
            // The kernel's, uswsusp's and TuxOnIce's, each in the place of the swap signature.
            let asleep: [&[u8]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
            let at = |page: usize| asleep.iter().any(|magic| b.is(page - 10, magic));
            let tux = b.is(0, b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c");
            (tux || [4096, 8192, 16384, 65536].into_iter().any(at)).then(|| signature("swap-suspend", None, None))?
        }
    }
}

fn iso(b: &Bytes) -> Option<Signature> {
    b.is(0x8001, b"CD001").then_some(())?;
    signature("iso9660", b.text(0x8028, 32), None)
}

/// What begins a file that is no raw disk: image formats, archives, compressed and backed up disks.
const WRAPPED: [(usize, &[u8], &str); 34] = [
    (0, b"QFI\xfb", "qcow2-image"),
    (0, b"KDMV", "vmdk-image"),
    (0, b"COWD", "vmdk-image"),
    (0, b"# Disk DescriptorFile", "vmdk-image"),
    (0, b"vhdxfile", "vhdx-image"),
    (0, b"conectix", "vhd-image"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "vdi-image"),
    (0, b"QED\0", "qed-image"),
    (0, b"WithoutFreeSpace", "parallels-image"),
    (0, b"WithouFreSpacExt", "parallels-image"),
    (0, b"Bochs Virtual HD Image", "bochs-image"),
    (0, b"\x1f\x8b\x08", "gzip-image"),
    (0, b"\xfd7zXZ\0", "xz-image"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-image"),
    (0, b"\x04\x22\x4d\x18", "lz4-image"),
    (0, b"\x89LZO\0\r\n\x1a\n", "lzop-image"),
    (4, b"\x31\x41\x59\x26\x53\x59", "bzip2-image"),
    (0, b"PK\x03\x04", "zip-image"),
    (0, b"PK\x05\x06", "zip-image"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z-image"),
    (0, b"Rar!\x1a\x07", "rar-image"),
    (257, b"ustar", "tar-image"),
    (0, b"VMA\0", "vma-image"),
    (0, b"partclone-image", "partclone-image"),
    (0, b"EVF\x09\x0d\x0a\xff\0", "ewf-image"),
    (0, b"EVF2\r\n\x81\0", "ewf-image"),
    (0, b"LVF\x09\x0d\x0a\xff\0", "ewf-image"),
    (0, b"AFF10\r\n", "aff-image"),
    (0, b"rbd image v", "rbd-export-image"),
    (0, b"rbd diff v", "rbd-export-image"),
    (0, b"MSWIM\0\0\0", "wim-image"),
    (0, b"LZIP", "lzip-image"),
    (0, b"070701", "cpio-image"),
    (0, b"070707", "cpio-image"),
];

fn wrapped_image(b: &Bytes) -> Option<Signature> {
    let (_, _, kind) = WRAPPED.iter().find(|(at, magic, _)| b.is(*at, magic))?;
    // A block size between the two magics of bzip2.
    if *kind == "bzip2-image" && !b.is(0, b"BZh") {
        return None;
    }
    signature(kind, None, None)
}

/// A fixed VHD is a raw disk with a footer, a DMG ends with a trailer: the last sector tells.
fn wrapped_image_by_its_end(tail: &[u8]) -> Option<Signature> {
    let last = Bytes(tail.get(tail.len().checked_sub(512)?..)?);
    match () {
        // Virtual PC before 2004 wrote 511 bytes.
        () if last.is(0, b"conectix") || last.is(1, b"conectix") => signature("vhd-image", None, None),
        () if last.is(0, b"koly") => signature("dmg-image", None, None),
        () => None,
    }
}

fn zfs(b: &Bytes) -> Option<Signature> {
    // A ZFS label's name/value list begins at 16 KiB with the encoding and names the pool's version first.
    (b.is(0x4000, &[1, 1]) && b.is(0x4014, b"version")).then(|| signature("zfs-member", None, None)).flatten()
}

fn bcache(b: &Bytes) -> Option<Signature> {
    const MAGIC: [u8; 16] =
        [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
    b.is(0x1018, &MAGIC).then_some(())?;
    signature("bcache", None, b.uuid(0x1028))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Volume(Vec<u8>);
    impl ReadAt for Volume {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.as_slice().read_at(buffer, offset)
        }
    }

    fn kinds(bytes: Vec<u8>) -> Vec<String> {
        let length = bytes.len() as u64;
        probe(&Volume(bytes), 0, length).unwrap().into_iter().map(|found| found.kind).collect()
    }

    fn with(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 1 << 20];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    }

    #[test]
    fn magics_are_recognised_where_they_belong() {
        assert_eq!(kinds(with(0, b"XFSB")), ["xfs"]);
        assert_eq!(kinds(with(0x438, &[0x53, 0xef])), ["ext2"]);
        assert_eq!(kinds(with(0x10040, b"_BHRfS_M")), ["btrfs"]);
        assert_eq!(kinds(with(0, b"LUKS\xba\xbe\0\x02")), ["luks2"]);
        assert_eq!(kinds(with(0, b"LUKS\xba\xbe\0\x01")), ["luks1"]);
        assert_eq!(kinds(with(3, b"NTFS    ")), ["ntfs"]);
        assert_eq!(kinds(with(3, b"-FVE-FS-")), ["bitlocker"]);
        assert_eq!(kinds(with(4086, b"SWAPSPACE2")), ["swap"]);
        for (at, magic, kind) in WRAPPED.iter().filter(|(_, _, kind)| *kind != "bzip2-image") {
            assert_eq!(kinds(with(*at, magic)), [*kind]);
        }
        assert_eq!(kinds(with(0, b"BZh9\x31\x41\x59\x26\x53\x59")), ["bzip2-image"]);
        assert_eq!(kinds(with((1 << 20) - 512, b"conectix")), ["vhd-image"]);
        assert_eq!(kinds(with(4086, b"LINHIB0001")), ["swap-suspend"]);
        let md = [MD_MAGIC, 1u32.to_le_bytes()].concat();
        assert_eq!(kinds(with(4096, &md)), ["md-raid"]);
        assert_eq!(kinds(with((1 << 20) - 8192, &md)), ["md-raid"]);
        let old = [MD_MAGIC, 0u32.to_le_bytes()].concat();
        assert_eq!(kinds(with((1 << 20) - 65536, &old)), ["md-raid"]);
        assert!(kinds(vec![0u8; 1 << 20]).is_empty());
    }

    #[test]
    fn short_and_empty_volumes_have_no_signature() {
        for length in [0usize, 1, 3, 511, 512, 4096, 65536, 65537, 70000] {
            assert!(kinds(vec![0u8; length]).is_empty());
            let _ = kinds(vec![0xff; length]);
        }
    }

    #[test]
    fn a_physical_volume_with_a_wild_header_offset_has_no_uuid() {
        let mut bytes = with(512, b"LABELONE");
        bytes[512 + 24..512 + 32].copy_from_slice(b"LVM2 001");
        bytes[512 + 20..512 + 24].copy_from_slice(&u32::MAX.to_le_bytes());
        let length = bytes.len() as u64;
        let found = probe(&Volume(bytes), 0, length).unwrap();
        assert_eq!(found, [Signature { kind: "lvm2-pv".into(), label: None, uuid: None, bytes: None }]);
    }

    proptest::proptest! {
        #[test]
        fn noise_never_panics(seed in proptest::collection::vec(proptest::num::u8::ANY, 1..512), length in 0usize..300_000) {
            let bytes: Vec<u8> = seed.iter().copied().cycle().take(length).collect();
            let _ = kinds(bytes);
        }
    }
}
