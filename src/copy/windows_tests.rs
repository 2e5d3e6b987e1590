use super::*;
use jiff::civil::DateTime;
use proptest::prelude::*;

const ZONES: [&str; 4] = ["Europe/Berlin", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe"];

fn spec(days: &str, from: &str, to: &str, rate: &str, zone: &str) -> WindowSpec {
    let days = if days.is_empty() { Vec::new() } else { vec![days.to_owned()] };
    WindowSpec { days, from: from.into(), to: to.into(), rate: rate.into(), zone: Some(zone.into()) }
}

fn at(local: &str, zone: &str) -> Timestamp {
    local.parse::<DateTime>().unwrap().in_tz(zone).unwrap().timestamp()
}

fn bytes(rate: u64) -> Option<Rate> {
    Some(Rate::BytesPerSecond(rate))
}

#[test]
fn a_night_window_belongs_to_the_day_it_begins_on() {
    let zone = "Asia/Shanghai";
    let windows = Windows::new(&[spec("mon-fri", "22:00", "06:00", "80MiB", zone)]).unwrap();
    // 2026-11-20 is a Friday.
    for (local, expected) in [
        ("2026-11-20T21:59:59", None),
        ("2026-11-20T22:00:00", bytes(80 << 20)),
        ("2026-11-21T05:59:59", bytes(80 << 20)),
        ("2026-11-21T06:00:00", None),
        ("2026-11-21T23:00:00", None),
        ("2026-11-23T03:00:00", None),
        ("2026-11-23T22:30:00", bytes(80 << 20)),
    ] {
        assert_eq!(windows.rate_at(at(local, zone)), expected, "{local}");
    }
    assert_eq!(windows.next_change(at("2026-11-21T06:00:00", zone)), Some(at("2026-11-23T22:00:00", zone)));
}

#[test]
fn the_first_window_that_matches_wins() {
    let zone = "Europe/Berlin";
    let windows = Windows::new(&[
        spec("fri", "12:00", "13:00", "0", zone),
        spec("mon-fri", "08:00", "18:00", "5MiB", zone),
        spec("", "00:00", "24:00", "unlimited", zone),
    ])
    .unwrap();
    assert_eq!(windows.rate_at(at("2026-11-20T12:30:00", zone)), bytes(0));
    assert_eq!(windows.rate_at(at("2026-11-20T13:00:00", zone)), bytes(5 << 20));
    assert_eq!(windows.rate_at(at("2026-11-21T13:00:00", zone)), Some(Rate::Unlimited));
    assert_eq!(windows.next_change(at("2026-11-20T12:30:00", zone)), Some(at("2026-11-20T13:00:00", zone)));
    assert_eq!(windows.text_at(at("2026-11-20T12:30:00", zone)), Some("fri 12:00-13:00 0"));
}

#[test]
fn the_clock_change_shortens_and_lengthens_the_night() {
    let zone = "Europe/Berlin";
    let windows = Windows::new(&[spec("", "22:00", "06:00", "0", zone)]).unwrap();
    let length = |start: Timestamp| windows.next_change(start).unwrap().duration_since(start).as_hours();
    assert_eq!(length(at("2026-03-28T22:00:00", zone)), 7);
    assert_eq!(length(at("2026-10-24T22:00:00", zone)), 9);
    assert_eq!(length(at("2026-10-25T22:00:00", zone)), 8);
}

#[test]
fn a_window_in_the_hour_that_does_not_exist_comes_an_hour_later() {
    let zone = "Europe/Berlin";
    let windows = Windows::new(&[spec("", "02:15", "02:45", "1MiB", zone)]).unwrap();
    assert_eq!(windows.rate_at(at("2026-03-29T03:30:00", zone)), bytes(1 << 20));
    assert_eq!(windows.rate_at(at("2026-03-29T01:59:00", zone)), None);
    // The hour that comes twice: the first one only.
    let first = at("2026-10-25T02:30:00", zone);
    assert_eq!(windows.rate_at(first), bytes(1 << 20));
    assert_eq!(windows.rate_at(first + 1.hour()), None);
}

#[test]
fn a_window_that_is_always_open_never_changes() {
    let windows = Windows::new(&[spec("daily", "00:00", "24:00", "1MiB", "Europe/Berlin")]).unwrap();
    assert_eq!(windows.next_change(at("2026-10-24T22:00:00", "Europe/Berlin")), None);
    assert_eq!(Windows::default().next_change(Timestamp::UNIX_EPOCH), None);
}

#[test]
fn what_makes_no_sense_is_named() {
    let good = spec("mon-fri", "22:00", "06:00", "1MiB", "Europe/Berlin");
    for (field, bad) in [
        ("days", WindowSpec { days: vec!["montag".into()], ..good.clone() }),
        ("days", WindowSpec { days: vec!["mon-".into()], ..good.clone() }),
        ("days", WindowSpec { days: vec!["".into()], ..good.clone() }),
        ("from", WindowSpec { from: "25:00".into(), ..good.clone() }),
        ("from", WindowSpec { from: "24:00".into(), ..good.clone() }),
        ("from", WindowSpec { from: "8".into(), ..good.clone() }),
        ("from", WindowSpec { from: "+8:00".into(), ..good.clone() }),
        ("to", WindowSpec { to: "06:0".into(), ..good.clone() }),
        ("to", WindowSpec { to: "22:00".into(), ..good.clone() }),
        ("rate", WindowSpec { rate: "fast".into(), ..good.clone() }),
        ("rate", WindowSpec { rate: "-1".into(), ..good.clone() }),
        ("zone", WindowSpec { zone: Some("Mars/Olympus".into()), ..good.clone() }),
    ] {
        let error = Windows::new(&[good.clone(), bad]).unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Usage);
        assert!(error.message.starts_with(&format!("Window 2: {field} ")), "{error}");
    }
    assert!(Windows::new(&vec![good; MAX_WINDOWS + 1]).is_err());
    let unknown = r#"{"days":["mon"],"from":"1:00","to":"2:00","rate":"1","speed":"2"}"#;
    assert!(serde_json::from_str::<WindowSpec>(unknown).is_err());
}

#[test]
fn days_wrap_and_lists_hold_commas() {
    let windows = Windows::new(&[spec("fri-mon, wednesday", "00:00", "24:00", "0", "Asia/Shanghai")]).unwrap();
    assert_eq!(windows.windows[0].days, [true, false, true, false, true, true, true]);
}

/// What a person would say who looks at the clock on the wall and at the calendar.
fn by_the_wall(days: [bool; 7], from: (i8, i8), to: (i8, i8), at: Timestamp, zone: &str) -> bool {
    let local = at.in_tz(zone).unwrap();
    let day = local.date().weekday().to_monday_zero_offset() as usize;
    let now = (local.hour(), local.minute());
    if from < to {
        days[day] && from <= now && now < to
    } else {
        (days[day] && now >= from) || (days[(day + 6) % 7] && now < to)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// On every day but those of a clock change, a window holds exactly when the clock on the wall says so.
    #[test]
    fn windows_follow_the_wall_clock(
        zone in 0..ZONES.len(), days in any::<[bool; 7]>(), from in (0..24i8, 0..60i8), to in (0..24i8, 0..60i8),
        minute in 0..525_600i64, seconds in 0..60i64,
    ) {
        prop_assume!(from != to && days.iter().any(|day| *day));
        let zone = ZONES[zone];
        let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let spec = WindowSpec {
            days: names.iter().zip(days).filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned()).collect(),
            from: format!("{:02}:{:02}", from.0, from.1),
            to: format!("{:02}:{:02}", to.0, to.1),
            rate: "0".into(),
            zone: Some(zone.into()),
        };
        let windows = Windows::new(&[spec]).unwrap();
        let at = at("2026-01-01T00:00:00", "UTC") + (minute * 60 + seconds).seconds();
        let offset = |at: Timestamp| at.in_tz(zone).unwrap().offset();
        prop_assume!(offset(at - 26.hours()) == offset(at + 26.hours()));
        prop_assert_eq!(windows.rate_at(at).is_some(), by_the_wall(days, from, to, at, zone));
    }

    /// On every day, also those of a clock change: the rate holds until `next_change` and is another one there.
    #[test]
    fn the_rate_holds_until_the_next_change(
        zone in 0..ZONES.len(), from in (0..24i8, 0..60i8), to in (0..24i8, 0..60i8), near in 0..8usize,
        minutes in -2880..2880i64, probes in prop::collection::vec(0.0..1.0f64, 8),
    ) {
        prop_assume!(from != to);
        let zone = ZONES[zone];
        // Around both clock changes of each zone, and the turn of the year.
        let near = ["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-05", "2026-10-04", "2026-12-31", "2026-06-30"][near];
        let text = |(hour, minute): (i8, i8)| format!("{hour:02}:{minute:02}");
        let windows = Windows::new(&[
            spec("sat-sun", &text(from), &text(to), "1MiB", zone),
            spec("", &text(to), &text(from), "0", zone),
        ]).unwrap();
        let at = at(&format!("{near}T00:00:00"), "UTC") + minutes.minutes();
        let Some(next) = windows.next_change(at) else { return Ok(()) };
        prop_assert!(next > at);
        let rate = windows.rate_at(at);
        prop_assert_ne!(windows.rate_at(next), rate);
        let span = next.duration_since(at).as_secs();
        for probe in probes {
            let between = at + ((span - 1).max(0) as f64 * probe).floor().seconds_i64();
            prop_assert_eq!(windows.rate_at(between), rate);
        }
    }

    /// Adjoining windows leave neither gap nor overlap on any day of the year.
    #[test]
    fn adjoining_windows_leave_no_gap(
        zone in 0..ZONES.len(), from in (0..24i8, 0..60i8), to in (0..24i8, 0..60i8), minute in 0..525_600i64,
    ) {
        prop_assume!(from != to);
        let zone = ZONES[zone];
        let text = |(hour, minute): (i8, i8)| format!("{hour:02}:{minute:02}");
        let one = Windows::new(&[spec("", &text(from), &text(to), "0", zone)]).unwrap();
        let other = Windows::new(&[spec("", &text(to), &text(from), "0", zone)]).unwrap();
        let at = at("2026-01-02T00:00:00", "UTC") + minute.minutes();
        prop_assert!(one.rate_at(at).is_some() != other.rate_at(at).is_some());
    }
}

trait Seconds {
    fn seconds_i64(self) -> jiff::Span;
}

impl Seconds for f64 {
    fn seconds_i64(self) -> jiff::Span {
        (self as i64).seconds()
    }
}
