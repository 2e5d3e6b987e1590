//! `drill`.

use crate::drill::{
    Accel, Bus, ConfirmOptions, Firmware, SealedArray, StartFrom, StartOptions, StartThrough, WithdrawOptions,
};
use crate::error::{Error, Result};
use crate::trust::Expected;
use crate::units::parse_size;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Of a machine of which nothing is said.
const MEMORY: &str = "2GiB";
const CPUS: u32 = 1;

/// Boot a clone of a machine's recovery point, or the machine as it is sealed, apart from everything, and keep evidence of what became of it.
#[derive(Args)]
pub struct DrillArgs {
    #[command(subcommand)]
    pub what: DrillWhat,
}

#[derive(Subcommand)]
pub enum DrillWhat {
    /// Boot it, and wait until it asks for a login.
    Start(StartArgs),
    /// Show all drills of this ledger, or one.
    Show(ShowArgs),
    /// Say whether the machine did what it must, signed.
    Confirm(ConfirmArgs),
    /// Withdraw a wrong confirmation, signed; both stay on record.
    Withdraw(WithdrawArgs),
    /// End the machine and remove its clones; the evidence stays.
    End(EndArgs),
}

#[derive(Args)]
pub struct StartArgs {
    /// Which machine; all of its disks must be imported, or be on the array of --from.
    #[arg(value_name = "[SITE/]MACHINE")]
    machine: String,
    /// Boot it from this sealed array, without any import; not a recovery point.
    #[arg(long, value_name = "ARRAY", requires = "trust")]
    from: Option<PathBuf>,
    /// With --from: OpenSSH allowed-signers file: who may seal shipments.
    #[arg(long, value_name = "ALLOWED_SIGNERS", requires = "from")]
    trust: Option<PathBuf>,
    /// With --from: age identity file of a recipient.
    #[arg(long, value_name = "AGE_KEY", requires = "from")]
    identity: Option<PathBuf>,
    /// With --from: the spoken code or digest that the branch gave.
    #[arg(long, value_name = "CODE", requires = "from")]
    expect_seal: Option<String>,
    /// With --from: do without such a code, and without a signed arrival that names this seal.
    #[arg(long, requires = "from", conflicts_with = "expect_seal")]
    uncompared: bool,
    /// Text on its serial console that tells that all is up; a login prompt if not given.
    #[arg(long, value_name = "TEXT")]
    marker: Option<String>,
    /// How long that may take, as in 90s, 10m or 2h.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    within: String,
    /// Who runs it: QEMU on this host, or the compute service of the cloud in which its volumes are.
    #[arg(long, value_enum, default_value = "qemu")]
    through: ThroughArg,
    /// With --through nova: the cloud's flavour, which says its memory and processors; that of the import's plan if not given.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "memory", "cpus", "firmware", "disk_bus", "accel"])]
    flavour: Option<String>,
    /// Memory of the machine.
    #[arg(long, value_name = "SIZE", default_value = MEMORY)]
    memory: String,
    /// Processors of the machine.
    #[arg(long, value_name = "N", default_value_t = CPUS)]
    cpus: u32,
    /// Have virt-v2v-in-place adapt the clone first: drivers, initramfs, boot configuration.
    #[arg(long)]
    adapt: bool,
    /// How long that may take.
    #[arg(long, value_name = "TIME", default_value = "30m")]
    adapt_within: String,
    /// The disk that it boots from; the most likely one if not given.
    #[arg(long, value_name = "NAME")]
    boot_disk: Option<String>,
    /// How it boots; as its partition tables say if not given.
    #[arg(long, value_enum)]
    firmware: Option<FirmwareArg>,
    /// Where its disks hang; as the machine had them if not given, on virtio with --adapt.
    #[arg(long, value_enum)]
    disk_bus: Option<BusArg>,
    /// Who plays its processors; KVM where it works if not given.
    #[arg(long, value_enum)]
    accel: Option<AccelArg>,
    /// A network that drills of one name share and nothing else reaches, for machines that need each other.
    #[arg(long, value_name = "none|NAME", default_value = "none")]
    network: String,
}

#[derive(Args)]
pub struct ShowArgs {
    /// Which drill; the beginning of its UUID will do.
    pub id: Option<String>,
}

#[derive(Args)]
pub struct ConfirmArgs {
    /// Which drill; the beginning of its UUID will do.
    id: String,
    /// The machine did what it must.
    #[arg(long, required_unless_present = "failed", conflicts_with = "failed")]
    passed: bool,
    /// It did not.
    #[arg(long)]
    failed: bool,
    /// OpenSSH private key of who signs.
    #[arg(long, value_name = "SSH_KEY")]
    key: PathBuf,
    /// Name of that key's owner, if the key's comment is none.
    #[arg(long, value_name = "NAME@SITE")]
    signer: Option<String>,
    /// OpenSSH allowed-signers file to check that key with.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: Option<PathBuf>,
    /// Who says so, for the business.
    #[arg(long, value_name = "NAME")]
    person: String,
    /// Anything else.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
}

#[derive(Args)]
pub struct WithdrawArgs {
    /// Which drill; the beginning of its UUID will do.
    id: String,
    /// OpenSSH private key of who signs.
    #[arg(long, value_name = "SSH_KEY")]
    key: PathBuf,
    /// Name of that key's owner, if the key's comment is none.
    #[arg(long, value_name = "NAME@SITE")]
    signer: Option<String>,
    /// OpenSSH allowed-signers file to check that key with.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: Option<PathBuf>,
    /// Who withdraws it, for the business.
    #[arg(long, value_name = "NAME")]
    person: String,
    /// Why it was wrong.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Args)]
pub struct EndArgs {
    /// Which drill; the beginning of its UUID will do.
    pub id: String,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum ThroughArg {
    Qemu,
    Nova,
}

#[derive(Clone, Copy, ValueEnum)]
enum FirmwareArg {
    Bios,
    Uefi,
}

#[derive(Clone, Copy, ValueEnum)]
enum BusArg {
    Virtio,
    VirtioScsi,
    Sata,
    Ide,
    Nvme,
    Pvscsi,
}

#[derive(Clone, Copy, ValueEnum)]
enum AccelArg {
    Kvm,
    Tcg,
}

impl TryFrom<StartArgs> for StartOptions {
    type Error = Error;
    fn try_from(args: StartArgs) -> Result<Self> {
        let (site, machine) = match args.machine.split_once('/') {
            Some((site, machine)) => (Some(site.to_owned()), machine.to_owned()),
            None => (None, args.machine),
        };
        let given = args.firmware.is_some() || args.disk_bus.is_some() || args.accel.is_some();
        if args.through == ThroughArg::Nova && (given || args.memory != MEMORY || args.cpus != CPUS) {
            return Err(Error::usage(
                "Drill: expected no --memory, --cpus, --firmware, --disk-bus and --accel with --through nova, found one of them",
            )
            .next("there the flavour and what stands on the volume say it"));
        }
        let sealed = args.from.zip(args.trust);
        let sealed = sealed.map(|(array, trust)| SealedArray { array, trust, identity: args.identity });
        Ok(StartOptions {
            site,
            machine,
            from: sealed.map(|sealed| StartFrom {
                sealed,
                expected: Expected { seal: args.expect_seal, uncompared: args.uncompared },
            }),
            marker: args.marker,
            within_seconds: seconds(&args.within)?,
            memory_bytes: parse_size(&args.memory)?,
            cpus: args.cpus,
            adapt: Some(seconds(&args.adapt_within)?).filter(|_| args.adapt),
            firmware: args.firmware.map(|firmware| match firmware {
                FirmwareArg::Bios => Firmware::Bios,
                FirmwareArg::Uefi => Firmware::Uefi,
            }),
            boot_disk: args.boot_disk,
            bus: args.disk_bus.map(|bus| match bus {
                BusArg::Virtio => Bus::Virtio,
                BusArg::VirtioScsi => Bus::VirtioScsi,
                BusArg::Sata => Bus::Sata,
                BusArg::Ide => Bus::Ide,
                BusArg::Nvme => Bus::Nvme,
                BusArg::Pvscsi => Bus::Pvscsi,
            }),
            accel: args.accel.map(|accel| match accel {
                AccelArg::Kvm => Accel::Kvm,
                AccelArg::Tcg => Accel::Tcg,
            }),
            network: Some(args.network).filter(|network| network != "none"),
            through: match (args.through, args.flavour) {
                (ThroughArg::Nova, flavour) => Some(StartThrough { flavour }),
                (ThroughArg::Qemu, None) => None,
                (ThroughArg::Qemu, Some(_)) => {
                    return Err(Error::usage("Drill: expected --flavour with --through nova only, found it without"));
                }
            },
        })
    }
}

impl From<ConfirmArgs> for ConfirmOptions {
    fn from(args: ConfirmArgs) -> Self {
        let ConfirmArgs { id, passed, key, signer, trust, person, note, .. } = args;
        ConfirmOptions { drill: id, passed, key, signer, trust, person, note }
    }
}

impl From<WithdrawArgs> for WithdrawOptions {
    fn from(args: WithdrawArgs) -> Self {
        let WithdrawArgs { id, key, signer, trust, person, reason } = args;
        WithdrawOptions { drill: id, key, signer, trust, person, reason }
    }
}

/// `90s`, `10m`, `2h`; at most a week.
fn seconds(text: &str) -> Result<u64> {
    const WEEK: u64 = 7 * 24 * 3600;
    let unit = text
        .chars()
        .last()
        .and_then(|unit| Some((unit, [('s', 1), ('m', 60), ('h', 3600)].iter().find(|u| u.0 == unit)?.1)));
    let parsed = unit.and_then(|(unit, scale)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(scale));
    parsed
        .filter(|seconds| (1..=WEEK).contains(seconds))
        .ok_or_else(|| Error::usage(format!("Time '{text:.50}': expected 1s to a week, as in 90s, 10m or 2h")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_type_them() {
        for (text, seconds_) in [("90s", 90), ("10m", 600), ("2h", 7200), ("168h", 604_800)] {
            assert_eq!(seconds(text).unwrap(), seconds_);
        }
        for text in
            ["", "10", "m", "0s", "-1s", "169h", "1.5h", "10分", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
