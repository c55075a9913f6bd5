//! Every implementation of the decoders against logits of transformers in float32, on the tiny
//! checkpoints of `tests/golden` (made by its `make.py`).

use std::{collections::BTreeMap, path::PathBuf};

use verdict::{
    backend::{Options, Reading, open, reference::Reference},
    engine::tree::{Read, Sequence, TokenTree},
    error::Code,
    model::{Model, config::ModelConfig},
};

/// Largest difference of a logit that is still agreement; their deviation is about 2.
const TOLERANCE: f32 = 1e-4;

#[derive(serde::Deserialize)]
struct Prompt {
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden() -> BTreeMap<String, Vec<Prompt>> {
    let text = std::fs::read_to_string(directory("golden.json")).expect("golden.json");
    serde_json::from_str(&text).expect("golden.json is whole")
}

fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_reference_agrees_with_transformers() {
    let mut compared = 0;
    for (name, prompts) in golden() {
        let mut reference = match Reference::open(&directory(&name)) {
            Ok(reference) => reference,
            Err(error) => {
                // What candle-transformers does not have is refused, not computed wrongly.
                assert_eq!(error.code(), Code::Unimplemented, "{name}: {error}");
                assert!(["llama-bias", "yarn"].contains(&name.as_str()), "{name}: {error}");
                continue;
            }
        };
        for Prompt { tokens, logits } in prompts {
            let ours = reference.answer_logits(&tokens).expect("runs");
            let difference = largest_difference(&ours, &logits);
            assert!(difference < TOLERANCE, "{name}, {} tokens: {difference}", tokens.len());
            compared += 1;
        }
    }
    assert_eq!(compared, 5 * 6);
}

fn sequence(tokens: &[u32], cut: usize) -> Sequence<'_> {
    Sequence { past: &[], key: (0, 0), position: 0, tokens, cut, read: Read::Grades }
}

fn check(name: &str, reading: &Reading, prompt: &Prompt) {
    let Reading::Grades { logits, log_sum_exp } = reading else { panic!("{name}: {reading:?}") };
    let difference = largest_difference(logits, &prompt.logits);
    assert!(difference < TOLERANCE, "{name}, {} tokens: {difference}", prompt.tokens.len());
    if let Some(ours) = log_sum_exp {
        let theirs = prompt.logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((f64::from(*ours) - theirs).abs() < 1e-4, "{name}: {ours} against {theirs}");
    }
}

#[test]
fn the_cpu_engine_agrees_with_transformers() {
    for (name, prompts) in golden() {
        let model = Model::load(&directory(&name)).expect("loads").reading_every_token();
        let mut backend = open(&model, &Options { threads: 2, ..Options::default() }).expect("opens");
        backend.reserve_kv(0).expect("reserves");
        for prompt in &prompts {
            let cut = prompt.tokens.len() / 2;
            for cut in [0, cut] {
                let tree = TokenTree::build(&[sequence(&prompt.tokens, cut)]);
                let readings = backend.run(&tree).expect("runs");
                check(&name, &readings[0], prompt);
            }
        }
        let sequences: Vec<_> = prompts.iter().map(|prompt| sequence(&prompt.tokens, 0)).collect();
        let tree = TokenTree::build(&sequences);
        let readings = backend.run(&tree).expect("runs");
        for (prompt, answer) in prompts.iter().zip(&tree.answer_of) {
            check(&name, &readings[*answer], prompt);
        }
    }
}

#[test]
fn every_golden_checkpoint_loads_with_its_profile() {
    for name in golden().keys() {
        let model = Model::load(&directory(name)).expect("loads");
        assert_eq!(model.name, format!("tiny-{name}"));
        assert_eq!(model.profile.grades.len(), 3);
    }
}

/// Inverse frequencies as transformers computes them, printed by it for these configs.
#[test]
fn scaled_rotary_frequencies_are_those_of_transformers() {
    let read = |name: &str| {
        let path = directory(name).join("config.json");
        ModelConfig::from_json(&std::fs::read(path).expect("read"), name).expect("parses")
    };
    let text = std::fs::read_to_string(directory("rope.json")).expect("rope.json");
    let expected: BTreeMap<String, (Vec<f32>, f32)> =
        serde_json::from_str(&text).expect("rope.json is whole");
    for (name, (frequencies, magnitude)) in expected {
        let config = read(&name);
        assert_eq!(config.inverse_frequencies.len(), frequencies.len(), "{name}");
        for (ours, theirs) in config.inverse_frequencies.iter().zip(&frequencies) {
            assert!((ours - theirs).abs() <= 3e-7 * theirs, "{name}: {ours} against {theirs}");
        }
        assert!((config.rope_magnitude - magnitude).abs() < 1e-6, "{name}");
    }
}
