"""Opens a teacher: which class of pipeline a directory or a file holds, and what adapts it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ConsistencyModelPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import SafetensorError
from torch import nn

from distill.class_names import names_beside
from distill.teachers.edm import EdmTeacher
from distill.teachers.flow import FlowTeacher
from distill.teachers.sd import SdTeacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.single_file import pipeline_of, read_names, read_parts
from distill.teachers.teacher import Teacher, TeacherError, check_parts, first_line
from distill.teachers.variant import variant_of

EDM_PARTS = ("unet", "scheduler")
SD_PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
SDXL_PARTS = (
    "tokenizer",
    "tokenizer_2",
    "text_encoder",
    "text_encoder_2",
    "unet",
    "vae",
    "scheduler",
)
SD3_PARTS = (
    "tokenizer",
    "tokenizer_2",
    "text_encoder",
    "text_encoder_2",
    "transformer",
    "vae",
    "scheduler",
)
T5_PARTS = ("tokenizer_3", "text_encoder_3")


def open_sdxl(folder: Path, device: torch.device, **parts: nn.Module) -> SdxlTeacher:
    """A `StableDiffusionXLPipeline` directory, with `parts` in the place of its own."""
    check_parts(folder, SDXL_PARTS)
    found = pipeline(StableDiffusionXLPipeline, folder, SDXL_PARTS, add_watermarker=False, **parts)
    return SdxlTeacher(found, device)


def open_sd(folder: Path, device: torch.device, **parts: nn.Module) -> SdTeacher:
    """A `StableDiffusionPipeline` directory, with `parts` in the place of its own."""
    check_parts(folder, SD_PARTS)
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    found = pipeline(StableDiffusionPipeline, folder, SD_PARTS, **unused, **parts)
    return SdTeacher(found, device)


def open_edm(folder: Path, device: torch.device) -> EdmTeacher:
    """A `ConsistencyModelPipeline` directory: a class-conditional EDM, and its classes' names."""
    check_parts(folder, EDM_PARTS)
    teacher = EdmTeacher(pipeline(ConsistencyModelPipeline, folder, EDM_PARTS), device)
    teacher.class_names = names_beside(folder, teacher.classes)
    return teacher


def open_flow(folder: Path, device: torch.device) -> FlowTeacher:
    """A `StableDiffusion3Pipeline` directory, with its T5 or without."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    named = [part for part in T5_PARTS if (index.get(part) or [None])[0]]
    parts = (*SD3_PARTS, *named)
    check_parts(folder, parts)
    unused = {part: None for part in T5_PARTS if part not in named}
    unused |= {"image_encoder": None, "feature_extractor": None}
    return FlowTeacher(pipeline(StableDiffusion3Pipeline, folder, parts, **unused), device)


def pipeline(kind: Any, folder: Path, parts: Sequence[str], **options: object) -> Any:
    """A stock pipeline in float32, from its directory alone but for parts that `options` bring."""
    return kind.from_pretrained(
        folder,
        dtype=torch.float32,
        variant=variant_of(folder, [part for part in parts if part not in options]),
        local_files_only=True,
        **options,
    )


# Pipeline class, as model_index.json names it -> what opens it.
OPENERS: dict[str, Callable[[Path, torch.device], Teacher]] = {
    "ConsistencyModelPipeline": open_edm,
    "StableDiffusion3Pipeline": open_flow,
    "StableDiffusionPipeline": open_sd,
    "StableDiffusionXLPipeline": open_sdxl,
}


# The same for weights that come from a single file, by the classes that `pipeline_of` knows.
FILE_OPENERS: dict[str, Callable[..., Teacher]] = {
    "StableDiffusionPipeline": open_sd,
    "StableDiffusionXLPipeline": open_sdxl,
}


def load_teacher(model: Path, device: torch.device, config: Path | None = None) -> Teacher:
    """Opens a diffusers directory, or a single file with what `config` has besides, in float32.

    Raises:
        TeacherError: no such directory or file, a pipeline class that is not known, a part that is
            missing or broken, a scheduler that does not fit it, or a config that is missing or is
            not asked for.
    """
    try:
        if model.is_file():
            return open_file(model, config, device)
        opener = OPENERS[pipeline_class(model)]
        if config is not None:
            raise TeacherError(
                f"teacher.config is {config}, but teacher.model {model} is a directory, which has"
                " its own configs: leave it out"
            )
        return opener(model, device)
    except TeacherError:
        raise
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"teacher.model: {model} cannot be opened: a pickle in it holds more than weights, and"
            " is not opened further, since that runs its code; use safetensors"
        ) from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise TeacherError(
            f"teacher.model: {model} cannot be opened: {first_line(error)}"
        ) from error


def open_file(file: Path, config: Path | None, device: torch.device) -> Teacher:
    """A checkpoint in one file, with the configs, tokenizers and scheduler of a directory."""
    names = read_names(file)
    kind = pipeline_of(file, names)
    if config is None:
        raise TeacherError(
            f"teacher.model: {file} is a single file, which holds weights alone: teacher.config"
            f" must name a {kind} directory with its configs, tokenizers and scheduler"
        )
    held = pipeline_class(config, "teacher.config")
    if held != kind:
        raise TeacherError(
            f"teacher.config: {config} holds {held}, but teacher.model {file} is a checkpoint of"
            f" {kind}"
        )
    return FILE_OPENERS[kind](config, device, **read_parts(file, config, names))


def pipeline_class(folder: Path, key: str = "teacher.model") -> str:
    """The class that a directory's `model_index.json` names. TeacherError: none that is known.

    `key` is the recipe's, for the sentence.
    """
    index_file = folder / "model_index.json"
    if not folder.is_dir():
        raise TeacherError(f"{key}: {folder} does not exist; it must be a diffusers directory")
    if not index_file.is_file():
        raise TeacherError(f"{key}: {folder} has no model_index.json, so it is no pipeline")
    try:
        name = json.loads(index_file.read_text("utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise TeacherError(
            f"{key}: {folder} cannot be opened: model_index.json is not JSON ({error})"
        ) from error
    if name not in OPENERS:
        known = ", ".join(sorted(OPENERS))
        raise TeacherError(f"{key}: {folder} holds {name}; supported so far: {known}")
    return str(name)
