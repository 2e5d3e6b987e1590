//! Superblocks of a hostile volume: a magic number where it belongs, then edits around it.

use super::{Input, Verdict};
use motiongear::io::ReadAt;
use motiongear::source::signature::probe;
use std::io;

const VOLUME_BYTES: usize = 260 << 10;

/// Magic numbers and where they stand; negative offsets count from the end.
const MAGICS: [(i64, &[u8]); 25] = [
    (0, b""),
    (0x438, &[0x53, 0xef]),
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),
    (3, b"-FVE-FS-"),
    (3, b"MSWIN4.1"),
    (3, b"NTFS    "),
    (3, b"ReFS\0\0\0\0"),
    (3, b"EXFAT   "),
    (82, b"FAT32   "),
    (54, b"FAT16   "),
    (0, b"LUKS\xba\xbe\0\x01"),
    (0, b"LUKS\xba\xbe\0\x02"),
    (512, b"LABELONE\0\0\0\0\x01\0\0\0\0\0\0\0\x20\0\0\0LVM2 001"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]),
    (-8192, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]),
    (-(0x10000 + 0x1000), &[0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0]),
    (4086, b"SWAPSPACE2"),
    (4086, b"S1SUSPEND"),
    (0x8001, b"CD001"),
    (0, b"QFI\xfb"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe]),
    (0x4000, b"\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0version"),
    (0x1018, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81]),
];

struct Volume(Vec<u8>);
impl ReadAt for Volume {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.as_slice().read_at(buffer, offset)
    }
}

pub fn run(data: &[u8]) -> Verdict {
    let mut input = Input::new(data);
    let (first, second, bounds) = (input.u8(), input.u8(), input.u8());
    let (start, length) = (input.u24() as u64, input.u24() as u64);
    let mut volume = vec![0; VOLUME_BYTES];
    for magic in [first, second] {
        let (at, bytes) = MAGICS[usize::from(magic) % MAGICS.len()];
        let at = if at < 0 { VOLUME_BYTES - at.unsigned_abs() as usize } else { at as usize };
        volume[at..at + bytes.len()].copy_from_slice(bytes);
    }
    // Boot sectors have this too.
    volume[510..512].copy_from_slice(&[0x55, 0xaa]);
    input.edit(&mut volume, 512);
    let bytes = volume.len() as u64;
    let (start, length) = match bounds % 4 {
        0 | 1 => (0, bytes),
        2 => (start, length),
        _ => (u64::MAX - start, u64::MAX - length),
    };
    let found = probe(&Volume(volume), start, length).unwrap();
    assert!(found.len() <= 13);
    for signature in &found {
        for text in [&signature.label, &signature.uuid].into_iter().flatten() {
            assert!(!text.is_empty() && text.len() <= 256 && !text.chars().any(char::is_control), "{signature:?}");
        }
    }
    if found.is_empty() { Verdict::Refused } else { Verdict::Accepted }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..MAGICS.len() as u8).map(|magic| vec![magic]).collect();
    // Labels of more than ASCII, an LVM header that lies elsewhere, bounds that reach nowhere.
    let edit = |magic: u8, at: u16, bytes: &[u8]| {
        let at = at.to_le_bytes();
        [&[magic, 0, 0, 0, 0, 0, 0, 0, 0, 0, at[0], at[1], 0, bytes.len() as u8 - 1], bytes].concat()
    };
    seeds.push(edit(1, 0x478, "河口\u{202e}\u{7f}x".as_bytes()));
    seeds.push(edit(13, 532, &[0xff, 0xff, 0xff, 0xff]));
    seeds.push(edit(13, 544, &[b'a'; 32]));
    seeds.push(edit(13, 544, "河".repeat(10).as_bytes()));
    seeds.extend((2..4).map(|bounds| vec![1, 16, bounds, 1, 2, 3, 0, 0, 1]));
    seeds
}
