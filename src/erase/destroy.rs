//! Destroying files so that nothing comes back: overwritten in place, flushed, read back from the medium, discarded, unlinked.

use crate::copy::throttle::Throttle;
use crate::error::{Error, IoContext, Result};
use crate::io::tree::Kind;
use crate::io::{Access, Buffer, Engine, Pool, Tree, open_queue};
use crate::monitor::DiskProgress;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of one write.
const WRITE_BYTES: usize = 4 << 20;
/// Writes in flight.
const DEPTH: usize = 4;
/// Bytes of one sample of a file.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Samples of one file: its first bytes, its last, and evenly between.
const SAMPLES: u64 = 16;

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroyed {
    /// Relative to `motiongear/`.
    pub file: String,
    /// Overwritten with zeros and flushed.
    pub bytes: u64,
    /// Read back after flushing, and all zero.
    pub sampled_bytes: u64,
    /// Read-back went round the page cache.
    pub direct: bool,
    /// The file system or device was told that the space is free.
    pub discarded: bool,
}

/// How files are destroyed.
pub struct Destroyer {
    engine: Engine,
    pool: Pool,
    throttle: Arc<Throttle>,
}

impl Destroyer {
    /// With its own buffers.
    ///
    /// # Errors
    /// No memory.
    pub fn new(engine: Engine, throttle: Arc<Throttle>) -> Result<Destroyer> {
        Ok(Destroyer { engine, pool: Pool::new(WRITE_BYTES, DEPTH + 1)?, throttle })
    }

    /// Destroys `file` below `tree`. One that is not there any more was destroyed before: `None`.
    ///
    /// Order: overwrite · flush · read a sample back · discard · unlink · flush the directory. Unlinked first, nothing could be
    /// overwritten any more after a crash; discarded before the sample, zeros would prove nothing.
    ///
    /// # Errors
    /// Not a plain file of this array alone, a write that failed, or bytes that are still there.
    pub fn destroy(&self, tree: &Tree, file: &Path, progress: &DiskProgress) -> Result<Option<Destroyed>> {
        let name = file.display().to_string();
        let Some(found) = tree.find(file)? else { return Ok(None) };
        if found.kind == Kind::Other {
            // Never followed or opened: it may lead to somebody else's data. The name itself holds nothing.
            tree.remove_overwritten(file)?;
            return Ok(Some(Destroyed { file: name, bytes: 0, sampled_bytes: 0, direct: false, discarded: false }));
        }
        let bytes = found.bytes;
        self.overwrite(tree, file, bytes, progress)?;
        let (sampled_bytes, direct) = self.sample(tree, file, bytes)?;
        let target = tree.open_direct(file, Access::Write)?;
        let discarded = crate::io::discard(&target, 0, bytes).unwrap_or(false);
        drop(target);
        tree.remove_overwritten(file)?;
        Ok(Some(Destroyed { file: name, bytes, sampled_bytes, direct, discarded }))
    }

    fn zeros(&self, len: usize) -> Buffer {
        let mut buffer = self.pool.take();
        buffer.set_len(len);
        buffer.fill(0);
        buffer
    }

    fn overwrite(&self, tree: &Tree, name: &Path, bytes: u64, progress: &DiskProgress) -> Result<()> {
        let path = tree.full(name);
        let file = Arc::new(tree.open_direct(name, Access::Write)?);
        let mut queue = open_queue(self.engine, Arc::clone(&file), DEPTH)?;
        let settle = |queue: &mut Box<dyn crate::io::BlockIo>, until: usize| -> Result<()> {
            while queue.in_flight() > until {
                let Some(done) = queue.wait() else { break };
                done.result.context(|| format!("File {}: it could not be overwritten", path.display()))?;
                progress.done.fetch_add(done.token, Ordering::Relaxed);
            }
            Ok(())
        };
        let mut at = 0;
        while at < bytes {
            self.throttle.check()?;
            let step = (bytes - at).min(WRITE_BYTES as u64);
            settle(&mut queue, DEPTH - 1)?;
            queue.write(step, at, self.zeros(usize::try_from(step).unwrap_or(WRITE_BYTES)));
            at += step;
        }
        settle(&mut queue, 0)?;
        drop(queue);
        file.sync_data()
    }

    /// Reads a sample through a new handle, round the page cache where the file system lets us.
    fn sample(&self, tree: &Tree, name: &Path, bytes: u64) -> Result<(u64, bool)> {
        let path = tree.full(name);
        let file = Arc::new(tree.open_direct(name, Access::Read)?);
        let direct = file.is_direct();
        if !direct {
            file.drop_cache()?;
        }
        let mut queue = open_queue(self.engine, Arc::clone(&file), 1)?;
        let mut sampled = 0;
        let mut next = 0;
        for place in sample_places(bytes) {
            let start = place.max(next);
            let end = (place + SAMPLE_BYTES).min(bytes);
            if start >= end {
                continue;
            }
            let len = usize::try_from(end - start).unwrap_or(0);
            queue.read(0, start, self.pool.take(), len);
            let done = queue.wait().ok_or_else(|| Error::failed(format!("File {}: no answer", path.display())))?;
            done.result.context(|| format!("File {}: it cannot be read back", path.display()))?;
            let odd = done.buffer.as_ref().and_then(|buffer| buffer.iter().position(|byte| *byte != 0));
            if done.buffer.is_none() || odd.is_some() {
                let offset = start + odd.unwrap_or(0) as u64;
                return Err(Error::failed(format!(
                    "File {}: expected zeros after overwriting, found other bytes at offset {offset}",
                    path.display()
                ))
                .next("the medium does not keep what is written to it: destroy it physically"));
            }
            sampled += end - start;
            next = end;
        }
        Ok((sampled, direct))
    }
}

/// Where samples begin: page-aligned, ascending, the first byte and the last page included.
fn sample_places(bytes: u64) -> Vec<u64> {
    let last = bytes.saturating_sub(1) / 4096 * 4096;
    let last = last.saturating_sub(SAMPLE_BYTES - 4096);
    let mut places: Vec<u64> = (0..SAMPLES).map(|i| last / 4096 * i / (SAMPLES - 1) * 4096).collect();
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::throttle::Limits;

    fn destroyer(engine: Engine) -> Destroyer {
        Destroyer::new(engine, Throttle::new(Limits::default())).unwrap()
    }

    #[test]
    fn samples_cover_both_ends() {
        for bytes in [0, 1, 4095, 4096, 4097, 65536, 65537, 1 << 20, (1 << 33) + 12_345] {
            let places = sample_places(bytes);
            assert_eq!(places[0], 0);
            assert!(places.windows(2).all(|pair| pair[0] < pair[1]) && places.iter().all(|p| p % 4096 == 0));
            assert!(places.last().unwrap() + SAMPLE_BYTES >= bytes, "{bytes}");
        }
    }

    #[test]
    fn a_file_is_overwritten_sampled_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, name) = (Tree::open(dir.path()).unwrap(), Path::new("00000001.pack"));
        for bytes in [0usize, 1, 5000, 9 << 20] {
            tree.write(name, &vec![7; bytes]).unwrap();
            let progress = DiskProgress::new("packs", bytes as u64);
            let gone = destroyer(Engine::Threads).destroy(&tree, name, &progress).unwrap().unwrap();
            assert_eq!(gone.bytes, bytes as u64);
            assert!(gone.sampled_bytes > 0 || bytes == 0);
            assert_eq!(progress.done.load(Ordering::Relaxed), bytes as u64);
            assert!(tree.find(name).unwrap().is_none());
            assert!(destroyer(Engine::Threads).destroy(&tree, name, &progress).unwrap().is_none());
        }
    }

    #[test]
    fn links_are_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (other, link) = (dir.path().join("other"), dir.path().join("link"));
        let (tree, name) = (Tree::open(dir.path()).unwrap(), Path::new("link"));
        std::fs::write(&other, b"precious").unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let progress = DiskProgress::new("packs", 0);
        destroyer(Engine::Threads).destroy(&tree, name, &progress).unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"precious");
        assert!(!link.exists());
        std::fs::hard_link(&other, &link).unwrap();
        let error = destroyer(Engine::Threads).destroy(&tree, name, &progress).unwrap_err();
        assert_eq!(error.kind.exit_code(), 4, "{error}");
        assert_eq!(std::fs::read(&other).unwrap(), b"precious");
    }
}
