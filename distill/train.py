"""The training loop: one network, one optimiser, one loss (TFD, arXiv 2605.07327).

A run folder holds the resolved recipe, `stats.jsonl` (a line per step), sample grids, checkpoints
and, at the end, the student as a diffusers directory. The same command resumes: all randomness of
a step is a function of (seed, step, micro-batch), so a resumed run repeats bit for bit.

Shapes: B groups, N student samples, P positives and A anchors per group; c x h x w latents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill import checkpoint
from distill.data import Draw, Samples, draw
from distill.diagnostics import diagnose
from distill.features import FeatureExtractor
from distill.grids import save_grid
from distill.losses import tfd_loss
from distill.noise import sample_sigma
from distill.recipe import Drift, Recipe, Train
from distill.state import State
from distill.stats import drop_later_lines, write_whole
from distill.student import level_of, make_student, save_student
from distill.teachers.teacher import Condition, Teacher

Report = Callable[[str], None]
GRID_PROMPTS = 8
GRID_SEEDS = 8


class TrainingError(RuntimeError):
    """Training cannot go on; the text says at which step, why, and what is kept."""


@dataclass(frozen=True)
class Randomness:
    """The random numbers of one micro-batch, from (seed, step, micro-batch) alone."""

    arrays: np.random.Generator
    tensors: torch.Generator

    @classmethod
    def of(cls, seed: int, step: int, micro: int) -> Randomness:
        arrays = np.random.default_rng([seed, step, micro])
        seeded = torch.Generator("cpu").manual_seed(int(arrays.integers(2**62)))
        return cls(arrays, seeded)

    def normal(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.randn(shape, generator=self.tensors).to(device)


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


def micro_batch(
    teacher: Teacher,
    student: nn.Module,
    extractor: FeatureExtractor,
    samples: Samples,
    recipe: Recipe,
    randomness: Randomness,
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """Loss and figures of `groups` conditions."""
    drift = recipe.drift
    drawn = draw(samples, drift.groups, (drift.positives, drift.anchors), randomness.arrays)
    generated = generate(teacher, student, drawn.conditions, recipe, randomness)
    sigma = step_sigma(drift, randomness).to(teacher.device)
    features_g = features(teacher, extractor, generated, drawn.conditions, sigma, randomness)
    # Two passes are the fewest: one keeps its graph, the other need not and so costs a third.
    with torch.no_grad():
        both = torch.cat(drawn.parts, dim=1)
        features_both = features(teacher, extractor, both, drawn.conditions, sigma, randomness)
    return tfd_loss(
        features_g,
        {layer: phi[:, : drift.positives] for layer, phi in features_both.items()},
        {layer: phi[:, drift.positives :] for layer, phi in features_both.items()},
        drift.radii,
        drift.coverage_weight,
        drift.coverage_alpha,
    )


def generate(
    teacher: Teacher,
    student: nn.Module,
    conditions: Condition,
    recipe: Recipe,
    randomness: Randomness,
) -> Tensor:
    """Student samples x = G(z, c) of every group: [B, N, c, h, w] float32, with their graph."""
    N = recipe.drift.samples
    repeated = conditions.repeated(N).to(teacher.device)
    noise = randomness.normal((len(repeated), *teacher.latent_shape), teacher.device)
    half = recipe.train.precision == "bf16"
    with torch.autocast(teacher.device.type, dtype=torch.bfloat16, enabled=half):
        x = teacher.one_step(student, noise, level_of(teacher, recipe), repeated)
    return x.view(-1, N, *teacher.latent_shape)


def step_sigma(drift: Drift, randomness: Randomness) -> Tensor:
    """One feature noise level per group, shared by its samples, positives and anchors: [B]."""
    return sample_sigma(
        randomness.tensors, drift.groups, drift.sigma_mean, drift.sigma_std, *drift.sigma
    )


def features(
    teacher: Teacher,
    extractor: FeatureExtractor,
    x: Tensor,
    conditions: Condition,
    sigma: Tensor,
    randomness: Randomness,
) -> dict[str, Tensor]:
    """φ_l of clean latents x [B, K, c, h, w], noised to the group's sigma [B]: {l: [B·L, K, D_l]}.

    Independent noise per sample, the group's own condition, float32 throughout. Each of a layer's L
    windows (1 for a whole layer) makes groups of its own: samples meet only at the same place.
    """
    B, K = x.shape[:2]
    flat = x.to(teacher.device).flatten(0, 1)
    noise = randomness.normal(tuple(flat.shape), teacher.device)
    repeated = conditions.repeated(K).to(teacher.device)
    run = teacher.feature_pass(flat, noise, sigma.repeat_interleave(K), repeated)
    with torch.autocast(teacher.device.type, enabled=False):
        phi = extractor(run, flat)
    return {
        layer: value.view(B, K, *value.shape[1:]).transpose(1, 2).flatten(0, 1)
        for layer, value in phi.items()
    }


@torch.no_grad()
def diagnostics(
    teacher: Teacher,
    student: nn.Module,
    extractor: FeatureExtractor,
    samples: Samples,
    recipe: Recipe,
    step: int,
) -> dict[str, float]:
    """Raw forces against their floor and the like (see `diagnostics`), on draws of their own.

    Left out where prompts have too few samples for N real ones beside positives and anchors.
    """
    drift = recipe.drift
    counts = (drift.positives, drift.anchors, drift.samples)
    if min(len(members) for members in samples.members) < sum(counts):
        return {}
    randomness = Randomness.of(recipe.train.seed, step, recipe.train.accumulate)
    drawn: Draw = draw(samples, drift.groups, counts, randomness.arrays)
    generated = generate(teacher, student, drawn.conditions, recipe, randomness)
    sigma = step_sigma(drift, randomness).to(teacher.device)
    positives, anchors, real, own = (
        features(teacher, extractor, x, drawn.conditions, sigma, randomness)
        for x in (*drawn.parts, generated)
    )
    return diagnose(own, real, positives, anchors, drift.radii, drift.coverage_alpha)


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
