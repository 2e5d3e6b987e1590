//! A machine that QEMU runs on this host: its files, its start, its picture, and its end.

use super::console::{Console, Told};
use super::folder::{Folder, MAX_PICTURE_BYTES, PICTURE, SERIAL};
use super::machine::{SCREEN_SOCKET, SERIAL_SOCKET, arguments};
use super::network;
use super::plan::ovmf;
use super::record::{Base, Course, Drill, Firmware, State};
use super::running::Running;
use super::volumes;
use super::{adapt, array};
use crate::context::{Context, now};
use crate::error::{Error, IoContext, Result};
use crate::io::read_bounded;
use crate::nbd::{Server, clear_left_over, has_ended};
use crate::program;
use crate::qmp::Qmp;
use crate::sealed::SealedServer;
use crate::volume::layer::Layer;
use crate::volume::places::Places;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

/// For qemu-img, which makes small files.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a killed QEMU may take to be gone, and how often that is looked at.
const DIES_WITHIN: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// Between two looks at the room that is left.
const LOOK_AT_ROOM: Duration = Duration::from_secs(2);
/// Room that stays free beside the state directory: its ledger must not suffer from what a machine writes.
pub const RESERVED_BYTES: u64 = 512 << 20;
/// QEMU writes pictures as PNG from here on.
const LEAST_QEMU: (u64, u64) = (7, 1);
/// How PNG files begin.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Images for what it writes, variables of its firmware.
///
/// # Errors
/// They cannot be made.
pub fn prepare(folder: &Folder, drill: &Drill) -> Result<()> {
    for (slot, disk) in drill.disks.iter().enumerate() {
        overlay(folder, slot, disk.bytes)?;
    }
    if drill.firmware == Firmware::Uefi {
        let (_, variables) = ovmf()?;
        std::fs::copy(&variables, folder.variables()).context(|| format!("Firmware {}", variables.display()))?;
    }
    Ok(())
}

/// An image that takes what is written, as large as the disk.
fn overlay(folder: &Folder, slot: usize, bytes: u64) -> Result<()> {
    let path = folder.overlay(slot);
    let mut command = program::command("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(&path).arg(bytes.to_string());
    let ended = program::run(command, LIMIT, "Debian: qemu-utils")?;
    match ended.code {
        Some(0) => Ok(()),
        _ => Err(Error::failed(format!("Image {}: qemu-img could not make it: {}", path.display(), ended.words))),
    }
}

/// A machine that runs. What it needs is dropped after it, in this order.
pub struct Here {
    qemu: Server,
    console: Console,
    booted: Instant,
    monitor: std::path::PathBuf,
    /// When the room was looked at.
    room: Instant,
    /// Since when it stands still for want of room.
    stands: Option<Instant>,
    /// How long it stood still before.
    stood: Duration,
    _layers: Vec<Layer>,
    /// Serves the disks, where they lie on an array.
    array: Option<SealedServer>,
    _locks: Vec<File>,
}

impl Here {
    /// Starts QEMU over the clones.
    ///
    /// # Errors
    /// A clone cannot be opened; QEMU does not start, or is too old.
    pub fn boot(context: &Context, folder: &Folder, drill: &Drill, course: &mut Course) -> Result<Here> {
        let mut places = Places::new(context);
        let (mut layers, mut locks, mut array) = (Vec::new(), Vec::new(), None);
        for disk in &drill.disks {
            layers.push(match &disk.base {
                Base::Snapshot { point, .. } | Base::Volume { point, .. } => {
                    let (layer, lock) = volumes::layer(context, &mut places, drill, disk, point)?;
                    locks.extend(lock);
                    layer
                }
                Base::Array(at) => {
                    let server = match array.take() {
                        Some(server) => server,
                        None => array::serve(context, drill, disk, at)?,
                    };
                    array::layer(array.insert(server), drill, disk)?
                }
            });
        }
        if let Some(wanted) = &drill.adapt {
            // A clone that may be written to in a cloud stays what it is, too.
            layers.iter_mut().for_each(|layer| layer.writable = false);
            let adapted = adapt::run(folder, drill, wanted, &layers, course);
            // Perhaps it failed for what could not be read.
            if let Some(server) = &array {
                array::note(server, course);
            }
            adapted?;
        }
        let code = match drill.firmware {
            Firmware::Uefi => Some(ovmf()?.0),
            Firmware::Bios => None,
        };
        let mut listener = None;
        let booted = Instant::now();
        let cards = match &drill.network {
            Some(network) => network::connect(network)?,
            None => Vec::new(),
        };
        let numbers: Vec<i32> = cards.iter().map(AsRawFd::as_raw_fd).collect();
        let qemu = Server::start_with("qemu-system-x86_64", cards, |socket| {
            // QEMU comes to us, so that not one byte is lost.
            listener = Some(
                UnixListener::bind(socket.with_file_name(SERIAL_SOCKET))
                    .map(|listener| Console::listen(listener, &folder.join(SERIAL), drill.marker.clone())),
            );
            arguments(drill, folder, &layers, &numbers, socket, code.as_deref())
        });
        let qemu = qemu.map_err(|error| {
            Error::failed(format!("Drill {}: its machine does not start", drill.drill)).because(error)
        })?;
        let console = match listener {
            Some(console) => console.and_then(|console| console).context(|| "Serial console of the machine".into())?,
            None => return Err(Error::failed("Serial console of the machine: expected a socket for it, found none")),
        };
        let monitor = qemu.dir().join("socket");
        let version = Qmp::connect(&monitor).map_err(|error| qemu.quoted(error))?.version();
        if version < LEAST_QEMU {
            return Err(Error::failed(format!(
                "QEMU: expected version 7.1 or newer, found {}.{}",
                version.0, version.1
            ))
            .next("older ones write no pictures as PNG: take a newer QEMU"));
        }
        course.state = State::Running;
        course.booted_at = Some(now()?);
        course.qemu = Some(format!("{}.{}", version.0, version.1));
        course.screen = Some(qemu.dir().join(SCREEN_SOCKET));
        folder.put_course(course)?;
        Ok(Here {
            qemu,
            console,
            booted,
            monitor,
            room: Instant::now(),
            stands: None,
            stood: Duration::ZERO,
            _layers: layers,
            array,
            _locks: locks,
        })
    }

    fn order(&self, command: &str) -> Result<()> {
        Qmp::connect(&self.monitor)?.call(command, json!({})).map(drop)
    }
}

impl Running for Here {
    fn booted(&self) -> Instant {
        self.booted
    }

    fn told(&mut self) -> Option<(Told, Instant)> {
        self.console.told()
    }

    fn last_lines(&self) -> Vec<String> {
        self.console.last_lines()
    }

    fn stood(&self) -> Duration {
        self.stood + self.stands.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn ended(&mut self) -> Option<String> {
        self.qemu.ended().map(|ended| ended.message)
    }

    fn picture(&self, folder: &Folder) -> Result<()> {
        let path = folder.join(PICTURE);
        Qmp::connect(&self.monitor)?.call("screendump", json!({ "filename": path, "format": "png" }))?;
        let begins = read_bounded(&path, MAX_PICTURE_BYTES)?;
        match begins.starts_with(PNG) {
            true => Ok(()),
            false => Err(Error::failed(format!("Picture {}: expected a PNG, found something else", path.display()))),
        }
    }

    fn note(&self, course: &mut Course) -> bool {
        self.array.as_ref().is_some_and(|array| array::note(array, course))
    }

    fn tend(&mut self, folder: &Folder, course: &mut Course) -> Result<bool> {
        if self.room.elapsed() < LOOK_AT_ROOM {
            return Ok(false);
        }
        self.room = Instant::now();
        let mut changed = self.note(course);
        let full = free(folder)? < RESERVED_BYTES;
        if full != self.stands.is_some() && self.order(if full { "stop" } else { "cont" }).is_ok() {
            self.stood = self.stood();
            self.stands = full.then(Instant::now);
            course.stands = full;
            course.stood_seconds = self.stood.as_secs();
            changed = true;
        }
        Ok(changed)
    }
}

/// Room beside the state directory, bytes.
///
/// # Errors
/// The file system does not say.
pub fn free(folder: &Folder) -> Result<u64> {
    let at = folder.path();
    let there = if at.exists() { at } else { at.parent().and_then(|all| all.parent()).unwrap_or(at) };
    let stat = rustix::fs::statvfs(there).context(|| format!("Directory {}", there.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// QEMU is asked to end when its keeper dies, and may not hear it.
///
/// # Errors
/// It does not end.
pub fn end(drill: &Drill) -> Result<()> {
    let name = format!("motiongear-drill-{}", drill.drill);
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) =
            entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        // Ours is named on its command line, as a word of its own.
        if words.next().is_some_and(|program| program.ends_with(b"qemu-system-x86_64"))
            && words.any(|word| word == name.as_bytes())
        {
            // Gone already is what we want.
            let _ = kill_process(process, Signal::KILL);
            let since = Instant::now();
            let number = process.as_raw_nonzero().get().unsigned_abs();
            while !has_ended(number) {
                if since.elapsed() > DIES_WITHIN {
                    return Err(Error::failed(format!(
                        "Drill {}: expected its machine (process {number}) to end, found it there",
                        drill.drill
                    ))
                    .next(
                        "see what it waits for (ps, dmesg): its disks may be away; then run the same command again",
                    ));
                }
                std::thread::sleep(LOOK);
            }
        }
    }
    clear_left_over();
    Ok(())
}
