//! From what was wished for a disk to the place of its volume.

use super::cinder::{CinderStore, Where};
use super::rbd::RbdStore;
use super::store::Owner;
use super::target::{Target, Wish, raw_file};
use super::{Place, Store};
use crate::context::Context;
use crate::copy::patience::Medium;
use crate::copy::throttle::{Limits, Throttle};
use crate::error::{Error, Result};
use crate::job::Signals;
use crate::ledger::Ledger;
use crate::ledger::centre::{ImportRow, VolumeRow};
use crate::monitor::{MediumKind, Progress, Watch};
use crate::openstack::{Cloud, Session};
use crate::rbd::Pool;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Logs in to each project of each cloud once.
pub struct Places<'a> {
    context: &'a Context,
    sessions: BTreeMap<(String, Option<String>), Arc<Session>>,
}

impl<'a> Places<'a> {
    /// Nothing is asked of a cloud yet.
    pub fn new(context: &'a Context) -> Places<'a> {
        Places { context, sessions: BTreeMap::new() }
    }

    /// Where the volume of `owner` is or will be.
    ///
    /// # Errors
    /// A relative path in a working directory that is gone; a cloud that is not known or does not let us in.
    pub fn of(&mut self, wish: &Wish, owner: Owner) -> Result<Place> {
        match wish {
            Wish::Dir(root) => {
                Place::File(raw_file(root, &owner.site_name, &owner.machine, &owner.disk_name)).absolute()
            }
            Wish::Device(path) => Place::Device(path.clone()).absolute(),
            Wish::Export(uri) => Ok(Place::Export(uri.clone())),
            Wish::Pool(pool) => Ok(stored(RbdStore::new(Pool::clone(pool), owner))),
            Wish::Cloud(wanted) => {
                let session = self.session(wanted)?;
                let known = self.context.ledger.volume(owner.disk)?;
                let store = CinderStore::new(session.clone(), wanted.clone(), owner, self.context);
                if let Some(row) = known.filter(|row| row.location == store.location()) {
                    in_project(&row, &session)?;
                }
                Ok(stored(store))
            }
        }
    }

    /// Where a volume is that the ledger knows: of a cloud as the import that filled it was told.
    ///
    /// # Errors
    /// As [`Places::of`]; the ledger does not tell.
    pub fn of_row(&mut self, ledger: &Ledger, row: &VolumeRow, import: &ImportRow) -> Result<Place> {
        if let Some(place) = Place::of_ledger(&row.kind, &row.location)? {
            return Ok(place);
        }
        let owner = Owner {
            site: row.site,
            site_name: row.site_name.clone(),
            machine: row.machine.clone(),
            disk_name: row.disk_name.clone(),
            disk: row.disk,
            ledger: ledger.uuid(),
        };
        for run in ledger.runs(import.shipment, import.seal, u32::MAX)?.iter().rev() {
            let Ok(target) = Target::read(&run.target) else { continue };
            let Some(wish) = target.wish(&row.machine, &row.disk_name).filter(|wish| wish.kind() == row.kind) else {
                continue;
            };
            let place = self.of(wish, owner.clone())?;
            if place.to_string() == row.location {
                return Ok(place);
            }
        }
        Err(Error::failed(format!(
            "Volume {}: expected the target of its import in the ledger, found none",
            row.location
        )))
    }

    /// Asks a cloud something before a job has begun: its silence is said, and Ctrl-C ends the waiting.
    ///
    /// # Errors
    /// What `call` returned; interrupted.
    pub fn patiently<T: Send + 'static>(
        &self,
        name: &str,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let throttle = Throttle::new(Limits::default());
        let _signals = Signals::new(&throttle)?;
        let _notes = Watch::notes(throttle.clone(), self.context.monitor.clone());
        let progress = Progress::new("look", Vec::new());
        let answer = Medium::new(MediumKind::Volume, name, &throttle, &progress).call(call)?;
        // One that came while it was asked is not lost.
        throttle.check()?;
        Ok(answer)
    }

    fn session(&mut self, wanted: &Where) -> Result<Arc<Session>> {
        let project = (wanted.cloud.clone(), wanted.project.clone());
        if let Some(session) = self.sessions.get(&project) {
            return Ok(session.clone());
        }
        let cloud = Cloud::find(&wanted.cloud, wanted.project.as_deref(), &self.context.clouds)?;
        let name = format!("cinder:{}", wanted.cloud);
        let session = Arc::new(self.patiently(&name, move || Session::open(cloud))?);
        self.sessions.insert(project, session.clone());
        Ok(session)
    }
}

/// Refuses a project in which the volume cannot be found: it was made in another one.
fn in_project(row: &VolumeRow, session: &Session) -> Result<()> {
    let here = session.project();
    match row.project.as_ref().filter(|made_in| **made_in != here) {
        None => Ok(()),
        Some(made_in) => Err(Error::failed(format!(
            "Volume {}: not found in this project, {} ({here}); it was made in project {made_in}",
            row.location,
            session.project_name()
        ))
        .next("log in where it was made: set OS_PROJECT_ID (project_id of clouds.yaml) to that project")),
    }
}

fn stored(store: impl Store + 'static) -> Place {
    Place::Stored(Arc::new(store))
}
