//! Volumes in a pool of Ceph.

use super::Volume;
use super::completed::Completed;
use super::demand::{Demand, Need, ToMake};
use super::layer::Layer;
use super::served::Served;
use super::store::{Found, Landed, Owner, Store, mark, no_recovery_point, of_another};
use crate::copy::patience::Medium;
use crate::error::{Error, Result};
use crate::io::Access;
use crate::openstack::server::ServerPlan;
use crate::rbd::{Info, Pool};
use crate::source::{Identity, SourceKind};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// The image of one disk.
pub struct RbdStore {
    pool: Pool,
    owner: Owner,
    image: String,
}

impl RbdStore {
    /// In `pool`, under a name that tells people whose it is and no other disk has.
    pub fn new(pool: Pool, owner: Owner) -> RbdStore {
        let plain = |name: &str| -> String {
            let keep = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
            name.chars().take(60).map(keep).collect()
        };
        let image = format!("motiongear.{}.{}.{}", plain(&owner.machine), plain(&owner.disk_name), owner.disk);
        RbdStore { pool, owner, image }
    }

    fn identity(&self, info: &Info) -> Identity {
        Identity::of_export(SourceKind::Rbd, format!("{}/{}", self.pool.name, info.id), info.size, None)
    }
}

impl Store for RbdStore {
    fn kind(&self) -> &'static str {
        "rbd"
    }

    fn location(&self) -> String {
        format!("rbd:{}", self.pool.spec(&self.image))
    }

    fn find(&self) -> Result<Option<Found>> {
        let Some(info) = self.pool.info(&self.image, None)? else {
            // A pool that is not there looks alike.
            return self.pool.check().map(|()| None);
        };
        let ledger = self.pool.mark_of(&self.image, &mark("ledger"))?;
        let site = self.pool.mark_of(&self.image, &mark("site"))?;
        let marks = ["seal", "shipment", "generation"].map(|key| (key, self.pool.mark_of(&self.image, &mark(key))));
        let mut known = BTreeMap::new();
        for (key, value) in marks {
            known.insert(key, value?);
        }
        let completed = Completed::of_marks(|key| known.get(key).cloned().flatten());
        Ok(Some(Found { identity: self.identity(&info), bytes: info.size, ledger, site, completed }))
    }

    fn demand(&self, volumes: &[ToMake]) -> Result<Demand> {
        let room = format!("Ceph pool {}", self.pool);
        let Some(usage) = self.pool.usage()? else {
            let notes = vec![format!("{room}: how much room it has was not looked at: 'ceph df' does not tell")];
            return Ok(Demand { notes, ..Demand::default() });
        };
        // Images are thin: what is zero takes no room. What others were promised and did not use yet nobody knows.
        let wanted = volumes.iter().fold(0u64, |sum, volume| sum.saturating_add(volume.data));
        let (used, most) = (usage.stored, usage.stored.saturating_add(usage.free));
        let thing = "room for N more bytes".to_owned();
        let next = "a full pool stops all who write to it: add OSDs or raise its quota, or import fewer disks with --machine or --disk";
        Ok(Demand { needs: vec![Need { room, thing, wanted, used, most, next }], notes: Vec::new() })
    }

    fn expect_server(&self, _: &str, _: &ServerPlan) -> Result<Vec<String>> {
        // Ceph knows of no servers; which cloud is meant the plan does not say.
        Ok(Vec::new())
    }

    fn room(&self) -> String {
        self.pool.to_string()
    }

    fn create(&self, bytes: u64) -> Result<()> {
        self.pool.create(&self.image, bytes)?;
        if let Some(found) = self.find()?.filter(|found| !found.may_be_of(&self.owner)) {
            return Err(of_another(&self.location(), &found));
        }
        let marks = self.owner.marks();
        marks.iter().try_for_each(|(key, value)| self.pool.mark(&self.image, key, value))
    }

    fn makes_zeros(&self) -> bool {
        true
    }

    fn open(&self, medium: Option<Medium>) -> Result<Arc<dyn Volume>> {
        let info = self.pool.info(&self.image, None)?.ok_or_else(|| {
            Error::failed(format!("Volume {}: expected an image, found none", self.location()))
                .next("somebody removed it: import everything again with --overwrite")
        })?;
        if self.pool.mark_of(&self.image, &mark("ledger"))? != Some(self.owner.ledger.to_string()) {
            self.owner.marks().iter().try_for_each(|(key, value)| self.pool.mark(&self.image, key, value))?;
        }
        let server = self.pool.serve(&self.image, None, Access::Write)?;
        Ok(Arc::new(Served::open(server, self.location(), self.identity(&info), None, medium)?))
    }

    fn hand_over(&self, landed: &Landed) -> Result<String> {
        for (key, value) in landed.marks() {
            self.pool.mark(&self.image, &key, &value)?;
        }
        let name = landed.recovery_point();
        self.pool.snapshot(&self.image, &name)?;
        Ok(format!("{}@{name}", self.pool.spec(&self.image)))
    }

    fn has_point(&self, point: &str) -> Result<bool> {
        Ok(self.pool.info(&self.image, Some(point))?.is_some())
    }

    fn remove(&self, identity: &Identity) -> Result<()> {
        match self.find()? {
            Some(found) if identity.same_volume(&found.identity).is_ok() => self.pool.remove(&self.image),
            _ => Err(Error::failed(format!(
                "Volume {}: expected {}, found another",
                self.location(),
                identity.summary()
            ))),
        }
    }

    fn make_clone(&self, point: &str, _: Uuid) -> Result<()> {
        self.pool.info(&self.image, Some(point))?.map(drop).ok_or_else(|| no_recovery_point(&self.location(), point))
    }

    fn open_clone(&self, point: &str, drill: Uuid) -> Result<Layer> {
        self.make_clone(point, drill)?;
        let mut disk = self.pool.block_options(&self.image, Some(point));
        disk["read-only"] = true.into();
        Ok(Layer::below(disk))
    }

    fn end_clone(&self, _: Uuid) -> Result<bool> {
        // What is written lies in a file of the drill's; a snapshot that is read holds nothing.
        Ok(false)
    }
}
