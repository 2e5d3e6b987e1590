//! Custody events: who had the array, when, under which box seals. A chain of signed documents.
//!
//! The array leaves and arrives in turn, so the number of an event says which of the two it is. What the data centre does with the
//! content is recorded there, and never in this chain: a chain of which each host knew other events would fork.

use super::Document;
use crate::error::{FormatError, Result};
use crate::names::check_text;
use crate::tree::Digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The folder of the chain, below `motiongear/`.
pub const CUSTODY: &str = "custody";
/// Largest event, bytes: all of its texts at their longest, each byte escaped, and room. A thousand of them are read before
/// anything else of a chain is known.
const MAX_EVENT_BYTES: u64 = 128 << 10;
/// Most events of a chain.
pub const MAX_EVENTS: u32 = 999;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// Left the branch.
    Dispatched,
    /// Arrived at the data centre.
    Received,
}

impl Event {
    /// The word in file names and documents.
    pub const fn word(self) -> &'static str {
        match self {
            Event::Dispatched => "dispatched",
            Event::Received => "received",
        }
    }
    /// What happens in a place of the chain, from 1.
    pub const fn of_number(number: u32) -> Event {
        if number % 2 == 1 { Event::Dispatched } else { Event::Received }
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
    const MAX_BYTES: u64 = MAX_EVENT_BYTES;
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
        check_place(self.number, self.previous.as_ref())?;
        let meant = Event::of_number(self.number);
        if self.event != meant {
            return Err(FormatError::damaged(
                "Custody event",
                format!("'{}' as number {}, dispatched and received in turn", meant.word(), self.number),
                format!("'{}'", self.event.word()),
            ));
        }
        Ok(())
    }
}

/// Refuses a number that no event of a chain can have, and a predecessor where there can be none, or none where there must be one.
///
/// # Errors
/// Says which.
pub fn check_place(number: u32, previous: Option<&Predecessor>) -> Result<()> {
    let refuse = |expected: String| FormatError::damaged("Custody event", expected, format!("number {number}"));
    if !(1..=MAX_EVENTS).contains(&number) {
        return Err(refuse(format!("a number from 1 to {MAX_EVENTS}")));
    }
    if (number == 1) != previous.is_none() {
        return Err(refuse("a predecessor for every event but number 1".to_owned()));
    }
    Ok(())
}

/// The name of an event's file in its folder.
pub fn event_name(number: u32, word: &str) -> String {
    format!("{number:04}-{word}.json")
}

/// The name of an event's file, relative to `motiongear/`.
pub fn event_file(number: u32, event: Event) -> String {
    format!("{CUSTODY}/{}", event_name(number, event.word()))
}
