//! What the branch remembers: shipments it seeds, their seals, verifications, snapshots, scans.

use super::Ledger;
use crate::error::{Error, Result};
use crate::io::write_file_durably;
use crate::lang::Lang;
use crate::say;
use crate::source::Stillness;
use crate::source::tracking::Noted;
use jiff::Timestamp;
use motiongear_manifest::documents::shipment::Shipment;
use motiongear_manifest::tree::Digest;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// How far a shipment has come at the branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShipmentState {
    /// Disks are being copied.
    Seeding,
    /// Sealed, still here.
    Sealed,
    /// On the road, or further.
    Dispatched,
    /// Its unsealed manifest went to another host's ledger.
    Moved,
}

impl ShipmentState {
    /// For people.
    pub fn words(self, lang: Lang) -> String {
        match self {
            ShipmentState::Seeding => say!(lang, "being seeded", "复制中"),
            ShipmentState::Sealed => say!(lang, "sealed", "已封签"),
            ShipmentState::Dispatched => say!(lang, "dispatched", "已发运"),
            ShipmentState::Moved => say!(lang, "moved to another host", "已移交其他主机"),
        }
    }
}

/// A shipment as the branch's ledger knows it.
#[derive(Debug, Clone, Serialize)]
pub struct BranchShipment {
    /// Identity.
    pub uuid: Uuid,
    /// The site's identity.
    pub site_uuid: Uuid,
    /// The site's name.
    pub site: String,
    /// For people.
    pub label: String,
    /// On the sticker.
    pub asset_tag: String,
    /// BLAKE3 of `shipment.json` when it was first seen; recipients that change afterwards are refused.
    pub document: Digest,
    /// Where the array was mounted last.
    pub array: String,
    /// How far it has come.
    pub state: ShipmentState,
    /// When the first seed began.
    pub began_at: Timestamp,
}

/// A seal that was made or seen here.
#[derive(Debug, Clone, Serialize)]
pub struct KnownSeal {
    /// BLAKE3 of `seal.json`.
    pub digest: Digest,
    /// NAME@SITE.
    pub signer: String,
    /// By the sealing host's clock.
    pub sealed_at: Timestamp,
    /// The seal before it.
    pub supersedes: Option<Digest>,
}

/// A check of the medium.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// When it ended.
    pub at: Timestamp,
    /// Nothing was wrong.
    pub good: bool,
    /// Contents were decrypted and compared, too.
    pub with_identity: bool,
    /// Packs that are damaged or missing, with their sealed digests.
    pub damaged_packs: BTreeMap<String, Digest>,
}

/// How changes of a disk are noted where it runs, since its seed or last scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// By what is told what changed since.
    #[serde(rename = "bitmap")]
    pub noted: Noted,
    /// The block at which the next audit begins.
    pub audit_next: u64,
}

fn bad(object: &str) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnName(object.to_owned())
}
fn text<T: std::str::FromStr>(row: &Row, at: usize) -> rusqlite::Result<T> {
    row.get::<_, String>(at)?.parse().map_err(|_| bad("a malformed value"))
}
fn digest(row: &Row, at: usize) -> rusqlite::Result<Digest> {
    Digest::from_slice(&row.get::<_, Vec<u8>>(at)?).map_err(|_| bad("a malformed digest"))
}

fn audit_file(disk: Uuid, shipment: Uuid) -> String {
    format!("{disk}-{shipment}.audit")
}

fn tracking_file(disk: Uuid, shipment: Uuid) -> String {
    format!("{disk}-{shipment}.tracking")
}

impl Ledger {
    /// Remembers a shipment whose first seed begins here.
    ///
    /// # Errors
    /// It is known already, or the ledger cannot be written.
    pub fn begin_shipment(&self, shipment: &Shipment, document: Digest, array: &str, at: Timestamp) -> Result<()> {
        let sql = "INSERT INTO shipment VALUES (?, ?, ?, ?, ?, ?, ?, 'seeding', ?)";
        let values = params![
            shipment.shipment.to_string(),
            shipment.site.uuid.to_string(),
            shipment.site.name,
            shipment.label,
            shipment.asset_tag,
            document.as_bytes(),
            array,
            at.to_string()
        ];
        self.db().execute(sql, values).map(drop).map_err(|e| self.sql(e))
    }

    /// Moves a shipment on.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn set_shipment_state(&self, shipment: Uuid, state: ShipmentState) -> Result<()> {
        let word = serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        self.db()
            .execute("UPDATE shipment SET state = ? WHERE uuid = ?", params![word, shipment.to_string()])
            .map(drop)
            .map_err(|e| self.sql(e))
    }

    /// Remembers where the array is mounted.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn set_shipment_array(&self, shipment: Uuid, array: &str) -> Result<()> {
        self.db()
            .execute("UPDATE shipment SET array = ? WHERE uuid = ?", params![array, shipment.to_string()])
            .map(drop)
            .map_err(|e| self.sql(e))
    }

    /// All shipments seeded here, oldest first.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn shipments(&self) -> Result<Vec<BranchShipment>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<BranchShipment>> {
            db.prepare("SELECT uuid, site_uuid, site, label, asset_tag, document, array, state, began_at FROM shipment ORDER BY began_at")?
                .query_map([], |row| {
                    let state = serde_json::from_value(serde_json::Value::String(row.get(7)?)).map_err(|_| bad("state"))?;
                    Ok(BranchShipment {
                        uuid: text(row, 0)?,
                        site_uuid: text(row, 1)?,
                        site: row.get(2)?,
                        label: row.get(3)?,
                        asset_tag: row.get(4)?,
                        document: digest(row, 5)?,
                        array: row.get(6)?,
                        state,
                        began_at: text(row, 8)?,
                    })
                })?
                .collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// The digests of `shipment.json` of all shipments prepared or seeded here.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn documents(&self) -> Result<Vec<Digest>> {
        let mut known: Vec<Digest> = self.shipments()?.into_iter().map(|shipment| shipment.document).collect();
        let db = self.db();
        let mut read = || -> rusqlite::Result<()> {
            let mut prepared = db.prepare("SELECT document FROM prepared")?;
            let rows = prepared.query_map([], |row| digest(row, 0))?;
            rows.into_iter().try_for_each(|row| row.map(|document| known.push(document)))
        };
        read().map_err(|e| self.sql(e))?;
        Ok(known)
    }

    /// Remembers the digest of the `shipment.json` with which this host prepares an array.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn keep_prepared(&self, shipment: Uuid, document: Digest) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO prepared VALUES (?, ?)";
        self.db().execute(sql, params![shipment.to_string(), document.as_bytes()]).map(drop).map_err(|e| self.sql(e))
    }

    /// The digest of the `shipment.json` with which this host prepared the array of this shipment.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn prepared(&self, shipment: Uuid) -> Result<Option<Digest>> {
        let sql = "SELECT document FROM prepared WHERE shipment = ?";
        let found = self.db().query_row(sql, [shipment.to_string()], |row| digest(row, 0)).optional();
        found.map_err(|e| self.sql(e))
    }

    /// One shipment seeded here.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn shipment(&self, uuid: Uuid) -> Result<Option<BranchShipment>> {
        Ok(self.shipments()?.into_iter().find(|s| s.uuid == uuid))
    }

    /// Remembers a seal made here and moves the shipment to `sealed`.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn record_seal(&self, shipment: Uuid, seal: &KnownSeal) -> Result<()> {
        let mut db = self.db();
        let mut write = || -> rusqlite::Result<()> {
            let tx = db.transaction()?;
            tx.execute(
                "INSERT OR REPLACE INTO seal VALUES (?, ?, ?, ?, ?)",
                params![
                    shipment.to_string(),
                    seal.digest.as_bytes(),
                    seal.signer,
                    seal.sealed_at.to_string(),
                    seal.supersedes.as_ref().map(|d| d.as_bytes())
                ],
            )?;
            tx.execute("UPDATE shipment SET state = 'sealed' WHERE uuid = ?", [shipment.to_string()])?;
            tx.commit()
        };
        write().map_err(|e| self.sql(e))
    }

    /// The seals of a shipment made here, in the order they were made; the last one counts.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn seals(&self, shipment: Uuid) -> Result<Vec<KnownSeal>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<KnownSeal>> {
            db.prepare("SELECT digest, signer, sealed_at, supersedes FROM seal WHERE shipment = ? ORDER BY rowid")?
                .query_map([shipment.to_string()], |row| {
                    let before: Option<Vec<u8>> = row.get(3)?;
                    let supersedes =
                        before.map(|b| Digest::from_slice(&b)).transpose().map_err(|_| bad("supersedes"))?;
                    Ok(KnownSeal { digest: digest(row, 0)?, signer: row.get(1)?, sealed_at: text(row, 2)?, supersedes })
                })?
                .collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// Remembers that a seal is about to be written to the array: after a crash it may lie there, and is nobody else's.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn announce_seal(&self, shipment: Uuid, digest: Digest) -> Result<()> {
        self.note_seal(shipment, digest, "announced")
    }

    /// Takes a seal that this ledger made and has forgotten, from the array. The live manifest here is older than it.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn adopt_seal(&self, shipment: Uuid, seal: &KnownSeal) -> Result<()> {
        self.note_seal(shipment, seal.digest, "adopted")?;
        self.record_seal(shipment, seal)
    }

    fn note_seal(&self, shipment: Uuid, digest: Digest, kind: &str) -> Result<()> {
        let sql = "INSERT OR IGNORE INTO seal_note VALUES (?, ?, ?)";
        let values = params![shipment.to_string(), digest.as_bytes(), kind];
        self.db().execute(sql, values).map(drop).map_err(|e| self.sql(e))
    }

    /// Whether this seal was taken from the array: what it pins is not what the live manifest here says.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn is_adopted(&self, shipment: Uuid, seal: Digest) -> Result<bool> {
        let sql = "SELECT count(*) FROM seal_note WHERE shipment = ? AND digest = ? AND kind = 'adopted'";
        let values = params![shipment.to_string(), seal.as_bytes()];
        let count: i64 = self.db().query_row(sql, values, |row| row.get(0)).map_err(|e| self.sql(e))?;
        Ok(count > 0)
    }

    /// Digests of all seals that this ledger may have put on the shipment's array.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn possible_seals(&self, shipment: Uuid) -> Result<Vec<Digest>> {
        let db = self.db();
        let sql = "SELECT digest FROM seal WHERE shipment = ?1 UNION SELECT digest FROM seal_note WHERE shipment = ?1";
        let read = || -> rusqlite::Result<Vec<Digest>> {
            db.prepare(sql)?.query_map([shipment.to_string()], |row| digest(row, 0))?.collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// Remembers a check of the medium against the seal `seal`.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn record_verification(&self, shipment: Uuid, seal: Digest, verification: &Verification) -> Result<()> {
        let sql = "INSERT INTO verification (shipment, seal, at, good, with_identity, damaged_packs) VALUES (?, ?, ?, ?, ?, ?)";
        let Verification { at, good, with_identity, damaged_packs } = verification;
        let packs = serde_json::to_string(damaged_packs).map_err(|e| Error::failed("Ledger: a check").because(e))?;
        self.db()
            .execute(sql, params![shipment.to_string(), seal.as_bytes(), at.to_string(), good, with_identity, packs])
            .map(drop)
            .map_err(|e| self.sql(e))
    }

    /// Every check of the medium against this seal, oldest first.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn verifications(&self, shipment: Uuid, seal: Digest) -> Result<Vec<Verification>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<Verification>> {
            db.prepare("SELECT at, good, with_identity, damaged_packs FROM verification WHERE shipment = ? AND seal = ? ORDER BY id")?
                .query_map(params![shipment.to_string(), seal.as_bytes()], |row| {
                    let packs: String = row.get(3)?;
                    Ok(Verification {
                        at: text(row, 0)?,
                        good: row.get(1)?,
                        with_identity: row.get(2)?,
                        damaged_packs: serde_json::from_str(&packs).map_err(|_| bad("damaged_packs"))?,
                    })
                })?
                .collect()
        };
        read().map_err(|e| self.sql(e))
    }

    /// The last check of the medium against this seal, if it was good: what dispatch requires.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn verified_since(&self, shipment: Uuid, seal: Digest) -> Result<Option<Verification>> {
        Ok(self.verifications(shipment, seal)?.pop().filter(|v| v.good))
    }

    /// The packs that the last check against the last seal found damaged or missing, with their sealed digests.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn damaged_packs(&self, shipment: Uuid) -> Result<BTreeMap<String, Digest>> {
        let Some(seal) = self.seals(shipment)?.pop() else { return Ok(BTreeMap::new()) };
        Ok(self.verifications(shipment, seal.digest)?.pop().map(|check| check.damaged_packs).unwrap_or_default())
    }

    /// Remembers a machine's snapshot (as JSON) until it is discarded.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn keep_snapshot(&self, shipment: Uuid, machine: &str, taken: &impl Serialize) -> Result<()> {
        let taken = serde_json::to_string(taken).map_err(|e| Error::failed("Snapshot for the ledger").because(e))?;
        let sql = "INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)";
        self.db().execute(sql, params![shipment.to_string(), machine, taken]).map(drop).map_err(|e| self.sql(e))
    }

    /// The machine's snapshot that was not discarded yet.
    ///
    /// # Errors
    /// The ledger cannot be read, or holds something else.
    pub fn snapshot<T: for<'a> Deserialize<'a>>(&self, shipment: Uuid, machine: &str) -> Result<Option<T>> {
        let sql = "SELECT taken FROM snapshot WHERE shipment = ? AND machine = ?";
        let found: Option<String> = self
            .db()
            .query_row(sql, params![shipment.to_string(), machine], |row| row.get(0))
            .optional()
            .map_err(|e| self.sql(e))?;
        found
            .map(|json| {
                serde_json::from_str(&json)
                    .map_err(|e| Error::failed(format!("Snapshot of {machine} in the ledger")).because(e))
            })
            .transpose()
    }

    /// Forgets a machine's snapshot: it was discarded.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn forget_snapshot(&self, shipment: Uuid, machine: &str) -> Result<()> {
        let sql = "DELETE FROM snapshot WHERE shipment = ? AND machine = ?";
        self.db().execute(sql, params![shipment.to_string(), machine]).map(drop).map_err(|e| self.sql(e))
    }

    /// Remembers how changes of a disk are noted from now on, and which blocks had changed by then: both or neither.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn keep_tracked(&self, disk: Uuid, shipment: Uuid, tracked: &Tracked, changed: &[u8]) -> Result<()> {
        let mut bytes = serde_json::to_vec(tracked).map_err(|e| Error::failed("Tracking for the ledger").because(e))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(changed);
        write_file_durably(&self.state().join("scans"), &tracking_file(disk, shipment), &bytes)
    }

    /// What [`Ledger::keep_tracked`] remembers; nothing where changes are not noted, or nobody can tell any more how.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn tracked(&self, disk: Uuid, shipment: Uuid) -> Result<Option<(Tracked, Vec<u8>)>> {
        let path = self.state().join("scans").join(tracking_file(disk, shipment));
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("State file {}", path.display()), error)),
        };
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let changed = bytes.get(end + 1..).unwrap_or_default().to_vec();
        Ok(serde_json::from_slice(&bytes[..end]).ok().map(|tracked| (tracked, changed)))
    }

    /// Remembers what a disk looked like when a seed that is asserted to be of one point in time began to read it.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn keep_stillness(&self, disk: Uuid, shipment: Uuid, seen: &Stillness) -> Result<()> {
        let text = serde_json::to_vec(seen).map_err(|e| Error::failed("Stillness for the ledger").because(e))?;
        write_file_durably(&self.shipment_dir(shipment), &format!("{disk}.still"), &text)
    }

    /// What [`Ledger::keep_stillness`] remembers; nothing where that is gone or no such thing.
    pub fn stillness(&self, disk: Uuid, shipment: Uuid) -> Option<Stillness> {
        let path = self.shipment_dir(shipment).join(format!("{disk}.still"));
        serde_json::from_slice(&crate::io::read_bounded(&path, 1 << 20).ok()?).ok()
    }

    /// Remembers where the next audit of a served disk's leaves begins.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn keep_audit(&self, disk: Uuid, shipment: Uuid, next: u64) -> Result<()> {
        write_file_durably(&self.state().join("scans"), &audit_file(disk, shipment), next.to_string().as_bytes())
    }

    /// What [`Ledger::keep_audit`] remembers; the first block where that is nothing.
    pub fn audit(&self, disk: Uuid, shipment: Uuid) -> u64 {
        let text = crate::io::read_bounded(&self.state().join("scans").join(audit_file(disk, shipment)), 64);
        text.ok().and_then(|text| String::from_utf8(text).ok()?.trim().parse().ok()).unwrap_or(0)
    }

    /// Remembers the outcome of a scan.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn record_scan(&self, disk: Uuid, shipment: Uuid, at: Timestamp, outcome: &impl Serialize) -> Result<()> {
        let outcome = serde_json::to_string(outcome).map_err(|e| Error::failed("Scan for the ledger").because(e))?;
        let sql = "INSERT INTO scan (disk, shipment, finished_at, outcome) VALUES (?, ?, ?, ?)";
        let values = params![disk.to_string(), shipment.to_string(), at.to_string(), outcome];
        self.db().execute(sql, values).map(drop).map_err(|e| self.sql(e))
    }
}
