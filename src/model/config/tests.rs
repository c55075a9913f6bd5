use serde_json::{Value, json};

use super::*;
use crate::error::Code;

/// Qwen3-0.6B's, with changes.
fn config_json(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "hidden_act": "silu", "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_scaling": null, "attention_bias": false, "tie_word_embeddings": true, "use_sliding_window": false,
        "sliding_window": null, "max_window_layers": 28, "unread": {"a": 1},
    });
    for (name, value) in changes.as_object().expect("object") {
        config[name] = value.clone();
    }
    config
}

fn config(changes: Value) -> Result<ModelConfig> {
    ModelConfig::from_json(config_json(changes).to_string().as_bytes(), "dir/config.json")
}

fn refusal(changes: Value) -> String {
    let error = config(changes).expect_err("refused");
    assert_eq!(error.code(), Code::Invalid);
    error.message().strip_prefix("dir/config.json: ").expect("begins with the path").to_owned()
}

#[test]
fn families_differ_in_norms_and_biases() {
    let traits = |c: &ModelConfig| (c.qk_norm, c.qkv_bias, c.o_bias, c.mlp_bias, c.head_dim);
    assert_eq!(traits(&config(json!({})).expect("reads")), (true, false, false, false, 128));
    assert_eq!(
        traits(&config(json!({"attention_bias": true})).expect("reads")),
        (true, true, true, false, 128)
    );
    let qwen2 =
        config(json!({"model_type": "qwen2", "head_dim": null, "tie_word_embeddings": null})).expect("reads");
    assert_eq!(traits(&qwen2), (false, true, false, false, 64));
    assert!(!qwen2.tied_head);
    let llama = json!({"model_type": "llama", "head_dim": null, "attention_bias": true, "mlp_bias": true,
                       "num_key_value_heads": null});
    let llama = config(llama).expect("reads");
    assert_eq!(traits(&llama), (false, true, true, true, 64));
    assert_eq!(llama.kv_heads, 16);
    assert_eq!(config(json!({"head_dim": null})).expect("reads").head_dim, 128);
}

#[test]
fn both_spellings_of_rope_are_read() {
    let frequency = |changes: Value| config(changes).expect("reads").inverse_frequencies[1];
    let old = frequency(json!({"rope_theta": 1e4}));
    let new = frequency(
        json!({"rope_theta": null, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
    );
    assert_eq!(old, new);
    assert!((f64::from(old) - 1e4_f64.powf(-2.0 / 128.0)).abs() < 1e-7);
    let linear =
        |name: &str| frequency(json!({"rope_theta": 1e4, "rope_scaling": {name: "linear", "factor": 2.0}}));
    assert_eq!(linear("type"), old / 2.0);
    assert_eq!(linear("rope_type"), old / 2.0);
    let both =
        json!({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}});
    assert_eq!(frequency(both), old / 2.0);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4});
    let theta = json!({"rope_type": "default", "rope_theta": 1e4});
    assert_eq!(
        refusal(json!({"rope_scaling": &yarn, "rope_parameters": theta})),
        "rope_parameters and rope_scaling differ: leave one of them"
    );
    let scaled = frequency(json!({"rope_scaling": &yarn}));
    assert_eq!(frequency(json!({"rope_scaling": &yarn, "rope_parameters": {}})), scaled);
    assert_eq!(frequency(json!({"rope_scaling": &yarn, "rope_parameters": &yarn})), scaled);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    assert_eq!(
        refusal(json!({"model_type": "qwen3_moe"})),
        "model_type \"qwen3_moe\" is not supported; supported are qwen3, qwen2 and llama"
    );
    assert_eq!(refusal(json!({"model_type": null})), "model_type is missing");
    assert_eq!(
        refusal(json!({"hidden_act": "gelu"})),
        "hidden_act \"gelu\" is not supported; supported is silu"
    );
    let sliding = json!({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 20});
    assert_eq!(refusal(sliding), "use_sliding_window: sliding windows are not supported");
    let mut default = config_json(json!({"use_sliding_window": true, "max_window_layers": 20}));
    default.as_object_mut().expect("object").remove("sliding_window");
    let refused = ModelConfig::from_json(default.to_string().as_bytes(), "c").expect_err("refused");
    assert_eq!(refused.message(), "c: use_sliding_window: sliding windows are not supported");
    assert!(config(json!({"use_sliding_window": true, "max_window_layers": 20})).is_ok(), "null is none");
    assert_eq!(
        refusal(json!({"is_causal": false})),
        "is_causal: attention in both directions is not supported"
    );
    assert!(config(json!({"is_causal": true, "architectures": ["Qwen3ForCausalLM"]})).is_ok());
    assert!(config(json!({"architectures": ["Qwen3Model"]})).is_ok());
    assert_eq!(
        refusal(json!({"architectures": ["Qwen3ForSequenceClassification"]})),
        "architectures [\"Qwen3ForSequenceClassification\"] is not supported; supported is \"Qwen3ForCausalLM\""
    );
    let layers = json!({"layer_types": ["full_attention", "sliding_attention"]});
    assert!(refusal(layers).starts_with("layer_types: \"sliding_attention\""));
    assert!(refusal(json!({"quantization_config": {"bits": 4}})).starts_with("quantization_config"));
    assert!(
        refusal(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}))
            .contains("rope type \"dynamic\"")
    );
    assert!(refusal(json!({"partial_rotary_factor": 0.5})).starts_with("partial_rotary_factor"));
    // A window that no layer uses, as Qwen2.5 has it, is no obstacle.
    assert!(config(json!({"use_sliding_window": false, "sliding_window": 4096})).is_ok());
    assert!(
        config(json!({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 28})).is_ok()
    );
}

#[test]
fn hostile_numbers_are_refused() {
    assert_eq!(refusal(json!({"hidden_size": null})), "hidden_size is missing");
    assert_eq!(refusal(json!({"hidden_size": 0})), "hidden_size 0 is not in 1 to 16777216");
    assert!(refusal(json!({"vocab_size": u64::MAX})).contains("vocab_size"));
    assert!(refusal(json!({"vocab_size": -1})).contains("invalid value"));
    assert!(refusal(json!({"num_hidden_layers": 4096})).starts_with("num_hidden_layers 4096"));
    assert!(refusal(json!({"num_key_value_heads": 7})).contains("not a multiple"));
    assert!(refusal(json!({"head_dim": 63})).contains("is odd"));
    assert!(refusal(json!({"rms_norm_eps": 0.0})).starts_with("rms_norm_eps 0"));
    assert_eq!(refusal(json!({"rms_norm_eps": 1e-50})), "rms_norm_eps 1e-50 is not in (0, 1)");
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1e300});
    let linear = json!({"rope_type": "linear", "factor": 1e-38});
    for scaling in [yarn, linear] {
        assert!(refusal(json!({"rope_scaling": &scaling})).contains("angles or a magnitude"), "{scaling}");
    }
    assert!(refusal(json!({"rope_theta": 0.5})).starts_with("rope_theta 0.5"));
    assert!(
        refusal(json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}})).contains("rope factor 0")
    );
    assert!(
        refusal(json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}))
            .contains("low_freq_factor is missing")
    );
    let error = ModelConfig::from_json(b"{", "dir/config.json").expect_err("refused");
    assert!(error.message().starts_with("dir/config.json: EOF"), "{error}");
}
