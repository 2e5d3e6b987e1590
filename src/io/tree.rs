//! Files below a directory that somebody else may have filled: a transport array, the folder of a ledger on its way. Nothing there is
//! followed or opened but folders and regular files of that directory's own file system, whenever a link or device was planted.
//!
//! * The directory is opened once; every name below it is resolved by `openat2(2)` with RESOLVE_BENEATH, NO_SYMLINKS and NO_XDEV.
//!   A kernel before 5.6, or a container that forbids the call, gets the same answer component by component with O_NOFOLLOW.
//! * A name is looked at before it is opened: opening a device or FIFO has effects of its own.
//! * A file that is written has one name: a second one may be a file of this host (an array on the system disk).
//! * Whole files are written under a random name that must be new (O_EXCL), flushed, renamed, and the folder flushed. Renamed
//!   before it is flushed, a power cut leaves the new name without bytes; without the last step the old name may be back.
//! * What loses its last name here is overwritten: what was given up or superseded must not be read from free blocks. That is done
//!   once the name is durably gone, so that no power cut leaves a name with zeros behind it.

use super::durable::{read_at_most, sync_fd};
use super::file::retry;
use super::{Access, DirectFile};
use crate::error::{Error, IoContext, Result};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, StatxFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// An opened directory, below which nothing is believed.
#[derive(Debug, Clone)]
pub struct Tree {
    path: PathBuf,
    fd: Arc<OwnedFd>,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Folder,
    /// A link, a device, anything else.
    Other,
}

/// What lies under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Not followed, if it is a link.
    pub kind: Kind,
    /// Length, bytes.
    pub bytes: u64,
    /// Names that the file has.
    pub names: u64,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Tree {
    /// Opens the directory at `path`. The path itself is the operator's: links in it are followed.
    ///
    /// # Errors
    /// No directory is there.
    pub fn open(path: &Path) -> Result<Tree> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = retry(|| rustix::fs::open(path, FOLDER | OFlags::CLOEXEC, Mode::empty()))
            .context(|| format!("Directory {}", path.display()))?;
        Ok(Tree { path: path.to_owned(), fd: Arc::new(fd) })
    }

    /// The folder `relative`, as a tree of its own.
    ///
    /// # Errors
    /// None is there; distrust of a link.
    pub fn folder(&self, relative: impl AsRef<Path>) -> Result<Tree> {
        let relative = relative.as_ref();
        let fd = self.resolve(relative, FOLDER, Mode::empty()).map_err(|e| self.refusal("Directory", relative, e))?;
        Ok(Tree { path: self.full(relative), fd: Arc::new(fd) })
    }

    /// The open directory itself.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn into_fd(self) -> Result<OwnedFd> {
        match Arc::try_unwrap(self.fd) {
            Ok(fd) => Ok(fd),
            Err(shared) => Ok(shared.try_clone().context(|| format!("Directory {}", self.path.display()))?),
        }
    }

    /// Where it was opened; for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `relative`; for messages.
    pub fn full(&self, relative: impl AsRef<Path>) -> PathBuf {
        match relative.as_ref() {
            root if root.as_os_str().is_empty() => self.path.clone(),
            relative => self.path.join(relative),
        }
    }

    /// What lies at `relative`; `None` where nothing has that name.
    ///
    /// # Errors
    /// It cannot be looked up; distrust where the way there is a link.
    pub fn find(&self, relative: impl AsRef<Path>) -> Result<Option<Found>> {
        let relative = relative.as_ref();
        match self.stat(relative) {
            Ok(stat) => Ok(Some(found(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.refusal("File", relative, errno)),
        }
    }

    /// Names in the folder `relative`, sorted, with what they stand for; none where there is no folder.
    ///
    /// # Errors
    /// It cannot be read; distrust of a link in its place.
    pub fn list(&self, relative: impl AsRef<Path>) -> Result<Vec<(PathBuf, Kind)>> {
        let relative = relative.as_ref();
        let what = || format!("Directory {}", self.full(relative).display());
        let fd = match self.resolve(relative, FOLDER, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(errno) => return Err(self.refusal("Directory", relative, errno)),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).context(what)? {
            let entry = entry.context(what)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).context(what)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            names.push((PathBuf::from(name), kind_of(kind)));
        }
        names.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(names)
    }

    /// Opens a regular file for reading through the page cache.
    ///
    /// # Errors
    /// Not there, unreadable; distrust of anything else under that name.
    pub fn open_file(&self, relative: impl AsRef<Path>) -> Result<File> {
        let relative = relative.as_ref();
        self.regular(relative, OFlags::RDONLY).map(File::from)
    }

    /// Opens a regular file for writing through the page cache.
    ///
    /// # Errors
    /// As [`Tree::open_file`]; distrust of a file that has a second name.
    pub fn open_to_write(&self, relative: impl AsRef<Path>) -> Result<File> {
        let relative = relative.as_ref();
        self.regular(relative, OFlags::RDWR).map(File::from)
    }

    /// Opens a regular file past the page cache.
    ///
    /// # Errors
    /// As [`Tree::open_file`]; for writing, as [`Tree::open_to_write`].
    pub fn open_direct(&self, relative: impl AsRef<Path>, access: Access) -> Result<DirectFile> {
        let relative = relative.as_ref();
        let flags = if access == Access::Read { OFlags::RDONLY } else { OFlags::RDWR };
        let fd = self.regular(relative, flags)?;
        let again = |more| self.resolve(relative, flags | more, Mode::empty());
        DirectFile::of(fd, &self.full(relative), access, again)
    }

    /// Makes a new empty file (mode 0600 before umask) for reading and writing past the page cache. Its name survives a power cut
    /// after [`Tree::sync`] of its folder.
    ///
    /// # Errors
    /// The name is taken, or the file system refuses.
    pub fn create_direct(&self, relative: impl AsRef<Path>) -> Result<DirectFile> {
        let relative = relative.as_ref();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = self.resolve(relative, flags, Mode::RUSR | Mode::WUSR);
        let fd = fd.map_err(|errno| self.refusal("File", relative, errno))?;
        let again = |more| self.resolve(relative, OFlags::RDWR | more, Mode::empty());
        DirectFile::of(fd, &self.full(relative), Access::Write, again)
    }

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Tree::open_file`]; it is longer.
    pub fn read(&self, relative: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
        let relative = relative.as_ref();
        read_at_most(self.open_file(relative)?, &self.full(relative), limit)
    }

    /// Writes a small file, replacing what has that name, durably and all or nothing.
    ///
    /// # Errors
    /// Any step failed; the old file, or none, is still there then.
    pub fn write(&self, relative: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let relative = relative.as_ref();
        let what = || format!("File {} could not be written", self.full(relative).display());
        self.put(relative, true, |file| file.write_all(bytes).context(what))
    }

    /// As [`Tree::write`], only where nothing has that name yet.
    ///
    /// # Errors
    /// The name is taken; as [`Tree::write`].
    pub fn create(&self, relative: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let relative = relative.as_ref();
        let what = || format!("File {} could not be written", self.full(relative).display());
        self.put(relative, false, |file| file.write_all(bytes).context(what))
    }

    /// As [`Tree::write`], for what `write` gives it, of any length.
    ///
    /// # Errors
    /// As [`Tree::write`]; what `write` says.
    pub fn write_with<T>(&self, relative: impl AsRef<Path>, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
        self.put(relative.as_ref(), true, write)
    }

    /// The one writer of whole files.
    fn put<T>(&self, relative: &Path, replace: bool, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
        let what = || format!("File {} could not be written", self.full(relative).display());
        let (dir, name) = self.parent(relative).map_err(|errno| self.refusal("File", relative, errno))?;
        if found_at(&dir, name).context(what)?.is_some_and(|found| found.kind == Kind::Folder) {
            return Err(self.distrust("File", relative, "a folder has its name"));
        }
        let (file, temporary) = temporary(dir.as_fd()).context(what)?;
        let mut temporary = Temporary { dir: dir.as_fd(), name: Some(temporary) };
        let old = if replace { open_last_name(&dir, name) } else { None };
        let mut file = File::from(file);
        let outcome = write(&mut file)?;
        file.sync_data().context(what)?;
        drop(file);
        temporary.rename(name, replace).context(what)?;
        sync_fd(&dir, self.full(relative).parent().unwrap_or(&self.path))?;
        old.iter().for_each(overwrite_nameless);
        Ok(outcome)
    }

    /// Makes the folder `relative` and those above it, each durable before the next is made in it.
    ///
    /// # Errors
    /// The file system refuses; distrust of a link in the place of one.
    pub fn make_folders(&self, relative: impl AsRef<Path>) -> Result<()> {
        let mut at = PathBuf::new();
        for part in relative.as_ref().components() {
            at.push(part);
            let (dir, name) = self.parent(&at).map_err(|errno| self.refusal("Directory", &at, errno))?;
            match rustix::fs::mkdirat(&dir, name, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
                Ok(()) | Err(Errno::EXIST) => sync_fd(&dir, self.full(&at).parent().unwrap_or(&self.path))?,
                Err(errno) => return Err(self.refusal("Directory", &at, errno)),
            }
            self.folder(&at)?;
        }
        Ok(())
    }

    /// Removes a file or link, durably, and overwrites the file; false where nothing had that name.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self, relative: impl AsRef<Path>) -> Result<bool> {
        let relative = relative.as_ref();
        let old = self.parent(relative).ok().and_then(|(dir, name)| open_last_name(&dir, name));
        let removed = self.unlink(relative, AtFlags::empty())?;
        old.iter().for_each(overwrite_nameless);
        Ok(removed)
    }

    /// Removes a file or link, durably, as it is: one that was overwritten already. False where nothing had that name.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove_overwritten(&self, relative: impl AsRef<Path>) -> Result<bool> {
        self.unlink(relative.as_ref(), AtFlags::empty())
    }

    /// Removes an empty folder, durably; false where nothing had that name.
    ///
    /// # Errors
    /// It is not empty, or the file system refuses.
    pub fn remove_folder(&self, relative: impl AsRef<Path>) -> Result<bool> {
        self.unlink(relative.as_ref(), AtFlags::REMOVEDIR)
    }

    fn unlink(&self, relative: &Path, flags: AtFlags) -> Result<bool> {
        let (dir, name) = match self.parent(relative) {
            Err(Errno::NOENT) => return Ok(false),
            parent => parent.map_err(|errno| self.refusal("File", relative, errno))?,
        };
        match retry(|| rustix::fs::unlinkat(&dir, name, flags)) {
            Err(Errno::NOENT) => return Ok(false),
            done => done.context(|| format!("{} could not be removed", self.full(relative).display()))?,
        }
        sync_fd(&dir, self.full(relative).parent().unwrap_or(&self.path))?;
        Ok(true)
    }

    /// Makes the names in the folder `relative` durable; the tree's own, if it is empty.
    ///
    /// # Errors
    /// No such folder, or the medium failed.
    pub fn sync(&self, relative: impl AsRef<Path>) -> Result<()> {
        let relative = relative.as_ref();
        let fd = self.resolve(relative, FOLDER, Mode::empty());
        let fd = fd.map_err(|errno| self.refusal("Directory", relative, errno))?;
        sync_fd(&fd, &self.full(relative))
    }

    /// Looks before it opens, and looks at what was opened.
    fn regular(&self, relative: &Path, flags: OFlags) -> Result<OwnedFd> {
        let refuse = |errno| self.refusal("File", relative, errno);
        self.check_regular(relative, &self.stat(relative).map_err(refuse)?, flags)?;
        // NONBLOCK: a FIFO that took its place since must not hang.
        let fd = self.resolve(relative, flags | OFlags::NONBLOCK, Mode::empty()).map_err(refuse)?;
        self.check_regular(relative, &rustix::fs::fstat(&fd).map_err(refuse)?, flags)?;
        // It goes again: io_uring answers EAGAIN on such descriptors where the file system cannot work without waiting.
        rustix::fs::fcntl_setfl(&fd, OFlags::empty()).map_err(refuse)?;
        Ok(fd)
    }

    fn check_regular(&self, relative: &Path, stat: &Stat, flags: OFlags) -> Result<()> {
        let found = found(stat);
        if found.kind != Kind::File {
            return Err(self.distrust("File", relative, "it is a link or another special file"));
        }
        if flags.contains(OFlags::RDWR) && found.names > 1 {
            return Err(self.distrust("File", relative, "the file has a second name elsewhere"));
        }
        Ok(())
    }

    /// Without following its last component.
    fn stat(&self, relative: &Path) -> rustix::io::Result<Stat> {
        if relative.as_os_str().is_empty() {
            return rustix::fs::fstat(&self.fd);
        }
        let (dir, name) = self.parent(relative)?;
        retry(|| rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// The folder that holds `relative`, and its last name.
    fn parent<'a>(&self, relative: &'a Path) -> rustix::io::Result<(OwnedFd, &'a OsStr)> {
        let name = relative.file_name().ok_or(Errno::INVAL)?;
        let parent = relative.parent().unwrap_or(Path::new(""));
        Ok((self.resolve(parent, FOLDER, Mode::empty())?, name))
    }

    /// Opens `relative` without following anything.
    fn resolve(&self, relative: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Errno::INVAL);
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let name = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match retry(|| rustix::fs::openat2(&self.fd, name, flags, mode, how)) {
            // A kernel without the call; a sandbox that does not know it.
            Err(Errno::NOSYS | Errno::PERM) => self.walk(relative, flags, mode),
            answer => answer,
        }
    }

    /// As [`Tree::resolve`], one component after the other.
    fn walk(&self, relative: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let open = |dir: BorrowedFd<'_>, name: &OsStr, flags, mode| {
            let fd = retry(|| rustix::fs::openat(dir, name, flags, mode))?;
            let folder = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == FileType::Directory;
            // Only folders: on an overlay the device numbers of files differ from those of their folders.
            if folder && mount_of(fd.as_fd())? != mount_of(self.fd.as_fd())? {
                return Err(Errno::XDEV);
            }
            Ok(fd)
        };
        let through = FOLDER | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut at = open(self.fd.as_fd(), OsStr::new("."), through, Mode::empty())?;
        let Some(name) = relative.file_name() else { return Ok(at) };
        for part in relative.parent().into_iter().flat_map(Path::components) {
            at = open(at.as_fd(), part.as_os_str(), through, Mode::empty())?;
        }
        open(at.as_fd(), name, flags, mode)
    }

    /// What an errno of [`Tree::resolve`] means.
    fn refusal(&self, object: &str, relative: &Path, errno: Errno) -> Error {
        match errno {
            Errno::LOOP | Errno::NOTDIR => self.distrust(object, relative, "it is a link, or lies behind one"),
            Errno::XDEV => self.distrust(object, relative, "another file system is mounted there"),
            errno => Error::io(format!("{object} {}", self.full(relative).display()), errno.into()),
        }
    }

    fn distrust(&self, object: &str, relative: &Path, fact: &str) -> Error {
        Error::untrusted(format!("{object} {}: {fact}", self.full(relative).display())).next(
            "do not use this medium; ask everyone who had it. Folders and regular files with one name are allowed there",
        )
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `None` where nothing has that name: for what need not be there.
///
/// # Errors
/// All but a missing file.
pub fn if_there<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if error.io_cause().is_some_and(|cause| cause.kind() == ErrorKind::NotFound) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Mount and device of an open folder; the device alone, where the kernel (before 5.8) does not tell the mount.
fn mount_of(fd: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    let device = rustix::fs::fstat(fd)?.st_dev;
    let mount = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok();
    let mount = mount.filter(|found| found.stx_mask & StatxFlags::MNT_ID.bits() != 0).map(|found| found.stx_mnt_id);
    Ok(mount.map_or((0, device), |mount| (mount, 0)))
}

fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        _ => Kind::Other,
    }
}

fn found(stat: &Stat) -> Found {
    Found {
        kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
        bytes: u64::try_from(stat.st_size).unwrap_or(0),
        // Of 32 bits on other machines.
        #[allow(clippy::useless_conversion)]
        names: stat.st_nlink.into(),
    }
}

fn found_at(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<Found>> {
    match retry(|| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
        Err(Errno::NOENT) => Ok(None),
        answer => answer.map(|stat| Some(found(&stat))),
    }
}

/// A new file with a random name, which nobody can have planted; short, as the real one may be as long as the file system allows.
fn temporary(dir: BorrowedFd<'_>) -> rustix::io::Result<(OwnedFd, String)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    loop {
        let name = format!(".{:016x}.tmp", Uuid::new_v4().as_u64_pair().0 ^ Uuid::new_v4().as_u64_pair().1);
        match retry(|| rustix::fs::openat(dir, name.as_str(), flags, mode)) {
            Err(Errno::EXIST) => {}
            answer => return answer.map(|fd| (fd, name)),
        }
    }
}

/// Whether a file has the name of one that [`Tree::write`] did not finish.
pub fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let random = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    random.is_some_and(|random| random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The regular file `name`, if that is its only name.
fn open_last_name(dir: &OwnedFd, name: &OsStr) -> Option<File> {
    let found = found_at(dir, name).ok()??;
    if found.kind != Kind::File || found.names != 1 {
        return None;
    }
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    retry(|| rustix::fs::openat(dir, name, flags, Mode::empty())).ok().map(File::from)
}

/// Overwrites a file that has no name any more; one that was given another name meanwhile is nobody's to destroy. What the medium
/// refuses stays in its free blocks: who erases it treats those, or says that it did not.
fn overwrite_nameless(file: &File) {
    let zeros = vec![0; 1 << 20];
    let Ok(meta) = file.metadata() else { return };
    if meta.nlink() != 0 || !meta.is_file() {
        return;
    }
    let mut at = 0;
    while at < meta.len() {
        let piece = zeros.len().min((meta.len() - at) as usize);
        if file.write_all_at(&zeros[..piece], at).is_err() {
            return;
        }
        at += piece as u64;
    }
    let _ = file.sync_data();
}

/// A file that is removed unless it got its real name.
struct Temporary<'a> {
    dir: BorrowedFd<'a>,
    name: Option<String>,
}

impl Temporary<'_> {
    fn rename(&mut self, to: &OsStr, replace: bool) -> rustix::io::Result<()> {
        let Some(from) = self.name.as_deref() else { return Ok(()) };
        if replace {
            retry(|| rustix::fs::renameat(self.dir, from, self.dir, to))?;
        } else {
            match retry(|| rustix::fs::renameat_with(self.dir, from, self.dir, to, RenameFlags::NOREPLACE)) {
                // File systems without it: a hard link refuses to replace as well; the random name goes on drop.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    return retry(|| rustix::fs::linkat(self.dir, from, self.dir, to, AtFlags::empty()));
                }
                answer => answer?,
            }
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = rustix::fs::unlinkat(self.dir, name.as_str(), AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn errno(found: rustix::io::Result<OwnedFd>) -> Option<Errno> {
        found.err()
    }

    #[test]
    fn both_ways_to_resolve_refuse_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("tree/folder")).unwrap();
        std::fs::write(at("tree/folder/file"), b"own").unwrap();
        std::fs::write(at("outside"), b"precious").unwrap();
        symlink(at("tree/folder"), at("tree/link")).unwrap();
        symlink(at("outside"), at("tree/folder/away")).unwrap();
        let tree = Tree::open(&at("tree")).unwrap();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for (name, refused) in [
            ("folder/file", false),
            ("", false),
            ("folder", false),
            ("link/file", true),
            ("link", true),
            ("folder/away", true),
            ("folder/file/deeper", true),
        ] {
            let name = Path::new(name);
            let (one, two) = (tree.resolve(name, flags, Mode::empty()), tree.walk(name, flags, Mode::empty()));
            for found in [errno(one), errno(two)] {
                assert_eq!(found.is_some(), refused, "{name:?}: {found:?}");
                assert!(found.is_none_or(|errno| matches!(errno, Errno::LOOP | Errno::NOTDIR)), "{name:?}: {found:?}");
            }
        }
        for name in ["..", "folder/../../outside", "/etc/passwd"] {
            assert_eq!(errno(tree.resolve(Path::new(name), flags, Mode::empty())), Some(Errno::INVAL), "{name}");
        }
        assert_eq!(tree.read("folder/file", 10).unwrap(), b"own");
        for error in [
            tree.read("folder/away", 10).unwrap_err(),
            tree.write("link/new", b"").unwrap_err(),
            tree.make_folders("link/new").unwrap_err(),
            tree.list("link").unwrap_err(),
        ] {
            assert_eq!(error.kind.exit_code(), 4, "{error}");
        }
    }

    #[test]
    fn what_loses_its_last_name_is_overwritten_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let at = |name: &str| dir.path().join(name);
        let old = |name: &str| {
            std::fs::write(at(name), vec![7; 3 << 20]).unwrap();
            File::open(at(name)).unwrap()
        };
        let content = |file: &File| {
            let mut bytes = vec![1; 3 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let (replaced, removed, kept) = (old("replaced"), old("removed"), old("kept"));
        std::fs::hard_link(at("kept"), at("second")).unwrap();
        tree.write("replaced", b"new").unwrap();
        assert!(tree.remove("removed").unwrap() && tree.remove("second").unwrap());
        assert_eq!(std::fs::read(at("replaced")).unwrap(), b"new");
        assert!([&replaced, &removed].into_iter().all(|file| content(file).iter().all(|byte| *byte == 0)));
        assert!(content(&kept).iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_file_is_replaced_and_never_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, name) = (dir.path().join("outside"), dir.path().join("tree/name"));
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        std::fs::write(&outside, b"precious").unwrap();
        let tree = Tree::open(&dir.path().join("tree")).unwrap();
        std::fs::hard_link(&outside, &name).unwrap();
        assert_eq!(tree.open_to_write("name").unwrap_err().kind.exit_code(), 4);
        tree.write("name", b"new").unwrap();
        std::fs::remove_file(&name).unwrap();
        symlink(&outside, &name).unwrap();
        assert_eq!(tree.create("name", b"new").unwrap_err().kind.exit_code(), 1);
        tree.write("name", b"new").unwrap();
        assert_eq!(std::fs::read(&outside).unwrap(), b"precious");
        assert_eq!(tree.list("").unwrap(), [(PathBuf::from("name"), Kind::File)]);
        assert!(tree.remove("name").unwrap() && !tree.remove("name").unwrap());
    }
}
