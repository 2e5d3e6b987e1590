//! Every block, with the keys: a fetch whose sink only counts.

use crate::copy::fetch::{Damage, Fetch, Sink, Wanted, fetch};
use crate::error::Result;
use crate::io::Buffer;
use crate::monitor::Progress;
use motiongear_manifest::catalogue::{BlockRow, Catalogue, Generation, UnreadableRange};
use motiongear_manifest::check::{Class, DiskProof, Finding, MAX_LISTED, Opened, Severity, UNREADABLE_IS_SET};
use motiongear_manifest::documents::seal::SealedDisk;
use motiongear_manifest::tree::Digest;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

#[derive(Default)]
struct Count {
    stored: AtomicU64,
    zero: AtomicU64,
    damaged: AtomicU64,
    /// Digest of a disk of one block, which its leaf does not give.
    only: Mutex<Option<Digest>>,
}

struct Counting<'a> {
    wanted: &'a [Wanted],
    counts: Vec<Count>,
    /// What the source could not give of each disk: zeros.
    unreadable: Vec<Vec<UnreadableRange>>,
    /// The first few; all are counted.
    damage: Mutex<Vec<(usize, Damage)>>,
    progress: &'a Progress,
}

impl Counting<'_> {
    fn done(&self, slot: usize, bytes: u64) {
        self.progress.disks[slot].done.fetch_add(bytes, Ordering::Relaxed);
    }
    fn only(&self, slot: usize, digest: impl FnOnce() -> Digest) {
        if self.wanted[slot].geometry.blocks() == 1 {
            *self.counts[slot].only.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest());
        }
    }
}

impl Sink for Counting<'_> {
    fn zeros(&self, slot: usize, rows: &[BlockRow]) -> Result<()> {
        let geometry = &self.wanted[slot].geometry;
        self.only(slot, || Digest::of(&vec![0; geometry.len(0) as usize]));
        self.counts[slot].zero.fetch_add(rows.len() as u64, Ordering::Relaxed);
        let bytes = rows.iter().map(|row| u64::from(geometry.len(row.block))).sum();
        self.done(slot, bytes);
        self.progress.disks[slot].zero.fetch_add(bytes, Ordering::Release);
        Ok(())
    }
    fn block(&self, slot: usize, row: &BlockRow, data: Buffer) -> Result<()> {
        let offset = self.wanted[slot].geometry.offset(row.block);
        if UnreadableRange::any_set(&self.unreadable[slot], offset, &data) {
            return self.damaged(slot, contradiction(row, offset, data.len()));
        }
        self.only(slot, || Digest::of(&data));
        self.counts[slot].stored.fetch_add(1, Ordering::Relaxed);
        self.done(slot, data.len() as u64);
        self.progress.disks[slot].stored.fetch_add(row.stored_bytes(), Ordering::Release);
        Ok(())
    }
    fn damaged(&self, slot: usize, damage: Damage) -> Result<()> {
        let bytes = u64::from(damage.bytes);
        self.counts[slot].damaged.fetch_add(1, Ordering::Relaxed);
        self.progress.disks[slot].damaged.fetch_add(bytes, Ordering::Relaxed);
        self.done(slot, bytes);
        let mut list = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < MAX_LISTED {
            list.push((slot, damage));
        }
        Ok(())
    }
}

/// A block that is right by its leaf and wrong by the manifest.
fn contradiction(row: &BlockRow, offset: u64, bytes: usize) -> Damage {
    Damage {
        block: row.block,
        offset,
        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        file: None,
        file_offset: None,
        why: UNREADABLE_IS_SET.to_owned(),
        untrusted: true,
    }
}

/// Reads all blocks of all disks. Damage that the walk over the packs named already is not named twice.
///
/// # Errors
/// Interrupted, or the engine fails.
pub(super) fn check(
    opened: &mut Opened,
    job: &Fetch<'_>,
    catalogue: &Catalogue,
    wanted: &[Wanted],
    disks: &[(SealedDisk, Generation)],
) -> Result<Vec<DiskProof>> {
    let sink = Counting {
        wanted,
        counts: wanted.iter().map(|_| Count::default()).collect(),
        unreadable: wanted.iter().map(|disk| catalogue.unreadable(&disk.generation)).collect::<Result<_, _>>()?,
        damage: Mutex::default(),
        progress: job.progress,
    };
    fetch(job, catalogue, wanted, &sink)?;
    let named = opened.findings.named_blocks();
    let mut damage = sink.damage.into_inner().unwrap_or_else(PoisonError::into_inner);
    damage.sort_by_key(|(slot, damage)| (*slot, damage.block));
    for (slot, damage) in damage {
        let disk = wanted[slot].name.clone();
        let object = damage.file.unwrap_or_else(|| "manifest.db".into());
        if named.contains(&(object.clone(), disk.clone(), damage.block)) {
            continue;
        }
        let class = if damage.untrusted { Class::Untrusted } else { Class::Damaged };
        let mut finding = Finding::new(Severity::Error, class, object, damage.why);
        (finding.disk, finding.block, finding.offset) = (Some(disk), Some(damage.block), damage.file_offset);
        opened.findings.push(finding);
    }
    let mut proofs = Vec::new();
    for (((sealed, _), count), wanted) in disks.iter().zip(&sink.counts).zip(wanted) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let only = *count.only.lock().unwrap_or_else(PoisonError::into_inner);
        // The manifest's leaves were merged and compared with the seal; a disk of at most one block has no such proof.
        let only = only.or_else(|| wanted.geometry.is_empty().then(|| Digest::of(&[])));
        let mut damaged = get(&count.damaged);
        if let Some(found) = only.filter(|found| *found != sealed.digest) {
            let what = format!("expected digest {}, found {found}", sealed.digest);
            opened.findings.error(Class::Untrusted, format!("disk {}", wanted.name), what);
            damaged += 1;
        }
        proofs.push(DiskProof {
            disk: wanted.name.clone(),
            bytes: sealed.bytes,
            digest: sealed.digest,
            stored: get(&count.stored),
            zero: get(&count.zero),
            damaged,
        });
    }
    Ok(proofs)
}
