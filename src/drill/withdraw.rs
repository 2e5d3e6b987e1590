//! `drill withdraw`: a confirmation that was wrong. Both documents stay: nothing that was signed is ever removed.

use super::confirm::signer;
use super::folder::{Folder, Said};
use super::record::{MAX_TEXT_BYTES, Withdrawal, json};
use crate::context::{Context, Outcome, now, tool};
use crate::error::{Error, Result};
use crate::lang::Lang;
use crate::say;
use motiongear_manifest::names::check_text;
use motiongear_manifest::sign::Namespace;
use motiongear_manifest::tree::Digest;
use serde::Serialize;
use std::path::PathBuf;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which drill.
    pub drill: String,
    /// Signs it.
    pub key: PathBuf,
    /// NAME@SITE, if the key's comment is none.
    pub signer: Option<String>,
    /// Allowed signers, to check the key with.
    pub trust: Option<PathBuf>,
    /// Who says so.
    pub person: String,
    /// Why.
    pub reason: String,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// The document.
    pub withdrawal: Withdrawal,
    /// For people.
    pub machine: String,
    /// Where it lies, its signature beside it; none in a dry run.
    pub file: Option<PathBuf>,
    /// Nothing was written.
    pub dry_run: bool,
}

/// Withdraws the confirmation of a drill that stands.
///
/// # Errors
/// None stands; the key may not sign.
pub fn run(context: &Context, options: &Options) -> Result<Done> {
    for (what, text) in [("Person", &options.person), ("Reason", &options.reason)] {
        check_text(what, text, MAX_TEXT_BYTES).map_err(|e| Error::usage(e.to_string()))?;
        if text.trim().is_empty() {
            return Err(Error::usage(format!("{what}: it is empty")).next("Pass --person NAME and --reason TEXT"));
        }
    }
    let (folder, drill) = Folder::find(&context.ledger, &options.drill)?;
    let _alone = folder.hold_confirmation()?;
    let said = folder.said()?;
    let Some(Said { document, .. }) = said.last().filter(|last| last.withdrawal.is_none()) else {
        return Err(Error::failed(format!("Drill {}: no confirmation of it stands", drill.drill))
            .next("Run: motiongear drill show"));
    };
    let at = now()?;
    let (key, signer) = signer(context, &options.key, options.signer.as_deref(), options.trust.as_deref(), at)?;
    let withdrawal = Withdrawal {
        format: 1,
        drill: drill.drill,
        confirmation: Digest::of(document),
        person: options.person.clone(),
        reason: options.reason.clone(),
        signer,
        withdrawn_at: at,
        tool: tool(),
    };
    let mut file = None;
    if !context.dry_run {
        let document = json(&withdrawal)?;
        let signature = key.sign(&document, Namespace::Drill).map_err(motiongear_manifest::FormatError::from)?;
        file = Some(folder.join(&folder.put_withdrawal(said.len() - 1, &document, &signature)?));
    }
    Ok(Done { withdrawal, machine: drill.machine, file, dry_run: context.dry_run })
}

impl Outcome for Done {
    fn summary(&self, lang: Lang) -> String {
        let Withdrawal { drill, person, signer, reason, .. } = &self.withdrawal;
        let machine = &self.machine;
        match &self.file {
            None => say!(
                lang,
                "Would withdraw the confirmation of drill {drill} of {machine}",
                "将撤回演练 {drill}（{machine}）的确认"
            ),
            Some(file) => say!(
                lang,
                "{person} has withdrawn the confirmation of drill {drill} of {machine}: {reason}; signed by {signer}\n{}\nThen: motiongear drill confirm {drill} --passed|--failed …",
                "{person} 已撤回演练 {drill}（{machine}）的确认：{reason}；签名 {signer}\n{}\n之后：motiongear drill confirm {drill} --passed|--failed …",
                file.display()
            ),
        }
    }
}
