//! Where what the guest overwrites goes while its disks are read: files without a name in a directory of this host, which end with
//! the last who has them open, whatever ends whom.

use super::{OURS, Qmp};
use crate::error::{Error, IoContext, Result};
use crate::units;
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use uuid::Uuid;

/// Of the disks' size, the share that must be free at the start: with less, a snapshot is lost before it can be read.
const LEAST_SHARE: u64 = 100;

/// Refuses a directory with hardly any room for what the guest overwrites of disks of `bytes`.
///
/// # Errors
/// Less than 1 % of the disks is free; the directory is not there.
pub fn expect_room(dir: &Path, bytes: u64) -> Result<()> {
    let what = || format!("Scratch directory {}", dir.display());
    let space = rustix::fs::statvfs(dir).context(what)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let least = bytes / LEAST_SHARE;
    if free < least {
        let (least, free) = (units::size(least), units::size(free));
        return Err(Error::failed(format!(
            "{}: expected at least {least} free for what the machine overwrites while it is read, found {free}",
            what()
        ))
        .next("name a directory with more room: --scratch DIR"));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Added {
    fdset_id: u64,
}

/// Gives QEMU a new file of `bytes` without a name, as the node `node`. Its user need not be able to open anything of ours.
///
/// # Errors
/// The directory cannot be written to, or QEMU refuses.
pub fn add_file(qmp: &mut Qmp, dir: &Path, bytes: u64, node: &str) -> Result<()> {
    let what = || format!("Scratch directory {}", dir.display());
    let path = dir.join(format!("{OURS}{}", Uuid::new_v4()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).context(what)?;
    std::fs::remove_file(&path).context(what)?;
    file.set_len(bytes).context(what)?;
    let added = qmp.hand(file.as_fd(), "add-fd", json!({ "opaque": node }))?;
    let Added { fdset_id } = serde_json::from_value(added).map_err(|error| qmp.wrong("the number of a set", error))?;
    let filename = format!("/dev/fdset/{fdset_id}");
    qmp.call("blockdev-add", json!({ "driver": "file", "node-name": node, "filename": filename }))?;
    Ok(())
}
