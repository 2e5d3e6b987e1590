//! All disks of a machine at one instant, as read-only exports of its QEMU, while the guest goes on.
//!
//! Order, and what each step is for:
//! 1. one MotionGear at a time for a machine; a watchdog that takes everything out again should we be killed; leftovers go;
//! 2. two files without a name for each disk take what the guest overwrites;
//! 3. **one transaction** starts a `blockdev-backup` without copying for each disk, begins its new bitmap and stops the old one: the point
//!    in time. From now on QEMU keeps what is overwritten in the first file. Should that fail, so would the guest's write;
//! 4. therefore a few milliseconds later a `copy-before-write` filter with a file of its own takes over, which gives up the snapshot
//!    rather than a write of the guest (`on-cbw-error=break-snapshot`), or than to hold it for long; and the job ends;
//! 5. the snapshot is what the first file has, and below it what the filter's `snapshot-access` gives: exported by QEMU's NBD server on a
//!    socket that only we can reach.
//!
//! The filters alone would do on each disk, but they can only be put in one by one; the jobs alone would put the guest at risk. Together
//! they are of one instant and harmless.
//!
//! QEMU can do it since 9.1, where a filter keeps its own bitmap. Tried with 7.2: it ends in an assertion when a job below a filter ends;
//! with jobs alone its NBD server brings a machine with I/O threads down, and once it hung when a snapshot was taken out while the scratch
//! files were nearly full. So older ones are left alone.

use super::client::is_off;
use super::drive::canonical;
use super::machine::Machine;
use super::release::{put_on, release, until_gone};
use super::scratch::add_file;
use super::tracking::{prepare, remove_all};
use super::{Drive, OURS, Qmp, Released};
use crate::error::{Error, IoContext, Kind, Result};
use crate::io::ReadAt;
use crate::nbd::{self, NbdDisk, Uri, dirty_ranges, private_directory};
use crate::source::Origin;
use crate::source::room::{RoomWatch, expect_room};
use crate::source::running::{self, Guard};
use crate::source::tracking::{Distrust, Held, Noted, Platform, Prepared, TakenDisk, Tracking};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The first QEMU that takes a filter above that of a job.
const LEAST_VERSION: (u64, u64) = (9, 1);
/// How long a write of the guest may wait for our files, seconds. Guests give up after 30 s.
const GUEST_WAITS_SECONDS: u32 = 10;
/// For QEMU to write the head of an empty image.
const CREATED_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// One disk that is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What we call it.
    pub name: String,
    /// What QEMU calls it.
    pub drive: Drive,
    /// What to do with its dirty bitmaps, if anything.
    pub tracking: Option<Tracking>,
}

/// A snapshot to take.
#[derive(Debug, Clone)]
pub struct Taking {
    /// The machine's name, for messages.
    pub machine: String,
    /// Its monitor.
    pub socket: PathBuf,
    /// Its disks.
    pub disks: Vec<Wish>,
    /// Where to put what the guest overwrites meanwhile.
    pub scratch: PathBuf,
    /// The watchdog appends a line here when it had to act.
    pub log: Option<PathBuf>,
}

/// Where a disk of a snapshot is in QEMU.
struct Export {
    uri: Uri,
    node: String,
}

/// A snapshot that is there until it is ended or dropped.
struct Snapshot {
    disks: Vec<TakenDisk>,
    /// One for each disk.
    exports: Vec<Export>,
    machine: String,
    socket: PathBuf,
    scratch: PathBuf,
    dir: PathBuf,
    /// `None` until the filters are in place, and once it is taken out.
    room: Option<RoomWatch>,
    /// `None` once nothing is there any more.
    guard: Option<Guard>,
}

/// All that can be done before the instant. Dropped in this order: a monitor has one client at a time.
struct Ready {
    qmp: Qmp,
    /// Of the transaction.
    actions: Vec<Value>,
    /// The devices of the disks.
    devices: Vec<String>,
    snapshot: Snapshot,
}

impl Platform for Taking {
    fn prepare(&self) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(self.ready()?))
    }

    fn asked(&self) -> Vec<String> {
        vec!["QMP".into(), self.socket.display().to_string()]
    }

    fn ends_with_us(&self) -> bool {
        true
    }
}

impl Taking {
    /// Steps 1 and 2. The guest notices nothing.
    fn ready(&self) -> Result<Ready> {
        let socket = canonical(&self.socket);
        let alone = alone(&socket)?;
        let mut qmp = Qmp::connect(&socket)?;
        let (major, minor) = qmp.version();
        if qmp.version() < LEAST_VERSION {
            let (least, than) = LEAST_VERSION;
            return Err(Error::failed(format!(
                "Machine {}: expected QEMU {least}.{than} or newer, found {major}.{minor}",
                self.machine
            ))
            .next("make a snapshot of the images by a hook instead, and name them as FORMAT:PATH"));
        }
        release(&mut qmp)?;
        let guard = Guard::start(alone, &socket.to_string_lossy(), &self.machine, self.log.clone())?;
        let dir = private_directory()?;
        let (machine, scratch) = (self.machine.clone(), self.scratch.clone());
        let guard = Some(guard);
        let snapshot =
            Snapshot { disks: Vec::new(), exports: Vec::new(), machine, socket, scratch, dir, room: None, guard };
        let mut ready = Ready { qmp, actions: Vec::new(), devices: Vec::new(), snapshot };
        // Where it fails, what was laid out is taken out again; where that fails too, the watchdog goes on.
        self.lay_out(&mut ready)?;
        Ok(ready)
    }

    fn lay_out(&self, ready: &mut Ready) -> Result<()> {
        let Ready { qmp, actions, devices, snapshot } = ready;
        let machine = Machine::look(qmp)?;
        let disks = self.disks.iter().map(|wish| machine.find(&wish.drive)).collect::<Result<Vec<_>>>()?;
        expect_room(&self.scratch, disks.iter().fold(0, |sum, disk| disk.bytes.saturating_add(sum)))?;
        for (i, (wish, disk)) in self.disks.iter().zip(&disks).enumerate() {
            let Some(device) = &disk.device else {
                return Err(Error::failed(format!("Source {}: expected the disk of a device, found none", wish.drive))
                    .next("name a disk that the machine has a device for"));
            };
            devices.push(device.clone());
            let of = |part: &str| format!("{OURS}{i}-{part}");
            add_file(qmp, &self.scratch, 0, &of("first"))?;
            add_file(qmp, &self.scratch, disk.bytes, &of("kept"))?;
            self.format(qmp, &of("first"), disk.bytes)?;
            let view = json!({ "driver": "qcow2", "node-name": of("view"), "file": of("first"), "backing": null });
            qmp.call("blockdev-add", view)?;
            let backup = json!({
                "job-id": of("job"), "device": disk.node, "target": of("view"), "sync": "none", "filter-node-name": of("until"),
            });
            actions.push(json!({ "type": "blockdev-backup", "data": backup }));
            let prepared = wish.tracking.as_ref().map(|tracking| prepare(qmp, disk, tracking)).transpose()?;
            let (new, reference) = match prepared {
                Some(prepared) => {
                    actions.extend(prepared.actions);
                    (Some(Noted::Bitmap(prepared.new)), prepared.reference.map(Noted::Bitmap))
                }
                None => (None, Err(Distrust::Missing)),
            };
            let uri = Uri::of_socket(&snapshot.dir.join("socket"), &of("disk"));
            let origin = Origin::Nbd(uri.clone());
            snapshot.disks.push(TakenDisk { name: wish.name.clone(), origin, new, reference });
            snapshot.exports.push(Export { uri, node: disk.node.clone() });
        }
        Ok(())
    }

    /// Makes an empty image of a file.
    fn format(&self, qmp: &mut Qmp, node: &str, bytes: u64) -> Result<()> {
        #[derive(Deserialize)]
        struct Job {
            id: String,
            status: String,
            error: Option<String>,
        }
        let id = format!("{node}-create");
        let options = json!({ "driver": "qcow2", "file": node, "size": bytes });
        qmp.call("blockdev-create", json!({ "job-id": id, "options": options }))?;
        let until = Instant::now() + CREATED_WITHIN;
        loop {
            let jobs: Vec<Job> = qmp.ask("query-jobs", json!({}))?;
            match jobs.into_iter().find(|job| job.id == id) {
                Some(job) if job.status == "concluded" => {
                    qmp.call("job-dismiss", json!({ "id": id }))?;
                    return job.error.map_or(Ok(()), |error| {
                        Err(Error::failed(format!("Scratch directory {}: {error:.1000}", self.scratch.display())))
                    });
                }
                Some(_) if Instant::now() < until => std::thread::sleep(LOOK),
                _ => return Err(qmp.wrong("an empty image", "none in time")),
            }
        }
    }
}

impl Prepared for Ready {
    fn take(mut self: Box<Self>) -> Result<Box<dyn Held>> {
        // Where it fails, all of it is taken out again.
        self.begin()?;
        let Ready { qmp, snapshot, .. } = *self;
        drop(qmp);
        Ok(Box::new(snapshot))
    }
}

impl Ready {
    /// Steps 3 to 5.
    fn begin(&mut self) -> Result<()> {
        self.qmp.call("transaction", json!({ "actions": self.actions }))?;
        self.hand_over()?;
        let Ready { qmp, snapshot, .. } = self;
        let listener = UnixListener::bind(snapshot.dir.join("socket"))
            .context(|| format!("Socket in {}", snapshot.dir.display()))?;
        let name = format!("{OURS}nbd");
        qmp.hand(listener.as_fd(), "getfd", json!({ "fdname": name }))?;
        qmp.call("nbd-server-start", json!({ "addr": { "type": "fd", "data": { "str": name } } })).map_err(
            |error| {
                error.next(
                    "QEMU has one NBD server only, and another program uses it: wait for its backup to end, or end it",
                )
            },
        )?;
        for (i, (disk, Export { uri, node })) in snapshot.disks.iter().zip(&snapshot.exports).enumerate() {
            let (view, export) = (format!("{OURS}{i}-view"), &uri.export);
            let bitmaps: Vec<Value> =
                bitmap(disk).map(|name| json!({ "node": node, "name": name })).into_iter().collect();
            let mut export =
                json!({ "type": "nbd", "id": export, "node-name": view, "name": export, "writable": false });
            if !bitmaps.is_empty() {
                export["bitmaps"] = bitmaps.into();
            }
            qmp.call("block-export-add", export)?;
        }
        let socket = snapshot.socket.clone();
        // The monitor may be somebody else's just now.
        let give_up = move || Qmp::connect(&socket).and_then(|mut qmp| release(&mut qmp)).map(drop);
        snapshot.room = Some(RoomWatch::start(&snapshot.scratch, give_up)?);
        if let Some(guard) = &mut snapshot.guard {
            guard.taken();
        }
        Ok(())
    }

    /// Step 4: from the jobs to the filters.
    fn hand_over(&mut self) -> Result<()> {
        let Ready { qmp, devices, .. } = self;
        for (i, device) in devices.iter().enumerate() {
            let of = |part: &str| format!("{OURS}{i}-{part}");
            let filter = json!({
                "driver": "copy-before-write", "node-name": of("filter"), "file": of("until"), "target": of("kept"),
                "on-cbw-error": "break-snapshot", "cbw-timeout": GUEST_WAITS_SECONDS,
            });
            qmp.call("blockdev-add", filter)?;
            put_on(qmp, device, &of("filter"))?;
            let access = json!({ "driver": "snapshot-access", "node-name": of("access"), "file": of("filter") });
            qmp.call("blockdev-add", access)?;
            qmp.call("job-cancel", json!({ "id": of("job") }))?;
        }
        until_gone(qmp, "query-jobs")?;
        for i in 0..devices.len() {
            let of = |part: &str| format!("{OURS}{i}-{part}");
            // Closing it would write what QEMU still has of it in its memory, and hide it if it cannot: opened again, it would lack what was
            // written of the instant. Reopened read-only it does so first, and says how that went.
            let still = json!({
                "driver": "qcow2", "node-name": of("view"), "file": of("first"), "backing": null, "read-only": true,
            });
            qmp.call("blockdev-reopen", json!({ "options": [still] }))?;
            qmp.call("blockdev-del", json!({ "node-name": of("view") }))?;
            let view = json!({
                "driver": "qcow2", "node-name": of("view"), "file": of("first"), "backing": of("access"), "read-only": true,
            });
            qmp.call("blockdev-add", view)?;
        }
        Ok(())
    }
}

/// The bitmap that noted what changed on a disk before.
fn bitmap(disk: &TakenDisk) -> Option<&str> {
    match &disk.reference {
        Ok(Noted::Bitmap(bitmap)) => Some(&bitmap.name),
        _ => None,
    }
}

impl Held for Snapshot {
    fn disks(&self) -> &[TakenDisk] {
        &self.disks
    }

    fn changed(&self, disk: &TakenDisk, _: &dyn Fn() -> Result<()>, add: &mut dyn FnMut(u64, u64)) -> Result<()> {
        match (&disk.origin, bitmap(disk)) {
            (Origin::Nbd(uri), Some(bitmap)) => dirty_ranges(uri, bitmap, add),
            (origin, _) => Err(Error::failed(format!("Source {origin}: expected a dirty bitmap, found none"))),
        }
    }

    // Where it fails, the watchdog goes on trying.
    fn end(&mut self, known: bool) -> Result<()> {
        let Some(guard) = self.guard.take() else { return Ok(()) };
        // It may be at the monitor, which has one client at a time.
        drop(self.room.take());
        let ended = self.take_out(known);
        let _ = std::fs::remove_dir_all(&self.dir);
        match ended {
            Ok(()) => guard.done(),
            // Dropped without a word, the watchdog begins.
            Err(_) => drop(guard),
        }
        ended
    }

    // Not where somebody took a filter of ours out.
    fn expect_whole(&self) -> Result<()> {
        if self.is_given_up() {
            return Err(self.found_no_room());
        }
        let mut qmp = Qmp::connect(&self.socket)?;
        let found = qmp.call("query-block", json!({}))?.to_string();
        let filters = (0..self.disks.len()).map(|i| format!("{OURS}{i}-filter"));
        let missing = filters.into_iter().find(|name| !found.contains(&format!("\"{name}\"")));
        match missing {
            None => Ok(()),
            Some(name) => Err(qmp
                .wrong(&format!("{name} to hold the snapshot until the end"), "that somebody took it out")
                .next("run the same command again: a new snapshot is taken, and what was copied is compared with it")),
        }
    }

    fn explain(&self, error: Error) -> Error {
        if error.kind != Kind::Failed {
            return error;
        }
        let socket = self.socket.display();
        if is_off(&self.socket) {
            return self.lost(&format!("QEMU at {socket} has ended")).because(error);
        }
        if self.is_given_up() {
            return self.found_no_room().because(error);
        }
        for Export { uri, .. } in &self.exports {
            let read = |disk: &NbdDisk| disk.probe().map(|probe| probe.read_at(&mut [0; 512], 0));
            match NbdDisk::open(uri).and_then(|disk| read(&disk)) {
                Ok(Ok(_)) => {}
                Ok(Err(cause)) if cause.raw_os_error() == Some(libc::EIO) || nbd::is_lost(&cause) => {}
                // QEMU gives no bytes of a snapshot that it gave up.
                Ok(Err(_)) => return self.found_no_room().because(error),
                Err(_) => return self.lost(&format!("QEMU at {socket} does not export it any more")).because(error),
            }
        }
        error
    }
}

impl Snapshot {
    fn take_out(&self, known: bool) -> Result<()> {
        // A machine that was switched off has nothing of ours.
        if is_off(&self.socket) {
            return Ok(());
        }
        let mut qmp = Qmp::connect(&self.socket)?;
        release(&mut qmp)?;
        for (disk, Export { node, .. }) in self.disks.iter().zip(&self.exports).filter(|_| known) {
            if let Some(name) = bitmap(disk) {
                // Somebody may have removed it already; the next snapshot removes older ones anyhow.
                let _ = qmp.call("block-dirty-bitmap-remove", json!({ "node": node, "name": name }));
            }
        }
        Ok(())
    }

    fn is_given_up(&self) -> bool {
        self.room.as_ref().is_some_and(RoomWatch::gave_up)
    }

    fn lost(&self, why: &str) -> Error {
        running::lost(&self.machine, why)
    }

    fn found_no_room(&self) -> Error {
        let scratch = self.scratch.display();
        self.lost(&format!(
            "what the machine overwrote did not go into {scratch}, which is full, slow or broken; the machine itself went on"
        ))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // Should it fail, the watchdog tries again.
        let _ = self.end(false);
    }
}

/// Takes everything of ours out of the QEMU behind `socket`, for whoever was killed; dirty bitmaps only if asked to.
///
/// # Errors
/// A MotionGear is at work there; as [`release`].
pub fn release_machine(socket: &Path, with_bitmaps: bool) -> Result<Released> {
    let socket = canonical(socket);
    if is_off(&socket) {
        return Ok(Released::default());
    }
    let _alone = alone(&socket)?;
    let mut qmp = Qmp::connect(&socket)?;
    let mut released = release(&mut qmp)?;
    if with_bitmaps {
        released.removed.extend(remove_all(&mut qmp)?);
    }
    Ok(released)
}

/// Keeps others of us away from the machine while the file is open.
fn alone(socket: &Path) -> Result<File> {
    let what = || format!("QEMU monitor {}", socket.display());
    let meta = std::fs::metadata(socket).context(what).map_err(|error| {
        error.next("give the path of the socket of -qmp unix:PATH,server=on,wait=off, with the machine running")
    })?;
    running::alone(&format!("qmp-{}-{}", meta.dev(), meta.ino()), &what)
}
