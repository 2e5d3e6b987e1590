//! Opening the SQLite databases that are written to.
//!
//! Their write-ahead log has an index, the file `-shm`, which every process maps into memory. SQLite makes room in it by the last
//! byte of each page of 4 KiB (`unixShmMap`), so where the blocks of the file system are smaller, the rest of the page is a hole,
//! and to write into a hole of a full file system is a SIGBUS: seen on ext4 with blocks of 1 KiB. So `mmap`, as SQLite calls it,
//! first asks for every block that it maps. Without room that is an error of SQLite like any other.

use rusqlite::{Connection, OpenFlags, ffi};
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::sync::Once;

/// Opens a database that may be in WAL mode, by this process or another.
///
/// # Errors
/// What SQLite says.
pub fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    static ONCE: Once = Once::new();
    ONCE.call_once(map_only_what_is_there);
    Connection::open_with_flags(path, flags)
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
