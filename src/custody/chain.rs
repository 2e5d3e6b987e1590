//! The chain of custody events: reading it with every check, and adding to it so that a crash leaves the old chain or the new.
//!
//! An event is a document and its signature. Adding one writes, each durably and with its directory:
//! 1. the document (signature first would leave a signature over nothing, which no reader could tell from tampering);
//! 2. the signature. Only now is the event part of the chain; a document without one is the leftover of a crash, is not
//!    believed, and the next event takes its place.

use crate::error::{Error, IoContext, Result};
use crate::io::{create_dirs_durably, read_bounded, sync_dir, write_file_durably};
use crate::ledger::Ledger;
use jiff::Timestamp;
use motiongear_manifest::check::{Terms, is_event, split_signer};
use motiongear_manifest::documents::custody::{CustodyEvent, Event, Predecessor, event_file};
use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES};
use motiongear_manifest::sign::{MAX_SIGNATURE_BYTES, Namespace, Signer, verify};
use motiongear_manifest::tree::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Most events of a chain.
const MAX_EVENTS: u32 = 999;
/// Most names in its directory that are looked at.
const MAX_NAMES: usize = 10_000;

/// One signed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What was signed.
    pub event: CustodyEvent,
    /// BLAKE3 of document and signature: what the next event must name.
    pub digests: Predecessor,
    /// `SHA256:…` of the key that signed.
    pub key: String,
    /// Whether the key was compared with a trust file.
    pub signer_checked: bool,
}

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

impl Link {
    /// Its file's name, without a directory.
    pub fn file(&self) -> String {
        file_name(self.event.number, self.event.event)
    }
    /// For a report.
    pub fn facts(&self) -> EventFacts {
        let event = self.event.clone();
        EventFacts {
            number: event.number,
            event: event.event,
            at: event.at,
            signer: event.signer,
            key: self.key.clone(),
            signer_checked: self.signer_checked,
            person: event.person,
            box_seals: event.box_seals,
            place: event.place,
            note: event.note,
            file: self.file(),
            document: self.digests.event,
        }
    }
}

/// Signed events in order, each naming its predecessor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// The events.
    pub links: Vec<Link>,
    /// What is odd without breaking the chain: a leftover, a file that belongs to nothing, clocks that disagree.
    pub notes: Vec<String>,
}

impl Chain {
    /// The last thing that happened.
    pub fn last(&self) -> Option<Event> {
        self.links.last().map(|link| link.event.event)
    }
    /// The place of the next event.
    pub fn next_number(&self) -> u32 {
        u32::try_from(self.links.len()).unwrap_or(u32::MAX).saturating_add(1)
    }
    /// What the next event must name.
    pub fn predecessor(&self) -> Option<Predecessor> {
        self.links.last().map(|link| link.digests.clone())
    }
    /// The last event of a kind.
    pub fn last_of(&self, event: Event) -> Option<&Link> {
        self.links.iter().rev().find(|link| link.event.event == event)
    }
}

fn file_name(number: u32, event: Event) -> String {
    event_file(number, event).trim_start_matches("custody/").to_owned()
}

/// What may follow: the array goes out and comes in; its content is imported once or more, then erased, and then nothing.
fn may_follow(last: Option<Event>, next: Event) -> bool {
    match (last, next) {
        (Some(Event::Erased), _) => false,
        (Some(Event::Dispatched), Event::Dispatched) => false,
        (_, Event::Dispatched) => last.is_none_or(|last| last == Event::Received),
        (_, Event::Received) => last == Some(Event::Dispatched),
        (_, Event::Imported | Event::Erased) => true,
    }
}

/// Reads and checks the chain in `dir` (`ARRAY/motiongear/custody`, or [`kept_dir`]). No directory is an empty chain.
///
/// # Errors
/// Untrusted: an event of another shipment or seal, out of place or order, not naming its predecessor, with a signature that does
/// not match or (with a trust file) by somebody not allowed; or the directory cannot be read.
pub fn read_chain(dir: &Path, shipment: Uuid, seal: Digest, terms: &Terms) -> Result<Chain> {
    let mut names = names(dir)?;
    let mut chain = Chain::default();
    for number in 1..=MAX_EVENTS {
        let events = [Event::Dispatched, Event::Received, Event::Imported, Event::Erased];
        let here: Vec<Event> = events.into_iter().filter(|e| names.contains(&file_name(number, *e))).collect();
        let signed: Vec<Event> =
            here.iter().copied().filter(|e| names.contains(&format!("{}.sig", file_name(number, *e)))).collect();
        let event = match (signed.as_slice(), here.is_empty()) {
            ([event], _) => *event,
            ([], true) => {
                // Nothing at the end; or a link was taken out of the middle.
                if names.iter().any(|name| is_event(name)) {
                    return Err(broken(dir, number, "an event", "none, though there are later ones"));
                }
                break;
            }
            ([], false) => {
                // Only at the end: an event that follows names a signature, so this one had one.
                let later = format!("{:04}-", number + 1);
                if names.iter().any(|name| name.starts_with(&later)) {
                    return Err(broken(dir, number, "a signature", "none"));
                }
                break;
            }
            _ => return Err(broken(dir, number, "one event", "several")),
        };
        let name = file_name(number, event);
        let link = read_link(dir, &name, (number, event), shipment, seal, &chain, terms)?;
        if let Some(before) = chain.links.last().filter(|before| before.event.at > link.event.at) {
            chain.notes.push(format!(
                "Custody event {name}: its time {} lies before its predecessor's {}; the clocks of two hosts disagree",
                link.event.at, before.event.at
            ));
        }
        names.remove(&name);
        names.remove(&format!("{name}.sig"));
        chain.links.push(link);
    }
    for name in names {
        let shown: String = name.chars().take(100).flat_map(char::escape_default).collect();
        chain.notes.push(format!("Custody: {shown} is no part of the chain and was not believed"));
    }
    Ok(chain)
}

fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let what = || format!("Custody directory {}", dir.display());
    let mut names = BTreeSet::new();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(names),
        entries => entries.context(what)?,
    };
    for entry in entries {
        if names.len() == MAX_NAMES {
            return Err(Error::untrusted(format!("{}: expected at most {MAX_NAMES} names, found more", what())));
        }
        names.insert(entry.context(what)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn broken(dir: &Path, number: u32, expected: &str, found: &str) -> Error {
    Error::untrusted(format!("Custody event {number} in {}: expected {expected}, found {found}", dir.display())).next(
        "the chain was tampered with or damaged: stop, keep the array, and compare with the paper report and the sender",
    )
}

fn read_link(
    dir: &Path,
    name: &str,
    (number, kind): (u32, Event),
    shipment: Uuid,
    seal: Digest,
    chain: &Chain,
    terms: &Terms,
) -> Result<Link> {
    let refuse = |expected: &str, found: &str| broken(dir, number, expected, found);
    let bytes = read_bounded(&dir.join(name), MAX_DOCUMENT_BYTES)?;
    let signature = read_bounded(&dir.join(format!("{name}.sig")), MAX_SIGNATURE_BYTES as u64)?;
    // The signature first: bytes that nobody signed are not even parsed.
    let by = verify(&signature, &bytes, Namespace::Custody)
        .map_err(|e| refuse("a signature over this event", &e.to_string()))?;
    let event = CustodyEvent::parse(&bytes)?;
    split_signer(&event.signer)?;
    if event.shipment != shipment {
        return Err(refuse(&format!("shipment {shipment}"), &event.shipment.to_string()));
    }
    if event.seal != seal {
        return Err(refuse(&format!("seal {seal}"), &event.seal.to_string()));
    }
    if (event.number, event.event) != (number, kind) {
        let found = format!("{} {}", event.number, event.event.word());
        return Err(refuse(&format!("{number} {} as in its name", kind.word()), &found));
    }
    if event.previous != chain.predecessor() {
        return Err(refuse("the digests of its predecessor and of that signature", "others"));
    }
    if !may_follow(chain.last(), event.event) {
        let after = chain.last().map_or("nothing", Event::word);
        return Err(refuse(
            "dispatched, received, imported, erased in turn",
            &format!("{} after {after}", kind.word()),
        ));
    }
    if let Some(trust) = terms.trust {
        trust
            .check(&event.signer, &by.key, Namespace::Custody, terms.at)
            .map_err(|refusal| refuse("an allowed signer", &refusal.to_string()))?;
    }
    Ok(Link {
        event,
        digests: Predecessor { event: Digest::of(&bytes), signature: Digest::of(&signature) },
        key: by.fingerprint,
        signer_checked: terms.trust.is_some(),
    })
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

/// Adds a signed event to the chain in `dir`, and returns it.
///
/// # Errors
/// It may not follow, breaks a rule of the format, or the directory cannot be written.
#[allow(clippy::too_many_arguments)] // Every one of them is a field of the document.
pub fn append(
    dir: &Path,
    chain: &Chain,
    (shipment, seal): (Uuid, Digest),
    event: Event,
    at: Timestamp,
    signer: &str,
    particulars: &Particulars,
    key: &Signer,
) -> Result<Link> {
    if !may_follow(chain.last(), event) {
        let last = chain.last().map_or("nothing so far", Event::word);
        return Err(Error::failed(format!(
            "Custody of shipment {shipment}: expected an event that can follow '{last}', found '{}'",
            event.word()
        ))
        .next("read the chain on the array: ls ARRAY/motiongear/custody"));
    }
    let number = chain.next_number();
    if number > MAX_EVENTS {
        return Err(Error::failed(format!("Custody of shipment {shipment}: at most {MAX_EVENTS} events")));
    }
    let document = CustodyEvent {
        format: motiongear_manifest::FORMAT,
        shipment,
        seal,
        number,
        event,
        at,
        signer: signer.to_owned(),
        person: particulars.person.clone(),
        box_seals: particulars.box_seals.clone(),
        place: particulars.place.clone(),
        note: particulars.note.clone(),
        previous: chain.predecessor(),
    };
    let bytes = document.to_bytes()?;
    let signature = key.sign(&bytes, Namespace::Custody).map_err(motiongear_manifest::FormatError::from)?;
    create_dirs_durably(dir, 0o777)?;
    remove_leftovers(dir, number)?;
    let name = file_name(number, event);
    write_file_durably(dir, &name, &bytes)?;
    write_file_durably(dir, &format!("{name}.sig"), signature.as_bytes())?;
    Ok(Link {
        event: document,
        digests: Predecessor { event: Digest::of(&bytes), signature: Digest::of(signature.as_bytes()) },
        key: key.fingerprint(),
        signer_checked: false,
    })
}

/// Removes what a crash left behind: documents of this number without signature, and temporary files of a durable write.
///
/// # Errors
/// The directory cannot be written.
pub(super) fn remove_leftovers(dir: &Path, number: u32) -> Result<()> {
    let prefix = format!("{number:04}-");
    for name in names(dir)? {
        let temporary = name.starts_with('.') && name.ends_with(".tmp");
        if temporary || (name.starts_with(&prefix) && name.ends_with(".json")) {
            let path = dir.join(&name);
            std::fs::remove_file(&path).context(|| format!("Leftover {}", path.display()))?;
        }
    }
    sync_dir(dir)
}

/// `STATE/custody/UUID`: this host's own copy of the chain, and the events that are not on the array.
pub fn kept_dir(ledger: &Ledger, shipment: Uuid) -> PathBuf {
    ledger.state().join("custody").join(shipment.to_string())
}

/// Copies events that `kept` lacks from `array`, both directories of one chain.
///
/// # Errors
/// A file cannot be read or written.
pub fn keep(array: &Path, kept: &Path, chain: &Chain) -> Result<()> {
    create_dirs_durably(kept, 0o777)?;
    for link in &chain.links {
        let name = link.file();
        if kept.join(format!("{name}.sig")).exists() {
            continue;
        }
        let bytes = read_bounded(&array.join(&name), MAX_DOCUMENT_BYTES)?;
        let signature = read_bounded(&array.join(format!("{name}.sig")), MAX_SIGNATURE_BYTES as u64)?;
        write_file_durably(kept, &name, &bytes)?;
        write_file_durably(kept, &format!("{name}.sig"), &signature)?;
    }
    Ok(())
}

/// The chain of the array and this host's own copy of it as one: whichever is longer, if one begins with the other.
///
/// # Errors
/// They contradict each other: untrusted.
pub fn join(array: Chain, kept: Chain) -> Result<Chain> {
    let common = array.links.iter().zip(&kept.links).take_while(|(a, b)| a.digests == b.digests).count();
    if common < array.links.len().min(kept.links.len()) {
        return Err(Error::untrusted(format!(
            "Custody: event {} on the array is not the one that this host's ledger keeps",
            common + 1
        ))
        .next("somebody rewrote the chain; keep the array and compare both with the sender"));
    }
    let missing = kept.links.get(common..).unwrap_or_default().iter();
    let missing: Vec<String> = missing
        .filter(|link| matches!(link.event.event, Event::Dispatched | Event::Received))
        .map(Link::file)
        .collect();
    let mut notes = array.notes;
    notes.extend(kept.notes);
    if !missing.is_empty() {
        notes.push(format!("Custody: the array lacks {}, which this host's ledger keeps", missing.join(", ")));
    }
    let links = if array.links.len() > kept.links.len() { array.links } else { kept.links };
    Ok(Chain { links, notes })
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
