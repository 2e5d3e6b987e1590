//! Many requests in flight over several sessions with one export, as any other queue.

use super::connection::{Connection, Finished};
use crate::io::{BlockIo, Buffer, Completion, Waited};
use rustix::event::PollFd;
use std::time::{Duration, Instant};

/// Requests in flight on each session.
const DEPTH: usize = 16;

/// The queue; one thread uses it.
pub struct NbdQueue {
    sessions: Vec<Connection>,
    depth: usize,
}

impl NbdQueue {
    /// Over `sessions`, of which there is at least one; `depth` requests in all.
    pub fn new(sessions: Vec<Connection>, depth: usize) -> NbdQueue {
        let depth = depth.clamp(1, DEPTH * sessions.len());
        NbdQueue { sessions, depth }
    }

    fn idlest(&mut self) -> Option<&mut Connection> {
        self.sessions.iter_mut().min_by_key(|session| session.in_flight())
    }

    fn ready(&mut self) -> Option<Completion> {
        let Finished { token, buffer, result, elapsed, .. } =
            self.sessions.iter_mut().find_map(Connection::finished)?;
        Some(Completion { token, buffer, result, elapsed })
    }
}

impl BlockIo for NbdQueue {
    fn read(&mut self, token: u64, offset: u64, buffer: Buffer, len: usize) {
        if let Some(session) = self.idlest() {
            session.read(token, offset, buffer, len);
        }
    }

    fn write(&mut self, token: u64, offset: u64, buffer: Buffer) {
        if let Some(session) = self.idlest() {
            session.write(token, 0, offset, buffer);
        }
    }

    fn wait_for(&mut self, limit: Duration) -> Waited {
        let until = Instant::now() + limit;
        loop {
            self.sessions.iter_mut().for_each(Connection::pump);
            if let Some(completion) = self.ready() {
                return Waited::Done(completion);
            }
            if self.in_flight() == 0 {
                return Waited::Idle;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::Late;
            }
            let busy = self.sessions.iter().filter(|session| session.in_flight() > 0);
            let mut fds: Vec<_> =
                busy.map(|session| PollFd::from_borrowed_fd(session.fd(), session.interest())).collect();
            if super::channel::wait_for(&mut fds, left).is_err() {
                // The system refuses to wait: the sessions will say what is wrong, if anything is.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn abandon(self: Box<Self>) {
        // No kernel writes to our buffers later: nothing is left behind.
    }

    fn in_flight(&self) -> usize {
        self.sessions.iter().map(Connection::in_flight).sum()
    }

    fn depth(&self) -> usize {
        self.depth
    }
}
