//! What a command writes: what cannot be written is an error, and a reader that has left is none.

use std::{
    fmt,
    fs::File,
    io::{self, BufWriter, ErrorKind, Write},
    path::Path,
};

use anyhow::Context as _;

/// A file, or standard output.
pub(super) struct Output {
    to: Box<dyn Write>,
    /// As errors call it.
    name: String,
    /// Whoever read it has enough, as `head` does: nothing more is written.
    left: bool,
}

impl Output {
    /// Standard output.
    pub(super) fn standard() -> Self {
        Self::new(io::stdout().lock(), "standard output")
    }

    /// A new file in place of what is at `path`; - is standard output.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::standard());
        }
        let name = path.display().to_string();
        let file = File::create(path).with_context(|| format!("{name} cannot be written"))?;
        Ok(Self::new(BufWriter::new(file), &name))
    }

    fn new(to: impl Write + 'static, name: &str) -> Self {
        Self { to: Box::new(to), name: name.to_owned(), left: false }
    }

    /// Whether nobody reads any more.
    pub(super) fn is_left(&self) -> bool {
        self.left
    }

    /// Writes a line.
    pub(super) fn line(&mut self, line: impl fmt::Display) -> anyhow::Result<()> {
        self.bytes(line.to_string().as_bytes())
    }

    /// Writes a line of bytes.
    pub(super) fn bytes(&mut self, line: &[u8]) -> anyhow::Result<()> {
        if self.left {
            return Ok(());
        }
        let written = self.to.write_all(line).and_then(|()| self.to.write_all(b"\n"));
        self.checked(written)
    }

    /// Writes what is still held.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        if self.left {
            return Ok(());
        }
        let flushed = self.to.flush();
        self.checked(flushed)
    }

    fn checked(&mut self, written: io::Result<()>) -> anyhow::Result<()> {
        match written {
            Err(cause) if cause.kind() == ErrorKind::BrokenPipe => {
                self.left = true;
                Ok(())
            }
            other => other.with_context(|| format!("{} cannot be written", self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes and then fails.
    struct Failing {
        room: usize,
        kind: ErrorKind,
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(self.kind.into());
            }
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            if self.room == 0 { Err(self.kind.into()) } else { Ok(()) }
        }
    }

    #[test]
    fn a_reader_that_left_ends_it_quietly() {
        let mut output = Output::new(Failing { room: 8, kind: ErrorKind::BrokenPipe }, "x");
        output.line("first").expect("written");
        assert!(!output.is_left());
        output.line("second").expect("quiet");
        assert!(output.is_left());
        output.line("third").and_then(|()| output.flush()).expect("quiet");
    }

    #[test]
    fn what_cannot_be_written_is_told_with_its_name() {
        let mut output = Output::new(Failing { room: 2, kind: ErrorKind::StorageFull }, "x.txt");
        let error = output.line("first").expect_err("full");
        assert_eq!(format!("{error:#}"), "x.txt cannot be written: no storage space");
        assert!(output.flush().is_err() && !output.is_left());
    }
}
