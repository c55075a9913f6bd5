#!/usr/bin/env python3
"""Make a checkpoint of a published shape with random, seeded weights, to test and time with.

    python scripts/make_checkpoint.py DIR --tokenizer-dir TOKENIZER [--layers 28] [--seed 0]

The shape is Qwen3-0.6B's (28 layers, hidden 1024, 16 query and 8 key/value heads of 128, MLP 3072,
vocabulary 151,936, tied head). TOKENIZER holds Qwen's vocab.json, merges.txt and
qwen3_tokenizer_config.json (or tokenizer_config.json). DIR gets config.json, tokenizer.json,
model.safetensors in bfloat16 and a relevance.toml that picks the built-in Qwen3-Reranker profile:
Verdict serves it, and transformers loads it. Needs torch, tokenizers and safetensors.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_tokenizer(source: Path) -> Tokenizer:
    """Qwen's byte-level BPE, rebuilt from its published vocabulary and merges."""
    vocab = json.loads((source / "vocab.json").read_text())
    lines = (source / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    config = source / "qwen3_tokenizer_config.json"
    config = config if config.exists() else source / "tokenizer_config.json"
    added = json.loads(config.read_text())["added_tokens_decoder"]
    for expected, fields in sorted(added.items(), key=lambda item: int(item[0])):
        token = AddedToken(**fields)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != int(expected):
            raise SystemExit(f"{token.content} is not token {expected}")
    return tokenizer


def shape(layers: int) -> dict:
    """config.json of Qwen3-0.6B, with a number of layers."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": layers,
        "torch_dtype": "bfloat16",
    }


def random_weights(config: dict, seed: int) -> dict[str, torch.Tensor]:
    """Normal weights with deviation 0.02; norms near one."""
    generator = torch.Generator().manual_seed(seed)
    hidden, mlp, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim

    def matrix(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * 0.02).bfloat16()

    def norm(size: int) -> torch.Tensor:
        return (1 + 0.1 * torch.randn(size, generator=generator)).bfloat16()

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden), "model.norm.weight": norm(hidden)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        tensors |= {
            name + "input_layernorm.weight": norm(hidden),
            name + "self_attn.q_proj.weight": matrix(query, hidden),
            name + "self_attn.k_proj.weight": matrix(kv, hidden),
            name + "self_attn.v_proj.weight": matrix(kv, hidden),
            name + "self_attn.o_proj.weight": matrix(hidden, query),
            name + "self_attn.q_norm.weight": norm(dim),
            name + "self_attn.k_norm.weight": norm(dim),
            name + "post_attention_layernorm.weight": norm(hidden),
            name + "mlp.gate_proj.weight": matrix(mlp, hidden),
            name + "mlp.up_proj.weight": matrix(mlp, hidden),
            name + "mlp.down_proj.weight": matrix(hidden, mlp),
        }
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tokenizer-dir", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    out = arguments.directory
    out.mkdir(parents=True, exist_ok=True)
    config = shape(arguments.layers)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    qwen_tokenizer(arguments.tokenizer_dir).save(str(out / "tokenizer.json"))
    save_file(random_weights(config, arguments.seed), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    explain = '[explain]\nstop = ["<|im_end|>"]\nmax_tokens = 96\n'  # without it, reasons are refused
    (out / "relevance.toml").write_text('profile = "qwen3-reranker"\nname = "qwen3-0.6b-random"\n\n' + explain)


if __name__ == "__main__":
    main()
