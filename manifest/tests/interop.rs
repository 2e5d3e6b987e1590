//! Goal: whatever this crate signs or encrypts, stock OpenSSH and age accept, and the other way round.
//! Method: the installed `ssh-keygen` and `age` are run on files in a temporary folder. A missing tool fails the test: a proof
//! that was skipped is none.

use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::envelope::{
    ContentKey, EnvelopeError, EnvelopeMeta, Identity, Recipient, decrypt_stream, encrypt_stream, unwrap_key, wrap_key,
};
use motiongear_manifest::sign::{Namespace, SignError, Signer, verify};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use uuid::Uuid;

/// Runs a stock tool in `dir` with `input` on its standard input.
fn run<S: AsRef<OsStr>>(dir: &Path, tool: &str, args: &[S], input: &[u8]) -> Output {
    fs::write(dir.join("stdin"), input).unwrap();
    Command::new(tool)
        .args(args)
        .current_dir(dir)
        .env("TZ", "UTC")
        .stdin(Stdio::from(fs::File::open(dir.join("stdin")).unwrap()))
        .output()
        .unwrap_or_else(|error| panic!("{tool} must be installed for this test: {error}"))
}

fn ok(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn keygen(dir: &Path, name: &str, more: &[&str]) -> Vec<u8> {
    let args = [&["-q", "-C", "test", "-f", name][..], more].concat();
    ok(run(dir, "ssh-keygen", &args, b""));
    fs::read(dir.join(name)).unwrap()
}

fn write_private(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

const MESSAGE: &[u8] = b"{\"shipment\":\"x\"}\n";

#[test]
fn signatures_go_both_ways_for_every_kind_of_key() {
    for kind in [&["-t", "ed25519"][..], &["-t", "ecdsa", "-b", "256"], &["-t", "ecdsa", "-b", "384"]] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let file = keygen(dir, "key", &[kind, &["-N", ""]].concat());
        let signer = Signer::from_openssh(&file, None).unwrap();
        let listed = String::from_utf8(ok(run(dir, "ssh-keygen", &["-l", "-f", "key.pub"], b""))).unwrap();
        assert!(listed.contains(&signer.fingerprint()), "{listed}");

        // Theirs to ours.
        fs::write(dir.join("doc"), MESSAGE).unwrap();
        ok(run(dir, "ssh-keygen", &["-q", "-Y", "sign", "-f", "key", "-n", "motiongear-seal", "doc"], b""));
        let theirs = fs::read(dir.join("doc.sig")).unwrap();
        let by = verify(&theirs, MESSAGE, Namespace::Seal).unwrap();
        assert_eq!(by.fingerprint, signer.fingerprint());
        assert_eq!(by.key.key_data(), signer.public_key().key_data());

        // Ours to theirs.
        let ours = signer.sign(MESSAGE, Namespace::Seal).unwrap();
        if kind[1] == "ed25519" {
            // The only deterministic kind: byte for byte the same armour.
            assert_eq!(ours.as_bytes(), theirs);
        }
        fs::write(dir.join("ours.sig"), &ours).unwrap();
        let allowed =
            format!("wang@nongxin namespaces=\"motiongear-*\" {}\n", signer.public_key().to_openssh().unwrap());
        fs::write(dir.join("allowed"), &allowed).unwrap();
        let check = |principal: &str, namespace: &str, message: &[u8]| {
            let args = ["-Y", "verify", "-f", "allowed", "-I", principal, "-n", namespace, "-s", "ours.sig"];
            run(dir, "ssh-keygen", &args, message).status.success()
        };
        assert!(check("wang@nongxin", "motiongear-seal", MESSAGE));
        assert!(!check("wang@nongxin", "motiongear-custody", MESSAGE));
        assert!(!check("wang@other", "motiongear-seal", MESSAGE));
        assert!(!check("wang@nongxin", "motiongear-seal", b"tampered"));
        let found = ok(run(dir, "ssh-keygen", &["-Y", "find-principals", "-f", "allowed", "-s", "ours.sig"], b""));
        assert_eq!(found, b"wang@nongxin\n");

        // Not one changed bit, not even one that the library would forgive.
        for (at, bit) in (0..theirs.len() - 1).flat_map(|at| (0..8).map(move |bit| (at, bit))).step_by(3) {
            let mut changed = theirs.clone();
            changed[at] ^= 1 << bit;
            assert!(verify(&changed, MESSAGE, Namespace::Seal).is_err(), "bit {bit} of byte {at}");
        }
        // Ours refuses the same.
        assert!(matches!(verify(ours.as_bytes(), MESSAGE, Namespace::Custody), Err(SignError::Namespace { .. })));
        assert!(matches!(verify(ours.as_bytes(), b"tampered", Namespace::Seal), Err(SignError::Mismatch { .. })));
    }
}

#[test]
fn allowed_signers_mean_the_same_to_both() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let signer = Signer::generate_ed25519("own key").unwrap();
    // A key that we made is one that ssh-keygen reads.
    write_private(&dir.join("key"), signer.to_openssh(None).unwrap().as_bytes());
    let public = String::from_utf8(ok(run(dir, "ssh-keygen", &["-y", "-f", "key"], b""))).unwrap();
    assert_eq!(public.trim(), signer.public_key().to_openssh().unwrap());
    let (key, short) = (public.trim(), public.split(' ').take(2).collect::<Vec<_>>().join(" "));
    let signature = signer.sign(MESSAGE, Namespace::Seal).unwrap();
    fs::write(dir.join("sig"), &signature).unwrap();
    let now = jiff::Timestamp::now();
    for (line, expected) in [
        (format!("wang@nongxin {key}"), true),
        (format!("*@nongxin {short}"), true),
        (format!("w?ng@nongxin,li@x {key}"), true),
        (format!("\"wang@nongxin\" {key}"), true),
        (format!("!wang@nongxin,* {key}"), false),
        (format!("*,!wang@nongxin {key}"), false),
        (format!("wang {key}"), false),
        (format!("*@nongxin namespaces=\"motiongear-seal\" {key}"), true),
        (format!("*@nongxin namespaces=\"git,motiongear-s*\" {key}"), true),
        (format!("*@nongxin namespaces=\"git\" {key}"), false),
        (format!("*@nongxin namespaces=\"!motiongear-seal,motiongear-*\" {key}"), false),
        (format!("*@nongxin valid-after=\"20200101\" {key}"), true),
        (format!("*@nongxin valid-after=\"20200101\",valid-before=\"20990101Z\" {key}"), true),
        (format!("*@nongxin valid-before=\"202001010000\" {key}"), false),
        (format!("*@nongxin valid-after=\"20990101000000\" {key}"), false),
        (format!("*@nongxin cert-authority {key}"), false),
        (format!("*@nongxin namespaces=\"motiongear-seal\" cert-authority {key}"), false),
        (format!("*@nongxin valid-after=\"2020\" {key}"), false),
        (format!("*@nongxin namespaces=motiongear-seal {key}"), false),
        (format!("li@nongxin {key}\nwang@nongxin {key}"), true),
        (format!("# comment\n\n  wang@nongxin {key}\n"), true),
    ] {
        fs::write(dir.join("allowed"), format!("{line}\n")).unwrap();
        let args = ["-Y", "verify", "-f", "allowed", "-I", "wang@nongxin", "-n", "motiongear-seal", "-s", "sig"];
        let theirs = run(dir, "ssh-keygen", &args, MESSAGE).status.success();
        let ours = AllowedSigners::parse(&format!("{line}\n"))
            .is_ok_and(|file| file.check("wang@nongxin", signer.public_key(), Namespace::Seal, now).is_ok());
        assert_eq!((theirs, ours), (expected, expected), "{line}");
    }
}

/// Whole files of random lines, right and wrong, say the same to stock ssh-keygen and to this crate, in a zone with summer time.
#[test]
fn random_files_of_allowed_signers_mean_the_same_to_both() {
    const PRINCIPALS: &[&str] = &[
        "wang@nongxin",
        "*@nongxin",
        "*",
        "w?ng@nongxin",
        "WANG@nongxin",
        "!wang@nongxin,*",
        "*,!wang@nongxin",
        "*,!li@x",
        "wang@nongxin,",
        ",wang@nongxin",
        "!*",
        "wang@nongxin,!",
        "\"wang@nongxin\"",
        "\"wang@nongxin",
        "wang@nongxin\"",
        "'wang@nongxin'",
        "\"\" wang@nongxin",
        "\"\"wang@nongxin",
        " wang@nongxin",
        "[w]ang@nongxin",
        "\u{feff}wang@nongxin",
    ];
    const OPTIONS: &[&str] = &[
        "",
        "",
        "namespaces=\"motiongear-seal\"",
        "namespaces=\"git\"",
        "namespaces=\"!motiongear-seal,*\"",
        "namespaces=\"\"",
        "namespaces=motiongear-seal",
        "NAMESPACES=\"git\"",
        "namespaces = \"git\"",
        "namespaces=\"a\\\"b,motiongear-seal\"",
        "namespaces=\"motiongear-seal",
        "cert-authority",
        "CERT-AUTHORITY",
        "cert-authority=\"\"",
        "unknown",
        "unknown=\"x\"",
        ",",
        "valid-after=\"20260101\"",
        "valid-after=\"20270101\"",
        "valid-before=\"20270101\"",
        "valid-before=\"20260101\"",
        "valid-after=\"20260701\"",
        "valid-before=\"20260701\"",
        "valid-after=\"202607010000Z\"",
        "valid-before=\"20260230\"",
        "valid-after=\"20260631Z\"",
        "valid-before=\"20260701005960\"",
        "valid-before=\"20260701240000\"",
        "valid-before=\"\"",
        "valid-before=\"19700101Z\"",
        "valid-before=\"99991231\"",
        "valid-before=\"2026-07-01\"",
        "valid-before=\"+2026701\"",
        "valid-before=\"20260701UTC\"",
        "valid-after=\"202606 1\"",
        "valid-after=\"00010101\"",
        "valid-before=\"Z\"",
    ];
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (signer, other) = (Signer::generate_ed25519("").unwrap(), Signer::generate_ed25519("").unwrap());
    fs::write(dir.join("sig"), signer.sign(MESSAGE, Namespace::Seal).unwrap()).unwrap();
    let key = |signer: &Signer| signer.public_key().to_openssh().unwrap().trim().to_owned();
    let (own, others) = (key(&signer), key(&other));
    let zone = jiff::tz::TimeZone::get("America/New_York").unwrap();
    let mut state = 20_261_130u32;
    let mut pick = |most: usize| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize % most
    };
    let (mut allowed, cases) = (0, 250);
    for _ in 0..cases {
        let mut text = String::new();
        for _ in 0..1 + pick(3) {
            let mut options = OPTIONS[pick(OPTIONS.len())].to_owned();
            if pick(3) == 0 {
                options = format!("{options},{}", OPTIONS[pick(OPTIONS.len())]);
            }
            let key = match pick(14) {
                0 => others.clone(),
                1 => own[..own.len() - 4].to_owned(),
                2 => format!("{own}="),
                3 => own.to_uppercase(),
                4 => own.replace(' ', "\t "),
                _ => own.clone(),
            };
            let words = [PRINCIPALS[pick(PRINCIPALS.len())], &options, &key, ["", "a comment", "# c", "\r"][pick(4)]];
            let words = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>();
            text += &words.join([" ", " ", "\t", "  "][pick(4)]);
            text += ["\n", "\n", "\n", "\r\n", "\r", "\0\n", ""][pick(7)];
        }
        let (ours_at, theirs_at) = [
            ("2026-07-01T04:30:00Z", "-Overify-time=20260701043000Z"),
            ("2026-07-01T05:00:00.5Z", "-Overify-time=20260701050000Z"),
            ("2026-11-30T12:00:00Z", "-Overify-time=20261130120000Z"),
        ][pick(3)];
        fs::write(dir.join("allowed"), &text).unwrap();
        let mut stock = std::process::Command::new("ssh-keygen");
        stock.args([
            "-Y",
            "verify",
            "-f",
            "allowed",
            "-I",
            "wang@nongxin",
            "-n",
            "motiongear-seal",
            "-s",
            "sig",
            theirs_at,
        ]);
        fs::write(dir.join("message"), MESSAGE).unwrap();
        stock.current_dir(dir).env("TZ", "America/New_York").stdin(fs::File::open(dir.join("message")).unwrap());
        let theirs = stock.output().unwrap().status.success();
        let file = AllowedSigners::parse_in(&text, &zone).unwrap();
        let at = ours_at.parse().unwrap();
        let ours = file.check("wang@nongxin", signer.public_key(), Namespace::Seal, at).is_ok();
        assert_eq!(theirs, ours, "at {ours_at}: {text:?}");
        allowed += u32::from(ours);
    }
    assert!((20..cases - 20).contains(&allowed), "{allowed} of {cases}");
}

#[test]
fn protected_keys_ask_up_to_three_times() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["ed25519", "ecdsa"] {
        let file = keygen(dir.path(), kind, &["-t", kind, "-N", "geheim 密码"]);
        assert!(matches!(Signer::from_openssh(&file, None), Err(SignError::PassphraseNeeded)));
        let mut answers = vec!["geheim 密码", "wrong"];
        let mut ask = || Ok(answers.pop().unwrap().to_owned());
        let signer = Signer::from_openssh(&file, Some(&mut ask)).unwrap();
        verify(signer.sign(MESSAGE, Namespace::Erase).unwrap().as_bytes(), MESSAGE, Namespace::Erase).unwrap();
    }
    let file = fs::read(dir.path().join("ed25519")).unwrap();
    let mut asked = 0;
    let mut wrong = || {
        asked += 1;
        Ok("wrong".to_owned())
    };
    assert!(matches!(Signer::from_openssh(&file, Some(&mut wrong)), Err(SignError::WrongPassphrase)));
    assert_eq!(asked, 3);
    let mut broken = || Err(std::io::Error::other("no terminal"));
    assert!(matches!(Signer::from_openssh(&file, Some(&mut broken)), Err(SignError::Passphrase(_))));
    // One that we protected, ssh-keygen opens.
    let ours = Signer::generate_ed25519("").unwrap();
    write_private(&dir.path().join("ours"), ours.to_openssh(Some("abc")).unwrap().as_bytes());
    let public = ok(run(dir.path(), "ssh-keygen", &["-y", "-P", "abc", "-f", "ours"], b""));
    assert_eq!(String::from_utf8(public).unwrap().trim(), ours.public_key().to_openssh().unwrap());
}

#[test]
fn other_keys_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let error = |file: &[u8]| Signer::from_openssh(file, None).unwrap_err().to_string();
    let make = "make one with: ssh-keygen -t ed25519";
    let rsa = keygen(dir, "rsa", &["-t", "rsa", "-b", "2048", "-N", ""]);
    assert_eq!(error(&rsa), format!("Key: expected ed25519 or ECDSA (nistp256, nistp384), found ssh-rsa; {make}"));
    // Half of these have a short number.
    for number in 0..6 {
        let p521 = keygen(dir, &format!("p521-{number}"), &["-t", "ecdsa", "-b", "521", "-N", ""]);
        assert!(error(&p521).contains("found ecdsa-sha2-nistp521"), "{}", error(&p521));
    }
    let pem = keygen(dir, "pem", &["-t", "ecdsa", "-m", "PEM", "-N", ""]);
    assert!(error(&pem).contains("ssh-keygen -p -f FILE"), "{}", error(&pem));
    // What that advice gives is read.
    ok(run(dir, "ssh-keygen", &["-q", "-p", "-N", "", "-f", "pem"], b""));
    Signer::from_openssh(&fs::read(dir.join("pem")).unwrap(), None).unwrap();
    assert!(error(&fs::read(dir.join("rsa.pub")).unwrap()).contains("without .pub"));
    assert!(error(Identity::generate().to_file("now").as_bytes()).contains("an age identity"));
    assert!(error(b"").contains(make));
    assert!(error(&vec![b'x'; 100_000]).contains("a larger file"));
    // An RSA signature, which we could not make, is not accepted either.
    fs::write(dir.join("doc"), MESSAGE).unwrap();
    ok(run(dir, "ssh-keygen", &["-q", "-Y", "sign", "-f", "rsa", "-n", "motiongear-seal", "doc"], b""));
    let signature = fs::read(dir.join("doc.sig")).unwrap();
    assert!(matches!(verify(&signature, MESSAGE, Namespace::Seal), Err(SignError::KeyKind { .. })));
    assert!(matches!(verify(b"", MESSAGE, Namespace::Seal), Err(SignError::Malformed { .. })));
    assert!(matches!(verify(&vec![b'-'; 70_000], MESSAGE, Namespace::Seal), Err(SignError::Malformed { .. })));
    assert!(matches!(
        verify(b"-----BEGIN SSH SIGNATURE-----\n", MESSAGE, Namespace::Seal),
        Err(SignError::Malformed { .. })
    ));
}

#[test]
fn envelopes_open_with_stock_age_and_theirs_with_us() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // One identity made by stock age-keygen, one by us.
    let theirs = ok(run::<&str>(dir, "age-keygen", &[], b""));
    write_private(&dir.join("theirs"), &theirs);
    let escrow = Identity::generate();
    write_private(&dir.join("ours"), escrow.to_file("2026-11-20").as_bytes());
    let public = ok(run(dir, "age-keygen", &["-y", "ours"], b""));
    assert_eq!(String::from_utf8(public).unwrap().trim(), escrow.recipient().to_string());
    let theirs = Identity::parse_file(&theirs).unwrap();
    let recipients = [theirs[0].recipient(), escrow.recipient()];

    let meta = EnvelopeMeta::new(Uuid::from_u128(7), 3);
    let key = ContentKey::from_bytes([0xa5; 32]);
    let envelope = wrap_key(&key, &meta, &recipients).unwrap();
    let plain = format!(
        "{{\"format\":1,\"shipment\":\"00000000-0000-0000-0000-000000000007\",\"process\":3,\"suite\":\"aes-256-gcm\",\"key\":\"{}\"}}\n",
        "a5".repeat(32)
    );
    for identity in ["theirs", "ours"] {
        let shown = ok(run(dir, "age", &["-d", "-i", identity], &envelope));
        assert_eq!(String::from_utf8(shown).unwrap(), plain);
    }
    for identities in [&theirs[..], std::slice::from_ref(&escrow)] {
        assert_eq!(unwrap_key(&envelope, identities, &meta).unwrap().as_bytes(), key.as_bytes());
    }
    let made = ok(run(dir, "age", &["-r", &recipients[0].to_string()], plain.as_bytes()));
    assert_eq!(unwrap_key(&made, &theirs, &meta).unwrap().as_bytes(), key.as_bytes());
}

#[test]
fn envelopes_about_anything_else_are_refused() {
    let identity = Identity::generate();
    let identities = [identity.clone()];
    let meta = EnvelopeMeta::new(Uuid::from_u128(7), 3);
    let key = ContentKey::generate().unwrap();
    assert_eq!(format!("{key:?} {identity:?}"), format!("ContentKey(…) Identity(of {})", identity.recipient()));
    let envelope = wrap_key(&key, &meta, &[identity.recipient()]).unwrap();
    let field = |expected: &EnvelopeMeta| match unwrap_key(&envelope, &identities, expected) {
        Err(EnvelopeError::Contents { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&EnvelopeMeta::new(Uuid::from_u128(8), 3)), "shipment");
    assert_eq!(field(&EnvelopeMeta::new(Uuid::from_u128(7), 4)), "process");
    assert_eq!(field(&EnvelopeMeta { suite: "sm4-gcm".to_owned(), ..meta.clone() }), "suite");
    assert!(matches!(
        unwrap_key(&envelope, &[Identity::generate()], &meta),
        Err(EnvelopeError::NoMatch { identities: 1, .. })
    ));
    assert!(matches!(unwrap_key(&envelope, &[], &meta), Err(EnvelopeError::NoMatch { .. })));
    assert!(matches!(unwrap_key(&vec![0; 70_000], &identities, &meta), Err(EnvelopeError::Damaged { .. })));
    for cut in 0..envelope.len() {
        assert!(
            matches!(unwrap_key(&envelope[..cut], &identities, &meta), Err(EnvelopeError::Damaged { .. })),
            "{cut}"
        );
    }
    for flip in 0..envelope.len() {
        let mut changed = envelope.clone();
        changed[flip] ^= 1;
        assert!(unwrap_key(&changed, &identities, &meta).is_err(), "{flip}");
    }
    let hex = "a5".repeat(32);
    let id = "00000000-0000-0000-0000-000000000007";
    for plain in [
        String::new(),
        "{}".to_owned(),
        format!(r#"{{"format":2,"shipment":"{id}","process":3,"suite":"aes-256-gcm","key":"{hex}"}}"#),
        format!(r#"{{"format":1,"shipment":"{id}","process":3,"suite":"aes-256-gcm","key":"{hex}","more":1}}"#),
        format!(r#"{{"format":1,"format":1,"shipment":"{id}","process":3,"suite":"aes-256-gcm","key":"{hex}"}}"#),
        format!(r#"{{"format":1,"shipment":"{id}","process":3,"suite":"aes-256-gcm","key":"{}"}}"#, hex.to_uppercase()),
        format!(r#"{{"format":1,"shipment":"{id}","process":3,"suite":"aes-256-gcm","key":"{}"}}"#, &hex[2..]),
        format!(r#"{{"format":1,"shipment":"{id}","process":-3,"suite":"aes-256-gcm","key":"{hex}"}}"#),
        format!(r#"{{"format":1,"shipment":"{id}","process":3,"suite":"aes-256-gcm","key":"{hex}"}} x"#),
        " ".repeat(5000),
    ] {
        let mut envelope = Vec::new();
        encrypt_stream(plain.as_bytes(), &mut envelope, &[identity.recipient()]).unwrap();
        let error = unwrap_key(&envelope, &identities, &meta).unwrap_err();
        assert!(matches!(error, EnvelopeError::Contents { .. }), "{plain}: {error}");
        assert!(!error.to_string().contains("a5a5"), "{error}");
    }
}

#[test]
fn streams_go_both_ways_and_are_summed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let identity = Identity::generate();
    write_private(&dir.join("id"), identity.to_file("now").as_bytes());
    for len in [0usize, 1, 65_535, 65_536, 65_537, 300_000] {
        let plain: Vec<u8> = (0..len).map(|i| (i * 7 + (i >> 8)) as u8).collect();
        let mut cipher = Vec::new();
        let sums = encrypt_stream(&plain[..], &mut cipher, &[identity.recipient()]).unwrap();
        assert_eq!((sums.plain.bytes, sums.cipher.bytes), (len as u64, cipher.len() as u64));
        fs::write(dir.join("cipher"), &cipher).unwrap();
        fs::write(dir.join("plain"), &plain).unwrap();
        for (tool, file, digest) in [
            ("b3sum", "plain", sums.plain.blake3),
            ("b3sum", "cipher", sums.cipher.blake3),
            ("sha256sum", "plain", sums.plain.sha256),
            ("sha256sum", "cipher", sums.cipher.sha256),
        ] {
            let line = String::from_utf8(ok(run(dir, tool, &[file], b""))).unwrap();
            assert_eq!(line.split(' ').next(), Some(digest.to_string().as_str()), "{tool} {file}");
        }
        assert_eq!(ok(run(dir, "age", &["-d", "-i", "id", "cipher"], b"")), plain);
        let mut back = Vec::new();
        assert_eq!(decrypt_stream(&cipher[..], &mut back, &[Identity::generate(), identity.clone()]).unwrap(), sums);
        assert_eq!(back, plain);
        let theirs = ok(run(dir, "age", &["-r", &identity.recipient().to_string(), "plain"], b""));
        let mut back = Vec::new();
        let sums = decrypt_stream(&theirs[..], &mut back, std::slice::from_ref(&identity)).unwrap();
        assert_eq!((back, sums.cipher.bytes), (plain, theirs.len() as u64));
        // Cut short, lengthened or changed: never an end that looks like one.
        for bad in [&cipher[..cipher.len() - 1], &[&cipher[..], b"x"].concat(), &{
            let mut changed = cipher.clone();
            *changed.last_mut().unwrap() ^= 1;
            changed
        }] {
            assert!(decrypt_stream(bad, std::io::sink(), std::slice::from_ref(&identity)).is_err());
        }
    }
    // An endless header is not read into memory.
    let endless = std::io::Read::chain(&b"age-encryption.org/v1\n-> X25519 a\n"[..], std::io::repeat(b'A'));
    let error = decrypt_stream(endless, std::io::sink(), &[identity]).unwrap_err();
    assert!(matches!(error, EnvelopeError::Damaged { .. }), "{error}");
}

#[test]
fn recipients_and_identities_are_read_strictly() {
    let identity = Identity::generate();
    let text = identity.recipient().to_string();
    let recipient: Recipient = text.parse().unwrap();
    assert_eq!(recipient.to_string(), text);
    // A fixed one, so that the short form never changes.
    let known: Recipient = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa".parse().unwrap();
    assert_eq!(known.fingerprint(), "D7PK-D458-NECN-2J3M");
    let mut mistyped = text.clone();
    let last = if mistyped.pop() == Some('q') { 'p' } else { 'q' };
    mistyped.push(last);
    for bad in
        ["", "age1", &mistyped, &text.to_uppercase(), &format!(" {text}"), "ssh-ed25519 AAAA", &"age1".repeat(1000)]
    {
        assert!(bad.parse::<Recipient>().is_err(), "{bad}");
    }
    let file = identity.to_file("now");
    let secret = file.lines().last().unwrap();
    let error = secret.parse::<Recipient>().unwrap_err().to_string();
    assert!(!error.contains(&secret[20..30]), "{error}");

    let two = format!("# a\n\n  {secret}  \n{secret}\r\n");
    assert_eq!(Identity::parse_file(two.as_bytes()).unwrap().len(), 2);
    for bad in [
        "",
        "# only a comment\n",
        &text,
        "AGE-PLUGIN-X-1QQ",
        &secret[..50],
        "age-encryption.org/v1\n-> scrypt",
        &"#".repeat(70_000),
    ] {
        let error = Identity::parse_file(bad.as_bytes()).unwrap_err();
        assert!(matches!(error, EnvelopeError::Identity { .. }), "{bad}");
    }
    assert!(matches!(encrypt_stream(&b""[..], std::io::sink(), &[]), Err(EnvelopeError::RecipientCount(0))));
}

/// ssh-key 0.6 alone cannot read one ECDSA key in 256; ssh-keygen makes them.
#[test]
fn ecdsa_keys_with_a_short_number_sign_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    write_private(&dir.path().join("key"), SHORT_ECDSA.as_bytes());
    let public = String::from_utf8(ok(run(dir.path(), "ssh-keygen", &["-y", "-f", "key"], b""))).unwrap();
    for file in [SHORT_ECDSA, SHORT_ECDSA_PROTECTED] {
        let mut answers = vec!["abc", "wrong"];
        let mut ask = || Ok(answers.pop().unwrap().to_owned());
        let signer = Signer::from_openssh(file.as_bytes(), Some(&mut ask)).unwrap();
        assert!(public.starts_with(&signer.public_key().to_openssh().unwrap()), "{public}");
        let signature = signer.sign(MESSAGE, Namespace::Seal).unwrap();
        verify(signature.as_bytes(), MESSAGE, Namespace::Seal).unwrap();
        fs::write(dir.path().join("sig"), &signature).unwrap();
        let args = ["-Y", "check-novalidate", "-n", "motiongear-seal", "-s", "sig"];
        ok(run(dir.path(), "ssh-keygen", &args, MESSAGE));
        // Cut anywhere, it is refused and nothing panics.
        for cut in (0..file.len() - 40).step_by(7) {
            assert!(Signer::from_openssh(&file.as_bytes()[..cut], None).is_err());
        }
    }
}

const SHORT_ECDSA: &str = "\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAaAAAABNlY2RzYS
1zaGEyLW5pc3RwMjU2AAAACG5pc3RwMjU2AAAAQQRSkSoiPCIeCYCixRIbRRvxM3f8aJbx
Ti+vLll3I/WrhtYotYsiN8GcyfHyhcKS8HdmQIZaGT/uWTJiTYyQwtchAAAAoG3/+RFt//
kRAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBFKRKiI8Ih4JgKLF
EhtFG/Ezd/xolvFOL68uWXcj9auG1ii1iyI3wZzJ8fKFwpLwd2ZAhloZP+5ZMmJNjJDC1y
EAAAAfNP1E1jruOQm1W66ySg9QVQqAR83AZrhrEKzUmmrpbAAAAAVzaG9ydAECAwQ=
-----END OPENSSH PRIVATE KEY-----
";

/// The same under the passphrase "abc".
const SHORT_ECDSA_PROTECTED: &str = "\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABAaGEn33d
wNyZZrU8yu962RAAAAEAAAAAEAAABoAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlz
dHAyNTYAAABBBFKRKiI8Ih4JgKLFEhtFG/Ezd/xolvFOL68uWXcj9auG1ii1iyI3wZzJ8f
KFwpLwd2ZAhloZP+5ZMmJNjJDC1yEAAACgHTFwEEE6WsH+Ohizmdg4+REq2wGRc8rtxrgP
cFZRXOOVebZEv9yC80Lr1gmeLmAGbSJrbvIBNcl5lbNfkZdgZ3/yeExd9vjUwpvDbpiZwr
AOr/EasAXlJVlaJ81eFM35sc/chaAEHED0WvfmHC0iXZ6AsdNbA3F3hCJfwwZbmuNwsUo8
injwWAjPePUZ430Il9UGqmymY/0Fi02XooWYZw==
-----END OPENSSH PRIVATE KEY-----
";
