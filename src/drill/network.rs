//! A network for drills: a network namespace with one bridge in it, made by us. Drills that name the same network meet there. Nothing of this host is in
//! it: no interface, no address, no route, no service; a copy of a bank's server that meets the original, or the world, is an incident.
//!
//! The cards of a machine are ends of taps in that namespace. A process opens them there and hands them to QEMU, which itself stays where its disks
//! can be reached. A tap goes when its last holder does, and the namespace goes with the drill that leaves it last.

use super::folder::Folder;
use super::record::{DrillNic, Network};
use super::tap;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::nbd::RUN;
use crate::program;
use rustix::fs::FlockOperation;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// For `ip`, which asks the kernel only.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest name of a network.
const MAX_NAME_BYTES: usize = 15;
/// Most cards of a machine: slots of its bus.
const MAX_NICS: usize = 8;
/// How names of our taps begin.
const TAP: &str = "mgd";
/// The bridge in a namespace.
const BRIDGE: &str = "drill";
/// Where `ip` keeps namespaces, and how names of ours begin.
const NAMESPACES: &str = "/run/netns";
const PREFIX: &str = "motiongear-";

/// Names the network, and the machine's cards on it: all that its own inventory has (`nics`), one of ours where it has none.
///
/// # Errors
/// The name is no name, or an interface of this host has it.
pub fn plan(context: &Context, name: &str, drill: Uuid, nics: &[Value], notes: &mut Vec<String>) -> Result<Network> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(plain) || name.starts_with('.') {
        return Err(Error::usage(format!("Network '{name:.50}': not a name"))
            .next(format!("Pass --network with 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' or '.'")));
    }
    if context.sys.path(&format!("sys/class/net/{name}")).exists() {
        return Err(Error::failed(format!("Network {name}: an interface of this host has that name"))
            .next("Pass another name: MotionGear makes the network itself, apart from this host"));
    }
    let mut taken = taken(context, name)?;
    let id = drill.simple().to_string();
    let mut cards = Vec::new();
    // A host's bridges and tunnels are none of its cards.
    let is_card = |nic: &&Value| nic["physical"] == true && nic["mac"].as_str().is_some_and(is_mac);
    for nic in nics.iter().filter(is_card) {
        let (mac, called) = (nic["mac"].as_str().unwrap_or_default().to_ascii_lowercase(), nic["name"].as_str());
        let called = called.unwrap_or("a card");
        if cards.len() == MAX_NICS {
            notes.push(format!("{called}: left out, since a drill gives a machine {MAX_NICS} network cards at most"));
            continue;
        }
        let slot = cards.len();
        let mac = match taken.insert(mac.clone()) {
            true => mac,
            false => {
                notes.push(format!(
                    "{called}: another machine on network {name} has its address {mac}; it got one of ours"
                ));
                made(&id, slot)
            }
        };
        cards.push(DrillNic { tap: tap_name(&id, slot), mac, name: Some(called.to_owned()) });
    }
    if cards.is_empty() {
        notes.push("its own network cards are not known: it has one with an address of ours".into());
        cards.push(DrillNic { tap: tap_name(&id, 0), mac: made(&id, 0), name: None });
    }
    Ok(Network { name: name.to_owned(), nics: cards, tap: None, mac: None })
}

/// Addresses of machines of this ledger on the network.
fn taken(context: &Context, name: &str) -> Result<BTreeSet<String>> {
    let mut taken = BTreeSet::new();
    for (folder, drill) in Folder::list(&context.ledger)? {
        let Some(network) = drill.network.filter(|network| network.name == name) else { continue };
        if folder.ended()?.is_none() {
            taken.extend(network.nics.into_iter().map(|nic| nic.mac));
        }
    }
    Ok(taken)
}

fn tap_name(id: &str, slot: usize) -> String {
    format!("{TAP}{}{slot}", &id[..8])
}

/// An address of QEMU's own range, of 28 random bits.
fn made(id: &str, slot: usize) -> String {
    format!("52:54:{slot:x}{}:{}:{}:{}", &id[0..1], &id[1..3], &id[3..5], &id[5..7])
}

/// Six bytes, of one station and not of a group.
fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    // A sign would pass for a digit.
    let byte = |part: &&str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+'));
    let bytes: Option<Vec<u8>> = parts.iter().map(byte).collect();
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes[0] & 1 == 0 && bytes.iter().any(|byte| *byte != 0))
}

/// Makes the network where it is not there, and the machine's cards on it. Each card lives as long as what is given here.
///
/// # Errors
/// The kernel refuses; something else is in the network's namespace.
pub fn connect(network: &Network) -> Result<Vec<OwnedFd>> {
    let _alone = alone()?;
    let namespace = format!("{PREFIX}{}", network.name);
    if !Path::new(NAMESPACES).join(&namespace).exists() {
        ip(&["netns", "add", &namespace])?;
    }
    let path = Path::new(NAMESPACES).join(&namespace);
    let what = || format!("Network {}", network.name);
    // No address by itself, so that nothing on this side can be reached, ever.
    within(&path, || {
        for place in ["all", "default"] {
            let file = format!("/proc/sys/net/ipv6/conf/{place}/disable_ipv6");
            if Path::new(&file).exists() {
                std::fs::write(&file, "1").context(|| format!("File {file} of network {}", network.name))?;
            }
        }
        Ok(())
    })?;
    if !interfaces(&namespace)?.contains(BRIDGE) {
        ip(&["-n", &namespace, "link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["-n", &namespace, "link", "set", "dev", BRIDGE, "up"])?;
    }
    let foreign =
        interfaces(&namespace)?.into_iter().find(|name| ![BRIDGE, "lo"].contains(&&**name) && !name.starts_with(TAP));
    if let Some(foreign) = foreign {
        return Err(Error::failed(format!("{}: interface {foreign} is in it, which no drill made", what()))
            .next(format!("Remove it (ip -n {namespace} link delete {foreign}), or pass another name")));
    }
    let mut cards = Vec::new();
    for nic in &network.nics {
        let name = nic.tap.clone();
        cards.push(within(&path, move || tap::open(&name))?);
        ip(&["-n", &namespace, "link", "set", "dev", &nic.tap, "master", BRIDGE, "up"])?;
    }
    Ok(cards)
}

/// Removes the network, unless another drill is on it. Says whether it did.
///
/// # Errors
/// The kernel refuses.
pub fn disconnect(network: &Network) -> Result<bool> {
    let _alone = alone()?;
    let namespace = format!("{PREFIX}{}", network.name);
    if !Path::new(NAMESPACES).join(&namespace).exists() {
        return Ok(false);
    }
    if interfaces(&namespace)?.iter().any(|name| name.starts_with(TAP)) {
        return Ok(false);
    }
    ip(&["netns", "delete", &namespace]).map(|()| true)
}

/// One process at a time makes and removes networks.
fn alone() -> Result<File> {
    let _ = DirBuilder::new().mode(0o700).recursive(true).create(RUN);
    let path = PathBuf::from(RUN).join("networks");
    let what = || format!("Lock {}", path.display());
    let file = File::options().write(true).create(true).truncate(false).open(&path).context(what)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).context(what)?;
    Ok(file)
}

/// Names of what is in a namespace.
fn interfaces(namespace: &str) -> Result<BTreeSet<String>> {
    let mut command = program::command("ip");
    command.args(["-n", namespace, "-o", "link", "show"]);
    let ended = program::run(command, LIMIT, INSTALL)?;
    if ended.code != Some(0) {
        return Err(Error::failed(format!("ip -n {namespace} link show: {}", ended.words)));
    }
    // `2: drill: <BROADCAST…` or `3: mgd1@if2: <…`.
    let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    Ok(String::from_utf8_lossy(&ended.output).lines().filter_map(name).collect())
}

/// Does something in the namespace at `path`, on a thread of its own: a thread's namespace is its own.
fn within<T: Send>(path: &Path, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let what = || format!("Network namespace {}", path.display());
    let namespace = File::open(path).context(what)?;
    let doing = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context(what)
            .map_err(|error| error.next("Run the drill as root: a network needs CAP_SYS_ADMIN and CAP_NET_ADMIN"))?;
        act()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespace".into()).spawn_scoped(scope, doing).context(what)?;
        thread.join().unwrap_or_else(|_| Err(Error::failed(format!("{}: its thread ended", what()))))
    })
}

const INSTALL: &str = "Debian: iproute2";

fn ip(arguments: &[&str]) -> Result<()> {
    let mut command = program::command("ip");
    command.args(arguments);
    let ended = program::run(command, LIMIT, INSTALL)?;
    match ended.code {
        Some(0) => Ok(()),
        _ => Err(Error::failed(format!("ip {}: {}", arguments.join(" "), ended.words))
            .next("Run the drill as root: a network needs CAP_SYS_ADMIN and CAP_NET_ADMIN")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_one_station() {
        for id in ["00000000000000000000000000000000", "ffffffffffffffffffffffffffffffff"] {
            (0..MAX_NICS).for_each(|slot| assert!(is_mac(&made(id, slot)), "{}", made(id, slot)));
        }
        assert!(is_mac("02:00:00:00:00:01"));
        for text in ["", "00:00:00:00:00:00", "01:00:5e:00:00:01", "02:00:00:00:01", "+2:00:00:00:00:01", "2:0:0:0:0:1"]
        {
            assert!(!is_mac(text), "{text}");
        }
    }
}
