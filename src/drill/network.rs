//! A network for a drill: an existing bridge that leads nowhere. A copy of a bank's server that meets the original, or the world, is an
//! incident; so everything that could lead out is refused.

use super::record::Network;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::program;
use crate::source::SysRoot;
use std::time::Duration;
use uuid::Uuid;

/// For `ip`, which asks the kernel only.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest name of an interface.
const MAX_NAME_BYTES: usize = 15;
/// How names of our interfaces begin.
const TAP: &str = "mgd";

/// Looks at the bridge, and names our interface on it.
///
/// # Errors
/// It is no bridge, or something leads out of it.
pub fn plan(context: &Context, bridge: &str, drill: Uuid, inventory: &serde_json::Value) -> Result<Network> {
    check(&context.sys, bridge)?;
    let nics = inventory["nics"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own =
        nics.iter().filter(|nic| nic["physical"] == true).filter_map(|nic| nic["mac"].as_str()).find(|mac| is_mac(mac));
    let id = drill.simple().to_string();
    let made = || format!("52:54:00:{}:{}:{}", &id[0..2], &id[2..4], &id[4..6]);
    Ok(Network {
        bridge: bridge.to_owned(),
        tap: format!("{TAP}{}", &id[..8]),
        mac: own.map_or_else(made, str::to_owned),
    })
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit()))
}

/// Refuses a bridge from which a packet could get anywhere but to other machines on it.
pub fn check(sys: &SysRoot, bridge: &str) -> Result<()> {
    let refuse = |found: String, next: &str| {
        Err(Error::failed(format!("Network {bridge:.50}: expected a bridge that leads nowhere, found {found}"))
            .next(next.to_owned()))
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if bridge.is_empty() || bridge.len() > MAX_NAME_BYTES || !bridge.chars().all(plain) || bridge.starts_with('.') {
        return Err(Error::usage(format!("Network '{bridge:.50}': expected none or the name of a bridge")));
    }
    let class = format!("sys/class/net/{bridge}");
    if !sys.path(&format!("{class}/bridge")).is_dir() {
        return refuse("no bridge of that name".into(), "make one: ip link add NAME type bridge; ip link set NAME up");
    }
    let ports = std::fs::read_dir(sys.path(&format!("{class}/brif"))).into_iter().flatten().flatten();
    for port in ports.filter_map(|port| port.file_name().into_string().ok()) {
        // Whatever else is in it (a card, a tunnel, an end of a pair, another program's machine) leads somewhere.
        if !port.starts_with(TAP) {
            return refuse(format!("port {port} in it"), "take a bridge without ports: drills bring their own");
        }
    }
    let above = std::fs::read_dir(sys.path(&class)).into_iter().flatten().flatten();
    let above = above.filter_map(|entry| entry.file_name().into_string().ok()).find(|name| name.starts_with("upper_"));
    if let Some(above) = above {
        return refuse(format!("{} on it", above.trim_start_matches("upper_")), "take a bridge that nothing stands on");
    }
    let route = sys.text("proc/net/route").unwrap_or_default();
    let default4 = route
        .lines()
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>())
        .any(|f| f == [bridge, "00000000"]);
    let route6 = sys.text("proc/net/ipv6_route").unwrap_or_default();
    let default6 = route6.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
        fields.len() == 10 && fields[9] == bridge && fields[0].chars().all(|c| c == '0') && fields[1] == "00"
    });
    if default4 || default6 {
        return refuse("that this host's default route is behind it".into(), "take a bridge without routes");
    }
    for family in ["ipv4", "ipv6"] {
        let forwards = sys.text(&format!("proc/sys/net/{family}/conf/{bridge}/forwarding"));
        if forwards.is_some_and(|on| on.trim() != "0") {
            return refuse(
                format!("that this host forwards {family} from it"),
                &format!("switch that off: sysctl net.{family}.conf.{bridge}.forwarding=0"),
            );
        }
    }
    Ok(())
}

/// Makes our interface on the bridge.
///
/// # Errors
/// The kernel refuses; the bridge leads somewhere by now.
pub fn connect(sys: &SysRoot, network: &Network) -> Result<()> {
    ip(&["tuntap", "add", "dev", &network.tap, "mode", "tap"])?;
    ip(&["link", "set", "dev", &network.tap, "master", &network.bridge])?;
    // Since it was planned somebody may have led it out.
    check(sys, &network.bridge)?;
    ip(&["link", "set", "dev", &network.tap, "up"])
}

/// Removes it. Says whether it was there.
///
/// # Errors
/// The kernel refuses.
pub fn disconnect(sys: &SysRoot, network: &Network) -> Result<bool> {
    // Ours and no other, whatever stands in the file.
    if !network.tap.starts_with(TAP) || !sys.path(&format!("sys/class/net/{}", network.tap)).exists() {
        return Ok(false);
    }
    ip(&["link", "delete", "dev", &network.tap]).map(|()| true)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let mut command = program::command("ip");
    command.args(arguments);
    let ended = program::run(command, LIMIT, "Debian: iproute2")?;
    match ended.code {
        Some(0) => Ok(()),
        _ => Err(Error::failed(format!("ip {}: {}", arguments.join(" "), ended.words))
            .next("a drill with a network takes root's rights over interfaces")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn only_a_bridge_that_leads_nowhere_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (root, sys) = (dir.path(), SysRoot::new(dir.path()));
        let refused = |name: &str, part: &str| {
            let said = check(&sys, name).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        };
        refused("drill0", "no bridge of that name");
        put(root, "sys/class/net/drill0/bridge/stp_state", "0");
        put(root, "sys/class/net/drill0/brif/mgd1/priority", "0");
        put(root, "sys/class/net/mgd1/address", "");
        for family in ["ipv4", "ipv6"] {
            put(root, &format!("proc/sys/net/{family}/conf/drill0/forwarding"), "0\n");
        }
        put(
            root,
            "proc/net/route",
            "Iface\tDestination\tGateway\neth0\t00000000\t0100000A\ndrill0\t0000000A\t00000000\n",
        );
        check(&sys, "drill0").unwrap();
        for name in ["", ".", "../net", "a b", "sixteencharacter", "a/b"] {
            assert_eq!(check(&sys, name).unwrap_err().kind, crate::error::Kind::Usage, "{name}");
        }
        put(root, "sys/class/net/drill0/brif/bond0.7/priority", "0");
        refused("drill0", "port bond0.7 in it");
        put(root, "sys/class/net/drill0/upper_drill0.5/x", "");
        std::fs::remove_dir_all(root.join("sys/class/net/drill0/brif/bond0.7")).unwrap();
        refused("drill0", "drill0.5 on it");
        std::fs::remove_dir_all(root.join("sys/class/net/drill0/upper_drill0.5")).unwrap();
        put(root, "proc/sys/net/ipv6/conf/drill0/forwarding", "1\n");
        refused("drill0", "forwards ipv6");
        put(root, "proc/sys/net/ipv6/conf/drill0/forwarding", "0\n");
        let zeros = "0".repeat(32);
        put(
            root,
            "proc/net/ipv6_route",
            &format!(
                "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 drill0\n"
            ),
        );
        refused("drill0", "default route");
        put(root, "proc/net/ipv6_route", "");
        put(root, "proc/net/route", "Iface\tDestination\ndrill0\t00000000\t0100000A\n");
        refused("drill0", "default route");
    }
}
