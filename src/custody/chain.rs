//! A chain of signed events in a directory: reading it by the format's own reader, and adding to it so that a crash leaves the old
//! chain or the new. What is on the array and what the data centre keeps for itself are both such chains.
//!
//! An event is a document and its signature. Adding one writes, each durably and with its directory:
//! 1. the document (signature first would leave a signature over nothing, which no reader could tell from tampering);
//! 2. the signature. Only now is the event part of the chain; a document without one is the leftover of a crash, is not
//!    believed, and the next event takes its place.

use crate::error::{Error, IoContext, Result};
use crate::io::{Tree, create_dirs_durably};
use crate::ledger::Ledger;
use motiongear_manifest::check::chain::{ChainEvent, Link, MAX_NAMES, Subject, read_chain};
use motiongear_manifest::check::{Class, Opened, Root, Severity, Terms};
use motiongear_manifest::documents::custody::{CUSTODY, Predecessor, event_name};
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::tree::Digest;
use std::path::PathBuf;
use uuid::Uuid;

/// Most notes that are shown of one chain.
const MAX_NOTES: usize = 20;

/// Signed events in order, each naming its predecessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain<E> {
    /// The events.
    pub links: Vec<Link<E>>,
    /// What is odd without breaking the chain: a leftover, a file that belongs to nothing, clocks that disagree.
    pub notes: Vec<String>,
    /// Whether the keys were compared with a trust file. The signatures themselves match, or there were no chain.
    pub signers_checked: bool,
}

impl<E> Chain<E> {
    /// The place of the next event.
    pub fn next_number(&self) -> u32 {
        u32::try_from(self.links.len()).unwrap_or(u32::MAX).saturating_add(1)
    }
    /// What the next event must name.
    pub fn predecessor(&self) -> Option<Predecessor> {
        self.links.last().map(|link| link.digests.clone())
    }
}

/// Where a chain lies: a folder below a directory, in which no link is followed.
#[derive(Debug, Clone)]
pub struct Place {
    root: PathBuf,
    folder: &'static str,
    /// In this host's state directory, where it begins to exist with its first event.
    in_state: bool,
}

impl Place {
    /// `custody/` on an array whose seal is valid.
    pub fn on_array(opened: &Opened) -> Place {
        Place { root: opened.root.path().to_owned(), folder: CUSTODY, in_state: false }
    }
    /// `STATE/custody/UUID/array`: this host's own copy of the array's chain.
    pub fn kept(ledger: &Ledger, shipment: Uuid) -> Place {
        Self::in_state(ledger, shipment, "array")
    }
    /// `STATE/custody/UUID/centre`: what the data centre did with the content.
    pub fn centre(ledger: &Ledger, shipment: Uuid) -> Place {
        Self::in_state(ledger, shipment, "centre")
    }
    fn in_state(ledger: &Ledger, shipment: Uuid, folder: &'static str) -> Place {
        Place { root: ledger.state().join("custody").join(shipment.to_string()), folder, in_state: true }
    }

    /// The directory of the events.
    pub fn dir(&self) -> PathBuf {
        self.root.join(self.folder)
    }
    /// The document of an event.
    pub fn file<E: ChainEvent>(&self, link: &Link<E>) -> PathBuf {
        self.dir().join(name(&link.event))
    }

    /// Reads and checks the chain; no directory is an empty one.
    ///
    /// # Errors
    /// Untrusted if any link is; or the directory cannot be read.
    pub fn read<E: ChainEvent>(&self, subject: &Subject, terms: &Terms) -> Result<Chain<E>> {
        let signers_checked = terms.trust.is_some();
        let mut chain = Chain { links: Vec::new(), notes: Vec::new(), signers_checked };
        let what = || format!("Custody in {}", self.root.display());
        if self.in_state && !self.root.try_exists().context(what)? {
            return Ok(chain);
        }
        let (links, findings) = read_chain(&Root::at(&self.root)?, self.folder, subject, terms);
        chain.links = links;
        let (broken, odd): (Vec<_>, Vec<_>) =
            findings.list.iter().partition(|f| f.severity == Severity::Error && f.class != Class::Extra);
        if let Some(first) = broken.iter().find(|f| f.class == Class::Untrusted).or(broken.first()) {
            let more = if broken.len() > 1 { format!("; and {} more faults", broken.len() - 1) } else { String::new() };
            let said = format!("{}: {}: {}{more}", what(), first.object, first.what);
            let untrusted = first.class == Class::Untrusted;
            let error = if untrusted { Error::untrusted(said) } else { Error::failed(said) };
            let whoever = Terms { trust: None, ..*terms };
            return Err(error.next(if terms.trust.is_some() && self.read::<E>(subject, &whoever).is_ok() {
                "every event is as it was signed, but the file of allowed signers does not allow everybody who signed: does it name the people of both sites, with their namespaces and times? If it is right, somebody else signed: stop, and ask both sites"
            } else if self.in_state {
                "the state directory was altered or damaged: put that folder back from a backup of it"
            } else {
                "the chain was tampered with or damaged: stop, keep the array, and compare with the paper report and the sender"
            }));
        }
        let unlisted = odd.len().saturating_sub(MAX_NOTES);
        chain.notes = odd.iter().take(MAX_NOTES).map(|f| format!("Custody: {}: {}", f.object, f.what)).collect();
        chain.notes.extend((unlisted > 0).then(|| format!("Custody: {unlisted} more such names")));
        Ok(chain)
    }

    /// Adds a signed event to the chain, and returns it.
    ///
    /// # Errors
    /// It breaks a rule of its document, or the directory cannot be written.
    pub fn append<E: ChainEvent>(&self, event: E, key: &Signer) -> Result<Link<E>> {
        let bytes = event.to_bytes()?;
        let signature = key.sign(&bytes, Namespace::Custody).map_err(motiongear_manifest::FormatError::from)?;
        let (folder, name) = (self.make()?, name(&event));
        self.remove_leftovers(event.head().number)?;
        write_event(&folder, &name, &bytes, signature.as_bytes())?;
        Ok(Link {
            file: format!("{}/{name}", self.folder),
            event,
            signed_by: Some(key.fingerprint()),
            digests: Predecessor { event: Digest::of(&bytes), signature: Digest::of(signature.as_bytes()) },
        })
    }

    /// Removes what a crash left behind: documents of this number without signature, and temporary files of a durable write.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn remove_leftovers(&self, number: u32) -> Result<()> {
        let prefix = format!("{number:04}-");
        let found = Root::at(&self.root)?.list_at_most(self.folder, MAX_NAMES);
        let folder = self.open()?;
        let unread = |unread| Error::failed(format!("Directory {}: {unread}", folder.path().display()));
        for name in found.map_err(unread)? {
            if is_temporary(&name) || (name.starts_with(&prefix) && name.ends_with(".json")) {
                folder.remove(&name)?;
            }
        }
        folder.sync("")
    }

    /// The folder of the events.
    ///
    /// # Errors
    /// There is none; distrust of a link in its place.
    pub fn open(&self) -> Result<Tree> {
        Tree::open(&self.root)?.folder(self.folder)
    }

    /// As [`Place::open`]; made where there is none.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn make(&self) -> Result<Tree> {
        if self.in_state {
            create_dirs_durably(&self.root, 0o777)?;
        }
        let root = Tree::open(&self.root)?;
        root.make_folders(self.folder)?;
        root.folder(self.folder)
    }
}

/// The name of an event's document.
pub fn name<E: ChainEvent>(event: &E) -> String {
    let head = event.head();
    event_name(head.number, head.word)
}

/// The name of a file that a durable write did not finish.
fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Writes an event's two files in their order.
pub(super) fn write_event(folder: &Tree, name: &str, document: &[u8], signature: &[u8]) -> Result<()> {
    folder.write(name, document)?;
    folder.write(format!("{name}.sig"), signature)
}
