//! Disks of a sealed shipment as exports of our NBD server, unimported: every block is proven before a byte of it is given away, and nothing
//! is ever written to the array.
//!
//! * `shipment`: the exports; `cache`: blocks that were proven a moment ago
//! * `server`: a server of them that only this process's children reach

mod cache;
mod server;
mod shipment;

pub use server::SealedServer;
pub use shipment::{SealedExport, Shipment};

use crate::array::Array;
use crate::array::holder::Lock;
use crate::context::Context;
use crate::copy::fetch::{Damage, Pick, Records, Wanted, sealed_packs};
use crate::copy::patience::Medium;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Result};
use crate::monitor::{DiskProgress, MediumKind, Progress};
use crate::trust::Accepted;
use motiongear_manifest::catalogue::{Catalogue, Generation};
use motiongear_manifest::documents::seal::SealedDisk;
use motiongear_manifest::documents::shipment::Suite;
use motiongear_manifest::geometry::Geometry;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Disks of one shipment.
pub struct Sealed {
    /// What was given and read, a counter for each disk.
    pub progress: Arc<Progress>,
    /// By MACHINE/DISK.
    pub exports: BTreeMap<String, Arc<SealedExport>>,
    shipment: Arc<Shipment>,
    /// As long as anything of the array is given away.
    _lock: Lock,
}

impl Sealed {
    /// Opens `disks` of what was accepted of the array at `mount`, for `verb`.
    ///
    /// # Errors
    /// The manifest has no such disk; the state directory refuses.
    pub fn open(
        context: &Context,
        verb: &'static str,
        mount: &Path,
        accepted: Accepted,
        disks: &[SealedDisk],
        throttle: &Arc<Throttle>,
    ) -> Result<Sealed> {
        let counters = disks.iter().map(|d| DiskProgress::new(format!("{}/{}", d.machine, d.disk), d.bytes)).collect();
        let progress = Progress::new(verb, counters);
        let Accepted { shipment, seal, catalogue, keys, lock, .. } = accepted;
        let records = Records {
            medium: Medium::new(MediumKind::Array, &mount.display().to_string(), throttle, &progress),
            array: Array::new(mount),
            shipment: seal.shipment,
            block_bytes: shipment.block_bytes,
            keys,
            packs: Arc::new(sealed_packs(&seal)),
            engine: context.engine,
        };
        let zeros = ZeroLeaves::open(context.ledger.state(), shipment.block_bytes)?;
        let generations = disks.iter().map(|sealed| generation(&catalogue, sealed)).collect::<Result<Vec<_>>>()?;
        let encrypted = shipment.suite != Suite::Plaintext;
        let whole = Shipment::new(records, encrypted, catalogue, zeros, throttle.clone(), progress.clone());
        let mut exports = BTreeMap::new();
        for (slot, (sealed, generation)) in disks.iter().zip(generations).enumerate() {
            let name = progress.disks[slot].name.clone();
            let geometry = Geometry::new(sealed.bytes, sealed.block_bytes)?;
            let wanted = Wanted { slot, name: name.clone(), generation, geometry, pick: Pick::From(0) };
            exports.insert(name, Arc::new(whole.export(wanted)));
        }
        Ok(Sealed { progress, exports, shipment: whole, _lock: lock })
    }

    /// Blocks that were asked for and could not be proven, the first 10000, by MACHINE/DISK.
    pub fn damaged(&self) -> Vec<(String, Damage)> {
        let named = |(slot, damage): (usize, Damage)| (self.progress.disks[slot].name.clone(), damage);
        self.shipment.damaged().into_iter().map(named).collect()
    }
}

fn generation(catalogue: &Catalogue, sealed: &SealedDisk) -> Result<Generation> {
    let found = catalogue.generations()?.into_iter().find(|g| g.disk == sealed.id && g.number == sealed.generation);
    let (machine, disk) = (&sealed.machine, &sealed.disk);
    found.ok_or_else(|| {
        Error::untrusted(format!("Manifest: expected the sealed generation of {machine}/{disk}, found none"))
    })
}
