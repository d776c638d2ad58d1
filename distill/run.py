"""The stages of a distillation, each of which does only what is not done yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from distill import checkpoint
from distill.bank import bank_folder, bank_samples, make_bank
from distill.compiling import check_compiler
from distill.data import Samples
from distill.encoding import picture_samples
from distill.evaluate import run_evaluation
from distill.feature_cache import open_feature_cache
from distill.features import FeatureExtractor
from distill.lora import add_lora
from distill.optimizer import kind_of
from distill.processes import launched, local_index, one_voice, open_processes
from distill.recipe import Drift, Recipe, RecipeError
from distill.stats import write_whole
from distill.student import level_of, load_student
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import Teacher
from distill.trackers import wanted
from distill.train import lost_said, run_training
from distill.turns import EVERY, Turns

Report = Callable[[str], None]
SHAPE_OF_A_RUN = ("teacher", "student", "positives", "drift", "train")
NO_SHAPE = (
    "device",
    "checkpoint_steps",
    "keep_checkpoints",
    "sample_steps",
    "diagnose_steps",
    "parallel",
    "checkpointing",
    "ema_device",
    "compile",
    "trackers",
    "cache",
)


def distil(recipe: Recipe, report: Report = print, resume_changed: bool = False) -> Path:
    """Teacher to student: returns the student's directory; resumes, or does nothing if done.

    With `resume_changed` a run goes on although its recipe is another than it was begun with.

    Raises:
        ValueError: the recipe asks for what is not there (RecipeError, TeacherError, DataError, or
            a layer that does not exist); each text names it.
        TrainingError: another process died, or as `train.run_training`.
        CheckpointError: see there.
    """
    device = pick_device(recipe.train.device)
    heard = lost_said(recipe.run / "checkpoints")
    with one_voice(), heard, open_processes(device.type == "cpu") as processes:
        tell = report if processes.first else silent
        check_run_folder(recipe, resume_changed, tell)
        student = recipe.run / "student"
        if processes.agreed(student.is_dir() and steps_done(recipe, tell) == recipe.train.steps):
            tell(f"{student} is trained already")
            return student
        teacher = load_teacher(recipe.teacher.model, device, recipe.teacher.config)
        processes.share(recipe.drift.groups)
        check_settings(teacher, recipe)
        with processes.first_alone():
            samples = open_samples(teacher, recipe, tell)
            cache = open_feature_cache(teacher, samples, recipe, tell)
        return run_training(teacher, samples, recipe, tell, processes, cache)


def check_settings(teacher: Teacher, recipe: Recipe) -> None:
    """Misses what training needs beside samples before these are made, which may take days.

    Raises: as `run_training`, of all but the samples.
    """
    level_of(teacher, recipe)
    kind_of(recipe.train)
    wanted(recipe)
    if recipe.train.compile:
        check_compiler()
    if recipe.student.lora is not None:
        kind: Any = type(teacher.denoiser)
        with torch.device("meta"):
            outline = kind.from_config(teacher.denoiser.config)
        add_lora(outline, recipe.student.lora, recipe.train.seed)
    check_features(teacher, recipe.drift)


@torch.no_grad()
def check_features(teacher: Teacher, drift: Drift) -> None:
    """Has the teacher look at nothing, once. ValueError: layers, pool or windows do not suit it."""
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    nothing = torch.zeros((1, *teacher.latent_shape), device=teacher.device)
    sigma = torch.full((1,), drift.sigma[1], device=teacher.device)
    condition = teacher.encode(["0"]).to(teacher.device)  # a prompt, or the first class
    extractor(teacher.feature_pass(nothing, nothing, sigma, condition), nothing)


def silent(text: str) -> None:
    """The report of a process that another one speaks for."""


def evaluate(recipe: Recipe, report: Report = print) -> dict[str, Any]:
    """Measures teacher and student (if there is one); see `evaluate.run_evaluation`.

    Raises:
        RecipeError: the recipe has no evaluate section.
    """
    if recipe.evaluate is None:
        raise RecipeError("the recipe has no evaluate section, so there is nothing to measure by")
    device = pick_device(recipe.train.device)
    teacher = load_teacher(recipe.teacher.model, device, recipe.teacher.config)
    folder = recipe.run / "student"
    student = load_student(teacher, folder) if folder.is_dir() else None
    result = run_evaluation(teacher, student, recipe, report)
    keep_evaluate(recipe)
    return result


def keep_evaluate(recipe: Recipe) -> None:
    """Puts the section that was measured by in the run folder's recipe, for `distill compare`."""
    path = recipe.run / "recipe.yaml"
    if path.is_file():
        kept = yaml.safe_load(path.read_text("utf-8"))
        kept["evaluate"] = yaml.safe_load(recipe.resolved())["evaluate"]
        write_whole(path, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100))


def bank(recipe: Recipe, turns: Turns = EVERY, report: Report = print) -> Path:
    """Makes the shards of the recipe's bank whose turn it is; returns the bank's folder.

    Raises:
        ValueError: see `bank.bank_samples`; RecipeError: the recipe's samples are real pictures.
    """
    if recipe.positives.source != "teacher":
        raise RecipeError(
            f"positives.source is {recipe.positives.source}, so there is no bank to make: a bank"
            " is of the teacher's samples"
        )
    device = pick_device(recipe.train.device)
    teacher = load_teacher(recipe.teacher.model, device, recipe.teacher.config)
    prompts = make_bank(teacher, recipe, report, turns)
    whole = "" if turns.count == 1 else f", the shards of process {turns.index} of {turns.count}"
    report(f"bank {bank_folder(recipe)}: {len(prompts)} prompts{whole}")
    return bank_folder(recipe)


def open_samples(teacher: Teacher, recipe: Recipe, report: Report) -> Samples:
    """The samples to learn from, made or encoded as far as they are not yet."""
    if recipe.positives.source == "teacher":
        return bank_samples(teacher, recipe, report)
    return picture_samples(teacher, recipe, report)


def check_run_folder(recipe: Recipe, changed: bool = False, report: Report = print) -> None:
    """Holds a recipe against the one that its run folder was begun with.

    With `changed` a recipe that differs is only reported: training goes on by the new one.

    Raises:
        RecipeError: they differ in what shapes the student, so resuming would mix two runs.
    """
    keys = changed_keys(recipe)
    if keys and changed:
        report(f"run folder {recipe.run} was begun with another {', '.join(keys)}; it goes on")
    elif keys:
        raise RecipeError(
            f"run folder {recipe.run} was begun with another {', '.join(keys)};"
            " choose another run folder (--set run=...), delete it, or go on nevertheless"
            " (--resume-changed)"
        )


def changed_keys(recipe: Recipe) -> list[str]:
    """The keys that shape the student and differ from those that the run folder was begun with.

    A key that the folder's recipe does not have, because it is older, had its default. A run that
    failed before its first step was not begun.
    """
    path, stats = recipe.run / "recipe.yaml", recipe.run / "stats.jsonl"
    stepped = stats.is_file() and stats.stat().st_size > 0
    if not path.is_file() or not (stepped or checkpoint.checkpoints(recipe.run / "checkpoints")):
        return []
    before = yaml.safe_load(path.read_text("utf-8"))
    now = yaml.safe_load(recipe.resolved())
    return [
        f"{section}.{key}"
        for section in SHAPE_OF_A_RUN
        for key, value in now[section].items()
        if key not in NO_SHAPE
        and before.get(section, {}).get(key, default_of(section, key)) != value
    ]


def default_of(section: str, key: str) -> Any:
    """A recipe key's default, as `Recipe.resolved` writes it."""
    kind: Any = Recipe.model_fields[section].annotation
    default = kind.model_fields[key].get_default()
    return list(default) if isinstance(default, tuple) else default


def steps_done(recipe: Recipe, report: Report) -> int:
    """Steps in the last good checkpoint."""
    last = checkpoint.latest(recipe.run / "checkpoints", report)
    return 0 if last is None else checkpoint.step_of(last)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, and of several processes each has its own GPU.

    Raises:
        RecipeError: no such device on this machine, or one for all of several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if launched() and ":" in name:
        raise RecipeError(f"train.device is {name!r}, but of several processes each has its own")
    if launched() and name == "cuda":
        name = f"cuda:{local_index()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"train.device is {name!r}, which is not to be had: {reason}") from None
    return device
