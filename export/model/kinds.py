"""Whose one-step model it is: the scheduler and the arguments that its model card prescribes.

A recipe is applied to the scheduler config of the pipeline, so that the schedule of alphas stays
the model's own; what follows from it is computed in `export.scheduler`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.errors import StudentError

OURS = "singlepass"


@dataclass(frozen=True)
class Recipe:
    """One call of stock diffusers: a scheduler class with settings, and the call's arguments.

    `timestep` None leaves it to the scheduler asked for one step; `guidance_scale` matters only to
    a UNet with a guidance embedding, since nothing here runs the UNet twice.
    """

    kind: str
    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    timestep: int | None = None
    guidance_scale: float = 0.0


EPSILON = {"prediction_type": "epsilon"}
TRAILING = {"timestep_spacing": "trailing"}

KINDS = {
    "turbo": Recipe("turbo", "EulerAncestralDiscreteScheduler", {**TRAILING, **EPSILON}),
    "lightning": Recipe(
        "lightning", "EulerDiscreteScheduler", {**TRAILING, "prediction_type": "sample"}
    ),
    "dmd2": Recipe("dmd2", "LCMScheduler", EPSILON, timestep=399),
    "hyper": Recipe("hyper", "LCMScheduler", EPSILON, timestep=800),
    "lcm": Recipe("lcm", "LCMScheduler", EPSILON, guidance_scale=8.0),
}
HYPER_LORA = Recipe("hyper", "TCDScheduler", EPSILON)
TURBO_SD = Recipe("turbo", "EulerDiscreteScheduler", {**TRAILING, **EPSILON})
DMD2_SD = Recipe("dmd2", "LCMScheduler", EPSILON, timestep=999)


def named(kind: str, lora: bool) -> Recipe:
    """The recipe of a kind; Hyper-SD publishes one for its UNet and another for its LoRA."""
    if kind not in KINDS:
        raise StudentError(
            f"--one-step is {kind!r}; allowed are {', '.join(KINDS)}, or the path of a YAML file"
        )
    return HYPER_LORA if lora and kind == "hyper" else KINDS[kind]


def on_pipeline(recipe: Recipe, pipeline: str) -> Recipe:
    """The recipe as that pipeline can be called by it.

    DMD2 labels its noise 399 in SDXL alone; in SD 1.5 it is the schedule's end.
    """
    if pipeline != "StableDiffusionPipeline":
        return recipe
    if recipe.scheduler == "DDIMScheduler":
        raise StudentError(
            f"scheduler of the recipe {recipe.kind!r} is 'ddim', and a {pipeline} gives DDIM "
            f"timesteps of its own; 'lcm' makes the same step"
        )
    return DMD2_SD if recipe is KINDS["dmd2"] else recipe


def said(pipeline: str) -> tuple[Recipe, ...]:
    """Those that a published scheduler config says alone, on a pipeline of this class.

    SD-Turbo's is Euler without the ancestral noise, as SDXL-Lightning's of several steps is.
    """
    known = KINDS["turbo"], KINDS["lightning"]
    return (*known, TURBO_SD) if pipeline == "StableDiffusionPipeline" else known


def is_file(one_step: str | Path) -> bool:
    """Whether the value of --one-step names a file instead of a kind."""
    return isinstance(one_step, Path) or Path(one_step).suffix in (".yaml", ".yml")
