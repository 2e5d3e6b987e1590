//! A running job can be asked and steered from another terminal: `STATE/jobs/PID.json` says what it is, and over
//! `STATE/jobs/PID.sock` it answers `status`, `pause`, `resume`, `limit` and `stop`. Signals stop it gracefully, a
//! hang-up does not stop it at all.

mod client;
mod files;
mod message;
mod server;
mod signals;
mod verbs;

use std::path::Path;
use std::sync::Arc;

pub use client::{jobs, send};
pub use message::{JobStatus, MAX_MESSAGE_BYTES, Request, Response, parse_limits};
pub use signals::Registration as Signals;
pub use verbs::{Acted, Jobs, limit, pause, resume, status, stop};

use crate::copy::throttle::Throttle;
use crate::error::Result;
use crate::monitor::Progress;

/// A running job under control; ends control, and removes its files, when dropped.
#[must_use]
pub struct Job {
    // Dropped in this order. Signals last: until the files are gone, one must not end the process.
    _server: server::Server,
    _files: files::JobFiles,
    _signals: signals::Registration,
}

impl Job {
    /// Puts this process' job under control of signals and of other terminals. `subject` says to people what it works
    /// on: the array, the target.
    ///
    /// SIGINT and SIGTERM stop `throttle`, a second one only adds a note, SIGHUP is ignored.
    ///
    /// # Errors
    /// The state directory cannot be written, or another job of this process runs on the same state directory.
    pub fn start(
        state: &Path,
        verb: &'static str,
        subject: String,
        throttle: Arc<Throttle>,
        progress: Arc<Progress>,
    ) -> Result<Job> {
        let signals = signals::Registration::new(&throttle)?;
        let description = message::Description::new(verb, subject)?;
        let (files, listener) = files::JobFiles::create(state, &description)?;
        let server = server::Server::start(listener, description, Arc::clone(&throttle), progress)?;
        Ok(Job { _server: server, _files: files, _signals: signals })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
