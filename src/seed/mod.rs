//! `seed`: copies disks onto the array. Running it again resumes.
//!
//! Order of steps: the array, who holds it and who vouches for its `shipment.json` · locks · sources by identity · the live manifest · what the array may have
//! lost · a number, a key and an envelope for this process · per machine: snapshot, copy, digests, discard.

mod disk;
mod disks;
mod earlier;
mod finish;
mod outcome;
mod pipeline;
mod recognise;
mod snapshot;
mod worker;

pub use outcome::{FailedDisk, Plan, PlannedDisk, Seeded, SeededDisk};

use crate::array::recheck::{doubt, give_up};
use crate::array::{Array, holder, outrank};
use crate::context::{Context, now, tool};
use crate::copy::bitmap::Bitmap;
use crate::copy::guard::LatencyGuard;
use crate::copy::known::Known;
use crate::copy::patience::{Medium, Patient};
use crate::copy::priority::yield_to_host;
use crate::copy::read::Verify;
use crate::copy::samples::{self, Picked};
use crate::copy::throttle::{Limits, Throttle};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, IoContext, Kind, Result};
use crate::inspect::{HostInventory, KnownBy, Reason, Verdict, judge};
use crate::io::{Readable, engine_in_use, sync_dir};
use crate::job::Job;
use crate::ledger::branch::ShipmentState;
use crate::monitor::{DiskProgress, MediumKind, Progress, Watch};
use crate::plan::Plan as DiskPlanFile;
use crate::source::hooks::{HookContext, Hooks};
use crate::source::{Origin, Source, refuse_as_source};
use crate::trust::prepared::{Confirmation, confirm};
use crate::trust::{recipients, shipment_with_digest};
use crate::{say, units};
use disk::SeedDisk;
use disks::Bound;
use earlier::Earlier;
use finish::Finish;
use motiongear_manifest::catalogue::{Catalogue, Disk, Generation, NewGeneration};
use motiongear_manifest::documents::seal::{Basis, Consistency, envelope_file};
use motiongear_manifest::documents::shipment::{Shipment, Suite};
use motiongear_manifest::envelope::{ContentKey, EnvelopeMeta, Recipient, begin_to_gather_randomness, wrap_key};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::record::{RecordKey, Writer};
use motiongear_manifest::tree::Digest;
use pipeline::{Pipeline, ReadToEnd};
use recognise::{Likeness, Reread};
use snapshot::KeptSnapshot;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Disks read at once unless set otherwise: enough to keep a spinning array busy, few enough for its host.
const DEFAULT_JOBS: usize = 4;

/// What to copy, and how gently.
pub struct Options {
    /// Where the array is mounted.
    pub array: PathBuf,
    /// Machines, disks, hooks.
    pub plan: DiskPlanFile,
    /// Limits; the latency guard's disks are filled in here.
    pub limits: Limits,
    /// Whether to watch the source disks' latency.
    pub latency_guard: bool,
    /// Disks read at once.
    pub jobs: Option<usize>,
    /// Where what a running machine overwrites goes while its disks are read; the state directory if not given.
    pub scratch: Option<PathBuf>,
    /// zstd level; `None` stores blocks as they are.
    pub level: Option<i32>,
    /// The engineer asserts that no source changes while it is read.
    pub point_in_time: bool,
    /// Goes on with a shipment that was sealed and not yet dispatched.
    pub reopen: bool,
    /// Vouches for `shipment.json`.
    pub confirmation: Confirmation,
}

/// Copies the plan's disks.
///
/// # Errors
/// Says what stands in the way; what was copied until then is kept, and the same command resumes.
pub fn run(context: &Context, options: Options) -> Result<Seeded> {
    let started = std::time::Instant::now();
    begin_to_gather_randomness();
    let array = Array::new(&options.array);
    let (shipment, document) = shipment_with_digest(&array, &context.ledger.documents()?)?;
    let recipients = recipients(&shipment)?;
    let live = context.ledger.shipment_dir(shipment.shipment).join("manifest.db");
    let known = context.ledger.shipment(shipment.shipment)?.is_some();
    let complete = match known && live.exists() {
        true => disks::complete(&Catalogue::open_reader(&live)?, &options.plan)?,
        false => BTreeMap::new(),
    };
    let mut bound = disks::open_all(&options.plan, &context.sys, &complete)?;
    refuse_sources(&bound, &options.array)?;
    let shown: Vec<String> = recipients.iter().map(Recipient::fingerprint).collect();
    let mut plan = describe(context, &shipment, &bound, &options, shown)?;
    check_holder(context, &array, &shipment, document, options.reopen)?;
    confirm(context, &array, &shipment, document, &options.confirmation)?;
    // What is refused changes nothing: least of all may a sealed shipment be reopened for a disk that is another one.
    let mut reread = Reread::new();
    if known {
        let catalogue = Catalogue::open_reader(&live)?;
        disks::expect_known(&catalogue, &mut bound)?;
        reread = recognise::expect_contents(&catalogue, &mut bound, context.engine)?;
    }
    refuse_where_none_is_left(context, &mut bound, options.reopen)?;
    if context.dry_run {
        let mut notes = Vec::new();
        if live.exists() {
            let catalogue = Catalogue::open_reader(&live)?;
            fill_done(&mut plan, &catalogue)?;
            let reported = context.ledger.damaged_packs(shipment.shipment)?;
            for (pack, fault) in doubt(&array, &catalogue, &reported)?.unsound {
                let (file, why) = (pack.file, fault.say(context.lang));
                notes.push(say!(
                    context.lang,
                    "{file}: {why}: would be given up, and its blocks copied again",
                    "{file}：{why}：将放弃该数据包并重新复制其中各块"
                ));
            }
        }
        let failed = bound.iter().filter_map(|b| Some(FailedDisk::new(b.name(), b.fault.as_ref()?))).collect();
        return Ok(Seeded { plan, dry_run: true, disks: vec![], failed, seconds: 0, notes });
    }
    let lock = Arc::new(holder::Lock::take(&array, &context.ledger, shipment.shipment)?);
    let inventory = HostInventory::gather(&context.sys);
    let host = inventory.hostname.clone().unwrap_or_else(|| "unknown".into());
    let catalogue = open_catalogue(context, &array, &shipment, document, &live, &host)?;
    let mut seed = Seed {
        context,
        array: &array,
        shipment: &shipment,
        options: &options,
        catalogue: Mutex::new(catalogue),
        lock,
        inventory,
        host,
        reread,
        failed: BTreeMap::new(),
        notes: Vec::new(),
    };
    let disks = seed.copy(&mut bound, &recipients)?;
    fill_done(&mut plan, &seed.lock())?;
    let mut failed: Vec<FailedDisk> = std::mem::take(&mut seed.failed).into_values().collect();
    // Where nothing at all could be copied, and for one reason, that is why the run fails.
    if disks.is_empty() && !failed.is_empty() && failed.iter().all(|disk| disk.is_as(&failed[0])) {
        return Err(failed.remove(0).into_error());
    }
    Ok(Seeded { plan, dry_run: false, disks, failed, seconds: started.elapsed().as_secs(), notes: seed.notes })
}

/// Fails where not one disk can be copied, nor was: there is nothing to go on with. A sealed shipment is reopened only for a plan of
/// which every disk can be copied.
fn refuse_where_none_is_left(context: &Context, bound: &mut [Bound], reopen: bool) -> Result<()> {
    let lost = !bound.iter().any(|b| b.source.is_some() || b.complete.is_some());
    let mut faults: Vec<Error> = match lost || reopen {
        true => bound.iter_mut().filter_map(|b| b.fault.take()).collect(),
        false => Vec::new(),
    };
    if faults.is_empty() {
        return Ok(());
    }
    let first = faults.remove(0);
    faults.iter().for_each(|fault| context.monitor.note(&fault.to_string()));
    Err(first)
}

fn refuse_sources(bound: &[Bound], array: &Path) -> Result<()> {
    let sources: Vec<&Source> = bound.iter().filter_map(|b| b.source.as_ref()).collect();
    refuse_as_source(&sources, array)
}

fn describe(
    context: &Context,
    shipment: &Shipment,
    bound: &[Bound],
    options: &Options,
    recipients: Vec<String>,
) -> Result<Plan> {
    let mut disks: Vec<PlannedDisk> = bound
        .iter()
        .map(|b| PlannedDisk {
            disk: b.name(),
            source: b.plan.source.to_string(),
            bytes: b.bytes(),
            excluded: b.plan.exclude.clone(),
            done_bytes: 0,
            cautions: Vec::new(),
        })
        .collect();
    cautions(context, bound, &options.array, &mut disks);
    let space = rustix::fs::statvfs(&options.array).context(|| format!("Array {}", options.array.display()))?;
    // A record of an incompressible block is one page longer than the block.
    let need = disks.iter().map(|d| d.bytes + d.bytes.div_ceil(u64::from(shipment.block_bytes)) * 4096).sum();
    let paths = bound.iter().filter(|b| b.source.is_some()).filter_map(|b| b.plan.source.path());
    let mut engine = engine_in_use(context.engine, paths.chain([options.array.as_path()]))?.to_owned();
    let reads = |kind: fn(&Origin) -> bool| bound.iter().any(|b| b.source.is_some() && kind(&b.plan.source));
    if reads(|origin| matches!(origin, Origin::Nbd(_))) {
        engine.push_str("+nbd");
    }
    if reads(|origin| matches!(origin, Origin::Ssh(_))) {
        engine.push_str("+ssh");
    }
    Ok(Plan {
        shipment: shipment.shipment,
        site: shipment.site.name.clone(),
        plaintext: shipment.suite == Suite::Plaintext,
        recipients,
        engine,
        disks,
        array_free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        array_need_at_most_bytes: need,
    })
}

/// What `inspect` warns of, of the disks that are taken.
fn cautions(context: &Context, bound: &[Bound], array: &Path, planned: &mut [PlannedDisk]) {
    let names: Vec<String> = bound.iter().map(Bound::name).collect();
    let taken: Vec<_> = bound.iter().enumerate().filter_map(|(i, b)| Some((i, b.source.as_ref()?))).collect();
    let beside: Vec<_> =
        taken.iter().map(|(i, source)| (names[*i].as_str(), Some(&source.identity), &source.facts)).collect();
    // An export may well be the file of an image that its server takes for a raw disk.
    let warns = |reason: &Reason| reason.verdict() == Verdict::Caution || matches!(reason, Reason::WrappedImage { .. });
    for ((i, source), shared) in taken.iter().zip(judge::shared(&beside)) {
        let all = judge::judge(source, &context.sys, Some(array)).into_iter().chain(shared);
        planned[*i].cautions = all.filter(warns).collect();
    }
}

fn fill_done(plan: &mut Plan, catalogue: &Catalogue) -> Result<()> {
    let (machines, disks, shipment) = (catalogue.machines()?, catalogue.disks()?, catalogue.shipment()?);
    for generation in catalogue.generations()? {
        let Some(disk) = disks.iter().find(|d| d.number == generation.disk) else { continue };
        let machine = machines.iter().find(|m| m.number == disk.machine).map_or("", |m| m.name.as_str());
        let name = format!("{machine}/{}", disk.name);
        if let Some(planned) = plan.disks.iter_mut().find(|p| p.disk == name) {
            let geometry = Geometry::new(generation.bytes, shipment.block_bytes)?;
            planned.done_bytes = match generation.finished_at {
                Some(_) => generation.bytes,
                None => committed(catalogue, &generation, &geometry, shipment.encrypted)?.1,
            };
        }
    }
    Ok(())
}

/// Refuses arrays that another host holds, that were altered since, or that are sealed.
fn check_holder(context: &Context, array: &Array, shipment: &Shipment, document: Digest, reopen: bool) -> Result<()> {
    holder::check(array, &context.ledger, shipment.shipment)?;
    let known = context.ledger.shipment(shipment.shipment)?;
    let held = holder::read(array)?.is_some();
    let sealed = array.is_sealed()?;
    let Some(known) = known else {
        if sealed {
            return Err(Error::failed(format!(
                "Array {}: it is sealed, and this host's ledger does not know its shipment",
                array.root().display()
            ))
            .next("a sealed array is for verify, import and erase; to seed, prepare another one with init"));
        }
        if held {
            return Err(Error::failed(format!("Array {}: this ledger holds its shipment, but has lost all it knew of it", array.root().display()))
                .next("without the live manifest the copy is worthless: erase --unproven --reason …, then init and seed again"));
        }
        // holder.json is a note that may get lost. Numbers begin at 1 again here, and would replace what another host wrote.
        if array.is_written()? {
            return Err(Error::failed(format!(
                "Array {}: expected no pack and no key on it, found some that this host's ledger does not know",
                array.root().display()
            ))
            .next("go on at the host that wrote them; if that is lost: erase --unproven --reason …, then init and seed again"));
        }
        return Ok(());
    };
    if known.document != document {
        return Err(Error::untrusted(format!(
            "shipment.json on {}: expected BLAKE3 {}, found {document}: it was altered since the first seed",
            array.root().display(),
            known.document
        ))
        .next("somebody may have exchanged the recipients: do not go on; prepare another array with init"));
    }
    let sealed = sealed || known.state == ShipmentState::Sealed;
    outrank::expect_known(array, &context.ledger, shipment.shipment)?;
    let last = context.ledger.seals(shipment.shipment)?.pop();
    if let Some(last) = last.filter(|_| known.state == ShipmentState::Sealed && reopen)
        && context.ledger.is_adopted(shipment.shipment, last.digest)?
    {
        return Err(Error::failed(format!(
            "Shipment {}: its seal was taken from the array, and the live manifest here is older",
            shipment.shipment
        ))
        .next("dispatch it as it is sealed; what changed since then travels by sync"));
    }
    match known.state {
        ShipmentState::Dispatched => {
            Err(Error::failed(format!("Shipment {}: it was dispatched; its seal is final", shipment.shipment))
                .next("what changed since then travels by sync"))
        }
        ShipmentState::Moved => {
            Err(Error::failed(format!("Shipment {}: its ledger was moved to another host", shipment.shipment))
                .next("go on at that host"))
        }
        _ if sealed && !reopen => Err(Error::failed(format!("Shipment {}: it is sealed", shipment.shipment))
            .next("to go on before dispatch, say --reopen; the next seal then supersedes this one")),
        _ => Ok(()),
    }
}

fn open_catalogue(
    context: &Context,
    array: &Array,
    shipment: &Shipment,
    document: Digest,
    live: &Path,
    host: &str,
) -> Result<Catalogue> {
    let ledger = &context.ledger;
    let at = now()?;
    if ledger.shipment(shipment.shipment)?.is_none() {
        // A file without a ledger row is the leftover of a crash between the two: nothing was written to the array yet.
        for name in ["manifest.db", "manifest.db-journal", "manifest.db-wal", "manifest.db-shm"] {
            let leftover = live.with_file_name(name);
            if leftover.exists() {
                std::fs::remove_file(&leftover).context(|| format!("State file {}", leftover.display()))?;
            }
        }
        drop(Catalogue::create(live, shipment)?);
        sync_dir(&ledger.shipment_dir(shipment.shipment))?;
        ledger.begin_shipment(shipment, document, &array.root().display().to_string(), at)?;
    }
    holder::claim(array, ledger, shipment.shipment, host)?;
    ledger.set_shipment_state(shipment.shipment, ShipmentState::Seeding)?;
    ledger.set_shipment_array(shipment.shipment, &array.root().display().to_string())?;
    let catalogue = Catalogue::open_live(live)?;
    for process in catalogue.processes()?.iter().filter(|p| p.ended_at.is_none()) {
        let text = format!(
            "writing process {} on {} was interrupted without a word (crash, kill, power)",
            process.number, process.host
        );
        catalogue.add_event(at, "interrupted", None, None, &text)?;
        catalogue.end_process(process.number, at, "interrupted without a word")?;
    }
    Ok(catalogue)
}

/// Committed blocks of a generation, and their bytes.
fn committed(
    catalogue: &Catalogue,
    generation: &Generation,
    geometry: &Geometry,
    encrypted: bool,
) -> Result<(Bitmap, u64)> {
    let (mut blocks, mut bytes) = (Bitmap::new(geometry.blocks()), 0);
    catalogue.for_each_row(generation, geometry, encrypted, |row| -> Result<()> {
        blocks.insert(row.block);
        bytes += u64::from(geometry.len(row.block));
        Ok(())
    })?;
    Ok((blocks, bytes))
}

/// One run of the verb.
struct Seed<'a> {
    context: &'a Context,
    array: &'a Array,
    shipment: &'a Shipment,
    options: &'a Options,
    catalogue: Mutex<Catalogue>,
    lock: Arc<holder::Lock>,
    inventory: HostInventory,
    host: String,
    /// What was written over since it was copied.
    reread: Reread,
    /// Disks that could not be copied, by their place in the plan.
    failed: BTreeMap<usize, FailedDisk>,
    notes: Vec<String>,
}

/// Why a group of disks ended.
enum Ended {
    /// For what its sources, its snapshot or its hooks did: other groups go on.
    Group(Error),
    /// For what the array or the ledger did, or by request.
    Run(Error),
}

/// What all groups of disks of one run share.
struct Copying<'a> {
    writer: Arc<Writer>,
    /// The array, as far as it answers.
    medium: Medium,
    throttle: &'a Arc<Throttle>,
    progress: &'a Arc<Progress>,
    zeros: Arc<ZeroLeaves>,
}

/// A disk of the plan, ready to be read.
struct Ready {
    name: String,
    disk: Disk,
    /// As the plan has it; with a snapshot, the source is read elsewhere.
    declared: Origin,
    source: Source,
}

impl Seed<'_> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Catalogue> {
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn encrypted(&self) -> bool {
        self.shipment.suite != Suite::Plaintext
    }

    fn copy(&mut self, bound: &mut [Bound], recipients: &[Recipient]) -> Result<Vec<SeededDisk>> {
        let earlier = Earlier::of(&self.context.ledger, self.shipment)?;
        let mut unknown = BTreeSet::new();
        let entered = bound
            .iter()
            .map(|b| {
                let of_machine = bound.iter().filter(|other| other.machine.name == b.machine.name);
                let served = of_machine.filter_map(|other| other.source.as_ref()?.host.as_ref()).next();
                let inventory = disks::inventory_of(b.machine, served, &self.inventory)?;
                if inventory.known_by == KnownBy::Nobody && b.source.is_some() {
                    unknown.insert(b.machine.name.as_str());
                }
                disks::enter(&self.lock(), b, &earlier, &inventory, self.shipment.block_bytes)
            })
            .collect::<Result<Vec<_>>>()?;
        for machine in unknown {
            self.notes.push(say!(
                self.context.lang,
                "Machine {machine}: nothing is known of it but its disks; what it is (firmware, system, addresses) can be told in a plan: [machine.facts]",
                "主机 {machine}：除磁盘外一无所知；可在计划的 [machine.facts] 中写明固件、系统、地址"
            ));
        }
        self.doubt_the_array()?;
        self.expect_complete(bound, &entered)?;
        let throttle = Throttle::new(self.limits(bound));
        self.notes.extend(yield_to_host());
        let subject = format!("{} {}", self.shipment.site.name, self.shipment.shipment);
        let progress = Progress::new(
            "seed",
            bound
                .iter()
                .zip(&entered)
                .filter(|(_, d)| d.excluded.is_none())
                .map(|(b, _)| DiskProgress::new(b.name(), b.bytes()))
                .collect(),
        );
        let _job = Job::start(self.context.ledger.state(), "seed", subject, throttle.clone(), progress.clone())?;
        let _watch = self.context.monitor.watch(progress.clone());
        let _notes = Watch::notes(throttle.clone(), self.context.monitor.clone());
        let at = now()?;
        let number = self.lock().add_process(&self.host, &tool(), at)?;
        let medium = Medium::new(MediumKind::Array, &self.options.array.display().to_string(), &throttle, &progress)
            .holding(self.lock.clone());
        let writer = self.writer(number, recipients, &medium)?;
        let state = self.context.ledger.state().display().to_string();
        self.lock().add_event(at, "host-write", None, None, &format!("ledger and live manifest below {state}"))?;
        let zeros = ZeroLeaves::open(self.context.ledger.state(), self.shipment.block_bytes)?;
        let copying = Copying { writer, medium, throttle: &throttle, progress: &progress, zeros };
        let result = self.machines(bound, &entered, &copying);
        let recorded = self.record_end(number, result.as_ref().err(), bound, &entered);
        // What stopped the copy is the error to show, also when the ledger cannot take it down any more.
        let seeded = result?;
        recorded?;
        Ok(seeded)
    }

    /// Opens the sources of disks that were complete, and of which the array lost something.
    fn expect_complete(&mut self, bound: &mut [Bound], entered: &[Disk]) -> Result<()> {
        for (b, disk) in bound.iter_mut().zip(entered) {
            if b.complete.is_some() && !self.finished(disk)? {
                b.complete = None;
            }
        }
        if !disks::open_those(bound, &self.context.sys)? {
            return Ok(());
        }
        refuse_sources(bound, &self.options.array)?;
        let reread = {
            let catalogue = self.lock();
            disks::expect_known(&catalogue, bound)?;
            recognise::expect_contents(&catalogue, bound, self.context.engine)?
        };
        self.reread.extend(reread);
        Ok(())
    }

    /// Whether an earlier run has copied a disk to its end.
    fn finished(&self, disk: &Disk) -> Result<bool> {
        Ok(self.lock().generations()?.iter().any(|g| g.disk == disk.number && g.finished_at.is_some()))
    }

    /// What the array had confirmed is looked at again; what it lost is given up, said, and copied again.
    fn doubt_the_array(&mut self) -> Result<()> {
        let lang = self.context.lang;
        let reported = self.context.ledger.damaged_packs(self.shipment.shipment)?;
        let mut catalogue = self.catalogue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.context.ledger.shipment(self.shipment.shipment)? {
            self.array.sound_copy("shipment.json", known.document)?;
        }
        for process in catalogue.processes()? {
            if let Some(envelope) = process.envelope {
                self.array.sound_copy(&envelope_file(process.number), envelope)?;
            }
        }
        let found = doubt(self.array, &catalogue, &reported)?;
        let (checked_bytes, sound) = (found.checked_bytes, found.unsound.is_empty());
        for given_up in give_up(self.array, &mut catalogue, found.unsound)? {
            let text = given_up.say(lang);
            self.context.monitor.note(&text);
            self.notes.push(text);
        }
        if sound && checked_bytes > 0 {
            let size = units::size(checked_bytes);
            self.notes.push(say!(
                lang,
                "the last {size} on the array were read again and are sound",
                "已复查移动存储末尾 {size}，完好"
            ));
        }
        Ok(())
    }

    /// An array that vanished takes nothing from the ledger: how the process ended is recorded either way.
    fn record_end(&self, process: u32, error: Option<&Error>, bound: &[Bound], entered: &[Disk]) -> Result<()> {
        let (at, catalogue) = (now()?, self.lock());
        for (i, failed) in &self.failed {
            let text = format!("{}: not copied to its end: {}", bound[*i].name(), failed.error);
            catalogue.add_event(at, "failed", None, Some(entered[*i].number), &text)?;
        }
        let ending = if self.failed.is_empty() { "finished" } else { "finished, but not all disks could be copied" };
        catalogue.end_process(process, at, error.map_or(ending, |e| &e.message))?;
        if let Some(error) = error {
            let word = if error.kind == Kind::Interrupted { "interrupted" } else { "failed" };
            catalogue.add_event(at, word, None, None, &error.message)?;
        }
        Ok(())
    }

    fn limits(&self, bound: &[Bound]) -> Limits {
        let mut limits = self.options.limits.clone();
        if self.options.latency_guard {
            // In the order of the job's counters.
            let copied = bound.iter().filter(|b| b.plan.exclude.is_none());
            let names = copied.map(|b| match b.source.as_ref().and_then(|source| source.device.as_ref()) {
                Some(device) if device.partition_number().is_some() => {
                    format!("{}/{}", device.whole().name, device.name)
                }
                Some(device) => device.name.clone(),
                None => String::new(),
            });
            let mut guard = LatencyGuard::new(&self.context.sys.path(""), names.collect());
            guard.labels = bound.iter().filter(|b| b.plan.exclude.is_none()).map(Bound::name).collect();
            limits.latency_guard = Some(guard);
        }
        limits
    }

    /// A fresh key for this process; its envelope is durable, and its digest in the manifest, before the first record.
    fn writer(&self, number: u32, recipients: &[Recipient], medium: &Medium) -> Result<Arc<Writer>> {
        if !self.encrypted() {
            return Ok(Arc::new(Writer::new(self.shipment.shipment, number, None)));
        }
        let failed = |e| Error::failed(format!("Key envelope {number}")).because(e);
        let key = ContentKey::generate().map_err(failed)?;
        let envelope =
            wrap_key(&key, &EnvelopeMeta::new(self.shipment.shipment, number), recipients).map_err(failed)?;
        let name = envelope_file(number);
        let digest = Digest::of(&envelope);
        let array = self.array.clone();
        medium.call(move || {
            let tree = array.tree()?;
            tree.write(&name, &envelope)?;
            tree.write(format!("copy/{name}"), &envelope)
        })?;
        self.lock().set_envelope(number, &digest)?;
        Ok(Arc::new(Writer::new(self.shipment.shipment, number, Some(RecordKey::new(key.as_bytes())?))))
    }

    /// Machines with snapshots one after the other, so that no snapshot is held longer than its copy takes; all others at once. What
    /// ends one of them ends none of the others.
    fn machines(&mut self, bound: &[Bound], entered: &[Disk], copying: &Copying<'_>) -> Result<Vec<SeededDisk>> {
        let mut groups: Vec<(Option<&str>, Vec<usize>)> = vec![(None, Vec::new())];
        for (i, b) in bound.iter().enumerate().filter(|(i, _)| entered[*i].excluded.is_none()) {
            if let Some(fault) = &b.fault {
                self.fail(i, &b.name(), fault);
                continue;
            }
            match groups.iter_mut().find(|(name, _)| *name == b.is_hooked().then_some(b.machine.name.as_str())) {
                Some((_, members)) => members.push(i),
                None => groups.push((Some(&b.machine.name), vec![i])),
            }
        }
        let mut seeded = BTreeMap::new();
        for (machine, members) in groups.into_iter().filter(|(_, members)| !members.is_empty()) {
            match self.machine(machine, &members, bound, entered, copying, &mut seeded) {
                Ok(()) => {}
                Err(Ended::Group(error)) if error.kind != Kind::Interrupted => {
                    for i in members.iter().filter(|i| !seeded.contains_key(*i)) {
                        self.fail(*i, &bound[*i].name(), &error);
                    }
                }
                Err(Ended::Group(error) | Ended::Run(error)) => return Err(error),
            }
        }
        Ok(seeded.into_values().collect())
    }

    /// Takes down why a disk could not be copied; the first reason counts.
    fn fail(&mut self, i: usize, name: &str, error: &Error) {
        if let Entry::Vacant(free) = self.failed.entry(i) {
            if self.options.plan.disks().count() > 1 {
                self.context.monitor.note(&format!("{name}: {error}"));
            }
            free.insert(FailedDisk::new(name.to_owned(), error));
        }
    }

    /// The disks of one machine of which a snapshot is taken, or all others.
    fn machine(
        &mut self,
        machine: Option<&str>,
        members: &[usize],
        bound: &[Bound],
        entered: &[Disk],
        copying: &Copying<'_>,
        seeded: &mut BTreeMap<usize, SeededDisk>,
    ) -> Result<(), Ended> {
        let own = machine.and_then(|_| self.platform(bound, entered, members));
        let hooks = Hooks::new(bound[members[0]].machine.hooks.clone()).or_own(own);
        let told = HookContext {
            machine: machine.unwrap_or_default().to_owned(),
            shipment: self.shipment.shipment.to_string(),
            generation: 0,
            disks: members.iter().map(|i| bound[*i].plan.name.clone()).collect(),
            log: Some(self.context.ledger.state().join("thaw-watchdog.log")),
        };
        // A machine that is complete is not frozen once more; only its snapshot may still have to go.
        let complete = self.complete(entered, members).map_err(Ended::Run)?;
        let taken = match machine {
            Some(name) if hooks.has_snapshot() && !complete => {
                Some(self.snapshot(name, &hooks, &told, bound, members).map_err(Ended::Group)?)
            }
            _ => None,
        };
        self.group(taken.as_ref(), &hooks, bound, entered, members, copying, seeded)?;
        let whole = members.iter().all(|i| seeded.contains_key(i));
        let Some(name) = machine else { return Ok(()) };
        let kept = || self.context.ledger.snapshot::<KeptSnapshot>(self.shipment.shipment, name);
        let taken = taken.map_or_else(kept, |taken| Ok(Some(taken))).map_err(Ended::Run)?;
        // Where a disk is open, the next run goes on with the same snapshot.
        if let Some(taken) = taken.filter(|_| whole) {
            self.begin_tracking(&taken, bound, entered, members).map_err(Ended::Run)?;
            let event = hooks.discard(&told).map_err(Ended::Run)?;
            self.context.ledger.forget_snapshot(self.shipment.shipment, name).map_err(Ended::Run)?;
            self.record_hooks(event.as_slice(), bound, members).map_err(Ended::Run)?;
        }
        Ok(())
    }

    /// Whether all these disks were copied to their end by an earlier run.
    fn complete(&self, entered: &[Disk], members: &[usize]) -> Result<bool> {
        let generations = self.lock().generations()?;
        let finished = |disk: &Disk| generations.iter().any(|g| g.disk == disk.number && g.finished_at.is_some());
        Ok(members.iter().all(|i| finished(&entered[*i])))
    }

    fn ready(&self, bound: &Bound, disk: &Disk, taken: Option<&KeptSnapshot>) -> Result<Ready> {
        let origin = taken.and_then(|kept| kept.taken.overrides.get(&bound.plan.name)).unwrap_or(&bound.plan.source);
        let source = Source::open(origin, &self.context.sys)?;
        // Since it was planned, somebody may have put another disk there; a snapshot is another source by nature.
        if let Some(planned) = bound.source.as_ref().filter(|planned| planned.origin == source.origin) {
            source.expect_identity(&planned.identity)?;
        }
        if bound.plan.source.monitor().is_some() && source.origin != bound.plan.source {
            self.look_closer(&bound.name(), disk, &source)?;
        }
        Ok(Ready { name: bound.name(), disk: disk.clone(), declared: bound.plan.source.clone(), source })
    }

    /// Copies the disks of a group; those that were copied to their end are added to `seeded`, the others to the failed ones.
    #[allow(clippy::too_many_arguments)]
    fn group(
        &mut self,
        taken: Option<&KeptSnapshot>,
        hooks: &Hooks,
        bound: &[Bound],
        entered: &[Disk],
        members: &[usize],
        copying: &Copying<'_>,
        seeded: &mut BTreeMap<usize, SeededDisk>,
    ) -> Result<(), Ended> {
        let Copying { writer, medium, throttle, progress, zeros } = copying;
        // The pipeline counts in the job's own list; a group takes part of it, by name.
        let (mut disks, mut slots, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for i in members {
            let name = bound[*i].name();
            let asserted = self.options.point_in_time || bound[*i].plan.point_in_time;
            let Some(slot) = progress.disks.iter().position(|p| p.name == name) else { continue };
            let counters = &progress.disks[slot];
            let source = Medium::new(MediumKind::Source, &name, throttle, progress);
            if bound[*i].complete.is_some() {
                let disk = self.complete_disk(&entered[*i], counters).map_err(Ended::Run)?;
                seeded.insert(*i, disk);
                continue;
            }
            let prepared = self
                .ready(&bound[*i], &entered[*i], taken)
                .and_then(|ready| self.prepare(&ready, taken, asserted, source, counters));
            match prepared {
                Ok(prepared) => {
                    disks.push(prepared);
                    slots.push(slot);
                    places.push(*i);
                }
                Err(error) if error.kind == Kind::Interrupted => return Err(Ended::Run(error)),
                Err(error) => self.fail(*i, &name, &hooks.explain(error)),
            }
        }
        let finish = Finish { catalogue: &self.catalogue, encrypted: self.encrypted() };
        let finished: Mutex<BTreeMap<usize, SeededDisk>> = Mutex::default();
        let lang = self.context.lang;
        let done = |end: &ReadToEnd, single: Option<Digest>| -> Result<()> {
            let ReadToEnd { index, ref moved } = *end;
            let SeedDisk { generation, geometry, .. } = &disks[index];
            let disk = finish.disk(generation, geometry, single, moved.as_deref(), &progress.disks[slots[index]])?;
            if generation.finished_at.is_none() {
                let (name, digest) = (&disk.disk, disk.digest);
                throttle.note(say!(lang, "{name} is complete: digest {digest}", "{name} 已完成：摘要 {digest}"));
            }
            finished.lock().unwrap_or_else(PoisonError::into_inner).insert(index, disk);
            Ok(())
        };
        let pipeline = Pipeline {
            array: self.array,
            medium: medium.clone(),
            catalogue: &self.catalogue,
            disks: &disks,
            slots: &slots,
            writer: writer.clone(),
            level: self.options.level,
            engine: self.context.engine,
            jobs: self.options.jobs.unwrap_or(DEFAULT_JOBS),
            throttle: (*throttle).clone(),
            progress: (*progress).clone(),
            zeros: zeros.clone(),
            block_bytes: self.shipment.block_bytes,
            shipment: self.shipment.shipment,
            finish: &done,
            // Of a machine's own snapshot only its end tells whether it was of one instant.
            finish_at_once: !taken.is_some_and(|kept| kept.taken.own),
        };
        let mut copied = pipeline.run().map_err(Ended::Run)?;
        let mut whole = hooks.expect_whole();
        if taken.is_some_and(|kept| kept.taken.own)
            && let Some((_, fault)) = copied.faults.pop_first()
        {
            // Of a machine's own snapshot all counts or nothing.
            whole = whole.and(Err(fault));
        }
        for index in (0..disks.len()).filter(|index| whole.is_ok() && !copied.faults.contains_key(index)) {
            if !finished.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&index) {
                // What was not finished at once is a machine's own snapshot, of which nobody has to assert that it stands still.
                let end = ReadToEnd { index, moved: None };
                done(&end, copied.singles.get(&index).copied()).map_err(Ended::Run)?;
            }
        }
        let finished = finished.into_inner().unwrap_or_else(PoisonError::into_inner);
        seeded.extend(finished.into_iter().map(|(index, disk)| (places[index], disk)));
        for (index, error) in copied.faults {
            let SeedDisk { generation, written, .. } = &disks[index];
            if written.load(Ordering::Relaxed) {
                // What is committed is of no one point in time any more: the next run reads all of it again.
                let (id, source) = (generation.id, &generation.source);
                let recorded = self.lock().set_point_in_time(id, Consistency::Fuzzy, Basis::None, None, source);
                recorded.map_err(|error| Ended::Run(error.into()))?;
            }
            let error = hooks.explain(error);
            self.failed.insert(places[index], FailedDisk::new(disks[index].name.clone(), &error));
        }
        whole.map_err(|error| Ended::Group(hooks.explain(error)))
    }

    /// A disk that an earlier run has copied to its end: nothing of it is read, and its source is not asked for.
    fn complete_disk(&self, disk: &Disk, counters: &DiskProgress) -> Result<SeededDisk> {
        let found = self.lock().generations()?.into_iter().find(|g| g.disk == disk.number && g.finished_at.is_some());
        let generation = found.ok_or_else(|| {
            Error::failed(format!("Disk {}: the manifest does not know its generation", counters.name))
        })?;
        counters.skipped.store(generation.bytes, std::sync::atomic::Ordering::Relaxed);
        let geometry = Geometry::new(generation.bytes, self.shipment.block_bytes)?;
        let finish = Finish { catalogue: &self.catalogue, encrypted: self.encrypted() };
        finish.disk(&generation, &geometry, None, None, counters)
    }

    /// Finds or begins the disk's generation, and says what of it stays.
    fn prepare(
        &mut self,
        ready: &Ready,
        taken: Option<&KeptSnapshot>,
        asserted: bool,
        medium: Medium,
        counters: &DiskProgress,
    ) -> Result<SeedDisk> {
        let Ready { name, disk, declared, source } = ready;
        let (shipment, ledger) = (self.shipment.shipment, self.context.ledger.clone());
        let geometry = Geometry::new(source.bytes, self.shipment.block_bytes)?;
        let encrypted = self.encrypted();
        let watch = source.watch();
        let watched = asserted && taken.is_none() && source.point_in_time().is_none();
        let seen = if watched { watch.look()? } else { None };
        let mut notes = Vec::new();
        let catalogue = self.catalogue.lock().unwrap_or_else(PoisonError::into_inner);
        let (consistency, basis, point) = match (taken, asserted) {
            (Some(kept), _) => {
                let basis = if kept.taken.own { Basis::Source } else { Basis::Hook };
                let live = if source.origin == *declared {
                    " of the disk itself: the snapshot hook named no other place"
                } else {
                    ""
                };
                let point = format!("{} {}{live}", kept.taken.point_in_time, kept.taken.id);
                (Consistency::Consistent, basis, Some(point))
            }
            (None, _) if source.point_in_time().is_some() => {
                (Consistency::Consistent, Basis::Source, source.point_in_time())
            }
            (None, true) => (Consistency::Consistent, Basis::Asserted, Some("asserted by the engineer".to_owned())),
            (None, false) => (Consistency::Fuzzy, Basis::None, None),
        };
        // What a scan reads again is the live disk, not a snapshot that is gone by then.
        let path = declared.to_string();
        if source.origin != *declared {
            let text = format!("{name} is read from its snapshot {}", source.origin);
            catalogue.add_event(now()?, "snapshot", None, Some(disk.number), &text)?;
        }
        let found = catalogue.generations()?.into_iter().find(|g| g.disk == disk.number && g.number == 0);
        let (mut skip, mut known) = (None, None);
        let manifest = catalogue.path().to_owned();
        let known_of = |generation: &Generation| Known {
            manifest: manifest.clone(),
            generation: generation.clone(),
            geometry,
            encrypted,
        };
        let generation = match found {
            None => {
                // Before the first byte is read; without it a later run would take nothing for granted.
                seen.iter().try_for_each(|seen| ledger.keep_stillness(disk.uuid, shipment, seen))?;
                let new = NewGeneration {
                    disk: disk.number,
                    number: 0,
                    bytes: source.bytes,
                    consistency,
                    basis,
                    point_in_time: point,
                    source: path,
                };
                catalogue.begin_generation(&new, now()?)?
            }
            Some(old) => {
                if old.bytes != source.bytes {
                    return Err(Error::failed(format!("Disk {name}: expected {} bytes as when its seed began, found {}", old.bytes, source.bytes))
                        .next("a disk must keep its size while it is copied; seed it under another disk name, and leave this one out at sealing"));
                }
                let same_point = old.point_in_time == point && old.basis == basis;
                let open = old.finished_at.is_none();
                let written = match (&seen, taken) {
                    _ if !open || !same_point => None,
                    (Some(seen), _) => match ledger.stillness(disk.uuid, shipment) {
                        Some(before) => seen.moved_since(&before),
                        None => Some("nobody knows any more what it looked like when its copy began".into()),
                    },
                    // Where what was read before is read on: it must be that.
                    (None, Some(_)) => {
                        (samples::compare(&source.disk, &known_of(&old), self.context.engine, Some(&medium))?.differing
                            > 0)
                        .then(|| "its snapshot is not what was copied".into())
                    }
                    (None, None) => None,
                };
                let written = written.or_else(|| self.reread.contains(name).then(|| "it was written over".into()));
                if let Some(why) = &written {
                    let text = format!("{name}: {why}; every block is read again and compared");
                    catalogue.add_event(now()?, "reread", None, Some(disk.number), &text)?;
                    notes.push(text);
                }
                if old.finished_at.is_some() && (same_point || taken.is_none()) {
                    // Complete: nothing is read again.
                    let mut all = Bitmap::new(geometry.blocks());
                    (0..geometry.blocks()).for_each(|b| all.insert(b));
                    skip = Some(all);
                    old
                } else if written.is_none() && (same_point || consistency == Consistency::Fuzzy) {
                    // What is committed stays. A consistent beginning that goes on without its point in time is fuzzy as a whole.
                    if geometry.blocks() > 1 {
                        skip = Some(committed(&catalogue, &old, &geometry, encrypted)?.0);
                    }
                    if !same_point {
                        catalogue.set_point_in_time(old.id, consistency, basis, None, &path)?;
                    }
                    Generation { consistency, basis, point_in_time: point, source: path, ..old }
                } else {
                    // Another point in time: all is read, what differs is superseded. Until then the blocks are of no one point
                    // in time, and the ledger must not say so: cut short, this run would be taken for one that may go on.
                    catalogue.set_point_in_time(old.id, Consistency::Fuzzy, Basis::None, None, &path)?;
                    seen.iter().try_for_each(|seen| ledger.keep_stillness(disk.uuid, shipment, seen))?;
                    let generation = Generation {
                        consistency,
                        basis,
                        point_in_time: point,
                        source: path,
                        finished_at: None,
                        digest: None,
                        ..old
                    };
                    known = Some(known_of(&generation));
                    generation
                }
            }
        };
        if let Some(skip) = &skip {
            // The last block may be a short one, and it may be there before others.
            let last = geometry.blocks().checked_sub(1).filter(|last| skip.contains(*last));
            let short = last.map_or(0, |last| u64::from(self.shipment.block_bytes - geometry.len(last)));
            let bytes = skip.count() * u64::from(self.shipment.block_bytes) - short;
            counters.skipped.store(bytes, std::sync::atomic::Ordering::Relaxed);
        }
        drop(catalogue);
        self.notes.extend(notes);
        if !source.disk.is_direct() {
            let text = format!("{name}: its file system refuses O_DIRECT, so it is read through the page cache");
            self.lock().add_event(now()?, "buffered", None, Some(disk.number), &text)?;
            self.context.monitor.note(&text);
        }
        let (origin, sys, identity) = (source.origin.clone(), self.context.sys.clone(), source.identity.clone());
        let own = taken.is_some_and(|kept| kept.taken.own);
        // Whatever leads to a far disk may lead to another one next time: it must hold what was copied of it, while it is copied.
        let open = generation.finished_at.is_none();
        let written = Arc::new(AtomicBool::new(false));
        let verify = (source.disk.is_far() && open).then(|| {
            // Where all is read again, only what this run read says what it is.
            let committed = known.is_none().then(|| known_of(&generation));
            let (name, origin, written, consistency) =
                (name.clone(), origin.clone(), written.clone(), generation.consistency);
            Arc::new(move |queue: &mut Patient, disk: &Arc<dyn Readable>, seen: &Picked| {
                let mut picked = committed.as_ref().map_or_else(|| Ok(Picked::new()), samples::pick)?;
                picked.extend(seen);
                let found = samples::compare_by(queue, disk, &geometry, &picked)?;
                match recognise::judge(consistency, found) {
                    Likeness::Same => Ok(()),
                    Likeness::Written => {
                        written.store(true, Ordering::Relaxed);
                        Err(recognise::written(&name, &origin, found))
                    }
                    Likeness::Another => Err(recognise::another(&name, &origin, found)),
                }
            }) as Verify
        });
        let reopen = move || {
            let again = Source::open_same(&origin, &sys, &identity);
            // A machine's own snapshot that cannot be reached never comes back, whatever the machine does.
            if own { again.map_err(Error::without_cause) } else { again }
        };
        Ok(SeedDisk {
            number: disk.number,
            name: name.clone(),
            source: source.disk.clone(),
            medium,
            geometry,
            generation,
            skip,
            known,
            reopen: Arc::new(reopen),
            still: seen.map(|seen| (watch, seen)),
            verify,
            written,
        })
    }
}
