//! Volumes once more: whether each still holds what was proven when its import ended. Everything is read again, no array is needed.

use crate::context::{Context, Outcome, now};
use crate::copy::patience::{Medium, Patient};
use crate::copy::throttle::{Limits, Throttle};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Kind, Result};
use crate::io::Pool;
use crate::job::Job;
use crate::lang::Lang;
use crate::ledger::centre::{ImportRow, Phase, VolumeRow};
use crate::ledger::checks::{MAX_RANGES, VolumeCheck};
use crate::monitor::{DiskProgress, MediumKind, Progress, Watch};
use crate::say;
use crate::units::size;
use crate::volume::completed::expect_known;
use crate::volume::leaves::Leaves;
use crate::volume::places::Places;
use crate::volume::store::recovery_point;
use crate::volume::{Place, Volume};
use jiff::Timestamp;
use motiongear_manifest::code::name_code;
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::names::check_text;
use motiongear_manifest::tree::{Digest, Leaf, Merger, leaf};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of one read, where blocks are not larger.
const SPAN_BYTES: u64 = 2 << 20;
/// Reads under way.
const DEPTH: usize = 4;
/// Differing blocks that are named, per disk.
const MAX_NAMED: usize = 1000;
/// Longest reason, bytes.
const MAX_REASON_BYTES: usize = 1000;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only this machine's volumes.
    pub machine: Option<String>,
    /// Only this disk's: DISK or MACHINE/DISK.
    pub disk: Option<String>,
    /// Read-rate and CPU limits.
    pub limits: Limits,
    /// MACHINE/DISK whose difference, as its last check found it, is accepted for this reason; nothing is read then.
    pub accept: Option<(String, String)>,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifiedVolumes {
    /// Each volume.
    pub volumes: Vec<VerifiedVolume>,
}

/// One volume.
#[derive(Debug, Clone, Serialize)]
pub struct VerifiedVolume {
    /// Its site.
    pub site: String,
    /// MACHINE/DISK.
    pub name: String,
    /// Where it is.
    pub volume: String,
    /// Generation that it was proven to hold.
    pub generation: u32,
    /// Size of the disk, bytes.
    pub bytes: u64,
    /// What the disk was sealed with and the volume proven by.
    pub expected: Digest,
    /// What its first bytes hash to now; none where not all of it could be read.
    pub found: Option<Digest>,
    /// Blocks by the word of the file system or server that they are holes.
    pub holes: u64,
    /// Reads may have been answered by a cache.
    pub through_cache: bool,
    /// How many blocks differ or cannot be read.
    pub differing: u64,
    /// The first of them.
    pub differing_blocks: Vec<u64>,
    /// Why it could not be read at all.
    pub why: Option<String>,
    /// Its recovery point, where that is not there any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_point: Option<String>,
    /// When it was read.
    pub checked_at: Timestamp,
    /// When this very difference was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_at: Option<Timestamp>,
    /// Why it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Reads all selected volumes whose imports are complete.
///
/// # Errors
/// None is selected; an import of one is running; interrupted. What is wrong with a volume is in the outcome.
pub fn run(context: &Context, options: &Options) -> Result<VerifiedVolumes> {
    let ledger = &context.ledger;
    if let Some((disk, reason)) = &options.accept {
        return accept(context, disk, reason);
    }
    let mut wanted: Vec<(VolumeRow, ImportRow, Digest, Arc<File>)> = Vec::new();
    for row in ledger.volumes()? {
        let name = format!("{}/{}", row.machine, row.disk_name);
        let selected = options.machine.as_deref().is_none_or(|machine| machine == row.machine)
            && options.disk.as_deref().is_none_or(|disk| disk == row.disk_name || disk == name);
        if !selected || ledger.last_import(row.disk)?.is_none_or(|import| import.phase < Phase::Released) {
            continue;
        }
        // Nobody begins to import into it from now on; what is known is looked at once more behind that.
        let lock = Arc::new(ledger.share_volume(row.disk, &name)?);
        if let Some(import) = ledger.last_import(row.disk)?
            && let (true, Some(digest)) = (import.phase >= Phase::Released, import.digest)
        {
            wanted.push((row, import, digest, lock));
        }
    }
    if wanted.is_empty() {
        return Err(Error::usage("Selection: expected a volume whose import is complete, found none in this ledger")
            .next("'motiongear status' shows what the ledger knows"));
    }
    let counters = wanted
        .iter()
        .map(|(row, import, ..)| DiskProgress::new(format!("{}/{}", row.machine, row.disk_name), import.bytes));
    let progress = Progress::new("verify", counters.collect());
    let throttle = Throttle::new(options.limits.clone());
    let _job = Job::start(ledger.state(), "verify", "volumes".into(), throttle.clone(), progress.clone())?;
    let _watch = context.monitor.watch(progress.clone());
    let _notes = Watch::notes(throttle.clone(), context.monitor.clone());
    let mut places = Places::new(context);
    let mut volumes = Vec::new();
    for (slot, (row, import, expected, lock)) in wanted.into_iter().enumerate() {
        let mut read_one = || -> Result<(Read, bool, Option<String>)> {
            let place = places.of_row(ledger, &row, &import)?;
            let medium =
                Medium::new(MediumKind::Volume, &place.to_string(), &throttle, &progress).holding(lock.clone());
            let (completed, opened) = {
                let (place, watched) = (place.clone(), medium.clone());
                medium.call(move || Ok((place.completed()?, place.open(Some(watched))?)))?
            };
            row.is_bound_to(&opened.identity(&context.sys)?)?;
            expect_known(ledger, &place, row.disk, completed)?;
            let geometry = Geometry::new(import.bytes, import.block_bytes)?;
            let zeros = ZeroLeaves::open(ledger.state(), import.block_bytes)?;
            let reading = Reading { context, volume: &*opened, geometry, zeros: &zeros, throttle: &throttle };
            let mut leaves = Leaves::open(ledger.state(), row.disk, geometry)?;
            let read = reading.run(&mut leaves, &|bytes| {
                progress.disks[slot].done.fetch_add(bytes, Ordering::Relaxed);
            })?;
            let cached = opened.through_cache();
            // Its server goes first: some clouds tell nothing of a volume that is being used.
            drop(opened);
            let missing = if import.phase == Phase::Done { missing_point(&medium, &place, &import)? } else { None };
            Ok((read, cached, missing))
        };
        // One that cannot be read must not cost what was found of the others.
        let (read, through_cache, missing_point, why) = match read_one() {
            Ok((read, cached, missing)) => (read, cached, missing, None),
            // A ledger that is older than a volume has nothing to say of it.
            Err(error) if matches!(error.kind, Kind::Interrupted | Kind::Untrusted) => return Err(error),
            Err(error) => (Read::default(), false, None, Some(error.to_string())),
        };
        let check = VolumeCheck {
            id: 0,
            import: import.id,
            checked_at: now()?,
            digest: read.digest,
            holes: read.holes,
            through_cache,
            differing: read.differing,
            why,
            missing_point,
            accepted_at: None,
            reason: None,
        };
        let blocks = Geometry::new(import.bytes, import.block_bytes)?.blocks();
        ledger.keep_check(&check, expected, blocks, &read.ranges)?;
        let kept = ledger.last_check(import.id)?.unwrap_or(check);
        volumes.push(VerifiedVolume::of(&row, &import, expected, kept, named(&read.ranges)));
    }
    Ok(VerifiedVolumes { volumes })
}

/// The recovery point of an import, where its volume can have one and has it no more.
fn missing_point(medium: &Medium, place: &Place, import: &ImportRow) -> Result<Option<String>> {
    let Some(store) = place.store().cloned() else { return Ok(None) };
    let point = recovery_point(import.generation, &name_code(&import.seal));
    medium.call(move || Ok(if store.has_point(&point)? { None } else { Some(point) }))
}

/// The first differing blocks.
fn named(ranges: &[(u64, u64)]) -> Vec<u64> {
    ranges.iter().flat_map(|(first, count)| *first..first + count).take(MAX_NAMED).collect()
}

/// Accepts what the last check of a volume found: a machine that booted from it writes to it, and that is no fault.
fn accept(context: &Context, disk: &str, reason: &str) -> Result<VerifiedVolumes> {
    check_text("Reason", reason, MAX_REASON_BYTES).map_err(|e| Error::usage("Verify: --reason").because(e))?;
    let ledger = &context.ledger;
    let rows = ledger.volumes()?.into_iter();
    let mut rows = rows.filter(|row| format!("{}/{}", row.machine, row.disk_name) == disk);
    let (Some(row), None) = (rows.next(), rows.next()) else {
        return Err(Error::usage(format!("Selection: expected one volume of disk {disk} in this ledger"))
            .next("'motiongear status' shows what the ledger knows"));
    };
    let _lock = ledger.lock_volume(row.disk, disk)?;
    let none = || {
        Error::failed(format!("Volume {}: no check of it found a difference", row.named()))
            .next(format!("run 'motiongear verify --volumes --disk {disk}' first"))
    };
    let import = ledger.last_import(row.disk)?.filter(|import| import.phase >= Phase::Released).ok_or_else(none)?;
    let proven = import.digest.ok_or_else(none)?;
    let check = ledger.last_check(import.id)?.filter(|check| !check.is_good(proven) && check.why.is_none());
    let check = check.ok_or_else(none)?;
    let ranges = ledger.differences(&check)?.unwrap_or_default();
    let mut accepted = check;
    if accepted.accepted_at.is_none() {
        (accepted.accepted_at, accepted.reason) = (Some(now()?), Some(reason.to_owned()));
        if !context.dry_run {
            ledger.accept_check(&accepted, now()?, reason)?;
        }
    }
    Ok(VerifiedVolumes { volumes: vec![VerifiedVolume::of(&row, &import, proven, accepted, named(&ranges))] })
}

struct Reading<'a> {
    context: &'a Context,
    volume: &'a dyn Volume,
    geometry: Geometry,
    zeros: &'a ZeroLeaves,
    throttle: &'a Throttle,
}

#[derive(Default)]
struct Read {
    digest: Option<Digest>,
    holes: u64,
    differing: u64,
    /// Which, as (first, blocks), up to one more than are kept.
    ranges: Vec<(u64, u64)>,
}

impl Reading<'_> {
    /// Reads all of it in order and compares each block with the leaf that read-back kept.
    fn run(&self, leaves: &mut Leaves, done: &dyn Fn(u64)) -> Result<Read> {
        let geometry = &self.geometry;
        let bytes = u64::from(geometry.block_bytes()).max(SPAN_BYTES);
        let depth = if bytes > SPAN_BYTES { 2 } else { DEPTH };
        let pool = Pool::new(usize::try_from(bytes).unwrap_or(usize::MAX), depth)?;
        let mut queue = self.volume.reader(self.context.engine, depth)?;
        let per_span = bytes / u64::from(geometry.block_bytes());
        let mut read = Read::default();
        let mut merger = Merger::new();
        let mut whole = true;
        // Blocks in order; those of a span stand here until it has come.
        let mut known: BTreeMap<u64, Option<Leaf>> = BTreeMap::new();
        let mut under_way: VecDeque<u64> = VecDeque::new();
        let (mut next, mut out) = (0, 0);
        let mut data: Option<(u64, u64)> = None;
        let mut asked_to = 0;
        while out < geometry.blocks() {
            self.throttle.check()?;
            while next < geometry.blocks() && under_way.len() < depth {
                let (start, length) = (geometry.offset(next), u64::from(geometry.len(next)));
                if start >= asked_to {
                    data = self.volume.next_data(start)?;
                    asked_to = data.map_or(u64::MAX, |(_, end)| end);
                }
                if data.is_none_or(|(from, _)| from >= start + length) {
                    known.insert(next, Some(self.zeros.leaf(next, geometry.len(next))?));
                    read.holes += 1;
                    next += 1;
                    // A disk of holes must not stand here as a whole.
                    if known.len() > 1 << 16 {
                        break;
                    }
                    continue;
                }
                let Some(buffer) = pool.try_take() else { break };
                let blocks = per_span.min(geometry.blocks() - next);
                let last = next + blocks - 1;
                let length = geometry.offset(last) + u64::from(geometry.len(last)) - start;
                self.throttle.admit(length)?;
                queue.read(next, start, buffer, usize::try_from(length).unwrap_or(usize::MAX));
                under_way.push_back(next);
                next += blocks;
            }
            if !under_way.is_empty() && !known.contains_key(&out) {
                self.finish(&mut queue, &mut under_way, &mut known)?;
            }
            while let Some(found) = known.remove(&out) {
                match found {
                    Some(found) => {
                        merger.push(found);
                        if geometry.blocks() > 1 && leaves.get(out)? != found {
                            read.differs(out);
                        }
                    }
                    None => {
                        whole = false;
                        read.differs(out);
                    }
                }
                done(u64::from(geometry.len(out)));
                out += 1;
            }
        }
        read.digest = match geometry.blocks() {
            _ if !whole => None,
            // A disk of one block is hashed, not merged.
            0 | 1 => Some(self.small(&pool, &mut queue)?),
            _ => merger.finish(),
        };
        Ok(read)
    }

    fn finish(
        &self,
        queue: &mut Patient,
        under_way: &mut VecDeque<u64>,
        known: &mut BTreeMap<u64, Option<Leaf>>,
    ) -> Result<()> {
        let lost = || Error::failed(format!("Volume {}: a read was lost", self.volume.name()));
        let completion = queue.wait()?.ok_or_else(lost)?;
        let at = under_way.iter().position(|first| *first == completion.token).ok_or_else(lost)?;
        let first = under_way.remove(at).ok_or_else(lost)?;
        let geometry = &self.geometry;
        match (completion.result, completion.buffer) {
            (Ok(()), Some(bytes)) => {
                for (at, block) in bytes.chunks(geometry.block_bytes() as usize).enumerate() {
                    let number = first + at as u64;
                    known.insert(number, Some(leaf(geometry.offset(number), block)));
                }
                Ok(())
            }
            (Err(error), _) if self.volume.is_lost() => {
                Err(Error::io(format!("Volume {}: reading it", self.volume.name()), error)
                    .next("check its server, then run the same command again"))
            }
            (_, None) => Err(lost()),
            // One bad sector must cost one block.
            (Err(_), Some(mut buffer)) => {
                while !under_way.is_empty() {
                    self.finish(queue, under_way, known)?;
                }
                let per_span = (SPAN_BYTES / u64::from(geometry.block_bytes())).max(1);
                for block in first..(first + per_span).min(geometry.blocks()) {
                    queue.read(block, geometry.offset(block), buffer, geometry.len(block) as usize);
                    let again = queue.wait()?.ok_or_else(lost)?;
                    buffer = again.buffer.ok_or_else(lost)?;
                    if let (Err(error), true) = (&again.result, self.volume.is_lost()) {
                        return Err(Error::failed(format!("Volume {}: reading it: {error}", self.volume.name()))
                            .next("check its server, then run the same command again"));
                    }
                    let found = again.result.is_ok().then(|| leaf(geometry.offset(block), &buffer));
                    known.insert(block, found);
                }
                Ok(())
            }
        }
    }

    /// The digest of a disk of at most one block.
    fn small(&self, pool: &Pool, queue: &mut Patient) -> Result<Digest> {
        if self.geometry.is_empty() {
            return Ok(Digest::of(&[]));
        }
        let lost = || Error::failed(format!("Volume {}: a read was lost", self.volume.name()));
        queue.read(0, 0, pool.take(), self.geometry.len(0) as usize);
        let done = queue.wait()?.ok_or_else(lost)?;
        done.result.map_err(|error| Error::io(format!("Volume {}: reading it", self.volume.name()), error))?;
        Ok(Digest::of(&done.buffer.ok_or_else(lost)?))
    }
}

impl Read {
    fn differs(&mut self, block: u64) {
        self.differing += 1;
        match self.ranges.last_mut() {
            Some((first, count)) if *first + *count == block => *count += 1,
            _ => {
                if self.ranges.len() <= MAX_RANGES {
                    self.ranges.push((block, 1));
                }
            }
        }
    }
}

impl VerifiedVolume {
    fn of(
        row: &VolumeRow,
        import: &ImportRow,
        expected: Digest,
        check: VolumeCheck,
        named: Vec<u64>,
    ) -> VerifiedVolume {
        VerifiedVolume {
            site: row.site_name.clone(),
            name: format!("{}/{}", row.machine, row.disk_name),
            volume: row.named(),
            generation: import.generation,
            bytes: import.bytes,
            expected,
            found: check.digest,
            holes: check.holes,
            through_cache: check.through_cache,
            differing: check.differing,
            differing_blocks: named,
            why: check.why,
            missing_point: check.missing_point,
            checked_at: check.checked_at,
            accepted_at: check.accepted_at,
            reason: check.reason,
        }
    }

    fn is_good(&self) -> bool {
        self.found == Some(self.expected)
    }
}

impl Outcome for VerifiedVolumes {
    fn summary(&self, lang: Lang) -> String {
        let lines = self.volumes.iter().flat_map(|volume| {
            let VerifiedVolume { site, name, volume: at, bytes, generation, expected, differing, .. } = volume;
            let bytes = size(*bytes);
            let mut lines = Vec::new();
            if volume.is_good() {
                lines.push(say!(
                    lang,
                    "{site} {name}: {at} ({bytes}) holds generation {generation} as proven, every block read again",
                    "{site} {name}：{at}（{bytes}）仍为第 {generation} 代已证明内容，全部块已重读"
                ));
                lines.push(say!(lang, "  digest {expected}", "  摘要 {expected}"));
            } else if let Some(why) = &volume.why {
                lines.push(say!(lang, "{site} {name}: {at} ({bytes}) was NOT read: {why}", "{site} {name}：{at}（{bytes}）未能读取：{why}"));
            } else {
                let first: Vec<String> = volume.differing_blocks.iter().take(20).map(u64::to_string).collect();
                let first = first.join(", ");
                lines.push(say!(
                    lang,
                    "{site} {name}: {at} ({bytes}) does NOT hold generation {generation} as proven: {differing} blocks differ or cannot be read: {first}",
                    "{site} {name}：{at}（{bytes}）与第 {generation} 代已证明内容不符：{differing} 个块不同或无法读取：{first}"
                ));
                lines.push(match &volume.reason {
                    Some(reason) => say!(lang, "  the difference is accepted: {reason}", "  差异已被接受：{reason}"),
                    None => say!(
                        lang,
                        "  run the import of its shipment again to mend it; or accept it: verify --volumes --accept-difference {name} --reason TEXT",
                        "  再次运行该批次的导入即可修复；或接受差异：verify --volumes --accept-difference {name} --reason 原因"
                    ),
                });
            }
            if let Some(point) = &volume.missing_point {
                lines.push(say!(
                    lang,
                    "  its recovery point {point} is missing: nothing can be drilled; import its shipment again with --overwrite",
                    "  恢复点 {point} 已不存在，无法演练；请用 --overwrite 重新导入该批次"
                ));
            }
            if volume.through_cache {
                lines.push(say!(lang, "  read through a cache", "  读取经过缓存"));
            }
            lines
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn incomplete(&self) -> bool {
        let good = |volume: &VerifiedVolume| volume.is_good() || volume.accepted_at.is_some();
        !self.volumes.iter().all(|volume| good(volume) && volume.missing_point.is_none())
    }
}
