//! What is kept of a drill: `STATE/drills/UUID/`, one file for each who writes, so that nobody ever writes over another.
//!
//! | file | written by | what |
//! | --- | --- | --- |
//! | `drill.json` | `start`, before anything is made | which machine, which recovery point or array, how it shall boot |
//! | `course.json` | the keeper, as it goes on | what became of it |
//! | `adapt.log` | the keeper | what the converter said, its first and last [`MAX_ADAPT_LOG_BYTES`]; only where the machine was to be adapted |
//! | `serial.log` | the keeper | what the machine said on its serial console, the first [`MAX_SERIAL_BYTES`] of it |
//! | `picture.png` | QEMU, for the keeper | its screen when a login was seen, or when the time was over; compute services give none |
//! | `confirm.json`, `confirm.json.sig` | `confirm` | what people say of it, signed, with the digests of the evidence |
//! | `end.json` | `end` | that nothing is left over |
//!
//! `lock` is held by `start` and handed on to the keeper: whoever gets it knows that neither lives any more. `end` is asked for by the
//! file `ending`. Images that the machine writes to lie beside, until `end`.

use super::record::{Confirmation, Course, Drill, Ended, MAX_TEXT_BYTES, Pinned, Withdrawal, json};
use crate::error::{Error, IoContext, Result};
use crate::io::{create_file_durably, read_bounded, sync_dir, write_file_durably};
use crate::ledger::Ledger;
use motiongear_manifest::names::{check_name, check_text};
use motiongear_manifest::tree::Digest;
use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// What is kept of the serial console, bytes.
pub const MAX_SERIAL_BYTES: u64 = 4 << 20;
/// What is kept of the converter's words, of its first and of its last ones each, bytes.
pub const MAX_ADAPT_LOG_BYTES: usize = 1 << 20;
/// Largest document, bytes.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// Largest picture, bytes; a screen of 1280 × 800 has some tens of kilobytes.
pub const MAX_PICTURE_BYTES: u64 = 16 << 20;
/// How long a converter that was killed may take to be gone.
const DIES_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at a lock.
const LOOK: Duration = Duration::from_millis(50);

/// The serial console's log.
pub const SERIAL: &str = "serial.log";
/// The screen.
pub const PICTURE: &str = "picture.png";
/// The converter's words.
pub const ADAPT_LOG: &str = "adapt.log";
const DRILL: &str = "drill.json";
/// What became of the machine.
pub const COURSE: &str = "course.json";
/// Confirmations of one drill, each but the last withdrawn.
const MAX_CONFIRMATIONS: usize = 100;
const END: &str = "end.json";
/// What a confirmation pins.
const EVIDENCE: [&str; 4] = [DRILL, ADAPT_LOG, SERIAL, PICTURE];
/// Where the converter is, until it ends.
const BOX: &str = "adapting";
const LOCK: &str = "lock";
const ENDING: &str = "ending";

/// What people said of a drill: a signed document, and what withdraws it.
pub struct Said {
    /// The document.
    pub confirmation: Confirmation,
    /// Its bytes.
    pub document: Vec<u8>,
    /// Its signature.
    pub signature: Vec<u8>,
    /// What withdraws it, with its bytes and signature.
    pub withdrawal: Option<(Withdrawal, Vec<u8>, Vec<u8>)>,
}

/// `confirm.json`, `confirm-2.json` …, `withdraw.json` …: the name of the document that is the `place`-th of its kind, from 0.
fn numbered(kind: &str, place: usize) -> String {
    match place {
        0 => format!("{kind}.json"),
        place => format!("{kind}-{}.json", place + 1),
    }
}

/// The directory of a drill.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    /// Which.
    pub id: Uuid,
}

impl Folder {
    /// `STATE/drills`.
    pub fn all(ledger: &Ledger) -> PathBuf {
        ledger.state().join("drills")
    }

    /// Of a drill that may not exist yet.
    pub fn of(ledger: &Ledger, id: Uuid) -> Folder {
        Folder { path: Folder::all(ledger).join(id.to_string()), id }
    }

    /// Every drill of this ledger, oldest first by what `drill.json` says. A directory without one is of a `start` that was killed before it
    /// did anything, and is passed over.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(ledger: &Ledger) -> Result<Vec<(Folder, Drill)>> {
        let dir = Folder::all(ledger);
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).context(|| format!("Directory {}", dir.display()))? {
            let entry = entry.context(|| format!("Directory {}", dir.display()))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok()) else { continue };
            let folder = Folder { path: entry.path(), id };
            if let Some(drill) = folder.drill()? {
                found.push((folder, drill));
            }
        }
        found.sort_by_key(|(folder, drill)| (drill.made_at, folder.id));
        Ok(found)
    }

    /// The drill that people call `id`: its UUID, or the beginning of it.
    ///
    /// # Errors
    /// None, or several.
    pub fn find(ledger: &Ledger, id: &str) -> Result<(Folder, Drill)> {
        let wanted = id.to_ascii_lowercase();
        let mut fitting: Vec<(Folder, Drill)> =
            Folder::list(ledger)?.into_iter().filter(|(f, _)| f.id.to_string().starts_with(&wanted)).collect();
        match (fitting.pop(), fitting.len()) {
            (Some(_), 0) if wanted.len() < 4 => Err(Error::usage(format!(
                "Drill '{id:.50}': expected four characters of its UUID at least, found fewer"
            ))),
            (Some(found), 0) => Ok(found),
            (Some(_), _) => Err(Error::usage(format!("Drill '{id:.50}': expected the name of one, found several"))
                .next("give more of its UUID, four characters at least: 'motiongear drill show' lists them")),
            (None, _) => {
                Err(Error::failed(format!("Drill '{id:.50}': expected one of this ledger, found none of that name"))
                    .next("'motiongear drill show' lists them; --state DIR names another ledger"))
            }
        }
    }

    /// A file of it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `drill.json`.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn drill(&self) -> Result<Option<Drill>> {
        let drill: Option<Drill> = self.read(DRILL)?;
        let Some(drill) = drill else { return Ok(None) };
        let names = [("Site name", &drill.site_name), ("Machine name", &drill.machine)];
        let disks = drill.disks.iter().map(|disk| ("Disk name", &disk.name));
        names.into_iter().chain(disks).try_for_each(|(what, name)| check_name(what, name))?;
        self.is_mine(DRILL, drill.drill, drill.format)?;
        Ok(Some(drill))
    }

    /// `course.json`.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn course(&self) -> Result<Option<Course>> {
        let course: Option<Course> = self.read(COURSE)?;
        if let Some(course) = &course {
            self.is_mine(COURSE, course.drill, course.format)?;
        }
        Ok(course)
    }

    /// What people said of it, in order; all but the last are withdrawn.
    ///
    /// # Errors
    /// A document is there and makes no sense.
    pub fn said(&self) -> Result<Vec<Said>> {
        let mut all: Vec<Said> = Vec::new();
        while all.len() < MAX_CONFIRMATIONS && all.last().is_none_or(|said| said.withdrawal.is_some()) {
            let place = all.len();
            let Some((confirmation, document, signature)) = self.signed::<Confirmation>(&numbered("confirm", place))?
            else {
                break;
            };
            self.is_mine(&numbered("confirm", place), confirmation.drill, confirmation.format)?;
            for (what, text) in [("Person", &confirmation.person), ("Note", &confirmation.note)] {
                check_text(what, text, MAX_TEXT_BYTES)?;
            }
            let withdrawal = self.signed::<Withdrawal>(&numbered("withdraw", place))?;
            if let Some((withdrawal, ..)) = &withdrawal {
                self.is_mine(&numbered("withdraw", place), withdrawal.drill, withdrawal.format)?;
                for (what, text) in [("Person", &withdrawal.person), ("Reason", &withdrawal.reason)] {
                    check_text(what, text, MAX_TEXT_BYTES)?;
                }
            }
            all.push(Said { confirmation, document, signature, withdrawal });
        }
        Ok(all)
    }

    /// A document with its bytes and its signature's.
    fn signed<T: DeserializeOwned>(&self, name: &str) -> Result<Option<(T, Vec<u8>, Vec<u8>)>> {
        let Some(read) = self.read(name)? else { return Ok(None) };
        let bytes = read_bounded(&self.join(name), MAX_DOCUMENT_BYTES)?;
        let signature = read_bounded(&self.join(&format!("{name}.sig")), MAX_DOCUMENT_BYTES)?;
        Ok(Some((read, bytes, signature)))
    }

    /// `end.json`.
    ///
    /// # Errors
    /// It is there and makes no sense.
    pub fn ended(&self) -> Result<Option<Ended>> {
        let ended: Option<Ended> = self.read(END)?;
        if let Some(ended) = &ended {
            self.is_mine(END, ended.drill, ended.format)?;
        }
        Ok(ended)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.join(name);
        if !path.try_exists().context(|| format!("File {}", path.display()))? {
            return Ok(None);
        }
        serde_json::from_slice(&read_bounded(&path, MAX_DOCUMENT_BYTES)?).map(Some).map_err(|error| {
            Error::failed(format!(
                "File {}: expected what motiongear drill wrote, found something else",
                path.display()
            ))
            .because(error)
            .next("the state directory was altered: bring it back from a backup, or move that drill's directory away")
        })
    }

    fn is_mine(&self, name: &str, found: Uuid, format: u32) -> Result<()> {
        match found == self.id && format == 1 {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "File {}: expected format 1 of drill {}, found format {format} of {found}",
                self.join(name).display(),
                self.id
            ))),
        }
    }

    /// Writes `drill.json`, once.
    ///
    /// # Errors
    /// It is there already, or the file system refuses.
    pub fn put_drill(&self, drill: &Drill) -> Result<()> {
        create_file_durably(&self.path, DRILL, &json(drill)?)
    }

    /// Writes `course.json`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn put_course(&self, course: &Course) -> Result<()> {
        write_file_durably(&self.path, COURSE, &json(course)?)
    }

    /// Keeps others from confirming it while the file is open.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn hold_confirmation(&self) -> Result<File> {
        // Written once, and never again.
        let path = self.join(DRILL);
        let what = || format!("Lock {}", path.display());
        let file = File::open(&path).context(what)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).context(what)?;
        Ok(file)
    }

    /// Writes the `place`-th confirmation, and gives its name.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn put_confirmation(&self, place: usize, document: &[u8], signature: &str) -> Result<String> {
        self.put_signed(numbered("confirm", place), document, signature)
    }

    /// Withdraws the `place`-th confirmation, and gives the document's name.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn put_withdrawal(&self, place: usize, document: &[u8], signature: &str) -> Result<String> {
        self.put_signed(numbered("withdraw", place), document, signature)
    }

    /// The signature first, for without it the document is none.
    fn put_signed(&self, name: String, document: &[u8], signature: &str) -> Result<String> {
        write_file_durably(&self.path, &format!("{name}.sig"), signature.as_bytes())?;
        create_file_durably(&self.path, &name, document)?;
        Ok(name)
    }

    /// Writes `end.json`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn put_end(&self, ended: &Ended) -> Result<()> {
        write_file_durably(&self.path, END, &json(ended)?)
    }

    /// Asks the keeper to end the machine.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn ask_to_end(&self) -> Result<()> {
        write_file_durably(&self.path, ENDING, b"")
    }

    /// Whether somebody asked for its end.
    pub fn is_to_end(&self) -> bool {
        self.join(ENDING).exists()
    }

    /// Holds the drill, `within` at most until whoever has it is gone; `None` where somebody has it still.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn hold(&self, within: Duration) -> Result<Option<File>> {
        let path = self.join(LOCK);
        let what = || format!("Lock {}", path.display());
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).context(what)?;
        let until = Instant::now() + within;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOOK),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno).context(what),
            }
        }
    }

    /// A file as it is now; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is larger than it may be.
    pub fn pin(&self, name: &str) -> Result<Option<Pinned>> {
        let path = self.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_bounded(&path, MAX_PICTURE_BYTES)?;
        Ok(Some(Pinned { file: name.to_owned(), bytes: bytes.len() as u64, blake3: Digest::of(&bytes) }))
    }

    /// Everything that a confirmation is about and that is never written again, but for the log, which may grow.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn pin_evidence(&self) -> Result<Vec<Pinned>> {
        let pinned: Result<Vec<Option<Pinned>>> = EVIDENCE.into_iter().map(|name| self.pin(name)).collect();
        Ok(pinned?.into_iter().flatten().collect())
    }

    /// Whether a file is not what was pinned any more. Bytes behind the pinned ones count where it was `whole`.
    pub fn differs(&self, pinned: &Pinned, whole: bool) -> bool {
        let known = EVIDENCE.contains(&pinned.file.as_str());
        let bytes = known.then(|| read_bounded(&self.join(&pinned.file), MAX_PICTURE_BYTES).ok()).flatten();
        let Some(bytes) = bytes else { return true };
        let first = usize::try_from(pinned.bytes).ok().and_then(|length| bytes.get(..length));
        let longer = bytes.len() as u64 > pinned.bytes;
        first.is_none_or(|first| Digest::of(first) != pinned.blake3) || whole && longer
    }

    /// The image that a disk's writes go to.
    pub fn overlay(&self, slot: usize) -> PathBuf {
        self.join(&format!("disk{slot}.qcow2"))
    }

    /// The directory that the converter works in, and takes for `/tmp`.
    pub fn adapting(&self) -> PathBuf {
        self.join(BOX)
    }

    /// Removes the converter's directory, whatever it left there.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn clear_adapting(&self) -> Result<bool> {
        let path = self.adapting();
        let until = Instant::now() + DIES_WITHIN;
        loop {
            match std::fs::remove_dir_all(&path) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                // Who was killed a moment ago may still have been making something.
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty && Instant::now() < until => {
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(error).context(|| format!("Directory {}", path.display())),
            }
        }
    }

    /// The variables of UEFI.
    pub fn variables(&self) -> PathBuf {
        self.join("variables.fd")
    }

    /// Removes what only a running machine needs. Says whether there was something.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn clear(&self, disks: usize) -> Result<bool> {
        let mut any = self.clear_adapting()?;
        let files = (0..disks).map(|slot| self.overlay(slot)).chain([self.variables(), self.join(ENDING)]);
        for path in files {
            match std::fs::remove_file(&path) {
                Ok(()) => any = true,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(|| format!("File {}", path.display())),
            }
        }
        sync_dir(&self.path)?;
        Ok(any)
    }

    /// Removes all of it: a drill that never ran is no evidence of anything.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.path).context(|| format!("Directory {}", self.path.display()))?;
        sync_dir(self.path.parent().unwrap_or(Path::new("/")))
    }
}
