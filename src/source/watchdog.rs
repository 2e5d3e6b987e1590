//! The thaw watchdog: a process of its own that thaws the source when MotionGear cannot.
//!
//! A frozen database is an outage. Whatever ends MotionGear between freeze and thaw – SIGKILL, the OOM killer, a panic, a
//! stopped process – closes its pipe to the watchdog or lets the time limit pass, and then the watchdog thaws. It has a
//! session of its own and ignores SIGHUP, SIGINT and SIGTERM, so that what ends the terminal does not end it. Its orders
//! come over the pipe, never on its command line, where everybody could read them.
//!
//! Lines to the watchdog, JSON: first [`Orders`], then [`Note`]s. Lines back: `ready`, and in answer to `thawed` either
//! `quiet` or `fired`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde::{Deserialize, Serialize};

use super::{hooks, running};
use crate::error::{Error, IoContext, Result};
use crate::plan::HookSpec;

/// For the watchdog to say `ready`, or to answer `thawed`.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// For the watchdog of an earlier run to come to its end.
const TURN_LIMIT: Duration = Duration::from_secs(75);
/// Longest line between the two.
const LINE_LIMIT: u64 = 1 << 20;
/// How often a failing thaw is repeated, and after what pause.
const THAW_ATTEMPTS: u32 = 20;
const THAW_PAUSE: Duration = Duration::from_secs(3);

/// What the watchdog is to do, sent before anything is frozen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    /// What lifts the freeze.
    pub thaw: HookSpec,
    /// From now to `thawed`; beyond it the watchdog thaws.
    pub limit: Duration,
    /// For the thaw hook.
    pub environment: BTreeMap<String, String>,
    /// Gets a line when the watchdog had to act.
    pub log: Option<PathBuf>,
    /// What is held as long as it may thaw: nothing is frozen while the watchdog of an earlier run still repeats a thaw, which would lift
    /// the new freeze in the middle of its snapshot.
    #[serde(default)]
    pub turn: Option<String>,
}

/// What the watchdog is told on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Note {
    /// A hook runs in this process group: it must not freeze any more once we thaw.
    Running { hook: String, group: i32 },
    /// That hook has ended.
    Ended { hook: String, ok: bool },
    /// All is well, the watchdog can go.
    Thawed,
}

/// The watchdog as its parent sees it. Dropping it without [`Watchdog::release`] closes the pipe: it thaws.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Watchdog {
    /// Starts `command` and waits until it is on guard.
    ///
    /// # Errors
    /// It cannot be started or does not answer; nothing may be frozen then.
    pub fn start(command: &[OsString], orders: &Orders) -> Result<Watchdog> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Error::failed("Thaw watchdog: expected a command, found none"));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context(|| format!("Thaw watchdog: starting {}", program.to_string_lossy()))?;
        let (Some(pipe), Some(back)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::failed("Thaw watchdog: expected pipes to it, found none"));
        };
        let (answer, answers) = crossbeam_channel::unbounded();
        std::thread::spawn(move || {
            for line in BufReader::new(back).lines().map_while(|line| line.ok()) {
                if answer.send(line).is_err() {
                    break;
                }
            }
        });
        let mut watchdog = Watchdog { child, orders: Some(pipe), answers };
        watchdog.send(orders).context(|| "Thaw watchdog: giving it its orders".into())?;
        match watchdog.answer(&["ready", "busy"], TURN_LIMIT + ANSWER_LIMIT).as_deref() {
            Some("ready") => Ok(watchdog),
            Some(_) => Err(Error::failed(
                "Thaw watchdog: that of an earlier run still thaws this machine, and would lift the new freeze",
            )
            .next(
                "Thaw the source by hand, wait until that process (thaw-watchdog) has ended, and run the command again",
            )),
            None => Err(Error::failed(format!(
                "Thaw watchdog: expected 'ready' within {} s, found nothing",
                (TURN_LIMIT + ANSWER_LIMIT).as_secs()
            ))
            .next("Nothing was frozen; run the command again")),
        }
    }

    fn send(&mut self, line: &impl Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.orders.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?.write_all(&text)
    }

    /// The first line that is one of `wanted`; what else is on its standard output is passed over.
    fn answer(&self, wanted: &[&str], limit: Duration) -> Option<String> {
        let until = Instant::now() + limit;
        loop {
            let line = self.answers.recv_deadline(until).ok()?;
            if wanted.contains(&line.as_str()) {
                return Some(line);
            }
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A hook runs in this process group. A watchdog that is gone shows at [`Watchdog::release`].
    pub(super) fn running(&mut self, hook: &str, group: i32) {
        let _ = self.send(&Note::Running { hook: hook.to_owned(), group });
    }

    /// The hook has ended.
    pub(crate) fn ended(&mut self, hook: &str, ok: bool) {
        let _ = self.send(&Note::Ended { hook: hook.to_owned(), ok });
    }

    /// Thaw has succeeded: dismisses the watchdog.
    ///
    /// # Errors
    /// The watchdog had thawed before (the limit passed), or it is gone: what was frozen did not stay frozen for sure.
    pub fn release(mut self) -> Result<()> {
        let sent = self.send(&Note::Thawed);
        let answer = sent.ok().and_then(|()| self.answer(&["quiet", "fired"], ANSWER_LIMIT));
        self.orders = None;
        match answer.as_deref() {
            Some("quiet") => {
                let _ = self.child.wait();
                Ok(())
            }
            Some(_) => Err(Error::failed(
                "Snapshot: expected the source to stay frozen until it was complete, found that the watchdog had to thaw it",
            )
            .next("MotionGear was stopped for too long; run the command again")),
            None => Err(Error::failed("Thaw watchdog: expected it on guard until the end, found it gone or silent")
                .next("The source was thawed; see who ended the process, and run the command again")),
        }
    }
}

/// The hidden verb `thaw-watchdog`: the exit code for `main`. Reads orders from standard input; 0 when it was not needed,
/// 1 when it thawed, 2 when orders made no sense, 3 when thawing failed.
pub fn watchdog_main() -> i32 {
    // We may be a group leader already when started by hand; then the session is not ours to leave, and that is fine.
    let _ = rustix::process::setsid();
    ignore_signals();
    let mut input = BufReader::new(std::io::stdin());
    let Some(orders) = read_line(&mut input).and_then(|line| serde_json::from_str::<Orders>(&line).ok()) else {
        say("Thaw watchdog: expected orders on standard input; this verb is started by MotionGear itself");
        return 2;
    };
    let turn = match orders.turn.as_deref().map(|name| running::turn(name, TURN_LIMIT)) {
        Some(Ok(None)) => {
            reply("busy");
            return 2;
        }
        Some(Ok(held)) => held,
        Some(Err(error)) => {
            say(&format!("Thaw watchdog: earlier ones cannot be seen: {error}"));
            None
        }
        None => None,
    };
    let until = Instant::now().checked_add(orders.limit);
    let (note, notes) = crossbeam_channel::unbounded();
    std::thread::spawn(move || {
        while let Some(line) = read_line(&mut input) {
            // A note that makes no sense counts as MotionGear gone: rather one thaw too many.
            let Ok(parsed) = serde_json::from_str::<Note>(&line) else { break };
            if note.send(parsed).is_err() {
                break;
            }
        }
    });
    reply("ready");
    let guard = Guard { orders, notes };
    guard.stand(until, turn)
}

struct Guard {
    orders: Orders,
    notes: Receiver<Note>,
}

impl Guard {
    /// Waits for a word or the limit, and thaws if need be; `turn` is held until there is nothing to thaw any more.
    fn stand(&self, until: Option<Instant>, turn: Option<File>) -> i32 {
        let mut running: Option<(String, i32)> = None;
        // A freeze may be under way that ends after our thaw: MotionGear died before it could tell us, or while it ran.
        let mut freezing = true;
        let reason = loop {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            // Duration::MAX would overflow the channel's clock.
            match self.notes.recv_timeout(left.min(Duration::from_secs(3600))) {
                Ok(Note::Thawed) => {
                    reply("quiet");
                    return 0;
                }
                Ok(Note::Running { hook, group }) => {
                    freezing = hook == "freeze";
                    running = Some((hook, group));
                }
                Ok(Note::Ended { .. }) => {
                    freezing = false;
                    running = None;
                }
                Err(RecvTimeoutError::Disconnected) => break "MotionGear is gone",
                Err(RecvTimeoutError::Timeout) if until.is_some_and(|until| Instant::now() >= until) => {
                    break "the time limit has passed";
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        if let Some((hook, group)) = &running
            && hook != "thaw"
        {
            end(*group);
        }
        let mut thawed = self.thaw(reason);
        if freezing {
            std::thread::sleep(THAW_PAUSE);
            thawed = self.thaw(reason);
        }
        drop(turn);
        // Should MotionGear only have been stopped, it must learn that the freeze did not hold.
        while let Ok(note) = self.notes.recv_timeout(Duration::from_secs(3600)) {
            if note == Note::Thawed {
                reply("fired");
                break;
            }
        }
        if thawed { 1 } else { 3 }
    }

    fn thaw(&self, reason: &str) -> bool {
        for attempt in 1..=THAW_ATTEMPTS {
            let outcome = match hooks::run("thaw", &self.orders.thaw, &self.orders.environment, |_| {}) {
                Ok(event) => (event.ok, format!("{} {}", event.outcome, event.stderr.trim())),
                Err(error) => (false, error.to_string()),
            };
            let machine = self.orders.environment.get("MOTIONGEAR_MACHINE").map_or("", String::as_str);
            self.log(&format!(
                "{} thaw watchdog, machine {machine}: {reason}; thaw attempt {attempt}: {}",
                Timestamp::now(),
                outcome.1.trim()
            ));
            if outcome.0 {
                return true;
            }
            std::thread::sleep(THAW_PAUSE);
        }
        false
    }

    fn log(&self, line: &str) {
        say(line);
        if let Some(path) = &self.orders.log
            && let Ok(mut file) = File::options().append(true).create(true).open(path)
        {
            let _ = writeln!(file, "{line}");
            let _ = file.sync_data();
        }
    }
}

/// Ends a hook's process group and waits a moment for it to go.
fn end(group: i32) {
    let Some(group) = Pid::from_raw(group).filter(|_| group > 1) else { return };
    let _ = kill_process_group(group, Signal::KILL);
    for _ in 0..100 {
        if test_kill_process_group(group).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read_line(input: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    std::io::Read::take(input, LINE_LIMIT).read_line(&mut line).ok().filter(|got| *got > 0 && line.ends_with('\n'))?;
    Some(line)
}

/// The parent, or its terminal, may be gone: then nobody listens, and that is no reason to stop.
fn reply(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A handler that does nothing rather than SIG_IGN: an ignored signal would stay ignored in the thaw hook after exec.
fn ignore_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        let handler = nothing as extern "C" fn(libc::c_int);
        // SAFETY: the handler touches nothing, so it is safe at any instant; the signals are valid.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}
