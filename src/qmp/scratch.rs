//! Where what the guest overwrites goes while its disks are read: files without a name in a directory of this host, which end with
//! the last who has them open, whatever ends whom.

use super::{OURS, Qmp};
use crate::error::{IoContext, Result};
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use uuid::Uuid;

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
