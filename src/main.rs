//! The `verdict` binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use verdict::cli::{Cli, Exit};

fn main() -> ExitCode {
    match verdict::cli::run(Cli::parse()) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            eprintln!("verdict: {failure}");
            failure.exit.into()
        }
    }
}
