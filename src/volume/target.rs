//! What `--to` says.

use super::Place;
use crate::error::{Error, Result};
use crate::source::Origin;
use motiongear_manifest::names::check_name;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The forms of a target for one disk.
const FORMS: &str = "dir:PATH, dev:MACHINE/DISK=/dev/… or nbd:MACHINE/DISK=URI";

/// Where disks are imported to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Sparse raw files `PATH/SITE/MACHINE/DISK.raw`.
    Dir(PathBuf),
    /// A device, existing file or export for each disk, by (machine, disk).
    Each(BTreeMap<(String, String), Place>),
}

impl Target {
    /// Reads `--to` values: one `dir:PATH`, or any number of `dev:MACHINE/DISK=PATH` and `nbd:MACHINE/DISK=URI`.
    ///
    /// # Errors
    /// A usage error that shows the accepted forms.
    pub fn parse<S: AsRef<str>>(values: &[S]) -> Result<Target> {
        let usage = |text: &str, why: &str| Error::usage(format!("Target '{text}': expected {FORMS}, found {why}"));
        let mut each = BTreeMap::new();
        for text in values.iter().map(AsRef::as_ref) {
            let Some((kind, rest)) = text.split_once(':') else { return Err(usage(text, "another kind of target")) };
            if kind == "dir" {
                if rest.is_empty() {
                    return Err(usage(text, "no path"));
                }
                if values.len() > 1 {
                    return Err(usage(text, "more than one target"));
                }
                return Ok(Target::Dir(PathBuf::from(rest)));
            }
            if !["dev", "nbd"].contains(&kind) {
                return Err(usage(text, "another kind of target"));
            }
            let split = rest.split_once('=').and_then(|(disk, at)| Some((disk.split_once('/')?, at)));
            let Some(((machine, disk), at)) = split else { return Err(usage(text, "no MACHINE/DISK=")) };
            if at.is_empty() {
                return Err(usage(text, "nothing behind the ="));
            }
            let place = match (kind, Origin::typed(at)?) {
                ("dev", Origin::Path(path)) => Place::Device(path),
                ("nbd", Origin::Nbd(uri)) => Place::Export(uri),
                ("dev", _) => return Err(usage(text, "no path")),
                _ => return Err(usage(text, "no URI such as nbd+unix:///?socket=…")),
            };
            for (what, name) in [("Machine name", machine), ("Disk name", disk)] {
                check_name(what, name).map_err(|e| Error::usage(e.to_string()))?;
            }
            if each.insert((machine.to_owned(), disk.to_owned()), place).is_some() {
                return Err(Error::usage(format!(
                    "Target '{text}': expected one volume for {machine}/{disk}, found two"
                )));
            }
        }
        if each.is_empty() {
            return Err(Error::usage(format!("Target: expected --to {FORMS}, found none")));
        }
        Ok(Target::Each(each))
    }

    /// Where a disk goes; `None` where nothing was named for it. Names come validated from the manifest, so none of them
    /// can lead out of the directory.
    pub fn place(&self, site: &str, machine: &str, disk: &str) -> Option<Place> {
        match self {
            Target::Dir(root) => Some(Place::File(root.join(site).join(machine).join(format!("{disk}.raw")))),
            Target::Each(each) => each.get(&(machine.to_owned(), disk.to_owned())).cloned(),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Dir(root) => write!(f, "dir:{}", root.display()),
            Target::Each(each) => {
                let all = each.iter().map(|((machine, disk), at)| format!("{}:{machine}/{disk}={at}", at.kind()));
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
        assert_eq!(two.place("s", "db01", "sdb"), Some(Place::Device("/dev/disk/by-id/x=y".into())));
        assert_eq!(two.place("s", "db01", "sdc"), None);
        let uri = "nbd+unix:///vda?socket=/run/nbd.sock";
        let mixed = Target::parse(&[format!("nbd:db01/sda={uri}"), "dev:db01/sdb=/dev/vdb".into()]).unwrap();
        assert_eq!(mixed.place("s", "db01", "sda").unwrap().to_string(), uri);
        assert_eq!(mixed.to_string(), format!("nbd:db01/sda={uri} dev:db01/sdb=/dev/vdb"));
        let bad: [&[&str]; 11] = [
            &[],
            &["/srv"],
            &["dir:"],
            &["dir:/a", "dir:/b"],
            &["dev:db01=/dev/x"],
            &["dev:a/b="],
            &["dev:a/..=/dev/x"],
            &["dev:a/b=/dev/x", "dev:a/b=/dev/y"],
            &["dev:a/b=nbd://host/vda"],
            &["nbd:a/b=/dev/x"],
            &["nbd:a/b=nbd+unix:///?socket=relative"],
        ];
        for values in bad {
            assert!(Target::parse(values).is_err(), "{values:?}");
        }
        let dir = Target::parse(&["dir:/srv"]).unwrap();
        assert_eq!(dir.place("农信社", "db01", "sda"), Some(Place::File("/srv/农信社/db01/sda.raw".into())));
        assert_eq!(sidecar_of(Path::new("/a/b.raw")), Path::new("/a/b.raw.motiongear.json"));
    }
}
