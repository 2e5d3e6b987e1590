//! The job's side of the control socket, on a thread and runtime of its own: whatever a peer does, the data path does
//! not notice. Requests are bounded in size, number and time; peers are this user or root.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::message::{Description, JobStatus, MAX_MESSAGE_BYTES, Request, Response, parse_limits};
use crate::copy::throttle::{Stop, Throttle};
use crate::error::{Error, IoContext, Result};
use crate::monitor::Progress;

/// How long a peer may take to send a request or to fetch an answer.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_PEERS: usize = 16;
const MAX_REQUESTS_PER_PEER: usize = 1000;

/// Ends, with all connections, when dropped.
pub(super) struct Server {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Control {
    description: Description,
    throttle: Arc<Throttle>,
    progress: Arc<Progress>,
}

impl Server {
    pub(super) fn start(
        listener: UnixListener,
        description: Description,
        throttle: Arc<Throttle>,
        progress: Arc<Progress>,
    ) -> Result<Server> {
        let what = || "Control socket of the job".to_owned();
        listener.set_nonblocking(true).context(what)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(what)?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::UnixListener::from_std(listener).context(what)?
        };
        let control = Arc::new(Control { description, throttle, progress });
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, control) => {}
                        _ = ended => {}
                    }
                });
            })
            .map_err(|error| Error::io("Control thread of the job", error))?;
        Ok(Server { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::UnixListener, control: Arc<Control>) {
    let peers = Arc::new(Semaphore::new(MAX_PEERS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Too many at once: the connection is closed, and the client says so.
                let Ok(permit) = Arc::clone(&peers).try_acquire_owned() else { continue };
                if !welcome(&stream) {
                    continue;
                }
                let control = Arc::clone(&control);
                tokio::spawn(async move {
                    serve(stream, &control).await;
                    drop(permit);
                });
            }
            // Out of descriptors, say: not the job's trouble, and not to be met with a busy loop.
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

fn welcome(stream: &UnixStream) -> bool {
    // SAFETY: no pointers.
    let own = unsafe { libc::geteuid() };
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn serve(mut stream: UnixStream, control: &Control) {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    for _ in 0..MAX_REQUESTS_PER_PEER {
        let (response, last) = match timeout(PATIENCE, request(&mut read)).await {
            Ok(Some(Ok(request))) => (control.act(request), false),
            Ok(Some(Err(refusal))) => (Response::Error(refusal.message), refusal.last),
            Ok(None) | Err(_) => return,
        };
        let Ok(line) = serde_json::to_string(&response).map(|line| line + "\n") else { return };
        if !matches!(timeout(PATIENCE, write.write_all(line.as_bytes())).await, Ok(Ok(()))) || last {
            return;
        }
    }
}

struct Refusal {
    message: String,
    /// The stream cannot be understood any more.
    last: bool,
}

/// The next line; `None` at the end of the stream, also in mid-line.
async fn request(read: &mut (impl AsyncBufRead + Unpin)) -> Option<Result<Request, Refusal>> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_MESSAGE_BYTES).unwrap_or(u64::MAX);
    read.take(limit).read_until(b'\n', &mut line).await.ok()?;
    if line.last() != Some(&b'\n') {
        return (line.len() == MAX_MESSAGE_BYTES).then(|| {
            Err(Refusal { message: format!("Request is longer than {MAX_MESSAGE_BYTES} bytes"), last: true })
        });
    }
    Some(
        serde_json::from_slice(&line)
            .map_err(|error| Refusal { message: format!("Request is not understood: {error}"), last: false }),
    )
}

impl Control {
    fn act(&self, request: Request) -> Response {
        match request {
            Request::Status => {}
            Request::Pause => {
                self.throttle.pause();
                self.throttle.note("Paused from another terminal".into());
            }
            Request::Resume => {
                self.throttle.resume();
                self.throttle.note("Resumed from another terminal".into());
            }
            Request::Limit { read, cpu } => match parse_limits(read.as_deref(), cpu.as_deref()) {
                Ok(change) => {
                    self.throttle.set_limits(change);
                    let named = [("read", read), ("cpu", cpu)];
                    let named = named.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?.trim())));
                    self.throttle.note(format!(
                        "Limits changed from another terminal: {}",
                        named.collect::<Vec<_>>().join(", ")
                    ));
                }
                Err(error) => return Response::Error(error.to_string()),
            },
            Request::Stop => {
                self.throttle.stop(Stop::Asked);
                self.throttle.note("Stopping, asked from another terminal".into());
            }
        }
        let mut status = JobStatus::of(self.description.clone());
        status.throttle = Some(self.throttle.state());
        status.progress = Some(self.progress.snapshot());
        Response::Job(Box::new(status))
    }
}
