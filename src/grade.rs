//! Grade logits to a distribution, an expected grade and a score. Pure.

use crate::{
    error::{Error, Result},
    profile::{Profile, ScoreRead},
};

/// A relevance score: finite and in \[0, 1\] by construction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score(f64);

impl Score {
    /// `None` unless `value` is in \[0, 1\].
    pub fn new(value: f64) -> Option<Self> {
        // Adding zero makes -0 a plain 0: equal scores then compare equal in every way.
        (0.0..=1.0).contains(&value).then_some(Self(value + 0.0))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }

    /// The number whose logistic is this score: what clients know as a raw score.
    /// Finite: at the ends it is about -36 and 36.
    pub fn logit(self) -> f64 {
        let p = self.0.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
        (p / (1.0 - p)).ln()
    }
}

impl From<Score> for f64 {
    fn from(score: Score) -> Self {
        score.0
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What a model said about one pair.
#[derive(Clone, Debug, PartialEq)]
pub struct GradeDistribution {
    /// One per grade, in the profile's order; sums to 1.
    pub probabilities: Vec<f64>,
    /// The mean of the grades' values, on their scale.
    pub expected_grade: f64,
    /// The likeliest grade's index; of equals, the lowest.
    pub best: usize,
    /// The likeliest grade's probability.
    pub confidence: f64,
    /// Relevance, calibrated.
    pub score: Score,
    /// The probability, over the whole vocabulary and before calibration, that fell on the grades.
    pub label_mass: Option<f64>,
}

impl GradeDistribution {
    /// Reads the grades' logits, in the profile's order.
    ///
    /// `log_sum_exp` is that of the whole vocabulary's logits, where it was computed.
    /// `Internal` if anything is not finite: no such number ever becomes a score.
    pub fn read(logits: &[f32], log_sum_exp: Option<f32>, profile: &Profile) -> Result<Self> {
        check(logits, log_sum_exp, profile)?;
        let temperature = profile.calibration.temperature;
        let scaled: Vec<f64> = logits.iter().map(|&logit| f64::from(logit) / temperature).collect();
        let total = log_sum(&scaled);
        let probabilities: Vec<f64> = scaled.iter().map(|logit| (logit - total).exp()).collect();
        let sum: f64 = probabilities.iter().sum();
        let probabilities: Vec<f64> = probabilities.iter().map(|p| p / sum).collect();
        let best =
            (0..logits.len()).fold(0, |best, index| if logits[index] > logits[best] { index } else { best });
        let values = || profile.grades.iter().map(|grade| grade.value);
        let (low, high) =
            values().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let mean: f64 = values().zip(&probabilities).map(|(value, p)| value * p).sum();
        let expected_grade = mean.clamp(low, high);
        let raw = match profile.read {
            ScoreRead::Expected => (expected_grade - low) / (high - low),
            ScoreRead::Softmax { positive, negative } => logistic(scaled[positive] - scaled[negative]),
        };
        let score = Score::new(profile.calibration.apply(raw))
            .ok_or_else(|| Error::internal(format!("a score left [0, 1]: {raw} before calibration")))?;
        let label_mass = log_sum_exp.map(|whole| {
            let logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
            (log_sum(&logits) - f64::from(whole)).exp().min(1.0)
        });
        let confidence = probabilities[best];
        Ok(Self { probabilities, expected_grade, best, confidence, score, label_mass })
    }
}

fn check(logits: &[f32], log_sum_exp: Option<f32>, profile: &Profile) -> Result<()> {
    if logits.len() != profile.grades.len() {
        let (got, expected) = (logits.len(), profile.grades.len());
        return Err(Error::internal(format!("{got} logits for {expected} grades")));
    }
    for (logit, grade) in logits.iter().zip(&profile.grades) {
        if !logit.is_finite() {
            return Err(Error::internal(format!("the logit of grade {:?} is {logit}", grade.name)));
        }
    }
    match log_sum_exp {
        Some(whole) if !whole.is_finite() => {
            Err(Error::internal(format!("the log-sum-exp of the vocabulary's logits is {whole}")))
        }
        _ => Ok(()),
    }
}

/// log of the sum of exponentials, without overflow.
fn log_sum(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + values.iter().map(|value| (value - most).exp()).sum::<f64>().ln()
}

/// 1 / (1 + exp(-x)), without overflow.
fn logistic(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

#[cfg(test)]
mod tests;
