//! A whole pack without keys: edits of a valid one, after which the CRC-32 of every header may be put right.

use super::{Input, Verdict};
use motiongear_manifest::pack::{PackChecker, PackDigest, PackHeader, PackReport};
use motiongear_manifest::record::{Encoder, HEADER_BYTES, Header, MAGIC, RecordId, Writer, max_record_bytes};
use motiongear_manifest::tree::{Digest, Merger};
use std::sync::{Arc, LazyLock};
use uuid::Uuid;

const HEAD: PackHeader = PackHeader { shipment: Uuid::from_u128(7), pack: 2, medium: 1 };
const PAGE: usize = 4096;
const MEND: u8 = 1;
/// The input is a digest's saved state.
const SAVED_STATE: u8 = 2;

static BASE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut pack = HEAD.encode().to_vec();
    let mut encoder = Encoder::new(Arc::new(Writer::new(HEAD.shipment, 1, None)), None).unwrap();
    // A page that is full to the last byte, one byte more, several pages, one byte.
    for (block, len) in [PAGE - HEADER_BYTES, PAGE - HEADER_BYTES + 1, 9000, 1].into_iter().enumerate() {
        let plain: Vec<u8> = (0..len).map(|i| (i * 7 + block) as u8).collect();
        let mut record = vec![0; max_record_bytes(len as u32)];
        let id = RecordId { disk: 1, generation: 0, block: block as u64 };
        let encoded = encoder.encode(id, &plain, &mut record).unwrap();
        pack.extend_from_slice(&record[..encoded.record_bytes]);
    }
    pack
});

fn check(pack: &[u8], piece: usize) -> PackReport {
    let mut checker = PackChecker::new(HEAD);
    pack.chunks(piece).for_each(|piece| checker.update(piece));
    checker.finish()
}

pub fn run(data: &[u8]) -> Verdict {
    let mut input = Input::new(data);
    let (flags, piece) = (input.u8(), usize::from(input.u16()) + 1);
    if flags & SAVED_STATE != 0 {
        return saved_state(input.rest());
    }
    let mut pack = BASE.clone();
    input.edit(&mut pack, PAGE);
    if flags & MEND != 0 {
        mend(&mut pack);
    }
    let (whole, pieces) = (check(&pack, usize::MAX), check(&pack, piece));
    assert_eq!((whole.faults.clone(), whole.records), (pieces.faults, pieces.records), "pieces of {piece}");
    assert_eq!((whole.bytes, whole.digest), (pack.len() as u64, Digest::of(&pack)));
    assert_eq!(whole.fault_count, whole.faults.len() as u64);
    let mut digest = PackDigest::new();
    pack.chunks(piece).for_each(|piece| digest.update(piece));
    assert_eq!(digest.finish(), (pack.len() != 1 << 20).then(|| Digest::of(&pack)));
    if whole.fault_count > 0 {
        return Verdict::Refused;
    }
    // Without a fault it is headers, payloads and zeros from the first byte to the last.
    assert_eq!(pack[..PAGE], HEAD.encode());
    let (mut at, mut records) = (PAGE, 0);
    while at < pack.len() {
        let header = Header::decode(&pack[at..]).unwrap();
        assert_eq!(header.encode(), pack[at..at + HEADER_BYTES]);
        at += header.record_bytes() as usize;
        records += 1;
    }
    assert_eq!((at, records), (pack.len(), whole.records));
    Verdict::Accepted
}

/// The state of a digest that stands in a live manifest.
fn saved_state(bytes: &[u8]) -> Verdict {
    let loaded = PackDigest::load(bytes, vec![1; 5000]);
    assert_eq!(PackDigest::covered(bytes).is_ok(), loaded.is_ok());
    let verdict = Verdict::from(&loaded);
    if let Ok(mut digest) = loaded {
        assert_eq!(Merger::load(bytes).unwrap().save(), bytes);
        digest.update(&[7; 3000]);
        let _ = digest.finish();
    }
    verdict
}

fn mend(pack: &mut [u8]) {
    if pack.len() >= PAGE {
        let crc = crc32fast::hash(&pack[..60]);
        pack[60..64].copy_from_slice(&crc.to_le_bytes());
    }
    for page in pack.chunks_exact_mut(PAGE).filter(|page| page[..8] == MAGIC) {
        let crc = crc32fast::hash(&page[..124]);
        page[124..128].copy_from_slice(&crc.to_le_bytes());
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut saved = vec![SAVED_STATE, 0, 0, 3];
    saved.extend([0; 7 + 64]);
    let edit = |flags, at: u16, byte| vec![flags, 0, 16, 0, at as u8, (at >> 8) as u8, 0, 0, byte];
    let mut seeds = vec![vec![0], vec![MEND, 0, 1], saved];
    // Numbers of the pack header; lengths, padding and reserved bytes of the second record.
    seeds.extend([16, 32, 36, 40, 64].map(|at| edit(MEND, at, 1)));
    seeds.extend([8, 56, 60, 64, 80, 84, 200].map(|at| edit(MEND, 8192 + at, 1)));
    seeds
}
