"""A checkpoint in one safetensors file, under the names of its publication, as diffusers' modules.

    model.diffusion_model.*                 the U-Net
    first_stage_model.*                     the VAE
    cond_stage_model.transformer.*          the text encoder of SD 1.x (CLIP)
    cond_stage_model.model.*                that of SD 2.x (OpenCLIP)
    conditioner.embedders.0.transformer.*   the first text encoder of SDXL (CLIP)
    conditioner.embedders.1.model.*         its second (OpenCLIP)

Such a file holds weights alone: a directory brings configs, tokenizers and scheduler. Each text
encoder is found by its names; diffusers' own `from_single_file` tells SDXL's two apart by their
width. Every tensor of a part must be there, in its shape, and for U-Net and VAE no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from distill.teachers.teacher import TeacherError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
CLIP_XL, OPEN_CLIP_XL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
# Tensors that mark a checkpoint of SDXL's shape but of another noise schedule.
OTHER_SCHEDULES = ("edm_mean", "edm_vpred.sigma_max")
# Tensors that mark a checkpoint of one of these settings of its scheduler.
MARKS = {
    "v_pred": ("prediction_type", "v_prediction"),
    "ztsnr": ("rescale_betas_zero_snr", True),
}
NAMED = 3  # tensors that a sentence names

State = dict[str, Tensor]
Parts = dict[str, nn.Module]


def read_names(file: Path) -> list[str]:
    """The names of a file's tensors. TeacherError: it is no safetensors file, or a torn one."""
    if file.suffix != ".safetensors":
        raise TeacherError(
            f"teacher.model: {file} is a file that does not end in .safetensors;"
            " it must be a diffusers directory or a .safetensors file"
        )
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"teacher.model: {file} is no whole safetensors file: {error}") from None


def pipeline_of(file: Path, names: Iterable[str]) -> str:
    """The class of the pipeline that a checkpoint is of.

    Raises:
        TeacherError: it is no checkpoint of SD 1.x, 2.x or SDXL with all its parts.
    """
    listed = list(names)
    foreign = [name for name in OTHER_SCHEDULES if name in listed]
    if foreign:
        raise TeacherError(
            f"teacher.model: {file} holds {foreign[0]}: an SDXL of EDM's noise schedule,"
            " which is not supported"
        )
    has = {prefix for prefix in PARTS_BY_PREFIX if any(n.startswith(prefix) for n in listed)}
    if {UNET, VAE, CLIP_XL, OPEN_CLIP_XL} <= has:
        return "StableDiffusionXLPipeline"
    if {UNET, VAE} <= has and has & {CLIP, OPEN_CLIP}:
        return "StableDiffusionPipeline"
    lacking = "" if not has else f"; of a checkpoint's parts it has {', '.join(sorted(has))} alone"
    raise TeacherError(
        f"teacher.model: {file} is no checkpoint of SD 1.x, 2.x or SDXL: {len(listed)} tensors"
        f" named {some(listed)}{lacking}"
    )


def read_parts(file: Path, config: Path, names: Iterable[str]) -> Parts:
    """U-Net, VAE and text encoders of a checkpoint, in float32, by their names in a pipeline.

    Raises:
        TeacherError: a config is missing or is another model's, or the scheduler is not what the
            checkpoint is marked for.
    """
    listed = list(names)
    check_marks(file, config, listed)
    parts: Parts = {}
    for prefix, (name, read) in PARTS_BY_PREFIX.items():
        if any(key.startswith(prefix) for key in listed):
            described = read_config(config / name / "config.json")
            parts[name] = read(file, read_state(file, prefix), described)
    return parts


def check_marks(file: Path, config: Path, names: Iterable[str]) -> None:
    """TeacherError: the checkpoint is marked for another scheduler than the directory's."""
    scheduler = read_config(config / "scheduler" / "scheduler_config.json")
    for mark in MARKS.keys() & set(names):
        setting, value = MARKS[mark]
        if scheduler.get(setting) != value:
            raise TeacherError(
                f"teacher.model: {file} holds {mark}, so its scheduler needs {setting} {value};"
                f" that of teacher.config {config} has {scheduler.get(setting)}"
            )


def read_config(path: Path) -> dict[str, Any]:
    """A part's config. TeacherError: it is missing, or is not JSON."""
    try:
        described: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except OSError:
        raise TeacherError(f"teacher.config: {path} does not exist or cannot be read") from None
    except ValueError as error:
        raise TeacherError(f"teacher.config: {path} is not JSON: {error}") from None
    return described


def read_state(file: Path, prefix: str) -> State:
    """The tensors whose names start so."""
    with safe_open(file, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118


def read_unet(file: Path, state: State, config: dict[str, Any]) -> nn.Module:
    """The U-Net."""
    with init_empty_weights():
        module = UNet2DConditionModel.from_config(config)
    return filled(file, module, converted(file, convert_ldm_unet_checkpoint, state, config))


def read_vae(file: Path, state: State, config: dict[str, Any]) -> nn.Module:
    """The VAE."""
    with init_empty_weights():
        module = AutoencoderKL.from_config(config)
    return filled(file, module, converted(file, convert_ldm_vae_checkpoint, state, config))


def read_clip(file: Path, state: State, config: dict[str, Any]) -> nn.Module:
    """A text encoder under CLIP's own names; older files hold its position numbers too."""
    with init_empty_weights():
        module = CLIPTextModel(CLIPTextConfig(**config))
    named = convert_ldm_clip_checkpoint(state)
    kept = {key: value for key, value in named.items() if not key.endswith("position_ids")}
    return filled(file, module, kept)


def read_open_clip(file: Path, state: State, config: dict[str, Any]) -> nn.Module:
    """SD 2.x's text encoder: its pipeline has no use for the last layer and the projection."""
    with init_empty_weights():
        module = CLIPTextModel(CLIPTextConfig(**config))
    last = f"encoder.layers.{module.config.num_hidden_layers}."
    named = convert_open_clip_checkpoint(module, state, prefix=OPEN_CLIP)
    kept = {k: v for k, v in named.items() if last not in k and k != "text_projection.weight"}
    return filled(file, module, kept)


def read_open_clip_xl(file: Path, state: State, config: dict[str, Any]) -> nn.Module:
    """SDXL's second text encoder."""
    with init_empty_weights():
        module = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    return filled(file, module, convert_open_clip_checkpoint(module, state, prefix=OPEN_CLIP_XL))


def converted(
    file: Path, convert: Callable[..., State], state: State, config: dict[str, Any]
) -> State:
    """Original names to diffusers' own, by diffusers."""
    try:
        return convert(state, config)
    except KeyError as error:
        raise TeacherError(f"teacher.model: {file} lacks the tensor {error.args[0]}") from None


def filled(file: Path, module: nn.Module, state: State) -> nn.Module:
    """An empty module with these weights in float32. TeacherError: they are not its own."""
    wanted = module.state_dict()
    if not any(key.startswith("text_model.") for key in wanted):
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    check_fit(file, type(module).__name__, wanted, state)
    own = {key: value.to(torch.float32).contiguous() for key, value in state.items()}
    module.load_state_dict(own, assign=True)
    return module


def check_fit(
    file: Path, what: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """TeacherError unless the tensors found are those wanted, by name and shape."""
    faults = {
        "lacks": [key for key in wanted if key not in found],
        "has unknown": [key for key in found if key not in wanted],
        "has misshapen": [
            f"{key} {list(found[key].shape)} instead of {list(value.shape)}"
            for key, value in wanted.items()
            if key in found and found[key].shape != value.shape
        ],
    }
    told = [f"it {fault} {len(keys)}: {some(keys)}" for fault, keys in faults.items() if keys]
    if told:
        raise TeacherError(
            f"teacher.model: {file} does not fit the {what} of teacher.config: {'; '.join(told)}"
        )


def some(names: Iterable[str]) -> str:
    """The first few, and whether there are more."""
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (", …" if len(listed) > NAMED else "")


# A part's prefix in the file -> its name in a pipeline, and what reads it.
PARTS_BY_PREFIX: dict[str, tuple[str, Callable[[Path, State, dict[str, Any]], nn.Module]]] = {
    UNET: ("unet", read_unet),
    VAE: ("vae", read_vae),
    CLIP: ("text_encoder", read_clip),
    OPEN_CLIP: ("text_encoder", read_open_clip),
    CLIP_XL: ("text_encoder", read_clip),
    OPEN_CLIP_XL: ("text_encoder_2", read_open_clip_xl),
}
