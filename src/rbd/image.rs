//! An image as a source: `rbd:POOL/IMAGE`, of which a snapshot is taken, or `rbd:POOL/IMAGE@SNAPSHOT`, which is one.

use super::{Info, Pool, check_name};
use crate::error::{Error, Result};
use crate::io::Access;
use crate::nbd::Server;
use std::fmt;

const SCHEME: &str = "rbd:";

/// An image of a pool, or a snapshot of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub pool: Pool,
    /// Its name.
    pub name: String,
    /// Its snapshot, where that is meant.
    pub snapshot: Option<String>,
}

impl Image {
    /// Whether `text` means one.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads `rbd:POOL/IMAGE[@SNAPSHOT][?id=USER&conf=FILE]`.
    ///
    /// # Errors
    /// A usage error that shows the form.
    pub fn parse(text: &str) -> Result<Image> {
        let wrong = |found: String| {
            Error::usage(format!(
                "Source '{text:.200}': expected rbd:POOL/IMAGE[@SNAPSHOT][?id=USER&conf=/ABSOLUTE/FILE], found {found}"
            ))
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("no rbd:".into()))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (pool, image) = place.split_once('/').ok_or_else(|| wrong("no image".into()))?;
        let (name, snapshot) = match image.split_once('@') {
            Some((name, snapshot)) => (name, Some(snapshot.to_owned())),
            None => (image, None),
        };
        check_name("image", name).map_err(&wrong)?;
        snapshot.iter().try_for_each(|snapshot| check_name("snapshot", snapshot)).map_err(&wrong)?;
        let pool = if query.is_empty() { Pool::parse(pool)? } else { Pool::parse(&format!("{pool}?{query}"))? };
        Ok(Image { pool, name: name.to_owned(), snapshot })
    }

    /// The image's snapshot of this name.
    pub fn at(&self, snapshot: &str) -> Image {
        Image { snapshot: Some(snapshot.to_owned()), ..self.clone() }
    }

    /// `POOL/IMAGE[@SNAPSHOT]`, as `rbd` calls it.
    pub fn spec(&self) -> String {
        let at = self.snapshot.iter().map(|snapshot| format!("@{snapshot}"));
        at.fold(self.pool.spec(&self.name), |spec, at| spec + &at)
    }

    /// What the cluster knows of it, and what it is for ever: no other image or snapshot has it, also none of the same name.
    ///
    /// # Errors
    /// There is none; the cluster does not answer, or does not let us in.
    pub fn look(&self) -> Result<(Info, String)> {
        let none = || {
            let next = format!("these are there: rbd ls {0}; rbd snap ls {0}/IMAGE", self.pool.name);
            Error::failed(format!("Source {self}: expected it there, found none")).next(next)
        };
        let Some(info) = self.pool.info(&self.name, self.snapshot.as_deref())? else {
            self.pool.check()?;
            return Err(none());
        };
        let mut id = format!("{}/{}", self.pool.name, info.id);
        if let Some(name) = &self.snapshot {
            let snapshots = self.pool.snapshots(&self.name)?;
            let snapshot = snapshots.iter().find(|snapshot| snapshot.name == *name).ok_or_else(none)?;
            id = format!("{id}@{}", snapshot.id);
        }
        Ok((info, id))
    }

    /// Starts a server of its bytes, read-only and without a cache of this host in between.
    ///
    /// # Errors
    /// As [`Pool::serve`].
    pub fn serve(&self) -> Result<Server> {
        self.pool.serve(&self.name, self.snapshot.as_deref(), Access::Read)
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = self.pool.to_string();
        let query = pool.split_once('?').map(|(_, query)| format!("?{query}")).unwrap_or_default();
        write!(f, "{SCHEME}{}{query}", self.spec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_read_as_people_type_them() {
        for text in
            ["rbd:vms/db01", "rbd:vms/db01@before", "rbd:vms/db01?id=mg", "rbd:vms/a.b@c?id=mg&conf=/etc/ceph/b.conf"]
        {
            assert_eq!(Image::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "rbd:",
            "rbd:vms",
            "rbd:vms/",
            "rbd:/a",
            "rbd:vms/ns/a",
            "rbd:vms/a@",
            "rbd:vms/a@b@c",
            "rbd:vms/-a",
            "rbd:v/a?x=y",
        ] {
            assert!(Image::parse(text).is_err(), "{text}");
        }
        assert_eq!(Image::parse("rbd:vms/db01?id=mg").unwrap().at("x").spec(), "vms/db01@x");
    }
}
