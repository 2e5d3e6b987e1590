//! Goal: a plan decides where each machine goes, and what it is to be there is kept where everybody finds it. Method: one shipment, one
//! plan with a project, a pool and a server in it; the volumes' metadata are read past MotionGear, and the report as people get it.

use super::{Rest, as_user, rbd, shared};
use crate::common::{Branch, b3sum, json_file, noise_at, sparse, sql};
use std::fs::File;

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

#[test]
fn a_plan_says_where_machines_go_and_what_they_are_to_be_there() {
    let _cloud = shared();
    let branch = Branch::new();
    branch.init(&["--plaintext"]);
    let [sda, sdb] = ["sda", "sdb"].map(|name| branch.place.join(format!("{name}.raw")));
    for (seed, path) in [&sda, &sdb].into_iter().enumerate() {
        sparse(path, 8 << 20);
        noise_at(&File::options().write(true).open(path).unwrap(), 1 << 20, 2 << 20, seed as u64 + 1);
    }
    branch.seed(&[("sda", &sda), ("sdb", &sdb)], &["--point-in-time"]).ok();
    branch.seal();
    let trust = branch.trust.to_str().unwrap();
    // Whose credentials are of another project.
    let import = |plan: &str, extra: &[&str]| {
        let plan = branch.place.file("import.toml", plan);
        let command = branch.motiongear().args(["--json", "import"]).arg(&branch.array).arg("--plan").arg(plan);
        as_user(command.args(["--trust", trust]).args(extra), "poor").run()
    };
    // A disk that is forgotten is not left behind without a word, and one that nobody has is a slip.
    let forgotten = PLAN.replace("to = \"cinder:?project=bank&type=ceph\"\n", "");
    import(&forgotten, &[]).refused(2, &["found nothing of db01/sda", "name them in the plan"]);
    import(&PLAN.replace("\"sdb\"", "\"sdx\""), &[]).refused(2, &["rbd:db01/sdx: expected a disk of shipment"]);
    import(&PLAN.replace("project=bank", "project=nobody"), &[]).refused(1, &["expected a token"]);
    let planned = import(PLAN, &["--dry-run"]).ok();
    assert_eq!(planned["servers"]["db01"]["nics"][0]["mac"], "fa:16:3e:00:00:0a", "{planned}");
    assert!(planned["notes"][0].as_str().unwrap().contains("machine app01, of which this shipment has no disk"));
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
    assert_eq!(b3sum(&copy), b3sum(&sdb));
    // Whoever comes later finds the project again, and the report says it to people.
    let verify = branch.motiongear().args(["--json", "verify", "--volumes"]);
    assert_eq!(as_user(verify, "poor").run().ok()["volumes"].as_array().unwrap().len(), 2);
    let report = branch.motiongear().args(["--json", "report", "import"]).arg(&branch.array).args(["--trust", trust]);
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
