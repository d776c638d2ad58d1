"""The one step of a stock `CMStochasticIterativeScheduler`, as coefficients.

Symbols as in EDM (2206.00364): σ the noise level, σ_data the data's deviation; ε is the scheduler's
sigma_min, the level at which a consistency model (2303.01469) gives its input back.
"""

from collections.abc import Iterator
from copy import deepcopy
from math import inf, sqrt
from pathlib import Path
from typing import Any

from export.errors import StudentError
from export.model.one_step import Coefficients, OneStep

SCHEDULER = "CMStochasticIterativeScheduler"
KIND = "consistency"


def boundary(start: float, sigma: float, epsilon: float, sigma_data: float) -> Coefficients:
    """x_0 = c_skip(σ) x + c_out(σ) F(x / √(σ² + σ_data²)) with x = `start` z (2303.01469, app. C).

    c_skip = σ_data² / ((σ-ε)² + σ_data²) and c_out = σ_data (σ-ε) / √(σ² + σ_data²); with ε = 0 it
    is EDM's own preconditioning (2206.00364, table 1). `start` is σ but for rounding.
    """
    width = sqrt(sigma**2 + sigma_data**2)
    skip = sigma_data**2 / ((sigma - epsilon) ** 2 + sigma_data**2)
    out = sigma_data * (sigma - epsilon) / width
    return Coefficients(start / width, skip * start, out)


def read_consistency_step(scheduler: Any) -> OneStep:
    """The step that the scheduler takes when it is asked for one; `StudentError` if it cannot."""
    name, config = type(scheduler).__name__, scheduler.config
    if name != SCHEDULER:
        raise StudentError(
            f"the student's scheduler is a {name}; a class-conditional student has a {SCHEDULER}"
        )
    low, high, data = config.sigma_min, config.sigma_max, config.sigma_data
    if not (0 <= low < high < inf and 0 < data < inf and config.rho > 0):
        raise StudentError(
            f"the student's scheduler config has sigma_min {low:g}, sigma_max {high:g}, sigma_data "
            f"{data:g} and rho {config.rho:g}; they must be 0 <= sigma_min < sigma_max, "
            f"sigma_data > 0 and rho > 0"
        )
    if config.num_train_timesteps < 2:
        raise StudentError(
            f"num_train_timesteps in the student's scheduler config is "
            f"{config.num_train_timesteps}; diffusers divides by one less, so at least 2 are needed"
        )
    own = deepcopy(scheduler)
    own.set_timesteps(1)
    sigma, timestep = float(own.sigmas[0]), float(own.timesteps[0])
    coefficients = boundary(float(own.init_noise_sigma), sigma, low, data)
    return OneStep(KIND, timestep, "preconditioned", coefficients)


def looks_like_a_teacher(folder: Path, scheduler: Any) -> Iterator[str]:
    """If the scheduler stops above no noise and clips nothing: so an imported EDM is saved.

    A one-step student of it ends at 0; a consistency model stops at its epsilon and clips.
    """
    config = scheduler.config
    if config.sigma_min > 0 and not config.clip_denoised:
        yield (
            f"{folder.name} looks like a many-step EDM: its {SCHEDULER} has sigma_min "
            f"{config.sigma_min:g} and clips nothing"
        )
