//! Length, BLAKE3 and SHA-256 of a stream, taken while it passes by.

use crate::tree::Digest;
use aws_lc_rs::digest::{Context, SHA256};
use std::io::{self, Read, Write};

/// What is pinned of a file: enough for `stat`, `b3sum` and `sha256sum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// Length, bytes.
    pub bytes: u64,
    /// BLAKE3, as `b3sum` prints it.
    pub blake3: Digest,
    /// SHA-256, as `sha256sum` prints it.
    pub sha256: Digest,
}

impl Sums {
    /// The sums of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut tally = Tally::new();
        tally.update(bytes);
        tally.finish()
    }
}

/// Sums in the making.
#[derive(Clone)]
pub struct Tally {
    bytes: u64,
    blake3: blake3::Hasher,
    sha256: Context,
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    /// Of nothing yet.
    pub fn new() -> Self {
        Tally { bytes: 0, blake3: blake3::Hasher::new(), sha256: Context::new(&SHA256) }
    }
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.blake3.update(bytes);
        self.sha256.update(bytes);
    }
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// The sums of all that was added.
    pub fn finish(self) -> Sums {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.sha256.finish().as_ref());
        Sums {
            bytes: self.bytes,
            blake3: Digest::from_bytes(*self.blake3.finalize().as_bytes()),
            sha256: Digest::from_bytes(sha256),
        }
    }
}

/// A reader whose bytes are summed as they are read, and which refuses to give more than `limit` bytes.
pub struct SummedReader<R> {
    inner: R,
    tally: Tally,
    limit: u64,
}

impl<R: Read> SummedReader<R> {
    /// Reads `inner`; more than `limit` bytes are an error of kind `FileTooLarge`, not an end.
    pub fn new(inner: R, limit: u64) -> Self {
        SummedReader { inner, tally: Tally::new(), limit }
    }
    /// The sums of what was read so far.
    pub fn finish(self) -> Sums {
        self.tally.finish()
    }
}

impl<R: Read> Read for SummedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.tally.update(buffer.get(..read).unwrap_or_default());
        if self.tally.bytes() > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {} bytes", self.limit)));
        }
        Ok(read)
    }
}

/// A writer whose bytes are summed as they are accepted.
pub struct SummedWriter<W> {
    inner: W,
    tally: Tally,
}

impl<W: Write> SummedWriter<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Self {
        SummedWriter { inner, tally: Tally::new() }
    }
    /// The sums of what was written so far.
    pub fn finish(self) -> Sums {
        self.tally.finish()
    }
}

impl<W: Write> Write for SummedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.tally.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
