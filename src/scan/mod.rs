//! `scan`: reads sources again and compares them with what was shipped, from the ledger alone. Which blocks changed is kept
//! for sync. Of machines that run under QEMU and of Ceph images a snapshot is taken, and what was noted of changes is taken for a hint;
//! so are the leaves that a machine tells which serves its disks.

mod compare;
mod hint;
mod honesty;
mod leaves;

use crate::context::{Context, Outcome, now};
use crate::copy::bitmap::Bitmap;
use crate::copy::credits::Credits;
use crate::copy::crew::{Crew, start};
use crate::copy::known::Known;
use crate::copy::patience::Medium;
use crate::copy::priority::yield_to_host;
use crate::copy::read::{DiskRead, Piece, READ_DEPTH, Reading};
use crate::copy::samples;
use crate::copy::throttle::{Limits, Throttle};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Result};
use crate::io::{Pool, write_file_durably};
use crate::job::Job;
use crate::lang::Lang;
use crate::ledger::branch::Tracked;
use crate::monitor::{DiskProgress, MediumKind, Progress, Watch};
use crate::source::running::{Around, Monitor};
use crate::source::tracking::{Distrust, Held, Platform, Tracking, prefix};
use crate::source::{Identity, Origin, Source};
use crate::{rbd, say, units};
use compare::{Comparison, Tally};
use crossbeam_channel::bounded;
use hint::{Hint, Trust};
use honesty::Verdict;
use jiff::Timestamp;
use motiongear_manifest::catalogue::{Catalogue, Generation};
use motiongear_manifest::geometry::Geometry;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Bytes read and not yet compared.
const UNDER_WAY_BYTES: u64 = 64 << 20;
/// Disks read at once unless set otherwise.
const DEFAULT_JOBS: usize = 4;
/// Of the blocks that a database under load touches, the share of bytes in pages that really changed (measured with
/// PostgreSQL under pgbench: 487 of 1,888 MB).
const CHANGED_PAGES_SHARE: f64 = 0.26;

/// What to scan.
#[derive(Default)]
pub struct Options {
    /// Only this machine.
    pub machine: Option<String>,
    /// Only disks of this name.
    pub disk: Option<String>,
    /// MACHINE/DISK and the path to read instead of the one that was seeded: a snapshot, or the disk's new name.
    pub sources: Vec<(String, Origin)>,
    /// Only this shipment.
    pub shipment: Option<Uuid>,
    /// Limits on the host.
    pub limits: Limits,
    /// Disks read at once.
    pub jobs: Option<usize>,
    /// Where what a running machine overwrites goes while its disks are read; the state directory if not given.
    pub scratch: Option<PathBuf>,
    /// Of the blocks of a disk, the share that is read although a bitmap calls them clean.
    pub audit_percent: u8,
}

/// What changed.
#[derive(Debug, Serialize)]
pub struct Scanned {
    /// Every disk that was looked at.
    pub disks: Vec<ScannedDisk>,
    /// True if nothing was read.
    pub dry_run: bool,
    /// How long it took, seconds.
    pub seconds: u64,
}

/// One disk.
#[derive(Debug, Clone, Serialize)]
pub struct ScannedDisk {
    /// MACHINE/DISK.
    pub disk: String,
    /// Its identity.
    pub uuid: Uuid,
    /// The shipment that it was compared with.
    pub shipment: Uuid,
    /// Where it was read.
    pub source: String,
    /// When reading began.
    pub started_at: Timestamp,
    /// Size, bytes.
    pub bytes: u64,
    /// Really read, bytes.
    pub read_bytes: u64,
    /// Blocks by what became of them.
    pub blocks: Tally,
    /// How far what its platform noted of changes was believed; none for other sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap: Option<Trust>,
    /// How far the leaves were believed that the machine told which serves the disk; none for other sources, and where it told none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaves: Option<Trust>,
    /// That it may be another disk: most of it is not what was shipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub another_disk: Option<AnotherDisk>,
    /// Whole blocks that differ, bytes: sync never moves more than this.
    pub estimate_at_most_bytes: u64,
    /// What sync would probably move, from this disk's own compression and the measured share of changed pages: from …
    pub estimate_low_bytes: u64,
    /// … to.
    pub estimate_high_bytes: u64,
}

/// A disk that most likely is not the one that was shipped.
#[derive(Debug, Clone, Serialize)]
pub struct AnotherDisk {
    /// MACHINE/DISK of this ledger whose blocks are on it.
    pub fits: Option<String>,
}

impl Outcome for Scanned {
    fn summary(&self, lang: Lang) -> String {
        let mut lines = Vec::new();
        for disk in &self.disks {
            let (name, size, source) = (&disk.disk, units::size(disk.bytes), &disk.source);
            if self.dry_run {
                lines.push(say!(lang, "  {name}: {size} from {source}", "  {name}：{size}，来自 {source}"));
                continue;
            }
            let Tally { unchanged, changed, zeroed, newly_unreadable, unreadable } = disk.blocks;
            lines.push(say!(
                lang,
                "  {name}: {size}; blocks: {unchanged} unchanged, {changed} changed, {zeroed} zeroed, {newly_unreadable} newly unreadable, {unreadable} unreadable as before",
                "  {name}：{size}；块：未变 {unchanged}，已变 {changed}，清零 {zeroed}，新增不可读 {newly_unreadable}，仍不可读 {unreadable}"
            ));
            if let Some(Trust { trusted_blocks, audited_blocks, reread }) = disk.bitmap {
                let read = units::size(disk.read_bytes);
                lines.push(match reread.map(|why| why.words(lang)) {
                    Some(why) => say!(lang, "    {why}: every block was read ({read})", "    {why}：已重读全部块（{read}）"),
                    None => {
                        let clean = trusted_blocks + audited_blocks;
                        say!(
                            lang,
                            "    {read} read; its record of changes calls {clean} blocks clean: {audited_blocks} of them were read and are, {trusted_blocks} are trusted",
                            "    读取 {read}；变更记录称 {clean} 块未变：抽查 {audited_blocks} 块无误，其余 {trusted_blocks} 块未读、仅信任"
                        )
                    }
                });
            }
            if let Some(Trust { trusted_blocks, audited_blocks, reread }) = disk.leaves {
                let read = units::size(disk.read_bytes);
                lines.push(match reread {
                    Some(Distrust::Unasked) => say!(
                        lang,
                        "    its machine told a leaf that is not the block's any more, and could not be asked once more: every block was read ({read})",
                        "    所属主机给出的叶值与块已不符，且无法再次查询：已重读全部块（{read}）"
                    ),
                    Some(_) => say!(
                        lang,
                        "    its machine told a leaf that is not the block's: every block was read ({read})",
                        "    所属主机给出的叶值与块不符：已重读全部块（{read}）"
                    ),
                    None => say!(
                        lang,
                        "    {read} read; {trusted_blocks} blocks are unchanged by the leaves that its machine told, {audited_blocks} of those were read and are",
                        "    读取 {read}；按所属主机给出的叶值视为未变 {trusted_blocks} 块，另抽查 {audited_blocks} 块，无误"
                    ),
                });
            }
            if let Some(AnotherDisk { fits }) = &disk.another_disk {
                lines.push(match fits {
                    Some(other) => say!(
                        lang,
                        "    IT IS ANOTHER DISK: what is on {source} is what was shipped as {other}",
                        "    这是另一块磁盘：{source} 上的内容是作为 {other} 发运的"
                    ),
                    None => say!(
                        lang,
                        "    most of it changed: it may be another disk; see whether {source} is the right one",
                        "    大部分已变：可能是另一块磁盘；请核对 {source} 是否正确"
                    ),
                });
            }
            let (low, high, most) = (
                units::size(disk.estimate_low_bytes),
                units::size(disk.estimate_high_bytes),
                units::size(disk.estimate_at_most_bytes),
            );
            lines.push(say!(
                lang,
                "    a sync would move about {low} to {high}, at most {most}",
                "    同步预计传输 {low} 至 {high}，上限 {most}"
            ));
        }
        if self.dry_run {
            lines.push(say!(lang, "Nothing was read: dry run.", "试运行，未读取任何数据。"));
        }
        lines.join("\n")
    }
    fn incomplete(&self) -> bool {
        let wrong = |disk: &ScannedDisk| disk.another_disk.as_ref().is_some_and(|another| another.fits.is_some());
        self.disks.iter().any(|disk| disk.blocks.newly_unreadable > 0 || wrong(disk))
    }
}

/// A disk of the ledger, with the source to read.
struct Target {
    shipment: Uuid,
    name: String,
    uuid: Uuid,
    source: Source,
    /// As the result names it: a snapshot that was taken for it is gone by then.
    shown: String,
    known: Known,
}

/// Compares live sources with what was shipped.
///
/// # Errors
/// A source is missing, is another disk, or changed its size; interrupted (run it again).
pub fn run(context: &Context, options: Options) -> Result<Scanned> {
    let started = std::time::Instant::now();
    let targets = targets(context, &options)?;
    if context.dry_run {
        let at = now()?;
        let disks = targets.iter().map(|t| t.outcome(at, &Comparison::new(t.known.geometry))).collect();
        return Ok(Scanned { disks, dry_run: true, seconds: 0 });
    }
    for note in yield_to_host() {
        context.monitor.note(&note);
    }
    let throttle = Throttle::new(options.limits.clone());
    let counters = targets.iter().map(|t| DiskProgress::new(t.name.clone(), t.source.bytes)).collect();
    let progress = Progress::new("scan", counters);
    let subject = targets.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(" ");
    let _job = Job::start(context.ledger.state(), "scan", subject, throttle.clone(), progress.clone())?;
    let _watch = context.monitor.watch(progress.clone());
    let _notes = Watch::notes(throttle.clone(), context.monitor.clone());
    let comparisons: Vec<Mutex<Comparison>> =
        targets.iter().map(|target| Mutex::new(Comparison::new(target.known.geometry))).collect();
    let mut scan = Scan { context, options: &options, targets, comparisons, throttle, progress };
    // Disks of one machine together, one machine after the other: no snapshot is held for longer than its disks take.
    let mut groups: BTreeMap<Group, Vec<usize>> = BTreeMap::new();
    for (i, target) in scan.targets.iter().enumerate() {
        groups.entry(target.group()).or_default().push(i);
    }
    let mut disks: BTreeMap<usize, ScannedDisk> = BTreeMap::new();
    for (group, members) in groups {
        disks.extend(match group {
            Group::Plain => scan.disks(&members)?,
            _ => scan.machine(&group, &members)?,
        });
    }
    Ok(Scanned { disks: disks.into_values().collect(), dry_run: false, seconds: started.elapsed().as_secs() })
}

/// Disks that are scanned together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// Read as they are.
    Plain,
    /// Of a machine that runs, with this monitor.
    Machine(Monitor),
    /// Ceph images of the machine of this name.
    Images(String),
}

/// One run of the verb.
struct Scan<'a> {
    context: &'a Context,
    options: &'a Options,
    targets: Vec<Target>,
    /// One for each target.
    comparisons: Vec<Mutex<Comparison>>,
    throttle: Arc<Throttle>,
    /// Its disks are the targets.
    progress: Arc<Progress>,
}

impl Scan<'_> {
    /// Disks that are read as they are.
    fn disks(&mut self, members: &[usize]) -> Result<Vec<(usize, ScannedDisk)>> {
        let at = now()?;
        let mut hints: BTreeMap<usize, Hint> = BTreeMap::new();
        for i in members {
            if let Some(unchanged) = self.unchanged(&self.targets[*i])? {
                let target = &self.targets[*i];
                let from = self.context.ledger.audit(target.uuid, target.shipment);
                hints.insert(*i, Hint::of_leaves(&unchanged, from, self.options.audit_percent));
            }
        }
        let all: Vec<_> = members.iter().map(|i| (*i, hints.get(i).map(|hint| hint.skip.clone()))).collect();
        self.compare(&all, false)?;
        let mut again = Vec::new();
        for (i, hint) in &mut hints {
            if let Some(why) = self.doubt(&self.targets[*i], hint, &self.comparison(*i).wanted)? {
                hint.doubt(why);
                again.push((*i, Some(hint.skip.clone())));
            }
        }
        if !again.is_empty() {
            self.compare(&again, false)?;
        }
        let mut kept = Vec::new();
        for i in members {
            let leaves = hints.get(i).map(Hint::trust);
            if let (Some(trust), Some(hint)) = (leaves, hints.get(i)) {
                self.comparison(*i).trust(trust.trusted_blocks);
                let target = &self.targets[*i];
                self.context.ledger.keep_audit(target.uuid, target.shipment, hint.audit_next)?;
            }
            kept.push((*i, self.keep(*i, at, None, leaves)?));
        }
        Ok(kept)
    }

    /// Why the leaves of a machine are not believed, if any audited block is among those that `differ`.
    fn doubt(&self, target: &Target, hint: &Hint, differ: &Bitmap) -> Result<Option<Distrust>> {
        let Origin::Nbd(uri) = &target.source.origin else { return Ok(None) };
        let medium = Medium::new(MediumKind::Source, &target.name, &self.throttle, &self.progress);
        for block in (0..differ.len()).filter(|block| hint.audited.contains(*block) && differ.contains(*block)) {
            self.throttle.check()?;
            // One is enough.
            match honesty::judge(uri, &target.source.disk, &target.known, &medium, block)? {
                Verdict::Honest | Verdict::Restless => {}
                Verdict::Lied => return Ok(Some(Distrust::Lied)),
                Verdict::Unasked => return Ok(Some(Distrust::Unasked)),
            }
        }
        Ok(None)
    }

    /// The blocks that the machine calls unchanged which serves the disk; none where nobody tells.
    fn unchanged(&self, target: &Target) -> Result<Option<Bitmap>> {
        let Origin::Nbd(uri) = &target.source.origin else { return Ok(None) };
        if target.source.host.is_none() {
            return Ok(None);
        }
        let medium = Medium::new(MediumKind::Source, &target.name, &self.throttle, &self.progress);
        leaves::unchanged(uri, &target.source.disk, &target.known, &medium, &self.throttle)
    }

    /// Disks of one machine, in a snapshot that is taken for them. Order: the snapshot ends one record of changes and begins the next ·
    /// what it leaves is read · the result is made durable, and with it which record goes on from there · the old one is removed.
    fn machine(&mut self, group: &Group, members: &[usize]) -> Result<Vec<(usize, ScannedDisk)>> {
        let at = now()?;
        let tracked = members
            .iter()
            .map(|i| self.context.ledger.tracked(self.targets[*i].uuid, self.targets[*i].shipment))
            .collect::<Result<Vec<_>>>()?;
        let mut snapshot = self.snapshot(group, members, &tracked)?;
        let found = self.with_hints(&*snapshot, members, tracked);
        let hints = found.map_err(|error| snapshot.explain(error))?;
        let mut kept = Vec::new();
        for (i, hint) in members.iter().zip(hints) {
            let outcome = self.keep(*i, at, Some(hint.trust()), None)?;
            let target = &self.targets[*i];
            if let Some(noted) = snapshot.disk(&target.name).and_then(|disk| disk.new.clone()) {
                let changed = self.comparison(*i).wanted.to_bytes();
                let tracked = Tracked { noted, audit_next: hint.audit_next };
                self.context.ledger.keep_tracked(target.uuid, target.shipment, &tracked, &changed)?;
            }
            kept.push((*i, outcome));
        }
        snapshot.end(true)?;
        Ok(kept)
    }

    fn snapshot(
        &mut self,
        group: &Group,
        members: &[usize],
        tracked: &[Option<(Tracked, Vec<u8>)>],
    ) -> Result<Box<dyn Held>> {
        let wished = members.iter().zip(tracked).map(|(i, tracked)| {
            let target = &self.targets[*i];
            let reference = tracked.as_ref().map(|(tracked, _)| tracked.noted.clone());
            (target, Tracking { prefix: prefix(target.shipment, target.uuid), reference })
        });
        let platform: Box<dyn Platform> = if let Group::Machine(monitor) = group {
            let state = self.context.ledger.state();
            let around = Around {
                machine: members.first().map(|i| self.targets[*i].machine().to_owned()).unwrap_or_default(),
                scratch: self.options.scratch.clone().unwrap_or_else(|| state.to_owned()),
                log: Some(state.join("thaw-watchdog.log")),
            };
            let disks = wished.map(|(target, tracking)| (target.name.clone(), &target.source.origin, tracking));
            monitor.snapshot(around, disks)
        } else {
            let disks = wished.filter_map(|(target, tracking)| {
                let image = target.source.origin.live_image()?.clone();
                Some(rbd::Wish { name: target.name.clone(), image, tracking })
            });
            Box::new(rbd::Taking { disks: disks.collect(), stay: false })
        };
        let mut snapshot = platform.prepare()?.take()?;
        snapshot.settle()?;
        for i in members {
            let target = &mut self.targets[*i];
            let Some(disk) = snapshot.disk(&target.name) else { continue };
            target.source = Source::open(&disk.origin, &self.context.sys)?;
        }
        Ok(snapshot)
    }

    /// Reads what the hints leave; where one is caught lying, the rest too.
    fn with_hints(
        &self,
        snapshot: &dyn Held,
        members: &[usize],
        tracked: Vec<Option<(Tracked, Vec<u8>)>>,
    ) -> Result<Vec<Hint>> {
        let mut hints = Vec::new();
        for (i, tracked) in members.iter().zip(tracked) {
            let target = &self.targets[*i];
            let Some(taken) = snapshot.disk(&target.name) else { continue };
            let changed = |add: &mut dyn FnMut(u64, u64)| snapshot.changed(taken, &|| self.throttle.check(), add);
            hints.push(Hint::of(&taken.reference, &changed, tracked, &target.known, self.options.audit_percent)?);
        }
        let all: Vec<_> = members.iter().zip(&hints).map(|(i, hint)| (*i, Some(hint.skip.clone()))).collect();
        self.compare(&all, true)?;
        let mut again = Vec::new();
        for (i, hint) in members.iter().zip(&mut hints) {
            if hint.is_a_lie(&self.comparison(*i).wanted) {
                again.push((*i, Some(hint.skip.clone())));
            }
        }
        if !again.is_empty() {
            self.compare(&again, true)?;
        }
        snapshot.expect_whole()?;
        for (i, hint) in members.iter().zip(&hints) {
            self.comparison(*i).trust(hint.trust().trusted_blocks);
        }
        Ok(hints)
    }

    fn comparison(&self, i: usize) -> MutexGuard<'_, Comparison> {
        self.comparisons[i].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a disk's result durable.
    fn keep(&self, i: usize, at: Timestamp, bitmap: Option<Trust>, leaves: Option<Trust>) -> Result<ScannedDisk> {
        let (target, comparison) = (&self.targets[i], self.comparison(i));
        let read_bytes = self.progress.disks[i].read.load(Ordering::Relaxed);
        let another_disk = match comparison.is_mostly_changed() {
            true => Some(AnotherDisk { fits: self.shipped_as(target)? }),
            false => None,
        };
        let outcome = ScannedDisk { read_bytes, bitmap, leaves, another_disk, ..target.outcome(at, &comparison) };
        // The bitmap first: the row that says what it means comes after it.
        let scans = self.context.ledger.state().join("scans");
        write_file_durably(&scans, &format!("{}.changed", target.uuid), &comparison.wanted.to_bytes())?;
        self.context.ledger.record_scan(target.uuid, target.shipment, now()?, &outcome)?;
        Ok(outcome)
    }

    /// The other disk of this ledger whose blocks are on this one.
    fn shipped_as(&self, target: &Target) -> Result<Option<String>> {
        let ledger = &self.context.ledger;
        let medium = Medium::new(MediumKind::Source, &target.name, &self.throttle, &self.progress);
        for shipment in ledger.shipments()?.iter().rev() {
            let manifest = ledger.shipment_dir(shipment.uuid).join("manifest.db");
            if !manifest.exists() {
                continue;
            }
            let catalogue = Catalogue::open_reader(&manifest)?;
            let (row, machines, disks) = (catalogue.shipment()?, catalogue.machines()?, catalogue.disks()?);
            for generation in catalogue.generations()?.into_iter().filter(|g| g.finished_at.is_some()) {
                let Some(disk) = disks.iter().find(|d| d.number == generation.disk) else { continue };
                if disk.uuid == target.uuid || generation.bytes != target.source.bytes {
                    continue;
                }
                let machine = machines.iter().find(|m| m.number == disk.machine).map_or("", |m| m.name.as_str());
                let geometry = Geometry::new(generation.bytes, row.block_bytes)?;
                let known = Known { manifest: manifest.clone(), generation, geometry, encrypted: row.encrypted };
                let found = samples::compare(&target.source.disk, &known, self.context.engine, Some(&medium))?;
                if found.compared > 0 && found.fit() {
                    return Ok(Some(format!("{machine}/{}", disk.name)));
                }
            }
        }
        Ok(None)
    }

    /// Reads disks, each without the blocks to leave out, and compares them. `own`: they are a machine's snapshot, which never comes
    /// back once it cannot be reached.
    fn compare(&self, members: &[(usize, Option<Bitmap>)], own: bool) -> Result<()> {
        let Scan { context, options, targets, comparisons, throttle, progress } = self;
        let sizes = members.iter().map(|(i, _)| targets[*i].known.geometry.block_bytes());
        let largest = sizes.max().unwrap_or(1 << 20);
        let buffers = (UNDER_WAY_BYTES / u64::from(largest)).max(4) as usize;
        let jobs = options.jobs.unwrap_or(DEFAULT_JOBS).clamp(1, members.len().max(1)).min(buffers);
        let credits = Credits::new(u64::MAX);
        let reading = Reading {
            engine: context.engine,
            pool: Pool::new(largest as usize, buffers)?,
            depth: (buffers / jobs).clamp(1, READ_DEPTH),
            credits: &credits,
            throttle,
            progress: &progress.disks,
        };
        let mut disks = Vec::new();
        let mut zeros: Vec<(u32, Arc<ZeroLeaves>)> = Vec::new();
        for (index, skip) in members {
            let (index, target) = (*index, &targets[*index]);
            let geometry = target.known.geometry;
            let block_bytes = geometry.block_bytes();
            if zeros.iter().all(|(bytes, _)| *bytes != block_bytes) {
                zeros.push((block_bytes, ZeroLeaves::open(context.ledger.state(), block_bytes)?));
            }
            if let Some(skip) = skip {
                let bytes = (skip.count() * u64::from(block_bytes)).min(geometry.bytes());
                let rest = geometry.bytes() - progress.disks[index].done.load(Ordering::Relaxed).min(geometry.bytes());
                progress.disks[index].skipped.store(bytes.min(rest), Ordering::Relaxed);
            }
            let (origin, sys, identity) =
                (target.source.origin.clone(), context.sys.clone(), target.source.identity.clone());
            let reopen = move || {
                let again = Source::open_same(&origin, &sys, &identity);
                if own { again.map_err(Error::without_cause) } else { again }
            };
            disks.push(DiskRead {
                index,
                slot: index,
                name: target.name.clone(),
                disk: target.source.disk.clone(),
                medium: Medium::new(MediumKind::Source, &target.name, throttle, progress),
                geometry,
                skip: skip.clone(),
                known: Some(target.known.clone()),
                reopen: Arc::new(reopen),
                // What changed is what is looked for.
                verify: None,
            });
        }
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        let (piece_in, piece_out) = bounded::<Piece>(2 * workers);
        let next = AtomicUsize::new(0);
        let crew = Crew::new(throttle);
        std::thread::scope(|scope| {
            let (crew, next, reading, disks, zeros) = (&crew, &next, &reading, &disks, &zeros);
            for _ in 0..workers {
                let pieces = piece_out.clone();
                let compare = move || compare::compare(&pieces, comparisons, zeros, throttle, &progress.disks);
                let started = start(scope, move || crew.run(compare));
                crew.run(|| started.map(drop));
            }
            for _ in 0..jobs {
                let out = piece_in.clone();
                let started = start(scope, move || {
                    crew.run(|| {
                        while let Some(disk) = disks.get(next.fetch_add(1, Ordering::Relaxed)) {
                            reading.read(disk, &out)?;
                        }
                        Ok(())
                    })
                });
                crew.run(|| started.map(drop));
            }
            drop((piece_in, piece_out));
        });
        crew.finish()
    }
}

impl Target {
    fn machine(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    fn group(&self) -> Group {
        match (self.source.origin.monitor(), self.source.origin.live_image()) {
            (Some(monitor), _) => Group::Machine(monitor),
            (None, Some(_)) => Group::Images(self.machine().to_owned()),
            (None, None) => Group::Plain,
        }
    }

    fn outcome(&self, started_at: Timestamp, comparison: &Comparison) -> ScannedDisk {
        let changed_bytes = comparison.changed_bytes();
        let high = changed_bytes as f64 * comparison.ratio();
        ScannedDisk {
            disk: self.name.clone(),
            uuid: self.uuid,
            shipment: self.shipment,
            source: self.shown.clone(),
            started_at,
            bytes: self.source.bytes,
            read_bytes: 0,
            blocks: comparison.tally,
            bitmap: None,
            leaves: None,
            another_disk: None,
            estimate_at_most_bytes: changed_bytes,
            estimate_low_bytes: (high * CHANGED_PAGES_SHARE) as u64,
            estimate_high_bytes: high as u64,
        }
    }
}

/// Disks of the newest shipment that holds them, as asked for.
fn targets(context: &Context, options: &Options) -> Result<Vec<Target>> {
    let mut found: Vec<Target> = Vec::new();
    let mut unused: Vec<&String> = options.sources.iter().map(|(name, _)| name).collect();
    for shipment in context.ledger.shipments()?.iter().rev().filter(|s| options.shipment.is_none_or(|u| u == s.uuid)) {
        let path = context.ledger.shipment_dir(shipment.uuid).join("manifest.db");
        if !path.exists() {
            continue;
        }
        let catalogue = Catalogue::open_reader(&path)?;
        let row = catalogue.shipment()?;
        let (machines, generations) = (catalogue.machines()?, catalogue.generations()?);
        for disk in catalogue.disks()?.into_iter().filter(|d| d.excluded.is_none()) {
            let machine = machines.iter().find(|m| m.number == disk.machine).map_or("", |m| m.name.as_str());
            let name = format!("{machine}/{}", disk.name);
            let wanted = options.machine.as_deref().is_none_or(|m| m == machine)
                && options.disk.as_deref().is_none_or(|d| d == disk.name || d == name);
            let Some(generation) = generations.iter().rfind(|g| g.disk == disk.number && g.finished_at.is_some())
            else {
                continue;
            };
            if !wanted || found.iter().any(|t| t.name == name) {
                continue;
            }
            unused.retain(|n| **n != name);
            let source = open_source(context, options, &name, generation, &disk.identity)?;
            let geometry = Geometry::new(generation.bytes, row.block_bytes)?;
            let known =
                Known { manifest: path.clone(), generation: generation.clone(), geometry, encrypted: row.encrypted };
            let shown = source.origin.to_string();
            found.push(Target { shipment: shipment.uuid, name, uuid: disk.uuid, source, shown, known });
        }
    }
    if let Some(name) = unused.first() {
        return Err(Error::usage(format!(
            "--source {name}: expected MACHINE/DISK of a shipment in this ledger, found none"
        ))
        .next("'motiongear status' shows what this ledger knows"));
    }
    if found.is_empty() {
        return Err(Error::failed(format!(
            "Ledger {}: expected a disk that was shipped, found none that fits",
            context.ledger.state().display()
        ))
        .next("scan on the host that seeded, with the same --state"));
    }
    Ok(found)
}

fn open_source(
    context: &Context,
    options: &Options,
    name: &str,
    generation: &Generation,
    identity: &str,
) -> Result<Source> {
    let given = options.sources.iter().find(|(n, _)| n == name).map(|(_, origin)| origin.clone());
    let by_hand = given.is_some();
    let origin = given.map_or_else(|| Origin::parse(&generation.source), Ok)?;
    let source = Source::open(&origin, &context.sys).map_err(|e| {
        e.next(format!("if the disk has another path now, or only a snapshot may be read: --source {name}=PATH"))
    })?;
    // A path that was given by hand may be a snapshot: another identity, the same disk, which only the engineer can know.
    if !by_hand {
        let recorded: Identity = serde_json::from_str(identity)
            .map_err(|e| Error::failed(format!("Identity of disk {name} in the ledger")).because(e))?;
        // A file system that was mounted again has another device number; every block is compared anyway.
        let remounted = recorded.may_be_remounted(&source.identity) && origin.to_string() == generation.source;
        if !remounted {
            source.expect_identity(&recorded)?;
        }
    }
    if source.bytes != generation.bytes {
        return Err(Error::failed(format!(
            "Disk {name}: expected {} bytes as shipped, found {}",
            generation.bytes, source.bytes
        ))
        .next("a disk that was resized cannot be compared: ship it again, or give the right path with --source"));
    }
    Ok(source)
}
