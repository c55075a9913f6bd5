//! The reference backend: candle-transformers' own models in f32, for `verdict verify`
//! and tests. It reads the norms' epsilon and the rotary embedding from `config.json` by itself, so that an error
//! in our reading of them shows; sizes, and what is refused, are ours.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{llama, qwen2, qwen3};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    model::{
        config::{Architecture, ModelConfig},
        weights::{Checkpoint, Dtype, expected_tensors},
    },
};

/// A checkpoint run by candle-transformers on the CPU.
pub struct Reference {
    model: Kind,
    vocab_size: usize,
    max_positions: usize,
}

enum Kind {
    Qwen3(qwen3::ModelForCausalLM),
    Qwen2(qwen2::ModelForCausalLM),
    Llama { model: llama::Llama, config: llama::Config },
}

/// Positions for which the reference prepares its rotations; prompts are shorter.
const MAX_POSITIONS: usize = 8192;

impl Reference {
    /// Opens a Hugging Face directory.
    ///
    /// `Unimplemented` for what candle-transformers' model of the architecture lacks (biases of
    /// Llama, RoPE scaling but Llama 3's, a free head width of Qwen2 and Llama); else as
    /// [`Checkpoint::open`] and [`ModelConfig::from_json`].
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let origin = path.display().to_string();
        let json = std::fs::read(&path)
            .map_err(|cause| Error::invalid(&origin, format!("cannot be read: {cause}")))?;
        Self::from_parts(&json, &origin, &Checkpoint::open(dir)?)
    }

    /// The same, from the text of a `config.json` and an opened checkpoint.
    pub fn from_parts(config_json: &[u8], origin: &str, checkpoint: &Checkpoint) -> Result<Self> {
        let config = ModelConfig::from_json(config_json, origin)?;
        let raw: Value =
            serde_json::from_slice(config_json).map_err(|cause| Error::invalid(origin, cause))?;
        refuse_unsupported(&config, &raw)?;
        let weights = weights(checkpoint, &config)?;
        let model = build(&config, &raw, weights).map_err(failed)?;
        Ok(Self { model, vocab_size: config.vocab_size, max_positions: positions(&config) })
    }

    /// The whole vocabulary's logits after the last of `tokens`, from an empty KV cache.
    pub fn answer_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() || tokens.len() > self.max_positions {
            let limit = self.max_positions;
            return Err(Error::invalid(
                "tokens",
                format!("{} given; the reference takes 1 to {limit}", tokens.len()),
            ));
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(Error::invalid(
                "tokens",
                format!("{id} is not below the vocabulary's {}", self.vocab_size),
            ));
        }
        self.forward(tokens).map_err(failed)
    }

    fn forward(&mut self, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match &mut self.model {
            Kind::Qwen3(model) => {
                model.clear_kv_cache();
                model.forward(&input, 0)?
            }
            Kind::Qwen2(model) => {
                model.clear_kv_cache();
                model.forward(&input, 0)?
            }
            Kind::Llama { model, config } => {
                let mut cache = llama::Cache::new(false, DType::F32, config, &Device::Cpu)?;
                model.forward(&input, 0, &mut cache)?
            }
        };
        logits.flatten_all()?.to_vec1()
    }
}

fn positions(config: &ModelConfig) -> usize {
    config.max_positions.min(MAX_POSITIONS)
}

/// The scaling object of either spelling, unless it says that there is none.
fn rope_scaling(raw: &Value) -> Option<(&str, &Value)> {
    let object = [&raw["rope_parameters"], &raw["rope_scaling"]]
        .into_iter()
        .find(|value| value.as_object().is_some_and(|keys| !keys.is_empty()))?;
    let kind = object["rope_type"].as_str().or(object["type"].as_str())?;
    (kind != "default").then_some((kind, object))
}

fn refuse_unsupported(config: &ModelConfig, raw: &Value) -> Result<()> {
    let llama = config.architecture == Architecture::Llama;
    let refuse = |what: &str| {
        let message = format!("the reference (candle-transformers) has no {what} for this architecture");
        Err(Error::new(crate::error::Code::Unimplemented, message))
    };
    match rope_scaling(raw) {
        Some((kind, _)) if !llama || kind != "llama3" => return refuse(&format!("RoPE scaling {kind:?}")),
        _ => {}
    }
    if llama && (config.qkv_bias || config.o_bias || config.mlp_bias) {
        return refuse("biases");
    }
    if config.architecture != Architecture::Qwen3 && config.query_width() != config.hidden_size {
        return refuse("head_dim other than hidden_size / num_attention_heads");
    }
    Ok(())
}

/// Every tensor of the layout, checked, under transformers' names.
fn weights(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<HashMap<String, Tensor>> {
    let convert = |(name, shape): (String, Vec<usize>)| {
        let tensor = checkpoint.tensor(&name, &shape)?;
        let dtype = match tensor.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
        };
        let tensor = Tensor::from_raw_buffer(tensor.bytes(), dtype, &shape, &Device::Cpu).map_err(failed)?;
        Ok((name, tensor))
    };
    expected_tensors(config).into_iter().map(convert).collect()
}

fn build(config: &ModelConfig, raw: &Value, weights: HashMap<String, Tensor>) -> candle_core::Result<Kind> {
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let rms_norm_eps = raw["rms_norm_eps"].as_f64().unwrap_or(1e-6);
    let theta = raw["rope_parameters"]["rope_theta"].as_f64().or(raw["rope_theta"].as_f64());
    let rope_theta = theta.unwrap_or(10_000.0);
    match config.architecture {
        Architecture::Qwen3 => {
            let config = qwen3::Config {
                vocab_size: config.vocab_size,
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                num_hidden_layers: config.layers,
                num_attention_heads: config.heads,
                head_dim: config.head_dim,
                attention_bias: config.qkv_bias,
                num_key_value_heads: config.kv_heads,
                max_position_embeddings: positions(config),
                sliding_window: None,
                max_window_layers: config.layers,
                tie_word_embeddings: config.tied_head,
                rope_theta,
                rms_norm_eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            Ok(Kind::Qwen3(qwen3::ModelForCausalLM::new(&config, weights)?))
        }
        Architecture::Qwen2 => {
            let config = qwen2::Config {
                vocab_size: config.vocab_size,
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                num_hidden_layers: config.layers,
                num_attention_heads: config.heads,
                num_key_value_heads: config.kv_heads,
                max_position_embeddings: positions(config),
                // Its mask always has a window: one that covers every position.
                sliding_window: positions(config),
                max_window_layers: config.layers,
                tie_word_embeddings: config.tied_head,
                rope_theta,
                rms_norm_eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            Ok(Kind::Qwen2(qwen2::ModelForCausalLM::new(&config, weights)?))
        }
        Architecture::Llama => {
            let config = llama::Config {
                hidden_size: config.hidden_size,
                intermediate_size: config.intermediate_size,
                vocab_size: config.vocab_size,
                num_hidden_layers: config.layers,
                num_attention_heads: config.heads,
                num_key_value_heads: config.kv_heads,
                use_flash_attn: false,
                rms_norm_eps,
                rope_theta: rope_theta as f32,
                bos_token_id: None,
                eos_token_id: None,
                rope_scaling: rope_scaling(raw).map(|(_, object)| llama3_scaling(object, config)),
                max_position_embeddings: positions(config),
                tie_word_embeddings: config.tied_head,
            };
            Ok(Kind::Llama { model: llama::Llama::load(weights, &config)?, config })
        }
    }
}

fn llama3_scaling(object: &Value, config: &ModelConfig) -> llama::Llama3RopeConfig {
    let number = |name: &str| object[name].as_f64().unwrap_or(1.0) as f32;
    let trained = object["original_max_position_embeddings"].as_u64();
    llama::Llama3RopeConfig {
        factor: number("factor"),
        low_freq_factor: number("low_freq_factor"),
        high_freq_factor: number("high_freq_factor"),
        original_max_position_embeddings: trained.map_or(config.max_positions, |n| n as usize),
        rope_type: llama::Llama3RopeType::Llama3,
    }
}

fn failed(cause: candle_core::Error) -> Error {
    Error::internal("the reference failed").with_cause(cause)
}
