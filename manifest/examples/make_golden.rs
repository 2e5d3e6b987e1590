//! Makes the golden fixtures of the format: `cargo run -p motiongear-manifest --example make_golden [DIR]` (default
//! `fixtures/format`). One plaintext and one encrypted shipment of the same disks, sealed and dispatched, each as a
//! `.tar.zst`, with the throw-away keys that open and check them.
//!
//! Keys, nonces and SQLite's own bytes differ in every run; so these are made once for a format version and then only read: a
//! reader that can no longer read them has broken the format.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Keys, Spec, add_event, make};
use motiongear_manifest::documents::custody::Event;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/format");
    let out = PathBuf::from(std::env::args_os().nth(1).unwrap_or(default.into()));
    fs::create_dir_all(&out)?;
    let keys = Keys::new();
    for (name, encrypted) in [("plain", false), ("encrypted", true)] {
        let work = tempfile::tempdir()?;
        let array = work.path().join("array");
        fs::create_dir(&array)?;
        let made = make(&array, &Spec::new(encrypted), &keys);
        add_event(&made, &keys, 1, Event::Dispatched, None);
        let tar = out.join(format!("{name}.tar.zst"));
        // Long enough a window that second copies cost nothing.
        let status = Command::new("tar")
            .args([
                "--use-compress-program",
                "zstd -19 --long=27",
                "--sort=name",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
            ])
            .args(["--mtime", "2026-11-20 00:00Z", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(work.path())
            .arg("array")
            .status()?;
        if !status.success() {
            return Err(format!("tar of {}: {status}", tar.display()).into());
        }
    }
    fs::write(out.join("allowed_signers"), keys.trust_text())?;
    fs::write(out.join("age-identity.txt"), keys.identity.to_file("2026-11-20, throw-away").as_bytes())?;
    Ok(())
}
