//! `inspect` and `rehearse`: this machine by itself. `release`: machines that run here under QEMU.

use super::globals::Globals;
use super::{Shown, say_line};
use crate::error::{Error, IoContext, Result};
use crate::inspect::{Options, inspect_with};
use crate::lang::Lang;
use crate::libvirt::{DomainDisk, release_domain};
use crate::qmp::{Released, release_machine};
use crate::rbd::{self, release_image};
use crate::rehearse;
use crate::source::SysRoot;
use crate::units::{parse_rate, parse_size};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// This host: facts, disks, identities, mounts; go or no-go for each disk; a plan to edit.
#[derive(Args)]
pub struct InspectArgs {
    /// Disks or image files to look at; all of this host's if none is given.
    disks: Vec<PathBuf>,
    /// Write a plan file to edit.
    #[arg(long, value_name = "FILE")]
    plan_out: Option<PathBuf>,
    /// The transport array, if it is attached already.
    #[arg(long, value_name = "DIR")]
    array: Option<PathBuf>,
    /// Also list removable, optical, loop, RAM disks and partitions.
    #[arg(long)]
    all: bool,
    /// Reading rate for the estimate.
    #[arg(long, value_name = "RATE", default_value = "150MiB")]
    rate: String,
    /// Block size for the estimate.
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    block_size: String,
}

impl InspectArgs {
    pub fn run(self, globals: &Globals) -> Result<ExitCode> {
        let options = Options {
            all: self.all,
            sources: self.disks,
            rate: parse_rate(&self.rate)?,
            block_bytes: parse_size(&self.block_size)?,
            array: self.array,
        };
        let inspection = inspect_with(&SysRoot::new("/"), &options);
        if let Some(path) = self.plan_out.filter(|_| !globals.dry_run) {
            let what = || format!("Plan {}", path.display());
            let mut file = std::fs::File::create_new(&path)
                .context(what)
                .map_err(|e| e.next("an existing plan is not overwritten: name another file"))?;
            file.write_all(inspection.plan_out(globals.lang()).as_bytes()).context(what)?;
            file.sync_all().context(what)?;
            if !globals.quiet && !globals.json {
                say_line(&crate::say!(globals.lang(), "Plan written: {}", "计划已写入：{}", path.display()));
            }
        }
        Shown { json: globals.json, quiet: globals.quiet, lang: globals.lang() }
            .text(&inspection, |i| i.render(globals.lang()))
    }
}

/// Take everything of MotionGear's out of a machine that runs under QEMU or libvirt, should something have been left there; or give up
/// the snapshots that are held of a Ceph image.
#[derive(Args)]
pub struct ReleaseArgs {
    /// The machine's QMP socket, libvirt:DOMAIN, or rbd:POOL/IMAGE.
    socket: PathBuf,
    /// Also remove the dirty bitmaps or checkpoints that note what changed for the next scan.
    #[arg(long)]
    bitmaps: bool,
    /// Nothing to release is as good; the watchdog says so.
    #[arg(long, hide = true)]
    pub or_nothing: bool,
}

impl ReleaseArgs {
    /// Without a ledger: the watchdog runs it when there may be no room for one.
    pub fn run(self, globals: &Globals) -> Result<Released> {
        if globals.dry_run {
            return Ok(Released::default());
        }
        match self.socket.to_str() {
            Some(image) if rbd::Image::is_one(image) => {
                Ok(Released { removed: release_image(&rbd::Image::parse(image)?)? })
            }
            Some(disk) if DomainDisk::is_one(disk) => release_domain(&DomainDisk::parse(disk)?.domain, self.bitmaps),
            _ => release_machine(&self.socket, self.bitmaps),
        }
    }
}

pub fn released(released: &Released, lang: Lang) -> String {
    match released.removed.as_slice() {
        [] => crate::say!(lang, "Nothing of MotionGear's is there.", "其中没有 MotionGear 的遗留项。"),
        removed => crate::say!(lang, "Removed: {}", "已移除：{}", removed.join(" ")),
    }
}

/// Play the whole chain on this machine, with throw-away keys: on disks of yours, which are only read, or on a sample.
#[derive(Args)]
pub struct RehearseArgs {
    /// Disks or image files; a sample disk if none is given.
    disks: Vec<PathBuf>,
    /// Where everything is kept; a new directory here if not given.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

impl TryFrom<RehearseArgs> for rehearse::Options {
    type Error = Error;
    fn try_from(args: RehearseArgs) -> Result<Self> {
        let name = || format!("motiongear-rehearsal-{}", jiff::Zoned::now().strftime("%Y%m%d-%H%M%S"));
        let disks = args
            .disks
            .iter()
            .map(std::path::absolute)
            .collect::<std::io::Result<_>>()
            .context(|| "Disk to rehearse with".into())?;
        Ok(rehearse::Options { disks, work: args.work.unwrap_or_else(|| name().into()) })
    }
}
