//! Two languages, side by side where they are said: a sentence cannot exist in one and be forgotten in the other, and the
//! compiler checks the arguments of both.

use motiongear_manifest::documents::seal::{Basis, Consistency};
use serde::{Deserialize, Serialize};

/// The language of summaries and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lang {
    /// English.
    #[default]
    En,
    /// Simplified Chinese.
    Zh,
}

/// `say!(lang, "Sealed {name}", "已封签 {name}")`: one of the two as a `String`.
#[macro_export]
macro_rules! say {
    ($lang:expr, $en:literal, $zh:literal $(, $arg:expr)* $(,)?) => {
        match $lang {
            $crate::lang::Lang::En => format!($en $(, $arg)*),
            $crate::lang::Lang::Zh => format!($zh $(, $arg)*),
        }
    };
}

/// What every verb says of a shipment that is not encrypted.
pub fn plaintext_words(lang: Lang) -> String {
    crate::say!(
        lang,
        "  PLAINTEXT: whoever holds the array can read everything",
        "  未加密：任何持有移动存储者均可读取全部数据"
    )
}

/// "consistent (snapshot hook)" and the like.
pub fn consistency_words(lang: Lang, consistency: Consistency, basis: Basis) -> String {
    match (consistency, basis) {
        (Consistency::Fuzzy, _) => crate::say!(lang, "fuzzy (not of one point in time)", "模糊（非同一时间点）"),
        (_, Basis::Hook) => crate::say!(lang, "consistent (snapshot hook)", "一致（快照钩子）"),
        (_, Basis::Source) => crate::say!(lang, "consistent (the source is a snapshot)", "一致（源端即快照）"),
        (_, _) => crate::say!(lang, "consistent (asserted by the engineer)", "一致（由工程师声明）"),
    }
}
