//! What is counted of a step, and how it is written down.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    client::{Answer, Outcome},
    scenario::Step,
    texts::Ask,
};

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

    /// Nothing, where nothing was measured.
    pub(crate) fn ms(&self, quantile: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile) as f64 / 1e3)
    }

    pub(crate) fn spread(&self) -> Spread {
        let any = !self.0.is_empty();
        Spread {
            count: self.0.len(),
            mean_ms: any.then(|| self.0.mean() / 1e3),
            p50_ms: self.ms(0.5),
            p95_ms: self.ms(0.95),
            p99_ms: self.ms(0.99),
            max_ms: any.then(|| self.0.max() as f64 / 1e3),
            histogram_us: self
                .0
                .iter_recorded()
                .map(|at| (at.value_iterated_to(), at.count_at_value()))
                .collect(),
        }
    }
}

/// Times, summed up and in full; no milliseconds where there was none.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    pub(crate) mean_ms: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    /// Value in microseconds, to three digits, and how often it was.
    pub(crate) histogram_us: Vec<(u64, u64)>,
}

impl Spread {
    /// p50, p95 and p99. Results of before November 2026 have zeros where nothing was measured.
    pub(crate) fn quantiles(&self) -> [Option<f64>; 3] {
        [self.p50_ms, self.p95_ms, self.p99_ms].map(|ms| ms.filter(|_| self.count > 0))
    }
}

/// Milliseconds for a person; a dash where nothing was measured.
pub(crate) fn shown(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"))
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
    /// Requests that were refused and came again.
    pub(crate) retried: u64,
    /// How often they did, all together.
    #[serde(default)]
    pub(crate) resent: u64,
    pub(crate) retried_ok: u64,
    pub(crate) reasons: u64,
    pub(crate) shed: u64,
}

impl Counts {
    /// Refusals, in percent of what was sent, retries included.
    pub(crate) fn refused_percent(&self) -> f64 {
        100.0 * self.refused as f64 / (self.sent + self.resent.max(self.retried)).max(1) as f64
    }
}

/// What an answer is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// It is good when it is there so long after it was due.
    pub(crate) slo_ms: f64,
    /// The step's end: what comes later is no part of its rates.
    pub(crate) ends: Instant,
}

/// What came before the step's end. Rates are of this alone: over the step's length, what came later would
/// show a server as faster than it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Inside {
    pub(crate) answers: u64,
    pub(crate) pairs: u64,
    pub(crate) good: u64,
}

/// One step, while it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) counts: Counts,
    pub(crate) inside: Inside,
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
    /// An answer to a request that was due at one time, and sent, perhaps not for the first time, at another.
    pub(crate) fn answered(&mut self, answer: &Answer, due: Instant, sent: Instant, goal: Goal, ask: &Ask) {
        let lag = sent.saturating_duration_since(due);
        // Where reasons follow, the scores are what is waited for.
        let there = answer.after + lag;
        self.counts.ok += 1;
        if sent + answer.after <= goal.ends {
            self.inside.answers += 1;
            self.inside.pairs += ask.pairs as u64;
            self.inside.good += u64::from(there.as_secs_f64() * 1e3 <= goal.slo_ms);
        }
        if let Some(ms) = answer.queue_ms {
            self.queue.add_ms(ms);
        }
        if let Some(ms) = answer.compute_ms {
            self.compute.add_ms(ms);
        }
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

    /// A request that ended with neither an answer nor a refusal.
    pub(crate) fn ended(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Ok(_) | Outcome::Refused(_) => {}
            Outcome::Unavailable => self.counts.unavailable += 1,
            Outcome::Gone => self.counts.gone += 1,
            Outcome::Cut => self.counts.cut += 1,
            Outcome::Late => self.counts.late += 1,
            Outcome::Failed(why) => self.failure(why),
        }
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
            answers_per_second: self.inside.answers as f64 / seconds,
            pairs_per_second: self.inside.pairs as f64 / seconds,
            goodput_per_second: self.inside.good as f64 / seconds,
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

/// What the server counted during a step, as far as it could be read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ServerDelta {
    pub(crate) pairs_computed: Option<f64>,
    pub(crate) computed_tokens: Option<f64>,
    pub(crate) wasted_tokens: Option<f64>,
    pub(crate) explain_steps: Option<f64>,
    pub(crate) resident_mib: Option<f64>,
}

impl ServerDelta {
    /// Of the tokens that were computed, the part that was in vain; nothing where none was.
    pub(crate) fn wasted(&self) -> Option<f64> {
        let computed = self.computed_tokens.filter(|tokens| *tokens > 0.0)?;
        Some(self.wasted_tokens? / computed)
    }
}

/// One step, as it is written down. Times are from when a request should have been sent; rates are of what came
/// before the step's end.
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

impl StepOutcome {
    /// How much was asked of the server.
    pub(crate) fn load(&self) -> String {
        self.clients.map_or(format!("{:.1}/s", self.rate), |clients| format!("{clients} waiting"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn quantiles_are_to_three_digits_and_the_histogram_is_whole() {
        let mut times = Times::default();
        (1..=1000).for_each(|at| times.add(ms(at)));
        let spread = times.spread();
        let [p50, _, p99] = spread.quantiles().map(|ms| ms.expect("measured"));
        assert!((p50 - 500.0).abs() < 1.0 && (p99 - 990.0).abs() < 2.0, "{spread:?}");
        assert_eq!(spread.histogram_us.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        times.add(Duration::from_secs(100_000));
        assert_eq!(times.spread().count, 1001, "what is off the scale counts as its end");
    }

    #[test]
    fn where_nothing_was_measured_there_is_no_time() {
        let spread = Times::default().spread();
        assert_eq!((spread.quantiles(), spread.mean_ms, spread.max_ms), ([None; 3], None, None));
        let before = Spread { p50_ms: Some(0.0), ..Spread::default() };
        assert_eq!(before.quantiles(), [None; 3], "a result of before");
    }

    /// Answers `after` so long since they were sent, each so long after it was due and the step began.
    fn answers(times: &[(u64, u64)], slo_ms: f64, step_ms: u64) -> Tally {
        let (began, mut tally) = (Instant::now(), Tally::default());
        let goal = Goal { slo_ms, ends: began + ms(step_ms) };
        for (after, lag) in times {
            let answer = Answer { after: ms(*after), ..Answer::default() };
            tally.answered(&answer, began, began + ms(*lag), goal, &Ask { pairs: 2, ..Ask::default() });
        }
        tally
    }

    #[test]
    fn what_is_late_is_no_goodput() {
        // It counts from when it should have been asked for, not from when the client got to it.
        let mut tally = answers(&[(90, 0), (110, 0), (60, 30), (60, 50)], 100.0, 1000);
        let goal = Goal { slo_ms: 100.0, ends: Instant::now() + ms(1000) };
        let (answer, aside) = (Answer::default(), Ask { aside: true, ..Ask::default() });
        tally.answered(&answer, Instant::now(), Instant::now(), goal, &aside);
        assert_eq!((tally.counts.ok, tally.inside.good), (5, 3));
        assert_eq!(tally.latency.spread().count, 4, "what is sent aside is not timed");
    }

    #[test]
    fn a_backlog_that_is_answered_after_the_step_is_in_its_times_and_not_in_its_rates() {
        let tally = answers(&[(400, 0), (900, 0), (1100, 0), (2600, 300)], 5000.0, 1000);
        let step: Step = toml::from_str("seconds = 1.0\nrate = 4.0").expect("a step");
        let outcome = tally.outcome(4.0, &step, ServerDelta::default());
        assert_eq!((outcome.counts.ok, outcome.latency.count), (4, 4));
        let rates = [outcome.answers_per_second, outcome.pairs_per_second, outcome.goodput_per_second];
        assert_eq!(rates, [2.0, 4.0, 2.0]);
    }

    #[test]
    fn refusals_are_a_part_of_all_that_was_sent() {
        let counts = Counts { sent: 10, refused: 25, retried: 9, resent: 18, ..Counts::default() };
        assert!((counts.refused_percent() - 2500.0 / 28.0).abs() < 1e-9);
    }
}
