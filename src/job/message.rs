//! What travels over the control socket: one JSON object a line in either direction.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::files;
use crate::copy::throttle::{Change, ThrottleState};
use crate::error::{Error, Result};
use crate::monitor::Snapshot;
use crate::units;

/// Longest request, in bytes with its newline.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// What can be asked of a running job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How is it going?
    Status,
    /// Stand still from the next read on.
    Pause,
    /// Go on.
    Resume,
    /// Change limits, as typed; `off` lifts one, what is absent stays.
    Limit {
        /// Bytes a second: `80MiB`, `100Mbit`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        read: Option<String>,
        /// Percent of the whole machine: `30`, `30%`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cpu: Option<String>,
    },
    /// Stop gracefully; the same command resumes.
    Stop,
}

/// The answer to any request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Done, and this is the job now.
    Job(Box<JobStatus>),
    /// Refused, and why.
    Error(String),
}

/// `PID.json`: what a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    pub pid: u32,
    /// Clock ticks from boot to the start of the process: a PID is used again, both together are not.
    pub process_start_ticks: u64,
    pub verb: String,
    pub subject: String,
    pub started_at: Timestamp,
}

impl Description {
    pub(super) fn new(verb: &str, subject: String) -> Result<Description> {
        let pid = std::process::id();
        let process_start_ticks = files::process_start(pid).ok_or_else(|| {
            Error::failed(format!("Process {pid} has no readable /proc/{pid}/stat")).next("Mount /proc")
        })?;
        Ok(Description { pid, process_start_ticks, verb: verb.to_owned(), subject, started_at: Timestamp::now() })
    }
}

/// A job as other terminals see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its process.
    pub pid: u32,
    /// Its verb.
    pub verb: String,
    /// What it works on.
    pub subject: String,
    /// When it began.
    pub started_at: Timestamp,
    /// Its limits; absent when it did not answer.
    pub throttle: Option<ThrottleState>,
    /// Its counters; absent when it did not answer.
    pub progress: Option<Snapshot>,
    /// Why it did not answer.
    pub silent: Option<String>,
}

impl JobStatus {
    pub(super) fn of(description: Description) -> JobStatus {
        let Description { pid, verb, subject, started_at, .. } = description;
        JobStatus { pid, verb, subject, started_at, throttle: None, progress: None, silent: None }
    }
}

/// Reads limits as typed.
///
/// # Errors
/// A usage error that shows the accepted forms; also when there is nothing to change.
pub fn parse_limits(read: Option<&str>, cpu: Option<&str>) -> Result<Change> {
    if read.is_none() && cpu.is_none() {
        return Err(Error::usage("Limit: nothing to change")
            .next("Give a read limit (80MiB, off), a CPU limit (30, off) or both"));
    }
    let off = |text: &str| text.trim().eq_ignore_ascii_case("off");
    let read = read.map(|text| if off(text) { Ok(None) } else { read_limit(text).map(Some) }).transpose()?;
    let cpu = cpu.map(|text| if off(text) { Ok(None) } else { cpu_limit(text).map(Some) }).transpose()?;
    Ok(Change { read_bytes_per_second: read, cpu_percent: cpu })
}

fn read_limit(text: &str) -> Result<u64> {
    units::parse_rate(text)
}

fn cpu_limit(text: &str) -> Result<u8> {
    let bare = text.trim().trim_end_matches('%').trim_end();
    bare.parse().ok().filter(|percent| (1..=100).contains(percent)).ok_or_else(|| {
        let found: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        Error::usage(format!("CPU limit '{found}': expected 1 to 100 percent of the whole machine, or off"))
    })
}
