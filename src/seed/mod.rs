//! `seed`: copies disks onto the array. Running it again resumes.
//!
//! Order of steps: the array, who holds it and who vouches for its `shipment.json` · locks · sources by identity · the live manifest · what the array may have
//! lost · a number, a key and an envelope for this process · per machine: snapshot, copy, digests, discard.

mod disk;
mod disks;
mod earlier;
mod outcome;
mod pipeline;
mod recognise;
mod snapshot;
mod worker;

pub use outcome::{Plan, PlannedDisk, Seeded, SeededDisk};

use crate::array::recheck::{doubt, give_up};
use crate::array::{Array, holder, outrank};
use crate::context::{Context, now, tool};
use crate::copy::bitmap::Bitmap;
use crate::copy::guard::LatencyGuard;
use crate::copy::known::Known;
use crate::copy::patience::Medium;
use crate::copy::priority::yield_to_host;
use crate::copy::samples;
use crate::copy::throttle::{Limits, Throttle};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, IoContext, Kind, Result};
use crate::inspect::{HostInventory, KnownBy, Reason, Verdict, judge};
use crate::io::{engine_in_use, sync_dir};
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
use motiongear_manifest::catalogue::{BlockState, Catalogue, Disk, Generation, NewGeneration};
use motiongear_manifest::documents::seal::{Basis, Consistency, envelope_file};
use motiongear_manifest::documents::shipment::{Shipment, Suite};
use motiongear_manifest::envelope::{ContentKey, EnvelopeMeta, Recipient, begin_to_gather_randomness, wrap_key};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::record::{RecordKey, Writer};
use motiongear_manifest::tree::Digest;
use pipeline::Pipeline;
use recognise::Reread;
use snapshot::KeptSnapshot;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
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
    let bound = disks::open_all(&options.plan, &context.sys)?;
    refuse_sources(&bound, &options.array)?;
    let shown: Vec<String> = recipients.iter().map(Recipient::fingerprint).collect();
    let mut plan = describe(context, &shipment, &bound, &options, shown)?;
    check_holder(context, &array, &shipment, document, options.reopen)?;
    confirm(context, &array, &shipment, document, &options.confirmation)?;
    let live = context.ledger.shipment_dir(shipment.shipment).join("manifest.db");
    // What is refused changes nothing: least of all may a sealed shipment be reopened for a disk that is another one.
    let mut reread = Reread::new();
    if context.ledger.shipment(shipment.shipment)?.is_some() {
        let catalogue = Catalogue::open_reader(&live)?;
        disks::expect_known(&catalogue, &bound)?;
        reread = recognise::expect_contents(&catalogue, &bound, context.engine)?;
    }
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
        return Ok(Seeded { plan, dry_run: true, disks: vec![], seconds: 0, notes });
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
        notes: Vec::new(),
    };
    let disks = seed.copy(&bound, &recipients)?;
    fill_done(&mut plan, &seed.lock())?;
    Ok(Seeded { plan, dry_run: false, disks, seconds: started.elapsed().as_secs(), notes: seed.notes })
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
            bytes: b.source.as_ref().map_or(0, |s| s.bytes),
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
    notes: Vec<String>,
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

    fn copy(&mut self, bound: &[Bound], recipients: &[Recipient]) -> Result<Vec<SeededDisk>> {
        let earlier = Earlier::of(&self.context.ledger, self.shipment)?;
        let mut unknown = BTreeSet::new();
        let entered = bound
            .iter()
            .map(|b| {
                let of_machine = bound.iter().filter(|other| other.machine.name == b.machine.name);
                let served = of_machine.filter_map(|other| other.source.as_ref()?.host.as_ref()).next();
                let inventory = disks::inventory_of(b.machine, served, &self.inventory)?;
                if inventory.known_by == KnownBy::Nobody {
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
        let throttle = Throttle::new(self.limits(bound));
        self.notes.extend(yield_to_host());
        let subject = format!("{} {}", self.shipment.site.name, self.shipment.shipment);
        let progress = Progress::new(
            "seed",
            bound
                .iter()
                .zip(&entered)
                .filter(|(_, d)| d.excluded.is_none())
                .map(|(b, _)| DiskProgress::new(b.name(), b.source.as_ref().map_or(0, |s| s.bytes)))
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
        let recorded = self.record_end(number, result.as_ref().err());
        // What stopped the copy is the error to show, also when the ledger cannot take it down any more.
        let seeded = result?;
        recorded?;
        Ok(seeded)
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
    fn record_end(&self, process: u32, error: Option<&Error>) -> Result<()> {
        let (at, catalogue) = (now()?, self.lock());
        catalogue.end_process(process, at, error.map_or("finished", |e| &e.message))?;
        if let Some(error) = error {
            let word = if error.kind == Kind::Interrupted { "interrupted" } else { "failed" };
            catalogue.add_event(at, word, None, None, &error.message)?;
        }
        Ok(())
    }

    fn limits(&self, bound: &[Bound]) -> Limits {
        let mut limits = self.options.limits.clone();
        if self.options.latency_guard {
            // In the order of the job's counters: excluded disks have no source.
            let names = bound.iter().filter_map(|b| b.source.as_ref()).map(|s| match &s.device {
                Some(device) if device.partition_number().is_some() => {
                    format!("{}/{}", device.whole().name, device.name)
                }
                Some(device) => device.name.clone(),
                None => String::new(),
            });
            limits.latency_guard = Some(LatencyGuard::new(&self.context.sys.path(""), names.collect()));
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

    /// Machines with snapshots one after the other, so that no snapshot is held longer than its copy takes; all others at once.
    fn machines(&mut self, bound: &[Bound], entered: &[Disk], copying: &Copying<'_>) -> Result<Vec<SeededDisk>> {
        let mut groups: Vec<(Option<&str>, Vec<usize>)> = vec![(None, Vec::new())];
        for (i, b) in bound.iter().enumerate().filter(|(i, _)| entered[*i].excluded.is_none()) {
            let hooked = !b.machine.hooks.is_empty() || b.machine.has_platform();
            match groups.iter_mut().find(|(name, _)| *name == hooked.then_some(b.machine.name.as_str())) {
                Some((_, members)) => members.push(i),
                None => groups.push((Some(&b.machine.name), vec![i])),
            }
        }
        let mut seeded = Vec::new();
        for (machine, members) in groups.into_iter().filter(|(_, members)| !members.is_empty()) {
            let own = machine.and_then(|_| self.platform(bound, entered, &members));
            let hooks = Hooks::new(bound[members[0]].machine.hooks.clone()).or_own(own);
            let told = HookContext {
                machine: machine.unwrap_or_default().to_owned(),
                shipment: self.shipment.shipment.to_string(),
                generation: 0,
                disks: members.iter().map(|i| bound[*i].plan.name.clone()).collect(),
                log: Some(self.context.ledger.state().join("thaw-watchdog.log")),
            };
            // A machine that is complete is not frozen once more; only its snapshot may still have to go.
            let complete = self.complete(entered, &members)?;
            let taken = match machine {
                Some(name) if hooks.has_snapshot() && !complete => {
                    Some(self.snapshot(name, &hooks, &told, bound, &members)?)
                }
                _ => None,
            };
            let ready = members.iter().map(|i| self.ready(&bound[*i], &entered[*i], taken.as_ref()));
            let done = ready
                .collect::<Result<Vec<_>>>()
                .and_then(|ready| self.group(&ready, taken.as_ref(), &hooks, bound, &members, copying));
            seeded.extend(done.map_err(|error| hooks.explain(error))?);
            let kept = |name| self.context.ledger.snapshot::<KeptSnapshot>(self.shipment.shipment, name);
            let taken = match (taken, machine) {
                (None, Some(name)) => kept(name)?,
                (taken, _) => taken,
            };
            if let (Some(name), Some(taken)) = (machine, taken) {
                self.begin_tracking(&taken, bound, entered, &members)?;
                let event = hooks.discard(&told)?;
                self.context.ledger.forget_snapshot(self.shipment.shipment, name)?;
                self.record_hooks(event.as_slice(), bound, &members)?;
            }
        }
        Ok(seeded)
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

    fn group(
        &mut self,
        ready: &[Ready],
        taken: Option<&KeptSnapshot>,
        hooks: &Hooks,
        bound: &[Bound],
        members: &[usize],
        copying: &Copying<'_>,
    ) -> Result<Vec<SeededDisk>> {
        let Copying { writer, medium, throttle, progress, zeros } = copying;
        let mut disks = Vec::new();
        // The pipeline counts in the job's own list; a group takes part of it, by name.
        let mut slots = Vec::new();
        for (r, i) in ready.iter().zip(members) {
            let asserted = self.options.point_in_time || bound[*i].plan.point_in_time;
            let Some(slot) = progress.disks.iter().position(|p| p.name == r.name) else { continue };
            slots.push(slot);
            let source = Medium::new(MediumKind::Source, &r.name, throttle, progress);
            disks.push(self.prepare(r, taken, asserted, source, &progress.disks[slot])?);
        }
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
        };
        let singles = pipeline.run()?;
        hooks.expect_whole()?;
        let mut seeded = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            let moved = self.moved(disk)?;
            seeded.push(self.finish(disk, singles.get(&index).copied(), moved, &progress.disks[slots[index]])?);
        }
        Ok(seeded)
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
        // A disk that is reached again and told by nothing but its size must hold what was copied of it, while it is copied.
        let open = generation.finished_at.is_none();
        let compared =
            (source.disk.is_far() && !own && known.is_none() && open && !identity.is_told_by_hardware(&identity))
                .then(|| (name.clone(), known_of(&generation), self.context.engine));
        let reopen = move || {
            let again = Source::open_same(&origin, &sys, &identity);
            // A machine's own snapshot that cannot be reached never comes back, whatever the machine does.
            let again = if own { again.map_err(Error::without_cause) } else { again }?;
            if let Some((name, known, engine)) = &compared {
                let found = samples::compare(&again, known, *engine, None)?;
                if !found.fit() {
                    return Err(recognise::another(name, &origin, found));
                }
            }
            Ok(again)
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
        })
    }

    /// Why a disk that was asserted to stand still did not, as far as can be seen.
    fn moved(&self, disk: &SeedDisk) -> Result<Option<String>> {
        let Some((watch, before)) = disk.still.clone().filter(|_| disk.generation.finished_at.is_none()) else {
            return Ok(None);
        };
        let now = disk.medium.call(move || watch.look())?;
        Ok(match now {
            Some(now) => now.moved_since(&before),
            None => Some("nobody can see any more whether it was written to".into()),
        })
    }

    /// Merges the leaves and marks the generation complete. One whose disk `moved` while it was read is fuzzy.
    fn finish(
        &mut self,
        disk: &SeedDisk,
        single: Option<Digest>,
        moved: Option<String>,
        counters: &DiskProgress,
    ) -> Result<SeededDisk> {
        let catalogue = self.lock();
        let (blocks, merged) = catalogue.summarise(&disk.generation, &disk.geometry, self.encrypted())?;
        let digest = match (disk.geometry.blocks(), merged) {
            (0, _) => Digest::of(&[]),
            (_, Some(digest)) => digest,
            (_, None) => disk.generation.digest.or(single).ok_or_else(|| {
                Error::failed(format!("Disk {}: expected the digest of its only block, found none", disk.name))
            })?,
        };
        let mut generation = disk.generation.clone();
        if let Some(why) = &moved {
            (generation.consistency, generation.basis) = (Consistency::Fuzzy, Basis::None);
            generation.point_in_time = Some(format!("asserted, but {why}"));
            let text = format!("{} is fuzzy although it was asserted to stand still: {why}", disk.name);
            catalogue.add_event(now()?, "fuzzy", None, Some(disk.number), &text)?;
        }
        if generation.finished_at.is_none() {
            let Generation { id, consistency, basis, point_in_time, source, .. } = &generation;
            catalogue.set_point_in_time(*id, *consistency, *basis, point_in_time.as_deref(), source)?;
            catalogue.finish_generation(*id, now()?, &digest)?;
        }
        let unreadable = catalogue.unreadable(&disk.generation)?.iter().map(|r| r.bytes).sum();
        debug_assert!(blocks.unreadable > 0 || unreadable == 0, "{:?}", BlockState::Unreadable);
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        Ok(SeededDisk {
            disk: disk.name.clone(),
            bytes: disk.geometry.bytes(),
            digest,
            consistency: generation.consistency,
            basis: generation.basis,
            fuzzy_because: moved,
            blocks,
            unreadable_bytes: unreadable,
            read_bytes: get(&counters.read),
            skipped_bytes: get(&counters.skipped),
        })
    }
}
