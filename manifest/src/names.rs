//! Names of sites, machines and disks: for people, but also path components of `dir:` targets, so they are strict.

use crate::error::{FormatError, Result};

/// Longest name, bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 100;

/// Refuses a name that cannot be one path component everywhere or that could deceive a reader: empty, over 100 bytes, `.`
/// or `..`, a leading `-` or `.`, white space at either end, `/`, `\`, `:`, `@`, `=`, control characters, or characters that
/// reorder text (bidirectional controls) or have no width.
///
/// # Errors
/// Says which rule the name breaks. `object` starts with a capital: "Machine name".
pub fn check_name(object: &str, name: &str) -> Result<()> {
    let fault = if name.is_empty() {
        "an empty name"
    } else if name.len() > MAX_NAME_BYTES {
        "a longer one"
    } else if name.starts_with('-') || name.starts_with('.') {
        "a leading '-' or '.'"
    } else if name.trim() != name {
        "white space at its ends"
    } else if name.chars().any(|c| matches!(c, '/' | '\\' | ':' | '@' | '=')) {
        "one of / \\ : @ ="
    } else if name.chars().any(char::is_control) {
        "a control character"
    } else if name.chars().any(is_deceptive) {
        "an invisible or text-reordering character"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
    Err(FormatError::damaged(
        format!("{object} '{shown}'"),
        format!("1 to {MAX_NAME_BYTES} bytes without control characters and / \\ : @ =, not starting with '-' or '.'"),
        fault,
    ))
}

/// Whether a character is invisible, or turns the text beside it round: Unicode's `Default_Ignorable_Code_Point`, the bidirectional
/// controls, line and paragraph separators, interlinear annotations, the blank Braille pattern.
pub fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Refuses free text (labels, reasons, places, people) that is too long or holds control characters.
///
/// # Errors
/// Says which rule the text breaks.
pub fn check_text(object: &str, text: &str, max_bytes: usize) -> Result<()> {
    if text.len() > max_bytes {
        return Err(FormatError::damaged(
            object,
            format!("at most {max_bytes} bytes"),
            format!("{} bytes", text.len()),
        ));
    }
    if text.chars().any(|c| c.is_control() || is_deceptive(c)) {
        return Err(FormatError::damaged(object, "text without control characters", "a control character"));
    }
    Ok(())
}

/// What [`check_text`] takes of a text: what it refuses becomes a space, and what is too long is cut off.
pub fn plain_text(text: &str, max_bytes: usize) -> String {
    let mut plain = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars().map(|c| if c.is_control() || is_deceptive(c) { ' ' } else { c }) {
        if plain.len() + c.len_utf8() > max_bytes {
            break;
        }
        plain.push(c);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_or_deceive_are_refused() {
        for good in ["db01", "核心账务", "sda 1", "a.b_c-d", "农信社-01"] {
            check_name("Machine name", good).unwrap();
        }
        let long = "x".repeat(101);
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\\b",
            "a\0b",
            "a\nb",
            " a",
            "a ",
            "-a",
            ".a",
            "a:b",
            "a@b",
            "a=b",
            "a\u{202e}b",
            "a\u{61c}b",
            "a\u{180e}b",
            "a\u{2800}b",
            "a\u{3164}b",
            "a\u{e0041}b",
            "a\u{fe0f}b",
            &long,
        ] {
            assert!(check_name("Machine name", bad).is_err(), "{bad:?}");
        }
    }
}
