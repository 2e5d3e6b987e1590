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
mod trust;

pub use catalogue::WORK_FILE;
pub use contents::DiskProof;
pub use custody::CheckedEvent;
pub use files::{COPY, FOLDER, Root, Unread, copy_of};
pub use findings::{Class, Finding, Findings, MAX_LISTED, Severity, class_of};
pub use packs::PackTotals;
pub use trust::{Opened, Refused, Terms, open_array, split_signer};

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
    /// Its first 40 bits for the telephone.
    pub code: String,
    /// By the sealing host's clock.
    pub sealed_at: Timestamp,
    /// NAME@SITE.
    pub signer: String,
    /// `SHA256:…` of the signing key.
    pub fingerprint: String,
    /// Whether that key was compared with a trust file.
    pub signer_checked: bool,
    /// Disks as sealed.
    pub disks: Vec<SealedDisk>,
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
}

impl Report {
    /// design.md, section 7: 0 good, 3 damaged, missing or extra, 4 untrusted, 5 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self.findings.exit_code() {
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
    };
    let mut opened = match open_array(array, &options.terms) {
        Ok(opened) => opened,
        Err(refused) => {
            report.findings = refused.findings;
            return report;
        }
    };
    if let Some(trust) = options.terms.trust {
        trust.notes().into_iter().for_each(|note| opened.findings.note("trust file", note));
    }
    report.seal = Some(summary(&opened));
    opened.note_unreadable();
    opened.note_strays();
    report.interrupted = walk(&mut opened, options, &mut report).is_break();
    catalogue::remove_work_copy(options.work);
    report.findings = opened.findings;
    report
}

fn walk(opened: &mut Opened, options: &Options, report: &mut Report) -> ControlFlow<()> {
    report.custody = opened.check_custody(&options.terms);
    opened.check_manifest_files();
    let readable = !opened.encrypted() || !options.identities.is_empty();
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
    if let Some((catalogue, disks)) = manifest {
        match opened.keyring(options.identities) {
            Ok(keys) => report.proven = opened.check_contents(&catalogue, &disks, Arc::new(keys), options.watch)?,
            Err(error) => opened.findings.fault("keys", &error),
        }
    }
    ControlFlow::Continue(())
}

fn summary(opened: &Opened) -> SealSummary {
    SealSummary {
        shipment: opened.seal.shipment,
        site: opened.seal.site.clone(),
        digest: opened.seal_digest,
        code: opened.spoken_code(),
        sealed_at: opened.seal.sealed_at,
        signer: opened.seal.signer.clone(),
        fingerprint: opened.signed_by.fingerprint.clone(),
        signer_checked: opened.signer_checked,
        disks: opened.seal.disks.clone(),
    }
}

impl Opened {
    /// Names files that belong to nothing: a plain manifest beside an encrypted one, an envelope that is not pinned. Also among the
    /// second copies; never in `custody/` and `packs/`, which have checks of their own, nor in `report/`.
    pub fn note_strays(&mut self) {
        let seal = &self.seal;
        let copied = ["shipment.json", "shipment.json.sig", "keys", "seal.json", "seal.json.sig", &seal.manifest.file];
        let single = ["holder.json", "packs", "custody", "report", COPY];
        let list = |folder: &str| self.root.list(folder).unwrap_or_default();
        let mut strays: Vec<String> = list("");
        strays.retain(|name| !copied.contains(&name.as_str()) && !single.contains(&name.as_str()));
        let copies = list(COPY).into_iter().filter(|name| !copied.contains(&name.as_str()));
        strays.extend(copies.map(|name| copy_of(&name)));
        for folder in ["keys".to_owned(), copy_of("keys")] {
            let unpinned = list(&folder).into_iter().filter(|name| !seal.pins.contains_key(&format!("keys/{name}")));
            strays.extend(unpinned.map(|name| format!("{folder}/{name}")));
        }
        for stray in strays {
            let shown: String = stray.chars().take(200).flat_map(char::escape_default).collect();
            self.findings.warn(Class::Extra, shown, "belongs to nothing that the seal lists; it is never read");
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
