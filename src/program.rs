//! Programs of others that are run to their end: their output is bounded, and so is their time.

use crate::error::{Error, IoContext, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The longest output that is taken, bytes.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;
/// What is kept of complaints, bytes.
const MAX_WORDS_BYTES: u64 = 4 << 10;
/// How often is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub output: Vec<u8>,
    /// Standard error, as a line for people.
    pub words: String,
}

/// Runs `command`, `limit` long at most; `install` says which package brings it.
///
/// # Errors
/// It cannot be started, says more than 16 MiB, or does not end in time: it is killed then, with whatever it started.
pub fn run(mut command: Command, limit: Duration, install: &str) -> Result<Ended> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Ctrl-C at our terminal is for us to answer; and all that it starts can be ended at once.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| {
        let error_ = Error::io(format!("{program}: cannot be started"), error);
        error_.next(format!("install it ({install})"))
    })?;
    let output = child.stdout.take().map(|pipe| read(pipe, MAX_OUTPUT_BYTES));
    let words = child.stderr.take().map(|pipe| read(pipe, MAX_WORDS_BYTES));
    let until = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().context(|| format!("{program}: waiting for its end"))? {
            break status;
        }
        if Instant::now() >= until {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // Gone already is what we want.
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
            let seconds = limit.as_secs();
            return Err(Error::failed(format!("{program}: expected an end within {seconds} s, found it silent")));
        }
        std::thread::sleep(LOOK);
    };
    let taken = |reader: Option<std::thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (output, words) = (taken(output), taken(words));
    if output.len() as u64 > MAX_OUTPUT_BYTES {
        return Err(Error::failed(format!("{program}: expected {MAX_OUTPUT_BYTES} bytes at most, found more")));
    }
    Ok(Ended { code: status.code(), output, words: crate::nbd::wire::text(&words).trim().to_owned() })
}

/// Reads all, and keeps a byte more than `limit` at most.
fn read(mut pipe: impl Read + Send + 'static, limit: u64) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        // What was read before an error is what there is.
        let _ = (&mut pipe).take(limit + 1).read_to_end(&mut kept);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_it_says_is_taken_and_what_hangs_is_ended() {
        let ended = run(sh("echo out; echo odd >&2; exit 3"), Duration::from_secs(10), "").unwrap();
        assert_eq!((ended.code, ended.output.as_slice(), ended.words.as_str()), (Some(3), &b"out\n"[..], "odd"));
        let began = Instant::now();
        // The child of the child holds the pipe.
        let error = run(sh("sleep 100 & sleep 100"), Duration::from_millis(200), "").unwrap_err();
        assert!(error.to_string().contains("expected an end within"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
        let error = run(sh("head -c 17000000 /dev/zero"), Duration::from_secs(20), "").unwrap_err();
        assert!(error.to_string().contains("found more"), "{error}");
        let error = run(Command::new("no-such-program"), Duration::from_secs(1), "Debian: none").unwrap_err();
        assert!(error.to_string().contains("install it (Debian: none)"), "{error}");
    }
}
