//! What a plan tells of a machine on which nothing of ours runs: its disks come from a storage array, a hypervisor, or by ssh.

use crate::error::Result;
use crate::inspect::{HostInventory, KnownBy, Nic};
use crate::openstack::server::parse_mac;
use crate::toml_text::Lines;
use crate::units::parse_size;
use motiongear_manifest::names::check_text;
use serde::Deserialize;
use toml::Spanned;

/// Longest of the texts, bytes.
const MAX_TEXT_BYTES: usize = 200;
/// Most interfaces.
const MAX_NICS: usize = 64;

/// `[machine.facts]`: whatever is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFacts {
    hostname: Option<Spanned<String>>,
    os: Option<Spanned<String>>,
    kernel: Option<Spanned<String>>,
    architecture: Option<Spanned<String>>,
    firmware: Option<Spanned<String>>,
    secure_boot: Option<bool>,
    vendor: Option<Spanned<String>>,
    product: Option<Spanned<String>>,
    serial: Option<Spanned<String>>,
    cpus: Option<u32>,
    memory: Option<Spanned<String>>,
    #[serde(default)]
    nic: Vec<RawNic>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNic {
    name: Spanned<String>,
    mac: Option<Spanned<String>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
}

impl RawFacts {
    /// As an inventory.
    ///
    /// # Errors
    /// A usage error that names the line, what was expected and what was found.
    pub fn inventory(&self, lines: &Lines) -> Result<HostInventory> {
        let text = |value: &Option<Spanned<String>>, field: &str| {
            value.as_ref().map(|value| read(value, field, lines)).transpose()
        };
        let firmware = text(&self.firmware, "facts.firmware")?;
        if let (Some(value), Some(text)) = (&self.firmware, &firmware)
            && !["bios", "uefi"].contains(&text.as_str())
        {
            return Err(lines.wrong(value, "facts.firmware", "bios or uefi", text));
        }
        let memory = match &self.memory {
            Some(value) => parse_size(value.get_ref())
                .map_err(|_| lines.wrong(value, "facts.memory", "a size as in 64GiB", value.get_ref()))?,
            None => 0,
        };
        if let Some(nic) = self.nic.get(MAX_NICS) {
            let expected = format!("at most {MAX_NICS} interfaces");
            return Err(lines.wrong(&nic.name, "facts.nic", &expected, self.nic.len()));
        }
        Ok(HostInventory {
            known_by: KnownBy::Plan,
            hostname: text(&self.hostname, "facts.hostname")?,
            os: text(&self.os, "facts.os")?,
            kernel: text(&self.kernel, "facts.kernel")?,
            architecture: text(&self.architecture, "facts.architecture")?.unwrap_or_default(),
            firmware,
            secure_boot: self.secure_boot,
            vendor: text(&self.vendor, "facts.vendor")?,
            product: text(&self.product, "facts.product")?,
            serial: text(&self.serial, "facts.serial")?,
            cpus: self.cpus.unwrap_or(0),
            memory_bytes: memory,
            nics: self.nic.iter().map(|nic| nic.read(lines)).collect::<Result<_>>()?,
            ..HostInventory::default()
        })
    }
}

impl RawNic {
    fn read(&self, lines: &Lines) -> Result<Nic> {
        let mac = self.mac.as_ref().map(|value| {
            parse_mac(value.get_ref()).ok_or_else(|| {
                lines.wrong(
                    value,
                    "nic.mac",
                    "the hardware address of one interface, as in fa:16:3e:00:00:0a",
                    value.get_ref(),
                )
            })
        });
        Ok(Nic {
            name: read(&self.name, "nic.name", lines)?,
            mac: mac.transpose()?,
            addresses: self
                .addresses
                .iter()
                .map(|value| {
                    let bare = value.get_ref().split('/').next().unwrap_or_default();
                    match bare.parse::<std::net::IpAddr>() {
                        Ok(_) => Ok(value.get_ref().clone()),
                        Err(_) => {
                            Err(lines.wrong(value, "nic.addresses", "an address as in 10.2.0.5/24", value.get_ref()))
                        }
                    }
                })
                .collect::<Result<_>>()?,
            // As cards are: a plan names no bridges.
            physical: true,
            ..Nic::default()
        })
    }
}

fn read(value: &Spanned<String>, field: &str, lines: &Lines) -> Result<String> {
    check_text(field, value.get_ref(), MAX_TEXT_BYTES)
        .map_err(|error| crate::error::Error::usage(format!("{}{error}", lines.at(value))))?;
    Ok(value.get_ref().clone())
}
