//! From a request to what answers it.

use super::handshake::{ALLOCATION_ID, Agreed};
use super::wire::{Asked, Said, chunk, simple};
use super::{Loan, Unread};
use crate::copy::zeros::is_zero;
use crate::nbd::wire::{Command, DEFAULT_MAX_PAYLOAD, DF, FUA, REQ_ONE, Style};
use std::collections::VecDeque;
use std::ops::Range;

/// Zeros are not sent from this length on, in whole pieces of it.
const HOLE_BYTES: usize = 64 << 10;
/// Extents in one reply; the client asks again behind them.
const MAX_EXTENTS: usize = 4096;

/// What answers a request: pieces that go out one behind the other, each a head and a part of `bytes`.
pub struct Reply {
    bytes: Vec<u8>,
    pieces: VecDeque<(Vec<u8>, Range<usize>)>,
    _loan: Option<Loan>,
}

impl Reply {
    /// All in one short piece.
    pub fn short(head: Vec<u8>) -> Reply {
        Reply { bytes: Vec::new(), pieces: [(head, 0..0)].into(), _loan: None }
    }

    /// The error `code`, in the session's style.
    pub fn error(style: Style, cookie: u64, code: i32) -> Reply {
        let code = code.unsigned_abs();
        Reply::short(match style {
            Style::Simple => simple(cookie, code),
            _ => chunk(cookie, true, &Said::Error(code)),
        })
    }

    /// What is to be sent next; `None` when it is all out.
    pub fn next(&self) -> Option<&[u8]> {
        let (head, part) = self.pieces.front()?;
        Some(if head.is_empty() { &self.bytes[part.clone()] } else { head })
    }

    /// `n` bytes of [`Reply::next`] were sent.
    pub fn sent(&mut self, n: usize) {
        let Some((head, part)) = self.pieces.front_mut() else { return };
        match head.is_empty() {
            true => part.start = part.end.min(part.start + n),
            false => drop(head.drain(..n.min(head.len()))),
        }
        if head.is_empty() && part.start >= part.end {
            self.pieces.pop_front();
        }
    }
}

/// What is to be done with a request.
pub enum Verdict {
    /// It is answered already; a write's payload is still to come.
    Answer(Reply),
    /// It is to be worked on, and its reply holds so many bytes.
    Work(usize),
    /// The client takes its leave.
    End,
}

/// Judges a request by its header.
pub fn judge(agreed: &Agreed, asked: &Asked) -> Verdict {
    let style = agreed.style;
    let refuse = |code| Verdict::Answer(Reply::error(style, asked.cookie, code));
    let Some(command) = Command::of(asked.command) else { return refuse(libc::EINVAL) };
    let allowed = match (command, style) {
        (Command::Read, Style::Simple) => FUA,
        (Command::Read, _) => FUA | DF,
        (Command::BlockStatus, _) => FUA | REQ_ONE,
        (Command::Flush, _) => FUA,
        // Refused whatever they say.
        (Command::Write | Command::Trim | Command::WriteZeroes | Command::Disconnect, _) => u16::MAX,
    };
    if asked.flags & !allowed != 0 {
        return refuse(libc::EINVAL);
    }
    let sizes = agreed.export.sizes();
    let len = u64::from(asked.len);
    let least = u64::from(sizes.minimum);
    let inside = len > 0
        && asked.offset.checked_add(len).is_some_and(|end| end <= agreed.export.bytes())
        && asked.offset.is_multiple_of(least)
        && len.is_multiple_of(least);
    match command {
        Command::Disconnect => Verdict::End,
        Command::Write | Command::Trim | Command::WriteZeroes => refuse(libc::EPERM),
        // Nothing was ever written.
        Command::Flush => Verdict::Answer(match style {
            Style::Simple => Reply::short(simple(asked.cookie, 0)),
            _ => Reply::short(chunk(asked.cookie, true, &Said::Nothing)),
        }),
        Command::Read if inside && asked.len <= sizes.maximum.min(DEFAULT_MAX_PAYLOAD) => {
            Verdict::Work(asked.len as usize)
        }
        Command::BlockStatus if inside && agreed.status => Verdict::Work(16 * MAX_EXTENTS),
        Command::Read | Command::BlockStatus => refuse(libc::EINVAL),
    }
}

/// Works on a read or a question about holes.
pub fn answer(agreed: &Agreed, asked: &Asked, loan: Option<Loan>) -> Reply {
    let cookie = asked.cookie;
    let worked = match Command::of(asked.command) {
        Some(Command::BlockStatus) => status(agreed, asked).map(|head| Reply { _loan: loan, ..Reply::short(head) }),
        _ => read(agreed, asked, loan),
    };
    worked.unwrap_or_else(|Unread { offset, error }| match agreed.style {
        Style::Simple => Reply::short(simple(cookie, error)),
        _ => Reply::short(chunk(cookie, true, &Said::ErrorAt(error, offset))),
    })
}

fn status(agreed: &Agreed, asked: &Asked) -> Result<Vec<u8>, Unread> {
    let most = if asked.flags & REQ_ONE == 0 { MAX_EXTENTS } else { 1 };
    let extents = agreed.export.extents(asked.offset, u64::from(asked.len), most)?;
    Ok(chunk(asked.cookie, true, &Said::Status(ALLOCATION_ID, &extents)))
}

fn read(agreed: &Agreed, asked: &Asked, loan: Option<Loan>) -> Result<Reply, Unread> {
    let (cookie, len) = (asked.cookie, asked.len as usize);
    let mut bytes = vec![0; len];
    agreed.export.read(asked.offset, &mut bytes)?;
    let mut pieces = VecDeque::new();
    if agreed.style == Style::Simple {
        pieces.push_back((simple(cookie, 0), 0..len));
        return Ok(Reply { bytes, pieces, _loan: loan });
    }
    let runs = if asked.flags & DF == 0 { runs(&bytes) } else { vec![(0..len, true)] };
    let count = runs.len();
    for (at, (run, data)) in runs.into_iter().enumerate() {
        let (offset, last) = (asked.offset + run.start as u64, at + 1 == count);
        pieces.push_back(match data {
            true => (chunk(cookie, last, &Said::Data(offset, run.len())), run),
            false => (chunk(cookie, last, &Said::Hole(offset, run.len())), 0..0),
        });
    }
    Ok(Reply { bytes, pieces, _loan: loan })
}

/// Where data are (true) and where zeros that need not be sent.
fn runs(bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    for (index, piece) in bytes.chunks(HOLE_BYTES).enumerate() {
        let start = index * HOLE_BYTES;
        let data = piece.len() < HOLE_BYTES || !is_zero(piece);
        match runs.last_mut() {
            Some((run, same)) if *same == data => run.end = start + piece.len(),
            _ => runs.push((start..start + piece.len(), data)),
        }
    }
    runs
}
