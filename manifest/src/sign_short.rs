//! ECDSA keys whose secret number happens to be shorter than its curve: OpenSSH strips its leading zero bytes (one key in 256 has
//! some), and ssh-key 0.6 takes full length only. Here such a key file gets them back (OpenSSH `PROTOCOL.key`).

use ssh_key::PrivateKey;
use zeroize::Zeroizing;

const MAGIC: &[u8] = b"openssh-key-v1\0";

/// A key file taken apart as far as nothing in it is secret.
pub(crate) struct File {
    raw: Zeroizing<Vec<u8>>,
}

impl File {
    /// `None` if it is no OpenSSH private key file.
    pub(crate) fn parse(pem: &[u8]) -> Option<File> {
        let text = std::str::from_utf8(pem).ok()?.trim();
        let body = text.strip_prefix("-----BEGIN OPENSSH PRIVATE KEY-----")?;
        let raw = base64(body.strip_suffix("-----END OPENSSH PRIVATE KEY-----")?)?;
        Some(File { raw: Zeroizing::new(raw) })
    }

    /// Whether it is protected, the public key and the private section.
    fn parts(&self) -> Option<(bool, &[u8], &[u8])> {
        let mut rest = self.raw.strip_prefix(MAGIC)?;
        let (cipher, kdf, _options) = (string(&mut rest)?, string(&mut rest)?, string(&mut rest)?);
        let keys = rest.split_off(..4)?;
        let public = string(&mut rest).filter(|_| keys == 1u32.to_be_bytes())?;
        Some(((cipher, kdf) != (b"none", b"none"), public, string(&mut rest)?))
    }

    /// The algorithm as OpenSSH names it.
    pub(crate) fn algorithm(&self) -> Option<String> {
        let (_, mut public, _) = self.parts()?;
        Some(String::from_utf8_lossy(string(&mut public)?).into_owned())
    }

    /// Reads an unprotected key; `None` if a short number is not what is wrong with it.
    pub(crate) fn read(&self) -> Option<PrivateKey> {
        self.parts().and_then(|(protected, public, section)| if protected { None } else { rebuild(public, section) })
    }
}

/// Opens a protected key; `None` if short numbers are not what is wrong with it.
pub(crate) fn decrypt(key: &PrivateKey, passphrase: &[u8]) -> Option<PrivateKey> {
    let (secret, iv) = key.kdf().derive_key_and_iv(key.cipher(), passphrase).ok()?;
    let mut section = Zeroizing::new(key.key_data().encrypted()?.to_vec());
    key.cipher().decrypt(&secret, &iv, &mut section, None).ok()?;
    rebuild(&key.public_key().to_bytes().ok()?, &section)
}

fn rebuild(public: &[u8], mut section: &[u8]) -> Option<PrivateKey> {
    let checks = section.split_off(..8)?;
    let (algorithm, curve) = (string(&mut section)?, string(&mut section)?);
    let (point, number, comment) = (string(&mut section)?, string(&mut section)?, string(&mut section)?);
    let size: usize = match curve {
        b"nistp256" => 32,
        b"nistp384" => 48,
        _ => return None,
    };
    let missing = size.checked_sub(number.len()).filter(|missing| *missing > 0)?;
    let full = Zeroizing::new([&vec![0; missing][..], number].concat());
    let mut private = Zeroizing::new(Vec::with_capacity(1024));
    private.extend_from_slice(checks);
    [algorithm, curve, point, &full, comment].iter().for_each(|part| push(&mut private, part));
    (1..=7).take(private.len().next_multiple_of(8) - private.len()).for_each(|pad| private.push(pad));
    let mut whole = Zeroizing::new(Vec::with_capacity(2048));
    whole.extend_from_slice(MAGIC);
    [&b"none"[..], b"none", b""].iter().for_each(|part| push(&mut whole, part));
    whole.extend_from_slice(&1u32.to_be_bytes());
    push(&mut whole, public);
    push(&mut whole, &private);
    PrivateKey::from_bytes(&whole).ok()
}

/// The next length-prefixed string (RFC 4251, section 5).
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, _) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    rest.split_off(..4)?;
    rest.split_off(..length)
}

fn push(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(part);
}

/// Plain base64 (RFC 4648) with line ends.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut count) = (Vec::with_capacity(text.len()), 0u32, 0);
    for c in text.bytes().filter(|c| !c.is_ascii_whitespace() && *c != b'=') {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(six)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    Some(out)
}
