//! The engine for systems without io_uring: a few threads per queue that call pread and pwrite.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::request::Request;
use super::{BlockIo, Buffer, Completion, DirectFile, Waited};
use crate::error::{Error, Result};

/// More threads than this do not make a disk faster; deeper queues wait inside.
const MAX_THREADS: usize = 32;

pub(super) struct Threads {
    depth: usize,
    in_flight: usize,
    /// `None` only while dropping: closing it ends the workers.
    requests: Option<Sender<Request>>,
    completions: Receiver<Completion>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn new(file: Arc<DirectFile>, depth: usize) -> Result<Threads> {
        // Both channels hold what the caller has in flight, which its buffer pool bounds.
        let (requests, taken) = unbounded::<Request>();
        let (finished, completions) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for _ in 0..depth.min(MAX_THREADS) {
            let (taken, finished, stop, served) = (taken.clone(), finished.clone(), stop.clone(), file.clone());
            let started = std::thread::Builder::new().name("motiongear-io".into()).spawn(move || {
                for request in taken {
                    // A queue that is being dropped wants nothing more done.
                    if stop.load(Ordering::Relaxed) || finished.send(serve(&served, request)).is_err() {
                        return;
                    }
                }
            });
            match started {
                Ok(worker) => workers.push(worker),
                // Fewer than wished is slower, not wrong.
                Err(_) if !workers.is_empty() => break,
                Err(error) => {
                    return Err(Error::io(
                        format!("No I/O thread could be started for {}", file.path().display()),
                        error,
                    ));
                }
            }
        }
        Ok(Threads { depth, in_flight: 0, requests: Some(requests), completions, stop, workers })
    }

    fn send(&mut self, request: Request) {
        if let Some(requests) = &self.requests {
            // Cannot fail before `wait` would notice: the workers live as long as the sender.
            if requests.send(request).is_ok() {
                self.in_flight += 1;
            }
        }
    }
}

fn serve(file: &DirectFile, mut request: Request) -> Completion {
    request.submitted();
    let (token, started) = (request.token(), Instant::now());
    // A bug in here must reach the caller as an error; a dead thread would leave it waiting for ever.
    let served = catch_unwind(AssertUnwindSafe(move || {
        let result = request.run(file);
        request.finish(result)
    }));
    served.unwrap_or_else(|_| Completion {
        token,
        buffer: None,
        result: Err(io::Error::other("an I/O thread panicked")),
        elapsed: started.elapsed(),
    })
}

impl BlockIo for Threads {
    fn read(&mut self, token: u64, offset: u64, buffer: Buffer, len: usize) {
        self.send(Request::read(token, offset, buffer, len));
    }

    fn write(&mut self, token: u64, offset: u64, buffer: Buffer) {
        self.send(Request::write(token, offset, buffer));
    }

    fn wait(&mut self) -> Option<Completion> {
        if self.in_flight == 0 {
            return None;
        }
        // Every request sent is answered, also when serving it panics, so this ends.
        let completion = self.completions.recv().ok()?;
        self.in_flight -= 1;
        Some(completion)
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
            Err(_) => Waited::Late,
        }
    }

    fn abandon(mut self: Box<Self>) {
        // The workers own what they wait for, and end with it.
        self.workers.clear();
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn depth(&self) -> usize {
        self.depth
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.requests = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
