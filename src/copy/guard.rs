//! The latency guard: when the source disks answer slowly, the job backs off; whoever else uses them was there first.
//!
//! Three series per disk are watched over a sliding second: the kernel's own figures for reads and for writes
//! (`/sys/block/X/stat`: time spent ÷ operations; kept apart, or our many reads would hide the database's few writes)
//! and, for a disk the kernel tells nothing of, the time our unlimited reads took. Each has a baseline. Above `max(3 × baseline, threshold)` the rate is halved, at most
//! once a second, never below the floor; a quiet second adds a sixteenth of the best rate seen (AIMD).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units;

const EVERY: Duration = Duration::from_millis(250);
const WINDOW: Duration = Duration::from_secs(1);
/// The baseline is learned from this many windows before anything is judged against it.
const LEARN: u32 = 3;
/// Fewer operations than this in a window say nothing about latency.
const FEWEST: u64 = 4;
const FACTOR: f64 = 3.0;
/// A whole `stat` is about 150 bytes.
const STAT_BYTES: u64 = 4096;

/// How the guard is set up.
#[derive(Debug, Clone)]
pub struct LatencyGuard {
    /// The root under which `sys/block/NAME/stat` is read: `/`, or a recorded tree.
    pub root: PathBuf,
    /// Kernel names of the source disks (`sda`; `sda/sda1` for a partition), in the order of `observe_read`'s numbers;
    /// empty for a source that is no block device.
    pub disks: Vec<String>,
    /// Names of the sources for people, MACHINE/DISK, in the same order; numbers where they are missing.
    pub labels: Vec<String>,
    /// Latency that is fine whatever the baseline is.
    pub threshold: Duration,
    /// Never slower than this, bytes a second: the job must finish one day.
    pub floor_bytes_per_second: u64,
}

impl LatencyGuard {
    /// A guard of the named kernel disks: 50 ms are fine, and at least 4 MiB/s are read.
    pub fn new(root: &Path, disks: Vec<String>) -> LatencyGuard {
        LatencyGuard {
            root: root.to_owned(),
            disks,
            labels: Vec::new(),
            threshold: Duration::from_millis(50),
            floor_bytes_per_second: 4 * units::MIB,
        }
    }
}

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuardState {
    /// The ceiling it holds now, bytes a second; `None` while all is well.
    pub ceiling_bytes_per_second: Option<u64>,
    /// How often it halved the rate.
    pub backoffs: u64,
    /// The worst latency of the last window, milliseconds.
    pub latency_millis: f64,
    /// The disk that had it.
    pub disk: Option<String>,
}

/// The ceiling changed.
pub(super) struct GuardChange {
    /// For people; steps of recovery have none.
    pub note: Option<String>,
}

pub(super) struct Guard {
    config: LatencyGuard,
    disks: Vec<Disk>,
    sampled: Option<Duration>,
    judged: Duration,
    admitted: VecDeque<(Duration, u64)>,
    best: u64,
    ceiling: Option<u64>,
    backoffs: u64,
    worst: Option<(f64, usize)>,
}

#[derive(Default)]
struct Disk {
    samples: VecDeque<(Duration, Stat)>,
    own: (u64, Duration),
    own_samples: VecDeque<(Duration, u64, Duration)>,
    baselines: [Baseline; 3],
}

/// Fields of `/sys/block/X/stat` (Documentation/block/stat.rst): ios and milliseconds of reads and writes, in flight.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Stat {
    ios: [u64; 2],
    millis: [u64; 2],
    in_flight: u64,
}

/// Falls quickly, rises hardly: a host that is busy from the start must not count as normal for ever, and a job that
/// slows the disks down must not become its own measure.
#[derive(Default, Clone, Copy)]
struct Baseline {
    windows: u32,
    millis: f64,
}

impl Baseline {
    /// Judges a window's latency in ms, then learns from it.
    fn judge(&mut self, millis: f64, threshold: f64) -> bool {
        if self.windows < LEARN {
            self.windows += 1;
            self.millis = if self.windows == 1 { millis } else { self.millis.min(millis) };
            return false;
        }
        let high = millis > threshold.max(FACTOR * self.millis);
        if millis < self.millis {
            self.millis += (millis - self.millis) / 8.0;
        } else if !high {
            self.millis += (millis - self.millis) / 1024.0;
        }
        high
    }
}

impl Guard {
    pub(super) fn new(config: LatencyGuard) -> Guard {
        Guard {
            disks: config.disks.iter().map(|_| Disk::default()).collect(),
            config,
            sampled: None,
            judged: Duration::ZERO,
            admitted: VecDeque::new(),
            best: 0,
            ceiling: None,
            backoffs: 0,
            worst: None,
        }
    }

    pub(super) fn observe(&mut self, disk: usize, elapsed: Duration) {
        if let Some(disk) = self.disks.get_mut(disk) {
            disk.own.0 += 1;
            disk.own.1 = disk.own.1.saturating_add(elapsed);
        }
    }

    pub(super) fn ceiling(&self) -> Option<u64> {
        self.ceiling
    }

    pub(super) fn state(&self) -> GuardState {
        GuardState {
            ceiling_bytes_per_second: self.ceiling,
            backoffs: self.backoffs,
            latency_millis: self.worst.map_or(0.0, |(millis, _)| millis),
            disk: self.worst.map(|(_, disk)| self.name(disk)),
        }
    }

    /// Looks at the disks when it is time; `admitted` is the bytes the job was allowed to read so far.
    pub(super) fn sample(&mut self, now: Duration, admitted: u64) -> Option<GuardChange> {
        if self.sampled.is_some_and(|sampled| now.saturating_sub(sampled) < EVERY) {
            return None;
        }
        self.sampled = Some(now);
        keep_window(&mut self.admitted, now, |sample| sample.0);
        self.admitted.push_back((now, admitted));
        for (disk, name) in self.disks.iter_mut().zip(&self.config.disks) {
            keep_window(&mut disk.samples, now, |sample| sample.0);
            if let Some(stat) = read_stat(&self.config.root, name) {
                disk.samples.push_back((now, stat));
            }
            keep_window(&mut disk.own_samples, now, |sample| sample.0);
            disk.own_samples.push_back((now, disk.own.0, disk.own.1));
        }
        if now.saturating_sub(self.judged) < WINDOW {
            return None;
        }
        self.judged = now;
        self.judge()
    }

    fn judge(&mut self) -> Option<GuardChange> {
        let threshold = self.config.threshold.as_secs_f64() * 1000.0;
        let mut high: Option<(f64, usize)> = None;
        self.worst = None;
        for (index, disk) in self.disks.iter_mut().enumerate() {
            let latencies = disk.latencies();
            for (baseline, millis) in disk.baselines.iter_mut().zip(latencies) {
                let Some(millis) = millis else { continue };
                let worse = |than: &Option<(f64, usize)>| than.is_none_or(|(worst, _)| millis > worst);
                if worse(&self.worst) {
                    self.worst = Some((millis, index));
                }
                if baseline.judge(millis, threshold) && worse(&high) {
                    high = Some((millis, index));
                }
            }
        }
        let rate = self.rate();
        match high {
            Some((millis, disk)) => self.back_off(rate, millis, disk),
            None => self.recover(rate),
        }
    }

    fn back_off(&mut self, rate: u64, millis: f64, disk: usize) -> Option<GuardChange> {
        let from = self.ceiling.unwrap_or(u64::MAX).min(rate.max(self.config.floor_bytes_per_second));
        let to = (from / 2).max(self.config.floor_bytes_per_second);
        if self.ceiling == Some(to) {
            return None;
        }
        self.ceiling = Some(to);
        self.backoffs += 1;
        let note =
            format!("Disk {} answers in {millis:.0} ms: reading slows down to {}/s", self.name(disk), units::size(to));
        Some(GuardChange { note: Some(note) })
    }

    fn recover(&mut self, rate: u64) -> Option<GuardChange> {
        let Some(ceiling) = self.ceiling else {
            self.best = self.best.max(rate);
            return None;
        };
        let best = self.best.max(self.config.floor_bytes_per_second);
        let to = ceiling.saturating_add(best / 16).max(ceiling + 1);
        if to > best {
            self.ceiling = None;
            return Some(GuardChange {
                note: Some("Source disks answer as before: reading is back to full speed".into()),
            });
        }
        self.ceiling = Some(to);
        Some(GuardChange { note: None })
    }

    /// Bytes a second admitted over the last window.
    fn rate(&self) -> u64 {
        let (Some(first), Some(last)) = (self.admitted.front(), self.admitted.back()) else { return 0 };
        let millis = last.0.saturating_sub(first.0).as_millis().max(1);
        u64::try_from(u128::from(last.1 - first.1) * 1000 / millis).unwrap_or(u64::MAX)
    }

    fn name(&self, disk: usize) -> String {
        let names = [&self.config.labels, &self.config.disks].map(|names| names.get(disk));
        match names.into_iter().flatten().find(|name| !name.is_empty()) {
            Some(name) => name.clone(),
            None => format!("{}", disk + 1),
        }
    }
}

impl Disk {
    /// Milliseconds per operation over the window: kernel reads, kernel writes, our own reads.
    fn latencies(&self) -> [Option<f64>; 3] {
        let mut latencies = [None; 3];
        if let (Some((start, first)), Some((end, last))) = (self.samples.front(), self.samples.back()) {
            for (kind, latency) in latencies.iter_mut().take(2).enumerate() {
                let ios = last.ios[kind].saturating_sub(first.ios[kind]);
                let millis = last.millis[kind].saturating_sub(first.millis[kind]);
                *latency = (ios >= FEWEST).then(|| millis as f64 / ios as f64);
            }
            // Time is booked when an operation ends: a disk that hangs shows only as work in flight and none done.
            let stuck = self.samples.iter().all(|(_, stat)| stat.in_flight > 0 && stat.ios == first.ios);
            if stuck && end > start {
                latencies[0] = Some(end.saturating_sub(*start).as_secs_f64() * 1000.0);
            }
        }
        if self.samples.is_empty()
            && let (Some(first), Some(last)) = (self.own_samples.front(), self.own_samples.back())
        {
            let reads = last.1 - first.1;
            latencies[2] =
                (reads >= FEWEST).then(|| last.2.saturating_sub(first.2).as_secs_f64() * 1000.0 / reads as f64);
        }
        latencies
    }
}

/// Drops what lies before the sliding window, but keeps one sample at or before its beginning.
fn keep_window<T>(samples: &mut VecDeque<T>, now: Duration, at: impl Fn(&T) -> Duration) {
    while samples.get(1).is_some_and(|second| now.saturating_sub(at(second)) >= WINDOW) {
        samples.pop_front();
    }
}

fn read_stat(root: &Path, name: &str) -> Option<Stat> {
    use std::io::Read;
    if name.is_empty() || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return None;
    }
    let mut text = String::new();
    let file = std::fs::File::open(root.join("sys/block").join(name).join("stat")).ok()?;
    file.take(STAT_BYTES).read_to_string(&mut text).ok()?;
    parse_stat(&text)
}

fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<u64> = text.split_ascii_whitespace().take(9).map(str::parse).collect::<Result<_, _>>().ok()?;
    let field = |index: usize| fields.get(index).copied();
    Some(Stat { ios: [field(0)?, field(4)?], millis: [field(3)?, field(7)?], in_flight: field(8)? })
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
