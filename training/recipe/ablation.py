"""The stage `ablation`: does the supervised loss keep what reinforcement alone forgets?

Three runs from one start, on the same steps and batches: supervised alone, reinforcement alone, and
both. Runs are kept under `out`; one that is finished is not run again. Writes `table.md` and a picture.
"""

from __future__ import annotations

import copy
import json
import statistics
from pathlib import Path

from recipe import loop, picture
from recipe.config import AblationStage
from recipe.rl import Reinforcement

ARMS = ("supervised", "reinforcement", "balanced")
FIGURES = ("accuracy", "balanced_accuracy", "recall_", "right_", "share_", "loss", "ece", "entropy", "forward_kl", "reverse_kl",
           "forward_kl_reference", "reverse_kl_reference", "ndcg_10", "claims_true", "words_listed")


def ablation(stage: AblationStage) -> dict[str, list[list[dict]]]:
    """Runs what is missing, writes table and picture; returns held-out rows by arm and seed."""
    found: dict[str, list[list[dict]]] = {}
    for seed in stage.seeds:
        for arm in ARMS:
            out = Path(stage.out) / f"{arm}-{seed}"
            if not (out / "model").exists():
                loop.Run(of(stage, arm, seed, out), Reinforcement()).fit()
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            found.setdefault(arm, []).append(rows)
    text = table(found)
    (Path(stage.out) / "table.md").write_text(text)
    print(text)
    draw(Path(stage.picture or Path(stage.out) / "ablation.svg"), found)
    return found


def of(stage: AblationStage, arm: str, seed: int, out: Path) -> AblationStage:
    """The stage of one arm: both losses' weights stay what they are, or become none."""
    one = copy.deepcopy(stage)
    one.out, one.optim.seed = str(out), seed
    if arm == "supervised":
        one.rl.weight, one.rl.supervised = 0.0, 1.0
    if arm == "reinforcement":
        one.rl.supervised = 0.0
    return one


def held(rows: list[dict]) -> list[dict]:
    """The held-out rows of a run, the first of them the start."""
    return [row for row in rows if row.get("held")]


def table(found: dict[str, list[list[dict]]]) -> str:
    """Figures at the end of each arm, mean and spread over seeds, beside the start's."""
    start = held(next(iter(found.values()))[0])[0]
    names = [n for n in start if any(n == f or f.endswith("_") and n.startswith(f) for f in FIGURES)]
    lines = ["| held out | start | " + " | ".join(found) + " |", "|---" * (2 + len(found)) + "|"]
    for name in names:
        cells = [told([held(rows)[-1][name] for rows in runs]) for runs in found.values()]
        lines.append(f"| {name} | {start[name]:.3f} | " + " | ".join(cells) + " |")
    last = {arm: [[r for r in rows if not r.get("held")] for rows in runs] for arm, runs in found.items()}
    costs = {"steps": lambda rows: rows[-1]["step"], "tokens read": lambda rows: rows[-1]["tokens"],
             "tokens sampled a pass": lambda rows: rows[-1].get("tokens_sampled", 0), "seconds": lambda rows: rows[-1]["seconds"]}
    for name, cost in costs.items():
        cells = [f"{statistics.mean(cost(rows) for rows in runs):.0f}" for runs in last.values()]
        lines.append(f"| {name} | | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def told(values: list[float]) -> str:
    """A mean, and half the range where there are several."""
    mean = statistics.mean(values)
    return f"{mean:.3f}" + (f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else "")


def draw(path: Path, found: dict[str, list[list[dict]]]) -> None:
    """Held-out figures over steps, a line for each arm: the mean over seeds."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    start = held(next(iter(found.values()))[0])[0]
    for name in (n for n in start if any(n == f or f.endswith("_") and n.startswith(f) for f in FIGURES)):
        for arm, runs in found.items():
            by_step: dict[int, list[float]] = {}
            for row in (row for rows in runs for row in held(rows)):
                by_step.setdefault(row["step"], []).append(row[name])
            charts.setdefault(name.replace("_", " "), {})[arm] = [(s, statistics.mean(v)) for s, v in by_step.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.panels(path, charts)
