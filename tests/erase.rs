//! Goal: an array is erased only when all of it is proven elsewhere, completely, with a certificate, and again after any crash.
//! Method: real arrays in directories; what was on them is searched for afterwards.

use super::common::{
    Branch, Motiongear, Mount, Ran, json_file, loop_device, sparse, ssh_key, tool, trust_line, verify_signature,
    write_at,
};
use super::custody::{centre, delivered, sealed};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn import(branch: &Branch, readback: &str) {
    import_into(branch, &branch.place.join("volumes"), readback);
}

fn import_into(branch: &Branch, volumes: &Path, readback: &str) {
    let to = format!("dir:{}", volumes.display());
    let command = centre(branch).arg("import").arg(&branch.array).args(["--to", &to, "--readback", readback]);
    command.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity).run().ok();
}

fn command(branch: &Branch, key: &Path, tag: &str, extra: &[&str]) -> super::common::run::Motiongear {
    // Arrays of tests are directories of the system disk.
    let command = centre(branch).arg("erase").arg(&branch.array).args(["--asset", tag, "--allow-system-disk"]);
    command.arg("--key").arg(key).args(extra)
}

fn erase(branch: &Branch, key: &Path, tag: &str, extra: &[&str]) -> Ran {
    command(branch, key, tag, extra).run()
}

/// Every file below the array.
fn left(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(left(&path)) } else { found.push(path) }
    }
    found
}

fn check_erased(branch: &Branch, done: &serde_json::Value, proven: bool) {
    assert_eq!(left(&branch.array), [branch.on("erased.json")]);
    let certificate = PathBuf::from(done["certificate"].as_str().unwrap());
    verify_signature(&branch.trust, "wang@centre", "motiongear-erase", &certificate);
    let facts = json_file(&certificate);
    assert_eq!(facts["proven"], proven);
    assert_eq!(facts["shipment"]["asset_tag"], "TAG-7");
    assert_eq!(json_file(&branch.on("erased.json"))["certificate"], super::common::b3sum(&certificate));
    let kept = branch.place.join("centre/custody").join(facts["shipment"]["shipment"].as_str().unwrap()).join("centre");
    let last = left(&kept).into_iter().filter(|p| p.extension().is_some_and(|e| e == "json")).max().unwrap();
    assert!(last.to_str().unwrap().ends_with("-erased.json"), "{}", last.display());
    verify_signature(&branch.trust, "wang@centre", "motiongear-custody", &last);
    // Of journals nothing is left, however often a run was killed.
    assert_eq!(std::fs::read_dir(branch.place.join("centre/erasures")).unwrap().count(), 0);
}

#[test]
fn a_proven_array_is_erased_and_prepared_again() {
    let (branch, operator) = delivered();
    erase(&branch, &operator, "TAG-7", &[]).refused(1, &["never imported here", "--unproven"]);
    import(&branch, "full");
    erase(&branch, &operator, "TAG-8", &[]).refused(4, &["Asset tag", "TAG-8"]);
    let before = left(&branch.array);
    erase(&branch, &operator, "TAG-7", &["--dry-run"]).ok();
    assert_eq!(left(&branch.array), before);
    let done = erase(&branch, &operator, "TAG-7", &["--trust", branch.trust.to_str().unwrap()]).ok();
    check_erased(&branch, &done, true);
    let facts = json_file(Path::new(done["certificate"].as_str().unwrap()));
    assert_eq!(facts["envelopes"].as_array().unwrap().len(), 2);
    assert!(facts["packs"][0]["sampled_bytes"].as_u64().unwrap() > 0);
    tells_again(&branch, &operator, &done);
    branch.init(&[]);
    assert!(branch.on("shipment.json").exists() && !branch.on("erased.json").exists());
}

/// The same command again is told what was done, and changes nothing.
fn tells_again(branch: &Branch, operator: &Path, done: &serde_json::Value) {
    let certificates = branch.place.join("centre/certificates");
    let before = left(&certificates);
    for extra in [&[][..], &["--dry-run"]] {
        let again = erase(branch, operator, "TAG-7", extra).ok();
        assert!(again["erased_already"].is_string(), "{again}");
        for same in ["certificate", "shipment", "seal", "disks", "asset_tag"] {
            assert_eq!(again[same], done[same], "{same}");
        }
    }
    assert_eq!(left(&certificates), before);
    for (lang, said) in [("en", "was erased already, at "), ("zh", "擦除")] {
        let told = Motiongear::new(&branch.place.join("centre")).args(["--lang", lang, "erase"]).arg(&branch.array);
        let told = told.args(["--asset", "TAG-7"]).arg("--key").arg(operator).run().stdout;
        assert!(told.contains(said) && told.contains(done["certificate"].as_str().unwrap()), "{told}");
    }
    erase(branch, operator, "TAG-8", &[]).refused(4, &["Asset tag", "TAG-8"]);
    // Whoever has no certificate of it says so, and which one it is.
    let digest = json_file(&branch.on("erased.json"))["certificate"].as_str().unwrap().to_owned();
    let aside = branch.place.join("aside");
    std::fs::rename(&certificates, &aside).unwrap();
    erase(branch, operator, "TAG-7", &[]).refused(1, &["was erased at ", &digest, "--certificate"]);
    let there = ["--certificate", aside.to_str().unwrap()];
    assert!(erase(branch, operator, "TAG-7", &there).ok()["erased_already"].is_string());
    std::fs::rename(&aside, &certificates).unwrap();
    // And every other verb knows what became of the array.
    let shipment = done["shipment"].as_str().unwrap();
    for verb in ["verify", "import"] {
        let mut command = centre(branch).arg(verb).arg(&branch.array).arg("--trust").arg(&branch.trust);
        if verb == "import" {
            let to = format!("dir:{}", branch.place.join("volumes").display());
            command = command.arg("--identity").arg(&branch.identity).args(["--to", &to]);
        }
        command.run().refused(4, &["its content was erased at ", shipment]);
    }
    branch
        .seed(&[("sda", &branch.place.join("sda"))], &[])
        .refused(1, &["its content was erased at ", "motiongear init"]);
    branch
        .on_array("seal", ["--key", branch.key.to_str().unwrap()])
        .refused(1, &["its content was erased at ", "motiongear init"]);
}

#[test]
fn what_was_trusted_is_not_proven() {
    let (branch, operator) = delivered();
    import(&branch, "none");
    erase(&branch, &operator, "TAG-7", &[]).refused(1, &["trusted"]);
    erase(&branch, &operator, "TAG-7", &["--unproven"]).refused(2, &[]);
    // It could not be signed in the end, when all is gone.
    let before = left(&branch.array);
    for reason in ["two\nlines", &"长".repeat(700)] {
        erase(&branch, &operator, "TAG-7", &["--unproven", "--reason", reason]).refused(2, &["--reason"]);
    }
    assert_eq!(left(&branch.array), before);
    let done = erase(&branch, &operator, "TAG-7", &["--unproven", "--reason", "the branch sends another array"]).ok();
    check_erased(&branch, &done, false);
    let facts = json_file(Path::new(done["certificate"].as_str().unwrap()));
    assert_eq!(facts["reason"], "the branch sends another array");
}

/// ext4 that journals data takes no O_DIRECT: what was read back may have come from this host's memory.
#[test]
fn what_a_cache_answered_is_not_proven() {
    let (branch, operator) = delivered();
    let image = branch.place.join("fs.img");
    sparse(&image, 64 << 20);
    tool("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), image.as_os_str()]);
    let device = loop_device(&image);
    let mount = Mount::new(device.path(), &branch.place.join("mnt"), &["-o", "data=journal"]);
    import_into(&branch, &mount.path().join("out"), "full");
    erase(&branch, &operator, "TAG-7", &[]).refused(1, &["through a cache", "--unproven"]);
}

#[test]
fn a_shipment_that_was_never_sealed_can_be_given_up() {
    let branch = Branch::ready();
    let disk = branch.place.file("disk.img", vec![5u8; 2 << 20]);
    branch.seed(&[("sda", &disk)], &[]).ok();
    erase(&branch, &branch.key, "TAG-7", &[]).code(1);
    let done = erase(&branch, &branch.key, "TAG-7", &["--unproven", "--reason", "wrong site"]).ok();
    assert_eq!(left(&branch.array), [branch.on("erased.json")]);
    verify_signature(
        &branch.trust,
        "zhang@river-bank",
        "motiongear-erase",
        Path::new(done["certificate"].as_str().unwrap()),
    );
}

#[test]
fn links_on_the_array_lead_nowhere() {
    let branch = Branch::ready();
    let precious = branch.place.dir("precious");
    let file = precious.join("data");
    std::fs::write(&file, b"not yours").unwrap();
    let give_up = |branch: &Branch| erase(branch, &branch.key, "TAG-7", &["--unproven", "--reason", "a test"]);
    // A directory that is a link stops everything; a file that is a link goes, but not what it leads to.
    std::fs::remove_dir_all(branch.on("packs")).unwrap();
    std::os::unix::fs::symlink(&precious, branch.on("packs")).unwrap();
    give_up(&branch).refused(4, &["a link"]);
    std::fs::remove_file(branch.on("packs")).unwrap();
    std::os::unix::fs::symlink(&file, branch.on("holder.json")).unwrap();
    give_up(&branch).ok();
    assert_eq!(left(&branch.array), [branch.on("erased.json")]);
    assert_eq!(std::fs::read(&file).unwrap(), b"not yours");
}

#[test]
fn an_erasure_that_was_killed_anywhere_is_finished_by_the_same_command() {
    // Killed as soon as each step shows, and at a few moments in between.
    type Step = fn(&Branch) -> bool;
    let steps: [Step; 8] = [
        |_| true,
        |b| b.place.join("centre/erasures").exists(),
        |b| !b.on("keys/0001.age").exists(),
        |b| !b.on("packs/00000001.pack").exists(),
        |b| !b.on("manifest.db.age").exists(),
        |b| !b.on("copy").exists(),
        |b| b.place.join("centre/certificates").exists(),
        |b| !b.on("shipment.json").exists(),
    ];
    let mut resumed = 0;
    for step in steps {
        let (branch, operator) = sealed();
        import(&branch, "full");
        let mut job = command(&branch, &operator, "TAG-7", &[]).start();
        while job.is_running() && !step(&branch) {
            std::thread::sleep(Duration::from_micros(50));
        }
        job.kill();
        let complete = branch.on("erased.json").exists();
        check_erased(&branch, &erase(&branch, &operator, "TAG-7", &[]).ok(), true);
        resumed += u32::from(!complete);
    }
    assert!(resumed >= 4, "{resumed} runs were killed in time");
}

#[test]
fn what_a_killed_erasure_left_half_written_goes_with_its_journal() {
    let (branch, operator) = delivered();
    import(&branch, "full");
    let shipment = branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
    let litter = branch.place.dir(format!("centre/erasures/{shipment}").as_str());
    std::fs::write(litter.join(".4711-0.tmp"), b"{ half a jour").unwrap();
    check_erased(&branch, &erase(&branch, &operator, "TAG-7", &[]).ok(), true);
}

/// What cannot be added to in the end stops an erasure at its beginning.
#[test]
fn a_chain_of_the_data_centre_that_was_altered_stops_the_erasure_before_it_begins() {
    let (branch, operator) = delivered();
    import(&branch, "full");
    let report = centre(&branch).args(["report", "import"]).arg(&branch.array).arg("--key").arg(&operator);
    report.arg("--trust").arg(&branch.trust).run().ok();
    let shipment = branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
    let file = branch.place.join("centre/custody").join(shipment).join("centre/0001-imported.json");
    let (good, before) = (std::fs::read_to_string(&file).unwrap(), left(&branch.array));
    std::fs::write(&file, good.replace("report I-", "report J-")).unwrap();
    erase(&branch, &operator, "TAG-7", &[]).refused(4, &["centre/0001-imported.json", "backup"]);
    assert_eq!(left(&branch.array), before);
    std::fs::write(&file, good).unwrap();
    check_erased(&branch, &erase(&branch, &operator, "TAG-7", &[]).ok(), true);
}

/// A mounted array of its own, sealed in plain text after a pack was given up and the shipment sealed once more.
fn resealed_on(mount: &Path, place: Branch) -> (Branch, PathBuf) {
    let mut branch = place;
    branch.array = mount.to_owned();
    branch.init(&["--plaintext"]);
    let mut disk = vec![0u8; 6 << 20];
    for (number, block) in disk.chunks_mut(1 << 20).enumerate().step_by(2) {
        noise_into(block, number as u64);
        let marker = format!("CONFIDENTIAL-ACCOUNT-{number:02}");
        block[..marker.len()].copy_from_slice(marker.as_bytes());
    }
    let disk = branch.place.file("disk.img", disk);
    branch.seed(&[("sda", &disk)], &["--point-in-time"]).ok();
    branch.seal();
    let pack = branch.packs().remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[9000] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    branch.on_array("verify", [""; 0]).code(3);
    branch.seed(&[("sda", &disk)], &["--point-in-time", "--reopen"]).ok();
    branch.seal();
    branch.on_array("verify", [""; 0]).ok();
    let operator = ssh_key(&branch.place.join("operator"), "wang@centre", "ed25519", "");
    let mut trust = std::fs::read_to_string(&branch.trust).unwrap();
    trust.push_str(&trust_line(&operator, "wang@centre", ""));
    std::fs::write(&branch.trust, trust).unwrap();
    (branch, operator)
}

fn noise_into(block: &mut [u8], seed: u64) {
    let mut state = seed * 2 + 1;
    for byte in block {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
}

/// What was removed before the erasure is no file any more: given-up packs, the first manifest, the first seal.
#[test]
fn an_array_in_plain_text_holds_nothing_afterwards_in_no_block_of_its_file_system() {
    let branch = Branch::new();
    let image = branch.place.join("fs.img");
    sparse(&image, 96 << 20);
    tool("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), "-m".as_ref(), "0".as_ref(), image.as_os_str()]);
    let device = loop_device(&image);
    let mount = Mount::new(device.path(), &branch.place.join("mnt"), &[]);
    let (branch, operator) = resealed_on(mount.path(), branch);
    import(&branch, "full");
    std::fs::write(mount.path().join("somebody's file"), b"stays").unwrap();
    let command = |extra: &[&str]| {
        let erase = centre(&branch).arg("erase").arg(&branch.array).args(["--asset", "TAG-7"]);
        erase.arg("--key").arg(&operator).args(extra)
    };
    let planned = command(&["--dry-run"]).run().ok();
    assert_eq!((&planned["free_space"], &planned["place"]["other_names"]), (&"fill".into(), &1.into()), "{planned}");
    assert_eq!(planned["given_up_packs"], serde_json::json!([1]));
    // Killed while it fills, it goes on.
    let mut job = command(&[]).start();
    while job.is_running() && !branch.on(".free-space-000001").exists() {
        std::thread::sleep(Duration::from_micros(100));
    }
    job.kill();
    let done = command(&[]).run().ok();
    let certificate = PathBuf::from(done["certificate"].as_str().unwrap());
    let facts = json_file(&certificate);
    assert_eq!((&facts["treated"]["how"], &facts["treated"]["kept_back_bytes"]), (&"fill".into(), &0.into()));
    assert!(facts["treated"]["bytes"].as_u64().unwrap() > 40 << 20, "{}", facts["treated"]);
    assert_eq!(facts["place"]["mount_point"], mount.path().to_str().unwrap());
    assert_eq!(facts["place"]["others"], serde_json::json!(["somebody's file"]));
    assert_eq!(std::fs::read(mount.path().join("somebody's file")).unwrap(), b"stays");
    assert_eq!(left(&branch.on("")), [branch.on("erased.json")]);
    let paper = certificate.with_extension("html");
    verify_signature(&branch.trust, "wang@centre", "motiongear-erase", &paper);
    drop(mount);
    let raw = std::fs::read(&image).unwrap();
    for word in ["CONFIDENTIAL-ACCOUNT-", "\"sealed_at\"", "machine_id"] {
        assert!(!raw.windows(word.len()).any(|bytes| bytes == word.as_bytes()), "{word}");
    }
}

#[test]
fn free_space_is_named_and_a_directory_on_the_system_disk_is_no_array() {
    let (branch, operator) = delivered();
    import(&branch, "full");
    let plain =
        || centre(&branch).arg("erase").arg(&branch.array).args(["--asset", "TAG-7"]).arg("--key").arg(&operator);
    plain().run().refused(2, &["--allow-system-disk"]);
    // It would stop the host.
    erase(&branch, &operator, "TAG-7", &["--free-space", "fill"]).refused(2, &[]);
    let done = erase(&branch, &operator, "TAG-7", &[]).ok();
    let facts = json_file(Path::new(done["certificate"].as_str().unwrap()));
    assert_eq!((&facts["treated"]["how"], &facts["free_space"]), (&"leave".into(), &"leave".into()));
    assert!(!facts["method"].as_str().unwrap().contains("every"), "{}", facts["method"]);
}

/// The ledger says what was proven once; volumes are lost and written to since.
#[test]
fn a_volume_that_is_missing_or_changed_stops_the_erasure_until_it_is_proven_again_or_accepted() {
    let (branch, operator) = delivered();
    import(&branch, "full");
    let volume = left(&branch.place.join("volumes")).into_iter().find(|file| file.ends_with("sda.raw")).unwrap();
    let disk = format!("{}/sda", volume.parent().unwrap().file_name().unwrap().to_str().unwrap());
    let good = std::fs::read(&volume).unwrap();
    let refused = |extra: &[&str]| {
        let before = left(&branch.array);
        erase(&branch, &operator, "TAG-7", extra).refused(1, &["--unseen"]);
        assert_eq!(left(&branch.array), before);
    };
    let verdict = || {
        let planned = erase(&branch, &operator, "TAG-7", &["--dry-run"]).ok();
        planned["disks"][0]["look"]["verdict"].as_str().unwrap().to_owned()
    };
    let remarks = |code| {
        let command = centre(&branch).args(["report", "import"]).arg(&branch.array).arg("--trust").arg(&branch.trust);
        let ran = command.arg("--out").arg(branch.place.join("out")).run();
        assert_eq!(ran.code, code);
        let done: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let facts = json_file(Path::new(done["json"].as_str().unwrap()));
        let code_of = |remark: &serde_json::Value| remark["code"].as_str().unwrap().to_owned();
        facts["remarks"].as_array().unwrap().iter().map(code_of).collect::<Vec<_>>()
    };
    let verify = |extra: &[&str]| centre(&branch).args(["verify", "--volumes"]).args(extra).run();
    assert_eq!(verdict(), "as-proven");
    // Missing; another file under its name; changed where a look finds it.
    let aside = branch.place.join("aside.raw");
    std::fs::rename(&volume, &aside).unwrap();
    refused(&["--dry-run"]);
    std::fs::write(&volume, &good).unwrap();
    refused(&[]);
    std::fs::rename(&aside, &volume).unwrap();
    assert_eq!(verdict(), "as-proven");
    let change = |bytes: &[u8]| write_at(&volume, 1 << 20, bytes);
    change(b"different");
    refused(&[]);
    // What a whole read found counts although the bytes are back, until another one finds them.
    verify(&[]).code(3);
    assert!(remarks(3).contains(&"volume-differs".to_owned()));
    change(&good[1 << 20..(1 << 20) + 9]);
    refused(&["--dry-run"]);
    // It is no excuse for disks that were never proven, and that is none for this.
    refused(&["--unproven", "--reason", "given up"]);
    verify(&[]).ok();
    assert_eq!(verdict(), "as-proven");
    assert!(!remarks(0).iter().any(|remark| remark.starts_with("volume") || remark.starts_with("difference")));
    // A machine booted from it.
    change(b"different");
    verify(&[]).code(3);
    verify(&["--accept-difference", &disk, "--reason", "it runs since Monday"]).ok();
    assert!(remarks(0).contains(&"difference-accepted".to_owned()));
    assert_eq!(verdict(), "accepted");
    // Erased all the same, which the certificate says.
    std::fs::remove_file(&volume).unwrap();
    refused(&[]);
    let reason = "the volume was deleted by the bank";
    let done = erase(&branch, &operator, "TAG-7", &["--unseen", "--reason", reason]).ok();
    check_erased(&branch, &done, false);
    let facts = json_file(Path::new(done["certificate"].as_str().unwrap()));
    assert_eq!((&facts["reason"], &facts["disks"][0]["look"]["verdict"]), (&reason.into(), &"unseen".into()));
}
