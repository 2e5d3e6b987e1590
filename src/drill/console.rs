//! The machine's serial console: kept up to a bound, and listened to for what tells that the machine is up. Everything on it comes from a
//! machine that may be anything.

use super::folder::MAX_SERIAL_BYTES;
use super::record::Sign;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest line that is looked at, bytes.
const MAX_LINE_BYTES: usize = 4096;
/// So long must a line stand there without an end to be a prompt: what is printed goes on before.
const PROMPT_STANDS: Duration = Duration::from_millis(400);
/// Fewer bytes may be the same by chance.
const LEAST_OVERLAP_BYTES: usize = 64;

/// What was heard so far.
#[derive(Default)]
struct Heard {
    /// The last line, without its colours.
    line: Vec<u8>,
    /// Within an escape sequence.
    escape: Escape,
    /// When the last byte came.
    last: Option<Instant>,
    /// When the marker was complete.
    marker: Option<Instant>,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Escape {
    #[default]
    None,
    Begun,
    Sequence,
}

/// Keeps what a console says, and listens to it.
pub struct Ear {
    heard: Arc<Mutex<Heard>>,
    log: File,
    kept: u64,
    marker: Vec<u8>,
    window: Vec<u8>,
}

impl Ear {
    /// Keeps it in `log`, which must not be there yet.
    ///
    /// # Errors
    /// The log cannot be made.
    pub fn new(log: &Path, marker: Option<String>) -> std::io::Result<Ear> {
        let log = File::options().write(true).create_new(true).open(log)?;
        let marker = marker.unwrap_or_default().into_bytes();
        Ok(Ear { heard: Arc::default(), log, kept: 0, marker, window: Vec::new() })
    }

    /// What the console says next.
    pub fn take(&mut self, piece: &[u8]) {
        let room = usize::try_from(MAX_SERIAL_BYTES - self.kept).unwrap_or(0).min(piece.len());
        // A full disk must not cost what is seen.
        if room > 0 && self.log.write_all(&piece[..room]).is_ok() {
            self.kept += room as u64;
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.take(piece);
        if !self.marker.is_empty() && heard.marker.is_none() {
            self.window.extend_from_slice(piece);
            if self.window.windows(self.marker.len()).any(|at| at == self.marker) {
                heard.marker = Some(Instant::now());
            }
            let over = self.window.len().saturating_sub(self.marker.len());
            self.window.drain(..over);
        }
    }

    /// Makes what was kept durable, as far as the disk lets us.
    pub fn sync(&self) {
        let _ = self.log.sync_data();
    }

    /// What was seen, and when; a prompt must have stood for so long.
    pub fn sign(&self, stands: Duration) -> Option<(Sign, Instant)> {
        sign(&self.heard, !self.marker.is_empty(), stands)
    }
}

fn sign(heard: &Mutex<Heard>, marker: bool, stands: Duration) -> Option<(Sign, Instant)> {
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    match marker {
        true => heard.marker.map(|at| (Sign::Marker, at)),
        false => heard.last.filter(|at| at.elapsed() >= stands && heard.asks()).map(|at| (Sign::Login, at)),
    }
}

/// A console of this host that is listened to.
pub struct Console {
    heard: Arc<Mutex<Heard>>,
    marker: bool,
}

impl Console {
    /// Waits in a thread for QEMU to connect to `listener`, and keeps what comes in `log`.
    ///
    /// # Errors
    /// The log cannot be made.
    pub fn listen(listener: UnixListener, log: &Path, marker: Option<String>) -> std::io::Result<Console> {
        let mut ear = Ear::new(log, marker)?;
        let console = Console { heard: ear.heard.clone(), marker: !ear.marker.is_empty() };
        std::thread::Builder::new().name("serial".into()).spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut piece = [0; 4096];
            while let Ok(got @ 1..) = stream.read(&mut piece) {
                ear.take(&piece[..got]);
            }
            ear.sync();
        })?;
        Ok(console)
    }

    /// What was seen, and when.
    pub fn sign(&self) -> Option<(Sign, Instant)> {
        sign(&self.heard, self.marker, PROMPT_STANDS)
    }
}

/// What of `now` was not in `before`: both are the end of the same console, `now` the later one. `None` where more was said in between
/// than one answer holds: then all of `now` is new, and something is missing before it.
pub fn new_part<'a>(before: &str, now: &'a str) -> Option<&'a str> {
    if let Some(new) = now.strip_prefix(before) {
        return Some(new);
    }
    // The beginning of `before` is gone: its rest is how `now` begins. The longest rest is the right one.
    let at = before.char_indices().map(|(at, _)| at).filter(|at| before.len() - at >= LEAST_OVERLAP_BYTES);
    at.map(|at| &before[at..]).find_map(|rest| now.strip_prefix(rest))
}

impl Heard {
    fn take(&mut self, piece: &[u8]) {
        self.last = Some(Instant::now());
        for byte in piece {
            self.escape = match (self.escape, byte) {
                (_, 0x1b) => Escape::Begun,
                (Escape::Begun, b'[') => Escape::Sequence,
                (Escape::Begun, _) => Escape::None,
                (Escape::Sequence, 0x40..=0x7e) => Escape::None,
                (Escape::Sequence, _) => Escape::Sequence,
                (Escape::None, b'\n' | b'\r') => {
                    self.line.clear();
                    Escape::None
                }
                (Escape::None, byte) => {
                    if self.line.len() < MAX_LINE_BYTES {
                        self.line.push(*byte);
                    }
                    Escape::None
                }
            };
        }
    }

    /// Whether the last line asks for a name: `db01 login: `.
    fn asks(&self) -> bool {
        self.line.trim_ascii_end().ends_with(b"login:")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn heard(pieces: &[&str]) -> Heard {
        let mut heard = Heard::default();
        pieces.iter().for_each(|piece| heard.take(piece.as_bytes()));
        heard
    }

    #[test]
    fn a_prompt_is_a_line_without_an_end() {
        assert!(heard(&["Debian GNU/Linux 12 db01 ttyS0\r\n\r\ndb01 lo", "gin: "]).asks());
        assert!(heard(&["\x1b[2J\x1b[1;1Hdb01 login:\x1b[0m "]).asks());
        assert!(!heard(&["Last login: Sun Nov 22 on tty1"]).asks());
        assert!(!heard(&["db01 login: \r\n"]).asks());
        assert!(!heard(&["login: root"]).asks());
        assert!(!heard(&["", "\x1b[", "x"]).asks());
        // A machine without line ends costs no memory.
        let mut endless = Heard::default();
        (0..100).for_each(|_| endless.take(&[b'x'; 4096]));
        assert_eq!(endless.line.len(), MAX_LINE_BYTES);
    }

    #[test]
    fn answers_that_overlap_are_one_text() {
        let all: String = (0..1000).map(|line| format!("[{line}] a line of the kernel\n")).collect();
        assert_eq!(new_part("", "GRUB"), Some("GRUB"));
        assert_eq!(new_part("GRUB", "GRUB"), Some(""));
        assert_eq!(new_part(&all[..500], &all[..900]), Some(&all[500..900]));
        // The cloud gives the last bytes only.
        assert_eq!(new_part(&all[..900], &all[300..1300]), Some(&all[900..1300]));
        assert_eq!(new_part(&all[300..1300], &all[1000..2000]), Some(&all[1300..2000]));
        assert_eq!(new_part(&all[..900], &all[1000..2000]), None);
        assert_eq!(new_part(&all[..900], &all[890..2000]), None);
        // Characters of several bytes.
        let words = "数据中心的演练主机正在启动".repeat(9);
        assert_eq!(new_part(&words[..words.len() - 3], &words[3 * 13..]), Some("动"));
        // It is started anew: what it said before is gone.
        assert_eq!(new_part(&all[..900], ""), None);
    }

    #[test]
    fn a_marker_is_seen_across_pieces_and_the_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, log) = (dir.path().join("s"), dir.path().join("log"));
        let listen = || UnixListener::bind(&socket).unwrap();
        let console = Console::listen(listen(), &log, Some("bank is OPEN".into())).unwrap();
        let mut machine = UnixStream::connect(&socket).unwrap();
        machine.write_all(b"db01 login: bank is").unwrap();
        std::thread::sleep(PROMPT_STANDS * 2);
        assert!(console.sign().is_none());
        machine.write_all(b" OPEN\n").unwrap();
        let noise = [b'x'; 1 << 16];
        (0..MAX_SERIAL_BYTES / (1 << 16) + 4).for_each(|_| machine.write_all(&noise).unwrap());
        drop(machine);
        let since = Instant::now();
        while console.sign().is_none() || log.metadata().unwrap().len() < MAX_SERIAL_BYTES {
            assert!(since.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(console.sign().unwrap().0, Sign::Marker);
        assert_eq!(log.metadata().unwrap().len(), MAX_SERIAL_BYTES);
    }
}
