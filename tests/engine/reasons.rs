//! What a reason may cost others: positions, time and memory that are not there.

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
