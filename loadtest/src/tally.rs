//! What is counted of a step, and how it is written down.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{client::Answer, scenario::Step, texts::Ask};

/// Three digits, up to ten minutes, in microseconds.
const LONGEST_US: u64 = 600_000_000;

/// Times of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("bounds that it takes"))
    }
}

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(LONGEST_US);
        self.0.saturating_record(us.clamp(1, LONGEST_US));
    }

    pub(crate) fn add_ms(&mut self, ms: f64) {
        self.add(Duration::from_secs_f64((ms / 1e3).clamp(0.0, 600.0)));
    }

    pub(crate) fn ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    pub(crate) fn spread(&self) -> Spread {
        Spread {
            count: self.0.len(),
            mean_ms: self.0.mean() / 1e3,
            p50_ms: self.ms(0.5),
            p95_ms: self.ms(0.95),
            p99_ms: self.ms(0.99),
            max_ms: self.0.max() as f64 / 1e3,
            histogram_us: self
                .0
                .iter_recorded()
                .map(|at| (at.value_iterated_to(), at.count_at_value()))
                .collect(),
        }
    }
}

/// Times, summed up and in full.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    /// Value in microseconds, to three digits, and how often it was.
    pub(crate) histogram_us: Vec<(u64, u64)>,
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) refused: u64,
    pub(crate) unavailable: u64,
    /// Nobody listened any more.
    #[serde(default)]
    pub(crate) gone: u64,
    /// The connection was closed as the request was sent.
    #[serde(default)]
    pub(crate) cut: u64,
    pub(crate) late: u64,
    pub(crate) left: u64,
    pub(crate) failed: u64,
    pub(crate) retried: u64,
    pub(crate) retried_ok: u64,
    pub(crate) reasons: u64,
    pub(crate) shed: u64,
}

/// One step, while it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) counts: Counts,
    pub(crate) ok_pairs: u64,
    pub(crate) good: u64,
    pub(crate) tokens: [u64; 4],
    pub(crate) latency: Times,
    pub(crate) refusal: Times,
    pub(crate) queue: Times,
    pub(crate) compute: Times,
    pub(crate) scores: Times,
    pub(crate) first_reason: Times,
    pub(crate) failures: Vec<String>,
}

impl Tally {
    /// An answer to a request that was sent `lag` after it should have been.
    pub(crate) fn answered(&mut self, answer: &Answer, lag: Duration, slo_ms: f64, ask: &Ask) {
        self.counts.ok += 1;
        self.ok_pairs += ask.pairs as u64;
        // Where reasons follow, the scores are what is waited for.
        let there = answer.after + lag;
        self.good += u64::from(there.as_secs_f64() * 1e3 <= slo_ms);
        self.queue.add_ms(answer.queue_ms);
        self.compute.add_ms(answer.compute_ms);
        match answer.explained {
            true => self.scores.add(there),
            false if ask.aside => {}
            false => self.latency.add(there),
        }
        if let Some(reason) = answer.reason_after {
            self.first_reason.add(reason + lag);
        }
        self.counts.reasons += answer.reasons;
        self.counts.shed += answer.shed;
        let Answer { prompt_tokens, computed_tokens, shared_tokens, cached_tokens, .. } = *answer;
        for (sum, tokens) in
            self.tokens.iter_mut().zip([prompt_tokens, computed_tokens, shared_tokens, cached_tokens])
        {
            *sum += tokens;
        }
    }

    /// A refusal that came `after` it was asked for; whether its client comes back.
    pub(crate) fn refused(&mut self, after: Duration, comes_back: bool) {
        self.counts.refused += 1;
        self.refusal.add(after);
        self.counts.retried += u64::from(comes_back);
    }

    /// Something that should not be; the first few are kept.
    pub(crate) fn failure(&mut self, why: String) {
        self.counts.failed += 1;
        if self.failures.len() < 5 {
            self.failures.push(why);
        }
    }

    /// As it is written down; a rate of 0 is clients that waited.
    pub(crate) fn outcome(&self, rate: f64, step: &Step, server: ServerDelta) -> StepOutcome {
        let seconds = step.seconds;
        StepOutcome {
            rate,
            capacity: step.capacity,
            clients: step.clients,
            seconds,
            counts: self.counts,
            answers_per_second: self.counts.ok as f64 / seconds,
            pairs_per_second: self.ok_pairs as f64 / seconds,
            goodput_per_second: self.good as f64 / seconds,
            prompt_tokens: self.tokens[0],
            computed_tokens: self.tokens[1],
            shared_tokens: self.tokens[2],
            cached_tokens: self.tokens[3],
            latency: self.latency.spread(),
            refusal: self.refusal.spread(),
            queue: self.queue.spread(),
            compute: self.compute.spread(),
            explained: self.scores.spread(),
            first_reason: self.first_reason.spread(),
            server,
            failures: self.failures.clone(),
        }
    }
}

/// What the server counted during a step.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ServerDelta {
    pub(crate) pairs_computed: f64,
    pub(crate) computed_tokens: f64,
    pub(crate) wasted_tokens: f64,
    pub(crate) explain_steps: f64,
    pub(crate) resident_mib: Option<f64>,
}

/// One step, as it is written down. Times are from when a request should have been sent.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StepOutcome {
    pub(crate) rate: f64,
    pub(crate) capacity: Option<f64>,
    pub(crate) clients: Option<usize>,
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) counts: Counts,
    pub(crate) answers_per_second: f64,
    pub(crate) pairs_per_second: f64,
    pub(crate) goodput_per_second: f64,
    pub(crate) prompt_tokens: u64,
    pub(crate) computed_tokens: u64,
    pub(crate) shared_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) latency: Spread,
    pub(crate) refusal: Spread,
    pub(crate) queue: Spread,
    pub(crate) compute: Spread,
    /// Scores that reasons follow.
    pub(crate) explained: Spread,
    pub(crate) first_reason: Spread,
    pub(crate) server: ServerDelta,
    pub(crate) failures: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_to_three_digits_and_the_histogram_is_whole() {
        let mut times = Times::default();
        (1..=1000).for_each(|ms| times.add(Duration::from_millis(ms)));
        let spread = times.spread();
        assert!((spread.p50_ms - 500.0).abs() < 1.0 && (spread.p99_ms - 990.0).abs() < 2.0, "{spread:?}");
        assert_eq!(spread.histogram_us.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        times.add(Duration::from_secs(100_000));
        assert_eq!(times.spread().count, 1001, "what is off the scale counts as its end");
    }

    #[test]
    fn what_is_late_is_no_goodput() {
        let mut tally = Tally::default();
        let ms = Duration::from_millis;
        let answer = |after| Answer { after: ms(after), ..Answer::default() };
        // It counts from when it should have been asked for, not from when the client got to it.
        for (after, lag) in [(90, 0), (110, 0), (60, 30), (60, 50)] {
            tally.answered(&answer(after), ms(lag), 100.0, &Ask::default());
        }
        tally.answered(&answer(20), ms(0), 100.0, &Ask { aside: true, ..Ask::default() });
        assert_eq!((tally.counts.ok, tally.good), (5, 3));
        assert_eq!(tally.latency.spread().count, 4, "what is sent aside is not timed");
    }
}
