//! What whole reads of imported volumes found: one row a read, and the blocks that differed.

use super::Ledger;
use super::centre::{bad, digest, number, signed, text, time};
use crate::error::Result;
use jiff::Timestamp;
use motiongear_manifest::tree::Digest;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

/// Ranges of differing blocks that are kept of one read; a volume with more is not worth mending block by block.
pub const MAX_RANGES: usize = 1 << 16;

/// One whole read of the volume of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCheck {
    /// Its number in this ledger; 0 before it is kept.
    #[serde(skip)]
    pub id: i64,
    /// Of which import.
    #[serde(skip)]
    pub import: i64,
    /// When the read ended.
    pub checked_at: Timestamp,
    /// Of what was read; none where a block could not be read.
    pub digest: Option<Digest>,
    /// Blocks that are holes by the word of the file system or server.
    pub holes: u64,
    /// Reads may have been answered by a cache.
    pub through_cache: bool,
    /// Blocks that differ or cannot be read.
    pub differing: u64,
    /// Why the volume could not be read at all.
    pub why: Option<String>,
    /// The recovery point that was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_point: Option<String>,
    /// When the difference was accepted.
    pub accepted_at: Option<Timestamp>,
    /// Why it was accepted.
    pub reason: Option<String>,
}

impl VolumeCheck {
    /// Whether the volume held what was `proven`.
    pub fn is_good(&self, proven: Digest) -> bool {
        self.digest == Some(proven)
    }

    /// Whether it found a difference, or no volume that can be read, and nobody accepted that.
    pub fn is_open(&self, proven: Digest) -> bool {
        !self.is_good(proven) && self.accepted_at.is_none()
    }
}

fn check_of(row: &Row) -> rusqlite::Result<VolumeCheck> {
    Ok(VolumeCheck {
        id: row.get("id")?,
        import: row.get("import")?,
        checked_at: text(row, "checked_at")?,
        digest: digest(row, "digest")?,
        holes: number(row, "holes")?,
        through_cache: row.get("through_cache")?,
        differing: number(row, "differing")?,
        why: row.get("why")?,
        missing_point: row.get("missing_point")?,
        accepted_at: time(row, "accepted_at")?,
        reason: row.get("reason")?,
    })
}

impl Ledger {
    /// Keeps what a whole read found. `ranges` (first block, blocks) says which blocks differ; of more than [`MAX_RANGES`] none is
    /// kept. A good read counts as the read-back of its import: what was trusted is re-read now. The very difference that was
    /// accepted before stays accepted.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn keep_check(&self, check: &VolumeCheck, proven: Digest, blocks: u64, ranges: &[(u64, u64)]) -> Result<()> {
        let before = self.last_check(check.import)?;
        let same = before.filter(|before| check.digest.is_some() && before.digest == check.digest);
        let (accepted_at, reason) = same.map_or((None, None), |before| (before.accepted_at, before.reason));
        self.centre(|tx| {
            let sql = "INSERT INTO volume_check (import, checked_at, digest, holes, through_cache, differing, why, missing_point, accepted_at, reason) \
                       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
            tx.execute(
                sql,
                params![
                    check.import,
                    check.checked_at.to_string(),
                    check.digest.map(|digest| *digest.as_bytes()),
                    signed(check.holes),
                    check.through_cache,
                    signed(check.differing),
                    check.why,
                    check.missing_point,
                    accepted_at.map(|at| at.to_string()),
                    reason
                ],
            )?;
            let id = tx.last_insert_rowid();
            let mut put = tx.prepare_cached("INSERT INTO volume_difference VALUES (?, ?, ?)")?;
            for (first, count) in ranges.iter().filter(|_| ranges.len() <= MAX_RANGES) {
                put.execute(params![id, signed(*first), signed(*count)])?;
            }
            if check.is_good(proven) {
                // What this read took from a cache proves no more than a read-back through one.
                let sql = "UPDATE import SET re_read = ?, holes = ?, trusted = 0, through_cache = ? \
                           WHERE id = ? AND (trusted > 0 OR through_cache > 0)";
                tx.execute(sql, params![signed(blocks), signed(check.holes), check.through_cache, check.import])?;
            }
            Ok(())
        })
    }

    /// The last whole read of the volume of an import since that was completed.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn last_check(&self, import: i64) -> Result<Option<VolumeCheck>> {
        let db = self.db();
        let sql = "SELECT * FROM volume_check WHERE import = ? AND mended_at IS NULL ORDER BY id DESC LIMIT 1";
        db.query_row(sql, [import], check_of).optional().map_err(|e| self.sql(e))
    }

    /// The blocks that a read found differing, in ranges; none where there were more than [`MAX_RANGES`].
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn differences(&self, check: &VolumeCheck) -> Result<Option<Vec<(u64, u64)>>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<(u64, u64)>> {
            let sql = "SELECT first, blocks FROM volume_difference WHERE volume_check = ? ORDER BY first";
            db.prepare_cached(sql)?
                .query_map([check.id], |row| Ok((number(row, "first")?, number(row, "blocks")?)))?
                .collect()
        };
        let ranges = read().map_err(|e| self.sql(e))?;
        let known: u64 = ranges.iter().map(|(_, blocks)| blocks).sum();
        Ok((known == check.differing).then_some(ranges))
    }

    /// An import is complete, and all of it was read back: what earlier reads found is history.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn mended(&self, import: i64, at: Timestamp) -> Result<()> {
        self.centre(|tx| {
            let sql = "UPDATE volume_check SET mended_at = ? WHERE import = ? AND mended_at IS NULL";
            tx.execute(sql, params![at.to_string(), import]).map(drop)
        })
    }

    /// Accepts what a read found.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn accept_check(&self, check: &VolumeCheck, at: Timestamp, reason: &str) -> Result<()> {
        self.centre(|tx| {
            let sql = "UPDATE volume_check SET accepted_at = ?, reason = ? WHERE id = ?";
            match tx.execute(sql, params![at.to_string(), reason, check.id])? {
                1 => Ok(()),
                _ => Err(bad("volume_check")),
            }
        })
    }
}
