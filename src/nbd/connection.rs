//! One session after the handshake: requests in flight, and the replies to them in any order.
//!
//! Nothing here blocks but [`Connection::call`]. A *job* is what the caller asked for; it goes out as one or more *parts* of
//! lengths that the server takes. Whatever breaks the protocol ends the session, and every job in flight with it: after one
//! wrong byte no later byte means anything.

use super::channel::{Channel, wait_for};
use super::handshake::Export;
use super::wire::{
    Chunk, Command, Extent, Input, Reply, ReplyKind, Request, Style, decode_error, decode_reply, decode_status,
    os_error, reply_header_bytes, wrong,
};
use crate::io::Buffer;
use rustix::event::{PollFd, PollFlags};
use std::collections::{HashMap, VecDeque};
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::time::{Duration, Instant};

/// The longest part of what carries no payload, bytes; a multiple of every block size.
const MAX_EFFECT_BYTES: u64 = 1 << 30;
/// Error chunks in one reply; more only keep us busy.
const MOST_COMPLAINTS: usize = 64;
/// A chunk of a read has at least so many bytes on average; a server that cuts finer wants to keep us busy.
const LEAST_CHUNK_BYTES: usize = 512;

/// A session.
pub struct Connection {
    channel: Channel,
    export: Export,
    next: u64,
    jobs: HashMap<u64, Job>,
    parts: HashMap<u64, Part>,
    outgoing: VecDeque<Outgoing>,
    header: [u8; 32],
    small: Vec<u8>,
    inbound: Inbound,
    finished: VecDeque<Finished>,
    dead: Option<(ErrorKind, String)>,
}

/// What became of a job.
#[derive(Debug)]
pub struct Finished {
    /// The caller's number.
    pub token: u64,
    /// What a read or write used.
    pub buffer: Option<Buffer>,
    /// How it ended.
    pub result: Result<()>,
    /// From asking to the last reply.
    pub elapsed: Duration,
    /// Extents from the job's offset on, for each context in the order of [`Export::contexts`].
    pub status: Vec<Vec<Extent>>,
}

struct Job {
    token: u64,
    started: Instant,
    buffer: Option<Buffer>,
    parts: usize,
    error: Option<Error>,
    status: Vec<Vec<Extent>>,
}

struct Part {
    job: u64,
    command: Command,
    offset: u64,
    len: u64,
    /// Where its bytes are in the job's buffer.
    at: usize,
    sent: bool,
    error: Option<u32>,
    /// Error chunks so far.
    complaints: usize,
    covered: Covered,
    /// Contexts that were told, by their place.
    told: Vec<bool>,
}

enum Outgoing {
    Header { bytes: Vec<u8>, from: usize, ends: Option<u64> },
    Payload { part: u64, from: usize },
}

/// What the next bytes are.
enum Inbound {
    /// A header, of which so many bytes are there.
    Header { have: usize },
    /// The offset before the data of a chunk.
    Offset { part: u64, data: usize, last: bool },
    /// Bytes for a read.
    Data { part: u64, at: usize, left: usize, last: bool },
    /// A small payload, gathered whole.
    Small { part: u64, chunk: Chunk, len: usize, last: bool },
}

impl Connection {
    /// Begins where the handshake ended.
    pub fn new(channel: Channel, export: Export) -> Connection {
        Connection {
            channel,
            export,
            next: 0,
            jobs: HashMap::new(),
            parts: HashMap::new(),
            outgoing: VecDeque::new(),
            header: [0; 32],
            small: Vec::new(),
            inbound: Inbound::Header { have: 0 },
            finished: VecDeque::new(),
            dead: None,
        }
    }

    /// What was negotiated.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Jobs that were asked for and not taken by [`Connection::finished`].
    pub fn in_flight(&self) -> usize {
        self.jobs.len() + self.finished.len()
    }

    /// A job that ended, if there is one.
    pub fn finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Reads `len` bytes at `offset` into `buffer`.
    pub fn read(&mut self, token: u64, offset: u64, mut buffer: Buffer, len: usize) {
        if len > buffer.capacity() {
            let text = format!("a read of {len} bytes into a buffer of {}", buffer.capacity());
            return self.refuse(token, Some(buffer), Error::new(ErrorKind::InvalidInput, text));
        }
        buffer.set_len(len);
        self.ask(token, Command::Read, 0, offset, len as u64, Some(buffer));
    }

    /// Writes `buffer` at `offset`; `flags` as in [`super::wire`].
    pub fn write(&mut self, token: u64, flags: u16, offset: u64, buffer: Buffer) {
        let len = buffer.len() as u64;
        self.ask(token, Command::Write, flags, offset, len, Some(buffer));
    }

    /// Flushes, zeroes, trims, or asks for block status.
    pub fn command(&mut self, token: u64, command: Command, flags: u16, offset: u64, len: u64) {
        self.ask(token, command, flags, offset, len, None);
    }

    /// As [`Connection::command`], and waits for its end. For a session of its own: jobs of others are not handed out here.
    ///
    /// # Errors
    /// The server refuses, the session broke, or `limit` is over.
    pub fn call(&mut self, command: Command, flags: u16, offset: u64, len: u64, limit: Duration) -> Result<Finished> {
        let until = Instant::now() + limit;
        self.command(u64::MAX, command, flags, offset, len);
        loop {
            if let Some(finished) = self.finished.pop_front() {
                return match finished.result {
                    Ok(()) => Ok(finished),
                    Err(error) => Err(error),
                };
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.die(&ErrorKind::TimedOut.into());
                continue;
            }
            let flags = self.interest();
            wait_for(&mut [PollFd::from_borrowed_fd(self.channel.fd(), flags)], left)?;
            self.pump();
        }
    }

    fn refuse(&mut self, token: u64, buffer: Option<Buffer>, error: Error) {
        let elapsed = Duration::ZERO;
        self.finished.push_back(Finished { token, buffer, result: Err(error), elapsed, status: Vec::new() });
    }

    fn ask(&mut self, token: u64, command: Command, flags: u16, offset: u64, len: u64, buffer: Option<Buffer>) {
        if let Some((kind, text)) = &self.dead {
            let error = Error::new(*kind, text.clone());
            return self.refuse(token, buffer, error);
        }
        if let Err(error) = self.check(command, offset, len) {
            return self.refuse(token, buffer, error);
        }
        let job = self.number();
        let longest = match command {
            Command::Read | Command::Write => self.export.sizes.longest(),
            _ => MAX_EFFECT_BYTES,
        };
        let mut parts = 0;
        let mut at = 0;
        // A flush has no length, and is a part all the same.
        while at < len || parts == 0 {
            let bytes = longest.min(len - at);
            self.send_part(job, command, flags, offset + at, bytes, at as usize);
            parts += 1;
            at += bytes;
        }
        let status = vec![Vec::new(); self.export.contexts.len()];
        self.jobs.insert(job, Job { token, started: Instant::now(), buffer, parts, error: None, status });
        // Started now rather than when somebody waits.
        self.pump();
    }

    fn check(&self, command: Command, offset: u64, len: u64) -> Result<()> {
        let invalid = |text: String| Err(Error::new(ErrorKind::InvalidInput, text));
        if offset.checked_add(len).is_none_or(|end| end > self.export.bytes) {
            let text = format!("{len} bytes at {offset} of an export of {} bytes", self.export.bytes);
            return Err(Error::new(ErrorKind::UnexpectedEof, text));
        }
        let least = u64::from(self.export.sizes.minimum);
        if !offset.is_multiple_of(least) || !len.is_multiple_of(least) {
            return invalid(format!("{len} bytes at {offset} of an export with blocks of {least} bytes"));
        }
        match (command, len) {
            (Command::Flush | Command::Disconnect, 0) => Ok(()),
            (Command::Flush | Command::Disconnect, _) => invalid("a flush of some bytes".into()),
            (_, 0) => invalid("a request for no bytes".into()),
            (Command::BlockStatus, _) if self.export.contexts.is_empty() => {
                Err(Error::new(ErrorKind::Unsupported, "the NBD server tells nothing of holes"))
            }
            _ => Ok(()),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn send_part(&mut self, job: u64, command: Command, flags: u16, offset: u64, len: u64, at: usize) {
        let cookie = self.number();
        let request = Request { command, flags, cookie, offset, len };
        // Parts are shorter than 4 GiB, so this cannot fail in any style.
        let bytes = request.encode(self.export.style).unwrap_or_default();
        let payload = command == Command::Write;
        self.outgoing.push_back(Outgoing::Header { bytes, from: 0, ends: (!payload).then_some(cookie) });
        if payload {
            self.outgoing.push_back(Outgoing::Payload { part: cookie, from: 0 });
        }
        let told = vec![false; self.export.contexts.len()];
        let covered = Covered::default();
        self.parts.insert(
            cookie,
            Part { job, command, offset, len, at, sent: false, error: None, complaints: 0, covered, told },
        );
    }

    /// Why the session is over, if it is.
    pub fn ended(&self) -> Option<Error> {
        self.dead.as_ref().map(|(kind, text)| Error::new(*kind, text.clone()))
    }

    /// Ends the session: all that is in flight fails with `error`.
    pub fn end(&mut self, error: &Error) {
        if self.dead.is_none() {
            self.die(error);
        }
    }

    /// What to wait for on [`Connection::fd`].
    pub fn interest(&self) -> PollFlags {
        // What was taken from us may still wait within TLS.
        match self.outgoing.is_empty() && !self.channel.wants_write() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        }
    }

    /// What to wait on.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.channel.fd()
    }

    /// Sends and takes what goes without waiting.
    pub fn pump(&mut self) {
        if self.dead.is_none()
            && let Err(error) = self.send().and_then(|()| self.take_in())
        {
            self.die(&error);
        }
    }

    /// The session is over, and all that is in flight with it.
    fn die(&mut self, error: &Error) {
        let text = match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "the NBD server ended the session".to_owned()
            }
            _ => error.to_string(),
        };
        let kind = match error.kind() {
            ErrorKind::UnexpectedEof => ErrorKind::ConnectionAborted,
            kind => kind,
        };
        self.outgoing.clear();
        self.parts.clear();
        for job in std::mem::take(&mut self.jobs).into_values() {
            self.finished.push_back(job.finish(Err(Error::new(kind, text.clone()))));
        }
        self.dead = Some((kind, text));
    }

    fn send(&mut self) -> Result<()> {
        while let Some(next) = self.outgoing.front_mut() {
            let (from, bytes, ends) = match next {
                Outgoing::Header { bytes, from, ends } => (from, &bytes[..], *ends),
                Outgoing::Payload { part, from } => {
                    let Some(found) = self.parts.get(part) else { return Err(gone()) };
                    let buffer = self.jobs.get(&found.job).and_then(|job| job.buffer.as_ref()).ok_or_else(gone)?;
                    (from, &buffer[found.at..][..found.len as usize], Some(*part))
                }
            };
            match self.channel.write(&bytes[*from..])? {
                None => return Ok(()),
                Some(n) => *from += n,
            }
            if *from == bytes.len() {
                if let Some(part) = ends.and_then(|part| self.parts.get_mut(&part)) {
                    part.sent = true;
                }
                self.outgoing.pop_front();
            }
        }
        self.channel.flush().map(drop)
    }

    fn take_in(&mut self) -> Result<()> {
        loop {
            match self.inbound {
                Inbound::Header { have } => {
                    // Every header has 16 bytes at least; the first four say how many more.
                    let want = match have {
                        ..16 => 16,
                        _ => reply_header_bytes(self.export.style, first(&self.header))?,
                    };
                    if have == want {
                        self.inbound = self.header(want)?;
                        continue;
                    }
                    let Some(n) = self.channel.read(&mut self.header[have..want])? else { return Ok(()) };
                    self.inbound = Inbound::Header { have: have + n };
                }
                Inbound::Data { part, at, left, last } => {
                    if left == 0 {
                        self.inbound = self.end_of(part, last)?;
                        continue;
                    }
                    let job = self.parts.get(&part).map(|part| part.job);
                    let buffer = job.and_then(|job| self.jobs.get_mut(&job)?.buffer.as_mut()).ok_or_else(gone)?;
                    let Some(n) = self.channel.read(&mut buffer[at..at + left])? else { return Ok(()) };
                    self.inbound = Inbound::Data { part, at: at + n, left: left - n, last };
                }
                Inbound::Offset { part, data, last } => {
                    if !self.gather(8)? {
                        return Ok(());
                    }
                    let offset = Input(&self.small).u64()?;
                    let at = self.content(part, offset, data as u64)?.start;
                    self.small.clear();
                    self.inbound = Inbound::Data { part, at, left: data, last };
                }
                Inbound::Small { part, chunk, len, last } => {
                    if !self.gather(len)? {
                        return Ok(());
                    }
                    let payload = std::mem::take(&mut self.small);
                    self.small_payload(part, chunk, &payload)?;
                    self.inbound = self.end_of(part, last)?;
                }
            }
        }
    }

    /// Reads on until `small` holds `len` bytes. Memory grows with what has really come.
    fn gather(&mut self, len: usize) -> Result<bool> {
        const STEP: usize = 64 << 10;
        while self.small.len() < len {
            let have = self.small.len();
            self.small.resize(len.min(have + STEP), 0);
            let read = self.channel.read(&mut self.small[have..]);
            self.small.truncate(have + read.as_ref().map_or(0, |n| n.unwrap_or(0)));
            if read?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn header(&mut self, bytes: usize) -> Result<Inbound> {
        let Reply { cookie, kind } = decode_reply(&self.header[..bytes])?;
        let style = self.export.style;
        let Some(part) = self.parts.get_mut(&cookie).filter(|part| part.sent) else {
            return Err(wrong("a reply to a request in flight", format!("one with cookie {cookie}")));
        };
        let command = part.command;
        match kind {
            ReplyKind::Simple { error } => {
                let chunked = matches!(command, Command::Read | Command::BlockStatus) && style != Style::Simple;
                if chunked {
                    return Err(wrong("a structured reply", "a simple one"));
                }
                part.error = Some(error).filter(|error| *error != 0);
                if command == Command::Read && error == 0 {
                    let (offset, len) = (part.offset, part.len);
                    let range = self.content(cookie, offset, len)?;
                    return Ok(Inbound::Data { part: cookie, at: range.start, left: range.len(), last: true });
                }
                self.end_of(cookie, true)
            }
            ReplyKind::Chunk { last, chunk, len, offset } => {
                if offset.is_some_and(|offset| offset != part.offset) {
                    return Err(wrong("the offset of the request", format!("{offset:?}")));
                }
                let fits = match chunk {
                    Chunk::None => return self.end_of(cookie, last),
                    Chunk::Data => command == Command::Read && len - 8 <= part.len,
                    Chunk::Hole => command == Command::Read,
                    Chunk::Status => command == Command::BlockStatus && style == Style::Structured,
                    Chunk::StatusExtended => command == Command::BlockStatus && style == Style::Extended,
                    Chunk::Error => true,
                };
                if !fits {
                    return Err(wrong(&format!("a reply to {command:?}"), format!("{chunk:?} of {len} bytes")));
                }
                let len = len as usize;
                Ok(match chunk {
                    Chunk::Data => Inbound::Offset { part: cookie, data: len - 8, last },
                    _ => Inbound::Small { part: cookie, chunk, len, last },
                })
            }
        }
    }

    /// Where in the job's buffer `len` bytes at `offset` belong, which nothing has told of before.
    fn content(&mut self, cookie: u64, offset: u64, len: u64) -> Result<Range<usize>> {
        let part = self.parts.get_mut(&cookie).ok_or_else(gone)?;
        let from = offset.checked_sub(part.offset);
        let range = from.and_then(|from| Some(from..from.checked_add(len).filter(|end| *end <= part.len)?));
        let new = range.clone().filter(|range| {
            let most = part.len as usize / LEAST_CHUNK_BYTES + 16;
            part.covered.add(range.start as usize..range.end as usize, most)
        });
        let Some(new) = new else {
            return Err(wrong(
                &format!("each of the {} bytes at {} once, in few pieces", part.len, part.offset),
                format!("{len} bytes at {offset}"),
            ));
        };
        Ok(part.at + new.start as usize..part.at + new.end as usize)
    }

    fn small_payload(&mut self, cookie: u64, chunk: Chunk, payload: &[u8]) -> Result<()> {
        match chunk {
            Chunk::Hole => {
                let mut input = Input(payload);
                let (offset, len) = (input.u64()?, u64::from(input.u32()?));
                if len == 0 {
                    return Err(wrong("a hole of some bytes", "an empty one"));
                }
                let range = self.content(cookie, offset, len)?;
                let job = self.parts.get(&cookie).map(|part| part.job);
                let buffer = job.and_then(|job| self.jobs.get_mut(&job)?.buffer.as_mut()).ok_or_else(gone)?;
                buffer[range].fill(0);
                Ok(())
            }
            Chunk::Error => {
                let (error, why) = decode_error(payload)?;
                let part = self.parts.get_mut(&cookie).ok_or_else(gone)?;
                tracing::debug!(error, why, command = ?part.command, offset = part.offset, "an NBD server's error");
                part.error.get_or_insert(error);
                part.complaints += 1;
                match part.complaints > MOST_COMPLAINTS {
                    true => Err(wrong(&format!("at most {MOST_COMPLAINTS} errors in a reply"), "more")),
                    false => Ok(()),
                }
            }
            Chunk::Status | Chunk::StatusExtended => {
                let (id, extents) = decode_status(chunk == Chunk::StatusExtended, payload)?;
                let place = self.export.contexts.iter().position(|(_, number)| *number == id);
                let part = self.parts.get_mut(&cookie).ok_or_else(gone)?;
                let place = place.filter(|place| !std::mem::replace(&mut part.told[*place], true));
                let place = place.ok_or_else(|| wrong("each context once", format!("number {id}")))?;
                let job = self.jobs.get_mut(&part.job).ok_or_else(gone)?;
                add_extents(&mut job.status[place], part.at as u64, part.len, &extents)
            }
            Chunk::None | Chunk::Data => Ok(()),
        }
    }

    /// After a chunk; after the last one the part is done.
    fn end_of(&mut self, cookie: u64, last: bool) -> Result<Inbound> {
        let next = Inbound::Header { have: 0 };
        if !last {
            return Ok(next);
        }
        let part = self.parts.remove(&cookie).ok_or_else(gone)?;
        let whole = match (part.error, part.command) {
            (Some(_), _) => true,
            (None, Command::Read) => part.covered.bytes() as u64 == part.len,
            (None, Command::BlockStatus) => part.told.iter().all(|told| *told),
            _ => true,
        };
        if !whole {
            return Err(wrong(&format!("all that {:?} asked for", part.command), "the end of the reply"));
        }
        let Some(job) = self.jobs.get_mut(&part.job) else { return Err(gone()) };
        job.parts -= 1;
        if let Some(error) = part.error {
            job.error.get_or_insert(os_error(error));
        }
        if job.parts == 0
            && let Some(mut job) = self.jobs.remove(&part.job)
        {
            let result = job.error.take().map_or(Ok(()), Err);
            self.finished.push_back(job.finish(result));
        }
        Ok(next)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A soft disconnect, if the server listens; it is not waited for.
        if self.dead.is_none() && self.outgoing.is_empty() && !self.channel.wants_write() {
            let bye = Request { command: Command::Disconnect, flags: 0, cookie: self.number(), offset: 0, len: 0 };
            if let Ok(bytes) = bye.encode(self.export.style) {
                let _ = self.channel.write(&bytes).and_then(|_| self.channel.flush());
            }
        }
    }
}

impl Job {
    fn finish(self, result: Result<()>) -> Finished {
        let Job { token, started, buffer, status, .. } = self;
        Finished { token, buffer, result, elapsed: started.elapsed(), status }
    }
}

/// Adds what was told of the `len` bytes at `at` of a job. A server may tell less than was asked, or more with its last
/// extent; once something is missing, what comes after the gap is not taken.
fn add_extents(all: &mut Vec<Extent>, at: u64, len: u64, told: &[Extent]) -> Result<()> {
    let known: u64 = all.iter().map(|extent| extent.bytes).sum();
    let mut left = if known == at { len } else { 0 };
    let mut sum = 0_u64;
    for (index, extent) in told.iter().enumerate() {
        sum = sum.saturating_add(extent.bytes);
        if index + 1 < told.len() && sum >= len {
            return Err(wrong(&format!("extents of less than {len} bytes before the last one"), format!("{sum}")));
        }
        let bytes = extent.bytes.min(left);
        left -= bytes;
        if bytes > 0 {
            all.push(Extent { bytes, status: extent.status });
        }
    }
    Ok(())
}

/// The bytes of a part that were told, without overlap.
#[derive(Default)]
struct Covered {
    ranges: Vec<Range<usize>>,
    pieces: usize,
}

impl Covered {
    /// False where `new` overlaps, or is one piece too many.
    fn add(&mut self, new: Range<usize>, most: usize) -> bool {
        self.pieces += 1;
        if self.pieces > most {
            return false;
        }
        let place = self.ranges.partition_point(|range| range.end <= new.start);
        if self.ranges.get(place).is_some_and(|after| after.start < new.end) {
            return false;
        }
        match place.checked_sub(1).and_then(|before| self.ranges.get_mut(before)) {
            Some(before) if before.end == new.start => before.end = new.end,
            _ => self.ranges.insert(place, new),
        }
        true
    }

    fn bytes(&self) -> usize {
        self.ranges.iter().map(ExactSizeIterator::len).sum()
    }
}

fn first(header: &[u8; 32]) -> [u8; 4] {
    [header[0], header[1], header[2], header[3]]
}

/// A part without its job, or the other way round: a bug of ours, told as an error and not as a panic.
fn gone() -> Error {
    Error::other("an NBD request that is not in flight")
}
