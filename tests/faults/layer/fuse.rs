//! The mount. Requests are answered one after the other; each sync is counted, and at the chosen one the world stops.

use super::journal::World;
use super::tree::{Content, Ino, Kind, Node, ROOT};
use fuser::{
    AccessFlags, BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// The kernel may believe names and attributes: nobody but it changes them.
const TTL: Duration = Duration::from_secs(3600);
/// More room than any test needs; none of it exists.
const ROOM_BYTES: u64 = 1 << 40;

struct State {
    world: World,
    /// Names as they were when a directory was opened, so that reading it goes on while it changes.
    listings: BTreeMap<u64, Vec<(OsString, Ino)>>,
    handles: u64,
    syncs: u64,
    cut_at: Option<u64>,
    /// The world as it was when the power went; from then on nothing happens.
    frozen: Option<World>,
}

struct Shared {
    state: Mutex<State>,
    cut: Condvar,
}

/// A mounted world; unmounted on drop.
pub struct Mounted {
    shared: Arc<Shared>,
    /// Where which session is mounted; the ones below others come last.
    sessions: Vec<(PathBuf, BackgroundSession)>,
}

/// The directory at the root of a world that is mounted as a file system of its own: one transport array beside the disk of the
/// host. One power cut takes both.
pub const APART: &str = "array";

/// Mounts `world` at `dir`, which is made, and its directory [`APART`], if it has one, as a file system of its own. The power
/// goes when the sync of number `cut_at` (from 1) is asked for.
pub fn mount(world: World, dir: &Path, cut_at: Option<u64>) -> Mounted {
    std::fs::create_dir_all(dir).unwrap();
    let apart = world.now.at(APART);
    let state = State { world, listings: BTreeMap::new(), handles: 0, syncs: 0, cut_at, frozen: None };
    let shared = Arc::new(Shared { state: Mutex::new(state), cut: Condvar::new() });
    let mut config = fuser::Config::default();
    config.mount_options =
        vec![fuser::MountOption::FSName("power".into()), fuser::MountOption::Subtype("layer".into())];
    let session = |root: Ino, dir: PathBuf| {
        let session = fuser::Session::new(Layer { shared: shared.clone(), root }, &dir, &config)
            .and_then(fuser::Session::spawn)
            .unwrap_or_else(|error| panic!("FUSE at {}: {error}; /dev/fuse is needed, and root", dir.display()));
        (dir, session)
    };
    let mut sessions = vec![session(ROOT, dir.to_owned())];
    sessions.extend(apart.map(|root| session(root, dir.join(APART))));
    Mounted { shared, sessions }
}

impl Mounted {
    /// Waits until the power is cut, or `ended` says that the program has ended; true if the power went.
    pub fn wait(&self, limit: Duration, mut ended: impl FnMut() -> bool) -> bool {
        // Time in which this process itself was stopped does not count.
        let (mut waited, mut looked) = (Duration::ZERO, Instant::now());
        let mut state = self.shared.state.lock().unwrap();
        while state.frozen.is_none() {
            assert!(waited < limit, "neither cut nor done after {limit:?} and {} syncs", state.syncs);
            state = self.shared.cut.wait_timeout(state, Duration::from_millis(4)).unwrap().0;
            waited += looked.elapsed().min(Duration::from_secs(1));
            looked = Instant::now();
            if state.frozen.is_none() {
                drop(state);
                let ended = ended();
                state = self.shared.state.lock().unwrap();
                if ended {
                    return state.frozen.is_some();
                }
            }
        }
        true
    }
    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.shared.state.lock().unwrap().syncs
    }
    /// Unmounts; the world as it was when the power went, or as it is.
    pub fn unmount(mut self) -> World {
        self.let_go();
        let mut state = self.shared.state.lock().unwrap();
        match state.frozen.take() {
            Some(frozen) => frozen,
            None => std::mem::replace(&mut state.world, World::new()),
        }
    }
    fn let_go(&mut self) {
        while let Some((dir, session)) = self.sessions.pop() {
            // Whoever was killed may still hold a file for a moment.
            for _ in 0..200 {
                let path = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes()).unwrap();
                // SAFETY: a system call with a string that lives across it.
                if unsafe { libc::umount2(path.as_ptr(), 0) } == 0 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            // Where it is still mounted, this detaches it.
            let _ = session.umount_and_join();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// One file system of the world.
struct Layer {
    shared: Arc<Shared>,
    /// The directory of the world that is its root.
    root: Ino,
}

type Answer<T> = Result<T, Errno>;

impl Layer {
    /// The node of the world that the kernel calls `ino`: every root is 1 to it.
    fn inode(&self, ino: INodeNo) -> Ino {
        if ino.0 == ROOT { self.root } else { ino.0 }
    }

    /// The world, unless the power is gone.
    fn state(&self) -> Answer<MutexGuard<'_, State>> {
        let state = self.shared.state.lock().unwrap();
        if state.frozen.is_some() { Err(Errno::EIO) } else { Ok(state) }
    }

    /// Every sync comes by here; `false` when this is the one at which the power goes.
    fn sync(&self, make_durable: impl FnOnce(&mut World)) -> Answer<()> {
        let mut state = self.state()?;
        state.syncs += 1;
        if state.cut_at == Some(state.syncs) {
            let frozen = std::mem::replace(&mut state.world, World::new());
            state.frozen = Some(frozen);
            self.shared.cut.notify_all();
            return Err(Errno::EIO);
        }
        make_durable(&mut state.world);
        Ok(())
    }

    fn enter(&self, parent: Ino, name: &OsStr, kind: Kind, mode: u32, req: &Request) -> Answer<FileAttr> {
        let mut state = self.state()?;
        if state.world.now.entry(parent, name).is_some() {
            return Err(Errno::EEXIST);
        }
        let ino = state.world.create(parent, name, kind, mode, (req.uid(), req.gid()));
        state.attr(ino)
    }

    fn leave(&self, parent: Ino, name: &OsStr, directory: bool) -> Answer<()> {
        let mut state = self.state()?;
        let ino = state.world.now.entry(parent, name).ok_or(Errno::ENOENT)?;
        match state.world.now.dir(ino) {
            Some(_) if !directory => return Err(Errno::EISDIR),
            Some(names) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            None if directory => return Err(Errno::ENOTDIR),
            _ => {}
        }
        state.world.remove(parent, name, ino);
        Ok(())
    }

    fn rename_to(&self, from: (u64, &OsStr), to: (u64, &OsStr), flags: RenameFlags) -> Answer<()> {
        let mut state = self.state()?;
        let now = &state.world.now;
        let ino = now.entry(from.0, from.1).ok_or(Errno::ENOENT)?;
        let there = now.entry(to.0, to.1);
        if flags.contains(RenameFlags::RENAME_NOREPLACE) && there.is_some() {
            return Err(Errno::EEXIST);
        }
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return Err(Errno::EINVAL);
        }
        if there.and_then(|there| now.dir(there)).is_some_and(|names| !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        if there != Some(ino) {
            state.world.rename((from.0, from.1.to_owned()), (to.0, to.1.to_owned()), ino);
        }
        Ok(())
    }
}

impl State {
    fn node(&self, ino: Ino) -> Answer<&Node> {
        self.world.now.nodes.get(&ino).ok_or(Errno::ENOENT)
    }
    fn content(&self, ino: Ino) -> Answer<&Content> {
        self.world.now.content(ino).ok_or(Errno::EINVAL)
    }
    fn attr(&self, ino: Ino) -> Answer<FileAttr> {
        let node = self.node(ino)?;
        let (size, blocks) = match &node.kind {
            Kind::File(content) => (content.bytes, content.pages.len() as u64 * 8),
            Kind::Link(target) => (target.len() as u64, 0),
            _ => (0, 0),
        };
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks,
            atime: node.modified,
            mtime: node.modified,
            ctime: node.modified,
            crtime: node.modified,
            kind: kind_of(node.mode),
            perm: (node.mode & 0o7777) as u16,
            nlink: if ino == ROOT { 2 } else { self.world.now.names_of(ino) },
            uid: node.owner.0,
            gid: node.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
    /// Both trees, as these are durable at once.
    fn change(&mut self, ino: Ino, change: impl Fn(&mut Node)) {
        for tree in [&mut self.world.now, &mut self.world.durable] {
            if let Some(node) = tree.nodes.get_mut(&ino) {
                change(node);
            }
        }
    }
    fn handle(&mut self) -> FileHandle {
        self.handles += 1;
        FileHandle(self.handles)
    }
}

fn kind_of(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFIFO => FileType::NamedPipe,
        _ => FileType::RegularFile,
    }
}

/// O_DIRECT goes past the page cache, as on a disk; every other handle shares the cache, which mmap needs.
fn open_flags(flags: i32) -> FopenFlags {
    if flags & libc::O_DIRECT != 0 { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }
}

macro_rules! answer {
    ($reply:ident, $result:expr, $ok:expr) => {
        match $result {
            Ok(value) => $ok($reply, value),
            Err(error) => $reply.error(error),
        }
    };
}

fn entry(reply: ReplyEntry, attr: FileAttr) {
    reply.entry(&TTL, &attr, Generation(0));
}
fn attributes(reply: ReplyAttr, attr: FileAttr) {
    reply.attr(&TTL, &attr);
}
fn done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

impl Filesystem for Layer {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = || {
            let state = self.state()?;
            state.attr(state.world.now.entry(self.inode(parent), name).ok_or(Errno::ENOENT)?)
        };
        answer!(reply, found(), entry);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.state().and_then(|state| state.attr(self.inode(ino))), attributes);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            let mut state = self.state()?;
            state.node(self.inode(ino))?;
            if let Some(bytes) = size {
                state.content(self.inode(ino))?;
                state.world.resize(self.inode(ino), bytes);
            }
            state.change(self.inode(ino), |node| {
                node.mode = mode.map_or(node.mode, |mode| node.mode & libc::S_IFMT | mode & 0o7777);
                node.owner = (uid.unwrap_or(node.owner.0), gid.unwrap_or(node.owner.1));
                node.modified = match modified {
                    Some(TimeOrNow::SpecificTime(time)) => time,
                    Some(TimeOrNow::Now) => SystemTime::now(),
                    None => node.modified,
                };
            });
            state.attr(self.inode(ino))
        };
        answer!(reply, set(), attributes);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = || match &self.state()?.node(self.inode(ino))?.kind {
            Kind::Link(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        };
        answer!(reply, target(), |reply: ReplyData, target: OsString| reply.data(target.as_encoded_bytes()));
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        let kind = match kind_of(mode) {
            FileType::RegularFile => Kind::File(Content::default()),
            _ => Kind::Special,
        };
        answer!(reply, self.enter(self.inode(parent), name, kind, mode, req), entry);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let kind = Kind::Dir(BTreeMap::new());
        answer!(reply, self.enter(self.inode(parent), name, kind, libc::S_IFDIR | mode & 0o7777, req), entry);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = Kind::Link(target.as_os_str().to_owned());
        answer!(reply, self.enter(self.inode(parent), name, kind, libc::S_IFLNK | 0o777, req), entry);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let link = || {
            let mut state = self.state()?;
            if state.world.now.entry(self.inode(parent), name).is_some() {
                return Err(Errno::EEXIST);
            }
            state.world.link(self.inode(parent), name, self.inode(ino));
            state.attr(self.inode(ino))
        };
        answer!(reply, link(), entry);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.leave(self.inode(parent), name, false), done);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.leave(self.inode(parent), name, true), done);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.rename_to((self.inode(parent), name), (self.inode(new_parent), new_name), flags), done);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = || {
            let mut state = self.state()?;
            state.node(self.inode(ino))?;
            Ok((state.handle(), open_flags(flags.0)))
        };
        answer!(reply, opened(), |reply: ReplyOpen, (handle, flags)| reply.opened(handle, flags));
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, flags: i32, reply: ReplyCreate) {
        let created = || {
            let kind = Kind::File(Content::default());
            let attr = self.enter(self.inode(parent), name, kind, libc::S_IFREG | mode & 0o7777, req)?;
            Ok((attr, self.state()?.handle()))
        };
        answer!(reply, created(), |reply: ReplyCreate, (attr, handle)| {
            reply.created(&TTL, &attr, Generation(0), handle, open_flags(flags));
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = || Ok(self.state()?.content(self.inode(ino))?.read(offset, size as usize));
        answer!(reply, read(), |reply: ReplyData, bytes: Vec<u8>| reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = || {
            let mut state = self.state()?;
            state.content(self.inode(ino))?;
            state.world.write(self.inode(ino), offset, data);
            state.change(self.inode(ino), |node| node.modified = SystemTime::now());
            drop(state);
            if flags.0 & libc::O_DSYNC != 0 {
                self.sync(|world| world.sync_file(self.inode(ino)))?;
            }
            Ok(data.len() as u32)
        };
        answer!(reply, write(), ReplyWrite::written);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let allocate = || {
            let mut state = self.state()?;
            let bytes = state.content(self.inode(ino))?.bytes;
            let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
            match mode & !libc::FALLOC_FL_KEEP_SIZE {
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                    state.world.punch(self.inode(ino), offset, length)
                }
                0 => {}
                _ => return Err(Errno::EOPNOTSUPP),
            }
            if !keep && bytes < offset + length {
                state.world.resize(self.inode(ino), offset + length);
            }
            Ok(())
        };
        answer!(reply, allocate(), done);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let seek = || {
            let state = self.state()?;
            let found =
                state.content(self.inode(ino))?.seek(offset as u64, whence == libc::SEEK_DATA).ok_or(Errno::ENXIO)?;
            Ok(found as i64)
        };
        answer!(reply, seek(), ReplyLseek::offset);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.sync(|world| world.sync_file(self.inode(ino))), done);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = || {
            let mut state = self.state()?;
            let names = state.world.now.dir(self.inode(ino)).ok_or(Errno::ENOTDIR)?;
            let names = names.iter().map(|(name, ino)| (name.clone(), *ino)).collect();
            let handle = state.handle();
            state.listings.insert(handle.0, names);
            Ok(handle)
        };
        answer!(reply, opened(), |reply: ReplyOpen, handle| reply.opened(handle, FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut listed = || {
            let state = self.state()?;
            let own = [(OsString::from("."), self.inode(ino)), (OsString::from(".."), self.root)];
            let names = state.listings.get(&handle.0).ok_or(Errno::EBADF)?;
            for (at, (name, ino)) in own.iter().chain(names).enumerate().skip(offset as usize) {
                let kind = state.node(*ino).map_or(FileType::RegularFile, |node| kind_of(node.mode));
                if reply.add(INodeNo(*ino), at as u64 + 1, kind, name) {
                    break;
                }
            }
            Ok(())
        };
        answer!(reply, listed(), |reply: ReplyDirectory, ()| reply.ok());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.shared.state.lock().unwrap().listings.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.sync(|world| world.sync_dir(self.inode(ino))), done);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = ROOM_BYTES / 4096;
        reply.statfs(blocks, blocks, blocks, 1 << 30, 1 << 30, 4096, 255, 4096);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing makes nothing durable.
        reply.ok();
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what a program does on the mount arrives in the world as the model has it. Method: real system calls.

    use super::super::{Fate, survive};
    use super::*;
    use crate::common::{Dice, Place, tool};
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, OpenOptionsExt};

    fn direct() -> std::fs::OpenOptions {
        let mut options = File::options();
        options.read(true).write(true).create(true).custom_flags(libc::O_DIRECT);
        options
    }

    #[test]
    fn what_was_not_synced_is_lost_and_the_power_goes_at_the_chosen_sync() {
        let place = Place::new();
        let mounted = mount(World::new(), &place.join("mnt"), Some(3));
        let dir = place.join("mnt");
        let mut file = File::create(dir.join("a")).unwrap();
        file.write_all(b"lasts").unwrap();
        file.sync_all().unwrap();
        std::fs::write(dir.join("b"), b"goes").unwrap();
        File::open(&dir).unwrap().sync_all().unwrap();
        std::fs::rename(dir.join("a"), dir.join("c")).unwrap();
        file.write_all(b", and this not").unwrap();
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(std::fs::write(dir.join("d"), b"too late").unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(mounted.wait(Duration::from_secs(1), || false));
        drop(file);
        let world = mounted.unmount();
        let mut dice = Dice::new(1);
        let left = survive(&world, Fate::Nothing, &mut dice);
        assert_eq!(left.file("a").unwrap().all(), b"lasts");
        assert_eq!(left.file("b").unwrap().all(), b"", "a name without its data");
        assert!(left.at("c").is_none() && left.at("d").is_none());
        let left = survive(&world, Fate::Everything, &mut dice);
        assert_eq!(left.file("c").unwrap().all(), b"lasts, and this not");
    }

    #[test]
    fn one_cut_takes_both_file_systems_of_a_world() {
        use std::os::unix::fs::MetadataExt;
        let place = Place::new();
        let dir = place.join("mnt");
        let mounted = mount(World::with_array(), &dir, Some(2));
        let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
        assert_ne!(device(&dir), device(&dir.join("array")));
        std::fs::create_dir(dir.join("array/motiongear")).unwrap();
        std::fs::write(dir.join("array/motiongear/a"), b"here").unwrap();
        let moved = std::fs::rename(dir.join("array/motiongear/a"), dir.join("a")).unwrap_err();
        assert_eq!(moved.raw_os_error(), Some(libc::EXDEV));
        File::open(dir.join("array")).unwrap().sync_all().unwrap();
        let lost = File::open(dir.join("array/motiongear")).unwrap().sync_all().unwrap_err();
        assert_eq!(lost.raw_os_error(), Some(libc::EIO));
        assert_eq!(std::fs::write(dir.join("b"), b"too late").unwrap_err().raw_os_error(), Some(libc::EIO));
        let left = survive(&mounted.unmount(), Fate::Nothing, &mut Dice::new(1));
        assert!(left.at("array/motiongear").is_some() && left.at("array/motiongear/a").is_none());
    }

    #[test]
    fn direct_and_cached_access_see_one_file_with_its_holes() {
        let place = Place::new();
        let dir = place.join("mnt");
        let mounted = mount(World::new(), &dir, None);
        let pool = motiongear::io::Pool::new(8192, 1).unwrap();
        let mut buffer = pool.take();
        buffer.set_len(8192);
        buffer.fill(7);
        let straight = direct().open(dir.join("f")).unwrap();
        let cached = File::options().read(true).write(true).open(dir.join("f")).unwrap();
        straight.write_all_at(&buffer, 16384).unwrap();
        let mut found = vec![0; 24576];
        cached.read_exact_at(&mut found, 0).unwrap();
        assert!(found[..16384].iter().all(|byte| *byte == 0) && found[16384..].iter().all(|byte| *byte == 7));
        cached.write_all_at(&[8; 100], 16384).unwrap();
        straight.read_exact_at(&mut buffer, 16384).unwrap();
        assert!(buffer[..100].iter().all(|byte| *byte == 8) && buffer[100..].iter().all(|byte| *byte == 7));
        // SAFETY: system calls on an open descriptor.
        unsafe {
            assert_eq!(libc::lseek(cached.as_raw_fd(), 0, libc::SEEK_DATA), 16384);
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            assert_eq!(libc::fallocate(cached.as_raw_fd(), punch, 16384, 4096), 0);
            assert_eq!(libc::lseek(cached.as_raw_fd(), 0, libc::SEEK_DATA), 20480);
            assert_eq!(libc::lseek(cached.as_raw_fd(), 20480, libc::SEEK_HOLE), 24576);
        }
        cached.read_exact_at(&mut found, 0).unwrap();
        assert!(found[..20480].iter().all(|byte| *byte == 0));
        drop((straight, cached));
        assert_eq!(mounted.unmount().now.file("f").unwrap().all(), found);
    }

    #[test]
    fn sqlite_keeps_every_commit_in_a_write_ahead_log() {
        let place = Place::new();
        let dir = place.join("mnt");
        // In a process of its own: whoever maps a file of a mount that he serves himself waits for himself.
        let sqlite = |sql: &str| {
            let keep_log = ".dbconfig no_ckpt_on_close on";
            tool("sqlite3", ["-cmd".as_ref(), keep_log.as_ref(), dir.join("db").as_os_str(), sql.as_ref()])
        };
        let mounted = mount(World::new(), &dir, None);
        sqlite("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (n); INSERT INTO t VALUES (1)");
        sqlite("PRAGMA synchronous = FULL; INSERT INTO t VALUES (2)");
        let world = mounted.unmount();
        assert!(world.now.file("db-wal").is_some_and(|log| log.bytes > 0));
        for n in 0..2 * Fate::KINDS {
            let left = survive(&world, Fate::nth(n), &mut Dice::new(n as u64));
            let mounted = mount(World::of(left), &dir, None);
            assert_eq!(sqlite("SELECT count(*) FROM t").lines().last(), Some("2"));
            drop(mounted);
        }
    }
}
