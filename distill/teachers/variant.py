"""Which weight files of a diffusers directory are loaded, where it has them in half precision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

VARIANTS = ("fp16", "bf16")  # as `variant=` names them; others, such as non_ema, are other weights
STEM, SHARD = r"(diffusion_pytorch_model|pytorch_model|model)", r"(-\d+-of-\d+)?"
END = r"\.(safetensors|bin)"


def variant_of(folder: Path, parts: Sequence[str]) -> str | None:
    """The variant in which one of the parts has its weights alone; None: all have others.

    So `from_pretrained(..., variant="fp16")` downloads them.
    """
    for part in parts:
        names = [file.name for file in (folder / part).glob("*")]
        if any(re.fullmatch(f"{STEM}{SHARD}{END}", name) for name in names):
            continue
        for variant in VARIANTS:
            pattern = rf"{STEM}{SHARD}\.{variant}{SHARD}{END}"
            if any(re.fullmatch(pattern, name) for name in names):
                return variant
    return None
