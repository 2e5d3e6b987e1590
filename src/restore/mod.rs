//! Restore: one disk of a shipment as a plain file or onto a device, proven like an import, without the ledger's volumes.
//!
//! A file is written under a temporary name beside its own and renamed when all of it is proven and flushed: a file of the
//! wanted name is a whole disk. An interrupted restore starts over. A device gets head and tail last, as in an import.

use crate::array::Array;
use crate::context::{Context, Outcome};
use crate::copy::fetch::{Damage, Fetch, Pick, Wanted, fetch, sealed_packs};
use crate::copy::patience::Medium;
use crate::copy::throttle::{Limits, Throttle};
use crate::copy::zeros::ZeroLeaves;
use crate::error::{Error, IoContext, Kind, Result};
use crate::io::{durable_rename, sync_dir};
use crate::job::Job;
use crate::lang::Lang;
use crate::monitor::{DiskProgress, MediumKind, Progress, Watch};
use crate::say;
use crate::source::{Identity, Origin};
use crate::trust::{self, Accepted, Expected};
use crate::units::size;
use crate::volume::ends::{Ends, fetch_ends};
use crate::volume::head::{release, withhold, zero_beyond};
use crate::volume::landing::{Checkpoint, Commit, Lane, land};
use crate::volume::local::identity_of;
use crate::volume::readback::{Counts, Mode, ReadBack};
use crate::volume::{self, Volume, refuse};
use jiff::Timestamp;
use motiongear_manifest::catalogue::Generation;
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::seal::SealedDisk;
use motiongear_manifest::documents::shipment::Suite;
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// Damaged blocks that are listed.
const MAX_LISTED: usize = 10_000;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the array is mounted.
    pub array: PathBuf,
    /// The machine's name.
    pub machine: String,
    /// The disk's name.
    pub disk: String,
    /// A file to make, an existing block device, or an export of an NBD server.
    pub target: Origin,
    /// OpenSSH allowed signers.
    pub trust: PathBuf,
    /// age identity; needed for an encrypted shipment.
    pub identity: Option<PathBuf>,
    /// By what the seal is known to be the one that left the branch.
    pub expected: Expected,
    /// When the signer's validity is judged; now unless set.
    pub verify_time: Option<Timestamp>,
    /// How much is read back.
    pub readback: Mode,
    /// Finish though the source had unreadable blocks.
    pub accept_unreadable: bool,
    /// Replace a file, or write over data on a device.
    pub overwrite: bool,
    /// Restore to a device whose sectors have another size than the source's.
    pub accept_sector_size: bool,
    /// Read-rate and CPU limits.
    pub limits: Limits,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The shipment's spoken seal code.
    pub code: String,
    /// NAME@SITE.
    pub signer: String,
    /// MACHINE/DISK.
    pub name: String,
    /// Where it is; with damage, the file keeps its temporary name.
    pub target: String,
    /// Only said what would be done.
    pub dry_run: bool,
    /// Whether head and tail are written: the target is whole.
    pub complete: bool,
    /// Size of the disk, bytes.
    pub bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// How much was read back.
    pub readback: Mode,
    /// What read-back found.
    #[serde(flatten)]
    pub counts: Counts,
    /// Read-back was answered by a cache of this host.
    pub through_cache: bool,
    /// What the seal says; the target's own, if it is complete and no block was trusted.
    pub digest: Digest,
    /// Blocks that were unreadable at the source.
    pub unreadable: u64,
    /// How many blocks are not on the target.
    pub damaged: u64,
    /// Which, the first 10000.
    pub damaged_blocks: Vec<Damage>,
    /// What people should know.
    pub notes: Vec<String>,
}

/// Runs the verb.
///
/// # Errors
/// Not trusted; no such disk; the target is in use, too small or holds data; interrupted.
pub fn run(context: &Context, options: Options) -> Result<Restored> {
    let array = Array::new(&options.array);
    let accepted = trust::accept(
        context,
        &array,
        &options.trust,
        options.identity.as_deref(),
        &options.expected,
        options.verify_time,
    )?;
    let (sealed, generation) = find(&accepted, &options)?;
    let geometry = Geometry::new(sealed.bytes, sealed.block_bytes)?;
    let target = Place::check(context, &options, &accepted, &array, &sealed)?;
    let restored = Restored {
        code: spoken_code(&accepted.seal_digest),
        signer: accepted.seal.signer.clone(),
        name: format!("{}/{}", sealed.machine, sealed.disk),
        target: options.target.to_string(),
        dry_run: context.dry_run,
        complete: false,
        bytes: sealed.bytes,
        written_bytes: 0,
        readback: options.readback,
        counts: Counts::default(),
        through_cache: false,
        digest: sealed.digest,
        unreadable: sealed.blocks.unreadable,
        damaged: 0,
        damaged_blocks: Vec::new(),
        notes: accepted.notes.clone(),
    };
    if context.dry_run {
        return Ok(restored);
    }
    let progress = Progress::new("restore", vec![DiskProgress::new(restored.name.clone(), sealed.bytes)]);
    let throttle = Throttle::new(options.limits.clone());
    let _job =
        Job::start(context.ledger.state(), "restore", options.target.to_string(), throttle.clone(), progress.clone())?;
    let _watch = context.monitor.watch(progress.clone());
    let _notes = Watch::notes(throttle.clone(), context.monitor.clone());
    let zeros = ZeroLeaves::open(context.ledger.state(), accepted.shipment.block_bytes)?;
    let medium = |kind, name: String| Medium::new(kind, &name, &throttle, &progress);
    let fetch = Fetch {
        array: &array,
        medium: medium(MediumKind::Array, options.array.display().to_string()),
        shipment: accepted.seal.shipment,
        block_bytes: accepted.shipment.block_bytes,
        encrypted: accepted.shipment.suite != Suite::Plaintext,
        keys: accepted.keys.clone(),
        packs: sealed_packs(&accepted.seal),
        engine: context.engine,
        throttle: &throttle,
        progress: &progress,
        zeros: &zeros,
    };
    let wanted = Wanted { slot: 0, name: restored.name.clone(), generation, geometry, pick: Pick::From(0) };
    let target_medium = medium(MediumKind::Volume, options.target.to_string());
    let restore = Restore {
        context,
        options: &options,
        accepted: &accepted,
        fetch: &fetch,
        wanted: &wanted,
        sealed: &sealed,
        medium: target_medium,
    };
    restore.all(target, restored)
}

fn find(accepted: &Accepted, options: &Options) -> Result<(SealedDisk, Generation)> {
    let Options { machine, disk, .. } = options;
    let found = accepted.seal.disks.iter().find(|sealed| sealed.machine == *machine && sealed.disk == *disk);
    let Some(sealed) = found else {
        let names: Vec<String> =
            accepted.seal.disks.iter().map(|d| format!("{}/{}", d.machine, d.disk)).take(50).collect();
        return Err(Error::usage(format!(
            "Disk {machine}/{disk}: expected one of shipment {}, found no such disk; it holds {}",
            accepted.seal.shipment,
            names.join(", ")
        )));
    };
    let generation = accepted.catalogue.generations()?;
    let generation = generation.into_iter().find(|g| g.disk == sealed.id && g.number == sealed.generation);
    let lack = || Error::untrusted(format!("Manifest: expected the sealed generation of {machine}/{disk}, found none"));
    Ok((sealed.clone(), generation.ok_or_else(lack)?))
}

/// Where to restore to, checked and not yet touched.
enum Place {
    /// A device or export.
    Volume(volume::Place),
    /// The file, and its temporary name.
    File(PathBuf, PathBuf),
}

impl Place {
    fn check(
        context: &Context,
        options: &Options,
        accepted: &Accepted,
        array: &Array,
        sealed: &SealedDisk,
    ) -> Result<Place> {
        let path = match &options.target {
            Origin::Nbd(uri) => {
                return Place::volume(context, options, accepted, sealed, volume::Place::Export(uri.clone()));
            }
            Origin::Image(image) => {
                return Err(Error::usage(format!(
                    "Target {image}: expected a file, device or NBD export, found an image"
                ))
                .next("export the image by qemu-nbd, and give its URI"));
            }
            Origin::Ssh(place) => {
                return Err(Error::usage(format!(
                    "Target {place}: expected a file, device or NBD export, found a place behind ssh"
                ))
                .next("nothing is ever written over ssh: restore to a file here, or into an NBD export there"));
            }
            origin @ (Origin::Machine(_) | Origin::Domain(_)) => {
                return Err(Error::usage(format!(
                    "Target {origin}: expected a file, device or NBD export, found a disk of a running machine"
                ))
                .next("no machine may run on what is written to: name another target"));
            }
            Origin::Rbd(image) => {
                return Err(Error::usage(format!(
                    "Target {image}: expected a file, device or NBD export, found a Ceph image"
                ))
                .next("import makes volumes in Ceph: motiongear import --to rbd:POOL; or export the image by qemu-nbd, and give its URI"));
            }
            Origin::Vddk(disk) => {
                return Err(Error::usage(format!(
                    "Target {disk}: expected a file, device or NBD export, found a disk under VMware"
                ))
                .next("nothing is ever written there: restore to a file here, or into an NBD export"));
            }
            Origin::Path(path) => path,
        };
        context.refuse_on(array.mount(), "Target", path)?;
        let meta = match std::fs::metadata(path) {
            Ok(meta) => Some(meta),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(format!("Target {}", path.display()), error)),
        };
        if let Some(meta) = &meta {
            refuse::in_use(path, &context.sys)?;
            if meta.file_type().is_block_device() {
                return Place::volume(context, options, accepted, sealed, volume::Place::Device(path.clone()));
            }
            no_volume(context, path.display(), &identity_of(path, &context.sys)?)?;
            if !meta.is_file() || !options.overwrite {
                let found = if meta.is_file() { "one already" } else { "something else of that name" };
                return Err(Error::failed(format!("Target {}: expected no such file, found {found}", path.display()))
                    .next("name another file; --overwrite replaces a file"));
            }
        }
        let Some(name) = path.file_name() else {
            return Err(Error::usage(format!("Target {}: expected the name of a file or device", path.display())));
        };
        let mut partial = name.to_owned();
        partial.push(".motiongear-partial");
        space(path, sealed)?;
        Ok(Place::File(path.clone(), path.with_file_name(partial)))
    }

    fn volume(
        context: &Context,
        options: &Options,
        accepted: &Accepted,
        sealed: &SealedDisk,
        place: volume::Place,
    ) -> Result<Place> {
        if let (Some(path), false) = (place.path(), options.accept_sector_size) {
            let disks = accepted.catalogue.disks()?;
            let facts = disks.iter().find(|disk| disk.number == sealed.id).map_or("", |disk| &disk.facts);
            refuse::other_sectors(path, facts, &format!("{}/{}", sealed.machine, sealed.disk), &context.sys)?;
        }
        let volume = place.open(None)?;
        no_volume(context, &place, &volume.identity(&context.sys)?)?;
        if volume.bytes() < sealed.bytes {
            let (needed, found) = (sealed.bytes, volume.bytes());
            return Err(Error::failed(format!("Target {place}: expected at least {needed} bytes, found {found}")));
        }
        if !options.overwrite
            && let Some(what) = refuse::find_data(&*volume, context.engine)?
        {
            return Err(Error::failed(format!("Target {place}: expected an empty one, found data: {what}"))
                .next("name another; --overwrite destroys what is on this one"));
        }
        Ok(Place::Volume(place))
    }
}

/// Refuses the volume of an import.
fn no_volume(context: &Context, place: impl Display, identity: &Identity) -> Result<()> {
    for row in context.ledger.volumes()? {
        let known = serde_json::from_str::<Option<Identity>>(&row.identity).ok().flatten();
        if known.is_some_and(|known| known.same_disk(identity).is_ok()) {
            return Err(Error::failed(format!(
                "Target {place}: expected no volume of an import, found that of {}/{} of site {}",
                row.machine, row.disk_name, row.site_name
            ))
            .next("a volume belongs to one disk for ever; restore to another place"));
        }
    }
    Ok(())
}

/// Refuses to go on in a file that somebody else may have open or open again: it is going to hold the disk in the clear.
fn expect_own(what: &dyn Fn() -> String, meta: &Metadata) -> Result<()> {
    let own = meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw();
    if own && meta.mode() & 0o077 == 0 && meta.nlink() == 1 {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{}: not left by a restore of this user (uid {}, mode {:04o})",
        what(),
        meta.uid(),
        meta.mode() & 0o7777
    ))
    .next("remove it, or restore into a directory where only this user can write"))
}

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn space(path: &Path, sealed: &SealedDisk) -> Result<()> {
    let dir = dir_of(path);
    let stat = rustix::fs::statvfs(dir).context(|| format!("Directory {}", dir.display()))?;
    let blocks = sealed.blocks.stored + sealed.blocks.unreadable;
    let need = (blocks * u64::from(sealed.block_bytes)).min(sealed.bytes);
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < need {
        let (need, free) = (size(need), size(free));
        return Err(
            Error::failed(format!("Target {}: expected {need} free, found {free}", path.display())).next("make room")
        );
    }
    Ok(())
}

struct Restore<'a> {
    context: &'a Context,
    options: &'a Options,
    accepted: &'a Accepted,
    fetch: &'a Fetch<'a>,
    wanted: &'a Wanted,
    sealed: &'a SealedDisk,
    /// The target, as far as it answers.
    medium: Medium,
}

/// Damage is only collected; a restore that was cut short starts over.
#[derive(Default)]
struct Collected {
    count: u64,
    list: Vec<Damage>,
    blocks: BTreeSet<u64>,
}

impl Collected {
    fn add(&mut self, damaged: impl IntoIterator<Item = Damage>) {
        for damage in damaged {
            self.count += u64::from(self.blocks.insert(damage.block));
            if self.list.len() < MAX_LISTED {
                self.list.push(damage);
            }
        }
    }
}

struct Collector(Mutex<Collected>);

impl Checkpoint for Collector {
    fn commit(&self, commits: &[Commit]) -> Result<()> {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        commits.iter().for_each(|commit| collected.add(commit.damaged.iter().cloned()));
        Ok(())
    }
}

/// What lies below a restore knows imports only, which resume.
fn starts_over(place: &Place, error: Error) -> Error {
    match (error.kind, place) {
        (Kind::Failed, Place::Volume(_)) => {
            error.next("mend that, then run the same command with --overwrite: it starts over")
        }
        (Kind::Failed, Place::File(..)) => error.next("mend that, then run the same command again: it starts over"),
        _ => error,
    }
}

impl Restore<'_> {
    fn all(&self, place: Place, mut restored: Restored) -> Result<Restored> {
        let (at, known_zero) = match &place {
            Place::Volume(at) => (at.clone(), false),
            Place::File(_, partial) => {
                self.make(partial)?;
                (volume::Place::File(partial.clone()), true)
            }
        };
        let volume = at.open(Some(self.medium.clone()))?;
        let geometry = self.wanted.geometry;
        withhold(&*volume, &geometry)?;
        if !known_zero {
            zero_beyond(&*volume, &geometry, &|| self.fetch.throttle.check())?;
        }
        let lane = Lane {
            slot: 0,
            name: self.wanted.name.clone(),
            volume: volume.clone(),
            geometry,
            from: 0,
            known_zero,
            single: false,
            written: Arc::default(),
        };
        let written = lane.written.clone();
        let collector = Collector(Mutex::default());
        let catalogue = &self.accepted.catalogue;
        let wanted = std::slice::from_ref(self.wanted);
        let progress = self.fetch.progress;
        land(&[lane], self.context.engine, &collector, progress, |sink| fetch(self.fetch, catalogue, wanted, sink))
            .map_err(|error| starts_over(&place, error))?;
        restored.written_bytes = written.load(Ordering::Relaxed);
        let mut collected = collector.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        progress.begin("read-back");
        let absent = collected.blocks.clone();
        let pass = ReadBack {
            volume: &*volume,
            wanted: self.wanted,
            catalogue,
            encrypted: self.fetch.encrypted,
            mode: self.options.readback,
            absent: &absent,
            engine: self.context.engine,
            throttle: self.fetch.throttle,
            zeros: self.fetch.zeros,
            progress,
        };
        let mut add = |_: u64, _: &Counts, differing| {
            collected.add(differing);
            Ok(())
        };
        restored.counts = pass.run(Counts::default(), None, &mut add).map_err(|error| starts_over(&place, error))?;
        progress.begin("release");
        self.finish(&place, &volume, &mut restored, &mut collected)?;
        restored.through_cache = volume.through_cache();
        (restored.damaged, restored.damaged_blocks) = (collected.count, collected.list);
        Ok(restored)
    }

    /// Makes the temporary file, empty. Its lock is let go, and taken again by the volume: of two restores into one file one is refused there.
    fn make(&self, partial: &Path) -> Result<()> {
        let what = || format!("Temporary file {}", partial.display());
        if let Ok(meta) = std::fs::symlink_metadata(partial)
            && !meta.is_file()
        {
            return Err(Error::failed(format!("{}: expected a file or nothing, found something else", what())));
        }
        let mut options = File::options();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = match options.clone().create_new(true).open(partial) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let file = options.open(partial).context(what)?;
                expect_own(&what, &file.metadata().context(what)?)?;
                file
            }
            outcome => outcome.context(what)?,
        };
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::failed(format!("{}: expected no other restore into it, found one running", what())));
            }
            Err(errno) => return Err(errno).context(what),
        }
        // What an interrupted restore left is worth nothing without a ledger.
        file.set_len(0).context(what)?;
        file.set_len(self.sealed.bytes).context(what)?;
        sync_dir(dir_of(partial))
    }

    fn finish(
        &self,
        place: &Place,
        volume: &Arc<dyn Volume>,
        restored: &mut Restored,
        collected: &mut Collected,
    ) -> Result<()> {
        let geometry = self.wanted.geometry;
        let unreadable = self.sealed.blocks.unreadable > 0 && !self.options.accept_unreadable;
        if collected.count == 0 && !unreadable {
            if geometry.is_empty() {
                restored.complete = self.sealed.digest == Digest::of(&[]);
            } else {
                match fetch_ends(self.fetch, &self.accepted.catalogue, self.wanted)? {
                    Ends::Damaged(damaged) => collected.add(damaged),
                    Ends::Proven { first, last } => {
                        if geometry.blocks() == 1 && Digest::of(&first) != self.sealed.digest {
                            return Err(Error::untrusted(format!(
                                "Disk {}: expected digest {}, found {}",
                                self.wanted.name,
                                self.sealed.digest,
                                Digest::of(&first)
                            )));
                        }
                        release(&**volume, &geometry, self.context.engine, &first, last.as_deref())?;
                        restored.counts.re_read += if last.is_some() { 2 } else { 1 };
                        restored.written_bytes += (first.len() + last.map_or(0, |last| last.len())) as u64;
                        restored.complete = true;
                    }
                }
            }
        }
        match place {
            Place::File(path, partial) if restored.complete => durable_rename(partial, path)?,
            Place::File(_, partial) => restored.target = partial.display().to_string(),
            // Flushed with every step.
            Place::Volume(_) => volume.flush()?,
        }
        Ok(())
    }
}

impl Outcome for Restored {
    fn summary(&self, lang: Lang) -> String {
        let (name, bytes, target, code, signer) =
            (&self.name, size(self.bytes), &self.target, &self.code, &self.signer);
        let mut lines: Vec<String> = self.notes.iter().map(|note| say!(lang, "Note: {note}", "注意：{note}")).collect();
        if self.dry_run {
            lines.push(say!(
                lang,
                "Nothing was written. Would restore {name} ({bytes}) to {target}",
                "未写入任何内容。将把 {name}（{bytes}）恢复到 {target}"
            ));
            return lines.join("\n");
        }
        if self.complete {
            let (digest, Counts { re_read, holes, trusted }) = (self.digest, self.counts);
            lines.push(say!(
                lang,
                "{name} ({bytes}) restored to {target}; seal {code}, signed by {signer}",
                "{name}（{bytes}）已恢复到 {target}；核对码 {code}，签名人 {signer}"
            ));
            lines.push(say!(
                lang,
                "  digest {digest}; blocks re-read {re_read} (holes {holes}), trusted {trusted}",
                "  摘要 {digest}；回读块数 {re_read}（其中空洞 {holes}），未回读（信任）块数 {trusted}"
            ));
        } else {
            let (damaged, unreadable) = (self.damaged, self.unreadable);
            lines.push(say!(
                lang,
                "{name}: {damaged} damaged blocks, {unreadable} unreadable at the source; what there is lies in {target}, its head is withheld",
                "{name}：{damaged} 个块损坏，源端 {unreadable} 个块无法读取；现有内容在 {target}，卷首已扣留"
            ));
            if damaged == 0 {
                lines.push(say!(lang, "  --accept-unreadable finishes it", "  使用 --accept-unreadable 可完成"));
            }
            for damage in self.damaged_blocks.iter().take(20) {
                let (block, offset, why) = (damage.block, damage.offset, &damage.why);
                lines.push(say!(lang, "  block {block} at byte {offset}: {why}", "  块 {block}，字节 {offset}：{why}"));
            }
        }
        if self.through_cache {
            lines.push(say!(lang, "  read back through a cache", "  回读经过缓存"));
        }
        lines.join("\n")
    }

    fn incomplete(&self) -> bool {
        !self.dry_run && (!self.complete || self.unreadable > 0)
    }
}
