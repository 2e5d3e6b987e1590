//! The bounded pool of page-aligned buffers: memory use and back-pressure in one place.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::error::{Error, IoContext, Result};

/// Alignment and granularity of every buffer, bytes. O_DIRECT never asks for more on the devices we know; a file that
/// does is opened buffered (see `file.rs`).
pub const BUFFER_ALIGN: usize = 4096;
/// Largest single buffer, bytes: a request must fit the 32-bit length of an io_uring entry with room to round up.
const MAX_BUFFER_BYTES: usize = 1 << 30;

/// One anonymous private mapping. Owned by exactly one of: the pool's free list, a [`Buffer`].
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory without any tie to a thread, and it has exactly one owner.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> rustix::io::Result<Mapping> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Mapping { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: we own the mapping, it is unmapped once, and no reference outlives its owner.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

struct Shared {
    free: Mutex<Vec<Mapping>>,
    came_home: Condvar,
    buffer_bytes: usize,
    count: usize,
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<Mapping>> {
        // Nothing can panic halfway through a push or pop, so a poisoned list is still a whole list.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fixed number of page-aligned buffers of one capacity. Clones share the buffers.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Maps `count` buffers of `buffer_bytes` each (both ≥ 1). The kernel backs the memory when it is first touched.
    ///
    /// # Errors
    /// Sizes of zero or above 1 GiB a buffer; out of address space.
    pub fn new(buffer_bytes: usize, count: usize) -> Result<Pool> {
        if buffer_bytes == 0 || buffer_bytes > MAX_BUFFER_BYTES || count == 0 {
            return Err(Error::failed(format!(
                "The buffer pool expects 1 to {MAX_BUFFER_BYTES} bytes a buffer and at least one buffer, \
                 found {buffer_bytes} bytes and {count} buffers"
            )));
        }
        let mapped = buffer_bytes.next_multiple_of(BUFFER_ALIGN);
        let mut free = Vec::new();
        for _ in 0..count {
            free.push(Mapping::new(mapped).context(|| {
                format!("The buffer pool could not map buffer {} of {count}, {mapped} bytes each", free.len() + 1)
            })?);
        }
        Ok(Pool { shared: Arc::new(Shared { free: Mutex::new(free), came_home: Condvar::new(), buffer_bytes, count }) })
    }

    /// Takes a buffer of len 0, blocking until one is free. Its bytes are what the last user left.
    pub fn take(&self) -> Buffer {
        let mut free = self.shared.free();
        loop {
            if let Some(mapping) = free.pop() {
                return self.lend(mapping);
            }
            free = self.shared.came_home.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a buffer if one is free right now.
    pub fn try_take(&self) -> Option<Buffer> {
        let mapping = self.shared.free().pop()?;
        Some(self.lend(mapping))
    }

    /// Capacity of each buffer, bytes.
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// How many buffers there are, free and lent.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    fn lend(&self, mapping: Mapping) -> Buffer {
        Buffer { mapping: Some(mapping), len: 0, home: self.shared.clone() }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} × {} bytes)", self.shared.count, self.shared.buffer_bytes)
    }
}

/// A page-aligned buffer on loan from a [`Pool`]; returns there when dropped. Dereferences to its first `len` bytes.
pub struct Buffer {
    /// `None` only inside `drop`.
    mapping: Option<Mapping>,
    len: usize,
    home: Arc<Shared>,
}

impl Buffer {
    /// Sets how many bytes count, from the front. The bytes gained are stale, not zero.
    ///
    /// # Panics
    /// If `n` exceeds the capacity: a bug of the caller, never a matter of input.
    pub fn set_len(&mut self, n: usize) {
        assert!(n <= self.capacity(), "buffer of {} bytes cannot hold {n}", self.capacity());
        self.len = n;
    }

    /// The most bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.home.buffer_bytes
    }

    /// The whole mapping, which is the capacity rounded up to [`BUFFER_ALIGN`]: what the kernel reads into.
    pub(super) fn whole_mut(&mut self) -> &mut [u8] {
        match &mut self.mapping {
            // SAFETY: the mapping is `bytes` long, initialised (anonymous memory is zero), and borrowed with `self`.
            Some(mapping) => unsafe { std::slice::from_raw_parts_mut(mapping.start.as_ptr(), mapping.bytes) },
            None => &mut [],
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.mapping {
            // SAFETY: len ≤ capacity ≤ mapping.bytes, initialised memory, borrowed with `self`.
            Some(mapping) => unsafe { std::slice::from_raw_parts(mapping.start.as_ptr(), self.len) },
            None => &[],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.whole_mut()[..len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(mapping) = self.mapping.take() {
            self.home.free().push(mapping);
            self.home.came_home.notify_one();
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.len, self.capacity())
    }
}
