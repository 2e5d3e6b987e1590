//! The bare kernels of a seed, one thread, on the blocks of the disks given: the zero test, BLAKE3 leaves, zstd level 1,
//! AES-256-GCM and CRC-32, by the libraries that the product uses and on the same bytes, with nothing around them. What a
//! seed's CPU time is divided by. Reading is not counted. Prints JSON; seconds are CPU time of the thread.
//!
//! Blocks come from the medium by O_DIRECT, as in a seed: they are not in the CPU's caches when the first kernel sees them.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use motiongear::copy::crew::cpu_time;
use motiongear::copy::zeros::is_zero;
use motiongear::io::{Access, DirectFile, Engine, Pool, open_queue};
use motiongear_manifest::geometry::{Geometry, PAGE_BYTES};
use motiongear_manifest::record::{AAD_BYTES, HEADER_BYTES, TAG_BYTES, compressor, max_record_bytes, record_bytes};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const BLOCK_BYTES: u32 = 1 << 20;

#[derive(Default)]
struct Seconds {
    zero_test: Duration,
    blake3: Duration,
    zstd: Duration,
    gcm: Duration,
    crc32: Duration,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut kernels = Kernels::new()?;
    for path in std::env::args_os().skip(1) {
        kernels.disk(Path::new(&path))?;
    }
    let Seconds { zero_test, blake3, zstd, gcm, crc32 } = kernels.spent;
    let seconds = serde_json::json!({
        "zero_test": zero_test.as_secs_f64(), "blake3": blake3.as_secs_f64(), "zstd": zstd.as_secs_f64(),
        "gcm": gcm.as_secs_f64(), "crc32": crc32.as_secs_f64(),
    });
    println!(
        "{}",
        serde_json::json!({ "blocks": kernels.blocks, "zero": kernels.zero, "plain": kernels.plain, "seconds": seconds })
    );
    Ok(())
}

struct Kernels {
    zstd: zstd::bulk::Compressor<'static>,
    key: LessSafeKey,
    record: Vec<u8>,
    spent: Seconds,
    blocks: u64,
    zero: u64,
    /// Blocks that do not compress.
    plain: u64,
}

impl Kernels {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| "AES-256-GCM")?;
        Ok(Kernels {
            zstd: compressor(1)?,
            key: LessSafeKey::new(key),
            record: vec![0; max_record_bytes(BLOCK_BYTES)],
            spent: Seconds::default(),
            blocks: 0,
            zero: 0,
            plain: 0,
        })
    }

    fn disk(&mut self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let file = Arc::new(DirectFile::open(path, Access::Read)?);
        let geometry = Geometry::new(file.bytes()?, BLOCK_BYTES)?;
        let mut queue = open_queue(Engine::Threads, file, 1)?;
        let pool = Pool::new(BLOCK_BYTES as usize, 1)?;
        for block in 0..geometry.blocks() {
            queue.read(block, geometry.offset(block), pool.take(), geometry.len(block) as usize);
            let done = queue.wait().ok_or("the queue is empty")?;
            done.result?;
            let buffer = done.buffer.ok_or("the buffer is gone")?;
            self.block(geometry.offset(block), &buffer)?;
        }
        Ok(())
    }

    fn block(&mut self, offset: u64, plain: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
        self.blocks += 1;
        let zero = timed(&mut self.spent.zero_test, || is_zero(plain));
        timed(&mut self.spent.blake3, || {
            use blake3::hazmat::HasherExt;
            black_box(blake3::Hasher::new().set_input_offset(offset).update(plain).finalize_non_root())
        });
        if zero {
            self.zero += 1;
            return Ok(());
        }
        // Compression must save a page of the array to be worth it: zstd stops where it does not, as in the product.
        let room = record_bytes(plain.len() as u32 + TAG_BYTES) - u64::from(PAGE_BYTES) - HEADER_BYTES as u64;
        let room = (room - u64::from(TAG_BYTES)) as usize;
        let record = &mut self.record;
        let packed = timed(&mut self.spent.zstd, || self.zstd.compress_to_buffer(plain, &mut record[..room]));
        let stored = packed.unwrap_or_else(|_| {
            self.plain += 1;
            record[..plain.len()].copy_from_slice(plain);
            plain.len()
        });
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&self.blocks.to_le_bytes());
        let _tag = timed(&mut self.spent.gcm, || {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.key.seal_in_place_separate_tag(nonce, Aad::from([0; AAD_BYTES]), &mut record[..stored]).map(black_box)
        })
        .map_err(|_| "AES-256-GCM")?;
        timed(&mut self.spent.crc32, || black_box(crc32fast::hash(&record[..stored])));
        Ok(())
    }
}

fn timed<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let before = cpu_time();
    let result = work();
    *spent += cpu_time().saturating_sub(before);
    result
}
