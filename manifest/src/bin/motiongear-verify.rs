//! `motiongear-verify`: checks a transport array without the engine. The medium without keys, everything with them.

use jiff::Timestamp;
use motiongear_manifest::FormatError;
use motiongear_manifest::allowed::{AllowedSigners, MAX_FILE_BYTES};
use motiongear_manifest::check::{Options, Report, Root, Terms, check};
use motiongear_manifest::envelope::{Identity, MAX_IDENTITY_BYTES};
use motiongear_manifest::names::check_text;
use std::cell::Cell;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
motiongear-verify ARRAY [options]        checks the transport array mounted at ARRAY

  --trust FILE         OpenSSH allowed signers; without it the signer and the manifest are not checked
  --identity FILE      age identity; opens an encrypted manifest and every record (may be repeated)
  --expect-seal CODE   spoken code or digest of the seal that must be there
  --verify-time T      judge the validity of keys at T (RFC 3339), not now
  --work DIR           where the manifest is copied to before it is opened (default: a new folder in /var/tmp)
  --json               the result as JSON on standard output

Exit codes: 0 good, 1 failed, 2 wrong usage, 3 damaged, missing or extra, 4 not trusted.
";

struct Arguments {
    array: PathBuf,
    trust: Option<PathBuf>,
    identities: Vec<PathBuf>,
    expect_seal: Option<String>,
    at: Timestamp,
    work: Option<PathBuf>,
    json: bool,
}

/// A message and an exit code.
struct Failure(u8, String);

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(code) => ExitCode::from(code),
        Err(Failure(code, message)) => {
            let _ = writeln!(io::stderr(), "motiongear-verify: {message}");
            ExitCode::from(code)
        }
    }
}

fn run(words: Vec<OsString>) -> Result<u8, Failure> {
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return print(USAGE).map(|()| 0);
    }
    if words.iter().any(|word| word == "--version") {
        let version =
            format!("motiongear-verify {}, format {}\n", env!("CARGO_PKG_VERSION"), motiongear_manifest::FORMAT);
        return print(&version).map(|()| 0);
    }
    let arguments = parse(words)?;
    let trust = arguments.trust.as_deref().map(read_trust).transpose()?;
    let mut identities = Vec::new();
    for path in &arguments.identities {
        let bytes = read_bounded(path, MAX_IDENTITY_BYTES)?;
        identities.extend(Identity::parse_file(&bytes).map_err(|e| Failure(4, format!("{}: {e}", path.display())))?);
    }
    if !identities.is_empty() && trust.is_none() {
        return Err(Failure(2, "--identity needs --trust: what is not trusted is not decrypted".into()));
    }
    // A folder that is not there is no lack of trust.
    if let Err(error @ FormatError::Io { .. }) = Root::open(&arguments.array) {
        return Err(Failure(1, format!("No transport array: {error}")));
    }
    let (work, made) = match &arguments.work {
        Some(work) => (work.clone(), false),
        None => (PathBuf::from(format!("/var/tmp/motiongear-verify-{}", std::process::id())), true),
    };
    if made {
        let made = std::fs::DirBuilder::new().mode(0o700).create(&work);
        made.map_err(|e| Failure(1, format!("Work folder {}: {e}; give another with --work", work.display())))?;
    }
    let progress = Progress::new();
    let options = Options {
        terms: Terms { trust: trust.as_ref(), at: arguments.at, expect_seal: arguments.expect_seal.as_deref() },
        identities: &identities,
        work: &work,
        watch: &|bytes| progress.add(bytes),
    };
    let report = check(&arguments.array, &options);
    if made {
        let _ = std::fs::remove_dir_all(&work);
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Failure(1, format!("Result: {e}")))?;
        print(&format!("{text}\n"))?;
    } else {
        print(&for_people(&report))?;
    }
    Ok(report.exit_code())
}

fn print(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(|e| Failure(1, format!("Standard output: {e}")))
}

fn parse(words: Vec<OsString>) -> Result<Arguments, Failure> {
    let usage = |what: String| Failure(2, format!("{what}\n\n{USAGE}"));
    let (mut array, mut trust, mut expect_seal, mut at, mut work) = (None, None, None, None, None);
    let (mut identities, mut json) = (Vec::new(), false);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let name = word.to_str().unwrap_or_default().to_owned();
        let mut value = || words.next().ok_or_else(|| usage(format!("{name} needs a value")));
        let twice = match word.to_str() {
            Some("--json") => std::mem::replace(&mut json, true),
            Some("--trust") => trust.replace(PathBuf::from(value()?)).is_some(),
            Some("--work") => work.replace(PathBuf::from(value()?)).is_some(),
            Some("--identity") => {
                identities.push(PathBuf::from(value()?));
                false
            }
            Some("--expect-seal") => expect_seal.replace(value()?.to_string_lossy().into_owned()).is_some(),
            Some("--verify-time") => {
                let text = value()?.to_string_lossy().into_owned();
                let time: Timestamp = text.parse().map_err(|e| usage(format!("--verify-time {text}: {e}")))?;
                at.replace(time).is_some()
            }
            Some(other) if other.starts_with('-') => return Err(usage(format!("{other}: no such option"))),
            _ => array.replace(PathBuf::from(&word)).is_some(),
        };
        if twice {
            return Err(usage(format!("{}: given twice", word.to_string_lossy())));
        }
    }
    Ok(Arguments {
        array: array.ok_or_else(|| usage("ARRAY is missing".into()))?,
        trust,
        identities,
        expect_seal,
        at: at.unwrap_or_else(Timestamp::now),
        work,
        json,
    })
}

fn read_bounded(path: &Path, max: usize) -> Result<Vec<u8>, Failure> {
    let failed = |e: io::Error| Failure(1, format!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn read_trust(path: &Path) -> Result<AllowedSigners, Failure> {
    let text = read_bounded(path, MAX_FILE_BYTES)?;
    AllowedSigners::parse(&String::from_utf8_lossy(&text))
        .map_err(|e| Failure(4, format!("Trust file {}: {e}", path.display())))
}

/// A line on standard error now and then.
struct Progress {
    bytes: Cell<u64>,
    shown: Cell<Instant>,
}

impl Progress {
    fn new() -> Self {
        Progress { bytes: Cell::new(0), shown: Cell::new(Instant::now()) }
    }
    fn add(&self, bytes: u64) -> ControlFlow<()> {
        self.bytes.set(self.bytes.get() + bytes);
        if self.shown.get().elapsed() >= Duration::from_secs(10) {
            self.shown.set(Instant::now());
            let _ = writeln!(io::stderr(), "{:.1} GiB checked", self.bytes.get() as f64 / f64::from(1u32 << 30));
        }
        ControlFlow::Continue(())
    }
}

fn for_people(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        // Everything that is printed went through check_text or is ours; this is the belt to those braces.
        let safe = check_text("Line", &words, usize::MAX).is_ok();
        text.push_str(&if safe { words } else { words.escape_default().to_string() });
        text.push('\n');
    };
    line(format!("Array {}", report.array));
    if let Some(seal) = &report.seal {
        line(format!("Shipment {} of {}", seal.shipment, seal.site.name));
        line(format!("Seal {} ({}), sealed {} by {}", seal.code, seal.digest, seal.sealed_at, seal.signer));
        if seal.plaintext {
            line("PLAINTEXT: NOT ENCRYPTED. Whoever has the array can read every disk".to_owned());
        }
        for reader in &seal.recipients {
            line(format!("Recipient {} ({})", reader.fingerprint, reader.recipient));
        }
        let checked = if seal.signer_checked { "allowed by the trust file" } else { "signer not checked" };
        line(format!("Key {}: {checked}, judged at {}", seal.fingerprint, report.judged_at));
        for disk in &seal.disks {
            line(format!("Disk {}/{}: {} bytes, digest {}", disk.machine, disk.disk, disk.bytes, disk.digest));
        }
    }
    for event in &report.custody {
        let by = event.signed_by.as_deref().unwrap_or("no valid signature");
        line(format!(
            "Custody {}: {} at {} by {} ({by})",
            event.event.number,
            event.event.event.word(),
            event.event.at,
            event.event.signer
        ));
    }
    if let Some(packs) = &report.packs {
        line(format!(
            "Packs: {} of {} good, {} records, {} bytes read",
            packs.good, packs.sealed, packs.records, packs.bytes
        ));
    }
    if report.manifest_compared {
        line("Manifest: compared with the seal".to_owned());
    }
    for proof in &report.proven {
        line(format!(
            "Contents of {}: {} stored and {} zero blocks proven by their leaves, {} damaged",
            proof.disk, proof.stored, proof.zero, proof.damaged
        ));
    }
    report.findings.list.iter().for_each(|finding| line(finding.to_string()));
    let unlisted = report.findings.errors().saturating_sub(report.findings.list.len() as u64);
    if unlisted > 0 {
        line(format!("and at least {unlisted} more errors"));
    }
    line(match report.exit_code() {
        0 if report.seal.as_ref().is_some_and(|s| s.signer_checked) => "RESULT: good".to_owned(),
        0 => "RESULT: the medium is good; signer not checked".to_owned(),
        1 => "RESULT: nothing to check".to_owned(),
        3 => format!("RESULT: {} errors: damaged, missing or extra", report.findings.errors()),
        4 => "RESULT: not trusted".to_owned(),
        _ => "RESULT: not finished".to_owned(),
    });
    text
}
