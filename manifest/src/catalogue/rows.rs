//! The manifest's rows as validated types.

use crate::documents::seal::{Basis, Consistency};
use crate::error::{FormatError, Result};
use crate::geometry::{Geometry, PAGE_BYTES};
use crate::pack::MAX_PACK_BYTES;
use crate::record::{Codec, TAG_BYTES, record_bytes};
use crate::tree::{Digest, Leaf};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// The shipment that the manifest belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShipmentRow {
    /// Identity.
    pub uuid: Uuid,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Whether records are encrypted.
    pub encrypted: bool,
    /// For people.
    pub label: String,
    /// On the sticker.
    pub asset_tag: String,
    /// When `init` ran.
    pub created_at: Timestamp,
    /// The site's identity.
    pub site_uuid: Uuid,
    /// The site's name.
    pub site_name: String,
}

/// A medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MediumRow {
    /// From 1.
    pub number: u32,
    /// Identity.
    pub uuid: Uuid,
    /// Serial numbers as the host saw them.
    pub serial: String,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// From 1.
    pub number: u32,
    /// Identity.
    pub uuid: Uuid,
    /// Unique within the site.
    pub name: String,
    /// The host inventory as JSON text.
    pub inventory: String,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// The number that record headers carry, from 1.
    pub number: u32,
    /// Identity.
    pub uuid: Uuid,
    /// Its machine's number.
    pub machine: u32,
    /// Unique within the machine.
    pub name: String,
    /// Why it is not in the shipment, if it is not.
    pub excluded: Option<String>,
    /// What the source was bound by, as JSON text.
    pub identity: String,
    /// Sector sizes, partitions, file systems, as JSON text.
    pub facts: String,
}

/// A process that wrote into the shipment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// From 1; names the envelope.
    pub number: u32,
    /// BLAKE3 of `keys/NNNN.age`; none in a plaintext shipment, and where the process ended before its first record.
    pub envelope: Option<Digest>,
    /// Name of the host.
    pub host: String,
    /// Program and version.
    pub tool: String,
    /// Start.
    pub started_at: Timestamp,
    /// End, if it ended by itself.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub ending: Option<String>,
}

/// A generation of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// What `block.generation` refers to.
    pub id: i64,
    /// The disk's number.
    pub disk: u32,
    /// 0 for the seed.
    pub number: u32,
    /// Size of the disk, bytes.
    pub bytes: u64,
    /// One point in time or not.
    pub consistency: Consistency,
    /// Why.
    pub basis: Basis,
    /// The snapshot's name for its point in time.
    pub point_in_time: Option<String>,
    /// Where it was read from.
    pub source: String,
    /// First read.
    pub started_at: Timestamp,
    /// Complete since.
    pub finished_at: Option<Timestamp>,
    /// Of the whole disk, once complete.
    pub digest: Option<Digest>,
}

/// A pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pack {
    /// From 1.
    pub number: u32,
    /// The medium's number.
    pub medium: u32,
    /// `packs/NNNNNNNN.pack`.
    pub file: String,
    /// Committed length, bytes.
    pub bytes: u64,
    /// Committed records.
    pub records: u64,
    /// Once closed.
    pub blake3: Option<Digest>,
    /// Saved [`crate::pack::PackDigest`] while open.
    #[serde(skip)]
    pub tree: Option<Vec<u8>>,
}

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockState {
    /// All zeros; no record.
    Zero,
    /// In a record.
    Stored,
    /// The source could not give all of it; what it could not give counts as zeros. In a record unless all of it is zeros.
    Unreadable,
}

impl BlockState {
    /// The number in the `state` column.
    pub fn number(self) -> i64 {
        match self {
            BlockState::Zero => 0,
            BlockState::Stored => 1,
            BlockState::Unreadable => 2,
        }
    }
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The pack's number.
    pub pack: u32,
    /// Of the record's header in the pack, bytes.
    pub offset: u64,
    /// Of the payload, bytes.
    pub stored_bytes: u32,
    /// How it is compressed.
    pub codec: Codec,
}

impl PartialOrd for Codec {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Codec {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.number().cmp(&other.number())
    }
}

/// One block of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRow {
    /// Index on the disk.
    pub block: u64,
    /// Of its bytes at its offset.
    pub leaf: Leaf,
    /// What it is.
    pub state: BlockState,
    /// Its record; none exactly when it is all zeros.
    pub place: Option<Place>,
}

impl BlockRow {
    /// Bytes of its record's payload; 0 when it is all zeros.
    pub fn stored_bytes(&self) -> u64 {
        self.place.map_or(0, |place| u64::from(place.stored_bytes))
    }
}

/// A row of `block` as SQLite gives it: nothing believed yet.
pub(super) struct RawBlock {
    pub block: i64,
    /// `None` for anything but a blob of 32 bytes.
    pub leaf: Option<Leaf>,
    pub state: i64,
    pub place: [Option<i64>; 4],
}

impl RawBlock {
    /// Believes the row only if it fits the geometry and itself.
    pub fn validate(self, geometry: &Geometry, encrypted: bool) -> Result<BlockRow> {
        let number = self.block;
        let refuse = |expected: &str, found: String| {
            FormatError::damaged(format!("Manifest row of block {number}"), expected, found)
        };
        let block = unsigned("Block index", self.block)?;
        let plain_bytes = geometry.len(block);
        if plain_bytes == 0 {
            return Err(refuse(&format!("an index below {}", geometry.blocks()), block.to_string()));
        }
        let place = match self.place {
            [None, None, None, None] => None,
            [Some(pack), Some(offset), Some(stored), Some(codec)] => {
                let place = Place {
                    pack: narrow("Pack", pack)?,
                    offset: unsigned("Offset", offset)?,
                    stored_bytes: narrow("Stored length", stored)?,
                    codec: Codec::from_number(unsigned("Codec", codec)?)?,
                };
                let tag = if encrypted { TAG_BYTES } else { 0 };
                let limit = plain_bytes + tag;
                let fits = match place.codec {
                    Codec::None => place.stored_bytes == limit,
                    Codec::Zstd => (tag + 1..limit).contains(&place.stored_bytes),
                };
                if !fits {
                    return Err(refuse(
                        &format!("a stored length that fits {plain_bytes} bytes"),
                        place.stored_bytes.to_string(),
                    ));
                }
                let end = place.offset.checked_add(record_bytes(place.stored_bytes));
                if place.offset < u64::from(PAGE_BYTES)
                    || !place.offset.is_multiple_of(u64::from(PAGE_BYTES))
                    || end.is_none_or(|e| e > MAX_PACK_BYTES)
                {
                    return Err(refuse(
                        "a page-aligned record behind the pack's header",
                        format!("offset {}", place.offset),
                    ));
                }
                Some(place)
            }
            _ => return Err(refuse("pack, offset, stored and codec all set or all NULL", "some".into())),
        };
        let state = match (self.state, place.is_some()) {
            (0, false) => BlockState::Zero,
            (1, true) => BlockState::Stored,
            (2, _) => BlockState::Unreadable,
            (state, _) => return Err(refuse("state 0 without record, 1 with, or 2", format!("state {state}"))),
        };
        let leaf = self.leaf.ok_or_else(|| refuse("a leaf of 32 bytes", "something else".into()))?;
        Ok(BlockRow { block, leaf, state, place })
    }
}

/// A range of a disk that the source could not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct UnreadableRange {
    /// First byte.
    pub offset: u64,
    /// Length, bytes.
    pub bytes: u64,
}

impl UnreadableRange {
    /// Whether `plain`, the bytes at `offset` of the disk, has any but zeros in one of `ranges`, which are in order.
    pub fn any_set(ranges: &[UnreadableRange], offset: u64, plain: &[u8]) -> bool {
        let end = offset + plain.len() as u64;
        let first = ranges.partition_point(|range| range.offset + range.bytes <= offset);
        ranges.iter().skip(first).take_while(|range| range.offset < end).any(|range| {
            let (from, to) = (range.offset.max(offset) - offset, (range.offset + range.bytes).min(end) - offset);
            plain.iter().take(to as usize).skip(from as usize).any(|byte| *byte != 0)
        })
    }
}

/// Something that happened while the shipment was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// When.
    pub at: Timestamp,
    /// A short word: `interrupted`, `hook`, `host-write` …
    pub kind: String,
    /// The machine's number, if it concerns one.
    pub machine: Option<u32>,
    /// The disk's number, if it concerns one.
    pub disk: Option<u32>,
    /// For people.
    pub detail: String,
}

/// A number that must not be negative.
pub(super) fn unsigned(object: &str, number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| {
        FormatError::damaged(format!("{object} in the manifest"), "no negative number", number.to_string())
    })
}

/// A number that must fit 32 bits.
pub(super) fn narrow(object: &str, number: i64) -> Result<u32> {
    u32::try_from(number)
        .map_err(|_| FormatError::damaged(format!("{object} in the manifest"), "0 to 4294967295", number.to_string()))
}

/// SQLite integers are signed; sizes and offsets are bounded below this by the geometry.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
