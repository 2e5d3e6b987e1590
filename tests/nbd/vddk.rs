//! Goal: a disk under VMware is read through nbdkit as its manual says, and the password stands on no command line. Method: a stand-in for
//! nbdkit's VDDK plugin, which takes the same parameters and refuses what VMware would; VMware's library itself is not to be had here.

use crate::common::{Branch, b3sum, disk, noise_at, sparse, sql, tool, try_tool};
use serde_json::Value;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const SECRET: &str = "rural-secret-4711";
const THUMBPRINT: &str = "AA:BB:0C";

/// A vCenter with one disk of one machine, and one snapshot of it.
struct Vcenter {
    branch: Branch,
    /// As of the snapshot.
    disk: PathBuf,
    path: String,
    said: PathBuf,
}

impl Vcenter {
    fn new() -> Vcenter {
        let branch = Branch::new();
        branch.init(&["--plaintext"]);
        let place = &branch.place;
        let (disk, live) = (place.join("snapshot-21.raw"), place.join("live.raw"));
        sparse(&disk, 8 << 20);
        let file = File::options().write(true).open(&disk).unwrap();
        noise_at(&file, 1 << 20, 3 << 20, 7);
        tool("cp", ["--sparse=always", disk.to_str().unwrap(), live.to_str().unwrap()]);
        noise_at(&File::options().write(true).open(&live).unwrap(), 2 << 20, 1 << 20, 8);
        let (bin, said) = (place.join("bin"), place.join("said"));
        std::fs::create_dir(&bin).unwrap();
        let real = tool("sh", ["-c", "command -v nbdkit"]);
        let run = |name: &str, text: String| {
            let path = bin.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            path
        };
        let known = place.join("parameters");
        let stand_in = run(
            "vddk.sh",
            format!(
                r#"#!/bin/sh
# Like nbdkit-vddk-plugin: nbdkit's "sh" plugin calls it with a method and its arguments.
known={known}
get() {{ sed -n "s/^$1=//p" "$known"; }}
refuse() {{ echo "VixDiskLib_ConnectEx: $*" >&2; exit 1; }}
disk() {{ if [ -n "$(get snapshot)" ]; then echo {place}/$(get snapshot).raw; else echo {live}; fi; }}
case "$1" in
load) : > "$known" ;;
config)
    case "$2" in
    libdir|server|user|vm|thumbprint|snapshot|transports|file|password) echo "$2=$3" >> "$known" ;;
    *) echo "unknown parameter '$2'" >&2; exit 1 ;;
    esac ;;
config_complete)
    for key in server user vm thumbprint file password; do [ -n "$(get $key)" ] || refuse "missing $key"; done ;;
thread_model) echo parallel ;;
get_ready) ;;
open)
    [ "$(get server) $(get user) $(get vm)" = "vcenter.bank administrator@vsphere.local moref=vm-16" ] || refuse "no such machine"
    [ "$(get thumbprint)" = {THUMBPRINT} ] || refuse "The host certificate chain is invalid"
    [ "$(get file)" = "[ssd 1] db01/db01.vmdk" ] || refuse "A file was not found"
    secret=$(get password); secret=${{secret#+}}
    [ "$(cat "$secret")" = {SECRET} ] || refuse "Cannot complete login due to an incorrect user name or password" ;;
get_size) stat -c %s "$(disk)" ;;
pread) dd if="$(disk)" iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=65536 status=none ;;
can_write) exit 3 ;;
*) exit 2 ;;
esac
"#,
                known = known.display(),
                place = place.path().display(),
                live = live.display(),
            ),
        );
        // nbdkit looks for plugins where it was built to: its name is all that is replaced.
        run(
            "nbdkit",
            format!(
                r#"#!/bin/sh
echo "$*" >> {said}
for word; do
    shift
    case "$word" in vddk) set -- "$@" sh {stand_in} ;; *) set -- "$@" "$word" ;; esac
done
exec {real} "$@"
"#,
                said = said.display(),
                stand_in = stand_in.display(),
                real = real.trim(),
            ),
        );
        let secret = place.file("vcenter.pw", SECRET);
        std::fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        Vcenter { branch, disk, path, said }
    }

    fn source(&self, extra: &str) -> String {
        let secret = self.branch.place.join("vcenter.pw");
        format!(
            "vddk:administrator%40vsphere.local@vcenter.bank/vm-16?file=[ssd%201]%20db01/db01.vmdk&thumbprint={THUMBPRINT}&password={}{extra}",
            secret.display()
        )
    }

    fn seed(&self, source: &str, facts: &str) -> crate::common::Ran {
        let plan =
            format!("[[machine]]\nname = \"db01\"\n{facts}\n[[machine.disk]]\nname = \"sda\"\nsource = \"{source}\"\n");
        let plan = self.branch.place.file("plan.toml", plan);
        let command = self.branch.motiongear().args(["--json", "seed"]).arg(&self.branch.array).arg("--plan").arg(plan);
        command.arg("--plaintext").env("PATH", &self.path).run()
    }
}

#[test]
fn a_disk_under_vmware_is_read_from_its_snapshot_and_the_password_stands_nowhere() {
    let vcenter = Vcenter::new();
    let facts = "[machine.facts]\nos = \"Windows Server 2008 R2\"\nfirmware = \"bios\"\nmemory = \"16GiB\"\n\
                 [[machine.facts.nic]]\nname = \"eth0\"\nmac = \"00:50:56:AA:00:01\"\naddresses = [\"10.2.0.5/24\"]";
    let seeded = vcenter.seed(&vcenter.source("&snapshot=snapshot-21"), facts).ok();
    assert_eq!(disk(&seeded["disks"], "sda")["consistency"], "consistent", "{seeded}");
    assert_eq!(disk(&seeded["disks"], "sda")["digest"], b3sum(&vcenter.disk));
    vcenter.branch.seal();
    // What it is, as the plan tells and not as this host is.
    let manifest = vcenter.branch.array.join("motiongear/manifest.db");
    let machine: Value = serde_json::from_str(&sql(&manifest, "SELECT inventory FROM machine")).unwrap();
    assert_eq!((&machine["known_by"], &machine["firmware"]), (&"plan".into(), &"bios".into()), "{machine}");
    assert_eq!(
        (&machine["nics"][0]["mac"], &machine["memory_bytes"]),
        (&"00:50:56:aa:00:01".into(), &(16u64 << 30).into())
    );
    assert_eq!(machine["hostname"], Value::Null);
    let said = std::fs::read_to_string(&vcenter.said).unwrap();
    assert!(said.contains("--readonly") && said.contains("snapshot=snapshot-21") && !said.contains(SECRET), "{said}");
    for place in [&vcenter.branch.state, &vcenter.branch.array] {
        let found = try_tool("grep", ["-rl", SECRET, place.to_str().unwrap()]);
        assert_eq!((found.code, found.stdout.as_str()), (1, ""), "the password is kept");
    }
}

#[test]
fn what_vmware_refuses_is_said_in_its_words() {
    let vcenter = Vcenter::new();
    let source = vcenter.source("");
    for (from, to, part) in [
        (THUMBPRINT, "AA:BB:0D", "certificate chain is invalid"),
        ("vm-16", "vm-17", "no such machine"),
        ("db01.vmdk", "db02.vmdk", "A file was not found"),
    ] {
        vcenter.seed(&source.replace(from, to), "").refused(1, &[part, "nbdkit"]);
    }
    let secret = vcenter.branch.place.join("vcenter.pw");
    std::fs::set_permissions(&secret, Permissions::from_mode(0o644)).unwrap();
    vcenter.seed(&source, "").refused(1, &["only its owner can read", "chmod 600"]);
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&secret, "wrong").unwrap();
    vcenter.seed(&source, "").refused(1, &["incorrect user name or password"]);
    std::fs::write(&secret, SECRET).unwrap();
    for (facts, part) in [("firmware = \"efi\"", "Line 4: facts.firmware"), ("colour = \"red\"", "colour")] {
        vcenter.seed(&source, &format!("[machine.facts]\n{facts}")).refused(2, &[part]);
    }
    // What is read while the machine writes is fuzzy; and nothing is known of the machine.
    let seeded = vcenter.seed(&source, "").ok();
    assert_eq!(disk(&seeded["disks"], "sda")["consistency"], "fuzzy");
    assert!(seeded["notes"].to_string().contains("Machine db01: nothing is known of it but its disks"), "{seeded}");
    // Without the plugin, which is not Debian's to give.
    let plain = Vcenter { path: std::env::var("PATH").unwrap(), ..Vcenter::new() };
    plain.seed(&plain.source(""), "").refused(1, &["vddk", "nbdkit"]);
}
