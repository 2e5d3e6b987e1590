//! Who may say what: opening a shipment in the right order, and the keys that a person brings. The checks themselves are the
//! format crate's; here they meet files, the ledger and the passphrase prompt.

mod compared;
pub mod keygen;
pub mod prepared;

pub use compared::{Compared, Expected};

use crate::array::Array;
use crate::array::holder::Lock;
use crate::context::{Context, now};
use crate::error::{Error, IoContext, Result};
use crate::io::create_dirs_durably;
use crate::ledger::centre::Succession;
use jiff::Timestamp;
use motiongear_manifest::FormatError;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::check::{CheckedEvent, Class, Opened, Severity, Terms, open_array, split_signer};
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::seal::Seal;
use motiongear_manifest::documents::shipment::Shipment;
use motiongear_manifest::envelope::{Identity, Recipient};
use motiongear_manifest::record::Keyring;
use motiongear_manifest::sign::{Namespace, SignError, Signer};
use motiongear_manifest::sums::SummedReader;
use motiongear_manifest::tree::Digest;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use zeroize::Zeroizing;

/// Largest key, trust or identity file, bytes.
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;

/// A sealed shipment whose seal, pins and manifest have been verified: nothing on the array is believed beyond this.
pub struct Accepted {
    /// The pinned `shipment.json`.
    pub shipment: Shipment,
    /// The seal that counts.
    pub seal: Seal,
    /// BLAKE3 of `seal.json`.
    pub seal_digest: Digest,
    /// The manifest: a private, verified copy in the state directory.
    pub catalogue: Catalogue,
    /// Content keys; empty for a plaintext shipment.
    pub keys: Arc<Keyring>,
    /// Who signed `shipment.json`; `None` if nobody did, so that until the seal the road could change its recipients.
    pub prepared_by: Option<String>,
    /// Fingerprint of the key that signed the seal; it was compared with the trust file.
    pub fingerprint: String,
    /// By what it is known to be the seal that left the branch.
    pub compared: Compared,
    /// How it stands to the seals that this ledger accepted.
    pub succession: Succession,
    /// What people should know: a second copy was used, a seal supersedes another …
    pub notes: Vec<String>,
    /// Keeps whoever would write to the array away while it is read.
    pub lock: Lock,
}

/// Opens what a data centre may act on. Order: signature on the seal, pins, whether it is the seal that left the branch, the manifest
/// hashed while it is copied into the state directory, only that copy opened, manifest and seal compared.
///
/// # Errors
/// Untrusted (exit 4) for anything that the trust file, the identity, the ledger or `expected` does not cover.
pub fn accept(
    context: &Context,
    array: &Array,
    trust: &Path,
    identity: Option<&Path>,
    expected: &Expected,
    verify_time: Option<Timestamp>,
) -> Result<Accepted> {
    let signers = read_trust(trust)?;
    let lock = Lock::shared(array)?;
    let identities = identity.map(read_identities).transpose()?.unwrap_or_default();
    let mut opened = open(array, Some(&signers), expected.seal.as_deref(), verify_time)?;
    let (ledger, shipment) = (&context.ledger, opened.seal.shipment);
    if let Some(document) = opened.seal.pins.get("shipment.json") {
        prepared::expect_prepared(ledger, shipment, *document)?;
    }
    ledger.compare_site(shipment, &opened.seal.site)?;
    let succession = ledger.compare_seal(opened.seal_digest, &opened.seal)?;
    // Custody knows which seal left the branch: an older valid one in its place is refused. Other faults of the chain are
    // said, and stand in the report; they do not make the disks wrong.
    let terms = Terms { trust: Some(&signers), at: verify_time.unwrap_or_else(Timestamp::now), expect_seal: None };
    let (chain, custody) = opened.custody(&terms);
    let of_this = |event: &&CheckedEvent| event.signed_by.is_some() && event.event.shipment == shipment;
    if let Some(other) = chain.iter().filter(of_this).find(|e| e.event.seal != opened.seal_digest) {
        let (file, named, found) = (&other.file, spoken_code(&other.event.seal), opened.spoken_code());
        return Err(Error::untrusted(format!("Seal: expected {named}, which {file} names, found {found}"))
            .next("somebody put another seal of this shipment in place of the dispatched one: ask the branch"));
    }
    let compared = expected.compare(&opened, &chain, &custody)?;
    if opened.encrypted() && identities.is_empty() {
        return Err(Error::untrusted(format!(
            "Shipment {}: it is encrypted, and no identity was given",
            opened.seal.shipment
        ))
        .next("give the age identity file of one of its recipients with --identity"));
    }
    let keys = Arc::new(opened.keyring(&identities)?);
    let work = context.ledger.import_dir(opened.seal.shipment);
    create_dirs_durably(&work, 0o777)?;
    // Not one block could be had.
    if opened.encrypted() && keys.is_empty() && opened.seal.packs.iter().any(|pack| pack.records > 0) {
        return Err(array.gone().unwrap_or_else(|| Error::untrusted(format!("Shipment {}: it is encrypted, and not one key envelope can be opened", opened.seal.shipment))
            .next("give the identity of another recipient with --identity; if every envelope is lost, the branch must ship again")));
    }
    let (catalogue, _) =
        opened.fetch_manifest(&identities, &work).map_err(|error| array.gone().unwrap_or_else(|| error.into()))?;
    // An envelope that both copies lost costs its process's blocks, which are then damaged; a contradiction costs everything.
    let lost = opened.findings.errors();
    opened.cross_check(&catalogue);
    let contradictions = opened.findings.errors() - lost;
    let errors = opened.findings.list.iter().filter(|f| f.severity == Severity::Error);
    if let Some(error) = errors.into_iter().find(|f| f.class != Class::Damaged || contradictions > 0) {
        return Err(Error::untrusted(format!("{}: {}", error.object, error.what))
            .next("the shipment contradicts its own seal: do not import it; ask the branch to check and seal again"));
    }
    opened.findings.append(custody);
    let mut notes: Vec<String> = opened.findings.list.iter().map(|f| format!("{}: {}", f.object, f.what)).collect();
    let code = spoken_code;
    match succession {
        Succession::First | Succession::Same => {}
        Succession::Next { before } => notes.push(format!("the seal supersedes {}", code(&before))),
        Succession::Gap { last } => {
            notes.push(format!("the seal is later than {} and supersedes one that was not seen here", code(&last)));
        }
    }
    if compared == Compared::Uncompared {
        notes.push(
            "the seal was compared with nothing: it may be an older one than the one that left the branch".into(),
        );
    }
    if !context.dry_run {
        ledger.keep_site(shipment, &opened.seal.site, now()?)?;
    }
    Ok(Accepted {
        fingerprint: opened.signed_by.fingerprint.clone(),
        prepared_by: opened.prepared_by,
        shipment: opened.shipment,
        seal: opened.seal,
        seal_digest: opened.seal_digest,
        catalogue,
        keys,
        compared,
        succession,
        notes,
        lock,
    })
}

/// The first step alone: seal, signature, pins. Without `trust` only the medium is checked ("signer not checked").
///
/// # Errors
/// No valid seal, or not the expected one.
pub fn open(
    array: &Array,
    trust: Option<&AllowedSigners>,
    expect_seal: Option<&str>,
    verify_time: Option<Timestamp>,
) -> Result<Opened> {
    // The checker takes the place where the array is mounted; `Array` knows its `motiongear/` folder.
    let terms = Terms { trust, at: verify_time.unwrap_or_else(Timestamp::now), expect_seal };
    open_array(array.mount(), &terms).map_err(|refused| {
        if let Some(denied) = refused.denied() {
            return in_the_way(denied);
        }
        if let Some(error) = array.gone().or_else(|| array.was_erased()) {
            return error;
        }
        let said = refused.to_string();
        refused.obstacle.map_or_else(
            || {
                Error::untrusted(said)
                    .next("nothing was written; 'motiongear verify ARRAY' lists everything that was found")
            },
            |obstacle| in_the_way(*obstacle),
        )
    })
}

/// What kept an array from being looked at is no lack of trust.
pub fn in_the_way(obstacle: FormatError) -> Error {
    let FormatError::Io { path, source } = &obstacle else { return obstacle.into() };
    let next = match source.kind() {
        std::io::ErrorKind::PermissionDenied => "run it as a user who may read the array, such as root",
        std::io::ErrorKind::NotFound if path.ends_with("seal.json") => {
            return Error::failed(format!("Array {}: it was not sealed", path.parent().unwrap_or(path).display()))
                .next("seal it with 'motiongear seal ARRAY --key SSH_KEY'");
        }
        _ => "check that the array is mounted there",
    };
    Error::from(obstacle).next(next)
}

/// Reads an OpenSSH allowed-signers file.
///
/// # Errors
/// Unreadable, or a line that is not understood.
pub fn read_trust(path: &Path) -> Result<AllowedSigners> {
    let bytes = read_key_file("Trust file", path, Guard::Public)?;
    // As for ssh-keygen: bytes of another encoding spoil the line that has them, and no other.
    AllowedSigners::parse(&String::from_utf8_lossy(&bytes))
        .map_err(|e| Error::usage(format!("Trust file {}", path.display())).because(e))
}

/// Reads an age identity file.
///
/// # Errors
/// Unreadable, or no identity in it.
pub fn read_identities(path: &Path) -> Result<Vec<Identity>> {
    let bytes = read_key_file("Identity file", path, Guard::Secret)?;
    Identity::parse_file(&bytes).map_err(|e| Error::usage(format!("Identity file {}", path.display())).because(e))
}

/// Opens the manifest that a seal pins, from the state directory. Its digest is compared first; a manifest that was only opened
/// for writing since (which changes two bytes of its header) passes where `at_branch`, for every disk is compared anyway.
///
/// # Errors
/// It is not there, or not the one of the seal.
pub fn open_manifest(path: &Path, seal: &Seal, at_branch: bool) -> Result<Catalogue> {
    let what = || format!("Manifest {}", path.display());
    let mut reader = SummedReader::new(File::open(path).context(what)?, u64::MAX);
    std::io::copy(&mut reader, &mut std::io::sink()).context(what)?;
    let found = reader.finish().blake3;
    if found == seal.manifest.plain.blake3 {
        return Ok(Catalogue::open_sealed(path)?);
    }
    if at_branch {
        return Ok(Catalogue::open_live(path)?);
    }
    Err(Error::untrusted(format!("{}: expected BLAKE3 {}, found {found}", what(), seal.manifest.plain.blake3))
        .next("the state directory was altered; import again to fetch the manifest anew"))
}

/// What others must not be able to do with a file that a person brings.
#[derive(Clone, Copy, PartialEq)]
enum Guard {
    /// Read it: it is a secret.
    Secret,
    /// Write it: whoever can decides who is trusted.
    Public,
}

fn read_key_file(object: &str, path: &Path, guard: Guard) -> Result<Zeroizing<Vec<u8>>> {
    // The path is the person's own; a link, or a pipe from a secret store, is theirs to use. The length is bounded all the same.
    let what = || format!("{object} {}", path.display());
    let file = std::fs::File::open(path).context(what)?;
    check_guarded(&what, &file.metadata().context(what)?, guard)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_KEY_FILE_BYTES + 1).read_to_end(&mut bytes).context(what)?;
    if bytes.len() as u64 > MAX_KEY_FILE_BYTES {
        return Err(Error::usage(format!("{}: larger than {MAX_KEY_FILE_BYTES} bytes", what())));
    }
    Ok(bytes)
}

fn check_guarded(what: &dyn Fn() -> String, meta: &Metadata, guard: Guard) -> Result<()> {
    let (bits, act, mode) = match guard {
        Guard::Secret => (0o077, "read", "600"),
        Guard::Public => (0o022, "write", "644"),
    };
    // A pipe has no readers but us.
    if !meta.is_file() {
        return Ok(());
    }
    let found = meta.mode() & 0o7777;
    if found & bits != 0 {
        return Err(Error::failed(format!("{}: others can {act} it (mode {found:04o})", what()))
            .next(format!("find out who had it, then chmod {mode} the file; or use another")));
    }
    let ours = [Some(0), Some(rustix::process::geteuid().as_raw()), INVOKER.get().copied()];
    if !ours.contains(&Some(meta.uid())) {
        return Err(Error::failed(format!("{}: it belongs to another user (uid {})", what(), meta.uid()))
            .next(format!("find out who had it, then chown and chmod {mode} the file; or use another")));
    }
    Ok(())
}

/// Who called sudo, where that is known: files of that person are that person's to use.
static INVOKER: OnceLock<u32> = OnceLock::new();

/// Files of the user `uid` count as our own from now on.
pub fn act_for(uid: u32) {
    // A second time would be the same.
    let _ = INVOKER.set(uid);
}

/// Loads a private key, asking for its passphrase if it has one.
///
/// # Errors
/// Unreadable, an unsupported kind of key, nobody to ask for its passphrase, or a wrong passphrase.
pub fn load_signer(context: &Context, path: &Path) -> Result<Signer> {
    let bytes = read_key_file("Key", path, Guard::Secret)?;
    let mut ask = || (context.ask)(&path.display().to_string());
    Signer::from_openssh(&bytes, Some(&mut ask)).map_err(|error| {
        let what = format!("Key {}", path.display());
        match error {
            SignError::PassphraseNeeded | SignError::Passphrase(_) => Error::usage(what)
                .because(error)
                .next("run the command on a terminal, or give the passphrase as the next line of standard input"),
            SignError::WrongPassphrase => Error::failed(what).because(error).next("run the same command again"),
            other => {
                Error::failed(what).because(other).next("give another key: an OpenSSH private key, ed25519 or ECDSA")
            }
        }
    })
}

/// Refuses a key that the receiving side would refuse: it must be allowed to sign, under this name, in each of these namespaces.
/// Verbs ask before they do anything else, dry runs included. Without a trust file nobody can say.
///
/// # Errors
/// Untrusted: the trust file does not allow it.
pub fn check_may_sign(
    trust: Option<&AllowedSigners>,
    (name, key): (&str, &Signer),
    namespaces: &[Namespace],
    at: Timestamp,
) -> Result<()> {
    let Some(trust) = trust else { return Ok(()) };
    for namespace in namespaces {
        trust.check(name, key.public_key(), *namespace, at).map_err(|refusal| {
            Error::untrusted(format!("Signer {name}: {refusal}"))
                .next(format!("sign with a key that the trust file allows for {}", namespace.as_str()))
        })?;
    }
    Ok(())
}

/// The name under which `signer` signs: `given`, or the key's comment if that has the form NAME@SITE. Its site must be `site`.
///
/// # Errors
/// Neither has the form, or the site is another.
pub fn signer_name(signer: &Signer, given: Option<&str>, site: &str) -> Result<String> {
    let comment = signer.public_key().comment().to_owned();
    let name = given.map(str::to_owned).or_else(|| split_signer(&comment).is_ok().then_some(comment));
    let name = name.ok_or_else(|| {
        Error::usage(format!(
            "Signer: expected a name of the form NAME@{site}, found none (the key's comment is no such name)"
        ))
        .next(format!("give it with --signer, as in --signer zhang@{site}"))
    })?;
    let (_, found) = split_signer(&name)?;
    if found != site {
        return Err(Error::untrusted(format!("Signer {name}: expected somebody of site {site}, found site {found}"))
            .next("sign with a key of the shipment's own site"));
    }
    Ok(name)
}

/// Who will be able to read a shipment; nobody in particular where it is plaintext.
///
/// # Errors
/// A recipient that is no age X25519 key.
pub fn recipients(shipment: &Shipment) -> Result<Vec<Recipient>> {
    let parse = |text: &String| {
        text.parse::<Recipient>().map_err(|e| Error::untrusted("Recipient in shipment.json").because(e))
    };
    shipment.recipients.iter().map(parse).collect()
}

/// Reads `shipment.json` with its bytes' digest. Of two different copies the one counts that is among `known`, the digests that a
/// ledger remembers: a flipped bit in the other must not cost the array.
///
/// # Errors
/// Not there, or not valid.
pub fn shipment_with_digest(array: &Array, known: &[Digest]) -> Result<(Shipment, Digest)> {
    use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES};
    let read = |file: &str| -> Result<(Shipment, Digest)> {
        let bytes = array.tree()?.read(file, MAX_DOCUMENT_BYTES)?;
        Ok((Shipment::parse(&bytes)?, Digest::of(&bytes)))
    };
    match (read("shipment.json"), read("copy/shipment.json")) {
        (Ok(first), Ok(second)) if first.1 != second.1 && !known.contains(&first.1) => {
            match known.contains(&second.1) {
                true => Ok(second),
                // Nobody here can say which of the two was prepared, and for whom.
                false => Err(Error::untrusted(format!(
                    "shipment.json on {}: expected two equal copies, found {} and {}",
                    array.root().display(),
                    first.1,
                    second.1
                ))
                .next("it was altered since init: prepare the array again")),
            }
        }
        (Ok(first), _) => Ok(first),
        (Err(_), Ok(second)) => Ok(second),
        // This one says what stands in the way, where there is no array at all.
        (Err(first), Err(_)) => Err(array.read_shipment().err().unwrap_or(first)),
    }
}
