//! One scenario from its first request to its verdict.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    client::Client,
    drive,
    scenario::{Expect, Scenario, Step},
    server::{Metrics, Target, resident_mib, settled},
    tally::{ServerDelta, StepOutcome},
    texts::Texts,
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
    let client = Client::new(&target.url)?;
    // Another program's server may have none.
    let info = client.get(&format!("{}/info", target.url)).await?;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut run = Run {
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
    };
    if scenario.calibration_seconds > 0.0 {
        let span = Duration::from_secs_f64(scenario.calibration_seconds);
        let kinds: Vec<_> = scenario.traffic.iter().collect();
        let tally = drive::waiting(&client, scenario, &kinds, scenario.calibration_clients, span).await;
        let rate = tally.counts.ok as f64 / scenario.calibration_seconds;
        eprintln!(
            "{}: {rate:.1} answers/s by {} clients that wait",
            scenario.name, scenario.calibration_clients
        );
        anyhow::ensure!(rate > 0.0, "no answer while capacity was measured");
        run.capacity_per_second = Some(rate);
    }
    let (mut texts, mut random) = (Texts::new(scenario.seed), fastrand::Rng::with_seed(scenario.seed));
    for step in &scenario.step {
        let capacity = step.capacity.zip(run.capacity_per_second).map(|(times, rate)| times * rate);
        let before = metrics(&client, target).await?;
        let rate = step.rate.or(capacity).unwrap_or(0.0);
        let tally = match step.clients {
            Some(clients) => {
                let (kinds, span) = (scenario.kinds(step), Duration::from_secs_f64(step.seconds));
                drive::waiting(&client, scenario, &kinds, clients, span).await
            }
            None => {
                let driven = drive::step(&client, scenario, step, rate, &mut texts, &mut random);
                let (tally, told) = tokio::join!(driven, stop_within(step, target));
                told?;
                tally
            }
        };
        let after = match &target.admin {
            Some(_) if step.stop_after.is_some() => None,
            Some(admin) => Some(settled(&client, admin, SETTLE).await.unwrap_or_else(|error| {
                run.broken.push(format!("{error:#}"));
                Metrics::default()
            })),
            None => None,
        };
        let delta = delta(before.as_ref(), after.as_ref(), target);
        let outcome = tally.outcome(rate, step, delta);
        eprintln!("{}", line(&outcome));
        if !step.warm_up {
            run.steps.push(outcome);
        }
    }
    run.broken.extend(broken(&scenario.expect, &run.steps));
    Ok(run)
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
    let (Some(before), Some(after)) = (before, after) else { return ServerDelta::default() };
    let grown = |name: &str| after.value(name) - before.value(name);
    ServerDelta {
        pairs_computed: grown("verdict_pairs_computed_total"),
        computed_tokens: grown("verdict_tokens_total{fate=\"computed\"}"),
        wasted_tokens: grown("verdict_wasted_tokens_total"),
        explain_steps: grown("verdict_explain_steps_total"),
        resident_mib: target.process().and_then(resident_mib),
    }
}

fn line(step: &StepOutcome) -> String {
    let load = step.clients.map_or(format!("{:.1}/s", step.rate), |clients| format!("{clients} waiting"));
    format!(
        "{load:>12} {:5.0} s: ok {} ({:.1}/s, {:.1} pairs/s) good {:.1}/s p50 {:.1} p95 {:.1} p99 {:.1} ms | refused {} (p99 {:.1} ms) late {} left {} unavailable {} gone {} cut {} failed {} | reasons {} shed {} | wasted {:.2} %{}",
        step.seconds,
        step.counts.ok,
        step.answers_per_second,
        step.pairs_per_second,
        step.goodput_per_second,
        step.latency.p50_ms,
        step.latency.p95_ms,
        step.latency.p99_ms,
        step.counts.refused,
        step.refusal.p99_ms,
        step.counts.late,
        step.counts.left,
        step.counts.unavailable,
        step.counts.gone,
        step.counts.cut,
        step.counts.failed,
        step.counts.reasons,
        step.counts.shed,
        100.0 * wasted(step),
        step.server.resident_mib.map(|mib| format!(" | {mib:.0} MiB")).unwrap_or_default(),
    )
}

fn wasted(step: &StepOutcome) -> f64 {
    step.server.wasted_tokens / step.server.computed_tokens.max(1.0)
}

/// What was expected of the steps and is not so.
fn broken(expect: &Expect, steps: &[StepOutcome]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut at_most = |what: &str, value: f64, limit: Option<f64>| {
        if let Some(limit) = limit
            && (value.is_nan() || value > limit)
        {
            broken.push(format!("{what}: {value:.4}, more than {limit}"));
        }
    };
    let sum = |of: fn(&StepOutcome) -> f64| steps.iter().map(of).sum::<f64>();
    let most = |of: fn(&StepOutcome) -> f64| steps.iter().map(of).fold(0.0, f64::max);
    at_most("refusals' p99 in ms", most(|step| step.refusal.p99_ms), expect.refusal_p99_ms);
    let cut = sum(|step| step.counts.cut as f64);
    at_most("cut", cut, expect.cut.map(|count| count as f64));
    let failed = sum(|step| step.counts.failed as f64) + if expect.cut.is_none() { cut } else { 0.0 };
    at_most("failed", failed, expect.failed.map(|count| count as f64));
    let answers = sum(|step| (step.counts.ok + step.counts.late) as f64).max(1.0);
    at_most("late", sum(|step| step.counts.late as f64) / answers, expect.late);
    let computed = sum(|step| step.server.computed_tokens).max(1.0);
    at_most("wasted", sum(|step| step.server.wasted_tokens) / computed, expect.wasted);
    if let [first, second, ..] = steps {
        let ratio = second.latency.p99_ms / first.latency.p99_ms;
        at_most("p99 of the second step to the first", ratio, expect.p99_ratio);
    }
    if let [first, .., last] = steps {
        let grown = last.server.resident_mib.zip(first.server.resident_mib).map(|(last, first)| last - first);
        at_most("growth in MiB", grown.unwrap_or(0.0), expect.growth_mib);
    }
    let mut at_least = |what: &str, value: f64, limit: Option<f64>| {
        if let Some(limit) = limit
            && (value.is_nan() || value < limit)
        {
            broken.push(format!("{what}: {value:.4}, less than {limit}"));
        }
    };
    let best = most(|step| step.goodput_per_second);
    // Once it is at its best, more load may not make it worse.
    let after = steps.iter().skip_while(|step| step.goodput_per_second < best);
    let least = after.map(|step| step.goodput_per_second / best.max(1e-9)).fold(1.0, f64::min);
    at_least("goodput kept", least, expect.goodput_kept);
    at_least(
        "refused",
        sum(|step| step.counts.refused as f64),
        expect.refused_at_least.map(|count| count as f64),
    );
    let unavailable = expect.unavailable_at_least.map(|count| count as f64);
    at_least("unavailable", sum(|step| step.counts.unavailable as f64), unavailable);
    at_least("reasons", sum(|step| step.counts.reasons as f64), expect.reasons.map(|count| count as f64));
    let retried = sum(|step| step.counts.retried as f64);
    if retried > 0.0 {
        at_least("retried and taken", sum(|step| step.counts.retried_ok as f64) / retried, expect.retried_ok);
    }
    broken
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
mod tests {
    use super::*;
    use crate::tally::{Counts, Tally};

    fn step(good: u64, refused: u64, capacity: f64) -> StepOutcome {
        let mut tally = Tally {
            counts: Counts { sent: good + refused, ok: good, refused, ..Counts::default() },
            good,
            ..Tally::default()
        };
        tally.refusal.add(Duration::from_millis(3));
        let step: crate::scenario::Step =
            toml::from_str(&format!("seconds = 1.0\ncapacity = {capacity:?}")).expect("a step");
        let server = ServerDelta { computed_tokens: 100.0, wasted_tokens: 1.0, ..ServerDelta::default() };
        tally.outcome(1.0, &step, server)
    }

    #[test]
    fn what_is_not_as_expected_is_named() {
        let steps = [step(100, 0, 0.5), step(95, 40, 1.0), step(80, 200, 3.0)];
        let expect = Expect {
            goodput_kept: Some(0.9),
            refusal_p99_ms: Some(5.0),
            wasted: Some(0.02),
            refused_at_least: Some(1),
            ..Expect::default()
        };
        assert_eq!(broken(&expect, &steps), ["goodput kept: 0.8000, less than 0.9"]);
        assert!(broken(&expect, &steps[..2]).is_empty());
        let strict = Expect { refusal_p99_ms: Some(2.0), wasted: Some(0.001), failed: Some(0), ..expect };
        assert_eq!(broken(&strict, &steps[..2]).len(), 2);
    }

    #[test]
    fn a_cut_connection_is_a_failure_unless_some_are_expected() {
        let mut cut = step(100, 0, 0.5);
        cut.counts.cut = 2;
        let expect = |cut| Expect { failed: Some(0), cut, ..Expect::default() };
        assert_eq!(broken(&expect(None), &[cut.clone()]), ["failed: 2.0000, more than 0"]);
        assert_eq!(broken(&expect(Some(1)), &[cut.clone()]), ["cut: 2.0000, more than 1"]);
        assert!(broken(&expect(Some(2)), &[cut]).is_empty());
    }
}
