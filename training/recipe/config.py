"""One TOML file per stage, as dataclasses: every key is known, typed and has its unit here.

Paths are relative to the working directory. `--set optim.steps=10` overrides one key.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Model:
    """The checkpoint to start from."""

    path: str  # a Hugging Face directory with tokenizer.json
    profile: str = ""  # its relevance.toml; by default the one in `path`


@dataclass
class Data:
    """Judgments (see judgments.py)."""

    train: list[str]  # JSONL files, gzipped or not
    held: list[str] = field(default_factory=list)  # files to measure on
    held_folds: list[int] = field(default_factory=list)  # or folds of `train` that are held out
    grades: dict[str, str] = field(default_factory=dict)  # grades without max_grade, as the files write them, to the model's names
    explanations: str = "file"  # "file": where a line has one; "rule": written where it has none; "none"
    max_tokens: int = 0  # of a prompt; 0: the profile's
    group: int = 1  # documents of one query that stay together, for the listwise loss
    curriculum: float = 1.0  # share of the clearest judgments that training begins with; 1: all


@dataclass
class Optim:
    """AdamW with a linear warm-up and a cosine decay."""

    steps: int
    batch: int = 64  # judgments a step, over all processes
    micro_batch: int = 16  # judgments at once on one process
    rate: float = 2e-5
    warmup: int = 20  # steps
    floor: float = 0.1  # of the rate, at the end
    weight_decay: float = 0.01
    clip: float = 1.0  # of the gradient's norm
    token_rate: float = 1.0  # of the rate, for the token vectors
    precision: str = "no"  # or "bf16"
    checkpointing: bool = False  # recompute activations: less memory, a third more time
    seed: int = 1


@dataclass
class Watch:
    """What is told and kept along training."""

    every: int = 10  # steps between rows of metrics.jsonl
    measure_every: int = 100  # steps between measurements on held-out judgments
    pairs: int = 1024  # of them at most
    explanations: int = 16  # held-out explanations decoded and checked each time
    keep_every: int = 200  # steps between checkpoints
    keep: int = 2  # checkpoints kept


@dataclass
class Loss:
    """Weights of the parts of the supervised loss."""

    grade: float = 1.0  # cross entropy at the grade token, over the grades
    outside: float = 0.3  # minus the log of the probability that falls on grades at all
    explanation: float = 0.5  # cross entropy of the explanation's tokens
    sections: dict[str, float] = field(default_factory=dict)  # of a section's tokens within it; 1 by default
    rank: float = 0.0  # listwise, over the documents of one query that are together
    rank_scale: float = 8.0  # sharpness of the listwise target


@dataclass
class Reward:
    """Weights of the rewards of an explanation's sections; each reward is in [0, 1]."""

    form: float = 0.25  # the section is where it belongs, by name
    true: float = 1.0  # its claims hold
    whole: float = 0.5  # what it should list is listed


@dataclass
class Rl:
    """Stepwise-GRPO and the supervised loss beside it."""

    weight: float = 1.0  # of the reinforcement loss; 0: supervised alone
    supervised: float = 0.5  # of the supervised loss; 0: reinforcement alone
    grade: float = 1.0  # of the expected reward of the grade
    explanation: float = 0.5  # of the explanations' policy gradient
    explained: float = 0.25  # share of a batch's judgments whose explanations are sampled
    group: int = 4  # explanations sampled for each
    temperature: float = 1.0  # of sampling
    discount: float = 0.0  # of later sections' rewards in a section's advantage
    kl: float = 0.02  # of the divergence from the reference, which is the start


@dataclass
class Distil:
    """Learning from a teacher's distributions, which lie in the judgments."""

    temperature: float = 1.0  # softens teacher and student
    judged: float = 0.0  # share of the cross entropy with the judged grade, where there is one


@dataclass
class Stage:
    """What every stage of training needs."""

    out: str  # directory of the run
    model: Model
    data: Data
    optim: Optim
    watch: Watch = field(default_factory=Watch)
    loss: Loss = field(default_factory=Loss)


@dataclass
class SftStage(Stage):
    """`sft`: the supervised loss."""


@dataclass
class RlStage(Stage):
    """`rl`: reinforcement beside it."""

    rl: Rl = field(default_factory=Rl)
    reward: Reward = field(default_factory=Reward)


@dataclass
class DistilStage(Stage):
    """`distil`: a teacher's distributions."""

    distil: Distil = field(default_factory=Distil)


@dataclass
class DataStage:
    """`data`: check and convert judgments."""

    out: str  # the file to write
    model: Model
    inputs: list[str]
    grades: dict[str, str] = field(default_factory=dict)
    instruction: str = ""  # put into lines that have none
    explanations: str = "file"  # or "rule": written where a line has none
    folds: list[int] = field(default_factory=list)  # only these; empty: all


@dataclass
class TeachStage:
    """`teach`: write a teacher's distributions into judgments."""

    out: str  # the file to write
    student: Model
    inputs: list[str]
    teacher: Model | None = None  # a checkpoint that is run here
    scores: str = ""  # or what `verdict score` answered to the requests file
    requests: str = ""  # write these for `verdict score`, and stop
    grades: dict[str, str] = field(default_factory=dict)  # the inputs' grades to the student's names
    teacher_grades: dict[str, str] = field(default_factory=dict)  # the teacher's names to the student's
    explanations: bool = False  # let the teacher explain; what does not hold is left out
    batch: int = 16
    precision: str = "no"


@dataclass
class ExportStage:
    """`export`: the directory that the server loads."""

    out: str
    model: Model
    name: str
    probes: list[str]  # judgments to take known answers from
    grades: dict[str, str] = field(default_factory=dict)
    most_probes: int = 6
    margin: float = 0.1  # between a probe's score and its bound
    dtype: str = "bfloat16"
    summary: str = ""  # for the model card: data, licence, intended use


@dataclass
class AblationStage(RlStage):
    """`ablation`: supervised alone, reinforcement alone and both, from one start on one budget."""

    seeds: list[int] = field(default_factory=lambda: [1, 2])
    picture: str = ""  # an SVG beside the table


STAGES = {"data": DataStage, "sft": SftStage, "rl": RlStage, "teach": TeachStage, "distil": DistilStage,
          "export": ExportStage, "ablation": AblationStage}

LEAST = dict.fromkeys(("optim.steps", "optim.batch", "optim.micro_batch", "data.group", "watch.every",
                       "watch.measure_every", "watch.keep_every", "watch.keep", "rl.group", "batch"), 1)


def load(stage: str, path: str | Path, overrides: typing.Iterable[str] = ()):
    """The configuration of a stage. ValueError naming file, key, and what is wrong or what there is."""
    with open(path, "rb") as file:
        try:
            table = tomllib.load(file)
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None
    for text in overrides:
        key, _, value = text.partition("=")
        try:
            given = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            given = value
        *outer, last = key.split(".")
        inner = table
        for name in outer:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"--set {key}: {name} is {inner!r}, not a table")
        inner[last] = given
    try:
        return _build(STAGES[stage], table, "")
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def _build(kind, table: dict, prefix: str):
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise ValueError(f"{prefix}{unknown[0]}: unknown; there are {', '.join(hints)}")
    for known in dataclasses.fields(kind):
        required = known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING
        if required and known.name not in table:
            raise ValueError(f"{prefix}{known.name} is missing")
    return kind(**{k: _value(hints[k], v, prefix + k) for k, v in table.items()})


def _value(hint, value, name: str):
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{name}: {value!r} is not a table")
        return _build(hint, value, f"{name}.")
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is list and isinstance(value, list):
        return [_value(inner[0], v, f"{name}[{i}]") for i, v in enumerate(value)]
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        return {k: _value(inner[1], v, f"{name}.{k}") for k, v in value.items()}
    if hint is int and name in LEAST and value.__class__ is int and value < LEAST[name]:
        raise ValueError(f"{name}: {value} is below {LEAST[name]}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or isinstance(value, bool) and hint is not bool:
        raise ValueError(f"{name}: {value!r} is not of type {getattr(hint, '__name__', hint)}")
    return value
