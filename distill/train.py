"""The training loop: one network, one optimiser, one loss (TFD, arXiv 2605.07327).

A run folder holds the resolved recipe, `stats.jsonl` (a line per step), sample grids, checkpoints
and, at the end, the student as a diffusers directory. The same command resumes: all randomness of
a step is a function of (seed, step, micro-batch), so a resumed run repeats bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill import checkpoint
from distill.compiling import compile_student
from distill.data import Samples
from distill.feature_cache import FeatureCache
from distill.features import FeatureExtractor
from distill.grids import save_grid
from distill.losses import Across
from distill.optimizer import make_optimizer
from distill.processes import (
    ALONE,
    LostProcessError,
    Processes,
    accumulating,
    lost_noticed,
)
from distill.recipe import Recipe, RecipeError, Train
from distill.sharding import shard, whole
from distill.state import State
from distill.stats import drop_later_lines, write_whole
from distill.step import Randomness, diagnostics, micro_batch
from distill.student import level_of, make_student, save_student, whole_weights
from distill.teachers.teacher import Teacher
from distill.trackers import open_trackers, tell

Report = Callable[[str], None]
GRID_PROMPTS = 8
GRID_SEEDS = 8


class TrainingError(RuntimeError):
    """Training cannot go on; the text says at which step, why, and what is kept."""


def run_training(
    teacher: Teacher,
    samples: Samples,
    recipe: Recipe,
    report: Report = print,
    processes: Processes = ALONE,
    cache: FeatureCache | None = None,
) -> Path:
    """Trains, or resumes, to the last step and saves the student; returns its directory.

    Raises:
        TrainingError: the loss is not finite.
        DataError: a prompt has too few samples.
        ValueError: a layer that does not exist (the text lists those that do), fewer groups than
            processes, or a setting of `train` that needs what is not there.
        CheckpointError: a checkpoint cannot be written.
    """
    drift, train = recipe.drift, recipe.train
    samples.check_enough(drift.positives + drift.anchors)
    share = processes.share(drift.groups)
    across, weight = processes.across(share), processes.weight(share)
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)

    # Student, in this process whole or a share of it; optimiser and moving average of what trains.
    student = make_student(teacher, recipe.student.lora, train.seed)
    if train.checkpointing:
        keep_fewer_activations(teacher.denoiser, student)
    if train.compile:
        compile_student(student)
    model: nn.Module = student
    if processes.count > 1 and train.parallel == "fsdp2":
        shard(student, teacher.device, processes.count)
    else:
        model = processes.copies(student)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, train)
    ema_device = torch.device("cpu") if train.ema_device == "cpu" else None
    state = State(student, optimizer, ema_device, writes=processes.first)

    # Resume, if there is something to resume from.
    recipe.run.mkdir(parents=True, exist_ok=True)
    folder, stats_path = recipe.run / "checkpoints", recipe.run / "stats.jsonl"
    start = 0
    last = processes.agreed(checkpoint.latest(folder, report) if processes.first else None)
    if last is not None:
        start = state.restore(last)
        report(f"resumed from {last}")
    trackers = []
    if processes.first:
        write_whole(recipe.run / "recipe.yaml", recipe.resolved())
        drop_later_lines(stats_path, start)
        trackers = open_trackers(recipe, start)

    # The loop.
    per_step = drift.groups * drift.samples * train.accumulate
    bar = tqdm(
        total=train.steps * per_step,
        initial=start * per_step,
        desc="distilling",
        unit="img",
        disable=None if processes.first else True,
    )
    with bar, stats_path.open("a", encoding="utf-8") as stats:
        for step in range(start, train.steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step, train)
            optimizer.zero_grad(set_to_none=True)
            figures: dict[str, float] = {}
            for micro in range(train.accumulate):
                randomness = Randomness.of(train.seed, step, micro, share)
                with accumulating(model, last=micro == train.accumulate - 1):
                    loss, seen = micro_batch(
                        teacher, model, extractor, samples, recipe, randomness, across, cache
                    )
                    for name, value in averages({"loss": loss, **seen}, across).items():
                        figures[name] = figures.get(name, 0.0) + value / train.accumulate
                    if not math.isfinite(figures["loss"]):
                        raise TrainingError(
                            not_finite("loss", figures["loss"], step, folder, report)
                        )
                    (loss * weight / train.accumulate).backward()  # type: ignore[no-untyped-call]
            norm = whole(nn.utils.clip_grad_norm_(parameters, train.clip_norm))
            if not torch.isfinite(norm):
                raise TrainingError(not_finite("gradient", norm.item(), step, folder, report))
            optimizer.step()
            state.average(train.ema_decay, step)

            # Figures, grids, checkpoints.
            done = step + 1
            if step % train.diagnose_steps == 0:
                figures |= diagnostics(
                    teacher, student, extractor, samples, recipe, step, share, across
                )
            line = {"step": step, "grad_norm": norm.item(), "lr": learning_rate(step, train)}
            if processes.first:
                stats.write(json.dumps({**line, **figures}) + "\n")
                stats.flush()
                tell(trackers, {**line, **figures})
            if done % train.sample_steps == 0 or done == train.steps:
                weights = state.weights()
                if processes.first:
                    write_grid(teacher, weights, samples, recipe, done)
            if done % train.checkpoint_steps == 0 or done == train.steps:
                state.save(folder, done, train.keep_checkpoints)
            bar.set_postfix(step=done, loss=f"{figures['loss']:.2f}", refresh=False)
            bar.update(per_step)

    for tracker in trackers:
        tracker.finish()
    target, weights = recipe.run / "student", state.weights()
    if processes.first:
        merged = whole_weights(teacher, recipe.student.lora, weights)
        level = level_of(teacher, recipe)
        save_student(teacher, merged, level, target, samples.class_names)
    processes.wait()
    return target


def keep_fewer_activations(*denoisers: nn.Module) -> None:
    """Has denoisers keep the inputs of their blocks alone, and compute the rest in `backward`.

    Raises:
        RecipeError: the model's class cannot.
    """
    for denoiser in denoisers:
        if not getattr(denoiser, "_supports_gradient_checkpointing", False):
            raise RecipeError(
                f"train.checkpointing is true, but a {type(denoiser).__name__} cannot do it"
            )
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]


def averages(figures: Mapping[str, float | Tensor], across: Across) -> dict[str, float]:
    """Figures of a micro-batch as means over the groups of all processes, read all at once."""
    values = [torch.as_tensor(value).detach().float() for value in figures.values()]
    device = next((v.device for v in figures.values() if isinstance(v, Tensor)), None)
    mean = across.mean(torch.stack([value.to(device) for value in values]))
    return dict(zip(figures, mean.tolist(), strict=True))


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


@contextmanager
def lost_said(folder: Path) -> Iterator[None]:
    """Where another process dies: a TrainingError with the checkpoint in `folder` to go on from."""
    try:
        with lost_noticed():
            yield
    except LostProcessError as error:
        raise TrainingError(lost(error, folder)) from error


def lost(error: LostProcessError, folder: Path) -> str:
    """The sentence that ends a run of several processes when one of them died."""
    kept = checkpoint.checkpoints(folder)
    since = f"from {kept[0].name}" if kept else "from the start"
    return (
        f"another process of this run died or cannot be reached ({error}); this one stops too;"
        f" the same command resumes {since}"
    )


@torch.no_grad()
def write_grid(
    teacher: Teacher, weights: Mapping[str, Tensor], samples: Samples, recipe: Recipe, step: int
) -> None:
    """Pictures of the first prompts (a row each) with the same seeds every time."""
    student = make_student(teacher).eval()
    student.load_state_dict(whole_weights(teacher, recipe.student.lora, weights))
    count = min(GRID_PROMPTS, len(samples.prompts))
    spread = torch.linspace(0, len(samples.prompts) - 1, count).long()
    conditions = samples.conditions[spread].repeated(GRID_SEEDS).to(teacher.device)
    noise = teacher.noise(range(GRID_SEEDS)).repeat(count, 1, 1, 1)
    latents = teacher.one_step(student, noise, level_of(teacher, recipe), conditions)
    save_grid(teacher.decode(latents), GRID_SEEDS, recipe.run / "grids" / f"step-{step:08d}.png")
