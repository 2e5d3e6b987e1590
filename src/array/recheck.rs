//! What the array had confirmed is doubted before a seed goes on: a USB bridge that lies about its cache, a bad spot, a file
//! that is gone. A pack that is not sound any more is given up, and its blocks are copied again: at most 8 GiB a pack, where
//! starting over would cost days.
//!
//! Order of giving up, and what each wrong order would break:
//! 1. the file is removed and the directory synced: an array that has died answers with an error here, before the ledger
//!    forgets anything (else: a pulled cable would cost what is sound);
//! 2. the rows go, in one transaction. A crash between the two leaves rows of a pack that is not there, which the next run
//!    finds by its missing file and gives up again.

use super::Array;
use crate::context::now;
use crate::error::{Error, Result};
use crate::io::tree::Kind;
use crate::lang::Lang;
use crate::say;
use motiongear_manifest::catalogue::{Catalogue, Pack};
use motiongear_manifest::geometry::PAGE_BYTES;
use motiongear_manifest::record::{HEADER_BYTES, Header};
use motiongear_manifest::tree::Digest;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

/// How much of what was written last is read again before it is trusted after an interruption.
const DOUBTED_BYTES: u64 = 1 << 30;
/// More packs than this, and more than one in [`FAILING_SHARE`] of them, are no bad spot but a failing array.
const FAILING_PACKS: usize = 2;
const FAILING_SHARE: usize = 10;

/// What a look at the array found.
#[derive(Debug, Default)]
pub struct Doubt {
    /// Bytes of records that were read again.
    pub checked_bytes: u64,
    /// Packs that are not what was committed, and why.
    pub unsound: Vec<(Pack, Fault)>,
}

/// Why a pack is not what was committed.
#[derive(Debug)]
pub enum Fault {
    /// No such file.
    Gone,
    /// Fewer bytes than were committed.
    Short {
        /// What the manifest knows.
        committed: u64,
        /// What the file has.
        found: u64,
    },
    /// An earlier check of the sealed array said so.
    Reported,
    /// A record is not what was written.
    Record {
        /// Where it begins in the pack, bytes.
        at: u64,
        /// In the words of whoever looked.
        why: String,
    },
}

impl Fault {
    /// For people.
    pub fn say(&self, lang: Lang) -> String {
        match self {
            Fault::Gone => say!(lang, "it is gone", "文件已不存在"),
            Fault::Short { committed, found } => say!(
                lang,
                "expected at least {committed} bytes, found {found}",
                "应至少有 {committed} 字节，实为 {found} 字节"
            ),
            Fault::Reported => say!(
                lang,
                "the last check of the sealed array found it damaged",
                "上次对已封签移动存储的校验发现其已损坏"
            ),
            Fault::Record { at, why } => say!(lang, "record at byte {at}: {why}", "字节 {at} 处的记录：{why}"),
        }
    }
}

/// A pack that was given up.
#[derive(Debug)]
pub struct GivenUp {
    /// Its file, relative to `motiongear/`.
    pub file: String,
    /// Why.
    pub fault: Fault,
    /// How many blocks are copied again.
    pub blocks: u64,
}

impl GivenUp {
    /// For people.
    pub fn say(&self, lang: Lang) -> String {
        let GivenUp { file, fault, blocks } = self;
        let why = fault.say(lang);
        say!(
            lang,
            "{file}: {why}: the array lost data that it had confirmed; the pack was given up, and its {blocks} blocks are copied again",
            "{file}：{why}：移动存储丢失了已确认写入的数据；已放弃该数据包，其中 {blocks} 个块将重新复制"
        )
    }
}

/// Looks at every pack's length, and reads the last GiB of records again. `reported` are packs that an earlier check of the
/// sealed array found damaged, with their sealed digests.
///
/// # Errors
/// The array or the manifest cannot be read.
pub fn doubt(array: &Array, catalogue: &Catalogue, reported: &BTreeMap<String, Digest>) -> Result<Doubt> {
    let mut doubt = Doubt::default();
    let mut left = DOUBTED_BYTES;
    // From the last written to the first.
    for pack in catalogue.packs()?.into_iter().rev().filter(|pack| pack.records > 0) {
        let found = array.tree()?.find(Array::pack_file(pack.number))?;
        let found = found.filter(|found| found.kind == Kind::File).map(|found| found.bytes);
        let closed_as_reported = pack.blake3.is_some() && pack.blake3.as_ref() == reported.get(&pack.file);
        let fault = match found {
            None => Some(Fault::Gone),
            Some(found) if found < pack.bytes => Some(Fault::Short { committed: pack.bytes, found }),
            Some(_) if closed_as_reported => Some(Fault::Reported),
            Some(_) if left > 0 => {
                let from = pack.bytes.saturating_sub(left);
                let (checked, fault) = read_records(array, &pack, from)?;
                doubt.checked_bytes += checked;
                fault
            }
            Some(_) => None,
        };
        left = left.saturating_sub(pack.bytes);
        doubt.unsound.extend(fault.map(|fault| (pack, fault)));
    }
    Ok(doubt)
}

/// Reads the records from byte `from` on again: every header, every payload's checksum. Returns the bytes checked, and what is
/// wrong with the first bad one.
fn read_records(array: &Array, pack: &Pack, from: u64) -> Result<(u64, Option<Fault>)> {
    let file = array.tree()?.open_file(Array::pack_file(pack.number))?;
    // What the page cache holds proves nothing about the medium.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let (mut at, mut checked, mut payload) = (u64::from(PAGE_BYTES), 0, Vec::new());
    while at < pack.bytes {
        let mut head = [0; HEADER_BYTES];
        let fault = |why: String| Ok((checked, Some(Fault::Record { at, why })));
        if let Err(error) = file.read_exact_at(&mut head, at) {
            return fault(error.to_string());
        }
        let header = match Header::decode(&head) {
            Ok(header) => header,
            Err(error) => return fault(error.to_string()),
        };
        if at + header.record_bytes() > from {
            payload.resize(header.stored_bytes as usize, 0);
            if let Err(error) = file.read_exact_at(&mut payload, at + HEADER_BYTES as u64) {
                return fault(error.to_string());
            }
            let crc = crc32fast::hash(&payload);
            if crc != header.payload_crc {
                let (disk, block) = (header.id.disk, header.id.block);
                return fault(format!(
                    "expected payload CRC-32 {:08x}, found {crc:08x} (disk {disk}, block {block})",
                    header.payload_crc
                ));
            }
            checked += header.record_bytes();
        }
        at += header.record_bytes();
    }
    Ok((checked, None))
}

/// Gives up packs that are not sound: their files go, and their blocks count as not copied. Returns what was done.
///
/// # Errors
/// So many are unsound that the array itself is failing; or it, or the manifest, cannot be written.
pub fn give_up(array: &Array, catalogue: &mut Catalogue, unsound: Vec<(Pack, Fault)>) -> Result<Vec<GivenUp>> {
    let packs = catalogue.packs()?.len();
    if unsound.len() > FAILING_PACKS && unsound.len() * FAILING_SHARE > packs {
        let (pack, fault) = &unsound[0];
        let why = fault.say(Lang::En);
        return Err(Error::failed(format!(
            "Array {}: {} of {packs} packs are not what was written, first {}: {why}: the array lost data that it had confirmed",
            array.root().display(),
            unsound.len(),
            pack.file
        ))
        .next("do not trust this array: look at its cable and its disks; on another one, begin with init and seed"));
    }
    let mut done = Vec::new();
    for (pack, fault) in unsound {
        array.tree()?.remove(Array::pack_file(pack.number))?;
        let blocks = catalogue.forget_pack(pack.number)?;
        let given_up = GivenUp { file: pack.file, fault, blocks };
        catalogue.add_event(now()?, "given-up", None, None, &given_up.say(Lang::En))?;
        done.push(given_up);
    }
    Ok(done)
}
