//! Opening files of an array that may be hostile: regular files only, no symbolic link anywhere below `motiongear/`, bounded.

use crate::documents::MAX_SEAL_BYTES;
use crate::error::FormatError;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    /// There is something, but no readable regular file of acceptable length.
    Unusable(String),
    /// A folder of more entries than this.
    TooMany(usize),
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unread::Missing => f.write_str("missing"),
            Unread::Unusable(why) => f.write_str(why),
            Unread::TooMany(most) => write!(f, "more than {most} entries"),
        }
    }
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Unread::Missing,
            _ => Unread::Unusable(error.to_string()),
        }
    }
}

/// `ARRAY/motiongear`, or another folder of which nothing is believed.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// Finds the folder below `array`.
    ///
    /// # Errors
    /// There is none, or it is a symbolic link.
    pub fn open(array: &Path) -> Result<Self, FormatError> {
        let array = fs::canonicalize(array).map_err(|e| FormatError::io(array, e))?;
        let folder = array.join(FOLDER);
        let meta = fs::symlink_metadata(&folder).map_err(|e| FormatError::io(&folder, e))?;
        if !meta.is_dir() {
            return Err(FormatError::damaged(folder.display().to_string(), "a folder", "something else"));
        }
        Ok(Root(folder))
    }

    /// The folder `folder` itself; a link to it is followed.
    ///
    /// # Errors
    /// There is none.
    pub fn at(folder: &Path) -> Result<Self, FormatError> {
        let folder = fs::canonicalize(folder).map_err(|e| FormatError::io(folder, e))?;
        if !folder.is_dir() {
            return Err(FormatError::damaged(folder.display().to_string(), "a folder", "something else"));
        }
        Ok(Root(folder))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Opens a file for reading; gives its length too.
    pub fn open_file(&self, file: &str) -> Result<(File, u64), Unread> {
        let path = self.0.join(file);
        let meta = fs::symlink_metadata(&path)?;
        if !meta.is_file() {
            return Err(Unread::Unusable("not a regular file".to_owned()));
        }
        if fs::canonicalize(&path)? != path {
            return Err(Unread::Unusable("behind a symbolic link".to_owned()));
        }
        let open = File::open(&path)?;
        let opened = open.metadata()?;
        if (opened.dev(), opened.ino()) != (meta.dev(), meta.ino()) {
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
        let path = self.0.join(folder);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
            Ok(meta) if !meta.is_dir() => return Err(Unread::Unusable("not a folder".to_owned())),
            Ok(_) => {}
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&path)? {
            if names.len() == most {
                return Err(Unread::TooMany(most));
            }
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// The second copy's name.
pub fn copy_of(file: &str) -> String {
    format!("{COPY}/{file}")
}
