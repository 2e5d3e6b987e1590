//! What a monitor says of the machine's disks.

use super::{Drive, OURS, Qmp};
use crate::error::{Error, Result};
use crate::nbd::wire::text;
use crate::units;
use serde::Deserialize;
use serde_json::json;

/// Disks of one machine that are looked at.
const MOST_DISKS: usize = 1024;

/// The disks of a machine.
pub struct Machine {
    /// In QEMU's order; drives without a medium are none.
    pub disks: Vec<Disk>,
}

/// A disk as QEMU has it.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Names that somebody gave it, the best first: its device's, its block backend's, its node's.
    pub names: Vec<String>,
    /// Where its device stands among QEMU's objects.
    pub device: Option<String>,
    /// The node that the device reads and writes.
    pub node: String,
    /// `qcow2`, `raw` …
    pub format: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// Whether a bitmap can outlive this QEMU in it.
    pub keeps_bitmaps: bool,
    /// The node's dirty bitmaps.
    pub bitmaps: Vec<KnownBitmap>,
}

/// A dirty bitmap as QEMU has it.
#[derive(Debug, Clone, Deserialize)]
pub struct KnownBitmap {
    /// Unnamed ones belong to jobs.
    #[serde(default)]
    pub name: String,
    /// Bytes for each bit.
    pub granularity: u64,
    /// Whether it notes what is written now.
    #[serde(default)]
    pub recording: bool,
    /// Whether a job or an export uses it.
    #[serde(default)]
    pub busy: bool,
    /// Whether QEMU was not able to keep it up: it says nothing then.
    #[serde(default)]
    pub inconsistent: bool,
}

#[derive(Deserialize)]
struct Backend {
    #[serde(default)]
    device: String,
    qdev: Option<String>,
    inserted: Option<Inserted>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    node_name: Option<String>,
    drv: String,
    image: Image,
    #[serde(default)]
    dirty_bitmaps: Vec<KnownBitmap>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
    format_specific: Option<serde_json::Value>,
}

impl Machine {
    /// Asks for the disks.
    ///
    /// # Errors
    /// As [`Qmp::ask`]; more than a machine has.
    pub fn look(qmp: &mut Qmp) -> Result<Machine> {
        let backends: Vec<Backend> = qmp.ask("query-block", json!({}))?;
        if backends.len() > MOST_DISKS {
            return Err(qmp.wrong(&format!("at most {MOST_DISKS} disks"), backends.len()));
        }
        Ok(Machine { disks: backends.into_iter().filter_map(Disk::of).collect() })
    }

    /// The disk that `drive` means.
    ///
    /// # Errors
    /// There is none of this name, or several: says which there are.
    pub fn find(&self, drive: &Drive) -> Result<&Disk> {
        let wanted = drive.disk.as_str();
        let known = |disk: &&Disk| {
            disk.names.iter().any(|name| name == wanted)
                || disk.node == wanted
                || disk.device.as_deref() == Some(wanted)
        };
        let mut found = self.disks.iter().filter(known);
        match (found.next(), found.next()) {
            (Some(disk), None) => Ok(disk),
            (one, _) => {
                let found = match (wanted, one) {
                    ("", _) => "none".to_owned(),
                    (wanted, None) => wanted.to_owned(),
                    (wanted, Some(_)) => format!("{wanted}, which is the name of several"),
                };
                let disks: Vec<String> = self.disks.iter().map(Disk::described).collect();
                let disks = if disks.is_empty() { "it has none".into() } else { disks.join(", ") };
                Err(Error::usage(format!("Source {drive}: expected a disk of this machine ({disks}), found {found}"))
                    .next(format!("write qmp:{}#NAME", drive.socket.display())))
            }
        }
    }
}

impl Disk {
    fn of(backend: Backend) -> Option<Disk> {
        let Inserted { node_name, drv, image, dirty_bitmaps } = backend.inserted?;
        let node = node_name?;
        let given = backend.qdev.as_deref().and_then(device_name);
        let chosen = [given, Some(backend.device.as_str()), Some(node.as_str())];
        let named = |name: &&str| !name.is_empty() && !name.starts_with('#') && !name.starts_with(OURS);
        let names = chosen.into_iter().flatten().filter(named).map(str::to_owned).collect();
        let device = backend.qdev.map(|qdev| match qdev.starts_with('/') {
            true => qdev,
            false => format!("/machine/peripheral/{qdev}"),
        });
        // The first version of qcow2 that has room for bitmaps calls itself 1.1.
        let old = image.format_specific.is_some_and(|format| format.pointer("/data/compat") == Some(&"0.10".into()));
        let keeps_bitmaps = drv == "qcow2" && !old;
        Some(Disk {
            names,
            device,
            node,
            format: drv,
            bytes: image.virtual_size,
            keeps_bitmaps,
            bitmaps: dirty_bitmaps,
        })
    }

    /// What it is called when nobody says how.
    pub fn name(&self) -> &str {
        self.names.first().or(self.device.as_ref()).unwrap_or(&self.node)
    }

    fn described(&self) -> String {
        text(format!("{}: {} {}", self.name(), self.format, units::size(self.bytes)).as_bytes())
    }
}

/// What somebody called the device, of its id or of its path among QEMU's objects.
fn device_name(qdev: &str) -> Option<&str> {
    match qdev.strip_prefix("/machine/peripheral/") {
        Some(rest) => rest.split('/').next(),
        None => (!qdev.starts_with('/')).then_some(qdev),
    }
}
