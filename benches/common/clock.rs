//! Wall and CPU time of repeated runs.

use std::time::Instant;

/// Seconds of one run.
#[derive(Clone, Copy)]
pub(crate) struct Time {
    /// By the clock.
    pub(crate) wall: f64,
    /// Of all the process's threads, by the scheduler's account (Linux); says what a run costs
    /// where other work shares the machine. The wall time elsewhere.
    pub(crate) cpu: f64,
}

/// Medians of `runs` calls after one warm-up.
pub(crate) fn median(runs: usize, mut f: impl FnMut()) -> Time {
    f();
    let mut times: Vec<Time> = (0..runs)
        .map(|_| {
            let (start, cpu) = (Instant::now(), cpu_seconds());
            f();
            let wall = start.elapsed().as_secs_f64();
            Time { wall, cpu: cpu.and_then(|cpu| Some(cpu_seconds()? - cpu)).unwrap_or(wall) }
        })
        .collect();
    let mut middle = |key: fn(&Time) -> f64| {
        times.sort_by(|a, b| key(a).total_cmp(&key(b)));
        key(&times[runs / 2])
    };
    Time { wall: middle(|t| t.wall), cpu: middle(|t| t.cpu) }
}

fn cpu_seconds() -> Option<f64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let nanos: u64 = tasks
        .filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum();
    Some(nanos as f64 / 1e9)
}
