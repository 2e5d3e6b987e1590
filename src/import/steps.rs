//! Carrying an import out, phase by phase. Each phase is committed before the next begins, so each resumes by itself.

use super::Options;
use super::outcome::{DiskOutcome, MAX_LISTED, State};
use super::preflight::{Prepared, json};
use crate::array::Array;
use crate::context::{Context, now};
use crate::copy::fetch::{Failure, Fetch, Pick, Wanted, fetch, sealed_packs};
use crate::copy::patience::Medium;
use crate::copy::throttle::Throttle;
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Kind, Result};
use crate::ledger::Ledger;
use crate::ledger::centre::{ImportRow, Phase};
use crate::monitor::{MediumKind, Progress};
use crate::trust::Accepted;
use crate::volume::completed::Completed;
use crate::volume::ends::{Ends, fetch_ends};
use crate::volume::head::{release, withhold, zero_beyond};
use crate::volume::landing::{Checkpoint, Commit, Lane, land};
use crate::volume::leaves::Leaves;
use crate::volume::local::Sidecar;
use crate::volume::look::Look;
use crate::volume::readback::{Counts, Mode, ReadBack};
use crate::volume::{LocalVolume, Place, Volume};
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::documents::shipment::Suite;
use motiongear_manifest::tree::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Disks that are read back at the same time.
const READ_BACK_AT_ONCE: usize = 2;

/// What all steps need.
pub(super) struct Run<'a> {
    pub context: &'a Context,
    pub options: &'a Options,
    pub array: &'a Array,
    pub accepted: &'a Accepted,
    pub throttle: &'a Arc<Throttle>,
    pub progress: &'a Arc<Progress>,
}

/// A disk on its way.
pub(super) struct Work {
    pub slot: usize,
    pub prepared: Prepared,
    /// `None` where the disk was imported before: nothing is opened then.
    pub volume: Option<Arc<dyn Volume>>,
    pub import: ImportRow,
    known_zero: bool,
    resumed_from: u64,
    /// Bytes that this run wrote.
    written: Arc<AtomicU64>,
    /// How often its volume was lost since it last got on, and how far it was then.
    pub losses: (u32, Option<(Phase, u64, u64)>),
    /// It was complete before this run.
    pub already: bool,
    /// What a look at a complete volume found.
    pub look: Option<Look>,
    /// Blocks of a complete volume that a check found differing, to be written again; head and tail are written anyway.
    pub repair: Option<Vec<u64>>,
    /// All that was read back, this run read.
    read_here: bool,
}

impl Run<'_> {
    /// All phases of all disks.
    pub fn all(&self, prepared: Vec<Prepared>) -> Result<Vec<DiskOutcome>> {
        let zeros = ZeroLeaves::open(self.context.ledger.state(), self.accepted.shipment.block_bytes)?;
        // Nothing is written, and nothing made, before every volume that an earlier run left is known again.
        let (left, new): (Vec<_>, Vec<_>) =
            prepared.into_iter().enumerate().partition(|(_, prepared)| prepared.import.is_some());
        let begin = |(slot, prepared)| self.begin(slot, prepared);
        let mut disks = left.into_iter().map(begin).collect::<Result<Vec<Work>>>()?;
        self.progress.begin("look");
        disks.iter_mut().try_for_each(|disk| self.take_up(disk))?;
        for disk in &mut disks {
            self.bind(disk)?;
            self.go_on(disk)?;
        }
        for new in new {
            let disk = begin(new)?;
            self.bind(&disk)?;
            disks.push(disk);
        }
        disks.sort_by_key(|disk| disk.slot);
        self.through_losses(&mut disks, &zeros)?;
        disks.iter().map(|disk| self.outcome(disk)).collect()
    }

    /// From wherever they are to the end.
    pub(super) fn steps(&self, disks: &mut [Work], zeros: &ZeroLeaves) -> Result<()> {
        for disk in &mut *disks {
            self.withhold(disk)?;
        }
        self.write(disks, zeros)?;
        self.write_damaged_again(disks, zeros)?;
        self.progress.begin("read-back");
        self.read_back(disks, zeros)?;
        for disk in &mut *disks {
            self.read_back_rewritten(disk, zeros)?;
            self.doubt(disk)?;
        }
        self.read_back(disks, zeros)?;
        self.progress.begin("release");
        disks.iter_mut().try_for_each(|disk| self.finish(disk, zeros))?;
        // One that gets no recovery point now does not keep the others from theirs.
        let failed: Vec<Error> = disks.iter_mut().filter_map(|disk| self.hand_over(disk).err()).collect();
        failed.into_iter().next().map_or(Ok(()), Err)
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.context.ledger
    }

    /// Assigns the volume in the ledger, then makes or opens it: a volume that was made is never without owner.
    fn begin(&self, slot: usize, mut prepared: Prepared) -> Result<Work> {
        let new = prepared.import.is_none() && prepared.create;
        let import = match prepared.import.take() {
            Some(import) => import,
            None => self.ledger().begin_import(&prepared.volume_row, &prepared.template, prepared.create)?,
        };
        let already = import.phase == Phase::Done;
        // A difference that was accepted is a machine's work: the volume may be its own by now.
        let kept = !already || self.ledger().last_check(import.id)?.is_none_or(|check| check.accepted_at.is_none());
        let volume = match kept.then(|| self.open(&prepared)).transpose() {
            Ok(volume) => volume,
            Err(error) => {
                if new {
                    self.unbind(&prepared, &error)?;
                }
                return Err(error);
            }
        };
        let fresh = self.ledger().volume(prepared.sealed.uuid)?.and_then(|row| row.fresh_for);
        let zeros = prepared.place.store().is_none_or(|store| store.makes_zeros());
        let known_zero = zeros && fresh == Some(import.id);
        let (resumed_from, written) = (import.mark, Arc::default());
        Ok(Work {
            slot,
            prepared,
            volume,
            import,
            known_zero,
            resumed_from,
            written,
            losses: (0, None),
            already,
            look: None,
            repair: None,
            read_here: false,
        })
    }

    /// A refusal before anything was made binds the disk to nothing: its volume may be made elsewhere then.
    fn unbind(&self, prepared: &Prepared, error: &Error) -> Result<()> {
        // Where nobody answered, a volume may still come up.
        let refused = error.kind != Kind::Interrupted && error.io_cause().is_none();
        let Some(store) = prepared.place.store().filter(|_| refused) else { return Ok(()) };
        let disk = prepared.sealed.uuid;
        if self.ledger().imports_of(disk)? == 1 && store.find().is_ok_and(|found| found.is_none()) {
            self.ledger().forget_volume(disk)?;
        }
        Ok(())
    }

    /// Writes down what the volume is bound by, once it is known to be the right one.
    fn bind(&self, disk: &Work) -> Result<()> {
        let Some(volume) = disk.volume.as_ref().filter(|_| !disk.already || disk.repair.is_some()) else {
            return Ok(());
        };
        let identity = Some(volume.identity(&self.context.sys)?);
        self.ledger().set_volume(disk.prepared.sealed.uuid, &json(&identity)?, volume.bytes())
    }

    fn open(&self, prepared: &Prepared) -> Result<Arc<dyn Volume>> {
        let medium = self.volume_medium(prepared);
        Ok(match &prepared.place {
            Place::File(path) => {
                let mut volume = if prepared.create {
                    LocalVolume::create(path, &prepared.sidecar)?
                } else {
                    LocalVolume::open(path)?
                };
                volume.complete(prepared.sealed.bytes)?;
                Arc::new(volume.watched(medium))
            }
            // A server may take its time.
            Place::Export(_) => {
                let (place, watched) = (prepared.place.clone(), medium.clone());
                medium.call(move || place.open(Some(watched)))?
            }
            Place::Device(_) => prepared.place.open(Some(medium))?,
            Place::Stored(store) => {
                let (store, watched, bytes) = (store.clone(), medium.clone(), prepared.sealed.bytes);
                let create = prepared.create;
                medium.call(move || {
                    if create {
                        store.create(bytes)?;
                    }
                    store.open(Some(watched))
                })?
            }
        })
    }

    fn withhold(&self, disk: &mut Work) -> Result<()> {
        let (Phase::Planned, Some(volume)) = (disk.import.phase, &disk.volume) else { return Ok(()) };
        withhold(&**volume, &disk.prepared.geometry)?;
        if !disk.known_zero {
            zero_beyond(&**volume, &disk.prepared.geometry, &|| self.throttle.check())?;
        }
        disk.import.phase = Phase::Writing;
        self.ledger().update_import(&disk.import)
    }

    fn medium(&self, kind: MediumKind, name: &str) -> Medium {
        Medium::new(kind, name, self.throttle, self.progress)
    }

    pub(super) fn volume_medium(&self, prepared: &Prepared) -> Medium {
        self.medium(MediumKind::Volume, &prepared.place.to_string()).holding(prepared.lock.clone())
    }

    fn fetch<'a>(&'a self, zeros: &'a ZeroLeaves) -> Fetch<'a> {
        Fetch {
            array: self.array,
            medium: self.medium(MediumKind::Array, &self.options.array.display().to_string()),
            shipment: self.accepted.seal.shipment,
            block_bytes: self.accepted.shipment.block_bytes,
            encrypted: self.encrypted(),
            keys: self.accepted.keys.clone(),
            packs: sealed_packs(&self.accepted.seal),
            engine: self.context.engine,
            throttle: self.throttle,
            progress: self.progress,
            zeros,
        }
    }

    pub(super) fn encrypted(&self) -> bool {
        self.accepted.shipment.suite != Suite::Plaintext
    }

    fn lane(&self, disk: &Work, single: bool) -> Option<Lane> {
        Some(Lane {
            slot: disk.slot,
            name: disk.prepared.name.clone(),
            volume: disk.volume.clone()?,
            geometry: disk.prepared.geometry,
            from: disk.import.mark,
            known_zero: disk.known_zero && !single,
            single,
            written: disk.written.clone(),
        })
    }

    /// Everything but head and tail, from the packs to the volumes of all disks at once.
    fn write(&self, disks: &mut [Work], zeros: &ZeroLeaves) -> Result<()> {
        let (mut lanes, mut wanted) = (Vec::new(), Vec::new());
        for disk in disks.iter().filter(|disk| disk.import.phase == Phase::Writing) {
            self.ledger().forget_damage_from(disk.import.id, disk.import.mark)?;
            lanes.extend(self.lane(disk, false));
            wanted.push(disk.wanted(Pick::From(disk.import.mark)));
            let skipped = disk.import.mark.saturating_mul(u64::from(disk.prepared.sealed.block_bytes));
            self.progress.disks[disk.slot].skipped.store(skipped.min(disk.prepared.sealed.bytes), Ordering::Relaxed);
        }
        self.land(disks, &lanes, &wanted, zeros)?;
        let at = now()?;
        for disk in disks.iter_mut().filter(|disk| disk.import.phase == Phase::Writing) {
            disk.import.phase = Phase::Written;
            disk.import.mark = disk.prepared.geometry.blocks();
            disk.import.written_at = Some(at);
            self.ledger().update_import(&disk.import)?;
        }
        Ok(())
    }

    /// Blocks that an earlier run could not prove, or that the volume did not keep: perhaps they can be read by now.
    fn write_damaged_again(&self, disks: &mut [Work], zeros: &ZeroLeaves) -> Result<()> {
        let (mut lanes, mut wanted) = (Vec::new(), Vec::new());
        for disk in disks.iter().filter(|disk| disk.import.phase == Phase::Damaged) {
            let blocks = self.ledger().damaged_blocks(disk.import.id, false)?;
            if !blocks.is_empty() {
                lanes.extend(self.lane(disk, true));
                wanted.push(disk.wanted(Pick::Blocks(blocks)));
            }
        }
        self.land(disks, &lanes, &wanted, zeros)
    }

    fn land(&self, disks: &[Work], lanes: &[Lane], wanted: &[Wanted], zeros: &ZeroLeaves) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let imports = disks.iter().map(|disk| (disk.slot, disk.import.id)).collect();
        let marks = Marks { ledger: self.ledger(), imports };
        let job = self.fetch(zeros);
        let catalogue = &self.accepted.catalogue;
        land(lanes, self.context.engine, &marks, self.progress, |sink| fetch(&job, catalogue, wanted, sink))
    }

    /// A few disks at a time; each thread has its own view of the manifest.
    fn read_back(&self, disks: &mut [Work], zeros: &ZeroLeaves) -> Result<()> {
        let (sender, receiver) = crossbeam_channel::unbounded::<&mut Work>();
        for disk in disks.iter_mut() {
            // The receiver lives until the threads are done.
            let _ = sender.send(disk);
        }
        drop(sender);
        let failure = Failure::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..READ_BACK_AT_ONCE)
                .map(|_| {
                    let (receiver, failure) = (receiver.clone(), &failure);
                    // The manifest's path and the other shared parts; a catalogue itself stays with its thread.
                    let path = self.accepted.catalogue.path().to_owned();
                    let view = View { run: ReadBackRun::of(self), zeros };
                    scope.spawn(move || {
                        let work = || -> Result<()> {
                            let catalogue = Catalogue::open_sealed(&path)?;
                            for disk in receiver {
                                if failure.is_set() {
                                    return Ok(());
                                }
                                view.one(disk, &catalogue)?;
                            }
                            Ok(())
                        };
                        if let Err(error) = work() {
                            failure.set(error);
                        }
                    })
                })
                .collect();
            for thread in threads {
                if thread.join().is_err() {
                    failure.set(Error::failed("Read-back: a thread stopped unexpectedly"));
                }
            }
        });
        failure.take()
    }

    /// Blocks written by [`Self::write_damaged_again`], of this run or an interrupted one.
    fn read_back_rewritten(&self, disk: &mut Work, zeros: &ZeroLeaves) -> Result<()> {
        let (Phase::Damaged, Some(volume)) = (disk.import.phase, disk.volume.clone()) else { return Ok(()) };
        let blocks = self.ledger().damaged_blocks(disk.import.id, true)?;
        if !blocks.is_empty() {
            let wanted = disk.wanted(Pick::Blocks(blocks));
            let mut leaves = Leaves::open(self.ledger().state(), disk.prepared.sealed.uuid, disk.prepared.geometry)?;
            let pass = ReadBack {
                volume: &*volume,
                wanted: &wanted,
                catalogue: &self.accepted.catalogue,
                encrypted: self.encrypted(),
                // What was damaged once is looked at whatever was asked for.
                mode: Mode::Full,
                absent: &BTreeSet::new(),
                engine: self.context.engine,
                throttle: self.throttle,
                zeros,
                progress: self.progress,
            };
            let import = &mut disk.import;
            let Pick::Blocks(blocks) = &wanted.pick else { return Ok(()) };
            let mut reported = 0;
            pass.run(import.counts, Some(&mut leaves), &mut |upto, counts, differing| {
                import.counts = *counts;
                import.through_cache |= volume.through_cache();
                let end = blocks.partition_point(|block| *block < upto);
                let bad: BTreeSet<u64> = differing.iter().map(|damage| damage.block).collect();
                let good: Vec<u64> =
                    blocks[reported..end].iter().copied().filter(|block| !bad.contains(block)).collect();
                reported = end;
                self.ledger().update_import_with(import, &differing)?;
                self.ledger().repaired(import.id, &good)
            })?;
        }
        disk.import.phase = Phase::Proven;
        self.ledger().update_import(&disk.import)
    }

    /// Nothing is released on what an earlier process read back: where nothing else keeps the head, all of it is read back now.
    fn doubt(&self, disk: &mut Work) -> Result<()> {
        let free = match disk.import.phase {
            Phase::Proven => true,
            Phase::Unreadable => self.options.accept_unreadable,
            _ => false,
        };
        if disk.read_here || !free || self.ledger().damaged_count(disk.import.id)? > 0 {
            return Ok(());
        }
        self.read_back_anew(disk)
    }

    /// Releases head and tail, or says why not.
    fn finish(&self, disk: &mut Work, zeros: &ZeroLeaves) -> Result<()> {
        if disk.already {
            return Ok(());
        }
        if matches!(disk.import.phase, Phase::Proven | Phase::Releasing)
            && self.ledger().damaged_count(disk.import.id)? > 0
        {
            disk.import.phase = Phase::Damaged;
            return self.ledger().update_import(&disk.import);
        }
        if matches!(disk.import.phase, Phase::Proven | Phase::Unreadable) {
            let unreadable = disk.prepared.sealed.blocks.unreadable > 0;
            if unreadable && !self.options.accept_unreadable {
                disk.import.phase = Phase::Unreadable;
                return self.ledger().update_import(&disk.import);
            }
            disk.import.accepted_unreadable = unreadable;
            disk.import.phase = Phase::Releasing;
            self.ledger().update_import(&disk.import)?;
        }
        if disk.import.phase == Phase::Releasing { self.release(disk, zeros) } else { Ok(()) }
    }

    fn release(&self, disk: &mut Work, zeros: &ZeroLeaves) -> Result<()> {
        let Some(volume) = disk.volume.clone() else { return Ok(()) };
        let geometry = disk.prepared.geometry;
        let sealed = disk.prepared.sealed.digest;
        let name = &disk.prepared.name;
        if geometry.is_empty() {
            return self.done(disk, Digest::of(&[]), 0);
        }
        let last = geometry.blocks() - 1;
        let wanted = disk.wanted(Pick::From(0));
        let (first, tail) = match fetch_ends(&self.fetch(zeros), &self.accepted.catalogue, &wanted)? {
            Ends::Proven { first, last } => (first, last),
            Ends::Damaged(damaged) => {
                disk.import.phase = Phase::Damaged;
                self.ledger().put_damage(disk.import.id, &damaged)?;
                return self.ledger().update_import(&disk.import);
            }
        };
        let mut leaves = Leaves::open(self.ledger().state(), disk.prepared.sealed.uuid, geometry)?;
        let leaf_of =
            |block: u64, bytes: &[u8]| (block, motiongear_manifest::tree::leaf(geometry.offset(block), bytes));
        let mut replaced = vec![leaf_of(0, &first)];
        replaced.extend(tail.as_deref().map(|bytes| leaf_of(last, bytes)));
        let merged = leaves.digest(&replaced)?.unwrap_or_else(|| Digest::of(&first));
        if merged != sealed {
            // What the volume holds is not known well enough: read it back anew, nothing is released.
            disk.import.phase = Phase::Written;
            (disk.import.readback_mark, disk.import.counts) = (0, Counts::default());
            self.ledger().update_import(&disk.import)?;
            return Err(Error::failed(format!(
                "Volume {}: expected digest {sealed} of {name}, found {merged}",
                volume.name()
            ))
            .next("the head is withheld; run the same command again: it reads everything back anew"));
        }
        let released = release(&*volume, &geometry, self.context.engine, &first, tail.as_deref())?;
        leaves.put(0, released.first)?;
        if last > 0 {
            leaves.put(last, released.last)?;
        }
        leaves.sync()?;
        let digest = leaves.digest(&[])?.unwrap_or(released.first_hash);
        if digest != sealed {
            let _ = withhold(&*volume, &geometry);
            return Err(Error::failed(format!(
                "Volume {}: expected digest {sealed} of {name}, found {digest}",
                volume.name()
            )));
        }
        let ends = first.len() + tail.map_or(0, |tail| tail.len());
        disk.written.fetch_add(ends as u64, Ordering::Relaxed);
        self.done(disk, digest, if last > 0 { 2 } else { 1 })
    }

    fn done(&self, disk: &mut Work, digest: Digest, re_read: u64) -> Result<()> {
        let import = &mut disk.import;
        import.counts.re_read += re_read;
        import.through_cache |= disk.volume.as_ref().is_some_and(|volume| volume.through_cache());
        import.digest = Some(digest);
        // Only what gets a recovery point has a step before it.
        import.phase = if disk.prepared.place.store().is_some() { Phase::Released } else { Phase::Done };
        // Before the ledger calls it complete: one that was set back is told so by the volume itself.
        if let Some(raw) = disk.prepared.place.own_file() {
            let mut sidecar = Sidecar::read(raw)?.unwrap_or_else(|| disk.prepared.sidecar.clone());
            let landed = &disk.prepared.landed;
            let (shipment, seal, generation) = (landed.shipment, landed.seal.clone(), landed.generation);
            sidecar.completed = Some(Completed { shipment, seal, generation });
            sidecar.write(raw)?;
        }
        let at = now()?;
        import.finished_at = Some(at);
        self.ledger().update_import(import)?;
        self.ledger().mended(import.id, at)
    }

    /// The recovery point, where the volume can have one: it is closed for that.
    fn hand_over(&self, disk: &mut Work) -> Result<()> {
        if let Phase::Released | Phase::Done = disk.import.phase {
            disk.volume = None;
        }
        let (Phase::Released, Some(store)) = (disk.import.phase, disk.prepared.place.store()) else { return Ok(()) };
        let (store, landed) = (store.clone(), disk.prepared.landed.clone());
        let name = self.volume_medium(&disk.prepared).call(move || store.hand_over(&landed))?;
        disk.import.recovery_point = Some(name);
        disk.import.phase = Phase::Done;
        self.ledger().update_import(&disk.import)
    }

    fn outcome(&self, disk: &Work) -> Result<DiskOutcome> {
        let (import, sealed) = (&disk.import, &disk.prepared.sealed);
        let state = match import.phase {
            Phase::Done if disk.already => State::AlreadyImported,
            Phase::Done => State::Imported,
            Phase::Unreadable => State::Unreadable,
            _ => State::Damaged,
        };
        let mut unreadable_ranges = self.accepted.catalogue.unreadable(&disk.prepared.generation)?;
        unreadable_ranges.truncate(MAX_LISTED as usize);
        let row = self.ledger().volume(sealed.uuid)?;
        Ok(DiskOutcome {
            machine: sealed.machine.clone(),
            disk: sealed.disk.clone(),
            uuid: sealed.uuid,
            volume: disk.prepared.volume_row.location.clone(),
            volume_bytes: row.map_or(sealed.bytes, |row| row.bytes),
            bytes: sealed.bytes,
            block_bytes: sealed.block_bytes,
            sector_bytes: disk.prepared.landed.sector_bytes,
            generation: sealed.generation,
            consistency: sealed.consistency,
            state,
            blocks: sealed.blocks,
            resumed_from_block: disk.resumed_from,
            written_bytes: disk.written.load(Ordering::Relaxed),
            readback: import.readback,
            counts: import.counts,
            through_cache: import.through_cache,
            damaged: self.ledger().damaged_count(import.id)?,
            damaged_blocks: self.ledger().damaged(import.id, MAX_LISTED)?,
            unreadable_ranges,
            accepted_unreadable: import.accepted_unreadable,
            recovery_point: import.recovery_point.clone(),
            finished_at: import.finished_at,
            look: disk.look.clone(),
            sealed_digest: sealed.digest,
            digest: import.digest,
            proven: import.digest == Some(sealed.digest) && import.counts.trusted == 0 && !import.through_cache,
        })
    }
}

impl Work {
    /// Nothing is known any more of what stands on the volume.
    pub fn starts_over(&mut self) {
        self.known_zero = false;
        self.resumed_from = 0;
    }

    pub fn is_lost(&self) -> bool {
        self.volume.as_ref().is_some_and(|volume| volume.is_lost())
    }

    pub fn wanted(&self, pick: Pick) -> Wanted {
        Wanted {
            slot: self.slot,
            name: self.prepared.name.clone(),
            generation: self.prepared.generation.clone(),
            geometry: self.prepared.geometry,
            pick,
        }
    }
}

/// The parts of a [`Run`] that may be shared between threads: all but the manifest.
#[derive(Clone, Copy)]
struct ReadBackRun<'a> {
    context: &'a Context,
    mode: Mode,
    encrypted: bool,
    throttle: &'a Throttle,
    progress: &'a Progress,
}

impl<'a> ReadBackRun<'a> {
    fn of(run: &Run<'a>) -> Self {
        let encrypted = run.encrypted();
        ReadBackRun {
            context: run.context,
            mode: run.options.readback,
            encrypted,
            throttle: run.throttle,
            progress: run.progress,
        }
    }
}

struct View<'a> {
    run: ReadBackRun<'a>,
    zeros: &'a ZeroLeaves,
}

impl View<'_> {
    fn one(&self, disk: &mut Work, catalogue: &Catalogue) -> Result<()> {
        let (Phase::Written | Phase::Reading, Some(volume)) = (disk.import.phase, disk.volume.clone()) else {
            return Ok(());
        };
        let ReadBackRun { context, mode, encrypted, throttle, progress } = self.run;
        let ledger = &context.ledger;
        if disk.import.phase == Phase::Written || disk.import.readback != mode {
            (disk.import.readback, disk.import.readback_mark, disk.import.counts) = (mode, 0, Counts::default());
        }
        disk.import.phase = Phase::Reading;
        ledger.update_import(&disk.import)?;
        let absent: BTreeSet<u64> = ledger.unproven_blocks(disk.import.id)?.into_iter().collect();
        let wanted = disk.wanted(Pick::From(disk.import.readback_mark));
        let mut leaves = Leaves::open(ledger.state(), disk.prepared.sealed.uuid, disk.prepared.geometry)?;
        let pass = ReadBack {
            volume: &*volume,
            wanted: &wanted,
            catalogue,
            encrypted,
            mode,
            absent: &absent,
            engine: context.engine,
            throttle,
            zeros: self.zeros,
            progress,
        };
        let import = &mut disk.import;
        pass.run(import.counts, Some(&mut leaves), &mut |mark, counts, differing| {
            (import.readback_mark, import.counts) = (mark, *counts);
            import.through_cache |= volume.through_cache();
            ledger.update_import_with(import, &differing)
        })?;
        import.phase = Phase::Proven;
        disk.read_here = true;
        ledger.update_import(&disk.import)
    }
}

/// Commits to the ledger what has landed.
struct Marks<'a> {
    ledger: &'a Ledger,
    /// Import by slot.
    imports: BTreeMap<usize, i64>,
}

impl Checkpoint for Marks<'_> {
    fn commit(&self, commits: &[Commit]) -> Result<()> {
        let rows: Vec<(i64, &Commit)> =
            commits.iter().filter_map(|commit| Some((*self.imports.get(&commit.slot)?, commit))).collect();
        self.ledger.commit_landed(&rows)
    }
}
