//! The engine's loop: receive → schedule → tree → forward → answer.

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use super::{
    EngineConfig, Message, Shared,
    decode::ExplainSequence,
    job::{BatchRun, FinishReason, ScoreJob, Scored, TokenCounts},
    kv::{KeptSequence, KvPool, KvRef},
    prefix::{Hit, PrefixCache},
    scheduler::{Budget, Fate, Plan, Schedulable, Scheduler},
    tree::{Read, Sequence, TokenTree},
};
use crate::{
    backend::{Backend, Reading},
    error::{Code, Error},
    metrics::{BatchStats, DropReason, Lane, Metrics, Rejection},
};

/// Explain sequences' keys never meet a prefix cache's.
const EXPLAIN_KEY: usize = usize::MAX;

pub(super) struct Worker {
    backend: Box<dyn Backend>,
    scheduler: Scheduler<ScoreJob, ExplainSequence>,
    cache: PrefixCache,
    explain_pool: Arc<KvPool>,
    config: EngineConfig,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    max_positions: usize,
    /// Explain sequences that hold memory.
    decoding: usize,
}

impl Schedulable for ScoreJob {
    fn tokens(&self) -> &[u32] {
        &self.prompt.tokens
    }

    fn request(&self) -> u64 {
        self.request
    }

    fn fate(&self, now: Instant) -> Fate {
        if self.ticket.is_abandoned() {
            Fate::Abandoned
        } else if self.deadline.is_some_and(|deadline| now >= deadline) {
            Fate::Expired
        } else {
            Fate::Live
        }
    }
}

impl Worker {
    pub(super) fn new(backend: Box<dyn Backend>, config: EngineConfig, shared: Arc<Shared>) -> Self {
        let budget = Budget {
            tokens: config.batch_tokens,
            sequences: config.batch_sequences,
            explain_sequences: config.explain_sequences,
            explain_every: config.explain_every,
        };
        Self {
            max_positions: backend.describe().max_positions,
            backend,
            scheduler: Scheduler::new(budget),
            cache: PrefixCache::new(shared.prefix_pool.clone()),
            explain_pool: shared.explain_pool.clone(),
            config,
            metrics: shared.metrics.clone(),
            shared,
            decoding: 0,
        }
    }

    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Message>) {
        let mut open = true;
        while open || !self.scheduler.is_idle() {
            open = self.receive(inbox, open);
            let plan = self.scheduler.next_batch(Instant::now());
            self.step(plan);
            self.shared.progress();
        }
    }

    /// Takes all that has arrived; blocks only when idle. False once told to stop.
    fn receive(&mut self, inbox: &mpsc::Receiver<Message>, mut open: bool) -> bool {
        if open && self.scheduler.is_idle() {
            self.shared.idle.store(true, Ordering::Relaxed);
            let first = inbox.recv();
            self.shared.progress();
            self.shared.idle.store(false, Ordering::Relaxed);
            open = first.is_ok_and(|message| self.take(message));
        }
        while let Ok(message) = inbox.try_recv() {
            open &= self.take(message);
        }
        open
    }

    /// False for the message to stop.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Score(jobs) => {
                for job in jobs {
                    self.scheduler.push(job);
                }
            }
            Message::Explain(job) => self.scheduler.requeue(ExplainSequence::new(*job)),
            Message::Stop => return false,
        }
        true
    }

    fn step(&mut self, plan: Plan<ScoreJob, ExplainSequence>) {
        self.metrics.jobs_taken(Lane::Score, plan.score.len() + plan.dropped.len());
        self.metrics.jobs_taken(Lane::Explain, plan.explain.len());
        plan.dropped.into_iter().for_each(|(job, fate)| self.drop_job(job, fate));
        let explain = self.settle(plan.explain);
        if plan.score.is_empty() && explain.is_empty() {
            return;
        }
        let start = Instant::now();
        let batch = Batch::assemble(&plan.score, &explain, &mut self.cache, &self.explain_pool);
        let assembly = start.elapsed();
        let result = self.backend.run(&batch.tree);
        let took = start.elapsed();
        self.count(&plan.score, explain.len(), &batch, took);
        match result {
            Ok(readings) => {
                batch.remember(&plan.score, &mut self.cache);
                let run = BatchRun {
                    start,
                    assembly,
                    tokens: batch.tree.tokens.len(),
                    sequences: plan.score.len() + explain.len(),
                };
                self.answer(plan.score, explain, &batch, &readings, run, took);
            }
            Err(error) => self.fail(plan.score, explain, &error),
        }
    }

    fn drop_job(&self, job: ScoreJob, fate: Fate) {
        let reason = if fate == Fate::Expired { DropReason::Expired } else { DropReason::Abandoned };
        self.metrics.dropped(reason);
        job.ticket.fail(Error::new(
            Code::DeadlineExceeded,
            "deadline_ms: the deadline passed while the request was queued",
        ));
    }

    /// Gives memory to sequences that take their first step. One that finds none waits for those
    /// that are decoding; where there are none it is shed.
    fn settle(&mut self, sequences: Vec<ExplainSequence>) -> Vec<ExplainSequence> {
        let mut ready = Vec::new();
        for mut sequence in sequences {
            if sequence.is_cancelled() {
                self.metrics.dropped(DropReason::Abandoned);
                self.decoding -= usize::from(sequence.has_room());
            } else if sequence.has_room() {
                ready.push(sequence);
            } else if let Some(room) = self.explain_pool.allocate(sequence.room_needed()) {
                sequence.settle(room, &mut self.cache);
                self.decoding += 1;
                ready.push(sequence);
            } else if self.decoding > 0 {
                self.requeue(sequence);
            } else {
                self.metrics.rejected(Rejection::Explain);
                sequence.finish(FinishReason::Shed);
            }
        }
        ready
    }

    fn count(&mut self, score: &[ScoreJob], explain_steps: usize, batch: &Batch, took: Duration) {
        self.metrics.compute_seconds(took);
        let hits = batch.hits.iter().map(|hit| hit.len).sum();
        self.metrics.prefix_cache(hits, self.cache.take_evicted());
        self.metrics.batch(&BatchStats {
            tokens: batch.tree.tokens.len(),
            sequences: score.len() + explain_steps,
            budget_tokens: self.scheduler.pass_tokens(),
            score_jobs: score.len(),
            explain_steps,
            seconds: took.as_secs_f64(),
        });
        if !score.is_empty() {
            let tokens = score.iter().map(|job| job.prompt.tokens.len()).sum();
            let mut passes = self.shared.passes();
            passes.saw(tokens, batch.tree.tokens.len(), took);
            self.scheduler.cut_batches(passes.cut(self.config.batch_tokens, self.config.batch_time));
        }
    }

    /// An explain sequence waits for its next step.
    fn requeue(&mut self, sequence: ExplainSequence) {
        self.metrics.jobs_waiting(Lane::Explain, 1);
        self.scheduler.requeue(sequence);
    }

    fn answer(
        &mut self,
        score: Vec<ScoreJob>,
        explain: Vec<ExplainSequence>,
        batch: &Batch,
        readings: &[Reading],
        run: BatchRun,
        took: Duration,
    ) {
        let count = score.len();
        for (i, job) in score.into_iter().enumerate() {
            let tokens = batch.counts[i];
            self.metrics.tokens_by_fate(tokens.computed, tokens.shared, tokens.cached);
            let queued = run.start.saturating_duration_since(job.enqueued);
            self.metrics.queue_seconds(queued);
            if job.ticket.is_abandoned() {
                self.metrics.wasted(tokens.computed);
            }
            match &readings[batch.tree.answer_of[i]] {
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
        for (i, sequence) in explain.into_iter().enumerate() {
            match readings[batch.tree.answer_of[count + i]] {
                Reading::Next(token) => {
                    if sequence.reads() {
                        self.metrics.explain_token();
                    }
                    match sequence.advance(token, Instant::now(), self.max_positions) {
                        Some(sequence) => self.requeue(sequence),
                        None => self.decoding -= 1,
                    }
                }
                _ => {
                    self.decoding -= 1;
                    sequence.fail(not_finite());
                }
            }
        }
    }

    fn fail(&mut self, score: Vec<ScoreJob>, explain: Vec<ExplainSequence>, error: &Error) {
        self.decoding -= explain.len();
        // Each request that it fails logs the cause; this line says that they share it.
        tracing::debug!(error = %error.message(), score = score.len(), explain = explain.len(), "a batch failed");
        score.into_iter().for_each(|job| job.ticket.fail(error.clone()));
        explain.into_iter().for_each(|sequence| sequence.fail(error.clone()));
    }
}

fn not_finite() -> Error {
    Error::internal("the model gave a number that is not finite")
}

/// A token tree with what the jobs need to know of it.
struct Batch {
    tree: TokenTree,
    hits: Vec<Hit>,
    counts: Vec<TokenCounts>,
    /// For each segment, the job whose document comes after it: its KV is worth keeping.
    prefix_of: Vec<Option<usize>>,
}

impl Batch {
    fn assemble(
        score: &[ScoreJob],
        explain: &[ExplainSequence],
        cache: &mut PrefixCache,
        explain_pool: &Arc<KvPool>,
    ) -> Self {
        // The last token is always computed: its row is the answer.
        let hits: Vec<Hit> =
            score.iter().map(|job| cache.lookup(&job.prompt.tokens[..job.prompt.tokens.len() - 1])).collect();
        let mut sequences: Vec<Sequence<'_>> = score
            .iter()
            .zip(&hits)
            .map(|(job, hit)| Sequence {
                past: &hit.past,
                key: hit.key,
                position: hit.len,
                tokens: &job.prompt.tokens[hit.len..],
                cut: job.prompt.document.start.saturating_sub(hit.len),
                read: Read::Grades,
            })
            .collect();
        sequences.extend(explain.iter().enumerate().map(|(i, sequence)| Sequence {
            past: sequence.past(),
            key: (EXPLAIN_KEY, i),
            position: sequence.position(),
            tokens: sequence.portion(),
            cut: 0,
            read: Read::Next,
        }));
        let tree = TokenTree::build(&sequences);
        let segments = tree.segments.len();
        let mut batch = Self {
            tree,
            hits,
            counts: vec![TokenCounts::default(); score.len()],
            prefix_of: vec![None; segments],
        };
        batch.keep_scored(score, cache, explain_pool);
        for (i, sequence) in explain.iter().enumerate() {
            let segment = batch.tree.answers[batch.tree.answer_of[score.len() + i]].segment;
            batch.tree.segments[segment].keep = sequence.destination();
        }
        batch
    }

    /// Counts tokens by fate, and finds memory for prefixes and for sequences that may be explained.
    fn keep_scored(&mut self, score: &[ScoreJob], cache: &mut PrefixCache, explain_pool: &Arc<KvPool>) {
        let segments = self.tree.segments.len();
        let (mut seen, mut wanted) = (vec![false; segments], vec![false; segments]);
        for (i, job) in score.iter().enumerate() {
            let counts = &mut self.counts[i];
            counts.cached = self.hits[i].len;
            for segment in self.tree.path(self.tree.answers[self.tree.answer_of[i]].segment) {
                let part = &self.tree.segments[segment];
                let fate = if seen[segment] { &mut counts.shared } else { &mut counts.computed };
                *fate += part.rows.len();
                seen[segment] = true;
                wanted[segment] |= job.keep_kv;
                if part.position + part.rows.len() <= job.prompt.document.start {
                    self.prefix_of[segment] = Some(i);
                }
            }
        }
        for (segment, part) in self.tree.segments.iter_mut().enumerate() {
            let len = part.rows.len();
            let cached = self.prefix_of[segment].and_then(|_| cache.allocate(len));
            if cached.is_none() {
                // What lies in the explain lane's memory is not the cache's to keep.
                self.prefix_of[segment] = None;
            }
            let span = cached.or_else(|| wanted[segment].then(|| explain_pool.allocate(len)).flatten());
            part.keep = span.map(|span| KvRef { span, start: 0, len });
        }
    }

    /// Puts the prefixes that were computed into the cache, parents first.
    fn remember(&self, score: &[ScoreJob], cache: &mut PrefixCache) {
        for (part, job) in self.tree.segments.iter().zip(&self.prefix_of) {
            if let (Some(job), Some(kv)) = (job, &part.keep) {
                cache.insert(&score[*job].prompt.tokens[..part.position + part.rows.len()], kv.clone());
            }
        }
    }

    /// The KV of job `i`'s whole prompt, if every part of it was kept.
    fn kept(&self, i: usize) -> Option<KeptSequence> {
        let mut past = self.hits[i].past.clone();
        for segment in self.tree.path(self.tree.answers[self.tree.answer_of[i]].segment) {
            past.push(self.tree.segments[segment].keep.clone()?);
        }
        Some(KeptSequence { past })
    }
}
