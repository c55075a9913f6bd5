//! `config.json` of a Hugging Face checkpoint as a [`ModelConfig`].

mod rope;

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

/// Which of the supported decoder families a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Qwen3ForCausalLM: per-head RMS norm of queries and keys.
    Qwen3,
    /// Qwen2ForCausalLM (also Qwen2.5): biases on q, k, v.
    Qwen2,
    /// LlamaForCausalLM (Llama 3 family).
    Llama,
}

impl Architecture {
    /// How transformers' names of its classes begin.
    fn family(self) -> &'static str {
        match self {
            Self::Qwen3 => "Qwen3",
            Self::Qwen2 => "Qwen2",
            Self::Llama => "Llama",
        }
    }
}

/// Everything the forward pass needs to know about a decoder's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Longest sequence the checkpoint declares, in tokens.
    pub max_positions: usize,
    /// Biases on q_proj, k_proj, v_proj.
    pub qkv_bias: bool,
    /// Bias on o_proj.
    pub o_bias: bool,
    /// Biases on gate_proj, up_proj, down_proj.
    pub mlp_bias: bool,
    /// RMS norm of every query and key head (Qwen3).
    pub qk_norm: bool,
    /// The head shares the embedding's matrix.
    pub tied_head: bool,
    /// Inverse rotary frequencies after scaling, `head_dim / 2` of them.
    pub inverse_frequencies: Vec<f32>,
    /// Factor on cos and sin (YaRN's attention factor; 1 otherwise).
    pub rope_magnitude: f32,
}

/// The fields of `config.json` that are read; others describe training or generation.
#[derive(Debug, Deserialize)]
struct Raw {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    is_causal: Option<bool>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    max_position_embeddings: Option<usize>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    use_sliding_window: Option<bool>,
    /// Where the key is not there, transformers takes one of 4,096 tokens; null is none.
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<usize>>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    partial_rotary_factor: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<rope::Raw>,
    rope_parameters: Option<rope::Raw>,
    original_max_position_embeddings: Option<usize>,
    quantization_config: Option<serde_json::Value>,
}

/// `Some` for a key that is there, with null too.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// No dimension may pass it: products of four of them then fit 128 bits, of two 64,
/// and no published checkpoint comes near.
const MOST: usize = 1 << 24;

impl ModelConfig {
    /// Reads a `config.json`; `origin` (its path) begins every error message.
    ///
    /// `Invalid` for what is malformed, missing, out of bounds, or an architecture or
    /// feature that the forward pass does not have.
    pub fn from_json(json: &[u8], origin: &str) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(json).map_err(|cause| Error::invalid(origin, cause))?;
        raw.read().map_err(|problem| Error::invalid(origin, problem))
    }

    /// cos and sin of position · frequency, over half a head; the product is rounded to f32 first, as
    /// transformers does.
    pub fn rotary_row(&self, position: usize) -> impl Iterator<Item = (f32, f32)> {
        self.inverse_frequencies.iter().map(move |frequency| {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            (cos as f32 * self.rope_magnitude, sin as f32 * self.rope_magnitude)
        })
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// What is wrong with a config, without its path.
type Checked<T> = Result<T, String>;

impl Raw {
    fn read(&self) -> Checked<ModelConfig> {
        let architecture = self.architecture()?;
        self.refuse_unsupported(architecture)?;
        let size = |name, value| bounded(name, value, MOST);
        let hidden_size = size("hidden_size", self.hidden_size)?;
        let heads = bounded("num_attention_heads", self.num_attention_heads, 4096)?;
        let kv_heads = bounded("num_key_value_heads", self.num_key_value_heads.or(Some(heads)), 4096)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            ));
        }
        let head_dim =
            bounded("head_dim", self.head_dim.or(default_head_dim(architecture, hidden_size, heads)), 1024)?;
        if !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {head_dim} is odd; rotary position embedding needs pairs"));
        }
        let max_positions = size("max_position_embeddings", self.max_position_embeddings)?;
        let rope = self.rope(head_dim, max_positions)?;
        let bias = self.attention_bias.unwrap_or(false);
        Ok(ModelConfig {
            architecture,
            vocab_size: size("vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: size("intermediate_size", self.intermediate_size)?,
            layers: bounded("num_hidden_layers", self.num_hidden_layers, 1024)?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: self.epsilon()?,
            max_positions,
            qkv_bias: architecture == Architecture::Qwen2 || bias,
            o_bias: architecture != Architecture::Qwen2 && bias,
            mlp_bias: architecture == Architecture::Llama && self.mlp_bias.unwrap_or(false),
            qk_norm: architecture == Architecture::Qwen3,
            tied_head: self.tie_word_embeddings.unwrap_or(false),
            inverse_frequencies: rope.inverse_frequencies,
            rope_magnitude: rope.magnitude,
        })
    }

    fn architecture(&self) -> Checked<Architecture> {
        match self.model_type.as_deref() {
            Some("qwen3") => Ok(Architecture::Qwen3),
            Some("qwen2") => Ok(Architecture::Qwen2),
            Some("llama") => Ok(Architecture::Llama),
            Some(other) => {
                Err(format!("model_type {other:?} is not supported; supported are qwen3, qwen2 and llama"))
            }
            None => Err("model_type is missing".to_owned()),
        }
    }

    fn refuse_unsupported(&self, architecture: Architecture) -> Checked<()> {
        if let Some(names) = self.architectures.as_ref().filter(|names| !names.is_empty()) {
            let family = architecture.family();
            let known = [format!("{family}ForCausalLM"), format!("{family}Model")];
            if !names.iter().any(|name| known.contains(name)) {
                return Err(format!("architectures {names:?} is not supported; supported is {:?}", known[0]));
            }
        }
        if self.is_causal == Some(false) {
            return Err("is_causal: attention in both directions is not supported".to_owned());
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|name| !["silu", "swish"].contains(name)) {
            return Err(format!("hidden_act {other:?} is not supported; supported is silu"));
        }
        if self.quantization_config.as_ref().is_some_and(|value| !value.is_null()) {
            return Err("quantization_config: quantized checkpoints are not supported".to_owned());
        }
        if let Some(kinds) = &self.layer_types {
            if let Some(kind) = kinds.iter().find(|kind| *kind != "full_attention") {
                return Err(format!("layer_types: {kind:?} is not supported; supported is full_attention"));
            }
        } else if architecture != Architecture::Llama && self.slides() {
            return Err("use_sliding_window: sliding windows are not supported".to_owned());
        }
        if self.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return Err("partial_rotary_factor: only 1 is supported".to_owned());
        }
        Ok(())
    }

    /// Whether some layer attends through a window (Qwen's rule).
    fn slides(&self) -> bool {
        let layers = self.num_hidden_layers.unwrap_or(usize::MAX);
        self.use_sliding_window == Some(true)
            && self.sliding_window != Some(None)
            && self.max_window_layers.is_none_or(|first| first < layers)
    }

    fn epsilon(&self) -> Checked<f32> {
        let value = self.rms_norm_eps.unwrap_or(1e-6);
        // As f32, in which what is too small is 0.
        if value as f32 > 0.0 && (value as f32) < 1.0 {
            Ok(value as f32)
        } else {
            Err(format!("rms_norm_eps {value:e} is not in (0, 1)"))
        }
    }

    fn rope(&self, head_dim: usize, max_positions: usize) -> Checked<rope::Rope> {
        let nothing = rope::Raw::default();
        let given = [&self.rope_parameters, &self.rope_scaling].into_iter().flatten();
        let given: Vec<&rope::Raw> = given.filter(|raw| **raw != nothing).collect();
        let raw = match given[..] {
            // transformers takes rope_scaling, and forgets what rope_parameters has of its own, as the theta.
            [new, old] if new != old => {
                return Err("rope_parameters and rope_scaling differ: leave one of them".to_owned());
            }
            [raw, ..] => raw.clone(),
            [] => nothing,
        };
        let theta = raw.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let original = self.original_max_position_embeddings;
        rope::Rope::new(&raw, head_dim, theta, max_positions, original)
    }
}

/// transformers' default: Qwen3 fixes it, the others divide the hidden size.
fn default_head_dim(architecture: Architecture, hidden_size: usize, heads: usize) -> Option<usize> {
    match architecture {
        Architecture::Qwen3 => Some(128),
        Architecture::Qwen2 | Architecture::Llama => {
            hidden_size.is_multiple_of(heads).then(|| hidden_size / heads)
        }
    }
}

fn bounded(name: &str, value: Option<usize>, most: usize) -> Checked<usize> {
    match value {
        None => Err(format!("{name} is missing")),
        Some(value) if value == 0 || value > most => Err(format!("{name} {value} is not in 1 to {most}")),
        Some(value) => Ok(value),
    }
}

#[cfg(test)]
mod tests;
