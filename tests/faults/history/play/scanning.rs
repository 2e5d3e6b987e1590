//! Scans: what differs between the sources and what is on the array.

use super::{Ended, World};
use crate::common::run::Motiongear;
use crate::common::sql_after_crash;
use crate::faults::history::model::compare;
use crate::faults::history::step::Run;

impl World {
    /// The disks in the ledger, compared with the sources as they are now.
    pub(super) fn scan(&mut self, machine: Option<u8>, disk: Option<u8>, run: &Run) {
        let command = Motiongear::new(&self.branch.state).args(["--json", "scan"]).args(Self::selection(machine, disk));
        let wanted: Vec<usize> = (0..self.disks.len())
            .filter(|n| self.fits(*n, machine, disk) && self.copying[*n].finished.is_some())
            .collect();
        if wanted.is_empty() {
            return self.refused(1, command);
        }
        let before: Vec<Option<Vec<u8>>> = wanted.iter().map(|n| self.changed_blocks(*n)).collect();
        let bytes = wanted.iter().map(|n| self.sources[*n].bytes).sum();
        let ended = self.run(command, run, bytes, false, &[]);
        let result = match ended {
            Ended::Done(result) => Some(result),
            Ended::Interrupted => None,
            Ended::Refused => panic!("a scan was refused"),
        };
        if let Some(result) = &result {
            assert_eq!(result["disks"].as_array().unwrap().len(), wanted.len(), "{result}");
        }
        for (number, before) in wanted.into_iter().zip(before) {
            let stored = self.changed_blocks(number);
            let Some(content) = self.content(number) else { continue };
            let expected = compare(&self.sources[number], &content);
            let mut set = vec![0u8; self.sources[number].blocks().div_ceil(64) * 8];
            expected.wanted.iter().for_each(|block| set[block / 8] |= 1 << (block % 8));
            let Some(result) = &result else {
                // Interrupted: what an earlier scan found, or all that this one did.
                assert!(stored == before || stored.as_ref() == Some(&set), "d{number}: half a scan was kept");
                continue;
            };
            assert_eq!(stored, Some(set), "d{number}: stored set of changed blocks");
            let name = self.name(number);
            let said = result["disks"].as_array().unwrap().iter().find(|disk| disk["disk"] == name.as_str()).unwrap();
            let count = |kind: &str| said["blocks"][kind].as_u64().unwrap();
            assert_eq!(
                (count("unchanged"), count("changed"), count("zeroed"), count("newly_unreadable"), count("unreadable")),
                (expected.unchanged, expected.changed, expected.zeroed, 0, 0),
                "{said}"
            );
        }
    }

    /// The stored set of a disk's changed blocks.
    pub(super) fn changed_blocks(&self, number: usize) -> Option<Vec<u8>> {
        let manifest = self.manifest_in(&self.branch.state);
        let uuid = sql_after_crash(&manifest, &format!("SELECT uuid FROM disk WHERE name = 'd{number}'"));
        std::fs::read(self.branch.state.join("scans").join(format!("{uuid}.changed"))).ok()
    }

    /// What is on the array of a finished disk, if that can be known: an unsealed one cannot be restored to look.
    pub(super) fn content(&mut self, number: usize) -> Option<Vec<u8>> {
        let copying = self.copying[number].clone();
        if let Some(content) = copying.only(&self.sources[number]) {
            return Some(content);
        }
        let shipped =
            self.shipped.get(&number).filter(|shipped| Some(&shipped.finished) == copying.finished.as_ref())?;
        if let Some(content) = &shipped.content {
            return Some(content.clone());
        }
        let file = self.branch.place.join("looked-at");
        let command = self.verb(&self.branch.place.join("looking"), &["restore"]).arg(self.name(number)).arg(&file);
        self.with_trust(command).arg("--overwrite").run().ok();
        let found = std::fs::read(&file).unwrap();
        self.arrived(number, &found, "a restored file");
        Some(found)
    }
}
