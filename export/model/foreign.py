"""Other people's models as one stock pipeline: a directory, a UNet, a single file or a LoRA.

Nothing is downloaded, nothing is unpickled: weights come from safetensors, and what a UNet, a
checkpoint or a LoRA does not bring comes from the directory given as --base.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import SafetensorError

from export.errors import StudentError
from export.model.checkpoint import (
    LORA,
    PIPELINE_FILE,
    check_loaded,
    layout_of,
    load_unet,
    load_vae,
    read_shapes,
)
from export.model.families import FAMILIES, SDXL, UNETS, Family, family_in, family_of
from export.model.lora import fuse
from export.model.weights import load_network, variant_of


@dataclass(frozen=True)
class Source:
    """What the user named. UNet and text encoders are loaded in `dtype`, the VAE in `vae_dtype`."""

    model: Path
    one_step: str | Path | None = None
    base: Path | None = None
    lora_scale: float = 1.0
    dtype: torch.dtype = torch.float32
    vae_dtype: torch.dtype = torch.float32

    @property
    def lora(self) -> bool:
        """Whether the model is a LoRA file."""
        return self.model.is_file() and layout_of(self.model, read_shapes(self.model)) == LORA


@dataclass(frozen=True)
class Opened:
    """The pipeline, and the directory that did not bring the UNet but everything else."""

    pipeline: Any
    base: Path | None = None


def open_pipeline(source: Source) -> Opened:
    """The whole pipeline in evaluation mode, without gradients."""
    opened = _from_file(source) if source.model.is_file() else _from_directory(source)
    pipeline = opened.pipeline
    pipeline.set_progress_bar_config(disable=True)
    for name in family_of(pipeline).weighted:
        getattr(pipeline, name).eval().requires_grad_(False)
    return opened


def _from_directory(source: Source) -> Opened:
    folder = source.model
    if not folder.is_dir():
        raise StudentError(f"the student {folder} does not exist")
    if (folder / "model_index.json").is_file():
        return Opened(_whole(folder, source))
    config = folder / "config.json"
    if not config.is_file() or _json(config).get("_class_name") != "UNet2DConditionModel":
        raise StudentError(
            f"{folder} has no model_index.json and is no UNet either; a student is a pipeline "
            f"directory that diffusers saved, the directory of a UNet, or a safetensors file"
        )
    base = _base(source, "a UNet", UNETS)
    with loading_reasons(folder):
        unet = load_network(UNet2DConditionModel, folder, source.dtype)
    return Opened(_whole(base, source, unet=unet), base)


def _from_file(source: Source) -> Opened:
    file = source.model
    layout = layout_of(file, read_shapes(file))
    if layout == LORA:
        pipeline = _whole(_base(source, "a LoRA", UNETS), source)
        fuse(pipeline, file, source.lora_scale)
        return Opened(pipeline)
    allowed = [SDXL.name] if layout == PIPELINE_FILE else UNETS
    base = _base(source, "a single file", allowed)
    unet = load_unet(file, base, layout, source.dtype)
    if layout == PIPELINE_FILE:
        return Opened(_single_file(file, base, unet, source), base)
    return Opened(_whole(base, source, unet=unet), base)


def _base(source: Source, what: str, allowed: Collection[str]) -> Path:
    """The pipeline directory that the rest is taken from, of one of these classes."""
    if source.base is None:
        raise StudentError(
            f"{source.model} is {what}; --base must name the pipeline directory that its "
            f"tokenizers, configs and remaining parts are taken from"
        )
    family = _check_index(source.base)
    if family.name not in allowed:
        raise StudentError(
            f"--base {source.base} holds a {family.name}; {what} is taken together with a "
            f"{', '.join(allowed)} only"
        )
    return source.base


def _whole(folder: Path, source: Source, **parts: Any) -> Any:
    """The directory through stock diffusers, with `parts` in the place of its own."""
    family = _check_index(folder)
    if source.one_step is not None and family.name not in UNETS:
        raise StudentError(
            f"--one-step is {str(source.one_step)!r}, but {folder} holds a {family.name}, whose "
            f"own scheduler says its step; leave --one-step out"
        )
    variant = variant_of(*(folder / part for part in family.weighted if part not in parts))
    with loading_reasons(folder):
        return family.pipeline.from_pretrained(
            folder,
            variant=variant,
            **parts,
            **family.options,
            dtype={"default": source.dtype, "vae": source.vae_dtype},
            local_files_only=True,
            use_safetensors=True,
        )


def _single_file(file: Path, base: Path, unet: Any, source: Source) -> Any:
    """A whole checkpoint in the original layout; configs and tokenizers are the base's."""
    with loading_reasons(file):
        vae = load_vae(file, base, source.vae_dtype)
        pipeline = StableDiffusionXLPipeline.from_single_file(
            str(file),
            config=str(base),
            unet=unet,
            vae=vae,
            dtype=source.dtype,
            local_files_only=True,
            add_watermarker=False,
        )
    for name in ("text_encoder", "text_encoder_2"):
        check_loaded(file, name, getattr(pipeline, name))
    return pipeline


@contextmanager
def loading_reasons(path: Path) -> Iterator[None]:
    """What the libraries find wrong, as one line of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudentError(f"the student {path} cannot be loaded: {reason}") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudentError(f"{file} is not valid JSON: {error}") from error


def _check_index(folder: Path) -> Family:
    """The directory exists, and its index names a whole pipeline of a family: which."""
    if not folder.is_dir():
        raise StudentError(f"the pipeline directory {folder} does not exist")
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise StudentError(f"{folder} has no model_index.json; it is no pipeline directory")
    index = _json(index_file)
    family = family_in(index)
    if family is None:
        raise StudentError(
            f"{folder} holds a {index.get('_class_name')}; only {', '.join(FAMILIES)} and "
            f"ConsistencyModelPipeline can be exported"
        )
    for part in family.parts:
        if not (index.get(part) or [None])[0]:
            needed = ", ".join(family.parts)
            raise StudentError(f"{folder} has no {part}; a one-step graph needs {needed}")
        if not (folder / part).is_dir():
            raise StudentError(f"{folder} names a {part}, but the folder {part} is missing")
    return family
