//! One prefill of the CPU backend, against the machine's own multiply-add peak
//! and against the plain way (each pair by itself, nothing shared), in one run.
//!
//! `cargo bench --bench forward` times the bundled model; `VERDICT_BENCH_MODEL=DIR`
//! another checkpoint. Work A is one pair of 181 tokens; work B is one query with
//! 20 documents, 3,560 tokens of which 2,192 are distinct.

use std::{hint::black_box, path::Path};

#[path = "common/clock.rs"]
mod clock;

use verdict::{
    backend::{
        Backend, Reading,
        cpu::{CpuBackend, isa::Isa, peak},
    },
    engine::tree::{Read, Sequence, TokenTree},
    model::{Model, config::ModelConfig},
};

const PREFIX: usize = 72;
const DOCUMENT: usize = 106;

fn main() {
    let model = match std::env::var_os("VERDICT_BENCH_MODEL") {
        Some(dir) => Model::load(Path::new(&dir)),
        None => Model::bundled(),
    };
    let model = model.unwrap_or_else(|error| panic!("{error}"));
    let start = std::time::Instant::now();
    let mut backend = CpuBackend::open(&model, 0).unwrap_or_else(|error| panic!("{error}"));
    let about = backend.describe();
    println!(
        "{} on {}; weights {:.0} MB, loaded in {:.2} s",
        model.name,
        about.device,
        about.weight_bytes as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    let peak = peak::gflops(Isa::detect(), rayon::current_num_threads());
    println!("multiply-add peak {peak:.0} GFLOP/s");

    let runs = std::env::var("VERDICT_BENCH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let a = prompts(&model.config, 1, 75, DOCUMENT);
    let b = prompts(&model.config, 20, PREFIX, DOCUMENT);
    // For a profile of one kind of work: VERDICT_BENCH_WORK=B, and many runs.
    let only_b = std::env::var("VERDICT_BENCH_WORK").is_ok_and(|work| work == "B");
    if !only_b {
        report("A: 1 pair", &mut backend, &model.config, &[&a], peak, runs);
    }
    let shared = report("B: 1 x 20, shared", &mut backend, &model.config, &[&b], peak, runs);
    if only_b {
        return;
    }
    check(&mut backend, &b);
    let singles: Vec<Vec<Vec<u32>>> = b.iter().map(|prompt| vec![prompt.clone()]).collect();
    let singles: Vec<&Vec<Vec<u32>>> = singles.iter().collect();
    let plain = report("B: one pair at a time", &mut backend, &model.config, &singles, peak, runs.min(3));
    println!("sharing and packing make B {:.2} times as fast as one pair at a time", plain / shared);
    let distinct = prompts(&model.config, 1, 0, PREFIX + 20 * DOCUMENT);
    let pieces: Vec<Vec<u32>> = distinct[0].chunks(137).map(<[u32]>::to_vec).collect();
    let left = report(
        "as many distinct tokens, nothing to share",
        &mut backend,
        &model.config,
        &[&pieces],
        peak,
        runs,
    );
    println!("B takes {:.3} times the time of the tokens left after sharing", shared / left);
}

/// `count` prompts with `prefix` common tokens and `document` own ones each.
fn prompts(config: &ModelConfig, count: usize, prefix: usize, document: usize) -> Vec<Vec<u32>> {
    let mut state = 1u64;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % (config.vocab_size as u64 / 2)) as u32 + 100
    };
    let stem: Vec<u32> = (0..prefix).map(|_| token()).collect();
    (0..count).map(|_| stem.iter().copied().chain((0..document).map(|_| token())).collect()).collect()
}

fn tree(prompts: &[Vec<u32>]) -> TokenTree {
    let sequence =
        |tokens| Sequence { past: &[], key: (0, 0), position: 0, tokens, cut: 0, read: Read::Grades };
    TokenTree::build(&prompts.iter().map(|tokens| sequence(tokens)).collect::<Vec<_>>())
}

/// Times the batches in turn; returns the wall seconds of all of them together.
fn report(
    name: &str,
    backend: &mut CpuBackend,
    config: &ModelConfig,
    batches: &[&Vec<Vec<u32>>],
    peak: f64,
    runs: usize,
) -> f64 {
    let trees: Vec<TokenTree> = batches.iter().map(|prompts| tree(prompts)).collect();
    let time = clock::median(runs, || {
        for tree in &trees {
            black_box(backend.run(tree).unwrap_or_else(|error| panic!("{error}")));
        }
    });
    let tokens: usize = trees.iter().map(|tree| tree.tokens.len()).sum();
    let gflop = trees.iter().map(|tree| flop(config, tree)).sum::<f64>() / 1e9;
    let pairs: usize = batches.iter().map(|prompts| prompts.len()).sum();
    println!(
        "{name}: {tokens} tokens, {gflop:.1} GFLOP, {:.4} s, {:.2} pairs/s, {:.1} GFLOP/s = {:.1}% of peak ({:.4} CPU s, {:.1}% of its peak)",
        time.wall,
        pairs as f64 / time.wall,
        gflop / time.wall,
        100.0 * gflop / time.wall / peak,
        time.cpu,
        100.0 * gflop / time.cpu / (peak / rayon::current_num_threads() as f64),
    );
    time.wall
}

/// The arithmetic of one pass, last layer and head for the answers alone.
fn flop(c: &ModelConfig, tree: &TokenTree) -> f64 {
    let (rows, answers) = (tree.tokens.len() as f64, tree.answers.len() as f64);
    let (q, kv) = (c.heads * c.head_dim, 2 * c.kv_heads * c.head_dim);
    let per_query = (c.hidden_size * q * 2 + 3 * c.hidden_size * c.intermediate_size) as f64;
    let per_key = (c.hidden_size * kv) as f64;
    let seen = |row: usize| (tree.positions[row] as usize + 1) as f64;
    let all: f64 = (0..tree.tokens.len()).map(seen).sum();
    let last: f64 = tree.answers.iter().map(|answer| seen(answer.row)).sum();
    let layers = (c.layers - 1) as f64;
    2.0 * (layers * (rows * (per_query + per_key) + 2.0 * q as f64 * all)
        + rows * per_key
        + answers * per_query
        + 2.0 * q as f64 * last
        + answers * (c.vocab_size * c.hidden_size) as f64)
}

/// Shared and alone must agree bit for bit before their times are compared.
fn check(backend: &mut CpuBackend, prompts: &[Vec<u32>]) {
    let together = tree(prompts);
    let readings = backend.run(&together).unwrap_or_else(|error| panic!("{error}"));
    let alone = backend.run(&tree(&prompts[..1])).unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(alone[0], Reading::Grades { .. }));
    assert_eq!(readings[together.answer_of[0]], alone[0], "a shared batch changes a score");
}
