//! Opening files of an array that may be hostile: regular files only, no symbolic link anywhere below `motiongear/`, bounded.

use crate::documents::MAX_SEAL_BYTES;
use crate::error::FormatError;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder on the array that holds everything.
pub const FOLDER: &str = "motiongear";
/// Where second copies lie, below [`FOLDER`].
pub const COPY: &str = "copy";
/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 200_000;

/// Why a file gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// There is none.
    Missing,
    /// This user may not read it.
    Denied,
    /// There is something, but no readable regular file of acceptable length.
    Unusable(String),
    /// A folder of more entries than this.
    TooMany(usize),
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unread::Missing => f.write_str("missing"),
            Unread::Denied => f.write_str("permission denied"),
            Unread::Unusable(why) => f.write_str(why),
            Unread::TooMany(most) => write!(f, "more than {most} entries"),
        }
    }
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Unread::Missing,
            io::ErrorKind::PermissionDenied => Unread::Denied,
            _ if is_link(&error) => Unread::Unusable("a symbolic link, or behind one".to_owned()),
            io::ErrorKind::CrossesDevices => Unread::Unusable("on another file system than the array".to_owned()),
            io::ErrorKind::NotADirectory => Unread::Unusable("a file where a folder belongs".to_owned()),
            _ => Unread::Unusable(error.to_string()),
        }
    }
}

/// A link stands in the way. Its kind of error has no stable name.
fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

/// Folders of an array. Each is a folder or not there: a link leads off the array, and nobody seals one.
const FOLDERS: [&str; 6] = ["packs", "keys", "custody", "report", COPY, "copy/keys"];

/// `ARRAY/motiongear`, or another folder of which nothing is believed. It is opened once; whatever is renamed or linked meanwhile,
/// every name is looked up below that folder, on its file system, through no link.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    dir: Arc<File>,
}

impl Root {
    /// Finds the folder below `array`.
    ///
    /// # Errors
    /// Io: there is none, or it cannot be entered. Untrusted: it is a link or a file.
    pub fn open(array: &Path) -> Result<Self, FormatError> {
        let array = fs::canonicalize(array).map_err(|e| FormatError::io(array, e))?;
        let path = array.join(FOLDER);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                let what = "expected a folder, found a link or a file: it was made so, and nothing behind it is read";
                return Err(FormatError::untrusted(path.display().to_string(), what));
            }
            Err(error) => return Err(FormatError::io(path, error)),
        }
        Root::opened(path)
    }

    /// The folder `folder` itself; a link to it is followed.
    ///
    /// # Errors
    /// There is none.
    pub fn at(folder: &Path) -> Result<Self, FormatError> {
        Root::opened(fs::canonicalize(folder).map_err(|e| FormatError::io(folder, e))?)
    }

    fn opened(path: PathBuf) -> Result<Self, FormatError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => Ok(Root { path, dir: Arc::new(dir.into()) }),
            Err(errno) => Err(FormatError::io(path, errno.into())),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folders of the format in whose place something else lies.
    pub fn false_folders(&self) -> Vec<&'static str> {
        let is_false = |folder: &&str| match self.below(folder, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => false,
            Err(error) => {
                let kinds = [io::ErrorKind::NotADirectory, io::ErrorKind::CrossesDevices];
                is_link(&error) || kinds.contains(&error.kind())
            }
        };
        FOLDERS.into_iter().filter(is_false).collect()
    }

    /// Opens a name below the folder, through no link and on no other file system.
    fn below(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = if name.is_empty() { "." } else { name };
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&*self.dir, name, flags, Mode::empty(), how) {
                Ok(file) => return Ok(file.into()),
                // Again: something was renamed meanwhile, so that BENEATH could not be told.
                Err(Errno::INTR | Errno::AGAIN) => {}
                // Before Linux 5.6, or in a container that forbids it.
                Err(Errno::NOSYS | Errno::PERM) => return self.below_by_component(name, flags),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn below_by_component(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let device = self.dir.metadata()?.dev();
        let mut parts = name.split('/').peekable();
        let mut at = Arc::clone(&self.dir);
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if part == ".." || (part.is_empty() && !last) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let file: File = rustix::fs::openat(&*at, part, if last { flags } else { folder }, Mode::empty())?.into();
            let meta = file.metadata()?;
            if meta.dev() != device {
                return Err(io::ErrorKind::CrossesDevices.into());
            }
            // O_PATH opens the link itself.
            if meta.is_symlink() {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            if last {
                return Ok(file);
            }
            at = Arc::new(file);
        }
        Err(io::ErrorKind::InvalidInput.into())
    }

    /// Opens a regular file for reading; gives its length too.
    pub fn open_file(&self, file: &str) -> Result<(File, u64), Unread> {
        // Looked at before it is opened: opening a device or a pipe does something.
        let looked = self.below(file, OFlags::PATH)?.metadata()?;
        if !looked.is_file() {
            return Err(Unread::Unusable("not a regular file".to_owned()));
        }
        let open = self.below(file, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let opened = open.metadata()?;
        if (opened.dev(), opened.ino()) != (looked.dev(), looked.ino()) {
            return Err(Unread::Unusable("exchanged while it was opened".to_owned()));
        }
        Ok((open, opened.len()))
    }

    /// Reads a whole small file of at most `max` bytes.
    pub fn read(&self, file: &str, max: u64) -> Result<Vec<u8>, Unread> {
        let max = max.min(MAX_SEAL_BYTES);
        let (open, _) = self.open_file(file)?;
        let mut bytes = Vec::new();
        open.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(Unread::Unusable(format!("longer than {max} bytes")));
        }
        Ok(bytes)
    }

    /// The names in a folder, sorted; empty where there is no folder.
    pub fn list(&self, folder: &str) -> Result<Vec<String>, Unread> {
        self.list_at_most(folder, MAX_ENTRIES)
    }

    /// As [`Root::list`], where more than `most` are too many.
    pub fn list_at_most(&self, folder: &str, most: usize) -> Result<Vec<String>, Unread> {
        let dir = match self.below(folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        for entry in Dir::new(dir).map_err(io::Error::from)? {
            let entry = entry.map_err(io::Error::from)?;
            let name = entry.file_name().to_string_lossy();
            if name == "." || name == ".." {
                continue;
            }
            if names.len() == most {
                return Err(Unread::TooMany(most));
            }
            names.push(name.into_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// The second copy's name.
pub fn copy_of(file: &str) -> String {
    format!("{COPY}/{file}")
}

/// What to do about a file that belongs to nothing.
pub(super) fn advice_on_stray(name: &str) -> &'static str {
    const DROPPINGS: [&str; 8] = [
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        ".Spotlight-V100",
        ".Trashes",
        ".fseventsd",
        ".directory",
        "System Volume Information",
    ];
    match DROPPINGS.contains(&name) || name.starts_with("._") || name.starts_with(".nfs") || name.ends_with('~') {
        true => "a desktop or file server left it there: remove it",
        false => "it is never read; find out how it came there, then remove it",
    }
}
