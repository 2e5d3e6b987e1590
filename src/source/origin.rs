//! What names a source: a path of this host, the URI of an export, an image with its format, a path of another machine, a disk of
//! a running one, a Ceph image, or a disk under VMware.

use super::Image;
use super::running::Monitor;
use super::vddk::VmDisk;
use crate::error::{Error, Result};
use crate::libvirt::DomainDisk;
use crate::nbd::Uri;
use crate::nbd::uri::Address;
use crate::qmp::Drive;
use crate::rbd;
use crate::ssh::Place;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a disk is read from; as text in plans, ledger and manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub enum Origin {
    /// A raw image file or block device. Links such as `/dev/disk/by-id/…` are kept, so that every open resolves them anew.
    Path(PathBuf),
    /// An export of an NBD server.
    Nbd(Uri),
    /// The disk in an image file.
    Image(Image),
    /// A file or device of a machine that is reached by ssh.
    Ssh(Place),
    /// A disk of a machine that runs under QEMU, read from a snapshot that is taken for it.
    Machine(Drive),
    /// A disk of a machine that runs under libvirt, likewise.
    Domain(DomainDisk),
    /// An image of a Ceph pool, or a snapshot of one.
    Rbd(rbd::Image),
    /// A disk of a machine under VMware.
    Vddk(VmDisk),
}

impl Origin {
    /// A path, unless it begins with the scheme of a URI or with a format that we know.
    ///
    /// # Errors
    /// A URI that is none; a place behind ssh that is none; a disk of VMware's that is none.
    pub fn parse(text: &str) -> Result<Origin> {
        match (Image::parse(text), Drive::parse(text)) {
            _ if DomainDisk::is_one(text) => DomainDisk::parse(text).map(Origin::Domain),
            _ if Place::is_one(text) => Place::parse(text).map(Origin::Ssh),
            _ if VmDisk::is_one(text) => VmDisk::parse(text).map(Origin::Vddk),
            _ if rbd::Image::is_one(text) => rbd::Image::parse(text).map(Origin::Rbd),
            _ if Uri::is_one(text) => Uri::parse(text).map(Origin::Nbd),
            (Some(image), _) => Ok(Origin::Image(image)),
            (None, Some(drive)) => Ok(Origin::Machine(drive)),
            (None, None) => Ok(Origin::Path(text.into())),
        }
    }

    /// As [`Origin::parse`], for what somebody types: a relative path is one below the working directory, which the ledger
    /// outlives.
    ///
    /// # Errors
    /// As there; a relative path to a socket or to certificates.
    pub fn typed(text: &str) -> Result<Origin> {
        let wrong = |error| Error::usage(format!("Source {text}")).because(error);
        match Origin::parse(text)? {
            origin @ (Origin::Ssh(_) | Origin::Rbd(_) | Origin::Domain(_) | Origin::Vddk(_)) => Ok(origin),
            Origin::Path(path) => Ok(Origin::Path(std::path::absolute(path).map_err(wrong)?)),
            Origin::Image(image) => Ok(Origin::Image(image.absolute().map_err(wrong)?)),
            Origin::Machine(drive) => {
                let socket = std::path::absolute(&drive.socket).map_err(wrong)?;
                Ok(Origin::Machine(Drive { socket, ..drive }))
            }
            Origin::Nbd(uri) => {
                let socket = match &uri.address {
                    Address::Unix(path) => Some(path),
                    Address::Tcp { .. } => None,
                };
                let certificates = uri.tls.as_ref().and_then(|tls| tls.certificates.as_ref());
                match socket.into_iter().chain(certificates).find(|path| !path.is_absolute()) {
                    Some(path) => {
                        let path = path.display();
                        Err(Error::usage(format!("Source {text}: expected absolute paths, found {path}")))
                    }
                    None => Ok(Origin::Nbd(uri)),
                }
            }
        }
    }

    /// The file or device on this host, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Origin::Path(path) => Some(path),
            Origin::Image(image) => Some(image.path()),
            Origin::Nbd(_)
            | Origin::Ssh(_)
            | Origin::Machine(_)
            | Origin::Domain(_)
            | Origin::Rbd(_)
            | Origin::Vddk(_) => None,
        }
    }

    /// Whether it is a disk of another machine, whatever that is: this host only knows the way to it.
    pub fn is_elsewhere(&self) -> bool {
        !matches!(self, Origin::Path(_) | Origin::Image(_))
    }

    /// Whom to ask for a snapshot, where it is the disk of a running machine.
    pub fn monitor(&self) -> Option<Monitor> {
        match self {
            Origin::Machine(drive) => Some(Monitor::Qemu(drive.canonical_socket())),
            Origin::Domain(disk) => Some(Monitor::Libvirt(disk.domain.clone())),
            _ => None,
        }
    }

    /// The Ceph image that is written to, where it is one: it is read from a snapshot.
    pub fn live_image(&self) -> Option<&rbd::Image> {
        match self {
            Origin::Rbd(image) if image.snapshot.is_none() => Some(image),
            _ => None,
        }
    }
}

impl TryFrom<PathBuf> for Origin {
    type Error = Error;
    fn try_from(path: PathBuf) -> Result<Origin> {
        path.to_str().map_or_else(|| Ok(Origin::Path(path.clone())), Origin::parse)
    }
}

impl From<Origin> for PathBuf {
    fn from(origin: Origin) -> PathBuf {
        match origin {
            Origin::Path(path) => path,
            Origin::Nbd(uri) => uri.to_string().into(),
            Origin::Image(image) => image.to_string().into(),
            Origin::Ssh(place) => place.to_string().into(),
            Origin::Machine(drive) => drive.to_string().into(),
            Origin::Domain(disk) => disk.to_string().into(),
            Origin::Rbd(image) => image.to_string().into(),
            Origin::Vddk(disk) => disk.to_string().into(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Path(path) => path.display().fmt(f),
            Origin::Nbd(uri) => uri.fmt(f),
            Origin::Image(image) => image.fmt(f),
            Origin::Ssh(place) => place.fmt(f),
            Origin::Machine(drive) => drive.fmt(f),
            Origin::Domain(disk) => disk.fmt(f),
            Origin::Rbd(image) => image.fmt(f),
            Origin::Vddk(disk) => disk.fmt(f),
        }
    }
}
