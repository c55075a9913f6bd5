//! The commands, and what their exit codes mean.

pub mod calibrate;
pub mod eval;
mod files;
pub mod local;
mod log;
mod output;
mod progress;
pub mod prompt;
pub mod score;
pub mod serve;
pub mod verify;

use std::{fmt, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    config::ServeArgs,
    error::{Error, Result},
    model::Model,
};

/// Relevance grades from a causal language model's first token; the reason from the tokens after it.
#[derive(Parser)]
#[command(version = VERSION, after_long_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " ", env!("VERDICT_COMMIT"));

const EXIT_CODES: &str = "Exit codes:
  0  done, or stopped by SIGTERM or SIGINT and drained
  1  a failure while running, or requests were cut off at the end of --grace
  2  wrong usage or configuration
  3  the model was refused, or its probes failed
  4  an address could not be bound";

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP and gRPC
    #[command(after_long_help = EXIT_CODES)]
    Serve(Box<ServeArgs>),
    /// Score JSON lines
    #[command(after_long_help = EXIT_CODES)]
    Score(score::ScoreArgs),
    /// Print prompts as the token ids that the model is asked with
    #[command(after_long_help = EXIT_CODES)]
    Prompt(prompt::PromptArgs),
    /// Measure ranking and grading on judged documents
    #[command(after_long_help = EXIT_CODES)]
    Eval(eval::EvalArgs),
    /// Fit the temperature, and a map of the score, on judged documents
    #[command(after_long_help = EXIT_CODES)]
    Calibrate(calibrate::CalibrateArgs),
    /// Compare the engine with candle-transformers on the same checkpoint
    #[command(after_long_help = EXIT_CODES)]
    Verify(verify::VerifyArgs),
}

/// The process's exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// A failure while running.
    Runtime = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The model was refused, or its probes failed.
    Model = 3,
    /// An address could not be bound.
    Bind = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What went wrong; its causes are told after it.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure with a code.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Runtime, error }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(Exit::Runtime, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = self.error.to_string();
        formatter.write_str(&told)?;
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            // Many errors repeat their cause in their own text.
            if !told.contains(&cause) {
                write!(formatter, ": {cause}")?;
                told = cause;
            }
        }
        Ok(())
    }
}

/// Runs the command that was typed.
///
/// # Errors
///
/// The command's failure, with its exit code.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(args) => serve::run(*args),
        Command::Score(args) => score::run(args),
        Command::Prompt(args) => prompt::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Verify(args) => verify::run(args),
    }
}

/// The checkpoint in `dir`, or the embedded model.
///
/// # Errors
///
/// [`Exit::Model`], naming the file and what is wrong with it.
pub fn load_model(dir: Option<&Path>) -> Result<Model, Failure> {
    open_model(dir).map_err(|error| Failure::new(Exit::Model, error))
}

fn open_model(dir: Option<&Path>) -> Result<Model> {
    match dir {
        Some(dir) => Model::load(dir),
        None => Model::bundled(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_failure_tells_its_causes_once() {
        let error =
            Error::invalid("x.toml", "cannot be read: gone").with_cause(std::io::Error::other("gone"));
        assert_eq!(Failure::from(error).to_string(), "x.toml: cannot be read: gone");
        let error = Error::internal("the engine failed").with_cause(std::io::Error::other("disk"));
        assert_eq!(Failure::from(error).to_string(), "the engine failed: disk");
    }
}
