//! Rotary position embedding: the inverse frequencies of each scaling rule, as
//! transformers' `modeling_rope_utils.py` defines them, in f64.

use std::f64::consts::PI;

use serde::Deserialize;

use super::Checked;

/// `rope_scaling`, or `rope_parameters` as transformers 5 writes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Raw {
    rope_type: Option<String>,
    /// The older spelling; some files hold both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
}

/// What a rotation needs.
pub(super) struct Rope {
    pub(super) inverse_frequencies: Vec<f32>,
    pub(super) magnitude: f32,
}

impl Rope {
    /// `original` is the config's own `original_max_position_embeddings`, which wins over `raw`'s.
    pub(super) fn new(
        raw: &Raw,
        head_dim: usize,
        theta: f64,
        max_positions: usize,
        original: Option<usize>,
    ) -> Checked<Self> {
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!("rope_theta {theta} is not above 1"));
        }
        if raw.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return Err("partial_rotary_factor: only 1 is supported".to_owned());
        }
        let plain: Vec<f64> =
            (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64)).collect();
        let trained = original.map(|n| n as f64).or(raw.original_max_position_embeddings);
        let trained = trained.unwrap_or(max_positions as f64);
        let kind = raw.rope_type.as_deref().or(raw.old_type.as_deref());
        let (frequencies, magnitude) = match kind.unwrap_or("default") {
            "default" => (plain, 1.0),
            "linear" => {
                let factor = raw.factor()?;
                (plain.iter().map(|f| f / factor).collect(), 1.0)
            }
            "llama3" => (raw.llama3(&plain, trained)?, 1.0),
            "yarn" => raw.yarn(&plain, theta, trained, max_positions)?,
            other => {
                return Err(format!(
                    "rope type {other:?} is not supported; supported are default, linear, llama3 and yarn"
                ));
            }
        };
        let inverse_frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        let magnitude = magnitude as f32;
        // Every angle must be finite in f32, the last position's too, and so must what multiplies its
        // cosine and sine.
        let turns = |f: &f32| *f >= 0.0 && (max_positions as f32 * f).is_finite();
        if !inverse_frequencies.iter().all(turns) || !magnitude.is_finite() {
            return Err("the rope parameters give angles or a magnitude that are not finite".to_owned());
        }
        Ok(Self { inverse_frequencies, magnitude })
    }
}

impl Raw {
    fn factor(&self) -> Checked<f64> {
        positive("factor", self.factor)
    }

    /// Long wavelengths are stretched by `factor`, short ones kept, those between blended.
    fn llama3(&self, plain: &[f64], trained: f64) -> Checked<Vec<f64>> {
        let factor = self.factor()?;
        let low = positive("low_freq_factor", self.low_freq_factor)?;
        let high = positive("high_freq_factor", self.high_freq_factor)?;
        if high <= low {
            return Err(format!("rope high_freq_factor {high} is not above low_freq_factor {low}"));
        }
        let scale = |frequency: &f64| {
            let wavelength = 2.0 * PI / frequency;
            if wavelength < trained / high {
                *frequency
            } else if wavelength > trained / low {
                frequency / factor
            } else {
                let smooth = (trained / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        };
        Ok(plain.iter().map(scale).collect())
    }

    /// YaRN (arXiv 2309.00071): a ramp between kept and stretched frequencies, and a
    /// magnitude on cos and sin.
    fn yarn(
        &self,
        plain: &[f64],
        theta: f64,
        trained: f64,
        max_positions: usize,
    ) -> Checked<(Vec<f64>, f64)> {
        let factor = positive("factor", self.factor.or(Some(max_positions as f64 / trained)))?;
        let dim = (2 * plain.len()) as f64;
        let turns = |beta: Option<f64>, default| beta.filter(|beta| *beta != 0.0).unwrap_or(default);
        let boundary = |turns: f64| dim * (trained / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let mut low = boundary(turns(self.beta_fast, 32.0));
        let mut high = boundary(turns(self.beta_slow, 1.0));
        if self.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let blend = |(index, frequency): (usize, &f64)| {
            let stretched = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * stretched + frequency * (1.0 - stretched)
        };
        let frequencies = plain.iter().enumerate().map(blend).collect();
        Ok((frequencies, self.yarn_magnitude(factor)))
    }

    fn yarn_magnitude(&self, factor: f64) -> f64 {
        let magnitude = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let set = |value: Option<f64>| value.filter(|value| *value != 0.0);
        match (self.attention_factor, set(self.mscale), set(self.mscale_all_dim)) {
            (Some(given), ..) => given,
            (None, Some(scale), Some(all)) => magnitude(scale) / magnitude(all),
            _ => magnitude(1.0),
        }
    }
}

fn positive(name: &str, value: Option<f64>) -> Checked<f64> {
    match value {
        Some(value) if value > 0.0 && value.is_finite() => Ok(value),
        Some(value) => Err(format!("rope {name} {value} is not a positive number")),
        None => Err(format!("rope {name} is missing")),
    }
}
