"""Which judgments a step learns from: a pure function of seed and step, the same on every process.

So a run that is resumed goes on exactly where it was, and any number of processes sees the same batches.
"""

from __future__ import annotations

import random

from recipe.judgments import Judgment

STRETCHES = 20  # of a run, at whose beginnings a growing share is told anew
WINDOW = 32  # batches whose units are sorted by length together


class Plan:
    """Batches of units; a unit is up to `group` documents of one query, which stay together."""

    def __init__(self, judgments: list[Judgment], lengths: list[int], batch: int, group: int, seed: int,
                 steps: int, begin: float = 1.0):
        """`lengths`: of each judgment's sequence, in tokens. `begin`: the share of the clearest judgments
        at the first step, which grows to all of them at half of `steps`."""
        self.judgments, self.lengths, self.group, self.seed = judgments, lengths, group, seed
        self.units_a_step = max(1, batch // group)
        self.clear_first = sorted(range(len(judgments)), key=lambda i: -max(judgments[i].target))
        self.batches: list[list[list[int]]] = []
        epoch, share = 0, begin
        while len(self.batches) < steps:
            if begin < 1:
                share = min(1.0, begin + (1 - begin) * 2 * len(self.batches) / steps)
            found = self._epoch(random.Random(f"{seed} {epoch}"), share)
            # While the share grows an epoch may end early: a long one would use up the run.
            self.batches += found[: max(1, steps // STRETCHES)] if share < 1 else found
            epoch += 1

    def _epoch(self, rng: random.Random, share: float) -> list[list[list[int]]]:
        pool = self.clear_first[: max(self.group, int(share * len(self.clear_first)))]
        units = self._units(rng, pool)
        rng.shuffle(units)
        while len(units) % self.units_a_step:  # the last batch is filled up
            units.append(units[rng.randrange(len(units))])
        size, batches = self.units_a_step * WINDOW, []
        for at in range(0, len(units), size):
            window = sorted(units[at : at + size], key=lambda unit: max(self.lengths[i] for i in unit))
            batches += [window[b : b + self.units_a_step] for b in range(0, len(window), self.units_a_step)]
        rng.shuffle(batches)
        return batches

    def _units(self, rng: random.Random, pool: list[int]) -> list[list[int]]:
        if self.group == 1:
            return [[i] for i in pool]
        by_query: dict[str, list[int]] = {}
        for i in pool:
            by_query.setdefault(self.judgments[i].query_id, []).append(i)
        units = []
        for found in by_query.values():
            rng.shuffle(found)
            units += [found[at : at + self.group] for at in range(0, len(found), self.group)]
        return units

    def step(self, step: int) -> list[list[int]]:
        """The units of a step, counted from 0."""
        return self.batches[step]
