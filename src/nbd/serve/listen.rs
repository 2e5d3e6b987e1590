//! Where clients come in: sockets, a thread for each connection, and not more of them than there is room for.

use super::Host;
use super::admission::{Admission, HangUp};
use crate::error::{Error, IoContext, Result};
use crate::nbd::channel::wait_for;
use crate::nbd::socket::Socket;
use rustix::event::{PollFd, PollFlags};
use std::fmt;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often is looked whether all shall end.
const LOOK: Duration = Duration::from_millis(200);
/// How long those that are under way at the end may take to see it.
const ENDING: Duration = Duration::from_secs(5);
/// After the system has refused a connection, for want of descriptors for instance.
const BREATH: Duration = Duration::from_millis(200);
/// How often is said that there are too many.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A socket in the file system, which only its owner reaches.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Unix(path) => path.display().fmt(f),
            Place::Tcp(address) => address.fmt(f),
        }
    }
}

/// An open socket. Dropping it removes its name.
pub struct Listener {
    place: Place,
    socket: Listening,
}

enum Listening {
    Unix(UnixListener),
    Tcp(TcpListener),
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Listener {
    /// Begins to listen; clients wait until they are [served](Listener::serve).
    ///
    /// # Errors
    /// Somebody listens there, or something else has that name; no right to.
    pub fn open(place: &Place) -> Result<Listener> {
        let what = || format!("Listening at {place}");
        let (place, socket) = match place {
            Place::Unix(path) => {
                clear(path)?;
                // Nobody may come in between its making and its narrowing.
                let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
                let bound = UnixListener::bind(path);
                rustix::process::umask(before);
                let listener = bound.context(what)?;
                listener.set_nonblocking(true).context(what)?;
                (place.clone(), Listening::Unix(listener))
            }
            Place::Tcp(address) => {
                let listener = TcpListener::bind(address).context(what)?;
                listener.set_nonblocking(true).context(what)?;
                // Port 0 is any that is free.
                (Place::Tcp(listener.local_addr().context(what)?), Listening::Tcp(listener))
            }
        };
        Ok(Listener { place, socket })
    }

    /// Where it listens, with the port that it got.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Lets clients in until the host's keeper says that all shall end.
    pub fn serve(&self, host: &Arc<Host>) {
        let (admission, mut said) = (Arc::new(Admission::default()), None);
        while !host.keeper.stopped() {
            let fd = match &self.socket {
                Listening::Unix(listener) => listener.as_fd(),
                Listening::Tcp(listener) => listener.as_fd(),
            };
            let waited = wait_for(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], LOOK);
            let accepted = match &self.socket {
                Listening::Unix(listener) => listener.accept().map(|(stream, _)| Accepted::Unix(stream)),
                Listening::Tcp(listener) => listener.accept().map(|(stream, from)| Accepted::Tcp(stream, from)),
            };
            match (waited, accepted) {
                (Ok(()), Ok(accepted)) => begin(host, accepted, &admission, &mut said),
                (Ok(()), Err(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => std::thread::sleep(BREATH),
            }
        }
        let since = Instant::now();
        while !(admission.is_empty() && host.accounts.is_quiet()) && since.elapsed() < ENDING {
            std::thread::sleep(LOOK / 10);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Place::Unix(path) = &self.place {
            // Gone already is what we want.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a socket that nobody listens at any more.
fn clear(path: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let taken = match found.file_type().is_socket() {
        true if is_left_over(path) => {
            return std::fs::remove_file(path).context(|| path.display().to_string());
        }
        true => "one that somebody listens at",
        false => "something else",
    };
    let next = "name another place, or end what listens there";
    Err(Error::failed(format!("Socket {}: expected none, found {taken}", path.display())).next(next))
}

/// Whether nobody listens at a socket any more. Never waits: who listens may have more clients than it takes.
fn is_left_over(path: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .is_ok_and(|socket| connect(&socket, &address) == Err(rustix::io::Errno::CONNREFUSED))
}

fn begin(host: &Arc<Host>, accepted: Accepted, admission: &Arc<Admission>, said: &mut Option<Instant>) {
    // A second handle, to hang up by while its thread waits.
    let hang_up: std::io::Result<HangUp> = match &accepted {
        Accepted::Unix(stream) => {
            stream.try_clone().map(|other| -> HangUp { Box::new(move || drop(other.shutdown(Shutdown::Both))) })
        }
        Accepted::Tcp(stream, _) => {
            stream.try_clone().map(|other| -> HangUp { Box::new(move || drop(other.shutdown(Shutdown::Both))) })
        }
    };
    // Without a descriptor more there is no place, either.
    let Ok(hang_up) = hang_up else { return };
    let (socket, address) = match accepted {
        Accepted::Unix(stream) => (Socket::unix(stream), None),
        Accepted::Tcp(stream, from) => (Socket::tcp(stream), Some(from)),
    };
    let (mut seat, full) = admission.stranger(address.map(|address| address.ip()), hang_up);
    if full && said.is_none_or(|said| said.elapsed() >= SAID_AGAIN) {
        *said = Some(Instant::now());
        let from = address.map_or_else(|| "this host".to_owned(), |address| address.ip().to_string());
        host.keeper.note(format!(
            "Too many connections that do not say who they are, the newest from {from}: the oldest of them are ended"
        ));
    }
    let from = address.map_or_else(|| "this host".to_owned(), |address| address.to_string());
    let host = host.clone();
    let talk = move || {
        if let Err(error) = socket.and_then(|socket| host.talk(socket, &from, &mut seat)) {
            tracing::debug!(from, %error, "an NBD session has ended");
        }
    };
    // Without a thread it is hung up on.
    drop(std::thread::Builder::new().name("nbd-session".into()).spawn(talk));
}
