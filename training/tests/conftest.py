"""What tests share: the modules' place, the program, and skips where something is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "training"))


@pytest.fixture(scope="session")
def verdict():
    """Runs the program on arguments and stdin; skips where there is none."""
    built = ROOT / "target/release/verdict"
    program = os.environ.get("VERDICT_BIN") or (str(built) if built.exists() else shutil.which("verdict"))
    if program is None:
        pytest.skip("no verdict binary; set VERDICT_BIN")

    def run(*arguments, text: str = "", check: bool = True):
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done

    return run


RULE = """
[explain]
stop = ["<|endoftext|>"]
sections = ["asks", "has", "lacks", "says"]
max_tokens = 90
[explain.grounding]
asked = "asks"
found = "has"
missing = "lacks"
grade = "says"
grades = ["no", "so", "yes"]
none = "none"
max_words = 4
skip = ["the"]
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A checkpoint of two small layers, three grades and explanations by a rule."""
    to = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(ROOT / "tests/golden/qwen3", to)
    file = to / "relevance.toml"
    file.write_text(file.read_text().split("[explain]")[0] + RULE)
    return to


@pytest.fixture(scope="session")
def judged(tmp_path_factory):
    """Judgments that can be learned: the grade is how much of the query is in the document."""
    import json
    import random

    rng, file = random.Random(0), tmp_path_factory.mktemp("data") / "judged.jsonl"
    colours, things = ("red", "blue", "tan", "pink", "grey"), ("hat", "pen", "cup", "bag")
    asked = [(colour, thing) for colour in colours for thing in things]
    rng.shuffle(asked)
    rows = []
    for i in range(60):
        colour, thing = asked[i // 3]
        title, text = rng.choice(colours), rng.choice(things)
        grade = int(title == colour) + int(text == thing)
        row = {"query_id": f"q{i // 3}", "query": f"{colour} {thing}", "doc_id": f"d{i}", "title": title, "text": text,
               "grade": grade, "max_grade": 2, "fold": i // 3 % 5}
        rows.append(row | ({"weight": 2.5} if i % 7 == 0 else {}))
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file
