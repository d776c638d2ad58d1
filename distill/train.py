"""The training loop: one network, one optimiser, one loss (TFD, arXiv 2605.07327).

A run folder holds the resolved recipe, `stats.jsonl` (a line per step), sample grids, checkpoints
and, at the end, the student as a diffusers directory. The same command resumes: all randomness of
a step is a function of (seed, step, micro-batch), so a resumed run repeats bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill import checkpoint
from distill.data import Samples
from distill.features import FeatureExtractor
from distill.grids import save_grid
from distill.recipe import Recipe, Train
from distill.state import State
from distill.stats import drop_later_lines, write_whole
from distill.step import Randomness, diagnostics, micro_batch
from distill.student import level_of, make_student, save_student
from distill.teachers.teacher import Teacher

Report = Callable[[str], None]
GRID_PROMPTS = 8
GRID_SEEDS = 8


class TrainingError(RuntimeError):
    """Training cannot go on; the text says at which step, why, and what is kept."""


def run_training(
    teacher: Teacher, samples: Samples, recipe: Recipe, report: Report = print
) -> Path:
    """Trains, or resumes, to the last step and saves the student; returns its directory.

    Raises:
        TrainingError: the loss is not finite.
        DataError: a prompt has too few samples.
        ValueError: a layer that does not exist (the text lists those that do).
        CheckpointError: a checkpoint cannot be written.
    """
    drift, train = recipe.drift, recipe.train
    samples.check_enough(drift.positives + drift.anchors)
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    recipe.run.mkdir(parents=True, exist_ok=True)
    write_whole(recipe.run / "recipe.yaml", recipe.resolved())

    # Student, optimiser, moving average.
    student = make_student(teacher)
    parameters = list(student.parameters())
    ema = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, betas=train.betas, weight_decay=train.weight_decay
    )
    state = State(student, ema, optimizer)

    # Resume, if there is something to resume from.
    folder = recipe.run / "checkpoints"
    start = 0
    if (last := checkpoint.latest(folder, report)) is not None:
        start = state.restore(last)
        report(f"resumed from {last}")
    stats_path = recipe.run / "stats.jsonl"
    drop_later_lines(stats_path, start)

    # The loop.
    per_step = drift.groups * drift.samples * train.accumulate
    bar = tqdm(
        total=train.steps * per_step,
        initial=start * per_step,
        desc="distilling",
        unit="img",
        disable=None,
    )
    with bar, stats_path.open("a", encoding="utf-8") as stats:
        for step in range(start, train.steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step, train)
            optimizer.zero_grad(set_to_none=True)
            figures: dict[str, float] = {}
            for micro in range(train.accumulate):
                randomness = Randomness.of(train.seed, step, micro)
                loss, seen = micro_batch(teacher, student, extractor, samples, recipe, randomness)
                if not torch.isfinite(loss):
                    raise TrainingError(not_finite("loss", loss.item(), step, folder, report))
                (loss / train.accumulate).backward()  # type: ignore[no-untyped-call]
                for name, value in {"loss": loss.detach(), **seen}.items():
                    figures[name] = figures.get(name, 0.0) + float(value) / train.accumulate
            norm = nn.utils.clip_grad_norm_(parameters, train.clip_norm)
            if not torch.isfinite(norm):
                raise TrainingError(not_finite("gradient", norm.item(), step, folder, report))
            optimizer.step()
            state.average(train.ema_decay, step)

            # Figures, grids, checkpoints.
            done = step + 1
            if step % train.diagnose_steps == 0:
                figures |= diagnostics(teacher, student, extractor, samples, recipe, step)
            line = {"step": step, "grad_norm": norm.item(), "lr": learning_rate(step, train)}
            stats.write(json.dumps({**line, **figures}) + "\n")
            stats.flush()
            if done % train.sample_steps == 0 or done == train.steps:
                write_grid(teacher, state.weights(), samples, recipe, done)
            if done % train.checkpoint_steps == 0 or done == train.steps:
                state.save(folder, done, train.keep_checkpoints)
            bar.set_postfix(step=done, loss=f"{figures['loss']:.2f}", refresh=False)
            bar.update(per_step)

    target = recipe.run / "student"
    save_student(teacher, state.weights(), level_of(teacher, recipe), target)
    return target


def learning_rate(step: int, train: Train) -> float:
    """Linear warm-up over `warmup_steps`, times half a cosine down to `final_learning_rate`."""
    warm = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    final = train.final_learning_rate
    cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * step / train.steps))
    return train.learning_rate * warm * cosine


def not_finite(what: str, value: float, step: int, folder: Path, report: Report) -> str:
    """The sentence that ends a run whose numbers are no longer numbers."""
    last = checkpoint.latest(folder, report)
    kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    return (
        f"the {what} is {value} at step {step}; training stopped before it could harm the student;"
        f" {kept}. Begin another run folder with a lower train.learning_rate or train.clip_norm"
    )


@torch.no_grad()
def write_grid(
    teacher: Teacher, weights: Mapping[str, Tensor], samples: Samples, recipe: Recipe, step: int
) -> None:
    """Pictures of the first prompts (a row each) with the same seeds every time."""
    student = make_student(teacher).eval()
    student.load_state_dict(weights)
    count = min(GRID_PROMPTS, len(samples.prompts))
    spread = torch.linspace(0, len(samples.prompts) - 1, count).long()
    conditions = samples.conditions[spread].repeated(GRID_SEEDS).to(teacher.device)
    noise = teacher.noise(range(GRID_SEEDS)).repeat(count, 1, 1, 1)
    latents = teacher.one_step(student, noise, level_of(teacher, recipe), conditions)
    save_grid(teacher.decode(latents), GRID_SEEDS, recipe.run / "grids" / f"step-{step:08d}.png")
