//! The same pair gets the same score, bit for bit: whatever shares its batch, in
//! any order, with prefixes cached or not, split anywhere in the tree.

use std::{path::Path, sync::Arc, time::Instant};

use proptest::prelude::*;
use verdict::{
    admission::Capacity,
    backend::{Backend, Options, Reading, cpu::CpuBackend, open},
    engine::{
        Engine, EngineConfig,
        job::{ScoreJob, Scored, Ticket},
        tree::{Read, Sequence, TokenTree},
    },
    metrics::Metrics,
    model::Model,
    prompt::{Prompt, Template, Truncation},
    request::{Document, Items, Limits, ScoreOptions, ScoreRequest},
    service::Service,
};

#[path = "common/prompts.rs"]
mod prompts;
use prompts::prompts;

const CHECKPOINTS: [&str; 4] = ["qwen3", "qwen2", "llama3", "uneven"];

fn model(name: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    Model::load(&dir).expect("the golden checkpoint loads")
}

/// The bits of every number that was read.
fn bits(logits: &[f32], log_sum_exp: Option<f32>) -> Vec<u32> {
    logits.iter().copied().chain(log_sum_exp).map(f32::to_bits).collect()
}

fn reading_bits(reading: &Reading) -> Vec<u32> {
    match reading {
        Reading::Grades { logits, log_sum_exp } => bits(logits, *log_sum_exp),
        other => panic!("not a score: {other:?}"),
    }
}

/// The pair alone, as one segment.
fn alone(backend: &mut CpuBackend, tokens: &[u32]) -> Vec<u32> {
    let sequence = Sequence { past: &[], key: (0, 0), position: 0, tokens, cut: 0, read: Read::Grades };
    reading_bits(&backend.run(&TokenTree::build(&[sequence])).expect("runs")[0])
}

fn job(
    tokens: &[u32],
    prefix: usize,
) -> (ScoreJob, tokio::sync::oneshot::Receiver<verdict::error::Result<Scored>>) {
    let (ticket, answer) = Ticket::new();
    let prompt = Prompt { tokens: tokens.to_vec(), document: prefix..tokens.len(), truncated: false };
    let job = ScoreJob {
        prompt: Arc::new(prompt),
        request: 0,
        keep_kv: prefix.is_multiple_of(2),
        deadline: None,
        enqueued: Instant::now(),
        permit: None,
        ticket,
    };
    (job, answer)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batch_mates_order_and_cuts_change_nothing(prompts in prompts(), which in 0usize..CHECKPOINTS.len()) {
        let model = model(CHECKPOINTS[which]);
        let mut backend = CpuBackend::open(&model, 2).expect("opens");
        let expected: Vec<Vec<u32>> = prompts.iter().map(|(tokens, _)| alone(&mut backend, tokens)).collect();
        for reverse in [false, true] {
            let mut sequences: Vec<Sequence<'_>> = prompts
                .iter()
                .map(|(tokens, cut)| Sequence { past: &[], key: (0, 0), position: 0, tokens, cut: *cut, read: Read::Grades })
                .collect();
            if reverse {
                sequences.reverse();
            }
            let tree = TokenTree::build(&sequences);
            let readings = backend.run(&tree).expect("runs");
            for (i, _) in sequences.iter().enumerate() {
                let original = if reverse { prompts.len() - 1 - i } else { i };
                prop_assert_eq!(&reading_bits(&readings[tree.answer_of[i]]), &expected[original]);
            }
        }
    }

    #[test]
    fn concurrency_and_cache_state_change_nothing(
        prompts in prompts(), which in 0usize..CHECKPOINTS.len(), batch_tokens in 1usize..300, cache_kib in 0usize..200, rounds in 1usize..4
    ) {
        let model = model(CHECKPOINTS[which]);
        let mut backend = CpuBackend::open(&model, 1).expect("opens");
        let expected: Vec<Vec<u32>> = prompts.iter().map(|(tokens, _)| alone(&mut backend, tokens)).collect();
        let config = EngineConfig {
            batch_tokens,
            prefix_cache_bytes: cache_kib << 10,
            explain_kv_bytes: 64 << 10,
            ..EngineConfig::default()
        };
        let backend = open(&model, &Options { threads: 2, ..Options::default() }).expect("opens");
        let (engine, guard) = Engine::start(backend, config, Arc::new(Metrics::default())).expect("starts");
        for _ in 0..rounds {
            let (jobs, answers): (Vec<_>, Vec<_>) = prompts.iter().map(|(tokens, cut)| job(tokens, *cut)).unzip();
            jobs.into_iter().for_each(|job| engine.score_all(vec![job]));
            for (i, answer) in answers.into_iter().enumerate() {
                let scored = answer.blocking_recv().expect("answered").expect("scored");
                prop_assert_eq!(&bits(&scored.grade_logits, scored.log_sum_exp), &expected[i]);
                let counts = scored.tokens;
                prop_assert_eq!(counts.computed + counts.shared + counts.cached, prompts[i].0.len());
            }
        }
        guard.stop().expect("the engine stops");
    }
}

/// A document without text, wherever the template puts it: alone, repeated and among others, by what it is made of,
/// with its prompt in the cache or not.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_document_keeps_its_bits() {
    for (name, template) in [
        ("qwen3", None),
        ("qwen2", Some("{query}<|im_end|>D: {document}.\n<|answer|>")),
        ("qwen3", Some("Q: {query}\nD: {document}\n{query}?<|answer|>")),
        ("llama3", Some("{query}<|im_end|>{document}")),
    ] {
        let mut model = model(name);
        if let Some(template) = template {
            model.profile.template = Template::parse(template, &model.tokenizer).expect("parses");
        }
        let profile = &model.profile;
        let filled = profile.template.for_query(&model.tokenizer, &profile.instruction, "warm lamp", 256);
        let prompt = filled.and_then(|filled| filled.render("", Truncation::Error)).expect("renders");
        let mut backend = CpuBackend::open(&model, 1).expect("opens");
        let expected = alone(&mut backend, &prompt.tokens);
        let backend = open(&model, &Options { threads: 2, ..Options::default() }).expect("opens");
        let metrics = Arc::new(Metrics::default());
        let engine = Engine::start(backend, EngineConfig::default(), Arc::clone(&metrics));
        let (engine, guard) = engine.expect("starts");
        let capacity = Capacity { pairs: 1 << 20, tokens: 1 << 20, explanations: 1 };
        let service = Service::new(Arc::new(model), engine, Limits::default(), capacity, metrics);
        for texts in
            [&["a lamp", "", "a garden hose", " \n", "", "\t"][..], &[""], &[" ", "a lamp"], &["", ""]]
        {
            let documents = texts.iter().copied().map(Document::text).collect();
            let options = ScoreOptions { raw: true, blank: true, ..ScoreOptions::default() };
            let items = Items::Documents { query: "warm lamp".into(), documents };
            let response = service.score(ScoreRequest::new(items, options).expect("valid")).await;
            for result in response.expect("scored").results {
                let score = result.score.expect("scored");
                let logits: Vec<u32> =
                    score.logits.expect("raw").iter().map(|logit| logit.to_bits()).collect();
                let empty = texts[result.index].trim().is_empty();
                assert_eq!(logits == expected[..logits.len()], empty, "{name} {template:?} {texts:?}");
            }
        }
        drop(service);
        guard.stop().expect("the engine stops");
    }
}

/// Long enough that keys, and the bundled model's own widths, cross the kernels' depth blocks.
#[test]
fn long_prompts_keep_their_bits() {
    let model = Model::bundled().expect("the bundled model loads");
    let mut backend = CpuBackend::open(&model, 2).expect("opens");
    let long: Vec<u32> = (0..700).map(|i| 300 + i * 7 % 5000).collect();
    let expected = alone(&mut backend, &long);
    for cut in [1, 15, 16, 17, 511, 512, 513, 699] {
        let mate = [&long[..cut], &[42, 43, 44]].concat();
        let of = |tokens| Sequence { past: &[], key: (0, 0), position: 0, tokens, cut, read: Read::Grades };
        let tree = TokenTree::build(&[of(&mate), of(&long)]);
        let readings = backend.run(&tree).expect("runs");
        assert_eq!(reading_bits(&readings[tree.answer_of[1]]), expected, "cut at {cut}");
    }
}

/// The log-sum-exp is read if the profile asks for it, whoever shares the batch, and changes no logit;
/// a prompt's part reads nothing.
#[test]
fn what_is_read_depends_on_the_profile_alone() {
    let tokens = [20, 21, 22];
    let of = |read| Sequence { past: &[], key: (0, 0), position: 0, tokens: &tokens, cut: 0, read };
    let mut logits = Vec::new();
    for asked in [true, false] {
        let mut model = model("qwen3");
        model.profile.label_mass = asked;
        let mut backend = CpuBackend::open(&model, 1).expect("opens");
        for mates in [&[][..], &[Read::Next][..], &[Read::Nothing, Read::Next][..]] {
            let mut sequences = vec![of(Read::Grades)];
            sequences.extend(mates.iter().map(|read| of(*read)));
            let tree = TokenTree::build(&sequences);
            let readings = backend.run(&tree).expect("runs");
            let Reading::Grades { logits: read, log_sum_exp } = &readings[tree.answer_of[0]] else {
                panic!("not a score: {readings:?}")
            };
            assert_eq!(log_sum_exp.is_some(), asked, "beside {mates:?}");
            logits.push(read.clone());
            for (mate, at) in mates.iter().zip(&tree.answer_of[1..]) {
                let same = matches!(
                    (mate, &readings[*at]),
                    (Read::Next, Reading::Next(_)) | (Read::Nothing, Reading::Nothing)
                );
                assert!(same, "{mate:?}: {:?}", readings[*at]);
            }
        }
    }
    assert!(logits.iter().all(|other| *other == logits[0]), "{logits:?}");
}
