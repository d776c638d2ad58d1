"""The figures of an evaluation as a table: text for the terminal, Markdown for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Cell = Callable[[float], str]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def thousandths(value: float) -> str:
    return f"{value:.3f}"


def tenths(value: float) -> str:
    return f"{value:.1f}"


def hundredths(value: float) -> str:
    return f"{value:.2f}"


# Key in evaluate.json -> how its column is headed and written.
JUDGED: dict[str, tuple[str, Cell]] = {
    "caption_accuracy": ("caption accuracy", percent),
    "frechet_distance": ("Fréchet distance", thousandths),
    "mode_coverage": ("mode coverage", percent),
    "ms_per_picture": ("ms/picture", tenths),
}
FEATURES: dict[str, tuple[str, Cell]] = {
    "fid": ("FID", hundredths),
    "patch_fid": ("patch FID", hundredths),
    "precision": ("precision", thousandths),
    "recall": ("recall", thousandths),
    "density": ("density", thousandths),
    "coverage": ("coverage", thousandths),
    "clip_score": ("CLIP score", hundredths),
}


def text_table(result: Mapping[str, Any]) -> str:
    """What `evaluate.json` holds, a line a generator: a table of the judge, one of the preset."""
    tables = []
    if result["generators"]:
        tables.append(aligned(rows_of(result["generators"], JUDGED)))
    if "features" in result:
        made = result["features"]["generators"]
        tables.append(aligned(rows_of(made, columns_in(made, FEATURES))))
    return "\n\n".join(tables)


def columns_in(
    figures: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, Cell]]
) -> dict[str, tuple[str, Cell]]:
    """The columns that at least one generator has a figure for."""
    return {k: column for k, column in columns.items() if any(k in f for f in figures.values())}


def rows_of(
    figures: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, Cell]]
) -> list[tuple[str, ...]]:
    """A row of heads and a row a generator; a figure that is not there is a dash."""
    rows: list[tuple[str, ...]] = [("", *(head for head, _ in columns.values()))]
    for name, own in figures.items():
        cells = (cell(own[k]) if k in own else "-" for k, (_, cell) in columns.items())
        rows.append((name, *cells))
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of one width: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    marks = ["---", *["---:"] * (len(rows[0]) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [escaped[0], marks, *escaped[1:]])
