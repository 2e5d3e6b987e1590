//! What earlier shipments of a site called its machines and disks: they keep their UUIDs, or the data centre would take the
//! second shipment of a disk for another disk and refuse its volume.

use crate::error::{Error, Result};
use crate::ledger::Ledger;
use crate::source::{Identity, Source};
use motiongear_manifest::catalogue::{Catalogue, Disk, Machine};
use motiongear_manifest::documents::shipment::Shipment;
use std::path::Path;
use uuid::Uuid;

/// Machines with their disks, those of the newest shipment first.
#[derive(Default)]
pub struct Earlier(Vec<(Machine, Vec<Disk>)>);

impl Earlier {
    /// From the manifests in this state directory of all other shipments of the site. What was moved to another host is not
    /// here any more, and counts there.
    ///
    /// # Errors
    /// The ledger or one of the manifests cannot be read.
    pub fn of(ledger: &Ledger, shipment: &Shipment) -> Result<Earlier> {
        let mut earlier = Earlier::default();
        for other in ledger.shipments()?.into_iter().rev() {
            let live = ledger.shipment_dir(other.uuid).join("manifest.db");
            if other.uuid != shipment.shipment && other.site == shipment.site.name && live.exists() {
                earlier.read(&live).map_err(|error| {
                    Error::failed(format!("Manifest of an earlier shipment, {}: what it called the disks", live.display()))
                        .because(error)
                        .next("restore the file; or move it away, and name the disks' UUIDs in a plan file if they are shipped again")
                })?;
            }
        }
        Ok(earlier)
    }

    fn read(&mut self, live: &Path) -> Result<()> {
        let catalogue = Catalogue::open_reader(live)?;
        let disks = catalogue.disks()?;
        for machine in catalogue.machines()? {
            let disks = disks.iter().filter(|disk| disk.machine == machine.number).cloned().collect();
            self.0.push((machine, disks));
        }
        Ok(())
    }

    /// The UUID of a machine of this name.
    pub fn machine(&self, name: &str) -> Option<Uuid> {
        self.0.iter().find(|(machine, _)| machine.name == name).map(|(machine, _)| machine.uuid)
    }

    /// The UUID of the machine's disk of this name, if it is the same disk: one that took its place is another.
    pub fn disk(&self, machine: &str, name: &str, source: &Source) -> Option<Uuid> {
        let same = |disk: &&Disk| {
            disk.name == name
                && serde_json::from_str::<Identity>(&disk.identity)
                    .is_ok_and(|known| source.expect_identity(&known).is_ok())
        };
        let machines = self.0.iter().filter(|(known, _)| known.name == machine);
        machines.flat_map(|(_, disks)| disks).find(same).map(|disk| disk.uuid)
    }
}
