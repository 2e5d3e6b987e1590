use super::*;
use crate::units::{GIB, MIB};

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn progress(sizes: &[u64]) -> Arc<Progress> {
    let disks = sizes.iter().enumerate().map(|(index, bytes)| DiskProgress::new(format!("db01/d{index}"), *bytes));
    Progress::new("seed", disks.collect())
}

fn add(counter: &AtomicU64, bytes: u64) {
    counter.fetch_add(bytes, Ordering::Relaxed);
}

#[test]
fn nobody_knows_the_time_to_go_at_the_start() {
    let progress = progress(&[GIB]);
    for at in [0.0, 0.0, 0.2, 0.9] {
        let total = progress.snapshot_at(seconds(at)).total;
        assert_eq!((total.bytes_per_second, total.eta_seconds), (0, None));
    }
    // Nothing moves: still nobody knows, and nothing divides by zero.
    let total = progress.snapshot_at(seconds(60.0)).total;
    assert_eq!((total.bytes_per_second, total.eta_seconds), (0, None));
    assert_eq!((total.zero_percent(), total.stored_percent()), (None, None));
}

#[test]
fn a_steady_rate_gives_a_steady_time_to_go() {
    let progress = progress(&[GIB, GIB]);
    for second in 0..10 {
        let total = progress.snapshot_at(seconds(f64::from(second))).total;
        if second >= 2 {
            assert_eq!(total.bytes_per_second, 20 * MIB);
            let remaining = 2048 - 20 * u64::from(second as u32);
            assert_eq!(total.eta_seconds, Some(remaining.div_ceil(20)));
        }
        progress.disks.iter().for_each(|disk| add(&disk.done, 10 * MIB));
    }
}

#[test]
fn a_stall_lets_the_rate_fade_and_not_jump() {
    let progress = progress(&[GIB]);
    for second in 0..60 {
        progress.snapshot_at(seconds(f64::from(second)));
        add(&progress.disks[0].done, 10 * MIB);
    }
    let before = progress.snapshot_at(seconds(60.0)).total.bytes_per_second;
    let after = progress.snapshot_at(seconds(61.0)).total.bytes_per_second;
    assert!(after < before && after > before * 9 / 10, "{before} {after}");
}

#[test]
fn what_an_earlier_run_did_is_no_rate() {
    let progress = progress(&[GIB]);
    progress.snapshot_at(seconds(0.0));
    add(&progress.disks[0].skipped, 900 * MIB);
    add(&progress.disks[0].done, 20 * MIB);
    let total = progress.snapshot_at(seconds(2.0)).total;
    assert_eq!(total.bytes_per_second, 10 * MIB);
    assert_eq!(total.eta_seconds, Some(11));
    assert_eq!(total.position(), 920 * MIB);
}

#[test]
fn the_end_is_the_end_also_when_more_was_counted() {
    let progress = progress(&[10 * MIB, 0]);
    add(&progress.disks[0].done, 10 * MIB);
    add(&progress.disks[0].skipped, 10 * MIB);
    let snapshot = progress.snapshot_at(seconds(5.0));
    assert_eq!((snapshot.total.fraction(), snapshot.total.eta_seconds), (1.0, Some(0)));
    assert_eq!(snapshot.disks[1].fraction(), 1.0);
}

#[test]
fn a_phase_begins_at_zero() {
    let progress = progress(&[GIB]);
    add(&progress.disks[0].done, GIB);
    add(&progress.disks[0].zero, MIB);
    add(&progress.disks[0].stored, MIB);
    add(&progress.disks[0].read, MIB);
    progress.snapshot_at(seconds(9.0));
    progress.begin("read-back");
    let snapshot = progress.snapshot_at(seconds(10.0));
    let DiskSnapshot { done, zero, stored, read, .. } = snapshot.total;
    assert_eq!((snapshot.phase.as_str(), done, zero, stored, read), ("read-back", 0, 0, 0, MIB));
    assert_eq!(snapshot.total.eta_seconds, None);
}

#[test]
fn lines_read_well_in_both_languages() {
    let progress = progress(&[GIB]);
    progress.snapshot_at(seconds(0.0));
    let disk = &progress.disks[0];
    add(&disk.done, 256 * MIB);
    add(&disk.zero, 128 * MIB);
    add(&disk.stored, 64 * MIB);
    let snapshot = progress.snapshot_at(seconds(4.0));
    let text = "seed: 25.0 % of 1 GiB · 64 MiB/s · 12s to go · zero 50 % · stored 64 MiB (50 %)";
    assert_eq!(line(&snapshot, Lang::En), text);
    let text = "复制：1 GiB 的 25.0 % · 64 MiB/s · 还需 12s · 全零 50 % · 存储 64 MiB（50 %）";
    assert_eq!(line(&snapshot, Lang::Zh), text);
    add(&disk.unreadable, 4096);
    add(&disk.damaged, MIB);
    let text = line(&progress.snapshot_at(seconds(4.0)), Lang::En);
    assert!(text.ends_with(" · UNREADABLE 4 KiB · DAMAGED 1 MiB"), "{text}");
    // One byte short of all is not 100 %.
    add(&disk.done, 768 * MIB - 1);
    assert!(line(&progress.snapshot_at(seconds(9.0)), Lang::En).contains(" 99.9 %"));
}

#[test]
fn lines_keep_their_pace_but_not_a_new_phase_or_the_end() {
    let progress = progress(&[GIB]);
    let (mut pace, start) = (lines::Pace::default(), Instant::now());
    let mut due = |at: f64, last| pace.due(&progress.snapshot(), last, start + seconds(at));
    assert!(due(0.0, false));
    assert!(!due(0.5, false));
    assert!(!due(4.9, false));
    assert!(due(5.0, false));
    progress.begin("read-back");
    assert!(due(5.5, false));
    assert!(!due(6.0, false));
    assert!(due(6.5, true));
    // After an hour it speaks once a minute.
    assert!(due(3600.0, false));
    assert!(!due(3650.0, false));
    assert!(due(3660.0, false));
}

#[test]
fn every_monitor_ends_when_its_guard_is_dropped() {
    for kind in [Kind::Bars, Kind::Lines, Kind::Quiet, Kind::Json] {
        let monitor = monitor(kind, Lang::En);
        let progress = progress(&[MIB, MIB]);
        let watch = monitor.watch(Arc::clone(&progress));
        monitor.note("A note");
        add(&progress.disks[0].done, MIB);
        drop(watch);
        assert_eq!(Arc::strong_count(&progress), 1, "{kind:?}");
    }
}

#[test]
fn the_recorder_sees_the_last_state_and_the_notes() {
    let recorder = Recorder::default();
    let progress = progress(&[MIB]);
    let watch = recorder.watch(Arc::clone(&progress));
    add(&progress.disks[0].done, MIB);
    drop(watch);
    assert_eq!(lock(&recorder.finished)[0].total.done, MIB);
    let throttle = Throttle::new(crate::copy::throttle::Limits::default());
    throttle.note("Slower now".into());
    drop(Watch::notes(throttle, Arc::new(recorder.clone())));
    assert_eq!(*lock(&recorder.notes), ["Slower now"]);
}

#[test]
fn snapshots_travel_as_json() {
    let snapshot = progress(&[MIB, MIB]).snapshot();
    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
}

#[test]
fn what_does_not_answer_is_named_by_its_oldest_request() {
    let progress = progress(&[GIB]);
    let listed = |kind, name: &str, seconds: u64| {
        let since = Instant::now().checked_sub(Duration::from_millis(seconds * 1000 + 500)).unwrap();
        progress.waits.list(kind, &name.into(), since)
    };
    let array = listed(MediumKind::Array, "/mnt/a", 7);
    let guards = [
        listed(MediumKind::Source, "db01/d0", 42),
        listed(MediumKind::Array, "/mnt/a", 9),
        listed(MediumKind::Volume, "/dev/vdb", 5),
        listed(MediumKind::Volume, "/dev/vdc", 4),
        listed(MediumKind::Volume, "/dev/vdd", 0),
    ];
    let snapshot = progress.snapshot();
    let seconds: Vec<u64> = snapshot.waiting.iter().map(|waiting| waiting.seconds).collect();
    assert_eq!(seconds, [42, 9, 5, 4], "{:?}", snapshot.waiting);
    let en = " · db01/d0 has not answered for 42 s · array /mnt/a has not answered for 9 s \
              · volume /dev/vdb has not answered for 5 s";
    let zh = " · db01/d0 已 42 秒没有应答 · 移动存储 /mnt/a 已 9 秒没有应答 · 卷 /dev/vdb 已 5 秒没有应答";
    let said = [line(&snapshot, Lang::En), line(&snapshot, Lang::Zh)];
    assert!(said[0].ends_with(en) && said[1].ends_with(zh), "{said:?}");
    // Also where there is nothing to count.
    progress.begin("release");
    assert!(line(&progress.snapshot(), Lang::En).ends_with(en));
    drop(guards);
    let left = progress.snapshot().waiting;
    assert_eq!(left, [Waiting { kind: MediumKind::Array, name: "/mnt/a".into(), seconds: 7 }]);
    drop(array);
    assert_eq!(progress.snapshot().waiting, []);
}
