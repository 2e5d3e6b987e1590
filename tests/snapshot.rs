//! Goal: a disk that is in use is copied as it was at one moment where a snapshot hook gives that moment, and marked fuzzy where
//! none does; what is frozen is thawed whatever becomes of MotionGear.
//!
//! Method: PostgreSQL under `pgbench` load on an ext4 disk whose image is a file in a Btrfs subvolume, as a small hypervisor
//! would keep it: frozen by `fsfreeze`, snapshotted by `btrfs subvolume snapshot`, thawed, discarded, all by hooks of a plan.
//! The imported volume must pass `e2fsck`, PostgreSQL must start from it, `pg_amcheck` must find nothing, and the sums that
//! pgbench keeps equal must be equal. Killing and resuming is tried with hooks that copy a file, so that every moment can be hit.

use crate::common::run::postgres_bin;
use crate::common::{
    Background, Branch, Loop, Mount, b3sum, disk, disks, loop_device, noise, sparse, sql, tool, try_tool, write_at,
};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(90);

/// A PostgreSQL server on a mounted disk, run by `nobody`, since it refuses root.
struct Postgres {
    bin: PathBuf,
    dir: PathBuf,
    running: bool,
}

impl Postgres {
    /// `dir` is the mounted disk; a database that is there is used.
    fn on(dir: &Path) -> Postgres {
        Postgres { bin: postgres_bin(), dir: dir.to_owned(), running: false }
    }
    fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(self.bin.join(program)).args(arguments);
        // Where nobody may be; and no locale of the host's that PostgreSQL would want to find installed.
        command
            .current_dir("/")
            .env("LC_ALL", "C")
            .env("PGHOST", &self.dir)
            .env("PGUSER", "nobody")
            .stdin(Stdio::null());
        command.env("PGDATABASE", "postgres");
        command
    }
    #[track_caller]
    fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> String {
        let log = self.dir.join("motiongear-test.log");
        let out = self.command(program, arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let server = std::fs::read_to_string(log).unwrap_or_default();
        assert!(out.status.success(), "{program}: {}{}\n{server}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }
    fn create(&self) {
        tool("chown", ["65534:65534".as_ref(), self.dir.as_os_str()]);
        let data = self.dir.join("data");
        self.run(
            "initdb",
            ["-D".as_ref(), data.as_os_str(), "-U".as_ref(), "nobody".as_ref(), "--data-checksums".as_ref()],
        );
    }
    fn start(&mut self) {
        let options =
            format!("-h '' -k {} -c shared_buffers=32MB -c autovacuum=off -c max_connections=20", self.dir.display());
        let (data, log) = (self.dir.join("data"), self.dir.join("motiongear-test.log"));
        let words =
            ["-w", "-t", "120", "-o", &options, "-D", data.to_str().unwrap(), "-l", log.to_str().unwrap(), "start"];
        // The server must not hold a pipe of ours open: its output goes to its log, pg_ctl's to nowhere.
        let status = self.command("pg_ctl", words).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
        self.running = true;
    }
    fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            let data = self.dir.join("data");
            let words = ["-w", "-m", "immediate", "-D", data.to_str().unwrap(), "stop"];
            let _ = self.command("pg_ctl", words).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
    /// Money is neither made nor lost by pgbench's transactions.
    fn check(&self) {
        self.run("pg_amcheck", ["--all", "--install-missing", "--heapallindexed"]);
        let query = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers) \
                     AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches) \
                     AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history), \
                     (SELECT count(*) FROM pgbench_history)";
        let found = self.run("psql", ["-X", "-A", "-t", "-F", " ", "-c", query]);
        let (equal, count) = found.trim().split_once(' ').unwrap();
        assert_eq!(equal, "t", "the sums differ");
        assert!(count.parse::<u64>().unwrap() > 0, "no transaction was in it: the server was not under load");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// pgbench, stopped on drop.
struct Load(Child);
impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that `nobody` may enter, which the checkout's own need not be; mount points lie in it.
fn open_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("mg-pg-").tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Waits for something.
#[track_caller]
fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    since.elapsed()
}

/// Imports the sealed array's only disk in a data centre of its own, proven by full read-back; returns its volume.
fn imported(branch: &Branch) -> PathBuf {
    let volumes = branch.place.dir("volumes");
    let command = crate::common::run::Motiongear::new(&branch.place.join("centre-state"));
    let command =
        command.args(["--json", "import"]).arg(&branch.array).args(["--to", &format!("dir:{}", volumes.display())]);
    let done = command.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity).run().ok();
    assert_eq!(done["disks"][0]["proven"], true, "{done}");
    let machine = branch.seal_json()["disks"][0]["machine"].as_str().unwrap().to_owned();
    volumes.join(&branch.site).join(machine).join("sda.raw")
}

#[test]
fn a_database_under_load_is_consistent_through_hooks_and_fuzzy_without() {
    let branch = Branch::ready();
    let place = &branch.place;
    let mounts = open_dir();
    // The host's pool, a machine's disk in it, and a database on that disk.
    let pool_image = place.join("pool.btrfs");
    disks::formatted(&pool_image, 2048 * MIB, "mkfs.btrfs", &["-q", "-f"]);
    let pool_device = loop_device(&pool_image);
    let pool = Mount::new(pool_device.path(), &place.join("pool"), &[]);
    let machine = pool.path().join("machine");
    tool("btrfs", ["-q".as_ref(), "subvolume".as_ref(), "create".as_ref(), machine.as_os_str()]);
    let image = machine.join("disk.img");
    disks::formatted(&image, 400 * MIB, "mkfs.ext4", &["-q", "-F"]);
    let device = loop_device(&image);
    let mount = Mount::new(device.path(), &mounts.path().join("db"), &[]);
    let mut server = Postgres::on(mount.path());
    server.create();
    server.start();
    server.run("pgbench", ["-i", "-q", "-s", "4"]);
    let load = Load(
        server
            .command("pgbench", ["-c", "4", "-T", "300", "-n"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    std::thread::sleep(Duration::from_secs(2));

    let snapshot = pool.path().join("snapshot");
    let (frozen, machine_path, snapshot_path) = (mount.path().display(), machine.display(), snapshot.display());
    let plan = place.file(
        "plan.toml",
        format!(
            r#"
[[machine]]
name = "db01"
[machine.hooks]
freeze = ["fsfreeze", "--freeze", "{frozen}"]
freeze_timeout = "20s"
snapshot = ["sh", "-c", "btrfs -q subvolume snapshot -r {machine_path} {snapshot_path} && echo sda={snapshot_path}/disk.img"]
thaw = ["sh", "-c", "fsfreeze --unfreeze {frozen} || true"]
discard = ["btrfs", "-q", "subvolume", "delete", "{snapshot_path}"]
[[machine.disk]]
name = "sda"
source = "{}"
"#,
            image.display()
        ),
    );
    let result = branch.on_array("seed", ["--plan".as_ref(), plan.as_os_str()]).ok();
    assert_eq!(result["disks"][0]["consistency"], "consistent");
    assert_eq!(result["disks"][0]["basis"], "hook");
    assert!(!snapshot.exists(), "the snapshot was discarded");
    // The very same disk, read while it is written to.
    let fuzzy = Branch::ready();
    let live = fuzzy.seed(&[("sda", &image)], &[]).ok();
    assert_eq!(live["disks"][0]["consistency"], "fuzzy");
    drop(load);
    server.stop();
    drop((server, mount, device, pool, pool_device));

    branch.seal();
    branch.check_with_stock_tools();
    branch.check_stand_alone();
    let seal = branch.seal_json();
    assert_eq!(seal["disks"][0]["consistency"], "consistent");
    assert_eq!(seal["disks"][0]["basis"], "hook");
    let hooks = sql(&branch.live_manifest(), "SELECT group_concat(detail, '; ') FROM event WHERE kind = 'hook'");
    for hook in ["freeze", "snapshot", "thaw", "discard"] {
        assert!(hooks.contains(hook), "{hook} is not on record: {hooks}");
    }
    let point = sql(&branch.live_manifest(), "SELECT consistency || ' ' || point_in_time FROM generation");
    assert!(point.starts_with("consistent 20"), "{point}");
    let file = imported(&branch);
    assert_eq!(b3sum(&file), seal["disks"][0]["digest"]);
    let device = loop_device(&file);
    tool("e2fsck", ["-fn".as_ref(), device.path().as_os_str()]);
    let mount = Mount::new(device.path(), &mounts.path().join("imported"), &[]);
    let mut server = Postgres::on(mount.path());
    // It was running at that moment; PostgreSQL would recognise its lock files as stale were its process number not in use
    // here, be it by a zombie that nobody has waited for.
    for stale in ["data/postmaster.pid", ".s.PGSQL.5432.lock"] {
        std::fs::remove_file(mount.path().join(stale)).unwrap();
    }
    server.start();
    server.check();
    server.stop();
    drop((server, mount, device));

    fuzzy.seal();
    fuzzy.check_with_stock_tools();
    assert_eq!(fuzzy.seal_json()["disks"][0]["consistency"], "fuzzy");
    assert_eq!(fuzzy.seal_json()["disks"][0]["basis"], "none");
    assert_eq!(
        sql(&fuzzy.live_manifest(), "SELECT consistency || '|' || coalesce(point_in_time, '') FROM generation"),
        "fuzzy|"
    );
    // Fuzzy or not, what was read is what is imported.
    assert_eq!(b3sum(&imported(&fuzzy)), fuzzy.seal_json()["disks"][0]["digest"]);
}

/// An ext4 disk of its own, mounted: something to freeze.
struct Frozen {
    mount: Mount,
    _device: Loop,
}

impl Frozen {
    fn new(branch: &Branch) -> Frozen {
        let image = branch.place.join("frozen.img");
        disks::formatted(&image, 16 * MIB, "mkfs.ext4", &["-q", "-F"]);
        let device = loop_device(&image);
        let mount = Mount::new(device.path(), &branch.place.join("frozen"), &[]);
        Frozen { mount, _device: device }
    }
    /// Whether writing to it blocks; asked by a process that can be given up.
    fn is_frozen(&self) -> bool {
        let file = self.mount.path().join("touched");
        let mut touch = Command::new("touch").arg(file).stdin(Stdio::null()).spawn().unwrap();
        for _ in 0..60 {
            if touch.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // No signal reaches what waits for a thaw; it ends with the freeze, and is waited for by a thread that does nothing else.
        std::thread::spawn(move || touch.wait());
        true
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Whatever the test found: unmounting a frozen file system would hang.
        let _ = try_tool("fsfreeze", ["--unfreeze".as_ref(), self.mount.path().as_os_str()]);
    }
}

/// A plan whose freeze is real and whose snapshot copies `image` slowly or never.
fn plan(branch: &Branch, frozen: &Path, image: &Path, snapshot: &str, limits: &str) -> PathBuf {
    let frozen = frozen.display();
    let text = format!(
        r#"
[[machine]]
name = "db01"
[machine.hooks]
freeze = ["fsfreeze", "--freeze", "{frozen}"]
snapshot = ["sh", "-c", "{snapshot}"]
thaw = ["sh", "-c", "fsfreeze --unfreeze {frozen} || true"]
{limits}
[[machine.disk]]
name = "sda"
source = "{}"
"#,
        image.display()
    );
    branch.place.file("plan.toml", text)
}

fn started(branch: &Branch, plan: &Path) -> Background {
    branch.motiongear().args(["--json", "seed"]).arg(&branch.array).arg("--plan").arg(plan).start()
}

#[test]
fn killed_while_frozen_the_watchdog_thaws() {
    let branch = Branch::ready();
    let frozen = Frozen::new(&branch);
    let image = branch.place.join("disk");
    noise(&image, 2 * MIB, 1);
    let mark = branch.place.join("reached");
    let slow = format!("touch {}; exec sleep 300", mark.display());
    let path = plan(&branch, frozen.mount.path(), &image, &slow, "");
    let mut running = started(&branch, &path);
    assert!(running.until(LONG, |_| mark.exists()), "{}", running.said());
    assert!(frozen.is_frozen(), "it was not frozen while the snapshot was taken");
    assert_eq!(running.kill().code, -libc::SIGKILL);
    let took = wait_for("the thaw", Duration::from_secs(20), || !frozen.is_frozen());
    println!("thawed {took:?} after the kill");
    let log = branch.state.join("thaw-watchdog.log");
    wait_for("the watchdog's log", Duration::from_secs(10), || {
        std::fs::read_to_string(&log).is_ok_and(|text| !text.is_empty())
    });
    // The next run works as if nothing had been.
    let copy = branch.place.join("copy");
    let good = format!("cp {0} {1} && echo sda={1}", image.display(), copy.display());
    let path = plan(&branch, frozen.mount.path(), &image, &good, "");
    let result = branch.on_array("seed", ["--plan".as_ref(), path.as_os_str()]).ok();
    assert_eq!(result["disks"][0]["consistency"], "consistent");
    assert_eq!(result["disks"][0]["digest"], b3sum(&copy));
    assert!(!frozen.is_frozen());
}

#[test]
fn stopped_while_frozen_the_watchdog_thaws_in_time_and_the_snapshot_is_not_believed() {
    let branch = Branch::ready();
    let frozen = Frozen::new(&branch);
    let image = branch.place.join("disk");
    noise(&image, 2 * MIB, 2);
    let mark = branch.place.join("reached");
    let copy = branch.place.join("copy");
    // The snapshot itself would succeed; but nobody may rely on what was frozen when it began.
    let slow =
        format!("touch {0}; sleep 1; cp {1} {2} && echo sda={2}", mark.display(), image.display(), copy.display());
    let limits = "freeze_timeout = \"1s\"\nsnapshot_timeout = \"3s\"\nthaw_timeout = \"1s\"";
    let path = plan(&branch, frozen.mount.path(), &image, &slow, limits);
    let mut running = started(&branch, &path);
    assert!(running.until(LONG, |_| mark.exists()), "{}", running.said());
    running.signal(libc::SIGSTOP);
    // The hooks' limits and their grace, 35 s, and the time to notice.
    let took = wait_for("the thaw", Duration::from_secs(50), || !frozen.is_frozen());
    println!("thawed {took:?} after the stop");
    running.signal(libc::SIGCONT);
    running.wait().refused(1, &["db01"]);
    assert!(!frozen.is_frozen());
}

/// Its disk is read as it is, and whoever seals must know.
#[test]
fn a_hook_that_names_no_place_is_said_in_the_seal() {
    let branch = Branch::ready();
    let raw = branch.place.join("raw");
    noise(&raw, 1 << 20, 3);
    let plan = format!(
        "[[machine]]\nname = 'm'\n[machine.hooks]\nsnapshot = ['/bin/true']\n[[machine.disk]]\nname = 'a'\nsource = '{}'\n",
        raw.display()
    );
    let plan = branch.place.file("plan.toml", plan);
    branch.on_array("seed", ["--plan", plan.to_str().unwrap()]).ok();
    for _ in 0..2 {
        assert_eq!(branch.seal()["read_live"], serde_json::json!(["m"]));
    }
}

#[test]
fn hooks_that_fail_thaw_and_say_why() {
    let branch = Branch::ready();
    let frozen = Frozen::new(&branch);
    let image = branch.place.join("disk");
    noise(&image, 2 * MIB, 3);
    for (snapshot, parts) in [
        ("echo the pool is full >&2; exit 7", ["snapshot", "the pool is full"]),
        ("echo sdx=/dev/null", ["sdx", "sda"]),
        ("echo sda=/does/not/exist", ["/does/not/exist", "next:"]),
    ] {
        let path = plan(&branch, frozen.mount.path(), &image, snapshot, "");
        let ran = branch.on_array("seed", ["--plan".as_ref(), path.as_os_str()]);
        assert!([1, 2].contains(&ran.code), "{}", ran.stderr);
        ran.refused(ran.code, &parts);
        assert!(!frozen.is_frozen(), "frozen after: {snapshot}");
    }
    let path = plan(&branch, frozen.mount.path(), &image, "sleep 60", "snapshot_timeout = \"1s\"");
    let since = Instant::now();
    branch.on_array("seed", ["--plan".as_ref(), path.as_os_str()]).refused(1, &["snapshot"]);
    assert!(since.elapsed() < Duration::from_secs(30));
    assert!(!frozen.is_frozen());
}

/// Hooks that copy `live` to `snapshot`, and remove the copy in the end.
fn copying_plan(branch: &Branch, live: &Path, snapshot: &Path) -> PathBuf {
    let (live, snapshot) = (live.display(), snapshot.display());
    branch.place.file(
        "plan.toml",
        format!(
            r#"
[[machine]]
name = "db01"
[machine.hooks]
snapshot = ["sh", "-c", "cp {live} {snapshot} && echo taken >> {snapshot}.count && echo sda={snapshot}"]
discard = ["rm", "-f", "{snapshot}"]
[[machine.disk]]
name = "sda"
source = "{live}"
"#
        ),
    )
}

fn hooked(branch: &Branch, plan: &Path, extra: &[&str]) -> crate::common::run::Motiongear {
    branch.motiongear().args(["--json", "seed"]).arg(&branch.array).arg("--plan").arg(plan).args(extra)
}

/// A slow seed through hooks, killed when some of it is committed; the digest of the snapshot that it read.
fn killed_half_way(branch: &Branch, plan: &Path, snapshot: &Path) -> String {
    let mut running = hooked(branch, plan, &["--read-limit", "25MiB"]).start();
    let manifest = branch.live_manifest();
    let rows = || match manifest.exists() {
        true => {
            try_tool("sqlite3", ["-readonly".as_ref(), manifest.as_os_str(), "SELECT count(*) FROM block".as_ref()])
                .stdout
        }
        false => String::new(),
    };
    assert!(running.until(LONG, |_| rows().trim().parse::<u64>().is_ok_and(|n| n >= 16)), "{}", running.said());
    let digest = b3sum(snapshot);
    running.kill();
    digest
}

#[test]
fn an_interrupted_copy_goes_on_from_its_own_snapshot_while_it_is_there() {
    let branch = Branch::ready();
    let (live, snapshot) = (branch.place.join("live"), branch.place.join("snapshot"));
    noise(&live, 80 * MIB, 4);
    let plan = copying_plan(&branch, &live, &snapshot);
    let digest = killed_half_way(&branch, &plan, &snapshot);
    // Life goes on at the source; the snapshot is what counts.
    write_at(&live, 3 * MIB, &[7; 5000]);
    let result = hooked(&branch, &plan, &[]).run().ok();
    let seeded = disk(&result["disks"], "sda");
    assert_eq!(seeded["digest"], digest);
    assert_eq!(seeded["consistency"], "consistent");
    assert!(seeded["skipped_bytes"].as_u64().unwrap() >= 16 * MIB, "{seeded}");
    assert_eq!(
        std::fs::read_to_string(format!("{}.count", snapshot.display())).unwrap(),
        "taken\n",
        "one snapshot only"
    );
    assert!(!snapshot.exists(), "it was discarded in the end");
    assert!(notes(&result).contains("snapshot of the interrupted run"), "{result}");
    branch.seal();
    branch.check_stand_alone();
    assert_eq!(b3sum(&imported(&branch)), digest);
}

fn notes(result: &Value) -> String {
    result["notes"].to_string()
}

#[test]
fn a_lost_snapshot_means_a_new_one_and_what_differs_is_superseded() {
    let branch = Branch::ready();
    let (live, snapshot) = (branch.place.join("live"), branch.place.join("snapshot"));
    noise(&live, 80 * MIB, 5);
    let plan = copying_plan(&branch, &live, &snapshot);
    killed_half_way(&branch, &plan, &snapshot);
    std::fs::remove_file(&snapshot).unwrap();
    // Changed at the source since: a block that is surely committed, and zeros where there were data.
    write_at(&live, 3 * MIB + 100, &[7; 5000]);
    write_at(&live, 5 * MIB, &vec![0; MIB as usize]);
    let digest = b3sum(&live);
    let result = hooked(&branch, &plan, &[]).run().ok();
    let seeded = disk(&result["disks"], "sda");
    assert_eq!(seeded["digest"], digest);
    assert_eq!(seeded["consistency"], "consistent", "all of it was compared with the new snapshot");
    assert_eq!(seeded["blocks"]["zero"], 1);
    assert!(seeded["skipped_bytes"].as_u64().unwrap() >= 14 * MIB, "what is the same is not stored again: {seeded}");
    branch.seal();
    branch.check_with_stock_tools();
    branch.check_stand_alone();
    assert_eq!(b3sum(&imported(&branch)), digest);
}

#[test]
fn a_consistent_beginning_that_goes_on_without_hooks_is_fuzzy() {
    let branch = Branch::ready();
    let (live, snapshot) = (branch.place.join("live"), branch.place.join("snapshot"));
    noise(&live, 80 * MIB, 6);
    let plan = copying_plan(&branch, &live, &snapshot);
    killed_half_way(&branch, &plan, &snapshot);
    // The live disk is another file than the snapshot, of which the first half is; the name is bound to the live one.
    let result = branch.seed(&[("sda", &live)], &[]).ok();
    assert_eq!(result["disks"][0]["consistency"], "fuzzy");
    assert_eq!(result["disks"][0]["digest"], b3sum(&live), "it did not change meanwhile");
    branch.seal();
    branch.check_stand_alone();
    assert_eq!(branch.seal_json()["disks"][0]["consistency"], "fuzzy");
    let _ = sparse;
}
