//! A bounded amount of work under way: bytes that were read from a source and are not yet committed. It is the back-pressure
//! of the pipeline and, in the same stroke, the bound on what is copied again after a crash.

use std::sync::{Condvar, Mutex, PoisonError};

/// A counting semaphore over bytes.
pub struct Credits {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: u64,
    total: u64,
    closed: bool,
    /// Threads that wait: to let nobody go needs no call of the kernel.
    waiting: usize,
}

impl Credits {
    /// `total` bytes may be under way.
    pub fn new(total: u64) -> Self {
        Credits { state: Mutex::new(State { free: total, total, closed: false, waiting: 0 }), changed: Condvar::new() }
    }

    /// Waits for `bytes` (at most the total); `false` once closed.
    #[must_use]
    pub fn acquire(&self, bytes: u64) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = bytes.min(state.total);
        while state.free < wanted && !state.closed {
            state.waiting += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if state.closed {
            return false;
        }
        state.free -= wanted;
        true
    }

    /// Gives back what [`Self::acquire`] took.
    pub fn release(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free = state.free.saturating_add(bytes).min(state.total);
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Lets `bytes` more be under way from now on.
    pub fn grow(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.total = state.total.saturating_add(bytes);
        state.free = state.free.saturating_add(bytes);
        self.changed.notify_all();
    }

    /// Takes `bytes` if they are free now; false too once closed.
    #[must_use]
    pub fn try_acquire(&self, bytes: u64) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = bytes.min(state.total);
        let granted = !state.closed && state.free >= wanted;
        if granted {
            state.free -= wanted;
        }
        granted
    }

    /// Lets all waiters go; nothing more is granted.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_all();
    }
}
