//! The data centre: imports and restores.

use super::{Ended, Volume, World};
use crate::common::disks::noise;
use crate::faults::history::step::{Readback, Run};
use serde_json::Value;

impl World {
    /// What came out must be what was read, and the same ever after.
    pub(super) fn arrived(&mut self, number: usize, found: &[u8], what: &str) {
        let (source, shipped) = (&self.sources[number], self.shipped.get_mut(&number).unwrap());
        let what = format!("{what} of d{number}");
        match &shipped.content {
            Some(content) => assert!(content == found, "{what}: is not what was read"),
            None => {
                shipped.copying.check(source, found, &what);
                shipped.content = Some(found.to_vec());
            }
        }
        assert_eq!(blake3::hash(found).to_string(), shipped.finished.digest, "{what}: digest");
    }

    pub(super) fn foreign(&mut self, number: usize, kib: u16) {
        if self.volumes[number] == Volume::Absent {
            std::fs::create_dir_all(self.volume(number).parent().unwrap()).unwrap();
            noise(&self.volume(number), u64::from(kib) * 1024, 99);
            self.volumes[number] = Volume::Foreign;
        }
    }

    pub(super) fn import(
        &mut self,
        machine: Option<u8>,
        disk: Option<u8>,
        readback: Readback,
        overwrite: bool,
        run: &Run,
    ) {
        let wanted: Vec<usize> = self.shipped.keys().copied().filter(|n| self.fits(*n, machine, disk)).collect();
        let overwrite =
            overwrite || wanted.iter().any(|n| matches!(self.volumes[*n], Volume::Partial { overwrite: true }));
        let to = format!("dir:{}", self.branch.place.join("volumes").display());
        let command = self.verb(&self.centre, &["import"]).args(["--to", &to, "--readback", readback.word()]);
        let mut command = self.with_trust(command).args(Self::selection(machine, disk));
        if overwrite {
            command = command.arg("--overwrite");
        }
        if self.seals == 0 {
            return self.refused(1, command);
        }
        if wanted.is_empty() {
            return self.refused(2, command);
        }
        if !overwrite && wanted.iter().any(|n| self.volumes[*n] == Volume::Foreign) {
            return self.refused(1, command);
        }
        let before: Vec<Option<Vec<u8>>> =
            (0..self.disks.len()).map(|number| std::fs::read(self.volume(number)).ok()).collect();
        let bytes = wanted.iter().map(|n| self.sources[*n].bytes).sum();
        let ended = self.run(command, run, bytes, false, &[]);
        for number in (0..self.disks.len()).filter(|number| !wanted.contains(number)) {
            assert!(
                std::fs::read(self.volume(number)).ok() == before[number],
                "the volume of d{number} was not asked for"
            );
        }
        for number in wanted {
            let found = std::fs::read(self.volume(number)).ok();
            match &ended {
                Ended::Refused => panic!("an import was refused"),
                Ended::Interrupted => self.half_imported(number, found, &before[number], overwrite),
                Ended::Done(result) => {
                    let found = found.unwrap_or_else(|| panic!("no volume of d{number}"));
                    let name = format!("d{number}");
                    let said = result["disks"].as_array().unwrap().iter().find(|disk| disk["disk"] == name.as_str());
                    self.imported(number, &found, &before[number], said.unwrap(), readback);
                }
            }
        }
    }

    /// What nobody finished cannot boot, unless it was not touched or was done with.
    pub(super) fn half_imported(
        &mut self,
        number: usize,
        found: Option<Vec<u8>>,
        before: &Option<Vec<u8>>,
        overwrite: bool,
    ) {
        let untouched = found == *before;
        let done = self.volumes[number] == Volume::Done(self.seals);
        assert!(!done || untouched, "d{number}: a finished volume was touched");
        if let Some(found) = found.filter(|_| !untouched) {
            let size = self.sources[number].bytes;
            let complete = found.len() >= size
                && blake3::hash(&found[..size]).to_string() == self.shipped[&number].finished.digest;
            let withheld = found.iter().take(4096).all(|byte| *byte == 0);
            assert!(complete || withheld, "d{number}: the head of an unfinished volume is there");
        }
        if !done {
            let again =
                matches!(self.volumes[number], Volume::Foreign | Volume::Partial { overwrite: true }) && overwrite;
            self.volumes[number] = Volume::Partial { overwrite: again };
        }
    }

    pub(super) fn imported(
        &mut self,
        number: usize,
        found: &[u8],
        before: &Option<Vec<u8>>,
        said: &Value,
        readback: Readback,
    ) {
        let (size, blocks) = (self.sources[number].bytes, self.sources[number].blocks() as u64);
        assert!(found.len() >= size, "d{number}: the volume has {} bytes of {size}", found.len());
        assert!(found[size..].iter().all(|byte| *byte == 0), "d{number}: the volume is not zero behind the disk");
        self.arrived(number, &found[..size], "the volume");
        let digest = self.shipped[&number].finished.digest.clone();
        assert_eq!(
            (&said["digest"], &said["sealed_digest"]),
            (&Value::from(digest.as_str()), &Value::from(digest.as_str())),
            "{said}"
        );
        let (re_read, trusted) = (said["re_read"].as_u64().unwrap(), said["trusted"].as_u64().unwrap());
        assert_eq!(re_read + trusted, blocks, "{said}");
        assert_eq!(said["proven"] == true, trusted == 0 && said["through_cache"] == false, "{said}");
        match (&self.volumes[number], said["state"].as_str()) {
            (Volume::Done(seal), Some("already-imported")) if *seal == self.seals => {
                assert!(before.as_deref() == Some(found), "d{number}: nothing was to be done");
            }
            (Volume::Partial { .. }, Some("already-imported")) => {}
            (Volume::Done(seal), state) if *seal == self.seals => panic!("imported already, found {state:?}"),
            (_, Some("imported")) => match readback {
                Readback::Full if !matches!(self.volumes[number], Volume::Partial { .. }) => {
                    assert_eq!(trusted, 0, "{said}")
                }
                // Head and tail are always looked at.
                Readback::None if blocks > 2 => assert!(trusted >= 1, "{said}"),
                _ => {}
            },
            (_, state) => panic!("d{number}: {state:?}"),
        }
        self.volumes[number] = Volume::Done(self.seals);
    }

    pub(super) fn restore(&mut self, number: usize, overwrite: bool, run: &Run) {
        let file = self.branch.place.join("restored").join(format!("d{number}"));
        let command = self.verb(&self.centre, &["restore"]).arg(self.name(number)).arg(&file);
        let mut command = self.with_trust(command);
        if overwrite {
            command = command.arg("--overwrite");
        }
        if self.seals == 0 {
            return self.refused(1, command);
        }
        if !self.shipped.contains_key(&number) {
            return self.refused(2, command);
        }
        if self.restored.contains(&number) && !overwrite {
            return self.refused(1, command);
        }
        let before = std::fs::read(&file).ok();
        match self.run(command, run, self.sources[number].bytes, false, &[]) {
            Ended::Done(result) => {
                assert_eq!(result["complete"], true, "{result}");
                self.arrived(number, &std::fs::read(&file).unwrap(), "the restored file");
                self.restored.insert(number);
            }
            Ended::Interrupted => {
                let found = std::fs::read(&file).ok();
                if found != before {
                    self.arrived(number, &found.expect("a file that was there is gone"), "the restored file");
                    self.restored.insert(number);
                }
            }
            Ended::Refused => panic!("a restore was refused"),
        }
    }
}
