//! `serve`.

use super::centre::parse_time;
use super::source::named_source;
use crate::copy::throttle::Limits;
use crate::copy::windows::Windows;
use crate::error::{Error, IoContext, Result};
use crate::nbd::Pin;
use crate::nbd::serve::Place;
use crate::plan::Plan;
use crate::serve::{Options, What};
use crate::trust::Expected;
use crate::units::parse_rate;
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Offer disks over NBD, read-only: of a sealed shipment, or of this host for the one that has the array.
#[derive(Args)]
pub struct ServeArgs {
    /// The array of a sealed shipment, whose disks are offered as MACHINE/DISK.
    #[arg(long, value_name = "ARRAY", requires = "trust")]
    from: Option<PathBuf>,
    /// With --from: only this disk, as NAME or MACHINE/NAME. Without: a disk of this host and where it is read from; repeat for more.
    #[arg(long, value_name = "DISK|NAME=SOURCE", required_unless_present_any = ["from", "plan", "pin", "client_files"])]
    disk: Vec<String>,
    /// The disks of the one machine in this TOML file, with its limits and windows; `inspect --plan-out` writes one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "disk"])]
    plan: Option<PathBuf>,
    /// Listen at a unix socket, which only you can reach.
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,
    /// Listen at a TCP address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Let in the host with this pin, with TLS, and nobody else; repeat for more.
    #[arg(long, value_name = "PIN")]
    client: Vec<String>,
    /// At an address of this host alone: let in everybody on it, without TLS.
    #[arg(long)]
    plain: bool,
    /// Only say what this host's own pin is.
    #[arg(long, conflicts_with_all = ["from", "disk", "plan", "socket", "listen", "client", "plain"])]
    pin: bool,
    /// Only make this directory, with the certificates by which a client of others (QEMU, nbdcopy) comes in, and say its pin.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["from", "disk", "plan", "socket", "listen", "client", "plain", "pin"])]
    client_files: Option<PathBuf>,
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
    /// With --from: judge the signer's validity at this time instead of now.
    #[arg(long, value_name = "TIME", requires = "from")]
    verify_time: Option<String>,
    /// With --from: only this machine.
    #[arg(long, value_name = "NAME", requires = "from")]
    machine: Option<String>,
    /// Read at most so much a second, for all clients together.
    #[arg(long, value_name = "RATE")]
    read_limit: Option<String>,
    /// Use at most this share of the whole machine's CPU time.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu_limit: Option<u8>,
    /// Do not watch the disks' own latency.
    #[arg(long, conflicts_with = "from")]
    no_latency_guard: bool,
}

impl ServeArgs {
    pub fn options(self) -> Result<Options> {
        let plan = self.plan.as_deref().map(Plan::read).transpose()?;
        let (planned, windows) = match &plan {
            Some(plan) => (plan.limits.clone(), Windows::new(&plan.windows)?),
            None => Default::default(),
        };
        let pin = |text: &String| {
            Pin::parse(text).ok_or_else(|| {
                Error::usage(format!("--client {text}: expected a pin as XXXX-XXXX-XXXX-XXXX"))
                    .next("'motiongear serve --pin' on the client says it")
            })
        };
        let limits = Limits {
            read_bytes_per_second: self
                .read_limit
                .as_deref()
                .map(parse_rate)
                .transpose()?
                .or(planned.read_bytes_per_second),
            cpu_percent: self.cpu_limit.or(planned.cpu_percent),
            windows,
            latency_guard: None,
        };
        let latency_guard = !self.no_latency_guard && planned.latency_guard.unwrap_or(true);
        let place = match (&self.socket, self.listen) {
            (Some(path), _) => Some(Place::Unix(absolute(path)?)),
            (None, Some(address)) => Some(Place::Tcp(address)),
            (None, None) if self.pin || self.client_files.is_some() => None,
            (None, None) => {
                return Err(Error::usage("Serve: expected --socket PATH or --listen ADDRESS:PORT, found neither"));
            }
        };
        let clients = self.client.iter().map(pin).collect::<Result<_>>()?;
        Ok(Options { place, clients, plain: self.plain, limits, what: self.what(plan, latency_guard)? })
    }

    fn what(self, plan: Option<Plan>, latency_guard: bool) -> Result<What> {
        if self.pin {
            return Ok(What::Nothing);
        }
        if let Some(dir) = self.client_files {
            return Ok(What::ClientFiles(
                std::path::absolute(&dir).context(|| format!("Directory {}", dir.display()))?,
            ));
        }
        if let Some(plan) = plan {
            let [machine] = plan.machines.as_slice() else {
                let found = plan.machines.len();
                return Err(Error::usage(format!("Plan: expected one machine, this one, found {found}")));
            };
            let copied = machine.disks.iter().filter(|disk| disk.exclude.is_none());
            let disks = copied.map(|disk| (disk.name.clone(), disk.source.clone())).collect();
            if !machine.hooks.is_empty() {
                return Err(Error::usage("Plan: expected no hooks, found some: nobody would say of which instant what is served is")
                    .next("make the snapshot, name it as the disk's source, and seed it with --point-in-time; remove it when serve has ended"));
            }
            return Ok(What::Sources { disks, latency_guard });
        }
        let (Some(array), Some(trust)) = (self.from, self.trust) else {
            let disks = self.disk.iter().map(|text| named_source(text)).collect::<Result<_>>()?;
            return Ok(What::Sources { disks, latency_guard });
        };
        if self.disk.len() > 1 {
            return Err(
                Error::usage("--disk: expected one beside --from, found more").next("leave it out for all disks")
            );
        }
        Ok(What::Shipment {
            array,
            trust,
            identity: self.identity,
            expected: Expected { seal: self.expect_seal, uncompared: self.uncompared },
            verify_time: self.verify_time.as_deref().map(parse_time).transpose()?,
            machine: self.machine,
            disk: self.disk.into_iter().next(),
        })
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(|| format!("Socket {}", path.display()))
}
