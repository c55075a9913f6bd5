#!/usr/bin/env python3
"""Time Verdict and its peers on the same work, in turn, in one run.

    python loadtest/peers/run.py --model DIR [--verdict target/release/verdict] [--rounds 5]

Verdict is measured through HTTP, from the client's side; peers run in processes of their own and
are measured from the texts' arrival to the logits (see peer.py). Before anything is timed, every
contender's grade probabilities are compared with transformers' in float32. In each round every
contender answers the same request; the order changes from round to round; one works at a time.

Work A: 1 query x 1 document. Work B: 1 query x 20 documents. No document comes twice. Mode
"repeated": always the same query (a prefix cache is warm). Mode "fresh": no query comes twice.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from checkpoint import Checkpoint
from contenders import PeerProcess, Verdict
from report import machine, markdown
from works import DOCUMENTS, MODES, Works

PEERS = ["transformers", "ctranslate2", "ctranslate2-static", "llamacpp-f16", "llamacpp-f32"]
REFERENCE = "transformers"
ROOT = Path(__file__).resolve().parents[2]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of Qwen3 architecture")
    parser.add_argument("--verdict", type=Path, default=ROOT / "target" / "release" / "verdict")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; the first is compared with")
    parser.add_argument("--works", default="A,B")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pause", type=float, default=0.5, help="seconds of rest before each request")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of a probability for Verdict")
    parser.add_argument("--work-dir", type=Path, help="where converted checkpoints are kept")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    args = parser.parse_args()
    args.peers = [name for name in args.peers.split(",") if name]
    args.works, args.modes = args.works.split(","), args.modes.split(",")
    unknown = {*args.peers} - {*PEERS} | {*args.works} - {*DOCUMENTS} | {*args.modes} - {*MODES}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if args.work_dir is None:
        name = args.model.resolve().as_posix().strip("/").replace("/", "-")
        args.work_dir = Path(tempfile.gettempdir()) / "verdict-peers" / name
    args.work_dir.mkdir(parents=True, exist_ok=True)
    return args


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    """The largest difference of a grade's probability."""
    pairs = zip(one, other, strict=True)
    return max(abs(p - q) for a, b in pairs for p, q in zip(softmax(a), softmax(b), strict=True))


def agree(contenders: list, works: Works, args: argparse.Namespace) -> dict[str, float]:
    """Every contender's largest difference from the reference, before anything is timed."""
    reference = next((contender for contender in contenders if contender.name == REFERENCE), None)
    if reference is None:
        say("no transformers among the peers: nothing to compare the scores with")
        return {}
    worst: dict[str, float] = {}
    for work in args.works:
        request = works.request(work, "repeated", 40)
        truth = reference.answer(request)
        for contender in contenders:
            if contender is reference:
                continue
            # Twice: the second answer may come from a cache.
            for answer in (contender.answer(request), contender.answer(request)):
                if answer.tokens != truth.tokens:
                    raise SystemExit(f"{contender.name}: {answer.tokens} prompt tokens, not {truth.tokens}")
                delta = difference(answer.logits, truth.logits)
                worst[contender.name] = max(worst.get(contender.name, 0.0), delta)
    for name, delta in worst.items():
        say(f"largest difference of a probability from {REFERENCE} f32: {name} {delta:.2g}")
    if worst.get("verdict", 0.0) > args.tolerance:
        raise SystemExit(f"verdict differs by {worst['verdict']:.2g}, over {args.tolerance}: nothing was timed")
    return worst


def time_all(contenders: list, works: Works, args: argparse.Namespace) -> list[dict]:
    """One measurement per round, work, mode and contender."""
    measured = []
    for turn in range(args.warmup + args.rounds):
        for work in args.works:
            for mode in args.modes:
                request = works.request(work, mode, turn)
                shift = turn % len(contenders)
                for contender in contenders[shift:] + contenders[:shift]:
                    # Threads that spin after their last task go to sleep meanwhile.
                    time.sleep(args.pause)
                    answer = contender.answer(request)
                    counted = turn >= args.warmup
                    say(f"round {turn} {work} {mode} {contender.name}: {answer.seconds:.4f} s" + ("" if counted else " (warm-up)"))
                    if counted:
                        row = {"round": turn, "work": work, "mode": mode, "contender": contender.name}
                        measured.append(
                            {**row, "seconds": answer.seconds, "tokens": answer.tokens, "distinct": answer.distinct}
                        )
    return measured


def summary(measured: list[dict], contenders: list) -> list[dict]:
    """Medians, and ratios to Verdict round by round."""
    rows = []
    for work, mode in dict.fromkeys((row["work"], row["mode"]) for row in measured):
        here = [row for row in measured if (row["work"], row["mode"]) == (work, mode)]
        times = {c.name: [row["seconds"] for row in here if row["contender"] == c.name] for c in contenders}
        for name, seconds in times.items():
            ratios = [other / own for other, own in zip(seconds, times["verdict"], strict=True)]
            rows.append(
                {
                    "work": work,
                    "mode": mode,
                    "contender": name,
                    "seconds": statistics.median(seconds),
                    "least": min(seconds),
                    "most": max(seconds),
                    "pairs_per_second": DOCUMENTS[work] / statistics.median(seconds),
                    "verdict_is_faster": statistics.median(ratios),
                    "ratios": ratios,
                    "tokens": statistics.median(row["tokens"] for row in here),
                    "distinct": statistics.median(row["distinct"] or 0 for row in here if row["distinct"]),
                }
            )
    return rows


def main() -> None:
    args = arguments()
    works = Works(Checkpoint(args.model).tokenizer)
    about = machine(args)
    say(json.dumps(about))
    contenders: list = []
    try:
        contenders.append(Verdict(args))
        for name in args.peers:
            say(f"starting {name}")
            contenders.append(PeerProcess(name, args))
        differences = agree(contenders, works, args)
        measured = time_all(contenders, works, args)
        memory = {contender.name: contender.peak_rss() for contender in contenders}
        versions = {contender.name: contender.version for contender in contenders}
    finally:
        for contender in contenders:
            contender.close()
    result = {
        "machine": about,
        "model": args.model.name,
        "rounds": args.rounds,
        "versions": versions,
        "differences": differences,
        "peak_rss_bytes": memory,
        "summary": summary(measured, contenders),
        "measured": measured,
    }
    text = markdown(result)
    print(text)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(text)


if __name__ == "__main__":
    main()
