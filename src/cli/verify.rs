//! `verdict verify`: this program's engine against candle-transformers' implementation.

use std::path::{Path, PathBuf};

use crate::{
    backend::{self, Backend, Reading, reference::Reference},
    engine::tree::{Read, Sequence, TokenTree},
    error::{Error, Result},
    grade::GradeDistribution,
    model::{Model, bundled},
    profile::Profile,
    prompt::Truncation,
};

use super::{Exit, Failure, load_model, local::ModelArgs, output::Output};

/// Arguments of `verdict verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompts to compare: the profile's probes, then generated texts of growing length
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    prompts: usize,
    /// Largest difference of a logit that still passes
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    tolerance: f32,
    /// Most tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    max_tokens: usize,
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("is 0; at least 1 is needed".to_owned()),
        Ok(number) => Ok(number),
        Err(cause) => Err(format!("{cause}; expected a number from 1")),
    }
}

/// How one prompt's readings differ.
struct Row {
    tokens: usize,
    /// Over the whole vocabulary.
    logit: f32,
    /// Over the grades.
    probability: f64,
    score: f64,
}

/// Runs the same prompts through both and prints a table.
///
/// # Errors
///
/// [`Exit::Model`] if the model is refused by either, [`Exit::Runtime`] if a logit differs by more
/// than the tolerance or a run fails.
pub fn run(args: VerifyArgs) -> Result<(), Failure> {
    let refused = |error| Failure::new(Exit::Model, error);
    let model = load_model(args.model.model.as_deref())?;
    let prompts = prompts(&model, &args)?;
    let mut reference = open_reference(args.model.model.as_deref(), &model).map_err(refused)?;
    let profile = model.profile.clone();
    let model = model.reading_every_token();
    let mut backend = backend::open(&model, &args.model.options()).map_err(refused)?;
    let mut output = Output::standard();
    let device = backend.describe().device;
    output.line(format_args!("{} on {device}, against candle-transformers in f32", model.name))?;
    let ours = logits(backend.as_mut(), &prompts)?;
    output.line(format_args!(
        "{:>6}  {:>16}  {:>22}  {:>16}",
        "tokens", "max |Δ logit|", "max |Δ p(grade)|", "|Δ score|"
    ))?;
    let mut worst = 0.0_f32;
    for (tokens, ours) in prompts.iter().zip(&ours) {
        let theirs = reference.answer_logits(tokens)?;
        let row = compare(tokens.len(), ours, &theirs, &profile)?;
        let Row { tokens, logit, probability, score } = row;
        output.line(format_args!("{tokens:>6}  {logit:>16.3e}  {probability:>22.3e}  {score:>16.3e}"))?;
        worst = worst.max(logit);
    }
    let (tolerance, count) = (args.tolerance, prompts.len());
    if worst <= tolerance {
        output.line(format_args!(
            "pass: {count} prompts, largest difference of a logit {worst:.3e}, tolerance {tolerance:e}"
        ))?;
        return Ok(output.flush()?);
    }
    let message = format!("a logit differs by {worst:.3e}, over the tolerance of {tolerance:e}");
    Err(Failure::from(anyhow::anyhow!(message)))
}

fn open_reference(dir: Option<&Path>, model: &Model) -> Result<Reference> {
    match dir {
        Some(dir) => Reference::open(dir),
        None => {
            let origin = PathBuf::from(bundled::ORIGIN).join("config.json").display().to_string();
            Reference::from_parts(bundled::CONFIG, &origin, &model.checkpoint)
        }
    }
}

/// The profile's probes, then generated texts, rendered.
fn prompts(model: &Model, args: &VerifyArgs) -> Result<Vec<Vec<u32>>> {
    let profile = &model.profile;
    let probes = profile.probes.iter().map(|probe| {
        let instruction = probe.instruction.as_ref().unwrap_or(&profile.instruction);
        (instruction.clone(), probe.query.clone(), probe.document.clone())
    });
    let generated = (0..).map(|index| {
        let mut words = Words(index + 1);
        let query = words.take(2 + index as usize % 5);
        (profile.instruction.clone(), query, words.take(1 << (index as usize % 10)))
    });
    let max_tokens = profile.max_tokens.min(args.max_tokens);
    let render = |(instruction, query, document): (String, String, String)| {
        let filled = profile.template.for_query(&model.tokenizer, &instruction, &query, max_tokens);
        let prompt = filled.and_then(|filled| filled.render(&document, Truncation::Document));
        // Whichever text it was, it is the flag that leaves no room for it.
        let prompt = prompt.map_err(|error| {
            Error::invalid(
                "max_tokens",
                format!("is {max_tokens}, too few for a prompt: {}", error.message()),
            )
        })?;
        Ok(prompt.tokens)
    };
    probes.chain(generated).take(args.prompts).map(render).collect()
}

/// Words by a linear congruential generator (Knuth's MMIX constants): the same on every run.
struct Words(u64);

impl Words {
    fn take(&mut self, count: usize) -> String {
        const WORDS: [&str; 24] = [
            "river", "how", "to", "mend", "a", "wooden", "chair", "7", "engines", "in", "the", "north",
            "café", "which", "lens", "is", "sharp?", "bread", "1999", "and", "salt,", "running", "shoes",
            "北京",
        ];
        let mut word = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            WORDS[(self.0 >> 33) as usize % WORDS.len()]
        };
        (0..count).map(|_| word()).collect::<Vec<_>>().join(" ")
    }
}

/// All prompts in one batch, as the engine would share their prefixes.
fn logits(backend: &mut dyn Backend, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
    backend.reserve_kv(0)?;
    let mut sequences = Vec::with_capacity(prompts.len());
    for tokens in prompts {
        sequences.push(Sequence { past: &[], key: (0, 0), position: 0, tokens, cut: 0, read: Read::Grades });
    }
    let tree = TokenTree::build(&sequences);
    let readings = backend.run(&tree)?;
    let read = |(index, answer): (usize, &usize)| match &readings[*answer] {
        Reading::Grades { logits, .. } => Ok(logits.clone()),
        _ => Err(Error::internal(format!(
            "prompt {} of {}: the engine gave a number that is not finite",
            index + 1,
            prompts.len()
        ))),
    };
    tree.answer_of.iter().enumerate().map(read).collect()
}

fn compare(tokens: usize, ours: &[f32], theirs: &[f32], profile: &Profile) -> Result<Row> {
    let read = |logits: &[f32]| {
        let grades: Vec<f32> = profile.grades.iter().map(|grade| logits[grade.token as usize]).collect();
        GradeDistribution::read(&grades, None, profile)
    };
    let (left, right) = (read(ours)?, read(theirs)?);
    let probabilities = left.probabilities.iter().zip(&right.probabilities);
    Ok(Row {
        tokens,
        logit: ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max),
        probability: probabilities.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max),
        score: (left.score.get() - right.score.get()).abs(),
    })
}
