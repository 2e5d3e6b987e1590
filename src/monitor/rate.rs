//! A smoothed rate, and the time to go that follows from it.

use std::time::Duration;

/// Older seconds weigh less: by 1/e after this long.
const MEMORY_SECONDS: f64 = 15.0;
/// No rate is told before this much was seen.
const FIRST: Duration = Duration::from_secs(1);
/// Beyond this nobody knows.
const LONGEST_SECONDS: u64 = 366 * 86400;

/// Exponentially weighted over irregular intervals, and corrected for its start at nothing.
#[derive(Debug, Default, Clone)]
pub(super) struct Smoothed {
    first: Option<Duration>,
    at: Duration,
    done: u64,
    sum: f64,
    weight: f64,
}

impl Smoothed {
    /// Learns that `done` bytes were done at `now`; bytes a second, `None` while too little is known.
    pub(super) fn observe(&mut self, now: Duration, done: u64) -> Option<u64> {
        let Some(first) = self.first else {
            (self.first, self.at, self.done) = (Some(now), now, done);
            return None;
        };
        let passed = now.saturating_sub(self.at).as_secs_f64();
        // Two readers shortly after each other must not make the rate jump.
        if passed >= 0.1 {
            let keep = (-passed / MEMORY_SECONDS).exp();
            let rate = done.saturating_sub(self.done) as f64 / passed;
            self.sum = self.sum * keep + rate * (1.0 - keep);
            self.weight = self.weight * keep + (1.0 - keep);
            (self.at, self.done) = (now, done);
        }
        (self.weight > 0.0 && self.at.saturating_sub(first) >= FIRST).then(|| (self.sum / self.weight).round() as u64)
    }
}

/// Seconds until `remaining` bytes are done.
pub(super) fn eta(remaining: u64, per_second: Option<u64>) -> Option<u64> {
    if remaining == 0 {
        return Some(0);
    }
    let seconds = remaining.div_ceil(per_second.filter(|rate| *rate > 0)?);
    (seconds <= LONGEST_SECONDS).then_some(seconds)
}
