//! SSH signatures and private key files: edits of the armored text, and of what is within the armor, which is put on again.

use super::{Input, Verdict};
use motiongear_manifest::sign::{Namespace, Signer, verify};
use std::sync::LazyLock;

/// A throw-away key of `ssh-keygen`, and its `ssh-keygen -Y sign -n motiongear-seal` of [`MESSAGE`].
const KEY: &str = include_str!("valid/key");
const SIGNATURE: &str = include_str!("valid/message.sig");
const MESSAGE: &[u8] = b"a document\n";

static SIGNATURE_BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| unarmor(SIGNATURE));
static KEY_BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| unarmor(KEY));

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn unarmor(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = (text.lines().filter(|line| !line.starts_with('-')).flat_map(str::bytes))
        .filter_map(|c| DIGITS.iter().position(|digit| *digit == c))
        .map(|digit| digit as u32)
        .collect();
    let group = |digits: &[u32]| {
        let bits = digits.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - digits.len()));
        bits.to_be_bytes()[1..digits.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

fn armor(bytes: &[u8], what: &str) -> String {
    let mut digits = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let shown = (0..=group.len()).map(|i| char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]));
        digits.extend(shown.chain(std::iter::repeat_n('=', 3 - group.len())));
    }
    let lines: Vec<&str> = digits.as_bytes().chunks(70).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
}

pub fn run(data: &[u8]) -> Verdict {
    let mut input = Input::new(data);
    let kind = input.u8() % 4;
    let text = match kind {
        0 | 2 => {
            let mut text = if kind == 0 { SIGNATURE } else { KEY }.as_bytes().to_vec();
            input.edit(&mut text, 71);
            text
        }
        1 => {
            let mut bytes = SIGNATURE_BYTES.clone();
            input.edit(&mut bytes, 4);
            armor(&bytes, "SSH SIGNATURE").into_bytes()
        }
        _ => {
            let mut bytes = KEY_BYTES.clone();
            input.edit(&mut bytes, 4);
            armor(&bytes, "OPENSSH PRIVATE KEY").into_bytes()
        }
    };
    if kind >= 2 {
        let signer = Signer::from_openssh(&text, None);
        if let Ok(signer) = &signer {
            let signature = signer.sign(MESSAGE, Namespace::Seal);
            if let Ok(signature) = signature {
                let _ = verify(signature.as_bytes(), MESSAGE, Namespace::Seal);
            }
        }
        return Verdict::from(&signer);
    }
    let verified = verify(&text, MESSAGE, Namespace::Seal);
    if verified.is_ok() {
        // Custody events pin the signature's file: whoever has no key can make no other that is valid.
        assert_eq!(text.trim_ascii_end(), SIGNATURE.trim_end().as_bytes(), "a second valid spelling");
    }
    for namespace in Namespace::ALL.into_iter().filter(|namespace| *namespace != Namespace::Seal) {
        assert!(verify(&text, MESSAGE, namespace).is_err());
    }
    assert!(verify(&text, b"another document\n", Namespace::Seal).is_err());
    Verdict::from(&verified)
}

pub fn seeds() -> Vec<Vec<u8>> {
    assert_eq!(armor(&SIGNATURE_BYTES, "SSH SIGNATURE"), SIGNATURE);
    assert_eq!(armor(&KEY_BYTES, "OPENSSH PRIVATE KEY"), KEY);
    let mut seeds: Vec<Vec<u8>> = (0..4).map(|kind| vec![kind]).collect();
    // The lengths of nested strings, and their first bytes.
    for at in [6u8, 13, 17, 28, 32, 67, 82, 86, 103] {
        seeds.push(vec![1, 2, at, 0, 0, 0]);
        seeds.push(vec![3, 2, at, 0, 0, 0]);
    }
    // A line end of another kind, one line more.
    seeds.push(vec![0, 7, 29, 0, 0, 1, b'\r']);
    seeds.push(vec![0, 7, 40, 0, 0, 1, b'\n']);
    seeds
}
