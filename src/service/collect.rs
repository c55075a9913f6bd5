//! Collecting what the engine answers to a request's pairs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    engine::{job::Scored, kv::KeptSequence, stopped},
    error::{Code, Error, Result},
    grade::GradeDistribution,
    grounding::Facts,
    metrics::Metrics,
    profile::Profile,
    prompt::Prompt,
    request::ScoreOptions,
    telemetry::Trace,
};

use super::{
    Inner, PairScore, Usage,
    prepare::{Answers, Prepared},
    stages,
};

/// One pair, in input order.
pub(super) struct PairOutcome {
    pub(super) id: Option<String>,
    pub(super) document: Option<String>,
    pub(super) score: Result<PairScore>,
    /// The rendered prompt, for explaining.
    pub(super) prompt: Option<Arc<Prompt>>,
    /// What its reason may say.
    pub(super) facts: Option<Facts>,
    /// Its KV, if it was asked for and there was room.
    pub(super) kept: Option<KeptSequence>,
}

/// All pairs of a request, and what they took together.
pub(super) struct Collected {
    pub(super) pairs: Vec<PairOutcome>,
    pub(super) usage: Usage,
    /// From submitting the first pair to the start of the first batch.
    pub(super) queue: Duration,
    /// From there to the end of the last batch.
    pub(super) compute: Duration,
}

/// Waits for every pair's answer and reads it.
pub(super) async fn collect(
    inner: &Inner,
    prepared: Prepared,
    answers: Answers,
    options: &ScoreOptions,
    trace: Option<&Trace>,
) -> Result<Collected> {
    let metrics = &inner.metrics;
    let mut batches = trace.map(|_| stages::Batches::default());
    let (mut span, mut usage, mut failures) = (Span::default(), Usage::default(), Failures::default());
    let mut spent = Spent { tokens: 0, metrics };
    let mut pairs = Vec::with_capacity(answers.len());
    for (answer, pair) in answers.into_iter().zip(prepared.pairs) {
        let answer = answer.await.unwrap_or_else(|cause| Err(stopped().with_cause(cause)));
        let mut kept = None;
        let score = answer.and_then(|mut scored| {
            kept = scored.kept.take();
            if let Some(batches) = &mut batches {
                batches.add(&scored);
            }
            span.add(pair.enqueued + scored.queued, scored.compute);
            usage.add(scored.tokens);
            spent.tokens += scored.tokens.computed;
            read(&inner.model.profile, scored, pair.prompt.as_deref(), options.raw)
        });
        match &score {
            Ok(score) => metrics.scored(score.distribution.score.get(), score.distribution.label_mass),
            Err(error) => {
                metrics.pair_failed(error.code());
                failures.add(error);
            }
        }
        let (id, document, prompt, facts) = (pair.id, pair.document, pair.prompt, pair.facts);
        pairs.push(PairOutcome { id, document, score, prompt, facts, kept });
    }
    if let (Some(trace), Some(batches)) = (trace, &batches) {
        batches.record(trace, prepared.first);
    }
    let pairs = all_or_some(pairs, options.whole)?;
    spent.tokens = 0;
    failures.log(pairs.len(), trace);
    let queue = span.start.map_or(Duration::ZERO, |start| start.saturating_duration_since(prepared.first));
    Ok(Collected { pairs, usage, queue, compute: span.length() })
}

/// Reads one pair's logits.
fn read(profile: &Profile, scored: Scored, prompt: Option<&Prompt>, raw: bool) -> Result<PairScore> {
    let distribution = GradeDistribution::read(&scored.grade_logits, scored.log_sum_exp, profile)?;
    let (tokens, truncated) = prompt.map_or((0, false), |prompt| (prompt.tokens.len(), prompt.truncated));
    let logits = raw.then_some(scored.grade_logits);
    Ok(PairScore { distribution, logits, tokens, truncated })
}

/// A request fails as a whole when it ran out of time, when nothing of it was
/// scored, or at the first failure if it wants to be answered `whole`.
fn all_or_some(pairs: Vec<PairOutcome>, whole: bool) -> Result<Vec<PairOutcome>> {
    let late =
        |pair: &&PairOutcome| matches!(&pair.score, Err(error) if error.code() == Code::DeadlineExceeded);
    let failed = match pairs.iter().find(late) {
        Some(late) => Some(late),
        None if whole => pairs.iter().find(|pair| pair.score.is_err()),
        None if pairs.iter().all(|pair| pair.score.is_err()) => pairs.first(),
        None => None,
    };
    match failed.map(|pair| &pair.score) {
        Some(Err(error)) => Err(error.clone()),
        _ => Ok(pairs),
    }
}

/// Tokens computed for a request; wasted if it is dropped before all of it was answered, or fails as a whole.
struct Spent<'a> {
    tokens: usize,
    metrics: &'a Metrics,
}

impl Drop for Spent<'_> {
    fn drop(&mut self) {
        self.metrics.wasted(self.tokens);
    }
}

/// From the first batch's start to the last batch's end.
#[derive(Default)]
struct Span {
    start: Option<Instant>,
    end: Option<Instant>,
}

impl Span {
    fn add(&mut self, start: Instant, took: Duration) {
        let end = start + took;
        self.start = Some(self.start.map_or(start, |other| other.min(start)));
        self.end = Some(self.end.map_or(end, |other| other.max(end)));
    }

    fn length(&self) -> Duration {
        match (self.start, self.end) {
            (Some(start), Some(end)) => end - start,
            _ => Duration::ZERO,
        }
    }
}

/// Faults of ours among the pairs of a request that is answered in spite of them: nothing else tells of their cause.
#[derive(Default)]
struct Failures {
    count: usize,
    first: Option<Error>,
}

impl Failures {
    fn add(&mut self, error: &Error) {
        if error.code() == Code::Internal {
            self.count += 1;
            self.first.get_or_insert_with(|| error.clone());
        }
    }

    /// One line for all of them, with the cause of the first.
    fn log(&self, pairs: usize, trace: Option<&Trace>) {
        if let Some(error) = &self.first {
            let (failed, trace, cause) = (self.count, trace.map(Trace::id), error.causes());
            tracing::error!(trace, failed, pairs, cause, "pairs were not scored: {error}");
        }
    }
}
