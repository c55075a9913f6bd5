"""A text's meaning as a weighted sum of its tokens' vectors: where the model's token vectors start.

Fitted to the teacher's vectors of many texts, such a sum comes nearer to them in a minute than the
whole model did in an hour of training from the teacher's vectors of single words.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def fit(ids: list[list[int]], coordinates: np.ndarray, first: np.ndarray, steps: int = 400, batch: int = 4096,
        seed: int = 1):
    """Token vectors (vocabulary x axes, unit length) and the logarithm of each token's weight.

    `ids` are texts' tokens, `coordinates` (texts x axes) the teacher's, `first` the vectors to begin with.
    Compared by the cosine within each of the four heads' axes, as the comparing layer does."""
    rng, wanted = np.random.default_rng(seed), torch.tensor(coordinates, dtype=torch.float32)
    vectors = torch.tensor(first, dtype=torch.float32).requires_grad_()
    weights = torch.zeros(len(first)).requires_grad_()
    rates = (3e-3, 2e-2)
    tuner = torch.optim.Adam([{"params": [vectors]}, {"params": [weights]}])
    for step in range(steps):
        for group, rate in zip(tuner.param_groups, rates):
            group["lr"] = rate * (1 - step / steps)
        chosen = rng.integers(0, len(ids), batch)
        flat = torch.tensor([t for i in chosen for t in ids[i]])
        starts = torch.tensor(np.cumsum([0] + [len(ids[i]) for i in chosen[:-1]]))
        got = F.embedding_bag(flat, vectors, starts, mode="sum", per_sample_weights=weights.exp()[flat])
        near = F.cosine_similarity(*(x.view(batch, -1, 4) for x in (got, wanted[chosen])), dim=1)
        (1 - near.mean()).backward()
        tuner.step()
        tuner.zero_grad()
        if step % 100 == 99:
            print(f"bag of tokens: step {step + 1}, cosine {near.mean():.3f}", flush=True)
    size = vectors.detach().norm(dim=1, keepdim=True).clamp(min=1e-6)
    logs = weights.detach() + size[:, 0].log()
    return (vectors.detach() / size).numpy(), logs.clamp(-2.0, 2.0).numpy()
