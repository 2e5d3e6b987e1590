//! A ledger that was set back (a restored backup, a snapshot of the host) knows less than the array. What the array carries under
//! signature outranks it: such a ledger would number packs and seals again, and exchange what has left already.

use super::Array;
use crate::error::{Error, Result};
use crate::io::tree::if_there;
use crate::ledger::Ledger;
use crate::ledger::branch::ShipmentState;
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::MAX_SEAL_BYTES;
use motiongear_manifest::tree::Digest;
use uuid::Uuid;

/// Refuses an array that carries a seal or a custody event of which this ledger does not know. A shipment that the ledger does not
/// know at all, or has given away, is refused elsewhere.
///
/// # Errors
/// Names the seal or the event, and the way out; the ledger or the array cannot be read.
pub fn expect_known(array: &Array, ledger: &Ledger, shipment: Uuid) -> Result<()> {
    let Some(known) = ledger.shipment(shipment)?.filter(|known| known.state != ShipmentState::Moved) else {
        return Ok(());
    };
    let refused = |what: String| {
        Error::failed(format!(
            "Array {}: it carries {what}, which this host's ledger does not know: the ledger is older than the array",
            array.root().display()
        ))
        .next(
            "leave the array as it is sealed: run 'motiongear verify ARRAY --trust FILE', then 'motiongear custody \
             dispatch ARRAY --trust FILE'",
        )
    };
    let (tree, seals) = (array.tree()?, ledger.possible_seals(shipment)?);
    let copies = ["seal.json", "copy/seal.json"].map(|file| if_there(tree.read(file, MAX_SEAL_BYTES)));
    // One copy that cannot be read is no more than a bad sector where the other one is known.
    let mut unreadable = None;
    let mut read = false;
    for copy in copies {
        match copy {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                let digest = Digest::of(&bytes);
                if !seals.contains(&digest) {
                    return Err(refused(format!("the seal {}", spoken_code(&digest))));
                }
                read = true;
            }
            Err(error) => unreadable = Some(error),
        }
    }
    if let Some(error) = unreadable.filter(|_| !read) {
        return Err(error);
    }
    if known.state == ShipmentState::Dispatched {
        return Ok(());
    }
    let names = tree.list("custody")?;
    let mut names = names.iter().map(|(name, _)| name.to_string_lossy());
    match names.find(|name| name.ends_with(".json") && !name.starts_with('.')) {
        Some(name) => Err(refused(format!("the custody event {name}"))),
        None => Ok(()),
    }
}
