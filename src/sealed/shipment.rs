//! Disks of a sealed shipment as exports: every block is proven before a byte of it is given away. What cannot be proven is an error
//! there, for as long as it cannot, and is said once.

use super::cache::{Bytes, Cache};
use crate::copy::fetch::{Damage, One, Records, Wanted};
use crate::copy::handles::Handles;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Kind, Result};
use crate::monitor::Progress;
use crate::nbd::serve::{Export, Unread};
use crate::nbd::wire::Extent;
use motiongear_manifest::catalogue::{BlockRow, Catalogue};
use motiongear_manifest::record::max_record_bytes;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// Blocks that are kept, bytes.
const CACHE_BYTES: usize = 64 << 20;
/// Memory for records that are being read, bytes.
const RECORD_BYTES: usize = 32 << 20;
/// Records that are read at once.
const READERS: usize = 8;
/// Rows that one question on holes looks at.
const MAX_ROWS: usize = 4096;
/// Damaged blocks that are said and listed.
const MAX_DAMAGED: usize = 10_000;

/// What all disks of a shipment share.
pub struct Shipment {
    records: Records,
    encrypted: bool,
    catalogue: Mutex<Catalogue>,
    zeros: Arc<ZeroLeaves>,
    cache: Cache,
    readers: Handles<One>,
    throttle: Arc<Throttle>,
    progress: Arc<Progress>,
    damaged: Mutex<BTreeMap<(usize, u64), Damage>>,
}

/// One disk of it.
pub struct SealedExport {
    shipment: Arc<Shipment>,
    wanted: Wanted,
}

/// Why a block cannot be given away.
enum Lack {
    Damaged(Damage),
    /// Nothing is wrong with the block as far as anybody knows.
    Failed(Error),
}

impl From<Error> for Lack {
    fn from(error: Error) -> Lack {
        Lack::Failed(error)
    }
}

impl Shipment {
    /// Of what was accepted.
    pub fn new(
        records: Records,
        encrypted: bool,
        catalogue: Catalogue,
        zeros: Arc<ZeroLeaves>,
        throttle: Arc<Throttle>,
        progress: Arc<Progress>,
    ) -> Arc<Shipment> {
        let readers = (RECORD_BYTES / max_record_bytes(records.block_bytes)).clamp(2, READERS);
        Arc::new(Shipment {
            records,
            encrypted,
            catalogue: Mutex::new(catalogue),
            zeros,
            cache: Cache::new(CACHE_BYTES),
            readers: Handles::new(readers),
            throttle,
            progress,
            damaged: Mutex::default(),
        })
    }

    /// A disk of it; `wanted.slot` is its place among the counters.
    pub fn export(self: &Arc<Shipment>, wanted: Wanted) -> SealedExport {
        SealedExport { shipment: self.clone(), wanted }
    }

    /// Blocks that were asked for and could not be proven, with the disk's place among the counters.
    pub fn damaged(&self) -> Vec<(usize, Damage)> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.iter().map(|((slot, _), damage)| (*slot, damage.clone())).collect()
    }
}

impl SealedExport {
    fn rows(&self, from: u64, limit: usize) -> Result<Vec<BlockRow>> {
        let Wanted { generation, geometry, name, .. } = &self.wanted;
        let catalogue = self.shipment.catalogue.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = catalogue.rows(generation, geometry, self.shipment.encrypted, from, limit)?;
        match rows.iter().zip(from..).all(|(row, block)| row.block == block) && !rows.is_empty() {
            true => Ok(rows),
            false => {
                Err(Error::failed(format!("Manifest of disk {name}: expected a row for every block from {from} on")))
            }
        }
    }

    /// The proven block; `None` for zeros.
    fn block(&self, block: u64) -> Result<Option<Bytes>, Lack> {
        let shipment = &*self.shipment;
        shipment.cache.get((self.wanted.slot, block), || {
            let row = self.rows(block, 1)?.remove(0);
            let len = self.wanted.geometry.len(block);
            let Some(place) = row.place else {
                return self.expect_zero(&row).map(|()| None).map_err(Lack::Damaged);
            };
            shipment.throttle.admit(u64::from(place.stored_bytes))?;
            let mut bytes = vec![0; len as usize];
            let make = || One::new(shipment.records.clone());
            let wanted = || shipment.throttle.check();
            let read = |one: &mut One| {
                let read = one.block(&self.wanted, &row, &mut bytes);
                let good = read.is_ok();
                (read, good)
            };
            shipment.readers.with(make, wanted, read)??.map_err(Lack::Damaged)?;
            let counters = &shipment.progress.disks[self.wanted.slot];
            counters.read.fetch_add(u64::from(place.stored_bytes), Ordering::Relaxed);
            Ok(Some(Arc::new(bytes)))
        })
    }

    /// That the leaf of a block without record is that of zeros.
    fn expect_zero(&self, row: &BlockRow) -> Result<(), Damage> {
        let geometry = self.wanted.geometry;
        let (offset, bytes) = (geometry.offset(row.block), geometry.len(row.block));
        let why = match self.shipment.zeros.leaf(row.block, bytes) {
            Ok(expected) if expected == row.leaf => return Ok(()),
            Ok(expected) => format!("leaf in the manifest: expected {expected}, that of zeros, found {}", row.leaf),
            Err(error) => error.to_string(),
        };
        Err(Damage { block: row.block, offset, bytes, file: None, file_offset: None, why, untrusted: false })
    }

    /// Says what is wrong.
    fn lack(&self, lack: Lack) {
        let (shipment, name) = (&*self.shipment, &self.wanted.name);
        match lack {
            Lack::Damaged(damage) => {
                let mut damaged = shipment.damaged.lock().unwrap_or_else(PoisonError::into_inner);
                let Damage { block, offset, why, .. } = &damage;
                let (key, text) =
                    ((self.wanted.slot, *block), format!("{name}: block {block} at byte {offset}: {why}"));
                if damaged.len() < MAX_DAMAGED && damaged.insert(key, damage).is_none() {
                    shipment.progress.disks[self.wanted.slot].damaged.fetch_add(1, Ordering::Relaxed);
                    shipment.throttle.note(text);
                }
            }
            // The end of the job, which everybody knows of.
            Lack::Failed(error) if error.kind == Kind::Interrupted => {}
            Lack::Failed(error) => shipment.throttle.note(format!("{name}: {error}")),
        }
    }
}

impl Export for SealedExport {
    fn bytes(&self) -> u64 {
        self.wanted.geometry.bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread> {
        let geometry = self.wanted.geometry;
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let block = at / u64::from(geometry.block_bytes());
            let inside = (at - geometry.offset(block)) as usize;
            let n = (geometry.len(block) as usize - inside).min(into.len() - done);
            let part = &mut into[done..done + n];
            match self.block(block) {
                Ok(Some(bytes)) => part.copy_from_slice(&bytes[inside..inside + n]),
                Ok(None) => part.fill(0),
                Err(lack) => {
                    self.lack(lack);
                    return Err(Unread::at(at));
                }
            }
            done += n;
        }
        let counters = &self.shipment.progress.disks[self.wanted.slot];
        counters.done.fetch_add(into.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn extents(&self, offset: u64, bytes: u64, most: usize) -> Result<Vec<Extent>, Unread> {
        let geometry = self.wanted.geometry;
        let (first, end) = (offset / u64::from(geometry.block_bytes()), offset + bytes);
        let blocks = end.div_ceil(u64::from(geometry.block_bytes())) - first;
        let rows = self.rows(first, usize::try_from(blocks).unwrap_or(MAX_ROWS).min(MAX_ROWS));
        let rows = rows.map_err(|error| {
            self.lack(error.into());
            Unread::at(offset)
        })?;
        let mut extents: Vec<Extent> = Vec::new();
        for row in rows {
            let from = geometry.offset(row.block).max(offset);
            let to = (geometry.offset(row.block) + u64::from(geometry.len(row.block))).min(end);
            // What is no zeros though it has no record is an error to read.
            let hole = row.place.is_none() && self.expect_zero(&row).is_ok();
            let status = if hole { Extent::HOLE | Extent::ZERO } else { 0 };
            let full = extents.len() == most;
            match extents.last_mut() {
                Some(last) if last.status == status => last.bytes += to - from,
                _ if full => break,
                _ => extents.push(Extent { bytes: to - from, status }),
            }
        }
        Ok(extents)
    }
}
