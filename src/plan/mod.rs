//! The plan file of a seed: machines, disks, limits, windows and hooks, in TOML. Strict: an unknown key, a doubtful name
//! or a rate that does not parse is an error with its line, before any disk is touched.

mod facts;

use facts::RawFacts;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use motiongear_manifest::names;
use serde::{Deserialize, Serialize};
use toml::Spanned;
use uuid::Uuid;

pub use crate::copy::windows::WindowSpec;
use crate::copy::windows::Windows;
use crate::error::{Error, Kind, Result};
use crate::inspect::HostInventory;
use crate::source::Origin;
use crate::source::running::Monitor;
use crate::toml_text::{self, Lines};
use crate::units;

/// Most disks a plan may name.
pub const DISK_LIMIT: usize = 4096;
/// Most windows a plan may name.
pub const WINDOW_LIMIT: usize = 64;
/// A hook that may run longer than this is a mistake in the unit.
const HOOK_TIMEOUT_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What to seed, and how gently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Bounds on what the host feels.
    pub limits: PlanLimits,
    /// When which rate applies.
    pub windows: Vec<WindowSpec>,
    /// The machines, in the file's order; at least one disk among them.
    pub machines: Vec<MachinePlan>,
}

/// `[limits]`; what is not given is not limited (or taken from the command line).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlanLimits {
    /// Bytes per second read from all sources together.
    pub read_bytes_per_second: Option<u64>,
    /// Share of the whole machine's CPU, 1–100.
    pub cpu_percent: Option<u8>,
    /// Worker threads, 1–1024.
    pub jobs: Option<u16>,
    /// Back off when a source disk's latency rises.
    pub latency_guard: Option<bool>,
}

/// `[[machine]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachinePlan {
    /// Unique in the plan.
    pub name: String,
    /// Given by a site's inventory; drawn by the ledger where absent.
    pub uuid: Option<Uuid>,
    /// What is known of it, where nothing of ours runs on it.
    pub facts: Option<HostInventory>,
    /// Commands around the snapshot.
    pub hooks: HooksSpec,
    /// Its disks, in the file's order.
    pub disks: Vec<DiskPlan>,
}

/// `[[machine.disk]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Unique in its machine.
    pub name: String,
    /// Given by a site's inventory; drawn by the ledger where absent.
    pub uuid: Option<Uuid>,
    /// Where its bytes are read from.
    pub source: Origin,
    /// The engineer asserts that the source does not change while it is read.
    pub point_in_time: bool,
    /// Why this disk is planned but not copied; it stands in the report.
    pub exclude: Option<String>,
}

/// `[machine.hooks]`: each a command with its arguments (no shell), and its time limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HooksSpec {
    /// Stops writes for a moment.
    pub freeze: Option<HookSpec>,
    /// Makes the snapshot; may print `DISK=PATH` lines that say where to read.
    pub snapshot: Option<HookSpec>,
    /// Lets writes go on; may run twice, so it must be idempotent.
    pub thaw: Option<HookSpec>,
    /// Removes the snapshot after the copy.
    pub discard: Option<HookSpec>,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookSpec {
    /// Program and arguments; no shell reads it.
    pub command: Vec<String>,
    /// After this it is terminated, then killed.
    pub timeout: Duration,
}

impl MachinePlan {
    /// The disks that are copied.
    fn copied(&self) -> impl Iterator<Item = &DiskPlan> {
        self.disks.iter().filter(|disk| disk.exclude.is_none())
    }

    /// Whom to ask for a snapshot of the machine, where it runs while its disks are read.
    pub fn monitor(&self) -> Option<Monitor> {
        self.copied().find_map(|disk| disk.source.monitor())
    }

    /// Whether snapshots are taken of its disks, which are Ceph images: unless hooks of its own do it.
    pub fn takes_own_images(&self) -> bool {
        self.hooks.snapshot.is_none() && self.copied().any(|disk| disk.source.live_image().is_some())
    }

    /// Whether what runs it takes its snapshot, and no hook.
    pub fn has_platform(&self) -> bool {
        self.monitor().is_some() || self.takes_own_images()
    }

    /// Whether its disks are read from snapshots that are taken for it.
    pub fn makes_snapshots(&self) -> bool {
        self.hooks.snapshot.is_some() || self.has_platform()
    }

    /// Snapshots are of all its images, or made by a hook: what comes from elsewhere has no part in them.
    fn expect_all_images(&self) -> Result<(), String> {
        let apart = |disk: &&DiskPlan| disk.source.live_image().is_none();
        match (self.takes_own_images(), self.copied().find(apart)) {
            (true, Some(disk)) => Err(format!(
                "disk.source: expected Ceph images, of which a snapshot is taken, for all disks of the machine, found {}; or a snapshot hook",
                disk.source
            )),
            (true, None) if self.hooks.discard.is_some() => Err(
                "hooks: expected no discard where the snapshots of Ceph images are held for the next scan, found one"
                    .into(),
            ),
            _ => Ok(()),
        }
    }

    /// One instant for all disks, or none: what comes from elsewhere has no part in a machine's own snapshot.
    fn expect_one_monitor(&self) -> Result<(), String> {
        let Some(monitor) = self.monitor() else { return Ok(()) };
        let apart = |disk: &&DiskPlan| disk.source.monitor().is_none_or(|other| other != monitor);
        if let Some(disk) = self.copied().find(apart) {
            return Err(format!("disk.source: expected all disks of the machine at {monitor}, found {}", disk.source));
        }
        match (&self.hooks.snapshot, &self.hooks.discard) {
            (None, None) => Ok(()),
            _ => Err(format!(
                "hooks: expected freeze and thaw only beside {monitor}, which takes the snapshot itself, found others"
            )),
        }
    }
}

impl HooksSpec {
    /// Whether any hook is set.
    pub fn is_empty(&self) -> bool {
        self == &HooksSpec::default()
    }
}

impl Plan {
    /// Reads a plan file of at most 1 MiB.
    ///
    /// # Errors
    /// Unreadable or too large; otherwise as [`Plan::parse`], with the file's name.
    pub fn read(path: &Path) -> Result<Plan> {
        Plan::parse(&toml_text::read(path)?).map_err(toml_text::named(path))
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// A usage error that names line and field, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Plan> {
        let next = "'motiongear inspect --plan-out FILE' writes a plan with every key explained";
        let (raw, lines) = toml_text::parse(text, next)?;
        Reader { lines }.plan(raw)
    }

    /// The plan that `--disk NAME=SOURCE…` and `--machine NAME` mean.
    ///
    /// # Errors
    /// No disk, a name that is none, or one name twice.
    pub fn from_disks(machine: &str, disks: impl IntoIterator<Item = (String, Origin)>) -> Result<Plan> {
        let disks = disks
            .into_iter()
            .map(|(name, source)| DiskPlan { name, uuid: None, source, point_in_time: false, exclude: None })
            .collect();
        let machine =
            MachinePlan { name: machine.to_owned(), uuid: None, facts: None, hooks: HooksSpec::default(), disks };
        let plan = Plan { limits: PlanLimits::default(), windows: Vec::new(), machines: vec![machine] };
        plan.check(|_, _| String::new())?;
        Ok(plan)
    }

    /// Every disk with its machine, in order.
    pub fn disks(&self) -> impl Iterator<Item = (&MachinePlan, &DiskPlan)> {
        self.machines.iter().flat_map(|machine| machine.disks.iter().map(move |disk| (machine, disk)))
    }

    /// Names and counts; `place` turns machine and disk index into "Line 7: ".
    fn check(&self, place: impl Fn(usize, Option<usize>) -> String) -> Result<()> {
        let total: usize = self.machines.iter().map(|machine| machine.disks.len()).sum();
        if total == 0 {
            return Err(Error::usage("Expected at least one disk to seed, found none".to_string())
                .next("Give --disk NAME=SOURCE, or [[machine.disk]] in the plan"));
        }
        if total > DISK_LIMIT {
            return Err(Error::usage(format!("Expected at most {DISK_LIMIT} disks, found {total}")));
        }
        let mut machines = BTreeMap::new();
        let mut uuids = BTreeMap::new();
        for (m, machine) in self.machines.iter().enumerate() {
            let at = place(m, None);
            named(&at, "Machine name", &machine.name)?;
            if machines.insert(&machine.name, m).is_some() {
                return Err(Error::usage(format!("{at}machine.name: '{}' names two machines", machine.name))
                    .next("Names are unique within a plan; give one [[machine]] all its disks"));
            }
            let fits = machine.expect_one_monitor().and_then(|()| machine.expect_all_images());
            fits.map_err(|why| Error::usage(format!("{at}{why}")))?;
            let mut disks = BTreeMap::new();
            for (d, disk) in machine.disks.iter().enumerate() {
                let at = place(m, Some(d));
                named(&at, "Disk name", &disk.name)?;
                if disks.insert(&disk.name, d).is_some() {
                    let both = format!("{}/{}", machine.name, disk.name);
                    return Err(Error::usage(format!("{at}disk.name: '{both}' names two disks"))
                        .next("Names are unique within a machine"));
                }
                if disk.source.path().is_some_and(|path| path.as_os_str().is_empty()) {
                    return Err(Error::usage(format!("{at}disk.source: expected a path, found nothing")));
                }
            }
            let own = machine.uuid.iter().chain(machine.disks.iter().filter_map(|disk| disk.uuid.as_ref()));
            for uuid in own {
                if uuids.insert(*uuid, m).is_some() {
                    return Err(Error::usage(format!("{at}uuid: {uuid} stands for two things")));
                }
            }
        }
        Ok(())
    }
}

fn named(at: &str, object: &str, name: &str) -> Result<()> {
    names::check_name(object, name).map_err(|error| Error::new(Kind::Usage, format!("{at}{error}")))
}

// ---- what the file says, before it means anything ----

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    window: Vec<RawWindow>,
    #[serde(default)]
    machine: Vec<RawMachine>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    read: Option<Spanned<String>>,
    cpu: Option<Spanned<i64>>,
    jobs: Option<Spanned<i64>>,
    latency_guard: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWindow {
    #[serde(default)]
    days: Vec<Spanned<String>>,
    from: Spanned<String>,
    to: Spanned<String>,
    rate: Spanned<String>,
    zone: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    name: Spanned<String>,
    uuid: Option<Spanned<String>>,
    facts: Option<RawFacts>,
    #[serde(default)]
    hooks: RawHooks,
    #[serde(default)]
    disk: Vec<RawDisk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDisk {
    name: Spanned<String>,
    uuid: Option<Spanned<String>>,
    source: Spanned<String>,
    #[serde(default)]
    point_in_time: bool,
    exclude: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHooks {
    freeze: Option<Spanned<Vec<String>>>,
    snapshot: Option<Spanned<Vec<String>>>,
    thaw: Option<Spanned<Vec<String>>>,
    discard: Option<Spanned<Vec<String>>>,
    freeze_timeout: Option<Spanned<String>>,
    snapshot_timeout: Option<Spanned<String>>,
    thaw_timeout: Option<Spanned<String>>,
    discard_timeout: Option<Spanned<String>>,
}

/// Turns what was written into what it means; every complaint carries the line.
struct Reader {
    lines: Lines,
}

impl Reader {
    fn plan(&self, raw: RawPlan) -> Result<Plan> {
        if raw.window.len() > WINDOW_LIMIT {
            return Err(Error::usage(format!("Expected at most {WINDOW_LIMIT} windows, found {}", raw.window.len())));
        }
        let places: Vec<(String, Vec<String>)> = raw
            .machine
            .iter()
            .map(|machine| {
                (self.lines.at(&machine.name), machine.disk.iter().map(|disk| self.lines.at(&disk.name)).collect())
            })
            .collect();
        let plan = Plan {
            limits: self.limits(raw.limits)?,
            windows: raw.window.into_iter().map(|window| self.window(window)).collect::<Result<_>>()?,
            machines: raw.machine.into_iter().map(|machine| self.machine(machine)).collect::<Result<_>>()?,
        };
        plan.check(|machine, disk| match (places.get(machine), disk) {
            (Some((at, _)), None) => at.clone(),
            (Some((_, disks)), Some(disk)) => disks.get(disk).cloned().unwrap_or_default(),
            (None, _) => String::new(),
        })?;
        Ok(plan)
    }

    fn limits(&self, raw: RawLimits) -> Result<PlanLimits> {
        let between = |value: &Spanned<i64>, field: &str, low: i64, high: i64| {
            let number = *value.get_ref();
            if (low..=high).contains(&number) {
                return Ok(number);
            }
            Err(self.lines.wrong(value, field, &format!("a whole number from {low} to {high}"), number))
        };
        let cpu = raw.cpu.map(|cpu| between(&cpu, "limits.cpu", 1, 100)).transpose()?;
        let jobs = raw.jobs.map(|jobs| between(&jobs, "limits.jobs", 1, 1024)).transpose()?;
        let read = match &raw.read {
            Some(read) => match self.rate(read, "limits.read")? {
                0 => return Err(self.lines.wrong(read, "limits.read", "a rate above 0 (pause a job with 'pause')", 0)),
                rate => Some(rate),
            },
            None => None,
        };
        Ok(PlanLimits {
            read_bytes_per_second: read,
            cpu_percent: cpu.and_then(|cpu| u8::try_from(cpu).ok()),
            jobs: jobs.and_then(|jobs| u16::try_from(jobs).ok()),
            latency_guard: raw.latency_guard,
        })
    }

    fn rate(&self, value: &Spanned<String>, field: &str) -> Result<u64> {
        units::parse_rate_or_still(value.get_ref()).map_err(|_| {
            self.lines.wrong(value, field, "a rate such as \"80MiB\" or \"100Mbit\"", quoted(value.get_ref()))
        })
    }

    /// The evaluator judges, so that what a plan accepts is what a job can keep; here its complaint gets its line.
    fn window(&self, raw: RawWindow) -> Result<WindowSpec> {
        let at = |field: &str| match field {
            "days" => raw.days.first().map_or_else(|| self.lines.at(&raw.from), |day| self.lines.at(day)),
            "to" => self.lines.at(&raw.to),
            "rate" => self.lines.at(&raw.rate),
            "zone" => raw.zone.as_ref().map_or_else(|| self.lines.at(&raw.from), |zone| self.lines.at(zone)),
            _ => self.lines.at(&raw.from),
        };
        let spec = WindowSpec {
            days: raw.days.iter().map(|day| day.get_ref().clone()).collect(),
            from: raw.from.get_ref().clone(),
            to: raw.to.get_ref().clone(),
            rate: raw.rate.get_ref().clone(),
            zone: raw.zone.as_ref().map(|zone| zone.get_ref().clone()),
        };
        Windows::new(std::slice::from_ref(&spec)).map_err(|mut error| {
            // The evaluator counts windows; alone, ours is always its first.
            let complaint = error.message.strip_prefix("Window 1: ").unwrap_or(&error.message);
            let field = complaint.split(' ').next().unwrap_or_default();
            error.message = format!("{}window.{complaint}", at(field));
            error
        })?;
        Ok(spec)
    }

    fn machine(&self, raw: RawMachine) -> Result<MachinePlan> {
        let disks: Vec<DiskPlan> = raw.disk.into_iter().map(|disk| self.disk(disk)).collect::<Result<_>>()?;
        let own = disks.iter().any(|disk| disk.source.monitor().is_some() || disk.source.live_image().is_some());
        Ok(MachinePlan {
            uuid: self.uuid(raw.uuid, "machine.uuid")?,
            facts: raw.facts.map(|facts| facts.inventory(&self.lines)).transpose()?,
            hooks: self.hooks(raw.hooks, own)?,
            disks,
            name: raw.name.into_inner(),
        })
    }

    fn disk(&self, raw: RawDisk) -> Result<DiskPlan> {
        if let Some(reason) = &raw.exclude {
            let words = reason.get_ref();
            if words.trim().is_empty() {
                return Err(self.lines.wrong(reason, "disk.exclude", "the reason, for the report", "nothing"));
            }
            names::check_text("disk.exclude", words, 500)
                .map_err(|error| Error::usage(format!("{}{error}", self.lines.at(reason))))?;
        }
        Ok(DiskPlan {
            uuid: self.uuid(raw.uuid, "disk.uuid")?,
            name: raw.name.into_inner(),
            source: Origin::parse(raw.source.get_ref())
                .map_err(|error| Error::usage(format!("{}disk.source: {error}", self.lines.at(&raw.source))))?,
            point_in_time: raw.point_in_time,
            exclude: raw.exclude.map(Spanned::into_inner),
        })
    }

    fn uuid(&self, value: Option<Spanned<String>>, field: &str) -> Result<Option<Uuid>> {
        let Some(value) = value else { return Ok(None) };
        match Uuid::try_parse(value.get_ref()) {
            Ok(uuid) if !uuid.is_nil() => Ok(Some(uuid)),
            _ => Err(self.lines.wrong(&value, field, "a UUID", quoted(value.get_ref()))),
        }
    }

    /// `own`: the machine takes its snapshot itself.
    fn hooks(&self, raw: RawHooks, own: bool) -> Result<HooksSpec> {
        let hooks = HooksSpec {
            freeze: self.hook("freeze", raw.freeze.as_ref(), raw.freeze_timeout.as_ref(), 30)?,
            snapshot: self.hook("snapshot", raw.snapshot.as_ref(), raw.snapshot_timeout.as_ref(), 60)?,
            thaw: self.hook("thaw", raw.thaw.as_ref(), raw.thaw_timeout.as_ref(), 30)?,
            discard: self.hook("discard", raw.discard.as_ref(), raw.discard_timeout.as_ref(), 120)?,
        };
        if let (Some(freeze), None) = (&raw.freeze, &hooks.thaw) {
            return Err(self
                .lines
                .wrong(freeze, "hooks.freeze", "a thaw hook beside it", "none")
                .next("What is frozen must be thawed, also when MotionGear dies"));
        }
        if let (Some(freeze), None, false) = (&raw.freeze, &hooks.snapshot, own) {
            return Err(self
                .lines
                .wrong(freeze, "hooks.freeze", "a snapshot hook beside it", "none")
                .next("A freeze spans only the snapshot; without one it would change nothing"));
        }
        Ok(hooks)
    }

    fn hook(
        &self,
        name: &str,
        command: Option<&Spanned<Vec<String>>>,
        timeout: Option<&Spanned<String>>,
        default_seconds: u64,
    ) -> Result<Option<HookSpec>> {
        let limit = match timeout {
            Some(text) => {
                let expected = "a time of 1s to 24h such as \"30s\" or \"2m\"";
                seconds(text.get_ref()).filter(|limit| !limit.is_zero() && *limit <= HOOK_TIMEOUT_LIMIT).ok_or_else(
                    || self.lines.wrong(text, &format!("hooks.{name}_timeout"), expected, quoted(text.get_ref())),
                )?
            }
            None => Duration::from_secs(default_seconds),
        };
        match (command, timeout) {
            (None, Some(timeout)) => Err(self.lines.wrong(
                timeout,
                &format!("hooks.{name}_timeout"),
                &format!("a {name} hook beside it"),
                "none",
            )),
            (None, None) => Ok(None),
            (Some(argv), _) => {
                let words = argv.get_ref();
                if words.first().is_none_or(String::is_empty) || words.iter().any(|word| word.contains('\0')) {
                    let expected = "a program and its arguments, as in [\"/usr/local/sbin/freeze\", \"db01\"]";
                    return Err(self.lines.wrong(argv, &format!("hooks.{name}"), expected, format!("{words:?}")));
                }
                Ok(Some(HookSpec { command: words.clone(), timeout: limit }))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    format!("\"{short}\"")
}

/// `30s`, `2m`, `1h`.
fn seconds(text: &str) -> Option<Duration> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return None,
    };
    let number: u64 = text[..text.len() - 1].trim_end().parse().ok()?;
    Some(Duration::from_secs(number.checked_mul(unit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[limits]
read = "80MiB"
cpu = 50
jobs = 4
latency_guard = true

[[window]]
days = ["mon-fri"]
from = "08:00"
to = "18:00"
rate = "20MiB"
zone = "Asia/Shanghai"

[[window]]
from = "22:00"
to = "06:00"
rate = "0"

[[machine]]
name = "db01"
uuid = "6f2f5f0e-8f83-4a0e-9a55-0a2a9f3f0a11"
[machine.hooks]
freeze = ["/sbin/freeze", "db01"]
freeze_timeout = "45s"
snapshot = ["/sbin/snap"]
thaw = ["/sbin/thaw"]
[[machine.disk]]
name = "sda"
source = "/dev/disk/by-id/wwn-0x5000"
point_in_time = true
[[machine.disk]]
name = "sdb"
source = "/dev/sdb"
exclude = "scratch only"
"#;

    #[test]
    fn a_full_plan_means_what_it_says() {
        let plan = Plan::parse(GOOD).unwrap();
        assert_eq!(plan.limits.read_bytes_per_second, Some(80 << 20));
        assert_eq!(plan.limits.cpu_percent, Some(50));
        assert_eq!(plan.windows.len(), 2);
        assert_eq!(plan.windows[1].rate, "0");
        let machine = &plan.machines[0];
        assert_eq!(machine.hooks.freeze.as_ref().unwrap().timeout, Duration::from_secs(45));
        assert_eq!(machine.hooks.snapshot.as_ref().unwrap().timeout, Duration::from_secs(60));
        assert!(machine.hooks.discard.is_none());
        assert!(machine.disks[0].point_in_time);
        assert_eq!(machine.disks[1].exclude.as_deref(), Some("scratch only"));
        assert_eq!(plan.disks().count(), 2);
    }

    #[test]
    fn every_complaint_names_its_line_and_field() {
        let swap = |from: &str, to: &str| {
            assert!(GOOD.contains(from), "{from}");
            Plan::parse(&GOOD.replacen(from, to, 1)).unwrap_err()
        };
        for (from, to, line, part) in [
            ("cpu = 50", "cpu = 101", 4, "limits.cpu: expected a whole number from 1 to 100, found 101"),
            ("jobs = 4", "jobs = 0", 5, "limits.jobs"),
            ("read = \"80MiB\"", "read = \"0\"", 3, "limits.read"),
            ("read = \"80MiB\"", "read = \"fast\"", 3, "limits.read: expected a rate"),
            ("jobs = 4", "jbos = 4", 5, "jbos"),
            ("\"mon-fri\"", "\"mon-fry\"", 9, "window.days"),
            ("\"08:00\"", "\"8\"", 10, "window.from"),
            ("\"18:00\"", "\"24:01\"", 11, "window.to"),
            ("\"18:00\"", "\"08:00\"", 11, "window.to"),
            ("\"20MiB\"", "\"-1\"", 12, "window.rate"),
            ("Asia/Shanghai", "Asia/Shangri-La", 13, "window.zone"),
            ("\"db01\"\nuuid", "\"../db01\"\nuuid", 21, "Machine name"),
            ("6f2f5f0e", "zz2f5f0e", 22, "machine.uuid"),
            ("\"45s\"", "\"45\"", 25, "hooks.freeze_timeout"),
            ("\"45s\"", "\"0s\"", 25, "hooks.freeze_timeout"),
            ("thaw = [\"/sbin/thaw\"]", "", 24, "hooks.freeze: expected a thaw hook"),
            ("snapshot = [\"/sbin/snap\"]", "snapshot = []", 26, "hooks.snapshot"),
            ("snapshot = [\"/sbin/snap\"]", "", 24, "hooks.freeze: expected a snapshot hook"),
            ("name = \"sdb\"", "name = \"sda\"", 33, "names two disks"),
            ("\"scratch only\"", "\" \"", 35, "disk.exclude"),
            ("source = \"/dev/sdb\"", "source = \"\"", 33, "disk.source"),
            ("source = \"/dev/sdb\"", "sauce = \"\"", 34, "sauce"),
        ] {
            let error = swap(from, to);
            assert_eq!(error.kind, Kind::Usage);
            assert!(error.message.starts_with(&format!("Line {line}: ")), "{from} → {to}: {}", error.message);
            assert!(error.message.contains(part), "{from} → {to}: {}", error.message);
        }
    }

    #[test]
    fn an_empty_huge_or_doubled_plan_is_refused() {
        assert!(Plan::parse("").unwrap_err().message.contains("at least one disk"));
        assert!(Plan::parse(&" ".repeat(1 << 21)).unwrap_err().message.contains("1 MiB"));
        assert!(
            Plan::parse(&format!("{GOOD}\n[[machine]]\nname = \"db01\"\n"))
                .unwrap_err()
                .message
                .contains("two machines")
        );
        assert!(Plan::parse("[[machine]]\nname = \"a\"\nuuid = 5\n").unwrap_err().message.starts_with("Line 3: "));
    }

    #[test]
    fn a_plan_full_of_disks_is_refused_at_once() {
        let disk = "[[machine.disk]]\nname=\"a\"\nsource=\"b\"\n";
        let plan = format!("[[machine]]\nname=\"m\"\n{}", disk.repeat(28_000));
        let started = std::time::Instant::now();
        assert!(Plan::parse(&plan).unwrap_err().message.contains("at most 4096 disks"));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }

    #[test]
    fn disks_from_the_command_line_obey_the_same_rules() {
        let disk = |name: &str| (name.to_owned(), Origin::Path("/dev/sda".into()));
        let plan = Plan::from_disks("db01", [disk("sda"), disk("sdb")]).unwrap();
        assert_eq!(
            plan.disks().map(|(m, d)| format!("{}/{}", m.name, d.name)).collect::<Vec<_>>(),
            ["db01/sda", "db01/sdb"]
        );
        assert!(Plan::from_disks("db01", [disk("sda"), disk("sda")]).is_err());
        assert!(Plan::from_disks("db01", []).is_err());
        assert!(Plan::from_disks("db/01", [disk("sda")]).is_err());
    }
}
