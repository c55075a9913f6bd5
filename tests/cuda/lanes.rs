//! Tests of passes that are under way together, on whatever GPU the process finds.

use std::cell::RefCell;

use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot};
use verdict::{
    backend::{IN_FLIGHT, Pass},
    engine::{
        job::{ExplainEvent, ExplainJob},
        kv::{KeptSequence, Span},
    },
    error::Result,
};

use super::device::*;

fn under_way(backend: &mut dyn Backend, tree: &TokenTree) -> Pass {
    backend.submit(tree).expect("submitted")
}

/// Submitted one after the other, ended when the device likes, collected late.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn passes_are_under_way_together_and_keep_to_themselves() {
    let model = model("qwen3");
    let backend = RefCell::new(gpu(&model));
    let outcome = cases(3).run(&crate::prompts::prompts(), |prompts| {
        let mut backend = backend.borrow_mut();
        let backend = &mut **backend;
        let trees: Vec<_> =
            prompts.iter().map(|(tokens, cut)| TokenTree::build(&[sequence(tokens, *cut)])).collect();
        let expected: Vec<_> = prompts.iter().map(|(tokens, _)| alone(backend, tokens)).collect();
        let mut flying = std::collections::VecDeque::new();
        let collect = |backend: &mut dyn Backend, (i, pass): (usize, Pass)| {
            let readings = backend.collect(pass).expect("runs");
            prop_assert_eq!(&bits(&readings[0]), &expected[i]);
            Ok(())
        };
        for (i, tree) in trees.iter().enumerate() {
            if flying.len() == IN_FLIGHT {
                let oldest = flying.pop_front().expect("two of them");
                collect(backend, oldest)?;
            }
            flying.push_back((i, under_way(backend, tree)));
        }
        for pass in flying {
            while !backend.is_done(&pass.1) {
                std::thread::yield_now();
            }
            collect(backend, pass)?;
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    one_too_many(&mut **backend.borrow_mut());
}

fn one_too_many(backend: &mut dyn Backend) {
    let tree = TokenTree::build(&[sequence(&[20, 21, 22], 0)]);
    let flying: Vec<_> = (0..IN_FLIGHT).map(|_| under_way(backend, &tree)).collect();
    let error = backend.submit(&tree).expect_err("its buffers are taken");
    assert_eq!(error.message(), "more passes than may be under way");
    let next = TokenTree::build(&[Sequence { read: Read::Next, ..sequence(&[20, 21], 0) }]);
    let beside = under_way(backend, &next);
    let of_scores: Vec<_> = flying.into_iter().map(|pass| backend.collect(pass).expect("runs")).collect();
    assert_eq!(of_scores[0], of_scores[1]);
    assert!(matches!(backend.collect(beside).expect("runs")[0], Reading::Next(_)));
}

/// What `step` reads and writes of a sequence's blocks.
fn kept(span: &Arc<Span>, from: usize, len: usize) -> KvRef {
    KvRef { span: span.clone(), start: from, len }
}

/// A decode step reads keys that a score pass, not yet collected, is to write; and the other way round.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn what_one_lane_writes_the_other_reads_when_it_is_there() {
    let model = model("qwen3");
    let mut backend = gpu(&model);
    let backend = &mut *backend;
    backend.reserve_kv(12).expect("reserves");
    let tokens: Vec<u32> = (0..60).map(|i| 20 + i * 7 % 200).collect();
    let expected = alone(backend, &tokens);
    for _ in 0..8 {
        // Scored, and its keys kept; a part of it read as a prompt's; then scored on top of both.
        let pool = KvPool::new(0, 12);
        let (first, second) = (pool.allocate(40).expect("blocks"), pool.allocate(20).expect("blocks"));
        let mut score = TokenTree::build(&[sequence(&tokens[..40], 0)]);
        score.segments[0].keep = Some(kept(&first, 0, 40));
        let past = [kept(&first, 0, 40)];
        let part =
            Sequence { past: &past, position: 40, read: Read::Nothing, ..sequence(&tokens[40..59], 0) };
        let mut part = TokenTree::build(&[part]);
        part.segments[0].keep = Some(kept(&second, 0, 19));
        let past = [kept(&first, 0, 40), kept(&second, 0, 19)];
        let last = Sequence { past: &past, position: 59, ..sequence(&tokens[59..], 0) };
        let passes = [&score, &part, &TokenTree::build(&[last])].map(|tree| under_way(backend, tree));
        let readings = passes.map(|pass| backend.collect(pass).expect("runs").remove(0));
        assert_eq!(readings[1], Reading::Nothing);
        assert_eq!(bits(&readings[2]), expected);
    }
}

/// Decoded token by token, alone or with others, in any order: the same keys and values.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn a_sequence_is_decoded_alone_as_among_others() {
    for name in ["qwen3", "qwen2"] {
        let model = model(name);
        let mut backend = gpu(&model);
        let backend = &mut *backend;
        backend.reserve_kv(40).expect("reserves");
        let prompts: Vec<Vec<u32>> =
            (0..4u32).map(|s| (0..10 + 40 * s).map(|i| 20 + (i * 13 + s * 7) % 200).collect()).collect();
        let alone: Vec<_> = prompts.iter().flat_map(|prompt| decode(backend, &[prompt])).collect();
        assert_eq!(decode(backend, &prompts.iter().collect::<Vec<_>>()), alone, "{name}");
        let reversed: Vec<_> = decode(backend, &prompts.iter().rev().collect::<Vec<_>>());
        assert_eq!(reversed.into_iter().rev().collect::<Vec<_>>(), alone, "{name}");
    }
}

/// Prefills prompts, decodes six tokens of each together, and reads a score on top of their keys.
fn decode(backend: &mut dyn Backend, prompts: &[&Vec<u32>]) -> Vec<(Vec<u32>, Vec<u32>)> {
    let pool = KvPool::new(0, 40);
    let spans: Vec<_> = prompts.iter().map(|p| pool.allocate(p.len() + 8).expect("blocks")).collect();
    let mut fed: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.to_vec()).collect();
    let step = |backend: &mut dyn Backend, fed: &[Vec<u32>], from: &[usize], read: Read| {
        let pasts: Vec<_> = from.iter().zip(&spans).map(|(&from, span)| [kept(span, 0, from)]).collect();
        let sequences: Vec<_> = (0..fed.len())
            .map(|i| Sequence {
                past: if from[i] == 0 { &[] } else { &pasts[i] },
                key: (7, i),
                position: from[i],
                tokens: &fed[i][from[i]..],
                cut: 0,
                read,
            })
            .collect();
        let mut tree = TokenTree::build(&sequences);
        for (i, span) in spans.iter().enumerate() {
            let answer = tree.answers[tree.answer_of[i]];
            tree.segments[answer.segment].keep = Some(kept(span, from[i], fed[i].len() - from[i]));
        }
        let readings = backend.run(&tree).expect("runs");
        tree.answer_of.iter().map(|&answer| readings[answer].clone()).collect::<Vec<_>>()
    };
    let mut from = vec![0; fed.len()];
    step(backend, &fed, &from, Read::Nothing);
    for _ in 0..6 {
        from = fed.iter().map(Vec::len).collect();
        fed.iter_mut().zip(&from).for_each(|(fed, &len)| fed.push(20 + len as u32 % 7));
        let readings = step(backend, &fed, &from, Read::Next);
        assert!(readings.iter().all(|reading| matches!(reading, Reading::Next(_))), "{readings:?}");
    }
    from = fed.iter().map(Vec::len).collect();
    fed.iter_mut().for_each(|fed| fed.push(30));
    let scores = step(backend, &fed, &from, Read::Grades);
    fed.into_iter().zip(scores.iter().map(bits)).collect()
}

fn explain(
    engine: &Engine,
    tokens: &[u32],
    kept: Option<KeptSequence>,
) -> mpsc::UnboundedReceiver<ExplainEvent> {
    let (sink, events) = mpsc::unbounded_channel();
    let prompt = Prompt { tokens: tokens.to_vec(), document: 0..tokens.len(), truncated: false };
    engine.explain(ExplainJob {
        prompt: Arc::new(prompt),
        kept,
        first_token: 25,
        guard: None,
        stop_tokens: Arc::from([]),
        max_tokens: 12,
        deadline: None,
        permit: None,
        sink,
    });
    events
}

fn reason(mut events: mpsc::UnboundedReceiver<ExplainEvent>) -> Vec<u32> {
    let mut tokens = Vec::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            ExplainEvent::Token(token) => tokens.push(token),
            ExplainEvent::Finished(_) => break,
            ExplainEvent::Failed(error) => panic!("{error}"),
        }
    }
    tokens
}

type Answer = oneshot::Receiver<Result<Scored>>;

/// Scores and reasons at once: a reason is the same with the scored keys or without them, alone or with
/// others, and the scores are their own.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn reasons_beside_scores_are_what_they_are_alone() {
    let model = model("qwen3");
    let config = EngineConfig { batch_sequences: 3, explain_sequences: 3, ..engine_config() };
    let options = Options { device: Device::Cuda, threads: 1, engine: config.clone(), ..Options::default() };
    let backend = open(&model, &options).unwrap_or_else(|error| panic!("{ON_A_GPU}: {error}"));
    let (engine, guard) = Engine::start(backend, config, Arc::default()).expect("starts");
    // One of 65 tokens: a part of 64, a part of one, then the grade.
    let prompts: Vec<Vec<u32>> = [65u32, 20, 130, 64]
        .iter()
        .map(|&len| (0..len).map(|i| 20 + (i * 11 + len) % 200).collect())
        .collect();
    let scored = |tokens: &[u32]| -> Answer {
        let (job, answer) = job(tokens, tokens.len() / 4 * 2);
        engine.score_all(vec![job]);
        answer
    };
    let wait = |answer: Answer| answer.blocking_recv().expect("answered").expect("scored");
    let alone: Vec<_> = prompts
        .iter()
        .map(|tokens| {
            let score = wait(scored(tokens));
            let score_bits = scored_bits(&score.grade_logits, score.log_sum_exp);
            assert!(score.kept.is_some(), "there is room");
            (score_bits, reason(explain(&engine, tokens, score.kept)))
        })
        .collect();
    for _ in 0..2 {
        let reasons: Vec<_> = prompts.iter().map(|tokens| explain(&engine, tokens, None)).collect();
        let scores: Vec<_> = prompts.iter().cycle().take(12).map(|tokens| scored(tokens)).collect();
        for (score, (expected, _)) in scores.into_iter().zip(alone.iter().cycle()) {
            let score = wait(score);
            assert_eq!(&scored_bits(&score.grade_logits, score.log_sum_exp), expected);
        }
        for (events, (_, expected)) in reasons.into_iter().zip(&alone) {
            assert_eq!(&reason(events), expected);
        }
    }
    guard.stop().expect("the engine stops");
}

/// Without the label mass the vocabulary is not read for scores; their logits are the same bits.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn the_vocabulary_is_read_only_where_it_is_asked_for() {
    let mut model = model("qwen3");
    let (score, next) = ([20, 21, 22], [30, 31]);
    let asked = [sequence(&score, 0), Sequence { read: Read::Next, ..sequence(&next, 0) }];
    let tree = TokenTree::build(&asked);
    let with = gpu(&model).run(&tree).expect("runs");
    model.profile.label_mass = false;
    let without = gpu(&model).run(&tree).expect("runs");
    let (Reading::Grades { logits: a, log_sum_exp: whole }, Reading::Grades { logits: b, log_sum_exp: none }) =
        (&with[0], &without[0])
    else {
        panic!("not scores: {with:?}, {without:?}")
    };
    assert_eq!((a, whole.is_some(), *none), (b, true, None));
    assert!(matches!(with[1], Reading::Next(_)) && with[1] == without[1]);
}
