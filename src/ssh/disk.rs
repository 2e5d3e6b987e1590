//! A disk of another machine as a disk to read.

use super::channel::Channel;
use super::queue::{SshQueue, Way};
use super::shell::Hello;
use super::{Place, size};
use crate::error::{Error, IoContext, Result};
use crate::io::{BlockIo, Engine, Probe, Readable};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Channels to one disk: each costs the far machine a process that encrypts.
const CHANNELS: usize = 4;
/// What another channel is worth its handshake for, bytes.
const CHANNEL_BYTES: u64 = 16 << 20;

/// Between the attempts to be let in, seconds.
const AGAIN_SECONDS: [u64; 5] = [1, 2, 3, 5, 8];

/// A disk that was found, and its size.
#[derive(Debug)]
pub struct SshDisk(Way);

impl SshDisk {
    /// Connects and finds out how large the disk is; also a reader of a few bytes here and there, over the same connection.
    ///
    /// # Errors
    /// ssh does not get in; there is no `dd`, nothing at the path, or no disk; it may not be read; its size cannot be found.
    pub fn open(place: &Place) -> Result<(SshDisk, Probe)> {
        let (mut channel, hello, stop) = connect(place)?;
        let bytes = size::find(&mut channel, &hello).context(|| format!("Source {place}"))?;
        let Hello { direct, host, inode, .. } = hello;
        let way = Way { place: place.clone(), bytes, direct, host, inode };
        let queue = SshQueue::new(&way, channel, 0, stop).context(|| format!("Source {place}"))?;
        let probe = Probe::new(Box::new(queue), bytes)?;
        Ok((SshDisk(way), probe))
    }

    /// What its machine says of itself: machine-id or host name.
    pub fn host(&self) -> Option<String> {
        self.0.host.clone()
    }

    /// Of a file, its inode there.
    pub fn inode(&self) -> Option<u64> {
        self.0.inode
    }

    /// Whether the far kernel may answer with what it kept of an earlier read.
    pub fn is_cached(&self) -> bool {
        !self.0.direct
    }
}

fn connect(place: &Place) -> Result<(Channel, Hello, Arc<AtomicBool>)> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut pauses = AGAIN_SECONDS.iter();
    let (channel, hello) = loop {
        match (Channel::open(place, stop.clone()), pauses.next()) {
            (Err(error), Some(pause)) if is_turned_away(&error) => {
                tracing::debug!(%place, %error, "turned away; once more");
                std::thread::sleep(Duration::from_secs(*pause));
            }
            (opened, _) => break opened?,
        }
    };
    expect_disk(place, &hello)?;
    Ok((channel, hello, stop))
}

/// Whether sshd hung up before it asked who comes: it limits how many may be at that point (MaxStartups), and one that comes a
/// little later is let in.
fn is_turned_away(error: &Error) -> bool {
    const WORDS: [&str; 3] = ["exchange_identification", "Connection closed by", "Connection reset by"];
    let said = error.io_cause().filter(|cause| super::is_lost(cause)).map(io::Error::to_string).unwrap_or_default();
    WORDS.iter().any(|words| said.contains(words))
}

fn expect_disk(place: &Place, hello: &Hello) -> Result<()> {
    let (host, first) = (place.host(), &hello.first);
    let found = match hello.kind.as_str() {
        "block" | "character" | "file" | "other" => None,
        "directory" => Some("a directory"),
        "pipe" => Some("a named pipe"),
        _ => Some("something that it has no word for"),
    };
    let list = format!("list its disks, on Linux: ssh {host} cat /proc/partitions");
    if let Some(found) = found {
        return Err(Error::usage(format!("Source {place}: expected a disk there, found {found}")).next(list));
    }
    if first.status == 0 {
        return Ok(());
    }
    let error = first.error();
    if error.raw_os_error() == Some(libc::EIO) && hello.kind != "other" {
        // Its first page is bad; the rest may be read.
        return Ok(());
    }
    let next = match first.status {
        127 => format!("there is no dd on the path of a plain sh: ssh {host} 'command -v dd'"),
        _ if first.words.contains("ermission denied") => {
            format!(
                "log in as somebody who may read it (root, or a member of the group disk): ssh:USER@{}:…",
                place.machine()
            )
        }
        _ => list,
    };
    Err(Error::io(format!("Source {place}: it cannot be read there"), io::Error::other(error.to_string())).next(next))
}

impl Readable for SshDisk {
    fn bytes(&self) -> Result<u64> {
        Ok(self.0.bytes)
    }

    fn queue(self: Arc<Self>, _: Engine, depth: usize) -> Result<Box<dyn BlockIo>> {
        let (first, hello, stop) = connect(&self.0.place)?;
        if !self.0.leads_to(&hello) {
            return Err(Error::failed(format!(
                "Source {} is not the same disk any more: another machine or file answers by this name",
                self.0.place
            ))
            .next("give each machine a name of its own in ssh's configuration"));
        }
        let worth = usize::try_from(self.0.bytes / CHANNEL_BYTES).unwrap_or(CHANNELS);
        let more = CHANNELS.min(depth).min(worth).saturating_sub(1);
        let queue = SshQueue::new(&self.0, first, more, stop).context(|| format!("Source {}", self.0.place))?;
        Ok(Box::new(queue))
    }

    fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        // Nobody there knows of holes.
        Ok((offset < self.0.bytes).then_some((offset, self.0.bytes)))
    }

    fn unit(&self) -> u64 {
        512
    }

    fn is_direct(&self) -> bool {
        self.0.direct
    }

    fn is_far(&self) -> bool {
        true
    }

    fn is_of_another_host(&self) -> bool {
        true
    }

    fn is_lost(&self, error: &io::Error) -> bool {
        super::is_lost(error)
    }
}
