//! The manifest database: the only place that knows its SQL. Rows come out validated or not at all.
//!
//! *Live* it is written at the branch (WAL, `synchronous=FULL`); *sealed* it is only read, as a file that may be hostile.

mod read;
mod rows;
mod sealed;
#[cfg(test)]
mod tests;
mod write;

pub use read::{MAX_SMALL_BYTES, MAX_SMALL_ROWS};
pub use rows::{
    BlockRow, BlockState, Disk, EventRow, Generation, Machine, MediumRow, Pack, Place, Process, ShipmentRow,
    UnreadableRange,
};
pub use write::{Batch, NewGeneration, PackProgress, PackState};

use crate::database;
use crate::error::{FormatError, Result};
use crate::geometry::MAX_BLOCK_BYTES;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

/// The schema's text, as in `schema/v1.sql` and FORMAT.md.
pub const SCHEMA: &str = include_str!("../../schema/v1.sql");
/// `PRAGMA user_version`: the schema's version.
pub const SCHEMA_VERSION: i64 = 1;
/// `PRAGMA application_id`: "MGMF".
pub const APPLICATION_ID: i64 = 0x4d47_4d46;
/// Steps of SQLite's machine after which a statement on the schema is ended; ours takes some hundreds.
const MAX_SCHEMA_STEPS: i32 = 1_000_000;

/// An open manifest.
pub struct Catalogue {
    db: Connection,
    path: PathBuf,
}

impl Catalogue {
    /// Opens the live manifest at the branch for reading and writing.
    ///
    /// # Errors
    /// No database of this schema version, or the file cannot be written.
    pub fn open_live(path: &Path) -> Result<Self> {
        let db = database::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(failing(path))?;
        let catalogue = Catalogue { db, path: path.to_owned() };
        catalogue.live_pragmas()?;
        catalogue.check_schema()?;
        Ok(catalogue)
    }

    /// Opens the manifest at the branch for reading only, and a writer may go on beside it. Nothing of the file changes, but for a
    /// transaction that a power cut left half done: it is rolled back, as the next writer would.
    ///
    /// # Errors
    /// No database of this schema version.
    pub fn open_reader(path: &Path) -> Result<Self> {
        let db = database::open_reader(path).map_err(failing(path))?;
        let catalogue = Catalogue { db, path: path.to_owned() };
        catalogue.check_schema()?;
        Ok(catalogue)
    }

    /// Opens a manifest that came from elsewhere: read-only, immutable, defensive, and only if its schema is exactly ours.
    /// The caller has verified the file's digest and keeps it where nobody else writes.
    ///
    /// # Errors
    /// Not a database, another schema (a trigger, view, index or column more or less), or another version.
    pub fn open_sealed(path: &Path) -> Result<Self> {
        let text = path
            .to_str()
            .ok_or_else(|| FormatError::damaged("Path of the manifest", "UTF-8", path.display().to_string()))?;
        // `?`, `#` and `%` would end the path of a URI.
        let escaped = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags).map_err(failing(path))?;
        let mut catalogue = Catalogue { db, path: path.to_owned() };
        catalogue.defend().map_err(|source| catalogue.sql(source))?;
        // SQLite reads the whole schema before anything else, and pages may name each other so that it never ends. Tables are
        // bounded where they are read.
        let ended = catalogue.db.progress_handler(MAX_SCHEMA_STEPS, Some(|| true));
        ended.map_err(|source| catalogue.sql(source))?;
        catalogue.check_schema()?;
        let unbound = catalogue.db.progress_handler(0, None::<fn() -> bool>);
        unbound.map_err(|source| catalogue.sql(source))?;
        Ok(catalogue)
    }

    /// <https://www.sqlite.org/security.html>, "Untrusted SQLite Database Files".
    fn defend(&self) -> rusqlite::Result<()> {
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        self.db.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_BLOCK_BYTES as i32)?;
        self.db.pragma_update(None, "cell_size_check", true)?;
        self.db.pragma_update(None, "mmap_size", 0)?;
        self.db.pragma_update(None, "query_only", true)
    }

    fn live_pragmas(&self) -> Result<()> {
        let set = || -> rusqlite::Result<()> {
            self.db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0)).map(drop)?;
            self.db.pragma_update(None, "synchronous", "FULL")?;
            self.db.pragma_update(None, "foreign_keys", true)?;
            self.db.busy_timeout(std::time::Duration::from_secs(10))
        };
        set().map_err(|source| self.sql(source))
    }

    fn check_schema(&self) -> Result<()> {
        let pragma =
            |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(|e| self.sql(e));
        let (application, version) = (pragma("application_id")?, pragma("user_version")?);
        if application != APPLICATION_ID {
            return Err(FormatError::damaged(
                self.object(),
                "a MotionGear manifest (application_id MGMF)",
                format!("application_id {application:#x}"),
            ));
        }
        if version != SCHEMA_VERSION {
            return Err(FormatError::unsupported(
                self.object(),
                format!("schema {version}"),
                format!("schema {SCHEMA_VERSION}"),
            ));
        }
        let found = schema_of(&self.db).map_err(|e| self.sql(e))?;
        let ours = Connection::open_in_memory()
            .and_then(|db| {
                db.execute_batch(SCHEMA)?;
                schema_of(&db)
            })
            .map_err(|e| self.sql(e))?;
        if found != ours {
            let odd = found
                .iter()
                .find(|text| !ours.contains(text))
                .or_else(|| ours.iter().find(|text| !found.contains(text)));
            let odd: String =
                odd.map(|t| t.chars().take(120).flat_map(char::escape_default).collect()).unwrap_or_default();
            return Err(FormatError::damaged(
                self.object(),
                "exactly the schema of FORMAT.md",
                format!("a difference at '{odd}'"),
            ));
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
    fn object(&self) -> String {
        object(&self.path)
    }
    fn sql(&self, source: rusqlite::Error) -> FormatError {
        self.failing()(source)
    }
    /// As [`Self::sql`], for where the database is lent out.
    fn failing(&self) -> impl Fn(rusqlite::Error) -> FormatError + use<> {
        failing(&self.path)
    }
}

fn object(path: &Path) -> String {
    format!("Manifest {}", path.display())
}

fn failing(path: &Path) -> impl Fn(rusqlite::Error) -> FormatError + use<> {
    let object = object(path);
    move |source| FormatError::Sql { object: object.clone(), source }
}

/// Every object of a database as text, sorted. Bounded: ours has a dozen, a hostile one is cut off.
fn schema_of(db: &Connection) -> rusqlite::Result<Vec<String>> {
    db.prepare("SELECT type || ' ' || name || ' ' || tbl_name || ' ' || ifnull(sql, '') FROM sqlite_schema ORDER BY 1 LIMIT 100")?
        .query_map([], |row| row.get(0))?
        .collect()
}
