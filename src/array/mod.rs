//! The transport array: names of the files on it, and whether a directory is one.

pub mod holder;
pub mod packs;
pub mod recheck;

use crate::error::{Error, Result};
use crate::io::read_bounded;
use motiongear_manifest::documents::shipment::Shipment;
use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES};
use motiongear_manifest::pack::pack_file_name;
use std::path::{Path, PathBuf};

/// The paths of one array.
#[derive(Debug, Clone)]
pub struct Array {
    root: PathBuf,
}

impl Array {
    /// `mount` is where the array is mounted; everything lies in `mount/motiongear`.
    pub fn new(mount: &Path) -> Self {
        // Absolute: the ledger remembers it, and the working directory may change.
        let mount = std::path::absolute(mount).unwrap_or_else(|_| mount.to_owned());
        Array { root: mount.join("motiongear") }
    }
    /// `ARRAY/motiongear`.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Any file named relative to `motiongear/`, as in `seal.json`.
    pub fn file(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }
    /// `shipment.json`.
    pub fn shipment(&self) -> PathBuf {
        self.file("shipment.json")
    }
    /// `holder.json`.
    pub fn holder(&self) -> PathBuf {
        self.file("holder.json")
    }
    /// `seal.json`.
    pub fn seal(&self) -> PathBuf {
        self.file("seal.json")
    }
    /// `packs/`.
    pub fn packs(&self) -> PathBuf {
        self.file("packs")
    }
    /// One pack.
    pub fn pack(&self, number: u32) -> PathBuf {
        self.packs().join(pack_file_name(number))
    }
    /// `keys/`.
    pub fn keys(&self) -> PathBuf {
        self.file("keys")
    }
    /// `copy/`: the second copies.
    pub fn copies(&self) -> PathBuf {
        self.file("copy")
    }
    /// `custody/`.
    pub fn custody(&self) -> PathBuf {
        self.file("custody")
    }
    /// `report/`.
    pub fn reports(&self) -> PathBuf {
        self.file("report")
    }

    /// Reads `shipment.json`, unverified; the second copy if the first cannot be read.
    ///
    /// # Errors
    /// No array prepared here, or both copies are unreadable.
    pub fn read_shipment(&self) -> Result<Shipment> {
        let read = |path: &Path| -> Result<Shipment> {
            let bytes = read_bounded(path, MAX_DOCUMENT_BYTES)?;
            Ok(Shipment::parse(&bytes)?)
        };
        if !self.root.is_dir() {
            return Err(Error::failed(format!(
                "Array {}: expected a directory prepared by init, found none",
                self.root.display()
            ))
            .next("mount the transport array, or prepare it: motiongear init ARRAY --site NAME --recipient AGE"));
        }
        read(&self.shipment()).or_else(|first| read(&self.file("copy/shipment.json")).map_err(|_| first))
    }

    /// Creates the directories of a new array.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create_directories(&self) -> Result<()> {
        for dir in
            [self.root.clone(), self.packs(), self.keys(), self.copies().join("keys"), self.custody(), self.reports()]
        {
            crate::io::create_dirs_durably(&dir, 0o777)?;
        }
        Ok(())
    }
}
