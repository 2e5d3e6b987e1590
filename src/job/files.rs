//! `STATE/jobs`: one description and one socket per running job; those of dead processes are cleared away.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::message::Description;
use crate::error::{Error, IoContext, Result};

/// `sun_path` holds 108 bytes with its NUL.
const SUN_PATH: usize = 107;
const MAX_DESCRIPTION_BYTES: u64 = 64 << 10;
const MAX_STAT_BYTES: u64 = 4096;

/// The files of this process' job; removed when dropped.
pub(super) struct JobFiles {
    description: PathBuf,
    socket: PathBuf,
}

impl JobFiles {
    /// Makes the directory (0700), the socket (0600) and then, last, the description that announces it.
    pub(super) fn create(state: &Path, description: &Description) -> Result<(JobFiles, UnixListener)> {
        let dir = state.join("jobs");
        private_directory(&dir)?;
        let pid = description.pid;
        let announced = dir.join(format!("{pid}.json"));
        if let Some(running) = read(&announced).filter(alive) {
            return Err(Error::failed(format!("Job {pid} ({}) of this process is still running", running.verb)));
        }
        let files = JobFiles { description: announced, socket: dir.join(format!("{pid}.sock")) };
        remove(&files.socket)?;
        let listener = at_socket(&files.socket, |path| UnixListener::bind(path))
            .context(|| format!("Control socket {}", files.socket.display()))?;
        fs::set_permissions(&files.socket, Permissions::from_mode(0o600))
            .context(|| format!("Control socket {}", files.socket.display()))?;
        let text =
            serde_json::to_vec(description).map_err(|error| Error::failed("Description of the job").because(error))?;
        let partial = dir.join(format!("{pid}.json.new"));
        write(&partial, &text)
            .and_then(|()| fs::rename(&partial, &files.description))
            .context(|| format!("Description of the job {}", files.description.display()))?;
        Ok((files, listener))
    }
}

impl Drop for JobFiles {
    fn drop(&mut self) {
        // Best effort: what stays is recognised as stale.
        let _ = remove(&self.description);
        let _ = remove(&self.socket);
    }
}

fn private_directory(dir: &Path) -> Result<()> {
    let what = || format!("Job directory {}", dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(dir).context(what)?;
    let found = fs::symlink_metadata(dir).context(what)?;
    // SAFETY: no pointers.
    let own = unsafe { libc::geteuid() };
    if !found.is_dir() || found.uid() != own {
        return Err(Error::failed(format!(
            "{}: expected a directory of user {own}, found one of user {}",
            what(),
            found.uid()
        ))
        .next("Use a state directory of your own, or remove it"));
    }
    if found.mode() & 0o777 != 0o700 {
        fs::set_permissions(dir, Permissions::from_mode(0o700)).context(what)?;
    }
    Ok(())
}

fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(|| path.display().to_string()),
        _ => Ok(()),
    }
}

/// The jobs that are alive, by PID. What dead ones left behind is removed where that is allowed.
pub(super) fn living(state: &Path) -> Result<Vec<Description>> {
    let dir = state.join("jobs");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(|| format!("Job directory {}", dir.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.context(|| format!("Job directory {}", dir.display()))?.path();
        let Some(pid) = pid_of(&path) else { continue };
        let description = read(&dir.join(format!("{pid}.json")));
        match description.filter(|description| description.pid == pid && alive(description)) {
            Some(description) if path.extension() == Some(OsStr::new("json")) => found.push(description),
            // A socket beside a living process may be one that is just being announced.
            _ if process_start(pid).is_none() || path.extension() == Some(OsStr::new("json")) => {
                let _ = remove(&path);
            }
            _ => {}
        }
    }
    found.sort_unstable_by_key(|description| description.pid);
    Ok(found)
}

fn pid_of(path: &Path) -> Option<u32> {
    let (pid, extension) = path.file_name()?.to_str()?.split_once('.')?;
    matches!(extension, "json" | "sock" | "json.new").then(|| pid.parse().ok())?
}

fn read(path: &Path) -> Option<Description> {
    let mut text = Vec::new();
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    file.take(MAX_DESCRIPTION_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn alive(description: &Description) -> bool {
    process_start(description.pid) == Some(description.process_start_ticks)
}

/// Field 22 of `/proc/PID/stat`; `None` when there is no such process, or only its zombie.
pub(super) fn process_start(pid: u32) -> Option<u64> {
    let mut text = Vec::new();
    File::open(format!("/proc/{pid}/stat")).ok()?.take(MAX_STAT_BYTES).read_to_end(&mut text).ok()?;
    // The second field, the program's name, may hold anything, also blanks and brackets.
    let text = String::from_utf8_lossy(&text);
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let running = fields.next() != Some("Z");
    fields.nth(18)?.parse().ok().filter(|_| running)
}

/// Connects to the socket of a job.
pub(super) fn connect(state: &Path, pid: u32) -> std::io::Result<UnixStream> {
    at_socket(&state.join("jobs").join(format!("{pid}.sock")), |path| UnixStream::connect(path))
}

/// Does something with a socket's path; one that is too long for a socket address goes by way of its directory's
/// descriptor.
fn at_socket<T>(path: &Path, act: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    if path.as_os_str().as_bytes().len() <= SUN_PATH {
        return act(path);
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return act(path) };
    let dir = File::open(dir)?;
    act(&Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}
