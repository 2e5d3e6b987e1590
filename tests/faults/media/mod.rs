//! Goal: media and sources that fill up, turn read-only, vanish, stall, or give errors, short counts or other bytes, cost no
//! byte that was confirmed and never a false word; what went wrong is said with its place and the way out, and once it is mended
//! the same command finishes with the digest that `b3sum` gives for the source.
//!
//! Method: the real binary on small XFS and ext4 file systems of their own, filled to the last bytes, remounted, shut down by the
//! file system's own ioctl, their images cut short; sources, volumes and an array behind a FUSE file system that can do all the rest
//! (`common::source_fs`), as a file and, under a loop device, as a block device. Every case of the data path with both engines.

mod cache;
mod full;
mod gone;
mod source;
mod stall;
mod volume;

use crate::common::{
    Branch, Loop, Mount, Ran, SITE, SourceFs, b3sum, disk, loop_device, run::Motiongear, sparse, tool,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const ENGINES: [&str; 2] = ["uring", "threads"];
/// Longer than anything here takes when it works, also on a busy machine.
const LONG: Duration = Duration::from_secs(90);

/// A medium that does what it is told, under an array: ext4 on a loop device over a file on FUSE.
struct Frail {
    // In this order: what lies on something before what it lies on.
    _mount: Mount,
    _device: Loop,
    fs: SourceFs,
    /// The file, below all faults.
    image: PathBuf,
}

impl Frail {
    fn under(branch: &Branch, bytes: u64) -> Frail {
        let image = branch.place.join("array.img");
        sparse(&image, bytes);
        // Blocks as on a large file system.
        let options = ["-q", "-F", "-b", "4096", "-L", "MOTIONGEAR01"].map(AsRef::as_ref);
        tool("mkfs.ext4", options.into_iter().chain([image.as_os_str()]));
        let fs = SourceFs::serve(&branch.place.join("array.fuse"), &image);
        let device = loop_device(&fs.path());
        let mount = Mount::new(device.path(), &branch.array, &[]);
        Frail { _mount: mount, _device: device, fs, image }
    }
}

impl Drop for Frail {
    fn drop(&mut self) {
        // Whoever sleeps in it holds the device.
        self.fs.heal();
    }
}

/// The command ended with exit 1, named `place`, and said what to do next.
#[track_caller]
fn said_clearly(ran: &Ran, place: &Path) -> String {
    let said = ran.refused(1, &[place.to_str().unwrap()]);
    let error = said.lines().skip_while(|line| !line.starts_with("error: ")).collect::<Vec<_>>().join("\n");
    assert!(error.contains("\n  next: "), "it does not say what to do: {said}");
    let json: Value = serde_json::from_str(&ran.stdout).expect("the error as JSON");
    assert!(json["error"]["next"].is_string(), "{json}");
    error
}

/// `import ARRAY --to dir:volumes EXTRA`, on the branch's own state directory.
fn import(branch: &Branch, volumes: &Path, extra: &[&str]) -> Motiongear {
    import_to(branch, &format!("dir:{}", volumes.display()), extra)
}

fn import_to(branch: &Branch, to: &str, extra: &[&str]) -> Motiongear {
    let command = branch.motiongear().args(["--json", "import"]).arg(&branch.array).args(["--to", to]).arg("--trust");
    command.arg(&branch.trust).arg("--identity").arg(&branch.identity).args(extra)
}

/// Where `dir:` puts a disk.
fn raw(volumes: &Path, name: &str) -> PathBuf {
    volumes.join(SITE).join(format!("db01/{name}.raw"))
}

/// The same seed command finishes, and the digest is the source's.
#[track_caller]
fn seeds(branch: &Branch, disks: &[(&str, &Path)], engine: &str, origin: &Path) -> Value {
    let result = branch.seed(disks, &["--engine", engine]).ok();
    for (name, _) in disks {
        assert_eq!(disk(&result["disks"], name)["digest"], b3sum(origin), "{name}");
    }
    result
}

/// Sealed, right by stock tools, and an import into fresh volumes gives the source's bytes.
fn arrives(branch: &Branch, origin: &Path) {
    branch.seal();
    branch.check_with_stock_tools();
    branch.check_stand_alone();
    let volumes = branch.place.dir("volumes");
    import(branch, &volumes, &[]).run().ok();
    assert_eq!(b3sum(&raw(&volumes, "sda")), b3sum(origin));
}
