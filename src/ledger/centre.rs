//! What the data centre remembers: seals that were accepted, volumes and whose they are, imports in progress, damaged blocks.

use super::Ledger;
use crate::copy::fetch::Damage;
use crate::error::{Error, IoContext, Result};
use crate::source::{Identity, SourceKind};
use crate::trust::Compared;
use crate::volume::landing::Commit;
use crate::volume::readback::{Counts, Mode};
use jiff::Timestamp;
use motiongear_manifest::documents::seal::Seal;
use motiongear_manifest::tree::Digest;
use rusqlite::{OptionalExtension, Row, Transaction, TransactionBehavior, params};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::File;
use uuid::Uuid;

/// A seal that was accepted here.
#[derive(Debug, Clone, Serialize)]
pub struct AcceptedSeal {
    /// BLAKE3 of `seal.json`.
    pub digest: Digest,
    /// The seal before it.
    pub supersedes: Option<Digest>,
    /// NAME@SITE.
    pub signer: String,
    /// Of the key that signed.
    pub fingerprint: String,
    /// By the sealing host's clock.
    pub sealed_at: Timestamp,
    /// When it was first accepted here.
    pub first_seen_at: Timestamp,
    /// By what it was known to be the one that left the branch; `None` where an older version accepted it.
    pub compared: Option<Compared>,
    /// `seal.json` as parsed and written again.
    #[serde(skip)]
    pub document: Vec<u8>,
}

/// How a seal stands to those that were accepted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// Of this shipment none was.
    First,
    /// It was the last.
    Same,
    /// It names the last as the one before it.
    Next {
        /// That one.
        before: Digest,
    },
    /// It is later than the last, and names one before it that was not seen here.
    Gap {
        /// The last that was.
        last: Digest,
    },
}

/// A volume and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeRow {
    /// The disk's UUID.
    pub disk: Uuid,
    /// The site's UUID.
    pub site: Uuid,
    /// For people.
    pub site_name: String,
    /// For people.
    pub machine: String,
    /// For people.
    pub disk_name: String,
    /// `dir`, `dev`, `nbd`, `rbd` or `cinder`.
    pub kind: String,
    /// The file or device, absolute; the export's URI; how people find it in the cloud.
    pub location: String,
    /// What it is bound by, as JSON.
    #[serde(skip)]
    pub identity: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// The project of OpenStack that it was made in, by its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The import that made it; for that one it is all zeros where nothing was written.
    pub fresh_for: Option<i64>,
    /// Since when it belongs to the disk.
    pub assigned_at: Timestamp,
}

impl VolumeRow {
    /// Kind and location, as in a target.
    pub fn named(&self) -> String {
        match self.location.starts_with(&format!("{}:", self.kind)) {
            true => self.location.clone(),
            false => format!("{}:{}", self.kind, self.location),
        }
    }

    /// Whether what was found at its place is the volume that the import filled.
    ///
    /// # Errors
    /// Another one.
    pub fn is_bound_to(&self, found: &Identity) -> Result<()> {
        let known: Option<Identity> = serde_json::from_str(&self.identity).ok().flatten();
        let known = known.map(|mut known| {
            // Mounted again where no birth time is kept (NFS, FUSE), a file has another device number: what lies in it is compared.
            if let (SourceKind::File, Some(before), Some(now)) = (known.kind, &known.file, &found.file)
                && before.same_at_path(now)
            {
                known.file = found.file.clone();
            }
            known
        });
        match known.map(|known| known.same_volume(found)) {
            Some(Err(why)) => Err(Error::failed(format!("Volume {}: {why}", self.location))
                .next("another volume took its place: bring the right one back")),
            _ => Ok(()),
        }
    }
}

/// How far an import has come; each phase resumes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The volume is assigned, nothing is written.
    Planned,
    /// Head and tail are withheld, blocks are being written.
    Writing,
    /// All that could be proven is written and flushed.
    Written,
    /// Being read back.
    Reading,
    /// Read back.
    Proven,
    /// Blocks are damaged; head and tail stay withheld.
    Damaged,
    /// The source had unreadable blocks; head and tail stay withheld until that is accepted.
    Unreadable,
    /// Head and tail are being written.
    Releasing,
    /// Head and tail are written, all is proven; its recovery point is to be taken.
    Released,
    /// Complete.
    Done,
}

impl Phase {
    const ALL: [(Phase, &'static str); 10] = [
        (Phase::Planned, "planned"),
        (Phase::Writing, "writing"),
        (Phase::Written, "written"),
        (Phase::Reading, "reading"),
        (Phase::Proven, "proven"),
        (Phase::Damaged, "damaged"),
        (Phase::Unreadable, "unreadable"),
        (Phase::Releasing, "releasing"),
        (Phase::Released, "released"),
        (Phase::Done, "done"),
    ];
    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(phase, _)| *phase == self).map_or("planned", |(_, word)| word)
    }
    fn of_word(word: &str) -> Option<Phase> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(phase, _)| *phase)
    }
}

/// One disk of one seal on its way into its volume.
#[derive(Debug, Clone, Serialize)]
pub struct ImportRow {
    /// Its number in this ledger.
    pub id: i64,
    /// The disk's UUID.
    pub disk: Uuid,
    /// The shipment.
    pub shipment: Uuid,
    /// Which seal of it.
    pub seal: Digest,
    /// Generation of the disk.
    pub generation: u32,
    /// Size of the disk, bytes.
    pub bytes: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// How far it has come.
    pub phase: Phase,
    /// Blocks below are written (or damaged) and flushed.
    pub mark: u64,
    /// How much is read back.
    pub readback: Mode,
    /// Blocks below are read back.
    pub readback_mark: u64,
    /// What read-back found.
    pub counts: Counts,
    /// Read-back was answered by a cache, not by the medium.
    pub through_cache: bool,
    /// Of the volume, once it is released.
    pub digest: Option<Digest>,
    /// The head was released though the source had unreadable blocks.
    pub accepted_unreadable: bool,
    /// First write.
    pub began_at: Timestamp,
    /// All written.
    pub written_at: Option<Timestamp>,
    /// Released.
    pub finished_at: Option<Timestamp>,
    /// How the cloud calls the snapshot of what was proven.
    pub recovery_point: Option<String>,
}

impl ImportRow {
    /// Phase and marks: the same later, if nothing was reached in between.
    pub fn reached(&self) -> (Phase, u64, u64) {
        (self.phase, self.mark, self.readback_mark)
    }
}

/// How an import was run.
#[derive(Debug, Clone)]
pub struct Run {
    /// As typed.
    pub target: String,
    /// `io_uring` or `threads`.
    pub engine: &'static str,
    /// At which time the signer's validity was judged, where it was set.
    pub verify_time: Option<Timestamp>,
    /// Start.
    pub began_at: Timestamp,
}

/// A run of import, as the ledger remembers it.
#[derive(Debug, Clone)]
pub struct PastRun {
    /// As typed.
    pub target: String,
    /// `io_uring` or `threads`.
    pub engine: String,
    /// Program and version.
    pub tool: String,
    /// Start.
    pub began_at: Timestamp,
    /// End; none where it was killed or lost power.
    pub ended_at: Option<Timestamp>,
    /// `finished`, or the error that ended it.
    pub ending: Option<String>,
}

/// The ending of a run that came to its end.
pub const FINISHED: &str = "finished";

/// Why a block is not on its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its record was not proven; it was never written.
    Record,
    /// Written, but the volume gave other bytes back.
    ReadBack,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Stage::Record => "record",
            Stage::ReadBack => "readback",
        }
    }
}

pub(super) fn bad(what: &str) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnName(format!("a malformed {what}"))
}
pub(super) fn text<T: std::str::FromStr>(row: &Row, at: &str) -> rusqlite::Result<T> {
    row.get::<_, String>(at)?.parse().map_err(|_| bad(at))
}
pub(super) fn time(row: &Row, at: &str) -> rusqlite::Result<Option<Timestamp>> {
    row.get::<_, Option<String>>(at)?.map(|text| text.parse().map_err(|_| bad(at))).transpose()
}
pub(super) fn number(row: &Row, at: &str) -> rusqlite::Result<u64> {
    u64::try_from(row.get::<_, i64>(at)?).map_err(|_| bad(at))
}
fn narrow(row: &Row, at: &str) -> rusqlite::Result<u32> {
    u32::try_from(row.get::<_, i64>(at)?).map_err(|_| bad(at))
}
pub(super) fn digest(row: &Row, at: &str) -> rusqlite::Result<Option<Digest>> {
    row.get::<_, Option<Vec<u8>>>(at)?.map(|bytes| Digest::from_slice(&bytes).map_err(|_| bad(at))).transpose()
}
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seal_of(row: &Row) -> rusqlite::Result<AcceptedSeal> {
    Ok(AcceptedSeal {
        digest: digest(row, "digest")?.ok_or_else(|| bad("digest"))?,
        supersedes: digest(row, "supersedes")?,
        signer: row.get("signer")?,
        fingerprint: row.get("fingerprint")?,
        sealed_at: text(row, "sealed_at")?,
        first_seen_at: text(row, "first_seen_at")?,
        compared: row.get::<_, Option<String>>("compared")?.as_deref().and_then(Compared::of_word),
        document: row.get("document")?,
    })
}

fn volume_of(row: &Row) -> rusqlite::Result<VolumeRow> {
    Ok(VolumeRow {
        disk: text(row, "disk")?,
        site: text(row, "site")?,
        site_name: row.get("site_name")?,
        machine: row.get("machine")?,
        disk_name: row.get("disk_name")?,
        kind: row.get("kind")?,
        location: row.get("location")?,
        identity: row.get("identity")?,
        bytes: number(row, "bytes")?,
        project: row.get("project")?,
        fresh_for: row.get("fresh_for")?,
        assigned_at: text(row, "assigned_at")?,
    })
}

fn import_of(row: &Row) -> rusqlite::Result<ImportRow> {
    Ok(ImportRow {
        id: row.get("id")?,
        disk: text(row, "disk")?,
        shipment: text(row, "shipment")?,
        seal: digest(row, "seal")?.ok_or_else(|| bad("seal"))?,
        generation: narrow(row, "generation")?,
        bytes: number(row, "bytes")?,
        block_bytes: narrow(row, "block_bytes")?,
        phase: Phase::of_word(&row.get::<_, String>("phase")?).ok_or_else(|| bad("phase"))?,
        mark: number(row, "mark")?,
        readback: Mode::parse(&row.get::<_, String>("readback")?).map_err(|_| bad("readback"))?,
        readback_mark: number(row, "readback_mark")?,
        counts: Counts {
            re_read: number(row, "re_read")?,
            holes: number(row, "holes")?,
            trusted: number(row, "trusted")?,
        },
        through_cache: row.get("through_cache")?,
        digest: digest(row, "digest")?,
        accepted_unreadable: row.get("accepted_unreadable")?,
        began_at: text(row, "began_at")?,
        written_at: time(row, "written_at")?,
        finished_at: time(row, "finished_at")?,
        recovery_point: row.get("recovery_point")?,
    })
}

fn damage_of(row: &Row) -> rusqlite::Result<Damage> {
    let file_offset: Option<i64> = row.get("file_offset")?;
    Ok(Damage {
        block: number(row, "block")?,
        offset: number(row, "offset")?,
        bytes: narrow(row, "bytes")?,
        file: row.get("file")?,
        file_offset: file_offset.map(u64::try_from).transpose().map_err(|_| bad("file_offset"))?,
        why: row.get("why")?,
        untrusted: false,
    })
}

impl Ledger {
    pub(super) fn centre<T>(&self, write: impl FnOnce(&Transaction) -> rusqlite::Result<T>) -> Result<T> {
        let db = self.db();
        let run = || {
            let tx = Transaction::new_unchecked(&db, TransactionBehavior::Immediate)?;
            let value = write(&tx)?;
            tx.commit()?;
            Ok(value)
        };
        run().map_err(|e| self.sql(e))
    }

    /// The seals of a shipment that were accepted here, oldest first.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn accepted_seals(&self, shipment: Uuid) -> Result<Vec<AcceptedSeal>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<AcceptedSeal>> {
            db.prepare_cached("SELECT * FROM known_seal WHERE shipment = ? ORDER BY first_seen_at, rowid")?
                .query_map([shipment.to_string()], seal_of)?
                .collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// The shipments of which a seal was accepted here.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn accepted_shipments(&self) -> Result<Vec<Uuid>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<Uuid>> {
            let sql = "SELECT shipment AS shipment FROM known_seal GROUP BY shipment ORDER BY min(first_seen_at)";
            db.prepare_cached(sql)?.query_map([], |row| text(row, "shipment"))?.collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// Refuses a seal that an accepted one has superseded, and one that contradicts an accepted one: one shipment UUID, one
    /// seal digest, but for seals that name the one before them. Says how it stands to what was accepted.
    ///
    /// # Errors
    /// Untrusted, or the ledger cannot be read.
    pub fn compare_seal(&self, digest: Digest, seal: &Seal) -> Result<Succession> {
        let shipment = seal.shipment;
        let known = self.accepted_seals(shipment)?;
        let Some(last) = known.last() else { return Ok(Succession::First) };
        if last.digest == digest {
            return Ok(Succession::Same);
        }
        let code = motiongear_manifest::code::spoken_code;
        let refuse = |why: String| {
            Err(Error::untrusted(format!(
                "Shipment {shipment}: expected the seal {} that this ledger accepted last, found {}, {why}",
                code(&last.digest),
                code(&digest)
            ))
            .next("ask the branch which seal left the house, and take that array; nothing was written"))
        };
        if known.iter().any(|seen| seen.digest == digest || seen.supersedes == Some(digest)) {
            return refuse("which that one superseded".into());
        }
        match seal.supersedes {
            Some(before) if before == last.digest => Ok(Succession::Next { before }),
            // Sealed several times in between: each names its predecessor only. Whoever may sign can claim as much.
            Some(_) if seal.sealed_at > last.sealed_at => Ok(Succession::Gap { last: last.digest }),
            _ => refuse("which does not supersede it".into()),
        }
    }

    /// Remembers an accepted seal; of one that is known, by what it was compared since.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn keep_seal(&self, shipment: Uuid, seal: &AcceptedSeal) -> Result<()> {
        self.centre(|tx| {
            // A seal that was compared once stays so: it is the same, byte for byte.
            let sql = "INSERT INTO known_seal (shipment, digest, supersedes, signer, fingerprint, sealed_at, document, first_seen_at, compared) \
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (shipment, digest) DO UPDATE SET compared = ?9 \
                       WHERE ?9 != 'uncompared' AND compared IS NOT 'code' OR compared IS NULL";
            let (digest, before) = (seal.digest.as_bytes(), seal.supersedes.map(|d| *d.as_bytes()));
            let (sealed, seen) = (seal.sealed_at.to_string(), seal.first_seen_at.to_string());
            let (uuid, compared) = (shipment.to_string(), seal.compared.map(Compared::word));
            let AcceptedSeal { signer, fingerprint, document, .. } = seal;
            tx.execute(sql, params![uuid, digest, before, signer, fingerprint, sealed, document, seen, compared])
                .map(drop)
        })
    }

    /// The volume of a disk.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn volume(&self, disk: Uuid) -> Result<Option<VolumeRow>> {
        let db = self.db();
        let row = db.query_row("SELECT * FROM volume WHERE disk = ?", [disk.to_string()], volume_of);
        row.optional().map_err(|e| self.sql(e))
    }

    /// Whose volume lies at a place.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn volume_at(&self, location: &str) -> Result<Option<VolumeRow>> {
        let db = self.db();
        let row = db.query_row("SELECT * FROM volume WHERE location = ?", [location], volume_of);
        row.optional().map_err(|e| self.sql(e))
    }

    /// All volumes, by machine and disk.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn volumes(&self) -> Result<Vec<VolumeRow>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<VolumeRow>> {
            let sql = "SELECT * FROM volume ORDER BY site_name, machine, disk_name, disk";
            db.prepare_cached(sql)?.query_map([], volume_of)?.collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// Assigns a volume to a disk and begins an import into it, in one step. `fresh`: this import makes the volume.
    ///
    /// # Errors
    /// The place belongs to another disk, or the ledger cannot be written.
    pub fn begin_import(&self, volume: &VolumeRow, import: &ImportRow, fresh: bool) -> Result<ImportRow> {
        let id = self.centre(|tx| {
            let sql = "INSERT INTO volume (disk, site, site_name, machine, disk_name, kind, location, identity, bytes, assigned_at, project) \
                       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (disk) DO UPDATE SET \
                       kind = excluded.kind, location = excluded.location, identity = excluded.identity, bytes = excluded.bytes, \
                       project = excluded.project, fresh_for = NULL";
            tx.execute(
                sql,
                params![
                    volume.disk.to_string(),
                    volume.site.to_string(),
                    volume.site_name,
                    volume.machine,
                    volume.disk_name,
                    volume.kind,
                    volume.location,
                    volume.identity,
                    signed(volume.bytes),
                    volume.assigned_at.to_string(),
                    volume.project
                ],
            )?;
            let gone = "SELECT id FROM import WHERE disk = ? AND shipment = ? AND seal = ?";
            let (disk, shipment) = (import.disk.to_string(), import.shipment.to_string());
            let old: Option<i64> =
                tx.query_row(gone, params![disk, shipment, import.seal.as_bytes()], |row| row.get(0)).optional()?;
            if let Some(old) = old {
                tx.execute("DELETE FROM import_damage WHERE import = ?", [old])?;
                tx.execute("DELETE FROM import WHERE id = ?", [old])?;
            }
            let sql = "INSERT INTO import (disk, shipment, seal, generation, bytes, block_bytes, phase, mark, readback, readback_mark, \
                       re_read, holes, trusted, through_cache, digest, accepted_unreadable, began_at) \
                       VALUES (?, ?, ?, ?, ?, ?, 'planned', 0, ?, 0, 0, 0, 0, 0, NULL, 0, ?)";
            tx.execute(
                sql,
                params![
                    disk,
                    shipment,
                    import.seal.as_bytes(),
                    import.generation,
                    signed(import.bytes),
                    import.block_bytes,
                    import.readback.word(),
                    import.began_at.to_string()
                ],
            )?;
            let id = tx.last_insert_rowid();
            if fresh {
                tx.execute("UPDATE volume SET fresh_for = ? WHERE disk = ?", params![id, disk])?;
            }
            Ok(id)
        })?;
        self.import_by_id(id)?.ok_or_else(|| Error::failed("Ledger: an import was lost as it was written"))
    }

    fn import_by_id(&self, id: i64) -> Result<Option<ImportRow>> {
        let db = self.db();
        db.query_row("SELECT * FROM import WHERE id = ?", [id], import_of).optional().map_err(|e| self.sql(e))
    }

    /// The import of a disk under one seal.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn import(&self, disk: Uuid, shipment: Uuid, seal: Digest) -> Result<Option<ImportRow>> {
        let db = self.db();
        let sql = "SELECT * FROM import WHERE disk = ? AND shipment = ? AND seal = ?";
        let row = db.query_row(sql, params![disk.to_string(), shipment.to_string(), seal.as_bytes()], import_of);
        row.optional().map_err(|e| self.sql(e))
    }

    /// All imports of a shipment under one seal.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn imports(&self, shipment: Uuid, seal: Digest) -> Result<Vec<ImportRow>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<ImportRow>> {
            let sql = "SELECT * FROM import WHERE shipment = ? AND seal = ? ORDER BY id";
            db.prepare_cached(sql)?.query_map(params![shipment.to_string(), seal.as_bytes()], import_of)?.collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// The import that a disk's volume saw last, of whatever shipment.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn last_import(&self, disk: Uuid) -> Result<Option<ImportRow>> {
        let db = self.db();
        let sql = "SELECT * FROM import WHERE disk = ? ORDER BY id DESC LIMIT 1";
        db.query_row(sql, [disk.to_string()], import_of).optional().map_err(|e| self.sql(e))
    }

    /// Keeps others on this host from importing a disk, or reading its volume, as long as what is returned lives.
    ///
    /// # Errors
    /// Somebody does; `name` is the disk's, for people.
    pub fn lock_volume(&self, disk: Uuid, name: &str) -> Result<File> {
        self.lock(disk, name, FlockOperation::NonBlockingLockExclusive)
    }

    /// Keeps others on this host from importing a disk; they may read its volume, too.
    ///
    /// # Errors
    /// An import runs; `name` is the disk's, for people.
    pub fn share_volume(&self, disk: Uuid, name: &str) -> Result<File> {
        self.lock(disk, name, FlockOperation::NonBlockingLockShared)
    }

    fn lock(&self, disk: Uuid, name: &str, how: FlockOperation) -> Result<File> {
        let path = self.state().join("volumes").join(format!("{disk}.lock"));
        let what = || format!("Lock {}", path.display());
        let file = File::options().write(true).create(true).truncate(false).open(&path).context(what)?;
        match rustix::fs::flock(&file, how) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Error::failed(format!("Disk {name}: expected no other import of it, found one running"))
                    .next("an import, a check or a drill of it: 'motiongear status' and 'motiongear drill show' tell; wait for its end, or end it"))
            }
            Err(errno) => Err(errno).context(what),
        }
    }

    /// All imports of a disk, oldest first.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn imports_into(&self, disk: Uuid) -> Result<Vec<ImportRow>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<ImportRow>> {
            let sql = "SELECT * FROM import WHERE disk = ? ORDER BY id";
            db.prepare_cached(sql)?.query_map([disk.to_string()], import_of)?.collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// How many imports a disk's volume has seen.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn imports_of(&self, disk: Uuid) -> Result<u64> {
        let db = self.db();
        let sql = "SELECT count(*) AS n FROM import WHERE disk = ?";
        db.query_row(sql, [disk.to_string()], |row| number(row, "n")).map_err(|e| self.sql(e))
    }

    /// Forgets the volume of a disk and all imports into it.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn forget_volume(&self, disk: Uuid) -> Result<()> {
        self.centre(|tx| {
            let disk = disk.to_string();
            tx.execute("DELETE FROM import_damage WHERE import IN (SELECT id FROM import WHERE disk = ?)", [&disk])?;
            tx.execute("DELETE FROM import WHERE disk = ?", [&disk])?;
            tx.execute("DELETE FROM volume WHERE disk = ?", [&disk]).map(drop)
        })
    }

    /// Writes how far an import has come: phase, marks, counts, digest.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn update_import(&self, import: &ImportRow) -> Result<()> {
        self.update_import_with(import, &[])
    }

    /// As [`Self::update_import`], and adds blocks that read-back found to differ, in one step.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn update_import_with(&self, import: &ImportRow, differing: &[Damage]) -> Result<()> {
        self.centre(|tx| {
            for damage in differing {
                put_damage(tx, import.id, Stage::ReadBack, damage)?;
            }
            let sql = "UPDATE import SET phase = ?, mark = ?, readback = ?, readback_mark = ?, re_read = ?, holes = ?, trusted = ?, \
                       through_cache = ?, digest = ?, accepted_unreadable = ?, written_at = ?, finished_at = ?, recovery_point = ? WHERE id = ?";
            let counts = import.counts;
            tx.execute(
                sql,
                params![
                    import.phase.word(),
                    signed(import.mark),
                    import.readback.word(),
                    signed(import.readback_mark),
                    signed(counts.re_read),
                    signed(counts.holes),
                    signed(counts.trusted),
                    import.through_cache,
                    import.digest.map(|d| *d.as_bytes()),
                    import.accepted_unreadable,
                    import.written_at.map(|t| t.to_string()),
                    import.finished_at.map(|t| t.to_string()),
                    import.recovery_point,
                    import.id
                ],
            )
            .map(drop)
        })
    }

    /// Commits what has landed, for several imports at once. Single blocks that landed wait for their read-back.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn commit_landed(&self, commits: &[(i64, &Commit)]) -> Result<()> {
        self.centre(|tx| {
            for (id, commit) in commits {
                tx.prepare_cached("UPDATE import SET mark = ? WHERE id = ?")?
                    .execute(params![signed(commit.mark), id])?;
                for damage in &commit.damaged {
                    put_damage(tx, *id, Stage::Record, damage)?;
                }
                let sql = "UPDATE import_damage SET stage = 'rewritten' WHERE import = ? AND block = ?";
                for block in &commit.landed {
                    tx.prepare_cached(sql)?.execute(params![id, signed(*block)])?;
                }
            }
            Ok(())
        })
    }

    /// Writes what a volume is bound by once it is there, and its size.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn set_volume(&self, disk: Uuid, identity: &str, bytes: u64) -> Result<()> {
        self.centre(|tx| {
            let sql = "UPDATE volume SET identity = ?, bytes = ? WHERE disk = ?";
            tx.execute(sql, params![identity, signed(bytes), disk.to_string()]).map(drop)
        })
    }

    /// Adds blocks that could not be proven.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn put_damage(&self, import: i64, damaged: &[Damage]) -> Result<()> {
        self.centre(|tx| damaged.iter().try_for_each(|damage| put_damage(tx, import, Stage::Record, damage)))
    }

    /// Forgets damage at and behind a block: it is about to be read again.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn forget_damage_from(&self, import: i64, block: u64) -> Result<()> {
        self.centre(|tx| {
            let sql = "DELETE FROM import_damage WHERE import = ? AND block >= ?";
            tx.execute(sql, params![import, signed(block)]).map(drop)
        })
    }

    /// Indices of the blocks of an import that wait for their read-back (`rewritten`) or are damaged (otherwise), ascending.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn damaged_blocks(&self, import: i64, rewritten: bool) -> Result<Vec<u64>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<u64>> {
            let sql = "SELECT block FROM import_damage WHERE import = ? AND (stage = 'rewritten') = ? ORDER BY block";
            db.prepare_cached(sql)?.query_map(params![import, rewritten], |row| number(row, "block"))?.collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// Damaged blocks of an import, rewritten ones left out, ascending, at most `limit`.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn damaged(&self, import: i64, limit: u32) -> Result<Vec<Damage>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<Damage>> {
            let sql = "SELECT * FROM import_damage WHERE import = ? AND stage != 'rewritten' ORDER BY block LIMIT ?";
            db.prepare_cached(sql)?.query_map(params![import, limit], damage_of)?.collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// Indices of all blocks of an import that are not (yet) proven to be on the volume, rewritten ones included.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn unproven_blocks(&self, import: i64) -> Result<Vec<u64>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<u64>> {
            let sql = "SELECT block FROM import_damage WHERE import = ? ORDER BY block";
            db.prepare_cached(sql)?.query_map([import], |row| number(row, "block"))?.collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// How many blocks of an import are damaged, rewritten ones left out.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn damaged_count(&self, import: i64) -> Result<u64> {
        let db = self.db();
        let sql = "SELECT count(*) AS n FROM import_damage WHERE import = ? AND stage != 'rewritten'";
        db.query_row(sql, [import], |row| number(row, "n")).map_err(|e| self.sql(e))
    }

    /// Forgets that blocks were damaged: they are read back and right.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn repaired(&self, import: i64, blocks: &[u64]) -> Result<()> {
        self.centre(|tx| {
            let sql = "DELETE FROM import_damage WHERE import = ? AND block = ?";
            for block in blocks {
                tx.prepare_cached(sql)?.execute(params![import, signed(*block)])?;
            }
            Ok(())
        })
    }

    /// Remembers that somebody began to run an import; returns the run's number.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn begin_run(&self, shipment: Uuid, seal: Digest, run: &Run) -> Result<i64> {
        self.centre(|tx| {
            let sql = "INSERT INTO import_run (shipment, seal, target, tool, engine, verify_time, began_at) \
                       VALUES (?, ?, ?, ?, ?, ?, ?)";
            let (tool, judged) = (crate::context::tool(), run.verify_time.map(|t| t.to_string()));
            let (shipment, at) = (shipment.to_string(), run.began_at.to_string());
            tx.execute(sql, params![shipment, seal.as_bytes(), run.target, tool, run.engine, judged, at])?;
            Ok(tx.last_insert_rowid())
        })
    }

    /// Remembers how a run ended.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn end_run(&self, run: i64, at: Timestamp, ending: &str) -> Result<()> {
        self.centre(|tx| {
            let sql = "UPDATE import_run SET ended_at = ?, ending = ? WHERE id = ?";
            tx.execute(sql, params![at.to_string(), ending, run]).map(drop)
        })
    }

    /// The runs of import of one seal, oldest first; the oldest `limit` of them.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn runs(&self, shipment: Uuid, seal: Digest, limit: u32) -> Result<Vec<PastRun>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<_>> {
            let sql = "SELECT * FROM import_run WHERE shipment = ? AND seal = ? ORDER BY id LIMIT ?";
            db.prepare_cached(sql)?
                .query_map(params![shipment.to_string(), seal.as_bytes(), limit], |row| {
                    Ok(PastRun {
                        target: row.get("target")?,
                        engine: row.get("engine")?,
                        tool: row.get("tool")?,
                        began_at: text(row, "began_at")?,
                        ended_at: time(row, "ended_at")?,
                        ending: row.get("ending")?,
                    })
                })?
                .collect()
        };
        read().map_err(|e| self.sql(e))
    }
}

fn put_damage(tx: &Transaction, import: i64, stage: Stage, damage: &Damage) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO import_damage VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    let why: String = damage.why.chars().take(1000).collect();
    tx.prepare_cached(sql)?
        .execute(params![
            import,
            signed(damage.block),
            signed(damage.offset),
            damage.bytes,
            stage.word(),
            damage.file,
            damage.file_offset.map(signed),
            why
        ])
        .map(drop)
}
