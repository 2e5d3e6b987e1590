//! A pack: an append-only file of records behind one header page.

use crate::error::{FormatError, Result};
use crate::geometry::PAGE_BYTES;
use crate::record::{Cipher, HEADER_BYTES, Header, RecordId};
use crate::tree::{Digest, Merger, leaf};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

/// First bytes of every pack.
pub const MAGIC: [u8; 8] = *b"MGPACK\0\0";
/// A pack is closed at the first record that would make it longer, bytes.
pub const MAX_PACK_BYTES: u64 = 8 << 30;
/// Length of the pieces whose leaves merge to a pack's digest, bytes.
pub const LEAF_BYTES: u64 = 1 << 20;
/// Faults that [`PackChecker`] lists; more are only counted.
pub const MAX_LISTED_FAULTS: usize = 10_000;

/// What the first page of a pack says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHeader {
    /// The shipment's UUID.
    pub shipment: Uuid,
    /// The pack's number, from 1; names its file.
    pub pack: u32,
    /// The number of the medium that it lies on, from 1.
    pub medium: u32,
}

impl PackHeader {
    /// The page on the array.
    pub fn encode(&self) -> [u8; PAGE_BYTES as usize] {
        let mut page = [0; PAGE_BYTES as usize];
        page[0..8].copy_from_slice(&MAGIC);
        page[8..10].copy_from_slice(&(crate::FORMAT as u16).to_le_bytes());
        page[16..32].copy_from_slice(self.shipment.as_bytes());
        page[32..36].copy_from_slice(&self.pack.to_le_bytes());
        page[36..40].copy_from_slice(&self.medium.to_le_bytes());
        let crc = crc32fast::hash(&page[..60]);
        page[60..64].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads and checks a page.
    ///
    /// # Errors
    /// Wrong length, magic, CRC-32, version, or reserved bytes that are not zero.
    pub fn decode(page: &[u8]) -> Result<Self> {
        let damaged = |expected: &str, found: &str| Err(FormatError::damaged("Pack header", expected, found));
        if page.len() != PAGE_BYTES as usize {
            return damaged("4096 bytes", &format!("{} bytes", page.len()));
        }
        let number = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        if page[0..8] != MAGIC {
            return damaged("the magic MGPACK", "other bytes");
        }
        if number(60) != crc32fast::hash(&page[..60]) {
            return damaged("a matching CRC-32", "another");
        }
        let format = u16::from_le_bytes([page[8], page[9]]);
        if u32::from(format) != crate::FORMAT {
            return damaged(&format!("format {}", crate::FORMAT), &format!("format {format}"));
        }
        if [&page[10..16], &page[40..60], &page[64..]].iter().any(|range| range.iter().any(|byte| *byte != 0)) {
            return damaged("zeros in reserved bytes", "others");
        }
        Ok(PackHeader {
            shipment: Uuid::from_slice(&page[16..32]).unwrap_or_default(),
            pack: number(32),
            medium: number(36),
        })
    }
}

/// The name of a pack's file below `packs/`.
pub fn pack_file_name(pack: u32) -> String {
    format!("{pack:08}.pack")
}

/// The digest of a pack while it grows. Its saved state and the bytes since the last whole MiB are enough to go on.
#[derive(Debug, Clone, Default)]
pub struct PackDigest {
    merger: Merger,
    tail: Vec<u8>,
}

impl PackDigest {
    /// An empty pack.
    pub fn new() -> Self {
        Self::default()
    }
    /// Bytes taken in so far.
    pub fn bytes(&self) -> u64 {
        self.merger.leaves() * LEAF_BYTES + self.tail.len() as u64
    }
    /// Takes in the next bytes of the pack.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LEAF_BYTES as usize - self.tail.len();
            if self.tail.is_empty() && bytes.len() >= room {
                // The common case hashes straight from the caller's buffer.
                let (whole, rest) = bytes.split_at(room);
                self.merger.push(leaf(self.merger.leaves() * LEAF_BYTES, whole));
                bytes = rest;
                continue;
            }
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            self.tail.extend_from_slice(part);
            bytes = rest;
            if self.tail.len() == LEAF_BYTES as usize {
                self.merger.push(leaf(self.merger.leaves() * LEAF_BYTES, &self.tail));
                self.tail.clear();
            }
        }
    }
    /// The state without the tail, for the live manifest.
    pub fn save(&self) -> Vec<u8> {
        self.merger.save()
    }
    /// How many bytes a saved state covers; the tail to give to [`Self::load`] starts there.
    ///
    /// # Errors
    /// The state is no saved tree, or one of more than a pack may hold.
    pub fn covered(saved: &[u8]) -> Result<u64> {
        Ok(Self::saved_tree(saved)?.leaves() * LEAF_BYTES)
    }
    fn saved_tree(saved: &[u8]) -> Result<Merger> {
        let tree = Merger::load(saved)?;
        let most = MAX_PACK_BYTES / LEAF_BYTES;
        if tree.leaves() > most {
            let found = format!("{} of them", tree.leaves());
            return Err(FormatError::damaged("Saved tree of a pack", format!("at most {most} leaves of 1 MiB"), found));
        }
        Ok(tree)
    }
    /// Goes on from a saved state; `tail` is what the pack holds behind [`Self::covered`], less than 1 MiB.
    ///
    /// # Errors
    /// The state is no saved tree, or one of more than a pack may hold; or the tail is too long.
    pub fn load(saved: &[u8], tail: Vec<u8>) -> Result<Self> {
        if tail.len() as u64 >= LEAF_BYTES {
            return Err(FormatError::damaged("Tail of a pack", "less than 1 MiB", format!("{} bytes", tail.len())));
        }
        Ok(PackDigest { merger: Self::saved_tree(saved)?, tail })
    }
    /// The BLAKE3 of the whole pack: what `b3sum` prints. `None` if the pack ends exactly at its first MiB: then only its
    /// bytes, not their leaf, give the digest, and the caller re-reads that MiB.
    pub fn finish(mut self) -> Option<Digest> {
        if self.merger.leaves() == 0 {
            return Some(Digest::of(&self.tail));
        }
        if !self.tail.is_empty() {
            self.merger.push(leaf(self.merger.leaves() * LEAF_BYTES, &self.tail));
        }
        self.merger.finish()
    }
}

/// One thing that is wrong with a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where in the pack, bytes.
    pub offset: u64,
    /// Which block it damages, where the record's header can still be read.
    #[serde(flatten)]
    pub block: Option<FaultBlock>,
    /// What is wrong.
    pub what: String,
    /// No damage makes it: it was made so.
    pub untrusted: bool,
}

/// What the seal says of every record, whether a row of the manifest names it or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordRules {
    /// Records are in clear.
    Plaintext,
    /// Records are encrypted, by one of these writing processes.
    Encrypted(BTreeSet<u32>),
}

/// The block that a damaged record held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FaultBlock {
    /// The disk's number in the shipment; `seal.json` lists them.
    pub disk: u32,
    /// The generation.
    pub generation: u32,
    /// The block's index.
    pub block: u64,
}

impl From<RecordId> for FaultBlock {
    fn from(id: RecordId) -> Self {
        FaultBlock { disk: id.disk, generation: id.generation, block: id.block }
    }
}

/// What a walk over a whole pack found.
#[derive(Debug, Clone)]
pub struct PackReport {
    /// Bytes read.
    pub bytes: u64,
    /// BLAKE3 of them.
    pub digest: Digest,
    /// Records with a good header.
    pub records: u64,
    /// What is wrong, at most [`MAX_LISTED_FAULTS`].
    pub faults: Vec<Fault>,
    /// How many faults there are in all.
    pub fault_count: u64,
}

/// Checks a pack from front to back without keys, in constant memory, from pieces of any length.
pub struct PackChecker {
    expected: PackHeader,
    records_are: Option<Arc<RecordRules>>,
    hasher: blake3::Hasher,
    /// Start of the piece that the next byte belongs to.
    state: State,
    /// Bytes gathered of a header page.
    page: Vec<u8>,
    position: u64,
    records: u64,
    faults: Vec<Fault>,
    fault_count: u64,
    contradictions: u64,
}

enum State {
    PackHeader,
    /// At a page boundary where a record should start; `lost` while looking for one.
    Page {
        lost: bool,
    },
    Payload {
        at: u64,
        id: RecordId,
        left: u64,
        padding: u64,
        crc: crc32fast::Hasher,
        expected_crc: u32,
    },
    Padding {
        at: u64,
        id: RecordId,
        left: u64,
        dirty: bool,
    },
}

impl PackChecker {
    /// `expected` is what the seal says of this file.
    pub fn new(expected: PackHeader) -> Self {
        PackChecker {
            expected,
            records_are: None,
            hasher: blake3::Hasher::new(),
            state: State::PackHeader,
            page: Vec::with_capacity(PAGE_BYTES as usize),
            position: 0,
            records: 0,
            faults: Vec::new(),
            fault_count: 0,
            contradictions: 0,
        }
    }

    /// Compares each record with what the seal says of all.
    pub fn of_records(self, rules: Arc<RecordRules>) -> Self {
        PackChecker { records_are: Some(rules), ..self }
    }

    fn fault(&mut self, offset: u64, id: Option<RecordId>, what: impl Into<String>) {
        self.note_fault(offset, id, what.into(), false);
    }

    fn note_fault(&mut self, offset: u64, id: Option<RecordId>, what: String, untrusted: bool) {
        self.fault_count += 1;
        self.contradictions += u64::from(untrusted);
        // One that was made so is listed whatever damage came before it: it decides the verdict.
        if self.faults.len() < MAX_LISTED_FAULTS || (untrusted && self.contradictions == 1) {
            self.faults.push(Fault { offset, block: id.map(FaultBlock::from), what, untrusted });
        }
    }

    fn judge_rules(&mut self, start: u64, header: &Header) {
        let Some(rules) = self.records_are.clone() else { return };
        let made_so = match (&*rules, header.cipher) {
            (RecordRules::Plaintext, Cipher::None) => return,
            (RecordRules::Encrypted(processes), Cipher::Aes256Gcm) => {
                if !processes.contains(&header.process) {
                    let what = format!("Record of writing process {}: the seal pins no envelope of it", header.process);
                    self.fault(start, Some(header.id), what);
                }
                return;
            }
            (RecordRules::Plaintext, _) => "Record: it is encrypted, and the shipment is not",
            (RecordRules::Encrypted(_), _) => "Record: it is in clear, and the shipment is encrypted",
        };
        self.note_fault(start, Some(header.id), made_so.to_owned(), true);
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.hasher.update(bytes);
        while !bytes.is_empty() {
            let taken = self.step(bytes);
            self.position += taken as u64;
            bytes = &bytes[taken..];
        }
    }

    /// Consumes some bytes, at least one, and says how many.
    fn step(&mut self, bytes: &[u8]) -> usize {
        match &mut self.state {
            State::PackHeader | State::Page { .. } => {
                let taken = bytes.len().min(PAGE_BYTES as usize - self.page.len());
                self.page.extend_from_slice(&bytes[..taken]);
                if self.page.len() == PAGE_BYTES as usize {
                    let page = std::mem::take(&mut self.page);
                    let start = self.position + taken as u64 - u64::from(PAGE_BYTES);
                    self.header_page(start, &page);
                    self.page = page;
                    self.page.clear();
                }
                taken
            }
            State::Payload { at, id, left, padding, crc, expected_crc } => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                crc.update(&bytes[..taken]);
                *left -= taken as u64;
                if *left == 0 {
                    let (at, id, padding, crc, expected) = (*at, *id, *padding, crc.clone().finalize(), *expected_crc);
                    self.state = if padding == 0 {
                        State::Page { lost: false }
                    } else {
                        State::Padding { at, id, left: padding, dirty: false }
                    };
                    if crc != expected {
                        self.fault(
                            at,
                            Some(id),
                            format!("Record payload: expected CRC-32 {expected:08x}, found {crc:08x}"),
                        );
                    }
                }
                taken
            }
            State::Padding { at, id, left, dirty } => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *dirty |= bytes[..taken].iter().any(|byte| *byte != 0);
                *left -= taken as u64;
                if *left == 0 {
                    let (at, id, dirty) = (*at, *id, *dirty);
                    self.state = State::Page { lost: false };
                    if dirty {
                        self.fault(at, Some(id), "Record padding: expected zeros, found other bytes");
                    }
                }
                taken
            }
        }
    }

    fn header_page(&mut self, start: u64, page: &[u8]) {
        if let State::PackHeader = self.state {
            self.state = State::Page { lost: false };
            match PackHeader::decode(page) {
                Ok(found) if found == self.expected => {}
                Ok(found) => self.fault(
                    start,
                    None,
                    format!(
                        "Pack header: expected shipment {}, pack {}, medium {}, found shipment {}, pack {}, medium {}",
                        self.expected.shipment,
                        self.expected.pack,
                        self.expected.medium,
                        found.shipment,
                        found.pack,
                        found.medium
                    ),
                ),
                Err(error) => self.fault(start, None, error.to_string()),
            }
            return;
        }
        match Header::decode(page) {
            Ok(header) => {
                self.records += 1;
                if header.shipment != self.expected.shipment {
                    self.fault(start, Some(header.id), format!("Record of another shipment, {}", header.shipment));
                }
                self.judge_rules(start, &header);
                let stored = u64::from(header.stored_bytes);
                let padding = header.record_bytes() - HEADER_BYTES as u64 - stored;
                let mut crc = crc32fast::Hasher::new();
                let body = &page[HEADER_BYTES..];
                let here = body.len().min(usize::try_from(stored).unwrap_or(usize::MAX));
                crc.update(&body[..here]);
                let left = stored - here as u64;
                if left > 0 {
                    self.state = State::Payload {
                        at: start,
                        id: header.id,
                        left,
                        padding,
                        crc,
                        expected_crc: header.payload_crc,
                    };
                    return;
                }
                self.state = State::Page { lost: false };
                let found = crc.finalize();
                if found != header.payload_crc {
                    self.fault(
                        start,
                        Some(header.id),
                        format!("Record payload: expected CRC-32 {:08x}, found {found:08x}", header.payload_crc),
                    );
                }
                if body[here..].iter().any(|byte| *byte != 0) {
                    self.fault(start, Some(header.id), "Record padding: expected zeros, found other bytes");
                }
            }
            Err(error) => {
                // Say it once, then look page by page for the next good header.
                if !matches!(self.state, State::Page { lost: true }) {
                    self.fault(start, None, error.to_string());
                }
                self.state = State::Page { lost: true };
            }
        }
    }

    /// The end of the file.
    pub fn finish(mut self) -> PackReport {
        let position = self.position;
        match self.state {
            State::Page { .. } if self.page.is_empty() => {}
            State::Payload { at, id, .. } | State::Padding { at, id, .. } => {
                self.fault(
                    at,
                    Some(id),
                    format!("Record: expected more bytes, found the end of the pack at {position}"),
                );
            }
            State::PackHeader | State::Page { .. } => {
                self.fault(position, None, format!("Pack: expected whole pages, found its end at {position}"));
            }
        }
        PackReport {
            bytes: position,
            digest: Digest::from_bytes(*self.hasher.finalize().as_bytes()),
            records: self.records,
            faults: self.faults,
            fault_count: self.fault_count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Encoder, Writer, max_record_bytes};
    use proptest::prelude::*;

    const HEAD: PackHeader = PackHeader { shipment: Uuid::from_u128(5), pack: 2, medium: 1 };

    fn pack(lengths: &[usize]) -> Vec<u8> {
        let mut bytes = HEAD.encode().to_vec();
        let mut encoder = Encoder::new(Arc::new(Writer::new(HEAD.shipment, 1, None)), None).unwrap();
        for (block, len) in lengths.iter().enumerate() {
            let plain: Vec<u8> = (0..*len).map(|i| (i * 7 + block) as u8).collect();
            let mut out = vec![0; max_record_bytes(*len as u32)];
            let encoded =
                encoder.encode(RecordId { disk: 1, generation: 0, block: block as u64 }, &plain, &mut out).unwrap();
            bytes.extend_from_slice(&out[..encoded.record_bytes]);
        }
        bytes
    }

    fn check(bytes: &[u8], step: usize) -> PackReport {
        let mut checker = PackChecker::new(HEAD);
        bytes.chunks(step).for_each(|piece| checker.update(piece));
        checker.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn every_flipped_bit_is_found_in_pieces_of_any_length(
            lengths in prop::collection::vec(1usize..9000, 1..6), step in 1usize..9000, at: prop::sample::Index, bit in 0u8..8
        ) {
            let mut bytes = pack(&lengths);
            let good = check(&bytes, step);
            prop_assert_eq!(good.fault_count, 0, "{:?}", good.faults);
            prop_assert_eq!(good.records, lengths.len() as u64);
            prop_assert_eq!(good.digest, Digest::of(&bytes));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(check(&bytes, step).fault_count > 0);
            let cut = check(&bytes[..bytes.len() - 1], step);
            prop_assert!(cut.fault_count > 0);
        }
        #[test]
        fn a_growing_digest_survives_being_saved(pieces in prop::collection::vec(1usize..1_500_000, 1..5)) {
            let mut digest = PackDigest::new();
            let mut all = Vec::new();
            for len in pieces {
                let piece: Vec<u8> = (0..len).map(|i| (i ^ all.len()) as u8).collect();
                digest.update(&piece);
                all.extend_from_slice(&piece);
                let saved = digest.save();
                let covered = PackDigest::covered(&saved).unwrap() as usize;
                digest = PackDigest::load(&saved, all[covered..].to_vec()).unwrap();
                prop_assert_eq!(digest.bytes(), all.len() as u64);
            }
            if all.len() as u64 != LEAF_BYTES {
                prop_assert_eq!(digest.finish(), Some(Digest::of(&all)));
            }
        }
    }
}
