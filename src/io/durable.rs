//! Small files that must survive a power cut, and bounded reading of files that somebody else wrote.
//!
//! The writer itself, and the order of its steps, is [`super::tree`]'s.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::file::retry;
use super::tree::Tree;
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
    sync_fd(&fd, dir)
}

/// As [`sync_dir`], of an open directory.
pub(super) fn sync_fd(fd: &OwnedFd, dir: &Path) -> Result<()> {
    match retry(|| rustix::fs::fsync(fd)) {
        // A server or a FUSE file system that knows no such call: whether names are durable there is its own affair, and no error
        // of this medium. It is said, for a power cut may then bring an old name back.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
            let _ = CANNOT_SYNC.set(dir.to_owned());
            Ok(())
        }
        outcome => outcome.context(|| format!("The directory {} could not be flushed to the medium", dir.display())),
    }
}

/// The first directory of this process whose file system cannot flush names, if there was one.
pub fn cannot_sync() -> Option<&'static Path> {
    CANNOT_SYNC.get().map(PathBuf::as_path)
}

static CANNOT_SYNC: OnceLock<PathBuf> = OnceLock::new();

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
    Tree::open(dir)?.write(checked(dir, name)?, bytes)
}

/// Writes `bytes` to `dir/name`, durably and all or nothing, and only if nothing has that name yet.
///
/// # Errors
/// The name is taken (the old file is untouched), or any step failed.
pub fn create_file_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    Tree::open(dir)?.create(checked(dir, name)?, bytes)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// The one name in `dir` that is meant.
fn checked<'a>(dir: &Path, name: &'a str) -> Result<&'a str> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::failed(format!("A file name in {} was expected, found {name:?}", dir.display())));
    }
    Ok(name)
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
    if !file.metadata().context(what)?.is_file() {
        return Err(Error::failed(format!("{}: expected a regular file, found something else", path.display())));
    }
    read_at_most(file, path, limit)
}

/// Reads all of an opened regular file, which may be written to meanwhile.
pub(super) fn read_at_most(file: File, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let what = || format!("File {} could not be read", path.display());
    let metadata = file.metadata().context(what)?;
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
