//! What the data centre's ledger says of imports: the one place where report and erasure meet it.

use super::facts::{Checked, ImportRun, Imported, Proof, Readback};
use crate::error::Result;
use crate::ledger::Ledger;
use crate::ledger::centre::{FINISHED, ImportRow, Phase};
use crate::volume::readback::Mode;
use motiongear_manifest::documents::seal::SealedDisk;
use motiongear_manifest::tree::Digest;
use uuid::Uuid;

/// Most damaged blocks that a report names.
const MAX_DAMAGED: u32 = 1000;
/// Most runs of import that a report lists.
const MAX_RUNS: u32 = 1000;

/// The import of one disk of one seal; `records` is how many of its blocks lie in records.
///
/// # Errors
/// The ledger cannot be read.
pub fn imported(ledger: &Ledger, shipment: Uuid, seal: Digest, disk: Uuid, records: u64) -> Result<Option<Imported>> {
    let Some(row) = ledger.import(disk, shipment, seal)? else { return Ok(None) };
    let target = match ledger.volume(disk)? {
        Some(volume) => volume.named(),
        None => String::new(),
    };
    let damaged = ledger.damaged_count(row.id)?;
    let damaged_blocks = ledger.damaged(row.id, MAX_DAMAGED)?.iter().map(|damage| damage.block).collect();
    let written = row.written_at.is_some();
    // Of a check before the volume was made again nothing follows.
    let check = ledger.last_check(row.id)?.map(|check| Checked {
        checked_at: check.checked_at,
        good: row.digest.is_some_and(|proven| check.is_good(proven)),
        differing: check.differing,
        why: check.why,
        missing_point: check.missing_point,
        accepted_at: check.accepted_at,
        reason: check.reason,
    });
    Ok(Some(Imported {
        target,
        started_at: row.began_at,
        finished_at: row.finished_at,
        readback: match row.readback {
            Mode::Full => Readback::Full,
            Mode::Sample => Readback::Sample,
            Mode::None => Readback::None,
        },
        // Import never takes a record on trust: each is opened and its leaf compared before it is written.
        medium: Proof { read: if written { records } else { 0 }, trusted: 0 },
        volume: Proof { read: row.counts.re_read, trusted: row.counts.trusted },
        holes: row.counts.holes,
        through_cache: row.through_cache,
        digest: row.digest,
        damaged,
        damaged_blocks,
        head_released: row.phase >= Phase::Released,
        accepted_unreadable: row.accepted_unreadable,
        recovery_point: row.recovery_point,
        check,
    }))
}

/// Every time that somebody ran import of this seal here.
///
/// # Errors
/// The ledger cannot be read.
pub fn runs(ledger: &Ledger, shipment: Uuid, seal: Digest) -> Result<Vec<ImportRun>> {
    let runs = ledger.runs(shipment, seal, MAX_RUNS)?;
    Ok(runs
        .into_iter()
        .map(|run| ImportRun {
            target: run.target,
            tool: run.tool,
            engine: run.engine,
            started_at: run.began_at,
            ended_at: run.ended_at,
            interrupted: run.ended_at.is_none() || run.ending.as_deref() != Some(FINISHED),
            ending: run.ending,
        })
        .collect())
}

/// Why a disk of a seal is not proven in this ledger; `None` where it is: complete, all of it read again, nothing damaged, nothing
/// trusted, nothing answered by a cache, and the volume's own digest is the seal's.
///
/// # Errors
/// The ledger cannot be read.
pub fn unproven(ledger: &Ledger, shipment: Uuid, seal: Digest, disk: &SealedDisk) -> Result<Option<String>> {
    let Some(row) = ledger.import(disk.uuid, shipment, seal)? else {
        return Ok(Some("never imported here".to_owned()));
    };
    Ok(fault(&row, ledger.damaged_count(row.id)?, disk))
}

fn fault(row: &ImportRow, damaged: u64, disk: &SealedDisk) -> Option<String> {
    if damaged > 0 {
        return Some(format!("{damaged} blocks damaged"));
    }
    if row.phase != Phase::Done {
        return Some("import not finished".to_owned());
    }
    // A whole `verify --volumes` re-reads what was trusted.
    if row.counts.trusted > 0 {
        return Some(format!("read-back {}, {} blocks trusted", row.readback.word(), row.counts.trusted));
    }
    if row.through_cache {
        return Some(
            "read back through a cache of this host or of the volume's server, not from its medium".to_owned(),
        );
    }
    match row.digest {
        Some(digest) if digest == disk.digest => None,
        Some(digest) => Some(format!("expected digest {}, the volume has {digest}", disk.digest)),
        None => Some("the volume's digest was not computed".to_owned()),
    }
}
