"""What the exporter and the gate know of a student, whatever it draws pictures of.

N pictures, C channels, h x w size of the noise, H x W picture size in pixels.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from export.graph.class_module import ClassGraph
from export.graph.text_graph import TextGraph
from export.signature import Signature, Size
from export.tasks.subjects import Subjects

Graph = TextGraph | ClassGraph


class Task(Protocol):
    """A one-step student, loaded, in its number types, and its graph."""

    @property
    def graph(self) -> Graph:
        """The one graph in torch."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user: what was found that need not be wrong."""

    def signature(self, sizes: Sequence[Size]) -> Signature:
        """How the graph is called; `SizeError` for a size that the student cannot draw."""

    def subjects(self) -> Subjects:
        """What the gate asks for, by the student's own means."""

    def stock(self, texts: Sequence[str], noise: Sequence[Tensor]) -> NDArray[np.uint8]:
        """Stock diffusers' own pictures, one call each with noise [1, C, h, w]: [N, H, W, 3]."""

    def looks(self) -> Iterator[str]:
        """Sentences on what it draws, where that is not what a one-step model draws."""

    def facts(self) -> dict[str, Any]:
        """What the manifest says of this student beside how its graph is called."""

    def write_files(self, folder: Path) -> None:
        """What a caller of the graph needs besides it."""
