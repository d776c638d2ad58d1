"""A single safetensors file: what its keys say it is, and the UNet and the VAE in it.

Original layout: SDXL's own names (`model.diffusion_model.…`); diffusers layout: those of
`UNet2DConditionModel`. Shapes are read from the file's header, without its weights.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import SafetensorError, safe_open

from export.errors import StudentError
from export.model.weights import load_network

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
LORA, UNET, ORIGINAL_UNET, BARE_UNET, PIPELINE_FILE = range(5)
ORIGINAL = "model.diffusion_model."
ORIGINAL_SD3 = "model.diffusion_model.joint_blocks."
ORIGINAL_VAE = "first_stage_model."
ORIGINAL_TEXT = "conditioner."
LONE_OPEN_CLIP = "conditioner.embedders.0.model."  # SDXL's first encoder is another, a CLIP
GUIDED = "time_embedding.cond_proj.weight"
NAMED = 3  # faulty keys spelt out in a sentence

Shapes = Mapping[str, tuple[int, ...]]
State = dict[str, torch.Tensor]


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
    if any(key.startswith(ORIGINAL_SD3) for key in shapes):
        raise StudentError(
            f"{file} looks like Stable Diffusion 3, which is taken as a pipeline directory; "
            f"as a single file only SDXL is supported"
        )
    if any(key.startswith(ORIGINAL) for key in shapes):
        return _original(file, shapes)
    if "input_blocks.0.0.weight" in shapes:
        return BARE_UNET
    if "conv_in.weight" in shapes and "conv_out.weight" in shapes:
        return UNET
    raise StudentError(
        f"{file} holds neither an SDXL checkpoint, nor a UNet, nor a LoRA: "
        f"{len(shapes)} tensors named {_some(shapes)}"
    )


def _original(file: Path, shapes: Shapes) -> int:
    """Of SDXL's original names: the UNet alone, or text encoders too, with a VAE or without."""

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in shapes)

    if has("cond_stage_model."):
        raise StudentError(f"{file} looks like Stable Diffusion 1 or 2; only SDXL is supported")
    if has(LONE_OPEN_CLIP):
        raise StudentError(
            f"{file} looks like Stable Diffusion 2, as SD-Turbo's file, or like SDXL's refiner: "
            f"its one text encoder is an OpenCLIP; only SDXL is supported"
        )
    if has(ORIGINAL_VAE) and not has(ORIGINAL_TEXT):
        raise StudentError(
            f"{file} has a UNet and a VAE, but no text encoders ({ORIGINAL_TEXT}…); it must be "
            f"a whole checkpoint, or a UNet alone with the VAE by --vae"
        )
    return PIPELINE_FILE if has(ORIGINAL_TEXT) else ORIGINAL_UNET


def load_unet(file: Path, base: Path, layout: int, dtype: torch.dtype) -> Any:
    """The UNet in `file`, of the base's configuration; a guidance embedding is the file's own."""
    config = dict(UNet2DConditionModel.load_config(base / "unet"))
    state = _read(file, "" if layout in (UNET, BARE_UNET) else ORIGINAL)
    if layout == BARE_UNET:
        state = {ORIGINAL + key: value for key, value in state.items()}
    if layout != UNET:
        state = _converted(file, convert_ldm_unet_checkpoint, state, config)
    if GUIDED in state:
        config["time_cond_proj_dim"] = state[GUIDED].shape[1]
    return _assemble(file, UNet2DConditionModel, config, state, dtype)


def load_vae(file: Path, base: Path, dtype: torch.dtype) -> Any:
    """The VAE of a whole checkpoint, of the base's configuration; the base's if it has none."""
    if not any(key.startswith(ORIGINAL_VAE) for key in read_shapes(file)):
        return load_network(AutoencoderKL, base / "vae", dtype)
    config = dict(AutoencoderKL.load_config(base / "vae"))
    state = _converted(file, convert_ldm_vae_checkpoint, _read(file, ORIGINAL_VAE), config)
    return _assemble(file, AutoencoderKL, config, state, dtype)


def _read(file: Path, prefix: str) -> State:
    """The tensors whose names start so, mapped from the disk."""
    with safe_open(file, "pt") as opened:
        keys = list(opened.keys())
        return {key: opened.get_tensor(key) for key in keys if key.startswith(prefix)}


def _converted(file: Path, convert: Any, state: State, config: dict[str, Any]) -> State:
    """Original names to diffusers' own, by diffusers."""
    try:
        converted: State = convert(state, config)
    except KeyError as error:
        raise StudentError(f"{file} lacks the tensor {error.args[0]} of the base's UNet") from error
    return converted


def _assemble(file: Path, kind: Any, config: Any, state: State, dtype: torch.dtype) -> Any:
    """A module of class `kind` that holds `state`, with no second copy in memory."""
    with torch.device("meta"):
        module = kind.from_config(config)
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    _check_fit(file, kind.__name__, wanted, {key: tuple(v.shape) for key, v in state.items()})
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
    return module


def _check_fit(file: Path, what: str, wanted: Shapes, found: Shapes) -> None:
    """The file has every tensor of the base's part, no other, and each of its shape."""
    misshapen = [
        f"{key} {list(found[key])} instead of {list(shape)}"
        for key, shape in wanted.items()
        if key in found and found[key] != shape
    ]
    faults = {
        "lacks": [key for key in wanted if key not in found],
        "has unknown": [key for key in found if key not in wanted],
        "has misshapen": misshapen,
    }
    clauses = [
        f"it {fault} {len(keys)} of {len(wanted)} tensors: {_some(keys)}"
        for fault, keys in faults.items()
        if keys
    ]
    if clauses:
        raise StudentError(f"{file} does not fit the {what} of --base: {'; '.join(clauses)}")


def check_loaded(file: Path, name: str, module: Any) -> None:
    """A part that diffusers took from a file has no tensor left without its values."""
    state = module.state_dict()
    missing = [key for key, value in state.items() if value.is_meta]
    if missing:
        raise StudentError(
            f"{file} lacks {len(missing)} of {len(state)} tensors of its {name}: {_some(missing)}"
        )


def _some(keys: Iterable[str]) -> str:
    """The first few, and whether there are more."""
    listed = list(keys)
    return ", ".join(listed[:NAMED]) + (", …" if len(listed) > NAMED else "")
