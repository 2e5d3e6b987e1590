//! Whoever dies in a drill: nothing of it is left after `end`, and the volume is as it was.

use super::{Centre, EARLY, LOGIN, gone, id_of, kill, processes};
use crate::common::b3sum;
use std::time::Duration;

#[test]
fn whoever_is_killed_leaves_nothing_that_end_does_not_clear_away() {
    let centre = Centre::of_the_machine();
    centre.import(&centre.to_dir(), &[]).run().ok();
    let before = b3sum(&centre.volume("sda"));
    let newest = || {
        let all = centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().clone();
        all.last().map(|drill| drill["drill"]["drill"].as_str().unwrap().to_owned())
    };
    // `start`, while the machine boots: the machine goes on, and comes up.
    let mut running = centre.start(&["--marker", EARLY, "--within", LOGIN]).start();
    assert!(
        running.until(Duration::from_secs(60), |running| running.said().contains("It boots")),
        "{}",
        running.said()
    );
    running.kill();
    let id = newest().unwrap();
    gone(|| !centre.show(&id)["course"]["seen"].is_null());
    assert_eq!(centre.show(&id)["status"], "running");
    centre.end(&id);
    assert_eq!(centre.show(&id)["status"], "ended");
    // The keeper: QEMU ends with it, and everybody can see that.
    let id = id_of(&centre.early(&[]));
    kill(&id, "drill-keeper");
    gone(|| processes(&id).is_empty());
    assert_eq!(centre.show(&id)["status"], "lost");
    centre.confirm(&id, "--failed", &["--note", "the host fell"]).ok();
    centre.end(&id);
    // QEMU: the keeper says so, and waits for the end.
    let id = id_of(&centre.early(&[]));
    kill(&id, "qemu-system");
    gone(|| centre.show(&id)["status"] == "off");
    assert!(centre.show(&id)["course"]["words"].as_str().unwrap().contains("signal: 9"), "{}", centre.show(&id));
    centre.end(&id);
    // QEMU, before anything was seen: that is no success.
    let mut running = centre.start(&["--within", LOGIN]).start();
    assert!(
        running.until(Duration::from_secs(60), |running| running.said().contains("It boots")),
        "{}",
        running.said()
    );
    let id = newest().unwrap();
    kill(&id, "qemu-system");
    let ran = running.wait();
    assert_eq!(ran.code(3)["course"]["state"], "off");
    centre.end(&id);
    // A keeper that hears nothing any more is killed with what it has.
    let id = id_of(&centre.early(&[]));
    for (process, _) in processes(&id) {
        crate::common::tool("kill", ["-STOP", &process.to_string()]);
    }
    centre.end(&id);
    assert_eq!(b3sum(&centre.volume("sda")), before);
    centre.volumes_are_as_they_were();
}
