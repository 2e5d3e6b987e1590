//! Goal: a plan decides where each machine goes, and what it is to be there is kept where everybody finds it. Method: one shipment, one
//! plan with a project, a pool and a server in it; the volumes' metadata are read past MotionGear, and the report as people get it.

use super::{Rest, as_user, nova, rbd, shared};
use crate::common::{Branch, Ran, b3sum, json_file, noise_at, sparse, sql};
use serde_json::{Value, json};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Once;

const PLAN: &str = r#"
[[machine]]
name = "db01"
to = "cinder:?project=bank&type=ceph"
flavour = "bank.large"

[[machine.nic]]
network = "ledger"
fixed_ip = "10.2.0.5"
mac = "FA:16:3E:00:00:0A"

[[machine.disk]]
name = "sdb"
to = "rbd:volumes?id=cinder"

# Another shipment brings this one.
[[machine]]
name = "app01"
to = "cinder:?type=iscsi"
"#;

/// A sealed shipment of db01's two disks.
struct Bank {
    branch: Branch,
    disks: [PathBuf; 2],
}

impl Bank {
    fn new() -> Bank {
        let branch = Branch::new();
        branch.init(&["--plaintext"]);
        let disks = ["sda", "sdb"].map(|name| branch.place.join(format!("{name}.raw")));
        for (seed, path) in disks.iter().enumerate() {
            sparse(path, 8 << 20);
            noise_at(&File::options().write(true).open(path).unwrap(), 1 << 20, 2 << 20, seed as u64 + 1);
        }
        branch.seed(&[("sda", &disks[0]), ("sdb", &disks[1])], &["--point-in-time"]).ok();
        branch.seal();
        Bank { branch, disks }
    }

    /// As somebody whose credentials are of another project.
    fn import(&self, plan: &str, extra: &[&str]) -> Ran {
        let plan = self.branch.place.file("import.toml", plan);
        let command =
            self.branch.motiongear().args(["--json", "import"]).arg(&self.branch.array).arg("--plan").arg(plan);
        as_user(command.arg("--trust").arg(&self.branch.trust).args(extra), "poor").run()
    }
}

/// Where the cloud has Compute and Networking, it has what the plan names there.
fn has_what_the_plan_names() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (admin, bank) = (Rest::new("admin", "admin"), Rest::new("bank", "bank"));
        let flavour = json!({ "flavor": { "name": "bank.large", "ram": 4096, "vcpus": 2, "disk": 0 } });
        assert!(matches!(admin.compute("POST", "/flavors", Some(flavour)).0, 200 | 409));
        if bank.networking("GET", "/networks?name=ledger", None).1["networks"] == json!([]) {
            let network = made(&bank, "network", json!({ "name": "ledger" }));
            let subnet = json!({ "network_id": network, "ip_version": 4, "cidr": "10.2.0.0/24", "enable_dhcp": false });
            made(&bank, "subnet", subnet);
        }
    });
}

/// The id of something that Networking has made.
fn made(rest: &Rest, what: &str, wanted: Value) -> String {
    let (code, body) = rest.networking("POST", &format!("/{what}s"), Some(json!({ what: wanted })));
    assert_eq!(code, 201, "{body}");
    body[what]["id"].as_str().unwrap().to_owned()
}

#[test]
fn what_a_plan_says_of_a_machine_is_looked_for_in_its_cloud_before_anything_is_made() {
    let _cloud = shared();
    if !nova::asked_for("what_a_plan_says_of_a_machine_is_looked_for_in_its_cloud_before_anything_is_made") {
        return;
    }
    has_what_the_plan_names();
    let (bank, rest) = (Bank::new(), Rest::new("bank", "bank"));
    let dry = |from: &str, to: &str| bank.import(&PLAN.replace(from, to), &["--dry-run"]);
    let notes = |ran: Ran| ran.ok()["notes"].to_string();
    let clean = notes(dry("", ""));
    assert!(!clean.contains("not looked at") && !clean.contains("waits for"), "{clean}");
    dry("bank.large", "bank.huge").refused(2, &["expected the flavour bank.huge", "bank.large"]);
    dry("\"ledger\"", "\"ledgers\"").refused(2, &["db01: network ledgers", "expected it in project bank, found none"]);
    dry("10.2.0.5", "10.3.0.5").refused(2, &["expected a subnet with address 10.3.0.5, found 10.2.0.0/24"]);
    // One that waits for the machine is said, and one that a machine has already.
    let network = rest.networking("GET", "/networks?name=ledger", None).1["networks"][0]["id"].clone();
    let port = |ip: &str, mac: &str| {
        let ips = json!([{ "ip_address": ip }]);
        made(&rest, "port", json!({ "network_id": network, "fixed_ips": ips, "mac_address": mac }))
    };
    let (waits, taken) = (port("10.2.0.6", "fa:16:3e:00:00:06"), port("10.2.0.7", "fa:16:3e:00:00:07"));
    let body =
        json!({ "port": { "device_id": "11111111-1111-1111-1111-111111111111", "device_owner": "compute:nova" } });
    assert_eq!(rest.networking("PUT", &format!("/ports/{taken}"), Some(body)).0, 200);
    let said = notes(dry("10.2.0.5", "10.2.0.6"));
    assert!(said.contains(&format!("port {waits} has address 10.2.0.6 and waits for a machine")), "{said}");
    let said = notes(dry("10.2.0.5", "10.2.0.7"));
    assert!(said.contains(&format!("address 10.2.0.7 is taken by port {taken} of compute:nova 11111111")), "{said}");
    let said = notes(dry("00:00:0A", "00:00:07"));
    assert!(said.contains("hardware address fa:16:3e:00:00:07 is taken by port"), "{said}");
    // A second network of this name: only its UUID tells.
    let second = made(&rest, "network", json!({ "name": "ledger" }));
    dry("", "").refused(2, &["expected one of this name, found 2", "write its UUID"]);
    dry("\"ledger\"", &network.to_string()).ok();
    for path in [format!("/ports/{waits}"), format!("/ports/{taken}"), format!("/networks/{second}")] {
        assert_eq!(rest.networking("DELETE", &path, None).0, 204, "{path}");
    }
}

#[test]
fn a_plan_says_where_machines_go_and_what_they_are_to_be_there() {
    let _cloud = shared();
    let compute = nova::asked_for("what the plan names is looked for");
    if compute {
        has_what_the_plan_names();
    }
    let bank = Bank::new();
    let import = |plan: &str, extra: &[&str]| bank.import(plan, extra);
    let Bank { branch, disks: [_, sdb] } = &bank;
    // A disk that is forgotten is not left behind without a word, and one that nobody has is a slip.
    let forgotten = PLAN.replace("to = \"cinder:?project=bank&type=ceph\"\n", "");
    import(&forgotten, &[]).refused(2, &["found nothing of db01/sda", "name them in the plan"]);
    import(&PLAN.replace("\"sdb\"", "\"sdx\""), &[]).refused(2, &["rbd:db01/sdx: expected a disk of shipment"]);
    import(&PLAN.replace("project=bank", "project=nobody"), &[]).refused(1, &["expected a token"]);
    let planned = import(PLAN, &["--dry-run"]).ok();
    assert_eq!(planned["servers"]["db01"]["nics"][0]["mac"], "fa:16:3e:00:00:0a", "{planned}");
    let notes = planned["notes"].to_string();
    assert!(notes.contains("machine app01, of which this shipment has no disk"), "{notes}");
    assert_eq!(notes.contains("flavour bank.large was not looked at: it has no Compute"), !compute, "{notes}");
    assert_eq!(notes.contains("its networks was not looked at: it has no Networking"), !compute, "{notes}");
    let done = import(PLAN, &[]).ok();
    assert!(done["disks"].as_array().unwrap().iter().all(|disk| disk["state"] == "imported"), "{done}");
    // In the project of the plan, with what stands there.
    let ledger = branch.state.join("ledger.db");
    let uuid = |name: &str| sql(&ledger, &format!("SELECT disk FROM volume WHERE disk_name = '{name}'"));
    let volumes = Rest::new("bank", "bank").volumes_of_uuid(&uuid("sda"));
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    let metadata = &volumes[0]["metadata"];
    assert_eq!(metadata["motiongear_flavour"], "bank.large", "{metadata}");
    let nic = "network=ledger fixed_ip=10.2.0.5 mac=fa:16:3e:00:00:0a";
    assert_eq!(metadata["motiongear_nic0"], nic);
    assert!(Rest::new("bank", "poor").volumes_of_uuid(&uuid("sda")).is_empty());
    let image = sql(&ledger, "SELECT location FROM volume WHERE disk_name = 'sdb'");
    let image = image.strip_prefix("rbd:").unwrap();
    assert_eq!(rbd(&["image-meta", "get", image, "motiongear_nic0"]).trim(), nic);
    let copy = branch.place.join("copy");
    rbd(&["export", "--no-progress", image, copy.to_str().unwrap()]);
    assert_eq!(b3sum(&copy), b3sum(sdb));
    // Whoever comes later finds the project again, and the report says it to people.
    let verify = branch.motiongear().args(["--json", "verify", "--volumes"]);
    assert_eq!(as_user(verify, "poor").run().ok()["volumes"].as_array().unwrap().len(), 2);
    let report =
        branch.motiongear().args(["--json", "report", "import"]).arg(&branch.array).arg("--trust").arg(&branch.trust);
    let report = report.run().ok();
    let page = std::fs::read_to_string(report["html"].as_str().unwrap()).unwrap().replace("&#x3d;", "=");
    assert!(page.contains("What the machines are to be in the cloud") && page.contains(nic), "not in the report");
    let facts = json_file(report["json"].as_str().unwrap().as_ref());
    assert_eq!(facts["machines"][0]["server"]["flavour"], "bank.large");
    // A plan that says nothing of it any more is believed, too.
    let silent: String =
        PLAN.lines().filter(|line| !line.starts_with("flavour")).map(|line| format!("{line}\n")).collect();
    let silent = silent
        .replace("[[machine.nic]]\nnetwork = \"ledger\"\nfixed_ip = \"10.2.0.5\"\nmac = \"FA:16:3E:00:00:0A\"\n", "");
    assert!(!silent.contains("nic"), "{silent}");
    import(&silent, &[]).ok();
    assert_eq!(sql(&ledger, "SELECT count(*) FROM server"), "0");
    for point in ["snap purge --no-progress", "rm --no-progress"] {
        rbd(&[point.split(' ').collect::<Vec<_>>(), vec![image]].concat());
    }
}
