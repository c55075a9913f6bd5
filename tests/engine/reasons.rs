//! What a reason may cost others: positions, time and memory that are not there.

use verdict::metrics::DropReason;

use super::*;

/// A prompt as long as a sequence may be is scored, and has no position left for a reason.
#[test]
fn a_prompt_without_a_position_left_ends_its_reason_and_harms_nobody() {
    for kind in
        [|stub: StubBackend| stub.of_positions(8), |stub: StubBackend| stub.of_positions(8).overlapping()]
    {
        let config = EngineConfig { explain_every: 0, prefix_cache_bytes: 0, ..EngineConfig::default() };
        let (engine, guard, control) = start(config, kind);
        let full = [1, 2, 3, 4, 5, 6, 7, 8];
        let kept = wait(score(&engine, &full, true, None)).expect("scored").kept;
        assert!(kept.is_some());
        control.hold();
        let first = score(&engine, &[1, 2], false, None);
        // They are in one batch, but for what cannot be in any.
        let reasons = [
            explain(&engine, &full, kept, 10, 20),
            explain(&engine, &full, None, 10, 20),
            explain(&engine, &[1, 2, 3], None, 10, 20),
            explain(&engine, &[1, 2, 3, 4, 5, 6], None, 10, 20),
        ];
        let mate = score(&engine, &[3, 4], false, None);
        control.release();
        wait(first).expect("scored");
        wait(mate).expect("a batch mate is scored");
        let ends = reasons.map(collect);
        assert_eq!(ends[..2], [(vec![], FinishReason::Length), (vec![], FinishReason::Length)]);
        assert_eq!(ends[2], (vec![11, 12, 13], FinishReason::Stop));
        assert_eq!(ends[3], (vec![11, 12], FinishReason::Length), "the last position is used");
        guard.stop().expect("stops");
        assert_eq!(engine.kv_blocks().0, 0, "everything was given back");
    }
}

#[test]
fn a_reason_that_is_late_ends_wherever_it_waits() {
    let (metrics, control) = (Arc::new(Metrics::default()), Arc::new(StubControl::default()));
    let backend = StubBackend::new(4, vec![11, 12, 13, STOP], control.clone());
    // Four blocks: room for one of these reasons at a time.
    let config = EngineConfig { explain_kv_bytes: 4 << 10, prefix_cache_bytes: 0, ..EngineConfig::default() };
    let (engine, guard) = Engine::start(Box::new(backend), config, metrics.clone()).expect("starts");
    // One takes the room, and is late after a first portion of its prompt; the other waits for the room meanwhile.
    control.hold();
    let deadline = Instant::now() + Duration::from_millis(200);
    let decoding = explain_until(Some(deadline), &engine, &[1; 40], None, 10, 20);
    let waiting = explain_until(Some(deadline), &engine, &[2; 40], None, 10, 20);
    while Instant::now() < deadline {
        std::thread::yield_now();
    }
    control.release();
    for late in [decoding, waiting] {
        assert_eq!(collect(late), (vec![], FinishReason::Length));
    }
    assert!(control.passes() <= 1 && control.tokens() <= 40, "{} tokens", control.tokens());
    assert_eq!(metrics.jobs_dropped(DropReason::Expired), 2);
    // Nothing decodes any more: who finds no room would wait for ever if something seemed to.
    assert_eq!(collect(explain(&engine, &[1; 10], None, 10, 1000)), (vec![], FinishReason::Shed));
    assert_eq!(collect(explain(&engine, &[1; 40], None, 10, 20)).1, FinishReason::Stop);
    guard.stop().expect("stops");
    assert_eq!(engine.kv_blocks().0, 0, "everything was given back");
}

#[test]
fn what_is_kept_for_reasons_to_come_leaves_room_for_those_that_are_there() {
    let config =
        EngineConfig { explain_kv_bytes: 10 << 10, prefix_cache_bytes: 0, ..EngineConfig::default() };
    let (engine, guard, control) = stub(config);
    let first = hold(&engine, &control);
    let scored: Vec<_> = (0..50).map(|i| score(&engine, &[i, 1, 2, 3], true, None)).collect();
    control.release();
    wait(first).expect("scored");
    let scored: Vec<Scored> = scored.into_iter().map(|answer| wait(answer).expect("scored")).collect();
    // Two blocks each. The batch itself may hold one more for a moment, of which the other half had no room.
    assert_eq!(scored.iter().filter(|scored| scored.kept.is_some()).count(), 2, "what has room is kept");
    assert!(engine.kv_blocks().0 <= 5, "and half of the memory is not taken for it");
    let (other, end) = collect(explain(&engine, &[1, 2, 3], None, 10, 70));
    assert_eq!((other, end), (vec![11, 12, 13], FinishReason::Stop), "74 tokens are five blocks");
    drop(scored);
    guard.stop().expect("stops");
    assert_eq!(engine.kv_blocks().0, 0, "everything was given back");
}
