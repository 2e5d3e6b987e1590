//! What is kept of a drill: `STATE/drills/UUID/`, one file for each who writes, so that nobody ever writes over another.
//!
//! | file | written by | what |
//! | --- | --- | --- |
//! | `drill.json` | `start`, before anything is made | which machine, which recovery point or array, how it shall boot |
//! | `course.json` | the keeper, as it goes on | what became of it |
//! | `adapt.log` | the keeper | what the converter said, its first and last [`MAX_ADAPT_LOG_BYTES`]; only where the machine was to be adapted |
//! | `serial.log` | the keeper | what the machine said on its serial console, the first [`MAX_SERIAL_BYTES`] of it |
//! | `picture.png` | QEMU, for the keeper | its screen when a login was seen, or when the time was over; compute services give none |
//! | `confirm.json`, `confirm.json.sig` | `confirm` | what people say of it, signed, with the digests of the evidence |
//! | `end.json` | `end` | that nothing is left over |
//!
//! `lock` is held by `start` and handed on to the keeper: whoever gets it knows that neither lives any more. `end` is asked for by the
//! file `ending`. Images that the machine writes to lie beside, until `end`.

use crate::error::{Error, IoContext, Result};
use crate::io::{create_file_durably, read_bounded, sync_dir, write_file_durably};
use crate::lang::Lang;
use crate::ledger::Ledger;
use crate::say;
use jiff::Timestamp;
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::names::{check_name, check_text};
use motiongear_manifest::tree::Digest;
use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Largest document, bytes.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// What is kept of the serial console, bytes.
pub const MAX_SERIAL_BYTES: u64 = 4 << 20;
/// What is kept of the converter's words, of its first and of its last ones each, bytes.
pub const MAX_ADAPT_LOG_BYTES: usize = 1 << 20;
/// Largest picture, bytes; a screen of 1280 × 800 has some tens of kilobytes.
pub const MAX_PICTURE_BYTES: u64 = 16 << 20;
/// Longest texts of people.
pub const MAX_TEXT_BYTES: usize = 500;
/// What is kept of troubles with an array.
pub const MAX_TROUBLES: usize = 100;
/// How long a converter that was killed may take to be gone.
const DIES_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at a lock.
const LOOK: Duration = Duration::from_millis(50);

/// The serial console's log.
pub const SERIAL: &str = "serial.log";
/// The screen.
pub const PICTURE: &str = "picture.png";
/// The converter's words.
pub const ADAPT_LOG: &str = "adapt.log";
const DRILL: &str = "drill.json";
/// What became of the machine.
pub const COURSE: &str = "course.json";
const CONFIRM: &str = "confirm.json";
const CONFIRM_SIG: &str = "confirm.json.sig";
const END: &str = "end.json";
/// What a confirmation pins.
const EVIDENCE: [&str; 4] = [DRILL, ADAPT_LOG, SERIAL, PICTURE];
/// Where the converter is, until it ends.
const BOX: &str = "adapting";
const LOCK: &str = "lock";
const ENDING: &str = "ending";

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
    /// The bridge, as typed.
    pub bridge: String,
    /// Our interface on it.
    pub tap: String,
    /// The machine's own address where it is known.
    pub mac: String,
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
        self.seen.is_some() || self.silent || matches!(self.state, State::Off | State::Failed)
    }
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
}

/// The directory of a drill.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    /// Which.
    pub id: Uuid,
}

impl Folder {
    /// `STATE/drills`.
    pub fn all(ledger: &Ledger) -> PathBuf {
        ledger.state().join("drills")
    }

    /// Of a drill that may not exist yet.
    pub fn of(ledger: &Ledger, id: Uuid) -> Folder {
        Folder { path: Folder::all(ledger).join(id.to_string()), id }
    }

    /// Every drill of this ledger, oldest first by what `drill.json` says. A directory without one is of a `start` that was killed before it
    /// did anything, and is passed over.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(ledger: &Ledger) -> Result<Vec<(Folder, Drill)>> {
        let dir = Folder::all(ledger);
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).context(|| format!("Directory {}", dir.display()))? {
            let entry = entry.context(|| format!("Directory {}", dir.display()))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok()) else { continue };
            let folder = Folder { path: entry.path(), id };
            if let Some(drill) = folder.drill()? {
                found.push((folder, drill));
            }
        }
        found.sort_by_key(|(folder, drill)| (drill.made_at, folder.id));
        Ok(found)
    }

    /// The drill that people call `id`: its UUID, or the beginning of it.
    ///
    /// # Errors
    /// None, or several.
    pub fn find(ledger: &Ledger, id: &str) -> Result<(Folder, Drill)> {
        let wanted = id.to_ascii_lowercase();
        let mut fitting: Vec<(Folder, Drill)> =
            Folder::list(ledger)?.into_iter().filter(|(f, _)| f.id.to_string().starts_with(&wanted)).collect();
        match (fitting.pop(), fitting.len()) {
            (Some(_), 0) if wanted.len() < 4 => Err(Error::usage(format!(
                "Drill '{id:.50}': expected four characters of its UUID at least, found fewer"
            ))),
            (Some(found), 0) => Ok(found),
            (Some(_), _) => Err(Error::usage(format!("Drill '{id:.50}': expected the name of one, found several"))
                .next("give more of its UUID, four characters at least: 'motiongear drill show' lists them")),
            (None, _) => {
                Err(Error::failed(format!("Drill '{id:.50}': expected one of this ledger, found none of that name"))
                    .next("'motiongear drill show' lists them; --state DIR names another ledger"))
            }
        }
    }

    /// A file of it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `drill.json`.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn drill(&self) -> Result<Option<Drill>> {
        let drill: Option<Drill> = self.read(DRILL)?;
        let Some(drill) = drill else { return Ok(None) };
        let names = [("Site name", &drill.site_name), ("Machine name", &drill.machine)];
        let disks = drill.disks.iter().map(|disk| ("Disk name", &disk.name));
        names.into_iter().chain(disks).try_for_each(|(what, name)| check_name(what, name))?;
        self.is_mine(DRILL, drill.drill, drill.format)?;
        Ok(Some(drill))
    }

    /// `course.json`.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn course(&self) -> Result<Option<Course>> {
        let course: Option<Course> = self.read(COURSE)?;
        if let Some(course) = &course {
            self.is_mine(COURSE, course.drill, course.format)?;
        }
        Ok(course)
    }

    /// `confirm.json`, its bytes and those of its signature.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn confirmation(&self) -> Result<Option<(Confirmation, Vec<u8>, Vec<u8>)>> {
        let confirmation: Option<Confirmation> = self.read(CONFIRM)?;
        let Some(confirmation) = confirmation else { return Ok(None) };
        self.is_mine(CONFIRM, confirmation.drill, confirmation.format)?;
        for (what, text) in [("Person", &confirmation.person), ("Note", &confirmation.note)] {
            check_text(what, text, MAX_TEXT_BYTES)?;
        }
        let bytes = read_bounded(&self.join(CONFIRM), MAX_DOCUMENT_BYTES)?;
        let signature = read_bounded(&self.join(CONFIRM_SIG), MAX_DOCUMENT_BYTES)?;
        Ok(Some((confirmation, bytes, signature)))
    }

    /// `end.json`.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn ended(&self) -> Result<Option<Ended>> {
        let ended: Option<Ended> = self.read(END)?;
        if let Some(ended) = &ended {
            self.is_mine(END, ended.drill, ended.format)?;
        }
        Ok(ended)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.join(name);
        if !path.try_exists().context(|| format!("File {}", path.display()))? {
            return Ok(None);
        }
        serde_json::from_slice(&read_bounded(&path, MAX_DOCUMENT_BYTES)?).map(Some).map_err(|error| {
            Error::failed(format!(
                "File {}: expected what motiongear drill wrote, found something else",
                path.display()
            ))
            .because(error)
            .next("the state directory was altered: bring it back from a backup, or move that drill's directory away")
        })
    }

    fn is_mine(&self, name: &str, found: Uuid, format: u32) -> Result<()> {
        match found == self.id && format == 1 {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "File {}: expected format 1 of drill {}, found format {format} of {found}",
                self.join(name).display(),
                self.id
            ))),
        }
    }

    /// Writes `drill.json`, once.
    ///
    /// # Errors
    /// It is there already, or the file system refuses.
    pub fn put_drill(&self, drill: &Drill) -> Result<()> {
        create_file_durably(&self.path, DRILL, &json(drill)?)
    }

    /// Writes `course.json`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn put_course(&self, course: &Course) -> Result<()> {
        write_file_durably(&self.path, COURSE, &json(course)?)
    }

    /// Keeps others from confirming it while the file is open.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn hold_confirmation(&self) -> Result<File> {
        // Written once, and never again.
        let path = self.join(DRILL);
        let what = || format!("Lock {}", path.display());
        let file = File::open(&path).context(what)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).context(what)?;
        Ok(file)
    }

    /// Writes a confirmation: the signature first, for without it the document is none.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn put_confirmation(&self, document: &[u8], signature: &str) -> Result<()> {
        write_file_durably(&self.path, CONFIRM_SIG, signature.as_bytes())?;
        create_file_durably(&self.path, CONFIRM, document)
    }

    /// Writes `end.json`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn put_end(&self, ended: &Ended) -> Result<()> {
        write_file_durably(&self.path, END, &json(ended)?)
    }

    /// Asks the keeper to end the machine.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn ask_to_end(&self) -> Result<()> {
        write_file_durably(&self.path, ENDING, b"")
    }

    /// Whether somebody asked for its end.
    pub fn is_to_end(&self) -> bool {
        self.join(ENDING).exists()
    }

    /// Holds the drill, `within` at most until whoever has it is gone; `None` where somebody has it still.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn hold(&self, within: Duration) -> Result<Option<File>> {
        let path = self.join(LOCK);
        let what = || format!("Lock {}", path.display());
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).context(what)?;
        let until = Instant::now() + within;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOOK),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno).context(what),
            }
        }
    }

    /// A file as it is now; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is larger than it may be.
    pub fn pin(&self, name: &str) -> Result<Option<Pinned>> {
        let path = self.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_bounded(&path, MAX_PICTURE_BYTES)?;
        Ok(Some(Pinned { file: name.to_owned(), bytes: bytes.len() as u64, blake3: Digest::of(&bytes) }))
    }

    /// Everything that a confirmation is about and that is never written again, but for the log, which may grow.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn pin_evidence(&self) -> Result<Vec<Pinned>> {
        let pinned: Result<Vec<Option<Pinned>>> = EVIDENCE.into_iter().map(|name| self.pin(name)).collect();
        Ok(pinned?.into_iter().flatten().collect())
    }

    /// Whether a file is still what was pinned.
    pub fn is_as(&self, pinned: &Pinned) -> bool {
        let known = EVIDENCE.contains(&pinned.file.as_str());
        let bytes = known.then(|| read_bounded(&self.join(&pinned.file), MAX_PICTURE_BYTES).ok()).flatten();
        let first = bytes.as_ref().and_then(|bytes| bytes.get(..usize::try_from(pinned.bytes).ok()?));
        first.is_some_and(|first| Digest::of(first) == pinned.blake3)
    }

    /// The image that a disk's writes go to.
    pub fn overlay(&self, slot: usize) -> PathBuf {
        self.join(&format!("disk{slot}.qcow2"))
    }

    /// The directory that the converter works in, and takes for `/tmp`.
    pub fn adapting(&self) -> PathBuf {
        self.join(BOX)
    }

    /// Removes the converter's directory, whatever it left there.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn clear_adapting(&self) -> Result<bool> {
        let path = self.adapting();
        let until = Instant::now() + DIES_WITHIN;
        loop {
            match std::fs::remove_dir_all(&path) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                // Who was killed a moment ago may still have been making something.
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty && Instant::now() < until => {
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(error).context(|| format!("Directory {}", path.display())),
            }
        }
    }

    /// The variables of UEFI.
    pub fn variables(&self) -> PathBuf {
        self.join("variables.fd")
    }

    /// Removes what only a running machine needs. Says whether there was something.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn clear(&self, disks: usize) -> Result<bool> {
        let mut any = self.clear_adapting()?;
        let files = (0..disks).map(|slot| self.overlay(slot)).chain([self.variables(), self.join(ENDING)]);
        for path in files {
            match std::fs::remove_file(&path) {
                Ok(()) => any = true,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(|| format!("File {}", path.display())),
            }
        }
        sync_dir(&self.path)?;
        Ok(any)
    }

    /// Removes all of it: a drill that never ran is no evidence of anything.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.path).context(|| format!("Directory {}", self.path.display()))?;
        sync_dir(self.path.parent().unwrap_or(Path::new("/")))
    }
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
