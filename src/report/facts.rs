//! Everything a report says, once, free of language: the HTML and the JSON are two views of [`Facts`].

use crate::custody::centre::CentreFacts;
use crate::custody::road::{EventFacts, box_seals_differ};
use crate::drill::DrillFacts;
use crate::openstack::server::ServerPlan;
use crate::trust::Compared;
use jiff::Timestamp;
use motiongear_manifest::documents::seal::{Basis, BlockCounts, Consistency};
use motiongear_manifest::tree::Digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Which of the two reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// At the branch, after sealing.
    Handover,
    /// At the data centre, after importing.
    Import,
}

impl Kind {
    /// The word in file names.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Handover => "handover",
            Kind::Import => "import",
        }
    }
}

/// What an auditor wants to know in five seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was planned is there and was proven.
    Good,
    /// Usable, with remarks that whoever signs must have read.
    Remarks,
    /// Not what was promised: do not sign, or sign for that.
    Bad,
}

/// One reason why the verdict is not simply good. Numbers only; words are the template's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Remark {
    /// The medium was not checked against this seal, or the last check failed.
    NotVerified,
    /// The last check of the medium found faults.
    VerifyFailed,
    /// Planned disks that are not in the shipment.
    Excluded {
        /// How many.
        disks: u64,
    },
    /// Bytes that sources could not give.
    Unreadable {
        /// Blocks with at least one such byte.
        blocks: u64,
        /// Bytes.
        bytes: u64,
    },
    /// Disks whose copy is not of one point in time.
    Fuzzy {
        /// How many.
        disks: u64,
    },
    /// Disks whose point in time the engineer asserted.
    Asserted {
        /// How many.
        disks: u64,
    },
    /// Nothing is encrypted.
    Plaintext,
    /// Nobody signed `shipment.json`: who may read the shipment is the word of whoever had the array before.
    ShipmentNotSigned,
    /// The seal's time lies behind the report's: one of two clocks is wrong.
    SealedInFuture,
    /// Writing processes that ended without saying so.
    Interrupted {
        /// How often.
        times: u64,
    },
    /// Runs of import that did not come to their end, and were resumed.
    ImportInterrupted {
        /// How often.
        times: u64,
    },
    /// Disks of the seal that are not fully imported.
    NotImported {
        /// How many.
        disks: u64,
    },
    /// Blocks that failed a check and were not written.
    Damaged {
        /// How many.
        blocks: u64,
    },
    /// Blocks of volumes that were not re-read.
    Trusted {
        /// How many.
        blocks: u64,
    },
    /// Read-back could have been answered by a cache.
    ThroughCache {
        /// Of how many disks.
        disks: u64,
    },
    /// Volumes whose digest, re-read, is not the seal's.
    DigestDiffers {
        /// How many.
        disks: u64,
    },
    /// Volumes that `verify --volumes` found missing or changed since the import.
    VolumeDiffers {
        /// How many.
        disks: u64,
    },
    /// Volumes whose recovery point was removed since the import.
    PointMissing {
        /// How many.
        disks: u64,
    },
    /// Volumes that changed since the import; the difference was accepted.
    DifferenceAccepted {
        /// How many.
        disks: u64,
    },
    /// Volumes whose head is still withheld.
    HeadWithheld {
        /// How many.
        disks: u64,
    },
    /// Machines whose last confirmed drill failed, or whose evidence was altered since.
    DrillFailed {
        /// How many.
        machines: u64,
    },
    /// The signer of the seal was not compared with a trust file.
    SignerNotChecked,
    /// Nothing says that the seal is the one that left the branch.
    Uncompared,
    /// The custody chain is broken or absent.
    Custody,
    /// Box seals at arrival are not those at dispatch.
    BoxSeals,
}

impl Remark {
    /// How bad it is by itself.
    pub fn verdict(&self) -> Verdict {
        match self {
            Remark::NotVerified
            | Remark::VerifyFailed
            | Remark::NotImported { .. }
            | Remark::Damaged { .. }
            | Remark::DigestDiffers { .. }
            | Remark::VolumeDiffers { .. }
            | Remark::HeadWithheld { .. } => Verdict::Bad,
            Remark::Interrupted { .. } | Remark::ImportInterrupted { .. } => Verdict::Good,
            _ => Verdict::Remarks,
        }
    }
}

/// Somebody who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// For the bank.
    Bank,
    /// The field engineer.
    Engineer,
    /// Who drives.
    Courier,
    /// Who takes over at the data centre.
    Receiver,
}

/// A box to sign in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// As what.
    pub role: Role,
    /// Who; empty leaves a line to write on.
    pub name: String,
}

/// A site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// For people.
    pub name: String,
    /// Identity.
    pub uuid: Uuid,
}

/// A medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Medium {
    /// From 1.
    pub number: u32,
    /// Identity.
    pub uuid: Uuid,
    /// Serial numbers; may be empty.
    pub serial: String,
}

/// The shipment as prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipment {
    /// Identity.
    pub uuid: Uuid,
    /// May be empty.
    pub label: String,
    /// May be empty.
    pub asset_tag: String,
    /// Format version.
    pub format: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Whether anything is encrypted, and with what.
    pub suite: String,
    /// Whether anything is encrypted.
    pub encrypted: bool,
    /// Whether `shipment.json` is signed; not known where the array is gone.
    #[serde(default)]
    pub signed: Option<bool>,
    /// When `init` ran.
    pub created_at: Timestamp,
    /// Media.
    pub media: Vec<Medium>,
}

/// The seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// BLAKE3 of `seal.json`.
    pub digest: Digest,
    /// What is read out over the telephone.
    pub spoken_code: String,
    /// NAME@SITE.
    pub signer: String,
    /// `SHA256:…` of the key that signed.
    pub key: String,
    /// Whether that key was compared with a trust file.
    pub signer_checked: bool,
    /// By what the data centre knew it to be the one that left the branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
    /// By the sealing host's clock.
    pub sealed_at: Timestamp,
    /// The seal before it.
    pub supersedes: Option<Digest>,
    /// Of the manifest on the array.
    pub manifest_file: String,
    /// Of the manifest on the array.
    pub manifest_blake3: Digest,
    /// Of the plain manifest.
    pub manifest_plain_blake3: Digest,
    /// How many packs.
    pub packs: u64,
    /// Bytes in them.
    pub pack_bytes: u64,
    /// Records in them.
    pub records: u64,
    /// Program and version that sealed.
    pub tool: String,
}

/// Who can decrypt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientFacts {
    /// `age1…`.
    pub recipient: String,
    /// To compare with paper.
    pub fingerprint: String,
}

/// How many blocks of one side were looked at, and how many taken on trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Proof {
    /// Blocks read (again) and compared.
    pub read: u64,
    /// Blocks taken on trust.
    pub trusted: u64,
}

/// Bytes by what became of them; they add up to the disk's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ByteClasses {
    /// On the array, as stored: compressed and encrypted, without headers and padding.
    pub stored: u64,
    /// Saved by compression.
    pub compressed_away: u64,
    /// All-zero blocks, not stored.
    pub zero: u64,
}

/// A stretch of a disk, for the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cell {
    /// Only zeros.
    Zero,
    /// Some data.
    Stored,
    /// The source could not give all of it.
    Unreadable,
    /// Damaged on the array, or not written into the volume.
    Damaged,
}

impl Cell {
    /// One letter each in the JSON.
    pub fn letter(self) -> char {
        match self {
            Cell::Zero => '.',
            Cell::Stored => 's',
            Cell::Unreadable => 'u',
            Cell::Damaged => 'd',
        }
    }
    /// Back from the letter.
    pub fn from_letter(letter: char) -> Option<Cell> {
        [Cell::Zero, Cell::Stored, Cell::Unreadable, Cell::Damaged].into_iter().find(|cell| cell.letter() == letter)
    }
}

/// The map of a disk: bounded, whatever its size.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Map {
    /// Blocks that one cell stands for.
    pub blocks_per_cell: u64,
    /// One letter a cell: `.` zero, `s` stored, `u` unreadable, `d` damaged; the worst of its blocks counts.
    pub cells: String,
}

/// A range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length, bytes.
    pub bytes: u64,
}

/// How thoroughly a volume was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readback {
    /// Every block.
    Full,
    /// Some blocks.
    Sample,
    /// None.
    None,
}

/// What the last whole read of a volume found, after its import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// When it ended.
    pub checked_at: Timestamp,
    /// The volume held what was proven.
    pub good: bool,
    /// Blocks that differ or could not be read.
    pub differing: u64,
    /// Why it could not be read at all.
    pub why: Option<String>,
    /// Its recovery point, where that was not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_point: Option<String>,
    /// When the difference was accepted.
    pub accepted_at: Option<Timestamp>,
    /// Why it was.
    pub reason: Option<String>,
}

/// What the data centre's ledger knows of one imported disk. Filled by one function of `gather`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Where it was written.
    pub target: String,
    /// First write.
    pub started_at: Timestamp,
    /// Complete since.
    pub finished_at: Option<Timestamp>,
    /// How it was read back.
    pub readback: Readback,
    /// Blocks read from the array and compared with the manifest, and those trusted.
    pub medium: Proof,
    /// Blocks re-read from the volume, and those trusted.
    pub volume: Proof,
    /// Of those re-read, holes: zeros by the word of the file system that holds the volume.
    pub holes: u64,
    /// Read-back may have been answered by a cache.
    pub through_cache: bool,
    /// What the re-read volume hashes to (first bytes, of the disk's size).
    pub digest: Option<Digest>,
    /// Blocks that failed a check and were not written.
    pub damaged: u64,
    /// The first of them.
    pub damaged_blocks: Vec<u64>,
    /// Block 0 and the last block are written: it can boot.
    pub head_released: bool,
    /// Released although the source had unreadable ranges.
    pub accepted_unreadable: bool,
    /// The snapshot of what was proven, as the cloud calls it; none where the volume can have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_point: Option<String>,
    /// What `verify --volumes` found last; none where it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Checked>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// In record headers.
    pub number: u32,
    /// Its machine.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// Identity.
    pub uuid: Uuid,
    /// 0 for the seed.
    pub generation: u32,
    /// Size.
    pub bytes: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// What `b3sum` prints.
    pub digest: Digest,
    /// One point in time or not.
    pub consistency: Consistency,
    /// Why.
    pub basis: Basis,
    /// The snapshot's name for its point in time.
    pub point_in_time: Option<String>,
    /// Where it was read from.
    pub source: String,
    /// First read.
    pub started_at: Timestamp,
    /// Complete since.
    pub finished_at: Option<Timestamp>,
    /// What the source was bound by, for people.
    pub identity: String,
    /// What the source was bound by, whole.
    pub identity_details: serde_json::Value,
    /// Sector sizes, partitions, file systems, for people.
    pub contents: Vec<String>,
    /// Counts.
    pub blocks: BlockCounts,
    /// Bytes.
    pub classes: ByteClasses,
    /// Where the source gave nothing: the first ranges.
    pub unreadable: Vec<Range>,
    /// How many such ranges there are.
    pub unreadable_ranges: u64,
    /// Bytes in all of them.
    pub unreadable_bytes: u64,
    /// The map.
    pub map: Map,
    /// Blocks read from the source.
    pub at_source: Proof,
    /// Records re-read from the array.
    pub at_medium: Proof,
    /// In the data centre.
    pub imported: Option<Imported>,
}

impl Disk {
    /// All blocks.
    pub fn block_count(&self) -> u64 {
        self.blocks.stored + self.blocks.zero + self.blocks.unreadable
    }

    /// Whether some zero blocks may be holes, taken by the word of a file system or server: of a source that is no device of this
    /// host, or of a volume.
    pub fn may_have_holes(&self) -> bool {
        let kind = self.identity_details.get("kind").and_then(|kind| kind.as_str());
        matches!(kind, Some("file" | "nbd" | "image")) && self.blocks.zero > 0
            || self.imported.as_ref().is_some_and(|import| import.holes > 0)
    }

    /// Whether "source = target" may be signed: every block was read on each side, none trusted, none damaged or withheld, and
    /// the volume, re-read from its medium, has the seal's digest.
    pub fn proven(&self) -> bool {
        self.imported.as_ref().is_some_and(|import| {
            import.finished_at.is_some()
                && import.readback == Readback::Full
                && self.at_source.trusted == 0
                && import.medium.trusted == 0
                && import.volume.trusted == 0
                && import.volume.read == self.block_count()
                && !import.through_cache
                && import.damaged == 0
                && import.head_released
                && import.check.as_ref().is_none_or(|check| check.good)
                && import.digest == Some(self.digest)
        })
    }
}

/// A planned disk that was not copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// Its machine.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// In the engineer's words.
    pub reason: String,
}

/// A check of the medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// When it ended.
    pub at: Timestamp,
    /// Nothing was wrong.
    pub good: bool,
    /// Contents, too.
    pub with_identity: bool,
}

/// This host's clock against its hardware clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "known", rename_all = "kebab-case")]
pub enum Clock {
    /// No hardware clock to compare with.
    NotKnown,
    /// Compared with the hardware clock.
    Rtc {
        /// System minus hardware clock, seconds.
        offset_seconds: i64,
    },
}

/// A writing process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// From 1.
    pub number: u32,
    /// Its host.
    pub host: String,
    /// Program and version.
    pub tool: String,
    /// Start.
    pub started_at: Timestamp,
    /// End; none where it was killed or lost power.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub ending: Option<String>,
    /// It did not end by itself.
    pub interrupted: bool,
}

/// A run of import at this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportRun {
    /// Where to, as typed.
    pub target: String,
    /// Program and version.
    pub tool: String,
    /// `io_uring` or `threads`.
    pub engine: String,
    /// Start.
    pub started_at: Timestamp,
    /// End; none where it was killed or lost power.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub ending: Option<String>,
    /// It did not come to its end.
    pub interrupted: bool,
}

/// A drill of disks of this seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    /// What is known of it.
    #[serde(flatten)]
    pub facts: DrillFacts,
    /// Its screen as PNG, in base64; none where there is none, or it is too large for paper.
    pub picture: Option<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// When.
    pub at: Timestamp,
    /// A short word.
    pub kind: String,
    /// `MACHINE` or `MACHINE/DISK`; may be empty.
    pub object: String,
    /// For people.
    pub detail: String,
}

/// What a stock command repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repeat {
    /// The digest and spoken code of the seal.
    SealDigest,
    /// The signature on the seal.
    SealSignature,
    /// `shipment.json` and the key envelopes.
    Pins,
    /// The packs.
    Packs,
    /// The manifest on the array.
    Manifest,
    /// Decrypting the manifest.
    Decrypt,
    /// The manifest's rows.
    Rows,
    /// A custody event's signature.
    Custody,
    /// The signature of an event of the data centre.
    Centre,
    /// A volume's digest.
    Volume,
    /// What people said of a drill.
    Drill,
    /// This report's signature.
    Report,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// What it repeats.
    pub repeats: Repeat,
    /// To type.
    pub command: String,
    /// What it must print, where that is known.
    pub expected: Option<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Identity.
    pub uuid: Uuid,
    /// Its inventory, as recorded.
    pub inventory: serde_json::Value,
    /// What it is to be in its cloud, as the plan of the import said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerPlan>,
}

/// The report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Which report.
    pub report: Kind,
    /// Its number; letters, digits and hyphens.
    pub number: String,
    /// By this host's clock.
    pub made_at: Timestamp,
    /// Minutes by which this host's local time is ahead of UTC.
    #[serde(default)]
    pub utc_offset_minutes: i32,
    /// Program and version.
    pub tool: String,
    /// The host that made it.
    pub host: String,
    /// Whose disks.
    pub site: Site,
    /// Why.
    pub purpose: String,
    /// Who signs.
    pub people: Vec<Person>,
    /// The verdict.
    pub verdict: Verdict,
    /// Its reasons.
    pub remarks: Vec<Remark>,
    /// The shipment.
    pub shipment: Shipment,
    /// The seal.
    pub seal: Seal,
    /// Numbers on the box's seals.
    pub box_seals: Vec<String>,
    /// Who can decrypt.
    pub recipients: Vec<RecipientFacts>,
    /// The machines.
    pub machines: Vec<Machine>,
    /// The disks.
    pub disks: Vec<Disk>,
    /// Planned, not copied.
    pub excluded: Vec<Excluded>,
    /// Checks of the medium against this seal.
    pub verifications: Vec<Verified>,
    /// The chain on the array so far.
    pub custody: Vec<EventFacts>,
    /// The data centre's own chain so far.
    pub centre: Vec<CentreFacts>,
    /// What is wrong or odd about either chain.
    pub custody_notes: Vec<String>,
    /// The clock.
    pub clock: Clock,
    /// Writing processes.
    pub processes: Vec<Process>,
    /// Runs of import; none in a handover report.
    pub import_runs: Vec<ImportRun>,
    /// Drills of these disks; none in a handover report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drills: Vec<Drilled>,
    /// Everything else that happened.
    pub events: Vec<Happening>,
    /// What was written on the host that made this report or the copies.
    pub host_writes: Vec<Happening>,
    /// Stock commands.
    pub commands: Vec<Command>,
    /// What else people should know.
    pub notes: Vec<String>,
}

impl Facts {
    /// Works out remarks and verdict from everything else.
    pub fn judge(&mut self) {
        let mut remarks = Vec::new();
        let count = |test: &dyn Fn(&Disk) -> bool| self.disks.iter().filter(|disk| test(disk)).count() as u64;
        if self.report == Kind::Handover {
            match self.verifications.last() {
                None => remarks.push(Remark::NotVerified),
                Some(check) if !check.good => remarks.push(Remark::VerifyFailed),
                Some(_) => {}
            }
        } else {
            self.judge_import(&mut remarks);
        }
        let blocks: u64 = self.disks.iter().map(|disk| disk.blocks.unreadable).sum();
        let bytes: u64 = self.disks.iter().map(|disk| disk.unreadable_bytes).sum();
        let fuzzy = count(&|disk| disk.consistency == Consistency::Fuzzy);
        let asserted = count(&|disk| disk.basis == Basis::Asserted);
        let times = self.processes.iter().filter(|process| process.interrupted).count() as u64;
        let excluded = self.excluded.len() as u64;
        let more = [
            (blocks > 0, Remark::Unreadable { blocks, bytes }),
            (excluded > 0, Remark::Excluded { disks: excluded }),
            (fuzzy > 0, Remark::Fuzzy { disks: fuzzy }),
            (asserted > 0, Remark::Asserted { disks: asserted }),
            (!self.shipment.encrypted, Remark::Plaintext),
            (self.shipment.signed == Some(false), Remark::ShipmentNotSigned),
            (self.seal.sealed_at > self.made_at, Remark::SealedInFuture),
            (times > 0, Remark::Interrupted { times }),
            (!self.custody_notes.is_empty(), Remark::Custody),
        ];
        remarks.extend(more.into_iter().filter(|(holds, _)| *holds).map(|(_, remark)| remark));
        self.verdict = remarks.iter().map(Remark::verdict).max().unwrap_or(Verdict::Good);
        self.remarks = remarks;
    }

    fn judge_import(&self, remarks: &mut Vec<Remark>) {
        let count = |test: &dyn Fn(&Disk) -> bool| self.disks.iter().filter(|disk| test(disk)).count() as u64;
        let import = |test: &dyn Fn(&Imported) -> bool| count(&|disk| disk.imported.as_ref().is_some_and(test));
        let missing = count(&|disk| disk.imported.as_ref().is_none_or(|import| import.finished_at.is_none()));
        let sum = |of: &dyn Fn(&Imported) -> u64| self.disks.iter().filter_map(|d| d.imported.as_ref()).map(of).sum();
        let damaged: u64 = sum(&|import| import.damaged);
        let trusted: u64 = sum(&|import| import.volume.trusted);
        let differs =
            count(&|disk| disk.imported.as_ref().is_some_and(|i| i.digest.is_some_and(|digest| digest != disk.digest)));
        let checked = |accepted: bool| {
            import(&|i| i.check.as_ref().is_some_and(|c| !c.good && c.accepted_at.is_some() == accepted))
        };
        let (changed, accepted) = (checked(false), checked(true));
        let pointless = import(&|i| i.check.as_ref().is_some_and(|check| check.missing_point.is_some()));
        let withheld = import(&|import| import.finished_at.is_some() && !import.head_released);
        let cached = import(&|import| import.through_cache);
        let times = self.import_runs.iter().filter(|run| run.interrupted).count() as u64;
        // The last word on each machine counts: on its recovery points, and on what is on the array; neither speaks for the other.
        let words: BTreeMap<(&str, bool), bool> = self
            .drills
            .iter()
            .filter_map(|drilled| {
                let facts = &drilled.facts;
                Some(((facts.drill.machine.as_str(), facts.drill.is_from_array()), facts.stands()?))
            })
            .collect();
        let failed: BTreeSet<&str> =
            words.iter().filter(|(_, good)| !**good).map(|((machine, _), _)| *machine).collect();
        let failed = failed.len() as u64;
        let more = [
            (times > 0, Remark::ImportInterrupted { times }),
            (missing > 0, Remark::NotImported { disks: missing }),
            (damaged > 0, Remark::Damaged { blocks: damaged }),
            (differs > 0, Remark::DigestDiffers { disks: differs }),
            (changed > 0, Remark::VolumeDiffers { disks: changed }),
            (pointless > 0, Remark::PointMissing { disks: pointless }),
            (accepted > 0, Remark::DifferenceAccepted { disks: accepted }),
            (withheld > 0, Remark::HeadWithheld { disks: withheld }),
            (trusted > 0, Remark::Trusted { blocks: trusted }),
            (cached > 0, Remark::ThroughCache { disks: cached }),
            (failed > 0, Remark::DrillFailed { machines: failed }),
            (!self.seal.signer_checked, Remark::SignerNotChecked),
            (!matches!(self.seal.compared, Some(Compared::Code | Compared::Received)), Remark::Uncompared),
            (box_seals_differ(&self.custody), Remark::BoxSeals),
        ];
        remarks.extend(more.into_iter().filter(|(holds, _)| *holds).map(|(_, remark)| remark));
    }

    /// Whether some disk was live while it was read: what is on it then is what was read, and never was the disk at any moment.
    pub fn any_fuzzy(&self) -> bool {
        self.disks.iter().any(|disk| disk.consistency == Consistency::Fuzzy)
    }

    /// "Source = target" for every disk; "target = what was read" for fuzzy ones.
    pub fn all_proven(&self) -> bool {
        !self.disks.is_empty() && self.disks.iter().all(Disk::proven)
    }
}
