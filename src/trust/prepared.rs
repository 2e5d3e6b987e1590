//! Whether `shipment.json` is the document that was prepared for this site.
//!
//! An array travels to the branch before anything on it is sealed. Whoever exchanges this one document on the road chooses who can read
//! the disks, so no record is written before it is vouched for: by a signature that the trust file allows, by the ledger of the host that
//! prepared the array, or by a person who has the code of its recipients from elsewhere.

use crate::array::Array;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use jiff::Timestamp;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::code::{names_seal, spoken_code};
use motiongear_manifest::documents::MAX_DOCUMENT_BYTES;
use motiongear_manifest::documents::shipment::{Shipment, Suite};
use motiongear_manifest::envelope::Recipient;
use motiongear_manifest::sign::{Namespace, verify};
use motiongear_manifest::tree::Digest;
use std::path::PathBuf;
use uuid::Uuid;

const PREPARE_ANOTHER: &str = "do not use this array: ask the data centre for another one, prepared with init";

/// What a person brings to vouch for `shipment.json`.
#[derive(Debug, Clone, Default)]
pub struct Confirmation {
    /// OpenSSH allowed-signers file.
    pub trust: Option<PathBuf>,
    /// The code of the recipients, as `init` printed it.
    pub recipient_code: Option<String>,
    /// Nothing is to be encrypted, and that is meant.
    pub plaintext: bool,
}

/// What the code of a shipment's recipients is made of: BLAKE3 of the list as text, sorted, a line each. So `b3sum` gives it, too.
pub fn recipients_digest(shipment: &Shipment) -> Digest {
    let mut sorted = shipment.recipients.clone();
    sorted.sort_unstable();
    Digest::of(sorted.iter().map(|recipient| format!("{recipient}\n")).collect::<String>().as_bytes())
}

/// One code for all recipients together, to be compared with paper; none for a plaintext shipment.
pub fn recipient_code(shipment: &Shipment) -> Option<String> {
    (!shipment.recipients.is_empty()).then(|| spoken_code(&recipients_digest(shipment)))
}

/// Returns once `shipment.json` is vouched for.
///
/// # Errors
/// Untrusted: altered since `init` at this host, not signed as the trust file demands, or other recipients than the code names. Wrong
/// usage: nobody vouches for it yet, or it is plaintext and nobody said so.
pub fn confirm(
    context: &Context,
    array: &Array,
    shipment: &Shipment,
    document: Digest,
    by: &Confirmation,
) -> Result<()> {
    let uuid = shipment.shipment;
    let plaintext = shipment.suite == Suite::Plaintext;
    expect_prepared(&context.ledger, uuid, document)?;
    if let Some(code) = &by.recipient_code {
        check_code(array, shipment, code)?;
    }
    let trust = by.trust.as_deref().map(super::read_trust).transpose()?;
    let signed = match trust.filter(|trust| trust.has_signer_for(Namespace::Shipment)) {
        Some(trust) => check_signature(array, shipment, document, &trust).map(|()| true)?,
        None => false,
    };
    say_plaintext(shipment, by.plaintext)?;
    // What a known shipment must have as its document is compared by seed and seal themselves.
    let known = context.ledger.prepared(uuid)?.is_some() || context.ledger.shipment(uuid)?.is_some();
    if signed || known || plaintext || by.recipient_code.is_some() {
        return Ok(());
    }
    let recipients = fingerprints(shipment)?.join(", ");
    let unconfirmed = || {
        Error::usage(format!("Recipients of shipment {uuid}: not confirmed ({recipients})")).next(
            "pass --recipient-code with the code that init printed at the data centre, or --trust where shipment.json is signed",
        )
    };
    let ask = context.ask_code.as_ref().ok_or_else(unconfirmed)?;
    let question = format!(
        "Recipients of shipment {uuid}: {recipients}\nType the recipient code that init printed at the data centre: "
    );
    let typed = ask(&question).unwrap_or_default();
    if typed.trim().is_empty() {
        return Err(unconfirmed());
    }
    check_code(array, shipment, &typed)
}

/// Refuses a document that is not the one with which this host prepared the array.
///
/// # Errors
/// Untrusted; the ledger cannot be read.
pub fn expect_prepared(ledger: &Ledger, shipment: Uuid, found: Digest) -> Result<()> {
    match ledger.prepared(shipment)? {
        Some(expected) if expected != found => Err(Error::untrusted(format!(
            "shipment.json of shipment {shipment}: expected BLAKE3 {expected}, found {found}: it was altered since this host prepared it"
        ))
        .next(PREPARE_ANOTHER)),
        _ => Ok(()),
    }
}

/// Refuses to go on with a plaintext shipment until that is said again, and the opposite.
///
/// # Errors
/// Wrong usage.
pub fn say_plaintext(shipment: &Shipment, said: bool) -> Result<()> {
    let uuid = shipment.shipment;
    match (shipment.suite == Suite::Plaintext, said) {
        (true, false) => Err(Error::usage(format!("Shipment {uuid}: PLAINTEXT: nothing on its array is encrypted"))
            .next(
                "pass --plaintext if that is meant; otherwise do not use this array: prepare one with init --recipient",
            )),
        (false, true) => Err(Error::usage(format!("Shipment {uuid}: it is encrypted, and --plaintext was given"))
            .next("leave out --plaintext")),
        _ => Ok(()),
    }
}

/// Refuses a `shipment.json` that is not signed by somebody whom the trust file allows to prepare arrays.
///
/// # Errors
/// Untrusted: no signature, one of other bytes, or a signer who is not allowed.
pub fn check_signature(array: &Array, shipment: &Shipment, document: Digest, trust: &AllowedSigners) -> Result<()> {
    const NEXT: &str = "correct the trust file, or prepare the array again with an allowed key (init --key); the data centre would refuse it";
    let Some(signer) = &shipment.signer else {
        return Err(Error::untrusted(format!(
            "shipment.json on {}: not signed, and the trust file names signers of {}",
            array.root().display(),
            Namespace::Shipment.as_str()
        ))
        .next(
            "ask the data centre whether it prepared the array without --key; if it did not, do not use this array",
        ));
    };
    let copies = |name: &str| -> Vec<Vec<u8>> {
        let places = [name.to_owned(), format!("copy/{name}")];
        places.iter().filter_map(|file| array.tree().ok()?.read(file, MAX_DOCUMENT_BYTES).ok()).collect()
    };
    let refused = || Error::untrusted(format!("Signer {signer} of shipment.json")).next(NEXT);
    let bytes = copies("shipment.json").into_iter().find(|bytes| Digest::of(bytes) == document).unwrap_or_default();
    let by = copies("shipment.json.sig").iter().find_map(|sig| verify(sig, &bytes, Namespace::Shipment).ok());
    let by = by.ok_or_else(|| {
        Error::untrusted(format!("Signer {signer} of shipment.json: no valid signature of it was found")).next(NEXT)
    })?;
    trust.check(signer, &by.key, Namespace::Shipment, Timestamp::now()).map_err(|e| refused().because(e))
}

/// Fingerprints of the recipients, to be compared with paper.
pub fn fingerprints(shipment: &Shipment) -> Result<Vec<String>> {
    Ok(super::recipients(shipment)?.iter().map(Recipient::fingerprint).collect())
}

fn check_code(array: &Array, shipment: &Shipment, said: &str) -> Result<()> {
    let refused = |found: String| {
        Error::untrusted(format!("Recipients in shipment.json on {}: {found}", array.root().display()))
            .next("compare the code with the data centre; if it is typed right, somebody exchanged the recipients: do not use this array")
    };
    if shipment.suite == Suite::Plaintext {
        return Err(refused("a recipient code was given, and the shipment is PLAINTEXT".into()));
    }
    if !names_seal(said, &recipients_digest(shipment)) {
        return Err(refused("they are not those that the recipient code names".into()));
    }
    Ok(())
}
