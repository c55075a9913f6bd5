//! `verdict calibrate`: the temperature under which a model's probabilities are honest, and the
//! rising map under which its scores are.

mod isotonic;
mod table;

use crate::{
    error::{Error, Result},
    grade::GradeDistribution,
    profile::{Calibration, Profile, ScoreRead},
};

use super::{
    Exit, Failure,
    eval::{self, JudgmentArgs, Scored},
    load_model,
    local::{Local, ModelArgs},
    output::Output,
};

/// Arguments of `verdict calibrate`.
#[derive(Clone, Debug, clap::Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    judgments: JudgmentArgs,
    /// What to fit: the temperature of the logits, or also a rising map of the score
    #[arg(long, value_name = "HOW", default_value = "isotonic")]
    method: Method,
    /// Write the table into the model's relevance.toml; its probes must still hold
    #[arg(long, requires = "model")]
    write: bool,
}

/// What is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    /// One number that divides the logits.
    Temperature,
    /// That, and knots of a map of the score.
    Isotonic,
}

/// Parts of the queries: each is measured with what was fitted on the others.
const PARTS: usize = 5;

/// Fewest judged pairs that can be scored: of fewer, the fit is of chance, or of nothing.
const FEWEST: usize = 20;

/// A judged pair as the likelihood sees it.
struct Sample {
    /// The part of the queries that it belongs to.
    part: usize,
    /// The grades' logits as they were read.
    raw: Vec<f32>,
    /// The judged relevance in \[0, 1\].
    judged: f64,
    logits: Vec<f64>,
    /// The probability that the judgment puts on each grade.
    target: Vec<f64>,
    weight: f64,
}

/// Prints the `[calibration]` table fitted to the judgments, each file weighing the same, and what
/// such a fit is worth on queries that it did not see.
///
/// The temperature minimises the negative log-likelihood; the map is isotonic.
///
/// # Errors
///
/// As `verdict eval`; [`Exit::Usage`] if too few pairs can be scored; [`Exit::Model`] if the probes
/// do not hold after writing: the file is then as it was.
pub fn run(args: CalibrateArgs) -> Result<(), Failure> {
    let model = load_model(args.model.model.as_deref())?;
    let sets = eval::load(&args.judgments, &model.profile)?;
    let judged = sets.iter().flat_map(|set| &set.queries).flat_map(|query| &query.judged);
    let pairs = judged.filter(|judged| !judged.is_blank()).count();
    if pairs < FEWEST {
        let message = format!("{pairs} pairs can be scored; at least {FEWEST} are needed");
        return Err(Failure::new(Exit::Usage, Error::invalid("--judgments", message)));
    }
    let local = Local::of(model, &args.model)?;
    let profile = local.service.profile().clone();
    let (mut samples, mut queries) = (Vec::new(), 0);
    for set in &sets {
        let scored = local.runtime.block_on(eval::score(&local.service, set, &args.judgments, true))?;
        let pairs = scored.iter().map(Vec::len).sum::<usize>();
        let weight = 1.0 / (pairs * sets.len()) as f64;
        for query in &scored {
            let of = |pair: &Scored| Sample::new(queries % PARTS, pair, &profile, weight);
            let before = samples.len();
            samples.extend(query.iter().filter_map(of));
            queries += usize::from(samples.len() > before);
        }
    }
    local.stop()?;
    let all: Vec<&Sample> = samples.iter().collect();
    let mut output = Output::standard();
    output.line(format_args!("# {} pairs. {}:", samples.len(), seen(queries)))?;
    output.line(format_args!("# {:24}  calibration error  negative log-likelihood", ""))?;
    let now = |_: &[&Sample]| Ok(profile.calibration.clone());
    output.line(told("as it is now", cross_validated(&samples, &profile, now)?))?;
    for (name, method) in [("temperature", Method::Temperature), ("temperature and map", Method::Isotonic)] {
        let worth = cross_validated(&samples, &profile, |seen| fitted(seen, &profile, method))?;
        output.line(told(name, worth))?;
    }
    let table = table::text(&fitted(&all, &profile, args.method)?);
    output.line(table.trim_end())?;
    output.flush()?;
    if args.write { table::write(&args.model, &table) } else { Ok(()) }
}

/// What the figures are of.
fn seen(queries: usize) -> String {
    match queries.min(PARTS) {
        1 => "On the same pairs that were fitted, for there is one query only".to_owned(),
        parts => format!("On queries that the fit did not see, {parts} parts in turn"),
    }
}

fn told(name: &str, (error, loss): (f64, f64)) -> String {
    format!("# {name:24}  {error:17.4}  {loss:23.4}")
}

/// The calibration that fits the samples best.
fn fitted(samples: &[&Sample], profile: &Profile, method: Method) -> Result<Calibration> {
    let temperature = (fit(samples) * 1e3).round() / 1e3;
    let mut calibration = Calibration { temperature, points: Vec::new() };
    if method == Method::Isotonic {
        calibration.points = isotonic::fit(scores(samples, profile, &calibration)?);
    }
    Ok(calibration)
}

/// (score, judged relevance, weight) under a calibration.
fn scores(samples: &[&Sample], profile: &Profile, calibration: &Calibration) -> Result<Vec<(f64, f64, f64)>> {
    let mut profile = profile.clone();
    profile.calibration = calibration.clone();
    let score = |sample: &&Sample| {
        let read = GradeDistribution::read(&sample.raw, None, &profile)?;
        Ok((read.score.get(), sample.judged, sample.weight))
    };
    samples.iter().map(score).collect()
}

/// Calibration error of the score and negative log-likelihood, each part of the queries under what
/// `fit` makes of the others.
fn cross_validated(
    samples: &[Sample],
    profile: &Profile,
    fit: impl Fn(&[&Sample]) -> Result<Calibration>,
) -> Result<(f64, f64)> {
    let (mut read, mut total) = (Vec::with_capacity(samples.len()), 0.0);
    for part in 0..PARTS {
        let (held, seen): (Vec<&Sample>, Vec<&Sample>) =
            samples.iter().partition(|sample| sample.part == part);
        // Of one query alone there is nothing else to fit on.
        let calibration = fit(if seen.is_empty() { &held } else { &seen })?;
        read.extend(scores(&held, profile, &calibration)?);
        total += held.iter().map(|sample| sample.weight * sample.loss(calibration.temperature)).sum::<f64>();
    }
    let weight: f64 = samples.iter().map(|sample| sample.weight).sum();
    Ok((eval::expected_error(read.into_iter()), total / weight.max(f64::MIN_POSITIVE)))
}

impl Sample {
    fn new(part: usize, pair: &Scored, profile: &Profile, weight: f64) -> Option<Self> {
        let raw = pair.logits.clone()?;
        let logits = raw.iter().map(|&logit| f64::from(logit));
        let (logits, values): (Vec<f64>, Vec<f64>) = match profile.read {
            ScoreRead::Expected => {
                (logits.collect(), profile.grades.iter().map(|grade| grade.value).collect())
            }
            ScoreRead::Softmax { positive, negative } => {
                let logits: Vec<f64> = logits.collect();
                (vec![logits[negative], logits[positive]], vec![0.0, 1.0])
            }
        };
        let target = spread(pair.target, &values);
        Some(Self { part, raw, judged: pair.target, logits, target, weight })
    }

    /// Cross entropy of the judgment against the softmax at `temperature`.
    fn loss(&self, temperature: f64) -> f64 {
        let most = self.logits.iter().copied().fold(f64::NEG_INFINITY, f64::max) / temperature;
        let sum: f64 = self.logits.iter().map(|logit| (logit / temperature - most).exp()).sum();
        let total = most + sum.ln();
        self.target.iter().zip(&self.logits).map(|(p, logit)| p * (total - logit / temperature)).sum()
    }
}

/// A judgment in \[0, 1\] on a scale of grade values: shared by the two grades beside it, in
/// proportion to nearness, when the scales do not meet.
fn spread(target: f64, values: &[f64]) -> Vec<f64> {
    let (low, high) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let wanted = low + target * (high - low);
    let nearest = |better: fn(f64, f64) -> bool, outside: fn(f64, f64) -> bool| {
        let candidates = (0..values.len()).filter(|&index| !outside(values[index], wanted));
        candidates.reduce(|best, index| if better(values[index], values[best]) { index } else { best })
    };
    let below = nearest(|a, b| a > b, |value, wanted| value > wanted);
    let above = nearest(|a, b| a < b, |value, wanted| value < wanted);
    let mut spread = vec![0.0; values.len()];
    match (below, above) {
        (Some(below), Some(above)) if values[above] > values[below] => {
            let part = (wanted - values[below]) / (values[above] - values[below]);
            spread[below] = 1.0 - part;
            spread[above] = part;
        }
        (found, other) => {
            if let Some(index) = found.or(other) {
                spread[index] = 1.0;
            }
        }
    }
    spread
}

fn loss(samples: &[&Sample], temperature: f64) -> f64 {
    let total: f64 = samples.iter().map(|sample| sample.weight).sum();
    samples.iter().map(|sample| sample.weight * sample.loss(temperature)).sum::<f64>()
        / total.max(f64::MIN_POSITIVE)
}

/// Golden-section search over the logarithm: the loss has one minimum in it.
fn fit(samples: &[&Sample]) -> f64 {
    let ratio = (5_f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (0.02_f64.ln(), 50_f64.ln());
    let at = |x: f64| loss(samples, x.exp());
    for _ in 0..60 {
        let (left, right) = (high - ratio * (high - low), low + ratio * (high - low));
        if at(left) < at(right) { high = right } else { low = left }
    }
    f64::midpoint(low, high).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judgments_are_shared_by_the_grades_beside_them() {
        assert_eq!(spread(0.5, &[0.0, 1.0, 2.0, 3.0]), [0.0, 0.5, 0.5, 0.0]);
        assert_eq!(spread(1.0, &[0.0, 1.0, 2.0, 3.0]), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(spread(0.0, &[3.0, 1.0]), [0.0, 1.0]);
        assert_eq!(spread(0.25, &[3.0, 1.0]), [0.25, 0.75]);
    }

    #[test]
    fn the_temperature_that_made_the_judgments_is_found() {
        // Judgments drawn as expectations from the softmax at temperature 2.5.
        let sample = |i: usize| {
            let logits: Vec<f64> = (0..3).map(|j| ((i * 7 + j * 13) % 11) as f64 - 5.0).collect();
            let weights: Vec<f64> = logits.iter().map(|logit| (logit / 2.5).exp()).collect();
            let total: f64 = weights.iter().sum();
            let target = weights.iter().map(|w| w / total).collect();
            Sample { part: 0, raw: Vec::new(), judged: 0.0, logits, target, weight: 1.0 }
        };
        let samples: Vec<Sample> = (0..50).map(sample).collect();
        let samples: Vec<&Sample> = samples.iter().collect();
        assert!((fit(&samples) - 2.5).abs() < 1e-3);
        assert!(loss(&samples, 2.5) < loss(&samples, 1.0));
    }
}
