//! Goal: a transport array that is plugged in is recognised by its label and left alone by whatever mounts or assembles.
//!
//! Method: `udev/check` runs the rules by `udevadm test` over loop devices in a mount namespace of its own; it says what
//! this machine cannot run (hot plug, udisks2, a running systemd), and that is printed here.

use std::path::Path;
use std::process::Command;

#[test]
fn the_rules_do_what_their_readme_says() {
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("udev/check");
    let out = Command::new(check).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    println!("{said}");
    assert!(out.status.success(), "{said}");
}

#[test]
fn every_line_of_the_rules_has_its_reason_in_the_readme() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("udev");
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    for file in ["62-motiongear.rules", "99-motiongear.rules", "motiongear-array@.service"] {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        assert!(readme.contains(&format!("`{file}`")) || readme.contains(&format!("## {file}")), "{file}");
        for key in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|w| w.starts_with("UDISKS_")) {
            let family = if key.starts_with("UDISKS_PRESENTATION") { "UDISKS_PRESENTATION_*" } else { key };
            assert!(readme.contains(family), "{file}: {key} has no reason");
        }
    }
}
