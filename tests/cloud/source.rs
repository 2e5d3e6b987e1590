//! Goal: images of a Ceph pool are copied as of one instant while they are written to, and a scan reads what changed since. Method: the
//! snapshots that are held are exported by `rbd` past MotionGear and compared; images are written to by qemu-io, and what Ceph noted of
//! changes is removed, replaced, flagged and falsified with its own tools.

use super::stack::{CEPH, rbd, shared};
use crate::common::{Background, Branch, Motiongear, b3sum, disk, noise_at, sparse, sql, tool, try_tool};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const BYTES: u64 = 64 * MIB;
const LIMIT: Duration = Duration::from_secs(120);

/// An image in the pool, gone with the test.
struct Image {
    name: String,
    /// With what it was filled.
    first: PathBuf,
}

impl Image {
    /// 64 MiB with noise in MiB 8 to 24 and 40 to 44.
    fn new(branch: &Branch, name: &str) -> Image {
        let first = branch.place.join(format!("{name}.raw"));
        sparse(&first, BYTES);
        let file = File::options().write(true).open(&first).unwrap();
        noise_at(&file, 8 * MIB, 16 * MIB, 3);
        noise_at(&file, 40 * MIB, 4 * MIB, 4);
        let image = Image { name: format!("test-{}-{name}", uuid::Uuid::new_v4().simple()), first };
        rbd(&["import", "--no-progress", image.first.to_str().unwrap(), &image.spec()]);
        image
    }

    fn spec(&self) -> String {
        format!("volumes/{}", self.name)
    }

    /// As a source.
    fn source(&self) -> PathBuf {
        self.at("")
    }

    fn at(&self, snapshot: &str) -> PathBuf {
        format!("rbd:{}{snapshot}?id=cinder&conf={CEPH}", self.spec()).into()
    }

    fn write(&self, at_mib: u64, byte: u8) {
        tool("qemu-io", ["-f", "raw", "-c", &format!("write -q -P {byte} {at_mib}M 8k"), &self.url()]);
    }

    fn url(&self) -> String {
        format!("rbd:{}:conf={CEPH}", self.spec())
    }

    /// Somebody who writes to it all the time, never the same twice.
    fn writer(&self) -> Writer {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", &self.url()]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            for n in 0u64.. {
                let (byte, at) = (n % 251 + 1, n * 7 % 1024 * 64);
                // It may have ended; then the test finds nothing changed.
                if writeln!(input, "write -q -P {byte} {at}k 64k").is_err()
                    || !matches!(stopped.try_recv(), Err(TryRecvError::Empty))
                {
                    return;
                }
            }
        });
        Writer { stop: Some(stop), thread: Some(thread), child }
    }

    /// Names of its snapshots.
    fn snapshots(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&rbd(&["snap", "ls", "--format", "json", &self.spec()])).unwrap();
        list.as_array().unwrap().iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The one that is held.
    #[track_caller]
    fn held(&self) -> String {
        let held: Vec<_> = self.snapshots().into_iter().filter(|name| name.starts_with("motiongear-")).collect();
        assert_eq!(held.len(), 1, "{held:?}");
        held[0].clone()
    }

    /// Digest of a snapshot, read by `rbd`.
    fn digest(&self, branch: &Branch, snapshot: &str) -> String {
        let copy = branch.place.join("exported");
        rbd(&["export", "--no-progress", &format!("{}@{snapshot}", self.spec()), copy.to_str().unwrap()]);
        let digest = b3sum(&copy);
        std::fs::remove_file(&copy).unwrap();
        digest
    }

    /// The number that it has in the cluster.
    fn id(&self) -> String {
        let info: Value = serde_json::from_str(&rbd(&["info", "--format", "json", &self.spec()])).unwrap();
        info["id"].as_str().unwrap().to_owned()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        try_tool("rbd", ["--conf", CEPH, "snap", "purge", "--no-progress", &self.spec()]);
        try_tool("rbd", ["--conf", CEPH, "rm", "--no-progress", &self.spec()]);
    }
}

struct Writer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    child: Child,
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It ends in good order when its input does: what it holds in the cluster would stay locked for a while.
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = self.child.wait();
    }
}

fn seed(branch: &Branch, images: &[(&str, &Image)], extra: &[&str]) -> Motiongear {
    let sources: Vec<(&str, PathBuf)> = images.iter().map(|(name, image)| (*name, image.source())).collect();
    let disks: Vec<(&str, &Path)> = sources.iter().map(|(name, source)| (*name, source.as_path())).collect();
    branch.seed_command(&disks, extra)
}

fn committed(branch: &Branch) -> bool {
    std::fs::read_dir(branch.state.join("shipments")).is_ok_and(|mut found| found.next().is_some())
        && try_tool("sqlite3", [branch.live_manifest().as_os_str(), "SELECT count(*) FROM block".as_ref()])
            .stdout
            .trim()
            .parse()
            .is_ok_and(|blocks: u64| blocks > 0)
}

fn scan(branch: &Branch, extra: &[&str]) -> Value {
    let scanned = branch.run([&["scan"], extra].concat()).ok();
    assert_eq!(scanned["disks"].as_array().unwrap().len(), 1);
    scanned["disks"][0].clone()
}

#[track_caller]
fn trusted(scanned: &Value, changed: u64, trusted: u64, audited: u64) {
    assert_eq!(scanned["blocks"]["changed"], changed, "{scanned}");
    let told = json!({ "trusted_blocks": trusted, "audited_blocks": audited, "reread": null });
    assert_eq!(scanned["bitmap"], told, "{scanned}");
    assert!(scanned["read_bytes"].as_u64().unwrap() <= (64 - trusted) * MIB, "{scanned}");
}

#[track_caller]
fn reread(scanned: &Value, changed: u64, why: &str) {
    let told = (&scanned["blocks"]["changed"], &scanned["bitmap"]["trusted_blocks"], &scanned["bitmap"]["reread"]);
    assert_eq!(told, (&changed.into(), &0.into(), &why.into()), "{scanned}");
}

/// MANUAL: "takes a snapshot of each image", "reads only the objects that changed".
#[test]
fn images_are_copied_as_of_their_snapshot_and_scans_read_what_changed_since() {
    let _cloud = shared();
    let branch = Branch::ready();
    let images = ["a", "b"].map(|name| Image::new(&branch, name));
    let writers = images.each_ref().map(Image::writer);
    std::thread::sleep(Duration::from_secs(1));
    let seeded = seed(&branch, &[("sda", &images[0]), ("sdb", &images[1])], &[]).run().ok();
    drop(writers);
    for (image, name) in images.iter().zip(["sda", "sdb"]) {
        let found = disk(&seeded["disks"], name);
        assert_eq!((&found["consistency"], &found["basis"]), (&"consistent".into(), &"source".into()), "{found}");
        assert_eq!(found["digest"], image.digest(&branch, &image.held()), "{name}");
        assert_ne!(found["digest"], b3sum(&image.first), "nobody wrote to it");
    }
    let facts: Value = serde_json::from_str(&sql(&branch.live_manifest(), "SELECT facts FROM disk LIMIT 1")).unwrap();
    assert_eq!(facts["transport"], "rbd");
    // Done is done: no further snapshot.
    let held = images.each_ref().map(Image::held);
    seed(&branch, &[("sda", &images[0]), ("sdb", &images[1])], &[]).run().ok();
    assert_eq!(images.each_ref().map(Image::held), held);
    // What one scan finds stays known, though the snapshot from before is gone.
    scan(&branch, &["--disk", "sda"]);
    let known = scan(&branch, &["--disk", "sda", "--audit", "0"])["blocks"]["changed"].as_u64().unwrap();
    assert_ne!(images[0].held(), held[0]);
    assert_eq!(images[1].held(), held[1]);
    assert!(known > 0, "the writer was too slow");
}

#[test]
fn only_changed_objects_are_read_and_what_was_noted_is_never_the_truth() {
    let _cloud = shared();
    let branch = Branch::ready();
    let image = Image::new(&branch, "a");
    let seeded = seed(&branch, &[("sda", &image)], &[]).run().ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&image.first));
    trusted(&scan(&branch, &[]), 0, 63, 1);
    // An object has 4 MiB.
    image.write(10, 0x77);
    trusted(&scan(&branch, &["--audit", "0"]), 1, 60, 0);
    // Now that block alone is known to differ, besides what is written next, here where nothing was before.
    image.write(50, 0x77);
    trusted(&scan(&branch, &["--audit", "10"]), 2, 52, 7);
    let held = image.held();
    let number = |name: &str| name.rsplit('-').next().unwrap().parse::<u64>().unwrap();
    assert!(number(&held) >= 3, "{held}");
    // Removed.
    rbd(&["snap", "rm", "--no-progress", &format!("{}@{held}", image.spec())]);
    image.write(41, 0x77);
    reread(&scan(&branch, &[]), 3, "missing");
    // Replaced by another of that name.
    let held = image.held();
    image.write(42, 0x77);
    rbd(&["snap", "rm", "--no-progress", &format!("{}@{held}", image.spec())]);
    rbd(&["snap", "create", "--no-progress", &format!("{}@{held}", image.spec())]);
    reread(&scan(&branch, &[]), 4, "another");
    trusted(&scan(&branch, &["--audit", "0"]), 4, 60, 0);
    // An object that was written past the image, so that no map says so.
    let object = format!("rbd_data.{}.{:016x}", image.id(), 3);
    let file = branch.place.join("object");
    tool("rados", ["--conf", CEPH, "-p", "volumes", "get", &object, file.to_str().unwrap()]);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[3 * MIB as usize] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    tool("rados", ["--conf", CEPH, "-p", "volumes", "put", &object, file.to_str().unwrap()]);
    trusted(&scan(&branch, &["--audit", "0"]), 4, 60, 0);
    reread(&scan(&branch, &["--audit", "100"]), 5, "lied");
    // A map that could not be kept up, as the cluster flags it: RBD_FLAG_OBJECT_MAP_INVALID and RBD_FLAG_FAST_DIFF_INVALID.
    let flags = branch.place.file("flags", 3u64.to_le_bytes());
    let header = format!("rbd_header.{}", image.id());
    let arguments = ["--conf", CEPH, "-p", "volumes", "setomapval", &header, "flags", "--input-file"];
    tool("rados", arguments.iter().copied().chain([flags.to_str().unwrap()]));
    assert!(rbd(&["info", &image.spec()]).contains("fast diff invalid"));
    reread(&scan(&branch, &[]), 5, "inconsistent");
    // An image without maps is compared object by object, and more finely.
    rbd(&["feature", "disable", &image.spec(), "fast-diff", "object-map"]);
    scan(&branch, &[]);
    image.write(20, 0x77);
    trusted(&scan(&branch, &["--audit", "0"]), 6, 58, 0);
    // In the end nothing is held any more.
    let held = image.held();
    rbd(&["snap", "create", "--no-progress", &format!("{}@motiongear-gen0-0a1b2c3d", image.spec())]);
    let released = branch.run([Path::new("release"), &image.source()]).ok();
    assert_eq!(released["removed"], json!([format!("{}@{held}", image.spec())]));
    assert_eq!(image.snapshots(), ["motiongear-gen0-0a1b2c3d"]);
    reread(&scan(&branch, &[]), 6, "missing");
}

/// MANUAL: "an interrupted seed goes on with it".
#[test]
fn a_seed_that_was_killed_goes_on_with_its_snapshot_and_a_killed_scan_leaves_one_for_the_next() {
    let _cloud = shared();
    let branch = Branch::ready();
    let image = Image::new(&branch, "a");
    let under_way = || -> Background {
        let mut running = seed(&branch, &[("sda", &image)], &["--read-limit", "2MiB"]).start();
        assert!(running.until(LIMIT, |_| committed(&branch)), "{}", running.said());
        running
    };
    under_way().kill();
    let held = image.held();
    image.write(20, 0x77);
    image.write(41, 0x77);
    let seeded = seed(&branch, &[("sda", &image)], &[]).run().ok();
    assert_eq!((image.held(), &seeded["disks"][0]["digest"]), (held.clone(), &b3sum(&image.first).into()), "{seeded}");
    assert!(seeded["disks"][0]["skipped_bytes"].as_u64().unwrap() > 0, "{seeded}");
    assert_eq!(seeded["disks"][0]["consistency"], "consistent");
    let mut scanning = branch.motiongear().args(["scan", "--read-limit", "1MiB"]).start();
    assert!(scanning.until(LIMIT, |_| image.snapshots().len() == 2), "{}", scanning.said());
    scanning.kill();
    assert_eq!(image.snapshots().len(), 2);
    trusted(&scan(&branch, &["--audit", "0"]), 2, 56, 0);
    assert_ne!(image.held(), held);
    // One that is interrupted in good order takes its own with it.
    let held = image.held();
    let mut scanning = branch.motiongear().args(["scan", "--read-limit", "1MiB", "--audit", "100"]).start();
    assert!(scanning.until(LIMIT, |_| image.snapshots().len() == 2), "{}", scanning.said());
    scanning.signal(libc::SIGINT);
    scanning.wait().refused(5, &["Job stopped by SIGINT"]);
    assert_eq!(image.held(), held);
}

/// MANUAL: the table of errors of this section.
#[test]
fn a_snapshot_is_a_source_by_itself_and_what_cannot_be_one_is_said() {
    let _cloud = shared();
    let branch = Branch::ready();
    let image = Image::new(&branch, "a");
    let snapshot = format!("{}@before", image.spec());
    rbd(&["snap", "create", "--no-progress", &snapshot]);
    image.write(10, 0x77);
    let refused = |source: PathBuf, code: i32, parts: &[&str]| {
        branch.seed(&[("sda", &source)], &[]).refused(code, parts);
    };
    let missing = format!("rbd:volumes/missing?id=cinder&conf={CEPH}");
    refused(missing.into(), 1, &["volumes/missing", "expected it there, found none", "rbd ls volumes"]);
    refused(image.at("@later"), 1, &["@later", "expected it there, found none", "rbd snap ls"]);
    refused("rbd:volumes".into(), 2, &["expected rbd:POOL/IMAGE[@SNAPSHOT]", "found no image"]);
    refused(format!("rbd:nopool/a?id=cinder&conf={CEPH}").into(), 1, &["nopool", "rbd ls"]);
    let file = branch.place.join("a.raw");
    branch.seed(&[("sda", &image.source()), ("sdb", &file)], &[]).refused(
        2,
        &["expected Ceph images, of which a snapshot is taken, for all disks of the machine, found", "a.raw"],
    );
    assert_eq!(image.snapshots(), ["before"]);
    let seeded = branch.seed(&[("sda", &image.at("@before"))], &[]).ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&image.first));
    let told = (&seeded["disks"][0]["consistency"], &seeded["disks"][0]["basis"]);
    assert_eq!(told, (&"consistent".into(), &"source".into()), "{seeded}");
    assert_eq!(image.snapshots(), ["before"]);
    // Against the image as it is now.
    let source = format!("db01/sda={}", image.source().display());
    assert_eq!(scan(&branch, &["--source", &source])["blocks"]["changed"], 1);
    // Another one of that name is not what was seeded.
    rbd(&["snap", "rm", "--no-progress", &snapshot]);
    rbd(&["snap", "create", "--no-progress", &snapshot]);
    branch.run(["scan"]).refused(1, &["is not the same disk any more", "expected serial number volumes/"]);
}
