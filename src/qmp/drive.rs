//! A disk of a running machine, named by the machine's monitor and by what QEMU calls the disk.

use std::fmt;
use std::path::{Path, PathBuf};

/// `qmp:/SOCKET#DISK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Where the machine's QMP monitor listens.
    pub socket: PathBuf,
    /// Name of its device, block backend or node.
    pub disk: String,
}

impl Drive {
    /// Reads `qmp:/SOCKET#DISK`; `None` where no `qmp:` stands before. Without a disk it names none; whoever opens it is told what
    /// there are.
    pub fn parse(text: &str) -> Option<Drive> {
        let rest = text.strip_prefix("qmp:")?;
        // QEMU's own names for nodes begin with #.
        let (socket, disk) = rest.split_once('#').unwrap_or((rest, ""));
        Some(Drive { socket: socket.into(), disk: disk.to_owned() })
    }

    /// The socket's path with all links resolved, as it tells one machine from another.
    pub fn canonical_socket(&self) -> PathBuf {
        canonical(&self.socket)
    }
}

/// A socket's path with all links resolved, where it is there.
pub(super) fn canonical(socket: &Path) -> PathBuf {
    socket.canonicalize().unwrap_or_else(|_| socket.to_owned())
}

impl fmt::Display for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "qmp:{}#{}", self.socket.display(), self.disk)
    }
}
