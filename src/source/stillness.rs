//! Whether a disk was written to between two looks: the size and times of the files that it lies in, the kernel's count of writes to
//! its device. An engineer may assert that a disk stands still while it is read; this says whether it did.

use super::device::{Device, SysRoot, mounts_of};
use super::{Origin, served};
use crate::error::{IoContext, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a disk looked like at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stillness {
    /// Of the boot in which writes were counted; counters begin again with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<String>,
    /// Sectors written to its device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written: Option<Vec<u64>>,
    /// The files that it lies in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileState>,
    /// Where it is mounted read-write.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mounted: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileState {
    path: PathBuf,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stillness {
    /// Why it cannot be said that nothing was written since `earlier`; none where nothing was.
    pub fn moved_since(&self, earlier: &Stillness) -> Option<String> {
        if earlier.written.is_some() && self.boot != earlier.boot {
            return Some("its host was booted since".into());
        }
        if self.written != earlier.written {
            return Some("it was written to: the write counter of its device moved".into());
        }
        if self.files.len() != earlier.files.len() {
            return Some("it lies in other files now".into());
        }
        let differ = |(now, before): &(&FileState, &FileState)| {
            (now.bytes, now.modified, now.changed) != (before.bytes, before.modified, before.changed)
        };
        if self.files.iter().zip(&earlier.files).any(|pair| differ(&pair)) {
            return Some("it was written to: size or times of its file changed".into());
        }
        // Of a file that is mounted its own times tell, as far as what is written reaches it.
        let counted = self.written.is_some() || !self.files.is_empty();
        let mounted = !(earlier.mounted.is_empty() && self.mounted.is_empty());
        (mounted && !counted).then(|| "it is mounted read-write, and nobody counts its writes".into())
    }
}

/// What to look at.
#[derive(Debug, Clone)]
pub struct Watch {
    origin: Origin,
    /// The file or device as it was found.
    resolved: PathBuf,
    bytes: u64,
    device: Option<Device>,
    /// The machine that serves it tells.
    served: bool,
    sys: SysRoot,
}

impl Watch {
    pub(super) fn new(
        (origin, resolved, bytes): (Origin, PathBuf, u64),
        device: Option<Device>,
        served: bool,
        sys: SysRoot,
    ) -> Watch {
        Watch { origin, resolved, bytes, device, served, sys }
    }

    /// Looks at it now; `None` where nobody can see whether it is written to: a bare export, a disk behind ssh.
    ///
    /// # Errors
    /// It is gone, or the machine that serves it does not answer.
    pub fn look(&self) -> Result<Option<Stillness>> {
        match (&self.origin, &self.device) {
            (Origin::Nbd(uri), _) if self.served => Ok(served::ask(uri, self.bytes)?.stillness),
            (Origin::Path(_), Some(device)) => self.device(device).map(Some),
            (Origin::Path(_), None) => {
                let files = vec![state(&self.resolved)?];
                let mounted =
                    Device::showing(&self.sys, &self.resolved).map_or_else(Vec::new, |device| self.mounted(&device));
                Ok(Some(Stillness { files, mounted, ..Stillness::default() }))
            }
            (Origin::Image(image), _) => {
                let files = image.chain()?.iter().map(|path| state(path)).collect::<Result<_>>()?;
                Ok(Some(Stillness { files, ..Stillness::default() }))
            }
            _ => Ok(None),
        }
    }

    fn device(&self, device: &Device) -> Result<Stillness> {
        if self.sys.is_live() {
            // What was written through the page cache before is counted before; O_DIRECT reads would write it in the middle of the copy.
            let node = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&self.resolved);
            let node = node.context(|| format!("Source {}", self.origin))?;
            // A device that cannot be flushed is a matter of its writers.
            let _ = node.sync_data();
        }
        let backing = device.backing_file().map(|file| state(&self.sys.path(&file.to_string_lossy())));
        Ok(Stillness {
            boot: self.sys.text("proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()),
            written: device.written(),
            // A loop device may show a file that is deleted.
            files: backing.and_then(Result::ok).into_iter().collect(),
            mounted: self.mounted(device),
        })
    }

    fn mounted(&self, device: &Device) -> Vec<PathBuf> {
        let mounts = mounts_of(&self.sys, &device.and_above());
        mounts.into_iter().filter(|mount| !mount.read_only).map(|mount| mount.at).collect()
    }
}

fn state(path: &Path) -> Result<FileState> {
    let meta = std::fs::metadata(path).context(|| format!("Source {}", path.display()))?;
    Ok(FileState {
        path: path.to_owned(),
        bytes: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_a_boot_a_time_or_an_uncounted_mount_says_that_it_moved() {
        let device = |boot: &str, writes: u64| Stillness {
            boot: Some(boot.into()),
            written: Some(vec![writes, 8]),
            mounted: vec!["/srv".into()],
            ..Stillness::default()
        };
        assert_eq!(device("a", 1).moved_since(&device("a", 1)), None, "mounted, and nothing was written");
        assert!(device("a", 2).moved_since(&device("a", 1)).is_some());
        assert!(device("b", 1).moved_since(&device("a", 1)).is_some());
        let uncounted = Stillness { written: None, ..device("a", 1) };
        assert!(uncounted.moved_since(&uncounted).is_some());
        let file = |seconds: i64| {
            let (modified, changed) = ((seconds, 0), (1, 0));
            Stillness {
                files: vec![FileState { path: "/a".into(), bytes: 1, modified, changed }],
                ..Stillness::default()
            }
        };
        assert_eq!(file(1).moved_since(&file(1)), None);
        assert!(file(2).moved_since(&file(1)).is_some() && Stillness::default().moved_since(&file(1)).is_some());
    }
}
