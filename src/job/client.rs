//! The other terminal's side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::files;
use super::message::{JobStatus, Request, Response};
use crate::error::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(10);
/// An answer lists every disk of a job; a thousand of them fit well.
const MAX_RESPONSE_BYTES: u64 = 16 << 20;

/// The running jobs of a state directory. One that does not answer is listed with the reason.
///
/// # Errors
/// The directory cannot be read.
pub fn jobs(state: &Path) -> Result<Vec<JobStatus>> {
    let ask = |description: super::message::Description| {
        let (status, silent) = match ask(state, description.pid, &Request::Status) {
            Ok(Response::Job(status)) => return *status,
            Ok(Response::Error(refusal)) => (JobStatus::of(description), refusal),
            Err(error) => (JobStatus::of(description), error.to_string()),
        };
        JobStatus { silent: Some(silent), ..status }
    };
    Ok(files::living(state)?.into_iter().map(ask).collect())
}

/// Asks something of job `job`, or of the only one there is.
///
/// # Errors
/// There is no such job, there are several to choose from, it does not answer, or it refuses.
pub fn send(state: &Path, job: Option<u32>, request: &Request) -> Result<Response> {
    let living = files::living(state)?;
    let listed = || {
        let list = living.iter().map(|job| format!("{} ({} {})", job.pid, job.verb, job.subject));
        list.collect::<Vec<_>>().join(", ")
    };
    let pid = match (job, living.as_slice()) {
        (Some(pid), jobs) if jobs.iter().any(|job| job.pid == pid) => pid,
        (Some(pid), []) => {
            return Err(Error::failed(format!("Job {pid}: nothing runs with state {}", state.display())));
        }
        (Some(pid), _) => return Err(Error::failed(format!("Job {pid} does not run; found {}", listed()))),
        (None, [only]) => only.pid,
        (None, []) => {
            return Err(Error::failed(format!("No job runs with state {}", state.display()))
                .next("If it was started with --state, or as another user, give the same here"));
        }
        (None, _) => return Err(Error::usage(format!("Several jobs run: {}", listed())).next("Name one by its number")),
    };
    match ask(state, pid, request) {
        Ok(Response::Error(refusal)) => Err(Error::failed(format!("Job {pid} refused: {refusal}"))),
        Ok(response) => Ok(response),
        Err(error) => Err(Error::io(format!("Job {pid} does not answer"), error)
            .next(format!("If it hangs for good: kill -TERM {pid}; the same command resumes"))),
    }
}

fn ask(state: &Path, pid: u32, request: &Request) -> io::Result<Response> {
    let mut stream = files::connect(state, pid)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_RESPONSE_BYTES).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    Ok(serde_json::from_slice(&answer)?)
}
