//! Chains of signed events: the one reader, with every rule, of a directory that holds one. `custody/` on an array is read by it,
//! and so is whatever else is kept in that form: this host's copy of that chain, the data centre's own events.

use super::files::{Root, Unread, advice_on_stray};
use super::findings::{Class, Findings};
use super::trust::{Terms, split_signer};
use crate::documents::Document;
use crate::documents::custody::{MAX_EVENTS, Predecessor, event_name};
use crate::sign::{MAX_SIGNATURE_BYTES, Namespace, verify};
use crate::tree::Digest;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Most names in its directory.
pub const MAX_NAMES: usize = 10_000;

/// A document that stands in a chain.
pub trait ChainEvent: Document {
    /// What can happen: EVENT in `NNNN-EVENT.json`.
    const WORDS: &'static [&'static str];
    /// What every event of a chain says.
    fn head(&self) -> Head<'_>;
    /// Whether its signer must be of the shipment's site.
    fn is_of_site(&self) -> bool;
    /// Whether another key and another site than those of the event before must have signed: who hands over cannot take over, too.
    fn is_countersigned(&self) -> bool {
        false
    }
}

/// What every event of a chain says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// The shipment.
    pub shipment: Uuid,
    /// BLAKE3 of its `seal.json`.
    pub seal: Digest,
    /// Place in the chain, from 1.
    pub number: u32,
    /// What happened; one of [`ChainEvent::WORDS`].
    pub word: &'static str,
    /// By the signing host's clock.
    pub at: Timestamp,
    /// NAME@SITE.
    pub signer: &'a str,
    /// The event before; `None` for the first only.
    pub previous: Option<&'a Predecessor>,
}

/// What a chain must be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The shipment.
    pub shipment: Uuid,
    /// Its seal; `None` where events may be about any seal of the shipment.
    pub seal: Option<Digest>,
    /// The name of the shipment's site.
    pub site: &'a str,
}

/// One event that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link<E> {
    /// Relative to the root that was read.
    pub file: String,
    /// The document.
    pub event: E,
    /// `SHA256:…` of the key that signed it; `None` if no signature matches.
    pub signed_by: Option<String>,
    /// BLAKE3 of document and signature: what the next event must name.
    pub digests: Predecessor,
}

/// Of a document or its signature, the document's name.
fn without_signature(name: &str) -> &str {
    name.strip_suffix(".sig").unwrap_or(name)
}

/// Whether a name is that of an event or its signature.
fn is_event<E: ChainEvent>(name: &str) -> bool {
    let name = without_signature(name);
    let number = name.split_once('-').and_then(|(number, _)| number.parse().ok());
    number.is_some_and(|n| (1..=MAX_EVENTS).contains(&n) && E::WORDS.iter().any(|word| event_name(n, word) == name))
}

/// Reads the chain in `folder` below `root`; no such folder is an empty chain. Every fault is a finding, and reading goes on behind
/// it. If no error is of class untrusted or damaged, what is returned is a valid chain.
pub fn read_chain<E: ChainEvent>(
    root: &Root,
    folder: &str,
    subject: &Subject,
    terms: &Terms,
) -> (Vec<Link<E>>, Findings) {
    let mut reader = Reader { root, folder, subject, terms, findings: Findings::default() };
    let names = match root.list_at_most(folder, MAX_NAMES) {
        Ok(names) => names.into_iter().collect(),
        Err(unread) => {
            let class = if matches!(unread, Unread::TooMany(_)) { Class::Untrusted } else { Class::Damaged };
            reader.findings.error(class, folder, unread.to_string());
            return (Vec::new(), reader.findings);
        }
    };
    let links = reader.follow(names);
    (links, reader.findings)
}

/// Why `signer` cannot sign for what follows `last`: the same key, or the same site.
pub fn own_receipt<E: ChainEvent>(last: &Link<E>, signer: &str, key: Option<&str>) -> Option<String> {
    let before = last.event.head();
    let site = |signer: &str| split_signer(signer).ok().map(|(_, site)| site.to_owned());
    if key.is_some() && last.signed_by.as_deref() == key {
        return Some(format!("'{signer}' signed with the key of '{}', who signed the event before", before.signer));
    }
    let same = site(signer).is_some_and(|own| site(before.signer).is_some_and(|other| own == other));
    same.then(|| format!("'{signer}' is of the site of '{}', who signed the event before", before.signer))
}

struct Reader<'a> {
    root: &'a Root,
    folder: &'a str,
    subject: &'a Subject<'a>,
    terms: &'a Terms<'a>,
    findings: Findings,
}

impl Reader<'_> {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    fn follow<E: ChainEvent>(&mut self, mut names: BTreeSet<String>) -> Vec<Link<E>> {
        let mut chain: Vec<Link<E>> = Vec::new();
        let mut leftover = None;
        for number in 1..=MAX_EVENTS {
            let mut here: Vec<String> = E::WORDS.iter().map(|word| event_name(number, word)).collect();
            here.retain(|name| names.contains(name) || names.contains(&format!("{name}.sig")));
            let Some(name) = here.first() else { break };
            // Whoever can take the last signature away can take its event, too: so there is nothing to distrust in what a crash
            // between the two writes leaves. Before a later event, which names its signature, a link is broken.
            if !names.contains(&format!("{name}.sig"))
                && !names.iter().any(|other| is_event::<E>(other) && other != name)
            {
                leftover = Some(name.clone());
                break;
            }
            for event in &here {
                names.remove(event);
                names.remove(&format!("{event}.sig"));
            }
            for second in here.iter().skip(1) {
                self.findings.error(Class::Untrusted, self.path(second), format!("a second event number {number}"));
            }
            let link = self.event(name, number, chain.last());
            chain.extend(link);
        }
        for name in names {
            let shown: String = name.chars().take(200).flat_map(char::escape_default).collect();
            let (class, what) = match is_event::<E>(&name) {
                true if leftover.as_ref() == Some(&name) => {
                    let what = "not signed: what a crash leaves of an event; the next event takes its place";
                    (Class::Extra, what.to_owned())
                }
                // An event behind a gap is a broken link, not a foreign file: what it names was taken away.
                true => (Class::Untrusted, "an event before it is missing".to_owned()),
                false => (Class::Extra, format!("no part of the chain of events; {}", advice_on_stray(&name))),
            };
            self.findings.error(class, self.path(&shown), what);
        }
        chain
    }

    /// Reads and checks the event `name` behind `last`.
    fn event<E: ChainEvent>(&mut self, name: &str, number: u32, last: Option<&Link<E>>) -> Option<Link<E>> {
        let file = self.path(name);
        let read = self.root.read(&file, E::MAX_BYTES).map_err(|unread| unread.to_string());
        let parsed = read.and_then(|bytes| E::parse(&bytes).map(|event| (event, bytes)).map_err(|e| e.to_string()));
        let (event, bytes) = match parsed {
            Ok(read) => read,
            Err(what) => {
                self.findings.error(Class::Untrusted, file, what);
                return None;
            }
        };
        let mut fault = |what: String| self.findings.error(Class::Untrusted, file.as_str(), what);
        let head = event.head();
        if head.shipment != self.subject.shipment {
            fault(format!("expected shipment {}, found {}", self.subject.shipment, head.shipment));
        }
        if let Some(seal) = self.subject.seal.filter(|seal| *seal != head.seal) {
            fault(format!("expected seal {seal}, found {}", head.seal));
        }
        if event_name(head.number, head.word) != name || head.number != number {
            fault(format!("expected number and event as in its name, found {} {}", head.number, head.word));
        }
        if head.previous != last.map(|last| &last.digests) {
            fault("expected the digests of its predecessor and of that signature, found others".to_owned());
        }
        let signature = match self.root.read(&format!("{file}.sig"), MAX_SIGNATURE_BYTES as u64) {
            Ok(signature) => signature,
            Err(unread) => {
                fault(if unread == Unread::Missing { "it is not signed".to_owned() } else { unread.to_string() });
                Vec::new()
            }
        };
        if let Some(before) = last.map(|last| last.event.head()).filter(|before| before.at > head.at) {
            let (own, earlier) = (head.at, before.at);
            let what =
                format!("its time {own} lies before its predecessor's {earlier}; the clocks of two hosts disagree");
            self.findings.note(file.as_str(), what);
        }
        let mut signed_by = None;
        if !signature.is_empty() {
            match self.signature(&event, &bytes, &signature) {
                Ok(fingerprint) => signed_by = Some(fingerprint),
                Err(what) => self.findings.error(Class::Untrusted, format!("{file}.sig"), what),
            }
        }
        if let Some(last) = last.filter(|_| event.is_countersigned())
            && let Some(what) = own_receipt(last, head.signer, signed_by.as_deref())
        {
            self.findings.error(Class::Untrusted, format!("{file}.sig"), what);
        }
        let digests = Predecessor { event: Digest::of(&bytes), signature: Digest::of(&signature) };
        Some(Link { file, event, signed_by, digests })
    }

    fn signature<E: ChainEvent>(&self, event: &E, bytes: &[u8], signature: &[u8]) -> Result<String, String> {
        let signer = event.head().signer;
        let (_, site) = split_signer(signer).map_err(|e| e.to_string())?;
        if event.is_of_site() && site != self.subject.site {
            return Err(format!("expected a signer of site '{}', found '{signer}'", self.subject.site));
        }
        let by = verify(signature, bytes, Namespace::Custody).map_err(|e| e.to_string())?;
        if let Some(trust) = self.terms.trust {
            trust.check(signer, &by.key, Namespace::Custody, self.terms.at).map_err(|e| e.to_string())?;
        }
        Ok(by.fingerprint)
    }
}
