//! What machines are to be in their clouds, as the last plan of an import said.

use super::Ledger;
use crate::context::now;
use crate::error::Result;
use crate::openstack::server::ServerPlan;
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

impl Ledger {
    /// Keeps what a plan says of a machine, in place of what an earlier one said; forgets that where it says nothing.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn keep_server(&self, site: Uuid, machine: &str, server: &ServerPlan) -> Result<()> {
        if server.is_empty() {
            let sql = "DELETE FROM server WHERE site = ? AND machine = ?";
            return self.centre(|tx| tx.execute(sql, params![site.to_string(), machine]).map(drop));
        }
        let (at, wanted) = (now()?.to_string(), serde_json::to_string(server).unwrap_or_default());
        let sql = "INSERT INTO server (site, machine, wanted, given_at) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT DO UPDATE SET wanted = ?3, given_at = ?4 WHERE wanted <> ?3";
        self.centre(|tx| tx.execute(sql, params![site.to_string(), machine, wanted, at]).map(drop))
    }

    /// What a plan said of a machine.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn server(&self, site: Uuid, machine: &str) -> Result<Option<ServerPlan>> {
        let db = self.db();
        let sql = "SELECT wanted FROM server WHERE site = ? AND machine = ?";
        let found: Option<String> = db
            .query_row(sql, params![site.to_string(), machine], |row| row.get(0))
            .optional()
            .map_err(|error| self.sql(error))?;
        Ok(found.and_then(|wanted| serde_json::from_str(&wanted).ok()))
    }
}
