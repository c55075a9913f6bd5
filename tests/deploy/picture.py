#!/usr/bin/env python3
"""Draws the dashboard's panels from its own queries, asked of a real Prometheus under load.

    picture.py target/release/verdict docs/dashboard.png

For docs: it is not Grafana, whose drawing differs, but the data are what Grafana would get. Needs
what tests/deploy/live.py needs, and matplotlib.
"""

import contextlib
import math
import sys
import time

import live
import report

SECONDS = 80
# The load's first seconds have no rates yet.
SKIPPED = 15
COLUMNS = 24
UNITS = {"s": "s", "percentunit": "share", "reqps": "1/s", "ops": "1/s", "short": "", "none": "", "bytes": "B"}


def series(prometheus, target, start, end):
    """Label, times and values of each series of one query."""
    answer = prometheus.get(
        "query_range", query=live.as_grafana_sends_it(target["expr"]), start=start, end=end, step=1
    )
    if answer["status"] != "success":
        raise SystemExit(f"{target['expr']}: {answer['error']}")
    for line in answer["data"]["result"]:
        label = target.get("legendFormat", "")
        for name, value in line["metric"].items():
            label = label.replace("{{" + name + "}}", value).replace("{{ " + name + " }}", value)
        yield label, [at - start for at, _ in line["values"]], [float(value) for _, value in line["values"]]


def lines(axes, panel, prometheus, span):
    for target in panel["targets"]:
        for label, times, values in series(prometheus, target, *span):
            axes.plot(times, values, linewidth=1, label=label)
    # From 0, and noise is not to fill a panel.
    axes.set_ylim(0, max(axes.get_ylim()[1], 0.01))
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    axes.set_ylabel(UNITS.get(unit, unit), fontsize=6)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=5, loc="upper left", framealpha=0.5)


def heat(axes, panel, prometheus, span):
    """A row for each bucket; `le` counts cumulate, so each has the one below taken off."""
    found = [(float(label), values) for label, _, values in series(prometheus, panel["targets"][0], *span)]
    found = [(bound, values) for bound, values in sorted(found) if not math.isinf(bound)]
    length = min(len(values) for _, values in found)
    rows, below = [], [0.0] * length
    for _, values in found:
        rows.append([max(0.0, value - under) for value, under in zip(values[:length], below, strict=True)])
        below = values[:length]
    axes.imshow(rows, aspect="auto", origin="lower", cmap="Blues", interpolation="nearest")
    places = range(0, len(found), max(1, len(found) // 5))
    axes.set_yticks(list(places), [f"{found[place][0]:g}" for place in places])


def number(axes, panel, prometheus, span):
    values = [values[-1] for target in panel["targets"] for _, _, values in series(prometheus, target, *span)]
    share = panel["fieldConfig"]["defaults"].get("unit") == "percentunit"
    text = ", ".join(f"{value:.1%}" if share else f"{value:.3g}" for value in values)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=14)
    axes.set_xticks([])
    axes.set_yticks([])


def draw(prometheus, span, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = {"timeseries": lines, "heatmap": heat, "stat": number}
    panels = [panel for panel in report.dashboard()["panels"] if panel["type"] in kinds]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = pyplot.figure(figsize=(14, bottom * 0.26))
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / COLUMNS, 1 - place["y"] / bottom
        width, height = place["w"] / COLUMNS, place["h"] / bottom
        axes = figure.add_axes((left + 0.03, top - height * 0.86, width - 0.04, height * 0.68))
        axes.set_title(panel["title"], fontsize=8)
        axes.tick_params(labelsize=6)
        kinds[panel["type"]](axes, panel, prometheus, span)
    figure.savefig(path, dpi=80)
    return len(panels)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    prometheus = report.tool("prometheus") or sys.exit("prometheus is not installed (Debian: prometheus)")
    with contextlib.ExitStack() as stack:
        _, asked, _ = live.scraped(stack, sys.argv[1], prometheus)
        start = time.time()
        time.sleep(SECONDS)
        print(draw(asked, (start + SKIPPED, start + SECONDS), sys.argv[2]), "panels")


if __name__ == "__main__":
    main()
