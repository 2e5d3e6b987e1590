//! `erase`: destroys what is on an array once every disk of it is proven elsewhere, and signs that.
//!
//! The order, and what each wrong order breaks:
//! 1. everything is checked, and a journal of what will be erased is durable in the state directory (later the array cannot say
//!    what it was);
//! 2. key envelopes, both copies: from then on an encrypted pack is noise, whatever interrupts the rest;
//! 3. packs, each overwritten, flushed, read back in samples, discarded, unlinked, and noted in the journal;
//! 4. manifest, seal, custody and report, second copies too (custody is kept in the state directory);
//! 5. free space, where what earlier runs removed may lie: behind all that frees more of it;
//! 6. the signed certificate, off the array, as JSON and for paper; custody "erased" in the ledger;
//! 7. `shipment.json`, then `erased.json` (which tells `init` that the array is free; before 2–5 it would lie);
//! 8. the journal goes.

mod again;
mod certificate;
mod destroy;
mod html;
mod place;
mod space;

pub use certificate::{Certificate, ErasedDisk, Journal};
pub use destroy::Destroyed;
pub use place::ErasedPlace;
pub use space::{FreeSpace, Treated};

use crate::array::erased::{self, ErasedNote};
use crate::array::holder::Lock;
use crate::array::{Array, FOLDERS};
use crate::context::{Context, Outcome, now, tool};
use crate::copy::throttle::{Limits, Throttle};
use crate::custody::centre::{self, CentreEvent, Deed, Record};
use crate::custody::chain::{Chain, Place};
use crate::custody::{road, subject, who};
use crate::error::{Error, Result};
use crate::io::tree::{Kind, if_there};
use crate::io::{Tree, create_dirs_durably, sync_dir, write_file_durably};
use crate::job::Job;
use crate::lang::Lang;
use crate::ledger::Ledger;
use crate::monitor::{DiskProgress, Progress};
use crate::trust::{check_may_sign, load_signer, open, read_trust};
use crate::volume::look::{Look, Verdict, look};
use crate::volume::places::Places;
use crate::{say, units};
use destroy::Destroyer;
use jiff::Timestamp;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::check::chain::Subject;
use motiongear_manifest::check::{Opened, Terms};
use motiongear_manifest::code::{name_code, spoken_code};
use motiongear_manifest::documents::custody::CustodyEvent;
use motiongear_manifest::documents::seal::{Seal, SealedDisk};
use motiongear_manifest::documents::shipment::{Shipment, Suite};
use motiongear_manifest::names::check_text;
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Longest reason.
const MAX_REASON_BYTES: usize = 1900;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the array is mounted.
    pub array: PathBuf,
    /// The asset tag, typed from the sticker; the shipment's UUID where the array has no tag.
    pub asset: String,
    /// The private key that signs the certificate.
    pub key: PathBuf,
    /// NAME@SITE, if the key's comment is none.
    pub signer: Option<String>,
    /// Allowed signers, to check seal and custody with.
    pub trust: Option<PathBuf>,
    /// Erase although not every disk is proven here.
    pub unproven: bool,
    /// Erase although a volume is missing, or not what was proven.
    pub unseen: bool,
    /// Why; needed for either.
    pub reason: Option<String>,
    /// What becomes of free space; by default it is filled where the shipment is in plain text.
    pub free_space: Option<FreeSpace>,
    /// The array may be a directory on the system disk.
    pub allow_system_disk: bool,
    /// Where the certificate goes; STATE/certificates if not given.
    pub certificate: Option<PathBuf>,
}

/// What would be erased.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The shipment.
    pub shipment: Uuid,
    /// For people.
    pub site: String,
    /// On the sticker.
    pub asset_tag: String,
    /// BLAKE3 of the seal.
    pub seal: Option<Digest>,
    /// Its disks, each with the reason if it is not proven.
    pub disks: Vec<ErasedDisk>,
    /// Why it may be erased all the same.
    pub reason: Option<String>,
    /// Files, and their bytes.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Where the array is.
    pub place: ErasedPlace,
    /// Numbers of packs that the seed gave up.
    pub given_up_packs: Vec<u32>,
    /// What becomes of free space.
    pub free_space: FreeSpace,
    /// How much of it there is.
    pub free_bytes: u64,
    /// About how long filling it takes; `None` where nobody can say, or it is not filled.
    pub fill_seconds: Option<u64>,
    /// An earlier run was interrupted.
    pub resumes: bool,
}

/// What was erased.
#[derive(Debug, Clone, Serialize)]
pub struct Erased {
    /// As planned.
    #[serde(flatten)]
    pub plan: Plan,
    /// Nothing was touched.
    pub dry_run: bool,
    /// When an earlier run of the same command erased it; nothing was left to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erased_already: Option<Timestamp>,
    /// The certificate; empty for a dry run.
    pub certificate: PathBuf,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Outcome for Erased {
    fn summary(&self, lang: Lang) -> String {
        let Plan { shipment, site, asset_tag, files, bytes, .. } = &self.plan;
        let size = units::size(*bytes);
        let mut lines = vec![if let Some(at) = self.erased_already {
            say!(
                lang,
                "Array {asset_tag} (shipment {shipment} of {site}) was erased already, at {at}",
                "移动存储 {asset_tag}（{site} 的批次 {shipment}）已于 {at} 擦除"
            )
        } else if self.dry_run {
            say!(
                lang,
                "Would erase array {asset_tag} (shipment {shipment} of {site}): {files} files, {size}",
                "将擦除移动存储 {asset_tag}（{site} 的批次 {shipment}）：{files} 个文件，{size}"
            )
        } else {
            say!(
                lang,
                "Erased array {asset_tag} (shipment {shipment} of {site})",
                "已擦除移动存储 {asset_tag}（{site} 的批次 {shipment}）"
            )
        }];
        for disk in &self.plan.disks {
            let name = format!("{}/{}", disk.machine, disk.disk);
            lines.push(match &disk.unproven {
                None => say!(lang, "  {name}: proven by full read-back", "  {name}：已通过全量回读证明"),
                Some(why) => say!(lang, "  {name}: NOT proven: {why}", "  {name}：未证明：{why}"),
            });
        }
        for disk in &self.plan.disks {
            let name = format!("{}/{}", disk.machine, disk.disk);
            if let Some(why) = disk.unseen() {
                lines.push(say!(
                    lang,
                    "  {name}: its volume is NOT as proven: {why}",
                    "  {name}：其云卷与已证明内容不符：{why}"
                ));
            }
            if let Some((at, reason)) = disk.accepted() {
                lines.push(say!(
                    lang,
                    "  {name}: its volume changed since; the difference was accepted at {at}: {reason}",
                    "  {name}：其云卷此后已变化；差异已于 {at} 被接受：{reason}"
                ));
            }
        }
        if let Some(reason) = &self.plan.reason {
            lines.push(say!(lang, "  erased all the same, because: {reason}", "  仍予擦除，原因：{reason}"));
        }
        lines.extend(self.plan.place_words(lang));
        if self.certificate != Path::new("") {
            let path = self.certificate.display();
            lines.push(say!(lang, "Certificate: {path} and {path}.sig", "证书：{path} 与 {path}.sig"));
        }
        lines.extend(self.notes.iter().cloned());
        lines.join("\n")
    }
}

impl Plan {
    /// Where it is, and what becomes of what is no file any more.
    fn place_words(&self, lang: Lang) -> Vec<String> {
        let ErasedPlace { mount_point, device, file_system, serials, others, other_names, .. } = &self.place;
        let serials = if serials.is_empty() { "–".to_owned() } else { serials.join(", ") };
        let mut lines = vec![say!(
            lang,
            "  at {mount_point} ({device}, {file_system}, serial {serials})",
            "  位于 {mount_point}（{device}，{file_system}，序列号 {serials}）"
        )];
        if *other_names > 0 {
            let (names, more) = (others.join(", "), if *other_names > others.len() as u64 { " …" } else { "" });
            lines.push(say!(
                lang,
                "  also on that file system, not touched: {names}{more}",
                "  该文件系统上还有（不会触及）：{names}{more}"
            ));
        }
        if !self.given_up_packs.is_empty() {
            let packs = self.given_up_packs.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            lines.push(say!(lang, "  packs that the seed gave up: {packs}", "  复制时放弃的数据包：{packs}"));
        }
        let free = units::size(self.free_bytes);
        let seconds = self.fill_seconds.map(|s| say!(lang, ", about {s} s", "，约 {s} 秒")).unwrap_or_default();
        lines.push(match self.free_space {
            FreeSpace::Fill => {
                say!(lang, "  free space: filled ({free}{seconds})", "  空闲空间：写满（{free}{seconds}）")
            }
            FreeSpace::Discard => say!(lang, "  free space: discarded ({free})", "  空闲空间：丢弃（{free}）"),
            FreeSpace::Leave => say!(
                lang,
                "  free space: left as it is ({free}); it may hold what was removed earlier",
                "  空闲空间：保持原样（{free}），其中可能残留先前删除的内容"
            ),
        });
        lines
    }
}

/// What is known of a disk before its copy on the array goes.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Why it is not proven by the ledger; `None` where it is.
    pub unproven: Option<String>,
    /// What a look at its volume found; `None` where nothing was proven.
    pub look: Option<Look>,
}

/// Says of each disk of a shipment's seal where it stands. The data centre's ledger and its volumes answer in production.
pub type Proofs<'a> = &'a mut dyn FnMut(Uuid, Digest, &SealedDisk) -> Result<Standing>;

fn tag_matches(tag: &str, shipment: Uuid, typed: &str) -> bool {
    match tag.trim() {
        "" => typed.trim() == shipment.to_string(),
        tag => typed.trim() == tag,
    }
}

/// Refuses a tag that is not that of the array.
fn check_tag(tag: &str, shipment: Uuid, typed: &str) -> Result<()> {
    if tag_matches(tag, shipment, typed) {
        return Ok(());
    }
    // The right one is not printed: it is to be read from the array in front of the person, not from this message.
    let expected = if tag.trim().is_empty() {
        "the shipment's UUID, for this array has no tag"
    } else {
        "the one that this array was prepared with"
    };
    let typed: String = typed.chars().take(100).flat_map(char::escape_default).collect();
    Err(Error::untrusted(format!("Asset tag: expected {expected}, found '{typed}'"))
        .next("read the tag from the sticker on the array in front of you; this may be another array"))
}

/// Erases by the data centre's ledger.
///
/// # Errors
/// As [`run_with`].
pub fn run(context: &Context, options: Options) -> Result<Erased> {
    let mut places = Places::new(context);
    run_with(context, options, &mut |shipment, seal, disk| {
        let unproven = crate::report::centre::unproven(&context.ledger, shipment, seal, disk)?;
        // Nothing was proven of it that could be looked for.
        let look = match unproven {
            None => Some(look_at(context, &mut places, shipment, seal, disk)?),
            Some(_) => None,
        };
        Ok(Standing { unproven, look })
    })
}

/// Looks at the volume of a proven disk: the ledger says only what it held once.
fn look_at(context: &Context, places: &mut Places, shipment: Uuid, seal: Digest, disk: &SealedDisk) -> Result<Look> {
    let ledger = &context.ledger;
    let (Some(row), Some(import)) = (ledger.volume(disk.uuid)?, ledger.import(disk.uuid, shipment, seal)?) else {
        let verdict = Verdict::Unseen { why: "this ledger has no volume of it".into() };
        return Ok(Look { looked_at: now()?, compared_blocks: 0, verdict });
    };
    let _lock = ledger.share_volume(disk.uuid, &format!("{}/{}", disk.machine, disk.disk))?;
    look(context, places, &row, &import)
}

/// Erases; `proofs` says what is proven.
///
/// # Errors
/// The tag is another, a disk is not proven (without `--unproven`), or a file cannot be destroyed.
pub fn run_with(context: &Context, options: Options, proofs: Proofs) -> Result<Erased> {
    let excused = options.unproven || options.unseen;
    if excused != options.reason.as_ref().is_some_and(|r| !r.trim().is_empty()) {
        return Err(Error::usage("Erase: --unproven and --unseen need --reason, and --reason needs one of them")
            .next("add --reason TEXT; it stands in the certificate"));
    }
    // It ends in signed documents, when nothing can be taken back any more: what they would refuse is refused here.
    if let Some(reason) = &options.reason {
        check_text("Reason", reason, MAX_REASON_BYTES).map_err(|e| Error::usage("Erase: --reason").because(e))?;
    }
    let array = Array::new(&options.array);
    let key = load_signer(context, &options.key)?;
    let signer = who(&key, options.signer.as_deref())?;
    // A certificate that its own trust file does not allow could be replaced by none: by then everything is gone.
    let trust = options.trust.as_deref().map(read_trust).transpose()?;
    check_may_sign(trust.as_ref(), (signer.as_str(), &key), &[Namespace::Erase, Namespace::Custody], now()?)?;
    let _lock = Lock::alone(&array)?;
    if let Some(erased) = again::erased_before(context, &array, &options)? {
        return Ok(erased);
    }
    let (journal, resumes, notes) = prepare(context, &array, &options, trust.as_ref(), &signer, proofs)?;
    let tree = array.tree()?;
    check_directories(&tree)?;
    // Before anything goes: at the end nobody could add to it.
    journal.seal.map(|seal| own_custody(context, &journal, seal)).transpose()?;
    if journal.free_space == FreeSpace::Discard && !context.dry_run && journal.treated.is_none() {
        space::check_discard(array.root())?;
    }
    let (files, bytes) = measure(&tree)?;
    let free_bytes = space::free_bytes(array.root())?;
    let fill = journal.free_space == FreeSpace::Fill && journal.treated.is_none();
    let plan = Plan {
        place: journal.place.clone(),
        given_up_packs: journal.given_up_packs.clone(),
        free_space: journal.free_space,
        free_bytes,
        // Only the plan of a run that does not begin yet has time to measure.
        fill_seconds: if fill && context.dry_run { fill_seconds(&array, free_bytes + bytes)? } else { None },
        shipment: journal.shipment.shipment,
        site: journal.shipment.site.name.clone(),
        asset_tag: journal.shipment.asset_tag.clone(),
        seal: journal.seal,
        disks: journal.disks.clone(),
        reason: journal.reason.clone(),
        files,
        bytes,
        resumes,
    };
    let (dry_run, certificate) = (context.dry_run, PathBuf::new());
    let mut erased = Erased { plan, dry_run, erased_already: None, certificate, notes };
    if !context.dry_run {
        let work = bytes + if fill { free_bytes + bytes } else { 0 };
        erased.certificate = erase(context, &array, &options, journal, &key, work)?;
    }
    Ok(erased)
}

/// Checks everything; makes the journal, or takes up the one of an interrupted run.
fn prepare(
    context: &Context,
    array: &Array,
    options: &Options,
    trust: Option<&AllowedSigners>,
    signer: &str,
    proofs: Proofs,
) -> Result<(Journal, bool, Vec<String>)> {
    let shipment = match array.read_shipment() {
        Ok(shipment) => shipment,
        // Interrupted after shipment.json went: the journal knows.
        Err(error) => {
            return match Journal::find_by_tag(&context.ledger, &options.asset)? {
                Some(journal) if array.is_there()? => Ok((journal, true, Vec::new())),
                _ => Err(error),
            };
        }
    };
    check_tag(&shipment.asset_tag, shipment.shipment, &options.asset)?;
    if let Some(mut journal) = Journal::find(&context.ledger, shipment.shipment)? {
        // Somebody may have waited long enough.
        if let Some(how) = options.free_space.filter(|how| *how != journal.free_space) {
            (journal.free_space, journal.treated) = (free_space(Some(how), &journal.shipment, &journal.place)?, None);
        }
        return Ok((journal, true, Vec::new()));
    }
    let place = ErasedPlace::of(context, array.root().parent().unwrap_or(array.root()))?;
    place.check_system_disk(options.allow_system_disk)?;
    let free_space = free_space(options.free_space, &shipment, &place)?;
    let mut given_up_packs = Vec::new();
    let mut notes = Vec::new();
    let (seal, disks) = match open(array, trust, None, None) {
        Ok(opened) => {
            if opened.shipment != shipment {
                return Err(Error::untrusted("shipment.json: expected the one that the seal pins, found another"));
            }
            let terms = Terms { trust, at: now()?, expect_seal: None };
            notes.extend(keep_custody(context, &opened, &terms, options.unproven)?);
            given_up_packs = missing_packs(&opened.seal);
            (Some(opened.seal_digest), opened.seal.disks)
        }
        Err(error) if options.unproven => {
            notes.push(format!("No valid seal was found: {}", error.message));
            (None, Vec::new())
        }
        Err(error) => return Err(error.next("an array that was given up can be erased with --unproven --reason TEXT")),
    };
    let uuid = shipment.shipment;
    let mut erased = Vec::new();
    for disk in disks {
        let Standing { unproven, look } = seal.map(|seal| proofs(uuid, seal, &disk)).transpose()?.unwrap_or_default();
        erased.push(ErasedDisk {
            machine: disk.machine,
            disk: disk.disk,
            uuid: disk.uuid,
            digest: disk.digest,
            unproven,
            look,
        });
    }
    let open: Vec<String> = erased
        .iter()
        .filter_map(|d| d.unproven.as_ref().map(|why| format!("{}/{}: {why}", d.machine, d.disk)))
        .collect();
    if !open.is_empty() && !options.unproven {
        return Err(Error::failed(format!(
            "Array {}: expected every disk to be proven by full read-back in this ledger, found {}",
            array.root().display(),
            open.join("; ")
        ))
        .next("import it with --readback full first; a shipment that was given up: --unproven --reason TEXT"));
    }
    let unseen: Vec<String> =
        erased.iter().filter_map(|d| d.unseen().map(|why| format!("{}/{}: {why}", d.machine, d.disk))).collect();
    if !unseen.is_empty() && !options.unseen {
        return Err(Error::failed(format!(
            "Array {}: volumes are not what was proven: {}",
            array.root().display(),
            unseen.join("; ")
        ))
        .next(
            "run 'motiongear verify --volumes', mend what differs by the import, or accept it with --accept-difference; to erase all the same: --unseen --reason TEXT",
        ));
    }
    let journal = Journal {
        place,
        given_up_packs,
        free_space,
        filling: false,
        treated: None,
        shipment,
        seal,
        disks: erased,
        signer: signer.to_owned(),
        reason: options.reason.clone(),
        began_at: now()?,
        envelopes: Vec::new(),
        packs: Vec::new(),
        others: Vec::new(),
    };
    Ok((journal, false, notes))
}

/// Custody outlives the array: keeps its chain, and gives what is odd about it. A broken one stops here, unless the shipment was
/// given up.
fn keep_custody(context: &Context, opened: &Opened, terms: &Terms, unproven: bool) -> Result<Vec<String>> {
    let (array, kept) = (Place::on_array(opened), Place::kept(&context.ledger, opened.seal.shipment));
    match road::read(&array, &kept, &subject(opened), terms) {
        Ok(chain) if context.dry_run => Ok(chain.notes),
        Ok(chain) => road::keep(&array, &kept, &chain).map(|()| chain.notes),
        Err(error) if unproven => Ok(vec![error.message]),
        Err(error) => Err(error),
    }
}

/// What this host keeps of custody: the data centre's own chain, to which the erasure is added, and the array's.
fn own_custody(
    context: &Context,
    journal: &Journal,
    seal: Digest,
) -> Result<(Chain<CentreEvent>, Chain<CustodyEvent>)> {
    let (ledger, shipment) = (&context.ledger, journal.shipment.shipment);
    let site = journal.shipment.site.name.as_str();
    let terms = Terms { trust: None, at: now()?, expect_seal: None };
    let centre = centre::read(ledger, shipment, site, &terms)?;
    let custody = Place::kept(ledger, shipment).read(&Subject { shipment, seal: Some(seal), site }, &terms)?;
    centre.check_known(&custody)?;
    Ok((centre, custody))
}

/// What becomes of free space: filled by default where what lies there could be read. Never on the system disk.
fn free_space(told: Option<FreeSpace>, shipment: &Shipment, place: &ErasedPlace) -> Result<FreeSpace> {
    match told {
        Some(FreeSpace::Fill) if place.system_disk => {
            Err(Error::usage(format!("Array {}: filling the system disk would stop this host", place.array))
                .next("use --free-space discard or --free-space leave"))
        }
        Some(how) => Ok(how),
        None if shipment.suite == Suite::Plaintext && !place.system_disk => Ok(FreeSpace::Fill),
        None => Ok(FreeSpace::Leave),
    }
}

/// Numbers of packs that are in no seal: packs are numbered without gaps as they are made, so these were given up.
fn missing_packs(seal: &Seal) -> Vec<u32> {
    let number = |file: &str| file.strip_prefix("packs/").and_then(|name| name.strip_suffix(".pack")?.parse().ok());
    let there: BTreeSet<u32> = seal.packs.iter().filter_map(|pack| number(&pack.file)).collect();
    (1..there.last().copied().unwrap_or(0)).filter(|number| !there.contains(number)).collect()
}

/// About how long filling takes, by how fast a pack can be read.
fn fill_seconds(array: &Array, free: u64) -> Result<Option<u64>> {
    let tree = array.tree()?;
    let size = |path: &PathBuf| tree.find(path).ok().flatten().map_or(0, |found| found.bytes);
    let largest = files(&tree, Path::new("packs"))?.into_iter().max_by_key(size);
    Ok(largest.and_then(|pack| space::estimate_seconds(free, &tree.full(pack))))
}

/// Every file below the folder `dir`, sorted; links and odd things as they are, never followed.
fn files(tree: &Tree, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for (name, kind) in tree.list(dir)? {
        let path = dir.join(name);
        match kind {
            Kind::Folder => found.extend(files(tree, &path)?),
            _ => found.push(path),
        }
    }
    Ok(found)
}

/// Removes all directories below `dir`; their files are gone already.
fn remove_directories(tree: &Tree, dir: &Path) -> Result<()> {
    for (name, kind) in tree.list(dir)? {
        if kind == Kind::Folder {
            remove_directories(tree, &dir.join(&name))?;
            tree.remove_folder(dir.join(&name))?;
        }
    }
    Ok(())
}

/// Refuses an array on which a directory is a link: what it leads to is not the array's, and must not be destroyed.
fn check_directories(tree: &Tree) -> Result<()> {
    FOLDERS.iter().try_for_each(|folder| if_there(tree.folder(folder)).map(drop))
}

fn measure(tree: &Tree) -> Result<(u64, u64)> {
    let mut bytes = 0;
    let all = files(tree, Path::new(""))?;
    for path in &all {
        bytes += tree.find(path)?.filter(|found| found.kind == Kind::File).map_or(0, |found| found.bytes);
    }
    Ok((all.len() as u64, bytes))
}

/// `shipment.json` stays until the end: it says whose array this is.
const LAST: [&str; 2] = ["shipment.json", "shipment.json.sig"];

fn erase(
    context: &Context,
    array: &Array,
    options: &Options,
    mut journal: Journal,
    key: &Signer,
    bytes: u64,
) -> Result<PathBuf> {
    let ledger = &context.ledger;
    let uuid = journal.shipment.shipment;
    let throttle = Throttle::new(Limits::default());
    let progress = Progress::new("erase", vec![DiskProgress::new("array", bytes)]);
    let subject = array.root().display().to_string();
    let _job = Job::start(ledger.state(), "erase", subject, throttle.clone(), progress.clone())?;
    let _watch = context.monitor.watch(progress.clone());
    let destroyer = Destroyer::new(context.engine, throttle.clone())?;
    let disk = progress.disks.first().ok_or_else(|| Error::failed("Progress: expected one line, found none"))?;
    journal.save(ledger)?;
    let tree = array.tree()?;

    progress.begin("envelopes");
    for dir in ["keys", "copy/keys"] {
        for path in files(&tree, Path::new(dir))? {
            journal.envelopes.extend(destroyer.destroy(&tree, &path, disk)?);
        }
    }
    journal.save(ledger)?;
    progress.begin("packs");
    for path in files(&tree, Path::new("packs"))? {
        journal.packs.extend(destroyer.destroy(&tree, &path, disk)?);
        journal.save(ledger)?;
    }
    progress.begin("manifest");
    let others = files(&tree, Path::new(""))?;
    // What a killed run filled with holds nothing, and is gone on with.
    let filling = |path: &Path| journal.filling && space::is_filling(path);
    let kept = |path: &Path| LAST.iter().chain([&erased::FILE]).any(|kept| path == Path::new(kept)) || filling(path);
    let others: Vec<PathBuf> = others.into_iter().filter(|path| !kept(path)).collect();
    for path in &others {
        journal.others.extend(destroyer.destroy(&tree, path, disk)?);
    }
    remove_directories(&tree, Path::new(""))?;
    tree.sync("")?;
    journal.save(ledger)?;
    if journal.treated.is_none() {
        treat(ledger, array, &mut journal, &throttle, disk)?;
    }

    let (path, digest, at) = certify(context, options, &journal, key)?;
    record_custody(context, &journal, key, at)?;
    for name in LAST {
        destroyer.destroy(&tree, Path::new(name), disk)?;
    }
    let note = ErasedNote {
        format: motiongear_manifest::FORMAT,
        shipment: uuid,
        asset_tag: journal.shipment.asset_tag.clone(),
        erased_at: at,
        certificate: digest,
        tool: tool(),
    };
    array.set_erased(&note)?;
    Journal::remove(ledger, uuid)?;
    Ok(path)
}

/// Treats free space as the journal says, and notes that it was.
fn treat(
    ledger: &Ledger,
    array: &Array,
    journal: &mut Journal,
    throttle: &Throttle,
    progress: &DiskProgress,
) -> Result<()> {
    let root = array.root();
    journal.filling |= journal.free_space == FreeSpace::Fill;
    journal.save(ledger)?;
    let how = journal.free_space;
    if how != FreeSpace::Fill && journal.filling {
        space::remove_filling(root)?;
    }
    let (bytes, kept_back_bytes) = match how {
        FreeSpace::Fill => space::fill(root, throttle, progress)?,
        FreeSpace::Discard => (space::discard(root)?, 0),
        FreeSpace::Leave => (space::free_bytes(root)?, 0),
    };
    journal.treated = Some(Treated { how, bytes, kept_back_bytes });
    journal.save(ledger)
}

/// How the content was destroyed, in words. "Every" is said of what was on the file system only where its free space was treated.
fn method(journal: &Journal) -> String {
    let files = "overwritten with zeros, flushed, samples read back through a new handle and found zero, space discarded where \
                 supported, unlinked";
    let content = match journal.shipment.suite {
        Suite::Plaintext => "The content was not encrypted.",
        _ => "The content was encrypted with keys that existed only in those envelopes.",
    };
    let (all, some) = (
        "every pack, manifest, seal, custody and report file",
        "the packs, manifest, seal, custody and report files that were on the array",
    );
    let (first, rest) = match &journal.treated {
        Some(Treated { how: FreeSpace::Fill, bytes, kept_back_bytes: 0 }) => (
            all,
            format!(
                "Then all free space of the file system, {bytes} bytes, was filled with random bytes and flushed: removed \
                 files, packs that were given up, replaced manifests, and names in removed folders."
            ),
        ),
        Some(Treated { how: FreeSpace::Fill, bytes, kept_back_bytes }) => (
            some,
            format!(
                "Then {bytes} bytes of free space were filled with random bytes and flushed; {kept_back_bytes} bytes that \
                 the file system keeps for its own records could not be filled, and may hold what earlier runs removed."
            ),
        ),
        Some(Treated { how: FreeSpace::Discard, bytes, .. }) => (
            all,
            format!(
                "Then all free space of the file system, {bytes} bytes, was discarded: what its device gives back for it \
                 from then on is the device's affair."
            ),
        ),
        Some(Treated { how: FreeSpace::Leave, .. }) | None => (
            some,
            "Free space was not treated: it may hold what earlier runs removed (packs that were given up, replaced \
             manifests, names of files)."
                .to_owned(),
        ),
    };
    format!("Key envelopes (both copies) destroyed first; then {first}: {files}. {rest} {content}")
}

/// Where certificates go.
fn certificates(context: &Context, options: &Options) -> PathBuf {
    options.certificate.clone().unwrap_or_else(|| context.ledger.state().join("certificates"))
}

/// Writes and signs the certificate, unless an interrupted run did. Gives its path, BLAKE3 and time.
fn certify(
    context: &Context,
    options: &Options,
    journal: &Journal,
    key: &Signer,
) -> Result<(PathBuf, Digest, Timestamp)> {
    let dir = certificates(context, options);
    create_dirs_durably(&dir, 0o777)?;
    let code = journal.seal.as_ref().map(name_code);
    let name = format!("erase-{}-{}.json", code.as_deref().unwrap_or("unsealed"), journal.shipment.shipment);
    let (path, sig) = (dir.join(&name), format!("{name}.sig"));
    if path.exists() && dir.join(&sig).exists() {
        let (old, bytes) = Certificate::read(&path)?;
        if old.journal.began_at == journal.began_at {
            // The run that wrote it may have been killed before its name was durable, and the array goes next.
            sync_dir(&dir)?;
            return Ok((path, Digest::of(&bytes), old.finished_at));
        }
    }
    let certificate = Certificate {
        format: motiongear_manifest::FORMAT,
        document: "MotionGear certificate of erasure".into(),
        spoken_code: journal.seal.as_ref().map(spoken_code),
        finished_at: now()?,
        host: crate::report::host_name(context),
        tool: tool(),
        proven: !journal.disks.is_empty() && journal.disks.iter().all(ErasedDisk::is_proven),
        method: method(journal),
        caution: format!(
            "Files were erased on a {} file system. Blocks that a device remapped, or that a copy-on-write file system or a \
             flash controller keeps elsewhere, cannot be reached from files.",
            journal.place.file_system
        ),
        journal: journal.clone(),
    };
    let mut bytes = serde_json::to_vec_pretty(&certificate).map_err(|e| Error::failed("Certificate").because(e))?;
    bytes.push(b'\n');
    let sign = |bytes: &[u8]| key.sign(bytes, Namespace::Erase).map_err(motiongear_manifest::FormatError::from);
    // For paper; before the JSON, by which a later run knows that both are there.
    let page = html::html(&certificate, context.lang)?.into_bytes();
    let paper = Path::new(&name).with_extension("html").display().to_string();
    write_file_durably(&dir, &paper, &page)?;
    write_file_durably(&dir, &format!("{paper}.sig"), sign(&page)?.as_bytes())?;
    let signature = sign(&bytes)?;
    write_file_durably(&dir, &name, &bytes)?;
    write_file_durably(&dir, &sig, signature.as_bytes())?;
    Ok((path, Digest::of(&bytes), certificate.finished_at))
}

/// Adds "erased" to the data centre's chain, unless it is there.
fn record_custody(context: &Context, journal: &Journal, key: &Signer, at: Timestamp) -> Result<()> {
    let Some(seal) = journal.seal else { return Ok(()) };
    let (ledger, shipment) = (&context.ledger, journal.shipment.shipment);
    let (centre, custody) = own_custody(context, journal, seal)?;
    if centre.is_erased() {
        // As with the certificate.
        return Place::centre(ledger, shipment).open()?.sync("");
    }
    let excuse = if journal.disks.iter().any(|disk| disk.unseen().is_some()) { "unseen" } else { "unproven" };
    let note = journal.reason.as_ref().map(|reason| format!("{excuse}: {reason}")).unwrap_or_default();
    let record = Record { shipment, seal, event: Deed::Erased, at, signer: journal.signer.clone(), note };
    centre::append(ledger, &centre, &custody, record, key)
}
