//! An NBD server of our own: a program that serves on a socket only we can reach, and ends with us.

use super::Uri;
use crate::error::{Error, IoContext, Result};
use crate::io::Access;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long it may take to listen: the files of an image may lie on a slow share.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to end when it is asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// How often is looked whether it listens, has ended, or is to end.
const LOOK: Duration = Duration::from_millis(20);
/// What a server of ours says of its own troubles is heard by then.
const SAYS_WITHIN: std::time::Duration = std::time::Duration::from_millis(300);
/// What is kept of its words.
const SAID_BYTES: usize = 4 << 10;
/// Where sockets lie; only root comes there.
pub const RUN: &str = "/run/motiongear";
/// The file beside the socket with the server's process id.
const PID: &str = "pid";

/// The export's name at a server of a volume.
pub const VOLUME: &str = "volume";
/// What block options call the secret that a server of a volume is given.
pub const SECRET: &str = "secret";
/// Its clients: our sessions, and whoever looks.
const VOLUME_CLIENTS: u32 = 8;

/// The running server. Dropping it ends it.
pub struct Server {
    dir: PathBuf,
    /// Says so when it has ended by itself.
    news: Receiver<Error>,
    /// The last that it said.
    said: Said,
    /// Told to end it.
    stop: Sender<()>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

/// Ends a server from elsewhere; whoever uses it sees it fall.
pub struct Stopper(Sender<()>);

impl Stopper {
    /// Returns when the server has ended or is about to.
    pub fn stop(&self) {
        // It has ended already.
        let _ = self.0.send(());
    }
}

impl Server {
    /// Starts `program` with what `arguments` makes of a socket's path, and returns when it listens there.
    ///
    /// # Errors
    /// It is not installed, ends, or does not listen within a minute: with what it said.
    pub fn start(program: &'static str, arguments: impl FnOnce(&Path) -> Vec<OsString>) -> Result<Server> {
        Server::start_in(private_directory()?, program, Vec::new(), arguments)
    }

    /// As [`Server::start`]; the program gets `files`, open under the numbers that they have here.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(
        program: &'static str,
        files: Vec<OwnedFd>,
        arguments: impl FnOnce(&Path) -> Vec<OsString>,
    ) -> Result<Server> {
        Server::start_in(private_directory()?, program, files, arguments)
    }

    /// A qemu-nbd that serves the volume behind QEMU's block options `file` as [`VOLUME`], past the caches of this host. `secret` is what the options call [`SECRET`]; it goes through a file that only we can read.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn of_volume(file: &serde_json::Value, secret: Option<&str>, access: Access) -> Result<Server> {
        let dir = private_directory()?;
        let kept = dir.join("secret");
        if let Some(secret) = secret {
            let what = || format!("File {}", kept.display());
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&kept).context(what)?;
            file.write_all(secret.as_bytes()).context(what)?;
        }
        let disk = serde_json::json!({ "driver": "raw", "file": file });
        let server = Server::start_in(dir, "qemu-nbd", Vec::new(), |socket| {
            let mut arguments: Vec<OsString> = Vec::new();
            if secret.is_some() {
                // A comma in a value of QEMU's is written twice.
                let path = kept.display().to_string().replace(',', ",,");
                arguments.extend(["--object".into(), format!("secret,id={SECRET},file={path}").into()]);
            }
            let options = ["--persistent", "--cache=none", "--discard=unmap", "--export-name", VOLUME, "--socket"];
            if access == Access::Read {
                arguments.push("--read-only".into());
            }
            arguments.push(format!("--shared={VOLUME_CLIENTS}").into());
            arguments.extend(options.map(OsString::from));
            arguments.extend([socket.into(), "--".into(), format!("json:{disk}").into()]);
            arguments
        });
        // It was read before the server listened.
        let _ = std::fs::remove_file(&kept);
        server
    }

    fn start_in(
        dir: PathBuf,
        program: &'static str,
        files: Vec<OwnedFd>,
        arguments: impl FnOnce(&Path) -> Vec<OsString>,
    ) -> Result<Server> {
        let socket = dir.join("socket");
        let mut command = crate::program::command(program);
        command.args(arguments(&socket));
        // Ctrl-C at our terminal is for us to answer, and what is under way still needs it.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (stop, stopped) = bounded(0);
        let (told, news) = bounded(1);
        let said = Said::default();
        // A thread of its own, for the kernel counts the end of the thread that started a process as the end of its parent.
        let keeper = std::thread::Builder::new()
            .name("motiongear-server".into())
            .spawn({
                let (pid, said) = (dir.join(PID), said.clone());
                move || keep(command, files, program, &pid, &said, &told, &stopped)
            })
            .context(|| format!("{program}: its thread"))?;
        let server = Server { dir, news, said, stop, keeper: Some(keeper) };
        let since = Instant::now();
        loop {
            match server.news.recv_timeout(LOOK) {
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

    /// How it ended, once, where it did so by itself.
    pub fn ended(&self) -> Option<Error> {
        self.news.try_recv().ok()
    }

    /// What ends it without having it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// The last that it said, in its own words.
    pub fn said(&self) -> String {
        self.said.words()
    }

    /// What a client met with, and what the server itself said of it: why it does not let us in it says to its own terminal, as it hangs up.
    pub fn quoted(&self, mut error: Error) -> Error {
        std::thread::sleep(SAYS_WITHIN);
        let words = self.said();
        if !words.is_empty() {
            error.message = format!("{}; its server said: {words}", error.message);
        }
        error
    }

    /// The directory of its socket, which is private to us and goes with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it serves `export`.
    pub fn uri(&self, export: &str) -> Uri {
        Uri::of_socket(&self.dir.join("socket"), export)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already.
        let _ = self.stop.send(());
        if let Some(keeper) = self.keeper.take() {
            // It has nothing to say that matters now.
            let _ = keeper.join();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A new directory that only we can enter. Those of processes that are no more are cleared away, with servers that did not end with
/// their process.
///
/// # Errors
/// There is no place for it.
pub fn private_directory() -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let private = |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path);
    // Not everybody may write there.
    let _ = private(Path::new(RUN));
    clear_left_over();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("server-{}-{count}", std::process::id());
    let make = |run: &Path| {
        let dir = run.join(&name);
        DirBuilder::new().mode(0o700).create(&dir).map(|()| dir)
    };
    let made = make(Path::new(RUN)).or_else(|_| make(&std::env::temp_dir()));
    made.context(|| format!("Directory {name} for a socket, in {RUN} or the directory for temporary files"))
}

/// Removes the directories of processes that are no more, with servers that did not end with their process.
pub fn clear_left_over() {
    for entry in std::fs::read_dir(RUN).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("server-")?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(has_ended) {
            end_left_over(&entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a process is no more, or only waits for somebody to hear of its end.
pub fn has_ended(process: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return true };
    // The state stands behind the name, which may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Kills the server of a directory if it still runs: it hangs, for it was asked to end when its process did.
fn end_left_over(dir: &Path) {
    let pid = crate::io::read_bounded(&dir.join(PID), 32).ok().and_then(|pid| String::from_utf8(pid).ok());
    let Some(pid) = pid.and_then(|pid| pid.trim().parse::<i32>().ok()).and_then(Pid::from_raw) else { return };
    // The number may be another process's by now.
    let words = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    if String::from_utf8_lossy(&words).contains(&*dir.to_string_lossy()) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Starts the server and has it until it ends or `stopped` closes. What goes wrong is told.
fn keep(
    mut command: Command,
    files: Vec<OwnedFd>,
    program: &str,
    pid: &Path,
    said: &Said,
    told: &Sender<Error>,
    stopped: &Receiver<()>,
) {
    let parent = getpid();
    let inherited: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let die_with_us = move || {
        // Not killed: what it holds in Ceph would stay locked for half a minute.
        set_parent_process_death_signal(Some(Signal::TERM))?;
        for file in &inherited {
            // SAFETY: the parent holds these files open until after the fork.
            rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(*file) }, FdFlags::empty())?;
        }
        // Whose parent ended before would never hear of it.
        if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: plain system calls, which may be made between fork and exec; nothing is allocated or locked.
    unsafe { command.pre_exec(die_with_us) };
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let next = match (error.kind(), program) {
                (std::io::ErrorKind::NotFound, "qemu-nbd" | "qemu-storage-daemon") => {
                    "install it (Debian: qemu-utils; Red Hat: qemu-img; SUSE: qemu-tools)"
                }
                (std::io::ErrorKind::NotFound, _) => {
                    "install it (Debian: qemu-system-x86; Red Hat: qemu-kvm; SUSE: qemu-x86)"
                }
                _ => "see whether it can be started by hand",
            };
            // Whoever started it may have given up.
            let _ = told.send(Error::io(format!("{program}: cannot be started"), error).next(next));
            return;
        }
    };
    // They are the server's now, and end with it.
    drop(files);
    // Without it a server that hangs is not found by the next run; no more.
    let _ = std::fs::write(pid, child.id().to_string());
    said.listen(&mut child);
    loop {
        match stopped.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return end(child),
        }
        if let Ok(Some(status)) = child.try_wait() {
            // The pipe's end comes with the process's.
            std::thread::sleep(LOOK);
            let words = said.words();
            tracing::debug!(program, %status, words, "a server has ended");
            let _ = told.send(Error::failed(format!("{program} ended ({status}): {words}")));
            return;
        }
    }
}

/// Asks it to end, so that it gives back what it holds (a lock in Ceph lives on for half a minute), and makes it end.
fn end(mut child: Child) {
    if let Some(process) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Gone already is what we want.
        let _ = kill_process(process, Signal::TERM);
    }
    let since = Instant::now();
    while since.elapsed() < ENDS_WITHIN && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(LOOK);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The last that a server says.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<VecDeque<u8>>>);

impl Said {
    /// Listens on a thread of its own, until the server ends.
    fn listen(&self, child: &mut Child) {
        let Some(mut pipe) = child.stderr.take() else { return };
        let kept = self.0.clone();
        // Without a thread its words are lost, and what it says in the protocol is not.
        let _ = std::thread::Builder::new().name("motiongear-words".into()).spawn(move || {
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

    fn words(&self) -> String {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        super::wire::text(said.as_slices().0).trim().to_owned()
    }
}
