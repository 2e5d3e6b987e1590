//! A look at a volume that an earlier process wrote, before anything is built on what it wrote: is it there, is it the same one, do
//! its ends and samples hold what the ledger says?
//!
//! Ids say little of a volume: device names change places, a file is given back older, an export has nothing but its address. So
//! bytes are compared: the first and the last blocks that are not zero, at least [`RANDOM`] random ones in between, and both ends.
//! That finds another volume, a wiped and an older one, and reads about 50 blocks; a changed block here or there takes a whole read
//! (`verify --volumes`).

use super::Volume;
use super::completed::expect_known;
use super::leaves::Leaves;
use super::places::Places;
use crate::context::{Context, now};
use crate::copy::fetch::Wanted;
use crate::copy::patience::{Medium, Patient};
use crate::copy::throttle::{Limits, Throttle};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Kind, Result};
use crate::io::{Completion, Engine, Pool};
use crate::ledger::centre::{ImportRow, Phase, VolumeRow};
use crate::ledger::checks::VolumeCheck;
use crate::monitor::{MediumKind, Progress};
use jiff::Timestamp;
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::{Leaf, leaf};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

/// Random blocks that are compared, where the disk has so many that are not zero.
pub const RANDOM: usize = 16;
/// Of the blocks that were committed last, so many are compared: a server that lost what it called durable lost these.
const LAST: usize = 16;
/// Rows of the manifest in one step.
const STEP_ROWS: usize = 1024;

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When.
    pub looked_at: Timestamp,
    /// Blocks that were compared.
    pub compared_blocks: u64,
    /// What they say.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What a look says of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It is there, it is the same one, and all that was compared is as proven.
    AsProven,
    /// Some of what was compared is not as proven.
    Differs {
        /// These blocks.
        blocks: Vec<u64>,
    },
    /// A whole read found a difference, and neither a later one nor a person took that back.
    CheckFailed {
        /// What it found.
        check: VolumeCheck,
    },
    /// It is there, it is the same one, and its difference was accepted: nothing was compared.
    Accepted {
        /// When, and why.
        check: VolumeCheck,
    },
    /// A later import was begun into it.
    MovedOn {
        /// Of this shipment.
        shipment: Uuid,
    },
    /// It is missing, another one, or cannot be read.
    Unseen {
        /// Why.
        why: String,
    },
}

impl Look {
    /// Whether the volume holds what was proven, or a person answers for the difference.
    pub fn is_good(&self) -> bool {
        matches!(self.verdict, Verdict::AsProven | Verdict::Accepted { .. })
    }

    /// What is not as proven, in words; `None` where nothing is.
    pub fn fault(&self) -> Option<String> {
        match &self.verdict {
            Verdict::AsProven | Verdict::Accepted { .. } => None,
            Verdict::Differs { blocks } => {
                let (differing, compared) = (blocks.len(), self.compared_blocks);
                Some(format!("{differing} of {compared} compared blocks of its volume are not as proven"))
            }
            Verdict::CheckFailed { check } => Some(match &check.why {
                Some(why) => format!("the check of its volume at {} failed: {why}", check.checked_at),
                None => format!(
                    "the check of its volume at {} found {} differing blocks",
                    check.checked_at, check.differing
                ),
            }),
            Verdict::MovedOn { shipment } => {
                Some(format!("an import of shipment {shipment} was begun into its volume"))
            }
            Verdict::Unseen { why } => Some(why.clone()),
        }
    }
}

/// Looks at the volume of a complete import. The caller holds its lock ([`crate::ledger::Ledger::share_volume`]).
///
/// # Errors
/// The ledger cannot be read, or is older than the volume; interrupted. What is wrong with the volume is in the look.
pub fn look(context: &Context, places: &mut Places<'_>, row: &VolumeRow, import: &ImportRow) -> Result<Look> {
    let throttle = Throttle::new(Limits::default());
    let progress = Progress::new("look", Vec::new());
    let ledger = &context.ledger;
    let seen = |compared_blocks, verdict| Ok(Look { looked_at: now()?, compared_blocks, verdict });
    if let Some(last) = ledger.last_import(row.disk)?.filter(|last| last.id != import.id) {
        return seen(0, Verdict::MovedOn { shipment: last.shipment });
    }
    let check = ledger.last_check(import.id)?;
    let (open, accepted) = match check {
        Some(check) if import.digest.is_some_and(|proven| check.is_open(proven)) => (Some(check), None),
        Some(check) if check.accepted_at.is_some() => (None, Some(check)),
        _ => (None, None),
    };
    if let Some(check) = open {
        return seen(0, Verdict::CheckFailed { check });
    }
    let mut opened = || -> Result<Arc<dyn Volume>> {
        let place = places.of_row(ledger, row, import)?;
        let medium = Medium::new(MediumKind::Volume, &place.to_string(), &throttle, &progress);
        let (there, watched) = (place.clone(), medium.clone());
        let (completed, volume) = medium.call(move || Ok((there.completed()?, there.open(Some(watched))?)))?;
        expect_known(ledger, &place, row.disk, completed)?;
        row.is_bound_to(&volume.identity(&context.sys)?)?;
        Ok(volume)
    };
    let compared = opened().and_then(|volume| match accepted {
        Some(check) => Ok((0, Verdict::Accepted { check })),
        None => as_released(context, &*volume, import, &throttle),
    });
    match compared {
        Ok((compared, verdict)) => seen(compared, verdict),
        Err(error) if matches!(error.kind, Kind::Interrupted | Kind::Untrusted) => Err(error),
        Err(error) => seen(0, Verdict::Unseen { why: error.to_string() }),
    }
}

/// Compares ends and samples of a released volume with the leaves that its read-back kept. Returns how many blocks were compared.
///
/// # Errors
/// The leaves are not those of the import; the volume cannot be read.
pub fn as_released(
    context: &Context,
    volume: &dyn Volume,
    import: &ImportRow,
    throttle: &Throttle,
) -> Result<(u64, Verdict)> {
    let geometry = Geometry::new(import.bytes, import.block_bytes)?;
    if volume.bytes() < geometry.bytes() {
        return Err(Error::failed(format!(
            "Volume {}: expected at least {} bytes, found {}",
            volume.name(),
            geometry.bytes(),
            volume.bytes()
        )));
    }
    let mut known = Kept::open(context, import, geometry)?;
    let Some(last) = geometry.blocks().checked_sub(1) else { return Ok((0, Verdict::AsProven)) };
    let mut blocks = choose(&mut known, 1, last)?;
    blocks.extend([0, last]);
    let found = differing(volume, &geometry, context.engine, throttle, &mut known, &blocks)?;
    let verdict = if found.is_empty() { Verdict::AsProven } else { Verdict::Differs { blocks: found } };
    Ok((blocks.len() as u64, verdict))
}

/// What a volume is known to hold.
pub trait Known {
    /// The first block of `from..to` that is there and not all zeros.
    ///
    /// # Errors
    /// What knows it cannot be read.
    fn next_data(&mut self, from: u64, to: u64) -> Result<Option<u64>>;
    /// The last blocks of `from..to` that are there and not all zeros, at most `count` of them.
    ///
    /// # Errors
    /// As [`Known::next_data`].
    fn last_data(&mut self, from: u64, to: u64, count: usize) -> Result<Vec<u64>>;
    /// The leaf of a block.
    ///
    /// # Errors
    /// As [`Known::next_data`].
    fn leaf(&mut self, block: u64) -> Result<Leaf>;
}

/// The leaves that the read-back of a complete import kept.
struct Kept {
    leaves: Leaves,
    zeros: Arc<ZeroLeaves>,
    geometry: Geometry,
}

impl Kept {
    fn open(context: &Context, import: &ImportRow, geometry: Geometry) -> Result<Kept> {
        let state = context.ledger.state();
        let mut leaves = Leaves::open(state, import.disk, geometry)?;
        // A disk of one block has no leaves that merge to its digest.
        if geometry.blocks() > 1 && leaves.digest(&[])? != import.digest {
            let path = Leaves::path(state, import.disk);
            return Err(Error::failed(format!(
                "Leaves {}: they do not merge to the digest that was proven",
                path.display()
            ))
            .next("restore the state directory from a backup, or import again with --overwrite"));
        }
        Ok(Kept { leaves, zeros: ZeroLeaves::open(state, import.block_bytes)?, geometry })
    }

    fn is_data(&mut self, block: u64) -> Result<bool> {
        Ok(self.leaves.get(block)? != self.zeros.leaf(block, self.geometry.len(block))?)
    }
}

impl Known for Kept {
    fn next_data(&mut self, from: u64, to: u64) -> Result<Option<u64>> {
        for block in from..to {
            if self.is_data(block)? {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    fn last_data(&mut self, from: u64, to: u64, count: usize) -> Result<Vec<u64>> {
        let mut last = Vec::new();
        for block in (from..to).rev() {
            if last.len() == count {
                break;
            }
            if self.is_data(block)? {
                last.push(block);
            }
        }
        Ok(last)
    }

    fn leaf(&mut self, block: u64) -> Result<Leaf> {
        self.leaves.get(block)
    }
}

/// The rows of a manifest, as far as an import has written them.
pub struct Sealed<'a> {
    /// The verified manifest.
    pub catalogue: &'a Catalogue,
    /// The disk.
    pub wanted: &'a Wanted,
    /// Whether records are encrypted.
    pub encrypted: bool,
    /// Blocks that are not on the volume.
    pub absent: BTreeSet<u64>,
}

impl Sealed<'_> {
    /// Blocks of up to [`STEP_ROWS`] rows behind `from` and below `to` that are there and not all zeros.
    fn data(&self, from: u64, to: u64) -> Result<Vec<u64>> {
        let steps = usize::try_from(to - from).unwrap_or(usize::MAX).min(STEP_ROWS);
        let Wanted { generation, geometry, .. } = self.wanted;
        let rows = self.catalogue.rows(generation, geometry, self.encrypted, from, steps)?;
        let there = rows.into_iter().filter(|row| row.place.is_some() && row.block < to);
        Ok(there.map(|row| row.block).filter(|block| !self.absent.contains(block)).collect())
    }
}

impl Known for Sealed<'_> {
    fn next_data(&mut self, from: u64, to: u64) -> Result<Option<u64>> {
        let mut from = from;
        while from < to {
            if let Some(block) = self.data(from, to)?.first() {
                return Ok(Some(*block));
            }
            from += STEP_ROWS as u64;
        }
        Ok(None)
    }

    fn last_data(&mut self, from: u64, to: u64, count: usize) -> Result<Vec<u64>> {
        let (mut last, mut to) = (Vec::new(), to);
        while from < to && last.len() < count {
            let step = to.saturating_sub(STEP_ROWS as u64).max(from);
            let found = self.data(step, to)?;
            last.extend(found.into_iter().rev().take(count - last.len()));
            to = step;
        }
        Ok(last)
    }

    fn leaf(&mut self, block: u64) -> Result<Leaf> {
        let Wanted { name, generation, geometry, .. } = self.wanted;
        let rows = self.catalogue.rows(generation, geometry, self.encrypted, block, 1)?;
        let row = rows.first().filter(|row| row.block == block);
        let lack = || Error::untrusted(format!("Manifest of disk {name}: no row for block {block}"));
        row.map(|row| row.leaf).ok_or_else(lack)
    }
}

/// Chooses what is compared of `from..to`: the first and the last that are not zero, and random ones all over.
///
/// # Errors
/// What `known` returns.
pub fn choose(known: &mut dyn Known, from: u64, to: u64) -> Result<BTreeSet<u64>> {
    let mut chosen = BTreeSet::new();
    let Some(first) = known.next_data(from, to)? else { return Ok(chosen) };
    chosen.insert(first);
    chosen.extend(known.last_data(first, to, LAST)?);
    let wanted = chosen.len() + RANDOM;
    // One in each part, so that no region goes unseen.
    let parts = RANDOM as u64;
    let bound = |part: u64| first + (u128::from(to - first) * u128::from(part) / u128::from(parts)) as u64;
    for (low, high) in (0..parts).map(|part| (bound(part), bound(part + 1))).filter(|(low, high)| low < high) {
        let start = low + random(high - low);
        let found = match known.next_data(start, high)? {
            None => known.next_data(low, start)?,
            found => found,
        };
        chosen.extend(found);
    }
    // Where data lies close together, parts had none, or one that was chosen already.
    let start = first + random(to - first);
    for (mut at, end) in [(start, to), (first, start)] {
        while chosen.len() < wanted
            && let Some(found) = known.next_data(at, end)?
        {
            chosen.insert(found);
            at = found + 1;
        }
    }
    Ok(chosen)
}

/// A random number below `bound`, which is not 0.
fn random(bound: u64) -> u64 {
    (Uuid::new_v4().as_u128() % u128::from(bound)) as u64
}

/// Which of `blocks` the volume's medium does not hold as `known`; one that cannot be read counts.
///
/// # Errors
/// The volume cannot be opened for reading, or is lost; interrupted.
pub fn differing(
    volume: &dyn Volume,
    geometry: &Geometry,
    engine: Engine,
    throttle: &Throttle,
    known: &mut dyn Known,
    blocks: &BTreeSet<u64>,
) -> Result<Vec<u64>> {
    let depth = if geometry.block_bytes() > 4 << 20 { 2 } else { 4 };
    let pool = Pool::new(geometry.block_bytes() as usize, depth)?;
    let mut queue = volume.reader(engine, depth)?;
    let mut found = BTreeSet::new();
    let mut finish = |queue: &mut Patient| -> Result<()> {
        let lost = || Error::failed(format!("Volume {}: a read was lost", volume.name()));
        let Completion { token, buffer, result, .. } = queue.wait()?.ok_or_else(lost)?;
        match (result, buffer) {
            (Ok(()), Some(bytes)) => {
                if leaf(geometry.offset(token), &bytes) != known.leaf(token)? {
                    found.insert(token);
                }
            }
            (Err(error), _) if volume.is_lost() => {
                return Err(Error::io(format!("Volume {}: reading block {token}", volume.name()), error)
                    .next("check the volume's server, then run the same command again"));
            }
            _ => {
                found.insert(token);
            }
        }
        Ok(())
    };
    for block in blocks {
        let length = geometry.len(*block);
        throttle.admit(u64::from(length))?;
        let buffer = loop {
            match pool.try_take() {
                Some(buffer) => break buffer,
                None => finish(&mut queue)?,
            }
        };
        queue.read(*block, geometry.offset(*block), buffer, length as usize);
    }
    while queue.in_flight() > 0 {
        finish(&mut queue)?;
    }
    Ok(found.into_iter().collect())
}

/// Up to where an import of this phase has written blocks.
pub fn written(import: &ImportRow, geometry: &Geometry) -> u64 {
    match import.phase {
        Phase::Planned => 0,
        Phase::Writing => import.mark,
        _ => geometry.blocks(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that are not zero.
    struct Data(Vec<u64>);

    impl Known for Data {
        fn next_data(&mut self, from: u64, to: u64) -> Result<Option<u64>> {
            Ok(self.0.iter().copied().find(|block| (from..to).contains(block)))
        }
        fn last_data(&mut self, from: u64, to: u64, count: usize) -> Result<Vec<u64>> {
            Ok(self.0.iter().rev().copied().filter(|block| (from..to).contains(block)).take(count).collect())
        }
        fn leaf(&mut self, _: u64) -> Result<Leaf> {
            Ok(Leaf::from_bytes([0; 32]))
        }
    }

    #[test]
    fn first_last_and_random_blocks_are_chosen_wherever_data_lies() {
        let cases: [Vec<u64>; 6] = [
            (0..1_000_000).collect(),
            (10..60).collect(),
            (0..20).chain(999_000..999_020).collect(),
            vec![7],
            (0..17).map(|block| block * block * 1000).collect(),
            vec![],
        ];
        for data in cases {
            let chosen = choose(&mut Data(data.clone()), 1, 999_999).unwrap();
            let there: Vec<u64> = data.into_iter().filter(|block| (1..999_999).contains(block)).collect();
            assert!(chosen.len() >= there.len().min(LAST + RANDOM + 1), "{} of {}", chosen.len(), there.len());
            assert!(chosen.len() <= 2 + LAST + 2 * RANDOM && chosen.iter().all(|block| there.contains(block)));
            assert_eq!((chosen.first(), chosen.last()), (there.first(), there.last()));
        }
        assert!(choose(&mut Data(vec![5]), 1, 1).unwrap().is_empty());
    }
}
