//! The byte stream below the protocol, which never blocks by itself: a socket, or TLS over one.

use super::socket::Socket;
use super::tls::Session;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{ErrorKind, Read, Result, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// What the protocol talks through.
pub enum Channel {
    /// As it is.
    Plain(Socket),
    /// Encrypted.
    Tls(Box<Session>),
}

impl Channel {
    /// Reads what is there; `None` where nothing is, yet.
    ///
    /// # Errors
    /// The stream ended or broke.
    pub fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        let answer = match self {
            Channel::Plain(socket) => socket.read(into),
            Channel::Tls(session) => session.read(into),
        };
        match answer {
            Ok(0) if !into.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => Ok(Some(n)),
            Err(error) if passing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes what there is room for; `None` where there is none, yet.
    ///
    /// # Errors
    /// The stream broke.
    pub fn write(&mut self, from: &[u8]) -> Result<Option<usize>> {
        let answer = match self {
            Channel::Plain(socket) => socket.write(from),
            Channel::Tls(session) => session.write(from),
        };
        match answer {
            Ok(n) => Ok(Some(n)),
            Err(error) if passing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands on what TLS still holds; false if the socket does not take it all.
    ///
    /// # Errors
    /// The stream broke.
    pub fn flush(&mut self) -> Result<bool> {
        match self {
            Channel::Plain(_) => Ok(true),
            Channel::Tls(session) => match session.flush() {
                Ok(()) => Ok(true),
                Err(error) if passing(&error) => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    /// Whether it holds bytes that the socket did not take yet.
    pub fn wants_write(&self) -> bool {
        match self {
            Channel::Plain(_) => false,
            Channel::Tls(session) => session.wants_write(),
        }
    }

    /// What to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Channel::Plain(socket) => socket.as_fd(),
            Channel::Tls(session) => session.as_fd(),
        }
    }

    /// Reads exactly what `into` holds.
    ///
    /// # Errors
    /// The stream ended or broke, or `until` came.
    pub fn read_exact(&mut self, mut into: &mut [u8], until: Instant) -> Result<()> {
        while !into.is_empty() {
            match self.read(into)? {
                Some(n) => into = &mut into[n..],
                None => self.wait(PollFlags::IN, until)?,
            }
        }
        Ok(())
    }

    /// Writes all of `from`.
    ///
    /// # Errors
    /// The stream broke, or `until` came.
    pub fn write_all(&mut self, mut from: &[u8], until: Instant) -> Result<()> {
        while !from.is_empty() {
            match self.write(from)? {
                Some(n) => from = &from[n..],
                None => self.wait(PollFlags::OUT, until)?,
            }
        }
        while !self.flush()? {
            self.wait(PollFlags::OUT, until)?;
        }
        Ok(())
    }

    /// Goes on encrypted, once both sides believe each other.
    ///
    /// # Errors
    /// One of them does not, or `until` came.
    pub fn encrypt(self, begin: impl FnOnce(Socket) -> Result<Session>, until: Instant) -> Result<Channel> {
        let Channel::Plain(socket) = self else { return Ok(self) };
        let mut channel = Channel::Tls(Box::new(begin(socket)?));
        loop {
            let Channel::Tls(session) = &mut channel else { return Ok(channel) };
            match session.shake() {
                Ok(true) => return Ok(channel),
                Ok(false) => {}
                // What it has to say is small and fits the socket: it is the other side that is waited for.
                Err(error) if passing(&error) => channel.wait(PollFlags::IN, until)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn wait(&self, flags: PollFlags, until: Instant) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        wait_for(&mut [PollFd::from_borrowed_fd(self.fd(), flags)], left)
    }
}

/// Waits until one of `fds` is ready or the time is over, which is no error.
///
/// # Errors
/// The system's.
pub fn wait_for(fds: &mut [PollFd<'_>], limit: Duration) -> Result<()> {
    let limit = Timespec::try_from(limit).map_err(|_| std::io::Error::other("the time to wait is too long"))?;
    match poll(fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Nothing now, perhaps later.
fn passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
