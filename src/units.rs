//! Sizes, rates and durations as people type and read them. Binary units only; `Mbit` is decimal, as line rates are.

use crate::error::{Error, Result};

/// 1 KiB in bytes.
pub const KIB: u64 = 1 << 10;
/// 1 MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// 1 GiB in bytes.
pub const GIB: u64 = 1 << 30;
/// 1 TiB in bytes.
pub const TIB: u64 = 1 << 40;

const SIZE_UNITS: [(&str, u64); 5] = [("KiB", KIB), ("MiB", MIB), ("GiB", GIB), ("TiB", TIB), ("B", 1)];

/// Parses `4096`, `64KiB`, `1.5 GiB`; bytes.
///
/// # Errors
/// A usage error that shows the accepted forms.
pub fn parse_size(text: &str) -> Result<u64> {
    parse_scaled(text, &SIZE_UNITS)
        .ok_or_else(|| Error::usage(format!("Size '{text}': expected a number with KiB, MiB, GiB or TiB, as in 64MiB")))
}

/// Parses `200MiB`, `200MiB/s`, `100Mbit`; bytes per second, and more than none: a job at rate 0 would never end.
///
/// # Errors
/// A usage error that shows the accepted forms.
pub fn parse_rate(text: &str) -> Result<u64> {
    match parse_rate_or_still(text)? {
        0 => Err(Error::usage(format!("Rate '{text}': a job at rate 0 would never end"))
            .next("give a rate as 80MiB or 100Mbit; 'motiongear pause' lets a running job stand still")),
        rate => Ok(rate),
    }
}

/// As [`parse_rate`]; 0, also without a unit, stands still.
///
/// # Errors
/// As [`parse_rate`]; a number without a unit, which could mean MiB or bytes.
pub fn parse_rate_or_still(text: &str) -> Result<u64> {
    let bare = text.trim().trim_end_matches("/s");
    let units = [SIZE_UNITS.as_slice(), &[("Mbit", 1_000_000 / 8), ("Gbit", 1_000_000_000 / 8)]].concat();
    let has_unit = bare.ends_with(|c: char| c.is_ascii_alphabetic());
    parse_scaled(bare, &units).filter(|rate| has_unit || *rate == 0).ok_or_else(|| {
        Error::usage(format!(
            "Rate '{text}': expected a number with KiB, MiB, GiB or Mbit per second, as in 80MiB or 100Mbit"
        ))
    })
}

fn parse_scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let (number, scale) = units
        .iter()
        .filter(|(unit, _)| text.len() > unit.len())
        .find_map(|(unit, scale)| {
            let split = text.len() - unit.len();
            let tail = text.get(split..)?;
            tail.eq_ignore_ascii_case(unit).then(|| (text[..split].trim_end(), *scale))
        })
        .unwrap_or((text, 1));
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let fraction: f64 = number.parse().ok()?;
    let bytes = fraction * scale as f64;
    (fraction.is_finite() && fraction >= 0.0 && bytes < 9e18).then_some(bytes as u64)
}

/// `1.5 GiB`, `640 KiB`, `12 B`.
pub fn size(bytes: u64) -> String {
    for (unit, scale) in [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)] {
        if bytes >= scale {
            let value = bytes as f64 / scale as f64;
            return if bytes.is_multiple_of(scale) {
                format!("{} {unit}", bytes / scale)
            } else {
                format!("{value:.1} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

/// `3h 04m`, `12m 30s`, `8s`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_read_as_people_type_them() {
        assert_eq!(parse_size("64KiB").unwrap(), 65536);
        assert_eq!(parse_size("1.5 gib").unwrap(), 3 * GIB / 2);
        assert_eq!(parse_size("512").unwrap(), 512);
        assert_eq!(parse_rate("100Mbit").unwrap(), 12_500_000);
        assert_eq!(parse_rate("80MiB/s").unwrap(), 80 * MIB);
        assert_eq!(parse_rate_or_still("0").unwrap(), 0);
        for bad in ["0", "0MiB", "0/s", "80", "80/s"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        for bad in ["", "MiB", "-1", "1e400", "99999999TiB", "5 parsecs", "中MiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_print_short() {
        assert_eq!(size(GIB), "1 GiB");
        assert_eq!(size(3 * GIB / 2), "1.5 GiB");
        assert_eq!(size(700), "700 B");
        assert_eq!(duration(3725), "1h 02m");
    }
}
