//! A few things that are costly to open, shared by many threads: made when they are wanted, not more than so many.

use crate::error::Result;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often who waits looks whether the job still wants it.
const LOOK: Duration = Duration::from_millis(200);

/// The things.
pub struct Handles<T> {
    state: Mutex<State<T>>,
    freed: Condvar,
    most: usize,
}

struct State<T> {
    free: Vec<T>,
    made: usize,
}

impl<T> Handles<T> {
    /// `most` at a time.
    pub fn new(most: usize) -> Handles<T> {
        let state = Mutex::new(State { free: Vec::new(), made: 0 });
        Handles { state, freed: Condvar::new(), most: most.max(1) }
    }

    /// Works with one of them, which `make` makes where none is free. `work` also says whether it is any good afterwards.
    ///
    /// # Errors
    /// `make` failed; what `wanted` returned while all were in use.
    pub fn with<R>(
        &self,
        make: impl FnOnce() -> Result<T>,
        wanted: impl Fn() -> Result<()>,
        work: impl FnOnce(&mut T) -> (R, bool),
    ) -> Result<R> {
        let mut state = self.lock();
        let free = loop {
            if let Some(free) = state.free.pop() {
                break Some(free);
            }
            if state.made < self.most {
                state.made += 1;
                break None;
            }
            wanted()?;
            state = self.freed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(state);
        // Whatever happens from here on, panics included, its place is given back.
        let mut place = Place { handles: self, handle: None };
        place.handle = Some(free.map_or_else(make, Ok)?);
        let Some(handle) = &mut place.handle else { return Err(crate::error::Error::failed("A handle is gone")) };
        let (result, good) = work(handle);
        if !good {
            place.handle = None;
        }
        Ok(result)
    }

    /// Gives up those that nobody works with.
    pub fn forget(&self) {
        let mut state = self.lock();
        let idle = std::mem::take(&mut state.free);
        state.made -= idle.len();
        drop(state);
        drop(idle);
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Place<'a, T> {
    handles: &'a Handles<T>,
    handle: Option<T>,
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let mut state = self.handles.lock();
        match self.handle.take().filter(|_| !std::thread::panicking()) {
            Some(handle) => state.free.push(handle),
            None => state.made -= 1,
        }
        drop(state);
        self.handles.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn never_more_than_the_most_and_what_broke_is_made_anew() {
        let (handles, made, busy, peak) =
            (Handles::new(3), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let make = || Ok(made.fetch_add(1, Ordering::SeqCst));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let work = |_: &mut usize| {
                        let now = busy.fetch_add(1, Ordering::SeqCst) + 1;
                        peak.fetch_max(now, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(3));
                        busy.fetch_sub(1, Ordering::SeqCst);
                        ((), true)
                    };
                    handles.with(make, || Ok(()), work).unwrap();
                });
            }
        });
        assert!((1..=3).contains(&peak.load(Ordering::SeqCst)) && made.load(Ordering::SeqCst) <= 3);
        let one: Handles<usize> = Handles::new(1);
        one.with(make, || Ok(()), |_| ((), false)).unwrap();
        assert!(one.with(|| Err(Error::failed("no")), || Ok(()), |_| ((), true)).is_err());
        one.with(make, || Ok(()), |_| ((), true)).unwrap();
        // Nobody waits for what is not wanted any more.
        let stopped = || Err(Error::interrupted("stopped"));
        one.with(make, stopped, |_| (assert!(one.with(make, stopped, |_| ((), true)).is_err()), true)).unwrap();
    }
}
