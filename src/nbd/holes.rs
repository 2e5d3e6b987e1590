//! Where an export holds data, as its server says.

use super::handshake::Export;
use super::wire::{Extent, wrong};
use std::io::Result;

/// How much is asked about at a time.
const ASK_BYTES: u64 = 1 << 30;

/// The last answer on holes.
#[derive(Default)]
pub struct Holes {
    /// Runs in order, each its end and whether it may hold data; the first begins at `from`.
    runs: Vec<(u64, bool)>,
    from: u64,
}

impl Holes {
    /// The first range at or behind `offset` that may hold data. `ask` is for the extents of so many bytes from an offset on.
    ///
    /// # Errors
    /// What `ask` returned; an answer that cannot be one.
    pub fn next_data(
        &mut self,
        export: &Export,
        offset: u64,
        mut ask: impl FnMut(u64, u64) -> Result<Vec<Extent>>,
    ) -> Result<Option<(u64, u64)>> {
        let (bytes, unit) = (export.bytes, u64::from(export.sizes.minimum));
        if export.contexts.is_empty() {
            return Ok((offset < bytes).then_some((offset, bytes)));
        }
        let mut at = offset - offset % unit;
        while at < bytes {
            if !self.knows(at) {
                self.learn(at, unit, &ask(at, ASK_BYTES.min(bytes - at))?)?;
            }
            match self.runs.iter().find(|(end, _)| at < *end) {
                Some((end, true)) => return Ok(Some((at.max(offset), *end))),
                Some((end, false)) => at = *end,
                None => return Err(wrong("an extent", "none")),
            }
        }
        Ok(None)
    }

    /// What was known is not so any more.
    pub fn forget(&mut self) {
        self.runs.clear();
    }

    fn knows(&self, at: u64) -> bool {
        self.from <= at && self.runs.last().is_some_and(|(end, _)| at < *end)
    }

    fn learn(&mut self, from: u64, unit: u64, extents: &[Extent]) -> Result<()> {
        self.runs.clear();
        self.from = from;
        let mut end = from;
        for extent in extents {
            end += extent.bytes;
            let data = extent.status & Extent::ZERO == 0;
            match self.runs.last_mut() {
                Some((last, same)) if *same == data => *last = end,
                _ => self.runs.push((end, data)),
            }
        }
        // What is asked next begins where this ends: in whole blocks, and further on.
        if end == from || !end.is_multiple_of(unit) {
            return Err(wrong("extents in whole blocks", format!("{} bytes of them", end - from)));
        }
        Ok(())
    }
}
