"""Whether a student's samples are under-dispersed: its raw force lies below the noise floor.

The floor is the same figure with real samples in the student's place (`diagnostics`). Samples that
are less varied than real ones may feel less force than those: the loss is exploited, not won.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.stats import whole_lines

LAST_LINES = 10  # diagnostics that are looked at, the newest
FEWEST_LINES = 3
CLEARLY = 3.0  # standard errors
LOST = 0.5  # reach below which a small force means far away rather than close


def below_floor(path: Path) -> dict[str, float] | None:
    """Force over floor, by LAYER/radius, where it is clearly below 1: geometric means.

    Clearly: by 3 standard errors over the last ten diagnostics. Where samples are lost far from the
    positives (`reach` below a half) a small force says nothing, so it is left out. None where a
    run has too few diagnostics to tell, or none at all.
    """
    if not path.is_file():
        return None
    lines = [line for line in whole_lines(path) if any(key.startswith("floor/") for key in line)]
    lines = lines[-LAST_LINES:]
    if len(lines) < FEWEST_LINES:
        return None
    places = [key.removeprefix("floor/") for key in lines[-1] if key.startswith("floor/")]
    ratios = {place: clear_ratio(lines, place) for place in places}
    return {place: ratio for place, ratio in ratios.items() if ratio is not None}


def clear_ratio(lines: Sequence[Mapping[str, Any]], place: str) -> float | None:
    """The mean ratio of force to floor at a layer and radius; None if not clearly below 1."""
    force, floor = f"force/{place}", f"floor/{place}"
    seen = [line for line in lines if min(line.get(force, 0.0), line.get(floor, 0.0)) > 0]
    if len(seen) < FEWEST_LINES:
        return None
    reach = statistics.fmean(line.get(f"reach/{place}", 1.0) for line in seen)
    logs = [math.log(line[force] / line[floor]) for line in seen]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean) if reach >= LOST and mean + CLEARLY * error < 0 else None


def floor_warning(below: Mapping[str, float]) -> str:
    """One sentence about the layers and radii that `below_floor` found."""
    worst = sorted(below, key=lambda place: below[place])
    shown = ", ".join(f"{place} ({below[place]:.2f} of it)" for place in worst[:3])
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    return (
        f"warning: the student's raw force lies below its noise floor at {shown}{more}: its samples"
        " are less varied than real ones; look at recall and coverage"
    )
