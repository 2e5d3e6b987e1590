//! The packs without keys: two at a time, each read ahead and past the page cache.

use crate::array::Array;
use crate::copy::crew::start;
use crate::copy::fetch::Failure;
use crate::copy::patience::{Medium, Patient};
use crate::copy::throttle::Throttle;
use crate::error::{Error, Kind, Result};
use crate::io::tree::if_there;
use crate::io::{Access, Completion, Engine, Pool, open_queue};
use crate::monitor::Progress;
use motiongear_manifest::check::{Class, Finding, Opened, PackTotals, Severity};
use motiongear_manifest::documents::seal::SealedPack;
use motiongear_manifest::pack::{PackChecker, PackReport};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Packs that are read at the same time: hashing one keeps a core busy.
const AT_ONCE: usize = 2;
/// Bytes of one read.
const PIECE_BYTES: u64 = 4 << 20;
/// Reads under way in each pack.
const DEPTH: usize = 3;
const PAGE: usize = 4096;

/// What reading a pack gave.
enum Walked {
    /// Not there, or no regular file.
    Missing(String),
    /// It cannot be opened.
    Unopened(String),
    /// A link, or another special file.
    Untrusted(String),
    /// Read: length of the file, what the checker says, pages that could not be read (offset, why), whether past the page cache.
    Read { found: u64, report: PackReport, lost: Vec<(u64, String)>, direct: bool },
}

/// Walks every pack; findings go to `opened`, in the order of the seal. Also returns the packs that have any.
///
/// # Errors
/// Interrupted, or the engine fails.
pub(super) fn check(
    opened: &mut Opened,
    array: &Array,
    medium: &Medium,
    engine: Engine,
    throttle: &Throttle,
    progress: &Progress,
) -> Result<(PackTotals, Vec<SealedPack>)> {
    opened.find_extra_packs();
    let packs: Vec<SealedPack> = opened.seal.packs.clone();
    let next = AtomicUsize::new(0);
    let walked: Mutex<BTreeMap<usize, Walked>> = Mutex::default();
    let failure = Failure::default();
    let by = &*opened;
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(packs.len()) {
            let started = start(scope, || {
                while !failure.is_set() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(pack) = packs.get(at) else { break };
                    // Each has a number, or the seal would not have been read.
                    let Some(checker) = by.pack_checker(pack) else { continue };
                    match walk(array, medium, pack, checker, engine, throttle, progress) {
                        Ok(result) => drop(walked.lock().unwrap_or_else(PoisonError::into_inner).insert(at, result)),
                        Err(error) => failure.set(error),
                    }
                }
            });
            if let Err(error) = started {
                failure.set(error);
                break;
            }
        }
    });
    failure.take()?;
    let (mut bad, mut cached) = (Vec::new(), 0);
    let mut totals = PackTotals { sealed: opened.seal.packs.len() as u64, ..PackTotals::default() };
    for (at, result) in walked.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let pack = &packs[at];
        let before = opened.findings.errors();
        match result {
            Walked::Missing(found) => {
                let what = format!("the seal lists it, {} bytes on medium {}; found {found}", pack.bytes, pack.medium);
                opened.findings.error(Class::Missing, &pack.file, what);
            }
            // Nobody seals a link, and what it leads to may be anything.
            Walked::Untrusted(why) => opened.findings.error(Class::Untrusted, &pack.file, why),
            Walked::Unopened(why) => opened.findings.error(Class::Damaged, &pack.file, why),
            Walked::Read { found, report, lost, direct } => {
                cached += u64::from(!direct);
                totals.bytes += report.bytes;
                totals.records += report.records;
                for (offset, why) in lost {
                    let what = format!("cannot be read: {why}");
                    let mut finding = Finding::new(Severity::Error, Class::Damaged, &pack.file, what);
                    finding.offset = Some(offset);
                    opened.findings.push(finding);
                }
                opened.judge_pack(pack, found, report);
            }
        }
        match opened.findings.errors() == before {
            true => totals.good += 1,
            false => bad.push(pack.clone()),
        }
    }
    if cached > 0 {
        let said = "the file system takes no direct access, so what was read may have come from this host's memory; \
                    unmount the array, mount it again and verify before anything else reads it";
        opened.findings.note("packs", said);
    }
    Ok((totals, bad))
}

fn walk(
    array: &Array,
    medium: &Medium,
    pack: &SealedPack,
    mut checker: PackChecker,
    engine: Engine,
    throttle: &Throttle,
    progress: &Progress,
) -> Result<Walked> {
    let path = &array.file(&pack.file);
    let file = match if_there(array.tree().and_then(|tree| tree.open_direct(&pack.file, Access::Read))) {
        Ok(Some(file)) => Arc::new(file),
        Ok(None) => {
            array.still_answers()?;
            return Ok(Walked::Missing("none".into()));
        }
        Err(error) if error.kind == Kind::Untrusted => return Ok(Walked::Untrusted(error.message)),
        Err(error) => {
            array.still_answers()?;
            return Ok(Walked::Unopened(error.to_string()));
        }
    };
    let found = file.bytes()?;
    // Never more than was sealed: what stands behind is named by the length alone.
    let end = found.min(pack.bytes);
    let direct = file.is_direct();
    if !direct {
        file.forget_cached();
    }
    let patient =
        |depth| open_queue(engine, file.clone(), depth).map(|queue| Patient::new(queue, Some(medium.clone())));
    let mut queue = patient(DEPTH)?;
    let pool = Pool::new(PIECE_BYTES as usize, DEPTH)?;
    let mut lost = Vec::new();
    let (mut asked, mut taken) = (0u64, 0u64);
    // Pieces that came back before an earlier one.
    let mut early = BTreeMap::new();
    while taken < end {
        while asked < end
            && let Some(buffer) = pool.try_take()
        {
            let length = PIECE_BYTES.min(end - asked);
            throttle.admit(length)?;
            queue.read(asked, asked, buffer, length as usize);
            asked += length;
        }
        let Some(Completion { token, buffer: Some(buffer), result, .. }) = queue.wait()? else {
            return Err(Error::failed(format!("Pack {}: a read was lost", path.display())));
        };
        early.insert(token, (buffer, result));
        while let Some((mut buffer, result)) = early.remove(&taken) {
            let length = PIECE_BYTES.min(end - taken);
            if result.is_err() {
                // An array that was unplugged must not be taken for one that is damaged from here on.
                array.still_answers()?;
                buffer.set_len(length as usize);
                salvage(patient(1)?, path, taken, &mut buffer, &mut lost)?;
            }
            checker.update(&buffer);
            taken += length;
            progress.disks[0].done.fetch_add(length, Ordering::Relaxed);
            progress.disks[0].read.fetch_add(length, Ordering::Relaxed);
        }
    }
    Ok(Walked::Read { found, report: checker.finish(), lost, direct })
}

/// Reads page by page what could not be read at once, past the page cache as before; pages that the medium cannot give count as
/// zeros and are named.
fn salvage(
    mut queue: Patient,
    path: &Path,
    offset: u64,
    piece: &mut [u8],
    lost: &mut Vec<(u64, String)>,
) -> Result<()> {
    let pool = Pool::new(PAGE, 1)?;
    for (number, page) in piece.chunks_mut(PAGE).enumerate() {
        let at = offset + (number * PAGE) as u64;
        queue.read(at, at, pool.take(), page.len());
        let Some(Completion { buffer: Some(found), result, .. }) = queue.wait()? else {
            return Err(Error::failed(format!("Pack {}: a read was lost", path.display())));
        };
        match result {
            Ok(()) => page.copy_from_slice(&found),
            Err(error) => {
                page.fill(0);
                lost.push((at, error.to_string()));
            }
        }
    }
    Ok(())
}
