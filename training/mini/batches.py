"""Batches of generated and judged groups, as the loss of `mini.sft` reads them."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mini import data
from mini import explain
from mini import model as shapes
from mini import pairs
from mini.tokenizer import Encoder

TOKENS = {"cpu": 6000, "cuda": 16000}  # in a batch
WORKERS = 6  # processes that make batches for a GPU


@dataclass
class Batch:
    """Rows of token ids and what is to be learned from them; N rows in groups of pairs.GROUP."""

    ids: torch.Tensor  # (N, tokens), padded
    answer: torch.Tensor  # (N) flat place of <|answer|>
    second: torch.Tensor  # (N) flat place of the second <|query|>
    told: torch.Tensor  # (M) flat places before explanation tokens
    words: torch.Tensor  # (M) those tokens
    soft: torch.Tensor  # (N, 4) grade distribution
    target: torch.Tensor  # (groups, GROUP) place on the target scale
    query: torch.Tensor  # (N, MEANING) teacher's coordinates of the query
    document: torch.Tensor  # (N, MEANING) and of the document

    def to(self, device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pin_memory(self) -> "Batch":
        """The same batch where a GPU copies it from; the loader calls this."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


class Batches(IterableDataset):
    """An endless stream of batches of about `tokens` tokens, alike in length."""

    def __init__(self, groups, encoder: Encoder, tokens: int, seed: int, explain_share: float = 0.15):
        super().__init__()
        self.groups, self.encoder, self.tokens = groups, encoder, tokens
        self.rng, self.explain_share = random.Random(seed), explain_share
        self.noise = np.random.default_rng(seed)

    def _rows(self, group):
        """(prompt, explanation with its grade or nothing, place of the second <|query|>) a document."""
        default = self.rng.random() < 0.4
        name = data.DEFAULT if default else data.INSTRUCTIONS.get(group.domain, data.DEFAULT)
        soft = pairs.soft_grades(group.target)
        told = self.rng.random() < self.explain_share
        size = self.rng.choices((30, 45, 90, 300), (5, 4, 0.8, 0.1))[0]
        back = len(self.encoder.text(group.query)) + 2
        rows = []
        for i, document in enumerate(group.docs):
            document = " ".join(document.split()[:size])
            ids = self.encoder.prompt(name, group.query, document, 420)
            tail = []
            if told:
                grade = int(self.noise.choice(4, p=soft[i] / soft[i].sum()))
                text = explain.write(group.query, document, grade)
                tail = [self.encoder.grades[grade], *self.encoder.explanation(text)]
            rows.append((ids, tail, len(ids) - back))
        return rows, soft

    def __iter__(self):
        worker, pending = get_worker_info(), []
        if worker is not None:  # each has an order of its own
            self.rng, self.noise = random.Random(worker.seed), np.random.default_rng(worker.seed)
        while True:
            for group in self.rng.sample(self.groups, len(self.groups)):
                rows, soft = self._rows(group)
                longest = max(len(p) + len(t) for p, t, _ in rows)
                pending.append((longest, rows, soft, group))
                if len(pending) == self.tokens // 24:
                    yield from self._flush(pending)
                    pending = []

    def _flush(self, pending):
        pending.sort(key=lambda x: x[0])
        batches, current = [], []
        for item in pending:
            if current and item[0] * pairs.GROUP * (len(current) + 1) > self.tokens:
                batches.append(current)
                current = []
            current.append(item)
        batches.append(current)
        self.rng.shuffle(batches)
        for batch in batches:
            yield self._tensors(batch)

    def _tensors(self, batch) -> Batch:
        rows = [row for _, group, _, _ in batch for row in group]
        width = -(-max(len(p) + len(t) for p, t, _ in rows) // 8) * 8
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        told, words, answer, second = [], [], [], []
        for r, (prompt, tail, place) in enumerate(rows):
            ids[r, : len(prompt) + len(tail)] = torch.tensor(prompt + tail)
            told += [r * width + len(prompt) + j - 1 for j in range(1, len(tail))]
            words += tail[1:]
            answer.append(r * width + len(prompt) - 1)
            second.append(r * width + place)
        meaning = np.stack([g.meaning[:, : shapes.MEANING] for _, _, _, g in batch]).astype(np.float32)
        floats = lambda parts: torch.tensor(np.concatenate(parts), dtype=torch.float32)
        return Batch(
            ids, torch.tensor(answer), torch.tensor(second), torch.tensor(told, dtype=torch.long),
            torch.tensor(words, dtype=torch.long), floats([soft for _, _, soft, _ in batch]),
            floats([g.target[None] for _, _, _, g in batch]),
            torch.tensor(meaning[:, 0]).repeat_interleave(pairs.GROUP, 0),
            torch.tensor(meaning[:, 1:].reshape(-1, shapes.MEANING)))


def stream(groups, encoder: Encoder, device: str, seed: int, explain_share: float):
    """An endless iterator of batches for a device; a GPU's are made by processes beside."""
    batches = Batches(groups, encoder, TOKENS[device], seed, explain_share)
    if device == "cpu":
        return iter(batches)
    # One process cannot make them as fast as a GPU uses them.
    return iter(DataLoader(batches, batch_size=None, num_workers=WORKERS, pin_memory=True, prefetch_factor=4))
