//! Seeds, interrupted and resumed, while the sources are written to.

use super::{Ended, Entered, Phase, World};
use crate::faults::history::model::{Copying, Finished, Read, Source};
use crate::faults::history::step::{Run, Write};
use serde_json::Value;
use std::path::PathBuf;

impl World {
    pub(super) fn plan(&self, chosen: &[usize], asserted: u8) -> PathBuf {
        let mut text = String::new();
        for machine in [0, 1] {
            let mut disks = chosen.iter().filter(|n| self.disks[**n].machine == machine).peekable();
            if disks.peek().is_some() {
                text += &format!("[[machine]]\nname = \"m{machine}\"\n");
            }
            for number in disks {
                let (source, still) = (self.sources[*number].path.display(), asserted >> (number % 8) & 1 == 1);
                text += &format!(
                    "[[machine.disk]]\nname = \"d{number}\"\nsource = \"{source}\"\npoint_in_time = {still}\n"
                );
            }
        }
        self.branch.place.file("plan.toml", text)
    }

    pub(super) fn seed(
        &mut self,
        chosen: &[usize],
        asserted: u8,
        reopen: bool,
        paused: bool,
        during: &[(usize, Write)],
        run: &Run,
    ) {
        let mut command = self.verb(&self.branch.state, &["seed"]).arg("--plan").arg(self.plan(chosen, asserted));
        if reopen {
            command = command.arg("--reopen");
        }
        // A seal that lies on the array needs --reopen, also when it is reopened already.
        if self.phase == Phase::Dispatched || (self.seals > 0 && !reopen) {
            return self.refused(1, command);
        }
        let bytes = chosen.iter().map(|n| self.sources[*n].bytes).sum();
        let began: Vec<usize> = self.sources.iter().map(Source::now).collect();
        let ended = self.run(command, run, bytes, paused, during);
        let entered = self.entered();
        let none = Entered::default();
        for &number in chosen {
            let still = asserted >> (number % 8) & 1 == 1;
            let found = entered.get(&number).unwrap_or(&none);
            let before = self.copying[number].clone();
            self.note_reads(number, began[number], still, found);
            if let Ended::Done(result) = &ended {
                let name = self.name(number);
                let said = result["disks"].as_array().unwrap().iter().find(|disk| disk["disk"] == name.as_str());
                self.check_seeded(number, still, &before, said.unwrap_or_else(|| panic!("no {name} in {result}")));
            }
        }
        let state = self.ledger_state();
        match ended {
            Ended::Done(_) => self.phase = Phase::Seeding,
            Ended::Interrupted if state.as_deref() == Some("seeding") => self.phase = Phase::Seeding,
            Ended::Interrupted => {}
            Ended::Refused => panic!("a seed was refused that should go on"),
        }
    }

    /// Which blocks this run may have read, and when.
    pub(super) fn note_reads(&mut self, number: usize, began: usize, still: bool, found: &Entered) {
        let source = &self.sources[number];
        let (now, blocks) = (source.now(), source.blocks());
        let copying = &mut self.copying[number];
        let untouched = began == now && copying.reads.iter().all(Option::is_none);
        if copying.finished.is_some() {
            // Complete: nothing is read again; the ledger is compared after every step.
            return;
        }
        for (block, read) in copying.reads.iter_mut().enumerate() {
            let has = found.blocks.contains(&block);
            assert!(has || read.is_none(), "d{number}: block {block} was committed and is lost");
            let fresh = Read { from: began, until: now, unasserted: !still };
            *read = match *read {
                _ if !has => None,
                None => Some(fresh),
                // No leaves merge to the digest of a single block: it is always read to the end.
                Some(_) if blocks == 1 && found.finished => Some(fresh),
                // What was read while nobody said that it stands still is read again by one who says so.
                Some(old) if still && old.unasserted && found.finished => Some(Read { unasserted: false, ..fresh }),
                Some(old) if still || blocks == 1 => Some(Read { until: now, ..old }),
                Some(old) => Some(old),
            };
        }
        if found.finished {
            // A disk that is asserted to stand still, and does not, is fuzzy or read again: which of the two hangs on the moment.
            let consistent = found.consistency == "consistent";
            assert!(consistent == still || still && !untouched, "d{number}: {}", found.consistency);
            let finished = Finished { digest: found.digest.clone(), asserted: consistent };
            assert!(copying.reads.iter().all(Option::is_some), "d{number} is finished without all of its blocks");
            copying.finished = Some(finished.clone());
            if let Some(content) = self.copying[number].only(&self.sources[number]) {
                assert_eq!(
                    finished.digest,
                    blake3::hash(&content).to_string(),
                    "d{number}: digest is not that of what was read"
                );
            }
        }
    }

    pub(super) fn check_seeded(&self, number: usize, still: bool, before: &Copying, said: &Value) {
        let (source, copying) = (&self.sources[number], &self.copying[number]);
        let finished = copying.finished.as_ref().unwrap_or_else(|| panic!("d{number} is not finished: {said}"));
        assert_eq!(said["digest"], finished.digest.as_str(), "{said}");
        assert_eq!(said["consistency"] == "consistent", finished.asserted, "{said}");
        assert_eq!(said["bytes"], source.bytes);
        let count = |kind: &str| said["blocks"][kind].as_u64().unwrap() as usize;
        assert_eq!((count("stored") + count("zero"), count("unreadable")), (source.blocks(), 0), "{said}");
        if let Some(content) = copying.only(source) {
            let zero = (0..source.blocks()).filter(|b| content[source.range(*b)].iter().all(|byte| *byte == 0));
            assert_eq!(count("zero"), zero.count(), "{said}");
        }
        let (read, skipped) =
            (said["read_bytes"].as_u64().unwrap() as usize, said["skipped_bytes"].as_u64().unwrap() as usize);
        if before.finished.is_some() {
            assert_eq!((read, skipped), (0, source.bytes), "a complete disk is not read again: {said}");
        } else if !still && source.blocks() > 1 {
            let kept: usize =
                (0..source.blocks()).filter(|b| before.reads[*b].is_some()).map(|b| source.range(b).len()).sum();
            assert_eq!(skipped, kept, "what was committed is not read again: {said}");
            // Holes are not read.
            assert!(read <= source.bytes - kept, "{said}");
        }
    }
}
