//! Goal: clients of others come in over TLS with the files that `serve --client-files` makes for them, and read the disk; with
//! other files nobody does. Method: QEMU's tools and libnbd's, with the very options that the manual shows.

use super::{MIB, Serving, pin};
use crate::common::{Motiongear, Place, b3sum, tool, try_tool};
use crate::shipment::{Disk, Recipe, data, make};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Files for a client of the server whose state directory is `state`; its pin.
fn files(state: &Path, dir: &Path) -> String {
    let made = Motiongear::new(state).args(["--json", "serve", "--client-files"]).arg(dir).run().ok();
    made["client"]["pin"].as_str().unwrap().to_owned()
}

/// The options by which QEMU's tools find an export over TLS.
fn qemu(dir: &Path, port: u16, export: &str) -> [String; 4] {
    [
        "--object".into(),
        format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", dir.display()),
        "--image-opts".into(),
        format!(
            "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export={export},tls-creds=tls0,tls-hostname=motiongear"
        ),
    ]
}

/// A line of the manual, with the server's name and port, the client's directory and the file to write put in.
fn shown(begins: &str, host: &str, port: u16, dir: &Path, out: &Path) -> String {
    let line = include_str!("../../MANUAL.md").lines().find(|line| line.starts_with(begins)).unwrap();
    let mut line = line.to_owned();
    for (shown, here) in [
        ("gate", host.to_owned()),
        ("10809", port.to_string()),
        ("/root/kvm2", dir.display().to_string()),
        ("db01.raw", out.display().to_string()),
    ] {
        assert_eq!(line.matches(shown).count(), 1, "{shown} in {line}");
        line = line.replace(shown, &here);
    }
    line
}

/// MANUAL: QEMU, nbdcopy and nbdinfo open a disk of a shipment over TLS, each side known by the other.
#[test]
fn qemu_and_libnbd_open_a_disk_over_tls_with_the_files_made_for_them() {
    let place = Place::new();
    let state = place.join("state");
    let block = 64 << 10;
    let disk = Disk::new("db01", "sda", data(33 * block, block, |at| at % 4 == 1));
    let made = make(place.path(), &[disk], &Recipe { encrypted: true, ..Recipe::default() });
    let digest = made.seal.disks[0].digest.to_string();
    let (dir, other) = (place.join("qemu"), place.join("other"));
    let (client, stranger) = (files(&state, &dir), files(&state, &other));
    assert!(client != stranger && client != pin(&state), "{client} {stranger}");
    // Nobody else reads the key, nothing is written over, and a dry run makes nothing.
    for (path, mode) in [(dir.clone(), 0o40700), (dir.join("client-key.pem"), 0o100_600)] {
        assert_eq!(path.metadata().unwrap().permissions().mode(), mode, "{}", path.display());
    }
    let again = Motiongear::new(&state).args(["--json", "serve", "--client-files"]).arg(&dir).run();
    again.refused(2, &["expected none yet, found one", "next: name a new one"]);
    let none = place.join("none");
    Motiongear::new(&state).args(["serve", "--dry-run", "--client-files"]).arg(&none).run();
    assert!(!none.exists());
    let command = Motiongear::new(&state).args(["--json", "serve", "--from"]).arg(&made.array).arg("--trust");
    let command = command.arg(&made.trust).arg("--identity").arg(&made.identity);
    let mut serving = Serving::start(command.args(["--listen", "127.0.0.1:0", "--client", &client]));
    let port = serving.port();
    let (copied, converted) = (place.join("copied.raw"), place.join("converted.raw"));
    let from = qemu(&dir, port, "db01/sda");
    let [object, credentials, options, image] = from.each_ref().map(String::as_str);
    tool("sh", ["-c", &shown("qemu-img convert --object", "127.0.0.1", port, &dir, &converted)]);
    assert_eq!(b3sum(&converted), digest);
    let file = format!("driver=raw,file.driver=file,file.filename={}", converted.display());
    let compared = tool("qemu-img", ["compare", object, credentials, options, image, &file]);
    assert!(compared.contains("Images are identical"), "{compared}");
    let stock = format!("nbds://localhost:{port}/db01/sda?tls-certificates={}", dir.display());
    tool("sh", ["-c", &shown("nbdcopy 'nbds://", "localhost", port, &dir, &copied)]);
    assert_eq!(b3sum(&copied), digest);
    let told = tool("nbdinfo", [stock.as_str()]);
    assert!(told.contains("with TLS") && told.contains(&(33 * block as u64).to_string()), "{told}");
    // Signed by the same server, and not let in: the pin decides.
    let refused = qemu(&other, port, "db01/sda");
    assert!(try_tool("qemu-img", ["info"].into_iter().chain(refused.iter().map(String::as_str))).code != 0);
    serving.until_said(&format!("A client with the pin {stranger} was refused"));
    // Whoever has a client's files cannot pass for the server.
    let (authority, certificate) = (dir.join("ca-cert.pem"), other.join("client-cert.pem"));
    let is_good_for = |purpose| {
        let files = [authority.to_str().unwrap(), certificate.to_str().unwrap()];
        try_tool("openssl", ["verify", "-purpose", purpose, "-CAfile", files[0], files[1]]).code == 0
    };
    assert!(is_good_for("sslclient") && !is_good_for("sslserver"));
    // Another server than the one that made the files is not believed.
    let far = place.join("far");
    let away = files(&far, &place.join("away"));
    let raw = place.file("raw", vec![7; MIB as usize]);
    let command = Motiongear::new(&far).args(["--json", "serve", "--listen", "127.0.0.1:0", "--client", &client]);
    let impostor = Serving::start(command.args(["--client", &away, "--disk", &format!("db01={}", raw.display())]));
    let from = qemu(&dir, impostor.port(), "db01");
    assert!(try_tool("qemu-img", ["info"].into_iter().chain(from.iter().map(String::as_str))).code != 0);
    let from = qemu(&place.join("away"), impostor.port(), "db01");
    tool("qemu-img", ["info"].into_iter().chain(from.iter().map(String::as_str)));
    impostor.end().ok();
    serving.end().ok();
}
