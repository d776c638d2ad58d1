"""A teacher in outline: built from its configs alone, of weights that have shapes but no numbers.

All tensors are fake (`torch._subclasses.FakeTensorMode`): an operation on them computes shapes and
types and nothing else, so a model of any size opens at once and takes no memory. The adapters and
the pipelines are the real ones, so what is counted on an outline is what a run does.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.teachers.edm import EdmTeacher
from distill.teachers.flow import T5_TOKENS, FlowTeacher
from distill.teachers.opening import pipeline_class
from distill.teachers.sd import SdTeacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import Condition, Teacher, TeacherError, first_line

CPU = torch.device("cpu")
LIBRARIES = ("diffusers", "transformers")
NO_NETWORKS = ("Tokenizer", "TokenizerFast", "ImageProcessor", "FeatureExtractor")
NOT_OPENED = ("safety_checker", "image_encoder")


def open_outline(folder: Path, mode: FakeTensorMode) -> Teacher:
    """The teacher of a diffusers directory, of which config.json files are enough.

    Raises:
        TeacherError: no such directory, a class that is not known, or a config that is missing.
    """
    adapter, _ = OUTLINES[known_class(folder)]
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    try:
        parts = {
            name: part_of(folder / name, value[0], value[1], mode)
            for name, value in index.items()
            if isinstance(value, list)
        }
        kind = getattr(diffusers, index["_class_name"])
        options = {name: value for name, value in index.items() if is_option(name, value)}
        pipe = kind(**parts, **options)
        pipe.to = lambda device: pipe  # fake weights cannot be moved, and need not be
        teacher: Teacher = adapter(pipe, CPU)
        return teacher
    except TeacherError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TeacherError(
            f"teacher.model: {folder} cannot be outlined: {first_line(error)}"
        ) from error


def known_class(folder: Path) -> str:
    """The pipeline class of a directory. TeacherError: none that can be outlined."""
    name = pipeline_class(folder)
    if name not in OUTLINES:
        raise TeacherError(f"teacher.model: {folder} holds {name}, which has no outline yet")
    return name


def is_option(name: str, value: object) -> bool:
    """Whether an entry of model_index.json is an argument of the pipeline and not a part of it."""
    return not (name.startswith("_") or isinstance(value, list))


def part_of(folder: Path, library: str | None, kind: str | None, mode: FakeTensorMode) -> Any:
    """One part of a pipeline: a network of fake weights, a real scheduler, None for what has none.

    Raises:
        TeacherError: the part is of a library that is not known, or its config is not there.
    """
    if library is None or kind is None or kind.endswith(NO_NETWORKS) or folder.name in NOT_OPENED:
        return None
    if library not in LIBRARIES:
        known = ", ".join(LIBRARIES)
        raise TeacherError(f"teacher.model: {folder} is of {library}; known are {known}")
    found: Any = getattr(importlib.import_module(library), kind)
    if issubclass(found, SchedulerMixin):
        return found.from_pretrained(folder, local_files_only=True)
    if not (folder / "config.json").is_file():
        raise TeacherError(f"teacher.model: {folder} has no config.json")
    with mode:
        if library == "diffusers":
            return found.from_config(found.load_config(folder, local_files_only=True))
        return found(found.config_class.from_pretrained(folder, local_files_only=True))


def outlined_condition(teacher: Teacher, n: int) -> Condition:
    """A condition of n items, as this teacher's denoiser takes it; to be made of fake tensors."""
    for adapter, condition in OUTLINES.values():
        if isinstance(teacher, adapter):
            return condition(teacher, n)
    raise AssertionError(f"{type(teacher).__name__} has no outline")


def sd_condition(teacher: Any, n: int) -> Condition:
    """[n, T, C]."""
    text = teacher.pipe.text_encoder.config
    width = teacher.pipe.unet.config.cross_attention_dim
    return Condition({"prompt": torch.empty(n, text.max_position_embeddings, width)})


def sdxl_condition(teacher: Any, n: int) -> Condition:
    """[n, T, C] and [n, E]."""
    pooled = torch.empty(n, teacher.pipe.text_encoder_2.config.projection_dim)
    return Condition({**sd_condition(teacher, n).parts, "pooled": pooled})


def flow_condition(teacher: Any, n: int) -> Condition:
    """[n, T, C] and [n, E]."""
    config = teacher.pipe.transformer.config
    tokens = teacher.pipe.tokenizer_max_length + T5_TOKENS
    return Condition(
        {
            "prompt": torch.empty(n, tokens, config.joint_attention_dim),
            "pooled": torch.empty(n, config.pooled_projection_dim),
        }
    )


def edm_condition(teacher: Any, n: int) -> Condition:
    """[n] int64."""
    return Condition({"label": torch.zeros(n, dtype=torch.int64)})


# Pipeline class -> its adapter, and its conditions.
OUTLINES: dict[str, tuple[Any, Callable[[Any, int], Condition]]] = {
    "ConsistencyModelPipeline": (EdmTeacher, edm_condition),
    "StableDiffusion3Pipeline": (FlowTeacher, flow_condition),
    "StableDiffusionPipeline": (SdTeacher, sd_condition),
    "StableDiffusionXLPipeline": (SdxlTeacher, sdxl_condition),
}
