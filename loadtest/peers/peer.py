"""One peer in a process of its own: reads requests as JSON lines, answers with grade logits.

    python peer.py NAME CHECKPOINT --threads N --work-dir DIR

Answers: {"ready": version} once, then for each request {"seconds", "logits"}, where `seconds` is
from the texts' arrival to the logits, tokenization included; neither HTTP nor JSON is counted, which
favours the peer. Standard output carries answers alone; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Protocol

from checkpoint import Checkpoint, Pair


class Peer(Protocol):
    """A program that computes the logits of the grades."""

    version: str

    def logits(self, pairs: list[Pair]) -> list[list[float]]:
        """Grade logits of each pair of one request."""
        ...


class Transformers:
    """transformers on torch, eager, float32: sorted by length, in padded batches of four."""

    BATCH = 4

    def __init__(self, checkpoint: Checkpoint, threads: int, _: Path) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(checkpoint.directory, dtype=torch.float32).eval()
        self.grades = checkpoint.grades

    def logits(self, pairs: list[Pair]) -> list[list[float]]:
        torch = self.torch
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].tokens))
        answers: list[list[float]] = [[] for _ in pairs]
        with torch.inference_mode():
            for start in range(0, len(order), self.BATCH):
                part = order[start : start + self.BATCH]
                width = max(len(pairs[i].tokens) for i in part)
                # Padded on the left, so that every answer is in the last column.
                ids = torch.tensor([[0] * (width - len(pairs[i].tokens)) + pairs[i].tokens for i in part])
                mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in (pairs[i].tokens for i in part)])
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                out = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
                )
                for i, row in zip(part, out.logits[:, -1, self.grades].tolist()):
                    answers[i] = row
        return answers


class CTranslate2:
    """CTranslate2 in float32; `static` keeps the state of the prompt that a request's pairs share."""

    def __init__(self, checkpoint: Checkpoint, threads: int, work_dir: Path, static: bool) -> None:
        import ctranslate2
        import numpy

        self.static = static
        self.numpy = numpy
        self.version = f"ctranslate2 {ctranslate2.__version__}"
        path = work_dir / "ctranslate2-f32"
        if not path.exists():
            from convert import to_ctranslate2

            to_ctranslate2(checkpoint, path)
        self.generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
        )
        self.grades = checkpoint.grades

    def logits(self, pairs: list[Pair]) -> list[list[float]]:
        # Of prompts of different lengths in one batch the library computes what exceeds the
        # shortest token by token, and returns the logits of the wrong one: equal lengths go together.
        by_length: dict[int, list[int]] = {}
        for i, pair in enumerate(pairs):
            by_length.setdefault(len(pair.tokens), []).append(i)
        answers: list[list[float]] = [[] for _ in pairs]
        for group in by_length.values():
            for i, row in zip(group, self.batch([pairs[i] for i in group])):
                answers[i] = row
        return answers

    def batch(self, pairs: list[Pair]) -> list[list[float]]:
        shared = pairs[0].shared if self.static else 0
        static = [str(token) for token in pairs[0].tokens[:shared]]
        results = self.generator.generate_batch(
            [[str(token) for token in pair.tokens[shared:]] for pair in pairs],
            static_prompt=static or None,
            cache_static_prompt=True,
            max_length=1,
            sampling_topk=1,
            return_logits_vocab=True,
            include_prompt_in_result=False,
            max_batch_size=0,
        )
        return [self.numpy.array(result.logits[0][0])[self.grades].tolist() for result in results]


class LlamaCpp:
    """llama.cpp, as its completion endpoint works with a prompt cache: pair by pair, and what a
    prompt has in common with the one before it is not computed again."""

    CONTEXT = 8192

    def __init__(self, checkpoint: Checkpoint, threads: int, work_dir: Path, dtype: str) -> None:
        import llama_cpp
        import numpy

        self.numpy = numpy
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        path = work_dir / f"model-{dtype}.gguf"
        if not path.exists():
            from convert import to_gguf

            to_gguf(checkpoint, path, dtype)
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=self.CONTEXT,
            n_batch=2048,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self.grades = checkpoint.grades
        self.kept: list[int] = []

    def logits(self, pairs: list[Pair]) -> list[list[float]]:
        return [self.one(pair.tokens) for pair in pairs]

    def one(self, tokens: list[int]) -> list[float]:
        common = len(os.path.commonprefix([self.kept, tokens[:-1]]))
        self.model.n_tokens = common
        # `eval` drops what the cache holds past n_tokens before it computes the rest.
        self.model.eval(tokens[common:])
        self.kept = tokens
        last = self.model._ctx.get_logits_ith(-1)
        return [float(last[grade]) for grade in self.grades]


PEERS = {
    "transformers": Transformers,
    "ctranslate2": lambda *args: CTranslate2(*args, static=False),
    "ctranslate2-static": lambda *args: CTranslate2(*args, static=True),
    "llamacpp-f16": lambda *args: LlamaCpp(*args, dtype="f16"),
    "llamacpp-f32": lambda *args: LlamaCpp(*args, dtype="f32"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    args = parser.parse_args()

    # Libraries write to standard output as they please: answers go to a copy of it.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    checkpoint = Checkpoint(args.checkpoint)
    peer: Peer = PEERS[args.name](checkpoint, args.threads, args.work_dir)
    print(json.dumps({"ready": peer.version}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        pairs = checkpoint.request(request["query"], request["documents"])
        logits = peer.logits(pairs)
        seconds = time.perf_counter() - began
        tokens = sum(len(pair.tokens) for pair in pairs)
        distinct = tokens - (len(pairs) - 1) * pairs[0].shared
        answer = {"seconds": seconds, "logits": logits, "tokens": tokens, "distinct": distinct}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
