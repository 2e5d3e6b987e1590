//! Drills through a real Nova, which `tests/cloud/stack` brings up beside the cloud only where it is asked to: MG_CLOUD_NOVA=1. What is left
//! behind is looked at by plain REST.

use super::stack::{Rest, shared};
use crate::drill::{Centre, EARLY, id_of};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For a whole boot under TCG while other tests run.
const WITHIN: &str = "9m";

/// One test at a time: one of them takes the project's quota away.
static ONE: Mutex<()> = Mutex::new(());

/// Whether the compute service is asked for; says so where it is not.
pub fn asked_for(test: &str) -> bool {
    let asked = std::env::var("MG_CLOUD_NOVA").is_ok_and(|value| value == "1");
    if !asked {
        println!("{test}: left out: it takes Nova, Placement, Neutron and libvirt; MG_CLOUD_NOVA=1 brings them up");
    }
    asked
}

/// Until it is dropped.
pub fn one() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The machine, imported into Cinder.
pub struct Cloud {
    rest: Rest,
    pub centre: Centre,
    disk: String,
}

impl Cloud {
    pub fn new() -> Cloud {
        let centre = Centre::of_the_machine();
        centre.import("cinder:?type=ceph", &[]).run().ok();
        let disk = centre.branch.seal_json()["disks"][0]["uuid"].as_str().unwrap().to_owned();
        Cloud { rest: Rest::new("bank", "bank"), centre, disk }
    }

    pub fn start(&self, flavour: &str, extra: &[&str]) -> crate::common::Motiongear {
        let fixed = ["start", "db01", "--through", "nova", "--flavour", flavour, "--within", WITHIN];
        self.centre.drill(&[&fixed, extra].concat())
    }

    fn clones(&self) -> Vec<Value> {
        let all = self.rest.get("/volumes/detail")["volumes"].as_array().unwrap().clone();
        all.into_iter().filter(|volume| volume["metadata"]["motiongear_drill_of"] == *self.disk).collect()
    }

    /// Servers of a drill.
    fn servers(&self, drill: &str) -> Vec<Value> {
        let (code, body) = self.rest.compute("GET", "/servers/detail", None);
        assert_eq!(code, 200, "{body}");
        let all = body["servers"].as_array().unwrap().clone();
        all.into_iter().filter(|server| server["metadata"]["motiongear_drill"] == drill).collect()
    }

    #[track_caller]
    fn nothing_is_left(&self, drill: &str) {
        assert_eq!((self.servers(drill), self.clones()), (vec![], vec![]));
        let volumes = self.rest.volumes_of_uuid(&self.disk);
        assert_eq!((volumes.len(), &volumes[0]["status"]), (1, &"available".into()), "{volumes:?}");
        let id = volumes[0]["id"].as_str().unwrap();
        assert_eq!(self.rest.get(&format!("/attachments?volume_id={id}"))["attachments"], json!([]));
    }

    /// The drill that was begun last.
    fn last(&self) -> String {
        let all = self.centre.drill(&["show"]).run().ok()["drills"].clone();
        all.as_array().unwrap().last().unwrap()["drill"]["drill"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_machine_boots_through_nova_and_nothing_of_it_stays_in_the_cloud() {
    if !asked_for("a_machine_boots_through_nova_and_nothing_of_it_stays_in_the_cloud") {
        return;
    }
    let _one = one();
    let _cloud = shared();
    let cloud = Cloud::new();
    // To its login, seen on the console that Nova gives.
    let started = cloud.start("drill", &[]).run().ok();
    let id = id_of(&started);
    assert_eq!(started["course"]["seen"]["sign"], "login", "{started}");
    assert_eq!(
        (&started["drill"]["accel"], &started["drill"]["memory_bytes"]),
        (&"nova".into(), &(512_u64 << 20).into())
    );
    let serial = std::fs::read_to_string(cloud.centre.evidence(&id).join("serial.log")).unwrap();
    assert!(serial.contains(EARLY) && serial.trim_end().ends_with("login:"), "{serial}");
    assert!(!serial.contains("[motiongear:"), "something of the console was lost");
    let server = cloud.servers(&id);
    assert_eq!((server.len(), &server[0]["status"]), (1, &"ACTIVE".into()), "{server:?}");
    assert_eq!(server[0]["id"], started["course"]["server"]);
    assert_eq!(server[0]["addresses"], json!({}), "it has a network");
    let clones = cloud.clones();
    assert_eq!((clones.len(), &clones[0]["status"]), (1, &"in-use".into()), "{clones:?}");
    let shown = cloud.centre.drill(&["show", &id]).run().ok();
    assert_eq!(shown["drills"][0]["status"], "running");
    cloud.centre.confirm(&id, "--passed", &["--note", "through Nova"]).ok();
    cloud.centre.end(&id);
    cloud.nothing_is_left(&id);
    assert!(!cloud.centre.evidence(&id).join("picture.png").exists());
    // Again: it has ended already.
    assert_eq!(cloud.centre.drill(&["end", &id]).run().ok()["already"], true);
    // The keeper dies, and the server does not: `end` finds it.
    let started = cloud.start("drill", &["--marker", EARLY]).run().ok();
    let id = id_of(&started);
    assert_eq!(started["course"]["seen"]["sign"], "marker", "{started}");
    crate::drill::kill(&id, "drill-keeper");
    assert_eq!(cloud.servers(&id).len(), 1);
    cloud.centre.end(&id);
    cloud.nothing_is_left(&id);
    // `start` and its keeper die as soon as the server is there.
    let mut running = cloud.start("drill", &[]).start();
    assert!(
        running.until(Duration::from_secs(120), |_| cloud.clones().iter().any(|clone| clone["status"] != "creating"))
    );
    let id = cloud.last();
    assert!(running.until(Duration::from_secs(120), |_| !cloud.servers(&id).is_empty()), "{}", running.said());
    running.kill();
    crate::drill::kill(&id, "drill-keeper");
    cloud.centre.end(&id);
    cloud.nothing_is_left(&id);
    cloud.centre.volumes_are_as_they_were();
}

#[test]
fn what_nova_refuses_is_said_and_leaves_nothing() {
    if !asked_for("what_nova_refuses_is_said_and_leaves_nothing") {
        return;
    }
    let _one = one();
    let _cloud = shared();
    let cloud = Cloud::new();
    let none = || assert_eq!(cloud.centre.drill(&["show"]).run().ok()["drills"], json!([]));
    let unnamed = ["start", "db01", "--through", "nova"];
    cloud.centre.drill(&unnamed).run().refused(2, &["expected a flavour to boot it in", "name one with --flavour"]);
    cloud.start("none-such", &[]).run().refused(2, &["expected the flavour none-such", "drill"]);
    // Only what is in a cloud can boot there, and with nothing that QEMU here would be told.
    cloud.start("drill", &["--memory", "1GiB"]).run().refused(2, &["--memory"]);
    cloud.start("drill", &["--network", "br0"]).run().refused(2, &["no network with --through nova"]);
    // No host has a TiB of memory: Nova says so of the server that it has made.
    cloud.start("huge", &[]).run().refused(1, &["expected it to run", "ERROR", "No valid host"]);
    none();
    assert_eq!(cloud.clones(), Vec::<Value>::new());
    // A quota of no servers.
    let admin = Rest::new("admin", "admin");
    let quota = format!("/os-quota-sets/{}", cloud.rest.project());
    let limit = |instances: i64| {
        let body = json!({ "quota_set": { "instances": instances, "force": true } });
        let (code, body) = admin.compute("PUT", &quota, Some(body));
        assert_eq!(code, 200, "{body}");
    };
    limit(0);
    let refused = cloud.start("drill", &[]).run();
    limit(10);
    refused.refused(1, &["uota", "ask for more"]);
    none();
    assert_eq!(cloud.clones(), Vec::<Value>::new());
    // A dry run makes nothing.
    let planned = cloud.start("drill", &["--dry-run"]).run().ok();
    assert_eq!(planned["drill"]["compute"]["flavour_name"], "drill");
    // What the plan of an import says it is to be, it is in a drill.
    let text = "[[machine]]\nname = \"db01\"\nto = \"cinder:?type=ceph\"\nflavour = \"huge\"\n";
    let plan = cloud.centre.branch.place.file("import.toml", text);
    cloud.centre.import_with(&["--plan", plan.to_str().unwrap()]).run().ok();
    let planned = cloud.centre.drill(&[&unnamed[..], &["--dry-run"]].concat()).run().ok();
    assert_eq!(planned["drill"]["compute"]["flavour_name"], "huge");
    none();
    cloud.centre.volumes_are_as_they_were();
}
