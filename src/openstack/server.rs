//! What a machine is to be in a cloud, for whoever makes a server of it: no import does, but it checks what can be, and keeps it.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A server to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerPlan {
    /// Processors and memory, by the cloud's name for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flavour: Option<String>,
    /// Its network interfaces, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Name or UUID of the cloud's network.
    pub network: String,
    /// The address that it keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_ip: Option<IpAddr>,
    /// Its hardware address, lower case with colons.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl ServerPlan {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self == &ServerPlan::default()
    }

    /// For people, and on the machine's volumes: key and value.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let flavour = self.flavour.iter().map(|flavour| ("flavour".to_owned(), flavour.clone()));
        flavour.chain(self.nics.iter().enumerate().map(|(number, nic)| (format!("nic{number}"), nic.words()))).collect()
    }
}

impl Nic {
    /// For people.
    pub fn words(&self) -> String {
        let ip = self.fixed_ip.iter().map(|ip| format!("fixed_ip={ip}"));
        let mac = self.mac.iter().map(|mac| format!("mac={mac}"));
        let all: Vec<String> = std::iter::once(format!("network={}", self.network)).chain(ip).chain(mac).collect();
        all.join(" ")
    }
}

/// A hardware address that a network interface may have: six bytes in hexadecimal with colons or hyphens, and not one of a group.
pub fn parse_mac(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let bytes: Option<Vec<u8>> = parts
        .iter()
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+')))
        .collect();
    let bytes = bytes.filter(|bytes| bytes.len() == 6 && bytes[0] & 1 == 0 && bytes.iter().any(|byte| *byte != 0))?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_those_of_one_interface() {
        assert_eq!(parse_mac("FA-16-3e-00-00-0A").as_deref(), Some("fa:16:3e:00:00:0a"));
        for wrong in
            ["", "fa:16:3e:00:00", "01:00:5e:00:00:01", "00:00:00:00:00:00", "fa:16:3e:00:00:+1", "fa163e000001"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
