//! Time as the limits see it, so that tests run hours of windows without sleeping.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Wakes everybody who waits. Whoever is about to wait first notes how often it rang, then looks whether there is
/// anything to wait for, then waits: a ring in between is not lost.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<u64>,
    condition: Condvar,
}

impl Bell {
    /// Wakes all.
    pub fn ring(&self) {
        let mut rung = lock(&self.rung);
        *rung = rung.wrapping_add(1);
        self.condition.notify_all();
    }

    /// How often it rang.
    pub fn rung(&self) -> u64 {
        *lock(&self.rung)
    }

    fn wait(&self, heard: u64, longest: Option<Duration>) {
        let rung = lock(&self.rung);
        match longest {
            Some(longest) => {
                drop(self.condition.wait_timeout_while(rung, longest, |rung| *rung == heard));
            }
            None => drop(self.condition.wait_while(rung, |rung| *rung == heard)),
        }
    }
}

/// Where the limits take the time from, and how they wait.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;
    /// The wall clock, which windows are written in; may jump.
    fn timestamp(&self) -> Timestamp;
    /// Waits until `bell` rings after `heard` was read from it, or `longest` has passed (`None`: until it rings).
    fn wait(&self, bell: &Bell, heard: u64, longest: Option<Duration>);
}

/// The machine's own clocks.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts at zero now.
    pub fn new() -> Self {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn timestamp(&self) -> Timestamp {
        Timestamp::now()
    }

    fn wait(&self, bell: &Bell, heard: u64, longest: Option<Duration>) {
        bell.wait(heard, longest);
    }
}

/// A clock that only moves when somebody waits, or when a test moves it.
pub struct SimulatedClock {
    epoch: Timestamp,
    now: Mutex<Duration>,
}

impl SimulatedClock {
    /// A clock whose wall time is `epoch` now.
    pub fn at(epoch: Timestamp) -> Self {
        SimulatedClock { epoch, now: Mutex::new(Duration::ZERO) }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        *lock(&self.now) += by;
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Duration {
        *lock(&self.now)
    }

    fn timestamp(&self) -> Timestamp {
        let passed = jiff::SignedDuration::try_from(self.now()).unwrap_or(jiff::SignedDuration::MAX);
        self.epoch.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }

    fn wait(&self, bell: &Bell, heard: u64, longest: Option<Duration>) {
        match longest {
            Some(longest) => self.advance(longest),
            None => bell.wait(heard, None),
        }
    }
}

/// Locks, also after another thread panicked while holding the lock: a limit must go on limiting.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
