//! Detached signatures: SSHSIG, as `ssh-keygen -Y sign` writes and `ssh-keygen -Y verify` reads them
//! (OpenSSH `PROTOCOL.sshsig`). Namespaces keep a signature over one kind of document from passing for another.

use crate::error::FormatError;
use crate::sign_short;
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};
use std::fmt;
use std::io;
use zeroize::Zeroizing;

/// Longest signature file read, bytes; an ed25519 one has about 300.
pub const MAX_SIGNATURE_BYTES: usize = 64 << 10;
/// Longest private key file read, bytes.
pub const MAX_KEY_BYTES: usize = 64 << 10;
/// How often a passphrase is asked for before giving up, as ssh-keygen does.
const PASSPHRASE_TRIES: u32 = 3;

/// What a signature is about; part of the signed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Namespace {
    /// `shipment.json`.
    Shipment,
    /// `seal.json`.
    Seal,
    /// A custody event.
    Custody,
    /// A handover or import report.
    Report,
    /// An erasure certificate.
    Erase,
    /// What became of a drill, in the eyes of whoever looked at it.
    Drill,
}

impl Namespace {
    /// Every namespace.
    pub const ALL: [Namespace; 6] = [
        Namespace::Shipment,
        Namespace::Seal,
        Namespace::Custody,
        Namespace::Report,
        Namespace::Erase,
        Namespace::Drill,
    ];

    /// The text that `ssh-keygen -Y … -n` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Namespace::Shipment => "motiongear-shipment",
            Namespace::Seal => "motiongear-seal",
            Namespace::Custody => "motiongear-custody",
            Namespace::Report => "motiongear-report",
            Namespace::Erase => "motiongear-erase",
            Namespace::Drill => "motiongear-drill",
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why nothing was signed, or a signature does not count.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not a private key in OpenSSH's format.
    #[error("Key: expected an OpenSSH private key, found {found}; {next}")]
    NotAKey {
        /// What the bytes look like.
        found: String,
        /// What to do.
        next: &'static str,
    },
    /// A private or public key of a kind that MotionGear does not sign or verify with.
    #[error(
        "Key: expected ed25519 or ECDSA (nistp256, nistp384), found {algorithm}; make one with: ssh-keygen -t ed25519"
    )]
    KeyKind {
        /// The key's algorithm, as OpenSSH names it.
        algorithm: String,
    },
    /// The key has a passphrase and nobody to ask for it.
    #[error("Key: it is protected by a passphrase, and none can be asked for here; run this on a terminal")]
    PassphraseNeeded,
    /// The passphrase could not be read.
    #[error("Key: the passphrase could not be read: {0}")]
    Passphrase(io::Error),
    /// Asked for as often as makes sense.
    #[error("Key: wrong passphrase")]
    WrongPassphrase,
    /// The library failed to sign or to write; no input of ours should get here.
    #[error("Signature: could not be made: {0}")]
    Failed(ssh_key::Error),
    /// Not an armored SSHSIG.
    #[error("Signature: expected an armored SSH signature as ssh-keygen -Y sign writes it, found {found}")]
    Malformed {
        /// What is wrong with it.
        found: String,
    },
    /// A signature over another kind of document.
    #[error("Signature: expected namespace {expected}, found '{found}'")]
    Namespace {
        /// The namespace asked for.
        expected: Namespace,
        /// The one in the signature, printable.
        found: String,
    },
    /// The key did not sign these bytes.
    #[error("Signature by {fingerprint}: does not match the document; one of the two was changed after signing")]
    Mismatch {
        /// The key that the signature names.
        fingerprint: String,
    },
}

impl From<SignError> for FormatError {
    fn from(error: SignError) -> Self {
        let text = error.to_string();
        let (object, reason) = text.split_once(": ").unwrap_or(("Signature", &text));
        FormatError::untrusted(object, reason)
    }
}

/// A private key that may sign. Never printed.
pub struct Signer {
    key: PrivateKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.fingerprint())
    }
}

impl Signer {
    /// Reads an OpenSSH private key file. `passphrase` is called, up to three times, if the key is protected; `None` refuses
    /// such keys.
    ///
    /// # Errors
    /// Not an OpenSSH private key; a kind other than ed25519 or ECDSA nistp256/nistp384; no or a wrong passphrase.
    pub fn from_openssh(
        file: &[u8],
        passphrase: Option<&mut dyn FnMut() -> io::Result<String>>,
    ) -> Result<Self, SignError> {
        let key = parse_private(file)?;
        check_algorithm(&key.algorithm())?;
        if !key.is_encrypted() {
            return Ok(Signer { key });
        }
        let ask = passphrase.ok_or(SignError::PassphraseNeeded)?;
        for tried in 0..PASSPHRASE_TRIES {
            // Who was asked and gave a wrong one has no other.
            let none = |error| if tried == 0 { SignError::Passphrase(error) } else { SignError::WrongPassphrase };
            let phrase = Zeroizing::new(ask().map_err(none)?);
            match key.decrypt(phrase.as_bytes()) {
                Ok(key) => {
                    check_algorithm(&key.algorithm())?;
                    return Ok(Signer { key });
                }
                // The two check integers differ: not decrypted.
                Err(ssh_key::Error::Crypto) => {}
                Err(error) => {
                    let key = sign_short::decrypt(&key, phrase.as_bytes()).ok_or_else(|| unreadable(&error))?;
                    return Ok(Signer { key });
                }
            }
        }
        Err(SignError::WrongPassphrase)
    }

    /// Makes a new ed25519 key, for those who have no ssh-keygen.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn generate_ed25519(comment: &str) -> Result<Self, SignError> {
        let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(SignError::Failed)?;
        key.set_comment(comment);
        Ok(Signer { key })
    }

    /// The private key file, as ssh-keygen writes it; protected if a passphrase is given. Write it with mode 0600.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn to_openssh(&self, passphrase: Option<&str>) -> Result<Zeroizing<String>, SignError> {
        match passphrase {
            Some(phrase) => self.key.encrypt(&mut OsRng, phrase).and_then(|key| key.to_openssh(LineEnding::LF)),
            None => self.key.to_openssh(LineEnding::LF),
        }
        .map_err(SignError::Failed)
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        self.key.public_key()
    }

    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.public_key())
    }

    /// Signs `message`; the result is byte for byte what `ssh-keygen -Y sign` would write.
    ///
    /// # Errors
    /// The library refuses; not expected for keys that loaded.
    pub fn sign(&self, message: &[u8], namespace: Namespace) -> Result<String, SignError> {
        let signature = self.key.sign(namespace.as_str(), HashAlg::Sha512, message).map_err(SignError::Failed)?;
        let mut pem = signature.to_pem(LineEnding::LF).map_err(SignError::Failed)?;
        if !pem.ends_with('\n') {
            pem.push('\n');
        }
        Ok(pem)
    }
}

/// Who made a signature that matches. Whether that key may sign at all is for [`crate::allowed::AllowedSigners`].
#[derive(Debug, Clone)]
pub struct VerifiedBy {
    /// The key that signed.
    pub key: PublicKey,
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
}

/// Checks that `signature`, the contents of a `.sig` file, is one over `message` in `namespace` by the key that it names.
///
/// # Errors
/// Too long, malformed, of another namespace, by an unsupported kind of key, or over other bytes.
pub fn verify(signature: &[u8], message: &[u8], namespace: Namespace) -> Result<VerifiedBy, SignError> {
    let malformed = |found: String| SignError::Malformed { found };
    if signature.len() > MAX_SIGNATURE_BYTES {
        return Err(malformed(format!("{} bytes; at most {MAX_SIGNATURE_BYTES} are read", signature.len())));
    }
    if signature.is_empty() {
        return Err(malformed("an empty file".to_owned()));
    }
    let parsed = SshSig::from_pem(signature).map_err(|error| malformed(error.to_string()))?;
    // ssh-key 0.6 takes version 0 and does not compare nested lengths with what they hold; ssh-keygen refuses both. One
    // spelling only also means that a signature file cannot be changed and stay valid: custody events pin it by digest.
    let canonical = parsed.to_pem(LineEnding::LF).map_err(|error| malformed(error.to_string()))?;
    let same = signature.strip_suffix(b"\n") == Some(canonical.trim_end().as_bytes());
    if parsed.version() != SshSig::VERSION || !same {
        return Err(malformed("one that ssh-keygen would write differently".to_owned()));
    }
    let key = PublicKey::from(parsed.public_key().clone());
    check_algorithm(&key.algorithm())?;
    if parsed.namespace() != namespace.as_str() {
        let found = parsed.namespace().chars().take(80).flat_map(char::escape_default).collect();
        return Err(SignError::Namespace { expected: namespace, found });
    }
    let fingerprint = fingerprint(&key);
    match key.verify(namespace.as_str(), message, &parsed) {
        Ok(()) => Ok(VerifiedBy { key, fingerprint }),
        Err(_) => Err(SignError::Mismatch { fingerprint }),
    }
}

/// `SHA256:…`, as `ssh-keygen -l` prints it.
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// RSA signing is broken in ssh-key 0.6, security keys need their device, DSA is dead, and nistp521 is not built in.
fn check_algorithm(algorithm: &Algorithm) -> Result<(), SignError> {
    match algorithm {
        Algorithm::Ed25519 | Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 | EcdsaCurve::NistP384 } => Ok(()),
        other => Err(SignError::KeyKind { algorithm: other.as_str().chars().take(80).collect() }),
    }
}

const MAKE: &str = "make one with: ssh-keygen -t ed25519";

fn unreadable(error: &ssh_key::Error) -> SignError {
    SignError::NotAKey { found: format!("one that cannot be read ({error})"), next: MAKE }
}

fn parse_private(file: &[u8]) -> Result<PrivateKey, SignError> {
    let not_a_key = |found: &str, next| SignError::NotAKey { found: found.to_owned(), next };
    if file.len() > MAX_KEY_BYTES {
        return Err(not_a_key("a larger file", MAKE));
    }
    // As ssh-keygen reads it: white space before and behind it says nothing.
    let text = file.trim_ascii();
    if text.starts_with(b"-----BEGIN OPENSSH PRIVATE KEY-----") {
        return PrivateKey::from_openssh(text).or_else(|error| {
            let file = sign_short::File::parse(text).ok_or_else(|| unreadable(&error))?;
            // Short numbers are common in kinds that are refused anyway: then that is what to say.
            if let Some(algorithm) = file.algorithm().and_then(|name| Algorithm::new(&name).ok()) {
                check_algorithm(&algorithm)?;
            }
            file.read().ok_or_else(|| unreadable(&error))
        });
    }
    if text.starts_with(b"-----BEGIN ") {
        return Err(not_a_key(
            "a private key in another format",
            "convert it with: ssh-keygen -p -f FILE (rewrites it in OpenSSH's format), or make one with: ssh-keygen -t ed25519",
        ));
    }
    if text.starts_with(b"ssh-") || text.starts_with(b"ecdsa-") || text.starts_with(b"sk-") {
        return Err(not_a_key("a public key", "give the file without .pub"));
    }
    if text.starts_with(b"AGE-SECRET-KEY-") || text.starts_with(b"# created:") {
        return Err(not_a_key("an age identity", "that one decrypts; to sign, make one with: ssh-keygen -t ed25519"));
    }
    Err(not_a_key("something else", MAKE))
}
