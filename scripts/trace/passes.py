"""Where a pass's time goes: the kernels of the most frequent kind of pass in a trace of `trace.cpp`.

    python3 scripts/trace/passes.py TRACE [HOW_MANY_KINDS]
"""

import re
import sys
from collections import defaultdict


def passes(lines):
    """Passes by kind: (stream, kernels, grid of the first) -> lists of (begin, end, grid, name)."""
    rows, current, found = [], {}, defaultdict(list)
    for line in lines:
        parts = line.rstrip("\n").split(" ", 4)
        if len(parts) == 5:  # the last line may be cut off
            rows.append((int(parts[0]), int(parts[1]), int(parts[2]), parts[3], parts[4]))
    for begin, end, stream, grid, name in sorted(rows):
        if name.startswith("embed"):
            if stream in current:
                found[(stream, len(current[stream]), current[stream][0][2])].append(current[stream])
            current[stream] = []
        if stream in current:
            current[stream].append((begin, end, grid, re.sub("<.*", "", name)))
    return found


def table(kind, runs):
    """The later two thirds of a kind's passes: per kernel its count, time, and the wait before it."""
    runs = runs[len(runs) // 3 :]
    sums = defaultdict(lambda: [0, 0.0, 0.0])
    for run in runs:
        before = run[0][0]
        for begin, end, grid, name in run:
            entry = sums[(name, grid)]
            entry[0] += 1
            # One that began before the one before had ended waited for it until then.
            entry[1] += max(0, end - max(begin, before)) / 1e3
            entry[2] += max(0, begin - before) / 1e3
            before = max(before, end)
    spans = sorted((max(end for _, end, *_ in run) - run[0][0]) / 1e3 for run in runs)
    busy, waits = (sum(entry[i] for entry in sums.values()) / len(runs) for i in (1, 2))
    stream, count, grid = kind
    yield f"stream {stream}, {count} kernels, first grid {grid}: {len(runs)} passes, median {spans[len(spans) // 2]:.0f} us"
    yield f"  kernels {busy:.0f} us, between them {waits:.0f} us"
    for (name, grid), (times, us, wait) in sorted(sums.items(), key=lambda item: -item[1][1])[:16]:
        share = f"{times / len(runs):5.1f} x {us / times:7.2f} = {us / len(runs):7.1f} us, before each {wait / times:5.2f}"
        yield f"  {share}  grid {grid:11} {name[:60]}"


def main():
    with open(sys.argv[1]) as lines:
        found = passes(lines)
    for kind in sorted(found, key=lambda kind: -len(found[kind]))[: int(sys.argv[2]) if len(sys.argv) > 2 else 1]:
        print("\n".join(table(kind, found[kind])))


if __name__ == "__main__":
    main()
