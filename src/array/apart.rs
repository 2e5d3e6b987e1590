//! What must not lie on the array: state, scratch files, volumes, papers. All of them are in clear, and an array travels and is
//! erased by its own files alone. "On the array" means on its file system, or on what carries it. An array on the file system
//! that holds `/` cannot be told apart in this way, nor can a rehearsal's: there it means below the array's directory.

use crate::error::{Error, Result};
use crate::source::device::carriers;
use crate::source::{Device, DeviceNumber, SysRoot};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Refuses `path`, which need not exist yet and is called `object` in the refusal, if it lies on the array mounted at `array`.
/// `rehearsal` plays all places in one directory.
///
/// # Errors
/// Says so.
pub fn refuse_on(object: &str, path: &Path, array: &Path, sys: &SysRoot, rehearsal: bool) -> Result<()> {
    // What the ledger remembers ends in the array's own folder.
    let Ok(absolute) = std::path::absolute(path) else { return Ok(()) };
    let existing = absolute.ancestors().find(|part| part.exists()).unwrap_or(&absolute);
    let (Ok(real), Ok(array)) = (existing.canonicalize(), array.canonicalize()) else { return Ok(()) };
    if real.starts_with(&array) || is_carrier(&real, &array, sys) || !rehearsal && shares(&real, &array, sys) {
        return Err(Error::failed(format!(
            "{object} {}: it lies on the transport array {}",
            path.display(),
            array.display()
        ))
        .next("name a place on another file system: only MotionGear's own folder belongs on an array"));
    }
    Ok(())
}

/// Whether both lie on one file system, which is not that of `/`.
fn shares(real: &Path, array: &Path, sys: &SysRoot) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    let (own, system) = (device(array), device(Path::new("/")));
    let carried = |path: &Path| carriers(sys, path).into_iter().map(|device| device.number).collect::<Vec<_>>();
    let on = carried(array);
    // Sub-volumes have device numbers of their own; what carries them tells.
    let on_system = own == system || carried(Path::new("/")).iter().any(|device| on.contains(device));
    // The node of a device says nothing of where its bytes are; a loop device lies where its file lies.
    if let Some(device) = block_device(real, sys) {
        let files = device.and_below().into_iter().filter_map(|device| device.backing_file());
        return files.into_iter().any(|file| file.starts_with(array) || shares(&file, array, sys));
    }
    !on_system && (device(real) == own || carried(real).iter().any(|device| on.contains(device)))
}

/// Whether `real` is a device that carries the array, or one above or below it.
fn is_carrier(real: &Path, array: &Path, sys: &SysRoot) -> bool {
    let own = block_device(real, sys).map(|device| device.number);
    own.is_some_and(|own| carriers(sys, array).iter().flat_map(Device::and_below).any(|device| device.number == own))
}

fn block_device(real: &Path, sys: &SysRoot) -> Option<Device> {
    let number = std::fs::metadata(real).ok()?.rdev();
    (number != 0).then(|| Device::by_number(sys, DeviceNumber::from_raw(number))).flatten()
}
