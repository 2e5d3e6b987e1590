//! One connection after the handshake. This thread alone talks; a few others read what was asked for, so that requests are answered
//! in whatever order they are ready.

use super::accounts::{Account, Visit};
use super::handshake::Agreed;
use super::reply::{Reply, Verdict, answer, judge};
use super::wire::{Asked, REQUEST_BYTES, breach, decode_request};
use super::{Host, Loan, PATIENCE};
use crate::nbd::channel::{Channel, wait_for};
use crate::nbd::wire::{Command, DEFAULT_MAX_PAYLOAD};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// Requests of one connection that are worked on or wait for it.
const IN_FLIGHT: usize = 64;
/// Threads that read for one connection.
const WORKERS: usize = 4;
/// How often is looked whether all shall end, and whether there is memory again.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_FOR_MEMORY: Duration = Duration::from_millis(5);

/// Work on one request.
type Work = (Asked, Loan);

/// Serves requests until the client leaves. Reads that it did not wait for go on without it, as `visit`.
///
/// # Errors
/// It broke the protocol, went away, or does not take its replies.
pub fn run(host: &Arc<Host>, channel: Channel, agreed: Agreed, visit: Arc<Visit>) -> Result<()> {
    let (work, to_do) = bounded::<Work>(IN_FLIGHT);
    let (done, replies) = unbounded();
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let agreed = Arc::new(agreed);
    let readers = (0..WORKERS).map(|_| {
        let reader = Reader {
            to_do: to_do.clone(),
            done: done.clone(),
            wake: wake.clone(),
            agreed: agreed.clone(),
            visit: visit.clone(),
        };
        std::thread::Builder::new().name("nbd-reader".into()).spawn(move || reader.run())
    });
    // Those that were started end with `work`.
    readers.collect::<Result<Vec<_>>>()?;
    let ended = Talk {
        host,
        channel,
        agreed: &agreed,
        account: &visit.account,
        work,
        replies,
        wake: &wake,
        header: [0; REQUEST_BYTES],
        have: 0,
        payload: 0,
        waiting: None,
        working: 0,
        held: Arc::default(),
        going: VecDeque::new(),
        moved: Instant::now(),
        leaving: false,
    }
    .run();
    visit.leave();
    // Nobody waits for these any more: the disk has other work, and their memory is for others.
    while to_do.try_recv().is_ok() {}
    ended
}

/// A thread that reads.
struct Reader {
    to_do: Receiver<Work>,
    done: Sender<Reply>,
    wake: Arc<OwnedFd>,
    agreed: Arc<Agreed>,
    visit: Arc<Visit>,
}

impl Reader {
    /// Works until nobody asks any more.
    fn run(self) {
        for (asked, loan) in &self.to_do {
            if self.visit.has_left() {
                continue;
            }
            // Whoever waited may have gone.
            let _ = self.done.send(answer(&self.agreed, &asked, Some(loan)));
            let _ = rustix::io::write(&*self.wake, &[1; 8]);
        }
    }
}

struct Talk<'a> {
    host: &'a Arc<Host>,
    channel: Channel,
    agreed: &'a Agreed,
    account: &'a Arc<Account>,
    work: Sender<Work>,
    replies: Receiver<Reply>,
    /// Rung by the readers.
    wake: &'a OwnedFd,
    header: [u8; REQUEST_BYTES],
    /// Bytes of it that are there.
    have: usize,
    /// Bytes of a write that are still to come, and are for nobody.
    payload: usize,
    /// A request that waits for memory, and how much.
    waiting: Option<(Asked, usize)>,
    working: usize,
    /// What its replies hold, bytes.
    held: Arc<AtomicUsize>,
    going: VecDeque<Reply>,
    /// When bytes last moved, of those that somebody waits for.
    moved: Instant,
    leaving: bool,
}

impl Talk<'_> {
    fn run(mut self) -> Result<()> {
        while !self.host.keeper.stopped() {
            while let Ok(reply) = self.replies.try_recv() {
                self.working -= 1;
                self.push(reply);
            }
            self.send()?;
            if self.leaving {
                if self.going.is_empty() && self.working == 0 {
                    return Ok(());
                }
            } else {
                self.take_in()?;
                self.send()?;
            }
            self.wait()?;
        }
        Ok(())
    }

    fn push(&mut self, reply: Reply) {
        if self.going.is_empty() {
            self.moved = Instant::now();
        }
        self.going.push_back(reply);
    }

    /// Sends what goes without waiting.
    fn send(&mut self) -> Result<()> {
        while let Some(reply) = self.going.front_mut() {
            while let Some(next) = reply.next() {
                if next.is_empty() {
                    reply.sent(0);
                    continue;
                }
                match self.channel.write(next)? {
                    None => return Ok(()),
                    Some(n) => reply.sent(n),
                }
                self.moved = Instant::now();
            }
            self.going.pop_front();
        }
        self.channel.flush().map(drop)
    }

    /// Whether another request may come.
    fn is_open(&self) -> bool {
        !self.leaving && self.waiting.is_none() && self.working + self.going.len() < IN_FLIGHT
    }

    /// Takes requests that are there without waiting.
    fn take_in(&mut self) -> Result<()> {
        if let Some((asked, bytes)) = self.waiting.take() {
            self.begin(asked, bytes)?;
        }
        let mut dropped = [0; 16 << 10];
        while self.is_open() {
            let read = match self.payload {
                0 => self.channel.read(&mut self.header[self.have..])?,
                left => self.channel.read(&mut dropped[..left.min(16 << 10)])?,
            };
            let Some(n) = read else { return Ok(()) };
            if self.going.is_empty() {
                self.moved = Instant::now();
            }
            match self.payload {
                0 => self.have += n,
                _ => self.payload -= n,
            }
            if self.have == REQUEST_BYTES {
                self.have = 0;
                let asked = decode_request(&self.header)?;
                self.request(asked)?;
            }
        }
        Ok(())
    }

    fn request(&mut self, asked: Asked) -> Result<()> {
        if asked.command == Command::Write as u16 {
            if asked.len > DEFAULT_MAX_PAYLOAD {
                // To read past it would keep us busy.
                return Err(breach(&format!("a write of at most {DEFAULT_MAX_PAYLOAD} bytes"), asked.len));
            }
            self.payload = asked.len as usize;
        }
        match judge(self.agreed, &asked) {
            Verdict::Answer(reply) => self.push(reply),
            Verdict::Work(bytes) => self.begin(asked, bytes)?,
            Verdict::End => (self.leaving, self.moved) = (true, Instant::now()),
        }
        Ok(())
    }

    /// Hands a request to the readers, or keeps it until there is memory for its reply.
    fn begin(&mut self, asked: Asked, bytes: usize) -> Result<()> {
        match self.host.lend(bytes, &self.held, self.account) {
            None => self.waiting = Some((asked, bytes)),
            Some(loan) => {
                self.working += 1;
                let gone = |_| Error::other("the readers of an NBD session have ended");
                self.work.try_send((asked, loan)).map_err(gone)?;
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let pending = !self.going.is_empty() || self.channel.wants_write();
        let half = self.have > 0 || self.payload > 0;
        // Who takes its leave does not wait for ever for what it asked for, and so its place does not, either.
        if (pending || half && self.is_open() || self.leaving) && self.moved.elapsed() > PATIENCE {
            let text = format!("NBD client: expected it to go on within {} s, found it silent", PATIENCE.as_secs());
            return Err(Error::new(ErrorKind::TimedOut, text));
        }
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.is_open());
        flags.set(PollFlags::OUT, pending);
        // While it is not listened to, nothing else tells that it has gone.
        flags.set(PollFlags::RDHUP, !self.is_open());
        let limit = if self.waiting.is_some() { LOOK_FOR_MEMORY } else { LOOK };
        let mut fds = [
            PollFd::from_borrowed_fd(self.channel.fd(), flags),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        wait_for(&mut fds, limit)?;
        let hung_up = fds[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR);
        // Rung or not, the replies are looked for.
        let _ = rustix::io::read(self.wake, &mut [0; 8]);
        if hung_up && !self.is_open() {
            return Err(ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}
