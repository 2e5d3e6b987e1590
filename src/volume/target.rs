//! What `--to` says.

use crate::error::{Error, Result};
use motiongear_manifest::names::check_name;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where disks are imported to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Sparse raw files `PATH/SITE/MACHINE/DISK.raw`.
    Dir(PathBuf),
    /// A device or existing file for each disk, by (machine, disk).
    Dev(BTreeMap<(String, String), PathBuf>),
}

/// What sort of volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A raw file that MotionGear makes.
    Dir,
    /// A block device or file that somebody else made.
    Dev,
}

impl Kind {
    /// As in the ledger and in targets.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Dir => "dir",
            Kind::Dev => "dev",
        }
    }
}

/// Where one disk's volume is or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What sort.
    pub kind: Kind,
    /// The file or device.
    pub path: PathBuf,
}

impl Target {
    /// Reads `--to` values: one `dir:PATH`, or any number of `dev:MACHINE/DISK=PATH`.
    ///
    /// # Errors
    /// A usage error that shows the accepted forms.
    pub fn parse<S: AsRef<str>>(values: &[S]) -> Result<Target> {
        let usage = |text: &str, why: &str| {
            Error::usage(format!("Target '{text}': expected dir:PATH or dev:MACHINE/DISK=/dev/…, found {why}"))
        };
        let mut devices = BTreeMap::new();
        for text in values.iter().map(AsRef::as_ref) {
            if let Some(path) = text.strip_prefix("dir:") {
                if path.is_empty() {
                    return Err(usage(text, "no path"));
                }
                if values.len() > 1 {
                    return Err(usage(text, "more than one target"));
                }
                return Ok(Target::Dir(PathBuf::from(path)));
            }
            let Some(rest) = text.strip_prefix("dev:") else { return Err(usage(text, "another kind of target")) };
            let split = rest.split_once('=').and_then(|(disk, path)| Some((disk.split_once('/')?, path)));
            let Some(((machine, disk), path)) = split else { return Err(usage(text, "no MACHINE/DISK=PATH")) };
            if path.is_empty() {
                return Err(usage(text, "no path"));
            }
            for (what, name) in [("Machine name", machine), ("Disk name", disk)] {
                check_name(what, name).map_err(|e| Error::usage(e.to_string()))?;
            }
            if devices.insert((machine.to_owned(), disk.to_owned()), PathBuf::from(path)).is_some() {
                return Err(Error::usage(format!(
                    "Target '{text}': expected one volume for {machine}/{disk}, found two"
                )));
            }
        }
        if devices.is_empty() {
            return Err(Error::usage("Target: expected --to dir:PATH or --to dev:MACHINE/DISK=/dev/…, found none"));
        }
        Ok(Target::Dev(devices))
    }

    /// Where a disk goes; `None` where no device was named for it. Names come validated from the manifest, so none of them
    /// can lead out of the directory.
    pub fn place(&self, site: &str, machine: &str, disk: &str) -> Option<Place> {
        match self {
            Target::Dir(root) => {
                let path = root.join(site).join(machine).join(format!("{disk}.raw"));
                Some(Place { kind: Kind::Dir, path })
            }
            Target::Dev(devices) => {
                let path = devices.get(&(machine.to_owned(), disk.to_owned()))?.clone();
                Some(Place { kind: Kind::Dev, path })
            }
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Dir(root) => write!(f, "dir:{}", root.display()),
            Target::Dev(devices) => {
                let all =
                    devices.iter().map(|((machine, disk), path)| format!("dev:{machine}/{disk}={}", path.display()));
                f.write_str(&all.collect::<Vec<_>>().join(" "))
            }
        }
    }
}

/// The file beside a raw file that says whose it is.
pub fn sidecar_of(raw: &Path) -> PathBuf {
    let mut name = raw.as_os_str().to_owned();
    name.push(".motiongear.json");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_as_people_type_them() {
        assert_eq!(Target::parse(&["dir:/srv"]).unwrap(), Target::Dir("/srv".into()));
        let two = Target::parse(&["dev:db01/sda=/dev/vdb", "dev:db01/sdb=/dev/disk/by-id/x=y"]).unwrap();
        assert_eq!(two.place("s", "db01", "sdb").unwrap().path, Path::new("/dev/disk/by-id/x=y"));
        assert_eq!(two.place("s", "db01", "sdc"), None);
        let bad: [&[&str]; 8] = [
            &[],
            &["/srv"],
            &["dir:"],
            &["dir:/a", "dir:/b"],
            &["dev:db01=/dev/x"],
            &["dev:a/b="],
            &["dev:a/..=/dev/x"],
            &["dev:a/b=/dev/x", "dev:a/b=/dev/y"],
        ];
        for values in bad {
            assert!(Target::parse(values).is_err(), "{values:?}");
        }
        let dir = Target::parse(&["dir:/srv"]).unwrap();
        assert_eq!(dir.place("农信社", "db01", "sda").unwrap().path, Path::new("/srv/农信社/db01/sda.raw"));
        assert_eq!(sidecar_of(Path::new("/a/b.raw")), Path::new("/a/b.raw.motiongear.json"));
    }
}
