//! The machine's serial console: kept up to a bound, and listened to for what tells that the machine is up. Everything on it comes from a
//! machine that may be anything.

use super::record::{MAX_SERIAL_BYTES, Sign};
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

/// A console that is listened to.
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
        let mut log = File::options().write(true).create_new(true).open(log)?;
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let console = Console { heard: heard.clone(), marker: marker.is_some() };
        let marker = marker.unwrap_or_default().into_bytes();
        std::thread::Builder::new().name("serial".into()).spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let (mut piece, mut kept) = ([0; 4096], 0);
            let mut window: Vec<u8> = Vec::new();
            while let Ok(got @ 1..) = stream.read(&mut piece) {
                let piece = &piece[..got];
                let room = usize::try_from(MAX_SERIAL_BYTES - kept).unwrap_or(0).min(got);
                // A full disk must not cost what is seen.
                if room > 0 && log.write_all(&piece[..room]).is_ok() {
                    kept += room as u64;
                }
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.take(piece);
                if !marker.is_empty() && heard.marker.is_none() {
                    window.extend_from_slice(piece);
                    if window.windows(marker.len()).any(|at| at == marker) {
                        heard.marker = Some(Instant::now());
                    }
                    let over = window.len().saturating_sub(marker.len());
                    window.drain(..over);
                }
            }
            let _ = log.sync_data();
        })?;
        Ok(console)
    }

    /// What was seen, and when.
    pub fn sign(&self) -> Option<(Sign, Instant)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match self.marker {
            true => heard.marker.map(|at| (Sign::Marker, at)),
            false => heard.last.filter(|at| at.elapsed() >= PROMPT_STANDS && heard.asks()).map(|at| (Sign::Login, at)),
        }
    }
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
