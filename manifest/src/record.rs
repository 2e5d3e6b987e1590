//! A record: one block, framed for the array (and, from its codec inwards, for the wire).
//!
//! ```text
//! header 128 bytes │ payload stored_bytes │ zero padding to a multiple of 4096
//! ```
//! The payload is the block, perhaps compressed (codec), perhaps then encrypted (cipher: AES-256-GCM, 16-byte tag at the
//! end, NIST SP 800-38D). The first 80 bytes of the header are the associated data of the encryption, so a record cannot be
//! moved to another shipment, writing process, disk, generation or block. Headers hold numbers only. All integers are
//! little-endian.

use crate::error::{FormatError, Result};
use crate::geometry::{MAX_BLOCK_BYTES, PAGE_BYTES};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;
use zstd::zstd_safe::CParameter;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 128;
/// Leading bytes of the header that are the associated data of the encryption.
pub const AAD_BYTES: usize = 80;
/// Bytes of the authentication tag at the end of an encrypted payload.
pub const TAG_BYTES: u32 = 16;
/// First bytes of every record.
pub const MAGIC: [u8; 8] = *b"MGRECORD";

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    None,
    /// One Zstandard frame (RFC 8878) without dictionary.
    Zstd,
}

impl Codec {
    /// The number in header and manifest.
    pub fn number(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Zstd => 1,
        }
    }
    /// Reads the number.
    ///
    /// # Errors
    /// An unknown number.
    pub fn from_number(number: u64) -> Result<Self> {
        match number {
            0 => Ok(Codec::None),
            1 => Ok(Codec::Zstd),
            _ => Err(FormatError::unsupported("Codec", number.to_string(), "0 (none) and 1 (zstd)")),
        }
    }
}

/// How a payload is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// Plaintext shipment.
    None,
    /// AES-256-GCM under the writing process's content key.
    Aes256Gcm,
}

/// Which block a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId {
    /// The disk's number in its shipment, from 1.
    pub disk: u32,
    /// The generation of the disk, 0 for the seed.
    pub generation: u32,
    /// The block's index on the disk.
    pub block: u64,
}

/// A record's header, decoded and bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The shipment's UUID.
    pub shipment: Uuid,
    /// Number of the writing process; names the key envelope.
    pub process: u32,
    /// Which block.
    pub id: RecordId,
    /// Compression.
    pub codec: Codec,
    /// Encryption.
    pub cipher: Cipher,
    /// Bytes of the block itself, 1 to 16 MiB.
    pub plain_bytes: u32,
    /// Bytes after compression, before encryption.
    pub packed_bytes: u32,
    /// Bytes of the payload as stored: `packed_bytes`, plus the tag when encrypted.
    pub stored_bytes: u32,
    /// The counter that is the nonce of this payload; 0 when not encrypted.
    pub nonce: u64,
    /// CRC-32 (IEEE) of the payload as stored.
    pub payload_crc: u32,
}

impl Header {
    /// Bytes from the start of this record to the start of the next: header, payload and padding.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.stored_bytes)
    }

    /// The 128 bytes on the array.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&(crate::FORMAT as u16).to_le_bytes());
        bytes[10] = 1; // kind: a whole block
        bytes[11] = self.codec.number();
        bytes[12] = match self.cipher {
            Cipher::None => 0,
            Cipher::Aes256Gcm => 1,
        };
        bytes[16..32].copy_from_slice(self.shipment.as_bytes());
        bytes[32..36].copy_from_slice(&self.process.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.id.disk.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.id.generation.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.id.block.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.packed_bytes.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.stored_bytes.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[80..84].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// Wrong magic or CRC-32, a reserved byte that is not zero, an unknown version, kind, codec or cipher, or lengths that
    /// contradict each other or exceed 16 MiB.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = |expected: &str, found: String| FormatError::damaged("Record header", expected, found);
        let bytes: &[u8; HEADER_BYTES] = bytes
            .get(..HEADER_BYTES)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(|| damaged("128 bytes", format!("{} bytes", bytes.len())))?;
        if bytes[0..8] != MAGIC {
            return Err(damaged("the magic MGRECORD", "other bytes".into()));
        }
        let crc = crc32fast::hash(&bytes[..124]);
        if u32_at(bytes, 124) != crc {
            return Err(damaged(&format!("CRC-32 {:08x}", u32_at(bytes, 124)), format!("{crc:08x}")));
        }
        let format = u16::from_le_bytes([bytes[8], bytes[9]]);
        if u32::from(format) != crate::FORMAT {
            return Err(damaged(&format!("format {}", crate::FORMAT), format!("format {format}")));
        }
        if bytes[10] != 1 {
            return Err(damaged("kind 1 (block)", format!("kind {}", bytes[10])));
        }
        let reserved = [&bytes[13..16], &bytes[44..48], &bytes[68..72], &bytes[84..124]];
        if reserved.iter().any(|range| range.iter().any(|byte| *byte != 0)) {
            return Err(damaged("zeros in reserved bytes", "others".into()));
        }
        let cipher = match bytes[12] {
            0 => Cipher::None,
            1 => Cipher::Aes256Gcm,
            other => return Err(damaged("cipher 0 (none) or 1 (AES-256-GCM)", format!("cipher {other}"))),
        };
        let header = Header {
            shipment: Uuid::from_slice(&bytes[16..32]).unwrap_or_default(),
            process: u32_at(bytes, 32),
            id: RecordId { disk: u32_at(bytes, 36), generation: u32_at(bytes, 40), block: u64_at(bytes, 48) },
            codec: Codec::from_number(u64::from(bytes[11]))
                .map_err(|_| damaged("codec 0 (none) or 1 (zstd)", format!("codec {}", bytes[11])))?,
            cipher,
            plain_bytes: u32_at(bytes, 56),
            packed_bytes: u32_at(bytes, 60),
            stored_bytes: u32_at(bytes, 64),
            nonce: u64_at(bytes, 72),
            payload_crc: u32_at(bytes, 80),
        };
        header.check_lengths()?;
        Ok(header)
    }

    fn check_lengths(&self) -> Result<()> {
        let tag = if self.cipher == Cipher::None { 0 } else { TAG_BYTES };
        let consistent = (1..=MAX_BLOCK_BYTES).contains(&self.plain_bytes)
            && self.packed_bytes >= 1
            && match self.codec {
                Codec::None => self.packed_bytes == self.plain_bytes,
                Codec::Zstd => self.packed_bytes < self.plain_bytes,
            }
            && self.packed_bytes.checked_add(tag) == Some(self.stored_bytes)
            && (self.cipher != Cipher::None || self.nonce == 0);
        if consistent {
            return Ok(());
        }
        Err(FormatError::damaged(
            "Record header",
            "lengths that agree with each other",
            format!(
                "plain {}, packed {}, stored {}, nonce {}",
                self.plain_bytes, self.packed_bytes, self.stored_bytes, self.nonce
            ),
        ))
    }
}

/// Bytes that a record with a payload of `stored_bytes` takes on the array.
pub fn record_bytes(stored_bytes: u32) -> u64 {
    (HEADER_BYTES as u64 + u64::from(stored_bytes)).next_multiple_of(u64::from(PAGE_BYTES))
}

/// Most bytes that a record of a block of `block_bytes` can take: an output buffer of this size always suffices.
pub fn max_record_bytes(block_bytes: u32) -> usize {
    record_bytes(block_bytes + TAG_BYTES) as usize
}

/// The window that a Zstandard frame asks of its reader (RFC 8878, section 3.1.1.1); a frame of a single segment asks for its
/// content's size, which `plain_bytes` bounds.
fn window_bytes(frame: &[u8]) -> Option<u64> {
    let (descriptor, window) = (*frame.get(4)?, *frame.get(5)?);
    if descriptor & 0x20 != 0 {
        return Some(0);
    }
    let base = 1u64 << (10 + (window >> 3));
    Some(base + base / 8 * u64::from(window & 7))
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The AES-256-GCM key of one writing process, ready for use. Not `Debug`, on purpose.
pub struct RecordKey(LessSafeKey);

impl RecordKey {
    /// Prepares a 32-byte key.
    ///
    /// # Errors
    /// The library refuses the key.
    pub fn new(key: &[u8; 32]) -> Result<Self> {
        UnboundKey::new(&AES_256_GCM, key)
            .map(|key| RecordKey(LessSafeKey::new(key)))
            .map_err(|_| FormatError::untrusted("Content key", "AES-256-GCM does not take it"))
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// One process that writes records into a shipment: its number, and its key with the counter that makes every nonce.
///
/// A key lives in one process and is never loaded again for writing, and the counter only ever moves forward, whatever becomes
/// of the record: so no nonce is used twice.
pub struct Writer {
    shipment: Uuid,
    process: u32,
    key: Option<RecordKey>,
    counter: AtomicU64,
}

impl Writer {
    /// `key` is fresh for this process, or `None` in a plaintext shipment.
    pub fn new(shipment: Uuid, process: u32, key: Option<RecordKey>) -> Self {
        Writer { shipment, process, key, counter: AtomicU64::new(0) }
    }
}

/// Encodes blocks on one thread; reuses its compressor.
pub struct Encoder {
    writer: Arc<Writer>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

/// What compresses blocks at `level`. Level 1 is tuned for blocks of 1 MiB on a host that has other work: its hash table (2^13
/// entries of 4 bytes, not 2^14) stays in the first-level cache, and its pieces are of one length (nine of a MiB, shorter than the
/// 128 KiB from which zstd looks for better borders). A tenth less time for a hundredth more bytes, on text and on databases.
///
/// # Errors
/// zstd cannot allocate its tables, or knows no such level.
pub fn compressor(level: i32) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    let mut zstd = zstd::bulk::Compressor::new(level)?;
    if level == 1 {
        zstd.set_parameter(CParameter::HashLog(13))?;
        zstd.set_parameter(CParameter::MaxBlockSize(117 << 10))?;
    }
    Ok(zstd)
}

/// What [`Encoder::encode`] wrote.
#[derive(Debug, Clone, Copy)]
pub struct Encoded {
    /// Bytes of the record with header and padding: how much of the output buffer is used.
    pub record_bytes: usize,
    /// Bytes of the payload.
    pub stored_bytes: u32,
    /// Compression that was used; `None` where compressing saves no page.
    pub codec: Codec,
}

impl Encoder {
    /// `zstd_level` of `None` stores blocks as they are.
    ///
    /// # Errors
    /// zstd cannot allocate its tables.
    pub fn new(writer: Arc<Writer>, zstd_level: Option<i32>) -> Result<Self> {
        let zstd = zstd_level
            .map(compressor)
            .transpose()
            .map_err(|e| FormatError::damaged("Zstandard", "a compressor", e.to_string()))?;
        Ok(Encoder { writer, zstd })
    }

    /// Writes the record of `plain` (1 byte to 16 MiB) at the start of `out`, which holds at least
    /// [`max_record_bytes`]`(plain.len())`.
    ///
    /// # Errors
    /// `plain` or `out` has no such length, or encryption fails.
    pub fn encode(&mut self, id: RecordId, plain: &[u8], out: &mut [u8]) -> Result<Encoded> {
        let plain_bytes = u32::try_from(plain.len()).ok().filter(|n| (1..=MAX_BLOCK_BYTES).contains(n));
        let Some(plain_bytes) = plain_bytes.filter(|n| out.len() >= max_record_bytes(*n)) else {
            return Err(FormatError::damaged(
                "Block",
                "1 byte to 16 MiB and room for its record",
                format!("{} bytes", plain.len()),
            ));
        };
        let tag = if self.writer.key.is_some() { TAG_BYTES } else { 0 };
        // Worth it only if at least a page of the array is saved; the bound also lets zstd stop early.
        let worth = (record_bytes(plain_bytes + tag) - u64::from(PAGE_BYTES))
            .saturating_sub((HEADER_BYTES as u64) + u64::from(tag));
        let payload = &mut out[HEADER_BYTES..];
        let packed = match &mut self.zstd {
            Some(zstd) if worth > 0 => zstd.compress_to_buffer(plain, &mut payload[..worth as usize]).ok(),
            _ => None,
        };
        let (codec, packed) = match packed {
            Some(packed) => (Codec::Zstd, packed),
            None => {
                payload[..plain.len()].copy_from_slice(plain);
                (Codec::None, plain.len())
            }
        };
        let packed_bytes = packed as u32;
        let mut header = Header {
            shipment: self.writer.shipment,
            process: self.writer.process,
            id,
            codec,
            cipher: if tag == 0 { Cipher::None } else { Cipher::Aes256Gcm },
            plain_bytes,
            packed_bytes,
            stored_bytes: packed_bytes + tag,
            nonce: 0,
            payload_crc: 0,
        };
        if let Some(RecordKey(key)) = &self.writer.key {
            header.nonce = self.writer.counter.fetch_add(1, Ordering::Relaxed) + 1;
            let aad = header.encode();
            let tag = key
                .seal_in_place_separate_tag(nonce(header.nonce), Aad::from(&aad[..AAD_BYTES]), &mut payload[..packed])
                .map_err(|_| FormatError::untrusted("Record", "AES-256-GCM could not encrypt it"))?;
            payload[packed..packed + tag.as_ref().len()].copy_from_slice(tag.as_ref());
        }
        let stored = header.stored_bytes as usize;
        header.payload_crc = crc32fast::hash(&payload[..stored]);
        let total = header.record_bytes() as usize;
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        out[HEADER_BYTES + stored..total].fill(0);
        Ok(Encoded { record_bytes: total, stored_bytes: header.stored_bytes, codec })
    }
}

/// The keys of a shipment's writing processes, by number. Without any it is still known whether records must be encrypted: an
/// encrypted shipment whose envelopes are all lost is no plaintext shipment.
#[derive(Default)]
pub struct Keyring {
    encrypted: bool,
    keys: BTreeMap<u32, RecordKey>,
}

impl Keyring {
    /// No keys yet, of an encrypted shipment or of one in plaintext.
    pub fn new(encrypted: bool) -> Self {
        Keyring { encrypted, keys: BTreeMap::new() }
    }
    /// Adds the key of writing process `process`; so the shipment is encrypted.
    pub fn insert(&mut self, process: u32, key: RecordKey) {
        self.encrypted = true;
        self.keys.insert(process, key);
    }
    /// True if it has no key: of a plaintext shipment, or of one whose envelopes are lost.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// What the manifest says a record must be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The shipment that is being read.
    pub shipment: Uuid,
    /// Which block the manifest's row names.
    pub id: RecordId,
    /// Bytes of that block by the disk's geometry.
    pub plain_bytes: u32,
    /// Stored length in the manifest's row.
    pub stored_bytes: u32,
    /// Codec in the manifest's row.
    pub codec: Codec,
}

/// Decodes records on one thread; reuses its decompressor.
pub struct Decoder {
    keys: Arc<Keyring>,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    /// Decodes records of the shipment that `keys` are of.
    ///
    /// # Errors
    /// zstd cannot allocate its tables.
    pub fn new(keys: Arc<Keyring>) -> Result<Self> {
        let zstd = zstd::bulk::Decompressor::new()
            .map_err(|e| FormatError::damaged("Zstandard", "a decompressor", e.to_string()))?;
        Ok(Decoder { keys, zstd })
    }

    /// Checks the record at the start of `record` against `expected` and puts the block into `plain`, whose length must be
    /// `expected.plain_bytes`. `record` is decrypted in place. The leaf is the caller's to compare.
    ///
    /// # Errors
    /// Damaged: header, CRC-32, padding, tag, compressed data, a header that differs from `expected`, or a writing process without
    /// envelope. Untrusted: a plaintext record in an encrypted shipment, or the reverse; no rot makes one of the other.
    pub fn decode(&mut self, expected: &Expected, record: &mut [u8], plain: &mut [u8]) -> Result<()> {
        let header = Header::decode(record)?;
        let place = format!("Record of disk {}, block {}", header.id.disk, header.id.block);
        if header.shipment != expected.shipment
            || header.id != expected.id
            || header.plain_bytes != expected.plain_bytes
            || header.stored_bytes != expected.stored_bytes
            || header.codec != expected.codec
            || plain.len() != expected.plain_bytes as usize
        {
            return Err(FormatError::damaged(
                place,
                format!(
                    "shipment {}, disk {}, generation {}, block {}, {} bytes stored as {}",
                    expected.shipment,
                    expected.id.disk,
                    expected.id.generation,
                    expected.id.block,
                    expected.plain_bytes,
                    expected.stored_bytes
                ),
                format!(
                    "shipment {}, disk {}, generation {}, block {}, {} bytes stored as {}",
                    header.shipment,
                    header.id.disk,
                    header.id.generation,
                    header.id.block,
                    header.plain_bytes,
                    header.stored_bytes
                ),
            ));
        }
        let total = header.record_bytes() as usize;
        if record.len() < total {
            return Err(FormatError::damaged(place, format!("{total} bytes"), format!("{} bytes", record.len())));
        }
        let (payload, padding) = record[HEADER_BYTES..total].split_at_mut(header.stored_bytes as usize);
        let crc = crc32fast::hash(payload);
        if crc != header.payload_crc {
            return Err(FormatError::damaged(
                place,
                format!("payload CRC-32 {:08x}", header.payload_crc),
                format!("{crc:08x}"),
            ));
        }
        if padding.iter().any(|byte| *byte != 0) {
            return Err(FormatError::damaged(place, "zero padding", "other bytes"));
        }
        let packed: &[u8] = match (header.cipher, self.keys.encrypted) {
            (Cipher::None, false) => payload,
            (Cipher::None, true) => {
                return Err(FormatError::untrusted(place, "a plaintext record in an encrypted shipment"));
            }
            (Cipher::Aes256Gcm, false) => {
                return Err(FormatError::untrusted(place, "an encrypted record in a plaintext shipment"));
            }
            (Cipher::Aes256Gcm, true) => {
                let Some(RecordKey(key)) = self.keys.keys.get(&header.process) else {
                    let expected = format!("a good key envelope of writing process {}", header.process);
                    return Err(FormatError::damaged(place, expected, "none"));
                };
                let aad = header.encode();
                key.open_in_place(nonce(header.nonce), Aad::from(&aad[..AAD_BYTES]), payload).map_err(|_| {
                    FormatError::damaged(
                        place.clone(),
                        "data that its AES-256-GCM tag proves",
                        "data or identity altered",
                    )
                })?
            }
        };
        match header.codec {
            Codec::None => plain.copy_from_slice(packed),
            Codec::Zstd => {
                // zstd itself would go on into a second frame, and pass over one that may be skipped.
                if zstd::zstd_safe::find_frame_compressed_size(packed) != Ok(packed.len()) {
                    return Err(FormatError::damaged(
                        place,
                        "one Zstandard frame",
                        "something else, or more behind it",
                    ));
                }
                if window_bytes(packed).is_none_or(|window| window > u64::from(MAX_BLOCK_BYTES)) {
                    return Err(FormatError::damaged(place, "a Zstandard window of at most 16 MiB", "a larger one"));
                }
                // Bounded: zstd stops when `plain` is full, whatever the frame promises.
                let got = self.zstd.decompress_to_buffer(packed, plain).map_err(|e| {
                    FormatError::damaged(
                        place.clone(),
                        format!("{} bytes after decompression", expected.plain_bytes),
                        e.to_string(),
                    )
                })?;
                if got != expected.plain_bytes as usize {
                    return Err(FormatError::damaged(
                        place,
                        format!("{} bytes after decompression", expected.plain_bytes),
                        format!("{got} bytes"),
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHIPMENT: Uuid = Uuid::from_u128(7);

    fn writer(encrypted: bool) -> (Arc<Writer>, Arc<Keyring>) {
        let key = || RecordKey::new(&[9; 32]).unwrap();
        let mut keys = Keyring::default();
        if encrypted {
            keys.insert(1, key());
        }
        (Arc::new(Writer::new(SHIPMENT, 1, encrypted.then(key))), Arc::new(keys))
    }

    fn expected(id: RecordId, plain: usize, encoded: Encoded) -> Expected {
        Expected {
            shipment: SHIPMENT,
            id,
            plain_bytes: plain as u32,
            stored_bytes: encoded.stored_bytes,
            codec: encoded.codec,
        }
    }

    fn block(len: usize, noisy: bool) -> Vec<u8> {
        let mut state = 1u32;
        (0..len)
            .map(|i| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                if noisy { (state >> 24) as u8 } else { (i / 100) as u8 }
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn a_block_comes_back_and_any_flipped_bit_is_found(
            len in 1usize..70_000, noisy: bool, encrypted: bool, level in prop::option::of(1i32..4), flip: prop::sample::Index, bit in 0u8..8
        ) {
            let (writer, keys) = writer(encrypted);
            let id = RecordId { disk: 3, generation: 0, block: 11 };
            let plain = block(len, noisy);
            let mut out = vec![0xaa; max_record_bytes(len as u32)];
            let encoded = Encoder::new(writer, level).unwrap().encode(id, &plain, &mut out).unwrap();
            out.truncate(encoded.record_bytes);
            prop_assert_eq!(out.len() % 4096, 0);
            let expected = expected(id, len, encoded);
            let mut decoder = Decoder::new(keys).unwrap();
            let mut back = vec![0; len];
            decoder.decode(&expected, &mut out.clone(), &mut back).unwrap();
            prop_assert_eq!(&back, &plain);
            let at = flip.index(out.len());
            out[at] ^= 1 << bit;
            prop_assert!(decoder.decode(&expected, &mut out, &mut back).is_err());
        }
        #[test]
        fn a_header_from_outside_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 128), good_crc: bool) {
            bytes[..8].copy_from_slice(&MAGIC);
            if good_crc {
                let crc = crc32fast::hash(&bytes[..124]);
                bytes[124..128].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = Header::decode(&bytes);
        }
    }

    #[test]
    fn records_cannot_be_swapped_even_with_mended_checksums() {
        let (writer, keys) = writer(true);
        let id = RecordId { disk: 1, generation: 0, block: 5 };
        let plain = block(65536, true);
        let mut out = vec![0; max_record_bytes(65536)];
        let encoded = Encoder::new(writer, None).unwrap().encode(id, &plain, &mut out).unwrap();
        for change in [RecordId { disk: 2, ..id }, RecordId { generation: 1, ..id }, RecordId { block: 6, ..id }] {
            let mut forged = out.clone();
            let header = Header { id: change, ..Header::decode(&forged).unwrap() };
            forged[..HEADER_BYTES].copy_from_slice(&header.encode());
            let mut back = vec![0; plain.len()];
            let mut decoder = Decoder::new(keys.clone()).unwrap();
            let error = decoder.decode(&expected(change, plain.len(), encoded), &mut forged, &mut back).unwrap_err();
            assert!(error.to_string().contains("tag"), "{error}");
        }
    }

    #[test]
    fn a_plaintext_record_in_an_encrypted_shipment_is_refused() {
        let id = RecordId { disk: 1, generation: 0, block: 0 };
        let mut out = vec![0; max_record_bytes(4096)];
        let encoded = Encoder::new(writer(false).0, None).unwrap().encode(id, &[7; 4096], &mut out).unwrap();
        let mut decoder = Decoder::new(writer(true).1).unwrap();
        let error = decoder.decode(&expected(id, 4096, encoded), &mut out, &mut [0; 4096]).unwrap_err();
        assert!(matches!(error, FormatError::Untrusted { .. }), "{error}");
    }

    #[test]
    fn an_unknown_version_kind_codec_or_cipher_of_one_record_is_damage() {
        let mut out = vec![0; max_record_bytes(4096)];
        let id = RecordId { disk: 1, generation: 0, block: 0 };
        Encoder::new(writer(true).0, None).unwrap().encode(id, &[7; 4096], &mut out).unwrap();
        for (at, what) in [(8, "format"), (10, "kind"), (11, "codec"), (12, "cipher"), (13, "reserved")] {
            let mut forged = out.clone();
            forged[at] = 99;
            let crc = crc32fast::hash(&forged[..124]);
            forged[124..128].copy_from_slice(&crc.to_le_bytes());
            let error = Header::decode(&forged).unwrap_err();
            assert!(matches!(error, FormatError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn a_decompression_bomb_stops_at_the_block_size() {
        let bomb = zstd::bulk::compress(&vec![0; 8 << 20], 1).unwrap();
        let id = RecordId { disk: 1, generation: 0, block: 0 };
        let stored = bomb.len() as u32;
        let header = Header {
            shipment: SHIPMENT,
            process: 1,
            id,
            codec: Codec::Zstd,
            cipher: Cipher::None,
            plain_bytes: 65536,
            packed_bytes: stored,
            stored_bytes: stored,
            nonce: 0,
            payload_crc: crc32fast::hash(&bomb),
        };
        let mut record = vec![0; header.record_bytes() as usize];
        record[..HEADER_BYTES].copy_from_slice(&header.encode());
        record[HEADER_BYTES..HEADER_BYTES + bomb.len()].copy_from_slice(&bomb);
        let expected =
            Expected { shipment: SHIPMENT, id, plain_bytes: 65536, stored_bytes: stored, codec: Codec::Zstd };
        let error =
            Decoder::new(writer(false).1).unwrap().decode(&expected, &mut record, &mut vec![0; 65536]).unwrap_err();
        assert!(matches!(error, FormatError::Damaged { .. }), "{error}");
    }
}
