//! Threads that work on one thing: the first error is kept, and the others are not mistaken for it.

use super::throttle::{Stop, Throttle};
use crate::error::{Error, Kind, Result};
use std::sync::{Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
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

/// Starts a thread of `scope`; a system that allows none more is an error, and no panic.
///
/// # Errors
/// The system's, with what to do.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new().name("motiongear".into()).spawn_scoped(scope, work).map_err(no_thread)
}

/// The error where a thread cannot be started.
pub fn no_thread(error: std::io::Error) -> Error {
    Error::io("No further thread can be started", error).next(
        "raise the limit of processes (ulimit -u, TasksMax), or end other programs; then run the same command again",
    )
}

/// CPU time of the calling thread: what a worker tells the throttle.
pub fn cpu_time() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)).unwrap_or_default()
}
