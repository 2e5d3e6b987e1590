//! Who says so: the seal and its signature, the signer, and what the seal pins. Nothing else of an array is looked at before.
//!
//! 1. Two pairs, `seal.json` + `seal.json.sig` and their second copies, each valid only as a pair: strict JSON, a signature by the
//!    key that it names, and, with a trust file, a signer `NAME@SITE` of that key with SITE the seal's site.
//! 2. The first pair counts; the second only where the first is unreadable or invalid, or where it supersedes the first.
//! 3. `shipment.json` and the key envelopes are read by their pins, second copies where the first differ.

use super::files::{Root, Unread, copy_of};
use super::findings::{Class, Finding, Findings, Severity};
use crate::allowed::AllowedSigners;
use crate::code::{names_seal, spoken_code};
use crate::documents::seal::{Seal, envelope_file, envelope_number};
use crate::documents::shipment::{Shipment, Suite};
use crate::documents::{Document, MAX_DOCUMENT_BYTES};
use crate::envelope::{ContentKey, EnvelopeError, EnvelopeMeta, Identity, MAX_ENVELOPE_BYTES, unwrap_key};
use crate::error::{FormatError, Result};
use crate::names::check_name;
use crate::pack::RecordRules;
use crate::record::{Keyring, RecordKey};
use crate::sign::{MAX_SIGNATURE_BYTES, Namespace, VerifiedBy, verify};
use crate::tree::Digest;
use jiff::Timestamp;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// What the operator brings; none of it comes from the array.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Allowed signers; `None` checks the medium only, and says so.
    pub trust: Option<&'a AllowedSigners>,
    /// The time at which the validity of keys is judged.
    pub at: Timestamp,
    /// The seal that is expected: spoken code or digest.
    pub expect_seal: Option<&'a str>,
}

/// Nothing on the array may be used.
#[derive(Debug)]
pub struct Refused {
    /// Why; at least one error.
    pub findings: Findings,
    /// What kept the array from being looked at, where that is no lack of trust: no array there, no seal yet, no permission.
    pub obstacle: Option<Box<FormatError>>,
}

impl Refused {
    /// The obstacle where it is a lack of permission: the array is there.
    pub fn denied(&self) -> Option<FormatError> {
        match self.obstacle.as_deref() {
            Some(FormatError::Io { path, source }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Some(FormatError::io(path.clone(), source.kind().into()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.findings.first_error() {
            Some(finding) => write!(f, "{}: {}", finding.object, finding.what),
            None => f.write_str("Array: refused"),
        }
    }
}

impl std::error::Error for Refused {}

impl From<FormatError> for Refused {
    fn from(error: FormatError) -> Self {
        let mut findings = Findings::default();
        findings.error(Class::Untrusted, "Array", error.to_string());
        let obstacle = matches!(error, FormatError::Io { .. }).then(|| Box::new(error));
        Refused { findings, obstacle }
    }
}

impl From<Findings> for Refused {
    fn from(findings: Findings) -> Self {
        Refused { findings, obstacle: None }
    }
}

/// An array whose seal is valid, and, with a trust file, trusted.
pub struct Opened {
    /// `ARRAY/motiongear`.
    pub root: Root,
    /// The seal that counts.
    pub seal: Seal,
    /// BLAKE3 of its bytes.
    pub seal_digest: Digest,
    /// The key that signed it.
    pub signed_by: VerifiedBy,
    /// Whether that key was compared with a trust file.
    pub signer_checked: bool,
    /// What the seal pins as `shipment.json`.
    pub shipment: Shipment,
    /// The signer of `shipment.json`, whose signature holds (with a trust file: who may prepare arrays); `None` if it is unsigned, so
    /// that its recipients are the word of the road until the seal.
    pub prepared_by: Option<String>,
    /// Writing processes whose envelope can be had as it is pinned. They are read again where they are needed.
    envelopes: Vec<u32>,
    /// What holds for every record.
    pub(super) record_rules: Arc<RecordRules>,
    /// What was noticed so far.
    pub findings: Findings,
}

/// `NAME@SITE`, both names by the rules of [`check_name`].
///
/// # Errors
/// Not of that form.
pub fn split_signer(signer: &str) -> Result<(&str, &str)> {
    let shown = || signer.chars().take(80).flat_map(char::escape_default).collect::<String>();
    let (name, site) = signer
        .split_once('@')
        .ok_or_else(|| FormatError::untrusted("Signer", format!("expected NAME@SITE, found '{}'", shown())))?;
    check_name("Signer's name", name)?;
    check_name("Signer's site", site)?;
    Ok((name, site))
}

/// A seal with a signature that matches.
struct Pair {
    seal: Seal,
    digest: Digest,
    by: VerifiedBy,
}

/// Finds and checks the seal, `shipment.json` and the envelopes of the array mounted at `array`.
///
/// # Errors
/// [`Refused`] if there is no valid (with a trust file: trusted) seal, the expected one is another, or what it pins cannot be
/// had from either copy.
pub fn open_array(array: &Path, terms: &Terms) -> Result<Opened, Refused> {
    let root = Root::open(array)?;
    let mut findings = Findings::default();
    for folder in root.false_folders() {
        let what = "expected a folder, found a link or a file: it was made so, and nothing of this array is read";
        findings.error(Class::Untrusted, folder, what);
    }
    if findings.errors() > 0 {
        return Err(findings.into());
    }
    let Some(pair) = choose_pair(&root, terms, &mut findings) else {
        return Err(Refused { obstacle: obstacle(&root).map(Box::new), findings });
    };
    if let Some(said) = terms.expect_seal
        && !names_seal(said, &pair.digest)
    {
        let what = format!("expected the seal '{said}', found {} ({})", spoken_code(&pair.digest), pair.digest);
        findings.error(Class::Untrusted, "seal.json", what);
        return Err(findings.into());
    }
    if terms.trust.is_none() {
        let what =
            format!("signer not checked: no trust file was given; the seal is signed by key {}", pair.by.fingerprint);
        findings.note("seal.json", what);
    }
    let Pair { seal, digest, by } = pair;
    let Some((shipment, prepared_by)) = pinned_shipment(&root, &seal, terms, &mut findings) else {
        return Err(findings.into());
    };
    // Compared now and not kept: thousands of them may be pinned, by whom nobody knows without a trust file.
    let mut envelopes = Vec::new();
    for (file, pin) in &seal.pins {
        let Some(process) = envelope_number(file) else { continue };
        if pinned(&root, file, pin, MAX_ENVELOPE_BYTES as u64, Class::Damaged, &mut findings).is_some() {
            envelopes.push(process);
        }
    }
    let record_rules = Arc::new(match shipment.suite {
        Suite::Plaintext => RecordRules::Plaintext,
        _ => RecordRules::Encrypted(seal.pins.keys().filter_map(|file| envelope_number(file)).collect()),
    });
    Ok(Opened {
        root,
        seal,
        seal_digest: digest,
        signed_by: by,
        signer_checked: terms.trust.is_some(),
        shipment,
        prepared_by,
        envelopes,
        record_rules,
        findings,
    })
}

/// What stands in the way of a seal that nobody could have made better or worse: permissions, or that there is none yet. Where
/// custody tells of a seal, a missing one was taken away.
fn obstacle(root: &Root) -> Option<FormatError> {
    let files = ["seal.json", "seal.json.sig", "copy/seal.json", "copy/seal.json.sig"];
    let found = files.map(|file| root.open_file(file).err());
    let error = |file: &str, kind: std::io::ErrorKind| FormatError::io(root.path().join(file), kind.into());
    if let Some(at) = found.iter().position(|unread| *unread == Some(Unread::Denied)) {
        return Some(error(files[at], std::io::ErrorKind::PermissionDenied));
    }
    let none = found.iter().all(|unread| *unread == Some(Unread::Missing));
    let untold = root.list("custody").is_ok_and(|names| names.iter().all(|name| !name.starts_with("0001-")));
    (none && untold).then(|| error(files[0], std::io::ErrorKind::NotFound))
}

fn choose_pair(root: &Root, terms: &Terms, findings: &mut Findings) -> Option<Pair> {
    match (read_pair(root, "", terms), read_pair(root, "copy/", terms)) {
        (Ok(first), Ok(second)) if first.digest == second.digest => Some(first),
        (Ok(first), Ok(second)) if first.seal.shipment == second.seal.shipment => {
            if second.seal.supersedes == Some(first.digest) {
                findings.warn(
                    Class::Damaged,
                    "seal.json",
                    "older than its second copy, which supersedes it and is used",
                );
                return Some(second);
            }
            if first.seal.supersedes == Some(second.digest) {
                findings.warn(
                    Class::Damaged,
                    "copy/seal.json",
                    "an older seal, superseded by seal.json, which is used",
                );
                return Some(first);
            }
            findings.error(
                Class::Untrusted,
                "seal.json",
                "two different valid seals, neither of which supersedes the other",
            );
            None
        }
        (Ok(_), Ok(_)) => {
            findings.error(Class::Untrusted, "seal.json", "two valid seals of different shipments");
            None
        }
        (Ok(first), Err(fault)) => {
            findings.push(Finding { severity: Severity::Warning, ..fault });
            Some(first)
        }
        (Err(fault), Ok(second)) => {
            let what = format!("{}; the second copy is used", fault.what);
            findings.push(Finding { severity: Severity::Warning, what, ..fault });
            Some(second)
        }
        (Err(first), Err(second)) => {
            findings.push(first);
            findings.push(second);
            None
        }
    }
}

/// Reads `seal.json` and its signature below `prefix`. Without a valid pair there is no trust, so every fault is of that class.
fn read_pair(root: &Root, prefix: &str, terms: &Terms) -> Result<Pair, Finding> {
    let (file, sig) = (format!("{prefix}seal.json"), format!("{prefix}seal.json.sig"));
    let fault = |object: &str, what: String| Finding::new(Severity::Error, Class::Untrusted, object, what);
    let bytes = root.read(&file, Seal::MAX_BYTES).map_err(|e| match e {
        Unread::Missing => fault(&file, "missing: this array was not sealed".to_owned()),
        other => fault(&file, other.to_string()),
    })?;
    let signature = root.read(&sig, MAX_SIGNATURE_BYTES as u64).map_err(|e| match e {
        Unread::Missing => fault(&sig, "missing: the seal is not signed".to_owned()),
        other => fault(&sig, other.to_string()),
    })?;
    // The signature first: bytes that nobody signed are not even parsed.
    let by = verify(&signature, &bytes, Namespace::Seal).map_err(|e| fault(&sig, e.to_string()))?;
    let seal = Seal::parse(&bytes).map_err(|e| fault(&file, e.to_string()))?;
    let (_, site) = split_signer(&seal.signer).map_err(|e| fault(&file, e.to_string()))?;
    if site != seal.site.name {
        return Err(fault(&file, format!("expected a signer of site '{}', found '{}'", seal.site.name, seal.signer)));
    }
    if let Some(trust) = terms.trust {
        trust
            .check(&seal.signer, &by.key, Namespace::Seal, terms.at)
            .map_err(|refusal| fault(&sig, refusal.to_string()))?;
    }
    Ok(Pair { digest: Digest::of(&bytes), seal, by })
}

/// Reads a pinned file, or its second copy where the first differs. Both are looked at, so that a rotten copy is said in time.
fn pinned(root: &Root, file: &str, pin: &Digest, max: u64, class: Class, findings: &mut Findings) -> Option<Vec<u8>> {
    let read = |file: &str| match root.read(file, max) {
        Ok(bytes) if Digest::of(&bytes) == *pin => Ok(bytes),
        Ok(bytes) => Err(format!("expected BLAKE3 {pin}, found {}", Digest::of(&bytes))),
        Err(unread) => Err(unread.to_string()),
    };
    let copy = copy_of(file);
    match (read(file), read(&copy)) {
        (Ok(bytes), Ok(_)) => Some(bytes),
        (Ok(bytes), Err(fault)) => {
            findings.warn(Class::Damaged, copy, fault);
            Some(bytes)
        }
        (Err(fault), Ok(bytes)) => {
            findings.warn(Class::Damaged, file, format!("{fault}; the second copy is used"));
            Some(bytes)
        }
        (Err(first), Err(second)) => {
            findings.error(class, file, first);
            findings.error(class, copy, second);
            None
        }
    }
}

/// Gives the document, and its signer where that signature holds.
fn pinned_shipment(
    root: &Root,
    seal: &Seal,
    terms: &Terms,
    findings: &mut Findings,
) -> Option<(Shipment, Option<String>)> {
    const FILE: &str = "shipment.json";
    let pin = seal.pins.get(FILE)?;
    let bytes = pinned(root, FILE, pin, MAX_DOCUMENT_BYTES, Class::Untrusted, findings)?;
    let shipment = match Shipment::parse(&bytes) {
        Ok(shipment) => shipment,
        Err(error) => {
            findings.error(Class::Untrusted, FILE, error.to_string());
            return None;
        }
    };
    let encrypted = shipment.suite != Suite::Plaintext;
    let mismatch = if shipment.shipment != seal.shipment {
        format!("expected shipment {}, found {}", seal.shipment, shipment.shipment)
    } else if shipment.site != seal.site {
        format!(
            "expected site {} {}, found {} {}",
            seal.site.name, seal.site.uuid, shipment.site.name, shipment.site.uuid
        )
    } else if encrypted != (seal.manifest.file == "manifest.db.age") {
        format!("expected a manifest that suits {:?}, found {}", shipment.suite, seal.manifest.file)
    } else if !encrypted && seal.pins.len() > 1 {
        "expected no key envelope in a plaintext shipment, found some".to_owned()
    } else if let Some(pack) = seal.packs.iter().find(|pack| shipment.media.iter().all(|m| m.number != pack.medium)) {
        format!("expected a medium that it lists, found {} of {}", pack.medium, pack.file)
    } else if let Some(disk) = seal.disks.iter().find(|disk| disk.block_bytes != shipment.block_bytes) {
        format!(
            "expected the block size of disk {}/{} in the seal, {} bytes, found {}",
            disk.machine, disk.disk, disk.block_bytes, shipment.block_bytes
        )
    } else {
        let signed = check_shipment_signature(root, &shipment, &bytes, terms, findings);
        let prepared_by = shipment.signer.clone().filter(|_| signed);
        return Some((shipment, prepared_by));
    };
    findings.error(Class::Untrusted, FILE, mismatch);
    None
}

/// `shipment.json.sig` is there exactly when `shipment.json` names its signer. Who prepares arrays need not be of the site.
/// Says whether it is signed.
fn check_shipment_signature(
    root: &Root,
    shipment: &Shipment,
    bytes: &[u8],
    terms: &Terms,
    findings: &mut Findings,
) -> bool {
    const SIG: &str = "shipment.json.sig";
    let read = root.read(SIG, MAX_SIGNATURE_BYTES as u64);
    let Some(signer) = &shipment.signer else {
        if read != Err(Unread::Missing) {
            findings.error(Class::Extra, SIG, "a signature, though shipment.json names no signer");
        }
        let what = "not signed: before the seal, nothing said who its recipients are";
        findings.push(Finding::new(Severity::Note, Class::NotChecked, "shipment.json", what));
        return false;
    };
    let check = |signature: &[u8]| -> Result<(), String> {
        split_signer(signer).map_err(|e| e.to_string())?;
        let by = verify(signature, bytes, Namespace::Shipment).map_err(|e| e.to_string())?;
        let Some(trust) = terms.trust else { return Ok(()) };
        trust.check(signer, &by.key, Namespace::Shipment, terms.at).map_err(|e| e.to_string())
    };
    let first = read.map_err(|e| e.to_string()).and_then(|signature| check(&signature));
    let copy = copy_of(SIG);
    let second = match root.read(&copy, MAX_SIGNATURE_BYTES as u64) {
        // This copy is optional.
        Err(Unread::Missing) if first.is_ok() => return true,
        other => other.map_err(|e| e.to_string()).and_then(|signature| check(&signature)),
    };
    let signed = first.is_ok() || second.is_ok();
    match (first, second) {
        (Ok(()), Ok(())) => {}
        (Ok(()), Err(fault)) => findings.warn(Class::Damaged, copy, fault),
        (Err(fault), Ok(())) => findings.warn(Class::Damaged, SIG, format!("{fault}; the second copy is used")),
        (Err(first), Err(second)) => {
            findings.error(Class::Untrusted, SIG, first);
            findings.error(Class::Untrusted, copy, second);
        }
    }
    signed
}

impl Opened {
    /// The seal's spoken code.
    pub fn spoken_code(&self) -> String {
        spoken_code(&self.seal_digest)
    }

    /// True if records and manifest are encrypted.
    pub fn encrypted(&self) -> bool {
        self.shipment.suite != Suite::Plaintext
    }

    /// `MACHINE/DISK` of a record header's disk number.
    pub fn disk_name(&self, number: u32) -> Option<String> {
        self.seal.disks.iter().find(|d| d.id == number).map(|d| format!("{}/{}", d.machine, d.disk))
    }

    /// Opens every envelope; a plaintext shipment has none. One that neither copy could give was found by [`open_array`] and is
    /// left out: it costs the blocks of its writing process only.
    ///
    /// # Errors
    /// No identity fits, or an envelope is about something else.
    pub fn keyring(&self, identities: &[Identity]) -> Result<Keyring> {
        let mut keys = Keyring::new(self.encrypted());
        for process in &self.envelopes {
            let key = self.content_key(*process, identities)?;
            keys.insert(*process, RecordKey::new(key.as_bytes())?);
        }
        Ok(keys)
    }

    /// Whether an identity opens the envelopes, by the first of them: known in a moment, and not after 50 TB.
    ///
    /// # Errors
    /// None of them is a recipient's.
    pub fn check_identities(&self, identities: &[Identity]) -> Result<()> {
        let Some(process) = self.envelopes.first() else { return Ok(()) };
        let envelope = self.envelope(*process)?;
        match unwrap_key(&envelope, identities, &EnvelopeMeta::new(self.seal.shipment, *process)) {
            Err(no_match @ EnvelopeError::NoMatch { .. }) => {
                Err(FormatError::untrusted(envelope_file(*process), no_match.to_string()))
            }
            // What is wrong with an envelope is a finding beside others.
            _ => Ok(()),
        }
    }

    fn content_key(&self, process: u32, identities: &[Identity]) -> Result<ContentKey> {
        let envelope = self.envelope(process)?;
        unwrap_key(&envelope, identities, &EnvelopeMeta::new(self.seal.shipment, process))
            .map_err(|e| FormatError::untrusted(envelope_file(process), e.to_string()))
    }

    /// The envelope of a process as the seal pins it.
    fn envelope(&self, process: u32) -> Result<Vec<u8>> {
        let file = envelope_file(process);
        let pin = self.seal.pins.get(&file);
        let pin = pin.ok_or_else(|| FormatError::damaged(&*file, "an envelope that the seal pins", "none"))?;
        // What is wrong with one of its copies was said.
        let said = &mut Findings::default();
        pinned(&self.root, &file, pin, MAX_ENVELOPE_BYTES as u64, Class::Damaged, said)
            .ok_or_else(|| FormatError::damaged(&*file, format!("BLAKE3 {pin}"), "another, of both copies"))
    }
}
