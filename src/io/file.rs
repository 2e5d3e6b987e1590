//! Opened files and block devices: O_DIRECT where it is accepted, and what one must know to use it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};

use super::buffer::{BUFFER_ALIGN, Pool};
use super::ioctl;
use crate::error::{Error, IoContext, Result};

/// What the file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading only: the descriptor cannot write.
    Read,
    /// Reading and writing.
    Write,
}

impl Access {
    fn flags(self) -> OFlags {
        match self {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        }
    }
}

/// An opened regular file or block device, O_DIRECT where the file system takes it.
#[derive(Debug)]
pub struct DirectFile {
    fd: OwnedFd,
    path: PathBuf,
    access: Access,
    direct: bool,
    align: u32,
    block_device: bool,
    far: bool,
    /// For unaligned tails, opened when first needed. The lock keeps two threads from opening it twice.
    buffered: OnceLock<OwnedFd>,
    opening: Mutex<()>,
}

impl DirectFile {
    /// Opens an existing file or block device; symbolic links are followed (`/dev/disk/by-id/…` is made of them).
    ///
    /// # Errors
    /// What open(2) says; anything that is neither a regular file nor a block device.
    pub fn open(path: &Path, access: Access) -> Result<DirectFile> {
        Self::open_with(path, access, access.flags(), false)
    }

    /// As [`DirectFile::open`], for a file that MotionGear made itself: it is never a symbolic link, and one that is there all
    /// the same may point anywhere.
    ///
    /// # Errors
    /// What open(2) says, `ELOOP` for a symbolic link; anything that is not a regular file.
    pub fn open_own(path: &Path, access: Access) -> Result<DirectFile> {
        let file = Self::open_with(path, access, access.flags() | OFlags::NOFOLLOW, false)?;
        if file.is_block_device() {
            return Err(Error::failed(format!(
                "File {}: expected a regular file, found a block device",
                path.display()
            )));
        }
        Ok(file)
    }

    /// Creates a new empty file (mode 0600 before umask) for reading and writing; one that exists is an error. The name
    /// survives a power cut only after [`super::sync_dir`] on the directory.
    ///
    /// # Errors
    /// What open(2) says, `EEXIST` included.
    pub fn create_new(path: &Path) -> Result<DirectFile> {
        Self::open_with(path, Access::Write, OFlags::RDWR, true)
    }

    fn open_with(path: &Path, access: Access, flags: OFlags, create: bool) -> Result<DirectFile> {
        // NONBLOCK: opening a FIFO by mistake must not hang.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let what = if create { "could not be created" } else { "could not be opened" };
        let mode = Mode::RUSR | Mode::WUSR;
        let open = |flags| retry(|| rustix::fs::open(path, flags, mode));
        let first = if create { OFlags::CREATE | OFlags::EXCL } else { OFlags::empty() };
        let fd =
            open(flags | OFlags::NONBLOCK | first).context(|| format!("File or device {} {what}", path.display()))?;
        Self::of(fd, path, access, |more| open(flags | more))
    }

    /// What was opened already; `again` opens it once more, with further flags.
    pub(super) fn of(
        mut fd: OwnedFd,
        path: &Path,
        access: Access,
        again: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
    ) -> Result<DirectFile> {
        let stat = rustix::fs::fstat(&fd).context(|| format!("File or device {} has no status", path.display()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let block_device = kind == FileType::BlockDevice;
        if !block_device && kind != FileType::RegularFile {
            return Err(Error::failed(format!(
                "File or device {} was expected to be a regular file or block device, found {kind:?}",
                path.display()
            )));
        }
        // The kind is known now; O_DIRECT is tried on the very same inode, whatever the path names by now.
        let (mut direct, mut align) = (false, 1);
        if let Ok(second) = reopen(&fd, access.flags() | OFlags::DIRECT, || again(OFlags::DIRECT))
            && let Some(found) = direct_align(&second, block_device)
        {
            (fd, direct, align) = (second, true, found);
        } else {
            // NONBLOCK goes again: io_uring answers EAGAIN on such descriptors where the file system cannot work without waiting.
            rustix::fs::fcntl_setfl(&fd, OFlags::empty())
                .context(|| format!("File or device {} could not be set to wait", path.display()))?;
        }
        let far = !block_device && is_far(&fd);
        Ok(DirectFile {
            fd,
            path: path.to_owned(),
            access,
            direct,
            align,
            far,
            block_device,
            buffered: OnceLock::new(),
            opening: Mutex::new(()),
        })
    }

    /// Whether reads and writes bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Asks the kernel to forget what it has in memory of the file: for whoever must read the medium without direct access. It is a
    /// wish (posix_fadvise(2)): what is mapped or not written yet stays.
    pub fn forget_cached(&self) {
        let _ = rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// Size now, bytes: of the file, or of the device by BLKGETSIZE64.
    ///
    /// # Errors
    /// The device is gone.
    pub fn bytes(&self) -> Result<u64> {
        let found = if self.block_device {
            ioctl::size_bytes(self.fd())
        } else {
            rustix::fs::fstat(&self.fd).map_err(io::Error::from).and_then(|stat| {
                u64::try_from(stat.st_size).map_err(|_| io::Error::other("the file system reports a negative size"))
            })
        };
        found.context(|| format!("The size of {} could not be read", self.path.display()))
    }

    /// The longest that the file may become, bytes: what its file system allows (4 GiB on FAT32), and this process's own limit.
    pub fn longest(&self, wanted: u64) -> u64 {
        let own = rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap_or(u64::MAX);
        // A place that no file can have is refused; nothing is read or written by asking, and reads and writes name theirs.
        let takes = |bytes: u64| rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::Start(bytes)).is_ok();
        let (mut low, mut high) = (0, wanted);
        while !takes(high) && low + 1 < high {
            let middle = low + (high - low) / 2;
            if takes(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        own.min(if takes(high) { high } else { low })
    }

    /// Alignment of offset and length for direct access, bytes, a power of two ≤ 4096; 1 where not direct.
    pub fn align(&self) -> u32 {
        self.align
    }

    pub(super) fn align_usize(&self) -> usize {
        // At most 4096, so it fits.
        usize::try_from(self.align).unwrap_or(BUFFER_ALIGN)
    }

    /// Whether it lies on a file system behind a process or a wire (FUSE, NFS, SMB, Ceph, 9P).
    pub(super) fn is_far(&self) -> bool {
        self.far
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it may be written.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether it is a block device, otherwise a regular file.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Whether the kernel holds the device read-only (BLKROGET); always false for files.
    ///
    /// # Errors
    /// The device is gone.
    pub fn is_read_only_device(&self) -> Result<bool> {
        if !self.block_device {
            return Ok(false);
        }
        ioctl::is_read_only(self.fd())
            .context(|| format!("Device {} did not say whether it is read-only", self.path.display()))
    }

    /// Makes everything written so far durable (fdatasync): data, the size, and the drive's own cache. Covers both
    /// descriptors, as they share one inode.
    ///
    /// # Errors
    /// A write that failed late shows up here; nothing since the last good call may be trusted then.
    pub fn sync_data(&self) -> Result<()> {
        retry(|| rustix::fs::fdatasync(&self.fd))
            .context(|| format!("File or device {} could not be flushed to the medium", self.path.display()))
    }

    /// Drops what the page cache holds of it, so that a later read comes from the medium: BLKFLSBUF on devices (needs
    /// root), DONTNEED on files. Direct reads need it only where a buffered reader was at work as well.
    ///
    /// # Errors
    /// Not permitted, or the write-back failed.
    pub fn drop_cache(&self) -> Result<()> {
        let dropped = if self.block_device {
            ioctl::flush_buffers(self.fd())
        } else {
            retry(|| rustix::fs::fdatasync(&self.fd))
                .and_then(|()| rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::DontNeed))
                .map_err(io::Error::from)
        };
        dropped.context(|| format!("The cache of {} could not be dropped", self.path.display()))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A descriptor of the same inode that goes through the page cache.
    pub(super) fn buffered(&self) -> io::Result<BorrowedFd<'_>> {
        if !self.direct {
            return Ok(self.fd());
        }
        if let Some(fd) = self.buffered.get() {
            return Ok(fd.as_fd());
        }
        let _only_one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.buffered.get().is_none() {
            let flags = self.access.flags();
            let by_path = || retry(|| rustix::fs::open(&self.path, flags | OFlags::CLOEXEC, Mode::empty()));
            let _ = self.buffered.set(reopen(&self.fd, flags, by_path)?);
        }
        match self.buffered.get() {
            Some(fd) => Ok(fd.as_fd()),
            None => Err(io::Error::other("the buffered descriptor is missing")),
        }
    }
}

impl AsFd for DirectFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

/// Whether what lies at `path`, or would lie there, is on a far file system: see [`DirectFile::is_far`].
pub(super) fn lies_far(path: &Path) -> bool {
    // The node of a device says nothing of where its bytes are.
    let device = path.metadata().is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_block_device(&meta.file_type()));
    let nearest = path.ancestors().find(|there| there.exists()).unwrap_or(Path::new("."));
    !device && rustix::fs::statfs(nearest).is_ok_and(|found| names_far(&found))
}

fn is_far(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|found| names_far(&found))
}

/// By the magic numbers of statfs(2); a file system that does not say is near.
fn names_far(found: &rustix::fs::StatFs) -> bool {
    const FAR: [u32; 6] = [
        0x6573_5546, // FUSE
        0x0000_6969, // NFS
        0xff53_4d42, // SMB 1
        0xfe53_4d42, // SMB 2
        0x00c3_6400, // Ceph
        0x0102_1997, // 9P
    ];
    // The type is signed on some architectures; the numbers are 32 bits everywhere.
    FAR.contains(&((found.f_type & 0xffff_ffff) as u32))
}

/// Repeats a system call that a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// Opens the inode behind `fd` once more with `flags`. By /proc, which cannot be fooled by a path that names something else by
/// now; `by_path` where there is no /proc, and then the inode is compared.
fn reopen(fd: &OwnedFd, flags: OFlags, by_path: impl FnOnce() -> rustix::io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // This name is a link itself, to what was opened and nothing else.
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    let second = match retry(|| rustix::fs::open(&*link, flags, Mode::empty())) {
        Err(rustix::io::Errno::NOENT) => by_path()?,
        answer => answer?,
    };
    let (one, two) = (rustix::fs::fstat(fd)?, rustix::fs::fstat(&second)?);
    if (one.st_dev, one.st_ino, one.st_rdev) != (two.st_dev, two.st_ino, two.st_rdev) {
        return Err(io::Error::other("the path names another file than before"));
    }
    Ok(second)
}

/// The alignment that O_DIRECT wants on `fd`; `None` where direct access would not work with our buffers.
fn direct_align(fd: &OwnedFd, block_device: bool) -> Option<u32> {
    let sane =
        |align: u32| (align.is_power_of_two() && u64::from(align) <= BUFFER_ALIGN as u64).then_some(align.max(512));
    if let Ok(found) = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && found.stx_mask & StatxFlags::DIOALIGN.bits() != 0
    {
        // Zero means: direct access is not supported on this file (an encrypted one, for instance).
        sane(found.stx_dio_mem_align)?;
        return sane(found.stx_dio_offset_align);
    }
    if block_device {
        return ioctl::sector_bytes(fd.as_fd()).ok().and_then(sane);
    }
    // A kernel before 6.1 or a file system that does not say. Some accept the flag and refuse the read, so try one.
    let pool = Pool::new(BUFFER_ALIGN, 1).ok()?;
    let mut buffer = pool.take();
    match retry(|| rustix::io::pread(fd, buffer.whole_mut(), 0)) {
        Err(rustix::io::Errno::INVAL) => None,
        _ => Some(4096),
    }
}
