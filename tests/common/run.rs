//! Running programs: the real `motiongear`, and stock tools.

use serde_json::Value;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; −N for death by signal N.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The exit code must be `code`; the JSON result.
    #[track_caller]
    pub fn code(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "exit code\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or(Value::Null)
    }
    /// It must have succeeded; the JSON result.
    #[track_caller]
    pub fn ok(&self) -> Value {
        self.code(0)
    }
    /// It must have failed with `code` and a message that holds every one of `parts`; also that errors are sane: a
    /// message that starts with a capital, the same in the JSON, no panic.
    #[track_caller]
    pub fn refused(&self, code: i32, parts: &[&str]) -> String {
        assert_eq!(self.code, code, "exit code\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let said = &self.stderr;
        for part in parts {
            assert!(said.contains(part), "expected '{part}' in: {said}");
        }
        if let Some(error) = self.stderr.lines().find_map(|line| line.strip_prefix("error: "))
            && code != 2
        {
            assert!(error.starts_with(|c: char| c.is_uppercase() || c == 's'), "{error}");
        }
        said.clone()
    }
}

/// One call of the binary.
///
/// What opens a shipment wants to be told which seal it must have. A test that is about something else need not: where its arguments
/// name none, `--uncompared` is added.
pub struct Motiongear {
    command: Command,
    exactly: bool,
}

/// Whether these arguments open a shipment and say nothing of its seal.
fn opens_a_shipment(arguments: &[String]) -> bool {
    let is = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    let valued = ["--state", "--lang", "--engine"];
    let mut words = arguments.iter();
    let mut verb = None;
    while let Some(word) = words.next() {
        match word {
            word if valued.contains(&word.as_str()) => drop(words.next()),
            word if word.starts_with('-') => {}
            word => {
                verb = Some(word.as_str());
                break;
            }
        }
    }
    let opens = match verb {
        Some("import" | "restore") => true,
        Some("serve" | "drill") => is("--from"),
        _ => false,
    };
    opens && !["--expect-seal", "--uncompared", "--help"].into_iter().any(is)
}

impl Motiongear {
    pub fn new(state: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_motiongear"));
        command.arg("--state").arg(state);
        // What a test asserts is English, whoever runs it.
        command.env("LC_ALL", "C.UTF-8").env_remove("LANG");
        Motiongear { command, exactly: false }
    }
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }
    /// Adds nothing to the arguments.
    pub fn exactly(mut self) -> Self {
        self.exactly = true;
        self
    }
    fn complete(&mut self) {
        let arguments: Vec<String> = self.command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        if self.exactly {
            return;
        }
        if opens_a_shipment(&arguments) {
            self.command.arg("--uncompared");
        }
        // The tests' own cloud is on loopback, without TLS.
        if self.command.get_envs().any(|(name, _)| name.to_string_lossy().starts_with("OS_")) {
            self.command.arg("--insecure-http");
        }
    }
    /// Runs it to its end without standard input.
    pub fn run(mut self) -> Ran {
        self.complete();
        let out = self.command.stdin(Stdio::null()).output().unwrap();
        ran(out)
    }
    /// Runs it to its end, without a terminal, with `text` as standard input.
    pub fn run_with_input(mut self, text: &str) -> Ran {
        use std::os::unix::process::CommandExt;
        self.complete();
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        unsafe {
            self.command.pre_exec(|| {
                libc::setsid();
                Ok(())
            })
        };
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        ran(child.wait_with_output().unwrap())
    }
    /// Starts it.
    pub fn start(mut self) -> Background {
        self.complete();
        let mut child =
            self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let collect = |pipe: Box<dyn std::io::Read + Send>| {
            let text = Arc::new(Mutex::new(String::new()));
            let shared = text.clone();
            let thread = std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let mut text = shared.lock().unwrap();
                    text.push_str(&line);
                    text.push('\n');
                }
            });
            (text, Some(thread))
        };
        let stdout = collect(Box::new(child.stdout.take().unwrap()));
        let stderr = collect(Box::new(child.stderr.take().unwrap()));
        Background { child: Some(child), stdout, stderr }
    }
}

fn ran(out: std::process::Output) -> Ran {
    use std::os::unix::process::ExitStatusExt;
    let code = out.status.code().unwrap_or_else(|| -out.status.signal().unwrap_or(0));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code, stdout: text(out.stdout), stderr: text(out.stderr) }
}

type Collected = (Arc<Mutex<String>>, Option<std::thread::JoinHandle<()>>);

/// A running `motiongear`; killed on drop.
pub struct Background {
    child: Option<Child>,
    stdout: Collected,
    stderr: Collected,
}

impl Background {
    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id() as i32
    }
    pub fn signal(&self, number: i32) {
        // SAFETY: a plain system call on a child that was not waited for.
        unsafe { libc::kill(self.pid(), number) };
    }
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.as_mut().unwrap().try_wait(), Ok(None))
    }
    /// What it said on stderr so far.
    pub fn said(&self) -> String {
        self.stderr.0.lock().unwrap().clone()
    }
    /// Waits until `done`, or until the process has ended; true if `done`.
    pub fn until(&mut self, limit: Duration, mut done: impl FnMut(&Background) -> bool) -> bool {
        // Time in which this process itself was stopped does not count: the other had as little of it.
        let (mut waited, mut looked) = (Duration::ZERO, Instant::now());
        while waited < limit {
            if done(self) {
                return true;
            }
            if !self.is_running() {
                // What it said last may still be in the pipe.
                self.collected(0);
                return done(self);
            }
            std::thread::sleep(Duration::from_millis(5));
            waited += looked.elapsed().min(Duration::from_secs(1));
            looked = Instant::now();
        }
        panic!("waited {limit:?} in vain; it said: {}", self.said());
    }
    /// Waits for its end.
    pub fn wait(mut self) -> Ran {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.take().unwrap().wait().unwrap();
        let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
        self.collected(code)
    }
    /// Waits for its end; also the most memory that it had resident at once, bytes. From `/proc`, as it runs: `ru_maxrss`
    /// begins with what the test program itself had before the exec.
    pub fn wait_with_peak(mut self) -> (Ran, u64) {
        let status = format!("/proc/{}/status", self.child.as_ref().unwrap().id());
        let mut peak = 0;
        while self.is_running() {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            peak = peak.max(kib.unwrap_or(0) * 1024);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(peak > 0, "{status} was never read");
        (self.wait(), peak)
    }
    fn collected(&mut self, code: i32) -> Ran {
        let text = |collected: &mut Collected| {
            let _ = collected.1.take().map(|thread| thread.join());
            collected.0.lock().unwrap().clone()
        };
        Ran { code, stdout: text(&mut self.stdout), stderr: text(&mut self.stderr) }
    }
    /// SIGKILL, and its end.
    pub fn kill(self) -> Ran {
        self.signal(libc::SIGKILL);
        self.wait()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a stock tool, which must succeed; its standard output.
#[track_caller]
pub fn tool<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    let ran = try_tool(program, arguments);
    assert_eq!(ran.code, 0, "{program}: {}{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// Runs a stock tool.
#[track_caller]
pub fn try_tool<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Ran {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    // Debian keeps these off an ordinary user's path.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    ran(command.output().unwrap_or_else(|e| panic!("{program} cannot be run ({e}); tests/run installs it")))
}

/// The directory of PostgreSQL's server programs, which are on nobody's path.
pub fn postgres_bin() -> PathBuf {
    let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL's server programs are missing; tests/run installs them")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().expect("initdb is missing; tests/run installs it")
}
