"""The warning that a student lies below its noise floor."""

import json
from pathlib import Path

import pytest

from distill.floor import below_floor, floor_warning


def write_stats(
    path: Path, ratios: list[float], reach: float = 1.0, place: str = "mid/r0.1"
) -> Path:
    """Diagnostics every second step, with a force of `ratios` times a floor that moves."""
    lines: list[dict[str, float]] = []
    for step, ratio in enumerate(ratios):
        floor = 0.2 + 0.01 * (step % 3)
        own = {f"force/{place}": ratio * floor, f"floor/{place}": floor, f"reach/{place}": reach}
        far = {"force/far/r1": 3 * floor, "floor/far/r1": floor, "reach/far/r1": 1.0}
        lines += [{"step": 2 * step, **own, **far}, {"step": 2 * step + 1, "loss": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_force_clearly_below_its_floor_is_found(tmp_path: Path) -> None:
    found = below_floor(write_stats(tmp_path / "stats.jsonl", [0.7, 0.72, 0.68, 0.7]))
    assert found is not None
    assert found.keys() == {"mid/r0.1"}
    assert found["mid/r0.1"] == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    ("ratios", "reach"),
    [
        ([1.0, 1.02, 0.99, 1.0], 1.0),  # at the floor
        ([0.7, 1.5, 0.6, 1.3], 1.0),  # too noisy to tell
        ([0.7, 0.72, 0.68, 0.7], 0.1),  # lost: a small force, for nothing is in reach
        ([0.5] * 10 + [1.1, 1.2] * 5, 1.0),  # long ago
    ],
)
def test_a_force_that_is_not_clearly_below_is_left_out(
    tmp_path: Path, ratios: list[float], reach: float
) -> None:
    assert below_floor(write_stats(tmp_path / "stats.jsonl", ratios, reach)) == {}


def test_too_few_diagnostics_tell_nothing(tmp_path: Path) -> None:
    assert below_floor(tmp_path / "none.jsonl") is None
    assert below_floor(write_stats(tmp_path / "stats.jsonl", [0.5, 0.5])) is None
    path = write_stats(tmp_path / "stats.jsonl", [0.5, 0.5, 0.5])
    path.write_text(path.read_text().replace('"force/mid/r0.1"', '"other/mid/r0.1"', 1))
    assert below_floor(path) == {}


def test_the_warning_names_the_worst_places_first() -> None:
    said = floor_warning({"a/r1": 0.9, "b/r1": 0.5, "c/r1": 0.7, "d/r1": 0.8})
    assert "at b/r1 (0.50 of it), c/r1 (0.70 of it), d/r1 (0.80 of it) and 1 more" in said
    assert "and" not in floor_warning({"a/r1": 0.9}).partition(":")[0]
