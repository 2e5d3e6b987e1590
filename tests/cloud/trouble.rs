//! Goal: whatever is wrong with a cloud or with what we know of it gets a clear error before anything is made there, and a cloud that
//! is away for a while is waited for. Method: wrong credentials, endpoints, types and quotas; Ceph's OSD killed and started again.

use super::stack::{CEPH, PASSWORD, Rest, Truck, alone, as_user, check_image, rbd, shared};
use crate::common::{Motiongear, full, tool};
use crate::import::command;
use serde_json::json;
use std::time::Duration;

#[test]
fn what_a_cloud_refuses_is_said_before_anything_is_made() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let truck = Truck::new(4);
    let with = |name: &'static str, value: &'static str| -> Box<dyn Fn(Motiongear) -> Motiongear> {
        Box::new(move |command| command.env(name, value))
    };
    let cases: [(&str, Box<dyn Fn(Motiongear) -> Motiongear>, i32, &[&str]); 8] = [
        ("cinder:", with("OS_PASSWORD", "wrong"), 1, &["expected a token", "401", "application credential"]),
        ("cinder:", with("OS_PASSWORD", ""), 2, &["OS_PASSWORD"]),
        ("cinder:", with("OS_AUTH_URL", "http://127.0.0.1:5999/v3"), 1, &["POST http://127.0.0.1:5999", "refused"]),
        ("cinder:", with("OS_REGION_NAME", "Mars"), 1, &["endpoint of Block Storage of region Mars", "OS_REGION_NAME"]),
        ("cinder:", with("OS_INTERFACE", "hidden"), 1, &["the hidden endpoint", "OS_INTERFACE"]),
        ("cinder:nowhere", with("HOME", "/nonexistent"), 2, &["clouds.yaml", "OS_CLIENT_CONFIG_FILE"]),
        ("cinder:?type=golden", with("LANG", "C"), 2, &["expected the volume type golden", "ceph"]),
        ("rbd:nopool?id=cinder", with("LANG", "C"), 1, &["Ceph pool nopool: expected it there", "rbd ls POOL"]),
    ];
    for (to, change, code, parts) in cases {
        println!("{to} {parts:?}");
        let said = change(truck.import(to, &[])).run().refused(code, parts);
        assert!(!said.contains(PASSWORD), "{said}");
        assert_eq!(truck.ledger("id"), "", "an import began");
    }
    assert!(rest.volumes_of(&truck.disk).is_empty());
    // By clouds.yaml, and by one that lacks something.
    let yaml = format!(
        "clouds:\n  bank:\n    auth:\n      auth_url: http://127.0.0.1:5000\n      username: bank\n      password: {PASSWORD}\n      \
         project_name: bank\n      user_domain_id: default\n      project_domain_id: default\n    region_name: RegionOne\n"
    );
    let file = truck.place.file("clouds.yaml", yaml);
    let by_file = |cloud: &str| {
        let command = command(&truck.place, &truck.made, "import", "auto")
            .args(["--to", &format!("cinder:{cloud}?type=ceph&conf={CEPH}")]);
        command.env("OS_CLIENT_CONFIG_FILE", file.to_str().unwrap())
    };
    by_file("bonk").run().refused(2, &["Cloud 'bonk'", "found only: bank"]);
    truck.check(&by_file("bank").run().ok());
    rest.the_volume_of(&truck.disk);
}

#[test]
fn credentials_that_end_in_mid_import_are_said_and_with_new_ones_it_goes_on() {
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    let truck = Truck::new(40);
    let (id, secret) = rest.credential(&truck.disk.uuid.to_string(), Duration::from_secs(12));
    let import = |id: &str, secret: &str, extra: &[&str]| {
        let command =
            command(&truck.place, &truck.made, "import", "auto").args(["--to", "cinder:?type=ceph"]).args(extra);
        let known = [
            ("OS_AUTH_URL", "http://127.0.0.1:5000/v3"),
            ("OS_AUTH_TYPE", "v3applicationcredential"),
            ("OS_APPLICATION_CREDENTIAL_ID", id),
            ("OS_APPLICATION_CREDENTIAL_SECRET", secret),
            ("OS_REGION_NAME", "RegionOne"),
            ("CEPH_CONF", CEPH),
        ];
        known.into_iter().fold(command, |command, (name, value)| command.env(name, value))
    };
    // Its bytes still come through; but the cloud has to be asked at the end.
    let ran = import(&id, &secret, &["--read-limit", "2MiB"]).run();
    let said = ran.refused(1, &["expected a token", "HTTP 401", "not over"]);
    assert!(!said.contains(&secret), "{said}");
    assert_eq!(rest.volumes_of(&truck.disk).len(), 1);
    import(&id, &secret, &[]).run().refused(1, &["expected a token", "HTTP 401"]);
    let (id, secret) = rest.credential(&format!("{} again", truck.disk.uuid), Duration::from_secs(3600));
    truck.check(&import(&id, &secret, &[]).run().ok());
    rest.the_volume_of(&truck.disk);
}

#[test]
fn a_quota_that_is_used_up_is_refused_before_anything_is_made() {
    let _cloud = shared();
    let (admin, poor) = (Rest::new("admin", "admin"), Rest::new("bank", "poor"));
    let truck = Truck::new(4);
    let run = || {
        as_user(command(&truck.place, &truck.made, "import", "auto").args(["--to", "cinder:?type=ceph"]), "poor").run()
    };
    let limit = |set: serde_json::Value| {
        let (code, body) =
            admin.ask("PUT", &format!("/os-quota-sets/{}", poor.project()), Some(json!({ "quota_set": set })));
        assert_eq!(code, 200, "{body}");
    };
    limit(json!({ "volumes": 0, "gigabytes": -1 }));
    run().refused(1, &["expected a quota for 1 more volumes, found 0 of 0", "ask for more"]);
    limit(json!({ "volumes": -1, "gigabytes": 0 }));
    run().refused(1, &["expected a quota for 1 more GiB"]);
    limit(json!({ "gigabytes": -1, "snapshots": 0 }));
    run().refused(1, &["project poor: expected a quota for 1 more snapshots, found 0 of 0"]);
    // Some are of one volume type.
    limit(json!({ "snapshots": -1, "volumes_ceph": 0 }));
    run().refused(1, &["expected a quota for 1 more volumes of type ceph"]);
    limit(json!({ "volumes_ceph": -1, "per_volume_gigabytes": 0 }));
    run().refused(1, &["expected a quota for volumes of 1 GiB, found 0"]);
    limit(json!({ "per_volume_gigabytes": -1 }));
    assert!(poor.volumes_of(&truck.disk).is_empty());
    // Room for the volume, none for its recovery point: all is proven and kept, and the same command takes the point later.
    limit(json!({ "volumes": -1, "gigabytes": 1 }));
    let ran = run();
    let noted = "the recovery points need a quota for 1 more GiB where snapshots count as volumes do; 0 will be left";
    assert!(ran.stderr.contains(noted), "{}", ran.stderr);
    ran.refused(1, &["a snapshot of volume", "quota"]);
    assert_eq!(truck.ledger("phase"), "released");
    limit(json!({ "volumes": -1, "gigabytes": -1 }));
    let done = truck.check(&run().ok());
    // Since then anybody may have booted it: it was read back again, and its head and tail were written once more.
    assert!(done["written_bytes"].as_u64().unwrap() <= 2 * 65536, "{done}");
    assert_eq!(done["re_read"], 65);
    let volume = poor.the_volume_of(&truck.disk);
    // For another run in the same cloud.
    let path = format!("/volumes/{}?cascade=true", volume["id"].as_str().unwrap());
    assert_eq!(poor.ask("DELETE", &path, None).0, 202);
}

#[test]
fn a_backend_that_is_full_leaves_nothing_and_the_same_command_goes_on() {
    let _cloud = alone();
    let (admin, rest) = (Rest::new("admin", "admin"), Rest::new("bank", "bank"));
    // Volumes are thin, and Cinder promises twenty times what there is; then it promises nothing any more.
    let mut made = Vec::new();
    for gib in [100, 10, 1] {
        loop {
            let body = json!({ "volume": { "size": gib, "volume_type": "ceph", "name": "ballast" } });
            let (code, body) = admin.ask("POST", "/volumes", Some(body));
            assert_eq!(code, 202, "{body}");
            let path = format!("/volumes/{}", body["volume"]["id"].as_str().unwrap());
            let status = || admin.get(&path)["volume"]["status"].as_str().unwrap().to_owned();
            crate::drill::gone(|| ["available", "error"].contains(&status().as_str()));
            let full = status() == "error";
            made.push(path);
            if full {
                break;
            }
        }
    }
    let truck = Truck::new(4);
    let refused = truck.run("cinder:?type=ceph", &[]);
    let left = rest.volumes_of(&truck.disk);
    for path in &made {
        assert_eq!(admin.ask("DELETE", path, None).0, 202);
    }
    crate::drill::gone(|| made.iter().all(|path| admin.ask("GET", path, None).0 == 404));
    refused.refused(1, &["expected status available", "found error", "backend"]);
    assert_eq!(left, Vec::<serde_json::Value>::new());
    truck.check(&truck.run("cinder:?type=ceph", &[]).ok());
    rest.the_volume_of(&truck.disk);
}

#[test]
fn a_volume_in_error_is_not_written_to() {
    let _cloud = shared();
    let (admin, rest) = (Rest::new("admin", "admin"), Rest::new("bank", "bank"));
    let truck = Truck::new(40);
    let mut running = truck.import("cinder:?type=ceph", &["--read-limit", "8MiB"]).start();
    assert!(running.until(Duration::from_secs(60), |_| truck.mark() > 0), "{}", running.said());
    running.kill();
    let volume = rest.volumes_of(&truck.disk).remove(0);
    let id = volume["id"].as_str().unwrap();
    let reset = |status: &str| {
        let body = json!({ "os-reset_status": { "status": status } });
        assert_eq!(admin.ask("POST", &format!("/volumes/{id}/action"), Some(body)).0, 202);
    };
    reset("error");
    truck.run("cinder:?type=ceph", &[]).refused(1, &[id, "found error", "administrator"]);
    reset("available");
    truck.check(&truck.run("cinder:?type=ceph", &[]).ok());
    check_image(&truck.place, &format!("volume-{id}"), &truck.disk);
}

#[test]
fn a_pool_without_room_for_what_is_stored_is_refused_before_anything_is_made() {
    let _cloud = shared();
    let truck = Truck::new(8);
    let ceph = |arguments: &[&str]| tool("ceph", [&["--conf", CEPH, "osd", "pool"], arguments].concat());
    ceph(&["create", "small", "1"]);
    ceph(&["application", "enable", "small", "rbd"]);
    ceph(&["set-quota", "small", "max_bytes", &(3 << 20).to_string()]);
    let refused = truck.run("rbd:small", &[]);
    ceph(&["set-quota", "small", "max_bytes", "0"]);
    refused.refused(1, &["Ceph pool small: expected room for", "more bytes", "stops all who write to it"]);
    assert_eq!(rbd(&["ls", "small"]), "");
    let outcome = truck.check(&truck.run("rbd:small", &[]).ok());
    let image = outcome["volume"].as_str().unwrap().strip_prefix("rbd:").unwrap();
    rbd(&["snap", "purge", "--no-progress", image]);
    rbd(&["rm", "--no-progress", image]);
}

#[test]
fn a_storage_daemon_that_is_away_is_waited_for() {
    let _cloud = alone();
    let truck = Truck::new(60);
    let mut running = truck.import("rbd:volumes?id=cinder", &["--read-limit", "8MiB"]).start();
    assert!(running.until(Duration::from_secs(60), |_| truck.mark() > 0), "{}", running.said());
    let run = "/var/tmp/mg-cloud/ceph/run/osd.0.pid";
    let pid = std::fs::read_to_string(run).unwrap();
    tool("kill", ["-9", pid.trim()]);
    let away = Duration::from_secs(if full() { 120 } else { 20 });
    std::thread::sleep(away);
    assert!(running.is_running(), "{}", running.said());
    assert!(running.said().contains("has not answered for"), "{}", running.said());
    tool("ceph-osd", ["-i", "0", "--conf", CEPH]);
    let outcome = truck.check(&running.wait().ok());
    let image = outcome["volume"].as_str().unwrap().strip_prefix("rbd:volumes/").unwrap().to_owned();
    check_image(&truck.place, &image, &truck.disk);
    rbd(&["snap", "purge", "--no-progress", &format!("volumes/{image}")]);
    rbd(&["rm", "--no-progress", &format!("volumes/{image}")]);
}
