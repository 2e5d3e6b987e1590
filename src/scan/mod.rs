//! `scan`: reads sources again and compares them with what was shipped, from the ledger alone. Which blocks changed is kept
//! for sync.

mod compare;

use crate::context::{Context, Outcome, now};
use crate::copy::credits::Credits;
use crate::copy::crew::Crew;
use crate::copy::known::Known;
use crate::copy::patience::Medium;
use crate::copy::priority::yield_to_host;
use crate::copy::read::{DiskRead, Piece, READ_DEPTH, Reading};
use crate::copy::throttle::{Limits, Throttle};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, Result};
use crate::io::{Pool, write_file_durably};
use crate::job::Job;
use crate::lang::Lang;
use crate::monitor::{DiskProgress, MediumKind, Progress, Watch};
use crate::source::{Identity, Origin, Source};
use crate::{say, units};
use compare::{Comparison, Tally};
use crossbeam_channel::bounded;
use jiff::Timestamp;
use motiongear_manifest::catalogue::{Catalogue, Generation};
use motiongear_manifest::geometry::Geometry;
use serde::Serialize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Blocks by what became of them.
    pub blocks: Tally,
    /// Whole blocks that differ, bytes: sync never moves more than this.
    pub estimate_at_most_bytes: u64,
    /// What sync would probably move, from this disk's own compression and the measured share of changed pages: from …
    pub estimate_low_bytes: u64,
    /// … to.
    pub estimate_high_bytes: u64,
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
        self.disks.iter().any(|disk| disk.blocks.newly_unreadable > 0)
    }
}

/// A disk of the ledger, with the source to read.
struct Target {
    shipment: Uuid,
    name: String,
    uuid: Uuid,
    source: Source,
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
    let at = now()?;
    let comparisons = compare_all(context, &options, &targets, &throttle, &progress)?;
    let mut disks = Vec::new();
    for (target, comparison) in targets.iter().zip(comparisons) {
        let outcome = target.outcome(at, &comparison);
        // The bitmap first: the row that says what it means comes after it.
        let scans = context.ledger.state().join("scans");
        write_file_durably(&scans, &format!("{}.changed", target.uuid), &comparison.wanted.to_bytes())?;
        context.ledger.record_scan(target.uuid, target.shipment, now()?, &outcome)?;
        disks.push(outcome);
    }
    Ok(Scanned { disks, dry_run: false, seconds: started.elapsed().as_secs() })
}

impl Target {
    fn outcome(&self, started_at: Timestamp, comparison: &Comparison) -> ScannedDisk {
        let changed_bytes = comparison.changed_bytes();
        let high = changed_bytes as f64 * comparison.ratio();
        ScannedDisk {
            disk: self.name.clone(),
            uuid: self.uuid,
            shipment: self.shipment,
            source: self.source.origin.to_string(),
            started_at,
            bytes: self.source.bytes,
            blocks: comparison.tally,
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
            found.push(Target { shipment: shipment.uuid, name, uuid: disk.uuid, source, known });
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
        source.expect_identity(&recorded)?;
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

fn compare_all(
    context: &Context,
    options: &Options,
    targets: &[Target],
    throttle: &Arc<Throttle>,
    progress: &Arc<Progress>,
) -> Result<Vec<Comparison>> {
    let largest = targets.iter().map(|t| t.known.geometry.block_bytes()).max().unwrap_or(1 << 20);
    let buffers = (UNDER_WAY_BYTES / u64::from(largest)).max(4) as usize;
    let jobs = options.jobs.unwrap_or(DEFAULT_JOBS).clamp(1, targets.len().max(1)).min(buffers);
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
    for (index, target) in targets.iter().enumerate() {
        let block_bytes = target.known.geometry.block_bytes();
        if zeros.iter().all(|(bytes, _)| *bytes != block_bytes) {
            zeros.push((block_bytes, ZeroLeaves::open(context.ledger.state(), block_bytes)?));
        }
        let (origin, sys, identity) =
            (target.source.origin.clone(), context.sys.clone(), target.source.identity.clone());
        disks.push(DiskRead {
            index,
            slot: index,
            name: target.name.clone(),
            disk: target.source.disk.clone(),
            medium: Medium::new(MediumKind::Source, &target.name, throttle, progress),
            geometry: target.known.geometry,
            skip: None,
            known: Some(target.known.clone()),
            reopen: Arc::new(move || Source::open_same(&origin, &sys, &identity)),
        });
    }
    let comparisons: Vec<Mutex<Comparison>> =
        targets.iter().map(|t| Mutex::new(Comparison::new(t.known.geometry))).collect();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let (piece_in, piece_out) = bounded::<Piece>(2 * workers);
    let next = AtomicUsize::new(0);
    let crew = Crew::new(throttle);
    std::thread::scope(|scope| {
        let (crew, next, reading, disks, comparisons, zeros) = (&crew, &next, &reading, &disks, &comparisons, &zeros);
        for _ in 0..workers {
            let pieces = piece_out.clone();
            scope.spawn(move || crew.run(|| compare::compare(&pieces, comparisons, zeros, throttle, &progress.disks)));
        }
        for _ in 0..jobs {
            let out = piece_in.clone();
            scope.spawn(move || {
                crew.run(|| {
                    while let Some(disk) = disks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        reading.read(disk, &out)?;
                    }
                    Ok(())
                })
            });
        }
        drop((piece_in, piece_out));
    });
    crew.finish()?;
    Ok(comparisons.into_iter().map(|c| c.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
}
