//! From the last seed to the road: the ledger moves, seals, checks, the dispatch, and who has no business there.

use super::{Phase, Shipped, World};
use crate::common::disks::noise;
use crate::common::run::Motiongear;
use crate::faults::history::model::Copying;
use std::collections::BTreeSet;
use std::time::Duration;

impl World {
    pub(super) fn move_ledger(&mut self, cut: Option<u16>) {
        let package = self.branch.place.join(format!("package-{}", self.moves));
        let shipment = self.branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
        let export = || {
            let command = self.branch.motiongear().args(["--json", "ledger", "move", "--shipment", &shipment]);
            command.arg("--export").arg(&package)
        };
        if self.phase != Phase::Seeding {
            return self.refused(1, export());
        }
        let killed = |command: Motiongear| {
            if let Some(after) = cut {
                let running = command.start();
                std::thread::sleep(Duration::from_millis(after.into()));
                running.kill();
            }
        };
        killed(export());
        let code = export().run().ok()["package_code"].as_str().unwrap().to_owned();
        let other = &self.hosts[1 - self.host];
        let import = || {
            let command = Motiongear::new(other).args(["--json", "ledger", "move"]);
            let command = command.arg("--import").arg(&package).arg("--array").arg(&self.branch.array);
            command.args(["--package-code", &code])
        };
        killed(import());
        let ran = import().run();
        if ran.code != 0 {
            assert!(cut.is_some());
            ran.refused(1, &["holds it already"]);
        }
        // Who gave it away is refused; nobody holds it twice.
        let chosen: Vec<usize> = (0..self.disks.len()).collect();
        self.refused(1, self.verb(&self.branch.state, &["seed"]).arg("--plan").arg(self.plan(&chosen, 0)));
        self.refused(1, self.verb(&self.branch.state, &["seal"]).arg("--key").arg(&self.branch.key));
        if self.seals > 0 {
            self.refused(1, self.custody_dispatch());
        }
        self.moves += 1;
        self.host = 1 - self.host;
        self.branch.state = self.hosts[self.host].clone();
    }

    pub(super) fn seal(&mut self, without: bool, cut: Option<u16>) {
        let planned: Vec<(usize, bool)> =
            self.entered().into_iter().filter(|(_, disk)| !disk.excluded).map(|(n, disk)| (n, disk.finished)).collect();
        let (key, trust) = (self.branch.key.clone(), self.branch.trust.clone());
        let mut extra = Vec::new();
        for (number, _) in planned.iter().filter(|(_, finished)| without && !finished) {
            extra.extend(["--without".to_owned(), self.name(*number)]);
        }
        if !extra.is_empty() {
            extra.extend(["--reason", "left out by the history"].map(String::from));
        }
        let verb = |world: &World| {
            world.verb(&world.branch.state, &["seal"]).arg("--key").arg(&key).arg("--trust").arg(&trust).args(&extra)
        };
        let complete = planned.iter().any(|(_, finished)| *finished) && (without || planned.iter().all(|(_, f)| *f));
        if self.phase == Phase::Sealed {
            // The same once more says what was done, and does nothing.
            let before = self.fingerprint();
            let again = verb(self).run().ok();
            assert!(again["sealed_already"].is_string(), "{again}");
            assert!(self.fingerprint() == before, "sealed already, and yet something changed");
            return;
        }
        if self.phase != Phase::Seeding || !complete {
            return self.refused(1, verb(self));
        }
        let mut sealed = false;
        if let Some(after) = cut {
            let running = verb(self).start();
            std::thread::sleep(Duration::from_millis(after.into()));
            self.interrupted += u64::from(running.kill().code == -libc::SIGKILL);
            sealed = self.ledger_state().as_deref() == Some("sealed");
        }
        if !sealed {
            let result = verb(self).run().ok();
            assert_eq!(result["supersedes"].as_str(), self.last_seal.as_deref(), "{result}");
        }
        let document = self.branch.seal_json();
        self.branch.check_with_stock_tools();
        self.last_seal = Some(blake3::hash(&std::fs::read(self.branch.on("seal.json")).unwrap()).to_string());
        (self.phase, self.verified, self.seals) = (Phase::Sealed, false, self.seals + 1);
        let before = std::mem::take(&mut self.shipped);
        for (number, finished) in planned {
            let copying = self.copying[number].clone();
            let Some(finished) = copying.finished.clone().filter(|_| finished) else {
                self.copying[number] = Copying::new(self.sources[number].blocks());
                continue;
            };
            let known = before.get(&number).filter(|old| old.finished == finished).and_then(|old| old.content.clone());
            let content = known.or_else(|| copying.only(&self.sources[number]));
            self.shipped.insert(number, Shipped { copying, finished, content });
        }
        let listed = document["disks"].as_array().unwrap();
        let names: BTreeSet<usize> = listed.iter().map(|disk| Self::number(disk["disk"].as_str().unwrap())).collect();
        assert_eq!(names, self.shipped.keys().copied().collect(), "disks of the seal");
        for disk in listed {
            let number = Self::number(disk["disk"].as_str().unwrap());
            let finished = &self.shipped[&number].finished;
            assert_eq!(disk["digest"], finished.digest.as_str());
            assert_eq!(disk["consistency"] == "consistent", finished.asserted);
            assert_eq!(
                (&disk["machine"], &disk["bytes"]),
                (&self.machine(number).into(), &self.sources[number].bytes.into())
            );
        }
        assert!(!self.branch.on("holder.json").exists(), "nobody holds a sealed shipment");
    }

    pub(super) fn verify(&mut self, identity: bool) {
        let mut command = self.verb(&self.branch.state, &["verify"]).arg("--trust").arg(&self.branch.trust);
        if identity {
            command = command.arg("--identity").arg(&self.branch.identity);
        }
        let ran = command.run();
        match self.phase {
            _ if self.seals == 0 => assert!(ran.code == 1 || ran.code == 3, "{}{}", ran.stdout, ran.stderr),
            Phase::Sealed | Phase::Dispatched => {
                let result = ran.ok();
                self.verified = true;
                // A plain manifest needs no key.
                if identity {
                    assert_eq!(result["proven"].as_array().unwrap().len(), self.shipped.len(), "{result}");
                }
            }
            // Reopened: what was added since lies in no seal.
            _ => assert!(ran.code == 0 || ran.code == 3, "{}{}", ran.stdout, ran.stderr),
        }
    }

    pub(super) fn custody_dispatch(&self) -> Motiongear {
        let command = self.verb(&self.branch.state, &["custody", "dispatch"]);
        command.arg("--key").arg(&self.branch.key).arg("--trust").arg(&self.branch.trust)
    }

    pub(super) fn dispatch(&mut self) {
        let command = self.custody_dispatch();
        if self.phase == Phase::Sealed && self.verified {
            command.run().ok();
            self.phase = Phase::Dispatched;
            return;
        }
        if self.phase == Phase::Dispatched {
            assert_eq!(command.run().ok()["recorded_already"], true);
            return;
        }
        self.refused(1, command);
    }

    pub(super) fn stranger(&self) {
        // A seed that was cut short before it put its name on the array holds nothing yet.
        let nameless = self.seals == 0 && !self.branch.on("holder.json").exists();
        if self.phase == Phase::Prepared || nameless {
            return;
        }
        let state = self.branch.place.join("stranger");
        let chosen: Vec<usize> = (0..self.disks.len()).collect();
        for extra in [&[][..], &["--reopen"]] {
            self.refused(1, self.verb(&state, &["seed"]).arg("--plan").arg(self.plan(&chosen, 0)).args(extra));
        }
        self.refused(1, self.verb(&state, &["seal"]).arg("--key").arg(&self.branch.key));
    }

    pub(super) fn impostor(&self, number: usize, larger: bool, reopen: bool) {
        if !self.entered().contains_key(&number) {
            return;
        }
        let (path, aside) = (&self.sources[number].path, self.branch.place.join("aside"));
        std::fs::rename(path, &aside).unwrap();
        noise(path, self.sources[number].bytes as u64 + u64::from(larger) * 512, 98);
        let command = self.verb(&self.branch.state, &["seed"]).arg("--plan").arg(self.plan(&[number], 0));
        self.refused(1, command.args(reopen.then_some("--reopen")));
        std::fs::rename(&aside, path).unwrap();
    }
}
