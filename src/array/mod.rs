//! The transport array: names of the files on it, and whether a directory is one.

pub mod erased;
pub mod holder;
pub mod outrank;
pub mod packs;
pub mod recheck;

use crate::error::{Error, IoContext, Result};
use crate::io::buffer::BUFFER_ALIGN;
use crate::io::{Access, DirectFile, Engine, Pool, open_queue, read_bounded, sync_dir, write_file_durably};
use motiongear_manifest::documents::shipment::Shipment;
use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES};
use motiongear_manifest::pack::pack_file_name;
use motiongear_manifest::tree::Digest;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Whether a seed wrote to it: packs or keys are there.
    pub fn is_written(&self) -> bool {
        let any = |dir: PathBuf| std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
        any(self.packs()) || any(self.keys())
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
    /// No array prepared here, one that was erased, or both copies are unreadable.
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
        read(&self.shipment()).or_else(|first| {
            read(&self.file("copy/shipment.json"))
                .map_err(|_| self.erased().map_or(first, |note| self.not_prepared(&note)))
        })
    }

    /// Reads the small file `name` whose BLAKE3 is `digest` from whichever of its two copies has it, and makes the other one anew
    /// where it has not.
    ///
    /// # Errors
    /// Neither copy is what was written, or the array does not answer, or cannot be written.
    pub fn sound_copy(&self, name: &str, digest: Digest) -> Result<Vec<u8>> {
        let places = [self.file(name), self.copies().join(name)];
        let read =
            |path: &PathBuf| read_bounded(path, MAX_DOCUMENT_BYTES).ok().filter(|bytes| Digest::of(bytes) == digest);
        let found = places.each_ref().map(read);
        let Some(bytes) = found.iter().flatten().next() else {
            return Err(self.gone().unwrap_or_else(|| {
                Error::failed(format!("File {name} on the array: expected one of its two copies to have BLAKE3 {digest}, found neither"))
                    .next("what depends on it can never be read: do not dispatch this array; prepare another one with init and seed again")
            }));
        };
        for (path, _) in places.iter().zip(&found).filter(|(_, found)| found.is_none()) {
            let (dir, name) = (path.parent().unwrap_or(&self.root), path.file_name().and_then(|name| name.to_str()));
            write_file_durably(dir, name.unwrap_or_default(), bytes)?;
        }
        Ok(bytes.clone())
    }

    /// Removes both copies of the small file `name`, durably.
    ///
    /// # Errors
    /// The array cannot be written.
    pub fn remove_copies(&self, name: &str) -> Result<()> {
        for path in [self.file(name), self.copies().join(name)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                outcome => {
                    outcome.context(|| format!("File {}", path.display()))?;
                    sync_dir(path.parent().unwrap_or(&self.root))?;
                }
            }
        }
        Ok(())
    }

    /// Whether the medium still answers, asked past the page cache: tells a bad sector from an array that was unplugged.
    ///
    /// # Errors
    /// None of the small documents that every array has can be read any more, in neither copy.
    pub fn still_answers(&self) -> Result<()> {
        let mut first = None;
        for name in ["shipment.json", "seal.json", "copy/shipment.json", "copy/seal.json"] {
            match read_afresh(&self.file(name)) {
                Ok(()) => return Ok(()),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        let error = Error::failed(format!("Array {}: it does not answer any more", self.root.display()))
            .next("check the array and its cable, mount it again, then run the same command again: it resumes");
        Err(match first {
            Some(cause) => error.because(cause),
            None => error,
        })
    }

    /// What to say of an array that does not answer any more. A directory that never was an array is not meant.
    pub fn gone(&self) -> Option<Error> {
        // A name that cannot be looked up any more was there.
        let prepared = [self.shipment(), self.seal()].iter().any(|path| path.try_exists().unwrap_or(true));
        self.still_answers().err().filter(|_| prepared)
    }

    /// Refuses what is no array at all, and one that this user may not read: neither is a matter of trust.
    ///
    /// # Errors
    /// The directory is missing, or something in it may not be read.
    pub fn expect_readable(&self) -> Result<()> {
        let what = |path: &Path| format!("Array {}", path.display());
        for path in [self.root.clone(), self.shipment(), self.seal()] {
            match std::fs::File::open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    return Err(Error::io(what(&path), error).next("run it as root, or as the user who owns the array"));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == self.root => {
                    return Err(
                        Error::io(what(&path), error).next("mount the transport array, and give its mount point")
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether it carries a seal, or what is left of one.
    pub fn is_sealed(&self) -> bool {
        let names = ["seal.json", "seal.json.sig", "copy/seal.json", "copy/seal.json.sig"];
        // A name that cannot be looked up any more was there.
        names.iter().any(|name| self.file(name).try_exists().unwrap_or(true))
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

/// Reads the first page of a file from the medium.
fn read_afresh(path: &Path) -> Result<()> {
    let file = Arc::new(DirectFile::open_own(path, Access::Read)?);
    let bytes = usize::try_from(file.bytes()?).unwrap_or(usize::MAX).min(BUFFER_ALIGN);
    let mut queue = open_queue(Engine::Threads, file, 1)?;
    queue.read(0, 0, Pool::new(BUFFER_ALIGN, 1)?.take(), bytes);
    queue.wait().map_or(Ok(()), |done| done.result).context(|| format!("File {}", path.display()))
}
