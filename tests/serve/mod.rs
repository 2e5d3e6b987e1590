//! `serve`: disks that others read from us, with the clients of the field: nbdcopy, qemu-img, qemu-io, and our own.
//!
//! * `from`: disks of a sealed shipment, unimported
//! * `stock`: clients of others, over TLS
//! * `sources`: disks of another server of the branch, both sides pinned
//! * `hang`: a disk that answers nothing, beside others
//! * `leaves`: what a scan of such a disk moves

mod from;
mod hang;
mod leaves;
mod sources;
mod stock;

use crate::common::{Background, Motiongear, Ran};
use motiongear::nbd::pin::Own;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// A server of ours that runs.
pub struct Serving(Background);

impl Serving {
    /// Starts it, and waits until it listens.
    #[track_caller]
    pub fn start(command: Motiongear) -> Serving {
        let mut running = command.start();
        let listens = running.until(LIMIT, |running| running.said().contains("Listening at "));
        assert!(listens, "it has ended: {:?}", running.wait());
        Serving(running)
    }

    /// Its port, where it listens at one.
    pub fn port(&self) -> u16 {
        let said = self.0.said();
        let at = said.split("Listening at ").nth(1).unwrap().split(';').next().unwrap();
        at.rsplit(':').next().unwrap().parse().unwrap()
    }

    pub fn until_said(&mut self, text: &str) {
        assert!(self.0.until(LIMIT, |running| running.said().contains(text)), "{}", self.0.said());
    }

    /// Ctrl-C.
    pub fn end(self) -> Ran {
        self.0.signal(libc::SIGINT);
        self.0.wait()
    }

    /// Ctrl-C; also the most memory it had, bytes.
    pub fn end_with_peak(self) -> (Ran, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
        (self.end(), kib * 1024)
    }

    /// SIGKILL.
    pub fn kill(self) {
        self.0.kill();
    }
}

/// The pin of the host whose state directory this is.
pub fn pin(state: &Path) -> String {
    Own::in_state(state).unwrap().pin().to_string()
}
