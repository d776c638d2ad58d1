"""The samples a student is drawn to: latents grouped by prompt, and how a step draws from them.

Two sources, one shape: real pictures, encoded (`encoding`), or samples of the teacher (`bank`).
Latents and conditions may lie in memory or on the disk (`shards`): a draw reads what it draws.

Shapes: M samples, B groups of a step; c x h x w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distill.teachers.teacher import Condition

Report = Callable[[str], None]


class DataError(ValueError):
    """Samples that are missing, unreadable or too few; the text names them."""


class Rows(Protocol):
    """What is indexed by rows like a tensor [M, ...], be it one or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The rows of an index of any shape: [*index.shape, ...]."""


class ConditionRows(Protocol):
    """What is indexed like a `Condition`, be it one or not."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor | slice) -> Condition: ...


@dataclass(frozen=True)
class Samples:
    """Latents [M, c, h, w], read on the CPU, and which of them belong to each prompt."""

    prompts: tuple[str, ...]
    conditions: ConditionRows  # one per prompt
    latents: Rows
    members: tuple[Tensor, ...]  # per prompt, indices into latents, int64
    class_names: tuple[str, ...] = ()  # of all classes of the teacher, where the pictures have them

    def check_enough(self, needed: int) -> None:
        """DataError unless every prompt has `needed` samples, so that no draw overlaps another."""
        if not self.prompts:
            raise DataError("there is no prompt to learn: the prompt bank is empty")
        for prompt, members in zip(self.prompts, self.members, strict=True):
            if len(members) < needed:
                raise DataError(
                    f"prompt {prompt!r} has {len(members)} samples; drift.positives +"
                    f" drift.anchors asks for {needed} of each prompt"
                )


@dataclass(frozen=True)
class Choice:
    """What a draw is of, before anything is read: prompts, and samples of each."""

    prompts: Tensor  # [B] int64
    rows: tuple[Tensor, ...]  # each [B, count] int64, indices into the latents

    def __getitem__(self, groups: slice) -> Choice:
        """Some of the groups: the share of one process, say."""
        return Choice(self.prompts[groups], tuple(part[groups] for part in self.rows))


@dataclass(frozen=True)
class Draw:
    """One micro-batch: the prompts of its groups, and samples of each that do not overlap."""

    conditions: Condition  # [B, ...]
    parts: tuple[Tensor, ...]  # each [B, count, c, h, w]
    choice: Choice


def choose(
    samples: Samples, groups: int, counts: Sequence[int], rng: np.random.Generator
) -> Choice:
    """Chooses `groups` prompts, different while there are enough, and disjoint samples of each.

    A prompt with fewer samples than all counts together gives its last part with repetition
    of its own members; `Samples.check_enough` keeps that from positives and anchors.
    """
    count = len(samples.prompts)
    chosen = rng.choice(count, groups, replace=groups > count)
    total = sum(counts)
    rows = []
    for prompt in chosen:
        members = samples.members[prompt].numpy()
        order = rng.permutation(members)
        rows.append(np.resize(order, total))
    parts = torch.split(torch.from_numpy(np.stack(rows)), list(counts), dim=1)
    return Choice(torch.from_numpy(chosen), parts)


def gather(samples: Samples, choice: Choice) -> Draw:
    """Reads what was chosen."""
    picked = samples.latents[torch.cat(choice.rows, dim=1)]  # [B, total, c, h, w]
    parts = torch.split(picked, [part.shape[1] for part in choice.rows], dim=1)
    return Draw(samples.conditions[choice.prompts], parts, choice)


def draw(
    samples: Samples,
    groups: int,
    counts: Sequence[int],
    rng: np.random.Generator,
    own: slice = slice(None),
) -> Draw:
    """`choose`, then `gather`: a function of the generator alone.

    Only the `own` ones of the groups are read; what they are does not depend on which are read.
    """
    return gather(samples, choose(samples, groups, counts, rng)[own])
