//! What a dirty bitmap of QEMU, exported with its disk, calls changed.

use super::wire::{Command, wrong};
use super::{Style, Uri, connect};
use crate::error::{Error, IoContext, Result};
use std::time::Duration;

/// How much is asked about at a time.
const ASK_BYTES: u64 = 1 << 30;
/// How long QEMU may think about one question.
const LIMIT: Duration = Duration::from_secs(120);
/// `NBD_STATE_DIRTY` of <https://www.qemu.org/docs/master/interop/nbd.html>.
const DIRTY: u64 = 1;

/// Tells `each` the ranges, offset and bytes, in order, that the bitmap called `name` has as dirty.
///
/// # Errors
/// The server does not know the bitmap; as [`connect`]; an answer that cannot be one.
pub fn dirty_ranges(uri: &Uri, name: &str, mut each: impl FnMut(u64, u64)) -> Result<()> {
    let context = format!("qemu:dirty-bitmap:{name}");
    let mut session = connect(uri, std::slice::from_ref(&context), Style::Extended)?;
    let export = session.export().clone();
    if !export.contexts.iter().any(|(known, _)| *known == context) {
        return Err(Error::failed(format!("NBD export {uri}: expected the bitmap {name}, found none")));
    }
    let what = || format!("NBD export {uri}: its bitmap {name}");
    let unit = u64::from(export.sizes.minimum);
    let mut at = 0;
    while at < export.bytes {
        let from = at;
        let answer =
            session.call(Command::BlockStatus, 0, at, ASK_BYTES.min(export.bytes - at), LIMIT).context(what)?;
        for extent in answer.status.into_iter().next().unwrap_or_default() {
            if extent.status & DIRTY != 0 {
                each(at, extent.bytes);
            }
            at += extent.bytes;
        }
        if at == from || (at < export.bytes && !at.is_multiple_of(unit)) {
            return Err(wrong("extents in whole blocks", format!("{} bytes of them", at - from))).context(what);
        }
    }
    Ok(())
}
