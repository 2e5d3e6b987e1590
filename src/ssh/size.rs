//! How large a disk is, where no system can be relied on to say: what it says is a hint, and what can be read decides.

use super::channel::{Answer, Channel, PAGE_WITHIN};
use super::shell::{Hello, Units};
use std::io;

const PAGE: usize = 4096;
/// Larger ones are no disks but sources without end, bytes: what every system's offsets hold.
const MAX_BYTES: u64 = i64::MAX as u64;

/// The size: bytes can be read up to there, and none behind it.
///
/// # Errors
/// The connection ended; a sector at the very end cannot be read, and nobody says whether it is the last one; there is no end.
pub fn find(channel: &mut Channel, hello: &Hello) -> io::Result<u64> {
    match hello.bytes {
        Some(bytes) if bytes <= MAX_BYTES && confirm(channel, bytes)? => Ok(bytes),
        _ => search(channel),
    }
}

/// Whether a disk of `bytes` ends there. A bad sector at its end is no evidence against that.
fn confirm(channel: &mut Channel, bytes: u64) -> io::Result<bool> {
    let (pages, rest) = (bytes / PAGE as u64, (bytes % PAGE as u64) as usize);
    let tail = page(channel, pages)?;
    if tail.got != rest && !(rest > 0 && tail.trailer.is_media()) {
        return Ok(false);
    }
    let Some(last) = pages.checked_sub(1) else { return Ok(true) };
    let last = page(channel, last)?;
    Ok(last.got == PAGE || last.trailer.is_media())
}

/// Doubles, then halves.
fn search(channel: &mut Channel) -> io::Result<u64> {
    // Pages below `there` can be read, as far as was looked; none from `beyond` on.
    let mut there = 0;
    let mut beyond = 1;
    while page(channel, beyond - 1)?.got > 0 {
        there = beyond;
        beyond = beyond.saturating_mul(2);
        if beyond > MAX_BYTES / PAGE as u64 {
            return Err(io::Error::other("expected a disk, found a source without end"));
        }
    }
    while beyond - there > 1 {
        let middle = there + (beyond - there) / 2;
        match page(channel, middle - 1)?.got {
            0 => beyond = middle,
            _ => there = middle,
        }
    }
    // The page `there` is the first that nothing was read of.
    let behind = page(channel, there)?;
    if behind.got > 0 || !behind.trailer.may_be_the_end() {
        let at = there * PAGE as u64;
        return Err(io::Error::other(format!(
            "its size cannot be found: byte {at} cannot be read, and nobody says whether it is the end"
        )));
    }
    let last = match there.checked_sub(1) {
        None => return Ok(0),
        Some(last) => last,
    };
    Ok(last * PAGE as u64 + page(channel, last)?.got as u64)
}

fn page(channel: &mut Channel, number: u64) -> io::Result<Answer> {
    channel.read(Units { unit: PAGE as u64, skip: number, count: 1 }, false, &mut [0; PAGE], Some(PAGE_WITHIN))
}
