//! The process that has a drill's machine, from its first instruction to its end.

use super::console::Told;
use super::folder::{Folder, PICTURE};
use super::record::{Course, Drill, Failure, Seen, State};
use super::running::{Running, boot};
use crate::context::{Context, now};
use crate::error::{Error, Result};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// From the sign that all is up to the picture: the screen may be behind the console.
const SETTLES: Duration = Duration::from_secs(1);

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
        server: None,
        seen: None,
        silent: false,
        failure: None,
        last_lines: Vec::new(),
        stood_seconds: 0,
        stands: false,
        ended_by_request: false,
        picture: None,
        screen: None,
        off_at: None,
        words: None,
        unproven_blocks: 0,
        troubles: Vec::new(),
    };
    folder.put_course(&course)?;
    match boot(context, &folder, &drill, &mut course) {
        Ok(running) => watch(running, &folder, &drill, &mut course),
        Err(error) => {
            course.state = State::Failed;
            course.words = Some(error.to_string());
            folder.put_course(&course)
        }
    }
}

/// Milliseconds from its start to `at`, without those in which it stood still because of this host.
fn since_boot(running: &dyn Running, at: Instant) -> u64 {
    let since = at.saturating_duration_since(running.booted()).saturating_sub(running.stood());
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Stays with it until it ends.
fn watch(mut running: Box<dyn Running>, folder: &Folder, drill: &Drill, course: &mut Course) -> Result<()> {
    let within = Duration::from_secs(drill.within_seconds);
    let words = loop {
        if folder.is_to_end() {
            course.ended_by_request = true;
            break None;
        }
        if let Some(ended) = running.ended() {
            break Some(ended);
        }
        let told = running.told();
        if !course.is_judged() {
            match told {
                Some((Told::Up(sign), at)) => {
                    course.seen = Some(Seen { sign, milliseconds: since_boot(&*running, at) });
                }
                Some((Told::Failed(line), at)) => {
                    course.failure = Some(Failure { line, milliseconds: since_boot(&*running, at) });
                }
                // While it stands still because of this host, its time does so too.
                None => course.silent = running.booted().elapsed().saturating_sub(running.stood()) >= within,
            }
            if course.is_judged() {
                std::thread::sleep(SETTLES);
                if course.seen.is_none() {
                    course.last_lines = running.last_lines();
                }
                match running.picture(folder) {
                    Ok(()) => course.picture = folder.pin(PICTURE)?,
                    Err(error) => course.words = Some(error.to_string()),
                }
                running.note(course);
                folder.put_course(course)?;
            }
        }
        if running.tend(folder, course)? {
            folder.put_course(course)?;
        }
        std::thread::sleep(LOOK);
    };
    running.note(course);
    course.stood_seconds = running.stood().as_secs();
    course.stands = false;
    // Ends it, and after it whatever it read from.
    drop(running);
    course.state = State::Off;
    course.off_at = Some(now()?);
    course.screen = None;
    course.words = words.or(course.words.take());
    folder.put_course(course)
}
