//! Where the array is: its mount point, medium and file system, and what else lies there.

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::source::device::{carriers, mounts};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Most other names that are listed.
const MAX_OTHERS: usize = 20;

/// Where the erased array was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ErasedPlace {
    /// As typed, without links.
    pub array: String,
    /// Where its file system is mounted.
    pub mount_point: String,
    /// Type of that file system.
    pub file_system: String,
    /// What is mounted there.
    pub device: String,
    /// Serial numbers of the disks below, as far as the system knows them.
    pub serials: Vec<String>,
    /// It is the system's own disk.
    pub system_disk: bool,
    /// What else lies at the top of that file system: the first names. Nothing of it was touched.
    pub others: Vec<String>,
    /// How many names those are in all.
    pub other_names: u64,
}

impl ErasedPlace {
    /// Looks.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn of(context: &Context, array: &Path) -> Result<ErasedPlace> {
        let path = array.canonicalize().context(|| format!("Array {}", array.display()))?;
        let device =
            |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).context(|| path.display().to_string());
        let all = mounts(&context.sys);
        let mount = all.iter().filter(|m| path.starts_with(&m.at)).max_by_key(|m| m.at.as_os_str().len());
        let mut place = ErasedPlace {
            array: path.display().to_string(),
            system_disk: device(&path)? == device(Path::new("/"))?,
            file_system: mount.map_or_else(|| "unknown".to_owned(), |m| m.file_system.clone()),
            device: mount.map(|m| m.source.clone()).unwrap_or_default(),
            ..ErasedPlace::default()
        };
        let serial = |device: crate::source::device::Device| {
            let whole = device.whole();
            let by_udev = whole.udev().get("ID_SERIAL_SHORT").cloned();
            by_udev.or_else(|| whole.attribute("serial")).or_else(|| whole.attribute("device/serial"))
        };
        place.serials = carriers(&context.sys, &path).into_iter().filter_map(serial).map(|s| plain(s.trim())).collect();
        place.serials.sort();
        place.serials.dedup();
        if let Some(mount) = mount {
            place.mount_point = mount.at.display().to_string();
            // On the way to the array: its own name, or that of the directory it is in.
            let own = path.strip_prefix(&mount.at).ok().and_then(|rest| rest.components().next());
            let own = own.map_or_else(|| "motiongear".into(), |first| first.as_os_str().to_owned());
            let names = std::fs::read_dir(&mount.at).context(|| format!("Directory {}", mount.at.display()))?;
            let mut others: Vec<String> = names
                .flatten()
                .map(|entry| entry.file_name())
                .filter(|name| *name != own && name != "lost+found")
                .map(|name| plain(&name.to_string_lossy()))
                .collect();
            others.sort();
            place.other_names = others.len() as u64;
            others.truncate(MAX_OTHERS);
            place.others = others;
        }
        Ok(place)
    }

    /// Refuses the system's own disk unless it is meant: an array that is not mounted leaves a directory there.
    ///
    /// # Errors
    /// It is not meant.
    pub fn check_system_disk(&self, allowed: bool) -> Result<()> {
        if !self.system_disk || allowed {
            return Ok(());
        }
        Err(Error::usage(format!("Array {}: it is a directory on the system disk, no mounted array", self.array))
            .next("mount the array first; if this directory is meant, add --allow-system-disk"))
    }
}

/// A name that others chose, in a document that people read.
fn plain(name: &str) -> String {
    name.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}
