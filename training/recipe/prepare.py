"""The stage `data`: checks judgments, brings them into the one shape, and says what is in them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

from recipe import judgments
from recipe.config import DataStage
from recipe.profile import Profile
from recipe.rows import encode


def prepare(stage: DataStage) -> dict:
    """Writes `stage.out` and prints its counts, which it returns."""
    profile = Profile.load(stage.model.path, stage.model.profile or None)
    found = judgments.read(stage.inputs, profile, stage.grades)
    if stage.folds:
        found = [j for j in found if j.fold in stage.folds]
    if not found:
        raise ValueError(f"folds {stage.folds}: no judgments are of them")
    if stage.instruction:
        found = [j if j.instruction is not None else dataclasses.replace(j, instruction=stage.instruction) for j in found]
    if stage.explanations not in ("file", "rule"):
        raise ValueError(f"explanations: {stage.explanations!r} is neither file nor rule")
    if stage.explanations == "rule":
        found = judgments.explained(found, profile)
    rows = encode(found, profile)
    judgments.write(stage.out, found, profile)
    grades = Counter(profile.grades[j.best].name for j in found)
    lengths = sorted(len(r.prompt) for r in rows)
    counts = {
        "judgments": len(found), "queries": len({j.query_id for j in found}),
        "grades": {g.name: grades[g.name] for g in profile.grades}, "folds": dict(sorted(Counter(j.fold for j in found).items())),
        "explained": sum(j.explanation is not None for j in found),
        "soft": sum(max(j.target) < 1 for j in found),
        "prompt_tokens": {"median": lengths[len(lengths) // 2], "longest": lengths[-1], "limit": profile.max_tokens},
    }
    print(json.dumps(counts))
    return counts
