//! Time, memory, and how long a verb takes to its first block.

use super::common::disks::sparse;
use super::common::run::Background;
use super::common::{Loop, Motiongear, Mount, loop_device, tool};
use motiongear::job::JobStatus;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// All that was measured, in order.
#[derive(Default)]
pub struct Figures(Vec<(String, String)>);

impl Figures {
    /// Takes a figure down, and shows it at once.
    pub fn say(&mut self, what: &str, value: String) {
        println!("{what}: {value}");
        self.0.push((what.to_owned(), value));
    }

    /// Waits for the end of a verb, which must be `code`.
    pub fn run(&mut self, what: &str, mut verb: Watched, code: i32) {
        while verb.child.is_running() {
            verb.look();
        }
        let ran = verb.child.wait();
        assert_eq!(ran.code, code, "{what}: {}{}", ran.stdout, ran.stderr);
        self.say(what, format!("{:.2} s, VmHWM {} MiB", verb.since.elapsed().as_secs_f64(), verb.peak_kib >> 10));
    }

    /// As a table for the manual.
    pub fn table(&self) {
        println!("\n| figure | measured |\n| --- | --- |");
        self.0.iter().for_each(|(what, value)| println!("| {what} | {value} |"));
    }
}

/// A verb that runs, and the most memory it had.
pub struct Watched {
    child: Background,
    since: Instant,
    peak_kib: u64,
}

impl Watched {
    /// With this state directory.
    pub fn start(state: &Path, arguments: &[&str]) -> Watched {
        let since = Instant::now();
        Watched { child: Motiongear::new(state).arg("--json").args(arguments).start(), since, peak_kib: 0 }
    }

    fn look(&mut self) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.pid())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        self.peak_kib = self.peak_kib.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }

    /// Waits until its job is as wanted; how long that took.
    fn until(&mut self, what: &str, state: &Path, limit: Duration, wanted: impl Fn(&JobStatus) -> bool) -> Duration {
        loop {
            self.look();
            let jobs = motiongear::job::status(state).map(|jobs| jobs.jobs).unwrap_or_default();
            if jobs.iter().any(&wanted) {
                return self.since.elapsed();
            }
            let (running, waited) = (self.child.is_running(), self.since.elapsed());
            assert!(running && waited < limit, "{what}: nothing after {waited:?}: {}", self.child.said());
        }
    }

    /// Lets it go on for a while, for its memory; then stops it as Ctrl-C would.
    fn stop_after(mut self, more: Duration) -> u64 {
        let since = Instant::now();
        while since.elapsed() < more && self.child.is_running() {
            self.look();
        }
        self.child.signal(libc::SIGINT);
        while self.child.is_running() {
            self.look();
        }
        self.peak_kib >> 10
    }
}

/// How long until a verb has dealt with its first block, and its memory until some seconds later.
pub fn first_block(figures: &mut Figures, what: &str, mut verb: Watched, state: &Path, limit: Duration) {
    let began = verb.until(what, state, limit, |_| true);
    let first = verb.until(what, state, limit, |job| job.progress.as_ref().is_some_and(|p| p.total.done > 0));
    let peak = verb.stop_after(Duration::from_secs(10));
    let (began, first) = (began.as_secs_f64(), first.as_secs_f64());
    figures.say(what, format!("job begins after {began:.2} s, first block after {first:.2} s, VmHWM {peak} MiB"));
}

/// How long until a verb announces its job.
pub fn first_job(figures: &mut Figures, what: &str, mut verb: Watched, state: &Path, limit: Duration) {
    let began = verb.until(what, state, limit, |_| true);
    let peak = verb.stop_after(Duration::ZERO);
    figures.say(what, format!("{:.2} s, VmHWM {peak} MiB", began.as_secs_f64()));
}

/// Takes a file out of the page cache: an array was on the road.
pub fn cold(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Room for 50 TB of volumes where there is none: XFS over a file of holes in memory, as ext4's files end at 16 TiB.
pub struct Room {
    mount: Mount,
    _device: Loop,
    _image: Image,
}

/// Removed when dropped.
struct Image(PathBuf);
impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Room {
    pub fn for_volumes(dir: &Path) -> Room {
        let image = Image(PathBuf::from(format!("/dev/shm/mg-growth-{}", std::process::id())));
        sparse(&image.0, 80 << 40);
        tool("mkfs.xfs", ["-q".as_ref(), "-f".as_ref(), "-l".as_ref(), "size=64m".as_ref(), image.0.as_os_str()]);
        let device = loop_device(&image.0);
        Room { mount: Mount::new(device.path(), dir, &[]), _device: device, _image: image }
    }
    pub fn path(&self) -> &Path {
        self.mount.path()
    }
}
