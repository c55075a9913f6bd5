"""What is timed: the server through HTTP, and peers in processes of their own."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from checkpoint import Checkpoint
from works import Request

# Bounds every wait, so that a run ends by itself.
PATIENCE = 1800


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    seconds: float
    logits: list[list[float]]
    tokens: int
    """Prompt tokens as given."""
    distinct: int | None
    """Prompt tokens when what the request's pairs share is counted once; peers tell."""


def peak_rss(pid: int) -> int:
    """The most memory a process ever held, in bytes; mapped files count as far as they were touched."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Verdict:
    """The release binary, through HTTP on one kept connection."""

    name = "verdict"

    def __init__(self, args: argparse.Namespace) -> None:
        self.grades = Checkpoint(args.model).names
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)
        command = [args.verdict, "serve", "--model", args.model, "--port", "0", "--admin-port", "0"]
        command += ["--threads", str(args.threads), "--max-deadline", "10m", "--read-timeout", "60m"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("VERDICT_")}
        self.process = subprocess.Popen(
            [str(word) for word in command], stderr=self.log, stdin=subprocess.DEVNULL, env=environment
        )
        began = time.monotonic()
        while " ready " not in (log := Path(self.log.name).read_text()):
            if self.process.poll() is not None or time.monotonic() - began > PATIENCE:
                self.close()
                raise SystemExit(f"verdict did not become ready:\n{log}")
            time.sleep(0.05)
        found = re.search(r"address=(\S+):(\d+)", log)
        assert found, log
        self.connection = http.client.HTTPConnection(found[1], int(found[2]), timeout=PATIENCE)
        device = re.search(r'device="([^"]*)"', log)
        load = re.search(r"load_ms=(\d+)", log)
        version = subprocess.run([args.verdict, "--version"], capture_output=True, text=True, check=True)
        self.version = version.stdout.strip()
        self.version += f", {device[1]}" if device else ""
        self.version += f", loaded in {load[1]} ms" if load else ""

    def answer(self, request: Request) -> Answer:
        body = json.dumps({"query": request.query, "documents": request.documents, "raw": True})
        began = time.perf_counter()
        self.connection.request("POST", "/score", body, {"content-type": "application/json"})
        response = self.connection.getresponse()
        text = response.read()
        seconds = time.perf_counter() - began
        if response.status != 200:
            raise SystemExit(f"verdict: {response.status} {text.decode()}")
        parsed = json.loads(text)
        logits = [[result["logits"][name] for name in self.grades] for result in parsed["results"]]
        return Answer(seconds, logits, parsed["usage"]["prompt_tokens"], None)

    def peak_rss(self) -> int:
        return peak_rss(self.process.pid)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()
        os.unlink(self.log.name)


class PeerProcess:
    """peer.py with one peer, asked over a pipe."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        command = [sys.executable, Path(__file__).with_name("peer.py"), name, args.model]
        command += ["--threads", str(args.threads), "--work-dir", args.work_dir]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.version = self.read()["ready"]

    def read(self) -> dict:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: {self.process.wait()}")
        return json.loads(line)

    def answer(self, request: Request) -> Answer:
        assert self.process.stdin
        line = json.dumps({"query": request.query, "documents": request.documents})
        print(line, file=self.process.stdin, flush=True)
        return Answer(**self.read())

    def peak_rss(self) -> int:
        return peak_rss(self.process.pid)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
