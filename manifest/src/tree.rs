//! Leaves and digests: BLAKE3 subtrees that merge to the plain BLAKE3 of the whole.
//!
//! A *leaf* is the non-root chaining value of one aligned piece at its offset; it proves place as well as content. Leaves of
//! equal power-of-two size merge, left to right, to exactly what `b3sum` prints on the whole (BLAKE3 paper, section 2.1: "the
//! left subtree is the largest power of two of chunks that leaves at least one for the right"; `blake3::hazmat`).

use crate::error::{FormatError, Result};
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// 32 bytes of BLAKE3 (or of SHA-256 where a document says so), shown as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// The chaining value of one block at its offset; never a root, so never equal to a digest of the same bytes.
pub type Leaf = Digest;

impl Digest {
    /// Wraps raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }
    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// Reads 32 raw bytes.
    ///
    /// # Errors
    /// Any other length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        bytes
            .try_into()
            .map(Digest)
            .map_err(|_| FormatError::damaged("Digest", "32 bytes", format!("{} bytes", bytes.len())))
    }
    /// Plain BLAKE3 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = FormatError;
    /// Exactly 64 lower-case hex digits.
    fn from_str(text: &str) -> Result<Self> {
        let refuse =
            || FormatError::damaged("Digest", "64 lower-case hex digits", text.chars().take(70).collect::<String>());
        let hex = text.as_bytes();
        if hex.len() != 64 {
            return Err(refuse());
        }
        let nibble = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(refuse()),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Digest(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The leaf of `block`, which starts at `offset` of its disk or pack. `offset` is a multiple of the (power-of-two) block size
/// and `block` is not longer than that; an empty block has no leaf.
pub fn leaf(offset: u64, block: &[u8]) -> Leaf {
    debug_assert!(!block.is_empty());
    Digest(blake3::Hasher::new().set_input_offset(offset).update(block).finalize_non_root())
}

/// Merges the leaves of equally long pieces, given in order, to the digest of the whole. Its state is a few hundred bytes
/// however long the whole is, and can be saved and loaded.
///
/// A merge of two subtrees is put off until more input proves that their parent is not the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merger {
    /// Subtrees of falling size; sizes are the set bits of `leaves`, but the newest two may still be unmerged.
    stack: Vec<Leaf>,
    leaves: u64,
}

impl Merger {
    /// No leaf yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// How many leaves were pushed.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }
    /// Adds the next leaf.
    pub fn push(&mut self, leaf: Leaf) {
        while self.stack.len() > self.leaves.count_ones() as usize {
            self.merge_top();
        }
        self.stack.push(leaf);
        self.leaves += 1;
    }
    fn merge_top(&mut self) {
        if let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) {
            self.stack.push(Digest(merge_subtrees_non_root(&left.0, &right.0, Mode::Hash)));
        }
    }
    /// The digest of the whole; `None` for fewer than two leaves, whose digest is the plain hash of the bytes.
    pub fn finish(mut self) -> Option<Digest> {
        if self.leaves < 2 {
            return None;
        }
        while self.stack.len() > 2 {
            self.merge_top();
        }
        match self.stack.as_slice() {
            [left, right] => Some(Digest(*merge_subtrees_root(&left.0, &right.0, Mode::Hash).as_bytes())),
            _ => None,
        }
    }
    /// The state as bytes: number of leaves (u64, little-endian), then the subtrees.
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = self.leaves.to_le_bytes().to_vec();
        self.stack.iter().for_each(|subtree| bytes.extend_from_slice(&subtree.0));
        bytes
    }
    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// The number of subtrees does not fit the number of leaves.
    pub fn load(bytes: &[u8]) -> Result<Self> {
        let refuse = || {
            FormatError::damaged(
                "Saved tree",
                "8 + 32 × n bytes that fit its leaf count",
                format!("{} bytes", bytes.len()),
            )
        };
        let (count, subtrees) = bytes.split_first_chunk::<8>().ok_or_else(refuse)?;
        let leaves = u64::from_le_bytes(*count);
        let stack = subtrees.chunks(32).map(Digest::from_slice).collect::<Result<Vec<_>>>()?;
        // Pushing merges until the stack has one entry a set bit of the count before, then adds one.
        let expected = leaves.checked_sub(1).map_or(0, |before| before.count_ones() as usize + 1);
        if stack.len() != expected {
            return Err(refuse());
        }
        Ok(Merger { stack, leaves })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn merged(data: &[u8], piece: usize) -> Digest {
        let mut merger = Merger::new();
        for (i, block) in data.chunks(piece).enumerate() {
            merger.push(leaf((i * piece) as u64, block));
            // The state survives being saved at every step.
            assert_eq!(Merger::load(&merger.save()).unwrap(), merger);
        }
        merger.finish().unwrap_or_else(|| Digest::of(data))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn leaves_merge_to_the_plain_hash(len in 0usize..300_000, shift in 10u32..17, seed: u8) {
            let data: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed ^ (i >> 8) as u8).collect();
            prop_assert_eq!(merged(&data, 1 << shift), Digest::of(&data));
        }
        #[test]
        fn a_saved_tree_from_outside_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Merger::load(&bytes);
        }
    }

    #[test]
    fn a_leaf_knows_its_place() {
        assert_ne!(leaf(0, &[0; 65536]), leaf(65536, &[0; 65536]));
    }
}
