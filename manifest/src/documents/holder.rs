//! `holder.json`: which host's ledger holds an unsealed shipment.

use super::Document;
use crate::error::Result;
use crate::names::check_text;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The document. It is a note for people and a guard against accidents, not a proof: the ledger decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// Format version.
    pub format: u32,
    /// The shipment.
    pub shipment: Uuid,
    /// UUID of the ledger that holds the live manifest.
    pub ledger: Uuid,
    /// Name of the host.
    pub host: String,
    /// Since when.
    pub since: Timestamp,
}

impl Document for Holder {
    const OBJECT: &'static str = "holder.json";
    fn format(&self) -> u32 {
        self.format
    }
    fn validate(&self) -> Result<()> {
        check_text("Host in holder.json", &self.host, 300)
    }
}
