//! What a drill says of a machine is what its console showed, and stays so. A system of one sector stands for a guest: it writes a text to the
//! serial port and halts, so that each way in which a console can look is a disk of its own; `--boot-disk` chooses.

use super::{Centre, gone, id_of, processes};
use crate::common::{Place, noise_at, sparse, tool, try_tool, write_at};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// An MBR disk of 4 MiB whose boot sector writes `text` to COM1 and halts; without a text a data disk: no boot code, not active.
fn disk(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.join(name);
    sparse(&path, 4 << 20);
    // cli; xor ax,ax; mov ds,ax; cld; mov si,text; next: lodsb; test al,al; jz halt; mov dx,0x3f8; out dx,al; jmp next; halt: hlt; jmp halt
    let mut sector = vec![
        0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0xFC, 0xBE, 0x17, 0x7C, 0xAC, 0x84, 0xC0, 0x74, 0x06, 0xBA, 0xF8, 0x03, 0xEE,
        0xEB, 0xF5, 0xF4, 0xEB, 0xFD,
    ];
    sector.extend(text.as_bytes());
    if text.is_empty() {
        sector.clear();
    }
    assert!(sector.len() < 440, "{}", sector.len());
    sector.resize(512, 0);
    let active = if text.is_empty() { 0 } else { 0x80 };
    // One Linux partition from sector 8, 4 KiB long.
    sector[446..462].copy_from_slice(&[active, 1, 1, 0, 0x83, 1, 1, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    write_at(&path, 0, &sector);
    path
}

/// Drills from one of the disks; the exit code, what it says, and its id.
#[track_caller]
fn drill(centre: &Centre, disk: &str, extra: &[&str], code: i32) -> (String, Value) {
    let fixed = ["start", "db01", "--memory", "128MiB", "--boot-disk", disk];
    let started = centre.drill(&[&fixed, extra].concat()).run().code(code);
    (id_of(&started), started["course"].clone())
}

#[test]
fn a_verdict_is_what_the_console_showed_and_stays_so() {
    let place = Place::new();
    let texts = [
        ("a-data", ""),
        ("b-login", "db01 login: [   17.699589] random: crng init done\r\n[   18.1] more\r\n"),
        ("c-sentence", "Waiting for the directory server before login:"),
        ("d-marker", "[\x1b[0;32m  OK  \x1b[0m] Reached \x1b[0;1;39mmulti-user.target\x1b[0m.\r\n"),
        ("e-panic", "one\r\n[   17.7] Kernel panic - not syncing: Attempted to kill init!\r\n"),
        ("f-initramfs", "BusyBox v1.35\r\n\r\n(initramfs) "),
    ];
    let disks: Vec<PathBuf> = texts.iter().map(|(name, text)| disk(&place, name, text)).collect();
    let named: Vec<(&str, &Path)> = texts.iter().map(|(name, _)| *name).zip(disks.iter().map(|d| &**d)).collect();
    let centre = Centre::of(&named);
    centre.import(&centre.to_dir(), &[]).run().ok();

    // The data disk comes first by name, and has nothing to boot from.
    let planned = centre.drill(&["start", "db01", "--memory", "128MiB", "--dry-run"]).run().ok();
    assert_eq!(planned["drill"]["boot_disk"], "b-login", "{planned}");
    let named_wrong = ["start", "db01", "--boot-disk", "sdq"];
    centre.drill(&named_wrong).run().code(2);

    // A prompt stays one when the kernel writes behind it.
    let (id, course) = drill(&centre, "b-login", &["--within", "60s"], 0);
    assert_eq!(course["seen"]["sign"], "login", "{course}");
    let log = centre.evidence(&id).join("serial.log");
    centre.end(&id);
    // What is added to the log after the end is told.
    assert_eq!(centre.show(&id)["altered"], serde_json::json!([]));
    let text = std::fs::read(&log).unwrap();
    std::fs::write(&log, [&text[..], b"db01 is well\r\n"].concat()).unwrap();
    assert_eq!(centre.show(&id)["altered"], serde_json::json!(["serial.log"]));

    let (id, course) = drill(&centre, "d-marker", &["--within", "60s", "--marker", "Reached multi-user.target"], 0);
    assert_eq!(course["seen"]["sign"], "marker", "{course}");
    centre.end(&id);

    // What says that it failed is not waited out, and is quoted.
    for (disk, line) in [("e-panic", "Kernel panic"), ("f-initramfs", "(initramfs)")] {
        let (id, course) = drill(&centre, disk, &["--within", "30m"], 3);
        assert!(course["failure"]["line"].as_str().unwrap().contains(line), "{course}");
        assert!(
            course["last_lines"].as_array().unwrap().iter().any(|l| l.as_str().unwrap().contains(line)),
            "{course}"
        );
        centre.end(&id);
        assert_eq!(centre.show(&id)["course"]["failure"], course["failure"]);
    }

    // A sentence is no prompt; and that it was silent stays what it was after the end, also in the report.
    let (id, course) = drill(&centre, "c-sentence", &["--within", "6s"], 3);
    assert_eq!((&course["silent"], &course["seen"]), (&true.into(), &Value::Null));
    centre.end(&id);
    let after = centre.show(&id);
    assert_eq!((&after["course"]["silent"], &after["course"]["ended_by_request"]), (&true.into(), &true.into()));
    let said = centre.branch.motiongear().args(["drill", "show", &id]).run();
    assert!(said.stdout.contains("NO LOGIN SEEN") && !said.stdout.contains("ended by itself"), "{}", said.stdout);
}

#[test]
fn nothing_is_confirmed_before_it_was_judged_and_what_was_wrong_is_withdrawn() {
    let place = Place::new();
    let centre = Centre::of(&[("sda", &disk(&place, "sda", "nothing to see\r\n"))]);
    centre.import(&centre.to_dir(), &[]).run().ok();
    let start = ["start", "db01", "--memory", "128MiB", "--within", "30m"];
    let running = centre.drill(&start).start();
    let drills = || centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().clone();
    gone(|| drills().first().is_some_and(|drill| !drill["course"]["booted_at"].is_null()));
    running.kill();
    let id = drills()[0]["drill"]["drill"].as_str().unwrap().to_owned();
    centre.confirm(&id, "--passed", &[]).code(1);
    // Killed before it was judged: nobody saw how it went, and nobody may say so.
    super::kill(&id, "drill-keeper");
    gone(|| processes(&id).is_empty());
    centre.confirm(&id, "--passed", &[]).code(1);
    centre.end(&id);
    let said = centre.branch.motiongear().args(["drill", "show", &id]).run();
    assert!(said.stdout.contains("NOT JUDGED"), "{}", said.stdout);

    let (id, _) = drill(&centre, "sda", &["--within", "3s"], 3);
    centre.confirm(&id, "--passed", &["--note", "the wrong window"]).ok();
    centre.confirm(&id, "--failed", &[]).code(1);
    let key = centre.branch.key.to_str().unwrap();
    let withdraw = ["withdraw", &id, "--key", key, "--person", "Zhao Min", "--reason", "it was another machine"];
    assert!(centre.drill(&[&withdraw[..], &["--dry-run"]].concat()).run().ok()["file"].is_null());
    let withdrawn = centre.drill(&withdraw).run().ok();
    let trust = &centre.branch.trust;
    let file = withdrawn["file"].as_str().unwrap();
    crate::common::verify_signature(trust, "zhang@river-bank", "motiongear-drill", file.as_ref());
    centre.drill(&withdraw).run().code(1);
    assert!(centre.show(&id)["confirmation"].is_null());
    centre.confirm(&id, "--failed", &["--note", "no login"]).ok();
    centre.end(&id);
    let shown = centre.show(&id);
    assert_eq!(shown["confirmation"]["passed"], false);
    assert_eq!(shown["withdrawn"][0]["confirmation"]["note"], "the wrong window", "{shown}");
    assert_eq!(shown["withdrawn"][0]["withdrawal"]["reason"], "it was another machine", "{shown}");
    assert!(shown["withdrawn"][0]["key"].as_str().unwrap().starts_with("SHA256:"));
}

#[test]
fn a_blank_disk_is_called_blank() {
    let place = Place::new();
    let blank = place.join("sda");
    sparse(&blank, 4 << 20);
    let centre = Centre::of(&[("sda", &blank)]);
    centre.import(&centre.to_dir(), &[]).run().ok();
    let refused = centre.drill(&["start", "db01"]).run();
    refused.code(1);
    assert!(refused.stderr.contains("sda is blank"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("left out"), "{}", refused.stderr);
}

#[test]
fn a_lack_of_room_on_this_host_is_not_the_machines_silence() {
    let place = Place::new();
    let centre = Centre::of(&[("sda", &disk(&place, "sda", "nothing to see\r\n"))]);
    // A state directory that runs full while the machine boots.
    let state = &centre.branch.state;
    let drills = state.join("drills");
    std::fs::create_dir_all(&drills).unwrap();
    tool("mount", ["-t", "tmpfs", "-o", "size=1300M,mode=700", "none", drills.to_str().unwrap()]);
    let _mounted = Unmount(drills.clone());
    centre.import(&centre.to_dir(), &[]).run().ok();
    let fill = drills.join("fill");
    let running = centre.drill(&["start", "db01", "--memory", "128MiB", "--within", "15s"]).start();
    let drills = || centre.drill(&["show"]).run().ok()["drills"].as_array().unwrap().clone();
    gone(|| drills().first().is_some_and(|drill| !drill["course"]["booted_at"].is_null()));
    noise_at(&File::create(&fill).unwrap(), 0, 900 << 20, 1);
    gone(|| drills()[0]["course"]["stands"] == true);
    // `start` leaves it to people, and does not call it silent.
    let ran = running.wait();
    let course = ran.code(3)["course"].clone();
    assert_eq!((&course["stands"], &course["silent"]), (&true.into(), &false.into()), "{course}");
    std::fs::remove_file(&fill).unwrap();
    gone(|| drills()[0]["course"]["silent"] == true);
    let id = drills()[0]["drill"]["drill"].as_str().unwrap().to_owned();
    centre.end(&id);
    // Kept, and said.
    assert!(centre.show(&id)["course"]["stood_seconds"].as_u64().unwrap() >= 30);
}

/// A mount of this test.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = try_tool("umount", [self.0.to_str().unwrap()]);
    }
}
