//! `status`, `pause`, `resume`, `limit`: a running job from another terminal.

use super::Shown;
use super::globals::Globals;
use crate::error::Result;
use crate::job::{self, Acted};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// What is running, and what the ledger knows.
#[derive(Args)]
pub struct StatusArgs {
    /// An array: also the disks of its shipment, as far as this ledger knows them.
    array: Option<PathBuf>,
}

impl StatusArgs {
    pub fn run(self, globals: &Globals) -> Result<ExitCode> {
        let lang = globals.lang();
        let status = crate::status::status(&globals.state()?, self.array.as_deref())?;
        Shown { json: globals.json, quiet: globals.quiet, lang }.text(&status, |s| s.render(lang))
    }
}

/// Let a running job stand still.
#[derive(Args)]
pub struct PauseArgs {
    /// Process number of the job, if several run.
    #[arg(long, value_name = "PID")]
    job: Option<u32>,
}

impl PauseArgs {
    pub fn run(self, globals: &Globals) -> Result<Acted> {
        job::pause(&globals.state()?, self.job)
    }
}

/// Let a paused job go on.
#[derive(Args)]
pub struct ResumeArgs {
    /// Process number of the job, if several run.
    #[arg(long, value_name = "PID")]
    job: Option<u32>,
}

impl ResumeArgs {
    pub fn run(self, globals: &Globals) -> Result<Acted> {
        job::resume(&globals.state()?, self.job)
    }
}

/// Change the limits of a running job.
#[derive(Args)]
pub struct LimitArgs {
    /// Process number of the job, if several run.
    #[arg(long, value_name = "PID")]
    job: Option<u32>,
    /// Read at most so much a second, or off.
    #[arg(long, value_name = "RATE|off")]
    read: Option<String>,
    /// Use at most this share of the machine's CPU time, or off.
    #[arg(long, value_name = "PERCENT|off")]
    cpu: Option<String>,
}

impl LimitArgs {
    pub fn run(self, globals: &Globals) -> Result<Acted> {
        job::limit(&globals.state()?, self.job, self.read.as_deref(), self.cpu.as_deref())
    }
}
