use super::*;
use crate::copy::clock::SimulatedClock;
use crate::copy::windows::WindowSpec;
use crate::error::Kind;
use crate::units::MIB;
use std::sync::mpsc;
use std::thread;

fn simulated(limits: Limits, epoch: &str) -> (Arc<SimulatedClock>, Arc<Throttle>) {
    let clock = Arc::new(SimulatedClock::at(epoch.parse().unwrap()));
    (Arc::clone(&clock), Throttle::with_clock(limits, clock, 4))
}

/// Admits `piece`s until `span` has passed; returns the bytes.
fn read_for(clock: &SimulatedClock, throttle: &Throttle, piece: u64, span: Duration) -> u64 {
    let (end, mut bytes) = (clock.now() + span, 0);
    while clock.now() < end {
        throttle.admit(piece).unwrap();
        bytes += piece;
    }
    bytes
}

fn close(found: u64, expected: u64) {
    let ratio = found as f64 / expected as f64;
    assert!((0.97..=1.03).contains(&ratio), "{found} for {expected}");
}

fn limit(read: u64) -> Limits {
    Limits { read_bytes_per_second: Some(read), ..Limits::default() }
}

const NOON: &str = "2026-11-20T12:00:00Z";

#[test]
fn reads_are_held_to_the_limit_and_to_a_new_one() {
    let (clock, throttle) = simulated(limit(50 * MIB), NOON);
    close(read_for(&clock, &throttle, MIB, Duration::from_secs(2)), 100 * MIB);
    throttle.set_limits(Change { read_bytes_per_second: Some(Some(10 * MIB)), cpu_percent: None });
    close(read_for(&clock, &throttle, MIB / 4, Duration::from_secs(10)), 100 * MIB);
    assert_eq!(throttle.state().read_bytes_per_second, Some(10 * MIB));
    throttle.set_limits(Change { read_bytes_per_second: Some(None), cpu_percent: None });
    assert_eq!(throttle.state().read_bytes_per_second, None);
    let before = clock.now();
    (0..1000).for_each(|_| throttle.admit(MIB).unwrap());
    assert_eq!(clock.now(), before);
}

#[test]
fn windows_change_the_rate_and_zero_waits_for_the_end() {
    let window = |from: &str, to: &str, rate: &str| WindowSpec {
        days: vec![],
        from: from.into(),
        to: to.into(),
        rate: rate.into(),
        zone: Some("UTC".into()),
    };
    let windows = Windows::new(&[window("08:00", "18:00", "0"), window("18:00", "20:00", "2MiB")]).unwrap();
    let (clock, throttle) = simulated(Limits { windows, ..limit(20 * MIB) }, "2026-11-20T17:00:00Z");
    throttle.admit(MIB).unwrap();
    let waited = clock.now().as_secs();
    assert!((3600..3602).contains(&waited), "{waited}");
    close(read_for(&clock, &throttle, MIB / 4, Duration::from_secs(100)), 200 * MIB);
    // A higher limit from another terminal does not break into a window, a lower one holds there too.
    throttle.set_limits(Change { read_bytes_per_second: Some(Some(90 * MIB)), cpu_percent: None });
    assert_eq!(throttle.state().read_bytes_per_second, Some(2 * MIB));
    throttle.set_limits(Change { read_bytes_per_second: Some(Some(MIB)), cpu_percent: None });
    assert_eq!(throttle.state().read_bytes_per_second, Some(MIB));
    let state = throttle.state();
    assert_eq!(state.window.as_deref(), Some("daily 18:00-20:00 2MiB"));
    assert_eq!(state.next_change, Some("2026-11-20T20:00:00Z".parse().unwrap()));
    clock.advance(Duration::from_secs(2 * 3600));
    throttle.set_limits(Change { read_bytes_per_second: Some(Some(90 * MIB)), cpu_percent: None });
    close(read_for(&clock, &throttle, MIB, Duration::from_secs(10)), 900 * MIB);
}

#[test]
fn cpu_time_is_held_to_its_share_of_the_machine() {
    let (clock, throttle) = simulated(Limits { cpu_percent: Some(25), ..Limits::default() }, NOON);
    // A quarter of four processors is one: ten seconds of work take ten seconds.
    (0..1000).for_each(|_| throttle.worked(Duration::from_millis(10)));
    let passed = clock.now().as_secs_f64();
    assert!((9.8..=10.2).contains(&passed), "{passed}");
    throttle.set_limits(Change { read_bytes_per_second: None, cpu_percent: Some(None) });
    let before = clock.now();
    throttle.worked(Duration::from_secs(9));
    assert_eq!(clock.now(), before);
}

#[test]
fn a_stop_says_why_and_that_the_same_command_resumes() {
    let throttle = Throttle::new(Limits::default());
    throttle.check().unwrap();
    throttle.stop(Stop::Signal("SIGTERM"));
    throttle.stop(Stop::Asked);
    for error in [throttle.check().unwrap_err(), throttle.admit(1).unwrap_err()] {
        assert_eq!(error.kind, Kind::Interrupted);
        let text = error.to_string();
        assert!(text.contains("by SIGTERM") && text.contains("same command resumes"), "{text}");
    }
    // And a worker under a CPU limit does not sit its debt out.
    throttle.set_limits(Change { cpu_percent: Some(Some(1)), ..Change::default() });
    throttle.worked(Duration::from_secs(3600));
}

/// Runs `wait` in a thread, sees that it waits, does `wake`, sees that it wakes up at once.
fn wakes<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static, wake: impl FnOnce()) -> T {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || tell.send(wait()));
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "did not wait");
    wake();
    let result = told.recv_timeout(Duration::from_millis(500)).expect("did not wake up");
    thread.join().unwrap().unwrap();
    result
}

#[test]
fn whoever_waits_wakes_up_at_once() {
    let slow = || {
        let throttle = Throttle::new(limit(1));
        throttle.admit(1 << 30).unwrap();
        throttle
    };
    let admit = |throttle: &Arc<Throttle>| {
        let throttle = Arc::clone(throttle);
        move || throttle.admit(1)
    };

    let throttle = slow();
    assert!(wakes(admit(&throttle), || throttle.stop(Stop::Asked)).is_err());

    let throttle = slow();
    let lifted = Change { read_bytes_per_second: Some(None), cpu_percent: None };
    assert!(wakes(admit(&throttle), || throttle.set_limits(lifted)).is_ok());

    let throttle = Throttle::new(Limits::default());
    throttle.pause();
    assert!(throttle.state().paused);
    assert!(wakes(admit(&throttle), || throttle.resume()).is_ok());

    throttle.pause();
    assert!(wakes(admit(&throttle), || throttle.stop(Stop::Failed)).is_err());

    let throttle = Throttle::new(Limits { cpu_percent: Some(1), ..Limits::default() });
    let worker = Arc::clone(&throttle);
    wakes(move || worker.worked(Duration::from_secs(3600)), || throttle.stop(Stop::Asked));
}

#[test]
fn notes_are_fetched_once_and_bounded() {
    let throttle = Throttle::new(Limits::default());
    (0..100).for_each(|number| throttle.note(format!("{number}")));
    let notes = throttle.take_notes();
    assert_eq!((notes.len(), notes[63].as_str()), (64, "99"));
    assert!(throttle.take_notes().is_empty());
}
