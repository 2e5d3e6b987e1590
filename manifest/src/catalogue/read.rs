//! Reading: small tables whole and bounded, blocks in slices.

use super::rows::{RawBlock, narrow, unsigned};
use super::{
    BlockRow, BlockState, Catalogue, Disk, EventRow, Generation, Machine, MediumRow, Pack, Process, ShipmentRow,
    UnreadableRange,
};
use crate::documents::seal::{Basis, BlockCounts, Consistency, pack_number};
use crate::error::{FormatError, Result};
use crate::geometry::{Geometry, check_block_bytes};
use crate::names::{check_name, check_text};
use crate::spelling;
use crate::tree::{Digest, Leaf, Merger};
use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Params, Row};
use uuid::Uuid;

/// Most rows of any small table, and most bytes of text and blobs in them: room for 300 machines that each say 200 KiB of
/// themselves, and what a hostile manifest can make a reader hold.
pub const MAX_SMALL_ROWS: usize = 200_000;
/// See [`MAX_SMALL_ROWS`].
pub const MAX_SMALL_BYTES: usize = 64 << 20;
/// Longest detail of an event, bytes.
pub(super) const MAX_DETAIL_BYTES: usize = 16_000;
/// Longest word on how a process ended, bytes.
pub(super) const MAX_ENDING_BYTES: usize = 2000;
/// Largest inventory, identity or facts text, bytes.
pub(super) const MAX_JSON_BYTES: usize = 1 << 20;

impl Catalogue {
    /// Reads a small table, bounded before anything of it is kept; every row is validated by `read`.
    fn table<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl Fn(&Row) -> rusqlite::Result<Result<T>>,
    ) -> Result<Vec<T>> {
        let mut statement = self.db.prepare_cached(sql).map_err(|e| self.sql(e))?;
        let columns = statement.column_count();
        let mut rows = statement.query(params).map_err(|e| self.sql(e))?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next().map_err(|e| self.sql(e))? {
            for column in 0..columns {
                bytes += match row.get_ref(column).map_err(|e| self.sql(e))? {
                    ValueRef::Text(value) | ValueRef::Blob(value) => value.len(),
                    _ => 0,
                };
            }
            if found.len() == MAX_SMALL_ROWS || bytes > MAX_SMALL_BYTES {
                return Err(FormatError::damaged(
                    self.object(),
                    format!("at most {MAX_SMALL_ROWS} rows with {MAX_SMALL_BYTES} bytes of text"),
                    format!("more from '{sql}'"),
                ));
            }
            found.push(read(row).map_err(|e| self.sql(e))??);
        }
        Ok(found)
    }

    /// The one shipment and its site.
    ///
    /// # Errors
    /// No row, several, or one that breaks a rule.
    pub fn shipment(&self) -> Result<ShipmentRow> {
        let sql = "SELECT shipment.uuid, block_bytes, cipher, label, asset_tag, created_at, site.uuid, site.name, format, \
                   shipment.id, site.id FROM shipment, site";
        let mut rows = self.table(sql, [], |row| {
            let (uuid, block_bytes, cipher): (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (label, asset_tag, created): (String, String, String) = (row.get(3)?, row.get(4)?, row.get(5)?);
            let (site_uuid, site_name, format): (String, String, i64) = (row.get(6)?, row.get(7)?, row.get(8)?);
            let ids: (i64, i64) = (row.get(9)?, row.get(10)?);
            Ok((|| {
                if ids != (1, 1) {
                    let found = format!("{} and {}", ids.0, ids.1);
                    return Err(FormatError::damaged("Rows of shipment and site", "number 1", found));
                }
                if format != i64::from(crate::FORMAT) {
                    let (found, known) = (format!("format {format}"), format!("format {}", crate::FORMAT));
                    return Err(FormatError::unsupported("Shipment in the manifest", found, known));
                }
                check_name("Site name", &site_name)?;
                check_text("Label", &label, 200)?;
                check_text("Asset tag", &asset_tag, 100)?;
                let block_bytes = narrow("Block size", block_bytes)?;
                check_block_bytes(block_bytes)?;
                let encrypted = match cipher.as_str() {
                    "none" => false,
                    "aes-256-gcm" => true,
                    other => {
                        return Err(FormatError::unsupported("Cipher in the manifest", other, "none, aes-256-gcm"));
                    }
                };
                Ok(ShipmentRow {
                    uuid: uuid_of("Shipment", &uuid)?,
                    block_bytes,
                    encrypted,
                    label,
                    asset_tag,
                    created_at: time_of(&created)?,
                    site_uuid: uuid_of("Site", &site_uuid)?,
                    site_name,
                })
            })())
        })?;
        match (rows.len(), rows.pop()) {
            (1, Some(row)) => Ok(row),
            (count, _) => Err(FormatError::damaged(self.object(), "one row in shipment and site", count.to_string())),
        }
    }

    /// All media by number.
    ///
    /// # Errors
    /// A row that breaks a rule.
    pub fn media(&self) -> Result<Vec<MediumRow>> {
        self.table("SELECT number, uuid, serial FROM medium ORDER BY number", [], |row| {
            let (number, uuid, serial): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((|| {
                check_text("Medium serial", &serial, 500)?;
                Ok(MediumRow { number: narrow("Medium", number)?, uuid: uuid_of("Medium", &uuid)?, serial })
            })())
        })
    }

    /// All machines by number.
    ///
    /// # Errors
    /// A row that breaks a rule.
    pub fn machines(&self) -> Result<Vec<Machine>> {
        self.table("SELECT number, uuid, name, inventory FROM machine ORDER BY number", [], |row| {
            let (number, uuid, name, inventory): (i64, String, String, String) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok((|| {
                check_name("Machine name", &name)?;
                check_json("Inventory", &inventory)?;
                Ok(Machine { number: narrow("Machine", number)?, uuid: uuid_of("Machine", &uuid)?, name, inventory })
            })())
        })
    }

    /// All disks by number, excluded ones too.
    ///
    /// # Errors
    /// A row that breaks a rule.
    pub fn disks(&self) -> Result<Vec<Disk>> {
        self.table(
            "SELECT number, uuid, machine, name, excluded, identity, facts FROM disk ORDER BY number",
            [],
            |row| {
                let (number, uuid, machine, name): (i64, String, i64, String) =
                    (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
                let (excluded, identity, facts): (Option<String>, String, String) =
                    (row.get(4)?, row.get(5)?, row.get(6)?);
                Ok((|| {
                    check_name("Disk name", &name)?;
                    excluded.iter().try_for_each(|e| check_text("Reason", e, 500))?;
                    check_json("Identity", &identity)?;
                    check_json("Facts", &facts)?;
                    Ok(Disk {
                        number: narrow("Disk", number)?,
                        uuid: uuid_of("Disk", &uuid)?,
                        machine: narrow("Machine", machine)?,
                        name,
                        excluded,
                        identity,
                        facts,
                    })
                })())
            },
        )
    }

    /// All writing processes by number.
    ///
    /// # Errors
    /// A row that breaks a rule.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let sql = "SELECT number, envelope, host, tool, started_at, ended_at, ending FROM process ORDER BY number";
        self.table(sql, [], |row| {
            let (number, envelope, host, tool): (i64, Option<String>, String, String) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            let (started, ended, ending): (String, Option<String>, Option<String>) =
                (row.get(4)?, row.get(5)?, row.get(6)?);
            Ok((|| {
                let number = narrow("Process", number)?;
                let envelope = envelope.map(|text| text.parse()).transpose()?;
                check_text("Host", &host, 300)?;
                check_text("Tool", &tool, 100)?;
                ending.iter().try_for_each(|e| check_text("Ending", e, MAX_ENDING_BYTES))?;
                let ended_at = ended.as_deref().map(time_of).transpose()?;
                Ok(Process { number, envelope, host, tool, started_at: time_of(&started)?, ended_at, ending })
            })())
        })
    }

    /// All generations by disk and number.
    ///
    /// # Errors
    /// A row that breaks a rule.
    pub fn generations(&self) -> Result<Vec<Generation>> {
        let sql = "SELECT id, disk, number, bytes, consistency, basis, point_in_time, source, started_at, finished_at, digest \
                   FROM generation ORDER BY disk, number";
        self.table(sql, [], |row| {
            let (id, disk, number, bytes): (i64, i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            let (consistency, basis, point_in_time): (String, String, Option<String>) =
                (row.get(4)?, row.get(5)?, row.get(6)?);
            let (source, started, finished): (String, String, Option<String>) = (row.get(7)?, row.get(8)?, row.get(9)?);
            let digest: Option<Vec<u8>> = row.get(10)?;
            Ok((|| {
                let word = |text: &str| serde_json::Value::String(text.to_owned());
                let unknown = |text: &str| {
                    FormatError::damaged(
                        "Consistency in the manifest",
                        "a known word",
                        text.escape_default().to_string(),
                    )
                };
                let consistency: Consistency =
                    serde_json::from_value(word(&consistency)).map_err(|_| unknown(&consistency))?;
                let basis: Basis = serde_json::from_value(word(&basis)).map_err(|_| unknown(&basis))?;
                unsigned("Number of a generation", id)?;
                point_in_time.iter().try_for_each(|p| check_text("Point in time", p, 300))?;
                check_text("Source", &source, 4096)?;
                Ok(Generation {
                    id,
                    disk: narrow("Disk", disk)?,
                    number: narrow("Generation", number)?,
                    bytes: unsigned("Disk size", bytes)?,
                    consistency,
                    basis,
                    point_in_time,
                    source,
                    started_at: time_of(&started)?,
                    finished_at: finished.as_deref().map(time_of).transpose()?,
                    digest: digest.as_deref().map(Digest::from_slice).transpose()?,
                })
            })())
        })
    }

    /// All packs by number.
    ///
    /// # Errors
    /// A row that breaks a rule.
    pub fn packs(&self) -> Result<Vec<Pack>> {
        self.table("SELECT number, medium, file, bytes, records, blake3, tree FROM pack ORDER BY number", [], |row| {
            let (number, medium, file): (i64, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (bytes, records): (i64, i64) = (row.get(3)?, row.get(4)?);
            let (blake3, tree): (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(5)?, row.get(6)?);
            Ok((|| {
                let number = narrow("Pack", number)?;
                if pack_number(&file) != Some(number) {
                    return Err(FormatError::damaged(
                        format!("File of pack {number}"),
                        "packs/NNNNNNNN.pack",
                        file.escape_default().to_string(),
                    ));
                }
                let blake3 = blake3.as_deref().map(Digest::from_slice).transpose()?;
                let (bytes, records) = (unsigned("Pack size", bytes)?, unsigned("Records", records)?);
                Ok(Pack { number, medium: narrow("Medium", medium)?, file, bytes, records, blake3, tree })
            })())
        })
    }

    /// What happened, in order.
    ///
    /// # Errors
    /// A row that breaks a rule.
    pub fn events(&self) -> Result<Vec<EventRow>> {
        self.table("SELECT at, kind, machine, disk, detail, id FROM event ORDER BY id", [], |row| {
            let (at, kind, machine): (String, String, Option<i64>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (disk, detail, id): (Option<i64>, String, i64) = (row.get(3)?, row.get(4)?, row.get(5)?);
            Ok((|| {
                unsigned("Number of an event", id)?;
                check_text("Event", &kind, 100)?;
                check_text("Detail of an event", &detail, MAX_DETAIL_BYTES)?;
                let machine = machine.map(|n| narrow("Machine", n)).transpose()?;
                let disk = disk.map(|n| narrow("Disk", n)).transpose()?;
                Ok(EventRow { at: time_of(&at)?, kind, machine, disk, detail })
            })())
        })
    }

    /// What the source could not give, in order. Ranges lie within the disk, each behind the one before.
    ///
    /// # Errors
    /// A row that breaks a rule.
    pub fn unreadable(&self, generation: &Generation) -> Result<Vec<UnreadableRange>> {
        let ranges = self.table(
            "SELECT offset, bytes FROM unreadable WHERE generation = ? ORDER BY offset",
            [generation.id],
            |row| {
                let (offset, bytes): (i64, i64) = (row.get(0)?, row.get(1)?);
                Ok((|| {
                    let (offset, bytes) = (unsigned("Offset", offset)?, unsigned("Length", bytes)?);
                    if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > generation.bytes) {
                        return Err(FormatError::damaged(
                            "Unreadable range",
                            "a range within the disk",
                            format!("{bytes} bytes at {offset}"),
                        ));
                    }
                    Ok(UnreadableRange { offset, bytes })
                })())
            },
        )?;
        match ranges.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
            None => Ok(ranges),
            Some(pair) => Err(FormatError::damaged(
                "Unreadable range",
                format!("one that begins at {} or behind", pair[0].offset + pair[0].bytes),
                pair[1].offset.to_string(),
            )),
        }
    }

    /// Up to `limit` rows of `generation` from block `from` on, in order.
    ///
    /// # Errors
    /// A row that does not fit the geometry or itself.
    pub fn rows(
        &self,
        generation: &Generation,
        geometry: &Geometry,
        encrypted: bool,
        from: u64,
        limit: usize,
    ) -> Result<Vec<BlockRow>> {
        let sql = "SELECT block, leaf, state, pack, offset, stored, codec FROM block WHERE generation = ? AND block >= ? ORDER BY block LIMIT ?";
        let mut next = from;
        let (from, limit) = (super::rows::signed(from), super::rows::signed(limit as u64));
        let mut statement = self.db.prepare_cached(sql).map_err(|e| self.sql(e))?;
        let raw = statement.query_map([generation.id, from, limit], raw_block).map_err(|e| self.sql(e))?;
        // SQLite compares only where it begins; the pages of a hostile file may go on in any order, or in a circle.
        raw.map(|row| {
            let row = row.map_err(|e| self.sql(e))?.validate(geometry, encrypted)?;
            if row.block < next {
                return Err(FormatError::damaged(
                    format!("Manifest row of block {}", row.block),
                    format!("rows in order, block {next} or a later one"),
                    "this one",
                ));
            }
            next = row.block + 1;
            Ok(row)
        })
        .collect()
    }

    /// The row of the stored block of `generation` that is the next at or behind `from`, or with `backwards` the next at or
    /// before it.
    ///
    /// # Errors
    /// A row that does not fit the geometry or itself.
    pub fn stored_row(
        &self,
        generation: &Generation,
        geometry: &Geometry,
        encrypted: bool,
        from: u64,
        backwards: bool,
    ) -> Result<Option<BlockRow>> {
        let sql = match backwards {
            false => {
                "SELECT block, leaf, state, pack, offset, stored, codec FROM block WHERE generation = ? AND block >= ? AND state = ? ORDER BY block LIMIT 1"
            }
            true => {
                "SELECT block, leaf, state, pack, offset, stored, codec FROM block WHERE generation = ? AND block <= ? AND state = ? ORDER BY block DESC LIMIT 1"
            }
        };
        let mut statement = self.db.prepare_cached(sql).map_err(|e| self.sql(e))?;
        let stored = BlockState::Stored.number();
        let raw = statement
            .query_row([generation.id, super::rows::signed(from), stored], raw_block)
            .optional()
            .map_err(|e| self.sql(e))?;
        raw.map(|raw| raw.validate(geometry, encrypted)).transpose()
    }

    /// Walks all rows of `generation` in order.
    ///
    /// # Errors
    /// A bad row, or what `visit` returns.
    pub fn for_each_row<E: From<FormatError>>(
        &self,
        generation: &Generation,
        geometry: &Geometry,
        encrypted: bool,
        mut visit: impl FnMut(BlockRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut from = 0;
        loop {
            let rows = self.rows(generation, geometry, encrypted, from, 4096)?;
            let Some(last) = rows.last() else { return Ok(()) };
            from = last.block + 1;
            rows.into_iter().try_for_each(&mut visit)?;
        }
    }

    /// Counts by kind, and the digest that the leaves merge to (`None` for a disk of at most one block, whose digest stands
    /// apart). Complains about the first block without a row.
    ///
    /// # Errors
    /// A block is missing, or a row breaks a rule.
    pub fn summarise(
        &self,
        generation: &Generation,
        geometry: &Geometry,
        encrypted: bool,
    ) -> Result<(BlockCounts, Option<Digest>)> {
        self.summarise_rows(generation, geometry, encrypted, |_| Ok(()))
    }

    /// As [`Self::summarise`]; `visit` sees each row.
    ///
    /// # Errors
    /// A block is missing, a row breaks a rule, or what `visit` returns.
    pub fn summarise_rows(
        &self,
        generation: &Generation,
        geometry: &Geometry,
        encrypted: bool,
        mut visit: impl FnMut(&BlockRow) -> Result<()>,
    ) -> Result<(BlockCounts, Option<Digest>)> {
        let (mut counts, mut merger) = (BlockCounts::default(), Merger::new());
        let mut lost = self.unreadable(generation)?.into_iter().peekable();
        self.for_each_row(generation, geometry, encrypted, |row| {
            if row.block != merger.leaves() {
                return Err(FormatError::damaged(
                    format!("Manifest of disk {}", generation.disk),
                    format!("a row for block {}", merger.leaves()),
                    "none",
                ));
            }
            let (start, end) =
                (geometry.offset(row.block), geometry.offset(row.block) + u64::from(geometry.len(row.block)));
            while lost.next_if(|range| range.offset + range.bytes <= start).is_some() {}
            let unreadable = lost.peek().is_some_and(|range| range.offset < end);
            if unreadable != (row.state == BlockState::Unreadable) {
                return Err(FormatError::damaged(
                    format!("Manifest of disk {}, block {}", generation.disk, row.block),
                    if unreadable {
                        "state 2, as a part of it is unreadable"
                    } else {
                        "an unreadable range, as its state is 2"
                    },
                    if unreadable { "another state" } else { "none" },
                ));
            }
            visit(&row)?;
            merger.push(row.leaf);
            match row.state {
                BlockState::Zero => counts.zero += 1,
                BlockState::Stored => counts.stored += 1,
                BlockState::Unreadable => counts.unreadable += 1,
            }
            Ok(())
        })?;
        if merger.leaves() != geometry.blocks() {
            return Err(FormatError::damaged(
                format!("Manifest of disk {}", generation.disk),
                format!("{} blocks", geometry.blocks()),
                merger.leaves().to_string(),
            ));
        }
        Ok((counts, merger.finish()))
    }
}

fn raw_block(row: &Row) -> rusqlite::Result<RawBlock> {
    Ok(RawBlock {
        block: row.get(0)?,
        leaf: row.get_ref(1)?.as_blob().ok().and_then(|bytes| Leaf::from_slice(bytes).ok()),
        state: row.get(2)?,
        place: [row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?],
    })
}

fn uuid_of(object: &str, text: &str) -> Result<Uuid> {
    spelling::uuid(text).ok_or_else(|| {
        let object = format!("{object} in the manifest");
        FormatError::damaged(object, "a UUID in lower case with hyphens", spelling::shown(text))
    })
}

fn time_of(text: &str) -> Result<Timestamp> {
    spelling::time(text)
        .ok_or_else(|| FormatError::damaged("Time in the manifest", "RFC 3339 in UTC with Z", spelling::shown(text)))
}

pub(super) fn check_json(object: &str, text: &str) -> Result<()> {
    if text.len() > MAX_JSON_BYTES {
        return Err(FormatError::damaged(object, format!("at most {MAX_JSON_BYTES} bytes"), text.len().to_string()));
    }
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map(drop)
        .map_err(|e| FormatError::damaged(object, "JSON", e.to_string()))
}
