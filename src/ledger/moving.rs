//! `ledger show` and `ledger move`: what this host knows, and handing an unsealed shipment to another host's ledger.
//!
//! A move has two halves, each resumable by running it again:
//! 1. at the old host: a package (live manifest, rows) is written durably, then the shipment is marked as moved. Marked first, a
//!    crash would leave a shipment that no ledger holds;
//! 2. at the new host: manifest, then rows, then `holder.json` on the array. Until the last step the array names the old ledger,
//!    so nothing can have been written by the new one, and doing it all again loses nothing.

use super::Ledger;
use super::branch::{BranchShipment, KnownSeal, ShipmentState};
use crate::array::{Array, holder, outrank};
use crate::context::{Context, Outcome, now};
use crate::error::{Error, IoContext, Result};
use crate::io::tree::if_there;
use crate::io::{Tree, create_dirs_durably, sync_dir};
use crate::lang::Lang;
use crate::ledger::centre::{ImportRow, VolumeRow};
use crate::say;
use jiff::Timestamp;
use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::code::{names_seal, spoken_code};
use motiongear_manifest::documents::holder::Holder;
use motiongear_manifest::documents::{Document, MAX_SEAL_BYTES};
use motiongear_manifest::sums::SummedReader;
use motiongear_manifest::tree::Digest;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Largest `move.json`, bytes.
const MAX_PACKAGE_BYTES: u64 = 256 << 20;
/// Most rows of one table in a package.
const MAX_ROWS: usize = 100_000;
/// What belongs to a shipment at the branch, in the order in which it is inserted.
const TABLES: [(&str, &str); 5] = [
    ("shipment", "uuid"),
    ("seal", "shipment"),
    ("seal_note", "shipment"),
    ("verification", "shipment"),
    ("snapshot", "shipment"),
];

/// A shipment as `ledger show` lists it.
#[derive(Debug, Serialize)]
pub struct Known {
    /// Its row.
    #[serde(flatten)]
    pub shipment: BranchShipment,
    /// Its seals, the last one counts.
    pub seals: Vec<KnownSeal>,
    /// The last seal's spoken code.
    pub spoken_code: Option<String>,
    /// The last good check of the medium against it.
    pub verified_at: Option<Timestamp>,
}

/// An import as `ledger show` lists it.
#[derive(Debug, Serialize)]
pub struct Volume {
    /// Whose it is.
    #[serde(flatten)]
    pub volume: VolumeRow,
    /// What it holds.
    pub import: Option<ImportRow>,
}

/// Everything that this host's ledger knows of shipments.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The ledger's own identity.
    pub ledger: Uuid,
    /// Where it lies.
    pub state: PathBuf,
    /// Seeded here.
    pub shipments: Vec<Known>,
    /// Volumes, and what was imported into them.
    pub volumes: Vec<Volume>,
}

impl Outcome for Shown {
    fn summary(&self, lang: Lang) -> String {
        let (uuid, state) = (self.ledger, self.state.display());
        let mut lines = vec![say!(lang, "Ledger {uuid} in {state}", "台账 {uuid}，位于 {state}")];
        for known in &self.shipments {
            let BranchShipment { uuid, site, asset_tag, began_at, .. } = &known.shipment;
            let state = known.shipment.state.words(lang);
            lines.push(say!(
                lang,
                "Shipment {uuid} of {site}, asset tag '{asset_tag}': {state}, begun {began_at}",
                "批次 {uuid}（{site}，资产编号“{asset_tag}”）：{state}，始于 {began_at}"
            ));
            if let Some(code) = &known.spoken_code {
                let checked =
                    known.verified_at.map_or_else(|| say!(lang, "not checked", "未校验"), |at| at.to_string());
                lines.push(say!(
                    lang,
                    "  seal {code}, {} in all; medium checked: {checked}",
                    "  封签 {code}，共 {} 个；介质校验：{checked}",
                    known.seals.len()
                ));
            }
        }
        for Volume { volume, import } in &self.volumes {
            let (name, place) =
                (format!("{}/{}/{}", volume.site_name, volume.machine, volume.disk_name), &volume.location);
            let phase = import.as_ref().map_or_else(|| "-".to_owned(), |i| format!("{:?}", i.phase).to_lowercase());
            lines.push(say!(lang, "Volume {place} of {name}: {phase}", "云卷 {place}（{name}）：{phase}"));
        }
        lines.join("\n")
    }
}

/// Lists what the ledger knows.
///
/// # Errors
/// It cannot be read.
pub fn show(context: &Context) -> Result<Shown> {
    let ledger = &context.ledger;
    let mut shipments = Vec::new();
    for shipment in ledger.shipments()? {
        let seals = ledger.seals(shipment.uuid)?;
        let last = seals.last().map(|seal| seal.digest);
        let verified = last.map(|digest| ledger.verified_since(shipment.uuid, digest)).transpose()?.flatten();
        shipments.push(Known {
            spoken_code: last.as_ref().map(spoken_code),
            verified_at: verified.map(|v| v.at),
            shipment,
            seals,
        });
    }
    let mut volumes = Vec::new();
    for volume in ledger.volumes()? {
        volumes.push(Volume { import: ledger.last_import(volume.disk)?, volume });
    }
    Ok(Shown { ledger: ledger.uuid(), state: ledger.state().to_owned(), shipments, volumes })
}

/// Which half of a move.
#[derive(Debug, Clone)]
pub enum Options {
    /// At the old host: write the package.
    Export {
        /// Which shipment.
        shipment: Uuid,
        /// A directory that does not exist yet, or that an interrupted export left.
        package: PathBuf,
    },
    /// At the new host: take it over.
    Import {
        /// Where the array is mounted.
        array: PathBuf,
        /// The package.
        package: PathBuf,
        /// The package's code, as the export printed it.
        code: Option<String>,
    },
}

/// A value of SQLite in JSON; a blob is an object, so that it cannot be taken for text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Cell {
    Null(()),
    Integer(i64),
    Text(String),
    Blob { hex: String },
}

/// `move.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    format: u32,
    shipment: Uuid,
    /// The ledger that it comes from.
    ledger: Uuid,
    host: String,
    exported_at: Timestamp,
    /// BLAKE3 of `manifest.db` beside it.
    manifest: Digest,
    /// Rows by table: column → value.
    rows: BTreeMap<String, Vec<BTreeMap<String, Cell>>>,
}

/// What was moved.
#[derive(Debug, Clone, Serialize)]
pub struct Moved {
    /// Which shipment.
    pub shipment: Uuid,
    /// `export` or `import`.
    pub half: &'static str,
    /// The package.
    pub package: PathBuf,
    /// What the new host has to type: it names this package and no other. None before it is written.
    pub package_code: Option<String>,
    /// Bytes of the manifest.
    pub manifest_bytes: u64,
    /// Nothing was written.
    pub dry_run: bool,
}

impl Outcome for Moved {
    fn summary(&self, lang: Lang) -> String {
        let (uuid, package) = (self.shipment, self.package.display());
        let code = self.package_code.as_deref().unwrap_or_default();
        match (self.dry_run, self.half) {
            (true, _) => {
                say!(lang, "Would move shipment {uuid} by package {package}", "将通过 {package} 移交批次 {uuid}")
            }
            (false, "export") => say!(
                lang,
                "Shipment {uuid} left this ledger: {package}\nPackage code {code}: tell it to the other host on paper or by telephone, never with the package\n\
                 At the other host: motiongear ledger move --array ARRAY --import PACKAGE --package-code {code}",
                "批次 {uuid} 已离开本台账：{package}\n移交口令码 {code}：请以纸面或电话告知另一主机，勿与移交包同行\n\
                 在另一主机上执行：motiongear ledger move --array ARRAY --import PACKAGE --package-code {code}"
            ),
            (false, _) => say!(
                lang,
                "This ledger holds shipment {uuid} now. Delete {package}; go on here with seed or seal",
                "本台账现已持有批次 {uuid}。请删除 {package}，并在此继续 seed 或 seal"
            ),
        }
    }
}

/// Does one half.
///
/// # Errors
/// The shipment is not here, is here already, was dispatched or moved, or the package does not fit the array.
pub fn run(context: &Context, options: Options) -> Result<Moved> {
    match options {
        Options::Export { shipment, package } => export(context, shipment, package),
        Options::Import { array, package, code } => import(context, &Array::new(&array), package, code),
    }
}

fn unknown(shipment: Uuid) -> Error {
    Error::failed(format!("Shipment {shipment}: expected one of this host's ledger, found none"))
        .next("'motiongear ledger show' lists what is here; --state DIR names another ledger")
}

/// Keeps seed and seal away while the manifest is copied.
fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).context(|| format!("State directory {}", dir.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
        Error::io(format!("Ledger of shipment {}: it is in use", dir.display()), errno.into())
            .next("wait for the running seed or seal, or stop it: 'motiongear status' shows it")
    })?;
    Ok(file)
}

fn export(context: &Context, shipment: Uuid, package: PathBuf) -> Result<Moved> {
    let ledger = &context.ledger;
    let known = ledger.shipment(shipment)?.ok_or_else(|| unknown(shipment))?;
    let dir = ledger.shipment_dir(shipment);
    let live = dir.join("manifest.db");
    let _lock = lock(&dir)?;
    // Where the array is here, it is asked, too: a ledger that was set back must not be handed on.
    // The ledger remembers the array's own folder.
    let array = Array::new(Path::new(&known.array).parent().unwrap_or(Path::new("/")));
    if array.read_shipment().is_ok_and(|found| found.shipment == shipment) {
        outrank::expect_known(&array, ledger, shipment)?;
    }
    // A second export is the first one's resumption; its package is the same, for nothing is written here any more.
    let again = known.state == ShipmentState::Moved && package.join("move.json").exists();
    if known.state != ShipmentState::Seeding && !again {
        return Err(Error::failed(format!(
            "Shipment {shipment}: expected one that is being seeded here, found one that is {}",
            format!("{:?}", known.state).to_lowercase()
        ))
        .next("only an unsealed shipment is held by one ledger and can be moved, once"));
    }
    context.refuse_on(array.mount(), "Directory --export", &package)?;
    let bytes = std::fs::metadata(&live).context(|| format!("Manifest {}", live.display()))?.len();
    let mut moved = Moved {
        shipment,
        half: "export",
        package: package.clone(),
        package_code: None,
        manifest_bytes: bytes,
        dry_run: context.dry_run,
    };
    if again {
        moved.package_code = Some(package_code(&Tree::open(&package)?.read("move.json", MAX_PACKAGE_BYTES)?));
    }
    if context.dry_run || again {
        return Ok(moved);
    }
    // Names, sizes and leaves of a bank's disks: for nobody else on the way.
    create_dirs_durably(&package, 0o700)?;
    std::fs::set_permissions(&package, Permissions::from_mode(0o700))
        .context(|| format!("Package {}", package.display()))?;
    Catalogue::open_live(&live)?.finalise()?;
    let (own, out) = (Tree::open(&dir)?, Tree::open(&package)?);
    let manifest = copy(&own, &out, "manifest.db")?;
    let document = Package {
        format: motiongear_manifest::FORMAT,
        shipment,
        ledger: ledger.uuid(),
        host: crate::report::host_name(context),
        exported_at: now()?,
        manifest,
        rows: read_rows(ledger, shipment)?,
    };
    for name in ["seal.json", "seal.json.sig"] {
        if own.find(name)?.is_some() {
            copy(&own, &out, name)?;
        }
    }
    let json = serde_json::to_vec_pretty(&document).map_err(|e| Error::failed("move.json").because(e))?;
    out.write("move.json", &json)?;
    ledger.set_shipment_state(shipment, ShipmentState::Moved)?;
    moved.package_code = Some(package_code(&json));
    Ok(moved)
}

/// The code of a package: of `move.json`, which has the digest of the manifest beside it.
fn package_code(json: &[u8]) -> String {
    spoken_code(&Digest::of(json))
}

/// Refuses a package that is not the one whose code the old host told: it has no other proof of where it comes from.
fn check_code(context: &Context, package: &Path, json: &[u8], code: Option<String>) -> Result<()> {
    let missing = || {
        Error::usage(format!("Package {}: not confirmed", package.display()))
            .next("pass --package-code with the code that 'ledger move --export' printed at the old host")
    };
    let typed = match (code, &context.ask_code) {
        (Some(code), _) => code,
        (None, Some(ask)) => ask("Type the package code that the old host printed: ").unwrap_or_default(),
        (None, None) => return Err(missing()),
    };
    if typed.trim().is_empty() {
        return Err(missing());
    }
    if !names_seal(&typed, &Digest::of(json)) {
        return Err(Error::untrusted(format!(
            "Package {}: it is not the one that the package code names",
            package.display()
        ))
        .next(
            "compare the code with the old host; if it is typed right, somebody exchanged the package: do not use it",
        ));
    }
    Ok(())
}

/// Copies a file durably, from one folder to another; gives its BLAKE3.
fn copy(from: &Tree, to: &Tree, name: &str) -> Result<Digest> {
    let what = || format!("File {}", to.full(name).display());
    let mut reader = SummedReader::new(from.open_file(name)?, u64::MAX);
    to.write_with(name, |file| std::io::copy(&mut reader, file).context(what))?;
    Ok(reader.finish().blake3)
}

fn import(context: &Context, array: &Array, package: PathBuf, code: Option<String>) -> Result<Moved> {
    let ledger = &context.ledger;
    let (path, folder) = (package.join("move.json"), Tree::open(&package)?);
    let json = folder.read("move.json", MAX_PACKAGE_BYTES)?;
    check_code(context, &package, &json, code)?;
    let document: Package = serde_json::from_slice(&json)
        .map_err(|e| Error::untrusted(format!("Package {}", path.display())).because(e))?;
    let shipment = document.shipment;
    if document.format != motiongear_manifest::FORMAT {
        return Err(Error::untrusted(format!("Package {}: format {} is not known", path.display(), document.format)));
    }
    let _alone = holder::Lock::alone(array)?;
    check_array(context, array, &document)?;
    let source = package.join("manifest.db");
    let bytes = folder.open_file("manifest.db")?.metadata().context(|| format!("Manifest {}", source.display()))?.len();
    let moved = Moved {
        shipment,
        half: "import",
        package: package.clone(),
        package_code: Some(package_code(&json)),
        manifest_bytes: bytes,
        dry_run: context.dry_run,
    };
    if context.dry_run {
        return Ok(moved);
    }
    let dir = ledger.shipment_dir(shipment);
    create_dirs_durably(&dir, 0o777)?;
    let _lock = lock(&dir)?;
    // The leftovers of a manifest that was here before would be taken for this one's log.
    for name in ["manifest.db-wal", "manifest.db-shm"] {
        match std::fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("State file {}", dir.join(name).display()), error));
            }
            _ => {}
        }
    }
    let own = Tree::open(&dir)?;
    let found = copy(&folder, &own, "manifest.db")?;
    if found != document.manifest {
        return Err(Error::failed(format!(
            "Manifest {}: expected BLAKE3 {}, found {found}",
            source.display(),
            document.manifest
        ))
        .next("the package was damaged on its way: copy it again from the old host"));
    }
    let row = Catalogue::open_live(&dir.join("manifest.db"))?.shipment()?;
    if row.uuid != shipment {
        return Err(Error::untrusted(format!(
            "Manifest in the package: expected shipment {shipment}, found {}",
            row.uuid
        )));
    }
    for name in ["seal.json", "seal.json.sig"] {
        if folder.find(name)?.is_some() {
            copy(&folder, &own, name)?;
        }
    }
    sync_dir(ledger.state().join("shipments").as_path())?;
    write_rows(ledger, &document)?;
    ledger.set_shipment_array(shipment, &array.root().display().to_string())?;
    let claim = Holder {
        format: motiongear_manifest::FORMAT,
        shipment,
        ledger: ledger.uuid(),
        host: crate::report::host_name(context),
        since: now()?,
    };
    array.tree()?.write(holder::FILE, &claim.to_bytes()?)?;
    Ok(moved)
}

/// The package must be of this array, the array must name the ledger that it comes from, and nobody may hold it twice.
fn check_array(context: &Context, array: &Array, package: &Package) -> Result<()> {
    let shipment = package.shipment;
    let document = package.rows.get("shipment").and_then(|rows| rows.first()).and_then(|row| row.get("document"));
    let expected = document.and_then(|cell| match cell {
        Cell::Blob { hex } => hex.parse::<Digest>().ok(),
        _ => None,
    });
    let (found, digest) = crate::trust::shipment_with_digest(array, expected.as_slice())?;
    if found.shipment != shipment || expected != Some(digest) {
        return Err(Error::untrusted(format!(
            "Array {}: expected shipment {shipment} as the package knows it, found {} (shipment.json {digest})",
            array.root().display(),
            found.shipment
        ))
        .next("attach the array that belongs to the package"));
    }
    let ledger = &context.ledger;
    match holder::read(array)? {
        Some(holder) if holder.ledger == ledger.uuid() && ledger.uuid() != package.ledger => {
            Err(Error::failed(format!("Shipment {shipment}: this ledger holds it already"))
                .next("nothing needs to be done: go on with seed or seal"))
        }
        Some(holder) if holder.ledger != package.ledger => Err(Error::failed(format!(
            "Array {}: expected it to be held by ledger {} of host {}, found ledger {} of host {}",
            array.root().display(),
            package.ledger,
            package.host,
            holder.ledger,
            holder.host
        ))
        .next("the package is older than the last move: export it again at the host that holds it")),
        Some(_) => expect_sealed_by(array, package),
        // The ledger knew the shipment, and the seed was cut short before it put its name on the array.
        None if !array.is_written()? && !array.is_sealed()? => Ok(()),
        // Without it nothing tells a fresh package from a stale one.
        None => Err(Error::failed(format!(
            "Array {}: expected holder.json to name ledger {} of host {}, found no holder: it is sealed",
            array.root().display(),
            package.ledger,
            package.host
        ))
        .next("a sealed shipment is not moved; 'motiongear ledger show' at the host that sealed it")),
    }
}

/// A seal that the package does not know was made after it: the package is older than the array.
fn expect_sealed_by(array: &Array, package: &Package) -> Result<()> {
    let rows = ["seal", "seal_note"].iter().flat_map(|table| package.rows.get(*table).into_iter().flatten());
    let known: Vec<Digest> = rows
        .filter_map(|row| match row.get("digest") {
            Some(Cell::Blob { hex }) => hex.parse().ok(),
            _ => None,
        })
        .collect();
    let found = if_there(array.tree()?.read("seal.json", MAX_SEAL_BYTES))?.map(|bytes| Digest::of(&bytes));
    match found.filter(|digest| !known.contains(digest)) {
        Some(digest) => Err(Error::failed(format!(
            "Array {}: it carries the seal {}, which the package does not know",
            array.root().display(),
            spoken_code(&digest)
        ))
        .next("the package is older than the array: go on at the host that sealed it")),
        None => Ok(()),
    }
}

fn columns(db: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    db.prepare(&format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid"))?
        .query_map([], |row| row.get(0))?
        .collect()
}

fn read_rows(ledger: &Ledger, shipment: Uuid) -> Result<BTreeMap<String, Vec<BTreeMap<String, Cell>>>> {
    let db = ledger.db();
    let read = || -> rusqlite::Result<_> {
        let mut tables = BTreeMap::new();
        for (table, key) in TABLES {
            let names = columns(&db, table)?;
            // Both names are literals of this file.
            let mut statement = db.prepare(&format!("SELECT * FROM {table} WHERE {key} = ? ORDER BY rowid"))?;
            let rows = statement.query_map([shipment.to_string()], |row| {
                let cell = |at| -> rusqlite::Result<Cell> {
                    Ok(match row.get::<_, Value>(at)? {
                        Value::Null => Cell::Null(()),
                        Value::Integer(number) => Cell::Integer(number),
                        Value::Real(number) => Cell::Text(number.to_string()),
                        Value::Text(text) => Cell::Text(text),
                        Value::Blob(bytes) => Cell::Blob { hex: bytes.iter().map(|b| format!("{b:02x}")).collect() },
                    })
                };
                names.iter().enumerate().map(|(at, name)| Ok((name.clone(), cell(at)?))).collect()
            })?;
            tables.insert(table.to_owned(), rows.collect::<rusqlite::Result<Vec<_>>>()?);
        }
        Ok(tables)
    };
    read().map_err(|e| ledger.sql(e))
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// One transaction: all rows of the shipment, instead of whatever was here of it.
fn write_rows(ledger: &Ledger, package: &Package) -> Result<()> {
    let odd = |what: String| Error::untrusted(format!("Package of shipment {}: {what}", package.shipment));
    let mut db = ledger.db();
    let mut inserts: Vec<(String, Vec<Value>)> = Vec::new();
    for (table, key) in TABLES {
        let names = columns(&db, table).map_err(|e| ledger.sql(e))?;
        let rows = package.rows.get(table).map(Vec::as_slice).unwrap_or_default();
        if rows.len() > MAX_ROWS || (table == "shipment" && rows.len() != 1) {
            return Err(odd(format!(
                "expected one shipment and at most {MAX_ROWS} rows, found {} in {table}",
                rows.len()
            )));
        }
        for row in rows {
            let same = matches!(row.get(key), Some(Cell::Text(uuid)) if *uuid == package.shipment.to_string());
            if !same || row.len() != names.len() {
                return Err(odd(format!("expected rows of this shipment with the columns of {table}, found others")));
            }
            let mut values = Vec::new();
            for name in &names {
                let cell =
                    row.get(name).ok_or_else(|| odd(format!("expected column {name} of {table}, found none")))?;
                values.push(match cell {
                    // Numbers of rows are each ledger's own.
                    _ if name == "id" => Value::Null,
                    Cell::Null(()) => Value::Null,
                    Cell::Integer(number) => Value::Integer(*number),
                    Cell::Text(text) => Value::Text(text.clone()),
                    Cell::Blob { hex } => Value::Blob(unhex(hex).ok_or_else(|| odd("expected hex digits".into()))?),
                });
            }
            let marks = vec!["?"; names.len()].join(", ");
            inserts.push((format!("INSERT INTO {table} VALUES ({marks})"), values));
        }
    }
    let mut write = || -> rusqlite::Result<()> {
        let tx = db.transaction()?;
        for (table, key) in TABLES.iter().rev() {
            tx.execute(&format!("DELETE FROM {table} WHERE {key} = ?"), [package.shipment.to_string()])?;
        }
        for (sql, values) in &inserts {
            tx.execute(sql, params_from_iter(values))?;
        }
        tx.commit()
    };
    write().map_err(|e| ledger.sql(e))
}
