//! The block-device requests that no library wraps. Numbers from linux/fs.h; the same on every architecture whose
//! `_IO` has no direction bits for "none" (x86, ARM, RISC-V, s390x), which are those we build for.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

const BLKROGET: u32 = 0x125e;
const BLKFLSBUF: u32 = 0x1261;
const BLKSSZGET: u32 = 0x1268;
const BLKDISCARD: u32 = 0x1277;
const BLKZEROOUT: u32 = 0x127f;
/// `_IOR(0x12, 114, size_t)`, 64-bit.
const BLKGETSIZE64: u32 = 0x8008_1272;

fn done(code: libc::c_int) -> Result<()> {
    if code < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Size of the device, bytes.
pub(super) fn size_bytes(fd: BorrowedFd<'_>) -> Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 through the pointer, which outlives the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64 as libc::Ioctl, &raw mut bytes) })?;
    Ok(bytes)
}

/// Logical sector size, bytes.
pub(super) fn sector_bytes(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int through the pointer, which outlives the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET as libc::Ioctl, &raw mut bytes) })?;
    u32::try_from(bytes).map_err(|_| Error::other("the kernel reported a negative sector size"))
}

/// Whether the device is set read-only in the kernel.
pub(super) fn is_read_only(fd: BorrowedFd<'_>) -> Result<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int through the pointer, which outlives the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), BLKROGET as libc::Ioctl, &raw mut flag) })?;
    Ok(flag != 0)
}

/// Writes back and drops the device's page cache.
pub(super) fn flush_buffers(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), BLKFLSBUF as libc::Ioctl, 0) })
}

/// Zeroes a range; offset and length in bytes, multiples of the sector.
pub(super) fn zero_out(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
    let range = [offset, len];
    // SAFETY: BLKZEROOUT reads two u64 through the pointer, which outlives the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), BLKZEROOUT as libc::Ioctl, range.as_ptr()) })
}

/// Discards a range; offset and length in bytes, multiples of the sector. What is read afterwards is undefined.
pub(super) fn discard(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64 through the pointer, which outlives the call.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD as libc::Ioctl, range.as_ptr()) })
}
