//! Signals. They belong to the process, so the jobs that want them are listed in one place.
//!
//! tokio never gives a signal back to the system; so the thread that hears them ends the process itself, as the
//! system would have, when none of its jobs runs.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::copy::clock::lock;
use crate::copy::throttle::{Stop, Throttle};
use crate::error::{Error, Result};

static JOBS: Mutex<Vec<Weak<Throttle>>> = Mutex::new(Vec::new());
static LISTENING: OnceLock<Result<(), String>> = OnceLock::new();

/// A job that stops on signals, until dropped.
pub struct Registration {
    throttle: Weak<Throttle>,
}

impl Registration {
    /// From now on signals stop `throttle` instead of ending the process.
    ///
    /// # Errors
    /// The system does not let signals be listened to.
    pub fn new(throttle: &Arc<Throttle>) -> Result<Registration> {
        let throttle = Arc::downgrade(throttle);
        // Listed first: no signal may come between and end the process.
        lock(&JOBS).push(throttle.clone());
        let registration = Registration { throttle };
        match LISTENING.get_or_init(|| listen().map_err(|error| error.to_string())) {
            Ok(()) => Ok(registration),
            Err(error) => Err(Error::failed(format!("Signals cannot be listened to: {error}"))),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut jobs = lock(&JOBS);
        if let Some(place) = jobs.iter().position(|job| job.ptr_eq(&self.throttle)) {
            jobs.swap_remove(place);
        }
    }
}

fn listen() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(entered);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            while let Some(signal) = next(&mut interrupt, &mut terminate, &mut hangup).await {
                heard(signal);
            }
        });
    })?;
    Ok(())
}

async fn next(interrupt: &mut Signal, terminate: &mut Signal, hangup: &mut Signal) -> Option<libc::c_int> {
    tokio::select! {
        heard = interrupt.recv() => heard.map(|()| libc::SIGINT),
        heard = terminate.recv() => heard.map(|()| libc::SIGTERM),
        heard = hangup.recv() => heard.map(|()| libc::SIGHUP),
    }
}

fn heard(number: libc::c_int) {
    // Not held while stopping: a job that ends takes it too.
    let jobs: Vec<_> = lock(&JOBS).iter().filter_map(Weak::upgrade).collect();
    if jobs.is_empty() {
        // SAFETY: the default action needs no handler; both calls are plain system calls.
        unsafe {
            libc::signal(number, libc::SIG_DFL);
            libc::raise(number);
        }
        return;
    }
    for throttle in jobs {
        deliver(&throttle, number);
    }
}

/// What a signal does to a job.
pub(super) fn deliver(throttle: &Throttle, number: libc::c_int) {
    let name = match number {
        libc::SIGINT => "SIGINT (Ctrl-C)",
        libc::SIGTERM => "SIGTERM",
        _ => return throttle.note("SIGHUP: the terminal went away, the job goes on".into()),
    };
    if throttle.stopped() {
        throttle.note(format!("{name} again: the job is already stopping, it finishes what is in flight"));
    } else {
        throttle.stop(Stop::Signal(name));
        throttle.note(format!("{name}: stopping; the same command resumes"));
    }
}
