//! Threads that work on one thing: the first error is kept, and the others are not mistaken for it.

use super::throttle::{Stop, Throttle};
use crate::error::{Error, Kind, Result};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Collects the outcome of a job's threads.
pub struct Crew<'a> {
    first: Mutex<Option<Error>>,
    throttle: &'a Throttle,
}

impl<'a> Crew<'a> {
    /// Nobody has failed. `throttle` is stopped when somebody does, so that nobody sleeps on in a pause.
    pub fn new(throttle: &'a Throttle) -> Self {
        Crew { first: Mutex::new(None), throttle }
    }

    /// Runs one thread's work and keeps its error. A failure outranks an interruption: being asked to stop must not hide
    /// that the array is full.
    pub fn run(&self, work: impl FnOnce() -> Result<()>) {
        let Err(error) = work() else { return };
        if error.kind != Kind::Interrupted {
            self.throttle.stop(Stop::Failed);
        }
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let outranks =
            first.as_ref().is_none_or(|kept| kept.kind == Kind::Interrupted && error.kind != Kind::Interrupted);
        if outranks {
            *first = Some(error);
        }
    }

    /// The first error, once all threads are done.
    ///
    /// # Errors
    /// That error.
    pub fn finish(self) -> Result<()> {
        self.first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// CPU time of the calling thread: what a worker tells the throttle.
pub fn cpu_time() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)).unwrap_or_default()
}
