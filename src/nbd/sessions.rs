//! The sessions with an export that is written to, shared by all threads of a job.
//!
//! A server that does not say `NBD_FLAG_CAN_MULTI_CONN` promises only that a flush covers what was written in the same session, and
//! many let one client in at a time. So writes, flushes and everything else go through the same sessions, which one thread has.
//!
//! When one of them is lost, all are over: what was answered and not flushed may be gone with the server, and a flush in a session
//! with its successor would succeed and prove nothing. Nothing is ever sent again here; whoever uses the export opens it anew
//! and writes again what was not flushed.

use super::connection::{Connection, Finished};
use super::handshake::Export;
use super::wire::Command;
use super::{ALLOCATION, SESSIONS, Style, Uri, connect, with_more};
use crate::error::{IoContext, Result};
use crate::io::{BlockIo, Buffer, Completion, Waited};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long to sleep at most where nothing tells when to stop.
const LONG: Duration = Duration::from_secs(3600);

/// Sessions that any thread may use.
pub struct Sessions {
    asks: Sender<Ask>,
    bell: Arc<OwnedFd>,
    export: Export,
    changes: AtomicU64,
    over: Arc<AtomicBool>,
}

struct Ask {
    token: u64,
    command: Command,
    offset: u64,
    bytes: u64,
    buffer: Option<Buffer>,
    answer: Sender<Finished>,
}

impl Sessions {
    /// Connects to the export of `uri`: once, and a few times more where the server keeps its sessions consistent and lets us in.
    ///
    /// # Errors
    /// As [`connect`]; no thread to be had.
    pub fn open(uri: &Uri) -> Result<Arc<Sessions>> {
        let contexts = [ALLOCATION.to_owned()];
        let first = connect(uri, &contexts, Style::Extended)?;
        let export = first.export().clone();
        let sessions = with_more(uri, first, &contexts, Style::Extended, SESSIONS);
        let what = || format!("NBD export {uri}: its thread");
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(what)?);
        let (asks, asked) = unbounded();
        let over = Arc::new(AtomicBool::new(false));
        let (rung, ended) = (bell.clone(), over.clone());
        let keeper = Keeper { sessions, asked, bell: rung, waiting: HashMap::new(), next: 0, why: None, over: ended };
        std::thread::Builder::new().name("motiongear-nbd".into()).spawn(move || keeper.run()).context(what)?;
        Ok(Arc::new(Sessions { asks, bell, export, changes: AtomicU64::new(0), over }))
    }

    /// What was negotiated.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Counts what changes the bytes of the export: what was known of its holes holds while it stays the same.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether one of them was lost: whatever is asked fails from now on.
    pub fn are_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Flushes, zeroes, trims or asks for block status, and waits, `limit` at the longest.
    ///
    /// # Errors
    /// The server refuses, the sessions are lost, or the time is over.
    pub fn call(&self, command: Command, offset: u64, bytes: u64, limit: Duration) -> io::Result<Finished> {
        let (answer, answered) = bounded(1);
        self.ask(Ask { token: 0, command, offset, bytes, buffer: None, answer });
        let finished = answered.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => io::Error::new(io::ErrorKind::TimedOut, "the NBD server does not answer"),
            RecvTimeoutError::Disconnected => over(),
        })?;
        match finished.result {
            Ok(()) => Ok(finished),
            Err(error) => Err(error),
        }
    }

    /// A queue over these sessions, `depth` requests deep. Offsets are whole blocks of the export; where a length is not, reads
    /// and writes go on to the end of its block, writes with zeros.
    pub fn queue(self: &Arc<Self>, depth: usize) -> Box<dyn BlockIo> {
        let (answer, answered) = unbounded();
        Box::new(Queue { sessions: self.clone(), answer, answered, lengths: HashMap::new(), in_flight: 0, depth })
    }

    fn ask(&self, ask: Ask) {
        if matches!(ask.command, Command::Write | Command::WriteZeroes | Command::Trim) {
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        if let Err(unsent) = self.asks.send(ask) {
            let Ask { token, buffer, answer, .. } = unsent.into_inner();
            let finished = Finished { token, buffer, result: Err(over()), elapsed: Duration::ZERO, status: Vec::new() };
            // Whoever asked may be gone.
            let _ = answer.send(finished);
        }
        ring(&self.bell);
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        // The thread looks up when it is rung, and finds nobody left once this sender is gone.
        self.asks = unbounded().0;
        ring(&self.bell);
    }
}

fn ring(bell: &OwnedFd) {
    // It can only fail when it was rung and not heard nearly 2^64 times.
    let _ = rustix::io::write(bell, &1u64.to_le_bytes());
}

fn over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the sessions with the NBD server are over")
}

/// The thread that has the sessions.
struct Keeper {
    sessions: Vec<Connection>,
    asked: Receiver<Ask>,
    bell: Arc<OwnedFd>,
    /// Whom the answers to what is in flight go to, and under which token; by our own.
    waiting: HashMap<u64, (u64, Sender<Finished>)>,
    next: u64,
    /// Why the first of the sessions ended.
    why: Option<(io::ErrorKind, String)>,
    /// Set before anybody hears of it.
    over: Arc<AtomicBool>,
}

impl Keeper {
    fn run(mut self) {
        loop {
            // Heard before the asks are taken: whoever asks later rings again.
            let mut rung = [0; 8];
            let _ = rustix::io::read(&self.bell, &mut rung);
            let wanted = self.take_asks();
            self.sessions.iter_mut().for_each(Connection::pump);
            self.end_together();
            if self.hand_out() {
                // It said that it is about to end: the others need not wait for that.
                self.end_together();
                self.hand_out();
            }
            if !wanted && self.waiting.is_empty() {
                return;
            }
            let mut fds = vec![PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN)];
            let busy = self.sessions.iter().filter(|session| session.in_flight() > 0);
            fds.extend(busy.map(|session| PollFd::from_borrowed_fd(session.fd(), session.interest())));
            if super::channel::wait_for(&mut fds, LONG).is_err() {
                // The system refuses to wait: the sessions will say what is wrong, if anything is.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// False if nobody will ask any more.
    fn take_asks(&mut self) -> bool {
        loop {
            match self.asked.try_recv() {
                Ok(ask) => self.begin(ask),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn begin(&mut self, Ask { token, command, offset, bytes, buffer, answer }: Ask) {
        self.next += 1;
        let number = self.next;
        self.waiting.insert(number, (token, answer));
        let Some(session) = self.sessions.iter_mut().min_by_key(|session| session.in_flight()) else { return };
        match (command, buffer) {
            (Command::Read, Some(buffer)) => session.read(number, offset, buffer, bytes as usize),
            (Command::Write, Some(buffer)) => session.write(number, 0, offset, buffer),
            (command, _) => session.command(number, command, 0, offset, bytes),
        }
    }

    fn end_together(&mut self) {
        if self.why.is_none() {
            let ended = self.sessions.iter().find_map(Connection::ended);
            self.why = ended.map(|error| (error.kind(), error.to_string()));
        }
        if let Some((kind, text)) = &self.why {
            self.over.store(true, Ordering::Release);
            self.sessions.iter_mut().for_each(|session| session.end(&io::Error::new(*kind, text.clone())));
        }
    }

    /// True if a server said with one of its answers that it is about to end.
    fn hand_out(&mut self) -> bool {
        let mut ends = false;
        for session in &mut self.sessions {
            while let Some(finished) = session.finished() {
                // A server that is about to end says so before it does.
                if finished.result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ESHUTDOWN)) {
                    ends = true;
                    self.over.store(true, Ordering::Release);
                    self.why
                        .get_or_insert((io::ErrorKind::ConnectionAborted, "the NBD server is shutting down".into()));
                }
                if let Some((token, answer)) = self.waiting.remove(&finished.token) {
                    // Whoever asked may have given up.
                    let _ = answer.send(Finished { token, ..finished });
                }
            }
        }
        ends
    }
}

/// One thread's share in the sessions.
struct Queue {
    sessions: Arc<Sessions>,
    answer: Sender<Finished>,
    answered: Receiver<Finished>,
    /// Lengths that were asked for, where more was read; by token.
    lengths: HashMap<u64, usize>,
    in_flight: usize,
    depth: usize,
}

impl Queue {
    fn ask(&mut self, token: u64, command: Command, offset: u64, buffer: Buffer, bytes: usize) {
        self.in_flight += 1;
        let (bytes, answer) = (bytes as u64, self.answer.clone());
        self.sessions.ask(Ask { token, command, offset, bytes, buffer: Some(buffer), answer });
    }

    fn whole(&self, bytes: usize) -> usize {
        bytes.next_multiple_of(self.sessions.export.sizes.minimum.max(1) as usize)
    }
}

impl BlockIo for Queue {
    fn read(&mut self, token: u64, offset: u64, buffer: Buffer, len: usize) {
        let whole = self.whole(len);
        if whole != len {
            self.lengths.insert(token, len);
        }
        self.ask(token, Command::Read, offset, buffer, whole);
    }

    fn write(&mut self, token: u64, offset: u64, mut buffer: Buffer) {
        let len = buffer.len();
        let whole = self.whole(len);
        if whole != len && whole <= buffer.capacity() {
            buffer.set_len(whole);
            buffer[len..].fill(0);
        }
        self.ask(token, Command::Write, offset, buffer, whole);
    }

    fn wait_for(&mut self, limit: Duration) -> Waited {
        if self.in_flight == 0 {
            return Waited::Idle;
        }
        let Ok(finished) = self.answered.recv_deadline(Instant::now() + limit) else { return Waited::Late };
        self.in_flight -= 1;
        let Finished { token, mut buffer, result, elapsed, .. } = finished;
        if let (Some(len), Some(buffer)) = (self.lengths.remove(&token), &mut buffer) {
            buffer.set_len(len);
        }
        Waited::Done(Completion { token, buffer, result, elapsed })
    }

    fn abandon(self: Box<Self>) {
        // Its buffers stay with the thread that has the sessions, until they are answered or the process ends.
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn depth(&self) -> usize {
        self.depth
    }
}
