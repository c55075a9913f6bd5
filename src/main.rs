//! The `verdict` binary: parse, run, exit code.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use verdict::cli::{Cli, Exit};

fn main() -> ExitCode {
    match verdict::cli::run(Cli::parse()) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            // Where standard error cannot be written, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "verdict: {failure}");
            failure.exit.into()
        }
    }
}
