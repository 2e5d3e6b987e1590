//! How bytes move: files and block devices by O_DIRECT, through io_uring or a few threads, always "exactly n bytes or
//! an error". A queue belongs to one thread and one open file; a bounded [`Pool`] of aligned buffers is the back-pressure.
//!
//! * `buffer`: the pool; a dropped buffer goes home, also while panicking
//! * `file`: opening, size, alignment, flush
//! * `request`: one read or write and what is left of it; shared by both engines
//! * `uring`, `threads`: the two engines
//! * `zero`: zeroing, discarding, finding data
//! * `read_at`: a few bytes here and there; `probe`: the same of a disk that is read by a queue
//! * `durable`: small files that must survive a power cut, and bounded reading of foreign ones
//! * `tree`: files below a directory that somebody else may have filled

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};

pub mod buffer;
pub mod durable;
pub mod file;
mod ioctl;
mod probe;
mod read_at;
mod request;
mod threads;
pub mod tree;
mod uring;
pub mod zero;

#[cfg(test)]
mod tests;

pub use buffer::{Buffer, Pool};
pub use durable::{
    cannot_sync, create_dirs_durably, create_file_durably, durable_rename, read_bounded, sync_dir, write_file_durably,
};
pub use file::{Access, DirectFile};
pub use probe::Probe;
pub use read_at::ReadAt;
pub use tree::Tree;
pub use zero::{discard, next_data, write_zeroes};

/// The most requests one queue lets into the kernel at a time; a larger wish is cut down to it.
pub const MAX_DEPTH: usize = 256;

/// Of a wait without end, one step.
const LONG: Duration = Duration::from_secs(3600);

/// One finished request.
#[derive(Debug)]
pub struct Completion {
    /// The number the caller gave the request.
    pub token: u64,
    /// The request's buffer. `None` only where the kernel may still write to it (the ring itself broke) or a worker
    /// died; the result is an error then.
    pub buffer: Option<Buffer>,
    /// `Ok` when exactly the asked number of bytes moved. A read past the end is `UnexpectedEof`.
    pub result: std::io::Result<()>,
    /// From handing the request to the kernel to noticing its end. The thread engine notices at once; io_uring when the
    /// queue is next called, so a caller that stays away long sees its own absence in here.
    pub elapsed: Duration,
}

/// How a bounded wait ended.
#[derive(Debug)]
pub enum Waited {
    /// A request is finished.
    Done(Completion),
    /// Nothing was finished in time.
    Late,
    /// Nothing is in flight.
    Idle,
}

/// Moves exactly n bytes or fails; one instance per open file and per thread.
///
/// Dropping a queue waits for what the kernel already has, forgets what it does not have, and sends all buffers home.
/// Requests may finish in any order, also when they overlap.
pub trait BlockIo: Send {
    /// Queues a read of `len` bytes (≤ the buffer's capacity) at byte `offset`; the buffer's len becomes `len` on success.
    fn read(&mut self, token: u64, offset: u64, buffer: Buffer, len: usize);
    /// Queues a write of the whole buffer (its len) at byte `offset`.
    fn write(&mut self, token: u64, offset: u64, buffer: Buffer);
    /// Blocks for the next completion; `None` if nothing is in flight.
    fn wait(&mut self) -> Option<Completion> {
        loop {
            match self.wait_for(LONG) {
                Waited::Done(completion) => return Some(completion),
                Waited::Idle => return None,
                Waited::Late => {}
            }
        }
    }
    /// As [`BlockIo::wait`], but no longer than `limit`.
    fn wait_for(&mut self, limit: Duration) -> Waited;
    /// Lets go of what the kernel has not finished, without waiting for it as a drop would: for a medium that does not answer
    /// while the job is to end. Memory that the kernel may still write to is never used again; so this is for the last
    /// moments of a process.
    fn abandon(self: Box<Self>);
    /// Requests that were queued and not yet returned by [`BlockIo::wait`].
    fn in_flight(&self) -> usize;
    /// How many requests are worth having in flight; more are kept inside, never lost.
    fn depth(&self) -> usize;
}

/// A disk that can be read: a file or block device of this host, an export of an NBD server, a disk behind ssh. Opened once, read by any number of
/// queues, each of one thread.
pub trait Readable: Send + Sync + std::fmt::Debug {
    /// Its size now, bytes.
    ///
    /// # Errors
    /// It is gone.
    fn bytes(&self) -> Result<u64>;
    /// A queue of its own that keeps up to `depth` requests under way; `engine` matters to what the kernel reads.
    ///
    /// # Errors
    /// As [`open_queue`]; an export that cannot be reached any more.
    fn queue(self: Arc<Self>, engine: Engine, depth: usize) -> Result<Box<dyn BlockIo>>;
    /// The first range at or behind `offset` that may hold data, from and to, bytes; what lies before it reads as zeros. `None`
    /// where no data follows.
    ///
    /// # Errors
    /// It does not say.
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>>;
    /// Reads of fewer bytes fail, except at the end.
    fn unit(&self) -> u64;
    /// Whether reads go past the page cache of this host.
    fn is_direct(&self) -> bool;
    /// Whether something other than this kernel answers, which may take its time for anything.
    fn is_far(&self) -> bool;
    /// Whether it is a disk of another host: how long its reads take says nothing of a disk of this one, for a network, a limit or a
    /// guard of its own lies between.
    fn is_of_another_host(&self) -> bool {
        false
    }
    /// Whether `error` says that the way to the disk is lost and not the disk: opened anew, it may go on.
    fn is_lost(&self, _error: &std::io::Error) -> bool {
        false
    }
}

impl Readable for DirectFile {
    fn bytes(&self) -> Result<u64> {
        DirectFile::bytes(self)
    }
    fn queue(self: Arc<Self>, engine: Engine, depth: usize) -> Result<Box<dyn BlockIo>> {
        open_queue(engine, self, depth)
    }
    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        next_data(self, offset)
    }
    fn unit(&self) -> u64 {
        u64::from(self.align())
    }
    fn is_direct(&self) -> bool {
        DirectFile::is_direct(self)
    }
    fn is_far(&self) -> bool {
        DirectFile::is_far(self)
    }
}

/// Which mechanism moves the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// io_uring where the system allows it, threads elsewhere.
    Auto,
    /// io_uring or an error that says why not.
    Uring,
    /// A small pool of threads with pread and pwrite.
    Threads,
}

/// Opens a queue on `file` that keeps up to `depth` requests (1..=[`MAX_DEPTH`], cut to that) in the kernel.
///
/// # Errors
/// `Engine::Uring` where io_uring is forbidden or lacks what we need; threads that cannot be started.
pub fn open_queue(engine: Engine, file: Arc<DirectFile>, depth: usize) -> Result<Box<dyn BlockIo>> {
    let depth = depth.clamp(1, MAX_DEPTH);
    // Such file systems answer within the submitting call, which then hangs as long as they do; and what io_uring gave back
    // after a short answer of FUSE was not what the file held (seen on Linux 6.18). pread on threads has neither fault.
    let engine = if file.is_far() { Engine::Threads } else { engine };
    match engine {
        Engine::Threads => Ok(Box::new(threads::Threads::new(file, depth)?)),
        Engine::Uring => Ok(Box::new(uring::Uring::new(file, depth).map_err(refused)?)),
        Engine::Auto => match uring::Uring::new(file.clone(), depth) {
            Ok(queue) => Ok(Box::new(queue)),
            // EPERM (seccomp, io_uring_disabled), ENOSYS, ENOMEM (memlock) are all normal here: the work can be done anyway.
            Err(error) => {
                tracing::debug!(%error, "io_uring is not available, using threads");
                Ok(Box::new(threads::Threads::new(file, depth)?))
            }
        },
    }
}

/// The name of what [`open_queue`] would use for files at all of `paths`, which need not be there yet: `"io_uring"`, `"threads"`,
/// or `"io_uring+threads"` where only some of them are far.
///
/// # Errors
/// `Engine::Uring` where it is forbidden.
pub fn engine_in_use<'a>(engine: Engine, paths: impl IntoIterator<Item = &'a Path>) -> Result<&'static str> {
    let uring = match engine {
        Engine::Threads => false,
        Engine::Uring => uring::probe().map(|()| true).map_err(refused)?,
        Engine::Auto => uring::probe().is_ok(),
    };
    let far: Vec<bool> = paths.into_iter().map(file::lies_far).collect();
    Ok(match (uring, far.contains(&true), far.contains(&false)) {
        (false, _, _) | (true, true, false) => "threads",
        (true, false, _) => "io_uring",
        (true, true, true) => "io_uring+threads",
    })
}

fn refused(error: std::io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::EPERM) => " (forbidden by seccomp or kernel.io_uring_disabled)",
        Some(libc::ENOSYS) => " (this kernel has none)",
        Some(libc::ENOMEM) => " (the memlock limit is too small)",
        _ => "",
    };
    Error::io(format!("The io_uring engine was asked for and the system refused it{why}"), error)
        .next("use --engine auto or --engine threads")
}
