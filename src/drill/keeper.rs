//! The process that has a drill's machine, from its first instruction to its end.

use super::folder::{Folder, PICTURE};
use super::record::{Course, Drill, Seen, State};
use super::running::{Running, boot};
use crate::context::{Context, now};
use crate::error::{Error, Result};
use std::time::Duration;
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

/// Stays with it until it ends.
fn watch(mut running: Box<dyn Running>, folder: &Folder, drill: &Drill, course: &mut Course) -> Result<()> {
    let within = Duration::from_secs(drill.within_seconds);
    let words = loop {
        if folder.is_to_end() {
            break None;
        }
        if let Some(ended) = running.ended() {
            break Some(ended);
        }
        let sign = running.sign();
        if course.seen.is_none() && !course.silent {
            course.seen = sign.map(|(sign, at)| Seen {
                sign,
                milliseconds: u64::try_from(at.saturating_duration_since(running.booted()).as_millis())
                    .unwrap_or(u64::MAX),
            });
            course.silent = sign.is_none() && running.booted().elapsed() >= within;
            if course.seen.is_some() || course.silent {
                std::thread::sleep(SETTLES);
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
    // Ends it, and after it whatever it read from.
    drop(running);
    course.state = State::Off;
    course.off_at = Some(now()?);
    course.screen = None;
    course.words = words.or(course.words.take());
    folder.put_course(course)
}
