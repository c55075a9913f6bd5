//! Admission's arithmetic against a plain model of it.

use proptest::prelude::*;

use super::*;
use crate::engine::pace::Pace;

#[derive(Clone, Debug)]
enum Step {
    Admit { pairs: usize, tokens: usize },
    GiveBack { which: usize },
    Correct { which: usize, actual: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..12_usize, 1..300_usize).prop_map(|(pairs, tokens)| Step::Admit { pairs, tokens }),
        (0..16_usize).prop_map(|which| Step::GiveBack { which }),
        (0..16_usize, 0..300_usize).prop_map(|(which, actual)| Step::Correct { which, actual }),
    ]
}

fn ledger(pairs: usize, tokens: usize, explanations: usize) -> Ledger {
    Ledger::new(Capacity { pairs, tokens, explanations })
}

fn patience(ms: u64) -> Patience {
    Patience::whole(Duration::from_millis(ms))
}

fn asked(pairs: usize, bound: usize, patience_ms: Option<u64>) -> Asked {
    Asked { pairs, bound, patience: patience_ms.map(patience), now: Instant::now() }
}

/// A token a millisecond, at most a hundred in a pass.
const LOAD: Load = Load {
    pace: Some(Pace { overhead: 0.0, per_token: 0.001, pass_tokens: 100, turn_tokens: 100 }),
    stalled: Duration::ZERO,
};

struct Taken {
    request: u64,
    pairs: usize,
    known: usize,
    bound: usize,
}

proptest! {
    /// The ledger is always the sum of what is outstanding; an admission takes
    /// all or nothing, never passes the capacity, and is refused only when it would.
    #[test]
    fn the_ledger_is_the_sum_of_its_shares(
        steps in prop::collection::vec(step(), 1..200), pairs in 1..20_usize, tokens in 1..1000_usize,
    ) {
        let mut ledger = ledger(pairs, tokens, 0);
        let mut shares: Vec<Taken> = Vec::new();
        let sum = |shares: &[Taken]| shares.iter().fold((0, 0), |sum, s| (sum.0 + s.pairs, sum.1 + s.known + s.bound));
        for step in steps {
            let held = sum(&shares);
            match step {
                Step::Admit { pairs: more_pairs, tokens: more_tokens } => {
                    let fits = held.0 + more_pairs <= pairs && held.1 + more_tokens <= tokens;
                    let taken = ledger.admit(asked(more_pairs, more_tokens, None), Load::default());
                    prop_assert_eq!(taken.is_ok(), fits);
                    if let Ok(request) = taken {
                        shares.push(Taken { request, pairs: more_pairs, known: 0, bound: more_tokens });
                    }
                }
                Step::GiveBack { which } if which < shares.len() => {
                    let Taken { request, pairs, known, bound } = shares.swap_remove(which);
                    ledger.give_back(request, pairs, known, bound);
                }
                Step::Correct { which, actual } if which < shares.len() => {
                    let share = &mut shares[which];
                    ledger.correct(share.request, share.bound, actual);
                    (share.known, share.bound) = (share.known + actual, 0);
                }
                Step::GiveBack { .. } | Step::Correct { .. } => {}
            }
            prop_assert_eq!((ledger.pairs(), ledger.tokens()), sum(&shares));
            prop_assert_eq!(ledger.shares.len(), shares.len());
        }
    }

    /// A predicted wait refuses exactly when it is past the patience.
    #[test]
    fn patience_decides(held in 1..50_usize, patience in 1..200_u64) {
        let mut ledger = ledger(1000, 100_000, 0);
        for _ in 0..held {
            ledger.admit(asked(1, 2, None), LOAD).expect("room");
        }
        let taken = ledger.admit(asked(1, 10, Some(patience)), LOAD);
        // What is ahead counts twice, up to a pass of 100: as many may join the pass.
        prop_assert_eq!(taken.is_ok(), (held * 4 + 10) as u64 <= patience, "{:?}", taken);
    }

    /// The explain lane never holds more than its capacity.
    #[test]
    fn explanations_are_bounded(steps in prop::collection::vec(any::<bool>(), 1..100), room in 0..5_usize) {
        let mut ledger = ledger(0, 0, room);
        let mut held = 0;
        for take in steps {
            if take {
                prop_assert_eq!(ledger.admit_explanation(), held < room);
                held = (held + 1).min(room);
            } else if held > 0 {
                ledger.give_back_explanation();
                held -= 1;
            }
            prop_assert_eq!(ledger.explanations(), held);
        }
    }
}

#[test]
fn a_huge_request_ahead_counts_for_a_batch() {
    let mut ledger = ledger(1000, 100_000, 0);
    ledger.admit(asked(500, 50_000, None), LOAD).expect("room");
    ledger.admit(asked(1, 10, Some(210)), LOAD).expect("one pass of it, and its own");
    let refused = ledger.admit(asked(1, 10, Some(210)), LOAD).expect_err("and that of the other small one");
    assert!(matches!(refused, Refusal::TooSlow { .. }), "{refused:?}");
    // A second huge one waits for as much of the first as it is long itself.
    let refused = ledger.admit(asked(400, 20_000, Some(39_000)), LOAD).expect_err("late");
    let Refusal::TooSlow { wait, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(wait, Duration::from_millis(20_000 + 10 + 20_000 + 100));
}

#[test]
fn bounds_are_worth_what_they_turned_out_to_be() {
    let mut ledger = ledger(1000, 100_000, 0);
    let request = ledger.admit(asked(1, 400, Some(399)), Load::default()).expect("nothing is known yet");
    ledger.correct(request, 400, 100);
    ledger.admit(asked(1, 400, Some(300)), LOAD).expect("a hundred tokens, a hundred ahead, and a pass");
    ledger.admit(asked(1, 400, Some(399)), LOAD).expect_err("those two ahead");
}

#[test]
fn an_estimate_that_only_refuses_is_doubted() {
    let mut ledger = ledger(1000, 100_000, 0);
    let start = Instant::now();
    let at = |i: u32, patience| Asked { now: start + i * DOUBT_EVERY, ..asked(1, 1000, Some(patience)) };
    let refusals = (0..).take_while(|i| ledger.admit(at(*i, 100), LOAD).is_err()).count();
    // Ten times too slow, it was thought: eleven refusals at a quarter each, after one that is believed.
    assert_eq!(refusals, 12);
    ledger.correct(1, 1000, 1000);
    ledger.give_back(1, 1, 1000, 0);
    let refused = ledger.admit(at(20, 999), LOAD).expect_err("measured, and trusted again");
    let (alone, patience) = (Duration::from_secs(1), patience(999));
    assert_eq!(refused, Refusal::Hopeless { alone, patience });
    // What is refused because others are ahead says nothing of the estimate.
    let held = ledger.admit(asked(1, 1000, None), LOAD).expect("room");
    for i in 30..50 {
        ledger.admit(Asked { bound: 100, ..at(i, 150) }, LOAD).expect_err("late");
    }
    ledger.give_back(held, 1, 0, 1000);
    ledger.admit(at(50, 801), LOAD).expect_err("not doubted yet");
    ledger.admit(at(51, 799), LOAD).expect_err("doubted by that one refusal alone");
}

#[test]
fn what_was_just_measured_is_not_doubted_for_many_refusals() {
    let mut ledger = ledger(1000, 100_000, 0);
    let hopeless = asked(1, 1000, Some(300));
    for _ in 0..50 {
        let refused = ledger.admit(hopeless, LOAD).expect_err("hopeless");
        assert!(matches!(refused, Refusal::Hopeless { .. }), "{refused:?}");
    }
    assert!((ledger.doubt - 1.0).abs() < 1e-9, "they came together");
}

#[test]
fn who_is_slow_to_send_says_nothing_of_the_estimate() {
    let mut ledger = ledger(1000, 100_000, 0);
    let start = Instant::now();
    let slow = Patience { whole: Duration::from_secs(2), left: Duration::from_millis(500) };
    for i in 0..50 {
        let asked = Asked { now: start + i * DOUBT_EVERY, patience: Some(slow), ..asked(1, 1000, None) };
        let refused = ledger.admit(asked, LOAD).expect_err("too late");
        assert_eq!(refused, Refusal::TooLate { alone: Duration::from_secs(1), patience: slow });
    }
    assert!((ledger.doubt - 1.0).abs() < 1e-9, "it was not what refused them");
}

#[test]
fn refused_clients_are_told_to_come_one_after_the_other() {
    let mut ledger = ledger(1000, 100_000, 0);
    for _ in 0..100 {
        ledger.admit(asked(1, 100, None), LOAD).expect("room");
    }
    let now = Instant::now();
    let told: Vec<u128> = (0..3)
        .map(|_| {
            let asked = Asked { now, ..asked(1, 1000, Some(5000)) };
            match ledger.admit(asked, LOAD) {
                Err(Refusal::TooSlow { retry, .. }) => retry.as_millis(),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    // Ten seconds are ahead, each takes one and the rest of its pass, and five may pass.
    assert_eq!(told, [6100, 7100, 8100]);
    let late = Asked { now: now + Duration::from_secs(100), ..asked(1, 1000, Some(5000)) };
    let Err(Refusal::TooSlow { retry, .. }) = ledger.admit(late, LOAD) else { panic!("taken") };
    assert_eq!(retry.as_millis(), 6100, "promises of the past are over");
    for _ in 0..200 {
        let asked = Asked { now, ..asked(1, 1000, Some(5000)) };
        let Err(Refusal::TooSlow { retry, .. }) = ledger.admit(asked, LOAD) else { panic!("taken") };
        assert!(retry <= LONGEST_RETRY);
    }
}

#[test]
fn a_full_queue_says_when_enough_of_it_is_gone() {
    let mut ledger = ledger(10, 100_000, 0);
    for _ in 0..10 {
        ledger.admit(asked(1, 1000, None), LOAD).expect("room");
    }
    let refused = ledger.admit(asked(5, 1000, None), LOAD).expect_err("full");
    // Half of ten seconds' work makes room for five pairs.
    assert_eq!(refused, Refusal::PairsFull { limit: 10, held: 10, retry: Duration::from_secs(5) });
}

#[test]
fn an_engine_that_is_stuck_is_not_expected_to_go_on_at_once() {
    let stuck = Load { stalled: Duration::from_secs(10), ..LOAD };
    let mut ledger = ledger(10, 100_000, 0);
    let refused = ledger.admit(asked(1, 10, Some(5000)), stuck).expect_err("late");
    let Refusal::TooSlow { wait, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(wait, Duration::from_secs(10));
    ledger.admit(asked(1, 10, Some(5000)), LOAD).expect("when it goes");
}
