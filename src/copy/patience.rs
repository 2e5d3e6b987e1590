//! Waiting for a medium that may stop answering: as long as it takes, shown while it lasts, but never longer than the job.
//!
//! A read that the kernel has cannot be taken back. So when the job is stopped and the medium stays silent, the reads under way are
//! given up with their buffers, and the job ends without them: what was read before is committed as after any other stop.

use super::throttle::Throttle;
use crate::error::Result;
use crate::io::{BlockIo, Buffer, Completion, Waited};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often whoever waits looks whether the job still wants it.
const LOOK: Duration = Duration::from_millis(250);
/// How long reads under way may take once the job is stopped: more than a busy disk needs, less than a person waits.
const AFTER_STOP: Duration = Duration::from_secs(3);
/// A silence this long is said, once.
const SAID_AFTER: Duration = Duration::from_secs(10);

/// A queue that is waited for with patience, and let go without.
pub struct Patient<'a> {
    /// `None` only once it was let go.
    queue: Option<Box<dyn BlockIo>>,
    throttle: &'a Throttle,
    /// For messages: "Disk db01/sda: its source".
    what: String,
    /// Seconds without an answer, for whoever shows them.
    silent: Option<&'a AtomicU64>,
}

impl<'a> Patient<'a> {
    /// `what` begins the notes about it; `silent` is kept at the seconds it has not answered.
    pub fn new(
        queue: Box<dyn BlockIo>,
        throttle: &'a Throttle,
        what: String,
        silent: Option<&'a AtomicU64>,
    ) -> Patient<'a> {
        Patient { queue: Some(queue), throttle, what, silent }
    }

    /// As [`BlockIo::read`].
    pub fn read(&mut self, token: u64, offset: u64, buffer: Buffer, len: usize) {
        if let Some(queue) = &mut self.queue {
            queue.read(token, offset, buffer, len);
        }
    }

    /// As [`BlockIo::in_flight`].
    pub fn in_flight(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.in_flight())
    }

    /// As [`BlockIo::depth`].
    pub fn depth(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.depth())
    }

    /// As [`BlockIo::wait`].
    ///
    /// # Errors
    /// `Interrupted`, when the job was stopped while nothing came.
    pub fn wait(&mut self) -> Result<Option<Completion>> {
        let Some(queue) = &mut self.queue else { return Ok(None) };
        let (since, mut said) = (Instant::now(), false);
        loop {
            match queue.wait_for(LOOK) {
                Waited::Idle => return Ok(None),
                Waited::Done(completion) => {
                    self.silent.inspect(|silent| silent.store(0, Ordering::Relaxed));
                    if said {
                        let seconds = since.elapsed().as_secs();
                        self.throttle.note(format!("{} answers again, after {seconds} s", self.what));
                    }
                    return Ok(Some(completion));
                }
                Waited::Late => {
                    self.throttle.check()?;
                    let seconds = since.elapsed().as_secs();
                    self.silent.inspect(|silent| silent.store(seconds, Ordering::Relaxed));
                    if !said && since.elapsed() >= SAID_AFTER {
                        said = true;
                        self.throttle
                            .note(format!("{} has not answered for {seconds} s; the job waits for it", self.what));
                    }
                }
            }
        }
    }
}

impl Drop for Patient<'_> {
    fn drop(&mut self) {
        let Some(mut queue) = self.queue.take().filter(|_| self.throttle.stopped()) else { return };
        let until = Instant::now() + AFTER_STOP;
        while queue.in_flight() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || matches!(queue.wait_for(left), Waited::Late) {
                let reads = queue.in_flight();
                self.throttle.note(format!("{} did not answer; {reads} reads under way were given up", self.what));
                return queue.abandon();
            }
        }
    }
}
