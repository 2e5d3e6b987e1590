//! Programs of others that are run to their end: their output is bounded, and so is their time.

use crate::copy::crew::no_thread;
use crate::error::{Error, IoContext, Result};
use crossbeam_channel::{RecvTimeoutError, Sender};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest output that is taken, bytes.
const MAX_OUTPUT_BYTES: u64 = 16 << 20;
/// What is kept of complaints, bytes.
const MAX_WORDS_BYTES: u64 = 4 << 10;
/// Lines that are read ahead.
const LINES: usize = 1024;
/// How long whatever it started may go on when it has ended itself.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// How often is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// A call of another program, which gets of our environment only what it needs: never a password of a cloud.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| is_passed(name)));
    command
}

/// Whether other programs get this variable: where programs and homes are, languages, agents of ssh and Kerberos, and what Ceph and
/// libvirt are told by.
pub fn is_passed(name: &OsStr) -> bool {
    const PASSED: [&str; 16] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "TERM",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "SSH_AUTH_SOCK",
        "KRB5CCNAME",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "LIBISCSI_DEBUG",
    ];
    const PREFIXES: [&str; 3] = ["LC_", "CEPH_", "LIBVIRT_"];
    let name = name.to_str().unwrap_or_default();
    PASSED.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

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
pub fn run(command: Command, limit: Duration, install: &str) -> Result<Ended> {
    let mut running = Running::start(command, limit, install)?;
    let output = running.child.stdout.take().map(|pipe| read(pipe, MAX_OUTPUT_BYTES)).transpose()?;
    while !running.has_ended()? {
        std::thread::sleep(LOOK);
    }
    let output = output.and_then(|reader| reader.join().ok()).unwrap_or_default();
    if output.len() as u64 > MAX_OUTPUT_BYTES {
        let program = &running.program;
        return Err(Error::failed(format!("{program}: expected {MAX_OUTPUT_BYTES} bytes at most, found more")));
    }
    Ok(Ended { output, ..running.ended() })
}

/// Runs `command` as [`run`] does, and hands `take` its output line by line, however long that is; `check` is asked now and then.
///
/// # Errors
/// As [`run`]; a line of more than 4 KiB; what `check` says. The program is killed then.
pub fn run_lines(
    command: Command,
    limit: Duration,
    install: &str,
    check: &dyn Fn() -> Result<()>,
    mut take: impl FnMut(&str),
) -> Result<Ended> {
    let mut running = Running::start(command, limit, install)?;
    let (lines, taken) = crossbeam_channel::bounded(LINES);
    if let Some(pipe) = running.child.stdout.take() {
        on_thread(move || read_lines(pipe, &lines))?;
    }
    loop {
        let before = Instant::now();
        match taken.recv_timeout(LOOK) {
            Ok(line) if line.len() as u64 <= MAX_WORDS_BYTES => take(&String::from_utf8_lossy(&line)),
            Ok(line) => {
                let (program, found) = (&running.program, line.len());
                return Err(Error::failed(format!(
                    "{program}: expected lines of {MAX_WORDS_BYTES} bytes at most, found one of {found} or more"
                )));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if running.has_ended()? => return Ok(running.ended()),
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK.saturating_sub(before.elapsed())),
        }
        running.has_ended()?;
        check()?;
    }
}

/// Runs `command` as [`run`] does, and hands `take` its output as it comes, however much that is; `check` is asked now and then. Returns when
/// whatever it started has ended, too, or was killed.
///
/// # Errors
/// As [`run`]; what `check` says. The program is killed then.
pub fn run_pieces(
    command: Command,
    limit: Duration,
    install: &str,
    check: &dyn Fn() -> Result<()>,
    mut take: impl FnMut(&[u8]),
) -> Result<Ended> {
    let mut running = Running::start(command, limit, install)?;
    let (pieces, taken) = crossbeam_channel::bounded(LINES);
    if let Some(pipe) = running.child.stdout.take() {
        on_thread(move || read_pieces(pipe, &pieces))?;
    }
    let mut since_end: Option<Instant> = None;
    loop {
        match taken.recv_timeout(LOOK) {
            Ok(piece) => take(&piece),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if running.has_ended()? => return Ok(running.ended()),
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
        if running.has_ended()? && since_end.get_or_insert_with(Instant::now).elapsed() > ENDS_WITHIN {
            // Somebody else still has its output.
            running.kill_group();
            return Ok(running.ended());
        }
        check()?;
    }
}

/// A program that runs; dropped before its end, it is killed with whatever it started.
struct Running {
    program: String,
    child: Child,
    limit: Duration,
    since: Instant,
    words: Option<JoinHandle<Vec<u8>>>,
    status: Option<ExitStatus>,
}

impl Running {
    fn start(mut command: Command, limit: Duration, install: &str) -> Result<Running> {
        let program = command.get_program().to_string_lossy().into_owned();
        // Ctrl-C at our terminal is for us to answer; and all that it starts can be ended at once.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| {
            let error_ = Error::io(format!("{program}: cannot be started"), error);
            error_.next(format!("install it ({install})"))
        })?;
        let words = child.stderr.take();
        // From here on whatever goes wrong ends it.
        let mut running = Running { program, child, limit, since: Instant::now(), words: None, status: None };
        running.words = words.map(|pipe| read(pipe, MAX_WORDS_BYTES)).transpose()?;
        Ok(running)
    }

    fn has_ended(&mut self) -> Result<bool> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context(|| format!("{}: waiting for its end", self.program))?;
        }
        if self.status.is_none() && self.since.elapsed() >= self.limit {
            let (program, seconds) = (&self.program, self.limit.as_secs());
            return Err(Error::failed(format!("{program}: expected an end within {seconds} s, found it silent")));
        }
        Ok(self.status.is_some())
    }

    /// Kills it with whatever it started.
    fn kill_group(&self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Gone already is what we want.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// How it ended, its output apart.
    fn ended(mut self) -> Ended {
        let words = self.words.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let code = self.status.and_then(|status| status.code());
        Ended { code, output: Vec::new(), words: crate::nbd::wire::text(&words).trim().to_owned() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill_group();
            let _ = self.child.wait();
        }
    }
}

/// Sends line by line; of one that is too long its beginning, and then nothing more.
fn read_lines(pipe: impl Read, lines: &Sender<Vec<u8>>) {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        // What was read before an error is what there is.
        let read = (&mut pipe).take(MAX_WORDS_BYTES + 1).read_until(b'\n', &mut line);
        let last = !matches!(read, Ok(1..)) || line.len() as u64 > MAX_WORDS_BYTES;
        if !line.is_empty() && lines.send(line).is_err() || last {
            return;
        }
    }
}

/// Sends what comes.
fn read_pieces(mut pipe: impl Read, pieces: &Sender<Vec<u8>>) {
    let mut piece = [0; 4096];
    // What was read before an error is what there is.
    while let Ok(got @ 1..) = pipe.read(&mut piece) {
        if pieces.send(piece[..got].to_vec()).is_err() {
            return;
        }
    }
}

fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    std::thread::Builder::new().name("motiongear-program".into()).spawn(work).map_err(no_thread)
}

/// Reads all, and keeps a byte more than `limit` at most.
fn read(mut pipe: impl Read + Send + 'static, limit: u64) -> Result<JoinHandle<Vec<u8>>> {
    on_thread(move || {
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
        let mut sum = 0u64;
        let mut add = |line: &str| sum += line.trim().parse::<u64>().unwrap();
        let ended = run_lines(sh("seq 100000; echo x >&2; exit 4"), Duration::from_secs(60), "", &|| Ok(()), &mut add);
        let ended = ended.unwrap();
        assert_eq!((ended.code, ended.words.as_str(), sum), (Some(4), "x", 5_000_050_000));
        let lines = |script, check: &dyn Fn() -> Result<()>| {
            run_lines(sh(script), Duration::from_secs(60), "", check, |_| ()).unwrap_err().to_string()
        };
        let error = lines("head -c 9000 /dev/zero; sleep 100", &|| Ok(()));
        assert!(error.contains("found one of 4097 or more"), "{error}");
        assert!(lines("sleep 100", &|| Err(Error::interrupted("enough"))).contains("enough"));
        let error = run_lines(sh("sleep 100"), Duration::from_millis(50), "", &|| Ok(()), |_| ()).unwrap_err();
        assert!(error.to_string().contains("expected an end within"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(60));
        let mut bytes = 0;
        let ended =
            run_pieces(sh("seq 100000; exit 4"), Duration::from_secs(60), "", &|| Ok(()), |piece| bytes += piece.len());
        assert_eq!((ended.unwrap().code, bytes), (Some(4), 588_895));
        // What it leaves behind has its output, and is ended.
        let since = Instant::now();
        run_pieces(sh("sleep 100 & exit 0"), Duration::from_secs(60), "", &|| Ok(()), |_| ()).unwrap();
        assert!(since.elapsed() < Duration::from_secs(20));
        let error = run(Command::new("no-such-program"), Duration::from_secs(1), "Debian: none").unwrap_err();
        assert!(error.to_string().contains("install it (Debian: none)"), "{error}");
    }
}
