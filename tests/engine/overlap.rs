//! The engine over a device that computes by itself: passes run some time after they were submitted,
//! in an order that the device chooses.

use proptest::prelude::*;

use super::*;

/// Batches of at most four, over a device whose passes run when `control` lets them.
fn late(config: EngineConfig) -> (Engine, EngineGuard, Arc<StubControl>) {
    start(EngineConfig { batch_sequences: 4, ..config }, StubBackend::overlapping)
}

fn until(mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(30), "it never came");
        std::thread::yield_now();
    }
}

/// What a stub gives for a prompt alone.
fn expected(tokens: &[u32]) -> Vec<f32> {
    let mut alone = StubBackend::new(4, vec![11, 12, 13, STOP], Arc::default());
    let sequence = Sequence { past: &[], key: (0, 0), position: 0, tokens, cut: 0, read: Read::Grades };
    match alone.run(&TokenTree::build(&[sequence])).expect("runs").remove(0) {
        Reading::Grades { logits, .. } => logits,
        other => panic!("not a score: {other:?}"),
    }
}

/// Four jobs at once, so that they are one full batch.
fn four(engine: &Engine, of: impl Fn(u32) -> Vec<u32>) -> Vec<oneshot::Receiver<Result<Scored>>> {
    let (jobs, answers): (Vec<_>, Vec<_>) = (0..4)
        .map(|i| {
            let (ticket, answer) = Ticket::new();
            let enqueued = Instant::now();
            let job = ScoreJob {
                prompt: prompt(of(i)),
                request: 0,
                keep_kv: false,
                deadline: None,
                enqueued,
                permit: None,
                ticket,
            };
            (job, answer)
        })
        .unzip();
    engine.score_all(jobs);
    answers
}

#[test]
fn a_full_batch_goes_behind_the_one_that_runs_and_others_wait_to_be_joined() {
    let (engine, guard, control) = late(EngineConfig::default());
    control.hold();
    let first = score(&engine, &[1, 2], false, None);
    until(|| control.submitted() == 1);
    let mut others = vec![score(&engine, &[3, 4], false, None), score(&engine, &[5, 6], false, None)];
    others.push(score(&engine, &[7, 8], false, None));
    others.push(score(&engine, &[9, 8], false, None));
    until(|| control.submitted() == 2);
    let third = score(&engine, &[2, 2], false, None);
    assert_eq!(control.passes(), 0, "both are under way before the first ran");
    // The first ends, and is answered while the second has yet to run.
    control.hold_after(1);
    assert_eq!(wait(first).expect("scored").grade_logits, expected(&[1, 2]));
    assert_eq!((control.passes(), control.submitted()), (1, 2), "one job is no full batch");
    // The second ends: the third is on the device before the second's answers are sent.
    control.hold_after(1);
    for answer in others {
        assert_eq!(wait(answer).expect("scored").batch.sequences, 4, "the four went together");
    }
    assert_eq!((control.passes(), control.submitted()), (2, 3));
    control.release();
    assert_eq!(wait(third).expect("scored").grade_logits, expected(&[2, 2]));
    guard.stop().expect("stops");
}

#[test]
fn a_prefix_may_be_read_before_it_was_written() {
    let (engine, guard, control) = late(EngineConfig::default());
    control.hold();
    let first = score(&engine, &[1, 2, 3, 4, 5, 6], false, None);
    until(|| control.submitted() == 1);
    let behind = four(&engine, |i| vec![1, 2, 3, 20 + i, 30, 40]);
    until(|| control.submitted() == 2);
    control.release();
    wait(first).expect("scored");
    for (i, answer) in (0..).zip(behind) {
        let scored = wait(answer).expect("scored");
        assert_eq!(scored.tokens.cached, 3, "the first batch's prefix");
        assert_eq!(scored.grade_logits, expected(&[1, 2, 3, 20 + i, 30, 40]));
    }
    guard.stop().expect("stops");
}

#[test]
fn a_failed_batch_takes_along_those_that_read_what_it_did_not_write_and_no_others() {
    for shares in [true, false] {
        let (engine, guard, control) = late(EngineConfig::default());
        control.hold();
        let first = score(&engine, &[1, 2, 3, 4, 5, 6], false, None);
        until(|| control.submitted() == 1);
        let head = if shares { 1 } else { 9 };
        let behind = four(&engine, |i| vec![head, 2, 3, 20 + i, 30, 40]);
        until(|| control.submitted() == 2);
        control.inject(Fault::Fail(Error::internal("the device said no")));
        control.release();
        assert_eq!(wait(first).expect_err("failed").message(), "the device said no");
        for (i, answer) in (0..).zip(behind) {
            match wait(answer) {
                Ok(scored) => {
                    assert_eq!((shares, scored.grade_logits), (false, expected(&[9, 2, 3, 20 + i, 30, 40])));
                }
                Err(error) => assert_eq!((shares, error.message()), (true, "the device said no")),
            }
        }
        // What was never written is no longer in the cache.
        for _ in 0..2 {
            let scored = wait(score(&engine, &[1, 2, 3, 7], false, None)).expect("scored");
            assert_eq!(scored.grade_logits, expected(&[1, 2, 3, 7]));
        }
        guard.stop().expect("stops");
    }
}

#[test]
fn a_step_goes_when_no_score_is_on_the_device_or_when_it_is_its_turn() {
    // Without a turn in sight, and with one after every score batch.
    for every in [100, 1] {
        let (engine, guard, control) = late(EngineConfig { explain_every: every, ..EngineConfig::default() });
        let kept = wait(score(&engine, &[1, 2, 3], true, None)).expect("scored").kept;
        control.hold();
        let mut first = score(&engine, &[4, 5], false, None);
        until(|| control.submitted() == 2);
        let mut events = explain(&engine, &[1, 2, 3], kept, 10, 20);
        let mut second = four(&engine, |i| vec![6, i]);
        until(|| control.submitted() >= 3);
        let third = four(&engine, |i| vec![7, i]);
        // The first ends, the third goes behind the second.
        control.hold_after(1);
        until(|| matches!(first.try_recv(), Ok(Ok(_))));
        if every == 1 {
            until(|| control.submitted() == 5);
        } else {
            until(|| control.submitted() == 4);
            control.hold_after(1);
            for mut answer in second.drain(..) {
                until(|| matches!(answer.try_recv(), Ok(Ok(_))));
            }
            assert!(control.submitted() == 4 && events.try_recv().is_err(), "the third is under way");
        }
        control.release();
        second.into_iter().chain(third).for_each(|answer| drop(wait(answer).expect("scored")));
        assert_eq!(collect(events).0, [11, 12, 13]);
        guard.stop().expect("stops");
    }
}

#[test]
fn a_stop_ends_what_is_on_the_device() {
    let (engine, guard, control) = late(EngineConfig::default());
    control.hold();
    let first = score(&engine, &[1, 2], false, None);
    until(|| control.submitted() == 1);
    let behind = four(&engine, |i| vec![3, i]);
    let reason = explain(&engine, &[1, 2, 3], None, 10, 20);
    let stopper = std::thread::spawn(move || guard.stop());
    control.release();
    wait(first).expect("scored");
    behind.into_iter().for_each(|answer| drop(wait(answer).expect("scored")));
    assert_eq!(collect(reason).0, [11, 12, 13]);
    stopper.join().expect("joins").expect("stops");
}

#[test]
fn batches_under_way_together_are_busy_time_once() {
    let (metrics, control) = (Arc::new(Metrics::default()), Arc::new(StubControl::default()));
    let backend = StubBackend::new(4, vec![11, 12, 13, STOP], control.clone()).overlapping();
    let config = EngineConfig { batch_sequences: 4, ..EngineConfig::default() };
    let (engine, guard) = Engine::start(Box::new(backend), config, metrics.clone()).expect("starts");
    control.hold();
    let begun = Instant::now();
    let first = score(&engine, &[1, 2], false, None);
    until(|| control.submitted() == 1);
    let others = four(&engine, |i| vec![3, i]);
    until(|| control.submitted() == 2);
    let both_under_way = Instant::now();
    until(|| both_under_way.elapsed() >= Duration::from_millis(40));
    control.release();
    for answer in std::iter::once(first).chain(others) {
        wait(answer).expect("scored");
    }
    guard.stop().expect("stops");
    let took = begun.elapsed().as_secs_f64();
    let text = String::from_utf8(metrics.text().expect("is written")).expect("is text");
    let line = text.lines().find_map(|line| line.strip_prefix("verdict_batch_seconds_sum "));
    let busy: f64 = line.expect("is counted").parse().expect("is a number");
    assert!((0.04..=took).contains(&busy), "{busy} s of {took} s");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    /// Little memory, so that blocks change hands all the time; clients that leave; reasons beside.
    #[test]
    fn whatever_runs_when_scores_and_reasons_are_their_own(
        prompts in prop::collection::vec((prop::collection::vec(0u32..4, 1..40), 0usize..6), 1..60),
        prefix in 0usize..6, explain_kv in 4usize..12, every in 0usize..3,
    ) {
        let config = EngineConfig {
            prefix_cache_bytes: prefix << 10,
            explain_kv_bytes: explain_kv << 10,
            explain_every: every,
            explain_sequences: 2,
            batch_tokens: 60,
            ..EngineConfig::default()
        };
        let (engine, guard, control) = late(config);
        let mut answers = Vec::new();
        let mut reasons = Vec::new();
        for (i, (tokens, kind)) in prompts.iter().enumerate() {
            if i % 7 == 3 {
                control.hold_after(i % 3);
            }
            let answer = score(&engine, tokens, *kind == 0, None);
            match kind {
                1 => drop(answer),
                2 => reasons.push((explain(&engine, tokens, None, 10, 9), answer)),
                _ => answers.push((tokens, answer)),
            }
        }
        control.release();
        for (tokens, answer) in answers {
            let scored = wait(answer).expect("scored");
            prop_assert_eq!(scored.grade_logits, expected(tokens));
            if let Some(kept) = scored.kept {
                let (found, end) = collect(explain(&engine, tokens, Some(kept), 10, 9));
                prop_assert!(found == [11, 12, 13] || (found.is_empty() && end == FinishReason::Shed), "{:?}", found);
            }
        }
        for (events, answer) in reasons {
            wait(answer).expect("scored");
            let (found, end) = collect(events);
            prop_assert!(found == [11, 12, 13] || (found.is_empty() && end == FinishReason::Shed), "{:?}", found);
        }
        guard.stop().expect("stops");
        prop_assert_eq!(engine.kv_blocks().0, 0, "everything was given back");
    }
}

#[test]
fn what_was_expected_may_come_or_not() {
    let (engine, guard, control) = late(EngineConfig::default());
    for _ in 0..3 {
        engine.expect();
    }
    assert_eq!(wait(score(&engine, &[1, 2], false, None)).expect("scored").grade_logits, expected(&[1, 2]));
    engine.expect();
    until(|| engine.stalled() == Duration::ZERO);
    assert_eq!(control.passes(), 1, "nothing is computed for it");
    guard.stop().expect("stops");
    engine.expect();
}
