//! What a command reads, gzipped where its name ends in `.gz`, and what it writes for it.

use std::{
    fs::{self, File, Metadata},
    io::{self, BufRead, BufReader, Read as _},
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    path::Path,
};

use anyhow::Context as _;
use flate2::bufread::MultiGzDecoder;

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

/// The whole text of a file.
///
/// # Errors
///
/// `Invalid`, naming the path, if it cannot be read, is no gzip though its name says so, or is no UTF-8.
pub(super) fn text(path: &Path) -> crate::error::Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| lines(file, path).read_to_string(&mut text));
    let cannot =
        |cause: io::Error| Error::invalid(&path.display().to_string(), format!("cannot be read: {cause}"));
    read.map(|_| text).map_err(cannot)
}

fn lines(file: File, path: &Path) -> Box<dyn BufRead + Send> {
    let file = BufReader::new(file);
    if is_gzipped(path) { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) }
}

fn is_gzipped(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "gz")
}

/// A file's name without its last ending, `.gz` aside.
pub(super) fn stem(path: &Path) -> String {
    let path = if is_gzipped(path) { path.with_extension("") } else { path.to_owned() };
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
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
    Ok((Input { reader: lines(file, path), name }, known))
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn what_is_gzipped_is_read_as_its_text_and_what_is_damaged_is_named() {
        let packed = |text: &str| {
            let mut file = GzEncoder::new(Vec::new(), Compression::default());
            file.write_all(text.as_bytes()).and_then(|()| file.finish()).expect("packed")
        };
        let file = |end: &str, bytes: &[u8]| {
            let mut file = tempfile::Builder::new().suffix(end).tempfile().expect("made");
            file.write_all(bytes).expect("written");
            file
        };
        let whole = [packed("a\n"), packed("b\n")].concat();
        assert_eq!(text(file(".gz", &whole).path()).expect("reads"), "a\nb\n", "of all its members");
        assert_eq!(text(file(".txt", b"a\n").path()).expect("reads"), "a\n");
        for bytes in [&whole[..whole.len() - 9], b"a\n", &packed("a")[..9]] {
            let damaged = file(".gz", bytes);
            let refused = text(damaged.path()).expect_err("refused").to_string();
            let path = damaged.path().display().to_string();
            assert!(refused.contains(&path) && refused.contains("cannot be read: "), "{refused}");
        }
        let mut input = read(file(".gz", &whole).path()).expect("opens").0.reader;
        let mut line = String::new();
        input.read_line(&mut line).expect("reads");
        assert_eq!(line, "a\n");
    }
}
