//! Which tensors a decoder of a given shape has.

use crate::{
    error::{Error, Result},
    model::config::ModelConfig,
};

use super::Checkpoint;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Name and shape of every tensor the forward pass reads, as transformers names them.
pub fn expected_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
    let (query, kv) = (config.query_width(), config.kv_width());
    let mut tensors = vec![(EMBEDDING.to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.layers {
        let mut add = |name: &str, shape: &[usize], bias: bool| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
            if bias {
                tensors.push((format!("model.layers.{layer}.{name}.bias"), vec![shape[0]]));
            }
        };
        add("input_layernorm", &[hidden], false);
        add("self_attn.q_proj", &[query, hidden], config.qkv_bias);
        add("self_attn.k_proj", &[kv, hidden], config.qkv_bias);
        add("self_attn.v_proj", &[kv, hidden], config.qkv_bias);
        add("self_attn.o_proj", &[hidden, query], config.o_bias);
        if config.qk_norm {
            add("self_attn.q_norm", &[config.head_dim], false);
            add("self_attn.k_norm", &[config.head_dim], false);
        }
        add("post_attention_layernorm", &[hidden], false);
        add("mlp.gate_proj", &[mlp, hidden], config.mlp_bias);
        add("mlp.up_proj", &[mlp, hidden], config.mlp_bias);
        add("mlp.down_proj", &[hidden, mlp], config.mlp_bias);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !config.tied_head {
        tensors.push((HEAD.to_owned(), vec![config.vocab_size, hidden]));
    }
    tensors
}

impl Checkpoint {
    /// `Invalid` if there is a head beside the embedding that is said to be it, and is another. Some
    /// checkpoints have it twice; which of two different ones is meant depends on transformers' version.
    pub fn check_tied_head(&self, config: &ModelConfig) -> Result<()> {
        if !config.tied_head || !self.contains(HEAD) {
            return Ok(());
        }
        let shape = [config.vocab_size, config.hidden_size];
        let (head, embedding) = (self.located(HEAD, &shape)?, self.located(EMBEDDING, &shape)?);
        if head.dtype == embedding.dtype && head.bytes() == embedding.bytes() {
            head.release();
            return Ok(());
        }
        let problem = format!(
            "tie_word_embeddings is true in config.json, but {HEAD} is not {EMBEDDING}: say false, or remove it"
        );
        Err(Error::invalid(self.origin(), problem))
    }

    /// `Invalid`, naming the first tensor that is missing or of the wrong shape or type.
    /// Reads no values.
    pub fn check_layout(&self, config: &ModelConfig) -> Result<()> {
        expected_tensors(config).iter().try_for_each(|(name, shape)| self.located(name, shape).map(drop))
    }
}
