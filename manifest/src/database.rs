//! Opening the SQLite databases that are written to.
//!
//! Their write-ahead log has an index, the file `-shm`, which every process maps into memory. SQLite makes room in it by the last
//! byte of each page of 4 KiB (`unixShmMap`), so where the blocks of the file system are smaller, the rest of the page is a hole,
//! and to write into a hole of a full file system is a SIGBUS: seen on ext4 with blocks of 1 KiB. So `mmap`, as SQLite calls it,
//! first asks for every block that it maps. Without room that is an error of SQLite like any other.
//!
//! A process that was killed between the write of a transaction and its flush leaves one that the next process sees, and that a
//! power cut may still take away. What is done because of it must not outlive it, so [`open`] flushes the log first.

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

/// How long a reader waits for a writer.
const BUSY: Duration = Duration::from_secs(10);

/// Opens a database that may be in WAL mode, by this process or another. Everything that is found in it is durable.
///
/// # Errors
/// What SQLite says; its write-ahead log cannot be flushed.
pub fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    static ONCE: Once = Once::new();
    ONCE.call_once(map_only_what_is_there);
    flush_log(path).map_err(|error| {
        let what = format!("its write-ahead log could not be flushed: {error}");
        rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), Some(what))
    })?;
    Connection::open_with_flags(path, flags)
}

/// Opens a database for reading only. What a power cut left in the middle of a transaction without write-ahead log (a hot journal) has to
/// be rolled back first, which only a writer can: that is done, and nothing else of the file is ever changed from here.
///
/// # Errors
/// What SQLite says; the journal is hot and the file system read-only.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let open_as = |flags| -> rusqlite::Result<Connection> {
        let db = open(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.busy_timeout(BUSY)?;
        // The first look at the content is what finds a hot journal.
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(db)
    };
    match open_as(OpenFlags::SQLITE_OPEN_READ_ONLY) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly) => {
            drop(open_as(OpenFlags::SQLITE_OPEN_READ_WRITE)?);
            open_as(OpenFlags::SQLITE_OPEN_READ_ONLY)
        }
        outcome => outcome,
    }
}

/// Flushes the write-ahead log of the database at `path`, if there is one, and its name.
fn flush_log(path: &Path) -> io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    match File::open(&log) {
        Ok(log) => log.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// Tells SQLite to map by [`map`]. An SQLite that cannot be told works as before.
fn map_only_what_is_there() {
    type Mmap = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, c_int, libc::off_t) -> *mut c_void;
    // SAFETY: a VFS that is found lives as long as the program. Its entry `mmap` is of the type `Mmap`, whatever type it is handed
    // in as, and is read only while a WAL database is opened or grows, all of which come through `open` and wait for this.
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(c"unix".as_ptr());
        if let Some(set) = vfs.as_ref().and_then(|vfs| vfs.xSetSystemCall) {
            set(vfs, c"mmap".as_ptr(), Some(std::mem::transmute::<Mmap, unsafe extern "C" fn()>(map)));
        }
    }
}

/// As mmap(2), but `ENOSPC` where a shared mapping would be written to and the file system has no room for all of it.
unsafe extern "C" fn map(
    wish: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    if flags & libc::MAP_SHARED != 0 && protection & libc::PROT_WRITE != 0 {
        // SAFETY: plain system calls on a descriptor of SQLite's; what is there already is not changed by it.
        unsafe {
            while libc::fallocate(file, 0, offset, bytes as libc::off_t) != 0 {
                match *libc::__errno_location() {
                    libc::EINTR => {}
                    libc::ENOSPC | libc::EDQUOT => return libc::MAP_FAILED,
                    // A file system that cannot be asked.
                    _ => break,
                }
            }
        }
    }
    // SAFETY: the caller's own arguments.
    unsafe { libc::mmap(wish, bytes, protection, flags, file, offset) }
}
