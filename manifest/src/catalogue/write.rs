//! Writing the live manifest at the branch.
//!
//! A batch is committed only after the `fdatasync` that covers its records: no row without data. It is one transaction, so
//! rows, unreadable ranges and the pack's committed length and tree move together.

use super::read::{MAX_DETAIL_BYTES, MAX_ENDING_BYTES, MAX_SMALL_ROWS, check_json};
use super::rows::signed;
use super::{APPLICATION_ID, BlockRow, Catalogue, Generation, SCHEMA, SCHEMA_VERSION, UnreadableRange};
use crate::database;
use crate::documents::Document;
use crate::documents::seal::{Basis, Consistency, MAX_ENVELOPES, MAX_PACKS};
use crate::documents::shipment::{Shipment, Suite};
use crate::error::{FormatError, Result};
use crate::names::{check_name, check_text, plain_text};
use crate::pack::pack_file_name;
use crate::tree::Digest;
use jiff::Timestamp;
use rusqlite::{OpenFlags, OptionalExtension, params};
use std::collections::BTreeSet;
use std::path::Path;
use uuid::Uuid;

/// What a generation is when it begins.
#[derive(Debug, Clone)]
pub struct NewGeneration {
    /// The disk's number.
    pub disk: u32,
    /// 0 for the seed.
    pub number: u32,
    /// Size, bytes.
    pub bytes: u64,
    /// One point in time or not.
    pub consistency: Consistency,
    /// Why.
    pub basis: Basis,
    /// The snapshot's name for its point in time.
    pub point_in_time: Option<String>,
    /// Where it is read from.
    pub source: String,
}

/// How far a pack has come; committed with the rows that need it.
#[derive(Debug, Clone)]
pub struct PackProgress {
    /// The pack's number.
    pub pack: u32,
    /// Length that is on stable storage, bytes.
    pub bytes: u64,
    /// Records in it.
    pub records: u64,
    /// Saved [`crate::pack::PackDigest`], or the final digest.
    pub digest: PackState,
}

/// Whether a pack still grows.
#[derive(Debug, Clone)]
pub enum PackState {
    /// Saved tree.
    Open(Vec<u8>),
    /// BLAKE3 of the whole.
    Closed(Digest),
}

/// What one transaction adds.
#[derive(Debug, Default)]
pub struct Batch {
    /// Blocks, each with the id of its generation.
    pub rows: Vec<(i64, BlockRow)>,
    /// What the source could not give, each with the id of its generation.
    pub unreadable: Vec<(i64, UnreadableRange)>,
    /// Packs that grew or were closed.
    pub packs: Vec<PackProgress>,
    /// Bytes of a block, so that a block that is read again loses its old unreadable ranges.
    pub block_bytes: u32,
}

impl Catalogue {
    /// Creates the live manifest of a new shipment. The file must not exist.
    ///
    /// # Errors
    /// The file exists, or cannot be written.
    pub fn create(path: &Path, shipment: &Shipment) -> Result<Self> {
        shipment.validate()?;
        std::fs::File::create_new(path).map_err(|e| FormatError::io(path, e))?;
        let db = database::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(super::failing(path))?;
        let catalogue = Catalogue { db, path: path.to_owned() };
        catalogue.live_pragmas()?;
        let fill = || -> rusqlite::Result<()> {
            let tx = catalogue.db.unchecked_transaction()?;
            tx.execute_batch(SCHEMA)?;
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            let cipher = match shipment.suite {
                Suite::Plaintext => "none",
                Suite::Aes256GcmAge => "aes-256-gcm",
            };
            tx.execute(
                "INSERT INTO shipment VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    shipment.shipment.to_string(),
                    shipment.format,
                    shipment.block_bytes,
                    cipher,
                    shipment.label,
                    shipment.asset_tag,
                    shipment.created_at.to_string()
                ],
            )?;
            tx.execute(
                "INSERT INTO site VALUES (1, ?, ?)",
                params![shipment.site.uuid.to_string(), shipment.site.name],
            )?;
            for medium in &shipment.media {
                tx.execute(
                    "INSERT INTO medium VALUES (?, ?, ?)",
                    params![medium.number, medium.uuid.to_string(), medium.serial],
                )?;
            }
            tx.commit()
        };
        fill().map_err(|e| catalogue.sql(e))?;
        Ok(catalogue)
    }

    fn insert(&self, sql: &str, params: impl rusqlite::Params) -> Result<i64> {
        self.db.prepare_cached(sql).and_then(|mut s| s.insert(params)).map_err(|e| self.sql(e))
    }
    fn execute(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize> {
        self.db.prepare_cached(sql).and_then(|mut s| s.execute(params)).map_err(|e| self.sql(e))
    }

    /// Adds a machine; returns its number.
    ///
    /// # Errors
    /// The name breaks a rule or is taken, or the database cannot be written.
    pub fn add_machine(&self, uuid: Uuid, name: &str, inventory: &str) -> Result<u32> {
        check_name("Machine name", name)?;
        check_json("Inventory", inventory)?;
        let number = self.next_number("machine")?;
        self.insert("INSERT INTO machine VALUES (?, ?, ?, ?)", params![number, uuid.to_string(), name, inventory])?;
        Ok(number)
    }

    /// Adds a disk; returns its number.
    ///
    /// # Errors
    /// The name breaks a rule or is taken within the machine, or the database cannot be written.
    pub fn add_disk(&self, uuid: Uuid, machine: u32, name: &str, identity: &str, facts: &str) -> Result<u32> {
        check_name("Disk name", name)?;
        check_json("Identity", identity)?;
        check_json("Facts", facts)?;
        let number = self.next_number("disk")?;
        let sql = "INSERT INTO disk VALUES (?, ?, ?, ?, NULL, ?, ?)";
        self.insert(sql, params![number, uuid.to_string(), machine, name, identity, facts])?;
        Ok(number)
    }

    /// Says why a disk is not in the shipment, or (`None`) that it is.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set_excluded(&self, disk: u32, reason: Option<&str>) -> Result<()> {
        reason.map_or(Ok(()), |text| check_text("Reason", text, 500))?;
        self.execute("UPDATE disk SET excluded = ? WHERE number = ?", params![reason, disk]).map(drop)
    }

    /// Replaces what a disk is bound by, and its facts.
    ///
    /// # Errors
    /// Not JSON, or the database cannot be written.
    pub fn set_disk_facts(&self, disk: u32, identity: &str, facts: &str) -> Result<()> {
        check_json("Identity", identity)?;
        check_json("Facts", facts)?;
        self.execute("UPDATE disk SET identity = ?, facts = ? WHERE number = ?", params![identity, facts, disk])
            .map(drop)
    }

    /// Replaces what is known of a machine, once somebody has told it.
    ///
    /// # Errors
    /// No such machine, or no JSON.
    pub fn set_inventory(&self, machine: u32, inventory: &str) -> Result<()> {
        check_json("Inventory", inventory)?;
        let sql = "UPDATE machine SET inventory = ? WHERE number = ?";
        self.execute(sql, params![inventory, machine]).map(drop)
    }

    /// Gives a disk the UUID that it had before, found out when its source could be looked at. Nothing of it may be copied yet.
    ///
    /// # Errors
    /// Another disk has it.
    pub fn set_disk_uuid(&self, disk: u32, uuid: Uuid) -> Result<()> {
        let sql = "UPDATE disk SET uuid = ? WHERE number = ?";
        self.execute(sql, params![uuid.to_string(), disk]).map(drop)
    }

    /// Adds a writing process; returns its number. Commit this before its envelope is written: a number is never used twice.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add_process(&self, host: &str, tool: &str, at: Timestamp) -> Result<u32> {
        let number = self.next_number("process")?;
        if number as usize > MAX_ENVELOPES {
            // Found now, and not by the seal.
            let what = format!("at most {MAX_ENVELOPES} writing processes");
            return Err(FormatError::damaged(self.object(), what, format!("number {number}")));
        }
        let sql = "INSERT INTO process VALUES (?, NULL, ?, ?, ?, NULL, NULL)";
        self.insert(sql, params![number, host, tool, at.to_string()])?;
        Ok(number)
    }

    /// Records the BLAKE3 of a process's envelope: after both copies are durable, before the first record under its key. So a
    /// process without one wrote no record, and an envelope that is named can never be missing unnoticed.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set_envelope(&self, number: u32, envelope: &Digest) -> Result<()> {
        let sql = "UPDATE process SET envelope = ? WHERE number = ?";
        self.execute(sql, params![envelope.to_string(), number]).map(drop)
    }

    /// Records how a writing process ended.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn end_process(&self, number: u32, at: Timestamp, ending: &str) -> Result<()> {
        let ending = plain_text(ending, MAX_ENDING_BYTES);
        self.execute(
            "UPDATE process SET ended_at = ?, ending = ? WHERE number = ?",
            params![at.to_string(), ending, number],
        )
        .map(drop)
    }

    /// Begins a generation; returns it.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn begin_generation(&self, new: &NewGeneration, at: Timestamp) -> Result<Generation> {
        let id = self.next_number_of("generation", "id")?;
        let sql = "INSERT INTO generation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)";
        self.insert(
            sql,
            params![
                id,
                new.disk,
                new.number,
                signed(new.bytes),
                word(&new.consistency)?,
                word(&new.basis)?,
                new.point_in_time,
                new.source,
                at.to_string()
            ],
        )?;
        Ok(Generation {
            id: i64::from(id),
            disk: new.disk,
            number: new.number,
            bytes: new.bytes,
            consistency: new.consistency,
            basis: new.basis,
            point_in_time: new.point_in_time.clone(),
            source: new.source.clone(),
            started_at: at,
            finished_at: None,
            digest: None,
        })
    }

    /// Changes what is known of a generation's point in time and where it is read from.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set_point_in_time(
        &self,
        generation: i64,
        consistency: Consistency,
        basis: Basis,
        point_in_time: Option<&str>,
        source: &str,
    ) -> Result<()> {
        let sql = "UPDATE generation SET consistency = ?, basis = ?, point_in_time = ?, source = ?, finished_at = NULL, digest = NULL WHERE id = ?";
        self.execute(sql, params![word(&consistency)?, word(&basis)?, point_in_time, source, generation]).map(drop)
    }

    /// Marks a generation complete.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn finish_generation(&self, generation: i64, at: Timestamp, digest: &Digest) -> Result<()> {
        let sql = "UPDATE generation SET finished_at = ?, digest = ? WHERE id = ?";
        self.execute(sql, params![at.to_string(), digest.as_bytes(), generation]).map(drop)
    }

    /// Adds an empty pack on `medium`; returns its number.
    ///
    /// # Errors
    /// The database cannot be written, or there are as many packs as a seal may list.
    pub fn add_pack(&self, medium: u32) -> Result<u32> {
        let number = self.next_number("pack")?.max(self.last_given_up()? + 1);
        if number as usize > MAX_PACKS {
            return Err(FormatError::damaged(
                "Packs of a shipment",
                format!("at most {MAX_PACKS}"),
                number.to_string(),
            ));
        }
        let file = format!("packs/{}", pack_file_name(number));
        self.insert("INSERT INTO pack VALUES (?, ?, ?, 0, 0, NULL, NULL)", params![number, medium, file])?;
        Ok(number)
    }

    /// The highest number of a pack that was given up: none is used twice. What its event says begins with its file.
    fn last_given_up(&self) -> Result<u32> {
        let sql = "SELECT max(CAST(substr(detail, 7, 8) AS INTEGER)) FROM event \
                   WHERE kind = 'given-up' AND detail LIKE 'packs/________.pack:%'";
        let last: Option<u32> = self.db.query_row(sql, [], |row| row.get(0)).map_err(|e| self.sql(e))?;
        Ok(last.unwrap_or(0))
    }

    /// Records something that people should know.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add_event(
        &self,
        at: Timestamp,
        kind: &str,
        machine: Option<u32>,
        disk: Option<u32>,
        detail: &str,
    ) -> Result<()> {
        let sql = "INSERT INTO event (at, kind, machine, disk, detail) VALUES (?, ?, ?, ?, ?)";
        let detail = plain_text(detail, MAX_DETAIL_BYTES);
        self.insert(sql, params![at.to_string(), kind, machine, disk, detail]).map(drop)
    }

    /// Commits one batch durably. Call it only after the `fdatasync` that covers its records.
    ///
    /// # Errors
    /// The database cannot be written, or a disk has more unreadable ranges than a reader takes; then nothing of the batch is.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        let sql = self.failing();
        let tx = self.db.transaction().map_err(&sql)?;
        let write = || -> rusqlite::Result<()> {
            let mut block = tx.prepare_cached("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?;
            let mut readable =
                tx.prepare_cached("DELETE FROM unreadable WHERE generation = ? AND offset >= ? AND offset < ?")?;
            let has_unreadable: bool =
                tx.query_row("SELECT EXISTS (SELECT 1 FROM unreadable)", [], |row| row.get(0))?;
            for (generation, row) in &batch.rows {
                // Also of a block that is still unreadable: perhaps in other places by now.
                if has_unreadable {
                    let start = row.block.saturating_mul(u64::from(batch.block_bytes));
                    readable.execute(params![
                        generation,
                        signed(start),
                        signed(start.saturating_add(u64::from(batch.block_bytes)))
                    ])?;
                }
                let place = row.place;
                block.execute(params![
                    generation,
                    signed(row.block),
                    row.leaf.as_bytes(),
                    row.state.number(),
                    place.map(|p| p.pack),
                    place.map(|p| signed(p.offset)),
                    place.map(|p| p.stored_bytes),
                    place.map(|p| p.codec.number()),
                ])?;
            }
            let mut unreadable = tx.prepare_cached("INSERT OR REPLACE INTO unreadable VALUES (?, ?, ?)")?;
            for (generation, range) in &batch.unreadable {
                unreadable.execute(params![generation, signed(range.offset), signed(range.bytes)])?;
            }
            let mut pack =
                tx.prepare_cached("UPDATE pack SET bytes = ?, records = ?, tree = ?, blake3 = ? WHERE number = ?")?;
            for progress in &batch.packs {
                let (tree, blake3) = match &progress.digest {
                    PackState::Open(tree) => (Some(tree.as_slice()), None),
                    PackState::Closed(digest) => (None, Some(digest.as_bytes().as_slice())),
                };
                pack.execute(params![signed(progress.bytes), signed(progress.records), tree, blake3, progress.pack])?;
            }
            Ok(())
        };
        write().map_err(&sql)?;
        for generation in batch.unreadable.iter().map(|(generation, _)| *generation).collect::<BTreeSet<i64>>() {
            let count = "SELECT COUNT(*) FROM unreadable WHERE generation = ?";
            let ranges: i64 = tx.query_row(count, [generation], |row| row.get(0)).map_err(&sql)?;
            if ranges > MAX_SMALL_ROWS as i64 {
                // Nobody could read this manifest again. The transaction is rolled back as it is dropped.
                let most = format!("at most {MAX_SMALL_ROWS} unreadable ranges");
                return Err(FormatError::damaged("Disk in the manifest", most, ranges.to_string()));
            }
        }
        tx.commit().map_err(sql)
    }

    /// Removes a pack that holds nothing.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove_empty_pack(&self, pack: u32) -> Result<()> {
        self.execute("DELETE FROM pack WHERE number = ? AND records = 0", [pack]).map(drop)
    }

    /// Forgets a pack and every block in it, so that they are copied again; their generations are incomplete then. Returns how
    /// many blocks that are.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn forget_pack(&mut self, pack: u32) -> Result<u64> {
        let sql = self.failing();
        let tx = self.db.transaction().map_err(&sql)?;
        let write = || -> rusqlite::Result<u64> {
            let incomplete = "UPDATE generation SET finished_at = NULL, digest = NULL \
                              WHERE id IN (SELECT DISTINCT generation FROM block WHERE pack = ?)";
            tx.execute(incomplete, [pack])?;
            let blocks = tx.execute("DELETE FROM block WHERE pack = ?", [pack])?;
            tx.execute("DELETE FROM pack WHERE number = ?", [pack])?;
            Ok(blocks as u64)
        };
        let blocks = write().map_err(&sql)?;
        tx.commit().map_err(&sql)?;
        Ok(blocks)
    }

    /// Removes the rows of disks that are left out of the shipment, so that the sealed manifest holds what the seal says.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn forget_generation(&mut self, generation: i64) -> Result<()> {
        let sql = self.failing();
        let tx = self.db.transaction().map_err(&sql)?;
        let write = || -> rusqlite::Result<()> {
            tx.execute("DELETE FROM block WHERE generation = ?", [generation])?;
            tx.execute("DELETE FROM unreadable WHERE generation = ?", [generation])?;
            tx.execute("DELETE FROM generation WHERE id = ?", [generation]).map(drop)
        };
        write().and_then(|()| tx.commit()).map_err(sql)
    }

    /// Makes the file complete in itself and checks it: checkpoint, no write-ahead log, `integrity_check`. The file can then be
    /// hashed and copied; [`Self::open_live`] makes it live again.
    ///
    /// # Errors
    /// The database is damaged or cannot be written.
    pub fn finalise(self) -> Result<()> {
        let finish = || -> rusqlite::Result<String> {
            self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).map(drop)?;
            self.db.pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get::<_, String>(0)).map(drop)?;
            self.db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        };
        let verdict = finish().map_err(|e| self.sql(e))?;
        if verdict != "ok" {
            return Err(FormatError::damaged(self.object(), "a sound database", verdict));
        }
        Ok(())
    }

    fn next_number(&self, table: &str) -> Result<u32> {
        self.next_number_of(table, "number")
    }
    /// `table` and `column` are literals of this file.
    fn next_number_of(&self, table: &str, column: &str) -> Result<u32> {
        let last: Option<Option<i64>> = self
            .db
            .query_row(&format!("SELECT max({column}) FROM {table}"), [], |row| row.get(0))
            .optional()
            .map_err(|e| self.sql(e))?;
        let next = last.flatten().unwrap_or(0).checked_add(1).and_then(|n| u32::try_from(n).ok());
        next.ok_or_else(|| FormatError::damaged(self.object(), "fewer than 2^32 rows", format!("more in {table}")))
    }
}

fn word(value: &impl serde::Serialize) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        _ => Err(FormatError::damaged("Word for the manifest", "a string", "something else")),
    }
}
