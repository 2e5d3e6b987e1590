//! Where a verb plays: a branch and a data centre on the layer, and the runs, cuts and recoveries of one verb.

use super::checks::Source;
use crate::common::{Branch, Dice, Motiongear, Ran, b3sum, full, seed_of_this_run, ssh_key, trust_line};
use crate::faults::layer::{APART, Fate, Tree, World, Written, mount, survive};
use serde_json::Value;
use std::any::Any;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// No run of these small disks takes so long, on however slow a machine.
const LIMIT: Duration = Duration::from_secs(600);

/// Branch and data centre. Keys and sources lie on a real disk; everything that a verb writes lies on the layer, at `mount`.
pub struct Stage {
    pub branch: Branch,
    /// Key of somebody at the data centre, who is trusted too.
    pub operator: PathBuf,
    /// Below it: `array`, `state` (the branch's), `centre` (the data centre's), `volumes`.
    pub mount: PathBuf,
    pub sources: Vec<Source>,
    pub engine: &'static str,
}

/// A verb under test.
pub struct Verb<'a> {
    pub name: &'static str,
    /// The world before it.
    pub before: World,
    pub command: &'a dyn Fn(&Stage) -> Motiongear,
    /// What must hold whatever the power left; not mounted.
    pub at_cut: &'a dyn Fn(&Stage, &Tree),
    /// Whether the answer of the last run is a good one; `recovered` is asked then.
    pub accepts: &'a dyn Fn(&Replay) -> bool,
    /// What must hold after the last run; mounted.
    pub recovered: &'a dyn Fn(&Stage, &Replay),
}

/// One story from cut to recovery.
pub struct Replay<'a> {
    /// What the last cut left.
    pub left: &'a Tree,
    /// What a run said that came to its end before that cut.
    pub finished: Option<Value>,
    /// How the run from there ended.
    pub ran: Ran,
    /// What each run wrote, whether it lasted or not.
    pub logs: Vec<Vec<Written>>,
}

/// One run that was cut, or that came to its end.
struct Run {
    world: World,
    written: Vec<Written>,
    /// How it ended, if it was not cut.
    ended: Option<Ran>,
    syncs: u64,
}

/// What happens between the first cut and the last run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Nothing.
    Straight,
    /// The next run is cut as well, at this sync.
    CutAgain(u64),
    /// Only the process died; the power went at this sync of the next run, or after it.
    KilledThenCut(u64),
    /// Only the process died; the power went when the next run had come to its end. What the first left half durable must not
    /// be taken for durable by the next.
    KilledThenDone,
}

/// At which syncs the first run is cut.
enum Cuts {
    Every,
    /// The first, the last and a few between.
    Some,
    /// From one to another.
    Within(RangeInclusive<u64>),
}

/// How many stories of a verb are told.
struct Extent {
    cuts: Cuts,
    /// Of each cut, with ways by the dice.
    fates: usize,
    /// Of each cut, with [`Way::KilledThenDone`]: the fates that take turns, and how many of them.
    killed: (&'static [Fate], usize),
    /// Of each cut, with [`Way::KilledThenCut`] at each of so many first syncs of the next run.
    hurried: u64,
}

/// What of the killed process's doing is lost: names, data, or both.
const LOST: &[Fate] = &[Fate::DataOnly, Fate::NamesOnly, Fate::Nothing];

impl Stage {
    pub fn new(engine: &'static str, disks: Vec<(&'static str, Vec<u8>)>) -> Stage {
        let mut branch = Branch::new();
        let mount = branch.place.dir("power");
        branch.array = mount.join(APART);
        branch.state = mount.join("state");
        let operator = ssh_key(&branch.place.join("operator"), "wang@centre", "ed25519", "");
        let mut trust = std::fs::read_to_string(&branch.trust).unwrap();
        trust.push_str(&trust_line(&operator, "wang@centre", "namespaces=\"motiongear-*\""));
        std::fs::write(&branch.trust, trust).unwrap();
        let source = |(name, data): (&'static str, Vec<u8>)| {
            let path = branch.place.file(name, &data);
            Source { name, digest: b3sum(&path), path, data }
        };
        let sources = disks.into_iter().map(source).collect();
        Stage { branch, operator, mount, sources, engine }
    }

    /// Mounts `world` for `act`.
    pub fn on<R>(&self, world: World, act: impl FnOnce() -> R) -> (World, R) {
        let mounted = mount(world, &self.mount, None);
        let result = act();
        (mounted.unmount(), result)
    }

    /// Further steps, after which the power stays on and all is on the medium.
    pub fn after(&self, world: &World, steps: impl FnOnce()) -> World {
        let (mut world, ()) = self.on(world.clone(), steps);
        world.settle();
        world
    }

    /// `motiongear --state` of the branch.
    pub fn at_branch(&self) -> Motiongear {
        self.branch.motiongear().args(["--json", "--engine", self.engine])
    }
    /// `motiongear --state` of the data centre.
    pub fn at_centre(&self) -> Motiongear {
        Motiongear::new(&self.mount.join("centre")).args(["--json", "--engine", self.engine])
    }
    pub fn seed_command(&self) -> Motiongear {
        let mut command =
            self.at_branch().arg("seed").arg(&self.branch.array).args(["--machine", "db01", "--point-in-time"]);
        command = command.arg("--trust").arg(&self.branch.trust);
        for source in &self.sources {
            command = command.arg("--disk").arg(format!("{}={}", source.name, source.path.display()));
        }
        command
    }

    /// An array that the data centre prepared; the branch knows nothing yet, not even a state directory.
    pub fn prepared(&self) -> World {
        self.after(&World::with_array(), || {
            self.init().ok();
        })
    }
    pub fn init(&self) -> Ran {
        let init = self.at_centre().arg("init").arg(&self.branch.array).args(["--site", &self.branch.site]);
        let init = init.args(["--asset", "TAG-7", "--block-size", "64KiB", "--recipient", &self.branch.recipient]);
        init.arg("--key").arg(&self.operator).run()
    }

    fn run(&self, verb: &Verb, world: World, cut_at: Option<u64>) -> Run {
        let mounted = mount(world, &self.mount, cut_at);
        let mut process = (verb.command)(self).start();
        let cut = mounted.wait(LIMIT, || !process.is_running());
        let ended = if cut {
            process.kill();
            None
        } else {
            Some(process.wait())
        };
        let syncs = mounted.syncs();
        let mut world = mounted.unmount();
        let written = std::mem::take(&mut world.written);
        Run { world, written, ended, syncs }
    }

    /// Cuts the verb and recovers it, everywhere in the full run.
    pub fn suffer(&self, verb: &Verb) {
        self.tell(
            verb,
            match full() {
                true => Extent { cuts: Cuts::Every, fates: Fate::KINDS, killed: (LOST, LOST.len()), hurried: 0 },
                false => Extent { cuts: Cuts::Some, fates: 2, killed: (LOST, 1), hurried: 0 },
            },
        );
    }

    /// Kills the verb at every sync, lets the same command finish, and takes `lost` away then.
    pub fn outlive(&self, verb: &Verb, lost: &'static [Fate]) {
        self.tell(verb, Extent { cuts: Cuts::Every, fates: 0, killed: (lost, lost.len()), hurried: 0 });
    }

    /// Kills the verb at its last syncs before `made` is there, in the full run at every one, and takes the power from the same
    /// command at each of its first: what the one found of the other and acted upon must not be lost before what it did.
    pub fn hurry(&self, verb: &Verb, made: &Path) {
        let cuts = if full() {
            Cuts::Every
        } else {
            let first = self.first_with(verb, made);
            Cuts::Within(first.saturating_sub(4).max(1)..=first)
        };
        self.tell(verb, Extent { cuts, fates: 0, killed: (LOST, 0), hurried: 10 });
    }

    /// The first sync by which the verb has made the file `made`.
    fn first_with(&self, verb: &Verb, made: &Path) -> u64 {
        let is_there = |cut| self.run(verb, verb.before.clone(), cut).world.now.file(made).is_some();
        assert!(!is_there(Some(1)) && is_there(None), "{} does not make {}", verb.name, made.display());
        let (mut without, mut with) = (1, self.run(verb, verb.before.clone(), None).syncs + 1);
        while with - without > 1 {
            let middle = without + (with - without) / 2;
            if is_there(Some(middle)) { with = middle } else { without = middle }
        }
        println!("{}: {} is there by sync {with}", verb.name, made.display());
        with
    }

    /// Plays every story of `extent`; those that go wrong are told at the end.
    fn tell(&self, verb: &Verb, extent: Extent) {
        let (began, seed) = (Instant::now(), seed_of_this_run());
        let whole = self.run(verb, verb.before.clone(), None);
        whole.ended.as_ref().unwrap().ok();
        let (syncs, name) = (whole.syncs, format!("{} ({})", verb.name, self.engine));
        let cuts: Vec<u64> = match extent.cuts {
            Cuts::Every => (1..=syncs + 1).collect(),
            Cuts::Within(range) => range.collect(),
            Cuts::Some => {
                let mut dice = dice_of(seed, &name, 0, 0);
                let mut cuts = vec![1, syncs, syncs + 1];
                cuts.extend((0..5).map(|_| 1 + dice.below(syncs)));
                cuts.sort_unstable();
                cuts.dedup();
                cuts
            }
        };
        let (fates, (lost, killed)) = (extent.fates, extent.killed);
        let (mut replays, mut faults) = (0, BTreeMap::<String, (String, Vec<String>)>::new());
        for cut in cuts {
            let first = self.run(verb, verb.before.clone(), Some(cut));
            for n in 0..fates + killed + extent.hurried as usize {
                let mut dice = dice_of(seed, &name, cut, n);
                let (way, fate) = if n < fates {
                    let way = match dice.below(4) {
                        0 => Way::CutAgain(1 + dice.below(syncs + syncs / 4)),
                        1 => Way::KilledThenCut(1 + dice.below(syncs + syncs / 4)),
                        _ => Way::Straight,
                    };
                    (way, Fate::nth(if full() { n } else { cut as usize + n }))
                } else {
                    let hurried = (n - fates).checked_sub(killed).map(|second| Way::KilledThenCut(1 + second as u64));
                    (hurried.unwrap_or(Way::KilledThenDone), lost[(cut as usize + n) % lost.len()])
                };
                replays += 1;
                let scene = format!("cut at sync {cut} of {syncs}, {fate:?}, {way:?}");
                let told = catch_unwind(AssertUnwindSafe(|| self.replay(verb, &first, (way, fate), &mut dice)));
                if let Err(panic) = told {
                    let fault = message(panic).replace(self.branch.place.path().to_str().unwrap(), "");
                    // One kind, whatever its numbers are.
                    let kind = fault.chars().filter(|c| !c.is_ascii_hexdigit()).collect();
                    let (_, scenes) = faults.entry(kind).or_insert((fault, Vec::new()));
                    scenes.push(scene);
                }
            }
        }
        let seconds = began.elapsed().as_secs();
        eprintln!("power: {name}: {syncs} syncs, {replays} replays, {seconds} s, {} kinds of faults", faults.len());
        if !faults.is_empty() {
            let told = |(fault, scenes): &(String, Vec<String>)| {
                format!("{} times: {fault}\n  {}", scenes.len(), scenes[..scenes.len().min(20)].join("\n  "))
            };
            let told: Vec<String> = faults.values().map(told).collect();
            panic!("MOTIONGEAR_SEED={seed} {name}:\n{}", told.join("\n"));
        }
    }

    fn replay(&self, verb: &Verb, first: &Run, (way, fate): (Way, Fate), dice: &mut Dice) {
        let result = |ran: &Option<Ran>| ran.as_ref().filter(|ran| ran.code == 0).map(Ran::ok);
        let mut finished = result(&first.ended);
        let mut logs = vec![first.written.clone()];
        let lose = |world: &World, fate, dice: &mut Dice| {
            let left = survive(world, fate, dice);
            (verb.at_cut)(self, &left);
            left
        };
        let mut left = None;
        if matches!(way, Way::Straight | Way::CutAgain(_)) {
            left = Some(lose(&first.world, fate, dice));
        }
        if way != Way::Straight {
            let world = left.take().map_or_else(|| first.world.clone(), World::of);
            let cut = match way {
                Way::CutAgain(sync) | Way::KilledThenCut(sync) => Some(sync),
                Way::Straight | Way::KilledThenDone => None,
            };
            let again = self.run(verb, world, cut);
            finished = finished.or_else(|| result(&again.ended));
            logs.push(again.written);
            left = Some(lose(&again.world, fate, dice));
        }
        let left = left.expect("the power went");
        let world = World::of(left.clone());
        self.on(world, || {
            let ran = (verb.command)(self).run();
            let mut replay = Replay { left: &left, finished, ran, logs };
            assert!((verb.accepts)(&replay), "recovery: exit {}: {}", replay.ran.code, replay.ran.stderr);
            replay.logs.retain(|log| !log.is_empty());
            (verb.recovered)(self, &replay);
            for host in [self.at_branch(), self.at_centre()] {
                let status = host.arg("status").run().ok();
                assert!(status["jobs"].as_array().is_none_or(|jobs| jobs.is_empty()), "jobs that died: {status}");
            }
        });
    }
}

/// Dice of one replay, so that its luck does not hang on that of the others.
fn dice_of(seed: u64, name: &str, cut: u64, n: usize) -> Dice {
    let hash = blake3::hash(format!("{seed} {name} {cut} {n}").as_bytes());
    Dice::new(u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap()))
}

fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Where a disk's volume lies.
pub fn volume_of(site: &str, name: &str) -> PathBuf {
    Path::new("volumes").join(site).join("db01").join(format!("{name}.raw"))
}
