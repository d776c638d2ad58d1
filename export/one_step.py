"""The one-step recipe: which timestep, which prediction, and the formula of the clean latent.

It lies in the student's scheduler config. A stock `DDIMScheduler` with leading spacing, an offset
of t and a last alpha of one evaluates, when asked for a single step, exactly the formula below at
exactly timestep t.

Symbols: x_T noise, ᾱ_t the schedule's cumulated alpha, √ᾱ_t `signal`, √(1-ᾱ_t) `noise`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from export.errors import StudentError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
REQUIRED = {
    "timestep_spacing": "leading",
    "set_alpha_to_one": True,
    "clip_sample": False,
    "thresholding": False,
}


@dataclass(frozen=True)
class OneStep:
    """`signal` and `noise` are float32 values held as Python floats."""

    timestep: int
    prediction_type: str
    signal: float
    noise: float


def read_one_step(scheduler: Any) -> OneStep:
    """Read the recipe from a diffusers scheduler; `StudentError` says what does not fit."""
    name, config = type(scheduler).__name__, scheduler.config
    if name != "DDIMScheduler":
        raise StudentError(
            f"the student's scheduler is a {name}; only DDIMScheduler, with "
            f"timestep_spacing='leading' and steps_offset=<timestep>, is supported"
        )
    for key, value in REQUIRED.items():
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
    return _at(scheduler, config.steps_offset, config.prediction_type)


def _at(scheduler: Any, timestep: int, prediction_type: str) -> OneStep:
    """The recipe at a timestep that must lie in the schedule and leave a signal to divide by."""
    last = scheduler.config.num_train_timesteps - 1
    if not 0 <= timestep <= last:
        raise StudentError(
            f"steps_offset in the student's scheduler config is {timestep}; "
            f"the one step's timestep must lie between 0 and {last}"
        )
    alpha = scheduler.alphas_cumprod[timestep].to(torch.float32)
    if prediction_type == "epsilon" and alpha == 0:
        raise StudentError(
            f"the student predicts epsilon at timestep {timestep}, where its schedule leaves no "
            f"signal; choose an earlier timestep or prediction_type v_prediction or sample"
        )
    return OneStep(timestep, prediction_type, float(alpha**0.5), float((1 - alpha) ** 0.5))


def clean_latent(x_T: torch.Tensor, prediction: torch.Tensor, step: OneStep) -> torch.Tensor:
    """x0 from noise and prediction, in float32 (DDIM, 2010.02502, eq. 12; v: 2202.00512, app. D).

    epsilon: (x_T - √(1-ᾱ) ε) / √ᾱ;  v_prediction: √ᾱ x_T - √(1-ᾱ) v;  sample: the prediction.
    The division magnifies errors of ε up to 14.6 times at t = 999: hence float32.
    """
    x_T, prediction = x_T.float(), prediction.float()  # [B, C, H, W]
    if step.prediction_type == "epsilon":
        return (x_T - step.noise * prediction) / step.signal
    if step.prediction_type == "v_prediction":
        return step.signal * x_T - step.noise * prediction
    assert step.prediction_type == "sample", step
    return prediction
