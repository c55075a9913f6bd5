#!/usr/bin/env python3
"""Consistent hashing with bounded load, simulated: what it does to cache hits and to waiting.

    simulate.py             the table of docs/scaling.md
    simulate.py --svg FILE  its picture as well

Requests come at random times for queries whose popularity falls with their rank (Zipf). A server
answers one request after another; one whose query is in its cache costs less, by what the prefix is
of the whole. Policies: any server at random; the less loaded of two; the hash's server whatever its
load; the same unless it has more than FACTOR times the mean of what is open, then the next on the
ring. Seeded: the same numbers on every machine. Needs nothing but Python.
"""

import argparse
import bisect
import collections
import heapq
import random

SERVERS = 16
REQUESTS = 120_000
QUERIES = 100_000  # distinct ones
SKEW = 1.0  # of the popularity: the query of rank r is asked in proportion to 1 / r ** SKEW
CACHE = 500  # queries whose prefix one server keeps
SAVED = 0.40  # of the work of a request, when its prefix is there: docs/scaling.md
LOAD = 0.70  # offered, of what the servers could do without any cache
POINTS = 256  # of a server on the ring
POLICIES = [
    ("random", None),
    ("two choices", None),
    ("hash", None),
    ("hash, 2.0", 2.0),
    ("hash, 1.5", 1.5),
    ("hash, 1.25", 1.25),
]
Result = collections.namedtuple("Result", "name hits median p99 busiest spilled")


class Cache:
    """Least recently used goes first."""

    def __init__(self):
        self.kept = collections.OrderedDict()

    def has(self, query):
        hit = query in self.kept
        self.kept[query] = True
        self.kept.move_to_end(query)
        if len(self.kept) > CACHE:
            self.kept.popitem(last=False)
        return hit


def traffic(seed):
    """Times and queries, the same for every policy."""
    chance = random.Random(seed)
    weights = [1 / rank**SKEW for rank in range(1, QUERIES + 1)]
    queries = chance.choices(range(QUERIES), weights, k=REQUESTS)
    now, times = 0.0, []
    for _ in range(REQUESTS):
        now += chance.expovariate(SERVERS * LOAD)
        times.append(now)
    return times, queries


def ring(seed):
    """For each query, the servers in the order of the ring from its place on."""
    chance = random.Random(seed)
    points = sorted((chance.random(), server) for server in range(SERVERS) for _ in range(POINTS))
    places = [place for place, _ in points]
    orders = {}

    def order(query):
        if query not in orders:
            start = bisect.bisect(places, random.Random(query).random())
            turn = (points[(start + step) % len(points)][1] for step in range(len(points)))
            orders[query] = list(dict.fromkeys(turn))
        return orders[query]

    return order


def simulate(name, factor, times, queries, order):
    chance = random.Random(name)
    caches = [Cache() for _ in range(SERVERS)]
    free = [0.0] * SERVERS  # when a server will have answered all that it has
    open_now = [0] * SERVERS
    ends = []  # of what is open, soonest first
    waits, hits, spilled, work = [], 0, 0, [0.0] * SERVERS
    for now, query in zip(times, queries, strict=True):
        while ends and ends[0][0] <= now:
            open_now[heapq.heappop(ends)[1]] -= 1
        if name == "random":
            server = chance.randrange(SERVERS)
        elif name == "two choices":
            server = min(chance.sample(range(SERVERS), 2), key=open_now.__getitem__)
        else:
            line = order(query)
            bound = factor and factor * (len(ends) + 1) / SERVERS
            # As Envoy has it: a server may hold one more as long as it is below the bound.
            server = next((one for one in line if not bound or open_now[one] < bound), line[0])
            spilled += server != line[0]
        hit = caches[server].has(query)
        hits += hit
        cost = 1 - SAVED * hit
        start = max(now, free[server])
        free[server] = start + cost
        work[server] += cost
        open_now[server] += 1
        heapq.heappush(ends, (free[server], server))
        waits.append(start - now)
    # Half of the run fills caches and queues.
    waits = sorted(waits[REQUESTS // 2 :])
    mean = sum(work) / SERVERS
    return Result(
        name,
        hits / REQUESTS,
        waits[len(waits) // 2],
        waits[len(waits) * 99 // 100],
        max(work) / mean,
        spilled / REQUESTS,
    )


def results():
    (times, queries), order = traffic(1), ring(2)
    return [simulate(name, factor, times, queries, order) for name, factor in POLICIES]


def table(rows):
    lines = [
        "| policy | prefix found | median wait | p99 wait | busiest server, of the mean | not at its first server |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        away = f"{row.spilled:.1%}" if row.name.startswith("hash") else ""
        lines.append(
            f"| {row.name} | {row.hits:.0%} | {row.median:.2f} | {row.p99:.1f} | {row.busiest:.2f} | {away} |"
        )
    return "\n".join(lines)


def picture(rows):
    """Two rows of bars, in SVG."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="300" font-family="sans-serif" font-size="12">',
        '<rect width="640" height="300" fill="white"/>',
    ]
    worst = max(row.p99 for row in rows)
    for column, (title, value, label) in enumerate(
        [
            ("prefix found, of all requests", lambda row: row.hits, lambda row: f"{row.hits:.0%}"),
            ("p99 of the wait, in uncached requests", lambda row: row.p99 / worst, lambda row: f"{row.p99:.1f}"),
        ]
    ):
        left = 110 + column * 290
        parts.append(f'<text x="{left}" y="24" font-weight="bold">{title}</text>')
        for line, row in enumerate(rows):
            top = 44 + line * 40
            if column == 0:
                parts.append(f'<text x="100" y="{top + 17}" text-anchor="end">{row.name}</text>')
            width = max(1, 180 * value(row))
            parts.append(f'<rect x="{left}" y="{top}" width="{width:.0f}" height="24" fill="#3b7a8f"/>')
            parts.append(f'<text x="{left + width + 6:.0f}" y="{top + 17}">{label(row)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--svg", metavar="FILE")
    arguments = parser.parse_args()
    rows = results()
    print(table(rows))
    if arguments.svg:
        with open(arguments.svg, "w", encoding="utf-8") as file:
            file.write(picture(rows))


if __name__ == "__main__":
    main()
