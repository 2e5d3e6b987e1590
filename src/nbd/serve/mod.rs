//! NBD server: read-only exports for any client that speaks fixed newstyle, with holes, block status and TLS; the other half of
//! the client beside it. Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.
//!
//! * `wire`: what a client asks and what is said to it; no input or output
//! * `handshake`: from a connected socket to an export
//! * `session`: requests in flight on one connection
//! * `reply`: from a request to what answers it
//! * `listen`: sockets, and a thread for each connection
//! * `admission`: how many of them; `accounts`: what each export costs, so that one that hangs takes nothing from the others
//!
//! Nothing that a client says is believed. What bounds it: connections and requests in flight are counted, what replies hold in
//! memory is lent from one budget, an option is short, the handshake has a deadline, and who does not take its replies is
//! hung up on. Nothing is ever written.

mod accounts;
mod admission;
mod handshake;
mod listen;
mod reply;
mod session;
pub mod wire;

#[cfg(test)]
mod tests;

pub use admission::{Admission, Seat};
pub use listen::{Listener, Place};

use accounts::{Account, Accounts};

use super::channel::Channel;
use super::handshake::Sizes;
use super::socket::Socket;
use super::tls;
use super::wire::{DEFAULT_MAX_PAYLOAD, Extent};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What all replies that are under way may hold, bytes; and those of one export, whose disk may hang.
const REPLY_BYTES: usize = 96 << 20;
const EXPORT_REPLY_BYTES: usize = 64 << 20;
/// What each connection may hold besides, so that those who take nothing cannot keep the others waiting.
const RESERVED_BYTES: usize = 1 << 20;
/// What those of one connection may hold: one read of the longest sort.
const SESSION_REPLY_BYTES: usize = 32 << 20;
/// How long a handshake may take as a whole.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// How long a client may leave a reply, or its own half-said request, lying.
const PATIENCE: Duration = Duration::from_secs(60);

/// One thing that can be read.
pub trait Export: Send + Sync {
    /// Its size, bytes.
    fn bytes(&self) -> u64;
    /// What lengths requests must have.
    fn sizes(&self) -> Sizes {
        Sizes { minimum: 1, preferred: 64 << 10, maximum: DEFAULT_MAX_PAYLOAD }
    }
    /// Fills `into` with the bytes from `offset` on, all of which are there.
    ///
    /// # Errors
    /// Where it cannot be had. Whoever keeps the export says why to people.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unread>;
    /// What is known of the bytes from `offset` on without reading them: at least one extent, `most` at most, not longer than `bytes`.
    ///
    /// # Errors
    /// It cannot be told.
    fn extents(&self, offset: u64, bytes: u64, most: usize) -> Result<Vec<Extent>, Unread>;
}

/// A place that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unread {
    /// Its first byte on the export.
    pub offset: u64,
    /// NBD's number for why.
    pub error: u32,
}

impl Unread {
    /// An input or output error there.
    pub fn at(offset: u64) -> Unread {
        Unread { offset, error: libc::EIO.unsigned_abs() }
    }
}

/// Why an export cannot be had, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absent {
    /// There is none, or it is another one by now.
    Unknown(String),
    /// Its disk does not answer: whoever comes again may find it.
    Mute(String),
}

/// Who has the exports.
pub trait Keeper: Send + Sync {
    /// The names that a client is told when it asks for a list.
    fn names(&self) -> Vec<String>;
    /// The export of this name, for a client that is about to use it; else why not, for that client.
    ///
    /// # Errors
    /// There is none, or it cannot be had now.
    fn open(&self, name: &str) -> Result<Arc<dyn Export>, Absent>;
    /// Whether all shall end.
    fn stopped(&self) -> bool;
    /// A line for people.
    fn note(&self, text: String);
}

/// A server: what it offers, and to whom.
pub struct Host {
    keeper: Arc<dyn Keeper>,
    /// Without it nothing is encrypted; with it everything.
    tls: Option<tls::Host>,
    lent: AtomicUsize,
    accounts: Accounts,
}

impl Host {
    /// Offers what `keeper` has, to those whom `tls` believes, or to everybody who can connect.
    pub fn new(keeper: Arc<dyn Keeper>, tls: Option<tls::Host>) -> Host {
        Host { keeper, tls, lent: AtomicUsize::new(0), accounts: Accounts::default() }
    }

    /// Talks with one client, who has `seat`, until that ends; `from` says to people where it is.
    ///
    /// # Errors
    /// The client broke the protocol, was not believed, or let us wait.
    pub fn talk(self: &Arc<Host>, socket: Socket, from: &str, seat: &mut Seat) -> std::io::Result<()> {
        match handshake::agree(self, Channel::Plain(socket), seat)? {
            Some((channel, agreed)) => {
                tracing::debug!(from, export = agreed.name, "an NBD session begins");
                let visit = self.accounts.visit(&agreed.name);
                session::run(self, channel, agreed, visit)
            }
            None => Ok(()),
        }
    }

    /// Memory for a reply of a session that has been lent `held`, if there is any to spare.
    fn lend(self: &Arc<Host>, bytes: usize, held: &Arc<AtomicUsize>, account: &Arc<Account>) -> Option<Loan> {
        let take = |from: &AtomicUsize, limit: usize| {
            let more = |lent: usize| lent.checked_add(bytes).filter(|sum| *sum <= limit);
            from.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
        };
        if !take(held, SESSION_REPLY_BYTES) {
            return None;
        }
        let of_export = take(&account.lent, EXPORT_REPLY_BYTES);
        let from_all = of_export && take(&self.lent, REPLY_BYTES);
        if of_export && !from_all {
            account.lent.fetch_sub(bytes, Ordering::AcqRel);
        }
        // Only this session's thread takes from its own.
        if !from_all && held.load(Ordering::Acquire) > RESERVED_BYTES {
            held.fetch_sub(bytes, Ordering::AcqRel);
            return None;
        }
        let from_all = if from_all { bytes } else { 0 };
        Some(Loan { host: self.clone(), account: account.clone(), held: held.clone(), bytes, from_all })
    }
}

/// Part of the budget for replies, until dropped.
struct Loan {
    host: Arc<Host>,
    account: Arc<Account>,
    held: Arc<AtomicUsize>,
    bytes: usize,
    /// Of them, those that are of the budgets for all and for its export.
    from_all: usize,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.host.lent.fetch_sub(self.from_all, Ordering::AcqRel);
        self.account.lent.fetch_sub(self.from_all, Ordering::AcqRel);
        self.held.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
