//! Volumes that are lost in the middle of an import: opened anew, and gone on with from what is committed, as the same command would.

use super::steps::{Run, Work};
use crate::copy::fetch::Pick;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Kind, Result};
use crate::ledger::centre::{ImportRow, Phase};
use crate::nbd;
use crate::volume::Place;
use crate::volume::head::{is_withheld, withhold};
use crate::volume::readback::{Counts, Mode, ReadBack};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A volume that is lost so often without any progress in between is not lost: what is done to it makes its server fall.
const MOST_LOSSES: u32 = 5;
/// From one attempt to reach a lost volume to the next.
const AGAIN: Duration = Duration::from_secs(1);
/// Blocks that are compared to know a volume again: this many of the last that were committed, and of all of them.
const COMPARED: u64 = 32;

impl Run<'_> {
    /// All steps, as often as volumes are lost and come back.
    pub(super) fn through_losses(&self, disks: &mut [Work], zeros: &ZeroLeaves) -> Result<()> {
        let mut begun = disks.iter_mut().try_for_each(|disk| self.take_up(disk, zeros));
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
                if self.knows(disk, zeros)? { self.distrust(disk) } else { Err(another(disk)) }
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
        if volume.bytes() != bytes {
            return Err(Error::failed(format!("Volume {name}: expected {bytes} bytes, found {}", volume.bytes()))
                .next("another volume took its place: bring the first one back, then run the same command again"));
        }
        disk.volume = Some(volume);
        Ok(())
    }

    /// Before an import goes on where an earlier run stopped.
    fn take_up(&self, disk: &mut Work, zeros: &ZeroLeaves) -> Result<()> {
        if self.knows(disk, zeros)? {
            return Ok(());
        }
        if !self.options.overwrite {
            return Err(another(disk));
        }
        disk.import = self.ledger().begin_import(&disk.prepared.volume_row, &disk.prepared.template, false)?;
        disk.starts_over();
        Ok(())
    }

    /// Whether an export holds what this import wrote and flushed: it has no identity but what lies on it. A volume of a cloud has one,
    /// and may have been set back.
    fn knows(&self, disk: &Work, zeros: &ZeroLeaves) -> Result<bool> {
        let (Place::Export(_) | Place::Stored(_), Some(volume)) = (&disk.prepared.place, &disk.volume) else {
            return Ok(true);
        };
        let geometry = disk.prepared.geometry;
        let upto = match disk.import.phase {
            Phase::Planned | Phase::Released | Phase::Done => return Ok(true),
            Phase::Writing => disk.import.mark,
            _ => geometry.blocks(),
        };
        let absent: BTreeSet<u64> = self.ledger().unproven_blocks(disk.import.id)?.into_iter().collect();
        let scatter = (0..COMPARED).map(|part| (u128::from(part) * u128::from(upto) / u128::from(COMPARED)) as u64);
        let blocks: BTreeSet<u64> = scatter.chain(upto.saturating_sub(COMPARED)..upto).collect();
        let wanted = disk.wanted(Pick::Blocks(blocks.difference(&absent).copied().collect()));
        let pass = ReadBack {
            volume: &**volume,
            wanted: &wanted,
            catalogue: &self.accepted.catalogue,
            encrypted: self.encrypted(),
            mode: Mode::Full,
            absent: &absent,
            engine: self.context.engine,
            throttle: self.throttle,
            zeros,
            progress: self.progress,
        };
        let mut differing = 0;
        pass.run(Counts::default(), None, &mut |_, _, found| {
            differing += found.len();
            Ok(())
        })?;
        let released = disk.import.phase == Phase::Releasing;
        Ok(differing == 0 && (released || is_withheld(&**volume, &geometry, self.context.engine)?))
    }

    /// What was read back before its server fell may have been that server's memory: all of it is read back again.
    fn distrust(&self, disk: &mut Work) -> Result<()> {
        let Some(volume) = disk.volume.clone() else { return Ok(()) };
        if disk.import.phase == Phase::Releasing {
            withhold(&*volume, &disk.prepared.geometry)?;
        }
        if matches!(disk.import.phase, Phase::Reading | Phase::Proven | Phase::Releasing) {
            (disk.import.phase, disk.import.readback_mark, disk.import.counts) = (Phase::Written, 0, Counts::default());
            self.ledger().update_import(&disk.import)?;
        }
        Ok(())
    }
}

fn another(disk: &Work) -> Error {
    let place = &disk.prepared.place;
    Error::failed(format!("Volume {place}: expected what this import wrote there and flushed, found other bytes")).next(
        "another volume took its place, or its server lost what it had called durable: bring the right one back, or import \
         everything again with --overwrite",
    )
}
