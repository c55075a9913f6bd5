//! How far a command is, on stderr: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(5);

/// Progress of a known or unknown number of steps.
pub(super) struct Progress {
    unit: &'static str,
    total: Option<u64>,
    done: u64,
    failed: u64,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts at none of `total`; `unit` is what is counted, in the plural.
    pub(super) fn new(unit: &'static str, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(unit, total));
        let now = Instant::now();
        Self { unit, total, done: 0, failed: 0, started: now, told: now, bar }
    }

    /// One more is done.
    pub(super) fn step(&mut self, ok: bool) {
        self.done += 1;
        self.failed += u64::from(!ok);
        if let Some(bar) = &self.bar {
            bar.inc(1);
        } else if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            self.tell();
        }
    }

    /// How many failed.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// Tells how it ended.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.tell();
    }

    /// Where standard error cannot be written, nothing is told, and the work goes on.
    fn tell(&self) {
        let _ = writeln!(std::io::stderr(), "{}", self.line());
    }

    fn line(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let of = self.total.map(|total| format!(" of {total}")).unwrap_or_default();
        let failed = if self.failed > 0 { format!(", {} failed", self.failed) } else { String::new() };
        let rate = self.done as f64 / seconds.max(1e-3);
        format!("{}{of} {} in {seconds:.1} s ({rate:.1}/s){failed}", self.done, self.unit)
    }
}

fn bar(unit: &str, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => format!("{{bar:30}} {{pos}}/{{len}} {unit} ({{per_sec}}, {{eta}} left)"),
        None => format!("{{spinner}} {{pos}} {unit} ({{per_sec}})"),
    };
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    // The template is a constant of ours; the default style is as good if it were not.
    bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
