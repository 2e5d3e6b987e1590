//! Custody events: who had the array, when, under which box seals. A chain of signed documents.

use super::Document;
use crate::error::{FormatError, Result};
use crate::names::check_text;
use crate::tree::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// Left the branch. On the array.
    Dispatched,
    /// Arrived at the data centre. On the array.
    Received,
    /// Written into volumes. In the data centre's ledger.
    Imported,
    /// Content destroyed. In the data centre's ledger.
    Erased,
}

impl Event {
    /// The word in file names and documents.
    pub fn word(self) -> &'static str {
        match self {
            Event::Dispatched => "dispatched",
            Event::Received => "received",
            Event::Imported => "imported",
            Event::Erased => "erased",
        }
    }
}

/// The event before this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predecessor {
    /// BLAKE3 of its document.
    pub event: Digest,
    /// BLAKE3 of its signature file.
    pub signature: Digest,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustodyEvent {
    /// Format version.
    pub format: u32,
    /// The shipment.
    pub shipment: Uuid,
    /// BLAKE3 of `seal.json`.
    pub seal: Digest,
    /// Place in the chain, from 1.
    pub number: u32,
    /// What happened.
    pub event: Event,
    /// By the signing host's clock.
    pub at: Timestamp,
    /// NAME@SITE.
    pub signer: String,
    /// Who handed over or took over; may be empty.
    pub person: String,
    /// Numbers on the box's seals.
    pub box_seals: Vec<String>,
    /// Where; may be empty.
    pub place: String,
    /// Anything else; may be empty.
    pub note: String,
    /// `None` for the first event only.
    pub previous: Option<Predecessor>,
}

impl Document for CustodyEvent {
    const OBJECT: &'static str = "Custody event";
    fn format(&self) -> u32 {
        self.format
    }
    fn validate(&self) -> Result<()> {
        check_text("Signer", &self.signer, 300)?;
        check_text("Person", &self.person, 300)?;
        check_text("Place", &self.place, 300)?;
        check_text("Note", &self.note, 2000)?;
        if self.box_seals.len() > 100 {
            return Err(FormatError::damaged("Box seals", "at most 100", self.box_seals.len().to_string()));
        }
        self.box_seals.iter().try_for_each(|s| check_text("Box seal", s, 100))?;
        if self.number == 0 || (self.number == 1) != self.previous.is_none() {
            return Err(FormatError::damaged(
                "Custody event",
                "a predecessor for every event but number 1",
                format!("number {}", self.number),
            ));
        }
        Ok(())
    }
}

/// The name of an event's file, relative to `motiongear/`.
pub fn event_file(number: u32, event: Event) -> String {
    format!("custody/{number:04}-{}.json", event.word())
}
