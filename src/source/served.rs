//! A disk that another machine of ours offers by `motiongear serve`: what that machine says of it. Both sides know each other by their
//! pins, so it is believed in what the disk is, as this host's own kernel would be.
//!
//! It travels in small exports of a namespace of our own, which other clients never see: `motiongear:facts/NAME` is a JSON
//! document, `motiongear:leaves/BLOCKBYTES/NAME` the leaves of the disk's blocks, 32 bytes each, made when they are read.

use super::{Facts, Identity, Stillness};
use crate::error::{Error, IoContext, Result};
use crate::io::{BlockIo, Completion, Pool, Waited};
use crate::nbd::{NbdQueue, Style, Uri, connect};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the names of all these exports begin with.
pub const OURS: &str = "motiongear:";
/// The longest document, bytes.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// How long a document may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Told {
    /// What makes it this disk; its machine is never missing.
    pub identity: Identity,
    /// What was found out about it.
    pub facts: Facts,
    /// The machine's inventory, as `inspect` has it.
    pub host: serde_json::Value,
    /// Whether it is written to, as that machine sees at the moment when it is asked; none where it cannot see that.
    #[serde(default)]
    pub stillness: Option<Stillness>,
}

/// The export with the document on disk `name`.
pub fn facts_of(name: &str) -> String {
    format!("{OURS}facts/{name}")
}

/// The export with the leaves of disk `name`.
pub fn leaves_of(name: &str, block_bytes: u32) -> String {
    format!("{OURS}leaves/{block_bytes}/{name}")
}

/// Asks for what there is to know of the disk at `uri`, which names a pin. `bytes` is its size as the export has it.
///
/// # Errors
/// It cannot be had, is no such document, or is of another disk.
pub fn ask(uri: &Uri, bytes: u64) -> Result<Told> {
    let uri = uri.with_export(&facts_of(&uri.export));
    let session = connect(&uri, &[], Style::Simple)?;
    let (wrong, len) = (
        |found: String| Error::failed(format!("NBD export {uri}: expected what a disk is, found {found}")),
        session.export().bytes,
    );
    if len == 0 || len > MAX_DOCUMENT_BYTES {
        return Err(wrong(format!("{len} bytes")));
    }
    let text = read(NbdQueue::new(vec![session], 1), len).context(|| format!("NBD export {uri}"))?;
    let told: Told = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    if told.identity.bytes != bytes {
        return Err(wrong(format!("one of {} bytes, and not {bytes}", told.identity.bytes)));
    }
    if told.identity.machine.as_ref().is_none_or(|machine| machine.is_empty()) {
        return Err(wrong("no machine".into()));
    }
    Ok(told)
}

/// Reads all of something small.
fn read(mut queue: NbdQueue, len: u64) -> std::io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(std::io::Error::other)?;
    let pool = Pool::new(len, 1).map_err(std::io::Error::other)?;
    queue.read(0, 0, pool.take(), len);
    match queue.wait_for(LIMIT) {
        Waited::Done(Completion { buffer: Some(buffer), result, .. }) => result.map(|()| buffer.to_vec()),
        _ => Err(std::io::ErrorKind::TimedOut.into()),
    }
}
