//! The ledger: what this host, branch or data centre, knows of shipments, seals, volumes and scans.
//!
//! `STATE/ledger.db` (SQLite, WAL, `synchronous=FULL`), and beside it files that are too large for rows:
//! `shipments/UUID/` (the live manifest and the kept seal of what was seeded here), `imports/UUID/` (verified copies of what
//! was imported here), `volumes/`, `scans/`, `zero/` (cached leaves of zero blocks), `jobs/` (control sockets).

mod attachments;
pub mod branch;
pub mod centre;
pub mod checks;
pub mod moving;
mod server;
mod sites;

use crate::error::{Error, IoContext, Result};
use motiongear_manifest::database;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use uuid::Uuid;

const SCHEMA_VERSION: i64 = 4;
const BRANCH_SCHEMA: &str = include_str!("schema/branch.sql");
const CENTRE_SCHEMA: &str = include_str!("schema/centre.sql");
const SERVER_SCHEMA: &str = include_str!("schema/server.sql");
const VERSION_4: &str = include_str!("schema/version4.sql");

/// From each version to the next; what a new ledger has from the start.
const UPGRADES: [&str; 3] = ["ALTER TABLE import ADD COLUMN recovery_point TEXT", SERVER_SCHEMA, VERSION_4];

/// An open ledger. One process may use it from several threads, several processes may use one ledger.
pub struct Ledger {
    db: Mutex<Connection>,
    state: PathBuf,
    uuid: Uuid,
}

impl Ledger {
    /// Opens the ledger in `state`, creating both when they do not exist.
    ///
    /// # Errors
    /// The directory cannot be written, is full, or belongs to a newer version of MotionGear.
    pub fn open(state: &Path) -> Result<Self> {
        let object = || format!("State directory {}", state.display());
        // What it holds is nobody else's: names, sizes, leaves of a bank's disks.
        let private = |dir: &Path| {
            crate::io::create_dirs_durably(dir, 0o700).map_err(|error| Error::failed(object()).because(error))
        };
        private(state)
            .map_err(|e| e.next("name a writable directory with room, on this host's own disk, with --state DIR"))?;
        // A relative path would change its meaning with the working directory.
        let state = state.canonicalize().context(object)?;
        for sub in ["shipments", "imports", "volumes", "scans", "zero", "jobs"] {
            let path = state.join(sub);
            if !path.exists() {
                private(&path)?;
            }
        }
        let path = state.join("ledger.db");
        let sql = |e: rusqlite::Error| Error::failed(format!("Ledger {}", path.display())).because(e);
        let db = database::open(&path, OpenFlags::default()).map_err(sql)?;
        db.busy_timeout(std::time::Duration::from_secs(30)).map_err(sql)?;
        let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql)?;
        if version > SCHEMA_VERSION {
            return Err(Error::failed(format!(
                "Ledger {}: expected version {SCHEMA_VERSION} or older, found {version}",
                path.display()
            ))
            .next("use the newer motiongear that wrote it"));
        }
        let prepare = || -> rusqlite::Result<Uuid> {
            db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)).map(drop)?;
            db.pragma_update(None, "synchronous", "FULL")?;
            db.pragma_update(None, "foreign_keys", true)?;
            let tx = rusqlite::Transaction::new_unchecked(&db, rusqlite::TransactionBehavior::Immediate)?;
            let version: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if version == 0 {
                tx.execute_batch(
                    "CREATE TABLE ledger (id INTEGER PRIMARY KEY CHECK (id = 1), uuid TEXT NOT NULL) STRICT;",
                )?;
                tx.execute("INSERT INTO ledger VALUES (1, ?)", [Uuid::new_v4().to_string()])?;
                tx.execute_batch(BRANCH_SCHEMA)?;
                tx.execute_batch(CENTRE_SCHEMA)?;
                tx.execute_batch(SERVER_SCHEMA)?;
                tx.execute_batch(VERSION_4)?;
            } else {
                let done = usize::try_from(version - 1).unwrap_or(0);
                UPGRADES.iter().skip(done).try_for_each(|upgrade| tx.execute_batch(upgrade))?;
            }
            if version != SCHEMA_VERSION {
                tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            let uuid: Option<String> = tx.query_row("SELECT uuid FROM ledger", [], |row| row.get(0)).optional()?;
            tx.commit()?;
            Ok(uuid.and_then(|text| Uuid::parse_str(&text).ok()).unwrap_or_default())
        };
        let uuid = prepare().map_err(sql)?;
        if uuid.is_nil() {
            return Err(Error::failed(format!("Ledger {}: expected its own UUID, found none", path.display()))
                .next("restore the state directory from a backup"));
        }
        crate::io::sync_dir(&state)?;
        Ok(Ledger { db: Mutex::new(db), state, uuid })
    }

    /// The state directory, absolute.
    pub fn state(&self) -> &Path {
        &self.state
    }
    /// This ledger's identity.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }
    /// The UUID of the site of this name, as the newest shipment seeded here or a volume imported here has it.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn site_named(&self, name: &str) -> Result<Option<Uuid>> {
        let seeded = self.shipments()?.into_iter().rev().find(|known| known.site == name).map(|known| known.site_uuid);
        match seeded {
            Some(uuid) => Ok(Some(uuid)),
            None => Ok(self.volumes()?.into_iter().find(|volume| volume.site_name == name).map(|volume| volume.site)),
        }
    }
    /// `STATE/shipments/UUID`: what was seeded here.
    pub fn shipment_dir(&self, shipment: Uuid) -> PathBuf {
        self.state.join("shipments").join(shipment.to_string())
    }
    /// `STATE/imports/UUID`: what was imported here.
    pub fn import_dir(&self, shipment: Uuid) -> PathBuf {
        self.state.join("imports").join(shipment.to_string())
    }
    pub(crate) fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    pub(crate) fn sql(&self, error: rusqlite::Error) -> Error {
        Error::failed(format!("Ledger {}", self.state.join("ledger.db").display())).because(error)
    }
}
