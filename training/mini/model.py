"""The model's shape, and an initial state that can already match words.

A small causal model sees far too little text to find "compare my query words with the
document's words" by itself. So its token vectors start such that their sum is near MiniLM's vector
of a text (`mini.bag`; words that mean the same lie close), and its first layers start as what every lexical scorer does:
layer 0 tells each token which part of the prompt it is in, and layers 1 and 2 let a token
look for its nearest relatives in the document. Training then changes all of it freely.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from mini import teacher

HIDDEN, HEAD = 256, 64
CONTENT = 160  # dimensions of the residual stream that start as word meaning
CONST, RARITY, FLAGS = 160, 161, 164  # then: a constant, how rare the token is, control flags
IMPORTANCE = 162  # how much the token says about a text's meaning: a logarithm
SEEN_DOC, SEEN_QUERY = 180, 181  # written by layer 0
MATCH, READ = 182, 183  # written by layer 1 and by the last layer
UNIT = 5.92  # one control token's value as layer 0 writes it
READ_GAIN, READ_MIDDLE = 2.0, 4.5  # spread of the grades along READ, and its middle
GRADE, SPACE = 248, 252  # which grade was given; whether a space stands before the token
PREVIOUS = 184  # 63 dimensions of the previous token's meaning, and one: it was a query's start
MEANING = 144  # the teacher's main axes, which the comparing layer learns: 36 for each head
COMPARING = 4  # that layer's place
SLOW = list(range(12, 32)) + list(range(44, 64))  # head dimensions that RoPE hardly turns


def config(vocab_size: int, layers: int = 6) -> Qwen3Config:
    """The bundled model's configuration."""
    return Qwen3Config(
        vocab_size=vocab_size, hidden_size=HIDDEN, intermediate_size=512, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, head_dim=HEAD, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e7}, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, attention_dropout=0.0, rms_norm_eps=1e-6,
    )


def token_vectors(tokenizer, meanings, dims: int = CONTENT):
    """What a token's place in the residual stream says of its meaning, unit length: its vector in the
    bag of tokens (`mini.bag`), then the main axes of MiniLM's own word vectors, which tell words apart."""
    strings = [tokenizer.decode([i]).strip() for i in range(tokenizer.get_vocab_size())]
    static = teacher.word_pieces(strings)
    main = np.linalg.svd(static - static.mean(0), full_matrices=False)[2]
    spelled = static @ main[: dims - MEANING].T
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    return unit(np.concatenate([unit(meanings), 0.5 * unit(spelled)], 1))


def rarity(encoder, texts, vocab_size: int) -> np.ndarray:
    """How rare each token is in texts, from 0 (everywhere) to 1 (nowhere)."""
    seen, total = np.ones(vocab_size), 1
    for text in texts:
        seen[list(set(encoder.text(text)))] += 1
        total += 1
    idf = np.log((total + 1) / seen)
    return idf / idf.max()


@torch.no_grad()
def start(encoder, vectors, importance, rare, seed: int = 0, layers: int = 6) -> Qwen3ForCausalLM:
    """A fresh model in the initial state described above."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config(len(vectors), layers))
    table = model.model.embed_tokens.weight
    table.normal_(0, 0.02)
    table[:, :CONTENT] = 2 * torch.tensor(vectors)
    table[:, CONST] = 1.0
    table[:, RARITY] = torch.tensor(rare) * 1.6
    table[:, IMPORTANCE] = torch.tensor(importance)
    control = [encoder.rubric, encoder.query, encoder.document, encoder.answer]
    for place, token in enumerate(control):
        table[token, :CONTENT] = 0
        table[token, FLAGS + place] = 2.0
    for token in [encoder.pad, encoder.end, *encoder.grades]:
        table[token] = torch.randn(HIDDEN) * 0.02
    model.model.norm.weight.fill_(0.2)
    for layer in model.model.layers:
        _quiet(layer)
    _part_of_prompt(model.model.layers[0].self_attn)
    for layer in model.model.layers[1:3]:
        _word_matching(layer.self_attn)
    _gathering(model.model.layers[-3].self_attn)
    _comparing(model.model.layers[-2].self_attn)
    _reading(model, encoder.grades)
    copying(model, table[encoder.explanation("intent")[0]])
    telling(model, encoder)
    return model


def _quiet(layer) -> None:
    for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
        matrix.weight.normal_(0, 0.0005)
    for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj,
                   layer.mlp.gate_proj, layer.mlp.up_proj):
        matrix.weight.normal_(0, 0.04)


def _part_of_prompt(attention) -> None:
    """Heads 0 and 1 look at the control tokens passed so far and write which ones they were.

    SEEN_DOC is 0 before the document and 1/2 after its start; SEEN_QUERY is 1/2 after the first
    query's start and 2/3 after the second's (in units of one control token's value).
    """
    first, second = SLOW[-1], SLOW[-2]
    for head, flag, out in ((0, FLAGS + 2, SEEN_DOC), (1, FLAGS + 1, SEEN_QUERY)):
        base = head * HEAD
        for matrix in (attention.q_proj, attention.k_proj, attention.v_proj):
            matrix.weight[base : base + HEAD] *= 0.05
        attention.q_proj.weight[base + first, CONST] = 4.0
        attention.k_proj.weight[base + second, CONST] = 1.0
        attention.k_proj.weight[base + first, [FLAGS, flag]] = 4.0
        attention.v_proj.weight[base, flag] = 1.0
        attention.o_proj.weight[out, base] = 0.5
    attention.q_norm.weight.fill_(1.5)
    attention.k_norm.weight.fill_(1.5)


def _word_matching(attention) -> None:
    """Every head compares meanings; heads 0 to 2 look only inside the document, rest on the
    `<|document|>` token where nothing there is alike, and write how much was found."""
    slow, share = SLOW[:36], CONTENT // 4
    for head in range(4):
        base = head * HEAD
        mix = torch.zeros(len(slow), HIDDEN)
        mix[:, :CONTENT] = torch.randn(len(slow), CONTENT) / len(slow) ** 0.5
        for i in range(len(slow)):  # each head sees its own share of the axes best
            mix[i, (head * share + i) % CONTENT] += 0.6
        rows = [base + d for d in slow]
        attention.q_proj.weight[base : base + HEAD] *= 0.1
        attention.k_proj.weight[base : base + HEAD] *= 0.1
        attention.q_proj.weight[rows] = mix
        attention.k_proj.weight[rows] = mix
        if head < 3:
            _only_inside(attention, base)
    attention.q_norm.weight.fill_(2.2)
    attention.k_norm.weight.fill_(2.2)


def _only_inside(attention, base: int) -> None:
    flag = base + SLOW[-1]
    attention.q_proj.weight[flag, CONST] = 1.8
    attention.k_proj.weight[flag, SEEN_DOC] = 1.5
    attention.k_proj.weight[flag, SEEN_QUERY] = -4.5
    attention.k_proj.weight[flag, CONST] = 1.5 * 1.25 * UNIT
    rest = base + SLOW[-2]
    attention.q_proj.weight[rest, CONST] = 1.0
    attention.k_proj.weight[rest, FLAGS + 2] = 2.0
    attention.v_proj.weight[base] = 0.0
    attention.v_proj.weight[base, SEEN_DOC] = 0.3
    attention.v_proj.weight[base, FLAGS + 2] = -0.43
    attention.o_proj.weight[MATCH, base] = 0.25


def meaning_rows() -> list[int]:
    """Rows of q_proj and k_proj that hold the teacher's axes: axis 4 i + h is i-th in head h."""
    return [(axis % 4) * HEAD + SLOW[axis // 4] for axis in range(MEANING)]


def _gathering(attention) -> None:
    """Two tokens take the mean meaning of a text into their own, by its tokens' importance: the second
    `<|query|>` that of the document, and `<|answer|>` that of the first query. Others look at `<|rubric|>`."""
    rest, document, query, weight, steady = (SLOW[-i] for i in range(1, 6))
    share, half = CONTENT // 4, 0.5 * UNIT  # half: what SEEN_DOC and SEEN_QUERY are after one start
    for head in range(4):
        _clear(attention, head)
        base = head * HEAD
        q, k = attention.q_proj.weight, attention.k_proj.weight
        q[base + rest, CONST], k[base + rest, FLAGS] = 0.3, 1.0
        q[base + document, FLAGS + 1], q[base + query, FLAGS + 3] = 0.5, 0.5
        q[base + weight, [FLAGS + 1, FLAGS + 3]] = 0.25
        k[base + document, SEEN_DOC] = 2 / half  # 1 in the document, -1 before it
        k[base + query, SEEN_QUERY], k[base + query, SEEN_DOC] = 2 / half, -2 / half  # 1 in the first query
        k[[base + document, base + query], CONST] = -1.0
        k[base + weight, IMPORTANCE], k[base + steady, CONST] = 0.34, 1.0
        for i in range(share):
            attention.v_proj.weight[base + i, head * share + i] = 1.0
            attention.o_proj.weight[head * share + i, base + i] = 1.5
    for gain in (attention.q_norm.weight, attention.k_norm.weight):
        gain.fill_(1.2)


def _comparing(attention) -> None:
    """In the last layer but one the answer compares the query with the document as a whole.

    Training makes q_proj at `<|answer|>` the teacher's vector of the query and k_proj at the second
    `<|query|>` that of the document; each head weighs that token against the first `<|query|>`,
    so it finds a smooth step of a cosine, and writes it where the grades are read.
    """
    only, sink = SLOW[-1], SLOW[-2]
    rows = meaning_rows()
    for matrix in (attention.q_proj, attention.k_proj):
        matrix.weight[:] = 0.0
        matrix.weight[rows, range(MEANING)] = 1.0
    for base in range(0, 4 * HEAD, HEAD):
        attention.q_proj.weight[base + only, CONST] = 1.0
        attention.k_proj.weight[base + only, CONST] = -1.0
        attention.k_proj.weight[base + only, FLAGS + 1] = 1.0
        attention.q_proj.weight[base + sink, CONST] = 0.5
        attention.k_proj.weight[base + sink, FLAGS + 1] = 0.5
        attention.k_proj.weight[base + sink, SEEN_DOC] = -0.4
        attention.v_proj.weight[base] = 0.0
        attention.v_proj.weight[base, CONST] = -1.0
        attention.v_proj.weight[base, SEEN_DOC] = 0.67
        attention.o_proj.weight[READ, base] = 0.15
    for gain in (attention.q_norm.weight, attention.k_norm.weight):
        gain.fill_(1.5)


def _reading(model, grades) -> None:
    """In the last layer the answer looks at the repeated query's words, rare ones first, and
    reads how well they were matched; grades lie along that direction."""
    attention = model.model.layers[-1].self_attn
    first, second, third = SLOW[-1], SLOW[-2], SLOW[-3]
    for base in (0, HEAD):
        for matrix in (attention.q_proj, attention.k_proj):
            matrix.weight[base : base + HEAD] *= 0.1
        attention.q_proj.weight[base + first, CONST] = 4.0
        attention.q_proj.weight[base + third, CONST] = 2.5
        attention.k_proj.weight[base + first, SEEN_QUERY] = 20.0
        attention.k_proj.weight[base + first, CONST] = -11.3 * UNIT
        attention.k_proj.weight[base + first, FLAGS : FLAGS + 4] = -6.0
        attention.k_proj.weight[base + second, CONST] = 1.5
        attention.k_proj.weight[base + third, RARITY] = 5.0
        attention.v_proj.weight[base] = 0.0
        attention.v_proj.weight[base, MATCH] = 1.0
        attention.o_proj.weight[READ, base] = 0.5
    attention.q_norm.weight.fill_(1.5)
    attention.k_norm.weight.fill_(1.5)
    for place, token in enumerate(grades):
        model.model.embed_tokens.weight[token, READ] = (place - 1.5) * READ_GAIN
        model.model.embed_tokens.weight[token, CONST] = -(place - 1.5) * READ_GAIN * READ_MIDDLE


@torch.no_grad()
def copying(model, intent) -> None:
    """Let explanations repeat the query: layer 0's head 2 tells a token which one came before it,
    and the last layer's heads 2 and 3 look for "came after my word" in the first query and bring
    what stands there. `intent` is that token's vector: after it the copy begins."""
    axes = torch.linalg.qr(torch.randn(CONTENT, 63))[0].T
    first, last = model.model.layers[0].self_attn, model.model.layers[-1].self_attn
    _clear(first, 2)
    base = 2 * HEAD
    for i in range(4):
        angle = torch.tensor(1e7 ** (-i / 32))
        first.q_proj.weight[base + i, CONST] = 1.0
        first.k_proj.weight[base + i, CONST] = torch.cos(angle)
        first.k_proj.weight[base + 32 + i, CONST] = torch.sin(angle)
    for gain in (first.q_norm.weight, first.k_norm.weight):
        gain[0:4], gain[32:36] = 3.0, 3.0
    first.v_proj.weight[base : base + 63, :CONTENT] = axes
    first.v_proj.weight[base + 63, FLAGS + 1] = 1.0
    for i in range(HEAD):
        first.o_proj.weight[PREVIOUS + i] = 0.0
        first.o_proj.weight[PREVIOUS + i, base + i] = 0.35
    begin = axes @ (intent[:CONTENT] / intent[:CONTENT].norm())
    for head in (2, 3):
        _clear(last, head)
        _follow(last, head * HEAD, axes, begin)
    for gain in (last.q_norm.weight, last.k_norm.weight):
        gain[12:32], gain[44:61] = 2.5, 2.5


def _clear(attention, head: int) -> None:
    rows = slice(head * HEAD, (head + 1) * HEAD)
    for matrix in (attention.q_proj, attention.k_proj, attention.v_proj):
        matrix.weight[rows] = 0.0
    attention.o_proj.weight[:, rows] = 0.0


def _follow(attention, base: int, axes, begin) -> None:
    q, k, v, o = (getattr(attention, f"{n}_proj").weight for n in "qkvo")
    for i, d in enumerate(list(range(12, 29)) + list(range(44, 61))):
        q[base + d, :CONTENT] = 1.5 * axes[i]
        k[base + d, PREVIOUS + i] = 0.75
    inside, rest, start = base + 31, base + 30, base + 29
    q[inside, CONST] = 0.9  # only the first query, and the <|document|> token that ends it
    k[inside, CONST], k[inside, SEEN_DOC], k[inside, FLAGS + 2] = 1.0, -0.7, 1.0
    q[rest, CONST] = 0.6  # the <|rubric|> token: nothing to repeat
    k[rest, FLAGS] = 1.0
    q[start, PREVIOUS : PREVIOUS + 63] = 0.8 * begin
    k[start, PREVIOUS + 63] = 0.3
    part = 0 if base == 2 * HEAD else HEAD
    for i in range(HEAD):
        v[base + i, part + i] = 1.0
        o[part + i, base + i] = 3.5


@torch.no_grad()
def telling(model, encoder) -> None:
    """Let explanations know the grade and the spaces: layer 0's head 3 tells every token after
    the grade which one it was; tokens carry whether a space stands before them."""
    table, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn
    base, first, second = 3 * HEAD, SLOW[-1], SLOW[-2]
    _clear(attention, 3)
    attention.q_proj.weight[base + first, CONST] = 4.0
    attention.k_proj.weight[base + first, FLAGS] = 2.0
    attention.k_proj.weight[base + second, CONST] = 1.0
    for place, token in enumerate(encoder.grades):
        table[:, GRADE + place] = 0.0
        table[token, GRADE + place] = 12.0 if place in (0, 3) else 4.0  # among their other parts
        attention.k_proj.weight[base + first, GRADE + place] = 12.0
        attention.v_proj.weight[base + place, GRADE + place] = 1.0
        attention.o_proj.weight[GRADE + place] = 0.0
        attention.o_proj.weight[GRADE + place, base + place] = 0.4
    for token in range(len(table)):
        spaced = (encoder.plain.id_to_token(token) or "").startswith("\u0120")
        table[token, SPACE] = 0.7 if spaced else -0.7
    table[: encoder.grades[-1] + 1, SPACE] = 0.0
    last, row = model.model.layers[-1].self_attn, 3 * HEAD + 63
    last.v_proj.weight[row] = 0.0
    last.v_proj.weight[row, SPACE] = 1.0
    last.o_proj.weight[:, row] = 0.0
    last.o_proj.weight[SPACE, row] = 3.5
