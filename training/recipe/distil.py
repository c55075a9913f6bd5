"""Distillation: the student learns a teacher's distribution over the grades.

The distributions lie in the judgments; `teach` writes them. Softened by a temperature, as Hinton et
al. (2015) do, with the gradient kept at one size by its square. What the teacher explains, where it
does, is learned as text (Kim & Rush 2016).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from recipe import sft
from recipe.judgments import Judgment, spread
from recipe.rows import Row, logits


def distilled(run, units: list[list[Row]], whole: list[list[Judgment]], _step: int):
    """The loss of the stage `distil` (see `loop.Run`)."""
    rows, profile, how, weights = [r for u in units for r in u], run.profile, run.stage.distil, run.stage.loss
    out = logits(run.model, [r.prompt for r in rows], [r.tail for r in rows])
    soft = torch.tensor([r.judgment.target for r in rows], device=out.device)
    loss, figures = sft.parts(out, units, whole, soft, dataclasses.replace(weights, grade=0.0), profile)
    weight = torch.tensor([r.judgment.weight for r in rows], device=out.device)
    total = sft.total_weight(whole)
    answer = out[:, 0][:, profile.grade_ids]
    softened = torch.softmax(soft.clamp(min=1e-6).log() / how.temperature, -1)
    far = F.kl_div(F.log_softmax(answer / how.temperature, -1), softened, reduction="none").sum(-1)
    judged = torch.tensor([spread(r.judgment.value, profile.values) if r.judgment.value is not None else
                           (0.0,) * len(profile.grades) for r in rows], device=out.device)
    known = judged.sum(-1)
    hard = -(judged * F.log_softmax(answer, -1)).sum(-1)
    each = (1 - how.judged * known) * how.temperature**2 * far + how.judged * hard
    figures["teacher"] = (float((far.detach() * weight).sum()), float(weight.sum()))
    figures["judged"] = (float((hard.detach() * weight).sum()), float((known * weight).sum()))
    return loss + weights.grade * (each * weight).sum() / total, figures
