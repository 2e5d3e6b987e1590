//! The process that has a drill's machine, from its first instruction to its end.

use super::console::Console;
use super::machine::{SCREEN_SOCKET, SERIAL_SOCKET, arguments};
use super::plan::ovmf;
use super::record::{Base, Course, Drill, Firmware, Folder, MAX_PICTURE_BYTES, PICTURE, SERIAL, Seen, State};
use super::volumes;
use super::{adapt, array};
use crate::context::{Context, now};
use crate::error::{Error, IoContext, Result};
use crate::io::read_bounded;
use crate::nbd::Server;
use crate::qmp::Qmp;
use crate::sealed::SealedServer;
use crate::units::size;
use crate::volume::layer::Layer;
use crate::volume::places::Places;
use serde_json::json;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at the room that is left.
const LOOK_AT_ROOM: Duration = Duration::from_secs(2);
/// From the sign that all is up to the picture: the screen may be behind the console.
const SETTLES: Duration = Duration::from_secs(1);
/// Room that stays free beside the state directory: its ledger must not suffer from what a machine writes.
pub const RESERVED_BYTES: u64 = 512 << 20;
/// QEMU writes pictures as PNG from here on.
const LEAST_QEMU: (u64, u64) = (7, 1);
/// How PNG files begin.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The hidden verb. Standard input is the drill's lock, which ends with this process.
///
/// # Errors
/// There is no such drill, or its course cannot be written.
pub fn run(context: &Context, id: Uuid) -> Result<()> {
    // Nobody's terminal ends it. Where it was started by hand it may lead its session already.
    let _ = rustix::process::setsid();
    let folder = Folder::of(&context.ledger, id);
    let drill = folder.drill()?.ok_or_else(|| Error::failed(format!("Drill {id}: expected it, found none")))?;
    let mut course = Course {
        format: 1,
        drill: id,
        keeper: std::process::id(),
        state: State::Opening,
        adaptation: None,
        booted_at: None,
        qemu: None,
        seen: None,
        silent: false,
        picture: None,
        screen: None,
        off_at: None,
        words: None,
        unproven_blocks: 0,
        troubles: Vec::new(),
    };
    folder.put_course(&course)?;
    match Running::boot(context, &folder, &drill, &mut course) {
        Ok(running) => running.watch(&folder, &drill, &mut course),
        Err(error) => {
            course.state = State::Failed;
            course.words = Some(error.to_string());
            folder.put_course(&course)
        }
    }
}

/// A machine that runs. What it needs is dropped after it, in this order.
struct Running {
    qemu: Server,
    console: Console,
    booted: Instant,
    monitor: std::path::PathBuf,
    _layers: Vec<Layer>,
    /// Serves the disks, where they lie on an array.
    array: Option<SealedServer>,
    _locks: Vec<File>,
}

impl Running {
    fn boot(context: &Context, folder: &Folder, drill: &Drill, course: &mut Course) -> Result<Running> {
        let mut places = Places::new(&context.clouds);
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
        let qemu = Server::start("qemu-system-x86_64", |socket| {
            // QEMU comes to us, so that not one byte is lost.
            listener = Some(
                UnixListener::bind(socket.with_file_name(SERIAL_SOCKET))
                    .map(|listener| Console::listen(listener, &folder.join(SERIAL), drill.marker.clone())),
            );
            arguments(drill, folder, &layers, socket, code.as_deref())
        });
        let qemu = qemu.map_err(|error| {
            Error::failed(format!("Drill {}: its machine does not start", drill.drill)).because(error)
        })?;
        let console = match listener {
            Some(console) => console.and_then(|console| console).context(|| "Serial console of the machine".into())?,
            None => return Err(Error::failed("Serial console of the machine: expected a socket for it, found none")),
        };
        let monitor = qemu.dir().join("socket");
        let version = Qmp::connect(&monitor)?.version();
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
        Ok(Running { qemu, console, booted, monitor, _layers: layers, array, _locks: locks })
    }

    /// Stays with it until it ends.
    fn watch(self, folder: &Folder, drill: &Drill, course: &mut Course) -> Result<()> {
        let within = Duration::from_secs(drill.within_seconds);
        let mut room = Instant::now();
        let mut stands = false;
        let words = loop {
            if folder.is_to_end() {
                break None;
            }
            if let Some(ended) = self.qemu.ended() {
                break Some(ended.message);
            }
            if course.seen.is_none() && !course.silent {
                let sign = self.console.sign();
                course.seen = sign.map(|(sign, at)| Seen {
                    sign,
                    milliseconds: u64::try_from(at.saturating_duration_since(self.booted).as_millis())
                        .unwrap_or(u64::MAX),
                });
                course.silent = sign.is_none() && self.booted.elapsed() >= within;
                if course.seen.is_some() || course.silent {
                    std::thread::sleep(SETTLES);
                    match self.picture(folder) {
                        Ok(()) => course.picture = folder.pin(PICTURE)?,
                        Err(error) => course.words = Some(error.to_string()),
                    }
                    self.note(course);
                    folder.put_course(course)?;
                }
            }
            if room.elapsed() >= LOOK_AT_ROOM {
                room = Instant::now();
                if self.note(course) {
                    folder.put_course(course)?;
                }
                let full = free(folder)? < RESERVED_BYTES;
                if full != stands && self.order(if full { "stop" } else { "cont" }).is_ok() {
                    stands = full;
                    course.words = full.then(|| {
                        format!(
                            "the machine stands still: less than {} is left beside the state directory for what it writes",
                            size(RESERVED_BYTES)
                        )
                    });
                    folder.put_course(course)?;
                }
            }
            std::thread::sleep(LOOK);
        };
        self.note(course);
        // Ends it, and after it whatever it read from.
        drop(self);
        course.state = State::Off;
        course.off_at = Some(now()?);
        course.screen = None;
        course.words = words.or(course.words.take());
        folder.put_course(course)
    }

    /// What the array has to say.
    fn note(&self, course: &mut Course) -> bool {
        self.array.as_ref().is_some_and(|array| array::note(array, course))
    }

    fn order(&self, command: &str) -> Result<()> {
        Qmp::connect(&self.monitor)?.call(command, json!({})).map(drop)
    }

    /// What is on its screen.
    fn picture(&self, folder: &Folder) -> Result<()> {
        let path = folder.join(PICTURE);
        Qmp::connect(&self.monitor)?.call("screendump", json!({ "filename": path, "format": "png" }))?;
        let begins = read_bounded(&path, MAX_PICTURE_BYTES)?;
        match begins.starts_with(PNG) {
            true => Ok(()),
            false => Err(Error::failed(format!("Picture {}: expected a PNG, found something else", path.display()))),
        }
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
