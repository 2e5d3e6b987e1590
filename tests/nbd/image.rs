//! Goal: the disk in an image of any format that QEMU knows is a source, and the server that is started for it never stays behind.
//! Method: images made by qemu-img, chains of three among them; servers and the binary itself are killed.

use super::servers::{LIMIT, Server};
use crate::common::{Branch, b3sum, noise, noise_at, sparse, sql, tool, try_tool};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// 48 MiB with noise in a third of it.
fn disk(branch: &Branch) -> PathBuf {
    let path = branch.place.join("disk.raw");
    sparse(&path, 48 * MIB);
    tool("sgdisk", ["-n1:2048:0", path.to_str().unwrap()]);
    let file = File::options().write(true).open(&path).unwrap();
    (3..47).step_by(3).for_each(|at| noise_at(&file, at * MIB, MIB, at));
    file.sync_all().unwrap();
    path
}

fn convert(from: &Path, format: &str, extra: &[&str]) -> PathBuf {
    let to = from.with_extension(format);
    let arguments = [&["convert", "-O", format], extra, &[from.to_str().unwrap(), to.to_str().unwrap()]].concat();
    tool("qemu-img", arguments);
    to
}

fn origin(format: &str, path: &Path) -> PathBuf {
    format!("{format}:{}", path.display()).into()
}

/// Servers that run for a file below `place`; those that were just killed are given a moment.
fn servers_left(branch: &Branch) -> usize {
    let pattern = format!("qemu-nbd.*{}", branch.place.path().display());
    let since = Instant::now();
    loop {
        let found = try_tool("pgrep", ["-f", &pattern]).stdout.lines().count();
        if found == 0 || since.elapsed() > Duration::from_secs(3) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_disk_in_an_image_of_any_format_is_that_disk() {
    let formats: [(&str, &str, &[&str]); 6] = [
        ("qcow2", "qcow2", &[]),
        ("qcow2", "qcow2", &["-c"]),
        ("vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
        ("vhdx", "vhdx", &[]),
        ("vdi", "vdi", &[]),
        ("vhd", "vpc", &["-o", "force_size=on"]),
    ];
    for (ours, theirs, options) in formats {
        let branch = Branch::ready();
        let raw = disk(&branch);
        let image = convert(&raw, theirs, options);
        let seeded = branch.seed(&[("sda", &origin(ours, &image))], &["--point-in-time"]).ok();
        let seeded = &seeded["disks"][0];
        assert_eq!(seeded["digest"], b3sum(&raw), "{ours} {options:?}");
        branch.seal();
        let manifest = branch.live_manifest();
        assert_eq!(sql(&manifest, "SELECT source FROM generation"), format!("{ours}:{}", image.display()));
        assert!(sql(&manifest, "SELECT facts FROM disk").contains(&format!("\"transport\":\"{ours}\"")));
        let scanned = branch.run(["scan"]).ok();
        assert_eq!(scanned["disks"][0]["blocks"]["changed"], 0, "{scanned}");
        assert_eq!(servers_left(&branch), 0);
    }
}

#[test]
fn a_chain_of_images_is_one_disk_and_a_new_overlay_is_the_same_one() {
    let branch = Branch::ready();
    let raw = disk(&branch);
    let base = convert(&raw, "qcow2", &[]);
    let overlay = |name: &str, on: &Path, at: u64| {
        let path = branch.place.join(name);
        let on = on.file_name().unwrap().to_str().unwrap();
        tool("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", on, path.to_str().unwrap()]);
        let write = format!("write -P 0x5a {}M 1M", at);
        tool("qemu-io", ["-f", "qcow2", "-c", &write, path.to_str().unwrap()]);
        path
    };
    let middle = overlay("middle.qcow2", &base, 10);
    let top = overlay("top.qcow2", &middle, 20);
    let flat = branch.place.join("flat.raw");
    let flatten =
        |from: &Path| tool("qemu-img", ["convert", "-O", "raw", from.to_str().unwrap(), flat.to_str().unwrap()]);
    flatten(&top);
    let seeded = branch.seed(&[("sda", &origin("qcow2", &top))], &["--point-in-time"]).ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&flat));
    branch.seal();
    // A snapshot made an overlay: the same disk in another file.
    let newer = overlay("newer.qcow2", &top, 30);
    let source = format!("db01/sda={}", origin("qcow2", &newer).display());
    let scanned = branch.run(["scan", "--source", &source]).ok();
    assert_eq!(scanned["disks"][0]["blocks"]["changed"], 1, "{scanned}");
    // A chain with a hole in it is no disk.
    std::fs::rename(&middle, branch.place.join("away")).unwrap();
    let fresh = Branch::ready();
    fresh.seed(&[("sda", &origin("qcow2", &top))], &[]).refused(1, &["middle.qcow2", "bring the missing file back"]);
    assert!(fresh.packs().is_empty());
}

#[test]
fn what_is_no_readable_image_is_refused_with_what_to_do() {
    let branch = Branch::ready();
    let raw = disk(&branch);
    let qcow2 = convert(&raw, "qcow2", &[]);
    let refuse = |source: &Path, code: i32, parts: &[&str]| {
        branch.seed(&[("sda", source)], &[]).refused(code, parts);
        assert!(branch.packs().is_empty());
    };
    let (wanted, as_it_is) = (format!("qcow2:{}", qcow2.display()), format!("raw:{}", qcow2.display()));
    refuse(&qcow2, 2, &["expected a raw disk", "qcow2 image", &wanted, &as_it_is]);
    refuse(&origin("vmdk", &qcow2), 1, &["Image vmdk:", "cannot be read"]);
    refuse(&origin("qcow2", &raw), 1, &["Image qcow2:", "not in qcow2 format"]);
    refuse(&origin("qcow2", &branch.place.join("nothing")), 1, &["nothing", "No such file"]);
    // A running machine has it open to write.
    let socket = branch.place.join("writer");
    let writer = Server::qemu_at(&socket, &qcow2, "qcow2", &[]);
    refuse(&origin("qcow2", &qcow2), 1, &["lock", "snapshot"]);
    drop(writer);
    // A chain that leads elsewhere than to a file of this host.
    let led = branch.place.join("led.qcow2");
    let json = r#"json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":"/nowhere"}}}"#;
    let arguments = ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", json, led.to_str().unwrap(), "48M"];
    tool("qemu-img", arguments);
    refuse(&origin("qcow2", &led), 1, &["cannot be read"]);
    // The file as it is, on purpose.
    let seeded = branch.seed(&[("sda", &origin("raw", &qcow2))], &[]).ok();
    let bytes = qcow2.metadata().unwrap().len();
    assert_eq!((&seeded["disks"][0]["bytes"], &seeded["disks"][0]["digest"]), (&bytes.into(), &b3sum(&qcow2).into()));
}

#[test]
fn a_server_that_is_killed_is_started_anew_and_none_outlives_the_seed() {
    let branch = Branch::ready();
    let raw = branch.place.join("disk.raw");
    noise(&raw, 90 * MIB, 5);
    let image = convert(&raw, "qcow2", &[]);
    let source = origin("qcow2", &image);
    let disks = [("sda", source.as_path())];
    let slow = &["--read-limit", "20MiB", "--point-in-time"];
    let pattern = format!("qemu-nbd.*{}", image.display());
    let committed = || {
        let made = std::fs::read_dir(branch.state.join("shipments")).is_ok_and(|mut found| found.next().is_some());
        let count =
            |manifest: PathBuf| try_tool("sqlite3", [manifest.as_os_str(), "SELECT count(*) FROM block".as_ref()]);
        if made { count(branch.live_manifest()).stdout.trim().parse().unwrap_or(0) } else { 0 }
    };
    // SIGKILL of ours takes its server along, and the same command resumes.
    let mut running = branch.seed_command(&disks, slow).start();
    assert!(running.until(LIMIT, |_| committed() > 0), "{}", running.said());
    running.kill();
    assert_eq!(servers_left(&branch), 0);
    let before = committed();
    // SIGKILL of the server: another one is started.
    let mut running = branch.seed_command(&disks, slow).start();
    assert!(running.until(LIMIT, |_| committed() > before), "{}", running.said());
    tool("pkill", ["-KILL", "-f", &pattern]);
    let done = running.wait().ok();
    assert_eq!(done["disks"][0]["digest"], b3sum(&raw));
    assert!(done["disks"][0]["skipped_bytes"].as_u64().unwrap() >= before * MIB, "{done}");
    assert_eq!(servers_left(&branch), 0);
}

#[test]
fn a_plan_names_images_and_exports() {
    let branch = Branch::ready();
    let raw = disk(&branch);
    let image = convert(&raw, "vhdx", &[]);
    let server = Server::qemu_at(&branch.place.join("socket"), &raw, "raw", &["-r"]);
    let text = format!(
        "[[machine]]\nname = \"db01\"\n[[machine.disk]]\nname = \"sda\"\nsource = \"vhdx:{}\"\n[[machine.disk]]\nname = \"sdb\"\nsource = \"{}\"\n",
        image.display(),
        server.text()
    );
    let plan = branch.place.file("plan.toml", text);
    let seeded = branch.on_array("seed", ["--plan".as_ref(), plan.as_os_str()]).ok();
    for at in 0..2 {
        assert_eq!(seeded["disks"][at]["digest"], b3sum(&raw), "{seeded}");
    }
}
