//! Servers that end with the test.

use crate::common::tool;
use motiongear::nbd::{ALLOCATION, Connection, Style, Uri, connect};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const LIMIT: Duration = Duration::from_secs(30);

/// A server on a unix socket.
pub struct Server {
    /// `None` once it was killed.
    child: Option<Child>,
    pub socket: PathBuf,
}

impl Server {
    /// qemu-nbd beside the image.
    pub fn qemu(image: &Path, format: &str, extra: &[&str]) -> Server {
        Server::qemu_at(&image.with_extension("socket"), image, format, extra)
    }

    pub fn qemu_at(socket: &Path, image: &Path, format: &str, extra: &[&str]) -> Server {
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-e", "8", "-f", format, "-x", "disk", "-k"]).arg(socket).args(extra).arg(image);
        Server::start(command, socket)
    }

    /// nbdkit over a raw image, behind filters, read-only.
    pub fn nbdkit(image: &Path, extra: &[&str]) -> Server {
        Server::nbdkit_to_write(image, &[&["-r"], extra].concat())
    }

    /// As [`Server::nbdkit`], not read-only.
    pub fn nbdkit_to_write(image: &Path, extra: &[&str]) -> Server {
        let socket = image.with_extension("socket");
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(&socket).args(extra.iter().filter(|extra| extra.starts_with('-')));
        command.arg("file").arg(image).args(extra.iter().filter(|extra| !extra.starts_with('-')));
        Server::start(command, &socket)
    }

    /// qemu-nbd on a TCP port of this host.
    pub fn qemu_on_port(image: &Path, port: u16, extra: &[&str]) -> Server {
        let port = port.to_string();
        let mut command = Command::new("qemu-nbd");
        command
            .args(["-t", "-e", "8", "-f", "raw", "-x", "disk", "-b", "127.0.0.1", "-p", &port])
            .args(extra)
            .arg(image);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let server = Server { child: Some(child), socket: PathBuf::new() };
        let since = Instant::now();
        while std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
            assert!(since.elapsed() < LIMIT, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Anything that listens there by and by, with all that it starts.
    pub fn command(program: &str, arguments: &[&str], socket: &Path) -> Server {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(program);
        command.args(arguments).process_group(0);
        Server::start(command, socket)
    }

    fn start(mut command: Command, socket: &Path) -> Server {
        let child = command.stdin(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        let server = Server { child: Some(child), socket: socket.to_owned() };
        let since = Instant::now();
        while !listens(socket) {
            assert!(since.elapsed() < LIMIT, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub fn uri(&self) -> Uri {
        Uri::parse(&self.text()).unwrap()
    }

    /// The URI as somebody types it.
    pub fn text(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket.display())
    }

    pub fn session(&self, style: Style) -> Connection {
        connect(&self.uri(), &[ALLOCATION.to_owned()], style).unwrap()
    }

    pub fn signal(&self, number: i32) {
        // SAFETY: a plain system call on a child that was not waited for.
        unsafe { libc::kill(self.child.as_ref().unwrap().id() as i32, number) };
    }

    /// SIGKILL. Its socket would be in the way of the next one.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // SAFETY: as above; a group of its own, or none of this number.
        unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A certificate authority with the server's and a client's certificates, as QEMU wants them.
pub fn certificates(dir: &Path, host: &str) {
    std::fs::create_dir(dir).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9"];
    let (key, certificate) = (path("ca-key.pem"), path("ca-cert.pem"));
    tool("openssl", [&new[..], &["-x509", "-subj", "/CN=test CA", "-keyout", &key, "-out", &certificate]].concat());
    for (name, subject) in [("server", host), ("client", "engineer")] {
        let (own, out) = (path(&format!("{name}-key.pem")), path(&format!("{name}-cert.pem")));
        let (subj, alt) = (format!("/CN={subject}"), format!("subjectAltName=DNS:{subject}"));
        let signed = ["-CA", &certificate, "-CAkey", &key, "-addext", &alt, "-addext", "basicConstraints=CA:FALSE"];
        tool("openssl", [&new[..], &["-x509", "-subj", &subj, "-keyout", &own, "-out", &out], &signed[..]].concat());
    }
}

/// Whether somebody listens at a socket, without becoming one of its clients: proc_net_unix(5), flag `__SO_ACCEPTCON`.
fn listens(socket: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let at = socket.to_str().unwrap();
    sockets.lines().any(|line| line.ends_with(at) && line.split(' ').nth(3) == Some("00010000"))
}
