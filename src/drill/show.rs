//! `drill show`: what there is of drills, for people and for reports.

use super::folder::{ADAPT_LOG, COURSE, Folder, PICTURE, SERIAL, Said};
use super::record::{AdaptState, Confirmation, Course, Drill, State, Withdrawal};
use super::start::result;
use crate::context::{Context, Outcome};
use crate::error::Result;
use crate::lang::Lang;
use crate::ledger::Ledger;
use crate::say;
use jiff::Timestamp;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::sign::{self, Namespace};
use motiongear_manifest::tree::Digest;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Where a drill stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Clones are made, or opened.
    Preparing,
    /// Its machine runs.
    Running,
    /// Its machine has ended; what it needed is still there.
    Off,
    /// Its keeper is gone, killed or by a restart of this host; what it needed is still there.
    Lost,
    /// Nothing is left of it but the evidence.
    Ended,
}

impl Status {
    /// Nobody watches its machine any more.
    pub fn has_no_keeper(self) -> bool {
        matches!(self, Status::Off | Status::Lost | Status::Ended)
    }
}

/// A confirmation that does not stand any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// What was said.
    pub confirmation: Confirmation,
    /// What withdraws it.
    pub withdrawal: Withdrawal,
    /// `SHA256:…` of the key that signed the withdrawal; none where its signature is no good, or it names another confirmation.
    pub key: Option<String>,
}

impl Withdrawn {
    fn of(said: Said) -> Option<Withdrawn> {
        let Said { confirmation, document, withdrawal, .. } = said;
        let (withdrawal, bytes, signature) = withdrawal?;
        let names_it = withdrawal.confirmation == Digest::of(&document);
        let by = sign::verify(&signature, &bytes, Namespace::Drill).ok().filter(|_| names_it);
        Some(Withdrawn { confirmation, withdrawal, key: by.map(|by| by.fingerprint) })
    }

    /// What was said and withdrawn, in a sentence.
    pub fn words(&self, lang: Lang) -> String {
        let Withdrawn { confirmation, withdrawal, key } = self;
        let verdict = verdict(confirmation.passed, lang);
        let (first, second, reason) = (&confirmation.person, &withdrawal.person, &withdrawal.reason);
        match key {
            Some(_) => say!(
                lang,
                "{verdict}, said {first}; withdrawn by {second} ({}): {reason}",
                "{verdict}，确认人 {first}；已由 {second}（{}）撤回：{reason}",
                withdrawal.signer
            ),
            None => say!(
                lang,
                "{verdict}, said {first}; withdrawn by {second}, but that SIGNATURE IS NO GOOD: {reason}",
                "{verdict}，确认人 {first}；已由 {second} 撤回，但撤回的签名无效：{reason}"
            ),
        }
    }
}

fn verdict(passed: bool, lang: Lang) -> String {
    match passed {
        true => say!(lang, "PASSED", "通过"),
        false => say!(lang, "FAILED", "未通过"),
    }
}

/// A drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillFacts {
    /// What was to be done.
    pub drill: Drill,
    /// What became of it.
    pub course: Option<Course>,
    /// Where it stands.
    pub status: Status,
    /// What people say of it.
    pub confirmation: Option<Confirmation>,
    /// What people said before, and withdrew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub withdrawn: Vec<Withdrawn>,
    /// `SHA256:…` of the key that signed that; none where the signature is no good.
    pub key: Option<String>,
    /// That key was compared with a list of allowed signers, and is one.
    pub signer_checked: bool,
    /// It was compared, and may not sign as whom it claims.
    #[serde(default)]
    pub signer_refused: bool,
    /// Files of the evidence that are not what was confirmed.
    pub altered: Vec<String>,
    /// Nothing is left since.
    pub ended_at: Option<Timestamp>,
    /// Where the evidence lies.
    pub evidence: PathBuf,
}

/// The drills.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Oldest first.
    pub drills: Vec<DrillFacts>,
    #[serde(skip)]
    whole: bool,
}

/// Shows all drills, or one.
///
/// # Errors
/// There is none of that name, or its files make no sense.
pub fn run(context: &Context, id: Option<&str>) -> Result<Shown> {
    let drills = match id {
        Some(id) => vec![Folder::find(&context.ledger, id)?],
        None => Folder::list(&context.ledger)?,
    };
    let drills: Result<Vec<DrillFacts>> = drills.into_iter().map(|(folder, drill)| of(&folder, drill, None)).collect();
    Ok(Shown { drills: drills?, whole: id.is_some() })
}

/// All drills of this ledger, oldest first; signatures compared with `trust` where it is given.
///
/// # Errors
/// Files of one make no sense.
pub fn facts(ledger: &Ledger, trust: Option<(&AllowedSigners, Timestamp)>) -> Result<Vec<(Folder, DrillFacts)>> {
    let each = Folder::list(ledger)?.into_iter();
    each.map(|(folder, drill)| of(&folder, drill, trust).map(|facts| (folder, facts))).collect()
}

fn of(folder: &Folder, drill: Drill, trust: Option<(&AllowedSigners, Timestamp)>) -> Result<DrillFacts> {
    // In this order: whoever holds it writes its course before it lets go.
    let held = folder.hold(Duration::ZERO)?.is_none();
    let (mut course, ended) = (folder.course()?, folder.ended()?);
    let status = match (&ended, course.as_ref().map(|course| course.state), held) {
        (Some(_), ..) => Status::Ended,
        (None, Some(State::Off | State::Failed), _) => Status::Off,
        (None, Some(State::Running), true) => Status::Running,
        (None, _, true) => Status::Preparing,
        (None, _, false) => Status::Lost,
    };
    let (mut key, mut allowed, mut confirmation) = (None, None, None);
    let mut altered = Vec::new();
    let mut said = folder.said()?;
    let last = said.pop_if(|last| last.withdrawal.is_none());
    let withdrawn = said.into_iter().filter_map(Withdrawn::of).collect();
    if let Some(Said { confirmation: found, document, signature, .. }) = last {
        if let Ok(by) = sign::verify(&signature, &document, Namespace::Drill) {
            allowed = trust.map(|(trust, at)| trust.check(&found.signer, &by.key, Namespace::Drill, at).is_ok());
            key = Some(by.fingerprint);
            if found.course.is_judged() {
                let signed = since_signed(&found.course, course.as_ref());
                if course.as_ref() != Some(&signed) {
                    altered.push(COURSE.to_owned());
                }
                course = Some(signed);
            }
        }
        confirmation = Some(found);
    }
    let pinned = confirmation.iter().flat_map(|said| &said.evidence);
    let at_end = ended.iter().flat_map(|ended| &ended.evidence);
    let pinned = pinned.map(|pinned| (pinned, false)).chain(at_end.map(|pinned| (pinned, true)));
    for (pinned, whole) in pinned {
        if !altered.contains(&pinned.file) && folder.differs(pinned, whole) {
            altered.push(pinned.file.clone());
        }
    }
    Ok(DrillFacts {
        drill,
        course,
        status,
        confirmation,
        withdrawn,
        key,
        signer_checked: allowed == Some(true),
        signer_refused: allowed == Some(false),
        altered,
        ended_at: ended.map(|ended| ended.ended_at),
        evidence: folder.path().to_owned(),
    })
}

/// What was signed counts, as far as it had come by then; the machine may only have gone on and ended since, and met more trouble.
fn since_signed(signed: &Course, since: Option<&Course>) -> Course {
    let since = since.unwrap_or(signed).clone();
    let Course { adaptation, booted_at, qemu, seen, silent, failure, last_lines, .. } = signed.clone();
    let Course { picture, stood_seconds, unproven_blocks, troubles, .. } = signed.clone();
    Course {
        adaptation,
        booted_at,
        qemu,
        seen,
        silent,
        failure,
        last_lines,
        stood_seconds: since.stood_seconds.max(stood_seconds),
        picture: picture.or(since.picture),
        unproven_blocks: since.unproven_blocks.max(unproven_blocks),
        troubles: if since.troubles.starts_with(&troubles) { since.troubles } else { troubles },
        ..since
    }
}

impl DrillFacts {
    /// Whether people say that it passed, and that can be believed; `None` where nobody says anything.
    pub fn stands(&self) -> Option<bool> {
        let said = self.confirmation.as_ref()?;
        Some(said.passed && self.key.is_some() && !self.signer_refused && self.altered.is_empty())
    }

    /// It was to be adapted, and could not be.
    pub fn is_not_adapted(&self) -> bool {
        self.course.as_ref().is_some_and(|course| course.is_adapted(AdaptState::Failed))
    }

    /// Where it stands, for people.
    pub fn status_words(&self, lang: Lang) -> String {
        match self.status {
            Status::Preparing => say!(lang, "being prepared", "准备中"),
            Status::Running => say!(lang, "runs", "运行中"),
            Status::Off => say!(lang, "off, and not ended", "已停机，尚未结束"),
            Status::Lost if self.drill.compute.is_some() => say!(
                lang,
                "ITS KEEPER IS GONE (killed, or this host was restarted), its server in the cloud may run on; end it",
                "守护进程不在（被终止或本机重启过），云主机可能仍在运行；请结束演练"
            ),
            Status::Lost => say!(
                lang,
                "OFF: its keeper is gone (killed, or this host was restarted); end it",
                "已停：守护进程不在（被终止或本机重启过）；请结束演练"
            ),
            Status::Ended => say!(lang, "ended", "已结束"),
        }
    }

    /// What people said, in a sentence.
    pub fn verdict_words(&self, lang: Lang) -> String {
        let Some(said) = &self.confirmation else { return say!(lang, "not confirmed", "未确认") };
        let Confirmation { person, signer, .. } = said;
        let verdict = verdict(said.passed, lang);
        if !self.altered.is_empty() {
            let files = self.altered.join(", ");
            return say!(
                lang,
                "{verdict}, says {person}, but since then {files} WAS ALTERED",
                "{verdict}，确认人 {person}，但此后 {files} 被改动"
            );
        }
        if let (true, Some(key)) = (self.signer_refused, &self.key) {
            return say!(
                lang,
                "{verdict}, says {person}, but the key that signed, {key}, MAY NOT SIGN as {signer}",
                "{verdict}，确认人 {person}，但签名密钥 {key} 无权以 {signer} 签名"
            );
        }
        match self.key.is_some() {
            true => {
                say!(lang, "{verdict}, says {person}, signed by {signer}", "{verdict}，确认人 {person}，签名 {signer}")
            }
            false => say!(
                lang,
                "{verdict}, says {person}, but the SIGNATURE IS NO GOOD",
                "{verdict}，确认人 {person}，但签名无效"
            ),
        }
    }

    /// Whether it came up, in a sentence.
    pub fn result_words(&self, lang: Lang) -> String {
        match &self.course {
            Some(course) => result(course, &self.drill, Some(self.status), lang),
            None => say!(lang, "It never booted", "未曾启动"),
        }
    }
}

impl Outcome for Shown {
    fn summary(&self, lang: Lang) -> String {
        if self.drills.is_empty() {
            return say!(lang, "No drill is known to this ledger.", "本台账没有演练。");
        }
        let mut lines = Vec::new();
        for facts in &self.drills {
            let Drill { drill, site_name, machine, made_at, .. } = &facts.drill;
            let (status, result, verdict) =
                (facts.status_words(lang), facts.result_words(lang), facts.verdict_words(lang));
            lines.push(format!("{drill} {site_name}/{machine} {made_at}: {status}"));
            lines.push(format!("  {result}; {verdict}"));
            lines.extend(facts.withdrawn.iter().map(|withdrawn| format!("  {}", withdrawn.words(lang))));
            if !self.whole {
                continue;
            }
            for disk in &facts.drill.disks {
                lines.push(format!("  {}: {}", disk.name, disk.words(lang)));
            }
            let adapted = !facts.is_not_adapted();
            lines.extend(facts.drill.adapt_words(lang).filter(|_| adapted).map(|words| format!("  {words}")));
            lines.extend(facts.drill.notes.iter().map(|note| format!("  {note}")));
            let adaptation = facts.course.iter().filter_map(|course| course.adaptation.as_ref());
            lines.extend(adaptation.flat_map(|adaptation| &adaptation.remarks).map(|remark| format!("  {remark}")));
            let last = facts.course.iter().flat_map(|course| &course.last_lines);
            lines.extend(last.map(|line| format!("  | {line}")));
            // Where it was not adapted they stand in the result.
            let course = facts.course.as_ref().filter(|_| !facts.is_not_adapted());
            if let Some(words) = course.and_then(|course| course.words.as_ref()) {
                lines.push(format!("  {words}"));
            }
            lines.extend(facts.course.iter().flat_map(|course| &course.troubles).map(|trouble| format!("  {trouble}")));
            if let (Status::Running, Some(screen)) =
                (facts.status, facts.course.as_ref().and_then(|c| c.screen.as_ref()))
            {
                lines.push(say!(lang, "  Its screen: vncviewer {}", "  屏幕：vncviewer {}", screen.display()));
            }
            for file in [ADAPT_LOG, SERIAL, PICTURE] {
                let path = facts.evidence.join(file);
                if path.exists() {
                    lines.push(format!("  {}", path.display()));
                }
            }
        }
        lines.join("\n")
    }
}
