//! What holds for every JSON document once it was accepted.

use super::{Input, Verdict, is_name, is_text, is_time};
use motiongear_manifest::documents::Document;
use serde_json::Value;
use std::fmt::Debug;

/// Reads a document: an input is its text, or, behind a zero byte, edits of `valid`.
pub fn run<D: Document + Debug + PartialEq>(data: &[u8], valid: &[u8]) -> Verdict {
    let mut edited;
    let bytes = match data.split_first() {
        Some((0, edits)) => {
            edited = valid.to_vec();
            Input::new(edits).edit(&mut edited, 64);
            &edited
        }
        _ => data,
    };
    let parsed = D::parse(bytes);
    if let Ok(document) = &parsed {
        check(document, bytes);
    }
    Verdict::from(&parsed)
}

fn check<D: Document + Debug + PartialEq>(document: &D, bytes: &[u8]) {
    let written = document.to_bytes().expect("what was accepted can be written");
    assert_eq!(&D::parse(&written).expect("what was written is accepted"), document);
    // Another reader that goes by FORMAT.md finds every field there, each of its type, and no other.
    let (found, canonical): (Value, Value) =
        (serde_json::from_slice(bytes).unwrap(), serde_json::from_slice(&written).unwrap());
    assert!(same(&found, &canonical), "accepted: {found}\nmeans: {canonical}");
    judge(&found);
}

/// Equal but for the digits of a fraction of a second, which FORMAT.md leaves open.
fn same(found: &Value, canonical: &Value) -> bool {
    match (found, canonical) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, value)| b.get(name).is_some_and(|other| same(value, other)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::String(a), Value::String(b)) if is_time(a) && is_time(b) => {
            // A free text may have the shape of a time and be none.
            let time = |text: &String| text.parse::<jiff::Timestamp>().ok();
            a == b || time(a).is_some_and(|a| time(b) == Some(a))
        }
        (a, b) => a == b,
    }
}

/// The rules for texts, names and times, by the names of the fields.
fn judge(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let text = value.as_str();
                match name.as_str() {
                    "name" | "machine" | "disk" => assert!(is_name(text.unwrap()), "{name}: {value}"),
                    "at" | "since" | "created_at" | "sealed_at" => assert!(is_time(text.unwrap()), "{name}: {value}"),
                    _ => assert!(text.is_none_or(is_text), "{name}: {value}"),
                }
                judge(value);
            }
        }
        Value::Array(items) => items.iter().for_each(judge),
        Value::String(text) => assert!(is_text(text), "{text:?}"),
        _ => {}
    }
}

/// Seeds for a document: itself, itself by edits, and some of what serde would let pass.
pub fn seeds(valid: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8(valid.to_vec()).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let mut seeds = vec![valid.to_vec(), vec![0]];
    // A list for an object.
    let fields: Vec<Value> = value.as_object().unwrap().values().cloned().collect();
    seeds.push(serde_json::to_vec(&fields).unwrap());
    // Every field missing, null, and twice.
    for name in value.as_object().unwrap().keys() {
        let mut other = value.clone();
        other[name] = Value::Null;
        seeds.push(serde_json::to_vec(&other).unwrap());
        other.as_object_mut().unwrap().remove(name);
        seeds.push(serde_json::to_vec(&other).unwrap());
        seeds.push(text.replacen('{', &format!("{{{}: {},", Value::from(name.as_str()), value[name]), 1).into_bytes());
    }
    // Other spellings of the same time and the same UUID, another version.
    for (from, to) in [("Z\"", "+00:00\""), ("T0", " 0"), ("-00", "-0"), ("00000000-", "{00000000-"), ("1,", "2,")] {
        seeds.push(text.replace(from, to).into_bytes());
    }
    seeds.push(text.replace('a', "A").into_bytes());
    seeds.push(text.replace("Z\"", ".500000000Z\"").into_bytes());
    seeds
}
