//! Attachments of volumes that this ledger made in Block Storage: no other one is ever ended.

use super::Ledger;
use crate::error::Result;
use rusqlite::params;

impl Ledger {
    /// Remembers that an attachment of `volume` is about to be asked for: a run that is killed before it hears its id leaves one.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn ask_for_attachment(&self, volume: &str) -> Result<()> {
        self.centre(|tx| tx.execute("INSERT OR IGNORE INTO attachment VALUES (?, '')", [volume]).map(drop))
    }

    /// Remembers what became of that: its id, or `None` where the cloud refused.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn keep_attachment(&self, volume: &str, id: Option<&str>) -> Result<()> {
        self.centre(|tx| {
            tx.execute("DELETE FROM attachment WHERE volume = ? AND id = ''", [volume])?;
            match id {
                Some(id) => tx.execute("INSERT OR IGNORE INTO attachment VALUES (?, ?)", params![volume, id]).map(drop),
                None => Ok(()),
            }
        })
    }

    /// Ids of the attachments of `volume` that this ledger made; an empty one where an id was never heard.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn attachments(&self, volume: &str) -> Result<Vec<String>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<String>> {
            db.prepare_cached("SELECT id FROM attachment WHERE volume = ?")?
                .query_map([volume], |row| row.get(0))?
                .collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// Forgets an attachment that is ended.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn forget_attachment(&self, id: &str) -> Result<()> {
        self.centre(|tx| tx.execute("DELETE FROM attachment WHERE id = ?", [id]).map(drop))
    }
}
