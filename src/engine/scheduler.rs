//! Which jobs make the next batch. Pure: no clock, no threads, no IO.
//!
//! Two lanes. Score jobs go first, in order of arrival, as many as the budget
//! holds. Explain sequences take turns, one step at a time, when no score job
//! waits, and at the latest after `explain_every` score batches in a row.

use std::{collections::VecDeque, time::Instant};

use super::prefix::common_prefix;

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
    score: VecDeque<S>,
    explain: VecDeque<E>,
    score_batches: usize,
}

impl<S: Schedulable, E> Scheduler<S, E> {
    /// Empty queues.
    pub fn new(budget: Budget) -> Self {
        Self { budget, score: VecDeque::new(), explain: VecDeque::new(), score_batches: 0 }
    }

    /// Queues a score job.
    pub fn push(&mut self, job: S) {
        self.score.push_back(job);
    }

    /// Queues an explain sequence, new or unfinished: it goes behind the others.
    pub fn requeue(&mut self, sequence: E) {
        self.explain.push_back(sequence);
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.score.is_empty() && self.explain.is_empty()
    }

    /// Waiting jobs by lane: score, explain.
    pub fn waiting(&self) -> (usize, usize) {
        (self.score.len(), self.explain.len())
    }

    /// Takes everything out, in order.
    pub fn drain(&mut self) -> (Vec<S>, Vec<E>) {
        (self.score.drain(..).collect(), self.explain.drain(..).collect())
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
            let Some(job) = self.score.pop_front() else { break };
            match job.fate(now) {
                Fate::Live => {}
                fate => {
                    plan.dropped.push((job, fate));
                    continue;
                }
            }
            let shared = plan.score.last().map_or(0, |before| common_prefix(before.tokens(), job.tokens()));
            let cost = job.tokens().len() - shared;
            if !plan.score.is_empty() && tokens + cost > self.budget.tokens {
                self.score.push_front(job);
                break;
            }
            tokens += cost;
            plan.score.push(job);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Fake {
        id: usize,
        tokens: Vec<u32>,
        fate: Fate,
    }

    impl Schedulable for Fake {
        fn tokens(&self) -> &[u32] {
            &self.tokens
        }
        fn fate(&self, _: Instant) -> Fate {
            self.fate
        }
    }

    fn fake(id: usize, len: usize) -> Fake {
        Fake { id, tokens: vec![id as u32; len], fate: Fate::Live }
    }

    const BUDGET: Budget = Budget { tokens: 20, sequences: 4, explain_sequences: 2, explain_every: 3 };

    #[test]
    fn a_job_over_the_budget_runs_alone() {
        let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
        scheduler.push(fake(0, 50));
        scheduler.push(fake(1, 1));
        assert_eq!(scheduler.next_batch(Instant::now()).score.len(), 1);
        assert_eq!(scheduler.next_batch(Instant::now()).score[0].id, 1);
        assert!(scheduler.is_idle());
    }

    #[test]
    fn a_shared_prefix_counts_once() {
        let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
        for id in 0..4 {
            let mut tokens = vec![9; 15];
            tokens.push(id as u32);
            scheduler.push(Fake { tokens, ..fake(id, 0) });
        }
        assert_eq!(scheduler.next_batch(Instant::now()).score.len(), 4);
    }

    #[test]
    fn explain_work_steps_when_idle_and_never_starves() {
        let mut scheduler = Scheduler::new(BUDGET);
        scheduler.requeue('a');
        assert_eq!(scheduler.next_batch(Instant::now()).explain, ['a']);
        scheduler.requeue('a');
        let mut steps = Vec::new();
        for id in 0..8 {
            scheduler.push(fake(id, 15));
            let plan = scheduler.next_batch(Instant::now());
            assert_eq!(plan.score.len(), 1, "score jobs always go first");
            steps.push(plan.explain.len());
            plan.explain.into_iter().for_each(|sequence| scheduler.requeue(sequence));
        }
        assert_eq!(steps, [0, 0, 0, 1, 0, 0, 0, 1]);
    }

    proptest! {
        #[test]
        fn budgets_hold_order_is_kept_and_every_job_comes_out_once(
            jobs in prop::collection::vec((1usize..12, 0usize..5), 1..60), pushes in prop::collection::vec(0usize..6, 60)
        ) {
            let mut scheduler = Scheduler::new(BUDGET);
            let now = Instant::now();
            let (mut next, mut computed, mut dropped, mut explained) = (0, Vec::new(), Vec::new(), 0);
            scheduler.requeue(());
            for push in pushes.into_iter().chain(std::iter::repeat_n(0, 200)) {
                for _ in 0..push.min(jobs.len() - next) {
                    let (len, fate) = jobs[next];
                    let fate = match fate { 0 => Fate::Abandoned, 1 => Fate::Expired, _ => Fate::Live };
                    scheduler.push(Fake { fate, ..fake(next, len) });
                    next += 1;
                }
                let plan = scheduler.next_batch(now);
                prop_assert!(plan.score.len() <= BUDGET.sequences);
                let tokens: usize = plan.score.iter().map(|job| job.tokens.len()).sum();
                prop_assert!(tokens <= BUDGET.tokens || plan.score.len() == 1);
                prop_assert!(plan.score.iter().all(|job| job.fate == Fate::Live));
                computed.extend(plan.score.iter().map(|job| job.id));
                dropped.extend(plan.dropped.iter().map(|(job, _)| job.id));
                explained += plan.explain.len();
                plan.explain.into_iter().for_each(|()| scheduler.requeue(()));
            }
            prop_assert!(computed.is_sorted() && dropped.is_sorted());
            let mut all: Vec<usize> = computed.into_iter().chain(dropped).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..next).collect::<Vec<_>>());
            prop_assert!(explained > 50);
        }
    }
}
