//! All exports by name, as clients find them.

use super::leaves::LeavesExport;
use super::source::SourceExport;
use crate::copy::handles::Handles;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Result};
use crate::nbd::serve::{Absent, Export, Keeper, Unread};
use crate::nbd::wire::Extent;
use crate::sealed::SealedExport;
use crate::source::Watch;
use crate::source::served::{OURS, Told};
use motiongear_manifest::geometry::Geometry;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Something that is offered.
pub enum Offer {
    /// A disk of a shipment.
    Sealed(Arc<SealedExport>),
    /// A disk of this host.
    Source(Arc<SourceExport>),
}

/// The exports of one server.
pub struct Shelf {
    offers: BTreeMap<String, Offer>,
    /// What is told of disks of this host.
    documents: BTreeMap<String, Facts>,
    /// Where leaves of zeros are kept.
    state: PathBuf,
    throttle: Arc<Throttle>,
    /// For blocks that are hashed, by disk: one that hangs keeps its own.
    buffers: BTreeMap<String, Arc<Handles<Vec<u8>>>>,
}

impl Shelf {
    /// Of these.
    pub fn new(
        offers: BTreeMap<String, Offer>,
        documents: BTreeMap<String, Facts>,
        state: PathBuf,
        throttle: Arc<Throttle>,
    ) -> Shelf {
        let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let buffers = offers.keys().map(|name| (name.clone(), Arc::new(Handles::new(threads)))).collect();
        Shelf { offers, documents, state, throttle, buffers }
    }

    /// Of the names that only we know: `facts/NAME`, `leaves/BLOCKBYTES/NAME`.
    fn ours(&self, rest: &str) -> Option<Result<Arc<dyn Export>, Absent>> {
        if let Some(name) = rest.strip_prefix("facts/") {
            return Some(self.documents.get(name)?.document().map_err(|error| {
                self.throttle.note(error.to_string());
                Absent::Unknown(error.message)
            }));
        }
        let (block_bytes, name) = rest.strip_prefix("leaves/")?.split_once('/')?;
        let (Offer::Source(disk), buffers) = (self.offers.get(name)?, self.buffers.get(name)?) else { return None };
        // As we write it: another spelling would be another account.
        let block_bytes = block_bytes.parse::<u32>().ok().filter(|bytes| bytes.to_string() == block_bytes)?;
        Some(disk.recheck().and_then(|()| {
            self.leaves(disk, buffers, block_bytes).map(|export| Arc::new(export) as Arc<dyn Export>).map_err(|error| {
                self.throttle.note(error.to_string());
                Absent::Unknown(error.message)
            })
        }))
    }

    fn leaves(
        &self,
        disk: &Arc<SourceExport>,
        buffers: &Arc<Handles<Vec<u8>>>,
        block_bytes: u32,
    ) -> Result<LeavesExport> {
        let geometry = Geometry::new(disk.bytes(), block_bytes)?;
        let zeros = ZeroLeaves::open(&self.state, block_bytes)?;
        Ok(LeavesExport::new(disk.clone(), geometry, zeros, buffers.clone(), self.throttle.clone()))
    }
}

impl Keeper for Shelf {
    fn names(&self) -> Vec<String> {
        self.offers.keys().cloned().collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Export>, Absent> {
        let none = || Absent::Unknown("there is no such export".into());
        match (name.strip_prefix(OURS), self.offers.get(name)) {
            (Some(rest), _) => self.ours(rest).ok_or_else(none)?,
            (None, Some(Offer::Sealed(export))) => Ok(export.clone() as Arc<dyn Export>),
            // Since it was opened, another may have come to its place.
            (None, Some(Offer::Source(export))) => export.recheck().map(|()| export.clone() as Arc<dyn Export>),
            (None, None) => Err(none()),
        }
    }

    fn stopped(&self) -> bool {
        self.throttle.stopped()
    }

    fn note(&self, text: String) {
        self.throttle.note(text);
    }
}

/// What is told of a disk of this host.
pub struct Facts {
    /// What it is.
    pub told: Told,
    /// What to look at to see whether it is written to.
    pub watch: Watch,
}

impl Facts {
    /// The document of this moment.
    fn document(&self) -> Result<Arc<dyn Export>> {
        let told = Told { stillness: self.watch.look()?, ..self.told.clone() };
        let failed = |error| Error::failed(format!("Facts of {}", self.told.facts.resolved.display())).because(error);
        Ok(Arc::new(Document(serde_json::to_vec(&told).map_err(failed)?)))
    }
}

/// A short text as an export.
struct Document(Vec<u8>);

impl Export for Document {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        let from = usize::try_from(offset).ok().and_then(|from| self.0.get(from..)?.get(..into.len()));
        into.copy_from_slice(from.ok_or(Unread::at(offset))?);
        Ok(())
    }

    fn extents(&self, _: u64, bytes: u64, _: usize) -> Result<Vec<Extent>, Unread> {
        Ok(vec![Extent { bytes, status: 0 }])
    }
}
