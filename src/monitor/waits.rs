//! What a job waits for outside of it, and since when: one list for sources, arrays and volumes.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::copy::clock::lock;

/// What sort of thing does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MediumKind {
    /// What a disk is read from; named by the disk.
    Source,
    /// The transport array; named by where it is mounted.
    Array,
    /// What a disk is written to; named by its path.
    Volume,
}

/// One medium that has not answered for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What it is.
    pub kind: MediumKind,
    /// Which one.
    pub name: String,
    /// How long a request has been waiting for its answer.
    pub seconds: u64,
}

/// The requests of one job that were not answered at once.
#[derive(Default)]
pub struct Waits(Mutex<Vec<Arc<Entry>>>);

struct Entry {
    kind: MediumKind,
    name: Arc<str>,
    since: Instant,
}

impl Waits {
    /// Lists a request that waits since `since`, until the guard is dropped.
    pub fn list(&self, kind: MediumKind, name: &Arc<str>, since: Instant) -> Listed<'_> {
        let entry = Arc::new(Entry { kind, name: name.clone(), since });
        lock(&self.0).push(entry.clone());
        Listed { waits: self, entry }
    }

    /// Every medium that has not answered for a second or more, by its oldest request.
    pub fn now(&self) -> Vec<Waiting> {
        let mut waiting: Vec<Waiting> = Vec::new();
        for Entry { kind, name, since } in lock(&self.0).iter().map(Arc::as_ref) {
            let seconds = since.elapsed().as_secs();
            match waiting.iter_mut().find(|other| other.kind == *kind && *other.name == **name) {
                Some(other) => other.seconds = other.seconds.max(seconds),
                None => waiting.push(Waiting { kind: *kind, name: name.to_string(), seconds }),
            }
        }
        waiting.retain(|waiting| waiting.seconds > 0);
        waiting.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        waiting
    }
}

/// A request on the list.
#[must_use]
pub struct Listed<'a> {
    waits: &'a Waits,
    entry: Arc<Entry>,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.waits.0).retain(|other| !Arc::ptr_eq(other, &self.entry));
    }
}
