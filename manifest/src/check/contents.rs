//! Everything, with the keys: each record decrypted, decompressed within bounds, and its leaf compared with the manifest's row.

use super::Watch;
use super::files::Root;
use super::findings::{Class, Finding, Severity, class_of};
use super::packs::read_full;
use super::trust::Opened;
use crate::catalogue::{BlockRow, Catalogue, Generation, UnreadableRange};
use crate::documents::seal::{SealedDisk, pack_number};
use crate::error::{FormatError, Result};
use crate::geometry::Geometry;
use crate::record::{Decoder, Expected, Keyring, RecordId, record_bytes};
use crate::tree::{Digest, leaf};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What is wrong with a block that has bytes where the manifest says that the source gave none.
pub const UNREADABLE_IS_SET: &str = "it has bytes where the source could not be read: zeros must stand there";

/// What was proven of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskProof {
    /// `MACHINE/DISK`.
    pub disk: String,
    /// Size, bytes.
    pub bytes: u64,
    /// As sealed; what `b3sum` prints on the disk.
    pub digest: Digest,
    /// Records that were read and are right.
    pub stored: u64,
    /// Zero blocks whose leaf is that of zeros.
    pub zero: u64,
    /// Blocks that failed a check.
    pub damaged: u64,
}

/// Open packs; one stays open, as rows mostly follow each other in it.
struct Packs<'a> {
    root: Root,
    files: BTreeMap<u32, &'a str>,
    open: Option<(u32, File)>,
}

impl Packs<'_> {
    fn read(&mut self, pack: u32, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(name) = self.files.get(&pack) else {
            return Err(FormatError::damaged(format!("Pack {pack}"), "one that the seal lists", "none"));
        };
        if self.open.as_ref().is_none_or(|(number, _)| *number != pack) {
            let (file, _) =
                self.root.open_file(name).map_err(|e| FormatError::damaged(*name, "a readable pack", e.to_string()))?;
            self.open = Some((pack, file));
        }
        let Some((_, file)) = &self.open else { return Ok(()) };
        let read = read_full(file, buffer, offset).map_err(|e| FormatError::io(*name, e))?;
        if read < buffer.len() {
            return Err(FormatError::damaged(*name, format!("{} bytes at {offset}", buffer.len()), format!("{read}")));
        }
        Ok(())
    }
}

impl Opened {
    /// Reads every record that the manifest's rows name. Damage is a finding each, and reading goes on. `Break` from `watch` ends it.
    pub fn check_contents(
        &mut self,
        catalogue: &Catalogue,
        disks: &[(SealedDisk, Generation)],
        keys: Arc<Keyring>,
        watch: Watch,
    ) -> ControlFlow<(), Vec<DiskProof>> {
        let mut proofs = Vec::new();
        let named = self.findings.named_blocks();
        let seal = self.seal.clone();
        let files = seal.packs.iter().filter_map(|p| Some((pack_number(&p.file)?, p.file.as_str()))).collect();
        let mut packs = Packs { root: self.root.clone(), files, open: None };
        for (disk, generation) in disks {
            let name = format!("{}/{}", disk.machine, disk.disk);
            let mut proof =
                DiskProof { disk: name, bytes: disk.bytes, digest: disk.digest, stored: 0, zero: 0, damaged: 0 };
            let mut found = Vec::new();
            let ended = self.check_disk(
                catalogue,
                disk,
                generation,
                Arc::clone(&keys),
                &mut packs,
                watch,
                &mut proof,
                &mut found,
            );
            let is_new = |finding: &Finding| match (&finding.disk, finding.block) {
                (Some(disk), Some(block)) => !named.contains(&(finding.object.clone(), disk.clone(), block)),
                _ => true,
            };
            found.into_iter().filter(is_new).for_each(|finding| self.findings.push(finding));
            match ended {
                Ok(()) => proofs.push(proof),
                Err(Ended::Broken) => return ControlFlow::Break(()),
                Err(Ended::Failed(error)) => self.findings.fault(format!("disk {}", proof.disk), &error),
            }
        }
        ControlFlow::Continue(proofs)
    }

    #[expect(clippy::too_many_arguments, reason = "one step of check_contents, cut out for its error type")]
    fn check_disk(
        &self,
        catalogue: &Catalogue,
        disk: &SealedDisk,
        generation: &Generation,
        keys: Arc<Keyring>,
        packs: &mut Packs,
        watch: Watch,
        proof: &mut DiskProof,
        found: &mut Vec<Finding>,
    ) -> Result<(), Ended> {
        let geometry = Geometry::new(disk.bytes, disk.block_bytes)?;
        let mut decoder = Decoder::new(keys)?;
        let mut plain = vec![0; disk.block_bytes as usize];
        let mut record = Vec::new();
        let mut only = None;
        let unreadable = catalogue.unreadable(generation)?;
        catalogue.for_each_row(generation, &geometry, self.encrypted(), |row: BlockRow| {
            let offset = geometry.offset(row.block);
            let plain = &mut plain[..geometry.len(row.block) as usize];
            let outcome = match row.place {
                None => {
                    plain.fill(0);
                    Ok(())
                }
                Some(place) => {
                    record.resize(usize::try_from(record_bytes(place.stored_bytes)).unwrap_or(0), 0);
                    let expected = Expected {
                        shipment: self.seal.shipment,
                        id: RecordId { disk: disk.id, generation: disk.generation, block: row.block },
                        plain_bytes: geometry.len(row.block),
                        stored_bytes: place.stored_bytes,
                        codec: place.codec,
                    };
                    packs
                        .read(place.pack, place.offset, &mut record)
                        .and_then(|()| decoder.decode(&expected, &mut record, plain))
                }
            };
            let outcome = outcome.and_then(|()| match leaf(offset, plain) {
                found if found == row.leaf => Ok(()),
                found => Err(FormatError::damaged("Leaf", row.leaf.to_string(), found.to_string())),
            });
            let outcome = outcome.and_then(|()| match UnreadableRange::any_set(&unreadable, offset, plain) {
                false => Ok(()),
                true => Err(FormatError::untrusted("Block", UNREADABLE_IS_SET)),
            });
            match outcome {
                Ok(()) if row.place.is_some() => proof.stored += 1,
                Ok(()) => proof.zero += 1,
                Err(error) => {
                    proof.damaged += 1;
                    if found.len() < super::findings::MAX_LISTED {
                        let object =
                            row.place.and_then(|p| packs.files.get(&p.pack)).map_or("manifest.db", |file| *file);
                        let mut finding = Finding::new(Severity::Error, class_of(&error), object, error.to_string());
                        finding.disk = Some(proof.disk.clone());
                        finding.block = Some(row.block);
                        finding.offset = row.place.map(|p| p.offset);
                        found.push(finding);
                    }
                }
            }
            if geometry.blocks() == 1 {
                only = Some(Digest::of(plain));
            }
            match watch(plain.len() as u64) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Ended::Broken),
            }
        })?;
        let whole = if geometry.is_empty() { Some(Digest::of(b"")) } else { only };
        if let Some(whole) = whole.filter(|whole| *whole != disk.digest && proof.damaged == 0) {
            proof.damaged += 1;
            let what = format!("expected digest {}, found {whole}", disk.digest);
            // Its leaf is right: it is the seal that says something else than the manifest.
            found.push(Finding::new(Severity::Error, Class::Untrusted, format!("disk {}", proof.disk), what));
        }
        Ok(())
    }
}

/// Why the walk over a disk ended early.
enum Ended {
    Broken,
    Failed(FormatError),
}

impl From<FormatError> for Ended {
    fn from(error: FormatError) -> Self {
        Ended::Failed(error)
    }
}
