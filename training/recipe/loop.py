"""The training loop of every stage: one process or many, resumable, told as it goes.

Accelerate runs it: `python -m recipe …` is one process, `accelerate launch … -m recipe …` many, with
DDP or FSDP as its own configuration says. Each process takes its share of a step's units; losses are
divided by what the whole batch has, so the gradient is that of one process whatever their number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import time
import unicodedata
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, set_seed
from transformers import AutoModelForCausalLM

from recipe import judgments, measure, picture
from recipe.config import Stage
from recipe.judgments import Judgment
from recipe.plan import Plan
from recipe.profile import Profile
from recipe.rows import Row, encode


class Run:
    """A stage while it runs: `loss` says what is learned from a step's rows.

    `loss(run, rows, whole, step)` takes units of rows (lists of rows of one query) of this process, the
    judgments of all units of the step, and the step's number; it returns the loss as a sum of parts, each divided by
    what `whole` has of it, and figures to tell by name, as (sum, count)."""

    def __init__(self, stage: Stage, loss, resume: bool = False):
        self.stage, self.loss, self.out = stage, loss, Path(stage.out)
        optim = stage.optim
        self.accelerator = Accelerator(mixed_precision=optim.precision)
        self.sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self.main, self.world, self.rank = (self.accelerator.is_main_process, self.accelerator.num_processes,
                                            self.accelerator.process_index)
        set_seed(optim.seed)
        self.profile = Profile.load(stage.model.path, stage.model.profile or None)
        self.train, self.held = load(stage, self.profile)
        self._check()
        lengths = [len(self.profile.render_document(j.document)) for j in self.train]  # about as their tokens
        self.plan = Plan(self.train, lengths, optim.batch, stage.data.group, optim.seed,
                         optim.steps, stage.data.curriculum)
        if self.plan.units_a_step % self.world:
            raise ValueError(f"optim.batch {optim.batch}: {self.plan.units_a_step} units a step cannot be shared "
                             f"by {self.world} processes")
        net = AutoModelForCausalLM.from_pretrained(stage.model.path, dtype=torch.float32)
        if optim.checkpointing:
            net.gradient_checkpointing_enable()
        self.reference = None  # grade distributions of the start on held-out rows
        self.model, self.optimizer = self.accelerator.prepare(net, adamw(net, optim))
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        if resume:
            self._resume()
        elif self.main:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "metrics.jsonl").write_text("")
            config = json.dumps(dataclasses.asdict(stage), indent=1)
            (self.out / "config.json").write_text(config + "\n")

    def _check(self) -> None:
        """Refuses what cannot be a row before anything is learned; each process looks at its share."""
        problem = ""
        try:
            for judgment in self.train[self.rank :: self.world]:
                encode([judgment], self.profile, self.stage.data.max_tokens)
        except ValueError as refused:
            problem = str(refused)
        problems = [p for p in gather_object([problem]) if p]
        if problems:
            raise ValueError(problems[0])

    @property
    def bare(self):
        """The model for passes without gradient: not wrapped, unless its weights are sharded."""
        return self.model if self.sharded else self.accelerator.unwrap_model(self.model)

    def together(self, done: bool) -> bool:
        """Whether all processes are done: sharded weights are gathered by all of them, step by step."""
        if not self.sharded:
            return done
        flag = torch.tensor([int(done)], device=self.accelerator.device)
        return int(self.accelerator.reduce(flag, "sum")) == self.world

    def fit(self) -> Path:
        """Trains to the last step; returns the directory of the model, which `verdict` loads."""
        watch, steps, begun, sums = self.stage.watch, self.stage.optim.steps, time.monotonic(), {}
        before, since = self.seconds, self.tokens
        self.model.train()
        if self.held and self.step == 0:
            self._measure()
        while self.step < steps:
            norm, found = self._update()
            for name, (total, count) in found.items():
                old = sums.get(name, (0.0, 0.0))
                sums[name] = (old[0] + total, old[1] + count)
            self.step += 1
            self.seconds = before + time.monotonic() - begun
            if self.step % watch.every == 0 or self.step == steps:
                self._tell(sums, norm, (self.tokens - since) / max(self.seconds - before, 1e-9))
                sums = {}
            if self.held and (self.step % watch.measure_every == 0 or self.step == steps):
                self._measure()
            if self.step % watch.keep_every == 0 and self.step < steps:
                self._keep()
        return self._save()

    def _update(self):
        """One step of the optimizer: the gradient's norm, and the figures of this process."""
        optim, units = self.stage.optim, self.plan.step(self.step)
        whole = [[self.train[i] for i in unit] for unit in units]
        encoded = lambda unit: encode([self.train[i] for i in unit], self.profile, self.stage.data.max_tokens)
        mine = [encoded(unit) for unit in units[self.rank :: self.world]]
        per = max(1, optim.micro_batch // self.stage.data.group)
        parts = [mine[at : at + per] for at in range(0, len(mine), per)]
        found: dict[str, tuple[float, float]] = {}
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with self.accelerator.no_sync(self.model) if not last else _nothing():
                loss, figures = self.loss(self, part, whole, self.step)
                # DDP and FSDP average over processes; each part of the loss is a share of the whole's sum.
                self.accelerator.backward(loss * self.world)
            for name, (total, count) in figures.items():
                old = found.get(name, (0.0, 0.0))
                found[name] = (old[0] + float(total), old[1] + float(count))
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), optim.clip))
        if not math.isfinite(norm):
            raise ValueError(f"step {self.step}: the gradient's norm is {norm}; lower optim.rate, or look at the data")
        for group in self.optimizer.param_groups:
            group["lr"] = rate(optim, self.step) * group["share"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens += sum(len(r.prompt) + len(r.tail) for unit in mine for r in unit)
        return norm, found

    def _tell(self, sums: dict, norm: float, pace: float) -> None:
        gathered, tokens = gather_object([sums]), sum(gather_object([self.tokens]))
        if not self.main:
            return
        row = {"step": self.step, "tokens": tokens, "seconds": round(self.seconds, 1),
               "rate": rate(self.stage.optim, self.step - 1), "norm": round(norm, 4)}
        for name in dict.fromkeys(n for part in gathered for n in part):
            total, count = (sum(part[name][k] for part in gathered if name in part) for k in (0, 1))
            row[name] = round(total / count, 5) if count else 0.0
        self._write(row)
        left = self.seconds / self.step * (self.stage.optim.steps - self.step)
        figures = " ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in ("step", "tokens", "seconds"))
        print(f"step {self.step}/{self.stage.optim.steps} {pace:.0f} tokens/s {left:.0f} s left  {figures}", flush=True)

    def _measure(self) -> None:
        """Held-out figures, each process a share of the judgments."""
        watch, mine = self.stage.watch, self.held[self.rank :: self.world]
        self.model.eval()
        if self.sharded and len(self.held) % self.world:  # every process must make as many passes
            mine = mine if len(mine) == -(-len(self.held) // self.world) else [*mine, mine[-1]]
        p, mass = measure.distributions(self.bare, mine, self.profile)
        spoken = mine[: -(-watch.explanations // self.world)]
        checks = measure.told(self.bare, spoken, self.profile, self.together)
        self.model.train()
        if self.reference is None:
            file = self.out / f"reference.{self.rank}.pt"
            if self.step == 0:
                torch.save(p, file)
            self.reference = torch.load(file, weights_only=False)
        gathered = gather_object([(mine, p, mass, checks, self.reference)])
        if not self.main:
            return
        rows, p, mass, checks, before = ([x for part in gathered for x in part[k]] for k in range(5))
        p, before = (torch.tensor([x.tolist() for x in y]).double().numpy() for y in (p, before))
        row = {"step": self.step, **measure.grading(p, rows, self.profile), **measure.from_reference(p, before),
               "on_grades": sum(mass) / len(mass), **measure.explaining(checks)}
        row = {"held": True, **{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}}
        self._write(row)
        print("held out: " + " ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "held"), flush=True)
        draw(self.out)

    def _write(self, row: dict) -> None:
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _keep(self) -> None:
        """A checkpoint: weights, optimizer, random states, and how far the data is."""
        folder = self.out / "checkpoints"
        part, done = folder / "part", folder / f"step-{self.step:07}"
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(part))
        tokens = sum(gather_object([self.tokens]))
        self.accelerator.wait_for_everyone()
        if self.main:
            state = {"step": self.step, "tokens": tokens, "seconds": self.seconds}
            (part / "state.json").write_text(json.dumps(state))
            shutil.rmtree(done, ignore_errors=True)
            part.rename(done)
            for old in sorted(folder.glob("step-*"))[: -self.stage.watch.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        found = sorted((self.out / "checkpoints").glob("step-*"))
        if not found:
            raise ValueError(f"{self.out}/checkpoints: nothing to resume from")
        kept = json.loads((self.out / "config.json").read_text())
        now = json.loads(json.dumps(dataclasses.asdict(self.stage)))
        for key in ("model", "data", "loss", "optim", "rl", "reward", "distil"):
            if kept.get(key) != now.get(key):
                raise ValueError(f"{self.out}: began with another {key}: {kept.get(key)}, not {now.get(key)}")
        self.accelerator.load_state(str(found[-1]))
        state = json.loads((found[-1] / "state.json").read_text())
        self.step, self.seconds = state["step"], state["seconds"]
        self.tokens = state["tokens"] if self.main else 0  # each process counts its own
        if self.main:  # what was told after the checkpoint will be told again
            file = self.out / "metrics.jsonl"
            lines = [x for x in file.read_text().splitlines() if json.loads(x)["step"] <= self.step]
            file.write_text("".join(f"{x}\n" for x in lines))
            print(f"resumed at step {self.step} from {found[-1]}", flush=True)
        self.accelerator.wait_for_everyone()

    def _save(self) -> Path:
        to = self.out / "model"
        self.accelerator.wait_for_everyone()
        state = self.accelerator.get_state_dict(self.model)
        if self.main:
            net = self.accelerator.unwrap_model(self.model)
            net.save_pretrained(to, state_dict=state)
            stage = self.stage.model
            shutil.copy(Path(stage.path) / "tokenizer.json", to / "tokenizer.json")
            shutil.copy(stage.profile or Path(stage.path) / "relevance.toml", to / "relevance.toml")
            draw(self.out)
            print(f"the model is in {to}", flush=True)
        self.accelerator.wait_for_everyone()
        return to


class _nothing:
    """A context that does nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def load(stage: Stage, profile: Profile) -> tuple[list[Judgment], list[Row]]:
    """Judgments to train on, and rows to measure on; they share no query."""
    data = stage.data
    if data.explanations not in ("file", "rule", "none"):
        raise ValueError(f"data.explanations: {data.explanations!r} is none of file, rule and none")
    train = judgments.read(data.train, profile, data.grades)
    held = judgments.read(data.held, profile, data.grades) if data.held else []
    if data.held_folds:
        held += [j for j in train if j.fold in data.held_folds]
        train = [j for j in train if j.fold not in data.held_folds]
    if not train:
        raise ValueError(f"data.held_folds {data.held_folds}: nothing is left to train on")
    ids, texts = {j.query_id for j in held}, {plain(j.query) for j in held}
    shared = [j for j in train if j.query_id in ids or plain(j.query) in texts]
    if shared:
        raise ValueError(f"data: {len(shared)} judgments to train on have queries that are held out, the first in "
                         f"{shared[0].place}: query_id {shared[0].query_id!r}, {shared[0].query!r}")
    unexplained = lambda found: [dataclasses.replace(j, explanation=None) for j in found]
    if data.explanations == "none":
        train = unexplained(train)
    if data.explanations == "rule":
        train = judgments.explained(train, profile)
    # What is measured are prompts and what the model itself says after them.
    return train, encode(unexplained(whole_queries(held, stage.watch.pairs)), profile, data.max_tokens)


def plain(query: str) -> str:
    """A query without what does not make it another: case, width and white space."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())


def whole_queries(held: list[Judgment], most: int) -> list[Judgment]:
    """About as many judgments as `most`, of queries spread over all of them, each query whole."""
    queries: dict[str, list[Judgment]] = {}
    for j in held:
        queries.setdefault(j.query_id, []).append(j)
    names = sorted(queries, key=lambda name: (hash_of(name), name))
    found: list[Judgment] = []
    for name in names:
        if len(found) >= most:
            break
        found += queries[name]
    return found


def hash_of(name: str) -> int:
    """The same number for a name on every machine."""
    return int.from_bytes(hashlib.md5(name.encode()).digest()[:8], "big")


def adamw(net, optim) -> torch.optim.AdamW:
    """AdamW; gains and biases have no decay, token vectors their own rate."""
    table = net.get_input_embeddings().weight
    named = [p for p in net.parameters() if p.requires_grad and p is not table]
    groups = [{"params": [p for p in named if p.ndim > 1], "weight_decay": optim.weight_decay, "share": 1.0},
              {"params": [p for p in named if p.ndim < 2], "weight_decay": 0.0, "share": 1.0},
              {"params": [table], "weight_decay": 0.0, "share": optim.token_rate}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=optim.rate, betas=(0.9, 0.98))


def rate(optim, step: int) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine down to the floor."""
    if step < optim.warmup:
        return optim.rate * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    return optim.rate * (optim.floor + (1 - optim.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def draw(out: Path) -> None:
    """metrics.svg: every figure over steps, of training and on held-out judgments."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name in ("step", "held", "seconds") or not isinstance(value, (int, float)):
                continue
            family = next((f for f in ("recall_", "right_", "share_", "reward_") if name.startswith(f)), "")
            title = ("held out: " if row.get("held") else "training: ") + (family.rstrip("_") or name)
            charts.setdefault(title, {}).setdefault(name.removeprefix(family), []).append((row["step"], value))
    picture.panels(out / "metrics.svg", charts)
