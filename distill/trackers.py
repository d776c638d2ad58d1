"""TensorBoard and Weights & Biases, through accelerate: who is told a run's figures.

`stats.jsonl` is the record; what a tracker is told is a copy of its lines.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.tracking import (  # type: ignore[import-untyped]
    GeneralTracker,
    TensorBoardTracker,
    WandBTracker,
)

from distill.recipe import Recipe, RecipeError


def open_trackers(recipe: Recipe, start: int) -> list[GeneralTracker]:
    """The trackers that a recipe asks for, told its settings; the run goes on at step `start`.

    Raises:
        RecipeError: one of them is not installed.
    """
    names = wanted(recipe)
    if names:
        PartialState(cpu=recipe.train.device == "cpu")  # which accelerate's trackers log through
    trackers = [open_tracker(name, recipe, start) for name in names]
    for tracker in trackers:
        tracker.start()
        tracker.store_init_configuration(flat(recipe.model_dump(mode="json")))
    return trackers


def wanted(recipe: Recipe) -> Sequence[str]:
    """Their names: as the recipe says, else TensorBoard where it is installed."""
    if recipe.train.trackers is None:
        return ["tensorboard"] if installed("tensorboard") else []
    missing = [name for name in recipe.train.trackers if not installed(name)]
    if missing:
        raise RecipeError(f"train.trackers names {missing[0]}, which is not installed")
    return recipe.train.trackers


def installed(name: str) -> bool:
    """True if a module of that name can be imported."""
    return importlib.util.find_spec(name) is not None


def open_tracker(name: str, recipe: Recipe, start: int) -> GeneralTracker:
    """One tracker. What it was told from step `start` on TensorBoard forgets; W&B keeps."""
    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", recipe.run, purge_step=start)
    return WandBTracker(
        "singlepass", dir=str(recipe.run), name=recipe.run.name, resume="auto", mode=None
    )


def tell(trackers: Sequence[GeneralTracker], line: Mapping[str, Any]) -> None:
    """Passes on a line of statistics."""
    values = {name: value for name, value in line.items() if name != "step"}
    for tracker in trackers:
        tracker.log(values, step=line["step"])


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"drift.groups": 4, ...}; lists become text."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = str(value) if isinstance(value, list) else value
    return {key: value for key, value in found.items() if value is not None}
