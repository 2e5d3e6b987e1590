//! The plan of an import: which machine goes where in the clouds, and what it is to be there. TOML, strict like the plan of a seed.

use crate::error::{Error, Result};
use crate::openstack::server::{Nic, ServerPlan, parse_mac};
use crate::toml_text::{self, Lines};
use crate::volume::target::{Target, Wish};
use motiongear_manifest::names::{check_name, check_text};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::Spanned;

/// Most machines in a plan.
const MAX_MACHINES: usize = 4096;
/// Most disks of a machine, and interfaces of a server.
const MAX_DISKS: usize = 256;
const MAX_NICS: usize = 16;
/// Longest name that a cloud gives anything, bytes; what is written on a volume has no more room, either.
const MAX_NAME_BYTES: usize = 200;

/// Where machines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Of their disks.
    pub target: Target,
    /// What they are to be, by their names; nothing where the plan says nothing of it.
    pub servers: BTreeMap<String, ServerPlan>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    #[serde(default)]
    machine: Vec<RawMachine>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    name: Spanned<String>,
    to: Option<Spanned<String>>,
    flavour: Option<Spanned<String>>,
    #[serde(default)]
    nic: Vec<RawNic>,
    #[serde(default)]
    disk: Vec<RawDisk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNic {
    network: Spanned<String>,
    fixed_ip: Option<Spanned<String>>,
    mac: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDisk {
    name: Spanned<String>,
    to: Spanned<String>,
}

impl Mapping {
    /// Reads a plan file of at most 1 MiB.
    ///
    /// # Errors
    /// Unreadable or too large; otherwise as [`Mapping::parse`], with the file's name.
    pub fn read(path: &Path) -> Result<Mapping> {
        Mapping::parse(&toml_text::read(path)?).map_err(toml_text::named(path))
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// A usage error that names the line, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Mapping> {
        let next = "the manual shows a plan with every key (import: Where each machine goes)";
        let (raw, lines): (RawPlan, Lines) = toml_text::parse(text, next)?;
        if raw.machine.is_empty() || raw.machine.len() > MAX_MACHINES {
            let found = raw.machine.len();
            return Err(Error::usage(format!("Expected 1 to {MAX_MACHINES} machines, found {found}")).next(next));
        }
        let mut mapping = Reader { lines, wishes: BTreeMap::new(), addresses: BTreeSet::new() };
        let mut servers = BTreeMap::new();
        for machine in &raw.machine {
            let server = mapping.machine(machine)?;
            if servers.insert(machine.name.get_ref().clone(), server).is_some() {
                return Err(mapping.lines.wrong(
                    &machine.name,
                    "machine.name",
                    "each machine once",
                    machine.name.get_ref(),
                ));
            }
        }
        Ok(Mapping { target: Target::Each(mapping.wishes), servers })
    }
}

struct Reader {
    lines: Lines,
    wishes: BTreeMap<(String, Option<String>), Wish>,
    /// Addresses that are given away.
    addresses: BTreeSet<String>,
}

impl Reader {
    fn machine(&mut self, raw: &RawMachine) -> Result<ServerPlan> {
        let machine = self.name(&raw.name, "machine.name")?;
        for (count, most, what) in [(raw.disk.len(), MAX_DISKS, "disks"), (raw.nic.len(), MAX_NICS, "interfaces")] {
            if count > most {
                return Err(self.lines.wrong(&raw.name, "machine", &format!("at most {most} {what}"), count));
            }
        }
        if raw.to.is_none() && raw.disk.is_empty() {
            return Err(self.lines.wrong(&raw.name, "machine.to", "where its disks go", "nothing"));
        }
        if let Some(to) = &raw.to {
            let wish = self.wish(to, "machine.to")?;
            if matches!(wish, Wish::Dir(_) | Wish::Device(_) | Wish::Export(_)) {
                let expected = "rbd:POOL or cinder:CLOUD, in which each of its disks gets a volume";
                return Err(self.lines.wrong(to, "machine.to", expected, to.get_ref()));
            }
            self.wishes.insert((machine.clone(), None), wish);
        }
        for disk in &raw.disk {
            let name = self.name(&disk.name, "disk.name")?;
            let wish = self.wish(&disk.to, "disk.to")?;
            if matches!(wish, Wish::Dir(_)) {
                // Of one disk the ledger could not write it down so that it is read again.
                let expected = "dev:, nbd:, rbd: or cinder: (dir: is for all disks: --to)";
                return Err(self.lines.wrong(&disk.to, "disk.to", expected, disk.to.get_ref()));
            }
            if self.wishes.insert((machine.clone(), Some(name)), wish).is_some() {
                return Err(self.lines.wrong(&disk.name, "disk.name", "each disk once", disk.name.get_ref()));
            }
        }
        let flavour = raw.flavour.as_ref().map(|flavour| self.text(flavour, "machine.flavour")).transpose()?;
        let nics = raw.nic.iter().map(|nic| self.nic(nic)).collect::<Result<_>>()?;
        Ok(ServerPlan { flavour, nics })
    }

    fn nic(&mut self, raw: &RawNic) -> Result<Nic> {
        let network = self.text(&raw.network, "nic.network")?;
        let fixed_ip = match &raw.fixed_ip {
            None => None,
            Some(text) => {
                let wrong = || self.lines.wrong(text, "nic.fixed_ip", "an IP address", text.get_ref());
                Some(text.get_ref().parse().map_err(|_| wrong())?)
            }
        };
        let mac = match &raw.mac {
            None => None,
            Some(text) => {
                let expected = "the hardware address of one interface, as in fa:16:3e:00:00:0a";
                Some(
                    parse_mac(text.get_ref())
                        .ok_or_else(|| self.lines.wrong(text, "nic.mac", expected, text.get_ref()))?,
                )
            }
        };
        let nic = Nic { network, fixed_ip, mac };
        for (address, text) in
            [(nic.fixed_ip.map(|ip| format!("{ip} in {}", nic.network)), &raw.fixed_ip), (nic.mac.clone(), &raw.mac)]
        {
            if let (Some(address), Some(text)) = (address, text)
                && !self.addresses.insert(address.clone())
            {
                return Err(self.lines.wrong(text, "nic", "each address once", format!("{address} again")));
            }
        }
        Ok(nic)
    }

    fn wish(&self, to: &Spanned<String>, field: &str) -> Result<Wish> {
        Wish::parse(to.get_ref()).map_err(|error| {
            let wrong = Error::usage(format!("{}{field}: {}", self.lines.at(to), error.message));
            error.next.into_iter().fold(wrong, Error::next)
        })
    }

    fn name(&self, name: &Spanned<String>, field: &str) -> Result<String> {
        check_name(field, name.get_ref()).map_err(|error| Error::usage(format!("{}{error}", self.lines.at(name))))?;
        Ok(name.get_ref().clone())
    }

    fn text(&self, text: &Spanned<String>, field: &str) -> Result<String> {
        let wrong = |why: String| Error::usage(format!("{}{why}", self.lines.at(text)));
        check_text(field, text.get_ref(), MAX_NAME_BYTES).map_err(|error| wrong(error.to_string()))?;
        match text.get_ref().is_empty() {
            true => Err(self.lines.wrong(text, field, "a name", "none")),
            false => Ok(text.get_ref().clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[machine]]
name = "db01"
to = "cinder:bank?type=ssd"
flavour = "bank.large"
[[machine.nic]]
network = "ledger"
fixed_ip = "10.2.0.5"
mac = "FA:16:3E:00:00:0A"
[[machine.disk]]
name = "sdb"
to = "rbd:archive?id=import"
[[machine]]
name = "app01"
[[machine.disk]]
name = "sda"
to = "dev:/dev/disk/by-id/x=y"
"#;

    #[test]
    fn a_plan_says_where_machines_go_and_what_they_are_to_be() {
        let Mapping { target, servers } = Mapping::parse(GOOD).unwrap();
        let at = |machine: &str, disk: &str| target.wish(machine, disk).map(|wish| format!("{}:{wish}", wish.kind()));
        assert_eq!(at("db01", "sda").as_deref(), Some("cinder:bank?type=ssd"));
        assert_eq!(at("db01", "sdb").as_deref(), Some("rbd:archive?id=import"));
        assert_eq!(at("app01", "sda").as_deref(), Some("dev:/dev/disk/by-id/x=y"));
        assert_eq!(at("app01", "sdb"), None);
        let pairs = servers["db01"].pairs();
        assert_eq!(pairs[1], ("nic0".into(), "network=ledger fixed_ip=10.2.0.5 mac=fa:16:3e:00:00:0a".into()));
        assert_eq!((pairs[0].1.as_str(), servers.len()), ("bank.large", 2));
        assert!(servers["app01"].is_empty());
        // As the ledger keeps it.
        assert_eq!(Target::read(&target.to_string()).unwrap(), target);
    }

    #[test]
    fn what_is_wrong_in_a_plan_is_said_with_its_line() {
        for (from, to, line, part) in [
            ("name = \"db01\"", "name = \"db/01\"", 3, "machine.name"),
            ("\"app01\"", "\"db01\"", 14, "each machine once"),
            ("to = \"cinder:bank?type=ssd\"", "to = \"dir:/srv\"", 4, "rbd:POOL or cinder:CLOUD"),
            ("to = \"cinder:bank?type=ssd\"", "to = \"dev:/dev/vdb\"", 4, "rbd:POOL or cinder:CLOUD"),
            ("cinder:bank?type=ssd", "cinder:bank?colour=red", 4, "colour=red"),
            ("cinder:bank?type=ssd", "tape:1", 4, "another kind"),
            ("\"bank.large\"", "\"\"", 5, "machine.flavour"),
            ("\"10.2.0.5\"", "\"10.2.0.500\"", 8, "an IP address"),
            ("FA:16:3E:00:00:0A", "01:00:5e:00:00:01", 9, "hardware address"),
            ("name = \"sdb\"", "nome = \"sdb\"", 11, "nome"),
            ("to = \"rbd:archive?id=import\"", "to = \"rbd:\"", 12, "disk.to"),
            (
                "to = \"rbd:archive?id=import\"",
                "to = \"dir:/srv\"",
                12,
                "disk.to: expected dev:, nbd:, rbd: or cinder:",
            ),
            ("[[machine.disk]]\nname = \"sda\"\nto = \"dev:/dev/disk/by-id/x=y\"", "", 14, "where its disks go"),
        ] {
            let changed = GOOD.replace(from, to);
            assert_ne!(changed, GOOD, "{from}");
            let error = Mapping::parse(&changed).unwrap_err();
            assert!(error.message.starts_with(&format!("Line {line}: ")), "{from} → {to}: {}", error.message);
            assert!(error.message.contains(part), "{from} → {to}: {}", error.message);
        }
        let twice = format!("{GOOD}[[machine.nic]]\nnetwork = \"ledger\"\nfixed_ip = \"10.2.0.5\"\n");
        assert!(Mapping::parse(&twice).unwrap_err().message.contains("each address once"));
        assert!(Mapping::parse("").unwrap_err().message.contains("1 to 4096 machines"));
    }
}
