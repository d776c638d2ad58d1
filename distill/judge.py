"""The judge: a Python file beside the recipe that says whether pictures are what they should be.

What is right depends on the world that a model was trained on, so it is not for this package to
know. A judge defines the functions of the protocol below (docs/evaluation.md explains each).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # [H, W, 3]
FUNCTIONS = ("captions", "vague_captions", "right", "modes", "mode", "attributes", "reference")


class JudgeError(ValueError):
    """A judge file that is missing or does not define what it must."""


class Judge(Protocol):
    """The functions of a judge file."""

    def captions(self, count: int, seed: int) -> list[str]: ...
    def vague_captions(self) -> list[str]: ...
    def right(self, caption: str, picture: Picture) -> bool: ...
    def modes(self, caption: str) -> list[str]: ...
    def mode(self, caption: str, picture: Picture) -> str | None: ...
    def attributes(self, picture: Picture) -> Sequence[float]: ...
    def reference(self, texts: Sequence[str], seed: int) -> Iterable[Picture]: ...


def load_judge(path: Path) -> Judge:
    """Runs a judge file; modules beside it can be imported by it.

    Raises:
        JudgeError: no such file, or a function is missing (the text names it).
    """
    if not path.is_file():
        raise JudgeError(f"evaluate.judge: {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"judge_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    missing = [name for name in FUNCTIONS if not callable(getattr(module, name, None))]
    if missing:
        raise JudgeError(f"evaluate.judge: {path} does not define {', '.join(missing)}")
    return cast(Judge, module)
