//! One `ssh HOST sh`: started, greeted, asked, ended.

use super::Place;
use super::shell::{self, Hello, Trailer, Units, one_line, wrong};
use crate::copy::crew::no_thread;
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long it may take until the far side's `sh` says hello: names are looked up, keys agreed on, by processors of 2005.
const HELLO_WITHIN: Duration = Duration::from_secs(60);
/// How long one page may take while nobody watches over it yet.
pub const PAGE_WITHIN: Duration = Duration::from_secs(120);
/// How often whoever waits looks whether anybody still wants it.
pub const LOOK: Duration = Duration::from_millis(100);
/// How long an ssh whose output has ended may take to end itself.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// What login scripts may say before the hello, bytes.
const MAX_NOISE_BYTES: usize = 256 << 10;
/// What may stand behind the data: the words of a `dd`, which hold its path.
const MAX_TRAILER_BYTES: usize = 64 << 10;
/// What is kept of ssh's own words.
const SAID_BYTES: usize = 4 << 10;

/// No questions, no strangers, no terminal, nothing forwarded; a peer that is gone is noticed within a minute. What the user's
/// configuration says of anything else, holds. A connection that the user holds open (ControlPath) is used, but none is made.
const OPTIONS: [&str; 11] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "RequestTTY=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ControlMaster=no",
    "ConnectTimeout=20",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    "LogLevel=INFO",
];

/// The program and its first arguments; `ssh` unless set.
static COMMAND: OnceLock<Vec<String>> = OnceLock::new();

/// Has `command` take the place of `ssh` in this process: the program and its first arguments, separated by blanks. For the first
/// call to count, it comes before any disk is opened.
pub fn use_command(command: &str) {
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    if !words.is_empty() {
        // A second one would change nothing.
        let _ = COMMAND.set(words);
    }
}

/// A connection whose far side waits for requests.
pub struct Channel {
    host: String,
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    said: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
}

/// What came for one request.
#[derive(Debug)]
pub struct Answer {
    /// Bytes from the start of the range.
    pub got: usize,
    /// What was said behind them.
    pub trailer: Trailer,
}

impl Channel {
    /// Connects, and has the far side say what stands at the path. Gives up soon after `stop` is set.
    ///
    /// # Errors
    /// ssh cannot be started or does not get in; no `sh` answers there. The cause is one of [`super::is_lost`] where another
    /// attempt may succeed.
    pub fn open(place: &Place, stop: Arc<AtomicBool>) -> Result<(Channel, Hello)> {
        let host = place.host();
        let about = |error: io::Error, next: String| Error::io(format!("Source {place}"), error).next(next);
        let usual = vec!["ssh".to_owned()];
        let words = COMMAND.get().unwrap_or(&usual);
        let mut command = crate::program::command(&words[0]);
        command.args(&words[1..]);
        for option in OPTIONS {
            command.args(["-o", option]);
        }
        command.args(["-T", "--", host, "sh"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C at a terminal is for us, who stop in good order, and not for every process of the job.
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| {
            let what = io::Error::new(error.kind(), format!("{} cannot be started: {error}", words[0]));
            about(what, "install the OpenSSH client (Debian: openssh-client; Red Hat: openssh-clients)".to_owned())
        })?;
        let (Some(input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::failed(format!("Source {place}: ssh was started without pipes")));
        };
        let said = Arc::default();
        let listening = listen(errors, &said);
        let mut channel = Channel { host: host.to_owned(), child, input, output, said, stop };
        listening.map_err(no_thread)?;
        let greeted = channel.greet(place);
        match greeted {
            Ok(hello) => Ok((channel, hello)),
            Err(error) => {
                let next = channel.way_out(&error);
                Err(about(error, next))
            }
        }
    }

    fn greet(&mut self, place: &Place) -> io::Result<Hello> {
        let token = Uuid::new_v4().simple().to_string();
        self.send(&shell::script(place.path(), &token))?;
        let answer = self.receive(&token, &mut [], MAX_NOISE_BYTES, Some(HELLO_WITHIN))?;
        Hello::of(answer.trailer)
    }

    /// Reads a range into the front of `into`, which is as long as what may come at most. Without a limit it takes as long as it takes.
    ///
    /// # Errors
    /// The connection ended, more came than was asked for, or nothing within the limit: no further request can be made then.
    pub fn read(
        &mut self,
        units: Units,
        direct: bool,
        into: &mut [u8],
        within: Option<Duration>,
    ) -> io::Result<Answer> {
        let token = Uuid::new_v4().simple().to_string();
        self.send(&units.line(&token, direct))?;
        let answer = self.receive(&token, into, MAX_TRAILER_BYTES, within)?;
        if answer.got > into.len() {
            let (most, got) = (into.len(), answer.got);
            return Err(wrong(&format!("at most {most} bytes in units of {}", units.unit), &format!("{got} bytes")));
        }
        Ok(answer)
    }

    /// Takes what comes up to the trailer of `token`: into `into`, and what does not fit there, at most `more` bytes, apart.
    fn receive(&mut self, token: &str, into: &mut [u8], more: usize, within: Option<Duration>) -> io::Result<Answer> {
        let since = Instant::now();
        let (mut filled, mut rest, mut piece) = (0, Vec::new(), [0; 4096]);
        loop {
            self.wait(since, within)?;
            let room = if filled < into.len() { &mut into[filled..] } else { &mut piece[..] };
            let n = match self.output.read(room) {
                Ok(0) => return Err(self.ended(&rest)),
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if filled < into.len() {
                filled += n;
            } else {
                rest.extend_from_slice(&piece[..n]);
            }
            // Nothing follows a trailer before the next request: it can only be the end of what came.
            if rest.last().or(into[..filled].last()) == Some(&b'\n') {
                let from = filled.saturating_sub(more);
                let received = [&into[from..filled], &rest].concat();
                if let Some((at, trailer)) = shell::trailer(&received, token)? {
                    return Ok(Answer { got: from + at, trailer });
                }
            }
            if rest.len() > more {
                let shown = String::from_utf8_lossy(&rest[..200]).into_owned();
                let expected = format!("an answer after at most {} bytes", into.len() + more);
                return Err(wrong(&expected, &format!("{shown}…")));
            }
        }
    }

    /// Waits for output, at most until `within` after `since`.
    fn wait(&self, since: Instant, within: Option<Duration>) -> io::Result<()> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::new(ErrorKind::ConnectionAborted, "nobody waits for it any more"));
            }
            if let Some(limit) = within.filter(|limit| since.elapsed() >= *limit) {
                let text = format!("{}: no sh answered within {} s", self.host, limit.as_secs());
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
            let limit = Timespec::try_from(LOOK).map_err(io::Error::other)?;
            match poll(&mut [PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::IN)], Some(&limit)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Small enough for the pipe: it never waits.
    fn send(&mut self, text: &str) -> io::Result<()> {
        match self.input.write_all(text.as_bytes()) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.ended(&[])),
        }
    }

    /// Why the output has ended, after it said `instead` of what was expected.
    fn ended(&mut self, instead: &[u8]) -> io::Error {
        let since = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if since.elapsed() < ENDS_WITHIN => std::thread::sleep(Duration::from_millis(10)),
                _ => break None,
            }
        };
        let code = status.and_then(|status| status.code());
        let mut words = self.said();
        if words.is_empty() {
            words = one_line(&String::from_utf8_lossy(&instead[..instead.len().min(200)]));
        }
        let how = match code {
            Some(code) => format!("ended with status {code}"),
            None => "ended".to_owned(),
        };
        let colon = if words.is_empty() { "" } else { ": " };
        let text = format!("ssh to {} {how}{colon}{words}", self.host);
        // ssh says 255 of itself; any other status is that of what ran there, or would have.
        let kind =
            if Refusal::of(&words).is_some() { ErrorKind::PermissionDenied } else { ErrorKind::ConnectionAborted };
        io::Error::new(kind, text)
    }

    /// What ssh said on its standard error, last of all.
    fn said(&self) -> String {
        // The end of one pipe may be seen before the last words in the other.
        std::thread::sleep(Duration::from_millis(20));
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&said);
        // A changed host key is framed in these.
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('@')).collect();
        one_line(&lines.join(" "))
    }

    /// What to do where no hello came.
    fn way_out(&self, error: &io::Error) -> String {
        let host = &self.host;
        match (Refusal::of(&error.to_string()), error.kind()) {
            (Some(Refusal::HostKey), _) => format!(
                "as the user that runs this, connect once by hand and compare the key with what the machine's console shows: \
                 ssh {host}; a key that changed is removed with ssh-keygen -R"
            ),
            (Some(Refusal::Login), _) => format!(
                "nobody is asked for a password here: let a key without one (or an agent) in, or hold a connection open \
                 (ControlMaster); this must work: ssh -o BatchMode=yes {host} true"
            ),
            (Some(Refusal::Algorithms), _) => format!(
                "allow, for this host only, what so old a server speaks (KexAlgorithms, HostKeyAlgorithms, Ciphers, MACs in \
                 ssh's configuration), until this works: ssh {host} true"
            ),
            (None, ErrorKind::ConnectionAborted) if error.to_string().contains(" ended with status 255") => {
                format!("see whether this works: ssh -o BatchMode=yes {host} true; then run the same command again")
            }
            (None, _) => format!(
                "the account must get a plain shell for commands: look at ForceCommand, the login shell and what its start \
                 files print; this must print hello: echo echo hello | ssh -T {host} sh"
            ),
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // The far side sees its input end, and ends; a `dd` ends with the next thing that it writes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why ssh is not let in, or does not want to: another attempt would end alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    HostKey,
    Login,
    Algorithms,
}

impl Refusal {
    /// By OpenSSH's words, which it never translates.
    fn of(words: &str) -> Option<Refusal> {
        let says = |any: &[&str]| any.iter().any(|what| words.contains(what));
        match () {
            () if says(&["Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"]) => Some(Refusal::HostKey),
            () if says(&["no matching", "Bad configuration option", "Bad SSH2 ", "Invalid key length"]) => {
                Some(Refusal::Algorithms)
            }
            () if says(&["Permission denied", "Too many authentication failures", "Bad owner or permissions"]) => {
                Some(Refusal::Login)
            }
            () => None,
        }
    }
}

/// Keeps the last that ssh says.
fn listen(mut pipe: impl Read + Send + 'static, said: &Arc<Mutex<Vec<u8>>>) -> io::Result<()> {
    let kept = said.clone();
    let thread = std::thread::Builder::new().name("motiongear-ssh".into()).spawn(move || {
        let mut piece = [0; 1024];
        while let Ok(n @ 1..) = pipe.read(&mut piece) {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&piece[..n]);
            let over = kept.len().saturating_sub(SAID_BYTES);
            kept.drain(..over);
        }
    });
    thread.map(drop)
}
