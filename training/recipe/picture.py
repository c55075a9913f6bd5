"""Lines over steps as an SVG, without a library: what a run's metrics.jsonl says."""

from __future__ import annotations

import html
import math
from pathlib import Path

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 360, 220, 52, 30, 10, 44


def panels(path: str | Path, charts: dict[str, dict[str, list[tuple[float, float]]]], columns: int = 3) -> None:
    """Writes one chart a title; each has lines by name, as (step, value); what is not finite is left out."""
    charts = {title: {n: [(x, y) for x, y in line if math.isfinite(y)] for n, line in lines.items()}
              for title, lines in charts.items()}
    charts = {title: {n: line for n, line in lines.items() if line} for title, lines in charts.items()}
    shown = [(title, lines) for title, lines in charts.items() if lines]
    rows = -(-len(shown) // columns)
    width, height = WIDTH * min(columns, max(1, len(shown))), HEIGHT * max(1, rows)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
             f'font-size="10"><rect width="{width}" height="{height}" fill="white"/>']
    for place, (title, lines) in enumerate(shown):
        parts.append(f'<g transform="translate({place % columns * WIDTH} {place // columns * HEIGHT})">')
        parts += _panel(title, lines)
        parts.append("</g>")
    Path(path).write_text("\n".join([*parts, "</svg>"]) + "\n")


def _panel(title: str, lines: dict[str, list[tuple[float, float]]]) -> list[str]:
    points = [p for line in lines.values() for p in line]
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points))
    x1, pad = max(x1, x0 + 1e-9), (y1 - y0) * 0.05 or abs(y1) * 0.05 or 1.0
    y0, y1 = y0 - pad, y1 + pad
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    at = lambda x, y: (LEFT + (x - x0) / (x1 - x0) * wide, TOP + (1 - (y - y0) / (y1 - y0)) * high)
    parts = [f'<text x="{LEFT}" y="14" font-size="12">{html.escape(title)}</text>',
             f'<rect x="{LEFT}" y="{TOP}" width="{wide}" height="{high}" fill="none" stroke="#bbb"/>']
    for i in range(5):
        value = y0 + (y1 - y0) * i / 4
        y = at(x0, value)[1]
        parts.append(f'<text x="{LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{value:.3g}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
    for x, anchor in ((x0, "start"), (x1, "end")):
        parts.append(f'<text x="{at(x, y0)[0]:.1f}" y="{TOP + high + 12}" text-anchor="{anchor}">{x:g}</text>')
    for i, (name, line) in enumerate(lines.items()):
        colour, dash = COLOURS[i % len(COLOURS)], ' stroke-dasharray="4 2"' if i >= len(COLOURS) else ""
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in sorted(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"{dash}/>')
        column, row = i % 4, i // 4
        parts.append(f'<text x="{LEFT + column * wide / 4:.0f}" y="{TOP + high + 25 + 11 * row}" fill="{colour}">'
                     f"{html.escape(name)}</text>")
    return parts
