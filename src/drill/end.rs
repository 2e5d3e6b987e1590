//! `drill end`: nothing stays but the evidence. Whatever killed the drill before, this clears it away, and may be run again.

use super::folder::Folder;
use super::record::{Base, Drill, Ended};
use super::{network, running, volumes};
use crate::context::{Context, Outcome, now};
use crate::error::{Error, Result};
use crate::lang::Lang;
use crate::say;
use crate::volume::places::Places;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// How long the keeper may take: the machine ends, its servers, its ways into the cloud. What it leaves when it is killed is removed all the same.
const ENDS_WITHIN: Duration = Duration::from_secs(45);
/// Once it was killed.
const DIES_WITHIN: Duration = Duration::from_secs(20);

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// Which.
    pub drill: Uuid,
    /// For people.
    pub machine: String,
    /// It had ended already.
    pub already: bool,
    /// Nothing was done.
    pub dry_run: bool,
    /// Its machine ran.
    pub ran: bool,
    /// Somebody confirmed it, one way or the other.
    pub confirmed: bool,
    /// Where the evidence stays.
    pub evidence: PathBuf,
}

/// Ends a drill.
///
/// # Errors
/// There is none of that name; something cannot be removed.
pub fn run(context: &Context, id: &str) -> Result<Done> {
    let (folder, drill) = Folder::find(&context.ledger, id)?;
    let mut done = Done {
        drill: drill.drill,
        machine: drill.machine.clone(),
        already: folder.ended()?.is_some(),
        dry_run: context.dry_run,
        ran: folder.hold(Duration::ZERO)?.is_none(),
        confirmed: folder.said()?.last().is_some_and(|last| last.withdrawal.is_none()),
        evidence: folder.path().to_owned(),
    };
    if done.already || context.dry_run {
        return Ok(done);
    }
    done.ran = clear(context, &folder, &drill)?;
    // Nobody writes to it any more: what is longer later was added.
    let evidence = folder.pin_evidence()?;
    folder.put_end(&Ended { format: 1, drill: drill.drill, ended_at: now()?, evidence })?;
    Ok(done)
}

/// Ends whoever has the drill, and removes what was made for it. Says whether somebody had it.
///
/// # Errors
/// Something cannot be removed: all else is.
pub fn clear(context: &Context, folder: &Folder, drill: &Drill) -> Result<bool> {
    let mut ran = false;
    let lock = match folder.hold(Duration::ZERO)? {
        Some(lock) => lock,
        None => {
            ran = true;
            folder.ask_to_end()?;
            match folder.hold(ENDS_WITHIN)? {
                Some(lock) => lock,
                None => {
                    kill_keeper(folder);
                    folder.hold(DIES_WITHIN)?.ok_or_else(|| {
                        Error::failed(format!("Drill {}: expected its keeper to end, found it running", drill.drill))
                            .next("see what it waits for (ps, dmesg), then run the same command again")
                    })?
                }
            }
        }
    };
    let mut places = Places::new(context);
    running::end(context, &mut places, drill)?;
    let mut wrong = None;
    for disk in drill.disks.iter().filter(|disk| matches!(disk.base, Base::Snapshot { .. })) {
        let mut clear = || volumes::place(context, &mut places, drill, disk)?.end_clone(drill.drill);
        if let Err(error) = clear() {
            wrong = wrong.or(Some(error));
        }
    }
    // A keeper that was killed as it asked for a server may get it only now.
    running::end(context, &mut places, drill)?;
    if let Some(network) = &drill.network
        && let Err(error) = network::disconnect(network)
    {
        wrong = wrong.or(Some(error));
    }
    folder.clear(drill.disks.len())?;
    drop(lock);
    match wrong {
        Some(error) => Err(error),
        None => Ok(ran),
    }
}

/// A keeper that does not listen. Its number may be another's by now: only one that is about this drill is killed.
fn kill_keeper(folder: &Folder) {
    let Ok(Some(course)) = folder.course() else { return };
    let words = std::fs::read(format!("/proc/{}/cmdline", course.keeper)).unwrap_or_default();
    if String::from_utf8_lossy(&words).contains(&folder.id.to_string())
        && let Some(keeper) = i32::try_from(course.keeper).ok().and_then(Pid::from_raw)
    {
        let _ = kill_process(keeper, Signal::KILL);
    }
}

impl Outcome for Done {
    fn summary(&self, lang: Lang) -> String {
        let Done { drill, machine, evidence, .. } = self;
        let evidence = evidence.display();
        let mut lines = vec![match (self.already, self.dry_run) {
            (true, _) => {
                say!(lang, "Drill {drill} of {machine} had ended already", "演练 {drill}（{machine}）此前已结束")
            }
            (_, true) => say!(
                lang,
                "Would end drill {drill} of {machine}, and remove its clones",
                "将结束演练 {drill}（{machine}）并删除其克隆"
            ),
            _ => say!(
                lang,
                "Drill {drill} of {machine} has ended; nothing of it runs, its clones are gone",
                "演练 {drill}（{machine}）已结束：主机已停，克隆已删除"
            ),
        }];
        lines.push(say!(lang, "The evidence stays in {evidence}", "证据保留在 {evidence}"));
        if !self.confirmed {
            lines.push(say!(
                lang,
                "Nobody has confirmed it: motiongear drill confirm {drill} --passed|--failed --key SSH_KEY --person NAME",
                "尚无人确认：motiongear drill confirm {drill} --passed|--failed --key SSH_KEY --person 姓名"
            ));
        }
        lines.join("\n")
    }
}
