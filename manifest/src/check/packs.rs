//! The packs, without keys: there, of the sealed length and digest, every record's checksums; damage named by disk and block.

use super::Watch;
use super::files::{Unread, advice_on_stray};
use super::findings::{Class, Finding, Severity};
use super::trust::Opened;
use crate::documents::seal::{SealedPack, pack_number};
use crate::geometry::PAGE_BYTES;
use crate::pack::{PackChecker, PackHeader, PackReport};
use serde::Serialize;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes read at once.
const PIECE_BYTES: usize = 4 << 20;

/// What the walk over all packs counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PackTotals {
    /// Packs that the seal lists.
    pub sealed: u64,
    /// Packs without any fault.
    pub good: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Records with a good header.
    pub records: u64,
}

impl Opened {
    /// A checker of what the seal says of a pack: its first page, and the cipher and writing process of every record.
    pub fn pack_checker(&self, pack: &SealedPack) -> Option<PackChecker> {
        let number = pack_number(&pack.file)?;
        let header = PackHeader { shipment: self.seal.shipment, pack: number, medium: pack.medium };
        Some(PackChecker::new(header).of_records(Arc::clone(&self.record_rules)))
    }

    /// Walks every pack, and names files below `packs/` that the seal does not list. `Break` from `watch` ends it early.
    pub fn check_packs(&mut self, watch: Watch) -> ControlFlow<(), PackTotals> {
        let packs = self.seal.packs.clone();
        let mut totals = PackTotals { sealed: packs.len() as u64, ..PackTotals::default() };
        self.find_extra_packs();
        for pack in &packs {
            let before = self.findings.errors();
            if let Some((bytes, records)) = self.check_pack(pack, watch)? {
                totals.bytes += bytes;
                totals.records += records;
            }
            totals.good += u64::from(self.findings.errors() == before);
        }
        ControlFlow::Continue(totals)
    }

    /// Names files below `packs/` that the seal does not list; part of [`Self::check_packs`].
    pub fn find_extra_packs(&mut self) {
        match self.root.list("packs") {
            Ok(names) => {
                let sealed: std::collections::BTreeSet<&str> =
                    self.seal.packs.iter().map(|p| p.file.as_str()).collect();
                for name in names.iter().filter(|name| !sealed.contains(format!("packs/{name}").as_str())) {
                    let shown: String = name.chars().take(200).flat_map(char::escape_default).collect();
                    let what = format!("not in the seal; {}", advice_on_stray(name));
                    self.findings.error(Class::Extra, format!("packs/{shown}"), what);
                }
            }
            Err(unread) => self.findings.error(Class::Damaged, "packs", unread.to_string()),
        }
    }

    fn check_pack(&mut self, pack: &SealedPack, watch: Watch) -> ControlFlow<(), Option<(u64, u64)>> {
        let Some(mut checker) = self.pack_checker(pack) else { return ControlFlow::Continue(None) };
        let (file, found) = match self.root.open_file(&pack.file) {
            Ok(opened) => opened,
            Err(Unread::Missing) => {
                let what = format!("the seal lists it, {} bytes on medium {}", pack.bytes, pack.medium);
                self.findings.error(Class::Missing, &pack.file, what);
                return ControlFlow::Continue(None);
            }
            Err(unread) => {
                self.findings.error(Class::Damaged, &pack.file, unread.to_string());
                return ControlFlow::Continue(None);
            }
        };
        let mut piece = vec![0; PIECE_BYTES];
        // Never more than was sealed: what stands behind is named by the length alone.
        let end = found.min(pack.bytes);
        let mut offset = 0;
        while offset < end {
            let len = usize::try_from(end - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let read = self.read_piece(&file, &pack.file, offset, &mut piece[..len]);
            checker.update(&piece[..read]);
            offset += read as u64;
            watch(read as u64)?;
            if read < len {
                break;
            }
        }
        let report = checker.finish();
        let counted = (report.bytes, report.records);
        self.judge_pack(pack, found, report);
        ControlFlow::Continue(Some(counted))
    }

    /// Reads as much as there is; pages that the medium cannot give count as zeros and are named.
    fn read_piece(&mut self, file: &File, name: &str, offset: u64, piece: &mut [u8]) -> usize {
        if let Ok(read) = read_full(file, piece, offset) {
            return read;
        }
        let mut done = 0;
        for page in piece.chunks_mut(PAGE_BYTES as usize) {
            let at = offset + done as u64;
            match read_full(file, page, at) {
                Ok(read) if read < page.len() => return done + read,
                Ok(_) => {}
                Err(error) => {
                    page.fill(0);
                    let mut finding =
                        Finding::new(Severity::Error, Class::Damaged, name, format!("cannot be read: {error}"));
                    finding.offset = Some(at);
                    self.findings.push(finding);
                }
            }
            done += page.len();
        }
        done
    }

    /// Turns what a walk found into findings; `found_bytes` is the file's length. For engines that read packs their own way.
    pub fn judge_pack(&mut self, pack: &SealedPack, found_bytes: u64, report: PackReport) {
        let file = &pack.file;
        if found_bytes != pack.bytes {
            self.findings.error(Class::Damaged, file, format!("expected {} bytes, found {found_bytes}", pack.bytes));
        }
        let unlisted = report.fault_count.saturating_sub(report.faults.len() as u64);
        for fault in report.faults {
            let class = if fault.untrusted { Class::Untrusted } else { Class::Damaged };
            let mut finding = Finding::new(Severity::Error, class, file, fault.what);
            finding.offset = Some(fault.offset);
            if let Some(id) = fault.block {
                finding.disk =
                    Some(self.disk_name(id.disk).unwrap_or_else(|| format!("number {}, not in the seal", id.disk)));
                finding.block = Some(id.block);
            }
            self.findings.push(finding);
        }
        if unlisted > 0 {
            self.findings.error(Class::Damaged, file, format!("{unlisted} more faults, not listed"));
        }
        if report.digest != pack.blake3 {
            let what = format!("expected BLAKE3 {}, found {}", pack.blake3, report.digest);
            self.findings.error(Class::Damaged, file, what);
        } else if report.records != pack.records {
            let what = format!("expected {} records, found {}", pack.records, report.records);
            self.findings.error(Class::Damaged, file, what);
        }
    }
}

/// Fills `buffer` from `offset` on unless the file ends before; says how much there was.
pub(super) fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
