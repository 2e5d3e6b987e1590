//! Disks that must not be sources: the transport array itself, a path leg of a multipath device, one disk twice.

use std::path::Path;

use super::Source;
use super::device::{Device, carriers};
use crate::error::{Error, Result};

/// Refuses sources that cannot be copied soundly onto the array at `array`.
///
/// # Errors
/// A usage error that names the source, why, and what to give instead.
pub fn refuse_as_source<S: std::borrow::Borrow<Source>>(sources: &[S], array: &Path) -> Result<()> {
    sources.iter().try_for_each(|source| refuse_array(source.borrow(), array))?;
    refuse_together(sources)
}

/// Refuses sources that cannot be read soundly, or not beside each other, wherever they are copied to.
///
/// # Errors
/// As [`refuse_as_source`].
pub fn refuse_together<S: std::borrow::Borrow<Source>>(sources: &[S]) -> Result<()> {
    let sources: Vec<&Source> = sources.iter().map(S::borrow).collect();
    sources.iter().try_for_each(|source| refuse_leg(source))?;
    for (at, source) in sources.iter().enumerate() {
        for earlier in &sources[..at] {
            if let Some(what) = source.identity.overlaps(&earlier.identity) {
                return Err(Error::usage(format!(
                    "{} and {}: expected two different disks, found {what}",
                    earlier.origin, source.origin
                ))
                .next(
                    "Name each disk once; of several paths to one disk take the multipath device under /dev/mapper",
                ));
            }
        }
    }
    Ok(())
}

fn refuse_leg(source: &Source) -> Result<()> {
    let Some(holder) = source.device.as_ref().and_then(Device::multipath_holder) else { return Ok(()) };
    Err(Error::usage(format!(
        "{}: expected a whole disk, found one path leg of the multipath device {}",
        source.origin,
        holder.node()
    ))
    .next(format!("Give {} instead: a leg may fail or show stale data", holder.node())))
}

fn refuse_array(source: &Source, array: &Path) -> Result<()> {
    let live = source.sys.is_live();
    let real =
        |path: &Path| if live { path.canonicalize().unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() };
    let array = real(array);
    let refused = |why: String| {
        Err(Error::usage(format!("{}: expected a disk to copy, found {why}", source.origin))
            .next("The array cannot be copied onto itself; leave this disk out, or attach another array"))
    };
    if source.origin.path().is_some_and(|path| real(path).starts_with(&array)) {
        return refused(format!("a file on the transport array {}", array.display()));
    }
    let backing = source.device.as_ref().and_then(Device::backing_file);
    if backing.is_some_and(|file| real(&file).starts_with(&array)) {
        return refused(format!("a loop device whose file lies on the transport array {}", array.display()));
    }
    let carried_by = carriers(&source.sys, &array);
    for device in &carried_by {
        if let Some(own) = &source.device {
            let below = device.and_below();
            let whole_of_a_member = below.iter().any(|member| member.number == own.number);
            let on_top = device.and_above().iter().any(|member| member.number == own.number);
            if whole_of_a_member || on_top {
                return refused(format!("the transport array itself ({} carries {})", device.node(), array.display()));
            }
        }
        // The array may lie in a loop device over the very file that is to be copied.
        let loops = device.and_below();
        let holds = |member: &Device| {
            member
                .backing_file()
                .and_then(|file| std::fs::metadata(file).ok())
                .map(|meta| super::FileIdentity::of(&meta))
        };
        if source.device.is_none()
            && source.identity.machine.is_none()
            && let Some(own) = &source.identity.file
            && loops.iter().filter_map(holds).any(|file| file.device == own.device && file.inode == own.inode)
        {
            return refused(format!("the file that holds the transport array {}", array.display()));
        }
    }
    Ok(())
}
