"""From a stock scheduler to the coefficients of its single step, with the reasons why not.

The stock scheduler itself is asked for its timestep; a setting that would add something to the step
which the coefficients do not have is refused by name.
"""

from collections.abc import Mapping
from copy import deepcopy
from inspect import signature
from typing import Any

import diffusers

from export.errors import StudentError
from export.model.kinds import KINDS, OURS, Recipe, said
from export.model.one_step import (
    PREDICTION_TYPES,
    Coefficients,
    OneStep,
    consistency,
    ddim,
    euler,
    trajectory,
)

UNCLIPPED = {"clip_sample": False, "thresholding": False}
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "DDIMScheduler": {"set_alpha_to_one": True, **UNCLIPPED},
    "EulerAncestralDiscreteScheduler": {},
    "EulerDiscreteScheduler": {
        "final_sigmas_type": "zero",
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    },
    "LCMScheduler": UNCLIPPED,
    "TCDScheduler": UNCLIPPED,
}
EULER = ("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler")


def prescribed(recipe: Recipe, scheduler: Any) -> Any:
    """`from_config` on the pipeline's own scheduler, as model cards make it.

    What is foreign to the new class, or was only the old one's default, is left behind.
    """
    kind = getattr(diffusers, recipe.scheduler)
    unsaid = scheduler.config.get("_use_default_values", [])
    kept = signature(kind.__init__).parameters.keys() - set(unsaid)
    config = {key: value for key, value in scheduler.config.items() if key in kept}
    return kind.from_config({**config, **recipe.settings})


def recognise(scheduler: Any, pipeline: str = "StableDiffusionXLPipeline") -> Recipe:
    """Our own recipe, Turbo's or SDXL-Lightning's, if the scheduler of such a pipeline says so."""
    name, config = type(scheduler).__name__, scheduler.config
    if name == "DDIMScheduler":
        return Recipe(OURS, name)
    for recipe in said(pipeline):
        if name == recipe.scheduler and recipe.settings.items() <= config.items():
            return recipe
    raise StudentError(
        f"the student's scheduler is a {name} with {_said(config)}: {_what_it_looks_like(name)}; "
        f"if its UNet was distilled to one step, say by whom with --one-step "
        f"{'|'.join(KINDS)} or a YAML file"
    )


def _said(config: Mapping[str, Any]) -> str:
    keys = ("timestep_spacing", "prediction_type")
    return " and ".join(f"{key}={config.get(key)!r}" for key in keys)


def _what_it_looks_like(name: str) -> str:
    if name in ("LCMScheduler", "TCDScheduler"):
        return "several one-step models share it, at different timesteps"
    return "it looks like a many-step model"


def read_one_step(
    scheduler: Any, recipe: Recipe | None = None, spacing: str = "leading"
) -> OneStep:
    """The step that `scheduler` takes in the recipe's call; `StudentError` says what does not fit.

    Without a recipe, the one that the scheduler's config names. `spacing` is the one by which the
    pipeline lets DDIM take its single timestep.
    """
    recipe = recipe or recognise(scheduler)
    name, config = type(scheduler).__name__, scheduler.config
    ours = {"timestep_spacing": spacing} if name == "DDIMScheduler" else {}
    for key, value in {**ours, **NEEDED[name]}.items():
        if config[key] != value:
            raise StudentError(
                f"{key} in the student's scheduler config is {config[key]!r}; "
                f"a one-step student needs {value!r}"
            )
    if config.prediction_type not in PREDICTION_TYPES:
        raise StudentError(
            f"prediction_type in the student's scheduler config is {config.prediction_type!r}; "
            f"allowed are {', '.join(PREDICTION_TYPES)}"
        )
    timestep = _timestep(scheduler, recipe)
    coefficients = _coefficients(scheduler, timestep)
    return OneStep(recipe.kind, timestep, config.prediction_type, coefficients)


def _timestep(scheduler: Any, recipe: Recipe) -> int:
    """The single timestep, which must lie in the schedule and leave a signal to divide by."""
    last = scheduler.config.num_train_timesteps - 1
    if recipe.timestep is None:
        own = deepcopy(scheduler)
        own.set_timesteps(1)
        timestep, source = int(own.timesteps[0]), "steps_offset in the student's scheduler config"
    else:
        timestep, source = recipe.timestep, f"the timestep of the recipe {recipe.kind!r}"
    if not 0 <= timestep <= last:
        raise StudentError(
            f"{source} is {timestep}; the one step's timestep must lie between 0 and {last}"
        )
    if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[timestep] == 0:
        raise StudentError(
            f"the student predicts epsilon at timestep {timestep}, where its schedule leaves no "
            f"signal; choose an earlier timestep or prediction_type v_prediction or sample"
        )
    return timestep


def _coefficients(scheduler: Any, t: int) -> Coefficients:
    """The formula that belongs to the scheduler's class."""
    name, config, alphas = type(scheduler).__name__, scheduler.config, scheduler.alphas_cumprod
    if name in EULER and config.timestep_spacing != "leading":
        return euler(alphas, t, config.prediction_type)
    if name == "LCMScheduler":
        return consistency(alphas, t, config.prediction_type, config.timestep_scaling)
    if name == "TCDScheduler":
        return trajectory(alphas, t, config.prediction_type)
    return ddim(alphas, t, config.prediction_type)
