//! Ranges without data: zeroing, discarding, and finding where data is.

use std::io;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, ftruncate, seek};
use rustix::io::Errno;

use super::buffer::{BUFFER_ALIGN, Pool};
use super::file::{Access, DirectFile, retry};
use super::ioctl;
use super::request::Request;
use crate::error::{Error, IoContext, Result};

/// One kernel call zeroes at most this much, bytes: BLKZEROOUT cannot be interrupted.
const STEP_BYTES: u64 = 1 << 30;
/// Plain zeroes are written in pieces of this many bytes.
const PLAIN_BYTES: usize = 1 << 20;

/// Makes `len` bytes at `offset` read as zeros: BLKZEROOUT on block devices; on files a hole, else zeroed extents; where
/// the file system or driver refuses, plain writes. Offsets and lengths may be unaligned. A file that ends before the
/// range does grows to its end; a device does not, and that is an error. Not durable before [`DirectFile::sync_data`].
///
/// # Errors
/// A range beyond the device, a file opened for reading, failed writes.
pub fn write_zeroes(file: &DirectFile, offset: u64, len: u64) -> Result<()> {
    let what =
        || format!("File or device {}: {len} bytes at offset {offset} could not be zeroed", file.path().display());
    let end = checked_end(file, offset, len)?;
    if len == 0 {
        return Ok(());
    }
    if file.is_block_device() {
        let size = file.bytes()?;
        if end > size {
            return Err(Error::failed(format!("{}: the device ends at {size}, the range at {end}", what())));
        }
        // The body by the kernel, then the ragged ends: the other way round the body's call could drop dirty end pages.
        let (body, body_end) = (up(offset), down(end));
        if body >= body_end {
            return plain(file, offset, end).context(what);
        }
        let mut at = body;
        while at < body_end {
            let step = STEP_BYTES.min(body_end - at);
            match ioctl::zero_out(file.fd(), at, step) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) if refused(&error) => plain(file, at, at + step).context(what)?,
                result => result.context(what)?,
            }
            at += step;
        }
        plain(file, offset, body).context(what)?;
        return plain(file, body_end, end).context(what);
    }
    if file.bytes()? < end {
        retry(|| ftruncate(file.fd(), end)).context(what)?;
    }
    for mode in
        [FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE]
    {
        match retry(|| fallocate(file.fd(), mode, offset, len)) {
            Err(errno) if refused(&errno.into()) => {}
            result => return result.context(what),
        }
    }
    plain(file, offset, end).context(what)
}

/// Tells the device or file system that `len` bytes at `offset` are no longer needed; what they read as afterwards is
/// undefined. Only whole 4096s inside the range are discarded. `false` where discarding is not supported.
///
/// # Errors
/// A range beyond the device, a file opened for reading, a failing device.
pub fn discard(file: &DirectFile, offset: u64, len: u64) -> Result<bool> {
    let what = || format!("{len} bytes at offset {offset} of {} could not be discarded", file.path().display());
    let end = checked_end(file, offset, len)?;
    let (mut at, end) = (up(offset), down(end));
    while at < end {
        let step = STEP_BYTES.min(end - at);
        let result = if file.is_block_device() {
            ioctl::discard(file.fd(), at, step)
        } else {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file.fd(), mode, at, step).map_err(io::Error::from)
        };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            Err(error) if refused(&error) => return Ok(false),
            result => result.context(what)?,
        }
        at += step;
    }
    Ok(true)
}

/// The first run of data at or after `offset`, as start and end in bytes (start ≥ `offset`, end ≤ the size); `None` when
/// only holes follow. Block devices, and file systems that do not know, say that all the rest is data.
///
/// # Errors
/// The file system fails to answer.
pub fn next_data(file: &DirectFile, offset: u64) -> Result<Option<(u64, u64)>> {
    let what = || format!("The next data of {} from offset {offset} could not be found", file.path().display());
    let size = file.bytes()?;
    if offset >= size {
        return Ok(None);
    }
    if file.is_block_device() {
        return Ok(Some((offset, size)));
    }
    // The seek position is not used for anything else: all transfers name their offset.
    let start = match retry(|| seek(file.fd(), SeekFrom::Data(offset))) {
        Ok(start) => start,
        // ENXIO: no data up to the end.
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((offset, size))),
        Err(errno) => return Err(errno).context(what),
    };
    let end = match retry(|| seek(file.fd(), SeekFrom::Hole(start))) {
        Ok(end) => end,
        // The file shrank in between; the reader finds out.
        Err(Errno::NXIO) => size,
        Err(errno) => return Err(errno).context(what),
    };
    // A file that grows meanwhile has data beyond the size we looked at: not ours.
    Ok(if start >= size { None } else { Some((start, end.clamp(start, size))) })
}

fn up(offset: u64) -> u64 {
    offset.next_multiple_of(BUFFER_ALIGN as u64)
}

fn down(offset: u64) -> u64 {
    offset - offset % BUFFER_ALIGN as u64
}

fn checked_end(file: &DirectFile, offset: u64, len: u64) -> Result<u64> {
    if file.access() != Access::Write {
        return Err(Error::failed(format!("{} was opened for reading and must not be changed", file.path().display())));
    }
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 - BUFFER_ALIGN as u64 => Ok(end),
        _ => Err(Error::failed(format!(
            "{}: {len} bytes at offset {offset} end beyond the largest possible offset",
            file.path().display()
        ))),
    }
}

/// The answers that mean "not here", as opposed to "the medium failed".
fn refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY | libc::EPERM))
}

/// Zeroes by writing them; cut at the buffer size from an aligned start so that only the two ends go unaligned.
fn plain(file: &DirectFile, start: u64, end: u64) -> io::Result<()> {
    if start >= end {
        return Ok(());
    }
    let pool = Pool::new(PLAIN_BYTES, 1).map_err(io::Error::other)?;
    let mut at = start;
    while at < end {
        let until = end.min(if at == down(at) { at + PLAIN_BYTES as u64 } else { up(at) });
        // A fresh pool's memory is zero, and writing does not change it.
        let mut buffer = pool.take();
        buffer.set_len(usize::try_from(until - at).map_err(io::Error::other)?);
        Request::write(0, at, buffer).run(file)?;
        at = until;
    }
    Ok(())
}
