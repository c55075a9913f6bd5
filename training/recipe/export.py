"""The stage `export`: a Hugging Face directory that `verdict` serves, with known answers and a card."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from recipe import judgments
from recipe.config import ExportStage
from recipe.measure import distributions, grading, served
from recipe.profile import Profile
from recipe.rows import Row, encode

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CARD = """# {name}

A relevance model for Verdict: its first token is the grade of a document for a
query{explains}. Prompt, grades and known answers are in `relevance.toml`.

{summary}

| grade | token | value |
|---|---|---|
{grades}

On {pairs} judgments that the probes were taken from, by the weights as they are here ({dtype}):

| figure | |
|---|---|
{figures}

{parameters:.2f} M parameters, at most {max_tokens} tokens of prompt.
"""


def export(stage: ExportStage) -> Path:
    """Writes the directory and returns it. ValueError, with nothing written, if no judgment can be a probe
    or the profile cannot be rewritten."""
    if stage.dtype not in DTYPES:
        raise ValueError(f"dtype: {stage.dtype!r} is none of {list(DTYPES)}")
    source, to = Path(stage.model.path), Path(stage.out)
    profile_path = Path(stage.model.profile or source / "relevance.toml")
    profile = Profile.load(source, profile_path)
    profile.temperature, profile.points = 1.0, []  # of other weights, as the probes are
    told = rewritten(profile_path, stage.name)
    rows = encode(judgments.read(stage.probes, profile, stage.grades), profile)
    net = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[stage.dtype])
    p, _ = distributions(net.float().eval(), rows, profile)
    probes = known_answers(rows, p, profile, stage)
    to.mkdir(parents=True, exist_ok=True)
    net.to(DTYPES[stage.dtype]).save_pretrained(to)
    shutil.copy(source / "tokenizer.json", to / "tokenizer.json")
    (to / "relevance.toml").write_text(told + "".join(probes), encoding="utf-8")
    Profile.load(to)
    (to / "README.md").write_text(card(stage, profile, net, rows, p), encoding="utf-8")
    for file in to.iterdir():  # the server runs as another user
        file.chmod(0o644)
    print(f"{to}: {len(probes)} probes; verdict verify --model {to}; verdict calibrate --model {to} --judgments FILE --write")
    return to


def rewritten(path: Path, name: str) -> str:
    """A relevance.toml under another name, without what is of other weights; all else as it is written.

    ValueError if that cannot be told from its text alone."""
    text = path.read_text(encoding="utf-8")
    told = uncalibrated(without_probes(renamed(text, name)))
    wanted = {k: v for k, v in tomllib.loads(text).items() if k not in ("probes", "calibration")} | {"name": name}
    try:
        found = tomllib.loads(told)
    except tomllib.TOMLDecodeError as problem:
        found = str(problem)
    if found != wanted:
        raise ValueError(f"{path}: name, [[probes]] and [calibration] cannot be replaced as they are written here; "
                         "write each key and each table's head on a line of its own, without quotes")
    return told


def quoted(text: str) -> str:
    """A TOML string; ValueError if it cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is no Unicode text: half a surrogate pair is in it") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def renamed(text: str, name: str) -> str:
    """A relevance.toml with another name; what a grade is called stands in a table and stays."""
    line = f"name = {quoted(name)}"
    table = re.search(r"(?m)^[ \t]*\[", text)
    head, rest = (text[: table.start()], text[table.start() :]) if table else (text, "")
    head, count = re.subn(r"(?m)^[ \t]*name[ \t]*=.*$", lambda _: line, head, count=1)
    return head + rest if count else f"{line}\n{head}{rest}"


def without_probes(text: str) -> str:
    """A relevance.toml without its [[probes]], which are of other weights."""
    return re.sub(r"(?ms)^\[\[probes\]\].*?(?=^\[(?!\[probes\]\])|\Z)", "", text).rstrip() + "\n"


def uncalibrated(text: str) -> str:
    """A relevance.toml without its [calibration], which is of other weights."""
    return re.sub(r"(?ms)^\[calibration\].*?(?=^\[|\Z)", "", text)


def known_answers(rows: list[Row], p, profile: Profile, stage: ExportStage) -> list[str]:
    """Probes: clear judgments that the model gets right, the surest of the best and of the worst grade."""
    low, high = min(profile.values), max(profile.values)
    scores = served(p, profile).tolist()
    ends = {profile.values.index(low): ("max_score", 1), profile.values.index(high): ("min_score", -1)}
    found = []
    for place, (bound, sign) in ends.items():
        of = [i for i, r in enumerate(rows) if r.judgment.best == place and p[i].argmax() == place]
        queries: set[str] = set()
        for i in sorted(of, key=lambda i: sign * scores[i]):
            if len(queries) == stage.most_probes // 2:
                break
            if rows[i].judgment.query in queries:
                continue
            queries.add(rows[i].judgment.query)
            at = min(max(scores[i] + sign * stage.margin, 0.0), 1.0)
            found.append(probe(rows[i], profile, bound, at))
    if not found:
        raise ValueError("probes: the model is right on no judgment of the best or of the worst grade")
    return found


def probe(row: Row, profile: Profile, bound: str, at: float) -> str:
    """One [[probes]] table."""
    judgment = row.judgment
    lines = ["", "[[probes]]", f"query = {quoted(judgment.query)}",
             f"document = {quoted(profile.render_document(judgment.document))}"]
    if judgment.instruction is not None:
        lines.append(f"instruction = {quoted(judgment.instruction)}")
    return "\n".join([*lines, f"{bound} = {at:.2f}"]) + "\n"


def card(stage: ExportStage, profile: Profile, net, rows: list[Row], p) -> str:
    """The model card."""
    figures = grading(p, rows, profile)
    shown = {k: v for k, v in figures.items() if not k.startswith("share_")}
    return CARD.format(
        name=stage.name, summary=stage.summary or "No summary was given.", pairs=len(rows), dtype=stage.dtype,
        explains=", and its explanation follows" if profile.stop is not None else "",
        grades="\n".join(f"| {g.name} | {g.token} | {g.value:g} |" for g in profile.grades),
        figures="\n".join(f"| {k} | {v:.4f} |" for k, v in shown.items()),
        parameters=sum(x.numel() for x in net.parameters()) / 1e6, max_tokens=profile.max_tokens)
