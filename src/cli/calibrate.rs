//! `verdict calibrate`: the temperature under which a model's probabilities are honest.

use crate::{
    error::Result,
    profile::{Profile, ScoreRead},
};

use super::{
    Failure,
    eval::{self, JudgmentArgs, Scored},
    local::{Local, ModelArgs},
};

/// Arguments of `verdict calibrate`.
#[derive(Clone, Debug, clap::Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    judgments: JudgmentArgs,
}

/// A judged pair as the likelihood sees it.
struct Sample {
    logits: Vec<f64>,
    /// The probability that the judgment puts on each grade.
    target: Vec<f64>,
    weight: f64,
}

/// Prints the `[calibration]` table with the temperature that minimises the negative
/// log-likelihood of the judgments; each file weighs the same.
///
/// # Errors
///
/// As `verdict eval`.
pub fn run(args: CalibrateArgs) -> Result<(), Failure> {
    let sets = eval::load(&args.judgments)?;
    let local = Local::start(&args.model)?;
    let mut samples = Vec::new();
    for (_, queries) in &sets {
        let scored = local.runtime.block_on(eval::score(&local.service, queries, &args.judgments, true))?;
        let pairs: Vec<&Scored> = scored.iter().flatten().collect();
        let weight = 1.0 / (pairs.len() * sets.len()) as f64;
        let profile = local.service.profile();
        samples.extend(pairs.iter().filter_map(|pair| Sample::new(pair, profile, weight)));
    }
    let now = local.service.profile().calibration.temperature;
    local.stop()?;
    let best = fit(&samples);
    println!(
        "# Negative log-likelihood per pair: {:.5} at 1, {:.5} at {now} (now), {:.5} at {best:.3}; {} pairs.",
        loss(&samples, 1.0),
        loss(&samples, now),
        loss(&samples, best),
        samples.len()
    );
    println!("[calibration]\ntemperature = {best:.3}");
    Ok(())
}

impl Sample {
    fn new(pair: &Scored, profile: &Profile, weight: f64) -> Option<Self> {
        let logits = pair.logits.as_ref()?.iter().map(|&logit| f64::from(logit));
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
        Some(Self { logits, target, weight })
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

fn loss(samples: &[Sample], temperature: f64) -> f64 {
    let total: f64 = samples.iter().map(|sample| sample.weight).sum();
    samples.iter().map(|sample| sample.weight * sample.loss(temperature)).sum::<f64>()
        / total.max(f64::MIN_POSITIVE)
}

/// Golden-section search over the logarithm: the loss has one minimum in it.
fn fit(samples: &[Sample]) -> f64 {
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
            Sample { logits, target: weights.iter().map(|w| w / total).collect(), weight: 1.0 }
        };
        let samples: Vec<Sample> = (0..50).map(sample).collect();
        assert!((fit(&samples) - 2.5).abs() < 1e-3);
        assert!(loss(&samples, 2.5) < loss(&samples, 1.0));
    }
}
