//! `seed` and `scan`: verbs that read sources.

use crate::context::Context;
use crate::copy::throttle::Limits;
use crate::copy::windows::Windows;
use crate::error::{Error, IoContext, Result};
use crate::plan::Plan;
use crate::source::Origin;
use crate::trust::prepared::Confirmation;
use crate::units::parse_rate;
use crate::{scan, seed};
use clap::Args;
use std::path::{Path, PathBuf};

/// Copy disks onto the array. Running it again resumes.
#[derive(Args)]
pub struct SeedArgs {
    /// Where the array is mounted.
    array: PathBuf,
    /// A disk and where it is read from: a path, FORMAT:PATH of an image, the URI of an NBD export, ssh:HOST:/PATH,
    /// qmp:SOCKET#DISK of a running machine, libvirt:DOMAIN#DISK of one under libvirt,
    /// rbd:POOL/IMAGE of Ceph, or vddk:… of VMware; repeat for more.
    #[arg(long, value_name = "NAME=SOURCE", required_unless_present = "plan", conflicts_with = "plan")]
    disk: Vec<String>,
    /// The machine that the disks belong to; this host's name if not given.
    #[arg(long, value_name = "NAME", conflicts_with = "plan")]
    machine: Option<String>,
    /// Machines, disks, limits, windows and hooks in a TOML file, as inspect writes one.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// OpenSSH allowed-signers file: shipment.json must be signed by somebody whom it allows to prepare arrays.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: Option<PathBuf>,
    /// The code of the recipients that init printed at the data centre; refused where the array names others.
    #[arg(long, value_name = "CODE", conflicts_with = "plaintext")]
    recipient_code: Option<String>,
    /// The shipment is not encrypted, and that is meant.
    #[arg(long)]
    plaintext: bool,
    /// Read at most so much a second from all sources together, as in 80MiB or 400Mbit.
    #[arg(long, value_name = "RATE")]
    read_limit: Option<String>,
    /// Use at most this share of the whole machine's CPU time.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu_limit: Option<u8>,
    /// Disks read at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Where what a running machine overwrites goes while its disks are read; the state directory if not given.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Compression: zstd with a level from 1 to 19, or none.
    #[arg(long, default_value = "zstd:1")]
    codec: String,
    /// You assert that no source changes while it is read (dismounted, or a snapshot): recorded as asserted.
    #[arg(long)]
    point_in_time: bool,
    /// Go on with a shipment that was sealed and not yet dispatched.
    #[arg(long)]
    reopen: bool,
    /// Do not watch the source disks' own latency.
    #[arg(long)]
    no_latency_guard: bool,
}

impl SeedArgs {
    pub fn options(self, context: &Context) -> Result<seed::Options> {
        let plan = match &self.plan {
            Some(path) => Plan::read(path)?,
            None => {
                let machine = self
                    .machine
                    .clone()
                    .or_else(|| context.sys.text("proc/sys/kernel/hostname").map(|name| name.trim().to_owned()));
                let machine = machine.ok_or_else(|| {
                    Error::usage("Machine: expected a name, found none").next("give one with --machine NAME")
                })?;
                let disks = self.disk.iter().map(|text| named_source(text)).collect::<Result<Vec<_>>>()?;
                Plan::from_disks(&machine, disks)?
            }
        };
        let limits = Limits {
            read_bytes_per_second: self
                .read_limit
                .as_deref()
                .map(parse_rate)
                .transpose()?
                .or(plan.limits.read_bytes_per_second),
            cpu_percent: self.cpu_limit.or(plan.limits.cpu_percent),
            windows: Windows::new(&plan.windows)?,
            latency_guard: None,
        };
        Ok(seed::Options {
            array: self.array,
            limits,
            latency_guard: !self.no_latency_guard && plan.limits.latency_guard.unwrap_or(true),
            jobs: self.jobs.or(plan.limits.jobs).map(usize::from),
            scratch: self.scratch.as_deref().map(scratch).transpose()?,
            level: parse_codec(&self.codec)?,
            point_in_time: self.point_in_time,
            reopen: self.reopen,
            confirmation: Confirmation {
                trust: self.trust,
                recipient_code: self.recipient_code,
                plaintext: self.plaintext,
            },
            plan,
        })
    }
}

/// Read the disks again and say what changed since they were shipped, from the ledger alone.
#[derive(Args)]
pub struct ScanArgs {
    /// Only this machine.
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// Only this disk, as NAME or MACHINE/NAME.
    #[arg(long, value_name = "DISK")]
    disk: Option<String>,
    /// Read a disk from another path, image or URI than it was seeded from: a snapshot of it, or its new name.
    #[arg(long, value_name = "MACHINE/DISK=SOURCE")]
    source: Vec<String>,
    /// Only disks of this shipment; the newest that holds a disk counts otherwise.
    #[arg(long, value_name = "UUID")]
    shipment: Option<uuid::Uuid>,
    /// Read at most so much a second from all sources together.
    #[arg(long, value_name = "RATE")]
    read_limit: Option<String>,
    /// Use at most this share of the whole machine's CPU time.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu_limit: Option<u8>,
    /// Disks read at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Where what a running machine overwrites goes while its disks are read; the state directory if not given.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Of the blocks that a record of changes (a dirty bitmap, a checkpoint, a snapshot in Ceph) calls clean, read this share all the same,
    /// and others each time.
    #[arg(long, value_name = "PERCENT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=100))]
    audit: u8,
}

impl TryFrom<ScanArgs> for scan::Options {
    type Error = Error;
    fn try_from(args: ScanArgs) -> Result<Self> {
        let limits = Limits {
            read_bytes_per_second: args.read_limit.as_deref().map(parse_rate).transpose()?,
            cpu_percent: args.cpu_limit,
            ..Limits::default()
        };
        Ok(scan::Options {
            machine: args.machine,
            disk: args.disk,
            sources: args.source.iter().map(|text| named_source(text)).collect::<Result<_>>()?,
            shipment: args.shipment,
            limits,
            jobs: args.jobs.map(usize::from),
            scratch: args.scratch.as_deref().map(scratch).transpose()?,
            audit_percent: args.audit,
        })
    }
}

pub(super) fn named_source(text: &str) -> Result<(String, Origin)> {
    let (name, source) =
        text.split_once('=').filter(|(name, source)| !name.is_empty() && !source.is_empty()).ok_or_else(|| {
            Error::usage(format!("--disk {text}: expected NAME=SOURCE"))
                .next("as in --disk sda=/dev/disk/by-id/wwn-0x5000c500a1b2c3d4")
        })?;
    Ok((name.to_owned(), Origin::typed(source)?))
}

fn scratch(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).context(|| format!("Scratch directory {}", dir.display()))
}

fn parse_codec(text: &str) -> Result<Option<i32>> {
    match text.split_once(':') {
        None if text == "none" => Ok(None),
        None if text == "zstd" => Ok(Some(1)),
        Some(("zstd", level)) if level.parse::<i32>().is_ok_and(|l| (1..=19).contains(&l)) => Ok(level.parse().ok()),
        _ => Err(Error::usage(format!("--codec {text}: expected zstd:1 to zstd:19, or none"))),
    }
}
