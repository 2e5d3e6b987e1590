//! All disks of a machine at one instant, as read-only exports of its QEMU, by a backup job of libvirt in pull mode.
//!
//! Order, and what each step is for:
//! 1. one MotionGear at a time for a machine; a job of ours that was left is ended, one of somebody else refused; a watchdog ends ours
//!    should we be killed;
//! 2. checkpoints that nobody needs are removed, and those that tell of changes judged; a directory is made that the machine's QEMU can
//!    put its socket in;
//! 3. **one `virsh backup-begin`** makes the scratch files, begins the job and the new checkpoint for all disks in one transaction: the
//!    point in time;
//! 4. the snapshot is read from QEMU's NBD server until the job is aborted, which removes the exports, the scratch files and the job.
//!
//! The scratch files take what the guest overwrites. Should they find no room, a write of the guest would fail and libvirt's QEMU pause
//! it: therefore the snapshot is given up while the reserve is still there. Unlike with [`crate::qmp`], libvirt has no filter that
//! would give up the snapshot instead.

use super::domain::Domain;
use super::job::{self, Job};
use super::{checkpoint, virsh, xml};
use crate::error::{Error, IoContext, Kind, Result};
use crate::nbd::{self, NbdDisk, Uri, dirty_ranges, private_directory};
use crate::qmp::Released;
use crate::source::Origin;
use crate::source::room::{RoomWatch, expect_room};
use crate::source::running::{Around, Guard, alone, lost};
use crate::source::tracking::{Held, Noted, OURS, Platform, Prepared, TakenDisk, Tracking};
use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Others may pass through, and look at nothing.
const PASS: u32 = 0o711;
/// For a machine whose QEMU ends to be known as off.
const OFF_WITHIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);

/// One disk that is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What we call it.
    pub name: String,
    /// What libvirt calls it.
    pub target: String,
    /// Of its checkpoints.
    pub tracking: Tracking,
}

/// A snapshot to take.
pub struct Taking {
    /// The machine's name or UUID in libvirt.
    pub domain: String,
    /// Its disks.
    pub disks: Vec<Wish>,
    /// All else.
    pub around: Around,
}

/// A snapshot that is there until it is ended or dropped.
struct Snapshot {
    domain: Domain,
    wishes: Vec<Wish>,
    disks: Vec<TakenDisk>,
    /// The checkpoint that it begins.
    checkpoint: Option<String>,
    /// Those that are not needed when the result is known.
    outlived: Vec<String>,
    machine: String,
    scratch: PathBuf,
    dir: PathBuf,
    socket: PathBuf,
    /// `None` until it is taken, and once it is taken out.
    room: Option<RoomWatch>,
    /// `None` once nothing is there any more.
    guard: Option<Guard>,
}

/// All that can be done before the instant.
struct Ready {
    snapshot: Snapshot,
    words: Vec<String>,
}

impl Platform for Taking {
    fn prepare(&self) -> Result<Box<dyn Prepared>> {
        Ok(Box::new(self.ready()?))
    }

    fn asked(&self) -> Vec<String> {
        vec!["virsh".into(), "backup-begin".into(), self.domain.clone()]
    }

    fn ends_with_us(&self) -> bool {
        true
    }
}

impl Taking {
    /// Steps 1 and 2. The guest notices nothing.
    fn ready(&self) -> Result<Ready> {
        let Around { machine, scratch, log } = &self.around;
        let domain = Domain::look(&self.domain)?;
        domain.expect_running()?;
        let alone = alone_with(&domain)?;
        let mut bytes = 0u64;
        for wish in &self.disks {
            bytes = bytes.saturating_add(domain.bytes(domain.find(&wish.target)?)?);
        }
        domain.expect_backups(&self.disks.iter().map(|wish| wish.target.as_str()).collect::<Vec<_>>())?;
        domain.expect_enters(scratch)?;
        job::make_way(&domain)?;
        clear_scratch(scratch, domain.uuid)?;
        expect_room(scratch, bytes)?;
        let guard = Guard::start(alone, &format!("libvirt:{}", domain.uuid), machine, log.clone())?;
        let dir = private_directory()?;
        let socket = dir.join("qemu").join("socket");
        let mut snapshot = Snapshot {
            domain,
            wishes: self.disks.clone(),
            disks: Vec::new(),
            checkpoint: None,
            outlived: Vec::new(),
            machine: machine.clone(),
            scratch: scratch.clone(),
            dir,
            socket,
            room: None,
            guard: Some(guard),
        };
        // Where it fails, what was laid out is taken out again; where that fails too, the watchdog goes on.
        let words = snapshot.lay_out()?;
        Ok(Ready { snapshot, words })
    }
}

impl Prepared for Ready {
    fn take(mut self: Box<Self>) -> Result<Box<dyn Held>> {
        // Where it fails, all of it is taken out again.
        self.begin()?;
        Ok(Box::new(self.snapshot))
    }
}

impl Ready {
    /// Step 3.
    fn begin(&mut self) -> Result<()> {
        let Ready { snapshot, words } = self;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = virsh::call(&words)?;
        if ended.code != Some(0) {
            let error = virsh::refused(&words, &ended);
            return Err(match ended.words.contains("ermission denied") {
                true => error.next(
                    "the machine's QEMU must be let into both the socket's and the scratch directory, by AppArmor or SELinux too: see the manual",
                ),
                false => error,
            });
        }
        let domain = snapshot.domain.clone();
        snapshot.room = Some(RoomWatch::start(&snapshot.scratch, move || job::end(&domain).map(drop))?);
        if let Some(guard) = &mut snapshot.guard {
            guard.taken();
        }
        Ok(())
    }
}

impl Snapshot {
    /// Step 2; the words for step 3.
    fn lay_out(&mut self) -> Result<Vec<String>> {
        let prepared = checkpoint::prepare(&self.domain, &self.wishes)?;
        self.outlived = prepared
            .references
            .iter()
            .flatten()
            .filter(|known| known.is_within(&self.wishes))
            .map(|known| known.mark.checkpoint.clone())
            .collect();
        self.outlived.sort();
        self.outlived.dedup();
        for (i, (wish, reference)) in self.wishes.iter().zip(&prepared.references).enumerate() {
            let reference = reference.as_ref().map(|known| Noted::Checkpoint(known.mark.clone())).map_err(|why| *why);
            let origin = Origin::Nbd(Uri::of_socket(&self.socket, &export(i)));
            self.disks.push(TakenDisk { name: wish.name.clone(), origin, new: None, reference });
        }
        self.let_in()?;
        let mut words = vec!["backup-begin".to_owned(), self.domain.option()];
        let mut file = |name: &str, text: String| -> Result<()> {
            let path = self.dir.join(format!("{name}.xml"));
            std::fs::write(&path, text).context(|| format!("File {}", path.display()))?;
            words.push(format!("--{name}xml={}", path.display()));
            Ok(())
        };
        file("backup", self.wanted()?)?;
        if let Some(name) = &prepared.name {
            file("checkpoint", checkpoint::wanted(&self.domain, &self.wishes, name)?)?;
        }
        self.checkpoint = prepared.name;
        Ok(words)
    }

    /// Makes a directory that the machine's QEMU can make its socket in, and nobody else but us. It lies below our own, where the way leads
    /// through, and others can only pass.
    fn let_in(&self) -> Result<()> {
        let inner = self.dir.join("qemu");
        let what = || format!("Directory {} for the socket of the machine's QEMU", inner.display());
        DirBuilder::new().mode(0o700).create(&inner).context(what)?;
        let own = rustix::process::geteuid().as_raw();
        let Some((user, group)) = self.domain.owner.filter(|(user, _)| *user != own && *user != 0) else {
            return Ok(());
        };
        if self.dir.starts_with(nbd::RUN) {
            std::fs::set_permissions(nbd::RUN, Permissions::from_mode(PASS)).context(what)?;
        }
        std::fs::set_permissions(&self.dir, Permissions::from_mode(PASS)).context(what)?;
        std::os::unix::fs::chown(&inner, Some(user), Some(group)).context(what).map_err(|error| {
            error.next(format!("the machine's QEMU runs as user {user}: run motiongear as root, or as that user"))
        })
    }

    /// What the job is asked for with.
    fn wanted(&self) -> Result<String> {
        let path = |path: &Path| -> Result<String> {
            let text = path.to_str().ok_or_else(|| {
                Error::usage(format!("Path {}: expected Unicode characters, found others", path.display()))
            })?;
            xml::escaped(text)
        };
        let mut disks = String::new();
        for disk in &self.domain.disks {
            let target = xml::escaped(&disk.target)?;
            let Some(i) = self.wishes.iter().position(|wish| wish.target == disk.target) else {
                disks += &format!("<disk name='{target}' backup='no'/>");
                continue;
            };
            let mode = match &self.disks[i].reference {
                Ok(Noted::Checkpoint(mark)) => {
                    format!("backupmode='incremental' incremental='{}'", xml::escaped(&mark.checkpoint)?)
                }
                _ => "backupmode='full'".to_owned(),
            };
            let scratch = path(&self.scratch.join(format!("{}{i}", scratch_prefix(self.domain.uuid))))?;
            disks += &format!(
                "<disk name='{target}' backup='yes' type='file' {mode} exportname='{}'><scratch file='{scratch}'/></disk>",
                export(i)
            );
        }
        let socket = path(&self.socket)?;
        Ok(format!(
            "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>{disks}</disks></domainbackup>"
        ))
    }

    fn take_out(&self, known: bool) -> Result<()> {
        // A machine that was shut off has no job, and its checkpoints wait.
        if !self.is_on() {
            return Ok(());
        }
        job::end(&self.domain)?;
        for name in self.outlived.iter().filter(|_| known) {
            // Somebody may have removed it already; the next snapshot removes older ones anyhow.
            let _ = checkpoint::remove(&self.domain, name);
        }
        Ok(())
    }

    fn is_on(&self) -> bool {
        Domain::look(&self.domain.uuid.to_string()).is_ok_and(|domain| domain.running)
    }

    /// Whether the job is there that we began.
    fn is_held(&self) -> Result<bool> {
        let job = Job::look(&self.domain)?;
        Ok(job.is_some_and(|job| job.is_ours() && job.socket.as_deref() == self.socket.to_str()))
    }

    fn is_given_up(&self) -> bool {
        self.room.as_ref().is_some_and(RoomWatch::gave_up)
    }

    fn lost(&self, why: &str) -> Error {
        lost(&self.machine, why)
    }

    fn found_no_room(&self) -> Error {
        let scratch = self.scratch.display();
        self.lost(&format!(
            "what the machine overwrites was about to fill {scratch}; so it was given up, and the machine itself went on"
        ))
    }
}

impl Held for Snapshot {
    fn settle(&mut self) -> Result<()> {
        let Some(name) = &self.checkpoint else { return Ok(()) };
        let known = checkpoint::look(&self.domain, name)?;
        for (wish, disk) in self.wishes.iter().zip(&mut self.disks) {
            if self.domain.find(&wish.target)?.keeps_checkpoints() {
                disk.new = Some(Noted::Checkpoint(known.mark.clone()));
            }
        }
        Ok(())
    }

    fn disks(&self) -> &[TakenDisk] {
        &self.disks
    }

    fn changed(&self, disk: &TakenDisk, _: &dyn Fn() -> Result<()>, add: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let wish = self.wishes.iter().find(|wish| wish.name == disk.name);
        match (&disk.origin, &disk.reference, wish) {
            // So libvirt calls what it merged of all since the checkpoint.
            (Origin::Nbd(uri), Ok(_), Some(wish)) => dirty_ranges(uri, &format!("backup-{}", wish.target), add),
            (origin, ..) => Err(Error::failed(format!("Source {origin}: expected a checkpoint, found none"))),
        }
    }

    fn expect_whole(&self) -> Result<()> {
        if self.is_given_up() {
            return Err(self.found_no_room());
        }
        match self.is_held()? {
            true => Ok(()),
            false => Err(self.lost("somebody ended its backup job")),
        }
    }

    fn explain(&self, error: Error) -> Error {
        if error.kind != Kind::Failed {
            return error;
        }
        if self.is_given_up() {
            return self.found_no_room().because(error);
        }
        // A QEMU that is about to end closes its exports and cancels its jobs before libvirt knows that the machine is off.
        let began = Instant::now();
        loop {
            let held = matches!(self.is_held(), Ok(true));
            if held
                && self.disks.iter().all(|disk| matches!(&disk.origin, Origin::Nbd(uri) if NbdDisk::open(uri).is_ok()))
            {
                return error;
            }
            if !self.is_on() {
                return self.lost("the machine has ended").because(error);
            }
            if began.elapsed() > OFF_WITHIN {
                let why = if held {
                    "QEMU does not export it any more"
                } else {
                    "libvirt has no backup job of ours any more"
                };
                return self.lost(why).because(error);
            }
            std::thread::sleep(LOOK);
        }
    }

    // Where it fails, the watchdog goes on trying.
    fn end(&mut self, known: bool) -> Result<()> {
        let Some(guard) = self.guard.take() else { return Ok(()) };
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
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // Should it fail, the watchdog tries again.
        let _ = self.end(false);
    }
}

fn export(i: usize) -> String {
    format!("{OURS}{i}-disk")
}

/// What the names of the machine's scratch files begin with.
fn scratch_prefix(domain: Uuid) -> String {
    format!("{OURS}{domain}-")
}

/// Removes scratch files of this machine that were left where the whole host ended; libvirt removes them with the job otherwise. Nobody
/// uses them: we are alone with the machine, and it has no job.
fn clear_scratch(dir: &Path, domain: Uuid) -> Result<()> {
    let what = || format!("Scratch directory {}", dir.display());
    let prefix = scratch_prefix(domain);
    for entry in std::fs::read_dir(dir).context(what)?.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            std::fs::remove_file(entry.path()).context(what)?;
        }
    }
    Ok(())
}

/// Keeps others of us away from the machine while the file is open.
fn alone_with(domain: &Domain) -> Result<File> {
    alone(&format!("libvirt-{}", domain.uuid), &|| format!("Machine {}", domain.shown()))
}

/// Ends a backup job of ours, for whoever was killed; removes checkpoints of ours only if asked to. A job of somebody else is left alone.
///
/// # Errors
/// A MotionGear is at work there; libvirt refuses or does not answer.
pub fn release_domain(name: &str, with_checkpoints: bool) -> Result<Released> {
    let domain = match Domain::look(name) {
        Ok(domain) => domain,
        // So the watchdog names it: what was gone with its last run has nothing of ours.
        Err(error) if Uuid::parse_str(name).is_ok() && error.message.contains("failed to get domain") => {
            return Ok(Released::default());
        }
        Err(error) => return Err(error),
    };
    let _alone = alone_with(&domain)?;
    let mut removed = job::end(&domain)?;
    if with_checkpoints {
        removed.extend(checkpoint::remove_all(&domain)?);
    }
    Ok(Released { removed })
}
