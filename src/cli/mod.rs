//! What was typed. One file a verb turns it into that verb's `Options`; the environment is read here and nowhere else.

mod array;
mod centre;
mod drill;
mod globals;
mod host;
mod job;
mod paper;
mod serve;
mod source;

use crate::array::apart::refuse_on;
use crate::context::{Context, Outcome};
use crate::error::Result;
use crate::lang::Lang;
use crate::screen::{complain, safe, safe_json};
use crate::source::SysRoot;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use globals::Globals;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Copies whole disks onto a portable array, proves them at the data centre, and says what changed since.
#[derive(Parser)]
#[command(name = "motiongear", version, about, max_term_width = 110, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Rehearse(host::RehearseArgs),
    Inspect(host::InspectArgs),
    Init(array::InitArgs),
    Seed(source::SeedArgs),
    Seal(array::SealArgs),
    Verify(centre::VerifyArgs),
    Import(centre::ImportArgs),
    Restore(centre::RestoreArgs),
    Scan(source::ScanArgs),
    Drill(drill::DrillArgs),
    Serve(serve::ServeArgs),
    Custody(paper::CustodyArgs),
    Report(paper::ReportArgs),
    Erase(paper::EraseArgs),
    Keygen(paper::KeygenArgs),
    Ledger(paper::LedgerArgs),
    Release(host::ReleaseArgs),
    Status(job::StatusArgs),
    Pause(job::PauseArgs),
    Resume(job::ResumeArgs),
    Limit(job::LimitArgs),
    /// Started by seed while a machine is frozen; not for people.
    #[command(hide = true)]
    ThawWatchdog,
    /// Started by drill; not for people.
    #[command(hide = true)]
    DrillKeeper {
        id: uuid::Uuid,
    },
    /// Started by a drill's keeper; not for people.
    #[command(hide = true)]
    DrillAdapter {
        keeper: i32,
        place: std::path::PathBuf,
        #[arg(long)]
        tcg: bool,
    },
}

/// Parses, runs the verb, shows its outcome; the exit code of `design.md` §7.
pub fn main() -> ExitCode {
    guard_secrets();
    // A file that grows beyond its limit is an error that names the file, and not a death without a word.
    // SAFETY: no thread runs yet, and ignoring a signal touches no memory.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    allow_open_files();
    let parsed = Cli::command().try_get_matches();
    let parsed = parsed.and_then(|found| Ok((Cli::from_arg_matches(&found)?, Places::of(&found))));
    let (cli, places) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // `--help` and `--version` come this way, too. Nobody is there to read if this cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    if let Verb::DrillAdapter { keeper, place, tcg } = cli.verb {
        return ExitCode::from(crate::drill::adapter(&crate::drill::AdapterOptions { keeper, place, tcg }));
    }
    if matches!(cli.verb, Verb::ThawWatchdog) {
        return ExitCode::from(u8::try_from(crate::source::watchdog::watchdog_main()).unwrap_or(1));
    }
    let json = cli.globals.json;
    match places.refuse(&cli.globals).and_then(|()| cli.run()) {
        Ok(code) => code,
        Err(error) => {
            if json {
                let next = error.next.clone();
                let kind = format!("{:?}", error.kind).to_lowercase();
                let said = serde_json::json!({ "error": { "kind": kind, "message": error.to_string(), "next": next } });
                say_line(&safe_json(&said.to_string()));
            }
            // A hung-up terminal must not turn an error into another one.
            complain(&format!("error: {error}"));
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// The array that was named, and the directories that must lie elsewhere, whatever the verb.
struct Places {
    array: Option<PathBuf>,
    apart: Vec<(&'static str, PathBuf)>,
}

impl Places {
    fn of(matches: &ArgMatches) -> Places {
        let mut verb = matches;
        while let Some((_, inner)) = verb.subcommand() {
            verb = inner;
        }
        // Whatever is no path, or no argument of this verb, is no place.
        let path = |id: &str| verb.try_get_one::<PathBuf>(id).ok().flatten().cloned();
        let apart = [("Directory --out", "out"), ("Directory --certificate", "certificate")];
        let apart = apart.into_iter().chain([("Directory --scratch", "scratch"), ("Directory --export", "export")]);
        Places {
            array: path("array").or_else(|| path("from")),
            apart: apart.filter_map(|(object, id)| Some((object, path(id)?))).collect(),
        }
    }

    /// Before anything is made in them.
    fn refuse(&self, globals: &Globals) -> Result<()> {
        let (Some(array), sys) = (&self.array, SysRoot::new("/")) else { return Ok(()) };
        refuse_on("State directory", &globals.state()?, array, &sys, false)?;
        self.apart.iter().try_for_each(|(object, path)| refuse_on(object, path, array, &sys, false))
    }
}

/// Before anything is made or read: what is written is for this user alone, and what is in memory is in no core dump. Nothing more can be
/// done where the kernel refuses.
fn guard_secrets() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Raises the soft limit of open files to the hard one: a disk needs a few, a plan has hundreds, and 1,024 is what shells give.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Without it the work may do all the same; what fails then says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

impl Cli {
    fn run(self) -> Result<ExitCode> {
        let Cli { globals, verb } = self;
        let shown = Shown { json: globals.json, quiet: globals.quiet, lang: globals.lang() };
        match verb {
            Verb::Inspect(args) => args.run(&globals),
            Verb::Release(args) => {
                let nothing_will_do = globals.dry_run || args.or_nothing;
                let released = args.run(&globals)?;
                shown.text(&released, |released| host::released(released, shown.lang))?;
                Ok(ExitCode::from(u8::from(released.removed.is_empty() && !nothing_will_do)))
            }
            Verb::Status(args) => args.run(&globals),
            Verb::Pause(args) => shown.text(&args.run(&globals)?, |a| a.render(shown.lang)),
            Verb::Resume(args) => shown.text(&args.run(&globals)?, |a| a.render(shown.lang)),
            Verb::Limit(args) => shown.text(&args.run(&globals)?, |a| a.render(shown.lang)),
            Verb::Init(args) => shown.outcome(&globals, |context| crate::init::run(context, args.try_into()?)),
            Verb::Seed(args) => shown.outcome(&globals, |context| crate::seed::run(context, args.options(context)?)),
            Verb::Seal(args) => shown.outcome(&globals, |context| crate::seal::run(context, args.try_into()?)),
            Verb::Verify(args) => match args.volumes()? {
                Some(options) => shown.outcome(&globals, |context| crate::verify::volumes::run(context, &options)),
                None => shown.outcome(&globals, |context| crate::verify::run(context, args.try_into()?)),
            },
            Verb::Rehearse(args) => {
                let mut options = crate::rehearse::Options::try_from(args)?;
                let state = options.prepare(globals.dry_run)?;
                let globals = globals.with_state(state);
                shown.outcome(&globals, |context| crate::rehearse::run(context, &options))
            }
            Verb::Import(args) => shown.outcome(&globals, |context| crate::import::run(context, args.try_into()?)),
            Verb::Restore(args) => shown.outcome(&globals, |context| crate::restore::run(context, args.try_into()?)),
            Verb::Scan(args) => shown.outcome(&globals, |context| crate::scan::run(context, args.try_into()?)),
            Verb::Serve(args) => shown.outcome(&globals, |context| crate::serve::run(context, &args.options()?)),
            Verb::Custody(args) => shown.outcome(&globals, |context| crate::custody::run(context, args.options())),
            Verb::Report(args) => shown.outcome(&globals, |context| crate::report::run(context, args.options()?)),
            Verb::Erase(args) => shown.outcome(&globals, |context| crate::erase::run(context, args.into())),
            Verb::Keygen(args) => shown.outcome(&globals, |context| args.run(context)),
            Verb::Ledger(paper::LedgerArgs { what: paper::LedgerWhat::Show }) => {
                shown.outcome(&globals, crate::ledger::moving::show)
            }
            Verb::Ledger(paper::LedgerArgs { what: paper::LedgerWhat::Move(args) }) => {
                shown.outcome(&globals, |context| crate::ledger::moving::run(context, args.try_into()?))
            }
            Verb::Drill(drill::DrillArgs { what }) => match what {
                drill::DrillWhat::Start(args) => {
                    shown.outcome(&globals, |context| crate::drill::start(context, &args.try_into()?))
                }
                drill::DrillWhat::Show(args) => {
                    shown.outcome(&globals, |context| crate::drill::show(context, args.id.as_deref()))
                }
                drill::DrillWhat::Confirm(args) => {
                    shown.outcome(&globals, |context| crate::drill::confirm(context, &args.into()))
                }
                drill::DrillWhat::Withdraw(args) => {
                    shown.outcome(&globals, |context| crate::drill::withdraw(context, &args.into()))
                }
                drill::DrillWhat::End(args) => shown.outcome(&globals, |context| crate::drill::end(context, &args.id)),
            },
            Verb::DrillKeeper { id } => {
                crate::drill::keeper(&globals.context()?, id)?;
                Ok(ExitCode::SUCCESS)
            }
            Verb::ThawWatchdog | Verb::DrillAdapter { .. } => Ok(ExitCode::SUCCESS),
        }
    }
}

/// How results are shown.
#[derive(Clone, Copy)]
struct Shown {
    json: bool,
    quiet: bool,
    lang: Lang,
}

impl Shown {
    /// Runs a verb with a ledger and shows its outcome.
    fn outcome<O: Outcome>(self, globals: &Globals, run: impl FnOnce(&Context) -> Result<O>) -> Result<ExitCode> {
        let context = globals.context()?;
        let outcome = run(&context);
        if let Some(dir) = crate::io::cannot_sync() {
            let dir = dir.display();
            context.monitor.note(&crate::say!(
                self.lang,
                "{dir}: its file system cannot make names durable; after a power cut there, check what was written last",
                "{dir}：该文件系统无法保证目录项落盘；若断电，请检查最后写入的内容"
            ));
        }
        let outcome = outcome?;
        self.text(&outcome, |outcome| outcome.summary(self.lang))?;
        let code = outcome.exit_code();
        if self.quiet && !self.json && code != 0 {
            // Damage is no chatter.
            complain(&outcome.summary(self.lang));
        }
        Ok(ExitCode::from(code))
    }

    /// Shows a result as JSON or as text.
    fn text<T: serde::Serialize>(self, result: &T, render: impl FnOnce(&T) -> String) -> Result<ExitCode> {
        if self.json {
            let text = serde_json::to_string_pretty(result)
                .map_err(|e| crate::error::Error::failed("Result as JSON").because(e))?;
            say_line(&safe_json(&text));
        } else if !self.quiet {
            say_line(&safe(&render(result)));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A line on stdout; a closed pipe is the reader's choice, not our failure.
fn say_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
