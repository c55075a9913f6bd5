//! Batches that the device has no room for are cut, and nobody is refused for them.

use super::*;

fn jobs(count: u32) -> (Vec<ScoreJob>, Vec<oneshot::Receiver<Result<Scored>>>) {
    let job = |i: u32| {
        let (ticket, answer) = Ticket::new();
        let (prompt, enqueued) = (prompt(vec![1, 2, 3, i]), Instant::now());
        let request = u64::from(i % 3);
        let job = ScoreJob { prompt, request, keep_kv: true, deadline: None, enqueued, permit: None, ticket };
        (job, answer)
    };
    (0..count).map(job).unzip()
}

#[test]
fn a_batch_with_too_many_ways_through_it_is_cut_until_it_fits() {
    let kinds = [
        |stub: StubBackend| stub.of_sequences(3),
        |stub: StubBackend| stub.of_sequences(3).overlapping(),
        |stub: StubBackend| stub,
    ];
    let scores = kinds.map(|kind| {
        let (engine, guard, control) = start(EngineConfig::default(), kind);
        let (jobs, answers) = jobs(20);
        engine.score_all(jobs);
        let scores: Vec<Vec<f32>> =
            answers.into_iter().map(|answer| wait(answer).expect("scored").grade_logits).collect();
        guard.stop().expect("stops");
        assert_eq!((control.answers(), engine.kv_blocks().0), (20, 0), "each once, and all was given back");
        scores
    });
    assert_eq!((&scores[0], &scores[1]), (&scores[2], &scores[2]));
}

#[test]
fn reasons_take_turns_where_not_all_find_room_in_a_step() {
    for kind in
        [|stub: StubBackend| stub.of_sequences(2), |stub: StubBackend| stub.of_sequences(2).overlapping()]
    {
        let (engine, guard, _) = start(EngineConfig::default(), kind);
        let reasons: Vec<_> = (0..7).map(|i| explain(&engine, &[1, 2, i], None, 10, 20)).collect();
        for reason in reasons {
            assert_eq!(collect(reason), (vec![11, 12, 13], FinishReason::Stop));
        }
        guard.stop().expect("stops");
    }
}
