"""A one-step recipe of the user's own, `spec.yaml`: docs/one-step-models.md describes it."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.errors import StudentError
from export.model.kinds import Recipe

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}


class Spec(BaseModel):
    """What the file may say; nothing is guessed that changes a picture."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    scheduler: Literal["ddim", "euler", "lcm", "tcd"]
    timestep: Annotated[int, Field(ge=0)]
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    input_scale: Literal["unit", "sigma"] = "unit"
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def recipe(self, kind: str) -> Recipe:
        """The stock call that this spec stands for."""
        return Recipe(
            kind=kind,
            scheduler=SCHEDULERS[self.scheduler],
            settings={"prediction_type": self.prediction_type, **self._settings()},
            timestep=None if self.scheduler == "ddim" else self.timestep,
            guidance_scale=self.guidance_scale,
        )

    def _settings(self) -> dict[str, Any]:
        """DDIM takes its one timestep from `steps_offset`; Euler scales by its spacing."""
        if self.scheduler == "ddim":
            return {
                "timestep_spacing": "leading",
                "steps_offset": self.timestep,
                "set_alpha_to_one": True,
                "clip_sample": False,
            }
        if self.scheduler == "euler":
            scaled = self.input_scale == "sigma"
            return {"timestep_spacing": "trailing" if scaled else "leading"}
        return {}


def read_spec(file: Path) -> Recipe:
    """Read and validate; the kind in the manifest is the file's name without its ending."""
    if not file.is_file():
        raise StudentError(f"--one-step is {str(file)!r}, and there is no such file")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        spec = Spec.model_validate(values)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise StudentError(f"{file} is not valid YAML: {reason}") from error
    except ValidationError as error:
        raise StudentError(f"{file}: {_sentence(error)}") from error
    if spec.input_scale == "sigma" and spec.scheduler != "euler":
        raise StudentError(
            f"{file}: input_scale is 'sigma' with scheduler {spec.scheduler!r}; "
            f"only euler scales its input, so 'unit' is allowed"
        )
    return spec.recipe(file.stem)


def _sentence(error: ValidationError) -> str:
    """Every fault as `key: what is wrong (value given)`, and the keys there are."""
    faults = []
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"])) or "the file"
        if fault["type"] == "extra_forbidden":
            faults.append(f"unknown key {key!r}; allowed are {', '.join(Spec.model_fields)}")
        elif fault["type"] == "missing":
            faults.append(f"the key {key!r} is missing")
        else:
            faults.append(f"{key} is {fault['input']!r}: {fault['msg']}")
    return "; ".join(faults)
