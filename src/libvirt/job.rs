//! The backup job of a machine. It has one at a time, and libvirt does not tell who began it: ours are those whose exports are called so.

use super::domain::Domain;
use super::{virsh, xml};
use crate::error::{Error, Result};
use crate::source::tracking::OURS;
use std::time::{Duration, Instant};

/// For a job to go after it was told to.
const GONE_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// A backup job that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The socket of its NBD server, if it has one.
    pub socket: Option<String>,
    /// What the disks are exported as.
    pub exports: Vec<String>,
}

impl Job {
    /// The one of this machine.
    ///
    /// # Errors
    /// libvirt does not answer.
    pub fn look(domain: &Domain) -> Result<Option<Job>> {
        let words = ["backup-dumpxml", &domain.option()];
        let ended = virsh::call(&words)?;
        match ended.code {
            Some(0) => parse(&String::from_utf8_lossy(&ended.output)).map(Some),
            _ if ["no domain backup job", "not running"].iter().any(|none| ended.words.contains(none)) => Ok(None),
            _ => Err(virsh::refused(&words, &ended)),
        }
    }

    /// Whether a MotionGear began it.
    pub fn is_ours(&self) -> bool {
        !self.exports.is_empty() && self.exports.iter().all(|name| name.starts_with(OURS))
    }
}

fn parse(text: &str) -> Result<Job> {
    xml::read(text, "a backup", "domainbackup", |root| {
        let server = xml::child(root, &["server"]);
        let disks = xml::child(root, &["disks"]);
        let disks = disks.iter().flat_map(|disks| disks.children());
        let exports = disks.filter(|disk| disk.has_tag_name("disk") && disk.attribute("backup") != Some("no"));
        Ok(Job {
            socket: server.and_then(|server| server.attribute("socket")).map(str::to_owned),
            exports: exports.map(|disk| disk.attribute("exportname").unwrap_or_default().to_owned()).collect(),
        })
    })
}

/// Ends what an earlier run left, and refuses a machine that somebody else has a job with.
///
/// # Errors
/// Somebody has; libvirt does not answer.
pub fn make_way(domain: &Domain) -> Result<()> {
    let taken = |by: &str| {
        Error::failed(format!("Machine {}: expected it without a job, found {by} of another program", domain.shown()))
            .next("wait for its end: virsh domjobinfo DOMAIN; a machine has one at a time")
    };
    end(domain)?;
    if Job::look(domain)?.is_some() {
        return Err(taken("a backup"));
    }
    let said = virsh::ask(&["domjobinfo", &domain.option()])?;
    let kind = said.lines().find_map(|line| line.strip_prefix("Job type:")).map(str::trim);
    match kind {
        None | Some("None" | "") => Ok(()),
        Some(_) => Err(taken("a job")),
    }
}

/// Ends the machine's backup job if it is ours, and waits until libvirt has cleared up after it: the exports, the job in QEMU, the scratch
/// files. A machine that was paused because these found no room goes on. Says what was exported; nothing where there was no job of ours.
///
/// # Errors
/// libvirt refuses or does not answer.
pub fn end(domain: &Domain) -> Result<Vec<String>> {
    let Some(job) = Job::look(domain)?.filter(Job::is_ours) else { return Ok(Vec::new()) };
    let words = ["domjobabort", &domain.option()];
    let ended = virsh::call(&words)?;
    let until = Instant::now() + GONE_WITHIN;
    while Job::look(domain)?.is_some_and(|found| found == job) {
        // It may have ended by itself just then.
        if ended.code != Some(0) {
            return Err(virsh::refused(&words, &ended));
        }
        if Instant::now() > until {
            let limit = GONE_WITHIN.as_secs();
            let name = domain.shown();
            return Err(Error::failed(format!(
                "Machine {name}: expected its backup job to end within {limit} s, found it still there"
            ))
            .next(format!("run 'motiongear release libvirt:{name}' later")));
        }
        std::thread::sleep(LOOK);
    }
    // A machine that has ended meanwhile has no state to speak of.
    let state = virsh::call(&["domstate", "--reason", &domain.option()])?;
    if String::from_utf8_lossy(&state.output).contains("paused (I/O error)") {
        virsh::ask(&["resume", &domain.option()])?;
    }
    Ok(job.exports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_ours_by_the_names_of_all_its_exports() {
        let job = |exports: &str| {
            let text = format!(
                "<domainbackup mode='pull'><server transport='unix' socket='/run/x'/><disks>{exports}<disk name='vdz' backup='no'/></disks></domainbackup>"
            );
            parse(&text).unwrap()
        };
        let disk = |name: &str| format!("<disk name='vda' backup='yes' exportname='{name}'/>");
        let ours = disk("motiongear-0-disk");
        assert!(job(&ours).is_ours());
        assert_eq!(job(&ours).socket.as_deref(), Some("/run/x"));
        for exports in [String::new(), disk("vda"), format!("{ours}{}", disk("vdb")), "<disk name='vda'/>".into()] {
            assert!(!job(&exports).is_ours(), "{exports}");
        }
        assert!(!parse("<domainbackup mode='push'/>").unwrap().is_ours());
    }
}
