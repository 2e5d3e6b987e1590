//! A connected socket that does not block.

use super::uri::Address;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// After so long without a word the other side's system is asked whether it is there, three times: the system's own default is two
/// hours.
const ALIVE: Duration = Duration::from_secs(20);
/// How long a server may take to be reached, and for each message of the handshake.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A socket that does not block.
pub enum Socket {
    /// TCP, without delay.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl Socket {
    /// Connects, within [`PATIENCE`] for each address of a name.
    ///
    /// # Errors
    /// Nobody listens there, or nobody answers.
    pub fn connect(address: &Address) -> Result<Socket> {
        match address {
            Address::Unix(path) => Socket::unix(UnixStream::connect(path)?),
            Address::Tcp { host, port } => {
                let mut last = ErrorKind::NotFound.into();
                // A name that cannot be resolved now may be one whose server is away.
                let unresolved = |error| std::io::Error::new(ErrorKind::HostUnreachable, error);
                for address in (host.as_str(), *port).to_socket_addrs().map_err(unresolved)? {
                    match TcpStream::connect_timeout(&address, PATIENCE) {
                        Ok(stream) => return Socket::tcp(stream),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

impl Socket {
    /// Of a connection that is there.
    ///
    /// # Errors
    /// The system's.
    pub fn tcp(stream: TcpStream) -> Result<Socket> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        // Whose host went away would else never be missed.
        use rustix::net::sockopt;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, ALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, ALIVE)?;
        sockopt::set_tcp_keepcnt(&stream, 3)?;
        Ok(Socket::Tcp(stream))
    }

    /// Of a connection that is there.
    ///
    /// # Errors
    /// The system's.
    pub fn unix(stream: UnixStream) -> Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket::Unix(stream))
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(into),
            Socket::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(from),
            Socket::Unix(stream) => stream.write(from),
        }
    }
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}
