//! Loop devices and mounts, let go on drop.

use super::run::{tool, try_tool};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

/// A loop device over a file.
#[derive(Debug)]
pub struct Loop(PathBuf);

/// Makes the device nodes that nobody else makes where no udev runs.
fn nodes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for number in 0..96 {
            let node = format!("/dev/loop{number}");
            if !Path::new(&node).exists() {
                let _ = try_tool("mknod", ["-m", "660", &node, "b", "7", &number.to_string()]);
            }
        }
    });
}

/// Attaches `file`, read-write, 512-byte sectors.
pub fn loop_device(file: &Path) -> Loop {
    Loop::attach(file, &[])
}

impl Loop {
    /// Attaches `file` with further options of `losetup`.
    pub fn attach(file: &Path, options: &[&str]) -> Loop {
        nodes();
        let since = Instant::now();
        loop {
            let ran = try_tool(
                "losetup",
                options.iter().map(|o| o.as_ref()).chain(["--find".as_ref(), "--show".as_ref(), file.as_os_str()]),
            );
            if ran.code == 0 {
                return Loop(PathBuf::from(ran.stdout.trim()));
            }
            // Several tests ask at once, and whoever loses the race for a number asks again.
            assert!(since.elapsed() < Duration::from_secs(20), "losetup {}: {}", file.display(), ran.stderr);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// Detaches at once, or as soon as nobody uses it.
    pub fn detach(&self) {
        let _ = try_tool("losetup", ["--detach".as_ref(), self.0.as_os_str()]);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.detach();
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// `mount OPTIONS DEVICE DIR`; the directory is made.
    pub fn new(device: &Path, dir: &Path, options: &[&str]) -> Mount {
        std::fs::create_dir_all(dir).unwrap();
        tool("mount", options.iter().map(|o| o.as_ref()).chain([device.as_os_str(), dir.as_os_str()]));
        Mount(dir.to_owned())
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// Unmounts; for tests that look at what became of it.
    pub fn unmount(self) {
        drop(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..40 {
            if try_tool("umount", [&self.0]).code == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = try_tool("umount", ["-l".as_ref(), self.0.as_os_str()]);
    }
}

/// A transport array as it is in the field: a labelled file system on a device of its own, mounted.
#[derive(Debug)]
pub struct LoopArray {
    mount: Option<Mount>,
    device: Option<Loop>,
    image: PathBuf,
    dir: PathBuf,
}

impl LoopArray {
    /// XFS labelled MOTIONGEAR01 of `bytes` (at least 300 MiB), sparse, mounted at `dir`.
    pub fn xfs(image: &Path, bytes: u64, dir: &Path) -> LoopArray {
        super::sparse(image, bytes);
        tool("mkfs.xfs", ["-q".as_ref(), "-f".as_ref(), "-L".as_ref(), "MOTIONGEAR01".as_ref(), image.as_os_str()]);
        LoopArray::mount_image(image, dir)
    }
    /// ext4 of `bytes`, for small arrays; no reserved blocks, so that full is full.
    pub fn ext4(image: &Path, bytes: u64, dir: &Path) -> LoopArray {
        // Blocks as on a large file system: mke2fs makes those of a small one 1 KiB.
        LoopArray::ext4_of_blocks(4096, image, bytes, dir)
    }
    /// ext4 as [`LoopArray::ext4`] makes it, with blocks of `block` bytes.
    pub fn ext4_of_blocks(block: u32, image: &Path, bytes: u64, dir: &Path) -> LoopArray {
        super::sparse(image, bytes);
        let block = block.to_string();
        let label = ["-q", "-F", "-m", "0", "-b", &block, "-L", "MOTIONGEAR01"].map(AsRef::as_ref);
        tool("mkfs.ext4", label.into_iter().chain([image.as_os_str()]));
        LoopArray::mount_image(image, dir)
    }
    /// The directory where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    fn mount_image(image: &Path, dir: &Path) -> LoopArray {
        let device = loop_device(image);
        let mount = Mount::new(device.path(), dir, &[]);
        LoopArray { mount: Some(mount), device: Some(device), image: image.to_owned(), dir: dir.to_owned() }
    }
    /// Plugs it in again after [`LoopArray::unplug`].
    pub fn plug(&mut self) {
        *self = LoopArray::mount_image(&self.image.clone(), &self.dir.clone());
    }
    /// Takes it away under whoever writes: the file system shuts down as if its device were gone, and it is unmounted.
    pub fn unplug(&mut self) {
        self.unplug_as(Shutdown::NoLogFlush);
    }
    /// As [`LoopArray::unplug`], with a choice of what still reaches the medium.
    pub fn unplug_as(&mut self, how: Shutdown) {
        shut_down(&self.dir, how);
        if let Some(mount) = self.mount.take() {
            let _ = try_tool("umount", ["-l".as_ref(), mount.path().as_os_str()]);
            std::mem::forget(mount);
        }
        self.device = None;
    }
    pub fn unmount(&mut self) {
        self.mount = None;
        self.device = None;
    }
    /// Unmounts it and mounts it with other options.
    pub fn mount_anew(&mut self, options: &[&str]) {
        self.mount = None;
        self.mount = Some(Mount::new(self.device(), &self.dir, options));
    }
    pub fn remount(&self, options: &str) {
        tool("mount", ["-o".as_ref(), format!("remount,{options}").as_ref(), self.dir.as_os_str()]);
    }
    pub fn device(&self) -> &Path {
        self.device.as_ref().unwrap().path()
    }
    pub fn image(&self) -> &Path {
        &self.image
    }
}

/// What a file system that shuts down still writes: all of it, its journal, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// As `fsfreeze` and then gone.
    Everything = 0,
    /// The journal, not the data.
    LogFlush = 1,
    /// What a device that answers no more leaves.
    NoLogFlush = 2,
}

/// FS_IOC_SHUTDOWN: what the file system does when its device answers no more. It stays mounted and answers EIO.
pub fn shut_down(dir: &Path, how: Shutdown) {
    use std::os::fd::AsRawFd;
    const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    let dir = std::fs::File::open(dir).unwrap();
    let flags = how as u32;
    // SAFETY: the ioctl reads one u32 that lives across the call.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_SHUTDOWN, &flags) };
    assert_eq!(done, 0, "FS_IOC_SHUTDOWN: {}", std::io::Error::last_os_error());
}
