//! Snapshots that a machine's platform itself takes of its disks, and what it noted of their changes since the one before: a hint that
//! saves reading, and never the truth.

use super::Origin;
use crate::error::{Error, Result};
use crate::lang::Lang;
use crate::{libvirt, qmp, rbd, say};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What everything of ours in a platform is called, and begins with: snapshots, bitmaps, jobs, exports, nodes.
pub const OURS: &str = "motiongear-";

/// By what a platform tells later what changed since, as the ledger remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Noted {
    /// A dirty bitmap of QEMU.
    Bitmap(qmp::Bitmap),
    /// A snapshot of a Ceph image, which can be compared with a later one.
    Snapshot(rbd::Mark),
    /// A checkpoint of libvirt.
    Checkpoint(libvirt::Mark),
}

/// What is wanted of a disk's bitmaps or snapshots.
#[derive(Debug, Clone)]
pub struct Tracking {
    /// What the names of this disk's begin with.
    pub prefix: String,
    /// The one that tells of all changes since what is known.
    pub reference: Option<Noted>,
}

/// What names of a disk's bitmaps and snapshots begin with: the first eight digits of both UUIDs.
pub fn prefix(shipment: Uuid, disk: Uuid) -> String {
    let short = |uuid: Uuid| uuid.simple().to_string()[..8].to_owned();
    format!("{OURS}{}-{}-", short(shipment), short(disk))
}

/// Whether a name is one of [`prefix`] and a number, of this prefix's shipment where one is given: recovery points are called otherwise.
pub fn is_held(name: &str, prefix: Option<&str>) -> bool {
    let parts = |name: &str| -> Option<[String; 3]> {
        let parts: Vec<String> = name.strip_prefix(OURS)?.split('-').map(str::to_owned).collect();
        parts.try_into().ok()
    };
    let short = |part: &str| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some([shipment, disk, number]) = parts(name) else { return false };
    let wanted = prefix.map(parts);
    short(&shipment)
        && short(&disk)
        && number.parse::<u64>().is_ok()
        && wanted.is_none_or(|wanted| wanted.is_some_and(|[wanted, ..]| wanted == shipment))
}

/// Why what a platform noted is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distrust {
    /// There is none: it was never begun, was removed, or ended with the machine.
    Missing,
    /// The platform was not able to keep it up; it crashed, for instance.
    Inconsistent,
    /// It is another one of the same name.
    Another,
    /// Somebody stopped it.
    Stopped,
    /// It called a block clean that has changed.
    Lied,
    /// It called a block clean that has changed, and could not be asked once more.
    Unasked,
}

impl Distrust {
    /// For people.
    pub fn words(self, lang: Lang) -> String {
        match self {
            Distrust::Missing => say!(lang, "its record of changes is missing", "变更记录缺失"),
            Distrust::Inconsistent => say!(lang, "its record of changes is inconsistent", "变更记录不一致"),
            Distrust::Another => {
                say!(lang, "its record of changes was replaced by another of that name", "变更记录已被同名者替换")
            }
            Distrust::Stopped => say!(lang, "its record of changes was stopped", "变更记录曾被停用"),
            Distrust::Lied => {
                say!(lang, "its record of changes called a changed block clean", "变更记录将已变块标为未变")
            }
            Distrust::Unasked => say!(lang, "its record of changes cannot be asked any more", "变更记录已无法查询"),
        }
    }
}

/// A disk of a snapshot.
#[derive(Debug)]
pub struct TakenDisk {
    /// As it was wished for.
    pub name: String,
    /// Where to read it.
    pub origin: Origin,
    /// By what is told what changes from now on.
    pub new: Option<Noted>,
    /// By what is told what changed before, if it can be believed.
    pub reference: Result<Noted, Distrust>,
}

/// What takes snapshots in place of a hook.
pub trait Platform: Send + Sync {
    /// Does all that can be done before the instant, so that a freeze spans only what cannot. Dropped, it leaves nothing behind.
    ///
    /// # Errors
    /// Says which step failed; nothing is left of it then.
    fn prepare(&self) -> Result<Box<dyn Prepared>>;
    /// For the record: who is asked.
    fn asked(&self) -> Vec<String>;
    /// Whether the snapshot ends with this process. One that does not is used again by the next run.
    fn ends_with_us(&self) -> bool;
}

/// A snapshot that is about to be taken.
pub trait Prepared {
    /// Takes it, of all disks.
    ///
    /// # Errors
    /// Says which step failed; nothing is left of it then.
    fn take(self: Box<Self>) -> Result<Box<dyn Held>>;
}

/// A snapshot that was taken.
pub trait Held: Send {
    /// Finds out what need not be known at the instant; called once, before anything else.
    ///
    /// # Errors
    /// The platform refuses or does not answer.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
    /// Its disks.
    fn disks(&self) -> &[TakenDisk];
    /// The disk of this name.
    fn disk(&self, name: &str) -> Option<&TakenDisk> {
        self.disks().iter().find(|disk| disk.name == name)
    }
    /// Tells `add` the ranges (offset, bytes) of `disk` that changed before this snapshot, since its reference; `check` is asked now and
    /// then whether it is still wanted.
    ///
    /// # Errors
    /// The platform does not tell; what `check` says.
    fn changed(&self, disk: &TakenDisk, check: &dyn Fn() -> Result<()>, add: &mut dyn FnMut(u64, u64)) -> Result<()>;
    /// Whether it has been of one instant all the time: what was read from it counts only then.
    ///
    /// # Errors
    /// It has not; the platform does not answer.
    fn expect_whole(&self) -> Result<()>;
    /// What stands behind `error`, where it is the snapshot.
    fn explain(&self, error: Error) -> Error;
    /// Ends it. Where what was read is durably known, what told of the changes before goes, too.
    ///
    /// # Errors
    /// The platform refuses or does not answer.
    fn end(&mut self, known: bool) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_points_are_not_taken_for_held_snapshots() {
        let ours = "motiongear-0123abcd-89abcdef-12";
        assert!(is_held(ours, None));
        for name in ["motiongear-gen0-abcd1234", "motiongear-0123abcd-89abcdef-", "0123abcd-89abcdef-1", "backup"] {
            assert!(!is_held(name, None), "{name}");
        }
        assert!(is_held(ours, Some("motiongear-0123abcd-00000000-")));
        for prefix in ["motiongear-0123abce-89abcdef-", "motiongear-0123abcd-", ""] {
            assert!(!is_held(ours, Some(prefix)), "{prefix}");
        }
    }
}
