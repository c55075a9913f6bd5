//! Tests of the backend on whatever GPU the process finds: a mock, or a real one.

pub(super) use std::sync::Arc;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use proptest::{prelude::*, test_runner::TestRunner};
pub(super) use verdict::{
    backend::{Backend, Device, Options, Reading, STALL, open},
    engine::{
        Engine, EngineConfig,
        job::{ScoreJob, Scored, Ticket},
        kv::{KvPool, KvRef},
        tree::{Read, Sequence, TokenTree},
    },
    metrics::Metrics,
    model::Model,
    prompt::Prompt,
};

use crate::prompts::prompts;

/// Largest difference of a grade's probability from float32.
const TOLERANCE: f64 = 0.01;
/// And of any token's, of the whole vocabulary.
const OVER_THE_VOCABULARY: f64 = 0.015;
pub(super) const ON_A_GPU: &str = "needs a GPU, or the mock that tests/cuda.rs builds";

#[derive(serde::Deserialize)]
struct Golden {
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

fn directory(name: &str) -> PathBuf {
    // On another machine the checkpoints lie beside the program.
    let beside = PathBuf::from("tests/golden").join(name);
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if built.join("golden.json").exists() || built.join("config.json").exists() { built } else { beside }
}

/// All but one, whose heads of 10 have no kernel.
fn golden() -> BTreeMap<String, Vec<Golden>> {
    let text = std::fs::read_to_string(directory("golden.json")).expect("golden.json");
    let mut golden: BTreeMap<_, _> = serde_json::from_str(&text).expect("golden.json is whole");
    golden.remove("uneven").expect("is there");
    golden
}

pub(super) fn model(name: &str) -> Model {
    Model::load(&directory(name)).expect("the golden checkpoint loads")
}

pub(super) fn engine_config() -> EngineConfig {
    EngineConfig {
        // `prompts` makes at most 798: three stems of 89, nine tails of 59.
        batch_tokens: 1024,
        batch_sequences: 64,
        prefix_cache_bytes: 1 << 20,
        explain_kv_bytes: 1 << 20,
        ..EngineConfig::default()
    }
}

pub(super) fn on(device: Device, model: &Model) -> Box<dyn Backend> {
    batching(device, model, engine_config())
}

fn batching(device: Device, model: &Model, engine: EngineConfig) -> Box<dyn Backend> {
    let options = Options { device, threads: 1, engine, ..Options::default() };
    open(model, &options).unwrap_or_else(|error| panic!("{ON_A_GPU}: {error}"))
}

pub(super) fn gpu(model: &Model) -> Box<dyn Backend> {
    let mut backend = on(Device::Cuda, model);
    backend.reserve_kv(0).expect("reserves");
    backend
}

/// Whether a test is to open its backends, and no more: what that takes is told from what passes take.
fn only_opens() -> bool {
    std::env::var_os("VERDICT_TEST_ONLY_OPENS").is_some()
}

pub(super) fn sequence(tokens: &[u32], cut: usize) -> Sequence<'_> {
    Sequence { past: &[], key: (0, 0), position: 0, tokens, cut, read: Read::Grades }
}

fn probabilities(logits: impl IntoIterator<Item = f32>) -> Vec<f64> {
    let weights: Vec<f64> = logits.into_iter().map(|logit| f64::from(logit).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn largest_difference(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The bits of every number of a score.
pub(super) fn bits(reading: &Reading) -> Vec<u32> {
    match reading {
        Reading::Grades { logits, log_sum_exp } => scored_bits(logits, *log_sum_exp),
        other => panic!("not a score: {other:?}"),
    }
}

pub(super) fn scored_bits(logits: &[f32], log_sum_exp: Option<f32>) -> Vec<u32> {
    logits.iter().copied().chain(log_sum_exp).map(f32::to_bits).collect()
}

/// Three grades, and then every token as one: the whole distribution.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn probabilities_are_those_of_transformers() {
    for (name, prompts) in golden() {
        let (mut largest, mut of_grades) = (0.0f64, 0.0f64);
        let model = model(&name);
        let three: Vec<usize> = model.profile.grades.iter().map(|grade| grade.token as usize).collect();
        let model = model.reading_every_token();
        let mut backend = gpu(&model);
        let sequences: Vec<_> = prompts.iter().map(|prompt| sequence(&prompt.tokens, 0)).collect();
        let tree = TokenTree::build(&sequences);
        let readings = backend.run(&tree).expect("runs");
        for (prompt, answer) in prompts.iter().zip(&tree.answer_of) {
            let Reading::Grades { logits, log_sum_exp } = &readings[*answer] else {
                panic!("{name}: no score")
            };
            let (ours, theirs) = (probabilities(logits.clone()), probabilities(prompt.logits.clone()));
            largest = largest.max(largest_difference(&ours, &theirs));
            let few = |logits: &[f32]| probabilities(three.iter().map(|&token| logits[token]));
            of_grades = of_grades.max(largest_difference(&few(logits), &few(&prompt.logits)));
            assert!(of_grades < TOLERANCE, "{name}, {} tokens: {of_grades}", prompt.tokens.len());
            assert!(largest < OVER_THE_VOCABULARY, "{name}, {} tokens: {largest}", prompt.tokens.len());
            // The same pass gives every token's logit and the sum over them.
            let sum = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            let difference = (f64::from(log_sum_exp.expect("is read")) - sum).abs();
            assert!(difference < 1e-4, "{name}: {difference}");
            next_is_the_most_probable(&mut *backend, &prompt.tokens, logits);
        }
        println!("{name}: off by {largest:.5} over the vocabulary, by {of_grades:.5} over the grades");
    }
}

fn next_is_the_most_probable(backend: &mut dyn Backend, tokens: &[u32], logits: &[f32]) {
    let next = Sequence { read: Read::Next, ..sequence(tokens, 0) };
    let reading = backend.run(&TokenTree::build(&[next])).expect("runs").remove(0);
    let Reading::Next(token) = reading else { panic!("not a token: {reading:?}") };
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert!(logits[token as usize] > most - 1e-4, "token {token}: {} of {most}", logits[token as usize]);
}

/// Random batches: `VERDICT_TEST_BATCHES` of them for each checkpoint.
pub(super) fn cases(otherwise: u32) -> TestRunner {
    let cases = std::env::var("VERDICT_TEST_BATCHES").ok().and_then(|text| text.parse().ok());
    let config = ProptestConfig {
        cases: cases.unwrap_or(otherwise),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    TestRunner::new(config)
}

pub(super) fn alone(backend: &mut dyn Backend, tokens: &[u32]) -> Vec<u32> {
    bits(&backend.run(&TokenTree::build(&[sequence(tokens, 0)])).expect("runs")[0])
}

/// Alone, among others, in any order, cut anywhere, launched kernel by kernel and as a graph.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn the_same_pair_has_the_same_bits() {
    for name in ["qwen3", "qwen2", "llama3", "yarn"] {
        let model = model(name);
        let backend = std::cell::RefCell::new(gpu(&model));
        let outcome = cases(3).run(&prompts(), |prompts| {
            let mut backend = backend.borrow_mut();
            let expected: Vec<_> = prompts.iter().map(|(tokens, _)| alone(&mut **backend, tokens)).collect();
            let mut sequences: Vec<_> = prompts.iter().map(|(tokens, cut)| sequence(tokens, *cut)).collect();
            // The first time is launched, the second recorded, the third replayed.
            for round in 0..3 {
                let tree = TokenTree::build(&sequences);
                let readings = backend.run(&tree).expect("runs");
                for (i, answer) in tree.answer_of.iter().enumerate() {
                    let original = if round % 2 == 1 { prompts.len() - 1 - i } else { i };
                    prop_assert_eq!(&bits(&readings[*answer]), &expected[original]);
                }
                sequences.reverse();
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Twelve sequences that share a stem, 544 tokens at once, and each by itself.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn among_many_rows_as_alone() {
    let only = std::env::var("VERDICT_TEST_MODEL").ok();
    for name in ["qwen3", "yarn"].into_iter().filter(|name| only.as_deref().is_none_or(|only| only == *name))
    {
        let model = model(name);
        // No more than it needs: the start tries all of it.
        let config = EngineConfig { batch_tokens: 512, ..engine_config() };
        let mut backend = batching(Device::Cuda, &model, config);
        if only_opens() {
            continue;
        }
        // Alone they are of three classes of rows.
        let tails = [10, 40, 150];
        let prompts: Vec<Vec<u32>> = (0..6u32)
            .map(|i| {
                (0..40)
                    .map(|t| 20 + t * 7 % 200)
                    .chain((0..tails[i as usize % 3]).map(|t| 20 + (t * 11 + i * 17) % 200))
                    .collect()
            })
            .collect();
        let expected: Vec<_> = prompts.iter().map(|tokens| alone(&mut *backend, tokens)).collect();
        let sequences: Vec<_> = prompts.iter().map(|tokens| sequence(tokens, 40)).collect();
        let tree = TokenTree::build(&sequences);
        assert_eq!(tree.tokens.len(), 40 + 2 * (10 + 40 + 150));
        // Launched, recorded, replayed.
        for _ in 0..3 {
            let readings = backend.run(&tree).expect("runs");
            for (answer, expected) in tree.answer_of.iter().zip(&expected) {
                assert_eq!(&bits(&readings[*answer]), expected, "{name}");
            }
        }
    }
}

/// A checkpoint whose gates and ups are 192 outputs, as tiles of many rows may be, and no others are; without what would be
/// added to them.
fn with_gates_of_192() -> Model {
    let (from, to) = (directory("llama-bias"), tempfile::tempdir().expect("a directory"));
    for file in std::fs::read_dir(&from).expect("a checkpoint").map(|file| file.expect("a file")) {
        std::fs::copy(file.path(), to.path().join(file.file_name())).expect("a copy");
    }
    let config = to.path().join("config.json");
    let text = std::fs::read_to_string(&config).expect("config.json");
    assert!(text.contains(r#""mlp_bias": true"#));
    std::fs::write(&config, text.replace(r#""mlp_bias": true"#, r#""mlp_bias": false"#)).expect("written");
    Model::load(to.path()).expect("the checkpoint loads without them")
}

#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn gates_by_tiles_of_192_are_as_alone() {
    let model = with_gates_of_192();
    let mut backend = gpu(&model);
    if only_opens() {
        return;
    }
    let prompts: Vec<Vec<u32>> =
        (0..4u32).map(|i| (0..150).map(|t| 20 + (t * 11 + i * 17) % 200).collect()).collect();
    let expected: Vec<_> = prompts.iter().map(|tokens| alone(&mut *backend, tokens)).collect();
    let sequences: Vec<_> = prompts.iter().map(|tokens| sequence(tokens, 0)).collect();
    let tree = TokenTree::build(&sequences);
    // More than are few, and of a class in which those tiles have their turn where all have one.
    assert_eq!(tree.tokens.len(), 600);
    let readings = backend.run(&tree).expect("runs");
    for (answer, expected) in tree.answer_of.iter().zip(&expected) {
        assert_eq!(&bits(&readings[*answer]), expected);
    }
}

pub(super) fn job(
    tokens: &[u32],
    prefix: usize,
) -> (ScoreJob, tokio::sync::oneshot::Receiver<verdict::error::Result<Scored>>) {
    let (ticket, answer) = Ticket::new();
    let prompt = Prompt { tokens: tokens.to_vec(), document: prefix..tokens.len(), truncated: false };
    let keep_kv = prefix.is_multiple_of(2);
    let job = ScoreJob {
        request: 0,
        prompt: Arc::new(prompt),
        keep_kv,
        deadline: None,
        enqueued: Instant::now(),
        permit: None,
        ticket,
    };
    (job, answer)
}

/// Through the engine with a small prefix cache; then a sequence decoded from kept blocks.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn caches_and_reasons_change_nothing() {
    for name in ["qwen3", "yarn"] {
        caches_change_nothing_of(name);
    }
}

fn caches_change_nothing_of(name: &str) {
    let model = model(name);
    let mut backend = gpu(&model);
    let block = backend.describe().kv_block_bytes;
    let mut runner = cases(3);
    let backend_cell = std::cell::RefCell::new(&mut backend);
    let strategy = (prompts(), 1usize..200, 0usize..40);
    let outcome = runner.run(&strategy, |(prompts, batch_tokens, blocks)| {
        let mut backend = backend_cell.borrow_mut();
        let expected: Vec<_> = prompts.iter().map(|(tokens, _)| alone(&mut ***backend, tokens)).collect();
        let config = EngineConfig {
            batch_tokens,
            prefix_cache_bytes: blocks * block,
            explain_kv_bytes: 20 * block,
            ..engine_config()
        };
        let metrics = Arc::new(Metrics::default());
        let (engine, guard) = Engine::start(on(Device::Cuda, &model), config, metrics).expect("starts");
        let mut cached = 0;
        for _ in 0..2 {
            let (jobs, answers): (Vec<_>, Vec<_>) =
                prompts.iter().map(|(tokens, cut)| job(tokens, *cut)).unzip();
            engine.score_all(jobs);
            for (answer, expected) in answers.into_iter().zip(&expected) {
                let scored = answer.blocking_recv().expect("answered").expect("scored");
                cached += scored.tokens.cached;
                prop_assert_eq!(&scored_bits(&scored.grade_logits, scored.log_sum_exp), expected);
            }
        }
        guard.stop().expect("the engine stops");
        println!("{cached} tokens from the cache");
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    decode_from_blocks(&mut *backend);
}

/// A token at a time from blocks gives what the whole sequence gives.
fn decode_from_blocks(backend: &mut dyn Backend) {
    backend.reserve_kv(8).expect("reserves");
    let span = KvPool::new(0, 8).allocate(100).expect("blocks");
    let tokens: Vec<u32> = (0..70).map(|i| 20 + i * 13 % 200).collect();
    let whole = alone(backend, &tokens);
    for at in 0..tokens.len() {
        let past = [KvRef { span: span.clone(), start: 0, len: at }];
        let past = if at == 0 { &[][..] } else { &past[..] };
        let step = Sequence { past, position: at, ..sequence(&tokens[at..=at], 0) };
        let mut tree = TokenTree::build(&[step]);
        tree.segments[0].keep = Some(KvRef { span: span.clone(), start: at, len: 1 });
        let reading = backend.run(&tree).expect("runs").remove(0);
        if at + 1 == tokens.len() {
            assert_eq!(bits(&reading), whole, "decoded by single tokens");
        }
    }
}

/// A batch over the prepared size, and a token that is none, are errors; the next batch is well.
#[test]
#[ignore = "needs a GPU, or the mock that tests/cuda.rs builds"]
fn a_refused_batch_leaves_the_next_one_well() {
    let model = model("qwen3");
    let mut backend = gpu(&model);
    let good = [20, 21, 22];
    let expected = alone(&mut *backend, &good);
    let token = backend.run(&TokenTree::build(&[sequence(&[9999], 0)])).expect_err("no such token");
    assert_eq!(token.message(), "token 9999 is not in the vocabulary");
    let many: Vec<Vec<u32>> = (0..200).map(|i| vec![20 + i % 200, 30 + i / 200, i % 7]).collect();
    let many: Vec<_> = many.iter().map(|tokens| sequence(tokens, 0)).collect();
    let over = backend.run(&TokenTree::build(&many)).expect_err("more answers than prepared");
    assert!(over.message().contains("200 answers is over the"), "{over}");
    assert_eq!(alone(&mut *backend, &good), expected);
}

/// For the tests of start-up: what each device is, or why not.
#[test]
#[ignore = "prints what it finds"]
fn says_what_it_opens() {
    let model = model("qwen3");
    for (name, device) in [("cuda", Device::Cuda), ("auto", Device::Auto)] {
        let told = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let explain_kv_bytes = told("VERDICT_TEST_KV_MIB").unwrap_or(1) << 20;
        let stall =
            told("VERDICT_TEST_STALL_SECONDS").map_or(STALL, |seconds| Duration::from_secs(seconds as u64));
        let engine = EngineConfig { explain_kv_bytes, ..engine_config() };
        let options = Options { device, threads: 1, engine, stall };
        match open(&model, &options) {
            Ok(backend) => println!("\n{name}: {}", backend.describe().device),
            Err(error) => println!("\n{name}: refused: {error}"),
        }
    }
}
