"""A Qwen3 checkpoint in the formats of peers. Token ids pass through: no peer tokenizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from checkpoint import Checkpoint


class _Ids:
    """In place of a tokenizer: token 17's text is "17"."""

    bos_token = eos_token = pad_token = "0"
    unk_token = None

    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(self.size)}


def to_ctranslate2(checkpoint: Checkpoint, path: Path) -> None:
    """CTranslate2's own converter, in float32."""
    from ctranslate2.converters import TransformersConverter

    config = json.loads((checkpoint.directory / "config.json").read_text())

    class Converter(TransformersConverter):
        def load_tokenizer(self, *_args: object, **_kwargs: object) -> _Ids:
            return _Ids(config["vocab_size"])

    unfinished = path.with_name(path.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    Converter(str(checkpoint.directory)).convert(str(unfinished), quantization="float32")
    unfinished.rename(path)


# Of a layer, GGUF's names by Hugging Face's.
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor."""
    stem = name.removesuffix(".weight")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.weight"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{LAYER[rest]}.weight"


def to_gguf(checkpoint: Checkpoint, path: Path, dtype: str) -> None:
    """GGUF of a Qwen3 checkpoint; matrices in `dtype` (f16 or f32), norms in f32."""
    import gguf
    import torch
    from safetensors import safe_open

    config = json.loads((checkpoint.directory / "config.json").read_text())
    if config["model_type"] != "qwen3":
        raise SystemExit(f"{checkpoint.directory}: only Qwen3 is converted, not {config['model_type']}")
    unfinished = path.with_name(path.name + ".part")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(unfinished, "qwen3")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == "f16" else gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    for file in sorted(checkpoint.directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                tensor = tensors.get_tensor(name).to(torch.float32).numpy()
                if tensor.ndim == 2 and dtype == "f16":
                    tensor = tensor.astype("float16")
                writer.add_tensor(gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
