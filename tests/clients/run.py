#!/usr/bin/env python3
"""Asks a real server with the clients that people already have, and compares what
each gives with POST /score: same order, same numbers.

    run.py target/release/verdict     starts the server with the bundled model
    run.py http://127.0.0.1:8080      asks one that runs (it must serve verdict-mini)

Prints a line for each client: version, call, result. Exits with 1 if any failed. A client
whose package is not installed is skipped, and named: requirements.txt has those of Python,
package.json those of node (found in node_modules here, or where NODE_PATH says).
"""

import importlib.metadata
import json
import math
import os
import re
import struct
import subprocess
import sys
import traceback
import urllib.request

import checks

# Nothing of the clients' own is to be asked on the network.
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", HF_HUB_OFFLINE="1", HAYSTACK_TELEMETRY_ENABLED="False")


def start(binary):
    """The process and its address, once it is ready."""
    process = subprocess.Popen(
        [binary, "serve", "--port", "0", "--admin-port", "0", "--log-format", "json"],
        stderr=subprocess.PIPE,
        text=True,
    )
    address = None
    for line in process.stderr:
        found = re.search(r'"address":"?([0-9.:]+)', line)
        address = found.group(1) if found else address
        if '"ready"' in line and address:
            return process, f"http://{address}"
    raise SystemExit(f"{binary} ended by itself with {process.wait()}")


def truth(base):
    """Index and score, best first, as the native route has them."""
    body = {"query": checks.QUERY, "documents": checks.DOCUMENTS, "sort": True}
    request = urllib.request.Request(
        f"{base}/score", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        results = json.load(answer)["results"]
    return [(row["index"], row["relevance_score"]) for row in results]


def logit(score):
    return math.log(score / (1 - score))


def single(score):
    return struct.unpack("f", struct.pack("f", score))[0]


def compare(rows, expected, scores):
    """Raises unless the rows are what /score gave, as far as this client's numbers can be."""
    assert [index for index, _ in rows] == [index for index, _ in expected], f"order: {rows} is not {expected}"
    for (index, score), (_, true) in zip(rows, expected):
        if scores == "logits":
            same = math.isclose(score, logit(true), rel_tol=1e-12)
        elif scores == "single":
            same = single(score) == single(true)
        else:
            same = score == true
        assert same, f"document {index}: {score} is not the {scores} of {true}"


def version(package):
    """None if it is not installed."""
    if package.startswith("npm "):
        return checks.npm_version(package.removeprefix("npm "))
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(base):
    """Runs every check; returns how many failed."""
    expected = truth(base)
    failed = passed = 0
    for package, call, scores, ask in checks.CHECKS:
        installed = version(package)
        if installed is None:
            print(f"SKIPPED: {package}: not installed", flush=True)
            continue
        try:
            rows = ask(base)
            if rows is not None:
                compare(rows, expected, scores)
            result = "ok"
            passed += 1
        except Exception:
            result = "FAILED"
            failed += 1
            traceback.print_exc()
        print(f"{package:42} {installed:10} {call:48} {result}", flush=True)
    print(f"{passed} passed, {failed} failed", flush=True)
    return failed


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if not any(map(version, {package for package, *_ in checks.CHECKS})):
        print("SKIPPED: none of the clients is installed (tests/clients/requirements.txt)")
        return 0
    target = sys.argv[1]
    if target.startswith("http://"):
        return run(target.rstrip("/"))
    process, base = start(target)
    try:
        return run(base)
    finally:
        process.terminate()
        process.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
