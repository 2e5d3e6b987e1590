//! Codes that people compare: the seal's, read over the telephone, and those of keys, compared with paper.

use crate::tree::Digest;

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of a group.
const GROUP: usize = 4;

/// The first 60 bits of `digest` in Crockford base32 (<https://www.crockford.com/base32.html>): 12 characters in three
/// groups. One signer who wants two seals of one code has 2³⁰ hashes ahead, and neither may choose the other: `supersedes`
/// and custody name the whole digest. Who wants the code of another's seal has 2⁶⁰.
pub fn spoken_code(digest: &Digest) -> String {
    grouped(&leading(digest, 3 * GROUP))
}

/// [`spoken_code`] without hyphens: for names of files, snapshots and recovery points.
pub fn name_code(digest: &Digest) -> String {
    leading(digest, 3 * GROUP)
}

/// The first 80 bits of `digest` in Crockford base32, four groups: to compare with paper where the one who swaps a key can try others
/// at leisure.
pub fn paper_code(digest: &Digest) -> String {
    grouped(&leading(digest, 4 * GROUP))
}

/// What was typed of a code as it stands in names: upper case, without spaces and hyphens; `I` and `L` are read as 1, `O` as 0.
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
    as_printed(&said) == name_code(digest)
}

/// The first `count` characters of five bits each.
fn leading(digest: &Digest, count: usize) -> String {
    let first = digest.as_bytes().iter().take(16).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    (1..=count).map(|i| char::from(CROCKFORD[(first >> (128 - 5 * i) & 31) as usize])).collect()
}

fn grouped(code: &str) -> String {
    code.as_bytes().chunks(GROUP).map(String::from_utf8_lossy).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_read_back_in_any_shape() {
        let digest = Digest::from_bytes([0xff; 32]);
        assert_eq!(spoken_code(&digest), "ZZZZ-ZZZZ-ZZZZ");
        assert_eq!(paper_code(&digest), "ZZZZ-ZZZZ-ZZZZ-ZZZZ");
        let digest = Digest::from_bytes(*b"\x00\x44\x32\x14\xc7\x42\x54\xb6aaaaaaaaaaaaaaaaaaaaaaaa");
        assert_eq!(spoken_code(&digest), "0123-4567-89AB");
        assert_eq!(name_code(&digest), "0123456789AB");
        assert_eq!(paper_code(&digest), "0123-4567-89AB-CRB1");
        assert!(names_seal("oi23-4567-89ab", &digest));
        assert!(names_seal("0123 456789AB", &digest));
        assert!(names_seal(&digest.to_string().to_uppercase(), &digest));
        assert!(!names_seal("0123-4567-89AC", &digest));
        assert!(!names_seal("0123-4567", &digest));
        assert!(!names_seal("", &digest));
    }
}
