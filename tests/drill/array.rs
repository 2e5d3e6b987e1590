//! Straight from the sealed array: no import, no volume. What is looked at afterwards is every file of the array.

use super::{Centre, LOGIN, gone, id_of, kill, machine, processes};
use crate::common::{Place, b3sum, noise, sparse, sql, ssh_key, tool, trust_line, write_at};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All files below a directory, by what `b3sum` says of them.
fn files(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), b3sum(&path))),
        }
    }
    found
}

/// `--from ARRAY --trust … --identity …`
fn from(centre: &Centre) -> [&str; 6] {
    let branch = &centre.branch;
    [
        "--from",
        branch.array.to_str().unwrap(),
        "--trust",
        branch.trust.to_str().unwrap(),
        "--identity",
        branch.identity.to_str().unwrap(),
    ]
}

/// What the command line says of it, without `--json`.
fn said(centre: &Centre, arguments: &[&str]) -> String {
    let ran = centre.branch.motiongear().args(["drill"]).args(arguments).run();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stdout
}

#[test]
fn a_machine_boots_from_its_sealed_array_without_any_import() {
    let centre = Centre::encrypted(&[("sda", &machine())], &[]);
    let branch = &centre.branch;
    let before = files(&branch.array);
    let from = from(&centre);
    // Nobody is trusted, and nothing boots, that import would not take.
    centre.start(&[]).run().refused(1, &["expected one that was imported here, found none"]);
    centre.start(&from[..2]).run().refused(2, &["--trust"]);
    centre.start(&from[..4]).run().refused(4, &["it is encrypted, and no identity was given"]);
    let stranger = ssh_key(&branch.place.join("stranger"), "zhang@river-bank", "ed25519", "");
    let wrong = branch.place.file("wrong_signers", trust_line(&stranger, &format!("zhang@{}", branch.site), ""));
    let [_, array, _, _, _, identity] = from;
    centre
        .start(&["--from", array, "--trust", wrong.to_str().unwrap(), "--identity", identity])
        .run()
        .refused(4, &["is not in the file of allowed signers"]);
    centre
        .start(&[&from[..], &["--expect-seal", "00000000"]].concat())
        .run()
        .refused(4, &["expected the seal '00000000'"]);
    centre.drill(&[&["start", "web"], &from[..]].concat()).run().refused(1, &["Machine web: expected it in shipment"]);
    centre
        .drill(&[&["start", "elsewhere/db01"], &from[..]].concat())
        .run()
        .refused(1, &["Machine elsewhere/db01: expected it in"]);
    assert_eq!(centre.start(&[&from[..], &["--dry-run"]].concat()).run().ok()["course"], Value::Null);
    assert_eq!(centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().len(), 0);
    // To its login.
    let started = centre.start(&[&from[..], &["--within", LOGIN]].concat()).run().ok();
    let id = id_of(&started);
    assert_eq!(started["course"]["seen"]["sign"], "login", "{started}");
    let disk = &started["drill"]["disks"][0];
    let seal = b3sum(&branch.on("seal.json"));
    assert_eq!((&disk["base"]["kind"], &disk["seal"]), (&"array".into(), &seal.as_str().into()), "{disk}");
    assert_eq!((&disk["shipment"], &disk["digest"]), (&branch.shipment_json()["shipment"], &b3sum(&machine()).into()));
    // It is what it is called: of the array, no recovery point, nothing imported.
    let shown = said(&centre, &["show", &id]);
    assert!(shown.contains("straight from the array, shipment ") && !shown.contains("recovery point"), "{shown}");
    assert_eq!(sql(&branch.state.join("ledger.db"), "SELECT COUNT(*) FROM volume"), "0");
    // Paths are written down, secrets never; neither do they stand on a command line.
    let secret = std::fs::read_to_string(&branch.identity).unwrap();
    let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY")).unwrap();
    for file in ["drill.json", "course.json"] {
        assert!(!std::fs::read_to_string(centre.evidence(&id).join(file)).unwrap().contains(secret));
    }
    assert!(processes(&id).iter().all(|(_, words)| !words.contains(secret)));
    centre.confirm(&id, "--passed", &["--note", "before the import"]).ok();
    centre.end(&id);
    assert!(std::fs::read_to_string(centre.evidence(&id).join("serial.log")).unwrap().contains("drilled login:"));
    // Whoever has it is killed.
    let id = id_of(&centre.early(&from));
    kill(&id, "drill-keeper");
    gone(|| processes(&id).is_empty());
    assert_eq!(centre.show(&id)["status"], "lost");
    centre.end(&id);
    assert_eq!(files(&branch.array), before);
}

#[test]
fn a_block_that_cannot_be_proven_is_an_error_to_the_machine_and_is_said() {
    let place = Place::new();
    let [boot, data, old] = ["boot.raw", "data.raw", "old.raw"].map(|name| place.join(name));
    sparse(&boot, 8 << 20);
    tool("sgdisk", ["--new=1:1M:+1M", "--typecode=1:ef02", "--new=2:2M:0", boot.to_str().unwrap()]);
    noise(&data, 4 << 20, 5);
    noise(&old, 2 << 20, 6);
    let left_out = ["--without", "db01/sdc", "--reason", "an old copy"];
    let centre = Centre::encrypted(&[("sda", &boot), ("sdb", &data), ("sdc", &old)], &left_out);
    let branch = &centre.branch;
    // The first block, where the firmware looks for what boots.
    let query = "SELECT offset FROM block JOIN generation ON generation.id = block.generation JOIN disk ON disk.number = generation.disk \
                 WHERE disk.name = 'sda' AND block.block = 0";
    let offset: u64 = sql(&branch.live_manifest(), query).parse().unwrap();
    write_at(&branch.packs()[0], offset + 100, b"rot");
    let before = files(&branch.array);
    let ran = centre.start(&[&from(&centre)[..], &["--within", "8s"]].concat()).run();
    let started = ran.code(3);
    let id = id_of(&started);
    let names: Vec<_> = started["drill"]["disks"].as_array().unwrap().iter().map(|disk| &disk["name"]).collect();
    assert_eq!(names, ["sda", "sdb"]);
    assert!(started["drill"]["notes"].to_string().contains("sdc: left out at the branch: an old copy"), "{started}");
    assert_eq!(started["course"]["unproven_blocks"], 1, "{started}");
    // A machine that boots by something else all the same is no success either.
    let shown = said(&centre, &["show", &id]);
    for words in ["1 BLOCK(S) of the array COULD NOT BE PROVEN", "db01/sda: block 0 at byte 0: "] {
        assert!(shown.contains(words), "{shown}");
    }
    centre.end(&id);
    assert_eq!(files(&branch.array), before);
}
