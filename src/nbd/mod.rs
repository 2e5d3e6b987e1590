//! NBD, both sides of it. The client: fixed newstyle negotiation, structured and extended replies, block status, many requests in flight over
//! several sessions, on TCP and unix sockets, with TLS. The one door to disks and volumes that are no files of this host:
//! QEMU, qemu-nbd (images, RBD, iSCSI), nbdkit.
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.
//!
//! * `uri`: where an export is
//! * `socket`, `tls`, `channel`: the byte stream, which never blocks; `pin`: who is at its other end, by paper;
//!   `client_files`: what clients of others come in with
//! * `wire`: what the bytes mean; no input or output
//! * `handshake`: from a socket to an export
//! * `connection`: one session, requests in flight
//! * `holes`: where the server says that data lie
//! * `dirty`: what a dirty bitmap of QEMU calls changed
//! * `queue`: several sessions as one [`crate::io::BlockIo`]; `disk`: an export as a disk to read
//! * `server`: a server of our own, for what only QEMU can open
//! * `sessions`: sessions that all threads of a job share, for an export that is written to
//! * `serve`: the server, for those who read from us

mod channel;
pub mod client_files;
mod connection;
mod dirty;
mod disk;
mod handshake;
mod holes;
pub mod pin;
mod queue;
pub mod serve;
mod server;
mod sessions;
pub mod socket;
pub mod tls;
pub mod uri;
pub mod wire;

#[cfg(test)]
mod tests;

pub use connection::{Connection, Finished};
pub use dirty::dirty_ranges;
pub use disk::NbdDisk;
pub use handshake::{Export, Sizes};
pub use holes::Holes;
pub use pin::Pin;
pub use queue::NbdQueue;
pub use server::{RUN, SECRET, Server, VOLUME, clear_left_over, has_ended, private_directory};
pub use sessions::Sessions;
pub use socket::PATIENCE;
pub use uri::Uri;
pub use wire::Style;

use crate::error::{Error, Result};
use channel::Channel;
use handshake::{Wishes, negotiate};
use socket::Socket;
use std::time::Duration;
use tls::Client;
use uri::Address;

/// The context that tells of holes.
pub const ALLOCATION: &str = "base:allocation";

/// Sessions with one export, where the server keeps them consistent. More bring little: each has its own thread at the server.
pub(crate) const SESSIONS: usize = 4;

/// How long a session that is not needed may take to begin: a server that lets fewer in does not answer.
const EXTRA_PATIENCE: Duration = Duration::from_secs(2);

/// Connects to the export of `uri`. `contexts` are what block status shall tell of, `style` the newest to ask for.
///
/// # Errors
/// Nobody answers there, the server refuses, or breaks the protocol; files for TLS that are missing or wrong.
pub fn connect(uri: &Uri, contexts: &[String], style: Style) -> Result<Connection> {
    connect_within(uri, contexts, style, PATIENCE)
}

/// More sessions with the export of `first`, `wanted` in all, where the server keeps them consistent and lets them in.
pub(crate) fn with_more(
    uri: &Uri,
    first: Connection,
    contexts: &[String],
    style: Style,
    wanted: usize,
) -> Vec<Connection> {
    let export = first.export().clone();
    let wanted = if export.flags.multi_conn() { wanted } else { 1 };
    let mut sessions = vec![first];
    while sessions.len() < wanted {
        match connect_within(uri, contexts, style, EXTRA_PATIENCE) {
            Ok(more) if more.export().is_like(&export) => sessions.push(more),
            _ => break,
        }
    }
    sessions
}

fn connect_within(uri: &Uri, contexts: &[String], style: Style, patience: Duration) -> Result<Connection> {
    let host = match &uri.address {
        Address::Tcp { host, .. } => Some(host.as_str()),
        Address::Unix(_) => None,
    };
    let tls = uri.tls.as_ref().map(|tls| Client::new(tls, host)).transpose()?;
    let failed = |what: &str, error: std::io::Error| {
        let error = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the NBD server ended the session")
            }
            _ => error,
        };
        let pin = uri.tls.as_ref().and_then(|tls| tls.pin);
        let said = error.to_string();
        if let Some(way_out) = pin.and_then(|pin| pin::way_out(pin, &said)) {
            return Error::untrusted(format!("NBD export {uri}: {said}")).next(way_out);
        }
        Error::io(format!("NBD export {uri}: {what}"), error)
            .next("check that the server runs and serves this export: nbdinfo URI; then run the same command again")
    };
    let socket = Socket::connect(&uri.address).map_err(|error| failed("nobody answers", error))?;
    let wishes = Wishes { export: &uri.export, contexts, tls: tls.as_ref(), style, patience };
    let agreed = negotiate(Channel::Plain(socket), &wishes).map_err(|error| failed("it cannot be used", error))?;
    Ok(Connection::new(agreed.0, agreed.1))
}

/// Whether `error` says that the way to an export is lost: opened anew, it may go on.
pub fn is_lost(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    let by_kind = matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::BrokenPipe
            | Kind::HostUnreachable
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
            | Kind::NotConnected
            | Kind::NotFound
            | Kind::TimedOut
    );
    // The last is NBD's word of a server that is about to end.
    by_kind || error.raw_os_error() == Some(libc::ESHUTDOWN)
}
