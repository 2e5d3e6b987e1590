//! Where one disk's volume is or will be.

use super::local::LocalVolume;
use super::{NbdVolume, Store, Volume};
use crate::copy::patience::Medium;
use crate::error::{IoContext, Result};
use crate::nbd::Uri;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A volume's place.
#[derive(Clone)]
pub enum Place {
    /// A raw file that MotionGear makes.
    File(PathBuf),
    /// A block device or file that somebody else made.
    Device(PathBuf),
    /// An export of an NBD server.
    Export(Uri),
    /// A volume that MotionGear makes in a cloud.
    Stored(Arc<dyn Store>),
}

impl Place {
    /// What the ledger calls `location`, of `kind`; `None` for a volume of a cloud, which takes more to reach.
    ///
    /// # Errors
    /// A URI that is none.
    pub fn of_ledger(kind: &str, location: &str) -> Result<Option<Place>> {
        Ok(match kind {
            "dir" => Some(Place::File(location.into())),
            "dev" => Some(Place::Device(location.into())),
            "nbd" => Some(Place::Export(Uri::parse(location)?)),
            _ => None,
        })
    }

    /// As in the ledger and in targets.
    pub fn kind(&self) -> &'static str {
        match self {
            Place::File(_) => "dir",
            Place::Device(_) => "dev",
            Place::Export(_) => "nbd",
            Place::Stored(store) => store.kind(),
        }
    }

    /// The file or device on this host, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Place::File(path) | Place::Device(path) => Some(path),
            Place::Export(_) | Place::Stored(_) => None,
        }
    }

    /// The store that makes it, where it is in one.
    pub fn store(&self) -> Option<&Arc<dyn Store>> {
        match self {
            Place::Stored(store) => Some(store),
            Place::File(_) | Place::Device(_) | Place::Export(_) => None,
        }
    }

    /// The raw file that MotionGear makes, where it is one.
    pub fn own_file(&self) -> Option<&Path> {
        match self {
            Place::File(path) => Some(path),
            Place::Device(_) | Place::Export(_) | Place::Stored(_) => None,
        }
    }

    /// With an absolute path.
    ///
    /// # Errors
    /// The working directory is gone.
    pub fn absolute(self) -> Result<Place> {
        Ok(match self {
            Place::File(path) => Place::File(absolute(&path)?),
            Place::Device(path) => Place::Device(absolute(&path)?),
            remote @ (Place::Export(_) | Place::Stored(_)) => remote,
        })
    }

    /// Whether there is something; of an export only a server can tell.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn exists(&self) -> Result<bool> {
        match self.path() {
            Some(path) => path.try_exists().context(|| format!("Volume {self}")),
            None => Ok(true),
        }
    }

    /// Whether what the ledger calls `location`, of `kind`, is not there any more. Of an export that does not answer nobody knows: it
    /// counts as there where `of_exports` is not set. A volume of a cloud counts as there until it is looked for in that cloud.
    pub fn is_gone(kind: &str, location: &str, of_exports: bool) -> bool {
        match kind {
            "nbd" => of_exports && Uri::parse(location).is_ok_and(|uri| NbdVolume::open(&uri).is_err()),
            "dir" | "dev" => !Path::new(location).exists(),
            _ => false,
        }
    }

    /// Opens what exists for writing.
    ///
    /// # Errors
    /// As [`LocalVolume::open`], [`NbdVolume::open`] and [`Store::open`].
    pub fn open(&self, medium: Option<Medium>) -> Result<Arc<dyn Volume>> {
        match self {
            Place::File(path) | Place::Device(path) => {
                let volume = LocalVolume::open(path)?;
                Ok(Arc::new(match medium {
                    Some(medium) => volume.watched(medium),
                    None => volume,
                }))
            }
            Place::Export(uri) => {
                let volume = NbdVolume::open(uri)?;
                Ok(Arc::new(match medium {
                    Some(medium) => volume.watched(medium),
                    None => volume,
                }))
            }
            Place::Stored(store) => store.open(medium),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) | Place::Device(path) => path.display().fmt(f),
            Place::Export(uri) => uri.fmt(f),
            Place::Stored(store) => f.write_str(&store.location()),
        }
    }
}

/// Absolute, links in existing directories resolved; the last component is kept, so that `/dev/disk/by-id/…` stays.
fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).context(|| format!("Target {}", path.display()))?;
    let (Some(dir), Some(file)) = (path.parent(), path.file_name()) else { return Ok(path) };
    let mut missing = vec![file.to_owned()];
    let mut at = dir;
    loop {
        if let Ok(real) = at.canonicalize() {
            return Ok(missing.iter().rev().fold(real, |path, part| path.join(part)));
        }
        match (at.parent(), at.file_name()) {
            (Some(parent), Some(part)) => {
                missing.push(part.to_owned());
                at = parent;
            }
            _ => return Ok(path),
        }
    }
}
