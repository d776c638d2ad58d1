"""A class-conditional student: a stock `ConsistencyModelPipeline`, whose scheduler says the step.

Beside diffusers' own files its directory may hold `classes.txt`, a name a line in the order of the
classes; diffusers leaves such a file alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import ConsistencyModelPipeline

from export.errors import StudentError
from export.model.consistency import looks_like_a_teacher, read_consistency_step
from export.model.foreign import Source, loading_reasons
from export.model.one_step import OneStep
from export.model.weights import variant_of

PIPELINE = "ConsistencyModelPipeline"
PARTS = ("unet", "scheduler")
NAMES = "classes.txt"
CHANNELS = 3  # stock diffusers takes noise and gives pictures of three channels alone


@dataclass(frozen=True)
class ClassStudent:
    """The loaded pipeline (CPU, evaluation mode), its one step, its one size and its classes.

    `names`: of every class, in order, or none at all. `notes` are sentences for the user.
    """

    folder: Path
    pipeline: Any
    step: OneStep
    size_px: int
    classes: int
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_class_student(source: Source) -> ClassStudent:
    """Load the directory that `source` names; `StudentError` says what does not fit."""
    folder = source.model
    _check_source(source)
    variant = variant_of(folder / "unet")
    with loading_reasons(folder):
        pipeline = ConsistencyModelPipeline.from_pretrained(
            folder,
            dtype=source.dtype,
            variant=variant,
            local_files_only=True,
            use_safetensors=True,
        )
    config = pipeline.unet.config
    _check_network(config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.eval().requires_grad_(False)
    return ClassStudent(
        folder=folder,
        pipeline=pipeline,
        step=read_consistency_step(pipeline.scheduler),
        size_px=config.sample_size,
        classes=config.num_class_embeds,
        names=_read_names(folder / NAMES, config.num_class_embeds),
        notes=tuple(looks_like_a_teacher(folder, pipeline.scheduler)),
    )


def _check_source(source: Source) -> None:
    """What is said of one-step models of SDXL does not apply, and is refused instead of ignored."""
    for option, value in (("--one-step", source.one_step), ("--base", source.base)):
        if value is not None:
            raise StudentError(
                f"{option} is {str(value)!r}, but {source.model} holds a {PIPELINE}, whose own "
                f"scheduler says its step and which needs no base; leave {option} out"
            )


def _check_network(config: Any) -> None:
    """Class-conditional, square, three channels in and out: what stock diffusers draws with."""
    if not isinstance(config.sample_size, int):
        raise StudentError(
            f"sample_size in the student's unet config is {config.sample_size!r}; "
            f"it must be one whole number, since pictures are square"
        )
    if not config.num_class_embeds or config.class_embed_type is not None:
        raise StudentError(
            f"num_class_embeds in the student's unet config is {config.num_class_embeds!r} and "
            f"class_embed_type is {config.class_embed_type!r}; a class-conditional student has a "
            f"number of classes and None"
        )
    for key in ("in_channels", "out_channels"):
        if config[key] != CHANNELS:
            raise StudentError(
                f"{key} in the student's unet config is {config[key]}; only {CHANNELS} is allowed, "
                f"since a {PIPELINE} draws RGB pictures"
            )


def _read_names(file: Path, classes: int) -> tuple[str, ...]:
    """One name a class, if the file is there."""
    if not file.is_file():
        return ()
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise StudentError(f"{file} is not UTF-8: {error}") from error
    if len(names) != classes or not all(names):
        blank = ", some of them blank" if not all(names) else ""
        raise StudentError(
            f"{file} has {len(names)} lines{blank}; the student has {classes} classes, and each "
            f"needs a name on a line of its own"
        )
    return names
