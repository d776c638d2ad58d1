"""Opens a teacher: which class of pipeline a directory holds, and what adapts it."""

from __future__ import annotations

import json
from collections.abc import Callable
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

from distill.teachers.edm import EdmTeacher
from distill.teachers.flow import FlowTeacher
from distill.teachers.sd import SdTeacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import Teacher, TeacherError, check_parts, first_line

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


def open_sdxl(folder: Path, device: torch.device) -> SdxlTeacher:
    """A `StableDiffusionXLPipeline` directory."""
    check_parts(folder, SDXL_PARTS)
    return SdxlTeacher(pipeline(StableDiffusionXLPipeline, folder, add_watermarker=False), device)


def open_sd(folder: Path, device: torch.device) -> SdTeacher:
    """A `StableDiffusionPipeline` directory."""
    check_parts(folder, SD_PARTS)
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return SdTeacher(pipeline(StableDiffusionPipeline, folder, **unused), device)


def open_edm(folder: Path, device: torch.device) -> EdmTeacher:
    """A `ConsistencyModelPipeline` directory: a class-conditional EDM."""
    check_parts(folder, EDM_PARTS)
    return EdmTeacher(pipeline(ConsistencyModelPipeline, folder), device)


def open_flow(folder: Path, device: torch.device) -> FlowTeacher:
    """A `StableDiffusion3Pipeline` directory, with its T5 or without."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    named = [part for part in T5_PARTS if (index.get(part) or [None])[0]]
    check_parts(folder, (*SD3_PARTS, *named))
    unused = {part: None for part in T5_PARTS if part not in named}
    unused |= {"image_encoder": None, "feature_extractor": None}
    return FlowTeacher(pipeline(StableDiffusion3Pipeline, folder, **unused), device)


def pipeline(kind: Any, folder: Path, **options: object) -> Any:
    """A stock pipeline in float32, from its directory alone."""
    return kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **options)


# Pipeline class, as model_index.json names it -> what opens it.
OPENERS: dict[str, Callable[[Path, torch.device], Teacher]] = {
    "ConsistencyModelPipeline": open_edm,
    "StableDiffusion3Pipeline": open_flow,
    "StableDiffusionPipeline": open_sd,
    "StableDiffusionXLPipeline": open_sdxl,
}


def load_teacher(folder: Path, device: torch.device) -> Teacher:
    """Opens a diffusers directory in float32.

    Raises:
        TeacherError: no such directory, a pipeline class that is not known, a part that is missing
            or broken, or a scheduler that does not fit it.
    """
    opener = OPENERS[pipeline_class(folder)]
    try:
        return opener(folder, device)
    except TeacherError:
        raise
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise TeacherError(
            f"teacher.model: {folder} cannot be opened: {first_line(error)}"
        ) from error


def pipeline_class(folder: Path) -> str:
    """The class that a directory's `model_index.json` names. TeacherError: none that is known."""
    index_file = folder / "model_index.json"
    if not folder.is_dir():
        raise TeacherError(
            f"teacher.model: {folder} does not exist; it must be a diffusers directory"
        )
    if not index_file.is_file():
        raise TeacherError(f"teacher.model: {folder} has no model_index.json, so it is no pipeline")
    try:
        name = json.loads(index_file.read_text("utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise TeacherError(
            f"teacher.model: {folder} cannot be opened: model_index.json is not JSON ({error})"
        ) from error
    if name not in OPENERS:
        known = ", ".join(sorted(OPENERS))
        raise TeacherError(f"teacher.model: {folder} holds {name}; supported so far: {known}")
    return str(name)
