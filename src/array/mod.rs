//! The transport array: names of the files on it, and whether a directory is one.

pub mod apart;
pub mod erased;
pub mod holder;
pub mod outrank;
pub mod packs;
pub mod recheck;

use crate::error::{Error, IoContext, Result};
use crate::io::buffer::BUFFER_ALIGN;
use crate::io::tree::if_there;
use crate::io::{Access, DirectFile, Engine, Pool, Tree, open_queue};
use motiongear_manifest::check::FOLDER;
use motiongear_manifest::documents::shipment::Shipment;
use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES};
use motiongear_manifest::pack::pack_file_name;
use motiongear_manifest::tree::Digest;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The folders of a prepared array.
pub const FOLDERS: [&str; 6] = ["packs", "keys", "copy", "copy/keys", "custody", "report"];

/// One array. Its files are reached through [`Array::tree`] alone, which follows no link.
#[derive(Debug, Clone)]
pub struct Array {
    mount: PathBuf,
    root: PathBuf,
    /// Opened at its first use, and kept: what is mounted over it later is another array.
    tree: Arc<Mutex<Option<Tree>>>,
}

impl Array {
    /// `mount` is where the array is mounted; everything lies in `mount/motiongear`.
    pub fn new(mount: &Path) -> Self {
        // Absolute: the ledger remembers it, and the working directory may change.
        let mount = std::path::absolute(mount).unwrap_or_else(|_| mount.to_owned());
        Array { root: mount.join(FOLDER), mount, tree: Arc::default() }
    }
    /// Where the array is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }
    /// `ARRAY/motiongear`, for messages.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// `ARRAY/motiongear`, opened.
    ///
    /// # Errors
    /// There is none; distrust of a link in its place.
    pub fn tree(&self) -> Result<Tree> {
        let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        match &*tree {
            Some(tree) => Ok(tree.clone()),
            None => {
                let opened = Tree::open(&self.mount).and_then(|mount| mount.folder(FOLDER)).map_err(as_who_may)?;
                Ok(tree.insert(opened).clone())
            }
        }
    }
    /// Whether there is an `ARRAY/motiongear` at all.
    ///
    /// # Errors
    /// It cannot be looked up; distrust of a link in its place.
    pub fn is_there(&self) -> Result<bool> {
        if_there(self.tree()).map(|tree| tree.is_some())
    }
    /// Whether anything has the name `file` below `motiongear/`.
    ///
    /// # Errors
    /// It cannot be looked up.
    pub fn has(&self, file: &str) -> Result<bool> {
        Ok(if_there(self.tree())?.map(|tree| tree.find(file)).transpose()?.flatten().is_some())
    }
    /// Whether it is sealed.
    ///
    /// # Errors
    /// As [`Array::has`].
    pub fn is_sealed(&self) -> Result<bool> {
        self.has("seal.json")
    }
    /// Any file named relative to `motiongear/`, as in `seal.json`; for messages.
    pub fn file(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }
    /// One pack, relative to `motiongear/`.
    pub fn pack_file(number: u32) -> String {
        format!("packs/{}", pack_file_name(number))
    }
    /// One pack; for messages.
    pub fn pack(&self, number: u32) -> PathBuf {
        self.file(&Self::pack_file(number))
    }
    /// Opens a pack.
    ///
    /// # Errors
    /// Not there; distrust of what is no regular file, and of one to be written that has a second name.
    pub fn open_pack(&self, number: u32, access: Access) -> Result<DirectFile> {
        self.tree()?.open_direct(Self::pack_file(number), access)
    }
    /// Whether a seed wrote to it: packs or keys are there.
    ///
    /// # Errors
    /// It cannot be looked up.
    pub fn is_written(&self) -> Result<bool> {
        let tree = self.tree()?;
        Ok(!tree.list("packs")?.is_empty() || !tree.list("keys")?.is_empty())
    }

    /// Reads `shipment.json`, unverified; the second copy if the first cannot be read.
    ///
    /// # Errors
    /// No array prepared here, one that was erased, or both copies are unreadable.
    pub fn read_shipment(&self) -> Result<Shipment> {
        if !self.is_there()? {
            return Err(Error::failed(format!(
                "Array {}: expected a directory prepared by init, found none",
                self.root.display()
            ))
            .next("mount the transport array, or prepare it: motiongear init ARRAY --site NAME --recipient AGE"));
        }
        let read =
            |file: &str| -> Result<Shipment> { Ok(Shipment::parse(&self.tree()?.read(file, MAX_DOCUMENT_BYTES)?)?) };
        read("shipment.json").or_else(|first| {
            read("copy/shipment.json").map_err(|_| self.erased().map_or(first, |note| self.not_prepared(&note)))
        })
    }

    /// Reads the small file `name` whose BLAKE3 is `digest` from whichever of its two copies has it, and makes the other one anew
    /// where it has not.
    ///
    /// # Errors
    /// Neither copy is what was written, or the array does not answer, or cannot be written.
    pub fn sound_copy(&self, name: &str, digest: Digest) -> Result<Vec<u8>> {
        let (tree, places) = (self.tree()?, [name.to_owned(), format!("copy/{name}")]);
        let read = |file: &String| tree.read(file, MAX_DOCUMENT_BYTES).ok().filter(|bytes| Digest::of(bytes) == digest);
        let found = places.each_ref().map(read);
        let Some(bytes) = found.iter().flatten().next() else {
            return Err(self.gone().unwrap_or_else(|| {
                Error::failed(format!("File {name} on the array: expected one of its two copies to have BLAKE3 {digest}, found neither"))
                    .next("what depends on it can never be read: do not dispatch this array; prepare another one with init and seed again")
            }));
        };
        for (file, _) in places.iter().zip(&found).filter(|(_, found)| found.is_none()) {
            tree.write(file, bytes)?;
        }
        Ok(bytes.clone())
    }

    /// Removes both copies of the small file `name`, durably.
    ///
    /// # Errors
    /// The array cannot be written.
    pub fn remove_copies(&self, name: &str) -> Result<()> {
        let tree = self.tree()?;
        tree.remove(name)?;
        tree.remove(format!("copy/{name}")).map(drop)
    }

    /// Whether the medium still answers, asked past the page cache: tells a bad sector from an array that was unplugged.
    ///
    /// # Errors
    /// None of the small documents that every array has can be read any more, in neither copy.
    pub fn still_answers(&self) -> Result<()> {
        let mut first = None;
        for name in ["shipment.json", "seal.json", "copy/shipment.json", "copy/seal.json"] {
            match self.read_afresh(name) {
                Ok(()) => return Ok(()),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        // Whoever waits for it wants what is mounted there next.
        self.tree.lock().unwrap_or_else(PoisonError::into_inner).take();
        let error = Error::failed(format!("Array {}: it does not answer any more", self.root.display()))
            .next("check the array and its cable, mount it again, then run the same command again: it resumes");
        Err(match first {
            Some(cause) => error.because(cause),
            None => error,
        })
    }

    /// Reads the first page of a file from the medium.
    fn read_afresh(&self, file: &str) -> Result<()> {
        let open = Arc::new(self.tree()?.open_direct(file, Access::Read)?);
        let bytes = usize::try_from(open.bytes()?).unwrap_or(usize::MAX).min(BUFFER_ALIGN);
        let mut queue = open_queue(Engine::Threads, open, 1)?;
        queue.read(0, 0, Pool::new(BUFFER_ALIGN, 1)?.take(), bytes);
        queue.wait().map_or(Ok(()), |done| done.result).context(|| format!("File {}", self.file(file).display()))
    }

    /// What to say of an array that does not answer any more. A directory that never was an array is not meant.
    pub fn gone(&self) -> Option<Error> {
        // A name that cannot be looked up any more was there.
        let prepared = ["shipment.json", "seal.json"].iter().any(|file| self.has(file).unwrap_or(true));
        self.still_answers().err().filter(|_| prepared)
    }

    /// Makes `ARRAY/motiongear` where there is none.
    ///
    /// # Errors
    /// The file system refuses; distrust of a link in its place.
    pub fn create_root(&self) -> Result<()> {
        Tree::open(&self.mount)?.make_folders(FOLDER)
    }
}

/// An array belongs to root: others are told so.
fn as_who_may(error: Error) -> Error {
    match error.io_cause().map(std::io::Error::kind) {
        Some(std::io::ErrorKind::PermissionDenied) => {
            error.next("run it as a user who may read the array, such as root")
        }
        _ => error,
    }
}
