//! What volumes that are to be made ask of a cloud, held against what it has: before anything is made.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// A volume that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToMake {
    /// Size, bytes.
    pub bytes: u64,
    /// Bytes of it that will be written as data at most.
    pub data: u64,
}

/// How much more of something must be there. Needs of the same room and thing, of several stores, are added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Whose room it is, for people: `Cloud bank`.
    pub room: String,
    /// What it is, with its unit: `a quota for N more volumes`, where `N` is the number.
    pub thing: String,
    /// How many of it.
    pub wanted: u64,
    /// How many are in use.
    pub used: u64,
    /// How many there may be at most.
    pub most: u64,
    /// What to do where it is not there.
    pub next: &'static str,
}

/// What one store asks for, and what people should know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// All must be met.
    pub needs: Vec<Need>,
    /// For people: what could not be looked at, or may be missing later.
    pub notes: Vec<String>,
}

impl Need {
    /// # Errors
    /// There is less.
    fn expect_met(&self) -> Result<()> {
        let Need { room, thing, wanted, used, most, next } = self;
        if most.saturating_sub(*used) >= *wanted {
            return Ok(());
        }
        let thing = thing.replacen('N', &wanted.to_string(), 1);
        Err(Error::failed(format!("{room}: expected {thing}, found {used} of {most} in use")).next(*next))
    }
}

/// Adds up what all stores ask for.
///
/// # Errors
/// Something is not there; says what, how much is wanted, and how much is in use.
pub fn expect_met(needs: impl IntoIterator<Item = Need>) -> Result<()> {
    let mut sums: BTreeMap<(String, String), Need> = BTreeMap::new();
    for need in needs {
        let (room, thing, wanted) = (need.room.clone(), need.thing.clone(), need.wanted);
        let sum = sums.entry((room, thing)).or_insert(Need { wanted: 0, ..need });
        sum.wanted = sum.wanted.saturating_add(wanted);
    }
    sums.values().try_for_each(Need::expect_met)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(thing: &str, wanted: u64) -> Need {
        let (room, thing) = ("Cloud bank".to_owned(), format!("a quota for N more {thing}"));
        Need { room, thing, wanted, used: 5, most: 10, next: "ask for more" }
    }

    #[test]
    fn what_two_stores_want_of_one_room_is_added_up() {
        expect_met([need("volumes", 3), need("volumes", 2), need("GiB", 5)]).unwrap();
        let error = expect_met([need("volumes", 3), need("volumes", 3), need("GiB", 5)]).unwrap_err();
        assert_eq!(error.message, "Cloud bank: expected a quota for 6 more volumes, found 5 of 10 in use");
        expect_met([need("volumes", u64::MAX), need("volumes", 1)]).unwrap_err();
    }
}
