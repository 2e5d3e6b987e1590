//! Who may sign: OpenSSH's own ALLOWED SIGNERS file (ssh-keygen(1)), so that stock `ssh-keygen -Y verify` reads the same file to
//! the same effect. As for ssh-keygen, a line that cannot be read allows nothing, and the others hold; it is named in
//! [`AllowedSigners::notes`] and where nothing else allows a key. What a line means is taken from OpenSSH 10's `sshsig.c`, `misc.c`,
//! `match.c`, and glibc's `strptime` and `mktime` behind them.

use crate::error::FormatError;
use crate::names::check_text;
use crate::sign::{Namespace, fingerprint};
use jiff::civil::{Date, DateTime};
use jiff::tz::{Dst, TimeZone};
use jiff::{Timestamp, ToSpan};
use ssh_key::PublicKey;

/// Longest file read, bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// Why a file was not understood.
#[derive(Debug, thiserror::Error)]
pub enum AllowedError {
    /// Longer than [`MAX_FILE_BYTES`].
    #[error("Allowed signers: expected at most {MAX_FILE_BYTES} bytes, found {0}")]
    TooLong(usize),
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
    #[error("key {fingerprint} is not in the file of allowed signers{}", and_unread(.unread))]
    UnknownKey {
        /// `SHA256:…`.
        fingerprint: String,
        /// The first line that cannot be read, with the reason.
        unread: Option<(usize, String)>,
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

fn and_unread(unread: &Option<(usize, String)>) -> String {
    unread.as_ref().map(|(line, why)| format!("; its line {line} cannot be read: {why}")).unwrap_or_default()
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
    /// Lines that cannot be read: number from 1, and why. They allow nothing.
    unread: Vec<(usize, String)>,
    /// The file begins with a byte order mark, which OpenSSH takes for a part of the first principal.
    marked: bool,
}

impl AllowedSigners {
    /// Reads a file; times without `Z` are in the system's time zone, as for ssh-keygen.
    ///
    /// # Errors
    /// Over 1 MiB.
    pub fn parse(text: &str) -> Result<Self, AllowedError> {
        Self::parse_in(text, &TimeZone::system())
    }

    /// As [`Self::parse`], in a given time zone.
    ///
    /// # Errors
    /// Over 1 MiB.
    pub fn parse_in(text: &str, zone: &TimeZone) -> Result<Self, AllowedError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(AllowedError::TooLong(text.len()));
        }
        let mut read = AllowedSigners { marked: text.starts_with('\u{feff}'), ..AllowedSigners::default() };
        for (number, line) in text.split('\n').enumerate().map(|(i, line)| (i + 1, line)) {
            // To C a line ends at its first zero byte.
            let line = line.split('\0').next().unwrap_or_default().trim_start_matches(BLANKS);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(number, line, zone) {
                Ok(signer) => read.lines.push(signer),
                Err(why) => read.unread.push((number, why)),
            }
        }
        Ok(read)
    }

    /// Every line that can be read, in the file's order.
    pub fn lines(&self) -> &[AllowedSigner] {
        &self.lines
    }

    /// Lines that can never allow anything here, with the reason, for people.
    pub fn notes(&self) -> Vec<String> {
        const MARKED: &str = "Allowed signers, line 1: it begins with a byte order mark, which OpenSSH takes for a part of the \
                              principal; save the file as UTF-8 without it";
        let unread =
            self.unread.iter().map(|(line, why)| format!("Allowed signers, line {line}: {why}; the line is ignored"));
        let authorities = self.lines.iter().filter(|line| line.cert_authority).map(|line| {
            format!("Allowed signers, line {}: cert-authority is not supported; the line is ignored", line.line)
        });
        self.marked.then(|| MARKED.to_owned()).into_iter().chain(unread).chain(authorities).take(MAX_NOTES).collect()
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
        let mut closest = Refusal::UnknownKey { fingerprint: fingerprint(key), unread: self.unread.first().cloned() };
        // Validity is judged in whole seconds.
        let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
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
            let allowed = self.principals.chars().take(200).flat_map(shown_char).collect();
            return Err(Refusal::Principal { fingerprint, principal: signer, allowed, line });
        }
        if let Some(allowed) = self.namespaces.as_ref().filter(|_| !self.allows(namespace)) {
            return Err(Refusal::Namespace {
                fingerprint,
                principal: signer,
                namespace,
                allowed: allowed.chars().take(200).flat_map(shown_char).collect(),
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

/// As it stands, unless it could deceive.
fn shown_char(c: char) -> impl Iterator<Item = char> {
    let plain = check_text("", c.encode_utf8(&mut [0; 4]), 4).is_ok();
    plain.then_some(c).into_iter().chain((!plain).then(|| c.escape_unicode()).into_iter().flatten())
}

/// `PRINCIPALS [OPTIONS] TYPE BASE64 [COMMENT]`.
fn parse_line(line: usize, text: &str, zone: &TimeZone) -> Result<AllowedSigner, String> {
    let (principals, rest) = split_principals(text)?;
    let (options, key) = match parse_key(rest) {
        Some(key) => ("", key),
        None => {
            let (options, rest) = split_options(rest)?;
            (options, parse_key(rest).ok_or("expected a public key (TYPE BASE64), found none that can be read")?)
        }
    };
    let mut signer = AllowedSigner {
        line,
        principals,
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

/// What separates the principals from the rest.
const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];
/// Notes on a file that are told.
const MAX_NOTES: usize = 20;
/// match_pattern_list(3) of OpenSSH gives up on longer ones.
const MAX_PATTERN_BYTES: usize = 1022;

/// OpenSSH's `strdelimw`: up to a blank, or, where a quote comes first, what stands before it and up to the next quote.
fn split_principals(text: &str) -> Result<(String, &str), String> {
    let one_word = || "one word stands there; a line names principals and a public key".to_owned();
    let end = text.find(|c| BLANKS.contains(&c) || c == '"').ok_or_else(one_word)?;
    let (before, rest) = text.split_at(end);
    match rest.strip_prefix('"') {
        Some(quoted) => {
            let (within, rest) = quoted.split_once('"').ok_or("the quote around the principals is not closed")?;
            Ok((format!("{before}{within}"), rest.trim_start_matches(BLANKS)))
        }
        None => Ok((before.to_owned(), rest.trim_start_matches(BLANKS))),
    }
}

/// `TYPE BASE64`; what follows is a comment. Of a kind of key that this crate does not know there is no signature either.
fn parse_key(text: &str) -> Option<PublicKey> {
    let (kind, rest) = text.split_once([' ', '\t'])?;
    let rest = rest.trim_start_matches([' ', '\t']);
    let coded = rest.split([' ', '\t']).next()?;
    // OpenSSH's decoder passes over other white space.
    let coded: String = coded.chars().filter(|c| !matches!(c, '\r' | '\n' | '\x0b' | '\x0c')).collect();
    PublicKey::from_openssh(&format!("{kind} {coded}")).ok()
}

/// OpenSSH's `sshkey_advance_past_options`: up to the first blank outside quotes.
fn split_options(text: &str) -> Result<(&str, &str), String> {
    let (mut quoted, mut bytes) = (false, text.bytes().enumerate().peekable());
    while let Some((i, c)) = bytes.next() {
        match c {
            b'\\' if bytes.peek().is_some_and(|(_, next)| *next == b'"') => drop(bytes.next()),
            b'"' => quoted = !quoted,
            b' ' | b'\t' if !quoted => return Ok((&text[..i], text[i..].trim_start_matches([' ', '\t']))),
            _ => {}
        }
    }
    Err(if quoted { "a quote in the options is not closed" } else { "expected a public key, found none" }.to_owned())
}

/// OpenSSH's `sshsigopt_parse`. Between two commas may stand nothing.
fn parse_options(options: &str, signer: &mut AllowedSigner, zone: &TimeZone) -> Result<(), String> {
    let mut rest = options;
    while !rest.is_empty() {
        let name_end = rest.find([',', '=']).unwrap_or(rest.len());
        let shown = || rest[..name_end].chars().take(40).flat_map(char::escape_default).collect::<String>();
        let unknown = || {
            let known = "cert-authority, namespaces=, valid-after= or valid-before=";
            format!("unknown option '{}'; known are {known}", shown())
        };
        let twice = || format!("the option {} stands there twice", shown());
        let mut after = rest;
        match (rest[..name_end].to_ascii_lowercase().as_str(), rest[name_end..].strip_prefix('=')) {
            (option @ ("namespaces" | "valid-after" | "valid-before"), Some(quoted)) => {
                let value;
                (value, after) = dequote(quoted).ok_or_else(|| format!("expected {option}=\"…\" in double quotes"))?;
                let taken = match option {
                    "namespaces" => signer.namespaces.replace(value).is_some(),
                    "valid-after" => signer.valid_after.replace(parse_time(&value, zone)?).is_some(),
                    _ => signer.valid_before.replace(parse_time(&value, zone)?).is_some(),
                };
                if taken {
                    return Err(twice());
                }
            }
            ("cert-authority", None) => {
                signer.cert_authority = true;
                after = &rest[name_end..];
            }
            ("", None) => {}
            _ => return Err(unknown()),
        }
        rest = match after.strip_prefix(',') {
            Some("") => return Err("expected an option after the comma, found none".to_owned()),
            Some(more) => more,
            None if after.is_empty() => after,
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

/// `YYYYMMDD[HHMM[SS]][Z]`; OpenSSH takes `UTC` for `Z` too. Days and seconds beyond the end of their month or minute run over
/// into the next, as they do for strptime(3) and mktime(3).
fn parse_time(text: &str, zone: &TimeZone) -> Result<Timestamp, String> {
    let refuse = || {
        let shown: String = text.chars().take(40).flat_map(char::escape_default).collect();
        format!("expected a time YYYYMMDD[HHMM[SS]][Z], found '{shown}'")
    };
    let upper = text.to_ascii_uppercase();
    let (digits, utc) = match upper.strip_suffix('Z').or_else(|| upper.strip_suffix("UTC")) {
        Some(digits) if !digits.is_empty() => (digits, true),
        _ => (upper.as_str(), false),
    };
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.is_ascii() {
        return Err(refuse());
    }
    // A field may begin with spaces, which strptime(3) passes over.
    let field = |from: usize, to: usize, most: i64| match digits.get(from..to) {
        None | Some("") => Ok(0),
        Some(text) => {
            let text = text.trim_start_matches(' ');
            let number = text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse::<i64>().ok()).flatten();
            number.filter(|n| *n <= most).ok_or_else(refuse)
        }
    };
    let (year, month, day) = (field(0, 4, 9999)?, field(4, 6, 12)?, field(6, 8, 31)?);
    let (hour, minute, second) = (field(8, 10, 23)?, field(10, 12, 59)?, field(12, 14, 61)?);
    let small = |number: i64| i8::try_from(number).map_err(|_| refuse());
    if month == 0 || day == 0 {
        return Err(refuse());
    }
    let first = Date::new(i16::try_from(year).map_err(|_| refuse())?, small(month)?, 1).map_err(|_| refuse())?;
    let time = first.at(small(hour)?, small(minute)?, 0, 0).saturating_add((day - 1).days());
    let time = time.saturating_add(second.seconds());
    let zone = if utc { TimeZone::UTC } else { zone.clone() };
    let time = without_summer_time(time, &zone).unwrap_or(Timestamp::MAX);
    // To OpenSSH the epoch means "no limit", and earlier times are errors.
    if time <= Timestamp::UNIX_EPOCH {
        return Err(refuse());
    }
    Ok(time)
}

/// A local time as mktime(3) reads it where it is told that no summer time is in force: where one is, by the offset of the nearest
/// time without, which it looks for by steps of 601,200 seconds. `None` beyond the years that can be counted.
fn without_summer_time(time: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    const STEP: i64 = 601_200;
    let found = zone.to_ambiguous_timestamp(time).compatible().ok()?;
    let is_standard = |at: Timestamp| zone.to_offset_info(at).dst() == Dst::No;
    if is_standard(found) {
        return Some(found);
    }
    let near = (1..450).flat_map(|steps| [-steps * STEP, steps * STEP]);
    let standard = near.filter_map(|away| found.checked_add(away.seconds()).ok()).find(|at| is_standard(*at));
    standard.map_or(Some(found), |at| zone.to_offset(at).to_timestamp(time).ok())
}

/// OpenSSH's match_pattern_list: one negated match refuses, whatever else matches.
fn matches_list(text: &str, patterns: &str) -> bool {
    let mut matched = false;
    for pattern in patterns.split(',') {
        if pattern.trim_start_matches('!').len() > MAX_PATTERN_BYTES {
            return false;
        }
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
    fn a_line_that_cannot_be_read_allows_nothing_and_the_others_hold() {
        let mine = key();
        let k = text(&mine);
        for bad in [
            "a@b".to_owned(),
            "a@b nonsense".to_owned(),
            format!("\"a@b {k}"),
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
            let file = parse(&format!("# one\n{bad}\n")).unwrap();
            let note = &file.notes()[0];
            assert!(note.starts_with("Allowed signers, line 2: "), "{bad}: {note}");
            let refusal = file.check("a@b", &mine, Namespace::Seal, at(NOW)).unwrap_err();
            assert!(matches!(refusal, Refusal::UnknownKey { unread: Some((2, _)), .. }), "{bad}: {refusal}");
            let file = parse(&format!("{bad}\na@b {k}\n")).unwrap();
            file.check("a@b", &mine, Namespace::Seal, at(NOW)).unwrap();
        }
        assert!(matches!(parse(&"#".repeat(MAX_FILE_BYTES + 1)), Err(AllowedError::TooLong(_))));
        let file = parse(&format!("a@b cert-authority {k}")).unwrap();
        assert_eq!(file.notes(), ["Allowed signers, line 1: cert-authority is not supported; the line is ignored"]);
        let marked = parse(&format!("\u{feff}a@b {k}")).unwrap();
        assert!(matches!(marked.check("a@b", &mine, Namespace::Seal, at(NOW)), Err(Refusal::Principal { .. })));
        assert!(marked.notes()[0].contains("byte order mark"));
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
