//! Key envelopes and whole-file encryption: age (<https://age-encryption.org/v1>), X25519 recipients, readable by stock `age -d`.
//!
//! One envelope a writing process carries that process's random content key to the recipients named in `shipment.json`. Its
//! plaintext is a line of strict JSON, so that an auditor sees with stock tools what the key is for.

use crate::documents::shipment::MAX_RECIPIENTS;
use crate::error::FormatError;
use crate::sums::{SummedReader, SummedWriter, Sums};
use age::secrecy::ExposeSecret;
use age::{DecryptError, Decryptor, Encryptor};
use serde::Deserialize;
use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::rc::Rc;
use std::str::FromStr;
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

/// The only record suite of format 1.
pub const SUITE_AES_256_GCM: &str = "aes-256-gcm";
/// Longest envelope read, bytes: 32 recipients take a quarter of it.
pub const MAX_ENVELOPE_BYTES: usize = 16 << 10;
/// Longest plaintext of an envelope, bytes.
const MAX_PLAINTEXT_BYTES: u64 = 4096;
/// Longest age header read, bytes, before anything in it was checked.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// Longest identity file read, bytes.
pub const MAX_IDENTITY_BYTES: usize = 64 << 10;

/// Why something was not encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an age X25519 recipient.
    #[error("Recipient '{shown}': expected age1… (62 characters, as age-keygen prints it), found {found}")]
    Recipient {
        /// What was given, shortened; secret keys are not shown.
        shown: String,
        /// What is wrong with it.
        found: &'static str,
    },
    /// Not an age identity file.
    #[error("Identity file, line {line}: expected AGE-SECRET-KEY-1… or a comment, found {found}")]
    Identity {
        /// Line number from 1; 0 stands for the whole file.
        line: usize,
        /// What is wrong, with what to do.
        found: &'static str,
    },
    /// Nobody to encrypt to, or too many.
    #[error("Recipients: expected 1 to {MAX_RECIPIENTS}, found {0}")]
    RecipientCount(usize),
    /// None of the identities is a recipient.
    #[error("{object}: none of the {identities} identities given is one of its recipients")]
    NoMatch {
        /// Envelope or file.
        object: &'static str,
        /// How many identities were tried.
        identities: usize,
    },
    /// Not an age file, truncated, or changed.
    #[error("{object}: expected an intact age file, found {found}")]
    Damaged {
        /// Envelope or file.
        object: &'static str,
        /// What is wrong.
        found: String,
    },
    /// Decrypts, but is not what it should be.
    #[error("Envelope: expected {field} {expected}, found {found}")]
    Contents {
        /// Which field.
        field: &'static str,
        /// What the caller knows.
        expected: String,
        /// What the envelope says.
        found: String,
    },
    /// Reading or writing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was under way.
        what: &'static str,
        /// The system's own words.
        source: io::Error,
    },
}

impl From<EnvelopeError> for FormatError {
    fn from(error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::Damaged { object, found } => FormatError::damaged(object, "an intact age file", found),
            EnvelopeError::Io { what, source } => FormatError::io(what, source),
            other => {
                let text = other.to_string();
                let (object, reason) = text.split_once(": ").unwrap_or(("Envelope", &text));
                FormatError::untrusted(object, reason)
            }
        }
    }
}

/// The public half of an age key: who will be able to read the shipment.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Recipient(age::x25519::Recipient);

impl Recipient {
    /// The [`paper_code`](crate::code::paper_code) of the recipient's text.
    pub fn fingerprint(&self) -> String {
        crate::code::paper_code(&crate::tree::Digest::of(self.to_string().as_bytes()))
    }
}

impl FromStr for Recipient {
    type Err = EnvelopeError;
    /// `age1…`, lower case.
    fn from_str(text: &str) -> Result<Self, EnvelopeError> {
        let refuse = |found| {
            let secret = text.to_ascii_uppercase().starts_with("AGE-SECRET");
            let shown = if secret {
                "AGE-SECRET…".to_owned()
            } else {
                text.chars().take(70).flat_map(char::escape_default).collect()
            };
            EnvelopeError::Recipient { shown, found }
        };
        if text.to_ascii_uppercase().starts_with("AGE-SECRET") {
            return Err(refuse(
                "a secret key; it must not be on a command line: give the public half, and consider it exposed",
            ));
        }
        if text.starts_with("ssh-") {
            return Err(refuse("an SSH key; make an age key with: age-keygen"));
        }
        // Bech32 also allows all capitals; one spelling only, as recipients are compared as text in signed documents.
        if text.len() != 62 || text.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(refuse("another length, capitals or another kind of recipient"));
        }
        let recipient = age::x25519::Recipient::from_str(text)
            .map_err(|_| refuse("a mistyped one (its checksum does not match)"))?;
        if recipient.to_string() != text {
            return Err(refuse("another spelling"));
        }
        Ok(Recipient(recipient))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The secret half of an age key. Never printed.
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of {})", self.recipient())
    }
}

impl Identity {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Self {
        Identity(age::x25519::Identity::generate())
    }
    /// The public half.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }
    /// An identity file as age-keygen writes it, dated `created` (any text). Write it with mode 0600.
    pub fn to_file(&self, created: &str) -> Zeroizing<String> {
        let secret = self.0.to_string();
        Zeroizing::new(format!(
            "# created: {created}\n# public key: {}\n{}\n",
            self.recipient(),
            secret.expose_secret()
        ))
    }
    /// Reads an age identity file: one `AGE-SECRET-KEY-1…` a line, comments and empty lines.
    ///
    /// # Errors
    /// Larger than 64 KiB, no identity in it, a line that is none, or a passphrase-protected file.
    pub fn parse_file(file: &[u8]) -> Result<Vec<Identity>, EnvelopeError> {
        let refuse = |line, found| EnvelopeError::Identity { line, found };
        if file.len() > MAX_IDENTITY_BYTES {
            return Err(refuse(0, "more than 64 KiB"));
        }
        if file.starts_with(b"age-encryption.org/") || file.starts_with(b"-----BEGIN AGE ENCRYPTED FILE") {
            return Err(refuse(
                1,
                "a passphrase-protected identity file; open it first with: age -d FILE > /run/identity (a tmpfs), and remove that afterwards",
            ));
        }
        let text = std::str::from_utf8(file).map_err(|_| refuse(0, "bytes that are no text"))?;
        let mut identities = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let found = match line {
                _ if line.starts_with("AGE-PLUGIN-") => "a plugin identity, which MotionGear does not support",
                _ if line.starts_with("age1") => "a recipient; that is the public half",
                _ if line.starts_with("-----BEGIN") || line.starts_with("ssh-") => {
                    "an SSH key; make an age key with: age-keygen"
                }
                _ => "something else, or a mistyped key",
            };
            identities.push(Identity(line.parse().map_err(|_| refuse(number, found))?));
        }
        if identities.is_empty() {
            return Err(refuse(0, "no identity"));
        }
        Ok(identities)
    }
}

/// Begins to gather what random keys are made of. AWS-LC gathers it once a process, before the first random byte, on one core
/// for 25 ms: begun early, it is there when it is wanted. Who wants it before waits.
pub fn begin_to_gather_randomness() {
    std::thread::spawn(|| aws_lc_rs::rand::fill(&mut [0]));
}

/// The random key of one writing process. Wiped when dropped, never printed, never written but inside an envelope.
#[derive(Clone)]
pub struct ContentKey(Zeroizing<[u8; 32]>);

impl ContentKey {
    /// A new key.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn generate() -> Result<Self, EnvelopeError> {
        let mut key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(key.as_mut_slice())
            .map_err(|_| EnvelopeError::Io { what: "Random numbers", source: io::Error::other("none to be had") })?;
        Ok(ContentKey(key))
    }
    /// Takes over raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        ContentKey(Zeroizing::new(bytes))
    }
    /// The raw bytes, for the cipher only.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey(…)")
    }
}

/// What a content key is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeMeta {
    /// The shipment.
    pub shipment: Uuid,
    /// The writing process within the shipment; the envelope's number.
    pub process: u32,
    /// The record suite: [`SUITE_AES_256_GCM`].
    pub suite: String,
}

impl EnvelopeMeta {
    /// For the suite of format 1.
    pub fn new(shipment: Uuid, process: u32) -> Self {
        EnvelopeMeta { shipment, process, suite: SUITE_AES_256_GCM.to_owned() }
    }
}

/// The envelope's plaintext. The key stays text until everything else was checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plaintext {
    format: u32,
    shipment: String,
    process: u32,
    suite: String,
    key: String,
}

impl Drop for Plaintext {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// The line that an envelope holds.
fn plaintext(key: &ContentKey, meta: &EnvelopeMeta) -> Zeroizing<String> {
    let mut plaintext = Zeroizing::new(String::with_capacity(512));
    plaintext.push_str(&format!(
        "{{\"format\":{},\"shipment\":\"{}\",\"process\":{},\"suite\":\"{}\",\"key\":\"",
        crate::FORMAT,
        meta.shipment,
        meta.process,
        meta.suite
    ));
    for byte in key.as_bytes() {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        plaintext.push(char::from(HEX[usize::from(byte >> 4)]));
        plaintext.push(char::from(HEX[usize::from(byte & 15)]));
    }
    plaintext.push_str("\"}\n");
    plaintext
}

/// Wraps `key` to every recipient: the contents of `keys/NNNN.age`.
///
/// # Errors
/// No recipient, too many, or age refuses.
pub fn wrap_key(key: &ContentKey, meta: &EnvelopeMeta, recipients: &[Recipient]) -> Result<Vec<u8>, EnvelopeError> {
    let plaintext = plaintext(key, meta);
    let mut envelope = Vec::new();
    encrypt_stream(plaintext.as_bytes(), &mut envelope, recipients)?;
    Ok(envelope)
}

/// Opens an envelope and checks that it holds the key of the shipment, process and suite that the caller expects.
///
/// # Errors
/// Too long, damaged, for other recipients, malformed, or about something else.
pub fn unwrap_key(
    envelope: &[u8],
    identities: &[Identity],
    expected: &EnvelopeMeta,
) -> Result<ContentKey, EnvelopeError> {
    const OBJECT: &str = "Envelope";
    let damaged = |found: String| EnvelopeError::Damaged { object: OBJECT, found };
    if envelope.len() > MAX_ENVELOPE_BYTES {
        return Err(damaged(format!("{} bytes; at most {MAX_ENVELOPE_BYTES} are read", envelope.len())));
    }
    let plain = open(OBJECT, envelope, identities)?;
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_PLAINTEXT_BYTES as usize + 1));
    plain.take(MAX_PLAINTEXT_BYTES + 1).read_to_end(&mut text).map_err(|error| damaged(error.to_string()))?;
    let contents = |field, expected: &dyn fmt::Display, found: &dyn fmt::Display| EnvelopeError::Contents {
        field,
        expected: expected.to_string(),
        found: found.to_string().chars().take(80).flat_map(char::escape_default).collect(),
    };
    if text.len() as u64 > MAX_PLAINTEXT_BYTES {
        return Err(contents("at most", &"4096 bytes", &"more"));
    }
    // The error of serde_json may quote the text, hence the key: only its place is shown.
    let parsed: Plaintext = serde_json::from_slice(&text).map_err(|error| {
        let place = format!("something else at column {}", error.column());
        contents("JSON with", &"format, shipment, process, suite, key", &place)
    })?;
    if parsed.format != crate::FORMAT {
        return Err(contents("format", &crate::FORMAT, &parsed.format));
    }
    // Compared as text: one spelling, lower-case with hyphens.
    if parsed.shipment != expected.shipment.to_string() {
        return Err(contents("shipment", &expected.shipment, &parsed.shipment));
    }
    if parsed.process != expected.process {
        return Err(contents("process", &expected.process, &parsed.process));
    }
    if parsed.suite != expected.suite {
        return Err(contents("suite", &expected.suite, &parsed.suite));
    }
    let refuse_key = || contents("key", &"64 lower-case hex digits", &"something else");
    let digest: crate::tree::Digest = parsed.key.parse().map_err(|_| refuse_key())?;
    let key = ContentKey::from_bytes(*digest.as_bytes());
    // serde would also take a list, other white space and another order.
    if text.as_slice() != plaintext(&key, expected).as_bytes() {
        return Err(contents("one line", &"of FORMAT.md to the letter", &"another spelling"));
    }
    Ok(key)
}

/// The sums of both sides of an encryption or decryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSums {
    /// The plaintext.
    pub plain: Sums,
    /// The age file.
    pub cipher: Sums,
}

/// Encrypts `plain` to every recipient and writes the age file to `cipher`, which is flushed but not synced.
///
/// # Errors
/// No recipient, too many, or reading or writing fails.
pub fn encrypt_stream(
    plain: impl Read,
    cipher: impl Write,
    recipients: &[Recipient],
) -> Result<StreamSums, EnvelopeError> {
    if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
        return Err(EnvelopeError::RecipientCount(recipients.len()));
    }
    let encryptor = Encryptor::with_recipients(recipients.iter().map(|r| &r.0 as &dyn age::Recipient))
        .map_err(|error| EnvelopeError::Io { what: "Encryption", source: io::Error::other(error.to_string()) })?;
    let mut plain = SummedReader::new(plain, u64::MAX);
    let mut cipher = SummedWriter::new(cipher);
    let writing = |source| EnvelopeError::Io { what: "Writing the age file", source };
    let mut stream = encryptor.wrap_output(&mut cipher).map_err(writing)?;
    pump(&mut plain, &mut stream, "Reading what is to be encrypted", "Writing the age file")?;
    stream.finish().and_then(|cipher| cipher.flush()).map_err(writing)?;
    Ok(StreamSums { plain: plain.finish(), cipher: cipher.finish() })
}

/// Decrypts the age file `cipher` with whichever identity fits. What was written to `plain` counts only if this returns `Ok`.
///
/// # Errors
/// For other recipients, damaged or truncated, or reading or writing fails.
pub fn decrypt_stream(
    cipher: impl Read,
    plain: impl Write,
    identities: &[Identity],
) -> Result<StreamSums, EnvelopeError> {
    const OBJECT: &str = "Encrypted file";
    let mut cipher = SummedReader::new(cipher, u64::MAX);
    let mut plain = SummedWriter::new(plain);
    let mut stream = open(OBJECT, &mut cipher, identities)?;
    let mut chunk = Zeroizing::new(vec![0; 64 << 10]);
    loop {
        let read = stream
            .read(&mut chunk)
            .map_err(|error| EnvelopeError::Damaged { object: OBJECT, found: error.to_string() })?;
        if read == 0 {
            break;
        }
        let written = plain.write_all(chunk.get(..read).unwrap_or_default());
        written.map_err(|source| EnvelopeError::Io { what: "Writing the decrypted file", source })?;
    }
    plain.flush().map_err(|source| EnvelopeError::Io { what: "Writing the decrypted file", source })?;
    drop(stream);
    Ok(StreamSums { plain: plain.finish(), cipher: cipher.finish() })
}

/// Copies everything; tells a failed read from a failed write.
fn pump(
    from: &mut impl Read,
    to: &mut impl Write,
    reading: &'static str,
    writing: &'static str,
) -> Result<(), EnvelopeError> {
    let mut chunk = Zeroizing::new(vec![0; 64 << 10]);
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(EnvelopeError::Io { what: reading, source }),
        };
        let bytes = chunk.get(..read).unwrap_or_default();
        to.write_all(bytes).map_err(|source| EnvelopeError::Io { what: writing, source })?;
    }
}

/// Reads the header and finds the identity that fits. age reads headers of any length into memory, hence the gate.
fn open<'a, R: Read + 'a>(
    object: &'static str,
    input: R,
    identities: &[Identity],
) -> Result<Box<dyn Read + 'a>, EnvelopeError> {
    const READ_AHEAD: usize = 8 << 10;
    let left = Rc::new(Cell::new(MAX_HEADER_BYTES + READ_AHEAD as u64));
    let gate = Gate { inner: input, left: Rc::clone(&left) };
    let sort = |error: DecryptError| match error {
        DecryptError::NoMatchingKeys => EnvelopeError::NoMatch { object, identities: identities.len() },
        DecryptError::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            EnvelopeError::Damaged { object, found: "a file that ends within its header".to_owned() }
        }
        DecryptError::Io(source) if source.kind() != io::ErrorKind::FileTooLarge => {
            EnvelopeError::Io { what: object, source }
        }
        other => EnvelopeError::Damaged { object, found: fault(&other) },
    };
    let decryptor = Decryptor::new_buffered(BufReader::with_capacity(READ_AHEAD, gate)).map_err(sort)?;
    if decryptor.is_scrypt() {
        return Err(EnvelopeError::Damaged { object, found: "one encrypted with a passphrase".to_owned() });
    }
    left.set(u64::MAX);
    let stream = decryptor.decrypt(identities.iter().map(|i| &i.0 as &dyn age::Identity)).map_err(sort)?;
    Ok(Box::new(stream))
}

/// age's own words are localised and several lines long.
fn fault(error: &DecryptError) -> String {
    match error {
        DecryptError::InvalidHeader => "a malformed header",
        DecryptError::InvalidMac => "a header that was changed",
        DecryptError::UnknownFormat => "another version of age's format, or another kind of file",
        DecryptError::Io(_) => "a header longer than 64 KiB",
        _ => "one that does not decrypt",
    }
    .to_owned()
}

/// Ends with an error, not with an end of file, once `left` bytes were read.
struct Gate<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Gate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(buffer.get_mut(..room).unwrap_or_default())?;
        if left != u64::MAX {
            self.left.set(left.saturating_sub(read as u64));
        }
        Ok(read)
    }
}
