//! The bodies of the fuzz targets: everything that MotionGear reads and did not write, or did write where others could reach it.
//!
//! A target takes bytes and says whether the reader accepted what they stand for. It panics where the reader breaks a promise:
//! where what was accepted is not what `FORMAT.md` allows, or does not come back the same when it is written again. So that
//! bytes get past checksums and signatures, most targets do not read them raw: they are edits of something valid ([`Input`]),
//! after which the checksums are put right.
//!
//! libFuzzer runs these through `fuzz_targets/`, and `tests/fuzz_corpus.rs` replays the corpus through the very same functions.

pub mod allowed;
pub mod custody;
pub mod document;
pub mod envelope;
pub mod holder;
pub mod job;
pub mod manifest;
pub mod nbd;
pub mod pack;
pub mod partition;
pub mod plan;
pub mod record;
pub mod seal;
pub mod serve;
pub mod shipment;
pub mod signature;
pub mod superblock;

/// What a reader made of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It was refused with an error.
    Refused,
    /// It was taken.
    Accepted,
}

impl<T, E> From<&Result<T, E>> for Verdict {
    fn from(result: &Result<T, E>) -> Self {
        if result.is_ok() { Verdict::Accepted } else { Verdict::Refused }
    }
}

/// One target.
pub struct Target {
    /// The name of its program in `fuzz_targets/` and of its folder in `corpus/`.
    pub name: &'static str,
    /// Runs it on one input.
    pub run: fn(&[u8]) -> Verdict,
    /// Inputs to begin with; between them they reach every kind of thing that the target reads.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them, the most dangerous first.
pub const TARGETS: [Target; 16] = [
    Target { name: "record", run: record::run, seeds: record::seeds },
    Target { name: "manifest", run: manifest::run, seeds: manifest::seeds },
    Target { name: "seal", run: seal::run, seeds: seal::seeds },
    Target { name: "partition", run: partition::run, seeds: partition::seeds },
    Target { name: "plan", run: plan::run, seeds: plan::seeds },
    Target { name: "nbd", run: nbd::run, seeds: nbd::seeds },
    Target { name: "serve", run: serve::run, seeds: serve::seeds },
    Target { name: "envelope", run: envelope::run, seeds: envelope::seeds },
    Target { name: "shipment", run: shipment::run, seeds: shipment::seeds },
    Target { name: "custody", run: custody::run, seeds: custody::seeds },
    Target { name: "pack", run: pack::run, seeds: pack::seeds },
    Target { name: "signature", run: signature::run, seeds: signature::seeds },
    Target { name: "superblock", run: superblock::run, seeds: superblock::seeds },
    Target { name: "allowed", run: allowed::run, seeds: allowed::seeds },
    Target { name: "holder", run: holder::run, seeds: holder::seeds },
    Target { name: "job", run: job::run, seeds: job::seeds },
];

/// Writes the seeds of a target to the directory that `MOTIONGEAR_SEEDS` names, if it does; libFuzzer reads its corpus after this.
pub fn write_seeds(name: &str) {
    let (Some(folder), Some(target)) =
        (std::env::var_os("MOTIONGEAR_SEEDS"), TARGETS.iter().find(|target| target.name == name))
    else {
        return;
    };
    for (number, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(std::path::Path::new(&folder).join(format!("seed-{number:03}")), seed).unwrap();
    }
}

/// Takes an input apart from its front; what is missing is zero.
pub struct Input<'a>(&'a [u8]);

/// Most edits that one input makes: enough to be odd in many places, few enough to be quick.
const MAX_EDITS: usize = 64;
/// Longest thing that edits may make, bytes.
const MAX_EDITED: usize = 1 << 20;

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Input(data)
    }
    fn number<const N: usize>(&mut self) -> u64 {
        let (head, rest) = self.0.split_at(self.0.len().min(N));
        self.0 = rest;
        head.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
    pub fn u8(&mut self) -> u8 {
        self.number::<1>() as u8
    }
    pub fn u16(&mut self) -> u16 {
        self.number::<2>() as u16
    }
    pub fn u24(&mut self) -> usize {
        self.number::<3>() as usize
    }
    pub fn u64(&mut self) -> u64 {
        self.number::<8>()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Up to `most` bytes.
    pub fn take(&mut self, most: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(self.0.len().min(most));
        self.0 = rest;
        head
    }
    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Changes `bytes` as the rest of the input says; no rest changes nothing. `unit` is what is zeroed, moved and exchanged: a
    /// page of whatever `bytes` are.
    pub fn edit(&mut self, bytes: &mut Vec<u8>, unit: usize) {
        for _ in 0..MAX_EDITS {
            if self.is_empty() {
                return;
            }
            let (operation, at) = (self.u8(), self.u24());
            let len = bytes.len();
            let at = if len == 0 { 0 } else { at % len };
            let page = at / unit * unit;
            let page_end = (page + unit).min(len);
            match operation % 9 {
                // What most inputs are: other bytes in one place.
                0 | 1 => {
                    let count = usize::from(self.u8() % 32) + 1;
                    let new = self.take(count);
                    let end = (at + new.len()).min(len);
                    bytes[at..end].copy_from_slice(&new[..end - at]);
                }
                2 if len > 0 => bytes[at] ^= 1 << (self.u8() % 8),
                3 => bytes[page..page_end].fill(0),
                4 => {
                    let from = self.u24() % len.max(1) / unit * unit;
                    let taken = bytes[from..(from + unit).min(len)].to_vec();
                    let end = (page + taken.len()).min(len);
                    bytes[page..end].copy_from_slice(&taken[..end - page]);
                }
                5 => bytes.truncate(at),
                6 => {
                    let count = usize::from(self.u16());
                    bytes.drain(at..(at + count).min(len));
                }
                7 => {
                    let count = usize::from(self.u8());
                    let new = self.take(count);
                    if len + new.len() <= MAX_EDITED {
                        bytes.splice(at..at, new.iter().copied());
                    }
                }
                _ => {
                    let again = bytes[page..page_end].to_vec();
                    if len + again.len() <= MAX_EDITED {
                        bytes.splice(page..page, again);
                    }
                }
            }
        }
    }
}

/// What FORMAT.md calls text: no control characters, nothing that reorders or hides text. Written from that page, not from the code.
pub fn is_text(text: &str) -> bool {
    !text.chars().any(|c| {
        matches!(c as u32, 0..=0x1f | 0x7f..=0x9f | 0xad | 0x34f | 0x61c | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f
            | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0x2800 | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb
            | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe0fff)
    })
}

/// What FORMAT.md calls a name. Written from that page.
pub fn is_name(text: &str) -> bool {
    is_text(text)
        && (1..=100).contains(&text.len())
        && !text.starts_with(['-', '.'])
        && text.trim() == text
        && !text.contains(['/', '\\', ':', '@', '='])
}

/// RFC 3339 in UTC with `Z` and at most nine digits of fraction, as FORMAT.md has times.
pub fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let Some(fraction) = shape.strip_prefix("0000-00-00T00:00:00").and_then(|rest| rest.strip_suffix('Z')) else {
        return false;
    };
    fraction.is_empty()
        || (fraction.starts_with('.') && (2..=10).contains(&fraction.len()) && !fraction[1..].contains(|c| c != '0'))
}
