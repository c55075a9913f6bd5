#!/usr/bin/env python3
"""Write the tiny seeded checkpoints beside this file, and what transformers computes with them.

    python tests/golden/make.py [--qwen-tokenizer DIR]

golden.json: per checkpoint, prompts as token ids and the logits of the whole vocabulary at their
last position, by transformers in float32. rope.json: their inverse rotary frequencies and the factor on
cos and sin. prompts.json: the published prompts of public rerankers
as token ids, made as their authors' code makes them; with --qwen-tokenizer (a directory with
tokenizer.json) also for the real tokenizer. Needs torch, transformers, tokenizers, safetensors.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
VOCAB = 304
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = [
    ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("a", "n"), ("e", "r"), ("Ġ", "a"), ("o", "n"), ("r", "e"),
    ("y", "e"), ("ye", "s"), ("n", "o"), ("Ġ", "yes"), ("Ġ", "no"), ("?", "Ċ"), ("Ċ", "Ċ"), ("u", "s"), ("us", "er"),
    ("Ġ", "Ġ"), ("e", "n"), ("Ġ", "s"), ("o", "c"), ("i", "t"), ("i", "s"), ("Ã", "©"), ("v", "er"), (".", "Ċ"),
]
ADDED = {"<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<|answer|>": True,
         "<|0|>": True, "<|1|>": True, "<|2|>": True, "<think>": False, "</think>": False}


def tokenizer() -> Tokenizer:
    """A byte-level BPE with few merges, cut up as Qwen's is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(alphabet + ["".join(pair) for pair in MERGES])}
    result = Tokenizer(models.BPE(vocab, MERGES))
    result.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    result.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    result.decoder = decoders.ByteLevel()
    for text, special in ADDED.items():
        token = AddedToken(text, special=special, normalized=False)
        (result.add_special_tokens if special else result.add_tokens)([token])
    assert result.get_vocab_size() <= VOCAB
    return result


def config(model_type: str, **fields) -> dict:
    name = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[model_type]
    common = dict(vocab_size=VOCAB, num_hidden_layers=2, hidden_act="silu", rms_norm_eps=1e-6,
                  max_position_embeddings=1024, rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=False)
    if model_type != "llama":
        common |= dict(use_sliding_window=False, sliding_window=None, max_window_layers=2)
    return {"architectures": [name], "model_type": model_type} | common | fields


QWEN3 = dict(attention_bias=False)
CHECKPOINTS = {
    "qwen3": (torch.float32, config("qwen3", hidden_size=64, intermediate_size=128, num_attention_heads=4,
                                    num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, **QWEN3)),
    "qwen3-sharded": (torch.bfloat16, config("qwen3", hidden_size=96, intermediate_size=160, num_attention_heads=3,
                                             num_key_value_heads=1, head_dim=64, rope_theta=1e6, **QWEN3)),
    "qwen2": (torch.float32, config("qwen2", hidden_size=64, intermediate_size=128, num_attention_heads=2,
                                    num_key_value_heads=1, tie_word_embeddings=True)),
    "llama3": (torch.float16, config("llama", hidden_size=128, intermediate_size=160, num_attention_heads=2,
                                     num_key_value_heads=1, head_dim=64, rms_norm_eps=1e-5, rope_theta=500000.0,
                                     attention_bias=False, mlp_bias=False,
                                     rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                       high_freq_factor=4.0, original_max_position_embeddings=64))),
    "llama-bias": (torch.bfloat16, config("llama", hidden_size=64, intermediate_size=96, num_attention_heads=2,
                                          num_key_value_heads=2, head_dim=32, attention_bias=True, mlp_bias=True,
                                          rope_scaling=dict(rope_type="linear", factor=2.0))),
    "yarn": (torch.bfloat16, config("qwen3", hidden_size=64, intermediate_size=128, num_attention_heads=2,
                                    num_key_value_heads=1, head_dim=128, tie_word_embeddings=True,
                                    rope_scaling=dict(rope_type="yarn", factor=4.0,
                                                      original_max_position_embeddings=64), **QWEN3)),
    # Of widths that no vector and no tile divides.
    "uneven": (torch.bfloat16, config("qwen3", hidden_size=44, intermediate_size=52, num_attention_heads=5,
                                      num_key_value_heads=1, head_dim=10, **QWEN3)),
}


def weights(config: dict, seed: int) -> dict[str, torch.Tensor]:
    """Random weights that give logits of deviation about 2, biases and norms far from trivial."""
    generator = torch.Generator().manual_seed(seed)
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim", hidden // config["num_attention_heads"])
    query, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    kind = config["model_type"]
    bias = config.get("attention_bias", False)
    tensors = {}

    def linear(name: str, rows: int, columns: int, biased: bool, gain: float = 1.2) -> None:
        tensors[name + ".weight"] = torch.randn(rows, columns, generator=generator) * gain / columns**0.5
        if biased:
            tensors[name + ".bias"] = torch.randn(rows, generator=generator) * 0.3

    def norm(name: str, size: int) -> None:
        tensors[name + ".weight"] = 1 + 0.3 * torch.randn(size, generator=generator)

    linear("model.embed_tokens", VOCAB, hidden, False, gain=2.0)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        norm(name + "input_layernorm", hidden)
        for projection, size in [("q_proj", query), ("k_proj", kv), ("v_proj", kv)]:
            linear(name + "self_attn." + projection, size, hidden, kind == "qwen2" or bias)
        linear(name + "self_attn.o_proj", hidden, query, kind != "qwen2" and bias)
        if kind == "qwen3":
            norm(name + "self_attn.q_norm", dim)
            norm(name + "self_attn.k_norm", dim)
        norm(name + "post_attention_layernorm", hidden)
        for projection, rows, columns in [("gate_proj", mlp, hidden), ("up_proj", mlp, hidden), ("down_proj", hidden, mlp)]:
            linear(name + "mlp." + projection, rows, columns, config.get("mlp_bias", False))
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        linear("lm_head", VOCAB, hidden, False, gain=2.0)
    return tensors


PROFILE = """\
name = "tiny-%s"

[prompt]
template = "<|im_start|>{instruction}\\nQ: {query}<|im_end|>{document}<|answer|>"
document = "{title} {text}"
instruction = "grade it"
max_tokens = 256

[score]
read = "expected"

[[grades]]
token = "<|0|>"
name = "0"
label = "Irrelevant"

[[grades]]
token = "<|1|>"
name = "1"
label = "Partial"

[[grades]]
token = "<|2|>"
name = "2"
label = "Exact"

[explain]
stop = ["<|endoftext|>"]
max_tokens = 24
"""


def write(name: str, dtype: torch.dtype, config: dict, seed: int) -> Path:
    out = HERE / name
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "relevance.toml").write_text(PROFILE % name)
    tokenizer().save(str(out / "tokenizer.json"), pretty=False)
    tensors = {key: value.to(dtype).contiguous() for key, value in weights(config, seed).items()}
    if name.endswith("sharded"):
        names = sorted(tensors)
        shards = {"model-00001-of-00002.safetensors": names[: len(names) // 2],
                  "model-00002-of-00002.safetensors": names[len(names) // 2 :]}
        for file, keys in shards.items():
            save_file({key: tensors[key] for key in keys}, out / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {key: file for file, keys in shards.items() for key in keys}}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    else:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for file in out.iterdir():
        file.chmod(0o644)
    return out


def golden(directory: Path, seed: int) -> tuple[list[dict], tuple[list[float], float]]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for length in [1, 2, 7, 33, 64, 150]:
        tokens = torch.randint(0, VOCAB, (length,), generator=generator)
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, -1]
        print(f"{directory.name}: {length} tokens, deviation {logits.std():.2f}")
        prompts.append({"tokens": tokens.tolist(), "logits": [round(value, 6) for value in logits.tolist()]})
    rotary = model.model.rotary_emb
    return prompts, (rotary.inv_freq.tolist(), float(rotary.attention_scaling))


SYSTEM = ('Judge whether the Document meets the requirements based on the Query and the Instruct provided. '
          'Note that the answer can only be "yes" or "no".')
TASK = ("You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:")


def qwen3_reranker(encode, instruction: str, query: str, document: str) -> list[int]:
    """As the model card's code: prefix, content and suffix are tokenized apart."""
    prefix = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    content = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    return encode(prefix) + encode(content) + encode(suffix)


def mxbai_rerank(encode, instruction: str, query: str, document: str) -> list[int]:
    """As mxbai_rerank_v2.py: the query's part, the separators, the document's part, the task."""
    prefix = ("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
              "<|im_start|>user\n")
    suffix = "<|im_end|>\n<|im_start|>assistant\n"
    ask = f"instruction: {instruction}\nquery: {query}" if instruction else f"query: {query}"
    return (encode(prefix) + encode(ask) + encode("\n") + encode(f"document: {document}") + encode("\n")
            + encode(TASK) + encode(suffix))


PAIRS = [
    ("Given a web search query, retrieve relevant passages that answer the query", "What is the capital of China?",
     "The capital of China is Beijing."),
    ("", "a", "b"),
    ("judge products", "café crème  ", "  two spaces, 12345 digits\n\nand lines.\n"),
    ("it's", "who're you?\n", "'s e\u0301t\u00e9 naïve 北京 🙂 <Document>: x"),
    ("end.", "trailing newline?\n\n", "\n<Query>: tricky?\n"),
]


def prompts(encode) -> list[dict]:
    return [
        {"profile": name, "instruction": instruction, "query": query, "document": document,
         "tokens": make(encode, instruction, query, document)}
        for name, make in [("qwen3-reranker", qwen3_reranker), ("mxbai-rerank-v2", mxbai_rerank)]
        for instruction, query, document in PAIRS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qwen-tokenizer", type=Path, help="directory with Qwen3's tokenizer.json")
    arguments = parser.parse_args()

    results, rope = {}, {}
    for seed, (name, (dtype, config)) in enumerate(CHECKPOINTS.items()):
        directory = write(name, dtype, config, seed)
        results[name], rope[name] = golden(directory, seed)
    (HERE / "golden.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")

    (HERE / "rope.json").write_text(json.dumps(rope, separators=(",", ":")) + "\n")

    path = HERE / "prompts.json"
    made = json.loads(path.read_text()) if path.exists() else {}
    tiny = tokenizer()
    made["tiny"] = prompts(lambda text: tiny.encode(text, add_special_tokens=False).ids)
    if arguments.qwen_tokenizer:
        real = Tokenizer.from_file(str(arguments.qwen_tokenizer / "tokenizer.json"))
        made["qwen3"] = prompts(lambda text: real.encode(text, add_special_tokens=False).ids)
    path.write_text(json.dumps(made, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
