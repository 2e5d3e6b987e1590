//! What a project's quota in Block Storage must have room for.
//! Source: Block Storage API v3, "Quota sets extension" (names of what is counted, those of one volume type with its name behind).

use super::demand::{Demand, Need, ToMake};
use crate::error::{Error, Result};
use crate::openstack::Session;

const GIB: u64 = 1 << 30;
const MORE: &str = "ask for more (snapshots count too), or import fewer disks with --machine or --disk";

/// The size that Cinder gives a volume for `bytes`, GiB.
pub fn gib(bytes: u64) -> u64 {
    bytes.div_ceil(GIB).max(1)
}

/// What these volumes and one recovery point of each need, of the type `wanted` or the cloud's own.
///
/// # Errors
/// There is no such type; one volume is larger than any may be; the cloud does not answer.
pub fn demand(session: &Session, wanted: Option<&str>, volumes: &[ToMake]) -> Result<Demand> {
    let room = format!("Cloud {}, project {}", session.shown(), session.project_name());
    let kind = match wanted {
        Some(wanted) => {
            let known = session.volume_types()?;
            if !known.iter().any(|name| name == wanted) {
                return Err(Error::usage(format!(
                    "{room}: expected the volume type {wanted}, found only: {}",
                    known.join(", ")
                )));
            }
            Some(wanted.to_owned())
        }
        None => session.default_volume_type()?,
    };
    let quotas = session.quotas()?;
    let sizes = volumes.iter().map(|volume| gib(volume.bytes));
    let (count, total, largest) = (volumes.len() as u64, sizes.clone().sum::<u64>(), sizes.max().unwrap_or(0));
    if let Some((most, _)) = quotas.get("per_volume_gigabytes").filter(|(most, _)| *most < largest) {
        return Err(
            Error::failed(format!("{room}: expected a quota for volumes of {largest} GiB, found {most}")).next(MORE)
        );
    }
    let mut demand = Demand::default();
    // What is counted, how people call it, and how many are wanted. A recovery point counts as a snapshot.
    for (name, called, wanted) in
        [("volumes", "volumes", count), ("snapshots", "snapshots", count), ("gigabytes", "GiB", total)]
    {
        let of_type = kind.as_ref().map(|kind| (format!("{name}_{kind}"), format!("{called} of type {kind}")));
        for (name, called) in [(name.to_owned(), called.to_owned())].into_iter().chain(of_type) {
            let Some((most, used)) = quotas.get(&name).copied() else { continue };
            let thing = format!("a quota for N more {called}");
            demand.needs.push(Need { room: room.clone(), thing, wanted, used, most, next: MORE });
            let left = most.saturating_sub(used);
            // Whether they count there, its administrator has chosen, and no interface tells.
            if name.starts_with("gigabytes") && (total..total.saturating_mul(2)).contains(&left) {
                demand.notes.push(format!(
                    "{room}: the recovery points need a quota for {total} more {called} where snapshots count as volumes do; {} will be left",
                    left - total
                ));
            }
        }
    }
    Ok(demand)
}
