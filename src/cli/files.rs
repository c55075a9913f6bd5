//! What a command reads line by line, and what it writes for it.

use std::{
    fs::{self, File, Metadata},
    io::{self, BufRead, BufReader},
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    path::Path,
};

use anyhow::Context as _;

use crate::error::Error;

use super::{Exit, Failure, output::Output};

/// Lines to read.
pub(super) struct Input {
    pub(super) reader: Box<dyn BufRead + Send>,
    /// As errors call it.
    pub(super) name: String,
}

/// Opens what is read, and then what is written in place of what is there; - is a standard stream.
///
/// # Errors
///
/// [`Exit::Usage`] if one of them cannot be opened, or if both are one file: it would be emptied
/// before it is read.
pub(super) fn open(input: &Path, output: &Path) -> Result<(Input, Output), Failure> {
    let usage = |error| Failure { exit: Exit::Usage, error };
    let (read, from) = read(input).map_err(usage)?;
    let to = if is_standard(output) { of(io::stdout()) } else { fs::metadata(output).ok() };
    if let (Some(from), Some(to)) = (from, to)
        && is_same(&from, &to)
    {
        let written =
            if is_standard(output) { "standard output".into() } else { output.display().to_string() };
        let message = format!("{written} is the file of the input, {}, and would be emptied", read.name);
        return Err(Failure::new(Exit::Usage, Error::invalid("output", message)));
    }
    Ok((read, Output::create(output).map_err(usage)?))
}

/// The lines, and what is known of the file, if it is one.
fn read(path: &Path) -> anyhow::Result<(Input, Option<Metadata>)> {
    if is_standard(path) {
        let input =
            Input { reader: Box::new(BufReader::new(io::stdin())), name: "standard input".to_owned() };
        return Ok((input, of(io::stdin())));
    }
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("{name} cannot be read"))?;
    let known = file.metadata().ok();
    // It opens like a file, and only fails when it is read.
    anyhow::ensure!(!known.as_ref().is_some_and(Metadata::is_dir), "{name} cannot be read: is a directory");
    Ok((Input { reader: Box::new(BufReader::new(file)), name }, known))
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

fn of(stream: impl AsFd) -> Option<Metadata> {
    File::from(stream.as_fd().try_clone_to_owned().ok()?).metadata().ok()
}

/// One file, by whatever names. A terminal or a pipe may well be both ends.
fn is_same(from: &Metadata, to: &Metadata) -> bool {
    from.is_file() && (from.dev(), from.ino()) == (to.dev(), to.ino())
}
