//! `rehearse`: the whole chain on one machine, with throw-away keys: what a field engineer tries before the first branch. It keeps to
//! its work directory, the branch's ledger included; each step is told as a command that works as typed there.
//!
//! Disks that are given are only read. Without any, a sample disk that the program carries is made, seeded, changed and
//! scanned.

mod sample;

use crate::context::{Context, Outcome};
use crate::copy::throttle::Limits;
use crate::error::{Error, IoContext, Result};
use crate::lang::Lang;
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::report::{Kind as ReportKind, shell};
use crate::say;
use crate::source::Origin;
use crate::trust::Expected;
use crate::trust::keygen::{self, Purpose};
use crate::volume::readback::Mode;
use crate::volume::target::{Target, Wish};
use crate::{custody, import, init, report, scan, seal, seed, verify};
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the site that is played.
const SITE: &str = "rehearsal";

/// What to rehearse with.
pub struct Options {
    /// Disks or image files, only read; none for the sample disk.
    pub disks: Vec<PathBuf>,
    /// Everything is kept here.
    pub work: PathBuf,
}

/// State directories of the two sides, below the work directory.
const BRANCH: &str = "branch-state";
const CENTRE: &str = "centre-state";

impl Options {
    /// Makes the work directory, and says where the branch's state directory lies in it.
    ///
    /// # Errors
    /// It holds something, or cannot be made; a dry run was asked for.
    pub fn prepare(&mut self, dry_run: bool) -> Result<PathBuf> {
        if dry_run {
            return Err(Error::usage("Rehearse: it is the dry run of everything, and has none of its own")
                .next("it writes to its work directory only; name one with --work"));
        }
        let what = |path: &Path| format!("Work directory {}", path.display());
        let work = std::path::absolute(&self.work).context(|| what(&self.work))?;
        std::fs::create_dir_all(&work).context(|| what(&work))?;
        if std::fs::read_dir(&work).context(|| what(&work))?.next().is_some() {
            return Err(Error::usage(format!("{}: expected a new or empty one, found files", what(&work)))
                .next("name another with --work"));
        }
        self.work = work;
        Ok(self.work.join(BRANCH))
    }
}

/// What was played.
#[derive(Debug, Serialize)]
pub struct Rehearsed {
    /// Where everything lies.
    pub work: PathBuf,
    /// Each step as a command, and what it said.
    pub steps: Vec<Step>,
    /// Per disk, whether source and target agree.
    pub proofs: Vec<Proof>,
    /// The import report.
    pub report: PathBuf,
    /// Something did not agree, or blocks were unreadable.
    pub incomplete: bool,
}

/// One step.
#[derive(Debug, Serialize)]
pub struct Step {
    /// The command line that it stands for.
    pub command: String,
    /// Its summary.
    pub said: String,
}

/// One disk's digests.
#[derive(Debug, Serialize)]
pub struct Proof {
    /// MACHINE/DISK.
    pub disk: String,
    /// Of what was read at the source.
    pub source: Digest,
    /// Of the volume, read back from the medium.
    pub target: Option<Digest>,
    /// Equal, and no block merely trusted.
    pub proven: bool,
}

impl Outcome for Rehearsed {
    fn summary(&self, lang: Lang) -> String {
        let mut lines = Vec::new();
        for (number, step) in (1..).zip(&self.steps) {
            lines.push(format!("{number}. {}", step.command));
            lines.extend(step.said.lines().map(|line| format!("   {line}")));
        }
        lines.push(String::new());
        for Proof { disk, source, target, proven } in &self.proofs {
            lines.push(match (target, proven) {
                (Some(target), true) => say!(
                    lang,
                    "{disk}: source {source}\n{disk}: target {target}: equal, every block re-read",
                    "{disk}：源端 {source}\n{disk}：目标 {target}：相同，全部块已回读"
                ),
                (Some(target), false) => say!(
                    lang,
                    "{disk}: source {source}, target {target}: NOT PROVEN",
                    "{disk}：源端 {source}，目标 {target}：未能证明"
                ),
                (None, _) => {
                    say!(lang, "{disk}: source {source}, target NOT COMPLETE", "{disk}：源端 {source}，目标不完整")
                }
            });
        }
        let (report, work) = (self.report.display(), self.work.display());
        lines.push(say!(lang, "Report: {report}", "报告：{report}"));
        lines.push(say!(
            lang,
            "Everything is kept in {work}: each step is typed there. Remove it when you have seen enough.",
            "所有文件保存在 {work}；各步命令均在该目录下输入。看完后可删除。"
        ));
        lines.join("\n")
    }
    fn incomplete(&self) -> bool {
        self.incomplete
    }
}

/// Plays the chain in a work directory that [`Options::prepare`] made; `context` has the branch's state directory.
///
/// # Errors
/// The first step that fails; everything stays in the work directory to be looked at.
pub fn run(context: &Context, options: &Options) -> Result<Rehearsed> {
    Rehearsal { context, work: options.work.clone(), steps: Vec::new() }.play(&options.disks)
}

struct Rehearsal<'a> {
    context: &'a Context,
    work: PathBuf,
    steps: Vec<Step>,
}

impl Rehearsal<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// The data centre: the same surroundings with a ledger of its own. Both sides share nothing but the array.
    fn centre(&self) -> Result<Context> {
        let ledger = Arc::new(Ledger::open(&self.path(CENTRE))?);
        Ok(Context { ledger, rehearsal: true, ..self.context.clone() })
    }

    /// What stands in a command for a file: its name, where it lies in the work directory.
    fn typed(&self, path: &Path) -> String {
        shell(&path.strip_prefix(&self.work).unwrap_or(path).to_string_lossy())
    }

    /// Plays a step at the branch or the data centre, whose state directory is `state`.
    fn step<O: Outcome>(&mut self, state: &str, command: &str, run: impl FnOnce() -> Result<O>) -> Result<O> {
        let command = format!("motiongear --state {state} {command}");
        self.context.monitor.note(&format!("{}. {command}", self.steps.len() + 1));
        let outcome = run()?;
        self.steps.push(Step { command, said: outcome.summary(self.context.lang) });
        Ok(outcome)
    }

    fn play(mut self, disks: &[PathBuf]) -> Result<Rehearsed> {
        let (branch, centre) = (Context { rehearsal: true, ..self.context.clone() }, self.centre()?);
        let (array, volumes, reports) = (self.path("array"), self.path("volumes"), self.path("report"));
        std::fs::create_dir(&array).context(|| format!("Directory {}", array.display()))?;
        let sample = if disks.is_empty() { Some(sample::make(&self.path("sample.raw"))?) } else { None };
        let sources: Vec<PathBuf> = if let Some(sample) = &sample { vec![sample.clone()] } else { disks.to_vec() };
        let named =
            sources.iter().enumerate().map(|(i, path)| (format!("disk{}", i + 1), path.clone())).collect::<Vec<_>>();

        let Keys { engineer: key, operator, trust, identity, recipient } = self.keys(&branch)?;
        let init = format!(
            "init array --site {SITE} --recipient {recipient} --asset R-1 --label rehearsal --allow-system-disk"
        );
        self.step(BRANCH, &init, || {
            init::run(
                &branch,
                init::Options {
                    array: array.clone(),
                    site: SITE.into(),
                    site_uuid: None,
                    recipients: vec![recipient.clone()],
                    label: "rehearsal".into(),
                    asset_tag: "R-1".into(),
                    block_bytes: motiongear_manifest::geometry::DEFAULT_BLOCK_BYTES,
                    key: None,
                    signer: None,
                    allow_system_disk: true,
                },
            )
        })?;
        let asserted = if sample.is_some() { " --point-in-time" } else { "" };
        let typed: String = named.iter().map(|(name, path)| format!(" --disk {name}={}", self.typed(path))).collect();
        let sources = named.iter().map(|(name, path)| (name.clone(), Origin::Path(path.clone())));
        let plan = Plan::from_disks("host1", sources)?;
        let seeded =
            self.step(BRANCH, &format!("seed array --machine host1{typed}{asserted} --codec zstd:1"), || {
                let limits = Limits::default();
                let options = seed::Options {
                    array: array.clone(),
                    plan,
                    limits,
                    latency_guard: true,
                    jobs: None,
                    scratch: None,
                    level: Some(1),
                    point_in_time: sample.is_some(),
                    reopen: false,
                    confirmation: Default::default(),
                };
                seed::run(&branch, options)
            })?;
        let sealed = self.step(BRANCH, "seal array --key sign.key --trust trust", || {
            seal::run(
                &branch,
                seal::Options {
                    array: array.clone(),
                    key: key.clone(),
                    signer: None,
                    trust: Some(trust.clone()),
                    plaintext: false,
                    without: vec![],
                    reason: None,
                },
            )
        })?;
        let verified =
            self.step(BRANCH, "verify array", || verify::run(&branch, verify_options(&array, None, None)))?;
        let dispatch = "custody dispatch array --key sign.key --person 'field engineer' --box-seal 0001";
        self.step(BRANCH, dispatch, || {
            custody::run(&branch, custody_options(custody::Way::Dispatch, &array, &key, "field engineer"))
        })?;
        let papers = "--trust trust --out report --purpose rehearsal";
        self.step(BRANCH, &format!("report handover array --key sign.key {papers}"), || {
            report::run(&branch, report_options(ReportKind::Handover, &array, &key, &trust, &reports))
        })?;

        let receive = "custody receive array --key operator.key --person operator --box-seal 0001";
        self.step(CENTRE, receive, || {
            custody::run(&centre, custody_options(custody::Way::Receive, &array, &operator, "operator"))
        })?;
        let checked = self.step(CENTRE, "verify array --trust trust --identity age.key", || {
            verify::run(&centre, verify_options(&array, Some(&trust), Some(&identity)))
        })?;
        let code = sealed.code.clone().unwrap_or_default();
        let imported = self.step(
            CENTRE,
            &format!("import array --to dir:volumes --trust trust --identity age.key --expect-seal {code}"),
            || {
                let options = import::Options {
                    array: array.clone(),
                    target: Target::All(Wish::Dir(volumes.clone())),
                    servers: None,
                    trust: trust.clone(),
                    identity: Some(identity.clone()),
                    expected: Expected::seal(code.clone()),
                    verify_time: None,
                    machine: None,
                    disk: None,
                    readback: Mode::Full,
                    accept_unreadable: false,
                    overwrite: false,
                    accept_missing_packs: false,
                    abort: false,
                    accept_sector_size: false,
                    limits: Limits::default(),
                };
                import::run(&centre, options)
            },
        )?;
        let report = self.step(CENTRE, &format!("report import array --key operator.key {papers}"), || {
            report::run(&centre, report_options(ReportKind::Import, &array, &operator, &trust, &reports))
        })?;
        if let Some(sample) = &sample {
            sample::change(sample)?;
            self.context.monitor.note(&say!(
                self.context.lang,
                "The sample disk is changed in three places",
                "样例磁盘已修改三处"
            ));
        }
        let scanned = self.step(BRANCH, "scan", || scan::run(&branch, scan::Options::default()))?;

        let done = match &imported {
            import::Report::Done(done) => done,
            _ => return Err(Error::failed("Import: expected an outcome, found something else")),
        };
        let target = |name: &str| done.disks.iter().find(|d| format!("{}/{}", d.machine, d.disk) == name);
        let proofs: Vec<Proof> = seeded
            .disks
            .iter()
            .map(|disk| {
                let volume = target(&disk.disk);
                let digest = volume.and_then(|v| v.digest);
                let proven = volume.is_some_and(|v| v.proven) && digest == Some(disk.digest);
                Proof { disk: disk.disk.clone(), source: disk.digest, target: digest, proven }
            })
            .collect();
        // The change that was made must be seen, or the rehearsal proves nothing about the delta.
        let unseen = sample.is_some() && scanned.disks.iter().any(|d| d.blocks.changed != sample::CHANGED_BLOCKS);
        let incomplete = unseen
            || proofs.iter().any(|p| !p.proven)
            || [
                seeded.incomplete(),
                verified.incomplete(),
                checked.incomplete(),
                imported.incomplete(),
                scanned.incomplete(),
            ]
            .contains(&true);
        Ok(Rehearsed { work: self.work, steps: self.steps, proofs, report: report.html, incomplete })
    }

    /// A signing key for each side with their trust file, and an age identity with its recipient.
    fn keys(&mut self, context: &Context) -> Result<Keys> {
        let (trust, identity) = (self.path("trust"), self.path("age.key"));
        let (engineer, first) = self.signing_key(context, "sign.key", &format!("engineer@{SITE}"))?;
        let (operator, second) = self.signing_key(context, "operator.key", &format!("operator@{SITE}-centre"))?;
        std::fs::write(&trust, format!("{first}\n{second}\n")).context(|| format!("Trust file {}", trust.display()))?;
        let made = self.step(BRANCH, "keygen age --out age.key", || {
            keygen::run(
                context,
                keygen::Options { purpose: Purpose::Age, out: identity.clone(), name: None, passphrase: false },
            )
        })?;
        Ok(Keys { engineer, operator, trust, identity, recipient: made.public })
    }

    /// A signing key, and its line for the trust file.
    fn signing_key(&mut self, context: &Context, file: &str, name: &str) -> Result<(PathBuf, String)> {
        let key = self.path(file);
        let made = self.step(BRANCH, &format!("keygen sign --out {file} --name {name}"), || {
            let (out, name) = (key.clone(), Some(name.to_owned()));
            keygen::run(context, keygen::Options { purpose: Purpose::Sign, out, name, passphrase: false })
        })?;
        Ok((key, made.public))
    }
}

/// The throw-away keys.
struct Keys {
    /// Signs at the branch.
    engineer: PathBuf,
    /// Signs at the data centre: who dispatched cannot receive.
    operator: PathBuf,
    /// Allows both.
    trust: PathBuf,
    identity: PathBuf,
    recipient: String,
}

fn verify_options(array: &Path, trust: Option<&PathBuf>, identity: Option<&PathBuf>) -> verify::Options {
    verify::Options {
        array: array.to_owned(),
        trust: trust.cloned(),
        identity: identity.cloned(),
        expect_seal: None,
        verify_time: None,
        limits: Limits::default(),
    }
}

fn custody_options(way: custody::Way, array: &Path, key: &Path, person: &str) -> custody::Options {
    let particulars = custody::Particulars {
        person: person.into(),
        box_seals: vec!["0001".into()],
        place: String::new(),
        note: "rehearsal".into(),
    };
    custody::Options {
        way,
        array: array.to_owned(),
        key: key.to_owned(),
        signer: None,
        trust: None,
        verify_time: None,
        particulars,
        box_seals_differ: None,
    }
}

fn report_options(kind: ReportKind, array: &Path, key: &Path, trust: &Path, out: &Path) -> report::Options {
    report::Options {
        kind,
        array: Some(array.to_owned()),
        shipment: None,
        trust: Some(trust.to_owned()),
        verify_time: None,
        key: Some(key.to_owned()),
        signer: None,
        out: Some(out.to_owned()),
        purpose: "rehearsal".into(),
        utc_offset_minutes: 0,
        people: vec![],
        box_seals: vec![],
    }
}
