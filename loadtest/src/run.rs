//! One scenario from its first request to its verdict.

use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    client::Client,
    drive, expect,
    scenario::{Scenario, Step},
    server::{Metrics, Target, resident_mib, settled},
    tally::{ServerDelta, Spread, StepOutcome, shown},
    texts::{Lane, Texts},
};

/// How long a server may take to let go of everything after the last answer.
const SETTLE: Duration = Duration::from_secs(30);

/// A run, as it is written down.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Run {
    pub(crate) scenario: Scenario,
    /// Of the server, as it says.
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) model: String,
    pub(crate) device: String,
    pub(crate) machine: String,
    /// Seconds since 1970.
    pub(crate) at: u64,
    /// Answers a second with clients that wait for each answer, if it was measured.
    pub(crate) capacity_per_second: Option<f64>,
    pub(crate) steps: Vec<StepOutcome>,
    /// What was expected and is not so.
    pub(crate) broken: Vec<String>,
}

/// Runs a scenario against a server.
pub(crate) async fn run(scenario: &Scenario, target: &Target) -> Result<Run> {
    measurable(scenario, target)?;
    let client = Client::new(&target.url)?;
    if let Some(admin) = &target.admin {
        Metrics::read(&client, admin).await?.held()?;
    }
    let mut run = begun(scenario, &client, target).await?;
    let lanes = Lane { index: 0, of: scenario.lanes() };
    let (mut texts, mut random) = (Texts::new(scenario.seed, lanes), fastrand::Rng::with_seed(scenario.seed));
    let mut next = Lane { index: 1, ..lanes };
    if scenario.calibration_seconds > 0.0 {
        run.capacity_per_second = Some(capacity(&client, scenario, next).await?);
        next.index += scenario.calibration_clients as u64;
    }
    for step in &scenario.step {
        let of_capacity = step.capacity.zip(run.capacity_per_second).map(|(times, rate)| times * rate);
        let rate = step.rate.or(of_capacity).unwrap_or(0.0);
        let before = known(metrics(&client, target).await, &mut run.broken);
        let tally = match step.clients {
            Some(clients) => {
                let (kinds, span) = (scenario.kinds(step), Duration::from_secs_f64(step.seconds));
                let tally = drive::waiting(&client, scenario, &kinds, clients, span, next).await;
                next.index += clients as u64;
                tally
            }
            None => {
                let driven = drive::step(&client, scenario, step, rate, &mut texts, &mut random);
                let (tally, told) = tokio::join!(driven, stop_within(step, target));
                told?;
                tally
            }
        };
        let after = match &target.admin {
            Some(admin) if step.stop_after.is_none() => {
                known(settled(&client, admin, SETTLE).await.map(Some), &mut run.broken)
            }
            _ => None,
        };
        let outcome = tally.outcome(rate, step, delta(before.as_ref(), after.as_ref(), target));
        eprintln!("{}", line(&outcome));
        if !step.warm_up {
            run.steps.push(outcome);
        }
    }
    run.broken.extend(expect::broken(scenario, &run.steps));
    Ok(run)
}

/// Refuses a scenario with expectations that nothing can be measured for here.
fn measurable(scenario: &Scenario, target: &Target) -> Result<()> {
    let expect = &scenario.expect;
    if expect.growth_mib.is_some() && target.process().is_none() {
        bail!("growth_mib: only of a server that --serve started the memory can be read");
    }
    if expect.wasted.is_some() && target.admin.is_none() {
        bail!("wasted: the server counts it; --admin says where");
    }
    if scenario.step.iter().any(|step| step.stop_after.is_some()) && target.process().is_none() {
        bail!("stop_after: only a server that --serve started can be told to stop");
    }
    Ok(())
}

/// A run before its first request: who is asked, and on what.
async fn begun(scenario: &Scenario, client: &Client, target: &Target) -> Result<Run> {
    // Another program's server may have none.
    let (_, info) = client.page(&format!("{}/info", target.url)).await?;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Run {
        scenario: scenario.clone(),
        version: text(&info["version"]),
        commit: text(&info["commit"]),
        model: text(&info["model"]),
        device: text(&info["device"]),
        machine: machine(),
        at: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        capacity_per_second: None,
        steps: Vec::new(),
        broken: Vec::new(),
    })
}

/// Answers a second by clients that wait for each.
async fn capacity(client: &Client, scenario: &Scenario, first: Lane) -> Result<f64> {
    let (span, clients) =
        (Duration::from_secs_f64(scenario.calibration_seconds), scenario.calibration_clients);
    let kinds: Vec<_> = scenario.traffic.iter().collect();
    let tally = drive::waiting(client, scenario, &kinds, clients, span, first).await;
    let rate = tally.inside.answers as f64 / scenario.calibration_seconds;
    eprintln!("{}: {rate:.1} answers/s by {clients} clients that wait", scenario.name);
    anyhow::ensure!(rate > 0.0, "no answer while capacity was measured");
    Ok(rate)
}

/// What could be read; what could not is among what is broken.
fn known(read: Result<Option<Metrics>>, broken: &mut Vec<String>) -> Option<Metrics> {
    read.unwrap_or_else(|error| {
        broken.push(format!("{error:#}"));
        None
    })
}

/// Tells the server to stop, if and when the step says so.
async fn stop_within(step: &Step, target: &Target) -> Result<()> {
    let Some(after) = step.stop_after else { return Ok(()) };
    tokio::time::sleep(Duration::from_secs_f64(after)).await;
    target.tell_to_stop()
}

async fn metrics(client: &Client, target: &Target) -> Result<Option<Metrics>> {
    match &target.admin {
        Some(admin) => Metrics::read(client, admin).await.map(Some),
        None => Ok(None),
    }
}

fn delta(before: Option<&Metrics>, after: Option<&Metrics>, target: &Target) -> ServerDelta {
    // What has labels is not there before it is counted for the first time.
    let grown = |name: &str| Some(after?.value(name)? - before?.value(name).unwrap_or(0.0));
    ServerDelta {
        pairs_computed: grown("verdict_pairs_computed_total"),
        computed_tokens: grown("verdict_tokens_total{fate=\"computed\"}"),
        wasted_tokens: grown("verdict_wasted_tokens_total"),
        explain_steps: grown("verdict_explain_steps_total"),
        resident_mib: target.process().and_then(resident_mib),
    }
}

fn line(step: &StepOutcome) -> String {
    let counts = &step.counts;
    let times = |name: &str, spread: &Spread| match spread.quantiles().map(shown) {
        _ if spread.count == 0 => String::new(),
        [p50, p95, p99] => format!(" {name}p50 {p50} p95 {p95} p99 {p99} ms"),
    };
    format!(
        "{:>12} {:5.0} s: ok {} ({:.1}/s, {:.1} pairs/s) good {:.1}/s{}{}{} | refused {}{} late {} left {} unavailable {} gone {} cut {} failed {} | reasons {} shed {}{}{}",
        step.load(),
        step.seconds,
        counts.ok,
        step.answers_per_second,
        step.pairs_per_second,
        step.goodput_per_second,
        times("", &step.latency),
        times("| scores ", &step.explained),
        times("| first reason ", &step.first_reason),
        counts.refused,
        step.refusal.quantiles()[2].map(|ms| format!(" (p99 {ms:.1} ms)")).unwrap_or_default(),
        counts.late,
        counts.left,
        counts.unavailable,
        counts.gone,
        counts.cut,
        counts.failed,
        counts.reasons,
        counts.shed,
        step.server.wasted().map(|part| format!(" | wasted {:.2} %", 100.0 * part)).unwrap_or_default(),
        step.server.resident_mib.map(|mib| format!(" | {mib:.0} MiB")).unwrap_or_default(),
    )
}

/// What it ran on: processor, cores, memory.
fn machine() -> String {
    let field = |path: &str, name: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        line.map(|line| line.trim_start_matches([':', '\t', ' ']).trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory =
        field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    format!(
        "{}, {cores} cores, {} GiB",
        field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        memory.unwrap_or(0) >> 20
    )
}

#[cfg(test)]
mod tests;
