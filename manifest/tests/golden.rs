//! Goal: format 1 stays readable for ever, and FORMAT.md alone suffices to read it. Method: the golden fixtures (made once by
//! `examples/make_golden.rs`) are read back by this crate, by stock tools, and by a second reader in another language that was
//! written from FORMAT.md (`tests/reader.py`).

mod common;

use common::{Disk, golden_disks, time};
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::check::{Options, Terms, check};
use motiongear_manifest::envelope::Identity;
use motiongear_manifest::tree::Digest;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/format")
}

/// Unpacks a fixture; gives `…/array`.
fn unpack(name: &str, dir: &Path) -> PathBuf {
    let mut tar = Command::new("tar");
    tar.args(["--use-compress-program", "zstd --long=27", "-xf"])
        .arg(fixtures().join(format!("{name}.tar.zst")))
        .arg("-C")
        .arg(dir);
    run(&mut tar);
    dir.join("array")
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} must be installed for this test: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn golden_shipments_are_read_by_this_crate() {
    let trust = AllowedSigners::parse(&fs::read_to_string(fixtures().join("allowed_signers")).unwrap()).unwrap();
    let identities = Identity::parse_file(&fs::read(fixtures().join("age-identity.txt")).unwrap()).unwrap();
    for name in ["plain", "encrypted"] {
        let dir = tempfile::tempdir().unwrap();
        let array = unpack(name, dir.path());
        let terms = Terms { trust: Some(&trust), at: time("2026-11-20T06:00:00Z"), expect_seal: None };
        let watch = |_| ControlFlow::Continue(());
        let report = check(&array, &Options { terms, identities: &identities, work: dir.path(), watch: &watch });
        assert_eq!((report.exit_code(), report.findings.warnings), (0, 0), "{name}: {:#?}", report.findings.list);
        assert_eq!(report.custody.len(), 1);
        let disks = golden_disks();
        assert_eq!(report.proven.len(), disks.len());
        for (proof, disk) in report.proven.iter().zip(&disks) {
            assert_eq!(
                (proof.disk.clone(), proof.digest),
                (format!("{}/{}", disk.machine, disk.name), Digest::of(&disk.bytes))
            );
            assert_eq!(proof.damaged, 0);
        }
    }
}

#[test]
fn golden_shipments_are_read_by_stock_tools() {
    for name in ["plain", "encrypted"] {
        let dir = tempfile::tempdir().unwrap();
        let root = unpack(name, dir.path()).join("motiongear");
        let seal: serde_json::Value = serde_json::from_slice(&fs::read(root.join("seal.json")).unwrap()).unwrap();
        // ssh-keygen on everything that is signed.
        for (file, namespace, signer) in [
            ("seal.json", "motiongear-seal", "wang@nongxin"),
            ("shipment.json", "motiongear-shipment", "li@province"),
            ("custody/0001-dispatched.json", "motiongear-custody", "wang@nongxin"),
        ] {
            let said = run(Command::new("ssh-keygen")
                .args(["-Y", "verify", "-f"])
                .arg(fixtures().join("allowed_signers"))
                .args(["-I", signer, "-n", namespace, "-s"])
                .arg(root.join(format!("{file}.sig")))
                .stdin(fs::File::open(root.join(file)).unwrap()));
            assert!(said.starts_with(&format!("Good \"{namespace}\" signature for {signer}")), "{said}");
        }
        // b3sum and sha256sum on everything that is pinned.
        let sum = |tool: &str, file: &str| run(Command::new(tool).arg(root.join(file)))[..64].to_owned();
        for pack in seal["packs"].as_array().unwrap() {
            assert_eq!(pack["blake3"], sum("b3sum", pack["file"].as_str().unwrap()));
        }
        for (file, pin) in seal["pins"].as_object().unwrap() {
            assert_eq!(*pin, sum("b3sum", file));
        }
        let manifest = &seal["manifest"];
        assert_eq!(manifest["sha256"], sum("sha256sum", manifest["file"].as_str().unwrap()));
        assert_eq!(manifest["blake3"], sum("b3sum", manifest["file"].as_str().unwrap()));
        // age and sqlite3 on the manifest and an envelope.
        let plain = dir.path().join("manifest.db");
        if name == "encrypted" {
            let age = |file: &str| {
                let mut age = Command::new("age");
                age.args(["-d", "-i"])
                    .arg(fixtures().join("age-identity.txt"))
                    .arg("-o")
                    .arg(&plain)
                    .arg(root.join(file));
                run(&mut age);
                fs::read(&plain).unwrap()
            };
            let envelope: serde_json::Value = serde_json::from_slice(&age("keys/0002.age")).unwrap();
            assert_eq!((envelope["process"].as_u64(), &envelope["shipment"]), (Some(2), &seal["shipment"]));
            assert_eq!(Digest::of(&age("manifest.db.age")).to_string(), manifest["plain"]["blake3"]);
        } else {
            fs::copy(root.join("manifest.db"), &plain).unwrap();
        }
        let rows = run(Command::new("sqlite3").arg(&plain).arg("SELECT machine.name || '/' || disk.name, lower(hex(digest)) FROM generation JOIN disk ON disk.number = generation.disk JOIN machine ON machine.number = disk.machine ORDER BY disk.number"));
        let expected: String =
            golden_disks().iter().map(|d| format!("{}/{}|{}\n", d.machine, d.name, Digest::of(&d.bytes))).collect();
        assert_eq!(rows, expected);
    }
}

#[test]
fn golden_shipments_are_read_by_a_second_reader_written_from_format_md() {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader.py");
    for name in ["plain", "encrypted"] {
        let dir = tempfile::tempdir().unwrap();
        let array = unpack(name, dir.path());
        let mut python = Command::new("python3");
        python.arg(&reader).arg(&array).arg("--trust").arg(fixtures().join("allowed_signers"));
        python.arg("--identity").arg(fixtures().join("age-identity.txt"));
        let out = |disk: &Disk| dir.path().join(format!("{}-{}", disk.machine, disk.name));
        for disk in &golden_disks() {
            python.arg("--restore").arg(format!("{}/{}", disk.machine, disk.name)).arg(out(disk));
        }
        run(&mut python);
        for disk in &golden_disks() {
            assert!(fs::read(out(disk)).unwrap() == disk.bytes, "{name} {}/{}", disk.machine, disk.name);
        }
        // It refuses what FORMAT.md says a reader must refuse: here, a flipped bit in the first record.
        let pack = array.join("motiongear/packs/00000001.pack");
        let mut bytes = fs::read(&pack).unwrap();
        bytes[4096 + 200] ^= 1;
        fs::write(&pack, bytes).unwrap();
        let mut python = Command::new("python3");
        python.arg(&reader).arg(&array).args(["--restore", "db01/sda"]).arg(dir.path().join("bad"));
        python.arg("--trust").arg(fixtures().join("allowed_signers"));
        python.arg("--identity").arg(fixtures().join("age-identity.txt"));
        let refused = python.output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(3) && said.contains("block 0"), "{said}");
        assert!(!dir.path().join("bad").exists(), "nothing half-written");
    }
}
