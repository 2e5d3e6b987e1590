//! Running the binary as a history has it, and what a refusal must leave alone.

use super::{Ended, HANGS, World};
use crate::common::run::Motiongear;
use crate::common::{Ran, SITE, sql_after_crash};
use crate::faults::history::step::{Cut, Run, Signal, Write};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

impl World {
    pub(super) fn machine(&self, number: usize) -> String {
        format!("m{}", self.disks[number].machine)
    }
    /// MACHINE/DISK.
    pub(super) fn name(&self, number: usize) -> String {
        format!("{}/d{number}", self.machine(number))
    }
    pub(super) fn number(name: &str) -> usize {
        name.rsplit('d').next().unwrap().parse().unwrap()
    }
    pub(super) fn fits(&self, number: usize, machine: Option<u8>, disk: Option<u8>) -> bool {
        machine.is_none_or(|m| m == self.disks[number].machine) && disk.is_none_or(|d| usize::from(d) == number)
    }
    pub(super) fn selection(machine: Option<u8>, disk: Option<u8>) -> Vec<String> {
        let machine = machine.map(|m| ["--machine".to_owned(), format!("m{m}")]);
        let disk = disk.map(|d| ["--disk".to_owned(), format!("d{d}")]);
        machine.into_iter().chain(disk).flatten().collect()
    }
    pub(super) fn volume(&self, number: usize) -> PathBuf {
        let dir = self.branch.place.join("volumes").join(SITE).join(self.machine(number));
        dir.join(format!("d{number}.raw"))
    }
    pub(super) fn verb(&self, state: &Path, verb: &[&str]) -> Motiongear {
        Motiongear::new(state).arg("--json").args(verb).arg(&self.branch.array).args(self.branch.plaintext_for(verb[0]))
    }
    pub(super) fn with_trust(&self, command: Motiongear) -> Motiongear {
        command.arg("--trust").arg(&self.branch.trust).arg("--identity").arg(&self.branch.identity)
    }

    /// Runs it as `run` says; `during` is done while it runs.
    pub(super) fn run(
        &mut self,
        command: Motiongear,
        run: &Run,
        bytes: usize,
        paused: bool,
        during: &[(usize, Write)],
    ) -> Ended {
        let mut command = command.args(["--engine", if run.threads { "threads" } else { "uring" }]);
        if run.slow > 0 {
            let rate = (bytes as u64 * 1000 / u64::from(run.slow) / 1024).max(64);
            command = command.args(["--read-limit".to_owned(), format!("{rate}KiB")]);
        }
        let mut running = command.start();
        let since = Instant::now();
        let cut = run.cut.as_ref().map(|cut| Duration::from_millis(cut.after.into()));
        if paused {
            let job = running.pid().to_string();
            std::thread::sleep(Duration::from_millis(80));
            // It may be done before it can be paused.
            for verb in [&["pause"][..], &["resume"], &["limit", "--read", "off"]] {
                self.branch.motiongear().arg("--json").args(verb).args(["--job", &job]).run();
            }
        }
        for (number, (disk, write)) in during.iter().enumerate() {
            let at = Duration::from_millis(40 * (number as u64 + 1));
            while running.is_running() && since.elapsed() < at {
                std::thread::sleep(Duration::from_millis(2));
            }
            if !running.is_running() || cut.is_some_and(|cut| since.elapsed() > cut) {
                break;
            }
            self.sources[*disk].write(write);
        }
        if let (Some(at), Some(Cut { signal, .. })) = (cut, &run.cut) {
            while running.is_running() && since.elapsed() < at {
                std::thread::sleep(Duration::from_millis(2));
            }
            running.signal(match signal {
                Signal::Int => libc::SIGINT,
                Signal::Term => libc::SIGTERM,
                Signal::Kill => libc::SIGKILL,
            });
        }
        running.until(HANGS, |_| false);
        let ran = running.wait();
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        // A signal in the first moments finds no handler yet.
        if run.cut.is_some() && [5, -libc::SIGKILL, -libc::SIGINT, -libc::SIGTERM].contains(&ran.code) {
            self.interrupted += 1;
            return Ended::Interrupted;
        }
        self.ended(&ran)
    }

    pub(super) fn ended(&self, ran: &Ran) -> Ended {
        match ran.code {
            0 => Ended::Done(ran.ok()),
            1 | 2 | 4 => {
                ran.refused(ran.code, &[]);
                eprintln!("refused: {}", ran.stderr.lines().find(|line| line.starts_with("error")).unwrap_or_default());
                Ended::Refused
            }
            code => panic!("exit code {code}\nstdout: {}\nstderr: {}", ran.stdout, ran.stderr),
        }
    }

    /// What must be refused changes nothing.
    pub(super) fn refused(&self, code: i32, command: Motiongear) {
        let before = self.fingerprint();
        let ran = command.run();
        ran.refused(code, &[]);
        let after = self.fingerprint();
        for key in before.keys().chain(after.keys()) {
            let lines = |found: &BTreeMap<String, String>| -> BTreeSet<String> {
                let lines = found.get(key).into_iter().flat_map(|text| text.lines());
                // Whose a shipment is, is remembered from the first trusted seal on, whatever becomes of the command.
                lines.filter(|line| !line.starts_with("INSERT INTO known_")).map(String::from).collect()
            };
            let (was, is) = (lines(&before), lines(&after));
            let changed: Vec<_> = was.symmetric_difference(&is).collect();
            assert!(changed.is_empty(), "refused, and yet {key} changed: {changed:?}\nsaid: {}", ran.stderr);
        }
    }

    /// Everything on array and volumes, and what the ledgers say.
    pub(super) fn fingerprint(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let place = &self.branch.place;
        let mut dirs = vec![self.branch.array.clone(), place.join("volumes"), place.join("restored")];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let digest = blake3::hash(&std::fs::read(&path).unwrap());
                    found.insert(path.display().to_string(), digest.to_string());
                }
            }
        }
        let manifest = self.manifest_in(&self.hosts[0]);
        let databases = [
            self.hosts[0].join("ledger.db"),
            self.hosts[1].join("ledger.db"),
            self.centre.join("ledger.db"),
            manifest,
            self.manifest_in(&self.hosts[1]),
        ];
        for db in databases.iter().filter(|db| db.exists()) {
            found.insert(db.display().to_string(), sql_after_crash(db, ".dump"));
        }
        found
    }
}
