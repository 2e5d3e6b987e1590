//! Plays a history with the real binary, and holds every outcome against the model.

use super::model::{Copying, Finished, Read, Source, compare};
use super::step::{Cut, Disk, History, Readback, Run, Signal, Step, Write};
use crate::common::disks::noise;
use crate::common::run::Motiongear;
use crate::common::{Branch, Ran, SITE, json_file, sql_after_crash};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A signal that stops a process stops it within this time.
const STOPS: Duration = Duration::from_secs(30);

/// How far the shipment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prepared,
    Seeding,
    Sealed,
    Dispatched,
}

/// A disk as the last seal names it.
#[derive(Debug, Clone)]
struct Shipped {
    copying: Copying,
    finished: Finished,
    /// Its bytes, as soon as they are known.
    content: Option<Vec<u8>>,
}

/// What lies where a disk's volume belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Volume {
    Absent,
    /// Data of somebody else.
    Foreign,
    /// An import was interrupted; whether `--overwrite` was given, and must be given again.
    Partial {
        overwrite: bool,
    },
    /// The disk of this seal, by count.
    Done(usize),
}

/// How a run of the binary ended.
enum Ended {
    Done(Value),
    Refused,
    Interrupted,
}

/// A disk in the live manifest.
#[derive(Debug, Default)]
struct Entered {
    excluded: bool,
    finished: bool,
    consistency: String,
    digest: String,
    blocks: BTreeSet<usize>,
}

pub struct World {
    branch: Branch,
    disks: Vec<Disk>,
    sources: Vec<Source>,
    copying: Vec<Copying>,
    /// State directories of the two hosts that the shipment may move between, and which one has it.
    hosts: [PathBuf; 2],
    host: usize,
    moves: usize,
    centre: PathBuf,
    phase: Phase,
    verified: bool,
    seals: usize,
    last_seal: Option<String>,
    shipped: BTreeMap<usize, Shipped>,
    volumes: Vec<Volume>,
    restored: BTreeSet<usize>,
    /// Interruptions that came before the end.
    pub interrupted: u64,
}

/// Plays `history`; returns how many runs were interrupted.
pub fn play(history: &History) -> u64 {
    let mut world = World::new(history);
    for (number, step) in history.steps.iter().enumerate() {
        world.step(step);
        world.ledger_tells_the_truth(&format!("step {number}, {step:?}"));
    }
    world.end();
    world.interrupted
}

impl World {
    fn new(history: &History) -> World {
        let mut branch = Branch::new();
        let block = history.block_kib as usize * 1024;
        let size = format!("{}KiB", history.block_kib);
        let hosts = ["host-a", "host-b"].map(|name| branch.place.join(name));
        branch.state = hosts[0].clone();
        let mut arguments = vec!["--block-size", &size];
        arguments.extend(history.plaintext.then_some("--plaintext"));
        branch.init(&arguments);
        let dir = branch.place.dir("sources");
        branch.place.dir("restored");
        // A ledger that is made is no change that a refusal could make.
        for state in [&hosts[0], &hosts[1], &branch.place.join("centre")] {
            Motiongear::new(state).args(["ledger", "show"]).run().ok();
        }
        let make = |(number, disk): (usize, &Disk)| Source::make(&dir, &format!("d{number}"), disk, block);
        let sources: Vec<Source> = history.disks.iter().enumerate().map(make).collect();
        World {
            copying: sources.iter().map(|source| Copying::new(source.blocks())).collect(),
            volumes: vec![Volume::Absent; sources.len()],
            disks: history.disks.clone(),
            centre: branch.place.join("centre"),
            branch,
            sources,
            hosts,
            host: 0,
            moves: 0,
            phase: Phase::Prepared,
            verified: false,
            seals: 0,
            last_seal: None,
            shipped: BTreeMap::new(),
            restored: BTreeSet::new(),
            interrupted: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        let disk = |number: u8| usize::from(number) % self.disks.len();
        match step {
            Step::Write { disk: number, writes } => {
                let number = disk(*number);
                writes.iter().for_each(|write| self.sources[number].write(write));
            }
            Step::Seed { disks, asserted, reopen, paused, during, run } => {
                let mut chosen: Vec<usize> = (0..self.disks.len()).filter(|n| disks >> (n % 8) & 1 == 1).collect();
                if chosen.is_empty() {
                    chosen = (0..self.disks.len()).collect();
                }
                let during: Vec<(usize, Write)> = during.iter().map(|(n, write)| (disk(*n), write.clone())).collect();
                self.seed(&chosen, *asserted, *reopen, *paused, &during, run);
            }
            Step::Move { cut } => self.move_ledger(*cut),
            Step::Seal { without, cut } => self.seal(*without, *cut),
            Step::Verify { identity } => self.verify(*identity),
            Step::Dispatch => self.dispatch(),
            Step::Stranger => self.stranger(),
            Step::Impostor { disk: number, larger, reopen } => self.impostor(disk(*number), *larger, *reopen),
            Step::Foreign { disk: number, kib } => self.foreign(disk(*number), *kib),
            Step::Import { machine, disk, readback, overwrite, run } => {
                self.import(*machine, *disk, *readback, *overwrite, run)
            }
            Step::Restore { disk: number, overwrite, run } => self.restore(disk(*number), *overwrite, run),
            Step::Scan { machine, disk, run } => self.scan(*machine, *disk, run),
        }
    }

    /// Whatever was cut short is finished, sealed, imported and compared.
    fn end(&mut self) {
        let all: Vec<usize> = (0..self.disks.len()).collect();
        let calm = Run { threads: false, slow: 0, cut: None };
        if self.phase != Phase::Dispatched && self.copying.iter().any(|copying| copying.finished.is_none()) {
            self.seed(&all, 0, true, false, &[], &calm);
            assert!(self.copying.iter().all(|copying| copying.finished.is_some()), "an undisturbed seed finishes");
        }
        if self.phase == Phase::Seeding {
            self.seal(false, None);
        }
        assert!(self.seals > 0 && self.phase != Phase::Seeding);
        self.verify(true);
        self.branch.check_stand_alone();
        self.import(None, None, Readback::Full, true, &calm);
        self.import(None, None, Readback::Full, false, &calm);
        for number in self.shipped.keys().copied().collect::<Vec<_>>() {
            self.restore(number, true, &calm);
        }
        self.scan(None, None, &calm);
        self.ledger_tells_the_truth("the end");
    }

    // ---- names, and running the binary

    fn machine(&self, number: usize) -> String {
        format!("m{}", self.disks[number].machine)
    }
    /// MACHINE/DISK.
    fn name(&self, number: usize) -> String {
        format!("{}/d{number}", self.machine(number))
    }
    fn number(name: &str) -> usize {
        name.rsplit('d').next().unwrap().parse().unwrap()
    }
    fn fits(&self, number: usize, machine: Option<u8>, disk: Option<u8>) -> bool {
        machine.is_none_or(|m| m == self.disks[number].machine) && disk.is_none_or(|d| usize::from(d) == number)
    }
    fn selection(machine: Option<u8>, disk: Option<u8>) -> Vec<String> {
        let machine = machine.map(|m| ["--machine".to_owned(), format!("m{m}")]);
        let disk = disk.map(|d| ["--disk".to_owned(), format!("d{d}")]);
        machine.into_iter().chain(disk).flatten().collect()
    }
    fn volume(&self, number: usize) -> PathBuf {
        let dir = self.branch.place.join("volumes").join(SITE).join(self.machine(number));
        dir.join(format!("d{number}.raw"))
    }
    fn verb(&self, state: &Path, verb: &[&str]) -> Motiongear {
        Motiongear::new(state).arg("--json").args(verb).arg(&self.branch.array)
    }
    fn with_trust(&self, command: Motiongear) -> Motiongear {
        command.arg("--trust").arg(&self.branch.trust).arg("--identity").arg(&self.branch.identity)
    }

    /// Runs it as `run` says; `during` is done while it runs.
    fn run(&mut self, command: Motiongear, run: &Run, bytes: usize, paused: bool, during: &[(usize, Write)]) -> Ended {
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
        running.until(STOPS + Duration::from_millis(u64::from(run.slow) * 4), |_| false);
        let ran = running.wait();
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        // A signal in the first moments finds no handler yet.
        if run.cut.is_some() && [5, -libc::SIGKILL, -libc::SIGINT, -libc::SIGTERM].contains(&ran.code) {
            self.interrupted += 1;
            return Ended::Interrupted;
        }
        self.ended(&ran)
    }

    fn ended(&self, ran: &Ran) -> Ended {
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
    fn refused(&self, code: i32, command: Motiongear) {
        let before = self.fingerprint();
        let ran = command.run();
        ran.refused(code, &[]);
        let after = self.fingerprint();
        for key in before.keys().chain(after.keys()) {
            let lines = |found: &BTreeMap<String, String>| -> BTreeSet<String> {
                found.get(key).into_iter().flat_map(|text| text.lines()).map(String::from).collect()
            };
            let (was, is) = (lines(&before), lines(&after));
            let changed: Vec<_> = was.symmetric_difference(&is).collect();
            assert!(changed.is_empty(), "refused, and yet {key} changed: {changed:?}\nsaid: {}", ran.stderr);
        }
    }

    /// Everything on array and volumes, and what the ledgers say.
    fn fingerprint(&self) -> BTreeMap<String, String> {
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

    // ---- the branch

    fn manifest_in(&self, state: &Path) -> PathBuf {
        let shipment = self.branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
        state.join("shipments").join(shipment).join("manifest.db")
    }

    /// The disks in the live manifest.
    fn entered(&self) -> BTreeMap<usize, Entered> {
        let manifest = self.manifest_in(&self.branch.state);
        let mut disks = BTreeMap::new();
        // A run that was killed may have made the file and nothing in it.
        if !manifest.exists() || self.ledger_state().is_none() {
            return disks;
        }
        let rows = "SELECT d.name, d.excluded IS NOT NULL, g.finished_at IS NOT NULL, g.consistency, \
                    lower(hex(g.digest)), (SELECT group_concat(block) FROM block WHERE generation = g.id) \
                    FROM disk d LEFT JOIN generation g ON g.disk = d.number";
        for row in sql_after_crash(&manifest, rows).lines() {
            let mut cells = row.split('|');
            let mut next = || cells.next().unwrap().to_owned();
            disks.insert(
                Self::number(&next()),
                Entered {
                    excluded: next() == "1",
                    finished: next() == "1",
                    consistency: next(),
                    digest: next(),
                    blocks: next().split(',').filter_map(|block| block.parse().ok()).collect(),
                },
            );
        }
        disks
    }

    fn ledger_state(&self) -> Option<String> {
        let shown = self.branch.run(["ledger", "show"]).ok();
        shown["shipments"].get(0).map(|shipment| shipment["state"].as_str().unwrap().to_owned())
    }

    fn ledger_tells_the_truth(&self, when: &str) {
        let expected = match self.phase {
            Phase::Prepared => None,
            Phase::Seeding => Some("seeding"),
            Phase::Sealed => Some("sealed"),
            Phase::Dispatched => Some("dispatched"),
        };
        assert_eq!(self.ledger_state().as_deref(), expected, "state in the ledger after {when}");
        let entered = self.entered();
        for (number, copying) in self.copying.iter().enumerate() {
            let none = Entered::default();
            let found = entered.get(&number).unwrap_or(&none);
            let known: BTreeSet<usize> =
                (0..copying.reads.len()).filter(|block| copying.reads[*block].is_some()).collect();
            assert_eq!(found.blocks, known, "committed blocks of d{number} after {when}");
            assert_eq!(found.finished, copying.finished.is_some(), "d{number} after {when}");
            if let Some(finished) = &copying.finished {
                assert_eq!(found.digest, finished.digest, "digest of d{number} after {when}");
                assert_eq!(found.consistency == "consistent", finished.asserted, "d{number} after {when}");
            }
        }
    }

    fn plan(&self, chosen: &[usize], asserted: u8) -> PathBuf {
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

    fn seed(
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
    fn note_reads(&mut self, number: usize, began: usize, still: bool, found: &Entered) {
        let source = &self.sources[number];
        let (now, blocks) = (source.now(), source.blocks());
        let copying = &mut self.copying[number];
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
            let finished = Finished { digest: found.digest.clone(), asserted: still };
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

    fn check_seeded(&self, number: usize, still: bool, before: &Copying, said: &Value) {
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

    fn move_ledger(&mut self, cut: Option<u16>) {
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
        export().run().ok();
        let other = &self.hosts[1 - self.host];
        let import = || {
            let command = Motiongear::new(other).args(["--json", "ledger", "move"]);
            command.arg("--import").arg(&package).arg("--array").arg(&self.branch.array)
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

    fn seal(&mut self, without: bool, cut: Option<u16>) {
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

    fn verify(&mut self, identity: bool) {
        let mut command = self.verb(&self.branch.state, &["verify"]).arg("--trust").arg(&self.branch.trust);
        if identity {
            command = command.arg("--identity").arg(&self.branch.identity);
        }
        let ran = command.run();
        match self.phase {
            _ if self.seals == 0 => assert!(ran.code == 3 || ran.code == 4, "{}{}", ran.stdout, ran.stderr),
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

    fn custody_dispatch(&self) -> Motiongear {
        let command = self.verb(&self.branch.state, &["custody", "dispatch"]);
        command.arg("--key").arg(&self.branch.key).arg("--trust").arg(&self.branch.trust)
    }

    fn dispatch(&mut self) {
        let command = self.custody_dispatch();
        if self.phase == Phase::Sealed && self.verified {
            command.run().ok();
            self.phase = Phase::Dispatched;
            return;
        }
        // Without a seal nothing is to be trusted.
        self.refused(if self.seals == 0 { 4 } else { 1 }, command);
    }

    fn stranger(&self) {
        if self.phase == Phase::Prepared {
            return;
        }
        let state = self.branch.place.join("stranger");
        let chosen: Vec<usize> = (0..self.disks.len()).collect();
        for extra in [&[][..], &["--reopen"]] {
            self.refused(1, self.verb(&state, &["seed"]).arg("--plan").arg(self.plan(&chosen, 0)).args(extra));
        }
        self.refused(1, self.verb(&state, &["seal"]).arg("--key").arg(&self.branch.key));
    }

    fn impostor(&self, number: usize, larger: bool, reopen: bool) {
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

    /// The disks in the ledger, compared with the sources as they are now.
    fn scan(&mut self, machine: Option<u8>, disk: Option<u8>, run: &Run) {
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
    fn changed_blocks(&self, number: usize) -> Option<Vec<u8>> {
        let manifest = self.manifest_in(&self.branch.state);
        let uuid = sql_after_crash(&manifest, &format!("SELECT uuid FROM disk WHERE name = 'd{number}'"));
        std::fs::read(self.branch.state.join("scans").join(format!("{uuid}.changed"))).ok()
    }

    /// What is on the array of a finished disk, if that can be known: an unsealed one cannot be restored to look.
    fn content(&mut self, number: usize) -> Option<Vec<u8>> {
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

    // ---- the data centre

    /// What came out must be what was read, and the same ever after.
    fn arrived(&mut self, number: usize, found: &[u8], what: &str) {
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

    fn foreign(&mut self, number: usize, kib: u16) {
        if self.volumes[number] == Volume::Absent {
            std::fs::create_dir_all(self.volume(number).parent().unwrap()).unwrap();
            noise(&self.volume(number), u64::from(kib) * 1024, 99);
            self.volumes[number] = Volume::Foreign;
        }
    }

    fn import(&mut self, machine: Option<u8>, disk: Option<u8>, readback: Readback, overwrite: bool, run: &Run) {
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
            return self.refused(4, command);
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
    fn half_imported(&mut self, number: usize, found: Option<Vec<u8>>, before: &Option<Vec<u8>>, overwrite: bool) {
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

    fn imported(&mut self, number: usize, found: &[u8], before: &Option<Vec<u8>>, said: &Value, readback: Readback) {
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

    fn restore(&mut self, number: usize, overwrite: bool, run: &Run) {
        let file = self.branch.place.join("restored").join(format!("d{number}"));
        let command = self.verb(&self.centre, &["restore"]).arg(self.name(number)).arg(&file);
        let mut command = self.with_trust(command);
        if overwrite {
            command = command.arg("--overwrite");
        }
        if self.seals == 0 {
            return self.refused(4, command);
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

/// Plays a kept history.
pub fn play_file(path: &Path) {
    play(&serde_json::from_value(json_file(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
}
