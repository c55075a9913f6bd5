//! Turns, budgets and what is dropped, against plain models of them.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Fake {
    id: usize,
    request: u64,
    tokens: Vec<u32>,
    fate: Fate,
}

impl Schedulable for Fake {
    fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    fn request(&self) -> u64 {
        self.request
    }
    fn fate(&self, _: Instant) -> Fate {
        self.fate
    }
}

/// A request of one job.
fn fake(id: usize, len: usize) -> Fake {
    Fake { id, request: id as u64, tokens: vec![id as u32; len], fate: Fate::Live }
}

/// One of many jobs of one request.
fn part(id: usize, len: usize) -> Fake {
    Fake { request: u64::MAX, ..fake(id, len) }
}

/// The ids of the next batch.
fn batch(scheduler: &mut Scheduler<Fake, ()>) -> Vec<usize> {
    scheduler.next_batch(Instant::now()).score.iter().map(|job| job.id).collect()
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
fn what_a_request_shares_counts_once_for_its_turn() {
    let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
    // 8 of 10 tokens are shared: 18 tokens, not 60.
    for id in 0..6 {
        scheduler.push(Fake { tokens: [vec![7; 8], vec![id; 2]].concat(), ..part(id as usize, 0) });
    }
    scheduler.push(fake(9, 10));
    assert_eq!(batch(&mut scheduler), [0, 1, 2, 3], "four sequences are the most");
    assert_eq!(batch(&mut scheduler), [4, 5], "it was not of more than a batch");
    assert_eq!(batch(&mut scheduler), [9]);
}

#[test]
fn batches_are_cut_and_turns_are_not() {
    let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
    scheduler.cut_batches(10);
    (0..4).for_each(|id| scheduler.push(part(id, 5)));
    (10..12).for_each(|id| scheduler.push(fake(id, 5)));
    assert_eq!(batch(&mut scheduler), [0, 1]);
    assert_eq!(batch(&mut scheduler), [2, 3], "a request up to the budget is not interrupted");
    scheduler.cut_batches(1000);
    (12..16).for_each(|id| scheduler.push(fake(id, 10)));
    assert_eq!(batch(&mut scheduler), [10, 11, 12], "the budget is the most in any case");
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

#[test]
fn a_batch_is_full_by_tokens_or_by_jobs_until_it_is_taken() {
    let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
    assert!(!scheduler.is_full());
    for id in 0..3 {
        scheduler.push(fake(id, 6));
        assert!(!scheduler.is_full(), "{} tokens", 6 * (id + 1));
    }
    scheduler.push(fake(3, 2));
    assert!(scheduler.is_full(), "four jobs, and twenty tokens");
    assert_eq!(batch(&mut scheduler), [0, 1, 2, 3]);
    assert!(!scheduler.is_full());
    scheduler.push(Fake { fate: Fate::Expired, ..fake(4, 20) });
    assert!(scheduler.is_full());
    assert!(batch(&mut scheduler).is_empty() && !scheduler.is_full());
}

#[test]
fn what_is_put_back_is_taken_first() {
    let mut scheduler = Scheduler::<Fake, char>::new(BUDGET);
    "abc".chars().for_each(|sequence| scheduler.requeue(sequence));
    let plan = scheduler.next_batch(Instant::now());
    scheduler.put_back(plan.explain);
    assert_eq!(scheduler.next_batch(Instant::now()).explain, ['a', 'b']);
}

#[test]
fn a_small_request_waits_for_one_batch_of_a_huge_one() {
    let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
    (0..100).for_each(|id| scheduler.push(part(id, 10)));
    assert_eq!(batch(&mut scheduler), [0, 1]);
    for id in 500..510 {
        scheduler.push(fake(id, 10));
        assert_eq!(batch(&mut scheduler)[0], id, "it is in the very next batch");
    }
    assert_eq!(scheduler.waiting().0, 100 - 2 - 10);
}

#[test]
fn a_huge_request_gets_its_share_of_what_never_ends() {
    let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
    (0..20).for_each(|id| scheduler.push(part(id, 10)));
    let mut batches = 0;
    let mut next = 1000;
    while scheduler.score.values().any(|job| job.id < 1000) {
        // Twice what a batch holds, for ever.
        for _ in 0..4 {
            scheduler.push(fake(next, 10));
            next += 1;
        }
        scheduler.next_batch(Instant::now());
        batches += 1;
        assert!(batches <= 100, "starved");
    }
    // Its ten batches are due within SHARE times as many; the flood that came before them is served first.
    assert!(batches > 10, "{batches}");
}

#[test]
fn a_request_that_is_gone_leaves_the_queue_at_once() {
    let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
    // The first is still waited for: those whose clients left are not the whole request.
    scheduler.push(part(0, 10));
    (1..1000).for_each(|id| scheduler.push(Fake { fate: Fate::Abandoned, ..part(id, 10) }));
    scheduler.push(part(1000, 10));
    (2000..2010).for_each(|id| scheduler.push(fake(id, 10)));
    let plan = scheduler.next_batch(Instant::now());
    assert_eq!(plan.score.iter().map(|job| job.id).collect::<Vec<_>>(), [0, 2000]);
    let dropped: Vec<usize> = plan.dropped.iter().map(|(job, _)| job.id).collect();
    assert_eq!(dropped, (1..1000).collect::<Vec<_>>());
    assert_eq!(scheduler.waiting().0, 10, "what still has a reader stays");
    let order: Vec<usize> = std::iter::repeat_with(|| batch(&mut scheduler)).take(6).flatten().collect();
    assert_eq!(order, (2001..2010).chain([1000]).collect::<Vec<_>>());
    assert!(scheduler.is_idle() && scheduler.flows.is_empty());
}

#[test]
fn requests_up_to_a_batch_are_first_come_first_served() {
    let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
    for id in 0..12 {
        scheduler.push(Fake { request: id as u64 / 2, ..fake(id, 10) });
    }
    let order: Vec<usize> = std::iter::repeat_with(|| batch(&mut scheduler)).take(6).flatten().collect();
    assert_eq!(order, (0..12).collect::<Vec<_>>());
    assert!(scheduler.flows.is_empty());
}

proptest! {
    #[test]
    fn any_requests_come_out_once_and_in_their_own_order(
        jobs in prop::collection::vec((1usize..30, 0u64..4, 0usize..5), 1..80), pushes in prop::collection::vec(0usize..6, 80)
    ) {
        let mut scheduler = Scheduler::<Fake, ()>::new(BUDGET);
        let (mut next, mut out) = (0, Vec::new());
        for push in pushes.into_iter().chain(std::iter::repeat_n(0, 200)) {
            for _ in 0..push.min(jobs.len() - next) {
                let (len, request, fate) = jobs[next];
                let fate = if fate == 0 { Fate::Abandoned } else { Fate::Live };
                scheduler.push(Fake { fate, request, ..fake(next, len) });
                next += 1;
            }
            let plan = scheduler.next_batch(Instant::now());
            let dead = |request| scheduler.score.values().any(|job| job.request == request && job.fate != Fate::Live);
            prop_assert!(plan.dropped.iter().all(|(job, _)| !dead(job.request)), "they leave together");
            out.extend(plan.score.into_iter().chain(plan.dropped.into_iter().map(|(job, _)| job)));
        }
        prop_assert!(scheduler.is_idle() && scheduler.flows.is_empty());
        for request in 0..4 {
            let live = |job: &&Fake| job.request == request && job.fate == Fate::Live;
            prop_assert!(out.iter().filter(live).map(|job| job.id).is_sorted());
        }
        let mut all: Vec<usize> = out.iter().map(|job| job.id).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..next).collect::<Vec<_>>());
    }

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
