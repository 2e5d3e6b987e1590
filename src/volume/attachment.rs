//! An attachment of ours in Block Storage, for as long as it is used.

use crate::ledger::Ledger;
use crate::nbd::Server;
use crate::openstack::Session;
use crossbeam_channel::{RecvTimeoutError, Sender, TryRecvError, bounded};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks whether it is still there.
const EVERY: Duration = Duration::from_secs(15);

/// Ended when it is dropped.
pub struct Attachment {
    session: Arc<Session>,
    ledger: Arc<Ledger>,
    id: String,
    /// Dropped to end the looking.
    watch: Option<Sender<()>>,
}

impl Attachment {
    /// Of this id.
    pub fn new(session: Arc<Session>, ledger: Arc<Ledger>, id: String) -> Attachment {
        Attachment { session, ledger, id, watch: None }
    }

    /// Ends `server` should somebody take the volume away from us: its storage may just fall silent then, for ever, or let us write to what
    /// another has by now. Whoever lost its server asks for the volume again, and gets it back or hears what became of it.
    pub fn watch(&mut self, server: &Server) {
        let (watch, dropped) = bounded::<()>(0);
        let (session, id, stopper) = (self.session.clone(), self.id.clone(), server.stopper());
        let look = move || {
            while dropped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                // A cloud that does not answer has taken nothing away.
                let gone = session.is_attached(&id).is_ok_and(|attached| !attached);
                // We may have ended it ourselves meanwhile.
                if gone && dropped.try_recv() == Err(TryRecvError::Empty) {
                    tracing::warn!(attachment = id, "somebody has ended an attachment of ours");
                    return stopper.stop();
                }
            }
        };
        // Without it nobody looks; no more.
        if std::thread::Builder::new().name("motiongear-attachment".into()).spawn(look).is_ok() {
            self.watch = Some(watch);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // First: that it goes is no news any more.
        drop(self.watch.take());
        let ended = self.session.detach(&self.id).and_then(|()| self.ledger.forget_attachment(&self.id));
        if let Err(error) = ended {
            // The next run ends it.
            tracing::warn!(attachment = self.id, %error, "an attachment could not be ended");
        }
    }
}
