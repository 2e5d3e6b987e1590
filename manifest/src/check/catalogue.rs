//! The manifest: hashed while it is copied, and only that copy opened; then compared with the seal, row by row.

use super::files::{Unread, copy_of};
use super::findings::{Class, Findings};
use super::places::Places;
use super::trust::Opened;
use crate::catalogue::{BlockRow, Catalogue, Generation};
use crate::documents::seal::{ManifestPin, SealedDisk, envelope_number, pack_number};
use crate::envelope::{EnvelopeError, Identity, decrypt_stream};
use crate::error::{FormatError, Result};
use crate::geometry::Geometry;
use crate::sums::{SummedReader, SummedWriter, Sums};
use crate::tree::Digest;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The copy's name in the work directory.
pub const WORK_FILE: &str = "manifest.db";

impl Opened {
    /// Copies the manifest (the first copy on the array that is what the seal says) to `work/manifest.db`, decrypted, and opens
    /// that. `work` is a directory where nobody else writes; an older copy in it is replaced. The copy is synced.
    ///
    /// # Errors
    /// Untrusted: no trust file was given, no identity fits, neither copy is what the seal says, or it is no manifest. Io: no room.
    pub fn fetch_manifest(&mut self, identities: &[Identity], work: &Path) -> Result<(Catalogue, PathBuf)> {
        if !self.signer_checked {
            return Err(FormatError::untrusted(
                "Manifest",
                "not opened, as the signer was not checked; give a trust file",
            ));
        }
        let target = work.join(WORK_FILE);
        let (file, mut faults) = (self.seal.manifest.file.clone(), Vec::new());
        for name in [file.clone(), copy_of(&file)] {
            match self.copy_manifest(&name, &target, identities) {
                Ok(()) => {
                    // Unless `check_manifest_files` said so already.
                    let said = self.findings.list.iter().any(|finding| finding.object == file);
                    for fault in faults.into_iter().filter(|_| !said) {
                        self.findings.warn(Class::Damaged, file.clone(), format!("{fault}; the second copy is used"));
                    }
                    // What was sealed and is no manifest was never damaged: it was made so.
                    let catalogue = Catalogue::open_sealed(&target).map_err(|e| match e {
                        FormatError::Io { .. } => e,
                        other => FormatError::untrusted(file, other.to_string()),
                    })?;
                    return Ok((catalogue, target));
                }
                Err(Fault::Stop(error)) => return Err(error),
                Err(Fault::Copy(what)) => faults.push(what),
            }
        }
        let _ = fs::remove_file(&target);
        Err(FormatError::untrusted(
            file,
            format!("neither copy is what the seal says: {}", faults.join("; second copy: ")),
        ))
    }

    fn copy_manifest(&self, name: &str, target: &Path, identities: &[Identity]) -> Result<(), Fault> {
        let pin = &self.seal.manifest;
        let (source, bytes) = self.root.open_file(name).map_err(|e: Unread| Fault::Copy(e.to_string()))?;
        if bytes != pin.bytes {
            return Err(Fault::Copy(format!("expected {} bytes, found {bytes}", pin.bytes)));
        }
        let stop = |error| Fault::Stop(FormatError::io(target, error));
        let _ = fs::remove_file(target);
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map_err(stop)?;
        // One byte more than is sealed shows growth without reading for ever.
        let limited = source.take(pin.bytes.saturating_add(1));
        let sums = if self.encrypted() {
            match decrypt_stream(limited, BufWriter::with_capacity(1 << 20, &out), identities) {
                Ok(sums) => (sums.cipher, sums.plain),
                Err(EnvelopeError::NoMatch { identities, .. }) => return Err(self.wrong_identity(name, identities)),
                Err(EnvelopeError::Io { what: "Writing the decrypted file", source }) => return Err(stop(source)),
                Err(other) => return Err(Fault::Copy(other.to_string())),
            }
        } else {
            let sums = copy_summed(limited, &out).map_err(|(writing, error)| match writing {
                true => stop(error),
                false => Fault::Copy(error.to_string()),
            })?;
            (sums, sums)
        };
        compare(pin, &sums.0, &sums.1).map_err(Fault::Copy)?;
        out.sync_all().map_err(stop)
    }

    /// A damaged header looks like a wrong identity: the file's own digest tells which it is.
    fn wrong_identity(&self, name: &str, identities: usize) -> Fault {
        let (pin, found) = (&self.seal.manifest, self.sums_of(name));
        match found {
            Ok(found) if (found.bytes, found.blake3, found.sha256) == (pin.bytes, pin.blake3, pin.sha256) => {
                let what = format!("none of the {identities} identities given is one of its recipients");
                Fault::Stop(FormatError::untrusted(format!("Manifest {name}"), what))
            }
            Ok(found) => Fault::Copy(format!("expected BLAKE3 {}, found {}", pin.blake3, found.blake3)),
            Err(unread) => Fault::Copy(unread.to_string()),
        }
    }

    fn sums_of(&self, name: &str) -> Result<Sums, Unread> {
        let (source, _) = self.root.open_file(name)?;
        copy_summed(source.take(self.seal.manifest.bytes.saturating_add(1)), io::sink()).map_err(|(_, e)| e.into())
    }

    /// Both copies of the manifest by digest, without opening either: what can be said without keys.
    pub fn check_manifest_files(&mut self) {
        let pin = self.seal.manifest.clone();
        let judge = |name: &str| -> Result<(), String> {
            let found = self.sums_of(name).map_err(|e| e.to_string())?;
            if (found.bytes, found.blake3, found.sha256) == (pin.bytes, pin.blake3, pin.sha256) {
                return Ok(());
            }
            Err(format!(
                "expected {} bytes with BLAKE3 {}, found {} with {}",
                pin.bytes, pin.blake3, found.bytes, found.blake3
            ))
        };
        let copy = copy_of(&pin.file);
        match (judge(&pin.file), judge(&copy)) {
            (Ok(()), Ok(())) => {}
            (Ok(()), Err(fault)) => self.findings.warn(Class::Damaged, copy, fault),
            (Err(fault), Ok(())) => {
                self.findings.warn(Class::Damaged, pin.file, format!("{fault}; the second copy serves"));
            }
            (Err(first), Err(second)) => {
                // Rotten or swapped, nothing can be used without it.
                self.findings.error(Class::Untrusted, pin.file, first);
                self.findings.error(Class::Untrusted, copy, second);
            }
        }
    }

    /// Compares the manifest with the seal: shipment, site, machines and disks by name, packs, and for each disk its counts and
    /// the digest that its leaves merge to. Every difference is a finding; the generations of the sealed disks are returned.
    pub fn cross_check(&mut self, catalogue: &Catalogue) -> Vec<(SealedDisk, Generation)> {
        let mut findings = Findings::default();
        let matched = self.compare_rows(catalogue, &mut findings).unwrap_or_else(|error| {
            findings.error(Class::Untrusted, "manifest.db", error.to_string());
            Vec::new()
        });
        self.findings.append(findings);
        matched
    }

    fn compare_rows(&self, catalogue: &Catalogue, findings: &mut Findings) -> Result<Vec<(SealedDisk, Generation)>> {
        catalogue.check_sealed()?;
        const DB: &str = "manifest.db";
        let mut differ = |object: String, expected: String, found: String| {
            if expected != found {
                findings.error(Class::Untrusted, DB, format!("{object}: expected {expected} as sealed, found {found}"));
            }
        };
        let (row, shipment) = (catalogue.shipment()?, &self.shipment);
        differ("Shipment".into(), shipment.shipment.to_string(), row.uuid.to_string());
        let site = |uuid, name: &str| format!("{name} {uuid}");
        differ("Site".into(), site(shipment.site.uuid, &shipment.site.name), site(row.site_uuid, &row.site_name));
        differ("Block size".into(), shipment.block_bytes.to_string(), row.block_bytes.to_string());
        differ("Encrypted".into(), self.encrypted().to_string(), row.encrypted.to_string());
        let words = |label: &str, tag: &str, at: Timestamp| format!("label '{label}', asset tag '{tag}', {at}");
        differ(
            "Preparation".into(),
            words(&shipment.label, &shipment.asset_tag, shipment.created_at),
            words(&row.label, &row.asset_tag, row.created_at),
        );
        // By number, as the rows are: the order in a document says nothing.
        let medium = |number: u32, uuid, serial: &str| (number, format!("{number}: {uuid} '{serial}'"));
        let media = |list: BTreeMap<u32, String>| list.into_values().collect::<Vec<_>>().join(", ");
        let sealed = shipment.media.iter().map(|m| medium(m.number, m.uuid, &m.serial)).collect();
        let found = catalogue.media()?.iter().map(|m| medium(m.number, m.uuid, &m.serial)).collect();
        differ("Media".into(), media(sealed), media(found));

        let sealed: BTreeMap<u32, String> = self
            .seal
            .packs
            .iter()
            .filter_map(|p| {
                Some((
                    pack_number(&p.file)?,
                    format!("medium {}, {} bytes, {} records, BLAKE3 {}", p.medium, p.bytes, p.records, p.blake3),
                ))
            })
            .collect();
        let mut rows: BTreeMap<u32, String> = catalogue
            .packs()?
            .into_iter()
            .map(|p| {
                let digest = p.blake3.map_or("none".to_owned(), |d| d.to_string());
                (p.number, format!("medium {}, {} bytes, {} records, BLAKE3 {digest}", p.medium, p.bytes, p.records))
            })
            .collect();
        for (number, text) in sealed {
            let found = rows.remove(&number).unwrap_or_else(|| "no row".to_owned());
            differ(format!("Pack {number}"), text, found);
        }
        rows.into_iter().for_each(|(number, text)| differ(format!("Pack {number}"), "no row".into(), text));

        let mut pinned: BTreeMap<u32, Digest> =
            self.seal.pins.iter().filter_map(|(file, digest)| Some((envelope_number(file)?, *digest))).collect();
        for process in catalogue.processes()? {
            let text = |digest: Option<Digest>| digest.map_or("none".to_owned(), |digest| digest.to_string());
            differ(
                format!("Envelope of process {}", process.number),
                text(pinned.remove(&process.number)),
                text(process.envelope),
            );
        }
        pinned.into_iter().for_each(|(number, digest)| {
            differ(format!("Envelope of process {number}"), digest.to_string(), "no such process".into());
        });

        let machines: BTreeMap<u32, String> = catalogue.machines()?.into_iter().map(|m| (m.number, m.name)).collect();
        let disks: BTreeMap<u32, _> = catalogue.disks()?.into_iter().map(|d| (d.number, d)).collect();
        let name = |number: u32| {
            let disk = disks.get(&number)?;
            Some(format!("{}/{}", machines.get(&disk.machine)?, disk.name))
        };
        let mut excluded: Vec<String> =
            disks.values().filter_map(|d| Some(format!("{}: {}", name(d.number)?, d.excluded.as_ref()?))).collect();
        let mut sealed: Vec<String> =
            self.seal.excluded.iter().map(|d| format!("{}/{}: {}", d.machine, d.disk, d.reason)).collect();
        excluded.sort();
        sealed.sort();
        differ("Excluded disks".into(), sealed.join(", "), excluded.join(", "));

        let mut generations: BTreeMap<(u32, u32), Generation> =
            catalogue.generations()?.into_iter().map(|g| ((g.disk, g.number), g)).collect();
        let (mut matched, mut places) = (Vec::new(), Places::new(&self.seal));
        for disk in &self.seal.disks {
            let object = format!("Disk {}/{}", disk.machine, disk.disk);
            let Some(generation) = generations.remove(&(disk.id, disk.generation)) else {
                differ(object, format!("number {} with generation {}", disk.id, disk.generation), "none".into());
                continue;
            };
            let uuid = disks.get(&disk.id).map_or("none".to_owned(), |d| d.uuid.to_string());
            differ(
                format!("Disk number {}", disk.id),
                format!("{}/{} {}", disk.machine, disk.disk, disk.uuid),
                format!("{} {uuid}", name(disk.id).unwrap_or_else(|| "none".to_owned())),
            );
            let words = |bytes, consistency, basis, digest| {
                format!("{bytes} bytes, {consistency:?} by {basis:?}, digest {digest}")
            };
            let digest = generation.digest.map_or("none".to_owned(), |d| d.to_string());
            differ(
                object.clone(),
                words(disk.bytes, disk.consistency, disk.basis, disk.digest.to_string()),
                words(generation.bytes, generation.consistency, generation.basis, digest),
            );
            let geometry = Geometry::new(disk.bytes, disk.block_bytes)?;
            let place = |row: &BlockRow| row.place.as_ref().map_or(Ok(()), |place| places.add(place));
            match catalogue.summarise_rows(&generation, &geometry, self.encrypted(), place) {
                Ok((counts, merged)) => {
                    let words = |c: &crate::documents::seal::BlockCounts| {
                        format!("{} stored, {} zero, {} unreadable", c.stored, c.zero, c.unreadable)
                    };
                    differ(format!("{object}, blocks"), words(&disk.blocks), words(&counts));
                    // The digest of at most one block is no merge; the data proves it.
                    if let Some(merged) = merged {
                        differ(format!("{object}, leaves"), disk.digest.to_string(), merged.to_string());
                    }
                    matched.push((disk.clone(), generation));
                }
                Err(error) => differ(object, "sound rows".into(), error.to_string()),
            }
        }
        if let Err(error) = places.join() {
            differ("Records".into(), "sound rows".into(), error.to_string());
        }
        for (number, generation) in generations.into_keys() {
            differ(format!("Disk number {number}"), "no more generations".into(), format!("generation {generation}"));
        }
        Ok(matched)
    }
}

/// Why one copy of the manifest did not serve.
enum Fault {
    /// This copy is bad; the other may do.
    Copy(String),
    /// The other would not help.
    Stop(FormatError),
}

fn compare(pin: &ManifestPin, stored: &Sums, plain: &Sums) -> Result<(), String> {
    if (stored.bytes, stored.blake3, stored.sha256) != (pin.bytes, pin.blake3, pin.sha256) {
        return Err(format!(
            "expected {} bytes with BLAKE3 {}, found {} with {}",
            pin.bytes, pin.blake3, stored.bytes, stored.blake3
        ));
    }
    let sealed = &pin.plain;
    if (plain.bytes, plain.blake3, plain.sha256) != (sealed.bytes, sealed.blake3, sealed.sha256) {
        return Err(format!(
            "expected, decrypted, {} bytes with BLAKE3 {}, found {} with {}",
            sealed.bytes, sealed.blake3, plain.bytes, plain.blake3
        ));
    }
    Ok(())
}

/// Copies everything; an error says whether it was writing that failed.
fn copy_summed(from: impl Read, to: impl Write) -> Result<Sums, (bool, io::Error)> {
    let mut from = BufReader::with_capacity(1 << 20, SummedReader::new(from, u64::MAX));
    let mut to = SummedWriter::new(to);
    let mut chunk = vec![0; 1 << 20];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => to.write_all(chunk.get(..read).unwrap_or_default()).map_err(|e| (true, e))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((false, error)),
        }
    }
    to.flush().map_err(|e| (true, e))?;
    Ok(to.finish())
}

/// Used by the checker for its own directory.
pub(super) fn remove_work_copy(work: &Path) {
    let _ = fs::remove_file(work.join(WORK_FILE));
}
