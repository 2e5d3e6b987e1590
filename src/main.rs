//! `motiongear`: parse, run the verb, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    motiongear::cli::main()
}
