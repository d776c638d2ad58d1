"""A single safetensors file: what its keys say it is, and the UNet in it.

Original layout: SDXL's own names (`model.diffusion_model.…`); diffusers layout: those of
`UNet2DConditionModel`. Shapes are read from the file's header, without its weights.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from export.errors import StudentError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
LORA, UNET, ORIGINAL_UNET, BARE_UNET, PIPELINE_FILE = range(5)
ORIGINAL = "model.diffusion_model."
GUIDED = "time_embedding.cond_proj.weight"
NAMED = 3  # faulty keys spelt out in a sentence

Shapes = Mapping[str, tuple[int, ...]]


def read_shapes(file: Path) -> Shapes:
    """Every tensor's shape; a pickle is refused unopened, since opening one runs its code."""
    if file.suffix in PICKLES:
        raise StudentError(
            f"{file} is a pickle, which can run code when it is opened; convert it to "
            f".safetensors first (safetensors.torch.save_file on its state dict)"
        )
    if file.suffix != ".safetensors":
        raise StudentError(f"{file} ends in {file.suffix!r}; a single file must be .safetensors")
    try:
        with safe_open(file, "pt") as opened:
            keys = list(opened.keys())
            return {key: tuple(opened.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as error:
        raise StudentError(f"{file} is not a whole safetensors file: {error}") from error


def layout_of(file: Path, shapes: Shapes) -> int:
    """One of the five layouts, by the keys alone."""
    if any("lora" in key.lower() for key in shapes):
        return LORA
    if any(key.startswith(ORIGINAL) for key in shapes):
        heads = {key.split(".")[0] for key in shapes}
        if "cond_stage_model" in heads:
            raise StudentError(f"{file} looks like Stable Diffusion 1 or 2; only SDXL is supported")
        return PIPELINE_FILE if {"conditioner", "first_stage_model"} <= heads else ORIGINAL_UNET
    if "input_blocks.0.0.weight" in shapes:
        return BARE_UNET
    if "conv_in.weight" in shapes and "conv_out.weight" in shapes:
        return UNET
    raise StudentError(
        f"{file} holds neither an SDXL checkpoint, nor a UNet, nor a LoRA: "
        f"{len(shapes)} tensors named {_some(shapes)}"
    )


def load_unet(file: Path, base: Path, layout: int, dtype: torch.dtype) -> Any:
    """The UNet in `file`, of the base's configuration, with no second copy in memory."""
    config = dict(UNet2DConditionModel.load_config(base / "unet"))
    state = load_file(file)
    if layout == BARE_UNET:
        state = {ORIGINAL + key: value for key, value in state.items()}
    if layout != UNET:
        state = _converted(file, state, config)
    if GUIDED in state:
        config["time_cond_proj_dim"] = state[GUIDED].shape[1]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    _check_state(file, state, {key: value.shape for key, value in unet.state_dict().items()})
    unet.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    return unet


def _converted(
    file: Path, state: dict[str, torch.Tensor], config: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Original names to diffusers' own."""
    try:
        converted: dict[str, torch.Tensor] = convert_ldm_unet_checkpoint(state, config)
    except KeyError as error:
        raise StudentError(f"{file} lacks {ORIGINAL}{error.args[0]} of an SDXL UNet") from error
    return converted


def _check_state(file: Path, state: Mapping[str, torch.Tensor], wanted: Mapping[str, Any]) -> None:
    """The file has every tensor of the base's UNet, no other, and each of its shape."""
    missing, unknown = [k for k in wanted if k not in state], [k for k in state if k not in wanted]
    shaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    for what, keys in (("lacks", missing), ("has unknown", unknown), ("has misshapen", shaped)):
        if keys:
            raise StudentError(
                f"{file} does not fit the UNet of the base: "
                f"it {what} {len(keys)} of {len(wanted)} tensors: {_some(keys)}"
            )


def _some(keys: Iterable[str]) -> str:
    """The first few, and whether there are more."""
    listed = list(keys)
    return ", ".join(listed[:NAMED]) + (", …" if len(listed) > NAMED else "")
