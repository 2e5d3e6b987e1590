//! The custody chain on the array.

use super::chain::{ChainEvent, Head, Link, Subject, read_chain};
use super::findings::Findings;
use super::trust::{Opened, Terms};
use crate::documents::custody::{CUSTODY, CustodyEvent, Event};

/// One event on an array.
pub type CheckedEvent = Link<CustodyEvent>;

impl ChainEvent for CustodyEvent {
    const WORDS: &'static [&'static str] = &[Event::Dispatched.word(), Event::Received.word()];
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
    /// Who receives need not be, but must be allowed like everyone.
    fn is_of_site(&self) -> bool {
        self.event == Event::Dispatched
    }
    fn is_countersigned(&self) -> bool {
        self.event == Event::Received
    }
}

impl Opened {
    /// Reads the whole chain, and what is to be said of it.
    pub fn custody(&self, terms: &Terms) -> (Vec<CheckedEvent>, Findings) {
        let subject =
            Subject { shipment: self.seal.shipment, seal: Some(self.seal_digest), site: &self.seal.site.name };
        read_chain(&self.root, CUSTODY, &subject, terms)
    }

    /// As [`Opened::custody`], among the findings of the whole array.
    pub fn check_custody(&mut self, terms: &Terms) -> Vec<CheckedEvent> {
        let (chain, findings) = self.custody(terms);
        self.findings.append(findings);
        chain
    }
}
