//! One conversation with a QEMU monitor: greeting, capabilities, then commands with numbers, one at a time. Events are passed
//! over: whatever they tell is asked for where it matters, as they are lost while nobody listens.

use crate::error::{Error, Result};
use crate::nbd::wire::text;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest line that is taken from a monitor: the largest answer that we ask for has some kilobytes for each disk.
const MAX_LINE_BYTES: usize = 16 << 20;
/// The longest words of QEMU that are repeated in an error, bytes.
const MAX_WORDS_BYTES: usize = 1000;
/// For the greeting: a monitor that somebody else holds lets us connect, and says nothing.
const GREETING_WITHIN: Duration = Duration::from_secs(5);
/// For an answer. A transaction waits for requests that are under way on slow disks.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// From one attempt to connect to the next, while too many wait there.
const AGAIN: Duration = Duration::from_millis(50);

/// A monitor that has greeted us.
pub struct Qmp {
    stream: UnixStream,
    socket: PathBuf,
    /// What was read and not yet used.
    pending: Vec<u8>,
    next: u64,
    version: (u64, u64),
}

impl Qmp {
    /// Connects to the monitor at `socket`.
    ///
    /// # Errors
    /// Nobody listens there, somebody else holds it, or it is no QEMU.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let until = Instant::now() + GREETING_WITHIN;
        let stream = connect(socket, until).map_err(|error| {
            let next = "give the path of the socket of -qmp unix:PATH,server=on,wait=off; as root, or as who runs QEMU";
            Error::io(format!("QEMU monitor {}: nobody answers", socket.display()), error).next(next)
        })?;
        let mut qmp = Qmp { stream, socket: socket.to_owned(), pending: Vec::new(), next: 0, version: (0, 0) };
        let greeting = qmp.line(until).map_err(|error| match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => qmp.wrong("a greeting", "silence").next(
                "another program holds this monitor (libvirt does so with its own): start the machine with a further -qmp for MotionGear",
            ),
            _ => qmp.broken(error),
        })?;
        let number = |name: &str| greeting.pointer(&format!("/QMP/version/qemu/{name}")).and_then(Value::as_u64);
        let Some(version) = number("major").zip(number("minor")) else {
            return Err(qmp.wrong("QEMU's greeting", shown(&greeting)).next("give the socket of a QMP monitor"));
        };
        qmp.version = version;
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// QEMU's version: major and minor.
    pub fn version(&self) -> (u64, u64) {
        self.version
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Gives a command and waits for what it returns.
    ///
    /// # Errors
    /// QEMU refuses, with its words; the conversation broke; a minute is over.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.say(command, arguments, None)
    }

    /// As [`Qmp::call`], for an answer of a form that is known.
    ///
    /// # Errors
    /// As there; another form.
    pub fn ask<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T> {
        let answer = self.call(command, arguments)?;
        serde_json::from_value(answer).map_err(|error| self.wrong(&format!("an answer to {command}"), error))
    }

    /// As [`Qmp::call`], and hands a descriptor over with it.
    ///
    /// # Errors
    /// As there.
    pub fn hand(&mut self, fd: BorrowedFd<'_>, command: &str, arguments: Value) -> Result<Value> {
        self.say(command, arguments, Some(fd))
    }

    fn say(&mut self, command: &str, arguments: Value, fd: Option<BorrowedFd<'_>>) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string().into_bytes();
        line.push(b'\n');
        let until = Instant::now() + ANSWER_WITHIN;
        self.send(&line, fd).map_err(|error| self.broken(error))?;
        loop {
            let mut answer = self.line(until).map_err(|error| match error.kind() {
                ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                    let limit = ANSWER_WITHIN.as_secs();
                    self.wrong(&format!("an answer to {command} within {limit} s"), "none")
                }
                _ => self.broken(error),
            })?;
            if answer.get("event").is_some() {
                continue;
            }
            if answer.get("id").and_then(Value::as_u64) != Some(id) {
                return Err(self.wrong(&format!("the answer to {command}"), shown(&answer)));
            }
            if let Some(said) = answer.pointer("/error/desc").and_then(Value::as_str) {
                let said = text(&said.as_bytes()[..said.len().min(MAX_WORDS_BYTES)]);
                return Err(Error::failed(format!("QEMU at {}: {command}: {said}", self.socket.display())));
            }
            return match answer.get_mut("return") {
                Some(returned) => Ok(returned.take()),
                None => Err(self.wrong(&format!("the answer to {command}"), shown(&answer))),
            };
        }
    }

    fn send(&mut self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        let sent = match fd {
            Some(fd) => {
                let fds = [fd];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&fds));
                rustix::net::sendmsg(&self.stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?
            }
            None => 0,
        };
        self.stream.write_all(&line[sent..])
    }

    /// The next line, as JSON.
    fn line(&mut self, until: Instant) -> io::Result<Value> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.pending[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=searched + at).collect();
                return serde_json::from_slice(&line)
                    .map_err(|error| io::Error::new(ErrorKind::InvalidData, format!("no JSON: {error}")));
            }
            searched = self.pending.len();
            if searched > MAX_LINE_BYTES {
                let text = format!("a line of more than {MAX_LINE_BYTES} bytes");
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::Error::new(ErrorKind::ConnectionAborted, "QEMU ended the conversation")),
                Ok(got) => self.pending.extend_from_slice(&piece[..got]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn broken(&self, error: io::Error) -> Error {
        Error::io(format!("QEMU monitor {}: the conversation broke", self.socket.display()), error)
            .next("see whether the machine still runs, and that the socket is that of a QMP monitor")
    }

    pub(super) fn wrong(&self, expected: &str, found: impl std::fmt::Display) -> Error {
        Error::failed(format!("QEMU monitor {}: expected {expected}, found {found}", self.socket.display()))
    }
}

/// Connects without ever hanging: where too many wait at a socket already, the kernel would let us wait with them for ever.
fn connect(socket: &Path, until: Instant) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let address = SocketAddrUnix::new(socket)?;
    loop {
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(fd.as_fd(), &address) {
            Ok(()) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(Errno::AGAIN) if Instant::now() < until => std::thread::sleep(AGAIN),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether nobody listens at `socket`: QEMU has ended.
pub(super) fn is_off(socket: &Path) -> bool {
    let tried = connect(socket, Instant::now());
    tried.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
}

fn shown(answer: &Value) -> String {
    let text = text(answer.to_string().as_bytes());
    text.chars().take(200).collect()
}
