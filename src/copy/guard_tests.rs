use super::*;
use crate::copy::clock::{Clock, SimulatedClock};
use crate::copy::throttle::{Limits, Throttle};
use crate::units::MIB;
use std::fs;
use std::sync::Arc;

/// A disk that lives in a directory: every 250 ms it has done some operations.
struct Host {
    root: tempfile::TempDir,
    clock: Arc<SimulatedClock>,
    throttle: Arc<Throttle>,
    reads: (u64, f64),
    writes: (u64, f64),
    in_flight: u64,
}

impl Host {
    fn new(limit: u64) -> Host {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/block/sda")).unwrap();
        let clock = Arc::new(SimulatedClock::at(jiff::Timestamp::UNIX_EPOCH));
        let guard = LatencyGuard::new(root.path(), vec!["sda".into()]);
        let limits = Limits { read_bytes_per_second: Some(limit), latency_guard: Some(guard), ..Limits::default() };
        let throttle = Throttle::with_clock(limits, Arc::clone(&clock) as Arc<dyn Clock>, 2);
        Host { root, clock, throttle, reads: (0, 0.0), writes: (0, 0.0), in_flight: 0 }
    }

    /// Reads for some seconds while the disk answers reads and writes in so many milliseconds; bytes a second.
    fn run(&mut self, seconds: u64, read_millis: f64, write_millis: f64) -> u64 {
        let (start, mut bytes) = (self.clock.now(), 0);
        for quarter in 1..=seconds * 4 {
            self.reads = (self.reads.0 + 20, self.reads.1 + 20.0 * read_millis);
            self.writes = (self.writes.0 + 5, self.writes.1 + 5.0 * write_millis);
            self.tell();
            let end = start + Duration::from_millis(250) * u32::try_from(quarter).unwrap();
            while self.clock.now() < end {
                self.throttle.admit(MIB / 4).unwrap();
                bytes += MIB / 4;
            }
        }
        bytes / seconds
    }

    fn tell(&self) {
        let text = format!(
            "{:8} 0 0 {:8} {:8} 0 0 {:8} {:8} 0 0 0 0 0 0\n",
            self.reads.0, self.reads.1 as u64, self.writes.0, self.writes.1 as u64, self.in_flight
        );
        fs::write(self.root.path().join("sys/block/sda/stat"), text).unwrap();
    }

    fn state(&self) -> GuardState {
        self.throttle.state().guard.unwrap()
    }
}

#[test]
fn a_quiet_disk_is_read_at_full_speed() {
    let mut host = Host::new(100 * MIB);
    let rate = host.run(20, 8.0, 2.0);
    assert!(rate > 97 * MIB, "{rate}");
    assert_eq!(host.state().backoffs, 0);
    assert!(host.throttle.take_notes().is_empty());
}

#[test]
fn slow_writes_of_others_halve_the_rate_down_to_the_floor_and_quiet_brings_it_back() {
    let mut host = Host::new(100 * MIB);
    host.run(10, 8.0, 2.0);
    host.run(3, 8.0, 200.0);
    let state = host.state();
    assert!(state.backoffs >= 1 && state.ceiling_bytes_per_second.unwrap() <= 51 * MIB, "{state:?}");
    assert_eq!(state.disk.as_deref(), Some("sda"));
    host.run(15, 8.0, 200.0);
    let rate = host.run(4, 8.0, 200.0);
    assert!((3 * MIB..5 * MIB).contains(&rate), "{rate}");
    let notes = host.throttle.take_notes();
    let backoffs = usize::try_from(host.state().backoffs).unwrap();
    assert_eq!(notes.len(), backoffs, "once per change: {notes:?}");
    assert!(notes[0].contains("Disk sda answers in"), "{notes:?}");

    // Slowly: not at once, but within half a minute.
    let rate = host.run(4, 8.0, 2.0);
    assert!(rate < 50 * MIB, "{rate}");
    host.run(26, 8.0, 2.0);
    let rate = host.run(4, 8.0, 2.0);
    assert!(rate > 97 * MIB, "{rate}");
    assert_eq!(host.throttle.take_notes(), ["Source disks answer as before: reading is back to full speed"]);
}

#[test]
fn a_disk_that_is_slow_by_nature_is_not_backed_off_from() {
    let mut host = Host::new(100 * MIB);
    host.run(30, 60.0, 60.0);
    assert_eq!(host.state().backoffs, 0);
    host.run(4, 250.0, 60.0);
    assert!(host.state().backoffs > 0);
}

#[test]
fn a_disk_that_hangs_is_seen_though_nothing_ends() {
    let mut host = Host::new(100 * MIB);
    host.run(10, 8.0, 2.0);
    host.in_flight = 3;
    for _ in 0..12 {
        host.tell();
        host.clock.advance(Duration::from_millis(250));
        host.throttle.admit(4096).unwrap();
    }
    assert!(host.state().backoffs > 0);
}

#[test]
fn our_own_reads_count_where_the_kernel_tells_nothing() {
    let clock = Arc::new(SimulatedClock::at(jiff::Timestamp::UNIX_EPOCH));
    let mut guard = Guard::new(LatencyGuard::new(Path::new("/nonexistent"), vec![String::new()]));
    let mut run = |seconds: u64, millis: u64| {
        for _ in 0..seconds * 4 {
            (0..10).for_each(|_| guard.observe(0, Duration::from_millis(millis)));
            clock.advance(Duration::from_millis(250));
            let now = clock.now();
            guard.sample(now, now.as_secs() * 100 * MIB);
        }
        guard.state()
    };
    assert_eq!(run(10, 5).backoffs, 0);
    let state = run(3, 400);
    assert!(state.backoffs > 0);
    assert_eq!(state.disk.as_deref(), Some("1"));
    // A number nobody configured is no crash.
    guard.observe(7, Duration::ZERO);
}

#[test]
fn odd_stat_files_tell_nothing() {
    assert_eq!(parse_stat(""), None);
    assert_eq!(parse_stat("1 2 3"), None);
    assert_eq!(parse_stat("1 2 3 -4 5 6 7 8 9"), None);
    assert_eq!(
        parse_stat(" 10 0 80 40 5 0 40 20 1 60 60\n"),
        Some(Stat { ios: [10, 5], millis: [40, 20], in_flight: 1 })
    );
    assert_eq!(read_stat(Path::new("/"), "../../etc"), None);
}
