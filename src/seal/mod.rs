//! `seal`: makes the small signed statement that pins everything on the array.
//!
//! Order of steps, each durable before the next: the open pack is closed · the live manifest is finalised and checked · it is
//! copied to the array, twice · seal and signature, second copies first (a crash between the two pairs leaves one valid) ·
//! the branch's own copy · the ledger. That it comes is in the ledger before anything of it is on the array: a seal there of which the
//! ledger knows nothing was made by a newer one.

use crate::array::packs::close_open_packs;
use crate::array::{Array, holder, outrank};
use crate::context::{Context, Outcome, now, tool};
use crate::error::{Error, IoContext, Result};
use crate::io::Tree;
use crate::lang::{Lang, consistency_words, plaintext_words};
use crate::ledger::branch::{KnownSeal, ShipmentState};
use crate::source::hooks::READ_LIVE;
use crate::trust::prepared::{check_signature, expect_prepared, say_plaintext};
use crate::trust::{load_signer, read_trust, shipment_with_digest, signer_name};
use crate::{say, units};
use motiongear_manifest::catalogue::{Catalogue, Process};
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::seal::{
    ExcludedDisk, ManifestPin, PlainPin, Seal, SealedDisk, SealedPack, envelope_file,
};
use motiongear_manifest::documents::shipment::{Shipment, Suite};
use motiongear_manifest::documents::{Document, MAX_SEAL_BYTES};
use motiongear_manifest::envelope::{Recipient, StreamSums, encrypt_stream};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::sums::{SummedReader, Sums};
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// What to seal, by whom.
pub struct Options {
    /// Where the array is mounted.
    pub array: PathBuf,
    /// OpenSSH private key.
    pub key: PathBuf,
    /// NAME@SITE, if the key's comment is none.
    pub signer: Option<String>,
    /// Checks the signer before anything is signed.
    pub trust: Option<PathBuf>,
    /// Nothing is encrypted, and that is meant.
    pub plaintext: bool,
    /// MACHINE/DISK that stay unfinished, …
    pub without: Vec<String>,
    /// … and why.
    pub reason: Option<String>,
}

/// What was sealed, or (dry run) would be.
#[derive(Debug, Serialize)]
pub struct Sealed {
    /// The shipment.
    pub shipment: uuid::Uuid,
    /// Nothing is encrypted.
    pub plaintext: bool,
    /// BLAKE3 of `seal.json`; absent in a dry run.
    pub digest: Option<Digest>,
    /// Its first 40 bits for the telephone; absent in a dry run.
    pub code: Option<String>,
    /// NAME@SITE.
    pub signer: String,
    /// Fingerprint of the key.
    pub fingerprint: String,
    /// Whether the signer was compared with a trust file.
    pub signer_checked: bool,
    /// The seal that this one replaces.
    pub supersedes: Option<Digest>,
    /// Disks as sealed.
    pub disks: Vec<SealedDisk>,
    /// Machines whose snapshot hook named no place to read from, so that their disks themselves were read.
    pub read_live: Vec<String>,
    /// Disks that are not in the shipment.
    pub excluded: Vec<ExcludedDisk>,
    /// Bytes in packs.
    pub pack_bytes: u64,
    /// When the same command sealed it before; this run did nothing.
    pub sealed_already: Option<jiff::Timestamp>,
}

impl Outcome for Sealed {
    fn summary(&self, lang: Lang) -> String {
        let Sealed { shipment, signer, fingerprint, .. } = self;
        let mut lines = vec![match self.digest {
            Some(_) => say!(
                lang,
                "Shipment {shipment}, signed by {signer} ({fingerprint})",
                "批次 {shipment}，签名人 {signer}（{fingerprint}）"
            ),
            None => say!(
                lang,
                "Shipment {shipment}; {signer} ({fingerprint}) would seal it",
                "批次 {shipment}；将由 {signer}（{fingerprint}）封签"
            ),
        }];
        if let Some(at) = self.sealed_already {
            lines.push(say!(lang, "  sealed already at {at}; nothing was done", "  已于 {at} 封签；未做任何更改"));
        }
        lines.extend(self.plaintext.then(|| plaintext_words(lang)));
        if !self.signer_checked {
            lines.push(say!(
                lang,
                "  the signer was not checked against a trust file (--trust)",
                "  未与信任文件核对签名人（--trust）"
            ));
        }
        for disk in &self.disks {
            let (name, size, digest) =
                (format!("{}/{}", disk.machine, disk.disk), units::size(disk.bytes), disk.digest);
            let kind = consistency_words(lang, disk.consistency, disk.basis);
            lines.push(say!(lang, "  {name}: {size}, {kind}", "  {name}：{size}，{kind}"));
            lines.push(say!(lang, "    digest {digest}", "    摘要 {digest}"));
            if disk.blocks.unreadable > 0 {
                let n = disk.blocks.unreadable;
                lines.push(say!(lang, "    {n} blocks were partly unreadable", "    {n} 个块部分不可读"));
            }
        }
        for machine in &self.read_live {
            lines.push(say!(
                lang,
                "  {machine}: the snapshot hook named no place to read from: its disks themselves were read",
                "  {machine}：快照钩子未指明读取位置：读取的是磁盘本身"
            ));
        }
        for ExcludedDisk { machine, disk, reason } in &self.excluded {
            lines.push(say!(
                lang,
                "  NOT in the shipment: {machine}/{disk}: {reason}",
                "  未包含：{machine}/{disk}：{reason}"
            ));
        }
        let size = units::size(self.pack_bytes);
        lines.push(say!(lang, "  {size} in packs", "  数据包共 {size}"));
        match (&self.digest, &self.code) {
            (Some(digest), Some(code)) => {
                lines.push(say!(lang, "Seal digest {digest}", "封签摘要 {digest}"));
                lines.push(say!(
                    lang,
                    "Spoken code {code}: read it to the data centre over the telephone",
                    "核对码 {code}：请通过电话告知数据中心"
                ));
            }
            _ => lines.push(say!(lang, "Nothing was written: dry run.", "试运行，未写入任何内容。")),
        }
        lines.join("\n")
    }
    fn incomplete(&self) -> bool {
        self.disks.iter().any(|disk| disk.blocks.unreadable > 0)
    }
}

/// Seals the shipment on the array.
///
/// # Errors
/// A planned disk is not finished, the signer may not sign for the site, or the array cannot be written.
pub fn run(context: &Context, options: Options) -> Result<Sealed> {
    let array = Array::new(&options.array);
    let (shipment, document) = shipment_with_digest(&array, &context.ledger.documents()?)?;
    expect_prepared(&context.ledger, shipment.shipment, document)?;
    let already = check_state(context, &array, &shipment, document)?;
    say_plaintext(&shipment, options.plaintext)?;
    let signer = load_signer(context, &options.key)?;
    let name = signer_name(&signer, options.signer.as_deref(), &shipment.site.name)?;
    if let Some(path) = &options.trust {
        let refused = |e| {
            Error::untrusted(format!("Signer {name}"))
                .because(e)
                .next("a seal that this trust file does not allow would be refused at the data centre")
        };
        let trust = read_trust(path)?;
        trust.check(&name, signer.public_key(), Namespace::Seal, jiff::Timestamp::now()).map_err(refused)?;
        // The data centre would refuse the array, after the road, where whoever signed this is not allowed. A document without a
        // signature was vouched for before the first record.
        if shipment.signer.is_some() {
            check_signature(&array, &shipment, document, &trust)?;
        }
    }
    let live = context.ledger.shipment_dir(shipment.shipment).join("manifest.db");
    if let Some(known) = already {
        let again = same_again(&array, &shipment, &options, &known, (name, &signer))?;
        return Ok(Sealed { read_live: read_live(&Catalogue::open_live(&live)?)?, ..again });
    }
    let _lock =
        (!context.dry_run).then(|| holder::Lock::take(&array, &context.ledger, shipment.shipment)).transpose()?;
    let mut catalogue = Catalogue::open_live(&live)?;
    let contents = contents(&mut catalogue, &shipment, &options, context.dry_run)?;
    let supersedes = context.ledger.seals(shipment.shipment)?.last().map(|seal| seal.digest);
    let mut sealed = Sealed {
        shipment: shipment.shipment,
        plaintext: shipment.suite == Suite::Plaintext,
        digest: None,
        code: None,
        signer: name,
        fingerprint: signer.fingerprint(),
        signer_checked: options.trust.is_some(),
        supersedes,
        disks: contents.disks.clone(),
        read_live: read_live(&catalogue)?,
        excluded: contents.excluded.clone(),
        pack_bytes: catalogue.packs()?.iter().map(|p| p.bytes).sum(),
        sealed_already: None,
    };
    if context.dry_run {
        return Ok(sealed);
    }
    close_open_packs(&array, &mut catalogue)?;
    let packs = sealed_packs(&array, &catalogue)?;
    sealed.pack_bytes = packs.iter().map(|p| p.bytes).sum();
    let pins = pins(&array, document, &catalogue.processes()?)?;
    catalogue.finalise()?;
    context.monitor.note(&say!(context.lang, "The manifest is copied to the array", "正在将清单写入移动存储"));
    let manifest = copy_manifest(&array, &shipment, &live)?;
    let seal = Seal {
        format: motiongear_manifest::FORMAT,
        shipment: shipment.shipment,
        site: shipment.site.clone(),
        signer: sealed.signer.clone(),
        sealed_at: now()?,
        supersedes,
        pins,
        manifest,
        packs,
        disks: contents.disks,
        excluded: contents.excluded,
        tool: tool(),
    };
    let digest = write_seal(context, &array, &seal, &signer)?;
    let known = KnownSeal { digest, signer: seal.signer.clone(), sealed_at: seal.sealed_at, supersedes };
    context.ledger.record_seal(shipment.shipment, &known)?;
    sealed.digest = Some(digest);
    sealed.code = Some(spoken_code(&digest));
    Ok(sealed)
}

/// Machines of which the manifest says that their snapshot hook named no place.
fn read_live(catalogue: &Catalogue) -> Result<Vec<String>> {
    let numbers: BTreeSet<u32> = catalogue
        .events()?
        .into_iter()
        .filter(|event| event.kind == READ_LIVE)
        .filter_map(|event| event.machine)
        .collect();
    let machines = catalogue.machines()?.into_iter();
    Ok(machines.filter(|machine| numbers.contains(&machine.number)).map(|machine| machine.name).collect())
}

/// What the same command says once more. Another signer, or other disks left out, is another command.
fn same_again(
    array: &Array,
    shipment: &Shipment,
    options: &Options,
    known: &KnownSeal,
    (name, signer): (String, &Signer),
) -> Result<Sealed> {
    let _lock = holder::Lock::shared(array)?;
    let code = spoken_code(&known.digest);
    let tree = array.tree()?;
    let mut copies = ["seal.json", "copy/seal.json"].iter().filter_map(|file| tree.read(file, MAX_SEAL_BYTES).ok());
    let bytes = copies.find(|bytes| Digest::of(bytes) == known.digest).ok_or_else(|| {
        Error::failed(format!(
            "Array {}: both copies of its seal {code} are missing or damaged",
            array.root().display()
        ))
        .next("check the medium with 'motiongear verify ARRAY'; 'seed --reopen' and 'seal' make another seal")
    })?;
    let seal = Seal::parse(&bytes)?;
    let left_out = |name: &String| seal.excluded.iter().any(|disk| format!("{}/{}", disk.machine, disk.disk) == *name);
    if seal.signer != name || !options.without.iter().all(left_out) {
        return Err(Error::failed(format!(
            "Shipment {}: it is sealed already by {}, spoken code {code}",
            seal.shipment, seal.signer
        ))
        .next("to change it before dispatch: motiongear seed ARRAY --reopen …, then seal again"));
    }
    Ok(Sealed {
        shipment: seal.shipment,
        plaintext: shipment.suite == Suite::Plaintext,
        digest: Some(known.digest),
        code: Some(code),
        signer: name,
        fingerprint: signer.fingerprint(),
        signer_checked: options.trust.is_some(),
        supersedes: seal.supersedes,
        pack_bytes: seal.packs.iter().map(|pack| pack.bytes).sum(),
        disks: seal.disks,
        read_live: Vec::new(),
        excluded: seal.excluded,
        sealed_already: Some(seal.sealed_at),
    })
}

/// The seal that is on the array already, where nothing is to be done; a refusal where it may not be sealed here.
fn check_state(context: &Context, array: &Array, shipment: &Shipment, document: Digest) -> Result<Option<KnownSeal>> {
    holder::check(array, &context.ledger, shipment.shipment)?;
    let known = context.ledger.shipment(shipment.shipment)?.ok_or_else(|| {
        Error::failed(format!("Shipment {}: this host's ledger does not know it", shipment.shipment))
            .next("seal on the host that seeded it, or move its ledger here: motiongear ledger move")
    })?;
    if known.document != document {
        return Err(Error::untrusted(format!(
            "shipment.json: expected BLAKE3 {}, found {document}: it was altered since the first seed",
            known.document
        ))
        .next("somebody may have exchanged the recipients: do not seal; prepare another array with init"));
    }
    outrank::expect_known(array, &context.ledger, shipment.shipment)?;
    let already = context.ledger.seals(shipment.shipment)?.pop();
    match (known.state, already) {
        (ShipmentState::Seeding, _) => Ok(None),
        (ShipmentState::Sealed, Some(seal)) => Ok(Some(seal)),
        (state, _) => Err(Error::failed(format!(
            "Shipment {}: expected one that is being seeded, found one that is {state:?}",
            shipment.shipment
        ))),
    }
}

struct Contents {
    disks: Vec<SealedDisk>,
    excluded: Vec<ExcludedDisk>,
}

/// What goes into the seal, and a refusal if that is not what was planned.
fn contents(catalogue: &mut Catalogue, shipment: &Shipment, options: &Options, dry_run: bool) -> Result<Contents> {
    let machines: BTreeMap<u32, String> = catalogue.machines()?.into_iter().map(|m| (m.number, m.name)).collect();
    let generations = catalogue.generations()?;
    let encrypted = shipment.suite != Suite::Plaintext;
    let (mut disks, mut excluded, mut unfinished, mut left) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut without: Vec<&String> = options.without.iter().collect();
    for disk in catalogue.disks()? {
        let machine = machines.get(&disk.machine).cloned().unwrap_or_default();
        let name = format!("{machine}/{}", disk.name);
        let left_out = without.iter().position(|w| **w == name).map(|at| without.remove(at)).is_some();
        let reason = if left_out { options.reason.clone() } else { disk.excluded.clone() };
        let generation = generations.iter().find(|g| g.disk == disk.number && g.number == 0);
        if left_out || disk.excluded.is_some() {
            let reason = reason.filter(|r| !r.trim().is_empty()).ok_or_else(|| {
                Error::usage(format!("Disk {name}: --without needs a reason"))
                    .next("add --reason TEXT; it stands in the seal and in the report")
            })?;
            left.push((disk.number, reason.clone(), generation.map(|g| g.id)));
            excluded.push(ExcludedDisk { machine, disk: disk.name, reason });
            continue;
        }
        match generation {
            Some(generation) if generation.finished_at.is_some() => {
                let geometry = Geometry::new(generation.bytes, shipment.block_bytes)?;
                let (blocks, merged) = catalogue.summarise(generation, &geometry, encrypted)?;
                let digest = generation
                    .digest
                    .ok_or_else(|| Error::failed(format!("Disk {name}: expected a digest, found none")))?;
                if merged.is_some_and(|merged| merged != digest) {
                    return Err(Error::failed(format!("Disk {name}: expected its leaves to merge to {digest}, found another digest: the ledger is damaged")).next("seed this disk again on another array"));
                }
                disks.push(SealedDisk {
                    id: disk.number,
                    machine,
                    disk: disk.name,
                    uuid: disk.uuid,
                    generation: generation.number,
                    bytes: generation.bytes,
                    block_bytes: shipment.block_bytes,
                    digest,
                    consistency: generation.consistency,
                    basis: generation.basis,
                    blocks,
                });
            }
            _ => unfinished.push(name),
        }
    }
    if let Some(unknown) = without.first() {
        return Err(Error::usage(format!(
            "--without {unknown}: expected MACHINE/DISK of this shipment, found no such disk"
        ))
        .next("'motiongear status ARRAY' lists the disks"));
    }
    if !unfinished.is_empty() {
        return Err(Error::failed(format!(
            "Shipment {}: expected every planned disk to be copied, found unfinished: {}",
            shipment.shipment,
            unfinished.join(", ")
        ))
        .next("run the seed command again to finish them, or leave them out: --without MACHINE/DISK --reason TEXT"));
    }
    if disks.is_empty() {
        return Err(Error::failed(format!(
            "Shipment {}: expected at least one copied disk, found none",
            shipment.shipment
        ))
        .next("motiongear seed ARRAY --disk NAME=SOURCE"));
    }
    // Only now: what is forgotten is copied again, and a refused seal must not cost that.
    for (number, reason, generation) in left.into_iter().filter(|_| !dry_run) {
        catalogue.set_excluded(number, Some(&reason))?;
        if let Some(generation) = generation {
            catalogue.forget_generation(generation)?;
        }
    }
    Ok(Contents { disks, excluded })
}

fn sealed_packs(array: &Array, catalogue: &Catalogue) -> Result<Vec<SealedPack>> {
    let seal = |pack: motiongear_manifest::catalogue::Pack| {
        let path = array.pack(pack.number);
        let file = array.tree()?.open_file(Array::pack_file(pack.number))?;
        let found = file.metadata().context(|| format!("Pack {}", path.display()))?.len();
        let blake3 = pack.blake3.filter(|_| found == pack.bytes).ok_or_else(|| {
            Error::failed(format!(
                "Pack {}: expected {} bytes and a digest, found {found} bytes",
                path.display(),
                pack.bytes
            ))
            .next("the array lost data: do not dispatch it; seed on another array")
        })?;
        Ok(SealedPack { file: pack.file, medium: pack.medium, bytes: pack.bytes, records: pack.records, blake3 })
    };
    catalogue.packs()?.into_iter().map(seal).collect()
}

/// Copies the finalised manifest to the array and to its second copy; the digests are taken on the way.
fn copy_manifest(array: &Array, shipment: &Shipment, live: &Path) -> Result<ManifestPin> {
    let encrypted = shipment.suite != Suite::Plaintext;
    let name = if encrypted { "manifest.db.age" } else { "manifest.db" };
    let failed = |e| Error::failed(format!("Manifest {name} on {}", array.root().display())).because(e);
    let open = || File::open(live).map(BufReader::new).context(|| format!("Manifest {}", live.display()));
    let tree = array.tree()?;
    let sums = put(&tree, name, |file| {
        if !encrypted {
            let sums =
                copy_summed(open()?, file).context(|| format!("Manifest {name} on {}", array.root().display()))?;
            return Ok(StreamSums { plain: sums, cipher: sums });
        }
        let recipients = shipment.recipients.iter().map(|r| r.parse::<Recipient>()).collect::<Result<Vec<_>, _>>();
        let recipients = recipients.map_err(failed)?;
        encrypt_stream(open()?, file, &recipients).map_err(failed)
    })?;
    // The second copy is made from the first, so that reading it back is checked at once.
    let first = array.file(name);
    let second = put(&tree, &format!("copy/{name}"), |file| {
        copy_summed(BufReader::new(tree.open_file(name)?), file)
            .context(|| format!("Second copy of manifest {}", first.display()))
    })?;
    if second.blake3 != sums.cipher.blake3 {
        return Err(Error::failed(format!(
            "Manifest {}: expected BLAKE3 {}, read back {}",
            first.display(),
            sums.cipher.blake3,
            second.blake3
        ))
        .next("the array does not keep what is written to it: replace it"));
    }
    let plain = PlainPin { bytes: sums.plain.bytes, blake3: sums.plain.blake3, sha256: sums.plain.sha256 };
    Ok(ManifestPin {
        file: name.into(),
        bytes: sums.cipher.bytes,
        blake3: sums.cipher.blake3,
        sha256: sums.cipher.sha256,
        plain,
    })
}

fn copy_summed(from: impl Read, to: &mut impl Write) -> std::io::Result<Sums> {
    let mut from = SummedReader::new(from, u64::MAX);
    std::io::copy(&mut from, to)?;
    Ok(from.finish())
}

/// Writes a large file durably.
fn put<T>(tree: &Tree, file: &str, write: impl FnOnce(&mut BufWriter<&mut File>) -> Result<T>) -> Result<T> {
    tree.write_with(file, |out| {
        let mut buffered = BufWriter::with_capacity(1 << 20, out);
        let outcome = write(&mut buffered)?;
        buffered.flush().context(|| format!("File {}", tree.full(file).display()))?;
        Ok(outcome)
    })
}

/// BLAKE3 of `shipment.json` and of every envelope, as they were when they were written. A copy that is not that any more is made
/// from the other.
fn pins(array: &Array, document: Digest, processes: &[Process]) -> Result<BTreeMap<String, Digest>> {
    let mut pins = BTreeMap::from([("shipment.json".to_owned(), document)]);
    for process in processes {
        let file = envelope_file(process.number);
        match process.envelope {
            Some(digest) => drop(pins.insert(file, digest)),
            // It ended before its envelope was named, and so before its first record: the file belongs to nothing.
            None => array.remove_copies(&file)?,
        }
    }
    pins.iter().try_for_each(|(file, digest)| array.sound_copy(file, *digest).map(drop))?;
    Ok(pins)
}

fn write_seal(context: &Context, array: &Array, seal: &Seal, signer: &Signer) -> Result<Digest> {
    let bytes = seal.to_bytes()?;
    // First: whatever of it a crash leaves on the array is known here as this ledger's own.
    context.ledger.announce_seal(seal.shipment, Digest::of(&bytes))?;
    let signature =
        signer.sign(&bytes, Namespace::Seal).map_err(|e| Error::failed("Signature of the seal").because(e))?;
    let own = context.ledger.shipment_dir(seal.shipment);
    let tree = array.tree()?;
    for dir in [tree.folder("copy")?, tree.clone(), Tree::open(&own)?] {
        dir.write("seal.json.sig", signature.as_bytes())?;
        dir.write("seal.json", &bytes)?;
    }
    // No ledger holds a sealed shipment: reopening claims it again.
    tree.remove(holder::FILE)?;
    Ok(Digest::of(&bytes))
}
