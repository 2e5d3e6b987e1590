//! `drill confirm`: what people say of a drill, signed, with the digests of what they looked at.

use super::folder::Folder;
use super::record::{Confirmation, MAX_TEXT_BYTES, json};
use crate::context::{Context, Outcome, now, tool};
use crate::custody::who;
use crate::error::{Error, Result};
use crate::lang::Lang;
use crate::say;
use crate::trust::{load_signer, read_trust};
use jiff::Timestamp;
use motiongear_manifest::names::check_text;
use motiongear_manifest::sign::{Namespace, Signer};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which drill.
    pub drill: String,
    /// Whether the machine did what it must.
    pub passed: bool,
    /// Signs it.
    pub key: PathBuf,
    /// NAME@SITE, if the key's comment is none.
    pub signer: Option<String>,
    /// Allowed signers, to check the key with.
    pub trust: Option<PathBuf>,
    /// Who says so.
    pub person: String,
    /// Anything else.
    pub note: String,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Confirmed {
    /// The document.
    pub confirmation: Confirmation,
    /// Where it lies, its signature beside it; none in a dry run.
    pub file: Option<PathBuf>,
    /// Nothing was written.
    pub dry_run: bool,
}

/// Confirms a drill, once.
///
/// # Errors
/// There is none, it never ran or was confirmed already; the key may not sign.
pub fn run(context: &Context, options: &Options) -> Result<Confirmed> {
    for (what, text) in [("Person", &options.person), ("Note", &options.note)] {
        check_text(what, text, MAX_TEXT_BYTES).map_err(|e| Error::usage(e.to_string()))?;
    }
    if options.person.is_empty() {
        return Err(Error::usage("Person: expected a name, found none"));
    }
    let (folder, drill) = Folder::find(&context.ledger, &options.drill)?;
    // From here to the end: of two at once the second finds what the first one signed.
    let _alone = folder.hold_confirmation()?;
    let said = folder.said()?;
    if let Some(before) = said.last().filter(|last| last.withdrawal.is_none()).map(|last| &last.confirmation) {
        let verdict = if before.passed { "passed" } else { "failed" };
        return Err(Error::failed(format!(
            "Drill {}: {} has confirmed it as {verdict} already",
            drill.drill, before.person
        ))
        .next(format!("If that was wrong, run: motiongear drill withdraw {} --reason TEXT …", drill.drill)));
    }
    let Some(course) = folder.course()?.filter(|course| course.booted_at.is_some()) else {
        return Err(Error::failed(format!("Drill {}: its machine never ran", drill.drill))
            .next("End this drill and start another"));
    };
    if !course.is_judged() {
        return Err(Error::failed(format!("Drill {}: it is not known yet whether its machine came up", drill.drill))
            .next("Wait until 'motiongear drill show' says it; if the drill has ended, start another"));
    }
    let at = now()?;
    let (key, signer) = signer(context, &options.key, options.signer.as_deref(), options.trust.as_deref(), at)?;
    let confirmation = Confirmation {
        format: 1,
        drill: drill.drill,
        site_name: drill.site_name,
        machine: drill.machine,
        passed: options.passed,
        person: options.person.clone(),
        note: options.note.clone(),
        signer,
        confirmed_at: at,
        course,
        evidence: folder.pin_evidence()?,
        tool: tool(),
    };
    let document = json(&confirmation)?;
    let mut file = None;
    if !context.dry_run {
        let signature = key.sign(&document, Namespace::Drill).map_err(motiongear_manifest::FormatError::from)?;
        file = Some(folder.join(&folder.put_confirmation(said.len(), &document, &signature)?));
    }
    Ok(Confirmed { confirmation, file, dry_run: context.dry_run })
}

/// The key, and as whom it signs, checked with `trust` where it is given.
///
/// # Errors
/// The key cannot be read, or may not sign what is said of drills.
pub fn signer(
    context: &Context,
    key: &Path,
    name: Option<&str>,
    trust: Option<&Path>,
    at: Timestamp,
) -> Result<(Signer, String)> {
    let key = load_signer(context, key)?;
    let signer = who(&key, name)?;
    if let Some(trust) = trust {
        read_trust(trust)?.check(&signer, key.public_key(), Namespace::Drill, at).map_err(|refusal| {
            Error::untrusted(format!("Signer {signer}: {refusal}")).next("sign with a key that may confirm drills")
        })?;
    }
    Ok((key, signer))
}

impl Outcome for Confirmed {
    fn summary(&self, lang: Lang) -> String {
        let Confirmation { drill, machine, person, signer, .. } = &self.confirmation;
        let verdict = match self.confirmation.passed {
            true => say!(lang, "PASSED", "通过"),
            false => say!(lang, "FAILED", "未通过"),
        };
        let Some(file) = self.file.as_ref().map(|file| file.display()) else {
            return say!(
                lang,
                "Would confirm drill {drill} of {machine}: {verdict}, says {person}, with the key of {signer}",
                "将确认演练 {drill}（{machine}）：{verdict}，确认人 {person}，密钥 {signer}"
            );
        };
        say!(
            lang,
            "Drill {drill} of {machine}: {verdict}, says {person}; signed by {signer}\n{file}\nThen: motiongear drill end {drill}",
            "演练 {drill}（{machine}）：{verdict}，确认人 {person}，签名 {signer}\n{file}\n之后：motiongear drill end {drill}"
        )
    }
}
