"""The student: a one-step text model of any origin, or the reason why it may not be exported."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.errors import StudentError
from export.model.families import Family, family_of, shift_fault
from export.model.flow import read_flow_step
from export.model.foreign import Opened, Source, open_pipeline
from export.model.kinds import Recipe, is_file, named, on_pipeline
from export.model.looks import (
    marked_otherwise,
    named_otherwise,
    same_as_base,
    scheduled_otherwise,
)
from export.model.one_step import OneStep
from export.model.scheduler import prescribed, read_one_step, recognise
from export.model.spec import read_spec


@dataclass(frozen=True)
class Student:
    """The loaded pipeline (CPU, evaluation mode), its one-step recipe and its one size.

    `notes` are sentences for the user: what was found that need not be wrong.
    """

    folder: Path
    pipeline: Any
    step: OneStep
    recipe: Recipe
    size_px: int
    latent_channels: int
    latent_size: int
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """What its pipeline consists of."""
        return family_of(self.pipeline)

    @property
    def denoiser(self) -> Any:
        """Its UNet or its transformer."""
        return getattr(self.pipeline, self.family.denoiser)


def load_student(folder: Path) -> Student:
    """Load a whole pipeline directory whose scheduler config says the recipe, in float32."""
    return load_model(Source(folder))


def load_model(source: Source) -> Student:
    """Load whatever `source` names; `StudentError` says what is missing or not supported."""
    chosen = _chosen(source)
    opened = open_pipeline(source)
    pipeline, family = opened.pipeline, family_of(opened.pipeline)
    if family.denoiser == "transformer":
        step = read_flow_step(pipeline.scheduler)
        recipe = Recipe(step.kind, type(pipeline.scheduler).__name__)
        notes = [*named_otherwise(source.model, recipe.kind)]
    else:
        step, recipe, notes = _unet_step(source, chosen, opened)
    _check_parts(pipeline)
    denoiser = getattr(pipeline, family.denoiser).config
    return Student(
        folder=source.model,
        pipeline=pipeline,
        step=step,
        recipe=recipe,
        size_px=denoiser.sample_size * pipeline.vae_scale_factor,
        latent_channels=denoiser.in_channels,
        latent_size=denoiser.sample_size,
        notes=tuple(notes),
    )


def _unet_step(
    source: Source, chosen: Recipe | None, opened: Opened
) -> tuple[OneStep, Recipe, list[str]]:
    """The step of a UNet whose schedule has alphas, and the notes on whose it looks like."""
    pipeline, family = opened.pipeline, family_of(opened.pipeline)
    if chosen is not None:
        chosen = on_pipeline(chosen, family.name)
    recipe = _guided(
        chosen or recognise(pipeline.scheduler, family.name),
        pipeline.unet.config.time_cond_proj_dim,
    )
    notes = [
        *named_otherwise(source.model, recipe.kind),
        *scheduled_otherwise(source.model, pipeline.scheduler, recipe),
        *same_as_base(pipeline.unet, opened.base),
    ]
    if chosen is not None:
        pipeline.scheduler = prescribed(chosen, pipeline.scheduler)
    notes += marked_otherwise(source.model, pipeline.scheduler)
    return read_one_step(pipeline.scheduler, recipe, family.spacing), recipe, notes


def _chosen(source: Source) -> Recipe | None:
    """The recipe that --one-step names, read before any weights are."""
    if source.one_step is None:
        return None
    if is_file(source.one_step):
        return read_spec(Path(source.one_step))
    return named(str(source.one_step), source.lora)


def _guided(recipe: Recipe, width: int | None) -> Recipe:
    """The recipe with a guidance scale exactly where the UNet takes one (`time_cond_proj_dim`).

    LCM's is left out for LCM-LoRA, whose UNet has learnt the guidance without being told its scale.
    """
    if width is not None and recipe.guidance_scale == 0:
        raise StudentError(
            f"time_cond_proj_dim in the student's unet config is {width}: it takes a guidance "
            f"scale, and the recipe {recipe.kind!r} has none; use --one-step lcm or a YAML file "
            f"with guidance_scale"
        )
    if width is None and recipe.kind == "lcm":
        return replace(recipe, guidance_scale=0.0)
    if width is None and recipe.guidance_scale != 0:
        raise StudentError(
            f"guidance_scale of the recipe {recipe.kind!r} is {recipe.guidance_scale:g}, and the "
            f"student's unet takes none (time_cond_proj_dim is None); only 0 is allowed"
        )
    return recipe


def _check_parts(pipeline: Any) -> None:
    """Settings of the parts that the graph does not reproduce are refused by name."""
    vae, family = pipeline.vae.config, family_of(pipeline)
    part = family.denoiser
    denoiser = getattr(pipeline, part).config
    if not isinstance(denoiser.sample_size, int):
        raise StudentError(
            f"sample_size in the student's {part} config is {denoiser.sample_size!r}; "
            f"it must be one whole number, since pictures are square"
        )
    if denoiser.get("addition_embed_type") != family.addition:
        raise StudentError(
            f"addition_embed_type in the student's {part} config is "
            f"{denoiser.addition_embed_type!r}; "
            f"only {family.addition!r}, that of a {family.name}, is supported"
        )
    if denoiser.in_channels != vae.latent_channels:
        raise StudentError(
            f"in_channels in the student's {part} config is {denoiser.in_channels}, and its vae "
            f"has latents of {vae.latent_channels} channels; they must be equal, since the {part} "
            f"is given noise alone"
        )
    for encoder in family.encoders_of(pipeline):
        if getattr(encoder.config, "use_attention_mask", False):
            raise StudentError(
                "use_attention_mask in the student's text encoder config is True; only False is "
                "supported, as CLIP has it"
            )
    if (fault := shift_fault(family, vae)) is not None:
        raise StudentError(f"shift_factor in the student's vae config is {fault}")
