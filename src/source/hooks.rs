//! Hooks around a snapshot: `freeze, snapshot, thaw, discard`, each a command with a time limit.
//!
//! Order, and what each wrong order would break:
//! 1. the watchdog is started and has answered – a freeze without one would outlive a crash;
//! 2. freeze;
//! 3. snapshot – the only thing that a freeze spans;
//! 4. thaw – always, also after a failed freeze or snapshot: a hook that failed may have frozen half;
//! 5. the watchdog is told – not before thaw has succeeded, so that it repeats a thaw that failed;
//! 6. the watchdog's answer is read: had it thawed on its own (we were stopped too long), the snapshot is worthless.
//!
//! Where the platform takes the snapshot itself ([`super::tracking`]: QEMU, Ceph) it needs no hook: what it takes to do so is laid out
//! before step 1, and step 3 is the instant.
//!
//! Therefore **thaw may run twice, and without a freeze before it: it must be idempotent**.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::origin::Origin;
use super::tracking::{Held, Noted, Platform, Prepared};
use super::watchdog::{Orders, Watchdog};
use crate::error::{Error, IoContext, Result};
use crate::nbd::Uri;
use crate::plan::{HookSpec, HooksSpec};
use crate::ssh::Place;
use motiongear_manifest::tree::Digest;

/// Kind of the event that a snapshot hook named no place to read from, so that the disks themselves are read.
pub const READ_LIVE: &str = "read-live";
/// Kept of each of a hook's outputs; the rest is read and dropped, so that the hook never blocks on us.
pub const OUTPUT_LIMIT: usize = 64 << 10;
/// From SIGTERM to SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// For a killed process to vanish; one in an uninterruptible system call does not.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// For the last output after the hook has ended; a daemon that it left behind may hold the pipe for ever.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// For a machine's own snapshot; each of its steps has a limit, and most take milliseconds.
const OWN_LIMIT: Duration = Duration::from_secs(300);

/// The hooks of one machine, and the snapshot that they left.
pub struct Hooks {
    spec: HooksSpec,
    watchdog: Vec<std::ffi::OsString>,
    /// Takes the snapshot in place of a hook.
    own: Option<Box<dyn Platform>>,
    /// What it took, until it is discarded or the hooks are dropped.
    held: Mutex<Option<Box<dyn Held>>>,
}

/// What stands for the machine's disks while they are copied.
enum Made {
    /// No snapshot hook ran.
    Nothing,
    /// What the snapshot hook printed.
    Said(String),
    /// The platform's own is held.
    Own,
}

/// What the hooks are told, as environment.
#[derive(Debug, Clone, Default)]
pub struct HookContext {
    /// `MOTIONGEAR_MACHINE`.
    pub machine: String,
    /// `MOTIONGEAR_SHIPMENT`, the shipment's UUID.
    pub shipment: String,
    /// `MOTIONGEAR_GENERATION`.
    pub generation: u64,
    /// Names of the machine's disks that will be read; a snapshot hook's `DISK=PATH` lines must name these.
    pub disks: Vec<String>,
    /// The watchdog appends a line here when it had to thaw.
    pub log: Option<PathBuf>,
}

/// A snapshot that the hooks took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// When the source stood still, RFC 3339.
    pub point_in_time: String,
    /// Names this snapshot; another snapshot has another.
    pub id: Uuid,
    /// Disk → where to read it instead of its declared source; for all disks or for none.
    pub overrides: BTreeMap<String, Origin>,
    /// What ran, in order.
    pub events: Vec<HookEvent>,
    /// Whether the machine's platform gave it, and no hook.
    #[serde(default)]
    pub own: bool,
    /// Disk → by what is told what changed since.
    #[serde(default)]
    pub noted: BTreeMap<String, Noted>,
}

/// One run of one hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookEvent {
    /// `freeze`, `snapshot`, `thaw` or `discard`.
    pub hook: String,
    /// The program's name and the digest of the whole command line, which may hold secrets; of a platform, who was asked.
    pub command: Vec<String>,
    /// When it began, RFC 3339.
    pub started: String,
    /// How long it ran, milliseconds.
    pub milliseconds: u64,
    /// `exit 0`, `exit 3`, `signal 9`, `stopped after 30 s` …
    pub outcome: String,
    /// Whether it ended well and in time.
    pub ok: bool,
    /// Whether it printed more than is kept.
    #[serde(default)]
    pub cut: bool,
    /// Its standard output, at most 64 KiB.
    pub stdout: String,
    /// Its standard error, at most 64 KiB.
    pub stderr: String,
}

impl Hooks {
    /// The hooks of a plan. The watchdog is this very program with the hidden verb `thaw-watchdog`.
    pub fn new(spec: HooksSpec) -> Hooks {
        let watchdog = vec!["/proc/self/exe".into(), "thaw-watchdog".into()];
        Hooks { spec, watchdog, own: None, held: Mutex::new(None) }
    }

    /// With a snapshot that the machine itself gives, where it can.
    pub fn or_own(mut self, own: Option<Box<dyn Platform>>) -> Hooks {
        self.own = own;
        self
    }

    /// Another command as watchdog; it must end in [`super::watchdog::watchdog_main`].
    pub fn with_watchdog(mut self, command: Vec<std::ffi::OsString>) -> Hooks {
        self.watchdog = command;
        self
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.spec.is_empty() && self.own.is_none()
    }

    /// What stands behind an error of the copy, where it is the machine's own snapshot.
    pub fn explain(&self, error: Error) -> Error {
        match self.held.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(snapshot) => snapshot.explain(error),
            None => error,
        }
    }

    /// That a machine's own snapshot was of one instant until now.
    ///
    /// # Errors
    /// As [`Held::expect_whole`].
    pub fn expect_whole(&self) -> Result<()> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map_or(Ok(()), |held| held.expect_whole())
    }

    /// Whether the snapshot ends with this process.
    pub fn end_with_us(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.ends_with_us())
    }

    /// Whether a snapshot hook, or the machine itself, makes the copy consistent.
    pub fn has_snapshot(&self) -> bool {
        self.spec.snapshot.is_some() || self.own.is_some()
    }

    /// Whether a snapshot hook ran and said of no disk where to read it: the disks themselves are read.
    pub fn names_nothing(&self, taken: &SnapshotTaken) -> bool {
        self.spec.snapshot.is_some() && !taken.own && taken.overrides.is_empty()
    }

    /// Freezes, takes the snapshot, thaws.
    ///
    /// # Errors
    /// A hook failed or ran out of time, or the freeze was lifted before the snapshot was complete; the message holds the
    /// hook's output. Thaw has run (or the watchdog is at it), and a snapshot that was made was discarded.
    pub fn take_snapshot(&self, context: &HookContext) -> Result<SnapshotTaken> {
        let mut events = Vec::new();
        self.take_snapshot_into(context, &mut events)
    }

    /// As [`Hooks::take_snapshot`]; what ran is in `events` also when it failed.
    ///
    /// # Errors
    /// As [`Hooks::take_snapshot`].
    pub fn take_snapshot_into(&self, context: &HookContext, events: &mut Vec<HookEvent>) -> Result<SnapshotTaken> {
        // Before the freeze, which need not span it, and before the watchdog, whose time runs.
        let own = self.own.as_ref().map(|own| own.prepare()).transpose()?;
        let mut watchdog = match &self.spec.thaw {
            Some(thaw) => Some(Watchdog::start(&self.watchdog, &self.orders(thaw, context))?),
            None => None,
        };
        let frozen = self.hook("freeze", self.spec.freeze.as_ref(), context, watchdog.as_mut(), events);
        let point_in_time = Timestamp::now().to_string();
        let snapshot = frozen.and_then(|_| self.snapshot(own, context, watchdog.as_mut(), events));
        let thawed = self.hook("thaw", self.spec.thaw.as_ref(), context, watchdog.as_mut(), events);
        let made = matches!(snapshot, Ok(Made::Said(_) | Made::Own));
        let thaw_ok = thawed.is_ok();
        let result = snapshot.and_then(|made| {
            thawed?;
            Ok(made)
        });
        let undisturbed = match watchdog {
            Some(watchdog) if thaw_ok => watchdog.release(),
            // A thaw that failed is left to the watchdog, which repeats it: dropping it closes the pipe.
            _ => Ok(()),
        };
        let overrides = result.and_then(|made| {
            undisturbed?;
            match made {
                Made::Nothing => Ok((BTreeMap::new(), BTreeMap::new())),
                Made::Said(output) => Ok((overrides(&output, &context.disks)?, BTreeMap::new())),
                Made::Own => self.settle(),
            }
        });
        match overrides {
            Ok((overrides, noted)) => {
                let (id, own) = (Uuid::new_v4(), self.own.is_some());
                Ok(SnapshotTaken { point_in_time, id, overrides, events: events.clone(), own, noted })
            }
            Err(error) => {
                if made {
                    // Best effort: the first error is the one to tell, the event records how this went.
                    let _ = self.hook("discard", self.spec.discard.as_ref(), context, None, events);
                    let _ = self.end_own(false);
                }
                Err(error)
            }
        }
    }

    /// Removes the snapshot after the copy; nothing where there is no such hook.
    ///
    /// # Errors
    /// The hook failed or ran out of time; the snapshot may still take up room on the source.
    pub fn discard(&self, context: &HookContext) -> Result<Option<HookEvent>> {
        let mut events = Vec::new();
        self.end_own(true)?;
        self.hook("discard", self.spec.discard.as_ref(), context, None, &mut events)?;
        Ok(events.pop())
    }

    /// The snapshot, by hook or by the machine itself.
    fn snapshot(
        &self,
        own: Option<Box<dyn Prepared>>,
        context: &HookContext,
        watchdog: Option<&mut Watchdog>,
        events: &mut Vec<HookEvent>,
    ) -> Result<Made> {
        let Some(own) = own else {
            let output = self.hook("snapshot", self.spec.snapshot.as_ref(), context, watchdog, events)?;
            return Ok(output.map_or(Made::Nothing, Made::Said));
        };
        let (began, started) = (Instant::now(), Timestamp::now().to_string());
        let taken = own.take();
        events.push(HookEvent {
            hook: "snapshot".into(),
            command: self.own.as_ref().map(|own| own.asked()).unwrap_or_default(),
            started,
            milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            outcome: taken.as_ref().map_or_else(|error| error.message.clone(), |_| "taken".into()),
            ok: taken.is_ok(),
            cut: false,
            stdout: String::new(),
            stderr: String::new(),
        });
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken?);
        Ok(Made::Own)
    }

    /// Where the platform's own snapshot is read, and by what is told what changes from now on.
    fn settle(&self) -> Result<(BTreeMap<String, Origin>, BTreeMap<String, Noted>)> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = held.as_mut() else { return Ok((BTreeMap::new(), BTreeMap::new())) };
        held.settle()?;
        let disks = held.disks();
        let overrides = disks.iter().map(|disk| (disk.name.clone(), disk.origin.clone())).collect();
        let noted = disks.iter().filter_map(|disk| Some((disk.name.clone(), disk.new.clone()?))).collect();
        Ok((overrides, noted))
    }

    fn end_own(&self, known: bool) -> Result<()> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.map_or(Ok(()), |mut held| held.end(known))
    }

    fn orders(&self, thaw: &HookSpec, context: &HookContext) -> Orders {
        let time = |spec: &Option<HookSpec>| {
            spec.as_ref().map_or(Duration::ZERO, |spec| spec.timeout + TERM_GRACE + KILL_GRACE)
        };
        // Of this machine and this way to thaw it, whatever state directory and shipment.
        let turn = Digest::of(format!("{}\0{}", context.machine, thaw.command.join("\0")).as_bytes());
        Orders {
            thaw: thaw.clone(),
            // We keep the hooks' limits ourselves; beyond their sum we are stopped or stuck.
            limit: time(&self.spec.freeze)
                + time(&self.spec.snapshot)
                + time(&self.spec.thaw)
                + self.own.as_ref().map_or(Duration::ZERO, |_| OWN_LIMIT),
            environment: environment("thaw", context),
            log: context.log.clone(),
            turn: Some(format!("thaw-{}", &turn.to_string()[..32])),
        }
    }

    /// Runs one hook where there is one; its standard output.
    fn hook(
        &self,
        name: &str,
        spec: Option<&HookSpec>,
        context: &HookContext,
        mut watchdog: Option<&mut Watchdog>,
        events: &mut Vec<HookEvent>,
    ) -> Result<Option<String>> {
        let Some(spec) = spec else { return Ok(None) };
        let event = run(name, spec, &environment(name, context), |group| {
            if let Some(watchdog) = watchdog.as_mut() {
                watchdog.running(name, group);
            }
        })?;
        if let Some(watchdog) = watchdog {
            watchdog.ended(name, event.ok);
        }
        let failure = match event.ok {
            false => Some(event.error(&context.machine)),
            // What was cut off may have named a disk.
            true if name == "snapshot" && event.cut => Some(
                Error::failed(format!(
                    "Hook snapshot of machine {}: it printed more than {} KiB, and what lies beyond is not read",
                    context.machine,
                    OUTPUT_LIMIT >> 10
                ))
                .next("Let the hook print less: its progress to standard error, DISK=PATH to standard output"),
            ),
            true => None,
        };
        let output = event.stdout.clone();
        events.push(event);
        failure.map_or(Ok(Some(output)), Err)
    }
}

impl HookEvent {
    fn error(&self, machine: &str) -> Error {
        let tail = |text: &str| {
            let from = text.char_indices().rev().nth(1999).map_or(0, |(at, _)| at);
            text[from..].trim().to_owned()
        };
        let said: Vec<String> =
            [tail(&self.stderr), tail(&self.stdout)].into_iter().filter(|t| !t.is_empty()).collect();
        let said = if said.is_empty() { "it said nothing".into() } else { format!("it said: {}", said.join(" / ")) };
        // The message stands in the manifest, too; what the hook printed is for the person at the keyboard only.
        let error = Error::failed(format!(
            "Hook {} of machine {machine} ({}): {}",
            self.hook,
            self.command.join(" "),
            self.outcome
        ))
        .because(said);
        match self.hook.as_str() {
            "thaw" => {
                error.next("Thaw the source by hand NOW if it still stands; the watchdog keeps trying for a while")
            }
            "discard" => error.next("Remove the snapshot by hand, or it fills up"),
            _ => error.next("The source was thawed; correct the hook and run the command again"),
        }
    }
}

fn environment(hook: &str, context: &HookContext) -> BTreeMap<String, String> {
    [
        ("MOTIONGEAR_HOOK", hook.to_owned()),
        ("MOTIONGEAR_MACHINE", context.machine.clone()),
        ("MOTIONGEAR_SHIPMENT", context.shipment.clone()),
        ("MOTIONGEAR_GENERATION", context.generation.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Runs a command in a process group of its own within its time limit. `started` learns the group.
///
/// # Errors
/// It cannot be started. A bad ending is in the event.
pub(super) fn run(
    name: &str,
    spec: &HookSpec,
    environment: &BTreeMap<String, String>,
    started: impl FnOnce(i32),
) -> Result<HookEvent> {
    let Some((program, arguments)) = spec.command.split_first() else {
        return Err(Error::usage(format!("Hook {name}: expected a command, found none")));
    };
    let began = Instant::now();
    let at = Timestamp::now().to_string();
    let mut child = crate::program::command(program)
        .args(arguments)
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C at our terminal must not end a freeze half way; and the whole group can be ended at once.
        .process_group(0)
        .spawn()
        .context(|| format!("Hook {name}: starting {program}"))?;
    let stdout = child.stdout.take().map(Capture::of);
    let stderr = child.stderr.take().map(Capture::of);
    started(i32::try_from(child.id()).unwrap_or(0));
    let (outcome, ok) = match wait(&mut child, spec.timeout) {
        Some(status) => (ending(status), status.success()),
        None => {
            let limit = spec.timeout.as_secs();
            match end_group(&mut child) {
                true => (format!("stopped after {limit} s"), false),
                false => (format!("stopped after {limit} s, but it hangs in the kernel"), false),
            }
        }
    };
    let until = Instant::now() + OUTPUT_GRACE;
    let text = |capture: Option<Capture>| capture.map(|capture| capture.text(until)).unwrap_or_default();
    let ((stdout, cut), (stderr, _)) = (text(stdout), text(stderr));
    Ok(HookEvent {
        hook: name.to_owned(),
        command: label(&spec.command),
        started: at,
        milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        outcome,
        ok,
        cut,
        stdout,
        stderr,
    })
}

/// What may be told of a command line: the program's name, and a digest by which the same command is recognised.
fn label(command: &[String]) -> Vec<String> {
    let program = command.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let digest = Digest::of(command.join("\0").as_bytes()).to_string();
    vec![program.to_string_lossy().into_owned(), format!("blake3:{}", &digest[..16])]
}

/// Waits up to `limit`; none when time ran out.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + limit;
    let mut nap = Duration::from_millis(2);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => {}
            _ => return None,
        }
        std::thread::sleep(nap.min(until.saturating_duration_since(Instant::now())));
        nap = (nap * 2).min(Duration::from_millis(50));
    }
}

/// SIGTERM, then SIGKILL to the whole group; whether the child is gone.
fn end_group(child: &mut Child) -> bool {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return false };
    // The group outlives its leader only by its own choice; ESRCH is what we want.
    let _ = kill_process_group(group, Signal::TERM);
    let gone = wait(child, TERM_GRACE).is_some();
    // The leader may have left children behind that ignore SIGTERM.
    let _ = kill_process_group(group, Signal::KILL);
    gone || wait(child, KILL_GRACE).is_some()
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown ending".into(),
    }
}

/// Drains a pipe on a thread of its own and keeps the first 64 KiB.
struct Capture {
    /// What it said, and whether there was more.
    kept: Arc<Mutex<(Vec<u8>, bool)>>,
    done: crossbeam_channel::Receiver<()>,
}

impl Capture {
    fn of(mut pipe: impl Read + Send + 'static) -> Capture {
        let kept = Arc::new(Mutex::new((Vec::new(), false)));
        let (end, done) = crossbeam_channel::bounded(1);
        let into = Arc::clone(&kept);
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(got) => {
                        let mut kept = into.lock().unwrap_or_else(PoisonError::into_inner);
                        let room = OUTPUT_LIMIT.saturating_sub(kept.0.len()).min(got);
                        kept.0.extend_from_slice(&buffer[..room]);
                        kept.1 |= room < got;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            let _ = end.send(());
        });
        Capture { kept, done }
    }

    fn text(&self, until: Instant) -> (String, bool) {
        let _ = self.done.recv_deadline(until);
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (String::from_utf8_lossy(&kept.0).into_owned(), kept.1)
    }
}

/// `DISK=PATH` lines of a snapshot hook, `DISK=URI` of an export or `DISK=ssh:HOST:/PATH`. Other lines (lvcreate talks too) are passed
/// over, but a line that names a disk and no place for it, a place for a disk that there is not, or for some disks only, is an error: a
/// live disk would be read and called a snapshot.
fn overrides(output: &str, disks: &[String]) -> Result<BTreeMap<String, Origin>> {
    let mut found = BTreeMap::new();
    let is_place = |text: &str| text.starts_with('/') || Uri::is_one(text) || Place::is_one(text);
    let wrong = |line: &str| {
        Error::failed(format!("Hook snapshot: no place to read from in the line '{line}' of its output"))
            .next("Let the hook print DISK=PATH, an absolute path without quotes, with the disks' names as in the plan")
    };
    let mut lone = None;
    for line in output.lines().map(str::trim) {
        let named = line
            .split_once('=')
            .filter(|(name, place)| !name.is_empty() && name.trim_end() == *name && is_place(place));
        let Some((name, path)) = named else {
            let first =
                line.trim_start_matches(['"', '\'']).split(['=', ':', ' ', '\t', '"', '\'']).next().unwrap_or_default();
            let assigns = line
                .trim_start_matches(['"', '\''])
                .strip_prefix(first)
                .map(|rest| rest.trim_start_matches(['"', '\'', ' ', '\t']));
            if disks.iter().any(|disk| disk == first) && assigns.is_some_and(|rest| rest.starts_with(['=', ':'])) {
                return Err(wrong(line));
            }
            if line.starts_with('/') && std::fs::exists(line).unwrap_or(false) {
                lone = Some(line);
            }
            continue;
        };
        if !disks.iter().any(|disk| disk == name) {
            return Err(Error::failed(format!(
                "Hook snapshot: expected DISK=PATH with one of the disks {}, found {name}={path}",
                disks.join(", ")
            ))
            .next("Let the hook print the disks' names as in the plan"));
        }
        if let Some(earlier) = found.insert(name.to_owned(), Origin::parse(path)?) {
            return Err(Error::failed(format!(
                "Hook snapshot: expected one path for disk {name}, found {} and {path}",
                earlier
            )));
        }
    }
    // A path alone is meant to be one, and nobody knows of which disk.
    if let Some(line) = lone.filter(|_| found.is_empty()) {
        return Err(wrong(line));
    }
    let missing: Vec<&str> = disks.iter().map(String::as_str).filter(|disk| !found.contains_key(*disk)).collect();
    if !found.is_empty() && !missing.is_empty() {
        return Err(Error::failed(format!(
            "Hook snapshot: expected a path for every disk or for none, found none for {}",
            missing.join(", ")
        ))
        .next("Let the hook print DISK=PATH for these too (their own source, where it is a snapshot already)"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn shell(script: &str, seconds: u64) -> HookSpec {
        HookSpec { command: names(&["sh", "-c", script]), timeout: Duration::from_secs(seconds) }
    }

    #[test]
    fn override_lines_name_every_disk_or_none() {
        let disks = names(&["sda", "sdb"]);
        let good = overrides("  Logical volume created.\nsda=/dev/vg/a\nX=y\nsdb=/dev/vg/b\n", &disks).unwrap();
        assert_eq!(good["sdb"], Origin::Path("/dev/vg/b".into()));
        let uri = "nbd://kvm7/snapshot-b";
        let exported = overrides(&format!("sda=/dev/vg/a\nsdb={uri}\n"), &disks).unwrap();
        assert!(matches!(&exported["sdb"], Origin::Nbd(found) if found.to_string() == uri));
        let far = overrides("sda=ssh:db07:/dev/vg/a\nsdb=ssh:db07:/dev/vg/b\n", &disks).unwrap();
        assert!(matches!(&far["sdb"], Origin::Ssh(place) if place.path() == "/dev/vg/b"));
        assert!(overrides("nothing\nsda is frozen\n", &disks).unwrap().is_empty());
        assert_eq!(overrides("  sda=/dev/vg/a\n sdb=/dev/vg/b", &disks).unwrap().len(), 2);
        for line in [
            "sda=",
            "sda=snap.raw",
            "sda: /dev/vg/a",
            "sda=\"/dev/vg/a\"",
            "'sda'=/dev/vg/a",
            "sda = /dev/vg/a",
            "/dev/null",
        ] {
            assert!(overrides(&format!("{line}\n"), &disks).is_err(), "{line}");
            assert!(
                overrides(&format!("sda=/a\nsdb=/b\n{line}\n"), &disks).is_err() != (line == "/dev/null"),
                "{line}"
            );
        }
        assert!(overrides("sda=/a\n", &disks).unwrap_err().message.contains("sdb"));
        assert!(overrides("sdc=/a\n", &disks).unwrap_err().message.contains("sdc=/a"));
        assert!(overrides("sda=/a\nsda=/b\nsdb=/c\n", &disks).is_err());
    }

    #[test]
    fn a_hook_that_overstays_is_ended_with_its_children() {
        let mark = format!("{}", 86_400 + std::process::id() % 1000);
        let began = Instant::now();
        let event =
            run("freeze", &shell(&format!("sleep {mark} & sleep {mark}"), 1), &BTreeMap::new(), |_| {}).unwrap();
        assert!(!event.ok && event.outcome.starts_with("stopped after 1 s"), "{event:?}");
        assert!(began.elapsed() < Duration::from_secs(8));
    }

    #[test]
    fn output_is_bounded_and_never_blocks_the_hook() {
        let event =
            run("snapshot", &shell("yes | head -c 1000000; echo oops >&2; exit 3", 20), &BTreeMap::new(), |_| {})
                .unwrap();
        assert_eq!((event.stdout.len(), event.outcome.as_str(), event.cut), (OUTPUT_LIMIT, "exit 3", true));
        let error = event.error("db01");
        assert!(error.to_string().contains("oops") && !error.message.contains("oops"));
    }

    #[test]
    fn a_daemon_left_behind_does_not_hold_us() {
        let began = Instant::now();
        let event = run("snapshot", &shell("sleep 20 & echo sda=/x", 10), &BTreeMap::new(), |_| {}).unwrap();
        assert!(event.ok && event.stdout == "sda=/x\n");
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_missing_program_is_named() {
        let spec = HookSpec { command: names(&["/nonexistent/hook"]), timeout: Duration::from_secs(1) };
        assert!(run("thaw", &spec, &BTreeMap::new(), |_| {}).unwrap_err().to_string().contains("/nonexistent/hook"));
    }
}
