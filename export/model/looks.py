"""What a model looks like, where that is not what it is given as: sentences, never refusals."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from export.model.kinds import KINDS, Recipe

STEPS = re.compile(r"(?<![a-z0-9])(\d+)[-_ ]?steps?(?![a-z])")
# Tensors by which a checkpoint says how it was trained: what, how, and what a scheduler has else.
MARKS = {
    "v_pred": ("prediction_type", "v_prediction", "epsilon"),
    "ztsnr": ("rescale_betas_zero_snr", True, False),
    "edm_mean": ("noise schedule", "EDM's", "SDXL's"),
    "edm_vpred.sigma_max": ("noise schedule", "EDM's", "SDXL's"),
}
WITNESSES = ("conv_in.weight", "mid_block.resnets.0.conv1.weight", "conv_out.weight")


def name_of(path: Path) -> str:
    """A file's or folder's own name, not that of what it links to.

    A hub's cache keeps contents under their digests, and folders under `models--owner--name`.
    """
    own = path.resolve() if path.name in ("", "..") else path.absolute()
    hub = own.parent.name == "snapshots" and own.parents[1].name.startswith("models--")
    return own.parents[1].name.split("--")[-1] if hub else own.name


def named_otherwise(model: Path, kind: str) -> Iterator[str]:
    """If a file or folder is named for several steps, or for another kind than it is given as."""
    own = name_of(model)
    name = own.lower()
    steps = STEPS.search(name)
    if steps and int(steps[1]) != 1:
        yield f"{own} looks like a {steps[1]}-step model by its name; one step is exported"
    others = [other for other in KINDS if other in name]
    if others and kind in KINDS and kind not in others:
        yield f"{own} looks like {others[0]} by its name; it is exported as {kind}"


def scheduled_otherwise(model: Path, scheduler: Any, recipe: Recipe) -> Iterator[str]:
    """If a pipeline directory given as SDXL-Turbo does not carry SDXL-Turbo's own scheduler."""
    own = scheduler.config.get("timestep_spacing")
    if model.is_dir() and recipe.kind == "turbo" and own != "trailing":
        yield (
            f"{model.name} looks like a many-step model: its {type(scheduler).__name__} has "
            f"timestep_spacing={own!r}, and SDXL-Turbo's has 'trailing'"
        )


def marked_otherwise(model: Path, scheduler: Any) -> Iterator[str]:
    """If a single file is marked for another prediction or schedule than it is exported with."""
    if not model.is_file():
        return
    with safe_open(model, "pt") as opened:
        marks = sorted(MARKS.keys() & set(opened.keys()))
    for mark in marks:
        setting, value, default = MARKS[mark]
        own = scheduler.config.get(setting, default)
        if own != value:
            yield (
                f"{name_of(model)} looks trained with the {setting} {value} by its tensor "
                f"{mark!r}; it is exported with {own}"
            )


def same_as_base(unet: Any, base: Path | None) -> Iterator[str]:
    """If layers from the beginning, the middle and the end of the UNet are the base's own.

    The base may hold them in two types of number, and the UNet come in a third.
    """
    state, same = unet.state_dict(), set[str]()
    for file in (base / "unet").glob("*.safetensors") if base else ():
        with safe_open(file, "pt") as opened:
            for key in set(WITNESSES) & set(opened.keys()):
                if _same(state[key], opened.get_tensor(key)):
                    same.add(key)
    if len(same) == len(WITNESSES):
        yield f"the UNet looks like the base's own, a many-step model: {WITNESSES[0]} is the same"


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """To the rounding of half precision, or of the first one's own type if that is coarser."""
    kind = torch.float16 if left.dtype == torch.float32 else left.dtype
    return torch.equal(left.to(kind), right.to(kind))
