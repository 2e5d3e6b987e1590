//! XML of libvirt, which may hold anything that somebody named a machine or a file: read within bounds, and escaped when written.

use crate::error::{Error, Result};
use roxmltree::{Document, Node, ParsingOptions};

/// The longest description of a machine that is read, bytes.
const MOST_BYTES: usize = 4 << 20;
/// Elements, attributes and texts in it.
const MOST_NODES: u32 = 200_000;

/// Reads what `virsh` gave as `what`, whose outermost element must be `root`, and looks for something in it.
///
/// # Errors
/// It is too long, no XML, has a document type, or is another thing; what `look` says.
pub fn read<T>(text: &str, what: &str, root: &str, look: impl FnOnce(Node<'_, '_>) -> Result<T>) -> Result<T> {
    let wrong = |found: String| Error::failed(format!("Libvirt: expected the XML of {what}, found {found}"));
    if text.len() > MOST_BYTES {
        return Err(wrong(format!("{} bytes, more than {MOST_BYTES}", text.len())));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| wrong(error.to_string()))?;
    let found = document.root_element();
    match found.has_tag_name(root) {
        true => look(found),
        false => Err(wrong(format!("an element {:.100}", found.tag_name().name()))),
    }
}

/// The element that `path` leads to, if any: the first of each name.
pub fn child<'a, 'i>(node: Node<'a, 'i>, path: &[&str]) -> Option<Node<'a, 'i>> {
    path.iter().try_fold(node, |node, name| node.children().find(|child| child.has_tag_name(*name)))
}

/// The text of the element that `path` leads to.
pub fn text<'a>(node: Node<'a, '_>, path: &[&str]) -> Option<&'a str> {
    child(node, path)?.text().map(str::trim)
}

/// `text` as the value of an attribute or element.
///
/// # Errors
/// It has a character that no XML can hold.
pub fn escaped(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                return Err(Error::usage(format!("Name {text:?}: expected no control characters in it")));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>> {
        read(text, "a test", "a", |a| Ok(a.children().map(|b| b.tag_name().name().to_owned()).collect()))
    }

    #[test]
    fn hostile_xml_is_refused_and_does_no_harm() {
        assert_eq!(names("<a><b/><c/></a>").unwrap(), ["b", "c"]);
        let bomb = "<!DOCTYPE a [<!ENTITY x \"&y;&y;\"><!ENTITY y \"zzzz\">]><a>&x;</a>";
        let outside = "<!DOCTYPE a [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><a>&x;</a>";
        let many = format!("<a>{}</a>", "<b/>".repeat(300_000));
        let long = format!("<a>{}</a>", "b".repeat(MOST_BYTES));
        let deep = format!("{}{}", "<a>".repeat(150_000), "</a>".repeat(150_000));
        for text in ["", "<a>", "</a>", "<z/>", "<a><b></a>", "<a/><a/>", bomb, outside, &many, &long] {
            assert!(names(text).unwrap_err().to_string().contains("expected the XML of a test"));
        }
        // However deep: an answer, and no end of the stack.
        let _ = names(&deep);
    }

    #[test]
    fn what_is_written_is_read_again_as_it_was() {
        let odd = "/a & b/'x'\"<y>\u{4e2d}";
        let text = format!("<a x='{0}'>{0}</a>", escaped(odd).unwrap());
        read(&text, "a test", "a", |a| {
            assert_eq!((a.attribute("x"), a.text()), (Some(odd), Some(odd)));
            Ok(())
        })
        .unwrap();
        assert!(escaped("a\0b").is_err() && escaped("a\nb").is_err());
    }
}
