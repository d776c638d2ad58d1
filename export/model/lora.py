"""A LoRA becomes part of the weights before the export, by stock diffusers."""

from pathlib import Path
from typing import Any

from diffusers.utils import is_peft_available
from safetensors import SafetensorError

from export.errors import StudentError
from export.model.checkpoint import read_shapes
from export.model.families import family_of
from export.quiet import quiet

# "No keys for text_encoder found": most one-step LoRAs change the UNet alone.
LOADER_LOGS = ("diffusers.loaders.lora_base", "diffusers.loaders.peft")
DOWN = ("lora_A.weight", "lora_down.weight", "lora.down.weight")
UP = ("lora_B.weight", "lora_up.weight", "lora.up.weight")
# Stock diffusers drops a DoRA's magnitudes with a warning, and knows no other of these.
OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
}
REASON_LENGTH = 300


def fuse(pipeline: Any, file: Path, scale: float) -> None:
    """W + scale · B A in every layer that the file names; afterwards no trace of it is left."""
    if not is_peft_available():
        raise StudentError(f"{file} is a LoRA, which takes the library peft: pip install peft")
    layers = _layers(file)
    try:
        with quiet(*LOADER_LOGS):
            pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise StudentError(f"the LoRA {file} does not fit --base: {reason}") from error
    family = family_of(pipeline)
    found = sum(_adapted(getattr(pipeline, n)) for n in (family.denoiser, *family.encoders))
    if found != layers:
        raise StudentError(
            f"the LoRA {file} does not fit --base: {found} of the {layers} layers that it changes "
            f"are there"
        )
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()


def _layers(file: Path) -> int:
    """How many layers the file changes; each takes a pair of matrices."""
    shapes = read_shapes(file)
    for mark, kind in OTHERS.items():
        if (other := next((key for key in shapes if mark in key), None)) is not None:
            raise StudentError(f"{file} is a {kind} ({other}); only a plain LoRA is supported")
    down, up = (sum(key.endswith(ends) for key in shapes) for ends in (DOWN, UP))
    if down != up or not down:
        raise StudentError(
            f"{file} is not a whole LoRA: it has {down} matrices down and {up} matrices up"
        )
    return down


def _adapted(part: Any) -> int:
    """How many layers of the part carry an adapter."""
    return sum(len(getattr(module, "lora_A", ())) > 0 for module in part.modules())
