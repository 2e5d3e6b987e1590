//! Volumes that MotionGear makes in a cloud, each for one disk: found again by whose they are, opened through a server of our own.

use super::Volume;
use super::completed::Completed;
use super::demand::{Demand, ToMake};
use super::layer::Layer;
use crate::copy::patience::Medium;
use crate::error::{Error, Result};
use crate::openstack::Session;
use crate::openstack::server::ServerPlan;
use crate::source::partition::Table;
use crate::source::{Facts, Identity};
use motiongear_manifest::documents::seal::SealedDisk;
use motiongear_manifest::tree::Digest;
use std::sync::Arc;
use uuid::Uuid;

/// What only Linux puts on a disk, as [`crate::source::Signature`] calls it.
const LINUX: [&str; 6] = ["ext", "xfs", "btrfs", "lvm", "swap", "luks"];

/// Where one disk's volume is made and kept.
///
/// Everything here may be asked for again after it was done, or half done: the answer is the same, and nothing is made twice.
pub trait Store: Send + Sync {
    /// As in the ledger and in targets: `rbd`, `cinder`.
    fn kind(&self) -> &'static str;
    /// How people find it: the same before it is made and ever after.
    fn location(&self) -> String;
    /// What is there by now.
    ///
    /// # Errors
    /// The cloud does not answer, or does not let us in.
    fn find(&self) -> Result<Option<Found>>;
    /// What it takes to make these volumes, before anything is made; called once for all disks of one [`Store::room`].
    ///
    /// # Errors
    /// There is no such volume type, or no such size; the cloud does not answer.
    fn demand(&self, volumes: &[ToMake]) -> Result<Demand>;
    /// Whether the cloud has what the machine is to be there; what people should know.
    ///
    /// # Errors
    /// It has not; it does not answer.
    fn expect_server(&self, machine: &str, plan: &ServerPlan) -> Result<Vec<String>>;
    /// Stores of the same text share their room.
    fn room(&self) -> String;
    /// Makes the volume, at least `bytes` large, and marks whose it is.
    ///
    /// # Errors
    /// The cloud refuses; another ledger has made one meanwhile.
    fn create(&self, bytes: u64) -> Result<()>;
    /// Whether a volume that was just made is known to be all zeros.
    fn makes_zeros(&self) -> bool;
    /// Opens it for writing. Whatever an earlier run left open is closed first.
    ///
    /// # Errors
    /// It is gone, somebody else has it, or there is no way to its bytes.
    fn open(&self, medium: Option<Medium>) -> Result<Arc<dyn Volume>>;
    /// Called when all of it is proven and it is closed again: says on the volume what it holds and takes the recovery point.
    /// Returns how the cloud calls that.
    ///
    /// # Errors
    /// The cloud refuses.
    fn hand_over(&self, landed: &Landed) -> Result<String>;
    /// Whether the recovery point `point` is there.
    ///
    /// # Errors
    /// The cloud does not answer; the volume is gone.
    fn has_point(&self, point: &str) -> Result<bool>;
    /// Removes the volume of this identity, whatever it holds, and what an earlier run left open there.
    ///
    /// # Errors
    /// It has recovery points, somebody uses it, or there is another one in its place.
    fn remove(&self, identity: &Identity) -> Result<()>;
    /// Makes the clone of the recovery point `point` that the drill `drill` boots, where the store has such; otherwise only looks
    /// whether there is that recovery point.
    ///
    /// # Errors
    /// There is none, or the cloud refuses.
    fn make_clone(&self, point: &str, drill: Uuid) -> Result<()>;
    /// Opens that clone, or the recovery point itself for reading only.
    ///
    /// # Errors
    /// It is gone, or there is no way to its bytes.
    fn open_clone(&self, point: &str, drill: Uuid) -> Result<Layer>;
    /// Removes the clone of a drill, with whatever was left open there. Says whether there was one.
    ///
    /// # Errors
    /// The cloud refuses.
    fn end_clone(&self, drill: Uuid) -> Result<bool>;
    /// The cloud whose servers can have its volumes, where it is one.
    fn session(&self) -> Option<&Arc<Session>> {
        None
    }
    /// The project of OpenStack that it is in, by its id.
    fn project(&self) -> Option<String> {
        self.session().map(|session| session.project())
    }
    /// How that cloud calls the clone of a drill, free for a server to take it.
    ///
    /// # Errors
    /// It is gone, or somebody has it; the store is in no cloud.
    fn clone_for_server(&self, point: &str, drill: Uuid) -> Result<String> {
        Err(Error::failed(format!(
            "Volume {}: expected a clone of {point} for drill {drill} in a cloud, found none there",
            self.location()
        )))
    }
}

/// A volume that is there.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it is bound by.
    pub identity: Identity,
    /// Its size.
    pub bytes: u64,
    /// The ledger that made it, as written on it; none where that was not written yet.
    pub ledger: Option<String>,
    /// The UUID of the site that it is of, likewise.
    pub site: Option<String>,
    /// By what it was completed last, as written on it.
    pub completed: Option<Completed>,
}

/// The disk that a volume is for.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The site's UUID.
    pub site: Uuid,
    /// For people.
    pub site_name: String,
    /// For people.
    pub machine: String,
    /// For people.
    pub disk_name: String,
    /// The disk's UUID: the volume is its own for ever.
    pub disk: Uuid,
    /// The ledger that makes it.
    pub ledger: Uuid,
}

impl Owner {
    /// `SITE/MACHINE/DISK`.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.site_name, self.machine, self.disk_name)
    }
}

/// What a volume holds once it is proven.
#[derive(Debug, Clone)]
pub struct Landed {
    /// The shipment.
    pub shipment: Uuid,
    /// Of the seal: its code as it stands in names.
    pub seal: String,
    /// Generation of the disk.
    pub generation: u32,
    /// Of the disk, by which the volume's first [`Self::bytes`] can be checked.
    pub digest: Digest,
    /// Size of the disk, which the volume may exceed.
    pub bytes: u64,
    /// Whether a machine may boot from it.
    pub bootable: bool,
    /// `uefi` or `bios`, where the partition table leaves no doubt.
    pub firmware: Option<&'static str>,
    /// `virtio` or `sata`, where the machine had it on one of them.
    pub bus: Option<&'static str>,
    /// `linux` or `windows`, by the file systems on it.
    pub system: Option<&'static str>,
    /// What its machine is to be, where a plan says so.
    pub server: Option<ServerPlan>,
    /// Bytes of a sector, where they are not 512: the volume makes sense only with such.
    pub sector_bytes: Option<u64>,
}

impl Landed {
    /// Of a sealed disk; `facts` is what the manifest has of it.
    pub fn new(shipment: Uuid, seal: String, sealed: &SealedDisk, facts: &str) -> Landed {
        // What cannot be read is not known.
        let sector_bytes = super::refuse::sector_bytes(facts).filter(|bytes| *bytes != 512);
        let facts: Facts = serde_json::from_str(facts).unwrap_or_default();
        let (uefi, bios) = facts.table.as_ref().map_or((false, false), Table::boots);
        let superblocks = facts.contents.iter().chain(facts.volumes.iter().flat_map(|volume| &volume.contents));
        let kinds: Vec<&str> = superblocks.map(|signature| signature.kind.as_str()).collect();
        let system = match kinds.contains(&"ntfs") {
            true => Some("windows"),
            false => kinds.iter().any(|kind| LINUX.iter().any(|linux| kind.starts_with(linux))).then_some("linux"),
        };
        Landed {
            shipment,
            seal,
            generation: sealed.generation,
            digest: sealed.digest,
            bytes: sealed.bytes,
            bootable: uefi || bios,
            firmware: match (uefi, bios) {
                (true, false) => Some("uefi"),
                (false, true) => Some("bios"),
                _ => None,
            },
            // Whether a machine has the drivers for another bus only somebody who looks into it can say.
            bus: match facts.transport.as_deref() {
                Some("virtio") => Some("virtio"),
                Some("sata") => Some("sata"),
                _ => None,
            },
            system,
            server: None,
            sector_bytes,
        }
    }

    /// The recovery point's name: the same whenever it is asked for, another for every seal.
    pub fn recovery_point(&self) -> String {
        recovery_point(self.generation, &self.seal)
    }

    /// What is written on the volume, for whoever finds it without the ledger.
    pub fn marks(&self) -> Vec<(String, String)> {
        [
            ("shipment", self.shipment.to_string()),
            ("seal", self.seal.clone()),
            ("generation", self.generation.to_string()),
            ("digest", self.digest.to_string()),
            ("bytes", self.bytes.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .chain(self.sector_bytes.map(|bytes| ("sector_bytes".to_owned(), bytes.to_string())))
        .chain(self.server.iter().flat_map(ServerPlan::pairs))
        .map(|(key, value)| (mark(&key), value))
        .collect()
    }
}

/// The name of the recovery point of a generation under a seal, whose code is as it stands in names.
pub fn recovery_point(generation: u32, seal: &str) -> String {
    format!("motiongear-gen{generation}-{}", seal.to_lowercase())
}

impl Found {
    /// Whether it is the owner's by what is written on it; one on which nothing is written yet may be.
    pub fn may_be_of(&self, owner: &Owner) -> bool {
        self.ledger.as_ref().is_none_or(|ledger| *ledger == owner.ledger.to_string())
    }
}

/// Refuses the volume of another site's disk.
///
/// # Errors
/// Untrusted: one disk has one site, for ever.
pub fn of_site(location: &str, found: &Found, owner: &Owner) -> Result<()> {
    match found.site.as_ref().filter(|site| **site != owner.site.to_string()) {
        None => Ok(()),
        Some(site) => Err(Error::untrusted(format!(
            "Volume {location}: expected one of site {} {}, found that of site {site}",
            owner.site_name, owner.site
        ))
        .next("another site claims this disk: keep the array, and ask both branches")),
    }
}

/// Somebody else made it.
pub fn of_another(location: &str, found: &Found) -> Error {
    let ledger = found.ledger.as_deref().unwrap_or("unknown");
    Error::failed(format!(
        "Volume {location}: expected one that this ledger made, found {}, made for this disk by ledger {ledger}",
        found.identity.summary()
    ))
    .next(
        "import at the host that has this ledger; only if its volume is not wanted any more, --overwrite takes it over",
    )
}

/// What was proven is not held there any more.
pub fn no_recovery_point(location: &str, point: &str) -> Error {
    Error::failed(format!("Volume {location}: expected its recovery point {point}, found none of that name"))
        .next("import its shipment again with --overwrite: all is written and read back, and the recovery point is taken again")
}

impl Owner {
    /// Whose it is, as written on the volume.
    pub fn marks(&self) -> Vec<(String, String)> {
        [
            ("disk", self.disk.to_string()),
            ("site", self.site.to_string()),
            ("ledger", self.ledger.to_string()),
            ("name", self.name()),
        ]
        .map(|(key, value)| (mark(key), value))
        .into()
    }
}

/// Keys of ours among those of others.
pub fn mark(key: &str) -> String {
    format!("motiongear_{key}")
}
