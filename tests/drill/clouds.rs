//! Volumes of clouds: what boots is a clone of the recovery point, in the cloud itself where it makes such.

use super::{Centre, LOGIN, gone, id_of, processes};
use crate::cloud::{Rest, image_of, rbd, shared};
use crate::common::{b3sum, json_file};
use serde_json::Value;
use std::time::Duration;

/// The first bytes of an image of the pool, as Ceph itself exports them, are the disk.
#[track_caller]
fn image_is_the_disk(centre: &Centre, image: &str) {
    let copy = centre.branch.place.join("exported");
    rbd(&["export", "--no-progress", &format!("volumes/{image}"), copy.to_str().unwrap()]);
    let bytes = super::machine().metadata().unwrap().len();
    let tail = std::fs::File::options().write(true).open(&copy).unwrap();
    assert!(tail.metadata().unwrap().len() >= bytes);
    tail.set_len(bytes).unwrap();
    assert_eq!(b3sum(&copy), b3sum(&super::machine()), "{image} differs");
    std::fs::remove_file(&copy).unwrap();
}

#[test]
fn an_image_in_ceph_boots_from_its_recovery_point() {
    let _cloud = shared();
    let centre = Centre::of_the_machine();
    let imported = centre.import("rbd:volumes?id=cinder", &[]).run().ok();
    let image = imported["disks"][0]["volume"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let id = id_of(&centre.start(&["--within", LOGIN]).run().ok());
    assert_eq!(centre.show(&id)["course"]["seen"]["sign"], "login");
    // The recovery point stays what it is, whatever becomes of the volume.
    centre.volumes_are_as_they_were();
    centre.confirm(&id, "--passed", &[]).ok();
    centre.end(&id);
    image_is_the_disk(&centre, &image);
    let watchers = rbd(&["status", &format!("volumes/{image}")]);
    assert!(watchers.contains("Watchers: none"), "{watchers}");
    // The keeper of another dies, and nobody ends that drill.
    let left = id_of(&centre.early(&[]));
    super::kill(&left, "drill-keeper");
    gone(|| processes(&left).is_empty() && rbd(&["status", &format!("volumes/{image}")]).contains("Watchers: none"));
    // Without its recovery point nothing boots.
    let snapshots: Value =
        serde_json::from_str(&rbd(&["snap", "ls", "--format", "json", &format!("volumes/{image}")])).unwrap();
    let name = snapshots[0]["name"].as_str().unwrap();
    rbd(&["snap", "rm", "--no-progress", &format!("volumes/{image}@{name}")]);
    centre.start(&[]).run().refused(1, &["expected its recovery point", "found none of that name"]);
    assert_eq!(centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().len(), 2);
    // Another volume takes its place: what is left of the drill of the first one goes all the same.
    rbd(&["rm", "--no-progress", &format!("volumes/{image}")]);
    centre.import("rbd:volumes?id=cinder", &["--overwrite"]).run().ok();
    centre.end(&left);
}

#[test]
fn a_machine_in_cinder_is_drilled_three_times_and_its_volume_stays_as_it_was() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let centre = Centre::of_the_machine();
    centre.import("cinder:?type=ceph", &[]).run().ok();
    let disk = centre.branch.seal_json()["disks"][0]["uuid"].as_str().unwrap().to_owned();
    let volumes = |key: &str, value: &str| -> Vec<Value> {
        let all = rest.get("/volumes/detail")["volumes"].as_array().unwrap().clone();
        all.into_iter().filter(|volume| volume["metadata"][key] == value).collect()
    };
    let clones = || volumes("motiongear_drill_of", &disk);
    let nothing_is_left = || {
        assert_eq!(clones(), Vec::<Value>::new());
        let volume = volumes("motiongear_disk", &disk);
        assert_eq!(volume.len(), 1, "{volume:?}");
        assert_eq!(volume[0]["status"], "available");
        let id = volume[0]["id"].as_str().unwrap();
        assert_eq!(rest.get(&format!("/attachments?volume_id={id}"))["attachments"], serde_json::json!([]));
        assert_eq!(rest.snapshots(id).len(), 1);
        image_of(&volume[0])
    };
    // To the login, confirmed, ended.
    let id = id_of(&centre.start(&["--within", LOGIN]).run().ok());
    assert_eq!(centre.show(&id)["course"]["seen"]["sign"], "login");
    let clone = clones();
    assert_eq!((clone.len(), &clone[0]["status"]), (1, &"in-use".into()), "{clone:?}");
    let server = clone[0]["id"].as_str().unwrap();
    centre.confirm(&id, "--passed", &["--note", "on a clone in Cinder"]).ok();
    centre.end(&id);
    nothing_is_left();
    assert_eq!(crate::common::try_tool("pgrep", ["-f", &format!("qemu-nbd.*{server}")]).code, 1);
    assert_eq!(json_file(&centre.evidence(&id).join("drill.json"))["disks"][0]["base"]["kind"], "snapshot");
    // The keeper dies with all that it holds in the cloud.
    let id = id_of(&centre.early(&[]));
    super::kill(&id, "drill-keeper");
    gone(|| processes(&id).is_empty());
    assert_eq!(clones().len(), 1);
    centre.end(&id);
    nothing_is_left();
    // `start` dies while the cloud makes the clone.
    let mut running = centre.start(&["--within", LOGIN]).start();
    assert!(running.until(Duration::from_secs(60), |_| !clones().is_empty()), "{}", running.said());
    running.kill();
    let all = centre.drill(&["show"]).run().ok()["drills"].clone();
    let id = all.as_array().unwrap().last().unwrap()["drill"]["drill"].as_str().unwrap().to_owned();
    centre.end(&id);
    let image = nothing_is_left();
    centre.volumes_are_as_they_were();
    image_is_the_disk(&centre, &image);
}

#[test]
fn a_clone_behind_iscsi_boots_too() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let centre = Centre::of_the_machine();
    centre.import("cinder:?type=iscsi", &[]).run().ok();
    let disk = centre.branch.seal_json()["disks"][0]["uuid"].as_str().unwrap().to_owned();
    let id = id_of(&centre.early(&[]));
    // CHAP's password is on no command line.
    let keeper = centre.show(&id)["course"]["keeper"].to_string();
    let servers = crate::common::tool("pgrep", ["-a", "-P", &keeper]);
    assert!(servers.contains("\"driver\":\"iscsi\"") && servers.contains("password-secret\":\"secret\""), "{servers}");
    centre.end(&id);
    let all = rest.get("/volumes/detail")["volumes"].as_array().unwrap().clone();
    assert!(!all.iter().any(|volume| volume["metadata"]["motiongear_drill_of"] == *disk), "{all:?}");
    centre.volumes_are_as_they_were();
}
