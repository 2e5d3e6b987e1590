//! An NBD server of our own: a program that serves on a socket only we can reach, and ends with us.

use super::Uri;
use crate::error::{Error, IoContext, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long it may take to listen: the files of an image may lie on a slow share.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// How often is looked whether it listens, has ended, or is to end.
const LOOK: Duration = Duration::from_millis(20);
/// What is kept of its words.
const SAID_BYTES: usize = 4 << 10;
/// Where sockets lie; only root comes there.
pub const RUN: &str = "/run/motiongear";

/// The running server. Dropping it ends it.
pub struct Server {
    dir: PathBuf,
    /// Dropped to end it.
    stop: Option<Sender<()>>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts `program` with what `arguments` makes of a socket's path, and returns when it listens there.
    ///
    /// # Errors
    /// It is not installed, ends, or does not listen within a minute: with what it said.
    pub fn start(program: &'static str, arguments: impl FnOnce(&Path) -> Vec<OsString>) -> Result<Server> {
        let dir = private_directory()?;
        let socket = dir.join("socket");
        let mut command = Command::new(program);
        command.args(arguments(&socket));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (stop, stopped) = bounded(0);
        let (told, news) = bounded(1);
        // A thread of its own, for the kernel counts the end of the thread that started a process as the end of its parent.
        let keeper = std::thread::Builder::new()
            .name("motiongear-server".into())
            .spawn(move || keep(command, program, &told, &stopped))
            .context(|| format!("{program}: its thread"))?;
        let server = Server { dir, stop: Some(stop), keeper: Some(keeper) };
        let since = Instant::now();
        loop {
            match news.recv_timeout(LOOK) {
                Ok(ended) => return Err(ended),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::failed(format!("{program}: ended"))),
                Err(RecvTimeoutError::Timeout) if UnixStream::connect(&socket).is_ok() => return Ok(server),
                Err(RecvTimeoutError::Timeout) if since.elapsed() > STARTS_WITHIN => {
                    let limit = STARTS_WITHIN.as_secs();
                    return Err(Error::failed(format!(
                        "{program}: expected it to listen within {limit} s, found it silent"
                    ))
                    .next("see whether what it shall serve can be read"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Where it serves `export`.
    pub fn uri(&self, export: &str) -> Uri {
        Uri::of_socket(&self.dir.join("socket"), export)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            // It has nothing to say that matters now.
            let _ = keeper.join();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A new directory that only we can enter. Those of processes that are no more are cleared away.
///
/// # Errors
/// There is no place for it.
pub fn private_directory() -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let private = |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path);
    // Not everybody may write there.
    let _ = private(Path::new(RUN));
    for entry in std::fs::read_dir(RUN).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("server-")?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("server-{}-{count}", std::process::id());
    let make = |run: &Path| {
        let dir = run.join(&name);
        DirBuilder::new().mode(0o700).create(&dir).map(|()| dir)
    };
    let made = make(Path::new(RUN)).or_else(|_| make(&std::env::temp_dir()));
    made.context(|| format!("Directory {name} for a socket, in {RUN} or the directory for temporary files"))
}

/// Starts the server and has it until it ends or `stopped` closes. What goes wrong is told.
fn keep(mut command: Command, program: &str, told: &Sender<Error>, stopped: &Receiver<()>) {
    let parent = getpid();
    let die_with_us = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Whose parent ended before would never hear of it.
        if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: two plain system calls, which may be made between fork and exec; nothing is allocated or locked.
    unsafe { command.pre_exec(die_with_us) };
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let next = match error.kind() {
                std::io::ErrorKind::NotFound => "install it (Debian: qemu-utils; Red Hat: qemu-img; SUSE: qemu-tools)",
                _ => "see whether it can be started by hand",
            };
            // Whoever started it may have given up.
            let _ = told.send(Error::io(format!("{program}: cannot be started"), error).next(next));
            return;
        }
    };
    let said = listen(&mut child);
    loop {
        match stopped.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
        }
        if let Ok(Some(status)) = child.try_wait() {
            // The pipe's end comes with the process's.
            std::thread::sleep(LOOK);
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let words = super::wire::text(said.as_slices().0).trim().to_owned();
            tracing::debug!(program, %status, words, "a server has ended");
            let _ = told.send(Error::failed(format!("{program} ended ({status}): {words}")));
            return;
        }
    }
}

/// Keeps the last that it says.
fn listen(child: &mut Child) -> Arc<Mutex<VecDeque<u8>>> {
    let said: Arc<Mutex<VecDeque<u8>>> = Arc::default();
    if let Some(mut pipe) = child.stderr.take() {
        let kept = said.clone();
        std::thread::spawn(move || {
            let mut piece = [0; 1024];
            while let Ok(n @ 1..) = pipe.read(&mut piece) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&piece[..n]);
                let over = kept.len().saturating_sub(SAID_BYTES);
                kept.drain(..over);
                kept.make_contiguous();
            }
        });
    }
    said
}
