//! The spoken code of a seal: what two people read to each other over the telephone.

use crate::tree::Digest;

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The first 40 bits of `digest` in Crockford base32: 8 characters (<https://www.crockford.com/base32.html>).
pub fn spoken_code(digest: &Digest) -> String {
    let first = digest.as_bytes().iter().take(5).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    (0..8).rev().map(|i| char::from(CROCKFORD[(first >> (5 * i) & 31) as usize])).collect()
}

/// The first 80 bits of `digest` in Crockford base32, sixteen characters in groups of four: to compare with paper where 40 bits would
/// not do, for whoever swaps a key can try others at leisure.
pub fn paper_code(digest: &Digest) -> String {
    let first = digest.as_bytes().iter().take(10).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    let mut text = String::with_capacity(19);
    for i in (0..16).rev() {
        text.push(char::from(CROCKFORD[(first >> (5 * i) & 31) as usize]));
        if i % 4 == 0 && i > 0 {
            text.push('-');
        }
    }
    text
}

/// What somebody typed of a code as it is printed: upper case, without spaces and hyphens; `I` and `L` are read as 1, `O` as 0.
pub fn as_printed(said: &str) -> String {
    let digits = said.chars().filter(|c| !matches!(c, ' ' | '-'));
    let read = |c: char| match c.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        other => other,
    };
    digits.map(read).collect()
}

/// Whether `said` (a spoken code, or a whole digest in hex) names `digest`. Case, spaces and hyphens do not matter; `I` and
/// `L` are read as 1, `O` as 0.
pub fn names_seal(said: &str, digest: &Digest) -> bool {
    let said: String = said.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    if said.len() == 64 {
        return said.eq_ignore_ascii_case(&digest.to_string());
    }
    as_printed(&said) == spoken_code(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_read_back_in_any_shape() {
        let digest = Digest::from_bytes([0xff; 32]);
        assert_eq!(spoken_code(&digest), "ZZZZZZZZ");
        let digest = Digest::from_bytes(*b"\x00\x44\x32\x14\xc7aaaaaaaaaaaaaaaaaaaaaaaaaaa");
        let code = spoken_code(&digest);
        assert_eq!(code, "01234567");
        assert!(names_seal("oi23-4567", &digest));
        assert!(names_seal(&digest.to_string().to_uppercase(), &digest));
        assert!(!names_seal("01234568", &digest));
        assert!(!names_seal("", &digest));
    }
}
