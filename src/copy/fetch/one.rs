//! One block at a time, in whatever order they are wanted, proven as all others.

use super::decode::{damage, prove};
use super::{Damage, Wanted};
use crate::array::Array;
use crate::copy::patience::{Medium, Patient};
use crate::error::{Error, Result};
use crate::io::{Access, Completion, Engine, Pool, open_queue};
use motiongear_manifest::catalogue::BlockRow;
use motiongear_manifest::pack::pack_file_name;
use motiongear_manifest::record::{Decoder, Keyring, max_record_bytes, record_bytes};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

/// Packs that are open at once.
const OPEN_PACKS: usize = 4;

/// Whose blocks: what [`super::Fetch`] is to many.
#[derive(Clone)]
pub struct Records {
    /// The array.
    pub array: Array,
    /// Whether it answers.
    pub medium: Medium,
    /// Whose records.
    pub shipment: Uuid,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Content keys; empty for a plaintext shipment.
    pub keys: Arc<Keyring>,
    /// Sealed length of each pack, bytes.
    pub packs: Arc<BTreeMap<u32, u64>>,
    /// How bytes move.
    pub engine: Engine,
}

/// Reads single blocks; for one thread.
pub struct One {
    records: Records,
    decoder: Decoder,
    stored: Pool,
    /// The pack that was wanted last comes last.
    open: VecDeque<(u32, Patient)>,
}

impl One {
    /// Of these records.
    ///
    /// # Errors
    /// There is no memory for a record.
    pub fn new(records: Records) -> Result<One> {
        let stored = Pool::new(max_record_bytes(records.block_bytes), 1)?;
        Ok(One { decoder: Decoder::new(records.keys.clone())?, stored, open: VecDeque::new(), records })
    }

    /// Puts the block of `row` into `block`, which has its length; or says why it could not be proven.
    ///
    /// # Errors
    /// The array does not answer any more, the job was stopped, or this host cannot read at all.
    pub fn block(&mut self, wanted: &Wanted, row: &BlockRow, block: &mut [u8]) -> Result<Result<(), Damage>> {
        let Some(place) = row.place else {
            return Err(Error::failed(format!("Disk {}: block {} has no record", wanted.name, row.block)));
        };
        let lost = |why: String| {
            let why = format!("{} offset {}: {why}", pack_file_name(place.pack), place.offset);
            Ok(Err(damage(wanted, row, Some(place), why)))
        };
        // Validated with the row: no overflow, and within the longest pack.
        let bytes = record_bytes(place.stored_bytes);
        match self.records.packs.get(&place.pack) {
            None => return lost("the seal names no such pack".into()),
            Some(sealed) if place.offset + bytes > *sealed => {
                return lost(format!("the pack is sealed with {sealed} bytes and ends before"));
            }
            Some(_) => {}
        }
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let Some(buffer) = self.stored.try_take().filter(|buffer| length <= buffer.capacity()) else {
            // Given up with a read that never came back.
            return Err(Error::failed("Reading of records: its buffer is gone"));
        };
        let queue = match self.pack(place.pack)? {
            Ok(queue) => queue,
            Err(why) => {
                self.records.array.still_answers()?;
                return lost(why);
            }
        };
        queue.read(0, place.offset, buffer, length);
        let Some(Completion { buffer: Some(mut record), result, .. }) = queue.wait()? else {
            return Err(Error::failed(format!("Reading of pack {}: a read was lost", place.pack)));
        };
        if let Err(error) = result {
            // The file may be open to what was pulled out; the next one opens it anew.
            self.open.clear();
            self.records.array.still_answers()?;
            return lost(format!("the pack cannot be read there: {error}"));
        }
        Ok(prove(self.records.shipment, wanted, row, place, &mut record, block, &mut self.decoder))
    }

    /// The open pack of this number, or why it cannot be opened.
    fn pack(&mut self, number: u32) -> Result<Result<&mut Patient, String>> {
        let open = match self.open.iter().position(|(open, _)| *open == number) {
            Some(at) => self.open.remove(at),
            None => {
                let array = self.records.array.clone();
                let file = self.records.medium.call(move || Ok(array.open_pack(number, Access::Read)))?;
                let file = match file {
                    Ok(file) => file,
                    Err(error) => return Ok(Err(error.to_string())),
                };
                let queue = open_queue(self.records.engine, Arc::new(file), 1)?;
                Some((number, Patient::new(queue, Some(self.records.medium.clone()))))
            }
        };
        if self.open.len() >= OPEN_PACKS {
            self.open.pop_front();
        }
        self.open.extend(open);
        self.open
            .back_mut()
            .map(|(_, queue)| Ok(queue))
            .ok_or_else(|| Error::failed("Reading of records: no pack is open"))
    }
}
