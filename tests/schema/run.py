"""Asks a running server what its own description says it takes, and holds it to the answer.

    tests/schema/run.py            starts the release build on free ports
    tests/schema/run.py URL        asks a server that runs already

Schemathesis makes the requests: well-formed ones, ill-formed ones, and other methods. No answer
may be an error of the server's, have a status, type or body that is not described, or take what
the description forbids.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


def start(binary: pathlib.Path) -> tuple[subprocess.Popen, str]:
    """A server on free ports, ready, and its address."""
    environment = {**os.environ, "VERDICT_PORT": "0", "VERDICT_ADMIN_PORT": "0", "VERDICT_LOG": "info"}
    server = subprocess.Popen([binary, "serve"], stderr=subprocess.PIPE, text=True, env=environment)
    address = None
    for line in server.stderr:
        found = re.search(r"address=(\S+)", line)
        address = address or (found and found.group(1))
        if " ready " in line:
            break
    if address is None or server.poll() is not None:
        sys.exit("the server did not start")
    return server, f"http://{address}"


def ask(url: str, examples: int, seed: int) -> int:
    """Runs Schemathesis; its exit code."""
    command = [
        pathlib.Path(sys.executable).with_name("schemathesis"),
        "--config-file",
        ROOT / "tests/schema/schemathesis.toml",
        "run",
        f"{url}/openapi.json",
        "--url",
        url,
        "--checks",
        ",".join(CHECKS),
        "--max-examples",
        str(examples),
        "--seed",
        str(seed),
        "--generation-database",
        "none",
    ]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Holds a server to its description.")
    parser.add_argument("url", nargs="?", help="a server that runs; without it one is started")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/verdict")
    parser.add_argument("--examples", type=int, default=60, help="requests per operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.url:
        return ask(arguments.url.rstrip("/"), arguments.examples, arguments.seed)
    server, url = start(arguments.binary)
    # What is left of the log has to be read, or the server would wait for it.
    log = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
    try:
        return ask(url, arguments.examples, arguments.seed)
    finally:
        server.terminate()
        server.wait()
        log.wait()


if __name__ == "__main__":
    sys.exit(main())
