//! Whether a run was as its scenario expects. What nothing was measured of does not hold.

use crate::{scenario::Scenario, tally::StepOutcome};

/// What was expected of the steps and is not so.
pub(crate) fn broken(scenario: &Scenario, steps: &[StepOutcome]) -> Vec<String> {
    let expect = &scenario.expect;
    let mut checks = Checks::default();
    for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.counts.ok == 0) {
        checks.broken.push(format!("reported step {} ({}): nothing was answered", index + 1, step.load()));
    }
    let sum = |of: fn(&StepOutcome) -> u64| steps.iter().map(of).sum::<u64>();
    let part = |of: u64, all: u64| (all > 0).then(|| of as f64 / all as f64);
    let count = |limit: Option<u64>| limit.map(|count| count as f64);

    let refusals = steps.iter().filter_map(|step| step.refusal.quantiles()[2]);
    checks.at_most("refusals' p99 in ms", refusals.reduce(f64::max), expect.refusal_p99_ms);
    checks.at_most("cut", Some(sum(|step| step.counts.cut) as f64), count(expect.cut));
    let (what, failed) = failures(scenario, steps);
    checks.at_most(&what, Some(failed as f64), count(expect.failed));
    let (ok, late) = (sum(|step| step.counts.ok), sum(|step| step.counts.late));
    checks.at_most("late", part(late, ok + late), expect.late);
    checks.at_most("wasted", wasted(steps), expect.wasted);
    checks.at_most("p99 of the second step to the first", p99_ratio(steps), expect.p99_ratio);
    checks.at_most("growth in MiB", growth(steps), expect.growth_mib);

    checks.at_least("goodput kept", goodput_kept(steps), expect.goodput_kept);
    let counts: [(&str, u64, Option<u64>); 3] = [
        ("refused", sum(|step| step.counts.refused), expect.refused_at_least),
        ("unavailable", sum(|step| step.counts.unavailable), expect.unavailable_at_least),
        ("reasons", sum(|step| step.counts.reasons), expect.reasons),
    ];
    for (what, found, limit) in counts {
        checks.at_least(what, Some(found as f64), count(limit));
    }
    let (taken, retried) = (sum(|step| step.counts.retried_ok), sum(|step| step.counts.retried));
    checks.at_least("retried and taken", part(taken, retried), expect.retried_ok);
    checks.broken
}

#[derive(Default)]
struct Checks {
    broken: Vec<String>,
}

impl Checks {
    fn at_most(&mut self, what: &str, value: Option<f64>, limit: Option<f64>) {
        self.check(what, value, limit, ["more than", "at most"], |value, limit| value <= limit);
    }

    fn at_least(&mut self, what: &str, value: Option<f64>, limit: Option<f64>) {
        self.check(what, value, limit, ["less than", "at least"], |value, limit| value >= limit);
    }

    fn check(
        &mut self,
        what: &str,
        value: Option<f64>,
        limit: Option<f64>,
        [broken, wanted]: [&str; 2],
        holds: fn(f64, f64) -> bool,
    ) {
        let Some(limit) = limit else { return };
        match value {
            None => self.broken.push(format!("{what}: nothing was measured, expected {wanted} {limit}")),
            Some(value) if holds(value, limit) => {}
            // A count has no fraction.
            Some(value) if value.fract() == 0.0 => {
                self.broken.push(format!("{what}: {value}, {broken} {limit}"));
            }
            Some(value) => self.broken.push(format!("{what}: {value:.4}, {broken} {limit}")),
        }
    }
}

/// What failed, of which kinds, and how much it is: a server that is told to stop may be unavailable and then gone,
/// one that is not may be neither.
fn failures(scenario: &Scenario, steps: &[StepOutcome]) -> (String, u64) {
    let expect = &scenario.expect;
    let stops = scenario.step.iter().any(|step| step.stop_after.is_some());
    let sum = |of: fn(&StepOutcome) -> u64| steps.iter().map(of).sum::<u64>();
    let unless = |expected: bool, of| if expected { 0 } else { sum(of) };
    let found = [
        ("cut", unless(expect.cut.is_some(), |step| step.counts.cut)),
        (
            "unavailable",
            unless(stops || expect.unavailable_at_least.is_some(), |step| step.counts.unavailable),
        ),
        ("gone", unless(stops, |step| step.counts.gone)),
    ];
    let all = sum(|step| step.counts.failed) + found.iter().map(|(_, count)| count).sum::<u64>();
    let named: Vec<String> = found
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{count} of them {name}"))
        .collect();
    match named.is_empty() {
        true => ("failed".into(), all),
        false => (format!("failed, {}", named.join(", ")), all),
    }
}

fn wasted(steps: &[StepOutcome]) -> Option<f64> {
    let sum = |of: fn(&StepOutcome) -> Option<f64>| steps.iter().map(of).sum::<Option<f64>>();
    let computed = sum(|step| step.server.computed_tokens).filter(|tokens| *tokens > 0.0)?;
    Some(sum(|step| step.server.wasted_tokens)? / computed)
}

fn p99_ratio(steps: &[StepOutcome]) -> Option<f64> {
    let [first, second, ..] = steps else { return None };
    Some(second.latency.quantiles()[2]? / first.latency.quantiles()[2]?)
}

fn growth(steps: &[StepOutcome]) -> Option<f64> {
    let [first, .., last] = steps else { return None };
    Some(last.server.resident_mib? - first.server.resident_mib?)
}

/// Once goodput is at its best, more load may not make it worse.
fn goodput_kept(steps: &[StepOutcome]) -> Option<f64> {
    let best = steps.iter().map(|step| step.goodput_per_second).fold(0.0, f64::max);
    let after = steps.iter().skip_while(|step| step.goodput_per_second < best);
    let least = after.map(|step| step.goodput_per_second).reduce(f64::min)?;
    (best > 0.0).then(|| least / best)
}

#[cfg(test)]
mod tests;
