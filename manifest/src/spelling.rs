//! UUIDs and times as text, in the one spelling that FORMAT.md has: libraries take many, and two readers must agree.

use jiff::Timestamp;
use uuid::Uuid;

/// A UUID in lower case with hyphens.
pub(crate) fn uuid(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|uuid| uuid.hyphenated().to_string() == text)
}

/// A time of RFC 3339 in UTC with `Z`, no leap second and at most nine digits of fraction.
pub(crate) fn time(text: &str) -> Option<Timestamp> {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    let (seconds, rest) = text.as_bytes().split_at_checked(SHAPE.len())?;
    let fits = |(shape, byte): (&u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { shape == byte };
    let fraction = match rest.strip_suffix(b"Z")? {
        b"" => &b"0"[..],
        fraction => fraction.strip_prefix(b".")?,
    };
    let well_formed = SHAPE.iter().zip(seconds).all(fits)
        && (1..=9).contains(&fraction.len())
        && fraction.iter().all(u8::is_ascii_digit)
        // jiff takes a leap second and means the one before it.
        && !seconds.ends_with(b":60");
    if well_formed { text.parse().ok() } else { None }
}

/// Another spelling, short and printable, for an error.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_counts() {
        for good in ["2026-11-20T08:30:00Z", "2026-11-20T08:30:00.5Z", "2026-11-20T08:30:00.500000000Z"] {
            assert!(time(good).is_some(), "{good}");
        }
        for bad in [
            "2026-11-20 08:30:00Z",
            "2026-11-20t08:30:00z",
            "2026-11-20T08:30:00+00:00",
            "2026-11-20T08:30Z",
            "2026-11-20T08:30:00,5Z",
            "2026-11-20T08:30:00.Z",
            "2026-11-20T08:30:00.0000000001Z",
            "2026-13-20T08:30:00Z",
            "2026-12-31T23:59:60Z",
            "2026-11-20T08:30:00Z[UTC]",
            "Z",
            "",
        ] {
            assert!(time(bad).is_none(), "{bad}");
        }
        let good = "00000000-0000-4000-8000-00000000abcd";
        assert!(uuid(good).is_some());
        for bad in [&good.to_uppercase(), &good.replace('-', ""), &format!("{{{good}}}"), &format!("urn:uuid:{good}")] {
            assert!(uuid(bad).is_none(), "{bad}");
        }
    }
}
