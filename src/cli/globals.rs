//! Options that every verb takes, before or after it, and the surroundings that they describe.

use crate::context::{Ask, Context};
use crate::error::{Error, Result};
use crate::io::Engine;
use crate::lang::Lang;
use crate::ledger::Ledger;
use crate::monitor::{Kind, monitor};
use crate::openstack::Environment;
use crate::source::SysRoot;
use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// Sets these options apart in every verb's help, where they would stand between its own.
const HEADING: &str = "Options of every verb";

#[derive(Args)]
pub struct Globals {
    /// Machine-readable result on stdout, progress as JSON lines on stderr.
    #[arg(long, global = true, help_heading = HEADING)]
    pub json: bool,
    /// No progress and no summary; errors only.
    #[arg(long, global = true, help_heading = HEADING)]
    pub quiet: bool,
    /// Language of summaries and reports.
    #[arg(long, global = true, help_heading = HEADING, value_enum, value_name = "LANG")]
    lang: Option<LangArg>,
    /// Where the ledger is kept.
    #[arg(long, global = true, help_heading = HEADING, value_name = "DIR")]
    state: Option<PathBuf>,
    /// How bytes move.
    #[arg(long, global = true, help_heading = HEADING, value_enum, default_value_t = EngineArg::Auto)]
    engine: EngineArg,
    /// Only say what would be done.
    #[arg(long, global = true, help_heading = HEADING)]
    pub dry_run: bool,
    /// Let passwords and tokens of a cloud travel in clear, where its addresses are no https.
    #[arg(long, global = true, help_heading = HEADING)]
    insecure_http: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LangArg {
    En,
    Zh,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineArg {
    Auto,
    Uring,
    Threads,
}

impl Globals {
    /// As asked, else as the environment says.
    pub fn lang(&self) -> Lang {
        match self.lang {
            Some(LangArg::En) => Lang::En,
            Some(LangArg::Zh) => Lang::Zh,
            None => {
                let named = ["LC_ALL", "LC_MESSAGES", "LANG"]
                    .iter()
                    .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
                if named.is_some_and(|v| v.starts_with("zh")) { Lang::Zh } else { Lang::En }
            }
        }
    }

    /// The state directory: as asked, `/var/lib/motiongear` for root, else the user's own.
    pub fn state(&self) -> Result<PathBuf> {
        if let Some(state) = &self.state {
            return Ok(state.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/motiongear".into());
        }
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        set("XDG_STATE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".local/state")))
            .map(|base| base.join("motiongear"))
            .ok_or_else(|| {
                Error::usage("State directory: expected XDG_STATE_HOME or HOME, found neither")
                    .next("name one with --state DIR")
            })
    }

    /// The same with another state directory.
    pub fn with_state(self, state: PathBuf) -> Globals {
        Globals { state: Some(state), ..self }
    }

    pub fn engine(&self) -> Engine {
        match self.engine {
            EngineArg::Auto => Engine::Auto,
            EngineArg::Uring => Engine::Uring,
            EngineArg::Threads => Engine::Threads,
        }
    }

    /// A person at the terminal can be asked for a code; a script cannot.
    fn ask_code(&self) -> Option<Ask> {
        let person = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !self.json;
        person.then(|| -> Ask { Arc::new(ask_aloud) })
    }

    pub fn context(&self) -> Result<Context> {
        let kind = match (self.quiet, self.json) {
            (true, _) => Kind::Quiet,
            (_, true) => Kind::Json,
            _ if std::io::stderr().is_terminal() => Kind::Bars,
            _ => Kind::Lines,
        };
        if let Ok(command) = std::env::var("MOTIONGEAR_SSH") {
            crate::ssh::use_command(&command);
        }
        if let Some(uid) = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok()) {
            crate::trust::act_for(uid);
        }
        let state = self.state()?;
        crate::nbd::pin::use_state(&state);
        Ok(Context {
            ledger: Arc::new(Ledger::open(&state)?),
            engine: self.engine(),
            lang: self.lang(),
            monitor: Arc::from(monitor(kind, self.lang())),
            sys: SysRoot::new("/"),
            ask: Arc::new(ask),
            ask_code: self.ask_code(),
            clouds: clouds(self.insecure_http),
            dry_run: self.dry_run,
            rehearsal: false,
        })
    }
}

/// What the environment says of clouds, as stock OpenStack clients look for it.
fn clouds(insecure_http: bool) -> Environment {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let configuration = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let directories = [std::env::current_dir().ok(), configuration.map(|dir| dir.join("openstack"))];
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("OS_"))?;
        Some((name, value.into_string().ok()?))
    });
    let directories = directories.into_iter().flatten().chain(["/etc/openstack".into()]);
    Environment { variables: variables.collect(), directories: directories.collect(), insecure_http }
}

/// Asks for what is no secret.
fn ask_aloud(question: &str) -> std::io::Result<String> {
    let mut stderr = std::io::stderr();
    write!(stderr, "{question}").and_then(|()| stderr.flush())?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line)
}

/// How long a line of standard input is waited for: a store of secrets may have to ask its own user first.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// Longest passphrase from there.
const MAX_PHRASE_BYTES: usize = 4096;

/// Asks on the terminal; without one, takes the next line of standard input. Where nobody writes one, as below a timer, it ends.
fn ask(key: &str) -> std::io::Result<String> {
    if let Ok(phrase) = rpassword::prompt_password(format!("Passphrase of {key}: ")) {
        return Ok(phrase);
    }
    let (stdin, mut line) = (rustix::stdio::stdin(), Vec::new());
    let none = |kind, why: &str| Err(std::io::Error::new(kind, format!("there is no terminal, and {why}")));
    // Byte by byte, so that what follows the line is left for whoever asks next.
    loop {
        let mut byte = [0];
        if poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&PATIENCE))? == 0 {
            return none(ErrorKind::TimedOut, "no line came from standard input within a minute");
        }
        match rustix::io::read(stdin, &mut byte)? {
            0 if line.is_empty() => return none(ErrorKind::UnexpectedEof, "standard input has no line"),
            0 => break,
            _ if byte == *b"\n" || line.len() == MAX_PHRASE_BYTES => break,
            _ => line.extend(byte),
        }
    }
    let line = String::from_utf8(line).map_err(|_| std::io::Error::from(ErrorKind::InvalidData))?;
    Ok(line.trim_end_matches('\r').to_owned())
}
