"""Supervised: the grade is the first token, a structured explanation follows.

The loss has parts with weights of their own (`config.Loss`): cross entropy of the grade, over the
grades; the probability that any grade is said at all; cross entropy of the explanation's tokens, a
mean over each explanation, so that long ones do not count more; and, where documents of a query are
together, a listwise divergence between their expected grades (ListNet, Cao et al. 2007).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recipe.config import Loss
from recipe.judgments import Judgment
from recipe.rows import Row, chosen, logits, padded


def supervised(run, units: list[list[Row]], whole: list[list[Judgment]], _step: int):
    """The loss of the stage `sft` (see `loop.Run`)."""
    rows = [row for unit in units for row in unit]
    out = logits(run.model, [r.prompt for r in rows], [r.tail for r in rows])
    target = torch.tensor([r.judgment.target for r in rows])
    return parts(out, units, whole, target, run.stage.loss, run.profile)


def total_weight(whole: list[list[Judgment]]) -> float:
    """Of all judgments of a step."""
    return max(sum(j.weight for unit in whole for j in unit), 1e-9)


def mean_weight(judgments) -> float:
    """What the list of a unit's documents counts."""
    found = [j.weight for j in judgments]
    return sum(found) / len(found)


def parts(out, units: list[list[Row]], whole: list[list[Judgment]], target, weights: Loss, profile):
    """The supervised loss of `logits` of rows whose grades should be `target` (rows, grades)."""
    rows = [row for unit in units for row in unit]
    device = out.device
    weight = torch.tensor([r.judgment.weight for r in rows], device=device)
    total = total_weight(whole)
    target = target.to(device)
    answer = out[:, 0]
    grades = F.log_softmax(answer[:, profile.grade_ids], -1)
    said = -(target * grades).sum(-1)
    outside = answer.logsumexp(-1) - answer[:, profile.grade_ids].logsumexp(-1)
    loss = ((weights.grade * said + weights.outside * outside) * weight).sum() / total
    figures = {"grade": ((said * weight).sum(), weight.sum()), "outside": ((outside * weight).sum(), weight.sum())}
    told = [r for r in rows if r.tail]
    if weights.explanation and told:
        each = explanation(out, rows, weights, profile)
        share = weight * torch.tensor([bool(r.tail) for r in rows], device=device)
        of = total_weight([[j for j in unit if j.explanation is not None] for unit in whole])
        loss = loss + weights.explanation * (each * share).sum() / of
        figures["explanation"] = ((each * share).sum(), share.sum())
    if weights.rank:
        divergences = listwise(grades, target, weight, [len(u) for u in units], profile, weights.rank_scale)
        counts = torch.tensor([mean_weight(r.judgment for r in u) for u in units], device=device)
        of = max(sum(map(mean_weight, whole)), 1e-9)
        loss = loss + weights.rank * (divergences * counts).sum() / of
        several = torch.tensor([len(u) > 1 for u in units], device=device)
        figures["rank"] = ((divergences * counts).sum(), (counts * several).sum())
    return loss, {k: (float(torch.as_tensor(a).detach()), float(n)) for k, (a, n) in figures.items()}


def explanation(out, rows: list[Row], weights: Loss, profile):
    """Cross entropy (rows) of each row's explanation, a mean over its tokens; 0 where there is none."""
    picked, there = chosen(torch.log_softmax(out, -1), [r.tail or [0] for r in rows], 1)
    names = profile.sections or ["text"]
    of = [weights.sections.get(n, 1.0) for n in names]
    weight = padded([[of[s] for s in r.sections] for r in rows], picked.shape[1], out.device) * there
    return -(picked * weight).sum(-1) / weight.sum(-1).clamp(min=1e-9)


def listwise(grades, target, weight, sizes: list[int], profile, scale: float):
    """KL(target || model) of the documents of each unit, by their expected grades in [0, 1]. A document is in
    its list as often as its weight says."""
    values = torch.tensor(profile.values, device=grades.device)
    low, high = values.min(), values.max()
    often = weight.clamp(min=1e-9).log()
    got, wanted = (((p @ values - low) / (high - low) * scale + often).split(sizes) for p in (grades.exp(), target))
    each = [F.kl_div(F.log_softmax(g, -1), F.log_softmax(w, -1), log_target=True, reduction="sum")
            for g, w in zip(got, wanted)]
    return torch.stack(each)
