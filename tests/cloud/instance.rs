//! Goal: a host that is itself a server of the cloud finds the disk that Compute gave it, and no other. Method: real block devices under the
//! links that udev makes, in a tree of their own; and a real Nova, whose servers this host is none of, so that the disk must be missed.

use super::nova::{asked_for, one};
use super::stack::{Rest, Truck, shared};
use crate::common::{Place, loop_device, sparse};
use crate::drill::id_of;
use motiongear::source::SysRoot;
use motiongear::volume::attached::find_device;
use serde_json::json;
use std::time::Duration;

const VOLUME: &str = "9ec2369a-a62a-4f66-b19a-28d624a87125";

#[test]
fn the_disk_of_a_volume_is_found_by_its_serial_and_size() {
    let place = Place::new();
    let links = place.join("root/dev/disk/by-id");
    std::fs::create_dir_all(&links).unwrap();
    let sys = SysRoot::new(place.join("root"));
    let find = |bytes: u64| find_device(&sys, VOLUME, bytes);
    assert_eq!(find(8 << 20).unwrap(), None);
    let devices = ["one", "two"].map(|name| {
        let image = place.join(name);
        sparse(&image, 8 << 20);
        loop_device(&image)
    });
    let link =
        |name: &str, device: usize| std::os::unix::fs::symlink(devices[device].path(), links.join(name)).unwrap();
    // Of another volume, and a partition of this one.
    link("virtio-00000000-a62a-4f66-b", 1);
    link("virtio-9ec2369a-a62a-4f66-b-part1", 1);
    assert_eq!(find(8 << 20).unwrap(), None);
    for name in [format!("virtio-{}", &VOLUME[..20]), format!("scsi-0QEMU_QEMU_HARDDISK_{VOLUME}")] {
        link(&name, 0);
        assert_eq!(find(8 << 20).unwrap().as_deref(), Some(devices[0].path()), "{name}");
        std::fs::remove_file(links.join(&name)).unwrap();
    }
    // Both kinds of links to one disk are one disk; to two of them they are none.
    link(&format!("virtio-{}", &VOLUME[..20]), 0);
    link(&format!("scsi-0QEMU_QEMU_HARDDISK_{VOLUME}"), 0);
    assert!(find(8 << 20).unwrap().is_some());
    let error = find(9 << 20).unwrap_err().to_string();
    assert!(error.contains("expected 9437184 bytes") && error.contains("found 8388608"), "{error}");
    link(&format!("scsi-SQEMU_QEMU_HARDDISK_{VOLUME}"), 1);
    let error = find(8 << 20).unwrap_err().to_string();
    assert!(error.contains("expected one disk of this host"), "{error}");
}

#[test]
fn a_volume_that_compute_attached_elsewhere_is_missed_and_taken_off_again() {
    if !asked_for("a_volume_that_compute_attached_elsewhere_is_missed_and_taken_off_again") {
        return;
    }
    let _one = one();
    let _cloud = shared();
    let rest = Rest::new("bank", "bank");
    // A server that runs: this host is told that it were it.
    let machine = super::nova::Cloud::new();
    let started = machine.start("drill", &["--marker", crate::drill::EARLY]).run().ok();
    let (drill, server) = (id_of(&started), started["course"]["server"].as_str().unwrap().to_owned());
    let truck = Truck::new(40);
    let to = format!("cinder:?type=ceph&attach={server}");
    truck.run("cinder:?type=ceph&attach=instance", &[]).refused(1, &["expected that this host is one of its servers"]);
    // Killed while the volume is there: whoever comes later does not take it from a server without being told to.
    let mut running = truck.import(&to, &[]).start();
    let there = |_: &_| rest.volumes_of(&truck.disk).first().is_some_and(|volume| volume["status"] == "in-use");
    assert!(running.until(Duration::from_secs(120), there), "{}", running.said());
    running.kill();
    truck.run("cinder:?type=ceph", &[]).refused(1, &[&format!("found server {server}")]);
    // Told to, it takes it off, asks again, and misses the disk.
    truck.run(&to, &[]).refused(1, &["expected its disk on this host (/dev/disk/by-id/virtio-", &server]);
    let free = || {
        let volume = rest.volumes_of(&truck.disk).remove(0);
        let id = volume["id"].as_str().unwrap().to_owned();
        volume["status"] == "available" && rest.get(&format!("/attachments?volume_id={id}"))["attachments"] == json!([])
    };
    crate::drill::gone(free);
    // What Compute can leave of a server that was removed while it was being made is nobody's.
    let volume = rest.volumes_of(&truck.disk).remove(0)["id"].clone();
    let stale = json!({ "attachment": { "volume_uuid": volume, "instance_uuid": uuid::Uuid::new_v4() } });
    assert_eq!(rest.ask("POST", "/attachments", Some(stale)).0, 200);
    // And the import is finished where this host reaches the storage itself.
    truck.check(&truck.run("cinder:?type=ceph", &[]).ok());
    rest.the_volume_of(&truck.disk);
    machine.centre.end(&drill);
}
