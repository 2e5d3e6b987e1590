//! Rules of a sealed manifest that no row can keep alone: rows that name each other, and what a live manifest may still lack.

use super::{Catalogue, Generation};
use crate::error::{FormatError, Result};
use rusqlite::OptionalExtension;
use std::collections::BTreeSet;

impl Catalogue {
    /// Reads every table but `block` and `unreadable`, whose rows are read by generation, and refuses what no seal covers: a row
    /// that names none, a generation that is not finished, a pack that is still open, blocks and ranges of no generation. The media,
    /// which the caller compares with `shipment.json`, are no part of it.
    ///
    /// # Errors
    /// The first row that breaks a rule.
    pub fn check_sealed(&self) -> Result<()> {
        let refuse = |object: String, expected: &str, found: String| Err(FormatError::damaged(object, expected, found));
        let machines: BTreeSet<u32> = self.machines()?.iter().map(|machine| machine.number).collect();
        let mut disks = BTreeSet::new();
        for disk in self.disks()? {
            if !machines.contains(&disk.machine) {
                let found = format!("machine {}", disk.machine);
                return refuse(format!("Manifest row of disk {}", disk.number), "a machine that has a row", found);
            }
            disks.insert(disk.number);
        }
        let media: BTreeSet<u32> = self.media()?.iter().map(|medium| medium.number).collect();
        for pack in self.packs()? {
            let object = || format!("Manifest row of pack {}", pack.number);
            if !media.contains(&pack.medium) {
                return refuse(object(), "a medium that has a row", format!("medium {}", pack.medium));
            }
            if pack.tree.is_some() || pack.blake3.is_none() {
                return refuse(object(), "a digest and no tree, as it is sealed", "an open pack".to_owned());
            }
        }
        let generations = self.generations()?;
        for generation in &generations {
            let object = || format!("Manifest row of disk {}, generation {}", generation.disk, generation.number);
            if !disks.contains(&generation.disk) {
                return refuse(object(), "a disk that has a row", "none".to_owned());
            }
            if generation.finished_at.is_none() || generation.digest.is_none() {
                return refuse(object(), "the time at which it was finished, and its digest", "none".to_owned());
            }
        }
        self.events()?;
        self.check_owners("block", &generations)?;
        self.check_owners("unreadable", &generations)
    }

    /// Refuses rows of no generation. One look for each generation: the key begins with it.
    fn check_owners(&self, table: &'static str, generations: &[Generation]) -> Result<()> {
        let known: BTreeSet<i64> = generations.iter().map(|generation| generation.id).collect();
        let sql = format!("SELECT generation FROM {table} WHERE generation > ? ORDER BY generation LIMIT 1");
        let mut statement = self.db.prepare(&sql).map_err(|e| self.sql(e))?;
        let first = format!("SELECT generation FROM {table} ORDER BY generation LIMIT 1");
        let mut next: Option<i64> =
            self.db.query_row(&first, [], |row| row.get(0)).optional().map_err(|e| self.sql(e))?;
        while let Some(owner) = next {
            if !known.contains(&owner) {
                let expected = "rows of generations that have a row";
                return Err(FormatError::damaged(format!("Manifest, table {table}"), expected, owner.to_string()));
            }
            next = statement.query_row([owner], |row| row.get(0)).optional().map_err(|e| self.sql(e))?;
            if next.is_some_and(|next| next <= owner) {
                // The pages of a hostile file may go in a circle.
                return Err(FormatError::damaged(format!("Manifest, table {table}"), "rows in order", "others"));
            }
        }
        Ok(())
    }
}
