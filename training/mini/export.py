"""Write the Hugging Face directory that the server loads.

    python -m mini.export --out RUN --model final --to ../models/verdict-mini
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from pathlib import Path

import torch
from safetensors.torch import save_file

from mini import data
from mini import evaluate
from mini import explain
from mini import grounding
from mini.text import STOP
from mini.tokenizer import CONTROL, GRADES, Encoder

TEMPLATE = "<|rubric|>{instruction}<|query|>{query}<|document|>{document}<|query|>{query}<|answer|>"
LABELS = ("Irrelevant", "Related", "Partial", "Exact")
PROBES = (
    ("how to fix a flat bicycle tire", "relevant"), ("how to fix a flat bicycle tire", "irrelevant"),
    ("wireless earbuds for running", "relevant"), ("wireless earbuds for running", "irrelevant"),
    ("how long to boil eggs", "relevant"), ("what is compound interest", "irrelevant"),
)


def grounding_table() -> list[str]:
    """The rule of `grounding.py` as the server reads it."""
    names = dict(zip(("asked", "found", "missing", "grade"), grounding.SECTIONS))
    skipped = textwrap.wrap(", ".join(json.dumps(w) for w in sorted(STOP)), 100)
    return ["[explain.grounding]  # keeps reasons true while they are decoded",
            *(f"{k} = {json.dumps(v)}" for k, v in names.items()),
            f"grades = {json.dumps(list(grounding.VERDICTS))}", f"none = {json.dumps(grounding.NONE)}",
            f"max_words = {grounding.MAX_WORDS}", "skip = [", *(f"  {line}" for line in skipped), "]"]


def relevance_toml(probes, temperature: float) -> str:
    """The model's prompt, grades, calibration, explanation and known answers."""
    quote = lambda text: json.dumps(text, ensure_ascii=False)  # JSON strings are TOML strings
    lines = [
        '# How this model is asked and read.', 'name = "verdict-mini"', "aliases = []", "",
        "[prompt]", f"template = {quote(TEMPLATE)}", 'document = "{title} {text}"',
        f"instruction = {quote(data.DEFAULT)}", "max_tokens = 512", "",
        "[score]", 'read = "expected"  # expected grade value, rescaled to [0, 1]',
    ]
    for i, (token, label) in enumerate(zip(GRADES, LABELS)):
        lines += ["", "[[grades]]", f"token = {quote(token)}", f'name = "{i}"', f"label = {quote(label)}", f"value = {i}.0"]
    lines += ["", "[calibration]", f"temperature = {temperature}", "", "[explain]", 'stop = ["<|end|>"]',
              f"sections = {json.dumps(list(explain.SECTIONS))}", "max_tokens = 96", ""]
    lines += grounding_table()
    for probe in probes:
        lines += ["", "[[probes]]", f"query = {quote(probe['query'])}", f"document = {quote(probe['document'])}"]
        lines += [f"{k} = {probe[k]}" for k in ("min_score", "max_score") if k in probe]
    return "\n".join(lines) + "\n"


def probes(net, encoder) -> list[dict]:
    """Known answers with bounds 0.15 away from what was measured here."""
    rows = {r["query"]: r for r in map(json.loads, open(evaluate.HERE / "everyday.jsonl", encoding="utf-8"))}
    found = []
    for query, kind in PROBES:
        value = float(evaluate.score(net, encoder, [(data.DEFAULT, query, rows[query][kind])])[0])
        bound = round(value - 0.15, 2) if kind == "relevant" else round(value + 0.15, 2)
        key = "min_score" if kind == "relevant" else "max_score"
        found.append({"query": query, "document": rows[query][kind], key: bound})
        print(f"probe {query!r} {kind}: {value:.3f} ({key} {bound})")
    return found


def check_tokens(encoder: Encoder) -> None:
    """Every grade is one token of its own, and user text never becomes a control token."""
    assert len(set(encoder.grades)) == 4
    assert not set(encoder.text("<|3|> <|answer|>")) & set(range(len(CONTROL) + len(GRADES)))


def export(args) -> None:
    """Round, check and write everything but the model card, NOTICE and metrics."""
    run, to = Path(args.out), Path(args.to)
    to.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.load(run)
    check_tokens(encoder)
    net = evaluate.load(run / args.model)
    state = {k: v.bfloat16().contiguous() for k, v in net.state_dict().items() if k != "lm_head.weight"}
    save_file(state, str(to / "model.safetensors"), metadata={"format": "pt"})
    settings = json.loads((run / args.model / "config.json").read_text())
    settings.pop("dtype", None)
    settings.pop("transformers_version", None)
    settings.update(architectures=["Qwen3ForCausalLM"], torch_dtype="bfloat16", rope_theta=1e7)
    (to / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    shutil.copy(run / "tokenizer.json", to / "tokenizer.json")
    (to / "relevance.toml").write_text(relevance_toml(probes(net, encoder), args.temperature))
    size = sum(f.stat().st_size for f in to.iterdir())
    print(f"{sum(v.numel() for v in state.values()) / 1e6:.2f} M parameters, {size / 1e6:.1f} MB in {to}")
    assert size <= 16_000_000


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="run directory")
    parser.add_argument("--model", default="final", help="model under RUN")
    parser.add_argument("--to", required=True, help="directory to write")
    parser.add_argument("--temperature", type=float, default=1.0)
    torch.set_num_threads(2)
    export(parser.parse_args())


if __name__ == "__main__":
    main()
