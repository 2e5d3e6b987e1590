//! What a drill's machine has instead of a volume: a way to bytes that may be written to without the volume ever knowing.

use super::Place;
use super::local::identity_of;
use super::{NbdVolume, Volume};
use crate::error::{Error, Result};
use crate::source::{Identity, SysRoot};
use serde_json::{Value, json};
use std::path::Path;
use uuid::Uuid;

/// The bytes of a recovery point, as QEMU is told to find them.
pub struct Layer {
    /// QEMU's block options.
    pub disk: Value,
    /// A clone in its own right, to be written to; otherwise it is read-only, and what is written must go elsewhere.
    pub writable: bool,
    /// Servers and ways that must live as long as somebody reads.
    pub held: Option<Box<dyn Send>>,
}

impl Layer {
    /// Read-only, by options alone.
    pub fn below(disk: Value) -> Layer {
        Layer { disk, writable: false, held: None }
    }
}

impl Place {
    /// What is there now.
    ///
    /// # Errors
    /// Nothing is; a server or a cloud does not answer.
    pub fn identity(&self, sys: &SysRoot) -> Result<Identity> {
        match self {
            Place::File(path) | Place::Device(path) => identity_of(path, sys),
            Place::Export(uri) => NbdVolume::open(uri)?.identity(sys),
            Place::Stored(store) => store.find()?.map(|found| found.identity).ok_or_else(|| {
                Error::failed(format!("Volume {}: expected it there, found none", store.location()))
                    .next("somebody removed it: import everything again with --overwrite")
            }),
        }
    }

    /// Whether its recovery points are views of their own, which later imports leave alone. Where not, the volume itself is the recovery
    /// point.
    pub fn has_recovery_points(&self) -> bool {
        self.store().is_some()
    }

    /// Makes what a drill needs of the recovery point `point`, where it takes more than opening it. May be asked again.
    ///
    /// # Errors
    /// There is no such recovery point; the cloud refuses; QEMU has no way there.
    pub fn make_clone(&self, point: &str, drill: Uuid) -> Result<()> {
        match self {
            Place::File(_) | Place::Device(_) => Ok(()),
            Place::Export(uri) => match uri.block_options() {
                Some(_) => Ok(()),
                None => Err(Error::failed(format!("Volume {uri}: expected an export without TLS, found one with it"))
                    .next("a drill's machine cannot speak TLS to it: export it read-only on a socket of this host")),
            },
            Place::Stored(store) => store.make_clone(point, drill),
        }
    }

    /// Opens the recovery point `point` for a drill, after [`Place::make_clone`].
    ///
    /// # Errors
    /// It is gone, or there is no way to its bytes.
    pub fn layer(&self, point: &str, drill: Uuid) -> Result<Layer> {
        let local =
            |driver: &str, path: &Path| Layer::below(json!({ "driver": driver, "filename": path, "read-only": true }));
        match self {
            Place::Export(uri) => match uri.block_options() {
                Some(options) => Ok(Layer::below(options)),
                None => self.make_clone(point, drill).map(|()| Layer::below(Value::Null)),
            },
            Place::Stored(store) => store.open_clone(point, drill),
            Place::File(path) => Ok(local("file", path)),
            Place::Device(path) if path.is_file() => Ok(local("file", path)),
            Place::Device(path) => Ok(local("host_device", path)),
        }
    }

    /// Removes what [`Place::make_clone`] made. Says whether there was something.
    ///
    /// # Errors
    /// The cloud refuses.
    pub fn end_clone(&self, drill: Uuid) -> Result<bool> {
        match self.store() {
            Some(store) => store.end_clone(drill),
            None => Ok(false),
        }
    }
}
