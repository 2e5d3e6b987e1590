//! Import: a sealed shipment into volumes, with proof that target equals source.
//!
//! 1. trust: the seal, its signer, its pins; the manifest, copied and verified ([`trust::accept`])
//! 2. plan and preflight: every volume, every pack; nothing is written before all of them are fit ([`preflight`])
//! 3. withhold head and tail, write what is proven, flush, commit ([`steps`], `volume::landing`)
//! 4. read back from the medium by new handles (`volume::readback`)
//! 5. release head and tail, or leave them withheld and say why (`volume::head`)
//!
//! Every step is committed to the ledger, and the same command goes on from there.

mod abort;
mod again;
mod mapping;
mod outcome;
mod preflight;
mod steps;

pub use abort::{Aborted, AbortedDisk, Fate};
pub use mapping::Mapping;
pub use outcome::{DiskOutcome, Imported, MAX_LISTED, State};
pub use preflight::{DiskPlan, Plan};

use crate::array::Array;
use crate::context::{Context, Outcome, now};
use crate::copy::throttle::{Limits, Throttle};
use crate::error::{Error, Result};
use crate::io::engine_in_use;
use crate::job::Job;
use crate::lang::Lang;
use crate::ledger::centre::{AcceptedSeal, FINISHED, Run, Succession};
use crate::monitor::{DiskProgress, Progress, Watch};
use crate::openstack::server::ServerPlan;
use crate::say;
use crate::trust::{self, Accepted, Expected};
use crate::volume::readback::Mode;
use crate::volume::store::Owner;
use crate::volume::target::Target;
use jiff::Timestamp;
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::seal::SealedDisk;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the array is mounted.
    pub array: PathBuf,
    /// Into what.
    pub target: Target,
    /// What the machines are to be in the cloud, where a plan says where each of them goes.
    pub servers: Option<BTreeMap<String, ServerPlan>>,
    /// OpenSSH allowed signers.
    pub trust: PathBuf,
    /// age identity; needed for an encrypted shipment.
    pub identity: Option<PathBuf>,
    /// By what the seal is known to be the one that left the branch.
    pub expected: Expected,
    /// When the signer's validity is judged; now unless set.
    pub verify_time: Option<Timestamp>,
    /// Only this machine's disks.
    pub machine: Option<String>,
    /// Only this disk: DISK or MACHINE/DISK.
    pub disk: Option<String>,
    /// How much is read back.
    pub readback: Mode,
    /// Release volumes whose source had unreadable blocks.
    pub accept_unreadable: bool,
    /// Write to volumes that hold data of somebody else.
    pub overwrite: bool,
    /// Import what there is though packs are missing or too short; their blocks count as damaged.
    pub accept_missing_packs: bool,
    /// Import onto a device whose sectors have another size than the source's.
    pub accept_sector_size: bool,
    /// Give the import up and remove what was made for it.
    pub abort: bool,
    /// Read-rate and CPU limits.
    pub limits: Limits,
}

/// What `import` returns: a plan with `--dry-run`, else what was done.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
#[allow(clippy::large_enum_variant, reason = "there is one of them in a run")]
pub enum Report {
    /// Nothing was written.
    Plan(Plan),
    /// It was.
    Done(Imported),
    /// It was given up; `dry_run` tells whether that was only said.
    Aborted {
        /// What became of it.
        #[serde(flatten)]
        aborted: Aborted,
        /// Nothing was removed.
        dry_run: bool,
    },
}

impl Outcome for Report {
    fn summary(&self, lang: Lang) -> String {
        match self {
            Report::Plan(plan) => plan.summary(lang),
            Report::Done(done) => done.summary(lang),
            Report::Aborted { aborted, dry_run } => aborted.summary(lang, *dry_run),
        }
    }
    fn incomplete(&self) -> bool {
        match self {
            Report::Plan(_) | Report::Aborted { .. } => false,
            Report::Done(done) => done.incomplete(),
        }
    }
}

/// Runs the verb.
///
/// # Errors
/// Not trusted; a volume or pack is not fit (nothing is written then); interrupted (the same command resumes); a volume fails.
pub fn run(context: &Context, options: Options) -> Result<Report> {
    let array = Array::new(&options.array);
    let mut expected = options.expected.clone();
    // What is given up is what the ledger knows; nothing of the array is believed for it.
    expected.uncompared |= options.abort;
    let identity = options.identity.as_deref();
    let accepted = trust::accept(context, &array, &options.trust, identity, &expected, options.verify_time)?;
    if options.abort {
        let aborted = abort::abort(context, &options, &accepted)?;
        return Ok(Report::Aborted { aborted, dry_run: context.dry_run });
    }
    run_accepted(context, &options, &array, accepted)
}

/// Whom the volume of a sealed disk belongs to.
fn owner(context: &Context, accepted: &Accepted, sealed: &SealedDisk) -> Owner {
    let site = &accepted.seal.site;
    Owner {
        site: site.uuid,
        site_name: site.name.clone(),
        machine: sealed.machine.clone(),
        disk_name: sealed.disk.clone(),
        disk: sealed.uuid,
        ledger: context.ledger.uuid(),
    }
}

/// From the point where the shipment is trusted.
fn run_accepted(context: &Context, options: &Options, array: &Array, accepted: Accepted) -> Result<Report> {
    let ledger = &context.ledger;
    let seal = AcceptedSeal {
        digest: accepted.seal_digest,
        supersedes: accepted.seal.supersedes,
        signer: accepted.seal.signer.clone(),
        fingerprint: accepted.fingerprint.clone(),
        sealed_at: accepted.seal.sealed_at,
        first_seen_at: now()?,
        compared: Some(accepted.compared),
        document: accepted.seal.to_bytes()?,
    };
    if let (Succession::Gap { last }, false) = (accepted.succession, options.overwrite) {
        return Err(Error::untrusted(format!(
            "Shipment {}: expected a seal that supersedes {}, which this ledger accepted last, found {}, which supersedes another",
            accepted.seal.shipment,
            spoken_code(&last),
            spoken_code(&accepted.seal_digest)
        ))
        .next("ask the branch whether it sealed more than once in between; if so, --overwrite imports this one over the last"));
    }
    let (plan, prepared) = preflight::check(context, options, array, &accepted)?;
    if context.dry_run {
        return Ok(Report::Plan(plan));
    }
    ledger.keep_seal(accepted.seal.shipment, &seal)?;
    for (machine, server) in options.servers.iter().flatten().filter(|(machine, _)| plan.has(machine)) {
        ledger.keep_server(accepted.seal.site.uuid, machine, server)?;
    }
    for note in accepted.notes.iter().chain(&plan.notes) {
        context.monitor.note(note);
    }
    let counters = prepared.iter().map(|disk| DiskProgress::new(disk.name.clone(), disk.sealed.bytes)).collect();
    let progress = Progress::new("import", counters);
    let throttle = Throttle::new(options.limits.clone());
    let _job =
        Job::start(ledger.state(), "import", array.root().display().to_string(), throttle.clone(), progress.clone())?;
    let _watch = context.monitor.watch(progress.clone());
    let _notes = Watch::notes(throttle.clone(), context.monitor.clone());
    let volumes = prepared.iter().filter_map(|disk| disk.place.path());
    let engine = engine_in_use(context.engine, volumes.chain([array.root()]))?;
    let how = Run {
        target: options.target.to_string(),
        engine,
        verify_time: options.verify_time,
        insecure_http: context.clouds.insecure_http && prepared.iter().any(|disk| disk.place.kind() == "cinder"),
        began_at: now()?,
    };
    let run = ledger.begin_run(accepted.seal.shipment, accepted.seal_digest, &how)?;
    let done = steps::Run { context, options, array, accepted: &accepted, throttle: &throttle, progress: &progress }
        .all(prepared);
    let ending = match &done {
        Ok(_) => FINISHED.to_owned(),
        Err(error) => error.to_string(),
    };
    // How it ended matters less than that it did.
    let kept = ledger.end_run(run, now()?, &ending);
    let disks = done?;
    kept?;
    Ok(Report::Done(Imported {
        shipment: accepted.seal.shipment,
        site: accepted.seal.site.name.clone(),
        seal: accepted.seal_digest,
        code: spoken_code(&accepted.seal_digest),
        compared: accepted.compared,
        signer: accepted.seal.signer.clone(),
        fingerprint: accepted.fingerprint.clone(),
        verify_time: options.verify_time,
        engine,
        notes: accepted.notes.clone(),
        disks,
    }))
}

impl Plan {
    /// Whether one of the machine's disks is imported.
    fn has(&self, machine: &str) -> bool {
        self.disks.iter().any(|disk| disk.name.split_once('/').is_some_and(|(found, _)| found == machine))
    }

    fn summary(&self, lang: Lang) -> String {
        let mut lines = vec![say!(lang, "Nothing was written. Would import:", "未写入任何内容。将导入：")];
        for disk in &self.disks {
            let (name, volume, what) = (&disk.name, &disk.volume, &disk.what);
            let bytes = crate::units::size(disk.bytes);
            lines.push(say!(lang, "{name} ({bytes}) to {volume}: {what}", "{name}（{bytes}）→ {volume}：{what}"));
        }
        for (machine, server) in &self.servers {
            for (key, value) in server.pairs() {
                lines.push(say!(lang, "{machine} is to be: {key} {value}", "{machine} 将设为：{key} {value}"));
            }
        }
        lines.extend(self.notes.iter().cloned());
        lines.join("\n")
    }
}

impl Options {
    /// Whether a disk is selected.
    fn selects(&self, machine: &str, disk: &str) -> bool {
        self.machine.as_deref().is_none_or(|wanted| wanted == machine)
            && self.disk.as_deref().is_none_or(|wanted| wanted == disk || wanted == format!("{machine}/{disk}"))
    }

    fn nothing_selected(&self) -> Error {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "any".into());
        Error::usage(format!(
            "Selection: expected a disk of the shipment, found none for machine {} and disk {}",
            name(&self.machine),
            name(&self.disk)
        ))
        .next("'motiongear verify ARRAY' lists the disks of a shipment")
    }
}
