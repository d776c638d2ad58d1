"""The ways to make pictures that an evaluation sets side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.recipe import Recipe
from distill.student import level_of
from distill.teachers.teacher import Condition, Teacher, weights_digest


@dataclass(frozen=True)
class Generator:
    """A way to make latents of conditions and seeds, and what it is called in the table."""

    name: str
    kind: str  # as a recipe's evaluate.generators names it
    sha256: str  # of everything that its pictures depend on
    latents: Callable[[Condition, Sequence[int]], Tensor]


def generators(teacher: Teacher, student: nn.Module | None, recipe: Recipe) -> list[Generator]:
    """The teacher in many steps and in one, and the student if there is one."""
    steps, guidance = recipe.teacher.steps, recipe.teacher.guidance_scale
    last = teacher.last_level
    weights = teacher.sampling_digest() + teacher.picture_digest()
    found = [
        Generator(
            f"teacher, {steps} steps",
            "teacher",
            digest_of(weights, steps, guidance),
            lambda c, s: teacher.sample(c, s, steps, guidance),
        ),
        Generator(
            "teacher, 1 step",
            "one_step_teacher",
            digest_of(weights, last),
            one_step(teacher, teacher.denoiser, last),
        ),
    ]
    if student is not None:
        level = level_of(teacher, recipe)
        own = weights_digest(student.state_dict())
        found.append(
            Generator(
                "student, 1 step",
                "student",
                digest_of(weights, own, level),
                one_step(teacher, student, level),
            )
        )
    return found


def one_step(
    teacher: Teacher, denoiser: nn.Module, level: float
) -> Callable[[Condition, Sequence[int]], Tensor]:
    """A denoiser as a generator in one unguided call at `level`."""

    @torch.no_grad()
    def latents(condition: Condition, seeds: Sequence[int]) -> Tensor:
        noise = teacher.noise(seeds)
        return teacher.one_step(denoiser, noise, level, condition.to(teacher.device))

    return latents


def digest_of(*parts: object) -> str:
    """sha256 over the text of the parts."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
