//! What `--to` says.

use super::cinder::Where;
use crate::error::{Error, Result};
use crate::nbd::Uri;
use crate::rbd::Pool;
use crate::source::Origin;
use motiongear_manifest::names::check_name;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The forms of a target.
const FORMS: &str = "dir:PATH, rbd:POOL or cinder:CLOUD for all disks; or for one MACHINE/DISK=… behind dev:, nbd:, rbd: or cinder:, or for all disks of a MACHINE=… behind rbd: or cinder:";

/// Where disks are imported to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every disk to a volume that is made in the same place.
    All(Wish),
    /// One for each disk, by (machine, disk), or for all disks of a machine that are not named themselves.
    Each(BTreeMap<(String, Option<String>), Wish>),
}

/// What is wished for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A sparse raw file `PATH/SITE/MACHINE/DISK.raw`.
    Dir(PathBuf),
    /// A device or existing file.
    Device(PathBuf),
    /// An export of an NBD server.
    Export(Uri),
    /// An image of a Ceph pool.
    Pool(Pool),
    /// A volume of an OpenStack cloud.
    Cloud(Where),
}

impl Target {
    /// Reads `--to` values: one for all disks, or any number for one disk each.
    ///
    /// # Errors
    /// A usage error that shows the accepted forms.
    pub fn parse<S: AsRef<str>>(values: &[S]) -> Result<Target> {
        let mut each = BTreeMap::new();
        for text in values.iter().map(AsRef::as_ref) {
            let Some((kind, rest)) = text.split_once(':') else { return Err(usage(text, "another kind of target")) };
            // In front of any option, so that the = of one is not taken for it.
            let named = rest.split('?').next().unwrap_or(rest).contains('=');
            if kind == "dir" || ["rbd", "cinder"].contains(&kind) && !named {
                let wish = Wish::of(kind, rest, text)?;
                return if values.len() > 1 { Err(usage(text, "more than one target")) } else { Ok(Target::All(wish)) };
            }
            if !["dev", "nbd", "rbd", "cinder"].contains(&kind) {
                return Err(usage(text, "another kind of target"));
            }
            let Some((who, at)) = rest.split_once('=') else { return Err(usage(text, "no MACHINE/DISK=")) };
            let (machine, disk) = match who.split_once('/') {
                Some((machine, disk)) => (machine, Some(disk)),
                // A volume is made for each of its disks.
                None if ["rbd", "cinder"].contains(&kind) => (who, None),
                None => return Err(usage(text, "no MACHINE/DISK=")),
            };
            let wish = Wish::of(kind, at, text)?;
            for (what, name) in [("Machine name", Some(machine)), ("Disk name", disk)] {
                name.map_or(Ok(()), |name| check_name(what, name)).map_err(|e| Error::usage(e.to_string()))?;
            }
            if each.insert((machine.to_owned(), disk.map(str::to_owned)), wish).is_some() {
                return Err(Error::usage(format!("Target '{text}': expected one volume for {who}, found two")));
            }
        }
        if each.is_empty() {
            return Err(Error::usage(format!("Target: expected --to {FORMS}, found none")));
        }
        Ok(Target::Each(each))
    }

    /// Reads what [`fmt::Display`] wrote: targets may hold spaces.
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub fn read(text: &str) -> Result<Target> {
        let mut values: Vec<String> = Vec::new();
        for word in text.split(' ') {
            let begins = ["dir:", "dev:", "nbd:", "rbd:", "cinder:"].iter().any(|kind| word.starts_with(kind));
            match values.last_mut() {
                Some(last) if !begins => *last = format!("{last} {word}"),
                _ => values.push(word.to_owned()),
            }
        }
        Target::parse(&values)
    }

    /// Where a disk goes; `None` where nothing was named for it. What is said of the disk itself counts before what is said of its machine.
    pub fn wish(&self, machine: &str, disk: &str) -> Option<&Wish> {
        match self {
            Target::All(wish) => Some(wish),
            Target::Each(each) => {
                let of = |disk: Option<&str>| each.get(&(machine.to_owned(), disk.map(str::to_owned)));
                of(Some(disk)).or_else(|| of(None))
            }
        }
    }
}

fn usage(text: &str, why: &str) -> Error {
    Error::usage(format!("Target '{text}': expected {FORMS}, found {why}"))
}

impl Wish {
    /// Reads one that names no disk: `KIND:WHERE`.
    ///
    /// # Errors
    /// A usage error that shows the accepted forms.
    pub fn parse(text: &str) -> Result<Wish> {
        let Some((kind, at)) = text.split_once(':') else { return Err(usage(text, "another kind of target")) };
        Wish::of(kind, at, text)
    }

    /// The wish `KIND:AT`, as part of `text`.
    fn of(kind: &str, at: &str, text: &str) -> Result<Wish> {
        if at.is_empty() && kind != "cinder" {
            return Err(usage(text, if kind == "dir" { "no path" } else { "nothing that names it" }));
        }
        match kind {
            "dir" => Ok(Wish::Dir(at.into())),
            "rbd" => Ok(Wish::Pool(Pool::parse(at)?)),
            "cinder" => Ok(Wish::Cloud(Where::parse(at)?)),
            "dev" => match Origin::typed(at)? {
                Origin::Path(path) => Ok(Wish::Device(path)),
                _ => Err(usage(text, "no path")),
            },
            "nbd" => match Origin::typed(at)? {
                Origin::Nbd(uri) => Ok(Wish::Export(uri)),
                _ => Err(usage(text, "no URI such as nbd+unix:///?socket=…")),
            },
            _ => Err(usage(text, "another kind of target")),
        }
    }

    /// As it is written in front of the colon.
    pub fn kind(&self) -> &'static str {
        match self {
            Wish::Dir(_) => "dir",
            Wish::Device(_) => "dev",
            Wish::Export(_) => "nbd",
            Wish::Pool(_) => "rbd",
            Wish::Cloud(_) => "cinder",
        }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wish::Dir(path) | Wish::Device(path) => path.display().fmt(f),
            Wish::Export(uri) => uri.fmt(f),
            Wish::Pool(pool) => pool.fmt(f),
            Wish::Cloud(wanted) => wanted.fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::All(wish) => write!(f, "{}:{wish}", wish.kind()),
            Target::Each(each) => {
                let all = each.iter().map(|((machine, disk), at)| {
                    let disk = disk.as_ref().map(|disk| format!("/{disk}")).unwrap_or_default();
                    format!("{}:{machine}{disk}={at}", at.kind())
                });
                f.write_str(&all.collect::<Vec<_>>().join(" "))
            }
        }
    }
}

/// The raw file of a disk below the directory of a target. Names come validated from the manifest, so none of them can lead out of it.
pub fn raw_file(root: &Path, site: &str, machine: &str, disk: &str) -> PathBuf {
    root.join(site).join(machine).join(format!("{disk}.raw"))
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
        assert_eq!(Target::parse(&["dir:/srv"]).unwrap(), Target::All(Wish::Dir("/srv".into())));
        let two = Target::parse(&["dev:db01/sda=/dev/vdb", "dev:db01/sdb=/dev/disk/by-id/x=y"]).unwrap();
        assert_eq!(two.wish("db01", "sdb"), Some(&Wish::Device("/dev/disk/by-id/x=y".into())));
        assert_eq!(two.wish("db01", "sdc"), None);
        let uri = "nbd+unix:///vda?socket=/run/nbd.sock";
        let mixed = [
            "cinder:db01/sdc=".to_owned(),
            "cinder:db01/sdd=bank?type=a".into(),
            "dev:db01/sdb=/dev/vdb".into(),
            format!("nbd:db01/sda={uri}"),
            "rbd:db01/sde=volumes?id=cinder".into(),
        ];
        let parsed = Target::parse(&mixed).unwrap();
        assert_eq!(parsed.wish("db01", "sda").unwrap().to_string(), uri);
        assert_eq!(parsed.wish("db01", "sdc").unwrap(), &Wish::Cloud(Where::default()));
        let mut shown: Vec<String> = parsed.to_string().split(' ').map(str::to_owned).collect();
        shown.sort();
        assert_eq!(shown, mixed);
        assert_eq!(Target::read(&parsed.to_string()).unwrap(), parsed);
        let whole = Target::parse(&["cinder:db01=bank?type=a", "rbd:db01/sdb=volumes", "cinder:app01="]).unwrap();
        assert_eq!(whole.wish("db01", "any").unwrap().to_string(), "bank?type=a");
        assert_eq!(whole.wish("db01", "sdb").unwrap().kind(), "rbd");
        assert_eq!((whole.wish("app01", "sda").is_some(), whole.wish("db02", "sda")), (true, None));
        assert_eq!(Target::read(&whole.to_string()).unwrap(), whole);
        let spaced = Target::parse(&["cinder:db 1/sda=bank?type=High Performance", "dev:a/b=/dev/x y"]).unwrap();
        assert_eq!(Target::read(&spaced.to_string()).unwrap(), spaced);
        for all in ["dir:/srv", "rbd:volumes", "rbd:volumes?id=cinder", "cinder:", "cinder:bank?type=ssd"] {
            assert_eq!(Target::parse(&[all]).unwrap().to_string(), all);
            assert_eq!(Target::read(all).unwrap().to_string(), all);
            assert_eq!(
                Target::parse(&[all]).unwrap().wish("any", "disk").unwrap().kind(),
                all.split(':').next().unwrap()
            );
        }
        let bad: [&[&str]; 17] = [
            &["nbd:db01=nbd://host/vda"],
            &["cinder:db01=a", "cinder:db01=b"],
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
            &["rbd:"],
            &["rbd:a/b="],
            &["cinder:bank", "cinder:a/b="],
            &["ceph:volumes"],
        ];
        for values in bad {
            assert!(Target::parse(values).is_err(), "{values:?}");
        }
        assert_eq!(raw_file(Path::new("/srv"), "农信社", "db01", "sda"), Path::new("/srv/农信社/db01/sda.raw"));
        assert_eq!(sidecar_of(Path::new("/a/b.raw")), Path::new("/a/b.raw.motiongear.json"));
    }
}
