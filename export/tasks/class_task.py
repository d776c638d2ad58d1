"""Class to image: a class's number and noise of the picture's own size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.errors import DecoderError, PrecisionError, SizeError
from export.graph.class_module import ClassGraph
from export.graph.precision import Precision
from export.model.class_stock import stock_class_pictures
from export.model.class_student import ClassStudent, load_class_student
from export.model.foreign import Source
from export.signature import Signature, Size, class_to_image
from export.tasks.subjects import Subjects, classes


@dataclass(frozen=True)
class ClassTask:
    """A student that is given the number of a class."""

    student: ClassStudent
    graph: ClassGraph

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found when it was loaded."""
        return self.student.notes

    def signature(self, sizes: Sequence[Size]) -> Signature:
        """Class numbers and noise; the one size, as stock diffusers draws no other."""
        student = self.student
        own = (student.size_px, student.size_px)
        for width, height in sizes:
            if (width, height) != own or len(sizes) > 1:
                raise SizeError(
                    f"size {width}x{height} does not suit {student.folder}: a class-conditional "
                    f"student draws its own size alone, {own[0]}x{own[1]}"
                )
        return class_to_image(student.pipeline.unet.config.in_channels, student.size_px)

    def subjects(self) -> Subjects:
        """Sixteen classes, the first and the last among them."""
        return classes(self.student.classes)

    def stock(self, texts: Sequence[str], noise: Sequence[Tensor]) -> NDArray[np.uint8]:
        """The pipeline's own call for each class."""
        return stock_class_pictures(self.student, [int(text) for text in texts], noise)

    def looks(self) -> Iterator[str]:
        """Nothing: how far a class's mean lies from its pictures was not measured."""
        return iter(())

    def facts(self) -> dict[str, Any]:
        """The classes, the step, the network's type."""
        student = self.student
        named = {"names": list(student.names)} if student.names else {}
        dtype = str(student.pipeline.unet.dtype).removeprefix("torch.")
        return {
            "classes": {"count": student.classes, **named},
            "one_step": student.step.to_json(),
            "precision": {"unet": dtype},
        }

    def write_files(self, folder: Path) -> None:
        """None."""


def open_classes(source: Source, precision: Precision, vae: Path | None) -> ClassTask:
    """Load the student in its network's number type; what only a text model has is refused."""
    if vae is not None:
        raise DecoderError(
            f"vae is {vae}, but {source.model} is class-conditional and draws pixels: it has no "
            f"decoder to replace"
        )
    for option, dtype, allowed in (
        ("vae-dtype", precision.vae, (torch.float32,)),
        ("text-dtype", precision.text, (torch.float32, precision.unet)),
    ):
        if dtype not in allowed:
            name = str(dtype).removeprefix("torch.")
            raise PrecisionError(
                f"{option} is {name}, but {source.model} is class-conditional and has no such "
                f"part; leave {option} out"
            )
    student = load_class_student(replace(source, dtype=precision.unet))
    return ClassTask(student, ClassGraph(student))
