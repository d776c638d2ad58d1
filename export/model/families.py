"""The text-to-image pipelines that become one graph: what each consists of.

The names are those of diffusers' parts; the graph's text inputs follow the order of the tokenizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from export.signature import TEXT_INPUTS


@dataclass(frozen=True)
class Family:
    """`pipeline` is the stock class, `options` what it is loaded with beside its parts.

    `addition` is the UNet's `addition_embed_type`; `spacing` the one that our students' scheduler
    has: `StableDiffusionPipeline` resets the `steps_offset` by which SDXL's names its timestep.
    """

    pipeline: Any
    encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    addition: str | None
    spacing: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class's name, as `model_index.json` has it."""
        return str(self.pipeline.__name__)

    @property
    def weighted(self) -> tuple[str, ...]:
        """The parts with weights."""
        return (*self.encoders, "unet", "vae")

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that a directory must have."""
        return (*self.tokenizers, *self.weighted, "scheduler")

    def tokenizers_of(self, pipeline: Any) -> dict[str, Any]:
        """A loaded pipeline's tokenizers by the input that each makes."""
        found = [getattr(pipeline, name) for name in self.tokenizers]
        return dict(zip(TEXT_INPUTS, found, strict=False))

    def encoders_of(self, pipeline: Any) -> list[Any]:
        """A loaded pipeline's text encoders."""
        return [getattr(pipeline, name) for name in self.encoders]


SDXL = Family(
    pipeline=StableDiffusionXLPipeline,
    encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    addition="text_time",
    spacing="leading",
    options={"add_watermarker": False},
)
SD = Family(
    pipeline=StableDiffusionPipeline,
    encoders=("text_encoder",),
    tokenizers=("tokenizer",),
    addition=None,
    spacing="trailing",
    options={
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    },
)
FAMILIES = {family.name: family for family in (SDXL, SD)}


def family_of(pipeline: Any) -> Family:
    """The family of a loaded pipeline."""
    return FAMILIES[type(pipeline).__name__]
