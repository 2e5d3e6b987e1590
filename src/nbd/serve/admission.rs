//! How many clients are let in. Those who have not yet shown who they are get places of their own, few for each address: whoever
//! comes without a certificate cannot keep out those who have one. Where their places are taken, the oldest goes, not the newcomer.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections at a time; `nbdcopy` takes four, a disk of ours five.
const MAX_KNOWN: usize = 64;
/// Connections that are still shaking hands, of all addresses together, and of one.
const MAX_STRANGERS: usize = 64;
const MAX_STRANGERS_OF_ONE: usize = 16;

/// Ends a connection, whatever its thread does at that moment.
pub type HangUp = Box<dyn Fn() + Send>;

/// The places of one listener.
#[derive(Default)]
pub struct Admission(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    known: usize,
    /// The oldest first.
    strangers: VecDeque<Stranger>,
    next: u64,
}

struct Stranger {
    number: u64,
    from: Option<IpAddr>,
    hang_up: HangUp,
}

/// The place of one connection, until it is dropped.
pub struct Seat {
    admission: Arc<Admission>,
    number: u64,
    known: bool,
}

impl Admission {
    /// A place for one that comes from `from` (none: from this host). Where there is none left, the one that has been shaking hands the
    /// longest is hung up on: who means it is done in a moment. Says whether that was so.
    pub fn stranger(self: &Arc<Admission>, from: Option<IpAddr>, hang_up: HangUp) -> (Seat, bool) {
        let mut counts = self.counts();
        let of_one = counts.strangers.iter().filter(|stranger| stranger.from == from).count();
        let oldest = match (of_one >= MAX_STRANGERS_OF_ONE, counts.strangers.len() >= MAX_STRANGERS) {
            (true, _) => counts.strangers.iter().position(|stranger| stranger.from == from),
            (false, true) => Some(0),
            (false, false) => None,
        };
        let ended = oldest.and_then(|at| counts.strangers.remove(at));
        counts.next += 1;
        let number = counts.next;
        counts.strangers.push_back(Stranger { number, from, hang_up });
        drop(counts);
        let full = ended.is_some();
        if let Some(Stranger { hang_up, .. }) = ended {
            hang_up();
        }
        (Seat { admission: self.clone(), number, known: false }, full)
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
    /// False for one that was hung up on.
    fn leave(&mut self, number: u64) -> bool {
        let at = self.strangers.iter().position(|stranger| stranger.number == number);
        at.and_then(|at| self.strangers.remove(at)).is_some()
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
        if counts.known >= MAX_KNOWN || !counts.leave(self.number) {
            return false;
        }
        counts.known += 1;
        self.known = true;
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        match self.known {
            true => counts.known -= 1,
            false => drop(counts.leave(self.number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn strangers_never_take_the_places_of_those_who_are_known_and_the_oldest_of_them_goes() {
        let (admission, ended) = (Arc::new(Admission::default()), Arc::new(AtomicUsize::new(0)));
        let address = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
        let come = |last: u8| {
            let ended = ended.clone();
            admission.stranger(address(last), Box::new(move || _ = ended.fetch_add(1, Ordering::SeqCst)))
        };
        // One address gets its share, however often it asks, and its newest are in.
        let mut strangers: Vec<(Seat, bool)> = (0..100).map(|_| come(1)).collect();
        assert_eq!(strangers.iter().filter(|(_, full)| *full).count(), 100 - MAX_STRANGERS_OF_ONE);
        assert_eq!(ended.load(Ordering::SeqCst), 100 - MAX_STRANGERS_OF_ONE);
        assert!(!strangers[0].0.known(), "it was hung up on");
        let mut friends = Vec::new();
        for _ in 0..MAX_KNOWN {
            let (mut seat, full) = come(2);
            assert!(seat.known() && seat.known() && !full, "another address has its own share");
            friends.push(seat);
        }
        let (mut late, _) = come(2);
        assert!(!late.known(), "one more than there is room for");
        friends.pop();
        assert!(late.known());
        // All addresses together have their limit, too, and a newcomer finds a place all the same.
        strangers.extend((3..=255).map(come));
        assert!(admission.counts().strangers.len() == MAX_STRANGERS);
        let (mut newcomer, full) = come(2);
        friends.pop();
        assert!(full && newcomer.known());
        drop((strangers, friends, newcomer));
        assert!(!admission.is_empty());
        drop(late);
        assert!(admission.is_empty());
    }
}
