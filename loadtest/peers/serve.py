#!/usr/bin/env python3
"""A rerank server on transformers, as small as can be, to be loaded like Verdict.

    python loadtest/peers/serve.py --model models/verdict-mini --port 8090 --threads 2

`POST /rerank` with {"query", "documents"} answers {"results": [{"index", "relevance_score"}]}, by the
expected grade of the same prompt. One request is computed at a time, its documents sorted by length
in padded batches; torch uses the threads. The model and the prompt are those of Verdict, so that
only the program differs.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from checkpoint import Checkpoint
from peer import Transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    checkpoint = Checkpoint(args.model)
    model = Transformers(checkpoint, args.threads, Path(tempfile.gettempdir()))
    model.BATCH = 16
    turn = threading.Lock()

    def scores(query: str, documents: list[str]) -> list[float]:
        with turn:
            rows = model.logits(checkpoint.request(query, documents))
        answers = []
        for row in rows:
            top = max(row)
            weights = [math.exp(logit - top) for logit in row]
            expected = sum(grade * weight for grade, weight in enumerate(weights)) / sum(weights)
            answers.append(expected / (len(row) - 1))
        return answers

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answers = scores(request["query"], request["documents"])
            order = sorted(range(len(answers)), key=lambda i: -answers[i])
            self.answer({"results": [{"index": i, "relevance_score": answers[i]} for i in order]})

        def do_GET(self) -> None:
            self.answer({"model": args.model.name, "version": model.version, "device": f"torch, {args.threads} threads"})

        def answer(self, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer.request_queue_size = 256
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    print(f"ready on 127.0.0.1:{args.port}: {model.version}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
