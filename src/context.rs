//! What every verb is given: where it keeps things, how it moves bytes, whom it talks to.

use crate::array::apart::refuse_on;
use crate::error::Result;
use crate::io::Engine;
use crate::lang::Lang;
use crate::ledger::Ledger;
use crate::monitor::Monitor;
use crate::openstack::Environment;
use crate::source::SysRoot;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// Asks a person for a passphrase; the text says whose.
pub type Ask = Arc<dyn Fn(&str) -> std::io::Result<String> + Send + Sync>;

/// The surroundings of a run. `cli` makes it; nothing below `cli` looks at the environment.
#[derive(Clone)]
pub struct Context {
    /// The ledger and its directory.
    pub ledger: Arc<Ledger>,
    /// How bytes move.
    pub engine: Engine,
    /// For summaries.
    pub lang: Lang,
    /// Shows progress and notes.
    pub monitor: Arc<dyn Monitor>,
    /// Where `/sys`, `/proc` and `/dev` are found.
    pub sys: SysRoot,
    /// Asks for passphrases.
    pub ask: Ask,
    /// Asks for a code that a person has on paper; none where nobody is at the terminal.
    pub ask_code: Option<Ask>,
    /// What is said of clouds.
    pub clouds: Environment,
    /// Only say what would be done.
    pub dry_run: bool,
    /// `rehearse` plays all places in one directory.
    pub rehearsal: bool,
}

impl Context {
    /// Refuses `path`, called `object`, if it lies on the array mounted at `array`.
    ///
    /// # Errors
    /// Says so.
    pub fn refuse_on(&self, array: &Path, object: &str, path: &Path) -> Result<()> {
        refuse_on(object, path, array, &self.sys, self.rehearsal)
    }
}

/// What a verb has to show for itself: JSON for scripts, a few lines for people.
pub trait Outcome: Serialize {
    /// Lines that can be read aloud.
    fn summary(&self, lang: Lang) -> String;
    /// True if blocks are unreadable, damaged or missing: exit 3.
    fn incomplete(&self) -> bool {
        false
    }
    /// The exit code of `design.md` §7.
    fn exit_code(&self) -> u8 {
        if self.incomplete() { 3 } else { 0 }
    }
}

/// Program and version, as written into documents.
pub fn tool() -> String {
    concat!("motiongear ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The present moment by this host's clock, to the second.
///
/// # Errors
/// None in practice; the clock is far outside every calendar.
pub fn now() -> Result<jiff::Timestamp> {
    let seconds = jiff::Timestamp::now().as_second();
    jiff::Timestamp::from_second(seconds).map_err(|e| crate::error::Error::failed("Clock of this host").because(e))
}
