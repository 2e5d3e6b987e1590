//! The sample disk: a GPT disk of 96 MiB with an ext4 file system and files, carried in the program
//! (`fixtures/sample-disk`).

use crate::copy::zeros::is_zero;
use crate::error::{Error, IoContext, Result};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SAMPLE: &[u8] = include_bytes!("../../fixtures/sample-disk/disk.raw.zst");
const STEP: usize = 64 << 10;

/// Blocks of 1 MiB that [`change`] changes.
pub const CHANGED_BLOCKS: u64 = 3;

/// Writes the sample disk to `path`, zeros as holes.
pub fn make(path: &Path) -> Result<PathBuf> {
    let what = || format!("Sample disk {}", path.display());
    let file = File::create_new(path).context(what)?;
    let mut disk = zstd::stream::read::Decoder::new(SAMPLE).context(what)?;
    let (mut at, mut step) = (0, vec![0; STEP]);
    loop {
        let mut filled = 0;
        while filled < STEP {
            match disk.read(&mut step[filled..]).context(what)? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            break;
        }
        if !is_zero(&step[..filled]) {
            file.write_all_at(&step[..filled], at).context(what)?;
        }
        at += filled as u64;
    }
    file.set_len(at).context(what)?;
    file.sync_all().context(what)?;
    Ok(path.to_owned())
}

/// Changes one page in each of three blocks within the file system, as a machine that lives on would.
pub fn change(path: &Path) -> Result<()> {
    let what = || format!("Sample disk {}", path.display());
    let file = File::options().write(true).open(path).context(what)?;
    let bytes = file.metadata().context(what)?.len();
    for block in [20u64, 33, 47].into_iter().take(CHANGED_BLOCKS as usize) {
        let at = (block << 20) + 8192;
        if at + 4096 > bytes {
            return Err(Error::failed(format!("{}: expected at least {} bytes, found {bytes}", what(), at + 4096)));
        }
        file.write_all_at(&[0x5a; 4096], at).context(what)?;
    }
    file.sync_all().context(what)
}
