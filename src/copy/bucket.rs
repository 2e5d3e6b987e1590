//! A token bucket whose rate changes while it runs.
//!
//! It works on credit: a request of any size passes while the balance is not negative and is paid for afterwards, so a
//! 16 MiB block passes a 1 MiB/s limit at the right average. Exact integers throughout; `governor` granted 965 MB/s
//! when asked for 600 (libraries.md).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clock::lock;

/// The rate that stands for "no limit".
pub const UNLIMITED: u64 = u64::MAX;

/// How much of a second may be saved up; short, or a second of rest is followed by a second of double rate.
const BURST_MILLIS: u64 = 20;
const NANOS: i128 = 1_000_000_000;

/// Tokens (bytes, or nanoseconds of CPU) that flow in at a rate.
pub struct Bucket {
    rate: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// Balance in tokens × 1e9; negative is debt.
    balance: i128,
    at: Duration,
}

impl Bucket {
    /// A bucket of `rate` tokens a second ([`UNLIMITED`] for none), empty at time `now`.
    pub fn new(rate: u64, now: Duration) -> Self {
        Bucket { rate: AtomicU64::new(rate), state: Mutex::new(State { balance: 0, at: now }) }
    }

    /// Tokens a second.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Changes the rate from `now` on. What is owed stays owed, at the new rate, but never more than a second of it.
    pub fn set_rate(&self, rate: u64, now: Duration) {
        let mut state = lock(&self.state);
        self.refill(&mut state, now);
        if rate == UNLIMITED || self.rate() == UNLIMITED {
            state.balance = 0;
        }
        state.balance = state.balance.max(-i128::from(rate.max(1)).saturating_mul(NANOS));
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// Takes `tokens`, or says how long to wait before asking again.
    ///
    /// # Errors
    /// The time to wait; [`Duration::MAX`] at rate 0.
    pub fn take(&self, tokens: u64, now: Duration) -> Result<(), Duration> {
        if self.rate() == UNLIMITED {
            return Ok(());
        }
        let mut state = lock(&self.state);
        self.refill(&mut state, now);
        self.due(&state)?;
        state.balance -= i128::from(tokens) * NANOS;
        Ok(())
    }

    /// Books what was used already; the balance may become negative.
    pub fn charge(&self, tokens: u64, now: Duration) {
        if self.rate() == UNLIMITED {
            return;
        }
        let mut state = lock(&self.state);
        self.refill(&mut state, now);
        state.balance -= i128::from(tokens) * NANOS;
    }

    /// How long until the balance is no longer negative.
    pub fn owed(&self, now: Duration) -> Option<Duration> {
        if self.rate() == UNLIMITED {
            return None;
        }
        let mut state = lock(&self.state);
        self.refill(&mut state, now);
        self.due(&state).err()
    }

    fn due(&self, state: &State) -> Result<(), Duration> {
        let rate = i128::from(self.rate());
        if rate == 0 {
            return Err(Duration::MAX);
        }
        if state.balance >= 0 {
            return Ok(());
        }
        let nanos = (-state.balance + rate - 1) / rate;
        Err(u64::try_from(nanos).map(Duration::from_nanos).unwrap_or(Duration::MAX))
    }

    fn refill(&self, state: &mut State, now: Duration) {
        let rate = self.rate();
        let passed = now.saturating_sub(state.at);
        state.at = state.at.max(now);
        if rate == UNLIMITED {
            return;
        }
        let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let burst = i128::from(rate) * i128::from(BURST_MILLIS) * (NANOS / 1000);
        state.balance = state.balance.saturating_add(passed.saturating_mul(i128::from(rate))).min(burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MIB;
    use proptest::prelude::*;

    /// Takes `size` pieces for `span` of simulated time; returns the tokens granted.
    fn run(bucket: &Bucket, size: u64, from: Duration, span: Duration) -> u64 {
        let (mut now, mut granted) = (from, 0);
        while now < from + span {
            match bucket.take(size, now) {
                Ok(()) => granted += size,
                Err(wait) => now += wait,
            }
        }
        granted
    }

    #[test]
    fn fifty_mib_a_second_for_two_seconds_is_a_hundred() {
        for size in [4096, 65536, MIB] {
            let bucket = Bucket::new(50 * MIB, Duration::ZERO);
            let granted = run(&bucket, size, Duration::ZERO, Duration::from_secs(2)) as f64 / (100 * MIB) as f64;
            assert!((0.97..=1.03).contains(&granted), "{size}: {granted}");
        }
    }

    #[test]
    fn the_rate_changes_while_running() {
        let bucket = Bucket::new(50 * MIB, Duration::ZERO);
        let second = Duration::from_secs(1);
        run(&bucket, 65536, Duration::ZERO, second);
        bucket.set_rate(10 * MIB, second);
        let granted = run(&bucket, 65536, second, Duration::from_secs(10)) as f64 / (100 * MIB) as f64;
        assert!((0.97..=1.03).contains(&granted), "{granted}");
    }

    #[test]
    fn rest_is_not_saved_up() {
        let bucket = Bucket::new(MIB, Duration::ZERO);
        let granted = run(&bucket, 4096, Duration::from_secs(3600), Duration::from_secs(1));
        assert!(granted <= MIB + MIB / 32, "{granted}");
    }

    #[test]
    fn a_piece_larger_than_a_second_passes_at_the_right_average() {
        let bucket = Bucket::new(MIB, Duration::ZERO);
        let granted = run(&bucket, 16 * MIB, Duration::ZERO, Duration::from_secs(160));
        assert_eq!(granted, 160 * MIB);
    }

    #[test]
    fn zero_stands_still_and_unlimited_never_waits() {
        let bucket = Bucket::new(0, Duration::ZERO);
        assert_eq!(bucket.take(1, Duration::from_secs(9)), Err(Duration::MAX));
        bucket.set_rate(UNLIMITED, Duration::from_secs(9));
        assert_eq!(bucket.take(u64::MAX, Duration::from_secs(9)), Ok(()));
        assert_eq!(bucket.owed(Duration::from_secs(9)), None);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let bucket = Bucket::new(MIB, Duration::from_secs(10));
        bucket.take(MIB, Duration::from_secs(10)).unwrap();
        assert!(bucket.take(1, Duration::from_secs(5)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whoever always asks gets what the rates add up to, whatever they were changed to and when.
        #[test]
        fn changing_rates_add_up(
            spells in prop::collection::vec((1u64..200 * MIB, 1u64..3000), 1..8), piece in 4096u64..4 * MIB,
        ) {
            let bucket = Bucket::new(spells[0].0, Duration::ZERO);
            let (mut now, mut granted, mut due) = (Duration::ZERO, 0u64, 0u64);
            for (rate, millis) in &spells {
                bucket.set_rate(*rate, now);
                let end = now + Duration::from_millis(*millis);
                while now < end {
                    match bucket.take(piece, now) {
                        Ok(()) => granted += piece,
                        Err(wait) => now = (now + wait).min(end),
                    }
                }
                due += rate * millis / 1000;
            }
            let changes = spells.len() as u64;
            let burst = spells.iter().map(|(rate, _)| rate).max().unwrap() * BURST_MILLIS / 1000;
            // The last piece of each spell may be owed when the next begins; what was saved up may be lost then.
            prop_assert!(granted <= due + changes * (piece + 1) + burst, "{granted} of {due}");
            prop_assert!(granted + changes * (burst + 1) >= due, "{granted} of {due}");
        }
    }
}
