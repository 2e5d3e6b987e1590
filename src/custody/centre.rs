//! The data centre's own chain: imported and erased. It lies in the state directory only, and is apart from the one on the array,
//! which goes on wherever the array goes: of one chain with links in two places each host would know another end.
//!
//! An event names its predecessor here, and the last event of the array's chain that this host knew then.

use super::chain::{Chain, Place, name};
use crate::error::{Error, Result};
use crate::ledger::Ledger;
use jiff::Timestamp;
use motiongear_manifest::check::Terms;
use motiongear_manifest::check::chain::{ChainEvent, Head, Link, Subject};
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::custody::{CustodyEvent, Predecessor, check_place};
use motiongear_manifest::names::check_text;
use motiongear_manifest::sign::Signer;
use motiongear_manifest::tree::Digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What was done with the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deed {
    /// Written into volumes, and signed for.
    Imported,
    /// Destroyed on the array.
    Erased,
}

impl Deed {
    /// The word in file names and documents.
    pub const fn word(self) -> &'static str {
        match self {
            Deed::Imported => "imported",
            Deed::Erased => "erased",
        }
    }
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CentreEvent {
    /// Format version.
    pub format: u32,
    /// The shipment.
    pub shipment: Uuid,
    /// BLAKE3 of the `seal.json` that it was done under.
    pub seal: Digest,
    /// Place in this chain, from 1.
    pub number: u32,
    /// What was done.
    pub event: Deed,
    /// By this host's clock.
    pub at: Timestamp,
    /// NAME@SITE.
    pub signer: String,
    /// Of which report, or why.
    pub note: String,
    /// The event before it in this chain; `None` for the first only.
    pub previous: Option<Predecessor>,
    /// The last event of the array's chain that was known here; `None` if none was.
    pub custody: Option<Predecessor>,
}

impl Document for CentreEvent {
    const OBJECT: &'static str = "Event of the data centre";
    fn format(&self) -> u32 {
        self.format
    }
    fn validate(&self) -> motiongear_manifest::Result<()> {
        check_text("Signer", &self.signer, 300)?;
        check_text("Note", &self.note, 2000)?;
        check_place(self.number, self.previous.as_ref())
    }
}

impl ChainEvent for CentreEvent {
    const WORDS: &'static [&'static str] = &[Deed::Imported.word(), Deed::Erased.word()];
    fn head(&self) -> Head<'_> {
        Head {
            shipment: self.shipment,
            seal: self.seal,
            number: self.number,
            word: self.event.word(),
            at: self.at,
            signer: &self.signer,
            previous: self.previous.as_ref(),
        }
    }
    fn is_of_site(&self) -> bool {
        false
    }
}

/// An event as reports state it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CentreFacts {
    /// Place in the data centre's chain.
    pub number: u32,
    /// What was done.
    pub event: Deed,
    /// By this host's clock.
    pub at: Timestamp,
    /// NAME@SITE.
    pub signer: String,
    /// `SHA256:…`.
    pub key: String,
    /// Whether the key was compared with a trust file. The signature itself matches, or the event would not be here.
    pub signer_checked: bool,
    /// Under which seal: BLAKE3.
    pub seal: Digest,
    /// The last event of the array's chain that was known then, by its number there.
    pub known_custody: Option<u32>,
    /// Anything else.
    pub note: String,
    /// Its file in the state directory.
    pub file: String,
    /// BLAKE3 of the document.
    pub document: Digest,
}

/// Reads what this host recorded about a shipment, whichever of its seals that was under.
///
/// # Errors
/// Untrusted: the chain is broken, or goes on behind an erasure. It cannot be read.
pub fn read(ledger: &Ledger, shipment: Uuid, site: &str, terms: &Terms) -> Result<Chain<CentreEvent>> {
    let place = Place::centre(ledger, shipment);
    let chain: Chain<CentreEvent> = place.read(&Subject { shipment, seal: None, site }, terms)?;
    let erased = chain.links.iter().position(|link| link.event.event == Deed::Erased);
    if let Some(after) = erased.and_then(|at| chain.links.get(at + 1)) {
        return Err(Error::untrusted(format!(
            "Custody in {}: expected nothing after the erasure, found {}",
            place.dir().display(),
            name(&after.event)
        ))
        .next("put the state directory back from a backup of it"));
    }
    Ok(chain)
}

impl Chain<CentreEvent> {
    /// Whether the array was erased here.
    pub fn is_erased(&self) -> bool {
        self.links.last().is_some_and(|link| link.event.event == Deed::Erased)
    }
    /// Whether the import under a seal was signed for.
    pub fn is_imported(&self, seal: Digest) -> bool {
        self.links.iter().any(|link| link.event.event == Deed::Imported && link.event.seal == seal)
    }

    /// Refuses a chain of the array in which an event is missing that was known here.
    ///
    /// # Errors
    /// Untrusted: that chain was rewritten.
    pub fn check_known(&self, custody: &Chain<CustodyEvent>) -> Result<()> {
        let unknown = |link: &&Link<CentreEvent>| link.event.custody.is_some() && known(link, custody).is_none();
        match self.links.iter().find(unknown) {
            None => Ok(()),
            Some(link) => Err(Error::untrusted(format!(
                "Custody: {}, which this host recorded, names an event of the array's chain that is not there",
                name(&link.event)
            ))
            .next("somebody rewrote the chain; keep the array and compare both with the sender")),
        }
    }

    /// For a report.
    pub fn facts(&self, ledger: &Ledger, custody: &Chain<CustodyEvent>) -> Vec<CentreFacts> {
        let facts = |link: &Link<CentreEvent>| {
            let event = &link.event;
            let file = Place::centre(ledger, event.shipment).file(link);
            CentreFacts {
                number: event.number,
                event: event.event,
                at: event.at,
                signer: event.signer.clone(),
                key: link.signed_by.clone().unwrap_or_default(),
                signer_checked: self.signers_checked,
                seal: event.seal,
                known_custody: known(link, custody),
                note: event.note.clone(),
                file: file.canonicalize().unwrap_or(file).display().to_string(),
                document: link.digests.event,
            }
        };
        self.links.iter().map(facts).collect()
    }
}

/// The number of the event of the array's chain that an event names.
fn known(link: &Link<CentreEvent>, custody: &Chain<CustodyEvent>) -> Option<u32> {
    let named = link.event.custody.as_ref()?;
    custody.links.iter().find(|other| other.digests == *named).map(|other| other.event.number)
}

/// Adds an event to the data centre's chain, durably.
///
/// # Errors
/// The array was erased here already, or the state directory cannot be written.
pub fn append(
    ledger: &Ledger,
    chain: &Chain<CentreEvent>,
    custody: &Chain<CustodyEvent>,
    record: Record,
    key: &Signer,
) -> Result<()> {
    let Record { shipment, seal, event, at, signer, note } = record;
    if chain.is_erased() {
        return Err(Error::failed(format!("Shipment {shipment}: its array was erased; nothing follows that")));
    }
    let event = CentreEvent {
        format: motiongear_manifest::FORMAT,
        shipment,
        seal,
        number: chain.next_number(),
        event,
        at,
        signer,
        note,
        previous: chain.predecessor(),
        custody: custody.predecessor(),
    };
    Place::centre(ledger, shipment).append(event, key).map(drop)
}

/// What was done, for [`append`].
#[derive(Debug, Clone)]
pub struct Record {
    /// The shipment.
    pub shipment: Uuid,
    /// Under which seal.
    pub seal: Digest,
    /// What.
    pub event: Deed,
    /// When.
    pub at: Timestamp,
    /// NAME@SITE.
    pub signer: String,
    /// Of which report, or why.
    pub note: String,
}
