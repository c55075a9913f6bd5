//! `config.json` of a Hugging Face checkpoint as a [`ModelConfig`].

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
