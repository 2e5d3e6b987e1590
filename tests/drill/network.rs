//! Networks of drills: made by us, shared by drills that name the same one, and apart from this host.

use super::{Centre, gone, id_of, processes};
use crate::common::{tool, try_tool};
use serde_json::Value;
use std::path::Path;

/// What stands in a network's namespace, by `ip`; none where it is not there.
fn interfaces(network: &str) -> Vec<String> {
    let namespace = format!("motiongear-{network}");
    if !Path::new("/run/netns").join(&namespace).exists() {
        return Vec::new();
    }
    let text = tool("ip", ["-n", &namespace, "-o", "link", "show"]);
    let name = |line: &str| line.split(": ").nth(1).map(|name| name.split('@').next().unwrap_or(name).to_owned());
    text.lines().filter_map(name).collect()
}

fn nics(drill: &Value) -> Vec<(String, String)> {
    let nics = drill["network"]["nics"].as_array().unwrap();
    let text = |nic: &Value, key: &str| nic[key].as_str().unwrap().to_owned();
    nics.iter().map(|nic| (text(nic, "tap"), text(nic, "mac"))).collect()
}

#[test]
fn drills_meet_on_a_network_that_nothing_of_this_host_is_on() {
    let name = format!("t{}", std::process::id());
    let centre = Centre::of_the_machine();
    centre.import(&centre.to_dir(), &[]).run().ok();
    // An interface of the host is no such network, whatever it is.
    let bridge = format!("mgbr{}", std::process::id());
    tool("ip", ["link", "add", &bridge, "type", "bridge"]);
    let ran = centre.start(&["--network", &bridge, "--dry-run"]).run();
    let _ = try_tool("ip", ["link", "delete", &bridge]);
    ran.code(1);
    centre.start(&["--network", "lo", "--dry-run"]).run().code(1);
    centre.start(&["--network", "../net", "--dry-run"]).run().code(2);

    let first = centre.early(&["--network", &name]);
    let second = centre.early(&["--network", &name]);
    // Seeded from an image: of its cards nothing is known, and the seeding host's are none of it.
    let (one, two) = (nics(&first["drill"]), nics(&second["drill"]));
    assert_eq!((one.len(), two.len()), (1, 1));
    assert_ne!(one[0].1, two[0].1, "two machines of one network have one address");
    let here: Vec<String> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .filter_map(|nic| std::fs::read_to_string(nic.unwrap().path().join("address")).ok())
        .collect();
    assert!(here.iter().all(|mac| mac.trim() != one[0].1 && mac.trim() != two[0].1), "{one:?} {two:?} {here:?}");
    let mut found = interfaces(&name);
    found.sort();
    let mut wanted = vec!["drill".to_owned(), "lo".to_owned(), one[0].0.clone(), two[0].0.clone()];
    wanted.sort();
    assert_eq!(found, wanted);
    // Nothing in there has an address, and nothing of it is on this host.
    let namespace = format!("motiongear-{name}");
    let addresses = tool("ip", ["-n", &namespace, "-o", "addr", "show"]);
    assert!(!addresses.contains("inet"), "{addresses}");
    for (tap, _) in one.iter().chain(&two) {
        assert!(!Path::new("/sys/class/net").join(tap).exists(), "{tap} is on this host");
    }

    // Whoever is killed: the other stays, and the network goes with the last.
    let (first, second) = (id_of(&first), id_of(&second));
    super::kill(&first, "drill-keeper");
    gone(|| processes(&first).is_empty());
    centre.end(&first);
    assert!(interfaces(&name).contains(&two[0].0), "{:?}", interfaces(&name));
    centre.end(&second);
    assert_eq!(interfaces(&name), Vec::<String>::new());
}

#[test]
fn every_card_of_a_machines_own_facts_is_there() {
    let centre = Centre::of_a_plan_with_two_cards();
    centre.import(&centre.to_dir(), &[]).run().ok();
    let planned = centre.start(&["--network", "two", "--dry-run"]).run().ok();
    let macs: Vec<String> = nics(&planned["drill"]).into_iter().map(|(_, mac)| mac).collect();
    assert_eq!(macs, ["02:00:00:00:00:01", "02:00:00:00:00:02"]);
}
