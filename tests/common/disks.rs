//! Disks to copy: contents that are the same in every run, files that are sparse, sectors that cannot be read.

use super::devices::{LoopArray, Mount, loop_device};
use super::run::{tool, try_tool};
use super::{Loop, Place};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `bytes` of noise that does not compress, determined by `seed`, written to `path` in place of what was there.
pub fn noise(path: &Path, bytes: u64, seed: u64) {
    let file = File::create(path).unwrap();
    noise_at(&file, 0, bytes, seed);
}

/// Noise in the middle of a file.
pub fn noise_at(file: &File, mut offset: u64, mut bytes: u64, seed: u64) {
    let mut stream = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut buffer = vec![0; 1 << 20];
    while bytes > 0 {
        let part = &mut buffer[..bytes.min(1 << 20) as usize];
        stream.fill(part);
        file.write_all_at(part, offset).unwrap();
        offset += part.len() as u64;
        bytes -= part.len() as u64;
    }
}

/// A file of holes.
pub fn sparse(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Changes a file in place.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// What the stock `b3sum` prints.
pub fn b3sum(path: &Path) -> String {
    tool("b3sum", ["--no-names".as_ref(), path.as_os_str()]).trim().to_owned()
}

/// Whether the stock `cmp` finds them equal.
pub fn cmp(a: &Path, b: &Path) -> bool {
    try_tool("cmp", ["--silent".as_ref(), a.as_os_str(), b.as_os_str()]).code == 0
}

/// Bytes that a file really occupies.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().unwrap().blocks() * 512
}

/// A GPT disk with an ext4 file system and files: the fixture that `rehearse` uses, too.
pub fn sample_disk(path: &Path) {
    let make = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sample-disk/make");
    tool("bash", [make.as_os_str(), path.as_os_str()]);
}

/// A disk that is one file system made by `mkfs` with `options`.
pub fn formatted(path: &Path, bytes: u64, mkfs: &str, options: &[&str]) {
    sparse(path, bytes);
    tool(mkfs, options.iter().map(|o| o.as_ref()).chain([path.as_os_str()]));
}

/// Fills a mounted directory with files, a tree and a link.
pub fn fill(dir: &Path, seed: u64) {
    std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
    for (at, size) in [0u64, 1, 4095, 4096, 100_000, 3_000_000].into_iter().enumerate() {
        noise(&dir.join("a/b").join(format!("{at}.bin")), size, seed + at as u64);
    }
    std::fs::write(dir.join("a/b/c/text"), "the same line again and again\n".repeat(20_000)).unwrap();
    let _ = std::os::unix::fs::symlink("b/c/text", dir.join("a/link"));
}

/// An XFS disk with files.
pub fn xfs_disk(place: &Place, path: &Path) {
    formatted(path, 320 << 20, "mkfs.xfs", &["-q", "-f"]);
    let device = loop_device(path);
    let mount = Mount::new(device.path(), &place.join("mnt-xfs"), &[]);
    fill(mount.path(), 11);
}

/// An NTFS disk with files.
pub fn ntfs_disk(place: &Place, path: &Path) {
    formatted(path, 48 << 20, "mkfs.ntfs", &["-q", "-F", "-f", "-L", "DATA"]);
    // FUSE, so a file may be mounted as it is.
    let dir = place.dir("mnt-ntfs");
    tool("ntfs-3g", [path.as_os_str(), dir.as_os_str()]);
    std::fs::create_dir_all(dir.join("Users/zhang")).unwrap();
    noise(&dir.join("Users/zhang/ledger.xlsx"), 700_000, 21);
    std::fs::write(dir.join("Users/zhang/notes.txt"), "同样的一行\n".repeat(9000)).unwrap();
    tool("umount", [&dir]);
}

/// A LUKS2 container that opens with the passphrase `branch`, noise inside.
pub fn luks_disk(path: &Path) {
    noise(path, 24 << 20, 31);
    let mut format = Command::new("cryptsetup")
        .args(["luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"])
        .args(["--key-file", "-"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    format.stdin.take().unwrap().write_all(b"branch").unwrap();
    assert!(format.wait().unwrap().success(), "cryptsetup luksFormat");
}

/// Whether the LUKS container opens with the passphrase.
pub fn luks_opens(path: &Path) -> bool {
    let mut open = Command::new("cryptsetup")
        .args(["open", "--test-passphrase", "--key-file", "-"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    open.stdin.take().unwrap().write_all(b"branch").unwrap();
    open.wait().unwrap().success()
}

/// A disk with bad sectors, read through real I/O errors: a file on a Btrfs whose checksums do not match any more.
pub struct BadDisk {
    /// The disk.
    pub path: PathBuf,
    _mount: Mount,
    _device: Loop,
}

/// A disk of `bytes` of noise; every page (4 KiB) whose number is in `pages` answers EIO.
pub fn bad_disk(place: &Place, name: &str, bytes: u64, seed: u64, pages: &[u64]) -> BadDisk {
    let image = place.join(format!("{name}.btrfs"));
    let whole = place.join(format!("{name}.good"));
    noise(&whole, bytes, seed);
    // Single data and metadata: nothing heals what is broken here.
    formatted(&image, (bytes * 2).max(256 << 20), "mkfs.btrfs", &["-q", "-f", "-m", "single", "-d", "single"]);
    let device = loop_device(&image);
    let dir = place.join(format!("{name}.mnt"));
    let mount = Mount::new(device.path(), &dir, &[]);
    let path = dir.join("disk");
    std::fs::copy(&whole, &path).unwrap();
    tool("sync", ["-f".as_ref(), path.as_os_str()]);
    drop((mount, device));
    // Noise is unique: where a page lies in the image is found by its first bytes.
    let good = File::open(&whole).unwrap();
    let store = File::options().read(true).write(true).open(&image).unwrap();
    let mut wanted: std::collections::HashMap<[u8; 16], u64> = pages
        .iter()
        .map(|page| {
            let mut start = [0; 16];
            good.read_exact_at(&mut start, page * 4096).unwrap();
            (start, *page)
        })
        .collect();
    let (length, mut at, mut buffer) = (store.metadata().unwrap().len(), 0, vec![0; 1 << 20]);
    while at < length && !wanted.is_empty() {
        let part = buffer.len().min((length - at) as usize);
        store.read_exact_at(&mut buffer[..part], at).unwrap();
        for (index, page) in buffer[..part].chunks(4096).enumerate() {
            if page.len() >= 16 && wanted.remove(&page[..16]).is_some() {
                store.write_all_at(&[0xbd; 4096], at + index as u64 * 4096).unwrap();
            }
        }
        at += part as u64;
    }
    assert!(wanted.is_empty(), "pages not found in the image: {wanted:?}");
    store.sync_all().unwrap();
    let device = loop_device(&image);
    let mount = Mount::new(device.path(), &dir, &[]);
    BadDisk { path, _mount: mount, _device: device }
}

/// The medium as an array in a file of its own, mounted in the branch's place of the array.
pub fn mounted_array(place: &Place, bytes: u64, dir: &Path) -> LoopArray {
    LoopArray::xfs(&place.join("array.img"), bytes, dir)
}
