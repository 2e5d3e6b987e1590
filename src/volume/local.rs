//! Volumes on this host: a raw file, or a block device.

use super::Volume;
use super::completed::Completed;
use super::target::sidecar_of;
use crate::copy::patience::{Medium, Patient};
use crate::error::{Error, IoContext, Result};
use crate::io::{
    Access, DirectFile, Engine, create_dirs_durably, create_file_durably, next_data, open_queue, read_bounded,
    sync_dir, write_file_durably,
};
use crate::source::{Device, DeviceNumber, Identity, SysRoot};
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// Largest sidecar, bytes.
const MAX_SIDECAR_BYTES: u64 = 1 << 16;

/// `DISK.raw.motiongear.json`: whose volume a raw file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// Always 1.
    pub format: u32,
    /// The site's UUID and name.
    pub site: Uuid,
    /// For people.
    pub site_name: String,
    /// For people.
    pub machine: String,
    /// The disk's UUID: the volume is its own for ever.
    pub disk: Uuid,
    /// For people.
    pub disk_name: String,
    /// Size of the disk, bytes.
    pub bytes: u64,
    /// When the volume was made.
    pub created_at: Timestamp,
    /// Program and version.
    pub tool: String,
    /// By what the volume was completed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<Completed>,
}

impl Sidecar {
    /// Writes it beside `raw`, durably, in the place of the one that is there.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, raw: &Path) -> Result<()> {
        let (dir, side) = (raw.parent().unwrap_or(Path::new("/")), sidecar_of(raw));
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::failed(format!("Sidecar {}", side.display())).because(e))?;
        write_file_durably(dir, side.file_name().and_then(|n| n.to_str()).unwrap_or_default(), &json)
    }

    /// Reads the sidecar of `raw`; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read or is no sidecar.
    pub fn read(raw: &Path) -> Result<Option<Sidecar>> {
        let path = sidecar_of(raw);
        if !path.try_exists().context(|| format!("Sidecar {}", path.display()))? {
            return Ok(None);
        }
        let bytes = read_bounded(&path, MAX_SIDECAR_BYTES)?;
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::failed(format!("Sidecar {}: expected the JSON that an import wrote", path.display()))
                .because(e)
                .next("move it and its raw file away if they are not needed")
        })
    }
}

/// An opened volume.
pub struct LocalVolume {
    path: PathBuf,
    file: Arc<DirectFile>,
    bytes: u64,
    /// Device and inode (or device number), so that a second open means the same thing.
    inode: (u64, u64, u64),
    cached: AtomicBool,
    /// Whether it answers, where a job wants to know.
    medium: Option<Medium>,
    /// Keeps a block device from being mounted or assembled while it is written, and other imports away from a file.
    claim: Option<Arc<OwnedFd>>,
}

impl LocalVolume {
    /// Makes the raw file of a disk with its sidecar, all zeros, durably: nothing of that name may exist.
    ///
    /// Order: sidecar, then raw file. The other way round a crash in between would leave a raw file of nobody, and the next
    /// run would refuse it.
    ///
    /// # Errors
    /// A name is taken, or the file system refuses.
    pub fn create(path: &Path, sidecar: &Sidecar) -> Result<LocalVolume> {
        let what = || format!("Volume {}", path.display());
        let dir = path.parent().unwrap_or(Path::new("/"));
        create_dirs_durably(dir, 0o777)?;
        let side = sidecar_of(path);
        if !side.exists() {
            let json = serde_json::to_vec_pretty(sidecar).map_err(|e| Error::failed(what()).because(e))?;
            let name = side.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            create_file_durably(dir, &name, &json)?;
        }
        let file = DirectFile::create_new(path)?;
        rustix::fs::ftruncate(&file, sidecar.bytes)
            .context(|| format!("Volume {}: its size of {} bytes", path.display(), sidecar.bytes))?;
        file.sync_data()?;
        sync_dir(dir)?;
        drop(file);
        Self::open(path)
    }

    /// Opens an existing file or block device for writing; a device is claimed (O_EXCL), which fails while anything on this
    /// host uses it.
    ///
    /// # Errors
    /// In use, read-only, gone.
    pub fn open(path: &Path) -> Result<LocalVolume> {
        let what = || format!("Volume {}", path.display());
        let meta = std::fs::metadata(path).context(what)?;
        let device = rustix::fs::FileType::from_raw_mode(meta.mode()) == rustix::fs::FileType::BlockDevice;
        let claim = if device {
            let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let claim = rustix::fs::open(path, flags, Mode::empty()).context(what).map_err(|error| {
                error.next(
                    "the device must be writable, and not be mounted, swapped on or part of RAID, LVM or a dm device",
                )
            })?;
            Some(claim)
        } else {
            lock_file(path)?
        };
        let file = Arc::new(DirectFile::open(path, Access::Write)?);
        if file.is_read_only_device()? {
            return Err(Error::failed(format!("{}: expected a writable device, found a read-only one", what())));
        }
        let bytes = file.bytes()?;
        let inode = (meta.dev(), meta.ino(), meta.rdev());
        let cached = AtomicBool::new(!file.is_direct());
        Ok(LocalVolume { path: path.to_owned(), file, bytes, inode, cached, medium: None, claim: claim.map(Arc::new) })
    }

    /// Its silence is shown, and ends with the job.
    pub fn watched(mut self, medium: Medium) -> LocalVolume {
        self.medium = Some(match &self.claim {
            // A write that hangs may land later: nobody else may write there until then.
            Some(claim) => medium.claiming(Arc::downgrade(claim)),
            None => medium,
        });
        self
    }

    /// Asks the medium for something that may take as long as it likes.
    fn ask<T: Send + 'static>(&self, ask: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        match &self.medium {
            Some(medium) => medium.call(ask),
            None => ask(),
        }
    }

    /// The handle that writes.
    pub fn file(&self) -> &Arc<DirectFile> {
        &self.file
    }
    /// The file or device.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Finishes a raw file whose making may have been cut short: it gets all of its `bytes`, zeros where it grows, and a name
    /// that survives a power cut. A device is as it is.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn complete(&mut self, bytes: u64) -> Result<()> {
        if self.file.is_block_device() {
            return Ok(());
        }
        if self.bytes < bytes {
            rustix::fs::ftruncate(&*self.file, bytes)
                .context(|| format!("Volume {}: its new size", self.path.display()))?;
            self.file.sync_data()?;
            self.bytes = bytes;
        }
        // Also where nothing was to be gained: whoever made the file may have been killed before its name was durable.
        sync_dir(self.path.parent().unwrap_or(Path::new("/")))
    }
}

/// Two imports into one file, each with a ledger of its own, must not meet.
fn lock_file(path: &Path) -> Result<Option<OwnedFd>> {
    let what = || format!("Volume {}", path.display());
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).context(what)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Err(Error::failed(format!("{}: another process is writing to it", what()))
            .next("wait for that import; 'motiongear status' on its state directory shows it")),
        // A file system without locks.
        Err(_) => Ok(None),
    }
}

/// What a volume is bound by, so that a path that means another device tomorrow is noticed. Without the partition table,
/// which comes and goes with what is imported.
///
/// # Errors
/// The path is gone.
pub fn identity_of(path: &Path, sys: &SysRoot) -> Result<Identity> {
    let meta = std::fs::metadata(path).context(|| format!("Volume {}", path.display()))?;
    if rustix::fs::FileType::from_raw_mode(meta.mode()) != rustix::fs::FileType::BlockDevice {
        return Ok(Identity::of_file(&meta));
    }
    let number = DeviceNumber::from_raw(meta.rdev());
    let device = Device::by_number(sys, number).ok_or_else(|| {
        Error::failed(format!("Volume {}: expected device {number} in sysfs, found none", path.display()))
    })?;
    Ok(Identity::of_device(sys, &device, device.bytes(), None))
}

impl Volume for LocalVolume {
    fn name(&self) -> String {
        self.path.display().to_string()
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn identity(&self, sys: &SysRoot) -> Result<Identity> {
        identity_of(&self.path, sys)
    }
    fn writer(&self, engine: Engine, depth: usize) -> Result<Patient> {
        Ok(Patient::new(open_queue(engine, self.file.clone(), depth)?, self.medium.clone()))
    }
    fn reader(&self, engine: Engine, depth: usize) -> Result<Patient> {
        let path = self.path.clone();
        let file = self.ask(move || {
            let file = DirectFile::open(&path, Access::Read)?;
            // Best effort: a direct read goes past the page cache anyway, and where that is refused it is said.
            let _ = file.drop_cache();
            Ok(file)
        })?;
        let meta = std::fs::metadata(&self.path).context(|| format!("Volume {}", self.path.display()))?;
        if (meta.dev(), meta.ino(), meta.rdev()) != self.inode {
            return Err(Error::failed(format!(
                "Volume {}: expected the one that was written, found another",
                self.name()
            )));
        }
        if !file.is_direct() {
            self.cached.store(true, Ordering::Relaxed);
        }
        Ok(Patient::new(open_queue(engine, Arc::new(file), depth)?, self.medium.clone()))
    }
    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        let file = self.file.clone();
        self.ask(move || crate::io::write_zeroes(&file, offset, bytes))
    }
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        next_data(&self.file, offset)
    }
    fn flush(&self) -> Result<()> {
        let file = self.file.clone();
        self.ask(move || file.sync_data())
    }
    fn through_cache(&self) -> bool {
        self.cached.load(Ordering::Relaxed)
    }
}
