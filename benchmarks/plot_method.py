"""The raw force of a run against its noise floor, as an SVG: a curve a layer, widest radius.

    python benchmarks/plot_method.py runs/shapes-long/stats.jsonl docs/force.svg

A curve is the ratio of `force` to `floor`, its mean over six diagnoses; 1 is where a student's
samples cannot be told from real ones at that radius.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

WIDTH_PX, HEIGHT_PX, MARGIN_PX = 720, 320, 48
LOW, HIGH = 0.8, 1.4  # of the ratio
TOGETHER = 6
COLOURS = ("#1b6ca8", "#c2571a", "#2e7d32", "#7b3fa0", "#555555")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stats", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    curves = ratios(args.stats)
    args.out.write_text(drawn(curves), "utf-8")
    for name, points in curves.items():
        print(f"{name}: {points[0][1]:.2f} at first, {points[-1][1]:.2f} at last")


def ratios(stats: Path) -> dict[str, list[tuple[float, float]]]:
    """By layer, (step, force / floor) at its widest radius. SystemExit: no diagnoses there."""
    lines = [json.loads(line) for line in stats.read_text("utf-8").splitlines()]
    lines = [line for line in lines if any(key.startswith("floor/") for key in line)]
    if len(lines) < TOGETHER:
        raise SystemExit(f"{stats} has {len(lines)} diagnoses; {TOGETHER} are needed")
    widest: dict[str, float] = {}
    for key in lines[0]:
        if key.startswith("floor/"):
            layer, _, radius = key.removeprefix("floor/").rpartition("/r")
            widest[layer] = max(widest.get(layer, 0.0), float(radius))
    groups = [lines[i : i + TOGETHER] for i in range(0, len(lines) - TOGETHER + 1, TOGETHER)]
    found = {}
    for layer, radius in widest.items():
        name = f"{layer}/r{radius:g}"
        found[name] = [
            (
                statistics.fmean(line["step"] for line in group),
                statistics.fmean(line[f"force/{name}"] / line[f"floor/{name}"] for line in group),
            )
            for group in groups
        ]
    return found


def drawn(curves: dict[str, list[tuple[float, float]]]) -> str:
    """The picture."""
    last = max(step for points in curves.values() for step, _ in points)

    def place(step: float, ratio: float) -> str:
        x = MARGIN_PX + (WIDTH_PX - 2 * MARGIN_PX) * step / last
        y = HEIGHT_PX - MARGIN_PX - (HEIGHT_PX - 2 * MARGIN_PX) * (ratio - LOW) / (HIGH - LOW)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="white"/>',
    ]
    for ratio in (0.8, 1.0, 1.2, 1.4):
        style = 'stroke="#333"' if ratio == 1 else 'stroke="#ddd"'
        parts.append(f'<polyline points="{place(0, ratio)} {place(last, ratio)}" {style}/>')
        x, y = place(0, ratio).split(",")
        parts.append(f'<text x="{float(x) - 28}" y="{float(y) + 4}">{ratio}</text>')
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(place(step, ratio) for step, ratio in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{60 + 200 * number}" y="24" fill="{colour}">{name}</text>')
    foot = f"steps, up to {last:.0f}; force / floor (1: not to be told from real samples)"
    parts.append(f'<text x="{MARGIN_PX}" y="{HEIGHT_PX - 14}">{foot}</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
