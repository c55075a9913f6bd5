//! The log of `verdict serve`, written by a thread of its own: whoever reads it may be slow, or stuck, and no request
//! waits for that. What it cannot take is lost, and counted.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{
    config::{Config, LogFormat},
    error::Error,
};

use super::{Exit, Failure};

/// Lines that wait to be written: at some 200 bytes each, 2 MB.
const WAITING: usize = 10_000;
/// How long the end waits for lines to be written.
const FAREWELL: Duration = Duration::from_millis(500);

/// Starts the log on standard error; keep what it returns until the last line.
///
/// # Errors
///
/// [`Exit::Usage`] for a filter that cannot be read.
pub(super) fn start(config: &Config) -> Result<Log, Failure> {
    let filter = EnvFilter::try_new(&config.log).map_err(|cause| {
        let message = format!("{:?}: {cause}", config.log);
        Failure::new(Exit::Usage, Error::invalid("log", message).with_cause(cause))
    })?;
    let lines = Lines::to(io::stderr()).map_err(|cause| cannot(&cause))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines.clone())
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    let started = match config.log_format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|cause| cannot(&cause))?;
    Ok(Log { lines })
}

fn cannot(cause: &dyn std::fmt::Display) -> Failure {
    Failure::from(anyhow::anyhow!("the log could not be started: {cause}"))
}

/// A log that was started. Its end waits, for a moment, until all is written.
pub(super) struct Log {
    lines: Lines,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.finish(FAREWELL);
    }
}

/// What the thread is told.
enum Told {
    Line(Vec<u8>),
    /// Say when all before it is written.
    Finish(SyncSender<()>),
}

/// Takes lines, and never waits.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Told>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Lines for `output`, with the thread that writes them.
    fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, told) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Self { queue, lost: Arc::clone(&lost) };
        thread::Builder::new().name("log".to_owned()).spawn(move || write(output, &told, &lost))?;
        Ok(lines)
    }

    fn finish(&self, most: Duration) {
        let (sender, written) = sync_channel(1);
        // Where there is no room for it, nobody reads, and waiting helps nobody.
        if self.queue.try_send(Told::Finish(sender)).is_ok() {
            let _ = written.recv_timeout(most);
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Told::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn write(mut output: impl Write, told: &Receiver<Told>, lost: &AtomicU64) {
    for told in told {
        match told {
            // A line that cannot be written, on a full disk, is only a line.
            Told::Line(line) => drop(output.write_all(&line)),
            Told::Finish(written) => drop(written.send(())),
        }
        let lines = lost.swap(0, Ordering::Relaxed);
        if lines > 0 {
            tracing::warn!(lines, "lines of the log were lost: it was not read");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    /// Passes a line when it is told to.
    struct Stuck {
        pass: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<String>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.pass.recv();
            self.written.lock().expect("whole").push(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_nobody_reads_is_lost_and_waits_for_nobody() {
        let (pass, passed) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut lines = Lines::to(Stuck { pass: passed, written: Arc::clone(&written) }).expect("a thread");
        // One more than wait may be in the thread's hands.
        for number in 0..WAITING + 100 {
            lines.write_all(number.to_string().as_bytes()).expect("taken");
        }
        let lost = lines.lost.load(Ordering::Relaxed);
        assert!((99..=100).contains(&lost), "{lost}");
        lines.finish(Duration::ZERO);
        drop(pass);
        while written.lock().expect("whole").len() < WAITING {
            thread::yield_now();
        }
        lines.finish(Duration::from_secs(60));
        let written = written.lock().expect("whole");
        assert_eq!((written[0].as_str(), written[1].as_str()), ("0", "1"), "in their order");
        assert_eq!(lines.lost.load(Ordering::Relaxed), 0, "told");
    }
}
