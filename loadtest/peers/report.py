"""The machine, and the figures as tables."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from pathlib import Path

WORKS = {"A": "A: 1 query x 1 document", "B": "B: 1 query x 20 documents"}
WHY = {
    "repeated": "the query is always the same: caches of prompt prefixes are warm",
    "fresh": "no query comes twice",
}


def machine(args: argparse.Namespace) -> dict:
    """What the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "instructions": [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "weights_bytes": sum(file.stat().st_size for file in args.model.glob("*.safetensors")),
    }


def markdown(result: dict) -> str:
    """Tables for a person."""
    about = result["machine"]
    text = [
        f"{result['model']} on {about['cores']} cores of {about['cpu']}"
        f" ({', '.join(about['instructions'])}), {about['threads']} threads, {about['date']},"
        f" load before {about['load']:.2f}; {result['rounds']} rounds in turn, medians.",
        "",
    ]
    groups = dict.fromkeys((row["work"], row["mode"]) for row in result["summary"])
    for work, mode in groups:
        rows = [row for row in result["summary"] if (row["work"], row["mode"]) == (work, mode)]
        first = rows[0]
        text += [
            f"**{WORKS[work]}**, {first['tokens']:.0f} tokens, {first['distinct']:.0f} distinct; {WHY[mode]}",
            "",
            "| | ms | least to most | pairs/s | Verdict is so many times as fast |",
            "|---|---|---|---|---|",
        ]
        for row in sorted(rows, key=lambda row: row["seconds"]):
            ratio = "" if row["contender"] == "verdict" else f"{row['verdict_is_faster']:.2f}"
            text.append(
                f"| {row['contender']} | {row['seconds'] * 1e3:.1f}"
                f" | {row['least'] * 1e3:.1f} to {row['most'] * 1e3:.1f}"
                f" | {row['pairs_per_second']:.2f} | {ratio} |"
            )
        text.append("")
    text += [
        "| | version | peak memory, MiB | largest difference of a probability from transformers f32 |",
        "|---|---|---|---|",
    ]
    for name, version in result["versions"].items():
        delta = result["differences"].get(name)
        memory = result["peak_rss_bytes"][name] / 2**20
        text.append(f"| {name} | {version} | {memory:.0f} | {'' if delta is None else f'{delta:.2g}'} |")
    text += ["", f"The weights are {about['weights_bytes'] / 2**20:.0f} MiB on disk.", ""]
    return "\n".join(text)
