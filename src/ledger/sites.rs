//! Which name a site has and which site a shipment: what a ledger saw first holds for ever.

use super::Ledger;
use crate::error::{Error, Result};
use jiff::Timestamp;
use motiongear_manifest::documents::shipment::Site;
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

/// Shipments that this host prepared or seeded count as well as those that it opened.
const NAME: &str =
    "SELECT name FROM known_site WHERE uuid = ?1 UNION ALL SELECT site FROM shipment WHERE site_uuid = ?1";
const SITE: &str =
    "SELECT site FROM known_shipment WHERE uuid = ?1 UNION ALL SELECT site_uuid FROM shipment WHERE uuid = ?1";

impl Ledger {
    /// Refuses a shipment of another site than the one that it was first seen of, and a site under another name.
    ///
    /// # Errors
    /// Untrusted; the ledger cannot be read.
    pub fn compare_site(&self, shipment: Uuid, site: &Site) -> Result<()> {
        let first = |sql: &str, uuid: Uuid| -> Result<Option<String>> {
            let db = self.db();
            db.query_row(sql, [uuid.to_string()], |row| row.get(0)).optional().map_err(|e| self.sql(e))
        };
        let found = site.uuid.to_string();
        if let Some(known) = first(SITE, shipment)?.filter(|known| *known != found) {
            return Err(Error::untrusted(format!(
                "Shipment {shipment}: expected site {known}, as this ledger saw it first, found site {} {found}",
                site.name
            ))
            .next("the array was altered, or another site signed it: keep it, and ask both branches"));
        }
        match first(NAME, site.uuid)?.filter(|known| *known != site.name) {
            None => Ok(()),
            Some(known) => Err(Error::untrusted(format!(
                "Site {found}: expected the name {known}, as this ledger saw it first, found {}",
                site.name
            ))
            .next("another site uses this UUID: keep the array, and ask both branches")),
        }
    }

    /// Remembers both, unless they are known.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn keep_site(&self, shipment: Uuid, site: &Site, at: Timestamp) -> Result<()> {
        self.centre(|tx| {
            let (uuid, at) = (site.uuid.to_string(), at.to_string());
            tx.execute("INSERT OR IGNORE INTO known_site VALUES (?, ?, ?)", params![uuid, site.name, at])?;
            let sql = "INSERT OR IGNORE INTO known_shipment VALUES (?, ?, ?)";
            tx.execute(sql, params![shipment.to_string(), uuid, at]).map(drop)
        })
    }
}
