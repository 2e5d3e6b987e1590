//! The chain on the array: dispatched and received, in turn. Each host that the array passes keeps a copy of it.

use super::chain::{Chain, Place, name, write_event};
use crate::error::{Error, Result};
use jiff::Timestamp;
use motiongear_manifest::check::Terms;
use motiongear_manifest::check::chain::{Link, Subject};
use motiongear_manifest::documents::MAX_DOCUMENT_BYTES;
use motiongear_manifest::documents::custody::{CustodyEvent, Event};
use motiongear_manifest::sign::{MAX_SIGNATURE_BYTES, Signer};
use motiongear_manifest::tree::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use uuid::Uuid;

/// An event as reports state it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFacts {
    /// Place in the chain.
    pub number: u32,
    /// What happened.
    pub event: Event,
    /// By the signing host's clock.
    pub at: Timestamp,
    /// NAME@SITE.
    pub signer: String,
    /// `SHA256:…`.
    pub key: String,
    /// Whether the key was compared with a trust file. The signature itself matches, or the event would not be here.
    pub signer_checked: bool,
    /// Who handed or took over.
    pub person: String,
    /// On the box.
    pub box_seals: Vec<String>,
    /// Where.
    pub place: String,
    /// Anything else.
    pub note: String,
    /// Its file name.
    pub file: String,
    /// BLAKE3 of the document.
    pub document: Digest,
}

impl Chain<CustodyEvent> {
    /// The last thing that happened.
    pub fn last(&self) -> Option<Event> {
        self.links.last().map(|link| link.event.event)
    }
    /// The last event of a kind.
    pub fn last_of(&self, event: Event) -> Option<&Link<CustodyEvent>> {
        self.links.iter().rev().find(|link| link.event.event == event)
    }
    /// For a report.
    pub fn facts(&self) -> Vec<EventFacts> {
        let facts = |link: &Link<CustodyEvent>| {
            let event = link.event.clone();
            EventFacts {
                file: name(&event),
                number: event.number,
                event: event.event,
                at: event.at,
                signer: event.signer,
                key: link.signed_by.clone().unwrap_or_default(),
                signer_checked: self.signers_checked,
                person: event.person,
                box_seals: event.box_seals,
                place: event.place,
                note: event.note,
                document: link.digests.event,
            }
        };
        self.links.iter().map(facts).collect()
    }
}

/// What an event says besides its place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Particulars {
    /// Who handed or took over; may be empty.
    pub person: String,
    /// On the box.
    pub box_seals: Vec<String>,
    /// Where; may be empty.
    pub place: String,
    /// Anything else; may be empty.
    pub note: String,
}

impl Particulars {
    /// In what an event says something else.
    pub fn differences(&self, event: &CustodyEvent) -> Vec<&'static str> {
        [
            ("person", self.person != event.person),
            ("box seals", self.box_seals != event.box_seals),
            ("place", self.place != event.place),
            ("note", self.note != event.note),
        ]
        .into_iter()
        .filter_map(|(word, differs)| differs.then_some(word))
        .collect()
    }
}

/// Adds the next event to the chain at `place`, and returns it.
///
/// # Errors
/// It may not follow, breaks a rule of the format, or the directory cannot be written.
#[allow(clippy::too_many_arguments)] // Every one of them is a field of the document.
pub fn append(
    place: &Place,
    chain: &Chain<CustodyEvent>,
    (shipment, seal): (Uuid, Digest),
    event: Event,
    at: Timestamp,
    signer: &str,
    particulars: &Particulars,
    key: &Signer,
) -> Result<Link<CustodyEvent>> {
    let event = CustodyEvent {
        format: motiongear_manifest::FORMAT,
        shipment,
        seal,
        number: chain.next_number(),
        event,
        at,
        signer: signer.to_owned(),
        person: particulars.person.clone(),
        box_seals: particulars.box_seals.clone(),
        place: particulars.place.clone(),
        note: particulars.note.clone(),
        previous: chain.predecessor(),
    };
    place.append(event, key)
}

/// The chain on the array, joined with this host's own copy of it.
///
/// # Errors
/// Either is not trusted or cannot be read, or they contradict each other.
pub fn read(array: &Place, kept: &Place, subject: &Subject, terms: &Terms) -> Result<Chain<CustodyEvent>> {
    join(array.read(subject, terms)?, kept.read(subject, terms)?)
}

/// Copies what `to` lacks of a chain from `from`, and makes durable what it has; leftovers of a crash go.
///
/// # Errors
/// A file cannot be read or written, or is not what it was when the chain was checked.
pub fn keep(from: &Place, to: &Place, chain: &Chain<CustodyEvent>) -> Result<()> {
    let target = to.make()?;
    to.remove_leftovers(chain.next_number())?;
    for link in &chain.links {
        let name = name(&link.event);
        let signature = format!("{name}.sig");
        if target.find(&signature)?.is_some() {
            continue;
        }
        let source = from.open()?;
        let document = source.read(&name, MAX_DOCUMENT_BYTES)?;
        let signed = source.read(&signature, MAX_SIGNATURE_BYTES as u64)?;
        if (Digest::of(&document), Digest::of(&signed)) != (link.digests.event, link.digests.signature) {
            return Err(Error::untrusted(format!(
                "File {}: expected what was read a moment ago, found something else",
                source.full(&name).display()
            ))
            .next("the medium does not answer the same twice: keep the array, and do not use it"));
        }
        write_event(&target, &name, &document, &signed)?;
    }
    Ok(())
}

/// The chain of the array and this host's own copy of it as one: whichever is longer, if one begins with the other.
///
/// # Errors
/// They contradict each other: untrusted.
pub fn join(array: Chain<CustodyEvent>, kept: Chain<CustodyEvent>) -> Result<Chain<CustodyEvent>> {
    let common = array.links.iter().zip(&kept.links).take_while(|(a, b)| a.digests == b.digests).count();
    if common < array.links.len().min(kept.links.len()) {
        return Err(Error::untrusted(format!(
            "Custody: event {} on the array is not the one that this host's ledger keeps",
            common + 1
        ))
        .next("somebody rewrote the chain; keep the array and compare both with the sender"));
    }
    let missing: Vec<String> =
        kept.links.get(common..).unwrap_or_default().iter().map(|link| name(&link.event)).collect();
    let mut notes = array.notes;
    notes.extend(kept.notes);
    if !missing.is_empty() {
        notes.push(format!("Custody: the array lacks {}, which this host's ledger keeps", missing.join(", ")));
    }
    let links = if array.links.len() > kept.links.len() { array.links } else { kept.links };
    Ok(Chain { links, notes, signers_checked: array.signers_checked })
}

/// What is different about the box on arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BoxSealDifference {
    /// Put on at dispatch, not found on arrival.
    pub missing: Vec<String>,
    /// Found on arrival, not put on at dispatch.
    pub unexpected: Vec<String>,
}

impl BoxSealDifference {
    /// Compares what was put on with what was found.
    pub fn of(dispatched: &[String], received: &[String]) -> Self {
        let (before, after): (BTreeSet<_>, BTreeSet<_>) = (dispatched.iter().collect(), received.iter().collect());
        let only = |a: &BTreeSet<&String>, b: &BTreeSet<&String>| a.difference(b).map(|s| (*s).clone()).collect();
        BoxSealDifference { missing: only(&before, &after), unexpected: only(&after, &before) }
    }
    /// No difference.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty()
    }
}

/// Whether any arrival in a chain found other box seals than its dispatch put on.
pub fn box_seals_differ(events: &[EventFacts]) -> bool {
    events.windows(2).any(|pair| {
        matches!(pair, [before, after] if before.event == Event::Dispatched && after.event == Event::Received
            && !BoxSealDifference::of(&before.box_seals, &after.box_seals).is_empty())
    })
}
