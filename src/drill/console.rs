//! The machine's serial console: kept up to a bound, and listened to for what tells that the machine is up. Everything on it comes from a
//! machine that may be anything.

use super::folder::MAX_SERIAL_BYTES;
use super::record::Sign;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest line that is looked at, bytes.
const MAX_LINE_BYTES: usize = 4096;
/// So long must a line stand there without an end to be a prompt: what is printed goes on before.
const PROMPT_STANDS: Duration = Duration::from_millis(400);
/// Fewer bytes may be the same by chance.
const LEAST_OVERLAP_BYTES: usize = 64;
/// Lines that are kept to be quoted, and characters of each.
const LAST_LINES: usize = 8;
const MAX_QUOTED_CHARS: usize = 160;

/// Parts of lines after which a machine does not come up without a person: of kernels, initramfs, systemd, and loaders that find no system.
const FAILED_LINES: [&str; 14] = [
    "Kernel panic - not syncing",
    "Entering emergency mode",
    "You are in emergency mode",
    "Give root password for maintenance",
    "Press Enter for maintenance",
    "Cannot open access to console, the root account is locked",
    "Dropping to a shell!",
    "Operating System not found",
    "Missing operating system",
    "Error loading operating system",
    "No bootable device",
    "No bootable option or device was found",
    "BOOTMGR is missing",
    "NTLDR is missing",
];
/// Prompts that mean the same: the shell of an initramfs, a loader without a system.
const FAILED_PROMPTS: [&str; 5] = ["(initramfs)", "dracut:/#", "grub>", "grub rescue>", "Shell>"];

/// What a console tells of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is up.
    Up(Sign),
    /// It will not come up: the line that says so.
    Failed(String),
}

/// What was heard so far.
#[derive(Default)]
struct Heard {
    /// The last line, without its colours.
    line: Vec<u8>,
    /// Within an escape sequence.
    escape: Escape,
    /// When the last byte came.
    last: Option<Instant>,
    /// The text that is looked for; empty where it is a prompt.
    marker: Vec<u8>,
    /// As many of the last bytes as the marker has, without colours.
    window: VecDeque<u8>,
    /// When the marker was complete.
    marked: Option<Instant>,
    /// When a kernel message was printed behind a prompt.
    prompted: Option<Instant>,
    /// The first line that tells that it failed.
    failed: Option<(String, Instant)>,
    /// The last whole lines, oldest first.
    lines: VecDeque<String>,
}

/// Of ECMA-48: what belongs to the text and what moves the cursor or colours it.
#[derive(Default, Clone, Copy, PartialEq)]
enum Escape {
    #[default]
    None,
    Begun,
    /// One character more: a character set.
    Charset,
    /// `ESC [`: up to a letter.
    Sequence,
    /// `ESC ]` and the like: up to BEL or `ESC \`.
    Text,
}

/// Keeps what a console says, and listens to it.
pub struct Ear {
    heard: Arc<Mutex<Heard>>,
    log: File,
    kept: u64,
}

impl Ear {
    /// Keeps it in `log`, which must not be there yet.
    ///
    /// # Errors
    /// The log cannot be made.
    pub fn new(log: &Path, marker: Option<String>) -> std::io::Result<Ear> {
        let log = File::options().write(true).create_new(true).open(log)?;
        let heard = Heard { marker: marker.unwrap_or_default().into_bytes(), ..Heard::default() };
        Ok(Ear { heard: Arc::new(Mutex::new(heard)), log, kept: 0 })
    }

    /// What the console says next.
    pub fn take(&mut self, piece: &[u8]) {
        let room = usize::try_from(MAX_SERIAL_BYTES - self.kept).unwrap_or(0).min(piece.len());
        // A full disk must not cost what is seen.
        if room > 0 && self.log.write_all(&piece[..room]).is_ok() {
            self.kept += room as u64;
        }
        lock(&self.heard).take(piece);
    }

    /// Makes what was kept durable, as far as the disk lets us.
    pub fn sync(&self) {
        let _ = self.log.sync_data();
    }

    /// What it told first, and when; a prompt must have stood for `stands`.
    pub fn told(&self, stands: Duration) -> Option<(Told, Instant)> {
        lock(&self.heard).told(stands)
    }

    /// Its last lines, oldest first.
    pub fn last_lines(&self) -> Vec<String> {
        lock(&self.heard).last_lines()
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A console of this host that is listened to.
pub struct Console {
    heard: Arc<Mutex<Heard>>,
}

impl Console {
    /// Waits in a thread for QEMU to connect to `listener`, and keeps what comes in `log`.
    ///
    /// # Errors
    /// The log cannot be made.
    pub fn listen(listener: UnixListener, log: &Path, marker: Option<String>) -> std::io::Result<Console> {
        let mut ear = Ear::new(log, marker)?;
        let console = Console { heard: ear.heard.clone() };
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

    /// What it told first, and when.
    pub fn told(&self) -> Option<(Told, Instant)> {
        lock(&self.heard).told(PROMPT_STANDS)
    }

    /// Its last lines, oldest first.
    pub fn last_lines(&self) -> Vec<String> {
        lock(&self.heard).last_lines()
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
                (Escape::Begun, b']' | b'P' | b'X' | b'^' | b'_') => Escape::Text,
                (Escape::Begun, b'(' | b')' | b'*' | b'+' | b'#' | b'%' | b' ') => Escape::Charset,
                (Escape::Begun | Escape::Charset, _) => Escape::None,
                (Escape::Sequence, 0x40..=0x7e) => Escape::None,
                (Escape::Sequence, _) => Escape::Sequence,
                (Escape::Text, 0x07) => Escape::None,
                (Escape::Text, _) => Escape::Text,
                (Escape::None, byte) => {
                    self.take_plain(*byte);
                    Escape::None
                }
            };
        }
    }

    /// A byte of the text itself.
    fn take_plain(&mut self, byte: u8) {
        if !self.marker.is_empty() && self.marked.is_none() {
            self.window.push_back(byte);
            if self.window.len() > self.marker.len() {
                self.window.pop_front();
            }
            if self.window.iter().eq(&self.marker) {
                self.marked = Some(Instant::now());
            }
        }
        match byte {
            b'\n' | b'\r' => self.end_line(),
            _ if self.line.len() < MAX_LINE_BYTES => self.line.push(byte),
            _ => {}
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Some((before, _)) = split_kernel_message(&line)
            && is_login_prompt(before)
        {
            self.prompted = self.prompted.or_else(|| Some(Instant::now()));
        }
        let text = quotable(&line);
        if self.failed.is_none() && FAILED_LINES.iter().any(|part| text.contains(part)) {
            self.failed = Some((text.clone(), Instant::now()));
        }
        if !text.is_empty() {
            self.lines.push_back(text);
            if self.lines.len() > LAST_LINES {
                self.lines.pop_front();
            }
        }
    }

    fn told(&self, stands: Duration) -> Option<(Told, Instant)> {
        let standing = self.last.filter(|at| at.elapsed() >= stands);
        let up = match self.marker.is_empty() {
            false => self.marked.map(|at| (Told::Up(Sign::Marker), at)),
            true => {
                let prompted = self.prompted.or_else(|| standing.filter(|_| self.asks()));
                prompted.map(|at| (Told::Up(Sign::Login), at))
            }
        };
        up.or_else(|| self.failed.clone().map(|(line, at)| (Told::Failed(line), at))).or_else(|| {
            let (at, text) = (standing?, quotable(&self.line));
            let is_prompt = FAILED_PROMPTS.contains(&text.as_str());
            let stands_there = FAILED_LINES.iter().any(|part| text.contains(part));
            (is_prompt || stands_there).then_some((Told::Failed(text), at))
        })
    }

    /// Whether the last line asks for a name: `db01 login: `, perhaps with a message of the kernel behind it.
    fn asks(&self) -> bool {
        is_login_prompt(split_kernel_message(&self.line).map_or(&self.line[..], |(before, _)| before))
    }

    fn last_lines(&self) -> Vec<String> {
        let last = Some(quotable(&self.line)).filter(|text| !text.is_empty());
        let lines: Vec<String> = self.lines.iter().cloned().chain(last).collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].to_vec()
    }
}

/// As getty asks: at most the host's name before it. A sentence that ends so is no prompt.
fn is_login_prompt(line: &[u8]) -> bool {
    let line = String::from_utf8_lossy(line);
    let Some(before) = line.trim_end().strip_suffix("login:") else { return false };
    let spaced = before.is_empty() || before.ends_with([' ', '\t']);
    spaced && before.split_whitespace().count() <= 1
}

/// A line at the place where the kernel wrote into it: `[   17.699589] random: crng init done`.
fn split_kernel_message(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|byte| *byte == b'[')?;
    let (before, message) = line.split_at(at);
    let close = message.iter().position(|byte| *byte == b']')?;
    let time = std::str::from_utf8(&message[1..close]).ok()?.trim();
    let (seconds, micros) = time.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(seconds) && digits(micros)).then_some((before, message))
}

/// A line as it may be shown: of the machine's bytes only text, and not too much of it.
fn quotable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let plain: String = text.chars().filter(|c| !c.is_control()).take(MAX_QUOTED_CHARS).collect();
    plain.trim().to_owned()
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
        assert!(!heard(&["Waiting for the directory server before login:"]).asks());
        assert!(!heard(&["xlogin:"]).asks());
        // A prompt stays one when the kernel writes behind it, and goes on below it.
        assert!(heard(&["db01 login: [   17.699589] random: crng init done"]).asks());
        let written_over = heard(&["db01 login: [   17.699589] random: crng init done\r\n[  18.1] more\r\n"]);
        assert_eq!(told(&written_over), Some(Told::Up(Sign::Login)));
        assert_eq!(told(&heard(&["waiting before login: [   17.6] x\r\n"])), None);
        // A machine without line ends costs no memory.
        let mut endless = Heard::default();
        (0..100).for_each(|_| endless.take(&[b'x'; 4096]));
        assert_eq!(endless.line.len(), MAX_LINE_BYTES);
    }

    fn told(heard: &Heard) -> Option<Told> {
        heard.told(Duration::ZERO).map(|(told, _)| told)
    }

    #[test]
    fn a_marker_is_found_without_its_colours() {
        let mut heard = Heard { marker: b"Reached target multi-user.target".to_vec(), ..Heard::default() };
        heard.take(b"[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mmulti-user.tar");
        assert_eq!(told(&heard), None);
        heard.take(b"get\x1b[0m - Multi-User System.\r\n");
        assert_eq!(told(&heard), Some(Told::Up(Sign::Marker)));
    }

    #[test]
    fn a_machine_that_says_that_it_failed_is_heard() {
        for text in [
            "[   17.699589] Kernel panic - not syncing: VFS: Unable to mount root fs\r\nmore\r\n",
            "ALERT!  UUID=5 does not exist.  Dropping to a shell!\r\n",
            "BusyBox v1.35\r\n\r\n(initramfs) ",
            "error: no such partition.\r\ngrub rescue> ",
            "\x1b[2Jgrub> ",
            "Give root password for maintenance\r\n(or press Control-D to continue): ",
            "Press Enter for maintenance",
        ] {
            assert!(matches!(told(&heard(&[text])), Some(Told::Failed(_))), "{text}");
        }
        for text in ["run grub> later\r\n", "the (initramfs) is loaded", "Booting `Debian GNU/Linux'\r\n"] {
            assert_eq!(told(&heard(&[text])), None, "{text}");
        }
        let long = heard(&[&"\x1b[31mline \u{1}of a console\r\n".repeat(50), &"x".repeat(9999)]);
        let lines = long.last_lines();
        assert_eq!((lines.len(), lines[0].as_str()), (LAST_LINES, "line of a console"));
        assert!(lines.iter().all(|line| line.len() <= MAX_QUOTED_CHARS));
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
        assert!(console.told().is_none());
        machine.write_all(b" OPEN\n").unwrap();
        let noise = [b'x'; 1 << 16];
        (0..MAX_SERIAL_BYTES / (1 << 16) + 4).for_each(|_| machine.write_all(&noise).unwrap());
        drop(machine);
        let since = Instant::now();
        while console.told().is_none() || log.metadata().unwrap().len() < MAX_SERIAL_BYTES {
            assert!(since.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(console.told().unwrap().0, Told::Up(Sign::Marker));
        assert_eq!(log.metadata().unwrap().len(), MAX_SERIAL_BYTES);
    }
}
