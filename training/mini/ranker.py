"""A teacher that learns from judgments how MiniLM's cosine and the words that two texts share make relevance.

A network of a few hundred weights over eight figures of a pair, fitted as a list (ListNet, Cao et al. 2007).
On queries it never saw it ranks better than either: the figures are in `training/README.md`.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
import torch

from mini.text import Bm25, content_words, stem, stems

HIDDEN, NETS, STEPS, RATE = 16, 4, 600, 1e-2
LISTS, LIST = 48, 40  # queries of a step, and documents drawn from each
SHARPNESS = 5.0  # of the gains' softmax, the highest grade being 1


@lru_cache(maxsize=400_000)
def _stems(text: str) -> tuple[str, ...]:
    return tuple(stems(text))


class Ranker:
    """Places documents of one judged set on the target scale; fitted by `Ranker.fit`."""

    def __init__(self, texts):
        self.words = Bm25([_stems(t) for t in texts])
        self.nets: list[torch.nn.Module] = []

    def figures(self, query: str, texts, titles, cosines) -> np.ndarray:
        """(documents, 8): MiniLM's cosine; BM25 and share of the query's words found in the text, the latter in the
        title too; share of the title's words that were asked for; word pairs found; lengths of query and title."""
        asked, idf = _stems(query), self.words.idf
        content = {stem(w) for w in content_words(query)}
        most = sum(idf.get(s, self.words.default_idf) for s in content) or 1.0
        pairs, rows = set(zip(asked, asked[1:])), []
        for text, title, cosine in zip(texts, titles, cosines):
            found, named = _stems(text), _stems(title)
            rows.append((
                cosine, self.words.match(asked, _counts(found), len(found)) / most, self.words.coverage(query, set(found)),
                self.words.coverage(query, set(named)), self.words.coverage(title or "x", set(asked)),
                len(pairs & set(zip(found, found[1:]))) / max(1, len(pairs)), np.log(len(content)), np.log1p(len(named))))
        return np.array(rows, np.float32)

    @classmethod
    def fit(cls, lists, blends, seed: int = 0) -> "Ranker":
        """From `lists` of (query, texts, titles, cosines, gains), one a query. `blends` (all pairs) are places on the
        target scale, whose spread this teacher's places take over."""
        ranker = cls(dict.fromkeys(t for _, texts, *_ in lists for t in texts))
        figures = [ranker.figures(*row[:4]) for row in lists]
        flat = np.concatenate(figures)
        ranker.mean, ranker.spread = flat.mean(0), flat.std(0) + 1e-6
        inputs = torch.tensor((flat - ranker.mean) / ranker.spread)
        gains = torch.tensor(np.concatenate([row[4] for row in lists]), dtype=torch.float32)
        ends = np.cumsum([0] + [len(f) for f in figures])
        ranker.nets = [_fit(inputs, gains, ends, seed + i) for i in range(NETS)]
        steps = np.linspace(0, 1, 257)
        ranker.scores, ranker.blends = np.quantile(ranker._score(flat), steps), np.quantile(blends, steps)
        return ranker

    @torch.no_grad()
    def _score(self, figures: np.ndarray) -> np.ndarray:
        inputs = torch.tensor((figures - self.mean) / self.spread)
        return sum(net(inputs)[:, 0] for net in self.nets).numpy()

    def places(self, query: str, texts, titles, cosines) -> np.ndarray:
        """Places of a query's documents on the target scale."""
        return np.interp(self._score(self.figures(query, texts, titles, cosines)), self.scores, self.blends)


@lru_cache(maxsize=400_000)
def _counts(found: tuple[str, ...]) -> Counter:
    return Counter(found)


def _fit(inputs, gains, ends, seed: int):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = torch.nn.Sequential(torch.nn.Linear(inputs.shape[1], HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, 1))
    tuner = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    for step in range(STEPS):
        chosen = rng.integers(0, len(ends) - 1, LISTS)
        rows = torch.tensor(np.stack([rng.integers(ends[i], ends[i + 1], LIST) for i in chosen]))
        wanted = (gains[rows] * SHARPNESS).softmax(1)
        loss = -(wanted * net(inputs[rows]).squeeze(-1).log_softmax(1)).sum(1).mean()
        for group in tuner.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        tuner.zero_grad()
        loss.backward()
        tuner.step()
    return net
