"""A LoRA becomes part of the weights before the export, by stock diffusers."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from export.errors import StudentError


def fuse(pipeline: Any, file: Path, scale: float) -> None:
    """W + scale · B A in every layer that the file names; afterwards no trace of it is left."""
    try:
        pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StudentError(f"the LoRA {file} cannot be fused: {reason}") from error
