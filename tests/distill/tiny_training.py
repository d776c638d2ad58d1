"""A recipe, samples and a teacher, all tiny: a training step takes a few hundredths of a second."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from distill.data import Samples
from distill.recipe import Recipe, read_recipe
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import Condition

PROMPTS = ("a red circle", "blue", "a green square on the left")
LAYERS = ("down_blocks.1", "mid_block", "up_blocks.0")
BLOCKS = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
CPU = torch.device("cpu")


def write_recipe(folder: Path, teacher: Path) -> Path:
    """A whole recipe with its prompts beside it; six steps of two micro-batches."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", "utf-8")
    plain = {
        "run": "run",
        "teacher": {"model": str(teacher), "steps": 2, "guidance_scale": 2.0},
        "positives": {"prompts": "prompts.txt", "per_prompt": 10, "batch": 8},
        "drift": {
            "layers": list(LAYERS),
            "pool": 2,
            "radii": [0.1, 0.3],
            "groups": 2,
            "samples": 3,
            "positives": 4,
            "anchors": 2,
        },
        "train": {
            "steps": 6,
            "learning_rate": 1e-3,
            "final_learning_rate": 0.1,
            "warmup_steps": 2,
            "ema_decay": 0.9,
            "precision": "fp32",
            "accumulate": 2,
            "checkpoint_steps": 2,
            "sample_steps": 4,
            "diagnose_steps": 3,
            "trackers": [],
        },
        "export": {"model": "tiny", "repository": "models"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain), "utf-8")
    return path


def tiny_recipe(folder: Path, teacher: Path, *overrides: str) -> Recipe:
    return read_recipe(write_recipe(folder, teacher), overrides)


def tiny_samples(teacher: SdxlTeacher, per_prompt: int = 10, scale: float = 1.0) -> Samples:
    """Gaussian latents of the tiny prompts, seeded."""
    count = len(PROMPTS) * per_prompt
    latents = scale * draw(count, *teacher.latent_shape, seed=5)
    members = torch.split(torch.arange(count), per_prompt)
    return Samples(PROMPTS, teacher.encode(PROMPTS), latents, tuple(members))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Trained:
    """A finished run, and what was reported meanwhile."""

    recipe: Recipe
    student: Path
    lines: list[str]


class WatchedTeacher(SdxlTeacher):
    """A teacher that tells `watch` of every feature pass before it is made."""

    watch: Callable[[Tensor, Tensor, Tensor, Condition], None]

    def feature_pass(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition
    ) -> Callable[[], Tensor]:
        self.watch(x0, noise, sigma, condition)
        return super().feature_pass(x0, noise, sigma, condition)


def watched(
    folder: Path, watch: Callable[[Tensor, Tensor, Tensor, Condition], None]
) -> WatchedTeacher:
    teacher = WatchedTeacher(load_teacher(folder, CPU).pipe, CPU)
    teacher.watch = watch
    return teacher


def silent(text: str) -> None:
    """A report that nobody reads."""


def different_files(one: Path, other: Path) -> Sequence[str]:
    """Names of files that are not in both folders with the same bytes."""
    names = {str(p.relative_to(f)) for f in (one, other) for p in f.rglob("*") if p.is_file()}
    return sorted(
        name
        for name in names
        if not (one / name).is_file()
        or not (other / name).is_file()
        or (one / name).read_bytes() != (other / name).read_bytes()
    )
