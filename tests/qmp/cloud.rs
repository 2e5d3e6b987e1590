//! Goal: a machine that runs and writes arrives in a cloud as it was at one instant, and the first scan reads what changed since. Method:
//! its guest's disks are made anew from how far it was (`machine`), and compared with what `rbd export` gives of the cloud's volumes.

use super::machine::{BYTES, MIB, Machine};
use crate::cloud::stack::{Rest, as_user, rbd, shared};
use crate::common::{Branch, Motiongear, b3sum, disk};

#[test]
fn a_running_machine_is_in_the_cloud_as_it_was_at_one_instant() {
    let _cloud = shared();
    let branch = Branch::ready();
    let machine = Machine::writing(&branch.place, 1024);
    let before = machine.written();
    let seeded = machine.seed(&branch, &[]).run().ok();
    machine.goes_on();
    branch.seal();
    let centre = Motiongear::new(&branch.place.join("centre"));
    let command = centre.args(["--json", "import"]).arg(&branch.array).args(["--to", "cinder:?type=ceph", "--trust"]);
    let command = command.arg(&branch.trust).arg("--identity").arg(&branch.identity);
    let imported = as_user(command, "bank").run().ok();
    let rest = Rest::new("bank", "bank");
    let images = ["sda", "sdb"].map(|name| {
        let (outcome, digest) = (disk(&imported["disks"], name), &disk(&seeded["disks"], name)["digest"]);
        assert_eq!((&outcome["proven"], &outcome["digest"]), (&true.into(), digest), "{outcome}");
        let volumes = rest.volumes_of_uuid(outcome["uuid"].as_str().unwrap());
        assert_eq!(volumes.len(), 1, "{volumes:?}");
        let image = branch.place.join(format!("{name}.exported"));
        let spec = format!("volumes/volume-{}", volumes[0]["id"].as_str().unwrap());
        rbd(&["export", "--no-progress", &spec, image.to_str().unwrap()]);
        // A volume is whole gibibytes.
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        assert!(file.metadata().unwrap().len() >= BYTES);
        file.set_len(BYTES).unwrap();
        assert_eq!(b3sum(&image), digest.as_str().unwrap());
        image
    });
    assert!(machine.is_one_instant(&images) >= before);
    let scanned = branch.run(["scan", "--audit", "5"]).ok();
    for name in ["db01/sda", "db01/sdb"] {
        let found = scanned["disks"].as_array().unwrap().iter().find(|disk| disk["disk"] == name).unwrap();
        // The guest keeps to blocks 1 to 4; 5 % of 64 blocks are 4.
        let told =
            (&found["blocks"]["changed"], &found["bitmap"]["trusted_blocks"], &found["bitmap"]["audited_blocks"]);
        assert_eq!(told, (&4.into(), &56.into(), &4.into()), "{found}");
        assert!(found["read_bytes"].as_u64().unwrap() <= 8 * MIB, "{found}");
    }
    machine.goes_on();
    machine.has_nothing_of_ours();
}
