//! The box that a converter works in: a process between the keeper and it, which shuts it off before it starts.
//!
//! A converter runs programs of the machine that it converts, and the machine may be anything. So it has
//! * no network: its namespace for that has nothing in it, and disks are reached by sockets of this host's file system;
//! * a `/tmp` of its own, where everything that it leaves goes away with the drill;
//! * a namespace of processes, whose first one it is: when it ends, the kernel ends all the others. It is killed when this process dies, and this one
//!   when the keeper does: whoever is killed, nothing goes on.

use crate::error::{Error, IoContext, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the box is seen from within.
pub const WITHIN: &str = "/tmp";
/// The machine's description in the box.
pub const MACHINE: &str = "machine.xml";
/// The converter.
pub const PROGRAM: &str = "virt-v2v-in-place";
/// How this process ends where there was no converter to end.
pub const NOT_STARTED: u8 = 125;
/// What a converter gets of our environment: no secret is among it. The last one says where drivers for Windows are.
const PASSED: [&str; 2] = ["PATH", "VIRTIO_WIN"];

/// What the box is made for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The keeper's process: without it there is nothing to do.
    pub keeper: i32,
    /// The directory that becomes its `/tmp`.
    pub place: PathBuf,
    /// Whether processors are only played.
    pub tcg: bool,
}

/// The hidden verb: makes the box, runs the converter in it, and ends as that did.
pub fn main(options: &Options) -> u8 {
    match shut_off(options).and_then(|()| convert(options)) {
        Ok(code) => code,
        Err(error) => {
            // Standard output is the keeper's pipe; where it is closed nobody listens.
            let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{error}\n").as_bytes());
            NOT_STARTED
        }
    }
}

fn shut_off(options: &Options) -> Result<()> {
    let what = || "Box of the converter".to_owned();
    set_parent_process_death_signal(Some(Signal::KILL)).context(what)?;
    // Whose parent ended before would never hear of it.
    if getppid().map(Pid::as_raw_nonzero).is_none_or(|parent| parent.get() != options.keeper) {
        return Err(Error::failed("Box of the converter: expected its keeper, found it gone"));
    }
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWPID;
    // SAFETY: file descriptors stay shared (no FILES); this process has no other thread that could mind its mounts.
    unsafe { unshare_unsafe(flags) }.map_err(|errno| {
        Error::io("Box of the converter: expected namespaces of its own, found that this host gives none", errno.into())
            .next("run it as root; a container needs CAP_SYS_ADMIN")
    })?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context(what)?;
    mount_bind(&options.place, WITHIN).context(|| format!("Directory {} as {WITHIN}", options.place.display()))
}

fn convert(options: &Options) -> Result<u8> {
    let mut command = Command::new(PROGRAM);
    command.args(arguments()).env_clear();
    command.envs(PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // Its words are looked at: they must not be translated.
    command.env("LC_ALL", "C.UTF-8").env("HOME", WITHIN).env("TMPDIR", WITHIN);
    command.env("LIBGUESTFS_BACKEND", "direct").env("LIBGUESTFS_CACHEDIR", WITHIN);
    if options.tcg {
        // It finds /dev/kvm by itself, also where that does not work.
        command.env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
    }
    // Both in one pipe: in the order in which they were said.
    let stdout = rustix::io::dup(rustix::stdio::stdout()).context(|| "Pipe to the keeper".into())?;
    command.current_dir("/").stdin(Stdio::null()).stderr(Stdio::from(stdout));
    // SAFETY: one plain system call, which may be made between fork and exec; nothing is allocated or locked.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
    let status = command.status().map_err(|error| Error::io(format!("{PROGRAM}: cannot be started"), error))?;
    // Killed: as shells say it.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(128 + 9))
}

/// Never asks which of several systems is meant: it ends.
fn arguments() -> Vec<OsString> {
    let machine = Path::new(WITHIN).join(MACHINE);
    let fixed = ["--root", "single", "--machine-readable=stream:stdout", "-i", "libvirtxml"];
    fixed.into_iter().map(OsString::from).chain([machine.into()]).collect()
}
