//! A machine that is reached by ssh: this one, through an sshd that ends with the test.

use crate::common::{Branch, Ran, run::Motiongear, tool, try_tool};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than any wait on a machine that has other work: the far side is a low priority of its own.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The sshd. Its name in the client's configuration is `far`; `farther` is another name for it.
pub struct Far {
    dir: PathBuf,
    port: u16,
    options: String,
    child: Option<Child>,
}

impl Far {
    /// With nothing special.
    pub fn plain(branch: &Branch) -> Far {
        Far::with(branch, "")
    }

    /// With further lines in its configuration.
    pub fn with(branch: &Branch, options: &str) -> Far {
        // What sshd wants to be there, and a system without systemd does not make.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let dir = branch.place.dir("far");
        for key in ["host", "client", "other"] {
            key_pair(&dir.join(key));
        }
        std::fs::copy(dir.join("client.pub"), dir.join("authorized")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut far = Far { dir, port, options: options.to_owned(), child: None };
        far.know("host");
        far.client("client");
        far.start();
        far
    }

    /// The client takes it for the machine with this key.
    pub fn know(&self, key: &str) {
        let public = std::fs::read_to_string(self.dir.join(format!("{key}.pub"))).unwrap();
        let key = public.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        std::fs::write(self.dir.join("known"), format!("[127.0.0.1]:{} {key}\n", self.port)).unwrap();
    }

    /// The client knows no machine.
    pub fn forget(&self) {
        std::fs::write(self.dir.join("known"), "").unwrap();
    }

    /// The client shows this key.
    pub fn client(&self, key: &str) {
        let text = format!(
            "Host far farther\n HostName 127.0.0.1\n Port {}\n User root\n IdentityFile {}\n IdentitiesOnly yes\n UserKnownHostsFile {}\n",
            self.port,
            self.dir.join(key).display(),
            self.dir.join("known").display()
        );
        std::fs::write(self.dir.join("config"), text).unwrap();
    }

    /// A directory of programs that come first on its path: name and what each is a link to.
    pub fn programs(branch: &Branch, name: &str, links: &[(&str, &str)]) -> String {
        let dir = branch.place.dir(name);
        for (link, to) in links {
            std::os::unix::fs::symlink(to, dir.join(link)).unwrap();
        }
        path_line(&dir)
    }

    /// The same of scripts.
    pub fn scripts(branch: &Branch, name: &str, scripts: &[(&str, &str)]) -> String {
        use std::os::unix::fs::PermissionsExt;
        let dir = branch.place.dir(name);
        for (script, text) in scripts {
            let path = branch.place.file(&format!("{name}/{script}"), format!("#!/bin/sh\n{text}\n"));
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        path_line(&dir)
    }

    pub fn start(&mut self) {
        let line = |name: &str, value: &str| format!("{name} {}\n", self.dir.join(value).display());
        let text = format!(
            "ListenAddress 127.0.0.1:{}\n{}{}PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 100\n{}",
            self.port,
            line("HostKey", "host"),
            line("AuthorizedKeysFile", "authorized"),
            self.options
        );
        let config = self.dir.join("sshd_config");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("sshd is missing; tests/run installs it"));
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(since.elapsed() < LIMIT, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL to it and to all that runs below it.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let below = below(child.id());
        let _ = child.kill();
        let _ = child.wait();
        signal(&below, libc::SIGKILL);
    }

    /// A signal to all that runs below it, but not to itself.
    pub fn signal(&self, number: i32) {
        signal(&self.running(), number);
    }

    /// What runs below it.
    pub fn running(&self) -> Vec<u32> {
        self.child.as_ref().map_or(Vec::new(), |child| below(child.id()))
    }

    /// Whether nothing runs below it any more, before long.
    pub fn is_left_alone(&self) -> bool {
        let since = Instant::now();
        while !self.running().is_empty() {
            if since.elapsed() > Duration::from_secs(10) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// The path there, as somebody types it.
    pub fn text(&self, path: &Path) -> PathBuf {
        format!("ssh:far:{}", path.display()).into()
    }

    /// The environment variable that leads ssh here.
    pub fn way(&self) -> String {
        format!("ssh -F {}", self.dir.join("config").display())
    }

    /// `seed` of these disks, to be started by the caller.
    pub fn seed_command(&self, branch: &Branch, disks: &[(&str, &Path)], extra: &[&str]) -> Motiongear {
        branch.seed_command(disks, extra).env("MOTIONGEAR_SSH", &self.way())
    }

    /// `seed` of one disk.
    pub fn seed(&self, branch: &Branch, disk: &Path, extra: &[&str]) -> Ran {
        self.seed_command(branch, &[("sda", &self.text(disk))], extra).run()
    }

    /// `scan` of all.
    pub fn scan(&self, branch: &Branch) -> Ran {
        branch.motiongear().args(["--json", "scan"]).env("MOTIONGEAR_SSH", &self.way()).run()
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.kill();
    }
}

fn path_line(dir: &Path) -> String {
    format!("SetEnv PATH={}:/usr/bin:/bin\n", dir.display())
}

fn key_pair(path: &Path) {
    tool("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", path.to_str().unwrap()]);
}

/// Children, and theirs.
fn below(pid: u32) -> Vec<u32> {
    let children = try_tool("pgrep", ["-P", &pid.to_string()]).stdout;
    let children = children.lines().filter_map(|line| line.trim().parse().ok());
    children.flat_map(|child| [vec![child], below(child)].concat()).collect()
}

fn signal(pids: &[u32], number: i32) {
    for pid in pids {
        // SAFETY: a plain system call; one that is gone is no harm.
        unsafe { libc::kill(*pid as i32, number) };
    }
}

/// Blocks in the live manifest; none while it is made.
pub fn committed(branch: &Branch) -> u64 {
    let made = std::fs::read_dir(branch.state.join("shipments")).is_ok_and(|mut found| found.next().is_some());
    let count = |manifest: PathBuf| try_tool("sqlite3", [manifest.as_os_str(), "SELECT count(*) FROM block".as_ref()]);
    if made { count(branch.live_manifest()).stdout.trim().parse().unwrap_or(0) } else { 0 }
}
