//! The operator's file of allowed signers.

use super::{Input, Verdict};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::sign::Namespace;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE3B2NyOacqyGxwvaO39V+alwyn98OEq8CUBmGO5w4Lc";

fn valid() -> String {
    format!(
        "# who may sign\nzhang@river {KEY} a comment\n*@river,!li@* namespaces=\"motiongear-*\" {KEY}\n\
         \"wang@river\" valid-after=\"20260101\",valid-before=\"20270101000000Z\" {KEY}\nca@river cert-authority {KEY}\n"
    )
}

pub fn run(data: &[u8]) -> Verdict {
    let text = match data.split_first() {
        Some((0, edits)) => {
            let mut text = valid().into_bytes();
            Input::new(edits).edit(&mut text, 16);
            text
        }
        _ => data.to_vec(),
    };
    let text = String::from_utf8_lossy(&text);
    let signers = AllowedSigners::parse_in(&text, &TimeZone::UTC);
    if let Ok(signers) = &signers {
        assert!(signers.lines().len() <= text.lines().count());
        let more = AllowedSigners::parse_in(&format!("{text}\n# a comment\n\n"), &TimeZone::UTC).unwrap();
        assert_eq!(more.lines().len(), signers.lines().len());
        let at: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        for line in signers.lines() {
            let allowed = signers.check("zhang@river", &line.key, Namespace::Seal, at).is_ok();
            // Whatever the patterns say: an authority, and a line that is out of date, allow nothing.
            let could = signers.lines().iter().any(|other| {
                other.key.key_data() == line.key.key_data()
                    && !other.cert_authority
                    && other.valid_after.is_none_or(|after| at >= after)
                    && other.valid_before.is_none_or(|before| at <= before)
            });
            assert!(!allowed || could);
        }
    }
    Verdict::from(&signers)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let line = |options: &str| format!("zhang@river {options} {KEY}\n").into_bytes();
    vec![
        valid().into_bytes(),
        vec![0],
        line("valid-after=\"19700101\""),
        line("valid-after=\"20261301Z\""),
        line("valid-before=\"20270101\",valid-after=\"20280101\""),
        line("namespaces=\"a\\\"b,!c*?\""),
        line("namespaces=\"unclosed"),
        line("unknown"),
        b"\"\" x\n".to_vec(),
        b"***?***@* ssh-ed25519 AAAA\n".to_vec(),
    ]
}
