//! Small files that must survive a power cut, and bounded reading of files that somebody else wrote.
//!
//! The order, and what each wrong order breaks:
//! 1. write a temporary file in the same directory (elsewhere the rename would be a copy);
//! 2. fdatasync it (renamed first, a power cut leaves the new name with no bytes);
//! 3. rename (readers see the old bytes or the new, never a mixture);
//! 4. fsync the directory (without it the old name may be back after a power cut, though we said "done").

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::file::retry;
use crate::error::{Error, IoContext, Result};

/// Makes names created, renamed or removed in `dir` durable (fsync of the directory).
///
/// # Errors
/// Not a directory, or the medium failed.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let what = || format!("The directory {} could not be flushed to the medium", dir.display());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = retry(|| rustix::fs::open(dir, flags, Mode::empty())).context(what)?;
    retry(|| rustix::fs::fsync(&fd)).context(what)
}

/// Makes the directory `dir` and what is missing above it, with `mode` before umask, so that their names survive a power cut.
///
/// Each name is made durable before the next directory is made in it: a file is not safe in a directory that may be gone
/// after a power cut, however well the file itself was flushed.
///
/// # Errors
/// The file system refuses.
pub fn create_dirs_durably(dir: &Path, mode: u32) -> Result<()> {
    let mut missing = Vec::new();
    let mut there = dir;
    while !there.as_os_str().is_empty() && !there.exists() {
        missing.push(there);
        there = parent(there);
    }
    // Made by a process that was killed before it made the name durable. Best effort, as it is most often somebody else's
    // directory, above which we may not read, or which no file system above can flush.
    let _ = sync_dir(parent(there));
    for dir in missing.into_iter().rev() {
        match std::fs::DirBuilder::new().mode(mode).create(dir) {
            // Another process got there first.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => result.context(|| format!("Directory {}", dir.display()))?,
        }
        sync_dir(parent(dir))?;
    }
    Ok(())
}

/// Renames `from` to `to`, replacing it, and makes that durable: flushes `from` first, then both directories.
///
/// # Errors
/// Any step failed; the old state or the new is there, never half of one.
pub fn durable_rename(from: &Path, to: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = retry(|| rustix::fs::open(from, flags, Mode::empty()))
        .context(|| format!("File {} could not be opened to flush it", from.display()))?;
    retry(|| rustix::fs::fsync(&fd))
        .context(|| format!("File {} could not be flushed to the medium", from.display()))?;
    std::fs::rename(from, to)
        .context(|| format!("File {} could not be renamed to {}", from.display(), to.display()))?;
    let (old, new) = (parent(from), parent(to));
    sync_dir(new)?;
    if old != new { sync_dir(old) } else { Ok(()) }
}

/// Writes `bytes` to `dir/name`, replacing what is there, durably and all or nothing. Mode 0644 before umask.
///
/// # Errors
/// Any step failed; the old file, or none, is still there then.
pub fn write_file_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    put(dir, name, bytes, true)
}

/// Writes `bytes` to `dir/name`, durably and all or nothing, and only if nothing has that name yet.
///
/// # Errors
/// The name is taken (the old file is untouched), or any step failed.
pub fn create_file_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    put(dir, name, bytes, false)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// A file that is removed unless it got its real name.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn put(dir: &Path, name: &str, bytes: &[u8], replace: bool) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::failed(format!("A file name in {} was expected, found {name:?}", dir.display())));
    }
    let target = dir.join(name);
    let what = || format!("File {} could not be written", target.display());
    let (mut file, path) = temporary(dir).context(what)?;
    let mut temporary = Temporary(Some(path.clone()));
    file.write_all(bytes).context(what)?;
    file.sync_data().context(what)?;
    drop(file);
    if replace {
        std::fs::rename(&path, &target).context(what)?;
        temporary.0 = None;
    } else {
        match retry(|| renameat_with(CWD, &path, CWD, &target, RenameFlags::NOREPLACE)) {
            Ok(()) => temporary.0 = None,
            // File systems without NOREPLACE: a hard link refuses to replace as well; the temporary name goes on drop.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => std::fs::hard_link(&path, &target).context(what)?,
            Err(errno) => return Err(errno).context(what),
        }
    }
    drop(temporary);
    sync_dir(dir)
}

/// A new file with a name of its own. The name is short and independent of the real one, which may be as long as the
/// file system allows.
fn temporary(dir: &Path) -> std::io::Result<(File, PathBuf)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let path = dir.join(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        // create_new is O_EXCL: neither another process's file nor a planted symbolic link is written through.
        match File::options().write(true).create_new(true).open(&path) {
            // Left by a process of the same number that died; the next number is free sooner or later.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            result => return result.map(|file| (file, path)),
        }
    }
}

/// Reads a whole regular file of at most `limit` bytes. For files that somebody else may have prepared: symbolic links
/// (in the last component), FIFOs and devices are refused without touching them, and no more than `limit` is allocated.
///
/// # Errors
/// Not there, not a regular file, larger than `limit`, unreadable.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let what = || format!("File {} could not be read", path.display());
    // NONBLOCK: opening a FIFO would hang.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match retry(|| rustix::fs::open(path, flags, Mode::empty())) {
        Err(Errno::LOOP) => {
            return Err(Error::failed(format!("{}: expected a regular file, found a symbolic link", path.display())));
        }
        result => result.context(what)?,
    };
    let file = File::from(fd);
    let metadata = file.metadata().context(what)?;
    if !metadata.is_file() {
        return Err(Error::failed(format!("{}: expected a regular file, found something else", path.display())));
    }
    let too_large = |found: u64| {
        Error::failed(format!("{}: expected at most {limit} bytes, found {found} or more", path.display()))
    };
    if metadata.len() > limit {
        return Err(too_large(metadata.len()));
    }
    // It may grow while we read: one byte more than allowed tells.
    let mut bytes = Vec::new();
    let room = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(room).map_err(|error| Error::failed(what()).because(error))?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).context(what)?;
    match u64::try_from(bytes.len()) {
        Ok(found) if found <= limit => Ok(bytes),
        _ => Err(too_large(limit.saturating_add(1))),
    }
}
