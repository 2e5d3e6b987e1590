//! Disks of machines that are too old or too foreign for this program: read by the `sh` and `dd` that are there, over stock OpenSSH.
//! Nothing is installed there, nothing is written there, and nothing stays running there.
//!
//! A *channel* is one `ssh HOST sh`. The script goes in by standard input, so that the login shell (csh, rbash …) has nothing to
//! quote. It says hello, and then runs one `dd` for every line that it is sent: `TOKEN BS SKIP COUNT [FLAG]`.
//!
//! **Framing.** Nobody knows beforehand how much a `dd` will deliver: it stops at a bad sector, or where the disk ends. So what it
//! writes is followed by a line `TOKEN STATUS WORDS TOKEN`, and the token is random and new for every request: no disk can hold
//! it. There is one request at a time on a channel, so the far side is silent after that line, and whether an answer is complete
//! is seen by its last bytes; what lies before the line is what `dd` delivered, and its length is known exactly. `dd` without
//! `conv` delivers the range from its start without gaps, so fewer bytes than asked for are the first of them: never shifted,
//! never filled up. WORDS are its standard error, by way of the shell, for that of ssh is in no order with the data.
//!
//! **Numbers.** `skip` and `count` are in units of `bs`, a power of two that divides the range, so they stay small: old shells and
//! tools count in 32 bits. The script counts nothing itself. `bs` is in plain bytes; of operands that not every `dd` knows only
//! `iflag=direct` is used, where it was tried with success: past the page cache of the far kernel, which else would answer a
//! later scan with what it kept.
//!
//! * `place`: `ssh:HOST:/PATH`
//! * `shell`: the script, and what the far side says; no input or output
//! * `channel`: one ssh; `size`: how large a disk is
//! * `queue`: several channels as one [`crate::io::BlockIo`]; `disk`: a disk to read

mod channel;
mod disk;
mod place;
mod queue;
mod shell;
mod size;

pub use channel::use_command;
pub use disk::SshDisk;
pub use place::Place;

/// Whether `error` says that the way to a machine is lost: reached anew, it may go on.
pub fn is_lost(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::TimedOut)
}
