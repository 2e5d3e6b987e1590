//! Goal: disks of another server of the branch are seeded as if they were here, by whom both sides know, and by nobody else. Method:
//! two state directories are two hosts; the disks go over TCP with TLS.

use super::{MIB, Serving, pin};
use crate::common::{Branch, LoopArray, Motiongear, b3sum, noise_at, sparse, sql, tool, try_tool};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// 48 MiB: a GPT, noise in every fourth mebibyte, holes elsewhere.
pub fn image(branch: &Branch, name: &str) -> PathBuf {
    let path = branch.place.join(name);
    sparse(&path, 48 * MIB);
    tool("sgdisk", ["-n1:2048:0", path.to_str().unwrap()]);
    let file = File::options().write(true).open(&path).unwrap();
    (4..44).step_by(4).for_each(|at| noise_at(&file, at * MIB, MIB, at));
    file.sync_all().unwrap();
    path
}

/// The other server's `serve`, without what it serves.
pub fn serve(branch: &Branch, listen: &str) -> Motiongear {
    let client = pin(&branch.state);
    Motiongear::new(&branch.place.join("far")).args(["--json", "serve", "--listen", listen, "--client", &client])
}

pub fn far_pin(branch: &Branch) -> String {
    pin(&branch.place.join("far"))
}

pub fn uri(branch: &Branch, port: u16, name: &str) -> String {
    format!("nbds://127.0.0.1:{port}/{name}?tls-pin={}", far_pin(branch))
}

fn disk(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

#[test]
fn a_disk_of_another_server_is_seeded_and_keeps_its_identity_wherever_it_is_reached() {
    let branch = Branch::ready();
    let (raw, other) = (image(&branch, "disk.raw"), image(&branch, "other.raw"));
    let serving = Serving::start(serve(&branch, "127.0.0.1:0").args(["--disk", &disk("data", &raw)]));
    let first = uri(&branch, serving.port(), "data");
    let seed = |uri: &str| branch.seed(&[("sda", Path::new(uri))], &["--point-in-time"]);
    let seeded = seed(&first).ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&raw));
    // The GPT's two copies and 10 blocks of noise.
    assert_eq!(seeded["disks"][0]["read_bytes"], 12 * MIB);
    let manifest = branch.live_manifest();
    let identity: Value = serde_json::from_str(&sql(&manifest, "SELECT identity FROM disk")).unwrap();
    assert!(identity["kind"] == "file" && identity["file"]["inode"].is_u64(), "{identity}");
    assert!(identity["machine"].as_str().is_some_and(|machine| !machine.is_empty()) && identity["export"].is_null());
    let facts: Value = serde_json::from_str(&sql(&manifest, "SELECT facts FROM disk")).unwrap();
    assert_eq!((&facts["resolved"], &facts["table"]["partitions"][0]["number"]), (&first.as_str().into(), &1.into()));
    let host: Value = serde_json::from_str(&sql(&manifest, "SELECT inventory FROM machine")).unwrap();
    assert!(host["kernel"].is_string(), "{host}");
    serving.end().ok();
    // Another name at another port, and the same disk all the same.
    let serving = Serving::start(serve(&branch, "127.0.0.1:0").args([
        "--disk",
        &disk("x", &raw),
        "--disk",
        &disk("data", &other),
    ]));
    let again = seed(&uri(&branch, serving.port(), "x")).ok();
    assert_eq!(again["disks"][0]["skipped_bytes"], 48 * MIB, "{again}");
    // The same name, and another disk.
    seed(&uri(&branch, serving.port(), "data")).refused(1, &["is not the same disk any more", "expected file inode"]);
    let served = serving.end().ok();
    assert_eq!(served["tls"], true);
}

/// MANUAL: the pins are told by paper, and nobody else comes in.
#[test]
fn who_is_not_known_by_its_pin_is_refused_on_both_sides() {
    let branch = Branch::ready();
    let raw = image(&branch, "disk.raw");
    let of = disk("sda", &raw);
    let far = || Motiongear::new(&branch.place.join("far")).args(["--json", "serve"]);
    let said = Motiongear::new(&branch.state).args(["serve", "--pin"]).run();
    assert!(said.code == 0 && said.stdout.contains(&pin(&branch.state)), "{said:?}");
    for (arguments, parts) in [
        (vec!["--listen", "127.0.0.1:0"], "expected the pin of a client that may read"),
        (vec!["--listen", "0.0.0.0:0", "--plain"], "with TLS only"),
        (
            vec!["--listen", "127.0.0.1:0", "--plain", "--client", "0123-4567-89AB-CDEF"],
            "expected no --client beside it",
        ),
        (vec!["--listen", "127.0.0.1:0", "--client", "0123-4567"], "expected a pin as XXXX"),
        (vec![], "--socket PATH or --listen"),
    ] {
        far().args(["--disk", &of]).args(arguments).run().refused(2, &[parts]);
    }
    let mut serving = Serving::start(serve(&branch, "127.0.0.1:0").args(["--disk", &of]));
    let port = serving.port();
    // Another server than the one on the paper.
    let wrong = format!("nbds://127.0.0.1:{port}/sda?tls-pin=0123-4567-89AB-CDEF");
    branch
        .seed(&[("sda", Path::new(&wrong))], &[])
        .refused(4, &["expected pin 0123-4567-89AB-CDEF, found", &far_pin(&branch), "next: ask that host for its pin"]);
    // Another client.
    let stranger = branch.place.join("stranger");
    let uri = uri(&branch, port, "sda");
    let stranger_pin = pin(&stranger);
    let recipients = motiongear_manifest::tree::Digest::of(format!("{}\n", branch.recipient).as_bytes());
    let code = motiongear_manifest::code::spoken_code(&recipients);
    Motiongear::new(&stranger)
        .args(["seed"])
        .arg(&branch.array)
        .args(["--machine", "db01", "--disk", &format!("sda={uri}"), "--recipient-code", &code])
        .run()
        .refused(4, &["it does not know this host", &format!("--client {stranger_pin}")]);
    serving.until_said(&format!("A client with the pin {stranger_pin} was refused"));
    // Without TLS nothing is said but that it is a must.
    let plain = format!("nbd://127.0.0.1:{port}/sda");
    branch.seed(&[("sda", Path::new(&plain))], &[]).refused(1, &["it wants TLS"]);
    assert!(try_tool("nbdinfo", ["--list", &format!("nbd://127.0.0.1:{port}/")]).code != 0);
    // Clients of others come in with the certificates as files.
    let pki = branch.place.dir("pki");
    let from = |state: &Path, kind: &str, out: &str| {
        let pem = state.join("tls/identity.pem");
        tool("openssl", [kind, "-in", pem.to_str().unwrap(), "-out", pki.join(out).to_str().unwrap()]);
    };
    from(&branch.place.join("far"), "x509", "ca-cert.pem");
    from(&branch.state, "x509", "client-cert.pem");
    from(&branch.state, "pkey", "client-key.pem");
    let stock = format!("nbds://localhost:{port}/sda?tls-certificates={}", pki.display());
    let copied = branch.place.join("copied.raw");
    tool("nbdcopy", [stock.as_str(), copied.to_str().unwrap()]);
    assert_eq!(b3sum(&copied), b3sum(&raw));
    serving.end().ok();
    // On this host alone, everybody may.
    let serving = Serving::start(far().args(["--listen", "127.0.0.1:0", "--plain", "--disk", &of]));
    let plain = format!("nbd://127.0.0.1:{}/sda", serving.port());
    let copied = branch.place.join("plain.raw");
    tool("nbdcopy", [plain.as_str(), copied.to_str().unwrap()]);
    assert_eq!(b3sum(&copied), b3sum(&raw));
    assert_eq!(serving.end().ok()["tls"], false);
}

#[test]
fn limits_hold_at_the_server_and_a_plan_with_hooks_is_refused() {
    let branch = Branch::ready();
    let raw = image(&branch, "disk.raw");
    let plan = |hooks: &str| {
        let text = "[limits]\nread = \"4MiB\"\n[[machine]]\nname = \"db07\"\n";
        let disk = format!("[[machine.disk]]\nname = \"sda\"\nsource = \"{}\"\n", raw.display());
        branch.place.file("plan.toml", format!("{text}{hooks}{disk}"))
    };
    let hooked = plan("[machine.hooks]\nsnapshot = [\"/bin/false\"]\n");
    let refused = serve(&branch, "127.0.0.1:0").arg("--plan").arg(&hooked).run();
    refused.refused(2, &["expected no hooks, found some", "--point-in-time"]);
    let serving = Serving::start(serve(&branch, "127.0.0.1:0").arg("--plan").arg(plan("")));
    let uri = uri(&branch, serving.port(), "sda");
    let since = Instant::now();
    let seeded = branch.seed(&[("sda", Path::new(&uri))], &["--point-in-time"]).ok();
    assert_eq!(seeded["disks"][0]["digest"], b3sum(&raw));
    // 12 MiB at 4 MiB a second, of which the first come at once.
    assert!(since.elapsed().as_secs_f64() > 1.5, "{:?}", since.elapsed());
    // Limits are changed while it runs, as of any job.
    Motiongear::new(&branch.place.join("far")).args(["limit", "--read", "off"]).run().ok();
    serving.end().ok();
}

/// A disk that also holds the state directory is a disk as any other here: the array is elsewhere.
#[test]
fn a_disk_that_carries_the_state_directory_is_served() {
    let branch = Branch::ready();
    let raw = branch.place.join("system.raw");
    let system = LoopArray::ext4(&raw, 32 * MIB, &branch.place.dir("system"));
    let far = system.dir().join("state");
    let command = Motiongear::new(&far).args(["serve", "--listen", "127.0.0.1:0", "--plain", "--dry-run", "--disk"]);
    let told = command.arg(format!("sda={}", system.device().display())).arg("--json").run().ok();
    assert_eq!(told["exports"][0]["bytes"], 32 * MIB);
}

#[test]
fn a_server_that_is_killed_is_waited_for_and_the_seed_goes_on_with_the_next_one() {
    let branch = Branch::ready();
    let raw = image(&branch, "disk.raw");
    let serving = Serving::start(serve(&branch, "127.0.0.1:0").args(["--disk", &disk("sda", &raw)]));
    let port = serving.port();
    let uri = uri(&branch, port, "sda");
    let mut running =
        branch.seed_command(&[("sda", Path::new(&uri))], &["--point-in-time", "--read-limit", "2MiB"]).start();
    assert!(running.until(super::LIMIT, |running| running.said().contains("\"read\"")), "{}", running.said());
    std::thread::sleep(std::time::Duration::from_secs(1));
    serving.kill();
    let said = |part: &'static str| move |running: &crate::common::Background| running.said().contains(part);
    assert!(running.until(super::LIMIT, said("its source has not answered for ")), "{}", running.said());
    let again = serve(&branch, &format!("127.0.0.1:{port}")).args(["--disk", &disk("sda", &raw)]);
    let serving = Serving::start(again);
    assert!(running.until(super::LIMIT, said("answers again")), "{}", running.said());
    branch.run(["limit", "--read", "off"]);
    assert_eq!(running.wait().ok()["disks"][0]["digest"], b3sum(&raw));
    serving.end().ok();
}
