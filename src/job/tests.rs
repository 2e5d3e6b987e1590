//! The control socket of a job in this process, asked well, badly and not at all.

use super::*;
use crate::copy::throttle::Limits;
use crate::error::Kind;
use crate::lang::Lang;
use crate::monitor::DiskProgress;
use crate::units::MIB;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

struct Running {
    job: Option<Job>,
    throttle: Arc<Throttle>,
    progress: Arc<Progress>,
    state: PathBuf,
    _dir: tempfile::TempDir,
}

fn running_below(below: &str) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join(below);
    let throttle = Throttle::new(Limits::default());
    let progress =
        Progress::new("seed", vec![DiskProgress::new("db01/sda", 100 * MIB), DiskProgress::new("db01/sdb", 0)]);
    let job = Job::start(&state, "seed", "/mnt/array".into(), Arc::clone(&throttle), Arc::clone(&progress)).unwrap();
    Running { job: Some(job), throttle, progress, state, _dir: dir }
}

fn running() -> Running {
    running_below("state")
}

impl Running {
    fn connect(&self) -> UnixStream {
        let stream = files::connect(&self.state, std::process::id()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn say(&self, line: &[u8]) -> String {
        let mut stream = self.connect();
        // A peer that is cut off in mid-sentence is part of the test.
        let _ = stream.write_all(line);
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer);
        answer
    }
}

#[test]
fn a_job_is_listed_paused_limited_and_resumed_from_another_terminal() {
    let running = running();
    running.progress.disks[0].done.fetch_add(25 * MIB, Ordering::Relaxed);
    let jobs = status(&running.state).unwrap().jobs;
    assert_eq!((jobs.len(), jobs[0].pid, jobs[0].verb.as_str()), (1, std::process::id(), "seed"));
    assert_eq!(jobs[0].progress.as_ref().unwrap().total.done, 25 * MIB);

    assert!(pause(&running.state, None).unwrap().job.throttle.unwrap().paused);
    assert!(running.throttle.state().paused);
    assert!(!resume(&running.state, Some(std::process::id())).unwrap().job.throttle.unwrap().paused);

    let acted = limit(&running.state, None, Some("5MiB"), Some("30%")).unwrap();
    let throttle = acted.job.throttle.as_ref().unwrap();
    assert_eq!((throttle.read_bytes_per_second, throttle.cpu_percent), (Some(5 * MIB), Some(30)));
    let text = acted.render(Lang::En);
    assert!(text.contains("reads at most 5 MiB/s · CPU at most 30 %") && text.contains("25.0 % of 100 MiB"), "{text}");
    assert!(acted.render(Lang::Zh).contains("读取上限 5 MiB/s"));
    let throttle = limit(&running.state, None, Some("off"), None).unwrap().job.throttle.unwrap();
    assert_eq!((throttle.read_bytes_per_second, throttle.cpu_percent), (None, Some(30)));

    let acted = stop(&running.state, None).unwrap();
    assert!(acted.job.throttle.unwrap().stopping.unwrap().contains("another terminal"));
    assert_eq!(running.throttle.check().unwrap_err().kind, Kind::Interrupted);
    assert_eq!(running.throttle.take_notes().len(), 5);
}

#[test]
fn limits_that_are_none_are_refused_before_they_are_sent_and_after() {
    let running = running();
    for (read, cpu) in [
        (None, None),
        (Some("fast"), None),
        (Some("0"), None),
        (None, Some("0")),
        (None, Some("101")),
        (None, Some("-5")),
    ] {
        assert_eq!(limit(&running.state, None, read, cpu).unwrap_err().kind, Kind::Usage);
        let request = Request::Limit { read: read.map(str::to_owned), cpu: cpu.map(str::to_owned) };
        assert!(send(&running.state, None, &request).unwrap_err().message.contains("refused"));
    }
    assert_eq!(running.throttle.state().read_bytes_per_second, None);
}

#[test]
fn garbage_gets_an_answer_and_too_much_of_it_the_door() {
    let running = running();
    for garbage in [&b"hello\n"[..], b"\n", b"{}\n", b"\xff\xfe\n", br#"{"request":"format"}"#, b"[[[[[[[[\n"] {
        let line = [garbage, b"\n"].concat();
        assert!(running.say(&line).starts_with(r#"{"error":"#), "{garbage:?}");
    }
    let deep = [vec![b'['; 60_000], b"\n".to_vec()].concat();
    assert!(running.say(&deep).starts_with(r#"{"error":"#));

    // Exactly as long as allowed but not a line, and far longer: an answer or a closed connection, never a hang.
    for length in [MAX_MESSAGE_BYTES, 4 << 20] {
        let mut stream = running.connect();
        let _ = stream.write_all(&vec![b'a'; length]);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(br#"{"error":"Request is longer"#), "{length}");
    }
    // After garbage that was a line, the same connection still serves.
    let mut stream = BufReader::new(running.connect());
    stream.get_mut().write_all(b"garbage\n{\"request\":\"status\"}\n").unwrap();
    let mut lines = stream.lines();
    assert!(lines.next().unwrap().unwrap().contains("not understood"));
    assert!(lines.next().unwrap().unwrap().starts_with(r#"{"job":"#));
}

#[test]
fn silent_peers_stall_neither_the_job_nor_each_other() {
    let running = running();
    let silent: Vec<_> = (0..10).map(|_| running.connect()).collect();
    let half: Vec<_> = (0..5)
        .map(|_| {
            let mut stream = running.connect();
            stream.write_all(b"{\"request\":").unwrap();
            stream
        })
        .collect();
    let start = Instant::now();
    running.throttle.admit(1).unwrap();
    assert_eq!(jobs(&running.state).unwrap()[0].silent, None);
    assert!(start.elapsed() < Duration::from_secs(2));
    // The job ends though they are still there.
    let Running { job, .. } = &mut { running };
    drop(job.take());
    assert!(start.elapsed() < Duration::from_secs(3));
    drop((silent, half));
}

#[test]
fn too_many_peers_are_turned_away_until_the_silent_ones_are_thrown_out() {
    let running = running();
    let silent: Vec<_> = (0..16).map(|_| running.connect()).collect();
    let listed = jobs(&running.state).unwrap();
    assert!(listed[0].silent.is_some() && listed[0].render(Lang::En).contains("does not answer"));
    let deadline = Instant::now() + Duration::from_secs(9);
    while jobs(&running.state).unwrap()[0].silent.is_some() {
        assert!(Instant::now() < deadline, "silent peers were not thrown out");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(silent);
}

#[test]
fn files_are_private_and_gone_afterwards() {
    let mut running = running();
    let dir = running.state.join("jobs");
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let pid = std::process::id();
    assert_eq!(mode(dir.clone()), 0o700);
    assert_eq!(mode(dir.join(format!("{pid}.sock"))), 0o600);
    assert_eq!(mode(dir.join(format!("{pid}.json"))), 0o600);

    let throttle = Throttle::new(Limits::default());
    let second = Job::start(&running.state, "seed", String::new(), throttle, Arc::clone(&running.progress));
    assert!(second.err().unwrap().message.contains("still running"));
    assert_eq!(jobs(&running.state).unwrap().len(), 1, "the first job lost its files");

    drop(running.job.take());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    assert!(jobs(&running.state).unwrap().is_empty());
    assert!(status(&running.state).unwrap().render(Lang::En).contains("No job"));
    let error = pause(&running.state, None).unwrap_err();
    assert!(error.message.contains("No job runs"), "{error}");
    assert!(pause(&running.state, Some(1)).is_err());
}

#[test]
fn a_state_directory_too_deep_for_a_socket_address_works() {
    let deep = ["a-directory-name-of-some-length"; 6].join("/");
    let running = running_below(&deep);
    assert!(running.state.as_os_str().len() > 150);
    assert_eq!(jobs(&running.state).unwrap()[0].silent, None);
}

#[test]
fn what_the_dead_left_behind_is_cleared_away() {
    let running = running();
    let dir = running.state.join("jobs");
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let dead = child.id();
    child.wait().unwrap();
    let description = |pid: u32, ticks: u64| {
        let mut description = message::Description::new("seed", "gone".into()).unwrap();
        (description.pid, description.process_start_ticks) = (pid, ticks);
        serde_json::to_vec(&description).unwrap()
    };
    std::fs::write(dir.join(format!("{dead}.json")), description(dead, 5)).unwrap();
    std::fs::write(dir.join(format!("{dead}.sock")), "").unwrap();
    // A PID that is used again, by another program.
    std::fs::write(dir.join("1.json"), description(1, u64::MAX)).unwrap();
    std::fs::write(dir.join("README"), "not ours").unwrap();
    std::fs::write(dir.join("99999999999.json"), "not ours").unwrap();
    assert_eq!(jobs(&running.state).unwrap().len(), 1);
    let mut left: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let pid = std::process::id();
    let mut expected = vec![format!("{pid}.json"), format!("{pid}.sock"), "99999999999.json".into(), "README".into()];
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn a_state_that_is_no_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::write(&state, "").unwrap();
    let progress = Progress::new("seed", vec![]);
    let error = Job::start(&state, "seed", String::new(), Throttle::new(Limits::default()), progress).err().unwrap();
    assert!(error.to_string().starts_with("Job directory "), "{error}");
    assert!(jobs(&dir.path().join("missing")).unwrap().is_empty());
}

#[test]
fn signals_stop_once_and_a_hang_up_does_not() {
    let throttle = Throttle::new(Limits::default());
    signals::deliver(&throttle, libc::SIGHUP);
    assert!(!throttle.stopped());
    signals::deliver(&throttle, libc::SIGTERM);
    signals::deliver(&throttle, libc::SIGINT);
    let error = throttle.check().unwrap_err().to_string();
    assert!(error.contains("SIGTERM"), "{error}");
    let notes = throttle.take_notes();
    assert!(
        notes[0].contains("the job goes on") && notes[1].contains("stopping") && notes[2].contains("already"),
        "{notes:?}"
    );
}

/// Says to the child process of the next test where its state is.
const CHILD_STATE: &str = "MOTIONGEAR_TEST_SIGNAL_STATE";

/// The child: a job that reads slowly until it is stopped, then lingers without a job. Does nothing when run alone.
#[test]
fn child_of_the_signal_test() {
    let Some(state) = std::env::var_os(CHILD_STATE) else { return };
    let throttle = Throttle::new(Limits { read_bytes_per_second: Some(1), ..Limits::default() });
    let progress = Progress::new("seed", vec![]);
    let job = Job::start(Path::new(&state), "seed", "child".into(), Arc::clone(&throttle), progress).unwrap();
    while throttle.admit(1 << 20).is_ok() {}
    drop(job);
    std::fs::write(Path::new(&state).join("stopped"), throttle.take_notes().join("\n")).unwrap();
    std::thread::sleep(Duration::from_secs(20));
    std::process::exit(0);
}

#[test]
fn a_real_hang_up_leaves_a_job_alone_and_a_real_ctrl_c_stops_it() {
    use std::os::unix::process::ExitStatusExt;
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "job::tests::child_of_the_signal_test", "--nocapture"])
        .env(CHILD_STATE, dir.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: no pointers; the child is ours and not yet waited for.
    let signal = |number| assert_eq!(unsafe { libc::kill(pid, number) }, 0);
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until("the job did not start", &|| jobs(dir.path()).unwrap().len() == 1);
    signal(libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(jobs(dir.path()).unwrap()[0].throttle.as_ref().unwrap().stopping, None);
    signal(libc::SIGINT);
    until("the job did not stop", &|| dir.path().join("stopped").exists());
    until("the notes were not written", &|| {
        std::fs::read_to_string(dir.path().join("stopped")).unwrap().contains("SIGINT")
    });
    assert!(jobs(dir.path()).unwrap().is_empty());
    // Without a job, a signal does what it always did.
    signal(libc::SIGTERM);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}
