//! The documents of a drill, as they are read and written: `folder` says who writes which file.

use crate::error::{Error, Result};
use crate::lang::Lang;
use crate::say;
use jiff::Timestamp;
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::tree::Digest;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// Longest texts of people.
pub const MAX_TEXT_BYTES: usize = 500;
/// What is kept of troubles with an array.
pub const MAX_TROUBLES: usize = 100;

/// What looks for the boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

impl Firmware {
    /// In options and messages.
    pub fn word(self) -> &'static str {
        match self {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
        }
    }
}

/// Where the disks hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bus {
    /// Paravirtual: most clouds.
    Virtio,
    /// Paravirtual SCSI.
    VirtioScsi,
    /// AHCI.
    Sata,
    /// The two channels of old PCs.
    Ide,
    /// NVMe.
    Nvme,
    /// VMware's paravirtual SCSI.
    Pvscsi,
}

impl Bus {
    /// In options and messages.
    pub fn word(self) -> &'static str {
        match self {
            Bus::Virtio => "virtio",
            Bus::VirtioScsi => "virtio-scsi",
            Bus::Sata => "sata",
            Bus::Ide => "ide",
            Bus::Nvme => "nvme",
            Bus::Pvscsi => "pvscsi",
        }
    }
}

/// Who plays the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// This host's own.
    Kvm,
    /// QEMU, twenty times slower.
    Tcg,
    /// Whatever the cloud's compute service runs it on: not this host.
    Nova,
}

impl Accel {
    /// As QEMU calls it, where it is QEMU's.
    pub fn word(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
            Accel::Nova => "nova",
        }
    }
}

/// A network of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// As typed; drills that name the same one meet on it.
    #[serde(alias = "bridge")]
    pub name: String,
    /// The machine's cards on it, in the order of its inventory.
    #[serde(default)]
    pub nics: Vec<DrillNic>,
    /// Of drills of earlier versions, which had one card on a bridge of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// As `tap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl Network {
    /// The addresses of its cards, for people.
    pub fn macs(&self) -> String {
        let each = self.nics.iter().map(|nic| nic.mac.as_str()).chain(self.mac.as_deref());
        each.collect::<Vec<_>>().join(", ")
    }
}

/// A network card of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillNic {
    /// Its end on this side, in the network's namespace.
    pub tap: String,
    /// The machine's own address where it is known, else one of ours.
    pub mac: String,
    /// Its name in the machine's inventory, where it is one of there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A server of the cloud in which the volumes are, instead of a QEMU of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// Id of its flavour.
    pub flavour: String,
    /// For people.
    pub flavour_name: String,
}

/// Where the bytes of a disk come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Base {
    /// A recovery point that is a snapshot of its volume.
    Snapshot {
        /// The volume, as in the ledger.
        volume: String,
        /// The recovery point's name.
        point: String,
    },
    /// A recovery point that is the volume as it is.
    Volume {
        /// The volume, as in the ledger.
        volume: String,
        /// The recovery point's name.
        point: String,
    },
    /// No volume: the sealed shipment itself.
    Array(SealedArray),
}

/// A sealed array, and by what it is opened. Paths only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedArray {
    /// Where it is mounted.
    pub array: PathBuf,
    /// OpenSSH allowed signers.
    pub trust: PathBuf,
    /// age identity file; needed for an encrypted shipment.
    pub identity: Option<PathBuf>,
}

/// One disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillDisk {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// What lies below whatever the machine writes.
    pub base: Base,
    /// Bytes of the disk that the machine sees.
    pub bytes: u64,
    /// The shipment that brought it.
    pub shipment: Uuid,
    /// Its seal.
    pub seal: Digest,
    /// Generation of the disk.
    pub generation: u32,
    /// Of the disk, as sealed and proven.
    pub digest: Digest,
    /// Whether firmware is to look for a boot loader there.
    pub boots: bool,
}

impl DrillDisk {
    /// What it boots from, for people.
    pub fn words(&self, lang: Lang) -> String {
        let DrillDisk { generation, shipment, seal, .. } = self;
        match &self.base {
            Base::Snapshot { volume, point } => say!(
                lang,
                "generation {generation}, recovery point {point} of {volume}",
                "第 {generation} 代，{volume} 的恢复点 {point}"
            ),
            Base::Volume { volume, point } => say!(
                lang,
                "generation {generation}, recovery point {point}: {volume} itself, read-only under an image of the drill's own",
                "第 {generation} 代，恢复点 {point}：{volume} 本身（只读），写入另存"
            ),
            Base::Array(_) => {
                let code = spoken_code(seal);
                say!(
                    lang,
                    "generation {generation}, straight from the array, shipment {shipment}, seal {code}, read-only under an image of the drill's own",
                    "第 {generation} 代，直接取自移动存储，批次 {shipment}，封签 {code}（只读），写入另存"
                )
            }
        }
    }
}

/// That the clone is to be adapted before it boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapt {
    /// By what, as found on this host: program and version.
    pub by: String,
    /// How long that may take, seconds.
    pub within_seconds: u64,
}

/// `drill.json`: what is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    /// Always 1.
    pub format: u32,
    /// Its identity.
    pub drill: Uuid,
    /// The site's UUID.
    pub site: Uuid,
    /// For people.
    pub site_name: String,
    /// For people.
    pub machine: String,
    /// All disks, in their order.
    pub disks: Vec<DrillDisk>,
    /// The disk that firmware tries first; absent in drills of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_disk: Option<String>,
    /// Text that shows on the serial console when all is up; a login prompt where absent.
    pub marker: Option<String>,
    /// How long that may take, seconds.
    pub within_seconds: u64,
    /// Memory of the machine, bytes.
    pub memory_bytes: u64,
    /// Its processors.
    pub cpus: u32,
    /// How it boots.
    pub firmware: Firmware,
    /// Where its disks hang.
    pub bus: Bus,
    /// Who plays its processors.
    pub accel: Accel,
    /// What the compute service is asked for, where it has the machine; then `accel` is [`Accel::Nova`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<Compute>,
    /// None: it has no network.
    pub network: Option<Network>,
    /// None: it boots as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapt: Option<Adapt>,
    /// What people should know: what is not as it was, or was left out.
    #[serde(default)]
    pub notes: Vec<String>,
    /// By this host's clock.
    pub made_at: Timestamp,
    /// Program and version.
    pub tool: String,
}

impl Drill {
    /// That what boots is not what was sealed, for people; none where it is.
    pub fn adapt_words(&self, lang: Lang) -> Option<String> {
        let by = &self.adapt.as_ref()?.by;
        Some(say!(
            lang,
            "ADAPTED before it boots: {by} alters a clone of these disks (drivers, initramfs, boot configuration); what boots is not what was sealed",
            "启动前适配：由 {by} 修改这些磁盘的克隆（驱动、initramfs、启动配置），启动的并非封签时的原样"
        ))
    }

    /// Places of the disks in the order in which firmware tries them.
    pub fn boot_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.disks.len()).collect();
        order.sort_by_key(|slot| {
            let disk = &self.disks[*slot];
            (self.boot_disk.as_ref() != Some(&disk.name), !disk.boots, *slot)
        });
        order
    }

    /// Whether it boots what lies on an array, and no recovery point.
    pub fn is_from_array(&self) -> bool {
        self.disks.iter().any(|disk| matches!(disk.base, Base::Array(_)))
    }
}

/// How far the keeper has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Opening clones, starting the machine.
    Opening,
    /// It runs.
    Running,
    /// It ended, or was ended.
    Off,
    /// It never ran.
    Failed,
}

/// What told that the machine is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sign {
    /// The text that was asked for.
    Marker,
    /// A login prompt.
    Login,
}

/// What became of adapting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdaptState {
    /// It goes on, or ended with its keeper.
    Running,
    /// What boots is adapted.
    Done,
    /// Nothing boots.
    Failed,
}

/// Adapting the clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adaptation {
    /// By what: program and version.
    pub by: String,
    /// What became of it.
    pub state: AdaptState,
    /// When it began.
    pub began_at: Timestamp,
    /// How long it took; none while it goes on.
    pub seconds: Option<u64>,
    /// What it said of the machine that people should know, the first [`MAX_TROUBLES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// That it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// By what.
    pub sign: Sign,
    /// From QEMU's start, or the request for a server.
    pub milliseconds: u64,
}

/// That it will not come up, by its own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The line of its console that says so.
    pub line: String,
    /// As of [`Seen`].
    pub milliseconds: u64,
}

/// A file of the evidence; later bytes of it do not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// Its name.
    pub file: String,
    /// Its first bytes.
    pub bytes: u64,
    /// Of these.
    pub blake3: Digest,
}

/// `course.json`: what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Course {
    /// Always 1.
    pub format: u32,
    /// Which.
    pub drill: Uuid,
    /// The keeper's process.
    pub keeper: u32,
    /// How far.
    pub state: State,
    /// Where it was to be adapted: what became of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptation: Option<Adaptation>,
    /// When QEMU started, or the cloud was asked for a server.
    pub booted_at: Option<Timestamp>,
    /// QEMU's version, where it is one of this host.
    pub qemu: Option<String>,
    /// The cloud's server, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// That it is up.
    pub seen: Option<Seen>,
    /// The time is over, and nothing was seen.
    pub silent: bool,
    /// Its console told before that it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The last lines of its console when it was judged, where it did not come up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
    /// How long it stood still for want of room on this host, whole seconds. That time does not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stood_seconds: u64,
    /// It stands still now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stands: bool,
    /// `end` ended it, and not the machine itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended_by_request: bool,
    /// The picture.
    pub picture: Option<Pinned>,
    /// Where the screen can be looked at, while it runs: a socket that speaks VNC.
    pub screen: Option<PathBuf>,
    /// When it ended.
    pub off_at: Option<Timestamp>,
    /// What there is to say: why it failed or ended, or stands still.
    pub words: Option<String>,
    /// Blocks of the array that the machine asked for and that could not be proven: it was told of errors there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unproven_blocks: u64,
    /// What was in the way of reading the array, the first [`MAX_TROUBLES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Course {
    /// Whether it was to be adapted, and that is how far it came.
    pub fn is_adapted(&self, state: AdaptState) -> bool {
        self.adaptation.as_ref().is_some_and(|adaptation| adaptation.state == state)
    }

    /// Whether it is known whether the machine came up.
    pub fn is_judged(&self) -> bool {
        let told = self.seen.is_some() || self.silent || self.failure.is_some();
        told || self.state == State::Failed || self.state == State::Off && !self.ended_by_request
    }
}

/// `withdraw.json`: that a confirmation does not stand any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// Always 1.
    pub format: u32,
    /// Which drill.
    pub drill: Uuid,
    /// Of the confirmation that is withdrawn.
    pub confirmation: Digest,
    /// Who says so.
    pub person: String,
    /// Why.
    pub reason: String,
    /// NAME@SITE of the key.
    pub signer: String,
    /// By this host's clock.
    pub withdrawn_at: Timestamp,
    /// Program and version.
    pub tool: String,
}

/// `confirm.json`: what people say of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// Always 1.
    pub format: u32,
    /// Which.
    pub drill: Uuid,
    /// For people.
    pub site_name: String,
    /// For people.
    pub machine: String,
    /// Whether the machine did what it must.
    pub passed: bool,
    /// Who says so.
    pub person: String,
    /// Anything else.
    pub note: String,
    /// NAME@SITE of the key.
    pub signer: String,
    /// By this host's clock.
    pub confirmed_at: Timestamp,
    /// What had become of it by then.
    pub course: Course,
    /// What was looked at: `drill.json`, and what there was of the serial log and the picture.
    pub evidence: Vec<Pinned>,
    /// Program and version.
    pub tool: String,
}

/// `end.json`: nothing is left over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Always 1.
    pub format: u32,
    /// Which.
    pub drill: Uuid,
    /// By this host's clock.
    pub ended_at: Timestamp,
    /// The evidence as it was then, whole: what is longer was added afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Pinned>,
}

/// As documents are written.
///
/// # Errors
/// None for our own types.
pub fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value).map_err(|e| Error::failed("Drill as JSON").because(e))?;
    json.push(b'\n');
    Ok(json)
}
