//! The custody chain on the array: every event in its place, of this shipment and seal, naming its predecessor, signed.

use super::files::Unread;
use super::findings::Class;
use super::trust::{Opened, Terms, split_signer};
use crate::documents::custody::{CustodyEvent, Event, Predecessor, event_file};
use crate::documents::{Document, MAX_DOCUMENT_BYTES};
use crate::sign::{MAX_SIGNATURE_BYTES, Namespace, verify};
use crate::tree::Digest;
use serde::Serialize;

/// One event, for a report.
#[derive(Debug, Clone, Serialize)]
pub struct CheckedEvent {
    /// Relative to `motiongear/`.
    pub file: String,
    /// The document.
    pub event: CustodyEvent,
    /// `SHA256:…` of the key that signed it; `None` if no signature matches.
    pub signed_by: Option<String>,
    /// BLAKE3 of document and signature: what the next event must name.
    pub digests: Predecessor,
}

/// Of a document or its signature, the document's name.
fn without_signature(name: &str) -> &str {
    name.strip_suffix(".sig").unwrap_or(name)
}

/// Whether a name in `custody/` is that of an event or its signature.
pub fn is_event(name: &str) -> bool {
    let name = without_signature(name);
    let number = name.split_once('-').and_then(|(number, _)| number.parse().ok());
    let words = [Event::Dispatched, Event::Received];
    number.is_some_and(|n| words.into_iter().any(|event| event_file(n, event).trim_start_matches("custody/") == name))
}

impl Opened {
    /// Reads the whole chain; every fault is a finding, and reading goes on behind it.
    pub fn check_custody(&mut self, terms: &Terms) -> Vec<CheckedEvent> {
        let mut names = match self.root.list("custody") {
            Ok(names) => names,
            Err(unread) => {
                self.findings.error(Class::Damaged, "custody", unread.to_string());
                return Vec::new();
            }
        };
        let mut chain: Vec<CheckedEvent> = Vec::new();
        let words = [Event::Dispatched, Event::Received];
        let mut number = 1;
        let leftover = loop {
            let mut here =
                words.map(|event| event_file(number, event).trim_start_matches("custody/").to_owned()).to_vec();
            here.retain(|name| names.iter().any(|other| without_signature(other) == name));
            let Some(name) = here.first() else { break None };
            // Whoever can take the last signature away can take its event, too: so there is nothing to distrust in what a crash
            // between the two writes leaves. Before a later event, which names its signature, a link is broken.
            if !names.contains(&format!("{name}.sig")) && !names.iter().any(|other| is_event(other) && other != name) {
                break Some(name.clone());
            }
            names.retain(|name| !here.iter().any(|event| event == without_signature(name)));
            if let Some(second) = here.get(1) {
                let what = format!("a second event number {number}");
                self.findings.error(Class::Untrusted, format!("custody/{second}"), what);
            }
            if let Some(event) = self.check_event(&format!("custody/{name}"), number, chain.last(), terms) {
                chain.push(event);
            }
            number += 1;
        };
        for name in names {
            let shown: String = name.chars().take(200).flat_map(char::escape_default).collect();
            let (class, what) = match is_event(&name) {
                true if leftover.as_ref() == Some(&name) => {
                    (Class::Extra, "not signed: what a crash leaves of an event; the next event takes its place")
                }
                // An event behind a gap is a broken link, not a foreign file: what it names was taken away.
                true => (Class::Untrusted, "expected every event before it, found a gap"),
                false => (Class::Extra, "no part of the chain of events"),
            };
            self.findings.error(class, format!("custody/{shown}"), what);
        }
        chain
    }

    fn check_event(
        &mut self,
        file: &str,
        number: u32,
        last: Option<&CheckedEvent>,
        terms: &Terms,
    ) -> Option<CheckedEvent> {
        let mut fault = |what: String| self.findings.error(Class::Untrusted, file, what);
        let bytes = match self.root.read(file, MAX_DOCUMENT_BYTES) {
            Ok(bytes) => bytes,
            Err(unread) => {
                fault(unread.to_string());
                return None;
            }
        };
        let event = match CustodyEvent::parse(&bytes) {
            Ok(event) => event,
            Err(error) => {
                fault(error.to_string());
                return None;
            }
        };
        if (event.shipment, event.seal) != (self.seal.shipment, self.seal_digest) {
            fault(format!(
                "expected shipment {} and seal {}, found {} and {}",
                self.seal.shipment, self.seal_digest, event.shipment, event.seal
            ));
        }
        if event_file(event.number, event.event) != file || event.number != number {
            fault(format!("expected number and event as in its name, found {} {}", event.number, event.event.word()));
        }
        if event.previous.as_ref() != last.map(|last| &last.digests) {
            fault("expected the digests of its predecessor and of that signature, found others".to_owned());
        }
        let signature = match self.root.read(&format!("{file}.sig"), MAX_SIGNATURE_BYTES as u64) {
            Ok(signature) => signature,
            Err(unread) => {
                let what = if unread == Unread::Missing { "it is not signed".to_owned() } else { unread.to_string() };
                fault(what);
                Vec::new()
            }
        };
        let mut signed_by = None;
        if !signature.is_empty() {
            match self.check_event_signature(&event, &bytes, &signature, terms) {
                Ok(fingerprint) => signed_by = Some(fingerprint),
                Err(what) => self.findings.error(Class::Untrusted, format!("{file}.sig"), what),
            }
        }
        let digests = Predecessor { event: Digest::of(&bytes), signature: Digest::of(&signature) };
        Some(CheckedEvent { file: file.to_owned(), event, signed_by, digests })
    }

    /// Who dispatches is of the shipment's site; who receives need not be, but must be allowed like everyone.
    fn check_event_signature(
        &self,
        event: &CustodyEvent,
        bytes: &[u8],
        signature: &[u8],
        terms: &Terms,
    ) -> Result<String, String> {
        let (_, site) = split_signer(&event.signer).map_err(|e| e.to_string())?;
        if event.event == Event::Dispatched && site != self.seal.site.name {
            return Err(format!("expected a signer of site '{}', found '{}'", self.seal.site.name, event.signer));
        }
        let by = verify(signature, bytes, Namespace::Custody).map_err(|e| e.to_string())?;
        if let Some(trust) = terms.trust {
            trust.check(&event.signer, &by.key, Namespace::Custody, terms.at).map_err(|e| e.to_string())?;
        }
        Ok(by.fingerprint)
    }
}
