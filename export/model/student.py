"""The student: a one-step text model of any origin, or the reason why it may not be exported."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.errors import StudentError
from export.model.families import Family, family_of
from export.model.foreign import Source, open_pipeline
from export.model.kinds import Recipe, is_file, named
from export.model.looks import named_otherwise, same_as_base, scheduled_otherwise
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


def load_student(folder: Path) -> Student:
    """Load a whole pipeline directory whose scheduler config says the recipe, in float32."""
    return load_model(Source(folder))


def load_model(source: Source) -> Student:
    """Load whatever `source` names; `StudentError` says what is missing or not supported."""
    chosen = _chosen(source)
    opened = open_pipeline(source)
    pipeline = opened.pipeline
    recipe = _guided(
        chosen or recognise(pipeline.scheduler), pipeline.unet.config.time_cond_proj_dim
    )
    own_scheduler = scheduled_otherwise(source.model, pipeline.scheduler, recipe)
    same = same_as_base(pipeline.unet, opened.base)
    if chosen is not None:
        pipeline.scheduler = prescribed(chosen, pipeline.scheduler)
    step = read_one_step(pipeline.scheduler, recipe, family_of(pipeline).spacing)
    _check_parts(pipeline)
    latent_size = pipeline.unet.config.sample_size
    return Student(
        folder=source.model,
        pipeline=pipeline,
        step=step,
        recipe=recipe,
        size_px=latent_size * pipeline.vae_scale_factor,
        latent_channels=pipeline.unet.config.in_channels,
        latent_size=latent_size,
        notes=(*named_otherwise(source.model, recipe.kind), *own_scheduler, *same),
    )


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
    unet, vae, family = pipeline.unet.config, pipeline.vae.config, family_of(pipeline)
    if not isinstance(unet.sample_size, int):
        raise StudentError(
            f"sample_size in the student's unet config is {unet.sample_size!r}; "
            f"it must be one whole number, since pictures are square"
        )
    if unet.addition_embed_type != family.addition:
        raise StudentError(
            f"addition_embed_type in the student's unet config is {unet.addition_embed_type!r}; "
            f"only {family.addition!r}, that of a {family.name}, is supported"
        )
    if unet.in_channels != vae.latent_channels:
        raise StudentError(
            f"in_channels in the student's unet config is {unet.in_channels}, and its vae has "
            f"latents of {vae.latent_channels} channels; they must be equal, since the UNet is "
            f"given noise alone"
        )
    for encoder in family.encoders_of(pipeline):
        if getattr(encoder.config, "use_attention_mask", False):
            raise StudentError(
                "use_attention_mask in the student's text encoder config is True; only False is "
                "supported, as CLIP has it"
            )
    if vae.get("shift_factor"):
        raise StudentError(
            f"shift_factor in the student's vae config is {vae.shift_factor!r}; the stock "
            f"{family.name} ignores it, so only None or 0 is allowed"
        )
