//! Volumes of this host.

use super::{Centre, LOGIN, id_of, processes};
use crate::common::{b3sum, json_file, secret, sparse, ssh_key, tool, verify_signature, write_at};
use std::time::Duration;

#[test]
fn a_machine_boots_to_its_login_and_the_volume_never_knows() {
    let centre = Centre::of_the_machine();
    centre.import(&centre.to_dir(), &[]).run().ok();
    let before = b3sum(&centre.volume("sda"));
    // Only said.
    let planned = centre.start(&["--dry-run"]).run().ok();
    assert!(planned["course"].is_null() && planned["drill"]["firmware"] == "bios", "{planned}");
    assert_eq!(centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().len(), 0);
    let started = centre.start(&["--within", LOGIN]).run().ok();
    let id = id_of(&started);
    let course = &started["course"];
    assert_eq!((&course["seen"]["sign"], &course["state"]), (&"login".into(), &"running".into()), "{started}");
    assert!(course["seen"]["milliseconds"].as_u64().unwrap() > 1000);
    // It runs, and can be looked at; without a network.
    assert_eq!(centre.show(&id[..6])["status"], "running");
    let screen = course["screen"].as_str().unwrap();
    let mut greeting = [0; 12];
    std::io::Read::read_exact(&mut std::os::unix::net::UnixStream::connect(screen).unwrap(), &mut greeting).unwrap();
    assert!(greeting.starts_with(b"RFB "), "{greeting:?}");
    let qemu = processes(&id).into_iter().find(|(_, words)| words.contains("qemu-system")).unwrap();
    assert!(qemu.1.contains("-nic none") && !qemu.1.contains("-netdev"), "{}", qemu.1);
    // While it runs the volume can be checked, and not be imported into.
    centre.volumes_are_as_they_were();
    centre
        .import(&centre.to_dir(), &[])
        .run()
        .refused(1, &["expected no other import of it, found one running", "drill show"]);
    // What people say of it.
    let wrong = centre.branch.place.join("wrong");
    secret(&wrong, b"no key");
    let with = |key: &str, extra: &[&str]| {
        let fixed = ["confirm", &id, "--passed", "--person", "Zhao Min", "--key", key];
        centre.drill(&[&fixed, extra].concat()).run()
    };
    with(wrong.to_str().unwrap(), &[]).refused(1, &["expected an OpenSSH private key"]);
    let stranger = ssh_key(&centre.branch.place.join("stranger"), "stranger@elsewhere", "ed25519", "");
    let trust = centre.branch.trust.to_str().unwrap();
    with(stranger.to_str().unwrap(), &["--trust", trust]).refused(4, &["Signer stranger@elsewhere"]);
    centre
        .drill(&["confirm", "00000000", "--failed", "--person", "x", "--key", "y"])
        .run()
        .refused(1, &["found none of that name"]);
    centre.confirm(&id, "--passed", &["--note", "balance is right", "--trust", trust]).ok();
    centre.confirm(&id, "--failed", &[]).code(1);
    centre.end(&id);
    let again = centre.drill(&["end", &id]).run().ok();
    assert_eq!(again["already"], true);
    // The evidence stands by itself.
    let evidence = centre.evidence(&id);
    verify_signature(&centre.branch.trust, "zhang@river-bank", "motiongear-drill", &evidence.join("confirm.json"));
    for pinned in json_file(&evidence.join("confirm.json"))["evidence"].as_array().unwrap() {
        let (file, bytes) = (evidence.join(pinned["file"].as_str().unwrap()), pinned["bytes"].as_u64().unwrap());
        let first = std::fs::read(file).unwrap()[..bytes as usize].to_vec();
        assert_eq!(b3sum(&centre.branch.place.file("first", first)), pinned["blake3"], "{pinned}");
    }
    assert!(std::fs::read_to_string(evidence.join("serial.log")).unwrap().contains("drilled login:"));
    let picture = std::fs::read(evidence.join("picture.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n") && picture.len() > 500, "{}", picture.len());
    // And in the report, in both languages, with the picture.
    let encoded = tool("base64", ["-w0".as_ref(), evidence.join("picture.png").as_os_str()]);
    for (lang, words) in [
        ("en", ["It asked for a login after", "PASSED, says Zhao Min"]),
        ("zh", ["秒后出现登录提示", "通过，确认人 Zhao Min"]),
    ] {
        let command =
            centre.branch.motiongear().args(["--json", "--lang", lang, "report", "import"]).arg(&centre.branch.array);
        let report = command.args(["--trust", trust]).run().ok();
        let page = std::fs::read_to_string(report["html"].as_str().unwrap())
            .unwrap()
            .replace("&#x2f;", "/")
            .replace("&#x3d;", "=");
        assert!(page.contains(encoded.trim()), "the picture is not in the report");
        words.iter().for_each(|word| assert!(page.contains(word), "{word}"));
        let facts = json_file(report["json"].as_str().unwrap().as_ref());
        assert_eq!(facts["drills"][0]["confirmation"]["note"], "balance is right");
        assert_eq!(facts["drills"][0]["signer_checked"], true);
    }
    // Who alters it afterwards is seen.
    write_at(&evidence.join("picture.png"), 100, b"another");
    assert_eq!(centre.show(&id)["altered"][0], "picture.png");
    let course = std::fs::read_to_string(evidence.join("course.json")).unwrap();
    let edited = course.replacen("\"silent\": false", "\"silent\": true", 1);
    assert_ne!(edited, course);
    std::fs::write(evidence.join("course.json"), edited).unwrap();
    let shown = centre.show(&id);
    assert_eq!(shown["altered"], serde_json::json!(["course.json", "picture.png"]));
    assert_eq!(shown["course"]["silent"], false, "what was signed counts");
    assert_eq!(b3sum(&centre.volume("sda")), before);
    centre.volumes_are_as_they_were();
}

#[test]
fn a_machine_boots_by_uefi() {
    let centre = Centre::of_the_machine();
    centre.import(&centre.to_dir(), &[]).run().ok();
    let before = b3sum(&centre.volume("sda"));
    let started = centre.early(&["--firmware", "uefi"]);
    let id = id_of(&started);
    assert!(processes(&id).iter().any(|(_, words)| words.contains("OVMF_CODE")), "{:?}", processes(&id));
    centre.end(&id);
    assert_eq!(b3sum(&centre.volume("sda")), before);
}

#[test]
fn a_machine_that_does_not_boot_is_seen_not_to() {
    // A partition to boot from, and no boot loader in it.
    let place = crate::common::Place::new();
    let disk = place.join("disk.raw");
    sparse(&disk, 8 << 20);
    tool("sgdisk", ["--new=1:1M:+1M", "--typecode=1:ef02", "--new=2:2M:0", disk.to_str().unwrap()]);
    let centre = Centre::of(&[("sda", &disk)]);
    centre.import(&centre.to_dir(), &[]).run().ok();
    let ran = centre.start(&["--within", "8s"]).run();
    let started = ran.code(3);
    let id = id_of(&started);
    assert_eq!((&started["course"]["silent"], &started["course"]["seen"]), (&true.into(), &serde_json::Value::Null));
    assert!(started["course"]["picture"]["bytes"].as_u64().unwrap() > 500, "{started}");
    let said = centre.branch.motiongear().args(["drill", "show"]).run();
    assert!(said.stdout.contains("NO LOGIN SEEN on its serial console within 8 s"), "{}", said.stdout);
    centre.confirm(&id, "--failed", &[]).ok();
    centre.end(&id);
    let report = centre.branch.motiongear().args(["--json", "report", "import"]).arg(&centre.branch.array).run().ok();
    assert_eq!(report["verdict"], "remarks", "{report}");
    let page = std::fs::read_to_string(report["html"].as_str().unwrap()).unwrap();
    assert!(page.contains("The last confirmed drill of 1 machine(s) failed") && page.contains("NO LOGIN SEEN"));
    // Nor does it stand that somebody says that it passed, who may not say so.
    let another = id_of(&centre.start(&["--within", "2s"]).run().code(3));
    let stranger = ssh_key(&place.join("stranger"), "stranger@elsewhere", "ed25519", "");
    let (stranger, trust) = (stranger.to_str().unwrap(), centre.branch.trust.to_str().unwrap());
    let says = ["confirm", &another, "--passed", "--person", "Li Wei", "--key", stranger];
    centre.drill(&says).run().ok();
    centre.end(&another);
    let report = centre.branch.motiongear().args(["--json", "report", "import"]).arg(&centre.branch.array);
    let report = report.args(["--trust", trust]).run().ok();
    assert_eq!(report["verdict"], "remarks", "{report}");
    let page = std::fs::read_to_string(report["html"].as_str().unwrap()).unwrap();
    assert!(page.contains("The last confirmed drill of 1 machine(s) failed") && page.contains("MAY NOT SIGN as"));
    // The firmware that its table cannot boot by is refused before anything is made.
    centre.start(&["--firmware", "uefi"]).run().refused(1, &["expected an EFI system partition", "--firmware bios"]);
    assert_eq!(centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().len(), 2);
}

#[test]
fn nothing_boots_that_is_not_proven() {
    let place = crate::common::Place::new();
    let (boot, data) = (place.join("boot.raw"), place.join("data.raw"));
    sparse(&boot, 40 << 20);
    tool("sgdisk", ["--new=1:1M:+1M", "--typecode=1:ef02", "--new=2:2M:0", boot.to_str().unwrap()]);
    crate::common::noise_at(&std::fs::File::options().write(true).open(&boot).unwrap(), 4 << 20, 30 << 20, 3);
    sparse(&data, 4 << 20);
    let centre = Centre::of(&[("sda", &boot), ("sdb", &data)]);
    let to = centre.to_dir();
    centre.start(&[]).run().refused(1, &["expected one that was imported here, found none"]);
    // In the middle of an import, and after it was killed.
    let mut running = centre.import(&to, &["--disk", "sda", "--read-limit", "4MiB"]).start();
    assert!(running.until(Duration::from_secs(60), |_| centre.volume("sda").exists()));
    centre.start(&[]).run().refused(1, &["expected a complete import of it, found"]);
    running.kill();
    centre
        .start(&[])
        .run()
        .refused(1, &["expected a complete import of it, found", "nothing boots that is not proven"]);
    centre.import(&to, &["--disk", "sda"]).run().ok();
    centre.start(&[]).run().refused(1, &["expected all disks of its shipment imported, found no import of sdb"]);
    centre.import(&to, &[]).run().ok();
    // Now it may, if what is asked for makes sense.
    centre.start(&["--dry-run"]).run().ok();
    centre.drill(&["start", "db01", "--memory", "900TiB"]).run().refused(1, &["of memory free on this host"]);
    centre.start(&["--cpus", "0"]).run().refused(2, &["1 to 255 processors"]);
    centre.start(&["--within", "10"]).run().refused(2, &["as in 90s, 10m or 2h"]);
    centre.start(&["--marker", ""]).run().refused(2, &["expected a text, found none"]);
    centre.drill(&["start", "elsewhere/db01"]).run().refused(1, &["found none"]);
    // Another file in the volume's place.
    let volume = centre.volume("sdb");
    tool("mv", [volume.to_str().unwrap(), place.join("away").to_str().unwrap()]);
    tool("cp", [place.join("away").to_str().unwrap(), volume.to_str().unwrap()]);
    centre.start(&[]).run().refused(1, &["another volume took its place"]);
    assert_eq!(centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().len(), 0);
}
