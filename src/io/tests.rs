//! Goal: both engines move exactly n bytes or say why not, on every kind of file we meet. Method: every data-path test
//! runs on both engines (io_uring only where the system allows it, and says so when not), on files below the build
//! directory, which is a real file system with O_DIRECT, rather than in /tmp, which may be memory.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn engines() -> Vec<Engine> {
    match engine_in_use(Engine::Uring, []) {
        Ok(_) => vec![Engine::Uring, Engine::Threads],
        Err(error) => {
            eprintln!("not tested with io_uring: {error}");
            vec![Engine::Threads]
        }
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(Path::new(env!("CARGO_MANIFEST_DIR")).join("target")).unwrap()
}

fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn filled(pool: &Pool, bytes: &[u8]) -> Buffer {
    let mut buffer = pool.take();
    buffer.set_len(bytes.len());
    buffer.copy_from_slice(bytes);
    buffer
}

fn queue(engine: Engine, path: &Path, access: Access, depth: usize) -> Box<dyn BlockIo> {
    open_queue(engine, Arc::new(DirectFile::open(path, access).unwrap()), depth).unwrap()
}

/// Reads one piece; the bytes or the kind of error.
fn read_one(queue: &mut dyn BlockIo, pool: &Pool, offset: u64, len: usize) -> Result<Vec<u8>, std::io::Error> {
    queue.read(7, offset, pool.take(), len);
    let completion = queue.wait().unwrap();
    assert_eq!(completion.token, 7);
    completion.result.map(|()| completion.buffer.unwrap().to_vec())
}

fn write_one(queue: &mut dyn BlockIo, pool: &Pool, offset: u64, bytes: &[u8]) {
    queue.write(9, offset, filled(pool, bytes));
    queue.wait().unwrap().result.unwrap();
}

fn free_buffers(pool: &Pool) -> usize {
    std::iter::from_fn(|| pool.try_take()).collect::<Vec<_>>().len()
}

#[derive(Clone, Debug)]
enum Step {
    Write { page: u64, len: usize, seed: u64 },
    Read { page: u64, len: usize },
    Zero { offset: u64, len: u64 },
}

const MODEL_BYTES: usize = 40 * 4096 + 1234;

fn step() -> impl Strategy<Value = Step> {
    // Half the lengths are whole pages, as nearly all are in real life.
    let len = || prop_oneof![(1usize..=4).prop_map(|pages| pages * 4096), 0usize..=4 * 4096];
    prop_oneof![
        (0u64..44, len(), any::<u64>()).prop_map(|(page, len, seed)| Step::Write { page, len, seed }),
        (0u64..44, len()).prop_map(|(page, len)| Step::Read { page, len }),
        (0u64..44 * 4096, 0u64..50_000).prop_map(|(offset, len)| Step::Zero { offset, len }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    /// Any mixture of reads, writes and zeroing leaves the bytes that a plain array would have.
    #[test]
    fn behaves_like_an_array(steps in prop::collection::vec(step(), 1..40)) {
        for engine in engines() {
            let folder = folder();
            let path = folder.path().join("disk");
            let mut model = pattern(MODEL_BYTES, 1);
            std::fs::write(&path, &model).unwrap();
            let pool = Pool::new(4 * 4096, 4).unwrap();
            let file = Arc::new(DirectFile::open(&path, Access::Write).unwrap());
            let mut queue = open_queue(engine, file.clone(), 4).unwrap();
            prop_assert!(file.is_direct(), "the build directory was expected to take O_DIRECT");
            for step in &steps {
                match *step {
                    Step::Write { page, len, seed } => {
                        let (at, bytes) = (page as usize * 4096, pattern(len, seed));
                        write_one(&mut *queue, &pool, page * 4096, &bytes);
                        if len > 0 && model.len() < at + len {
                            model.resize(at + len, 0);
                        }
                        if len > 0 {
                            model[at..at + len].copy_from_slice(&bytes);
                        }
                    }
                    Step::Read { page, len } => {
                        let at = page as usize * 4096;
                        let found = read_one(&mut *queue, &pool, page * 4096, len);
                        if len == 0 || at + len <= model.len() {
                            prop_assert!(found.unwrap() == model.get(at..at + len).unwrap_or(&[]), "read {page} {len}");
                        } else {
                            prop_assert_eq!(found.unwrap_err().kind(), ErrorKind::UnexpectedEof);
                        }
                    }
                    Step::Zero { offset, len } => {
                        write_zeroes(&file, offset, len).unwrap();
                        let (at, end) = (offset as usize, (offset + len) as usize);
                        if len > 0 {
                            model.resize(model.len().max(end), 0);
                            model[at..end].fill(0);
                        }
                    }
                }
            }
            file.sync_data().unwrap();
            drop(queue);
            prop_assert!(std::fs::read(&path).unwrap() == model, "the file differs from the model");
            prop_assert_eq!(free_buffers(&pool), 4);
        }
    }
}

#[test]
fn many_in_flight_all_come_back_right() {
    for engine in engines() {
        let folder = folder();
        let path = folder.path().join("disk");
        let bytes = pattern(4 * 1024 * 1024 + 777, 5);
        let pool = Pool::new(64 * 1024, 24).unwrap();
        let file = Arc::new(DirectFile::create_new(&path).unwrap());
        for writing in [true, false] {
            // More in flight than the depth: kept inside, never lost.
            let mut queue = open_queue(engine, file.clone(), 5).unwrap();
            let (mut next, mut seen) = (0, 0);
            let chunks: Vec<&[u8]> = bytes.chunks(64 * 1024).collect();
            while seen < chunks.len() {
                while next < chunks.len()
                    && let Some(mut buffer) = pool.try_take()
                {
                    let offset = next as u64 * 64 * 1024;
                    if writing {
                        buffer.set_len(chunks[next].len());
                        buffer.copy_from_slice(chunks[next]);
                        queue.write(next as u64, offset, buffer);
                    } else {
                        queue.read(next as u64, offset, buffer, chunks[next].len());
                    }
                    next += 1;
                }
                assert_eq!(queue.in_flight(), next - seen);
                let completion = queue.wait().unwrap();
                completion.result.unwrap();
                assert!(&completion.buffer.unwrap()[..] == chunks[completion.token as usize]);
                seen += 1;
            }
            assert!(queue.wait().is_none());
        }
        assert!(std::fs::read(&path).unwrap() == bytes);
        assert_eq!(file.bytes().unwrap(), bytes.len() as u64);
    }
}

#[test]
fn a_read_past_the_end_is_unexpected_eof() {
    for engine in engines() {
        let folder = folder();
        let path = folder.path().join("disk");
        std::fs::write(&path, pattern(3 * 4096 + 100, 2)).unwrap();
        let pool = Pool::new(4 * 4096, 2).unwrap();
        let mut queue = queue(engine, &path, Access::Read, 2);
        for (offset, len) in [(0, 3 * 4096 + 101), (3 * 4096, 101), (3 * 4096, 4096), (4 * 4096, 1), (1 << 40, 4096)] {
            let error = read_one(&mut *queue, &pool, offset, len).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{engine:?} {offset} {len}: {error}");
        }
        assert_eq!(read_one(&mut *queue, &pool, 3 * 4096, 100).unwrap(), pattern(3 * 4096 + 100, 2)[3 * 4096..]);
        // Unaligned offsets are outside the contract and still right.
        assert_eq!(read_one(&mut *queue, &pool, 4097, 99).unwrap(), pattern(3 * 4096 + 100, 2)[4097..4196]);
        for (offset, len) in [(u64::MAX - 4095, 4096), (i64::MAX as u64, 1), (0, 5 * 4096)] {
            let error = read_one(&mut *queue, &pool, offset, len).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{engine:?} {offset} {len}: {error}");
        }
    }
}

#[test]
fn reading_cannot_write() {
    for engine in engines() {
        let folder = folder();
        let path = folder.path().join("disk");
        std::fs::write(&path, [1; 4096]).unwrap();
        let pool = Pool::new(4096, 1).unwrap();
        let file = Arc::new(DirectFile::open(&path, Access::Read).unwrap());
        let mut queue = open_queue(engine, file.clone(), 1).unwrap();
        for len in [4096, 100] {
            queue.write(1, 0, filled(&pool, &vec![2; len]));
            assert_eq!(queue.wait().unwrap().result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
        write_zeroes(&file, 0, 4096).unwrap_err();
        discard(&file, 0, 4096).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), [1; 4096]);
    }
}

#[test]
fn memory_file_systems_work_whether_direct_or_not() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("not tested: /dev/shm cannot be written");
        return;
    };
    for engine in engines() {
        let path = folder.path().join("disk");
        let bytes = pattern(3 * 4096 + 5, 3);
        std::fs::write(&path, &bytes).unwrap();
        let pool = Pool::new(4 * 4096, 1).unwrap();
        let file = Arc::new(DirectFile::open(&path, Access::Write).unwrap());
        let mut queue = open_queue(engine, file.clone(), 1).unwrap();
        assert_eq!(read_one(&mut *queue, &pool, 0, bytes.len()).unwrap(), bytes);
        write_one(&mut *queue, &pool, 4096, &bytes);
        assert_eq!(read_one(&mut *queue, &pool, 4096, bytes.len()).unwrap(), bytes);
        assert_eq!(read_one(&mut *queue, &pool, 4096, 4 * 4096).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        write_zeroes(&file, 4097, 8192).unwrap();
        let found = std::fs::read(&path).unwrap();
        assert!(found[4096] == bytes[0] && found[4097..4097 + 8192].iter().all(|b| *b == 0));
    }
}

#[test]
fn a_dropped_queue_sends_all_buffers_home() {
    for engine in engines() {
        for panicking in [false, true] {
            let folder = folder();
            let path = folder.path().join("disk");
            std::fs::write(&path, pattern(8 << 20, 4)).unwrap();
            let pool = Pool::new(1 << 20, 8).unwrap();
            let shared = pool.clone();
            let job = std::thread::spawn(move || {
                let mut queue = queue(engine, &path, Access::Read, 4);
                for token in 0..8 {
                    queue.read(token, token << 20, shared.take(), 1 << 20);
                }
                if panicking {
                    std::panic::resume_unwind(Box::new(()));
                }
            });
            assert_eq!(job.join().is_err(), panicking);
            assert_eq!(free_buffers(&pool), 8);
        }
    }
}

#[test]
fn an_exhausted_pool_blocks_until_a_buffer_comes_home() {
    let pool = Pool::new(5000, 2).unwrap();
    let (one, two) = (pool.take(), pool.take());
    assert!(pool.try_take().is_none());
    assert_eq!((one.as_ptr() as usize % 4096, two.capacity(), one.len()), (0, 5000, 0));
    let shared = pool.clone();
    let (told, hears) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let buffer = shared.take();
        told.send(()).unwrap();
        drop(buffer);
    });
    assert!(hears.recv_timeout(Duration::from_millis(50)).is_err());
    drop(one);
    hears.recv_timeout(Duration::from_secs(10)).unwrap();
    waiter.join().unwrap();
    drop(two);
    assert_eq!(free_buffers(&pool), 2);
    assert!(Pool::new(0, 1).is_err() && Pool::new(4096, 0).is_err() && Pool::new(usize::MAX, 1).is_err());
}

#[test]
fn data_and_holes_are_found() {
    let folder = folder();
    let path = folder.path().join("disk");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[1; 8192], 256 * 1024).unwrap();
    let file = DirectFile::open(&path, Access::Write).unwrap();
    assert_eq!(next_data(&file, 0).unwrap(), Some((256 * 1024, 264 * 1024)));
    assert_eq!(next_data(&file, 260 * 1024).unwrap(), Some((260 * 1024, 264 * 1024)));
    assert_eq!(next_data(&file, 264 * 1024).unwrap(), None);
    assert_eq!(next_data(&file, 1 << 20).unwrap(), None);
    assert!(discard(&file, 256 * 1024, 8192).unwrap());
    assert_eq!(next_data(&file, 0).unwrap(), None);
    write_zeroes(&file, (1 << 20) - 5, 10).unwrap();
    assert_eq!(file.bytes().unwrap(), (1 << 20) + 5);
}

#[test]
fn files_of_our_own_are_direct_too_and_never_behind_a_link() {
    let folder = folder();
    let (path, link) = (folder.path().join("pack"), folder.path().join("link"));
    std::fs::write(&path, [7; 8192]).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for access in [Access::Read, Access::Write] {
        let (own, any) = (DirectFile::open_own(&path, access).unwrap(), DirectFile::open(&path, access).unwrap());
        assert!(own.is_direct() && any.is_direct(), "the build directory was expected to take O_DIRECT");
        assert_eq!(own.align(), any.align());
        assert!(DirectFile::open(&link, access).unwrap().is_direct());
        assert!(DirectFile::open_own(&link, access).is_err());
    }
}

#[test]
fn only_files_and_devices_are_opened() {
    let folder = folder();
    for path in [folder.path(), Path::new("/dev/null"), &folder.path().join("missing")] {
        let error = DirectFile::open(path, Access::Read).unwrap_err().to_string();
        assert!(error.contains(&*path.to_string_lossy()), "{error}");
    }
    let path = folder.path().join("new");
    DirectFile::create_new(&path).unwrap();
    DirectFile::create_new(&path).unwrap_err();
}

/// Forbids io_uring to this thread and those it starts, as container runtimes do.
fn forbid_io_uring() {
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let program = [
        // The system call's number is the first word of what the filter sees.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: plain prctl calls; the filter outlives them, and the kernel copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

#[test]
fn where_io_uring_is_forbidden_threads_do_the_work() {
    let forbidden = std::thread::spawn(|| {
        forbid_io_uring();
        assert_eq!(engine_in_use(Engine::Auto, []).unwrap(), "threads");
        let error = engine_in_use(Engine::Uring, []).unwrap_err().to_string();
        assert!(error.contains("seccomp") && error.contains("--engine auto"), "{error}");
        let folder = folder();
        let path = folder.path().join("disk");
        std::fs::write(&path, [3; 5000]).unwrap();
        let file = Arc::new(DirectFile::open(&path, Access::Read).unwrap());
        assert!(open_queue(Engine::Uring, file.clone(), 2).is_err());
        let mut queue = open_queue(Engine::Auto, file, 2).unwrap();
        assert_eq!(read_one(&mut *queue, &Pool::new(8192, 1).unwrap(), 0, 5000).unwrap(), [3; 5000]);
    });
    forbidden.join().unwrap();
}

/// The answers a healthy disk hardly ever gives.
#[test]
fn short_and_passing_answers_are_continued() {
    use request::{Request, Verdict};
    let folder = folder();
    let path = folder.path().join("disk");
    std::fs::write(&path, pattern(16384, 1)).unwrap();
    let file = DirectFile::open(&path, Access::Write).unwrap();
    assert!(file.is_direct());
    let align = file.align() as usize;
    let pool = Pool::new(16384, 1).unwrap();
    let mut read = Request::read(1, 0, pool.take(), 16384);
    let fails = |code| Err(std::io::Error::from_raw_os_error(code));
    assert_eq!(read.piece(&file).unwrap().unwrap().bytes, 16384);
    assert!(matches!(read.book(&file, fails(libc::EINTR)), Verdict::More));
    assert!(matches!(read.book(&file, fails(libc::EAGAIN)), Verdict::Later));
    assert!(matches!(read.book(&file, fails(libc::ENOMEM)), Verdict::Later));
    assert_eq!(read.refusals(), 2);
    // Short within a sector: continues at the sector's start, from the right offset, into the right memory.
    assert!(matches!(read.book(&file, Ok(align + 1)), Verdict::More));
    let piece = read.piece(&file).unwrap().unwrap();
    assert_eq!((piece.offset, piece.bytes), (align as u64, 16384 - align));
    // No step forward once is asked again, twice is the end, an error never is "done".
    assert!(matches!(read.book(&file, Ok(1)), Verdict::More));
    assert!(matches!(read.book(&file, Ok(1)), Verdict::Done(Err(error)) if error.kind() == ErrorKind::UnexpectedEof));
    assert!(matches!(read.book(&file, fails(libc::EIO)), Verdict::Done(Err(_))));
    drop(read);
    // A kernel that is short of memory for ever is an error in the end.
    let mut write = Request::write(1, 0, filled(&pool, &[1; 16384]));
    let refusals = (0..).take_while(|_| matches!(write.book(&file, fails(libc::EAGAIN)), Verdict::Later)).count();
    assert_eq!(refusals, 1000);
    // The tail of a write goes by whole pages first.
    drop(write);
    let mut write = Request::write(1, 4096, filled(&pool, &[1; 4096 + 4096 + 3]));
    assert_eq!(write.piece(&file).unwrap().unwrap().bytes, 8192);
    assert!(matches!(write.book(&file, Ok(8192)), Verdict::More));
    let piece = write.piece(&file).unwrap().unwrap();
    assert_eq!((piece.offset, piece.bytes), (4096 + 8192, 3));
    assert!(matches!(write.book(&file, Ok(0)), Verdict::Done(Err(error)) if error.kind() == ErrorKind::WriteZero));
}

/// A loop device over a file; detached on drop.
struct Loop(PathBuf);

impl Loop {
    fn attach(path: &Path, sector_bytes: usize) -> Option<Loop> {
        let sector = format!("--sector-size={sector_bytes}");
        let output = Command::new("losetup").args(["--find", "--show", "--direct-io=off", &sector]).arg(path).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Loop(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned())))
            }
            Ok(output) => {
                eprintln!("not tested: losetup says {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                eprintln!("not tested: no losetup ({error})");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn block_devices_are_read_written_and_zeroed() {
    for (engine, sector) in engines().into_iter().flat_map(|engine| [(engine, 512), (engine, 4096)]) {
        let folder = folder();
        let path = folder.path().join("backing");
        // A whole number of sectors, not of pages, like many a real disk.
        let size = (4usize << 20) + sector;
        let mut model = pattern(size, 6);
        std::fs::write(&path, &model).unwrap();
        let Some(device) = Loop::attach(&path, sector) else { return };
        let pool = Pool::new(1 << 20, 2).unwrap();
        let file = Arc::new(DirectFile::open(&device.0, Access::Write).unwrap());
        let mut queue = open_queue(engine, file.clone(), 2).unwrap();
        assert!(file.is_direct() && file.is_block_device() && !file.is_read_only_device().unwrap());
        assert_eq!((file.bytes().unwrap(), file.align()), (size as u64, sector as u32));
        assert_eq!(read_one(&mut *queue, &pool, 4 << 20, sector).unwrap(), model[4 << 20..]);
        assert_eq!(read_one(&mut *queue, &pool, 4 << 20, 100).unwrap(), model[4 << 20..][..100]);
        assert_eq!(read_one(&mut *queue, &pool, 4 << 20, sector + 1).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        for (offset, len) in [(0, 1 << 20), (1 << 20, 5000), (4 << 20, sector)] {
            let bytes = pattern(len, len as u64);
            write_one(&mut *queue, &pool, offset as u64, &bytes);
            model[offset..offset + len].copy_from_slice(&bytes);
        }
        for (offset, len) in [(2 << 20, 1 << 20), (10_000, 50_000), (100_001, 7), (size - 700, 700)] {
            write_zeroes(&file, offset as u64, len as u64).unwrap();
            model[offset..offset + len].fill(0);
        }
        write_zeroes(&file, size as u64 - 512, 1024).unwrap_err();
        assert_eq!(next_data(&file, 4096).unwrap(), Some((4096, size as u64)));
        discard(&file, 2 << 20, 1 << 20).unwrap();
        file.sync_data().unwrap();
        file.drop_cache().unwrap();
        for (index, chunk) in model.chunks(1 << 20).enumerate() {
            let found = read_one(&mut *queue, &pool, (index as u64) << 20, chunk.len()).unwrap();
            assert!(found == chunk || index == 2, "{engine:?}: chunk {index} differs");
        }
    }
}

#[test]
fn one_unreadable_place_does_not_fail_the_others() {
    for engine in engines() {
        let folder = folder();
        let path = folder.path().join("backing");
        let model = pattern(4 << 20, 8);
        std::fs::write(&path, &model).unwrap();
        let Some(device) = Loop::attach(&path, 512) else { return };
        // The backing file shrinks under the device: its second half now answers EIO.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
        let pool = Pool::new(1 << 20, 4).unwrap();
        let mut queue = queue(engine, &device.0, Access::Read, 4);
        for token in 0..4u64 {
            queue.read(token, token << 20, pool.take(), 1 << 20);
        }
        let mut outcome = [None; 4];
        while let Some(completion) = queue.wait() {
            let token = completion.token as usize;
            if completion.result.is_ok() {
                assert!(completion.buffer.as_deref() == Some(&model[token << 20..(token + 1) << 20]));
            }
            outcome[token] = Some(completion.result.map_err(|error| error.raw_os_error()));
        }
        assert_eq!(outcome, [Some(Ok(())), Some(Ok(())), Some(Err(Some(libc::EIO))), Some(Err(Some(libc::EIO)))]);
        assert_eq!(free_buffers(&pool), 4);
    }
}

#[test]
fn small_files_are_written_whole_or_not_at_all() {
    let folder = folder();
    let dir = folder.path();
    write_file_durably(dir, "a", b"one").unwrap();
    write_file_durably(dir, "a", b"two").unwrap();
    create_file_durably(dir, "a", b"three").unwrap_err();
    create_file_durably(dir, "b", b"four").unwrap();
    write_file_durably(&dir.join("missing"), "a", b"").unwrap_err();
    for name in ["", ".", "..", "x/y", "/x", "x\0"] {
        write_file_durably(dir, name, b"").unwrap_err();
    }
    durable_rename(&dir.join("b"), &dir.join("c")).unwrap();
    assert_eq!(std::fs::read(dir.join("a")).unwrap(), b"two");
    assert_eq!(std::fs::read(dir.join("c")).unwrap(), b"four");
    std::fs::create_dir(dir.join("d")).unwrap();
    write_file_durably(dir, "d", b"over a directory").unwrap_err();
    // Nothing temporary is left, also after failures.
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "c", "d"]);
}

#[test]
fn foreign_files_are_read_within_bounds() {
    let folder = folder();
    let dir = folder.path();
    std::fs::write(dir.join("file"), b"12345").unwrap();
    assert_eq!(read_bounded(&dir.join("file"), 5).unwrap(), b"12345");
    read_bounded(&dir.join("file"), 4).unwrap_err();
    std::os::unix::fs::symlink("file", dir.join("link")).unwrap();
    read_bounded(&dir.join("link"), 5).unwrap_err();
    Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap();
    read_bounded(&dir.join("fifo"), 5).unwrap_err();
    read_bounded(dir, 5).unwrap_err();
    read_bounded(Path::new("/dev/zero"), 5).unwrap_err();
    // A file that claims to be empty and is not.
    read_bounded(Path::new("/proc/self/status"), 5).unwrap_err();
}
