//! The engine over the stub backend and over a tiny checkpoint: cancelling,
//! faults, and the explain lane.

use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Wake, Waker},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use verdict::{
    backend::{
        Backend, Options, Reading, open,
        stub::{Fault, StubBackend, StubControl, StubPace},
    },
    engine::{
        Engine, EngineConfig, EngineGuard,
        job::{ExplainEvent, ExplainJob, FinishReason, ScoreJob, Scored, Ticket},
        kv::KeptSequence,
        tree::{Read, Sequence, TokenTree},
    },
    error::{Code, Error, Result},
    metrics::Metrics,
    model::Model,
    prompt::Prompt,
};

#[path = "engine/halves.rs"]
mod halves;
#[path = "engine/overlap.rs"]
mod overlap;
#[path = "engine/reasons.rs"]
mod reasons;

const STOP: u32 = 99;

fn stub(config: EngineConfig) -> (Engine, EngineGuard, Arc<StubControl>) {
    start(config, |stub| stub)
}

fn start(
    config: EngineConfig,
    kind: impl Fn(StubBackend) -> StubBackend,
) -> (Engine, EngineGuard, Arc<StubControl>) {
    let control = Arc::new(StubControl::default());
    let backend = kind(StubBackend::new(4, vec![11, 12, 13, STOP], control.clone()));
    let (engine, guard) =
        Engine::start(Box::new(backend), config, Arc::new(Metrics::default())).expect("starts");
    (engine, guard, control)
}

fn prompt(tokens: Vec<u32>) -> Arc<Prompt> {
    let end = tokens.len();
    Arc::new(Prompt { tokens, document: end / 2..end, truncated: false })
}

fn score(
    engine: &Engine,
    tokens: &[u32],
    keep_kv: bool,
    deadline: Option<Instant>,
) -> oneshot::Receiver<Result<Scored>> {
    let (ticket, answer) = Ticket::new();
    let prompt = prompt(tokens.to_vec());
    let enqueued = Instant::now();
    let job = ScoreJob { prompt, request: 0, keep_kv, deadline, enqueued, permit: None, ticket };
    engine.score_all(vec![job]);
    answer
}

fn wait(answer: oneshot::Receiver<Result<Scored>>) -> Result<Scored> {
    answer.blocking_recv().expect("every ticket is answered")
}

fn explain(
    engine: &Engine,
    tokens: &[u32],
    kept: Option<KeptSequence>,
    first_token: u32,
    max_tokens: usize,
) -> mpsc::UnboundedReceiver<ExplainEvent> {
    explain_until(None, engine, tokens, kept, first_token, max_tokens)
}

fn explain_until(
    deadline: Option<Instant>,
    engine: &Engine,
    tokens: &[u32],
    kept: Option<KeptSequence>,
    first_token: u32,
    max_tokens: usize,
) -> mpsc::UnboundedReceiver<ExplainEvent> {
    let (sink, events) = mpsc::unbounded_channel();
    engine.explain(ExplainJob {
        prompt: prompt(tokens.to_vec()),
        kept,
        first_token,
        guard: None,
        stop_tokens: Arc::from([STOP]),
        max_tokens,
        deadline,
        permit: None,
        sink,
    });
    events
}

fn collect(mut events: mpsc::UnboundedReceiver<ExplainEvent>) -> (Vec<u32>, FinishReason) {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().expect("an explanation ends with an event") {
            ExplainEvent::Token(token) => tokens.push(token),
            ExplainEvent::Finished(reason) => return (tokens, reason),
            ExplainEvent::Failed(error) => panic!("{error}"),
        }
    }
}

/// Waits until the stub holds a batch, so that what comes next must queue.
fn hold(engine: &Engine, control: &StubControl) -> oneshot::Receiver<Result<Scored>> {
    control.hold();
    let first = score(engine, &[1, 2], false, None);
    while control.waiting() == 0 {
        std::thread::yield_now();
    }
    first
}

#[test]
fn a_dropped_request_runs_none_of_its_pairs() {
    let (engine, guard, control) = stub(EngineConfig::default());
    let first = hold(&engine, &control);
    let gone: Vec<_> = (0..20).map(|i| score(&engine, &[3, 4, i], false, None)).collect();
    let stays = score(&engine, &[5, 6], false, None);
    drop(gone);
    control.release();
    wait(first).expect("scored");
    wait(stays).expect("scored");
    assert_eq!((control.answers(), control.tokens()), (2, 4), "only the two live pairs were computed");
    guard.stop().expect("stops");
}

/// Counts, when it is woken, whose answers are not there yet.
struct Missing {
    answers: Mutex<Vec<oneshot::Receiver<Result<Scored>>>>,
    found: mpsc::UnboundedSender<usize>,
}

impl Wake for Missing {
    fn wake(self: Arc<Self>) {
        let mut answers = self.answers.lock().expect("sound");
        let missing = answers.iter_mut().filter_map(|answer| answer.try_recv().err()).count();
        self.found.send(missing).expect("somebody waits");
    }
}

#[test]
fn a_request_is_woken_when_all_its_pairs_of_a_batch_are_answered() {
    let (engine, guard, control) = stub(EngineConfig::default());
    let held = hold(&engine, &control);
    // It waits for its pairs in order.
    let mut first = score(&engine, &[3, 4, 0], false, None);
    let others = (1..50).map(|i| score(&engine, &[3, 4, i], false, None)).collect();
    let (found, mut missing) = mpsc::unbounded_channel();
    let waker = Waker::from(Arc::new(Missing { answers: Mutex::new(others), found }));
    assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&waker)).is_pending());
    control.release();
    assert_eq!(missing.blocking_recv(), Some(0));
    wait(held).expect("scored");
    guard.stop().expect("stops");
}

#[test]
fn a_pass_is_cut_to_the_time_that_passes_may_take() {
    let tokens = |config: EngineConfig| {
        let (engine, guard, control) = stub(config);
        // At least so long: a machine that is busy makes passes shorter yet.
        control.pace(StubPace { overhead: Duration::from_millis(1), token: Duration::from_micros(100) });
        let one = |n: u32| score(&engine, &(0..20).map(|i| 1000 * n + i).collect::<Vec<_>>(), false, None);
        for n in 1..9 {
            wait(one(n)).expect("scored");
        }
        let first = hold(&engine, &control);
        let rest: Vec<_> = (10..110).map(one).collect();
        control.release();
        wait(first).expect("scored");
        let most = rest.into_iter().map(|answer| wait(answer).expect("scored").batch.tokens).max();
        guard.stop().expect("stops");
        most.expect("passes")
    };
    let batch_time = Duration::from_millis(40);
    let cut = tokens(EngineConfig { batch_time, ..EngineConfig::default() });
    assert!((240..=400).contains(&cut), "{cut}");
    assert_eq!(tokens(EngineConfig { batch_time: Duration::ZERO, ..EngineConfig::default() }), 2000);
}

#[test]
fn an_expired_job_is_dropped_before_compute() {
    let (engine, guard, control) = stub(EngineConfig::default());
    let first = hold(&engine, &control);
    let late = score(&engine, &[3, 4], false, Some(Instant::now()));
    control.release();
    wait(first).expect("scored");
    assert_eq!(wait(late).expect_err("late").code(), Code::DeadlineExceeded);
    assert_eq!(control.answers(), 1);
    guard.stop().expect("stops");
}

#[test]
fn a_number_that_is_not_finite_fails_its_pair_alone() {
    let (engine, guard, control) = stub(EngineConfig::default());
    let first = hold(&engine, &control);
    control.inject(Fault::NotFinite(66));
    let (bad, good) = (score(&engine, &[7, 66, 8], false, None), score(&engine, &[7, 9, 8], false, None));
    control.release();
    wait(first).expect("scored");
    assert_eq!(wait(bad).expect_err("poisoned").code(), Code::Internal);
    assert!(wait(good).expect("its batch mate stands").grade_logits.iter().all(|logit| logit.is_finite()));
    guard.stop().expect("stops");
}

#[test]
fn a_failed_batch_fails_its_own_tickets_only() {
    let (engine, guard, control) = stub(EngineConfig::default());
    control.inject(Fault::Fail(Error::internal("the device said no")));
    assert_eq!(wait(score(&engine, &[1, 2], false, None)).expect_err("failed").code(), Code::Internal);
    wait(score(&engine, &[1, 2], false, None)).expect("the next batch is fine");
    guard.stop().expect("stops");
}

#[test]
fn a_lost_device_answers_every_ticket_and_ends_the_engine() {
    let (engine, guard, control) = stub(EngineConfig::default());
    control.hold();
    control.inject(Fault::Lose(Error::internal("the device is gone")));
    let running = score(&engine, &[1, 2], false, None);
    while control.waiting() == 0 {
        std::thread::yield_now();
    }
    let queued = score(&engine, &[3, 4], false, None);
    control.release();
    assert_eq!(wait(running).expect_err("lost").message(), "the device is gone");
    wait(queued).expect_err("dropped");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(guard.ended());
    assert!(!engine.is_alive(Duration::from_secs(3600)));
    assert_eq!(guard.stop().expect_err("it is told").message(), "the device is gone");
}

#[test]
fn a_panic_answers_every_ticket_and_ends_the_engine() {
    let (engine, guard, control) = stub(EngineConfig::default());
    control.hold();
    control.inject(Fault::Panic);
    let running = score(&engine, &[1, 2], false, None);
    while control.waiting() == 0 {
        std::thread::yield_now();
    }
    let queued = score(&engine, &[3, 4], false, None);
    control.release();
    assert_eq!(wait(running).expect_err("lost").code(), Code::Internal);
    assert_eq!(wait(queued).expect_err("lost").code(), Code::Internal);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(guard.ended());
    assert!(!engine.is_alive(Duration::from_secs(3600)));
    let after = wait(score(&engine, &[1, 2], false, None)).expect_err("gone").code();
    assert!(matches!(after, Code::Unavailable | Code::Internal));
    guard.stop().expect_err("a panic is told");
}

#[test]
fn stopping_finishes_what_is_queued_and_refuses_the_rest() {
    let (engine, guard, control) = stub(EngineConfig::default());
    let first = hold(&engine, &control);
    let queued = score(&engine, &[3, 4], true, None);
    let stopper = std::thread::spawn(move || guard.stop());
    let refused = loop {
        let answer = score(&engine, &[5, 6], false, None);
        // Until the flag is seen, jobs are still taken.
        std::thread::yield_now();
        if let Err(error) = wait_if_ready(answer) {
            break error;
        }
    };
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.retry_after().is_some());
    control.release();
    wait(first).expect("was running");
    wait(queued).expect("was queued");
    stopper.join().expect("joins").expect("stops");
}

/// The answer if it is there; an unanswered job counts as taken.
fn wait_if_ready(mut answer: oneshot::Receiver<Result<Scored>>) -> Result<()> {
    answer.try_recv().map_or(Ok(()), |result| result.map(drop))
}

#[test]
fn explanations_follow_the_script_and_free_their_memory() {
    // Room for one explanation of 20 tokens at a time (two blocks of 1 KiB), beside the kept sequence.
    let config = EngineConfig { explain_kv_bytes: 4 << 10, prefix_cache_bytes: 0, ..EngineConfig::default() };
    let (engine, guard, _control) = stub(config);
    for _ in 0..5 {
        let kept = wait(score(&engine, &[1, 2, 3], true, None)).expect("scored").kept;
        assert!(kept.is_some());
        assert_eq!(
            collect(explain(&engine, &[1, 2, 3], kept, 10, 20)),
            (vec![11, 12, 13], FinishReason::Stop)
        );
        // Again from the prompt alone, and one that nobody reads.
        assert_eq!(
            collect(explain(&engine, &[1, 2, 3], None, 10, 20)),
            (vec![11, 12, 13], FinishReason::Stop)
        );
        drop(explain(&engine, &[1, 2, 3], None, 10, 20));
    }
    assert_eq!(collect(explain(&engine, &[1, 2, 3], None, 10, 2)), (vec![11, 12], FinishReason::Length));
    assert_eq!(collect(explain(&engine, &[1; 10], None, 10, 1000)), (vec![], FinishReason::Shed));
    guard.stop().expect("stops");
}

#[test]
fn a_reason_is_the_greedy_continuation_however_it_was_reached() {
    let model =
        Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3")).expect("loads");
    let mut alone = open(&model, &Options { threads: 1, ..Options::default() }).expect("opens");
    let tokens: Vec<u32> = (20..75).collect();
    let first_token = model.profile.grades[1].token;
    let mut sequence = [&tokens[..], &[first_token]].concat();
    let expected: Vec<u32> = (0..30)
        .map(|_| {
            let next = next(alone.as_mut(), &sequence);
            sequence.push(next);
            next
        })
        .take_while(|token| *token != STOP)
        .collect();

    let backend = open(&model, &Options { threads: 2, ..Options::default() }).expect("opens");
    let (engine, guard) =
        Engine::start(backend, EngineConfig::default(), Arc::new(Metrics::default())).expect("starts");
    for keep in [true, false] {
        let scored = wait(score(&engine, &tokens, keep, None)).expect("scored");
        assert_eq!(scored.kept.is_some(), keep);
        let events = explain(&engine, &tokens, scored.kept, first_token, 30);
        // Scores go on meanwhile and change nothing.
        let busy: Vec<_> = (0..40).map(|i| score(&engine, &[20, 21, 22, i], false, None)).collect();
        assert_eq!(collect(events).0, expected);
        busy.into_iter().for_each(|answer| drop(wait(answer).expect("scored")));
    }
    guard.stop().expect("stops");
}

fn next(backend: &mut dyn Backend, tokens: &[u32]) -> u32 {
    let sequence = Sequence { past: &[], key: (0, 0), position: 0, tokens, cut: 0, read: Read::Next };
    match backend.run(&TokenTree::build(&[sequence])).expect("runs")[0] {
        Reading::Next(token) => token,
        ref other => panic!("not a token: {other:?}"),
    }
}

#[test]
fn a_model_that_is_replaced_under_the_server_stays_what_it_was() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3");
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(&golden).expect("golden files") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    let model = Model::load(folder.path()).expect("loads");
    let mut backend = open(&model, &Options { threads: 1, ..Options::default() }).expect("opens");
    let tokens: Vec<u32> = (20..75).collect();
    let before = next(backend.as_mut(), &tokens);
    // As tools write a checkpoint: beside it, and then renamed over it.
    let new = folder.path().join("new");
    std::fs::write(&new, b"another model").expect("written");
    std::fs::rename(&new, folder.path().join("model.safetensors")).expect("renamed");
    assert_eq!(next(backend.as_mut(), &tokens), before);
    // What starts now sees the new one.
    assert!(Model::load(folder.path()).and_then(|model| open(&model, &Options::default())).is_err());
}
