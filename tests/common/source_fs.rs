//! A FUSE file system of one file, for disks that misbehave: ranges that answer EIO, short counts, other bytes than were written,
//! or nothing at all until they are woken; a size that changes; a file that is gone.
//!
//! The file is opened with FOPEN_DIRECT_IO: what is asked of it arrives here, not in a page cache. Under a loop device it is a
//! block device with the same faults.

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Nothing that a test forgets to wake sleeps longer: whoever waits for it cannot be killed.
const STALLED_AT_MOST: Duration = Duration::from_secs(150);
const DISK: INodeNo = INodeNo(2);
const NAME: &str = "disk";

/// What happens to requests that touch a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Reads answer EIO.
    ReadError,
    /// Reads give at most so many bytes at a time.
    Short(u32),
    /// Reads are not answered before [`SourceFs::heal`].
    Stall,
    /// Reads give the bytes with their bits inverted.
    Lie,
    /// Writes answer EIO.
    WriteError,
    /// Writes are not answered before [`SourceFs::heal`].
    WriteStall,
    /// Flushes answer EIO; the range does not matter.
    FlushError,
    /// Flushes are not answered before [`SourceFs::heal`]; the range does not matter.
    FlushStall,
}

#[derive(Default)]
struct State {
    faults: Vec<(Range<u64>, Fault)>,
    /// Faults that begin with the first write to their range.
    sleeping: Vec<(Range<u64>, Fault)>,
    bytes: u64,
    gone: bool,
    /// Requests that sleep now.
    stalled: usize,
    /// Requests that a fault has changed since the start.
    hit: usize,
}

struct Shared {
    backing: File,
    state: Mutex<State>,
    changed: Condvar,
}

/// The mounted file system; unmounted on drop, sleepers woken.
pub struct SourceFs {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    dir: PathBuf,
}

impl SourceFs {
    /// Serves `backing` as the one file in the new directory `dir`.
    pub fn serve(dir: &Path, backing: &Path) -> SourceFs {
        std::fs::create_dir_all(dir).unwrap();
        let file = File::options().read(true).write(true).open(backing).unwrap();
        let bytes = file.metadata().unwrap().len();
        let state = Mutex::new(State { bytes, ..State::default() });
        let shared = Arc::new(Shared { backing: file, state, changed: Condvar::new() });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("motiongear-test".into()), MountOption::RW];
        let session = fuser::spawn_mount(OneFile(shared.clone()), dir, &config)
            .unwrap_or_else(|e| panic!("FUSE mount at {}: {e}; tests/run needs /dev/fuse", dir.display()));
        SourceFs { shared, session: Some(session), dir: dir.to_owned() }
    }
    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }
    /// From now on `fault` happens in `range`.
    pub fn fault(&self, range: Range<u64>, fault: Fault) {
        self.change(|state| state.faults.push((range, fault)));
    }
    /// As [`SourceFs::fault`], from the first write that touches the range: a medium that does not keep what it took.
    pub fn fault_once_written(&self, range: Range<u64>, fault: Fault) {
        self.change(|state| state.sleeping.push((range, fault)));
    }
    /// No faults any more; sleepers are answered.
    pub fn heal(&self) {
        self.change(|state| {
            state.faults.clear();
            state.sleeping.clear();
        });
    }
    /// The size that it says it has.
    pub fn resize(&self, bytes: u64) {
        self.change(|state| state.bytes = bytes);
    }
    /// Not there any more, or there again.
    pub fn vanish(&self, gone: bool) {
        self.change(|state| state.gone = gone);
    }
    /// Requests that sleep now.
    pub fn stalled(&self) -> usize {
        self.shared.state().stalled
    }
    /// Requests that a fault has changed so far.
    pub fn hit(&self) -> usize {
        self.shared.state().hit
    }
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state());
        self.shared.changed.notify_all();
    }
}

impl Drop for SourceFs {
    fn drop(&mut self) {
        self.heal();
        let _ = super::try_tool("umount", ["-l".as_ref(), self.dir.as_os_str()]);
        drop(self.session.take());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sleeps while `fault` touches the range.
    fn sleep(&self, fault: Fault, range: &Range<u64>) {
        let since = Instant::now();
        let mut state = self.state();
        state.stalled += 1;
        while touches(&state.faults, fault, range) && since.elapsed() < STALLED_AT_MOST {
            state = self.changed.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
        }
        state.stalled -= 1;
    }

    fn read(&self, offset: u64, bytes: u32) -> Result<Vec<u8>, Errno> {
        let mut state = self.state();
        let range = offset..(offset + u64::from(bytes)).min(state.bytes.max(offset));
        let mut bytes = (range.end - range.start) as usize;
        let (mut inverted, mut hit) = (Vec::new(), false);
        for (place, fault) in state.faults.iter().filter(|(place, _)| overlap(place, &range)) {
            match fault {
                // As a disk does: what lies before the bad sector is not lost, but the request is.
                Fault::ReadError => {
                    state.hit += 1;
                    return Err(Errno::EIO);
                }
                Fault::Short(most) => bytes = bytes.min(*most as usize),
                Fault::Lie => inverted.push(place.start.max(range.start)..place.end.min(range.end)),
                _ => continue,
            }
            hit = true;
        }
        state.hit += usize::from(hit);
        drop(state);
        let mut data = vec![0; bytes];
        self.backing.read_exact_at(&mut data, offset).map_err(|_| Errno::EIO)?;
        for place in inverted {
            let (from, to) = ((place.start - offset) as usize, (place.end - offset) as usize);
            let (from, to) = (from.min(bytes), to.min(bytes));
            data[from..to].iter_mut().for_each(|byte| *byte = !*byte);
        }
        Ok(data)
    }

    fn attributes(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let state = self.state();
        let (size, kind, perm) = match ino {
            INodeNo::ROOT => (0, FileType::Directory, 0o755),
            DISK if !state.gone => (state.bytes, FileType::RegularFile, 0o600),
            _ => return Err(Errno::ENOENT),
        };
        Ok(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn touches(faults: &[(Range<u64>, Fault)], fault: Fault, range: &Range<u64>) -> bool {
    faults.iter().any(|(place, what)| *what == fault && overlap(place, range))
}

struct OneFile(Arc<Shared>);

impl OneFile {
    /// Answers at once, or on a thread of its own once what stalls it is over: the others go on meanwhile.
    fn answer(&self, stall: Fault, range: Range<u64>, answer: impl FnOnce(&Shared) + Send + 'static) {
        if !touches(&self.0.state().faults, stall, &range) {
            return answer(&self.0);
        }
        let shared = self.0.clone();
        std::thread::spawn(move || {
            shared.sleep(stall, &range);
            answer(&shared);
        });
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = if parent == INodeNo::ROOT && name == NAME { self.0.attributes(DISK) } else { Err(Errno::ENOENT) };
        match found {
            Ok(attributes) => reply.entry(&Duration::ZERO, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.attributes(ino) {
            Ok(attributes) => reply.attr(&Duration::ZERO, &attributes),
            Err(error) => reply.error(error),
        }
    }
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }
    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(Fault::Stall, offset..offset + u64::from(size), move |shared| match shared.read(offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        });
    }
    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let range = offset..offset + data.len() as u64;
        let data = data.to_vec();
        self.answer(Fault::WriteStall, range.clone(), move |shared| {
            let mut state = shared.state();
            if touches(&state.faults, Fault::WriteError, &range) {
                state.hit += 1;
                return reply.error(Errno::EIO);
            }
            let woken = state.sleeping.extract_if(.., |(place, _)| overlap(place, &range)).collect::<Vec<_>>();
            state.faults.extend(woken);
            drop(state);
            match shared.backing.write_all_at(&data, offset) {
                Ok(()) => reply.written(data.len() as u32),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.answer(Fault::FlushStall, 0..u64::MAX, move |shared| {
            let mut state = shared.state();
            if state.faults.iter().any(|(_, fault)| *fault == Fault::FlushError) {
                state.hit += 1;
                return reply.error(Errno::EIO);
            }
            drop(state);
            reply.ok();
        });
    }
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
