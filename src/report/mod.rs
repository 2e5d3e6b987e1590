//! `report handover|import`: one page for paper and the same facts as JSON, both signed.
//!
//! `facts` holds what is said, `gather` collects it from what is proven, `html` renders it: a pure function.

pub mod centre;
pub mod facts;
mod gather;
pub mod html;
#[cfg(test)]
mod sample;
mod svg;
mod words;

pub use facts::{Facts, Kind, Person, Role, Verdict};

use crate::array::Array;
use crate::array::holder::Lock;
use crate::context::{Context, Outcome, now};
use crate::custody::centre::{Deed, Record};
use crate::custody::chain::Place;
use crate::custody::{centre as own, road, subject, who};
use crate::error::{Error, Result};
use crate::io::{create_dirs_durably, write_file_durably};
use crate::lang::Lang;
use crate::say;
use crate::trust::{check_may_sign, load_signer, open, open_manifest, read_trust};
pub use gather::shell;
use gather::{Basis, gather};
use jiff::Timestamp;
use motiongear_manifest::check::Terms;
use motiongear_manifest::check::chain::Subject;
use motiongear_manifest::code::{name_code, spoken_code};
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::seal::Seal;
use motiongear_manifest::documents::shipment::{Shipment, Suite};
use motiongear_manifest::envelope::{Recipient, encrypt_stream};
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use std::iter::once;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;
use uuid::Uuid;

/// How often, and how far apart, a report looks for a second of its own.
const TRIES: u32 = 300;
const PAUSE: Duration = Duration::from_millis(100);

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Handover or import.
    pub kind: Kind,
    /// Where the array is mounted; an import can be reported without it.
    pub array: Option<PathBuf>,
    /// Which shipment, where there is no array to say it.
    pub shipment: Option<Uuid>,
    /// Allowed signers, to check seal and custody with.
    pub trust: Option<PathBuf>,
    /// Judge validity of keys at this time.
    pub verify_time: Option<Timestamp>,
    /// Signs both files.
    pub key: Option<PathBuf>,
    /// NAME@SITE, if the key's comment is none.
    pub signer: Option<String>,
    /// Where the plain files go; STATE/reports if not given.
    pub out: Option<PathBuf>,
    /// Why the disks move.
    pub purpose: String,
    /// Minutes by which the local time of this host is ahead of UTC; both are printed.
    pub utc_offset_minutes: i32,
    /// Names for the signature boxes.
    pub people: Vec<Person>,
    /// Numbers on the box's seals; those of the custody chain if none is given.
    pub box_seals: Vec<String>,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which report.
    pub kind: Kind,
    /// Its number.
    pub number: String,
    /// The shipment.
    pub shipment: Uuid,
    /// BLAKE3 of the seal.
    pub seal: Digest,
    /// For the telephone.
    pub spoken_code: String,
    /// The verdict.
    pub verdict: Verdict,
    /// "Source = target" holds for every disk.
    pub proven: bool,
    /// That in words, for disks that were live as for those that were not; `None` where it does not hold.
    #[serde(skip)]
    pub claim: Option<String>,
    /// Blocks are unreadable, damaged or missing, or the verdict is "not in order".
    pub incomplete: bool,
    /// The plain page; empty for a dry run.
    pub html: PathBuf,
    /// The plain JSON; empty for a dry run.
    pub json: PathBuf,
    /// NAME@SITE; `None` where nothing was signed.
    pub signer: Option<String>,
    /// What lies on the array, relative to `motiongear/`.
    pub on_array: Vec<String>,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Outcome for Report {
    fn summary(&self, lang: Lang) -> String {
        let Report { number, spoken_code, .. } = self;
        let mut lines = vec![match self.verdict {
            Verdict::Good => say!(
                lang,
                "Report {number} on seal {spoken_code}: all in order",
                "报告 {number}（封签 {spoken_code}）：一切正常"
            ),
            Verdict::Remarks => say!(
                lang,
                "Report {number} on seal {spoken_code}: with remarks, read them before signing",
                "报告 {number}（封签 {spoken_code}）：有附注，签字前请阅读"
            ),
            Verdict::Bad => say!(
                lang,
                "Report {number} on seal {spoken_code}: NOT in order, read it before signing",
                "报告 {number}（封签 {spoken_code}）：存在问题，签字前务必阅读"
            ),
        }];
        lines.extend(self.claim.clone());
        if !self.html.as_os_str().is_empty() {
            let (html, json) = (self.html.display(), self.json.display());
            lines.push(say!(lang, "To print: {html}", "打印文件：{html}"));
            lines.push(say!(lang, "The same facts: {json}", "同一内容的 JSON：{json}"));
        }
        match &self.signer {
            Some(signer) if self.html.as_os_str().is_empty() => {
                lines.push(say!(
                    lang,
                    "Dry run: nothing was written; {signer} would sign",
                    "试运行：未写入任何内容；将由 {signer} 签名"
                ));
            }
            Some(signer) => lines.push(say!(lang, "Both signed by {signer}", "两份文件均由 {signer} 签名")),
            None => lines.push(say!(lang, "Not signed: no --key was given", "未签名：没有给出 --key")),
        }
        lines.extend(self.notes.iter().cloned());
        lines.join("\n")
    }
    fn incomplete(&self) -> bool {
        self.incomplete
    }
}

/// The name of this host.
pub fn host_name(context: &Context) -> String {
    context.sys.text("proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

/// Makes a report.
///
/// # Errors
/// No valid seal, another one than this host knows, a manifest that contradicts it, or files that cannot be written.
pub fn run(context: &Context, options: Options) -> Result<Report> {
    let at = now()?;
    let trust = options.trust.as_deref().map(read_trust).transpose()?;
    let terms = Terms { trust: trust.as_ref(), at: options.verify_time.unwrap_or(at), expect_seal: None };
    let array = options.array.as_deref().map(Array::new);
    let _lock = array.as_ref().map(Lock::alone).transpose()?;
    let key = options.key.as_deref().map(|path| load_signer(context, path)).transpose()?;
    let signer = key.as_ref().map(|key| who(key, options.signer.as_deref())).transpose()?;
    if let (Some(key), Some(signer)) = (&key, &signer) {
        check_may_sign(terms.trust, (signer.as_str(), key), &[Namespace::Report], terms.at)?;
    }
    let mut basis = basis(context, &options, &terms)?;
    let shipment = basis.seal.shipment;
    let code = name_code(&basis.digest);
    let out = options.out.clone().unwrap_or_else(|| context.ledger.state().join("reports"));
    let places: Vec<PathBuf> =
        once(out.clone()).chain(options.array.as_deref().map(|array| Array::new(array).file("report"))).collect();
    let (at, stamp) = moment(&places, &format!("{}-{code}", options.kind.word()))?;
    let number = format!("{}-{code}-{stamp}", if options.kind == Kind::Handover { "H" } else { "I" });
    let mut facts = gather(context, &options, &basis, at, number.clone())?;
    // The import is an event of custody as soon as somebody signs for it.
    if let (Kind::Import, Some(key), Some(signer)) = (options.kind, &key, &signer)
        && record_imported(context, &mut basis, &facts, key, signer, at, &terms)?
    {
        facts = gather(context, &options, &basis, at, number.clone())?;
    }
    let stem = format!("{}-{code}-{stamp}", options.kind.word());
    if let Some(signer) = &signer {
        for ending in ["html", "json"] {
            // Where it is written, so that the command works as printed; the copy on the array may be encrypted.
            let file = absolute(&out).join(format!("{stem}.{ending}")).display().to_string();
            facts.commands.push(facts::Command {
                repeats: facts::Repeat::Report,
                command: format!(
                    "ssh-keygen -Y verify -f ALLOWED_SIGNERS -I {} -n motiongear-report -s {} < {}",
                    shell(signer),
                    shell(&format!("{file}.sig")),
                    shell(&file)
                ),
                expected: None,
            });
        }
    }
    let mut report = Report {
        kind: options.kind,
        number,
        shipment,
        seal: basis.digest,
        spoken_code: spoken_code(&basis.digest),
        verdict: facts.verdict,
        proven: options.kind == Kind::Import && facts.all_proven(),
        claim: (options.kind == Kind::Import && facts.all_proven()).then(|| html::proven_words(&facts, context.lang)),
        incomplete: incomplete(&facts),
        html: PathBuf::new(),
        json: PathBuf::new(),
        signer,
        on_array: Vec::new(),
        notes: facts.notes.clone(),
    };
    let files = render(&facts, context.lang, &stem, key.as_ref())?;
    if context.dry_run {
        return Ok(report);
    }
    create_dirs_durably(&out, 0o777)?;
    for (name, bytes) in &files {
        write_file_durably(&out, name, bytes)?;
    }
    (report.html, report.json) = (out.join(format!("{stem}.html")), out.join(format!("{stem}.json")));
    if let (Some(array), Some(shipment)) = (&options.array, &basis.shipment) {
        match put_on_array(&Array::new(array), shipment, &files) {
            Ok(names) => report.on_array = names,
            // At the data centre the array may be mounted read-only, and rightly so.
            Err(error) if options.kind == Kind::Import => report.notes.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(report)
}

/// The path of a directory that may not exist yet, without links as far as it exists.
fn absolute(dir: &Path) -> PathBuf {
    dir.canonicalize().or_else(|_| std::path::absolute(dir)).unwrap_or_else(|_| dir.to_owned())
}

/// When the report is made, by which it is numbered. Nothing that was signed is ever replaced: the second report of one second is
/// of the next.
fn moment(places: &[PathBuf], prefix: &str) -> Result<(Timestamp, String)> {
    for _ in 0..TRIES {
        let at = now()?;
        let stamp = at.strftime("%Y%m%dT%H%M%SZ").to_string();
        let name = format!("{prefix}-{stamp}.json");
        let taken = |dir: &PathBuf| ["", ".age"].iter().any(|ending| dir.join(format!("{name}{ending}")).exists());
        if !places.iter().any(taken) {
            return Ok((at, stamp));
        }
        sleep(PAUSE);
    }
    Err(Error::failed(format!(
        "Report {prefix}: expected a second of its own, found reports of every second for half a minute"
    ))
    .next("check this host's clock; then run the same command again"))
}

fn incomplete(facts: &Facts) -> bool {
    let import = facts.report == Kind::Import;
    facts.verdict == Verdict::Bad
        || facts.disks.iter().any(|disk| {
            disk.blocks.unreadable > 0
                || import && disk.imported.as_ref().is_none_or(|i| i.damaged > 0 || i.finished_at.is_none())
        })
}

/// File names and contents, signatures included.
fn render(facts: &Facts, lang: Lang, stem: &str, key: Option<&Signer>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut json = serde_json::to_vec_pretty(facts).map_err(|e| Error::failed("Report as JSON").because(e))?;
    json.push(b'\n');
    let mut files = Vec::new();
    for (ending, bytes) in [("html", html::html(facts, lang)?.into_bytes()), ("json", json)] {
        let name = format!("{stem}.{ending}");
        let signature = key.map(|key| key.sign(&bytes, Namespace::Report)).transpose();
        let signature = signature.map_err(motiongear_manifest::FormatError::from)?;
        files.push((name.clone(), bytes));
        files.extend(signature.map(|signature| (format!("{name}.sig"), signature.into_bytes())));
    }
    Ok(files)
}

/// Writes the files below `ARRAY/motiongear/report`: encrypted like the rest of the shipment. Signatures are over the plain files.
fn put_on_array(array: &Array, shipment: &Shipment, files: &[(String, Vec<u8>)]) -> Result<Vec<String>> {
    let tree = array.tree()?;
    tree.make_folders("report")?;
    let recipients = shipment.recipients.iter().map(|r| r.parse::<Recipient>()).collect::<Result<Vec<_>, _>>();
    let recipients = recipients.map_err(motiongear_manifest::FormatError::from)?;
    let mut names = Vec::new();
    for (name, bytes) in files {
        if shipment.suite == Suite::Plaintext || name.ends_with(".sig") {
            tree.write(format!("report/{name}"), bytes)?;
            names.push(format!("report/{name}"));
            continue;
        }
        let mut cipher = Vec::new();
        encrypt_stream(bytes.as_slice(), &mut cipher, &recipients).map_err(motiongear_manifest::FormatError::from)?;
        tree.write(format!("report/{name}.age"), &cipher)?;
        names.push(format!("report/{name}.age"));
    }
    Ok(names)
}

/// The seal that the report is about, verified, and what belongs to it.
fn basis(context: &Context, options: &Options, terms: &Terms) -> Result<Basis> {
    let trust = terms.trust;
    let ledger = &context.ledger;
    let Some(array) = options.array.as_deref().map(Array::new) else {
        return without_array(context, options, terms);
    };
    let opened = open(&array, trust, None, options.verify_time)?;
    let (place, kept) = (Place::on_array(&opened), Place::kept(ledger, opened.seal.shipment));
    let chain = road::read(&place, &kept, &subject(&opened), terms).map_err(|e| array.gone().unwrap_or(e))?;
    if !context.dry_run && !chain.links.is_empty() {
        road::keep(&place, &kept, &chain)?;
    }
    let centre = own::read(ledger, opened.seal.shipment, &opened.seal.site.name, terms)?;
    centre.check_known(&chain)?;
    let (seal, digest) = (opened.seal, opened.seal_digest);
    let mut notes: Vec<String> = opened
        .findings
        .list
        .iter()
        .filter(|finding| trust.is_some() || finding.object != "seal.json")
        .map(ToString::to_string)
        .collect();
    let mut compared = None;
    let catalogue = match options.kind {
        Kind::Handover => {
            let last = ledger.seals(seal.shipment)?.pop().ok_or_else(|| {
                Error::failed(format!("Shipment {}: this host's ledger made no seal of it", seal.shipment))
                    .next("report on the host that sealed it")
            })?;
            if last.digest != digest {
                return Err(Error::untrusted(format!(
                    "Seal on the array: expected {}, which this host made last, found {digest}",
                    last.digest
                ))
                .next("an older seal was put back on the array: do not hand it over"));
            }
            open_manifest(&ledger.shipment_dir(seal.shipment).join("manifest.db"), &seal, true)?
        }
        Kind::Import => {
            let known = ledger.accepted_seals(seal.shipment)?;
            let known = known.into_iter().find(|known| known.digest == digest);
            compared = known.as_ref().and_then(|known| known.compared);
            if known.is_none() {
                return Err(Error::failed(format!(
                    "Shipment {}: this host's ledger has no import under seal {}",
                    seal.shipment,
                    spoken_code(&digest)
                ))
                .next("import it first, or name the state directory of the host that did: --state DIR"));
            }
            notes.extend(trust.is_none().then(|| {
                "The signer was compared with a list of allowed signers when it was imported, and not again for this report".to_owned()
            }));
            open_manifest(&ledger.import_dir(seal.shipment).join("manifest.db"), &seal, false)?
        }
    };
    // Import accepts no seal whose signer it did not compare.
    let signer_checked = trust.is_some() || options.kind == Kind::Import;
    Ok(Basis {
        key: opened.signed_by.fingerprint,
        shipment: Some(opened.shipment),
        signer_checked,
        compared,
        seal,
        digest,
        catalogue,
        chain,
        centre,
        notes,
    })
}

/// An import whose array is gone: the ledger kept the seal, the manifest and the custody chain.
fn without_array(context: &Context, options: &Options, terms: &Terms) -> Result<Basis> {
    let shipment = match (options.kind, options.shipment) {
        (Kind::Import, Some(shipment)) => shipment,
        _ => return Err(Error::usage("Report: expected where the array is mounted, or --shipment UUID of an import")),
    };
    let ledger = &context.ledger;
    let known = ledger.accepted_seals(shipment)?.pop().ok_or_else(|| {
        Error::failed(format!("Shipment {shipment}: this host's ledger has no import of it"))
            .next("name the state directory of the host that imported it: --state DIR")
    })?;
    let seal = Seal::parse(&known.document)?;
    let catalogue = open_manifest(&ledger.import_dir(shipment).join("manifest.db"), &seal, false)?;
    let about = Subject { shipment, seal: Some(known.digest), site: &seal.site.name };
    let chain = Place::kept(ledger, shipment).read(&about, terms)?;
    let centre = own::read(ledger, shipment, &seal.site.name, terms)?;
    centre.check_known(&chain)?;
    Ok(Basis {
        seal,
        digest: known.digest,
        key: known.fingerprint,
        signer_checked: true,
        compared: known.compared,
        shipment: None,
        catalogue,
        chain,
        centre,
        notes: vec![
            "The array was not there: recipients are not listed, and seal and manifest are those that this host verified and kept"
                .to_owned(),
        ],
    })
}

/// Adds "imported" to the data centre's chain, once every disk is in its volume, and not in a dry run. Says whether it did.
fn record_imported(
    context: &Context,
    basis: &mut Basis,
    facts: &Facts,
    key: &Signer,
    signer: &str,
    at: Timestamp,
    terms: &Terms,
) -> Result<bool> {
    let done =
        facts.disks.iter().all(|d| d.imported.as_ref().is_some_and(|i| i.finished_at.is_some() && i.damaged == 0));
    if !done || basis.centre.is_imported(basis.digest) || basis.centre.is_erased() {
        return Ok(false);
    }
    check_may_sign(terms.trust, (signer, key), &[Namespace::Custody], terms.at)?;
    if context.dry_run {
        return Ok(false);
    }
    let (ledger, shipment) = (&context.ledger, basis.seal.shipment);
    let note = format!("report {}", facts.number);
    let record = Record { shipment, seal: basis.digest, event: Deed::Imported, at, signer: signer.to_owned(), note };
    own::append(ledger, &basis.centre, &basis.chain, record, key)?;
    basis.centre = own::read(ledger, shipment, &basis.seal.site.name, terms)?;
    Ok(true)
}
