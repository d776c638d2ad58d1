"""What it takes to keep features of positives and anchors (`drift.cached_draws`)."""

from __future__ import annotations

from dataclasses import dataclass

from distill.data import DataError
from distill.feature_cache import members_of_shard
from distill.footprint import StepCost
from distill.prompts import read_prompts
from distill.recipe import Positives, Recipe
from distill.sources import captioned_files, class_folders


@dataclass(frozen=True)
class CacheCost:
    """Sizes of a feature cache; a row is one sample at one draw."""

    draws: int
    row_bytes: int  # on the disk
    row_flops: int  # once, when it is made
    rows_read: int  # by a micro-batch, of all processes together
    rows_held: int  # in memory while a shard is made
    samples: int | None  # of all prompts together; None: they cannot be counted yet

    @property
    def sample_bytes(self) -> int:
        return self.draws * self.row_bytes

    @property
    def sample_flops(self) -> int:
        return self.draws * self.row_flops


def cache_cost(recipe: Recipe, step: StepCost) -> CacheCost | None:
    """The cost of a recipe's cache, from that of its step; None: it keeps no features."""
    draws = recipe.drift.cached_draws
    if not draws:
        return None
    return CacheCost(
        draws=draws,
        row_bytes=step.kept_bytes // step.real,
        row_flops=step.kept_flops // step.real,
        rows_read=step.real,
        rows_held=2 * draws * members_of_shard(recipe),  # in batches, and then in one piece
        samples=samples_of(recipe.positives),
    )


def samples_of(positives: Positives) -> int | None:
    """How many samples all prompts have together; a picture with two texts is two.

    None: what the recipe names is not there, or a data set that would have to be read. Prompts
    that are too long and pictures that cannot be read are counted.
    """
    try:
        if positives.source == "teacher":
            assert positives.prompts is not None, "the recipe's validation asks for it"
            return len(read_prompts(positives.prompts)) * positives.per_prompt
        if positives.folder is None:
            return None
        if positives.source == "classes":
            return sum(map(len, class_folders(positives.folder).values()))
        return sum(len(entry.texts) for entry in captioned_files(positives.folder).entries(0))
    except DataError:
        return None
