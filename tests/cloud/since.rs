//! Goal: what becomes of a volume in its cloud after the import (extended, used elsewhere, its recovery point removed, looked for in
//! another project) is seen for what it is. Method: done to real volumes by plain REST and `rbd`; a cloud that is mute is a socket.

use super::stack::{Rest, Truck, as_user, rbd, shared};
use crate::common::{Motiongear, Ran, sql};
use serde_json::{Value, json};
use std::time::Duration;

const CEPH: &str = "cinder:?type=ceph";

fn verify(truck: &Truck, project: &str) -> Ran {
    let command = Motiongear::new(&truck.place.join("state")).args(["--json", "verify", "--volumes"]);
    as_user(command, project).run()
}

fn wait_for(rest: &Rest, id: &str, is: impl Fn(&Value) -> bool) {
    for _ in 0..300 {
        if is(&rest.get(&format!("/volumes/{id}"))["volume"]) {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("volume {id} does not get there");
}

#[test]
fn a_volume_that_was_extended_is_the_same_volume() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let truck = Truck::new(4);
    truck.check(&truck.run(CEPH, &[]).ok());
    let volume = rest.the_volume_of(&truck.disk);
    let id = volume["id"].as_str().unwrap();
    let larger = json!({ "os-extend": { "new_size": volume["size"].as_u64().unwrap() + 1 } });
    assert_eq!(rest.ask("POST", &format!("/volumes/{id}/action"), Some(larger)).0, 202);
    wait_for(&rest, id, |now| now["status"] == "available" && now["size"] != volume["size"]);
    assert_eq!(verify(&truck, "bank").ok()["volumes"][0]["found"], blake3::hash(&truck.disk.data).to_string());
    let again = truck.run(CEPH, &[]).ok();
    assert_eq!(again["disks"][0]["state"], "already-imported");
    let redone = truck.check(&truck.run(CEPH, &["--overwrite"]).ok());
    assert_eq!((&redone["state"], &redone["proven"]), (&"imported".into(), &true.into()));
    assert_eq!(rest.the_volume_of(&truck.disk)["id"], id);
}

#[test]
fn a_check_ends_no_attachment_that_is_not_its_own() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let truck = Truck::new(4);
    truck.check(&truck.run(CEPH, &[]).ok());
    let ledger = truck.place.join("state/ledger.db");
    assert_eq!(sql(&ledger, "SELECT count(*) FROM attachment"), "0", "an import leaves none");
    let id = rest.the_volume_of(&truck.disk)["id"].as_str().unwrap().to_owned();
    let connector = json!({ "host": "bare-metal-7", "ip": "10.9.9.9", "initiator": "iqn.x:bm7", "multipath": false,
        "platform": "x86_64", "os_type": "linux", "do_local_attach": false, "mountpoint": "/dev/vdb" });
    let attach = || {
        let body = json!({ "attachment": { "volume_uuid": id, "mode": "rw", "connector": connector } });
        let (code, body) = rest.ask("POST", "/attachments", Some(body));
        assert_eq!(code, 200, "{body}");
        body["attachment"]["id"].as_str().unwrap().to_owned()
    };
    let theirs = attach();
    let found = verify(&truck, "bank");
    assert_eq!(found.code(3)["volumes"][0]["found"], Value::Null);
    assert_eq!(truck.run(CEPH, &["--overwrite"]).code, 1);
    assert_eq!(rest.ask("GET", &format!("/attachments/{theirs}"), None).0, 200, "it was ended");
    assert_eq!(rest.ask("DELETE", &format!("/attachments/{theirs}"), None).0, 200);
    // One that a killed run of this ledger left, whose id was heard, or was not.
    for heard in [true, false] {
        let own = attach();
        let known = if heard { own.as_str() } else { "" };
        let row = format!("INSERT INTO attachment VALUES ('{id}', '{known}')");
        crate::common::tool("sqlite3", [ledger.as_os_str(), row.as_ref()]);
        verify(&truck, "bank").ok();
        assert_eq!(rest.ask("GET", &format!("/attachments/{own}"), None).0, 404);
        assert_eq!(sql(&ledger, "SELECT count(*) FROM attachment"), "0");
    }
    rest.the_volume_of(&truck.disk);
}

#[test]
fn in_another_project_nothing_is_made_anew() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let truck = Truck::new(4);
    truck.check(&truck.run(CEPH, &[]).ok());
    let there = |extra: &[&str]| as_user(truck.import(CEPH, extra), "poor").run();
    for extra in [&[][..], &["--overwrite"], &["--dry-run"], &["--abort"]] {
        assert_eq!(there(extra).code, 1, "{extra:?}");
    }
    verify(&truck, "poor").code(3);
    let drill = Motiongear::new(&truck.place.join("state")).args(["--json", "drill", "start", "db01"]);
    assert_eq!(as_user(drill, "poor").run().code, 1);
    assert!(Rest::new("bank", "poor").volumes_of(&truck.disk).is_empty());
    let ledger = truck.place.join("state/ledger.db");
    assert_eq!(sql(&ledger, "SELECT project FROM volume"), rest.project());
    verify(&truck, "bank").ok();
    assert_eq!(truck.run(CEPH, &[]).ok()["disks"][0]["state"], "already-imported");
}

#[test]
fn a_recovery_point_that_was_removed_is_missed_and_made_again() {
    let _cloud = shared();
    let truck = Truck::new(4);
    let to = "rbd:volumes?id=cinder";
    let outcome = truck.check(&truck.run(to, &[]).ok());
    let image = outcome["volume"].as_str().unwrap().strip_prefix("rbd:").unwrap();
    let points = || rbd(&["snap", "ls", "--format", "json", image]);
    verify(&truck, "bank").ok();
    rbd(&["snap", "purge", "--no-progress", image]);
    let found = verify(&truck, "bank").code(3);
    let missing = found["volumes"][0]["missing_point"].as_str().unwrap();
    assert_eq!(outcome["recovery_point"], format!("{image}@{missing}"));
    assert_eq!(truck.run(to, &[]).ok()["disks"][0]["state"], "already-imported");
    let again = truck.check(&truck.run(to, &["--overwrite"]).ok());
    assert_eq!((&again["state"], &again["trusted"]), (&"imported".into(), &0.into()), "{again}");
    assert!(points().contains(missing), "{}", points());
    verify(&truck, "bank").ok();
    rbd(&["snap", "purge", "--no-progress", image]);
    rbd(&["rm", "--no-progress", image]);
}

#[test]
fn what_is_refused_before_anything_was_made_binds_the_disk_to_nothing() {
    let _cloud = shared();
    let truck = Truck::new(4);
    assert_eq!(truck.run("cinder:?type=ceph&zone=mars", &[]).code, 1);
    assert_eq!(truck.ledger("id"), "");
    let to = "rbd:volumes?id=cinder";
    let outcome = truck.check(&truck.run(to, &[]).ok());
    let image = outcome["volume"].as_str().unwrap().strip_prefix("rbd:").unwrap();
    rbd(&["snap", "purge", "--no-progress", image]);
    rbd(&["rm", "--no-progress", image]);
}

#[test]
fn a_cloud_that_is_mute_from_the_start_is_said_and_ctrl_c_ends_the_waiting() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v3", mute.local_addr().unwrap());
    let truck = Truck::new(4);
    let mut running = truck.import(CEPH, &[]).env("OS_AUTH_URL", &url).start();
    let (said, limit) =
        (|it: &crate::common::Background| it.said().contains("has not answered"), Duration::from_secs(60));
    assert!(running.until(limit, said), "{}", running.said());
    running.signal(libc::SIGINT);
    assert_eq!(running.wait().code, 5);
    assert_eq!(truck.ledger("id"), "");
}
