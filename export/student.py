"""The student: a stock diffusers directory, opened with the reasons why it may not be exported."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionXLPipeline
from safetensors import SafetensorError

from export.errors import StudentError
from export.one_step import OneStep, read_one_step

PIPELINE = "StableDiffusionXLPipeline"
PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae", "scheduler")


@dataclass(frozen=True)
class Student:
    """The loaded pipeline (float32, CPU, evaluation mode), its recipe and its one size."""

    folder: Path
    pipeline: Any
    step: OneStep
    size_px: int
    latent_channels: int
    latent_size: int


def load_student(folder: Path) -> Student:
    """Load the directory; `StudentError` names what is missing or not supported."""
    _check_index(folder)
    try:
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            add_watermarker=False,
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudentError(f"the student {folder} cannot be loaded: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet, pipeline.vae):
        part.float().eval().requires_grad_(False)
    step = read_one_step(pipeline.scheduler)
    _check_parts(pipeline)
    latent_size = pipeline.unet.config.sample_size
    return Student(
        folder=folder,
        pipeline=pipeline,
        step=step,
        size_px=latent_size * pipeline.vae_scale_factor,
        latent_channels=pipeline.unet.config.in_channels,
        latent_size=latent_size,
    )


def _check_index(folder: Path) -> None:
    """The directory exists and its index names a whole SDXL pipeline."""
    if not folder.is_dir():
        raise StudentError(f"the student directory {folder} does not exist")
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise StudentError(
            f"{folder} has no model_index.json; a student is a directory that diffusers saved"
        )
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudentError(f"{index_file} is not valid JSON: {error}") from error
    if index.get("_class_name") != PIPELINE:
        raise StudentError(
            f"{folder} holds a {index.get('_class_name')}; only {PIPELINE} can be exported"
        )
    for part in PARTS:
        if not (index.get(part) or [None])[0]:
            raise StudentError(f"{folder} has no {part}; a one-step graph needs {', '.join(PARTS)}")
        if not (folder / part).is_dir():
            raise StudentError(f"{folder} names a {part}, but the folder {part} is missing")


def _check_parts(pipeline: Any) -> None:
    """Settings of the parts that the graph does not reproduce are refused by name."""
    unet, vae = pipeline.unet.config, pipeline.vae.config
    if not isinstance(unet.sample_size, int):
        raise StudentError(
            f"sample_size in the student's unet config is {unet.sample_size!r}; "
            f"it must be one whole number, since pictures are square"
        )
    if unet.addition_embed_type != "text_time" or unet.time_cond_proj_dim is not None:
        raise StudentError(
            f"the student's unet has addition_embed_type={unet.addition_embed_type!r} and "
            f"time_cond_proj_dim={unet.time_cond_proj_dim!r}; "
            f"only 'text_time' and None, SDXL's own, are supported"
        )
    if vae.get("shift_factor"):
        raise StudentError(
            f"shift_factor in the student's vae config is {vae.shift_factor!r}; the stock "
            f"{PIPELINE} ignores it, so only None or 0 is allowed"
        )
