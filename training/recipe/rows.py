"""Sequences as the model reads them, and what it says at the places that matter.

Prompts are padded on the left and what follows them on the right, so that every answer position is
in one column, and logits are computed from that column on alone. The place of a token does not count
its padding: the ids and positions are the server's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recipe.judgments import Judgment
from recipe.profile import Profile


@dataclass
class Row:
    """A judgment as token ids."""

    judgment: Judgment
    prompt: list[int]
    tail: list[int]  # the judged grade and its explanation with its end; empty if there is none
    sections: list[int]  # for each token after the grade, the place of its section


def encode(judgments: list[Judgment], profile: Profile, max_tokens: int = 0) -> list[Row]:
    """Rows of judgments. ValueError naming path, line, query and limit if a query leaves no room for its document."""
    rows = []
    for j in judgments:
        at = f"{j.place}: " if j.place else ""
        try:
            prompt = profile.prompt(j.query, j.document, j.instruction, max_tokens or None).ids
        except ValueError as problem:
            raise ValueError(f"{at}query_id {j.query_id!r}: {problem}") from None
        told = profile.explanation(j.explanation) if j.explanation is not None else []
        if told and len(told) > profile.explain_tokens:
            raise ValueError(f"{at}query_id {j.query_id!r}, doc_id {j.doc_id!r}: an explanation of {len(told)} tokens, "
                             f"over explain.max_tokens {profile.explain_tokens}")
        tail = [profile.grade_ids[j.best], *told] if told else []
        rows.append(Row(j, prompt, tail, section_places(told, profile)))
    return rows


def section_places(told: list[int], profile: Profile) -> list[int]:
    """For each token of an explanation the place of its section: sections are lines."""
    places, at = [], 0
    for token in told:
        text = profile.tokens.decode([token])
        at += text.count("\n")
        places.append(min(at, max(len(profile.sections) - 1, 0)))
    return places


def logits(model, prompts: list[list[int]], tails: list[list[int]]):
    """Logits (rows, 1 + longest tail, vocabulary), float32: at [:, 0] what the prompt is answered with,
    at [:, j] what follows the tail's token j - 1."""
    device = next(model.parameters()).device
    wide, long = max(map(len, prompts)), max(map(len, tails), default=0)
    ids = torch.zeros(len(prompts), wide + long, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, (prompt, tail) in enumerate(zip(prompts, tails)):
        ids[r, wide - len(prompt) : wide + len(tail)] = torch.tensor(prompt + tail)
        mask[r, wide - len(prompt) : wide + len(tail)] = 1
    out = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(device), logits_to_keep=long + 1)
    return out.logits.float()


def padded(values: list[list[float]], long: int, device=None):
    """Rows of numbers as a tensor (rows, long), zero where a row has none."""
    out = torch.zeros(len(values), long)
    for r, row in enumerate(values):
        out[r, : len(row)] = torch.tensor(row, dtype=torch.float)
    return out.to(device)


def chosen(log_probs, tails: list[list[int]], first: int):
    """Log-probabilities (rows, longest tail - first) of a tail's tokens from `first` on, and where there is one."""
    long = log_probs.shape[1] - 1 - first
    tokens = torch.zeros(len(tails), long, dtype=torch.long)
    there = torch.zeros(len(tails), long)
    for r, tail in enumerate(tails):
        tokens[r, : len(tail) - first] = torch.tensor(tail[first:], dtype=torch.long)
        there[r, : len(tail) - first] = 1
    device = log_probs.device
    picked = log_probs[:, first:-1].gather(-1, tokens.to(device).unsqueeze(-1)).squeeze(-1)
    return picked, there.to(device)


@torch.no_grad()
def sample(model, prompts: list[list[int]], first: list[int], stop: int, most: int, temperature: float,
           generator=None, together=None, guards=None) -> list[list[int]]:
    """Tails that begin with `first`, each ended by `stop` or `most` tokens after it; temperature 0 is greedy.

    `together` says whether all processes are done (collective forward passes), from whether this one is;
    `guards` may replace each token, as the server does."""
    device = next(model.parameters()).device
    wide, tails = max(map(len, prompts)) + 1, [[grade] for grade in first]
    ids = torch.zeros(len(prompts), wide, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, prompt in enumerate(prompts):
        ids[r, wide - 1 - len(prompt) :] = torch.tensor([*prompt, first[r]])
        mask[r, wide - 1 - len(prompt) :] = 1
    ids, mask, cache = ids.to(device), mask.to(device), None
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    open_rows = set(range(len(prompts)))
    for _ in range(most):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                    use_cache=True, logits_to_keep=1)
        cache, last = out.past_key_values, out.logits[:, -1].float()
        token = last.argmax(-1) if temperature == 0 else torch.multinomial(
            torch.softmax(last / temperature, -1), 1, generator=generator).squeeze(-1)
        told = token.tolist()
        for r in sorted(open_rows):
            if guards is not None:
                told[r] = guards[r].take(told[r])
            tails[r].append(told[r])
            if told[r] == stop:
                open_rows.discard(r)
        if together(not open_rows) if together else not open_rows:
            break
        ids = torch.tensor(told, device=device).unsqueeze(-1)
        mask = torch.cat([mask, torch.ones_like(ids)], -1)
        positions = positions[:, -1:] + 1
    return tails
