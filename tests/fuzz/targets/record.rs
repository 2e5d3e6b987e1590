//! One record, with and without keys: edits of a valid one, after which its two CRC-32 may be put right.

use super::{Input, Verdict};
use motiongear_manifest::record::{
    Codec, Decoder, Encoder, Expected, HEADER_BYTES, Header, Keyring, RecordId, RecordKey, Writer, max_record_bytes,
};
use std::sync::{Arc, LazyLock};
use uuid::Uuid;

const SHIPMENT: Uuid = Uuid::from_u128(7);
const ID: RecordId = RecordId { disk: 3, generation: 0, block: 11 };
const KEY: [u8; 32] = [9; 32];

// The first byte of an input.
const ENCRYPTED: u8 = 1;
const PACKED: u8 = 2;
const MEND_PAYLOAD_CRC: u8 = 4;
const MEND_HEADER_CRC: u8 = 8;
/// The manifest's row says what the header says, instead of what the valid record is.
const ROW_AGREES: u8 = 16;
/// The reader has keys for a plaintext shipment, or none for an encrypted one.
const WRONG_KEYS: u8 = 32;

/// The rest is not edits but a payload under a header that fits it.
const OTHER_PAYLOAD: u8 = 64;

struct Base {
    plain: Vec<u8>,
    record: Vec<u8>,
    expected: Expected,
}

fn key() -> RecordKey {
    RecordKey::new(&KEY).unwrap()
}

fn keyring(encrypted: bool) -> Arc<Keyring> {
    let mut keys = Keyring::default();
    if encrypted {
        keys.insert(1, key());
    }
    Arc::new(keys)
}

static BASES: LazyLock<[Base; 4]> = LazyLock::new(|| {
    [0, ENCRYPTED, PACKED, ENCRYPTED | PACKED].map(|flags| {
        let plain: Vec<u8> = (0..9000u32).map(|i| (i / 50 + i % 3) as u8).collect();
        let writer = Writer::new(SHIPMENT, 1, (flags & ENCRYPTED != 0).then(key));
        let mut encoder = Encoder::new(Arc::new(writer), (flags & PACKED != 0).then_some(1)).unwrap();
        let mut record = vec![0; max_record_bytes(plain.len() as u32)];
        let encoded = encoder.encode(ID, &plain, &mut record).unwrap();
        record.truncate(encoded.record_bytes);
        let expected = Expected {
            shipment: SHIPMENT,
            id: ID,
            plain_bytes: plain.len() as u32,
            stored_bytes: encoded.stored_bytes,
            codec: encoded.codec,
        };
        assert_eq!(encoded.codec, if flags & PACKED == 0 { Codec::None } else { Codec::Zstd });
        Base { plain, record, expected }
    })
});

pub fn run(data: &[u8]) -> Verdict {
    let mut input = Input::new(data);
    let flags = input.u8();
    let base = &BASES[usize::from(flags & (ENCRYPTED | PACKED))];
    let mut record = base.record.clone();
    if flags & OTHER_PAYLOAD != 0 {
        other_payload(&mut record, input.rest());
    }
    input.edit(&mut record, 128);
    mend(&mut record, flags);

    let header = Header::decode(&record);
    if let Ok(header) = &header {
        assert_eq!(header.encode(), record[..HEADER_BYTES], "a header that was accepted is written the same");
    }
    let expected = match &header {
        Ok(header) if flags & ROW_AGREES != 0 => Expected {
            shipment: header.shipment,
            id: header.id,
            plain_bytes: header.plain_bytes,
            stored_bytes: header.stored_bytes,
            codec: header.codec,
        },
        _ => base.expected,
    };
    let (encrypted, wrong) = (flags & ENCRYPTED != 0, flags & WRONG_KEYS != 0);
    let mut decoder = Decoder::new(keyring(encrypted != wrong)).unwrap();
    let mut plain = vec![0; expected.plain_bytes as usize];
    let stored = record.clone();
    let result = decoder.decode(&expected, &mut record, &mut plain);
    if result.is_ok() {
        let header = header.expect("no record without its header");
        let total = header.record_bytes() as usize;
        let payload = &stored[HEADER_BYTES..][..header.stored_bytes as usize];
        assert!(!wrong, "a plaintext record in an encrypted shipment, or the reverse, was accepted");
        assert!(stored[HEADER_BYTES + payload.len()..total].iter().all(|byte| *byte == 0), "padding");
        match (encrypted, header.codec) {
            // Whoever has no key can change nothing at all.
            (true, _) => assert!(stored[..total] == base.record && plain == base.plain, "changed without the key"),
            (false, Codec::None) => assert_eq!(plain, payload),
            (false, Codec::Zstd) => {
                let frame = zstd::zstd_safe::find_frame_compressed_size(payload);
                assert_eq!(frame, Ok(payload.len()), "one frame, and nothing behind it");
                assert_eq!(zstd::stream::decode_all(payload).unwrap(), plain);
            }
        }
    }
    Verdict::from(&result)
}

/// Replaces the payload and the header's lengths, so that what zstd takes apart is all that can be wrong.
fn other_payload(record: &mut Vec<u8>, payload: &[u8]) {
    record.truncate(HEADER_BYTES);
    for at in [60, 64] {
        record[at..at + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    }
    record.extend_from_slice(payload);
    record.resize(record.len().next_multiple_of(4096), 0);
}

fn mend(record: &mut [u8], flags: u8) {
    if record.len() < HEADER_BYTES {
        return;
    }
    if flags & MEND_PAYLOAD_CRC != 0 {
        let stored = u32::from_le_bytes(record[64..68].try_into().unwrap()) as usize;
        let end = HEADER_BYTES.saturating_add(stored).min(record.len());
        let crc = crc32fast::hash(&record[HEADER_BYTES..end]);
        record[80..84].copy_from_slice(&crc.to_le_bytes());
    }
    if flags & MEND_HEADER_CRC != 0 {
        let crc = crc32fast::hash(&record[..124]);
        record[124..128].copy_from_slice(&crc.to_le_bytes());
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let all = MEND_HEADER_CRC | MEND_PAYLOAD_CRC;
    let mut seeds: Vec<Vec<u8>> = (0..64).map(|flags| vec![flags]).collect();
    for base in 0..4 {
        // Another length in each of the three fields, another codec, cipher, nonce; a byte of payload.
        for at in [11u8, 12, 56, 60, 64, 72, 140] {
            seeds.push(vec![base | all | ROW_AGREES, 0, at, 0, 0, 0, 1]);
        }
    }
    let frame = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    let plain = &BASES[usize::from(PACKED)].plain;
    let other = |parts: &[&[u8]]| [&[PACKED | all | ROW_AGREES | OTHER_PAYLOAD], parts.concat().as_slice()].concat();
    // The same block in one frame, in two, before and behind a frame that may be skipped; a bomb.
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let whole = frame(plain);
    seeds.push(other(&[&whole]));
    seeds.push(other(&[&frame(&plain[..5000]), &frame(&plain[5000..])]));
    seeds.push(other(&[&whole, &skipped]));
    seeds.push(other(&[&skipped, &whole]));
    seeds.push(other(&[&frame(&vec![0; 8 << 20])]));
    seeds
}
