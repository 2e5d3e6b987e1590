//! A machine that the cloud's compute service runs: a server that boots from the clones, in the cloud where they are. This host only asks for
//! it, reads its console, and removes it.
//!
//! The server carries the drill's UUID in its name and its metadata. Whatever died between the request and the answer, `end` finds it by
//! them. Clones are removed after it only: as long as there is one of the two, another `end` finds it.

use super::console::{Ear, Told, new_part};
use super::folder::{Folder, SERIAL};
use super::plan::Through;
use super::record::{Base, Compute, Course, Drill, State};
use super::running::Running;
use super::volumes;
use crate::context::{Context, now};
use crate::error::{Error, IoContext, Result};
use crate::openstack::Session;
use crate::openstack::servers::{Flavour, NewServer};
use crate::volume::Place;
use crate::volume::places::Places;
use crate::volume::store::mark;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Between two questions to the cloud.
const ASK: Duration = Duration::from_secs(2);
/// How long the cloud may take until a server runs, and until it is gone.
const STARTS_WITHIN: Duration = Duration::from_secs(600);
const ENDS_WITHIN: Duration = Duration::from_secs(300);
/// Of a server that does not run any more; all others may run on, moved to another host for instance.
const OVER: [&str; 4] = ["SHUTOFF", "ERROR", "DELETED", "SOFT_DELETED"];
/// A prompt stands when the question after the one that found it found nothing more: longer than [`ASK`].
const PROMPT_STANDS: Duration = Duration::from_secs(3);
/// What is kept of one answer to compare the next with, bytes: Nova gives the last 100 KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Put into the log where the console said more between two questions than Nova gives.
const LOST: &[u8] = b"\n[motiongear: the machine said more here than the cloud keeps]\n";

/// The cloud that all volumes of a machine are in, and the flavour there.
///
/// # Errors
/// They are not all in one cloud; it has no compute service, or no such flavour; none is named.
pub fn find(context: &Context, through: &Through, machine: (Uuid, &str), places: &[Place]) -> Result<Flavour> {
    let (site, machine) = machine;
    let planned = || Ok::<_, Error>(context.ledger.server(site, machine)?.and_then(|plan| plan.flavour));
    let wanted = match &through.flavour {
        Some(flavour) => Some(flavour.clone()),
        None => planned()?,
    };
    let wanted = wanted.ok_or_else(|| {
        Error::usage(format!(
            "Machine {machine}: expected a flavour to boot it in, found none in the plan of its import"
        ))
        .next("name one with --flavour")
    })?;
    let mut sessions = places.iter().map(|place| place.store().and_then(|store| store.session()));
    let first = sessions.next().flatten();
    match first {
        Some(session) if sessions.all(|other| other.is_some_and(|other| Arc::ptr_eq(other, session))) => {
            session.flavour(&wanted)
        }
        _ => Err(Error::failed("Machine: expected all of its volumes in one cloud's Block Storage, found others")
            .next("only what was imported with --to cinder:… can boot there: leave --through out")),
    }
}

/// A server that was asked for.
pub struct There {
    session: Arc<Session>,
    server: String,
    booted: Instant,
    ear: Ear,
    /// The last answer.
    before: String,
    asked: Instant,
    ended: Option<String>,
    /// What is in the way of asking.
    trouble: Option<String>,
}

impl There {
    /// Asks for the server, and waits until it runs.
    ///
    /// # Errors
    /// The cloud refuses it, or cannot run it.
    pub fn boot(
        context: &Context,
        folder: &Folder,
        drill: &Drill,
        compute: &Compute,
        course: &mut Course,
    ) -> Result<There> {
        let mut places = Places::new(context);
        let (mut session, mut clones) = (None, Vec::new());
        // It boots from the first.
        for slot in drill.boot_order() {
            let disk = &drill.disks[slot];
            let Base::Snapshot { point, .. } = &disk.base else { return Err(no_cloud(drill)) };
            let place = volumes::place(context, &mut places, drill, disk)?;
            let store = place.store().ok_or_else(|| no_cloud(drill))?;
            clones.push(store.clone_for_server(point, drill.drill)?);
            session = session.or(store.session().cloned());
        }
        let session = session.ok_or_else(|| no_cloud(drill))?;
        let log = folder.join(SERIAL);
        let ear = Ear::new(&log, drill.marker.clone()).context(|| format!("Log {}", log.display()))?;
        let booted = Instant::now();
        let server = session.create_server(&NewServer {
            name: &name(drill),
            flavour: &compute.flavour,
            volumes: &clones,
            metadata: &[(mark("drill"), drill.drill.to_string())],
        })?;
        course.booted_at = Some(now()?);
        course.server = Some(server.clone());
        folder.put_course(course)?;
        while !folder.is_to_end() {
            let found = session.server(&server)?;
            let status = found.as_ref().map_or("gone", |found| found.status.as_str());
            match status {
                "ACTIVE" => break,
                "BUILD" if booted.elapsed() < STARTS_WITHIN => std::thread::sleep(ASK),
                status => {
                    let why = found.as_ref().and_then(|found| found.fault.as_deref()).unwrap_or("it does not say why");
                    return Err(Error::failed(format!(
                        "Server {server}: expected it to run within {} s, found it {status}: {why}",
                        STARTS_WITHIN.as_secs()
                    ))
                    .next("ask the cloud's administrator (no host with room for that flavour, a volume that cannot be reached)"));
                }
            }
        }
        course.state = State::Running;
        folder.put_course(course)?;
        let (before, asked) = (String::new(), Instant::now());
        Ok(There { session, server, booted, ear, before, asked, ended: None, trouble: None })
    }

    /// Asks how it is, and what it says.
    fn ask(&mut self) -> Result<()> {
        let found = self.session.server(&self.server)?;
        self.ended = match found {
            Some(found) if OVER.contains(&found.status.as_str()) => {
                let why = found.fault.map(|fault| format!(": {fault}")).unwrap_or_default();
                Some(format!("the cloud says that its server is {}{why}", found.status))
            }
            Some(_) => None,
            None => Some("its server is not there any more".into()),
        };
        if let Some(text) = self.session.console(&self.server)? {
            // An answer that is no end of a console is as good as none.
            let mut from = text.len().saturating_sub(MAX_ANSWER_BYTES);
            while !text.is_char_boundary(from) {
                from += 1;
            }
            let text = &text[from..];
            match new_part(&self.before, text) {
                Some("") => {}
                Some(new) => self.ear.take(new.as_bytes()),
                // A server that has just begun anew, or has no console for a moment.
                None if text.is_empty() => {}
                None => {
                    self.ear.take(LOST);
                    self.ear.take(text.as_bytes());
                }
            }
            if !text.is_empty() {
                self.before = text.to_owned();
            }
        }
        Ok(())
    }
}

impl Running for There {
    fn booted(&self) -> Instant {
        self.booted
    }

    fn told(&mut self) -> Option<(Told, Instant)> {
        self.ear.told(PROMPT_STANDS)
    }

    fn last_lines(&self) -> Vec<String> {
        self.ear.last_lines()
    }

    fn ended(&mut self) -> Option<String> {
        if self.asked.elapsed() >= ASK {
            self.trouble = self.ask().err().map(|error| error.to_string());
            self.asked = Instant::now();
        }
        self.ended.clone()
    }

    fn picture(&self, _folder: &Folder) -> Result<()> {
        // Compute services show screens to people only.
        Ok(())
    }

    fn note(&self, _course: &mut Course) -> bool {
        false
    }

    fn tend(&mut self, _folder: &Folder, course: &mut Course) -> Result<bool> {
        let changed = course.words != self.trouble;
        course.words.clone_from(&self.trouble);
        Ok(changed)
    }
}

impl Drop for There {
    fn drop(&mut self) {
        self.ear.sync();
    }
}

/// Removes the server of a drill, however far it came.
///
/// # Errors
/// The cloud does not say, or keeps it.
pub fn end(context: &Context, places: &mut Places<'_>, drill: &Drill) -> Result<()> {
    let disk = drill.disks.first().ok_or_else(|| no_cloud(drill))?;
    let place = volumes::place(context, places, drill, disk)?;
    let session = place.store().and_then(|store| store.session()).ok_or_else(|| no_cloud(drill))?;
    for server in session.servers_marked(&name(drill), &mark("drill"), &drill.drill.to_string())? {
        session.delete_server(&server.id, ENDS_WITHIN)?;
    }
    Ok(())
}

/// Of the server.
fn name(drill: &Drill) -> String {
    format!("motiongear-drill-{}", drill.drill)
}

fn no_cloud(drill: &Drill) -> Error {
    Error::failed(format!("Drill {}: expected volumes of a cloud that can run it, found others", drill.drill))
        .next("end this drill and start another")
}
