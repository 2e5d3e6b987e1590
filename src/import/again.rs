//! Going on where something ended: with volumes that an earlier run left, after a look at them; and with volumes that are lost in
//! the middle of an import, opened anew, from what is committed.

use super::steps::{Run, Work};
use crate::context::now;
use crate::copy::fetch::{Damage, Pick};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Kind, Result};
use crate::ledger::centre::{ImportRow, Phase};
use crate::ledger::checks::VolumeCheck;
use crate::nbd;
use crate::volume::Volume;
use crate::volume::head::{is_withheld, withhold};
use crate::volume::look::{Look, Sealed, Verdict, as_released, choose, differing, written};
use crate::volume::readback::Counts;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A volume that is lost so often without any progress in between is not lost: what is done to it makes its server fall.
const MOST_LOSSES: u32 = 5;
/// From one attempt to reach a lost volume to the next.
const AGAIN: Duration = Duration::from_secs(1);
/// More differing blocks than these are not written one by one.
const MOST_REPAIRED: u64 = 1 << 20;

impl Run<'_> {
    /// All steps, as often as volumes are lost and come back.
    pub(super) fn through_losses(&self, disks: &mut [Work], zeros: &ZeroLeaves) -> Result<()> {
        let mut begun = Ok(());
        loop {
            self.progress.begin("import");
            let Err(error) = begun.and_then(|()| self.steps(disks, zeros)) else { return Ok(()) };
            let by_loss = error.kind != Kind::Interrupted && error.io_cause().is_some_and(nbd::is_lost);
            if !by_loss || !disks.iter().any(Work::is_lost) {
                return Err(error);
            }
            for disk in &mut *disks {
                disk.import = self.committed(disk)?;
                self.progress.disks[disk.slot].damaged.store(0, Ordering::Relaxed);
            }
            for disk in disks.iter_mut().filter(|disk| disk.is_lost()) {
                let now = Some(disk.import.reached());
                disk.losses = if disk.losses.1 == now { (disk.losses.0 + 1, now) } else { (1, now) };
                if disk.losses.0 > MOST_LOSSES {
                    return Err(error);
                }
                let (name, place) = (&disk.prepared.name, &disk.prepared.place);
                self.throttle.note(format!(
                    "{error}. Volume {place} of {name} is opened anew, and what was not flushed is written again"
                ));
            }
            begun = disks.iter_mut().filter(|disk| disk.is_lost()).try_for_each(|disk| {
                self.open_again(disk)?;
                if self.knows(disk)? { self.distrust(disk) } else { Err(another(disk)) }
            });
        }
    }

    /// What the ledger says of an import.
    fn committed(&self, disk: &Work) -> Result<ImportRow> {
        let ImportRow { disk: uuid, shipment, seal, .. } = disk.import;
        let lack = || Error::failed(format!("Ledger: expected the import of {}, found none", disk.prepared.name));
        self.ledger().import(uuid, shipment, seal)?.ok_or_else(lack)
    }

    /// Opens a volume anew that was lost, as soon as that goes.
    fn open_again(&self, disk: &mut Work) -> Result<()> {
        let Some(lost) = disk.volume.take() else { return Ok(()) };
        let (name, bytes) = (lost.name(), lost.bytes());
        // Servers count their clients.
        drop(lost);
        let (place, medium) = (disk.prepared.place.clone(), self.volume_medium(&disk.prepared));
        let volume = medium.clone().call(move || {
            loop {
                match place.open(Some(medium.clone())) {
                    Err(error) if error.io_cause().is_some_and(nbd::is_lost) => std::thread::sleep(AGAIN),
                    opened => return opened,
                }
            }
        })?;
        // A volume of a cloud may have been extended meanwhile.
        if volume.bytes() != bytes && !(disk.prepared.place.store().is_some() && volume.bytes() > bytes) {
            return Err(Error::failed(format!("Volume {name}: expected {bytes} bytes, found {}", volume.bytes()))
                .next("another volume took its place: bring the first one back, then run the same command again"));
        }
        disk.volume = Some(volume);
        Ok(())
    }

    /// Before an import goes on where an earlier run stopped, or calls a disk complete: only looks.
    pub(super) fn take_up(&self, disk: &mut Work) -> Result<()> {
        if disk.already {
            return self.look_at_complete(disk);
        }
        if self.knows(disk)? {
            return Ok(());
        }
        if !self.options.overwrite {
            return Err(another(disk));
        }
        self.start_over(disk)
    }

    fn start_over(&self, disk: &mut Work) -> Result<()> {
        disk.import = self.ledger().begin_import(&disk.prepared.volume_row, &disk.prepared.template, false)?;
        disk.starts_over();
        Ok(())
    }

    /// A complete disk is a record of the past: its volume is looked at, and what a check found differing is taken up.
    fn look_at_complete(&self, disk: &mut Work) -> Result<()> {
        let ledger = self.ledger();
        let later = ledger.last_import(disk.import.disk)?.filter(|last| last.id != disk.import.id);
        let check = ledger.last_check(disk.import.id)?;
        let at = now()?;
        let seen = |compared_blocks, verdict| Some(Look { looked_at: at, compared_blocks, verdict });
        // The volume has a history since, on record: what it holds is not this import's to say.
        if let Some(last) = later {
            disk.look = seen(0, Verdict::MovedOn { shipment: last.shipment });
            disk.volume = None;
            return Ok(());
        }
        if let Some(check) = check.clone().filter(|check| check.accepted_at.is_some()) {
            disk.look = seen(0, Verdict::Accepted { check });
            disk.volume = None;
            return Ok(());
        }
        let Some(volume) = disk.volume.clone() else { return Ok(()) };
        let proven = disk.import.digest.unwrap_or(disk.prepared.sealed.digest);
        if let Some(check) = check.filter(|check| check.why.is_none() && check.is_open(proven)) {
            return self.plan_repair(disk, &*volume, check);
        }
        let (compared, verdict) = as_released(self.context, &*volume, &disk.import, self.throttle)?;
        if let Verdict::Differs { blocks } = &verdict {
            if self.options.overwrite {
                disk.already = false;
                return self.start_over(disk);
            }
            return Err(changed(disk, blocks.len(), compared));
        }
        disk.look = seen(compared, verdict);
        disk.volume = None;
        Ok(())
    }

    /// What is to be done again of a complete volume in which a check found differing blocks. All the others must still be as proven: a
    /// volume that changed on since is not mended block by block.
    fn plan_repair(&self, disk: &mut Work, volume: &dyn Volume, check: VolumeCheck) -> Result<()> {
        let geometry = disk.prepared.geometry;
        let ranges = self.ledger().differences(&check)?;
        let Some(ranges) = ranges.filter(|_| check.differing <= MOST_REPAIRED) else {
            if self.options.overwrite {
                disk.already = false;
                return self.start_over(disk);
            }
            return Err(beyond_repair(disk, &check));
        };
        let blocks: BTreeSet<u64> = ranges.iter().flat_map(|(first, count)| *first..first + count).collect();
        let last = geometry.blocks().saturating_sub(1);
        let wanted = disk.wanted(Pick::From(0));
        let mut known = Sealed {
            catalogue: &self.accepted.catalogue,
            wanted: &wanted,
            encrypted: self.encrypted(),
            absent: blocks.clone(),
        };
        let mut samples = choose(&mut known, 1.min(last), last)?;
        // An earlier attempt may have ended right after the ends were withheld.
        if !is_withheld(volume, &geometry, self.context.engine)? {
            samples.extend([0, last].into_iter().filter(|block| !blocks.contains(block)));
        }
        let found = differing(volume, &geometry, self.context.engine, self.throttle, &mut known, &samples)?;
        if !found.is_empty() {
            if self.options.overwrite {
                disk.already = false;
                return self.start_over(disk);
            }
            return Err(changed_since(disk, &check));
        }
        disk.repair = Some(blocks.into_iter().filter(|block| *block != 0 && *block != last).collect());
        Ok(())
    }

    /// The first writing on a volume that an earlier run left, after all of them were known again.
    pub(super) fn go_on(&self, disk: &mut Work) -> Result<()> {
        let Some(volume) = disk.volume.clone() else { return Ok(()) };
        if let Some(blocks) = disk.repair.take() {
            let (name, place) = (&disk.prepared.name, &disk.prepared.place);
            self.context.monitor.note(&format!(
                "{name}: a check of {place} found differing blocks; they are written again, and all of it is read back"
            ));
            withhold(&*volume, &disk.prepared.geometry)?;
            disk.already = false;
            disk.import.phase = Phase::Damaged;
            (disk.import.digest, disk.import.finished_at) = (None, None);
            let damage: Vec<Damage> = blocks.into_iter().map(|block| disk.found_differing(block)).collect();
            return self.ledger().update_import_with(&disk.import, &damage);
        }
        match disk.import.phase {
            // An earlier run ended before its recovery point was taken: since then anybody may have booted it. All is read back again.
            Phase::Released => {
                withhold(&*volume, &disk.prepared.geometry)?;
                self.read_back_anew(disk)
            }
            Phase::Reading | Phase::Proven | Phase::Releasing => self.distrust(disk),
            _ => Ok(()),
        }
    }

    /// Whether a volume holds what this import wrote and flushed: both ends as withheld, and samples of what was committed. Ids may
    /// mean another volume by now, or the same one given back older.
    fn knows(&self, disk: &Work) -> Result<bool> {
        let Some(volume) = &disk.volume else { return Ok(true) };
        let geometry = disk.prepared.geometry;
        let (upto, last) = (written(&disk.import, &geometry), geometry.blocks().saturating_sub(1));
        if disk.import.phase == Phase::Planned || geometry.is_empty() {
            return Ok(true);
        }
        let wanted = disk.wanted(Pick::From(0));
        let absent = self.ledger().unproven_blocks(disk.import.id)?.into_iter().collect();
        let mut known =
            Sealed { catalogue: &self.accepted.catalogue, wanted: &wanted, encrypted: self.encrypted(), absent };
        let mut blocks = if upto > 1 && last > 1 { choose(&mut known, 1, upto.min(last))? } else { BTreeSet::new() };
        match disk.import.phase {
            // Written one after the other: any part of them may be there.
            Phase::Releasing => {}
            Phase::Released => blocks.extend([0, last]),
            _ => {
                if !is_withheld(&**volume, &geometry, self.context.engine)? {
                    return Ok(false);
                }
            }
        }
        Ok(differing(&**volume, &geometry, self.context.engine, self.throttle, &mut known, &blocks)?.is_empty())
    }

    /// What was read back before its server fell may have been that server's memory: all of it is read back again.
    fn distrust(&self, disk: &mut Work) -> Result<()> {
        let Some(volume) = disk.volume.clone() else { return Ok(()) };
        if disk.import.phase == Phase::Releasing {
            withhold(&*volume, &disk.prepared.geometry)?;
        }
        if matches!(disk.import.phase, Phase::Reading | Phase::Proven | Phase::Releasing) {
            self.read_back_anew(disk)?;
        }
        Ok(())
    }

    /// What an earlier process read back, or read through a server that fell, proves nothing of what is there now.
    pub(super) fn read_back_anew(&self, disk: &mut Work) -> Result<()> {
        let import = &mut disk.import;
        (import.phase, import.readback_mark, import.counts) = (Phase::Written, 0, Counts::default());
        (import.through_cache, import.digest, import.finished_at) = (false, None, None);
        self.ledger().update_import(import)
    }
}

impl Work {
    /// A block that a check of the volume found differing.
    fn found_differing(&self, block: u64) -> Damage {
        let geometry = self.prepared.geometry;
        Damage {
            block,
            offset: geometry.offset(block),
            bytes: geometry.len(block),
            file: None,
            file_offset: None,
            why: "a check of the volume found other bytes".into(),
            untrusted: false,
        }
    }
}

/// A complete volume that does not hold any more what was proven.
fn changed(disk: &Work, differing: usize, compared: u64) -> Error {
    let (place, name) = (&disk.prepared.place, &disk.prepared.name);
    Error::failed(format!(
        "Volume {place}: complete since {}, but {differing} of {compared} compared blocks are not as proven",
        disk.import.finished_at.map(|at| at.to_string()).unwrap_or_default()
    ))
    .next(format!(
        "find all of them with 'motiongear verify --volumes --disk {name}'; then run the same command again to mend the volume, \
         or accept what a machine wrote there with 'verify --volumes --accept-difference {name} --reason TEXT'"
    ))
}

fn changed_since(disk: &Work, check: &VolumeCheck) -> Error {
    let (place, name) = (&disk.prepared.place, &disk.prepared.name);
    Error::failed(format!("Volume {place}: it changed after its check at {}", check.checked_at)).next(format!(
        "check it again with 'motiongear verify --volumes --disk {name}'; where a machine writes to it, accept the difference; \
         --overwrite imports everything again"
    ))
}

fn beyond_repair(disk: &Work, check: &VolumeCheck) -> Error {
    Error::failed(format!(
        "Volume {}: {} blocks differ since its check at {}, too many to write one by one",
        disk.prepared.place, check.differing, check.checked_at
    ))
    .next("import everything again with --overwrite, or bring the right volume back")
}

fn another(disk: &Work) -> Error {
    let place = &disk.prepared.place;
    Error::failed(format!("Volume {place}: expected what this import wrote there and flushed, found other bytes")).next(
        "another volume took its place, or its server lost what it had called durable: bring the right one back, or import \
         everything again with --overwrite",
    )
}
