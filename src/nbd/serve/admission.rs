//! How many clients are let in. Those who have not yet shown who they are get places of their own, few for each address: whoever
//! comes without a certificate cannot keep out those who have one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections at a time; `nbdcopy` takes four, a disk of ours five.
const MAX_KNOWN: usize = 64;
/// Connections that are still shaking hands, of all addresses together, and of one.
const MAX_STRANGERS: usize = 64;
const MAX_STRANGERS_OF_ONE: usize = 16;

/// The places of one listener.
#[derive(Default)]
pub struct Admission(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    known: usize,
    strangers: HashMap<Option<IpAddr>, usize>,
}

/// The place of one connection, until it is dropped.
pub struct Seat {
    admission: Arc<Admission>,
    from: Option<IpAddr>,
    known: bool,
}

impl Admission {
    /// A place for one that comes from `from` (none: from this host); `None` where there is none left.
    pub fn stranger(self: &Arc<Admission>, from: Option<IpAddr>) -> Option<Seat> {
        let mut counts = self.counts();
        let all: usize = counts.strangers.values().sum();
        let of_one = counts.strangers.get(&from).copied().unwrap_or(0);
        if all >= MAX_STRANGERS || of_one >= MAX_STRANGERS_OF_ONE {
            return None;
        }
        counts.strangers.insert(from, of_one + 1);
        Some(Seat { admission: self.clone(), from, known: false })
    }

    /// Whether nobody is in.
    pub fn is_empty(&self) -> bool {
        let counts = self.counts();
        counts.known == 0 && counts.strangers.is_empty()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn leave(&mut self, from: Option<IpAddr>) {
        match self.strangers.get_mut(&from) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.strangers.remove(&from)),
        }
    }
}

impl Seat {
    /// It has shown who it is; false where there is no more room for such, either.
    #[must_use]
    pub fn known(&mut self) -> bool {
        if self.known {
            return true;
        }
        let mut counts = self.admission.counts();
        if counts.known >= MAX_KNOWN {
            return false;
        }
        counts.known += 1;
        counts.leave(self.from);
        self.known = true;
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        match self.known {
            true => counts.known -= 1,
            false => counts.leave(self.from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_never_take_the_places_of_those_who_are_known() {
        let admission = Arc::new(Admission::default());
        let address = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
        // One address gets its share, however often it asks.
        let mut strangers: Vec<Seat> = (0..1000).filter_map(|_| admission.stranger(address(1))).collect();
        assert_eq!(strangers.len(), MAX_STRANGERS_OF_ONE);
        let mut friends = Vec::new();
        for _ in 0..MAX_KNOWN {
            let mut seat = admission.stranger(address(2)).expect("another address has its own share");
            assert!(seat.known() && seat.known());
            friends.push(seat);
        }
        let mut late = admission.stranger(address(2)).expect("a place to shake hands");
        assert!(!late.known(), "one more than there is room for");
        friends.pop();
        assert!(late.known());
        // All addresses together have their limit, too.
        strangers.extend((3..=255).filter_map(|last| admission.stranger(address(last))));
        assert_eq!(strangers.len(), MAX_STRANGERS);
        drop((strangers, friends));
        assert!(!admission.is_empty());
        drop(late);
        assert!(admission.is_empty());
    }
}
