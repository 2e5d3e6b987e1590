//! A machine that runs, whoever runs it: QEMU on this host (`here`) or the cloud's compute service (`nova`). What differs between them is
//! behind this; the keeper and `end` know no more of either.

use super::console::Told;
use super::folder::Folder;
use super::record::{Course, Drill};
use super::{here, nova};
use crate::context::Context;
use crate::error::Result;
use crate::volume::places::Places;
use std::time::{Duration, Instant};

/// What the keeper asks of a machine. Dropped, it runs no more, or is left to [`end`].
pub trait Running {
    /// When it began to boot.
    fn booted(&self) -> Instant;
    /// Listens: what its console told first, and when.
    fn told(&mut self) -> Option<(Told, Instant)>;
    /// The last lines of its console.
    fn last_lines(&self) -> Vec<String>;
    /// How long it stood still so far because of this host.
    fn stood(&self) -> Duration {
        Duration::ZERO
    }
    /// Why it ended, where it did.
    fn ended(&mut self) -> Option<String>;
    /// Puts what is on its screen into the folder, where that can be had.
    ///
    /// # Errors
    /// There is a screen, and no picture of it.
    fn picture(&self, folder: &Folder) -> Result<()>;
    /// Takes down what there is to tell; whether there was something new.
    fn note(&self, course: &mut Course) -> bool;
    /// Looks after what it needs of this host, from time to time; whether the course has changed.
    ///
    /// # Errors
    /// The state directory cannot be looked at.
    fn tend(&mut self, folder: &Folder, course: &mut Course) -> Result<bool>;
}

/// Makes files that the machine needs beside its disks, before it is booted.
///
/// # Errors
/// They cannot be made.
pub fn prepare(folder: &Folder, drill: &Drill) -> Result<()> {
    match &drill.compute {
        None => here::prepare(folder, drill),
        Some(_) => Ok(()),
    }
}

/// Boots it.
///
/// # Errors
/// It does not start.
pub fn boot(context: &Context, folder: &Folder, drill: &Drill, course: &mut Course) -> Result<Box<dyn Running>> {
    match &drill.compute {
        None => Ok(Box::new(here::Here::boot(context, folder, drill, course)?)),
        Some(compute) => Ok(Box::new(nova::There::boot(context, folder, drill, compute, course)?)),
    }
}

/// Ends whatever runs of a drill that has no keeper any more. May be asked again.
///
/// # Errors
/// It runs on.
pub fn end(context: &Context, places: &mut Places<'_>, drill: &Drill) -> Result<()> {
    match &drill.compute {
        None => here::end(drill),
        Some(_) => nova::end(context, places, drill),
    }
}
