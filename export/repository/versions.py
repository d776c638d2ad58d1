"""The version numbers of a model."""

import re
from pathlib import Path

VERSION = re.compile(r"[1-9][0-9]*")


def versions(model: Path) -> list[int]:
    """The numbers in a model's folder, rising; other names are ignored, as Triton does."""
    if not model.is_dir():
        return []
    return sorted(int(path.name) for path in model.iterdir() if VERSION.fullmatch(path.name))
