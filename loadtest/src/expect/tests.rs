use std::time::Duration;

use super::*;
use crate::tally::{Counts, Inside, ServerDelta, Tally};

fn step(good: u64, refused: u64, rate: f64) -> StepOutcome {
    let mut tally = Tally {
        counts: Counts { sent: good + refused, ok: good, refused, ..Counts::default() },
        inside: Inside { answers: good, pairs: good, good },
        ..Tally::default()
    };
    tally.refusal.add(Duration::from_millis(3));
    tally.latency.add(Duration::from_millis(3));
    let step: crate::scenario::Step =
        toml::from_str(&format!("seconds = 1.0\nrate = {rate:?}")).expect("a step");
    let server =
        ServerDelta { computed_tokens: Some(100.0), wasted_tokens: Some(1.0), ..ServerDelta::default() };
    tally.outcome(rate, &step, server)
}

fn scenario(step: &str, expect: &str) -> Scenario {
    let text = format!(
        "name = 'a'\nabout = 'b'\nslo_ms = 100.0\n[[traffic]]\ndocuments = [1, 2]\nwords = [3, 4]\n\
         [[step]]\nseconds = 1.0\nrate = 5.0\n{step}\n[expect]\n{expect}"
    );
    toml::from_str(&text).expect("a scenario")
}

/// What is broken of one expectation.
fn found(expect: &str, steps: &[StepOutcome]) -> Vec<String> {
    broken(&scenario("", expect), steps)
}

#[test]
fn what_is_not_as_expected_is_named() {
    let steps = [step(100, 0, 1.0), step(95, 40, 2.0), step(80, 200, 6.0)];
    let expect = "goodput_kept = 0.9\nrefusal_p99_ms = 5.0\nwasted = 0.02\nrefused_at_least = 1";
    assert_eq!(found(expect, &steps), ["goodput kept: 0.8000, less than 0.9"]);
    assert!(found(expect, &steps[..2]).is_empty());
    let strict = "refusal_p99_ms = 2.0\nwasted = 0.001\nfailed = 0\nrefused_at_least = 41";
    let broken = found(strict, &steps[..2]);
    assert_eq!(broken[1..], ["wasted: 0.0100, more than 0.001", "refused: 40, less than 41"]);
    assert!(broken[0].starts_with("refusals' p99 in ms: 3.0"), "{broken:?}");
}

#[test]
fn a_step_without_an_answer_is_never_as_expected() {
    let mut refused = step(0, 40, 5.0);
    let nothing = ["reported step 2 (5.0/s): nothing was answered"];
    assert_eq!(found("", &[step(5, 0, 5.0), refused.clone()]), nothing);
    refused.counts = Counts { sent: 40, late: 40, ..Counts::default() };
    assert_eq!(found("failed = 0", &[step(5, 0, 5.0), refused]), nothing);
}

#[test]
fn what_is_unavailable_or_gone_has_failed_unless_it_is_expected() {
    let mut stopped = step(100, 0, 5.0);
    (stopped.counts.unavailable, stopped.counts.gone, stopped.counts.failed) = (3, 4, 1);
    let steps = [stopped];
    assert_eq!(
        found("failed = 0", &steps),
        ["failed, 3 of them unavailable, 4 of them gone: 8, more than 0"]
    );
    assert_eq!(
        found("failed = 0\nunavailable_at_least = 1", &steps),
        ["failed, 4 of them gone: 5, more than 0"]
    );
    let told = scenario("stop_after = 0.5", "failed = 0\nunavailable_at_least = 4");
    assert_eq!(broken(&told, &steps), ["failed: 1, more than 0", "unavailable: 3, less than 4"]);
}

#[test]
fn a_cut_connection_is_a_failure_unless_some_are_expected() {
    let mut cut = step(100, 0, 5.0);
    cut.counts.cut = 2;
    let steps = [cut];
    assert_eq!(found("failed = 0", &steps), ["failed, 2 of them cut: 2, more than 0"]);
    assert_eq!(found("failed = 0\ncut = 1", &steps), ["cut: 2, more than 1"]);
    assert!(found("failed = 0\ncut = 2", &steps).is_empty());
}

#[test]
fn what_nothing_was_measured_of_is_not_as_expected() {
    let mut bare = step(5, 0, 5.0);
    (bare.refusal, bare.latency, bare.server) = Default::default();
    bare.goodput_per_second = 0.0;
    let steps = [bare.clone(), bare];
    for (expect, broken) in [
        ("refusal_p99_ms = 5.0", "refusals' p99 in ms: nothing was measured, expected at most 5"),
        ("wasted = 0.02", "wasted: nothing was measured, expected at most 0.02"),
        (
            "p99_ratio = 1.5",
            "p99 of the second step to the first: nothing was measured, expected at most 1.5",
        ),
        ("growth_mib = 32.0", "growth in MiB: nothing was measured, expected at most 32"),
        ("goodput_kept = 0.9", "goodput kept: nothing was measured, expected at least 0.9"),
        ("retried_ok = 0.95", "retried and taken: nothing was measured, expected at least 0.95"),
    ] {
        assert_eq!(found(expect, &steps), [broken]);
    }
    let mut silent = step(0, 0, 5.0);
    silent.counts.ok = 0;
    let broken = found("late = 0.1", &[silent]);
    assert_eq!(broken[1..], ["late: nothing was measured, expected at most 0.1"]);
}

#[test]
fn memory_is_compared_only_where_both_ends_were_read() {
    let with = |mib: Option<f64>| {
        let mut step = step(5, 0, 5.0);
        step.server.resident_mib = mib;
        step
    };
    let grown = |first, last| found("growth_mib = 32.0", &[with(first), with(last)]);
    assert!(grown(Some(100.0), Some(132.0)).is_empty());
    assert_eq!(grown(Some(100.0), Some(132.5)), ["growth in MiB: 32.5000, more than 32"]);
    assert_eq!(grown(Some(100.0), None).len(), 1);
    let mut unread = step(5, 0, 5.0);
    unread.server.wasted_tokens = None;
    assert_eq!(found("wasted = 0.02", &[step(5, 0, 5.0), unread]).len(), 1, "of every step");
}
