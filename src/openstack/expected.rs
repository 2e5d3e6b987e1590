//! Whether a cloud has what a plan says of a machine: its flavour, its networks, and the addresses there. No import makes a server; but
//! who finds out on the night of the cutover that an address is taken has found out too late.
//! Source: Networking API v2.0 (networks, subnets, ports); ports of other projects are seen by its administrators only.

use super::server::{Nic, ServerPlan};
use super::session::{Service, Session};
use super::volumes::{id, list, text};
use crate::error::{Error, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::net::IpAddr;

const ASK: &str = "mend the plan, or have it made there before the import";

/// Looks for all of it; returns what people should know: services that are not there to be asked, addresses that are taken, ports that
/// wait already.
///
/// # Errors
/// A flavour or network is not there, an address does not belong to it; the cloud does not answer.
pub fn expect_server(session: &Session, machine: &str, plan: &ServerPlan) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut unasked = |service: Service, what: &str| {
        notes.push(format!(
            "machine {machine}: whether cloud {} has {what} was not looked at: it has no {} in its catalogue",
            session.shown(),
            service.name()
        ));
    };
    match &plan.flavour {
        Some(flavour) if session.has(Service::Compute) => drop(session.flavour(flavour)?),
        Some(flavour) => unasked(Service::Compute, &format!("flavour {flavour}")),
        None => {}
    }
    if !plan.nics.is_empty() && !session.has(Service::Network) {
        unasked(Service::Network, "its networks");
        return Ok(notes);
    }
    for nic in &plan.nics {
        notes.extend(look(session, machine, nic)?);
    }
    Ok(notes)
}

impl Session {
    fn network(&self, path: &str, what: &str) -> Result<Value> {
        let answer = self.ask_of(Service::Network, "GET", &format!("/v2.0{path}"), None)?;
        self.good(answer, what)
    }
}

fn look(session: &Session, machine: &str, nic: &Nic) -> Result<Vec<String>> {
    let place = format!("Cloud {}: machine {machine}: network {}", session.shown(), nic.network);
    let network = network(session, &place, &nic.network)?;
    let mut notes = Vec::new();
    let mut free = |what: &str, value: &str, filter: &str| -> Result<()> {
        let path = format!("/ports?network_id={network}&{filter}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        for port in list(&session.network(&path, "its ports")?, "ports") {
            let (port_id, device) = (text(&port["id"]), text(&port["device_id"]));
            if !device.is_empty() {
                // Perhaps of this very machine, brought up before: whoever reads it knows.
                let owner = text(&port["device_owner"]);
                notes.push(format!("{place}: {what} is taken by port {port_id:.64} of {owner:.64} {device:.64}"));
                continue;
            }
            notes.push(format!("{place}: port {port_id:.64} has {what} and waits for a machine"));
        }
        Ok(())
    };
    if let Some(ip) = nic.fixed_ip {
        let subnets = session.network(&format!("/subnets?network_id={network}"), "its subnets")?;
        let known: Vec<String> = list(&subnets, "subnets").iter().map(|subnet| text(&subnet["cidr"])).collect();
        if !known.iter().any(|cidr| contains(cidr, ip)) {
            let found = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(
                Error::usage(format!("{place}: expected a subnet with address {ip}, found {found:.500}")).next(ASK)
            );
        }
        free(&format!("address {ip}"), &format!("ip_address={ip}"), "fixed_ips")?;
    }
    if let Some(mac) = &nic.mac {
        free(&format!("hardware address {mac}"), mac, "mac_address")?;
    }
    notes.dedup();
    Ok(notes)
}

/// The id of the network of this name or id.
fn network(session: &Session, place: &str, wanted: &str) -> Result<String> {
    let key = if uuid::Uuid::parse_str(wanted).is_ok() { "id" } else { "name" };
    let path = format!("/networks?{key}={}", utf8_percent_encode(wanted, NON_ALPHANUMERIC));
    let body = session.network(&path, "its networks")?;
    let found: Vec<&Value> = list(&body, "networks").iter().filter(|network| network[key] == wanted).collect();
    match found.as_slice() {
        [network] => id(&network["id"]),
        [] => Err(Error::usage(format!("{place}: expected it in project {}, found none", session.project_name()))
            .next("see 'openstack network list'")),
        several => Err(Error::usage(format!("{place}: expected one of this name, found {}", several.len()))
            .next("write its UUID in the plan")),
    }
}

/// Whether `ip` lies in `cidr`, as in RFC 4632 and RFC 4291.
fn contains(cidr: &str, ip: IpAddr) -> bool {
    let Some((net, bits)) =
        cidr.split_once('/').and_then(|(net, bits)| Some((net.parse().ok()?, bits.parse::<u32>().ok()?)))
    else {
        return false;
    };
    let (net, ip, width) = match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => (u128::from(net.to_bits()), u128::from(ip.to_bits()), 32),
        (IpAddr::V6(net), IpAddr::V6(ip)) => (net.to_bits(), ip.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (net ^ ip).checked_shr(width - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_lies_in_its_subnet_or_does_not() {
        for (cidr, ip, within) in [
            ("10.20.0.0/24", "10.20.0.5", true),
            ("10.20.0.0/24", "10.20.1.5", false),
            ("10.20.0.0/0", "192.168.1.1", true),
            ("10.20.0.5/32", "10.20.0.5", true),
            ("10.20.0.5/32", "10.20.0.4", false),
            ("10.20.0.0/33", "10.20.0.0", false),
            ("fd00::/8", "fd12::1", true),
            ("::/0", "fd12::1", true),
            ("fd00::/64", "fd00:0:0:1::1", false),
            ("fd00::/64", "10.20.0.5", false),
            ("10.20.0.0", "10.20.0.0", false),
            ("x/24", "10.20.0.0", false),
        ] {
            assert_eq!(contains(cidr, ip.parse().unwrap()), within, "{cidr} {ip}");
        }
    }
}
