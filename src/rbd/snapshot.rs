//! Snapshots of the images of a machine, and what changed from one to the next by `rbd diff`.
//!
//! A seed takes a snapshot of each image and leaves it there: an interrupted seed goes on with it, and the first scan compares its own
//! with it. Each scan takes a new one, and when its result is durable, removes the one before. So each image has one snapshot of ours,
//! `motiongear-SHIPMENT-DISK-N`, and two while a scan reads.
//!
//! Source: rbd(8); librbd keeps beside each image and snapshot a map of its objects, by which `--whole-object` compares two snapshots
//! without a look at the objects. A map that could not be kept up is flagged as invalid, and then nothing is believed.

use super::Image;
use crate::error::{Error, Result};
use crate::source::Origin;
use crate::source::tracking::{Distrust, Held, Noted, Platform, Prepared, TakenDisk, Tracking, is_held};
use serde::{Deserialize, Serialize};

/// A snapshot as the ledger remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Its name.
    pub snapshot: String,
    /// The cluster's number for it: another one of that name has another.
    pub id: u64,
}

/// One image that is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What we call the disk.
    pub name: String,
    /// Its image.
    pub image: Image,
    /// Of its snapshots.
    pub tracking: Tracking,
}

/// Snapshots to take.
#[derive(Debug, Clone)]
pub struct Taking {
    /// The machine's images.
    pub disks: Vec<Wish>,
    /// Whether they stay whatever becomes of this run: the next one reads on from them.
    pub stay: bool,
}

/// Snapshots that were taken.
struct Snapshots {
    wishes: Vec<Wish>,
    disks: Vec<TakenDisk>,
    stay: bool,
}

/// All that is known before they are taken.
struct Ready {
    taking: Taking,
    /// For each image the snapshot's name, and whether what it is compared with is there.
    names: Vec<(String, Result<Noted, Distrust>)>,
}

impl Platform for Taking {
    fn prepare(&self) -> Result<Box<dyn Prepared>> {
        let names = self.disks.iter().map(Wish::tidy).collect::<Result<_>>()?;
        Ok(Box::new(Ready { taking: self.clone(), names }))
    }

    fn asked(&self) -> Vec<String> {
        let names = self.disks.iter().map(|wish| wish.image.spec());
        ["rbd", "snap", "create"].map(str::to_owned).into_iter().chain(names).collect()
    }

    fn ends_with_us(&self) -> bool {
        !self.stay
    }
}

impl Prepared for Ready {
    fn take(self: Box<Self>) -> Result<Box<dyn Held>> {
        let Ready { taking: Taking { disks: wishes, stay }, names } = *self;
        // Until all are there they stay: to remove some would take its time, which a freeze may span. The next run does it.
        let mut taken = Snapshots { wishes: wishes.clone(), disks: Vec::new(), stay: true };
        // One right after the other: each is of one instant, and they are as close together as can be.
        for (wish, (name, reference)) in wishes.iter().zip(names) {
            let image = wish.image.at(&name);
            wish.image.pool.snapshot_now(&wish.image.name, &name)?;
            taken.disks.push(TakenDisk { name: wish.name.clone(), origin: Origin::Rbd(image), new: None, reference });
        }
        taken.stay = stay;
        Ok(Box::new(taken))
    }
}

impl Wish {
    /// Removes what an earlier run left, and finds the next name and whether the reference is still there.
    fn tidy(&self) -> Result<(String, Result<Noted, Distrust>)> {
        let Wish { image, tracking, .. } = self;
        let number = |name: &str| name.strip_prefix(&tracking.prefix)?.parse::<u64>().ok();
        let wanted = match &tracking.reference {
            Some(Noted::Snapshot(mark)) => Some(mark),
            _ => None,
        };
        let (mut last, mut reference) = (0, Err(Distrust::Missing));
        for snapshot in image.pool.snapshots(&image.name)? {
            let Some(number) = number(&snapshot.name) else { continue };
            last = last.max(number);
            match wanted.filter(|wanted| wanted.snapshot == snapshot.name) {
                Some(wanted) if wanted.id == snapshot.id => reference = Ok(Noted::Snapshot(wanted.clone())),
                Some(_) => reference = Err(Distrust::Another),
                None => image.pool.remove_snapshot(&image.name, &snapshot.name)?,
            }
        }
        if let (Err(Distrust::Another), Some(wanted)) = (&reference, wanted) {
            image.pool.remove_snapshot(&image.name, &wanted.snapshot)?;
        }
        Ok((format!("{}{}", tracking.prefix, last.saturating_add(1)), reference))
    }

    fn mark(&self, name: &str) -> Result<Mark> {
        let snapshots = self.image.pool.snapshots(&self.image.name)?;
        let found = snapshots.into_iter().find(|snapshot| snapshot.name == name);
        let none =
            || Error::failed(format!("Ceph snapshot {}@{name}: expected it there, found none", self.image.spec()));
        found.map(|snapshot| Mark { snapshot: snapshot.name, id: snapshot.id }).ok_or_else(none)
    }

    /// Whether the maps that a comparison of these two looks at were kept up.
    fn maps_hold(&self, reference: &Result<Noted, Distrust>, new: &Mark) -> Result<bool> {
        let before = match reference {
            Ok(Noted::Snapshot(mark)) => Some(mark.snapshot.as_str()),
            _ => None,
        };
        for snapshot in [None, before, Some(new.snapshot.as_str())] {
            let info = self.image.pool.info(&self.image.name, snapshot)?;
            if info.is_none_or(|info| info.flags.iter().any(|flag| flag.contains("invalid"))) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Held for Snapshots {
    fn settle(&mut self) -> Result<()> {
        for (wish, disk) in self.wishes.iter().zip(&mut self.disks) {
            let Origin::Rbd(image) = &disk.origin else { continue };
            let new = wish.mark(image.snapshot.as_deref().unwrap_or_default())?;
            if disk.reference.is_ok() && !wish.maps_hold(&disk.reference, &new)? {
                disk.reference = Err(Distrust::Inconsistent);
            }
            disk.new = Some(Noted::Snapshot(new));
        }
        Ok(())
    }

    fn disks(&self) -> &[TakenDisk] {
        &self.disks
    }

    fn changed(&self, disk: &TakenDisk, check: &dyn Fn() -> Result<()>, add: &mut dyn FnMut(u64, u64)) -> Result<()> {
        match (&disk.origin, &disk.reference) {
            (Origin::Rbd(image), Ok(Noted::Snapshot(mark))) => image.pool.changed(image, &mark.snapshot, check, add),
            _ => Err(Error::failed(format!("Source {}: expected a snapshot to compare with, found none", disk.origin))),
        }
    }

    fn expect_whole(&self) -> Result<()> {
        // Nobody can change a snapshot: one that was removed gives errors, and no other bytes.
        Ok(())
    }

    fn explain(&self, error: Error) -> Error {
        error
    }

    fn end(&mut self, known: bool) -> Result<()> {
        if known {
            self.stay = true;
            for (wish, disk) in self.wishes.iter().zip(&self.disks) {
                if let Ok(Noted::Snapshot(mark)) = &disk.reference {
                    wish.image.pool.remove_snapshot(&wish.image.name, &mark.snapshot)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        if self.stay {
            return;
        }
        for disk in &self.disks {
            if let Origin::Rbd(Image { pool, name, snapshot: Some(snapshot) }) = &disk.origin {
                // Should it fail, the next scan removes it.
                let _ = pool.remove_snapshot(name, snapshot);
            }
        }
    }
}

/// Removes all snapshots that seeds and scans hold of an image; says which.
///
/// # Errors
/// The cluster refuses.
pub fn release_image(image: &Image) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    image.look()?;
    for snapshot in image.pool.snapshots(&image.name)? {
        if is_held(&snapshot.name, None) {
            image.pool.remove_snapshot(&image.name, &snapshot.name)?;
            removed.push(format!("{}@{}", image.spec(), snapshot.name));
        }
    }
    Ok(removed)
}
