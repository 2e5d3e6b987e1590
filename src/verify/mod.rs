//! Verify: without keys the medium, at the array's read speed; with the identity everything.
//!
//! The steps and their findings are the stand-alone checker's (`motiongear_manifest::check`); only the two long ones, walking
//! the packs and reading every block, are done here by the engine: read ahead past the page cache, on all cores.
//!
//! `volumes`: the other end, long after the array is erased: whether volumes still hold what was proven.

mod contents;
mod packs;
pub mod volumes;

use crate::array::Array;
use crate::array::holder::Lock;
use crate::context::{Context, Outcome, now};
use crate::copy::fetch::{Fetch, Pick, Wanted, sealed_packs};
use crate::copy::patience::Medium;
use crate::copy::throttle::{Limits, Throttle};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, IoContext, Result};
use crate::job::Job;
use crate::lang::Lang;
use crate::ledger::branch::{ShipmentState, Verification};
use crate::monitor::{DiskProgress, MediumKind, Progress, Watch};
use crate::say;
use crate::trust::{in_the_way, read_identities, read_trust};
use crate::units::size;
use jiff::Timestamp;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::catalogue::{Catalogue, Generation};
use motiongear_manifest::check::{
    CheckedEvent, DiskProof, Findings, Opened, PackTotals, ReadableBy, SealSummary, Severity, Terms, open_array,
};
use motiongear_manifest::documents::seal::{SealedDisk, SealedPack};
use motiongear_manifest::envelope::Identity;
use motiongear_manifest::geometry::Geometry;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the array is mounted.
    pub array: PathBuf,
    /// OpenSSH allowed signers; without it the signer is not checked.
    pub trust: Option<PathBuf>,
    /// age identity; without it an encrypted shipment's contents are not checked.
    pub identity: Option<PathBuf>,
    /// Digest or spoken code that the seal must have.
    pub expect_seal: Option<String>,
    /// When the signer's validity is judged; now unless set.
    pub verify_time: Option<Timestamp>,
    /// Read-rate and CPU limits.
    pub limits: Limits,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// As given.
    pub array: PathBuf,
    /// When the validity of keys was judged.
    pub judged_at: Timestamp,
    /// The seal that counts; none if nothing on the array may be used.
    pub seal: Option<SealSummary>,
    /// The manifest was opened and compared with the seal.
    pub manifest_compared: bool,
    /// The packs.
    pub packs: Option<PackTotals>,
    /// The chain of events so far.
    pub custody: Vec<CheckedEvent>,
    /// What was proven of each disk by reading its blocks; empty without keys.
    pub proven: Vec<DiskProof>,
    /// Everything that was found.
    pub findings: Findings,
}

/// Runs the verb. What is wrong with the array is in the outcome, not an error.
///
/// # Errors
/// Trust or identity file unusable; interrupted; the state directory fails.
pub fn run(context: &Context, options: Options) -> Result<Verified> {
    let signers = options.trust.as_deref().map(read_trust).transpose()?;
    let identities = options.identity.as_deref().map(read_identities).transpose()?.unwrap_or_default();
    let at = options.verify_time.map_or_else(now, Ok)?;
    let terms = Terms { trust: signers.as_ref(), at, expect_seal: options.expect_seal.as_deref() };
    let mut verified = Verified {
        array: options.array.clone(),
        judged_at: at,
        seal: None,
        manifest_compared: false,
        packs: None,
        custody: Vec::new(),
        proven: Vec::new(),
        findings: Findings::default(),
    };
    let _lock = Lock::shared(&Array::new(&options.array))?;
    let mut opened = match open_array(&options.array, &terms) {
        Ok(opened) => opened,
        Err(refused) => {
            let array = Array::new(&options.array);
            if let Some(denied) = refused.denied() {
                return Err(in_the_way(denied));
            }
            if let Some(error) = array.gone().or_else(|| array.was_erased()) {
                return Err(error);
            }
            if let Some(obstacle) = refused.obstacle {
                return Err(in_the_way(*obstacle));
            }
            verified.findings = refused.findings;
            signers.iter().flat_map(AllowedSigners::notes).for_each(|note| verified.findings.note("trust file", note));
            return Ok(verified);
        }
    };
    if let Some(signers) = &signers {
        signers.notes().into_iter().for_each(|note| opened.findings.note("trust file", note));
    }
    verified.seal = Some(opened.summary());
    if opened.signer_checked && opened.encrypted() && !identities.is_empty() {
        // Known now, and not after 50 TB.
        opened.check_identities(&identities).map_err(|error| {
            Error::from(error).next("give the age identity file of one of the recipients with --identity")
        })?;
    }
    opened.note_unreadable();
    opened.note_strays();
    verified.custody = opened.check_custody(&terms);
    if opened.signer_checked {
        opened.check_manifest_files();
    }
    let throttle = Throttle::new(options.limits.clone());
    let verify = Verify { context, options: &options, throttle };
    let manifest = verify.manifest(&mut opened, &identities)?;
    verified.manifest_compared = manifest.is_some();
    let (totals, bad_packs) = verify.packs(&mut opened)?;
    verified.packs = Some(totals);
    if !opened.signer_checked {
        // Behind the packs: how long its file is, only the seal says.
        opened.check_manifest_files();
    }
    let here = context.ledger.shipment(opened.seal.shipment)?;
    if !bad_packs.is_empty() && here.is_some_and(|shipment| shipment.state == ShipmentState::Sealed) {
        let advice = "before dispatch, 'motiongear seed ARRAY --reopen' copies again what the damaged packs held";
        opened.findings.note("packs", advice);
    }
    if let Some(manifest) = &manifest {
        match opened.keyring(&identities) {
            Ok(keys) => verified.proven = verify.contents(&mut opened, manifest, Arc::new(keys))?,
            Err(error) => opened.findings.fault("keys", &error),
        }
    }
    if opened.findings.errors() > 0 {
        // What an array that was unplugged in between cannot show is no finding.
        Array::new(&options.array).still_answers()?;
    }
    let with_identity = !verified.proven.is_empty();
    let verification = Verification {
        at: now()?,
        good: opened.findings.errors() == 0,
        with_identity,
        damaged_packs: bad_packs.into_iter().map(|pack| (pack.file, pack.blake3)).collect(),
    };
    context.ledger.record_verification(opened.seal.shipment, opened.seal_digest, &verification)?;
    if let Some(manifest) = manifest {
        manifest.remove();
    }
    verified.findings = opened.findings;
    Ok(verified)
}

/// The manifest's private copy, and the generations that the seal names.
struct Manifest {
    catalogue: Catalogue,
    path: PathBuf,
    disks: Vec<(SealedDisk, Generation)>,
}

impl Manifest {
    /// The copy was for this check only.
    fn remove(self) {
        drop(self.catalogue);
        // What stays behind is replaced by the next check.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}

struct Verify<'a> {
    context: &'a Context,
    options: &'a Options,
    throttle: Arc<Throttle>,
}

impl Verify<'_> {
    fn manifest(&self, opened: &mut Opened, identities: &[Identity]) -> Result<Option<Manifest>> {
        if !opened.signer_checked {
            opened.findings.note("manifest", "not opened, as no trust file was given: signer not checked");
            return Ok(None);
        }
        if opened.encrypted() && identities.is_empty() {
            opened.findings.note("manifest", "not opened, as no identity was given; contents are not checked");
            return Ok(None);
        }
        // Not the folder that an import of the same shipment may be reading from.
        let work = self.context.ledger.import_dir(opened.seal.shipment).join("verify");
        std::fs::create_dir_all(&work).context(|| format!("State directory {}", work.display()))?;
        match opened.fetch_manifest(identities, &work) {
            Ok((catalogue, path)) => {
                let disks = opened.cross_check(&catalogue);
                Ok(Some(Manifest { catalogue, path, disks }))
            }
            // No room in the state directory is no fault of the array.
            Err(motiongear_manifest::FormatError::Io { path, source }) if path.starts_with(&work) => {
                Err(Error::io(format!("State directory {}", path.display()), source))
            }
            Err(error) => {
                opened.findings.fault("manifest", &error);
                Ok(None)
            }
        }
    }

    fn job(&self, progress: &Arc<Progress>) -> Result<(Job, Watch, Watch)> {
        let subject = self.options.array.display().to_string();
        let job = Job::start(self.context.ledger.state(), "verify", subject, self.throttle.clone(), progress.clone())?;
        let watch = self.context.monitor.watch(progress.clone());
        Ok((job, watch, Watch::notes(self.throttle.clone(), self.context.monitor.clone())))
    }

    fn medium(&self, progress: &Arc<Progress>) -> Medium {
        let name = self.options.array.display().to_string();
        Medium::new(MediumKind::Array, &name, &self.throttle, progress)
    }

    fn packs(&self, opened: &mut Opened) -> Result<(PackTotals, Vec<SealedPack>)> {
        let bytes = opened.seal.packs.iter().map(|pack| pack.bytes).sum();
        let progress = Progress::new("verify", vec![DiskProgress::new("packs", bytes)]);
        let _job = self.job(&progress)?;
        let (array, medium) = (Array::new(&self.options.array), self.medium(&progress));
        packs::check(opened, &array, &medium, self.context.engine, &self.throttle, &progress)
    }

    fn contents(
        &self,
        opened: &mut Opened,
        manifest: &Manifest,
        keys: Arc<motiongear_manifest::record::Keyring>,
    ) -> Result<Vec<DiskProof>> {
        let name = |sealed: &SealedDisk| format!("{}/{}", sealed.machine, sealed.disk);
        let counters = manifest.disks.iter().map(|(sealed, _)| DiskProgress::new(name(sealed), sealed.bytes)).collect();
        let progress = Progress::new("verify", counters);
        let _job = self.job(&progress)?;
        let mut wanted = Vec::new();
        for (slot, (sealed, generation)) in manifest.disks.iter().enumerate() {
            let geometry = Geometry::new(sealed.bytes, sealed.block_bytes)?;
            let pick = Pick::From(0);
            wanted.push(Wanted { slot, name: name(sealed), generation: generation.clone(), geometry, pick });
        }
        let array = Array::new(&self.options.array);
        let zeros = ZeroLeaves::open(self.context.ledger.state(), opened.shipment.block_bytes)?;
        let fetch = Fetch {
            array: &array,
            medium: self.medium(&progress),
            shipment: opened.seal.shipment,
            block_bytes: opened.shipment.block_bytes,
            encrypted: opened.encrypted(),
            keys,
            packs: sealed_packs(&opened.seal),
            engine: self.context.engine,
            throttle: &self.throttle,
            progress: &progress,
            zeros: &zeros,
        };
        contents::check(opened, &fetch, &manifest.catalogue, &wanted, &manifest.disks)
    }
}

impl Outcome for Verified {
    fn summary(&self, lang: Lang) -> String {
        let mut lines = Vec::new();
        match &self.seal {
            None => lines.push(say!(
                lang,
                "No valid seal: nothing on this array may be used",
                "没有有效的封签：此移动存储上的内容不可使用"
            )),
            Some(seal) => {
                let (shipment, site, code, signer) = (seal.shipment, &seal.site.name, &seal.code, &seal.signer);
                lines.push(say!(
                    lang,
                    "Shipment {shipment} of {site}, seal {code}, signed by {signer}",
                    "批次 {shipment}（站点 {site}），核对码 {code}，签名人 {signer}"
                ));
                if seal.plaintext {
                    lines.push(say!(
                        lang,
                        "PLAINTEXT: NOT ENCRYPTED. Whoever has this array can read every disk on it",
                        "明文：未加密。任何拿到此移动存储的人都能读取其中全部磁盘"
                    ));
                }
                for ReadableBy { recipient, fingerprint } in &seal.recipients {
                    lines.push(say!(
                        lang,
                        "Recipient {fingerprint} ({recipient}): can read every disk",
                        "接收方 {fingerprint}（{recipient}）：可读取全部磁盘"
                    ));
                }
                if !seal.signer_checked {
                    lines.push(say!(
                        lang,
                        "Signer not checked: give --trust ALLOWED_SIGNERS to have it compared",
                        "未核对签名人：请用 --trust ALLOWED_SIGNERS 核对"
                    ));
                }
            }
        }
        if let Some(packs) = &self.packs {
            let (good, sealed, bytes, records) = (packs.good, packs.sealed, size(packs.bytes), packs.records);
            lines.push(say!(
                lang,
                "Packs: {good} of {sealed} good, {bytes} read, {records} records",
                "数据包：{sealed} 个中 {good} 个完好，读取 {bytes}，记录 {records} 条"
            ));
        }
        // Without keys the disks are only named: what the seal says of them.
        for sealed in self.seal.iter().filter(|_| self.proven.is_empty()).flat_map(|seal| &seal.disks).take(200) {
            let (disk, bytes, digest) =
                (format!("{}/{}", sealed.machine, sealed.disk), size(sealed.bytes), sealed.digest);
            lines.push(say!(
                lang,
                "{disk} ({bytes}): sealed digest {digest}, contents not checked",
                "{disk}（{bytes}）：封签中的摘要 {digest}，内容未校验"
            ));
        }
        for proof in &self.proven {
            let DiskProof { disk, bytes, digest, stored, zero, damaged } = proof;
            let bytes = size(*bytes);
            lines.push(match damaged {
                0 => say!(
                    lang,
                    "{disk} ({bytes}): all {stored} records and {zero} zero blocks right, digest {digest}",
                    "{disk}（{bytes}）：{stored} 条记录与 {zero} 个零块全部正确，摘要 {digest}"
                ),
                _ => say!(
                    lang,
                    "{disk} ({bytes}): {damaged} blocks DAMAGED; {stored} records and {zero} zero blocks right",
                    "{disk}（{bytes}）：{damaged} 个块已损坏；{stored} 条记录与 {zero} 个零块正确"
                ),
            });
        }
        let listed = self.findings.list.iter().filter(|f| f.severity != Severity::Note);
        lines.extend(listed.take(200).map(ToString::to_string));
        lines.extend(
            self.findings.list.iter().filter(|f| f.severity == Severity::Note).take(20).map(ToString::to_string),
        );
        lines.push(match self.findings.errors() {
            0 if self.findings.warnings > 0 => say!(
                lang,
                "Nothing is lost, but something is wrong: read the warnings above",
                "没有丢失任何内容，但存在问题：请阅读以上警告"
            ),
            0 => say!(lang, "Nothing is wrong with what was checked", "所检查的内容没有发现问题"),
            1 => say!(lang, "1 fault found", "发现 1 处问题"),
            errors => say!(lang, "{errors} faults found", "发现 {errors} 处问题"),
        });
        lines.join("\n")
    }

    fn incomplete(&self) -> bool {
        self.findings.errors() > 0
    }

    fn exit_code(&self) -> u8 {
        match self.seal {
            None => 4,
            Some(_) => self.findings.exit_code(),
        }
    }
}
