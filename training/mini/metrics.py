"""Ranking metrics and their uncertainty: nDCG@k, paired bootstrap, bounds."""

from __future__ import annotations

import hashlib
import math

import numpy as np


def tie_key(doc_id: str) -> str:
    """A fixed pseudo-random key, so that equal scores are not ordered by the file."""
    return hashlib.md5(doc_id.encode()).hexdigest()


def ndcg(scores, gains, k: int = 10, doc_ids=None) -> float | None:
    """nDCG@k of documents with `scores` and `gains`; None where nothing is relevant."""
    keys = [tie_key(d) for d in doc_ids] if doc_ids is not None else list(range(len(scores)))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], keys[i]))
    ideal = sorted(gains, reverse=True)
    best = sum(g / math.log2(r + 2) for r, g in enumerate(ideal[:k]))
    if best <= 0:
        return None
    return sum(gains[i] / math.log2(r + 2) for r, i in enumerate(order[:k])) / best


def bootstrap_difference(a, b, rounds: int = 5000, seed: int = 0):
    """Mean of a - b over queries with its 95 % paired bootstrap interval."""
    diff = np.asarray(a, float) - np.asarray(b, float)
    rng = np.random.default_rng(seed)
    means = diff[rng.integers(0, len(diff), (rounds, len(diff)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(diff.mean()), float(low), float(high)


def bootstrap_macro(sets: dict, rounds: int = 5000, seed: int = 0):
    """Like bootstrap_difference, for the macro average over sets of (a, b) lists."""
    rng = np.random.default_rng(seed)
    total, samples = 0.0, np.zeros(rounds)
    for a, b in sets.values():
        diff = np.asarray(a, float) - np.asarray(b, float)
        total += diff.mean() / len(sets)
        picks = rng.integers(0, len(diff), (rounds, len(diff)))
        samples += diff[picks].mean(1) / len(sets)
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(total), float(low), float(high)
