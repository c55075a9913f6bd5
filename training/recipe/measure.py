"""What a model is worth on held-out judgments, and how far it went from where it began."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch

from recipe.judgments import Judgment, spread
from recipe.profile import Profile
from recipe.rows import Row, logits, sample

BINS = 10


@torch.no_grad()
def distributions(model, rows: list[Row], profile: Profile, batch: int = 32):
    """Grade probabilities (rows, grades), and the probability of any grade among all tokens (rows)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    out, mass = np.zeros((len(rows), len(profile.grades))), np.zeros(len(rows))
    for at in range(0, len(order), batch):
        some = order[at : at + batch]
        found = logits(model, [rows[i].prompt for i in some], [[]] * len(some))[:, 0]
        grades = found[:, profile.grade_ids]
        out[some] = torch.softmax(grades.cpu().double(), -1).numpy()
        mass[some] = (grades.logsumexp(-1) - found.logsumexp(-1)).exp().double().cpu().numpy()
    return out, mass


def entropy(p) -> np.ndarray:
    """Entropy of distributions in the last dimension, in nats."""
    return -(p * np.log(np.maximum(p, 1e-12))).sum(-1)


def divergence(p, q) -> np.ndarray:
    """KL(p || q) of distributions in the last dimension, in nats."""
    return (p * (np.log(np.maximum(p, 1e-12)) - np.log(np.maximum(q, 1e-12)))).sum(-1)


def calibration_error(said, true) -> float:
    """Mean distance of what was said and what was true over ten bins of what was said (Guo et al. 2017)."""
    said, true = np.asarray(said, float), np.asarray(true, float)
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    gaps = [abs((said[place == b] - true[place == b]).sum()) for b in range(BINS)]
    return float(sum(gaps) / max(1, len(said)))


def ndcg(scores, gains, keys, k: int = 10) -> float | None:
    """nDCG@k with linear gains; equal scores by key; None where nothing is relevant."""
    best = sum(g / math.log2(r + 2) for r, g in enumerate(sorted(gains, reverse=True)[:k]))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], hashlib.md5(keys[i].encode()).hexdigest()))
    return sum(gains[i] / math.log2(r + 2) for r, i in enumerate(order[:k])) / best if best > 0 else None


def judged(judgment: Judgment, profile: Profile) -> tuple[float, ...]:
    """What a judgment is measured by: the judged grade, whatever a teacher says beside it."""
    return judgment.target if judgment.value is None else spread(judgment.value, profile.values)


def tempered(p, temperature: float) -> np.ndarray:
    """Distributions as if their logits had been divided by a temperature."""
    out = np.power(np.asarray(p, float), 1 / temperature)
    return out / out.sum(-1, keepdims=True)


def served(p, profile: Profile) -> np.ndarray:
    """The scores that a server reads from grade probabilities, [calibration] applied."""
    values = np.array(profile.values)
    score = (tempered(p, profile.temperature) @ values - values.min()) / (values.max() - values.min())
    return np.interp(score, *np.transpose(profile.points)) if profile.points else score


def grading(p: np.ndarray, rows: list[Row], profile: Profile) -> dict[str, float]:
    """How well grades are told: recall by grade, mean probability of the judged grade by grade (`right_`),
    mean probability of each grade (`share_`), calibration, likelihood, ranking; the last and `ece_score`
    by the scores that are served.

    `forward_kl` and `reverse_kl` are between the judgments' share of each grade and the model's mean
    probability of it: the model's that forgets a rare grade shows in the first."""
    values = np.array(profile.values)
    low, high = values.min(), values.max()
    target = np.array([judged(r.judgment, profile) for r in rows])
    best, said = np.array([r.judgment.best for r in rows]), p.argmax(-1)
    score, gain = served(p, profile), (target @ values - low) / (high - low)
    recall = {g.name: float(np.mean(said[best == i] == i)) for i, g in enumerate(profile.grades) if (best == i).any()}
    right = {g.name: float(p[best == i, i].mean()) for i, g in enumerate(profile.grades) if (best == i).any()}
    shares, mean = target.mean(0), p.mean(0)
    queries: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        queries.setdefault(row.judgment.query_id, []).append(i)
    ranked = [ndcg(score[i], gain[i], [rows[j].judgment.doc_id for j in i]) for i in queries.values() if len(i) > 1]
    ranked = [x for x in ranked if x is not None]
    return {
        "accuracy": float(np.mean(said == best)), "balanced_accuracy": float(np.mean(list(recall.values()))),
        **{f"recall_{name}": x for name, x in recall.items()},
        **{f"right_{name}": x for name, x in right.items()},
        **{f"share_{g.name}": float(mean[i]) for i, g in enumerate(profile.grades)},
        "loss": float(-(target * np.log(np.maximum(p, 1e-12))).sum(-1).mean()), "entropy": float(entropy(p).mean()),
        "forward_kl": float(divergence(shares, mean)), "reverse_kl": float(divergence(mean, shares)),
        "ece": calibration_error(p.max(-1), said == best), "ece_score": calibration_error(score, gain),
        **({"ndcg_10": float(np.mean(ranked))} if ranked else {}),
    }


def from_reference(p: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Mean divergences from the reference's distributions: forward KL(reference || model), and reverse."""
    return {"forward_kl_reference": float(divergence(reference, p).mean()),
            "reverse_kl_reference": float(divergence(p, reference).mean())}


def told(model, rows: list[Row], profile: Profile, together=None) -> list[dict]:
    """Checks of the greedy explanations of the model's own grades, without the guard."""
    if profile.rule is None or not rows:
        return []
    p, _ = distributions(model, rows, profile)
    grades = p.argmax(-1).tolist()
    tails = sample(model, [r.prompt for r in rows], [profile.grade_ids[g] for g in grades], profile.stop,
                   profile.explain_tokens, 0.0, together=together)
    checks = []
    for row, grade, tail in zip(rows, grades, tails):
        text = profile.tokens.decode(tail[1:-1] if tail[-1] == profile.stop else tail[1:])
        shown = profile.render_document(row.judgment.document)
        checks.append(profile.rule.check(row.judgment.query, shown, grade, text))
    return checks


def explaining(checks: list[dict]) -> dict[str, float]:
    """Rates over checked explanations."""
    if not checks:
        return {}
    claims, due = sum(c["claims"] for c in checks), sum(sum(c["due"].values()) for c in checks)
    return {"claims_true": sum(c["true"] for c in checks) / claims,
            "well_formed": float(np.mean([c["well_formed"] for c in checks])),
            "words_listed": sum(sum(c["listed"].values()) for c in checks) / max(1, due)}
