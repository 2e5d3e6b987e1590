//! Goal: secrets stay with their user, and nothing that is shown steers a terminal. Method: modes of files and directories are looked at
//! and changed as others could use them; a hook writes down what a child program gets.

use crate::common::{Branch, noise, sparse, write_at};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Everything below `dir` and itself, links aside.
fn all_below(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => all.extend(all_below(&entry.path())),
            kind if kind.is_file() => all.push(entry.path()),
            _ => {}
        }
    }
    all
}

/// A key or an identity that others can read, a trust file that others can write, files and state of another user: none is used.
#[test]
fn files_that_others_can_use_are_refused() {
    let branch = Branch::ready();
    let disk = branch.place.file("disk.img", vec![7u8; 1 << 20]);
    branch.seed(&[("sda", &disk)], &["--point-in-time"]).ok();
    let [key, trust, identity] = [&branch.key, &branch.trust, &branch.identity].map(|path| path.to_str().unwrap());
    let seal = || branch.on_array("seal", ["--key", key, "--trust", trust]);
    let check = || branch.on_array("verify", ["--trust", trust, "--identity", identity]);
    for mode in [0o640, 0o604] {
        set_mode(&branch.key, mode);
        seal().code(1);
    }
    set_mode(&branch.key, 0o600);
    assert!(!branch.on("seal.json").exists());
    for mode in [0o664, 0o646] {
        set_mode(&branch.trust, mode);
        seal().code(1);
    }
    set_mode(&branch.trust, 0o644);
    assert!(!branch.on("seal.json").exists());
    seal().ok();
    set_mode(&branch.identity, 0o644);
    check().code(1);
    set_mode(&branch.identity, 0o600);
    chown(&branch.trust, Some(65534), None).unwrap();
    check().code(1);
    chown(&branch.trust, Some(0), None).unwrap();
    check().ok();
    set_mode(&branch.state, 0o722);
    check().code(1);
    set_mode(&branch.state, 0o700);
    chown(&branch.state, Some(65534), None).unwrap();
    check().code(1);
}

/// What is written is for its user alone; a hook, as every child program, gets no password and leaves no core dump.
#[test]
fn what_is_written_is_for_its_user_alone_and_programs_get_no_password() {
    let branch = Branch::ready();
    let disk = branch.place.file("disk.img", vec![7u8; 1 << 20]);
    let seen = branch.place.join("seen");
    let plan = format!(
        "[[machine]]\nname = 'db01'\n[machine.hooks]\n\
         snapshot = ['sh', '-c', '(env; umask; ulimit -Hc) > {}', 'api-token-4711']\n\
         [[machine.disk]]\nname = 'sda'\nsource = '{}'\n",
        seen.display(),
        disk.display()
    );
    let plan = branch.place.file("plan.toml", plan);
    let seed = branch.motiongear().args(["--json", "seed"]).arg(&branch.array).arg("--plan").arg(plan);
    seed.env("OS_PASSWORD", "of-the-cloud").env("MY_TOKEN", "of-mine").run().ok();
    let got = std::fs::read_to_string(&seen).unwrap();
    assert!(got.contains("MOTIONGEAR_MACHINE=db01") && got.contains("PATH="), "{got}");
    assert!(!got.contains("of-the-cloud") && !got.contains("of-mine"), "{got}");
    assert!(got.ends_with("0077\n0\n"), "{got}");
    branch.seal();
    branch.on_array("verify", ["--trust", branch.trust.to_str().unwrap()]).ok();
    let out = branch.place.join("report");
    let key = branch.key.to_str().unwrap();
    let report = branch.motiongear().args(["--json", "report", "handover"]).arg(&branch.array);
    report.args(["--key", key, "--out"]).arg(&out).run().ok();
    for root in [branch.state.clone(), branch.on(""), out] {
        for path in all_below(&root) {
            let mode = path.metadata().unwrap().mode() & 0o7777;
            assert_eq!(mode & 0o077, 0, "{}: {mode:04o}", path.display());
            let bytes = if path.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            let told = bytes.windows(14).any(|window| window == b"api-token-4711");
            assert!(!told, "{}: it holds the hook's command line", path.display());
        }
    }
}

/// Names from an array, a peer or a command line move no cursor and turn no text round, on either stream; JSON means the same.
#[test]
fn what_reaches_a_terminal_cannot_steer_it() {
    let branch = Branch::new();
    let odd = "a\u{1b}[2J\u{9b}1A\u{202e}b\u{e0041}";
    let ran = branch.motiongear().args(["--json", "verify"]).arg(branch.place.join(odd)).run();
    let told = ran.code(1);
    assert!(told["error"]["message"].as_str().unwrap().contains(odd), "{told}");
    let disk = branch.place.join(odd);
    sparse(&disk, 1 << 20);
    let shown = branch.motiongear().arg("inspect").arg(&disk).run();
    for text in [&ran.stdout, &ran.stderr, &shown.stdout, &shown.stderr] {
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\u{e0041}']), "{text:?}");
    }
    assert!(shown.stdout.contains("\\u{1b}[2J"), "{}", shown.stdout);
}

/// Quiet is no progress; damage is said all the same.
#[test]
fn damage_is_said_also_where_all_else_is_quiet() {
    let branch = Branch::ready();
    let disk = branch.place.join("disk.img");
    noise(&disk, 4 << 20, 3);
    branch.seed(&[("sda", &disk)], &["--point-in-time"]).ok();
    branch.seal();
    let verify = || {
        let command = branch.motiongear().args(["--quiet", "verify"]).arg(&branch.array);
        command.arg("--trust").arg(&branch.trust).run()
    };
    let good = verify();
    good.ok();
    assert_eq!((good.stdout.as_str(), good.stderr.as_str()), ("", ""));
    write_at(&branch.packs()[0], 100_000, b"x");
    let bad = verify();
    bad.code(3);
    assert!(bad.stdout.is_empty() && bad.stderr.contains("00000001.pack"), "{}", bad.stderr);
}
