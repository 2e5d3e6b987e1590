//! Two languages, side by side where they are said: a sentence cannot exist in one and be forgotten in the other, and the
//! compiler checks the arguments of both.

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
