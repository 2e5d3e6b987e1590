//! Waiting for a medium that may stop answering: as long as it takes, shown while it lasts, but never longer than the job.
//!
//! What the kernel has cannot be taken back. So when the job is stopped and the medium stays silent, what is under way is given
//! up with its buffers, and the job ends without it: what was flushed before is committed as after any other stop. Of a write or
//! a flush that was given up nobody knows whether it will reach the medium. Hence
//! 1. it is never recorded as done: whoever waited for it gets an error;
//! 2. a medium that was given up is asked for nothing more by this job;
//! 3. the lock on what is written stays until the process is gone ([`Medium::holding`]): nobody shall write the same place anew
//!    while an old write may still come.

use super::clock::lock;
use super::throttle::Throttle;
use crate::error::{Error, IoContext, Result};
use crate::io::{BlockIo, Buffer, Completion, DirectFile, Pool, Waited};
use crate::monitor::{MediumKind, Progress};
use crossbeam_channel::{RecvTimeoutError, bounded};
use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// How often whoever waits looks whether the job still wants it.
const LOOK: Duration = Duration::from_millis(250);
/// How long a silence may be that nobody sees: before a job begins.
const UNSEEN: Duration = Duration::from_secs(300);
/// A silence this long is said, once.
const SAID_AFTER: Duration = Duration::from_secs(10);

/// Something outside the program that a job reads or writes. Clones are the same medium.
#[derive(Clone)]
pub struct Medium(Arc<Shared>);

struct Shared {
    kind: MediumKind,
    name: Arc<str>,
    throttle: Arc<Throttle>,
    progress: Arc<Progress>,
    /// Its silence was said.
    said: AtomicBool,
    given_up: AtomicBool,
    held: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
    /// Of volumes that may be closed and opened again: their locks as long as they are open.
    claims: Mutex<Vec<Weak<OwnedFd>>>,
}

impl Medium {
    /// A medium of a job, whose silence is shown in `progress` and ends with `throttle`.
    pub fn new(kind: MediumKind, name: &str, throttle: &Arc<Throttle>, progress: &Arc<Progress>) -> Medium {
        Medium(Arc::new(Shared {
            kind,
            name: name.into(),
            throttle: throttle.clone(),
            progress: progress.clone(),
            said: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            held: Mutex::default(),
            claims: Mutex::default(),
        }))
    }

    /// `lock` is not let go before the process ends, if anything on this medium has to be given up.
    pub fn holding(self, lock_: Arc<dyn Any + Send + Sync>) -> Medium {
        *lock(&self.0.held) = Some(lock_);
        self
    }

    /// As [`Medium::holding`], for the lock of a volume: only while the volume is open.
    pub fn claiming(self, claim: Weak<OwnedFd>) -> Medium {
        let mut claims = lock(&self.0.claims);
        claims.retain(|known| known.strong_count() > 0);
        claims.push(claim);
        drop(claims);
        self
    }

    /// Calls the kernel on a thread of its own, which may hang as long as the medium does.
    ///
    /// # Errors
    /// What `call` returned; `Interrupted`, when the job was stopped and it did not come back.
    pub fn call<T: Send + 'static>(&self, call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        self.still_wanted()?;
        let (answer, answered) = bounded(1);
        let run = move || drop(answer.send(call()));
        let thread = std::thread::Builder::new().name("motiongear-io".into()).spawn(run);
        thread.context(|| format!("{}: no thread could be started for it", self.what()))?;
        let returned = self.wait(|limit| match answered.recv_timeout(limit) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(Error::failed(format!("{}: a thread stopped unexpectedly", self.what()))))
            }
        });
        returned.unwrap_or_else(|stopped| {
            self.give_up(1);
            Err(stopped)
        })
    }

    /// Whether it has been silent for so long that it was said.
    pub fn is_silent(&self) -> bool {
        self.0.said.load(Ordering::Relaxed)
    }

    /// [`DirectFile::sync_data`].
    ///
    /// # Errors
    /// As there, and as [`Medium::call`].
    pub fn sync_data(&self, file: &Arc<DirectFile>) -> Result<()> {
        let file = file.clone();
        self.call(move || file.sync_data())
    }

    /// Looks until there is an answer, or until the job was stopped and there is none for too long.
    fn wait<T>(&self, mut look: impl FnMut(Duration) -> Option<T>) -> Result<T> {
        self.still_wanted()?;
        let since = Instant::now();
        if let Some(answer) = look(LOOK) {
            return Ok(answer);
        }
        let Shared { kind, name, throttle, progress, said, .. } = &*self.0;
        let _listed = progress.waits.list(*kind, name, since);
        let mut stopped = None;
        loop {
            if throttle.stopped() {
                let stopped = stopped.get_or_insert_with(Instant::now);
                if stopped.elapsed() >= self.after_stop() {
                    throttle.check()?;
                }
                self.still_wanted()?;
            }
            let seconds = since.elapsed().as_secs();
            if since.elapsed() >= SAID_AFTER && !said.swap(true, Ordering::Relaxed) {
                throttle.note(format!("{} has not answered for {seconds} s; the job waits for it", self.what()));
            }
            if let Some(answer) = look(LOOK) {
                if said.swap(false, Ordering::Relaxed) {
                    let seconds = since.elapsed().as_secs();
                    throttle.note(format!("{} answers again, after {seconds} s", self.what()));
                }
                return Ok(answer);
            }
        }
    }

    /// How long it may be silent once the job is stopped: more than a busy one needs, less than a person waits. What is written
    /// gets longer: to flush all that is under way takes a spinning array its time, and what is not flushed is copied again.
    fn after_stop(&self) -> Duration {
        match self.0.kind {
            MediumKind::Source => Duration::from_secs(3),
            MediumKind::Array | MediumKind::Volume => Duration::from_secs(10),
        }
    }

    fn still_wanted(&self) -> Result<()> {
        // Only a job that was stopped gives up.
        if self.0.given_up.load(Ordering::Relaxed) { self.0.throttle.check() } else { Ok(()) }
    }

    fn give_up(&self, requests: usize) {
        self.0.given_up.store(true, Ordering::Relaxed);
        std::mem::forget(lock(&self.0.held).clone());
        std::mem::forget(lock(&self.0.claims).iter().filter_map(Weak::upgrade).collect::<Vec<_>>());
        self.0.throttle.note(format!("{} did not answer; {requests} requests under way were given up", self.what()));
    }

    /// For messages: "Disk db01/sda: its source".
    fn what(&self) -> String {
        let name = &self.0.name;
        match self.0.kind {
            MediumKind::Source => format!("Disk {name}: its source"),
            MediumKind::Array => format!("Array {name}"),
            MediumKind::Volume => format!("Volume {name}"),
        }
    }
}

/// A queue that is waited for with patience, and let go without.
pub struct Patient {
    /// `None` only once it was let go.
    queue: Option<Box<dyn BlockIo>>,
    /// `None`: of no job, waited for in silence and not for ever.
    medium: Option<Medium>,
    /// Where its buffers come from: those that are given up never go home, and nobody may wait for them.
    pool: Option<Pool>,
}

impl Patient {
    /// A queue on `medium`; without one nobody sees it wait, and it waits five minutes at most.
    pub fn new(queue: Box<dyn BlockIo>, medium: Option<Medium>) -> Patient {
        Patient { queue: Some(queue), medium, pool: None }
    }

    /// As [`BlockIo::read`].
    pub fn read(&mut self, token: u64, offset: u64, buffer: Buffer, len: usize) {
        self.remember_pool(&buffer);
        if let Some(queue) = &mut self.queue {
            queue.read(token, offset, buffer, len);
        }
    }

    /// As [`BlockIo::write`].
    pub fn write(&mut self, token: u64, offset: u64, buffer: Buffer) {
        self.remember_pool(&buffer);
        if let Some(queue) = &mut self.queue {
            queue.write(token, offset, buffer);
        }
    }

    fn remember_pool(&mut self, buffer: &Buffer) {
        // With nothing under way, nothing of an earlier pool can be given up.
        if self.pool.is_none() || self.in_flight() == 0 {
            self.pool = Some(buffer.pool());
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
    /// `Interrupted`, when the job was stopped and nothing came: all that was under way is given up then.
    pub fn wait(&mut self) -> Result<Option<Completion>> {
        let Some(medium) = &self.medium else {
            return match self.queue.as_mut().map_or(Waited::Idle, |queue| queue.wait_for(UNSEEN)) {
                Waited::Done(completion) => Ok(Some(completion)),
                Waited::Idle => Ok(None),
                Waited::Late => {
                    // Its buffers go home when it answers, or with the process.
                    self.queue.take().into_iter().for_each(BlockIo::abandon);
                    self.pool.iter().for_each(Pool::close);
                    let seconds = UNSEEN.as_secs();
                    Err(Error::failed(format!(
                        "Before the work began: expected an answer within {seconds} s, found none"
                    ))
                    .next("see what is wrong with the disk or server; then run the same command again"))
                }
            };
        };
        let Some(queue) = &mut self.queue else {
            medium.still_wanted()?;
            return Ok(None);
        };
        let waited = medium.wait(|limit| match queue.wait_for(limit) {
            Waited::Done(completion) => Some(Some(completion)),
            Waited::Idle => Some(None),
            Waited::Late => None,
        });
        if waited.is_err()
            && let Some(queue) = self.queue.take_if(|queue| queue.in_flight() > 0)
        {
            medium.give_up(queue.in_flight());
            queue.abandon();
            self.pool.iter().for_each(Pool::close);
        }
        waited
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        // What the kernel has comes back, or is given up.
        while self.in_flight() > 0 && matches!(self.wait(), Ok(Some(_))) {}
    }
}
