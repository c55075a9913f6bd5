//! What a trace is told of a request's stages: admit, tokenize, queue, batch, forward, decode.

use std::time::{Duration, Instant};

use crate::{
    engine::job::{BatchRun, FinishReason, Scored, TokenCounts},
    error::Error,
    telemetry::{Stage, Trace},
};

use super::prepare::Prepared;

/// Admission was asked, and let the request in or refused it.
pub(super) fn admitted(trace: &Trace, start: Instant, pairs: usize, bound: usize, refused: Option<&Error>) {
    let mut stage = trace.open("admit", start);
    stage.count("verdict.pairs", pairs);
    stage.count("verdict.tokens.bound", bound);
    if let Some(error) = refused {
        stage.fail(error.code().row().name);
    }
}

/// All pairs were rendered, tokenized and submitted.
pub(super) fn tokenized(trace: &Trace, prepared: &Prepared) {
    let prompts = || prepared.pairs.iter().filter_map(|pair| pair.prompt.as_deref());
    let facts = [
        ("verdict.pairs", prepared.pairs.len()),
        ("verdict.tokens", prompts().map(|prompt| prompt.tokens.len()).sum()),
        ("verdict.truncated", prompts().filter(|prompt| prompt.truncated).count()),
    ];
    trace.stage("tokenize", prepared.start, prepared.start + prepared.took, &facts);
}

/// The batches that a request's pairs were in.
#[derive(Default)]
pub(super) struct Batches(Vec<Batch>);

struct Batch {
    run: BatchRun,
    took: Duration,
    pairs: usize,
    tokens: TokenCounts,
}

impl Batches {
    /// One more pair was answered.
    pub(super) fn add(&mut self, scored: &Scored) {
        // Pairs are answered in the order of their batches.
        let known = self.0.iter_mut().rev().find(|batch| batch.run == scored.batch);
        let batch = match known {
            Some(batch) => batch,
            None => {
                let (run, took) = (scored.batch, scored.compute);
                self.0.push(Batch { run, took, pairs: 0, tokens: TokenCounts::default() });
                let Some(last) = self.0.last_mut() else { return };
                last
            }
        };
        batch.pairs += 1;
        batch.tokens.computed += scored.tokens.computed;
        batch.tokens.shared += scored.tokens.shared;
        batch.tokens.cached += scored.tokens.cached;
    }

    /// The wait of the pairs from `queued` to their first batch, and each batch with its forward pass.
    pub(super) fn record(&self, trace: &Trace, queued: Instant) {
        let Some(start) = self.0.iter().map(|batch| batch.run.start).min() else { return };
        let pairs = self.0.iter().map(|batch| batch.pairs).sum();
        trace.stage("queue", queued.min(start), start, &[("verdict.pairs", pairs)]);
        for Batch { run, took, pairs, tokens } in &self.0 {
            let end = run.start + *took;
            let facts = [
                ("verdict.pairs", *pairs),
                ("verdict.tokens.computed", tokens.computed),
                ("verdict.tokens.shared", tokens.shared),
                ("verdict.tokens.cached", tokens.cached),
                ("verdict.batch.tokens", run.tokens),
                ("verdict.batch.sequences", run.sequences),
            ];
            let batch = trace.stage("batch", run.start, end, &facts);
            batch.stage("forward", run.start + run.assembly, end, &[("verdict.batch.tokens", run.tokens)]);
        }
    }
}

/// A reason is asked for; it ends, cancelled, when it is dropped.
pub(super) fn decoding(trace: &Trace, index: usize) -> Stage {
    let mut stage = trace.open("decode", Instant::now());
    stage.count("verdict.index", index);
    stage
}

/// A reason ended.
pub(super) fn decoded(mut stage: Stage, finish: FinishReason, tokens: usize, error: Option<&Error>) {
    stage.count("verdict.tokens", tokens);
    stage.say("verdict.finish_reason", finish.as_str());
    if let Some(error) = error {
        stage.fail(error.code().row().name);
    }
}
