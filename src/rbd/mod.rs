//! Ceph's block images: made, measured and marked by the stock `rbd` program, their bytes moved by a `qemu-nbd` of our own (librbd).
//! Sources: rbd(8); QEMU's block driver `rbd` (`BlockdevOptionsRbd` in qapi/block-core.json).
//!
//! * `image`: how an image or a snapshot is named as a source
//! * `snapshot`: snapshots of a machine's images, and what changed from one to the next

mod image;
mod snapshot;

pub use image::Image;
pub use snapshot::{Mark, Taking, Wish, release_image};

use crate::error::{Error, Result};
use crate::io::Access;
use crate::nbd::Server;
use crate::program::{self, Ended};
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// So long the cluster may think about one command: it elects a new monitor in a minute.
const LIMIT: Duration = Duration::from_secs(180);
/// And about what changed in an image where it has to look at every object.
const DIFF_LIMIT: Duration = Duration::from_secs(12 * 3600);
const INSTALL: &str = "Debian: ceph-common";
const WELL: &str = "see whether the cluster is well: ceph -s";
/// The longest name of a pool, an image or a user, bytes.
const MAX_NAME_BYTES: usize = 200;
/// What `rbd` ends with where there is no such thing, and where there is one already: errno(3).
const NONE: i32 = libc::ENOENT;
const TAKEN: i32 = libc::EEXIST;

/// A pool of a cluster, and as whom we come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The user without `client.`; Ceph's own default where absent.
    pub user: Option<String>,
    /// The cluster's configuration file; Ceph's own default where absent.
    pub conf: Option<PathBuf>,
}

/// What the cluster knows of an image.
#[derive(Debug, Clone, Deserialize)]
pub struct Info {
    /// Unlike its name for ever the same, and never used again in this pool.
    pub id: String,
    /// Size, bytes.
    pub size: u64,
    /// What is kept beside it, such as `fast-diff`.
    #[serde(default)]
    pub features: Vec<String>,
    /// What is wrong with that, such as `fast diff invalid`.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// A snapshot of an image.
#[derive(Debug, Clone, Deserialize)]
pub struct SnapshotInfo {
    /// The cluster's number for it, used once.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// How full a pool is, bytes as its users count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What is stored.
    pub stored: u64,
    /// What still can be, until one OSD is full or the pool's quota is used up.
    pub free: u64,
}

impl Pool {
    /// Reads `POOL[?id=USER&conf=FILE]`.
    ///
    /// # Errors
    /// A usage error that shows the form.
    pub fn parse(text: &str) -> Result<Pool> {
        let wrong = |found: String| {
            Error::usage(format!("Pool '{text:.200}': expected POOL[?id=USER&conf=/ABSOLUTE/FILE], found {found}"))
        };
        let (name, query) = text.split_once('?').unwrap_or((text, ""));
        check_name("pool", name).map_err(&wrong)?;
        let mut pool = Pool { name: name.to_owned(), user: None, conf: None };
        for (key, value) in
            query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        {
            let once = match key {
                "id" => {
                    check_name("user", value).map_err(&wrong)?;
                    pool.user.replace(value.to_owned()).is_none()
                }
                "conf" if value.starts_with('/') => pool.conf.replace(value.into()).is_none(),
                _ => return Err(wrong(format!("{key}={value}"))),
            };
            if !once {
                return Err(wrong(format!("{key} twice")));
            }
        }
        Ok(pool)
    }

    /// Looks whether the pool is there and lets us in: a missing pool looks like a missing image elsewhere.
    ///
    /// # Errors
    /// It is not, or does not.
    pub fn check(&self) -> Result<()> {
        let ended = self.rbd(&["namespace", "ls", &self.name])?;
        match ended.code {
            Some(0) => Ok(()),
            _ => Err(Error::failed(format!("Ceph pool {}: expected it there, found {}", self.name, said(&ended)))
                .next(self.access())),
        }
    }

    /// How full it is; `None` where our user may not ask, or where a cluster before Nautilus does not tell.
    ///
    /// # Errors
    /// The cluster does not answer, or says something else.
    pub fn usage(&self) -> Result<Option<Usage>> {
        let command = self.command("ceph", &["df", "detail", "--format", "json"]);
        let ended = program::run(command, LIMIT, INSTALL).map_err(|error| error.next(WELL))?;
        if ended.code != Some(0) {
            return Ok(None);
        }
        let wrong = || {
            Error::failed(format!("Ceph pool {}: expected what ceph df says of it, found something else", self.name))
        };
        let said: serde_json::Value = serde_json::from_slice(&ended.output).map_err(|error| wrong().because(error))?;
        let pools = said["pools"].as_array().map(Vec::as_slice).unwrap_or_default();
        let stats = pools.iter().find(|pool| pool["name"] == self.name.as_str()).map(|pool| &pool["stats"]);
        let number = |key: &str| stats.and_then(|stats| stats[key].as_u64());
        let (Some(stored), Some(free)) = (number("stored"), number("max_avail")) else { return Ok(None) };
        let quota = number("quota_bytes").filter(|quota| *quota != 0);
        Ok(Some(Usage { stored, free: free.min(quota.map_or(u64::MAX, |quota| quota.saturating_sub(stored))) }))
    }

    /// What the cluster knows of an image, or of a snapshot of it; `None` if there is none of this name.
    ///
    /// # Errors
    /// The cluster does not answer, or does not let us in.
    pub fn info(&self, image: &str, snapshot: Option<&str>) -> Result<Option<Info>> {
        let spec = snapshot.map_or_else(|| self.spec(image), |snapshot| format!("{}@{snapshot}", self.spec(image)));
        let ended = self.rbd(&["info", "--format", "json", &spec])?;
        match ended.code {
            Some(0) => {}
            Some(NONE) => return Ok(None),
            _ => return Err(self.refused(image, "be looked at", &ended)),
        }
        serde_json::from_slice(&ended.output).map(Some).map_err(|error| {
            Error::failed(format!("Ceph image {spec}: expected what rbd info says of an image, found something else"))
                .because(error)
        })
    }

    /// Makes an image of `bytes`, all zeros. One that is there already is left as it is.
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn create(&self, image: &str, bytes: u64) -> Result<()> {
        // rbd rounds up to mebibytes where it is not told otherwise; so we do it where all can see.
        let mebibytes = format!("{}M", bytes.div_ceil(1 << 20).max(1));
        let ended = self.rbd(&["create", "--size", &mebibytes, &self.spec(image)])?;
        self.done_or(ended, TAKEN, image, "be made")
    }

    /// Removes an image.
    ///
    /// # Errors
    /// It has snapshots, or somebody uses it.
    pub fn remove(&self, image: &str) -> Result<()> {
        let ended = self.rbd(&["rm", "--no-progress", &self.spec(image)])?;
        self.done_or(ended, 0, image, "be removed")
    }

    /// Takes a snapshot of this very moment.
    ///
    /// # Errors
    /// There is one of this name, of another moment; the cluster refuses.
    pub fn snapshot_now(&self, image: &str, name: &str) -> Result<()> {
        let ended = self.rbd(&["snap", "create", "--no-progress", &format!("{}@{name}", self.spec(image))])?;
        self.done_or(ended, 0, image, "get a snapshot")
    }

    /// Takes a snapshot; one of this name that is there already is left as it is.
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn snapshot(&self, image: &str, name: &str) -> Result<()> {
        let ended = self.rbd(&["snap", "create", "--no-progress", &format!("{}@{name}", self.spec(image))])?;
        self.done_or(ended, TAKEN, image, "get a snapshot")
    }

    /// The snapshots of an image.
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn snapshots(&self, image: &str) -> Result<Vec<SnapshotInfo>> {
        let ended = self.rbd(&["snap", "ls", "--format", "json", &self.spec(image)])?;
        if ended.code != Some(0) {
            return Err(self.refused(image, "tell its snapshots", &ended));
        }
        serde_json::from_slice(&ended.output).map_err(|error| {
            let spec = self.spec(image);
            Error::failed(format!("Ceph image {spec}: expected a list of snapshots, found something else"))
                .because(error)
        })
    }

    /// Removes a snapshot; one that is not there is removed already.
    ///
    /// # Errors
    /// The cluster refuses: it is protected, for instance.
    pub fn remove_snapshot(&self, image: &str, name: &str) -> Result<()> {
        let ended = self.rbd(&["snap", "rm", "--no-progress", &format!("{}@{name}", self.spec(image))])?;
        self.done_or(ended, NONE, image, "lose a snapshot")
    }

    /// Tells `add` the ranges (offset, bytes) in which `image`, a snapshot, differs from its earlier snapshot `from`; a range may be
    /// larger than what changed in it.
    ///
    /// # Errors
    /// The cluster refuses, or says something that is no range; what `check` says, which is asked now and then.
    pub fn changed(
        &self,
        image: &Image,
        from: &str,
        check: &dyn Fn() -> Result<()>,
        add: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let spec = image.spec();
        let mut arguments = vec!["diff", "--from-snap", from, "--format", "plain"];
        let info = self.info(&image.name, image.snapshot.as_deref())?;
        // By the maps of the objects; without them each object has to be looked at anyhow, and tells more.
        if info.is_some_and(|info| info.features.iter().any(|feature| feature == "fast-diff")) {
            arguments.push("--whole-object");
        }
        arguments.push(&spec);
        let mut wrong = None;
        let ended = program::run_lines(self.command("rbd", &arguments), DIFF_LIMIT, INSTALL, check, |line| {
            let mut words = line.split_whitespace();
            match (words.next().map(str::parse), words.next().map(str::parse), words.next()) {
                (Some(Ok(offset)), Some(Ok(bytes)), Some("data" | "zero")) => add(offset, bytes),
                _ if line.starts_with("Offset") || line.trim().is_empty() => {}
                _ => drop(wrong.get_or_insert_with(|| line.to_owned())),
            }
        })?;
        if ended.code != Some(0) {
            return Err(self.refused(&image.name, "tell what changed", &ended));
        }
        match wrong {
            None => Ok(()),
            Some(found) => Err(Error::failed(format!(
                "Ceph image {spec}: expected ranges that changed, found '{}'",
                crate::nbd::wire::text(found.as_bytes())
            ))),
        }
    }

    /// What was written to an image under `key`.
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn mark_of(&self, image: &str, key: &str) -> Result<Option<String>> {
        let ended = self.rbd(&["image-meta", "get", &self.spec(image), key])?;
        match ended.code {
            Some(0) => Ok(Some(String::from_utf8_lossy(&ended.output).trim().to_owned())),
            Some(NONE) => Ok(None),
            _ => Err(self.refused(image, "say whose it is", &ended)),
        }
    }

    /// Writes a line of what people should know to an image.
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn mark(&self, image: &str, key: &str, value: &str) -> Result<()> {
        let ended = self.rbd(&["image-meta", "set", &self.spec(image), key, value])?;
        self.done_or(ended, 0, image, "be marked")
    }

    /// Starts a server of the bytes of an image or of a snapshot of it, without a cache of this host in between.
    ///
    /// # Errors
    /// QEMU or its driver for Ceph is not installed; the cluster does not let us in.
    pub fn serve(&self, image: &str, snapshot: Option<&str>, access: Access) -> Result<Server> {
        let verb = if access == Access::Read { "read" } else { "write" };
        Server::of_volume(&self.block_options(image, snapshot), None, access).map_err(|error| {
            Error::failed(format!("Ceph image {}: cannot be opened", self.spec(image))).because(error).next(format!(
                "see whether QEMU knows Ceph (Debian: qemu-block-extra) and this user may {verb} there; {}",
                self.access()
            ))
        })
    }

    /// How QEMU reaches an image, or a snapshot of it.
    pub fn block_options(&self, image: &str, snapshot: Option<&str>) -> serde_json::Value {
        let mut file = serde_json::json!({ "driver": "rbd", "pool": self.name, "image": image });
        if let Some(snapshot) = snapshot {
            file["snapshot"] = snapshot.into();
        }
        if let Some(user) = &self.user {
            file["user"] = user.as_str().into();
        }
        if let Some(conf) = &self.conf {
            file["conf"] = conf.to_string_lossy().into();
        }
        file
    }

    /// `POOL/IMAGE`.
    pub fn spec(&self, image: &str) -> String {
        format!("{}/{image}", self.name)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        if let Some(conf) = &self.conf {
            command.arg("--conf").arg(conf);
        }
        if let Some(user) = &self.user {
            command.args(["--id", user]);
        }
        command.args(arguments);
        command
    }

    fn rbd(&self, arguments: &[&str]) -> Result<Ended> {
        let answer = program::run(self.command("rbd", arguments), LIMIT, INSTALL);
        answer.map_err(|error| error.next(format!("{WELL}; {}", self.access())))
    }

    /// What decides whether the cluster lets us in.
    fn access(&self) -> String {
        let user = self.user.as_deref().unwrap_or("admin");
        let conf = self.conf.as_ref().map_or_else(|| "/etc/ceph/ceph.conf".into(), |conf| conf.display().to_string());
        format!(
            "check {conf} (conf=/FILE names another one) and the keyring of client.{user} (id=USER) that it names; try \
             'rbd ls {} --conf {conf} --id {user}'",
            self.name
        )
    }

    fn done_or(&self, ended: Ended, also: i32, image: &str, what: &str) -> Result<()> {
        match ended.code {
            Some(code) if code == 0 || code == also => Ok(()),
            _ => Err(self.refused(image, what, &ended)),
        }
    }

    fn refused(&self, image: &str, what: &str, ended: &Ended) -> Error {
        Error::failed(format!("Ceph image {}: cannot {what}: rbd ended with {}", self.spec(image), said(ended)))
            .next(self.access())
    }
}

fn said(ended: &Ended) -> String {
    let code = ended.code.map_or_else(|| "a signal".into(), |code| format!("exit {code}"));
    format!("{code}: {}", ended.words)
}

/// A name that Ceph and QEMU take as it is.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let odd = |c: char| c.is_control() || "/@?&=,:\"'\\".contains(c);
    match name {
        "" => Err(format!("no {what}")),
        _ if name.len() > MAX_NAME_BYTES || name.starts_with('-') || name.contains(odd) => {
            Err(format!("'{name:.200}' as the {what}"))
        }
        _ => Ok(()),
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let user = self.user.iter().map(|user| format!("id={user}"));
        let pairs: Vec<String> = user.chain(self.conf.iter().map(|conf| format!("conf={}", conf.display()))).collect();
        if pairs.is_empty() { Ok(()) } else { write!(f, "?{}", pairs.join("&")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_read_as_people_type_them() {
        for text in ["volumes", "volumes?id=cinder", "volumes?id=cinder&conf=/etc/ceph/b.conf"] {
            assert_eq!(Pool::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "a/b", "-p", "a?id=", "a?id=x&id=y", "a?conf=ceph.conf", "a?user=x", "a,b", "a@b"] {
            assert!(Pool::parse(text).is_err(), "{text}");
        }
    }
}
