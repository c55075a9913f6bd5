//! The `verdict` binary: parse, run, exit code.

use std::{
    io::Write as _,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser as _;
use verdict::cli::{Cli, Exit};

/// How long the process's own end may take: what a GPU's driver does there may wait for a kernel that never ends.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let exit = match verdict::cli::run(Cli::parse()) {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            // Where standard error cannot be written, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "verdict: {failure}");
            failure.exit
        }
    };
    // Without the thread the process ends as well, if nothing holds it.
    let _ = thread::Builder::new().spawn(move || leave(exit));
    exit.into()
}

/// Ends the process, once it had its time to end by itself.
#[expect(unsafe_code, reason = "ends the process")]
fn leave(exit: Exit) {
    let end = Instant::now() + PATIENCE;
    while let Some(rest) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(rest);
    }
    // SAFETY: nothing of this process runs behind it.
    unsafe { libc::_exit(exit as i32) }
}
