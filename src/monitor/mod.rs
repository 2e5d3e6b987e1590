//! Progress of a job: counters that the data path adds to, and whoever shows them.
//!
//! Everything goes to stderr, and a failed write to it is ignored: a job survives its terminal.

mod bars;
mod lines;
mod rate;
mod waits;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::copy::clock::lock;
use crate::copy::throttle::Throttle;
use crate::lang::Lang;
use rate::Smoothed;

pub(crate) use lines::line;
pub use waits::{Listed, MediumKind, Waiting, Waits};

/// The counters of one job; the data path only adds to atomics, whoever shows them polls.
pub struct Progress {
    /// The verb, as typed.
    pub verb: &'static str,
    /// What is going on: `seed`, `read-back`, `verify` …; change it with [`Progress::begin`].
    pub phase: Mutex<String>,
    /// One per disk, in the job's order.
    pub disks: Vec<DiskProgress>,
    /// What outside of the job does not answer.
    pub waits: Waits,
    /// When the job began.
    pub started: Instant,
    rates: Mutex<Rates>,
}

/// The counters of one disk, in bytes unless said otherwise.
#[derive(Debug, Default)]
pub struct DiskProgress {
    /// `MACHINE/DISK`.
    pub name: String,
    /// What is to be done in this phase.
    pub bytes: u64,
    /// Dealt with in this phase by this run, zeros and holes included; without `skipped`. Counted first: the next two are shares.
    pub done: AtomicU64,
    /// Really read.
    pub read: AtomicU64,
    /// Of what is done, all zeros.
    pub zero: AtomicU64,
    /// Of the records of what is done, as stored.
    pub stored: AtomicU64,
    /// Done by an earlier run, and so not done again.
    pub skipped: AtomicU64,
    /// Could not be read.
    pub unreadable: AtomicU64,
    /// Failed a check.
    pub damaged: AtomicU64,
}

struct Rates {
    total: Smoothed,
    disks: Vec<Smoothed>,
}

/// The counters at one moment, with rate and time to go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The verb.
    pub verb: String,
    /// The phase.
    pub phase: String,
    /// Since the job began.
    pub elapsed_seconds: f64,
    /// All disks together; its name is empty.
    pub total: DiskSnapshot,
    /// Each disk.
    pub disks: Vec<DiskSnapshot>,
    /// What has not answered for a second or more.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
}

/// As [`DiskProgress`], at one moment; bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskSnapshot {
    /// `MACHINE/DISK`.
    pub name: String,
    /// To do in this phase.
    pub bytes: u64,
    /// Done by this run.
    pub done: u64,
    /// Read.
    pub read: u64,
    /// Zero.
    pub zero: u64,
    /// Stored.
    pub stored: u64,
    /// Done by an earlier run.
    pub skipped: u64,
    /// Unreadable.
    pub unreadable: u64,
    /// Damaged.
    pub damaged: u64,
    /// Smoothed.
    pub bytes_per_second: u64,
    /// Time to go; `None` while nobody can know.
    pub eta_seconds: Option<u64>,
}

impl DiskProgress {
    /// A disk of `bytes`, nothing done.
    pub fn new(name: impl Into<String>, bytes: u64) -> DiskProgress {
        DiskProgress { name: name.into(), bytes, ..DiskProgress::default() }
    }

    fn snapshot(&self) -> DiskSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        // Counted after the whole and read before it, they are never larger.
        let (zero, stored) = (get(&self.zero), get(&self.stored));
        DiskSnapshot {
            name: self.name.clone(),
            bytes: self.bytes,
            done: get(&self.done),
            read: get(&self.read),
            zero,
            stored,
            skipped: get(&self.skipped),
            unreadable: get(&self.unreadable),
            damaged: get(&self.damaged),
            bytes_per_second: 0,
            eta_seconds: None,
        }
    }
}

impl DiskSnapshot {
    /// Bytes behind us, of this run and earlier ones, never more than there are.
    pub fn position(&self) -> u64 {
        self.done.saturating_add(self.skipped).min(self.bytes)
    }

    /// 0.0–1.0; a disk of no bytes is done.
    pub fn fraction(&self) -> f64 {
        if self.bytes == 0 { 1.0 } else { self.position() as f64 / self.bytes as f64 }
    }

    /// Percent of what this run did that was zero; `None` before anything was done.
    pub fn zero_percent(&self) -> Option<f64> {
        share(self.zero, self.done)
    }

    /// Stored bytes in percent of the non-zero bytes; `None` before there are any.
    pub fn stored_percent(&self) -> Option<f64> {
        share(self.stored, self.done.saturating_sub(self.zero))
    }

    fn add(&mut self, other: &DiskSnapshot) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.done = self.done.saturating_add(other.done);
        self.read = self.read.saturating_add(other.read);
        self.zero = self.zero.saturating_add(other.zero);
        self.stored = self.stored.saturating_add(other.stored);
        self.skipped = self.skipped.saturating_add(other.skipped);
        self.unreadable = self.unreadable.saturating_add(other.unreadable);
        self.damaged = self.damaged.saturating_add(other.damaged);
    }

    fn estimate(&mut self, rate: &mut Smoothed, now: Duration) {
        let per_second = rate.observe(now, self.done);
        self.bytes_per_second = per_second.unwrap_or(0);
        self.eta_seconds = rate::eta(self.bytes - self.position(), per_second);
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

impl Progress {
    /// Counters of `verb`, nothing done yet; the phase is the verb.
    pub fn new(verb: &'static str, disks: Vec<DiskProgress>) -> Arc<Progress> {
        let rates = Rates { total: Smoothed::default(), disks: disks.iter().map(|_| Smoothed::default()).collect() };
        Arc::new(Progress {
            verb,
            phase: Mutex::new(verb.to_owned()),
            disks,
            waits: Waits::default(),
            started: Instant::now(),
            rates: Mutex::new(rates),
        })
    }

    /// Enters a phase that goes over the disks again: `done`, its shares and `skipped` begin at zero.
    pub fn begin(&self, phase: &str) {
        let mut rates = lock(&self.rates);
        *lock(&self.phase) = phase.to_owned();
        for (disk, rate) in self.disks.iter().zip(&mut rates.disks) {
            for counter in [&disk.zero, &disk.stored, &disk.done, &disk.skipped] {
                counter.store(0, Ordering::Relaxed);
            }
            *rate = Smoothed::default();
        }
        rates.total = Smoothed::default();
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_at(self.started.elapsed())
    }

    /// The counters, `elapsed` after the start.
    pub fn snapshot_at(&self, elapsed: Duration) -> Snapshot {
        let mut rates = lock(&self.rates);
        let mut disks: Vec<_> = self.disks.iter().map(DiskProgress::snapshot).collect();
        let mut total = DiskSnapshot::default();
        for (disk, rate) in disks.iter_mut().zip(&mut rates.disks) {
            total.add(disk);
            disk.estimate(rate, elapsed);
        }
        total.estimate(&mut rates.total, elapsed);
        let phase = lock(&self.phase).clone();
        let (verb, elapsed_seconds) = (self.verb.to_owned(), elapsed.as_secs_f64());
        Snapshot { verb, phase, elapsed_seconds, total, disks, waiting: self.waits.now() }
    }
}

/// Shows what a job does.
pub trait Monitor: Send + Sync {
    /// Shows `progress` until the returned guard is dropped.
    fn watch(&self, progress: Arc<Progress>) -> Watch;
    /// A line for people, above the bars.
    fn note(&self, text: &str);
}

/// Which monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bars, for a terminal.
    Bars,
    /// A plain line now and then.
    Lines,
    /// Nothing at all.
    Quiet,
    /// JSON lines on stderr.
    Json,
}

/// A monitor of a kind.
pub fn monitor(kind: Kind, lang: Lang) -> Box<dyn Monitor> {
    match kind {
        Kind::Bars => Box::new(bars::Bars::new(lang)),
        Kind::Lines => Box::new(lines::Lines::new(lang)),
        Kind::Quiet => Box::new(Quiet),
        Kind::Json => Box::new(lines::Json),
    }
}

/// Guard of a display; the last state is shown when it is dropped.
#[must_use]
#[derive(Default)]
pub struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `show` with a snapshot at every interval, and a last time (`true`) when the guard is dropped.
    pub fn every(
        interval: Duration,
        progress: Arc<Progress>,
        mut show: impl FnMut(&Snapshot, bool) + Send + 'static,
    ) -> Watch {
        Watch::ticks(interval, move |last| show(&progress.snapshot(), last))
    }

    /// Hands a running job's notes (back-offs, changed limits, signals) on to `monitor`.
    pub fn notes(throttle: Arc<Throttle>, monitor: Arc<dyn Monitor>) -> Watch {
        Watch::ticks(Duration::from_millis(200), move |_| {
            for note in throttle.take_notes() {
                monitor.note(&note);
            }
        })
    }

    fn ticks(interval: Duration, mut tick: impl FnMut(bool) + Send + 'static) -> Watch {
        let (stop, stopped) = bounded::<()>(0);
        let thread = std::thread::Builder::new().name("monitor".into()).spawn(move || {
            loop {
                match stopped.recv_timeout(interval) {
                    Err(RecvTimeoutError::Timeout) => tick(false),
                    _ => return tick(true),
                }
            }
        });
        // A job without a display is better than no job.
        Watch { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Shows nothing, but keeps the rates fresh for `status`.
struct Quiet;

impl Monitor for Quiet {
    fn watch(&self, progress: Arc<Progress>) -> Watch {
        Watch::every(Duration::from_secs(1), progress, |_, _| {})
    }
    fn note(&self, _: &str) {}
}

/// A monitor for tests: remembers what it was told.
#[derive(Default, Clone)]
pub struct Recorder {
    /// Everything noted.
    pub notes: Arc<Mutex<Vec<String>>>,
    /// The last state of everything watched.
    pub finished: Arc<Mutex<Vec<Snapshot>>>,
}

impl Monitor for Recorder {
    fn watch(&self, progress: Arc<Progress>) -> Watch {
        let finished = Arc::clone(&self.finished);
        Watch::every(Duration::from_secs(3600), progress, move |snapshot, last| {
            if last {
                lock(&finished).push(snapshot.clone());
            }
        })
    }
    fn note(&self, text: &str) {
        lock(&self.notes).push(text.to_owned());
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
