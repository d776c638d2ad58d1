"""The one step of a stock `FlowMatchEulerDiscreteScheduler`, as coefficients.

Symbols as in the rectified flow of SD 3 (2403.03206): x_s = (1 - s) x_0 + s ε joins picture and
noise, and the transformer answers with the line's velocity v = ε - x_0.
"""

from copy import deepcopy
from typing import Any

from export.errors import StudentError
from export.model.kinds import OURS
from export.model.one_step import Coefficients, OneStep

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
PREDICTION = "flow_prediction"
NEEDED = {  # a student's, or what stock does at one step would be another line's end
    "invert_sigmas": False,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
UNSHIFTED = {"shift": 1.0, "use_dynamic_shifting": False}


def straight(s: float) -> Coefficients:
    """x_0 = x_s - s v, Euler from s to 0 (2403.03206, section 2); x_1 is the noise itself."""
    return Coefficients(1.0, 1.0, -s)


def read_flow_step(scheduler: Any) -> OneStep:
    """The step that the scheduler takes when it is asked for one; `StudentError` if it cannot.

    A shift does not move a step from s = 1, but the schedules of many steps have one.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name != SCHEDULER:
        raise StudentError(
            f"the student's scheduler is a {name}; a student of a flow has a {SCHEDULER}"
        )
    for key, value in {**NEEDED, **UNSHIFTED}.items():
        if config[key] != value:
            looks = ": it looks like a many-step model" if key in UNSHIFTED else ""
            raise StudentError(
                f"{key} in the student's scheduler config is {config[key]!r}; "
                f"a one-step student needs {value!r}{looks}"
            )
    own = deepcopy(scheduler)
    own.set_timesteps(1)
    return OneStep(OURS, float(own.timesteps[0]), PREDICTION, straight(float(own.sigmas[0])))
