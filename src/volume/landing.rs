//! Where proven blocks land: a sink that writes them to volumes, flushes, and then says how far it has come.
//!
//! Order, and what each wrong order breaks:
//! 1. a block is admitted only while fewer than [`REDO_BYTES`] are written or on their way and not yet committed (else more
//!    than that is copied again after a crash);
//! 2. it is written; its write completes;
//! 3. the mark of its disk is taken: all blocks below it are complete (taken after the flush it would cover blocks that the
//!    flush did not);
//! 4. the volume is flushed (committed before, a power cut leaves a mark above blocks that are not there);
//! 5. mark, damage and landed blocks are committed in one transaction.
//!
//! Block 0 and the last block are proven like the others but never written here: see `head`.

use super::Volume;
use crate::copy::crew::start;
use crate::copy::fetch::{Damage, Failure, Sink};
use crate::copy::patience::Patient;
use crate::error::{Error, Result};
use crate::io::{Buffer, Completion, Engine};
use crate::monitor::Progress;
use crossbeam_channel::{Receiver, Sender};
use motiongear_manifest::catalogue::BlockRow;
use motiongear_manifest::geometry::Geometry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Most bytes of blocks that may be written without being committed: what is written again after a crash.
pub const REDO_BYTES: u64 = 60 << 20;
/// A commit is due when this much has been written since the last one.
const COMMIT_BYTES: u64 = 24 << 20;

/// A disk and its volume.
#[derive(Clone)]
pub struct Lane {
    /// The slot of the disk in fetch and progress.
    pub slot: usize,
    /// MACHINE/DISK.
    pub name: String,
    /// Where it goes.
    pub volume: Arc<dyn Volume>,
    /// How it is cut into blocks.
    pub geometry: Geometry,
    /// Blocks below are committed already.
    pub from: u64,
    /// The volume reads as zeros where nothing was written: zero blocks need no write.
    pub known_zero: bool,
    /// Only single blocks are wanted: the mark stays, and landed blocks are reported one by one.
    pub single: bool,
    /// Gets the bytes that were written to it, whatever becomes of them.
    pub written: Arc<AtomicU64>,
}

/// What is durable since the last commit.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The disk.
    pub slot: usize,
    /// All blocks below are on the volume, or damaged. Unchanged where single blocks are wanted.
    pub mark: u64,
    /// Single blocks that are on the volume now.
    pub landed: Vec<u64>,
    /// Blocks that could not be proven.
    pub damaged: Vec<Damage>,
}

/// Keeps what is durable.
pub trait Checkpoint: Sync {
    /// Makes this durable, all or nothing.
    ///
    /// # Errors
    /// Ends the landing.
    fn commit(&self, commits: &[Commit]) -> Result<()>;
}

/// A disk's state while it lands.
#[derive(Default)]
struct Track {
    /// Taken in and not complete.
    outstanding: BTreeSet<u64>,
    /// One past the last block taken in.
    next: u64,
    /// Committed mark.
    mark: u64,
    /// Admitted bytes by block, until they are committed.
    unsettled: BTreeMap<u64, u64>,
    landed: Vec<u64>,
    damaged: Vec<Damage>,
    dirty: bool,
}

#[derive(Default)]
struct State {
    tracks: Vec<Track>,
    /// Bytes in all `unsettled`.
    redo: u64,
    /// Completed since the last commit.
    fresh: u64,
    /// Anything completed since the last commit, though it were only zeros that needed no write.
    moved: bool,
    /// Somebody waits for room.
    starving: bool,
    finished: bool,
}

/// What the writers, the committer and the sink share.
struct Shared<'a> {
    lanes: &'a [Lane],
    state: Mutex<State>,
    changed: Condvar,
    failure: Failure,
    progress: &'a Progress,
}

/// The sink. While it lives, the writers wait for blocks.
pub struct Landing<'a> {
    shared: &'a Shared<'a>,
    /// Index into the lanes by slot.
    index: BTreeMap<usize, usize>,
    senders: Vec<Sender<(BlockRow, Buffer)>>,
}

/// Runs `feed` (a fetch) into the volumes of `lanes`.
///
/// What is durable when `feed` is interrupted or fails is committed all the same.
///
/// # Errors
/// What `feed` returned; a volume cannot be written; a commit fails.
pub fn land(
    lanes: &[Lane],
    engine: Engine,
    checkpoint: &dyn Checkpoint,
    progress: &Progress,
    feed: impl FnOnce(&Landing<'_>) -> Result<()>,
) -> Result<()> {
    let tracks = lanes.iter().map(|lane| Track { next: lane.from, mark: lane.from, ..Track::default() }).collect();
    let shared = Shared {
        lanes,
        state: Mutex::new(State { tracks, ..State::default() }),
        changed: Condvar::new(),
        failure: Failure::default(),
        progress,
    };
    let index = lanes.iter().enumerate().map(|(at, lane)| (lane.slot, at)).collect();
    // Unbounded channels: the pool that the buffers come from is the bound.
    let (senders, receivers): (Vec<_>, Vec<_>) = lanes.iter().map(|_| crossbeam_channel::unbounded()).unzip();
    let fed = std::thread::scope(|scope| {
        let shared = &shared;
        let mut writers = Vec::new();
        for (at, blocks) in receivers.into_iter().enumerate() {
            match start(scope, move || shared.write_lane(at, engine, &blocks)) {
                Ok(writer) => writers.push(writer),
                Err(error) => shared.fail(error),
            }
        }
        let committer = start(scope, move || shared.commit_until_finished(checkpoint));
        let landing = Landing { shared, index, senders };
        // Without all of its threads nothing is fed to the others.
        let fed = if shared.failure.is_set() || committer.is_err() { Ok(()) } else { feed(&landing) };
        drop(landing);
        for writer in writers {
            if writer.join().is_err() {
                shared.fail(Error::failed("Writing of volumes: a thread stopped unexpectedly"));
            }
        }
        shared.state().finished = true;
        shared.changed.notify_all();
        match committer.map(|committer| committer.join()) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => shared.fail(Error::failed("Committing to the ledger: a thread stopped unexpectedly")),
            Err(error) => shared.fail(error),
        }
        fed
    });
    shared.failure.take()?;
    fed
}

impl Shared<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a few whole steps that cannot panic in between.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        self.failure.set(error);
        // Under the lock, so that nobody who is about to wait misses it.
        let _state = self.state();
        self.changed.notify_all();
    }

    fn complete(&self, at: usize, blocks: impl IntoIterator<Item = u64>, bytes: u64, stored: u64, dirty: bool) {
        let lane = &self.lanes[at];
        let mut state = self.state();
        let track = &mut state.tracks[at];
        for block in blocks {
            track.outstanding.remove(&block);
            if lane.single {
                track.landed.push(block);
            }
        }
        track.dirty |= dirty;
        state.moved = true;
        if dirty {
            state.fresh += bytes;
        }
        let due = state.fresh >= COMMIT_BYTES || state.starving;
        drop(state);
        let counters = &self.progress.disks[lane.slot];
        counters.done.fetch_add(bytes, Ordering::Relaxed);
        counters.stored.fetch_add(stored, Ordering::Release);
        if due {
            self.changed.notify_all();
        }
    }

    /// One volume's writer: keeps a few writes under way. After a failure it only takes blocks and drops them.
    fn write_lane(&self, at: usize, engine: Engine, blocks: &Receiver<(BlockRow, Buffer)>) {
        let lane = &self.lanes[at];
        let depth = lane.volume.depth();
        let mut queue: Option<Patient> = None;
        let mut under_way = BTreeMap::new();
        loop {
            let flying = queue.as_ref().map_or(0, |queue| queue.in_flight());
            let next = match flying {
                0 => match blocks.recv() {
                    Ok(next) => Some(next),
                    Err(_) => return,
                },
                flying if flying >= depth => None,
                _ => blocks.try_recv().ok(),
            };
            if self.failure.is_set() {
                drop(next);
                drop(queue);
                blocks.iter().for_each(drop);
                return;
            }
            if let Some((row, buffer)) = next {
                let open = match queue.take() {
                    Some(open) => Ok(open),
                    None => lane.volume.writer(engine, depth),
                };
                match open {
                    Ok(mut open) => {
                        under_way.insert(row.block, (buffer.len() as u64, row.stored_bytes()));
                        open.write(row.block, lane.geometry.offset(row.block), buffer);
                        queue = Some(open);
                    }
                    Err(error) => self.fail(error),
                }
                continue;
            }
            let done = match queue.as_mut().map_or(Ok(None), Patient::wait) {
                Ok(Some(done)) => done,
                Ok(None) => {
                    self.fail(Error::failed(format!("Volume {}: a write was lost", lane.volume.name())));
                    continue;
                }
                Err(stopped) => {
                    self.fail(stopped);
                    continue;
                }
            };
            let Completion { token, buffer, result, .. } = done;
            drop(buffer);
            let (bytes, stored) = under_way.remove(&token).unwrap_or_default();
            match result {
                Ok(()) => {
                    lane.written.fetch_add(bytes, Ordering::Relaxed);
                    self.complete(at, [token], bytes, stored, true);
                }
                Err(error) => {
                    let offset = lane.geometry.offset(token);
                    let full = error.raw_os_error() == Some(libc::ENOSPC);
                    let what = format!(
                        "Volume {}: block {token} of {} at byte {offset} could not be written",
                        lane.volume.name(),
                        lane.name
                    );
                    let next = if full { "make room" } else { "check the volume" };
                    self.fail(
                        Error::io(what, error).next(format!("{next}, then run the same command again: it resumes")),
                    );
                }
            }
        }
    }

    fn commit_until_finished(&self, checkpoint: &dyn Checkpoint) {
        loop {
            let mut state = self.state();
            while !(state.finished
                || self.failure.is_set()
                || state.fresh >= COMMIT_BYTES
                || state.starving && state.moved)
            {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let finished = state.finished;
            drop(state);
            // After a failure what is complete is still good: it is committed once more at the end.
            if self.failure.is_set() && !finished {
                let mut state = self.state();
                while !state.finished {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                drop(state);
                if let Err(error) = self.commit(checkpoint) {
                    self.fail(error);
                }
                return;
            }
            if let Err(error) = self.commit(checkpoint) {
                // A second flush would succeed and prove nothing about what the first one lost: no commit after a failed one.
                return self.fail(error);
            }
            if finished {
                return;
            }
        }
    }

    fn commit(&self, checkpoint: &dyn Checkpoint) -> Result<()> {
        let mut commits = Vec::new();
        let mut dirty = Vec::new();
        let mut state = self.state();
        (state.fresh, state.moved) = (0, false);
        for (at, track) in state.tracks.iter_mut().enumerate() {
            let lane = &self.lanes[at];
            let mark = if lane.single { lane.from } else { track.outstanding.first().copied().unwrap_or(track.next) };
            let commit = Commit {
                slot: lane.slot,
                mark,
                landed: std::mem::take(&mut track.landed),
                damaged: std::mem::take(&mut track.damaged),
            };
            if std::mem::take(&mut track.dirty) {
                dirty.push(at);
            }
            if commit.mark != track.mark || !commit.landed.is_empty() || !commit.damaged.is_empty() {
                commits.push((at, commit));
            }
        }
        drop(state);
        // One that cannot be flushed must not keep the others from being committed.
        let mut failed = None;
        for at in dirty {
            if let Err(error) = self.lanes[at].volume.flush() {
                commits.retain(|(of, _)| *of != at);
                failed.get_or_insert(error);
            }
        }
        let (lanes, commits): (Vec<usize>, Vec<Commit>) = commits.into_iter().unzip();
        if !commits.is_empty() {
            checkpoint.commit(&commits)?;
        }
        let mut state = self.state();
        let mut settled = 0;
        for (at, commit) in lanes.into_iter().zip(commits) {
            let track = &mut state.tracks[at];
            track.mark = commit.mark;
            let left = track.unsettled.split_off(&commit.mark);
            settled += std::mem::replace(&mut track.unsettled, left).values().sum::<u64>();
            let single = commit.landed.into_iter().chain(commit.damaged.into_iter().map(|damage| damage.block));
            for block in single.filter(|_| self.lanes[at].single) {
                settled += track.unsettled.remove(&block).unwrap_or(0);
            }
        }
        state.redo = state.redo.saturating_sub(settled);
        if settled > 0 {
            state.starving = false;
        }
        drop(state);
        self.changed.notify_all();
        failed.map_or(Ok(()), Err)
    }
}

impl Landing<'_> {
    fn lane(&self, slot: usize) -> Result<(usize, &Lane)> {
        let at = self.index.get(&slot).copied();
        at.map(|at| (at, &self.shared.lanes[at]))
            .ok_or_else(|| Error::failed(format!("Writing of volumes: no volume for disk number {slot}")))
    }

    fn withheld(lane: &Lane, block: u64) -> bool {
        block == 0 || block + 1 == lane.geometry.blocks()
    }

    fn check(&self) -> Result<()> {
        if self.shared.failure.is_set() {
            // The reason is kept; this one is only the end of the fetch.
            return Err(Error::interrupted("Writing of volumes: stopped by an earlier error"));
        }
        Ok(())
    }
}

impl Sink for Landing<'_> {
    fn intake(&self, slot: usize, rows: &[BlockRow]) -> Result<()> {
        let (at, _) = self.lane(slot)?;
        let mut state = self.shared.state();
        let track = &mut state.tracks[at];
        track.outstanding.extend(rows.iter().map(|row| row.block));
        if let Some(last) = rows.last() {
            track.next = last.block + 1;
        }
        Ok(())
    }

    fn admit(&self, blocks: &[(usize, u64, u32)], wait: bool) -> Result<bool> {
        let wanted: u64 = blocks.iter().map(|(_, _, bytes)| u64::from(*bytes)).sum();
        let mut state = self.shared.state();
        while state.redo > 0 && state.redo + wanted > REDO_BYTES {
            self.check()?;
            state.starving = true;
            self.shared.changed.notify_all();
            if !wait {
                return Ok(false);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        for (slot, block, bytes) in blocks {
            let (at, _) = self.lane(*slot)?;
            state.tracks[at].unsettled.insert(*block, u64::from(*bytes));
        }
        state.redo += wanted;
        drop(state);
        self.check().map(|()| true)
    }

    fn zeros(&self, slot: usize, rows: &[BlockRow]) -> Result<()> {
        self.check()?;
        let (at, lane) = self.lane(slot)?;
        let bytes_of = |row: &BlockRow| u64::from(lane.geometry.len(row.block));
        let mut written = false;
        if !lane.known_zero {
            let wanted: Vec<&BlockRow> = rows.iter().filter(|row| !Self::withheld(lane, row.block)).collect();
            for run in wanted.chunk_by(|a, b| a.block + 1 == b.block) {
                let bytes = run.iter().map(|row| bytes_of(row)).sum();
                lane.volume.write_zeroes(lane.geometry.offset(run[0].block), bytes)?;
                written = true;
            }
        }
        let bytes: u64 = rows.iter().map(bytes_of).sum();
        self.shared.complete(at, rows.iter().map(|row| row.block), bytes, 0, written);
        self.shared.progress.disks[lane.slot].zero.fetch_add(bytes, Ordering::Release);
        Ok(())
    }

    fn block(&self, slot: usize, row: &BlockRow, data: Buffer) -> Result<()> {
        self.check()?;
        let (at, lane) = self.lane(slot)?;
        if Self::withheld(lane, row.block) {
            let bytes = data.len() as u64;
            drop(data);
            // Counted as fresh, so that a waiting reader gets its commit.
            self.shared.complete(at, [row.block], bytes, row.stored_bytes(), true);
            return Ok(());
        }
        self.senders[at]
            .send((*row, data))
            .map_err(|_| Error::failed(format!("Volume {}: its writer has stopped", lane.volume.name())))
    }

    fn damaged(&self, slot: usize, damage: Damage) -> Result<()> {
        self.check()?;
        let (at, lane) = self.lane(slot)?;
        let bytes = u64::from(damage.bytes);
        self.shared.progress.disks[lane.slot].damaged.fetch_add(bytes, Ordering::Relaxed);
        let mut state = self.shared.state();
        let track = &mut state.tracks[at];
        track.outstanding.remove(&damage.block);
        track.damaged.push(damage);
        state.fresh += bytes;
        state.moved = true;
        drop(state);
        self.shared.progress.disks[lane.slot].done.fetch_add(bytes, Ordering::Relaxed);
        self.shared.changed.notify_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
