//! A set of block numbers: one bit each, 128 KiB per TiB at 1 MiB blocks.

/// Blocks `0..len`, each in the set or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    len: u64,
}

impl Bitmap {
    /// No block of `len`.
    pub fn new(len: u64) -> Self {
        Bitmap { words: vec![0; usize::try_from(len.div_ceil(64)).unwrap_or(usize::MAX)], len }
    }
    /// Blocks that the set is about.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Whether the set is about no block at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Adds `block`; ignores one past the end.
    pub fn insert(&mut self, block: u64) {
        if block < self.len {
            self.words[(block / 64) as usize] |= 1 << (block % 64);
        }
    }
    /// Whether `block` is in the set.
    pub fn contains(&self, block: u64) -> bool {
        block < self.len && self.words[(block / 64) as usize] >> (block % 64) & 1 == 1
    }
    /// Blocks in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
    /// The first block at or after `from` that is not in the set.
    pub fn next_missing(&self, from: u64) -> Option<u64> {
        let mut block = from;
        while block < self.len {
            let rest = !self.words[(block / 64) as usize] >> (block % 64);
            if rest != 0 {
                let found = block + u64::from(rest.trailing_zeros());
                return (found < self.len).then_some(found);
            }
            block = (block / 64 + 1) * 64;
        }
        None
    }
    /// The set that [`Bitmap::to_bytes`] gave of `len` blocks; what is missing is not in it.
    pub fn from_bytes(len: u64, bytes: &[u8]) -> Self {
        let mut bitmap = Bitmap::new(len);
        let set = |block: u64| bytes.get((block / 8) as usize).is_some_and(|byte| byte >> (block % 8) & 1 == 1);
        (0..len).filter(|block| set(*block)).for_each(|block| bitmap.insert(block));
        bitmap
    }
    /// The set as bytes, bit 0 of byte 0 first, for a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_set(len in 1u64..300, blocks in prop::collection::btree_set(0u64..320, 0..80), from in 0u64..310) {
            let mut bitmap = Bitmap::new(len);
            blocks.iter().for_each(|b| bitmap.insert(*b));
            let inside: Vec<u64> = blocks.iter().copied().filter(|b| *b < len).collect();
            prop_assert_eq!(bitmap.count(), inside.len() as u64);
            prop_assert_eq!(bitmap.next_missing(from), (from..len).find(|b| !inside.contains(b)));
            prop_assert_eq!(Bitmap::from_bytes(len, &bitmap.to_bytes()), bitmap);
        }
    }
}
