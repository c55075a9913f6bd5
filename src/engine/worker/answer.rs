//! Telling jobs what their batch gave.

use std::time::{Duration, Instant};

use super::{Batch, BatchRun, ExplainSequence, Flight, Reading, ScoreJob, Scored, Worker};
use crate::error::{Error, Result};

impl Worker {
    pub(super) fn answer(&mut self, flight: Flight, result: Result<Vec<Reading>>, took: Duration) {
        let Flight { score, explain, batch, start, assembly, .. } = flight;
        let readings = match result {
            Ok(readings) => readings,
            Err(error) => return self.fail(score, explain, &error),
        };
        if readings.contains(&Reading::NotFinite) {
            // What is not finite may have reached the keys of tokens before it, which others share.
            self.cache.clear();
        }
        let (count, tokens) = (score.len(), batch.tree.tokens.len());
        let run = BatchRun { start, assembly, tokens, sequences: count + explain.len() };
        let mut jobs = score.into_iter().enumerate().peekable();
        while let Some(first) = jobs.next() {
            let request = first.1.request;
            let mut same = vec![first];
            while let Some(next) = jobs.next_if(|(_, job)| job.request == request) {
                same.push(next);
            }
            // A request waits for its first pair, then for the next: the last one first wakes it once, not
            // once a pair.
            for (i, job) in same.into_iter().rev() {
                self.answer_job(job, &batch, i, &readings[batch.tree.answer_of[i]], run, took);
            }
        }
        let next: Vec<&Reading> = batch.tree.answer_of[count..].iter().map(|&at| &readings[at]).collect();
        // It holds the reasons' memory, too.
        drop(batch);
        for (sequence, reading) in explain.into_iter().zip(next) {
            self.advance(sequence, reading);
        }
    }

    fn answer_job(
        &self,
        job: ScoreJob,
        batch: &Batch,
        i: usize,
        reading: &Reading,
        run: BatchRun,
        took: Duration,
    ) {
        let tokens = batch.counts[i];
        self.metrics.tokens_by_fate(tokens.computed, tokens.shared, tokens.cached);
        let queued = run.start.saturating_duration_since(job.enqueued);
        self.metrics.queue_seconds(queued);
        self.metrics.compute_seconds(took);
        if job.ticket.is_abandoned() {
            self.metrics.wasted(tokens.computed);
        }
        match reading {
            Reading::Grades { logits, log_sum_exp } => job.ticket.answer(Scored {
                grade_logits: logits.clone(),
                log_sum_exp: *log_sum_exp,
                tokens,
                queued,
                compute: took,
                batch: run,
                kept: if job.keep_kv { batch.kept(i) } else { None },
            }),
            _ => job.ticket.fail(not_finite()),
        }
    }

    fn advance(&mut self, sequence: ExplainSequence, reading: &Reading) {
        let token = match reading {
            Reading::Next(token) => Some(*token),
            Reading::Nothing => None,
            _ => {
                self.decoding -= 1;
                return sequence.fail(not_finite());
            }
        };
        if token.is_some() {
            self.metrics.explain_token();
        }
        match sequence.advance(token, Instant::now(), self.max_positions) {
            Some(sequence) => self.requeue(sequence),
            None => self.decoding -= 1,
        }
    }

    pub(super) fn fail(&mut self, score: Vec<ScoreJob>, explain: Vec<ExplainSequence>, error: &Error) {
        self.decoding -= explain.len();
        if self.lost.is_none() {
            self.lost = self.backend.lost();
        }
        // Each request that it fails logs the cause; this line says that they share it.
        tracing::debug!(error = %error.message(), score = score.len(), explain = explain.len(), "a batch failed");
        score.into_iter().for_each(|job| job.ticket.fail(error.clone()));
        explain.into_iter().for_each(|sequence| sequence.fail(error.clone()));
    }
}

fn not_finite() -> Error {
    Error::internal("the model gave a number that is not finite")
}
