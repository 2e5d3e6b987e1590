//! Dirty bitmaps: what QEMU noted of the guest's writes since a snapshot. A hint that saves reading, and never the truth.
//!
//! `motiongear-SHIPMENT-DISK-N`: the first eight digits of both UUIDs, and a number that rises. Each snapshot begins a new bitmap and
//! stops the one before it, the *reference*, in the transaction that takes it, so that no write falls between the two. The reference is
//! removed when what was found with it is durable. Had that not come to be, both are still there, and the next snapshot merges them:
//! no change is ever lost.

use super::Qmp;
use super::machine::{Disk, KnownBitmap, Machine};
use crate::error::Result;
use crate::source::tracking::{Distrust, Noted, OURS, Tracking};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Bytes for each bit: QEMU's own default for most disks.
const GRANULARITY: u64 = 64 << 10;

/// A bitmap as the ledger remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bitmap {
    /// As QEMU has it.
    pub name: String,
    /// Bytes for each bit.
    pub granularity: u64,
}

/// What a snapshot does with the bitmaps of one disk.
pub(super) struct Prepared {
    /// Begun with it.
    pub new: Bitmap,
    /// Stopped with it, if it can be believed.
    pub reference: Result<Bitmap, Distrust>,
    /// For its transaction.
    pub actions: Vec<Value>,
}

/// Brings the bitmaps of a disk to where a snapshot can go on: one reference that records, or none.
///
/// # Errors
/// QEMU refuses.
pub(super) fn prepare(qmp: &mut Qmp, disk: &Disk, wish: &Tracking) -> Result<Prepared> {
    let node = disk.node.as_str();
    let number = |name: &str| name.strip_prefix(&wish.prefix)?.parse::<u64>().ok();
    let mut ours: Vec<(u64, &KnownBitmap)> =
        disk.bitmaps.iter().filter_map(|bitmap| Some((number(&bitmap.name)?, bitmap))).collect();
    ours.sort_by_key(|(number, _)| *number);
    let last = ours.last().map(|(number, _)| *number);
    let wanted = match &wish.reference {
        Some(Noted::Bitmap(wanted)) => number(&wanted.name).map(|number| (number, wanted)),
        _ => None,
    };
    let reference = judge(&ours, wanted);
    let name = |bitmap: &str| json!({ "node": node, "name": bitmap });
    for (number, bitmap) in &ours {
        if reference.is_err() || wanted.is_some_and(|(wanted, _)| *number < wanted) {
            qmp.call("block-dirty-bitmap-remove", name(&bitmap.name))?;
        }
    }
    let first = wanted.map_or(0, |(number, _)| number);
    if let Ok(reference) = &reference {
        let later: Vec<&str> = ours.iter().filter(|(n, _)| *n > first).map(|(_, b)| b.name.as_str()).collect();
        let action = |kind: &str, data: Value| json!({ "type": format!("block-dirty-bitmap-{kind}"), "data": data });
        if !later.is_empty() {
            // A snapshot that came to nothing: what it stopped goes on, with what its own noted since.
            let merge = json!({ "node": node, "target": reference.name, "bitmaps": later });
            let mut actions = vec![action("enable", name(&reference.name)), action("merge", merge)];
            actions.extend(later.iter().map(|later| action("remove", name(later))));
            qmp.call("transaction", json!({ "actions": actions }))?;
        }
    }
    let new = Bitmap {
        name: format!("{}{}", wish.prefix, last.unwrap_or(0).max(first).saturating_add(1)),
        granularity: GRANULARITY,
    };
    let add = json!({ "node": node, "name": new.name, "granularity": GRANULARITY, "persistent": disk.keeps_bitmaps });
    let mut actions = vec![json!({ "type": "block-dirty-bitmap-add", "data": add })];
    if let Ok(reference) = &reference {
        actions.push(json!({ "type": "block-dirty-bitmap-disable", "data": name(&reference.name) }));
    }
    Ok(Prepared { new, reference, actions })
}

/// Removes all bitmaps of ours from all disks; says which.
pub(super) fn remove_all(qmp: &mut Qmp) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for disk in Machine::look(qmp)?.disks {
        for bitmap in disk.bitmaps.into_iter().filter(|bitmap| bitmap.name.starts_with(OURS)) {
            qmp.call("block-dirty-bitmap-remove", json!({ "node": disk.node, "name": bitmap.name }))?;
            removed.push(bitmap.name);
        }
    }
    Ok(removed)
}

/// Whether the bitmap of this number, with those after it, tells of every write since it was begun.
fn judge(ours: &[(u64, &KnownBitmap)], wanted: Option<(u64, &Bitmap)>) -> Result<Bitmap, Distrust> {
    let (number, wanted) = wanted.ok_or(Distrust::Missing)?;
    let (_, found) = ours.iter().find(|(n, _)| *n == number).ok_or(Distrust::Missing)?;
    let later: Vec<_> = ours.iter().filter(|(n, _)| *n > number).map(|(_, bitmap)| bitmap).collect();
    if found.granularity != wanted.granularity {
        return Err(Distrust::Another);
    }
    if found.inconsistent || later.iter().any(|bitmap| bitmap.inconsistent) {
        return Err(Distrust::Inconsistent);
    }
    // The last of them must be at work, or nobody noted what was written of late.
    if !later.last().unwrap_or(&found).recording {
        return Err(Distrust::Stopped);
    }
    Ok(wanted.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(name: &str, recording: bool) -> KnownBitmap {
        KnownBitmap { name: name.into(), granularity: GRANULARITY, recording, busy: false, inconsistent: false }
    }

    #[test]
    fn a_chain_of_bitmaps_is_believed_while_its_last_one_records() {
        let wanted = Bitmap { name: "p-2".into(), granularity: GRANULARITY };
        let told = |ours: &[(u64, KnownBitmap)]| {
            let ours: Vec<_> = ours.iter().map(|(n, bitmap)| (*n, bitmap)).collect();
            judge(&ours, Some((2, &wanted))).map(drop)
        };
        assert_eq!(told(&[(2, bitmap("p-2", true))]), Ok(()));
        assert_eq!(told(&[(2, bitmap("p-2", false)), (3, bitmap("p-3", true))]), Ok(()));
        assert_eq!(told(&[(2, bitmap("p-2", false))]), Err(Distrust::Stopped));
        assert_eq!(told(&[(2, bitmap("p-2", false)), (3, bitmap("p-3", false))]), Err(Distrust::Stopped));
        assert_eq!(told(&[(3, bitmap("p-3", true))]), Err(Distrust::Missing));
        assert_eq!(told(&[(2, KnownBitmap { granularity: 512, ..bitmap("p-2", true) })]), Err(Distrust::Another));
        let broken = KnownBitmap { inconsistent: true, ..bitmap("p-3", true) };
        assert_eq!(told(&[(2, bitmap("p-2", false)), (3, broken)]), Err(Distrust::Inconsistent));
        assert_eq!(judge(&[], None), Err(Distrust::Missing));
    }
}
