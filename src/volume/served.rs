//! A volume behind a server of our own.

use super::{NbdVolume, Volume};
use crate::copy::patience::{Medium, Patient};
use crate::error::Result;
use crate::io::Engine;
use crate::nbd::{Server, VOLUME};
use crate::source::{Identity, SysRoot};
use std::any::Any;

/// An opened volume of a store. Dropped in this order: the sessions, their server, and what made its bytes reachable.
pub struct Served {
    export: NbdVolume,
    _server: Server,
    /// Dropped when nothing uses the volume any more: an attachment.
    _way: Option<Box<dyn Any + Send + Sync>>,
    identity: Identity,
}

impl Served {
    /// Connects to the volume that `server` offers, and calls it `name`.
    ///
    /// # Errors
    /// As [`NbdVolume::open`].
    pub fn open(
        server: Server,
        name: String,
        identity: Identity,
        way: Option<Box<dyn Any + Send + Sync>>,
        medium: Option<Medium>,
    ) -> Result<Served> {
        let export = NbdVolume::open(&server.uri(VOLUME))?.called(name);
        let export = match medium {
            Some(medium) => export.watched(medium),
            None => export,
        };
        Ok(Served { export, _server: server, _way: way, identity })
    }
}

impl Volume for Served {
    fn name(&self) -> String {
        self.export.name()
    }
    fn bytes(&self) -> u64 {
        self.export.bytes()
    }
    fn identity(&self, _: &SysRoot) -> Result<Identity> {
        Ok(self.identity.clone())
    }
    fn depth(&self) -> usize {
        self.export.depth()
    }
    fn writer(&self, engine: Engine, depth: usize) -> Result<Patient> {
        self.export.writer(engine, depth)
    }
    fn reader(&self, engine: Engine, depth: usize) -> Result<Patient> {
        self.export.reader(engine, depth)
    }
    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.export.write_zeroes(offset, bytes)
    }
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.export.next_data(offset)
    }
    fn flush(&self) -> Result<()> {
        self.export.flush()
    }
    fn through_cache(&self) -> bool {
        // The server is told to keep none (librbd's, libiscsi's). What Ceph or an array keeps is to it what its cache is to a disk.
        false
    }
    fn is_lost(&self) -> bool {
        self.export.is_lost()
    }
}
