//! `verify`, `import` and `restore`: verbs that read a sealed array.

use crate::copy::throttle::Limits;
use crate::error::{Error, Result};
use crate::import::Mapping;
use crate::source::Origin;
use crate::trust::Expected;
use crate::units::parse_rate;
use crate::volume::readback::Mode;
use crate::volume::target::Target;
use crate::{import, restore, verify};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use std::path::PathBuf;

/// By what a seal is known to be the one that left the branch; else a signed `received` event must name it.
#[derive(Args)]
pub struct SealArgs {
    /// The spoken code or digest that the branch gave.
    #[arg(long, value_name = "CODE")]
    expect_seal: Option<String>,
    /// Do without: nobody gave a code, and no signed arrival names this seal. Recorded.
    #[arg(long, conflicts_with = "expect_seal")]
    uncompared: bool,
}

impl From<SealArgs> for Expected {
    fn from(args: SealArgs) -> Expected {
        Expected { seal: args.expect_seal, uncompared: args.uncompared }
    }
}

/// Write a sealed shipment into volumes, with proof that target equals source. Running it again resumes.
#[derive(Args)]
pub struct ImportArgs {
    /// Where the array is mounted.
    array: PathBuf,
    /// dir:PATH for image files, rbd:POOL for Ceph, cinder:CLOUD for OpenStack; for single disks dev:MACHINE/DISK=/dev/…,
    /// nbd:MACHINE/DISK=URI, rbd:MACHINE/DISK=POOL, cinder:MACHINE/DISK=CLOUD; for all disks of a machine rbd:MACHINE=POOL,
    /// cinder:MACHINE=CLOUD (repeat for more).
    #[arg(long, value_name = "TARGET", required_unless_present = "plan")]
    to: Vec<String>,
    /// Instead of --to: a file that says where each machine goes, and what it is to be there.
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    plan: Option<PathBuf>,
    /// OpenSSH allowed-signers file: who may seal shipments.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: PathBuf,
    /// age identity file of a recipient.
    #[arg(long, value_name = "AGE_KEY")]
    identity: Option<PathBuf>,
    #[command(flatten)]
    seal: SealArgs,
    /// Judge the signer's validity at this time instead of now; recorded.
    #[arg(long, value_name = "TIME")]
    verify_time: Option<String>,
    /// Only this machine.
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// Only this disk, as NAME or MACHINE/NAME.
    #[arg(long, value_name = "DISK")]
    disk: Option<String>,
    /// How much is read back from the medium and compared.
    #[arg(long, value_enum, default_value_t = ReadbackArg::Full)]
    readback: ReadbackArg,
    /// Release volumes whose source had unreadable ranges; recorded in the report.
    #[arg(long)]
    accept_unreadable: bool,
    /// Write to volumes that hold data which MotionGear did not write; do complete disks again, their recovery points too.
    #[arg(long)]
    overwrite: bool,
    /// Import what there is though packs are missing or cut short; their blocks count as damaged.
    #[arg(long)]
    accept_missing_packs: bool,
    /// Import onto a device whose sectors have another size than the source's.
    #[arg(long)]
    accept_sector_size: bool,
    /// Give an import up that is not complete: remove the volumes that were made for it, and forget it.
    #[arg(long, conflicts_with_all = ["overwrite", "accept_unreadable", "accept_missing_packs", "accept_sector_size"])]
    abort: bool,
    /// Read at most so much a second from the array.
    #[arg(long, value_name = "RATE")]
    read_limit: Option<String>,
    /// Use at most this share of the whole machine's CPU time.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu_limit: Option<u8>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ReadbackArg {
    Full,
    Sample,
    None,
}

impl TryFrom<ImportArgs> for import::Options {
    type Error = Error;
    fn try_from(args: ImportArgs) -> Result<Self> {
        let (target, servers) = match &args.plan {
            None => (Target::parse(&args.to)?, None),
            Some(plan) => {
                let Mapping { target, servers } = Mapping::read(plan)?;
                (target, Some(servers))
            }
        };
        Ok(import::Options {
            array: args.array,
            target,
            servers,
            trust: args.trust,
            identity: args.identity,
            expected: args.seal.into(),
            verify_time: args.verify_time.as_deref().map(parse_time).transpose()?,
            machine: args.machine,
            disk: args.disk,
            readback: args.readback.into(),
            accept_unreadable: args.accept_unreadable,
            overwrite: args.overwrite,
            accept_missing_packs: args.accept_missing_packs,
            abort: args.abort,
            accept_sector_size: args.accept_sector_size,
            limits: limits(args.read_limit.as_deref(), args.cpu_limit)?,
        })
    }
}

/// Check an array: the medium without any key, everything with the identity. Or check volumes that were imported.
#[derive(Args)]
pub struct VerifyArgs {
    /// Where the array is mounted.
    #[arg(required_unless_present = "volumes")]
    array: Option<PathBuf>,
    /// Instead of an array: read the volumes of this ledger's complete imports again, and compare.
    #[arg(long, conflicts_with_all = ["array", "trust", "identity", "expect_seal", "verify_time"])]
    volumes: bool,
    /// Only this machine's volumes.
    #[arg(long, value_name = "NAME", requires = "volumes")]
    machine: Option<String>,
    /// Only the volume of this disk, as NAME or MACHINE/NAME.
    #[arg(long, value_name = "DISK", requires = "volumes")]
    disk: Option<String>,
    /// Accept the difference that the last check of this disk's volume found: a machine that booted from it, say.
    #[arg(long, value_name = "MACHINE/DISK", requires_all = ["volumes", "reason"], conflicts_with_all = ["machine", "disk"])]
    accept_difference: Option<String>,
    /// Why it is accepted; kept in the ledger and shown in reports.
    #[arg(long, value_name = "TEXT", requires = "accept_difference")]
    reason: Option<String>,
    /// OpenSSH allowed-signers file: who may seal shipments. Without it the signer is not checked.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: Option<PathBuf>,
    /// age identity file of a recipient: every block is decrypted and compared, too.
    #[arg(long, value_name = "AGE_KEY", requires = "trust")]
    identity: Option<PathBuf>,
    /// The spoken code or digest that the branch gave.
    #[arg(long, value_name = "CODE")]
    expect_seal: Option<String>,
    /// Judge the signer's validity at this time instead of now; recorded.
    #[arg(long, value_name = "TIME")]
    verify_time: Option<String>,
    /// Read at most so much a second from the array.
    #[arg(long, value_name = "RATE")]
    read_limit: Option<String>,
    /// Use at most this share of the whole machine's CPU time.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu_limit: Option<u8>,
}

impl VerifyArgs {
    /// Whether volumes are meant, and which.
    ///
    /// # Errors
    /// A rate that is none.
    pub fn volumes(&self) -> Result<Option<verify::volumes::Options>> {
        if !self.volumes {
            return Ok(None);
        }
        Ok(Some(verify::volumes::Options {
            machine: self.machine.clone(),
            disk: self.disk.clone(),
            limits: limits(self.read_limit.as_deref(), self.cpu_limit)?,
            accept: self.accept_difference.clone().zip(self.reason.clone()),
        }))
    }
}

impl TryFrom<VerifyArgs> for verify::Options {
    type Error = Error;
    fn try_from(args: VerifyArgs) -> Result<Self> {
        Ok(verify::Options {
            array: args.array.ok_or_else(|| Error::usage("Verify: expected an array or --volumes, found neither"))?,
            trust: args.trust,
            identity: args.identity,
            expect_seal: args.expect_seal,
            verify_time: args.verify_time.as_deref().map(parse_time).transpose()?,
            limits: limits(args.read_limit.as_deref(), args.cpu_limit)?,
        })
    }
}

/// Bring one disk of a shipment back as a plain file, onto a device, or into an NBD export.
#[derive(Args)]
pub struct RestoreArgs {
    /// Where the array is mounted.
    array: PathBuf,
    /// Which disk.
    #[arg(value_name = "MACHINE/DISK")]
    disk: String,
    /// A file to make, an existing block device, or the URI of an NBD export.
    file: PathBuf,
    /// OpenSSH allowed-signers file: who may seal shipments.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: PathBuf,
    /// age identity file of a recipient.
    #[arg(long, value_name = "AGE_KEY")]
    identity: Option<PathBuf>,
    #[command(flatten)]
    seal: SealArgs,
    /// Judge the signer's validity at this time instead of now.
    #[arg(long, value_name = "TIME")]
    verify_time: Option<String>,
    /// How much is read back from the medium and compared.
    #[arg(long, value_enum, default_value_t = ReadbackArg::Full)]
    readback: ReadbackArg,
    /// Finish though the source had unreadable ranges, which count as zeros.
    #[arg(long)]
    accept_unreadable: bool,
    /// Replace the file, or write over data on the device.
    #[arg(long)]
    overwrite: bool,
    /// Restore to a device whose sectors have another size than the source's.
    #[arg(long)]
    accept_sector_size: bool,
    /// Read at most so much a second from the array.
    #[arg(long, value_name = "RATE")]
    read_limit: Option<String>,
    /// Use at most this share of the whole machine's CPU time.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu_limit: Option<u8>,
}

impl TryFrom<RestoreArgs> for restore::Options {
    type Error = Error;
    fn try_from(args: RestoreArgs) -> Result<Self> {
        let Some((machine, disk)) = args.disk.split_once('/') else {
            return Err(Error::usage(format!("Disk '{}': expected MACHINE/DISK", args.disk)));
        };
        Ok(restore::Options {
            machine: machine.to_owned(),
            disk: disk.to_owned(),
            array: args.array,
            target: Origin::try_from(args.file)?,
            trust: args.trust,
            identity: args.identity,
            expected: args.seal.into(),
            verify_time: args.verify_time.as_deref().map(parse_time).transpose()?,
            readback: args.readback.into(),
            accept_unreadable: args.accept_unreadable,
            overwrite: args.overwrite,
            accept_sector_size: args.accept_sector_size,
            limits: limits(args.read_limit.as_deref(), args.cpu_limit)?,
        })
    }
}

impl From<ReadbackArg> for Mode {
    fn from(arg: ReadbackArg) -> Mode {
        match arg {
            ReadbackArg::Full => Mode::Full,
            ReadbackArg::Sample => Mode::Sample,
            ReadbackArg::None => Mode::None,
        }
    }
}

fn limits(read: Option<&str>, cpu: Option<u8>) -> Result<Limits> {
    Ok(Limits { read_bytes_per_second: read.map(parse_rate).transpose()?, cpu_percent: cpu, ..Limits::default() })
}

/// A moment as RFC 3339.
pub fn parse_time(text: &str) -> Result<Timestamp> {
    text.parse()
        .map_err(|e| Error::usage(format!("Time '{text}': expected RFC 3339, as in 2026-11-20T08:00:00Z")).because(e))
}
