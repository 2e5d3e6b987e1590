//! `init`: prepares a directory on a transport array for one shipment of one site.

use crate::array::holder::Lock;
use crate::array::{Array, FOLDERS, erased};
use crate::context::{Context, Outcome, now, tool};
use crate::error::{Error, IoContext, Result};
use crate::io::Tree;
use crate::io::tree::{Kind, if_there, is_unfinished};
use crate::lang::{Lang, plaintext_words};
use crate::say;
use crate::source::device::carriers;
use crate::trust::prepared::recipient_code;
use crate::trust::{load_signer, signer_name};
use motiongear_manifest::documents::shipment::{Medium, Shipment, Site, Suite};
use motiongear_manifest::documents::{Document, MAX_DOCUMENT_BYTES};
use motiongear_manifest::envelope::Recipient;
use motiongear_manifest::geometry::check_block_bytes;
use motiongear_manifest::sign::Namespace;
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What the array is prepared for.
pub struct Options {
    /// Where the array is mounted.
    pub array: PathBuf,
    /// The site's name.
    pub site: String,
    /// The site's UUID; if not given, that of the site of this name which the ledger knows, or else a new one.
    pub site_uuid: Option<Uuid>,
    /// Who will be able to read it; empty for plaintext.
    pub recipients: Vec<String>,
    /// For people.
    pub label: String,
    /// On the sticker.
    pub asset_tag: String,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Signs `shipment.json`.
    pub key: Option<PathBuf>,
    /// NAME@SITE of that key.
    pub signer: Option<String>,
    /// An array on the disk that holds `/` is a mistake nearly always: the mount is missing.
    pub allow_system_disk: bool,
}

/// What was prepared, or (dry run) would be.
#[derive(Debug, Serialize)]
pub struct Prepared {
    /// The document.
    pub shipment: Shipment,
    /// Recipients as fingerprints to compare with paper.
    pub recipients: Vec<String>,
    /// One code for all recipients together: the branch types it before the first record. None for plaintext.
    pub recipient_code: Option<String>,
    /// Where.
    pub array: PathBuf,
    /// True if nothing was written.
    pub dry_run: bool,
}

impl Outcome for Prepared {
    fn summary(&self, lang: Lang) -> String {
        let Shipment { shipment, site, block_bytes, asset_tag, .. } = &self.shipment;
        let (array, site, uuid) = (self.array.display(), &site.name, site.uuid);
        let block = crate::units::size(u64::from(*block_bytes));
        let mut lines = vec![
            say!(lang, "Shipment {shipment} on {array}", "批次 {shipment}，位于 {array}"),
            say!(
                lang,
                "  site {site} ({uuid}), asset tag '{asset_tag}', blocks of {block}",
                "  站点 {site}（{uuid}），资产编号“{asset_tag}”，块 {block}"
            ),
        ];
        if self.recipients.is_empty() {
            lines.push(plaintext_words(lang));
        }
        for recipient in &self.recipients {
            lines.push(say!(
                lang,
                "  encrypted to recipient {recipient} (write it on paper)",
                "  加密，接收方指纹 {recipient}（请记录于纸面）"
            ));
        }
        if let Some(code) = &self.recipient_code {
            lines.push(say!(
                lang,
                "  recipient code {code}: give it to the branch on paper or by telephone (seed --recipient-code)",
                "  接收方口令码 {code}：请以纸面或电话告知网点（seed --recipient-code）"
            ));
        }
        lines.push(match self.dry_run {
            true => say!(lang, "Nothing was written: dry run.", "试运行，未写入任何内容。"),
            false => say!(
                lang,
                "Ready. At the branch: motiongear seed ARRAY --disk NAME=SOURCE",
                "已就绪。在网点执行：motiongear seed ARRAY --disk 名称=源端"
            ),
        });
        lines.join("\n")
    }
}

/// Prepares the array.
///
/// # Errors
/// The directory is missing, on the system disk, or holds another shipment; a name or recipient is not valid.
pub fn run(context: &Context, options: Options) -> Result<Prepared> {
    check_directory(&options)?;
    let array = Array::new(&options.array);
    leavings(&array)?;
    check_block_bytes(options.block_bytes).map_err(|e| Error::usage("Block size").because(e))?;
    let mut recipients = Vec::new();
    for text in &options.recipients {
        recipients.push(text.parse::<Recipient>().map_err(|e| {
            Error::usage(format!("Recipient '{text}'"))
                .because(e)
                .next("give the public key that age-keygen or 'motiongear keygen age' printed: age1…")
        })?);
    }
    let known = || context.ledger.site_named(&options.site);
    let site_uuid = options.site_uuid.map_or_else(known, |uuid| Ok(Some(uuid)))?.unwrap_or_else(Uuid::new_v4);
    let mut shipment = Shipment {
        format: motiongear_manifest::FORMAT,
        shipment: Uuid::new_v4(),
        site: Site { uuid: site_uuid, name: options.site.clone() },
        label: options.label.clone(),
        asset_tag: options.asset_tag.clone(),
        block_bytes: options.block_bytes,
        suite: if recipients.is_empty() { Suite::Plaintext } else { Suite::Aes256GcmAge },
        recipients: recipients.iter().map(Recipient::to_string).collect(),
        hash: "blake3".into(),
        checksum: "crc32".into(),
        media: vec![Medium { number: 1, uuid: Uuid::new_v4(), serial: serials(context, &options.array) }],
        created_at: now()?,
        tool: tool(),
        signer: None,
    };
    let signer = options.key.as_deref().map(|path| load_signer(context, path)).transpose()?;
    if let Some(signer) = &signer {
        // Whoever prepares the array need not belong to the branch's site: arrays are prepared at the data centre.
        let comment = signer.public_key().comment().to_owned();
        let named = options.signer.clone().or(Some(comment).filter(|c| c.contains('@')));
        shipment.signer = Some(named.map_or_else(|| signer_name(signer, None, &shipment.site.name), Ok)?);
    }
    let bytes = shipment.to_bytes().map_err(|e| Error::usage("Shipment").because(e))?;
    let fingerprints = recipients.iter().map(Recipient::fingerprint).collect();
    let prepared = Prepared {
        recipient_code: recipient_code(&shipment),
        shipment,
        recipients: fingerprints,
        array: options.array.clone(),
        dry_run: context.dry_run,
    };
    if context.dry_run {
        return Ok(prepared);
    }
    array.create_root()?;
    let _lock = Lock::alone(&array)?;
    let leavings = leavings(&array)?;
    // Before the document: an array that is prepared here is known here, whenever this ends.
    context.ledger.keep_prepared(prepared.shipment.shipment, Digest::of(&bytes))?;
    let tree = array.tree()?;
    // The note of an erasure stays until the array is a prepared one.
    for path in leavings.iter().filter(|path| *path != Path::new(erased::FILE)) {
        tree.remove(path)?;
    }
    FOLDERS.iter().try_for_each(|folder| tree.make_folders(folder))?;
    if let Some(signer) = signer {
        let signature = signer
            .sign(&bytes, Namespace::Shipment)
            .map_err(|e| Error::failed("Signature of shipment.json").because(e))?;
        tree.write("copy/shipment.json.sig", signature.as_bytes())?;
        tree.write("shipment.json.sig", signature.as_bytes())?;
    }
    tree.write("copy/shipment.json", &bytes)?;
    // Last: only a directory with shipment.json is a prepared array.
    tree.write("shipment.json", &bytes)?;
    tree.remove(erased::FILE)?;
    Ok(prepared)
}

fn check_directory(options: &Options) -> Result<()> {
    let path = &options.array;
    let meta = std::fs::metadata(path)
        .context(|| format!("Array {}", path.display()))
        .map_err(|e| e.next("mount the transport array and give its mount point"))?;
    if !meta.is_dir() {
        return Err(Error::usage(format!("Array {}: expected a directory, found something else", path.display()))
            .next("give the array's mount point"));
    }
    let system = std::fs::metadata("/").context(|| "Directory /".into())?;
    if meta.dev() == system.dev() && !options.allow_system_disk {
        return Err(Error::usage(format!(
            "Array {}: expected a mounted array, found a directory on the system disk",
            path.display()
        ))
        .next("mount the array first; if this really is meant, say --allow-system-disk"));
    }
    Ok(())
}

/// Refuses a folder that holds anything but what an `init` that was cut short leaves, or an erasure: returns the files of these.
/// Whatever else is there was put there by somebody, under any name.
fn leavings(array: &Array) -> Result<Vec<PathBuf>> {
    let Some(tree) = if_there(array.tree())? else { return Ok(Vec::new()) };
    let refuse = |what: String, next: &str| {
        Err(Error::failed(format!("Array {}: expected no shipment, found {what}", array.root().display())).next(next))
    };
    if tree.find("seal.json")?.is_some() {
        let next = "import it first, then erase it: motiongear erase ARRAY --asset TAG --key KEY";
        return refuse("a sealed one".into(), next);
    }
    if tree.find("shipment.json")?.is_some() {
        return refuse(
            "one that is prepared or half copied".into(),
            "go on with it (motiongear seed), or give it up: motiongear erase ARRAY --asset TAG --key KEY --unproven --reason TEXT",
        );
    }
    let mut files = Vec::new();
    for folder in ["", "packs", "keys", "copy", "copy/keys", "custody", "report"] {
        for (name, kind) in tree.list(folder)? {
            let path = Path::new(folder).join(name);
            let own = match kind {
                Kind::Folder => FOLDERS.iter().any(|folder| path == Path::new(folder)),
                Kind::File => is_leaving(&tree, &path)?,
                Kind::Other => false,
            };
            if !own {
                return refuse(
                    format!("{}, which is no file of a fresh array", path.display()),
                    "look at it, and move it away; then run the same command again",
                );
            }
            files.extend((kind == Kind::File).then_some(path));
        }
    }
    Ok(files)
}

/// Whether this is what `init` writes before `shipment.json`: its second copy, the signatures, a file that it did not finish. Or
/// the note of an erasure.
fn is_leaving(tree: &Tree, path: &Path) -> Result<bool> {
    let is = |name: &str| path == Path::new(name);
    if is(erased::FILE) || is_unfinished(path) {
        return Ok(true);
    }
    if !is("copy/shipment.json") && !is("copy/shipment.json.sig") && !is("shipment.json.sig") {
        return Ok(false);
    }
    let bytes = tree.read(path, MAX_DOCUMENT_BYTES)?;
    Ok(bytes.starts_with(b"-----BEGIN SSH SIGNATURE-----") || Shipment::parse(&bytes).is_ok())
}

/// Serial numbers of the disks that carry the array, as far as the system knows them.
fn serials(context: &Context, path: &Path) -> String {
    let serials = carriers(&context.sys, path).into_iter().filter_map(|device| {
        let whole = device.whole();
        whole
            .udev()
            .get("ID_SERIAL_SHORT")
            .cloned()
            .or_else(|| whole.attribute("serial"))
            .or_else(|| whole.attribute("device/serial"))
    });
    let mut serials: Vec<String> =
        serials.map(|s| s.trim().chars().filter(|c| !c.is_control()).take(64).collect()).collect();
    serials.sort();
    serials.dedup();
    serials.retain(|s: &String| !s.is_empty());
    serials.truncate(7);
    serials.join(", ")
}
