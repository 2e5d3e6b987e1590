//! Time windows: when a source may be read, and how fast.
//!
//! A window belongs to the day on which it begins and is one unbroken span of time: from its `from` on that day to the
//! next `to`, both read on the wall clock of its zone. Where the clock is put forward over one of them, the time that
//! much later is meant; where it is put back, the first of the two. So adjoining windows leave neither gap nor overlap
//! on any night of the year, and a window that crosses midnight keeps its rate to the end.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::units;

/// The most windows a plan may hold.
pub const MAX_WINDOWS: usize = 256;

/// A window as it is typed in a plan file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowSpec {
    /// Days on which it begins: `mon`, `mon-fri`, `sat,sun`, `daily`; empty means every day.
    #[serde(default)]
    pub days: Vec<String>,
    /// Local time at which it begins, `HH:MM`.
    pub from: String,
    /// Local time at which it ends, `HH:MM` or `24:00`; not after `from` means on the next day.
    pub to: String,
    /// Read rate within it: `20MiB`, `100Mbit`, `0` to stand still, `unlimited`.
    pub rate: String,
    /// IANA zone, as `Asia/Shanghai`; the host's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// How fast a source may be read within a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// As fast as it goes.
    Unlimited,
    /// At most so many bytes a second; 0 stands still.
    BytesPerSecond(u64),
}

#[derive(Debug, Clone)]
struct Window {
    /// Indexed from Monday.
    days: [bool; 7],
    from: Time,
    to: Time,
    /// `to` lies on the day after the window began.
    crosses_midnight: bool,
    rate: Rate,
    zone: TimeZone,
    text: String,
}

/// Checked windows, in order of precedence: the first that holds an instant counts.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    windows: Vec<Window>,
}

impl Windows {
    /// Checks what was typed; windows without a zone are in the host's own.
    ///
    /// # Errors
    /// A usage error that names the window, the field and the accepted forms.
    pub fn new(specs: &[WindowSpec]) -> Result<Windows> {
        // To find the system's zone may take a walk through all of them.
        if specs.is_empty() { Ok(Windows::default()) } else { Self::in_zone(specs, &TimeZone::system()) }
    }

    /// As [`Windows::new`], with the zone of windows that name none.
    ///
    /// # Errors
    /// As [`Windows::new`].
    pub fn in_zone(specs: &[WindowSpec], zone: &TimeZone) -> Result<Windows> {
        if specs.len() > MAX_WINDOWS {
            return Err(Error::usage(format!("Windows: found {}, expected at most {MAX_WINDOWS}", specs.len())));
        }
        let windows =
            specs.iter().enumerate().map(|(index, spec)| window(index + 1, spec, zone)).collect::<Result<_>>()?;
        Ok(Windows { windows })
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The rate at an instant; `None` outside all windows, where the base limit applies.
    pub fn rate_at(&self, at: Timestamp) -> Option<Rate> {
        self.window_at(at).map(|window| window.rate)
    }

    /// The window that counts at an instant, as it was typed.
    pub fn text_at(&self, at: Timestamp) -> Option<&str> {
        self.window_at(at).map(|window| window.text.as_str())
    }

    /// The next instant after `at` at which the rate becomes another; `None` when it never does within nine days.
    pub fn next_change(&self, at: Timestamp) -> Option<Timestamp> {
        let now = self.rate_at(at);
        let mut edges: Vec<Timestamp> = self
            .windows
            .iter()
            .flat_map(|window| window.spans(at, 9))
            .flat_map(|(start, end)| [start, end])
            .filter(|edge| *edge > at)
            .collect();
        edges.sort_unstable();
        edges.dedup();
        edges.into_iter().find(|edge| self.rate_at(*edge) != now)
    }

    fn window_at(&self, at: Timestamp) -> Option<&Window> {
        self.windows.iter().find(|window| window.spans(at, 1).any(|(start, end)| start <= at && at < end))
    }
}

impl Window {
    /// The spans that begin from the day before `at` to `days` days after it.
    fn spans(&self, at: Timestamp, days: i32) -> impl Iterator<Item = (Timestamp, Timestamp)> + '_ {
        let today = at.to_zoned(self.zone.clone()).date();
        (-1..=days).filter_map(move |offset| {
            let date = today.checked_add(offset.days()).ok()?;
            self.days[usize::try_from(date.weekday().to_monday_zero_offset()).ok()?].then_some(())?;
            let last = if self.crosses_midnight { date.checked_add(1.day()).ok()? } else { date };
            Some((self.instant(date, self.from)?, self.instant(last, self.to)?))
        })
    }

    fn instant(&self, date: Date, time: Time) -> Option<Timestamp> {
        self.zone.to_ambiguous_zoned(date.to_datetime(time)).compatible().ok().map(|zoned| zoned.timestamp())
    }
}

fn window(number: usize, spec: &WindowSpec, default_zone: &TimeZone) -> Result<Window> {
    let wrong = |field: &str, found: &str, expected: &str| {
        Error::usage(format!("Window {number}: {field} is '{}', expected {expected}", short(found)))
            .next("Correct the window in the plan file; days = [\"mon-fri\"], from = \"22:00\", to = \"06:00\", rate = \"80MiB\" is one")
    };
    let mut days = [spec.days.is_empty(); 7];
    for item in spec.days.iter().flat_map(|item| item.split(',')) {
        let (first, last) = day_range(item)
            .ok_or_else(|| wrong("days", item, "mon, tue, wed, thu, fri, sat, sun, a range as mon-fri, or daily"))?;
        // A range may wrap: fri-mon.
        let mut day = first;
        loop {
            days[day] = true;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    let clock = "a time of day as 22:00";
    let from = clock_time(&spec.from).ok_or_else(|| wrong("from", &spec.from, clock))?;
    let end_of_day = spec.to.trim() == "24:00";
    let to =
        if end_of_day { Time::midnight() } else { clock_time(&spec.to).ok_or_else(|| wrong("to", &spec.to, clock))? };
    if from == to && !end_of_day {
        return Err(wrong("to", &spec.to, "a time other than from (a whole day is from 00:00 to 24:00)"));
    }
    let rate = if spec.rate.trim().eq_ignore_ascii_case("unlimited") {
        Rate::Unlimited
    } else {
        let rate = units::parse_rate_or_still(&spec.rate)
            .map_err(|_| wrong("rate", &spec.rate, "a rate as 80MiB or 100Mbit, 0 to stand still, or unlimited"))?;
        Rate::BytesPerSecond(rate)
    };
    let zone = match &spec.zone {
        None => default_zone.clone(),
        Some(name) => TimeZone::get(name)
            .map_err(|_| wrong("zone", name, "a time zone known on this host, as Asia/Shanghai or Europe/Berlin"))?,
    };
    let text = format!(
        "{} {}-{} {}",
        if spec.days.is_empty() { "daily".to_owned() } else { spec.days.join(",") },
        spec.from.trim(),
        spec.to.trim(),
        spec.rate.trim()
    );
    Ok(Window { days, from, to, crosses_midnight: end_of_day || to <= from, rate, zone, text })
}

fn day_range(text: &str) -> Option<(usize, usize)> {
    let text = text.trim().to_ascii_lowercase();
    if matches!(text.as_str(), "daily" | "all") {
        return Some((0, 6));
    }
    match text.split_once('-') {
        Some((first, last)) => Some((day(first)?, day(last)?)),
        None => day(&text).map(|day| (day, day)),
    }
}

fn day(text: &str) -> Option<usize> {
    const DAYS: [(&str, Weekday); 7] = [
        ("monday", Weekday::Monday),
        ("tuesday", Weekday::Tuesday),
        ("wednesday", Weekday::Wednesday),
        ("thursday", Weekday::Thursday),
        ("friday", Weekday::Friday),
        ("saturday", Weekday::Saturday),
        ("sunday", Weekday::Sunday),
    ];
    let text = text.trim();
    DAYS.iter().position(|(name, _)| text == *name || (text.len() == 3 && name.starts_with(text)))
}

fn clock_time(text: &str) -> Option<Time> {
    let (hour, minute) = text.trim().split_once(':')?;
    let digits =
        |text: &str| (text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?;
    Time::new(digits(hour)?, digits(minute).filter(|_| minute.len() == 2)?, 0, 0).ok()
}

/// What was found may be long or hostile: shown short and printable.
fn short(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
