//! Several channels to one disk, as any other queue.

use super::Place;
use super::channel::{Channel, LOOK};
use super::shell::{Hello, Trailer, Units};
use crate::io::{BlockIo, Buffer, Completion, Waited};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The smallest piece that a read goes on behind.
const SECTOR: usize = 512;

/// How a disk is read.
#[derive(Debug, Clone)]
pub struct Way {
    /// Where it is.
    pub place: Place,
    /// Its size, bytes.
    pub bytes: u64,
    /// Whether `dd` reads past the page cache there.
    pub direct: bool,
    /// What its machine said of itself.
    pub host: Option<String>,
    /// Of a file, its inode there.
    pub inode: Option<u64>,
}

impl Way {
    /// Whether the machine and file that say `hello` are those that were found first.
    pub fn leads_to(&self, hello: &Hello) -> bool {
        self.host == hello.host && self.inode == hello.inode
    }
}

struct Request {
    token: u64,
    offset: u64,
    len: usize,
    buffer: Buffer,
}

/// The queue: a thread for each channel, which has one request under way.
pub struct SshQueue {
    depth: usize,
    in_flight: usize,
    /// `None` only while dropping: closing it ends the threads.
    requests: Option<Sender<Request>>,
    finished: Sender<Completion>,
    completions: Receiver<Completion>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl SshQueue {
    /// Over `first`, and `more` channels as soon as, and if, they are let in. `stop` is that of `first`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(way: &Way, first: Channel, more: usize, stop: Arc<AtomicBool>) -> io::Result<SshQueue> {
        let (requests, taken) = unbounded::<Request>();
        let (finished, completions) = unbounded();
        let depth = 1 + more;
        let (requests, finished_) = (Some(requests), finished.clone());
        let mut queue =
            SshQueue { depth, in_flight: 0, requests, finished, completions, stop, threads: Vec::with_capacity(depth) };
        let mut first = Some(first);
        for _ in 0..depth {
            let (way, taken, finished, stop) = (way.clone(), taken.clone(), finished_.clone(), queue.stop.clone());
            let own = first.take();
            let thread = std::thread::Builder::new().name("motiongear-ssh".into()).spawn(move || {
                if let Some(mut channel) = own.or_else(|| another(&way, stop)) {
                    serve(&mut channel, &way, &taken, &finished);
                }
            });
            match thread {
                Ok(thread) => queue.threads.push(thread),
                // Fewer than wished is slower, not wrong.
                Err(_) if !queue.threads.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(queue)
    }
}

/// One channel more, if we are let in. One at a time: a server that is asked for many at once turns some away, and not only ours
/// (MaxStartups of sshd).
fn another(way: &Way, stop: Arc<AtomicBool>) -> Option<Channel> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = loop {
        match ONE.try_lock() {
            Ok(one) => break one,
            Err(TryLockError::Poisoned(one)) => break one.into_inner(),
            Err(TryLockError::WouldBlock) if stop.load(Ordering::Relaxed) => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
        }
    };
    match Channel::open(&way.place, stop) {
        // Two machines may answer by one name.
        Ok((channel, hello)) => way.leads_to(&hello).then_some(channel),
        Err(error) => {
            tracing::debug!(%error, "one channel less");
            None
        }
    }
}

/// Answers requests until there are no more. One that lost its channel goes on to say so: nobody else might.
fn serve(channel: &mut Channel, way: &Way, taken: &Receiver<Request>, finished: &Sender<Completion>) {
    let mut broken: Option<(ErrorKind, String)> = None;
    for Request { token, offset, len, mut buffer } in taken {
        let since = Instant::now();
        let result = match &broken {
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            // A bug in here must reach the caller as an error; a dead thread would leave it waiting for ever.
            None => catch_unwind(AssertUnwindSafe(|| read(channel, way, offset, len, &mut buffer)))
                .unwrap_or_else(|_| Err(Fail::Channel(io::Error::other("a thread of ssh panicked"))))
                .map_err(|fail| match fail {
                    Fail::Range(error) => error,
                    Fail::Channel(error) => {
                        broken = Some((error.kind(), error.to_string()));
                        error
                    }
                }),
        };
        let done = Completion { token, buffer: Some(buffer), result, elapsed: since.elapsed() };
        if finished.send(done).is_err() {
            return;
        }
    }
}

/// What a read failed of.
enum Fail {
    /// The range: the next one may be read.
    Range(io::Error),
    /// The channel: it is of no use any more.
    Channel(io::Error),
}

fn read(channel: &mut Channel, way: &Way, offset: u64, len: usize, buffer: &mut Buffer) -> Result<(), Fail> {
    if len > buffer.capacity() {
        let text = format!("a read of {len} bytes into a buffer of {}", buffer.capacity());
        return Err(Fail::Range(io::Error::new(ErrorKind::InvalidInput, text)));
    }
    buffer.set_len(len);
    let mut done = 0;
    while done < len {
        let (at, left) = (offset + done as u64, len - done);
        let units = Units::of(at, left as u64, way.bytes).map_err(Fail::Range)?;
        let direct = way.direct && units.unit >= 4096;
        let answer = channel.read(units, direct, &mut buffer[done..], None).map_err(Fail::Channel)?;
        if answer.got == left {
            break;
        }
        // Less, and no fault: a read was cut short there, before a bad sector, by a signal, by a file system of the network. What
        // comes next says more.
        let kept = answer.got - answer.got % SECTOR;
        if kept == 0 || answer.trailer.status != 0 {
            return Err(Fail::Range(short(&answer.trailer, answer.got)));
        }
        done += kept;
    }
    Ok(())
}

fn short(trailer: &Trailer, got: usize) -> io::Error {
    tracing::debug!(got, status = trailer.status, words = trailer.words, "dd delivered less");
    trailer.error()
}

impl BlockIo for SshQueue {
    fn read(&mut self, token: u64, offset: u64, buffer: Buffer, len: usize) {
        if let Some(requests) = &self.requests
            && requests.send(Request { token, offset, len, buffer }).is_ok()
        {
            self.in_flight += 1;
        }
    }

    fn write(&mut self, token: u64, _: u64, buffer: Buffer) {
        let result = Err(io::Error::new(ErrorKind::Unsupported, "a disk behind ssh is never written"));
        let done = Completion { token, buffer: Some(buffer), result, elapsed: Duration::ZERO };
        if self.finished.send(done).is_ok() {
            self.in_flight += 1;
        }
    }

    fn wait_for(&mut self, limit: Duration) -> Waited {
        if self.in_flight == 0 {
            return Waited::Idle;
        }
        match self.completions.recv_timeout(limit) {
            Ok(completion) => {
                self.in_flight -= 1;
                Waited::Done(completion)
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Waited::Late,
        }
    }

    fn abandon(self: Box<Self>) {
        // No thread waits longer than for its next look, and no kernel writes to our buffers later.
        drop(self);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn depth(&self) -> usize {
        self.depth
    }
}

impl Drop for SshQueue {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.requests = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
