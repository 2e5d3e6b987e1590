//! Volumes of OpenStack Block Storage, reached by this host itself: attached through Cinder's attachments, no server of the cloud in
//! between, and opened in user space.

use super::Volume;
use super::attached::{Attached, is_uuid, own_server, wait_for_device};
use super::attachment::Attachment;
use super::completed::Completed;
use super::demand::{Demand, ToMake};
use super::layer::Layer;
use super::quota::{self, gib};
use super::served::Served;
use super::store::{Found, Landed, Owner, Store, mark, no_recovery_point, of_another};
use crate::context::Context;
use crate::copy::patience::Medium;
use crate::error::{Error, Result};
use crate::io::Access;
use crate::ledger::Ledger;
use crate::nbd::{SECRET, Server, VOLUME};
use crate::openstack::server::ServerPlan;
use crate::openstack::volumes::{NewVolume, Volume as CloudVolume};
use crate::openstack::{Session, expected};
use crate::source::{Identity, SourceKind, SysRoot};
use serde_json::{Value, json};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use uuid::Uuid;

/// How long it may take to make, to detach or to remove a volume, or to take a snapshot.
const WITHIN: Duration = Duration::from_secs(600);
/// Of a volume with which nothing is under way.
const SETTLED: [&str; 4] = ["available", "reserved", "attaching", "in-use"];

/// In which cloud, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Where {
    /// Of clouds.yaml; empty: what the environment says.
    pub cloud: String,
    /// Name or UUID of the project; the one of the credentials where absent.
    pub project: Option<String>,
    /// The cloud's default where absent.
    pub volume_type: Option<String>,
    /// Availability zone; the cloud's default where absent.
    pub zone: Option<String>,
    /// Attached by Compute to this host, which is a server of the cloud; by this host itself where absent.
    pub attach: Option<Attach>,
    /// Configuration of the Ceph cluster behind it, with a keyring of its own; Ceph's default where absent.
    pub conf: Option<PathBuf>,
}

/// The server of the cloud that this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attach {
    /// As it says itself.
    Own,
    /// By its UUID.
    Server(String),
}

impl Attach {
    fn parse(text: &str) -> Option<Attach> {
        match text {
            "instance" => Some(Attach::Own),
            id => is_uuid(id).then(|| Attach::Server(id.to_lowercase())),
        }
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attach::Own => f.write_str("instance"),
            Attach::Server(id) => f.write_str(id),
        }
    }
}

impl Where {
    /// Reads `[CLOUD][?project=PROJECT&type=TYPE&zone=ZONE&attach=instance|UUID&conf=FILE]`.
    ///
    /// # Errors
    /// A usage error that shows the form.
    pub fn parse(text: &str) -> Result<Where> {
        let wrong = |found: &str| {
            Error::usage(format!(
                "Cloud '{text:.200}': expected [CLOUD][?project=PROJECT&type=TYPE&zone=ZONE&attach=instance|UUID&conf=/ABSOLUTE/FILE], found {found:.200}"
            ))
        };
        let (cloud, query) = text.split_once('?').unwrap_or((text, ""));
        let odd = |name: &str| name.len() > 200 || name.chars().any(|c| c.is_control() || "/?&=".contains(c));
        if odd(cloud) {
            return Err(wrong(cloud));
        }
        let mut wanted = Where { cloud: cloud.to_owned(), ..Where::default() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let once = match key {
                "project" if !value.is_empty() && !odd(value) => wanted.project.replace(value.to_owned()).is_none(),
                "type" if !value.is_empty() && !odd(value) => wanted.volume_type.replace(value.to_owned()).is_none(),
                "zone" if !value.is_empty() && !odd(value) => wanted.zone.replace(value.to_owned()).is_none(),
                "attach" => Attach::parse(value).is_some_and(|attach| wanted.attach.replace(attach).is_none()),
                "conf" if value.starts_with('/') => wanted.conf.replace(value.into()).is_none(),
                _ => false,
            };
            if !once {
                return Err(wrong(pair));
            }
        }
        Ok(wanted)
    }
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cloud)?;
        let of = |key: &str, value: &Option<String>| value.as_ref().map(|value| format!("{key}={value}"));
        let attach = self.attach.as_ref().map(|attach| format!("attach={attach}"));
        let conf = self.conf.as_ref().map(|conf| format!("conf={}", conf.display()));
        let pairs: Vec<String> =
            [of("project", &self.project), of("type", &self.volume_type), of("zone", &self.zone), attach, conf]
                .into_iter()
                .flatten()
                .collect();
        if pairs.is_empty() { Ok(()) } else { write!(f, "?{}", pairs.join("&")) }
    }
}

/// The volume of one disk.
pub struct CinderStore {
    session: Arc<Session>,
    wanted: Where,
    owner: Owner,
    sys: SysRoot,
    ledger: Arc<Ledger>,
    /// The server that this host is, once it was looked for.
    server: OnceLock<String>,
}

impl CinderStore {
    /// In the cloud of `session`.
    pub fn new(session: Arc<Session>, wanted: Where, owner: Owner, context: &Context) -> CinderStore {
        let (sys, ledger) = (context.sys.clone(), context.ledger.clone());
        CinderStore { session, wanted, owner, sys, ledger, server: OnceLock::new() }
    }

    /// The server that this host is, where Compute is to attach volumes.
    fn server(&self) -> Result<Option<&str>> {
        let found = match (&self.wanted.attach, self.server.get()) {
            (None, _) => return Ok(None),
            (_, Some(known)) => return Ok(Some(known)),
            (Some(Attach::Server(id)), None) => id.clone(),
            (Some(Attach::Own), None) => own_server(&self.session, &self.sys)?,
        };
        Ok(Some(self.server.get_or_init(|| found)))
    }

    /// Makes the bytes of a volume that nobody has reachable.
    fn reach(&self, volume: &CloudVolume) -> Result<Reached> {
        if let Some(server) = self.server()? {
            self.session.add_volume(server, &volume.id)?;
            let way = OnServer { session: self.session.clone(), server: server.to_owned(), volume: volume.id.clone() };
            self.session.wait_for_volume(&volume.id, &["in-use"], WITHIN)?;
            let device = wait_for_device(&self.sys, &volume.id, volume.bytes, server)?;
            return Ok(Reached::Disk(device, way));
        }
        self.ledger.ask_for_attachment(&volume.id)?;
        let attachment = self.session.attach(&volume.id, &self.connector()).inspect_err(|error| {
            // One that was refused is not there; of one that nobody answered for, the next run finds out.
            if error.io_cause().is_none() {
                let _ = self.ledger.keep_attachment(&volume.id, None);
            }
        })?;
        let way = Attachment::new(self.session.clone(), self.ledger.clone(), attachment.id.clone());
        self.ledger.keep_attachment(&volume.id, Some(&attachment.id))?;
        let server = self.serve(&attachment.connection)?;
        self.session.complete(&attachment.id)?;
        Ok(Reached::Served(server, way))
    }

    /// The disk's volume; of several, which only a run that was killed while it asked for one can leave, the oldest.
    fn volume(&self) -> Result<Option<CloudVolume>> {
        Ok(self.volumes()?.into_iter().next())
    }

    fn volumes(&self) -> Result<Vec<CloudVolume>> {
        let mut volumes = self.session.volumes_marked(&mark("disk"), &self.owner.disk.to_string())?;
        volumes.retain(|volume| volume.status != "deleting");
        Ok(volumes)
    }

    /// Of this disk, made for a drill.
    fn clones(&self, drill: Uuid) -> Result<Vec<CloudVolume>> {
        let mut clones = self.session.volumes_marked(&mark("drill"), &drill.to_string())?;
        let disk = self.owner.disk.to_string();
        clones.retain(|clone| clone.metadata.get(&mark("drill_of")) == Some(&disk) && clone.status != "deleting");
        Ok(clones)
    }

    /// The clone of a drill, which nobody has.
    fn free_clone(&self, point: &str, drill: Uuid) -> Result<CloudVolume> {
        let clone = self.clones(drill)?.into_iter().next().ok_or_else(|| {
            Error::failed(format!("Volume {}: expected a clone of {point}, found none", self.location()))
                .next("somebody removed it: end this drill and start another")
        })?;
        self.free(&clone)
    }

    fn there(&self) -> Result<CloudVolume> {
        self.volume()?.ok_or_else(|| {
            Error::failed(format!("Volume {}: expected it in the cloud, found none", self.location()))
                .next("somebody removed it: import everything again with --overwrite")
        })
    }

    fn found(&self, volume: &CloudVolume) -> Found {
        let ledger = volume.metadata.get(&mark("ledger")).cloned();
        let site = volume.metadata.get(&mark("site")).cloned();
        let completed = Completed::of_marks(|key| volume.metadata.get(&mark(key)).cloned());
        Found { identity: self.identity(volume), bytes: volume.bytes, ledger, site, completed }
    }

    fn identity(&self, volume: &CloudVolume) -> Identity {
        Identity::of_export(SourceKind::Cinder, volume.id.clone(), volume.bytes, None)
    }

    /// Ends the attachments that earlier runs of this ledger left, and waits until nobody has the volume.
    fn free(&self, volume: &CloudVolume) -> Result<CloudVolume> {
        // One that is being taken off this server already is not to be taken off once more.
        self.session.wait_for_volume(&volume.id, &SETTLED, WITHIN)?;
        self.detach_all(volume)?;
        self.session.wait_for_volume(&volume.id, &["available"], WITHIN)
    }

    fn detach_all(&self, volume: &CloudVolume) -> Result<()> {
        let made = self.ledger.attachments(&volume.id)?;
        // Of one that was asked for by a run that was killed nobody heard the id: while it is there, no other one can be.
        let unheard = made.iter().any(String::is_empty);
        for attachment in self.session.attachments(&volume.id)? {
            if let Some(server) = attachment.instance {
                if self.server()? == Some(server.as_str()) {
                    // An earlier run of this host was killed.
                    self.session.remove_volume(&server, &volume.id)?;
                    continue;
                }
                // What Compute leaves of a server that was removed while it was being made: nobody ever came to the bytes by it.
                if attachment.is_reserved && self.session.server(&server).is_ok_and(|found| found.is_none()) {
                    self.session.detach(&attachment.id)?;
                    continue;
                }
                return Err(Error::failed(format!(
                    "Volume {} ({}): expected that nobody has it, found server {server}",
                    self.location(),
                    volume.id
                ))
                .next("detach it there first: what boots is a clone of its recovery point, never the volume itself"));
            }
            if !unheard && !made.contains(&attachment.id) {
                return Err(Error::failed(format!(
                    "Volume {} ({}): in use by attachment {}, which this ledger did not make",
                    self.location(),
                    volume.id,
                    attachment.id
                ))
                .next(
                    "end it where it was made ('openstack volume attachment delete'), then run the same command again",
                ));
            }
            self.session.detach(&attachment.id)?;
            self.ledger.forget_attachment(&attachment.id)?;
        }
        if unheard { self.ledger.keep_attachment(&volume.id, None) } else { Ok(()) }
    }

    /// How Cinder shall let this host in.
    fn connector(&self) -> Value {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        json!({
            "host": host,
            "ip": self.address().to_string(),
            "initiator": self.initiator(),
            "multipath": false,
            "platform": std::env::consts::ARCH,
            "os_type": "linux",
            "do_local_attach": false,
            // Required, and shown to people only.
            "mountpoint": "/dev/motiongear",
        })
    }

    fn initiator(&self) -> String {
        format!("iqn.2026-11.motiongear:{}", self.owner.ledger)
    }

    /// Of this host, as the cloud sees it.
    fn address(&self) -> IpAddr {
        let host = self.session.host();
        let own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
            // Nothing is sent: the kernel only looks for the way.
            socket.connect((host.as_str(), 9))?;
            socket.local_addr()
        });
        own.map_or(Ipv4Addr::LOCALHOST.into(), |own| own.ip())
    }

    /// A server of the bytes behind what Cinder says of the way to them.
    fn serve(&self, connection: &Value) -> Result<Server> {
        let lack = |what: &str| {
            Error::failed(format!(
                "Volume {}: expected {what} in what Cinder says of the way to it, found none",
                self.location()
            ))
        };
        let text = |key: &str| connection[key].as_str().filter(|text| !text.is_empty()).ok_or_else(|| lack(key));
        if connection["encrypted"] == true {
            return Err(Error::failed(format!(
                "Volume {}: expected one that Cinder does not encrypt, found one that it does",
                self.location()
            ))
            .next("take another volume type: what is encrypted under the volume would be written around"));
        }
        let mut secret = None;
        let file = match text("driver_volume_type")? {
            "rbd" => {
                let (pool, image) = text("name")?.split_once('/').ok_or_else(|| lack("POOL/IMAGE"))?;
                let mut file = json!({ "driver": "rbd", "pool": pool, "image": image });
                if connection["auth_enabled"] != false {
                    file["user"] = text("auth_username")?.into();
                }
                if let Some(conf) = &self.wanted.conf {
                    file["conf"] = conf.to_string_lossy().into();
                }
                file
            }
            "iscsi" => {
                let mut file = json!({
                    "driver": "iscsi",
                    "transport": "tcp",
                    "portal": text("target_portal")?,
                    "target": text("target_iqn")?,
                    "lun": connection["target_lun"].as_u64().unwrap_or(0),
                    "initiator-name": self.initiator(),
                });
                if connection["auth_method"] == "CHAP" {
                    file["user"] = text("auth_username")?.into();
                    file["password-secret"] = SECRET.into();
                    secret = Some(text("auth_password")?);
                }
                file
            }
            other => {
                return Err(Error::failed(format!(
                    "Volume {}: expected a way by rbd or iscsi, found {other:.100}",
                    self.location()
                ))
                .next("attach the volume to this host by other means, and import with --to dev:MACHINE/DISK=/dev/…"));
            }
        };
        Server::of_volume(&file, secret, Access::Write).map_err(|error| {
            Error::failed(format!("Volume {}: cannot be opened", self.location())).because(error).next(
                "see whether QEMU knows Ceph and iSCSI (Debian: qemu-block-extra); for Ceph this host needs the cluster's \
                 ceph.conf and the keyring of the user that Cinder named: name another ceph.conf, with a keyring line, by conf=/FILE",
            )
        })
    }
}

impl Store for CinderStore {
    fn kind(&self) -> &'static str {
        "cinder"
    }

    fn location(&self) -> String {
        format!("cinder:{}/{}", self.wanted.cloud, self.owner.name())
    }

    fn find(&self) -> Result<Option<Found>> {
        Ok(self.volume()?.map(|volume| self.found(&volume)))
    }

    fn demand(&self, volumes: &[ToMake]) -> Result<Demand> {
        quota::demand(&self.session, self.wanted.volume_type.as_deref(), volumes)
    }

    fn expect_server(&self, machine: &str, plan: &ServerPlan) -> Result<Vec<String>> {
        expected::expect_server(&self.session, machine, plan)
    }

    fn room(&self) -> String {
        self.wanted.to_string()
    }

    fn create(&self, bytes: u64) -> Result<()> {
        match self.volume()? {
            Some(volume) if self.found(&volume).may_be_of(&self.owner) => {
                self.session.wait_for_volume(&volume.id, &SETTLED, WITHIN)?;
            }
            Some(volume) => return Err(of_another(&self.location(), &self.found(&volume))),
            None => {
                let volume = self.session.create_volume(&NewVolume {
                    name: &self.owner.name(),
                    gib: gib(bytes),
                    volume_type: self.wanted.volume_type.as_deref(),
                    zone: self.wanted.zone.as_deref(),
                    snapshot: None,
                    metadata: &self.owner.marks(),
                })?;
                if let Err(error) = self.session.wait_for_volume(&volume.id, &SETTLED, WITHIN) {
                    // It never came up and nobody has anything in it: once it is gone, the same command asks for another.
                    let _ = self.session.delete_volume(&volume.id, WITHIN);
                    return Err(error);
                }
            }
        }
        // A run that was killed before it heard the answer may have asked for one too.
        let ours = |volume: &&CloudVolume| volume.metadata.get(&mark("ledger")) == Some(&self.owner.ledger.to_string());
        for more in self.volumes()?.iter().filter(ours).skip(1) {
            self.session.delete_volume(&more.id, WITHIN)?;
        }
        Ok(())
    }

    fn makes_zeros(&self) -> bool {
        // Not every backend of Cinder clears what the last owner left.
        false
    }

    fn open(&self, medium: Option<Medium>) -> Result<Arc<dyn Volume>> {
        let volume = self.there()?;
        let volume = self.free(&volume)?;
        if volume.metadata.get(&mark("ledger")) != Some(&self.owner.ledger.to_string()) {
            self.session.mark_volume(&volume.id, &self.owner.marks())?;
        }
        let (name, identity) = (self.location(), self.identity(&volume));
        Ok(match self.reach(&volume)? {
            Reached::Served(server, mut way) => {
                way.watch(&server);
                Arc::new(Served::open(server, name, identity, Some(Box::new(way)), medium)?)
            }
            Reached::Disk(device, way) => Arc::new(Attached::open(&device, name, identity, Box::new(way), medium)?),
        })
    }

    fn hand_over(&self, landed: &Landed) -> Result<String> {
        let volume = self.free(&self.there()?)?;
        self.session.mark_volume(&volume.id, &landed.marks())?;
        if landed.bootable {
            let mut image = Vec::new();
            image.extend(landed.firmware.map(|firmware| ("hw_firmware_type", firmware)));
            image.extend(landed.bus.map(|bus| ("hw_disk_bus", bus)));
            image.extend(landed.system.map(|system| ("os_type", system)));
            self.session.make_bootable(&volume.id, &image)?;
        }
        let name = landed.recovery_point();
        let snapshot = self.session.snapshot(&volume.id, &name, &landed.marks(), WITHIN)?;
        Ok(format!("{name} ({snapshot}) of volume {}", volume.id))
    }

    fn has_point(&self, point: &str) -> Result<bool> {
        Ok(self.session.find_snapshot(&self.there()?.id, point)?.is_some())
    }

    fn remove(&self, identity: &Identity) -> Result<()> {
        let mut volumes = self.volumes()?.into_iter();
        match volumes.find(|volume| identity.same_volume(&self.identity(volume)).is_ok()) {
            Some(volume) => {
                self.detach_all(&volume)?;
                if !volume.status.starts_with("error") {
                    self.session.wait_for_volume(&volume.id, &["available"], WITHIN)?;
                }
                self.session.delete_volume(&volume.id, WITHIN)
            }
            None => Err(Error::failed(format!(
                "Volume {}: expected {}, found another",
                self.location(),
                identity.summary()
            ))),
        }
    }

    fn make_clone(&self, point: &str, drill: Uuid) -> Result<()> {
        let volume = self.there()?;
        let found = self.session.find_snapshot(&volume.id, point)?;
        let (snapshot, _) = found.ok_or_else(|| no_recovery_point(&self.location(), point))?;
        let clone = match self.clones(drill)?.into_iter().next() {
            Some(clone) => clone,
            None => self.session.create_volume(&NewVolume {
                name: &format!("{} drill {drill}", self.owner.name()),
                gib: gib(volume.bytes),
                volume_type: None,
                zone: self.wanted.zone.as_deref(),
                snapshot: Some(&snapshot),
                // Not the disk's own mark, by which its volume is found.
                metadata: &[
                    (mark("drill"), drill.to_string()),
                    (mark("drill_of"), self.owner.disk.to_string()),
                    (mark("ledger"), self.owner.ledger.to_string()),
                ],
            })?,
        };
        self.session.wait_for_volume(&clone.id, &["available", "reserved", "attaching", "in-use"], WITHIN).map(drop)
    }

    fn session(&self) -> Option<&Arc<Session>> {
        Some(&self.session)
    }

    fn clone_for_server(&self, point: &str, drill: Uuid) -> Result<String> {
        Ok(self.free_clone(point, drill)?.id)
    }

    fn open_clone(&self, point: &str, drill: Uuid) -> Result<Layer> {
        let clone = self.free_clone(point, drill)?;
        Ok(match self.reach(&clone)? {
            Reached::Served(server, way) => {
                let disk = server.uri(VOLUME).block_options().unwrap_or_default();
                // The server ends before its way does.
                Layer { disk, writable: true, held: Some(Box::new((server, way))) }
            }
            Reached::Disk(device, way) => {
                let disk = json!({ "driver": "host_device", "filename": device });
                Layer { disk, writable: true, held: Some(Box::new(way)) }
            }
        })
    }

    fn end_clone(&self, drill: Uuid) -> Result<bool> {
        let clones = self.clones(drill)?;
        for clone in &clones {
            // One that is still being made cannot be removed; one that failed can.
            if let Err(error) = self.session.wait_for_volume(&clone.id, &SETTLED, WITHIN) {
                tracing::debug!(clone = clone.id, %error, "a clone never came up");
            }
            self.detach_all(clone)?;
            if !clone.status.starts_with("error") {
                self.session.wait_for_volume(&clone.id, &["available"], WITHIN)?;
            }
            self.session.delete_volume(&clone.id, WITHIN)?;
        }
        Ok(!clones.is_empty())
    }
}

/// The bytes of a volume, and what is dropped after their last use.
enum Reached {
    /// Behind a server of our own.
    Served(Server, Attachment),
    /// As a disk of this host.
    Disk(PathBuf, OnServer),
}

/// A volume on the server that this host is; taken off when it is dropped.
struct OnServer {
    session: Arc<Session>,
    server: String,
    volume: String,
}

impl Drop for OnServer {
    fn drop(&mut self) {
        if let Err(error) = self.session.remove_volume(&self.server, &self.volume) {
            // The next run does it.
            tracing::warn!(volume = self.volume, %error, "a volume could not be taken off this server");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clouds_read_as_people_type_them() {
        for text in ["", "bank", "bank?type=ssd", "?zone=nova", "bank?type=ssd&zone=a b&conf=/etc/ceph/x.conf"] {
            assert_eq!(Where::parse(text).unwrap().to_string(), text);
        }
        let own = "bank?attach=instance";
        let named = "?attach=458a3653-5a82-4d5b-88f5-50f669768bf0";
        assert_eq!([own, named].map(|text| Where::parse(text).unwrap().to_string()), [own, named]);
        for text in [
            "bank?attach=",
            "bank?attach=me",
            "a/b",
            "bank?typ=ssd",
            "bank?type=",
            "bank?type=a&type=b",
            "bank?conf=x",
            "a\nb",
        ] {
            assert!(Where::parse(text).is_err(), "{text}");
        }
    }
}
