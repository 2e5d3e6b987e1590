//! The workers: from stored bytes to a proven block.

use super::{Damage, Failure, Fetch, Sink, Wanted};
use crate::error::{Error, Result};
use crate::io::{Buffer, Pool};
use crossbeam_channel::Receiver;
use motiongear_manifest::catalogue::{BlockRow, Place};
use motiongear_manifest::check::{Class, class_of};
use motiongear_manifest::pack::pack_file_name;
use motiongear_manifest::record::{Decoder, Expected, RecordId, record_bytes};
use motiongear_manifest::tree::leaf;
use uuid::Uuid;

/// A record within a read: index of its disk among the wanted ones, its row, its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub disk: usize,
    pub row: BlockRow,
    pub place: Place,
}

/// Work for one worker.
pub(super) enum Task {
    /// Rows of one disk without record.
    Zeros { disk: usize, rows: Vec<BlockRow> },
    /// Bytes of a pack from `start` on, and the records in them.
    Run { start: u64, bytes: Buffer, pieces: Vec<Piece> },
}

/// Says what is wrong with a block.
pub(super) fn damage(wanted: &Wanted, row: &BlockRow, place: Option<Place>, why: String) -> Damage {
    Damage {
        block: row.block,
        offset: wanted.geometry.offset(row.block),
        bytes: wanted.geometry.len(row.block),
        file: place.map(|place| format!("packs/{}", pack_file_name(place.pack))),
        file_offset: place.map(|place| place.offset),
        why,
        untrusted: false,
    }
}

/// One worker's life. After a failure it only empties the channel, so that nobody waits for a buffer in it.
pub(super) fn work(
    job: &Fetch<'_>,
    wanted: &[Wanted],
    sink: &dyn Sink,
    tasks: &Receiver<Task>,
    plain: &Pool,
    failure: &Failure,
) {
    let mut decoder = None;
    for task in tasks {
        if failure.is_set() {
            continue;
        }
        if let Err(error) = serve(job, wanted, sink, task, plain, &mut decoder) {
            failure.set(error);
        }
    }
}

fn serve(
    job: &Fetch<'_>,
    wanted: &[Wanted],
    sink: &dyn Sink,
    task: Task,
    plain: &Pool,
    decoder: &mut Option<Decoder>,
) -> Result<()> {
    match task {
        Task::Zeros { disk, rows } => serve_zeros(job, &wanted[disk], sink, &rows),
        Task::Run { start, mut bytes, pieces } => {
            for piece in pieces {
                let decoder = match decoder {
                    Some(decoder) => decoder,
                    None => decoder.insert(Decoder::new(job.keys.clone())?),
                };
                let at = usize::try_from(piece.place.offset - start).unwrap_or(usize::MAX);
                let length = usize::try_from(record_bytes(piece.place.stored_bytes)).unwrap_or(usize::MAX);
                let Some(record) = at.checked_add(length).and_then(|end| bytes.get_mut(at..end)) else {
                    return Err(Error::failed("Reading of records: a record lies outside of what was read for it"));
                };
                serve_record(job, &wanted[piece.disk], sink, &piece, record, plain, decoder)?;
            }
            Ok(())
        }
    }
}

fn serve_zeros(job: &Fetch<'_>, wanted: &Wanted, sink: &dyn Sink, rows: &[BlockRow]) -> Result<()> {
    let mut from = 0;
    for (at, row) in rows.iter().enumerate() {
        let expected = job.zeros.leaf(row.block, wanted.geometry.len(row.block))?;
        if row.leaf == expected {
            continue;
        }
        if from < at {
            sink.zeros(wanted.slot, &rows[from..at])?;
        }
        from = at + 1;
        let why = format!("leaf in the manifest: expected {expected}, that of zeros, found {}", row.leaf);
        sink.damaged(wanted.slot, damage(wanted, row, None, why))?;
    }
    if from < rows.len() {
        sink.zeros(wanted.slot, &rows[from..])?;
    }
    Ok(())
}

fn serve_record(
    job: &Fetch<'_>,
    wanted: &Wanted,
    sink: &dyn Sink,
    piece: &Piece,
    record: &mut [u8],
    plain: &Pool,
    decoder: &mut Decoder,
) -> Result<()> {
    let Piece { row, place, .. } = piece;
    let Some(mut block) = plain.take_while_open() else {
        job.throttle.check()?;
        return Err(Error::failed("Reading of records: its buffers are gone"));
    };
    block.set_len(wanted.geometry.len(row.block) as usize);
    if let Err(damage) = prove(job.shipment, wanted, row, *place, record, &mut block, decoder) {
        drop(block);
        return sink.damaged(wanted.slot, damage);
    }
    sink.block(wanted.slot, row, block)
}

/// Takes a block out of its record into `block`, which has its length, and proves it. `record` is decrypted in place.
pub(super) fn prove(
    shipment: Uuid,
    wanted: &Wanted,
    row: &BlockRow,
    place: Place,
    record: &mut [u8],
    block: &mut [u8],
    decoder: &mut Decoder,
) -> Result<(), Damage> {
    let expected = Expected {
        shipment,
        id: RecordId { disk: wanted.generation.disk, generation: wanted.generation.number, block: row.block },
        plain_bytes: wanted.geometry.len(row.block),
        stored_bytes: place.stored_bytes,
        codec: place.codec,
    };
    if let Err(error) = decoder.decode(&expected, record, block) {
        let untrusted = class_of(&error) == Class::Untrusted;
        return Err(Damage { untrusted, ..damage(wanted, row, Some(place), error.to_string()) });
    }
    let found = leaf(wanted.geometry.offset(row.block), block);
    match found == row.leaf {
        true => Ok(()),
        false => Err(damage(wanted, row, Some(place), format!("leaf: expected {}, found {found}", row.leaf))),
    }
}
