//! The certificate of an erasure, and the journal by which an interrupted one resumes when the array can no longer say what it
//! was. Both lie off the array.

use super::destroy::Destroyed;
use super::place::ErasedPlace;
use super::space::{FreeSpace, Treated};
use crate::error::{Error, IoContext, Result};
use crate::io::{create_dirs_durably, read_bounded, sync_dir, write_file_durably};
use crate::ledger::Ledger;
use crate::volume::look::{Look, Verdict};
use jiff::Timestamp;
use motiongear_manifest::documents::shipment::Shipment;
use motiongear_manifest::tree::Digest;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The journal's file, in the directory of its erasure.
const JOURNAL: &str = "journal.json";
/// Largest journal that is read, bytes.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;
/// Largest certificate that is read, bytes: it holds the journal.
const MAX_CERTIFICATE_BYTES: u64 = MAX_JOURNAL_BYTES;

/// A disk whose copy was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedDisk {
    /// Its machine.
    pub machine: String,
    /// Its name.
    pub disk: String,
    /// Identity.
    pub uuid: Uuid,
    /// As sealed.
    pub digest: Digest,
    /// Why it did not count as proven by full read-back here; `None` where it did.
    pub unproven: Option<String>,
    /// What a look at its volume found before the erasure; `None` where nothing was proven that could be looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look: Option<Look>,
}

impl ErasedDisk {
    /// Why its volume is not what was proven; `None` where it is, its difference was accepted, or nothing was proven.
    pub fn unseen(&self) -> Option<String> {
        self.look.as_ref().and_then(Look::fault)
    }

    /// Whether it was proven, and its volume is still what was proven, or its difference was accepted.
    pub fn is_proven(&self) -> bool {
        self.unproven.is_none() && self.unseen().is_none()
    }

    /// When the difference of its volume was accepted, and why.
    pub fn accepted(&self) -> Option<(Timestamp, &str)> {
        match &self.look.as_ref()?.verdict {
            Verdict::Accepted { check } => Some((check.accepted_at?, check.reason.as_deref().unwrap_or_default())),
            _ => None,
        }
    }
}

/// What is known before anything is destroyed, and what was destroyed so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// What the array was prepared for.
    pub shipment: Shipment,
    /// BLAKE3 of `seal.json`; `None` for an array that was never sealed, or whose seal cannot be read.
    pub seal: Option<Digest>,
    /// The disks of the seal.
    pub disks: Vec<ErasedDisk>,
    /// NAME@SITE.
    pub signer: String,
    /// Why it is erased although not everything is proven.
    pub reason: Option<String>,
    /// When it began.
    pub began_at: Timestamp,
    /// Where the array was.
    #[serde(default)]
    pub place: ErasedPlace,
    /// Numbers of packs that the seed gave up: their files were gone before, and their bytes lie in free space.
    #[serde(default)]
    pub given_up_packs: Vec<u32>,
    /// What is to become of free space.
    pub free_space: FreeSpace,
    /// Files that fill it may lie on the array.
    #[serde(default)]
    pub filling: bool,
    /// What became of it.
    #[serde(default)]
    pub treated: Option<Treated>,
    /// Key envelopes, both copies.
    pub envelopes: Vec<Destroyed>,
    /// Packs.
    pub packs: Vec<Destroyed>,
    /// Everything else.
    pub others: Vec<Destroyed>,
}

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Format version.
    pub format: u32,
    /// What this is, for whoever opens the file alone.
    pub document: String,
    /// For people.
    pub spoken_code: Option<String>,
    /// When everything was gone.
    pub finished_at: Timestamp,
    /// The host that erased.
    pub host: String,
    /// Program and version.
    pub tool: String,
    /// Every disk was proven by full read-back before, and its volume was still what was proven, or its difference was accepted.
    pub proven: bool,
    /// How the content was destroyed, in words.
    pub method: String,
    /// What erasing files cannot promise.
    pub caution: String,
    /// Everything that was known and done.
    #[serde(flatten)]
    pub journal: Journal,
}

impl Journal {
    /// Every erasure has a directory of its own, with which goes what a killed run left there of a file half written.
    fn dir(ledger: &Ledger, shipment: Uuid) -> PathBuf {
        Self::all(ledger).join(shipment.to_string())
    }
    fn all(ledger: &Ledger) -> PathBuf {
        ledger.state().join("erasures")
    }

    /// The erasure of `shipment` that was interrupted here, if one was.
    ///
    /// # Errors
    /// It is there and cannot be understood.
    pub fn find(ledger: &Ledger, shipment: Uuid) -> Result<Option<Journal>> {
        let path = Self::dir(ledger, shipment).join(JOURNAL);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_bounded(&path, MAX_JOURNAL_BYTES)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::failed(format!("Journal of an erasure {}", path.display())).because(e))
    }

    /// The interrupted erasure of the array with this asset tag, where the array itself cannot say any more.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn find_by_tag(ledger: &Ledger, tag: &str) -> Result<Option<Journal>> {
        let Ok(entries) = std::fs::read_dir(Self::all(ledger)) else { return Ok(None) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let uuid = name.to_str().and_then(|n| Uuid::parse_str(n).ok());
            if let Some(uuid) = uuid
                && let Some(journal) = Self::find(ledger, uuid)?
                && super::tag_matches(&journal.shipment.asset_tag, uuid, tag)
            {
                return Ok(Some(journal));
            }
        }
        Ok(None)
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn save(&self, ledger: &Ledger) -> Result<()> {
        let dir = Self::dir(ledger, self.shipment.shipment);
        create_dirs_durably(&dir, 0o777)?;
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| Error::failed("Journal of an erasure").because(e))?;
        write_file_durably(&dir, JOURNAL, &bytes)
    }

    /// Removes that of `shipment`, if there is one, and what killed runs left beside it: the certificate says it all now.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn remove(ledger: &Ledger, shipment: Uuid) -> Result<()> {
        let dir = Self::dir(ledger, shipment);
        let what = || format!("Journal of an erasure in {}", dir.display());
        if !dir.try_exists().context(what)? {
            return Ok(());
        }
        for entry in std::fs::read_dir(&dir).context(what)? {
            let entry = entry.context(what)?;
            if entry.file_name() != JOURNAL {
                std::fs::remove_file(entry.path()).context(what)?;
            }
        }
        // The journal last: a run that is killed in between finds it, and goes on here.
        sync_dir(&dir)?;
        match std::fs::remove_file(dir.join(JOURNAL)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(what),
            _ => {}
        }
        std::fs::remove_dir(&dir).context(what)?;
        sync_dir(&Self::all(ledger))
    }
}

impl Certificate {
    /// Reads one, and its bytes.
    ///
    /// # Errors
    /// It is none.
    pub fn read(path: &Path) -> Result<(Certificate, Vec<u8>)> {
        let bytes = read_bounded(path, MAX_CERTIFICATE_BYTES)?;
        let certificate = serde_json::from_slice(&bytes)
            .map_err(|e| Error::failed(format!("Certificate {}", path.display())).because(e))?;
        Ok((certificate, bytes))
    }
}
