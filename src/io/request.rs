//! One read or write and what is left of it. Both engines drive the same state machine, so that they cannot differ in
//! what they call a short read, an end of file, or an aligned tail.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::Completion;
use super::buffer::{BUFFER_ALIGN, Buffer};
use super::file::DirectFile;

/// How often one request may be refused for a passing reason (EAGAIN, ENOMEM) before it is an error.
const MAX_REFUSALS: u32 = 1000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
}

/// One request on its way.
#[derive(Debug)]
pub(super) struct Request {
    token: u64,
    kind: Kind,
    offset: u64,
    buffer: Buffer,
    len: usize,
    /// Bytes that are certainly moved; where the next piece starts.
    done: usize,
    refusals: u32,
    stalled: bool,
    /// When the kernel first had it; until then, when it was queued.
    started: Instant,
    submitted: bool,
}

/// What to ask of the kernel next: `bytes` at `offset` of `fd`, to or from the buffer's memory.
pub(super) struct Piece<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) write: bool,
    pub(super) offset: u64,
    /// A part of the request's own buffer. Valid as long as the request lives, wherever it is moved to: the memory is
    /// the mapping, not the struct.
    pub(super) memory: *mut u8,
    pub(super) bytes: usize,
}

/// What to do after the kernel answered.
pub(super) enum Verdict {
    /// Ask for the next piece.
    More,
    /// Ask again, later and for less at a time: the kernel was short of something.
    Later,
    /// Finished, well or not.
    Done(Result<()>),
}

impl Request {
    pub(super) fn read(token: u64, offset: u64, buffer: Buffer, len: usize) -> Request {
        Request::new(token, Kind::Read, offset, buffer, len)
    }

    pub(super) fn write(token: u64, offset: u64, buffer: Buffer) -> Request {
        let len = buffer.len();
        Request::new(token, Kind::Write, offset, buffer, len)
    }

    fn new(token: u64, kind: Kind, offset: u64, buffer: Buffer, len: usize) -> Request {
        Request {
            token,
            kind,
            offset,
            buffer,
            len,
            done: 0,
            refusals: 0,
            stalled: false,
            started: Instant::now(),
            submitted: false,
        }
    }

    /// The next piece; `Ok(None)` when there was nothing to move at all.
    pub(super) fn piece<'f>(&mut self, file: &'f DirectFile) -> Result<Option<Piece<'f>>> {
        if self.len > self.buffer.capacity() {
            let text = format!("a read of {} bytes into a buffer of {}", self.len, self.buffer.capacity());
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        let left = self.len - self.done;
        if left == 0 {
            return Ok(None);
        }
        let at = u64::try_from(self.done).ok().and_then(|done| self.offset.checked_add(done));
        let end = u64::try_from(left).ok().and_then(|left| at?.checked_add(left));
        // The kernel's offsets are signed; rounding a read up must not pass their end either.
        let (Some(at), Some(_)) = (at, end.filter(|end| *end <= i64::MAX as u64 - BUFFER_ALIGN as u64)) else {
            return Err(Error::new(ErrorKind::InvalidInput, "the request ends beyond the largest possible offset"));
        };
        let align = file.align_usize();
        let aligned = at.is_multiple_of(u64::from(file.align())) && self.done.is_multiple_of(align);
        let (direct, bytes) = if !file.is_direct() || !aligned {
            (false, left)
        } else if self.kind == Kind::Read {
            // Rounded up: the mapping is a multiple of BUFFER_ALIGN ≥ align, and the file's end cuts the answer short.
            (true, left.next_multiple_of(align))
        } else if left.is_multiple_of(align) {
            (true, left)
        } else {
            // An unaligned tail: whole 4096s go direct, only the last page through the page cache. Cutting at `align`
            // instead would let one page be written both ways, and a dirty page written back late would then put old
            // sectors over new ones.
            match left - left % BUFFER_ALIGN {
                0 => (false, left),
                whole => (true, whole),
            }
        };
        let fd = if direct { file.fd() } else { file.buffered()? };
        let done = self.done;
        let part = &mut self.buffer.whole_mut()[done..done + bytes];
        Ok(Some(Piece { fd, write: self.kind == Kind::Write, offset: at, memory: part.as_mut_ptr(), bytes }))
    }

    /// Books the kernel's answer to the last piece: bytes moved, or the error.
    pub(super) fn book(&mut self, file: &DirectFile, answer: Result<usize>) -> Verdict {
        let moved = match answer {
            Ok(moved) => moved,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::EINTR) => Verdict::More,
                    Some(libc::EAGAIN | libc::ENOMEM) if self.refusals < MAX_REFUSALS => {
                        self.refusals += 1;
                        Verdict::Later
                    }
                    _ => Verdict::Done(Err(error)),
                };
            }
        };
        self.refusals = 0;
        let before = self.done;
        if before + moved >= self.len {
            self.done = self.len;
            return Verdict::Done(Ok(()));
        }
        // Short. Continue from the last aligned byte, and ask again once where that is no step forward: a file that ends
        // here answers short again.
        self.done = before + if file.is_direct() { moved - moved % file.align_usize() } else { moved };
        if self.done > before {
            self.stalled = false;
            return Verdict::More;
        }
        if moved > 0 && !self.stalled {
            self.stalled = true;
            return Verdict::More;
        }
        Verdict::Done(Err(match self.kind {
            Kind::Read => Error::new(
                ErrorKind::UnexpectedEof,
                format!("expected {} bytes at offset {}, the end came after {}", self.len, self.offset, before + moved),
            ),
            Kind::Write => Error::new(
                ErrorKind::WriteZero,
                format!("wrote {} of {} bytes at offset {}", before + moved, self.len, self.offset),
            ),
        }))
    }

    /// How often in a row the kernel put this request off.
    pub(super) fn refusals(&self) -> u32 {
        self.refusals
    }

    /// Turns it into what the caller gets.
    pub(super) fn finish(mut self, result: Result<()>) -> Completion {
        if result.is_ok() && self.kind == Kind::Read {
            self.buffer.set_len(self.len);
        }
        Completion { token: self.token, buffer: Some(self.buffer), result, elapsed: self.started.elapsed() }
    }

    /// The same where the kernel may still use the buffer: it must stay mapped, so it is given up.
    pub(super) fn abandon(self, result: Result<()>) -> Completion {
        let completion = Completion { token: self.token, buffer: None, result, elapsed: self.started.elapsed() };
        std::mem::forget(self.buffer);
        completion
    }

    /// Starts the clock, at the first piece only.
    pub(super) fn submitted(&mut self) {
        if !self.submitted {
            (self.submitted, self.started) = (true, Instant::now());
        }
    }

    /// The caller's number.
    pub(super) fn token(&self) -> u64 {
        self.token
    }

    /// Runs the request to its end by pread and pwrite on this thread.
    pub(super) fn run(&mut self, file: &DirectFile) -> Result<()> {
        loop {
            let Some(piece) = self.piece(file)? else { return Ok(()) };
            // SAFETY: `memory` and `bytes` are a part of the buffer that `self` owns; `self` is borrowed mutably, and no
            // other reference to the buffer exists until the slice is gone.
            let part = unsafe { std::slice::from_raw_parts_mut(piece.memory, piece.bytes) };
            let answer = if piece.write {
                rustix::io::pwrite(piece.fd, part, piece.offset)
            } else {
                rustix::io::pread(piece.fd, part, piece.offset)
            };
            match self.book(file, answer.map_err(Error::from)) {
                Verdict::More => {}
                Verdict::Later => std::thread::sleep(pause(self.refusals)),
                Verdict::Done(result) => return result,
            }
        }
    }
}

/// How long to leave a kernel alone that is short of memory: 1 ms at first, 20 ms at most.
pub(super) fn pause(refusals: u32) -> std::time::Duration {
    std::time::Duration::from_millis(u64::from(refusals.clamp(1, 20)))
}
