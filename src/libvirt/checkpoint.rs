//! Checkpoints: libvirt's records of what a machine wrote since an instant, a dirty bitmap in each disk that is qcow2. A hint that saves
//! reading, and never the truth.
//!
//! `motiongear-SHIPMENT-DISK-N`, after the first disk of the snapshot that it was begun with, and a number that rises. Each snapshot
//! begins one, and all go on until they are removed, so that none depends on another: the one that tells of all changes since what is
//! known, the *reference*, is removed when what was found with it is durable. Had that not come to be, it is still there.
//!
//! A checkpoint is of all disks of a snapshot, and what is known of each disk goes on by itself: it is removed only by a snapshot of
//! all the disks that it is of.

use super::domain::Domain;
use super::snapshot::Wish;
use super::{virsh, xml};
use crate::error::{Error, Result};
use crate::source::tracking::{Distrust, Noted, is_held};
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// Checkpoints of ours that are looked at.
const MOST: usize = 1024;

/// A checkpoint as the ledger remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Its name.
    pub checkpoint: String,
    /// When libvirt made it, in seconds since 1970: another one of that name is of another time.
    pub created: u64,
}

/// A checkpoint as libvirt has it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub mark: Mark,
    /// Targets of its disks, and whether the bitmap of each is there and whole.
    disks: Vec<(String, bool)>,
}

impl Known {
    /// Whether it is of no other disks than these.
    pub fn is_within(&self, wishes: &[Wish]) -> bool {
        self.disks.iter().all(|(target, _)| wishes.iter().any(|wish| wish.target == *target))
    }
}

/// What a snapshot does with checkpoints.
pub(super) struct Prepared {
    /// The one that it begins; none where no disk can have one.
    pub name: Option<String>,
    /// For each wish, what tells of its changes, if it can be believed.
    pub references: Vec<Result<Known, Distrust>>,
}

/// Brings the checkpoints of a machine to where a snapshot can go on: references, and none that nobody needs.
///
/// # Errors
/// libvirt refuses.
pub(super) fn prepare(domain: &Domain, wishes: &[Wish]) -> Result<Prepared> {
    let mut known = Vec::new();
    for name in ours(domain)? {
        known.push(look(domain, &name)?);
    }
    let references: Vec<_> = wishes.iter().map(|wish| judge(&known, wish)).collect();
    let mut last = 0;
    for one in &known {
        let name = one.mark.checkpoint.as_str();
        last = last.max(number(name));
        let of_ours = wishes.iter().any(|wish| is_held(name, Some(&wish.tracking.prefix)));
        let needed = references.iter().flatten().any(|reference| reference.mark == one.mark);
        if of_ours && !needed && one.is_within(wishes) {
            remove(domain, name)?;
        }
    }
    let tracked = |wish: &&Wish| domain.find(&wish.target).is_ok_and(|disk| disk.keeps_checkpoints());
    // Beyond what was ever used: where libvirt forgot a checkpoint, its bitmap may still be in the image.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let next = now.max(last.saturating_add(1));
    let name = wishes.iter().find(tracked).map(|wish| format!("{}{next}", wish.tracking.prefix));
    Ok(Prepared { name, references })
}

/// Whether the reference of a wish can be believed.
fn judge(known: &[Known], wish: &Wish) -> Result<Known, Distrust> {
    let Some(Noted::Checkpoint(wanted)) = &wish.tracking.reference else { return Err(Distrust::Missing) };
    let found = known.iter().find(|one| one.mark.checkpoint == wanted.checkpoint).ok_or(Distrust::Missing)?;
    if found.mark != *wanted {
        return Err(Distrust::Another);
    }
    match found.disks.iter().find(|(target, _)| *target == wish.target) {
        None => Err(Distrust::Missing),
        Some((_, false)) => Err(Distrust::Inconsistent),
        Some((_, true)) => Ok(found.clone()),
    }
}

fn number(name: &str) -> u64 {
    name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Names of the checkpoints that seeds and scans of any shipment hold.
fn ours(domain: &Domain) -> Result<Vec<String>> {
    let said = virsh::ask(&["checkpoint-list", "--name", &domain.option()])?;
    let names: Vec<String> =
        said.lines().map(str::trim).filter(|name| is_held(name, None)).map(str::to_owned).collect();
    match names.len() {
        0..=MOST => Ok(names),
        found => Err(Error::failed(format!(
            "Machine {}: expected {MOST} checkpoints of ours at most, found {found}",
            domain.shown()
        ))
        .next(format!("remove them: motiongear release libvirt:{} --bitmaps", domain.shown()))),
    }
}

/// What libvirt says of a checkpoint.
///
/// # Errors
/// There is none of this name; it says something else.
pub(super) fn look(domain: &Domain, name: &str) -> Result<Known> {
    let named = format!("--checkpointname={name}");
    // The size of what changed is told of bitmaps only that can be used.
    let text = virsh::ask(&["checkpoint-dumpxml", "--no-domain", "--size", &domain.option(), &named])?;
    parse(&text, name)
}

fn parse(text: &str, name: &str) -> Result<Known> {
    xml::read(text, "a checkpoint", "domaincheckpoint", |root| {
        let wrong = |what: &str| Error::failed(format!("Libvirt: expected the XML of a checkpoint, found no {what}"));
        let created = xml::text(root, &["creationTime"]).and_then(|time| time.parse().ok());
        let created = created.ok_or_else(|| wrong("time"))?;
        let disks = xml::child(root, &["disks"]).ok_or_else(|| wrong("disks"))?;
        let disks = disks.children().filter(|disk| disk.attribute("checkpoint") == Some("bitmap"));
        let disks = disks.filter_map(|disk| Some((disk.attribute("name")?.to_owned(), disk.has_attribute("size"))));
        Ok(Known { mark: Mark { checkpoint: name.to_owned(), created }, disks: disks.collect() })
    })
}

/// Removes a checkpoint with its bitmaps; where these are gone or broken already, what libvirt remembers of it.
///
/// # Errors
/// libvirt refuses even that.
pub(super) fn remove(domain: &Domain, name: &str) -> Result<()> {
    let (machine, named) = (domain.option(), format!("--checkpointname={name}"));
    let words = ["checkpoint-delete", &machine, &named];
    let ended = virsh::call(&words)?;
    if ended.code == Some(0) {
        return Ok(());
    }
    if !domain.running {
        return Err(virsh::refused(&words, &ended).next("start the machine, and run the same command again"));
    }
    virsh::ask(&["checkpoint-delete", "--metadata", &machine, &named]).map(drop)
}

/// Removes all checkpoints of ours; says which.
///
/// # Errors
/// libvirt refuses.
pub(super) fn remove_all(domain: &Domain) -> Result<Vec<String>> {
    let names = ours(domain)?;
    names.iter().try_for_each(|name| remove(domain, name))?;
    Ok(names)
}

/// What a checkpoint of these disks is asked for with.
///
/// # Errors
/// A name that XML cannot hold.
pub(super) fn wanted(domain: &Domain, wishes: &[Wish], name: &str) -> Result<String> {
    let mut disks = String::new();
    for disk in &domain.disks {
        let wished = wishes.iter().any(|wish| wish.target == disk.target) && disk.is_disk && disk.keeps_checkpoints();
        let kind = if wished { "bitmap" } else { "no" };
        disks += &format!("<disk name='{}' checkpoint='{kind}'/>", xml::escaped(&disk.target)?);
    }
    Ok(format!("<domaincheckpoint><name>{}</name><disks>{disks}</disks></domaincheckpoint>", xml::escaped(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tracking::Tracking;

    const TEXT: &str = "<domaincheckpoint><name>x</name><creationTime>7</creationTime><disks>
        <disk name='vda' checkpoint='bitmap' bitmap='x' size='65536'/><disk name='vdb' checkpoint='bitmap' bitmap='x'/>
        <disk name='vdc' checkpoint='no'/></disks></domaincheckpoint>";

    #[test]
    fn a_checkpoint_is_believed_while_it_is_the_same_and_whole() {
        let known = [parse(TEXT, "x").unwrap()];
        let wish = |target: &str, name: &str, created| Wish {
            name: String::new(),
            target: target.into(),
            tracking: Tracking {
                prefix: String::new(),
                reference: Some(Noted::Checkpoint(Mark { checkpoint: name.into(), created })),
            },
        };
        let told = |wish: Wish| judge(&known, &wish).map(drop);
        assert_eq!(told(wish("vda", "x", 7)), Ok(()));
        assert_eq!(told(wish("vda", "x", 8)), Err(Distrust::Another));
        assert_eq!(told(wish("vdb", "x", 7)), Err(Distrust::Inconsistent));
        assert_eq!(told(wish("vdc", "x", 7)), Err(Distrust::Missing));
        assert_eq!(told(wish("vda", "y", 7)), Err(Distrust::Missing));
        let (both, one) = ([wish("vda", "x", 7), wish("vdb", "x", 7)], [wish("vda", "x", 7)]);
        assert!(known[0].is_within(&both) && !known[0].is_within(&one));
        assert!(parse("<domaincheckpoint><disks/></domaincheckpoint>", "x").is_err());
    }
}
