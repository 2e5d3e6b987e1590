//! One look at a disk at a time, for those who are about to read it, and not for ever: a disk that hangs answers nobody, and each
//! client that came to it would hold its place and a thread. So whoever comes waits for the look before, then looks, all of it for
//! [`LIMIT`]; while a look hangs for longer, whoever comes is refused at once.

use crate::copy::throttle::Throttle;
use crate::error::{Error, IoContext, Result};
use crossbeam_channel::{RecvTimeoutError, bounded};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a disk may take to be looked at: a healthy one takes milliseconds, one that has to spin up some seconds; a handshake
/// takes no longer than 20 s as a whole, and may look twice.
pub const LIMIT: Duration = Duration::from_secs(8);
/// A look that takes longer than this keeps no more than [`MOST_WAITING`] waiting: each holds one of the server's places.
const SLOW: Duration = Duration::from_secs(1);
const MOST_WAITING: usize = 8;

/// Looks at one disk.
pub struct Recheck {
    /// For messages.
    name: String,
    throttle: Arc<Throttle>,
    limit: Duration,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// When the look began that is under way.
    since: Option<Instant>,
    /// Who waits for its end.
    waiting: usize,
    /// Since when the disk is known to hang, and people know it, too: until a look at it goes well.
    silent: Option<Instant>,
}

/// What came of a look.
pub enum Looked {
    /// It ended, well or not.
    At(Result<()>),
    /// It did not end in time.
    Mute(String),
}

impl Recheck {
    /// Of the disk `name`; people hear of it by `throttle`.
    pub fn new(name: &str, throttle: Arc<Throttle>) -> Arc<Recheck> {
        Recheck::within(LIMIT, name, throttle)
    }

    fn within(limit: Duration, name: &str, throttle: Arc<Throttle>) -> Arc<Recheck> {
        let (state, ended) = (Mutex::default(), Condvar::new());
        Arc::new(Recheck { name: name.to_owned(), throttle, limit, state, ended })
    }

    /// Looks by `look`, on a thread of its own, when nobody else does. A look that began before is no answer: another disk may
    /// have come since.
    pub fn look(self: &Arc<Self>, look: impl FnOnce() -> Result<()> + Send + 'static) -> Looked {
        let until = Instant::now() + self.limit;
        let mut state = self.state();
        while let Some(since) = state.since {
            let patience = until.min(since + self.limit).saturating_duration_since(Instant::now());
            if patience.is_zero() || since.elapsed() >= SLOW && state.waiting >= MOST_WAITING {
                return self.mute(state);
            }
            state.waiting += 1;
            state = self.ended.wait_timeout(state, patience.min(SLOW)).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        state.since = Some(Instant::now());
        drop(state);
        let under_way = UnderWay(self.clone());
        let (answer, answered) = bounded(1);
        let run = move || {
            let found = look();
            // Whoever comes next may look before this one is told.
            under_way.end(found.is_ok());
            // Whoever asked may have given up.
            let _ = answer.send(found);
        };
        let thread = std::thread::Builder::new().name("motiongear-look".into()).spawn(run);
        if let Err(error) = thread.context(|| format!("Disk {}: no thread could be started to look at it", self.name)) {
            return Looked::At(Err(error));
        }
        match answered.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(found) => Looked::At(found),
            Err(RecvTimeoutError::Timeout) => self.mute(self.state()),
            Err(RecvTimeoutError::Disconnected) => {
                Looked::At(Err(Error::failed(format!("Disk {}: a thread stopped unexpectedly", self.name))))
            }
        }
    }

    /// Refuses, and says it to people once.
    fn mute(&self, mut state: MutexGuard<'_, State>) -> Looked {
        // It may have ended just now; whoever asks again finds it.
        let since = state.silent.or(state.since).unwrap_or_else(Instant::now);
        let (seconds, first) = (since.elapsed().as_secs(), state.silent.is_none() && since.elapsed() >= self.limit);
        if first {
            state.silent = Some(since);
        }
        drop(state);
        if first {
            self.throttle.note(format!(
                "Disk {} has not answered for {seconds} s: clients that come to it are refused until it does; other disks are served",
                self.name
            ));
        }
        Looked::Mute(format!("its disk has not answered for {seconds} s; come again"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A look, until it ends, however.
struct UnderWay(Arc<Recheck>);

impl UnderWay {
    fn end(self, well: bool) {
        let silent = if well { self.0.state().silent.take() } else { None };
        if let Some(since) = silent {
            let seconds = since.elapsed().as_secs();
            self.0.throttle.note(format!("Disk {} answers again, after {seconds} s", self.0.name));
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state().since = None;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::throttle::Limits;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_looks_at_a_time_and_those_who_come_while_it_hangs_are_refused() {
        let recheck = Recheck::within(Duration::from_secs(3), "sda", Throttle::new(Limits::default()));
        let (hang, hung) = bounded::<()>(0);
        let looks = Arc::new(AtomicUsize::new(0));
        let look = |hung: Option<crossbeam_channel::Receiver<()>>| {
            let looks = looks.clone();
            recheck.look(move || {
                looks.fetch_add(1, Ordering::SeqCst);
                // Ends when the other end is dropped.
                let _ = hung.map(|hung| hung.recv());
                Ok(())
            })
        };
        let is_mute = |looked: Looked| matches!(looked, Looked::Mute(text) if text.contains("has not answered"));
        assert!(is_mute(look(Some(hung))));
        let since = Instant::now();
        std::thread::scope(|scope| {
            (0..32).for_each(|_| drop(scope.spawn(|| assert!(is_mute(look(None))))));
        });
        assert!(since.elapsed() < Duration::from_secs(2), "refused at once: {:?}", since.elapsed());
        assert_eq!(looks.load(Ordering::SeqCst), 1, "nobody else looked");
        drop(hang);
        // The one that hung ends, and all who come look for themselves, one after the other.
        std::thread::sleep(Duration::from_millis(50));
        std::thread::scope(|scope| {
            (0..8).for_each(|_| drop(scope.spawn(|| assert!(matches!(look(None), Looked::At(Ok(())))))));
        });
        assert_eq!(looks.load(Ordering::SeqCst), 9);
        assert!(matches!(recheck.look(|| Err(Error::failed("gone"))), Looked::At(Err(_))));
    }
}
