"""The forward pass as training runs it: the same arithmetic as transformers' Qwen3, fused.

transformers' own eager pass spends most of its time in small element-wise operations; here a layer
is one function that torch.compile can fuse, with products in bfloat16. tests/test_smoke.py holds
it to transformers' result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def norm(x, gain, eps: float = 1e-6):
    """RMSNorm over the last dimension, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def turn(x, cos, sin):
    """Rotary position embedding of (batch, tokens, heads, head size)."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def _layer(x, before, qkv, q_gain, k_gain, o, after, gate_up, down, cos, sin, heads: int, kind: torch.dtype):
    rows, tokens, _ = x.shape
    size = qkv.shape[0] // (3 * heads)
    q, k, v = (norm(x, before).to(kind) @ qkv.T).view(rows, tokens, 3 * heads, size).split(heads, 2)
    q = turn(norm(q, q_gain), cos, sin).to(kind).transpose(1, 2)
    k = turn(norm(k, k_gain), cos, sin).to(kind).transpose(1, 2)
    v = v.transpose(1, 2)
    if x.is_cuda:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:  # written out it is what torch.compile fuses
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        weights = ((q @ k.transpose(-1, -2)).float() * size**-0.5).masked_fill(~seen, -1e30)
        out = torch.softmax(weights, -1).to(kind) @ v
    x = x + out.transpose(1, 2).reshape(rows, tokens, -1) @ o.T
    gate, up = (norm(x, after).to(kind) @ gate_up.T).chunk(2, -1)
    return x + (F.silu(gate.float()) * up.float()).to(kind) @ down.T


class Forward:
    """Hidden states of a Qwen3ForCausalLM with as many key-value heads as query heads."""

    def __init__(self, net, fuse: bool = True, kind: torch.dtype = torch.bfloat16, longest: int = 1024):
        self.net, self.kind, self.heads = net, kind, net.config.num_attention_heads
        self.layer = torch.compile(_layer, dynamic=True) if fuse else _layer
        size = net.config.head_dim
        rate = net.config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2) / size)
        angle = torch.arange(longest)[:, None] * rate
        angle = torch.cat([angle, angle], -1)[:, None, :]
        self.cos, self.sin = angle.cos().to(net.device), angle.sin().to(net.device)

    def __call__(self, ids, tap: int | None = None):
        """Final hidden states (rows, tokens, hidden), and what enters layer `tap`."""
        model, kind, tapped = self.net.model, self.kind, None
        x = F.embedding(ids, model.embed_tokens.weight)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for place, layer in enumerate(model.layers):
            if place == tap:
                tapped = x
            a, m = layer.self_attn, layer.mlp
            qkv = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]).to(kind)
            gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight]).to(kind)
            x = self.layer(
                x, layer.input_layernorm.weight, qkv, a.q_norm.weight, a.k_norm.weight, a.o_proj.weight.to(kind),
                layer.post_attention_layernorm.weight, gate_up, m.down_proj.weight.to(kind), cos, sin, self.heads, kind)
        return norm(x, model.norm.weight), tapped
