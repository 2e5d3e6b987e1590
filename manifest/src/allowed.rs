//! Who may sign: OpenSSH's own ALLOWED SIGNERS file (ssh-keygen(1)), so that stock `ssh-keygen -Y verify` reads the same file to
//! the same effect. Like ssh-keygen, a malformed line refuses the whole file: half-read trust is worse than none.

use crate::error::FormatError;
use crate::sign::{Namespace, fingerprint};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ssh_key::PublicKey;
use std::str::FromStr;

/// Longest file read, bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// Why a file was not understood.
#[derive(Debug, thiserror::Error)]
pub enum AllowedError {
    /// Longer than [`MAX_FILE_BYTES`].
    #[error("Allowed signers: expected at most {MAX_FILE_BYTES} bytes, found {0}")]
    TooLong(usize),
    /// A line that ssh-keygen would not accept either, or a key that cannot be read.
    #[error("Allowed signers, line {line}: {fault}")]
    Line {
        /// Line number from 1.
        line: usize,
        /// What was expected and found.
        fault: String,
    },
}

impl From<AllowedError> for FormatError {
    fn from(error: AllowedError) -> Self {
        let text = error.to_string();
        let (object, reason) = text.split_once(": ").unwrap_or(("Allowed signers", &text));
        FormatError::untrusted(object, reason)
    }
}

/// Why a key may not sign as a principal in a namespace at a time. Of several lines with the same key the one that came closest
/// to allowing it is named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No line has the key.
    #[error("key {fingerprint} is not in the file of allowed signers")]
    UnknownKey {
        /// `SHA256:…`.
        fingerprint: String,
    },
    /// The key stands there only as a certificate authority, and certificates are not supported.
    #[error(
        "key {fingerprint} is allowed (line {line}) only as a certificate authority, which MotionGear does not support; list the signing key itself"
    )]
    CertificateAuthority {
        /// `SHA256:…`.
        fingerprint: String,
        /// Line number from 1.
        line: usize,
    },
    /// The key is allowed for others.
    #[error("key {fingerprint} is allowed for '{allowed}' (line {line}), not for '{principal}'")]
    Principal {
        /// `SHA256:…`.
        fingerprint: String,
        /// Who signed, by the document.
        principal: String,
        /// The line's pattern list.
        allowed: String,
        /// Line number from 1.
        line: usize,
    },
    /// The key is allowed for other kinds of documents.
    #[error(
        "key {fingerprint} of '{principal}' is allowed for namespaces '{allowed}' (line {line}), not for {namespace}"
    )]
    Namespace {
        /// `SHA256:…`.
        fingerprint: String,
        /// Who signed, by the document.
        principal: String,
        /// The namespace of the signature.
        namespace: Namespace,
        /// The line's pattern list.
        allowed: String,
        /// Line number from 1.
        line: usize,
    },
    /// `valid-after` is later than now.
    #[error("key {fingerprint} of '{principal}' is valid only after {after} (line {line}); judged at {at}")]
    NotYetValid {
        /// `SHA256:…`.
        fingerprint: String,
        /// Who signed, by the document.
        principal: String,
        /// Start of validity.
        after: Timestamp,
        /// The time it was judged at.
        at: Timestamp,
        /// Line number from 1.
        line: usize,
    },
    /// `valid-before` has passed.
    #[error("key {fingerprint} of '{principal}' was valid before {before} (line {line}); judged at {at}")]
    Expired {
        /// `SHA256:…`.
        fingerprint: String,
        /// Who signed, by the document.
        principal: String,
        /// End of validity.
        before: Timestamp,
        /// The time it was judged at.
        at: Timestamp,
        /// Line number from 1.
        line: usize,
    },
}

impl Refusal {
    /// How far a line got: the furthest is the most useful to tell.
    fn progress(&self) -> u8 {
        match self {
            Refusal::UnknownKey { .. } => 0,
            Refusal::CertificateAuthority { .. } => 1,
            Refusal::Principal { .. } => 2,
            Refusal::Namespace { .. } => 3,
            Refusal::NotYetValid { .. } | Refusal::Expired { .. } => 4,
        }
    }
}

/// One line.
#[derive(Debug, Clone)]
pub struct AllowedSigner {
    /// Line number from 1.
    pub line: usize,
    /// Pattern list: `*`, `?`, `!` negates, commas separate.
    pub principals: String,
    /// Pattern list of namespaces; `None` allows all.
    pub namespaces: Option<String>,
    /// Not valid before this.
    pub valid_after: Option<Timestamp>,
    /// Not valid after this.
    pub valid_before: Option<Timestamp>,
    /// The key signs certificates, not documents; such a line allows nothing here.
    pub cert_authority: bool,
    /// The key.
    pub key: PublicKey,
}

/// A whole file.
#[derive(Debug, Clone, Default)]
pub struct AllowedSigners {
    lines: Vec<AllowedSigner>,
}

impl AllowedSigners {
    /// Reads a file; times without `Z` are in the system's time zone, as for ssh-keygen.
    ///
    /// # Errors
    /// Over 1 MiB, or a line that is malformed.
    pub fn parse(text: &str) -> Result<Self, AllowedError> {
        Self::parse_in(text, &TimeZone::system())
    }

    /// As [`Self::parse`], in a given time zone.
    ///
    /// # Errors
    /// Over 1 MiB, or a line that is malformed.
    pub fn parse_in(text: &str, zone: &TimeZone) -> Result<Self, AllowedError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(AllowedError::TooLong(text.len()));
        }
        let mut lines = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
            let line = line.trim_matches([' ', '\t', '\r']);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            lines.push(parse_line(number, line, zone).map_err(|fault| AllowedError::Line { line: number, fault })?);
        }
        Ok(AllowedSigners { lines })
    }

    /// Every line, in the file's order.
    pub fn lines(&self) -> &[AllowedSigner] {
        &self.lines
    }

    /// Lines that can never allow anything here, with the reason, for people.
    pub fn notes(&self) -> Vec<String> {
        let authorities = self.lines.iter().filter(|line| line.cert_authority);
        authorities
            .map(|line| {
                format!("Allowed signers, line {}: cert-authority is not supported; the line is ignored", line.line)
            })
            .collect()
    }

    /// Whether any line allows somebody to sign in `namespace`, at whatever time.
    pub fn has_signer_for(&self, namespace: Namespace) -> bool {
        self.lines.iter().filter(|line| !line.cert_authority).any(|line| line.allows(namespace))
    }

    /// Whether `key` may sign as `principal` (`NAME@SITE`) in `namespace` at the time `at`.
    ///
    /// # Errors
    /// The [`Refusal`] of the line that came closest.
    pub fn check(&self, principal: &str, key: &PublicKey, namespace: Namespace, at: Timestamp) -> Result<(), Refusal> {
        let mut closest = Refusal::UnknownKey { fingerprint: fingerprint(key) };
        for line in self.lines.iter().filter(|line| line.key.key_data() == key.key_data()) {
            match line.check(principal, namespace, at) {
                Ok(()) => return Ok(()),
                Err(refusal) if refusal.progress() > closest.progress() => closest = refusal,
                Err(_) => {}
            }
        }
        Err(closest)
    }
}

impl AllowedSigner {
    fn allows(&self, namespace: Namespace) -> bool {
        self.namespaces.as_ref().is_none_or(|allowed| matches_list(namespace.as_str(), allowed))
    }

    /// The order of the tests is ssh-keygen's.
    fn check(&self, principal: &str, namespace: Namespace, at: Timestamp) -> Result<(), Refusal> {
        let (line, fingerprint, signer) = (self.line, fingerprint(&self.key), principal.to_owned());
        if self.cert_authority {
            return Err(Refusal::CertificateAuthority { fingerprint, line });
        }
        if !matches_list(principal, &self.principals) {
            return Err(Refusal::Principal { fingerprint, principal: signer, allowed: self.principals.clone(), line });
        }
        if let Some(allowed) = self.namespaces.as_ref().filter(|_| !self.allows(namespace)) {
            return Err(Refusal::Namespace {
                fingerprint,
                principal: signer,
                namespace,
                allowed: allowed.clone(),
                line,
            });
        }
        if let Some(after) = self.valid_after.filter(|after| at < *after) {
            return Err(Refusal::NotYetValid { fingerprint, principal: signer, after, at, line });
        }
        if let Some(before) = self.valid_before.filter(|before| at > *before) {
            return Err(Refusal::Expired { fingerprint, principal: signer, before, at, line });
        }
        Ok(())
    }
}

/// `PRINCIPALS [OPTIONS] TYPE BASE64 [COMMENT]`; the principals may be quoted to hold spaces.
fn parse_line(line: usize, text: &str, zone: &TimeZone) -> Result<AllowedSigner, String> {
    let (principals, rest) = split_principals(text)?;
    if principals.split(',').any(|pattern| pattern.len() > MAX_PATTERN_BYTES) {
        return Err(format!("expected patterns of at most {MAX_PATTERN_BYTES} bytes, found a longer one"));
    }
    let (options, key) = match parse_key(rest) {
        Some(key) => ("", key),
        None => {
            let (options, rest) = split_options(rest)?;
            (options, parse_key(rest).ok_or("expected a public key (TYPE BASE64), found none that can be read")?)
        }
    };
    let mut signer = AllowedSigner {
        line,
        principals: principals.to_owned(),
        namespaces: None,
        valid_after: None,
        valid_before: None,
        cert_authority: false,
        key,
    };
    parse_options(options, &mut signer, zone)?;
    if let (Some(after), Some(before)) = (signer.valid_after, signer.valid_before)
        && before <= after
    {
        return Err(format!("expected valid-before later than valid-after, found {before} and {after}"));
    }
    Ok(signer)
}

/// match_pattern_list(3) of OpenSSH gives up on longer ones.
const MAX_PATTERN_BYTES: usize = 1023;

fn split_principals(text: &str) -> Result<(&str, &str), String> {
    let (principals, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or("expected a closing quote after the principals, found none")?,
        None => text.split_once([' ', '\t']).ok_or("expected principals and a public key, found one word")?,
    };
    if principals.is_empty() {
        return Err("expected at least one principal, found none".to_owned());
    }
    Ok((principals, rest.trim_start_matches([' ', '\t'])))
}

fn parse_key(text: &str) -> Option<PublicKey> {
    let mut words = text.split_ascii_whitespace();
    PublicKey::from_openssh(&format!("{} {}", words.next()?, words.next()?)).ok()
}

/// Splits at the first blank outside quotes.
fn split_options(text: &str) -> Result<(&str, &str), String> {
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in text.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            ' ' | '\t' if !quoted => return Ok((&text[..i], text[i..].trim_start_matches([' ', '\t']))),
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    Err(if quoted {
        "expected a closing quote in the options, found none"
    } else {
        "expected a public key, found none"
    }
    .to_owned())
}

fn parse_options(mut options: &str, signer: &mut AllowedSigner, zone: &TimeZone) -> Result<(), String> {
    while !options.is_empty() {
        let end = options.find([',', '=']).unwrap_or(options.len());
        let (name, after) = options.split_at(end);
        let shown = || name.chars().take(40).flat_map(char::escape_default).collect::<String>();
        let twice = || format!("expected the option {} once, found it twice", shown());
        let mut rest = after;
        match (name.to_ascii_lowercase().as_str(), after.strip_prefix('=')) {
            ("cert-authority", None) => signer.cert_authority = true,
            (option @ ("namespaces" | "valid-after" | "valid-before"), Some(quoted)) => {
                let value;
                (value, rest) = dequote(quoted).ok_or_else(|| format!("expected {option}=\"…\" in double quotes"))?;
                let taken = match option {
                    "namespaces" => signer.namespaces.replace(value).is_some(),
                    "valid-after" => signer.valid_after.replace(parse_time(&value, zone)?).is_some(),
                    _ => signer.valid_before.replace(parse_time(&value, zone)?).is_some(),
                };
                if taken {
                    return Err(twice());
                }
            }
            _ => {
                return Err(format!(
                    "expected the options cert-authority, namespaces=, valid-after= or valid-before=, found '{}'",
                    shown()
                ));
            }
        }
        options = match rest.strip_prefix(',') {
            Some("") => return Err("expected an option after the comma, found none".to_owned()),
            Some(more) => more,
            None if rest.is_empty() => rest,
            None => return Err(format!("expected a comma after the option {}", shown())),
        };
    }
    Ok(())
}

/// The text within the leading double quotes, in which `\"` stands for a quote, and what follows.
fn dequote(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[i + 1..])),
            '\\' if matches!(chars.peek(), Some((_, '"'))) => {
                chars.next();
                value.push('"');
            }
            _ => value.push(c),
        }
    }
    None
}

/// `YYYYMMDD[HHMM[SS]][Z]`; OpenSSH takes `UTC` for `Z` too.
fn parse_time(text: &str, zone: &TimeZone) -> Result<Timestamp, String> {
    let refuse = || {
        let shown: String = text.chars().take(40).flat_map(char::escape_default).collect();
        format!("expected a time YYYYMMDD[HHMM[SS]][Z], found '{shown}'")
    };
    let upper = text.to_ascii_uppercase();
    let (digits, utc) = match upper.strip_suffix('Z').or_else(|| upper.strip_suffix("UTC")) {
        Some(digits) => (digits, true),
        None => (upper.as_str(), false),
    };
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(refuse());
    }
    let part = |from: usize, to: usize| digits.get(from..to).map_or(Ok(0), i16::from_str).map_err(|_| refuse());
    let small = |from: usize| part(from, from + 2).and_then(|n| i8::try_from(n).map_err(|_| refuse()));
    let time =
        DateTime::new(part(0, 4)?, small(4)?, small(6)?, small(8)?, small(10)?, small(12)?, 0).map_err(|_| refuse())?;
    let zone = if utc { &TimeZone::UTC } else { zone };
    let time = zone.to_ambiguous_timestamp(time).compatible().map_err(|_| refuse())?;
    // To OpenSSH the epoch means "no limit", and earlier times are errors.
    if time <= Timestamp::UNIX_EPOCH {
        return Err(refuse());
    }
    Ok(time)
}

/// OpenSSH's match_pattern_list: one negated match refuses, whatever else matches.
fn matches_list(text: &str, patterns: &str) -> bool {
    let mut matched = false;
    for pattern in patterns.split(',') {
        match pattern.strip_prefix('!') {
            Some(negated) if matches(text.as_bytes(), negated.as_bytes()) => return false,
            Some(_) => {}
            None => matched |= matches(text.as_bytes(), pattern.as_bytes()),
        }
    }
    matched
}

/// `*` is any run of bytes, `?` any one byte. Linear but for the last star, so hostile patterns cannot stall it.
fn matches(text: &[u8], pattern: &[u8]) -> bool {
    let (mut t, mut p) = (0, 0);
    // Where to go on if the run that the last star took was too short.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                t += 1;
                p += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::Signer;
    use proptest::prelude::*;

    fn key() -> PublicKey {
        Signer::generate_ed25519("").unwrap().public_key().clone()
    }
    fn text(key: &PublicKey) -> String {
        key.to_openssh().unwrap()
    }
    fn parse(text: &str) -> Result<AllowedSigners, AllowedError> {
        AllowedSigners::parse_in(text, &TimeZone::UTC)
    }
    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }
    const NOW: &str = "2026-11-20T12:00:00Z";

    #[test]
    fn every_refusal_is_told_apart() {
        let (mine, other) = (key(), key());
        let k = text(&mine);
        let check = |line: &str, namespace| {
            parse(&format!("# trust\n\n  {line}\n")).unwrap().check("wang@nongxin", &mine, namespace, at(NOW))
        };
        check(&format!("wang@nongxin {k} a comment"), Namespace::Seal).unwrap();
        check(&format!("*@nongxin namespaces=\"motiongear-*\" {k}"), Namespace::Seal).unwrap();
        check(&format!("\"li@x,w?ng@nongxin\" {k}"), Namespace::Seal).unwrap();
        check(&format!("*@nongxin\tvalid-after=\"20260101\",VALID-BEFORE=\"20270101Z\" \t {k}"), Namespace::Seal)
            .unwrap();
        assert!(matches!(
            check(&format!("wang@nongxin {}", text(&other)), Namespace::Seal),
            Err(Refusal::UnknownKey { .. })
        ));
        assert!(matches!(check(&format!("wang@other {k}"), Namespace::Seal), Err(Refusal::Principal { line: 3, .. })));
        assert!(matches!(
            check(&format!("!wang@nongxin,*@nongxin {k}"), Namespace::Seal),
            Err(Refusal::Principal { .. })
        ));
        assert!(matches!(check(&format!("*@nongxin,!wang@* {k}"), Namespace::Seal), Err(Refusal::Principal { .. })));
        assert!(matches!(
            check(&format!("*@nongxin namespaces=\"motiongear-custody,git\" {k}"), Namespace::Seal),
            Err(Refusal::Namespace { .. })
        ));
        assert!(matches!(
            check(&format!("*@nongxin valid-after=\"20270101\" {k}"), Namespace::Seal),
            Err(Refusal::NotYetValid { .. })
        ));
        assert!(matches!(
            check(&format!("*@nongxin valid-before=\"202611201159\" {k}"), Namespace::Seal),
            Err(Refusal::Expired { .. })
        ));
        assert!(matches!(
            check(&format!("*@nongxin cert-authority {k}"), Namespace::Seal),
            Err(Refusal::CertificateAuthority { .. })
        ));
        // The closest line is named, and any line that allows is enough.
        let lines = format!("li@nongxin {k}\nwang@nongxin valid-before=\"20200101\" {k}\n");
        assert!(matches!(
            parse(&lines).unwrap().check("wang@nongxin", &mine, Namespace::Seal, at(NOW)),
            Err(Refusal::Expired { line: 2, .. })
        ));
        parse(&format!("{lines}wang@nongxin {k}"))
            .unwrap()
            .check("wang@nongxin", &mine, Namespace::Seal, at(NOW))
            .unwrap();
    }

    #[test]
    fn times_without_z_are_local() {
        let k = text(&key());
        let shanghai = TimeZone::get("Asia/Shanghai").unwrap();
        let line = |time: &str| {
            let file = AllowedSigners::parse_in(&format!("a@b valid-after=\"{time}\" {k}"), &shanghai).unwrap();
            file.lines()[0].valid_after.unwrap()
        };
        assert_eq!(line("20261120"), at("2026-11-19T16:00:00Z"));
        assert_eq!(line("202611200830"), at("2026-11-20T00:30:00Z"));
        assert_eq!(line("20261120083001z"), at("2026-11-20T08:30:01Z"));
        assert_eq!(line("20261120UTC"), at("2026-11-20T00:00:00Z"));
    }

    #[test]
    fn malformed_lines_refuse_the_file_and_name_the_line() {
        let k = text(&key());
        for bad in [
            "a@b".to_owned(),
            "a@b nonsense".to_owned(),
            format!("\"a@b {k}"),
            format!("\"\" {k}"),
            format!("a@b namespaces=x {k}"),
            format!("a@b namespaces=\"x {k}"),
            format!("a@b namespaces=\"x\",namespaces=\"y\" {k}"),
            format!("a@b namespaces=\"x\", {k}"),
            format!("a@b namespaces=\"x\"cert-authority {k}"),
            format!("a@b unknown=\"x\" {k}"),
            format!("a@b cert-authority=\"x\" {k}"),
            format!("a@b valid-after=\"2026\" {k}"),
            format!("a@b valid-after=\"20261301\" {k}"),
            format!("a@b valid-after=\"19690101\" {k}"),
            format!("a@b valid-after=\"20260102\",valid-before=\"20260101\" {k}"),
            "a@b ssh-ed25519 AAAA".to_owned(),
        ] {
            let error = parse(&format!("# one\n{bad}\n")).unwrap_err();
            assert!(error.to_string().starts_with("Allowed signers, line 2: expected "), "{bad}: {error}");
        }
        assert!(matches!(parse(&"#".repeat(MAX_FILE_BYTES + 1)), Err(AllowedError::TooLong(_))));
        let file = parse(&format!("a@b cert-authority {k}")).unwrap();
        assert_eq!(file.notes(), ["Allowed signers, line 1: cert-authority is not supported; the line is ignored"]);
    }

    proptest! {
        #[test]
        fn patterns_agree_with_a_plain_definition(text in "[ab]{0,8}", pattern in "[ab*?]{0,8}") {
            fn plain(text: &[u8], pattern: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|skip| plain(&text[skip..], rest)),
                    Some((c, rest)) => text.split_first().is_some_and(|(t, more)| (*c == b'?' || c == t) && plain(more, rest)),
                }
            }
            prop_assert_eq!(matches(text.as_bytes(), pattern.as_bytes()), plain(text.as_bytes(), pattern.as_bytes()));
        }
        #[test]
        fn no_text_panics(text in "[ -~\\n\"\\\\]{0,200}") {
            let _ = parse(&text);
        }
    }
}
