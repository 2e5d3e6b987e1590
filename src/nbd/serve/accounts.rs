//! What each export costs, so that one whose disk hangs takes nothing from the others: memory of replies, and readers whose client has
//! left. A read that the kernel has cannot be taken back; so when a client leaves, its place is free at once, and what it asked for
//! lingers until the disk answers. There is a limit to that, too: where it is reached, nobody else is let in to that export.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Sessions of one export that may linger before others are refused there.
const MAX_LINGERING: usize = 16;

/// One account for each export that was ever chosen.
#[derive(Default)]
pub struct Accounts(Mutex<HashMap<String, Arc<Account>>>);

/// The account of one export.
#[derive(Default)]
pub struct Account {
    /// What replies of its sessions hold, bytes.
    pub lent: AtomicUsize,
    /// Sessions that have ended, but for their reads.
    lingering: AtomicUsize,
}

/// A session with an export, until all its reads are over.
pub struct Visit {
    /// That of the export.
    pub account: Arc<Account>,
    left: AtomicBool,
}

impl Accounts {
    /// Begins a session with the export `name`, which there is.
    pub fn visit(&self, name: &str) -> Arc<Visit> {
        let account = self.accounts().entry(name.to_owned()).or_default().clone();
        Arc::new(Visit { account, left: AtomicBool::new(false) })
    }

    /// Whether so much lingers on the export `name` that its disk must be taken for one that does not answer.
    pub fn is_mute(&self, name: &str) -> bool {
        self.accounts().get(name).is_some_and(|account| account.lingering.load(Ordering::Acquire) >= MAX_LINGERING)
    }

    /// Whether nothing lingers anywhere.
    pub fn is_quiet(&self) -> bool {
        self.accounts().values().all(|account| account.lingering.load(Ordering::Acquire) == 0)
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<String, Arc<Account>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit {
    /// Whether the client has left.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// The client has left.
    pub fn leave(&self) {
        if !self.left.swap(true, Ordering::AcqRel) {
            self.account.lingering.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if *self.left.get_mut() {
            self.account.lingering.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_mute_while_too_much_lingers_on_it_and_no_other_is() {
        let accounts = Accounts::default();
        let visits: Vec<_> = (0..MAX_LINGERING).map(|_| accounts.visit("hung")).collect();
        assert!(!accounts.is_mute("hung") && accounts.is_quiet(), "they are all still here");
        visits.iter().chain(&visits).for_each(|visit| visit.leave());
        assert!(accounts.is_mute("hung") && !accounts.is_mute("well") && !accounts.is_quiet());
        drop(visits);
        assert!(!accounts.is_mute("hung") && accounts.is_quiet());
    }
}
