"""The text-to-image pipelines that become one graph: what each consists of.

The names are those of diffusers' parts; the graph's text inputs follow the order of the tokenizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffusers import (
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from export.signature import TEXT_INPUTS


@dataclass(frozen=True)
class Family:
    """`pipeline` is the stock class, `options` what it is loaded with beside its parts.

    `addition` is the UNet's `addition_embed_type`; `spacing` the one that our students' scheduler
    has: `StableDiffusionPipeline` resets the `steps_offset` by which SDXL's names its timestep.
    A transformer that was trained by flow matching has neither. `shifted`: the pipeline adds the
    VAE's `shift_factor`, where the others ignore it.
    """

    pipeline: Any
    encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    addition: str | None = None
    spacing: str = "leading"
    denoiser: str = "unet"
    shifted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class's name, as `model_index.json` has it."""
        return str(self.pipeline.__name__)

    @property
    def weighted(self) -> tuple[str, ...]:
        """The parts with weights."""
        return (*self.encoders, self.denoiser, "vae")

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
    options={"add_watermarker": False},
)
SD = Family(
    pipeline=StableDiffusionPipeline,
    encoders=("text_encoder",),
    tokenizers=("tokenizer",),
    spacing="trailing",
    options={
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    },
)
SD3 = Family(
    pipeline=StableDiffusion3Pipeline,
    encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    tokenizers=("tokenizer", "tokenizer_2", "tokenizer_3"),
    denoiser="transformer",
    shifted=True,
    options={"image_encoder": None, "feature_extractor": None},
)
T5 = ("text_encoder_3", "tokenizer_3")
SD3_WITHOUT_T5 = replace(
    SD3,
    encoders=SD3.encoders[:2],
    tokenizers=SD3.tokenizers[:2],
    options={**SD3.options, **dict.fromkeys(T5)},
)
FAMILIES = {family.name: family for family in (SDXL, SD, SD3)}
UNETS = (SDXL.name, SD.name)


def family_in(index: Mapping[str, Any]) -> Family | None:
    """The family that a `model_index.json` names, without T5 if it has none; None if unknown."""
    family = FAMILIES.get(index.get("_class_name", ""))
    t5 = any((index.get(part) or [None])[0] for part in T5)
    return SD3_WITHOUT_T5 if family is SD3 and not t5 else family


def shift_fault(family: Family, vae_config: Mapping[str, Any]) -> str | None:
    """The VAE's `shift_factor`, and why the stock pipeline cannot decode with it; None: it can."""
    shift = vae_config.get("shift_factor")
    if family.shifted and shift is None:
        return f"None; the stock {family.name} adds it, so it must be a number"
    if shift and not family.shifted:
        return f"{shift!r}; the stock {family.name} ignores it, so only None or 0 is allowed"
    return None


def family_of(pipeline: Any) -> Family:
    """The family of a loaded pipeline."""
    family = FAMILIES[type(pipeline).__name__]
    return SD3_WITHOUT_T5 if family is SD3 and pipeline.text_encoder_3 is None else family
