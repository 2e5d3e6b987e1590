//! The stand-alone checker: everything that can be said of an array without the engine. Trust first, then the manifest, then the
//! packs, then (with keys) every block. It never stops at the first fault: it lists them.
//!
//! The steps are methods of [`Opened`], so that the engine takes the same ones in its own order: [`open_array`],
//! [`Opened::fetch_manifest`], [`Opened::cross_check`], [`Opened::check_packs`] (or [`Opened::judge_pack`] on packs that it reads
//! itself), [`Opened::check_custody`], [`Opened::keyring`], [`Opened::check_contents`].

mod catalogue;
pub mod chain;
mod contents;
mod custody;
mod files;
mod findings;
mod packs;
mod places;
mod trust;

pub use catalogue::WORK_FILE;
pub use contents::{DiskProof, UNREADABLE_IS_SET};
pub use custody::CheckedEvent;
use files::advice_on_stray;
pub use files::{COPY, FOLDER, Root, Unread, copy_of};
pub use findings::{Class, Finding, Findings, MAX_LISTED, Severity, class_of};
pub use packs::PackTotals;
pub use trust::{Opened, Refused, Terms, open_array, split_signer};

use crate::allowed::AllowedSigners;
use crate::code::paper_code;
use crate::documents::seal::{BlockCounts, SealedDisk};
use crate::documents::shipment::Site;
use crate::envelope::Identity;
use crate::tree::Digest;
use jiff::Timestamp;
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Most names of a folder among which strays are looked for.
const MAX_STRAYS: usize = 20_000;

/// Called with the number of bytes that were read since the last call; `Break` ends the check.
pub type Watch<'a> = &'a dyn Fn(u64) -> ControlFlow<()>;

/// What [`check`] is given besides the array.
pub struct Options<'a> {
    /// Who may sign, when, and which seal is expected.
    pub terms: Terms<'a>,
    /// Keys; with none, an encrypted shipment's contents are not checked. A plaintext shipment needs none.
    pub identities: &'a [Identity],
    /// A directory where nobody else writes, with room for the manifest; its copy is removed at the end.
    pub work: &'a Path,
    /// Progress, and the way to stop.
    pub watch: Watch<'a>,
}

/// The seal that counted.
#[derive(Debug, Clone, Serialize)]
pub struct SealSummary {
    /// The shipment.
    pub shipment: Uuid,
    /// Whose disks.
    pub site: Site,
    /// BLAKE3 of `seal.json`.
    pub digest: Digest,
    /// For the telephone.
    pub code: String,
    /// By the sealing host's clock.
    pub sealed_at: Timestamp,
    /// NAME@SITE.
    pub signer: String,
    /// `SHA256:…` of the signing key.
    pub fingerprint: String,
    /// Whether that key was compared with a trust file.
    pub signer_checked: bool,
    /// Records are in clear: whoever has the array can read every disk.
    pub plaintext: bool,
    /// Who can read an encrypted shipment, as `shipment.json` says and the seal pins.
    pub recipients: Vec<ReadableBy>,
    /// Who signed `shipment.json`; `None` if nobody did.
    pub prepared_by: Option<String>,
    /// Disks as sealed.
    pub disks: Vec<SealedDisk>,
}

/// One recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadableBy {
    /// `age1…`.
    pub recipient: String,
    /// To compare with paper.
    pub fingerprint: String,
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The array as it was given.
    pub array: String,
    /// The time at which the validity of keys was judged.
    pub judged_at: Timestamp,
    /// `None` if no seal is valid.
    pub seal: Option<SealSummary>,
    /// Whether the manifest was opened and compared with the seal.
    pub manifest_compared: bool,
    /// The packs.
    pub packs: Option<PackTotals>,
    /// The chain of events.
    pub custody: Vec<CheckedEvent>,
    /// What was proven of each disk by reading its blocks; empty without keys.
    pub proven: Vec<DiskProof>,
    /// Everything that was found.
    pub findings: Findings,
    /// Stopped before the end by the caller.
    pub interrupted: bool,
    /// There was nothing to check: no array, no seal yet, no permission to read it. What is in the way stands among the findings.
    pub nothing_to_check: bool,
}

impl Report {
    /// 0 good, 1 nothing to check, 3 damaged, missing or extra, 4 untrusted, 5 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self.findings.exit_code() {
            _ if self.nothing_to_check => 1,
            0 if self.interrupted => 5,
            code => code,
        }
    }
}

/// Checks the array mounted at `array`: all that the options allow.
pub fn check(array: &Path, options: &Options) -> Report {
    let mut report = Report {
        array: array.display().to_string(),
        judged_at: options.terms.at,
        seal: None,
        manifest_compared: false,
        packs: None,
        custody: Vec::new(),
        proven: Vec::new(),
        findings: Findings::default(),
        interrupted: false,
        nothing_to_check: false,
    };
    let mut opened = match open_array(array, &options.terms) {
        Ok(opened) => opened,
        Err(refused) => {
            report.findings = refused.findings;
            report.nothing_to_check = refused.obstacle.is_some();
            note_trust(options.terms.trust, &mut report.findings);
            return report;
        }
    };
    note_trust(options.terms.trust, &mut opened.findings);
    report.seal = Some(opened.summary());
    opened.note_unreadable();
    opened.note_strays();
    report.interrupted = walk(&mut opened, options, &mut report).is_break();
    catalogue::remove_work_copy(options.work);
    report.findings = opened.findings;
    report
}

/// Says which lines of the trust file allow nothing.
fn note_trust(trust: Option<&AllowedSigners>, findings: &mut Findings) {
    trust.into_iter().flat_map(AllowedSigners::notes).for_each(|note| findings.note("trust file", note));
}

fn walk(opened: &mut Opened, options: &Options, report: &mut Report) -> ControlFlow<()> {
    report.custody = opened.check_custody(&options.terms);
    let readable = !opened.encrypted() || !options.identities.is_empty();
    if opened.signer_checked
        && readable
        && let Err(error) = opened.check_identities(options.identities)
    {
        // Known now, and not after 50 TB.
        opened.findings.fault("keys", &error);
        return ControlFlow::Continue(());
    }
    if opened.signer_checked {
        opened.check_manifest_files();
    }
    let mut manifest = None;
    if !opened.signer_checked {
        opened.findings.note("manifest", "not opened, as no trust file was given");
    } else if !readable {
        opened.findings.note("manifest", "not opened, as no identity was given; contents are not checked");
    } else {
        match opened.fetch_manifest(options.identities, options.work) {
            Ok((catalogue, _)) => {
                let disks = opened.cross_check(&catalogue);
                report.manifest_compared = true;
                manifest = Some((catalogue, disks));
            }
            Err(error) => opened.findings.fault("manifest", &error),
        }
    }
    report.packs = Some(opened.check_packs(options.watch)?);
    if !opened.signer_checked {
        // Behind the packs: how long its file is, only the seal says.
        opened.check_manifest_files();
    }
    if let Some((catalogue, disks)) = manifest {
        match opened.keyring(options.identities) {
            Ok(keys) => report.proven = opened.check_contents(&catalogue, &disks, Arc::new(keys), options.watch)?,
            Err(error) => opened.findings.fault("keys", &error),
        }
    }
    ControlFlow::Continue(())
}

impl Opened {
    /// The seal that counts, for people.
    pub fn summary(&self) -> SealSummary {
        let fingerprint = |text: &String| paper_code(&Digest::of(text.as_bytes()));
        let recipients = self.shipment.recipients.iter();
        SealSummary {
            shipment: self.seal.shipment,
            site: self.seal.site.clone(),
            digest: self.seal_digest,
            code: self.spoken_code(),
            sealed_at: self.seal.sealed_at,
            signer: self.seal.signer.clone(),
            fingerprint: self.signed_by.fingerprint.clone(),
            signer_checked: self.signer_checked,
            plaintext: !self.encrypted(),
            recipients: recipients.map(|r| ReadableBy { recipient: r.clone(), fingerprint: fingerprint(r) }).collect(),
            prepared_by: self.prepared_by.clone(),
            disks: self.seal.disks.clone(),
        }
    }

    /// Names files that belong to nothing: a plain manifest beside an encrypted one, an envelope that is not pinned. Also among the
    /// second copies; never in `custody/` and `packs/`, which have checks of their own, nor in `report/`.
    pub fn note_strays(&mut self) {
        let seal = &self.seal;
        let copied = ["shipment.json", "shipment.json.sig", "keys", "seal.json", "seal.json.sig", &seal.manifest.file];
        let single = ["holder.json", "packs", "custody", "report", COPY];
        let mut strays = Vec::new();
        let mut look = |folder: &str, known: &dyn Fn(&str) -> bool| {
            let path = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            match self.root.list_at_most(folder, MAX_STRAYS) {
                Ok(names) => strays.extend(names.iter().filter(|name| !known(name)).map(|name| {
                    (path(name), format!("belongs to nothing that the seal lists; {}", advice_on_stray(name)))
                })),
                Err(unread) => strays.push((format!("{FOLDER}/{folder}"), unread.to_string())),
            }
        };
        look("", &|name| copied.contains(&name) || single.contains(&name));
        look(COPY, &|name| copied.contains(&name));
        for folder in ["keys".to_owned(), copy_of("keys")] {
            look(&folder, &|name| seal.pins.contains_key(&format!("keys/{name}")));
        }
        for (stray, what) in strays {
            let shown: String = stray.chars().take(200).flat_map(char::escape_default).collect();
            self.findings.warn(Class::Extra, shown, what);
        }
    }

    /// Says which disks were not wholly readable at the source: the medium is not to blame, but nobody should be surprised later.
    pub fn note_unreadable(&mut self) {
        for disk in self.seal.disks.clone() {
            let BlockCounts { unreadable, .. } = disk.blocks;
            if unreadable > 0 {
                let what = format!(
                    "{unreadable} blocks were not wholly readable at the source; what is missing counts as zeros"
                );
                self.findings.note(format!("disk {}/{}", disk.machine, disk.disk), what);
            }
        }
    }
}
