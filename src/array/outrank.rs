//! A ledger that was set back (a restored backup, a snapshot of the host) knows less than the array. What the array carries under
//! signature outranks it: it would number packs and seals again, and exchange what has left already.

use super::Array;
use crate::error::{Error, Result};
use crate::io::read_bounded;
use crate::ledger::Ledger;
use crate::ledger::branch::ShipmentState;
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::MAX_SEAL_BYTES;
use motiongear_manifest::tree::Digest;
use uuid::Uuid;

/// Refuses an array that carries a seal or a custody event of which this ledger does not know.
///
/// # Errors
/// Names the seal or the event, and the way out; the ledger cannot be read.
pub fn expect_known(array: &Array, ledger: &Ledger, shipment: Uuid) -> Result<()> {
    let Some(known) = ledger.shipment(shipment)? else { return Ok(()) };
    let refused = |what: String| {
        Error::failed(format!(
            "Array {}: {what}, and this host's ledger does not know it: the ledger is older than the array",
            array.root().display()
        ))
        .next("the array stays as it is sealed: motiongear verify ARRAY, then motiongear custody dispatch ARRAY --trust FILE")
    };
    let seals = ledger.possible_seals(shipment)?;
    for path in [array.seal(), array.copies().join("seal.json")] {
        let digest = read_bounded(&path, MAX_SEAL_BYTES).ok().map(|bytes| Digest::of(&bytes));
        if let Some(digest) = digest.filter(|digest| !seals.contains(digest)) {
            return Err(refused(format!("it carries the seal {}", spoken_code(&digest))));
        }
    }
    if known.state == ShipmentState::Dispatched {
        return Ok(());
    }
    let events = std::fs::read_dir(array.custody()).into_iter().flatten().flatten();
    let mut names = events.map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.find(|name| name.ends_with(".json") && !name.starts_with('.')) {
        Some(name) => Err(refused(format!("it carries the custody event {name}"))),
        None => Ok(()),
    }
}
