//! The engine's loop: receive → schedule → tree → submit → answer what ended.
//!
//! A device that computes by itself (`overlaps`) has a batch while the one before it is answered. A
//! batch that is full goes behind the one that runs; one that more jobs could still join waits until
//! the device is free, so that nobody is scored later for it.

mod answer;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use super::{
    EngineConfig, Message, Shared,
    awake::Awake,
    batch::{Batch, Flight},
    decode::ExplainSequence,
    job::{BatchRun, FinishReason, ScoreJob, Scored},
    kv::KvPool,
    prefix::PrefixCache,
    scheduler::{Budget, Fate, Plan, Schedulable, Scheduler},
};
use crate::{
    backend::{Backend, IN_FLIGHT, Pass, Reading},
    error::{Code, Error, Result},
    metrics::{BatchStats, DropReason, Lane, Metrics, Rejection},
};

pub(super) struct Worker {
    backend: Box<dyn Backend>,
    scheduler: Scheduler<ScoreJob, ExplainSequence>,
    cache: PrefixCache,
    explain_pool: Arc<KvPool>,
    config: EngineConfig,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    max_positions: usize,
    /// Batches that were submitted, oldest first: of scores, and of explain steps where these have a
    /// lane of their own.
    flights: [VecDeque<Flight>; 2],
    /// When the last score batch ended.
    landed: Instant,
    /// Since when the device has computed and nothing was counted of it.
    busy_since: Instant,
    /// Explain sequences that hold memory.
    decoding: usize,
    /// Why the device computes nothing any more.
    lost: Option<Error>,
}

/// How long an idle engine of a device that computes by itself looks for messages before it sleeps. To be woken took
/// 14 to 26 microseconds of a request's time (two cores of an AMD EPYC, November 2026), and the next request of a client
/// that waits for its answers mostly comes sooner than this.
const LINGER: Duration = Duration::from_micros(500);

const SCORE: usize = 0;
const EXPLAIN: usize = 1;

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
            flights: Default::default(),
            landed: Instant::now(),
            busy_since: Instant::now(),
            decoding: 0,
            lost: None,
        }
    }

    /// Until it is told to stop and has done all; or, as an error, until the device is lost. What waits then is
    /// dropped, which answers it.
    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Message>) -> Result<()> {
        let mut open = true;
        while open || !self.scheduler.is_idle() || self.is_flying() {
            open = self.receive(inbox, open);
            self.fill();
            if let Some(flight) = self.land(inbox, &mut open) {
                self.end(flight);
            }
            if let Some(error) = self.lost.take() {
                return Err(error);
            }
        }
        Ok(())
    }

    fn is_flying(&self) -> bool {
        self.flights.iter().any(|lane| !lane.is_empty())
    }

    /// Takes all that has arrived; waits only when idle. False once told to stop.
    fn receive(&mut self, inbox: &mpsc::Receiver<Message>, mut open: bool) -> bool {
        if open && self.scheduler.is_idle() && !self.is_flying() {
            self.shared.progress();
            self.shared.idle.store(true, Ordering::Relaxed);
            let first = self.await_first(inbox);
            self.shared.progress();
            self.shared.idle.store(false, Ordering::Relaxed);
            open = first.is_ok_and(|message| self.take(message));
        }
        while let Ok(message) = inbox.try_recv() {
            open &= self.take(message);
        }
        open
    }

    fn await_first(&self, inbox: &mpsc::Receiver<Message>) -> std::result::Result<Message, mpsc::RecvError> {
        // Where the processor computes, its cores have better to do.
        let since = self.shared.overlaps.then(Instant::now);
        while since.is_some_and(|since| since.elapsed() < LINGER) {
            match inbox.try_recv() {
                Ok(message) => return Ok(message),
                Err(_) => std::thread::yield_now(),
            }
        }
        inbox.recv()
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
            Message::Soon => {}
            Message::Stop => return false,
        }
        true
    }

    /// Submits batches as long as one should go now.
    fn fill(&mut self) {
        while self.should_submit() {
            let plan = self.scheduler.next_batch(Instant::now());
            self.submit_plan(plan);
        }
    }

    fn should_submit(&self) -> bool {
        if self.lost.is_some() {
            return false;
        }
        let (score, explain) = self.scheduler.waiting();
        let [scores, steps] = self.flights.each_ref().map(VecDeque::len);
        match scores {
            0 => score > 0 || (explain > 0 && steps == 0),
            // Behind those that run; a step beside them only when it is its turn.
            _ => self.shared.overlaps && scores < IN_FLIGHT && self.scheduler.is_full(),
        }
    }

    fn submit_plan(&mut self, mut plan: Plan<ScoreJob, ExplainSequence>) {
        if !self.flights[EXPLAIN].is_empty() {
            // The lane has its step already.
            self.scheduler.put_back(std::mem::take(&mut plan.explain));
        }
        self.metrics.jobs_taken(Lane::Score, plan.score.len() + plan.dropped.len());
        self.metrics.jobs_taken(Lane::Explain, plan.explain.len());
        plan.dropped.into_iter().for_each(|(job, fate)| self.drop_job(job, fate));
        let explain = self.settle(plan.explain);
        if self.shared.overlaps {
            self.submit(SCORE, plan.score, Vec::new());
            // A device has kernels of its own for steps of single tokens.
            let (steps, parts) = explain.into_iter().partition(ExplainSequence::reads);
            self.submit(EXPLAIN, Vec::new(), steps);
            self.submit(EXPLAIN, Vec::new(), parts);
        } else {
            self.submit(SCORE, plan.score, explain);
        }
    }

    fn submit(&mut self, lane: usize, score: Vec<ScoreJob>, explain: Vec<ExplainSequence>) {
        if score.is_empty() && explain.is_empty() {
            return;
        }
        let start = Instant::now();
        if !self.is_flying() {
            self.shared.progress();
            self.busy_since = start;
        }
        let batch = Batch::assemble(&score, &explain, &mut self.cache, &self.explain_pool);
        let assembly = start.elapsed();
        match self.backend.submit(&batch.tree) {
            Ok(pass) => {
                batch.remember(&score, &mut self.cache);
                let tokens = batch.tree.tokens.len();
                let expected = self.shared.awake.as_ref().and_then(|_| self.shared.passes().expected(tokens));
                let flight = Flight { pass, score, explain, batch, start, assembly, expected, doomed: None };
                self.flights[lane].push_back(flight);
            }
            Err(error) if error.code() == Code::TooLarge && score.len() + explain.len() > 1 => {
                drop(batch);
                self.halve(lane, score, explain);
            }
            Err(error) => self.fail(score, explain, &error),
        }
    }

    /// Submits the first half of a batch that is too large for the device, and puts the other back.
    fn halve(&mut self, lane: usize, mut score: Vec<ScoreJob>, mut explain: Vec<ExplainSequence>) {
        let later = explain.split_off(if score.is_empty() { explain.len().div_ceil(2) } else { 0 });
        let rest = score.split_off(score.len().div_ceil(2));
        self.metrics.jobs_waiting(Lane::Score, rest.len());
        self.metrics.jobs_waiting(Lane::Explain, later.len());
        self.scheduler.put_back_score(rest);
        self.scheduler.put_back(later);
        self.submit(lane, score, explain);
    }

    fn drop_job(&self, job: ScoreJob, fate: Fate) {
        let reason = if fate == Fate::Expired { DropReason::Expired } else { DropReason::Abandoned };
        self.metrics.dropped(reason);
        job.ticket.fail(Error::new(
            Code::DeadlineExceeded,
            "deadline_ms: the deadline passed while the request was queued",
        ));
    }

    /// Ends the sequences that nobody waits for, that are late, or whose prompt left no position for a
    /// reason: a batch with such a position fails for all in it. Gives memory to those that take their
    /// first step. One that finds none waits for those that are decoding; where there are none it is shed.
    fn settle(&mut self, sequences: Vec<ExplainSequence>) -> Vec<ExplainSequence> {
        let now = Instant::now();
        let mut ready = Vec::new();
        for mut sequence in sequences {
            if sequence.is_cancelled() {
                self.metrics.dropped(DropReason::Abandoned);
                self.decoding -= usize::from(sequence.has_room());
            } else if sequence.is_late(now) {
                self.metrics.dropped(DropReason::Expired);
                self.decoding -= usize::from(sequence.has_room());
                sequence.finish(FinishReason::Length);
            } else if sequence.has_room() {
                ready.push(sequence);
            } else if !sequence.fits(self.max_positions) {
                sequence.finish(FinishReason::Length);
            } else if let Some(room) = self.explain_pool.allocate(sequence.room_needed()) {
                sequence.settle(room, &mut self.cache);
                self.decoding += 1;
                ready.push(sequence);
            } else if self.decoding > 0 {
                self.requeue(sequence);
            } else {
                self.metrics.rejected(Rejection::ExplainMemory);
                sequence.finish(FinishReason::Shed);
            }
        }
        ready
    }

    /// An explain sequence waits for its next step.
    fn requeue(&mut self, sequence: ExplainSequence) {
        self.metrics.jobs_waiting(Lane::Explain, 1);
        self.scheduler.requeue(sequence);
    }

    /// The next batch that ends; waits for it, but not if a message brings what should be submitted
    /// first. `None` too if nothing is on its way.
    fn land(&mut self, inbox: &mpsc::Receiver<Message>, open: &mut bool) -> Option<Flight> {
        while self.is_flying() {
            self.wake_early();
            for lane in &mut self.flights {
                if lane.front().is_some_and(|flight| self.backend.is_done(&flight.pass)) {
                    return lane.pop_front();
                }
            }
            match inbox.try_recv() {
                Ok(message) => {
                    *open &= self.take(message);
                    if self.should_submit() {
                        return None;
                    }
                }
                // As the driver waits, but with an eye on the inbox.
                Err(_) => std::thread::yield_now(),
            }
        }
        None
    }

    /// Wakes those who are to be told what the oldest pass of scores gives, shortly before it should be over.
    fn wake_early(&mut self) {
        if let (Some(awake), Some(flight)) = (&self.shared.awake, self.flights[SCORE].front_mut())
            && let Some(expected) = flight.expected
            && awake.soon(flight.start.max(self.landed), expected, Instant::now())
        {
            flight.expected = None;
        }
    }

    /// Takes what a batch gave, has the device go on, and answers.
    fn end(&mut self, mut flight: Flight) {
        let pass = std::mem::replace(&mut flight.pass, Pass::Done(Vec::new()));
        let result = self.backend.collect(pass);
        self.shared.progress();
        let took = flight.start.elapsed();
        self.count(&flight);
        let result = match (result, flight.doomed.take()) {
            (Err(error), _) => {
                self.doom(&flight.batch, &error);
                Err(error)
            }
            (Ok(_), Some(error)) => Err(error),
            (Ok(readings), None) => Ok(readings),
        };
        // Sequences that took a step wait for their turn first: they hold memory that others want.
        let scores = !flight.score.is_empty();
        if self.shared.overlaps && scores {
            self.fill();
        }
        self.answer(flight, result, took);
        if scores {
            self.shared.awake.iter().for_each(Awake::rest);
        }
    }

    /// A batch that failed wrote nothing: the cache forgets what it holds, and those behind it that
    /// read it fail too.
    fn doom(&mut self, failed: &Batch, error: &Error) {
        self.cache.clear();
        let mut unwritten = failed.tree.blocks();
        for flight in self.flights.iter_mut().flatten() {
            let blocks = flight.batch.tree.blocks();
            if blocks.reads.meets(&unwritten.writes) {
                unwritten.writes.join(&blocks.writes);
                flight.doomed = Some(error.clone());
            }
        }
    }

    fn count(&mut self, flight: &Flight) {
        let Flight { score, explain, batch, start, .. } = flight;
        // Batches that are under way together are busy time once.
        let now = Instant::now();
        let busy = now - std::mem::replace(&mut self.busy_since, now);
        let hits = batch.hits.iter().map(|hit| hit.len).sum();
        self.metrics.prefix_cache(hits, self.cache.take_evicted());
        self.metrics.batch(&BatchStats {
            tokens: batch.tree.tokens.len(),
            sequences: score.len() + explain.len(),
            budget_tokens: self.scheduler.pass_tokens(),
            score_jobs: score.len(),
            explain_steps: explain.len(),
            seconds: busy.as_secs_f64(),
        });
        if !score.is_empty() {
            let tokens = score.iter().map(|job| job.prompt.tokens.len()).sum();
            // What it took of the device: it waited for the batch before it.
            let mut passes = self.shared.passes();
            passes.saw(tokens, batch.tree.tokens.len(), now - (*start).max(self.landed));
            self.scheduler.cut_batches(passes.cut(self.config.batch_tokens, self.config.batch_time));
            self.landed = now;
        }
    }
}
