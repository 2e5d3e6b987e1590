//! The free space of the array's file system. What earlier runs unlinked or replaced there is no file any more, and can be read all
//! the same: only filling the space, or discarding it, reaches it.
//!
//! Filling goes on where a killed run ended: its files are still there. The free blocks of removed directories, with the names that
//! stood in them, are filled, too.

use crate::copy::throttle::Throttle;
use crate::error::{Error, IoContext, Result};
use crate::io::sync_dir;
use crate::monitor::DiskProgress;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;
use uuid::Uuid;

/// What becomes of free space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreeSpace {
    /// Overwritten, by files that take all of it.
    Fill,
    /// The device is told that it is free.
    Discard,
    /// Nothing.
    Leave,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Treated {
    /// How.
    pub how: FreeSpace,
    /// Bytes that were filled or discarded; where it was left, bytes that were free.
    pub bytes: u64,
    /// Of free space, what the file system keeps back for its own records: it was not filled.
    #[serde(default)]
    pub kept_back_bytes: u64,
}

/// Names of the files that fill.
const PREFIX: &str = ".free-space-";
/// Bytes of one write.
const WRITE_BYTES: usize = 4 << 20;
/// A block of the smallest file systems.
const SMALLEST_WRITE_BYTES: usize = 512;
/// Bytes between two flushes.
const FLUSH_BYTES: u64 = 256 << 20;
/// Bytes that are read to guess how fast the array is.
const MEASURE_BYTES: u64 = 64 << 20;

/// Bytes that are free on the file system of `dir`.
///
/// # Errors
/// It cannot be asked.
pub fn free_bytes(dir: &Path) -> Result<u64> {
    let what = || format!("Free space of {}", dir.display());
    let stat = rustix::fs::statvfs(dir).map_err(|errno| Error::io(what(), errno.into()))?;
    Ok(stat.f_bfree.saturating_mul(stat.f_frsize))
}

/// About how long filling takes, seconds: by the speed at which `pack` can be read. `None` where that says nothing.
pub fn estimate_seconds(free: u64, pack: &Path) -> Option<u64> {
    let file = crate::io::DirectFile::open_own(pack, crate::io::Access::Read).ok()?;
    file.drop_cache().ok()?;
    drop(file);
    let began = Instant::now();
    let mut sink = std::io::sink();
    let read = std::io::copy(&mut std::io::Read::take(File::open(pack).ok()?, MEASURE_BYTES), &mut sink).ok()?;
    let seconds = began.elapsed().as_secs_f64();
    // Of a few blocks only the latency would be measured.
    (read >= MEASURE_BYTES / 4 && seconds > 0.0).then(|| (free as f64 / (read as f64 / seconds)).ceil() as u64)
}

/// Fills the file system of `root` with files below it, flushes them, and removes them. Returns the bytes that they took, and those
/// that were free even so.
///
/// # Errors
/// A write failed for another reason than lack of room; paused for good.
pub fn fill(root: &Path, throttle: &Throttle, progress: &DiskProgress) -> Result<(u64, u64)> {
    let _reserve = Reserve::release(root);
    let noise = noise();
    let mut number = 0u32;
    let mut total = 0;
    let mut settled = false;
    loop {
        number += 1;
        let path = root.join(format!("{PREFIX}{number:06}"));
        let (bytes, full) = fill_one(&path, &noise, throttle, progress)?;
        total += bytes;
        if full && bytes > 0 {
            // What the file system kept back for its own records may be free now: once more, with a new file.
            settled = false;
            continue;
        }
        if full && settled {
            break;
        }
        if full {
            // Blocks of what was removed a moment ago are free when the journal says so: once more behind it.
            sync_file_system(root)?;
            settled = true;
            continue;
        }
        if bytes == 0 {
            return Err(Error::failed(format!("File {}: the file system takes no byte of it", path.display()))
                .next("run the same command again with --free-space discard or --free-space leave"));
        }
    }
    let kept_back = free_bytes(root)?;
    remove_filling(root)?;
    Ok((total, kept_back))
}

fn sync_file_system(root: &Path) -> Result<()> {
    let what = || format!("File system of {}", root.display());
    let dir = File::open(root).context(what)?;
    rustix::fs::syncfs(dir).map_err(|errno| Error::io(what(), errno.into()))
}

/// What ext4 keeps back for its own records: up to 16 MiB that no file gets, wherever they are. Free while this lives.
struct Reserve {
    /// `reserved_clusters` of the file system in `/sys/fs/ext4`.
    file: PathBuf,
    was: String,
}

impl Reserve {
    /// `None` on other file systems, and where the kernel does not let us.
    fn release(root: &Path) -> Option<Reserve> {
        let device = std::fs::metadata(root).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        let file = Path::new("/sys/fs/ext4").join(link.file_name()?).join("reserved_clusters");
        let was = std::fs::read_to_string(&file).ok()?;
        std::fs::write(&file, "0").ok()?;
        Some(Reserve { file, was: was.trim().to_owned() })
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // It is the default again at the next mount, at the latest.
        let _ = std::fs::write(&self.file, &self.was);
    }
}

/// Removes the files of [`fill`].
///
/// # Errors
/// The file system cannot be written.
pub fn remove_filling(root: &Path) -> Result<()> {
    for path in leftovers(root)? {
        std::fs::remove_file(&path).context(|| format!("File {}", path.display()))?;
    }
    sync_dir(root)
}

/// Fills one file. Says how long it is, and whether the file system is full; else it takes no longer file.
fn fill_one(path: &Path, noise: &[u8], throttle: &Throttle, progress: &DiskProgress) -> Result<(u64, bool)> {
    let what = || format!("File {}", path.display());
    let mut options = File::options();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::StorageFull => return Ok((0, true)),
        file => file.context(what)?,
    };
    let mut bytes = file.metadata().context(what)?.len();
    progress.done.fetch_add(bytes, Ordering::Relaxed);
    let mut unflushed = 0;
    // The last blocks are scattered: what is too much for them at once goes in smaller pieces.
    let mut piece = noise.len();
    let full = loop {
        throttle.check()?;
        match file.write(&noise[..piece]) {
            Ok(0) => break true,
            Ok(written) => {
                bytes += written as u64;
                unflushed += written as u64;
                progress.done.fetch_add(written as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::StorageFull && piece > SMALLEST_WRITE_BYTES => piece /= 2,
            Err(error) if error.kind() == ErrorKind::StorageFull => break true,
            Err(error) if error.kind() == ErrorKind::FileTooLarge => break false,
            Err(error) => return Err(Error::io(what(), error)),
        }
        if unflushed >= FLUSH_BYTES {
            unflushed = 0;
            if !flush(&file).context(what)? {
                break true;
            }
        }
    };
    flush(&file).context(what)?;
    Ok((bytes, full))
}

/// Flushes, and gives the page cache back. `false`: the server found only now that there is no room.
fn flush(file: &File) -> std::io::Result<bool> {
    let room = match file.sync_data() {
        Err(error) if error.kind() == ErrorKind::StorageFull => false,
        flushed => flushed.map(|()| true)?,
    };
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    Ok(room)
}

/// The files of [`fill`], of whatever run.
fn leftovers(root: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("Directory {}", root.display());
    let entries = std::fs::read_dir(root).context(what)?.collect::<std::io::Result<Vec<_>>>().context(what)?;
    let ours = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(PREFIX);
    Ok(entries.iter().filter(|entry| ours(entry)).map(std::fs::DirEntry::path).collect())
}

/// Whether a file is one of [`fill`]: it holds nothing.
pub fn is_filling(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// Bytes that neither compression nor holes make small.
fn noise() -> Vec<u8> {
    let mut bytes = vec![0; WRITE_BYTES];
    blake3::Hasher::new().update(Uuid::new_v4().as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// `FITRIM` of `linux/fs.h`: `_IOWR('X', 121, struct fstrim_range)`.
const FITRIM: u64 = 0xc018_5879;

/// Tells the device of the file system of `dir` that its free space is free. Returns the bytes.
///
/// # Errors
/// File system or device cannot.
pub fn discard(dir: &Path) -> Result<u64> {
    trim(dir, u64::MAX)
}

/// Refuses a file system that cannot discard, before anything is destroyed.
///
/// # Errors
/// As [`discard`].
pub fn check_discard(dir: &Path) -> Result<()> {
    trim(dir, 1 << 20).map(drop)
}

fn trim(dir: &Path, length: u64) -> Result<u64> {
    let file = File::open(dir).context(|| format!("Directory {}", dir.display()))?;
    // start, len, minlen; len comes back as what was trimmed.
    let mut range = [0u64, length, 0];
    // SAFETY: FITRIM reads and writes three u64 through the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FITRIM as libc::Ioctl, range.as_mut_ptr()) };
    match result {
        0 => Ok(range[1]),
        _ => Err(Error::io(
            format!("Free space of {}: it cannot be discarded", dir.display()),
            std::io::Error::last_os_error(),
        )
        .next("run the same command again with --free-space fill or --free-space leave")),
    }
}
