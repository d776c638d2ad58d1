"""A plot and a table of compare.json; needs matplotlib, which the peers' environment has.

.venv-peers/bin/python benchmarks/serving/plot.py runs/serving/compare.json runs/serving
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHERS = "#c0392b", "#7f8c8d"
TITLES = {
    "null": "Null model, raw pixels",
    "shapes": "Shapes model on ONNX Runtime, PNG",
}


def plot(result, file):
    """Saturation above, p99 at the common rate below; a column for each model."""
    models = [model for model in TITLES if model in result]
    figure, axes = plt.subplots(2, len(models), figsize=(5 * len(models), 6), squeeze=False)
    for column, model in enumerate(models):
        rows = result[model]
        names = list(rows)
        colours = [OURS if name == "singlepass" else OTHERS for name in names]
        offered = next(iter(rows.values()))["latency"]["offered"]
        for axis, values, title in (
            (axes[0, column], [one["saturation"]["rate"] for one in rows.values()], "pictures/s"),
            (
                axes[1, column],
                [one["latency"]["p99_ms"] for one in rows.values()],
                f"p99 in ms at {offered:.0f} requests/s",
            ),
        ):
            bars = axis.barh(names, values, color=colours)
            axis.bar_label(bars, fmt="%.0f", padding=3)
            axis.invert_yaxis()
            axis.margins(x=0.15)
            axis.set_xlabel(title)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0, column].set_title(TITLES[model])
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def table(result):
    """The same as Markdown."""
    lines = []
    for model in TITLES:
        rows = result.get(model, {})
        if not rows:
            continue
        offered = next(iter(rows.values()))["latency"]["offered"]
        lines += [
            "",
            f"{TITLES[model]}; latencies at {offered:.0f} requests/s",
            "",
            "| | pictures/s | CPU ms each | alone, ms | median, ms | p99, ms | errors | MB |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, row in rows.items():
            most, at = row["saturation"], row["latency"]
            failed = most["errors"] + at["errors"]
            lines.append(
                f"| {name} | {most['rate']:.0f} | {most['cpu_ms']:.2f} | {most['unloaded_ms']:.2f} "
                f"| {at['median_ms']:.2f} | {at['p99_ms']:.2f} | {failed} "
                f"| {most['memory_mb']:.0f} |"
            )
    return "\n".join(lines[1:])


def main():
    result = json.loads(Path(sys.argv[1]).read_text())
    plot(result, Path(sys.argv[2]) / "compare.png")
    text = table(result)
    (Path(sys.argv[2]) / "compare.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
