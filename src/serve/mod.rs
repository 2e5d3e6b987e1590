//! `serve`: disks over NBD, read-only: those of a sealed shipment, unimported, or those of this host, for the one that has the array.
//!
//! Order of steps: what is offered is opened and checked · the place to listen · clients, until Ctrl-C.
//!
//! Disks of a shipment are [`crate::sealed`]'s, proven block by block.
//!
//! * `source`: disks of this host; `leaves`: their leaves, so that a scan need not move the bytes
//! * `recheck`: whether a disk is still that disk, for whoever comes, but not for ever
//! * `shelf`: all of them by name

mod leaves;
mod recheck;
mod shelf;
mod source;

use crate::array::Array;
use crate::context::{Context, Outcome};
use crate::copy::fetch::Damage;
use crate::copy::guard::LatencyGuard;
use crate::copy::patience::Medium;
use crate::copy::priority::yield_to_host;
use crate::copy::throttle::{Limits, Throttle};
use crate::error::{Error, Result};
use crate::inspect::HostInventory;
use crate::job::Job;
use crate::lang::Lang;
use crate::monitor::{DiskProgress, MediumKind, Progress, Watch};
use crate::nbd::client_files;
use crate::nbd::pin::{Own, Pin};
use crate::nbd::serve::{Host, Listener, Place};
use crate::nbd::tls;
use crate::say;
use crate::sealed::Sealed;
use crate::source::{Origin, Source, refuse_together};
use crate::trust::{self, Expected};
use crate::units::size;
use jiff::Timestamp;
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::seal::SealedDisk;
use motiongear_manifest::names::check_name;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use shelf::{Facts, Offer, Shelf};
use source::SourceExport;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// What stands in the path of a URI as it is.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Refused pins that are said.
const MAX_REFUSED: usize = 100;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is offered.
    pub what: What,
    /// Where clients come in; none to say only what this host's pin is.
    pub place: Option<Place>,
    /// Pins of clients that are let in. With any of them, TLS is a must.
    pub clients: Vec<Pin>,
    /// Everybody on this host may read over TCP without TLS.
    pub plain: bool,
    /// Read-rate and CPU limits, and windows.
    pub limits: Limits,
}

/// What is offered.
#[derive(Debug, Clone)]
pub enum What {
    /// Nothing: only the pin is asked for.
    Nothing,
    /// Nothing: only files for a client of others are made, in this directory.
    ClientFiles(PathBuf),
    /// Disks of a sealed shipment.
    Shipment {
        /// Where the array is mounted.
        array: PathBuf,
        /// OpenSSH allowed signers.
        trust: PathBuf,
        /// age identity; needed for an encrypted shipment.
        identity: Option<PathBuf>,
        /// By what the seal is known to be the one that left the branch.
        expected: Expected,
        /// When the signer's validity is judged; now unless set.
        verify_time: Option<Timestamp>,
        /// Only this machine.
        machine: Option<String>,
        /// Only disks of this name, or MACHINE/DISK.
        disk: Option<String>,
    },
    /// Disks of this host.
    Sources {
        /// By the names that they are offered under.
        disks: Vec<(String, Origin)>,
        /// Whether to watch the disks' own latency.
        latency_guard: bool,
    },
}

/// What was offered, and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Served {
    /// Where clients came in.
    pub place: Option<String>,
    /// What clients know this host by.
    pub pin: String,
    /// What the client is known by that files were made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// Whether all that was sent was encrypted.
    pub tls: bool,
    /// The shipment's spoken seal code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// NAME@SITE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// What could be read.
    pub exports: Vec<Exported>,
    /// Blocks of a shipment that clients asked for and that could not be proven, the first 10000.
    pub damaged_blocks: Vec<DamagedBlock>,
    /// What people should know.
    pub notes: Vec<String>,
    /// Nothing was offered.
    pub dry_run: bool,
}

/// A client of others.
#[derive(Debug, Clone, Serialize)]
pub struct Client {
    /// Its files.
    pub files: PathBuf,
    /// To say with `--client`; none of a dry run, which makes no key.
    pub pin: Option<String>,
}

/// One export.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// Its name.
    pub name: String,
    /// How a client on this host, or one that knows this host by name, calls it.
    pub uri: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// Bytes that clients were given.
    pub given_bytes: u64,
    /// Bytes that were read for it.
    pub read_bytes: u64,
}

/// A block that could not be proven.
#[derive(Debug, Clone, Serialize)]
pub struct DamagedBlock {
    /// MACHINE/DISK.
    pub disk: String,
    /// Which, and why.
    #[serde(flatten)]
    pub damage: Damage,
}

/// Runs the verb, until it is stopped.
///
/// # Errors
/// Not trusted; no such disk; a source that must not be read; somebody listens there already; clients that nobody may check.
pub fn run(context: &Context, options: &Options) -> Result<Served> {
    let own = Own::in_state(context.ledger.state())?;
    expect_guarded(options)?;
    let mut served = Served {
        place: options.place.as_ref().map(Place::to_string),
        pin: own.pin().to_string(),
        client: None,
        tls: !options.clients.is_empty(),
        code: None,
        signer: None,
        exports: Vec::new(),
        damaged_blocks: Vec::new(),
        notes: Vec::new(),
        dry_run: context.dry_run,
    };
    match &options.what {
        What::Nothing => Ok(served),
        What::ClientFiles(dir) => {
            let made = if context.dry_run { None } else { Some(client_files::make(&own, dir)?) };
            served.client = Some(Client { files: dir.clone(), pin: made.map(|pin| pin.to_string()) });
            Ok(served)
        }
        What::Shipment { .. } => {
            let throttle = Throttle::new(options.limits.clone());
            let (progress, offers) = of_shipment(context, options, &throttle, &mut served)?;
            serve(context, options, &own, served, &throttle, &progress, offers)
        }
        What::Sources { disks, latency_guard } => {
            let sources = open_sources(context, disks)?;
            let throttle = Throttle::new(limits(context, options, &sources, *latency_guard));
            let (progress, offers) = of_sources(context, sources, &throttle)?;
            serve(context, options, &own, served, &throttle, &progress, offers)
        }
    }
}

/// Lets clients in until the job is stopped.
fn serve(
    context: &Context,
    options: &Options,
    own: &Own,
    mut served: Served,
    throttle: &Arc<Throttle>,
    progress: &Arc<Progress>,
    offers: Offers,
) -> Result<Served> {
    let (Some(place), false) = (&options.place, context.dry_run) else {
        served.exports = exported(progress, |_| None);
        return Ok(served);
    };
    served.notes.extend(yield_to_host());
    let listener = Listener::open(place)?;
    let _job =
        Job::start(context.ledger.state(), "serve", listener.place().to_string(), throttle.clone(), progress.clone())?;
    let _notes = Watch::notes(throttle.clone(), context.monitor.clone());
    served.place = Some(listener.place().to_string());
    let uri = |name: &str| uri(listener.place(), own.pin(), served.tls, &hostname(context), name);
    for note in &served.notes {
        context.monitor.note(note);
    }
    let (at, pin) = (listener.place(), own.pin());
    context.monitor.note(&say!(
        context.lang,
        "Listening at {at}; this host's pin is {pin}. Ctrl-C ends it",
        "正在监听 {at}；本机指纹 {pin}。按 Ctrl-C 结束"
    ));
    for disk in &progress.disks {
        context.monitor.note(&format!("  {} ({}): {}", disk.name, size(disk.bytes), uri(&disk.name)));
    }
    // The host with the array may not know this one by its name.
    if let Place::Tcp(address) = listener.place()
        && address.ip().is_unspecified()
    {
        let nics = HostInventory::gather(&context.sys).nics;
        let addresses = nics.iter().flat_map(|nic| &nic.addresses).filter_map(|address| address.split('/').next());
        let addresses: Vec<&str> =
            addresses.filter(|a| *a != "::1" && !a.starts_with("127.") && !a.starts_with("fe80:")).collect();
        let addresses = addresses.join(", ");
        if !addresses.is_empty() {
            context.monitor.note(&say!(
                context.lang,
                "  In place of the host's name one of its addresses may stand: {addresses}",
                "  主机名处也可写本机地址：{addresses}"
            ));
        }
    }
    let tls = match served.tls {
        true => Some(tls::Host::new(own, options.clients.clone(), refusing(context, throttle))?),
        false => None,
    };
    let (state, sealed) = (context.ledger.state().to_owned(), offers.sealed);
    let shelf = Shelf::new(offers.offers, offers.documents, state, throttle.clone());
    listener.serve(&Arc::new(Host::new(Arc::new(shelf), tls)));
    served.exports = exported(progress, |name| Some(uri(name)));
    let damaged = sealed.map(|sealed| sealed.damaged()).unwrap_or_default().into_iter();
    served.damaged_blocks = damaged.map(|(disk, damage)| DamagedBlock { disk, damage }).collect();
    Ok(served)
}

/// What is offered, and the documents beside it.
#[derive(Default)]
struct Offers {
    offers: BTreeMap<String, Offer>,
    documents: BTreeMap<String, Facts>,
    sealed: Option<Sealed>,
}

/// Refuses to give disks away to whoever comes by.
fn expect_guarded(options: &Options) -> Result<()> {
    let Some(Place::Tcp(address)) = &options.place else { return Ok(()) };
    match (options.clients.is_empty(), options.plain, address.ip().is_loopback()) {
        (false, false, _) | (true, true, true) => Ok(()),
        (false, true, _) => Err(Error::usage("--plain: expected no --client beside it, found one")
            .next("leave --plain out: who has a pin comes with TLS")),
        (true, true, false) => {
            Err(Error::usage(format!("--plain: expected an address of this host alone, found {address}"))
                .next("disks go over a network with TLS only: say --client PIN instead"))
        }
        (true, false, _) => {
            Err(Error::usage(format!("--listen {address}: expected the pin of a client that may read, found none"))
                .next("on the host that shall read: motiongear serve --pin; then say --client PIN here"))
        }
    }
}

/// Tells whom nobody let in.
fn refusing(context: &Context, throttle: &Arc<Throttle>) -> impl Fn(Pin) + Send + Sync + 'static + use<> {
    let (lang, throttle) = (context.lang, throttle.clone());
    let said: Mutex<HashSet<Pin>> = Mutex::default();
    move |pin| {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        // Each once; who comes with ever others is not worth more lines.
        if said.len() >= MAX_REFUSED || !said.insert(pin) {
            return;
        }
        throttle.note(say!(
            lang,
            "A client with the pin {pin} was refused: if that stands on your paper, start again with --client {pin}",
            "已拒绝指纹为 {pin} 的客户端：若与纸面一致，请加 --client {pin} 重新启动"
        ));
    }
}

fn hostname(context: &Context) -> String {
    let name = context.sys.text("proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".into())
}

/// What a client calls an export.
fn uri(place: &Place, pin: Pin, tls: bool, host: &str, name: &str) -> String {
    let name = utf8_percent_encode(name, IN_PATH);
    let secret = if tls { "s" } else { "" };
    match place {
        Place::Unix(path) => {
            let path = path.to_string_lossy();
            let path = utf8_percent_encode(&path, IN_PATH);
            let pin = if tls { format!("&tls-pin={pin}") } else { String::new() };
            format!("nbd{secret}+unix:///{name}?socket={path}{pin}")
        }
        Place::Tcp(address) => {
            let host = if address.ip().is_unspecified() { host.to_owned() } else { address.ip().to_string() };
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let pin = if tls { format!("?tls-pin={pin}") } else { String::new() };
            format!("nbd{secret}://{host}:{}/{name}{pin}", address.port())
        }
    }
}

fn exported(progress: &Progress, uri: impl Fn(&str) -> Option<String>) -> Vec<Exported> {
    let of = |disk: &DiskProgress| Exported {
        name: disk.name.clone(),
        uri: uri(&disk.name),
        bytes: disk.bytes,
        given_bytes: disk.done.load(Ordering::Relaxed),
        read_bytes: disk.read.load(Ordering::Relaxed),
    };
    progress.disks.iter().map(of).collect()
}

fn of_shipment(
    context: &Context,
    options: &Options,
    throttle: &Arc<Throttle>,
    served: &mut Served,
) -> Result<(Arc<Progress>, Offers)> {
    let What::Shipment { array: mount, trust, identity, expected, verify_time, machine, disk } = &options.what else {
        return Err(Error::usage("Serve: expected an array, found none"));
    };
    let array = Array::new(mount);
    let accepted = trust::accept(context, &array, trust, identity.as_deref(), expected, *verify_time)?;
    let wanted = |sealed: &&SealedDisk| {
        let whole = format!("{}/{}", sealed.machine, sealed.disk);
        machine.as_ref().is_none_or(|machine| *machine == sealed.machine)
            && disk.as_ref().is_none_or(|disk| *disk == sealed.disk || *disk == whole)
    };
    let disks: Vec<SealedDisk> = accepted.seal.disks.iter().filter(wanted).cloned().collect();
    if disks.is_empty() {
        let names: Vec<String> =
            accepted.seal.disks.iter().map(|d| format!("{}/{}", d.machine, d.disk)).take(50).collect();
        return Err(Error::usage(format!(
            "Shipment {}: expected a disk that is asked for, found none; it holds {}",
            accepted.seal.shipment,
            names.join(", ")
        )));
    }
    served.code = Some(spoken_code(&accepted.seal_digest));
    served.signer = Some(accepted.seal.signer.clone());
    served.notes.clone_from(&accepted.notes);
    for sealed in disks.iter().filter(|sealed| sealed.blocks.unreadable > 0) {
        let (machine, disk, blocks) = (&sealed.machine, &sealed.disk, sealed.blocks.unreadable);
        served.notes.push(say!(
            context.lang,
            "{machine}/{disk}: in {blocks} blocks there are ranges that could not be read at the source: they read as zeros",
            "{machine}/{disk}：{blocks} 个块含源端不可读区段，读出为零"
        ));
    }
    let sealed = Sealed::open(context, "serve", mount, accepted, &disks, throttle)?;
    let each = sealed.exports.iter();
    let each = each.map(|(name, export)| (name.clone(), Offer::Sealed(export.clone()))).collect();
    let progress = sealed.progress.clone();
    Ok((progress, Offers { offers: each, sealed: Some(sealed), ..Offers::default() }))
}

/// Opens disks of this host, and refuses what must not be copied.
fn open_sources(context: &Context, disks: &[(String, Origin)]) -> Result<Vec<(String, Source)>> {
    let mut sources: Vec<(String, Source)> = Vec::new();
    for (name, origin) in disks {
        check_name("Disk name", name).map_err(|error| Error::usage(error.to_string()))?;
        if sources.iter().any(|(known, _)| known == name) {
            return Err(Error::usage(format!("--disk {name}: expected each name once, found it again")));
        }
        if origin.monitor().is_some() {
            return Err(Error::usage(format!(
                "Disk {name}: expected a disk that is read as it is, found {origin} of a running machine"
            ))
            .next("seed it on this host, or take a snapshot of it and serve that"));
        }
        sources.push((name.clone(), Source::open(origin, &context.sys)?));
    }
    let opened: Vec<&Source> = sources.iter().map(|(_, source)| source).collect();
    // The array is elsewhere.
    refuse_together(&opened)?;
    Ok(sources)
}

fn limits(context: &Context, options: &Options, sources: &[(String, Source)], latency_guard: bool) -> Limits {
    let mut limits = options.limits.clone();
    if latency_guard {
        let names = sources.iter().map(|(_, source)| match &source.device {
            Some(device) if device.partition_number().is_some() => format!("{}/{}", device.whole().name, device.name),
            Some(device) => device.name.clone(),
            None => String::new(),
        });
        limits.latency_guard = Some(LatencyGuard::new(&context.sys.path(""), names.collect()));
    }
    limits
}

/// Disks of this host, and what is told of them.
fn of_sources(
    context: &Context,
    sources: Vec<(String, Source)>,
    throttle: &Arc<Throttle>,
) -> Result<(Arc<Progress>, Offers)> {
    let counters = sources.iter().map(|(name, source)| DiskProgress::new(name.clone(), source.bytes)).collect();
    let progress = Progress::new("serve", counters);
    let inventory = HostInventory::gather(&context.sys);
    let mut offers = Offers::default();
    for (slot, (name, source)) in sources.into_iter().enumerate() {
        let told = source::told(context, &source, &inventory)?;
        let facts = Facts { told, watch: source.watch() };
        let medium = Medium::new(MediumKind::Source, &name, throttle, &progress);
        let export = SourceExport::new(&name, slot, source, context.engine, medium, throttle.clone(), progress.clone());
        offers.offers.insert(name.clone(), Offer::Source(Arc::new(export)));
        offers.documents.insert(name, facts);
    }
    Ok((progress, offers))
}

impl Outcome for Served {
    fn summary(&self, lang: Lang) -> String {
        let pin = &self.pin;
        if let Some(Client { files, pin: client }) = &self.client {
            let files = files.display();
            return match client {
                Some(client) => say!(
                    lang,
                    "Files for one client are in {files}: let it in with --client {client}. Who has them reads what is served: carry them by a safe way",
                    "客户端文件已写入 {files}：用 --client {client} 放行。持有者即可读取，请安全传递"
                ),
                None => say!(lang, "Would make files for a client in {files}", "将在 {files} 生成客户端文件"),
            };
        }
        if self.exports.is_empty() {
            return say!(lang, "This host's pin is {pin}", "本机指纹 {pin}");
        }
        let mut lines: Vec<String> = Vec::new();
        if self.dry_run {
            lines.push(say!(
                lang,
                "Nothing was offered. This host's pin is {pin}; would serve:",
                "未提供任何磁盘。本机指纹 {pin}；将提供："
            ));
        }
        for Exported { name, bytes, given_bytes, read_bytes, .. } in &self.exports {
            let (bytes, given, read) = (size(*bytes), size(*given_bytes), size(*read_bytes));
            lines.push(match self.dry_run {
                true => format!("  {name}: {bytes}"),
                false => say!(
                    lang,
                    "  {name} ({bytes}): {given} given to clients, {read} read for it",
                    "  {name}（{bytes}）：向客户端提供 {given}，为此读取 {read}"
                ),
            });
        }
        for DamagedBlock { disk, damage } in self.damaged_blocks.iter().take(20) {
            let Damage { block, offset, why, .. } = damage;
            lines.push(say!(
                lang,
                "  {disk}: block {block} at byte {offset} could not be given: {why}",
                "  {disk}：块 {block}，字节 {offset} 无法提供：{why}"
            ));
        }
        lines.join("\n")
    }

    fn incomplete(&self) -> bool {
        !self.damaged_blocks.is_empty()
    }
}
