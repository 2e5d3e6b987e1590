//! A libvirtd of its own, and a machine in it with two qcow2 disks that its guest writes to, a raw one and an empty optical drive.
//!
//! It lives in namespaces: its directories lie over those of this host, so that it is a privileged one as banks have it, whose QEMU runs
//! as a user of its own; and all that it started ends with it.

use crate::common::{Branch, Motiongear, Mount, tool, try_tool};
use crate::qmp::guest::{Guest, kernel};
use serde_json::{Value, json};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Mounts its directories, hides /dev/kvm (which libvirt would try again at each start of a machine, where it is there and of no use), and
/// stays as the namespace's first process, which has to see to all that ends.
const WITHIN: &str = r#"set -e
for pair in /etc/libvirt:etc /run/libvirt:run /var/lib/libvirt:lib /var/cache/libvirt:cache /var/log/libvirt:log; do
    mkdir -p "${pair%:*}" "$1/${pair#*:}"
    mount --bind "$1/${pair#*:}" "${pair%:*}"
done
: > "$1/none"
chmod 0 "$1/none"
[ ! -e /dev/kvm ] || mount --bind "$1/none" /dev/kvm
libvirtd -p /run/libvirt/pid &
wait $!
"#;

pub struct Host {
    /// Of the first process of its namespaces.
    inner: Option<Child>,
    guest: Guest,
    uri: String,
    /// Where its QEMU may put what is overwritten.
    pub scratch: Mount,
    home: TempDir,
}

impl Deref for Host {
    type Target = Guest;
    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Host {
    /// With the machine `db01` running; its guest keeps to so many pages.
    pub fn writing(pages: u64) -> Host {
        // A repository may lie where no other user gets in.
        let dir = tempfile::Builder::new().prefix("mg-libvirt-").tempdir_in("/var/tmp").unwrap();
        let sub = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let etc = sub("etc", 0o755);
        // Before the namespaces are made: what is mounted later is not seen in them.
        let room = ["-t", "tmpfs", "-o", "size=400m,mode=711"];
        let scratch = Mount::new(Path::new("tmpfs"), &sub("scratch", 0o711), &room);
        let conf = "user = \"nobody\"\ngroup = \"nogroup\"\nsecurity_driver = \"none\"\ncgroup_controllers = [ ]\nnamespaces = [ ]\nremember_owner = 0\nstdio_handler = \"file\"\n";
        std::fs::write(etc.join("qemu.conf"), conf).unwrap();
        std::fs::write(etc.join("libvirtd.conf"), "auth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0700\"\n").unwrap();
        let guest = Guest::new(sub("machine", 0o711), pages);
        for disk in ["a", "b"] {
            let (raw, image) = (guest.dir.join("initial.raw"), guest.dir.join(format!("{disk}.qcow2")));
            tool("qemu-img", ["convert", "-q", "-O", "qcow2", raw.to_str().unwrap(), image.to_str().unwrap()]);
        }
        crate::common::noise(&guest.dir.join("c.raw"), 4 << 20, 9);
        std::fs::copy(kernel().join("vmlinuz"), guest.dir.join("vmlinuz")).unwrap();
        let uri = format!("qemu:///system?socket={}/run/libvirt-sock", dir.path().display());
        let mut host = Host { inner: None, guest, uri, scratch, home: dir };
        host.start_libvirt();
        host.virsh(&["define", host.domain().to_str().unwrap()]);
        host.switch_on();
        host
    }

    fn start_libvirt(&mut self) {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", WITHIN, "sh"]);
        let log = std::fs::File::create(self.home.path().join("libvirtd.log")).unwrap();
        command.arg(self.home.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.inner = Some(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")));
        self.waits_for("libvirtd", || try_tool("virsh", ["-c", &self.uri, "uri"]).code == 0);
    }

    fn domain(&self) -> PathBuf {
        let disk = |kind: &str, file: &str, target: &str| {
            let file = self.dir.join(file);
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{kind}'/><source file='{}'/><target dev='{target}' bus='virtio'/></disk>",
                file.display()
            )
        };
        let dir = self.dir.display();
        let xml = format!(
            "<domain type='qemu'><name>db01</name><memory unit='MiB'>128</memory>
            <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{dir}/vmlinuz</kernel><initrd>{dir}/initrd</initrd><cmdline>{}</cmdline></os>
            <features><acpi/></features><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
            {}{}{}<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
            <serial type='file'><source path='{dir}/serial'/></serial><memballoon model='none'/></devices></domain>",
            self.command_line(),
            disk("qcow2", "a.qcow2", "vda"),
            disk("qcow2", "b.qcow2", "vdb"),
            disk("raw", "c.raw", "vdc"),
        );
        let path = self.dir.join("domain.xml");
        std::fs::write(&path, xml).unwrap();
        path
    }

    /// Starts the machine, and returns when the guest writes.
    pub fn switch_on(&self) {
        let _ = std::fs::remove_file(self.dir.join("serial"));
        self.virsh(&["start", "db01"]);
        self.waits_for("the guest to write", || self.written() > 0);
    }

    pub fn virsh(&self, words: &[&str]) -> String {
        tool("virsh", [&["-q", "-c", &self.uri], words].concat())
    }

    /// Whether libvirt does it.
    pub fn can(&self, words: &[&str]) -> bool {
        try_tool("virsh", [&["-q", "-c", &self.uri], words].concat()).code == 0
    }

    /// A command of QEMU's, and its answer.
    pub fn qmp(&self, command: &str, arguments: Value) -> Value {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        let said: Value = serde_json::from_str(&self.virsh(&["qemu-monitor-command", "db01", &text])).unwrap();
        said["return"].clone()
    }

    /// SIGKILL to the machine's QEMU.
    pub fn crash(&self) {
        // No other has this directory in its command line.
        let pattern = format!("^/usr/bin/qemu-system-x86_64 .*{}/", self.dir.display());
        let found = tool("pgrep", ["-f", &pattern]);
        // SAFETY: a plain system call, for a process that libvirt has as its own.
        unsafe { libc::kill(found.trim().parse().expect("one process"), libc::SIGKILL) };
        self.waits_for("libvirt to see it", || self.virsh(&["domstate", "db01"]).trim() == "shut off");
    }

    /// A command of QEMU's, as its own people give it.
    pub fn hmp(&self, line: &str) -> String {
        self.virsh(&["qemu-monitor-command", "--hmp", "db01", line])
    }

    /// A call that finds this libvirt.
    pub fn asks(&self, command: Motiongear) -> Motiongear {
        command.env("LIBVIRT_DEFAULT_URI", &self.uri)
    }

    /// A seed of both disks.
    pub fn seed(&self, branch: &Branch, extra: &[&str]) -> Motiongear {
        let scratch = ["--scratch", self.scratch.path().to_str().unwrap()];
        let disks = [("sda", Path::new("libvirt:db01#vda")), ("sdb", Path::new("libvirt:db01#vdb"))];
        self.asks(branch.seed_command(&disks, &[&scratch, extra].concat()))
    }

    /// Names of its checkpoints.
    pub fn checkpoints(&self) -> Vec<String> {
        let said = self.virsh(&["checkpoint-list", "db01", "--name"]);
        said.split_whitespace().map(str::to_owned).collect()
    }

    pub fn has_job(&self) -> bool {
        self.can(&["backup-dumpxml", "db01"])
    }

    /// Files in the scratch directory.
    pub fn scratch_files(&self) -> usize {
        std::fs::read_dir(self.scratch.path()).unwrap().count()
    }

    /// No job in libvirt or in QEMU, no export, no file.
    #[track_caller]
    pub fn has_nothing_of_ours(&self) {
        assert!(!self.has_job());
        assert_eq!(self.scratch_files(), 0);
        let jobs = self.hmp("info block-jobs");
        assert!(jobs.contains("No active jobs"), "{jobs}");
        assert_eq!(self.qmp("query-block-exports", json!({})), json!([]));
    }

    /// The guest runs, and none of its writes failed.
    #[track_caller]
    pub fn goes_on(&self) {
        self.writes_on();
        assert_eq!(self.virsh(&["domstate", "db01"]).trim(), "running");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(inner) = &mut self.inner {
            // Its child, the namespace's first process, is killed with it, and with that all the rest.
            let _ = inner.kill();
            let _ = inner.wait();
        }
    }
}
