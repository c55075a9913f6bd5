"""What the checks say, and the paths and commands that they share."""

import json
import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
HERE = pathlib.Path(__file__).resolve().parent

counts = {"passed": 0, "failed": 0, "skipped": 0}


def result(name, problems, what=""):
    """One check's line; each problem is one more."""
    problems = list(problems)
    counts["failed" if problems else "passed"] += 1
    print(f"{'FAILED' if problems else 'ok':8}{name}{f': {what}' if what and not problems else ''}", flush=True)
    for problem in problems:
        print(f"        {problem}", flush=True)


def skip(name, why):
    counts["skipped"] += 1
    print(f"SKIPPED: {name}: {why}", flush=True)


def close():
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    return 1 if counts["failed"] else 0


def tool(name):
    """Where a program is: beside this Python first, as in a virtual environment."""
    import sys

    beside = pathlib.Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def command(*words, stdin=None):
    """A program's problems: none, or what it said."""
    done = subprocess.run(
        [str(word) for word in words], input=stdin, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode == 0:
        return done.stdout, []
    return done.stdout, [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


def node_modules(package):
    """The folder of node packages that has this one, or None."""
    places = [HERE / "node_modules", *map(pathlib.Path, os.environ.get("NODE_PATH", "").split(os.pathsep))]
    return next((place for place in places if (place / package).is_dir()), None)


def documents(text):
    """The YAML documents in a text."""
    import yaml

    return [document for document in yaml.safe_load_all(text) if document]


def dashboard():
    return json.loads((DEPLOY / "grafana/verdict.json").read_text())
