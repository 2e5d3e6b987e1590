//! The io_uring engine: one ring per queue, used by one thread at a time, plain reads and writes on unregistered
//! buffers (registering them fails under the default memlock limit and gains little with requests of a mebibyte).
//!
//! Who owns the memory: a request is in exactly one place: `waiting` (the kernel does not know it), `slots` (the kernel
//! may touch its buffer at any moment), or `finished`. An entry's `user_data` is its slot. A slot is emptied only by its
//! completion, so a buffer cannot go home while the kernel writes to it; drop waits for the last one, also on panic.

use std::collections::VecDeque;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode, types};

use super::request::{Request, Verdict, pause};
use super::{BlockIo, Buffer, Completion, DirectFile, Waited};

/// How often in a row the ring itself may fail for a passing reason before it counts as broken.
const MAX_RING_FAILURES: u32 = 1000;

pub(super) struct Uring {
    ring: IoUring,
    file: Arc<DirectFile>,
    /// What the kernel has, by slot; as many as the submission queue has entries at most.
    slots: Vec<Option<Request>>,
    free_slots: Vec<usize>,
    waiting: VecDeque<Request>,
    finished: VecDeque<Completion>,
    /// How many may be in the kernel at a time: the depth, halved whenever the kernel runs short of memory.
    limit: usize,
    /// Not None once the ring failed for good; every further request fails with it.
    broken: Option<i32>,
}

/// Whether the system lets us have a ring with what we use.
pub(super) fn probe() -> Result<()> {
    ring(1).map(drop)
}

fn ring(depth: usize) -> Result<IoUring> {
    let entries = u32::try_from(depth.next_power_of_two()).map_err(|_| Error::other("the queue is too deep"))?;
    // Twice as many completions as submissions, and never more in flight than `depth`: the queue cannot overflow.
    let ring = IoUring::builder().setup_cqsize(entries * 2).build(entries)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if probe.is_supported(opcode::Read::CODE) && probe.is_supported(opcode::Write::CODE) {
        Ok(ring)
    } else {
        Err(Error::new(std::io::ErrorKind::Unsupported, "this kernel's io_uring has no plain read and write"))
    }
}

impl Uring {
    pub(super) fn new(file: Arc<DirectFile>, depth: usize) -> Result<Uring> {
        Ok(Uring {
            ring: ring(depth)?,
            file,
            slots: (0..depth).map(|_| None).collect(),
            free_slots: (0..depth).rev().collect(),
            waiting: VecDeque::new(),
            finished: VecDeque::new(),
            limit: depth,
            broken: None,
        })
    }

    fn in_kernel(&self) -> usize {
        self.slots.len() - self.free_slots.len()
    }

    fn queue(&mut self, request: Request) {
        self.waiting.push_back(request);
        self.reap();
        self.fill();
        // Started now rather than at `wait`: the disk works while the caller computes. A failure shows up again there.
        if self.broken.is_none() {
            let _ = self.ring.submit();
        }
    }

    /// Moves waiting requests into free slots and submission entries.
    fn fill(&mut self) {
        while self.broken.is_none() && self.in_kernel() < self.limit {
            let Some(mut request) = self.waiting.pop_front() else { return };
            let piece = match request.piece(&self.file) {
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    self.finished.push_back(request.finish(Ok(())));
                    continue;
                }
                Err(error) => {
                    self.finished.push_back(request.finish(Err(error)));
                    continue;
                }
            };
            let Ok(bytes) = u32::try_from(piece.bytes) else {
                self.finished.push_back(request.finish(Err(Error::other("the request is longer than 4 GiB"))));
                continue;
            };
            let Some(slot) = self.free_slots.pop() else {
                self.waiting.push_front(request);
                return;
            };
            let fd = types::Fd(piece.fd.as_raw_fd());
            let entry = if piece.write {
                opcode::Write::new(fd, piece.memory, bytes).offset(piece.offset).build()
            } else {
                opcode::Read::new(fd, piece.memory, bytes).offset(piece.offset).build()
            };
            // SAFETY: the descriptor lives in `self.file`, which drops after `drop` has drained the ring. The memory is a
            // mapping owned by `request`, which goes into `slots` right below and stays until its completion; moving the
            // request does not move the mapping, and nobody touches it in between.
            let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
            if pushed.is_err() {
                self.free_slots.push(slot);
                self.waiting.push_front(request);
                return;
            }
            request.submitted();
            self.slots[slot] = Some(request);
        }
    }

    /// Takes what the kernel has finished, without blocking.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            let Some((slot, mut request)) = usize::try_from(entry.user_data())
                .ok()
                .and_then(|slot| Some((slot, self.slots.get_mut(slot)?.take()?)))
            else {
                continue;
            };
            self.free_slots.push(slot);
            let answer = usize::try_from(entry.result()).map_err(|_| Error::from_raw_os_error(-entry.result()));
            match request.book(&self.file, answer) {
                Verdict::Done(result) => self.finished.push_back(request.finish(result)),
                Verdict::More => self.waiting.push_front(request),
                Verdict::Later => {
                    self.limit = (self.limit / 2).max(1);
                    // With others in the kernel their completion is the pause; alone, take one.
                    if self.in_kernel() == 0 {
                        std::thread::sleep(pause(request.refusals()));
                    }
                    self.waiting.push_front(request);
                }
            }
        }
    }

    /// Reaps and submits; a finished request, if there is one.
    fn ready(&mut self) -> Option<Completion> {
        if self.broken.is_none() {
            self.reap();
            self.fill();
        }
        if let Some(code) = self.broken
            && let Some(request) = self.waiting.pop_front()
        {
            self.finished.push_back(request.finish(Err(Error::from_raw_os_error(code))));
        }
        let completion = self.finished.pop_front()?;
        // Continued pieces that `fill` has just queued should not wait for the next call.
        if self.broken.is_none() && !self.ring.submission().is_empty() {
            let _ = self.ring.submit();
        }
        Some(completion)
    }

    /// Submits, and blocks until a completion is there or the time is over. An error is final.
    fn look(&mut self, limit: Duration) -> Result<()> {
        match self.ring.submit() {
            Ok(_) => {}
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) =>
            {
                std::thread::sleep(pause(1));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        // By poll(2) rather than by a timeout in the ring: kernels before 5.11 have none that leaves no entry behind.
        let limit =
            rustix::event::Timespec::try_from(limit).map_err(|_| Error::other("the time to wait is too long"))?;
        // SAFETY: the ring's descriptor lives as long as the ring, which is borrowed here.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        let mut wanted = [rustix::event::PollFd::new(&ring, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut wanted, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Submits and blocks until at least one completion is there. An error is final.
    fn enter(&mut self) -> Result<()> {
        for failures in 1..=MAX_RING_FAILURES {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                        // EBUSY: completions must be taken first, which the caller does as soon as there are some.
                        if !self.ring.completion().is_empty() {
                            return Ok(());
                        }
                        std::thread::sleep(pause(failures));
                    }
                    _ => return Err(error),
                },
            }
        }
        Err(Error::from_raw_os_error(libc::EAGAIN))
    }

    /// The ring is beyond repair: everything fails, and what the kernel may still touch is never unmapped.
    fn give_up(&mut self, error: &Error) {
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        self.broken = Some(code);
        tracing::error!(%error, file = %self.file.path().display(), "io_uring failed");
        for slot in &mut self.slots {
            if let Some(request) = slot.take() {
                self.finished.push_back(request.abandon(Err(Error::from_raw_os_error(code))));
            }
        }
        self.free_slots = (0..self.slots.len()).rev().collect();
    }
}

impl BlockIo for Uring {
    fn read(&mut self, token: u64, offset: u64, buffer: Buffer, len: usize) {
        self.queue(Request::read(token, offset, buffer, len));
    }

    fn write(&mut self, token: u64, offset: u64, buffer: Buffer) {
        self.queue(Request::write(token, offset, buffer));
    }

    fn wait(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.ready() {
                return Some(completion);
            }
            if self.in_kernel() == 0 {
                if self.waiting.is_empty() {
                    return None;
                }
                continue;
            }
            if let Err(error) = self.enter() {
                self.give_up(&error);
            }
        }
    }

    fn wait_for(&mut self, limit: Duration) -> Waited {
        let until = Instant::now() + limit;
        loop {
            if let Some(completion) = self.ready() {
                return Waited::Done(completion);
            }
            if self.in_kernel() == 0 {
                if self.waiting.is_empty() {
                    return Waited::Idle;
                }
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::Late;
            }
            if let Err(error) = self.look(left) {
                self.give_up(&error);
            }
        }
    }

    fn abandon(mut self: Box<Self>) {
        self.waiting.clear();
        if self.in_kernel() > 0 {
            // Ring, descriptor and buffers stay as they are until the process ends.
            std::mem::forget(self);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_kernel() + self.waiting.len() + self.finished.len()
    }

    fn depth(&self) -> usize {
        self.slots.len()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // What the kernel has must come back before its memory may go home.
        self.waiting.clear();
        while self.broken.is_none() && self.in_kernel() > 0 {
            self.reap();
            self.waiting.clear();
            if self.in_kernel() > 0
                && let Err(error) = self.enter()
            {
                self.give_up(&error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Access, Pool};

    /// A ring that fails for good answers every request with an error, and gives up the memory the kernel may still use.
    #[test]
    fn a_broken_ring_loses_no_request() {
        if let Err(error) = probe() {
            eprintln!("not tested: io_uring is not available ({error})");
            return;
        }
        let path = std::env::current_exe().unwrap();
        let pool = Pool::new(4096, 5).unwrap();
        let mut queue = Uring::new(Arc::new(DirectFile::open(&path, Access::Read).unwrap()), 2).unwrap();
        for token in 0..4 {
            queue.read(token, 0, pool.take(), 4096);
        }
        let in_kernel = queue.in_kernel();
        queue.give_up(&Error::from_raw_os_error(libc::EFAULT));
        queue.read(4, 0, pool.take(), 4096);
        let mut tokens = Vec::new();
        let mut kept = 0;
        while let Some(completion) = queue.wait() {
            tokens.push(completion.token);
            kept += usize::from(completion.buffer.is_none());
        }
        tokens.sort_unstable();
        assert_eq!((tokens, kept, queue.in_flight()), (vec![0, 1, 2, 3, 4], in_kernel, 0));
    }
}
