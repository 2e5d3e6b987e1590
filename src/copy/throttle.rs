//! What keeps a job out of the source host's way, and what stops it: one object, asked before every read and told of
//! all work done. Every setting can be changed from another thread while the job runs, and takes effect at once, also
//! on those who are waiting.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, UNLIMITED};
use super::clock::{Bell, Clock, SystemClock, lock};
use super::guard::{Guard, GuardState, LatencyGuard};
use super::windows::{Rate, Windows};
use crate::error::{Error, Result};

/// Windows are read on the wall clock, which may be set while a job waits: looked at again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Notes nobody has fetched; older ones are dropped.
const MAX_NOTES: usize = 64;

/// What a job may take of the host.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Bytes a second read from all sources together, outside windows.
    pub read_bytes_per_second: Option<u64>,
    /// Percent of the whole machine's CPU time, 1–100.
    pub cpu_percent: Option<u8>,
    /// When which rate applies.
    pub windows: Windows,
    /// Back off when the source disks' own latency rises.
    pub latency_guard: Option<LatencyGuard>,
}

/// Limits to change while running; `None` leaves a limit as it is, `Some(None)` lifts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Bytes a second. Inside a window the lower of this and the window's rate applies: a stand-still stays one.
    pub read_bytes_per_second: Option<Option<u64>>,
    /// Percent of the whole machine.
    pub cpu_percent: Option<Option<u8>>,
}

/// Why a job stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// By signal: its name.
    Signal(&'static str),
    /// Somebody asked through the control socket.
    Asked,
    /// Another part of the job failed with an error of its own; the rest need not go on.
    Failed,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Signal(name) => write!(f, "by {name}"),
            Stop::Asked => f.write_str("by request from another terminal"),
            Stop::Failed => f.write_str("because another part of it failed"),
        }
    }
}

impl Stop {
    fn error(&self) -> Error {
        Error::interrupted(format!("Job stopped {self}; nothing that was finished is lost"))
            .next("The same command resumes")
    }
}

/// What `status` shows of the limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThrottleState {
    /// Paused by request.
    pub paused: bool,
    /// Why it is stopping.
    pub stopping: Option<String>,
    /// Bytes a second allowed right now by limit, window and guard together; `None` is no limit.
    pub read_bytes_per_second: Option<u64>,
    /// The limit outside windows.
    pub base_read_bytes_per_second: Option<u64>,
    /// The window that holds now, as typed.
    pub window: Option<String>,
    /// When the windows next change the rate.
    pub next_change: Option<Timestamp>,
    /// Percent of the whole machine.
    pub cpu_percent: Option<u8>,
    /// The latency guard, where there is one.
    pub guard: Option<GuardState>,
    /// Bytes admitted so far.
    pub admitted_bytes: u64,
}

/// The limits of one running job; shared by all its threads.
pub struct Throttle {
    clock: Arc<dyn Clock>,
    bell: Bell,
    settings: Mutex<Settings>,
    stopped: AtomicBool,
    read: Bucket,
    cpu: Bucket,
    processors: u64,
    guard: Option<Mutex<Guard>>,
    admitted: AtomicU64,
    notes: Mutex<Vec<String>>,
}

struct Settings {
    base: Option<u64>,
    /// Set from another terminal, and so also a ceiling inside windows.
    asked: Option<u64>,
    cpu_percent: Option<u8>,
    windows: Windows,
    paused: bool,
    stop: Option<Stop>,
    /// When the rate in force was last worked out.
    looked: Option<Duration>,
}

impl Throttle {
    /// Limits by the machine's own clock and processors.
    pub fn new(limits: Limits) -> Arc<Throttle> {
        Self::with_clock(limits, Arc::new(SystemClock::new()), online_processors())
    }

    /// As [`Throttle::new`], for tests.
    pub fn with_clock(limits: Limits, clock: Arc<dyn Clock>, processors: u64) -> Arc<Throttle> {
        let now = clock.now();
        Arc::new(Throttle {
            bell: Bell::default(),
            stopped: AtomicBool::new(false),
            read: Bucket::new(UNLIMITED, now),
            cpu: Bucket::new(cpu_rate(limits.cpu_percent, processors), now),
            processors,
            guard: limits.latency_guard.map(|config| Mutex::new(Guard::new(config))),
            admitted: AtomicU64::new(0),
            notes: Mutex::new(Vec::new()),
            settings: Mutex::new(Settings {
                base: limits.read_bytes_per_second,
                asked: None,
                cpu_percent: limits.cpu_percent,
                windows: limits.windows,
                paused: false,
                stop: None,
                looked: None,
            }),
            clock,
        })
    }

    /// Asks to read `bytes` from a source: returns when pause, window, rate and latency guard allow it.
    ///
    /// # Errors
    /// `Interrupted` once the job is stopped, at once also for those who are waiting.
    pub fn admit(&self, bytes: u64) -> Result<()> {
        loop {
            let heard = self.bell.rung();
            self.check()?;
            let now = self.clock.now();
            self.watch_latency(now);
            let paused = {
                let mut settings = lock(&self.settings);
                self.refresh(&mut settings, now);
                settings.paused
            };
            let wait = if paused {
                None
            } else {
                match self.read.take(bytes, now) {
                    Ok(()) => {
                        self.admitted.fetch_add(bytes, Ordering::Relaxed);
                        return Ok(());
                    }
                    Err(wait) => Some(wait.clamp(Duration::from_micros(50), LOOK_AGAIN)),
                }
            };
            self.clock.wait(&self.bell, heard, wait);
        }
    }

    /// Tells the latency guard how long a read of source disk number `disk` took.
    pub fn observe_read(&self, disk: usize, elapsed: Duration) {
        // Under a limit a read may lie finished until its reader is admitted again: that is our slowness, and backing off
        // from it would make it worse.
        if self.read.rate() == UNLIMITED
            && let Some(guard) = &self.guard
        {
            lock(guard).observe(disk, elapsed);
        }
    }

    /// A worker used this much CPU time: returns when the CPU limit allows it to go on. Returns at once when stopped.
    pub fn worked(&self, cpu: Duration) {
        self.cpu.charge(u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX), self.clock.now());
        loop {
            let heard = self.bell.rung();
            if self.stopped() {
                return;
            }
            match self.cpu.owed(self.clock.now()) {
                None => return,
                Some(wait) => self.clock.wait(&self.bell, heard, Some(wait.min(LOOK_AGAIN))),
            }
        }
    }

    /// Stops the job gracefully. The first reason counts; a second stop changes nothing.
    pub fn stop(&self, reason: Stop) {
        lock(&self.settings).stop.get_or_insert(reason);
        self.stopped.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Has [`Throttle::stop`] been called?
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// For loops that read no source.
    ///
    /// # Errors
    /// `Interrupted` once the job is stopped.
    pub fn check(&self) -> Result<()> {
        if !self.stopped() {
            return Ok(());
        }
        Err(lock(&self.settings).stop.as_ref().unwrap_or(&Stop::Failed).error())
    }

    /// Stands still from the next read on.
    pub fn pause(&self) {
        lock(&self.settings).paused = true;
        self.bell.ring();
    }

    /// Goes on.
    pub fn resume(&self) {
        lock(&self.settings).paused = false;
        self.bell.ring();
    }

    /// Changes limits while running.
    pub fn set_limits(&self, change: Change) {
        let now = self.clock.now();
        {
            let mut settings = lock(&self.settings);
            if let Some(read) = change.read_bytes_per_second {
                settings.base = read;
                settings.asked = read;
                settings.looked = None;
            }
            if let Some(cpu) = change.cpu_percent {
                settings.cpu_percent = cpu;
                self.cpu.set_rate(cpu_rate(cpu, self.processors), now);
            }
            self.refresh(&mut settings, now);
        }
        self.bell.ring();
    }

    /// What holds now, for `status`.
    pub fn state(&self) -> ThrottleState {
        let (now, at) = (self.clock.now(), self.clock.timestamp());
        let mut settings = lock(&self.settings);
        settings.looked = None;
        self.refresh(&mut settings, now);
        ThrottleState {
            paused: settings.paused,
            stopping: settings.stop.as_ref().map(Stop::to_string),
            read_bytes_per_second: Some(self.read.rate()).filter(|rate| *rate != UNLIMITED),
            base_read_bytes_per_second: settings.base,
            window: settings.windows.text_at(at).map(str::to_owned),
            next_change: settings.windows.next_change(at),
            cpu_percent: settings.cpu_percent,
            guard: self.guard.as_ref().map(|guard| lock(guard).state()),
            admitted_bytes: self.admitted.load(Ordering::Relaxed),
        }
    }

    /// Says something to people: the log at once, the monitor when it fetches it.
    pub fn note(&self, text: String) {
        tracing::info!("{text}");
        let mut notes = lock(&self.notes);
        if notes.len() == MAX_NOTES {
            notes.remove(0);
        }
        notes.push(text);
    }

    /// Fetches the notes since the last call: back-offs, changed limits, signals. Whoever runs the job shows them.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.notes))
    }

    /// Samples the disks' latency when it is time. One thread samples; the others do not wait for it.
    fn watch_latency(&self, now: Duration) {
        let Some(Ok(mut guard)) = self.guard.as_ref().map(Mutex::try_lock) else { return };
        if let Some(change) = guard.sample(now, self.admitted.load(Ordering::Relaxed)) {
            drop(guard);
            lock(&self.settings).looked = None;
            if let Some(text) = change.note {
                self.note(text);
            }
        }
    }

    /// Works out the rate in force, at most once a second unless something changed.
    fn refresh(&self, settings: &mut Settings, now: Duration) {
        if settings.looked.is_some_and(|looked| now.saturating_sub(looked) < LOOK_AGAIN) {
            return;
        }
        settings.looked = Some(now);
        let base = settings.base.unwrap_or(UNLIMITED);
        let scheduled = if settings.windows.is_empty() {
            base
        } else {
            let at = self.clock.timestamp();
            match settings.windows.rate_at(at) {
                None => base,
                Some(Rate::Unlimited) => settings.asked.unwrap_or(UNLIMITED),
                Some(Rate::BytesPerSecond(rate)) => rate.min(settings.asked.unwrap_or(UNLIMITED)),
            }
        };
        let guarded = self.guard.as_ref().and_then(|guard| lock(guard).ceiling()).unwrap_or(UNLIMITED);
        let rate = scheduled.min(guarded);
        if rate != self.read.rate() {
            self.read.set_rate(rate, now);
            // Those who wait by the old rate look again.
            self.bell.ring();
        }
    }
}

/// Nanoseconds of CPU time a second.
fn cpu_rate(percent: Option<u8>, processors: u64) -> u64 {
    percent.map_or(UNLIMITED, |percent| processors.max(1).saturating_mul(u64::from(percent.clamp(1, 100))) * 10_000_000)
}

/// The whole machine's, whatever this process is confined to.
fn online_processors() -> u64 {
    // SAFETY: no pointers.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u64::try_from(count).unwrap_or(1).max(1)
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;
