//! The reading thread: batches of rows in block order become large reads of the packs in pack order.

use super::cursor::Merged;
use super::decode::{Piece, Task, damage};
use super::{Failure, Fetch, Sink, Wanted};
use crate::copy::patience::Patient;
use crate::error::{Error, Result};
use crate::io::{Access, Buffer, Completion, DirectFile, Pool, open_queue};
use crossbeam_channel::Sender;
use motiongear_manifest::catalogue::{BlockRow, Catalogue};
use motiongear_manifest::pack::pack_file_name;
use motiongear_manifest::record::record_bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Plain bytes of a batch. Rows are reordered within a batch only, so a sink that commits in block order is never more than
/// two batches behind: what bounds the work after a crash (see `volume::landing`).
pub(crate) const BATCH_BYTES: u64 = 24 << 20;
/// Rows of a batch; blocks without record cost next to nothing.
const BATCH_ROWS: usize = 4096;
/// Packs that are open at once. More than one only where a seed was resumed and blocks were superseded.
const OPEN_PACKS: usize = 4;
/// Reads under way.
const DEPTH: usize = 4;
/// A gap between two wanted records (of disks that are not wanted, or superseded) that is read through, not skipped.
const GAP_BYTES: u64 = 128 << 10;

/// Records of one pack that are read together.
struct Run {
    pack: u32,
    start: u64,
    end: u64,
    pieces: Vec<Piece>,
}

struct OpenPack {
    pack: u32,
    /// `None` where the file cannot be opened, with the reason.
    queue: Result<Patient, String>,
}

pub(super) struct Reader<'a> {
    job: &'a Fetch<'a>,
    wanted: &'a [Wanted],
    sink: &'a dyn Sink,
    pool: Pool,
    tasks: Sender<Task>,
    failure: &'a Failure,
    run_bytes: u64,
    open: VecDeque<OpenPack>,
    /// Reads under way by token, oldest first.
    flying: BTreeMap<u64, Run>,
    token: u64,
}

impl<'a> Reader<'a> {
    pub fn new(
        job: &'a Fetch<'a>,
        wanted: &'a [Wanted],
        sink: &'a dyn Sink,
        pool: Pool,
        tasks: Sender<Task>,
        failure: &'a Failure,
        run_bytes: usize,
    ) -> Self {
        let (open, flying) = (VecDeque::new(), BTreeMap::new());
        Reader { job, wanted, sink, pool, tasks, failure, run_bytes: run_bytes as u64, open, flying, token: 0 }
    }

    pub fn run(mut self, catalogue: &Catalogue) -> Result<()> {
        let mut merged = Merged::new(catalogue, self.wanted, self.job.encrypted)?;
        while let Some(pieces) = self.batch(&mut merged)? {
            for run in self.runs(pieces) {
                if self.failure.is_set() {
                    return Ok(());
                }
                self.start(run)?;
            }
        }
        while !self.flying.is_empty() {
            self.finish_one()?;
        }
        Ok(())
    }

    /// Takes the next batch: tells the sink, hands rows without record to the workers, returns the others in pack order.
    fn batch(&mut self, merged: &mut Merged<'_>) -> Result<Option<Vec<Piece>>> {
        self.job.throttle.check()?;
        let (mut bytes, mut rows) = (0u64, 0usize);
        let mut by_disk: BTreeMap<usize, Vec<BlockRow>> = BTreeMap::new();
        let mut pieces = Vec::new();
        while bytes < BATCH_BYTES && rows < BATCH_ROWS {
            let Some((disk, row)) = merged.take()? else { break };
            rows += 1;
            if let Some(place) = row.place {
                bytes += u64::from(self.wanted[disk].geometry.len(row.block));
                pieces.push(Piece { disk, row, place });
            }
            by_disk.entry(disk).or_default().push(row);
        }
        if rows == 0 {
            return Ok(None);
        }
        for (disk, rows) in &by_disk {
            self.sink.intake(self.wanted[*disk].slot, rows)?;
        }
        for (disk, mut rows) in by_disk {
            rows.retain(|row| row.place.is_none());
            if !rows.is_empty() {
                self.send(Task::Zeros { disk, rows });
            }
        }
        pieces.sort_by_key(|piece| (piece.place.pack, piece.place.offset));
        Ok(Some(pieces))
    }

    fn runs(&self, pieces: Vec<Piece>) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for piece in pieces {
            // Validated with the row: no overflow, and within the longest pack.
            let end = piece.place.offset + record_bytes(piece.place.stored_bytes);
            match runs.last_mut() {
                Some(run)
                    if run.pack == piece.place.pack
                        && piece.place.offset >= run.end
                        && piece.place.offset - run.end <= GAP_BYTES
                        && end - run.start <= self.run_bytes =>
                {
                    run.end = end;
                    run.pieces.push(piece);
                }
                _ => runs.push(Run { pack: piece.place.pack, start: piece.place.offset, end, pieces: vec![piece] }),
            }
        }
        runs
    }

    fn start(&mut self, run: Run) -> Result<()> {
        let blocks: Vec<(usize, u64, u32)> = run
            .pieces
            .iter()
            .map(|piece| {
                let wanted = &self.wanted[piece.disk];
                (wanted.slot, piece.row.block, wanted.geometry.len(piece.row.block))
            })
            .collect();
        // What the sink waits for may be in reads that only this thread can finish: wait only when there are none.
        while !self.sink.admit(&blocks, self.flying.is_empty())? {
            self.finish_one()?;
        }
        let bytes = run.end - run.start;
        self.job.throttle.admit(bytes)?;
        match self.job.packs.get(&run.pack) {
            None => return self.lose(&run, "the seal names no such pack"),
            Some(sealed) if run.end > *sealed => {
                // A row that points behind the sealed end may share its run with good ones.
                let (good, bad): (Vec<Piece>, Vec<Piece>) = run
                    .pieces
                    .into_iter()
                    .partition(|piece| piece.place.offset + record_bytes(piece.place.stored_bytes) <= *sealed);
                self.lose(
                    &Run { pieces: bad, ..run },
                    &format!("the pack is sealed with {sealed} bytes and ends before"),
                )?;
                let Some(last) = good.last() else { return Ok(()) };
                let end = last.place.offset + record_bytes(last.place.stored_bytes);
                let run = Run { pack: last.place.pack, start: good[0].place.offset, end, pieces: good };
                return self.read(run);
            }
            Some(_) => {}
        }
        self.read(run)
    }

    fn read(&mut self, run: Run) -> Result<()> {
        while self.flying.len() >= DEPTH {
            self.finish_one()?;
        }
        let buffer = loop {
            if let Some(buffer) = self.pool.try_take() {
                break buffer;
            }
            if self.flying.is_empty() {
                break self.pool.take();
            }
            self.finish_one()?;
        };
        let at = self.open_pack(run.pack)?;
        let queue = match &mut self.open[at].queue {
            Ok(queue) => queue,
            Err(why) => {
                self.job.array.still_answers()?;
                let why = why.clone();
                return self.lose(&run, &why);
            }
        };
        let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
        queue.read(self.token, run.start, buffer, length);
        self.flying.insert(self.token, run);
        self.token += 1;
        Ok(())
    }

    /// Opens a pack, closing the one that was opened first when there are many; returns its index.
    fn open_pack(&mut self, pack: u32) -> Result<usize> {
        if let Some(at) = self.open.iter().position(|open| open.pack == pack) {
            return Ok(at);
        }
        if self.open.len() >= OPEN_PACKS {
            while self.flying.values().any(|run| Some(run.pack) == self.open.front().map(|open| open.pack)) {
                self.finish_one()?;
            }
            self.open.pop_front();
        }
        let array = self.job.array.clone();
        // Only the pack is suspect here. A queue that cannot be had is the host's fault, not damage.
        let queue = match self.job.medium.call(move || Ok(array.open_pack(pack, Access::Read)))? {
            Ok(file) => Ok(self.queue(file, DEPTH)?),
            Err(error) => Err(error.to_string()),
        };
        self.open.push_back(OpenPack { pack, queue });
        Ok(self.open.len() - 1)
    }

    fn queue(&self, pack: DirectFile, depth: usize) -> Result<Patient> {
        Ok(Patient::new(open_queue(self.job.engine, Arc::new(pack), depth)?, Some(self.job.medium.clone())))
    }

    /// Waits for a read and hands it to the workers.
    fn finish_one(&mut self) -> Result<()> {
        let Some(pack) = self.flying.values().next().map(|run| run.pack) else { return Ok(()) };
        let queue = self.open.iter_mut().find(|open| open.pack == pack).and_then(|open| open.queue.as_mut().ok());
        let done = queue.map(Patient::wait).transpose()?.flatten();
        let Some(Completion { token, buffer, result, .. }) = done else {
            return Err(Error::failed(format!("Reading of pack {pack}: a read was lost")));
        };
        let (Some(run), Some(bytes)) = (self.flying.remove(&token), buffer) else {
            return Err(match result {
                Err(error) => Error::io(format!("Reading of pack {pack}"), error),
                Ok(()) => Error::failed(format!("Reading of pack {pack}: an unknown read came back")),
            });
        };
        match result {
            Ok(()) => {
                for piece in &run.pieces {
                    self.count(piece);
                }
                self.send(Task::Run { start: run.start, bytes, pieces: run.pieces });
                Ok(())
            }
            Err(error) => {
                // An array that was unplugged must not be taken for one that is damaged from here on.
                self.job.array.still_answers()?;
                if run.pieces.len() > 1 {
                    return self.read_singly(run, bytes);
                }
                drop(bytes);
                self.lose(&run, &format!("the pack cannot be read there: {error}"))
            }
        }
    }

    /// One bad sector must cost one record, not its neighbours: reads them one by one.
    fn read_singly(&mut self, run: Run, mut bytes: Buffer) -> Result<()> {
        let (pack, pieces) = (run.pack, run.pieces);
        let file = self.job.array.open_pack(pack, Access::Read);
        let mut queue = match file {
            Ok(file) => self.queue(file, 1)?,
            Err(error) => {
                self.job.array.still_answers()?;
                return self.lose(&Run { pack, start: run.start, end: run.end, pieces }, &error.to_string());
            }
        };
        for piece in pieces {
            let start = piece.place.offset;
            let length = record_bytes(piece.place.stored_bytes);
            let single = Run { pack, start, end: start + length, pieces: vec![piece] };
            queue.read(0, start, bytes, usize::try_from(length).unwrap_or(usize::MAX));
            let Some(Completion { buffer: Some(back), result, .. }) = queue.wait()? else {
                return Err(Error::failed(format!("Reading of pack {pack}: a read was lost")));
            };
            match result {
                Ok(()) => {
                    self.count(&piece);
                    self.send(Task::Run { start, bytes: back, pieces: single.pieces });
                    bytes = self.pool.take();
                }
                Err(error) => {
                    self.job.array.still_answers()?;
                    bytes = back;
                    self.lose(&single, &format!("the pack cannot be read there: {error}"))?;
                }
            }
        }
        Ok(())
    }

    fn count(&self, piece: &Piece) {
        let disk = &self.job.progress.disks[self.wanted[piece.disk].slot];
        disk.read.fetch_add(record_bytes(piece.place.stored_bytes), Ordering::Relaxed);
    }

    fn lose(&self, run: &Run, why: &str) -> Result<()> {
        for piece in &run.pieces {
            let wanted = &self.wanted[piece.disk];
            let why = format!("{} offset {}: {why}", pack_file_name(run.pack), piece.place.offset);
            self.sink.damaged(wanted.slot, damage(wanted, &piece.row, Some(piece.place), why))?;
        }
        Ok(())
    }

    /// Workers live as long as the sender, so this cannot fail; and after a failure they only empty the channel.
    fn send(&self, task: Task) {
        let _ = self.tasks.send(task);
    }
}
