//! Blocks that were proven a moment ago: a client reads a block in pieces, and several of them at once.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Which block: the disk's place in the list, and its number.
pub type Key = (usize, u64);
/// Its bytes.
pub type Bytes = Arc<Vec<u8>>;

/// The blocks, within a bound.
pub struct Cache {
    state: Mutex<State>,
    loaded: Condvar,
    most_bytes: usize,
}

#[derive(Default)]
struct State {
    slots: HashMap<Key, Slot>,
    bytes: usize,
    clock: u64,
}

enum Slot {
    /// Somebody is at it.
    Loading,
    Ready {
        bytes: Bytes,
        used: u64,
    },
}

impl Cache {
    /// Keeps `most_bytes` at most.
    pub fn new(most_bytes: usize) -> Cache {
        Cache { state: Mutex::default(), loaded: Condvar::new(), most_bytes }
    }

    /// The block, by `load` where it is not there; who comes while another loads it waits for that one. `None` is not kept.
    ///
    /// # Errors
    /// What `load` returned.
    pub fn get<E>(&self, key: Key, load: impl FnOnce() -> Result<Option<Bytes>, E>) -> Result<Option<Bytes>, E> {
        let mut state = self.lock();
        loop {
            state.clock += 1;
            let now = state.clock;
            match state.slots.get_mut(&key) {
                Some(Slot::Ready { bytes, used }) => {
                    *used = now;
                    return Ok(Some(bytes.clone()));
                }
                Some(Slot::Loading) => state = self.loaded.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => break,
            }
        }
        state.slots.insert(key, Slot::Loading);
        drop(state);
        let mut loading = Loading { cache: self, key, loaded: None };
        let loaded = load()?;
        loading.loaded.clone_from(&loaded);
        Ok(loaded)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot that is filled or emptied, however its loading ends.
struct Loading<'a> {
    cache: &'a Cache,
    key: Key,
    loaded: Option<Bytes>,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut guard = self.cache.lock();
        let state = &mut *guard;
        state.slots.remove(&self.key);
        if let Some(bytes) = self.loaded.take().filter(|bytes| bytes.len() <= self.cache.most_bytes) {
            state.bytes += bytes.len();
            state.slots.insert(self.key, Slot::Ready { bytes, used: state.clock });
            while state.bytes > self.cache.most_bytes {
                let ready = state.slots.iter().filter_map(|(key, slot)| match slot {
                    Slot::Ready { used, bytes } => Some((*used, *key, bytes.len())),
                    Slot::Loading => None,
                });
                let Some((_, oldest, bytes)) = ready.min() else { break };
                state.slots.remove(&oldest);
                state.bytes -= bytes;
            }
        }
        drop(guard);
        self.cache.loaded.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_block_is_loaded_once_and_the_oldest_ones_make_room() {
        let cache = Cache::new(300);
        let loads = AtomicUsize::new(0);
        let get = |block: u64| {
            let load = || {
                loads.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(5));
                Ok::<_, ()>(Some(Arc::new(vec![block as u8; 100])))
            };
            assert_eq!(cache.get((0, block), load).unwrap().unwrap()[99], block as u8);
        };
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| get(1)))));
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        [2, 3, 1, 4].into_iter().for_each(get);
        let kept = cache.lock().bytes;
        assert_eq!((loads.load(Ordering::SeqCst), kept), (4, 300));
        // 2 was used longest ago.
        [1, 3, 4].into_iter().for_each(get);
        assert_eq!(loads.load(Ordering::SeqCst), 4);
        get(2);
        assert_eq!(loads.load(Ordering::SeqCst), 5);
        // Neither failures nor zeros are kept, and neither is in anybody's way.
        assert_eq!(cache.get((1, 1), || Err(7)), Err(7));
        assert_eq!(cache.get::<()>((1, 1), || Ok(None)), Ok(None));
        assert!(cache.get::<()>((1, 1), || Ok(Some(Arc::new(vec![0; 301])))).unwrap().is_some());
        assert_eq!(cache.lock().bytes, 300);
    }
}
