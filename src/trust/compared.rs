//! Whether a seal is the one that left the branch. A signature does not say that: an older seal of the same shipment is signed as well.

use crate::error::{Error, Result};
use motiongear_manifest::check::{CheckedEvent, Class, Finding, Findings, Opened, Severity, split_signer};
use motiongear_manifest::documents::custody::Event;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What the operator says of the seal.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Digest or spoken code that the seal must have.
    pub seal: Option<String>,
    /// There is nothing to compare it with; that is recorded.
    pub uncompared: bool,
}

/// By what a seal is known to be the one that left the branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compared {
    /// The operator gave its code or digest.
    Code,
    /// Somebody else than the sender signed that this seal arrived.
    Received,
    /// By nothing.
    Uncompared,
}

impl Compared {
    const ALL: [(Compared, &'static str); 3] =
        [(Compared::Code, "code"), (Compared::Received, "received"), (Compared::Uncompared, "uncompared")];

    /// As the ledger stores it.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(compared, _)| *compared == self).map_or("uncompared", |(_, word)| word)
    }
    /// Back from the word.
    pub fn of_word(word: &str) -> Option<Compared> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(compared, _)| *compared)
    }
}

impl Expected {
    /// This seal and no other.
    pub fn seal(code: impl Into<String>) -> Expected {
        Expected { seal: Some(code.into()), uncompared: false }
    }

    /// By what the seal of an array, whose code was compared if one was given, is known. `chain` and `findings` are its custody.
    ///
    /// # Errors
    /// Untrusted: by nothing, and the operator did not say that this shall do.
    pub(super) fn compare(&self, opened: &Opened, chain: &[CheckedEvent], findings: &Findings) -> Result<Compared> {
        if self.seal.is_some() {
            return Ok(Compared::Code);
        }
        if is_valid(findings) && was_received(opened, chain) {
            return Ok(Compared::Received);
        }
        if self.uncompared {
            return Ok(Compared::Uncompared);
        }
        Err(Error::untrusted(format!(
            "Seal {}: no 'received' event of the array names it, and no code was given to compare it with",
            opened.spoken_code()
        ))
        .next(
            "ask the branch for the code and pass it with --expect-seal, or record the arrival with 'motiongear custody receive'; \
             --uncompared does without, and the report says so",
        ))
    }
}

/// Whether nothing is wrong with a chain but files that are no part of it.
fn is_valid(findings: &Findings) -> bool {
    let foreign = |finding: &&Finding| finding.severity == Severity::Error && finding.class == Class::Extra;
    findings.errors() == findings.list.iter().filter(foreign).count() as u64
}

/// Whether somebody who neither sealed nor sent the array signed that it arrived under its seal.
fn was_received(opened: &Opened, chain: &[CheckedEvent]) -> bool {
    let sent = chain.iter().filter(|link| link.event.event == Event::Dispatched);
    let mut senders: BTreeSet<&str> = sent.filter_map(|link| link.signed_by.as_deref()).collect();
    senders.insert(&opened.signed_by.fingerprint);
    let of_sender = |signer: &str| split_signer(signer).is_ok_and(|(_, site)| site == opened.seal.site.name);
    chain.iter().any(|link| {
        link.event.event == Event::Received
            && link.event.seal == opened.seal_digest
            && link.signed_by.as_deref().is_some_and(|key| !senders.contains(key))
            && !of_sender(&link.event.signer)
    })
}
