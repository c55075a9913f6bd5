//! Which jobs make the next batch. Pure: no clock, no threads, no IO.
//!
//! Two lanes. Score jobs go first, as many as the budget holds. Explain sequences
//! take turns, one step at a time, when no score job waits, and at the latest
//! after `explain_every` score batches in a row.
//!
//! Score jobs run in the order in which they are due. A request's jobs are due as
//! they arrive, up to one batch of tokens; what it has beyond is due later, a
//! batch for every [`SHARE`] batches that are served. So requests up to a batch
//! are first come, first served; one of many batches lets those that come after
//! it pass, and yet gets its share when they never end. Nothing is held back:
//! where nobody else waits, what is due later runs now.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, btree_map::Entry},
    time::Instant,
};

use super::prefix::common_prefix;

/// A request of many batches is entitled to one of so many that are served.
pub const SHARE: u64 = 4;

/// How much one batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Tokens to compute, counting a prefix shared with the job before it once.
    pub tokens: usize,
    /// Score jobs.
    pub sequences: usize,
    /// Explain sequences.
    pub explain_sequences: usize,
    /// Score batches in a row after which waiting explain work gets a step.
    pub explain_every: usize,
}

/// What the scheduler asks of a job.
pub trait Schedulable {
    /// Its prompt.
    fn tokens(&self) -> &[u32];
    /// The request that it is part of.
    fn request(&self) -> u64;
    /// Whether it is still worth computing.
    fn fate(&self, now: Instant) -> Fate;
}

/// Whether a waiting job is still worth computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Yes.
    Live,
    /// Nobody waits for the answer.
    Abandoned,
    /// Its deadline has passed.
    Expired,
}

/// One batch to run, and the jobs that fell out while it was put together.
#[derive(Debug)]
pub struct Plan<S, E> {
    /// Score jobs, oldest first.
    pub score: Vec<S>,
    /// Explain sequences that take one step.
    pub explain: Vec<E>,
    /// Jobs that are not worth computing, with the reason.
    pub dropped: Vec<(S, Fate)>,
}

/// The two queues.
#[derive(Debug)]
pub struct Scheduler<S, E> {
    budget: Budget,
    /// Tokens of the next batches, if that is less than the budget.
    pass_tokens: usize,
    /// By when they are due, in tokens served; then by arrival.
    score: BTreeMap<(u64, u64), S>,
    /// Requests with jobs in the queue.
    flows: HashMap<u64, Flow>,
    /// Tokens given to batches so far, as budgets count them: the clock of what is due.
    served: u64,
    arrivals: u64,
    /// Prompt tokens of the score jobs that wait.
    tokens: usize,
    explain: VecDeque<E>,
    score_batches: usize,
}

/// One request's jobs in the queue.
#[derive(Debug)]
struct Flow {
    /// Where its jobs are queued, in order.
    places: VecDeque<(u64, u64)>,
    /// When its first token was due.
    start: u64,
    /// Tokens that it has queued since, as budgets count them.
    tokens: u64,
}

impl Flow {
    fn new(start: u64) -> Self {
        Self { places: VecDeque::new(), start, tokens: 0 }
    }
}

impl<S: Schedulable, E> Scheduler<S, E> {
    /// Empty queues.
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            pass_tokens: budget.tokens,
            score: BTreeMap::new(),
            flows: HashMap::new(),
            served: 0,
            arrivals: 0,
            tokens: 0,
            explain: VecDeque::new(),
            score_batches: 0,
        }
    }

    /// From now on batches hold at most `tokens`, and never more than the budget. Turns stay as they
    /// are: whose job is due does not depend on it.
    pub fn cut_batches(&mut self, tokens: usize) {
        self.pass_tokens = tokens.min(self.budget.tokens);
    }

    /// Most tokens of a batch, as it is cut now.
    pub fn pass_tokens(&self) -> usize {
        self.pass_tokens
    }

    /// Queues a score job.
    pub fn push(&mut self, job: S) {
        let flow = self.flows.entry(job.request()).or_insert_with(|| Flow::new(self.served));
        let batch = (self.budget.tokens as u64).max(1);
        let due = flow.start + SHARE * (flow.tokens / batch) * batch;
        let before = flow.places.back().and_then(|place| self.score.get(place));
        let shared = before.map_or(0, |before| common_prefix(before.tokens(), job.tokens()));
        self.tokens += job.tokens().len();
        flow.tokens += (job.tokens().len() - shared) as u64;
        flow.places.push_back((due, self.arrivals));
        self.score.insert((due, self.arrivals), job);
        self.arrivals += 1;
    }

    /// Queues an explain sequence, new or unfinished: it goes behind the others.
    pub fn requeue(&mut self, sequence: E) {
        self.explain.push_back(sequence);
    }

    /// Puts back what the last batch was to take on, before the others.
    pub fn put_back(&mut self, sequences: Vec<E>) {
        sequences.into_iter().rev().for_each(|sequence| self.explain.push_front(sequence));
    }

    /// Puts back score jobs that the last batch had no room for after all, before the others.
    pub fn put_back_score(&mut self, jobs: Vec<S>) {
        for job in jobs {
            let flow = self.flows.entry(job.request()).or_insert_with(|| Flow::new(self.served));
            let place = (0, self.arrivals);
            self.arrivals += 1;
            self.tokens += job.tokens().len();
            let before = flow.places.iter().take_while(|other| **other < place).count();
            flow.places.insert(before, place);
            self.score.insert(place, job);
        }
    }

    /// Whether the score jobs that wait are a batch that waiting longer would not make larger. Shared
    /// prefixes count each time.
    pub fn is_full(&self) -> bool {
        self.score.len() >= self.budget.sequences || self.tokens >= self.pass_tokens.max(1)
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.score.is_empty() && self.explain.is_empty()
    }

    /// Waiting jobs by lane: score, explain.
    pub fn waiting(&self) -> (usize, usize) {
        (self.score.len(), self.explain.len())
    }

    /// The next batch; empty only if nothing live waits.
    pub fn next_batch(&mut self, now: Instant) -> Plan<S, E> {
        let mut plan = Plan { score: Vec::new(), explain: Vec::new(), dropped: Vec::new() };
        self.take_score(now, &mut plan);
        if plan.score.is_empty() || self.score_batches >= self.budget.explain_every {
            let count = self.budget.explain_sequences.min(self.explain.len());
            plan.explain = self.explain.drain(..count).collect();
        }
        self.score_batches =
            if plan.explain.is_empty() && !self.explain.is_empty() { self.score_batches + 1 } else { 0 };
        plan
    }

    fn take_score(&mut self, now: Instant, plan: &mut Plan<S, E>) {
        let mut tokens = 0;
        while plan.score.len() < self.budget.sequences {
            let Some((due, job)) = self.score.pop_first() else { break };
            let fate = job.fate(now);
            if fate != Fate::Live {
                self.leave(&job);
                let request = job.request();
                plan.dropped.push((job, fate));
                self.drop_rest(request, now, &mut plan.dropped);
                continue;
            }
            let shared = plan.score.last().map_or(0, |before| common_prefix(before.tokens(), job.tokens()));
            let cost = job.tokens().len() - shared;
            if !plan.score.is_empty() && tokens + cost > self.pass_tokens {
                self.score.insert(due, job);
                break;
            }
            tokens += cost;
            self.leave(&job);
            self.served += cost as u64;
            plan.score.push(job);
        }
    }

    /// A request's first job leaves the queue; the request is forgotten with its last one.
    fn leave(&mut self, job: &S) {
        self.tokens -= job.tokens().len();
        if let Some(flow) = self.flows.get_mut(&job.request()) {
            flow.places.pop_front();
            if flow.places.is_empty() {
                self.flows.remove(&job.request());
            }
        }
    }

    /// Takes out what else of a request is not worth computing: until its turn, which may be far, it
    /// would keep room in the queue from others.
    fn drop_rest(&mut self, request: u64, now: Instant, dropped: &mut Vec<(S, Fate)>) {
        let Some(flow) = self.flows.get_mut(&request) else { return };
        flow.places.retain(|place| {
            let Entry::Occupied(entry) = self.score.entry(*place) else { return false };
            let fate = entry.get().fate(now);
            if fate != Fate::Live {
                let job = entry.remove();
                self.tokens -= job.tokens().len();
                dropped.push((job, fate));
            }
            fate == Fate::Live
        });
        if flow.places.is_empty() {
            self.flows.remove(&request);
        }
    }
}

#[cfg(test)]
mod tests;
