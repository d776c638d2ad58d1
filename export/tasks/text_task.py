"""Text to image: a prompt's token ids and noise in the latent space."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from export.graph.decoder import decoder_facts, load_decoder
from export.graph.precision import SAMPLES, Precision, apply_precision
from export.graph.sizes import check_sizes
from export.graph.text_graph import TextGraph, text_graph
from export.model.foreign import Source
from export.model.measured_look import look_at
from export.model.stock import stock_pictures
from export.model.student import Student, load_model
from export.repository.manifest import TOKENIZERS
from export.repository.tokenizers_json import write_tokenizer
from export.signature import TEXT_INPUTS, Signature, Size, text_to_image
from export.tasks.subjects import Subjects, pipeline_encoder, prompts


@dataclass(frozen=True)
class TextTask:
    """A student that is given a prompt."""

    student: Student
    graph: TextGraph
    precision: Precision = field(default_factory=Precision)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found when it was loaded."""
        return self.student.notes

    def signature(self, sizes: Sequence[Size]) -> Signature:
        """Ids for each encoder and noise; several sizes where they are asked for."""
        student = self.student
        checked = check_sizes(student, sizes)
        encoders = len(student.family.encoders)
        return text_to_image(
            student.latent_channels, student.latent_size, student.size_px, checked, encoders
        )

    def subjects(self) -> Subjects:
        """The gate's prompts by the student's own tokenizers."""
        return prompts(pipeline_encoder(self.student.pipeline))

    def stock(self, texts: Sequence[str], noise: Sequence[Tensor]) -> NDArray[np.uint8]:
        """The pipeline's own call for each prompt."""
        return stock_pictures(self.student, texts, noise)

    def looks(self) -> Iterator[str]:
        """By the latents of a few prompts."""
        return look_at(self.student, SAMPLES)

    def facts(self) -> dict[str, Any]:
        """The step, the types of the three parts, the decoder."""
        dtypes = self.precision.to_json()
        dtypes[self.student.family.denoiser] = dtypes.pop("unet")
        return {
            "one_step": self.student.step.to_json(),
            "precision": dtypes,
            "decoder": decoder_facts(self.student),
        }

    def write_files(self, folder: Path) -> None:
        """A tokenizer file for each text input."""
        student = self.student
        for name, tokenizer in student.family.tokenizers_of(student.pipeline).items():
            write_tokenizer(tokenizer, folder / TOKENIZERS[name], TEXT_INPUTS[name])


def open_text(
    source: Source, precision: Precision, vae: Path | None, report: Callable[[str], None]
) -> TextTask:
    """Load the student in its number types and with the decoder that was chosen."""
    student = load_model(replace(source, dtype=precision.unet, vae_dtype=precision.vae))
    if vae is not None:
        load_decoder(student, vae, precision.vae)
    largest = apply_precision(student, precision)
    if largest is not None:
        report(f"the decoder's largest value is {largest.value:.0f} ({largest.module}): float16 ok")
    return TextTask(student, text_graph(student), precision)
