//! What reaches a terminal: text from an array, a peer or a file name may hold characters that move the cursor, hide what follows or turn
//! it round. Whatever is shown to people passes through here, and these characters are spelt out.

use motiongear_manifest::names::is_deceptive;
use std::borrow::Cow;
use std::io::Write;

fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || is_deceptive(c)
}

/// `text` with control characters (but line ends and tabs) and all that is invisible or turns text round as `\u{…}`.
pub fn safe(text: &str) -> Cow<'_, str> {
    replaced(text, |c, out| out.extend(c.escape_unicode()))
}

/// The same for JSON, whose own spelling of such characters means the same.
pub fn safe_json(text: &str) -> Cow<'_, str> {
    replaced(text, |c, out| c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))))
}

fn replaced(text: &str, spell: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    text.chars().for_each(|c| if is_unsafe(c) { spell(c, &mut out) } else { out.push(c) });
    Cow::Owned(out)
}

/// A line on standard error. A terminal that went away (EIO, EPIPE) is no reason to stop.
pub fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{}\n", safe(text)).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_spelt_out() {
        assert_eq!(safe("账务 db01\n\tok"), "账务 db01\n\tok");
        assert_eq!(safe("\u{1b}[2J\u{9b}x\u{202e}"), "\\u{1b}[2J\\u{9b}x\\u{202e}");
        let json = serde_json::to_string("a\u{1b}\u{9b}\u{e0041}").unwrap();
        let shown = safe_json(&json).into_owned();
        assert!(!shown.contains(is_unsafe), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), "a\u{1b}\u{9b}\u{e0041}");
    }
}
