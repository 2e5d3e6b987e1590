//! A few bytes here and there of a disk that is read by a queue: what tables and superblocks are made of.

use super::{BlockIo, Completion, Pool, ReadAt, Waited};
use crate::error::Result;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long one read may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How much is read at a time.
const WINDOW_BYTES: u64 = 64 << 10;

/// Reads by way of a queue, a window at a time.
pub struct Probe {
    bytes: u64,
    window: Mutex<Window>,
}

struct Window {
    queue: Box<dyn BlockIo>,
    pool: Pool,
    from: u64,
    bytes: Vec<u8>,
    failed: Option<io::Error>,
}

impl Probe {
    /// Of a disk of `bytes` that `queue` reads.
    ///
    /// # Errors
    /// There is no memory for a window.
    pub fn new(queue: Box<dyn BlockIo>, bytes: u64) -> Result<Probe> {
        let pool = Pool::new(WINDOW_BYTES as usize, 1)?;
        Ok(Probe { bytes, window: Mutex::new(Window { queue, pool, from: 0, bytes: Vec::new(), failed: None }) })
    }

    /// The last failure: whoever looks for a table takes it for a bad sector, and it may have been more.
    pub fn failed(&self) -> Option<io::Error> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner).failed.take()
    }
}

impl ReadAt for Probe {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = offset - offset % WINDOW_BYTES;
        let len = WINDOW_BYTES.min(self.bytes.saturating_sub(from)) as usize;
        if offset >= self.bytes {
            return Ok(0);
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if (window.from != from || window.bytes.is_empty())
            && let Err(error) = window.read(from, len)
        {
            window.failed = Some(match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            });
            return Err(error);
        }
        let rest = window.bytes.get((offset - from) as usize..).unwrap_or(&[]);
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

impl Window {
    fn read(&mut self, from: u64, len: usize) -> io::Result<()> {
        self.bytes.clear();
        let Some(buffer) = self.pool.try_take() else { return Err(io::ErrorKind::TimedOut.into()) };
        self.queue.read(0, from, buffer, len);
        let Waited::Done(Completion { buffer: Some(read), result, .. }) = self.queue.wait_for(LIMIT) else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        result?;
        self.from = from;
        self.bytes.extend_from_slice(&read);
        Ok(())
    }
}
