//! Goal: a shipment lands in a cloud byte for byte, found again by whoever looks there, and nothing is left over. Method: the binary
//! into a real Ceph and a real Cinder with two backends; the bytes are read back past MotionGear, by `rbd export`.

use super::nova::asked_for;
use super::stack::{Rest, Truck, as_user, check_image, image_of, rbd, shared};
use crate::common::{Background, Dice, Motiongear, seed_of_this_run, sql, try_tool};
use crate::import::command_with;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn one_shipment_is_the_same_in_every_kind_of_volume() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let mut digests = Vec::new();
    for (to, kind) in [
        ("rbd:volumes?id=cinder", "rbd"),
        ("rbd:db01/sda=volumes?id=cinder", "rbd"),
        ("cinder:?type=ceph", "cinder"),
        ("cinder:db01/sda=?type=iscsi", "cinder"),
    ] {
        println!("{to}");
        let truck = Truck::new(40);
        let plan = truck.import(to, &["--dry-run"]).run().ok();
        assert_eq!(plan["disks"][0]["what"], "create");
        assert!(rest.volumes_of(&truck.disk).is_empty(), "a dry run made a volume");
        let outcome = truck.check(&truck.run(to, &[]).ok());
        assert_eq!((&outcome["state"], &outcome["proven"]), (&"imported".into(), &true.into()), "{outcome}");
        digests.push(blake3::hash(&truck.disk.data).to_string());
        assert_eq!(outcome["digest"], digests[digests.len() - 1]);
        let again = truck.check(&truck.run(to, &[]).ok());
        assert_eq!((&again["state"], &again["written_bytes"]), (&"already-imported".into(), &0.into()));
        assert!(truck.servers(&truck.disk.uuid.to_string()).is_empty());
        // Proven once more, through the cloud's own way, without the array.
        let verify = || {
            let command = Motiongear::new(&truck.place.join("state")).args(["--json", "verify", "--volumes"]);
            as_user(command, "bank").run()
        };
        assert_eq!(verify().ok()["volumes"][0]["found"], outcome["digest"]);
        let name = outcome["volume"].as_str().unwrap();
        assert!(name.starts_with(&format!("{kind}:")), "{name}");
        match kind {
            "rbd" => {
                let image = name.strip_prefix("rbd:volumes/").unwrap();
                check_image(&truck.place, image, &truck.disk);
                let snapshots: Value =
                    serde_json::from_str(&rbd(&["snap", "ls", "--format", "json", &format!("volumes/{image}")]))
                        .unwrap();
                let point = snapshots[0]["name"].as_str().unwrap();
                assert_eq!(outcome["recovery_point"], format!("volumes/{image}@{point}"));
                let meta = rbd(&["image-meta", "get", &format!("volumes/{image}"), "motiongear_digest"]);
                assert_eq!(meta.trim(), outcome["digest"]);
                rbd(&["snap", "purge", "--no-progress", &format!("volumes/{image}")]);
                rbd(&["rm", "--no-progress", &format!("volumes/{image}")]);
            }
            _ => {
                let volume = rest.the_volume_of(&truck.disk);
                check_image(&truck.place, &image_of(&volume), &truck.disk);
                assert_eq!(volume["name"], "farbank/db01/sda");
                assert_eq!(volume["metadata"]["motiongear_digest"], outcome["digest"]);
                assert_eq!(volume["metadata"]["motiongear_generation"], "0");
                assert_eq!(volume["bootable"], "true");
                let image = &volume["volume_image_metadata"];
                assert_eq!((&image["hw_firmware_type"], &image["hw_disk_bus"]), (&"bios".into(), &"virtio".into()));
                assert_eq!(image["os_type"], "linux");
                let snapshot = &rest.snapshots(volume["id"].as_str().unwrap())[0];
                let point = outcome["recovery_point"].as_str().unwrap();
                assert!(point.contains(snapshot["name"].as_str().unwrap()), "{point}");
                assert!(point.contains(snapshot["id"].as_str().unwrap()), "{point}");
                assert_eq!(snapshot["metadata"]["motiongear_digest"], outcome["digest"]);
            }
        }
    }
    assert_eq!(digests.len(), 4);
}

#[test]
fn an_import_that_is_killed_is_finished_by_the_same_command_and_leaves_nothing_over() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let mut dice = Dice::new(seed_of_this_run());
    let wanted = if crate::common::full() { 20 } else { 3 };
    for to in ["cinder:?type=ceph", "rbd:volumes?id=cinder"] {
        let slow = ["--read-limit", "10MiB"];
        // How long it takes undisturbed, creation and recovery point included.
        let undisturbed = Truck::new(50);
        let began = Instant::now();
        undisturbed.check(&undisturbed.run(to, &slow).ok());
        let whole = began.elapsed();
        let mut hit = 0;
        while hit < wanted {
            let truck = Truck::new(50);
            let mut at = Vec::new();
            // One of them in the middle of the data, the others anywhere, until one comes too late.
            loop {
                let mut running = truck.import(to, &slow).start();
                let wait = whole.mul_f64(dice.below(1000) as f64 / 1000.0);
                let amid = |_: &Background| truck.mark() > 0;
                match at.len() {
                    0 => assert!(running.until(Duration::from_secs(120), amid), "{}", running.said()),
                    _ => std::thread::sleep(wait),
                }
                running.kill();
                let phase = truck.ledger("phase");
                at.push(format!("{phase} {}", truck.mark()));
                if phase == "done" {
                    break;
                }
                hit += 1;
                if hit == wanted {
                    break;
                }
            }
            println!("{to}: killed at {at:?}");
            assert!(at[0].starts_with("writing "), "{at:?}");
            let outcome = truck.check(&truck.run(to, &[]).ok());
            if let Some(image) = outcome["volume"].as_str().unwrap().strip_prefix("rbd:volumes/") {
                check_image(&truck.place, image, &truck.disk);
                assert!(truck.servers(image).is_empty());
                assert_eq!(rbd(&["ls", "volumes"]).matches(&truck.disk.uuid.to_string()).count(), 1);
                let snapshots = rbd(&["snap", "ls", "--format", "json", &format!("volumes/{image}")]);
                assert_eq!(snapshots.matches("\"name\"").count(), 1, "{snapshots}");
                continue;
            }
            let volume = rest.the_volume_of(&truck.disk);
            check_image(&truck.place, &image_of(&volume), &truck.disk);
            assert!(truck.servers(volume["id"].as_str().unwrap()).is_empty());
        }
    }
}

#[test]
fn a_server_that_falls_is_started_again() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    for to in ["cinder:?type=ceph", "cinder:?type=iscsi"] {
        let truck = Truck::new(40);
        let mut running = truck.import(to, &["--read-limit", "4MiB"]).start();
        assert!(running.until(Duration::from_secs(60), |_| truck.mark() > 0), "{}", running.said());
        let volume = rest.volumes_of(&truck.disk).remove(0);
        assert_eq!(volume["status"], "in-use", "{volume}");
        let servers = truck.servers(volume["id"].as_str().unwrap());
        assert_eq!(servers.len(), 1, "{servers:?}");
        let id = volume["id"].as_str().unwrap();
        let attachment = rest.get(&format!("/attachments?volume_id={id}"))["attachments"][0]["id"].clone();
        let attachment = rest.get(&format!("/attachments/{}", attachment.as_str().unwrap()));
        let password = attachment["attachment"]["connection_info"]["auth_password"].as_str();
        assert_eq!(password.is_some(), to.contains("iscsi"), "{attachment}");
        if let Some(password) = password {
            // On no command line, in no message, and in no file any more.
            assert!(password.len() > 8 && !servers[0].contains(password) && !running.said().contains(password));
            let kept = try_tool("grep", ["-rl", password, "/run/motiongear", truck.place.path().to_str().unwrap()]);
            assert_eq!(kept.stdout, "");
        }
        let before = truck.mark();
        crate::common::tool("kill", ["-9", servers[0].split(' ').next().unwrap()]);
        let ran = running.wait();
        assert!(before < 640 && ran.stderr.contains("is opened anew"), "{}", ran.stderr);
        truck.check(&ran.ok());
        let volume = rest.the_volume_of(&truck.disk);
        check_image(&truck.place, &image_of(&volume), &truck.disk);
    }
}

#[test]
fn a_volume_that_somebody_takes_away_in_mid_import_is_asked_for_again_or_missed() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let begun = |to: &str| {
        let truck = Truck::new(40);
        let mut running = truck.import(to, &["--read-limit", "4MiB"]).start();
        assert!(running.until(Duration::from_secs(60), |_| truck.mark() > 0), "{}", running.said());
        let id = rest.volumes_of(&truck.disk).remove(0)["id"].as_str().unwrap().to_owned();
        let attachment = rest.get(&format!("/attachments?volume_id={id}"))["attachments"][0]["id"].clone();
        let path = format!("/attachments/{}", attachment.as_str().unwrap());
        assert_eq!(rest.ask("DELETE", &path, None).0, 200);
        (truck, running, id)
    };
    // Detached: Ceph lets us write on all the same, iSCSI falls silent.
    for to in ["cinder:?type=ceph", "cinder:?type=iscsi"] {
        let (truck, running, _) = begun(to);
        let ran = running.wait();
        assert!(ran.stderr.contains("is opened anew"), "{to}: {}", ran.stderr);
        truck.check(&ran.ok());
        check_image(&truck.place, &image_of(&rest.the_volume_of(&truck.disk)), &truck.disk);
    }
    // Removed as well.
    let (truck, running, id) = begun("cinder:?type=iscsi");
    assert_eq!(rest.ask("DELETE", &format!("/volumes/{id}"), None).0, 202);
    running.wait().refused(1, &["expected it in the cloud, found none", "somebody removed it", "--overwrite"]);
    truck.check(&truck.run("cinder:?type=iscsi", &["--overwrite"]).ok());
    rest.the_volume_of(&truck.disk);
}

#[test]
fn several_imports_run_at_once_on_one_ledger() {
    let _cloud = shared();
    let trucks = ["cinder:?type=ceph", "cinder:?type=iscsi", "rbd:volumes?id=cinder"].map(|to| (to, Truck::new(60)));
    let state = trucks[0].1.place.join("state");
    let begin = |(to, truck): &(&str, Truck)| {
        let command = command_with(&state, &truck.made, "import", "auto").args(["--to", to, "--read-limit", "3MiB"]);
        as_user(command, "bank").start()
    };
    let mut running: Vec<_> = trucks.iter().map(begin).collect();
    let ledger = state.join("ledger.db");
    // It is not there at first.
    let question = "SELECT count(*) FROM import WHERE phase = 'writing'";
    let at_work =
        || try_tool("sqlite3", ["-readonly".as_ref(), ledger.as_os_str(), question.as_ref()]).stdout.trim().to_owned();
    let all = running[0].until(Duration::from_secs(120), |_| ["2", "3"].contains(&at_work().as_str()));
    assert!(all, "{}", sql(&ledger, "SELECT disk, phase, mark FROM import"));
    // One of them dies, and nobody else notices.
    running.remove(0).kill();
    for ((_, truck), running) in trucks[1..].iter().zip(running) {
        truck.check(&running.wait().ok());
    }
    trucks[0].1.check(&begin(&trucks[0]).wait().ok());
    assert_eq!(sql(&ledger, "SELECT count(*) FROM import WHERE phase = 'done'"), "3");
}

#[test]
fn a_volume_belongs_to_one_disk_and_one_ledger() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let to = "cinder:?type=ceph";
    let truck = Truck::new(4);
    truck.check(&truck.run(to, &[]).ok());
    // Another ledger finds it, and leaves it.
    let stranger = |extra: &[&str]| {
        let state = truck.place.join("other");
        as_user(command_with(&state, &truck.made, "import", "auto").args(["--to", to]).args(extra), "bank").run()
    };
    stranger(&[]).refused(1, &["expected one that this ledger made", "by ledger", "--overwrite"]);
    stranger(&["--abort"]).ok();
    rest.the_volume_of(&truck.disk);
    // Removed behind our back, between two commands.
    let volume = rest.the_volume_of(&truck.disk);
    let id = volume["id"].as_str().unwrap();
    let snapshot = rest.snapshots(id).remove(0);
    assert_eq!(rest.ask("DELETE", &format!("/snapshots/{}", snapshot["id"].as_str().unwrap()), None).0, 202);
    gone(|| rest.snapshots(id).is_empty());
    assert_eq!(rest.ask("DELETE", &format!("/volumes/{id}"), None).0, 202);
    gone(|| rest.volumes_of(&truck.disk).is_empty());
    truck.run(to, &[]).refused(1, &["expected the volume of db01/sda, found none", "--overwrite"]);
    truck.check(&truck.run(to, &["--overwrite"]).ok());
    let second = rest.the_volume_of(&truck.disk);
    assert_ne!(second["id"], volume["id"]);
    check_image(&truck.place, &image_of(&second), &truck.disk);
    // A machine of the cloud has it: nothing is taken away from it. (A cloud with Compute knows better: there is no such machine.)
    if asked_for("what a machine of the cloud has") {
        return;
    }
    let id = second["id"].as_str().unwrap();
    let server = uuid::Uuid::new_v4().to_string();
    let body = json!({ "attachment": { "volume_uuid": id, "instance_uuid": server, "connector": null } });
    let (code, body) = rest.ask("POST", "/attachments", Some(body));
    assert_eq!(code, 200, "{body}");
    stranger(&["--overwrite"]).refused(1, &["expected that nobody has it", &server]);
}

fn gone(mut is: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is() {
        assert!(since.elapsed() < Duration::from_secs(60), "it does not go");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn an_import_that_is_given_up_leaves_nothing_in_the_cloud() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    for to in ["cinder:?type=ceph", "rbd:volumes?id=cinder"] {
        let truck = Truck::new(40);
        let mut running = truck.import(to, &["--read-limit", "8MiB"]).start();
        assert!(running.until(Duration::from_secs(60), |_| truck.mark() > 0), "{}", running.said());
        // While it runs nobody takes it away.
        truck.run(to, &["--abort"]).refused(1, &["expected no other import of it, found one running"]);
        running.kill();
        let images = || rbd(&["ls", "volumes"]);
        let there = || match to.starts_with("cinder") {
            true => !rest.volumes_of(&truck.disk).is_empty(),
            false => images().contains(&truck.disk.uuid.to_string()),
        };
        let told = truck.run(to, &["--abort", "--dry-run"]).ok();
        assert_eq!((&told["disks"][0]["fate"], &told["dry_run"]), (&"removed".into(), &true.into()), "{told}");
        assert!(there());
        let done = truck.run(to, &["--abort"]).ok();
        assert_eq!(done["disks"][0]["fate"], "removed");
        assert!(!there());
        assert_eq!(truck.ledger("id"), "");
        assert_eq!(truck.run(to, &["--abort"]).ok()["disks"][0]["fate"], "not-begun");
        // And it may be begun again, and then it stays.
        truck.check(&truck.run(to, &[]).ok());
        assert_eq!(truck.run(to, &["--abort"]).ok()["disks"][0]["fate"], "complete");
        assert!(there());
    }
}
