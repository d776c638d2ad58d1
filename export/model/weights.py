"""The weight files of a directory that diffusers or transformers saved: which are loaded."""

import re
from pathlib import Path
from typing import Any

import torch

from export.errors import StudentError

VARIANTS = ("fp16", "bf16")  # as `variant=` names them; others, such as non_ema, are other weights
STEM, SHARD = r"(diffusion_pytorch_model|model)", r"(-\d+-of-\d+)?"


def load_network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of diffusers' class `kind` out of its directory. StudentError: see `variant_of`."""
    return kind.from_pretrained(
        folder,
        dtype=dtype,
        variant=variant_of(folder),
        local_files_only=True,
        use_safetensors=True,
    )


def variant_of(*folders: Path) -> str | None:
    """The variant in which one of the folders has its safetensors alone; None: all have others.

    So `from_pretrained(..., variant="fp16")` downloads them. A pickle alone is refused unopened.
    """
    alone: set[str] = set()
    for folder in folders:
        names = sorted(file.name for file in folder.glob("*"))
        if _any(rf"{STEM}{SHARD}\.safetensors", names):
            continue
        found = [v for v in VARIANTS if _any(rf"{STEM}{SHARD}\.{v}{SHARD}\.safetensors", names)]
        pickles = [name for name in names if name.endswith(".bin")]
        if pickles and not found:
            raise StudentError(
                f"{folder} has its weights as a pickle alone, {pickles[0]}, which can run code "
                f"when it is opened; load it where you trust it, and save it with save_pretrained"
            )
        alone |= set(found[:1])
    return next((variant for variant in VARIANTS if variant in alone), None)


def _any(pattern: str, names: list[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)
